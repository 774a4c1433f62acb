"""Target registration error, folding, and what else is measured of a pair.

A measure's name says when it was taken (``_before``, ``_affine``: after the affine pre-alignment alone, ``_after``)
and, if not in mm, its unit; :data:`UNITS` has them all. Overlap and surface distances are MONAI's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.metrics import (
    CumulativeIterationMetric,
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
)
from torch import Tensor

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

_WHEN = ("before", "affine", "after")
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
    **{f"inverse_consistency_{s}": "mm" for s in ("mean", "p95", "max")},
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
    """Target registration error of each case, then the mean over cases; lower is better.

    Called with ``y_pred``, the carried landmarks (or, for the error before registration, those of the fixed image), and
    ``y``, the reference: tensors (B, N, D), or lists of (N, D) where cases have different numbers of landmarks. A row
    of NaN in ``y`` is padding and does not count; NaN in ``y_pred`` alone is an infinite error. A case without
    landmarks is NaN and left out of the mean. The buffer holds one row per case, (cases, 1), so it gathers over
    processes.

    Args:
        statistic: of the landmarks of a case: ``mean``, ``median``, ``p95`` or ``max``.
        spacing: D voxel edges in mm if landmarks are voxels; left out, the error has the unit of the landmarks.

    Raises:
        ValueError: for an unknown statistic.

    Example:
        >>> metric = TargetRegistrationErrorMetric()
        >>> _ = metric([torch.tensor([[0.0, 0.0], [3.0, 4.0]])], [torch.tensor([[0.0, 0.0], [0.0, 0.0]])])
        >>> metric.aggregate()
        tensor(2.5000)
    """

    def __init__(self, statistic: str = "mean", spacing: Sequence[float] | None = None) -> None:
        super().__init__()
        if statistic not in _STATISTICS:
            raise ValueError(f"statistic must be one of {', '.join(_STATISTICS)}, got {statistic!r}.")
        self.statistic = statistic
        self.spacing = spacing

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        if y is None:
            raise ValueError("target registration error needs the reference landmarks beside the carried ones.")
        spacing = (1.0,) * y.shape[-1] if self.spacing is None else self.spacing
        error = target_registration_error(y_pred, y, spacing)
        error = torch.where(error.isnan() & ~y.isnan().any(-1), float("inf"), error)  # a diverged prediction
        if error.shape[-1] == 0:
            return error.new_full((len(error), 1), float("nan"))
        return _STATISTICS[self.statistic](error).unsqueeze(-1)

    def aggregate(self) -> Tensor:
        """Mean over cases, a scalar; NaN if no case had landmarks."""
        return torch.nanmean(_rows(self))


def _quantile(error: Tensor, share: float) -> Tensor:
    found = torch.nanquantile(error, share, dim=-1)
    return torch.where(found.isnan() & ~error.isnan().all(-1), float("inf"), found)  # between two infinite errors


_STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda error: torch.nanmean(error, dim=-1),
    "median": lambda error: _quantile(error, 0.5),
    "p95": lambda error: _quantile(error, 0.95),
    "max": lambda error: _quantile(error, 1.0),
}


class CaseErrorMetric(CumulativeIterationMetric):
    """The error by which the best model is chosen; lower is better.

    Called with a list of (3,) tensors, one per case: mean TRE in mm, contour distance in mm, and one minus the squared
    correlation of fixed and warped; NaN where a case lacks it, infinite where a prediction diverged. One kind decides
    for all cases: the first of the three that any case has. MONAI's ``IgniteMetricHandler`` insists on a second
    argument, which is ignored.

    Example:
        >>> metric = CaseErrorMetric()
        >>> _ = metric([torch.tensor([float("nan"), 2.0, 0.1]), torch.tensor([float("nan"), 4.0, 0.3])])
        >>> metric.aggregate()
        tensor(3.)
    """

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        return y_pred.reshape(-1, 3)

    def aggregate(self) -> Tensor:
        """Mean over the cases that have the deciding kind, a scalar."""
        kinds = torch.nanmean(_rows(self), dim=0)
        known = kinds[~kinds.isnan()]
        return known[0] if len(known) else kinds[0]


def _rows(metric: CumulativeIterationMetric) -> Tensor:
    rows = metric.get_buffer()
    if not isinstance(rows, Tensor):
        raise ValueError("nothing to aggregate: the metric has not seen a case.")
    return rows


def landmark_measures(errors: Mapping[str, Tensor]) -> dict[str, float]:
    """Summary of per-landmark errors.

    Args:
        errors: error of each landmark, (N,), by when and unit: ``before_mm``, ``after_mm``, ``before_voxel``,
            ``after_voxel`` and, where there was one, ``affine_mm`` and ``affine_voxel``; voxels are those of the fixed
            image.

    Returns:
        Mean, median, 95th percentile and maximum of each, and the share of landmarks that came closer, in %.
    """
    measures: dict[str, float] = {}
    for name, values in errors.items():
        values, suffix = values.double(), name.removesuffix("_mm")
        measures[f"tre_mean_{suffix}"] = values.mean().item()
        measures[f"tre_median_{suffix}"] = values.quantile(0.5).item()
        measures[f"tre_p95_{suffix}"] = values.quantile(0.95).item()
        measures[f"tre_max_{suffix}"] = values.max().item()
    measures["share_improved"] = 100 * (errors["after_mm"] < errors["before_mm"]).double().mean().item()
    return measures


def label_measures(fixed: Tensor, other: Tensor, spacing: Sequence[float], when: str) -> dict[str, float]:
    """Overlap and contour distance, averaged over the labels of the fixed image.

    The contour distance is symmetric: the mean over the contour voxels of both labels of the distance to the other
    contour.

    Args:
        fixed: label of the fixed image, (1, *S), integers, 0 is background.
        other: label of the moving image on the same grid, before or after warping, (1, *S).
        spacing: D voxel edges in mm, array-axis order.
        when: ``before``, ``affine`` or ``after``, the end of the measures' names.

    Returns:
        Dice, contour distance (mm and voxels) and HD95 (mm). A label that ``other`` lacks altogether counts as Dice 0
        and as far away as the image is long, corner to corner, so that losing a label never looks like a gain. Nothing
        is returned where ``fixed`` has no label.
    """
    labels = sorted(set(fixed.unique().tolist()) - {0})
    if not labels:
        return {}
    shape = fixed.shape[1:]
    voxels = [1.0] * len(shape)
    diagonals = [
        math.dist([0.0] * len(shape), [n * e for n, e in zip(shape, edges, strict=True)]) for edges in (spacing, voxels)
    ]
    rows = []
    for value in labels:
        ours, theirs = ((label == value)[None].float() for label in (fixed, other))
        if not theirs.any():
            rows.append((0.0, *diagonals, diagonals[0]))
            continue
        contours = [
            compute_average_surface_distance(
                theirs, ours, include_background=True, symmetric=True, spacing=list(edges)
            ).item()
            for edges in (spacing, voxels)
        ]
        hd95 = compute_hausdorff_distance(theirs, ours, include_background=True, percentile=95, spacing=list(spacing))
        rows.append((compute_dice(theirs, ours).item(), *contours, hd95.item()))
    names = (f"dice_{when}", f"contour_distance_{when}", f"contour_distance_{when}_voxel", f"hd95_{when}")
    return dict(zip(names, torch.tensor(rows, dtype=torch.float64).mean(0).tolist(), strict=True))


def field_measures(determinant: Tensor) -> dict[str, float]:
    """Regularity of a field.

    Args:
        determinant: of its Jacobian, of any shape, see :func:`monai_jsm.geometry.jacobian_determinant`.

    Returns:
        ``folding``, the share of voxels whose Jacobian determinant is not positive, in %; ``log_jacobian_sd``, the
        standard deviation of the logarithm of the determinant over the other voxels; ``jacobian_min``.
    """
    determinant = determinant.double()
    folded = ~(determinant > 0)  # what is not a number counts as folded
    return {
        "folding": 100 * folded.double().mean().item(),
        "log_jacobian_sd": determinant[~folded].log().std().item(),
        "jacobian_min": determinant.min().item(),
    }


def summarise(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Measures over many cases.

    Args:
        cases: each with ``measures`` (name to ``value`` and ``unit``) and ``landmarks`` (rows with the errors that
            :func:`landmark_measures` takes).

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
        names = [f"{when}_{unit}" for unit in ("mm", "voxel") for when in _WHEN if f"{when}_{unit}" in rows[0]]
        pooled = landmark_measures({n: torch.tensor([row[n] for row in rows], dtype=torch.float64) for n in names})
        summary["landmarks"] = {
            "count": len(rows),
            "measures": {name: {"value": value, "unit": UNITS[name]} for name, value in pooled.items()},
        }
    return summary
