import pytest
import torch
from monai.losses import DiffusionLoss
from monai.networks.blocks import DVF2DDF, Warp
from monai.networks.nets import VoxelMorph

from monai_jsm.baselines.voxelmorph import VoxelMorphNet
from monai_jsm.geometry import warp
from monai_jsm.losses import FieldLoss, SquaredLocalCorrelationLoss


@pytest.mark.parametrize("shape", [(1, 1), (33, 46), (20, 17, 30)])
def test_any_size_is_taken_and_a_new_network_moves_almost_nothing(shape):
    ddf = VoxelMorphNet(len(shape))(torch.rand(2, 2, *shape, generator=torch.Generator().manual_seed(0)))
    assert ddf.shape == (2, len(shape), *shape)
    assert ddf.abs().max() < 1e-2


def test_the_field_is_monais_own_of_the_same_weights():
    """MONAI integrates four times the velocity and divides by four: a quarter of the last weights, four times that."""
    generator = torch.Generator().manual_seed(2)
    network = VoxelMorphNet(3)
    last = network.backbone.net[-1].final_conv_out.conv
    whole = VoxelMorph(network.backbone, half_res=True, spatial_dims=3)
    whole.dvf2ddf, whole.warp = DVF2DDF(7, padding_mode="border"), Warp(padding_mode="border")  # there: zeros
    image = torch.rand(2, 2, 16, 32, 48, generator=generator)
    with torch.no_grad():
        last.weight.copy_(0.1 * torch.randn(last.weight.shape, generator=generator))
        ours = network(image)
        last.weight /= 4
        warped, theirs = whole(image[:, :1], image[:, 1:])
    assert ours.abs().max() > 1
    torch.testing.assert_close(ours, 4 * theirs, rtol=0, atol=1e-4)
    torch.testing.assert_close(warped, warp(image[:, :1], theirs), rtol=0, atol=1e-5)


def test_training_on_one_pair_finds_its_motion_to_less_than_a_voxel():
    """60 steps bring the mean error of the inner voxels from 2.0 to 0.03 voxels; the axes are not interchangeable."""
    torch.manual_seed(0)
    coarse = torch.rand(1, 1, 16, 14)
    moving = torch.nn.functional.interpolate(coarse, (60, 52), mode="bicubic").clamp(0, 1)
    rows, columns = torch.meshgrid(torch.arange(60.0), torch.arange(52.0), indexing="ij")
    bump = torch.exp(-((rows - 28) ** 2 + (columns - 27) ** 2) / (2 * 14**2))
    truth = torch.stack([3.5 * bump, -1.2 * bump])[None]
    image = torch.cat([moving, warp(moving, truth)], 1)
    network, loss = VoxelMorphNet(2), FieldLoss(SquaredLocalCorrelationLoss(9), DiffusionLoss(), 0.02)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss(network(image), image).backward()
        optimizer.step()
    with torch.no_grad():
        error = (network(image) - truth).norm(dim=1)[:, 8:-8, 8:-8]
    assert truth.norm(dim=1)[:, 8:-8, 8:-8].mean() > 1
    assert error.mean() < 0.2
