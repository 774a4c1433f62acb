import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.losses import BendingEnergyLoss, DiffusionLoss
from scipy import ndimage

from monai_jsm.geometry import warp
from monai_jsm.losses import (
    CharbonnierLoss,
    FieldLoss,
    GlobalCorrelationLoss,
    GlobalToLocalLoss,
    PublishedEnergyLoss,
    SquaredLocalCorrelationLoss,
    box_mean,
    trust_weight,
)
from monai_jsm.networks import GlobalToLocalNet, Stages

SHAPES = {2: (19, 23), 3: (11, 12, 13)}
LOSSES = [SquaredLocalCorrelationLoss(5), CharbonnierLoss(2.0)]


def images(spatial_dims: int, seed: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    both = torch.rand(2, batch, 1, *SHAPES[spatial_dims], generator=generator)
    return both[0], both[1]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_box_mean_is_the_mean_of_what_lies_inside(spatial_dims):
    image, _ = images(spatial_dims, 0)
    weights = torch.ones(5, dtype=torch.float64).numpy()
    inside = image[0, 0].double().numpy()
    total, count = inside, inside * 0 + 1
    for axis in range(spatial_dims):
        total = ndimage.convolve1d(total, weights, axis=axis, mode="constant")
        count = ndimage.convolve1d(count, weights, axis=axis, mode="constant")
    torch.testing.assert_close(box_mean(image, 5)[0, 0].double(), torch.as_tensor(total / count), rtol=0, atol=1e-5)


@given(spatial_dims=st.sampled_from([2, 3]), seed=st.integers(0, 2**16), which=st.sampled_from([0, 1]))
def test_a_weight_of_one_everywhere_is_no_weight(spatial_dims, seed, which):
    warped, fixed = images(spatial_dims, seed)
    loss = LOSSES[which]
    torch.testing.assert_close(loss(warped, fixed, torch.ones_like(fixed)), loss(warped, fixed))


@pytest.mark.parametrize("loss", LOSSES)
def test_where_the_weight_is_zero_the_images_do_not_matter(loss):
    warped, fixed = images(2, 1)
    weight = torch.ones_like(fixed)
    weight[..., :12] = 0
    other = warped.clone()
    other[..., :5] = torch.rand(other[..., :5].shape)  # farther than any window from the weighted part
    torch.testing.assert_close(loss(other, fixed, weight), loss(warped, fixed, weight))
    assert loss(other, fixed) != loss(warped, fixed)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_value_is_a_mean_over_the_batch_and_the_image(loss, spatial_dims):
    warped, fixed = images(spatial_dims, 2)
    alone = torch.stack([loss(warped[i : i + 1], fixed[i : i + 1]) for i in range(2)]).mean()
    torch.testing.assert_close(loss(warped, fixed), alone)
    doubled = [torch.cat([image, image.flip(2)], 2) for image in (warped, fixed)]
    torch.testing.assert_close(loss(*doubled), loss(warped, fixed), rtol=0.05, atol=0.05)  # the seam differs


@given(gain=st.floats(0.2, 5.0), offset=st.floats(-1.0, 1.0), sign=st.sampled_from([-1.0, 1.0]))
def test_correlation_is_blind_to_gain_offset_and_inversion(gain, offset, sign):
    fixed, _ = images(2, 3)
    loss = SquaredLocalCorrelationLoss(7, floor=1e-8)
    assert loss(sign * gain * fixed + offset, fixed) < 1e-2


def test_correlation_agrees_with_numpy_on_one_window():
    warped, fixed = images(2, 4, batch=1)
    window = (slice(4, 13), slice(6, 15))
    a, b = (image[0, 0][window].double().flatten() for image in (warped, fixed))
    expected = 1 - torch.corrcoef(torch.stack([a, b]))[0, 1] ** 2
    found = SquaredLocalCorrelationLoss(9, floor=0.0).map(warped, fixed)[0, 0, 8, 10].double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_flat_images_have_a_finite_gradient():
    warped = torch.full((1, 1, 9, 8), 0.3, requires_grad=True)
    for loss in LOSSES:
        (gradient,) = torch.autograd.grad(loss(warped, torch.full((1, 1, 9, 8), 0.7)), warped)
        assert gradient.isfinite().all()


def test_the_charbonnier_penalty_of_a_step_is_known():
    fixed, warped = torch.zeros(1, 1, 4, 5), torch.full((1, 1, 4, 5), 0.5)
    assert CharbonnierLoss(1.0, width=1e-6)(warped, fixed).item() == pytest.approx(0.5, abs=1e-5)


def test_an_even_window_is_refused():
    with pytest.raises(ValueError, match="odd number"):
        SquaredLocalCorrelationLoss(8)


def still(image: torch.Tensor) -> Stages:
    """The stages of a network that does not move anything."""
    maps = [torch.ones_like(image[:, :1])] * 5
    field = torch.zeros(len(image), image.dim() - 2, *image.shape[2:])
    return Stages(field, field, image[:, :1], *maps)


@pytest.mark.parametrize("gradient_weight", [0.0, 20.0])
def test_the_published_energy_is_the_published_sums_over_the_number_of_voxels(gradient_weight):
    moving, fixed = images(2, 5)
    stages = still(torch.cat([moving, fixed], 1))
    generator = torch.Generator().manual_seed(6)
    stages = stages._replace(ddf=torch.randn(stages.ddf.shape, generator=generator).cumsum(2) * 0.01)
    from monai_jsm.geometry import warp

    f, w, u = (t.double() for t in (255 * fixed, 255 * warp(moving, stages.ddf), stages.ddf))

    def steps(image: torch.Tensor) -> list[torch.Tensor]:
        rows = torch.cat([image.diff(dim=2), 0 * image[:, :, :1]], 2)
        columns = torch.cat([image.diff(dim=3), 0 * image[..., :1]], 3)
        return [rows, columns]

    def psi(x: torch.Tensor) -> torch.Tensor:
        return torch.sqrt(x**2 + 0.001**2)

    def magnitude(image: torch.Tensor) -> torch.Tensor:
        rows, columns = steps(image)
        return torch.sqrt(rows**2 + columns**2 + 2.2e-16)

    expected = psi(f - w).sum() + gradient_weight * psi(magnitude(f) - magnitude(w)).sum()
    expected = expected + sum(psi(part).sum() for part in steps(u))
    energy = PublishedEnergyLoss(gradient_weight)(stages, torch.cat([moving, fixed], 1))
    torch.testing.assert_close(energy.double(), expected / fixed.numel(), rtol=1e-5, atol=1e-4)


def test_the_trust_weight_is_detached_floored_and_one_where_trust_is_full():
    trust = torch.ones(1, 1, 30, 32, requires_grad=True)
    weight = trust_weight(trust)
    assert not weight.requires_grad
    torch.testing.assert_close(weight, torch.ones_like(weight))
    assert trust_weight(torch.zeros(1, 1, 9, 8, 7)).unique().tolist() == pytest.approx([0.05])
    torch.testing.assert_close(trust_weight(torch.zeros(1, 1, 9, 8), strength=0.5).unique(), torch.tensor([0.525]))


def test_trust_shields_the_loss_from_an_outlier():
    moving, fixed = images(2, 7, batch=1)
    image = torch.cat([fixed, fixed], 1)
    image[:, 1:, 5:12, 5:12] = moving[:, :, 5:12, 5:12]
    stages = still(image)
    trust = torch.ones_like(fixed)
    trust[:, :, 1:16, 1:16] = 0
    losses = [
        GlobalToLocalLoss(SquaredLocalCorrelationLoss(5), DiffusionLoss(), trust_strength=strength)(
            stages._replace(trust=trust), image
        )
        for strength in (0.0, 1.0)
    ]
    assert losses[1] < 0.5 * losses[0]


@given(spatial_dims=st.sampled_from([2, 3]), seed=st.integers(0, 2**16))
def test_the_global_correlation_is_numpys_and_the_mean_over_the_batch(spatial_dims, seed):
    warped, fixed = images(spatial_dims, seed)
    expected = [1 - np.corrcoef(w.flatten(), f.flatten())[0, 1] for w, f in zip(warped, fixed, strict=True)]
    assert GlobalCorrelationLoss()(warped, fixed).item() == pytest.approx(np.mean(expected), abs=1e-5)


def test_a_flat_image_has_no_global_correlation_and_a_finite_gradient():
    warped, fixed = images(2, 0)
    warped = torch.full_like(warped, 0.3).requires_grad_()
    loss = GlobalCorrelationLoss()(warped, fixed)
    loss.backward()
    assert loss.item() == pytest.approx(1, abs=1e-4)
    assert warped.grad.isfinite().all()


def test_the_loss_of_a_field_is_least_for_the_true_motion_and_counts_its_roughness():
    moving, _ = images(2, 4)
    ddf = torch.zeros(2, 2, *SHAPES[2])
    ddf[:, 1] = 3  # fixed is moving, three columns on
    image = torch.cat([moving, warp(moving, ddf)], 1)
    loss = FieldLoss(torch.nn.MSELoss())
    assert loss(ddf, image).item() == pytest.approx(0, abs=1e-9)
    assert loss(-ddf, image) > 0.05
    assert loss(ddf.flip(1), image) > 0.05
    bent = ddf + 0.1 * torch.rand(ddf.shape, generator=torch.Generator().manual_seed(5))
    regularised = FieldLoss(torch.nn.MSELoss(), DiffusionLoss(), 2.0)
    torch.testing.assert_close(regularised(bent, image), loss(bent, image) + 2 * DiffusionLoss()(bent))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_is_that_of_float32_under_autocast(dtype):
    moving, fixed = images(2, 8)
    image = torch.cat([0.9 + 0.1 * moving, 0.9 + 0.1 * fixed], 1)
    stages = still(image)._replace(trust=moving)
    loss = GlobalToLocalLoss(SquaredLocalCorrelationLoss(5), DiffusionLoss(), trust_strength=1.0)
    full = loss(stages, image)
    with torch.autocast("cpu", dtype=dtype):
        torch.testing.assert_close(loss(stages, image), full)


@pytest.mark.parametrize("regulariser", [DiffusionLoss(), BendingEnergyLoss()])
def test_a_few_steps_bring_a_moved_square_closer(regulariser):
    torch.manual_seed(0)
    network = GlobalToLocalNet(2, global_channels=(8, 16, 16), local_channels=(8, 16))
    image = torch.zeros(1, 2, 32, 32)
    image[:, 0, 12:22, 10:20] = 1
    image[:, 1, 10:20, 10:20] = 1
    loss = GlobalToLocalLoss(CharbonnierLoss(0.0), regulariser, smooth_weight=0.01)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    values = []
    for _ in range(40):
        optimizer.zero_grad()
        value = loss(network.stages(image), image)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.6 * values[0]
    assert network(image)[0, 0, 12:18, 12:18].mean() > 1.0
