"""The files of a finished registration and of an evaluation."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from monai_jsm.data.errors import InputError
from monai_jsm.data.fields import file_affine, write_field

__all__ = ["file_hash", "provenance", "write_evaluation", "write_registration"]

_MAPS = ("warped", "joint_saliency", "trust", "jacobian")
_RESULT_FILES = {
    *(f"{name}.nii.gz" for name in (*_MAPS, "field")),
    *("metrics.json", "landmarks.csv", "report.html", "figures"),
}
_SIDES = ("fixed", "moving", "carried")
_ERRORS = ("before_mm", "after_mm", "before_voxel", "after_voxel")
_FRAMES = {
    "world": "RAS, mm",
    "voxel": "array-axis order, the first voxel's centre at 0, grid of the fixed image",
    "field": "ITK displacement, mm, LPS, fixed grid: warped(p) = moving(p + field(p))",
}


def provenance() -> dict[str, Any]:
    """What made a result: versions of the packages, the interpreter, the command, and the frames of its numbers."""
    packages = ("monai", "torch", "numpy", "nibabel")
    versions = {"monai_jsm": _own_version(), **{name: metadata.version(name) for name in packages}}
    return {
        "versions": {**versions, "python": platform.python_version()},
        "command": shlex.join(sys.argv),
        "frame": dict(_FRAMES),
    }


def _own_version() -> str:
    from monai_jsm import __version__  # the package's own init, which imports nothing

    return __version__


def write_registration(
    folder: str | Path,
    case: Mapping[str, Any],
    images: Mapping[str, np.ndarray],
    affine: np.ndarray,
    made_by: Mapping[str, Any],
) -> None:
    """Write one registered pair; the folder is complete or absent, and one that was there is replaced.

    Args:
        folder: to be made.
        case: ``id``, ``inputs`` (role to path), ``measures`` (name to ``value`` and ``unit``), ``landmarks`` (see
            :func:`write_evaluation`).
        images: ``warped``, ``joint_saliency``, ``trust``, ``jacobian``, each (*S), and ``field``, (D, *S), mm, LPS.
        affine: voxel-to-world matrix (RAS, mm) of the fixed grid.
        made_by: further entries of ``metrics.json``: seed, weights and their hash.

    Raises:
        InputError: if the folder is there and holds more than an older result of the same case, or one of the inputs.
    """
    folder = Path(folder)
    _check_replaceable(folder, case["id"])
    _check_inputs_outside(folder, case["inputs"].values())
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name in _MAPS:
            values = np.asarray(images[name], dtype=np.float32)
            nib.save(nib.Nifti1Image(values, file_affine(affine, values.ndim)), building / f"{name}.nii.gz")
        write_field(building / "field.nii.gz", images["field"], affine)
        inputs = {role: {"path": str(path), "sha256": file_hash(path)} for role, path in case["inputs"].items()}
        record = {"id": case["id"], "inputs": inputs, "measures": case["measures"], **made_by, **provenance()}
        (building / "metrics.json").write_text(_json(record))
        if case["landmarks"]:
            (building / "landmarks.csv").write_text(_landmark_table([case]))
        building.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(building, folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _check_replaceable(folder: Path, case_id: str) -> None:
    if not folder.exists():
        return
    try:
        of_case = json.loads((folder / "metrics.json").read_text())["id"] == case_id
        foreign = {path.name for path in folder.iterdir()} - _RESULT_FILES
    except (OSError, ValueError, KeyError, TypeError):
        of_case, foreign = False, set()
    if foreign or not of_case:
        raise InputError(
            f"{folder}: is there already and is no result of the pair {case_id} alone, so it is left as it is; "
            "give another --output_dir."
        )


def _check_inputs_outside(folder: Path, inputs: Iterable[str | Path]) -> None:
    for path in inputs:
        if folder.resolve() in Path(path).resolve().parents:
            raise InputError(f"{folder}: holds {path}, which is to be registered; give another --output_dir.")


def write_evaluation(
    folder: str | Path, cases: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], made_by: Mapping[str, Any]
) -> None:
    """Write ``metrics.json``, ``cases.csv`` and, of landmarks, ``landmarks.csv``, each replaced in one step.

    Args:
        folder: made if it is absent.
        cases: each with ``id``, ``measures`` (name to ``value`` and ``unit``) and ``landmarks``: rows of ``label``,
            ``fixed``, ``moving`` and ``carried`` (D world coordinates, RAS, mm), ``before_mm``, ``after_mm``,
            ``before_voxel``, ``after_voxel``.
        summary: of :func:`monai_jsm.metrics.summarise`.
        made_by: further entries of ``metrics.json``: seed, weights and their hash.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = list(summary["measures"])
    rows = [[case["id"], *(case["measures"].get(name, {}).get("value", "") for name in names)] for case in cases]
    if any(case["landmarks"] for case in cases):
        _replace(folder / "landmarks.csv", _landmark_table(cases))
    else:
        (folder / "landmarks.csv").unlink(missing_ok=True)  # of an earlier evaluation
    _replace(folder / "cases.csv", _table(["case", *names], rows))
    inputs = {
        case["id"]: {role: {"path": str(path), "sha256": file_hash(path)} for role, path in case["inputs"].items()}
        for case in cases
    }
    _replace(folder / "metrics.json", _json({**summary, **made_by, **provenance(), "inputs": inputs}))


def _landmark_table(cases: Sequence[Mapping[str, Any]]) -> str:
    dims = next((len(row["fixed"]) for case in cases for row in case["landmarks"]), 0)
    header = ["case", "label", *(f"{side}_{axis}" for side in _SIDES for axis in "xyz"[:dims]), *_ERRORS]
    rows = [
        [
            case["id"],
            row["label"],
            *(f"{value:.6f}" for side in _SIDES for value in row[side]),
            *(f"{row[name]:.6f}" for name in _ERRORS),
        ]
        for case in cases
        for row in case["landmarks"]
    ]
    return _table(header, rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _replace(path: Path, text: str) -> None:
    building = path.with_name(f".{path.name}.{os.getpid()}")
    building.write_text(text)
    os.replace(building, path)


def _json(record: Any) -> str:
    return json.dumps(_finite(record), indent=2, allow_nan=False) + "\n"


def _finite(record: Any) -> Any:
    """The record with null in place of numbers that JSON does not know."""
    if isinstance(record, Mapping):
        return {key: _finite(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [_finite(value) for value in record]
    return None if isinstance(record, float) and not math.isfinite(record) else record


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
