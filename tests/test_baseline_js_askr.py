"""JS-ASKR-style registration: matches of blocks, regressed where structure is joint."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from monai_jsm.baselines.js_askr import _Level, _superpixels, register

SHAPES = {2: (61, 74), 3: (20, 23, 17)}
SPACINGS = {2: (1.0, 1.3), 3: (1.2, 1.0, 2.0)}


def noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: np.ndarray) -> np.ndarray:
    values = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="nearest")
    return (values - values.min()) / np.ptp(values)


def pair(shape: tuple[int, ...], spacing: tuple[float, ...], seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Fixed, moving and the field between them, by scipy; widths in mm."""
    rng = np.random.default_rng(seed)
    edges = np.array(spacing)
    moving = (noise(rng, shape, 1.5 / edges) + noise(rng, shape, 5.0 / edges)) / 2
    field = np.stack([noise(rng, shape, 9.0 / edges) - 0.5 for _ in shape])
    field *= 2.5 / np.abs(field).max()
    fixed = ndimage.map_coordinates(moving, np.indices(shape) + field, order=1, mode="nearest")
    return tuple(torch.as_tensor(values)[None].float() for values in (fixed[None], moving[None], field))


def error(found: torch.Tensor, true: torch.Tensor) -> float:
    """Mean length of the difference in voxels, without the border, where motion brings in what is not shown."""
    inner = (..., *(slice(3, -3) for _ in found.shape[2:]))
    return torch.linalg.vector_norm(found - true, dim=1)[inner].mean().item()


@pytest.mark.parametrize(("spatial_dims", "settings"), [(2, {}), (3, {"iterations": 2})])
def test_a_known_motion_is_found_to_a_fraction_of_a_voxel(spatial_dims, settings):
    spacing = SPACINGS[spatial_dims]
    fixed, moving, true = pair(SHAPES[spatial_dims], spacing)
    found = register(fixed, moving, spacing, **settings)
    assert found.shape == true.shape
    assert found.dtype == torch.float32
    assert error(torch.zeros_like(true), true) > 0.6
    assert error(found, true) < 0.3


def test_a_straight_bar_moves_across_and_hardly_along_itself():
    rows = torch.arange(44.0)[:, None].expand(44, 36)
    fixed, moving = (torch.exp(-((rows - centre) ** 2) / 18)[None, None] for centre in (21.0, 23.0))
    across, along = register(fixed, moving, (1.0, 1.0))[0]
    assert across[16:27, 6:-6].mean().item() == pytest.approx(2, abs=0.3)
    assert along.abs().mean() < 0.3
    assert along.abs().max() < 1  # nothing tells motion along a bar: at first it ran away by tens of voxels


@pytest.mark.parametrize("slices", [1, 3])
def test_equal_slices_move_as_one_image_does_and_not_through_one_another(slices):
    fixed, moving, true = pair((36, 40), (1.0, 1.0))
    stacks = (image.unsqueeze(-1).expand(1, 1, 36, 40, slices).contiguous() for image in (fixed, moving))
    found = register(*stacks, (1.0, 1.0, 2.0), iterations=3)
    assert error(torch.zeros_like(true), true) > 0.6
    assert error(found[:, :2, ..., slices // 2], true) < 0.3
    assert found[:, 2].abs().max() < 0.2


def test_a_second_run_gives_the_same_bits():
    fixed, moving, _ = pair((41, 36), SPACINGS[2])
    assert torch.equal(*(register(fixed, moving, SPACINGS[2], iterations=2) for _ in range(2)))


def test_identical_images_hardly_move():
    fixed, _, _ = pair(SHAPES[2], SPACINGS[2])
    assert register(fixed, fixed, SPACINGS[2]).abs().mean() < 0.1  # of the voxel's edge


def test_without_structure_nothing_moves():
    flat = torch.full((1, 1, 33, 26), 0.5)
    assert register(flat, flat, (1.0, 1.0)).abs().max() < 1e-3


def test_every_node_finds_a_shift_exactly_and_a_fraction_of_a_voxel_nearly():
    whole, _, _ = pair((50, 57), (1.0, 1.0))
    level = _Level(whole, whole, [1.0, 1.0], (1, 1), 3, 3, 7)
    for shift in ((2.0, -1.0), (0.4, 1.7)):
        warped = torch.from_numpy(ndimage.shift(whole[0, 0].numpy(), shift, order=3, mode="nearest"))[None, None]
        matches, correlation = level.match(warped)
        inner = (slice(None), slice(3, -3), slice(3, -3))
        expected = torch.tensor(shift).reshape(2, 1, 1)
        assert (matches[inner] - expected).abs().mean() < 0.2  # the parabola's own bias
        assert correlation.max() <= 1 + 1e-4


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_regression_of_the_first_order_keeps_a_linear_field(spatial_dims):
    shape, spacing = SHAPES[spatial_dims], SPACINGS[spatial_dims]
    fixed, _, _ = pair(shape, spacing)
    level = _Level(fixed, fixed, list(spacing), (1,) * spatial_dims, 3, 3, 7)
    nodes = torch.stack(torch.meshgrid(*level.nodes, indexing="ij")).float()
    matches = 0.02 * nodes + 0.01 * nodes.flip(0)
    widths = torch.full([len(points) for points in level.points], 4.0)
    found = level.regress(matches, torch.ones(nodes.shape[1:]), widths, ridge=1e-5)
    points = torch.stack(torch.meshgrid(*level.points, indexing="ij"))
    torch.testing.assert_close(found[0], 0.02 * points + 0.01 * points.flip(0), atol=2e-2, rtol=0)  # the ridge's pull


def test_a_match_without_certainty_does_not_count():
    fixed, _, _ = pair(SHAPES[2], SPACINGS[2])
    level = _Level(fixed, fixed, list(SPACINGS[2]), (1, 1), 3, 3, 7)
    counts = [len(nodes) for nodes in level.nodes]
    certainty, matches = torch.ones(counts), torch.ones(2, *counts)
    certainty[4:7, 5:8], matches[:, 4:7, 5:8] = 0.0, -3.0
    widths = torch.full([len(points) for points in level.points], 4.0)
    torch.testing.assert_close(
        level.regress(matches, certainty, widths, ridge=0.1), torch.ones(1, 2, *widths.shape), atol=5e-3, rtol=0
    )


def test_superpixels_stay_on_their_side_of_a_strong_edge():
    image = np.zeros((40, 50), np.float32)
    image[:, 21:] = 1.0
    labels = _superpixels(image, [1.0, 1.0])
    assert not set(labels[:, :21].ravel()) & set(labels[:, 21:].ravel())
    assert 20 <= len(np.unique(labels)) <= 40
