"""Target registration error, folding, and what else is measured of a pair.

A measure's name says when it was taken (``_before``, ``_after``) and, if not in mm, its unit; :data:`UNITS` has them
all. Overlap and surface distances are MONAI's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.metrics import (
    CumulativeIterationMetric,
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
)
from torch import Tensor

from monai_jsm.geometry import jacobian_determinant

__all__ = [
    "UNITS",
    "CaseErrorMetric",
    "TargetRegistrationErrorMetric",
    "field_measures",
    "label_measures",
    "landmark_measures",
    "summarise",
    "target_registration_error",
]

_WHEN = ("before", "after")
UNITS: dict[str, str] = {
    **{f"tre_{s}_{w}": "mm" for s in ("mean", "median", "p95", "max") for w in _WHEN},
    **{f"tre_{s}_{w}_voxel": "voxel" for s in ("mean", "median", "p95", "max") for w in _WHEN},
    "share_improved": "%",
    **{f"dice_{w}": "1" for w in _WHEN},
    **{f"contour_distance_{w}": "mm" for w in _WHEN},
    **{f"contour_distance_{w}_voxel": "voxel" for w in _WHEN},
    **{f"hd95_{w}": "mm" for w in _WHEN},
    "folding": "%",
    "log_jacobian_sd": "1",
    "jacobian_min": "1",
}


def target_registration_error(predicted: Tensor, reference: Tensor, spacing: Sequence[float]) -> Tensor:
    """Distance between where a landmark was carried to and where it truly lies.

    Spacing alone turns voxels into millimetres here: the rotation inside an image's
    affine leaves lengths as they are.

    Args:
        predicted: landmarks carried by the registration, (..., N, D), voxels of the moving image.
        reference: the same landmarks as an observer marked them, (..., N, D), same frame and order.
        spacing: D voxel edges in mm, in array-axis order; ones where both sets are in world coordinates already.

    Returns:
        One distance per landmark, (..., N), mm. Nothing is averaged.

    Raises:
        ValueError: if the two sets differ in shape, or ``spacing`` is not D positive lengths.

    Example:
        >>> predicted = torch.tensor([[10.0, 10.0, 5.0]])
        >>> reference = torch.tensor([[10.0, 13.0, 7.0]])
        >>> target_registration_error(predicted, reference, spacing=(1.0, 1.0, 2.0))
        tensor([5.])

    Reference:
        Fitzpatrick, West, Maurer: Predicting error in rigid-body point-based registration.
        IEEE Trans. Med. Imaging 17(5), 1998, 694-702. https://doi.org/10.1109/42.736021
    """
    if predicted.shape != reference.shape:
        raise ValueError(
            "landmarks must pair up one to one: "
            f"predicted is {tuple(predicted.shape)}, reference is {tuple(reference.shape)}."
        )
    if len(spacing) != predicted.shape[-1] or min(spacing) <= 0:
        raise ValueError(f"spacing must be {predicted.shape[-1]} positive lengths in mm, got {tuple(spacing)}.")
    return torch.linalg.vector_norm((predicted - reference) * predicted.new_tensor(spacing), dim=-1)


class TargetRegistrationErrorMetric(CumulativeIterationMetric):
    """Mean target registration error of each case, then the mean over cases; lower is better.

    Called with ``y_pred``, the carried landmarks, and ``y``, the reference, both in world coordinates (mm): tensors
    (B, N, D), or lists of (N, D) where cases have different numbers of landmarks. A row of NaN is padding and does not
    count. A case without landmarks is NaN and left out of the mean. The buffer holds one row per case, (cases, 1), so
    it gathers over processes.

    Example:
        >>> metric = TargetRegistrationErrorMetric()
        >>> _ = metric([torch.tensor([[0.0, 0.0], [3.0, 4.0]])], [torch.tensor([[0.0, 0.0], [0.0, 0.0]])])
        >>> metric.aggregate()
        tensor(2.5000)
    """

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        if y is None:
            raise ValueError("target registration error needs the reference landmarks beside the carried ones.")
        error = target_registration_error(y_pred, y, (1.0,) * y.shape[-1])
        return torch.nanmean(error, dim=-1, keepdim=True)

    def aggregate(self) -> Tensor:
        """Mean over cases, a scalar, mm; NaN if no case had landmarks."""
        return _mean_over_cases(self)


class CaseErrorMetric(CumulativeIterationMetric):
    """Mean over cases of one number per case, by which the best model is chosen; lower is better.

    Called with a list of one-element tensors, one per case; MONAI's ``IgniteMetricHandler`` insists on a second
    argument, which is ignored.
    """

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        return y_pred.reshape(-1, 1)

    def aggregate(self) -> Tensor:
        """Mean over cases, a scalar."""
        return _mean_over_cases(self)


def _mean_over_cases(metric: CumulativeIterationMetric) -> Tensor:
    rows = metric.get_buffer()
    if not isinstance(rows, Tensor):
        raise ValueError("nothing to aggregate: the metric has not seen a case.")
    return torch.nanmean(rows)


def landmark_measures(before: Tensor, after: Tensor, before_voxel: Tensor, after_voxel: Tensor) -> dict[str, float]:
    """Summary of per-landmark errors.

    Args:
        before: error of each landmark without registration, (N,), mm.
        after: error of each landmark after registration, (N,), mm.
        before_voxel: as ``before``, voxels of the fixed image.
        after_voxel: as ``after``, voxels of the fixed image.

    Returns:
        Mean, median, 95th percentile and maximum of each, and the share of landmarks that came closer, in %.
    """
    measures: dict[str, float] = {}
    for suffix, errors in (
        ("before", before),
        ("after", after),
        ("before_voxel", before_voxel),
        ("after_voxel", after_voxel),
    ):
        errors = errors.double()
        measures[f"tre_mean_{suffix}"] = errors.mean().item()
        measures[f"tre_median_{suffix}"] = errors.quantile(0.5).item()
        measures[f"tre_p95_{suffix}"] = errors.quantile(0.95).item()
        measures[f"tre_max_{suffix}"] = errors.max().item()
    measures["share_improved"] = 100 * (after < before).double().mean().item()
    return measures


def label_measures(fixed: Tensor, other: Tensor, spacing: Sequence[float], when: str) -> dict[str, float]:
    """Overlap and contour distance, averaged over the labels that both images hold.

    The contour distance is symmetric: the mean over the contour voxels of both labels of the distance to the other
    contour.

    Args:
        fixed: label of the fixed image, (1, *S), integers, 0 is background.
        other: label of the moving image on the same grid, before or after warping, (1, *S).
        spacing: D voxel edges in mm, array-axis order.
        when: ``before`` or ``after``, the end of the measures' names.

    Returns:
        Dice, contour distance (mm and voxels) and HD95 (mm). A label that one image lacks altogether counts as
        Dice 0 and leaves the distances out; nothing is returned where no label is shared.
    """
    labels = sorted(set(fixed.unique().tolist()) - {0})
    pairs = [((fixed == value)[None].float(), (other == value)[None].float()) for value in labels]
    both = [(a, b) for a, b in pairs if b.any()]
    if not both:
        return {f"dice_{when}": 0.0} if pairs else {}
    distances = [
        (
            compute_average_surface_distance(b, a, include_background=True, symmetric=True, spacing=list(spacing)),
            compute_average_surface_distance(b, a, include_background=True, symmetric=True),
            compute_hausdorff_distance(b, a, include_background=True, percentile=95, spacing=list(spacing)),
        )
        for a, b in both
    ]
    dice = sum(compute_dice(b, a).item() for a, b in both) / len(pairs)
    mm, voxel, hd95 = (torch.stack([d[i].squeeze() for d in distances]).mean().item() for i in range(3))
    return {
        f"dice_{when}": dice,
        f"contour_distance_{when}": mm,
        f"contour_distance_{when}_voxel": voxel,
        f"hd95_{when}": hd95,
    }


def field_measures(ddf: Tensor) -> dict[str, float]:
    """Regularity of a field.

    Args:
        ddf: (D, *S), voxels.

    Returns:
        ``folding``, the share of voxels with a non-positive Jacobian determinant, in %; ``log_jacobian_sd``, the
        standard deviation of the logarithm of the determinant over the other voxels; ``jacobian_min``.
    """
    determinant = jacobian_determinant(ddf[None].double())
    folded = determinant <= 0
    return {
        "folding": 100 * folded.double().mean().item(),
        "log_jacobian_sd": determinant[~folded].log().std().item(),
        "jacobian_min": determinant.min().item(),
    }


def summarise(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Measures over many cases.

    Args:
        cases: each with ``measures`` (name to ``value`` and ``unit``) and ``landmarks`` (rows with ``before_mm``,
            ``after_mm``, ``before_voxel``, ``after_voxel``).

    Returns:
        ``cases``, their number; ``measures``, for each name the mean, SD and median over the cases that have it, and
        its unit; ``landmarks``, the number of all landmarks and :func:`landmark_measures` of them pooled, where there
        are any.
    """
    summary: dict[str, Any] = {"cases": len(cases), "measures": {}}
    for name, unit in UNITS.items():
        values = [case["measures"][name]["value"] for case in cases if name in case["measures"]]
        if values:
            across = torch.tensor(values, dtype=torch.float64)
            summary["measures"][name] = {
                "mean": across.mean().item(),
                "sd": across.std().item() if len(values) > 1 else 0.0,
                "median": across.quantile(0.5).item(),
                "unit": unit,
            }
    rows = [row for case in cases for row in case["landmarks"]]
    if rows:
        names = ("before_mm", "after_mm", "before_voxel", "after_voxel")
        errors = [torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in names]
        pooled = landmark_measures(*errors)
        summary["landmarks"] = {
            "count": len(rows),
            "measures": {name: {"value": value, "unit": UNITS[name]} for name, value in pooled.items()},
        }
    return summary
