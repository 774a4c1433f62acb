"""Instance optimisation: improve the field of one pair by its own images, without training.

The way is that of greedy registration, coarse to fine: at each level the gradient of the dissimilarity is smoothed
("fluid"), scaled to a longest step and composed with the field, which is then smoothed a little ("elastic"). Joint
saliency acts twice. On the way, trust weights the gradient by normalised convolution, so that structure without a
counterpart is carried by its neighbours. At the end trust judges, since it is not what was optimised: a change of the
field is kept only in regions where it made the structures of the two images agree better.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_jsm.geometry import compose, jacobian_determinant, warp
from monai_jsm.losses import SquaredLocalCorrelationLoss, weighted_mean
from monai_jsm.pyramid import PyramidLevel
from monai_jsm.saliency import JointSaliencyBlock

__all__ = ["refine"]

_POOLING = (8, 4, 2, 1)  # of the levels, coarse to fine
_SHORTEST_AXIS = 8  # voxels that pooling leaves of an axis
_PROGRESS = 1e-3  # relative fall of the dissimilarity that counts
_PATIENCE = 6  # iterations without progress before the step is halved
_HALVINGS = 3  # the level ends with the last
_TRUST_INTERVAL = 5  # iterations that one trust map serves
_TRUST_SIGMA = 1.0  # smoothing of the trust map, voxels
_TRUST_FLOOR = 0.02
_REGION_SIGMA = 16.0  # of the regions in which a change is kept or dropped, voxels of the last level
_REGION_GAIN = 4.0  # a change is kept whole where trust gained, on balance, a quarter of what it moved


@torch.no_grad()
def refine(
    fixed: Tensor,
    moving: Tensor,
    ddf: Tensor,
    weight: Tensor | None = None,
    *,
    spacing: Sequence[float] | None = None,
    trust: bool = True,
    finest: int = 1,
    iterations: int = 80,
    step: float = 0.5,
    fluid: float = 3.0,
    elastic: float = 0.6,
    window: int = 7,
) -> Tensor:
    """Improve the field of one pair by instance optimisation.

    The objective is the mean of one minus the squared local correlation of fixed and warped, on the full grid, weighted
    by ``weight``: a field that is not better by it comes back as it was given. Where the refined field folds, it is
    smoothed until it does not. An axis of thick slices is not pooled before the others are as coarse, nor any axis
    below 8 voxels. Widths and steps are the same length along every axis, counted in pooled voxels of the level, on the
    full grid in the shortest edge of a voxel: of ``spacing`` only the ratios matter. The result is float32, on the
    device of ``ddf``, without gradient, and the same in every run.

    Args:
        fixed: (1, 1, *S), intensities in [0, 1].
        moving: (1, 1, *S), on the grid of fixed, intensities in [0, 1].
        ddf: where to start, (1, D, *S), voxels: the field of a network, or zeros.
        weight: (1, 1, *S), not negative: how much each voxel of fixed counts, on any scale; a voxel sees what lies in
            its window, so a mask should leave out half a window around what it hides. None weighs all alike.
        spacing: D voxel edges in array-axis order; None takes them all alike.
        trust: let joint saliency weight and judge, as the head of this module says; if not, all evidence is believed.
        finest: 1 ends at full resolution; 2 at half, for large volumes, and the change is enlarged linearly.
        iterations: at most so many a level; it ends sooner where the dissimilarity no longer falls.
        step: longest step of an iteration, halved at each plateau.
        fluid: standard deviation of the smoothing of the gradient.
        elastic: standard deviation of the smoothing of the field after each step.
        window: edge of the window of the local correlation, voxels along every axis, odd.

    Returns:
        ddf, (1, D, *S), voxels: ``warped(x) = moving(x + ddf(x))``.

    Raises:
        ValueError: if a shape or a setting is not as above, an axis has a single voxel, or a value is not finite.

    Example:
        >>> rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(36.0), indexing="ij")
        >>> disc = lambda row: torch.sigmoid(8 - torch.hypot(rows - row, columns - 17))[None, None]
        >>> ddf = refine(disc(18), disc(20), torch.zeros(1, 2, 40, 36))  # moving lies two rows further down
        >>> round(ddf[0, 0, 10:27, 17].mean().item(), 1)
        2.0

    Reference:
        Avants, Epstein, Grossman, Gee: Symmetric diffeomorphic image registration with cross-correlation.
        Medical Image Analysis 12(1), 2008, 26-41. https://doi.org/10.1016/j.media.2007.06.004
    """
    _check(fixed, moving, ddf, weight, spacing, finest)
    edges = [1.0] * ddf.shape[1] if spacing is None else [edge / min(spacing) for edge in spacing]
    similarity = SquaredLocalCorrelationLoss(window)
    with torch.inference_mode(False), torch.autocast(ddf.device.type, enabled=False):
        # Copies, since what was made in inference mode can take no part in a gradient.
        fixed, moving, start = (values.detach().as_subclass(Tensor).float().clone() for values in (fixed, moving, ddf))
        weight = torch.ones_like(fixed) if weight is None else weight.detach().as_subclass(Tensor).float().clone()
        weight = weight / weight.max()
        refined = start
        for pooling in _poolings(list(fixed.shape[2:]), edges, finest):
            level = _Level(fixed, moving, weight, edges, pooling)
            before = level.shrink(refined)
            after = _descend(level, before, similarity, trust, iterations, step, fluid, elastic)
            refined = refined + level.enlarge(after - before)  # detail finer than the level stays
        if trust:
            refined = start + _share_kept(level, start, refined) * (refined - start)
        refined = _unfold(refined, edges)
        before, after = (weighted_mean(similarity.map(warp(moving, u), fixed), weight) for u in (start, refined))
    return refined if after < before else start


def _check(
    fixed: Tensor,
    moving: Tensor,
    ddf: Tensor,
    weight: Tensor | None,
    spacing: Sequence[float] | None,
    finest: int,
) -> None:
    sizes = list(fixed.shape[2:])
    images = {"fixed": fixed, "moving": moving, **({} if weight is None else {"weight": weight})}
    for name, values in {**images, "ddf": ddf}.items():
        expected = [1, len(sizes) if name == "ddf" else 1, *sizes]
        if len(sizes) not in (2, 3) or list(values.shape) != expected:
            raise ValueError(
                "fixed, moving and weight must be (1, 1, *S) and ddf (1, D, *S) on one grid with two or three sizes: "
                f"fixed is {list(fixed.shape)}, {name} is {list(values.shape)}."
            )
        if not values.isfinite().all():
            raise ValueError(f"{name} must be finite everywhere.")
    if min(sizes) < 2:
        raise ValueError(f"every axis must have at least two voxels, got {sizes}; drop the axis that has one.")
    if weight is not None and not (weight.min() >= 0 and weight.max() > 0):
        raise ValueError("weight must not be negative, nor zero everywhere.")
    if spacing is not None and (len(spacing) != len(sizes) or not min(spacing) > 0):
        raise ValueError(f"spacing must be {len(sizes)} positive lengths, got {tuple(spacing)}.")
    if finest not in (1, 2):
        raise ValueError(f"finest must be 1 or 2, got {finest}.")


def _poolings(sizes: list[int], edges: list[float], finest: int) -> list[tuple[int, ...]]:
    """By how many voxels each axis is pooled, for every level that differs, coarse to fine.

    >>> _poolings([128, 100, 14], [1.0, 1.0, 3.0], finest=1)
    [(8, 8, 1), (4, 4, 1), (2, 2, 1), (1, 1, 1)]
    """

    def along(size: int, edge: float, wanted: int) -> int:
        return next((p for p in _POOLING if p * edge <= wanted and size // p >= _SHORTEST_AXIS), 1)

    levels = [
        tuple(along(size, edge, wanted) for size, edge in zip(sizes, edges, strict=True))
        for wanted in _POOLING
        if wanted >= finest
    ]
    return list(dict.fromkeys(levels))


class _Level(PyramidLevel):
    """A pair on one level of the pyramid."""

    def __init__(
        self, fixed: Tensor, moving: Tensor, weight: Tensor, edges: list[float], pooling: tuple[int, ...]
    ) -> None:
        super().__init__(fixed, edges, pooling)
        blurred = _blur(torch.cat([fixed, moving], 1), self.smoothing)
        self.fixed, self.moving = self.pool(blurred).split(1, 1)
        self.weight = self.pool(weight)

    def blur(self, values: Tensor, sigma: float) -> Tensor:
        """Gaussian mean, sigma in units of ``edges``."""
        return _blur(values, [sigma / edge for edge in self.edges])

    def trust(self, warped: Tensor) -> Tensor:
        """Trust in the evidence of fixed and the warped moving image, (1, 1, *S) of the level."""
        return JointSaliencyBlock(len(self.edges), spacing=self.edges)(self.fixed, warped).trust


def _descend(
    level: _Level,
    ddf: Tensor,
    similarity: SquaredLocalCorrelationLoss,
    trust: bool,
    iterations: int,
    step: float,
    fluid: float,
    elastic: float,
) -> Tensor:
    """Greedy descent on one level, from ``ddf`` to a better one, both in voxels of the level."""
    edges = ddf.new_tensor(level.edges).reshape(-1, *[1] * len(level.edges))
    weight = level.weight
    lowest, waited, shortest = float("inf"), 0, step / 2**_HALVINGS
    for iteration in range(iterations):
        with torch.enable_grad():
            ddf = ddf.detach().requires_grad_()
            warped = warp(level.moving, ddf)
            loss = similarity.map(warped, level.fixed)
            if trust and iteration % _TRUST_INTERVAL == 0:
                trusted = level.blur(level.trust(warped.detach()), _TRUST_SIGMA).clamp_min(_TRUST_FLOOR)
                weight = level.weight * trusted
            total = (weight * loss).sum()
            (gradient,) = torch.autograd.grad(total, ddf)
        # Steepest in mm, not in voxels; then normalised convolution.
        gradient = level.blur(gradient / edges**2, fluid) / (level.blur(weight, fluid) + 1e-3)
        longest = (gradient * edges).square().sum(1).max().sqrt().item()
        dissimilarity = (total / weight.sum()).item()
        waited += 1
        if dissimilarity < lowest * (1 - _PROGRESS):
            lowest, waited = dissimilarity, 0
        if waited == _PATIENCE:
            step, waited = step / 2, 0
        if step <= shortest or longest == 0:
            break
        ddf = level.blur(compose(ddf.detach(), gradient * (-step / longest)), elastic)
    return ddf.detach()


def _share_kept(level: _Level, start: Tensor, refined: Tensor) -> Tensor:
    """How much of the change from ``start`` to ``refined`` trust keeps, (1, 1, *S) in [0, 1], smooth."""
    before, after = (level.trust(warp(level.moving, level.shrink(u))) for u in (start, refined))
    gain = level.weight * (after - before)
    balance = level.blur(gain, _REGION_SIGMA) / (level.blur(gain.abs(), _REGION_SIGMA) + 1e-6)
    return level.interpolate((_REGION_GAIN * balance).clamp(0, 1))


def _unfold(ddf: Tensor, edges: list[float]) -> Tensor:
    """Smooth a field around the voxels where it folds, wider in every round, until no voxel folds.

    >>> ddf = torch.zeros(1, 2, 9, 8)
    >>> ddf[0, 0, 4, 3] = 5.0
    >>> jacobian_determinant(ddf).min() < 0, jacobian_determinant(_unfold(ddf, [1.0, 1.0])).min() > 0
    (tensor(True), tensor(True))
    """
    sigma = 1.0
    while (folded := jacobian_determinant(ddf) <= 0).any():
        sigmas = [sigma / edge for edge in edges]
        around = _blur(folded.to(ddf), sigmas)
        around = (around / around.max() * 4).clamp(max=1)
        ddf = ddf + around * (_blur(ddf, sigmas) - ddf)
        sigma *= 1.5
    return ddf


def _blur(values: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Gaussian mean, at the border over its part inside the grid; sigmas in voxels, zero for none."""
    shape = values.shape
    for axis, sigma in enumerate(sigmas, start=2):
        if sigma > 0:
            position = torch.arange(shape[axis], dtype=values.dtype, device=values.device)
            kernel = torch.exp((position - position.unsqueeze(1)).square() * (-0.5 / sigma**2))
            kernel = F.threshold(kernel, 1e-6, 0.0)  # subnormal numbers would make the product 30 times slower
            mean = kernel / kernel.sum(1, keepdim=True)
            if axis == len(shape) - 1:
                values = values @ mean.T
            else:
                values = (mean @ values.flatten(axis + 1).flatten(0, axis - 1)).reshape(shape)
    return values
