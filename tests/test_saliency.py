import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_jsm.saliency import JointSaliencyBlock, regional_saliency, structure_tensor, tensor_distance

SHAPES = {2: (13, 17), 3: (9, 11, 13)}
SETTINGS = {
    "energy": {},
    "regional": {"saliency": "regional"},
    "published": {"kind": "published"},
    "published deviatoric": {"kind": "deviatoric", "formula": "published"},
}
RECOMMENDED = ("energy", "regional")

both_dimensions = pytest.mark.parametrize("spatial_dims", [2, 3])
every_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
recommended = pytest.mark.parametrize("setting", [SETTINGS[name] for name in RECOMMENDED], ids=RECOMMENDED)


def smooth_noise(spatial_dims, seed, batch=1, dtype=torch.float64):
    """Random images with structure in every voxel, (B, 1, *S)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 1, *(4,) * spatial_dims, generator=generator, dtype=dtype)
    mode = {2: "bilinear", 3: "trilinear"}[spatial_dims]
    fine = torch.randn(batch, 1, *SHAPES[spatial_dims], generator=generator, dtype=dtype)
    smooth = torch.nn.functional.interpolate(coarse, SHAPES[spatial_dims], mode=mode, align_corners=True)
    return smooth + 0.1 * fine


def pair(spatial_dims, seed=5, batch=1, dtype=torch.float64):
    return smooth_noise(spatial_dims, seed, batch, dtype), smooth_noise(spatial_dims, seed + 1, batch, dtype)


def logistic(distance):
    return (255 * torch.sigmoid(-distance / 1.5))[None, None]


def distance_to(centre, spatial_dims=2, size=96):
    axes = torch.meshgrid(*[torch.arange(float(size), dtype=torch.float64)] * spatial_dims, indexing="ij")
    return sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)).sqrt()


def discs():
    """(image with two discs, image with one, where the edge of the other lies, where the common edge lies)."""
    common, other = distance_to((48, 40)) - 18, distance_to((24, 76)) - 9
    return logistic(common) + logistic(other), logistic(common), other.abs() < 2, common.abs() < 2


def straight_edges():
    rows, columns = torch.meshgrid(*[torch.arange(96.0, dtype=torch.float64) - 48] * 2, indexing="ij")
    return logistic(rows), logistic(columns)


def assert_same_maps(first, second, **tolerance):
    for name, one, other in zip(first._fields, first, second, strict=True):
        torch.testing.assert_close(one, other, msg=lambda message, name=name: f"{name}: {message}", **tolerance)


# Known answers


@pytest.fixture(scope="module")
def golden():
    """Reference values made with NumPy and SciPy alone; they lie beside the folder of test data."""
    project = Path(__file__).resolve().parents[1]
    data = Path(os.environ.get("MONAI_JSM_DATA", project.parent / "shared" / "data"))
    path = data.parent / "golden" / "joint_saliency.npz"
    if not path.is_file():
        pytest.skip(f"There are no reference values in {path}: MONAI_JSM_DATA names the folder beside theirs.")
    with np.load(path) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


@pytest.mark.parametrize(
    ("spatial_dims", "kind"), [(2, "published"), (2, "full"), (2, "deviatoric"), (3, "full"), (3, "deviatoric")]
)
def test_the_published_formula_gives_the_reference_values(golden, spatial_dims, kind):
    fixed, moving = (golden[f"{spatial_dims}d/{side}"][None, None] for side in ("fixed", "moving"))
    expected = {
        key.rsplit("/", 1)[-1]: value for key, value in golden.items() if key.startswith(f"{spatial_dims}d/{kind}/")
    }
    tensor = structure_tensor(fixed, sigma=1.0, formula="published")
    maps = JointSaliencyBlock(spatial_dims, kind=kind, formula="published")(fixed, moving)
    found = {
        "tensor_fixed": tensor[0],
        "saliency_fixed": maps.saliency_fixed[0, 0],
        "saliency_moving": maps.saliency_warped[0, 0],
        "mismatch": maps.mismatch[0, 0],
        "joint_saliency": maps.joint_saliency[0, 0],
    }
    assert found.keys() == expected.keys()
    for step, values in found.items():
        torch.testing.assert_close(values, expected[step], rtol=0, atol=1e-10)
    torch.testing.assert_close(regional_saliency(tensor, kind)[0, 0], expected["saliency_fixed"], rtol=0, atol=1e-10)


def test_kind_published_alone_selects_the_published_formula(golden):
    maps = JointSaliencyBlock(2, kind="published")(golden["2d/fixed"][None, None], golden["2d/moving"][None, None])
    torch.testing.assert_close(maps.joint_saliency[0, 0], golden["2d/published/joint_saliency"], rtol=0, atol=1e-10)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(spatial_dims=st.sampled_from([2, 3]), kind=st.sampled_from(["full", "deviatoric"]), seed=st.integers(0, 2**16))
def test_the_distance_is_the_difference_of_profiles_over_all_directions(spatial_dims, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, spatial_dims, spatial_dims, generator=generator, dtype=torch.float64)
    first, second = first + first.T, second + second.T
    difference = first - second
    if kind == "deviatoric":
        difference = difference - torch.eye(spatial_dims) * difference.trace() / spatial_dims
    # Midpoints: exact for these polynomials around the circle, and 1e-5 over the cosine of the polar angle in 3D.
    angle = (torch.arange(64, dtype=torch.float64) + 0.5) * (2 * torch.pi / 64)
    circle = torch.stack([angle.cos(), angle.sin()], dim=-1)
    if spatial_dims == 2:
        directions, area = circle, 2 * torch.pi
    else:
        cosine = (torch.arange(400, dtype=torch.float64) + 0.5) / 200 - 1
        sine = (1 - cosine**2).sqrt()
        directions = torch.cat([sine[:, None, None] * circle, cosine[:, None, None].expand(-1, 64, 1)], dim=-1)
        area = 4 * torch.pi
    profile = torch.einsum("...i,ij,...j->...", directions, difference, directions)
    integral = area * profile.square().mean()
    field = (tensor.reshape(1, spatial_dims, spatial_dims, *[1] * spatial_dims) for tensor in (first, second))
    distance = tensor_distance(*field, kind=kind)
    torch.testing.assert_close(distance.square().squeeze(), integral, rtol=1e-4, atol=1e-9)


def test_published_j_of_an_object_in_one_image_only_is_zero_on_its_edge_alone():
    both, one, other_edge, common_edge = discs()
    joint = JointSaliencyBlock(2, kind="published")(both, one).joint_saliency[0, 0]
    assert joint[other_edge].max() < 1e-6
    assert joint[common_edge].mean() == pytest.approx(0.77, abs=0.01)


def test_published_j_does_not_see_that_two_crossing_edges_are_orthogonal():
    joint = JointSaliencyBlock(2, kind="published")(*straight_edges()).joint_saliency[0, 0]
    assert joint[44:53, 44:53].max() == 1.0


def test_published_j_falls_with_the_square_of_contrast():
    rows = straight_edges()[0]
    weak = torch.cat([rows, 0.25 * rows], dim=-1)
    joint = JointSaliencyBlock(2, kind="published")(weak, weak).joint_saliency[0, 0]
    ratio = joint[:, 144].max() / joint[:, 48].max()
    assert ratio == pytest.approx(1 / 16, abs=1e-3)


def test_published_j_has_a_double_ridge_across_an_edge():
    _, one, _, _ = discs()
    joint = JointSaliencyBlock(2, kind="published")(one, one).joint_saliency[0, 0]
    across = joint[48, 40:64]
    valley = across[18 - 1 : 18 + 2].min()
    assert across[14:18].max() == pytest.approx(0.93, abs=0.03)
    assert valley == pytest.approx(0.57, abs=0.05)
    assert across[19:23].max() == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize(("kind", "factor"), [("full", 0.95335), ("deviatoric", 24 / 26)])
def test_regional_saliency_of_a_flat_3d_tensor_is_a_known_multiple_of_the_2d_one(kind, factor):
    image = smooth_noise(2, seed=3)
    flat = image.unsqueeze(-1).expand(-1, -1, -1, -1, 12)
    plane = regional_saliency(
        structure_tensor(image, formula="published"), "published" if kind == "deviatoric" else kind
    )
    space = regional_saliency(structure_tensor(flat, formula="published"), kind)[..., 6]  # away from the ends
    torch.testing.assert_close(space, factor * plane, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(("degrees", "similarity"), [(10, 0.73), (20, 0.29), (30, 0.07), (90, 0.0)])
def test_turned_edges_lose_trust_as_tabled(degrees, similarity):
    """Two equal edges at the level of the quantile: the trace of the normalised tensor is 1 / 1.1."""
    angle = torch.tensor(degrees * torch.pi / 180)
    directions = torch.stack([torch.tensor([1.0, 0.0]), torch.stack([angle.cos(), angle.sin()])])
    tensors = (directions[:, :, None] * directions[:, None, :] / 1.1).reshape(2, 1, 2, 2, 1, 1)
    distance = tensor_distance(*tensors, kind="full")
    assert torch.exp(-distance.square() / (2 * 0.35**2)).item() == pytest.approx(similarity, abs=0.006)


def test_the_trust_map_separates_missing_turned_flat_and_matched():
    both, one, other_edge, common_edge = discs()
    maps = JointSaliencyBlock(2)(both, one)
    assert maps.joint_saliency[0, 0][other_edge].max() < 1e-6
    assert maps.trust[0, 0][other_edge].max() < 0.15  # k / (s + k), 0.13 at s = 1
    assert maps.trust[0, 0][common_edge].min() > 0.9
    assert maps.joint_saliency[0, 0][common_edge].mean() > 0.9
    assert maps.trust[0, 0][80:, :40].min() > 0.99  # flat in both
    assert maps.joint_saliency[0, 0][80:, :40].max() < 0.05
    crossing = JointSaliencyBlock(2)(*straight_edges())
    assert crossing.trust[0, 0, 46:51, 46:51].max() < 0.15
    assert crossing.joint_saliency[0, 0, 46:51, 46:51].max() < 0.01


def test_the_trust_map_of_volumes_does_the_same():
    common, other = distance_to((24, 20, 22), 3, 48) - 9, distance_to((12, 38, 36), 3, 48) - 5
    maps = JointSaliencyBlock(3)(logistic(common) + logistic(other), logistic(common))
    assert maps.trust[0, 0][other.abs() < 1].max() < 0.16
    assert maps.joint_saliency[0, 0][other.abs() < 1].max() < 1e-6
    assert maps.trust[0, 0][common.abs() < 1].min() > 0.9
    assert maps.trust[0, 0, 42:, :8, :8].min() > 0.99  # flat in both
    planes = [
        logistic(torch.arange(48.0, dtype=torch.float64) - 24)[0, 0].reshape(shape)
        for shape in ((48, 1, 1), (1, 48, 1))
    ]
    crossing = JointSaliencyBlock(3)(*(plane.expand(1, 1, 48, 48, 48) for plane in planes))
    assert crossing.trust[0, 0, 22:27, 22:27, 10:38].max() < 0.16


# Properties


@both_dimensions
@every_setting
def test_every_map_is_bounded_and_identical_images_are_trusted_everywhere(spatial_dims, setting):
    block = JointSaliencyBlock(spatial_dims, **setting)
    fixed, warped = pair(spatial_dims)
    maps = block(fixed, warped)
    for values in (maps.joint_saliency, maps.trust):
        assert values.shape == fixed.shape
        assert values.min() >= 0
        assert values.max() <= 1
    assert maps.trust.min() > 0
    same = block(fixed, fixed)
    torch.testing.assert_close(same.trust, torch.ones_like(fixed))
    assert same.mismatch.abs().max() == 0


@both_dimensions
@every_setting
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_and_identical_images_have_finite_values_and_gradients(spatial_dims, setting, dtype):
    block = JointSaliencyBlock(spatial_dims, **setting)
    noise = smooth_noise(spatial_dims, seed=2, dtype=dtype)
    constant = torch.full_like(noise, 1000.3)
    dot = torch.zeros_like(noise)
    dot[..., 4, 4] = 3.0  # flat nearly everywhere: the quantile is zero
    for fixed, warped in [
        (constant, constant),
        (constant, -constant),
        (constant, noise),
        (noise, constant),
        (noise, noise),
        (dot, dot),
        (dot, noise),
    ]:
        images = [fixed.clone().requires_grad_(), warped.clone().requires_grad_()]
        maps = block(*images)
        gradients = torch.autograd.grad(sum(values.sum() for values in maps), images)
        for values in (*maps, *gradients):
            assert values.isfinite().all()
    for other in (constant, -constant):
        flat = block(constant, other)
        assert flat.joint_saliency.abs().max() == 0
        torch.testing.assert_close(flat.trust, torch.ones_like(noise))


@both_dimensions
@every_setting
def test_autograd_agrees_with_finite_differences(spatial_dims, setting):
    fixed, warped = (image[..., :5, :6] for image in pair(spatial_dims, seed=8))
    if spatial_dims == 3:
        fixed, warped = fixed[:, :, :4], warped[:, :, :4]
    block = JointSaliencyBlock(spatial_dims, **setting)
    images = (fixed.clone().requires_grad_(), warped.clone().requires_grad_())
    assert torch.autograd.gradcheck(block, images, fast_mode=True)


@both_dimensions
@every_setting
def test_a_batch_equals_its_members_one_by_one(spatial_dims, setting):
    fixed, warped = pair(spatial_dims, batch=3)
    scale = torch.tensor([1.0, 100.0, 0.01], dtype=torch.float64).reshape(-1, *[1] * (spatial_dims + 1))
    block = JointSaliencyBlock(spatial_dims, **setting)
    together = block(fixed * scale, warped * scale)
    for member in range(3):
        alone = block((fixed * scale)[member, None], (warped * scale)[member, None])
        assert_same_maps(type(together)(*(values[member, None] for values in together)), alone)


@both_dimensions
@every_setting
def test_swapping_the_images_swaps_their_saliencies_and_changes_nothing_else(spatial_dims, setting):
    fixed, warped = pair(spatial_dims)
    block = JointSaliencyBlock(spatial_dims, **setting)
    there, back = block(fixed, warped), block(warped, fixed)
    swapped = back._replace(saliency_fixed=back.saliency_warped, saliency_warped=back.saliency_fixed)
    assert_same_maps(there, swapped)


@both_dimensions
@every_setting
def test_an_offset_and_an_inversion_of_contrast_change_nothing(spatial_dims, setting):
    fixed, warped = pair(spatial_dims)
    block = JointSaliencyBlock(spatial_dims, **setting)
    expected = block(fixed, warped)
    assert_same_maps(block(fixed + 1000.0, warped), expected, rtol=1e-6, atol=1e-9)  # rounding of the sum
    assert_same_maps(block(fixed, 3.0 - warped), expected, rtol=1e-6, atol=1e-9)


@both_dimensions
@every_setting
def test_scaling_both_images_alike_changes_neither_joint_saliency_nor_trust(spatial_dims, setting):
    fixed, warped = pair(spatial_dims)
    block = JointSaliencyBlock(spatial_dims, **setting)
    one, other = block(fixed, warped), block(40.0 * fixed, 40.0 * warped)
    torch.testing.assert_close(one.joint_saliency, other.joint_saliency)
    torch.testing.assert_close(one.trust, other.trust)


@both_dimensions
@recommended
@pytest.mark.parametrize("contrast", [0.25, 1e-4])
def test_the_contrast_of_one_whole_image_does_not_matter(spatial_dims, setting, contrast):
    fixed, warped = pair(spatial_dims)
    block = JointSaliencyBlock(spatial_dims, **setting)
    assert_same_maps(block(fixed, contrast * warped), block(fixed, warped))


@both_dimensions
@every_setting
def test_transposing_both_images_transposes_every_map(spatial_dims, setting):
    fixed, warped = pair(spatial_dims)
    block = JointSaliencyBlock(spatial_dims, **setting)
    expected = block(fixed, warped)
    turned = block(fixed.transpose(-1, -2), warped.transpose(-1, -2))
    assert_same_maps(type(turned)(*(values.transpose(-1, -2) for values in turned)), expected)


@both_dimensions
@recommended
def test_flipping_both_images_flips_every_map(spatial_dims, setting):
    fixed, warped = pair(spatial_dims)
    block = JointSaliencyBlock(spatial_dims, **setting)
    expected = block(fixed, warped)
    for axis in range(2, 2 + spatial_dims):
        flipped = block(fixed.flip(axis), warped.flip(axis))
        assert_same_maps(type(flipped)(*(values.flip(axis) for values in flipped)), expected)


@recommended
def test_a_3d_pair_constant_along_one_axis_agrees_with_the_2d_pair(setting):
    fixed, warped = pair(2)
    plane = JointSaliencyBlock(2, **setting)(fixed, warped)
    expanded = (image.unsqueeze(2).expand(-1, -1, 10, -1, -1) for image in (fixed, warped))
    space = JointSaliencyBlock(3, **setting)(*expanded)
    # Saliency agrees to the order statistic of ten times the voxels. The constants of the distance differ
    # by 16/15, which takes at most exp(-1) / 15 = 0.025 from similarity, hence from the other two.
    for name, tolerance in [("saliency_fixed", 0.01), ("joint_saliency", 0.035), ("trust", 0.035)]:
        values = getattr(space, name)
        torch.testing.assert_close(values, values[:, :, :1].expand_as(values))
        torch.testing.assert_close(values[:, :, 5], getattr(plane, name), rtol=0, atol=tolerance)


def test_a_published_3d_pair_constant_along_one_axis_has_the_joint_saliency_of_the_2d_pair():
    fixed, warped = pair(2)
    plane = JointSaliencyBlock(2, kind="published")(fixed, warped)
    expanded = (image.unsqueeze(2).expand(-1, -1, 14, -1, -1) for image in (fixed, warped))
    space = JointSaliencyBlock(3, kind="published")(*expanded)
    low, high = (extremum(space.mismatch[:, :, 7]) for extremum in (torch.min, torch.max))
    relative = (space.mismatch[:, :, 7] - low) / (high - low)  # the zeros outside dim the ends, so scale one slice
    joint = torch.minimum(space.saliency_fixed, space.saliency_warped)[:, :, 7] / (1 + relative)
    joint = (joint - joint.min()) / (joint.max() - joint.min())
    torch.testing.assert_close(joint, plane.joint_saliency, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_the_same_anatomy_sampled_anisotropically_has_nearly_the_same_map(shift):
    """A ball on a fine grid and on one of half the resolution along the first axis."""
    fine, coarse = [
        [255 * torch.sigmoid(6 - sampled / 2)[None, None] for sampled in sampled_pair]
        for sampled_pair in (
            [distance_to((20 + s, 22, 18), 3, 40) for s in (0.0, shift)],
            [distance_to((20 + s, 22, 18), 3, 40)[::2] for s in (0.0, shift)],
        )
    ]
    expected = JointSaliencyBlock(3, sigma=2.0, inner_sigma=1.4)(*fine)
    found = JointSaliencyBlock(3, sigma=2.0, inner_sigma=1.4, spacing=(2.0, 1.0, 1.0))(*coarse)
    for name in ("joint_saliency", "saliency_fixed", "trust"):
        values, reference = getattr(found, name), getattr(expected, name)[:, :, ::2]
        assert (values - reference).abs().max() < 0.1, name
        assert (values - reference).abs().mean() < 0.01, name


def test_the_gradient_of_a_ramp_is_in_intensity_per_millimetre():
    ramp = torch.arange(40.0, dtype=torch.float64).reshape(1, 1, 40, 1).expand(2, 1, 40, 30)
    for thickness in (0.5, 2.0, 20.0):  # kernels far narrower than a voxel become the central difference
        tensor = structure_tensor(ramp, spacing=(thickness, 1.5))[:, :, :, 20, 15]
        expected = torch.tensor([[thickness**-2, 0.0], [0.0, 0.0]], dtype=torch.float64).expand(2, 2, 2)
        torch.testing.assert_close(tensor, expected)


@both_dimensions
def test_the_root_mean_square_saliency_is_that_of_the_distances(spatial_dims):
    tensor = structure_tensor(smooth_noise(spatial_dims, seed=4, batch=2))
    found = regional_saliency(tensor, "full", average="root_mean_square")
    padding = [1] * (2 * spatial_dims)
    flat = tensor.flatten(1, 2)
    padded = torch.nn.functional.pad(flat, padding, mode="replicate")
    total = torch.zeros_like(found)
    for offset in torch.cartesian_prod(*[torch.arange(3)] * spatial_dims).tolist():
        window = padded
        for axis, start in enumerate(offset):
            window = window.narrow(2 + axis, start, flat.shape[2 + axis])
        total += tensor_distance(tensor, window.reshape(tensor.shape), "full").square()
    torch.testing.assert_close(found, (total / (3**spatial_dims - 1)).sqrt())
    assert (found >= regional_saliency(tensor, "full") - 1e-12).all()


@both_dimensions
@every_setting
def test_the_block_scripts_and_gives_the_same_maps_and_gradient(spatial_dims, setting):
    block = JointSaliencyBlock(spatial_dims, **setting)
    scripted = torch.jit.script(block)
    fixed, warped = pair(spatial_dims, batch=2, dtype=torch.float32)
    expected = block(fixed, warped)
    gradients = []
    for module in (block, scripted):
        image = warped.clone().requires_grad_()
        module(fixed, image).trust.sum().backward()
        gradients.append(image.grad)
    for _ in range(3):  # the script is optimised on the way
        assert_same_maps(expected, scripted(fixed, warped))
    torch.testing.assert_close(*gradients)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = scripted(fixed, warped)
    # In a script autocast is escaped through float64; near-zero distances keep fewer digits in float32.
    assert_same_maps(expected, inside, rtol=1e-3, atol=1e-3)
    assert all(values.dtype == torch.float32 for values in inside)


@both_dimensions
@every_setting
def test_autocast_and_half_precision_are_computed_in_float32(spatial_dims, setting):
    block = JointSaliencyBlock(spatial_dims, **setting)
    fixed, warped = pair(spatial_dims, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = block(fixed, warped)
        tensor = structure_tensor(fixed)
    torch.testing.assert_close(tensor, structure_tensor(fixed), rtol=0, atol=0)
    assert_same_maps(inside, block(fixed, warped), rtol=0, atol=0)
    half = block(fixed.bfloat16(), warped.bfloat16())
    assert_same_maps(half, block(fixed.bfloat16().float(), warped.bfloat16().float()), rtol=0, atol=0)


@both_dimensions
def test_float32_agrees_with_float64_far_from_zero(spatial_dims):
    fixed, warped = pair(spatial_dims)
    exact = JointSaliencyBlock(spatial_dims)(fixed, warped)
    rounded = JointSaliencyBlock(spatial_dims)(fixed.float() + 1000.0, warped.float())
    # 1000 + noise keeps 6e-5 of the noise, whose gradient is of order one.
    torch.testing.assert_close(rounded.trust.double(), exact.trust, rtol=0, atol=5e-3)


# Refusals


def test_images_that_do_not_match_are_refused():
    block = JointSaliencyBlock(2)
    image = torch.zeros(2, 1, 5, 6)
    with pytest.raises(ValueError, match=r"fixed is \[2, 1, 5, 6\], warped is \[2, 1, 5, 7\]"):
        block(image, torch.zeros(2, 1, 5, 7))
    with pytest.raises(ValueError, match="with 2 spatial sizes"):
        block(image.unsqueeze(-1), image.unsqueeze(-1))
    with pytest.raises(ValueError, match=r"must both be \(B, 1, \*S\)"):
        block(image.expand(2, 3, 5, 6), image.expand(2, 3, 5, 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3"),
        ({"kind": "whole"}, "kind must be one of full, deviatoric, published"),
        ({"formula": "thesis"}, "formula must be one of recommended, published"),
        ({"saliency": "mean"}, "saliency must be one of energy, regional"),
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"inner_sigma": -1.0}, "inner_sigma must be positive"),
        ({"trust_offset": 0.0}, "trust_offset must be positive"),
        ({"spacing": (1.0, 2.0)}, "spacing must be 3 positive lengths"),
        ({"spacing": (1.0, 2.0, 0.0)}, "spacing must be 3 positive lengths"),
    ],
)
def test_a_block_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        JointSaliencyBlock(**{"spatial_dims": 3, **change})


def test_fields_of_the_wrong_shape_are_refused():
    tensor = torch.zeros(2, 2, 2, 5, 6)
    with pytest.raises(ValueError, match=r"image must be \(B, 1, \*S\)"):
        structure_tensor(torch.zeros(5, 6))
    with pytest.raises(ValueError, match="must have one shape"):
        tensor_distance(tensor, tensor[..., 1:])
    with pytest.raises(ValueError, match=r"first must be \(B, D, D, \*S\)"):
        tensor_distance(tensor[:, :1], tensor[:, :1])
    with pytest.raises(ValueError, match="kind must be one of"):
        tensor_distance(tensor, tensor, kind="riemann")
    with pytest.raises(ValueError, match=r"tensor must be \(B, D, D, \*S\)"):
        regional_saliency(tensor[0])
    with pytest.raises(ValueError, match="average must be one of mean, root_mean_square"):
        regional_saliency(tensor, average="median")
