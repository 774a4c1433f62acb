"""How long our work takes beside work that everybody knows, and whether that is within budget.

A time means little on another machine, a ratio of two times measured side by side a good deal more.
"""

from __future__ import annotations

import csv
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor

import monai_jsm
from monai_jsm.data import with_progress

__all__ = ["speed_suite"]

_BLOCK_BUDGET, _MEMORY_BUDGET, _STEP_BUDGET, _IMPORT_BUDGET = 2.0, 30.0, 1.0, 0.3

_IMPORT = """
import time, monai
before = time.perf_counter()
import monai_jsm
print(time.perf_counter() - before)
"""

# VmHWM belongs to this process alone, unlike ru_maxrss, which on Linux starts at the parent's.
_MEMORY = """
import sys, torch
from monai_jsm.saliency import JointSaliencyBlock

def status(key):
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))

def run(grid):
    pair = [torch.rand(grid[0], 1, *grid[1:], requires_grad=True) for _ in range(2)]
    before = status("VmRSS")
    sum(values.sum() for values in JointSaliencyBlock(len(grid) - 1)(*pair)).backward()
    return (status("VmHWM") - before) / sum(image.nbytes for image in pair)

grid = [int(size) for size in sys.argv[1:]]
run([1] + [16] * (len(grid) - 1))
print(run(grid))
"""


class _Row(NamedTuple):
    """One line of the table; figures in ``unit``, NaN where this platform cannot tell."""

    work: str
    budget: float
    measured: float
    unit: str

    def cells(self) -> list[str]:
        if self.measured != self.measured:
            return [self.work, f"{self.budget:g} {self.unit}", "not measured", "unknown"]
        within = "yes" if self.measured <= self.budget else "no"
        return [self.work, f"{self.budget:g} {self.unit}", f"{self.measured:.2f} {self.unit}", within]


def _named(grid: Sequence[int]) -> str:
    return f"{len(grid) - 1}D, {' x '.join(str(size) for size in grid)}"


def speed_suite(
    output: Path | None = None,
    repeats: int = 7,
    grids: Sequence[Sequence[int]] = ((8, 128, 128), (1, 64, 64, 64)),
) -> str:
    """Measure our work side by side with its budget.

    - The joint saliency block, forward and backward to both images, against one 3x3(x3) convolution of 16 into 16
      channels on the same grid, forward and backward to input and weights: median times of interleaved repeats.
    - Its peak memory on a grid twice as long in every axis, in multiples of the two images: growth of the resident
      memory of a process of its own, in which freed memory goes back to the system at once, so that the figure is what
      was alive and not what the allocator kept. Linux only.
    - One training step (forward, mean squared difference, backward, Adam) of `GlobalToLocalNet` against one of
      MONAI's VoxelMorph, its width chosen for the nearest number of parameters.
    - ``import monai_jsm`` after ``import monai``, each time in a new process.

    Threads are those of torch, so set ``OMP_NUM_THREADS`` beforehand; other work on the machine spoils the ratios.

    Args:
        output: folder for ``speed.md`` and ``speed.csv``, made if need be; left out, nothing is written.
        repeats: how often each work is timed, after one run that is not (the import: without it).
        grids: batch size and spatial sizes, 2D or 3D, of each grid to measure on; sizes divide by 8 for VoxelMorph.

    Returns:
        A Markdown table with the columns work, budget, measured, within budget.
    """
    rows: list[_Row] = []
    for grid in grids:
        name = _named(grid)
        rows.append(_Row(f"joint saliency block against a convolution ({name})", _BLOCK_BUDGET, *_block(grid, repeats)))
        larger = [grid[0], *(2 * size for size in grid[1:])]
        work = f"peak live memory of the block against its two images ({_named(larger)})"
        rows.append(_Row(work, _MEMORY_BUDGET, *_peak(larger)))
        step, parameters = _training_step(grid, repeats)
        rows.append(_Row(f"training step against VoxelMorph ({name}, {parameters} parameters)", _STEP_BUDGET, *step))
    rows.append(_Row("import monai_jsm beyond import monai", _IMPORT_BUDGET, *_import_cost(repeats)))

    header = ["work", "budget", "measured", "within budget"]
    lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * 4, *(row.cells() for row in rows))]
    table = "\n".join(lines) + (
        f"\n\nmonai_jsm {monai_jsm.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{platform.machine()}, median of {repeats}.\n"
    )
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "speed.md").write_text(table, encoding="utf-8")
        with (output / "speed.csv").open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([header, *(row.cells() for row in rows)])
    return table


def _medians(works: Sequence[Callable[[], object]], repeats: int, what: str) -> list[float]:
    """Median seconds of each work, interleaved so that a busy moment of the machine meets them all."""
    seconds: list[list[float]] = [[] for _ in works]
    for turn in with_progress(range(repeats + 1), what):
        for work, taken in zip(works, seconds, strict=True):
            start = time.perf_counter()
            work()
            if turn > 0:
                taken.append(time.perf_counter() - start)
    return [median(taken) for taken in seconds]


def _block(grid: Sequence[int], repeats: int) -> tuple[float, str]:
    from monai_jsm.saliency import JointSaliencyBlock

    spatial_dims = len(grid) - 1
    block = JointSaliencyBlock(spatial_dims)
    convolution = Conv[Conv.CONV, spatial_dims](16, 16, 3, padding=1)
    fixed, warped = (torch.rand(grid[0], 1, *grid[1:], requires_grad=True) for _ in range(2))
    features = torch.rand(grid[0], 16, *grid[1:], requires_grad=True)

    def saliency() -> None:
        torch.stack([values.sum() for values in block(fixed, warped)]).sum().backward()

    ours, theirs = _medians([saliency, lambda: convolution(features).sum().backward()], repeats, "timing the block")
    return ours / theirs, "times"


def _peak(grid: Sequence[int]) -> tuple[float, str]:
    if not sys.platform.startswith("linux"):
        return float("nan"), "times"
    return _in_a_process(_MEMORY, [str(size) for size in grid], {"MALLOC_MMAP_THRESHOLD_": "65536"}), "times"


def _import_cost(repeats: int) -> tuple[float, str]:
    return median(_in_a_process(_IMPORT) for _ in range(repeats)), "s"


def _in_a_process(program: str, arguments: Sequence[str] = (), environment: dict[str, str] | None = None) -> float:
    """The number that a program prints last, run by this interpreter with this package in reach."""
    paths = [str(Path(monai_jsm.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **(environment or {})}
    command = [sys.executable, "-c", program, *arguments]
    return float(
        subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]
    )


def _training_step(grid: Sequence[int], repeats: int) -> tuple[tuple[float, str], str]:
    from monai.networks.nets import VoxelMorph, VoxelMorphUNet

    from monai_jsm.networks import DenseWarp, GlobalToLocalNet

    spatial_dims = len(grid) - 1
    network = GlobalToLocalNet(spatial_dims)
    wanted = _parameters(network)

    def voxelmorph(width: int) -> torch.nn.Module:
        """VoxelMorph in the proportions of its defaults, where ``width`` is 16."""
        backbone = VoxelMorphUNet(spatial_dims, 2, 2 * width, (width, *[2 * width] * 5), (width, width))
        return VoxelMorph(backbone, spatial_dims=spatial_dims)

    rival = min(map(voxelmorph, range(8, 40)), key=lambda candidate: abs(_parameters(candidate) - wanted))
    moving, fixed = torch.rand(2, grid[0], 1, *grid[1:])
    pair = torch.cat([moving, fixed], dim=1)
    warp = DenseWarp()
    ours = _step(network, lambda: warp(moving, network(pair)), fixed)
    theirs = _step(rival, lambda: rival(moving, fixed)[0], fixed)
    seconds = _medians([ours, theirs], repeats, "timing a training step")
    return (seconds[0] / seconds[1], "times"), f"{wanted} and {_parameters(rival)}"


def _step(network: torch.nn.Module, warped: Callable[[], Tensor], fixed: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(warped(), fixed).backward()
        optimizer.step()

    return step


def _parameters(network: torch.nn.Module) -> int:
    return sum(values.numel() for values in network.parameters())
