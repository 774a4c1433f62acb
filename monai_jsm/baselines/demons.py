"""Diffeomorphic Demons over a pyramid, as SimpleITK runs it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.utils import optional_import
from torch import Tensor

from monai_jsm.baselines.syn import _middle, _thickened
from monai_jsm.data.errors import InputError

__all__ = ["register"]

_THINNEST = 4  # voxels of an axis: on a single row the filter makes NaN
_FEWEST = 8  # voxels that shrinking leaves of an axis
_BINS, _MATCH_POINTS = 1024, 7  # of histogram matching; voxels below the mean intensity are left out of it


def register(
    fixed: Tensor,
    moving: Tensor,
    spacing: Sequence[float],
    sigma: float = 1.5,
    iterations: int = 100,
    shrink: Sequence[int] = (4, 2, 1),
) -> Tensor:
    """Register by the diffeomorphic Demons of SimpleITK, coarse to fine, after matching the histogram of moving.

    Each level averages blocks of voxels. ``shrink`` is that of the finest axis: coarser ones are shrunk less, so that
    voxels become nearly isotropic, and none below 8 voxels; an axis shorter than 4 is padded to 4 by repeating its
    border. The field of a level starts the next one. The filter's other settings are its own: symmetric gradient, steps
    of at most half a voxel, the update not smoothed, kernels cut at an error of 0.1.

    Args:
        fixed: (1, 1, *S), float32, CPU, intensities in [0, 1].
        moving: (1, 1, *S), on the grid of ``fixed``.
        spacing: D voxel edges in mm, array-axis order.
        sigma: standard deviation of the Gaussian that smooths the field after each iteration, in voxels of the finest
            axis of its level, and as many mm along the others. 1.5 was best of 1, 1.5, 2 and 3 on validation pairs.
        iterations: of each level.
        shrink: voxels that are averaged along the finest axis, coarsest level first.

    Returns:
        ddf, (1, D, *S), float32, voxels: ``warped(x) = moving(x + ddf(x))``.

    Raises:
        InputError: if SimpleITK is not installed.

    Reference:
        Vercauteren, Pennec, Perchant, Ayache: Diffeomorphic demons: efficient non-parametric image registration.
        NeuroImage 45(1), 2009, S61-S72. https://doi.org/10.1016/j.neuroimage.2008.10.040
    """
    sitk, found = optional_import("SimpleITK")
    if not found:
        raise InputError("SimpleITK: is not installed; install it with pip install SimpleITK.")
    edges = [float(edge) for edge in spacing]
    target, source = (sitk.GetImageFromArray(_thickened(image, _THINNEST)[0, 0].numpy().T) for image in (fixed, moving))
    target.SetSpacing(edges)
    source.SetSpacing(edges)
    source = sitk.HistogramMatching(source, target, _BINS, _MATCH_POINTS, True)

    demons = sitk.DiffeomorphicDemonsRegistrationFilter()
    demons.SetNumberOfIterations(iterations)
    resample = sitk.ResampleImageFilter()
    resample.SetUseNearestNeighborExtrapolator(True)  # the outer voxels reach beyond the coarser grid's centres
    field = None
    for factor in shrink:
        blocks = [
            max(1, min(round(factor * min(edges) / edge), size // _FEWEST))
            for edge, size in zip(edges, target.GetSize(), strict=True)
        ]
        level = [sitk.BinShrink(image, blocks) for image in (target, source)]
        level_edges = level[0].GetSpacing()
        demons.SetStandardDeviations([sigma * min(level_edges) / edge for edge in level_edges])
        if field is None:
            field = demons.Execute(*level)
        else:
            resample.SetReferenceImage(level[0])
            field = demons.Execute(*level, resample.Execute(field))
    vectors = sitk.GetArrayFromImage(field) / np.array(edges)  # (*S reversed, D), voxels
    return _middle(torch.from_numpy(np.ascontiguousarray(vectors.T))[None].float(), fixed.shape[2:])
