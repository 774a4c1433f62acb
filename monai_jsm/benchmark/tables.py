"""The tables of a benchmark: CSV for programs, Markdown for readers.

The same results give the same files: there is no date in them.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_jsm.benchmark.results import CaseResult, whole_file
from monai_jsm.benchmark.statistics import (
    FEWEST_PAIRS,
    NEAR,
    TOO_FEW,
    Comparison,
    Measure,
    Row,
    Summary,
    case_order,
    compare,
    headline_measures,
    identical_rows,
    near_outlier,
    subjects_of,
    summarise_row,
)
from monai_jsm.metrics import UNITS

__all__ = ["Head", "write_tables"]

_LANDMARK = ("label", "before_voxel", "after_voxel", "before_mm", "after_mm", "outlier_distance", "trust")
_RIGID = 1e-4  # SD of the logarithm of the Jacobian determinant of a field that deforms nothing, rounding included
_NONE = "-"


@dataclass(frozen=True)
class Head:
    """What a reader must know before the numbers.

    Attributes:
        suite: title of the suite.
        split: which cases, and who has seen them.
        unit: of the headline distances, ``mm`` or ``voxel``.
        prealignment: that rows start from.
        training: on what the learned rows were trained, a sentence; empty where there are none.
        cases_in_split: that could be run; more than the results are of where only the first were.
        command: that made the results; empty where none did.
    """

    suite: str
    split: str
    unit: str
    prealignment: str
    training: str
    cases_in_split: int
    command: str


def write_tables(
    folder: Path, results: Sequence[CaseResult], rows: Sequence[Row], head: Head, reference: str = "ours"
) -> str:
    """Write ``landmarks.csv``, ``cases.csv``, ``statistics.csv`` and ``benchmark.md``.

    - ``landmarks.csv``: a line per row and landmark; only where the suite has landmarks, one of other results goes.
    - ``cases.csv``: a line per row and case: its subject, every measure (units as in :data:`monai_jsm.metrics.UNITS`),
      seconds, peak memory in MiB, and why a row failed.
    - ``statistics.csv``: a line per headline measure and row: mean over cases with SD and 95 % interval (over subjects,
      where they are known), and the comparison with the reference.
    - ``benchmark.md``: the same for readers; only the columns that the suite has.

    Each file is whole once it is there.

    Args:
        folder: made if need be.
        results: of all rows, a row's cases in the order to be shown.
        rows: name and title of every row in the order of the table; a row without results stays in the table.
        head: what the results are of.
        reference: name of the row that the others are compared with; where it is not among the rows, none are.

    Returns:
        The text of ``benchmark.md``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = {name: index for index, (name, _) in enumerate(rows)}
    results = sorted((result for result in results if result.method in place), key=lambda r: place[r.method])
    landmarks = [[r.method, r.case, *(row.get(k) for k in _LANDMARK)] for r in results for row in r.landmarks]
    if landmarks:
        _write_csv(folder / "landmarks.csv", ["method", "case", *_LANDMARK], landmarks)
    else:
        (folder / "landmarks.csv").unlink(missing_ok=True)
    found = {name for result in results for name in result.measures}
    names = [*(name for name in UNITS if name in found), *sorted(found - UNITS.keys())]
    _write_csv(
        folder / "cases.csv",
        ["method", "case", "subject", *names, "seconds", "peak_memory", "failure"],
        [
            [r.method, r.case, r.subject, *map(r.measures.get, names), r.seconds, r.peak_memory, r.failure]
            for r in results
        ],
    )
    measures = headline_measures(results, head.unit)
    known = reference in place
    compared = {m.name: {c.method: c for c in compare(results, rows, m, reference)} if known else {} for m in measures}
    _write_statistics(folder / "statistics.csv", results, rows, measures, compared, reference)
    parts = [_head(results, rows, head), "## Results", *_main_table(results, rows, measures, head.unit)]
    parts += _warnings(results, rows)
    parts += _failures(results, rows)
    parts += _comparisons(rows, measures, compared, identical_rows(results, reference), reference)
    text = "\n\n".join(part for part in parts if part) + "\n"
    with whole_file(folder / "benchmark.md") as building:
        building.write_text(text, encoding="utf-8")
    return text


def _write_csv(path: Path, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    with whole_file(path) as building, building.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows([["" if cell != cell else cell for cell in line] for line in lines])  # NaN: not known


def _write_statistics(
    path: Path,
    results: Sequence[CaseResult],
    rows: Sequence[Row],
    measures: Sequence[Measure],
    compared: dict[str, dict[str, Comparison]],
    reference: str,
) -> None:
    own = ("cases", "mean", "sd", "low", "high")
    against = ("shared", "difference", "low", "high", "better", "equal", "worse", "p", "p_holm", "verdict")
    lines = []
    for measure in measures:
        for name, _ in rows:
            summary = summarise_row(results, name, measure)
            comparison = compared[measure.name].get(name)
            line = [measure.name, measure.unit, name, *(getattr(summary, key) for key in own)]
            line += [reference, *(getattr(comparison, key) for key in against)] if comparison else []
            lines.append(line)
    difference = [f"difference_{key}" if key in own else key for key in against]
    header = ["measure", "unit", "method", *own, "reference", *difference]
    _write_csv(path, header, [line + [""] * (len(header) - len(line)) for line in lines])


def _digits(value: float) -> str:
    """Three significant digits without an exponent; "-" where there is no figure.

    Example:
        >>> [_digits(value) for value in (0.33333, 3.6, 123.4, 45678.0, 0.0, 0.00001, -0.0421)]
        ['0.333', '3.60', '123', '45678', '0', '<0.0001', '-0.0421']
    """
    if math.isnan(value):
        return _NONE
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    if abs(value) >= 1000:
        return f"{value:.0f}"
    if 0 < abs(value) < 1e-4:
        return "<0.0001" if value > 0 else ">-0.0001"
    return f"{value:#.3g}".rstrip(".") if value else "0"


def _interval(low: float, high: float) -> str:
    return _NONE if math.isnan(low) else f"{_digits(low)} to {_digits(high)}"


def _p_value(p: float) -> str:
    return _NONE if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.2g}"


def _text(text: str) -> str:
    r"""Text of files and of other programs on one line, of which CommonMark, tables, formulas and links read nothing.

    What GitHub looks for after rendering, such as mail addresses and :emoji:, it still finds.

    Example:
        >>> print(_text("a|b_c costs $5 & more:\n see https://example.org, www.example.org"))
        a\|b\_c costs \$5 \& more: see https\://example.org, www\.example.org
    """
    line = re.sub(r"([\\|`*_<\[&~$@#])", r"\\\1", " ".join(text.split()))
    line = re.sub(r"(:)(?=//)|(?<=www)(\.)", r"\\\1\2", line, flags=re.IGNORECASE)
    return re.sub(r"^(\d+(?=[.)](?: |$))|(?=[>+=-]))", r"\1\\", line)


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]], texts: int) -> str:
    """A table whose first so many columns are words, the others figures."""
    rule = [":---"] * texts + ["---:"] * (len(header) - texts)
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *lines])


def _head(results: Sequence[CaseResult], rows: Sequence[Row], head: Head) -> str:
    cases = case_order(results)
    landmarks = {(result.case, str(row["label"]), i) for result in results for i, row in enumerate(result.landmarks)}
    count = f"the first {len(cases)} of {head.cases_in_split}" if len(cases) < head.cases_in_split else f"{len(cases)}"
    facts = {
        "Cases": count + (f", with {len(landmarks)} landmarks" if landmarks else ""),
        "Subjects": _subjects(results),
        "Split": _text(head.split),
        "Training": _text(head.training),
        "Unit of distances": f"{head.unit}, unless a column says otherwise",
        "Pre-alignment": _text(head.prealignment),
        "Rows": f"{len(rows)}",
        "Made by": _made(results),
    }
    lines = "\n".join(f"- {key}: {value}" for key, value in facts.items() if value)
    command = f"\n\n    {' '.join(head.command.splitlines())}" if head.command else ""
    return f"# {_text(head.suite)}\n\n{lines}{command}"


def _subjects(results: Sequence[CaseResult]) -> str:
    """Of how many subjects the pairs are and what follows from it; empty where that is not known."""
    cases, subjects = case_order(results), subjects_of(results)
    if not subjects:
        return ""
    known, unknown = len(set(subjects.values())), len(cases) - len(subjects)
    pairs = f"{len(subjects)} of the {len(cases)} pairs" if unknown else f"the {len(cases)} pairs"
    whose = f"{pairs} are of {known} {'subject' if known == 1 else 'subjects'}"
    if unknown:
        whose += ", each of the others counts as of a subject of its own"
    if known == len(subjects):
        return whose if unknown else f"{whose}, one each"
    few = "" if known + unknown >= FEWEST_PAIRS else f", and not given below {FEWEST_PAIRS} of them"
    return f"{whose}; intervals are over subjects{few}; p takes pairs as independent, so that it is too small"


def _made(results: Sequence[CaseResult]) -> str:
    """By what the results were made, all that differs between them included; empty where none tells."""
    made = [result.made for result in results if result.made]

    def told(key: str, text: Callable[[str], str]) -> str:
        values = dict.fromkeys(one.get(key, "") for one in made)
        words = [_text(str(value)) or "unknown" for value in sorted(values, key=lambda v: (isinstance(v, str), v))]
        if words in ([], ["unknown"]):
            return ""
        if len(words) == 1:
            return text(words[0])
        return "mixed: " + text(f"{', '.join(words[:-1])} and {words[-1]}")

    source = [told("version", "monai_jsm {}".format), told("commit", "commit {}".format)]
    threads = told("threads", lambda n: f"{n} {'thread' if n == '1' else 'threads'} a process")
    jobs = told(
        "jobs", lambda n: "1 process" if n == "1" else f"{n} processes at the same time, which makes each slower"
    )
    busy = [part for part in (threads, jobs) if part]
    if any(part.startswith("mixed") for part in busy):
        busy[-1] += "; seconds of different rows do not compare"
    return "; ".join(part for part in (", ".join(filter(None, source)), ", ".join(busy)) if part)


@dataclass(frozen=True)
class _Column:
    """A column of the main table: a figure per row, and what is written where it is not that figure alone."""

    title: str
    meaning: str
    figures: list[float]
    cells: list[str]
    better: int  # 1: higher, -1: lower, 0: neither
    of_field: bool = False  # says nothing where nothing was deformed


def _main_table(
    results: Sequence[CaseResult], rows: Sequence[Row], measures: Sequence[Measure], unit: str
) -> list[str]:
    """The table and what its columns mean."""
    done = {name: [r for r in results if r.method == name and not r.failure] for name, _ in rows}
    cases = len(case_order(results))
    columns = _columns(results, done, measures, unit)
    rigid = {
        name for name, own in done.items() if all(r.measures.get("log_jacobian_sd", math.inf) < _RIGID for r in own)
    }
    whole = {name for name, own in done.items() if len(own) == cases}
    header = ["method", "name", *(column.title for column in columns)]
    lines = [[_text(title), _text(name)] for name, title in rows]
    for column in columns:
        judged = [
            column.better * figure
            if name in whole and not (column.of_field and name in rigid) and not math.isnan(figure)
            else -math.inf
            for (name, _), figure in zip(rows, column.figures, strict=True)
        ]
        best = _digits(max(judged))
        for line, cell, value in zip(lines, column.cells, judged, strict=True):
            line.append(f"**{cell}**" if column.better and value > -math.inf and _digits(value) == best else cell)
    if len(whole) < len(rows):
        header.insert(2, "cases done")
        for line, own in zip(lines, done.values(), strict=True):
            line.insert(2, f"{len(own)} of {cases}")
    notes = [f"- {column.title}: {column.meaning}" for column in columns if column.meaning]
    notes.append(
        "- Bold: the best of a column, among the rows that did every case; for folding, smoothness, time and memory "
        "among the rows that deform."
    )
    return [_markdown(header, lines, 2), "\n".join(notes)]


def _columns(
    results: Sequence[CaseResult], done: dict[str, list[CaseResult]], measures: Sequence[Measure], unit: str
) -> list[_Column]:
    """All columns that have a figure."""
    found: list[_Column] = []

    def add(
        title: str,
        meaning: str,
        figure: Callable[[list[CaseResult]], float],
        better: int = -1,
        of_field: bool = False,
    ) -> None:
        figures = [figure(own) for own in done.values()]
        if not all(map(math.isnan, figures)):
            found.append(_Column(title, meaning, figures, [_digits(value) for value in figures], better, of_field))

    def add_summary(measure: Measure, meaning: str) -> None:
        summaries = [summarise_row(results, name, measure) for name in done]
        better = 1 if measure.higher_is_better else -1
        figures = [summary.mean for summary in summaries]
        if all(map(math.isnan, figures)):
            return
        title = measure.title + ("" if measure.unit == "1" else f" ({measure.unit})")
        found.append(_Column(title, meaning, figures, [_with_sd(summary) for summary in summaries], better))
        if measure == measures[0]:
            cells = [_interval(summary.low, summary.high) for summary in summaries]
            if set(cells) != {_NONE}:
                drawn = "subjects" if subjects_of(results) else "cases"
                meaning = f"where the {measure.title} over cases like these lies, by resampling the {drawn}."
                found.append(_Column("95 % interval", meaning, figures, cells, 0))

    def over_landmarks(share: float) -> Callable[[list[CaseResult]], float]:
        return lambda own: _quantile([row[f"after_{unit}"] for r in own for row in r.landmarks], share)

    def mean_measure(name: str) -> Callable[[list[CaseResult]], float]:
        return lambda own: _mean([r.measures[name] for r in own if name in r.measures])

    suffix = "_voxel" if unit == "voxel" else ""
    tre = f"tre_mean_after{suffix}"
    by_name = {measure.name: measure for measure in measures}
    outlier_cases = {r.case for own in done.values() for r in own if _has_outlier(r)}
    with_tre = {r.case for own in done.values() for r in own if tre in r.measures}
    if tre in by_name:
        add_summary(
            by_name[tre], "target registration error, how far landmarks lie from where they should; ± SD over cases."
        )
        add(f"median ({unit})", "of all landmarks.", over_landmarks(0.5))
        add(f"p95 ({unit})", "95 % of all landmarks are closer than this.", over_landmarks(0.95))
        add("improved (%)", "landmarks that came closer.", _improved, 1)
    if outlier_cases:
        if with_tre - outlier_cases:
            meaning = "mean TRE of the cases whose images correspond fully."
            add(f"no outlier ({unit})", meaning, lambda own: _mean_of(own, tre, with_tre - outlier_cases))
            meaning = "mean TRE of the cases in which something is missing in one image."
            add(f"outlier ({unit})", meaning, lambda own: _mean_of(own, tre, outlier_cases))
        meaning = f"mean TRE of all landmarks within {NEAR:g} voxels of the missing part, all cases together."
        add(f"near it ({unit})", meaning, lambda own: _mean([e for r in own for e in near_outlier(r, unit)]))
    if "dice_after" in by_name:
        add_summary(by_name["dice_after"], "overlap of the labels, 1 is perfect; ± SD over cases.")
    contour = f"contour_distance_after{suffix}"
    if contour in by_name:
        add_summary(by_name[contour], "mean distance between the labels' contours; ± SD over cases.")
    add("HD95 (mm)", "95 % of the labels' contours are closer to each other than this.", mean_measure("hd95_after"))
    add("image error", "mean absolute difference of the images, intensities 0 to 1.", mean_measure("image_error"))
    meaning = "voxels at which the field folds, which tissue cannot."
    add("folding (%)", meaning, mean_measure("folding"), of_field=True)
    meaning = "SD of the logarithm of the Jacobian determinant: how unevenly the field stretches."
    add("SD log J", meaning, mean_measure("log_jacobian_sd"), of_field=True)
    meaning = "per pair, median, with the pre-alignment that a row starts from, without reading and measuring."
    add("seconds", meaning, lambda own: _quantile([r.seconds for r in own], 0.5), of_field=True)
    meaning = "by which the process grew at its peak, median, without weights and libraries."
    add("memory (MiB)", meaning, lambda own: _quantile([r.peak_memory for r in own], 0.5), of_field=True)
    return found


def _with_sd(summary: Summary) -> str:
    """Mean and SD with as many decimals, or the mean alone."""
    mean = _digits(summary.mean)
    if not math.isfinite(summary.sd):
        return mean
    decimals = len(mean.partition(".")[2])
    return f"{mean} ± {summary.sd:.{decimals}f}"


def _has_outlier(result: CaseResult) -> bool:
    return any(row.get("outlier_distance") is not None for row in result.landmarks)


def _improved(own: list[CaseResult]) -> float:
    closer = [row["after_mm"] < row["before_mm"] for r in own for row in r.landmarks]
    return 100 * _mean(closer)


def _mean_of(own: list[CaseResult], name: str, cases: set[str]) -> float:
    return _mean([r.measures[name] for r in own if r.case in cases and name in r.measures])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _quantile(values: Sequence[float], share: float) -> float:
    known = [value for value in values if not math.isnan(value)]
    with np.errstate(invalid="ignore"):
        return float(np.quantile(known, share)) if known else math.nan


def _warnings(results: Sequence[CaseResult], rows: Sequence[Row]) -> list[str]:
    """Each warning once, with the rows and the number of cases that it concerns."""
    concerned: dict[str, list[CaseResult]] = {}
    for result in results:
        for warning in dict.fromkeys(result.warnings):
            concerned.setdefault(warning, []).append(result)
    cases, lines = len(case_order(results)), []
    for warning, found in concerned.items():
        names = [_text(name) for name, _ in rows if any(result.method == name for result in found)]
        who = "all rows" if len(names) == len(rows) else ", ".join(names)
        lines.append(f"- {_text(warning)} ({len(case_order(found))} of {cases} cases; {who})")
    return ["## Warnings", "\n".join(lines)] if lines else []


def _failures(results: Sequence[CaseResult], rows: Sequence[Row]) -> list[str]:
    """Which rows lack which cases, and why."""
    cases = case_order(results)
    lines = []
    for name, title in rows:
        own = {r.case: r for r in results if r.method == name}
        reasons = Counter(own[case].failure if case in own else "was not run" for case in cases)
        lacking = len(cases) - reasons.pop("", 0)
        if lacking or not cases:
            told = "; ".join(
                f"{_text(reason).rstrip('.')}" + (f" ({count} cases)" if len(reasons) > 1 else "")
                for reason, count in reasons.most_common()
            )
            what = "could not run" if lacking == len(cases) else f"failed on {lacking} of {len(cases)} cases"
            lines.append(f"- {_text(title)} {what}: {told or 'there are no cases'}.")
    if not lines:
        return []
    return ["## Rows and cases without a result", "\n".join(lines)]


def _comparisons(
    rows: Sequence[Row],
    measures: Sequence[Measure],
    compared: dict[str, dict[str, Comparison]],
    identical: Sequence[str],
    reference: str,
) -> list[str]:
    titles = dict(rows)
    if reference not in titles:
        return [f"No row is compared with another, since the reference, {_text(reference)}, is not among them."]
    ours = _text(reference)
    parts = []
    for measure in measures:
        comparisons = sorted(
            (c for c in compared[measure.name].values() if c.shared and c.method not in identical),
            key=lambda c: _rank(c, reference, measure),
        )
        if not comparisons:
            continue
        unit = "" if measure.unit == "1" else f" ({measure.unit})"
        better = "higher" if measure.higher_is_better else "lower"
        header = ["method", "verdict", f"difference{unit}", "95 % interval"]
        header += [f"{ours} better", "equal", f"{ours} worse", "p (Holm)", "cases"]
        lines = [
            [
                _text(titles[c.method]),
                _text(c.verdict) if c.verdict != f"{reference} is worse" else f"**{_text(c.verdict)}**",
                ("+" if c.difference > 0 else "") + _digits(c.difference),
                _interval(c.low, c.high),
                str(c.better),
                str(c.equal),
                str(c.worse),
                _p_value(c.p_holm),
                f"{c.shared} of {c.cases}",
            ]
            for c in comparisons
        ]
        parts += [f"### By {measure.title}{unit}; {better} is better", measure.note, _markdown(header, lines, 2)]
    same = [
        f"- {_text(titles[name])} ({_text(name)}): every result is that of {ours} to the last bit; it is not compared."
        for name in identical
    ]
    if not parts and not same:
        return []
    meaning = (
        f"{ours}: {_text(titles[reference])}. The same cases for both; difference: row minus {ours}, mean over cases "
        f"with its 95 % interval; better, equal, worse: in how many cases; p: Wilcoxon's signed-rank test over pairs, "
        f"with Holm's correction for the rows tested, each measure by itself; a difference counts as shown below 0.05, "
        f"and is not tested below {FEWEST_PAIRS} pairs; mixed: the ranks of the differences, which the test looks at, "
        f"and their mean do not point the same way. What {ours} loses to stands first."
    )
    return [f"## Every row against {ours}", meaning if parts else "", "\n".join(same), *parts]


def _rank(comparison: Comparison, reference: str, measure: Measure) -> tuple[int, float]:
    """Losses first, then what is mixed, undecided, won and untested; the better row first."""
    order = {f"{reference} is worse": 0, "no difference shown": 2, f"{reference} is better": 3, TOO_FEW: 4}
    gain = -comparison.difference if measure.higher_is_better else comparison.difference
    return order.get(comparison.verdict, 1), gain
