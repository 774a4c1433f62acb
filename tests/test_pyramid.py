import pytest
import torch

from monai_jsm.pyramid import PyramidLevel


@pytest.mark.parametrize(("shape", "pooling"), [((24, 20), (4, 2)), ((16, 12, 9), (4, 2, 1))])
def test_a_linear_field_returns_from_a_level_as_it_went(shape, pooling):
    """Pooled voxels are cell-centred, so only a border of half a voxel of the level, which is repeated, differs."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij")
    ddf = torch.stack([0.1 * axis + 0.3 * axes[0] - 2 for axis in axes])[None]
    level = PyramidLevel(ddf, [1.0] * len(shape), pooling)
    back = level.enlarge(level.shrink(ddf))
    inner = (..., *(slice(p, n - p) for p, n in zip(pooling, shape, strict=True)))
    torch.testing.assert_close(back[inner], ddf[inner])
    assert level.shrink(ddf).shape[2:] == torch.Size(n // p for n, p in zip(shape, pooling, strict=True))


def test_lengths_of_a_level_are_those_of_its_pooled_voxels():
    level = PyramidLevel(torch.zeros(1, 1, 16, 16, 6), [1.0, 1.5, 6.0], (4, 2, 1))
    assert level.edges == [1.0, 0.75, 1.5]
    assert level.smoothing == [1.4, 0.7, 0.0]


def test_the_finest_level_is_the_grid_itself():
    values = torch.rand(1, 2, 7, 6)
    level = PyramidLevel(values, [1.0, 2.0], (1, 1))
    assert level.edges == [1.0, 2.0]
    assert torch.equal(level.enlarge(level.shrink(values)), values)
