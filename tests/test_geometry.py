import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.networks.blocks import Warp
from scipy import ndimage

from monai_jsm.geometry import (
    carry_points,
    compose,
    exponentiate,
    identity_grid,
    itk_displacement,
    jacobian_determinant,
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


def linear_ddf(matrix: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """The field with ``id + ddf`` the linear map of ``matrix``."""
    grid = identity_grid(shape, matrix)
    return torch.einsum("rc,bc...->br...", matrix, grid) - grid


@given(spatial_dims=st.sampled_from([2, 3]), seed=st.integers(0, 2**16))
def test_jacobian_of_a_linear_map_is_its_determinant(spatial_dims, seed):
    matrix = torch.randn(spatial_dims, spatial_dims, generator=generator(seed), dtype=torch.float64)
    determinant = jacobian_determinant(linear_ddf(matrix, SHAPES[spatial_dims]))
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
    composed = compose(linear_ddf(outer, shape), linear_ddf(inner, shape))
    inside = (slice(None), slice(None), slice(2, 9), slice(2, 8))  # beyond the border the field is repeated
    torch.testing.assert_close(composed[inside], linear_ddf(outer @ inner, shape)[inside])


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
