"""Fine-tuning the demo's model: it learns what can be learnt, and says on what is saved what it said here."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from preprocessing import PREPROCESSING

from tablet_hf import TabletForSequenceClassification
from tablet_hf.datasets import TokenStoreWriter
from tablet_hf.demo.finetune import MODEL, TRAINING, finetune
from tablet_hf.hub.training_data import TrainingData
from tablet_hf.sources import ScanRecord

SMALL = {"signal": "percent_change", "volume_size": 8, "token_size": 24, "grid_size": 2}
NUM_PEOPLE, NUM_LEARNT_FROM = 60, 40
SETTINGS = replace(TRAINING, window_frames=6, epochs=30, learning_rate=1e-3, device="cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two features of each token go up and down together or against each other, as in the cohort."""
    generator = torch.Generator().manual_seed(0)
    writer = TokenStoreWriter(tmp_path_factory.mktemp("swings") / "store", PREPROCESSING | SMALL)
    for number in range(NUM_PEOPLE):
        group = ("together", "apart")[number % 2]
        tokens = 0.1 * torch.randn(6, 8, 24, generator=generator)
        course = torch.randn(6, 1, 1, generator=generator)
        tokens[..., :8] += course
        tokens[..., 8:16] += course if group == "together" else -course
        record = ScanRecord(f"{number:02}", Path(f"{number}.nii.gz"), phenotypes={"group": group})
        writer.write(record, tokens, 2.0, {"name": f"{number}.nii.gz", "bytes": 1, "modified_ns": 1})
    return writer.finish()


def learn(store, folder, settings=SETTINGS, on_progress=None):
    people = list(range(NUM_PEOPLE))
    return finetune(
        store,
        "group",
        "apart",
        people[:NUM_LEARNT_FROM],
        people[NUM_LEARNT_FROM:],
        MODEL,
        settings,
        folder / "model",
        folder / "scratch",
        on_progress,
    )


def test_a_difference_in_dynamics_is_learnt_and_reported_as_it_is(store, tmp_path):
    steps = []
    found = learn(store, tmp_path, on_progress=lambda done, in_all: steps.append((done, in_all)))
    are_apart = np.array([run.phenotypes["group"] == "apart" for run in store.runs])[NUM_LEARNT_FROM:]
    assert np.mean((found.probabilities >= 0.5) == are_apart) >= 0.9
    assert len(found.train_loss) == len(found.held_out_loss) == SETTINGS.epochs
    assert steps[-1] == (150, 150)
    assert found.train_loss[-1] < 0.3 < found.train_loss[0]

    saved = TabletForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    with torch.inference_mode():
        tokens = store.window(NUM_LEARNT_FROM).float()[None]
        logits = saved(tokens, repetition_time=torch.tensor([2.0])).logits
    assert float(logits.softmax(-1)[0, 1]) == pytest.approx(found.probabilities[0], abs=1e-5)
    assert saved.config.id2label == {0: "together", 1: "apart"}
    assert saved.config.autoencoder == PREPROCESSING["autoencoder"]
    assert TrainingData.read(tmp_path / "model") == (TrainingData("group", (), 40, 0, 40, 240, False),)


def test_the_people_held_out_decide_nothing(store, tmp_path):
    """Whoever they are, the same is learnt from the others."""
    settings = replace(SETTINGS, epochs=2)
    people = list(range(NUM_PEOPLE))
    losses = [
        finetune(
            store, "group", "apart", people[:40], held_out, MODEL, settings, tmp_path / name, tmp_path / "scratch"
        ).train_loss
        for name, held_out in {"some": people[40:50], "others": people[50:]}.items()
    ]
    assert losses[0] == losses[1]
