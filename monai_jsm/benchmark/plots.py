"""The plots of a benchmark, readable with two methods and with thirty.

A method looks the same in every plot: its family (the first word of its name) has a colour that colour-blind readers
tell apart (after Okabe and Ito, and Tol), its place in the family a tint, a marker and a hatch. Ours is blue.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from textwrap import shorten, wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from monai_jsm.benchmark.results import CaseResult, whole_file
from monai_jsm.benchmark.statistics import (
    NEAR,
    Row,
    bootstrap_interval,
    case_order,
    headline_measures,
    values_of,
)

__all__ = [
    "draw_bars",
    "draw_landmarks",
    "draw_outliers",
    "draw_time",
    "draw_trust",
    "published_figure",
    "write_plots",
]

Array = NDArray[Any]

_COLOURS = {
    "ours": "#0072B2",
    "identity": "#8C8C8C",
    "affine": "#5A5A5A",
    "syn": "#E69F00",
    "demons": "#009E73",
    "elastix": "#CC79A7",
    "dramms": "#882255",
    "js": "#999933",
    "jsm": "#B8A04A",
    "dirnet": "#56B4E9",
    "voxelmorph": "#D55E00",
    "published": "#332288",
}
_OTHERS = ("#AA4499", "#44AA99", "#661100", "#117733", "#DDCC77", "#000000")
_MARKERS = "osD^vPX*<>ph"
_HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----")
_LINES = ("-", "--", ":", "-.")
_DOTS_PER_INCH = 110
_FIRST_CASES = 10
_BESIDE = 7  # bars of a case that can be told apart, ours included
_FLOOR = 0.01  # errors below are drawn there on a logarithmic axis
_INSTANT = 1e-3  # seconds; what takes less is drawn there
_DISTANCES = (0.0, 2.0, 4.0, 8.0, 16.0, 32.0, math.inf)  # voxels
_UNIT_WORDS = {"voxel": "voxels", "mm": "mm"}


@dataclass(frozen=True)
class _Style:
    colour: tuple[float, float, float]
    marker: str
    hatch: str


def _styles(rows: Sequence[Row], reference: str) -> dict[str, _Style]:
    """How each row looks; the reference has the full colour of its family."""
    names = sorted((name for name, _ in rows), key=lambda name: name != reference)
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(name.split("-")[0], []).append(name)
    unknown = [family for family in families if family not in _COLOURS]
    styles = {}
    for family, members in families.items():
        colour = _COLOURS.get(family) or _OTHERS[unknown.index(family) % len(_OTHERS)]
        for index, name in enumerate(members):
            white = 0.6 * index / len(members)
            red, green, blue = (part + white * (1 - part) for part in to_rgb(colour))
            styles[name] = _Style((red, green, blue), _MARKERS[index % len(_MARKERS)], _HATCHES[index % len(_HATCHES)])
    return styles


def write_plots(
    folder: Path, results: Sequence[CaseResult], rows: Sequence[Row], unit: str, reference: str = "ours"
) -> list[Path]:
    """Write ``bars.png``, ``landmarks.png``, ``outliers.png``, ``time.png`` and ``trust.png``, those with data.

    Those without data go where other results left them. Each file is whole once it is there.

    Args:
        folder: made if need be.
        results: of all rows.
        rows: name and title of every row; give the same order to every suite.
        unit: of distances, ``mm`` or ``voxel``.
        reference: the row that stands out.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw: Mapping[str, Callable[..., Figure | None]] = {
        "bars": draw_bars,
        "landmarks": draw_landmarks,
        "outliers": draw_outliers,
        "time": draw_time,
        "trust": draw_trust,
    }
    paths = []
    for name, drawn in draw.items():
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)
        figure = drawn(results, rows, unit, reference)
        if figure is not None:
            _save(figure, path)
            paths.append(path)
    return paths


def _save(figure: Figure, path: Path) -> None:
    with whole_file(path) as building:
        figure.savefig(building, dpi=_DOTS_PER_INCH, format="png")


def draw_bars(results: Sequence[CaseResult], rows: Sequence[Row], unit: str, reference: str = "ours") -> Figure | None:
    """Mean and SD over the landmarks of each of the first ten cases, a group of bars a case; low bars are good.

    Contour distance, without SD, where there are no landmarks. More rows than can be told apart stand in panels below
    one another, on one scale, each with the reference first. What is far higher than most is cut, with its value on it;
    a cross stands where a row has no result.

    Args:
        results: of all rows.
        rows: name and title, in order.
        unit: of distances, ``mm`` or ``voxel``.
        reference: the row repeated in every panel.

    Returns:
        The figure; None without landmarks and labels.
    """
    heights, name = _heights(results, rows, unit)
    if not heights:
        return None
    cases = _first_cases(results, heights)
    others = [row for row in rows if row[0] != reference and row[0] in heights]
    count = max(1, math.ceil(len(others) / (_BESIDE - 1)))
    size = max(1, math.ceil(len(others) / count))
    chunks = [others[i : i + size] for i in range(0, len(others), size)] or [[]]
    leader = [row for row in rows if row[0] == reference and row[0] in heights]
    figure = Figure(figsize=(11, 0.8 + 2.1 * len(chunks)), layout="constrained")
    panels = figure.subplots(len(chunks), 1, squeeze=False, sharey=True)[:, 0]
    styles, top = _styles(rows, reference), _top(heights, cases)
    for panel, chunk in zip(panels, chunks, strict=True):
        _bar_panel(panel, [*leader, *chunk], heights, cases, styles, top)
        panel.set_ylabel(f"{name}\n({_UNIT_WORDS[unit]})", fontsize=9)
        panel.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), fontsize=8, frameon=False)
    panels[-1].set_xlabel(f"case (the first {len(cases)})")
    return figure


def published_figure(
    path: Path,
    panels: Mapping[str, Sequence[CaseResult]],
    rows: Sequence[Row],
    unit: str = "voxel",
    reference: str = "ours",
) -> Path | None:
    """Write mean and SD of the TRE of ten cases of each suite, side by side, as in the figure of the published work.

    Args:
        path: of the PNG.
        panels: title to results of each suite: digits, and cine MR with known motion.
        rows: name and title of the rows to draw, at most eight or so; each a bar in every group.
        unit: of distances, ``mm`` or ``voxel``.
        reference: the row drawn first.

    Returns:
        The path; None, and no file there, not even one of other results, where a suite lacks landmarks.
    """
    path.unlink(missing_ok=True)
    found = [(title, results, *_heights(results, rows, unit)) for title, results in panels.items()]
    if not found or any(not heights or name != _TRE for _, _, heights, name in found):
        return None
    figure = Figure(figsize=(6.4 * len(found), 4.4), layout="constrained")
    styles = _styles(rows, reference)
    shown = [row for row in rows if any(row[0] in heights for _, _, heights, _ in found)]
    shown.sort(key=lambda row: row[0] != reference)
    for place, (panel, (title, results, heights, name)) in enumerate(
        zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True)
    ):
        cases = _first_cases(results, heights)
        _bar_panel(panel, shown, heights, cases, styles, _top(heights, cases), numbered=True)
        panel.set_title(f"({'abcdefgh'[place % 8]}) {title}", fontsize=11)
        panel.set(ylabel=f"{name} ({_UNIT_WORDS[unit]})", xlabel="case")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(shown)), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(figure, path)
    return path


def draw_landmarks(
    results: Sequence[CaseResult], rows: Sequence[Row], unit: str, reference: str = "ours"
) -> Figure | None:
    """The errors of all landmarks of every row, best median on top; logarithmic where they differ widely.

    Box: middle half of the landmarks, line: median, whiskers: 5 % and 95 %, diamond: mean. A dotted line marks one
    voxel or millimetre.

    Args:
        results: of all rows.
        rows: name and title, in order.
        unit: of distances, ``mm`` or ``voxel``.
        reference: the row printed bold, whose median a line carries through all.

    Returns:
        The figure; None without landmarks.
    """
    errors = {
        name: np.array([row[f"after_{unit}"] for r in _done(results, name) for row in r.landmarks]) for name, _ in rows
    }
    errors = {name: values[np.isfinite(values)] for name, values in errors.items() if np.isfinite(values).any()}
    if not errors:
        return None
    titles, styles = dict(rows), _styles(rows, reference)
    order = sorted(errors, key=lambda name: float(np.median(errors[name])), reverse=True)
    logarithmic = _is_wide([float(np.quantile(values, share)) for values in errors.values() for share in (0.05, 0.95)])
    figure = Figure(figsize=(9.5, 1.1 + 0.3 * len(order)), layout="constrained")
    panel = figure.subplots()
    for place, name in enumerate(order):
        values = np.maximum(errors[name], _FLOOR) if logarithmic else errors[name]
        least, low, median, high, most = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
        panel.plot([least, most], [place, place], "k|-", linewidth=1, markersize=8)
        panel.barh(place, high - low, 0.66, low, color=styles[name].colour, edgecolor="black", linewidth=0.7, zorder=2)
        panel.plot([median, median], [place - 0.33, place + 0.33], color="black", linewidth=1.6, zorder=3)
        panel.plot(values.mean(), place, "D", color="white", markeredgecolor="black", markersize=4, zorder=3)
    if reference in errors:
        panel.axvline(float(np.median(errors[reference])), color=_COLOURS["ours"], linewidth=1, alpha=0.6, zorder=0)
    panel.axvline(1, color="#999999", linestyle=":", linewidth=1.2, zorder=0)
    panel.set_yticks(range(len(order)), [_short(titles[name]) for name in order], fontsize=8.5)
    panel.set_ylim(-0.6, len(order) - 0.4)
    for name, label in zip(order, panel.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if name == reference else "normal")
    if logarithmic:
        _logarithmic(panel, "x")
    panel.set_xlabel(
        f"TRE of all landmarks ({_UNIT_WORDS[unit]}{', logarithmic' if logarithmic else ''})\n"
        "box: middle half, line: median, whiskers: 5 and 95 %, diamond: mean"
    )
    _plain(panel, "x")
    return figure


def draw_outliers(
    results: Sequence[CaseResult], rows: Sequence[Row], unit: str, reference: str = "ours"
) -> Figure | None:
    """Mean error of the landmarks by their distance to the nearest part that only one image shows; a panel a row.

    Bars are 95 % intervals by resampling subjects, or cases where these are not known. Every panel has the reference's
    curve in blue and the curves of all other rows in light grey; the shaded part is the neighbourhood that the tables
    report. Only distances at which there are landmarks are drawn.

    Args:
        results: of all rows.
        rows: name and title, in order.
        unit: of the errors, ``mm`` or ``voxel``; the distance is in voxels.
        reference: the row drawn in every panel.

    Returns:
        The figure; None where no landmark has a distance to an outlier.
    """
    curves = {name: curve for name, _ in rows if (curve := _by_distance(_done(results, name), unit)) is not None}
    if not curves:
        return None
    titles, styles = dict(rows), _styles(rows, reference)
    shown = [name for name, _ in rows if name in curves and (name != reference or len(curves) == 1)]
    columns = min(5, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(max(2.15 * columns + 0.5, 8.0), 1.9 * lines + 0.9), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    levels = [level for means, _ in curves.values() for level in means if not math.isnan(level)]
    logarithmic = _is_wide(levels)
    places = np.arange(len(_DISTANCES) - 1)
    used = [i for i in places if any(not math.isnan(means[i]) for means, _ in curves.values())]
    names = [f"{low:g} to {high:g}" if math.isfinite(high) else f"> {low:g}" for low, high in pairwise(_DISTANCES)]
    for panel, name in zip(panels.flat, shown, strict=False):
        for other, (means, _) in curves.items():
            if other not in (name, reference):
                panel.plot(places[used], means[used], color="#DDDDDD", linewidth=0.6, zorder=1)
        for drawn in dict.fromkeys((reference, name)):
            if drawn in curves:
                means, whiskers = curves[drawn]
                panel.errorbar(
                    places[used] + (0.12 if drawn == name else 0.0),
                    means[used],
                    whiskers[:, used],
                    color=styles[drawn].colour if drawn == reference else _dark(styles[drawn].colour),
                    marker="o" if drawn == reference else "s",
                    markersize=3.2,
                    linewidth=1.3,
                    elinewidth=0.9,
                    zorder=3 if drawn == name else 2,
                )
        panel.axvspan(-0.4, _DISTANCES.index(NEAR) - 0.5, color="#F3EBDD", zorder=0)
        panel.set_title(_wrapped(titles[name], 30), fontsize=7.5)
        panel.set_xticks(places[used], [names[i] for i in used], fontsize=7, rotation=45)
        panel.tick_params(axis="y", labelsize=7)
        if logarithmic:
            _logarithmic(panel, "y")
        else:
            panel.set_ylim(0, None)
        _plain(panel, "y")
    for panel in panels.flat[len(shown) :]:
        panel.set_visible(False)
    figure.supylabel(f"mean TRE ({_UNIT_WORDS[unit]}{', logarithmic' if logarithmic else ''})", fontsize=9)
    figure.supxlabel(
        f"distance to the part that one image lacks (voxels); shaded: up to {NEAR:g}; bars: 95 % intervals", fontsize=9
    )
    handles = [Line2D([], [], color="#CCCCCC", linewidth=1.2, label="all other rows")]
    if reference in curves:
        colour = styles[reference].colour
        handles = [Line2D([], [], color=colour, marker="o", markersize=4, label=_short(titles[reference])), *handles]
    handles.insert(-1, Line2D([], [], color="black", marker="s", markersize=4, label="the row of the panel's title"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=8.5)
    return figure


def draw_time(results: Sequence[CaseResult], rows: Sequence[Row], unit: str, reference: str = "ours") -> Figure | None:
    """Accuracy against seconds a pair with its pre-alignment (median, logarithmic); lower left is better.

    The accuracy is the suite's headline measure, mean over cases: TRE, contour distance, or else one minus Dice or the
    image error. A label without room beside its point is joined to it by a line.

    Args:
        results: of all rows.
        rows: name and title, in order.
        unit: of distances, ``mm`` or ``voxel``.
        reference: the row that stands out.

    Returns:
        The figure; None without a measure or without times.
    """
    measures = headline_measures(results, unit)
    if not measures:
        return None
    measure = measures[0]
    points: dict[str, tuple[float, float]] = {}
    for name, _ in rows:
        values = list(values_of(results, name, measure).values())
        taken = [r.seconds for r in _done(results, name) if math.isfinite(r.seconds)]
        if values and taken and math.isfinite(np.mean(values)):
            error = float(np.mean(values))
            points[name] = max(float(np.median(taken)), _INSTANT), 1 - error if measure.higher_is_better else error
    if not points:
        return None
    titles, styles = dict(rows), _styles(rows, reference)
    figure = Figure(figsize=(11, 7))
    panel = figure.add_axes((0.08, 0.09, 0.9, 0.88))
    for name, (seconds, error) in points.items():
        panel.plot(
            seconds,
            error,
            styles[name].marker,
            color=styles[name].colour,
            markeredgecolor="black",
            markeredgewidth=0.6,
            markersize=10 if name == reference else 7,
            zorder=3,
        )
    _logarithmic(panel, "x")
    panel.set_xlim(min(s for s, _ in points.values()) / 2, max(s for s, _ in points.values()) * 6)
    logarithmic = _is_wide([error for _, error in points.values()], 8)
    if logarithmic:
        _logarithmic(panel, "y")
    else:
        panel.set_ylim(0, 1.1 * max(error for _, error in points.values()) or 1)
    what = f"1 - {measure.title}" if measure.higher_is_better else measure.title
    units = [_UNIT_WORDS[measure.unit]] if measure.unit in _UNIT_WORDS else []
    scale = [*units, "logarithmic"] if logarithmic else units
    panel.set_ylabel(f"{what}, mean over cases" + (f" ({', '.join(scale)})" if scale else ""))
    least = any(seconds == _INSTANT for seconds, _ in points.values())
    panel.set_xlabel(
        "seconds a pair with its pre-alignment, median (logarithmic"
        + (f"; {_INSTANT:g} stands for all that takes less)" if least else ")")
    )
    _plain(panel, "both")
    _place_labels(figure, panel, {name: (_wrapped(titles[name], 32), *points[name]) for name in points}, reference)
    return figure


def draw_trust(
    results: Sequence[CaseResult],
    rows: Sequence[Row],
    unit: str,
    reference: str = "ours",
    names: Sequence[str] | None = None,
) -> Figure | None:
    """Whether trust tells where the error is: mean error, and share of landmarks within one voxel, by tenth of trust.

    A row's landmarks are sorted by trust and cut into ten equal parts; a point stands at the part's mean trust. Trust
    that means something falls in error and rises in share from left to right. Bars of the reference are 95 % intervals
    by resampling subjects, or cases where these are not known.

    Args:
        results: of all rows.
        rows: name and title, in order.
        unit: of the errors, ``mm`` or ``voxel``.
        reference: the row with intervals.
        names: rows to draw; left out, those whose name begins with that of the reference.

    Returns:
        The figure; None where these rows have no landmarks with trust.
    """
    wanted = [name for name, _ in rows if (name.startswith(reference) if names is None else name in names)]
    curves = {name: curve for name in wanted if (curve := _by_trust(_done(results, name), unit)) is not None}
    if not curves:
        return None
    titles, styles = dict(rows), _styles(rows, reference)
    figure = Figure(figsize=(11, 4.2 + 0.12 * len(curves)), layout="constrained")
    panels = figure.subplots(1, 2)
    for place, name in enumerate(sorted(curves, key=lambda name: name == reference)):
        trust, errors, shares = curves[name]
        for panel, (means, whiskers) in zip(panels, (errors, shares), strict=True):
            panel.errorbar(
                trust,
                means,
                whiskers if name == reference else None,
                color=styles[name].colour if name == reference else _dark(styles[name].colour, 0.85),
                marker=styles[name].marker,
                markersize=6 if name == reference else 4.5,
                linewidth=2.2 if name == reference else 1.0,
                capsize=2 if name == reference else 0,
                linestyle="-" if name == reference else _LINES[place % len(_LINES)],
                label=_short(titles[name]),
            )
    panels[0].set(ylabel=f"mean TRE ({_UNIT_WORDS[unit]})", ylim=(0, None))
    panels[1].set(ylabel="landmarks within one voxel (%)", ylim=(0, 102))
    for panel in panels:
        panel.set_xlabel("trust (0: no counterpart, 1: full), mean of each tenth of the landmarks")
        _plain(panel, "y")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], loc="outside lower center", ncols=min(2, len(curves)), frameon=False, fontsize=8.5
    )
    return figure


_TRE = "TRE, mean and SD"


def _heights(
    results: Sequence[CaseResult], rows: Sequence[Row], unit: str
) -> tuple[dict[str, dict[str, tuple[float, float]]], str]:
    """Height and whisker (NaN for none) of each bar, by row and case, and what they are."""
    name = f"contour_distance_after{'_voxel' if unit == 'voxel' else ''}"
    landmarks = any(result.landmarks for result in results)
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for method, _ in rows:
        for result in _done(results, method):
            if landmarks and result.landmarks:
                errors = np.array([row[f"after_{unit}"] for row in result.landmarks])
                if not np.isfinite(errors).all():
                    continue
                bar = (float(errors.mean()), float(errors.std(ddof=1)) if len(errors) > 1 else math.nan)
            elif not landmarks and name in result.measures:
                bar = (result.measures[name], math.nan)
            else:
                continue
            if math.isfinite(bar[0]):
                found.setdefault(method, {})[result.case] = bar
    return found, _TRE if landmarks else "contour distance"


def _first_cases(results: Sequence[CaseResult], heights: Mapping[str, Mapping[str, object]]) -> list[str]:
    return [case for case in case_order(results) if any(case in own for own in heights.values())][:_FIRST_CASES]


def _top(heights: Mapping[str, Mapping[str, tuple[float, float]]], cases: Sequence[str]) -> float:
    """Upper end of the axis: everything, unless a few bars are far above the rest."""
    bars = [own[case] for own in heights.values() for case in cases if case in own]
    means = [mean for mean, _ in bars]
    ends = max(mean + (0.0 if math.isnan(sd) else sd) for mean, sd in bars)
    return float(1.05 * min(ends, max(4 * float(np.median(means)), 1.25 * float(np.quantile(means, 0.8))))) or 1.0


def _bar_panel(
    panel: Axes,
    rows: Sequence[Row],
    heights: Mapping[str, Mapping[str, tuple[float, float]]],
    cases: Sequence[str],
    styles: Mapping[str, _Style],
    top: float,
    numbered: bool = False,
) -> None:
    width = 0.84 / len(rows)
    for index, (name, title) in enumerate(rows):
        own = [(place, *heights[name][case]) for place, case in enumerate(cases) if case in heights[name]]
        places = np.array([place for place, _, _ in own]) - 0.42 + (index + 0.5) * width
        means, deviations = (np.array([bar[part] for bar in own]) for part in (1, 2))
        panel.bar(
            places,
            means,
            width,
            color=styles[name].colour,
            hatch=styles[name].hatch,
            edgecolor="white" if styles[name].hatch else styles[name].colour,
            linewidth=0.3,
            label=_wrapped(title, 34),
        )
        known = ~np.isnan(deviations)
        panel.errorbar(
            places[known],
            means[known],
            np.stack([np.minimum(means, deviations), deviations])[:, known],
            fmt="none",
            ecolor="#222222",
            elinewidth=0.6,
        )
        for place, case in enumerate(cases):
            if case not in heights[name]:
                panel.text(place - 0.42 + (index + 0.5) * width, 0, "x", ha="center", va="bottom", fontsize=7)
        for place, mean in zip(places, means, strict=True):
            if mean > top:
                panel.text(
                    place, 0.98 * top, f"{mean:.3g}", rotation=90, ha="center", va="top", fontsize=6, color="black",
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
                )  # fmt: skip
    ends = [case if len(case) <= 18 else f"…{case[-17:]}" for case in cases]  # the end of a name tells cases apart
    names = [str(place + 1) for place in range(len(cases))] if numbered else ends
    turned = max(map(len, names)) > 10
    panel.set_xticks(
        range(len(cases)), names, fontsize=8, rotation=20 if turned else 0, ha="right" if turned else "center"
    )
    panel.set(ylim=(0, top), xlim=(-0.5, len(cases) - 0.5))
    panel.tick_params(axis="y", labelsize=8)
    _plain(panel, "y")


def _by_distance(own: Sequence[CaseResult], unit: str) -> tuple[Array, Array] | None:
    """Mean error in each interval of distance (NaN where there is no landmark), and lengths of its whiskers (2, n)."""
    far = [
        (row["outlier_distance"], row[f"after_{unit}"], place)
        for place, result in _by_subject(own)
        for row in result.landmarks
        if row.get("outlier_distance") is not None
    ]
    if not far:
        return None
    distances, errors, places = (np.array(part) for part in zip(*far, strict=True))
    upper = np.digitize(distances, _DISTANCES[1:-1], right=True)  # an interval holds its upper end
    return _binned(errors, places, upper, len(_DISTANCES) - 1)


def _by_trust(own: Sequence[CaseResult], unit: str) -> tuple[Array, tuple[Array, Array], tuple[Array, Array]] | None:
    """Mean trust of each tenth, mean error in it, and share below one voxel in %, the two with whiskers."""
    known = [
        (row["trust"], row[f"after_{unit}"], row["after_voxel"], place)
        for place, result in _by_subject(own)
        for row in result.landmarks
        if row.get("trust") is not None
    ]
    if not known:
        return None
    trust, errors, voxels, places = (np.array(part) for part in zip(*known, strict=True))
    edges = np.unique(np.quantile(trust, np.arange(0.1, 0.95, 0.1)))
    tenth = np.unique(np.digitize(trust, edges, right=True), return_inverse=True)[1]
    count = int(tenth.max()) + 1
    mean_trust = np.bincount(tenth, trust) / np.bincount(tenth)
    return mean_trust, _binned(errors, places, tenth, count), _binned(100.0 * (voxels < 1), places, tenth, count)


def _by_subject(own: Sequence[CaseResult]) -> list[tuple[int, CaseResult]]:
    """Results with the number of their subject; one without a subject has a number of its own."""
    numbers: dict[str | int, int] = {}
    return [(numbers.setdefault(result.subject or place, place), result) for place, result in enumerate(own)]


def _binned(values: Array, subjects: Array, bins: Array, count: int) -> tuple[Array, Array]:
    """Mean of each bin, (count,), NaN where there is none or it is infinite, and its whiskers.

    Whiskers are the lengths of the 95 % interval downwards and upwards, (2, count), by resampling subjects.
    """
    means, whiskers = np.full(count, math.nan), np.full((2, count), math.nan)
    for index in range(count):
        inside = bins == index
        if not inside.any() or not np.isfinite(values[inside]).all():
            continue
        numbers = np.unique(subjects[inside], return_inverse=True)[1]
        sums = np.bincount(numbers, values[inside])
        means[index] = values[inside].mean()
        low, high = bootstrap_interval(list(sums), list(np.bincount(numbers)))
        whiskers[:, index] = max(means[index] - low, 0.0), max(high - means[index], 0.0)
    return means, whiskers


def _place_labels(figure: Figure, panel: Axes, labels: Mapping[str, tuple[str, float, float]], reference: str) -> None:
    """Write each label near its point where it covers neither a label nor a point; the best points first."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    frame = panel.get_window_extent(renderer)
    spots = {name: panel.transData.transform((x, y)) for name, (_, x, y) in labels.items()}
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in spots.values()]
    steps = [(8 + reach, angle) for reach, angle in product(range(0, 260, 13), range(0, 360, 30))]
    for name in sorted(labels, key=lambda name: (name != reference, labels[name][2])):
        x, y = spots[name]
        text = panel.annotate(
            labels[name][0],
            labels[name][1:],
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8,
            linespacing=1.0,
            fontweight="bold" if name == reference else "normal",
            va="center",
            ha="center",
            zorder=4,
        )
        extent = text.get_window_extent(renderer)
        half, tall = extent.width / 2 + 2, extent.height / 2 + 1

        def box(step: tuple[int, int], x: float = x, y: float = y, half: float = half, tall: float = tall) -> Array:
            reach, turn = step[0], math.radians(step[1])
            across = x + reach * math.cos(turn) + half * np.sign(round(math.cos(turn), 6))
            up = y + reach * math.sin(turn)
            return np.array([across - half, up - tall, across + half, up + tall])

        def cost(step: tuple[int, int], box: Callable[[tuple[int, int]], Array] = box) -> float:
            left, bottom, right, top = box(step)
            over = sum(
                max(0.0, min(right, b[2]) - max(left, b[0])) * max(0.0, min(top, b[3]) - max(bottom, b[1]))
                for b in taken
            )
            outside = left < frame.x0 or right > frame.x1 or bottom < frame.y0 or top > frame.y1
            return 1e6 * outside + 100 * over + step[0]

        chosen = box(min(steps, key=cost))
        taken.append(tuple(chosen))
        centre = (chosen[:2] + chosen[2:]) / 2
        text.set_position(tuple((centre - spots[name]) * 72 / figure.dpi))
        nearest = np.clip(spots[name], chosen[:2], chosen[2:])
        if math.dist(nearest, (x, y)) > 14:
            ends = panel.transData.inverted().transform(np.stack([spots[name], nearest]))
            panel.plot(ends[:, 0], ends[:, 1], color="#888888", linewidth=0.6, zorder=2, scalex=False, scaley=False)


def _done(results: Sequence[CaseResult], name: str) -> list[CaseResult]:
    return [result for result in results if result.method == name and not result.failure]


def _wrapped(text: str, width: int) -> str:
    """At most three lines."""
    return "\n".join(wrap(text, width, break_on_hyphens=False, max_lines=3, placeholder=" …"))


def _short(text: str, width: int = 64) -> str:
    """The first words of a text, or of one long word its beginning."""
    if len(text) <= width:
        return text
    return shorten(text, width, placeholder=" …") if " " in text else f"{text[: width - 1]}…"


def _dark(colour: tuple[float, float, float], share: float = 0.7) -> tuple[float, float, float]:
    red, green, blue = (share * part for part in colour)
    return red, green, blue


def _is_wide(values: Sequence[float], ratio: float = 12) -> bool:
    """Whether values differ so much that only a logarithmic axis shows them all."""
    return max(values) > ratio * max(min(values), _FLOOR)


def _logarithmic(panel: Axes, which: str) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5."""
    panel.set(**{f"{which}scale": "log"})
    axis = panel.xaxis if which == "x" else panel.yaxis
    axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _plain(panel: Axes, grid: str) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis=grid, color="#E6E6E6", linewidth=0.8)  # type: ignore[arg-type]
    panel.set_axisbelow(True)
