"""Reading image files in full and refusing those that cannot be registered.

Readers let damaged and misleading files through: a wrong checksum, two orientations that contradict each other,
voxels that are not numbers. Each of them ends in a wrong displacement, so each is refused here, in one sentence.
"""

from __future__ import annotations

import gzip
import itertools
import os
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from monai_jsm.data.errors import InputError

__all__ = ["SMALLEST_SIZE", "Grid", "check_image", "check_label", "check_mask", "read_image"]

SMALLEST_SIZE = 16
"""Voxels along every axis that an image must have at least, so that each level of a network sees a neighbourhood."""

_MOST_VOXELS = 2**30
# An allow list: MONAI would unpickle a .npy file.
_OTHER_FORMATS = (".mha", ".mhd", ".nrrd", ".nhdr", ".png", ".jpg", ".jpeg", ".bmp")
_PLACE_TOLERANCE = 1e-2  # of the smallest voxel edge; headers hold float32
_ANGLE_TOLERANCE = 1e-3  # cosine between axes; converters round direction cosines to four digits


class Grid(NamedTuple):
    """Where the voxels of an image lie.

    Attributes:
        shape: the D spatial sizes.
        affine: voxel-to-world matrix, (D+1, D+1), RAS, mm.
    """

    shape: tuple[int, ...]
    affine: np.ndarray


def read_image(path: str | os.PathLike[str], spatial_dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the voxels of one scalar image and its place in the world.

    A gzipped file is unpacked to its end, so that a wrong checksum is found. NIfTI is read with nibabel, other
    formats with MONAI's ``LoadImage``. One trailing axis of a single voxel is dropped: (X, Y, 1) is a 2D image.

    Args:
        path: ``.nii`` and ``.nii.gz``, or one of ``.mha .mhd .nrrd .nhdr .png .jpg .jpeg .bmp``.
        spatial_dims: D, the number of axes the image must have.

    Returns:
        The voxels, (*S), in the type of the file, and the voxel-to-world matrix, (D+1, D+1), RAS, mm.

    Raises:
        InputError: if the file is absent, damaged, not a scalar image of D axes, or its affine is singular, sheared,
            contradicted by another entry of its header, or (in 2D) tilted out of the world's first two axes.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: there is no such file; correct the path.")
    if path.is_dir():
        raise InputError(f"{path}: is a folder and not an image; convert a DICOM series to NIfTI first.")
    if path.name.lower().endswith((".nii", ".nii.gz")):
        reader, remedy = _read_nifti, "write the file again"
    elif path.suffix.lower() in _OTHER_FORMATS:
        reader, remedy = _read_other, "convert it to .nii.gz (.mha and .nrrd need pip install itk)"
    else:
        raise InputError(f"{path}: is of a format that is not read; convert it to .nii.gz or {_OTHER_FORMATS[0]}.")
    try:
        array, affine = reader(path)
    except InputError:
        raise
    except Exception as error:  # each reader has its own exceptions for damaged files
        raise InputError(f"{path}: cannot be read as an image ({_reason(error)}); {remedy}.") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{path}: holds colour or complex values; convert it to one number a voxel.")
    shape = array.shape
    if array.ndim == spatial_dims + 1 and shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != spatial_dims:
        raise InputError(
            f"{path}: has the shape {_times(shape)} where one scalar image of {spatial_dims} axes must stand; "
            "keep one channel or time point, or correct spatial_dims."
        )
    _check_affine(path, affine, spatial_dims)
    kept = [*range(spatial_dims), -1]
    return array, affine[np.ix_(kept, kept)]


def check_image(path: str | os.PathLike[str], spatial_dims: int) -> Grid:
    """Read an image in full and refuse it unless it can be registered.

    Args:
        path: as :func:`read_image` takes it.
        spatial_dims: D, the number of axes the image must have.

    Returns:
        Its grid.

    Raises:
        InputError: as :func:`read_image`, and if the image has fewer than ``SMALLEST_SIZE`` voxels along an axis,
            NaN or infinite voxels, or one value everywhere.
    """
    array, affine = read_image(path, spatial_dims)
    if min(array.shape) < SMALLEST_SIZE:
        raise InputError(
            f"{path}: has {_times(array.shape)} voxels where each axis needs at least {SMALLEST_SIZE}; "
            "give a larger image or resample it."
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"{path}: holds NaN or infinite voxels; replace them with the background value.")
    if array.min() == array.max():
        raise InputError(f"{path}: is constant, so that nothing in it can be registered; give the right file.")
    low, high = np.percentile(array, (1, 99))
    if low == high:
        raise InputError(
            f"{path}: 98 % of its voxels or more have one value, so that its contrast cannot be scaled; "
            "crop both images around their content."
        )
    return Grid(array.shape, affine)


def check_label(path: str | os.PathLike[str], spatial_dims: int, grid: Grid) -> None:
    """Read a label in full and refuse it unless it is integer and lies on the grid of its image.

    Args:
        path: as :func:`read_image` takes it.
        spatial_dims: D.
        grid: of the image that the label belongs to.

    Raises:
        InputError: as :func:`read_image`, and if values are not whole numbers or shape or place differ from ``grid``.
    """
    _read_label(path, spatial_dims, grid)


def check_mask(path: str | os.PathLike[str], spatial_dims: int, grid: Grid) -> None:
    """Read a mask in full and refuse it where :func:`check_label` would, and if it is empty."""
    if not _read_label(path, spatial_dims, grid).any():
        raise InputError(f"{path}: is an empty mask, which leaves nowhere to look; mark a region or leave it out.")


def _read_label(path: str | os.PathLike[str], spatial_dims: int, grid: Grid) -> np.ndarray:
    array, affine = read_image(path, spatial_dims)
    if array.dtype.kind == "f" and not (array == np.rint(array)).all():  # NaN differs from itself
        raise InputError(f"{path}: holds values that are not whole numbers; resample labels by nearest neighbour.")
    if array.shape != grid.shape:
        raise InputError(
            f"{path}: has {_times(array.shape)} voxels where its image has {_times(grid.shape)}; "
            "resample it onto the grid of its image by nearest neighbour."
        )
    if _differ(affine, grid.affine, grid.shape):
        raise InputError(
            f"{path}: lies elsewhere in the world than its image; "
            "resample it onto the grid of its image by nearest neighbour, or correct its affine."
        )
    return array


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    voxels = int(np.prod(image.shape, dtype=object))
    if voxels > _MOST_VOXELS:
        raise InputError(f"{path}: announces {voxels} voxels, more than 2^30; crop the image or write it again.")
    if path.name.lower().endswith(".gz"):
        _unpack(path, int(image.header.get_data_offset()) + voxels * image.get_data_dtype().itemsize)
    _check_header(path, image)
    return np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=np.float64)


def _unpack(path: Path, announced: int) -> None:
    """Read a gzipped file to its end, which checks its checksum, but not beyond what its header announces."""
    size = 0
    with gzip.open(path) as stream:
        while block := stream.read(2**20):
            size += len(block)
            if size > announced + 2**20:
                raise InputError(f"{path}: holds more data than its header announces; write the file again.")


def _check_header(path: Path, image: nib.Nifti1Image) -> None:
    """Refuse two orientations that differ: nibabel and ANTs follow the one, MONAI and ITK at times the other."""
    shape = image.shape[:3]
    qform, sform = image.get_qform(coded=True)[0], image.get_sform(coded=True)[0]
    if qform is not None and sform is not None and _differ(qform, sform, shape):
        raise InputError(
            f"{path}: its sform and qform place the image differently, so that programs would disagree; "
            "copy the right one over the other."
        )
    edges = np.linalg.norm(image.affine[:3, : len(shape)], axis=0)
    pixdim = np.asarray(image.header.get_zooms()[: len(shape)])
    if np.isfinite(edges).all() and edges.all() and not np.allclose(edges, pixdim, rtol=1e-3):
        raise InputError(
            f"{path}: its header gives the voxel edges {_numbers(pixdim)} mm but its affine {_numbers(edges)} mm; "
            "correct pixdim or the affine."
        )


def _read_other(path: Path) -> tuple[np.ndarray, np.ndarray]:
    from monai.transforms import LoadImage

    image = LoadImage(image_only=True, dtype=None)(path)
    return image.numpy(), image.affine.numpy().astype(np.float64)


def _check_affine(path: Path, affine: np.ndarray, spatial_dims: int) -> None:
    columns = affine[:-1, :spatial_dims]  # of a 2D file: three rows
    if not np.isfinite(affine).all():
        raise InputError(f"{path}: its affine holds NaN or infinite entries; correct the header.")
    edges = np.linalg.norm(columns, axis=0)
    if not edges.all():
        raise InputError(f"{path}: its affine gives a voxel edge of zero length; correct the header.")
    directions = columns / edges
    if abs(np.linalg.det(directions.T @ directions)) < 1e-6:
        raise InputError(f"{path}: its affine is singular, with two axes along one line or plane; correct the header.")
    if np.abs(directions[spatial_dims:]).max(initial=0) > _ANGLE_TOLERANCE:
        raise InputError(
            f"{path}: its plane is tilted out of the world's first two axes, so that lengths would be lost; "
            "give the slice an affine within the plane."
        )
    if np.abs(directions.T @ directions - np.eye(spatial_dims)).max() > _ANGLE_TOLERANCE:
        raise InputError(f"{path}: its axes are sheared; resample the image onto a grid with right angles.")


def _differ(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether a corner of the grid moves by more than a hundredth of a voxel; NaN counts as moving."""
    dims = len(shape)
    corners = np.array(list(itertools.product(*[(0, size - 1) for size in shape])))  # (2^D, D)
    difference = first - second
    moves = np.linalg.norm(corners @ difference[:-1, :dims].T + difference[:-1, -1], axis=1)
    edge = np.linalg.norm(second[:-1, :dims], axis=0).min()
    return not moves.max() <= _PLACE_TOLERANCE * edge


def _reason(error: Exception) -> str:
    """The first line of an exception's text, fit to stand inside a sentence."""
    text = str(error).strip().split("\n")[0].rstrip(".:")[:200] or type(error).__name__
    return text.replace(". ", ", ")


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)


def _numbers(values: np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
