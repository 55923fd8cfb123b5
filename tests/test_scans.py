"""Opening a scan: what can be read is read right, what cannot is refused in one sentence."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel import openers

from tablet_hf.errors import InputError
from tablet_hf.scans import (
    declared_space,
    find_brain_mask_file,
    find_repetition_time,
    find_sidecars,
    is_native_space,
    load_volume,
    open_source,
)

AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])


def some_values(shape=(4, 5, 6, 7), dtype=np.int16, seed=0):
    values = np.random.default_rng(seed).integers(1, 100, shape)
    return np.asfortranarray(values.astype(dtype))


def write(path, values, kind=nib.Nifti1Image, repetition_time=2.0, unit="sec", affine=AFFINE, code=4):
    image = kind(values, affine, dtype=values.dtype)
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    image.header.set_xyzt_units("mm", unit)
    image.header["pixdim"][4] = repetition_time
    nib.save(image, path)
    return path


def read_all(scan):
    source = open_source(scan)
    return np.stack(list(source.frames(range(source.num_frames))), axis=-1)


def refusal(scan, **settings):
    def open_and_read():
        source = open_source(scan, **settings)
        list(source.frames(range(source.num_frames)))

    with pytest.raises(InputError) as caught:
        open_and_read()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    if isinstance(scan, str | Path):
        assert str(scan) in sentence
    return sentence


class TestWhatCanBeRead:
    @pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"])
    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
    def test_every_number_type_and_byte_order(self, tmp_path, dtype, order, ending):
        values = some_values(dtype=dtype)
        header = nib.Nifti1Header(endianness=order)
        header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
        image = nib.Nifti1Image(values, AFFINE, header)
        nib.save(image, tmp_path / f"run{ending}")
        assert nib.load(tmp_path / f"run{ending}").header.endianness == order
        found = read_all(tmp_path / f"run{ending}")
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, values.astype(np.float32))

    @pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
    def test_slope_and_intercept_are_applied(self, tmp_path, ending):
        values = some_values()
        header = nib.Nifti1Header()
        header.set_data_dtype(np.int16)
        image = nib.Nifti1Image(values, AFFINE, header)
        image.header.set_slope_inter(0.25, -3)  # nibabel then stores the values as they are
        nib.save(image, tmp_path / f"run{ending}")
        assert nib.load(tmp_path / f"run{ending}").dataobj.slope == 0.25
        np.testing.assert_array_equal(read_all(tmp_path / f"run{ending}"), values * np.float32(0.25) - np.float32(3))

    @pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
    def test_nifti_2(self, tmp_path, ending):
        path = write(tmp_path / f"run{ending}", some_values(), nib.Nifti2Image)
        np.testing.assert_array_equal(read_all(path), some_values())

    @pytest.mark.parametrize("ending", [".hdr", ".img"])
    def test_pair_of_header_and_image(self, tmp_path, ending):
        write(tmp_path / "run.img", some_values(), nib.Nifti1Pair)
        np.testing.assert_array_equal(read_all(tmp_path / f"run{ending}"), some_values())

    def test_images_and_arrays_in_memory(self):
        values = some_values(dtype=np.float64)
        for scan in (nib.Nifti1Image(values, AFFINE), (values, AFFINE), (values.tolist(), AFFINE.tolist())):
            np.testing.assert_array_equal(read_all(scan), values)

    def test_image_loaded_by_the_caller(self, tmp_path):
        path = write(tmp_path / "run.nii.gz", some_values())
        source = open_source(nib.load(path))
        assert (source.path, source.name) == (path, str(path))
        np.testing.assert_array_equal(read_all(nib.load(path)), some_values())

    def test_grid_is_the_one_of_the_header(self, tmp_path):
        source = open_source(write(tmp_path / "run.nii.gz", some_values()))
        assert (source.shape, source.num_frames, source.xform_code) == ((4, 5, 6), 7, 4)
        np.testing.assert_array_equal(source.affine, AFFINE)

    def test_not_a_scan_at_all(self):
        with pytest.raises(TypeError, match="int"):
            open_source(3)


class TestReadingIsLinear:
    @pytest.mark.parametrize("as_image", [False, True])
    def test_a_compressed_run_is_decompressed_once_a_pass(self, tmp_path, monkeypatch, as_image):
        values = some_values((8, 8, 8, 50))
        path = write(tmp_path / "run.nii.gz", values)
        source = open_source(nib.load(path) if as_image else path)
        work = {"opened": 0, "bytes": 0, "steps back": 0}

        class CountingGzip(gzip.GzipFile):
            def __init__(self, *args, **kwargs):
                work["opened"] += 1
                self.furthest = 0
                super().__init__(*args, **kwargs)

            def read(self, size=-1):
                content = super().read(size)
                work["bytes"] += len(content)
                return content

            def seek(self, offset, whence=0):
                work["steps back"] += offset < self.furthest
                self.furthest = offset
                return super().seek(offset, whence)

        def counting_open(filename, mode="rb", **_):
            return CountingGzip(filename, mode)

        names = dict(openers.ImageOpener.compress_ext_map, **{".gz": (counting_open, ("mode",))})
        monkeypatch.setattr(openers.ImageOpener, "compress_ext_map", names)
        assert len(list(source.frames(range(50)))) == 50
        assert work == {"opened": 1, "bytes": values.nbytes, "steps back": 0}

    def test_an_early_window_leaves_the_rest_of_the_file_alone(self, tmp_path):
        path = write(tmp_path / "run.nii.gz", np.random.default_rng(0).integers(0, 9999, (9, 9, 9, 90)).astype("i2"))
        source = open_source(path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert len(list(source.frames(range(10)))) == 10


class TestFilesThatCannotBeUsed:
    @pytest.mark.parametrize(
        ("name", "content", "reason"),
        [
            ("none.nii.gz", None, "no such file"),
            (".", None, "no such file"),
            ("run.nii.gz", b"", "NIfTI"),
            ("run.nii", b"a,b,c\n" * 200, "NIfTI"),
            ("run.nii.gz", b"a,b,c\n" * 200, "NIfTI"),
            ("run.nii", gzip.compress(bytes(1000), mtime=0), "NIfTI"),
            ("run.nii.gz", gzip.compress(b"a,b,c\n" * 200, mtime=0), "NIfTI"),
        ],
    )
    def test_no_scan(self, tmp_path, name, content, reason):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        assert reason in refusal(tmp_path / name)

    def test_link_to_content_that_was_not_fetched(self, tmp_path):
        (tmp_path / "run.nii.gz").symlink_to(tmp_path / ".git" / "annex" / "objects" / "x")
        assert "datalad get" in refusal(tmp_path / "run.nii.gz")

    def test_other_formats(self, tmp_path):
        nib.save(nib.MGHImage(some_values(dtype=np.float32), AFFINE), tmp_path / "run.mgz")
        series = nib.cifti2.SeriesAxis(0, 1, 10)
        grayordinates = nib.cifti2.BrainModelAxis.from_mask(np.ones(8, bool), name="CIFTI_STRUCTURE_CORTEX_LEFT")
        image = nib.Cifti2Image(np.ones((10, 8), np.float32), (series, grayordinates))
        nib.save(image, tmp_path / "run.dtseries.nii")
        assert "MGHImage" in refusal(tmp_path / "run.mgz")
        assert "Cifti2Image" in refusal(tmp_path / "run.dtseries.nii")

    @pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5, 6, 7, 1), (4, 5, 6, 0)])
    def test_no_4d_run(self, shape):
        assert "4D" in refusal((np.zeros(shape), AFFINE))

    def test_damaged_header(self, tmp_path):
        path = write(tmp_path / "run.nii", some_values())
        content = bytearray(path.read_bytes())
        content[70:72] = b"\xff\x7f"  # a data type code that does not exist
        path.write_bytes(content)
        assert "not a readable NIfTI" in refusal(path)

    @pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
    def test_truncated_gzip_is_found_in_mid_stream(self, tmp_path, share):
        values = np.random.default_rng(0).integers(0, 30000, (20, 20, 20, 10)).astype(np.int16)
        path = write(tmp_path / "run.nii.gz", values)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        source, good = open_source(path), []
        with pytest.raises(InputError, match=r"run\.nii\.gz.*cut off"):
            good.extend(source.frames(range(10)))
        assert abs(len(good) - share * 10) < 1.5

    @pytest.mark.parametrize(
        "damage",
        [
            lambda content: content[:60],
            lambda content: content[: len(content) // 2] + bytes(50) + content[len(content) // 2 + 50 :],
            lambda content: content[:-8] + bytes([content[-8] ^ 0xFF]) + content[-7:],
        ],
        ids=["cut off in the header", "zeros in the middle", "wrong checksum"],
    )
    def test_damaged_gzip(self, tmp_path, damage):
        values = np.random.default_rng(0).integers(0, 30000, (20, 20, 20, 10)).astype(np.int16)
        path = write(tmp_path / "run.nii.gz", values)
        path.write_bytes(damage(path.read_bytes()))
        assert "copy" in refusal(path)

    def test_truncated_without_compression(self, tmp_path):
        path = write(tmp_path / "run.nii", some_values())
        path.write_bytes(path.read_bytes()[:-5])
        assert "cannot hold" in refusal(path)

    @pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
    def test_a_header_that_claims_what_the_file_cannot_hold(self, tmp_path, ending):
        header = nib.Nifti1Header()
        header.set_data_shape((2000, 2000, 2000, 2000))
        header.set_data_dtype(np.float32)
        header["vox_offset"] = 352
        content = header.binaryblock + bytes(40_000)
        path = tmp_path / f"run{ending}"
        path.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
        assert "cannot hold" in refusal(path, check_space=False)

    def test_voxels_missing_next_to_a_header(self, tmp_path):
        write(tmp_path / "run.img", some_values(), nib.Nifti1Pair)
        (tmp_path / "run.img").unlink()
        assert "missing" in refusal(tmp_path / "run.hdr")

    @pytest.mark.parametrize(
        "dtype", ["c8", [("R", "u1"), ("G", "u1"), ("B", "u1")]], ids=["complex numbers", "colours"]
    )
    def test_voxels_that_are_no_intensities(self, tmp_path, dtype):
        assert "intensities" in refusal(write(tmp_path / "run.nii.gz", np.zeros((4, 5, 6, 7), dtype)))

    @pytest.mark.parametrize(
        "affine",
        [
            np.where(np.eye(4, k=3), np.nan, AFFINE),
            np.where(np.eye(4), np.inf, AFFINE),
            np.diag([2.0, 2, 0, 1]),
            np.diag([0.0, 0, 0, 1]),
            np.diag([2.0, 2, 2, 2]),
            np.eye(3),
            None,
        ],
    )
    def test_unusable_affines(self, affine):
        assert "4 x 4" in refusal((some_values(), affine))

    def test_neither_sform_nor_qform(self, tmp_path):
        path = write(tmp_path / "run.nii.gz", some_values(), code=0)
        assert "--no-space-check" in refusal(path)
        assert open_source(path, check_space=False).xform_code == 0


class TestCompanions:
    @pytest.fixture
    def source(self, tmp_path):
        return open_source(write(tmp_path / "run.nii.gz", some_values()))

    def test_paths_images_and_arrays(self, tmp_path, source):
        mask = some_values((4, 5, 6), np.uint8)
        path = write(tmp_path / "mask.nii.gz", mask)
        for given in (path, str(path), nib.load(path), (mask, AFFINE), mask, mask[..., None]):
            np.testing.assert_array_equal(load_volume(given, "mask", source), mask)

    def test_values_that_are_not_finite_count_as_nothing(self, source):
        mask = np.ones((4, 5, 6))
        mask[0, 0, :2] = np.nan, np.inf
        assert load_volume(mask, "mask", source).sum() == mask.size - 2

    @pytest.mark.parametrize(
        ("mask", "reason"),
        [
            (np.ones((4, 5, 7)), r"\(4, 5, 7\).*\(4, 5, 6\)"),
            ((np.ones((4, 5, 6)), np.diag([2.0, 2, 2, 1])), "resample"),
            ((np.ones((4, 5, 6)), np.eye(3)), "4 x 4"),
            (np.full((4, 5, 6), "a"), "cannot be read"),
        ],
    )
    def test_what_does_not_fit_the_scan(self, source, mask, reason):
        with pytest.raises(InputError, match=reason):
            load_volume(mask, "mask", source)

    def test_a_damaged_file(self, tmp_path):
        values = np.random.default_rng(0).integers(0, 30000, (20, 20, 20, 2)).astype(np.int16)
        source = open_source((values, AFFINE))
        path = write(tmp_path / "mask.nii.gz", values[..., 0])
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(InputError, match=r"mask\.nii\.gz.*cannot be read"):
            load_volume(path, "mask", source)

    def test_rounding_in_the_affine_is_forgiven(self, source):
        load_volume((np.ones((4, 5, 6)), AFFINE + 1e-4 * (AFFINE != 0) * [[1], [1], [1], [0]]), "mask", source)


class TestRepetitionTime:
    @pytest.mark.parametrize(
        ("stored", "unit", "seconds"),
        [(0.72, "sec", 0.72), (720, "msec", 0.72), (720_000, "usec", 0.72), (2.2, "unknown", 2.2), (30, "sec", 30)],
    )
    def test_header_with_its_unit(self, tmp_path, stored, unit, seconds):
        path = write(tmp_path / "run.nii.gz", some_values(), repetition_time=stored, unit=unit)
        assert find_repetition_time(open_source(path)) == seconds

    @pytest.mark.parametrize(
        ("stored", "unit"),
        [(0, "sec"), (0.72, "msec"), (720, "sec"), (1, "unknown"), (-2, "sec"), (np.nan, "sec"), (2, "hz")],
    )
    def test_missing_zero_or_absurd(self, tmp_path, stored, unit):
        path = write(tmp_path / "run.nii.gz", some_values(), repetition_time=stored, unit=unit)
        with pytest.raises(InputError, match=r"run.nii.gz.*repetition_time=.*--repetition-time"):
            find_repetition_time(open_source(path))
        assert find_repetition_time(open_source(path), 2.0) == 2.0

    @pytest.mark.parametrize("given", [0, -1, 720, np.nan, "two"])
    def test_what_is_given_must_make_sense(self, tmp_path, given):
        with pytest.raises(InputError, match="repetition_time="):
            find_repetition_time(open_source(write(tmp_path / "run.nii.gz", some_values())), given)

    def test_a_bare_array_has_none(self):
        with pytest.warns(UserWarning, match="1 s"):
            assert find_repetition_time(open_source((some_values(), AFFINE))) == 1.0

    def test_sidecar_of_the_same_name_before_the_header(self, tmp_path):
        path = write(tmp_path / "rfMRI_REST1_LR.nii.gz", some_values(), repetition_time=2)
        (tmp_path / "rfMRI_REST1_LR.json").write_text('{"RepetitionTime": 0.72}')
        assert find_repetition_time(open_source(path)) == 0.72
        assert find_repetition_time(open_source(path), 1.4) == 1.4

    def test_sidecar_with_an_absurd_value_is_named(self, tmp_path):
        path = write(tmp_path / "run.nii.gz", some_values())
        (tmp_path / "run.json").write_text('{"RepetitionTime": 2200}')
        with pytest.raises(InputError, match=r"run\.json.*milliseconds\? then 2\.2"):
            find_repetition_time(open_source(path))

    def test_broken_sidecar_is_ignored_with_a_warning(self, tmp_path):
        path = write(tmp_path / "run.nii.gz", some_values(), repetition_time=2)
        (tmp_path / "run.json").write_text('{"RepetitionTime": 0.7')
        with pytest.warns(UserWarning, match="run.json"):
            assert find_repetition_time(open_source(path)) == 2


class TestBidsNames:
    @pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
    @pytest.mark.parametrize("description", ["_desc-preproc", "_desc-denoised", ""])
    def test_mask_next_to_the_scan(self, tmp_path, ending, description):
        scan = tmp_path / f"sub-01_task-rest_space-MNI152NLin6Asym_res-2{description}_bold.nii.gz"
        assert find_brain_mask_file(scan) is None
        mask = tmp_path / f"sub-01_task-rest_space-MNI152NLin6Asym_res-2_desc-brain_mask{ending}"
        mask.touch()
        assert find_brain_mask_file(scan) == mask

    def test_only_bids_names_have_one(self, tmp_path):
        (tmp_path / "desc-brain_mask.nii.gz").touch()
        assert find_brain_mask_file(tmp_path / "bold.nii.gz") is None

    def test_declared_space(self):
        assert declared_space(Path("sub-1_task-rest_space-T1w_desc-preproc_bold.nii.gz")) == "T1w"
        assert declared_space(Path("run.nii.gz")) is None
        assert all(map(is_native_space, ["T1w", "native", "fsaverage5", "fsLR", "boldref", "scanner"]))
        assert not any(map(is_native_space, ["MNI152NLin2009cAsym", "MNI152NLin6Asym", "MNIPediatricAsym"]))


def test_scanner_axes_differ_from_those_of_a_template(tmp_path):
    turned = AFFINE.copy()
    turned[:2, :2] = np.array([[np.cos(0.05), -np.sin(0.05)], [np.sin(0.05), np.cos(0.05)]]) @ AFFINE[:2, :2]
    assert not open_source(write(tmp_path / "a.nii", some_values())).has_scanner_axes
    assert open_source(write(tmp_path / "b.nii", some_values(), affine=turned)).has_scanner_axes
    assert open_source(write(tmp_path / "c.nii", some_values(), code=1)).has_scanner_axes


def test_real_scans(real_data):
    func = real_data("bold/sub-01/func")
    scan = next(func.glob("*_bold.nii.gz"))
    source = open_source(scan)
    assert (source.shape, source.num_frames, source.has_scanner_axes) == ((91, 109, 91), 28, False)
    assert find_repetition_time(source) == 2.2
    assert find_brain_mask_file(scan) == next(func.glob("*_mask.nii.gz"))
    frame = next(source.frames([27]))
    np.testing.assert_array_equal(frame, nib.load(scan).get_fdata(dtype=np.float32)[..., 27])
    assert open_source(real_data("bold/native_space_bold.nii.gz")).has_scanner_axes


def test_sidecars_are_found_from_the_most_to_the_least_specific(tmp_path):
    scan = tmp_path / "study" / "sub-01" / "sub-01_task-rest_bold.nii.gz"
    scan.parent.mkdir(parents=True)
    names = ["sub-01/sub-01_task-rest_bold.json", "sub-01/sub-01_bold.json", "task-rest_bold.json", "bold.json"]
    for name in (*names, "task-nback_bold.json", "sub-01/sub-01_task-rest_events.json"):
        (tmp_path / "study" / name).write_text("{}")
    (tmp_path / "bold.json").write_text("{}")  # outside the dataset
    assert find_sidecars(scan) == [tmp_path / "study" / name for name in names]
    write(scan, some_values(), repetition_time=9)
    (tmp_path / "study" / names[2]).write_text('{"RepetitionTime": 1.2}')
    assert find_repetition_time(open_source(scan)) == 1.2
    (tmp_path / "study" / names[1]).write_text('{"RepetitionTime": 1.3}')
    assert find_repetition_time(open_source(scan)) == 1.3
