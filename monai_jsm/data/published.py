"""Data sets as their authors publish them become folders with a ``datalist.json``.

Each function reads one published layout and writes one new folder, which appears under its name only when complete.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F

from monai_jsm.data.datalist import DATALIST_NAME, SECTIONS, check_cases
from monai_jsm.data.errors import InputError
from monai_jsm.data.images import read_image
from monai_jsm.data.progress import with_progress

__all__ = ["prepare_known_field", "prepare_mnist", "prepare_sunnybrook"]

_WINDOW = 128
_DIGIT_SIZE = 28
_DIGIT_MARGIN = 4
_LPS_IDENTITY = np.diag([-1.0, -1.0, 1.0, 1.0])

Case = dict[str, str]


def prepare_sunnybrook(source: str | Path, output: str | Path) -> None:
    """Sunnybrook cine MR becomes 2D pairs: end-diastole is fixed, end-systole moving.

    Every slice of every subject is a case, ``SUBJECT_sliceNN``, cut to the 128x128 window around the left ventricle:
    its middle is the rounded centre of mass of the cavity at end-diastole, moved only to stay inside the image. The
    four images of a case share the window and keep their spacing and place in the world.

    Labels are 1 in the cavity of the left ventricle and 0 elsewhere. The myocardium is left out, because it was
    outlined at end-diastole only.

    Of the sorted subjects, numbers 0, 5, 10, ... are for testing and 1, 11, 21, ... for validation, the rest for
    training, so that no subject is in two sections.

    Args:
        source: folder of ``SUBJECT_ED.nii.gz``, ``SUBJECT_ES.nii.gz``, ``SUBJECT_ED_label.nii.gz`` and
            ``SUBJECT_ES_label.nii.gz``, 3D stacks in which label 1 is the cavity of the left ventricle.
        output: the folder to make.

    Raises:
        InputError: if the source has another layout or an unusable file, or the output exists.

    Reference:
        Radau et al.: Evaluation framework for algorithms segmenting short axis cardiac MRI.
        The MIDAS Journal, 2009. https://doi.org/10.54294/g80ruo
    """
    source = _existing_folder(source, "SUBJECT_ED.nii.gz, SUBJECT_ES.nii.gz and their _label.nii.gz")
    subjects = sorted(path.name.removesuffix("_ED.nii.gz") for path in source.glob("*_ED.nii.gz"))
    if not subjects:
        raise InputError(f"{source}: holds no SUBJECT_ED.nii.gz; name the folder of the Sunnybrook stacks.")
    sections: dict[str, list[Case]] = {section: [] for section in SECTIONS}
    with _finished_folder(Path(output)) as folder:
        for number, subject in with_progress(list(enumerate(subjects)), "preparing subjects"):
            section = "testing" if number % 5 == 0 else "validation" if number % 10 == 1 else "training"
            sections[section] += _write_slices(folder, source, subject)
        description = (
            "Sunnybrook cine MR, end-diastole (fixed) and end-systole (moving), windows of 128x128 voxels around the "
            "left ventricle, nominal spacing; label 1 is the cavity of the left ventricle."
        )
        _write_datalist(folder, sections, description)


def prepare_mnist(
    source: str | Path,
    output: str | Path,
    training: int = 2000,
    validation: int = 100,
    testing: int = 200,
    seed: int = 0,
) -> None:
    """MNIST becomes 2D pairs of two different images of the same digit, a toy for deformable registration.

    Digits are doubled in size by bilinear interpolation and centred on 64x64 voxels of nominally 1 mm, upright in a
    viewer. Labels are 1 in the stroke, where the intensity is above half of 255. Training and validation
    pairs come from the training images, testing pairs from the test images, and no image is used twice.

    Args:
        source: folder of one ``.npz`` file with x_train, y_train, x_test and y_test, or of the four original IDX files
            (``train-images-idx3-ubyte`` or ``train-images.idx3-ubyte`` and so on, plain or ``.gz``).
        output: the folder to make.
        training: number of training pairs.
        validation: number of validation pairs.
        testing: number of testing pairs.
        seed: of the draw.

    Raises:
        ValueError: if a number of pairs is negative.
        InputError: if the source has another layout, an unusable file or too few digits, or the output exists.

    Reference:
        LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition.
        Proc. IEEE 86(11), 1998, 2278-2324. https://doi.org/10.1109/5.726791
    """
    if min(training, validation, testing) < 0:
        raise ValueError(f"numbers of pairs must not be negative, got {training}, {validation} and {testing}.")
    source = _existing_folder(source, "one .npz file with x_train, y_train, x_test, y_test or the four IDX files")
    digits = _read_digits(source)
    generator = np.random.default_rng(seed)
    drawn = {
        part: _same_class_pairs(source, part, digits[part][1], wanted, generator)
        for part, wanted in (("train", training + validation), ("test", testing))
    }
    pairs = {
        "training": ("train", drawn["train"][:training]),
        "validation": ("train", drawn["train"][training:]),
        "testing": ("test", drawn["test"]),
    }
    sections: dict[str, list[Case]] = {}
    with _finished_folder(Path(output)) as folder:
        for section, (part, rows) in pairs.items():
            images, classes = digits[part]
            sections[section] = []
            for fixed, moving in with_progress(rows.tolist(), f"writing {section} pairs"):
                case_id = f"{part}_{fixed:05d}_{moving:05d}_digit_{classes[fixed]}"
                fixed_image, moving_image = _enlarge(images[[fixed, moving]])
                arrays = {
                    "fixed_image": fixed_image,
                    "moving_image": moving_image,
                    "fixed_label": (fixed_image > 127).astype(np.uint8),
                    "moving_label": (moving_image > 127).astype(np.uint8),
                }
                sections[section].append(_write_case(folder, case_id, arrays, dict.fromkeys(arrays, _LPS_IDENTITY)))
        description = "MNIST, pairs of two images of one digit on 64x64 voxels, nominal spacing; label 1 is the stroke."
        _write_datalist(folder, sections, description)


def prepare_known_field(source: str | Path, output: str | Path) -> None:
    """Pairs deformed by a known field become a datalist whose cases are all for testing.

    Files are copied as they are, with ``cases.csv`` and, where a case has one, ``outlier.nii.gz``: the region of a
    structure that only one of its images shows.

    Args:
        source: folder of ``cases.csv``, whose column ``case`` names folders of ``fixed.nii.gz``, ``moving.nii.gz``
            (2D), ``fixed_landmarks.csv`` and ``moving_landmarks.csv`` (label,x,y in voxels, the first at 0).
        output: the folder to make.

    Raises:
        InputError: if the source has another layout or an unusable file, or the output exists.
    """
    source = _existing_folder(source, "cases.csv and a folder for each case")
    table = source / "cases.csv"
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            names = [row["case"] for row in csv.DictReader(stream)]
    except (OSError, UnicodeDecodeError, KeyError, csv.Error) as error:
        raise InputError(f"{table}: must be a CSV table with a column case; name the folder that holds it.") from error
    if not names or len(set(names)) < len(names) or not all(re.fullmatch(r"\w[\w.-]*", name or "") for name in names):
        raise InputError(f"{table}: must name one or more folders, each once, in its column case; correct it.")
    suffixes = {"image": ".nii.gz", "landmarks": "_landmarks.csv"}
    files = {f"{side}_{kind}": side + suffixes[kind] for kind in suffixes for side in ("fixed", "moving")}
    check_cases(
        [
            {key: str(source / name / file) for key, file in files.items()} | {"landmark_space": "voxel0"}
            for name in names
        ],
        spatial_dims=2,
    )
    with _finished_folder(Path(output)) as folder:
        shutil.copyfile(table, folder / table.name)
        for name in names:
            (folder / name).mkdir()
            optional = ["outlier.nii.gz"] if (source / name / "outlier.nii.gz").exists() else []
            for file in [*files.values(), *optional]:
                shutil.copyfile(source / name / file, folder / name / file)
        cases = [{"id": name} | {key: f"{name}/{file}" for key, file in files.items()} for name in names]
        description = "Cine MR slices deformed by a known field; half of the cases show a structure in one image only."
        _write_datalist(folder, {"testing": cases}, description, landmark_space="voxel0")


def _write_slices(folder: Path, source: Path, subject: str) -> list[Case]:
    names = {"fixed_image": "ED", "moving_image": "ES", "fixed_label": "ED_label", "moving_label": "ES_label"}
    paths = {key: source / f"{subject}_{name}.nii.gz" for key, name in names.items()}
    stacks = {key: read_image(path, spatial_dims=3) for key, path in paths.items()}
    shape = stacks["fixed_image"][0].shape
    for key, (stack, _) in stacks.items():
        if stack.shape != shape or min(shape[:2]) < _WINDOW:
            raise InputError(
                f"{paths[key]}: has the shape {stack.shape} where the four stacks of a subject must share one of at "
                f"least {_WINDOW} x {_WINDOW} voxels a slice; give the stacks as published."
            )
    cases = []
    for index in range(shape[2]):
        cavity = np.argwhere(stacks["fixed_label"][0][..., index] == 1)  # (N, 2)
        if not len(cavity):
            raise InputError(f"{paths['fixed_label']}: has no label 1 in slice {index}; remove the slice.")
        middle = np.rint(cavity.mean(axis=0)).astype(int)
        corner = np.clip(middle - _WINDOW // 2, 0, np.array(shape[:2]) - _WINDOW).tolist()
        window = tuple(slice(start, start + _WINDOW) for start in corner)
        arrays, affines = {}, {}
        for key, (stack, affine) in stacks.items():
            cut = stack[..., index][window]
            arrays[key] = (cut == 1).astype(np.uint8) if key.endswith("label") else cut
            affines[key] = affine.copy()
            affines[key][:, 3] = affine @ [*corner, index, 1]
        cases.append(_write_case(folder, f"{subject}_slice{index:02d}", arrays, affines))
    return cases


def _read_digits(source: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images (N, 28, 28) and their classes (N,), for "train" and "test"."""
    archives = sorted(source.glob("*.npz"))
    if len(archives) > 1:
        raise InputError(f"{source}: holds several .npz files; leave the one with MNIST.")
    read = _read_archive(archives[0]) if archives else _read_idx_files(source)
    for part, (images, classes) in read.items():
        if (
            images.dtype != np.uint8
            or images.shape != (*classes.shape[:1], _DIGIT_SIZE, _DIGIT_SIZE)
            or classes.ndim != 1
        ):
            raise InputError(
                f"{archives[0] if archives else source}: its {part} images are {images.dtype} of the shape "
                f"{images.shape} for classes of the shape {classes.shape} where 28x28 bytes a class must stand; "
                "give MNIST as published."
            )
    return read


def _read_archive(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {part: (archive[f"x_{part}"], archive[f"y_{part}"]) for part in ("train", "test")}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path}: is damaged or lacks one of x_train, y_train, x_test, y_test; give the archive as published."
        ) from error


def _read_idx_files(source: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        part: (_read_idx(source, f"{prefix}-images", 3), _read_idx(source, f"{prefix}-labels", 1))
        for part, prefix in (("train", "train"), ("test", "t10k"))
    }


def _read_idx(source: Path, stem: str, dims: int) -> np.ndarray:
    names = [f"{stem}{joint}idx{dims}-ubyte{ending}" for joint in "-." for ending in ("", ".gz")]
    path = next((source / name for name in names if (source / name).is_file()), None)
    if path is None:
        raise InputError(
            f"{source}: holds neither an .npz file nor {names[0]} (or {names[2]}, plain or .gz); "
            "name the folder of the MNIST files."
        )
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if content[:4] != bytes([0, 0, 8, dims]):  # unsigned bytes in so many dimensions
            raise ValueError("another magic number")
        sizes = np.frombuffer(content, ">u4", dims, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(sizes.tolist())
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(
            f"{path}: is damaged or not an IDX file of {dims} dimensions; give the file as published."
        ) from error


def _same_class_pairs(
    source: Path, part: str, classes: np.ndarray, wanted: int, generator: np.random.Generator
) -> np.ndarray:
    """Indices (wanted, 2) of two images of one class, no image twice, classes mixed."""
    pairs = [np.empty((0, 2), dtype=int)]
    for digit in np.unique(classes):
        members = generator.permutation(np.flatnonzero(classes == digit))
        pairs.append(members[: len(members) // 2 * 2].reshape(-1, 2))
    mixed = generator.permutation(np.concatenate(pairs))
    if len(mixed) < wanted:
        raise InputError(
            f"{source}: its {part} images give {len(mixed)} pairs where {wanted} are asked for; ask for fewer."
        )
    return mixed[:wanted]


def _enlarge(images: np.ndarray) -> np.ndarray:
    """(N, rows, columns) uint8 to (N, 64, 64), twice as large, axis 0 to the viewer's right."""
    tensor = torch.from_numpy(images.astype(np.float32)).transpose(1, 2).unsqueeze(1)  # (N, 1, columns, rows)
    doubled = F.interpolate(tensor, scale_factor=2, mode="bilinear", align_corners=False)
    padded = F.pad(doubled, [_DIGIT_MARGIN] * 4)
    return padded.squeeze(1).round().to(torch.uint8).numpy()


def _write_case(folder: Path, case_id: str, arrays: dict[str, np.ndarray], affines: dict[str, np.ndarray]) -> Case:
    """Write each array as a NIfTI file of a new folder; the case as it stands in the list."""
    (folder / case_id).mkdir()
    case = {"id": case_id}
    for key, array in arrays.items():
        case[key] = f"{case_id}/{key}.nii.gz"
        image = nib.Nifti1Image(array, affines[key])
        image.set_qform(affines[key], code=1)
        image.set_sform(affines[key], code=1)
        nib.save(image, folder / case[key])
    return case


def _write_datalist(folder: Path, sections: dict[str, list[Case]], description: str, **declarations: Any) -> None:
    datalist = {"description": description, "spatial_dims": 2, **declarations}
    datalist |= {section: sections.get(section, []) for section in SECTIONS}
    (folder / DATALIST_NAME).write_text(json.dumps(datalist, indent=2) + "\n", encoding="utf-8")


def _existing_folder(source: str | Path, expected: str) -> Path:
    source = Path(source)
    if not source.is_dir():
        raise InputError(f"{source}: is not a folder; name the folder that holds {expected}.")
    return source


@contextmanager
def _finished_folder(output: Path) -> Iterator[Path]:
    """A folder to write into that takes its name when all is written, and is gone when that fails."""
    if output.exists() or output.is_symlink():
        raise InputError(f"{output}: exists already; remove it or name another folder.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    except OSError as error:
        raise InputError(f"{output}: cannot be made ({error.strerror}); name a folder you may write to.") from error
    try:
        yield draft
        draft.chmod(0o755)  # a temporary folder is private
        draft.rename(output)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
