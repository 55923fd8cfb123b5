"""Measures of fidelity against loops in numpy."""

import numpy as np
import pytest
import torch

from tablet_hf.evaluation.fidelity import RunningFidelity, psnr, temporal_correlation


@pytest.fixture
def frames():
    generator = np.random.default_rng(0)
    original = generator.uniform(-1, 1, (6, 4, 5, 3)).astype(np.float32)
    estimate = (0.7 * original + 0.3 * generator.uniform(-1, 1, original.shape)).astype(np.float32)
    mask = generator.uniform(size=original.shape[1:]) < 0.6
    return original, estimate, mask


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


def test_psnr_is_that_of_the_loop(frames):
    original, estimate, mask = frames
    squared = [
        (float(original[t, x, y, z]) - float(estimate[t, x, y, z])) ** 2
        for t in range(6)
        for x, y, z in np.argwhere(mask)
    ]
    reference, decoded, where = tensors(original, estimate, mask)
    assert psnr(reference, decoded, 2, where) == pytest.approx(10 * np.log10(4 / np.mean(squared)), abs=1e-9)
    everywhere = 10 * np.log10(1 / np.mean((original.astype(float) - estimate) ** 2))
    assert psnr(reference, decoded, 1) == pytest.approx(everywhere, abs=1e-9)


def test_psnr_of_a_known_error():
    assert psnr(torch.zeros(10), torch.full((10,), 0.2), peak=2) == pytest.approx(20, abs=1e-5)


def test_temporal_correlation_is_numpys_voxel_by_voxel(frames):
    original, estimate, mask = frames
    expected = [np.corrcoef(original[:, x, y, z], estimate[:, x, y, z])[0, 1] for x, y, z in np.argwhere(mask)]
    found = temporal_correlation(*tensors(original, estimate, mask))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_still_voxels_count_as_nothing_kept_and_are_left_out_where_nothing_moved(frames):
    original, estimate, _ = (frame.copy() for frame in frames)
    estimate[:, 0, 0, 0] = 0.5  # moved, and was held still
    original[:, 1, 1, 1] = 0.5  # never moved
    mask = np.zeros(original.shape[1:], dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True
    found = temporal_correlation(*tensors(original, estimate, mask))
    assert found[0] == 0
    assert found[1] == pytest.approx(np.corrcoef(original[:, 2, 2, 2], estimate[:, 2, 2, 2])[0, 1], abs=1e-6)
    assert len(found) == 2


def test_a_large_offset_does_not_blur_the_correlation():
    signal = torch.sin(torch.arange(20.0))[:, None, None, None]
    found = temporal_correlation(signal + 1000, signal * 0.01 - 1000, torch.ones(1, 1, 1, dtype=torch.bool))
    assert found.item() == pytest.approx(1, abs=1e-3)


def in_blocks(reference, estimate, mask, sizes):
    running = RunningFidelity(mask)
    for pair in zip(reference.split(sizes), estimate.split(sizes), strict=True):
        running.add(*(block.clone() for block in pair))
    return running


@pytest.mark.parametrize("sizes", [[6], [1] * 6, [2, 0, 3, 1]])
@pytest.mark.parametrize("offset", [0, 10_000])
def test_running_sums_are_those_of_the_whole_run(frames, sizes, offset):
    original, estimate, mask = tensors(*frames)
    original, estimate = original + offset, estimate + offset
    original[:, 1, 1, 1] = offset + 0.1  # never moved
    estimate[:, 2, 2, 2] = offset + 0.1  # held still
    mask[1, 1, 1] = mask[2, 2, 2] = True
    running = in_blocks(original, estimate, mask, sizes)
    assert running.psnr(2) == pytest.approx(psnr(original, estimate, 2, mask), abs=1e-9)
    expected = temporal_correlation(original, estimate, mask)
    assert len(expected) == mask.sum() - 1
    assert expected.eq(0).sum() == 1
    torch.testing.assert_close(running.temporal_correlation(), expected, atol=1e-9, rtol=0)
    assert running.temporal_correlation().eq(0).sum() == 1


def test_running_sums_leave_the_frames_they_are_given_alone(frames):
    original, estimate, mask = tensors(*frames)
    mask[:] = True
    running = RunningFidelity(mask)
    running.add(original, estimate)
    np.testing.assert_array_equal(original, frames[0])
    original[:] = estimate[:] = 0
    assert running.psnr(2) < 60
    running.add(torch.from_numpy(frames[0]), torch.from_numpy(frames[1]))
    assert running.temporal_correlation().median() > 0.5


def test_running_psnr_of_what_came_back_whole():
    running = RunningFidelity(torch.ones(1, 1, 1, dtype=torch.bool))
    running.add(torch.ones(3, 1, 1, 1), torch.ones(3, 1, 1, 1))
    assert running.psnr(1) == float("inf")
