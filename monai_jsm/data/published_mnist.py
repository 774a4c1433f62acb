"""MNIST as published becomes pairs of digits, a toy for deformable registration."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from monai_jsm.data.errors import InputError
from monai_jsm.data.progress import with_progress
from monai_jsm.data.published_folder import (
    Case,
    existing_folder,
    finished_folder,
    lps_affine,
    write_case,
    write_datalist,
)

__all__ = ["prepare_mnist"]

_DIGIT_SIZE = 28
_DIGIT_MARGIN = 4


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
    source = existing_folder(source, "one .npz file with x_train, y_train, x_test, y_test or the four IDX files")
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
    with finished_folder(output) as folder:
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
                sections[section].append(
                    write_case(folder, case_id, arrays, dict.fromkeys(arrays, lps_affine((1, 1, 1))))
                )
        description = "MNIST, pairs of two images of one digit on 64x64 voxels, nominal spacing; label 1 is the stroke."
        write_datalist(folder, sections, description, spatial_dims=2)


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
