"""JSM-MI-style registration: an affine map by mutual information that joint saliency weights."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from monai_jsm.baselines.jsm_mi import joint_saliency, register
from monai_jsm.geometry import linear_ddf

SHAPES = {2: (72, 61), 3: (30, 35, 22)}
SPACINGS = {2: (1.0, 1.3), 3: (1.2, 1.0, 1.8)}


def noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: np.ndarray) -> np.ndarray:
    values = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="nearest")
    return (values - values.min()) / np.ptp(values)


def pair(spatial_dims: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Fixed, moving and the affine field between them, by scipy."""
    shape, spacing = SHAPES[spatial_dims], SPACINGS[spatial_dims]
    rng, edges = np.random.default_rng(seed), np.array(spacing)
    moving = (noise(rng, shape, 2.0 / edges) + noise(rng, shape, 5.0 / edges)) / 2
    theta = np.eye(spatial_dims + 1)
    theta[:-1, :-1] += rng.normal(0, 0.04, (spatial_dims, spatial_dims))
    centre = (np.array(shape) - 1) / 2 * edges
    theta[:-1, -1] = centre - theta[:-1, :-1] @ centre + rng.uniform(-2, 2, spatial_dims)
    field = linear_ddf(torch.tensor(theta), torch.diag(torch.tensor([*spacing, 1.0]).double()), list(shape))
    fixed = ndimage.map_coordinates(moving, np.indices(shape) + field[0].numpy(), order=1, mode="nearest")
    return *(torch.as_tensor(values)[None, None].float() for values in (fixed, moving)), field.float()


def error(found: torch.Tensor, true: torch.Tensor) -> float:
    return torch.linalg.vector_norm(found - true, dim=1).mean().item()


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_known_affine_map_is_found_to_a_fraction_of_a_voxel(spatial_dims, weighted):
    fixed, moving, true = pair(spatial_dims)
    found = register(fixed, moving, SPACINGS[spatial_dims], iterations=60, weighted=weighted)
    assert found.shape == true.shape
    assert found.dtype == torch.float32
    assert error(torch.zeros_like(true), true) > 1
    assert error(found, true) < 0.25  # 3D has few voxels for 32 x 32 bins


@pytest.mark.parametrize("slices", [1, 3])
def test_equal_slices_move_as_one_image_does_and_not_through_one_another(slices):
    fixed, moving, true = pair(2)
    stacks = (image.unsqueeze(-1).expand(*image.shape, slices).contiguous() for image in (fixed, moving))
    found = register(*stacks, (*SPACINGS[2], 2.0), iterations=60)
    assert error(found[:, :2, ..., slices // 2], true) < 0.15
    assert found[:, 2].abs().max() < 0.1


def test_contrast_does_not_matter_and_a_second_run_gives_the_same_bits():
    fixed, moving, true = pair(2)
    found = register(fixed, (1 - moving).square(), SPACINGS[2], iterations=60)
    assert error(found, true) < 0.15
    assert torch.equal(found, register(fixed, (1 - moving).square(), SPACINGS[2], iterations=60))


def test_identical_and_flat_images_hardly_move():
    fixed, _, _ = pair(2)
    flat = torch.full_like(fixed, 0.5)
    assert register(fixed, fixed, SPACINGS[2], iterations=60).abs().max() < 0.05
    assert register(flat, flat, SPACINGS[2], iterations=20).abs().max() < 1e-3


def test_structure_without_a_counterpart_harms_no_more_than_with_equal_weights():
    errors = []
    for seed in range(3):
        fixed, moving, true = pair(2, seed)
        rows, columns = np.indices(SHAPES[2])
        disc = torch.as_tensor(np.hypot(rows - 29, 1.3 * (columns - 24)) < 21.6)
        painted = torch.where(disc, fixed.roll((5, 4), (2, 3)), fixed)
        found = (register(painted, moving, SPACINGS[2], iterations=60, weighted=weighted) for weighted in (True, False))
        errors.append([error(ddf, true) for ddf in found])
    weighted, uniform = np.mean(errors, axis=0)
    assert weighted <= uniform
    assert weighted < 0.15


def test_joint_saliency_is_the_cosine_between_orientations_and_zero_where_either_image_is_flat():
    rows, columns = np.indices((50, 47)).astype(float)

    def bar(angle: float) -> np.ndarray:
        across = (rows - 25) * np.cos(angle) - (columns - 23) * np.sin(angle)
        return np.exp(-(across**2) / 4)

    joint = joint_saliency(bar(0.0), bar(np.deg2rad(40)), (1.0, 1.0))
    assert joint[25, 23] == pytest.approx(np.cos(np.deg2rad(40)), abs=0.05)
    assert joint_saliency(bar(0.3), bar(0.3), (1.0, 1.0))[25, 23] == pytest.approx(1)
    assert joint[2, 2] == 0
    assert not joint_saliency(bar(0.0), np.full((50, 47), 0.5), (1.0, 1.0)).any()
