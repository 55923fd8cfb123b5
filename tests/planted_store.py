"""Stores of small random tokens in which something is planted."""

import json
from pathlib import Path

import pytest
import torch
from preprocessing import PREPROCESSING

from tablet_hf import TabletForMaskedTokenModeling
from tablet_hf.datasets import TokenStoreWriter, random_splits, subject_ids
from tablet_hf.sources import ScanRecord
from tablet_hf.training.checkpoints import initial_model

NUM_SUBJECTS, NUM_FRAMES = 40, 24

TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 128,
    "standardize_tokens": True,
    "use_feature_norm": False,
    "pooling_type": "mean",
}


@pytest.fixture(scope="session")
def tiny():
    """Fields of a small `TabletConfig`."""
    return dict(TINY)


@pytest.fixture(scope="session")
def planted_store(tmp_path_factory):
    """Forty subjects with the same anatomy; along which pattern their tokens swing is their `group`.

    Phenotypes: `group` a or b; `strength`, a number that goes with it; `kind`, three classes without any trace in the
    tokens; `rare`, known of one subject.
    """
    generator = torch.Generator().manual_seed(0)
    writer = TokenStoreWriter(tmp_path_factory.mktemp("planted") / "store", PREPROCESSING)
    anatomy = torch.randn(27, 96, generator=generator)
    patterns = torch.randn(2, 1, 96, generator=generator)  # the same in all cells
    for number in range(NUM_SUBJECTS):
        group = number % 2
        swing = torch.sin(torch.arange(NUM_FRAMES) * 0.9 + number)[:, None, None]
        tokens = anatomy + 0.5 * swing * patterns[group]
        tokens = tokens + 0.05 * torch.randn(NUM_FRAMES, 27, 96, generator=generator)
        phenotypes = {
            "group": "ab"[group],
            "strength": 10 + 5 * group + 0.01 * number,
            "kind": number % 3,
            "rare": "x" if number == 0 else None,
        }
        record = ScanRecord(f"{number:02}", Path(f"{number}.nii.gz"), site="AB"[number % 4 // 2], phenotypes=phenotypes)
        writer.write(record, tokens, 2.0, {"name": f"{number}.nii.gz", "bytes": 1, "modified_ns": 1})
    return writer.finish()


@pytest.fixture(scope="session")
def planted_split(planted_store):
    """A split of the planted store: 24 subjects to train on, 8 for validation, 8 for the test."""
    labels = [run.phenotypes["group"] for run in planted_store.runs]
    (split,) = random_splits(subject_ids(planted_store.runs), labels, num_splits=1, fractions=(0.6, 0.2, 0.2))
    return split


@pytest.fixture(scope="session")
def untrained(planted_store, tiny, tmp_path_factory):
    """The folder of an untrained network, as pre-training would write one."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("untrained") / "model"
    model = initial_model(TabletForMaskedTokenModeling, None, tiny, planted_store.preprocessing)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(planted_store.preprocessing))
    return folder
