"""DIRNet-style registration (re-implementation from the published description): control points of a cubic B-spline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv, Norm, Pool
from torch import Tensor, nn

__all__ = ["DIRNet"]


class DIRNet(nn.Module):
    """DIRNet-style: regress the control points of a cubic B-spline field from a pair, in one pass.

    A re-implementation from the published description.

    Each block of the regressor is a 3x3(x3) convolution, batch normalisation, ELU and average pooling over 2 voxels, so
    that the control points stand ``2 ** len(channels)`` voxels apart, in the middle of their cells: 8 by default. Two
    more convolutions look at the grid of control points, and a linear 1x1(x1) head predicts their displacements. The
    spline's smoothness is the only regularisation. Train it with
    :class:`~monai_jsm.losses.GlobalCorrelationLoss`, Adam, learning rate 1e-3.

    The published hyper-parameters were not at hand: layers, widths, spacing and training are constants of this project.
    So are these differences: any size is taken, 3D as 2D; border control points are repeated beyond the image, so that
    a uniform motion stays uniform; the head starts near zero.

    Args:
        spatial_dims: 2 or 3.
        channels: width of each pooled block.
        grid_channels: width of the convolutions on the grid of control points.

    Example:
        >>> DIRNet(spatial_dims=2)(torch.rand(2, 2, 40, 33)).shape
        torch.Size([2, 2, 40, 33])

    Reference:
        de Vos, Berendsen, Viergever, Staring, Išgum: End-to-end unsupervised deformable image registration with a
        convolutional neural network. DLMIA 2017, 204-212. https://doi.org/10.1007/978-3-319-67558-9_24
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: Sequence[int] = (16, 32, 32),
        grid_channels: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        self.spacing = 2 ** len(channels)
        convolution, normalisation = Conv[Conv.CONV, spatial_dims], Norm[Norm.BATCH, spatial_dims]
        pooling = Pool[Pool.AVG, spatial_dims]
        layers: list[nn.Module] = []
        width = 2
        for place, wider in enumerate([*channels, *grid_channels]):
            layers += [convolution(width, wider, 3, padding=1), normalisation(wider), nn.ELU()]
            if place < len(channels):
                layers.append(pooling(2, ceil_mode=True))
            width = wider
        self.regressor = nn.Sequential(*layers)
        self.head = convolution(width, spatial_dims, 1)
        nn.init.normal_(self.head.weight, std=1e-5)
        nn.init.zeros_(self.head.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Register a batch.

        Args:
            image: (B, 2, *S), ``[moving, fixed]``, intensities in [0, 1].

        Returns:
            ddf, (B, D, *S), voxels: ``warped(x) = moving(x + ddf(x))``.
        """
        field = self.head(self.regressor(image.float())).float()  # control points, voxels
        for axis, size in enumerate(image.shape[2:], start=2):
            weights = _spline_weights(size, field.shape[axis], self.spacing).to(field)
            field = torch.matmul(field.movedim(axis, -1), weights.T).movedim(-1, axis)
        return field


def _spline_weights(size: int, points: int, spacing: int) -> Tensor:
    """How much each voxel of an axis takes from each control point, (size, points), rows sum to one.

    >>> _spline_weights(6, 3, 2)[2]
    tensor([0.3177, 0.6120, 0.0703])
    """
    position = (torch.arange(size) + 0.5) / spacing - 0.5  # in control points
    first = position.floor()
    t = position - first
    cubic = torch.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    index = (first.long().unsqueeze(1) + torch.arange(-1, 3)).clamp(0, points - 1)  # (size, 4)
    return torch.zeros(size, points).scatter_add_(1, index, cubic)
