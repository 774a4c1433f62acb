"""The HTML page of a finished registration, or of the evaluation of many."""

from __future__ import annotations

import base64
import csv
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import nibabel as nib
import numpy as np
from matplotlib.figure import Figure as MatplotlibFigure
from numpy.typing import NDArray

from monai_jsm.data.errors import InputError
from monai_jsm.data.images import read_image
from monai_jsm.data.results import file_hash
from monai_jsm.report import figures
from monai_jsm.report.figures import Array, Landmarks, Pair

WORDS = {
    "tre_mean": "TRE, mean",
    "tre_median": "TRE, median",
    "tre_p95": "TRE, 95th percentile",
    "tre_max": "TRE, maximum",
    "share_improved": "Landmarks that came closer",
    "dice": "Dice overlap of the labels",
    "contour_distance": "Distance between the labels' contours, mean",
    "hd95": "Distance between the labels' contours, 95th percentile (HD95)",
    "folding": "Folded voxels (Jacobian determinant of 0 or less)",
    "log_jacobian_sd": "Standard deviation of the logarithm of the Jacobian determinant",
    "jacobian_min": "Smallest Jacobian determinant",
    "inverse_consistency_mean": "Distance of a point from itself, there and back, mean",
    "inverse_consistency_p95": "Distance of a point from itself, there and back, 95th percentile",
    "inverse_consistency_max": "Distance of a point from itself, there and back, maximum",
}
SHORT_WORDS = {"tre_mean": "TRE, mean", "dice": "Dice", "contour_distance": "contour distance, mean", "hd95": "HD95"}
HIGHER_IS_BETTER = ("dice", "share_improved")
ENOUGH_IMPROVED = 90.0  # % of the landmarks; below it the page warns
WORST_SHOWN = 10
_SHOWN_ELSEWHERE = ("id", "inputs", "measures", "warnings")
_WHEN = ("before", "affine", "after")
MOST_NAMED = 12  # cases in a warning
REBUILD = "register the pair again, or restore the file"


@dataclass(frozen=True)
class Measure:
    """One number of metrics.json; for a cohort the mean over cases, with its spread."""

    value: float
    unit: str
    sd: float | None = None
    median: float | None = None


@dataclass(frozen=True)
class Illustration:
    """A figure of the page: file stem, heading, caption, and how it is drawn."""

    name: str
    title: str
    caption: str
    draw: Callable[[], MatplotlibFigure]


def write_report(folder: Path) -> Path:
    """Build ``report.html`` and ``figures/*.png`` of a finished registration or evaluation, anew if they exist.

    ``metrics.json`` decides which: one that holds ``id`` is of a single pair, one that holds ``cases`` of many.
    The page holds its figures itself and needs no network. Everything is drawn before the first file is replaced,
    so that broken input leaves an older report as it was.

    Args:
        folder: what ``monai-jsm register`` or an evaluation wrote.

    Returns:
        The path of ``report.html``.

    Raises:
        InputError: if a file is missing, cannot be read or does not belong to the others, or if an input image is
            no longer the one that was registered.
    """
    folder = Path(folder)
    metrics = _read_metrics(folder)
    if "cases" in metrics:
        return write_cohort_report(folder)
    measures = _read_measures(folder / "metrics.json", metrics, "value")
    pair = read_pair(folder)
    landmarks = pair.landmarks
    context = {
        "title": f"Registration of {metrics['id']}",
        "summary": _summary(measures, f"over {len(landmarks.labels)} landmarks" if landmarks else ""),
        "warnings": [*metrics.get("warnings", []), *_warnings(measures)],
        **_measures_of_page(measures),
        "landmarks": _worst_landmarks(landmarks) if landmarks else [],
        "inputs": [
            {"role": role.replace("_", " "), "path": entry["path"], "sha256": entry.get("sha256", "")}
            for role, entry in metrics["inputs"].items()
        ],
        "provenance": _flatten({key: metrics[key] for key in metrics if key not in _SHOWN_ELSEWHERE}),
    }
    return _write_page(folder, context, _pair_illustrations(pair))


def write_cohort_report(folder: Path) -> Path:
    """Build ``report.html`` and ``figures/*.png`` of an evaluation over many cases.

    Args:
        folder: holds ``metrics.json`` (``cases`` and ``measures`` with mean, sd, median and unit), ``cases.csv`` and,
            where landmarks were given, ``landmarks.csv``.

    Returns:
        The path of ``report.html``.

    Raises:
        InputError: if a file is missing or cannot be read.
    """
    folder = Path(folder)
    metrics = _read_metrics(folder)
    if "cases" not in metrics:
        raise InputError(f"{folder / 'metrics.json'} has no entry 'cases': give the folder of an evaluation.")
    measures = _read_measures(folder / "metrics.json", metrics, "mean")
    cases = _read_table(folder / "cases.csv", ["case"])
    if len(cases) != metrics["cases"]:
        raise InputError(
            f"{folder / 'cases.csv'} has {len(cases)} cases but metrics.json says {metrics['cases']}: "
            "run the evaluation again."
        )
    path = folder / "landmarks.csv"
    errors = _errors_by_case(path) if path.exists() else {}
    per_case = {name: _column(folder / "cases.csv", cases, name) for name in cases[0] if name in measures}
    count = f"over {len(cases)} cases"
    if errors:
        count += f" ({sum(len(after) for _, after in errors.values())} landmarks)"
    context = {
        "title": f"Evaluation of {len(cases)} cases",
        "summary": _summary(measures, count),
        "warnings": _warnings(measures) + _case_warnings([case["case"] for case in cases], per_case),
        **_measures_of_page(measures),
        "landmarks": [],
        "inputs": [],
        "provenance": _flatten({key: metrics[key] for key in metrics if key not in ("cases", "measures", "landmarks")}),
    }
    return _write_page(folder, context, _cohort_illustrations(measures, per_case, errors))


def measures_table(folder: Path) -> str:
    """The measures of a finished registration or evaluation as a Markdown table.

    Args:
        folder: holds ``metrics.json``.

    Returns:
        A row per measure: what, unit, before, (after the affine pre-alignment,) after; of an evaluation mean,
        standard deviation and median over cases,
        then the measures of all landmarks pooled.

    Raises:
        InputError: if ``metrics.json`` is missing or cannot be read.
    """
    return _measures_table(_read_metrics(Path(folder)), Path(folder) / "metrics.json")


def record_table(record: Mapping[str, Any]) -> str:
    """The same of a measured pair that was not written.

    Args:
        record: holds ``measures``, name to ``value`` and ``unit``.
    """
    return _measures_table(record, Path("the record"))


def _measures_table(metrics: Mapping[str, Any], path: Path) -> str:
    rows = _measure_rows(_read_measures(path, metrics, "mean" if "cases" in metrics else "value"))
    if "cases" in metrics and "landmarks" in metrics:
        pooled = _read_measures(path, metrics["landmarks"], "value")
        of_all = f" (all {metrics['landmarks']['count']} landmarks pooled)"
        rows += [{**row, "words": row["words"] + of_all} for row in _measure_rows(pooled)]
    columns = ["words", "unit", *(when for when in _WHEN if when != "affine" or _has_affine(rows))]
    lines = [[{"words": "measure"}.get(name, name) for name in columns], ["---"] * len(columns)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*lines, *([row[name] for name in columns] for row in rows)])


def _pair_illustrations(pair: Pair) -> list[Illustration]:
    volume = pair.spatial_dims == 3
    through = "the landmarks' centre" if pair.landmarks else "the middle of fixed"
    planes = f" The three planes run through {through}; the patient's right is on the left." if volume else ""
    folded = int((pair.jacobian <= 0).sum())
    shown = [
        Illustration(
            "images",
            "The images",
            "Fixed stays as it is. Moving is shown where its file header places it, before registration; warped is "
            "moving after registration. Warped should look like fixed. Dark blue: outside moving." + planes,
            partial(figures.draw_images, pair),
        ),
        Illustration(
            "differences",
            "What differs",
            "Absolute difference from fixed, before and after, on one colour scale; every image is first scaled by its "
            "own grey range. Darker is better. Differences of contrast, and tissue that only one image shows, remain "
            "even where the alignment is right. Light grey: outside moving.",
            partial(figures.draw_differences, pair),
        ),
        Illustration(
            "checkerboards",
            "Checkerboard",
            "Tiles alternate between the two images. After registration, contours should run on unbroken from tile to "
            "tile.",
            partial(figures.draw_checkerboards, pair),
        ),
        Illustration(
            "field",
            "The deformation",
            "Left: a regular grid drawn on fixed, where the registration lays it on moving: each crossing lies on the "
            "tissue of moving that is brought to that crossing's place in fixed. Where lines cross over, it folds. "
            + ("Only the part of the motion within the plane is drawn. " if volume else "")
            + "Right: how far each point of fixed lies from its counterpart in moving, in mm"
            + (", through-plane motion included." if volume else "."),
            partial(figures.draw_field, pair),
        ),
        Illustration(
            "trust",
            "Where the images agree",
            "Left: joint saliency, blue where fixed and warped share clear structure. Right: trust, orange where "
            "structure stands in one image only or does not match. No orange is no proof: flat tissue holds no "
            "evidence either way, and trust has not been calibrated against the error.",
            partial(figures.draw_trust, pair),
        ),
        Illustration(
            "jacobian",
            "Local change of volume",
            "Jacobian determinant of the field, on a logarithmic scale. 1 (white): volume kept. 2: this place of fixed "
            "takes its tissue from twice its volume in moving; 0.5: from half. Black: folded, physically impossible"
            f" ({folded} of {pair.jacobian.size} voxels{' of the whole volume' if volume else ''}; crosses help to "
            "find them in the planes shown).",
            partial(figures.draw_jacobian, pair),
        ),
    ]
    if pair.landmarks is None:
        return shown
    return [
        Illustration(
            "landmark_errors",
            "Error per landmark",
            "Target registration error (TRE): the distance between where the registration carries a landmark and where "
            "an observer marked it, in mm. One column per landmark; dashed lines are the means.",
            partial(figures.draw_landmark_errors, pair.landmarks),
        ),
        Illustration(
            "landmark_places",
            "Where the landmarks are",
            "Landmarks on fixed, coloured by the error that remains. The white line is that error, to scale: it leads "
            "from where the registration put the point to where it should be."
            + (" Landmarks from the whole volume are projected onto each plane." if volume else ""),
            partial(figures.draw_landmark_places, pair, pair.landmarks),
        ),
        *shown,
    ]


def _cohort_illustrations(
    measures: Mapping[str, Measure], per_case: Mapping[str, Array], errors: Mapping[str, tuple[Array, Array]]
) -> list[Illustration]:
    shown = []
    if errors:
        shown = [
            Illustration(
                "case_boxes",
                "Error per case",
                "Target registration error (TRE) of each case's landmarks, before and after. Box: middle half of the "
                "landmarks, black line: median, dots: outliers beyond 1.5 times the box's height.",
                partial(figures.draw_case_boxes, errors),
            ),
            Illustration(
                "case_bars",
                "Mean error per case",
                "Mean TRE of each case's landmarks; the whisker is one standard deviation over its landmarks.",
                partial(figures.draw_case_bars, errors),
            ),
            Illustration(
                "distribution",
                "All landmarks together",
                "Left: how many landmarks have which error. Right: the share of landmarks whose error is at most the "
                "value below; the dotted line is 95 %.",
                partial(figures.draw_distribution, errors),
            ),
        ]
    both = {}
    for name in ("tre_mean", "dice", "contour_distance", "hd95"):
        before, after = (per_case.get(f"{name}_{when}") for when in ("before", "after"))
        if before is not None and after is not None:
            unit = measures[f"{name}_after"].unit
            both[name] = (f"{SHORT_WORDS[name]} ({'no unit' if unit == '1' else unit})", before, after)
    if both:
        shown.append(
            Illustration(
                "case_measures",
                "Every case before and after",
                "One line per case; the black bar is the median over cases. Overlap (Dice) should rise, distances "
                "should fall.",
                partial(figures.draw_case_measures, both),
            )
        )
    return shown


def _read_metrics(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    if not path.is_file():
        raise InputError(f"{path} does not exist: give the folder of a finished registration or evaluation.")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): {REBUILD}.") from error
    if not isinstance(metrics, dict) or not {"id", "cases"} & metrics.keys():
        raise InputError(
            f"{path} has neither 'id' nor 'cases': give the folder of a finished registration or evaluation."
        )
    return metrics


def _read_measures(path: Path, metrics: Mapping[str, Any], key: str) -> dict[str, Measure]:
    """The measures of a pair (``key`` is "value") or of a cohort ("mean"); null becomes not a number."""

    def number(value: float | None) -> float:
        return math.nan if value is None else float(value)

    try:
        return {
            name: Measure(
                number(entry[key]),
                str(entry["unit"]),
                *((number(entry["sd"]), number(entry["median"])) if key == "mean" else ()),
            )
            for name, entry in metrics["measures"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"the measures in {path} lack {error} or are not numbers with a unit: {REBUILD}.") from error


def read_pair(folder: Path) -> Pair:
    """Read the images, the field and the landmarks of a finished registration, axes turned for display.

    Args:
        folder: what ``monai-jsm register`` wrote; its ``metrics.json`` leads to fixed and moving.

    Returns:
        The pair, with the field in RAS mm although the file holds LPS.

    Raises:
        InputError: as :func:`write_report`.
    """
    metrics = _read_metrics(folder)
    field, affine = _read_nifti(folder / "field.nii.gz")
    spatial_dims = field.shape[-1]
    if field.ndim != 5 or spatial_dims not in (2, 3):
        raise InputError(
            f"{folder / 'field.nii.gz'} has shape {field.shape} and is no displacement field, (X, Y, Z, 1, 3) "
            f"or (X, Y, 1, 1, 2): {REBUILD}."
        )
    shape = field.shape[:spatial_dims]
    affine = _of_plane(affine, spatial_dims)
    ras = field.reshape(*shape, spatial_dims)
    ras[..., :2] *= -1  # LPS in the file

    def on_fixed(path: Path, image: Array) -> Array:
        image = _plain_image(path, image, spatial_dims)
        if image.shape != shape:
            raise InputError(f"{path} has shape {image.shape} but field.nii.gz has {shape}: {REBUILD}.")
        return figures.orient(image, affine, affine)[0]

    fixed_path, moving_path = (_input_path(folder, metrics, role) for role in ("fixed_image", "moving_image"))
    series = metrics.get("series", {})
    fixed, _ = read_image(fixed_path, spatial_dims, series.get("fixed_image", ""))
    moving, moving_affine = read_image(moving_path, spatial_dims, series.get("moving_image", ""))
    moving, moving_affine = figures.orient(moving.astype(np.float32), _of_plane(moving_affine, spatial_dims), affine)
    oriented_field, oriented_affine = figures.orient(ras, affine, affine)
    maps = {
        name: on_fixed(folder / f"{name}.nii.gz", _read_nifti(folder / f"{name}.nii.gz")[0])
        for name in ("warped", "joint_saliency", "trust", "jacobian")
    }
    landmarks = folder / "landmarks.csv"
    return Pair(
        fixed=on_fixed(fixed_path, fixed.astype(np.float32)),
        affine=oriented_affine,
        moving=moving,
        moving_affine=moving_affine,
        field=oriented_field,
        landmarks=_read_landmarks(landmarks, spatial_dims) if landmarks.exists() else None,
        **maps,
    )


def _input_path(folder: Path, metrics: Mapping[str, Any], role: str) -> Path:
    """An input image, checked to be the very file that was registered."""
    try:
        path, digest = folder / metrics["inputs"][role]["path"], metrics["inputs"][role]["sha256"]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{folder / 'metrics.json'} does not say path and sha256 of the {role.replace('_', ' ')}: {REBUILD}."
        ) from error
    if not path.exists():
        raise InputError(
            f"the {role.replace('_', ' ')} {path} does not exist: put it back where it was registered from."
        )
    if file_hash(path) != digest:
        raise InputError(f"{path} has changed since it was registered: restore it, or register the pair again.")
    return path


def _read_nifti(path: Path) -> tuple[Array, Array]:
    if not path.is_file():
        raise InputError(f"{path} does not exist: {REBUILD}.")
    try:
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Image):
            raise ValueError(f"it is a {type(image).__name__}")
        return np.asarray(image.dataobj, dtype=np.float32), np.asarray(image.affine)
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:
        raise InputError(f"{path} cannot be read as NIfTI ({error}): {REBUILD}.") from error


def _of_plane(affine: Array, spatial_dims: int) -> Array:
    """The affine (D+1, D+1) of the first D axes: 2D files carry a larger one."""
    keep = [*range(spatial_dims), -1]
    return np.asarray(affine, dtype=float)[np.ix_(keep, keep)]


def _plain_image(path: Path, image: Array, spatial_dims: int) -> Array:
    """(*S): axes of length one that files append fall away, colours become grey, what is not finite becomes 0."""
    if image.ndim < spatial_dims:
        raise InputError(f"{path} has shape {image.shape} but the field is {spatial_dims}D: {REBUILD}.")
    return np.nan_to_num(image.reshape(*image.shape[:spatial_dims], -1).mean(-1), posinf=0, neginf=0)


def _read_landmarks(path: Path, spatial_dims: int) -> Landmarks:
    axes = "xyz"[:spatial_dims]
    positions = [f"{kind}_{axis}" for kind in ("fixed", "moving", "carried") for axis in axes]
    rows = _read_table(path, ["label", *positions, "before_mm", "after_mm"])
    fixed, moving, carried = (
        np.stack([_column(path, rows, f"{kind}_{axis}", finite=True) for axis in axes], axis=-1)
        for kind in ("fixed", "moving", "carried")
    )
    before, after = (_column(path, rows, name, finite=True) for name in ("before_mm", "after_mm"))
    return Landmarks([row["label"] for row in rows], fixed, moving, carried, before, after)


def _errors_by_case(path: Path) -> dict[str, tuple[Array, Array]]:
    """TRE before and after of each case's landmarks, mm."""
    rows = _read_table(path, ["case", "before_mm", "after_mm"])
    names = np.array([row["case"] for row in rows])
    before, after = (_column(path, rows, name, finite=True) for name in ("before_mm", "after_mm"))
    return {str(case): (before[names == case], after[names == case]) for case in dict.fromkeys(names)}


def _read_table(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    if not path.is_file():
        raise InputError(f"{path} does not exist: {REBUILD}.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV text ({error}): {REBUILD}.") from error
    if not rows:
        raise InputError(f"{path} has no rows: {REBUILD}.")
    missing = [name for name in needed if name not in rows[0]]
    if missing:
        raise InputError(f"{path} lacks the column {', '.join(missing)}: {REBUILD}.")
    return rows


def _column(path: Path, rows: Sequence[Mapping[str, str]], name: str, finite: bool = False) -> Array:
    """A column of numbers (N,); an empty cell is not a number, and refused where ``finite`` is asked for."""
    values = np.empty(len(rows))
    for index, row in enumerate(rows):
        try:
            values[index] = float(row[name] or "nan")
        except (TypeError, ValueError):
            raise InputError(f"{path}, line {index + 2}: {name} is {row[name]!r} and no number: {REBUILD}.") from None
        if finite and not math.isfinite(values[index]):
            raise InputError(
                f"{path}, line {index + 2}: {name} is missing or not finite: "
                "the registration diverged, use other weights, or the file is damaged, restore it."
            )
    return values


def _change(measures: Mapping[str, Measure], name: str) -> tuple[Measure, Measure] | None:
    """A measure before and after, where both are known numbers."""
    before, after = measures.get(f"{name}_before"), measures.get(f"{name}_after")
    if before is None or after is None or not math.isfinite(before.value + after.value):
        return None
    return before, after


def _summary(measures: Mapping[str, Measure], count: str) -> str:
    """What happened, in one sentence."""
    parts = []
    tre, dice = _change(measures, "tre_mean"), _change(measures, "dice")
    if tre:
        parts.append(f"Mean TRE {_moved(*tre)} {count}")
    if "share_improved" in measures:
        improved = measures["share_improved"]
        parts.append(
            f"{'on average ' if improved.sd is not None else ''}{_number(improved)} of the landmarks came closer"
        )
    if dice:
        parts.append(f"{'mean ' if parts else 'Mean '}Dice {_moved(*dice)}")
    if not parts:
        parts.append("No landmarks or labels were given, so accuracy was not measured")
    if "folding" in measures:
        folding = measures["folding"]
        parts.append("no folding" if folding.value == 0 else f"folding in {_number(folding)} of the voxels")
    return "; ".join(parts) + "."


def _moved(before: Measure, after: Measure) -> str:
    """How a measure changed, in words.

    >>> _moved(Measure(4.0, "mm"), Measure(1.25, "mm"))
    'fell from 4.00 to 1.25 mm'
    """
    if before.value == after.value:
        return f"stayed at {_number(after)}"
    return f"{'fell' if after.value < before.value else 'rose'} from {_number(before, unit=False)} to {_number(after)}"


def _warnings(measures: Mapping[str, Measure]) -> list[str]:
    """What a careful reader must not overlook."""
    warnings = []
    for name in ("tre_mean", "tre_median", "tre_p95", "tre_max", "dice", "contour_distance", "hd95"):
        both = _change(measures, name)
        if both and (both[1].value < both[0].value if name in HIGHER_IS_BETTER else both[1].value > both[0].value):
            warnings.append(f"Worse after registration: {WORDS[name]} {_moved(*both)}.")
    improved, folding = measures.get("share_improved"), measures.get("folding")
    if improved and improved.value < ENOUGH_IMPROVED:
        warnings.append(f"Only {_number(improved)} of the landmarks came closer (less than {ENOUGH_IMPROVED:.0f} %).")
    if folding and folding.value > 0:
        warnings.append(f"The field folds in {_number(folding)} of the voxels: it is not plausible there.")
    unknown = [_words(name)[0] for name, measure in measures.items() if not math.isfinite(measure.value)]
    if unknown:
        warnings.append(f"Could not be computed: {', '.join(dict.fromkeys(unknown))}.")
    return warnings


def _case_warnings(cases: Sequence[str], per_case: Mapping[str, Array]) -> list[str]:
    """The same for single cases, which a good mean hides."""
    found: dict[str, NDArray[np.bool_]] = {}
    if {"tre_mean_before", "tre_mean_after"} <= per_case.keys():
        found["Mean TRE rose"] = per_case["tre_mean_after"] > per_case["tre_mean_before"]
    if "share_improved" in per_case:
        found[f"Less than {ENOUGH_IMPROVED:.0f} % of the landmarks came closer"] = (
            per_case["share_improved"] < ENOUGH_IMPROVED
        )
    if "folding" in per_case:
        found["The field folds"] = per_case["folding"] > 0
    warnings = []
    for what, where in found.items():
        names = [case for case, is_there in zip(cases, where, strict=True) if is_there]
        if names:
            more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
            warnings.append(f"{what} in {len(names)} of {len(cases)} cases: {', '.join(names[:MOST_NAMED])}{more}.")
    return warnings


def _measure_rows(measures: Mapping[str, Measure]) -> list[dict[str, str]]:
    """Rows of the table of measures: what, unit, before, after the affine pre-alignment, after."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for name, measure in measures.items():
        words, when = _words(name)
        row = rows.setdefault((words, measure.unit), {"words": words, "unit": measure.unit, **dict.fromkeys(_WHEN, "")})
        row[when] = _number(measure, unit=False)
        if measure.sd is not None and measure.median is not None:
            sd, median = (_number(Measure(value, measure.unit), unit=False) for value in (measure.sd, measure.median))
            row[when] += f" ± {sd} (median {median})"
    return list(rows.values())


def _measures_of_page(measures: Mapping[str, Measure]) -> dict[str, Any]:
    rows = _measure_rows(measures)
    return {"rows": rows, "has_affine": _has_affine(rows)}


def _has_affine(rows: Sequence[Mapping[str, str]]) -> bool:
    return any(row["affine"] for row in rows)


def _words(name: str) -> tuple[str, str]:
    """A measure in words, and whether it was taken before, after the affine part or after; the latter if not said.

    >>> _words("tre_mean_before_voxel")
    ('TRE, mean', 'before')
    """
    parts = name.split("_")
    when = next((when for when in _WHEN if when in parts), "after")
    stem = "_".join(part for part in parts if part not in ("before", "affine", "after", "voxel"))
    return WORDS.get(stem, stem.replace("_", " ")), when


def _number(measure: Measure, unit: bool = True) -> str:
    """A measure as readers want it.

    >>> _number(Measure(1.234, "mm")), _number(Measure(0.00123, "%")), _number(Measure(0.91249, "1"))
    ('1.23 mm', '0.0012 %', '0.912')
    """
    value = measure.value
    if not math.isfinite(value):
        return "not known"
    decimals = {"mm": 2, "%": 1, "voxel": 2}.get(measure.unit, 3)
    text = f"{value:.{decimals}f}" if value == 0 or abs(value) >= 10**-decimals else f"{value:.2g}"
    return f"{text} {measure.unit}" if unit and measure.unit != "1" else text


def _worst_landmarks(landmarks: Landmarks) -> list[dict[str, str]]:
    worst = np.argsort(-landmarks.after, kind="stable")[:WORST_SHOWN]
    return [
        {
            "label": landmarks.labels[index],
            "before": f"{landmarks.before[index]:.2f}",
            "after": f"{landmarks.after[index]:.2f}",
            "change": f"{landmarks.after[index] - landmarks.before[index]:+.2f}",
        }
        for index in worst
    ]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[dict[str, str]]:
    """Leaves of a nested dictionary with their path of keys."""
    rows = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{prefix}{key} / ")
        else:
            rows.append({"key": f"{prefix}{key}", "value": value if isinstance(value, str) else json.dumps(value)})
    return rows


def _write_page(folder: Path, context: dict[str, Any], illustrations: Sequence[Illustration]) -> Path:
    images = {illustration.name: figures.png(illustration.draw()) for illustration in illustrations}
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    html = template.from_string(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")).render(
        **context,
        figures=[
            {
                "title": shown.title,
                "caption": shown.caption,
                "data": base64.b64encode(images[shown.name]).decode("ascii"),
            }
            for shown in illustrations
        ],
    )
    (folder / "figures").mkdir(exist_ok=True)
    for name, image in images.items():
        _replace(folder / "figures" / f"{name}.png", image)
    return _replace(folder / "report.html", html.encode("utf-8"))


def _replace(path: Path, content: bytes) -> Path:
    """Write a file that is at no time half there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
