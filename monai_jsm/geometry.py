"""Pure functions on points and fields: coordinates, sampling, composition, inversion, the exponential, the Jacobian.

Displacement fields are in voxels, components in array-axis order, and pull images: ``warped(x) = moving(x + ddf(x))``.
World coordinates are RAS, in mm. Everything here is plain torch, and what networks use can be
scripted.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "carry_points",
    "compose",
    "compose_world",
    "exponentiate",
    "identity_grid",
    "inverse_ddf",
    "invert_points",
    "itk_displacement",
    "jacobian_determinant",
    "linear_ddf",
    "sample",
    "voxel_to_world",
    "warp",
    "world_to_voxel",
]

_POINTS_AT_ONCE = 2**18
_SLOW = 0.7  # a fixed-point step that leaves more of the error than this hands its point over to Newton
# Voxels to either side over which a slope is taken, in turn: a field has kinks between voxels, where one slope stalls.
_REACHES = (0.01, 0.1, 0.3, 0.6, 1.0)
_HALVINGS = 8  # of a Newton step that does not come nearer


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


def linear_ddf(theta: Tensor, affine: Tensor, shape: list[int]) -> Tensor:
    """The field of a linear map of the world.

    Args:
        theta: map of world coordinates (RAS, mm), (D+1, D+1) or larger.
        affine: voxel-to-world matrix (RAS, mm) of the grid, (D+1, D+1) or larger.
        shape: the D sizes of the grid.

    Returns:
        ddf, (1, D, *S), voxels, dtype and device of ``theta``, with
        ``affine @ (x + ddf(x)) = theta @ affine @ x`` in homogeneous coordinates.

    Example:
        >>> shift = torch.tensor([[1.0, 0.0, 4.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> linear_ddf(shift, torch.diag(torch.tensor([2.0, -3.0, 1.0])), [1, 2])[0, 0]
        tensor([[2., 2.]])
    """
    return compose_world(theta.new_zeros(1, len(shape), *shape), theta, affine)


def compose_world(ddf: Tensor, theta: Tensor, affine: Tensor) -> Tensor:
    """The total field of a linear map of the world after ``id + ddf``.

    Args:
        ddf: (B, D, *S), voxels.
        theta: map of world coordinates (RAS, mm), (D+1, D+1) or larger, applied after the field.
        affine: voxel-to-world matrix (RAS, mm) of the grid of ``ddf``, (D+1, D+1) or larger.

    Returns:
        total, (B, D, *S), voxels, with ``affine @ (x + total(x)) = theta @ affine @ (x + ddf(x))``.
    """
    dims = ddf.shape[1]
    to_world = _homogeneous(affine, dims)
    in_voxels = torch.linalg.inv(to_world) @ _homogeneous(theta, dims) @ to_world
    return _add_linear(torch.einsum("rc,bc...->br...", in_voxels[:-1, :-1].to(ddf), ddf), in_voxels)


def _homogeneous(affine: Tensor, dims: int) -> Tensor:
    """What an affine does to the first ``dims`` axes, (D+1, D+1), on the CPU in float64, as differences are taken."""
    kept = [*range(dims), -1]
    return torch.as_tensor(affine).to("cpu", torch.float64)[kept][:, kept]


def _add_linear(ddf: Tensor, in_voxels: Tensor) -> Tensor:
    """``ddf`` plus the displacement of the linear map ``in_voxels``, (D+1, D+1), of voxel coordinates."""
    dims = ddf.shape[1]
    slope = (in_voxels - torch.eye(dims + 1, dtype=torch.float64))[:-1].to(ddf)
    linear = torch.einsum("rc,bc...->br...", slope[:, :-1], identity_grid(list(ddf.shape[2:]), ddf))
    return ddf + linear + slope[:, -1].reshape(1, dims, *[1] * dims)


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


def invert_points(points: Tensor, ddf: Tensor, iterations: int = 50, tolerance: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Where points come from: the ``x`` with ``x + ddf(x) = y``, the inverse of :func:`carry_points`.

    Beyond the grid the displacement of its border is repeated, so an ``x`` found there is an extrapolation.

    Args:
        points: ``y``, (B, N, D), voxels of the grid of ``ddf``.
        ddf: (B, D, *S), voxels.
        iterations: most fixed-point steps of a point, and then most Newton steps.
        tolerance: error in voxels at which a point is done.

    Returns:
        ``x``, (B, N, D), voxels, and its error ``|x + ddf(x) - y|``, (B, N), voxels. A point that does not converge,
        as where the field folds, has the best ``x`` met and an error above ``tolerance``. Neither has a gradient.

    Example:
        >>> ddf = torch.zeros(1, 2, 5, 6)
        >>> ddf[:, 0] = 1.5
        >>> invert_points(torch.tensor([[[3.5, 2.0]]]), ddf)
        (tensor([[[2., 2.]]]), tensor([[0.]]))
    """
    identity = torch.eye(ddf.shape[1] + 1, dtype=torch.float64)
    found = [
        _solve(wanted.to(field), field[None], identity, torch.linalg.pinv(_linear_fit(field)), iterations, tolerance)
        for wanted, field in zip(points, ddf, strict=True)
    ]
    origins = torch.stack([origin for origin, _ in found])
    mismatches = torch.stack([mismatch for _, mismatch in found])
    return origins.to(points), torch.linalg.vector_norm(mismatches, dim=-1).to(points)


def inverse_ddf(
    ddf: Tensor, fixed_affine: Tensor, moving_affine: Tensor, moving_shape: list[int]
) -> tuple[Tensor, Tensor]:
    """The field that undoes a registration, on the grid of the moving image.

    As in ITK the displacement of the fixed grid's border holds for half a voxel beyond it. Farther out the map is
    continued by its linear least-squares fit plus the difference from it at the border, so that a rotation or scaling
    is undone there as well.

    Args:
        ddf: the total field, (1, D, *S), voxels of the fixed grid: ``T(A x) = A (x + ddf(x))`` with A the affine.
        fixed_affine: voxel-to-world matrix (RAS, mm) of the fixed grid, (D+1, D+1) or larger.
        moving_affine: the same of the moving grid.
        moving_shape: the D sizes of the moving grid.

    Returns:
        The inverse, (1, D, *M), voxels of the moving grid: ``moving_affine @ (y + inverse(y))`` is the point that T
        carries to ``moving_affine @ y``. And its error, (1, 1, *M), mm: how far from there T carries it. The error is
        infinite where that point lies more than half a voxel outside of the fixed grid, where T is an extrapolation.
        Neither has a gradient.
    """
    dims = ddf.shape[1]
    to_world, moving_to_world = _homogeneous(fixed_affine, dims), _homogeneous(moving_affine, dims)
    between = torch.linalg.inv(to_world) @ moving_to_world  # voxels of moving to voxels of fixed
    identity = torch.eye(dims + 1, dtype=torch.float64)
    linear = _linear_fit(ddf[0])
    undo = torch.linalg.pinv(linear)
    wanted = _apply(between, identity_grid(moving_shape, ddf)[0].flatten(1).T)  # (N, D)
    found, mismatch = _solve(wanted, _add_linear(ddf, 2 * identity - linear), linear, undo)
    last = torch.tensor(ddf.shape[2:]).to(ddf) - 1

    def beyond(points: Tensor) -> Tensor:
        return torch.maximum(-points, points - last).amax(dim=-1)  # voxels, (N,)

    extrapolated = beyond(found) > 0
    shell = (extrapolated & (beyond(found) < 2)).nonzero()[:, 0]  # some of it lies within half a voxel
    again, left = _solve(wanted[shell], ddf, identity, undo)
    close = (beyond(again) <= 0.5) & (torch.linalg.vector_norm(left, dim=-1) < 1e-3)
    found[shell[close]], mismatch[shell[close]], extrapolated[shell[close]] = again[close], left[close], False

    inverse = (found - wanted) @ torch.linalg.inv(between[:-1, :-1]).T.to(ddf)
    error = torch.linalg.vector_norm(mismatch @ to_world[:-1, :-1].T.to(ddf), dim=-1)
    error = error.masked_fill(extrapolated, torch.inf)
    return inverse.T.reshape(1, dims, *moving_shape), error.reshape(1, 1, *moving_shape)


def _apply(matrix: Tensor, points: Tensor) -> Tensor:
    """A homogeneous matrix, (D+1, D+1), on points, (N, D)."""
    return voxel_to_world(points, matrix)


def _linear_fit(ddf: Tensor) -> Tensor:
    """The linear map of voxel coordinates nearest to ``id + ddf``, (D+1, D+1), float64, CPU; ddf is (D, *S)."""
    dims = ddf.shape[0]
    picks = [torch.linspace(0, n - 1, min(n, 16), device=ddf.device).long() for n in ddf.shape[1:]]
    grid = torch.stack(torch.meshgrid(picks, indexing="ij"))  # (D, *T)
    at = grid.flatten(1).T.to("cpu", torch.float64)  # (N, D)
    displacement = ddf[(slice(None), *grid)].flatten(1).T.to("cpu", torch.float64)  # (N, D)
    design = torch.cat([at, torch.ones_like(at[:, :1])], dim=1)
    fit = torch.eye(dims + 1, dtype=torch.float64)
    fit[:-1] += (torch.linalg.pinv(design) @ displacement).T  # an axis of one voxel leaves its slope open
    return fit


@torch.no_grad()
def _solve(
    wanted: Tensor, residual: Tensor, linear: Tensor, undo: Tensor, iterations: int = 50, tolerance: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """The points x, (N, D), with ``linear @ x + residual(x) = wanted``, and what is left of the difference, (N, D).

    ``undo`` is about the inverse of the whole map: it gives the start and the direction of the fixed-point steps.
    """
    found, left = torch.empty_like(wanted), torch.empty_like(wanted)
    for part in torch.arange(len(wanted), device=wanted.device).split(_POINTS_AT_ONCE):
        found[part], left[part] = _solve_part(wanted[part], residual, linear, undo, iterations, tolerance)
    return found, left


def _solve_part(
    wanted: Tensor, residual: Tensor, linear: Tensor, undo: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    dims = wanted.shape[-1]

    def mismatch(x: Tensor, rows: Tensor) -> Tensor:
        at = x.T.reshape(1, dims, -1, *[1] * (dims - 1))
        return _apply(linear, x) + sample(residual, at).reshape(dims, -1).T - wanted[rows]

    rows = torch.arange(len(wanted), device=wanted.device)
    found = _apply(undo, wanted)
    left = mismatch(found, rows)
    error = torch.linalg.vector_norm(left, dim=-1)

    def keep_better(rows: Tensor, x: Tensor) -> Tensor:
        """Take over the points that came nearer; the share of each error that remains."""
        now = mismatch(x, rows)
        remaining = torch.linalg.vector_norm(now, dim=-1)
        share = remaining / error[rows]
        better = share < 1
        found[rows[better]], left[rows[better]], error[rows[better]] = x[better], now[better], remaining[better]
        return share

    direction = undo[:-1, :-1].T.to(wanted)
    active = rows[error > tolerance]
    for _ in range(iterations):
        if len(active) == 0:
            break
        share = keep_better(active, found[active] - left[active] @ direction)
        active = active[(share < _SLOW) & (error[active] > tolerance)]

    active = rows[error > tolerance]
    for number in range(iterations):
        if len(active) == 0:
            break
        reach = _REACHES[number % len(_REACHES)]
        columns = [
            mismatch(found[active] + side, active) - mismatch(found[active] - side, active)
            for side in (reach * torch.eye(dims)).to(wanted)
        ]
        jacobian = torch.stack(columns, dim=-1) / (2 * reach)  # (N, D, D)
        step, _ = torch.linalg.solve_ex(jacobian, left[active])
        usable = torch.isfinite(step).all(dim=-1, keepdim=True)
        step = torch.where(usable, step, left[active] @ direction)
        moved = torch.zeros_like(active, dtype=torch.bool)
        for halving in range(_HALVINGS):
            still = (~moved).nonzero()[:, 0]
            share = keep_better(active[still], found[active[still]] - step[still] / 2**halving)
            moved[still] = share < 1
        active = active[error[active] > tolerance]
    return found, left


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
    # Laplace expansion, row by row from the last one: millions of tiny matrices are slow in LAPACK
    minors = {0: torch.ones_like(ddf[:, 0])}  # of the rows so far, by the set of their columns as bits; (B, *S)
    for size in range(1, spatial_dims + 1):
        row = spatial_dims - size
        larger: dict[int, Tensor] = {}
        for columns, minor in minors.items():
            sign = 1.0
            for column in range(spatial_dims):
                if columns & (1 << column):
                    sign = -sign
                    continue
                entry = per_axis[column][:, row] + (1.0 if row == column else 0.0)
                wider = columns | (1 << column)
                term = sign * entry * minor
                larger[wider] = larger[wider] + term if wider in larger else term
        minors = larger
    return minors[(1 << spatial_dims) - 1].unsqueeze(1)


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
