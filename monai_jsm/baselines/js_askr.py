"""JS-ASKR-style registration: kernel regression of block matches, adapted to structure and to joint saliency.

JS-ASKR-style (re-implementation from the published description). Small blocks of fixed are searched in the warped
moving image; each match counts by the joint saliency of its place times its correlation; and the field is a local
regression of those sparse vectors, with kernels that reach along the edges of fixed, small where structure is fine and
matched, wide where it is not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from monai_jsm.geometry import compose, identity_grid, sample, warp
from monai_jsm.pyramid import PyramidLevel
from monai_jsm.saliency import JointSaliencyBlock, structure_tensor

__all__ = ["register"]

_POOLING = (4, 2, 1)  # of the levels, in units of the finest
_SHORTEST_AXIS = 8  # voxels that pooling leaves of an axis
_MOST_VOXELS = {2: 2**20, 3: 2**18}  # of the finest level
_POINTS_PER_NODE = 2  # the regression is evaluated at so many points between two nodes, then interpolated linearly
_NEARNESS = 1e-4  # correlation that a squared voxel of offset costs: of equal matches the nearest is taken
_VARIANCE_FLOOR = 1e-4  # of the local correlation, for intensities in [0, 1]
_SUPERPIXEL = 8.0  # distance of the seeds
_SUPERPIXEL_CONTRAST = 0.1  # difference of intensity that counts as much as that distance
_SUPERPIXEL_ITERATIONS = 4
_SCALES = (2.0, 8.0)  # least and greatest width h of a kernel
_ISOTROPY = 0.5  # a: an edge stretches its kernel by (a + A) / a and narrows it as much
_REACH = 3.0  # of a kernel, in greatest widths
_LEAST_EVIDENCE = 1e-4  # added to the sum of weights: with less evidence than that nothing moves
_CHUNK = 2**23  # products of voxels and offsets that are held at once


@torch.no_grad()
def register(
    fixed: Tensor,
    moving: Tensor,
    spacing: Sequence[float],
    *,
    iterations: int = 6,
    radius: int = 3,
    window: int = 7,
    step: int = 3,
    widening: float = 1.0,
    ridge: float = 0.1,
    smoothing: float = 1.5,
) -> Tensor:
    """Deformable registration by joint-saliency structure adaptive kernel regression, JS-ASKR-style.

    Re-implementation from the published description, of which the abstracts were at hand. The original is hierarchical
    and discrete; its source was not found, and its constants are not known: those here are ours, the arguments tuned
    on validation pairs. The anisotropic kernel is that of adaptive normalised convolution.

    Three levels (pooled by 4, 2 and 1; the finest by 2 or more where an image has above 2^20 pixels, a volume above
    2^18 voxels), each after a Gaussian of 0.35 times the pooling. On a level, ``iterations`` times:

    1. Warp, and take the joint saliency J of fixed and warped (`JointSaliencyBlock`, its recommended formula).
    2. At nodes ``step`` apart find the offset b of the highest local correlation less 1e-4 |b|^2, floor 1e-4 on the
       variances, with a parabola through its neighbours for the fraction of a voxel. Its certainty is
       c = J max(correlation, 0). Without that little cost nothing would decide along a line or through equal slices.
    3. At points half a ``step`` apart fit a linear function of place to the b, weighted by c and a Gaussian kernel,
       cut at 3 times the greatest h of the level. With A = (l1 - l2) / (l1 + l2 + 0.1 q), l the eigenvalues of the
       structure tensor of fixed and q the 90 % quantile of their sum, the kernel is h (a + A) / a wide along
       structure and h a / (a + A) across, a = 0.5.
    4. h = h_s (1 + ``widening`` (1 - mean J of the superpixel)) within 2 to 8, where h_s is the radius of a ball as
       large as the SLIC superpixel (seeds 8 apart, an intensity of 0.1 counts as much, 4 rounds, parts that do not
       connect are left so).
    5. Compose the fitted field, 1e-4 added to its sum of weights, with what there is, and smooth the sum.

    Lengths are in voxels of the level, along a coarse axis in as many fewer; the field is not kept from folding.

    Args:
        fixed: (1, 1, *S), intensities in [0, 1].
        moving: (1, 1, *S), on the grid of fixed, intensities in [0, 1].
        spacing: D voxel edges in mm, in array-axis order; only the ratios matter.
        iterations: of a level.
        radius: of the search, along every axis.
        window: edge of the blocks, odd.
        step: between nodes.
        widening: beta, how much a kernel grows where nothing is jointly salient.
        ridge: pull on the slopes of the linear function, relative to the sum of weights; large is order zero.
        smoothing: standard deviation of the Gaussian on the field.

    Returns:
        ddf, (1, D, *S) float32, voxels: ``warped(x) = moving(x + ddf(x))``.

    Example:
        >>> rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(36.0), indexing="ij")
        >>> disc = lambda row: torch.sigmoid(8 - torch.hypot(rows - row, columns - 17))[None, None]
        >>> ddf = register(disc(18), disc(20), (1.0, 1.0))  # moving lies two rows further down
        >>> round(ddf[0, 0, 10:27, 17].mean().item())
        2

    Reference:
        Qin, Shen, Fu, Zhou, Lv, Bao: JS-ASKR. IEEE Access 6, 2018, 330-343.
        https://doi.org/10.1109/ACCESS.2017.2762901 (also arXiv 1302.0494 and 1303.0479)
        Pham, van Vliet, Schutte: Robust fusion of irregularly sampled data using adaptive normalized convolution.
        EURASIP Journal on Applied Signal Processing, 2006, 83268.
    """
    edges = [edge / min(spacing) for edge in spacing]
    ddf = torch.zeros(1, len(edges), *fixed.shape[2:])
    for pooling in _poolings(list(fixed.shape[2:]), edges):
        level = _Level(fixed, moving, edges, pooling, step, radius, window)
        before = after = level.shrink(ddf)
        for _ in range(iterations):
            after = compose(after, level.update(after, widening, ridge))
            after = _blur(after, [smoothing / edge for edge in level.edges])
        ddf = ddf + level.enlarge(after - before)
    return ddf


def _poolings(sizes: list[int], edges: list[float]) -> list[tuple[int, ...]]:
    """By how many voxels each axis is pooled, for every level that differs, coarse to fine.

    >>> _poolings([128, 100, 14], [1.0, 1.0, 3.0]), _poolings([160, 192, 224], [1.0, 1.0, 1.0])[-1]
    ([(4, 4, 1), (2, 2, 1), (1, 1, 1)], (4, 4, 4))
    """

    def pooling(wanted: int) -> tuple[int, ...]:
        powers = [2**k for k in range(wanted.bit_length() - 1, -1, -1)]
        return tuple(
            next((p for p in powers if p * edge <= wanted and size // p >= _SHORTEST_AXIS), 1)
            for size, edge in zip(sizes, edges, strict=True)
        )

    finest = 1
    while math.prod(size // p for size, p in zip(sizes, pooling(finest), strict=True)) > _MOST_VOXELS[len(sizes)]:
        finest *= 2
    return list(dict.fromkeys(pooling(finest * factor) for factor in _POOLING))


class _Level(PyramidLevel):
    """A pair on one level of the pyramid with the kernels that fixed gives.

    Lengths are in units of ``edges``: about one voxel of the level.
    """

    def __init__(
        self,
        fixed: Tensor,
        moving: Tensor,
        edges: list[float],
        pooling: tuple[int, ...],
        step: int,
        radius: int,
        window: int,
    ) -> None:
        super().__init__(fixed, edges, pooling)
        self.fixed, self.moving = (self.pool(_blur(image, self.smoothing)) for image in (fixed, moving))
        self.block = JointSaliencyBlock(len(edges), spacing=self.edges)

        self.shape = list(self.fixed.shape[2:])
        self.radii = [max(1, round(radius / max(edge, 1.0))) for edge in self.edges]
        self.steps = [max(1, round(step / max(edge, 1.0))) for edge in self.edges]
        self.nodes, self.points = [], []  # per axis, voxels of the level
        phases = (torch.arange(_POINTS_PER_NODE) + 0.5) / _POINTS_PER_NODE - 0.5
        for size, spread in zip(self.shape, self.steps, strict=True):
            count = (size - 1) // spread + 1
            nodes = torch.arange(count) * spread + (size - 1 - (count - 1) * spread) // 2
            self.nodes.append(nodes)
            self.points.append((nodes.unsqueeze(1) + spread * phases).flatten())
        halves = [round((window / max(edge, 1.0) - 1) / 2) for edge in self.edges]
        self.margin = [half for half in reversed(halves) for _ in range(2)]  # as torch pads
        self.search = [reach for reach in reversed(self.radii) for _ in range(2)]
        self.means, self.wide_means = (
            [_window_mean(size + 2 * more, half) for size, more, half in zip(self.shape, extra, halves, strict=True)]
            for extra in ([0] * len(halves), self.radii)
        )
        self._shape_kernels()

    def at_points(self, values: Tensor) -> Tensor:
        """Values of the level where the regression is evaluated, (1, C, *P)."""
        return sample(values, torch.stack(torch.meshgrid(*self.points, indexing="ij"))[None])

    def _shape_kernels(self) -> None:
        """Superpixels, and at every point of the regression the direction across the edge and its stretch."""
        self.superpixels = _superpixels(self.fixed[0, 0].numpy(), self.edges)
        sizes = np.bincount(self.superpixels.ravel()) * math.prod(self.edges)
        dims = len(self.edges)
        ball = math.pi ** (dims / 2) / math.gamma(dims / 2 + 1)
        self.structure_scales = (sizes / ball) ** (1 / dims)

        tensor = structure_tensor(self.fixed, spacing=self.edges)
        tensor = self.at_points(tensor.flatten(1, 2)).unflatten(1, (dims, dims))[0]  # (D, D, *P)
        values, vectors = torch.linalg.eigh(tensor.movedim((0, 1), (-2, -1)))
        largest, second = values[..., -1], values[..., -2]
        floor = 0.1 * torch.quantile(values.sum(-1).flatten()[:: max(1, largest.numel() // 2**20)], 0.9) + 1e-8
        self.across = vectors[..., -1].movedim(-1, 0)  # (D, *P)
        self.stretch = 1 + (largest - second) / (largest + second + floor) / _ISOTROPY  # (*P)

    def update(self, ddf: Tensor, widening: float, ridge: float) -> Tensor:
        """The next step of the field, (1, D, *S) of the level, voxels: matches regressed."""
        warped = warp(self.moving, ddf)
        joint = self.block(self.fixed, warped).joint_saliency
        matches, correlation = self.match(warped)
        certainty = joint[(..., *torch.meshgrid(*self.nodes, indexing="ij"))][0, 0] * correlation.clamp_min(0)
        labels = self.superpixels.ravel()
        counts = np.maximum(np.bincount(labels), 1)
        agreement = np.bincount(labels, joint.numpy().ravel().astype(np.float64)) / counts
        scales = np.clip(self.structure_scales * (1 + widening * (1 - agreement)), *_SCALES)
        widths = torch.from_numpy(scales[self.superpixels]).to(ddf)[None, None]
        step = self.regress(matches, certainty, self.at_points(widths)[0, 0], ridge)
        first = step.new_tensor([points[0] for points in self.points]).reshape(-1, *[1] * len(self.shape))
        between = step.new_tensor([s / _POINTS_PER_NODE for s in self.steps]).reshape(first.shape)
        return sample(step, (identity_grid(self.shape, step) - first) / between)

    def match(self, warped: Tensor) -> tuple[Tensor, Tensor]:
        """The offset of the best match of every node, (D, *N) voxels, and its correlation, (*N)."""
        dims = len(self.shape)
        fixed = F.pad(self.fixed, self.margin, mode="replicate")[0]  # (1, *S and its margin)
        wide = F.pad(F.pad(warped, self.search, mode="replicate"), self.margin, mode="replicate")[0]
        thin = [mean[nodes] for mean, nodes in zip(self.means, self.nodes, strict=True)]
        mean_fixed, square_fixed = (_separable(values, thin)[0] for values in (fixed, fixed**2))  # (*N)
        mean_wide, square_wide = (_separable(values, self.wide_means)[0] for values in (wide, wide**2))
        spread_fixed = (square_fixed - mean_fixed**2).clamp_min(0) + _VARIANCE_FLOOR
        spread_wide = (square_wide - mean_wide**2).clamp_min(0) + _VARIANCE_FLOOR
        offsets = list(itertools.product(*(range(2 * reach + 1) for reach in self.radii)))
        correlations = []
        for chunk in _chunks(offsets, max(1, _CHUNK // fixed.numel())):
            shifted = torch.cat([_window(wide, offset, fixed.shape[1:]) for offset in chunk])
            products = _separable(shifted.mul_(fixed), thin)
            for product, offset in zip(products, chunk, strict=True):
                at = torch.meshgrid(*(n + o for n, o in zip(self.nodes, offset, strict=True)), indexing="ij")
                covariance = product - mean_fixed * mean_wide[at]
                correlations.append(covariance * torch.rsqrt(spread_fixed * spread_wide[at]))
        counts = [2 * reach + 1 for reach in self.radii]
        scores = torch.stack(correlations)  # (offsets, *N)
        cost = _NEARNESS * torch.tensor(offsets).sub(torch.tensor(self.radii)).square().sum(1).to(scores)
        scores -= cost.reshape(-1, *[1] * dims)
        peak, best = scores.max(0)
        matches = []
        for axis, (count, reach) in enumerate(zip(counts, self.radii, strict=True)):
            stride = math.prod(counts[axis + 1 :])
            place = best // stride % count
            inside = (place > 0) & (place < count - 1)
            before, after = (
                scores.gather(0, torch.where(inside, best + side, best)[None])[0] for side in (-stride, stride)
            )
            bend = (2 * peak - before - after).clamp_min(1e-6)
            matches.append(place - reach + torch.where(inside, 0.5 * (after - before) / bend, 0.0).clamp(-0.5, 0.5))
        return torch.stack(matches).reshape(dims, *peak.shape), peak + cost[best]

    def regress(self, matches: Tensor, certainty: Tensor, widths: Tensor, ridge: float) -> Tensor:
        """Weighted least squares of the matches around every point, (1, D, *P), voxels of the level."""
        dims = len(self.shape)
        longest = _REACH * widths.max().item()
        reaches = [
            min(math.ceil(longest / (step * edge)), len(nodes) - 1)
            for step, edge, nodes in zip(self.steps, self.edges, self.nodes, strict=True)
        ]
        padding = [reach for reach in reversed(reaches) for _ in range(2)]
        known = F.pad(torch.cat([certainty[None], certainty * matches]), padding)  # beyond the image: no certainty
        for axis in range(1, dims + 1):
            known = known.repeat_interleave(_POINTS_PER_NODE, dim=axis)
        along = (widths * self.stretch).square().reciprocal()
        across = (widths / self.stretch).square().reciprocal()
        moments = torch.zeros(dims + 1, dims + 1, *widths.shape)  # of [1, d / h]
        values = torch.zeros(dims + 1, dims, *widths.shape)
        shape = list(widths.shape)
        apart = [  # from the points to the nodes so many further on, per axis, ready to broadcast
            {
                further: ((nodes + step * further).repeat_interleave(_POINTS_PER_NODE) - points)
                .mul(edge)
                .reshape([-1 if other == axis else 1 for other in range(dims)])
                for further in range(-reach, reach + 1)
            }
            for axis, (nodes, points, step, edge, reach) in enumerate(
                zip(self.nodes, self.points, self.steps, self.edges, reaches, strict=True)
            )
        ]
        for offset in itertools.product(*apart):
            if math.hypot(*(o * s * e for o, s, e in zip(offset, self.steps, self.edges, strict=True))) > longest:
                continue
            start = [_POINTS_PER_NODE * (o + reach) for o, reach in zip(offset, reaches, strict=True)]
            here = _window(known, start, shape)
            distance = [lengths[o] for lengths, o in zip(apart, offset, strict=True)]
            squared = sum(part.square() for part in distance)
            beside = sum(self.across[axis] * distance[axis] for axis in range(dims))
            kernel = torch.exp(-0.5 * (squared * along + beside.square() * (across - along)))
            weight = kernel * here[0]
            basis = [torch.ones(()), *(part / widths for part in distance)]
            for row in range(dims + 1):
                weighted = weight * basis[row]
                for column in range(row, dims + 1):
                    moments[row, column] += weighted * basis[column]
                kerneled = kernel * basis[row]
                for component in range(dims):
                    values[row, component] += kerneled * here[1 + component]
        evidence = moments[0, 0] + _LEAST_EVIDENCE
        for row in range(dims + 1):
            for column in range(row):
                moments[row, column] = moments[column, row]
            moments[row, row] += _LEAST_EVIDENCE if row == 0 else ridge * evidence
        normal, right = moments.movedim((0, 1), (-2, -1)), values.movedim((0, 1), (-2, -1))
        return torch.linalg.solve(normal, right)[..., 0, :].movedim(-1, 0)[None]


def _superpixels(image: np.ndarray, edges: list[float]) -> np.ndarray:
    """Number of the superpixel of every voxel, by SLIC: k-means of position and intensity from seeds on a grid."""
    counts = [max(1, round(size * edge / _SUPERPIXEL)) for size, edge in zip(image.shape, edges, strict=True)]
    homes = [np.arange(size) * count // size for size, count in zip(image.shape, counts, strict=True)]
    features = np.stack(
        [
            image / _SUPERPIXEL_CONTRAST,
            *(at * edge / _SUPERPIXEL for at, edge in zip(np.indices(image.shape, np.float32), edges, strict=True)),
        ]
    ).astype(np.float32)
    labels: np.ndarray = np.array(np.ravel_multi_index(np.meshgrid(*homes, indexing="ij"), counts))
    for _ in range(_SUPERPIXEL_ITERATIONS):
        sizes = np.maximum(np.bincount(labels.ravel(), minlength=math.prod(counts)), 1)
        centres = np.stack([np.bincount(labels.ravel(), f.ravel(), len(sizes)) / sizes for f in features])
        nearest = np.full(image.shape, np.inf, np.float32)
        for offset in itertools.product((-1, 0, 1), repeat=image.ndim):
            cells = [np.clip(home + o, 0, n - 1) for home, o, n in zip(homes, offset, counts, strict=True)]
            candidates = np.array(np.ravel_multi_index(np.meshgrid(*cells, indexing="ij"), counts))
            distance = sum((f - c.astype(np.float32)[candidates]) ** 2 for f, c in zip(features, centres, strict=True))
            closer = distance < nearest
            nearest[closer], labels[closer] = distance[closer], candidates[closer]
    return labels


def _window_mean(size: int, half: int) -> Tensor:
    """The mean over ``2 half + 1`` samples of an axis with a margin of ``half``, (size, size + 2 half)."""
    offset = torch.arange(size + 2 * half).unsqueeze(0) - torch.arange(size).unsqueeze(1)
    return ((offset >= 0) & (offset <= 2 * half)).float() / (2 * half + 1)


def _separable(values: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """One matrix along each axis of (C, *S), the last axis first."""
    for axis in range(len(matrices), 0, -1):
        values = torch.matmul(values.movedim(axis, -1), matrices[axis - 1].T).movedim(-1, axis)
    return values


def _window(values: Tensor, start: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The part of (C, *S) that begins at ``start``, a view."""
    for axis, (first, size) in enumerate(zip(start, shape, strict=True), start=1):
        values = values.narrow(axis, first, size)
    return values


def _chunks(items: list, size: int) -> list[list]:
    return [items[first : first + size] for first in range(0, len(items), size)]


def _blur(values: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Gaussian mean of (1, C, *S), the border repeated; sigmas in voxels."""
    return torch.from_numpy(ndimage.gaussian_filter(values.numpy(), [0, 0, *sigmas], mode="nearest"))
