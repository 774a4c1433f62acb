import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy import ndimage

from monai_jsm.geometry import identity_grid, jacobian_determinant, warp
from monai_jsm.losses import SquaredLocalCorrelationLoss
from monai_jsm.refinement import _Level, _share_kept, refine

SHAPES = {2: (46, 53), 3: (26, 30, 21)}
SPACINGS = {2: (1.0, 1.0), 3: (1.3, 1.0, 2.6)}


def noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float | list[float]) -> np.ndarray:
    """Smooth noise in [0, 1]."""
    values = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="nearest")
    return (values - values.min()) / np.ptp(values)


def pair(
    shape: tuple[int, ...], seed: int = 0, spacing: tuple[float, ...] = (), width: float = 7.0, longest: float = 2.5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fixed, moving and the field between them by scipy: texture of 1.5 and 5 mm, motion of a width in mm."""
    rng = np.random.default_rng(seed)
    edges = np.array(spacing or (1.0,) * len(shape))
    moving = (noise(rng, shape, list(1.5 / edges)) + noise(rng, shape, list(5.0 / edges))) / 2
    field = np.stack([noise(rng, shape, list(width / edges)) - 0.5 for _ in shape])
    field *= longest / np.abs(field).max()
    fixed = ndimage.map_coordinates(moving, np.indices(shape) + field, order=1, mode="nearest")
    images, true = torch.as_tensor(np.stack([fixed, moving])), torch.as_tensor(field)
    return images[:1, None].float(), images[1:, None].float(), true[None].float()


def inner(values: torch.Tensor, margin: int = 4) -> torch.Tensor:
    """Without the border, where motion brings in what the other image does not show."""
    for axis in range(2, values.dim()):
        values = values.narrow(axis, margin, values.shape[axis] - 2 * margin)
    return values


def error(found: torch.Tensor, true: torch.Tensor) -> float:
    return torch.linalg.vector_norm(inner(found - true), dim=1).mean().item()


def objective(fixed: torch.Tensor, moving: torch.Tensor, ddf: torch.Tensor) -> float:
    return SquaredLocalCorrelationLoss(7)(warp(moving, ddf), fixed).item()


@pytest.mark.parametrize("trust", [True, False])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_known_motion_is_found_from_zero_to_a_fraction_of_a_voxel(spatial_dims, trust):
    spacing = SPACINGS[spatial_dims]
    fixed, moving, true = pair(SHAPES[spatial_dims], spacing=spacing)
    found = refine(fixed, moving, torch.zeros_like(true), spacing=spacing, trust=trust)
    before = error(torch.zeros_like(true), true)
    assert before > 0.6
    assert error(found, true) < 0.2 * before
    assert jacobian_determinant(found).min() > 0


def test_what_a_start_has_finer_than_the_last_level_survives():
    _, moving, smooth = pair((58, 65), seed=1)
    stripes = 0.25 * (-1) ** identity_grid([58, 65], moving)
    fixed = warp(moving, smooth + stripes)
    from_zero, from_stripes = (
        error(refine(fixed, moving, start, finest=2), smooth + stripes) for start in (torch.zeros_like(smooth), stripes)
    )
    assert from_stripes < 0.5 * from_zero


def test_a_pair_that_fits_already_keeps_its_field_as_it_is():
    fixed, _, _ = pair((46, 53))
    still = torch.zeros(1, 2, 46, 53)
    assert torch.equal(refine(fixed, fixed, still), still)


def test_neither_trust_nor_a_weight_lets_structure_without_a_counterpart_tear_the_field():
    fixed, moving, true = pair((72, 77), seed=3)
    distance = torch.hypot(*(identity_grid([72, 77], fixed)[0] - torch.tensor([37.0, 40.0]).reshape(2, 1, 1)))
    painted = torch.where(distance < 9, 0.0, fixed)
    beside = ((distance > 9) & (distance < 15))[None].expand_as(true)
    mask = (distance > 12).float()[None, None]  # half a window farther
    believing, trusting, masked = (
        (refine(painted, moving, torch.zeros_like(true), weight, trust=trust) - true)[beside].abs().mean()
        for weight, trust in ((None, False), (None, True), (mask, False))
    )
    assert trusting < 0.5 * believing
    assert masked < 0.5 * believing


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_trust_keeps_a_change_for_the_better_and_drops_one_for_the_worse(spatial_dims):
    fixed, moving, true = pair((121, 37, 12)[:spatial_dims])
    left = (torch.arange(121) < 60).float().reshape(-1, *[1] * (spatial_dims - 1))
    level = _Level(fixed, moving, torch.ones_like(fixed), [1.0] * spatial_dims, (1,) * spatial_dims)
    kept = _share_kept(level, (1 - left) * true, left * true)  # right on the left only
    assert kept[:, :, :40].min() > 0.95
    assert kept[:, :, 80:].max() < 0.05


@settings(max_examples=8)
@given(spatial_dims=st.sampled_from([2, 3]), trust=st.booleans(), seed=st.integers(0, 2**16))
def test_no_field_is_worse_than_the_start_nor_does_a_better_one_fold(spatial_dims, trust, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = {2: (17, 20), 3: (9, 12, 10)}[spatial_dims]
    fixed, moving = torch.rand(2, 1, 1, *shape, generator=generator)
    start = 2 * torch.randn(1, spatial_dims, *shape, generator=generator)  # folds everywhere
    found = refine(fixed, moving, start, trust=trust)
    if not torch.equal(found, start):
        assert objective(fixed, moving, found) < objective(fixed, moving, start)
        assert jacobian_determinant(found).min() > 0


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_exchanging_axes_exchanges_the_components_of_the_field(spatial_dims):
    fixed, moving, true = pair({2: (24, 33), 3: (12, 17, 14)}[spatial_dims], seed=1)
    spacing = (1.0, 1.5, 2.0)[:spatial_dims]
    start = torch.zeros_like(true)
    found = refine(fixed, moving, start, spacing=spacing)
    turned = refine(fixed.mT, moving.mT, start.mT, spacing=(*spacing[:-2], spacing[-1], spacing[-2]))
    order = [*range(spatial_dims - 2), spatial_dims - 1, spatial_dims - 2]
    assert (turned.mT[:, order] - found).abs().mean() < 0.01  # many steps amplify rounding


def test_only_the_ratios_of_the_spacing_matter_and_the_scale_of_the_weight_does_not():
    fixed, moving, true = pair((25, 38), spacing=(2.0, 1.0))
    start, weight = torch.zeros_like(true), torch.rand(fixed.shape, generator=torch.Generator().manual_seed(0))
    found = refine(fixed, moving, start, weight, spacing=(2.0, 1.0))
    torch.testing.assert_close(refine(fixed, moving, start, 4 * weight, spacing=(5.0, 2.5)), found)
    assert not torch.allclose(refine(fixed, moving, start, weight), found, atol=0.01)


def test_a_volume_that_does_not_change_along_a_thin_axis_gives_the_field_of_its_slice():
    fixed, moving, true = pair((40, 51), seed=5)
    flat = refine(fixed, moving, torch.zeros_like(true), trust=False)
    volumes = (image.unsqueeze(-1).expand(-1, -1, -1, -1, 5) for image in (fixed, moving))
    deep = refine(*volumes, torch.zeros(1, 3, 40, 51, 5), trust=False)
    assert (deep[:, :2] - flat.unsqueeze(-1)).abs().mean() < 0.01  # many steps amplify rounding
    assert deep[:, 2].abs().max() < 0.01


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_field_of_half_resolution_is_close_and_stands_on_the_full_grid(spatial_dims):
    fixed, moving, true = pair({2: (81, 90), 3: (36, 43, 34)}[spatial_dims], seed=6)
    found = refine(fixed, moving, torch.zeros_like(true), finest=2)
    assert found.shape == true.shape
    assert error(found, true) < 0.3 * error(torch.zeros_like(true), true)


def test_the_field_is_the_same_in_every_run_and_context_and_for_every_kind_of_tensor():
    fixed, moving, true = pair((30, 35))
    start = torch.zeros_like(true)
    found = refine(fixed, moving, start)
    assert not found.requires_grad
    with torch.no_grad():
        assert torch.equal(refine(fixed, moving, start), found)
    with torch.inference_mode():
        born_here = [values.clone() for values in (fixed, moving, start, torch.ones_like(fixed))]
        assert torch.equal(refine(*born_here), found)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(refine(fixed, moving, start), found)
    plain = refine(MetaTensor(fixed), MetaTensor(moving).requires_grad_(), start.double())
    assert type(plain) is torch.Tensor
    assert torch.equal(plain, found)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_field_stays_on_its_device():
    fixed, moving, true = pair((46, 53))
    found = refine(fixed.cuda(), moving.cuda(), torch.zeros_like(true).cuda())
    assert found.is_cuda
    assert error(found.cpu(), true) < 0.2


def test_the_inputs_are_left_alone():
    fixed, moving, true = pair((22, 27))
    copies = [values.clone() for values in (fixed, moving, true)]
    refine(fixed, moving, true)[:] = 9
    assert all(torch.equal(a, b) for a, b in zip(copies, (fixed, moving, true), strict=True))


IMAGE, FIELD = torch.zeros(1, 1, 9, 11), torch.zeros(1, 2, 9, 11)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((IMAGE, IMAGE[..., :10], FIELD), {}, r"on one grid .* moving is \[1, 1, 9, 10\]"),
        ((IMAGE, IMAGE, FIELD[:, :1]), {}, r"ddf is \[1, 1, 9, 11\]"),
        ((IMAGE.expand(2, -1, -1, -1), IMAGE, FIELD), {}, r"fixed is \[2, 1, 9, 11\]"),
        ((IMAGE, IMAGE, FIELD, FIELD), {}, r"weight is \[1, 2, 9, 11\]"),
        ((IMAGE[..., 0], IMAGE[..., 0], FIELD[..., 0]), {}, "two or three sizes"),
        ((IMAGE, IMAGE / 0, FIELD), {}, "moving must be finite"),
        ((IMAGE, IMAGE, FIELD, IMAGE), {}, "zero everywhere"),
        ((IMAGE, IMAGE, FIELD, IMAGE - 1), {}, "must not be negative"),
        ((IMAGE[:, :, :1], IMAGE[:, :, :1], FIELD[:, :, :1]), {}, "at least two voxels"),
        ((IMAGE, IMAGE, FIELD), {"spacing": (1.0, 1.0, 1.0)}, "2 positive lengths"),
        ((IMAGE, IMAGE, FIELD), {"spacing": (1.0, 0.0)}, "2 positive lengths"),
        ((IMAGE, IMAGE, FIELD), {"finest": 3}, "finest must be 1 or 2"),
        ((IMAGE, IMAGE, FIELD), {"window": 4}, "window must be an odd number"),
    ],
)
def test_what_cannot_be_refined_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        refine(*arguments, **options)
