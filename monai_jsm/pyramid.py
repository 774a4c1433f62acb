"""One level of a pyramid over a grid of voxels that need not be cubes, and the way of fields to it and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from monai_jsm.geometry import identity_grid, sample

__all__ = ["PyramidLevel"]


class PyramidLevel:
    """A grid whose voxels are pooled by a factor along each axis; pooled voxels are cell-centred.

    Args:
        image: on the full grid, (1, C, *S).
        edges: D voxel edges of the full grid, in its shortest one.
        pooling: D numbers of voxels that make one of the level.

    Attributes:
        edges: D edges of a voxel of the level, in the longest one that is pooled.
        scale: ``pooling`` as a tensor, (D, 1, ...), to turn voxels of the level into those of the full grid.
        smoothing: D standard deviations of the Gaussian to apply before pooling, voxels of the full grid.
    """

    def __init__(self, image: Tensor, edges: Sequence[float], pooling: tuple[int, ...]) -> None:
        self.full_shape = list(image.shape[2:])
        self.pooling = pooling
        self.scale = image.new_tensor(pooling).reshape(-1, *[1] * len(pooling))
        lengths = [edge * p for edge, p in zip(edges, pooling, strict=True)]
        unit = max((length for length, p in zip(lengths, pooling, strict=True) if p > 1), default=1.0)
        self.edges = [length / unit for length in lengths]
        self.smoothing = [0.35 * p if p > 1 else 0.0 for p in pooling]

    def pool(self, values: Tensor) -> Tensor:
        """Means over the voxels of the full grid that make one of the level, (1, C, *L) of (1, C, *S)."""
        if max(self.pooling) == 1:
            return values
        return (F.avg_pool2d if len(self.pooling) == 2 else F.avg_pool3d)(values, self.pooling)

    def shrink(self, ddf: Tensor) -> Tensor:
        """A field of the full grid on the level, in voxels of the level, (1, D, *L) of (1, D, *S)."""
        return self.pool(ddf) / self.scale

    def interpolate(self, values: Tensor) -> Tensor:
        """Values of the level on the full grid, (1, C, *S) of (1, C, *L)."""
        if max(self.pooling) == 1:
            return values
        return sample(values, (identity_grid(self.full_shape, values) + 0.5) / self.scale - 0.5)

    def enlarge(self, ddf: Tensor) -> Tensor:
        """A field of the level on the full grid, in voxels of the full grid, (1, D, *S) of (1, D, *L)."""
        return self.interpolate(ddf) * self.scale
