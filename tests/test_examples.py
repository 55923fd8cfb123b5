"""The examples run as they are written, on a few simulated people."""

import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from small_autoencoders import save_f32

from tablet_hf import InputError, TabletConfig, TabletFeatureExtractor, TabletForSequenceClassification
from tablet_hf.datasets import ScanRecord, TokenStoreWriter, split_subjects, subject_ids, write_splits
from tablet_hf.demo.cohort import GROUPS, CohortDesign, write_cohort
from tablet_hf.pipelines import ScanPredictor
from tablet_hf.token_files import load_tokens, token_file_name

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("finetune_participants", EXAMPLES / "finetune_participants.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_participants_are_finetuned_beside_a_baseline(tmp_path):
    people = write_cohort(tmp_path / "derivatives", CohortDesign(num_people=8, num_frames=2), resolution=4)
    damaged = tmp_path / "model" / "tokens" / f"{people[0].name}_{token_file_name(people[0].scan)}"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("no tokens")
    words = [tmp_path / "derivatives", "--label", "group", "--positive", GROUPS[1], "--out", tmp_path / "model"]
    command = [sys.executable, EXAMPLES / "finetune_participants.py", *words, "--epochs", "1", "--num-frames", "2"]
    ended = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )

    assert ended.returncode == 0, ended.stderr
    assert "left out" not in ended.stdout
    assert "6 people to learn from, 2 held out; larger class 1" in ended.stdout
    rows = [line for line in ended.stdout.splitlines() if " accuracy " in line]
    assert [row.split("  ")[0] for row in rows] == ["TABLeT", "functional connectivity"]
    assert len(list((tmp_path / "model" / "tokens").iterdir())) == len(people)
    assert ScanPredictor.from_pretrained(tmp_path / "model").model.config.id2label == {0: GROUPS[1]}


class TestUnusableStudies:
    """Told before the long work begins."""

    @pytest.mark.parametrize(
        ("table", "said"),
        [
            (None, "there is no such file"),
            ("participant_id\tage\nsub-01\t3\n", "no column 'sex'; its columns are participant_id, age"),
            ("participant_id\tsex\nsub-01\tF\nsub-02\tM\n", "nobody has 'Female' as sex; the values are F, M"),
        ],
    )
    def test_tables(self, example, tmp_path, table, said):
        if table is not None:
            (tmp_path / "participants.tsv").write_text(table)
        with pytest.raises(InputError, match=f"participants.tsv.*{said}"):
            example.find_people(tmp_path, "sex", "Female")

    def test_people_are_found_with_or_without_sub(self, example, tmp_path, capsys):
        (tmp_path / "participants.tsv").write_text("participant_id\tsex\n01\tF\nsub-02\tM\nsub-03\tn/a\nsub-04\tM\n")
        for name in ("sub-01", "sub-02"):
            scan = tmp_path / name / "func" / f"{name}_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
            scan.parent.mkdir(parents=True)
            scan.touch()
        people = example.find_people(tmp_path, "sex", "F")
        assert list(zip(people.participant_id, people.y, strict=True)) == [("sub-01", 1), ("sub-02", 0)]
        assert "2 of 4 people have a sex and a scan" in capsys.readouterr().out

    @pytest.mark.parametrize("positive", [0, 1, 2])
    def test_too_few_of_a_kind(self, example, positive):
        with pytest.raises(InputError, match=f"{positive} people are positive and 10 are not"):
            example.hold_out(pd.DataFrame({"y": [1] * positive + [0] * 10}), seed=0)


def test_a_scan_preprocessed_again_is_tokenized_again(example, make_scan, tmp_path):
    extractor = TabletFeatureExtractor()
    _ = extractor.slice_autoencoder
    for seed in (1, 2):
        people = pd.DataFrame(
            {"participant_id": ["sub-01"], "scan": [make_scan(tmp_path / "bold.nii.gz", 1, seed=seed)]}
        )
        (path,) = example.tokenize(people, extractor, tmp_path / "tokens").tokens
        tokens = load_tokens(path)[0].tokens
        assert tokens.equal(extractor.tokenize(people.scan[0]).tokens.half())
    written = path.stat().st_mtime_ns
    example.tokenize(people, extractor, tmp_path / "tokens")
    assert path.stat().st_mtime_ns == written


def test_a_model_predicts_from_a_scan(tmp_path, monkeypatch, capsys, make_scan):
    """The first window of it, as whoever loads model and extractor by hand would have it."""
    torch.manual_seed(0)
    task = {"num_labels": 1, "problem_type": "multi_label_classification", "id2label": {0: "M"}, "target_name": "sex"}
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"token_size": 384}
    model = TabletForSequenceClassification(TabletConfig(**task, **sizes, intermediate_size=8, num_frames=1)).eval()
    model.save_pretrained(tmp_path / "model")
    extractor = TabletFeatureExtractor(autoencoder=str(save_f32(tmp_path / "autoencoder")))
    extractor.save_pretrained(tmp_path / "model")
    scan = make_scan(tmp_path / "bold.nii.gz", frames=2)
    monkeypatch.setattr(sys, "argv", ["load_from_hub.py", str(tmp_path / "model"), str(scan)])
    runpy.run_path(str(EXAMPLES / "load_from_hub.py"), run_name="__main__")
    head, line = capsys.readouterr().out.splitlines()
    assert head == f"{tmp_path / 'model'}: sex, M"
    with torch.no_grad():
        tokens = extractor.tokenize(scan).tokens[None, :1]
        logit = model(tokens.float(), repetition_time=torch.tensor([2.0])).logits.item()
    assert line.startswith(f"{scan} [[")
    assert float(line.split("[[")[1].rstrip("]")) == pytest.approx(logit, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "label", "said"),
    [
        ("run_classification.py", "sex", "people held out: accuracy "),
        ("run_regression.py", "age", "people held out: mse "),
        ("run_masked_token_modeling.py", None, "loss on held-out people: "),
    ],
)
def test_trainer_scripts_run_as_they_are_written(tmp_path, monkeypatch, capsys, script, label, said):
    generator = torch.Generator().manual_seed(0)
    preprocessing = {"autoencoder": "x", "signal": "intensity", "scaling": "max"}
    preprocessing |= {"volume_size": 96, "token_size": 96, "grid_size": 3}
    writer = TokenStoreWriter(tmp_path / "store", preprocessing)
    for number in range(20):
        record = ScanRecord(f"{number:02}", Path("x"), phenotypes={"sex": "FM"[number % 2], "age": 20.5 + number})
        scan = {"name": f"{number}", "bytes": 1, "modified_ns": 1}
        writer.write(record, torch.randn(6, 27, 96, generator=generator), 2.0, scan)
    store = writer.finish()
    labels = [run.phenotypes["sex"] for run in store.runs]
    split = split_subjects(subject_ids(store.runs), labels, fractions=(0.6, 0.2, 0.2))
    write_splits([split], tmp_path / "splits.csv")
    words = ["--dataset", store.folder, "--splits", tmp_path / "splits.csv", "--output_dir", tmp_path / "model"]
    words += ["--label", label] if label else []
    words += ["--num_frames", 4, "--num_train_epochs", 1, "--hidden_size", 32, "--num_hidden_layers", 1]
    words += ["--num_attention_heads", 2, "--intermediate_size", 32, "--use_cpu", "True"]
    monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert said in capsys.readouterr().out
    assert (tmp_path / "model" / "model.safetensors").is_file()
    if label:
        assert TabletFeatureExtractor.from_pretrained(tmp_path / "model").signal == "intensity"
