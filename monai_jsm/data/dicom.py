"""DICOM series become images, once their headers have passed a check of our own.

Readers put a series together from what they find: a missing slice, a slice that stands there twice or a tilted stack
gives an image of a wrong size or place, at most with a warning. So the headers are read first, and what is no regular
stack of slices is refused; then ITK decodes the voxels in our order, and its grid must be the one of the headers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from monai_jsm.data.errors import InputError
from monai_jsm.data.images import MOST_VOXELS, grids_differ, itk_affine, luma, reason

__all__ = ["Series", "find_series", "is_dicom", "read_series"]

_STEP_TOLERANCE = 0.01  # of the step between slices
_TILT_TOLERANCE = 0.1  # degrees
_SAME_PLACE = 1e-3  # mm
_SAME = 1e-4  # of direction cosines and pixel spacings within a series
_COSINE_TOLERANCE = 1e-3  # scanners round direction cosines
_SUFFIXES = (".dcm", ".dicom", ".ima")
_BITS = {"Rows": np.nan, "Columns": np.nan, "SamplesPerPixel": 1, "NumberOfFrames": 1, "BitsAllocated": np.nan}
_NATIVE_SYNTAXES = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
_DEFLATED = "1.2.840.10008.1.2.1.99"
_SEQUENCE_END = b"\xfe\xff\xdd\xe0"  # after encapsulated pixel data


@dataclass(frozen=True)
class Series:
    """The files of one image.

    Attributes:
        uid: SeriesInstanceUID.
        files: one a slice, in the order of their positions along the slice normal; one file of a multi-frame object.
        description: SeriesDescription on one line, "" where absent.
    """

    uid: str
    files: tuple[Path, ...]
    description: str


class _Plane(NamedTuple):
    """What the header says about one slice or frame; None where it is silent."""

    name: str
    position: np.ndarray | None  # (3,), LPS, mm, centre of the first pixel
    orientation: np.ndarray | None  # (2, 3), LPS, directions of a growing column and row index
    spacing: np.ndarray | None  # (2,), mm, between rows and between columns
    rescale: tuple[float, float]  # slope and intercept


def is_dicom(path: Path) -> bool:
    """Whether a file's name or its first bytes say that it is DICOM."""
    return path.suffix.lower() in _SUFFIXES or _has_prefix(path)


def find_series(path: str | os.PathLike[str], uid: str = "") -> Series:
    """Find the one image of a folder or file by its headers alone.

    Of a folder, the files directly inside count; names that begin with a dot, files that are not DICOM and objects
    without pixels (structure sets, reports, registrations, presentation states, DICOMDIR) are passed over.

    Args:
        path: a folder that holds the slices, a single slice or a multi-frame file.
        uid: SeriesInstanceUID of the series to take, where there are several.

    Returns:
        The series, its files in the order of their positions along the slice normal: the cross product of the
        directions in which column and row index grow.

    Raises:
        InputError: if there is no image, no series ``uid``, several series and no choice, or if the series is not one
            regular stack: its files differ in frame of reference, orientation, pixel spacing, size or samples, miss
            these entries, lie twice at one place, leave a gap (a step more than 1 % off the median), are shifted
            against each other or lean (more than 0.1 degree) against the slice normal.
    """
    path = Path(path)
    found = _by_series(path)
    if not found:
        raise InputError(f"{path}: holds no DICOM image; name the folder in which the slices lie.")
    if uid and uid not in found:
        raise InputError(f"{path}: holds no series {_one_line(uid)} but {_listing(found)}; choose with --series UID.")
    if not uid and len(found) > 1:
        raise InputError(f"{path}: holds {len(found)} series, {_listing(found)}; choose one with --series UID.")
    chosen = uid or next(iter(found))
    headers = found[chosen]
    order, _ = _stack(path, _planes(path, headers))
    files = [*headers]
    return Series(
        chosen,
        tuple(files[index] for index in order) if len(files) > 1 else (files[0],),
        _one_line(headers[files[0]].get("SeriesDescription")),
    )


def series_uids(path: str | os.PathLike[str]) -> list[str]:
    """SeriesInstanceUIDs of the images of a folder or file, sound or not."""
    return list(_by_series(Path(path)))


def _by_series(path: Path) -> dict[str, dict[Path, Any]]:
    """Files and their headers by series."""
    found: dict[str, dict[Path, Any]] = {}
    for file, header in _headers(path):
        found.setdefault(str(header.get("SeriesInstanceUID") or ""), {})[file] = header
    return found


def read_series(series: Series) -> tuple[np.ndarray, np.ndarray]:
    """Read the voxels of a series and its place in the world.

    Rescale slope and intercept of each slice or frame are applied. Colour becomes grey as in
    :func:`~monai_jsm.data.read_image`. Frames of a multi-frame object come in the order of their positions.

    Args:
        series: as :func:`find_series` gives it.

    Returns:
        The voxels, (X, Y, Z) = (columns, rows, slices), and the voxel-to-world matrix, (4, 4), RAS, mm. A single
        slice has Z = 1 and a third axis of 1 mm along its normal; without a position in its header it lies where ITK
        puts it, with its first pixel at the origin.

    Raises:
        InputError: as :func:`find_series`, and if pixel data are cut short, cannot be decoded or are more than
            2^30 voxels, or ITK puts the image elsewhere than its headers.
    """
    import SimpleITK

    path = series.files[0] if len(series.files) == 1 else series.files[0].parent
    headers = {file: _read_whole(file) for file in series.files}
    planes = _planes(path, headers)
    order, affine = _stack(path, planes)
    first = headers[series.files[0]]
    columns, rows = (_whole_number(series.files[0], first, keyword) for keyword in ("Columns", "Rows"))
    shape = (columns, rows, len(planes))
    voxels = math.prod(shape)
    if voxels > MOST_VOXELS:
        raise InputError(f"{path}: announces {voxels} voxels, more than 2^30; crop the image.")
    storage = {(header.get("BitsAllocated"), header.get("PixelRepresentation")) for header in headers.values()}
    alike = len({plane.rescale for plane in planes}) == len(storage) == 1

    reader: Any
    if len(series.files) > 1:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames([str(file) for file in series.files])
    else:
        reader = SimpleITK.ImageFileReader()
        reader.SetFileName(str(path))
    reader.SetImageIO("GDCMImageIO")
    if not alike:  # ITK would press all slices into the type of the first one, whole numbers perhaps
        reader.SetOutputPixelType(SimpleITK.sitkFloat64)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        syntax = first.file_meta.TransferSyntaxUID
        if syntax in (*_NATIVE_SYNTAXES, _DEFLATED):
            raise InputError(f"{path}: cannot be read as an image ({reason(error)}); export it again.") from error
        raise InputError(
            f"{path}: its pixel data ({_one_line(syntax.name)}) cannot be decoded; export it again, or decompress it "
            "with gdcmconv --raw or with pydicom after pip install pylibjpeg[all]."
        ) from error
    array = SimpleITK.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = luma(str(path), array)
    array = array.T
    if array.shape != shape:
        raise InputError(f"{path}: ITK reads other sizes than its headers tell; convert it to .nii.gz first.")
    found = itk_affine(image.GetSpacing(), image.GetDirection(), image.GetOrigin())
    if affine is None:
        return array, found
    if len(series.files) == 1 and not alike:  # ITK gave all frames the slope and intercept of the first one
        slopes, intercepts = np.array([plane.rescale for plane in planes]).T
        array = np.rint((array - intercepts[0]) / slopes[0]) * slopes + intercepts
    if order != sorted(order):  # of frames that are stored in another order ITK does not know the place
        return array[..., order], affine
    if grids_differ(found, affine, shape):
        raise InputError(f"{path}: ITK puts it elsewhere than its headers tell; convert it to .nii.gz first.")
    return array, affine


def _has_prefix(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _headers(path: Path) -> Iterator[tuple[Path, Any]]:
    """The files with pixels of a folder, or the one file, each with its header."""
    from pydicom.uid import UID

    files = sorted(path.iterdir()) if path.is_dir() else [path]
    for file in files:
        if file.is_dir() or file.name.startswith("."):
            continue
        if not file.exists():
            raise InputError(f"{file}: is a link to nothing; remove it or put the file in its place.")
        if not is_dicom(file):
            continue
        if not _has_prefix(file):
            raise InputError(f"{file}: is no DICOM file, though its name says so; export it again or remove it.")
        with open(file, "rb") as stream:
            header = _read(file, stream)
        kind = UID(header.file_meta.get("MediaStorageSOPClassUID") or "").name
        if "Rows" in header:
            yield file, header
        elif not kind or "Image Storage" in kind:
            raise InputError(f"{file}: is cut short in its header; export it again or remove it.")


def _read(file: Path, stream: BinaryIO) -> Any:
    """The header up to the pixel data, where it leaves the stream."""
    import pydicom

    try:
        with pydicom.config.disable_value_validation():  # values longer than the standard allows are read well
            return pydicom.dcmread(stream, stop_before_pixels=True)
    except Exception as error:  # pydicom's own, and those of damaged values
        raise InputError(f"{file}: cannot be read as DICOM ({reason(error)}); export it again or remove it.") from error


def _read_whole(file: Path) -> Any:
    """The header of a file that holds the pixel data in full."""
    with open(file, "rb") as stream:
        header = _read(file, stream)
        announced = math.prod(_whole_number(file, header, keyword, default) for keyword, default in _BITS.items())
        syntax = header.file_meta.get("TransferSyntaxUID")
        if syntax in _NATIVE_SYNTAXES:
            tag = 8 if header.is_implicit_VR else 12
            whole = file.stat().st_size - stream.tell() - tag >= announced / 8
        else:  # what is deflated came whole, or not at all
            whole = syntax == _DEFLATED or _SEQUENCE_END in stream.read()
    if not whole:
        raise InputError(f"{file}: its pixel data are cut short or absent; export it again.")
    return header


def _whole_number(file: Path, header: Any, keyword: str, default: float = np.nan) -> int:
    number = _numbers(file, [header], keyword, 1, [default])[0]
    if not number >= 1:
        raise InputError(f"{file}: its {keyword} is absent or below one; export it again.")
    return int(number)


def _planes(path: Path, headers: Mapping[Path, Any]) -> list[_Plane]:
    """Where each slice or frame lies, in the order of the files; refused where they are not of one image."""
    (first_file, first), *others = headers.items()
    for keyword in ("FrameOfReferenceUID", "Rows", "Columns", "SamplesPerPixel"):
        for file, header in others:
            if header.get(keyword) != first.get(keyword):
                raise InputError(
                    f"{path}: {first_file.name} and {file.name} are of one series but differ in {keyword}; "
                    "move the files of another image to a folder of their own."
                )
    planes = []
    for file, header in headers.items():
        if "MOSAIC" in (header.get("ImageType") or ()):
            raise InputError(f"{file}: is a mosaic, many slices laid out as one; convert it with dcm2niix first.")
        count = _whole_number(file, header, "NumberOfFrames", 1)
        if others and count > 1:
            raise InputError(f"{path}: has several multi-frame files in one series; name one of them.")
        if count == 1 and "PerFrameFunctionalGroupsSequence" not in header:
            planes.append(_plane(file, file.name, [header]))
            continue
        groups = _functional_groups(file, header)
        if len(groups) != count:
            raise InputError(
                f"{file}: has {count} frames but says of {len(groups)} where they lie; convert it to .nii.gz first."
            )
        planes += [_plane(file, f"frame {number}", group) for number, group in enumerate(groups, 1)]
    return planes


def _functional_groups(file: Path, header: Any) -> list[list[Any]]:
    """For each frame the items that describe it, those of its own before those that all frames share."""
    try:
        shared = header.get("SharedFunctionalGroupsSequence") or []
        return [
            [element.value[0] for group in (own, *shared) for element in group if element.VR == "SQ" and element.value]
            for own in header.get("PerFrameFunctionalGroupsSequence") or []
        ]
    except Exception as error:  # a damaged value
        raise InputError(f"{file}: cannot be read as DICOM ({reason(error)}); export it again.") from error


def _plane(file: Path, name: str, sources: Sequence[Any]) -> _Plane:
    position = _numbers(file, sources, "ImagePositionPatient", 3)
    orientation = _numbers(file, sources, "ImageOrientationPatient", 6)
    spacing = _numbers(file, sources, "PixelSpacing", 2)
    slope, intercept = (
        _numbers(file, sources, keyword, 1, [default])[0]
        for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
    )
    if slope == 0:
        raise InputError(f"{file}: its RescaleSlope is 0, which leaves one value everywhere; export it again.")
    if orientation is not None:
        orientation = orientation.reshape(2, 3)
        if np.abs(orientation @ orientation.T - np.eye(2)).max() > _COSINE_TOLERANCE:
            raise InputError(
                f"{file}: its ImageOrientationPatient is not two perpendicular unit vectors; export it again."
            )
    if spacing is not None and spacing.min() <= 0:
        raise InputError(f"{file}: its PixelSpacing is not positive; export it again.")
    return _Plane(name, position, orientation, spacing, (slope, intercept))


def _numbers(
    file: Path, sources: Sequence[Any], keyword: str, count: int, default: Sequence[float] | None = None
) -> Any:
    """The value of the first source that has one, (count,)."""
    import pydicom

    for source in sources:
        try:
            with pydicom.config.disable_value_validation():  # values are parsed at this first access
                value = source.get(keyword)
            if value is None or value == "":
                continue
            numbers = np.atleast_1d(np.asarray(value, dtype=np.float64))
        except Exception as error:  # pydicom's own, and those of numpy
            raise InputError(f"{file}: its {keyword} is not a number ({reason(error)}); export it again.") from error
        if numbers.shape != (count,) or not np.isfinite(numbers).all():
            raise InputError(f"{file}: its {keyword} is not {count} finite numbers; export it again.")
        return numbers
    return None if default is None else np.array(default)


def _stack(path: Path, planes: Sequence[_Plane]) -> tuple[list[int], np.ndarray | None]:
    """The order of the planes along their normal, and the affine of the stack, (4, 4), RAS; None for one unplaced."""
    placed = {}
    for keyword, values in (
        ("ImagePositionPatient", [plane.position for plane in planes]),
        ("ImageOrientationPatient", [plane.orientation for plane in planes]),
        ("PixelSpacing", [plane.spacing for plane in planes]),
    ):
        missing = [plane.name for plane, value in zip(planes, values, strict=True) if value is None]
        if missing and len(planes) == 1:
            return [0], None
        if missing:
            raise InputError(
                f"{path}: {missing[0]} has no {keyword}, so that its place is unknown; export the series with it, or "
                "convert it to .nii.gz first."
            )
        placed[keyword] = np.array(values)
    positions = placed.pop("ImagePositionPatient")
    for keyword, stacked in placed.items():
        for plane, value in zip(planes, stacked, strict=True):
            if not np.allclose(value, stacked[0], rtol=_SAME, atol=_SAME):
                raise InputError(
                    f"{path}: {planes[0].name} and {plane.name} are of one series but differ in {keyword}; "
                    "move the files of another image to a folder of their own."
                )
    along_row, along_column = placed["ImageOrientationPatient"][0]
    rows, columns = placed["PixelSpacing"][0]
    normal = np.cross(along_row, along_column)
    normal /= np.linalg.norm(normal)
    order = np.argsort(positions @ normal, kind="stable")
    step = 1.0
    if len(planes) > 1:
        step = _check_steps(path, [planes[index].name for index in order], positions[order], normal)
    affine = np.eye(4)
    affine[:3] = np.stack([along_row * columns, along_column * rows, normal * step, positions[order[0]]], axis=1)
    return order.tolist(), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _check_steps(path: Path, names: Sequence[str], positions: np.ndarray, normal: np.ndarray) -> float:
    """The step of a regular stack, mm."""
    steps = np.diff(positions @ normal)
    index = int(steps.argmin())
    if steps[index] < _SAME_PLACE:
        raise InputError(
            f"{path}: {names[index]} and {names[index + 1]} lie at one place, as copies, time points or echoes do; "
            "leave one slice at each place."
        )
    median = float(np.median(steps))
    index = int(np.abs(steps - median).argmax())
    if abs(steps[index] - median) > _STEP_TOLERANCE * median:
        raise InputError(
            f"{path}: {names[index]} and {names[index + 1]} lie {steps[index]:.4g} mm apart where others lie "
            f"{median:.4g} mm apart, as if slices were missing; export the whole series, or resample it to even steps."
        )
    travel = positions[-1] - positions[0]
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(np.cross(travel, normal)), travel @ normal)))
    if tilt > _TILT_TOLERANCE:
        raise InputError(
            f"{path}: its slices lean by {tilt:.3g} degrees, as with a tilted gantry; "
            "convert it with dcm2niix, which sets them upright."
        )
    step = float(travel @ normal) / len(steps)
    regular = positions[0] + np.linspace(0, 1, len(positions))[:, None] * travel
    shifts = np.linalg.norm(positions - regular, axis=1)
    index = int(shifts.argmax())
    if shifts[index] > _STEP_TOLERANCE * step:
        raise InputError(
            f"{path}: {names[index]} lies {shifts[index]:.3g} mm beside its place in an even stack; "
            "resample the series to even steps."
        )
    return step


def _listing(found: Mapping[str, Mapping[Path, Any]]) -> str:
    return " and ".join(
        f"{_one_line(uid)} ({_one_line(next(iter(headers.values())).get('SeriesDescription')) or 'no description'}, "
        f"{sum(_whole_number(file, header, 'NumberOfFrames', 1) for file, header in headers.items())} slices)"
        for uid, headers in found.items()
    )


def _one_line(text: Any) -> str:
    """Text of a header, fit to stand inside a sentence."""
    return " ".join(str(text or "").split()).replace(". ", ", ")
