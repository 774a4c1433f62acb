"""Similarity that believes some places more than others, the published energy, and the loss of a whole network.

Every value is a mean, so it does not depend on the size of the image; a ``weight`` of one everywhere equals none.
Regularisers are MONAI's (``DiffusionLoss``, ``BendingEnergyLoss``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_jsm.networks import DenseWarp, Stages

__all__ = [
    "CharbonnierLoss",
    "FieldLoss",
    "GlobalCorrelationLoss",
    "GlobalToLocalLoss",
    "PublishedEnergyLoss",
    "SquaredLocalCorrelationLoss",
    "box_mean",
    "trust_weight",
    "weighted_mean",
]


def weighted_mean(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of ``values``, each sample weighted by ``weight / mean(weight)``, then the mean over the batch.

    Args:
        values: (B, C, *S).
        weight: (B, 1, *S), not negative; None weighs all alike. A sample whose weight is zero everywhere counts as
            zero.

    Returns:
        A scalar.

    Example:
        >>> weighted_mean(torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[3.0, 1.0]]]))
        tensor(1.5000)
    """
    if weight is None:
        return values.mean()
    per_sample = (values * weight).flatten(1).sum(1) / (weight.expand_as(values).flatten(1).sum(1) + 1e-12)
    return per_sample.mean()


def box_mean(image: Tensor, window: int) -> Tensor:
    """Mean over a cube of ``window`` voxels (odd), at the border over its part inside the image.

    Args:
        image: (B, C, *S).
        window: edge of the cube, voxels.

    Returns:
        (B, C, *S).
    """
    for axis in range(2, image.dim()):
        position = torch.arange(image.shape[axis], device=image.device)
        inside = ((position.unsqueeze(0) - position.unsqueeze(1)).abs() <= window // 2).to(image)
        mean = inside / inside.sum(1, keepdim=True)  # a banded matrix: BLAS beats pooling several times over
        image = torch.matmul(image.movedim(axis, -1), mean.T).movedim(-1, axis)
    return image


class _WeightedLoss(nn.Module):
    """A loss of every voxel, averaged with a weight."""

    def map(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """Loss of every voxel, (B, 1, *S), not negative."""
        raise NotImplementedError

    def forward(self, warped: Tensor, fixed: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compare two images.

        Args:
            warped: (B, 1, *S).
            fixed: (B, 1, *S).
            weight: (B, 1, *S) or None.

        Returns:
            A scalar, not negative.
        """
        return weighted_mean(self.map(warped, fixed), weight)


class SquaredLocalCorrelationLoss(_WeightedLoss):
    """One minus the squared local normalised cross-correlation, blind to local gain, offset and inversion.

    Where either image is flat the correlation is zero by definition (there is no evidence), and so is its gradient.

    Args:
        window: edge of the cube over which correlation is taken, voxels, odd.
        floor: added to both variances; in squared intensity, for images scaled to [0, 1].

    Raises:
        ValueError: if ``window`` is even or below 3.

    Reference:
        Avants, Epstein, Grossman, Gee: Symmetric diffeomorphic image registration with cross-correlation.
        Medical Image Analysis 12(1), 2008, 26-41. https://doi.org/10.1016/j.media.2007.06.004
    """

    def __init__(self, window: int = 9, floor: float = 1e-4) -> None:
        super().__init__()
        if window < 3 or window % 2 == 0:
            raise ValueError(f"window must be an odd number of at least 3 voxels, got {window}.")
        self.window = window
        self.floor = floor

    def map(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """Loss of every voxel, (B, 1, *S), in [0, 1]."""
        warped, fixed = warped.float(), fixed.float()
        with torch.autocast(fixed.device.type, enabled=False):  # variances are small differences of large means
            moments = box_mean(torch.cat([warped, fixed, warped**2, fixed**2, warped * fixed], 1), self.window)
        mean_w, mean_f, square_w, square_f, product = moments.split(1, 1)
        variance_w = (square_w - mean_w**2).clamp_min(0) + self.floor
        variance_f = (square_f - mean_f**2).clamp_min(0) + self.floor
        covariance = product - mean_w * mean_f
        return 1 - covariance**2 / (variance_w * variance_f)


def _charbonnier(values: Tensor, width: float) -> Tensor:
    return torch.sqrt(values**2 + width**2)


def _forward_differences(image: Tensor) -> list[Tensor]:
    """Forward difference along each spatial axis, zero on the last voxel, each (B, C, *S)."""
    parts = []
    for axis in range(2, image.dim()):
        step = torch.diff(image, dim=axis)
        end = torch.zeros_like(image.narrow(axis, 0, 1))
        parts.append(torch.cat([step, end], axis))
    return parts


def _gradient_magnitude(image: Tensor) -> Tensor:
    squares = torch.stack([part**2 for part in _forward_differences(image)]).sum(0)
    return torch.sqrt(squares + torch.finfo(image.dtype).tiny)


class CharbonnierLoss(_WeightedLoss):
    """Charbonnier penalty on intensity differences and on differences of gradient magnitude.

    Args:
        gradient_weight: weight of the gradient term beside the intensity term.
        width: where the penalty turns from quadratic to linear, in intensity.

    Reference:
        Bruhn, Weickert, Schnörr: Lucas/Kanade meets Horn/Schunck. Int. J. Computer Vision 61(3), 2005, 211-231.
        https://doi.org/10.1023/B:VISI.0000045324.43199.43
    """

    def __init__(self, gradient_weight: float = 1.0, width: float = 1e-3) -> None:
        super().__init__()
        self.gradient_weight = gradient_weight
        self.width = width

    def map(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """Loss of every voxel, (B, 1, *S)."""
        warped, fixed = warped.float(), fixed.float()
        loss = _charbonnier(fixed - warped, self.width)
        if self.gradient_weight > 0:
            gradient = _gradient_magnitude(fixed) - _gradient_magnitude(warped)
            loss = loss + self.gradient_weight * _charbonnier(gradient, self.width)
        return loss


class GlobalCorrelationLoss(nn.Module):
    """One minus the normalised cross-correlation over a whole image, blind to gain and offset."""

    def forward(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """Compare two images.

        Args:
            warped: (B, 1, *S).
            fixed: (B, 1, *S).

        Returns:
            A scalar in [0, 2], the mean over the batch.

        Example:
            >>> image = torch.tensor([[[0.0, 1.0, 4.0]]])
            >>> round(GlobalCorrelationLoss()(2 * image + 1, image).item(), 5)
            0.0
        """
        warped, fixed = warped.float().flatten(1), fixed.float().flatten(1)
        warped, fixed = warped - warped.mean(1, keepdim=True), fixed - fixed.mean(1, keepdim=True)
        return 1 - F.cosine_similarity(warped, fixed).mean()


class FieldLoss(nn.Module):
    """Loss of a network that returns a field alone, trained without labels: similarity and smoothness.

    Args:
        similarity: called with ``(warped, fixed)``, for instance :class:`SquaredLocalCorrelationLoss` or ``MSELoss``.
        regulariser: called with a field (B, D, *S) in voxels, for instance MONAI's ``DiffusionLoss``; None for none.
        smooth_weight: weight of the regulariser.
    """

    def __init__(
        self,
        similarity: nn.Module,
        regulariser: Callable[[Tensor], Tensor] | None = None,
        smooth_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.similarity = similarity
        self.warp = DenseWarp()
        self.regulariser = regulariser
        self.smooth_weight = smooth_weight

    def forward(self, ddf: Tensor, image: Tensor) -> Tensor:
        """Evaluate the loss.

        Args:
            ddf: what the network returns for ``image``, (B, D, *S), voxels.
            image: (B, 2, *S), ``[moving, fixed]``, intensities in [0, 1].

        Returns:
            A scalar.
        """
        moving, fixed = image.float().chunk(2, 1)
        data = self.similarity(self.warp(moving, ddf), fixed)
        return data if self.regulariser is None else data + self.smooth_weight * self.regulariser(ddf)


class PublishedEnergyLoss(nn.Module):
    """The energy of the published global-to-local network: Charbonnier data terms and a first-order smoothness term.

    The published sums become sums over channels and axes divided by the number of voxels: the balance of the terms is
    kept and the value no longer grows with the image. Intensities in [0, 1] are taken to the published 0 to 255.

    Args:
        gradient_weight: 0 for the digit loss, 20 for the cardiac loss.
        smooth_weight: weight of the smoothness of the field.
        intensity_range: what an intensity of one stands for.

    Reference:
        Fu: Unsupervised Global To Local Nonrigid Image Registration Network Bidirectionally Reinforced By Joint
        Saliency Map. Thesis, Shanghai Jiao Tong University, 2019.
    """

    def __init__(
        self, gradient_weight: float = 0.0, smooth_weight: float = 1.0, intensity_range: float = 255.0
    ) -> None:
        super().__init__()
        self.similarity = CharbonnierLoss(gradient_weight)
        self.warp = DenseWarp()
        self.smooth_weight = smooth_weight
        self.intensity_range = intensity_range

    def forward(self, stages: Stages, image: Tensor) -> Tensor:
        """Energy of the refined field alone, as published.

        Args:
            stages: what ``GlobalToLocalNet.stages`` returns.
            image: (B, 2, *S), ``[moving, fixed]``, intensities in [0, 1].

        Returns:
            A scalar.
        """
        moving, fixed = image.float().chunk(2, 1)
        scale = self.intensity_range
        data = self.similarity(scale * self.warp(moving, stages.ddf), scale * fixed)
        smooth = sum(
            _charbonnier(part, self.similarity.width).sum(1).mean() for part in _forward_differences(stages.ddf)
        )
        return data + self.smooth_weight * smooth


def trust_weight(trust: Tensor, floor: float = 0.05, strength: float = 1.0) -> Tensor:
    """Turn a trust map into the weight of a loss: smoothed with a Gaussian of 2 voxels, squared, floored, detached.

    Detached because an attached weight lets the network lower its loss by creating mismatch.

    Args:
        trust: (B, 1, *S), in [0, 1].
        floor: smallest weight.
        strength: 0 gives one everywhere, 1 the full weight; between them linear.

    Returns:
        (B, 1, *S), in [floor, 1], without gradient.
    """
    smooth = trust.detach()
    offsets = torch.arange(-6, 7, dtype=trust.dtype, device=trust.device)
    kernel = torch.exp(-(offsets**2) / (2 * 2.0**2))
    kernel = kernel / kernel.sum()
    spatial_dims = trust.dim() - 2
    convolution = (F.conv1d, F.conv2d, F.conv3d)[spatial_dims - 1]
    with torch.autocast(trust.device.type, enabled=False):
        for axis in range(spatial_dims):
            shape = [1, 1] + [13 if a == axis else 1 for a in range(spatial_dims)]
            pad = [n for a in reversed(range(spatial_dims)) for n in ((6, 6) if a == axis else (0, 0))]
            smooth = convolution(F.pad(smooth, pad, mode="replicate"), kernel.reshape(shape))
    return 1 - strength * (1 - (smooth**2).clamp(floor, 1))


class GlobalToLocalLoss(nn.Module):
    """Loss of every stage of a global-to-local network, trained without labels.

    ``similarity(fixed, warped) + coarse_weight * similarity(fixed, warped by the coarse field) + smoothness``, the
    similarity weighted by the trust that the network's saliency block found after the global stage.

    Args:
        similarity: called with ``(warped, fixed, weight)``.
        regulariser: called with a field (B, D, *S) in voxels, for instance MONAI's ``DiffusionLoss``.
        smooth_weight: weight of the regulariser on the fine field; the coarse field bears ``coarse_weight`` times as
            much.
        coarse_weight: deep supervision of the coarse field.
        trust_strength: how far the similarity is weighted by trust, 0 (not at all) to 1, see :func:`trust_weight`.
    """

    def __init__(
        self,
        similarity: nn.Module,
        regulariser: Callable[[Tensor], Tensor],
        smooth_weight: float = 0.1,
        coarse_weight: float = 0.5,
        trust_strength: float = 0.0,
    ) -> None:
        super().__init__()
        self.similarity = similarity
        self.warp = DenseWarp()
        self.regulariser = regulariser
        self.smooth_weight = smooth_weight
        self.coarse_weight = coarse_weight
        self.trust_strength = trust_strength

    def forward(self, stages: Stages, image: Tensor) -> Tensor:
        """Evaluate the loss.

        Args:
            stages: what ``GlobalToLocalNet.stages`` returns for ``image``.
            image: (B, 2, *S), ``[moving, fixed]``, intensities in [0, 1].

        Returns:
            A scalar.
        """
        moving, fixed = image.float().chunk(2, 1)
        weight = trust_weight(stages.trust, strength=self.trust_strength) if self.trust_strength > 0 else None
        fine = self.similarity(self.warp(moving, stages.ddf), fixed, weight)
        coarse = self.similarity(stages.warped, fixed, weight)
        smooth = self.regulariser(stages.ddf) + self.coarse_weight * self.regulariser(stages.coarse_ddf)
        return fine + self.coarse_weight * coarse + self.smooth_weight * smooth
