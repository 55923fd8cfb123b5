"""Runs on the model's grid, against slow loops written from the specification."""

import gzip
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
from small_scans import (
    FSL_AFFINE,
    FSL_SHAPE,
    all_volumes,
    moved_voxel_by_voxel,
    small_run,
    small_scan,
    write_scan,
)

from tablet_hf.brain import MIN_SHARE_IN_MNI_BRAIN, find_brain, share_in_mni_brain
from tablet_hf.errors import InputError
from tablet_hf.grid import grid_affine, way_to_grid
from tablet_hf.volumes import open_run


def refusal(use, *arguments, **keywords):
    with pytest.raises(InputError) as caught:
        use(*arguments, **keywords)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def use(scan, **settings):
    run = open_run(scan, **settings)
    return next(run.blocks())


class WatchedArray(np.ndarray):
    """An array that calls `on_read(frame index)` before a frame is read from it."""

    def __array_finalize__(self, parent):
        self.on_read = getattr(parent, "on_read", None)

    def __getitem__(self, key):
        if self.on_read is not None and isinstance(key, tuple) and key[0] is Ellipsis:
            self.on_read(int(key[-1]))
        return super().__getitem__(key)


def watched_run(on_read, **settings):
    values, affine = small_scan()
    array = values.view(WatchedArray)
    array.on_read = on_read
    return small_run(scan=(array, affine), mask=values.any(-1), **settings)


def on_the_grid(values, affine, size=48):
    frames = np.moveaxis(np.maximum(values, 0), -1, 0)
    return np.stack([moved_voxel_by_voxel(frame, affine, (size,) * 3, grid_affine(size)) for frame in frames])


class TestBlocks:
    @pytest.mark.parametrize("cache_bytes", [0, 2**29])
    def test_frames_are_moved_masked_and_clamped(self, cache_bytes):
        values, affine = small_scan()
        values[3, 3, 3] = -50
        mask = np.random.default_rng(1).random(values.shape[:3]) < 0.8
        run = small_run(scan=(values, affine), mask=mask, cache_bytes=cache_bytes)
        volumes = all_volumes(run)
        assert volumes.dtype == np.float32
        np.testing.assert_array_equal(volumes, on_the_grid(values * mask[..., None], affine))
        np.testing.assert_array_equal(run.mask, moved_voxel_by_voxel(mask, affine, (48,) * 3, grid_affine(48)))
        assert run.mask.dtype == bool

    @pytest.mark.parametrize("cache_bytes", [0, 2**29])
    @pytest.mark.parametrize("mask", ["given", None])
    def test_statistics_are_those_of_the_frames(self, cache_bytes, mask):
        scan = small_scan()
        run = small_run(scan=scan, cache_bytes=cache_bytes, mask=scan[0].any(-1) if mask else None)
        volumes = all_volumes(run)
        assert run.maximum == volumes.max() == scan[0].max()
        assert run.mean.dtype == np.float32
        np.testing.assert_allclose(run.mean, volumes.mean(axis=0, dtype=np.float64), rtol=1e-6)
        for q in (0, 50, 99.9, 100):
            assert run.percentile(q) == pytest.approx(np.percentile(volumes[:, run.mask], q), rel=1 / 4096)

    def test_percentiles_where_values_outside_the_brain_must_not_count(self):
        """A brain found late, with values around it: a pass of its own, held in memory or not."""
        values, affine = small_scan()
        add_mean = np.full(values.shape[:3], 5000, np.float32)
        run = small_run(scan=(values, affine), mask=None, add_mean=add_mean, cache_bytes=0)
        assert run.mask_source == "nonzero"
        assert run.percentile(0) == pytest.approx((values + 5000)[values > 0].min(), rel=1 / 4096)

    @pytest.mark.parametrize("cache_bytes", [0, 2**29])
    @pytest.mark.parametrize("block_frames", [1, 4, 6, 100])
    def test_blocks_of_any_size_hold_the_same_frames(self, cache_bytes, block_frames):
        run = small_run(cache_bytes=cache_bytes)
        sizes = [len(indices) for indices, _ in run.blocks(block_frames=block_frames)]
        assert sizes == [min(block_frames, 6 - start) for start in range(0, 6, block_frames)]
        np.testing.assert_array_equal(all_volumes(run, block_frames=block_frames), all_volumes(small_run()))

    @pytest.mark.parametrize("cache_bytes", [0, 2**29])
    @pytest.mark.parametrize("frames", [[2, 3, 4], [5], [0, 2, 4], [4, 1, 1], range(1, 6, 2), np.array([3]), []])
    def test_windows(self, cache_bytes, frames):
        run = small_run(cache_bytes=cache_bytes)
        blocks = list(run.blocks(frames=frames, block_frames=2))
        assert [int(index) for indices, _ in blocks for index in indices] == list(frames)
        whole = all_volumes(small_run())
        for indices, volumes in blocks:
            np.testing.assert_array_equal(volumes, whole[indices])

    def test_statistics_of_a_window_are_those_of_the_run(self):
        values, affine = small_scan()
        values[2, 2, 2, 5] = 9999
        run = small_run(scan=(values, affine))
        _, scaled = next(run.scaled_blocks(frames=[0]))
        assert run.maximum == 9999
        assert scaled.max() == pytest.approx(values[..., 0].max() / 9999 * 2 - 1, abs=1e-6)

    @pytest.mark.parametrize("frames", [[6], [0, -1]])
    def test_frames_that_the_run_does_not_have(self, frames):
        assert "0 to 5" in refusal(next, small_run().blocks(frames))

    def test_a_caller_may_change_the_volumes(self):
        run = small_run()
        for _, volumes in run.blocks():
            volumes[:] = 7
        np.testing.assert_array_equal(all_volumes(run), all_volumes(small_run()))

    def test_a_small_run_is_read_once(self):
        read = []
        run = watched_run(read.append)
        all_volumes(run), list(run.scaled_blocks("percent_change")), run.percentile(99.9)
        assert read == list(range(6))

    def test_a_large_run_is_read_once_more_for_each_delivery(self):
        read = []
        run = watched_run(read.append, cache_bytes=0)
        assert (run.maximum, run.percentile(99.9)) > (0, 0)
        list(run.scaled_blocks("percent_change", frames=[1, 2]))
        assert read == [*range(6), 1, 2]

    def test_attributes_of_a_run(self):
        run = small_run()
        assert (run.num_frames, run.repetition_time, run.volume_size) == (6, 2.0, 48)
        assert (run.source_shape, run.mask_source, run.is_resampled) == ((7, 8, 9), "given", False)
        np.testing.assert_array_equal(run.source_affine, small_scan()[1])

    def test_resampled_frames_do_not_depend_on_their_block(self):
        values, affine = small_scan()
        affine[0, 0] = -2.7
        runs = [small_run(scan=(values, affine), cache_bytes=size) for size in (0, 2**29)]
        assert all(run.is_resampled for run in runs)
        one, other = all_volumes(runs[0], block_frames=1), all_volumes(runs[1], block_frames=6)
        np.testing.assert_array_equal(one, other)
        assert (one[:, ~runs[0].mask] == 0).all()
        assert one.min() == 0
        assert runs[0].maximum == one.max()
        assert runs[0].percentile(99.9) == pytest.approx(np.percentile(one[:, runs[0].mask], 99.9), rel=1 / 4096)


class TestSignals:
    @pytest.mark.parametrize("cache_bytes", [0, 2**29])
    def test_intensity_by_the_maximum(self, cache_bytes):
        run = small_run(cache_bytes=cache_bytes)
        scaled = np.concatenate([volumes for _, volumes in run.scaled_blocks()])
        assert scaled.dtype == np.float32
        assert (scaled[:, ~run.mask] == -1).all()
        assert scaled.max() == 1
        np.testing.assert_allclose(scaled, all_volumes(run) / run.maximum * 2 - 1, atol=1e-6)
        assert run.clipped_share == 0
        assert run.intensity_scale() == run.maximum

    def test_intensity_by_the_percentile(self):
        values, affine = small_scan(num_frames=20)
        values[3, 3, 3, :3] = 50_000
        run = small_run(scan=(values, affine))
        scaled = np.concatenate([volumes for _, volumes in run.scaled_blocks(scaling="percentile", block_frames=7)])
        volumes, scale = all_volumes(run), run.intensity_scale("percentile")
        assert scale == run.percentile(99.9)
        np.testing.assert_allclose(scaled, np.minimum(volumes / scale, 1) * 2 - 1, atol=1e-6)
        assert run.clipped_share == np.mean(volumes[:, run.mask] > scale) > 0

    @pytest.mark.parametrize("cache_bytes", [0, 2**29])
    def test_percent_change(self, cache_bytes):
        values, affine = small_scan(num_frames=8)
        anatomy = values[..., :1]
        values = anatomy * np.random.default_rng(3).normal(1, 0.04, values.shape).astype(np.float32)
        values[5, 5, 5] = 0.01 * values.max()
        run = small_run(scan=(values, affine), cache_bytes=cache_bytes)
        change = np.concatenate([volumes for _, volumes in run.scaled_blocks("percent_change", block_frames=3)])
        volumes = all_volumes(run).astype(np.float64)
        mean = volumes.mean(axis=0)
        floor = 0.05 * np.percentile(volumes[:, run.mask], 99.9)
        is_defined = run.mask & (mean >= floor)
        assert run.mask.sum() - is_defined.sum() == 1
        np.testing.assert_array_equal(run.has_change, is_defined)
        wanted = np.divide(volumes - mean, mean, where=is_defined, out=np.zeros_like(volumes)) / 0.0625
        np.testing.assert_allclose(change, np.clip(wanted, -1, 1), atol=2e-5)
        assert (change[:, ~is_defined] == 0).all()
        assert run.clipped_share == pytest.approx(np.mean(np.abs(wanted[:, is_defined]) > 1), abs=1e-3)
        assert 0.05 < run.clipped_share < 0.2

    @pytest.mark.parametrize("arguments", [{"signal": "zscore"}, {"scaling": "mean"}])
    def test_unknown_names(self, arguments):
        with pytest.raises(ValueError, match="must be"):
            next(small_run().scaled_blocks(**arguments))


class TestMasks:
    def test_next_to_a_bids_scan(self, tmp_path, brain_values, mni_brain):
        stem = "sub-01_task-rest_space-MNI152NLin6Asym_res-2"
        smaller = mni_brain.copy()
        smaller[:, :40] = False
        write_scan(tmp_path / f"{stem}_desc-brain_mask.nii.gz", smaller.astype(np.uint8))
        run = open_run(write_scan(tmp_path / f"{stem}_desc-preproc_bold.nii.gz", brain_values))
        assert (run.mask_source, run.mask.sum()) == ("bids", smaller.sum())
        assert (run.repetition_time, run.maximum) == (2.0, brain_values[smaller].max())

    def test_voxels_that_are_always_zero_are_background(self, tmp_path, brain_values, mni_brain):
        values = brain_values.copy()
        values[mni_brain, :3] = 0  # zero in some frames is not background
        run = open_run(write_scan(tmp_path / "run.nii.gz", values))
        assert (run.mask_source, run.mask.sum()) == ("nonzero", np.any(values, axis=-1).sum())

    def head(self, mni_brain):
        """A head that was not stripped: skull at a quarter of the brain's intensity, air of low noise."""
        from scipy.ndimage import binary_dilation

        rng = np.random.default_rng(0)
        head = binary_dilation(mni_brain, iterations=8)
        mean = rng.uniform(1, 20, FSL_SHAPE) + 250 * head + 750 * binary_dilation(mni_brain)
        return np.asfortranarray((mean[..., None] + rng.normal(0, 10, (*FSL_SHAPE, 3))).clip(1).astype(np.int16))

    @pytest.mark.parametrize("padding", [0, 12])
    def test_a_head_with_its_skull_gets_the_epi_mask(self, mni_brain, padding):
        values = self.head(mni_brain)
        values[:, :, 91 - padding :] = 0  # a field of view shorter than the template's
        run = open_run((values, FSL_AFFINE), repetition_time=2)
        assert run.mask_source == "epi"
        way = way_to_grid(FSL_SHAPE, FSL_AFFINE)
        expected = way.mask_to_grid(mni_brain)
        assert 2 * (run.mask & expected).sum() / (run.mask.sum() + expected.sum()) > 0.9
        volumes = all_volumes(run)
        assert (volumes[:, ~run.mask] == 0).all()
        assert run.percentile(99.9) == pytest.approx(np.percentile(volumes[:, run.mask], 99.9), rel=1 / 4096)
        uncached = open_run((values, FSL_AFFINE), repetition_time=2, cache_bytes=0)
        assert uncached.percentile(99.9) == run.percentile(99.9)

    def test_no_brain_in_it(self):
        values = np.random.default_rng(0).uniform(1, 2, (4, 4, 4, 3))
        assert "mask=" in refusal(use, (values, FSL_AFFINE), repetition_time=2, check_space=False)

    def test_unusable_masks(self):
        sentence = refusal(small_run, mask=np.ones((7, 8, 8)))
        assert "(7, 8, 8)" in sentence
        assert "(7, 8, 9)" in sentence
        assert "mean image" in refusal(small_run, add_mean=np.ones((7, 8, 8)))
        assert "empty" in refusal(small_run, mask=np.zeros((7, 8, 9)))

    def test_find_brain_takes_the_signal_of_a_stripped_slab(self, mni_brain):
        slab = mni_brain.copy()
        slab[:, :, :30] = slab[:, :, 40:] = False
        found, how = find_brain(slab, slab * 1000.0, FSL_AFFINE)
        assert how == "nonzero"
        np.testing.assert_array_equal(found, slab)


class TestSpace:
    """Measured: shares of the brain inside the MNI152 brain, see MIN_SHARE_IN_MNI_BRAIN."""

    def shifted(self, millimetres, axis):
        affine = FSL_AFFINE.copy()
        affine[axis, 3] += millimetres
        return affine

    def test_the_template_overlaps_itself(self, mni_brain):
        assert share_in_mni_brain(mni_brain, FSL_AFFINE) == 1

    @pytest.mark.parametrize("axis", [0, 1, 2])
    @pytest.mark.parametrize("millimetres", [-25, 25])
    def test_a_brain_more_than_two_centimetres_off_is_refused(self, brain_values, mni_brain, axis, millimetres):
        sentence = refusal(open_run, (brain_values, self.shifted(millimetres, axis)), mask=mni_brain, repetition_time=2)
        assert "--no-space-check" in sentence
        assert "check_space=False" in sentence

    @pytest.mark.parametrize("millimetres", [-6, 6])
    def test_a_few_millimetres_are_not(self, brain_values, mni_brain, millimetres):
        open_run((brain_values, self.shifted(millimetres, 1)), mask=mni_brain, repetition_time=2)

    @pytest.mark.parametrize(
        "affine",
        [
            np.diag([2.0, 2, 2, 1]),
            FSL_AFFINE[[0, 2, 1, 3]],
            FSL_AFFINE[[1, 0, 2, 3]],
            np.diag([1.0, -1, 1, 1]) @ FSL_AFFINE,
            np.diag([1.0, 1, -1, 1]) @ FSL_AFFINE,
        ],
        ids=["no origin", "y and z swapped", "x and y swapped", "front to back", "upside down"],
    )
    def test_wrong_affines(self, brain_values, mni_brain, affine):
        refusal(open_run, (brain_values, affine), mask=mni_brain, repetition_time=2)

    @pytest.mark.parametrize("settings", [{}, {"check_space": False}])
    def test_a_brain_off_the_grid_is_refused_even_without_the_check(self, brain_values, settings):
        sentence = refusal(use, (brain_values, self.shifted(1000, 0)), repetition_time=2, **settings)
        assert "MNI152" in sentence

    @pytest.mark.parametrize(("first", "last"), [(0, 12), (20, 30), (35, 55), (60, 78)])
    def test_slabs_pass(self, brain_values, mni_brain, first, last):
        slab = brain_values.copy()
        slab[:, :, :first] = slab[:, :, last:] = 0
        run = open_run((slab, FSL_AFFINE), repetition_time=2)
        assert run.mask.sum() == mni_brain[:, :, first:last].sum()

    @pytest.mark.parametrize("space", ["T1w", "fsaverage5", "native"])
    def test_a_name_that_declares_another_space(self, tmp_path, brain_values, space):
        path = write_scan(tmp_path / f"sub-01_task-rest_space-{space}_desc-preproc_bold.nii.gz", brain_values[..., :2])
        assert f"space-{space}" in refusal(open_run, path)
        open_run(path, check_space=False)

    def test_scanner_coordinates_cause_a_warning(self, tmp_path, brain_values):
        path = write_scan(tmp_path / "run.nii.gz", brain_values[..., :2], code=1)
        with pytest.warns(UserWarning, match="scanner coordinates"):
            open_run(path)

    def test_the_real_scan_before_registration_is_refused(self, real_data):
        scan = real_data("bold/native_space_bold.nii.gz")
        with pytest.warns(UserWarning, match="oblique"):
            sentence = refusal(use, scan)
        assert "native_space_bold.nii.gz" in sentence
        assert "MNI152" in sentence

    def test_the_same_scan_brought_to_mni_without_stripping_passes(self, real_data, mni_brain):
        """Nine parameters bring its brain to the template's centre and extent, as a linear registration would."""
        image = nib.load(real_data("bold/native_space_bold.nii.gz"))
        values = image.get_fdata(dtype=np.float32)
        brain, _ = find_brain(values.any(axis=-1), values.mean(axis=-1), image.affine)
        voxels = image.affine[:3, :3] @ np.stack(np.nonzero(brain)) + image.affine[:3, 3:]
        template = FSL_AFFINE[:3, :3] @ np.stack(np.nonzero(mni_brain)) + FSL_AFFINE[:3, 3:]
        stretch = np.eye(4)
        stretch[:3, :3] = np.diag(template.std(axis=1) / voxels.std(axis=1))
        stretch[:3, 3] = template.mean(axis=1) - stretch[:3, :3] @ voxels.mean(axis=1)
        with pytest.warns(UserWarning, match="oblique"):
            run = open_run((values, stretch @ image.affine), repetition_time=2)
        assert (run.mask_source, run.is_resampled) == ("epi", True)
        assert share_in_mni_brain(brain, stretch @ image.affine) > MIN_SHARE_IN_MNI_BRAIN + 0.05

    def test_an_unstripped_template_passes(self, real_data):
        template = real_data("abide_cc200/tpl-MNI152NLin2009cAsym_res-02_desc-fMRIPrep_boldref.nii.gz")
        image = nib.load(template)
        values = image.get_fdata(dtype=np.float32)[..., None] * np.array([1, 1.1], np.float32)
        run = open_run((values, image.affine), repetition_time=2)
        assert (run.mask_source, run.is_resampled) == ("epi", False)


class TestBadVoxels:
    @pytest.mark.parametrize(
        ("values", "mask", "reason"),
        [
            (np.zeros((5, 5, 5, 3)), None, "zero"),
            (np.zeros((5, 5, 5, 3)), np.ones((5, 5, 5)), "zero"),
            (-np.ones((5, 5, 5, 9)), np.ones((5, 5, 5)), "negative"),
            (np.full((5, 5, 5, 3), 1e300), np.ones((5, 5, 5)), "infinite"),
        ],
    )
    def test_no_intensities(self, values, mask, reason):
        assert reason in refusal(use, (values, FSL_AFFINE), mask=mask, repetition_time=2, check_space=False)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("mask", ["given", None])
    def test_nan_and_inf_inside_the_brain(self, bad, mask):
        values, affine = small_scan()
        brain = values.any(-1)
        values[3, 3, 3, 2:] = values[4, 4, 4, 4:] = bad
        run = small_run(scan=(values, affine), mask=brain if mask else None)
        assert "2 voxels" in refusal(next, run.blocks())

    @pytest.mark.parametrize("cache_bytes", [0, 2**29])
    @pytest.mark.parametrize("mask", ["given", None])
    def test_nan_around_the_brain_is_background(self, cache_bytes, mask):
        values, affine = small_scan()
        brain = values.any(-1)
        holed = np.where(brain[..., None], values, np.float32(np.nan))
        run = small_run(scan=(holed, affine), mask=brain if mask else None, cache_bytes=cache_bytes)
        np.testing.assert_array_equal(all_volumes(run), all_volumes(small_run(scan=(values, affine))))

    @pytest.mark.parametrize("mask", ["given", None])
    @pytest.mark.parametrize("spread", ["demeaned", "z-scored"])
    def test_demeaned_runs_and_their_way_out(self, mask, spread):
        values, affine = small_scan(num_frames=40)
        brain, mean = values.any(-1), values.mean(-1)
        flat = values - mean[..., None]
        if spread == "z-scored":
            flat = np.divide(flat, values.std(-1)[..., None], where=brain[..., None], out=np.zeros_like(flat))
        given_mask = brain if mask else None
        assert "--add-mean" in refusal(next, small_run(scan=(flat, affine), mask=given_mask).blocks())
        run = small_run(scan=(flat, affine), mask=given_mask, add_mean=mean)
        expected = on_the_grid(flat + mean[..., None], affine)
        np.testing.assert_allclose(all_volumes(run)[:, run.mask], expected[:, run.mask])

    @pytest.mark.parametrize("spread", ["demeaned", "z-scored"])
    @pytest.mark.parametrize("background", ["offset", "bright", "noise"])
    def test_a_demeaned_brain_in_a_background_that_is_not_zero(self, brain_values, background, spread):
        outside = ~brain_values.any(-1)
        flat = brain_values - brain_values.mean(-1, keepdims=True)
        if spread == "z-scored":
            flat /= np.maximum(brain_values.std(-1, keepdims=True), 1e-6)
        air = np.random.default_rng(0).rayleigh(5, flat.shape)
        flat[outside] = {"offset": 0.003, "bright": 1000, "noise": air[outside]}[background]
        assert "--add-mean" in refusal(use, (flat, FSL_AFFINE), repetition_time=2)
        use((flat + brain_values.mean(-1, keepdims=True), FSL_AFFINE), repetition_time=2, check_space=False)

    def test_a_brain_with_its_mean_may_be_surrounded_by_noise_about_zero(self, brain_values):
        """As filters and interpolation leave it: quieter than the brain, and negative in half of the air."""
        outside = ~brain_values.any(-1)
        noise = np.random.default_rng(0).normal(0, 3, brain_values.shape)
        run = open_run((np.where(outside[..., None], noise, brain_values), FSL_AFFINE), repetition_time=2)
        run.survey()
        assert run.mask_source == "epi"

    def test_equal_frames_cause_a_warning(self):
        values, affine = small_scan(num_frames=1)
        run = small_run(scan=(np.repeat(values, 4, axis=-1), affine))
        with pytest.warns(UserWarning, match="all 4 frames"):
            next(run.blocks())

    def test_a_file_that_ends_early_is_found_on_the_first_pass(self, tmp_path):
        values, affine = small_scan(num_frames=40)
        path = write_scan(tmp_path / "run.nii.gz", values, affine)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        run = open_run(path, mask=np.ones(values.shape[:3]), check_space=False, volume_size=48)
        assert "cut off" in refusal(next, run.blocks(frames=[0]))


class TestThreads:
    def test_runs_are_surveyed_while_another_is_delivered(self, tmp_path):
        """As when the next runs are read while this one is encoded."""
        paths = []
        for seed in range(4):
            values, affine = small_scan(num_frames=20, seed=seed)
            paths.append(write_scan(tmp_path / f"{seed}.nii.gz", values, affine))

        def opened(path):
            return open_run(path, check_space=False, volume_size=48, cache_bytes=0)

        def statistics(run):
            return run.maximum, run.percentile(99.9), run.mask.tobytes(), run.mean.tobytes(), run.mask_source

        def delivered(run):
            return np.concatenate([volumes for _, volumes in run.scaled_blocks("percent_change")])

        alone = [statistics(opened(path)) for path in paths]
        expected = delivered(opened(paths[0]))
        with ThreadPoolExecutor(3) as workers:
            for _ in range(3):
                runs = [opened(path) for path in paths]
                surveys = [workers.submit(run.survey) for run in runs[1:]]
                np.testing.assert_array_equal(delivered(runs[0]), expected)
                assert [survey.result() for survey in surveys] == [None] * 3
                assert [statistics(run) for run in runs] == alone

    def test_threads_may_read_one_file_at_once(self, tmp_path):
        values, affine = small_scan(num_frames=20)
        path = write_scan(tmp_path / "run.nii.gz", values, affine)
        run = open_run(path, check_space=False, volume_size=48, cache_bytes=0)
        run.survey()
        expected = all_volumes(run)
        with ThreadPoolExecutor(4) as workers:
            for volumes in workers.map(lambda _: all_volumes(run, block_frames=1), range(8)):
                np.testing.assert_array_equal(volumes, expected)

    def test_a_run_that_takes_long_holds_up_no_other(self):
        is_reading, may_go_on = threading.Event(), threading.Event()

        def wait(frame):
            is_reading.set()
            assert may_go_on.wait(60)

        first = watched_run(wait)
        with ThreadPoolExecutor(2) as workers:
            slow = workers.submit(first.survey)
            try:
                assert is_reading.wait(60)
                workers.submit(small_run().survey).result(timeout=20)
                assert not slow.done()
            finally:
                may_go_on.set()
            slow.result(timeout=60)

    def test_a_run_that_several_ask_for_is_surveyed_once(self):
        read = []
        run = watched_run(lambda frame: read.append(frame) or time.sleep(0.01))
        with ThreadPoolExecutor(4) as workers:
            masks = list(workers.map(lambda _: run.mask, range(4)))
        assert read == list(range(6))
        assert all(mask is masks[0] for mask in masks)


def test_importing_is_cheap():
    code = "import sys, tablet_hf; had = set(sys.modules); import tablet_hf.volumes; print(*set(sys.modules) - had)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"nibabel", "nilearn", "scipy", "torch", "transformers"} & set(output.split())


@pytest.mark.slow
def test_a_long_run_needs_little_memory(tmp_path):
    """400 frames of 91 x 109 x 91 float32, 1.4 GB uncompressed: one gzip member a frame, written over and over."""
    header = nib.Nifti1Header()
    header.set_data_shape((*FSL_SHAPE, 400))
    header.set_data_dtype(np.float32)
    header.set_sform(FSL_AFFINE, 4)
    header.set_xyzt_units("mm", "sec")
    header["pixdim"][4] = 0.72
    header["vox_offset"], header["magic"] = 352, b"n+1"
    frames = []
    for level in (900, 1000, 1100):
        frame = np.zeros(FSL_SHAPE, np.float32)
        frame[20:70, 20:90, 10:70] = level + np.arange(60, dtype=np.float32)
        frame[20, 20, 10] = frame[69, 20, 10] = 0  # a box short of some corners
        frame[20:26] = 0
        frame[26:30, 20:40] = 0
        frames.append(gzip.compress(frame.tobytes("F"), 1))
    with open(tmp_path / "run.nii.gz", "wb") as stream:
        stream.write(gzip.compress(header.binaryblock + bytes(4)))
        for index in range(400):
            stream.write(frames[index % 3])
    script = """
        import resource, sys
        from pathlib import Path
        from tablet_hf.volumes import open_run
        run = open_run(sys.argv[1], check_space=False, mask=None)
        assert run.num_frames == 400 and run.maximum == 1159, run.maximum
        for indices, volumes in run.scaled_blocks("percent_change", frames=range(60)):
            assert volumes.shape[1:] == (96, 96, 96)
        status = Path("/proc/self/status")
        if status.exists():  # on Linux ru_maxrss begins with what the process that started this one had
            print(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")))
        else:
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "run.nii.gz")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kilobytes = int(done.stdout) / (1024 if sys.platform == "darwin" else 1)
    assert kilobytes < 2e6 / 2  # half of what is promised, measured: 0.3 GB


class TestRealScan:
    @pytest.fixture
    def scan(self, real_data):
        return next(real_data("bold/sub-01/func").glob("*_bold.nii.gz"))

    @pytest.fixture
    def values(self, scan):
        return nib.load(scan).get_fdata(dtype=np.float32)

    def test_frames_and_statistics(self, scan, values):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run = open_run(scan)
            volumes = all_volumes(run)
        np.testing.assert_array_equal(volumes[:, 3:94, :, 3:94], np.moveaxis(values[:, 7:103], -1, 0))
        assert (run.repetition_time, run.mask_source, run.is_resampled) == (2.2, "bids", False)
        assert run.maximum == values.max()
        assert run.percentile(99.9) == pytest.approx(np.percentile(volumes[:, run.mask], 99.9), rel=1 / 4096)

    def test_flipped_and_without_companions(self, scan, values, tmp_path):
        """Stored with x from left to right, under another name, without mask or sidecar."""
        affine = FSL_AFFINE @ np.array([[-1.0, 0, 0, 90], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        path = write_scan(tmp_path / "run.nii", np.asfortranarray(values[::-1]), affine, repetition_time=2.2)
        run = open_run(path, cache_bytes=0)
        assert (run.mask_source, run.repetition_time) == ("nonzero", pytest.approx(2.2))
        np.testing.assert_array_equal(all_volumes(run), all_volumes(open_run(scan)))

    def test_percent_change_is_clipped_rarely(self, scan):
        run = open_run(scan)
        for _, volumes in run.scaled_blocks("percent_change"):
            assert np.abs(volumes).max() <= 1
        assert 0 < run.clipped_share < 0.1
        assert run.has_change.sum() > 0.95 * run.mask.sum()

    def test_damage_in_a_real_file(self, scan, tmp_path):
        shutil.copyfile(scan, tmp_path / "run.nii.gz")
        with open(tmp_path / "run.nii.gz", "r+b") as stream:
            stream.truncate(9_000_000)
        assert "cut off" in refusal(use, tmp_path / "run.nii.gz", repetition_time=2.2)
