import pytest
import torch
from scipy.interpolate import BSpline

from monai_jsm.baselines.dirnet import DIRNet, _spline_weights
from monai_jsm.geometry import warp
from monai_jsm.losses import FieldLoss, GlobalCorrelationLoss

TRAINED_ON = (60, 52)


def known_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """A textured pair ``[moving, fixed]``, (1, 2, *S), and the smooth motion between them, longest 3.7 voxels."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 1, 16, 14, generator=generator)
    moving = torch.nn.functional.interpolate(coarse, TRAINED_ON, mode="bicubic").clamp(0, 1)
    rows, columns = torch.meshgrid(torch.arange(60.0), torch.arange(52.0), indexing="ij")
    bump = torch.exp(-((rows - 28) ** 2 + (columns - 27) ** 2) / (2 * 14**2))
    ddf = torch.stack([3.5 * bump, -1.2 * bump])[None]
    return torch.cat([moving, warp(moving, ddf)], 1), ddf


@pytest.mark.parametrize("shape", [(1, 1), (33, 46), (24, 17, 30)])
def test_any_size_is_taken_and_a_new_network_moves_almost_nothing(shape):
    ddf = DIRNet(len(shape)).eval()(torch.rand(2, 2, *shape, generator=torch.Generator().manual_seed(0)))
    assert ddf.shape == (2, len(shape), *shape)
    assert ddf.abs().max() < 1e-2


def test_training_on_one_pair_finds_its_motion_to_less_than_a_voxel():
    """60 steps bring the mean error of the inner voxels from 2.0 to 0.05 voxels; the axes are not interchangeable."""
    torch.manual_seed(0)
    image, truth = known_pair()
    network, loss = DIRNet(2), FieldLoss(GlobalCorrelationLoss())
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss(network(image), image).backward()
        optimizer.step()
    with torch.no_grad():
        error = (network.eval()(image) - truth).norm(dim=1)[:, 8:-8, 8:-8]
    assert truth.norm(dim=1)[:, 8:-8, 8:-8].mean() > 1
    assert error.mean() < 0.2


@pytest.mark.parametrize(("size", "spacing"), [(24, 8), (29, 4), (3, 4)])
def test_inside_the_grid_the_field_is_scipys_cubic_spline_and_a_uniform_one_stays_uniform(size, spacing):
    points = -(-size // spacing)
    weights = _spline_weights(size, points, spacing).double()
    torch.testing.assert_close(weights.sum(1), torch.ones(size, dtype=torch.float64), rtol=0, atol=1e-6)
    controls = torch.rand(points, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    beyond = 3  # border points are repeated
    repeated = torch.cat([controls[:1].expand(beyond), controls, controls[-1:].expand(beyond)])
    knots = torch.arange(len(repeated) + 4) - 2.0  # the cubic of control point i is centred at i
    spline = BSpline(knots.numpy(), repeated.numpy(), 3)
    position = (torch.arange(size) + 0.5) / spacing - 0.5 + beyond
    torch.testing.assert_close(weights @ controls, torch.from_numpy(spline(position)).double(), rtol=0, atol=1e-6)
