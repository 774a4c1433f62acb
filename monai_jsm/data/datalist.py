"""``datalist.json``: which pairs of images a folder holds for training, validation and testing."""

from __future__ import annotations

import json
import logging
import os
import reprlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
from jsonschema.exceptions import ValidationError, best_match

from monai_jsm.data.errors import InputError
from monai_jsm.data.images import Grid, check_image, check_label, check_mask
from monai_jsm.data.landmarks import Landmarks, check_inside, match_landmarks, read_landmarks
from monai_jsm.data.progress import with_progress

__all__ = ["DATALIST_NAME", "SECTIONS", "check_cases", "datalist_spatial_dims", "load_cases", "load_datalist"]

logger = logging.getLogger(__name__)

DATALIST_NAME = "datalist.json"
SECTIONS = ("training", "validation", "testing")

_SIDES = ("fixed", "moving")


def load_datalist(folder: str | Path, section: str, allow_outside: bool = False) -> list[dict[str, str]]:
    """The cases of one section of a folder's ``datalist.json``, with absolute paths.

    Only the list is read here, and that its files exist; :func:`check_cases` reads the files.

    Args:
        folder: holds ``datalist.json``.
        section: "training", "validation" or "testing".
        allow_outside: whether files may lie outside of the folder, also through ``..`` or symbolic links.

    Returns:
        One dictionary a case: its ``id``, ``fixed_image`` and ``moving_image``, those of ``fixed_label``,
        ``moving_label``, ``fixed_mask``, ``moving_mask``, ``fixed_landmarks`` and ``moving_landmarks`` that it has,
        and always ``landmark_space``, empty where the list does not declare it.

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
            key: value if key == "id" else _locate(root, case["id"], key, value, allow_outside)
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
        logger.warning("%s: masks are checked and carried along but weigh nothing yet.", Path(folder) / DATALIST_NAME)
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
    grids: dict[str, Grid] = {}
    for case in with_progress(cases, "checking images"):
        for side in _SIDES:
            path = case[f"{side}_image"]
            grid = grids[path] if path in grids else check_image(path, spatial_dims)
            grids[path] = grid
            if f"{side}_label" in case:
                check_label(case[f"{side}_label"], spatial_dims, grid)
            if f"{side}_mask" in case:
                check_mask(case[f"{side}_mask"], spatial_dims, grid)
        _check_landmarks(case, [grids[case[f"{side}_image"]] for side in _SIDES], spatial_dims)


def _check_landmarks(case: Mapping[str, str], grids: Sequence[Grid], spatial_dims: int) -> None:
    paths = [case[f"{side}_landmarks"] for side in _SIDES if f"{side}_landmarks" in case]
    if not paths:
        return
    if len(paths) == 1:
        raise InputError(f"{paths[0]}: landmarks of one image cannot be compared; give those of the other image too.")
    read: list[Landmarks] = []
    for path, grid in zip(paths, grids, strict=True):
        landmarks = read_landmarks(path, case.get("landmark_space", ""), grid.affine)
        found = landmarks.positions.shape[1]
        if found != spatial_dims:
            raise InputError(
                f"{path}: has {found} coordinates a row where its image has {spatial_dims} axes; "
                "give the landmarks of this image."
            )
        try:
            check_inside(landmarks, grid.shape, grid.affine)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        read.append(landmarks)
    try:
        match_landmarks(*read)
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
