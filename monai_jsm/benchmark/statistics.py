"""Paired statistics of a benchmark: intervals over cases, and every row against the reference on the same cases.

Pairs of one subject are not independent: intervals resample subjects, while the signed-rank test, as is the custom of
the field, takes every pair as independent, so that its p is too small where subjects have several pairs.
A case that a row failed on has no figure, so it is in no mean; the numbers of cases always say so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monai_jsm.benchmark.results import CaseResult

__all__ = [
    "FEWEST_PAIRS",
    "NEAR",
    "TOO_FEW",
    "Comparison",
    "Measure",
    "Row",
    "Summary",
    "bootstrap_interval",
    "case_order",
    "compare",
    "headline_measures",
    "holm",
    "identical_rows",
    "near_outlier",
    "subjects_of",
    "summarise_row",
    "summarise_values",
    "values_of",
]

Array = NDArray[np.float64]

Row = tuple[str, str]
"""Name and title of a method."""

NEAR = 8.0
"""Voxels from an outlier within which a landmark is near it."""

FEWEST_PAIRS = 6
"""Below, no two-sided signed-rank test can reach 0.05 (five pairs: 2/32); a bootstrap interval of fewer subjects is too
narrow."""

TOO_FEW = "too few pairs"
_SIGNIFICANT = 0.05
_SAME = 1e-6  # rounding of float32 measures
_LARGEST_EXACT = 50
_RESAMPLES = 4000


@dataclass(frozen=True)
class Measure:
    """A figure of a case.

    Attributes:
        name: as in the CSV files.
        title: as a reader sees it.
        unit: ``mm``, ``voxel`` or ``1``.
        of: its value for one result; NaN where the case does not have it.
        higher_is_better: for overlap.
        note: how it comes about, where a reader could think otherwise; a sentence.
    """

    name: str
    title: str
    unit: str
    of: Callable[[CaseResult], float]
    higher_is_better: bool = False
    note: str = ""


@dataclass(frozen=True)
class Summary:
    """A measure over the cases of a row: number of cases, mean, SD (n - 1) and 95 % bootstrap interval of the mean.

    The interval is over subjects, where they are known, and NaN below :data:`FEWEST_PAIRS` of them.
    """

    cases: int
    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A row against the reference, on the cases that both have.

    Attributes:
        method: name of the row.
        shared: number of cases that both have.
        cases: number of cases that any row has.
        difference: mean over shared cases of row minus reference.
        low, high: 95 % bootstrap interval of it, over subjects where they are known; NaN below :data:`FEWEST_PAIRS`.
        better, equal, worse: shared cases in which the reference is better than, equal to or worse than the row.
        p: two-sided Wilcoxon signed-rank test over pairs; NaN below :data:`FEWEST_PAIRS` and for an identical row.
        p_holm: the same, corrected for the number of rows tested by this measure.
        verdict: on the reference, in words.
    """

    method: str
    shared: int
    cases: int
    difference: float
    low: float
    high: float
    better: int
    equal: int
    worse: int
    p: float
    p_holm: float
    verdict: str


def case_order(results: Iterable[CaseResult]) -> list[str]:
    """Ids of all cases, in the order in which they first come."""
    return list(dict.fromkeys(result.case for result in results))


def subjects_of(results: Iterable[CaseResult]) -> dict[str, str]:
    """Whom each case is of; without the cases of which no result tells.

    Example:
        >>> subjects_of([CaseResult("ours", "a", subject="anna"), CaseResult("ours", "b")])
        {'a': 'anna'}
    """
    return {result.case: result.subject for result in results if result.subject}


def near_outlier(result: CaseResult, unit: str) -> list[float]:
    """Errors after registration of the landmarks within :data:`NEAR` voxels of an outlier.

    Args:
        result: of one case.
        unit: of the errors, ``mm`` or ``voxel``.
    """
    return [
        row[f"after_{unit}"]
        for row in result.landmarks
        if row.get("outlier_distance") is not None and row["outlier_distance"] <= NEAR
    ]


def headline_measures(results: Sequence[CaseResult], unit: str) -> list[Measure]:
    """What rows are compared by: of these, all that any case has.

    Mean TRE, mean TRE near an outlier, contour distance, Dice; the image error only where there is nothing else, for
    images can be alike where anatomy is not.

    Args:
        results: of all rows.
        unit: of distances, ``mm`` or ``voxel``.
    """
    suffix = "_voxel" if unit == "voxel" else ""

    def measured(name: str) -> Callable[[CaseResult], float]:
        return lambda result: result.measures.get(name, math.nan)

    def near(result: CaseResult) -> float:
        errors = near_outlier(result, unit)
        return float(np.mean(errors)) if errors else math.nan

    tre, near_name, contour = (f"{name}_after{suffix}" for name in ("tre_mean", "tre_near_outlier", "contour_distance"))
    measures = [
        Measure(tre, "mean TRE", unit, measured(tre)),
        Measure(
            near_name,
            f"mean TRE within {NEAR:g} voxels of the outlier",
            unit,
            near,
            note="Averaged in each case first, then over cases; the main table averages all such landmarks together.",
        ),
        Measure(contour, "contour distance", unit, measured(contour)),
        Measure("dice_after", "Dice", "1", measured("dice_after"), higher_is_better=True),
    ]
    found = [measure for measure in measures if _has(results, measure)]
    image = Measure("image_error", "image error", "1", measured("image_error"))
    return found or [measure for measure in [image] if _has(results, measure)]


def values_of(results: Iterable[CaseResult], method: str, measure: Measure) -> dict[str, float]:
    """A row's value of a measure by case, without the cases that it failed on or that lack the measure."""
    found = {r.case: float(measure.of(r)) for r in results if r.method == method and not r.failure}
    return {case: value for case, value in found.items() if not math.isnan(value)}


def _has(results: Iterable[CaseResult], measure: Measure) -> bool:
    return any(not math.isnan(measure.of(result)) for result in results if not result.failure)


def identical_rows(results: Sequence[CaseResult], reference: str = "ours") -> list[str]:
    """Rows whose every result is the reference's to the last bit: the same method under another name.

    Measures and landmarks are looked at; cases that either failed on are not.

    Args:
        results: of all rows.
        reference: name of the row that the others are compared with.
    """

    def told(result: CaseResult) -> str:
        return json.dumps([result.measures, result.landmarks], sort_keys=True)  # NaN is equal to NaN here

    done = [result for result in results if not result.failure and result.measures]
    wanted = {result.case: told(result) for result in done if result.method == reference}
    rows: dict[str, list[bool]] = {}
    for result in done:
        if result.method != reference and result.case in wanted:
            rows.setdefault(result.method, []).append(told(result) == wanted[result.case])
    return [name for name, same in rows.items() if all(same)]


def bootstrap_interval(
    sums: Sequence[float], counts: Sequence[float] | None = None, subjects: Sequence[str] | None = None
) -> tuple[float, float]:
    """95 % interval of a mean by resampling subjects: percentiles of the means of 4000 resamples, always the same ones.

    Args:
        sums: one value per case; with ``counts``, the sum of the case's values.
        counts: how many values each case has; left out, one. The mean is then that of all values pooled, while whole
            cases are drawn, because the values of one case are not independent.
        subjects: whom each case is of. All cases of a drawn subject come along; a case of "" is drawn by itself, as are
            all cases if left out.

    Returns:
        Lower and upper bound, NaN below :data:`FEWEST_PAIRS` subjects.

    Example:
        >>> bootstrap_interval([2.0] * 8)
        (2.0, 2.0)
        >>> bootstrap_interval([2.0] * 8, subjects=["anna", "bert"] * 4)
        (nan, nan)

    Reference:
        Efron, Tibshirani: An Introduction to the Bootstrap. Chapman and Hall, 1993, chapters 8 and 13.
    """
    values = np.asarray(sums, dtype=np.float64)
    weights = np.ones_like(values) if counts is None else np.asarray(counts, dtype=np.float64)
    if subjects is not None:
        keys = [subject or place for place, subject in enumerate(subjects)]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        places = np.array([numbers[key] for key in keys], dtype=np.intp)
        values, weights = (np.bincount(places, part).astype(np.float64) for part in (values, weights))
    if len(values) < FEWEST_PAIRS:
        return math.nan, math.nan
    drawn = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    with np.errstate(invalid="ignore", divide="ignore"):  # infinite errors; a resample without a value
        means = np.sort(values[drawn].sum(1) / weights[drawn].sum(1))
    means = means[~np.isnan(means)]
    if len(means) == 0:
        return math.nan, math.nan
    return float(means[int(0.025 * len(means))]), float(means[math.ceil(0.975 * len(means)) - 1])


def summarise_values(values: Sequence[float], subjects: Sequence[str] | None = None) -> Summary:
    """Mean, SD and interval of one value per case.

    Args:
        values: of the cases.
        subjects: as in :func:`bootstrap_interval`.

    Example:
        >>> summarise_values([1.0, 2.0, 3.0])
        Summary(cases=3, mean=2.0, sd=1.0, low=nan, high=nan)
    """
    across = np.asarray(values, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        mean = float(across.mean()) if len(across) else math.nan
        sd = float(across.std(ddof=1)) if len(across) > 1 else math.nan
    return Summary(len(across), mean, sd, *bootstrap_interval(values, subjects=subjects))


def summarise_row(results: Sequence[CaseResult], method: str, measure: Measure) -> Summary:
    """A row's mean, SD and interval of a measure over its cases, the interval over subjects where results tell them."""
    values, subjects = values_of(results, method, measure), subjects_of(results)
    return summarise_values(list(values.values()), [subjects.get(case, "") for case in values])


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for testing all of them, step down; NaN stays and does not count.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    Reference:
        Holm: A simple sequentially rejective multiple test procedure. Scand. J. Statist. 6(2), 1979, 65-70.
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    corrected, highest = [math.nan] * len(p_values), 0.0
    for rank, (p, index) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * p))
        corrected[index] = highest
    return corrected


def compare(
    results: Sequence[CaseResult], rows: Sequence[Row], measure: Measure, reference: str = "ours"
) -> list[Comparison]:
    """Every other row against the reference, case by case.

    Wilcoxon's signed-rank test over the cases that both have, exact (ties too) up to 50 that differ; cases without a
    difference (up to 1e-6) are left out of it and counted. Holm's correction is over the rows tested by this measure;
    a row that :func:`identical_rows` names is not tested. A difference counts as shown where the corrected p is below
    0.05 and the mean difference points the same way as the sum of the signed ranks does; where they do not, as when a
    few cases go badly wrong, the verdict is "mixed". Intervals of the mean difference are over subjects.

    Args:
        results: of all rows.
        rows: name and title of every row, with or without results.
        measure: what is compared.
        reference: name of the row that the others are compared with.

    Returns:
        One comparison per row except the reference, in the order of ``rows``.

    Raises:
        ValueError: if the reference is not among the rows.
    """
    names = [name for name, _ in rows]
    if reference not in names:
        raise ValueError(f"the reference must be one of the rows {', '.join(names)}, got {reference!r}.")
    by_row = {name: values_of(results, name, measure) for name in names}
    cases = len(set().union(*by_row.values()))
    subjects, same = subjects_of(results), identical_rows(results, reference)
    pairs, whose = {}, {}
    for name in names:
        if name != reference:
            shared = [case for case in case_order(results) if case in by_row[name] and case in by_row[reference]]
            whose[name] = [subjects.get(case, "") for case in shared]
            pairs[name] = _differences(
                [by_row[name][case] for case in shared], [by_row[reference][case] for case in shared]
            )
    tests = {name: (math.nan, 0.0) if name in same else _signed_rank(pairs[name]) for name in pairs}
    corrected = dict(zip(tests, holm([p for p, _ in tests.values()]), strict=True))
    gain = -1 if measure.higher_is_better else 1  # sign of row minus reference where the reference is better
    found = []
    for name, differences in pairs.items():
        summary = summarise_values(list(differences), whose[name])
        verdict = _verdict(reference, corrected[name], gain * tests[name][1], gain * summary.mean)
        found.append(
            Comparison(
                method=name,
                shared=len(differences),
                cases=cases,
                difference=summary.mean,
                low=summary.low,
                high=summary.high,
                better=int((gain * differences > 0).sum()),
                equal=int((differences == 0).sum()),
                worse=int((gain * differences < 0).sum()),
                p=tests[name][0],
                p_holm=corrected[name],
                verdict=f"identical to {reference}" if name in same else verdict,
            )
        )
    return found


def _differences(row: Sequence[float], reference: Sequence[float]) -> Array:
    with np.errstate(invalid="ignore"):
        differences = np.asarray(row, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    return np.where(np.isnan(differences) | (abs(differences) <= _SAME), 0.0, differences)  # inf - inf: equally lost


def _signed_rank(differences: Array) -> tuple[float, float]:
    """P, NaN where there are too few pairs, and the sum of the signed ranks."""
    from scipy import stats

    if len(differences) < FEWEST_PAIRS:
        return math.nan, 0.0
    differ = differences[differences != 0]
    if len(differ) == 0:
        return 1.0, 0.0
    ranks = stats.rankdata(abs(differ))
    signed = float((np.sign(differ) * ranks).sum())
    if len(differ) > _LARGEST_EXACT:
        return float(stats.wilcoxon(differ, method="auto").pvalue), signed
    return _exact(ranks, float(ranks[differ > 0].sum())), signed


def _exact(ranks: Array, positive: float) -> float:
    """Two-sided p of a sum of positive ranks, ties as mid-ranks; scipy's exact distribution knows no ties."""
    steps = np.rint(2 * ranks).astype(int)  # mid-ranks are halves
    ways = np.ones(1)  # of signs that lead to each sum so far; below 2^53, so none is lost
    for step in steps:
        ways = np.pad(ways, (0, step)) + np.pad(ways, (step, 0))
    least = round(min(2 * positive, steps.sum() - 2 * positive))
    return min(1.0, 2 * float(ways[: least + 1].sum() / ways.sum()))


def _verdict(reference: str, p: float, ranks: float, difference: float) -> str:
    if math.isnan(p):
        return TOO_FEW
    if p >= _SIGNIFICANT:
        return "no difference shown"
    words = {1.0: "better", -1.0: "worse", 0.0: "equal"}
    by_rank, by_mean = (words.get(float(np.sign(value)), "undecided") for value in (ranks, difference))  # inf - inf
    if by_rank != by_mean:
        return f"mixed: {reference} is {by_rank} by ranks, {by_mean} by the mean"
    return f"{reference} is {by_rank}"
