"""Affine pre-alignment: it finds what moved as a whole and leaves alone what did not."""

import csv
import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from monai_jsm.data.phantom import make_pair
from monai_jsm.prealignment import find_theta

SHAPES = {2: ((118, 131), (125, 110)), 3: ((46, 53, 38), (50, 44, 41))}
SPACINGS = {2: ((1.4, 1.1), (1.2, 1.3)), 3: ((1.5, 1.2, 2.0), (1.4, 1.3, 1.8))}
CENTRE = np.array([40.0, -25.0, 60.0])  # of both images in the world, mm


def rotation(angles):
    """The product of rotations in every plane, (D, D)."""
    dims = {1: 2, 3: 3}[len(angles)]
    product = np.eye(dims)
    for (i, j), angle in zip(itertools.combinations(range(dims), 2), angles, strict=True):
        turn = np.eye(dims)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        product = product @ turn
    return product


def grid(spatial_dims, which):
    """Shape and affine of one of two oblique grids about CENTRE; that of fixed (0) is left-handed."""
    shape, spacing = SHAPES[spatial_dims][which], SPACINGS[spatial_dims][which]
    affine = np.eye(spatial_dims + 1)
    oblique = rotation(np.array([[0.3, -0.2, 0.25], [-0.2, 0.1, 0.15]])[which, : 2 * spatial_dims - 3])
    affine[:-1, :-1] = oblique @ np.diag(spacing)
    affine[:-1, 0] *= (-1, 1)[which]
    affine[:-1, -1] = CENTRE[:spatial_dims] - affine[:-1, :-1] @ ((np.array(shape) - 1) / 2)
    return shape, affine


def world(shape, affine):
    """World coordinates of every voxel, (*S, D)."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:-1, :-1].T + affine[:-1, -1]


def apply(theta, points):
    return points @ theta[:-1, :-1].T + theta[:-1, -1]


def anatomy(points, seed=0):
    """A body without symmetries at world points (*S, D): a soft edge, and blobs within; 0 outside."""
    generator = np.random.default_rng(seed)
    dims = points.shape[-1]
    places = points - CENTRE[:dims]
    axes = np.array([50.0, 38.0, 44.0])[:dims] * (1.0 if dims == 2 else 0.6)
    signal = 80 / (1 + np.exp((np.linalg.norm(places / axes, axis=-1) - 1) * 20))
    for _ in range(5 * dims):
        centre, width = generator.uniform(-0.6, 0.6, dims) * axes, generator.uniform(0.15, 0.3, dims) * axes
        signal += generator.uniform(-60, 100) * np.exp(-(((places - centre) / width) ** 2).sum(axis=-1))
    return signal


def noisy(image, seed, share=0.02):
    return image + np.random.default_rng(seed).normal(0, share * np.ptp(image), image.shape)


def moved_pair(theta, inverted=False):
    """The anatomy on both grids, moving through theta, its contrast inverted or not: images and affines."""
    dims = len(theta) - 1
    (shape, affine), (moving_shape, moving_affine) = grid(dims, 0), grid(dims, 1)
    fixed = anatomy(world(shape, affine))
    moving = anatomy(apply(np.linalg.inv(theta), world(moving_shape, moving_affine)))
    return noisy(fixed, 1), noisy(200 - moving if inverted else moving, 2), affine, moving_affine


def theta_about_centre(matrix, shift):
    dims = len(matrix)
    theta = np.eye(dims + 1)
    theta[:-1, :-1] = matrix
    theta[:-1, -1] = CENTRE[:dims] - matrix @ CENTRE[:dims] + shift
    return theta


def mean_error(found, true):
    """In voxels, over the anatomy on the grid of fixed."""
    dims = len(true) - 1
    points = world(*grid(dims, 0))
    points = points[anatomy(points) > 20]
    return np.linalg.norm(apply(found, points) - apply(true, points), axis=-1).mean() / min(SPACINGS[dims][0])


def drawn_theta(spatial_dims, seed, rigid):
    """Up to 20 degrees about each axis, a third of the image, scales of 0.85 to 1.15 along oblique axes."""
    generator = np.random.default_rng(seed)
    angles = np.deg2rad(generator.uniform(-20, 20, 2 * spatial_dims - 3))
    direction = generator.standard_normal(spatial_dims)
    extent = min(np.multiply(SHAPES[spatial_dims][0], SPACINGS[spatial_dims][0]))
    shift = direction / np.linalg.norm(direction) * generator.uniform(0, extent / 3)
    axes = np.linalg.qr(generator.standard_normal((spatial_dims, spatial_dims)))[0]
    scales = np.ones(spatial_dims) if rigid else generator.uniform(0.85, 1.15, spatial_dims)
    return theta_about_centre(rotation(angles) @ axes @ np.diag(scales) @ axes.T, shift)


@settings(max_examples=12)
@given(seed=st.integers(0, 2**16), rigid=st.booleans(), inverted=st.booleans())
def test_a_known_map_is_found_in_2d(seed, rigid, inverted):
    theta = drawn_theta(2, seed, rigid)
    assert mean_error(find_theta(*moved_pair(theta, inverted)).theta, theta) < 1


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("rigid", [False, True])
def test_a_known_map_is_found_in_3d(rigid, inverted):
    theta = drawn_theta(3, 11 + 2 * rigid + inverted, rigid)
    assert mean_error(find_theta(*moved_pair(theta, inverted)).theta, theta) < 1


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_phantom_that_scipy_moved_is_found(spatial_dims):
    moving = make_pair(4, spatial_dims).fixed
    centre = (np.array(moving.shape) - 1) / 2
    theta = np.eye(spatial_dims + 1)
    theta[:-1, :-1] = rotation(np.deg2rad([12, -6, 8][: 2 * spatial_dims - 3])) @ np.diag(
        [1.1, 0.9, 1.05][:spatial_dims]
    )
    theta[:-1, -1] = centre - theta[:-1, :-1] @ centre + np.array([9.0, -14.0, 2.0])[:spatial_dims]
    fixed = ndimage.affine_transform(moving, theta[:-1, :-1], theta[:-1, -1], order=1, mode="nearest")
    found = find_theta(fixed, moving, np.eye(spatial_dims + 1), np.eye(spatial_dims + 1))
    points = np.argwhere(fixed > 200)
    there = apply(theta, points)
    inside = ((there >= 0) & (there <= np.array(moving.shape) - 1)).all(axis=1)
    assert found.kind == "affine"
    assert np.linalg.norm(apply(found.theta, points) - there, axis=1)[inside].mean() < 1


def test_a_rigid_motion_is_told_rigid_and_its_matrix_turns_only():
    found = find_theta(*moved_pair(drawn_theta(2, 3, rigid=True)))
    assert found.kind == "rigid"
    np.testing.assert_allclose(found.theta[:-1, :-1] @ found.theta[:-1, :-1].T, np.eye(2), atol=1e-9)
    assert found.theta.dtype == np.float64
    assert found.similarity_after > found.similarity_before
    assert found.note.startswith("The affine map ")


def test_the_direction_is_from_fixed_to_moving():
    theta = theta_about_centre(np.eye(2), np.array([7.0, -18.0]))
    found = find_theta(*moved_pair(theta)).theta
    np.testing.assert_allclose(found[:-1, -1] - CENTRE[:2] + found[:-1, :-1] @ CENTRE[:2], [7, -18], atol=0.5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_images_in_place_keep_the_identity_whatever_their_noise(spatial_dims):
    shape, affine = grid(spatial_dims, 0)
    image = anatomy(world(shape, affine))
    for share in (0.0, 0.05, 0.5):
        found = find_theta(noisy(image, 5, share), noisy(image, 6, share), affine, affine)
        assert found.kind == "identity"
        np.testing.assert_array_equal(found.theta, np.eye(spatial_dims + 1))
        assert found.similarity_after == found.similarity_before
        assert found.overlap == 1
        assert "was not taken" in found.note


def test_noise_that_shares_nothing_keeps_the_identity():
    generator = np.random.default_rng(0)
    fixed, moving = generator.standard_normal((2, 120, 128))
    found = find_theta(fixed, moving, np.eye(3), np.eye(3))
    assert found.kind == "identity"
    assert found.similarity_before < 1.01


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_images_far_apart_in_the_world_come_together(spatial_dims):
    true = theta_about_centre(rotation(np.full(2 * spatial_dims - 3, 0.1)), 400.0)
    fixed, moving, affine, moving_affine = moved_pair(theta_about_centre(true[:-1, :-1], 0.0))
    moving_affine[:-1, -1] += 400
    found = find_theta(fixed, moving, affine, moving_affine)
    assert found.similarity_before == 1
    assert mean_error(found.theta, true) < 1


def test_a_small_field_of_view_finds_its_place_in_a_large_one():
    theta = theta_about_centre(rotation([0.15]), np.array([6.0, 9.0]))
    fixed, moving, affine, moving_affine = moved_pair(theta)
    cut = affine.copy()
    cut[:-1, -1] = apply(affine, np.array([30, 35]))
    found = find_theta(fixed[30:95, 35:100], moving, cut, moving_affine)
    assert mean_error(found.theta, theta) < 1


def test_thick_slices_are_not_shrunk_along_the_stack():
    shape, affine = (96, 88, 5), np.diag([1.2, 1.3, 9.0, 1.0])
    affine[:-1, -1] = CENTRE - affine[:-1, :-1] @ ((np.array(shape) - 1) / 2)
    theta = theta_about_centre(rotation([0.2, 0, 0]), np.array([8.0, -11.0, 0.0]))
    points = world(shape, affine)
    found = find_theta(
        noisy(anatomy(points), 1), noisy(anatomy(apply(np.linalg.inv(theta), points)), 2), affine, affine
    )
    assert mean_error(found.theta, theta) < 1


def test_masks_make_it_follow_what_is_marked():
    shape, affine = grid(2, 0)
    points = world(shape, affine)
    theta = theta_about_centre(np.eye(2), np.array([9.0, 5.0]))
    fixed = anatomy(points)
    across = np.abs(points[..., 0] - CENTRE[0]) < 22, np.abs(points[..., 0] - CENTRE[0] - 9) < 22
    moving = np.where(across[1], anatomy(apply(np.linalg.inv(theta), points)), fixed)  # all else stays
    plain = find_theta(fixed, moving, affine, affine)
    masked = find_theta(fixed, moving, affine, affine, *across)
    assert mean_error(masked.theta, theta) < 1 < mean_error(plain.theta, theta)


def test_the_same_arguments_give_the_same_bits_on_any_number_of_threads():
    pair = moved_pair(drawn_theta(3, 8, rigid=False))
    first = find_theta(*pair, seed=3)
    threads = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    try:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(3)
        second = find_theta(*pair, seed=3)
    finally:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    assert first.theta.tobytes() == second.theta.tobytes()
    assert first[1:] == second[1:]


def test_tensors_and_arrays_give_the_same():
    pair = moved_pair(drawn_theta(2, 5, rigid=True))
    first, second = find_theta(*pair), find_theta(*map(torch.from_numpy, pair))
    np.testing.assert_array_equal(first.theta, second.theta)


def test_contrast_and_units_of_intensity_change_nothing():
    fixed, moving, *affines = moved_pair(drawn_theta(2, 6, rigid=True))
    first, second = find_theta(fixed, moving, *affines), find_theta(3 * fixed - 1000, 1e4 * moving, *affines)
    np.testing.assert_allclose(first.theta, second.theta, atol=0.05)  # float32 of the scaled values


def test_an_implausible_map_is_refused_and_told():
    fixed, moving, *affines = moved_pair(theta_about_centre(np.diag([1.5, 0.6]), 0.0))
    found = find_theta(fixed, moving, *affines)
    scales = np.linalg.svd(found.theta[:-1, :-1], compute_uv=False)
    assert scales.max() <= 2 * scales.min()
    assert "The affine map scales by" in found.note
    assert found.kind != "affine"


def test_masks_that_never_meet_keep_the_identity_and_say_so():
    fixed, moving, *affines = moved_pair(np.eye(3))
    fixed_mask, moving_mask = np.zeros(fixed.shape, bool), np.zeros(moving.shape, bool)
    fixed_mask[:10, :10], moving_mask[-10:, :10] = True, True
    found = find_theta(fixed, moving, *affines, fixed_mask, moving_mask)
    assert found.kind == "identity"
    assert "hardly overlap" in found.note


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"fixed": np.zeros((20, 21))}, "fixed must hold finite values, not all the same"),
        ({"moving": np.full((20, 21), np.nan)}, "moving must hold finite values"),
        ({"moving": np.ones(20)}, "moving must have 2 or 3 axes of at least 2 voxels, got the shape"),
        ({"fixed": np.random.default_rng(0).random((20, 1))}, r"fixed must have .* got the shape \(20, 1\)"),
        ({"fixed_affine": np.eye(4)}, r"fixed_affine must be an invertible \(3, 3\) matrix"),
        ({"moving_affine": np.zeros((3, 3))}, "moving_affine must be an invertible"),
        ({"moving": np.random.default_rng(0).random((20, 21, 22)), "moving_affine": np.eye(4)}, "got 2 and 3"),
        ({"fixed_mask": np.zeros((20, 21))}, "fixed_mask must .* not be empty"),
        ({"moving_mask": np.ones((21, 20))}, r"moving_mask must have the shape \(20, 21\)"),
    ],
)
def test_unusable_arguments_are_refused(change, message):
    fixed, moving = np.random.default_rng(1).random((2, 20, 21))
    arguments = {"fixed": fixed, "moving": moving, "fixed_affine": np.eye(3), "moving_affine": np.eye(3)}
    with pytest.raises(ValueError, match=message):
        find_theta(**arguments | change)


def read_nifti(path, spatial_dims):
    image = nib.load(path)
    kept = [*range(spatial_dims), 3]
    return image.get_fdata(dtype=np.float32), image.affine[np.ix_(kept, kept)]


def read_rows(path):
    return np.array([row[-2:] for row in list(csv.reader(path.open()))[1:]], dtype=float)


def tre(theta, fixed_landmarks, moving_landmarks):
    return np.linalg.norm(apply(theta, fixed_landmarks) - moving_landmarks, axis=1).mean()


@pytest.mark.slow
def test_known_motion_of_the_heart_with_outliers_is_not_made_worse(shared_data):
    errors = []
    for case in sorted((shared_data / "known_field_validation").glob("case_*")):
        fixed, affine = read_nifti(case / "fixed.nii.gz", 2)
        moving, moving_affine = read_nifti(case / "moving.nii.gz", 2)
        landmarks = [
            apply(matrix, read_rows(case / f"{side}_landmarks.csv"))
            for side, matrix in (("fixed", affine), ("moving", moving_affine))
        ]
        theta = find_theta(fixed, moving, affine, moving_affine).theta
        errors.append([tre(np.eye(3), *landmarks), tre(theta, *landmarks)])
    before, after = np.mean(errors, axis=0)
    assert after < 0.85 * before  # 0.76 measured
    assert np.mean([now <= 1.02 * then for then, now in errors]) >= 0.9  # 22 of 24 measured


@pytest.mark.parametrize("subject", ["SC-HF-I-02", "SC-HYP-08"])
def test_a_heart_that_beats_in_a_still_chest_moves_nothing(shared_data, subject):
    (fixed, affine), (moving, _) = (
        read_nifti(shared_data / "sunnybrook_cine" / f"{subject}_{phase}.nii.gz", 3) for phase in ("ED", "ES")
    )
    assert find_theta(fixed, moving, affine, affine).kind == "identity"
    plane = affine[np.ix_([0, 1, 3], [0, 1, 3])]
    middle = fixed.shape[2] // 2
    assert find_theta(fixed[..., middle], moving[..., middle], plane, plane).kind == "identity"


@pytest.mark.slow
def test_histology_comes_near_the_best_affine_fit_of_its_landmarks(shared_data):
    folder = shared_data / "histology"
    ratios = []
    with (folder / "pairs.csv").open() as stream:
        for row in csv.DictReader(stream):
            images, landmarks = [], []
            for side in ("fixed", "moving"):
                image = np.asarray(Image.open(folder / row["folder"] / row[side]).convert("RGB"), dtype=float)
                images.append((image @ (0.299, 0.587, 0.114)).T)  # x, y
                landmarks.append(read_rows(folder / row["folder"] / row[f"{side}_landmarks"]))
            after = tre(find_theta(*images, np.eye(3), np.eye(3)).theta, *landmarks)
            assert after < float(row["tre_mean_px"])
            ratios.append(after / float(row["best_affine_residual_mean_px"]))
    assert max(ratios) < 1.5  # 1.20 measured
    assert np.mean(ratios) < 1.2  # 1.07 measured


def test_contrast_agent_does_not_move_an_aligned_head(shared_data):
    images = []
    for name in ("pgbm003_t1post", "pgbm003_t1pre_registered"):
        files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(shared_data / "dicom" / name))
        image = SimpleITK.ReadImage(files)
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        images.append((SimpleITK.GetArrayFromImage(image).T, np.diag([-1, -1, 1, 1]) @ affine))
    (fixed, affine), (moving, moving_affine) = images
    theta = find_theta(fixed, moving, affine, moving_affine).theta
    corners = apply(affine, np.array(list(itertools.product(*[(0, size - 1) for size in fixed.shape]))))
    assert np.linalg.norm(apply(theta, corners) - corners, axis=1).max() < 0.5 * 0.6875


@pytest.mark.parametrize("other", ["r27", "r64"])
def test_brains_of_two_people_grow_alike(shared_data, other):
    fixed, moving = (
        np.asarray(Image.open(shared_data / "brain2d_ants" / f"{name}slice.jpg").convert("L"), dtype=float).T
        for name in ("r16", other)
    )
    theta = find_theta(fixed, moving, np.eye(3), np.eye(3)).theta
    warped = ndimage.affine_transform(moving, theta[:-1, :-1], theta[:-1, -1], order=1)
    assert np.corrcoef(fixed.ravel(), warped.ravel())[0, 1] > np.corrcoef(fixed.ravel(), moving.ravel())[0, 1] + 0.01
