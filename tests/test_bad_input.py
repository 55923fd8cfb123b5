"""Everything that can be wrong with a scan, at the command line: one sentence that names it, and exit code 2."""

import gzip

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from tablet_hf.cli.__main__ import app


def edited(path, good, change):
    """A copy of a good scan, after `change(values, header, affine)` has returned what to alter."""
    image = nibabel.load(good)
    values, header, affine = change(image.get_fdata(dtype=np.float32), image.header.copy(), image.affine.copy())
    header.set_data_dtype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, affine, header), path)


def with_nan(values, header, affine):
    values[45, 58, 40, 1] = np.nan
    return values, header, affine


def with_infinity(values, header, affine):
    values[45, 58, 40, 1] = np.inf
    return values, header, affine


def demeaned(values, header, affine):
    return values - values.mean(-1, keepdims=True), header, affine


def without_repetition_time(values, header, affine):
    header["pixdim"][4] = 0
    return values, header, affine


def absurd_repetition_time(values, header, affine):
    header["pixdim"][4] = 0.72
    header.set_xyzt_units("mm", "msec")
    return values, header, affine


def moved_away(values, header, affine):
    affine[:3, 3] += [0, 90, 60]
    return values, header, affine


EDITS = {
    "3D": (lambda v, h, a: (v[..., 0], h, a), "3D"),
    "NaN": (with_nan, "NaN"),
    "Inf": (with_infinity, "infinite"),
    "all zero": (lambda v, h, a: (v * 0, h, a), "zero"),
    "demeaned": (demeaned, "--add-mean"),
    "no repetition time": (without_repetition_time, "--repetition-time"),
    "0.72 ms": (absurd_repetition_time, "--repetition-time"),
    "affine elsewhere": (moved_away, "--no-space-check"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory, make_scan):
    return make_scan(tmp_path_factory.mktemp("good") / "good_bold.nii.gz")


def refused(tmp_path, scan, *options):
    result = CliRunner().invoke(app, ["tokenize", str(scan), "--out", str(tmp_path / "out"), *map(str, options)])
    assert result.exit_code == 2, result.output
    assert not list((tmp_path / "out").iterdir())
    sentences = [line for line in result.output.splitlines() if line.startswith("Skipped: ")]
    assert len(sentences) == 1, result.output
    assert str(scan) in sentences[0]
    return sentences[0]


@pytest.mark.parametrize(("change", "said"), EDITS.values(), ids=EDITS.keys())
@pytest.mark.filterwarnings("ignore")
def test_scans_that_say_something_wrong(tmp_path, good, change, said):
    scan = tmp_path / "sub-01_bold.nii.gz"
    edited(scan, good, change)
    assert said.lower() in refused(tmp_path, scan).lower()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda good: b"", "empty"),
        (lambda good: b"subject,age\nsub-01,30\n" * 100, "NIfTI"),
        (lambda good: good[: len(good) // 2], "ends"),
        (lambda good: gzip.compress(b"no header here" * 100), "NIfTI"),
    ],
    ids=["empty", "not a NIfTI", "truncated gzip", "compressed text"],
)
def test_files_that_are_no_whole_scan(tmp_path, good, content, said):
    scan = tmp_path / "sub-01_bold.nii.gz"
    scan.write_bytes(content(good.read_bytes()))
    assert said in refused(tmp_path, scan)


def test_a_header_that_claims_a_hundred_gigabytes(tmp_path, good):
    image = nibabel.load(good)
    header = image.header.copy()
    header.set_data_shape((1000, 1000, 1000, 50))
    scan = tmp_path / "sub-01_bold.nii"
    scan.write_bytes(header.binaryblock + b"\0" * 100_000)
    refused(tmp_path, scan)


def test_fewer_frames_than_the_window(tmp_path, good):
    sentence = refused(tmp_path, good, "--num-frames", 64)
    assert "64 frames were asked for" in sentence
    assert "only 3" in sentence
    assert "command line: --num-frames" in sentence


def test_a_window_behind_the_last_frame(tmp_path, good):
    assert "command line: --start" in refused(tmp_path, good, "--start", 3)


def test_an_empty_mask(tmp_path, good):
    mask = tmp_path / "mask.nii.gz"
    image = nibabel.load(good)
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape[:3], np.uint8), image.affine), mask)
    assert "command line: --mask" in refused(tmp_path, good, "--mask", mask)


@pytest.mark.parametrize("option", ["--signal", "--scaling"])
def test_a_setting_that_does_not_exist(tmp_path, good, option):
    result = CliRunner().invoke(app, ["tokenize", str(good), "--out", str(tmp_path), option, "zscore"])
    assert result.exit_code == 2
    assert f"command line: {option}" in result.output


def test_a_mask_of_another_shape(tmp_path, good):
    mask = tmp_path / "mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((64, 64, 36), np.uint8), np.diag([3, 3, 3, 1])), mask)
    sentence = refused(tmp_path, good, "--mask", mask)
    assert "64" in sentence
    assert "91" in sentence


@pytest.mark.filterwarnings("ignore")
def test_the_ways_out_work(tmp_path, good):
    """What the sentences tell to do, done."""
    mean = tmp_path / "mean.nii.gz"
    image = nibabel.load(good)
    nibabel.save(nibabel.Nifti1Image(image.get_fdata(dtype=np.float32).mean(-1), image.affine), mean)
    ways = {
        "demeaned": (demeaned, ["--add-mean", mean]),
        "no TR": (without_repetition_time, ["--repetition-time", 0.72]),
        "elsewhere": (moved_away, ["--no-space-check"]),
    }
    for name, (change, options) in ways.items():
        scan = tmp_path / f"{name.replace(' ', '-')}_bold.nii.gz"
        edited(scan, good, change)
        arguments = ["tokenize", scan, "--out", tmp_path / "out", "--num-frames", 1, *options]
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == 0, (name, result.output)
