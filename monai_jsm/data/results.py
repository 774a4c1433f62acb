"""The files of a finished registration and of an evaluation."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import platform
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil

from monai_jsm.data.errors import InputError
from monai_jsm.data.fields import file_affine, place_itk, write_field
from monai_jsm.data.images import data_file

__all__ = [
    "EXPORTS",
    "check_folder",
    "check_replaceable",
    "clear_leftovers",
    "file_hash",
    "is_finished",
    "provenance",
    "told_of",
    "write_evaluation",
    "write_image",
    "write_pairs_table",
    "write_registration",
]

EXPORTS = {
    "mha": "field.mha",
    "nrrd": "field.nrrd",
    "h5": "transform.h5",
    "fsl": "field_fsl.nii.gz",
    "learn2reg": "disp_learn2reg.nii.gz",
    "dicom": "registration.dcm",
}
"""Further formats that a field is written in, and the file of a result that holds each."""

_IMAGES = ("warped", "joint_saliency", "trust", "jacobian", "field", "inverse_field")
_RESULT_FILES = {
    *(f"{name}.nii.gz" for name in _IMAGES),
    *("metrics.json", "landmarks.csv", "report.html", "figures", "dicom", "fixed_image.nii", "moving_image.nii"),
    *EXPORTS.values(),
}
_SIDES = ("fixed", "moving", "carried")
_ERRORS = tuple(f"{when}_{unit}" for unit in ("mm", "voxel") for when in ("before", "affine", "after"))
_FRAMES = {
    "world": "RAS, mm",
    "voxel": "array-axis order, the first voxel's centre at 0, grid of the fixed image",
    "field": "ITK displacement, mm, LPS, fixed grid: warped(p) = moving(p + field(p))",
    "inverse_field": "ITK displacement, mm, LPS, moving grid, back from moving to fixed",
    "theta": "linear part on world coordinates, RAS, mm, fixed to moving; field contains it",
}


def provenance() -> dict[str, Any]:
    """What made a result: versions of the packages, the interpreter, the command, and the frames of its numbers."""
    packages = ("monai", "torch", "numpy", "nibabel", "SimpleITK", "pydicom")
    versions = {"monai_jsm": _own_version(), **{name: metadata.version(name) for name in packages}}
    return {
        "versions": {**versions, "python": platform.python_version()},
        "command": shlex.join(sys.argv),
        "frame": dict(_FRAMES),
    }


def _own_version() -> str:
    from monai_jsm import __version__  # the package's own init, which imports nothing

    return __version__


def told_of(seed: int | None, weights: str | Path | None) -> dict[str, Any]:
    """Entries of ``metrics.json`` on how a result was made: the seed, and the file of the weights with its hash."""
    told: dict[str, Any] = {} if seed is None else {"seed": seed}
    if weights is not None:
        told["weights"] = {"path": str(weights), "sha256": file_hash(weights)}
    return told


def write_registration(
    folder: str | Path,
    case: Mapping[str, Any],
    images: Mapping[str, tuple[np.ndarray, np.ndarray]],
    made_by: Mapping[str, Any],
    also: Sequence[Callable[[Path], object]] = (),
) -> None:
    """Write one registered pair; the folder is complete or absent, and one that was there is replaced.

    Args:
        folder: to be made.
        case: ``id``, ``inputs`` (role to path, or to ``path`` and ``sha256``), ``measures`` (name to ``value`` and
            ``unit``), ``warnings``, ``landmarks`` (see :func:`write_evaluation`).
        images: name to array and voxel-to-world matrix (RAS, mm): maps (*S), and fields (D, *S), mm, LPS, whose names
            end in ``field``.
        made_by: further entries of ``metrics.json``; those of the case prevail.
        also: called with the folder while it is being built, to write more files into it.

    Raises:
        InputError: if the folder is there and holds more than an older result of the same case, or one of the inputs.
    """
    folder = Path(folder).resolve()
    inputs = {
        role: entry if isinstance(entry, Mapping) else {"path": str(entry), "sha256": file_hash(entry)}
        for role, entry in case["inputs"].items()
    }
    files = {role: entry["path"] for role, entry in inputs.items() if os.path.isabs(entry["path"])}
    check_replaceable(folder, {"id": case["id"], **files})
    made = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-{os.getpid()}-", dir=folder.parent))
    try:
        for name, (array, affine) in images.items():
            if name.endswith("field"):
                write_field(building / f"{name}.nii.gz", array, affine)
            else:
                values = np.asarray(array, dtype=np.float32)
                nib.save(nib.Nifti1Image(values, file_affine(affine, values.ndim)), building / f"{name}.nii.gz")
        told = {
            key: case[key] for key in ("id", "landmark_space", "measures", "warnings", "series", "theta") if key in case
        }
        _replace(building / "metrics.json", _json({**made_by, **told, "inputs": inputs, **provenance()}))
        if case["landmarks"]:
            _replace(building / "landmarks.csv", _landmark_table([case]))
        for write in also:
            write(building)
        building.chmod(0o755)
        _swap(building, folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # another process may have put something there
                parent.rmdir()
        raise


def _swap(building: Path, folder: Path) -> None:
    """Put a folder in the place of another one, which is kept until it stands there."""
    if not folder.exists():
        os.replace(building, folder)
        return
    old = building.with_name(f"{building.name}-old")
    os.replace(folder, old)
    try:
        os.replace(building, folder)
    except BaseException:
        os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def is_finished(
    folder: str | Path, case: Mapping[str, Any], made_by: Mapping[str, Any], more_files: Sequence[str] = ()
) -> bool:
    """Whether a folder holds the result of just this case: the same files, by their hashes, registered the same way.

    Args:
        folder: of the result.
        case: ``id``, ``landmark_space``, series and the paths of its files, as in a datalist.
        made_by: the entries of ``metrics.json`` that decide the result.
        more_files: names that the folder must hold beside those of every result.
    """
    expected = [*(f"{name}.nii.gz" for name in _IMAGES), "report.html", *more_files]
    if not all((Path(folder) / name).exists() for name in expected):
        return False
    try:
        record = json.loads((Path(folder) / "metrics.json").read_text())
        made_by = {**made_by, "id": case["id"], "landmark_space": case.get("landmark_space", "")}
        made_by["series"] = {f"{s}_image": case[f"{s}_series"] for s in ("fixed", "moving") if f"{s}_series" in case}
        if any(record.get(key) != value for key, value in made_by.items()):
            return False
        if record["versions"]["monai_jsm"] != _own_version():
            return False
        roles = [key for key in case if key.rsplit("_", 1)[-1] in ("image", "label", "mask", "landmarks")]
        known = {role: entry["sha256"] for role, entry in record["inputs"].items()}
        return set(known) == set(roles) and all(known[role] == file_hash(case[role]) for role in roles)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def clear_leftovers(folder: str | Path) -> None:
    """Remove what a process that was killed left of a result that it was building."""
    folder = Path(folder)
    if folder.parent.is_dir():
        for path in folder.parent.iterdir():
            left = re.fullmatch(rf"\.{re.escape(folder.name)}-(\d+)-[a-z0-9_]{{8}}", path.name)
            if left and not psutil.pid_exists(int(left[1])):
                shutil.rmtree(path, ignore_errors=True)


def write_pairs_table(folder: str | Path, ids: Sequence[str], failed: Mapping[str, str]) -> None:
    """Write ``pairs.csv``: a row a pair, ``done`` with its measures or ``failed`` with what is wrong.

    Args:
        folder: holds a folder for each pair that is done.
        ids: of all pairs.
        failed: what is wrong with each pair that failed, by its id.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    records = {
        name: json.loads((folder / name / "metrics.json").read_text())["measures"] for name in ids if name not in failed
    }
    names = list(dict.fromkeys(name for measures in records.values() for name in measures))
    rows = [
        [
            name,
            "failed" if name in failed else "done",
            failed.get(name, ""),
            *(records.get(name, {}).get(measure, {}).get("value", "") for measure in names),
        ]
        for name in ids
    ]
    _replace(folder / "pairs.csv", _table(["id", "state", "fault", *names], rows))


def check_folder(folder: str | Path) -> None:
    """Refuse a folder that cannot be made or written into, and the working directory, which cannot be replaced.

    Raises:
        InputError: if so.
    """
    resolved = Path(folder).resolve()
    above = next(path for path in (resolved, *resolved.parents) if os.path.lexists(path))
    try:
        os.listdir(above)
        if above != resolved:
            os.rmdir(tempfile.mkdtemp(dir=above))
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be made, for {above} takes no folder; give another folder for the output."
        ) from error
    if resolved in (Path.cwd(), *Path.cwd().parents):
        raise InputError(f"{folder}: is the folder that the command runs in; give another folder for the output.")


def check_replaceable(folder: str | Path, case: Mapping[str, Any]) -> None:
    """Refuse to write a result into a folder that is something else.

    Args:
        folder: of the result.
        case: ``id`` and the paths of its files.

    Raises:
        InputError: if the folder is there and holds more than an older result of the same case, or one of its files.
    """
    check_folder(folder)
    folder = Path(folder)
    for path in case.values():
        if isinstance(path, str) and os.path.isabs(path) and folder.resolve() in Path(path).resolve().parents:
            raise InputError(f"{folder}: holds {path}, which is to be registered; give another folder for the output.")
    if not folder.exists():
        return
    try:
        record = json.loads((folder / "metrics.json").read_text())
        of_case = record["id"] == case["id"]
        for role in ("fixed_image", "moving_image"):  # those in memory are saved under their names
            mine = case[role] if isinstance(case.get(role), str) else f"{role}.nii"
            of_case &= record["inputs"].get(role, {}).get("path", f"{role}.nii") == mine
        foreign = {path.name for path in folder.iterdir()} - _RESULT_FILES
    except (OSError, ValueError, KeyError, TypeError):
        of_case, foreign = False, set()
    if foreign or not of_case:
        raise InputError(
            f"{folder}: is there already and is no result of this pair alone, so it is left as it is; "
            "give another folder for the output."
        )


def write_image(path: str | Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write a scalar image, whole or not at all.

    Args:
        path: ends in ``.nii``, ``.nii.gz``, ``.mha`` or ``.nrrd``.
        array: (*S), in the type to write.
        affine: voxel-to-world matrix (RAS, mm), (D+1, D+1) or (4, 4).

    Raises:
        InputError: if ``path`` ends otherwise, or its folder is not there.
    """
    path = Path(path)
    suffix = next((end for end in (".nii.gz", ".nii", ".mha", ".nrrd") if path.name.lower().endswith(end)), None)
    if suffix is None:
        raise InputError(f"{path}: is of a format in which no images are written; end it in .nii.gz, .mha or .nrrd.")
    if path.is_dir() or not path.parent.is_dir():
        fault = "is a folder" if path.is_dir() else "is to lie in a folder that is not there"
        raise InputError(f"{path}: {fault}; name a file in a folder that is there.")
    building = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        if suffix.startswith(".nii"):
            nib.save(nib.Nifti1Image(array, file_affine(affine, array.ndim)), building)
        else:
            import SimpleITK as sitk  # noqa: N813

            written = place_itk(sitk.GetImageFromArray(np.ascontiguousarray(array.T)), affine)
            sitk.WriteImage(written, os.fspath(building), useCompression=True)
        os.replace(building, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); give another file.") from error
    finally:
        with suppress(OSError):
            building.unlink(missing_ok=True)


def write_evaluation(
    folder: str | Path, cases: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], made_by: Mapping[str, Any]
) -> None:
    """Write ``metrics.json``, ``cases.csv`` and, of landmarks, ``landmarks.csv``, each replaced in one step.

    Args:
        folder: made if it is absent.
        cases: each with ``id``, ``measures`` (name to ``value`` and ``unit``) and ``landmarks``: rows of ``label``,
            ``fixed``, ``moving`` and ``carried`` (D world coordinates, RAS, mm) and the errors that
            :func:`monai_jsm.metrics.landmark_measures` takes.
        summary: of :func:`monai_jsm.metrics.summarise`.
        made_by: further entries of ``metrics.json``: seed, weights and their hash.

    Raises:
        InputError: if the folder cannot be made or holds a registration or other tables of these names.
    """
    check_folder(folder)
    folder = Path(folder)
    if not _is_evaluation(folder):
        raise InputError(
            f"{folder}: holds a registration or files of others, which stay as they are; "
            "give another folder for the output."
        )
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
    warnings = {case["id"]: case["warnings"] for case in cases if case.get("warnings")}
    record = {**summary, "warnings": warnings, **made_by, **provenance(), "inputs": inputs}
    _replace(folder / "metrics.json", _json(record))


def _is_evaluation(folder: Path) -> bool:
    """Whether a folder has no files of an evaluation's names, or those of one."""
    if not any((folder / name).exists() for name in ("metrics.json", "cases.csv", "landmarks.csv")):
        return True
    try:
        record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return "cases" in record and "measures" in record
    except (OSError, ValueError, TypeError):
        return False


def _landmark_table(cases: Sequence[Mapping[str, Any]]) -> str:
    first = next(row for case in cases for row in case["landmarks"])
    axes, errors = "xyz"[: len(first["fixed"])], [name for name in _ERRORS if name in first]
    header = ["case", "label", *(f"{side}_{axis}" for side in _SIDES for axis in axes), *errors]
    rows = [
        [
            case["id"],
            row["label"],
            *(f"{value:.6f}" for side in _SIDES for value in row[side]),
            *(f"{row[name]:.6f}" for name in errors),
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
    try:
        building.write_text(text, encoding="utf-8", newline="\n")
        os.replace(building, path)
    finally:
        building.unlink(missing_ok=True)


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
    """SHA-256, hexadecimal, of a file; of a folder, over the names and contents of the files directly in it.

    A detached header (``.mhd``, ``.nhdr``) counts with the file of its data.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
    elif path.suffix.lower() in (".mhd", ".nhdr"):
        files = [path, data_file(path)]
    else:
        return _sha256(path).hexdigest()
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + _sha256(file).digest())
    return digest.hexdigest()


def _sha256(path: Path) -> Any:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest
