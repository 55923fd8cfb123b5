"""Measures of fidelity against loops in numpy."""

import numpy as np
import pytest
import torch

from tablet_hf.evaluation.fidelity import RunningFidelity, psnr


@pytest.fixture
def frames():
    generator = np.random.default_rng(0)
    original = generator.uniform(-1, 1, (6, 4, 5, 3))
    estimate = 0.7 * original + 0.3 * generator.uniform(-1, 1, original.shape)
    mask = generator.uniform(size=original.shape[1:]) < 0.6
    return original, estimate, mask


def in_blocks(original, estimate, mask, sizes):
    running = RunningFidelity(torch.from_numpy(mask))
    for pair in zip(torch.from_numpy(original).split(sizes), torch.from_numpy(estimate).split(sizes), strict=True):
        running.add(*pair)
    return running


def test_psnr_is_that_of_numpy(frames):
    original, estimate, mask = frames
    errors = (original - estimate) ** 2
    tensors = torch.from_numpy(original), torch.from_numpy(estimate)
    inside = 10 * np.log10(4 / errors[:, mask].mean())
    assert psnr(*tensors, 2, torch.from_numpy(mask)) == pytest.approx(inside, abs=1e-9)
    assert psnr(*tensors, 1) == pytest.approx(10 * np.log10(1 / errors.mean()), abs=1e-9)
    assert in_blocks(*frames, [2, 0, 3, 1]).psnr(2) == pytest.approx(inside, abs=1e-9)
    assert in_blocks(original, original, mask, [6]).psnr(1) == float("inf")


def test_psnr_of_a_known_error():
    assert psnr(torch.zeros(10), torch.full((10,), 0.2), peak=2) == pytest.approx(20, abs=1e-5)


@pytest.mark.parametrize("sizes", [[6], [1] * 6, [2, 0, 3, 1]])
@pytest.mark.parametrize("offset", [0, 10_000])
def test_temporal_correlation_is_that_of_numpy_voxel_by_voxel(frames, sizes, offset):
    original, estimate, mask = frames[0] + offset, frames[1] * 0.01 - offset, frames[2]
    expected = [np.corrcoef(original[:, x, y, z], estimate[:, x, y, z])[0, 1] for x, y, z in np.argwhere(mask)]
    found = in_blocks(original, estimate, mask, sizes).temporal_correlation()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_constant_voxels_have_no_correlation(frames):
    original, estimate, mask = frames
    mask[:] = False
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True
    estimate[:, 0, 0, 0] = 0.1  # varied, but its reconstruction is constant: counts as 0
    original[:, 1, 1, 1] = 0.1  # never varied: left out
    expected = [0, np.corrcoef(original[:, 2, 2, 2], estimate[:, 2, 2, 2])[0, 1]]
    np.testing.assert_allclose(in_blocks(original, estimate, mask, [2, 4]).temporal_correlation(), expected, atol=1e-6)


def test_frames_are_not_changed(frames):
    original, estimate, mask = frames
    before = original.copy()
    mask[:] = True
    running = in_blocks(original, estimate, mask, [6])
    np.testing.assert_array_equal(original, before)
    original[:] = estimate[:] = 0
    assert running.psnr(2) < 60
