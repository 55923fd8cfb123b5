"""Fine-tuning on tokens in memory: windows, batches, and a model that learns what can be learnt."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tablet_hf import TabletForSequenceClassification, TokenizedRun
from tablet_hf.demo.finetune import FinetuneSettings, RunDataset, collate_runs, finetune, small_config

EXTRACTOR = SimpleNamespace(
    token_size=24,
    grid_size=2,
    autoencoder="test",
    autoencoder_revision=None,
    signal="percent_change",
    scaling="max",
    volume_size=8,
)


def make_run(tokens):
    return TokenizedRun(tokens, np.arange(len(tokens)), 2.0, 1.0, None, 0.0, "run")


def test_training_draws_windows_and_evaluation_takes_whole_runs():
    tokens = torch.arange(6.0)[:, None, None].expand(6, 8, 24)
    torch.manual_seed(0)
    drawn = [RunDataset([make_run(tokens)], [1], window_frames=4)[0] for _ in range(30)]
    starts = {int(item["input_values"][0, 0, 0]) for item in drawn}
    assert starts == {0, 1, 2}
    assert all(len(item["input_values"]) == 4 for item in drawn)
    whole = RunDataset([make_run(tokens)], [1])[0]
    assert whole["input_values"].shape == (6, 8, 24)
    assert (whole["labels"], whole["repetition_time"]) == (1, 2.0)
    with pytest.raises(ValueError, match="1 runs and 2 labels"):
        RunDataset([make_run(tokens)], [0, 1])


def test_a_batch_is_what_the_model_takes():
    runs = [make_run(torch.randn(4, 8, 24).half()) for _ in range(3)]
    batch = collate_runs([RunDataset(runs, [0, 1, 1])[i] for i in range(3)])
    assert batch["input_values"].shape == (3, 4, 8, 24)
    assert batch["repetition_time"].tolist() == [2, 2, 2]
    model = TabletForSequenceClassification(small_config(EXTRACTOR, ("a", "b"), FinetuneSettings()))
    assert model(**batch).loss.isfinite()


def test_a_difference_in_dynamics_is_learnt_and_reported_as_it_is(tmp_path):
    """Two features of each token go up and down together or against each other, as in the cohort."""
    generator = torch.Generator().manual_seed(0)
    labels = [i % 2 for i in range(60)]
    runs = []
    for label in labels:
        tokens = 0.1 * torch.randn(6, 8, 24, generator=generator)
        course = torch.randn(6, 1, 1, generator=generator)
        tokens[..., :8] += course
        tokens[..., 8:16] += course if label == 0 else -course
        runs.append(make_run(tokens))
    settings = FinetuneSettings(epochs=30, learning_rate=1e-3)
    steps = []
    found = finetune(
        small_config(EXTRACTOR, ("together", "apart"), settings),
        (runs[:40], labels[:40]),
        (runs[40:], labels[40:]),
        settings,
        tmp_path,
        on_progress=lambda done, in_all: steps.append((done, in_all)),
    )
    assert np.mean((found.probabilities >= 0.5) == np.array(labels[40:])) >= 0.9
    assert len(found.train_loss) == len(found.held_out_loss) == settings.epochs
    assert steps[-1] == (150, 150)
    assert found.train_loss[-1] < 0.3 < found.train_loss[0]

    with torch.inference_mode():
        logits = found.model(
            collate_runs([RunDataset(runs, labels)[40]])["input_values"], repetition_time=torch.tensor([2.0])
        ).logits
    assert float(logits.softmax(-1)[0, 1]) == pytest.approx(found.probabilities[0], abs=1e-5)
    assert found.model.config.id2label == {0: "together", 1: "apart"}
    assert found.model.config.autoencoder == "test"
