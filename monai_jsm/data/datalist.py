"""``datalist.json``: which pairs of images a folder holds for training, validation and testing."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
from jsonschema.exceptions import ValidationError, best_match

from monai_jsm.data.errors import InputError
from monai_jsm.data.images import Grid, check_image, check_label, check_label_voxels, check_mask, check_voxels
from monai_jsm.data.landmarks import Landmarks, check_inside, match_landmarks, read_landmarks
from monai_jsm.data.progress import with_progress

__all__ = [
    "DATALIST_NAME",
    "SECTIONS",
    "check_case",
    "check_cases",
    "datalist_spatial_dims",
    "load_cases",
    "load_datalist",
    "load_pairs",
    "read_landmark_pair",
]

logger = logging.getLogger(__name__)

DATALIST_NAME = "datalist.json"
SECTIONS = ("training", "validation", "testing")

_SIDES = ("fixed", "moving")
_NO_PATHS = ("id", "subject", "fixed_series", "moving_series")
_ID = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}"  # as in the datalist's schema
_COLUMNS = {"fixed": "fixed_image", "moving": "moving_image"}  # of a table of pairs; the others have the case's names
_FILES = tuple(f"{side}_{kind}" for kind in ("image", "label", "mask", "landmarks") for side in _SIDES)


def load_datalist(folder: str | Path, section: str, allow_outside: bool = False) -> list[dict[str, str]]:
    """The cases of one section of a folder's ``datalist.json``, with absolute paths.

    Only the list is read here, and that its files exist; :func:`check_cases` reads the files.

    Args:
        folder: holds ``datalist.json``.
        section: "training", "validation" or "testing".
        allow_outside: whether files may lie outside of the folder, also through ``..`` or symbolic links.

    Returns:
        One dictionary a case: its ``id``, ``fixed_image`` and ``moving_image``, those of ``fixed_label``,
        ``moving_label``, ``fixed_mask``, ``moving_mask``, ``fixed_landmarks``, ``moving_landmarks``,
        ``fixed_outlier`` and ``moving_outlier`` that it has, and always ``landmark_space``, empty where the list does
        not declare it. An outlier is a label on the grid of its image, not zero where what the image shows has no
        counterpart in the other; registration does not see it, errors are told by the distance to it.

    Raises:
        ValueError: if there is no such section.
        InputError: if the list is absent, is not JSON, breaks its schema or has no case in the section, if two cases
            share an id, or if a file is absent or outside of the folder.
    """
    if section not in SECTIONS:
        raise ValueError(f"section must be one of {SECTIONS}, got {section!r}.")
    datalist = _read_datalist(Path(folder))
    cases = datalist.get(section, [])
    if not cases:
        raise InputError(
            f"{Path(folder) / DATALIST_NAME}: has no {section} cases; add some to its list {section!r} or use another."
        )
    root = Path(folder).absolute()
    return [
        {
            key: value if key in _NO_PATHS else _locate(root, case["id"], key, value, allow_outside)
            for key, value in case.items()
        }
        | {"landmark_space": datalist.get("landmark_space", "")}
        for case in cases
    ]


def load_cases(
    folder: str | Path, section: str, spatial_dims: int, allow_outside: bool = False
) -> list[dict[str, str]]:
    """The cases of one section, every file of theirs read once and found usable.

    Args:
        folder: holds ``datalist.json``.
        section: "training", "validation" or "testing".
        spatial_dims: D of the network that will read them.
        allow_outside: whether files may lie outside of the folder.

    Returns:
        As :func:`load_datalist`.

    Raises:
        InputError: as :func:`load_datalist` and :func:`check_cases`, or if the list declares another D.
    """
    declared = datalist_spatial_dims(folder)
    if declared != spatial_dims:
        raise InputError(
            f"{Path(folder) / DATALIST_NAME}: declares {declared} spatial dimensions where {spatial_dims} were asked "
            f"for; run with --spatial_dims {declared} and weights of that dimension."
        )
    cases = load_datalist(folder, section, allow_outside)
    check_cases(cases, spatial_dims)
    if any(f"{side}_mask" in case for case in cases for side in _SIDES):
        logger.warning(
            "%s: masks steer pre-alignment and refinement only, not the training of a network.",
            Path(folder) / DATALIST_NAME,
        )
    return cases


def datalist_spatial_dims(folder: str | Path) -> int:
    """D, the number of axes that every image of a folder's ``datalist.json`` has.

    Raises:
        InputError: if the list is absent, is not JSON or breaks its schema.
    """
    return int(_read_datalist(Path(folder))["spatial_dims"])


def check_cases(cases: Sequence[Mapping[str, str]], spatial_dims: int) -> None:
    """Read every file of the cases in full and refuse the first that cannot be used.

    A file that several cases share is read once.

    Args:
        cases: as :func:`load_datalist` returns them.
        spatial_dims: D, the number of axes that every image must have.

    Raises:
        InputError: one sentence naming the file, what is wrong and the remedy. See :func:`~.images.check_image`,
            :func:`~.images.check_label`, :func:`~.landmarks.read_landmarks`, :func:`~.landmarks.match_landmarks` and
            :func:`~.landmarks.check_inside` for what is refused.
    """
    grids: dict[tuple[str, str], Grid] = {}
    for case in with_progress(cases, "checking images"):
        _check(case, spatial_dims, grids)


def check_case(case: Mapping[str, Any], spatial_dims: int | None = None) -> int:
    """Read every file of one case in full and refuse the first that cannot be used.

    Args:
        case: as :func:`load_datalist` returns it; images, labels, masks and outliers may be in memory, MetaTensor
            (1, *S).
        spatial_dims: D; by default what the fixed image has.

    Returns:
        D.

    Raises:
        InputError: as :func:`check_cases`.
    """
    return _check(case, spatial_dims, {})


def _check(case: Mapping[str, Any], spatial_dims: int | None, known: dict[tuple[str, str], Grid]) -> int:
    grids = []
    for side in _SIDES:
        image, series = case[f"{side}_image"], case.get(f"{side}_series", "")
        if isinstance(image, str):
            grid = known.get((image, series)) or check_image(image, spatial_dims, series)
            known[image, series] = grid
        else:
            kept = [*range(image.dim() - 1), -1]
            grid = check_voxels(f"the {side} image", image[0].numpy(), image.affine.numpy()[kept][:, kept])
        spatial_dims = spatial_dims or len(grid.shape)
        if len(grid.shape) != spatial_dims:
            raise InputError(
                f"{image if isinstance(image, str) else f'the {side} image'}: is {len(grid.shape)}D where "
                f"{spatial_dims}D images are registered; give two images of the same number of axes."
            )
        for kind, check in (("label", check_label), ("mask", check_mask), ("outlier", check_label)):
            given = case.get(f"{side}_{kind}")
            if isinstance(given, str):
                check(given, spatial_dims, grid)
            elif given is not None:
                check_label_voxels(f"the {side} {kind}", given[0].numpy(), given.affine.numpy(), grid)
                if kind == "mask" and not given.any():
                    raise InputError(f"the {side} mask: is empty; mark a region or leave it out.")
        grids.append(grid)
    labels = [case[f"{side}_label"] for side in _SIDES if f"{side}_label" in case]
    if len(labels) == 1:
        named = labels[0] if isinstance(labels[0], str) else "the label"
        raise InputError(f"{named}: a label of one image cannot be compared; give that of the other image too.")
    assert spatial_dims is not None
    _check_landmarks(case, grids)
    return spatial_dims


def load_pairs(table: str | Path) -> list[dict[str, str]]:
    """The pairs of a CSV table, as cases of a datalist, with absolute paths.

    Args:
        table: a row a pair; columns ``id``, ``fixed``, ``moving`` and any of ``fixed_label``, ``moving_label``,
            ``fixed_mask``, ``moving_mask``, ``fixed_landmarks``, ``moving_landmarks``, ``landmark_space``,
            ``fixed_series``, ``moving_series``, ``subject``, which may be empty. Paths are relative to the folder of
            the table. Only the table is read here; a file that is absent is the fault of its pair alone.

    Returns:
        One dictionary a pair, see :func:`load_datalist`.

    Raises:
        InputError: if the table is absent, is not CSV, lacks or has other columns, or an id is missing, repeated or
            unfit to name a folder.
    """
    table = Path(table)
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows = [{key: value for key, value in row.items() if value} for row in reader]
            columns = list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: cannot be read as a CSV table in UTF-8; name a table of pairs.") from error
    optional = {*_FILES, *_NO_PATHS, "landmark_space"} - {"id", *_COLUMNS.values()}
    strange = [name for name in columns if name not in {"id", *_COLUMNS, *optional}]
    missing = [name for name in ("id", *_COLUMNS) if name not in columns]
    if missing or strange:
        fault = f"lacks the columns {','.join(missing)}" if missing else f"has the unknown columns {','.join(strange)}"
        known = ",".join(sorted(optional))
        raise InputError(f"{table}: {fault}; name id,fixed,moving and any of {known} in its first line.")
    if not rows:
        raise InputError(f"{table}: lists no pairs; give a row a pair.")
    cases: list[dict[str, str]] = []
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        empty = [name for name in ("id", *_COLUMNS) if name not in row]
        if empty or None in row:
            fault = f"has nothing in the columns {', '.join(empty)}" if empty else "has more fields than the first line"
            raise InputError(f"{table}: row {number} {fault}; correct it.")
        if not re.fullmatch(_ID, row["id"]) or row["id"] in (*seen, "pairs.csv"):
            fault = "stands twice" if row["id"] in seen else "cannot name a folder"
            raise InputError(
                f"{table}: the id {row['id']!r} {fault}; give each pair its own of letters, digits, '.', '_' and '-'."
            )
        seen.add(row["id"])
        named = {_COLUMNS.get(key, key): value for key, value in row.items()}
        root = table.absolute().parent
        cases.append(
            {key: str(root / value) if key in _FILES else value for key, value in named.items()}
            | {"landmark_space": row.get("landmark_space", "")}
        )
    return cases


def _check_landmarks(case: Mapping[str, str], grids: Sequence[Grid]) -> None:
    paths = [case[f"{side}_landmarks"] for side in _SIDES if f"{side}_landmarks" in case]
    if not paths:
        return
    if len(paths) == 1:
        raise InputError(f"{paths[0]}: landmarks of one image cannot be compared; give those of the other image too.")
    read_landmark_pair(paths, grids, case.get("landmark_space", ""))


def read_landmark_pair(
    paths: Sequence[str | os.PathLike[str]], grids: Sequence[Grid], space: str
) -> tuple[Landmarks, Landmarks]:
    """Read the landmarks of fixed and of moving, check them against their images, and pair them up by label.

    Args:
        paths: the files of fixed and of moving.
        grids: of the images of fixed and of moving.
        space: frame of files that do not say it, as :func:`~.landmarks.read_landmarks` takes it.

    Returns:
        Both sets, positions (N, D), RAS, mm, in the order of fixed.

    Raises:
        InputError: if a file is unusable, a landmark lies outside of its image, or the two do not pair up.
    """
    read: list[Landmarks] = []
    for path, grid in zip(paths, grids, strict=True):
        landmarks = read_landmarks(path, space, grid.affine)
        found, axes = landmarks.positions.shape[1], len(grid.shape)
        if found != axes:
            raise InputError(
                f"{path}: has {found} coordinates a row where its image has {axes} axes; "
                "give the landmarks of this image."
            )
        try:
            check_inside(landmarks, grid.shape, grid.affine)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        read.append(landmarks)
    try:
        return match_landmarks(*read)
    except InputError as error:
        raise InputError(f"{paths[0]} and {paths[1]}: {error}") from error


def _read_datalist(folder: Path) -> dict[str, Any]:
    path = folder / DATALIST_NAME
    try:
        datalist = json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{path}: there is no such file; name a folder that holds one, or make one with monai-jsm prepare."
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give yourself the right to read it.") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{path}: is not JSON ({error.msg} at {place}); correct it there.") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or nested without end
        raise InputError(f"{path}: cannot be read as JSON in UTF-8; write it again.") from error
    schema = json.loads(resources.files(__package__).joinpath("datalist_schema.json").read_text(encoding="utf-8"))
    violation = best_match(jsonschema.Draft202012Validator(schema).iter_errors(datalist))
    if violation is not None:
        raise InputError(f"{path}: {_explain(violation, datalist)}; correct it there.")
    seen: set[str] = set()
    for case_id in (case["id"] for section in SECTIONS for case in datalist.get(section, [])):
        if case_id in seen:
            raise InputError(f"{path}: has two cases with the id {case_id!r}; give each case its own.")
        seen.add(case_id)
    return datalist


def _explain(violation: ValidationError, datalist: Any) -> str:
    """Where the list breaks its schema, and how, in words that fit into a sentence."""
    place = list(violation.absolute_path)
    where = "the list"
    if len(place) == 1:
        where = f"key {place[0]!r}"
    elif place:
        case = datalist[place[0]][place[1]]
        name = f" (id {case['id']!r})" if isinstance(case, dict) and "id" in case else ""
        key = f", key {place[2]!r}" if len(place) > 2 else ""
        where = f"case {place[0]}[{place[1]}]{name}{key}"
    if violation.validator == "dependentRequired":
        return f"{where} has only one of fixed_landmarks and moving_landmarks"
    message = " ".join(violation.message.split())
    if len(message) > 200:
        message = f"{reprlib.repr(violation.instance)} breaks the rule {violation.validator}"
    return f"{where}: {message}"


def _locate(root: Path, case_id: str, key: str, value: str, allow_outside: bool) -> str:
    """The absolute path of a case's file, left unresolved: a link may carry the suffix that tells the format."""
    path = root / value
    place = f"{root / DATALIST_NAME}: {key} of case {case_id!r}"
    if not os.path.exists(path):
        raise InputError(f"{place} names {value!r}, which does not exist; correct the path.")
    if allow_outside:
        return str(path)
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(
            f"{place} names {value!r}, which lies outside of the folder; move it inside or give --allow-outside."
        )
    if path.suffix.lower() in (".mhd", ".nhdr"):
        raise InputError(
            f"{place} names {value!r}, whose data may lie outside of the folder; "
            "store it as .mha, .nrrd or .nii.gz or give --allow-outside."
        )
    return str(path)
