"""`tablet-hf pretrain`, `finetune` and `evaluate`, as typed."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from tablet_hf.cli.__main__ import app

QUICK = ["--window", "4", "--epochs", "1", "--batch-size", "8", "--device", "cpu"]
SHORT = [*QUICK, "--size", "tiny"]


@pytest.fixture(scope="module")
def store(planted_store):
    return planted_store.folder


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(*words):
    """Run a command that must end with code 2; return its one message."""
    ended = run(*words)
    assert ended.exit_code == 2, ended.output
    assert "Traceback" not in ended.output
    return " ".join(ended.stderr.split())


def first_column(ended):
    assert ended.exit_code == 0, ended.output
    return [line.split("  ")[0] for line in ended.stdout.splitlines()]


@pytest.fixture(scope="module")
def tuned(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, run("finetune", "--dataset", store, "--label", "group", "--folds", 2, "--out", out, *SHORT)


def test_finetuning_prints_all_methods_and_how_far_the_model_is_ahead(tuned):
    out, ended = tuned
    assert first_column(ended)[2:] == ["TABLeT", "majority class", "mean token"]
    title, header, tablet, majority, _ = ended.stdout.splitlines()
    assert "group, 40 subjects" in title
    results = json.loads((out / "results.json").read_text())
    assert header.endswith(f"TABLeT ahead in {results['main_metric']}")
    compared = next(one for one in results["comparisons"] if one["second"] == "majority class")
    value = compared["metrics"][results["main_metric"]]["value"]
    assert f"{value:+.3g}" in majority
    assert f"{value:+.3g} (" not in tablet
    assert "classification of group: a, b" in ended.stderr
    assert "functional connectivity" in ended.stderr
    assert {path.name for path in out.iterdir()} >= {"fold-1", "fold-2", "index.html", "predictions.csv", "splits.csv"}


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_model_is_evaluated(tuned, store, tmp_path, part):
    out, _ = tuned
    # Of the test part by the first fold, in which this model was not trained.
    words = ["--fold", "fold-2", "--part", "validation"] if part == "validation" else []
    words += ["--dataset", store, "--splits", out / "splits.csv", "--device", "cpu", "--out", tmp_path]
    ended = run("evaluate", out / "fold-2" / "model", *words)
    assert first_column(ended)[2:] == ["TABLeT", "majority class", "mean token"]
    assert json.loads((tmp_path / "results.json").read_text())["about"]["part"] == part
    assert ("20 of 20 test subjects" in ended.stderr) == (part == "test")
    assert not (tmp_path / "work").exists()


def test_pretraining_then_a_linear_probe(tuned, store, tmp_path):
    out, _ = tuned
    splits = ["--dataset", store, "--splits", out / "splits.csv"]
    masked = ["--mask-strategy", "tube", "--norm-target", "--set", "pooling_type=mean"]
    ended = run("pretrain", *splits, "--out", tmp_path / "pretrained", *SHORT, *masked)
    assert ended.exit_code == 0, ended.output
    assert ended.stdout.splitlines()[1] == str(tmp_path / "pretrained" / "model")
    config = json.loads((tmp_path / "pretrained" / "model" / "config.json").read_text())
    assert (config["mask_strategy"], config["pooling_type"], config["hidden_size"]) == ("tube", "mean", 64)
    probe = ["--mode", "head", "--init", tmp_path / "pretrained" / "model", "--fold", "fold-2"]
    ended = run("finetune", *splits, "--label", "strength", "--out", tmp_path / "probe", *QUICK, *probe)
    assert first_column(ended)[2:] == ["TABLeT", "training mean", "mean token"]
    assert "regression of strength" in ended.stderr
    assert ended.stderr.count("{fold}") == 1  # fold-2 tests subjects of the pre-training in fold-1: one warning


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["--label", "iq"], "iq"),
        (["--size", "huge"], "--size"),
        (["--set", "depth=3"], "depth"),
        (["--set", "hidden_size=65"], "hidden_size"),
        (["--set", "num_frames=9"], "num_frames"),
        (["--set", "signal=intensity"], "signal"),
        (["--set", "positive_weight=2"], "positive_weight"),
        (["--training", "learning_speed=2"], "learning_speed"),
        (["--training", "save_strategy=never"], "never"),
        (["--sweep", "1e-4,fast"], "--sweep"),
        (["--sweep", "1e-4,-1"], "--sweep"),
        (["--mode", "head"], "--init"),
        (["--init", "a/b", "--size", "tiny"], "--size"),
        (["--init", "nowhere"], "nowhere"),
        (["--splits", "nowhere.csv"], "nowhere.csv"),
        (["--splits", "a.csv", "--folds", "3"], "--folds"),
        (["--epochs", "0"], "epochs"),
    ],
)
def test_what_finetune_refuses(store, tmp_path, words, word):
    words = words if "--label" in words else [*words, "--label", "group"]
    assert word in refused("finetune", "--dataset", store, "--out", tmp_path / "out", *QUICK, *words)
    assert not (tmp_path / "out" / "splits.csv").exists()


def test_a_fold_or_a_part_needs_splits(tuned, store, tmp_path):
    """Else all subjects would be used, those of the test part too."""
    out = ["--dataset", store, "--out", tmp_path / "out"]
    assert "--fold" in refused("pretrain", *out, *SHORT, "--fold", "fold-2")
    for words in (["--fold", "fold-2"], ["--part", "validation"]):
        assert words[0] in refused("evaluate", tuned[0] / "fold-1" / "model", *out, *words)
    assert "mask_ratio" in refused("pretrain", *out, *SHORT, "--set", "mask_ratio=0.9")
    assert not (tmp_path / "out").exists()


def test_options_become_training_arguments(store, tmp_path):
    words = "--label group --folds 2 --fold fold-1 --size tiny --device cpu --window 0 --epochs 1 --batch-size 5"
    words += " --learning-rate 3e-4 --warmup 0.1 --precision fp32 --gradient-checkpointing --seed 7"
    words += " --training gradient_accumulation_steps=2 --training weight_decay=0.2"
    words = ["--dataset", store, "--out", tmp_path, *words.split()]
    ended = run("finetune", *words)
    assert ended.exit_code == 0, ended.output
    (path,) = tmp_path.glob("*/training.json")
    training = json.loads(path.read_text())
    assert "--fold" in ended.stderr
    assert not (tmp_path / "fold-2").exists()
    expected = {"window_frames": None, "num_train_epochs": 1, "per_device_train_batch_size": 5, "seed": 7}
    expected |= {"gradient_accumulation_steps": 2, "learning_rate": 3e-4, "warmup_steps": 0.1, "weight_decay": 0.2}
    assert expected.items() <= training["settings"].items()
    assert training["carried_out"]["precision"] == "fp32"


def test_help_comes_without_the_libraries():
    code = "import sys; from tablet_hf.cli.__main__ import app; app(['finetune', '--help'], standalone_mode=False); "
    code += "print([m for m in ('datasets', 'diffusers', 'evaluate', 'nibabel') if m in sys.modules])"
    environment = os.environ | {"COLUMNS": "200"}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"
