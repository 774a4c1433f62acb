import csv
import dataclasses
import functools
import itertools
import json
import pickle

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from monai_jsm.benchmark import known_motion, suites
from monai_jsm.benchmark.known_motion import (
    LESIONS,
    STROKE_CHANGES,
    WARP_FAMILIES,
    draw_motion,
    make_known_motion_pair,
)
from monai_jsm.benchmark.suites import SUITES, suite_folder
from monai_jsm.data import InputError, load_cases, read_image, read_landmarks, write_phantom
from monai_jsm.geometry import carry_points, jacobian_determinant, warp
from monai_jsm.registration import AFFINE_CHOICES
from monai_jsm.transforms import LoadPaird

SHAPES = {2: (60, 72), 3: (30, 36, 33)}
SPACINGS = {2: (1.0, 1.3), 3: (2.0, 1.5, 1.8)}
LONGEST = (2.0, 4.0)


def blobs(shape, seed=3):
    """Tissue of about 0.3 to 1 in an ellipse, textured, background 0."""
    generator = np.random.default_rng(seed)
    texture = ndimage.gaussian_filter(generator.standard_normal(shape), 2.0)
    centred = np.moveaxis(np.indices(shape), 0, -1) - (np.array(shape) - 1) / 2
    inside = np.linalg.norm(centred / (0.38 * np.array(shape)), axis=-1) < 1
    return np.where(inside, 0.65 + 0.15 * texture / texture.std(), 0).clip(0, 1)


def stroke(shape=(64, 64)):
    """A thick 7."""
    image = np.zeros(shape)
    image[16:46, 12:17] = 1
    for i in range(36):
        image[44 - i // 2 : 50 - i // 2, 16 + i] = 1
    return ndimage.gaussian_filter(image, 0.8)


def make_pair(spatial_dims, seed, family="noise", outlier="", **options):
    image = stroke() if outlier in STROKE_CHANGES else blobs(SHAPES[spatial_dims])
    spacing = (1.0, 1.0) if outlier in STROKE_CHANGES else SPACINGS[spatial_dims]
    options = {"floor": 0.3} | options
    return make_known_motion_pair(image, spacing, np.random.default_rng(seed), LONGEST, family, outlier, **options)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@settings(max_examples=20)
@given(spatial_dims=st.sampled_from([2, 3]), family=st.sampled_from(WARP_FAMILIES), seed=st.integers(0, 2**16))
def test_a_drawn_motion_folds_nowhere_and_is_as_long_as_asked_for(spatial_dims, family, seed):
    shape, spacing = SHAPES[spatial_dims], SPACINGS[spatial_dims]
    ddf = draw_motion(np.random.default_rng(seed), shape, spacing, LONGEST, family)
    assert ddf.shape == (spatial_dims, *shape)
    assert jacobian_determinant(torch.from_numpy(ddf)[None]).min() > 0.15
    millimetres = ddf * np.reshape(spacing, (-1,) + (1,) * spatial_dims)
    assert LONGEST[0] <= np.linalg.norm(millimetres, axis=0).max() <= LONGEST[1] + 1e-9
    np.testing.assert_array_equal(draw_motion(np.random.default_rng(seed), shape, spacing, LONGEST, family), ddf)


@pytest.mark.parametrize("family", WARP_FAMILIES)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_moving_pulled_through_the_motion_is_fixed_and_landmarks_follow_it(monkeypatch, spatial_dims, family):
    monkeypatch.setattr(known_motion, "_NOISE", 0.0)
    monkeypatch.setattr(known_motion, "_BIAS", 0.0)
    pair = make_pair(spatial_dims, 5, family, wanted=9)
    moving, ddf = torch.from_numpy(pair.moving)[None, None], torch.from_numpy(pair.ddf)[None]
    inside = ndimage.binary_erosion(pair.fixed > 0.2, iterations=2)  # the sharp rim is interpolated differently
    after, before = (
        np.abs(image / image[inside].mean() - pair.fixed / pair.fixed[inside].mean())[inside].mean()
        for image in (warp(moving, ddf)[0, 0].numpy(), pair.moving)
    )
    assert after < 0.02  # linear against cubic interpolation
    assert after < 0.35 * before
    assert len(pair.fixed_landmarks) == 9
    carried = carry_points(torch.from_numpy(pair.fixed_landmarks)[None], ddf)[0].numpy()
    np.testing.assert_allclose(pair.moving_landmarks, carried, atol=1e-9)
    assert pair.carrier == ""
    assert not pair.outlier.any()


@pytest.mark.parametrize("outlier", [*LESIONS, *STROKE_CHANGES])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_one_image_shows_an_outlier_and_landmarks_keep_away_from_it(spatial_dims, outlier):
    if outlier in STROKE_CHANGES and spatial_dims == 3:
        return
    carriers = set()
    for seed in range(6):
        pair = make_pair(spatial_dims, seed, WARP_FAMILIES[seed % 3], outlier)
        carriers.add(pair.carrier)
        image, points = (
            (pair.fixed, pair.fixed_landmarks) if pair.carrier == "fixed" else (pair.moving, pair.moving_landmarks)
        )
        assert pair.outlier.shape == image.shape
        distance = ndimage.distance_transform_edt(~pair.outlier)
        off = ndimage.map_coordinates(distance, points.T, order=1)
        assert off.min() > 2.7  # 3, less what linear interpolation of a distance may take
        assert (off <= 8).any()
        ddf = torch.from_numpy(pair.ddf)[None]
        warped, there = (
            warp(torch.from_numpy(array)[None, None], ddf)[0, 0].numpy()
            for array in (pair.moving, pair.outlier.astype(float))
        )
        seen = pair.outlier if pair.carrier == "fixed" else there > 0.9
        unlike = np.abs(pair.fixed / np.percentile(pair.fixed, 99) - warped / np.percentile(warped, 99))
        assert unlike[seen].mean() > 1.8 * unlike[ndimage.binary_dilation(seen, iterations=4) == 0].mean()
    assert carriers == {"fixed", "moving"}


def test_given_landmarks_of_moving_are_kept_and_found_again_in_fixed():
    points = np.array([[20.0, 30.5], [31.25, 40.0], [40.0, 25.0], [0.5, 3.0]])  # the last is too near to the border
    pair = make_pair(2, 11, "bspline", points=points)
    np.testing.assert_allclose(pair.moving_landmarks, points[:3], atol=1e-3)  # the tolerance of the inversion
    ddf = torch.from_numpy(pair.ddf)[None]
    carried = carry_points(torch.from_numpy(pair.fixed_landmarks)[None], ddf)[0].numpy()
    np.testing.assert_allclose(carried, pair.moving_landmarks, atol=1e-9)


def test_unknown_kinds_and_motions_that_must_fold_are_mistakes_of_the_program():
    with pytest.raises(ValueError, match="family must be one of"):
        draw_motion(np.random.default_rng(0), (20, 24), (1, 1), (1, 2), "affine")
    with pytest.raises(ValueError, match="outlier must be one of"):
        make_pair(2, 0, outlier="hole")
    with pytest.raises(ValueError, match="ask for shorter ones"):
        draw_motion(np.random.default_rng(0), (20, 24), (1, 1), (30, 40), "noise")


def test_every_suite_says_what_the_benchmark_needs_and_travels_to_other_processes():
    assert list(SUITES) == [
        *("digits", "digits-outlier", "phantom", "known-field", "cine", "histology"),
        *("hippocampus", "brain3d", "brain-tumour", "lung", "lung-motion"),
    ]
    for name, suite in SUITES.items():
        assert suite.name == name
        assert suite.affine in AFFINE_CHOICES
        assert suite.unit == {2: "voxel", 3: "mm"}[suite.spatial_dims]
        assert suite.weights in {2: ("cine", "digits"), 3: ("",)}[suite.spatial_dims]
        assert suite.split.endswith(".")
        assert pickle.loads(pickle.dumps(suite)) == suite


def made_of_nothing(data, folder):
    folder.mkdir()
    (folder / "datalist.json").write_text(json.dumps({"spatial_dims": 2, "testing": [], "description": str(data)}))


def test_a_folder_of_other_data_or_another_version_is_refused(tmp_path):
    suite = dataclasses.replace(SUITES["lung"], prepare=made_of_nothing)
    data = {name: tmp_path / name for name in ("data", "more")}
    for path in data.values():
        (path / "lung_ct").mkdir(parents=True)
        (path / "lung_ct" / "mask.mha").write_text("mask")
    folder = suite_folder(suite, data["data"], tmp_path / "suites")
    assert suite_folder(suite, data["more"], tmp_path / "suites") == folder  # the same names and sizes
    (data["more"] / "lung_ct" / "deeper").mkdir()
    (data["more"] / "lung_ct" / "deeper" / "points.csv").write_text("0")
    with pytest.raises(InputError, match="lung: was made from other data or by another version; remove it"):
        suite_folder(suite, data["more"], tmp_path / "suites")
    assert suite_folder(suite, None, tmp_path / "suites") == folder  # what is not named cannot be compared
    (folder / "origin.txt").write_text("0" * 64 + (folder / "origin.txt").read_text()[64:])
    for source in (None, data["data"]):
        with pytest.raises(InputError, match="lung: was made from other data or by another version; remove it"):
            suite_folder(suite, source, tmp_path / "suites")
    (folder / "origin.txt").unlink()
    with pytest.raises(InputError, match="lung: was made from other data"):
        suite_folder(suite, None, tmp_path / "suites")


def test_a_suite_is_made_once_and_then_taken_as_it_is(tmp_path):
    suite = dataclasses.replace(SUITES["phantom"], prepare=made_of_nothing)
    folder = suite_folder(suite, None, tmp_path / "suites")
    assert folder == tmp_path / "suites" / "phantom"
    first = contents(folder)
    assert suite_folder(suite, tmp_path, tmp_path / "suites") == folder
    assert contents(folder) == first
    assert [path.name for path in folder.parent.iterdir()] == ["phantom"]


def test_a_suite_that_fails_leaves_nothing_behind(tmp_path):
    def fail(data, folder):
        made_of_nothing(data, folder)
        raise InputError("the disk: is full; delete something.")

    with pytest.raises(InputError, match="the disk: is full"):
        suite_folder(dataclasses.replace(SUITES["phantom"], prepare=fail), None, tmp_path / "suites")
    assert list((tmp_path / "suites").iterdir()) == []


def test_missing_data_and_foreign_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"suite cine: is made from published data \(sunnybrook_cine\); name"):
        suite_folder(SUITES["cine"], None, tmp_path / "suites")
    with pytest.raises(InputError, match="known_field: there is no such folder; name"):
        suite_folder(SUITES["known-field"], tmp_path, tmp_path / "suites")
    (tmp_path / "suites" / "cine").mkdir(parents=True)
    with pytest.raises(InputError, match=r"cine: holds no datalist.json; remove it"):
        suite_folder(SUITES["cine"], tmp_path, tmp_path / "suites")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="phantom: cannot be made"):
        suite_folder(SUITES["phantom"], None, tmp_path / "file")


@pytest.fixture
def few_digits(tmp_path, monkeypatch):
    """A data directory with MNIST-like images, all different, and suites of four and three pairs of them."""
    generator = np.random.default_rng(7)
    (tmp_path / "mnist").mkdir()
    images = np.zeros((50, 28, 28))
    for image in images:
        row, column = generator.integers(6, 10, 2)
        image[row : row + 3, column : column + generator.integers(8, 12)] = 255
        image[row : row + generator.integers(10, 14), column + 5 : column + 8] = 255
    digits = np.stack([ndimage.gaussian_filter(image, 0.5) for image in images]).astype(np.uint8)
    none = {"x_train": digits[:2], "y_train": np.zeros(2, np.uint8)}
    np.savez(tmp_path / "mnist" / "mnist.npz", **none, x_test=digits, y_test=np.zeros(50, np.uint8))
    monkeypatch.setattr(suites, "_DIGIT_PAIRS", (4, 3))
    return tmp_path


@pytest.mark.parametrize("name", ["digits", "digits-outlier"])
def test_digit_suites_come_out_the_same_twice(few_digits, tmp_path, name):
    first, second = (suite_folder(SUITES[name], few_digits, tmp_path / part) for part in ("first", "second"))
    assert contents(first) == contents(second)


def test_digits_hold_known_motion_first_and_then_pairs_of_a_class(few_digits, tmp_path):
    folder = suite_folder(SUITES["digits"], few_digits, tmp_path / "suites")
    for section, count in (("testing", 4), ("validation", 3)):
        cases = load_cases(folder, section, 2)
        assert ["fixed_landmarks" in case for case in cases] == [True] * count + [False] * count
        assert ["fixed_label" in case for case in cases] == [False] * count + [True] * count
        for case in cases[:count]:
            pair = LoadPaird(2)(case)
            assert len(pair["fixed_landmarks"]) >= 5
            voxels = np.loadtxt(case["fixed_landmarks"], delimiter=",", skiprows=1, usecols=(1, 2)).astype(int)
            on_stroke = read_image(case["fixed_image"], 2)[0][tuple(voxels.T)]
            assert on_stroke.min() > 250  # of about 1000; 500 before gain and bias
    files = {path.relative_to(folder).parts[1] for path in folder.glob("pairs/*/*")}
    assert len(files) == 7  # nothing but what the list names


def test_no_digit_is_in_two_parts(few_digits, tmp_path):
    pairs, images, _ = suites._drawn_digits(few_digits, tmp_path / "pairs")
    ids = [case["id"] for section in pairs for case in pairs[section]]
    drawn = json.loads((tmp_path / "pairs" / "datalist.json").read_text())["testing"]
    numbers = [number for case in drawn for number in case["id"].split("_")[1:3]]
    assert len(set(numbers)) == len(numbers) == 2 * 21
    assert len(ids) == 7
    assert sum(map(len, images.values())) == 14


def test_digits_with_outliers_say_which_image_carries_them(few_digits, tmp_path):
    folder = suite_folder(SUITES["digits-outlier"], few_digits, tmp_path / "suites")
    cases = load_cases(folder, "testing", 2) + load_cases(folder, "validation", 2)
    assert len(cases) == 7
    for case in cases:
        carriers = [side for side in ("fixed", "moving") if f"{side}_outlier" in case]
        assert len(carriers) == 1
        assert read_image(case[f"{carriers[0]}_outlier"], 2)[0].any()
    assert {case["id"].split("_")[1] for case in cases} == set(STROKE_CHANGES)
    assert {case["id"].split("_")[-1] for case in cases} == set(WARP_FAMILIES)


def test_the_phantom_tells_its_outliers(tmp_path, monkeypatch):
    small = functools.partial(write_phantom, training=1, validation=2, testing=6, size=(48, 40))
    monkeypatch.setattr(suites, "write_phantom", small)
    folder = suite_folder(SUITES["phantom"], None, tmp_path)
    cases = load_cases(folder, "testing", 2)
    told = [case["id"] for case in cases if "fixed_outlier" in case]
    assert told == [case["id"] for case in cases if nib.load(folder / case["id"] / "outlier.nii.gz").get_fdata().any()]
    assert 0 < len(told) < 6


def test_brains_are_halved_in_place_moved_and_given_lesions(tmp_path, monkeypatch):
    monkeypatch.setattr(suites, "_BRAIN_MOTION", (3.0, 4.0))
    source = tmp_path / "brain_tumour"
    source.mkdir()
    affine = np.array([[-1.0, 0, 0, 90], [0, -1, 0, 120], [0, 0, 1, -30], [0, 0, 0, 1]])
    array = np.zeros((80, 90, 85), np.int16)
    array[16:70, 16:74, 20:73] = 800 * blobs((54, 58, 53))
    for name in ("healthy_ch2_in_SRI24", *(f"TCGA-{case}" for case in ("DU-7294_t1", "FG-6692_t1"))):
        for suffix in ("", "c"):
            nib.save(nib.Nifti1Image(array, affine), source / f"{name}{suffix}.nii.gz")
    folder = suite_folder(SUITES["brain-tumour"], tmp_path, tmp_path / "suites")
    cases = load_cases(folder, "testing", 3)
    assert len(cases) == 6
    assert len(load_cases(folder, "validation", 3)) == 4
    for section in ("testing", "validation"):
        parts = [(case["subject"], *case["id"].split("_")[-2:]) for case in load_cases(folder, section, 3)]
        for pair_of in itertools.combinations(zip(*parts, strict=True), 2):  # brain, lesion, family
            assert len(set(zip(*pair_of, strict=True))) == len(parts)
    assert sorted(case["id"].split("_")[-2] for case in cases) == sorted(LESIONS * 2)
    assert sorted(case["id"].split("_")[-1] for case in cases) == sorted(WARP_FAMILIES * 2)
    assert all(case["id"].startswith(f"testing_{case['subject']}_") for case in cases)
    image, place = read_image(cases[0]["moving_image"], 3)
    assert np.abs(np.diag(place)[:3]).tolist() == [2, 2, 2]
    middle = np.array(ndimage.center_of_mass(image > 300))
    truth = np.array(ndimage.center_of_mass(array > 240))
    np.testing.assert_allclose(place @ [*middle, 1], affine @ [*truth, 1], atol=2)  # a lesion may hide some tissue
    pair = LoadPaird(3)(cases[0])
    moved = torch.linalg.vector_norm(pair["fixed_landmarks"] - pair["moving_landmarks"], dim=1)
    assert 0.3 < moved.mean() < moved.max() < 4.0


def test_known_fields_keep_their_sections_and_carriers(shared_data, tmp_path):
    folder = suite_folder(SUITES["known-field"], shared_data, tmp_path)
    for section, name, count in (("testing", "known_field", 40), ("validation", "known_field_validation", 24)):
        cases = load_cases(folder, section, 2)
        with (shared_data / name / "cases.csv").open() as stream:
            carriers = {f"{section}_{row['case']}": row["carrier"] for row in csv.DictReader(stream)}
        found = {
            case["id"]: next((side for side in ("fixed", "moving") if f"{side}_outlier" in case), "") for case in cases
        }
        assert found == carriers
        assert len(cases) == count
        with (shared_data / name / "cases.csv").open() as stream:
            assert [case["subject"] for case in cases] == [row["subject"] for row in csv.DictReader(stream)]


def test_held_out_hippocampi_are_paired_and_share_their_middle(shared_data, tmp_path):
    folder = suite_folder(SUITES["hippocampus"], shared_data, tmp_path)
    names = sorted(path.name for path in (shared_data / "hippocampus_msd" / "images").glob("*.nii.gz"))
    used = {}
    for section, count in (("testing", 20), ("validation", 6)):
        cases = load_cases(folder, section, 3)
        assert len(cases) == count
        assert all(case["id"].startswith(f"{case['subject']}_") for case in cases)
        used[section] = {case[f"{side}_image"].split("/")[-1] for case in cases for side in ("fixed", "moving")}
        for case in cases:
            for side in ("fixed", "moving"):
                array, affine = read_image(case[f"{side}_image"], 3)
                np.testing.assert_allclose(affine @ [*(np.array(array.shape) - 1) / 2, 1], [0, 0, 0, 1], atol=1e-6)
    assert used["testing"] <= set(names[-14:])
    assert used["validation"] <= set(names[:-14])


def test_a_folder_of_more_or_fewer_hippocampi_is_refused(tmp_path):
    images = tmp_path / "hippocampus_msd" / "images"
    images.mkdir(parents=True)
    for number in range(53):
        (images / f"hippocampus_{number:03d}.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match="images: holds 53 images; give the 54 of this suite"):
        suite_folder(SUITES["hippocampus"], tmp_path, tmp_path / "suites")


def test_lung_masks_lose_their_shift_and_landmarks_keep_their_place(shared_data, tmp_path):
    folder = suite_folder(SUITES["lung"], shared_data, tmp_path)
    cases = load_cases(folder, "testing", 3)
    assert len(cases) == 1
    pair = LoadPaird(3)(cases[0])
    assert len(pair["fixed_landmarks"]) == 10
    with (shared_data / "lung_ct" / "baseline_followup_points10.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    lps = np.array([[float(row[f"baseline_{axis}_mm"]) for axis in "xyz"] for row in rows])
    np.testing.assert_allclose(pair["fixed_landmarks"].numpy(), lps * [-1, -1, 1], atol=0.01)  # three digits of a mm
    distance = torch.linalg.vector_norm(pair["fixed_landmarks"] - pair["moving_landmarks"], dim=1)
    assert distance.mean() < 8  # 34.9 mm before, 5.0 mm after the best shift


def test_a_lung_moves_four_times_and_its_landmarks_keep_their_place(shared_data, tmp_path):
    folder = suite_folder(SUITES["lung-motion"], shared_data, tmp_path)
    cases = load_cases(folder, "testing", 3)
    assert len(cases) == 4
    assert {case["subject"] for case in cases} == {"baseline"}
    with (shared_data / "lung_ct" / "baseline_landmarks51.csv").open() as stream:
        known = np.array([[float(row[f"{axis}_mm"]) for axis in "xyz"] for row in csv.DictReader(stream)])
    for case in cases:
        affine = read_image(case["moving_image"], 3)[1]
        moving = read_landmarks(case["moving_landmarks"], "voxel0", affine).positions * [-1, -1, 1]
        assert len(moving) >= 45
        assert np.linalg.norm(moving[:, None] - known, axis=-1).min(axis=1).max() < 0.01


def test_the_two_brains_keep_their_thirty_labels(shared_data, tmp_path):
    folder = suite_folder(SUITES["brain3d"], shared_data, tmp_path)
    case = load_cases(folder, "testing", 3)[0]
    for side in ("fixed", "moving"):
        assert len(np.unique(read_image(case[f"{side}_label"], 3)[0])) == 31
