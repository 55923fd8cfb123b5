"""`tablet-hf info`, and what all commands share: help without libraries, quiet libraries, version."""

import shutil
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import torch
from small_autoencoders import residual_autoencoder
from typer.testing import CliRunner

from tablet_hf import TabletConfig, TabletForSequenceClassification
from tablet_hf.cli.__main__ import app
from tablet_hf.hub.training_data import TrainingData


def info(*arguments, exit_code=0):
    """The facts that the command prints, or its output where it fails."""
    ended = CliRunner().invoke(app, ["info", *map(str, arguments)])
    assert ended.exit_code == exit_code, ended.output
    if exit_code:
        assert ended.output.startswith("Error: ")
        assert len(ended.output.splitlines()) == 1
        return ended.output
    return {name.strip(): value.strip() for name, value in (line.split("  ", 1) for line in ended.output.splitlines())}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = TabletConfig(
        **sizes,
        intermediate_size=64,
        num_labels=1,
        problem_type="multi_label_classification",
        id2label={0: "female"},
        label2id={"female": 0},
        autoencoder="natural-f32c32",
    )
    folder = tmp_path_factory.mktemp("model")
    TabletForSequenceClassification(config).save_pretrained(folder)
    return folder


def count(model):
    return f"{sum(weight.numel() for weight in model.parameters()):,}"


def test_a_scan(make_scan, tmp_path):
    facts = info(make_scan(tmp_path / "sub-01_bold.nii.gz", frames=3))
    assert (facts["frames"], facts["repetition time"]) == ("3", "2 s (0.1 min)")
    assert facts["grid"].startswith("91 x 109 x 91 ")
    assert facts["tokens (f32c32)"].startswith("3 x 27 x 3072,")


def test_a_demeaned_scan_needs_its_mean(make_scan, tmp_path):
    image = nibabel.load(make_scan(tmp_path / "scan.nii", frames=3))
    values = image.get_fdata().astype(np.float32)
    mean = values.mean(-1)
    nibabel.save(nibabel.Nifti1Image(mean, image.affine), tmp_path / "mean.nii")
    demeaned = nibabel.Nifti1Image(values - mean[..., None], image.affine)
    demeaned.header.set_zooms((2, 2, 2, 2.0))
    nibabel.save(demeaned, tmp_path / "demeaned.nii")
    assert "--add-mean" in info(tmp_path / "demeaned.nii", exit_code=2)
    facts = info(tmp_path / "demeaned.nii", "--add-mean", tmp_path / "mean.nii")
    assert facts["largest intensity"] == f"{values.max():g}"


def test_a_model_and_what_it_was_trained_on(model, tmp_path):
    facts = info(model)
    assert facts["parameters"] == count(TabletForSequenceClassification.from_pretrained(model))
    assert facts["predicts"].startswith("female ")
    assert facts["autoencoder"] == "natural-f32c32"
    assert "trained on" not in facts
    shutil.copytree(model, tmp_path / "model")
    stages = [TrainingData("masked token modeling", ("HCP",), 1000, 0, 4000, 4_800_000, True, "lab/tablet")]
    TrainingData.write(tmp_path / "model", [*stages, TrainingData("sex", (), 20, 5, 20, 4000, False, "model")])
    trained = info(tmp_path / "model")["trained on"]
    assert [word in trained for word in ("lab/tablet", "HCP", "sex")] == [True] * 3


def test_a_model_in_several_files(model, tmp_path):
    whole = TabletForSequenceClassification.from_pretrained(model)
    whole.save_pretrained(tmp_path, max_shard_size="100KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert info(tmp_path)["parameters"] == count(whole)
    shard = next(tmp_path.glob("*.safetensors"))
    shard.unlink()
    assert shard.name in info(tmp_path, exit_code=2)
    for text in ("{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": [1]}}'):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        assert "model.safetensors.index.json" in info(tmp_path, exit_code=2)


def test_a_shipped_autoencoder():
    assert info("natural-f32c32")["compression"].startswith("f32c32")


@pytest.mark.parametrize("compression", [8, 32])
def test_the_folder_of_an_autoencoder(compression, tmp_path):
    autoencoder = residual_autoencoder((4,) * compression.bit_length())
    autoencoder.save_pretrained(tmp_path)
    facts = info(tmp_path)
    assert facts["class"] == "AutoencoderDC"
    assert facts["compression"] == f"f{compression}c4"
    assert facts["parameters"] == count(autoencoder)
    assert facts["tokens"] == f"{(96 // compression) ** 3} x {3 * compression * 4} a frame"
    assert facts["revision"].startswith("sha256:")


def test_models_and_autoencoders_in_the_cache_of_the_hub(model, tmp_path, monkeypatch):
    residual_autoencoder((4,) * 6).save_pretrained(tmp_path / "autoencoder")
    for name, folder in {"model": model, "autoencoder": tmp_path / "autoencoder"}.items():
        repository = tmp_path / "home" / "hub" / f"models--owner--{name}"
        shutil.copytree(folder, repository / "snapshots" / ("1" * 40))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("1" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    assert info("owner/model")["predicts"].startswith("female ")
    facts = info("owner/autoencoder")
    assert (facts["compression"], facts["revision"]) == ("f32c4", "1" * 40)


@pytest.mark.parametrize("name", ["no.nii.gz", "no", "no_tokens.safetensors", "owner/no"])
def test_a_name_of_nothing(name):
    assert f"{name}: " in info(name, exit_code=2)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (None, "config.json"),
        ("{", "JSON"),
        ("[1]", "JSON"),
        ('{"num_heads": 14, "d_model": 896}', "tablet-hf convert"),
        ('{"model_type": "vit"}', "vit"),
        ('{"model_type": "tablet"}', "model.safetensors"),
        ('{"model_type": "tablet", "num_attention_heads": 5}', "config.json"),
        ('{"_class_name": "UNet2DModel"}', "autoencoder"),
        ('{"_class_name": "AutoencoderTiny"}', "autoencoder"),
    ],
)
def test_folders_that_hold_neither_model_nor_autoencoder(config, word, tmp_path):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    message = info(tmp_path, exit_code=2)
    assert word in message
    assert str(tmp_path) in message


def test_a_store_has_another_command(tmp_path):
    (tmp_path / "store.json").write_text("{}")
    assert "dataset describe" in info(tmp_path, exit_code=2)


# --- all commands


@pytest.mark.parametrize("command", ["", "predict", "tokenize", "finetune", "dataset check"])
def test_help_does_not_wait_for_the_libraries(command):
    script = f"""
import sys
sys.argv = ["tablet-hf", *{command.split()}, "--help"]
from tablet_hf.cli import __main__ as cli
try:
    cli.main()
finally:
    print([name for name in ("torch", "transformers", "diffusers", "nibabel", "pandas") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert f"Usage: tablet-hf {command}" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_version():
    from tablet_hf import __version__

    assert CliRunner().invoke(app, ["--version"]).output.split() == ["tablet-hf", __version__]
