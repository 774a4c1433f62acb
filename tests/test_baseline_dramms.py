import numpy as np
import pytest
import torch
from scipy import ndimage

from monai_jsm.baselines.dramms import gabor_attributes, mutual_saliency, register, select_attributes
from monai_jsm.geometry import jacobian_determinant, warp

SHAPES = {2: (70, 61), 3: (26, 30, 22)}
SPACINGS = {2: (1.0, 1.5), 3: (1.3, 1.0, 1.8)}
RADII = (1, 3, 5)


def noise(rng: np.random.Generator, shape: tuple[int, ...], widths: list[float]) -> np.ndarray:
    values = ndimage.gaussian_filter(rng.standard_normal(shape), widths, mode="nearest")
    return (values - values.min()) / np.ptp(values)


def pair(spatial_dims: int, longest: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fixed, moving and the motion between them by scipy; another motion along every axis."""
    rng, shape = np.random.default_rng(0), SHAPES[spatial_dims]
    edges = np.array(SPACINGS[spatial_dims])
    moving = (noise(rng, shape, list(2 / edges)) + noise(rng, shape, list(5 / edges))) / 2
    field = np.stack([noise(rng, shape, list(10 / edges)) - 0.3 for _ in shape])
    field *= longest / np.abs(field).max()
    fixed = ndimage.map_coordinates(moving, np.indices(shape) + field, order=1, mode="nearest")
    images = [torch.as_tensor(image)[None, None].float() for image in (fixed, moving)]
    return images[0], images[1], torch.as_tensor(field)[None].float()


def inner(values: torch.Tensor, margin: int = 4) -> torch.Tensor:
    """Without the border, where motion brings in what the other image does not show."""
    for axis in range(2, values.dim()):
        values = values.narrow(axis, margin, values.shape[axis] - 2 * margin)
    return values


@pytest.mark.parametrize(("spatial_dims", "longest"), [(2, 4.0), (3, 2.5)])
def test_a_known_motion_is_found_to_a_fraction_of_a_voxel(spatial_dims, longest):
    fixed, moving, true = pair(spatial_dims, longest)
    found = register(fixed, moving, SPACINGS[spatial_dims])
    assert found.dtype == torch.float32
    assert found.shape == true.shape
    assert inner(true).norm(dim=1).mean() > 0.9  # voxels
    assert inner(found - true).norm(dim=1).mean() < 0.25
    assert jacobian_determinant(found).min() > 0
    assert (inner(warp(moving, found) - fixed)).abs().mean() < 0.2 * inner(moving - fixed).abs().mean()


def test_the_same_pair_gives_the_same_field_bit_for_bit():
    fixed, moving, _ = pair(2, 3.0)
    first, again = (register(fixed, moving, (1.0, 1.5), iterations=5) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_identical_and_flat_images_do_not_move(spatial_dims):
    image, _, _ = pair(spatial_dims, 1.0)
    for both in (image, torch.full_like(image, 0.5)):
        assert register(both, both, SPACINGS[spatial_dims], iterations=4, components=3).abs().max() < 0.01


@pytest.mark.parametrize("shape", [(9, 40), (1, 33), (5, 12, 20)])
def test_short_axes_are_registered_too(shape):
    generator = torch.Generator().manual_seed(0)
    fixed, moving = torch.rand(2, 1, 1, *shape, generator=generator)
    found = register(fixed, moving, [1.0, 2.0, 3.0][: len(shape)], iterations=3, components=2)
    assert found.shape == (1, len(shape), *shape)
    assert found.isfinite().all()


@pytest.mark.parametrize("slices", [1, 3])
def test_equal_slices_move_as_one_image_does_and_not_through_one_another(slices):
    fixed, moving, true = (values[..., :48, :44] for values in pair(2, 3.0))
    stacks = (image.unsqueeze(-1).expand(*image.shape, slices).contiguous() for image in (fixed, moving))
    found = register(*stacks, (*SPACINGS[2], 2.0), iterations=25, components=6)
    assert inner(true).norm(dim=1).mean() > 0.6
    assert inner(found[:, :2, ..., slices // 2] - true).norm(dim=1).mean() < 0.3
    assert found[:, 2].abs().mean() < 0.15  # nothing tells it; Adam takes steps by what rounding leaves
    assert found[:, 2].abs().max() < 0.5


def test_an_image_of_many_voxels_is_registered_at_less_resolution_but_on_its_own_grid():
    rows, columns = torch.meshgrid(torch.arange(524.0), torch.arange(510.0), indexing="ij")
    texture = torch.sin(rows / 9) * torch.cos(columns / 13) + torch.sin(rows * columns / 4000)
    found = register(texture[None, None, 4:], texture[None, None, :-4], (1.0, 1.0), iterations=25)
    middle = found[0, :, 100:-100, 100:-100].median(2).values.median(1).values
    torch.testing.assert_close(middle, torch.tensor([4.0, 0.0]), atol=0.2, rtol=0)


def test_a_gabor_attribute_is_the_correlation_with_its_filter():
    """By numpy at one voxel: 0.21 cycles a voxel at 45 degrees, the imaginary part."""
    image = torch.rand(1, 1, 31, 27, generator=torch.Generator().manual_seed(1))
    sigma = 0.3 / 0.21
    radius = int(np.ceil(3 * sigma))
    row, column = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    envelope = np.exp(-(row**2 + column**2) / (2 * sigma**2))
    odd = envelope / envelope.sum() * np.sin(2 * np.pi * 0.21 * (row + column) / np.sqrt(2))
    window = image[0, 0, 15 - radius : 16 + radius, 13 - radius : 14 + radius].numpy()
    at = (1 * 4 + 1) * 2 + 1  # second frequency, second orientation, imaginary
    assert gabor_attributes(image)[0, at, 15, 13].item() == pytest.approx((window * odd).sum(), abs=1e-5)


def test_attributes_do_not_see_a_constant_and_a_flat_third_axis_only_dims_planes_across_it():
    image = torch.rand(1, 1, 20, 23, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(gabor_attributes(image + 3), gabor_attributes(image), atol=1e-5, rtol=0)
    volume = image.unsqueeze(-1).expand(-1, -1, -1, -1, 17)
    torch.testing.assert_close(gabor_attributes(volume)[:, :24, ..., 8], gabor_attributes(image))


def scene(missing: bool = False) -> torch.Tensor:
    """Attributes of a straight edge at column 25 and, unless missing, a spot at (40, 65), in one scale."""
    rows, columns = torch.meshgrid(torch.arange(80.0), torch.arange(90.0), indexing="ij")
    edge = torch.sigmoid(columns - 25)
    spot = torch.exp(-((rows - 40).square() + (columns - 65).square()) / (2 * 2.0**2))
    image = edge if missing else edge + spot
    peak = gabor_attributes((edge + spot)[None, None]).abs().max()
    return gabor_attributes(image[None, None]) / (2 * peak)


def test_mutual_saliency_is_high_at_a_unique_match_lower_along_an_edge_and_one_in_flat_tissue():
    attributes = scene()
    saliency = mutual_saliency(attributes, attributes, RADII)[0, 0]
    spot, edge, flat = saliency[40, 65], saliency[40, 25], saliency[10, 65]
    assert spot > edge + 0.1
    assert edge > flat + 0.1
    assert flat == pytest.approx(1.0, abs=1e-3)


def test_mutual_saliency_falls_where_structure_stands_in_one_image_only():
    there, absent = scene(), scene(missing=True)
    matched, unmatched = (mutual_saliency(there, other, RADII)[0, 0] for other in (there, absent))
    assert matched[40, 65] > 1.5
    assert unmatched[40, 65] == pytest.approx(1.0, abs=0.05)
    torch.testing.assert_close(unmatched[:, 25], matched[:, 25])  # the edge stands in both


def test_mutual_saliency_on_a_coarser_lattice_agrees_on_its_voxels():
    first, second = torch.rand(2, 1, 3, 13, 15, generator=torch.Generator().manual_seed(3))
    full, coarse = (mutual_saliency(first, second, (1, 2, 4), stride) for stride in (1, 2))
    torch.testing.assert_close(coarse[..., ::2, ::2], full[..., ::2, ::2])


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_selection_is_greedy_and_takes_an_attribute_that_has_no_match_late(spatial_dims):
    image, _, _ = pair(spatial_dims, 1.0)
    attributes = gabor_attributes(image)[:, ::6]
    fixed = attributes / (2 * attributes.abs().amax())
    moving = fixed.clone()
    generator = torch.Generator().manual_seed(4)
    fixed[:, 2], moving[:, 2] = torch.rand(2, *fixed[:, 2].shape, generator=generator) - 0.5
    selected = select_attributes(fixed, moving, 99, (1, 2, 4))
    assert sorted(selected) == list(range(fixed.shape[1]))
    assert select_attributes(fixed, moving, 3, (1, 2, 4)) == selected[:3]
    if spatial_dims == 2:  # among the 125 candidates of 3D noise finds a match by chance
        assert 2 not in selected[: len(selected) // 2]
