"""Transform files: displacement fields and linear transforms as ITK, ANTs, Slicer, FSL and DICOM hold them.

A registration's total map T takes a fixed point p of the world to moving. Here ``field`` is T in millimetres along LPS
axes on the fixed grid, ``p + field(p) = T(p)``, and ``theta`` its linear part on RAS world coordinates, which comes
last: ``T = theta after (id + residual)``.
"""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from monai_jsm.data.errors import InputError
from monai_jsm.data.images import (
    MOST_VOXELS,
    _check_affine,
    _check_body,
    _check_header,
    _text_header,
    _unpack,
    itk_affine,
    reason,
)
from monai_jsm.geometry import carry_points, invert_points, voxel_to_world, world_to_voxel

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813

__all__ = [
    "FieldTransform",
    "LinearTransform",
    "carry_world",
    "carry_world_back",
    "file_affine",
    "place_itk",
    "read_transform",
    "write_composite",
    "write_field",
    "write_fsl_warp",
    "write_learn2reg",
]

_NIFTI = (".nii", ".nii.gz")
_IMAGES = (".mha", ".nrrd")
_COMPOSITES = (".h5", ".tfm")
_TRANSFORMS = (*_COMPOSITES, ".mat", ".txt")
_VECTOR, _DISPLACEMENT_VECTOR, _FNIRT_DISPLACEMENT = 1007, 1006, 2006  # NIfTI intent codes; the last one is FSL's
_TO_LPS = (-1.0, -1.0, 1.0)
_LONGEST = 1e4  # mm; a longer vector is a wrong unit or a damaged file
_MISS = 0.01  # voxels by which a point carried back may be missed when carried forward again


@dataclass(frozen=True, eq=False)
class LinearTransform:
    """A linear map of the world.

    Attributes:
        theta: (D+1, D+1), float64, RAS, mm.
    """

    theta: Tensor

    @property
    def spatial_dims(self) -> int:
        """D."""
        return len(self.theta) - 1


@dataclass(frozen=True, eq=False)
class FieldTransform:
    """A displacement of the world, given on a grid: ``p`` goes to ``p + displacement(p)``.

    Attributes:
        displacement: (D, *S), float64, mm along RAS axes.
        affine: voxel-to-world matrix of its grid, (D+1, D+1), float64, RAS, mm.
    """

    displacement: Tensor
    affine: Tensor

    @property
    def spatial_dims(self) -> int:
        """D."""
        return len(self.displacement)


def file_affine(affine: np.ndarray, spatial_dims: int) -> np.ndarray:
    """The 4x4 matrix that a NIfTI file of a 2D or 3D image carries.

    Args:
        affine: voxel-to-world matrix (RAS, mm), (D+1, D+1) or (4, 4).
        spatial_dims: D. A 2D image keeps the third axis of a (4, 4) matrix, and gets a unit one otherwise.

    Returns:
        (4, 4) float64.

    Example:
        >>> file_affine(np.array([[2.0, 0.0, 5.0], [0.0, 3.0, 6.0], [0.0, 0.0, 1.0]]), 2)[:, 3]
        array([5., 6., 0., 1.])
    """
    affine = np.asarray(affine, dtype=np.float64)
    if len(affine) == 4:
        return affine
    full = np.eye(4)
    full[:spatial_dims, :spatial_dims] = affine[:spatial_dims, :spatial_dims]
    full[:spatial_dims, 3] = affine[:spatial_dims, -1]
    return full


def write_field(path: str | os.PathLike[str], field: np.ndarray, affine: np.ndarray) -> None:
    """Write an ITK displacement field: float32 vectors, mm in LPS axes, pull-back, on the fixed grid.

    As NIfTI it has the vector intent 1007; the header's matrix is RAS, as NIfTI has it, while the vectors stay LPS: so
    ITK, ANTs (``*Warp.nii.gz``) and Slicer write and read it.

    Args:
        path: ends in ``.nii``, ``.nii.gz``, ``.mha`` or ``.nrrd``.
        field: (D, *S), mm, LPS, as :func:`monai_jsm.geometry.itk_displacement` makes it.
        affine: voxel-to-world matrix (RAS, mm) of the fixed grid, (D+1, D+1) or (4, 4).

    Raises:
        InputError: if ``path`` ends otherwise.
    """
    path = _path_ending_in(path, (*_NIFTI, *_IMAGES), "displacement fields")
    spatial_dims = len(field)
    if path.name.lower().endswith(_NIFTI):
        vectors = np.moveaxis(np.asarray(field, dtype=np.float32), 0, -1)  # (*S, D)
        vectors = vectors.reshape(*vectors.shape[:-1], *[1] * (4 - spatial_dims), spatial_dims)  # (X, Y, Z, 1, D)
        _save_nifti(path, vectors, file_affine(affine, spatial_dims), _VECTOR)
        return
    import SimpleITK as sitk  # noqa: N813

    sitk.WriteImage(_itk_vectors(np.asarray(field, dtype=np.float32), affine), os.fspath(path))


def write_composite(path: str | os.PathLike[str], field: np.ndarray, theta: np.ndarray, affine: np.ndarray) -> None:
    """Write an ITK composite transform that keeps the linear part apart: first the residual field, then ``theta``.

    Args:
        path: ends in ``.h5`` or ``.tfm``.
        field: the total map, (D, *S), mm, LPS.
        theta: its linear part on world coordinates (RAS, mm), (D+1, D+1).
        affine: voxel-to-world matrix (RAS, mm) of the fixed grid, (D+1, D+1) or (4, 4).

    Raises:
        InputError: if ``path`` ends otherwise.
    """
    path = _path_ending_in(path, _COMPOSITES, "composite transforms")
    import SimpleITK as sitk  # noqa: N813

    spatial_dims = len(field)
    theta = np.asarray(theta, dtype=np.float64)
    world = _world(field.shape[1:], affine)
    residual = _apply(np.linalg.inv(theta), world + _turned(field)) - world
    # The transform takes the image over and leaves it empty.
    displacement = sitk.DisplacementFieldTransform(_itk_vectors(_turned(residual), affine))
    turn = np.diag([*_TO_LPS[:spatial_dims], 1.0])
    in_lps = turn @ theta @ turn
    linear = sitk.AffineTransform(spatial_dims)
    linear.SetMatrix(in_lps[:-1, :-1].ravel().tolist())
    linear.SetTranslation(in_lps[:-1, -1].tolist())
    sitk.WriteTransform(sitk.CompositeTransform([linear, displacement]), os.fspath(path))  # the last one runs first


def write_fsl_warp(
    path: str | os.PathLike[str],
    field: np.ndarray,
    affine: np.ndarray,
    moving_affine: np.ndarray,
    moving_shape: Sequence[int],
) -> None:
    """Write a relative warp as FSL's FNIRT does, for ``applywarp --rel``.

    FSL's coordinates are voxels times spacing, the first axis counted from its other end where the affine is
    right-handed. The warp leads from those of the fixed image to those of the moving image.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.
        field: the total map, (3, X, Y, Z), mm, LPS.
        affine: voxel-to-world matrix (RAS, mm) of the fixed grid, (4, 4).
        moving_affine: the same of the moving image.
        moving_shape: the 3 sizes of the moving image.

    Raises:
        InputError: if ``path`` ends otherwise or the field is not 3D.
    """
    path = _path_ending_in(path, _NIFTI, "FSL warps")
    _need_3d(path, field, "an FSL warp")
    moving = _apply(np.linalg.inv(moving_affine), _world(field.shape[1:], affine) + _turned(field))
    warp = _apply(_voxel_to_fsl(moving_affine, moving_shape), moving)
    warp -= _apply(_voxel_to_fsl(affine, field.shape[1:]), np.indices(field.shape[1:]))
    _save_nifti(path, np.moveaxis(warp.astype(np.float32), 0, -1), affine, _FNIRT_DISPLACEMENT)


def write_learn2reg(
    path: str | os.PathLike[str], field: np.ndarray, affine: np.ndarray, moving_affine: np.ndarray
) -> None:
    """Write a displacement as the Learn2Reg challenge takes it: (X, Y, Z, 3) float32, voxels, array-axis order.

    A fixed voxel ``x`` lies at the voxel ``x + displacement(x)`` of the moving image. The challenge names such a file
    ``disp_FFFF_MMMM.nii.gz`` after the numbers of the two images.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.
        field: the total map, (3, X, Y, Z), mm, LPS.
        affine: voxel-to-world matrix (RAS, mm) of the fixed grid, (4, 4).
        moving_affine: the same of the moving image.

    Raises:
        InputError: if ``path`` ends otherwise or the field is not 3D.
    """
    path = _path_ending_in(path, _NIFTI, "Learn2Reg displacements")
    _need_3d(path, field, "a Learn2Reg displacement")
    moving = _apply(np.linalg.inv(moving_affine), _world(field.shape[1:], affine) + _turned(field))
    displacement = (moving - np.indices(field.shape[1:])).astype(np.float32)
    _save_nifti(path, np.moveaxis(displacement, 0, -1), affine, 0)


def read_transform(paths: Sequence[str | os.PathLike[str]]) -> tuple[LinearTransform | FieldTransform, ...]:
    """Read transforms, each of one or several parts, that a fixed point runs through from first to last.

    This is the order of ANTs' transform list: ``[1Warp.nii.gz, 0GenericAffine.mat]`` is the warp and then the affine.

    Args:
        paths: ITK displacement fields (``.nii``, ``.nii.gz``, ``.mha``, ``.nrrd``), ITK transforms (``.h5``, ``.tfm``,
            ``.mat``, ``.txt``) that are linear, displacement fields or composites of these, and DICOM Deformable
            Spatial Registration objects (``.dcm``). A 3D NIfTI field with the intent 1006 holds RAS vectors, as ITK
            has it; one without a vector intent does not say its axes and is refused, as are the warps of FSL.

    Returns:
        The parts, in RAS.

    Raises:
        InputError: if a file is absent, damaged, of another format or dimension than the others, no transform, a
            transform of another kind, or holds NaN, infinite or more than 1e4 mm long displacements, a singular
            matrix, or a grid that is sheared or larger than 2^30 values.
    """
    parts: list[LinearTransform | FieldTransform] = []
    for path in map(Path, paths):
        for part in _read(path):
            if parts and part.spatial_dims != parts[0].spatial_dims:
                raise InputError(
                    f"{path}: is a {part.spatial_dims}D transform where those before it are {parts[0].spatial_dims}D; "
                    "give the transforms of one registration."
                )
            parts.append(part)
    return tuple(parts)


def carry_world(points: Tensor, parts: Sequence[LinearTransform | FieldTransform]) -> tuple[Tensor, Tensor]:
    """Carry fixed points to moving through the parts of a transform, from first to last.

    Args:
        points: (N, D), RAS, mm.
        parts: as :func:`read_transform` gives them.

    Returns:
        The points, (N, D), float64, RAS, mm, and whether each is known, (N,): it is not where a field was asked more
        than half a voxel outside of its grid; there the displacement of the border is taken.

    Example:
        >>> shift = LinearTransform(torch.tensor([[1.0, 0.0, 4.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        >>> field = FieldTransform(torch.ones(2, 5, 6, dtype=torch.float64), torch.eye(3))
        >>> carry_world(torch.tensor([[1.0, 2.0], [9.0, 2.0]]), (field, shift))
        (tensor([[ 6.,  3.],
                [14.,  3.]], dtype=torch.float64), tensor([ True, False]))
    """
    now = points.to(torch.float64)
    known = torch.ones(len(now), dtype=torch.bool)
    for part in parts:
        if isinstance(part, LinearTransform):
            now = voxel_to_world(now, part.theta)
            continue
        at = world_to_voxel(now, part.affine)
        known &= _within(at, part)
        now = now + (carry_points(at[None], part.displacement[None])[0] - at)  # the field is in mm
    return now, known


def carry_world_back(points: Tensor, parts: Sequence[LinearTransform | FieldTransform]) -> tuple[Tensor, Tensor]:
    """Carry moving points to fixed: the inverse of :func:`carry_world`, through the parts from last to first.

    Args:
        points: (N, D), RAS, mm.
        parts: as :func:`read_transform` gives them, in the order of :func:`carry_world`.

    Returns:
        The points, (N, D), float64, RAS, mm, and whether each is known, (N,): it is not where it comes from more than
        half a voxel outside of a field's grid, or is missed by more than 0.01 voxel when carried forward again.
    """
    now = points.to(torch.float64)
    known = torch.ones(len(now), dtype=torch.bool)
    for part in reversed(parts):
        if isinstance(part, LinearTransform):
            now = world_to_voxel(now, part.theta)
            continue
        in_voxels = torch.linalg.inv(part.affine[:-1, :-1])
        ddf = torch.einsum("rc,c...->r...", in_voxels, part.displacement)[None]
        found, error = invert_points(world_to_voxel(now, part.affine)[None], ddf, tolerance=1e-6)
        known &= _within(found[0], part) & (error[0] <= _MISS)
        now = voxel_to_world(found[0], part.affine)
    return now, known


def _turned(vectors: np.ndarray) -> np.ndarray:
    """LPS vectors in RAS or RAS vectors in LPS, float64; (D, *S)."""
    turned = np.array(vectors, dtype=np.float64)
    turned[:2] *= -1
    return turned


def _cut(affine: np.ndarray, spatial_dims: int) -> np.ndarray:
    kept = [*range(spatial_dims), -1]
    return np.asarray(affine, dtype=np.float64)[np.ix_(kept, kept)]


def _apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A homogeneous matrix on points, (D, *S)."""
    shift = matrix[:-1, -1].reshape(-1, *[1] * (points.ndim - 1))
    return np.einsum("rc,c...->r...", matrix[:-1, :-1], points) + shift


def _world(shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """World coordinates of every voxel, (D, *S), RAS, mm."""
    return _apply(_cut(affine, len(shape)), np.indices(shape))


def _voxel_to_fsl(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    matrix = np.diag([*spacing, 1.0])
    if np.linalg.det(affine[:3, :3]) > 0:
        matrix[0, 0] *= -1
        matrix[0, 3] = (shape[0] - 1) * spacing[0]
    return matrix


def _path_ending_in(path: str | os.PathLike[str], suffixes: Sequence[str], what: str) -> Path:
    path = Path(path)
    if not path.name.lower().endswith(tuple(suffixes)):
        raise InputError(f"{path}: is of a format in which no {what} are written; end it in {' or '.join(suffixes)}.")
    return path


def _need_3d(path: Path, field: np.ndarray, what: str) -> None:
    if len(field) != 3:
        raise InputError(
            f"{path}: cannot be written, for {what} is 3D and this registration is 2D; write an ITK field instead."
        )


def _save_nifti(path: Path, array: np.ndarray, affine: np.ndarray, intent: int) -> None:
    image = nib.Nifti1Image(array, affine)
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    image.header.set_intent(intent, allow_unknown=True)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def _itk_vectors(field: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """An ITK vector image of LPS vectors, (D, *S), of the same type."""
    import SimpleITK as sitk  # noqa: N813

    return place_itk(sitk.GetImageFromArray(np.ascontiguousarray(field.T), isVector=True), affine)  # (Z, Y, X, 3)


def place_itk(image: sitk.Image, affine: np.ndarray) -> sitk.Image:
    """Give an ITK image of D axes its place in the world, and return it.

    Args:
        image: changed in place.
        affine: voxel-to-world matrix (RAS, mm), (D+1, D+1) or (4, 4).
    """
    matrix = _cut(affine, image.GetDimension())
    matrix[:2] *= -1
    spacing = np.linalg.norm(matrix[:-1, :-1], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((matrix[:-1, :-1] / spacing).ravel().tolist())
    image.SetOrigin(matrix[:-1, -1].tolist())
    return image


def _read(path: Path) -> list[LinearTransform | FieldTransform]:
    if not path.exists():
        raise InputError(f"{path}: there is no such file; correct the path.")
    if path.is_dir():
        raise InputError(f"{path}: is a folder and not a transform; name the file in it.")
    name = path.name.lower()
    reader: Callable[[Path], list[LinearTransform | FieldTransform]]
    if name.endswith(_NIFTI):
        reader = _read_nifti
    elif name.endswith(_IMAGES):
        reader = _read_itk_image
    elif name.endswith(_TRANSFORMS):
        reader = _read_itk_transform
    elif name.endswith(".dcm"):
        reader = _read_dicom
    else:
        known = ", ".join((*_NIFTI, *_IMAGES, *_TRANSFORMS))
        raise InputError(f"{path}: is of a format that is not read as a transform; give {known} or .dcm.")
    try:
        parts = reader(path)
        for part in parts:
            _check_part(path, part)
    except InputError:
        raise
    except Exception as error:  # each reader has its own exceptions for damaged files
        raise InputError(f"{path}: cannot be read as a transform ({reason(error)}); write the file again.") from error
    return parts


def _within(voxels: Tensor, part: FieldTransform) -> Tensor:
    """Which points lie within half a voxel of the grid, (N,)."""
    last = torch.tensor(part.displacement.shape[1:]) - 0.5
    return ((voxels >= -0.5) & (voxels <= last)).all(dim=-1)


def _check_part(path: Path, part: LinearTransform | FieldTransform) -> None:
    if isinstance(part, LinearTransform):
        if not part.theta.isfinite().all() or part.theta.det().abs() < 1e-9:
            raise InputError(f"{path}: its matrix is singular or not finite; give the transform of a registration.")
        return
    _check_affine(str(path), part.affine.numpy(), part.spatial_dims)
    longest = part.displacement.abs().max()
    if not longest.isfinite():
        raise InputError(f"{path}: holds NaN or infinite displacements; register again or replace them.")
    if longest > _LONGEST:
        raise InputError(
            f"{path}: holds displacements up to {longest:.4g} mm, more than {_LONGEST:.0f}; write the field in mm."
        )


def _check_size(path: Path, shape: Sequence[int]) -> None:
    values = math.prod(shape)
    if values > MOST_VOXELS:
        raise InputError(f"{path}: announces {values} values, more than 2^30; crop the field or write it again.")


def _field_part(vectors: np.ndarray, affine: np.ndarray) -> FieldTransform:
    """A part of RAS vectors, (D, *S), and of its affine, (D+1, D+1) or larger."""
    return FieldTransform(torch.from_numpy(vectors), torch.from_numpy(_cut(affine, len(vectors))))


def _no_field(path: Path, found: str) -> InputError:
    return InputError(
        f"{path}: {found} where an ITK displacement field has one vector of 2 or 3 components a voxel; "
        "convert it, in NIfTI to the shape (X, Y, Z, 1, 3) and the intent 1007."
    )


def _read_nifti(path: Path) -> list[LinearTransform | FieldTransform]:
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    shape = image.shape
    _check_size(path, shape)
    dims = shape[-1]
    if len(shape) != 5 or dims not in (2, 3) or set(shape[dims:4]) != {1}:
        raise _no_field(path, f"has the shape {' x '.join(map(str, shape))}")
    intent = int(image.header["intent_code"])
    if intent != _VECTOR and (intent, dims) != (_DISPLACEMENT_VECTOR, 3):  # which ITK garbles in 2D
        raise InputError(
            f"{path}: has the intent code {intent}, which does not say along which axes its vectors point; "
            "write it with ITK, which gives LPS vectors the intent 1007."
        )
    if path.name.lower().endswith(".gz"):
        announced = int(image.header.get_data_offset()) + math.prod(shape) * image.get_data_dtype().itemsize
        with gzip.open(path) as stream:
            _unpack(path, iter(lambda: stream.read(2**20), b""), announced)
    _check_header(path, image)
    _check_affine(str(path), image.affine, dims)
    vectors = np.moveaxis(np.asanyarray(image.dataobj), -1, 0).reshape(dims, *shape[:dims])
    return [_field_part(np.array(vectors, float) if intent == _DISPLACEMENT_VECTOR else _turned(vectors), image.affine)]


def _read_itk_image(path: Path) -> list[LinearTransform | FieldTransform]:
    import SimpleITK as sitk  # noqa: N813

    header, body, offset = _text_header(path)
    _check_axes(path, header)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if path.suffix.lower() == ".nrrd" else "MetaImageIO")
    reader.SetFileName(os.fspath(path))
    reader.ReadImageInformation()
    dims, components = reader.GetDimension(), reader.GetNumberOfComponents()
    shape = (*reader.GetSize(), components)
    _check_size(path, shape)
    if components != dims or dims not in (2, 3):
        raise _no_field(path, f"has {components} values a voxel in {dims}D")
    component = sitk.Image([1] * dims, reader.GetPixelID(), components).GetSizeOfPixelComponent()
    _check_body(path, header, body, offset, math.prod(shape), component)
    return [_from_itk(reader.Execute())]


def _check_axes(path: Path, header: dict[str, str]) -> None:
    """Refuse NRRD vectors along other axes: ITK turns the grid of such a file to LPS and leaves its vectors."""
    frame = header.get("measurementframe", "").translate(str.maketrans("(),", "   ")).split()
    turned = frame and not np.array_equal(np.array(frame, dtype=float), np.eye(math.isqrt(len(frame))).ravel())
    if turned or header.get("space", "LPS").lower() not in ("left-posterior-superior", "lps"):
        raise InputError(f"{path}: its vectors do not point along the axes L, P, S; write it with ITK or Slicer.")


def _from_itk(image: sitk.Image) -> FieldTransform:
    import SimpleITK as sitk  # noqa: N813

    vectors = _turned(sitk.GetArrayViewFromImage(image).T)
    return _field_part(vectors, itk_affine(image.GetSpacing(), image.GetDirection(), image.GetOrigin()))


def _read_itk_transform(path: Path) -> list[LinearTransform | FieldTransform]:
    import SimpleITK as sitk  # noqa: N813

    return _parts(path, sitk.ReadTransform(os.fspath(path)))


def _parts(path: Path, transform: sitk.Transform) -> list[LinearTransform | FieldTransform]:
    import SimpleITK as sitk  # noqa: N813

    if isinstance(transform, sitk.CompositeTransform):
        last_first = range(transform.GetNumberOfTransforms() - 1, -1, -1)
        return [part for number in last_first for part in _parts(path, transform.GetNthTransform(number))]
    if isinstance(transform, sitk.DisplacementFieldTransform):
        return [_from_itk(transform.GetDisplacementField())]
    if not transform.IsLinear():
        raise InputError(
            f"{path}: holds a {transform.GetName()}, which is neither linear nor a displacement field; "
            "convert it with sitk.TransformToDisplacementField on the grid of the fixed image."
        )
    dims = transform.GetDimension()
    origin = np.array(transform.TransformPoint([0.0] * dims))
    theta = np.eye(dims + 1)
    theta[:-1, :-1] = np.transpose(
        [np.array(transform.TransformPoint(unit)) - origin for unit in np.eye(dims).tolist()]
    )
    theta[:-1, -1] = origin
    turn = np.diag([*_TO_LPS[:dims], 1.0])
    return [LinearTransform(torch.from_numpy(turn @ theta @ turn))]


def _read_dicom(path: Path) -> list[LinearTransform | FieldTransform]:
    from monai_jsm.data.dicom_objects import read_registration_object

    field, affine = read_registration_object(path)
    return [_field_part(_turned(field), affine)]
