"""Results as DICOM objects: the warped image as a derived series, the field as a Deformable Spatial Registration.

Both stand in the study of fixed and in its frame of reference. They are made new: of the sources they take a short
list of attributes that identify the patient and the study or that the standard asks for, and nothing else, so that
no private attribute and no comment of a source comes along.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_jsm import __version__
from monai_jsm.data.dicom import Series
from monai_jsm.data.errors import InputError

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["check_dicom_output", "read_registration_object", "write_derived_series", "write_registration_object"]

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_REGISTRATION_CLASS = "1.2.840.10008.5.1.4.1.1.66.3"
_CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
_MR_CLASS = "1.2.840.10008.5.1.4.1.1.4"
_CLASSIC = {  # class of moving: class of the slices that are derived from it
    _CT_CLASS: _CT_CLASS,
    _CT_CLASS + ".1": _CT_CLASS,  # enhanced
    _CT_CLASS + ".2": _CT_CLASS,  # legacy converted enhanced
    _MR_CLASS: _MR_CLASS,
    _MR_CLASS + ".1": _MR_CLASS,
    _MR_CLASS + ".4": _MR_CLASS,
}
_MODALITY = {_CT_CLASS: "CT", _MR_CLASS: "MR"}
_IMAGE_KIND = {_CT_CLASS: "AXIAL", _MR_CLASS: "OTHER"}  # third value of ImageType: what each class has a term for

_OF_STUDY = (  # type 2 or 1: there even if empty
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
    *("FrameOfReferenceUID", "PositionReferenceIndicator"),
)
_OF_ACQUISITION = {  # type 2 as well
    _CT_CLASS: ("KVP", "AcquisitionNumber"),
    _MR_CLASS: (
        *("ScanningSequence", "SequenceVariant", "ScanOptions", "MRAcquisitionType"),
        *("RepetitionTime", "EchoTime", "EchoTrainLength"),
    ),
}
_OF_MOVING = (  # type 3 or conditional: there only with a value
    *("AcquisitionDate", "AcquisitionTime", "ContrastBolusAgent", "ImageLaterality", "BurnedInAnnotation"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction"),
)
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")

_LONGEST_DESCRIPTION = 64
_LOWEST, _HIGHEST = -(2**15), 2**15 - 1
_STEPS = 65000  # of the 65536 that int16 has: the slope is rounded to the 16 characters of a decimal string
_LARGEST_GRID = 2**32 - 2  # bytes; the length of a value has 32 bits
_SHEAR_TOLERANCE = 1e-3  # cosine between axes; converters round direction cosines to four digits


def check_dicom_output(fixed: Series, moving: Series, derived: bool = True) -> None:
    """Refuse a pair whose results cannot be written as DICOM, before any time is spent on registering it.

    Args:
        fixed: the series that the results join.
        moving: the series that was brought onto it.
        derived: whether a derived series is to be written; a registration object alone asks less of moving.

    Raises:
        InputError: if pydicom is older than version 3, a file lacks one of the identifiers that tie results to their
            images, the two series belong to different patients, or, of a derived series, moving is neither CT nor MR
            or has text burned into its pixels.
    """
    moving_headers = _checked_headers(fixed, moving)[1]
    if derived:
        _derived_class(moving, moving_headers[0])


def write_derived_series(
    folder: str | os.PathLike[str],
    warped: np.ndarray,
    affine: np.ndarray,
    fixed: Series,
    moving: Series,
    description: str = "",
) -> None:
    """Write a warped CT or MR image as a DICOM series, one file a slice, in the study of fixed.

    Slices are numbered along the normal of their rows and columns, which for a left-handed grid is from its last
    slice to its first. Voxels are int16. The step between two values is that of moving's own voxels, 1 HU at most for
    CT, or 1/65000 of the range where that is more than int16 can hold; a value is at most half a step off. MR of whole
    numbers needs no rescaling and is written without, as the MR image class has it; other MR carries slope and
    intercept as an extension of the class, which ITK, Slicer and viewers honour.

    Args:
        folder: to be made, complete or not at all; it may be there if it is empty.
        warped: moving on the grid of fixed, (X, Y, Z), in the units of moving (HU for CT).
        affine: voxel-to-world matrix of that grid, (4, 4), RAS, mm.
        fixed: gives patient, study and frame of reference.
        moving: gives the class of the files and what the standard asks to be said of the acquisition.
        description: SeriesDescription, at most 64 characters. Left out, "MOVING registered to FIXED".

    Raises:
        InputError: as :func:`check_dicom_output`, and if the folder holds anything.
        ValueError: if ``warped`` is not a finite (X, Y, Z) array, ``affine`` is no right-angled (4, 4) matrix, or the
            description is too long or holds a backslash.

    Reference:
        DICOM PS3.3, C.7.6.1 General Image, C.7.6.2 Image Plane, C.8.2.1 CT Image, C.8.3.1 MR Image.
    """
    folder = Path(folder)
    if len(description) > _LONGEST_DESCRIPTION or "\\" in description:
        raise ValueError(f"description must have at most {_LONGEST_DESCRIPTION} characters and no backslash.")
    voxels, lps = _right_handed(np.asarray(warped), affine, leading=0)
    fixed_headers, moving_headers = _checked_headers(fixed, moving)
    sop_class = _derived_class(moving, moving_headers[0])
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is there already, so it is left as it is; give a folder that is new or empty.")
    slope = min(_slopes(moving_headers))
    stored, slope, intercept = _quantised(voxels, min(slope, 1.0) if sop_class == _CT_CLASS else slope)

    middle = moving_headers[len(moving_headers) // 2]
    series = _new_object(sop_class, _MODALITY[sop_class], fixed_headers[0], middle)
    series.SeriesDescription = description or _title(fixed, moving)
    for keyword in _OF_ACQUISITION[sop_class]:
        _copy(series, middle, keyword)
    if sop_class == _MR_CLASS:  # type 1
        series.ScanningSequence = series.ScanningSequence or "RM"  # research mode
        series.SequenceVariant = series.SequenceVariant or "NONE"
    for keyword in _OF_MOVING:
        _copy(series, middle, keyword, optional=True)
    series.ImageType = ["DERIVED", "SECONDARY", _IMAGE_KIND[sop_class]]
    _copy(series, fixed_headers[0], "PatientPosition")
    _describe_derivation(series, fixed, moving, [*fixed_headers, *moving_headers])
    _refer(series, [*fixed_headers, *moving_headers])
    _set_grid(series, lps)
    series.PixelSpacing = _decimals(np.linalg.norm(lps[:3, [1, 0]], axis=0))  # between rows first
    series.SliceThickness = series.SpacingBetweenSlices = _decimals([np.linalg.norm(lps[:3, 2])])[0]
    series.SamplesPerPixel = 1
    inverted = middle.get("PhotometricInterpretation") == "MONOCHROME1"
    series.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    series.Columns, series.Rows = stored.shape[:2]
    series.BitsAllocated, series.BitsStored, series.HighBit, series.PixelRepresentation = 16, 16, 15, 1
    if sop_class == _CT_CLASS or (slope, intercept) != (1.0, 0.0):
        series.RescaleSlope, series.RescaleIntercept = _decimals([slope, intercept])
        series.RescaleType = "HU" if sop_class == _CT_CLASS else "US"
    _save_slices(folder, series, stored, lps)


def write_registration_object(
    path: str | os.PathLike[str], field: np.ndarray, affine: np.ndarray, fixed: Series, moving: Series
) -> None:
    """Write a field as a DICOM Deformable Spatial Registration object in the study of fixed.

    It says where in moving's frame of reference a point of fixed's lies: ``source = registered + field(registered)``,
    the direction of the ITK field. Its grid is right-handed by definition, so a left-handed one is written from its
    last slice to its first.

    Args:
        path: the file to write or replace.
        field: (3, X, Y, Z), mm, LPS, on the grid of fixed, pull-back, as
            :func:`monai_jsm.geometry.itk_displacement` makes it; written as float32.
        affine: voxel-to-world matrix of that grid, (4, 4), RAS, mm.
        fixed: gives patient, study and the registered frame of reference.
        moving: its frame of reference is the source.

    Raises:
        InputError: if pydicom is older than version 3, a file lacks one of the identifiers that tie a registration to
            its images, the two series belong to different patients, or the field is larger than a DICOM value can be.
        ValueError: if ``field`` is not a finite (3, X, Y, Z) array or ``affine`` is no right-angled (4, 4) matrix.

    Reference:
        DICOM PS3.3, C.20.3 Deformable Spatial Registration Module.
    """
    from pydicom import Dataset, dcmwrite

    path = Path(path)
    vectors, lps = _right_handed(np.asarray(field), affine, leading=1)
    if vectors.size * 4 > _LARGEST_GRID:
        raise InputError(f"{path}: the field is larger than the 4 GiB that a DICOM value can be; crop the fixed image.")
    fixed_headers, moving_headers = _checked_headers(fixed, moving)
    result = _new_object(_REGISTRATION_CLASS, "REG", fixed_headers[0], fixed_headers[0])
    result.SeriesDescription = _title(fixed, moving)
    result.InstanceNumber = 1
    result.DeviceSerialNumber = __version__  # type 1, and software has none
    result.ContentLabel = "REGISTRATION"
    result.ContentDescription = result.SeriesDescription
    result.ContentCreatorName = None

    grid = Dataset()
    _set_grid(grid, lps)
    grid.GridDimensions = list(vectors.shape[1:])
    grid.GridResolution = np.linalg.norm(lps[:3, :3], axis=0).tolist()
    grid.VectorGridData = np.ascontiguousarray(vectors.transpose(3, 2, 1, 0), dtype="<f4").tobytes()  # (Z, Y, X, 3)
    identity = Dataset()
    identity.FrameOfReferenceTransformationMatrix = _decimals(np.eye(4).ravel())
    identity.FrameOfReferenceTransformationMatrixType = "RIGID"
    item = Dataset()
    item.SourceFrameOfReferenceUID = moving_headers[0].FrameOfReferenceUID
    item.ReferencedImageSequence = _references(moving_headers)
    item.RegistrationTypeCodeSequence = [_code("125024", "Image Content-based Alignment")]
    item.PreDeformationMatrixRegistrationSequence = [identity]
    item.PostDeformationMatrixRegistrationSequence = [identity]
    item.DeformableRegistrationGridSequence = [grid]
    result.DeformableRegistrationSequence = [item]
    _refer(result, [*fixed_headers, *moving_headers])

    building = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        dcmwrite(building, result, enforce_file_format=True)
        os.replace(building, path)
    finally:
        building.unlink(missing_ok=True)


def read_registration_object(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read the field of a DICOM Deformable Spatial Registration object.

    The matrices before and after the deformation are folded in: with both, the point p of the registered frame lies
    at ``M_post @ (M_pre @ p + vector(p))`` in the source frame, and the field returned is the whole way from p.

    Args:
        path: an object with one deformation grid. Registrations without a grid beside it are passed over.

    Returns:
        The field, (3, X, Y, Z) float32, mm, LPS, pull-back, and the voxel-to-world matrix of its grid, (4, 4), RAS,
        mm. The grid is right-handed.

    Raises:
        InputError: if the file is absent, damaged or another kind of object, has no grid or several, or its field is
            undefined (NaN) or infinite anywhere.

    Reference:
        DICOM PS3.3, C.20.3.1.1 Deformable Registration Sequence Application.
    """
    from pydicom import dcmread

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; correct the path.")
    try:
        whole = dcmread(path)
        sop_class = whole.get("SOPClassUID")
        items = whole.get("DeformableRegistrationSequence") or []
        pairs = [(item, grid) for item in items if (grid := _first(item, "DeformableRegistrationGrid")) is not None]
    except Exception as error:  # a damaged file fails in many ways
        raise InputError(f"{path}: cannot be read as DICOM; give a Deformable Spatial Registration object.") from error
    if sop_class != _REGISTRATION_CLASS:
        raise InputError(
            f"{path}: is no Deformable Spatial Registration object; give one, or the field as .nii.gz, .mha or .nrrd."
        )
    if len(pairs) != 1:
        raise InputError(
            f"{path}: holds {len(pairs)} deformation grids where one must stand; "
            "export one deformable registration alone."
        )
    item, grid = pairs[0]
    try:
        vectors, lps = _parse_grid(grid, "<" if whole.file_meta.TransferSyntaxUID.is_little_endian else ">")
        pre = _parse_matrix(item, "PreDeformationMatrixRegistration")
        post = _parse_matrix(item, "PostDeformationMatrixRegistration")
    except Exception as error:  # an attribute that is absent, empty, of a wrong length or no number
        raise InputError(f"{path}: its deformation grid is damaged or incomplete; export it again.") from error
    if not np.isfinite(vectors).all():
        raise InputError(
            f"{path}: its field is undefined (NaN or infinite) in places; export it on a grid that it covers in full."
        )
    i, j, k = np.ogrid[tuple(map(slice, vectors.shape[1:]))]
    field = np.empty(vectors.shape, dtype=np.float32)
    for component, turned, (x, y, z, shift) in zip(field, post, (post @ pre - np.eye(4)) @ lps, strict=False):
        component[:] = x * i + y * j + z * k + shift
        for weight, vector in zip(turned, vectors, strict=False):
            component += weight * vector
    return field, _LPS @ lps


def _parse_grid(grid: Dataset, byte_order: str) -> tuple[np.ndarray, np.ndarray]:
    """Vectors, (3, X, Y, Z), and voxel-to-LPS matrix."""
    row, column = np.array(grid.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    lps = np.eye(4)
    lps[:3, :3] = np.stack([row, column, np.cross(row, column)], axis=1)
    lps[:3, :3] *= np.array(grid.GridResolution, dtype=np.float64)
    lps[:3, 3] = np.array(grid.ImagePositionPatient, dtype=np.float64)
    shape = tuple(int(size) for size in grid.GridDimensions)
    if min(shape) < 1 or not np.isfinite(lps).all() or np.linalg.det(lps) <= 0:
        raise ValueError("a grid has voxels along every axis, and three axes.")
    vectors = np.frombuffer(grid.VectorGridData, dtype=f"{byte_order}f4").reshape(*shape[::-1], 3)
    return vectors.transpose(3, 2, 1, 0), lps


def _parse_matrix(item: Dataset, name: str) -> np.ndarray:
    found = _first(item, name)
    if found is None:
        return np.eye(4)
    matrix = np.array(found.FrameOfReferenceTransformationMatrix, dtype=np.float64).reshape(4, 4)
    if not np.isfinite(matrix).all():
        raise ValueError("a matrix is made of finite numbers.")
    return matrix


def _first(parent: Dataset, name: str) -> Dataset | None:
    """The first item of a sequence, None where it is absent or empty."""
    return next(iter(parent.get(f"{name}Sequence") or ()), None)


def _checked_headers(fixed: Series, moving: Series) -> tuple[list[Dataset], list[Dataset]]:
    """The headers of the two series, once it is sure that results can be tied to them."""
    import pydicom

    if int(pydicom.__version__.split(".")[0]) < 3:
        raise InputError("DICOM output needs pydicom 3 or newer; pip install 'pydicom>=3'.")
    headers: list[list[Dataset]] = []
    for series in (fixed, moving):
        headers.append([pydicom.dcmread(file, stop_before_pixels=True) for file in series.files])
        for file, header in zip(series.files, headers[-1], strict=True):
            for keyword in _NEEDED:
                if not header.get(keyword):
                    raise InputError(
                        f"{file}: lacks {keyword}, without which a result cannot refer to it; "
                        "export the series again, or give it as NIfTI and take results as NIfTI."
                    )
    patients = [series[0].get("PatientID") for series in headers]
    if all(patients) and patients[0] != patients[1]:
        raise InputError(
            f"{moving.files[0]}: has another PatientID than the fixed series, in whose study the result would stand; "
            "give both as NIfTI, or correct the PatientID."
        )
    return headers[0], headers[1]


def _derived_class(moving: Series, header: Dataset) -> str:
    if header.SOPClassUID not in _CLASSIC:
        raise InputError(
            f"{moving.files[0]}: is neither CT nor MR ({header.SOPClassUID.name}), so that no DICOM series can be "
            "derived from it; give it as NIfTI and take the warped image as NIfTI."
        )
    if header.get("BurnedInAnnotation") == "YES":
        raise InputError(
            f"{moving.files[0]}: has text burned into its pixels, which a derived series would carry on; "
            "remove it, or give the series as NIfTI."
        )
    return _CLASSIC[header.SOPClassUID]


def _right_handed(array: np.ndarray, affine: np.ndarray, leading: int) -> tuple[np.ndarray, np.ndarray]:
    """The same voxels, (..., X, Y, Z), on a grid whose third axis is row x column, and its matrix in LPS."""
    shape = ("(3, X, Y, Z)" if leading else "(X, Y, Z)") + " array"
    if array.ndim != 3 + leading or (leading and len(array) != 3) or not np.isfinite(array).all():
        raise ValueError(f"a finite {shape} is needed, got one of the shape {array.shape}.")
    lps = _LPS @ np.asarray(affine, dtype=np.float64)  # fails for any other shape than (4, 4)
    axes = lps[:3, :3] / np.linalg.norm(lps[:3, :3], axis=0)
    if not np.abs(axes.T @ axes - np.eye(3)).max() < _SHEAR_TOLERANCE:  # NaN is refused too
        raise ValueError(f"the axes of the grid must stand at right angles, got the affine {lps.tolist()} (LPS).")
    if np.linalg.det(axes) < 0:
        lps[:3, 3] += lps[:3, 2] * (array.shape[-1] - 1)
        lps[:3, 2] *= -1
        array = array[..., ::-1]
    return array, lps


def _quantised(voxels: np.ndarray, step: float) -> tuple[np.ndarray, float, float]:
    """int16 voxels, slope and intercept: multiples of ``step`` where they fit, else 65000 steps over the range."""
    low, high = float(voxels.min()), float(voxels.max())
    step, intercept = _rounded(step), 0.0
    if low / step < _LOWEST or high / step > _HIGHEST:
        step = _rounded(max(step, (high - low) / _STEPS))
        intercept = _rounded(round((low + high) / 2 / step) * step)
    stored = np.rint((voxels.astype(np.float64) - intercept) / step)
    return stored.astype(np.int16), step, intercept


def _slopes(headers: Iterable[Dataset]) -> list[float]:
    """Rescale slopes of the slices or frames, 1 where there is none."""
    slopes = []
    for header in headers:
        groups = [
            *(header.get("SharedFunctionalGroupsSequence") or ()),
            *(header.get("PerFrameFunctionalGroupsSequence") or ()),
        ]
        found = [_first(group, "PixelValueTransformation") for group in groups]
        slopes += [
            float(item.RescaleSlope or 0) for item in (header, *found) if item is not None and "RescaleSlope" in item
        ]
    return [slope for slope in slopes if 0 < slope < np.inf] or [1.0]


def _new_object(sop_class: str, modality: str, study: Dataset, body: Dataset) -> Dataset:
    """What every object of ours begins with: patient, study and frame from ``study``, body part from ``body``."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    now = datetime.now()
    new = Dataset()
    new.file_meta = FileMetaDataset()
    new.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    new.SpecificCharacterSet = "ISO_IR 192"  # UTF-8, since text of two sources comes together
    new.SOPClassUID = sop_class
    new.SOPInstanceUID = generate_uid(prefix=None)
    new.SeriesInstanceUID = generate_uid(prefix=None)
    new.Modality = modality
    new.SeriesNumber = None
    new.SeriesDate = new.ContentDate = now.strftime("%Y%m%d")
    new.SeriesTime = new.ContentTime = now.strftime("%H%M%S")
    new.Manufacturer = new.ManufacturerModelName = "monai_jsm"
    new.SoftwareVersions = __version__
    for keyword in _OF_STUDY:
        _copy(new, study, keyword)
    _copy(new, study, "IssuerOfPatientID", optional=True)
    _copy(new, body, "BodyPartExamined", optional=True)
    # Type 2C: absent with a body part that comes once or with ImageLaterality, empty where neither is known.
    _copy(new, body, "Laterality", optional="BodyPartExamined" in new or bool(body.get("ImageLaterality")))
    return new


def _copy(new: Dataset, source: Dataset, keyword: str, optional: bool = False) -> None:
    """Take over one attribute; where the source has none or one that cannot be read, it is empty or left out."""
    from pydicom.datadict import dictionary_VR

    try:
        value: Any = source.get(keyword)
        representation = dictionary_VR(keyword)
        if representation == "PN":
            value = str(value or "")  # decoded, to be written in our character set
        elif representation == "DS" and value is not None and value != "":
            value = _decimals([value] if isinstance(value, (str, float, int)) else value)
    except (TypeError, ValueError, OverflowError):
        value = None
    if not optional or (value is not None and value != ""):
        setattr(new, keyword, value)


def _set_grid(new: Dataset, lps: np.ndarray) -> None:
    axes = lps[:3, :2] / np.linalg.norm(lps[:3, :2], axis=0)
    new.ImagePositionPatient = _decimals(lps[:3, 3])
    new.ImageOrientationPatient = _decimals(axes.T.ravel())


def _describe_derivation(new: Dataset, fixed: Series, moving: Series, sources: Sequence[Dataset]) -> None:
    new.DerivationCodeSequence = [_code("113085", "Spatial resampling")]
    new.DerivationDescription = (
        f"Warped by monai_jsm {__version__}: the moving series {moving.uid} was resampled through a deformation onto "
        f"the grid of the fixed series {fixed.uid}."
    )
    new.SourceImageSequence = _references(sources, _code("121322", "Source image for image processing operation"))


def _references(headers: Iterable[Dataset], purpose: Dataset | None = None) -> list[Dataset]:
    from pydicom import Dataset

    items = []
    for header in headers:
        item = Dataset()
        item.ReferencedSOPClassUID = header.SOPClassUID
        item.ReferencedSOPInstanceUID = header.SOPInstanceUID
        if purpose is not None:
            item.PurposeOfReferenceCodeSequence = [purpose]
        items.append(item)
    return items


def _refer(new: Dataset, sources: Iterable[Dataset]) -> None:
    """Say of which series, and of which other study, the referenced images are: Common Instance Reference Module."""
    from pydicom import Dataset

    studies: dict[str, dict[str, list[Dataset]]] = {}
    for header in sources:
        series = studies.setdefault(header.StudyInstanceUID, {})
        series.setdefault(header.SeriesInstanceUID, []).append(header)
    for study, members in studies.items():
        listed = []
        for uid, headers in members.items():
            item = Dataset()
            item.SeriesInstanceUID = uid
            item.ReferencedInstanceSequence = _references(headers)
            listed.append(item)
        if study == new.StudyInstanceUID:
            new.ReferencedSeriesSequence = listed
        else:
            other = Dataset()
            other.StudyInstanceUID = study
            other.ReferencedSeriesSequence = listed
            new.StudiesContainingOtherReferencedInstancesSequence = [other]


def _code(value: str, meaning: str) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = "DCM"
    item.CodeMeaning = meaning
    return item


def _title(fixed: Series, moving: Series) -> str:
    """SeriesDescription of a result; the longer of the two names is shortened until it fits.

    Example:
        >>> _title(Series("1.2", (), "CT plan"), Series("1.3", (), ""))
        'moving registered to CT plan'
    """
    names = [moving.description.strip() or "moving", fixed.description.strip() or "fixed"]
    names = [name.replace("\\", "/") for name in names]
    room = _LONGEST_DESCRIPTION - len(" registered to ")
    share = max(room // 2, room - min(map(len, names)))
    return " registered to ".join(name[:share] for name in names)


def _decimals(values: Iterable[Any]) -> list[Any]:
    """Decimal strings of at most 16 characters."""
    from pydicom.valuerep import DS

    return [DS(float(value), auto_format=True) for value in values]


def _rounded(value: float) -> float:
    """What a reader gets back of a number that is written as a decimal string."""
    from pydicom.valuerep import format_number_as_ds

    return float(format_number_as_ds(value))


def _save_slices(folder: Path, series: Dataset, stored: np.ndarray, lps: np.ndarray) -> None:
    from pydicom import dcmread, dcmwrite
    from pydicom.uid import generate_uid

    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for index in range(stored.shape[2]):
            series.SOPInstanceUID = generate_uid(prefix=None)
            series.InstanceNumber = index + 1
            series.ImagePositionPatient = _decimals(lps[:3, 3] + index * lps[:3, 2])
            series.add_new("PixelData", "OW", np.ascontiguousarray(stored[:, :, index].T, dtype="<i2").tobytes())
            path = building / f"{index + 1:06d}.dcm"
            dcmwrite(path, series, enforce_file_format=True)
            if index == 0:
                series = dcmread(path)  # holds its sequences encoded, so that they are not encoded for every slice
        building.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        os.replace(building, folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
