"""`tablet-hf pretrain`, `finetune` and `evaluate`, as typed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from preprocessing import PREPROCESSING
from typer.testing import CliRunner

from tablet_hf.cli.__main__ import app
from tablet_hf.cli.training import _tell_results
from tablet_hf.datasets import TokenStoreWriter
from tablet_hf.evaluation.predictions import Predictions
from tablet_hf.report.evaluation_page import write_results
from tablet_hf.sources import ScanRecord

QUICK = ["--window", "4", "--epochs", "1", "--batch-size", "8", "--device", "cpu"]
SHORT = [*QUICK, "--size", "tiny"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    writer = TokenStoreWriter(tmp_path_factory.mktemp("cli") / "store", PREPROCESSING)
    for number in range(20):
        phenotypes = {"sex": "FM"[number % 2], "age": 20.5 + number}
        record = ScanRecord(f"{number:02}", Path("x"), phenotypes=phenotypes)
        scan = {"name": f"{number}", "bytes": 1, "modified_ns": 1}
        writer.write(record, torch.randn(6, 27, 96, generator=generator), 2.0, scan)
    return writer.finish().folder


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def tuned(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, run("finetune", "--dataset", store, "--label", "sex", "--folds", 2, "--out", out, *SHORT)


def test_finetuning_prints_all_methods_beside_each_other(tuned):
    out, ended = tuned
    assert ended.exit_code == 0, ended.output
    rows = [line.split("  ")[0] for line in ended.stdout.splitlines()]
    assert rows[2:] == ["TABLeT", "majority class", "mean token"]
    assert "sex, 4 people, mean and 95% interval over people" in ended.stdout
    assert "classification of sex: F, M; its values are no numbers" in ended.stderr
    assert "functional connectivity could not be run in fold-1" in ended.stderr
    assert json.loads((out / "results.json").read_text())["about"]["started from"] == "scratch"
    assert {path.name for path in out.iterdir()} >= {"fold-1", "fold-2", "index.html", "predictions.csv", "splits.csv"}


def test_how_far_a_model_is_ahead_of_each_baseline_is_printed_beside_it(tmp_path, capsys):
    random = np.random.default_rng(0)
    targets = np.arange(40) % 2
    methods = []
    for name, skill in (("TABLeT", 4), ("majority class", 0)):
        positive = 1 / (1 + np.exp(random.standard_normal(40) - skill * (targets - 0.5)))
        outputs, people = np.stack([1 - positive, positive], axis=1), tuple(f"{number:02}" for number in range(40))
        methods.append(Predictions(name, "sex", ("F", "M"), people, targets, outputs, (None,) * 40, ("f",) * 40))
    results = write_results(tmp_path, methods, num_bootstraps=200, num_permutations=20)
    _tell_results(results, tmp_path)
    header, tablet, majority = capsys.readouterr().out.splitlines()[1:]
    (compared,) = results["comparisons"]
    assert header.endswith("TABLeT ahead in auroc")
    assert tablet.split("  ")[-1].count("(") == 1  # its own last metric, and nothing after it
    value, low, high = (compared["metrics"]["auroc"][name] for name in ("value", "low", "high"))
    assert compared["p_value"] == pytest.approx(2 / 201)
    assert majority.endswith(f"  {value:+.3g} ({low:+.3g} to {high:+.3g}), p = {2 / 201:.2g}")


def test_the_same_words_again_do_nothing_twice(tuned, store):
    out, _ = tuned
    before = {path: path.stat().st_mtime_ns for path in out.glob("fold-*/model/*")}
    again = run("finetune", "--dataset", store, "--label", "sex", "--folds", 2, "--out", out, *SHORT)
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in out.glob("fold-*/model/*")} == before
    other = run("finetune", "--dataset", store, "--label", "age", "--out", out, *SHORT)
    assert other.exit_code == 2
    assert "a training in 2 folds was begun there, not in 4" in other.stderr
    other = run("finetune", "--dataset", store, "--label", "age", "--folds", 2, "--out", out, *SHORT)
    assert other.exit_code == 2
    assert "a training with label 'sex', not 'age', was begun there" in " ".join(other.stderr.split())


def test_a_model_is_evaluated(tuned, store, tmp_path):
    out, _ = tuned
    words = ["--dataset", store, "--splits", out / "splits.csv", "--fold", "fold-2", "--device", "cpu"]
    ended = run("evaluate", out / "fold-2" / "model", *words, "--part", "validation", "--out", tmp_path)
    assert ended.exit_code == 0, ended.output
    assert [line.split("  ")[0] for line in ended.stdout.splitlines()][2:] == ["TABLeT", "majority class", "mean token"]
    assert json.loads((tmp_path / "results.json").read_text())["about"]["part"] == "validation"
    assert not (tmp_path / "work").exists()


def test_a_model_judged_on_a_fold_in_which_it_was_not_trained(tuned, store, tmp_path):
    out, _ = tuned
    words = ["--dataset", store, "--splits", out / "splits.csv", "--device", "cpu", "--out", tmp_path]
    ended = run("evaluate", out / "fold-2" / "model", *words)  # the first fold, as nothing else is said
    assert ended.exit_code == 0, ended.output
    assert "2 of 2 people of the test part of fold-1 are called like people whom the model learnt from" in " ".join(
        ended.stderr.split()
    )


def test_pretraining_then_a_linear_probe(tuned, store, tmp_path):
    out, _ = tuned
    splits = ["--dataset", store, "--splits", out / "splits.csv"]
    masked = ["--mask-strategy", "tube", "--norm-target", "--set", "pooling_type=mean"]
    ended = run("pretrain", *splits, "--out", tmp_path / "pretrained", *SHORT, *masked)
    assert ended.exit_code == 0, ended.output
    assert ended.stdout.splitlines()[0].startswith("validation loss ")
    assert ended.stdout.splitlines()[1] == str(tmp_path / "pretrained" / "model")
    config = json.loads((tmp_path / "pretrained" / "model" / "config.json").read_text())
    assert (config["mask_strategy"], config["pooling_type"], config["hidden_size"]) == ("tube", "mean", 64)
    probe = ["--mode", "head", "--init", tmp_path / "pretrained" / "model", "--fold", "fold-1"]
    ended = run("finetune", *splits, "--label", "age", "--out", tmp_path / "probe", *QUICK, *probe)
    assert ended.exit_code == 0, ended.output
    assert "regression of age" in ended.stderr
    assert [line.split("  ")[0] for line in ended.stdout.splitlines()][2:] == ["TABLeT", "training mean", "mean token"]


def test_pretraining_from_a_stream(store, tmp_path):
    ended = run("pretrain", "--dataset", store, "--out", tmp_path, *SHORT, "--streamed", "--max-steps", 2)
    assert ended.exit_code == 0, ended.output
    assert "give --splits" in (tmp_path / "index.html").read_text()


def test_pretraining_from_a_stream_is_judged_by_the_validation_part(tuned, store, tmp_path):
    words = ["--streamed", "--max-steps", 2, "--splits", tuned[0] / "splits.csv"]
    ended = run("pretrain", "--dataset", store, "--out", tmp_path / "out", *SHORT, *words)
    assert ended.exit_code == 0, ended.output
    assert "naming each cell's mean reaches" in ended.stdout
    assert "windows of the validation part" in ended.stderr
    assert "was streamed" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--label", "iq"], "has this phenotype; there are age, sex"),
        (["--label", "sex", "--size", "huge"], "--size huge: choose published, small, tiny"),
        (["--label", "sex", "--set", "depth=3"], "--set depth=3: give name=value"),
        (["--label", "sex", "--set", "hidden_size=65"], "hidden_size"),
        (["--label", "sex", "--sweep", "1e-4,fast"], "--sweep 1e-4,fast: give numbers"),
        (["--label", "sex", "--sweep", "1e-4,-1"], "learning rates are over 0"),
        (["--label", "sex", "--mode", "head"], "needs a trained network"),
        (["--label", "sex", "--init", "a/b"], "--size tiny: a/b has a size of its own; leave --size out, or --init."),
        (["--label", "sex", "--splits", "nowhere.csv"], "nowhere.csv: it cannot be read"),
        (["--label", "sex", "--precision", "int4"], "precision 'int4': choose"),
        (["--label", "sex", "--epochs", "0"], "epochs is 0"),
        (["--label", "sex", "--set", "num_frames=9"], "--set num_frames=9: --window decides it; leave it out."),
        (["--label", "sex", "--set", "signal=intensity"], "--set signal=intensity: the dataset says it"),
        (["--label", "sex", "--set", "positive_weight=2"], "--set positive_weight=2: the label decides it"),
        (["--label", "sex", "--splits", "a.csv", "--folds", "3"], "--folds 3: a.csv says which folds there are"),
    ],
)
def test_what_cannot_be_is_one_sentence(store, tmp_path, words, said):
    ended = run("finetune", "--dataset", store, "--out", tmp_path / "out", "--size", "tiny", "--device", "cpu", *words)
    assert ended.exit_code == 2, ended.output
    assert said in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fold", "fold-2"], "--fold fold-2: it is one of a file of splits; give that file as well, by --splits."),
        (["--set", "mask_ratio=0.9"], "--set mask_ratio=0.9: --mask-ratio of pretrain decides it"),
    ],
)
def test_pretraining_passes_nothing_over(store, tmp_path, words, said):
    """A fold of no splits would be everybody, the people of its test part among them."""
    ended = run("pretrain", "--dataset", store, "--out", tmp_path / "out", *SHORT, *words)
    assert ended.exit_code == 2, ended.output
    assert said in " ".join(ended.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["--fold", "fold-2"], ["--part", "validation"]])
def test_a_part_of_no_splits_is_not_everybody(tuned, store, tmp_path, words):
    out = ["--out", tmp_path / "judged"]
    ended = run("evaluate", tuned[0] / "fold-1" / "model", "--dataset", store, *out, *words)
    assert ended.exit_code == 2, ended.output
    assert f"{' '.join(words)}: it is one of a file of splits" in " ".join(ended.stderr.split())


def test_a_head_has_neither_rates_nor_patience(tuned, store, tmp_path):
    words = ["--dataset", store, "--label", "sex", "--mode", "head", "--init", tuned[0] / "fold-1" / "model", *QUICK]
    for more, said in ((["--sweep", "1e-3,1e-4"], "leave rates to choose from"), (["--patience", 2], "leave patience")):
        ended = run("finetune", *words, "--out", tmp_path / "out", *more)
        assert ended.exit_code == 2, ended.output
        assert said in " ".join(ended.stderr.split())


def test_folds_of_a_try_that_never_began_decide_nothing(store, tmp_path):
    words = ["finetune", "--dataset", store, "--out", tmp_path, *SHORT]
    assert run(*words, "--label", "sex", "--folds", 3, "--mode", "head").exit_code == 2  # after they were drawn
    record = json.loads((tmp_path / "splits.json").read_text())["splits"]
    assert [split["settings"]["label"] for split in record.values()] == ["sex"] * 3
    ended = run(*words, "--label", "age", "--folds", 2, "--fold", "fold-2")
    assert ended.exit_code == 0, ended.output
    record = json.loads((tmp_path / "splits.json").read_text())["splits"]
    assert [split["settings"]["label"] for split in record.values()] == ["age"] * 2
    assert "are those of fold-2; the same words without --fold put all folds together" in " ".join(ended.stderr.split())
    ended = run(*words, "--label", "sex", "--folds", 2, "--fold", "fold-1")
    assert ended.exit_code == 2
    assert "a training with label 'age', not 'sex', was begun there" in " ".join(ended.stderr.split())


def test_folds_that_were_brought_along_are_kept(store, tmp_path):
    rows = [f"{number:02},{('train', 'train', 'train', 'validation', 'test')[number // 4]}" for number in range(20)]
    (tmp_path / "splits.csv").write_text("\n".join(["subject,mine", *rows]) + "\n")
    words = ["finetune", "--dataset", store, "--out", tmp_path, *SHORT, "--label", "sex", "--folds", 1]
    ended = run(*words)
    assert ended.exit_code == 0, ended.output
    assert (tmp_path / "mine" / "model").is_dir()


def test_a_model_to_start_from_that_is_not_there(store, tmp_path):
    words = ["--dataset", store, "--label", "sex", "--out", tmp_path / "out", "--init", "nowhere"]
    ended = run("finetune", *words, *QUICK)
    assert ended.exit_code == 2
    assert "nowhere: there is no such folder" in ended.stderr


def test_options_become_settings(store, tmp_path):
    words = ["--dataset", store, "--label", "sex", "--folds", 1, "--out", tmp_path, "--size", "tiny", "--device", "cpu"]
    words += ["--window", 0, "--epochs", 1, "--batch-size", 5, "--accumulate", 2, "--learning-rate", 3e-4]
    words += ["--warmup", 0.1, "--weight-decay", 0.2, "--precision", "fp32", "--gradient-checkpointing", "--seed", 7]
    ended = run("finetune", *words)
    assert ended.exit_code == 0, ended.output
    (path,) = tmp_path.glob("*/training.json")
    training = json.loads(path.read_text())
    settings = training["settings"] | training["carried_out"]
    asked = {"window_frames": None, "epochs": 1, "batch_size": 5, "accumulate": 2, "learning_rate": 3e-4, "seed": 7}
    asked |= {"warmup": 0.1, "weight_decay": 0.2, "precision": "fp32", "gradient_checkpointing": True}
    assert asked.items() <= settings.items()


def test_help_comes_without_the_libraries():
    code = "import sys; from tablet_hf.cli.__main__ import app; app(['finetune', '--help'], standalone_mode=False); "
    code += "print([m for m in ('datasets', 'diffusers', 'evaluate', 'nibabel') if m in sys.modules])"
    environment = os.environ | {"COLUMNS": "200"}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"
