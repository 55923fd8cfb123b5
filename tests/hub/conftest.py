"""A Hub to write to, and small things to send to it."""

import json
from pathlib import Path

import pytest
import torch
from loopback_hub import LoopbackHub
from planted import LAB, OTHER, READER, SUBJECTS

from tablet_hf import TabletConfig, TabletFeatureExtractor, TabletForSequenceClassification
from tablet_hf.datasets import Split, TokenStoreWriter, write_splits
from tablet_hf.slice_autoencoder import SHIPPED_WEIGHTS, load_autoencoder
from tablet_hf.sources import ScanRecord


@pytest.fixture
def online(monkeypatch, tmp_path):
    """The client in this process may ask a Hub, and has no token of its own."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))


@pytest.fixture
def hub(tmp_path, online, monkeypatch):
    hub = LoopbackHub(tmp_path / "hub", users={LAB: "lab", OTHER: "other", READER: "lab"})
    hub.readers.add(READER)
    hub.answer_here(monkeypatch, tmp_path / "cache")
    yield hub
    hub.stop()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A small model with its extractor, saved as a user would, and what training leaves beside them."""
    folder = tmp_path_factory.mktemp("saved") / "sex"
    torch.manual_seed(0)
    made = {"autoencoder": "natural-f32c32", "signal": "intensity", "scaling": "max", "volume_size": 96}
    made["autoencoder_revision"] = load_autoencoder("natural-f32c32").revision
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    task = {"problem_type": "multi_label_classification", "num_labels": 1, "id2label": {0: "M"}, "target_name": "sex"}
    config = TabletConfig(**sizes, **made, **task, negative_label="F", intermediate_size=8, num_frames=4)
    TabletForSequenceClassification(config).save_pretrained(folder)
    TabletFeatureExtractor().save_pretrained(folder)
    torch.save({"output_dir": "hospital-7"}, folder / "training_args.bin")
    (folder / "trainer_state.json").write_text(json.dumps({"people": SUBJECTS}))
    return folder


@pytest.fixture(scope="session")
def make_store(tmp_path_factory):
    """A function that writes a store in which the source's secrets stand wherever they could."""

    def make(is_restricted=False, dataset="ADHD-200", folder=None, dtype="float16", token_size=96):
        folder = folder or tmp_path_factory.mktemp("stores") / "hospital-7"
        settings = {"autoencoder": "natural-f32c32", "autoencoder_revision": "sha256:0123456789ab"}
        settings |= {
            "signal": "intensity",
            "scaling": "max",
            "volume_size": 96,
            "grid_size": 3,
            "token_size": token_size,
        }
        writer = TokenStoreWriter(folder, settings, dtype, is_restricted=is_restricted)
        generator = torch.Generator().manual_seed(0)
        for number, subject in enumerate(SUBJECTS):
            phenotypes = {
                "age": 20.5 + number,
                "sex": "FM"[number % 2],
                "scan_day": 20190304 + number,
                "dx": number % 2,
            }
            phenotypes |= {"remark": f"was {number} afraid of the scanner", "eid": int(subject), "seen": "2019-03-04"}
            record = ScanRecord(
                subject,
                Path(f"hospital-7/{subject}/MRN-4711_bold.nii.gz"),
                task="rest",
                session="20190304" if number == 0 else "01",
                dataset=dataset,
                site="NYU",
                family="51488_82122" if number < 2 else f"fam{number}_82",
                phenotypes=phenotypes,
            )
            scan = {"name": f"{subject}_MRN-4711_bold.nii.gz", "bytes": 77, "modified_ns": 1_551_657_600_000_000_000}
            tokens = torch.randn(5, 27, token_size, generator=generator)
            writer.write(
                record, tokens, 0.72, scan, companions={"mask": scan, "repetition_time": None, "sidecars": [scan]}
            )
        store = writer.finish()
        parts = dict(zip(SUBJECTS, ["train"] * 4 + ["validation", "test"], strict=True))
        write_splits([Split("fold-1", parts, 0, {"made by": "hospital-7", "folds": 1})], folder / "splits" / "sex.csv")
        (folder / "logs").mkdir()
        (folder / "logs" / "tokenize.tsv").write_text("hospital-7/MRN-4711")
        return store

    return make


@pytest.fixture(scope="session")
def shipped_autoencoder():
    return SHIPPED_WEIGHTS / "natural-f32c32"


@pytest.fixture(scope="session")
def evaluation(tmp_path_factory):
    """A results.json as `tablet-hf evaluate` writes it."""
    import numpy as np

    from tablet_hf.evaluation.predictions import Predictions
    from tablet_hf.report import evaluation_page as results

    random = np.random.default_rng(0)
    targets = np.arange(40) % 2

    def method(name, skill):
        positive = 1 / (1 + np.exp(-(skill * (targets - 0.5) + random.standard_normal(40))))
        people = tuple(f"{number:02}" for number in range(40))
        outputs = np.stack([1 - positive, positive], 1)
        return Predictions(name, "sex", ("F", "M"), people, targets, outputs, (None,) * 40, ("all",) * 40)

    folder = tmp_path_factory.mktemp("judged")
    methods = [method("TABLeT", 2), method("functional connectivity", 3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "_write_page", lambda *_: None)  # seconds for pictures, which nobody looks at here
        results.write_results(folder, methods, num_bootstraps=100, num_permutations=100)
    return folder / "results.json"
