"""The folder that a published data set becomes: cases, their landmarks, and ``datalist.json``."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from monai_jsm.data.datalist import DATALIST_NAME, SECTIONS, read_landmark_pair
from monai_jsm.data.errors import InputError
from monai_jsm.data.images import Grid
from monai_jsm.data.landmarks import write_landmarks

__all__ = [
    "Case",
    "existing_folder",
    "finished_folder",
    "lps_affine",
    "section_of",
    "write_case",
    "write_datalist",
    "write_landmark_pair",
]

Case = dict[str, str]


def existing_folder(source: str | Path, expected: str) -> Path:
    """The folder of a published data set.

    Args:
        source: what the user named.
        expected: the files that the folder holds, for the refusal.

    Raises:
        InputError: if it is not a folder.
    """
    source = Path(source)
    if not source.is_dir():
        raise InputError(f"{source}: is not a folder; name the folder that holds {expected}.")
    return source


@contextmanager
def finished_folder(output: str | Path) -> Iterator[Path]:
    """A folder to write into that takes its name when all is written, and is gone when that fails.

    Args:
        output: the folder to make, which must not exist.

    Raises:
        InputError: if the output exists or cannot be made.
    """
    output = Path(output)
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


def section_of(number: int) -> str:
    """The section of a subject by its number among the sorted: 0, 5, 10, ... are for testing, 1, 11, ... validation.

    Example:
        >>> [section_of(number) for number in (0, 1, 2, 5, 6, 11)]
        ['testing', 'validation', 'training', 'testing', 'training', 'validation']
    """
    return "testing" if number % 5 == 0 else "validation" if number % 10 == 1 else "training"


def lps_affine(spacing: Sequence[float]) -> np.ndarray:
    """Voxel-to-world matrix, (4, 4), RAS, mm, for an image whose true place is not known.

    The first voxel lies at the origin and the axes point to the left, the back and the head, so that a viewer shows
    the first axis to the right and the second downwards.

    Args:
        spacing: 3 voxel edges in mm.
    """
    return np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])


def write_case(folder: Path, case_id: str, arrays: Mapping[str, np.ndarray], affines: Mapping[str, np.ndarray]) -> Case:
    """Write each array as a NIfTI file of a new folder.

    Args:
        folder: in which the case's own folder is made.
        case_id: the id of the case and the name of its folder.
        arrays: the voxels, (*S), by their key in the case.
        affines: voxel-to-world matrices, (4, 4), RAS, mm, by the same keys.

    Returns:
        The case as it stands in the datalist.
    """
    (folder / case_id).mkdir()
    case = {"id": case_id}
    for key, array in arrays.items():
        case[key] = f"{case_id}/{key}.nii.gz"
        image = nib.Nifti1Image(array, affines[key])
        image.set_qform(affines[key], code=1)
        image.set_sform(affines[key], code=1)
        nib.save(image, folder / case[key])
    return case


def write_landmark_pair(
    folder: Path, case_id: str, paths: Sequence[Path], grids: Sequence[Grid], space: str = ""
) -> Case:
    """Check the landmarks of a case against each other and their images, and write them as CSV files in "voxel0".

    Args:
        folder: in which the case's own folder lies or is made.
        case_id: the id of the case and the name of its folder.
        paths: the landmark files of fixed and moving.
        grids: of the images of fixed and moving.
        space: the frame of files that do not say it, as :func:`~.landmarks.read_landmarks` takes it.

    Returns:
        The entries ``fixed_landmarks`` and ``moving_landmarks`` of the case.

    Raises:
        InputError: if a file is unusable, a landmark lies outside of its image, or the two do not pair up.
    """
    matched = read_landmark_pair(paths, grids, space)
    (folder / case_id).mkdir(exist_ok=True)
    entries = {}
    for side, landmarks, grid in zip(("fixed", "moving"), matched, grids, strict=True):
        entries[f"{side}_landmarks"] = f"{case_id}/{side}_landmarks.csv"
        write_landmarks(folder / entries[f"{side}_landmarks"], landmarks, "voxel0", grid.affine)
    return entries


def write_datalist(
    folder: Path, sections: Mapping[str, Sequence[Case]], description: str, spatial_dims: int, **declarations: Any
) -> None:
    """Write ``datalist.json``.

    Args:
        folder: the folder that it describes.
        sections: the cases of each section; one that is absent is empty.
        description: what the data are.
        spatial_dims: D of every image.
        declarations: further entries, such as ``landmark_space``.
    """
    datalist = {"description": description, "spatial_dims": spatial_dims, **declarations}
    datalist |= {section: sections.get(section, []) for section in SECTIONS}
    (folder / DATALIST_NAME).write_text(json.dumps(datalist, indent=2) + "\n", encoding="utf-8")
