import subprocess
import sys
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from monai_jsm.data import InputError
from monai_jsm.data.fields import (
    FieldTransform,
    LinearTransform,
    carry_world,
    carry_world_back,
    read_transform,
    write_composite,
    write_field,
    write_fsl_warp,
    write_learn2reg,
)
from monai_jsm.geometry import (
    carry_points,
    compose_world,
    identity_grid,
    itk_displacement,
    sample,
    voxel_to_world,
    world_to_voxel,
)

TO_LPS = np.array([-1.0, -1.0, 1.0])
FIXED_SHAPE, MOVING_SHAPE = (40, 36, 24), (47, 33, 29)
SUFFIXES = (".nii", ".nii.gz", ".mha", ".nrrd")
INTENSITIES = 1000.0
IMAGE_TOLERANCE = 1e-5  # of the intensities; float32 fields and headers leave 5e-7
POINT_TOLERANCE = 1e-4  # mm; float32 headers leave 1e-5


class Case(NamedTuple):
    """A registration between an oblique, anisotropic, left-handed fixed grid and another moving grid."""

    fixed_affine: np.ndarray
    moving_affine: np.ndarray
    theta: np.ndarray
    total: Tensor  # (1, D, *S), voxels of fixed
    field: np.ndarray  # (D, *S), mm, LPS
    moving: np.ndarray  # (*M)
    warped: np.ndarray  # (*S)
    inside: np.ndarray  # (*S), where the warped image comes from within moving


def grid_affine(
    angles: tuple[float, float, float], spacing: tuple[float, float, float], centre: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """An affine of ``shape`` with ``centre`` in its middle; of the angles a 2D grid has the last one."""
    dims = len(shape)
    if dims == 3:
        rotation = np.reshape(sitk.Euler3DTransform((0.0, 0.0, 0.0), *angles).GetMatrix(), (3, 3))
    else:
        rotation = np.reshape(sitk.Euler2DTransform((0.0, 0.0), angles[-1]).GetMatrix(), (2, 2))
    affine = np.eye(dims + 1)
    affine[:-1, :-1] = rotation * spacing[:dims]
    affine[:-1, -1] = centre - affine[:-1, :-1] @ ((np.array(shape) - 1) / 2)
    return affine


def make_case(spatial_dims: int, fixed_flip: int = -1, moving_flip: int = 1) -> Case:
    shape, moving_shape = FIXED_SHAPE[:spatial_dims], MOVING_SHAPE[:spatial_dims]
    centre = np.array([-40.0, 12.5, 7.0])[:spatial_dims]
    fixed_affine = grid_affine((0.3, -0.2, 0.45), (0.9, 1.3 * fixed_flip, 2.5), centre, shape)
    moving_affine = grid_affine((-0.1, 0.25, 0.2), (1.1 * moving_flip, 1.4, 2.2), centre + 2, moving_shape)
    theta = grid_affine((0.05, 0.08, -0.06), (1.04, 0.97, 1.02), centre, (1,) * spatial_dims)  # turns about the origin
    theta[:-1, -1] += np.array([1.5, -2.0, 1.0])[:spatial_dims] - theta[:-1, :-1] @ centre  # now about the centre
    axes = torch.meshgrid(*[torch.linspace(0, torch.pi, n, dtype=torch.float64) for n in shape], indexing="ij")
    bump = torch.stack(axes).sin().prod(0) + 0.2 * torch.stack(axes).mul(1.7).cos().mean(0)
    ddf = torch.stack([scale * bump for scale in (3.3, -2.4, 1.5)[:spatial_dims]])[None]
    total = compose_world(ddf, torch.as_tensor(theta), torch.as_tensor(fixed_affine))
    waves = torch.meshgrid(*[torch.linspace(0, 3, n, dtype=torch.float64) for n in moving_shape], indexing="ij")
    moving = torch.stack([torch.sin((2 + k) * axis + 1) for k, axis in enumerate(waves)]).mean(0)
    moving = INTENSITIES * (moving - moving.min()) / (moving.max() - moving.min())
    read_at = world_to_voxel(
        voxel_to_world((identity_grid(list(shape), total) + total).flatten(2).movedim(1, -1), fixed_affine),
        moving_affine,
    )  # (1, N, D)
    inside = ((read_at > 0.01) & (read_at < torch.tensor(moving_shape) - 1.01)).all(dim=-1)
    warped = sample(moving[None, None], read_at.movedim(-1, 1).reshape(total.shape))[0, 0].numpy()
    field = itk_displacement(total, torch.as_tensor(fixed_affine))[0].numpy()
    inside = inside.reshape(shape).numpy()
    assert inside.mean() > 0.6
    return Case(fixed_affine, moving_affine, theta, total, field, moving.numpy(), warped, inside)


def itk_image(array: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """A scalar image, (*S), with its place set without any file."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    dims = array.ndim
    spacing = np.linalg.norm(affine[:-1, :-1], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((TO_LPS[:dims, None] * affine[:-1, :-1] / spacing).ravel().tolist())
    image.SetOrigin((TO_LPS[:dims] * affine[:-1, -1]).tolist())
    return image


def itk_transform(path) -> sitk.Transform:
    if path.suffix in (".h5", ".tfm"):
        return sitk.ReadTransform(str(path))
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))


def write_any(path, case: Case) -> None:
    if path.suffix in (".h5", ".tfm"):
        write_composite(path, case.field, case.theta, case.fixed_affine)
    else:
        write_field(path, case.field, case.fixed_affine)


def image_difference(transform: sitk.Transform, case: Case) -> float:
    """Largest difference between ITK's warped image and ours within moving, as a share of the intensities."""
    moving, fixed = itk_image(case.moving, case.moving_affine), itk_image(case.warped, case.fixed_affine)
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, transform, sitk.sitkLinear, 0.0)).T
    return float(np.abs(theirs - case.warped)[case.inside].max() / INTENSITIES)


def some_points(case: Case, count: int = 50) -> tuple[Tensor, Tensor]:
    """Fixed points between the voxels, RAS, and where the registration has them in moving, (N, D) each."""
    shape = torch.tensor(case.total.shape[2:], dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    voxels = torch.rand(count, len(shape), generator=generator, dtype=torch.float64) * (shape - 1)
    carried = carry_points(voxels[None], case.total)[0]
    return voxel_to_world(voxels, case.fixed_affine), voxel_to_world(carried, case.fixed_affine)


def point_difference(transform: sitk.Transform, case: Case) -> float:
    """Largest distance in mm between where ITK carries points and where we do."""
    turn = TO_LPS[: len(case.field)]
    start, end = (points.numpy() * turn for points in some_points(case))
    theirs = np.array([transform.TransformPoint(point) for point in start.tolist()])
    return float(np.linalg.norm(theirs - end, axis=1).max())


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".h5", ".tfm"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_itk_resamples_and_carries_points_through_a_written_file_as_we_do(tmp_path, spatial_dims, suffix):
    case = make_case(spatial_dims)
    path = tmp_path / f"field{suffix}"
    write_any(path, case)
    transform = itk_transform(path)
    assert transform.GetDimension() == spatial_dims
    assert image_difference(transform, case) < IMAGE_TOLERANCE
    assert point_difference(transform, case) < POINT_TOLERANCE


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_written_field_has_float32_vectors_and_the_grid_of_fixed(tmp_path, spatial_dims, suffix):
    case = make_case(spatial_dims)
    write_field(tmp_path / f"field{suffix}", case.field, case.fixed_affine)
    read = sitk.ReadImage(str(tmp_path / f"field{suffix}"))
    fixed = itk_image(case.warped, case.fixed_affine)
    assert read.GetPixelID() == sitk.sitkVectorFloat32
    assert read.GetSize() == fixed.GetSize()
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(read, name)(), getattr(fixed, name)(), atol=1e-5)  # NIfTI is float32


def test_a_nifti_field_has_the_vector_intent_and_units(tmp_path):
    case = make_case(3)
    write_field(tmp_path / "field.nii.gz", case.field, case.fixed_affine)
    header = nib.load(tmp_path / "field.nii.gz").header
    assert header.get_intent()[0] == "vector"
    assert header.get_xyzt_units()[0] == "mm"
    assert header["qform_code"] == header["sform_code"] == 1


def test_a_2d_field_takes_the_affine_of_a_2d_file(tmp_path):
    case = make_case(2)
    affine = np.eye(4)
    affine[np.ix_([0, 1, 3], [0, 1, 3])] = case.fixed_affine
    affine[2, 2:] = 5.0, 30.0
    for suffix in SUFFIXES:
        write_field(tmp_path / f"field{suffix}", case.field, affine)
        assert point_difference(itk_transform(tmp_path / f"field{suffix}"), case) < POINT_TOLERANCE


def test_a_composite_keeps_the_linear_part_apart_from_a_small_residual(tmp_path):
    case = make_case(3)
    write_composite(tmp_path / "both.h5", case.field, case.theta, case.fixed_affine)
    both = sitk.CompositeTransform(sitk.ReadTransform(str(tmp_path / "both.h5")))
    linear, residual = (both.GetNthTransform(number) for number in range(2))
    turn = np.diag([*TO_LPS, 1.0])
    np.testing.assert_allclose(np.reshape(linear.GetMatrix(), (3, 3)), (turn @ case.theta @ turn)[:3, :3], atol=1e-12)
    vectors = sitk.GetArrayFromImage(residual.GetDisplacementField())
    edges = np.array([0.9, 1.3, 2.5])
    assert np.abs(vectors).max() <= np.linalg.norm(edges * (4.1, 3.0, 1.9))  # the ddf, without the linear part
    assert np.abs(vectors).max() < np.abs(case.field).max()


WRONG = {
    "spacing only, no direction": lambda case: np.einsum("r...,r->r...", case.total[0].numpy(), edges_of(case)),
    "RAS vectors": lambda case: case.field * TO_LPS[: len(case.field)].reshape(-1, *[1] * (case.field.ndim - 1)),
    "channels reversed": lambda case: case.field[::-1],
    "axes of the array reversed": lambda case: case.field.transpose(0, *range(case.field.ndim - 1, 0, -1)).reshape(
        case.field.shape
    ),
    "sign flipped": lambda case: -case.field,
    "linear part alone": lambda case: linear_field(case),
}


def edges_of(case: Case) -> np.ndarray:
    return np.linalg.norm(case.fixed_affine[:-1, :-1], axis=0)


def linear_field(case: Case) -> np.ndarray:
    affine = torch.as_tensor(case.fixed_affine)
    total = compose_world(torch.zeros_like(case.total), torch.as_tensor(case.theta), affine)
    return itk_displacement(total, affine)[0].numpy()


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_every_wrong_convention_is_seen_in_images_and_points(tmp_path, spatial_dims, wrong):
    case = make_case(spatial_dims)
    write_field(tmp_path / "field.nii.gz", WRONG[wrong](case), case.fixed_affine)
    transform = itk_transform(tmp_path / "field.nii.gz")
    assert image_difference(transform, case) > 1e-3
    assert point_difference(transform, case) > 0.5


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_intent_of_displacement_vectors_is_seen_in_images_and_points(tmp_path, spatial_dims):
    case = make_case(spatial_dims)
    write_with_intent(tmp_path / "field.nii.gz", case, 1006)
    transform = itk_transform(tmp_path / "field.nii.gz")
    assert image_difference(transform, case) > 1e-3
    assert point_difference(transform, case) > 0.5


def write_with_intent(path, case: Case, intent: int) -> None:
    write_field(path, case.field, case.fixed_affine)
    written = nib.load(path, mmap=False)  # it is written over
    image = nib.Nifti1Image(np.asanyarray(written.dataobj).copy(), written.affine, written.header)
    image.header.set_intent(intent)
    nib.save(image, path)


@pytest.fixture(scope="module")
def ants():
    return pytest.importorskip("ants", reason="antspyx is not installed")


def ants_image(ants, array: np.ndarray, affine: np.ndarray):
    image = itk_image(array, affine)
    dims = array.ndim
    direction = np.reshape(image.GetDirection(), (dims, dims))
    return ants.from_numpy(
        array.astype(np.float32), origin=image.GetOrigin(), spacing=image.GetSpacing(), direction=direction
    )


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".nrrd", ".h5"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_ants_warps_images_and_points_through_a_written_file_as_we_do(tmp_path, ants, spatial_dims, suffix):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    case = make_case(spatial_dims)
    path = tmp_path / f"field{suffix}"
    write_any(path, case)
    fixed = ants_image(ants, case.warped, case.fixed_affine)
    moving = ants_image(ants, case.moving, case.moving_affine)
    theirs = ants.apply_transforms(fixed, moving, transformlist=[str(path)], interpolator="linear").numpy()
    assert np.abs(theirs - case.warped)[case.inside].max() < IMAGE_TOLERANCE * INTENSITIES
    columns = list("xyz"[:spatial_dims])
    turn = TO_LPS[:spatial_dims]
    start, end = (points.numpy() * turn for points in some_points(case))
    carried = ants.apply_transforms_to_points(spatial_dims, pandas.DataFrame(start, columns=columns), [str(path)])
    np.testing.assert_allclose(carried[columns].to_numpy(), end, atol=POINT_TOLERANCE)


@pytest.mark.slow
def test_transformix_warps_through_a_written_field_as_we_do(tmp_path):
    itk = pytest.importorskip("itk", reason="itk is not installed")
    if not hasattr(itk, "transformix_filter"):
        pytest.skip("itk-elastix is not installed")
    case = make_case(3)
    write_field(tmp_path / "field.mha", case.field, case.fixed_affine)
    sitk.WriteImage(sitk.Cast(itk_image(case.moving, case.moving_affine), sitk.sitkFloat32), str(tmp_path / "m.mha"))
    fixed = itk_image(case.warped, case.fixed_affine)
    columns_first = np.reshape(fixed.GetDirection(), (3, 3)).T.ravel()
    settings = {
        "Transform": ["DeformationFieldTransform"],
        "DeformationFieldFileName": [str(tmp_path / "field.mha")],
        "DeformationFieldInterpolationOrder": ["1"],
        "NumberOfParameters": ["0"],
        "InitialTransformParameterFileName": ["NoInitialTransform"],
        "HowToCombineTransforms": ["Compose"],
        "FixedImageDimension": ["3"],
        "MovingImageDimension": ["3"],
        "FixedInternalImagePixelType": ["float"],
        "MovingInternalImagePixelType": ["float"],
        "Size": [str(size) for size in fixed.GetSize()],
        "Index": ["0"] * 3,
        "Spacing": [repr(value) for value in fixed.GetSpacing()],
        "Origin": [repr(value) for value in fixed.GetOrigin()],
        "Direction": [repr(float(value)) for value in columns_first],
        "ResampleInterpolator": ["FinalLinearInterpolator"],
        "Resampler": ["DefaultResampler"],
        "DefaultPixelValue": ["0"],
        "ResultImagePixelType": ["float"],
    }
    parameters = itk.ParameterObject.New()
    parameters.AddParameterMap(settings)
    moving = itk.imread(str(tmp_path / "m.mha"), itk.F)
    theirs = itk.array_from_image(itk.transformix_filter(moving, parameters)).T
    assert np.abs(theirs - case.warped)[case.inside].max() < IMAGE_TOLERANCE * INTENSITIES


def test_the_independent_checker_of_fields_is_content(tmp_path, shared_data):
    checker = shared_data.parent / "tools" / "check_field_conventions.py"
    if not checker.is_file():
        pytest.skip(f"There is no {checker}.")
    pytest.importorskip("pandas", reason="pandas is not installed")
    case = make_case(3)
    turn = TO_LPS
    write_field(tmp_path / "field.nii.gz", case.field, case.fixed_affine)
    images = {
        "fixed": (case.warped, case.fixed_affine),
        "moving": (case.moving, case.moving_affine),
        "warped": (case.warped, case.fixed_affine),
    }
    arguments = ["--field", str(tmp_path / "field.nii.gz"), "--max-tre", "0.001", "--tolerance", "1e-5"]
    for name, (array, affine) in images.items():
        nib.save(nib.Nifti1Image(array.astype(np.float32), affine), tmp_path / f"{name}.nii.gz")
        arguments += [f"--{name}", str(tmp_path / f"{name}.nii.gz")]
    for name, points in zip(("fixed", "moving"), some_points(case), strict=True):
        table = tmp_path / f"{name}.csv"
        np.savetxt(table, points.numpy() * turn, delimiter=",", header="x,y,z", comments="", fmt="%.9f")
        arguments += [f"--{name}-landmarks", str(table)]
    run = subprocess.run([sys.executable, str(checker), *arguments], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("fixed_flip", [-1, 1])
@pytest.mark.parametrize("moving_flip", [-1, 1])
def test_fslpy_carries_points_through_an_fsl_warp_as_we_do(tmp_path, fixed_flip, moving_flip):
    fnirt = pytest.importorskip("fsl.transform.fnirt", reason="fslpy is not installed")
    from fsl.data.image import Image

    case = make_case(3, fixed_flip, moving_flip)
    path = tmp_path / "warp.nii.gz"
    write_fsl_warp(path, case.field, case.fixed_affine, case.moving_affine, case.moving.shape)
    fixed, moving = (
        Image(nib.Nifti1Image(array.astype(np.float32), affine))
        for array, affine in ((case.warped, case.fixed_affine), (case.moving, case.moving_affine))
    )
    assert nib.load(path).shape == (*FIXED_SHAPE, 3)
    warp = fnirt.readFnirt(str(path), moving, fixed, defType="relative")
    voxels = torch.tensor([[3, 7, 11], [20, 18, 9], [39, 0, 23]], dtype=torch.float64)  # fslpy reads the nearest one
    carried = voxel_to_world(carry_points(voxels[None], case.total)[0], case.fixed_affine)
    theirs = warp.transform(voxel_to_world(voxels, case.fixed_affine).numpy(), "world", "world")
    np.testing.assert_allclose(theirs, carried.numpy(), atol=POINT_TOLERANCE)


def test_a_learn2reg_displacement_leads_from_fixed_to_moving_voxels(tmp_path):
    case = make_case(3)
    path = tmp_path / "disp_0001_0002.nii.gz"
    write_learn2reg(path, case.field, case.fixed_affine, case.moving_affine)
    displacement = nib.load(path).get_fdata()
    assert displacement.shape == (*FIXED_SHAPE, 3)
    write_field(tmp_path / "field.mha", case.field, case.fixed_affine)
    transform = itk_transform(tmp_path / "field.mha")
    fixed, moving = itk_image(case.warped, case.fixed_affine), itk_image(case.moving, case.moving_affine)
    for voxel in ([3, 7, 11], [20, 18, 9], [38, 1, 22]):
        point = transform.TransformPoint(fixed.TransformIndexToPhysicalPoint(voxel))
        expected = moving.TransformPhysicalPointToContinuousIndex(point)
        np.testing.assert_allclose(voxel + displacement[tuple(voxel)], expected, atol=POINT_TOLERANCE)


def test_a_learn2reg_displacement_on_one_grid_is_the_ddf(tmp_path):
    case = make_case(3)
    write_learn2reg(tmp_path / "disp.nii.gz", case.field, case.fixed_affine, case.fixed_affine)
    expected = case.total[0].movedim(0, -1).numpy()
    np.testing.assert_allclose(nib.load(tmp_path / "disp.nii.gz").get_fdata(), expected, atol=1e-5)  # float32


def test_a_file_of_an_unknown_or_impossible_format_is_not_written(tmp_path, one_sentence):
    case = make_case(2)
    path = tmp_path / "field.mhd"
    moving = (case.moving_affine, case.moving.shape)
    attempts = [
        (lambda: write_field(path, case.field, case.fixed_affine), "is of a format in which no displacement fields"),
        (lambda: write_composite(path, case.field, case.theta, case.fixed_affine), "no composite transforms"),
        (lambda: write_fsl_warp(path, case.field, case.fixed_affine, *moving), "no FSL warps"),
        (lambda: write_learn2reg(path, case.field, case.fixed_affine, case.moving_affine), "no Learn2Reg"),
    ]
    for attempt, fault in attempts:
        with pytest.raises(InputError, match=fault) as refusal:
            attempt()
        one_sentence(str(refusal.value), path, fault)
    path = tmp_path / "flat.nii.gz"
    for attempt in (
        lambda: write_fsl_warp(path, case.field, case.fixed_affine, *moving),
        lambda: write_learn2reg(path, case.field, case.fixed_affine, case.moving_affine),
    ):
        with pytest.raises(InputError, match="is 3D and this registration is 2D") as refusal:
            attempt()
        one_sentence(str(refusal.value), path, "2D")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".h5", ".tfm"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_written_file_read_back_carries_points_there_and_back(tmp_path, spatial_dims, suffix):
    case = make_case(spatial_dims)
    path = tmp_path / f"field{suffix}"
    write_any(path, case)
    parts = read_transform([path])
    assert [type(part) for part in parts] == (
        [FieldTransform, LinearTransform] if suffix in (".h5", ".tfm") else [FieldTransform]
    )
    assert {part.spatial_dims for part in parts} == {spatial_dims}
    start, end = some_points(case)
    carried, known = carry_world(start, parts)
    torch.testing.assert_close(carried, end, rtol=0, atol=POINT_TOLERANCE)
    assert known.all()
    back, known = carry_world_back(carried, parts)
    torch.testing.assert_close(back, start, rtol=0, atol=POINT_TOLERANCE)
    assert known.all()


def test_a_nifti_field_of_displacement_vectors_is_read_as_itk_reads_it(tmp_path):
    case = make_case(3)
    write_with_intent(tmp_path / "field.nii", case, 1006)
    transform = itk_transform(tmp_path / "field.nii")
    start, _ = some_points(case)
    theirs = np.array([transform.TransformPoint(point) for point in (start.numpy() * TO_LPS).tolist()]) * TO_LPS
    carried, _ = carry_world(start, read_transform([tmp_path / "field.nii"]))
    np.testing.assert_allclose(carried, theirs, atol=POINT_TOLERANCE)


def test_a_registration_object_is_read_as_the_field_it_holds(tmp_path, monkeypatch):
    case = make_case(3)
    (tmp_path / "registration.dcm").write_bytes(b"read by another function")
    monkeypatch.setattr(
        "monai_jsm.data.dicom_objects.read_registration_object",
        lambda path: (case.field.astype(np.float32), case.fixed_affine),
    )
    start, end = some_points(case)
    carried, known = carry_world(start, read_transform([tmp_path / "registration.dcm"]))
    torch.testing.assert_close(carried, end, rtol=0, atol=POINT_TOLERANCE)
    assert known.all()


LINEAR = {
    "euler": sitk.Euler3DTransform((1.0, 2.0, 3.0), 0.3, -0.2, 0.45, (4.0, 5.0, 6.0)),
    "versor": sitk.VersorRigid3DTransform((0.0, 0.6, 0.8), 0.4, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),
    "similarity": sitk.Similarity3DTransform(1.3, (0.0, 0.6, 0.8), 0.4, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),
    "scale": sitk.ScaleTransform(3, (1.1, 0.9, 1.3)),
    "translation": sitk.TranslationTransform(3, (4.0, 5.0, 6.0)),
    "identity": sitk.Transform(3, sitk.sitkIdentity),
    "affine": sitk.AffineTransform((1.1, 0.2, 0.0, -0.1, 0.9, 0.3, 0.1, 0.0, 1.2), (4.0, 5.0, 6.0), (7.0, 8.0, 9.0)),
    "rigid in 2D": sitk.Euler2DTransform((1.0, 2.0), 0.3, (4.0, 5.0)),
    "affine in 2D": sitk.AffineTransform((1.1, 0.2, -0.1, 0.9), (4.0, 5.0), (7.0, 8.0)),
}


@pytest.mark.parametrize("suffix", [".tfm", ".txt", ".mat", ".h5"])
@pytest.mark.parametrize("kind", LINEAR)
def test_any_linear_transform_of_itk_is_read(tmp_path, kind, suffix):
    transform, path = LINEAR[kind], tmp_path / f"linear{suffix}"
    sitk.WriteTransform(transform, str(path))
    (part,) = read_transform([path])
    assert isinstance(part, LinearTransform)
    turn = TO_LPS[: transform.GetDimension()]
    points = np.random.default_rng(2).normal(0, 50, (7, len(turn)))
    expected = np.array([transform.TransformPoint(point) for point in (points * turn).tolist()]) * turn
    carried, known = carry_world(torch.from_numpy(points), [part])
    np.testing.assert_allclose(carried, expected, atol=1e-9)
    back, _ = carry_world_back(carried, [part])
    np.testing.assert_allclose(back, points, atol=1e-9)
    assert known.all()


def test_a_list_of_files_is_run_through_as_ants_does(tmp_path, ants):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    case = make_case(3)
    paths = [tmp_path / "1Warp.nii.gz", tmp_path / "0GenericAffine.mat"]
    write_field(paths[0], case.field, case.fixed_affine)
    affine = ants.create_ants_transform(
        transform_type="AffineTransform",
        matrix=[[1.1, 0.2, 0.0], [-0.1, 0.9, 0.3], [0.1, 0.0, 1.2]],
        translation=(4.0, 5.0, 6.0),
        center=(7.0, 8.0, 9.0),
    )
    ants.write_transform(affine, str(paths[1]))
    start, _ = some_points(case)
    table = pandas.DataFrame(start.numpy() * TO_LPS, columns=list("xyz"))
    theirs = ants.apply_transforms_to_points(3, table, [str(path) for path in paths], whichtoinvert=[False, False])
    carried, _ = carry_world(start, read_transform(paths))
    np.testing.assert_allclose(carried, theirs[list("xyz")].to_numpy() * TO_LPS, atol=POINT_TOLERANCE)
    other_way, _ = carry_world(start, read_transform(paths[::-1]))
    assert (other_way - carried).norm(dim=-1).max() > 1


def test_a_composite_of_many_parts_keeps_the_order_of_itk(tmp_path):
    case = make_case(3)
    write_composite(tmp_path / "two.h5", case.field, case.theta, case.fixed_affine)
    many = sitk.CompositeTransform([LINEAR["euler"], sitk.ReadTransform(str(tmp_path / "two.h5")), LINEAR["scale"]])
    many.FlattenTransform()
    sitk.WriteTransform(many, str(tmp_path / "many.h5"))
    parts = read_transform([tmp_path / "many.h5"])
    assert [type(part) for part in parts] == [LinearTransform, FieldTransform, LinearTransform, LinearTransform]
    shrunk = carry_world_back(some_points(case)[0], parts[:1])[0]  # ends up within the field
    theirs = np.array([many.TransformPoint(point) for point in (shrunk.numpy() * TO_LPS).tolist()]) * TO_LPS
    np.testing.assert_allclose(carry_world(shrunk, parts)[0], theirs, atol=POINT_TOLERANCE)


@settings(max_examples=25)
@given(spatial_dims=st.sampled_from([2, 3]), seed=st.integers(0, 2**16))
def test_parts_one_after_the_other_are_the_parts_at_once(spatial_dims, seed):
    generator = torch.Generator().manual_seed(seed)
    shape, affine = (9, 8, 7)[:spatial_dims], torch.eye(spatial_dims + 1, dtype=torch.float64)
    affine[0, 0] = -1.3
    theta = affine + 0.1 * torch.randn(affine.shape, generator=generator, dtype=torch.float64)
    theta[-1] = affine[-1]
    displacement = 0.2 * torch.randn(spatial_dims, *shape, generator=generator, dtype=torch.float64)
    parts = (FieldTransform(displacement, affine), LinearTransform(theta))
    points = 20 * torch.randn(6, spatial_dims, generator=generator, dtype=torch.float64)
    first, known_first = carry_world(points, parts[:1])
    second, known_second = carry_world(first, parts[1:])
    at_once, known = carry_world(points, parts)
    torch.testing.assert_close(at_once, second)
    assert (known == (known_first & known_second)).all()
    there_and_back, _ = carry_world_back(at_once, parts)
    torch.testing.assert_close(there_and_back, points, rtol=0, atol=1e-5)  # the tolerance of the inversion


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_point_more_than_half_a_voxel_outside_of_a_field_is_not_known(spatial_dims):
    shape = (6, 7, 8)[:spatial_dims]
    affine = torch.diag(torch.tensor([2.0, -3.0, 1.5, 1.0], dtype=torch.float64)[[*range(spatial_dims), -1]])
    field = FieldTransform(torch.full((spatial_dims, *shape), 0.5, dtype=torch.float64), affine)
    voxels = torch.full((4, spatial_dims), 2.0, dtype=torch.float64)
    voxels[:, 1] = torch.tensor([-0.6, -0.4, 6.4, 6.6])
    world = voxel_to_world(voxels, affine)
    carried, known = carry_world(world, [field])
    assert known.tolist() == [False, True, True, False]
    back, known = carry_world_back(carried, [field])
    assert known.tolist() == [False, True, True, False]
    torch.testing.assert_close(back, world)


def test_a_point_that_a_folding_field_cannot_give_back_is_not_known():
    displacement = 5 * torch.randn(2, 24, 26, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    parts = [FieldTransform(displacement, torch.eye(3, dtype=torch.float64))]
    points = 24 * torch.rand(500, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    back, known = carry_world_back(points, parts)
    missed = (carry_world(back, parts)[0] - points).norm(dim=-1)
    assert (missed[known] <= 0.0101).all()
    assert (missed > 0.02).any()
    assert not known[missed > 0.02].any()


def field_file(path, intent: int = 1007, shape=(4, 5, 6, 1, 3), value: float = 1.0, affine=None) -> None:
    image = nib.Nifti1Image(np.full(shape, value, dtype=np.float32), np.eye(4) if affine is None else affine)
    image.header.set_intent(intent, allow_unknown=True)
    nib.save(image, path)


def vector_image(path, shape=(4, 5, 6), components: int = 3) -> None:
    sitk.WriteImage(sitk.Image(shape, sitk.sitkVectorFloat32, components), str(path))


def cut(path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def nrrd_in(path, entry: str, space: str = "left-posterior-superior") -> None:
    vector_image(path)
    header, _, data = path.read_bytes().partition(b"\n\n")
    lines = header.replace(b"left-posterior-superior", space.encode()) + entry.encode()
    path.write_bytes(lines + b"\n\n" + data)


def nowhere(path) -> None:
    image = nib.Nifti1Image(np.ones((4, 5, 6, 1, 3), dtype=np.float32), None)
    image.header.set_intent(1007)
    nib.save(image, path)


def announcing(path) -> None:
    image = nib.Nifti1Image(np.ones((4, 5, 6, 1, 3), dtype=np.float32), np.eye(4))
    image.header.set_intent(1007)
    content = bytearray(image.to_bytes())
    content[42:48] = np.array([1000, 1000, 1000], dtype="<i2").tobytes()
    path.write_bytes(content)


def announcing_mha(path) -> None:
    vector_image(path)
    path.write_bytes(path.read_bytes().replace(b"DimSize = 4 5 6", b"DimSize = 1000 1000 1000"))


def sheared() -> np.ndarray:
    affine = np.eye(4)
    affine[0, 1] = 0.3
    return affine


REFUSED = {
    "absent.nii.gz": (lambda path: None, "there is no such file"),
    "folder.nii": (lambda path: path.mkdir(), "is a folder"),
    "field.vtk": (lambda path: path.write_bytes(b"field"), "is of a format that is not read as a transform"),
    "scalar.nii": (lambda path: field_file(path, shape=(4, 5, 6)), "has the shape 4 x 5 x 6 where an ITK"),
    "scalar.mha": (
        lambda path: sitk.WriteImage(sitk.Image((4, 5, 6), sitk.sitkFloat32), str(path)),
        "1 values a voxel",
    ),
    "fsl.nii": (lambda path: field_file(path, 2006, (4, 5, 6, 3)), "has the shape 4 x 5 x 6 x 3"),
    "flat.nii": (lambda path: field_file(path, 1006, (4, 5, 1, 1, 2)), "has the intent code 1006"),
    "two.nii": (lambda path: field_file(path, shape=(4, 5, 6, 1, 2)), "has the shape 4 x 5 x 6 x 1 x 2"),
    "two.nrrd": (lambda path: vector_image(path, components=2), "has 2 values a voxel in 3D"),
    "four.mha": (lambda path: vector_image(path, (4, 5), 4), "has 4 values a voxel in 2D"),
    "unnamed.nii.gz": (lambda path: field_file(path, 0), "has the intent code 0"),
    "nan.nii.gz": (lambda path: field_file(path, value=np.nan), "holds NaN or infinite"),
    "infinite.nii": (lambda path: field_file(path, value=-np.inf), "holds NaN or infinite"),
    "long.nii": (lambda path: field_file(path, value=-2e4), "up to 2e+04 mm, more than 10000"),
    "sheared.nii": (lambda path: field_file(path, affine=sheared()), "sheared"),
    "nowhere.nii": (nowhere, "its header places it nowhere"),
    "huge.nii": (announcing, "announces 3000000000 values"),
    "huge.mha": (announcing_mha, "announces 3000000000 values"),
    "cut.nii": (lambda path: (field_file(path), cut(path, 99)), "cannot be read as a transform"),
    "cut.nii.gz": (lambda path: (field_file(path), cut(path, 9)), "cannot be read as a transform"),
    "cut.mha": (lambda path: (vector_image(path), cut(path, 99)), "holds less data than its header announces"),
    "cut.nrrd": (lambda path: (vector_image(path), cut(path, 99)), "holds less data than its header announces"),
    "frame.nrrd": (lambda path: nrrd_in(path, "\nmeasurement frame: (-1,0,0) (0,-1,0) (0,0,1)"), "do not point along"),
    "ras.nrrd": (lambda path: nrrd_in(path, "", "right-anterior-superior"), "do not point along"),
    "text.h5": (lambda path: path.write_bytes(b"field"), "cannot be read as a transform"),
    "text.tfm": (lambda path: path.write_bytes(b"field"), "cannot be read as a transform"),
    "flirt.mat": (lambda path: np.savetxt(path, np.eye(4)), "cannot be read as a transform"),
    "empty.txt": (lambda path: path.write_bytes(b""), "cannot be read as a transform"),
    "spline.tfm": (lambda path: sitk.WriteTransform(sitk.BSplineTransform(3), str(path)), "holds a BSplineTransform"),
    "flat.tfm": (
        lambda path: sitk.WriteTransform(sitk.AffineTransform((1.0, 0, 0, 0), (0.0, 0.0)), str(path)),
        "its matrix is singular",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_no_sound_transform_is_refused_in_one_sentence(tmp_path, one_sentence, name):
    make, fault = REFUSED[name]
    path = tmp_path / name
    make(path)
    with pytest.raises(InputError, match="; ") as refusal:
        read_transform([path])
    one_sentence(str(refusal.value), path, fault)


def test_a_measurement_frame_along_the_axes_is_read(tmp_path):
    nrrd_in(tmp_path / "field.nrrd", "\nmeasurement frame: (1,0,0) (0,1,0) (0,0,1)")
    (part,) = read_transform([tmp_path / "field.nrrd"])
    assert part.displacement.shape == (3, 4, 5, 6)


def test_transforms_of_different_dimensions_are_refused_together(tmp_path, one_sentence):
    paths = [tmp_path / "first.tfm", tmp_path / "second.tfm"]
    for path, kind in zip(paths, ("euler", "rigid in 2D"), strict=True):
        sitk.WriteTransform(LINEAR[kind], str(path))
    with pytest.raises(InputError, match="is a 2D transform where those before it are 3D") as refusal:
        read_transform(paths)
    one_sentence(str(refusal.value), paths[1], "2D")
