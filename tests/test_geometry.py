import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.networks.blocks import Warp
from scipy import ndimage

from monai_jsm.geometry import (
    carry_points,
    compose,
    compose_world,
    exponentiate,
    identity_grid,
    inverse_ddf,
    invert_points,
    itk_displacement,
    jacobian_determinant,
    linear_ddf,
    sample,
    voxel_to_world,
    warp,
    world_to_voxel,
)

SHAPES = {2: [9, 11], 3: [7, 8, 9]}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def oblique_affine(spatial_dims: int, seed: int) -> torch.Tensor:
    rotation, _ = torch.linalg.qr(
        torch.randn(spatial_dims, spatial_dims, generator=generator(seed), dtype=torch.float64)
    )
    affine = torch.eye(spatial_dims + 1, dtype=torch.float64)
    affine[:-1, :-1] = rotation @ torch.diag(torch.tensor([0.9, -1.3, 2.5], dtype=torch.float64)[:spatial_dims])
    affine[:-1, -1] = torch.tensor([-40.0, 12.5, 7.0], dtype=torch.float64)[:spatial_dims]
    return affine


def matrix_ddf(matrix: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """The field with ``id + ddf`` the linear map of ``matrix``, in voxels."""
    return linear_ddf(torch.block_diag(matrix, matrix.new_ones(1, 1)), torch.eye(len(shape) + 1), shape)


@given(spatial_dims=st.sampled_from([2, 3]), seed=st.integers(0, 2**16))
def test_jacobian_of_a_linear_map_is_its_determinant(spatial_dims, seed):
    matrix = torch.randn(spatial_dims, spatial_dims, generator=generator(seed), dtype=torch.float64)
    determinant = jacobian_determinant(matrix_ddf(matrix, SHAPES[spatial_dims]))
    torch.testing.assert_close(determinant, torch.linalg.det(matrix).expand_as(determinant))


@given(spatial_dims=st.sampled_from([2, 3]), seed=st.integers(0, 2**16))
def test_world_coordinates_and_back_are_the_same_voxels(spatial_dims, seed):
    points = 50 * torch.randn(2, 5, spatial_dims, generator=generator(seed), dtype=torch.float64)
    affine = oblique_affine(spatial_dims, seed)
    torch.testing.assert_close(world_to_voxel(voxel_to_world(points, affine), affine), points)


def test_the_affine_of_a_2d_file_is_cut_to_its_plane():
    affine = torch.diag(torch.tensor([2.0, 3.0, 9.0, 1.0]))
    affine[:2, 3] = torch.tensor([5.0, 6.0])
    assert voxel_to_world(torch.tensor([[1.0, 1.0]]), affine).tolist() == [[7.0, 9.0]]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_warp_is_monais_warp_forward_and_gradient(spatial_dims):
    shape = SHAPES[spatial_dims]
    image = torch.rand(2, 3, *shape, generator=generator(0), requires_grad=True)
    ddf = (4 * torch.randn(2, spatial_dims, *shape, generator=generator(1))).requires_grad_()
    ours, theirs = warp(image, ddf), Warp(padding_mode="border")(image, ddf)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # float32 of normalised coordinates
    cotangent = torch.rand(ours.shape, generator=generator(2))
    for a, b in zip(
        torch.autograd.grad(ours, (image, ddf), cotangent),
        torch.autograd.grad(theirs, (image, ddf), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_sampling_agrees_with_scipy():
    image = torch.rand(1, 1, 6, 7, 8, generator=generator(3), dtype=torch.float64)
    at = torch.rand(1, 3, 4, 5, 3, generator=generator(4), dtype=torch.float64) * 12 - 3
    expected = ndimage.map_coordinates(image[0, 0].numpy(), at[0].numpy(), order=1, mode="nearest")
    torch.testing.assert_close(sample(image, at)[0, 0], torch.as_tensor(expected))


def test_composition_of_linear_maps_is_their_product():
    outer, inner = (
        torch.eye(2, dtype=torch.float64) + 0.05 * torch.randn(2, 2, dtype=torch.float64, generator=generator(s))
        for s in (5, 6)
    )
    shape = [12, 10]
    composed = compose(matrix_ddf(outer, shape), matrix_ddf(inner, shape))
    inside = (slice(None), slice(None), slice(2, 9), slice(2, 8))  # beyond the border the field is repeated
    torch.testing.assert_close(composed[inside], matrix_ddf(outer @ inner, shape)[inside])


def smooth_field(seed: int, longest: float) -> torch.Tensor:
    """A smooth field on 48x44 that vanishes at the border."""
    weights = torch.randn(2, 2, 2, generator=generator(seed), dtype=torch.float64)
    rows, columns = (torch.linspace(0, torch.pi, n, dtype=torch.float64) for n in (48, 44))
    waves = [torch.outer(torch.sin(a * rows), torch.sin(b * columns)) for a in (1, 2) for b in (1, 2)]
    field = torch.einsum("dk,krc->drc", weights.flatten(1), torch.stack(waves))[None]
    return longest * field / field.abs().max()


def test_pulling_through_a_composition_is_pulling_through_the_outer_field_first():
    rows, columns = identity_grid([48, 44], torch.zeros((), dtype=torch.float64))[0]
    image = (torch.sin(rows / 9) * torch.cos(columns / 11))[None, None]
    outer, inner = smooth_field(7, 3.0), smooth_field(8, 2.0)
    once, twice = warp(image, compose(outer, inner)), warp(warp(image, outer), inner)
    torch.testing.assert_close(once, twice, rtol=0, atol=0.01)  # one linear interpolation against two
    assert (once - warp(image, compose(inner, outer))).abs().max() > 0.02


@given(spatial_dims=st.sampled_from([2, 3]), seed=st.integers(0, 2**16))
def test_exponential_of_a_linear_velocity_is_the_matrix_exponential(spatial_dims, seed):
    matrix = 0.02 * torch.randn(spatial_dims, spatial_dims, generator=generator(seed), dtype=torch.float64)
    shape = [15] * spatial_dims
    centre = 7.0
    velocity = torch.einsum("rc,bc...->br...", matrix, identity_grid(shape, matrix) - centre)
    expected = torch.einsum(
        "rc,bc...->br...",
        torch.linalg.matrix_exp(matrix) - torch.eye(spatial_dims),
        identity_grid(shape, matrix) - centre,
    )
    inside = (slice(None), slice(None), *[slice(4, 11)] * spatial_dims)
    torch.testing.assert_close(exponentiate(velocity, steps=10)[inside], expected[inside], rtol=0, atol=1e-3)


def test_exponentials_of_opposite_velocities_undo_each_other_and_do_not_fold():
    velocity = smooth_field(8, 5.0)
    forward, backward = exponentiate(velocity), exponentiate(-velocity)
    assert compose(forward, backward).abs().max() < 0.05  # kinks of the linear interpolation
    assert jacobian_determinant(forward).min() > 0


def test_points_are_pushed_to_where_the_image_is_pulled_from():
    ddf = smooth_field(9, 4.0)
    points = 8 + 24 * torch.rand(1, 5, 2, generator=generator(10), dtype=torch.float64)
    where_read = sample(identity_grid([48, 44], ddf) + ddf, points.movedim(-1, 1).unsqueeze(-1))  # (1, D, N, 1)
    torch.testing.assert_close(carry_points(points, ddf), where_read.squeeze(-1).movedim(1, -1))


def test_carried_points_keep_the_dtype_of_the_points():
    points = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64)
    assert carry_points(points, torch.zeros(1, 2, 5, 6)).dtype == torch.float64


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_itk_displacement_is_the_difference_of_world_positions_in_lps(spatial_dims):
    affine = oblique_affine(spatial_dims, 11)
    shape = SHAPES[spatial_dims]
    ddf = torch.randn(1, spatial_dims, *shape, generator=generator(12), dtype=torch.float64)
    grid = identity_grid(shape, ddf)
    ends = [voxel_to_world(g.flatten(2).movedim(1, -1), affine) for g in (grid, grid + ddf)]
    to_lps = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)[:spatial_dims]
    expected = ((ends[1] - ends[0]) * to_lps).movedim(-1, 1).reshape(ddf.shape)
    torch.testing.assert_close(itk_displacement(ddf, affine), expected)


def random_theta(spatial_dims: int, seed: int) -> torch.Tensor:
    """A rotation of up to some 40 degrees about each axis, unequal scales and a shift of the world."""
    spin = 0.7 * (2 * torch.rand(spatial_dims, spatial_dims, generator=generator(seed), dtype=torch.float64) - 1)
    theta = torch.eye(spatial_dims + 1, dtype=torch.float64)
    scales = torch.tensor([1.2, 0.8, 1.1], dtype=torch.float64)[:spatial_dims]
    theta[:-1, :-1] = torch.matrix_exp((spin - spin.T) / 2) @ torch.diag(scales)
    theta[:-1, -1] = torch.tensor([3.0, -4.0, 2.0], dtype=torch.float64)[:spatial_dims]
    return theta


def bent_field(spatial_dims: int, seed: int, longest: float) -> torch.Tensor:
    """A diffeomorphic ddf on 48x44 or 26x24x22 that vanishes at the border."""
    shape = [48, 44] if spatial_dims == 2 else [26, 24, 22]
    weights = torch.randn(4, spatial_dims, generator=generator(seed), dtype=torch.float64)
    velocity = torch.zeros(1, spatial_dims, *shape, dtype=torch.float64)
    for waves, weight in zip(((1, 2, 1), (2, 1, 2), (1, 1, 2), (2, 2, 1)), weights, strict=True):
        axes = [
            torch.linspace(0, n * torch.pi, size, dtype=torch.float64) for n, size in zip(waves, shape, strict=False)
        ]
        bump = torch.stack(torch.meshgrid(axes, indexing="ij")).sin().prod(0)
        velocity += weight.reshape(1, -1, *[1] * spatial_dims) * bump
    return exponentiate(longest * velocity / velocity.abs().max(), steps=9)


def lipschitz(ddf: torch.Tensor) -> float:
    dims = ddf.shape[1]
    gradient = torch.stack(torch.gradient(ddf, dim=list(range(2, 2 + dims))), dim=-1).movedim(1, -2)
    return float(torch.linalg.matrix_norm(gradient, ord=2).max())


def random_voxels(ddf: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    last = torch.tensor(ddf.shape[2:], dtype=torch.float64) - 1
    return torch.rand(len(ddf), count, ddf.shape[1], generator=generator(seed), dtype=torch.float64) * last


@given(spatial_dims=st.sampled_from([2, 3]), seed=st.integers(0, 2**16))
def test_the_field_of_a_linear_map_carries_the_world_as_the_map_does(spatial_dims, seed):
    theta, affine = random_theta(spatial_dims, seed), oblique_affine(spatial_dims, seed)
    ddf = linear_ddf(theta, affine, SHAPES[spatial_dims])
    voxels = identity_grid(SHAPES[spatial_dims], ddf).flatten(2)[0].T
    world = voxel_to_world(voxels + ddf.flatten(2)[0].T, affine)
    expected = voxel_to_world(voxels, affine) @ theta[:-1, :-1].T + theta[:-1, -1]
    torch.testing.assert_close(world, expected)


@given(spatial_dims=st.sampled_from([2, 3]), seed=st.integers(0, 2**16))
def test_a_linear_map_after_a_field_carries_points_as_one_after_the_other(spatial_dims, seed):
    theta, affine = random_theta(spatial_dims, seed), oblique_affine(spatial_dims, seed)
    shape = SHAPES[spatial_dims]
    ddf = torch.randn(2, spatial_dims, *shape, generator=generator(seed), dtype=torch.float64)
    points = random_voxels(ddf, 5, seed)
    one_by_one = voxel_to_world(voxel_to_world(carry_points(points, ddf), affine), theta)
    at_once = voxel_to_world(carry_points(points, compose_world(ddf, theta, affine)), affine)
    torch.testing.assert_close(at_once, one_by_one)


def test_a_linear_map_in_float32_keeps_the_precision_of_the_displacement():
    affine = oblique_affine(3, 5)
    affine[:-1, -1] *= 100  # metres from the world's origin
    theta = torch.eye(4, dtype=torch.float64)
    theta[0, 3] = 0.125
    exact = linear_ddf(theta, affine, [5, 6, 7])
    torch.testing.assert_close(linear_ddf(theta.float(), affine, [5, 6, 7]).double(), exact, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("spatial_dims", "longest", "steepness"), [(2, 15.0, 2.0), (2, 32.0, 8.0), (3, 6.0, 2.0)])
def test_points_carried_through_a_steep_field_are_carried_back(spatial_dims, longest, steepness):
    ddf = bent_field(spatial_dims, 13, longest)
    assert lipschitz(ddf) > steepness  # plain fixed points x = y - ddf(x) need less than 1
    assert jacobian_determinant(ddf).min() > 0
    points = random_voxels(ddf, 4000, 14)
    carried = carry_points(points, ddf)
    back, error = invert_points(carried, ddf)
    torch.testing.assert_close(
        error, torch.linalg.vector_norm(carry_points(back, ddf) - carried, dim=-1), rtol=0, atol=1e-9
    )
    assert (error < 1e-3).double().mean() > 0.999
    assert (torch.linalg.vector_norm(back - points, dim=-1) < 0.02).double().mean() > 0.99  # the error over the stretch


@given(spatial_dims=st.sampled_from([2, 3]), seed=st.integers(0, 2**16))
def test_points_carried_through_a_linear_field_are_carried_back_at_once(spatial_dims, seed):
    affine, shape = oblique_affine(spatial_dims, seed), SHAPES[spatial_dims]
    ddf = linear_ddf(random_theta(spatial_dims, seed), affine, shape)
    points = random_voxels(ddf, 5, seed)
    back, error = invert_points(carry_points(points, ddf), ddf, iterations=0)
    torch.testing.assert_close(back, points)
    assert error.max() < 1e-9


def test_a_batch_is_inverted_as_its_members_one_by_one():
    ddf = torch.cat([bent_field(2, seed, 7.0) for seed in (15, 16)])
    points = random_voxels(ddf, 30, 17)
    both = invert_points(points, ddf)
    for number in range(2):
        alone = invert_points(points[number : number + 1], ddf[number : number + 1])
        for together, single in zip(both, alone, strict=True):
            torch.testing.assert_close(together[number], single[0])


def test_many_points_are_inverted_in_parts_as_few_are(monkeypatch):
    ddf = bent_field(2, 15, 7.0)
    points = random_voxels(ddf, 31, 18)
    whole = invert_points(points, ddf)
    monkeypatch.setattr("monai_jsm.geometry._POINTS_AT_ONCE", 7)
    for together, parts in zip(whole, invert_points(points, ddf), strict=True):
        torch.testing.assert_close(together, parts)
    assert invert_points(points[:, :0], ddf)[1].shape == (1, 0)


def test_inverted_points_keep_the_dtype_of_the_points():
    found = invert_points(torch.ones(1, 3, 2, dtype=torch.float64), torch.zeros(1, 2, 5, 6))
    assert {tensor.dtype for tensor in found} == {torch.float64}


def test_the_error_tells_how_far_a_point_is_missed_in_a_folding_field():
    ddf = 5 * torch.randn(1, 2, 24, 26, generator=generator(25), dtype=torch.float64)
    wanted = random_voxels(ddf, 500, 26)
    found, error = invert_points(wanted, ddf, iterations=6)
    missed = torch.linalg.vector_norm(carry_points(found, ddf) - wanted, dim=-1)
    torch.testing.assert_close(error, missed, rtol=0, atol=1e-9)
    assert error.max() > 0.1


MOVING_SHAPES = {2: [37, 52], 3: [21, 27, 24]}


def moving_affine_around(spatial_dims: int, centre: torch.Tensor) -> torch.Tensor:
    """An affine of another orientation and spacing whose grid has ``centre`` in its middle."""
    affine = oblique_affine(spatial_dims, 99)
    affine[:-1, 0] *= -1.2
    middle = (torch.tensor(MOVING_SHAPES[spatial_dims], dtype=torch.float64) - 1) / 2
    affine[:-1, -1] = centre - affine[:-1, :-1] @ middle
    return affine


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_inverse_on_the_moving_grid_leads_back_through_the_total_field(spatial_dims, dtype):
    affine = oblique_affine(spatial_dims, 19)
    total = compose_world(bent_field(spatial_dims, 20, 6.0), random_theta(spatial_dims, 21), affine)
    middle = (torch.tensor(total.shape[2:], dtype=torch.float64) - 1) / 2
    centre = voxel_to_world(carry_points(middle[None, None], total)[0], affine)[0]
    moving_affine, moving_shape = moving_affine_around(spatial_dims, centre), MOVING_SHAPES[spatial_dims]
    inverse, error = inverse_ddf(total.to(dtype), affine, moving_affine, moving_shape)
    assert inverse.shape == (1, spatial_dims, *moving_shape)
    assert error.shape == (1, 1, *moving_shape)
    voxels = identity_grid(moving_shape, total)
    start, found = (voxel_to_world(grid.flatten(2)[0].T.double(), moving_affine) for grid in (voxels, voxels + inverse))
    fixed = world_to_voxel(found, affine)
    carried = voxel_to_world(carry_points(fixed[None], total)[0], affine)
    told = error.flatten()
    known = told.isfinite()
    assert 0.2 < known.double().mean() < 1
    miss = torch.linalg.vector_norm(carried - start, dim=-1)[known]
    assert miss.max() < 1e-3
    torch.testing.assert_close(told[known].double(), miss, rtol=0, atol=2e-4)  # coordinates in float32
    last = torch.tensor(total.shape[2:]) - 1
    outside = torch.maximum(-fixed, fixed - last).amax(dim=-1)
    assert known[outside < -1e-3].all()
    assert not known[outside > 0.5 + 1e-3].any()
    assert known[(outside > 0) & (outside < 0.5)].any()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_linear_registration_is_undone_far_outside_of_the_fixed_grid_too(spatial_dims):
    affine, theta = oblique_affine(spatial_dims, 22), random_theta(spatial_dims, 23)
    moving_affine = moving_affine_around(spatial_dims, torch.full((spatial_dims,), 60.0, dtype=torch.float64))
    shape = MOVING_SHAPES[spatial_dims]
    inverse, _ = inverse_ddf(linear_ddf(theta, affine, SHAPES[spatial_dims]), affine, moving_affine, shape)
    torch.testing.assert_close(inverse, linear_ddf(torch.linalg.inv(theta), moving_affine, shape))


def test_a_flat_3d_field_is_inverted_as_its_2d_one():
    flat = bent_field(2, 24, 7.0)
    deep = torch.zeros(1, 3, *flat.shape[2:], 3, dtype=torch.float64)
    deep[:, :2] = flat[..., None]
    affine_2d, affine_3d = torch.eye(3), torch.eye(4)
    inverse_2d, error_2d = inverse_ddf(flat, affine_2d, affine_2d, [48, 44])
    inverse_3d, error_3d = inverse_ddf(deep, affine_3d, affine_3d, [48, 44, 3])
    torch.testing.assert_close(inverse_3d[:, :2, ..., 1], inverse_2d, rtol=0, atol=1e-3)  # the solvers' tolerance
    assert inverse_3d[:, 2].abs().max() < 1e-4
    assert max(error_2d.max(), error_3d.max()) < 2e-4


def test_a_field_of_a_single_slice_is_inverted():
    flat = bent_field(2, 24, 7.0)
    thin = torch.cat([flat, torch.zeros_like(flat[:, :1])], dim=1)[..., None]
    inverse, error = inverse_ddf(thin, torch.eye(4), torch.eye(4), [48, 44, 1])
    assert error.max() < 1e-3
    assert inverse[:, 2].abs().max() < 1e-4
