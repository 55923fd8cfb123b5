"""What a person at the keyboard sees: output, files and exit codes."""

import csv
import os
import shutil
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import torch
from small_autoencoders import residual_autoencoder
from typer.testing import CliRunner

from tablet_hf import TabletConfig, TabletFeatureExtractor, TabletForSequenceClassification
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
        for again in (False, True):
            result = tablet_hf(*tokenize)
            assert result.exit_code == 0, result.output
            assert ("lready" in result.output) == again
        os.utime(scan.parent / changed, (1, 1))
        result = tablet_hf(*tokenize)
        assert result.exit_code == 2
        assert "made otherwise" in result.output

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
            assert "model.safetensors.index.json" in result.output

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
        assert "not downloaded before" in of_half

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            ("GatedRepoError", "access"),
            ("RepositoryNotFoundError", "no model of this name"),
            ("RemoteEntryNotFoundError", "no config.json"),
            ("LocalEntryNotFoundError", "cannot be reached"),
            ("OfflineModeIsEnabled", "cannot be reached"),
            ("HFValidationError", "owner/name"),
        ],
    )
    def test_what_the_hub_may_answer(self, error, said, monkeypatch):
        from huggingface_hub import errors

        def refuse(*_, **__):
            raised = getattr(errors, error).__new__(getattr(errors, error))
            raised.response = None
            raise raised

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
    "command", ["", "predict", "tokenize", "reconstruct", "info", "convert", "demo", "dataset check"]
)
def test_help_does_not_wait_for_the_libraries(command):
    script = f"""
import sys
sys.argv = ["tablet-hf", *{command.split()}, "--help"]
from tablet_hf.cli import __main__ as cli
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
