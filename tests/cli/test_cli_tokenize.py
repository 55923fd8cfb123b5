"""`tablet-hf tokenize` of single scans and `tablet-hf reconstruct`: files, output and exit codes."""

import os

import nibabel
import numpy as np
import pytest
import torch
from small_autoencoders import residual_autoencoder
from typer.testing import CliRunner

from tablet_hf import TabletFeatureExtractor
from tablet_hf.cli.__main__ import app
from tablet_hf.datasets.token_files import load_tokens


def tablet_hf(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """Options that name a small autoencoder of random weights."""
    folder = tmp_path_factory.mktemp("autoencoder")
    residual_autoencoder((4,) * 6).save_pretrained(folder)
    return ["--autoencoder", folder]


@pytest.fixture(scope="module")
def scans(tmp_path_factory, make_scan):
    folder = tmp_path_factory.mktemp("scans")
    return [make_scan(folder / f"sub-0{number}_bold.nii.gz", frames=4 - number, seed=number) for number in (1, 2)]


@pytest.fixture
def tokenize(autoencoder, tmp_path):
    return lambda *words: tablet_hf("tokenize", *words, "--out", tmp_path / "out", *autoencoder)


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_file_for_each_scan_which_is_kept_the_next_time(tokenize, scans, autoencoder, tmp_path):
    assert tokenize(*scans).exit_code == 0
    before = times(tmp_path / "out")
    assert sorted(before) == ["sub-01_bold_tokens.safetensors", "sub-02_bold_tokens.safetensors"]
    extractor = TabletFeatureExtractor(str(autoencoder[-1]))
    for scan in scans:
        run, record = load_tokens(tmp_path / "out" / f"{scan.name.split('.')[0]}_tokens.safetensors")
        torch.testing.assert_close(run.tokens, extractor.tokenize(scan).tokens.half())
        assert run.tokens.dtype == torch.float16
        assert run.repetition_time == 2.0
        assert record["autoencoder"] == str(autoencoder[-1])
        assert record["source"]["path"] == str(scan)
    again = tokenize(*scans, scans[0])
    assert again.exit_code == 0
    assert again.output.count("already") == 2
    assert times(tmp_path / "out") == before


def test_other_tokens_are_replaced_only_with_overwrite(tokenize, scans, tmp_path):
    assert tokenize(scans[0], "--num-frames", 1).exit_code == 0
    before = times(tmp_path / "out")
    refused = tokenize(scans[0], "--num-frames", 2)
    assert refused.exit_code == 2
    assert "--overwrite" in refused.output
    assert times(tmp_path / "out") == before
    assert tokenize(scans[0], "--num-frames", 2, "--overwrite").exit_code == 0
    run, _ = load_tokens(tmp_path / "out" / "sub-01_bold_tokens.safetensors")
    assert len(run.tokens) == 2


def test_damaged_scans_are_listed_and_the_others_done(tokenize, scans, tmp_path):
    damaged, endless = tmp_path / "damaged_bold.nii.gz", tmp_path / f"{'x' * 300}.nii.gz"
    damaged.write_bytes(scans[0].read_bytes()[:5000])
    result = tokenize(damaged, scans[0], tmp_path / "missing.nii.gz", endless, "--num-frames", 1)
    assert result.exit_code == 2
    assert list(times(tmp_path / "out")) == ["sub-01_bold_tokens.safetensors"]
    assert "3 of 4" in result.output
    assert all(name in result.output for name in (damaged.name, "missing.nii.gz", endless.name))


def test_two_scans_of_one_name_are_refused_before_the_work(tokenize, make_scan, tmp_path):
    scans = [make_scan(tmp_path / folder / "rest.nii.gz", frames=1) for folder in ("100307", "100408")]
    result = tokenize(*scans)
    assert result.exit_code == 2
    assert "rest_tokens.safetensors" in result.output
    assert not (tmp_path / "out").exists()
    assert tokenize(scans[0]).exit_code == 0
    assert tokenize(scans[1]).exit_code == 2  # the file has the tokens of the other


@pytest.mark.parametrize(
    ("changed", "option"),
    [
        ("bold.json", None),
        ("sub-01_desc-brain_mask.nii.gz", None),
        ("mask.nii.gz", "--mask"),
        ("mean.nii.gz", "--add-mean"),
    ],
)
def test_a_changed_companion_file_is_noticed(tokenize, make_scan, tmp_path, changed, option):
    data = tmp_path / "data"
    data.mkdir()
    scan = make_scan(data / "sub-01_desc-preproc_bold.nii.gz", frames=1)
    (data / "bold.json").write_text('{"RepetitionTime": 2.0}')
    image = nibabel.load(scan)
    volume = nibabel.Nifti1Image((image.get_fdata()[..., 0] > 0).astype(np.uint8), image.affine)
    for name in ("sub-01_desc-brain_mask", "mask", "mean"):
        nibabel.save(volume, data / f"{name}.nii.gz")
    words = [scan, *([option, data / changed] if option else [])]
    assert [tokenize(*words).exit_code for _ in range(2)] == [0, 0]
    os.utime(data / changed, (1, 1))
    assert tokenize(*words).exit_code == 2


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["--signal", "zscore"], "percent_change"),
        (["--autoencoder", "no-such-thing"], "no-such-thing"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--device", "foo"], "--device foo"),
        (["--dry-run"], "--source"),
        (["--source", "bids", "--num-frames", 2], "--num-frames"),
        (["--source", "bids", "--overwrite"], "--overwrite"),
        (["--mask", "mask.nii.gz"], "--mask"),
    ],
)
def test_options_that_cannot_be_used(scans, tmp_path, words, word):
    result = tablet_hf("tokenize", *scans, "--out", tmp_path / "out", *words)
    assert result.exit_code == 2
    assert word in result.output
    assert len(result.output.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_out_that_is_a_file(scans, tmp_path):
    (tmp_path / "file").touch()
    result = tablet_hf("tokenize", scans[0], "--out", tmp_path / "file", "--num-frames", 1)
    assert result.exit_code == 2
    assert str(tmp_path / "file") in result.output


# --- reconstruct


def test_a_reconstruction_has_the_grid_and_the_unit_of_the_scan(make_scan, autoencoder, tmp_path):
    scan, out = make_scan(tmp_path / "bold.nii.gz", 2), tmp_path / "recon.nii.gz"
    result = tablet_hf("reconstruct", scan, "--out", out, "--signal", "percent_change", *autoencoder)
    assert result.exit_code == 0, result.output
    original, decoded = nibabel.load(scan), nibabel.load(out)
    assert decoded.shape == original.shape
    np.testing.assert_array_equal(decoded.affine, original.affine)
    assert decoded.header.get_zooms()[3] == 2.0
    truth, estimate = original.get_fdata(), decoded.get_fdata()
    assert not estimate[truth.max(-1) == 0].any()
    mean_square = ((truth - estimate)[truth > 0] ** 2).mean()
    assert f"{10 * np.log10(truth.max() ** 2 / mean_square):.1f} dB" in result.output


def test_a_name_that_is_no_nifti_is_refused_before_the_work(scans, tmp_path):
    result = tablet_hf("reconstruct", scans[0], "--out", tmp_path / "recon.png")
    assert result.exit_code == 2
    assert ".nii.gz" in result.output


def test_a_run_without_changes_has_no_correlation(make_scan, autoencoder, tmp_path):
    image = nibabel.load(make_scan(tmp_path / "one.nii", frames=1))
    still = nibabel.Nifti1Image(np.repeat(np.asarray(image.dataobj), 3, axis=3), image.affine)
    still.header.set_zooms((2, 2, 2, 2.0))
    nibabel.save(still, tmp_path / "still.nii")
    result = tablet_hf("reconstruct", tmp_path / "still.nii", "--out", tmp_path / "out.nii", *autoencoder)
    assert result.exit_code == 0, result.output
    assert "undefined" in result.output
    assert "nan" not in result.output


@pytest.mark.parametrize("role", ["scan", "mask", "mean image", "link", "found mask"])
def test_an_input_is_never_overwritten(make_scan, tmp_path, role):
    scan = make_scan(tmp_path / "sub-01_bold.nii.gz", frames=1)
    image = nibabel.load(scan)
    volume = nibabel.Nifti1Image((image.get_fdata()[..., 0] > 0).astype(np.uint8), image.affine)
    other = tmp_path / ("sub-01_desc-brain_mask.nii.gz" if role == "found mask" else "other.nii.gz")
    options = {"mask": ["--mask", other], "mean image": ["--add-mean", other]}.get(role, [])
    if role == "link":
        other.symlink_to(scan)
    else:
        nibabel.save(volume, other)
    out = scan if role == "scan" else other
    before = out.read_bytes()
    result = tablet_hf("reconstruct", scan, *options, "--out", out, "--overwrite")
    assert result.exit_code == 2, result.output
    assert result.output.startswith(f"Error: {out}: ")
    assert out.read_bytes() == before


def test_another_file_is_overwritten_only_where_asked(scans, autoencoder, tmp_path):
    out = tmp_path / "recon.nii.gz"
    out.write_text("a year of work")
    command = ["reconstruct", scans[0], "--out", out, "--num-frames", 1, *autoencoder]
    result = tablet_hf(*command)
    assert result.exit_code == 2
    assert "--overwrite" in result.output
    assert out.read_text() == "a year of work"
    assert tablet_hf(*command, "--overwrite").exit_code == 0
    assert nibabel.load(out).shape == (91, 109, 91, 1)
