"""DRAMMS-style registration: Gabor attributes, mutual saliency and a free-form deformation.

This is a re-implementation from the published description, not the authors' program, and is to be called "DRAMMS-style"
in every table. What it shares with the original: every voxel is described by a vector of optimal Gabor attributes; the
sum of squared attribute differences is weighted by mutual saliency, which is high where a match is reliable, that is
unique in its neighbourhood; the motion is a free-form deformation on cubic B-spline control points, found in three
levels, coarse to fine, and regularised by a weight g.

How it is done here, with every constant:

- Attributes: real and imaginary parts of 2D Gabor filters on every plane of two axes (one plane in 2D, three in 3D),
  of 0.12, 0.21 and 0.36 cycles a voxel and 4 orientations (24 attributes a plane), a round Gaussian envelope of
  0.3 / frequency voxels cut at three standard deviations, the real part freed of its mean, borders repeated. Each is
  scaled by twice its largest magnitude in either image. They are extracted anew on every level, and interpolated, not
  re-extracted, as the field moves. Voxels are those of the level: across thick slices the wavelength is longer in mm.
- Selection: greedy forward selection of 12, once, on the coarsest level, by the mean mutual saliency of the
  strongest voxel of each cell of an 8x8 (4x4x4) division, the stronger half of them.
- Similarity of two voxels: 10 / (10 + d), d the root mean square difference of attributes on a scale of 0 to 255.
- Mutual saliency of a voxel: mean similarity to the core around its match over that to the periphery, at the place,
  among those up to 2 voxels along each axis from the present match, where it is highest times the core's mean. Radii of
  core, gap and periphery: 1, 2, 4 voxels on the coarse level, 1, 3, 5 on the middle one, 2, 4, 6 on the fine one. Found
  on every second voxel (every fourth in 3D), between them linear, renewed every 20 iterations, divided by its mean.
  On by default.
- Deformation: control points 8 voxels apart on each level (images at 1/4, 1/2 and 1 of the resolution), but no closer
  than 2 voxels of the image along a coarse axis. Each level takes over the field of the one before: exactly, as the
  lattices are nested, and by least squares along an axis where that limit keeps them from it.
- Optimisation: Adam, 60 iterations a level, steps of 0.3 voxels of the level falling linearly to zero; a level that
  does not lower the energy changes nothing.
- Energy: the weighted mean of the squared attribute difference (mean over attributes; in units of the 10 of the
  similarity), plus g = 0.5 times the mean square second difference of neighbouring control points over their distance.
- Images of more than 2**18 voxels are worked on at 1/2, 1/4, ... of the resolution; the B-spline gives the field on the
  full grid.

How the original differs: its Gabor bank has other frequencies; its attributes are selected from trained pairs of
voxels; mutual saliency is searched as far as a share of the control spacing and smoothed slice by slice; the control
points are moved by discrete optimisation (FastPD, not free to use) with a truncated-linear penalty on neighbours; the
released program leaves mutual saliency off by default and begins with an affine step.

Reference:
    Ou, Sotiras, Paragios, Davatzikos: DRAMMS: Deformable registration via attribute matching and mutual-saliency
    weighting. Medical Image Analysis 15(4), 2011, 622-639. https://doi.org/10.1016/j.media.2010.07.002
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_jsm.geometry import identity_grid, sample

__all__ = ["gabor_attributes", "mutual_saliency", "register", "select_attributes"]

_FREQUENCIES = (0.12, 0.21, 0.36)  # cycles a voxel
_ORIENTATIONS = 4
_ENVELOPE = 0.3  # standard deviation of the envelope, wavelengths
_LEVELS = ((4, (1, 2, 4)), (2, (1, 3, 5)), (1, (2, 4, 6)))  # pooling; radii of core, gap and periphery, voxels
_SHORTEST_AXIS = 16  # voxels that pooling leaves of an axis
_SEARCH = 2  # voxels around the present match
_HALF_SIMILAR = 10 / 255  # difference at which similarity is one half
_INTERVAL = 20  # iterations that one map of mutual saliency serves
_STEP = 0.3  # voxels of the level
_MOST_VOXELS = 2**18  # of the finest level
_GATHERED = 2**22  # attributes that mutual saliency compares at once


def register(
    fixed: Tensor,
    moving: Tensor,
    spacing: Sequence[float],
    regularisation: float = 0.5,
    iterations: int = 60,
    components: int = 12,
    control_spacing: float = 8.0,
    weigh: bool = True,
) -> Tensor:
    """Register by optimal Gabor attributes, weighted by mutual saliency; the head of this module has the constants.

    Args:
        fixed: (1, 1, *S), intensities in [0, 1].
        moving: (1, 1, *S), on the grid of fixed, intensities in [0, 1].
        spacing: D voxel edges in array-axis order; only their ratios matter.
        regularisation: g, the weight of smoothness.
        iterations: of Adam on each level.
        components: how many attributes are selected.
        control_spacing: distance of control points on each level, in its shortest voxel edge.
        weigh: weight the attribute differences by mutual saliency.

    Returns:
        ddf, (1, D, *S), float32, voxels: ``warped(x) = moving(x + ddf(x))``.

    Example:
        >>> rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(36.0), indexing="ij")
        >>> disc = lambda row: torch.sigmoid(8 - torch.hypot(rows - row, columns - 17))[None, None]
        >>> ddf = register(disc(18), disc(20), (1.0, 1.0))  # moving lies two rows further down
        >>> round(ddf[0, 0, 10:27, 17].mean().item(), 1)
        2.0
    """
    edges = [edge / min(spacing) for edge in spacing]
    sizes = list(fixed.shape[2:])
    with torch.inference_mode(False):
        fixed, moving = (image.detach().as_subclass(Tensor).float().clone() for image in (fixed, moving))
        unit = _working_resolution(sizes, edges)
        average = (F.avg_pool2d, F.avg_pool3d)[len(sizes) - 2]
        lattice = _Lattice(sizes, edges, control_spacing * unit * _LEVELS[0][0])
        control = torch.zeros(1, len(sizes), *lattice.counts)
        selected: list[int] = []
        for pooling, radii in _LEVELS:
            pools = _pools(sizes, edges, unit * pooling)
            attributes = _scaled(torch.cat([gabor_attributes(average(image, pools)) for image in (fixed, moving)]))
            selected = selected or select_attributes(attributes[:1], attributes[1:], components, radii)
            finer = _Lattice(sizes, edges, control_spacing * unit * pooling)
            control, lattice = finer.refined(lattice, control), finer
            attributes = attributes[:, selected]
            control = _descend(
                attributes, lattice, control, pools, radii, unit * pooling, regularisation, iterations, weigh
            )
        return lattice.field(control, [1] * len(sizes))


def gabor_attributes(image: Tensor) -> Tensor:
    """Real and imaginary Gabor responses on every plane of two axes.

    Args:
        image: (1, 1, *S).

    Returns:
        (1, C, *S), C = 24 in 2D and 72 in 3D; plane by plane, then by frequency, orientation, real before imaginary.
    """
    responses = []
    for first, second in itertools.combinations(range(2, image.dim()), 2):
        for frequency in _FREQUENCIES:
            sigma = _ENVELOPE / frequency
            radius = math.ceil(3 * sigma)
            position = torch.arange(-radius, radius + 1, dtype=image.dtype)
            envelope = torch.exp(position.square() * (-0.5 / sigma**2))
            envelope = envelope / envelope.sum()
            mean = _filter(_filter(image, first, envelope), second, envelope)
            for angle in (math.pi * turn / _ORIENTATIONS for turn in range(_ORIENTATIONS)):
                phase = 2 * math.pi * frequency * position
                along = torch.polar(envelope, math.cos(angle) * phase)
                across = torch.polar(envelope, math.sin(angle) * phase)
                response = _filter(_filter(image.to(along.dtype), first, along), second, across)
                responses += [response.real - (along.sum() * across.sum()).real * mean, response.imag]
    return torch.cat(responses, 1)


def mutual_saliency(fixed: Tensor, warped: Tensor, radii: Sequence[int], stride: int = 1) -> Tensor:
    """How reliably each voxel of fixed is matched where it is now: unique matches are high, ambiguous ones near one.

    Args:
        fixed: attributes, (1, C, *S), of a scale on which the full range is one.
        warped: attributes of the moving image on the grid of fixed, (1, C, *S).
        radii: of core, gap and periphery, voxels.
        stride: it is found on voxels so far apart, and linear between them.

    Returns:
        (1, 1, *S), positive: mean similarity to the core around the best match over that to its periphery.
    """
    shape = list(fixed.shape[2:])
    starts = [(size - 1) % stride // 2 for size in shape]
    axes = [torch.arange(start, size, stride) for start, size in zip(starts, shape, strict=True)]
    nodes = torch.stack(torch.meshgrid(axes, indexing="ij"), -1).flatten(0, -2)  # (N, D)
    rings = _Rings(len(shape), radii)
    at_once = max(1, _GATHERED // (len(rings.offsets) * fixed.shape[1]))
    parts = [rings.saliency(rings.squares(fixed, warped, part).mean(0)) for part in nodes.split(at_once)]
    found = torch.cat(parts).reshape(1, 1, *[len(axis) for axis in axes])
    start = torch.tensor(starts).reshape(-1, *[1] * len(shape))
    return sample(found, (identity_grid(shape, found) - start) / stride)


def select_attributes(fixed: Tensor, moving: Tensor, count: int, radii: Sequence[int]) -> list[int]:
    """The attributes by which salient voxels are matched most uniquely, by greedy forward selection.

    Args:
        fixed: attributes, (1, C, *S), of a scale on which the full range is one.
        moving: the same of the other image.
        count: how many to choose.
        radii: of core, gap and periphery, voxels.

    Returns:
        At most ``count`` channels, in the order of their choice.
    """
    shape = fixed.shape[2:]
    cells = [max(1, size // (8 if len(shape) == 2 else 4)) for size in shape]
    strongest = (F.max_pool2d, F.max_pool3d)[len(shape) - 2]
    strength, index = strongest(fixed.square().mean(1), cells, return_indices=True)
    salient = index[strength >= strength.median()]
    nodes = torch.stack(torch.unravel_index(salient, shape), -1)
    rings = _Rings(len(shape), radii)
    squares = rings.squares(fixed, moving, nodes)  # (C, N, O)
    selected: list[int] = []
    total = torch.zeros_like(squares[0])
    for size in range(1, min(count, len(squares)) + 1):
        left = [channel for channel in range(len(squares)) if channel not in selected]
        best = max(left, key=lambda channel: rings.saliency((total + squares[channel]) / size).mean().item())
        selected.append(best)
        total = total + squares[best]
    return selected


class _Rings:
    """Offsets around a voxel, and which of them are core and periphery of each candidate match."""

    def __init__(self, spatial_dims: int, radii: Sequence[int]) -> None:
        core, gap, periphery = radii
        self.offsets = _cube(spatial_dims, _SEARCH + periphery)  # (O, D)
        distance = torch.cdist(self.offsets.float(), _cube(spatial_dims, _SEARCH).float())  # (O, candidates)
        within = (distance <= core + 1e-3).float()
        around = ((distance > gap + 1e-3) & (distance <= periphery + 1e-3)).float()
        self.core, self.periphery = within / within.sum(0), around / around.sum(0)

    def squares(self, fixed: Tensor, warped: Tensor, nodes: Tensor) -> Tensor:
        """Squared differences of attributes between nodes of fixed, (N, D), and all around them, (C, N, O)."""
        last = torch.tensor(fixed.shape[2:]) - 1
        around = torch.minimum((nodes.unsqueeze(1) + self.offsets).clamp_min(0), last)  # (N, O, D)
        here, there = fixed[0][(slice(None), *nodes.T)], warped[0][(slice(None), *around.movedim(-1, 0))]
        return (here.unsqueeze(-1) - there).square()

    def saliency(self, square: Tensor) -> Tensor:
        """Mutual saliency of nodes by their mean squared differences, (N, O) to (N)."""
        similarity = _HALF_SIMILAR / (_HALF_SIMILAR + square.sqrt())
        core, periphery = similarity @ self.core, similarity @ self.periphery
        ratio = core / periphery
        return ratio.gather(1, (ratio * core).argmax(1, keepdim=True))[:, 0]


class _Lattice:
    """Cubic B-spline control points over the full grid: voxel of the full grid, whatever the level."""

    def __init__(self, sizes: Sequence[int], edges: Sequence[float], apart: float) -> None:
        self.sizes, self.edges = sizes, edges
        self.apart = [max(apart / edge, 2.0) for edge in edges]  # voxels
        self.counts = [math.ceil((n - 1) / h - 1e-6) + 3 for n, h in zip(sizes, self.apart, strict=True)]

    def bases(self, positions: Sequence[Tensor]) -> Iterator[Tensor]:
        """Per axis the weight of each control point at each position, float64; positions in voxels."""
        for position, apart, count in zip(positions, self.apart, self.counts, strict=True):
            distance = (position.double().unsqueeze(1) / apart - torch.arange(-1, count - 1)).abs()
            near, far = 2 / 3 - distance**2 + distance**3 / 2, (2 - distance).clamp_min(0) ** 3 / 6
            yield torch.where(distance < 1, near, far)

    def field(self, control: Tensor, pools: Sequence[int]) -> Tensor:
        """Displacement, in voxels of the full grid, at the centres of pooled voxels."""
        centres = [torch.arange(n // p) * p + (p - 1) / 2 for n, p in zip(self.sizes, pools, strict=True)]
        for axis, basis in enumerate(self.bases(centres), start=2):
            control = _along(control, axis, basis)
        return control

    def refined(self, coarser: _Lattice, control: Tensor) -> Tensor:
        """The control points of this lattice whose field is that of a coarser one."""
        positions = [torch.linspace(0, n - 1, 4 * n) for n in self.sizes]
        for axis, (mine, its) in enumerate(zip(self.bases(positions), coarser.bases(positions), strict=True), start=2):
            control = _along(control, axis, torch.linalg.pinv(mine) @ its)
        return control

    def roughness(self, control: Tensor) -> Tensor:
        """Mean square second difference of neighbouring control points over their distance."""
        lengths = [h * edge for h, edge in zip(self.apart, self.edges, strict=True)]
        control = control * control.new_tensor(self.edges).reshape(-1, *[1] * len(self.edges))
        total = control.new_zeros(())
        for first, second in itertools.product(range(len(lengths)), repeat=2):
            bend = control.diff(dim=first + 2).diff(dim=second + 2) / math.sqrt(lengths[first] * lengths[second])
            total = total + bend.square().mean()
        return total


def _descend(
    attributes: Tensor,
    lattice: _Lattice,
    control: Tensor,
    pools: Sequence[int],
    radii: Sequence[int],
    edge: float,
    regularisation: float,
    iterations: int,
    weigh: bool,
) -> Tensor:
    """Control points that fit the attributes of fixed and moving, (2, C, *T), of one level; its edge in voxels."""
    fixed, moving = attributes[:1], attributes[1:]
    identity = identity_grid(list(fixed.shape[2:]), fixed)
    scale = fixed.new_tensor(pools).reshape(-1, *[1] * len(pools))
    weight = torch.ones_like(fixed[:, :1])

    def warped(control: Tensor) -> Tensor:
        return sample(moving, identity + lattice.field(control, pools) / scale)

    def energy(control: Tensor) -> Tensor:
        square = (warped(control) - fixed).square().mean(1, keepdim=True) / _HALF_SIMILAR**2
        return (weight * square).mean() + regularisation * lattice.roughness(control)

    found = control.clone().requires_grad_()
    optimiser = torch.optim.Adam([found], lr=_STEP * edge)
    with torch.enable_grad():
        for iteration in range(iterations):
            optimiser.param_groups[0]["lr"] = _STEP * edge * (1 - iteration / iterations)
            if weigh and iteration % _INTERVAL == 0:
                weight = mutual_saliency(fixed, warped(found.detach()), radii, stride=2 ** (len(pools) - 1))
                weight = weight / weight.mean()
            optimiser.zero_grad()
            energy(found).backward()
            optimiser.step()
    found = found.detach()
    return found if energy(found) < energy(control) else control


def _working_resolution(sizes: Sequence[int], edges: Sequence[float]) -> int:
    """By how much the finest level is coarser than the image, a power of two."""
    unit = 1
    while math.prod(n // p for n, p in zip(sizes, _pools(sizes, edges, unit), strict=True)) > _MOST_VOXELS:
        unit *= 2
    return unit


def _pools(sizes: Sequence[int], edges: Sequence[float], wanted: float) -> list[int]:
    """By how many voxels each axis is pooled so that voxels have edges of at most ``wanted``.

    >>> _pools([128, 100, 20], [1.0, 1.0, 3.0], 4)
    [4, 4, 1]
    """

    def along(size: int, edge: float) -> int:
        pool = 1
        while 2 * pool * edge <= wanted and size // (2 * pool) >= _SHORTEST_AXIS:
            pool *= 2
        return pool

    return [along(size, edge) for size, edge in zip(sizes, edges, strict=True)]


def _scaled(attributes: Tensor) -> Tensor:
    """Attributes of both images, (2, C, *S), each so that zero stays and the full range is one."""
    return attributes / (2 * attributes.abs().amax([0, *range(2, attributes.dim())], keepdim=True)).clamp_min(1e-6)


def _cube(spatial_dims: int, reach: int) -> Tensor:
    """All offsets of up to ``reach`` voxels along each axis, (N, D)."""
    return torch.cartesian_prod(*[torch.arange(-reach, reach + 1)] * spatial_dims)


def _filter(values: Tensor, axis: int, kernel: Tensor) -> Tensor:
    """Correlate along one axis, the border repeated."""
    size = values.shape[axis]
    matrix = torch.zeros(size, size, dtype=kernel.dtype)
    rows = torch.arange(size)
    for offset, tap in enumerate(kernel, start=-(len(kernel) // 2)):
        matrix[rows, (rows + offset).clamp(0, size - 1)] += tap
    return _along(values, axis, matrix)


def _along(values: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """Multiply one axis by a matrix, (new size, size)."""
    return (values.movedim(axis, -1) @ matrix.T.to(values.dtype)).movedim(-1, axis)
