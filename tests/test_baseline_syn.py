import shutil
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from monai_jsm.baselines.syn import PACKAGE_DEFAULT, register
from monai_jsm.data.errors import InputError
from monai_jsm.geometry import carry_points, warp

SHAPES = {2: (56, 70), 3: (26, 30, 22)}
SPACINGS = {2: (1.0, 1.6), 3: (1.0, 1.2, 1.5)}


def known_pair(spatial_dims: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fixed, moving and the motion between them: a sum of waves, read at exactly the moved places."""
    generator = torch.Generator().manual_seed(spatial_dims)
    shape, edges = SHAPES[spatial_dims], torch.tensor(SPACINGS[spatial_dims])
    axes = [torch.arange(float(size)) for size in shape]
    voxels = torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1)  # (*S, D)
    fractions = voxels / (torch.tensor(shape) - 1)
    reach = torch.tensor([2.4, -1.6, 1.1])[:spatial_dims] / edges  # another one along every axis
    bump = torch.sin(torch.pi * fractions).prod(dim=-1, keepdim=True)
    motion = bump * reach * (1 + 0.4 * torch.cos(3 * fractions.roll(1, dims=-1)))
    directions = torch.nn.functional.normalize(torch.randn(40, spatial_dims, generator=generator), dim=-1)
    lengths = 7 + 13 * torch.rand(40, generator=generator)  # mm
    phases = 6.28 * torch.rand(40, generator=generator)

    def anatomy(points: Tensor) -> Tensor:
        waves = torch.cos(2 * torch.pi / lengths * (points * edges @ directions.T) + phases)
        return (0.5 + 0.09 * waves.sum(dim=-1)).clamp(0, 1)[None, None]

    return anatomy(voxels + motion), anatomy(voxels), motion.movedim(-1, 0)[None]


def mean_length(field: Tensor) -> float:
    """Of the vectors farther than 3 voxels from the border."""
    return field[(..., *[slice(3, -3)] * (field.dim() - 2))].norm(dim=1).mean().item()


@pytest.mark.parametrize(
    ("spatial_dims", "settings"),
    [(2, {}), (2, PACKAGE_DEFAULT), (3, {"sampling": 2, "iterations": (30, 20, 5)}), (3, PACKAGE_DEFAULT)],
)
def test_a_known_motion_is_found_to_a_fraction_of_a_voxel(spatial_dims, settings):
    pytest.importorskip("ants")
    fixed, moving, true = known_pair(spatial_dims)
    found = register(fixed, moving, SPACINGS[spatial_dims], **settings)
    assert found.dtype == torch.float32
    assert found.shape == true.shape
    assert mean_length(true) > 1
    assert mean_length(found - true) < 0.3


def test_ants_moves_the_image_and_points_as_the_field_does(monkeypatch, tmp_path):
    ants = pytest.importorskip("ants")
    registration, folders = ants.registration, []

    def kept(*images, outprefix, **settings):
        registration(*images, outprefix=outprefix, **settings)
        shutil.copytree(outprefix, tmp_path / "kept")
        folders.append(outprefix)

    monkeypatch.setattr(ants, "registration", kept)
    fixed, moving, _ = known_pair(2)
    ddf = register(fixed, moving, SPACINGS[2], **PACKAGE_DEFAULT)

    transforms = [str(tmp_path / "kept" / "1Warp.nii.gz")]
    target, source = (ants.from_numpy(image[0, 0].numpy(), spacing=list(SPACINGS[2])) for image in (fixed, moving))
    pulled = ants.apply_transforms(target, source, transforms).numpy()
    inner = (slice(4, -4), slice(4, -4))  # beyond the image ANTs sees zero, we its border
    # Coordinates of sampling are normalised in float32 by us: a few 1e-6 of a voxel, times the slope.
    np.testing.assert_allclose(warp(moving, ddf)[0, 0].numpy()[inner], pulled[inner], rtol=0, atol=1e-5)

    pandas = pytest.importorskip("pandas")
    points = torch.tensor([[20.5, 31.25], [33.0, 12.75], [14.25, 50.0]])
    edges = torch.tensor(SPACINGS[2])
    pushed = ants.apply_transforms_to_points(2, pandas.DataFrame(points * edges, columns=["x", "y"]), transforms)
    carried = carry_points(points[None], ddf)[0] * edges
    np.testing.assert_allclose(carried.numpy(), pushed[["x", "y"]].to_numpy(), rtol=0, atol=1e-4)
    with pytest.raises(FileNotFoundError):
        shutil.copytree(folders[0], tmp_path / "left")


def test_nothing_stays_on_disk_when_ants_fails(monkeypatch, tmp_path):
    ants = pytest.importorskip("ants")

    def fails(*images, outprefix, **settings):
        with open(f"{outprefix}0Warp.nii.gz", "w"):
            raise RuntimeError("Registration failed")

    monkeypatch.setattr(ants, "registration", fails)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(RuntimeError, match="Registration failed"):
        register(torch.rand(1, 1, 12, 9), torch.rand(1, 1, 12, 9), (1.0, 2.0))
    assert list(tmp_path.iterdir()) == []


def test_the_same_pair_gives_the_same_field_and_identical_or_flat_images_hardly_move():
    pytest.importorskip("ants")
    fixed, moving, _ = known_pair(2)
    fields = [register(fixed, moving, SPACINGS[2], iterations=(20, 5)) for _ in range(2)]
    assert torch.equal(*fields)
    assert fields[0].abs().max() > 0.5
    flat = torch.full_like(fixed, 0.5)
    assert register(flat, flat, SPACINGS[2], iterations=(20, 5)).abs().max() == 0
    assert register(fixed, fixed, SPACINGS[2], iterations=(20, 5)).abs().max() < 1e-3
    # Mutual information of binned samples has no sharp peak.
    assert register(fixed, fixed, SPACINGS[2], **PACKAGE_DEFAULT).abs().max() < 0.1


@pytest.mark.parametrize(("shape", "spacing"), [((19, 1), (1.0, 2.0)), ((20, 24, 2), (1.0, 1.3, 1.1))])
def test_a_thin_image_is_taken_and_moves_along_its_long_axes(shape, spacing):
    pytest.importorskip("ants")
    rows = torch.arange(float(shape[0])).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)[None, None]
    fixed, moving = (torch.exp(-((rows - centre) ** 2) / 18) for centre in (8.0, 9.5))
    ddf = register(fixed, moving, spacing, iterations=(50, 50, 50, 20))
    assert ddf.shape == (1, len(shape), *shape)
    middle = ddf[0, :, 8].flatten(1)[:, ddf[0, 0, 8].numel() // 2]
    assert middle[0].item() == pytest.approx(1.5, abs=0.5)
    assert middle[1:].abs().max() < 0.1


def test_a_missing_package_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "ants", None)
    with pytest.raises(InputError, match=r"^antspyx: is not installed; install it with pip install antspyx\.$"):
        register(torch.rand(1, 1, 9, 8), torch.rand(1, 1, 9, 8), (1.0, 2.0))
