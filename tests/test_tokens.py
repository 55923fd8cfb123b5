"""The bijection against slow loops written from the specification's text."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tablet_hf.tokens import latents_to_tokens, slices_to_volumes, tokens_to_latents, volumes_to_slices


def slow_tokens(latents):
    """Cell by cell, slice by slice, channel by channel."""
    _, size, channels, grid, _ = latents.shape
    per_cell = size // grid
    tokens = torch.empty(grid**3, 3 * per_cell * channels)
    for i in range(grid):
        for j in range(grid):
            for k in range(grid):
                for axis, (along, across) in enumerate([(i, (j, k)), (j, (i, k)), (k, (i, j))]):
                    for in_cell in range(per_cell):
                        for channel in range(channels):
                            index = axis * per_cell * channels + in_cell * channels + channel
                            value = latents[axis, per_cell * along + in_cell, channel, *across]
                            tokens[(i * grid + j) * grid + k, index] = value
    return tokens


geometries = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))


@given(geometries, st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_tokens_equal_the_loop_for_any_geometry_and_come_back_exactly(geometry, seed):
    grid, per_cell, channels = geometry
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(3, grid * per_cell, channels, grid, grid, generator=generator)
    tokens = latents_to_tokens(latents)
    assert torch.equal(tokens, slow_tokens(latents))
    assert torch.equal(tokens_to_latents(tokens, grid * per_cell), latents)


@pytest.mark.parametrize(
    ("compression", "channels", "cells", "size"), [(32, 32, 27, 3072), (8, 4, 1728, 96)], ids=["f32c32", "f8c4"]
)
def test_named_geometries_on_a_96_cube(compression, channels, cells, size):
    grid = 96 // compression
    latents = torch.randn(2, 3, 96, channels, grid, grid)
    tokens = latents_to_tokens(latents)
    assert tokens.shape == (2, cells, size)
    assert torch.equal(tokens[1], slow_tokens(latents[1]))
    assert torch.equal(tokens_to_latents(tokens, 96), latents)


def test_any_leading_dimensions_and_dtype():
    latents = torch.randn(2, 5, 3, 4, 2, 2, 2).half()
    tokens = latents_to_tokens(latents)
    assert tokens.dtype == torch.float16
    assert torch.equal(tokens[1, 3], latents_to_tokens(latents[1, 3]))
    assert torch.equal(tokens_to_latents(tokens, 4), latents)


def test_slices_are_the_planes_of_the_volume_and_come_back():
    volume = torch.randn(2, 5, 5, 5)
    slices = volumes_to_slices(volume)
    for index in range(5):
        assert torch.equal(slices[:, 0, index], volume[:, index, :, :])
        assert torch.equal(slices[:, 1, index], volume[:, :, index, :])
        assert torch.equal(slices[:, 2, index], volume[:, :, :, index])
    for axis in range(3):
        assert torch.equal(slices_to_volumes(slices)[:, axis], volume)


def test_a_cell_only_holds_what_lies_in_it():
    """With an encoder that averages f x f pixels, a bright cell of the volume is the only bright token."""
    volume = torch.zeros(4, 4, 4)
    volume[2:, :2, 2:] = 1.0
    latents = torch.nn.functional.avg_pool2d(volumes_to_slices(volume), 2)[:, :, None]
    tokens = latents_to_tokens(latents)
    lit = tokens.abs().sum(-1) > 0
    assert lit.nonzero().tolist() == [[1 * 4 + 0 * 2 + 1]]
    assert torch.equal(tokens[5], torch.ones(6))


@pytest.mark.parametrize("shape", [(3, 96, 32, 3), (2, 96, 32, 3, 3), (3, 95, 32, 3, 3), (3, 96, 32, 3, 4)])
def test_latents_of_another_shape_are_refused_by_name(shape):
    with pytest.raises(ValueError, match=r"Expected latents \(\.\.\., 3, V, C, g, g\)"):
        latents_to_tokens(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(26, 3072), (27, 3071), (125, 3072), (3072,)])
def test_tokens_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="Expected tokens"):
        tokens_to_latents(torch.zeros(shape), 96)


def test_volumes_that_are_no_cubes_are_refused():
    with pytest.raises(ValueError, match="Expected volumes"):
        volumes_to_slices(torch.zeros(4, 5, 4))
    with pytest.raises(ValueError, match="Expected slices"):
        slices_to_volumes(torch.zeros(2, 5, 5, 5))
