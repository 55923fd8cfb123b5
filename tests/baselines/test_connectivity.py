"""Regions, values and connections against nilearn, numpy and what was planted."""

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from small_cohort import AFFINE, BOXES, SHAPE, masked_by_nilearn, write_atlas

from tablet_hf.baselines.connectivity import (
    atlas_regions,
    brain_cells,
    clustered_cells,
    evenly_spaced,
    fisher_z,
    merged_cells,
    region_means,
)
from tablet_hf.errors import InputError


def save(path, values, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


class TestAtlas:
    def test_regions_are_numbered_in_the_order_of_their_labels(self, tmp_path):
        regions = atlas_regions(write_atlas(tmp_path / "atlas.nii.gz"))
        assert regions.values == (10, 20, 30, 40, 50, 60)
        assert len(regions) == 6
        assert [regions.labels[box].mean() for box in BOXES] == [1, 2, 3, 4, 5, 6]
        assert regions.num_voxels.tolist() == [64] * 6

    def test_the_checksum_is_of_the_content(self, tmp_path):
        first = atlas_regions(write_atlas(tmp_path / "a.nii.gz"))
        again = atlas_regions(write_atlas(tmp_path / "b.nii"))
        changed = np.asarray(nibabel.load(tmp_path / "b.nii").dataobj).copy()
        changed[BOXES[0]][0, 0, 0] = 20
        moved = AFFINE.copy()
        moved[0, 3] += 8
        assert first.checksum == again.checksum
        assert first.checksum != atlas_regions(save(tmp_path / "c.nii", changed)).checksum
        assert first.checksum != atlas_regions(save(tmp_path / "d.nii", first.labels, moved)).checksum

    def test_labels_go_to_the_nearest_voxels_of_another_grid(self, tmp_path):
        regions = atlas_regions(write_atlas(tmp_path / "atlas.nii.gz"))
        flipped = np.diag([-1.0, 1, 1, 1])
        flipped[0, 3] = SHAPE[0] - 1
        assert np.array_equal(regions.on_grid(SHAPE, AFFINE @ flipped), regions.labels[::-1])
        halved = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
        halved[:3, 3] = (AFFINE @ [-0.25, -0.25, -0.25, 1])[:3]
        fine = regions.on_grid(tuple(2 * n for n in SHAPE), halved)
        assert np.array_equal(fine, regions.labels.repeat(2, 0).repeat(2, 1).repeat(2, 2))

    def test_a_scan_elsewhere(self, tmp_path):
        regions = atlas_regions(write_atlas(tmp_path / "atlas.nii.gz"))
        away = AFFINE.copy()
        away[:3, 3] += 2000
        with pytest.raises(InputError, match="5x5x5"):
            regions.on_grid((5, 5, 5), away)

    @pytest.mark.parametrize(
        ("values", "word"),
        [
            (np.zeros((4, 4, 4, 5), np.float32), "4, 4, 4, 5"),
            (np.full((4, 4, 4), 0.5, np.float32), "whole numbers"),
            (np.full((4, 4, 4), 3, np.int16), "1 regions"),
        ],
    )
    def test_other_images(self, tmp_path, values, word):
        with pytest.raises(InputError, match=f"atlas.nii: .*{word}"):
            atlas_regions(save(tmp_path / "atlas.nii", values))

    @pytest.mark.parametrize("exists", [True, False])
    def test_unreadable_files(self, tmp_path, exists):
        if exists:
            (tmp_path / "atlas.nii").write_text("no image")
        with pytest.raises(InputError, match=r"atlas\.nii"):
            atlas_regions(tmp_path / "atlas.nii")

    def test_a_real_atlas_on_the_grid_of_a_real_scan(self, real_data):
        regions = atlas_regions(real_data("abide_cc200/CPAC200_space-MNI152NLin6_res-2x2x2.nii.gz"))
        scan = nibabel.load(next(real_data("bold/sub-01/func").glob("*_bold.nii.gz")))
        short = nibabel.Nifti1Image(np.asarray(scan.dataobj[..., :3], dtype=np.float32), scan.affine)
        labels = regions.on_grid(short.shape[:3], short.affine)
        found = region_means(np.moveaxis(np.asarray(short.dataobj), -1, 0), labels, len(regions))
        expected = masked_by_nilearn(nibabel.Nifti1Image(regions.labels, regions.affine), short)
        assert len(regions) == 200
        assert found == pytest.approx(expected, rel=1e-4)


class TestTimeSeries:
    def test_a_region_without_voxels_is_unknown_and_voxels_that_are_no_numbers_are_0(self):
        labels = np.array([[[1, 1, 3, 0]]])
        frames = [np.array([[[2.0, np.nan, 5, 9]]]), np.array([[[2.0, np.inf, 7, 9]]])]
        np.testing.assert_array_equal(region_means(frames, labels, 3), [[1, np.nan, 5], [1, np.nan, 7]])


class TestCells:
    def test_cells_are_cubes_of_8_mm_that_cover_the_brain(self):
        from nilearn.datasets import load_mni152_brain_mask

        cells = brain_cells()
        places = ndimage.find_objects(cells.labels)
        assert len(places) == len(cells) > 3000
        assert {side.start // 4 - (side.stop - 1) // 4 for place in places for side in place} == {0}
        assert cells.num_voxels.min() >= 16
        assert cells.num_voxels.max() == 64
        brain = np.count_nonzero(load_mni152_brain_mask(resolution=2).dataobj)
        assert 0.98 * brain < np.count_nonzero(cells.labels) <= brain

    def test_merged_cells_are_the_mean_over_all_of_their_voxels(self):
        cells = brain_cells()
        rng = np.random.default_rng(0)
        frames = rng.uniform(0, 1000, (3, *cells.labels.shape)).astype(np.float32)
        region_of_cell = rng.integers(0, 7, len(cells))
        of_cells = region_means(frames, cells.labels, len(cells))
        found = merged_cells(of_cells, region_of_cell, cells.num_voxels)
        region_of_voxel = np.append(0, region_of_cell + 1)[cells.labels]
        expected = [ndimage.mean(frame, region_of_voxel, range(1, 8)) for frame in frames]
        assert found == pytest.approx(np.array(expected), rel=1e-5)

    def test_cells_that_a_scan_lacks_do_not_count(self):
        values = np.array([[1.0, np.nan, 4, np.nan], [2, np.nan, 5, np.nan]])
        found = merged_cells(values, np.array([0, 0, 0, 1]), np.array([1, 5, 2, 3]))
        np.testing.assert_allclose(found, [[3, np.nan], [4, np.nan]])

    def test_what_moves_together_becomes_a_region(self):
        cells = brain_cells()
        corners = np.array(ndimage.center_of_mass(cells.labels > 0, cells.labels, range(1, len(cells) + 1)))
        planted = (corners[:, 0] > 48) + 2 * (corners[:, 1] > 50) + 4 * (corners[:, 2] > 40)
        rng = np.random.default_rng(0)
        series = [
            rng.standard_normal((30, 8))[:, planted] + 0.7 * rng.standard_normal((30, len(cells))) for _ in range(3)
        ]
        found = clustered_cells(series, 8)
        assert set(found) == set(range(8))
        shares = [np.bincount(planted[found == region]).max() / np.sum(found == region) for region in range(8)]
        assert min(shares) > 0.95
        assert np.array_equal(found, clustered_cells(series, 8))

    def test_a_region_is_one_piece_and_a_constant_subject_does_no_harm(self):
        cells = brain_cells()
        rng = np.random.default_rng(1)
        series = [rng.standard_normal((10, len(cells))), np.full((10, len(cells)), 5.0)]
        found = clustered_cells(series, 20)
        labels = np.append(0, found + 1)[cells.labels]
        assert set(found) == set(range(20))
        for region in range(1, 21):
            coarse = (labels == region).reshape(24, 4, 24, 4, 24, 4).any((1, 3, 5))
            assert ndimage.label(coarse)[1] == 1

    @given(total=st.integers(1, 200), most=st.integers(1, 60))
    def test_evenly_spaced(self, total, most):
        found = evenly_spaced(range(total), most)
        assert len(found) == min(total, most)
        assert found == sorted(set(found))
        if len(found) > 1:
            assert (found[0], found[-1]) == (0, total - 1)
            assert np.ptp(np.diff(found)) <= 1


class TestConnections:
    @settings(deadline=None, max_examples=20)
    @given(seed=st.integers(0, 1000), frames=st.integers(4, 40), regions=st.integers(2, 6))
    def test_they_are_artanh_of_the_correlations(self, seed, frames, regions):
        values = np.random.default_rng(seed).standard_normal((frames, regions)) + 100
        expected = np.arctanh(np.corrcoef(values.T)[np.tril_indices(regions, -1)])
        assert fisher_z(values) == pytest.approx(expected, rel=1e-6, abs=1e-9)

    def test_regions_without_signal_have_none(self):
        values = np.random.default_rng(0).standard_normal((30, 5)).astype(np.float32)
        values[:, 1], values[:, 3] = np.nan, 0.1  # whose mean is not 0.1 to the last digit
        z = fisher_z(values)
        is_known = np.isfinite(z)
        pairs = list(zip(*np.tril_indices(5, -1), strict=True))
        assert [pair for pair, known in zip(pairs, is_known, strict=True) if known] == [(2, 0), (4, 0), (4, 2)]
        kept = values[:, [0, 2, 4]]
        assert z[is_known] == pytest.approx(fisher_z(kept))

    def test_equal_series_are_not_infinitely_connected_and_three_frames_not_at_all(self):
        series = np.random.default_rng(0).standard_normal(10)
        assert 6 < fisher_z(np.stack([series, 2 * series], 1))[0] < 10
        assert np.isnan(fisher_z(np.stack([series, 2 * series], 1)[:3])).all()
