"""Volumes of the model's grid come back to the grid of their scan, in a file that is whole or not there."""

import itertools
import weakref

import nibabel as nib
import numpy as np
import pytest
from small_scans import FSL_AFFINE, all_volumes, small_run, small_scan, write_scan

from tablet_hf.errors import InputError
from tablet_hf.nifti import write_nifti
from tablet_hf.volumes import open_run


def written(run, path, **settings):
    return nib.load(write_nifti([all_volumes(run)], run.num_frames, run, path, **settings))


class TestGridOfTheScan:
    @pytest.mark.parametrize("signs", list(itertools.product((-2.0, 2.0), repeat=3)))
    def test_whole_voxel_moves_are_undone_bit_for_bit(self, tmp_path, signs):
        values, _ = small_scan()
        affine = np.diag([*signs, 1.0])
        affine[:3, 3] = 4, -20, 8
        image = written(small_run(scan=(values, affine), mask=np.ones((7, 8, 9)), volume_size=96), tmp_path / "a.nii")
        np.testing.assert_array_equal(image.get_fdata(), values)
        np.testing.assert_array_equal(image.affine, affine)

    def test_fsl_frames_come_back_inside_the_cube(self, tmp_path, brain_values):
        run = open_run((brain_values, FSL_AFFINE), repetition_time=2)
        np.testing.assert_array_equal(written(run, tmp_path / "a.nii").get_fdata(), brain_values)

    def test_other_grids_are_resampled(self, tmp_path, mni_brain):
        affine, brain = FSL_AFFINE @ np.diag([2.0, 2, 2, 1]), mni_brain[::2, ::2, ::2]
        x, y, z = np.indices((46, 55, 46))
        smooth = 1000 + 200 * np.sin(x / 6) * np.cos(y / 7) * np.sin(z / 5)
        values = (smooth[..., None] * np.array([1, 1.1]) * brain[..., None]).astype(np.float32)
        run = open_run((values, affine), repetition_time=2)
        image = written(run, tmp_path / "a.nii")
        assert run.is_resampled
        np.testing.assert_array_equal(image.affine, affine)
        back = image.get_fdata()
        assert np.corrcoef(back[brain].ravel(), values[brain].ravel())[0, 1] > 0.8
        np.testing.assert_allclose(back[17:29, 20:35, 15:25], values[17:29, 20:35, 15:25], rtol=0.01)


class TestHeader:
    def test_grid_unit_and_time_are_those_of_the_scan(self, tmp_path):
        values, affine = small_scan()
        run = open_run(write_scan(tmp_path / "run.nii.gz", values, affine, 0.72), check_space=False, volume_size=48)
        image = written(run, tmp_path / "back.nii.gz")
        assert isinstance(image, nib.Nifti1Image)
        assert (image.shape, image.get_data_dtype()) == (values.shape, np.float32)
        assert image.header.get_zooms() == pytest.approx((2, 2, 2, 0.72))
        assert image.header.get_xyzt_units() == ("mm", "sec")
        assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (4, 4)
        assert open_run(tmp_path / "back.nii.gz", check_space=False).repetition_time == 0.72

    def test_the_space_is_called_mni_only_where_it_was_checked(self, tmp_path, brain_values):
        def codes(run):
            header = nib.load(write_nifti([np.zeros((1, 96, 96, 96))], 1, run, tmp_path / "a.nii")).header
            return int(header["sform_code"]), int(header["qform_code"])

        unnamed = write_scan(tmp_path / "unnamed.nii", brain_values[..., :2], code=0)
        talairach = write_scan(tmp_path / "talairach.nii", brain_values[..., :2], code=3)
        assert codes(open_run(unnamed, check_space=False)) == (2, 2)
        assert codes(open_run((brain_values, FSL_AFFINE), repetition_time=2)) == (4, 4)
        assert codes(open_run(talairach, check_space=False)) == (3, 3)

    def test_nifti_2_where_a_dimension_needs_it(self, tmp_path):
        run = small_run(scan=(np.ones((1, 1, 1, 1), np.float32), small_scan()[1]), volume_size=1)
        blocks = (np.full((4096, 1, 1, 1), number) for number in range(8))
        image = nib.load(write_nifti(blocks, 32_768, run, tmp_path / "long.nii"))
        assert isinstance(image, nib.Nifti2Image)
        assert image.shape[3] == 32_768

    @pytest.mark.parametrize("seconds", [0.02, 72.5, 1e-7])
    def test_any_positive_time_between_frames(self, seconds, tmp_path):
        image = written(small_run(), tmp_path / "a.nii", repetition_time=seconds)
        assert image.header.get_zooms()[3] == pytest.approx(seconds)

    @pytest.mark.parametrize("seconds", [0, -2, float("nan"), float("inf")])
    def test_other_times_are_refused(self, seconds, tmp_path):
        with pytest.raises(InputError, match="repetition time"):
            written(small_run(), tmp_path / "a.nii", repetition_time=seconds)
        assert not list(tmp_path.iterdir())


class TestFile:
    @pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
    @pytest.mark.parametrize("sizes", [(6,), (1, 2, 3), (4, 0, 2)])
    def test_blocks_of_any_size_make_the_same_file(self, tmp_path, ending, sizes):
        run, path = small_run(), tmp_path / f"a{ending}"
        assert write_nifti(np.split(all_volumes(run), np.cumsum(sizes)[:-1]), 6, run, path) == path
        np.testing.assert_array_equal(nib.load(path).get_fdata(), small_scan()[0])

    @pytest.mark.parametrize("announced", [5, 7])
    def test_a_failure_leaves_the_existing_file(self, tmp_path, announced):
        (tmp_path / "a.nii").write_text("old")
        with pytest.raises(ValueError, match="6 came"):
            write_nifti([all_volumes(small_run())], announced, small_run(), tmp_path / "a.nii")
        assert [path.name for path in tmp_path.iterdir()] == ["a.nii"]
        assert (tmp_path / "a.nii").read_text() == "old"

    def test_volumes_of_another_shape(self, tmp_path):
        with pytest.raises(ValueError, match=r"\(48, 48, 48\)"):
            write_nifti([np.zeros((1, 48, 48, 47))], 1, small_run(), tmp_path / "a.nii")

    def test_only_one_block_lives_at_a_time(self, tmp_path):
        alive = []

        def blocks():
            for _ in range(6):
                block = np.ones((1, 48, 48, 48), np.float32)
                alive.append(weakref.ref(block))
                assert sum(reference() is not None for reference in alive) <= 2
                yield block

        write_nifti(blocks(), 6, small_run(), tmp_path / "a.nii.gz")
        assert len(alive) == 6

    @pytest.mark.parametrize("name", ["a.img", "a.gz", "a", "none/a.nii"])
    def test_names_and_folders(self, tmp_path, name):
        with pytest.raises(InputError, match=name):
            write_nifti([], 0, small_run(), tmp_path / name)
