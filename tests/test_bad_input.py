"""An unusable scan at the command line: one line that names it, what to do, and exit code 2."""

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from tablet_hf.cli.__main__ import app


def edit(path, good, change):
    """Write a copy of a good scan, after `change(values, header, affine)` has altered it."""
    image = nibabel.load(good)
    values, header, affine = change(image.get_fdata(dtype=np.float32), image.header.copy(), image.affine.copy())
    header.set_data_dtype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, affine, header), path)
    return path


def with_nan(values, header, affine):
    values[45, 58, 40, 1] = np.nan
    return values, header, affine


def demeaned(values, header, affine):
    return values - values.mean(-1, keepdims=True), header, affine


def without_repetition_time(values, header, affine):
    header["pixdim"][4] = 0
    return values, header, affine


def moved_away(values, header, affine):
    affine[:3, 3] += [0, 90, 60]
    return values, header, affine


def tokenize(scan, out, *options):
    return CliRunner().invoke(app, ["tokenize", *map(str, (scan, "--out", out, *options))])


def refusal(scan, out, *options):
    result = tokenize(scan, out, *options)
    assert result.exit_code == 2, result.output
    assert not list(out.iterdir())
    (line,) = [line for line in result.output.splitlines() if str(scan) in line]
    return line


@pytest.fixture(scope="module")
def good(tmp_path_factory, make_scan):
    return make_scan(tmp_path_factory.mktemp("good") / "good_bold.nii.gz")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_nan, "NaN"),
        (demeaned, "--add-mean"),
        (without_repetition_time, "--repetition-time"),
        (moved_away, "--no-space-check"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_unusable_scans(tmp_path, good, change, reason):
    assert reason in refusal(edit(tmp_path / "sub-01_bold.nii.gz", good, change), tmp_path / "out")


@pytest.mark.parametrize(("content", "reason"), [(b"subject,age\n" * 100, "NIfTI"), (b"", "NIfTI")])
def test_files_that_are_no_scan(tmp_path, content, reason):
    (tmp_path / "sub-01_bold.nii.gz").write_bytes(content)
    assert reason in refusal(tmp_path / "sub-01_bold.nii.gz", tmp_path / "out")


def test_windows_and_masks_that_do_not_fit(tmp_path, good):
    image = nibabel.load(good)
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape[:3], np.uint8), image.affine), tmp_path / "mask.nii.gz")
    options = {"--num-frames": 64, "--start": 3, "--mask": tmp_path / "mask.nii.gz"}
    for option, value in options.items():
        assert option in refusal(good, tmp_path / "out", option, value)


@pytest.mark.parametrize("option", ["--signal", "--scaling"])
def test_a_setting_that_does_not_exist(tmp_path, good, option):
    result = tokenize(good, tmp_path, option, "zscore")
    assert result.exit_code == 2
    assert f"command line: {option}" in result.output


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (demeaned, ["--add-mean", "mean.nii.gz"]),
        (without_repetition_time, ["--repetition-time", 0.72]),
        (moved_away, ["--no-space-check"]),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_remedies_work(tmp_path, monkeypatch, good, change, options):
    """What the messages advise, done."""
    monkeypatch.chdir(tmp_path)
    image = nibabel.load(good)
    nibabel.save(nibabel.Nifti1Image(image.get_fdata(dtype=np.float32).mean(-1), image.affine), "mean.nii.gz")
    scan = edit(tmp_path / "sub-01_bold.nii.gz", good, change)
    result = tokenize(scan, tmp_path / "out", "--num-frames", 1, *options)
    assert result.exit_code == 0, result.output
