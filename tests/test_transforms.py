import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, RandAffined, RandFlipd
from scipy import ndimage

from monai_jsm.data import InputError, load_cases
from monai_jsm.geometry import carry_points, voxel_to_world, world_to_voxel
from monai_jsm.transforms import (
    CarryLandmarksd,
    ItkFieldd,
    JacobianDeterminantd,
    JointSaliencyd,
    LandmarksToVoxeld,
    LoadPaird,
    MeasurePaird,
    MovingOnFixedGridd,
    RandSwapPaird,
    RandWarpMovingd,
    WarpOriginald,
    WarpPaird,
    collate_pairs,
)

IMAGES = ["fixed_image", "moving_image"]


def loaded(folder, spatial_dims):
    case = load_cases(folder, "testing", spatial_dims)[0]
    return LoadPaird(spatial_dims)(case)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_case_is_loaded_with_its_landmarks_in_world_coordinates(datalist_factory, spatial_dims):
    pair = loaded(datalist_factory(spatial_dims), spatial_dims)
    for key in IMAGES:
        assert pair[key].dim() == spatial_dims + 1
        voxels = world_to_voxel(pair[key.replace("image", "landmarks")], pair[key].affine)
        assert ((voxels >= 0) & (voxels <= torch.tensor(pair[key].shape[1:]) - 1)).all()
    assert len(pair["landmark_labels"].split("\n")) == len(pair["fixed_landmarks"])
    assert pair["fixed_image_path"].endswith(".nii.gz")


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_moving_comes_to_the_grid_of_fixed_by_world_coordinates(datalist_factory, spatial_dims):
    pair = loaded(datalist_factory(spatial_dims), spatial_dims)
    moved = MovingOnFixedGridd()(pair)["moving_image"]
    assert moved.shape == pair["fixed_image"].shape
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in moved.shape[1:]], indexing="ij")).reshape(spatial_dims, -1).T
    world = voxel_to_world(torch.as_tensor(grid, dtype=torch.float64), pair["fixed_image"].affine)
    at = world_to_voxel(world, pair["moving_image"].affine).numpy().T
    expected = ndimage.map_coordinates(pair["moving_image"][0].numpy().astype(float), at, order=1, mode="nearest")
    np.testing.assert_allclose(moved[0].numpy().ravel(), expected, atol=1e-3)
    again = MovingOnFixedGridd()({"fixed_image": pair["fixed_image"], "moving_image": moved})
    assert again["moving_image"] is moved


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_augmentation_moves_the_landmarks_along(datalist_factory, spatial_dims):
    """A landmark marks the same intensities before and after flips and affine maps of both images."""
    pair = MovingOnFixedGridd()(loaded(datalist_factory(spatial_dims), spatial_dims))
    augment = Compose(
        [
            RandFlipd(IMAGES, prob=1.0, spatial_axis=0),
            RandAffined(
                IMAGES,
                prob=1.0,
                rotate_range=[0.3] * (1 if spatial_dims == 2 else 3),
                translate_range=1.0,
                padding_mode="border",
            ),
            LandmarksToVoxeld(),
        ]
    ).set_random_state(seed=3)
    plain, moved = LandmarksToVoxeld()(pair), augment(pair)
    assert (moved["fixed_landmarks"] - plain["fixed_landmarks"]).abs().max() > 1
    for side in ("fixed", "moving"):
        values = [
            ndimage.map_coordinates(d[f"{side}_image"][0].numpy(), d[f"{side}_landmarks"].numpy().T, order=1)
            for d in (plain, moved)
        ]
        spread = np.ptp(plain[f"{side}_image"].numpy())
        np.testing.assert_allclose(values[0], values[1], atol=0.06 * spread)  # the image is interpolated once more


def test_random_warps_move_the_moving_landmarks_exactly(datalist_factory):
    pair = MovingOnFixedGridd()(loaded(datalist_factory(2), 2))
    warped = RandWarpMovingd(1.0, 4.0, (6.0, 9.0)).set_random_state(seed=2)(pair)
    assert not torch.equal(warped["moving_image"], pair["moving_image"])
    assert warped["fixed_image"] is pair["fixed_image"]
    before, after = (LandmarksToVoxeld()(d)["moving_landmarks"] for d in (pair, warped))
    assert (after - before).abs().max() > 0.1
    values = [
        ndimage.map_coordinates(d["moving_image"][0].numpy(), points.numpy().T, order=1)
        for d, points in ((pair, before), (warped, after))
    ]
    np.testing.assert_allclose(*values, atol=0.06 * np.ptp(pair["moving_image"].numpy()))


def test_random_warps_never_fold():
    transform = RandWarpMovingd(1.0, 40.0, (4.0, 6.0)).set_random_state(seed=0)
    for _ in range(5):
        field = transform._field((40, 44))
        slopes = torch.stack(torch.gradient(field, dim=[2, 3]))
        assert torch.linalg.vector_norm(slopes, dim=(0, 2)).max() < 0.71


def test_swapping_exchanges_everything_of_the_two_images(datalist_factory):
    pair = loaded(datalist_factory(2), 2)
    swapped = RandSwapPaird(prob=1.0)(pair)
    for name in ("image", "landmarks", "label"):
        assert swapped[f"fixed_{name}"] is pair[f"moving_{name}"]
        assert swapped[f"moving_{name}"] is pair[f"fixed_{name}"]
    assert RandSwapPaird(prob=0.0)(pair)["fixed_image"] is pair["fixed_image"]


def test_a_batch_holds_pairs_of_different_size_and_number_of_landmarks():
    def case(shape: tuple[int, int], count: int) -> dict:
        image = MetaTensor(torch.rand(1, *shape), affine=torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0])))
        points = torch.rand(count, 2, dtype=torch.float64)
        return {
            "id": "a",
            "fixed_image": image,
            "moving_image": image,
            "fixed_landmarks": points,
            "moving_landmarks": points,
        }

    cases = [case((9, 14), 5), case((11, 12), 2)]
    batch = collate_pairs(cases, pad=True)
    assert batch["fixed_image"].shape == (2, 1, 11, 14)
    assert batch["fixed_landmarks"].shape == (2, 5, 2)
    assert torch.isnan(batch["fixed_landmarks"][1, 2:]).all()
    torch.testing.assert_close(batch["fixed_landmarks"][1, :2], cases[1]["fixed_landmarks"])
    torch.testing.assert_close(batch["fixed_image"][0, :, :9].as_tensor(), cases[0]["fixed_image"].as_tensor())
    assert (batch["fixed_image"][0, 0, 10] == batch["fixed_image"][0, 0, 8]).all()
    with pytest.raises(InputError, match="cannot share a batch; use batch size 1"):
        collate_pairs(cases)


def predicted(datalist_factory, spatial_dims):
    """A loaded case with a smooth field and all that follows a prediction."""
    from monai.transforms import CopyItemsd

    pair = LandmarksToVoxeld()(
        MovingOnFixedGridd()(
            CopyItemsd("moving_image", names="moving_original")(loaded(datalist_factory(spatial_dims), spatial_dims))
        )
    )
    shape = pair["fixed_image"].shape[1:]
    ramp = torch.stack(torch.meshgrid(*[torch.linspace(0, 3.14, n) for n in shape], indexing="ij"))
    pair["pred"] = 1.5 * torch.sin(ramp)
    post = [
        WarpPaird(),
        WarpOriginald(),
        JointSaliencyd(spatial_dims),
        JacobianDeterminantd(),
        ItkFieldd(),
        CarryLandmarksd(),
        MeasurePaird(),
    ]
    return Compose(post)(pair)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_what_follows_a_prediction_is_consistent(datalist_factory, spatial_dims):
    d = predicted(datalist_factory, spatial_dims)
    assert (
        d["warped"].shape
        == d["joint_saliency"].shape
        == d["trust"].shape
        == d["jacobian"].shape
        == d["fixed_image"].shape
    )
    for key in ("warped", "trust", "field"):
        torch.testing.assert_close(d[key].affine, d["fixed_image"].affine)
    carried = carry_points(d["fixed_landmarks"][None], d["pred"][None])[0]
    torch.testing.assert_close(d["carried_world"], voxel_to_world(carried, d["fixed_image"].affine))
    error = torch.linalg.vector_norm(d["carried_world"] - d["moving_world"], dim=1)
    torch.testing.assert_close(d["landmark_errors"]["after_mm"], error)
    assert d["measures"]["tre_mean_after"] == pytest.approx(error.mean().item())
    assert d["case_error"][0].item() == d["measures"]["tre_mean_after"]
    assert d["case_error"][1].item() == d["measures"]["contour_distance_after"]
    assert 0 <= d["measures"]["dice_after"] <= 1


def test_the_written_image_is_one_interpolation_of_the_original(datalist_factory):
    d = predicted(datalist_factory, 3)
    shape = d["fixed_image"].shape[1:]
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")) + d["pred"].numpy()
    world = voxel_to_world(torch.as_tensor(grid.reshape(3, -1).T, dtype=torch.float64), d["fixed_image"].affine)
    at = world_to_voxel(world, d["moving_original"].affine).numpy().T
    expected = ndimage.map_coordinates(d["moving_original"][0].numpy().astype(float), at, order=1, mode="nearest")
    np.testing.assert_allclose(d["warped"][0].numpy().ravel(), expected, atol=1e-3)


def test_the_carried_landmark_reads_in_moving_what_the_warped_image_shows_at_the_fixed_one(datalist_factory):
    """Images are pulled and points pushed by one field; the opposite sign, the classic mistake, is far off."""
    d = predicted(datalist_factory, 2)

    def values(image: str, points: torch.Tensor) -> np.ndarray:
        return ndimage.map_coordinates(d[image][0].numpy(), points.numpy().T, order=1, mode="nearest")

    shown = values("warped_image", d["fixed_landmarks"])
    spread = np.ptp(d["moving_image"].numpy())
    wrong = 2 * d["fixed_landmarks"] - d["carried_landmarks"]
    np.testing.assert_allclose(values("moving_image", d["carried_landmarks"]), shown, atol=0.05 * spread)
    assert np.abs(values("moving_image", wrong) - shown).max() > 0.1 * spread


def test_a_case_without_landmarks_or_labels_still_has_an_error_to_choose_by(datalist_factory):
    d = predicted(datalist_factory, 2)
    empty = torch.zeros(0, 2, dtype=torch.float64)
    d.update(fixed_world=empty, moving_world=empty, carried_world=empty)
    for key in ("warped_label", "moving_label"):
        d.pop(key)
    errors = MeasurePaird()(d)["case_error"]
    assert errors[:2].isnan().all()
    assert 0 <= errors[2] <= 1
