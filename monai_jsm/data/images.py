"""Reading image files in full and refusing those that cannot be registered.

Readers let damaged and misleading files through: a wrong checksum, two orientations that contradict each other,
voxels that are not numbers. Each of them ends in a wrong displacement, so each is refused here, in one sentence.
"""

from __future__ import annotations

import gzip
import itertools
import logging
import math
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.imageglobals import logger as nibabel_logger

from monai_jsm.data.errors import InputError

__all__ = [
    "SMALLEST_SIZE",
    "Grid",
    "check_image",
    "check_label",
    "check_mask",
    "check_voxels",
    "read_image",
    "read_placed",
]

SMALLEST_SIZE = 16
"""Voxels along every axis that an image must have at least, so that each level of a network sees a neighbourhood."""

MOST_VOXELS = 2**30

_PICTURES = {
    ".png": "PNGImageIO",
    ".jpg": "JPEGImageIO",
    ".jpeg": "JPEGImageIO",
    ".bmp": "BMPImageIO",
    ".tif": "TIFFImageIO",
    ".tiff": "TIFFImageIO",
}
PICTURE_SUFFIXES = tuple(_PICTURES)

_META, _NRRD = (".mha", ".mhd"), (".nrrd", ".nhdr")
# Each suffix has one reader, so that a file does not reach another one by its content.
_ITK_FORMATS = _PICTURES | dict.fromkeys(_META, "MetaImageIO") | dict.fromkeys(_NRRD, "NrrdImageIO")
# Entries of MetaImage and NRRD headers in which ITK takes what is no number for zero.
_GEOMETRY = {
    *("elementspacing", "offset", "origin", "position", "transformmatrix", "rotation", "orientation"),
    *("spacings", "spacedirections", "spaceorigin"),
}
_LUMA = (0.299, 0.587, 0.114)
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


def read_image(
    path: str | os.PathLike[str], spatial_dims: int | None = None, series: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Read the voxels of one scalar image and its place in the world.

    NIfTI is read with nibabel, other formats with ITK. The place is the one of the header: a picture lies where ITK
    puts it, with its first pixel at the origin and edges of 1 mm unless it tells its resolution. Compressed files are
    unpacked to their end and no further than their header announces, so that damage and false sizes are found.
    One trailing axis of a single voxel is dropped: (X, Y, 1) is a 2D image.

    Colour, also that of a palette, becomes grey by the luma of ITU-R BT.601, ``0.299 R + 0.587 G + 0.114 B``, float32;
    where the three agree everywhere, they are the grey, in the type of the file.

    Args:
        path: ``.nii`` and ``.nii.gz``; ``.mha .mhd .nrrd .nhdr .png .jpg .jpeg .bmp .tif .tiff``, the data of ``.mhd``
            and ``.nhdr`` beside their header; a folder that holds a DICOM series, or one DICOM file: a slice is 2D, a
            multi-frame object is 3D.
        spatial_dims: D, the number of axes the image must have; None takes it from the file. A ``.tif`` of several
            pages is an image only where 3 is asked for.
        series: SeriesInstanceUID, for a DICOM folder that holds several series; ignored for other formats.

    Returns:
        The voxels, (*S), in array-axis order: of a picture axis 0 goes across. Their type is that of the file, or of
        its rescaled values. And the voxel-to-world matrix, (D+1, D+1), RAS, mm.

    Raises:
        InputError: if the file is absent, damaged, larger than 2^30 voxels, not a scalar image of D axes, transparent,
            or its affine is singular, sheared, contradicted by another entry of its header, or (in 2D) tilted out of
            the world's first two axes; and as :func:`~monai_jsm.data.dicom.read_series`.

    Reference:
        Recommendation ITU-R BT.601-7: Studio encoding parameters of digital television, section 2.5.1.
    """
    array, affine = read_placed(path, spatial_dims, series)
    kept = [*range(array.ndim), -1]
    return array, affine[np.ix_(kept, kept)]


def read_placed(
    path: str | os.PathLike[str], spatial_dims: int | None = None, series: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`read_image`, with the whole matrix of the file: a 2D file may say where along the third axis it lies.

    Returns:
        The voxels, (*S), and the voxel-to-world matrix, (D+1, D+1) or (4, 4), RAS, mm.
    """
    from monai_jsm.data import dicom

    path = Path(path)
    if not os.path.exists(path):  # unlike Path.exists it also takes a name that no file can have
        raise InputError(f"{path}: there is no such file; correct the path.")
    try:
        if path.is_dir():
            array, affine = dicom.read_series(dicom.find_series(path, series))
        elif path.name.lower().endswith((".nii", ".nii.gz")):
            array, affine = _read_nifti(path)
        elif path.suffix.lower() in _ITK_FORMATS:
            array, affine = _read_itk(path, spatial_dims)
        elif dicom.is_dicom(path):
            array, affine = dicom.read_series(dicom.find_series(path, series))
        else:
            raise InputError(f"{path}: is of a format that is not read; convert it to .nii.gz or .mha.")
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path}: is larger than the memory that is free; crop it or resample it.") from error
    except Exception as error:  # each reader has its own exceptions for damaged files
        remedy = "save it again as grey or RGB" if path.suffix.lower() in _PICTURES else "write the file again"
        raise InputError(f"{path}: cannot be read as an image ({reason(error)}); {remedy}.") from error
    if array.ndim > (spatial_dims or 2) and array.shape[-1] == 1:
        array = array[..., 0]
    _check_frame(str(path), array, affine, spatial_dims)
    return array, affine


def check_image(path: str | os.PathLike[str], spatial_dims: int | None = None, series: str = "") -> Grid:
    """Read an image in full and refuse it unless it can be registered.

    Args:
        path: as :func:`read_image` takes it.
        spatial_dims: D, the number of axes the image must have; None takes it from the file.
        series: as :func:`read_image` takes it.

    Returns:
        Its grid.

    Raises:
        InputError: as :func:`read_image` and :func:`check_voxels`.
    """
    return check_voxels(str(path), *read_image(path, spatial_dims, series))


def check_voxels(name: str, array: np.ndarray, affine: np.ndarray) -> Grid:
    """Refuse an image in memory unless it can be registered.

    Args:
        name: what the refusal calls the image: its file, or "fixed".
        array: voxels, (*S) with D = 2 or 3 axes.
        affine: voxel-to-world matrix, (D+1, D+1) or (4, 4), RAS, mm.

    Returns:
        Its grid.

    Raises:
        InputError: if the voxels are no numbers, if the image has not D axes, fewer than ``SMALLEST_SIZE`` voxels along
            an axis, NaN or infinite voxels, or one value in 98 % of them, or its affine is not finite, singular,
            sheared, or (in 2D) tilted out of the world's first two axes.

    Example:
        >>> check_voxels("fixed", np.zeros((20, 30)), np.eye(3))
        Traceback (most recent call last):
        monai_jsm.data.errors.InputError: fixed: is constant, so that nothing in it can be registered; give another...
    """
    _check_frame(name, array, affine, None)
    if min(array.shape) < SMALLEST_SIZE:
        raise InputError(
            f"{name}: has {_times(array.shape)} voxels where each axis needs at least {SMALLEST_SIZE}; "
            "give a larger image or resample it."
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"{name}: holds NaN or infinite voxels; replace them with the background value.")
    if array.min() == array.max():
        raise InputError(f"{name}: is constant, so that nothing in it can be registered; give another image.")
    low, high = np.percentile(array, (1, 99))
    if low == high:
        raise InputError(
            f"{name}: 98 % of its voxels or more have one value, so that its contrast cannot be scaled; "
            "crop both images around their content."
        )
    kept = [*range(array.ndim), -1]
    return Grid(array.shape, affine[np.ix_(kept, kept)])


def check_label(path: str | os.PathLike[str], spatial_dims: int | None, grid: Grid) -> None:
    """Read a label in full and refuse it unless it is integer and lies on the grid of its image.

    Args:
        path: as :func:`read_image` takes it.
        spatial_dims: D; None takes it from the file.
        grid: of the image that the label belongs to.

    Raises:
        InputError: as :func:`read_image`, and if values are not whole numbers or shape or place differ from ``grid``.
    """
    check_label_voxels(str(path), *read_image(path, spatial_dims), grid)


def check_mask(path: str | os.PathLike[str], spatial_dims: int | None, grid: Grid) -> None:
    """Read a mask in full and refuse it where :func:`check_label` would, and if it is empty."""
    array, affine = read_image(path, spatial_dims)
    check_label_voxels(str(path), array, affine, grid)
    if not array.any():
        raise InputError(f"{path}: is an empty mask, which leaves nowhere to look; mark a region or leave it out.")


def check_label_voxels(name: str, array: np.ndarray, affine: np.ndarray, grid: Grid) -> None:
    """Refuse a label or mask in memory unless it is of whole numbers and lies on the grid of its image.

    Args:
        name: what the refusal calls it.
        array: (*S).
        affine: voxel-to-world matrix, (D+1, D+1) or (4, 4), RAS, mm.
        grid: of the image that it belongs to.

    Raises:
        InputError: if not.
    """
    if array.dtype.kind == "f" and not (array == np.rint(array)).all():  # NaN differs from itself
        raise InputError(
            f"{name}: holds values that are not whole numbers; store labels as whole grey values, "
            "resampled by nearest neighbour."
        )
    if array.shape != grid.shape:
        raise InputError(
            f"{name}: has {_times(array.shape)} voxels where its image has {_times(grid.shape)}; "
            "resample it onto the grid of its image by nearest neighbour."
        )
    kept = [*range(array.ndim), -1]
    if grids_differ(affine[np.ix_(kept, kept)], grid.affine, grid.shape):
        raise InputError(
            f"{name}: lies elsewhere in the world than its image; "
            "resample it onto the grid of its image by nearest neighbour, or correct its affine."
        )


def _check_frame(name: str, array: np.ndarray, affine: np.ndarray, spatial_dims: int | None) -> None:
    """Refuse what is no scalar image of D axes with a sound affine, (D+1, D+1) or (4, 4)."""
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name}: holds colour or complex values; convert it to one number a voxel.")
    if not array.size:
        raise InputError(f"{name}: holds no voxels; write the file again.")
    if array.ndim not in ((2, 3) if spatial_dims is None else (spatial_dims,)):
        raise InputError(
            f"{name}: has the shape {_times(array.shape)} where one scalar image of "
            f"{'2 or 3' if spatial_dims is None else spatial_dims} axes must stand; "
            + ("give images of as many axes." if array.ndim in (2, 3) else "keep one channel or time point.")
        )
    _check_affine(name, affine, array.ndim)


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with _silent(nibabel_logger):  # it tells what it mends in a header; what matters is refused below
        image = nib.load(path, mmap=False)  # the file may be written over while its voxels are in use
    assert isinstance(image, nib.Nifti1Image)
    voxels = math.prod(image.shape)
    _check_size(path, voxels)
    announced = int(image.header.get_data_offset()) + voxels * image.get_data_dtype().itemsize
    if path.name.lower().endswith(".gz"):
        with gzip.open(path) as stream:
            _unpack(path, iter(lambda: stream.read(2**20), b""), announced)
    elif path.stat().st_size < announced:
        raise InputError(f"{path}: holds less data than its header announces; write the file again.")
    _check_header(path, image)
    return np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=np.float64)


@contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    was, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was


def _check_size(path: Path, voxels: int) -> None:
    if voxels > MOST_VOXELS:
        raise InputError(f"{path}: announces {voxels} voxels, more than 2^30; crop the image or write it again.")


def _unpack(path: Path, blocks: Iterable[bytes], announced: int) -> None:
    """Unpack a file to its end, which checks its checksum, but not beyond what its header announces."""
    size = 0
    for block in blocks:
        size += len(block)
        if size > announced + 2**20:
            raise InputError(f"{path}: holds more data than its header announces; write the file again.")
    if size < announced:
        raise InputError(f"{path}: holds less data than its header announces; write the file again.")


def _check_header(path: Path, image: nib.Nifti1Image) -> None:
    """Refuse no orientation, or two that differ: nibabel and ANTs follow the one, MONAI and ITK at times the other."""
    shape = image.shape[:3]
    qform, sform = image.get_qform(coded=True)[0], image.get_sform(coded=True)[0]
    if qform is None and sform is None:
        raise InputError(
            f"{path}: its header places it nowhere (qform and sform codes are 0), so that programs would disagree; "
            "write it again with an affine."
        )
    if qform is not None and sform is not None and grids_differ(qform, sform, shape, _quaternion_error(image)):
        raise InputError(
            f"{path}: its sform and qform place the image differently, so that programs would disagree; "
            "copy the right one over the other, for example with fslorient -copysform2qform."
        )
    with nib.openers.ImageOpener(str(path)) as stream:
        stored = type(image.header).from_fileobj(stream, check=False)  # nibabel mends what it checks
    pixdim = stored["pixdim"][1 : len(shape) + 1]
    if not (np.isfinite(pixdim) & (pixdim > 0)).all():
        raise InputError(f"{path}: its header gives the voxel edges {_numbers(pixdim)} mm; correct pixdim.")
    _check_edges(path, pixdim, np.linalg.norm(image.affine[:3, : len(shape)], axis=0))


def _check_edges(path: Path, spacing: np.ndarray, edges: np.ndarray) -> None:
    if np.isfinite(edges).all() and edges.all() and not np.allclose(edges, spacing, rtol=1e-3):
        raise InputError(
            f"{path}: its header gives the voxel edges {_numbers(spacing)} mm but its affine {_numbers(edges)} mm; "
            "correct the one that is wrong."
        )


def _read_itk(path: Path, spatial_dims: int | None) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK

    suffix = path.suffix.lower()
    header, body, offset = _text_header(path) if suffix not in _PICTURES else ({}, path, 0)
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO(_ITK_FORMATS[suffix])
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    size, channels, spacing = reader.GetSize(), reader.GetNumberOfComponents(), np.array(reader.GetSpacing())
    _check_size(path, math.prod(size))
    if suffix.startswith(".tif") and len(size) == 3 and spatial_dims is None:
        raise InputError(f"{path}: has {size[2]} pages; keep one, or store slices of a volume as .nii.gz or .mha.")
    if channels != 1 and (suffix not in _PICTURES or channels not in (3, 4)):
        raise InputError(f"{path}: holds {channels} numbers a voxel, as colour or vectors do; keep one channel.")
    if not (np.isfinite(spacing) & (spacing > 0)).all():
        raise InputError(f"{path}: its header gives the voxel edges {_numbers(spacing)} mm; correct the header.")
    affine = itk_affine(reader.GetSpacing(), reader.GetDirection(), reader.GetOrigin())
    _check_affine(str(path), affine, len(size))
    _check_edges(path, spacing, np.linalg.norm(affine[:-1, :-1], axis=0))
    component = SimpleITK.Image([1] * len(size), reader.GetPixelID(), channels).GetSizeOfPixelComponent()
    if header:
        _check_body(path, header, body, offset, math.prod(size), component)
    elif suffix not in (".png", ".tif", ".tiff"):  # ITK reads these to their end, and others as far as they go
        _check_end(path)
    array = SimpleITK.GetArrayFromImage(reader.Execute())
    return (luma(str(path), array) if channels > 1 else array).T, affine


def itk_affine(spacing: Sequence[float], direction: Sequence[float], origin: Sequence[float]) -> np.ndarray:
    """The voxel-to-world matrix of an ITK image, (D+1, D+1), turned from LPS to RAS."""
    affine = np.eye(len(origin) + 1)
    affine[:-1, :-1] = np.reshape(direction, (len(origin), -1)) * spacing
    affine[:-1, -1] = origin
    affine[:2] *= -1
    return affine


def luma(name: str, colours: np.ndarray) -> np.ndarray:
    """Grey of ITU-R BT.601, (*S), of RGB or RGBA (*S, 3 or 4); float32 unless the colours are grey by themselves."""
    full = np.iinfo(colours.dtype).max if colours.dtype.kind in "iu" else 1
    if colours.shape[-1] == 4 and (colours[..., 3] != full).any():
        raise InputError(f"{name}: is transparent in places, where it has no colour; save it without transparency.")
    red, green, blue = (colours[..., channel] for channel in range(3))
    if (red == green).all() and (green == blue).all():
        return red
    grey = np.zeros(red.shape, dtype=np.float32)
    for weight, channel in zip(_LUMA, (red, green, blue), strict=True):
        grey += weight * channel.astype(np.float32)
    return grey


def _text_header(path: Path) -> tuple[dict[str, str], Path, int]:
    """The entries of a MetaImage or NRRD header, the file of its data and where in that file they begin."""
    header: dict[str, str] = {}
    with open(path, "rb") as stream:
        for number in range(1000):
            line = stream.readline(2**16).decode("latin-1")
            text = line.rstrip("\r\n")
            if any(ord(character) < 32 and character != "\t" for character in text):
                raise InputError(f"{path}: its header holds control characters; write the file again.")
            if text == "" and path.suffix.lower() in _NRRD:  # a blank line, or the end of a detached header
                break
            if text.startswith("#") or (number == 0 and text.startswith("NRRD")):
                continue
            key, _, value = re.sub(r"\s*(?::=|[:=])\s*", "\0", text.strip(), count=1).partition("\0")
            key = key.lower().replace(" ", "")
            _check_numbers(path, key, value)
            if key in header:
                raise InputError(f"{path}: has {key!r} twice in its header; write the file again.")
            header[key] = value
            if key == "elementdatafile" or line == "":
                break
        offset = stream.tell()
    if path.suffix.lower() in _META and not {"ndims", "dimsize", "elementtype", "elementdatafile"} <= header.keys():
        raise InputError(f"{path}: cannot be read as an image (it has no MetaImage header); write the file again.")
    name = header.get("elementdatafile") or header.get("datafile") or "LOCAL"
    if name.upper() == "LOCAL":
        return header, path, offset
    if Path(name).name != name or "\\" in name or "%" in name or name.upper().startswith("LIST"):
        raise InputError(f"{path}: names {name!r} as its data, which are not one file beside it; store it as .nii.gz.")
    if not (path.parent / name).is_file():
        raise InputError(f"{path}: names {name!r} as its data, which is not beside it; put both into one folder.")
    return header, path.parent / name, 0


def data_file(path: Path) -> Path:
    """The file that holds the data of a MetaImage or NRRD header; the header itself where they are one."""
    return _text_header(path)[1]


def _check_numbers(path: Path, key: str, value: str) -> None:
    if key not in _GEOMETRY:
        return
    for text in (re.sub("[(),]", " ", value) if key.startswith("space") else value).split():
        try:
            sound = math.isfinite(float(text))
        except ValueError:
            sound = text == "none"  # NRRD's word for an axis without a direction
        if not sound:
            raise InputError(f"{path}: has {text!r} in {key}, which is no finite number; correct the header.")


def _check_body(path: Path, header: dict[str, str], body: Path, offset: int, values: int, size: int) -> None:
    """Refuse data that are shorter or longer than announced, values of size bytes, before ITK takes memory for them."""
    announced = values * size
    with open(body, "rb") as stream:
        stream.seek(offset)
        if header.get("compresseddata", "")[:1] in ("T", "t", "1"):
            _unpack(path, _inflate(stream), announced)
            packed = stream.tell() - offset
            if header.get("compresseddatasize", "" if body == path else str(packed)) != str(packed):
                raise InputError(f"{path}: its CompressedDataSize is not that of its data; write the file again.")
        elif header.get("encoding", "").lower() in ("gz", "gzip"):
            with gzip.open(stream) as unpacked:
                _unpack(path, iter(lambda: unpacked.read(2**20), b""), announced)
        elif body.stat().st_size - offset < (announced if _is_binary(header) else 2 * values - 1):
            raise InputError(f"{path}: holds less data than its header announces; write the file again.")


def _is_binary(header: dict[str, str]) -> bool:
    """Whether numbers stand as bytes and not as text, which takes a digit and a blank for each."""
    return header.get("encoding", "raw").lower() == "raw" and header.get("binarydata", "T")[:1] in ("T", "t", "1")


def _inflate(stream: BinaryIO) -> Iterator[bytes]:
    """Unpack zlib or gzip data piece by piece and leave the stream where they end."""
    inflater = zlib.decompressobj(wbits=47)
    while not inflater.eof:
        packed = inflater.unconsumed_tail or stream.read(2**16)
        if not packed:
            raise EOFError("compressed data end too early")
        yield inflater.decompress(packed, 2**20)
    stream.seek(-len(inflater.unused_data), os.SEEK_CUR)


def _check_end(path: Path) -> None:
    """Refuse a JPEG or BMP file that was cut short."""
    content = path.read_bytes()
    if path.suffix.lower() == ".bmp":
        cut = struct.unpack_from("<I", content, 2)[0] > len(content)
    else:
        cut = content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda")  # the last scan has no end
    if cut:
        raise InputError(f"{path}: is cut short; write the file again.")


def _check_affine(name: str, affine: np.ndarray, spatial_dims: int) -> None:
    columns = affine[:-1, :spatial_dims]  # of a 2D file: three rows
    if not np.isfinite(affine).all():
        raise InputError(f"{name}: its affine holds NaN or infinite entries; correct the header.")
    edges = np.linalg.norm(columns, axis=0)
    if not edges.all():
        raise InputError(f"{name}: its affine gives a voxel edge of zero length; correct the header.")
    directions = columns / edges
    if abs(np.linalg.det(directions.T @ directions)) < 1e-6:
        raise InputError(f"{name}: its affine is singular, with two axes along one line or plane; correct the header.")
    if np.abs(directions[spatial_dims:]).max(initial=0) > _ANGLE_TOLERANCE:
        raise InputError(
            f"{name}: its plane is tilted out of the world's first two axes, so that lengths would be lost; "
            "give the slice an affine within the plane."
        )
    if np.abs(directions.T @ directions - np.eye(spatial_dims)).max() > _ANGLE_TOLERANCE:
        raise InputError(f"{name}: its axes are sheared; resample the image onto a grid with right angles.")


def _quaternion_error(image: nib.Nifti1Image) -> float:
    """By how much, radians, a qform may be turned because float32 holds it: its fourth number is left to be found."""
    fourth = math.sqrt(max(0.0, 1.0 - sum(float(image.header[f"quatern_{name}"]) ** 2 for name in "bcd")))
    rounding = 2.0**-23
    return rounding / max(fourth, math.sqrt(rounding))


def grids_differ(first: np.ndarray, second: np.ndarray, shape: Sequence[int], turned: float = 0.0) -> bool:
    """Whether a corner of the grid moves by more than a hundredth of a voxel; NaN counts as moving.

    One that moves no further than a turn by ``turned`` radians takes it does not count.
    """
    dims = len(shape)
    corners = np.array(list(itertools.product(*[(0, size - 1) for size in shape])))  # (2^D, D)
    difference = first - second
    moves = np.linalg.norm(corners @ difference[:-1, :dims].T + difference[:-1, -1], axis=1)
    edges = np.linalg.norm(second[:-1, :dims], axis=0)
    reach = np.linalg.norm(edges * shape)
    return not moves.max() <= _PLACE_TOLERANCE * edges.min() + turned * reach


def reason(error: Exception) -> str:
    """The first line of an exception's text, fit to stand inside a sentence; of ITK's, the line that tells."""
    text = re.sub(r".*ERROR: (\w+\(0x[0-9a-f]+\): )?", "", str(error).strip(), flags=re.DOTALL)
    return text.split("\n")[0].rstrip(".:")[:200].replace(". ", ", ") or type(error).__name__


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape)


def _numbers(values: np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
