"""The chain of commands from scans to published models, held to what it did: files, columns and figures.

It is for changes that change no behaviour. It knows the package by its command line and its public names alone, asserts
no sentence of a message, and keeps figures in expected.json, which is written anew by

    TABLET_FREEZE=1 pytest tests/end_to_end/test_frozen.py -n 0

Each fixture is a command that was run once; the tests look at what it left.
"""

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nibabel
import numpy as np
import pyarrow.parquet
import pytest
import torch
from cohort import PEOPLE, write_cohort, write_scan
from loopback_hub import LoopbackHub
from planted import LAB
from released_layout import RELEASED, released_folder, released_weights
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

import tablet_hf
from tablet_hf.cli.__main__ import app  # the one place that says where the commands are
from tablet_hf.datasets import TokenDataset

EXPECTED = Path(__file__).with_name("expected.json")
SPLITS = {"train": ["01", "02", "03", "04"], "validation": ["05", "06"], "test": ["07", "08"]}
SOME = [2353, 2353, 2288, 2545, 2416]
"""Places in a token of numbers that move with the scans; most see little of so small a brain."""
VAGUE = {("mean token", "pearson_r")}
TRAINED = {"rtol": 2e-2, "atol": 5e-3}
"""What comes out of steps of AdamW, which makes much of little where a gradient is small."""


def run(*words, exit_code=0):
    """A command, that ended as it should."""
    ended = CliRunner().invoke(app, [str(word) for word in words])
    assert ended.exit_code == exit_code, (words, ended.output, ended.exception)
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    return ended


def files_in(folder):
    """Names of all files below, sorted and each once, without what another time or place changes."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    names = {re.sub(r"_[0-9a-f]{16}\.npz$", "_HASH.npz", name) for name in names}
    return sorted({re.sub(r"runs/[^/]+/events\.out\.[^/]+$", "EVENTS", name) for name in names})


def table(path, delimiter=","):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in (".arrow", ".safetensors")}


def summary(tokens):
    """Figures of `(frames, cells, numbers)`: over all, over time, of each cell, and a few as they are."""
    tokens = tokens.double()
    return {
        "shape": list(tokens.shape),
        "mean": tokens.mean().item(),
        "std": tokens.std().item(),
        "std over time": tokens.std(0).mean().item(),
        "std by cell": tokens.std((0, 2)).tolist(),
        "some": tokens[[0, -1, -1, -1, -1], [13, 13, 13, 13, 4], SOME].tolist(),
    }


def predicted(rows):
    """Predictions by person, without those of connectivity, whose clusters may fall otherwise elsewhere."""
    figures = [name for name in rows[0] if re.match(r"(TABLeT|mean token|training mean)(: |$)", name)]
    return {row["subject"]: {name: as_number(row[name]) for name in figures} for row in rows}


def as_number(text):
    try:
        return float(text)
    except ValueError:
        return text


def metrics(results):
    """The figures of merit of the network and the baselines; what nobody could count is None.

    Without those of connectivity, and without the correlation of ages that the mean token hardly tells apart.
    """
    return {
        name: {metric: found["value"] for metric, found in method["metrics"].items() if (name, metric) not in VAGUE}
        for name, method in results["methods"].items()
        if "connectivity" not in name
    }


def assert_close(found, expected, where, rtol, atol):
    assert type(found) is type(expected) or {type(found), type(expected)} == {int, float}, (where, found, expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for name in expected:
            assert_close(found[name], expected[name], f"{where}: {name}", rtol, atol)
    elif isinstance(expected, list):
        assert len(found) == len(expected), (where, found, expected)
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_close(one, other, f"{where}[{number}]", rtol, atol)
    elif isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=rtol, abs_tol=atol), (where, found, expected)
    else:
        assert found == expected, where


@pytest.fixture(scope="module")
def frozen():
    """A function that compares with expected.json, or with TABLET_FREEZE set writes it there."""
    is_written = bool(os.environ.get("TABLET_FREEZE"))
    expected = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}

    def compare(name, found, rtol=2e-3, atol=1e-4):
        found = json.loads(json.dumps(found))
        if is_written:
            expected[name] = found
            EXPECTED.write_text(json.dumps(expected, indent=1) + "\n")
        assert_close(found, expected[name], name, rtol, atol)

    return compare


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("frozen")


@pytest.fixture(scope="module")
def scans(folder):
    return write_cohort(folder / "bids")


@pytest.fixture(scope="module")
def short(folder):
    """A scan of two frames of somebody else."""
    return write_scan(folder / "other" / "sub-09_bold.nii.gz", 9, "F", 33, frames=2)


@pytest.fixture(scope="module")
def damaged(scans, folder):
    (folder / "broken").mkdir()
    path = folder / "broken" / "sub-10_bold.nii.gz"
    path.write_bytes(scans["01"].read_bytes()[:20000])
    return path


# --- tokens


@pytest.fixture(scope="module")
def token_files(scans, folder):
    run("tokenize", scans["01"], scans["08"], "--num-frames", 2, "--start", 1, "--out", folder / "tokens")
    run("tokenize", scans["07"], "--num-frames", 4, "--signal", "percent_change", "--out", folder / "percent")
    return folder / "tokens"


def test_tokenize_files(token_files, scans, folder, frozen):
    frozen("token files", files_in(token_files))
    (percent,) = (folder / "percent").iterdir()
    for path in [*sorted(token_files.iterdir()), percent]:
        with safe_open(path, "pt") as file:
            record, shapes = file.metadata(), {name: list(file.get_tensor(name).shape) for name in sorted(file.keys())}
            tokens = file.get_tensor("tokens")
        assert tokens.dtype == torch.float16
        frozen(f"keys of {path.name}", {"tensors": shapes, "metadata": sorted(record)})
        frozen(f"tokens of {path.name}", summary(tokens))


def test_tokenize_files_again_with_a_damaged_and_a_missing_one(token_files, scans, damaged, folder):
    before = times(token_files)
    assert len(before) == 2
    words = ["--num-frames", 2, "--start", 1, "--out", token_files]
    run("tokenize", scans["01"], scans["08"], *words)
    assert times(token_files) == before
    missing = folder / "nowhere_bold.nii.gz"
    ended = run("tokenize", damaged, missing, scans["01"], *words, exit_code=2)
    assert damaged.name in ended.output
    assert missing.name in ended.output
    assert times(token_files) == before


@pytest.fixture(scope="module")
def store(scans, folder):
    run("tokenize", "--source", "bids", folder / "bids", "--out", folder / "dry", "--dry-run")
    assert not (folder / "dry").exists()
    run("tokenize", "--source", "bids", folder / "bids", "--out", folder / "store", "--signal", "percent_change")
    return folder / "store"


def test_tokenize_a_dataset(store, frozen):
    frozen("store", files_in(store))
    frozen("settings of the store", json.loads((store / "store.json").read_text())["preprocessing"])
    frozen("columns of runs.parquet", sorted(pyarrow.parquet.read_schema(store / "runs.parquet").names))
    frozen("columns of problems.tsv", (store / "problems.tsv").read_text().splitlines()[0].split("\t"))
    tokens = TokenDataset.load(store)
    assert {run.subject: run.phenotypes for run in tokens.runs} == PEOPLE
    for number, one in enumerate(tokens.runs):
        assert (one.key, one.repetition_time, one.num_frames) == (f"Frozen/sub-{one.subject}_task-rest", 2.0, 5)
        frozen(f"tokens of {one.key}", summary(torch.as_tensor(tokens.window(number, start=0, frames=5))))


def test_tokenize_a_dataset_again(store, folder):
    before = times(store)
    assert len(before) == 8
    run("tokenize", "--source", "bids", folder / "bids", "--out", store, "--signal", "percent_change")
    assert times(store) == before


def test_tokenize_a_dataset_with_a_damaged_scan(store, folder, damaged):
    shutil.copytree(folder / "bids", folder / "again")  # with the times of files, by which they are known
    shutil.copytree(store, folder / "partial")
    person = folder / "again" / "sub-07" / "func"
    scan = next(person.glob("*_bold.nii.gz"))
    scan.write_bytes(damaged.read_bytes())
    before = times(folder / "partial")
    shutil.rmtree(folder / "partial" / "runs" / "Frozen" / "sub-07")
    words = ["--out", folder / "partial", "--signal", "percent_change"]
    run("tokenize", "--source", "bids", folder / "again", *words, exit_code=2)
    assert [Path(row["what"]).name for row in table(folder / "partial" / "problems.tsv", "\t")] == [scan.name]
    assert sorted(one.subject for one in TokenDataset.load(folder / "partial").runs) == [
        subject for subject in PEOPLE if subject != "07"
    ]
    assert times(folder / "partial").items() < before.items()


def test_info(scans, token_files, store, damaged, folder):
    assert scans["01"].name in run("info", scans["01"]).output.replace("\n", "")
    percent = next((folder / "percent").iterdir())
    assert "4 x 27 x 3072" in run("info", percent).stdout
    run("info", damaged, exit_code=2)
    run("info", folder / "nowhere.nii.gz", exit_code=2)
    run("info", store, exit_code=2)  # dataset describe tells of it


# --- datasets


def test_dataset_check(store, folder):
    run("dataset", "check", store)
    shutil.copytree(store, folder / "spoilt")
    path = next((folder / "spoilt").rglob("sub-03*.arrow"))
    path.write_bytes(path.read_bytes()[:-8] + b"\1" * 8)
    assert path.name in run("dataset", "check", folder / "spoilt", exit_code=2).output.replace("\n", "")


def test_dataset_describe(store):
    said = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in run("dataset", "describe", store).stdout.splitlines())
    assert (said["subjects"], said["runs"], said["repetition time"]) == ("8", "8", "2 s")
    assert {"phenotype sex", "phenotype age"} <= said.keys()


def test_dataset_split(store, folder, frozen):
    run("dataset", "split", store, "--label", "sex", "--folds", 2, "--out", folder / "drawn.csv")
    frozen("splits drawn", table(folder / "drawn.csv"))
    record = json.loads((folder / "drawn.json").read_text())["splits"]
    frozen("record of splits drawn", {name: sorted(one) for name, one in record.items()})
    before = (folder / "drawn.csv").read_bytes()
    run("dataset", "split", store, "--label", "age", "--out", folder / "drawn.csv", exit_code=2)
    assert (folder / "drawn.csv").read_bytes() == before


def test_dataset_merge(store, short, folder, frozen):
    lines = ["path,subject,sex,age,dataset", f"{short},09,F,33,Other"]
    (folder / "other.csv").write_text("\n".join(lines) + "\n")
    other, signal = folder / "other-store", ["--signal", "percent_change"]
    run("tokenize", "--source", "table", folder / "other.csv", "--out", other, *signal)
    frozen("tokens of a table", summary(torch.as_tensor(TokenDataset.load(other).window(0, start=0, frames=2))))
    run("dataset", "merge", store, other, "--out", folder / "merged")
    frozen("merged store", files_in(folder / "merged"))
    merged = TokenDataset.load(folder / "merged")
    found = {(one.dataset, one.subject): (one.num_frames, one.phenotypes["sex"]) for one in merged.runs}
    people = {("Frozen", subject): (5, person["sex"]) for subject, person in PEOPLE.items()}
    assert found == people | {("Other", "09"): (2, "F")}


def test_dataset_export(store, folder, frozen):
    run("dataset", "export", store, "--out", folder / "parquet")
    frozen("export", files_in(folder / "parquet"))
    (shard,) = (folder / "parquet" / "data").iterdir()
    frozen("columns of the export", pyarrow.parquet.read_schema(shard).names)


# --- training


@pytest.fixture(scope="module")
def splits(folder):
    """A table of splits as somebody would write it by hand."""
    rows = [f"{subject},{part}" for part, subjects in SPLITS.items() for subject in subjects]
    (folder / "splits.csv").write_text("\n".join(["subject,mine", *rows]) + "\n")
    return folder / "splits.csv"


@pytest.fixture(scope="module")
def words(store, splits):
    training = ["--window", 4, "--epochs", 2, "--batch-size", 2, "--learning-rate", 1e-3, "--device", "cpu"]
    return ["--dataset", store, "--splits", splits, *training]


@pytest.fixture(scope="module")
def pretrained(words, folder):
    # Streamed, since else the page decodes frames, which takes most of a minute.
    run("pretrain", *words, "--streamed", "--max-steps", 4, "--size", "tiny", "--out", folder / "pretrained")
    return folder / "pretrained"


@pytest.fixture(scope="module")
def sex(words, folder):
    out = folder / "sex"
    run("finetune", *words, "--label", "sex", "--size", "tiny", "--scans", folder / "bids", "--out", out)
    return out


@pytest.fixture(scope="module")
def age(words, pretrained, folder):
    kind = ["--label", "age", "--task", "regression", "--init", pretrained / "model"]
    run("finetune", *words, *kind, "--scans", folder / "bids", "--out", folder / "age")
    return folder / "age"


def test_pretrain(pretrained, frozen):
    frozen("pretraining", files_in(pretrained))
    told = json.loads((pretrained / "pretraining.json").read_text())
    figures = {name: told[name] for name in ("loss", "validation_loss", "mean_predictor_loss")}
    assert all(len(values) >= 2 for values in (told["loss"], told["validation_loss"]))
    frozen("losses of pretraining", figures, rtol=1e-2)


@pytest.mark.parametrize("label", ["sex", "age"])
def test_finetune(label, request, frozen):
    out = request.getfixturevalue(label)
    frozen(f"finetuning of {label}", files_in(out))
    rows, results = table(out / "predictions.csv"), json.loads((out / "results.json").read_text())
    assert [row["subject"] for row in rows] == SPLITS["test"]
    assert (results["label"], results["num_subjects"], results["are_held_out"]) == (label, 2, True)
    frozen(f"columns of predictions of {label}", list(rows[0]))
    frozen(f"keys of results of {label}", {"all": sorted(results), "about": sorted(results["about"])})
    frozen(f"predictions of {label}", predicted(rows), **TRAINED)
    frozen(f"metrics of {label}", metrics(results), **TRAINED)
    config = json.loads((out / "mine" / "model" / "config.json").read_text())
    frozen(f"config of {label}", {name: value for name, value in config.items() if name != "transformers_version"})
    fold = json.loads((out / "mine" / "fold.json").read_text())
    frozen(f"validation of {label}", {"metric": fold["metric"], "of rates": fold["validation"]}, **TRAINED)


def test_finetune_again(sex, words, folder):
    before = times(sex)
    assert len(before) == 1
    run("finetune", *words, "--label", "sex", "--size", "tiny", "--scans", folder / "bids", "--out", sex)
    assert times(sex) == before


@pytest.fixture(scope="module")
def judged(sex, store, splits, folder):
    words = ["--dataset", store, "--splits", splits, "--fold", "mine", "--device", "cpu", "--scans", folder / "bids"]
    run("evaluate", sex / "mine" / "model", *words, "--part", "test", "--out", folder / "judged")
    return folder / "judged"


def test_evaluate(judged, sex, frozen):
    frozen("evaluation", files_in(judged))
    rows, trained = table(judged / "predictions.csv"), table(sex / "predictions.csv")
    assert_close(predicted(rows), predicted(trained), "as after training", 1e-4, 1e-5)
    results = json.loads((judged / "results.json").read_text())
    assert results["about"]["part"] == "test"
    frozen("keys of results of evaluate", {"all": sorted(results), "about": sorted(results["about"])})
    assert metrics(results)["TABLeT"] == metrics(json.loads((sex / "results.json").read_text()))["TABLeT"]


def test_info_of_a_model(sex, pretrained):
    said = dict(
        re.split(r"\s{2,}", line, maxsplit=1) for line in run("info", sex / "mine" / "model").stdout.splitlines()
    )
    assert (said["class"], said["signal, scaling"]) == ("TabletForSequenceClassification", "percent_change, max")
    assert "TabletForMaskedTokenModeling" in run("info", pretrained / "model").stdout


# --- what models are for


def test_networks_of_large_weights(frozen):
    """What four steps of training leave near zero, as what positions do, shows here."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    tokens = torch.randn(1, 6, 27, 96, generator=torch.Generator().manual_seed(0))
    hidden = (torch.arange(6 * 27) % 3 == 0).view(1, 6, 27)
    for kind in ("spatiotemporal_rope", "rope", "none"):
        config = tablet_hf.TabletConfig(
            **sizes, intermediate_size=64, token_size=96, position_embedding_type=kind, num_labels=2
        )
        models = [tablet_hf.TabletForSequenceClassification(config), tablet_hf.TabletForMaskedTokenModeling(config)]
        with torch.no_grad():
            for model in models:
                random = torch.Generator().manual_seed(1)
                for _, weight in sorted(model.eval().named_parameters()):
                    weight.copy_(0.3 * torch.randn(weight.shape, generator=random))
            logits = models[0](tokens, repetition_time=0.8).logits[0].tolist()
            rebuilt = models[1](tokens, repetition_time=0.8, bool_masked_pos=hidden)
        found = {"logits": logits, "loss": rebuilt.loss.item()}
        frozen(f"network with positions {kind}", found | {"some": rebuilt.reconstruction.flatten()[::4001].tolist()})


@pytest.fixture(scope="module")
def predictions(sex, short, token_files, damaged, folder):
    scans = [short, damaged, next((folder / "percent").iterdir())]
    out = folder / "predictions.csv"
    run("predict", sex / "mine" / "model", *scans, "--out", out, "--device", "cpu", exit_code=2)
    return out


def test_predict(predictions, sex, age, folder, frozen):
    by_scan, by_tokens = table(predictions)  # the damaged one has no row
    frozen("columns of predict", list(by_scan))
    kept = ("prediction", "score_M", "num_frames", "num_windows", "repetition_time")
    found = {Path(row["scan"]).name: {name: as_number(row[name]) for name in kept} for row in (by_scan, by_tokens)}
    frozen("predict", found, **TRAINED)
    (of_training,) = [row for row in table(sex / "predictions.csv") if row["subject"] == "07"]
    expected = float(of_training["TABLeT: probability of M"])
    assert float(by_tokens["score_M"]) == pytest.approx(expected, abs=2e-2)  # of frames 0 to 3, there of all five
    tokens, out = by_tokens["scan"], folder / "ages.csv"
    run("predict", age / "mine" / "model", tokens, "--out", out, "--device", "cpu")
    (row,) = table(out)
    frozen("predict ages", {name: as_number(value) for name, value in row.items() if name.startswith("p")}, **TRAINED)
    before = out.read_bytes()
    run("predict", age / "mine" / "model", tokens, "--out", out, "--device", "cpu")
    assert out.read_bytes() == before


def test_reconstruct(scans, folder, frozen):
    words = ["reconstruct", scans["02"], "--num-frames", 1, "--out", folder / "recon.nii.gz"]
    said = run(*words).stdout
    image, scan = (nibabel.load(path) for path in (folder / "recon.nii.gz", scans["02"]))
    assert image.shape == (91, 109, 91, 1)
    np.testing.assert_array_equal(image.affine, scan.affine)
    before, after = np.asarray(scan.dataobj[..., 0], float), image.get_fdata()[..., 0]
    inside = before > 0
    psnr = 20 * np.log10(before.max()) - 10 * np.log10(np.mean((before - after)[inside] ** 2))
    found = {"psnr": psnr, "mean": after[inside].mean(), "some": [after[45, 58, 40], after[43, 55, 38]]}
    frozen("reconstruction", found)
    assert float(re.search(r"([\d.]+) dB", said)[1]) == pytest.approx(psnr, abs=0.5)
    bytes_before = (folder / "recon.nii.gz").read_bytes()
    run(*words, exit_code=2)
    assert (folder / "recon.nii.gz").read_bytes() == bytes_before


def test_convert(folder, frozen):
    released = released_weights(RELEASED)
    released_folder(folder / "released", RELEASED, released)
    run("convert", folder / "released", "--grid-size", 3, "--out", folder / "converted")
    frozen("converted", files_in(folder / "converted"))
    weights = load_file(folder / "converted" / "model.safetensors")
    assert len(weights) == len(released)
    for name, tensor in released.items():
        assert any(
            tensor.numel() == one.numel() and torch.equal(tensor.flatten(), one.flatten()) for one in weights.values()
        ), name
    frozen("names of weights", sorted(weights))
    model = tablet_hf.TabletForSequenceClassification.from_pretrained(folder / "converted").eval()
    tokens = torch.linspace(-2, 2, 3 * 27 * 21).view(1, 3, 27, 21)
    with torch.no_grad():
        frozen("logits of the converted", model(tokens, repetition_time=2.0).logits.tolist())
    run("convert", folder / "nowhere", "--out", folder / "converted-nowhere", exit_code=2)


# --- the Hub


@pytest.fixture(scope="module")
def hub(folder):
    """A Hub to write to, asked by the client libraries of this process."""
    hub = LoopbackHub(folder / "hub", users={LAB: "lab"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", LAB)
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        hub.answer_here(patch, folder / "cache")
        yield hub
    hub.stop()


@pytest.fixture(scope="module")
def pushed(hub, sex, store, judged):
    words = ["--with-code", "--dataset", store, "--evaluation", judged / "results.json"]
    run("push", sex / "mine" / "model", "lab/sex", *words)
    run("push", store, "lab/tokens", "--phenotypes", "sex,age", "--keep-subjects")
    return hub


def test_push(pushed, frozen):
    model, tokens = pushed.files("lab/sex"), pushed.files("lab/tokens", "datasets")
    # Which modules of the code go along is where they lie in the package, and no behaviour.
    frozen("pushed model", sorted(name for name in model if not name.endswith(".py")))
    assert any(name.endswith(".py") for name in model)
    frozen("pushed store", sorted(tokens))
    for files in (model, tokens):
        assert files["README.md"].startswith(b"---\n")


def test_load_with_the_package(pushed, sex, store):
    model, local = (
        tablet_hf.TabletForSequenceClassification.from_pretrained(name) for name in ("lab/sex", sex / "mine" / "model")
    )
    assert model.config.id2label == local.config.id2label
    loaded = model.state_dict()
    for name, tensor in local.state_dict().items():
        assert torch.equal(tensor, loaded[name]), name
    extractor = tablet_hf.TabletFeatureExtractor.from_pretrained("lab/sex")
    assert (extractor.signal, extractor.scaling) == ("percent_change", "max")
    tokens, here = TokenDataset.load("lab/tokens"), TokenDataset.load(store)
    assert {one.subject: one.phenotypes for one in tokens.runs} == PEOPLE
    places = {one.subject: number for number, one in enumerate(here.runs)}
    for number, one in enumerate(tokens.runs):
        ours = here.window(places[one.subject], start=0, frames=5)
        assert torch.equal(torch.as_tensor(tokens.window(number, start=0, frames=5)), torch.as_tensor(ours))


WITHOUT = """
import importlib.util, json, sys
assert importlib.util.find_spec("tablet_hf") is None
import torch
from transformers import AutoModelForSequenceClassification, pipeline
scan, name = sys.argv[1:]
classify = pipeline("fmri-classification", model=name, device="cpu", trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=True)
same = all(torch.equal(tensor, classify.model.state_dict()[name]) for name, tensor in model.state_dict().items())
assert not [name for name in sys.modules if name.split(".")[0] == "tablet_hf"]
print(json.dumps({"same": same, "scores": classify(scan)}))
"""


def test_load_without_the_package(pushed, predictions, short, folder):
    packages = folder / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "tablet_hf" not in entry.name and entry.suffix != ".pth":
            (packages / entry.name).symlink_to(entry)
    variables = pushed.environment(folder / "home") | {"PYTHONPATH": str(packages), "HF_TOKEN": LAB}
    command = [sys.executable, "-S", "-P", "-c", WITHOUT, str(short), "lab/sex"]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["same"]
    scores = {one["label"]: one["score"] for one in told["scores"]}
    (row,) = [row for row in table(predictions) if row["scan"] == str(short)]
    assert scores["M"] == pytest.approx(float(row["score_M"]), abs=1e-4)
