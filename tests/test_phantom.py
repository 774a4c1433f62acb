"""The embedded data: a heart whose motion is known must obey what it claims."""

import csv
import hashlib
import json
import threading

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from monai_jsm.data import phantom
from monai_jsm.data.errors import InputError
from monai_jsm.data.phantom import OUTLIERS, HeartMotion, PhantomPair, make_pair, write_phantom

SIZES = {2: (61, 70), 3: (40, 48, 33)}
SMALL = {"training": 3, "validation": 1, "testing": 2, "size": (34, 39)}

both_dimensions = pytest.mark.parametrize("spatial_dims", [2, 3])


def grid_points(shape):
    return np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij"), axis=-1)


def resample(image, ddf):
    return ndimage.map_coordinates(image, grid_points(image.shape).transpose(-1, *range(image.ndim)) + ddf, order=1)


def correlation(first, second, where):
    return np.corrcoef(first[where], second[where])[0, 1]


@settings(deadline=None, derandomize=True, max_examples=12)
@given(spatial_dims=st.sampled_from([2, 3]), seed=st.integers(0, 2**31))
def test_the_wall_keeps_its_volume_and_nothing_folds(spatial_dims, seed):
    motion = HeartMotion.draw(seed, spatial_dims, SIZES[spatial_dims])
    points = grid_points(motion.size)
    determinant = motion.determinant(points)
    wall = make_pair(seed, spatial_dims, motion.size, outlier="none").fixed_label == 2
    assert wall.sum() > 100
    np.testing.assert_allclose(determinant[wall], 1.0, atol=1e-12)
    assert determinant.min() > 0.1


@settings(deadline=None, derandomize=True, max_examples=12)
@given(spatial_dims=st.sampled_from([2, 3]), seed=st.integers(0, 2**31))
def test_the_determinant_is_that_of_the_displacement(spatial_dims, seed):
    motion = HeartMotion.draw(seed, spatial_dims, SIZES[spatial_dims])
    points = np.random.default_rng(seed).uniform(4, np.array(motion.size) - 5, (500, spatial_dims))
    step = 1e-5
    columns = [
        (motion.displacement(points + step * axis) - motion.displacement(points - step * axis)) / (2 * step)
        for axis in np.eye(spatial_dims)
    ]
    numeric = np.linalg.det(np.stack(columns, axis=-1) + np.eye(spatial_dims))
    # Central differences of a field that is smooth at the scale of a voxel.
    np.testing.assert_allclose(motion.determinant(points), numeric, atol=1e-5)


@settings(deadline=None, derandomize=True, max_examples=12)
@given(spatial_dims=st.sampled_from([2, 3]), seed=st.integers(0, 2**31))
def test_the_inverse_undoes_the_motion_both_ways(spatial_dims, seed):
    motion = HeartMotion.draw(seed, spatial_dims, SIZES[spatial_dims])
    points = np.random.default_rng(seed).uniform(-3, np.array(motion.size) + 2, (700, spatial_dims))
    np.testing.assert_allclose(motion.inverse(points + motion.displacement(points)), points, atol=1e-10)
    material = motion.inverse(points)
    np.testing.assert_allclose(material + motion.displacement(material), points, atol=1e-10)
    np.testing.assert_allclose(motion.inverse(points[0]), material[0], atol=1e-10)


@both_dimensions
@pytest.mark.parametrize("seed", [0, 11])
def test_the_motion_dies_out_before_the_border(spatial_dims, seed):
    pair = make_pair(seed, spatial_dims)
    border = np.ones(pair.fixed.shape, dtype=bool)
    border[(slice(3, -3),) * spatial_dims] = False
    length = np.linalg.norm(pair.ddf, axis=0)
    assert length[border].max() < 0.02 * length.max()


@both_dimensions
def test_wall_volume_is_equal_at_both_phases_and_the_cavity_shrinks(spatial_dims):
    pair = make_pair(5, spatial_dims, (80, 85, 48)[:spatial_dims])
    cavity, wall = ([np.sum(label == value) for label in (pair.fixed_label, pair.moving_label)] for value in (1, 2))
    assert wall[1] == pytest.approx(wall[0], rel=0.03)  # counted in whole voxels
    assert cavity[1] < 0.7 * cavity[0]
    assert set(np.unique(pair.fixed_label)) == set(np.unique(pair.moving_label)) == {0, 1, 2, 3}


@both_dimensions
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_moving_through_the_truth_looks_like_fixed(spatial_dims, seed):
    pair = make_pair(seed, spatial_dims, outlier="none")
    heart = np.linalg.norm(pair.ddf, axis=0) > 0.25 * np.linalg.norm(pair.ddf, axis=0).max()
    before = correlation(pair.fixed, pair.moving, heart)
    after = correlation(pair.fixed, resample(pair.moving, pair.ddf), heart)
    assert after > 0.93
    assert 1 - after < 0.25 * (1 - before)
    wrong_way = correlation(pair.fixed, resample(pair.moving, -pair.ddf), heart)
    assert wrong_way < before


@both_dimensions
def test_labels_follow_the_truth(spatial_dims):
    pair = make_pair(4, spatial_dims)
    for value in (1, 2, 3):
        carried = resample((pair.moving_label == value).astype(float), pair.ddf) > 0.5
        label = pair.fixed_label == value
        assert 2 * (carried & label).sum() / (carried.sum() + label.sum()) > 0.9  # borders within half a voxel


@both_dimensions
@pytest.mark.parametrize("kind", OUTLIERS)
def test_landmarks_move_by_the_truth_and_lie_inside_both_images(spatial_dims, kind):
    for seed in (6, 7):
        pair = make_pair(seed, spatial_dims, outlier=kind)
        motion = HeartMotion.draw(seed, spatial_dims)
        np.testing.assert_array_equal(
            pair.fixed_landmarks + motion.displacement(pair.fixed_landmarks), pair.moving_landmarks
        )
        assert 25 <= len(pair.fixed_landmarks) <= 45
        for landmarks in (pair.fixed_landmarks, pair.moving_landmarks):
            assert landmarks.dtype == np.float64
            assert (landmarks >= 0).all()
            assert (landmarks <= np.array(pair.fixed.shape) - 1).all()
        nearest = np.rint(pair.fixed_landmarks).astype(int)
        assert not pair.outlier[tuple(nearest.T)].any()
        gaps = np.linalg.norm(pair.fixed_landmarks[:, None] - pair.fixed_landmarks, axis=-1)
        assert gaps[~np.eye(len(gaps), dtype=bool)].min() > 1


def test_the_field_at_voxels_is_the_closed_form():
    pair = make_pair(8, 3, (32, 37, 35))
    motion = HeartMotion.draw(8, 3, (32, 37, 35))
    voxel = (15, 20, 17)
    np.testing.assert_allclose(pair.ddf[(slice(None), *voxel)], motion.displacement(np.array(voxel)), atol=1e-12)


def test_default_pairs_start_three_to_six_voxels_apart():
    means, largest = [], []
    for seed in range(16):
        pair = make_pair(seed)
        means.append(np.linalg.norm(pair.moving_landmarks - pair.fixed_landmarks, axis=-1).mean())
        largest.append(np.linalg.norm(pair.ddf, axis=0).max())
    assert 4 < np.mean(means) < 5
    assert min(means) > 2.5
    assert max(means) < 6.5
    assert min(largest) > 5
    assert max(largest) < 11


@both_dimensions
@pytest.mark.parametrize("kind", ["mass", "cavity", "contrast", "through_plane"])
def test_an_outlier_is_in_one_image_and_inside_its_mask(spatial_dims, kind):
    carriers = set()
    for seed in range(9, 17):
        size = {2: (61, 70), 3: (33, 36, 32)}[spatial_dims]
        plain, pair = make_pair(seed, spatial_dims, size, "none"), make_pair(seed, spatial_dims, size, kind)
        np.testing.assert_array_equal(plain.ddf, pair.ddf)
        assert not plain.outlier.any()
        changed = [not np.array_equal(getattr(plain, name), getattr(pair, name)) for name in ("fixed", "moving")]
        assert sum(changed) == 1
        carriers.add(changed.index(True))
        assert 0.001 < pair.outlier.mean() < 0.2
        if changed[0]:
            change = np.abs(plain.fixed - pair.fixed)
            assert change[~pair.outlier].max() < 0.25 * max(change.max(), 300)  # what the point spread carries out
            assert change[pair.outlier].max() > 150
    assert carriers == {0, 1}


@both_dimensions
def test_the_truth_explains_everything_but_the_outlier(spatial_dims):
    for seed in range(3):
        pair = make_pair(seed, spatial_dims, outlier="mass" if seed else "cavity")
        heart = np.linalg.norm(pair.ddf, axis=0) > 0.25 * np.linalg.norm(pair.ddf, axis=0).max()
        warped, matched = resample(pair.moving, pair.ddf), heart & ~pair.outlier
        assert correlation(pair.fixed, warped, matched) > 0.93
        gain = np.sum(warped[matched] * pair.fixed[matched]) / np.sum(np.square(warped[matched]))
        difference = np.abs(gain * warped - pair.fixed)
        assert difference[pair.outlier].mean() > 2 * difference[matched].mean()


def test_about_half_of_the_default_pairs_fully_correspond():
    share = np.mean([make_pair(seed, size=(32, 33)).outlier.any() for seed in range(80)])
    assert 0.35 < share < 0.65


@both_dimensions
def test_the_same_seed_gives_the_same_bits_and_another_does_not(spatial_dims):
    first, again, other = (make_pair(seed, spatial_dims, SIZES[spatial_dims]) for seed in (3, 3, 4))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.allclose(first.fixed, other.fixed, atol=50)
    assert not np.allclose(first.ddf, other.ddf, atol=0.5)


@pytest.mark.parametrize("size", [(61, 70), (32, 45), (128, 128), (40, 48, 33), (64, 64, 32)])
def test_any_size_gives_arrays_of_the_promised_kind(size):
    pair = make_pair(1, len(size), size)
    assert isinstance(pair, PhantomPair)
    for array, kind in zip(
        (pair.fixed, pair.moving, pair.fixed_label, pair.moving_label, pair.outlier),
        (np.float32, np.float32, np.uint8, np.uint8, np.bool_),
        strict=True,
    ):
        assert array.shape == size
        assert array.dtype == kind
    assert pair.ddf.shape == (len(size), *size)
    assert pair.ddf.dtype == np.float64
    assert pair.spacing == (1.25, 1.25, 2.5)[: len(size)]
    assert pair.fixed.min() >= 0
    assert 500 < np.percentile(pair.fixed, 99) < 1500
    assert pair.fixed_landmarks.shape == pair.moving_landmarks.shape
    assert len(pair.fixed_landmarks) >= 20


def test_tissues_rank_as_in_cine_mr():
    pair = make_pair(2, outlier="none")
    blood, muscle = (np.median(pair.fixed[pair.fixed_label == value]) for value in (1, 2))
    air = np.percentile(pair.fixed, 5)
    assert blood > 2 * muscle > 4 * air


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed must be a whole number that is not negative, got -1"),
        ({"seed": 0.5}, "seed must be"),
        ({"seed": 0, "spatial_dims": 4}, "spatial_dims must be 2 or 3, got 4"),
        ({"seed": 0, "size": (31, 40)}, "2 edges of at least 32 voxels"),
        ({"seed": 0, "spatial_dims": 3, "size": (40, 40)}, "3 edges of at least 32 voxels"),
        ({"seed": 0, "outlier": "tumour"}, "outlier must be one of none, mass, .* got 'tumour'"),
    ],
)
def test_a_pair_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_pair(**arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("phantom") / "made" / "flat", **SMALL)


def test_the_data_set_is_as_the_datalist_says(folder):
    assert isinstance(folder, str)
    root = phantom.Path(folder)
    datalist = json.loads((root / "datalist.json").read_text())
    assert datalist["spatial_dims"] == 2
    assert datalist["landmark_space"] == "voxel0"
    seen = set()
    for split in ("training", "validation", "testing"):
        assert len(datalist[split]) == SMALL[split]
        for case in datalist[split]:
            assert set(case) == {
                "id",
                *(f"{which}_{what}" for which in ("fixed", "moving") for what in ("image", "label", "landmarks")),
            }
            image = nib.load(root / case["fixed_image"])
            assert image.shape == SMALL["size"]
            assert image.get_data_dtype() == np.float32
            assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
            assert image.header.get_zooms() == (1.25, 1.25)
            assert np.abs(image.affine[:3, 3]).min() > 0
            for key in ("moving_image", "fixed_label", "moving_label"):
                other = nib.load(root / case[key])
                assert other.shape == image.shape
                np.testing.assert_array_equal(other.affine, image.affine)
            assert nib.load(root / case["id"] / "outlier.nii.gz").get_data_dtype() == np.uint8
            with (root / case["fixed_landmarks"]).open() as stream:
                rows = list(csv.reader(stream))
            assert rows[0] == ["label", "x", "y"]
            assert [row[0] for row in rows[1:]] == [str(i) for i in range(len(rows) - 1)]
            seen.add(hashlib.sha256(np.asarray(image.dataobj).tobytes()).hexdigest())
    assert len(seen) == 6


def test_files_hold_the_pair_they_were_made_from(folder):
    root = phantom.Path(folder)
    case = json.loads((root / "datalist.json").read_text())["testing"][1]
    pair = make_pair(5, size=SMALL["size"])  # the sixth case of the set with seed 0
    for key in ("fixed", "moving"):
        np.testing.assert_array_equal(nib.load(root / case[f"{key}_image"]).dataobj, getattr(pair, key))
        np.testing.assert_array_equal(nib.load(root / case[f"{key}_label"]).dataobj, getattr(pair, f"{key}_label"))
        table = np.loadtxt(root / case[f"{key}_landmarks"], delimiter=",", skiprows=1)
        np.testing.assert_array_equal(table[:, 1:], getattr(pair, f"{key}_landmarks"))


def test_a_volume_set_has_three_columns_and_three_spacings(tmp_path):
    root = phantom.Path(write_phantom(tmp_path / "deep", 3, 1, 0, 0, size=(34, 33, 32), seed=2))
    case = json.loads((root / "datalist.json").read_text())["training"][0]
    assert nib.load(root / case["moving_image"]).header.get_zooms() == (1.25, 1.25, 2.5)
    assert (root / case["moving_landmarks"]).read_text().splitlines()[0] == "label,x,y,z"


def test_asking_again_changes_nothing(folder):
    stamps = {path: path.stat().st_mtime_ns for path in phantom.Path(folder).rglob("*")}
    assert write_phantom(folder, **SMALL) == folder
    assert {path: path.stat().st_mtime_ns for path in phantom.Path(folder).rglob("*")} == stamps


def test_other_settings_in_the_same_folder_are_refused(folder):
    with pytest.raises(InputError, match=r"(?s)made with .*'seed': 0.* not with .*'seed': 1.*Name another folder"):
        write_phantom(folder, **SMALL, seed=1)


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"does not hold a phantom\. Name another folder"):
        write_phantom(tmp_path, **SMALL)
    (tmp_path / "datalist.json").write_text('{"training": []}')
    with pytest.raises(InputError, match="does not hold a phantom"):
        write_phantom(tmp_path, **SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["datalist.json", "notes.txt"]


def test_an_empty_folder_is_filled(tmp_path):
    assert write_phantom(tmp_path / "", training=1, validation=0, testing=0, size=(32, 33)) == str(tmp_path)
    assert (tmp_path / "datalist.json").exists()


def test_impossible_counts_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"1 to 1000000 pairs in all, none negative"):
        write_phantom(tmp_path / "x", training=-1)
    with pytest.raises(ValueError, match=r"1 to 1000000 pairs in all"):
        write_phantom(tmp_path / "x", training=0, validation=0, testing=0)


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(phantom, "_write_case", fail)
    with pytest.raises(RuntimeError, match="disk is full"):
        write_phantom(tmp_path / "set", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_agree_on_one_folder(tmp_path):
    barrier, results = threading.Barrier(2), []

    def make():
        barrier.wait()
        results.append(write_phantom(tmp_path / "set", **SMALL))

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [str(tmp_path / "set")] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
