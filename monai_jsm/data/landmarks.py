"""Landmark files: a label and a position a row, turned into RAS world coordinates as they are read.

========== ======================================================== ==================================================
layout     file                                                     frame
========== ======================================================== ==================================================
plain      CSV, ``label,x,y`` or ``label,x,y,z``                    to be declared
slicer     3D Slicer markups, ``.mrk.json``                         its ``coordinateSystem``, else LPS
fcsv       3D Slicer fiducials, ``.fcsv``                           its ``CoordinateSystem``, else RAS
elastix    text: ``point`` or ``index``, the count, a row each;     LPS, mm (``point``), voxels, first at 0 (``index``)
           also ``outputpoints.txt``, read by ``OutputPoint``
ants       CSV, ``x,y,z,t`` and further columns                     LPS, mm
bratsreg   CSV, ``Landmark,X,Y,Z``                                  LPS, mm
birl       CSV, ``,X,Y`` or ``id,X,Y``, as in ANHIR                 pixels, x right, y down, first at 0
learn2reg  CSV without a header                                     to be declared; by custom ``voxel0``
dirlab     numbers parted by blanks or tabs, no header              to be declared; by custom ``voxel1``
========== ======================================================== ==================================================
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from monai_jsm.data.errors import InputError
from monai_jsm.geometry import voxel_to_world, world_to_voxel

__all__ = [
    "LANDMARK_SPACES",
    "Landmarks",
    "check_inside",
    "landmark_layout",
    "match_landmarks",
    "read_landmarks",
    "write_landmarks",
]

logger = logging.getLogger(__name__)

LANDMARK_SPACES = ("lps", "ras", "voxel0", "voxel1")
"""Frames a file may be in: mm in LPS or RAS axes, or voxels in array-axis order with the first voxel at 0 or at 1."""

_AXES = ("x", "y", "z")
_MOST_MM = 1e4  # ten metres: no image of a body reaches there
_ZERO_MM = 1e-6
_SLICER_FRAMES = {"LPS": "lps", "RAS": "ras", "1": "lps", "0": "ras"}  # numbers before Slicer 4.11
_SLICER_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
_FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"

_SUFFIX_LAYOUTS = {".json": "slicer", ".fcsv": "fcsv", ".csv": "plain", ".txt": "elastix", ".pts": "elastix"}
_WRITTEN_FRAMES = {
    **{"plain": "", "learn2reg": "", "dirlab": ""},  # the caller's
    **{"slicer": "lps", "fcsv": "lps", "elastix": "lps", "ants": "lps", "bratsreg": "lps", "birl": "voxel0"},
}
_ALWAYS_3D = ("slicer", "fcsv", "ants", "bratsreg")


class Landmarks(NamedTuple):
    """Named points of one image.

    Attributes:
        labels: one name a landmark, all different.
        positions: (N, D), float64, RAS, mm.
        may_be_absent: whether the layout of their file documents that a landmark not found in the image is left out.
    """

    labels: tuple[str, ...]
    positions: np.ndarray
    may_be_absent: bool = False


class _Content(NamedTuple):
    """What a file holds, in its own frame, "" where it does not say it; a label is "" where the file has none."""

    layout: str
    frame: str
    labels: list[str]
    points: list[list[float]]


def read_landmarks(path: str | os.PathLike[str], space: str, affine: np.ndarray | None) -> Landmarks:
    """Read a file of landmarks in any layout of this module.

    ``.json`` and ``.fcsv`` are Slicer's; the layout of any other file is told from its first line. The columns of a
    plain table stand in any order. Tables may be parted by commas, semicolons or tabs; a decimal comma is understood
    where commas do not part columns. Where no landmark has a label, the labels are the row numbers from "0".

    Points whose ``positionStatus`` in Slicer is not "defined" are refused: Slicer keeps them in its list, and to leave
    them out here would change what is measured. ``index`` files of elastix hold whole voxels and are read as such;
    elastix itself would cut fractions off.

    Args:
        path: the file, UTF-8.
        space: the frame of its numbers, one of ``LANDMARK_SPACES``, for files that do not say it; "" is not declared.
            A file that says its own frame is read by what it says.
        affine: voxel-to-world matrix of the image that the landmarks belong to (RAS, mm), (D+1, D+1) or 4x4. Where it
            is 3x3, three coordinates are accepted if the last is that of the first slice. None if there is no image:
            then the file must be in mm, and D is the number of its coordinates.

    Returns:
        The landmarks in the order of the file.

    Raises:
        InputError: if the frame is neither said nor declared, or the file is absent, empty, damaged or of no known
            layout, has text or NaN where a number must stand, a missing or repeated label, not D coordinates a row,
            several lists, another unit than mm, a coordinate beyond 10 000 mm, or voxels without an affine.

    Reference:
        3D Slicer: vtkMRMLMarkupsJsonStorageNode, vtkMRMLMarkupsFiducialStorageNode. elastix:
        itkTransformixInputPointFileReader. ANTs: antsApplyTransformsToPoints.
    """
    path = Path(path)
    _check_space(path, space, ("", *LANDMARK_SPACES))
    content = _read_content(path)
    if not content.points:
        raise InputError(f"{path}: holds no landmarks; mark some and save it again.")
    if not content.frame:
        _check_space(path, space, LANDMARK_SPACES, content.layout)
    frame = content.frame or space
    labels = _checked_labels(path, content.labels)
    affine = _checked_affine(path, frame, affine, dims=len(content.points[0]))
    points = _checked_points(path, content, frame, affine.shape[0] - 1)
    return Landmarks(labels, _to_world(points, frame, affine), may_be_absent=content.layout == "bratsreg")


def landmark_layout(path: str | os.PathLike[str]) -> str:
    """Tell the layout of a landmark file, to write another one alike.

    Args:
        path: the file, UTF-8.

    Returns:
        A name from the table of this module, as :func:`write_landmarks` takes it.

    Raises:
        InputError: if the file is absent, damaged or of no known layout.
    """
    return _read_content(Path(path)).layout


def write_landmarks(
    path: str | os.PathLike[str], landmarks: Landmarks, space: str, affine: np.ndarray | None, layout: str = ""
) -> None:
    """Write landmarks to a file that :func:`read_landmarks` reads back to within 1e-6 mm.

    The file appears under its name only when complete. Slicer, ANTs and BraTS-Reg know three coordinates only: those
    of a 2D image get a z of 0. elastix, Learn2Reg and DIR-Lab hold no labels: theirs are lost.

    Args:
        path: the file to write; its suffix is ``.mrk.json``, ``.fcsv``, ``.csv``, ``.txt`` or ``.pts``.
        landmarks: labels and positions, (N, D), RAS, mm.
        space: the frame to write, one of ``LANDMARK_SPACES``, in plain, Learn2Reg and DIR-Lab files; the other layouts
            say their frame themselves and take no notice of it.
        affine: voxel-to-world matrix of the image that the landmarks belong to (RAS, mm), (D+1, D+1) or 4x4. None if
            there is no image: then the file must be in mm.
        layout: a name from the table of this module; "" is the usual one of the suffix: plain for ``.csv``, elastix
            for ``.txt`` and ``.pts``. ``.mrk.json`` and ``.fcsv`` have but one.

    Raises:
        InputError: if the suffix is unknown or has another layout, the frame is unknown, not declared or one of voxels
            without an affine, 3D landmarks are to be written in the layout of BIRL, or the file cannot be written.
        ValueError: if there is no such layout.
    """
    path = Path(path)
    if layout not in ("", *_WRITTEN_FRAMES):
        raise ValueError(f"layout must be one of {tuple(_WRITTEN_FRAMES)}, got {layout!r}.")
    usual = _SUFFIX_LAYOUTS.get(path.suffix.lower())
    if usual is None:
        raise InputError(
            f"{path}: has no suffix of a landmark file; name it .mrk.json, .fcsv, .csv, .txt or .pts instead."
        )
    layout = layout or usual
    if layout != usual and {layout, usual} & {"slicer", "fcsv"}:
        raise InputError(f"{path}: cannot hold landmarks in the layout {layout}; give the suffix of that layout.")
    if not _WRITTEN_FRAMES[layout]:
        _check_space(path, space, LANDMARK_SPACES)
    frame = _WRITTEN_FRAMES[layout] or space
    affine = _checked_affine(path, frame, affine, dims=landmarks.positions.shape[1])
    points = _from_world(landmarks.positions, frame, affine)
    if layout == "birl" and points.shape[1] != 2:
        raise InputError(f"{path}: the layout birl holds pixels of 2D images only; choose another layout.")
    if layout in _ALWAYS_3D:
        points = np.pad(points, ((0, 0), (0, 3 - points.shape[1])))
    _replace(path, _text(layout, landmarks.labels, points))


def match_landmarks(fixed: Landmarks, moving: Landmarks) -> tuple[Landmarks, Landmarks]:
    """Pair two sets of landmarks by label.

    Returns:
        Both sets in the order of ``fixed``. They hold every landmark of either, but for those that one set lacks
        because its file leaves absent ones out (``may_be_absent``): a warning tells how many.

    Raises:
        InputError: if a label occurs twice in one set, only in one of the two, or no landmark is left.

    Example:
        >>> fixed = Landmarks(("apex", "base"), np.array([[1.0, 2.0], [3.0, 4.0]]))
        >>> moving = Landmarks(("base", "apex"), np.array([[3.5, 4.5], [1.5, 2.5]]))
        >>> match_landmarks(fixed, moving)[1].positions.tolist()
        [[1.5, 2.5], [3.5, 4.5]]
    """
    for name, landmarks in (("fixed", fixed), ("moving", moving)):
        if (repeated := _repeated(landmarks.labels)) is not None:
            raise InputError(f"the {name} landmarks hold the label {repeated!r} twice; give each its own label.")
    counts = f"{len(fixed.labels)} fixed and {len(moving.labels)} moving landmarks"
    only_fixed = [label for label in fixed.labels if label not in set(moving.labels)]
    only_moving = [label for label in moving.labels if label not in set(fixed.labels)]
    common = tuple(label for label in fixed.labels if label not in set(only_fixed))
    unexplained = ([] if moving.may_be_absent else only_fixed) + ([] if fixed.may_be_absent else only_moving)
    if unexplained or not common:
        raise InputError(
            f"{counts} do not pair up: {_listed(unexplained or only_fixed)} in one set only; "
            "mark the same landmarks in both images."
        )
    if only_fixed or only_moving:
        logger.warning("of %s, %d are left out: the other set lacks them.", counts, len(only_fixed + only_moving))
    return _pick(fixed, common), _pick(moving, common)


def check_inside(landmarks: Landmarks, shape: Sequence[int], affine: np.ndarray) -> None:
    """Refuse landmarks that lie more than half a voxel outside of their image.

    Beyond that a displacement field says nothing, and ITK silently returns zero there.

    Args:
        landmarks: positions (N, D), RAS, mm.
        shape: the D spatial sizes of the image.
        affine: its voxel-to-world matrix (RAS, mm), (D+1, D+1) or 4x4.

    Raises:
        InputError: naming the landmarks outside and, where most are, the frame as the likely reason.
    """
    voxels = _from_world(landmarks.positions, "voxel0", affine)  # (N, D)
    slack = 0.5 + 1e-6
    inside = np.all((voxels >= -slack) & (voxels <= np.asarray(shape) - 1 + slack), axis=1)
    outside = [landmarks.labels[row] for row in np.flatnonzero(~inside)]
    if outside:
        most = len(outside) > len(landmarks.labels) / 2
        raise InputError(
            f"{len(outside)} of {len(landmarks.labels)} landmarks lie outside of the image ({_listed(outside)}); "
            + ("check the declared landmark_space first." if most else "correct or remove them.")
        )


def _check_space(path: Path, space: str, known: Sequence[str], layout: str = "") -> None:
    if space in known:
        return
    fault = f'"{space}", which is unknown' if space else "not declared"
    hint = " (Learn2Reg is voxel0, DIR-Lab is voxel1)" if layout in ("learn2reg", "dirlab") else ""
    raise InputError(
        f"{path}: the frame of its landmarks is {fault}; give --landmark-space {{{','.join(LANDMARK_SPACES)}}} or "
        f"declare landmark_space in datalist.json{hint}."
    )


def _checked_labels(path: Path, labels: list[str]) -> tuple[str, ...]:
    if not any(labels):
        return tuple(map(str, range(len(labels))))
    if "" in labels:
        raise InputError(f"{path}: landmark {labels.index('') + 1} has no label; label every landmark or none.")
    if (repeated := _repeated(labels)) is not None:
        raise InputError(f"{path}: holds the label {repeated!r} twice; give each landmark its own label.")
    control = next((label for label in labels if any(unicodedata.category(sign) == "Cc" for sign in label)), None)
    if control is not None:
        raise InputError(f"{path}: the label {control!r} holds a control character; rename the landmark.")
    return tuple(labels)


def _checked_affine(path: Path, frame: str, affine: np.ndarray | None, dims: int) -> np.ndarray:
    if affine is None and frame.startswith("voxel"):
        raise InputError(
            f"{path}: holds voxels of an image that is not given; give the image too (--source, --reference)."
        )
    return np.eye(dims + 1) if affine is None else affine


def _checked_points(path: Path, content: _Content, frame: str, image_dims: int) -> np.ndarray:
    """Coordinates (N, D) in the frame of the file, D that of the image as far as its affine tells."""
    dims = len(content.points[0])
    if dims not in (2, 3):
        raise InputError(f"{path}: has {dims} coordinates a row where 2 or 3 must stand; correct the rows.")
    ragged = next((row for row, point in enumerate(content.points) if len(point) != dims), None)
    if ragged is not None:
        raise InputError(
            f"{path}: landmark {ragged + 1} has {len(content.points[ragged])} coordinates where the first has {dims}; "
            "correct the row."
        )
    points = np.array(content.points, dtype=np.float64)  # (N, D)
    if (dims, image_dims) == (3, 2) and np.abs(points[:, 2] - (frame == "voxel1")).max() <= _ZERO_MM:
        points = points[:, :2]
    elif dims != image_dims and (dims, image_dims) != (2, 3):  # a 2D image may come with a 4x4 affine
        raise InputError(
            f"{path}: has {dims} coordinates a row where its image has {image_dims} axes; "
            "give the landmarks of this image."
        )
    far = np.flatnonzero(np.abs(points).max(axis=1) > _MOST_MM)
    if len(far) and not frame.startswith("voxel"):
        raise InputError(
            f"{path}: landmark {far[0] + 1} lies more than {_MOST_MM:.0f} mm from the origin; "
            "check the unit and the frame of the file."
        )
    return points


def _read_content(path: Path) -> _Content:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file; correct the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text; save it as a landmark file in UTF-8.") from error
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        raise InputError(f"{path}: is empty and holds no landmarks; mark some and save it again.")
    if path.name.lower().endswith(".json"):
        return _read_markups(path, text)
    if path.name.lower().endswith(".fcsv"):
        return _read_fcsv(path, lines)
    if lines[0] in ("point", "index"):
        return _read_elastix(path, lines)
    if lines[0].startswith("Point") and "OutputPoint" in lines[0]:
        return _read_transformix(path, lines)
    if all(_value(field) is not None for field in re.split(r"[;,\s]+", lines[0])):
        return _read_headerless(path, text, lines)
    return _read_table(path, text, lines[0])


def _read_markups(path: Path, text: str) -> _Content:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is cut off or not JSON; save it again from 3D Slicer.") from error
    lists = content.get("markups") if isinstance(content, dict) else None
    if not isinstance(lists, list) or not all(isinstance(entry, dict) for entry in lists):
        raise InputError(f"{path}: is JSON but no markups of 3D Slicer; give a .mrk.json file.")
    filled = [entry for entry in lists if entry.get("controlPoints")]
    if not filled:
        raise InputError(f"{path}: holds no landmarks; mark some and save it again.")
    if len(filled) > 1:
        raise InputError(f"{path}: holds {len(filled)} lists of points; save the one with the landmarks alone.")
    (markups,) = filled
    frame = _slicer_frame(path, markups.get("coordinateSystem", "LPS"))
    units = markups.get("coordinateUnits") or "mm"  # a text, or a code such as ["mm", "UCUM", "millimeter"]
    if "mm" not in (units if isinstance(units, list) else [units]):
        raise InputError(f"{path}: its coordinateUnits are {units!r} and not mm; set the length unit of Slicer to mm.")
    points = markups["controlPoints"]
    if (
        markups.get("type") != "Fiducial"
        or not isinstance(points, list)
        or not all(isinstance(point, dict) for point in points)
    ):
        raise InputError(f"{path}: holds {markups.get('type')!r} and no point list; save a point list (Fiducial).")
    labels = [str(point.get("label") or "").strip() for point in points]
    for number, (label, point) in enumerate(zip(labels, points, strict=True)):
        _check_defined(path, number, label, point.get("positionStatus", "defined"), "defined")
        if not isinstance(point.get("position"), list) or len(point["position"]) != 3:
            raise InputError(f"{path}: landmark {number + 1} ({label!r}) has no position of 3 numbers; place it.")
    numbers = [_numbers(path, row, map(repr, point["position"])) for row, point in enumerate(points)]
    return _Content("slicer", frame, labels, numbers)


def _read_fcsv(path: Path, lines: list[str]) -> _Content:
    comments = [line.lstrip("# ").partition("=") for line in lines if line.startswith("#")]
    settings = {name.strip(): value.strip() for name, _, value in comments}
    columns = [name.strip() for name in settings.get("columns", "").split(",")]
    if not {"label", *_AXES} <= set(columns):
        raise InputError(f"{path}: has no line '# columns = {_FCSV_COLUMNS}'; save it from 3D Slicer as .mrk.json.")
    frame = _slicer_frame(path, settings.get("CoordinateSystem", "RAS"))
    labels, points = [], []
    for number, row in enumerate(_csv_rows(path, [line for line in lines if not line.startswith("#")], ",")):
        fields = dict(zip([*columns, "status"], row, strict=False))  # Slicer 5 writes more fields than it names
        labels.append(fields.get("label", "").strip())
        _check_defined(path, number, labels[-1], fields.get("status", "2"), "2")
        points.append(_numbers(path, number, (fields.get(axis, "") for axis in _AXES)))
    return _Content("fcsv", frame, labels, points)


def _slicer_frame(path: Path, system: Any) -> str:
    if str(system) not in _SLICER_FRAMES:
        raise InputError(f"{path}: has the coordinate system {system!r}; save it from 3D Slicer in LPS or RAS.")
    return _SLICER_FRAMES[str(system)]


def _check_defined(path: Path, number: int, label: str, status: Any, defined: str) -> None:
    if status != defined:
        raise InputError(
            f"{path}: landmark {number + 1} ({label!r}) has the positionStatus {status!r} and not {defined!r}; "
            "place it or delete it, and its counterpart, in 3D Slicer."
        )


def _read_elastix(path: Path, lines: list[str]) -> _Content:
    rows = lines[2:]
    if lines[1:2] != [str(len(rows))]:
        raise InputError(
            f"{path}: its second line is {''.join(lines[1:2])[:80]!r} where {len(rows)} landmarks follow; "
            "write their count there."
        )
    points = [_numbers(path, number, row.split()) for number, row in enumerate(rows)]
    if lines[0] == "point":
        return _Content("elastix", "lps", [""] * len(rows), points)
    if not all(value.is_integer() for point in points for value in point):
        raise InputError(
            f"{path}: has fractions, which elastix cuts off in a file that begins with 'index'; "
            "write it in mm (LPS) and begin it with 'point'."
        )
    return _Content("elastix", "voxel0", [""] * len(rows), points)


def _read_transformix(path: Path, lines: list[str]) -> _Content:
    found = [re.match(r"Point\s+(\d+).*\bOutputPoint = \[([^]]*)]", line) for line in lines]
    labels, points = [], []
    for number, match in enumerate(found):
        if match is None:
            raise InputError(
                f"{path}: landmark {number + 1} has no OutputPoint; give the file as transformix wrote it."
            )
        labels.append(match[1])
        points.append(_numbers(path, number, match[2].split()))
    return _Content("elastix", "lps", labels, points)


def _read_headerless(path: Path, text: str, lines: list[str]) -> _Content:
    delimiter = next((sign for sign in ";," if sign in lines[0]), "")
    rows = list(_csv_rows(path, text.split("\n"), delimiter)) if delimiter else [line.split() for line in lines]
    if len(rows[0]) not in (2, 3):
        raise InputError(
            f"{path}: its first line holds {len(rows[0])} numbers and no names of columns; "
            "name them label,x,y or label,x,y,z."
        )
    points = [_numbers(path, number, row, decimal_comma=delimiter != ",") for number, row in enumerate(rows)]
    return _Content("learn2reg" if delimiter else "dirlab", "", [""] * len(rows), points)


def _read_table(path: Path, text: str, first_line: str) -> _Content:
    delimiter = next((candidate for candidate in ";\t" if candidate in first_line), ",")
    rows = list(_csv_rows(path, io.StringIO(text, newline=""), delimiter))
    header = [name.strip() for name in rows[0]] if rows else []
    layout, frame, label_name, axes = "plain", "", "label", _AXES[: 3 if "z" in map(str.lower, header) else 2]
    if header[:4] == ["x", "y", "z", "t"]:
        layout, frame = "ants", "lps"
    elif header == ["Landmark", "X", "Y", "Z"]:
        layout, frame, label_name, axes = "bratsreg", "lps", "Landmark", ("X", "Y", "Z")
    elif header in (["", "X", "Y"], ["id", "X", "Y"]):
        layout, frame, label_name, axes = "birl", "voxel0", header[0], ("X", "Y")
    else:
        header = [name.lower() for name in header]
        if sorted(header) not in (sorted(axes), sorted(("label", *axes))):
            raise InputError(
                f"{path}: its first line is {first_line[:80]!r} where the columns must be named label,x,y "
                "or label,x,y,z; name them so."
            )
    labels, points = [], []
    for number, row in enumerate(rows[1:]):
        if len(row) != len(header):
            raise InputError(
                f"{path}: landmark {number + 1} has {len(row)} fields where the header has {len(header)}; "
                "correct the row, and part columns by semicolons where numbers have a decimal comma."
            )
        fields = dict(zip(header, row, strict=True))
        labels.append(fields.get(label_name, "").strip())
        points.append(_numbers(path, number, (fields[axis] for axis in axes), decimal_comma=delimiter != ","))
    return _Content(layout, frame, labels, points)


def _csv_rows(path: Path, lines: Iterable[str], delimiter: str) -> Iterable[list[str]]:
    try:
        yield from (row for row in csv.reader(lines, delimiter=delimiter) if any(field.strip() for field in row))
    except csv.Error as error:
        raise InputError(f"{path}: is not a CSV file ({error}); save it as one.") from error


def _numbers(path: Path, number: int, fields: Iterable[str], decimal_comma: bool = False) -> list[float]:
    values = []
    for field in fields:
        value = _value(field.replace(",", ".") if decimal_comma else field)
        if value is None or not np.isfinite(value):
            raise InputError(
                f"{path}: landmark {number + 1} has {field.strip()[:80]!r} where a finite number must stand; "
                "correct the row."
            )
        values.append(value)
    return values


def _value(field: str) -> float | None:
    try:
        return None if "_" in field else float(field)  # float would take 1_0 for 10
    except ValueError:
        return None


def _text(layout: str, labels: Sequence[str], points: np.ndarray) -> str:
    """The file that :func:`_read_content` reads; ``repr`` keeps every digit of a number."""
    rows = list(zip(labels, points.tolist(), strict=True))
    if layout == "slicer":
        controls = [
            {"id": str(number), "label": label, "position": point, "positionStatus": "defined"}
            for number, (label, point) in enumerate(rows, start=1)
        ]
        markups = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": controls}
        return json.dumps({"@schema": _SLICER_SCHEMA, "markups": [markups]}, indent=2, ensure_ascii=False) + "\n"
    if layout == "elastix":
        return "\n".join(["point", str(len(rows)), *(" ".join(map(repr, point)) for _, point in rows)]) + "\n"
    header: list[str] = []
    table: list[list[Any]] = points.tolist()
    comments, delimiter = "", ","
    if layout == "plain":
        header, table = ["label", *_AXES[: points.shape[1]]], [[label, *point] for label, point in rows]
    elif layout == "ants":
        header, table = [*_AXES, "t", "label"], [[*point, 0, label] for label, point in rows]
    elif layout == "bratsreg":
        header, table = ["Landmark", "X", "Y", "Z"], [[label, *point] for label, point in rows]
    elif layout == "birl":
        header, table = ["", "X", "Y"], [[label, *point] for label, point in rows]
    elif layout == "fcsv":
        comments = f"# Markups fiducial file version = 4.13\n# CoordinateSystem = LPS\n# columns = {_FCSV_COLUMNS}\n"
        table = [[n, *point, 0, 0, 0, 1, 1, 1, 0, label, "", ""] for n, (label, point) in enumerate(rows, start=1)]
    elif layout == "dirlab":
        delimiter = "\t"
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter, lineterminator="\n").writerows([header, *table] if header else table)
    return comments + stream.getvalue()


def _replace(path: Path, text: str) -> None:
    building = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        building.write_text(text, encoding="utf-8", newline="\n")
        os.replace(building, path)
    except OSError as error:
        building.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error.strerror}); name a file that you may write.") from error


def _to_world(points: np.ndarray, space: str, affine: np.ndarray) -> np.ndarray:
    if space.startswith("voxel"):
        return voxel_to_world(torch.from_numpy(points - int(space[-1])), torch.from_numpy(affine)).numpy()
    return points * _ras_signs(points, space)


def _from_world(positions: np.ndarray, space: str, affine: np.ndarray) -> np.ndarray:
    if space.startswith("voxel"):
        return world_to_voxel(torch.from_numpy(positions), torch.from_numpy(affine)).numpy() + int(space[-1])
    return positions * _ras_signs(positions, space)


def _ras_signs(points: np.ndarray, space: str) -> np.ndarray:
    """LPS and RAS differ in the sign of x and y."""
    return np.where((space == "lps") & (np.arange(points.shape[1]) < 2), -1.0, 1.0)


def _pick(landmarks: Landmarks, labels: tuple[str, ...]) -> Landmarks:
    rows = {label: row for row, label in enumerate(landmarks.labels)}
    return Landmarks(labels, landmarks.positions[[rows[label] for label in labels]])


def _repeated(labels: Sequence[str]) -> str | None:
    return next((label for label, count in Counter(labels).items() if count > 1), None)


def _listed(labels: Sequence[str]) -> str:
    names = ", ".join(repr(label) for label in labels[:5])
    return names + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")
