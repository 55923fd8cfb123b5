"""What a person at the keyboard sees: output, files and exit codes."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_autoencoders import residual_autoencoder
from tablet_hf.cli.prediction_table import PredictionTable
from typer.testing import CliRunner

from tablet_hf import TabletConfig, TabletFeatureExtractor, TabletForSequenceClassification, TabletModel
from tablet_hf.cli.__main__ import app
from tablet_hf.hub.training_data import TrainingData

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
}


def tablet_hf(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def scans(folder, make_scan):
    return [make_scan(folder / f"sub-0{number}_bold.nii.gz", frames=4 - number, seed=number) for number in (1, 2)]


def save_model(folder, extractor):
    torch.manual_seed(0)
    _ = extractor.slice_autoencoder
    extractor.save_pretrained(folder)
    config = TabletConfig(
        **TINY,
        num_labels=1,
        problem_type="multi_label_classification",
        id2label={0: "female"},
        label2id={"female": 0},
        num_frames=2,
        token_size=extractor.token_size,
        **{name: getattr(extractor, name) for name in ("autoencoder", "autoencoder_revision", "signal", "scaling")},
    )
    TabletForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return save_model(folder / "model", TabletFeatureExtractor())


@pytest.fixture(scope="module")
def quick(folder):
    """Words that name a small autoencoder of random weights, for what is the same with any."""
    small_autoencoder(32).save_pretrained(folder / "autoencoder")
    return ["--autoencoder", folder / "autoencoder"]


@pytest.fixture(scope="module")
def quick_model(folder, quick):
    return save_model(folder / "quick_model", TabletFeatureExtractor(str(quick[-1])))


@pytest.fixture(scope="module")
def tokens(folder, scans):
    result = tablet_hf("tokenize", *scans, "--out", folder / "tokens")
    assert result.exit_code == 0, result.output
    return sorted((folder / "tokens").iterdir())


def small_autoencoder(compression):
    """An AutoencoderDC with four latent channels and random weights."""
    return residual_autoencoder((4,) * compression.bit_length())


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class TestTokenize:
    def test_a_file_for_each_scan(self, tokens, scans):
        from tablet_hf.datasets.token_files import load_tokens

        assert [path.name for path in tokens] == ["sub-01_bold_tokens.safetensors", "sub-02_bold_tokens.safetensors"]
        run, record = load_tokens(tokens[0])
        expected = TabletFeatureExtractor()(scans[0])["input_values"][0]
        assert run.tokens.dtype == torch.float16
        torch.testing.assert_close(run.tokens, expected.half(), rtol=2e-3, atol=2e-3)
        assert run.repetition_time == 2.0
        assert record["autoencoder"] == "natural-f32c32"
        assert record["source"]["path"] == str(scans[0])

    def test_what_is_there_is_not_done_again(self, tokens, scans, folder):
        before = [path.stat().st_mtime_ns for path in tokens]
        result = tablet_hf("tokenize", *scans, "--out", folder / "tokens")
        assert result.exit_code == 0
        assert "already" in result.output
        assert [path.stat().st_mtime_ns for path in tokens] == before

    def test_tokens_made_otherwise_are_not_overwritten_unasked(self, tokens, scans, folder):
        before = tokens[0].read_bytes()
        result = tablet_hf("tokenize", scans[0], "--out", folder / "tokens", "--num-frames", 2)
        assert result.exit_code == 2
        assert "--overwrite" in result.output
        assert tokens[0].read_bytes() == before

    def test_overwrite(self, scans, quick, tmp_path):
        from tablet_hf.datasets.token_files import load_tokens

        for frames in (1, 2):
            words = ["--out", tmp_path, "--num-frames", frames, "--overwrite", *quick]
            result = tablet_hf("tokenize", scans[0], *words)
            assert result.exit_code == 0
        run, _ = load_tokens(tmp_path / "sub-01_bold_tokens.safetensors")
        assert len(run.tokens) == 2

    def test_bad_scans_are_listed_and_good_ones_done(self, scans, quick, tmp_path):
        broken = tmp_path / "broken_bold.nii.gz"
        broken.write_bytes(scans[0].read_bytes()[:5000])
        out = tmp_path / "out"
        words = [broken, scans[0], tmp_path / "missing.nii.gz", "--out", out, "--num-frames", 1, *quick]
        result = tablet_hf("tokenize", *words)
        assert result.exit_code == 2
        assert [path.name for path in out.iterdir()] == ["sub-01_bold_tokens.safetensors"]
        ending = result.output[result.output.index("2 of 3 scans could not be used") :]
        assert str(broken) in ending
        assert "missing.nii.gz" in ending

    def test_two_scans_of_one_name(self, make_scan, quick, tmp_path):
        from tablet_hf.datasets.token_files import load_tokens

        scans = [
            make_scan(tmp_path / subject / "MNINonLinear" / "Results" / "rest" / "rest.nii.gz", frames=1, seed=seed)
            for seed, subject in enumerate(("100307", "100408"))
        ]
        command = ["tokenize", *scans, "--out", tmp_path / "out", *quick]
        extractor = TabletFeatureExtractor(str(quick[-1]))
        result = tablet_hf(*command, scans[0])  # one of them twice
        assert result.exit_code == 0, result.output
        files = sorted((tmp_path / "out").iterdir())
        assert [path.name for path in files] == ["100307_rest_tokens.safetensors", "100408_rest_tokens.safetensors"]
        for path, scan in zip(files, scans, strict=True):
            run, record = load_tokens(path)
            assert record["source"]["path"] == str(scan)
            torch.testing.assert_close(run.tokens, extractor.tokenize(scan).tokens.half())
        before = [path.stat().st_mtime_ns for path in files]
        result = tablet_hf(*command)
        assert result.output.count("already") == 2
        assert [path.stat().st_mtime_ns for path in files] == before

    def test_a_cohort_that_grows(self, make_scan, quick, tmp_path):
        from tablet_hf.datasets.token_files import read_record

        scans = [make_scan(tmp_path / f"s{number}" / "rest.nii.gz", frames=1, seed=number) for number in (1, 2)]
        for given in (scans[:1], scans, scans[1:]):
            result = tablet_hf("tokenize", *given, "--out", tmp_path / "out", *quick)
            assert result.exit_code == 0, result.output
        files = sorted((tmp_path / "out").iterdir())
        assert [path.name for path in files] == ["rest_tokens.safetensors", "s2_rest_tokens.safetensors"]
        assert [read_record(path)["source"]["path"] for path in files] == [str(scan) for scan in scans]

    def test_tokens_are_held_as_they_are_stored(self, scans, quick, tmp_path, monkeypatch):
        """A long run would not fit into memory twice as wide."""
        held = []
        tokenize = TabletFeatureExtractor.tokenize

        def watched(*arguments, **options):
            held.append(tokenize(*arguments, **options))
            return held[-1]

        monkeypatch.setattr(TabletFeatureExtractor, "tokenize", watched)
        assert tablet_hf("tokenize", scans[0], "--out", tmp_path, "--num-frames", 1, *quick).exit_code == 0
        assert [run.tokens.dtype for run in held] == [torch.float16]

    def test_scans_whose_folders_do_not_tell_them_apart(self, make_scan, quick, tmp_path):
        scans = [make_scan(tmp_path / f"rest.nii{ending}", frames=1) for ending in (".gz", "")]
        result = tablet_hf("tokenize", *scans, "--out", tmp_path / "out", *quick)
        assert result.exit_code == 2
        assert f"as {scans[0]} did; tokenize them into different folders" in result.output

    @pytest.mark.parametrize(
        ("option", "value", "said"),
        [
            ("--signal", "zscore", "signal must be intensity or percent_change"),
            ("--autoencoder", "no-such-thing", "no-such-thing: there is no such folder"),
        ],
    )
    def test_options_that_name_nothing(self, scans, tmp_path, option, value, said):
        result = tablet_hf("tokenize", scans[0], "--out", tmp_path / "out", option, value)
        assert result.exit_code == 2
        assert said in result.output

    def test_an_out_that_is_a_file(self, scans, tmp_path):
        (tmp_path / "file").touch()
        result = tablet_hf("tokenize", scans[0], "--out", tmp_path / "file", "--num-frames", 1)
        assert result.exit_code == 2
        assert str(tmp_path / "file") in result.output


class TestPredict:
    def test_from_scan_and_from_tokens_alike(self, model, scans, tokens, tmp_path):
        result = tablet_hf("predict", model, scans[0], tokens[0], "--out", tmp_path / "predictions.csv")
        assert result.exit_code == 0, result.output
        from_scan, from_tokens = rows_of(tmp_path / "predictions.csv")
        assert float(from_scan["score_female"]) == pytest.approx(float(from_tokens["score_female"]), abs=1e-3)
        assert from_scan["prediction"] == ("female" if float(from_scan["score_female"]) >= 0.5 else "not female")
        assert from_scan["num_frames"] == "2"
        assert from_scan["prediction"] in result.output

    def test_finished_rows_are_kept_when_started_again(self, model, tokens, tmp_path):
        out = tmp_path / "predictions.csv"
        assert tablet_hf("predict", model, tokens[0], "--out", out).exit_code == 0
        out.write_text(out.read_text().replace("female", "FEMALE-KEPT", 2))
        first = rows_of(out)[0]
        result = tablet_hf("predict", model, *tokens, "--out", out)
        assert result.exit_code == 0
        assert "1 of 2" in result.output
        assert rows_of(out)[0] == first | dict.fromkeys(set(rows_of(out)[0]) - set(first), "")
        assert rows_of(out)[1]["scan"] == str(tokens[1])

    def test_a_csv_of_something_else_is_left_alone(self, model, tokens, tmp_path):
        out = tmp_path / "participants.csv"
        out.write_text("participant_id,age\nsub-01,30\n")
        result = tablet_hf("predict", model, tokens[0], "--out", out)
        assert result.exit_code == 2
        assert out.read_text() == "participant_id,age\nsub-01,30\n"

    def test_bad_scans_do_not_stop_good_ones(self, model, tokens, tmp_path):
        out = tmp_path / "predictions.csv"
        result = tablet_hf("predict", model, tmp_path / "missing.nii.gz", tokens[0], "--out", out)
        assert result.exit_code == 2
        assert [row["scan"] for row in rows_of(out)] == [str(tokens[0])]
        assert "1 of 2 scans could not be used" in result.output

    def test_tokens_of_another_geometry(self, folder, tokens):
        config = TabletConfig(
            **TINY, token_size=96, grid_size=12, num_labels=2, problem_type="single_label_classification"
        )
        TabletForSequenceClassification(config).save_pretrained(folder / "other")
        TabletFeatureExtractor().save_pretrained(folder / "other")
        result = tablet_hf("predict", folder / "other", tokens[0])
        assert result.exit_code == 2
        assert "token_size 3072 instead of 96" in result.output

    def test_models_that_cannot_predict(self, model, folder, tokens):
        TabletModel(TabletConfig(**TINY)).save_pretrained(folder / "backbone")
        without_weights = folder / "without_weights"
        without_weights.mkdir(exist_ok=True)
        shutil.copy(model / "config.json", without_weights)
        reshaped = folder / "reshaped"
        shutil.copytree(model, reshaped, dirs_exist_ok=True)
        config = TabletConfig.from_pretrained(model)
        config.intermediate_size = 128
        config.save_pretrained(reshaped)
        untold = folder / "untold"
        shutil.copytree(model, untold, dirs_exist_ok=True)
        config = TabletConfig.from_pretrained(model)
        config.problem_type = None
        config.save_pretrained(untold)
        expected = {
            folder / "backbone": "no trained weights for classifier",
            without_weights: "model.safetensors",
            reshaped: "mlp.fc1",
            untold: "does not say what it predicts",
            folder / "nowhere": "no such folder",
        }
        for name, said in expected.items():
            result = tablet_hf("predict", name, tokens[0])
            assert result.exit_code == 2, name
            assert said in result.output, (name, result.output)
            assert [line.startswith("Error: ") for line in result.output.splitlines()].count(True) == 1, result.output

    def test_one_mask_for_many_scans_is_refused(self, model, scans):
        result = tablet_hf("predict", model, *scans, "--mask", scans[0])
        assert result.exit_code == 2
        assert "--mask belongs to one scan" in result.output


class TestCompanions:
    """What was read beside a scan, and changed since, is noticed."""

    @pytest.fixture
    def scan(self, make_scan, tmp_path):
        (tmp_path / "data").mkdir()
        scan = make_scan(tmp_path / "data" / "sub-01_desc-preproc_bold.nii.gz", frames=1)
        (tmp_path / "data" / "bold.json").write_text('{"RepetitionTime": 2.0}')
        image = nibabel.load(scan)
        volume = nibabel.Nifti1Image((image.get_fdata()[..., 0] > 0).astype(np.uint8), image.affine)
        for name in ("sub-01_desc-brain_mask", "mask", "mean"):
            nibabel.save(volume, tmp_path / "data" / f"{name}.nii.gz")
        return scan

    @pytest.mark.parametrize(
        ("changed", "options"),
        [
            ("bold.json", []),
            ("sub-01_desc-brain_mask.nii.gz", []),
            ("mask.nii.gz", ["--mask"]),
            ("mean.nii.gz", ["--add-mean"]),
        ],
    )
    def test_a_change_is_noticed(self, quick_model, quick, scan, tmp_path, changed, options):
        options = [*options, *([scan.parent / changed] if options else [])]
        tokenize = ["tokenize", scan, *options, "--out", tmp_path / "tokens", *quick]
        predict = ["predict", quick_model, scan, *options, "--out", tmp_path / "predictions.csv"]
        for again in (False, True):
            for command in (tokenize, predict):
                result = tablet_hf(*command)
                assert result.exit_code == 0, result.output
                assert ("lready" in result.output) == again
        os.utime(scan.parent / changed, (1, 1))
        result = tablet_hf(*tokenize)
        assert result.exit_code == 2
        assert "made otherwise" in result.output
        assert "kept" not in tablet_hf(*predict).output

    def test_what_is_not_read_does_not_matter(self, scan):
        from tablet_hf.cli.scans import companion_identities

        given = scan, scan.parent / "mask.nii.gz", 2.0, None
        before = companion_identities(*given)
        for name in ("bold.json", "sub-01_desc-brain_mask.nii.gz"):
            os.utime(scan.parent / name, (1, 1))
        assert companion_identities(*given) == before


class TestReconstruct:
    def test_on_the_scans_own_grid_and_in_its_unit(self, make_scan, quick, tmp_path):
        scan, out = make_scan(tmp_path / "bold.nii.gz", 2), tmp_path / "recon.nii.gz"
        result = tablet_hf("reconstruct", scan, "--out", out, "--signal", "percent_change", *quick)
        assert result.exit_code == 0, result.output
        original, decoded = nibabel.load(scan), nibabel.load(out)
        assert decoded.shape == original.shape
        np.testing.assert_array_equal(decoded.affine, original.affine)
        assert decoded.header.get_zooms()[3] == 2.0
        truth, estimate = original.get_fdata(), decoded.get_fdata()
        assert not estimate[truth.max(-1) == 0].any()
        mean_square = ((truth - estimate)[truth > 0] ** 2).mean()
        decibels = 10 * np.log10(truth.max() ** 2 / mean_square)
        assert f"{decibels:.1f} dB" in result.output

    def test_a_name_that_is_no_nifti_is_refused_before_the_work(self, scans, tmp_path):
        result = tablet_hf("reconstruct", scans[0], "--out", tmp_path / "recon.png")
        assert result.exit_code == 2
        assert ".nii.gz" in result.output

    def test_a_run_in_which_nothing_moves(self, make_scan, quick, tmp_path):
        image = nibabel.load(make_scan(tmp_path / "scan.nii", frames=1))
        values = np.repeat(image.get_fdata().astype(np.int16), 3, axis=-1)
        still = nibabel.Nifti1Image(values, image.affine, image.header)
        nibabel.save(still, tmp_path / "still.nii")
        result = tablet_hf("reconstruct", tmp_path / "still.nii", "--out", tmp_path / "out.nii", *quick)
        assert result.exit_code == 0, result.output
        assert "nothing moves" in result.output
        assert "nan" not in result.output

    @pytest.mark.parametrize("role", ["scan", "mask", "mean image", "link", "found mask"])
    def test_what_is_read_is_never_written_over(self, make_scan, tmp_path, role):
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
        said = {"link": "scan", "found mask": "mask"}.get(role, role)
        assert f"Error: {out}: it is the {said} itself" in result.output
        assert out.read_bytes() == before

    def test_what_is_there_is_written_over_only_where_asked_for(self, scans, quick, tmp_path):
        out = tmp_path / "recon.nii.gz"
        out.write_text("a year of work")
        command = ["reconstruct", scans[0], "--out", out, "--num-frames", 1, *quick]
        result = tablet_hf(*command)
        assert result.exit_code == 2
        assert "--overwrite" in result.output
        assert out.read_text() == "a year of work"
        result = tablet_hf(*command, "--overwrite")
        assert result.exit_code == 0, result.output
        assert nibabel.load(out).shape == (91, 109, 91, 1)


class TestInfo:
    def test_of_a_store_another_command_tells(self, tmp_path):
        (tmp_path / "store.json").write_text("{}")
        result = tablet_hf("info", tmp_path)
        assert result.exit_code == 2
        assert "tablet-hf dataset describe tells what is in it" in " ".join(result.output.split())

    def test_scan(self, scans):
        result = tablet_hf("info", scans[0])
        assert result.exit_code == 0
        for fact in ("91 x 109 x 91", "2 s", "moved by whole voxels", "3 x 27 x 3072"):
            assert fact in result.output

    def test_model(self, model):
        result = tablet_hf("info", model)
        parameters = sum(
            weight.numel() for weight in TabletForSequenceClassification.from_pretrained(model).parameters()
        )
        assert f"{parameters:,}" in result.output
        assert "female" in result.output
        assert "natural-f32c32" in result.output
        assert "learnt from" not in result.output

    def test_what_a_model_learnt_from(self, model, tmp_path):
        shutil.copytree(model, tmp_path / "model")
        stages = [TrainingData("masked token modeling", ("HCP",), 1000, 0, 4000, 4_800_000, True, "lab/tablet")]
        TrainingData.write(tmp_path / "model", [*stages, TrainingData("sex", (), 20, 5, 20, 4000, False, "model")])
        told = " ".join(tablet_hf("info", tmp_path / "model").output.split())
        assert (
            "what lab/tablet did, not recorded, then masked token modeling (1,000 people of HCP, restricted), " in told
        )
        assert "then sex (20 people)" in told

    def test_model_in_several_files(self, model, tmp_path):
        whole = TabletForSequenceClassification.from_pretrained(model)
        whole.save_pretrained(tmp_path, max_shard_size="100KB")
        assert not (tmp_path / "model.safetensors").exists()
        result = tablet_hf("info", tmp_path)
        assert result.exit_code == 0, result.output
        assert f"{sum(weight.numel() for weight in whole.parameters()):,}" in result.output
        shard = next(tmp_path.glob("*.safetensors"))
        shard.unlink()
        assert f"there is no {shard.name} in it" in tablet_hf("info", tmp_path).output
        for text in ("{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": [1]}}'):
            (tmp_path / "model.safetensors.index.json").write_text(text)
            result = tablet_hf("info", tmp_path)
            assert result.exit_code == 2, (text, result.output)
            assert "does not say which files hold the weights" in result.output

    def test_demeaned_scan(self, make_scan, tmp_path):
        scan = make_scan(tmp_path / "scan.nii", frames=3)
        image = nibabel.load(scan)
        values = image.get_fdata().astype(np.float32)
        mean = values.mean(-1)
        nibabel.save(nibabel.Nifti1Image(mean, image.affine), tmp_path / "mean.nii")
        demeaned = nibabel.Nifti1Image(values - mean[..., None], image.affine)
        demeaned.header.set_zooms((2, 2, 2, 2.0))
        nibabel.save(demeaned, tmp_path / "demeaned.nii")
        result = tablet_hf("info", tmp_path / "demeaned.nii")
        assert result.exit_code == 2
        assert "--add-mean" in result.output
        result = tablet_hf("info", tmp_path / "demeaned.nii", "--add-mean", tmp_path / "mean.nii")
        assert result.exit_code == 0, result.output
        assert f"{values.max():g}" in result.output

    def test_autoencoder_and_tokens(self, tokens):
        assert "f32c32" in tablet_hf("info", "natural-f32c32").output
        assert "3 x 27 x 3072" in tablet_hf("info", tokens[0]).output

    @pytest.mark.parametrize("compression", [8, 32])
    def test_folder_of_an_autoencoder(self, compression, tmp_path):
        autoencoder = small_autoencoder(compression)
        autoencoder.save_pretrained(tmp_path)
        result = tablet_hf("info", tmp_path)
        assert result.exit_code == 0, result.output
        facts = dict(line.split(maxsplit=1) for line in result.output.splitlines())
        assert facts["autoencoder"] == str(tmp_path)
        assert facts["class"] == "AutoencoderDC"
        assert facts["compression"] == f"f{compression}c4"
        assert facts["parameters"] == f"{sum(weight.numel() for weight in autoencoder.parameters()):,}"
        assert facts["tokens"] == f"{(96 // compression) ** 3} x {3 * compression * 4} a frame"
        assert facts["revision"].startswith("sha256:")

    def test_models_and_autoencoders_of_the_hub(self, model, tmp_path, monkeypatch):
        """Out of the cache, as where they were downloaded before."""
        small_autoencoder(32).save_pretrained(tmp_path / "autoencoder")
        halves = tmp_path / "half"
        shutil.copytree(model, halves, ignore=shutil.ignore_patterns("*.safetensors"))
        for name, folder in {"model": model, "autoencoder": tmp_path / "autoencoder", "half": halves}.items():
            repository = tmp_path / "home" / "hub" / f"models--owner--{name}"
            shutil.copytree(folder, repository / "snapshots" / ("1" * 40))
            (repository / "refs").mkdir()
            (repository / "refs" / "main").write_text("1" * 40)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
        results = [tablet_hf("info", f"owner/{name}") for name in ("model", "autoencoder", "half")]
        of_model, of_autoencoder, of_half = (f"{result.exit_code} {result.output}" for result in results)
        assert of_model.startswith("0 model")
        assert "female" in of_model
        assert of_autoencoder.startswith("0 autoencoder")
        assert "f32c4" in of_autoencoder
        assert "1" * 40 in of_autoencoder
        assert of_half.startswith("2 Error: owner/half: ")
        assert "no model.safetensors of it was downloaded before" in of_half

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            ("GatedRepoError", "request access"),
            ("RepositoryNotFoundError", "no model of this name"),
            ("RemoteEntryNotFoundError", "no config.json"),
            ("LocalEntryNotFoundError", "cannot be reached"),
            ("OfflineModeIsEnabled", "cannot be reached"),
            ("HFValidationError", "can be called that"),
        ],
    )
    def test_what_the_hub_may_answer(self, error, said, monkeypatch):
        from huggingface_hub import errors

        def refuse(*_, **__):
            raise getattr(errors, error).__new__(getattr(errors, error))

        monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
        result = tablet_hf("info", "owner/name")
        assert result.exit_code == 2, result.output
        assert result.output.startswith("Error: owner/name: ")
        assert said in result.output

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("nothing.nii.gz", "no such file"),
            ("nothing", "no such folder"),
            ("nothing_tokens.safetensors", "no such file"),
            ("nobody/nothing", "the Hub cannot be reached"),
        ],
    )
    def test_nothing_there(self, name, said):
        result = tablet_hf("info", name)
        assert result.exit_code == 2
        assert result.output.startswith(f"Error: {name}: ")
        assert said in result.output
        assert len(result.output.splitlines()) == 1

    @pytest.mark.parametrize(
        ("config", "said"),
        [
            (None, "no config.json"),
            ("{", "not readable as JSON"),
            ('{"num_heads": 14, "d_model": 896}', "tablet-hf convert"),
            ('{"model_type": "vit"}', "type 'vit'"),
            ('{"model_type": "tablet"}', "no model.safetensors"),
            ('{"model_type": "tablet", "num_attention_heads": 5}', "cannot be used"),
            ('{"_class_name": "UNet2DModel"}', "not an autoencoder"),
            ('{"_class_name": "AutoencoderTiny"}', "there are no weights in it"),
        ],
    )
    def test_folders_that_hold_neither_model_nor_autoencoder(self, config, said, tmp_path):
        if config is not None:
            (tmp_path / "config.json").write_text(config)
        result = tablet_hf("info", tmp_path)
        assert result.exit_code == 2, result.output
        assert said in result.output
        assert str(tmp_path) in result.output
        assert "Error: " in result.output


class TestConvert:
    def test_a_training_checkpoint_becomes_a_model(self, tmp_path):
        from tablet_hf.hub.conversion import released_name

        torch.manual_seed(0)
        model = TabletForSequenceClassification(
            TabletConfig(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=64,
                position_embedding_type="none",
                num_labels=1,
                problem_type="multi_label_classification",
            )
        )
        state = {released_name(name): weight for name, weight in model.state_dict().items()}
        torch.save({"model_state_dict": state}, tmp_path / "best.pth")
        (tmp_path / "config.json").write_text('{"num_heads": 4, "dropout": 0.0, "hidden_act": "relu"}')
        result = tablet_hf(
            "convert", tmp_path / "best.pth", "--out", tmp_path / "out", "--config", tmp_path / "config.json",
            "--problem-type", "multi_label_classification",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        converted = TabletForSequenceClassification.from_pretrained(tmp_path / "out").eval()
        tokens = torch.randn(2, 3, 27, 3072)
        torch.testing.assert_close(converted(tokens).logits, model.eval()(tokens).logits)

    def test_what_no_checkpoint_tells_of_its_tokens_is_asked_for_or_noted(self, tmp_path):
        from tablet_hf.hub.conversion import released_name

        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
        sizes |= {"intermediate_size": 64, "position_embedding_type": "none", "num_labels": 1}
        (tmp_path / "config.json").write_text('{"num_heads": 4}')
        for token_size in (96, 3072):
            model = TabletForSequenceClassification(TabletConfig(**sizes, token_size=token_size))
            state = {released_name(name): weight for name, weight in model.state_dict().items()}
            torch.save(state, tmp_path / f"{token_size}.pth")
        config = ["--config", tmp_path / "config.json"]
        asked = tablet_hf("convert", tmp_path / "96.pth", "--out", tmp_path / "f8c4", *config)
        assert asked.exit_code == 2
        assert "--grid-size" in asked.output
        told = tablet_hf("convert", tmp_path / "96.pth", "--out", tmp_path / "f8c4", *config, "--grid-size", 12)
        assert told.exit_code == 0, told.output
        assert TabletConfig.from_pretrained(tmp_path / "f8c4").num_cells == 1728
        options = ["--autoencoder", "lab/other", "--signal", "percent_change", "--scaling", "percentile"]
        noted = tablet_hf("convert", tmp_path / "3072.pth", "--out", tmp_path / "f32c32", *config, *options)
        assert "volume_size 96, as for the released weights" in " ".join(noted.output.split())
        written = TabletConfig.from_pretrained(tmp_path / "f32c32")
        recorded = (written.autoencoder, written.signal, written.scaling)
        assert recorded == ("lab/other", "percent_change", "percentile")

    def test_where_the_result_goes_is_asked_for(self, tmp_path):
        result = tablet_hf("convert", tmp_path)
        assert result.exit_code == 2
        assert "--out FOLDER, or --push owner/name" in " ".join(result.output.split())
        told = tablet_hf("convert", tmp_path, "--out", tmp_path / "out", "--push", "no name")
        assert told.exit_code == 2
        assert not (tmp_path / "out").exists()

    def test_code_inside_is_not_run(self, tmp_path):
        class Trap:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "sprung"),)

        torch.save({"model_state_dict": Trap()}, tmp_path / "trap.pth")
        result = tablet_hf("convert", tmp_path / "trap.pth", "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert not (tmp_path / "sprung").exists()
        assert not (tmp_path / "out").exists()


def test_device_that_is_not_there(scans, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    result = tablet_hf("tokenize", scans[0], "--out", tmp_path, "--device", "cuda")
    assert result.exit_code == 2
    assert "--device cuda" in result.output


@pytest.mark.parametrize("name", ["foo", "cuda:x", "cuda:99", "meta", "mps:7"])
def test_device_that_cannot_be(scans, tmp_path, name):
    result = tablet_hf("tokenize", scans[0], "--out", tmp_path, "--device", name)
    assert result.exit_code == 2
    assert result.output == (
        f"Error: --device {name}: this machine has no such device; give auto, cpu, cuda, cuda:1 (the second GPU) or "
        "mps.\n"
    )


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ("config.json", "there is no config.json in it; give the folder of a fine-tuned model"),
        ("model.safetensors", "there are no weights in it (model.safetensors), so it cannot predict; give the folder"),
    ],
)
def test_predict_with_half_a_model(model, tokens, tmp_path, without, said):
    half = tmp_path / "half"
    shutil.copytree(model, half)
    (half / without).unlink()
    result = tablet_hf("predict", half, tokens[0])
    assert result.exit_code == 2
    assert result.output.startswith(f"Error: {half}: {said}")
    assert len(result.output.splitlines()) == 1
    assert ";" not in result.output.partition(";")[2]


@pytest.mark.parametrize(
    "command", ["", "predict", "tokenize", "reconstruct", "info", "convert", "demo", "dataset check"]
)
def test_help_does_not_wait_for_the_libraries(command):
    script = f"""
import sys
from tablet_hf.cli import __main__ as cli
sys.argv = ["tablet-hf", *{command.split()}, "--help"]
try:
    cli.main()
finally:
    print([name for name in ("torch", "transformers", "diffusers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert f"Usage: tablet-hf {command}" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_libraries_are_quiet_in_every_command(tokens, monkeypatch):
    called = []
    monkeypatch.setattr("tablet_hf.cli.terminal.quiet_libraries", lambda: called.append(True))
    assert tablet_hf("info", tokens[0]).exit_code == 0
    assert called == [True]


class TestPredictAgain:
    """Started again, `predict` keeps what is still true and nothing else."""

    def test_other_options_are_predicted_anew(self, model, tokens, tmp_path):
        out = tmp_path / "predictions.csv"
        assert tablet_hf("predict", model, tokens[0], "--out", out).exit_code == 0
        assert rows_of(out)[0]["num_frames"] == "2"
        assert tablet_hf("predict", model, tokens[0], "--out", out, "--num-frames", 1).exit_code == 0
        assert rows_of(out)[0]["num_frames"] == "3"

    def test_a_model_trained_again_is_asked_again(self, model, tokens, tmp_path):
        out, copy = tmp_path / "predictions.csv", tmp_path / "model"
        shutil.copytree(model, copy)
        assert tablet_hf("predict", copy, tokens[0], "--out", out).exit_code == 0
        before = rows_of(out)[0]["score_female"]
        trained = TabletForSequenceClassification.from_pretrained(copy)
        with torch.no_grad():
            trained.classifier.bias += 1
        trained.save_pretrained(copy)
        assert tablet_hf("predict", copy, tokens[0], "--out", out).exit_code == 0
        assert float(rows_of(out)[0]["score_female"]) > float(before)

    @pytest.mark.slow
    def test_two_real_commands_that_write_to_one_table_at_once(self, model, tokens, tmp_path):
        """Results on standard output, everything else on standard error, no traceback for bad input."""
        out = tmp_path / "predictions.csv"
        scans = [tmp_path / f"sub-{number}_tokens.safetensors" for number in range(6)]
        for scan in scans:
            shutil.copy(tokens[0], scan)
        running = [
            subprocess.Popen(
                [sys.executable, *python, "predict", model, *part, "--out", out],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for python, part in (
                (["-m", "tablet_hf"], [*scans[:3], tmp_path / "missing.nii.gz"]),
                (["-c", "from tablet_hf.cli.__main__ import main; main()"], scans[3:]),
            )
        ]
        said = [process.communicate() for process in running]
        assert [process.returncode for process in running] == [2, 0]
        for output, _ in said:
            assert output.splitlines()[0].split()[:2] == ["scan", "prediction"]
            assert len(output.splitlines()) == 4
        assert "missing.nii.gz" in said[0][1]
        assert "missing.nii.gz" not in said[1][1]
        assert not any("Traceback" in errors for _, errors in said)
        assert {row["scan"] for row in rows_of(out)} == set(map(str, scans))

    def test_rows_that_another_process_wrote_meanwhile_stay(self, tmp_path):
        out = tmp_path / "predictions.csv"
        ours, theirs = PredictionTable(out, "owner/model"), PredictionTable(out, "owner/model")
        theirs.add(Path("b.nii.gz"), {"prediction": "F", "request": "1"})
        ours.add(Path("a.nii.gz"), {"prediction": "M", "request": "2"})
        theirs.drop([Path("b.nii.gz")])
        assert [row["scan"] for row in rows_of(out)] == ["a.nii.gz"]
        assert PredictionTable(out, "owner/model").holds(Path("a.nii.gz"), "2")

    def test_a_folder_is_one_model_with_or_without_its_slash(self, model, tokens, tmp_path):
        out = tmp_path / "predictions.csv"
        assert tablet_hf("predict", model, tokens[0], "--out", out).exit_code == 0
        again = tablet_hf("predict", f"{model}/", tokens[0], "--out", out)
        assert again.exit_code == 0
        assert "kept: 1 of 1" in again.output

    @pytest.mark.parametrize(
        "text", ["scan,model,prediction\na.nii.gz,{model},F,extra\n", "name,age\na,3\n", "scan,model\n,{model}\n"]
    )
    def test_a_table_of_something_else_is_refused(self, model, tokens, tmp_path, text):
        out = tmp_path / "predictions.csv"
        out.write_text(text.format(model=model))
        result = tablet_hf("predict", model, tokens[0], "--out", out)
        assert result.exit_code == 2
        assert "something else than predictions" in result.output
        assert out.read_text() == text.format(model=model)

    @pytest.mark.parametrize("others", [0, 1])
    def test_a_scan_that_fails_now_loses_its_row(self, model, tokens, tmp_path, others):
        out, scan = tmp_path / "predictions.csv", tmp_path / "sub-03_tokens.safetensors"
        shutil.copy(tokens[0], scan)
        scans = [scan, *tokens[:others]]
        assert tablet_hf("predict", model, *scans, "--out", out).exit_code == 0
        scan.write_bytes(scan.read_bytes()[:5000])
        result = tablet_hf("predict", model, *scans, "--out", out)
        assert result.exit_code == 2, result.output
        assert [row["scan"] for row in rows_of(out)] == [str(path) for path in tokens[:others]]
        shutil.copy(tokens[1], scan)
        assert tablet_hf("predict", model, scan, "--out", out).exit_code == 0
        assert {row["scan"] for row in rows_of(out)} == {str(path) for path in scans}

    def test_overwrite_leaves_other_rows(self, model, tokens, tmp_path):
        out = tmp_path / "predictions.csv"
        assert tablet_hf("predict", model, *tokens, "--out", out).exit_code == 0
        assert tablet_hf("predict", model, tokens[0], "--out", out, "--overwrite").exit_code == 0
        assert [row["scan"] for row in rows_of(out)] == [str(path) for path in tokens]

    def test_no_bad_file_stops_the_others(self, model, tokens, tmp_path):
        weights = tmp_path / "weights_tokens.safetensors"
        shutil.copy(model / "model.safetensors", weights)
        endless = tmp_path / f"{'x' * 300}.nii.gz"
        out = tmp_path / "predictions.csv"
        result = tablet_hf("predict", model, weights, endless, tokens[0], "--out", out)
        assert result.exit_code == 2, result.output
        assert [row["scan"] for row in rows_of(out)] == [str(tokens[0])]
        assert "2 of 3 scans could not be used" in result.output


def test_a_repetition_time_that_cannot_be_is_refused_for_tokens_too(model, tokens):
    result = tablet_hf("predict", model, tokens[0], "--repetition-time", 2000)
    assert result.exit_code == 2
    assert "2000" in result.output
    assert "0.1 to 30" in result.output or "0.1 and 30" in result.output


def test_an_autoencoder_is_no_model(tokens):
    result = tablet_hf("predict", "natural-f32c32", tokens[0])
    assert result.exit_code == 2
    assert "natural-f32c32: that is an autoencoder" in result.output


def test_weights_that_can_hold_code_are_not_read(model, tokens, tmp_path):
    pickled = tmp_path / "pickled"
    shutil.copytree(model, pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    for command in (["info", pickled], ["predict", pickled, tokens[0]]):
        result = tablet_hf(*command)
        assert result.exit_code == 2
        assert "model.safetensors" in result.output


def test_models_with_damaged_files(model, tokens, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(model, damaged)
    weights = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[:200])
    assert tablet_hf("info", damaged).exit_code == 2
    assert tablet_hf("predict", damaged, tokens[0]).exit_code == 2
    (damaged / "model.safetensors").write_bytes(weights)
    for text in ('{"autoencoder": "natural-f32c32", "signal": "foo"}', '{"feature_extractor_type": "Other"}', "{"):
        (damaged / "preprocessor_config.json").write_text(text)
        result = tablet_hf("predict", damaged, tokens[0])
        assert result.exit_code == 2, (text, result.output)
        assert "preprocessor_config.json" in result.output
