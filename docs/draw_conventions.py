"""Draw docs/images/conventions.png: one point, one value and one inverse on two oblique grids of one world.

Run ``python docs/draw_conventions.py``. Every number in the picture is computed by :mod:`monai_jsm.geometry`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from monai_jsm.geometry import (
    carry_points,
    compose_world,
    identity_grid,
    inverse_ddf,
    itk_displacement,
    sample,
    voxel_to_world,
    world_to_voxel,
)

PICTURE = Path(__file__).parent / "images" / "conventions.png"
PUSHED, PULLED, INVERSE = "#D55E00", "#0072B2", "#009E73"  # of Okabe and Ito's palette
FIXED_SHAPE, MOVING_SHAPE = [7, 6], [8, 6]
FOLLOWED, FOLLOWED_BACK = (4, 1), (2, 1)  # a voxel of fixed and one of moving
HALO = {"facecolor": "white", "edgecolor": "none", "alpha": 0.9, "pad": 1.5}


def grid_affine(shape: list[int], spacing: tuple[float, float], angle: float, centre: tuple[float, float]) -> Tensor:
    """Voxel-to-world matrix, (3, 3), RAS, mm, of a grid turned by ``angle`` whose middle is ``centre``."""
    affine = torch.eye(3, dtype=torch.float64)
    cosine, sine = math.cos(angle), math.sin(angle)
    affine[:2, :2] = torch.tensor([[cosine, -sine], [sine, cosine]]).double() * torch.tensor(spacing).double()
    affine[:2, 2] = torch.tensor(centre).double() - affine[:2, :2] @ ((torch.tensor(shape).double() - 1) / 2)
    return affine


def total_field(affine: Tensor) -> Tensor:
    """A bump and, after it, a linear map of the world: (1, 2, *S), voxels of fixed."""
    at = identity_grid(FIXED_SHAPE, affine)
    middle = torch.tensor([4.0, 2.5]).double().reshape(1, 2, 1, 1)
    bump = torch.exp(-((at - middle) ** 2).sum(1, keepdim=True) / 8)
    ddf = bump * torch.tensor([-0.9, 0.8]).double().reshape(1, 2, 1, 1)
    theta = grid_affine([1, 1], (1.05, 0.95), -0.12, (122.0, -11.0))
    return compose_world(ddf, theta, affine)


def anatomy(affine: Tensor) -> Tensor:
    """Intensities of moving, (*M), from 20 to about 220."""
    world = voxel_to_world(identity_grid(MOVING_SHAPE, affine)[0].flatten(1).T, affine)
    blob = torch.exp(-((world - torch.tensor([60.0, 7.0]).double()) ** 2).sum(1) / (2 * 12.0**2))
    return (20 + 200 * blob).round().reshape(MOVING_SHAPE)


def all_voxels(shape: list[int], like: Tensor) -> Tensor:
    """(N, 2)."""
    return identity_grid(shape, like)[0].flatten(1).T


def draw_grid(axes: Axes, values: Tensor, affine: Tensor, background: Tensor) -> None:
    """Voxels as tiles, a cross on those of the background, and where the array axes point."""
    corners = identity_grid([n + 1 for n in values.shape], affine)[0] - 0.5  # (2, *S + 1)
    world = voxel_to_world(corners.flatten(1).T, affine).T.reshape(corners.shape).numpy()
    axes.pcolormesh(*world, values.numpy(), cmap="Greys", vmin=0, vmax=300, edgecolors="white", linewidth=1.5)
    centres = voxel_to_world(all_voxels(list(values.shape), affine), affine)
    axes.plot(*centres[background.flatten()].T.numpy(), "x", color="#555555", markersize=9)
    points = torch.tensor([[0.0, 0.0], [1.5, 0.0], [0.0, 1.5], [2.1, 0.0], [0.0, 1.9]]).double()
    first, *ends = voxel_to_world(points, affine)
    axes.plot(*first.tolist(), "s", color="black", markersize=6, zorder=4)
    for axis in range(2):
        draw_arrow(axes, first, ends[axis])
        write(axes, ends[2 + axis], f"axis {axis}", bbox=HALO)


def draw_arrow(
    axes: Axes, start: Tensor, end: Tensor, colour: str = "black", bend: float = 0.0, style: str = ""
) -> None:
    """An arrow between two points of the world; a thin one in black, where ``style`` of the line is left out."""
    arrow = {
        "arrowstyle": "-|>",
        "mutation_scale": 22 if style else 12,
        "linewidth": 2.6 if style else 1.8,
        "linestyle": style or "-",
        "color": colour,
        "connectionstyle": f"arc3,rad={bend}",
        "shrinkA": 5 if style else 0,
        "shrinkB": 5 if style else 0,
    }
    axes.annotate("", (end[0].item(), end[1].item()), (start[0].item(), start[1].item()), arrowprops=arrow, zorder=5)


def write(axes: Axes, at: Tensor, text: str, **style: Any) -> None:
    """Text with its middle at a point of the world."""
    axes.text(at[0].item(), at[1].item(), text, ha="center", va="center", **style)


def pair(values: Tensor, names: str = "", signed: bool = False) -> str:
    """Two numbers as text, each after its name, or in brackets.

    Example:
        >>> pair(torch.tensor([3.14, -2.0]), "RA")
        'R 3.1, A -2.0'
    """
    numbers = [f"{value:{'+' if signed else ''}.1f}" for value in values.tolist()]
    if not names:
        return f"({', '.join(numbers)})"
    return ", ".join(f"{name} {number}" for name, number in zip(names, numbers, strict=True))


def draw_compass(axes: Axes, middle: Tensor) -> None:
    """The axes of the world, with the letters of both conventions."""
    for letter, direction in {"R": (1.0, 0.0), "L": (-1.0, 0.0), "A": (0.0, 1.0), "P": (0.0, -1.0)}.items():
        draw_arrow(axes, middle, middle + 4.5 * torch.tensor(direction))
        write(axes, middle + 6.7 * torch.tensor(direction), letter, weight="bold", fontsize=14)


def draw() -> Figure:
    """The whole picture, 1600 x 800 pixels."""
    fixed_affine = grid_affine(FIXED_SHAPE, (6.5, -7.5), 0.28, (-58.0, 8.0))
    moving_affine = grid_affine(MOVING_SHAPE, (6.0, 8.0), -0.2, (58.0, 8.0))
    total = total_field(fixed_affine)
    moving = anatomy(moving_affine)
    back, _ = inverse_ddf(total, fixed_affine, moving_affine, MOVING_SHAPE)
    field, inverse_field = itk_displacement(total, fixed_affine), itk_displacement(back, moving_affine)

    everywhere = carry_points(all_voxels(FIXED_SHAPE, total)[None], total)[0]
    seen = world_to_voxel(voxel_to_world(everywhere, fixed_affine), moving_affine)  # (N, 2), voxels of moving
    inside = ((seen >= -0.5) & (seen <= torch.tensor(MOVING_SHAPE) - 0.5)).all(1).reshape(FIXED_SHAPE)
    pulled = sample(moving[None, None], seen.T.reshape(1, 2, *FIXED_SHAPE))[0, 0]
    warped = torch.where(inside, pulled, moving.min())

    x, y = (torch.tensor([voxel]).double() for voxel in (FOLLOWED, FOLLOWED_BACK))
    carried = carry_points(x[None], total)[0]
    p, end = (voxel_to_world(point, fixed_affine)[0] for point in (x, carried))
    landing = world_to_voxel(end[None], moving_affine)[0]
    q, back_end = (voxel_to_world(point, moving_affine)[0] for point in (y, carry_points(y[None], back)[0]))
    origin = world_to_voxel(back_end[None], fixed_affine)[0]
    at_x, at_y = ((0, slice(None), *voxel) for voxel in (FOLLOWED, FOLLOWED_BACK))
    value = warped[FOLLOWED].item()
    columns = {
        "1  Points are pushed: p → p + field(p)": [
            f"A landmark in voxel x = {FOLLOWED} of fixed",
            f"has the world coordinates p: {pair(p, 'RA')} mm.",
            f"field.nii.gz says there: {pair(field[at_x], 'LP', signed=True)} mm.",
            f"So in moving it lies at {pair(end, 'RA')} mm,",
            f"which is voxel {pair(landing)} of moving.",
        ],
        "2  Images are pulled: warped(x) = moving(x + ddf(x))": [
            f"Voxel x = {FOLLOWED} of warped.nii.gz asks for its value.",
            f"ddf(x) = {pair(total[at_x], signed=True)} leads to {pair(carried[0])},",
            "still counted in voxels of fixed:",
            f"the same place as voxel {pair(landing)} of moving.",
            f"moving, read linearly there, is {value:.0f}: so is warped(x).",
        ],
        "3  And back: q → q + inverse_field(q)": [
            f"Voxel y = {FOLLOWED_BACK} of moving",
            f"has the world coordinates q: {pair(q, 'RA')} mm.",
            f"inverse_field.nii.gz says: {pair(inverse_field[at_y], 'LP', signed=True)} mm.",
            f"So in fixed it lies at {pair(back_end, 'RA')} mm,",
            f"which is voxel {pair(origin)} of fixed.",
        ],
    }

    with rc_context({"font.size": 12.5, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(16, 8), dpi=100, facecolor="white")
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set(xlim=(-100, 100), ylim=(-53, 47), aspect="equal")
        axes.axis("off")
        draw_grid(axes, warped, fixed_affine, ~inside)
        draw_grid(axes, moving, moving_affine, torch.zeros_like(moving, dtype=torch.bool))
        draw_arrow(axes, p, end, PUSHED, style="-")
        draw_arrow(axes, end, p, PULLED, bend=0.22, style="-")
        draw_arrow(axes, q, back_end, INVERSE, style="--")
        for point, name, colour in ((p, "p", PUSHED), (end, "", PUSHED), (q, "q", INVERSE), (back_end, "", INVERSE)):
            axes.plot(*point.tolist(), "o", color=colour, markersize=10, markeredgecolor="white", zorder=6)
            if name:
                write(axes, point + torch.tensor([3.0, -2.8]), name, color=colour, weight="bold", bbox=HALO)
        for centre, title, files in (
            (-58, "Grid of the fixed image", "warped.nii.gz, field.nii.gz and all maps"),
            (58, "Grid of the moving image", "the moving image, inverse_field.nii.gz"),
        ):
            axes.text(centre, 43, title, ha="center", fontsize=16, weight="bold")
            axes.text(centre, 39.5, files, ha="center")
        for middle, what, colour in (
            ((p + end) / 2, "1  a point is pushed", PUSHED),
            ((p + end) / 2 + torch.tensor([-4.0, 13.6]), "2  a value is pulled", PULLED),
            ((q + back_end) / 2, "3  a point goes back", INVERSE),
        ):
            write(axes, middle, what, color=colour, weight="bold", bbox=HALO, zorder=7)
        draw_compass(axes, torch.tensor([0.0, -12.5]))
        axes.text(0, -27, "one world in mm: R, A, S inside,\nL, P, S in files for ITK", ha="center", linespacing=1.3)
        axes.text(-58, -25, "■ voxel (0, 0)    ✕ leads out of moving: its minimum, trust 0", ha="center")
        axes.text(58, -25, "■ voxel (0, 0)", ha="center")
        for left, colour, (heading, lines) in zip(
            (-97, -33, 37), (PUSHED, PULLED, INVERSE), columns.items(), strict=True
        ):
            axes.text(left, -31, heading, color=colour, va="top", weight="bold")
            axes.text(left, -35, "\n".join(lines), va="top", linespacing=1.45)
    return figure


if __name__ == "__main__":
    draw().savefig(PICTURE, metadata={"Software": None})
