"""Pure functions on points and fields: coordinates, sampling, composition, the exponential, the Jacobian.

Displacement fields are in voxels, components in array-axis order, and pull images: ``warped(x) = moving(x + ddf(x))``.
World coordinates are RAS, in mm. Everything here is plain torch and can be scripted.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "carry_points",
    "compose",
    "exponentiate",
    "identity_grid",
    "itk_displacement",
    "jacobian_determinant",
    "sample",
    "voxel_to_world",
    "warp",
    "world_to_voxel",
]


def voxel_to_world(points: Tensor, affine: Tensor) -> Tensor:
    """Carry points from voxels to world coordinates.

    Args:
        points: (..., N, D), voxels, array-axis order, the first voxel's centre at zero.
        affine: voxel-to-world matrix (RAS, mm), (D+1, D+1). A larger one, as 2D files carry it, is cut to its first D
            axes.

    Returns:
        World coordinates, (..., N, D), RAS, mm.

    Example:
        >>> affine = torch.tensor([[2.0, 0.0, -5.0], [0.0, 3.0, 1.0], [0.0, 0.0, 1.0]])
        >>> voxel_to_world(torch.tensor([[1.0, 1.0]]), affine)
        tensor([[-3.,  4.]])
    """
    matrix, origin = _split_affine(affine, points)
    return points @ matrix.T + origin


def world_to_voxel(points: Tensor, affine: Tensor) -> Tensor:
    """Carry points from world coordinates to voxels, the inverse of :func:`voxel_to_world`.

    Args:
        points: (..., N, D), RAS, mm.
        affine: voxel-to-world matrix (RAS, mm), (D+1, D+1) or larger.

    Returns:
        Voxels, (..., N, D), array-axis order, the first voxel's centre at zero.

    Example:
        >>> affine = torch.tensor([[2.0, 0.0, -5.0], [0.0, 3.0, 1.0], [0.0, 0.0, 1.0]])
        >>> world_to_voxel(torch.tensor([[-3.0, 4.0]]), affine)
        tensor([[1., 1.]])
    """
    matrix, origin = _split_affine(affine, points)
    return (points - origin) @ torch.linalg.inv(matrix).T


def _split_affine(affine: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    dims = points.shape[-1]
    affine = torch.as_tensor(affine).to(dtype=points.dtype, device=points.device)
    return affine[:dims, :dims], affine[:dims, -1]


def identity_grid(shape: list[int], like: Tensor) -> Tensor:
    """Voxel coordinates of every voxel of a grid, (1, D, *S), with the dtype and device of ``like``.

    Example:
        >>> identity_grid([2, 3], torch.zeros(()))[0, 1]
        tensor([[0., 1., 2.],
                [0., 1., 2.]])
    """
    axes = [torch.arange(n, dtype=like.dtype, device=like.device) for n in shape]
    return torch.stack(torch.meshgrid(axes, indexing="ij")).unsqueeze(0)


def _half_extent(shape: list[int], like: Tensor) -> Tensor:
    """Half the distance between the first and the last voxel centre, per axis; 1/2 for a single voxel."""
    return torch.tensor([max(n - 1, 1) / 2.0 for n in shape], dtype=like.dtype, device=like.device)


def sample(image: Tensor, coordinates: Tensor, mode: str = "bilinear") -> Tensor:
    """Read an image at voxel coordinates; beyond the image its border is repeated.

    Args:
        image: (B, C, *S), floating point.
        coordinates: (B, D, *T) voxels of ``image``, array-axis order, same dtype.
        mode: ``bilinear`` (linear in any D) or ``nearest``.

    Returns:
        (B, C, *T).
    """
    half = _half_extent(list(image.shape[2:]), coordinates)
    grid = coordinates.movedim(1, -1) / half - 1  # (B, *T, D)
    return F.grid_sample(image, grid.flip(-1), mode=mode, padding_mode="border", align_corners=True)


def warp(image: Tensor, ddf: Tensor, mode: str = "bilinear") -> Tensor:
    """Pull an image through a field: ``warped(x) = image(x + ddf(x))``.

    Follows MONAI's ``Warp`` (``padding_mode="border"``) to its last convention.

    Args:
        image: (B, C, *S), floating point, on the grid of ``ddf``.
        ddf: (B, D, *S), voxels.
        mode: ``bilinear`` (linear in any D) or ``nearest``.

    Returns:
        (B, C, *S).

    Example:
        >>> image = torch.arange(5.0).reshape(1, 1, 5, 1).expand(1, 1, 5, 5)
        >>> ddf = torch.zeros(1, 2, 5, 5)
        >>> ddf[:, 0] = 2
        >>> warp(image, ddf)[0, 0, :, 0]
        tensor([2., 3., 4., 4., 4.])
    """
    return sample(image, identity_grid(list(ddf.shape[2:]), ddf) + ddf, mode)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Displacement of ``id + outer`` after ``id + inner``: ``inner(x) + outer(x + inner(x))``.

    Pulling an image through the result equals pulling it through ``outer`` first and ``inner`` next.

    Args:
        outer: (B, D, *S), voxels.
        inner: (B, D, *S), voxels, same grid.

    Returns:
        (B, D, *S), voxels.
    """
    return inner + warp(outer, inner)


def exponentiate(dvf: Tensor, steps: int = 7) -> Tensor:
    """Flow of a stationary velocity field over unit time, by scaling and squaring.

    Args:
        dvf: stationary velocity, (B, D, *S), voxels of its own grid per unit time.
        steps: number of squarings.

    Returns:
        ddf, (B, D, *S), voxels of the same grid.

    Reference:
        Arsigny, Commowick, Pennec, Ayache: A log-Euclidean framework for statistics on diffeomorphisms.
        MICCAI 2006, 924-931. https://doi.org/10.1007/11866565_113
    """
    ddf = dvf / 2.0**steps
    for _ in range(steps):
        ddf = compose(ddf, ddf)
    return ddf


def carry_points(points: Tensor, ddf: Tensor) -> Tensor:
    """Push points of the fixed image through the field: ``p + ddf(p)``, the field sampled linearly.

    Args:
        points: (B, N, D), voxels of the grid of ``ddf``; a point beyond the grid's border voxels is the caller's error.
        ddf: (B, D, *S), voxels.

    Returns:
        (B, N, D), voxels, in the moving image when that shares the grid.
    """
    dims = ddf.shape[1]
    at = points.to(ddf).movedim(-1, 1)  # (B, D, N)
    for _ in range(dims - 1):
        at = at.unsqueeze(-1)  # (B, D, N, 1, ...)
    moved = sample(ddf, at).flatten(2).movedim(1, -1)  # (B, N, D)
    return points + moved.to(points)


def jacobian_determinant(ddf: Tensor) -> Tensor:
    """Determinant of the Jacobian of ``id + ddf``: local change of volume, non-positive where the field folds.

    Central differences inside, one-sided at the border. Voxels or mm give the same value.

    Args:
        ddf: (B, D, *S), voxels.

    Returns:
        (B, 1, *S).

    Example:
        >>> jacobian_determinant(torch.zeros(1, 2, 3, 4)).unique()
        tensor([1.])
    """
    spatial_dims = ddf.shape[1]
    per_axis = torch.gradient(ddf, dim=list(range(2, 2 + spatial_dims)))  # D tensors, each (B, D, *S)
    gradient = torch.stack(per_axis, dim=-1).movedim(1, -2)  # (B, *S, D, D)
    identity = torch.eye(spatial_dims, dtype=ddf.dtype, device=ddf.device)
    return torch.linalg.det(identity + gradient).unsqueeze(1)


def itk_displacement(ddf: Tensor, affine: Tensor) -> Tensor:
    """The same field as ITK, ANTs and Slicer hold it: millimetres in LPS axes, still on the fixed grid and pull-back.

    Args:
        ddf: (B, D, *S), voxels.
        affine: voxel-to-world matrix of the grid (RAS, mm), (D+1, D+1) or larger.

    Returns:
        (B, D, *S), mm, components along L, P (, S).

    Example:
        >>> itk_displacement(torch.ones(1, 2, 1, 1), torch.diag(torch.tensor([2.0, 3.0, 1.0]))).flatten()
        tensor([-2., -3.])
    """
    dims = ddf.shape[1]
    matrix = torch.as_tensor(affine).to(dtype=ddf.dtype, device=ddf.device)[:dims, :dims].clone()
    matrix[:2] *= -1
    return torch.einsum("rc,bc...->br...", matrix, ddf)
