"""No deformation: what every other method must improve upon."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["register"]


def register(fixed: Tensor, moving: Tensor, spacing: Sequence[float]) -> Tensor:
    """Leave everything where it is.

    Args:
        fixed: (1, 1, *S).
        moving: (1, 1, *S).
        spacing: D voxel edges in mm.

    Returns:
        ddf of zeros, (1, D, *S), voxels.

    Example:
        >>> register(torch.rand(1, 1, 5, 4), torch.rand(1, 1, 5, 4), (1.0, 1.0)).shape
        torch.Size([1, 2, 5, 4])
    """
    return torch.zeros(1, fixed.dim() - 2, *fixed.shape[2:])
