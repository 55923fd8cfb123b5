"""The examples run as they are written, on a few simulated subjects."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from small_autoencoders import save_f32

from tablet_hf import TabletConfig, TabletFeatureExtractor, TabletForSequenceClassification
from tablet_hf.datasets import TokenStoreWriter, random_splits, subject_ids, write_splits
from tablet_hf.hub.training_data import TrainingData
from tablet_hf.sources import ScanRecord

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_a_model_predicts_from_a_scan(tmp_path, monkeypatch, capsys, make_scan):
    """Of its first window, as with a model and an extractor that are loaded by hand."""
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
    ("script", "label", "metric"),
    [
        ("run_finetuning.py", "sex", "test_auroc"),
        ("run_finetuning.py", "age", "test_mae"),
        ("run_masked_token_modeling.py", None, "eval_loss"),
    ],
)
def test_trainer_scripts_run_as_they_are_written(tmp_path, monkeypatch, capsys, script, label, metric):
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
    (split,) = random_splits(subject_ids(store.runs), labels, num_splits=1, fractions=(0.6, 0.2, 0.2))
    write_splits([split], tmp_path / "splits.csv")
    words = ["--dataset", store.folder, "--splits", tmp_path / "splits.csv", "--output_dir", tmp_path / "model"]
    words += ["--label", label] if label else []
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    words += ["--num_frames", 4, "--num_train_epochs", 1, "--config", json.dumps(sizes), "--use_cpu", "True"]
    monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert metric in capsys.readouterr().out
    assert (tmp_path / "model" / "model.safetensors").is_file()
    (training,) = TrainingData.read(tmp_path / "model")
    assert (training.task, training.num_subjects) == (label or "masked token modeling", 12)
    if label:
        assert TabletFeatureExtractor.from_pretrained(tmp_path / "model").signal == "intensity"
