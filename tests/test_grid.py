"""The grid of the model and the scaling of intensities, against slow loops written from the specification."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_scans import FSL_AFFINE, FSL_SHAPE, moved_voxel_by_voxel

from tablet_hf.grid import VOXEL_SIZE_MM, Placement, Resampling, grid_affine, way_to_grid
from tablet_hf.intensities import (
    count_intensities,
    percent_change,
    percentile_of_counts,
    scale_intensity,
    undo_percent_change,
    unscale_intensity,
)


class TestGrid:
    def test_the_cube_of_96_on_the_fsl_lattice(self):
        expected = [[-2, 0, 0, 96], [0, 2, 0, -112], [0, 0, 2, -78], [0, 0, 0, 1]]
        np.testing.assert_array_equal(grid_affine(), expected)
        assert grid_affine().dtype == np.float64
        assert VOXEL_SIZE_MM == 2

    @pytest.mark.parametrize("size", [1, 32, 64, 90, 91, 92, 95, 96, 97, 108, 109, 110, 128, 160])
    def test_the_odd_voxel_is_in_front(self, size):
        first = np.linalg.inv(FSL_AFFINE) @ grid_affine(size)[:, 3]
        for axis, length in enumerate(FSL_SHAPE):
            before = -int(first[axis])
            behind = size - length - before
            assert before - behind in ((0, 1) if size >= length else (0, -1))

    def test_the_mni_brain_lies_inside(self, mni_brain):
        voxels = np.stack(np.nonzero(mni_brain))
        assert (voxels.min(axis=1) == (9, 10, 0)).all()
        assert (voxels.max(axis=1) == (81, 99, 77)).all()
        assert way_to_grid(FSL_SHAPE, FSL_AFFINE).mask_to_grid(mni_brain).sum() == mni_brain.sum()


@st.composite
def lattice_scans(draw):
    """A grid of 2 mm voxels on the lattice, its axes in any order and direction: (shape, affine, volume size)."""
    order, shape = draw(st.permutations(range(3))), draw(st.tuples(*[st.integers(1, 6)] * 3))
    signs = draw(st.tuples(*[st.sampled_from([-2.0, 2.0])] * 3))
    affine = np.eye(4)
    affine[:3, :3] = np.diag(signs)[:, order]
    size = draw(st.integers(1, 9))
    centre = grid_affine(size) @ ((size - 1) // 2, (size - 1) // 2, (size - 1) // 2, 1)
    shift = np.array(draw(st.tuples(*[st.integers(-8, 8)] * 3)))
    affine[:3, 3] = centre[:3] + 2 * shift
    return shape, affine, size


class TestPlacement:
    @given(lattice_scans())
    @settings(max_examples=150, deadline=None)
    def test_moves_voxels_to_their_position_and_back_bit_for_bit(self, scan):
        shape, affine, size = scan
        way = way_to_grid(shape, affine, size)
        assert isinstance(way, Placement)
        rng = np.random.default_rng(0)
        frame, cube = rng.normal(size=shape).astype(np.float32), rng.normal(size=(size,) * 3).astype(np.float32)
        to_cube = moved_voxel_by_voxel(frame, affine, (size,) * 3, grid_affine(size))
        assert way.to_grid(frame).tobytes() == to_cube.tobytes()
        np.testing.assert_array_equal(way.to_scan(cube), moved_voxel_by_voxel(cube, grid_affine(size), shape, affine))

    def test_fsl_frames_are_padded_and_cropped(self):
        frame = np.random.default_rng(0).normal(size=FSL_SHAPE).astype(np.float32)
        cube = way_to_grid(FSL_SHAPE, FSL_AFFINE).to_grid(frame)
        np.testing.assert_array_equal(cube[3:94, :, 3:94], frame[:, 7:103])
        assert np.count_nonzero(cube) == 91 * 96 * 91

    def test_rounding_in_a_header_does_not_matter(self):
        affine = FSL_AFFINE.copy()
        affine[:3] += 1e-5 * np.random.default_rng(0).normal(size=(3, 4))
        assert way_to_grid(FSL_SHAPE, affine) == way_to_grid(FSL_SHAPE, FSL_AFFINE)

    def test_fmriprep_res_2_is_moved_whole(self):
        affine = np.diag([2.0, 2, 2, 1])
        affine[:3, 3] = (-96.5, -132.5, -78.5)  # tpl-MNI152NLin2009cAsym_res-02 of TemplateFlow
        way = way_to_grid((97, 115, 97), affine)
        assert isinstance(way, Placement)
        assert way.is_flipped == (True, False, False)
        centre_of_last_voxel = affine @ (96, 114, 96, 1)
        assert np.abs(centre_of_last_voxel - grid_affine() @ (0, 104, 96, 1)).max() == 0.5

    @pytest.mark.parametrize(
        "affine",
        [
            *(FSL_AFFINE + shift * np.eye(4, k=3) for shift in (0.6, 1.0, 1.4)),
            *(FSL_AFFINE @ np.diag([1, size / 2, 1, 1]) for size in (1.999, 2.01, 3.0)),
            np.array([[np.cos(0.01), -np.sin(0.01), 0, 0], [np.sin(0.01), np.cos(0.01), 0, 0], *np.eye(4)[2:]])
            @ FSL_AFFINE,
        ],
        ids=["0.6 mm", "1 mm", "1.4 mm", "1.999 mm voxels", "2.01 mm voxels", "3 mm voxels", "oblique"],
    )
    def test_off_the_lattice_is_resampled(self, affine):
        assert isinstance(way_to_grid(FSL_SHAPE, affine), Resampling)


class TestResampling:
    @pytest.fixture
    def oblique(self):
        """Voxels of 2.5 x 3 x 2.2 mm, turned by 0.2 rad, around the middle of the grid."""
        turn = np.eye(4)
        turn[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
        affine = turn @ np.diag([2.5, 3.0, 2.2, 1])
        affine[:3, 3] = -affine[:3, :3] @ (19.5, 19.5, 19.5) + (0, -16, 18)
        return affine

    def plane(self, shape, affine):
        """Intensities that grow by 1, 2 and 3 a mm along x, y and z: splines of any order keep them."""
        voxels = affine[:3, :3] @ np.indices(shape).reshape(3, -1) + affine[:3, 3:]
        return (1000 + np.array([1, 2, 3]) @ voxels).reshape(shape).astype(np.float32)

    def test_a_plane_stays_a_plane(self, oblique):
        cube = Resampling((40, 40, 40), oblique, 32).to_grid(self.plane((40, 40, 40), oblique))
        expected = self.plane((32, 32, 32), grid_affine(32))
        np.testing.assert_allclose(cube[6:-6, 6:-6, 6:-6], expected[6:-6, 6:-6, 6:-6], rtol=2e-4)

    def test_there_and_back(self, oblique):
        way = Resampling((40, 40, 40), oblique, 64)
        frame = self.plane((40, 40, 40), oblique)
        np.testing.assert_allclose(
            way.to_scan(way.to_grid(frame))[15:25, 15:25, 15:25], frame[15:25, 15:25, 15:25], rtol=1e-3
        )

    def test_masks_take_the_nearest_voxel(self, oblique):
        mask = np.random.default_rng(0).random((40, 40, 40)) < 0.5
        cube = Resampling((40, 40, 40), oblique, 16).mask_to_grid(mask)
        assert cube.dtype == bool
        to_scan = np.linalg.inv(oblique) @ grid_affine(16)
        for index in itertools.product(range(0, 16, 3), repeat=3):
            assert cube[index] == mask[tuple(np.rint(to_scan @ (*index, 1))[:3].astype(int))]

    def test_splines_do_not_ring_past_the_frame(self, oblique):
        frame = np.zeros((40, 40, 40), np.float32)
        frame[20:] = 100
        cube = Resampling((40, 40, 40), oblique, 32).to_grid(frame)
        assert cube.min() == 0
        assert cube.max() == 100

    @pytest.mark.parametrize("shift", [-500, 500])
    def test_nothing_shared_is_nothing(self, oblique, shift):
        oblique[:3, 3] += shift
        assert not Resampling((40, 40, 40), oblique, 32).to_grid(np.ones((40, 40, 40), np.float32)).any()


# --- intensities


class TestIntensities:
    def test_scale_is_a_straight_line_from_minus_one_to_one(self):
        volumes = np.random.default_rng(0).uniform(0, 777, (2, 5, 5, 5)).astype(np.float32)
        volumes[0, 0, 0, :3] = 0, 777, 388.5
        scaled = scale_intensity(volumes, 777)
        assert scaled.dtype == np.float32
        assert scaled[0, 0, 0, :3].tolist() == [-1, 1, 0]
        assert scale_intensity(np.array([50, 100, 1000], np.float32), 100).tolist() == [0, 1, 1]
        np.testing.assert_allclose(scaled, volumes.astype(np.float64) / 777 * 2 - 1, atol=2e-7)
        np.testing.assert_allclose(unscale_intensity(scaled, 777), volumes, atol=1e-4)

    @given(st.floats(2**-10, 2**20, width=32))
    @settings(max_examples=100, deadline=None)
    def test_nothing_is_exactly_minus_one_and_the_maximum_exactly_one(self, scale):
        assert scale_intensity(np.array([0, scale], np.float32), scale).tolist() == [-1, 1]

    def test_percent_change_voxel_by_voxel(self):
        rng = np.random.default_rng(0)
        mean = rng.uniform(50, 1000, (4, 4, 4)).astype(np.float32)
        has_change = mean > 200
        volumes = (mean * rng.normal(1, 0.05, (3, 4, 4, 4))).astype(np.float32)
        expected = np.zeros(volumes.shape)
        for frame, *voxel in itertools.product(range(3), range(4), range(4), range(4)):
            index = tuple(voxel)
            if has_change[index]:
                percent = 100 * (float(volumes[(frame, *index)]) - float(mean[index])) / float(mean[index])
                expected[(frame, *index)] = percent / 6.25
        change = percent_change(volumes, mean, has_change)
        assert change.dtype == np.float32
        np.testing.assert_allclose(change, expected, atol=2e-5)
        assert (change[:, ~has_change] == 0).all()

    def test_percent_change_is_undone(self):
        rng = np.random.default_rng(0)
        mean = rng.uniform(0, 1000, (4, 4, 4)).astype(np.float32)
        mean[0] = 0
        volumes = (mean * rng.normal(1, 0.03, (3, 4, 4, 4))).astype(np.float32)
        restored = undo_percent_change(percent_change(volumes, mean, mean > 0), mean)
        assert restored.dtype == np.float32
        np.testing.assert_allclose(restored, volumes, rtol=1e-5)

    @given(st.lists(st.floats(0, 1e8, width=32), min_size=1, max_size=200), st.floats(0, 100))
    @settings(max_examples=200, deadline=None)
    def test_percentiles_from_counts(self, values, q):
        values = np.array(values, np.float32)
        exact = np.percentile(values.astype(np.float64), q)
        assert percentile_of_counts(count_intensities(values), q) == pytest.approx(
            exact, rel=1 / 4096 + 1e-6, abs=1e-37
        )

    def test_percentiles_of_many_blocks(self):
        values = np.random.default_rng(0).gamma(2, 300, (20, 1000)).astype(np.float32)
        counts = sum(count_intensities(block) for block in values)
        for q in (0, 1, 50, 99.9, 100):
            assert percentile_of_counts(counts, q) == pytest.approx(np.percentile(values, q), rel=1 / 4096)

    def test_minus_zero_counts_as_zero(self):
        assert percentile_of_counts(count_intensities(np.array([-0.0, 0.0], np.float32)), 50) == 0

    def test_a_percentile_over_100(self):
        with pytest.raises(ValueError, match="101"):
            percentile_of_counts(count_intensities(np.ones(3, np.float32)), 101)
