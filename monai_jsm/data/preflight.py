"""What is said of a pair before it is registered: unusual grids, and the memory that it will take."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import psutil

from monai_jsm.data.errors import InputError
from monai_jsm.data.images import Grid

__all__ = ["check_memory", "grid_warnings", "needed_memory"]

_THIN = 32  # voxels
_ANISOTROPIC = 3.0  # longest voxel edge over the shortest
_LITTLE_SHARED = 0.5  # of a field of view
_BYTES_AT_REST = 0.6e9  # torch, MONAI, SimpleITK
_BYTES_PER_FIXED_VOXEL = 330.0
_BYTES_PER_MOVING_VOXEL = 140.0
_GIB = 2**30


def grid_warnings(fixed: Grid, moving: Grid) -> list[str]:
    """What is unusual about the two grids of a pair, in sentences; registration is possible but deserves a look.

    Args:
        fixed: grid of the fixed image.
        moving: grid of the moving image.

    Returns:
        Warnings of thin images (less than 32 voxels along an axis), of voxels whose longest edge is more than 3 times
        the shortest, and of fields of view of which less than half is shared.

    Example:
        >>> grid_warnings(Grid((64, 80), np.eye(3)), Grid((64, 20), np.eye(3)))
        ['The moving image is thin: 64 x 20 voxels.', 'Only 25 % of the fixed image lies within the moving image.']
    """
    warnings = []
    for side, grid in (("fixed", fixed), ("moving", moving)):
        edges = np.linalg.norm(grid.affine[:-1, :-1], axis=0)
        if min(grid.shape) < _THIN:
            warnings.append(f"The {side} image is thin: {' x '.join(map(str, grid.shape))} voxels.")
        if edges.max() > _ANISOTROPIC * edges.min():
            told = " x ".join(f"{edge:.4g}" for edge in edges)
            warnings.append(f"The {side} image is anisotropic: voxels of {told} mm.")
    for first, second, names in ((fixed, moving, ("fixed", "moving")), (moving, fixed, ("moving", "fixed"))):
        share = _share_within(first, second)
        if share < _LITTLE_SHARED:
            warnings.append(f"Only {100 * share:.0f} % of the {names[0]} image lies within the {names[1]} image.")
    return warnings


def _share_within(first: Grid, second: Grid) -> float:
    """Share of one field of view that the other covers, counted on points spread evenly through it."""
    steps = [(np.arange(20) + 0.5) / 20 * size - 0.5 for size in first.shape]
    points = np.array([(*point, 1.0) for point in itertools.product(*steps)])
    there = (points @ (np.linalg.inv(second.affine) @ first.affine).T)[:, :-1]
    return float(np.all((there >= -0.5) & (there <= np.array(second.shape) - 0.5), axis=1).mean())


def needed_memory(fixed: Grid, moving: Grid) -> int:
    """Bytes that registering a pair takes at its peak, from the measured peaks of pairs of 64^3 to 192^3 voxels."""
    voxels = [math.prod(grid.shape) for grid in (fixed, moving)]
    return int(_BYTES_AT_REST + _BYTES_PER_FIXED_VOXEL * voxels[0] + _BYTES_PER_MOVING_VOXEL * voxels[1])


def check_memory(name: str, fixed: Grid, moving: Grid) -> None:
    """Refuse a pair that the memory of this machine cannot hold, before any of the work is done.

    Args:
        name: of the pair, begins the sentence.
        fixed: grid of the fixed image.
        moving: grid of the moving image.

    Raises:
        InputError: if more is needed than the machine, or the container it runs in, has free.
    """
    needed, free = needed_memory(fixed, moving), _free_memory()
    if needed > free:
        raise InputError(
            f"{name}: needs about {needed / _GIB:.1f} GiB of memory where {free / _GIB:.1f} GiB are free; "
            "crop the images, resample them to larger voxels, or close other programs."
        )


def _free_memory() -> int:
    free = int(psutil.virtual_memory().available)
    try:  # a container may have less than its machine
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return free if limit == "max" else min(free, int(limit) - int(used))
    except (OSError, ValueError):
        return free
