import sys

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from test_baseline_syn import SPACINGS, known_pair, mean_length

from monai_jsm.baselines.demons import register
from monai_jsm.data.errors import InputError
from monai_jsm.geometry import warp


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_known_motion_is_found_to_a_fraction_of_a_voxel(spatial_dims):
    fixed, moving, true = known_pair(spatial_dims)
    found = register(fixed, moving, SPACINGS[spatial_dims], iterations=60)
    assert found.dtype == torch.float32
    assert found.shape == true.shape
    assert mean_length(true) > 1
    assert mean_length(found - true) < 0.3


def test_the_brightness_of_moving_may_differ():
    fixed, moving, true = known_pair(2)
    found = register(fixed, 0.1 + 0.6 * moving, SPACINGS[2])
    assert mean_length(found - true) < 0.3


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_simpleitk_alone_warps_moving_as_one_level_of_ours(spatial_dims):
    fixed, moving, _ = known_pair(spatial_dims)
    spacing = SPACINGS[spatial_dims]
    target, source = (sitk.GetImageFromArray(image[0, 0].numpy().T) for image in (fixed, moving))
    target.SetSpacing(spacing)
    source.SetSpacing(spacing)
    demons = sitk.DiffeomorphicDemonsRegistrationFilter()
    demons.SetNumberOfIterations(15)
    demons.SetStandardDeviations([2.0 * min(spacing) / edge for edge in spacing])
    field = demons.Execute(target, sitk.HistogramMatching(source, target, 1024, 7, True))
    pulled = sitk.GetArrayFromImage(sitk.Resample(source, target, sitk.DisplacementFieldTransform(field))).T

    ours = warp(moving, register(fixed, moving, spacing, sigma=2.0, iterations=15, shrink=(1,)))[0, 0].numpy()
    inner = tuple([slice(4, -4)] * spatial_dims)  # beyond the image SimpleITK sees zero, we its border
    # Coordinates of sampling are normalised in float32 by us: a few 1e-6 of a voxel, times the slope.
    np.testing.assert_allclose(ours[inner], pulled[inner], rtol=0, atol=1e-5)


def test_the_same_pair_gives_the_same_field_and_identical_or_flat_images_do_not_move():
    fixed, moving, _ = known_pair(2)
    assert torch.equal(*(register(fixed, moving, SPACINGS[2], iterations=9) for _ in range(2)))
    for both in (fixed, torch.full_like(fixed, 0.5), torch.zeros_like(fixed)):
        assert register(both, both, SPACINGS[2]).abs().max() < 0.02


@pytest.mark.parametrize(("shape", "spacing"), [((19, 1), (1.0, 2.0)), ((20, 24, 2), (1.0, 1.3, 1.1))])
def test_a_thin_image_is_taken_and_moves_along_its_long_axes(shape, spacing):
    rows = torch.arange(float(shape[0])).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)[None, None]
    fixed, moving = (torch.exp(-((rows - centre) ** 2) / 18) for centre in (8.0, 9.5))
    ddf = register(fixed, moving, spacing)
    assert ddf.shape == (1, len(shape), *shape)
    assert ddf[0, 0, 5:12].mean().item() == pytest.approx(1.5, abs=0.5)
    assert ddf[0, 1:].abs().max() < 0.1


def test_a_missing_package_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(InputError, match=r"^SimpleITK: is not installed; install it with pip install SimpleITK\.$"):
        register(torch.rand(1, 1, 9, 8), torch.rand(1, 1, 9, 8), (1.0, 2.0))
