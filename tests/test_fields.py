import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from monai_jsm.data.errors import InputError
from monai_jsm.data.fields import write_field
from monai_jsm.data.results import write_evaluation, write_registration
from monai_jsm.geometry import carry_points, itk_displacement, voxel_to_world, warp
from monai_jsm.metrics import summarise

TO_LPS = np.array([-1.0, -1.0, 1.0])


def oblique(spatial_dims: int) -> np.ndarray:
    """An oblique, anisotropic, left-handed grid; 2D grids stay in the plane of their file."""
    a, b = np.deg2rad(20), np.deg2rad(-12)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = (about_z if spatial_dims == 2 else about_z @ about_x) @ np.diag([0.9, -1.3, 2.5])
    affine[:3, 3] = [-40.0, 12.5, 7.0]
    return affine


def smooth_case(spatial_dims: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    shape = (40, 36, 24)[:spatial_dims]
    axes = torch.meshgrid(*[torch.linspace(0, torch.pi, n, dtype=torch.float64) for n in shape], indexing="ij")
    bump = torch.stack(axes).sin().prod(0)
    ddf = torch.stack([scale * bump for scale in (3.0, -2.0, 1.5)[:spatial_dims]])[None]
    image = 1000 * torch.stack([torch.sin(3 * axis + 1) for axis in axes]).mean(0)
    return image[None, None], ddf, oblique(spatial_dims)


def save_image(path, image: torch.Tensor, affine: np.ndarray) -> sitk.Image:
    nib.save(nib.Nifti1Image(image[0, 0].numpy().astype(np.float32), affine), path)
    return sitk.ReadImage(str(path), sitk.sitkFloat64)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_itk_resamples_through_the_written_field_as_we_do(tmp_path, spatial_dims):
    image, ddf, affine = smooth_case(spatial_dims)
    moving = save_image(tmp_path / "moving.nii.gz", image, affine)
    field = itk_displacement(ddf, torch.as_tensor(affine))[0].numpy()
    write_field(tmp_path / "field.nii.gz", field, affine)
    read = sitk.ReadImage(str(tmp_path / "field.nii.gz"), sitk.sitkVectorFloat64)
    assert read.GetDimension() == spatial_dims
    assert nib.load(tmp_path / "field.nii.gz").header.get_intent()[0] == "vector"

    def difference(vectors: sitk.Image) -> float:
        transform = sitk.DisplacementFieldTransform(sitk.Image(vectors))
        resampled = sitk.GetArrayFromImage(sitk.Resample(moving, moving, transform, sitk.sitkLinear, 0.0))
        ours = warp(image, ddf)[0, 0].numpy()
        inside = (slice(4, -4),) * spatial_dims  # beyond the image ITK writes zero
        return float(np.abs(resampled.T[inside] - ours[inside]).max() / np.ptp(ours))

    assert difference(read) < 1e-5
    flipped = sitk.GetImageFromArray(-sitk.GetArrayFromImage(read), isVector=True)
    flipped.CopyInformation(read)
    assert difference(flipped) > 1e-2
    in_ras = sitk.GetArrayFromImage(read) * TO_LPS[:spatial_dims]
    in_ras = sitk.GetImageFromArray(in_ras, isVector=True)
    in_ras.CopyInformation(read)
    assert difference(in_ras) > 1e-2


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_itk_carries_points_through_the_written_field_as_we_do(tmp_path, spatial_dims):
    _, ddf, affine = smooth_case(spatial_dims)
    write_field(tmp_path / "field.nii.gz", itk_displacement(ddf, torch.as_tensor(affine))[0].numpy(), affine)
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / "field.nii.gz"), sitk.sitkVectorFloat64))
    points = torch.tensor([[5.3, 7.9, 11.2], [20.1, 18.6, 9.4]], dtype=torch.float64)[:, :spatial_dims]
    ends = [voxel_to_world(p, torch.as_tensor(affine)) for p in (points, carry_points(points[None], ddf)[0])]
    for start, end in zip(*[(p.numpy() * TO_LPS[:spatial_dims]).tolist() for p in ends], strict=True):
        np.testing.assert_allclose(transform.TransformPoint(start), end, atol=1e-4)  # the header is float32


def landmark_row(label: str, after: float) -> dict:
    sides = {"fixed": [1.0, 2.0], "moving": [2.0, 2.0], "carried": [1.5, 2.0]}
    return {"label": label, **sides, "before_mm": 1.0, "after_mm": after, "before_voxel": 0.5, "after_voxel": after / 2}


def case_record(tmp_path, name: str = "a") -> dict:
    source = tmp_path / "fixed.nii.gz"
    source.write_bytes(b"an image")
    measures = {"tre_mean_after": {"value": 0.5, "unit": "mm"}}
    rows = [landmark_row("tip", 0.5)]
    return {"id": name, "inputs": {"fixed_image": source}, "measures": measures, "landmarks": rows}


def maps(shape: tuple[int, ...] = (6, 7)) -> dict[str, np.ndarray]:
    values = {name: np.ones(shape) for name in ("warped", "joint_saliency", "trust", "jacobian")}
    return {**values, "field": np.zeros((len(shape), *shape))}


def test_a_registration_is_written_whole_and_replaces_an_older_one(tmp_path):
    folder = tmp_path / "out" / "a"
    for _ in range(2):
        write_registration(folder, case_record(tmp_path), maps(), np.eye(4), {"seed": 3})
    assert {path.name for path in folder.iterdir()} == {
        *(f"{name}.nii.gz" for name in ("warped", "field", "joint_saliency", "trust", "jacobian")),
        *("metrics.json", "landmarks.csv"),
    }
    record = json.loads((folder / "metrics.json").read_text())
    assert record["measures"]["tre_mean_after"] == {"value": 0.5, "unit": "mm"}
    assert len(record["inputs"]["fixed_image"]["sha256"]) == 64
    assert {"monai_jsm", "monai", "torch"} <= set(record["versions"])
    assert record["seed"] == 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


def test_a_folder_that_is_no_result_of_the_case_alone_is_never_replaced(tmp_path):
    folder = tmp_path / "out" / "a"
    for prepare in (
        lambda: folder.mkdir(parents=True),
        lambda: write_registration(folder, case_record(tmp_path), maps(), np.eye(4), {}),
    ):
        prepare()
        (folder / "scan.nii.gz").write_bytes(b"precious")
        with pytest.raises(InputError, match=r"is no result of the pair a alone.*--output_dir"):
            write_registration(folder, case_record(tmp_path), maps(), np.eye(4), {})
        assert (folder / "scan.nii.gz").read_bytes() == b"precious"
        shutil.rmtree(folder)


def test_a_result_that_is_an_input_is_never_replaced(tmp_path):
    folder = tmp_path / "a"
    write_registration(folder, case_record(tmp_path), maps(), np.eye(4), {})
    case = {**case_record(tmp_path), "inputs": {"moving_image": folder / "warped.nii.gz"}}
    with pytest.raises(InputError, match="which is to be registered"):
        write_registration(folder, case, maps(), np.eye(4), {})
    assert (folder / "warped.nii.gz").is_file()


def test_a_value_that_is_not_a_number_is_null(tmp_path):
    case = case_record(tmp_path)
    case["measures"]["log_jacobian_sd"] = {"value": float("nan"), "unit": "1"}
    write_registration(tmp_path / "a", case, maps(), np.eye(4), {})
    assert json.loads((tmp_path / "a" / "metrics.json").read_text())["measures"]["log_jacobian_sd"]["value"] is None


def test_a_failing_write_leaves_neither_a_folder_nor_a_temporary_one(tmp_path):
    broken = maps()
    del broken["trust"]
    with pytest.raises(KeyError, match="trust"):
        write_registration(tmp_path / "out" / "a", case_record(tmp_path), broken, np.eye(4), {})
    assert list((tmp_path / "out").iterdir()) == []


def test_an_evaluation_has_a_row_per_case_and_per_landmark(tmp_path):
    cases = [case_record(tmp_path, name) for name in ("a", "b")]
    write_evaluation(tmp_path / "out", cases, summarise(cases), {"seed": 3})
    assert (tmp_path / "out" / "cases.csv").read_text().splitlines()[0] == "case,tre_mean_after"
    rows = (tmp_path / "out" / "landmarks.csv").read_text().splitlines()
    assert rows[0].startswith("case,label,fixed_x,fixed_y,moving_x")
    assert rows[2].startswith("b,tip,1.000000,2.000000,2.000000")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["cases"] == 2


def test_an_evaluation_without_landmarks_leaves_no_table_of_them(tmp_path):
    for landmarks in ([landmark_row("tip", 0.5)], []):
        cases = [{**case_record(tmp_path), "landmarks": landmarks}]
        write_evaluation(tmp_path / "out", cases, summarise(cases), {"seed": 3})
        assert (tmp_path / "out" / "landmarks.csv").exists() == bool(landmarks)
