"""One path from a pair to a result: the function, the command and the bundle's inference."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from scipy import ndimage

import monai_jsm
from monai_jsm.data import InputError, load_cases, read_image, read_landmarks
from monai_jsm.geometry import voxel_to_world, world_to_voxel
from monai_jsm.networks import GlobalToLocalNet, load_weights, released_weights
from monai_jsm.registration import PairInferer, PreAlignd, Registrar, evaluate_transform, preprocessing

PROJECT = Path(__file__).resolve().parents[1]
FILES = {
    *(f"{name}.nii.gz" for name in ("warped", "field", "inverse_field", "joint_saliency", "trust", "jacobian")),
    *("metrics.json", "report.html", "figures"),
}
QUICK = {"affine": "none", "refine": False}


def case_of(folder: Path, spatial_dims: int) -> dict:
    return load_cases(folder, "testing", spatial_dims)[0]


def oblique(spatial_dims: int, spacing: tuple[float, ...], angle: float, mirrored: bool) -> np.ndarray:
    """A voxel-to-world matrix, anisotropic, turned, perhaps left-handed."""
    turn = np.eye(spatial_dims)
    cosine, sine = np.cos(angle), np.sin(angle)
    turn[:2, :2] = [[cosine, -sine], [sine, cosine]]
    if spatial_dims == 3:
        tilt = np.eye(3)
        tilt[1:, 1:] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
        turn = turn @ tilt
    if mirrored:
        turn[:, 1] *= -1
    affine = np.eye(spatial_dims + 1)
    affine[:-1, :-1] = turn * np.array(spacing[:spatial_dims])
    return affine


def blobs(points: np.ndarray, seed: int = 0) -> np.ndarray:
    """Intensity 0 to about 1000 at world points (*S, D) around the origin."""
    generator = np.random.default_rng(seed)
    centres = generator.uniform(-15, 15, (12, points.shape[-1]))
    heights = generator.uniform(200, 800, 12)
    distance = np.linalg.norm(points[..., None, :] - centres, axis=-1)
    return (heights * np.exp(-(distance**2) / (2 * 4.0**2))).sum(-1)


def image_at(shape: tuple[int, ...], affine: np.ndarray, shift: np.ndarray, bump: float) -> MetaTensor:
    """The blobs on a grid whose middle is the origin, seen through a shift and a smooth bump, mm."""
    affine = affine.copy()
    affine[:-1, -1] = -affine[:-1, :-1] @ (np.array(shape) - 1) / 2
    points = np.moveaxis(np.indices(shape), 0, -1) @ affine[:-1, :-1].T + affine[:-1, -1]
    radius = np.linalg.norm(points, axis=-1, keepdims=True)
    seen = points + shift + bump * np.exp(-(radius**2) / (2 * 10.0**2)) * np.eye(len(shape))[0]
    return MetaTensor(torch.as_tensor(blobs(seen), dtype=torch.float32), affine=torch.as_tensor(affine))


def oblique_pair(spatial_dims: int, shift: float = 0.0) -> tuple[MetaTensor, MetaTensor]:
    shapes = [(40, 36, 24)[:spatial_dims], (38, 42, 26)[:spatial_dims]]
    affines = [
        oblique(spatial_dims, (0.9, 1.3, 2.0), 0.3, mirrored=True),
        oblique(spatial_dims, (1.1, 1.0, 1.7), -0.2, mirrored=False),
    ]
    moved = np.full(spatial_dims, shift)
    return image_at(shapes[0], affines[0], moved, 3.0), image_at(shapes[1], affines[1], 0 * moved, 0.0)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("affine", ["auto", "none"])
def test_itk_repeats_the_warped_image_from_the_saved_field(tmp_path, spatial_dims, affine):
    fixed, moving = oblique_pair(spatial_dims, shift=2.0)
    result = monai_jsm.register(fixed, moving, affine=affine)
    result.save(tmp_path / "out")
    field = sitk.ReadImage(str(tmp_path / "out" / "field.nii.gz"), sitk.sitkVectorFloat64)
    pulled = sitk.Resample(
        sitk.ReadImage(str(tmp_path / "out" / "moving_image.nii"), sitk.sitkFloat64),
        field,
        sitk.DisplacementFieldTransform(sitk.Image(field)),
        sitk.sitkLinear,
        0.0,
    )
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "warped.nii.gz"), sitk.sitkFloat64))
    away = world_to_voxel(
        voxel_to_world(
            torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in fixed.shape], indexing="ij"), -1)
            .double()
            .reshape(-1, spatial_dims)
            + result.ddf.as_tensor().flatten(1).T,
            fixed.affine,
        ),
        moving.affine,
    )
    inside = ((away >= 0) & (away <= torch.tensor(moving.shape) - 1)).all(1).reshape(fixed.shape).numpy()
    difference = np.abs(sitk.GetArrayFromImage(pulled) - written)[inside.transpose()]
    spread = float(moving.max() - moving.min())
    assert inside.mean() > 0.4
    assert difference.max() < 1e-5 * spread
    assert np.abs(written - fixed.numpy().transpose())[inside.transpose()].mean() < 0.05 * spread


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_all_files_are_written_and_every_number_has_a_unit(datalist_factory, tmp_path, spatial_dims):
    case = case_of(datalist_factory(spatial_dims), spatial_dims)
    Registrar()(case).save(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {"landmarks.csv"}
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    measures = metrics["measures"]
    for name in ("tre_mean", "dice", "hd95", "contour_distance"):
        assert {f"{name}_before", f"{name}_affine", f"{name}_after"} <= set(measures)
    assert measures["tre_mean_after"]["value"] < measures["tre_mean_before"]["value"]
    assert measures["inverse_consistency_p95"]["value"] < 0.5
    assert set(metrics["inputs"]) == {
        f"{side}_{kind}" for side in ("fixed", "moving") for kind in ("image", "label", "landmarks")
    }
    assert all(len(entry["sha256"]) == 64 for entry in metrics["inputs"].values())
    assert_units(metrics)


def assert_units(record: object, name: str = "", unit: bool = False) -> None:
    if isinstance(record, dict):
        for key, value in record.items():
            assert_units(value, key, unit or "unit" in record)
    elif isinstance(record, list):
        for value in record:
            assert_units(value, name, unit)
    elif isinstance(record, (int, float)) and not isinstance(record, bool):
        assert unit or name == "seed", f"{name} has no unit"


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("space", ["world", "voxel"])
def test_points_go_to_moving_and_come_back(spatial_dims, space):
    fixed, moving = oblique_pair(spatial_dims, shift=1.0)
    result = monai_jsm.register(fixed, moving)
    points = torch.full((1, spatial_dims), 1.5, dtype=torch.float64) * torch.tensor([[-2.0], [0.0], [1.0]])
    if space == "voxel":
        points = world_to_voxel(points, fixed.affine)
    there = result.apply_points(points, frm="fixed", to="moving", space=space)
    back = result.apply_points(there, frm="moving", to="fixed", space=space)
    assert (there - points).abs().max() > 0.5
    torch.testing.assert_close(back, points, atol=0.01, rtol=0)
    world = there if space == "world" else voxel_to_world(there, moving.affine)
    shown = ndimage.map_coordinates(
        result.warped[0].numpy(),
        world_to_voxel(points if space == "world" else voxel_to_world(points, fixed.affine), fixed.affine).numpy().T,
        order=1,
    )
    seen = ndimage.map_coordinates(moving.numpy(), world_to_voxel(world, moving.affine).numpy().T, order=1)
    np.testing.assert_allclose(shown, seen, atol=0.03 * float(moving.max()))


def test_points_beyond_the_images_and_unknown_words_are_refused():
    fixed, moving = oblique_pair(2)
    result = monai_jsm.register(fixed, moving, **QUICK)
    with pytest.raises(ValueError, match="says nothing at the points"):
        result.apply_points([[500.0, 0.0]])
    with pytest.raises(ValueError, match="one each"):
        result.apply_points([[0.0, 0.0]], frm="fixed", to="fixed")
    with pytest.raises(ValueError, match="'world' or 'voxel'"):
        result.apply_points([[0.0, 0.0]], space="lps")


def test_another_image_and_a_label_of_moving_follow():
    fixed, moving = oblique_pair(2, shift=1.0)
    result = monai_jsm.register(fixed, moving)
    again = result.apply_image(moving)
    torch.testing.assert_close(again.as_tensor(), result.warped.as_tensor())
    label = MetaTensor((moving > 300).float(), affine=moving.affine)
    carried = result.apply_label(label)
    assert set(carried.unique().tolist()) == {0.0, 1.0}
    expected = result.warped > 300
    assert (carried.bool() == expected).float().mean() > 0.95


def test_bundle_inference_function_and_command_give_the_same_field(datalist_factory, tmp_path, capsys):
    from monai_jsm.apps.command_line import main

    folder = datalist_factory(2)
    case = case_of(folder, 2)
    workflow = ConfigWorkflow(
        config_file=str(PROJECT / "bundle" / "configs" / "inference.json"),
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(PROJECT / "bundle"),
        dataset_dir=str(folder),
        output_dir=str(tmp_path / "bundle"),
    )
    workflow.initialize()
    workflow.run()
    landmarks = {key: case[key] for key in ("fixed_landmarks", "moving_landmarks", "landmark_space")}
    labels = {key: case[key] for key in ("fixed_label", "moving_label")}
    result = monai_jsm.register(case["fixed_image"], case["moving_image"], **landmarks, **labels)
    result.save(tmp_path / "function")
    words = [f"--{key.replace('_image', '').replace('_', '-')}={value}" for key, value in case.items() if key != "id"]
    assert main(["register", *words, "--output", str(tmp_path / "command")]) == 0
    assert "| TRE, mean | mm |" in capsys.readouterr().out
    folders = [tmp_path / "bundle" / case["id"], tmp_path / "function", tmp_path / "command"]
    for name in sorted(FILES - {"metrics.json", "report.html", "figures"}):
        arrays = [nib.load(folder / name).get_fdata() for folder in folders]
        np.testing.assert_array_equal(arrays[0], arrays[1])
        np.testing.assert_array_equal(arrays[0], arrays[2])
    told = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    for key in ("measures", "theta", "settings", "weights", "warnings", "seed"):
        if key == "weights":
            told = [{**record, "weights": record["weights"]["sha256"]} for record in told]
        if key == "measures":  # a batch adds its last digits in another order
            told = [{**record, key: {name: entry["value"] for name, entry in record[key].items()}} for record in told]
            assert told[0][key] == pytest.approx(told[1][key], rel=1e-9)
        assert told[1][key] == told[2][key], key
        assert key == "measures" or told[0][key] == told[1][key], key


def test_two_runs_are_equal():
    fixed, moving = oblique_pair(3, shift=2.0)
    first, second = (monai_jsm.register(fixed, moving) for _ in range(2))
    assert torch.equal(first.ddf.as_tensor(), second.ddf.as_tensor())
    assert torch.equal(first.theta, second.theta)


def test_the_prealignment_is_part_of_the_total_field():
    """Turned by 0.25 and shifted by 9 mm: beyond the network's reach, not beyond that of an affine."""
    shape, affine = (64, 60), oblique(2, (1.0, 1.1), 0.0, mirrored=False)
    fixed = image_at(shape, affine, np.zeros(2), 0.0)
    turned = oblique(2, (1.0, 1.1), 0.25, mirrored=False)
    turned[:2, 2] = fixed.affine[:2, 2].numpy()
    moving = MetaTensor(
        fixed.as_tensor().clone(), affine=torch.as_tensor(turned @ np.linalg.inv(affine) @ fixed.affine.numpy())
    )
    result = monai_jsm.register(fixed, moving)
    points = voxel_to_world(torch.tensor([[20.0, 20.0], [40.0, 35.0], [30.0, 45.0]], dtype=torch.float64), fixed.affine)
    truth = voxel_to_world(world_to_voxel(points, fixed.affine), moving.affine)
    error = torch.linalg.vector_norm(result.apply_points(points) - truth, dim=1)
    assert torch.linalg.vector_norm(points - truth, dim=1).min() > 2
    assert error.max() < 0.5
    assert (result.theta[:2, :2] - torch.eye(2)).abs().max() > 0.1


@pytest.mark.parametrize("shape", [(16, 16), (16, 21), (130, 17), (16, 17, 18)])
def test_any_size_from_sixteen_voxels_registers(shape):
    spacing = oblique(len(shape), (1.3, 1.1, 1.2), 0.0, mirrored=False)
    fixed, moving = (image_at(shape, spacing, np.full(len(shape), shift), 1.0) for shift in (0.0, 0.7))
    result = monai_jsm.register(fixed, moving)
    assert result.ddf.shape == (len(shape), *shape)
    assert torch.isfinite(result.ddf).all()


@pytest.mark.parametrize("factor", [1, 3])
def test_a_large_pair_is_seen_small_and_its_field_comes_back_in_its_own_voxels(factor):
    """A network that answers with a shift of one voxel of what it sees."""
    shape = (40 * factor - factor + 1, 30 * factor - factor + 1)
    seen = []

    def network(image):
        seen.append(tuple(image.shape[2:]))
        return torch.ones(1, 2, *image.shape[2:])

    ddf = PairInferer(longest=40)(torch.rand(1, 2, *shape), network)
    assert max(seen[0]) <= 41
    assert ddf.shape == (1, 2, *shape)
    torch.testing.assert_close(ddf, torch.full_like(ddf, float(factor)), atol=0.06 * factor, rtol=0)


def test_a_pair_within_the_networks_reach_is_left_to_it_alone():
    network = load_weights(GlobalToLocalNet(2), released_weights(2)).eval()
    image = torch.rand(1, 2, 48, 64)
    with torch.no_grad():
        assert torch.equal(PairInferer()(image, network), network(image))


def test_beyond_the_moving_image_there_is_background_and_no_trust():
    fixed, moving = oblique_pair(2)
    half = MetaTensor(moving.as_tensor()[:19], affine=moving.affine)
    result = monai_jsm.register(fixed, half, **QUICK)
    outside = result.trust == 0
    assert 0.2 < outside.float().mean() < 0.8
    assert (result.warped[outside] == half.min()).all()
    assert (
        any("lies within the moving image" in warning for warning in result.metrics["warnings"])
        or outside.float().mean() < 0.5
    )


def test_a_mask_decides_where_refinement_looks():
    """A bright square that stands in moving only pulls the field; masked, it does not."""
    fixed, moving = oblique_pair(2)
    spoiled = moving.clone()
    spoiled[12:26, 14:28] = moving.max() * 2
    mask = MetaTensor(torch.ones_like(moving.as_tensor()), affine=moving.affine)
    mask[10:28, 12:30] = 0
    without = monai_jsm.register(fixed, spoiled, affine="none")
    masked = monai_jsm.register(fixed, spoiled, affine="none", moving_mask=mask)
    assert not torch.equal(without.ddf.as_tensor(), masked.ddf.as_tensor())


def test_no_weights_for_a_dimension_means_refinement_alone_or_a_refusal():
    fixed, moving = oblique_pair(3)
    result = monai_jsm.register(fixed, moving, affine="none")
    assert result.metrics["settings"]["network"] == "none"
    with pytest.raises(InputError, match="no weights are released for 3D images; leave --no-refine out"):
        monai_jsm.register(fixed, moving, **QUICK)


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="affine must be one of"):
        PreAlignd("rigid")
    fixed, moving = oblique_pair(2)
    with pytest.raises(ValueError, match="must be a MetaTensor"):
        monai_jsm.register(fixed.as_tensor(), moving)
    with pytest.raises(ValueError, match="formats must be of"):
        monai_jsm.register(fixed, moving, **QUICK).save("never", formats=["png"])


def test_images_of_different_dimensions_are_refused():
    with pytest.raises(InputError, match="is 3D where 2D images are registered; give two images"):
        monai_jsm.register(oblique_pair(2)[0], oblique_pair(3)[1])


def test_preprocessing_keeps_the_place_of_a_slice_in_the_world(tmp_path):
    """A 2D file may lie anywhere along the third axis; results lie there too."""
    fixed, moving = oblique_pair(2)
    for name, image in (("fixed", fixed), ("moving", moving)):
        affine = np.eye(4)
        affine[:2, :2], affine[:2, 3], affine[2, 3] = image.affine[:2, :2], image.affine[:2, 2], 31.5
        nib.save(nib.Nifti1Image(image.numpy()[..., None], affine), tmp_path / f"{name}.nii.gz")
    result = monai_jsm.register(tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz", **QUICK)
    result.save(tmp_path / "out")
    for name in ("warped", "field", "inverse_field", "trust"):
        assert nib.load(tmp_path / "out" / f"{name}.nii.gz").affine[2, 3] == 31.5


def test_the_report_of_images_in_memory_finds_them_in_the_folder(tmp_path):
    fixed, moving = oblique_pair(2)
    monai_jsm.register(fixed, moving, **QUICK, name="in memory").save(tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "fixed_image.nii" in page
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    from monai_jsm.report import write_report

    write_report(tmp_path / "elsewhere")


def test_preprocessing_says_what_is_unusual(tmp_path):
    fixed, moving = oblique_pair(2)
    short = MetaTensor(fixed.as_tensor()[:, :18], affine=fixed.affine)
    warnings = monai_jsm.register(short, moving, **QUICK).metrics["warnings"]
    assert "The fixed image is thin: 40 x 18 voxels." in warnings


def test_a_pair_too_large_for_the_memory_is_refused_before_any_work(monkeypatch, datalist_factory):
    from monai_jsm.data import preflight

    monkeypatch.setattr(preflight, "_free_memory", lambda: 2**20)
    case = case_of(datalist_factory(2), 2)
    with pytest.raises(InputError, match=r"needs about .* GiB of memory where 0.0 GiB are free; crop"):
        preprocessing(2).transforms[1](preprocessing(2).transforms[0](case))


@pytest.mark.parametrize("program", ["ants", "elastix"])
def test_a_field_of_another_program_is_measured_as_that_program_carries_points(
    datalist_factory, tmp_path, program, capfd, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # elastix leaves a file where it runs
    case = case_of(datalist_factory(2), 2)
    affines = [nib.load(case[f"{side}_image"]).affine for side in ("fixed", "moving")]
    sides = [
        read_landmarks(case[f"{side}_landmarks"], "lps", affine)
        for side, affine in zip(("fixed", "moving"), affines, strict=True)
    ]
    fixed, moving = (landmarks.positions * (-1, -1) for landmarks in sides)  # LPS
    images = {side: sitk.ReadImage(case[f"{side}_image"], sitk.sitkFloat32) for side in ("fixed", "moving")}
    paths, carried = {"ants": with_ants, "elastix": with_elastix}[program](images, fixed, tmp_path)
    expected = np.linalg.norm(carried - moving, axis=1)
    record = evaluate_transform(paths, case)
    found = [row["after_mm"] for row in record["landmarks"]]
    np.testing.assert_allclose(found, expected, atol=1e-3)  # both programs hold float32
    assert np.mean(found) < np.mean([row["before_mm"] for row in record["landmarks"]])
    assert {"dice_after", "hd95_after", "folding", "inverse_consistency_p95"} <= set(record["measures"])


def with_ants(images: dict[str, sitk.Image], points: np.ndarray, folder: Path) -> tuple[list[str], np.ndarray]:
    """SyN with its affine part, two files, and the points as ANTs carries them."""
    ants = pytest.importorskip("ants", reason="antspyx is not installed")
    for side, image in images.items():
        sitk.WriteImage(image, str(folder / f"{side}.mha"))
    fixed, moving = (ants.image_read(str(folder / f"{side}.mha")) for side in ("fixed", "moving"))
    settings = {"reg_iterations": (20, 10), "random_seed": 1, "outprefix": str(folder / "syn_")}
    found = ants.registration(fixed, moving, "SyN", **settings)["fwdtransforms"]
    table = pd.DataFrame(points, columns=["x", "y"])
    carried = ants.apply_transforms_to_points(2, table, found)[["x", "y"]].to_numpy()
    return found, carried


def with_elastix(images: dict[str, sitk.Image], points: np.ndarray, folder: Path) -> tuple[list[str], np.ndarray]:
    """A B-spline's displacement on the grid of fixed, and the points as ITK carries them through it."""
    itk = pytest.importorskip("itk", reason="itk-elastix is not installed")
    if not hasattr(itk, "elastix_registration_method"):
        pytest.skip("itk-elastix is not installed")
    for side, image in images.items():
        sitk.WriteImage(image, str(folder / f"{side}.mha"))
    fixed, moving = (itk.imread(str(folder / f"{side}.mha"), itk.F) for side in ("fixed", "moving"))
    parameters = itk.ParameterObject.New()
    settings = parameters.GetDefaultParameterMap("bspline", 2, 12.0)
    settings["MaximumNumberOfIterations"] = ["60"]
    parameters.AddParameterMap(settings)
    _, transform = itk.elastix_registration_method(fixed, moving, parameter_object=parameters, log_to_console=False)
    itk.imwrite(itk.transformix_deformation_field(moving, transform), str(folder / "deformationField.mha"))
    field = sitk.ReadImage(str(folder / "deformationField.mha"), sitk.sitkVectorFloat64)
    carry = sitk.DisplacementFieldTransform(field)
    return [str(folder / "deformationField.mha")], np.array([carry.TransformPoint(p) for p in points.tolist()])


@pytest.mark.slow
def test_real_histology_comes_closer_by_the_affine_part_and_by_the_field(shared_data, tmp_path, capsys):
    from monai_jsm.apps.command_line import main

    folder = shared_data / "histology" / "lung_lesion_3"
    words = ["register", "--output", str(tmp_path / "out")]
    for side, name in (("fixed", "29-041-Izd2-w35-proSPC-4-les3"), ("moving", "29-041-Izd2-w35-Cc10-5-les3")):
        words += [f"--{side}", str(folder / f"{name}.jpg"), f"--{side}-landmarks", str(folder / f"{name}.csv")]
    assert main(words) == 0
    measures = json.loads((tmp_path / "out" / "metrics.json").read_text())["measures"]
    before, affine, after = (measures[f"tre_mean_{when}_voxel"]["value"] for when in ("before", "affine", "after"))
    assert affine < 0.5 * before
    assert after < affine
    assert measures["folding"]["value"] < 0.01


def test_a_real_dicom_pair_becomes_a_derived_series_and_a_registration_object(shared_data, tmp_path, capsys):
    """After and before contrast, aligned by the provider: the field stays small, and every file says the same.

    Cut to the first 96 rows and columns of each slice from the 90th on, for speed.
    """
    import pydicom

    from monai_jsm.apps.command_line import main
    from monai_jsm.data.fields import read_transform

    series = []
    for name in ("pgbm003_t1pre_registered", "pgbm003_t1post"):
        series.append(tmp_path / name)
        series[-1].mkdir()
        for path in (shared_data / "dicom" / name).glob("*.dcm"):
            part = pydicom.dcmread(path)
            rows, columns = np.reshape(part.ImageOrientationPatient, (2, 3)).astype(float)
            edges = np.array(part.PixelSpacing, dtype=float)  # between rows, between columns
            corner = np.array(part.ImagePositionPatient, float) + 90 * (columns * edges[0] + rows * edges[1])
            part.ImagePositionPatient = [f"{value:.6f}" for value in corner]
            part.PixelData = np.ascontiguousarray(part.pixel_array[90:186, 90:186]).tobytes()
            part.Rows = part.Columns = 96
            part.save_as(series[-1] / path.name)
    words = ["register", "--fixed", str(series[0]), "--moving", str(series[1]), "--output", str(tmp_path / "out")]
    assert main([*words, "--formats", "dicom", "--dicom-out"]) == 0
    (held,) = read_transform([tmp_path / "out" / "registration.dcm"])
    (field,) = read_transform([tmp_path / "out" / "field.nii.gz"])
    torch.testing.assert_close(held.displacement, field.displacement, atol=1e-4, rtol=0)
    warped, affine = read_image(tmp_path / "out" / "warped.nii.gz")
    derived, derived_affine = read_image(tmp_path / "out" / "dicom")
    np.testing.assert_allclose(derived_affine, affine, atol=1e-4)
    np.testing.assert_allclose(derived, warped, atol=0.51)  # whole numbers
    first = pydicom.dcmread(next((tmp_path / "out" / "dicom").glob("*.dcm")))
    source = pydicom.dcmread(next(series[0].glob("*.dcm")))
    assert first.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert first.DerivationCodeSequence[0].CodeValue == "113085"
    assert field.displacement.abs().median() < 1


def test_a_label_in_memory_is_held_to_what_a_file_is_held_to():
    fixed, moving = oblique_pair(2)
    broken = MetaTensor(torch.full_like(moving.as_tensor(), 0.5), affine=moving.affine)
    with pytest.raises(InputError, match="the moving label: holds values that are not whole numbers"):
        monai_jsm.register(fixed, moving, moving_label=broken, **QUICK)
    with pytest.raises(InputError, match="the moving mask: is empty"):
        monai_jsm.register(fixed, moving, moving_mask=torch.zeros_like(moving), **QUICK)


def test_formats_in_the_command_are_those_of_the_library():
    from monai_jsm.apps import command_line
    from monai_jsm.data import LANDMARK_SPACES
    from monai_jsm.data.results import EXPORTS

    assert tuple(EXPORTS) == command_line._FORMATS
    assert LANDMARK_SPACES == command_line._SPACES
