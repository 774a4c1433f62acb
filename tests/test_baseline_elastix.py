import os
import sys

import numpy as np
import pytest
import torch
from test_baseline_syn import SPACINGS, known_pair, mean_length

from monai_jsm.baselines.elastix import register
from monai_jsm.data.errors import InputError
from monai_jsm.geometry import warp


@pytest.mark.slow  # loading itk alone takes more than ten seconds
@pytest.mark.parametrize(
    ("spatial_dims", "settings"),
    [
        (2, {}),
        (2, {"metric": "AdvancedNormalizedCorrelation", "bending": 0.1}),
        (3, {"metric": "AdvancedNormalizedCorrelation", "iterations": 30}),
    ],
)
def test_a_known_motion_is_found_to_a_fraction_of_a_voxel(spatial_dims, settings):
    pytest.importorskip("itk")
    fixed, moving, true = known_pair(spatial_dims)
    found = register(fixed, moving, SPACINGS[spatial_dims], **settings)
    assert found.dtype == torch.float32
    assert found.shape == true.shape
    assert mean_length(true) > 1
    assert mean_length(found - true) < 0.3


@pytest.mark.slow
def test_transformix_moves_the_image_as_the_field_does_and_nothing_is_printed_or_left(monkeypatch, tmp_path, capfd):
    itk = pytest.importorskip("itk")
    monkeypatch.chdir(tmp_path)
    field_of, transforms = itk.transformix_deformation_field, []

    def kept(image, transform, **settings):
        transforms.append(transform)
        return field_of(image, transform, **settings)

    monkeypatch.setattr(itk, "transformix_deformation_field", kept)
    fixed, moving, _ = known_pair(2)
    ddf = register(fixed, moving, SPACINGS[2], iterations=20)
    assert os.listdir(tmp_path) == []
    assert capfd.readouterr() == ("", "")

    source = itk.image_from_array(np.ascontiguousarray(moving[0, 0].numpy().T))
    source.SetSpacing(SPACINGS[2])
    transforms[0].SetParameter("FinalBSplineInterpolationOrder", "1")
    pulled = itk.array_from_image(itk.transformix_filter(source, transforms[0], log_to_console=False)).T
    inner = (slice(4, -4), slice(4, -4))  # beyond the image elastix sees zero, we its border
    # Coordinates of sampling are normalised in float32 by us: a few 1e-6 of a voxel, times the slope.
    np.testing.assert_allclose(warp(moving, ddf)[0, 0].numpy()[inner], pulled[inner], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_same_pair_gives_the_same_field_and_identical_images_hardly_move():
    pytest.importorskip("itk")
    fixed, moving, _ = known_pair(2)
    assert torch.equal(*(register(fixed, moving, SPACINGS[2], iterations=9) for _ in range(2)))
    # Random samples leave some noise, largest at the border, where control points see few of them.
    assert mean_length(register(fixed, fixed, SPACINGS[2])) < 0.15


@pytest.mark.slow
def test_an_image_of_a_single_value_gives_no_motion_and_the_process_lives_on():
    pytest.importorskip("itk")
    fixed, _, _ = known_pair(2)
    flat = torch.full_like(fixed, 0.5)
    for pair in ((flat, flat), (fixed, flat), (flat, fixed)):
        ddf = register(*pair, SPACINGS[2])
        assert ddf.shape == (1, 2, *fixed.shape[2:])
        assert not ddf.any()


@pytest.mark.slow
def test_a_thin_image_is_taken_and_moves_along_its_long_axis():
    pytest.importorskip("itk")
    rows = torch.arange(61.0)[None, None, :, None]

    def profile(shift):
        peaks = ((12.0, 0.5), (25.0, 1.0), (38.0, 0.7), (50.0, 0.9))
        return sum(height * torch.exp(-((rows - centre - shift) ** 2) / 18) for centre, height in peaks)

    ddf = register(profile(0.0), profile(1.5), (1.0, 2.0))
    assert ddf.shape == (1, 2, 61, 1)
    assert ddf[0, 0, 10:52].mean().item() == pytest.approx(1.5, abs=0.3)


def test_a_missing_package_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "itk", None)
    with pytest.raises(InputError, match=r"^itk-elastix: is not installed; install it with pip install itk-elastix\.$"):
        register(torch.rand(1, 1, 9, 8), torch.rand(1, 1, 9, 8), (1.0, 2.0))
