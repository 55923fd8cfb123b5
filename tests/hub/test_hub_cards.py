"""The figures on the card of the shipped autoencoder are those that were measured, with the weights that ship."""

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.train_autoencoder import ARCHITECTURE, STAGES
from tablet_hf.slice_autoencoder import SHIPPED_WEIGHTS, load_autoencoder

REPOSITORY = Path(__file__).parents[2]
NAME = "natural-f32c32"
CARD = REPOSITORY / "hub_cards" / f"{NAME}.md"


@pytest.fixture(scope="module")
def benchmark():
    location = REPOSITORY / "benchmarks" / "autoencoder_fidelity.py"
    spec = importlib.util.spec_from_file_location("autoencoder_fidelity", location)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def figures():
    return json.loads(CARD.with_suffix(".json").read_text())


@pytest.fixture
def record():
    return json.loads((SHIPPED_WEIGHTS / NAME / "training.json").read_text())


def test_figures_were_measured_with_the_weights_that_ship(figures, record):
    assert figures["revision"] == load_autoencoder(NAME).revision, "run benchmarks/autoencoder_fidelity.py with --card"
    assert figures["photographs"] == record["held_out_photographs"]
    for kind, decibels in record["stages"][-1]["held_out_psnr_db"].items():
        # Measured in training in TF32 on a GPU, before the weights were rounded to float16.
        assert figures["measured"][f"photographs_{kind}_psnr"] == pytest.approx(decibels, abs=0.05)


def test_the_card_has_these_figures_and_this_training(benchmark, figures, record):
    card = CARD.read_text()
    for mark, table in (("figures", benchmark.figures_table(figures)), ("training", benchmark.training_table(record))):
        assert f"<!-- {mark} -->\n{table}\n<!-- /{mark} -->\n" in card, f"{mark}: the card is out of date"
    assert f"{figures['photographs']} held-out" in card
    assert f"{figures['scan_frames']} frames" in card


def test_the_script_trains_as_the_weights_were_trained(record):
    """Settings that came later must have no effect by default."""
    without_effect = {"stretch": 1.0, "recoloured_share": 0.0, "filled_share": 0.0, "blended_share": 0.0}
    for stage, recipe in zip(record["stages"], STAGES, strict=True):
        assert json.loads(json.dumps(asdict(recipe))) == without_effect | stage["recipe"]
    config = json.loads((SHIPPED_WEIGHTS / NAME / "config.json").read_text())
    architecture = json.loads(json.dumps(ARCHITECTURE))
    assert {key: config[key] for key in architecture} == architecture
