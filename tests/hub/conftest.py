"""A Hub to write to, and small things to publish: each holds secrets wherever one could be."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from loopback_hub import LoopbackHub
from planted import LAB, OTHER, PLANTED, READER, SITES, SUBJECTS
from safetensors.torch import load_file, save_file

from tablet_hf import TabletConfig, TabletFeatureExtractor, TabletForSequenceClassification
from tablet_hf.datasets import Split, TokenStoreWriter, write_splits
from tablet_hf.files import saved_weights_checksum
from tablet_hf.hub.training_data import TrainingData
from tablet_hf.slice_autoencoder import SHIPPED_WEIGHTS, load_autoencoder
from tablet_hf.sources import ScanRecord


@pytest.fixture
def online(monkeypatch, tmp_path):
    """The client in this process may ask a Hub, and has no access token of its own."""
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
    """A small model with its extractor, and what training leaves next to them."""
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
    (folder / "trainer_state.json").write_text(json.dumps({"subjects": SUBJECTS}))
    return folder


@pytest.fixture(scope="session")
def telling_model(model_folder, tmp_path_factory):
    """The same model, with secrets in each of its files."""
    folder = tmp_path_factory.mktemp("hospital-7") / "model"
    folder.mkdir()
    secrets = {"_name_or_path": f"/data/{SUBJECTS[0]}", "made_by": PLANTED, "autoencoder": "/home/hospital-7/own"}
    secrets |= {"autoencoder_subfolder": "/home/hospital-7", "autoencoder_revision": "/home/hospital-7/own"}
    for name in ("config.json", "preprocessor_config.json"):
        content = json.loads((model_folder / name).read_text()) | secrets
        if name == "config.json":
            content |= {"target_name": "site", "id2label": {"0": SITES[0]}, "negative_label": SITES[1]}
        (folder / name).write_text(json.dumps(content))
    weights = load_file(model_folder / "model.safetensors")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt", "from": "/home/hospital-7/2019-03-04"})
    stage = asdict(
        TrainingData("site", ("ADHD-200", "/home/hospital-7/study"), 112, 12, 130, 5_000, False, "/home/hospital-7/own")
    )
    (folder / "training_data.json").write_text(json.dumps({"stages": [stage | {"names": SUBJECTS}], "by": "MRN-4711"}))
    (folder / "notes.txt").write_text("MRN-4711")
    return folder


@pytest.fixture(scope="session")
def make_store(tmp_path_factory):
    """A function that writes a store in which the source's secrets are wherever they can be."""

    def make(is_restricted=False, dataset="ADHD-200", folder=None, dtype="float16", token_size=96):
        folder = folder or tmp_path_factory.mktemp("stores") / "hospital-7"
        made = {"autoencoder": "/home/hospital-7/own", "autoencoder_revision": "sha256:0123456789ab"}
        made |= {"signal": "intensity", "scaling": "max", "volume_size": 96, "grid_size": 3, "token_size": token_size}
        made["autoencoder_subfolder"] = "/home/hospital-7"
        writer = TokenStoreWriter(folder, made, dtype, is_restricted=is_restricted)
        generator = torch.Generator().manual_seed(0)
        for number, subject in enumerate(SUBJECTS):
            record = ScanRecord(
                subject,
                Path(f"hospital-7/{subject}/MRN-4711_bold.nii.gz"),
                task="rest",
                session=f"2019030{number}",
                dataset=dataset,
                site=SITES[number % 2],
                family="51488_82122" if number < 2 else f"fam{number}_82",
                phenotypes={
                    "age": 20.5 + number,
                    "sex": "FM"[number % 2],
                    "centre": SITES[number % 2],
                    "dx": number % 2,
                    "remark": f"was {number} afraid of the scanner",
                    "eid": int(subject),
                    "seen": "2019-03-04",
                },
            )
            scan = {"name": f"{subject}_MRN-4711_bold.nii.gz", "bytes": 77, "modified_ns": 1_551_657_600_000_000_000}
            tokens = torch.randn(5, 27, token_size, generator=generator)
            how = {"mask": "MRN-4711_mask.nii.gz", "tokens": {"signal": "intensity", "autoencoder_revision": "/home/a"}}
            companions = {"mask": scan, "repetition_time": None, "sidecars": [scan]}
            writer.write(record, tokens, 0.72, scan, made=how, companions=companions)
        store = writer.finish()
        parts = dict(zip(SUBJECTS, ["train"] * 4 + ["validation", "test"], strict=True))
        names = ("fold-1", f"site-{SITES[0]}", "hospital-7")
        splits = [Split(name, parts, 0, {"made by": "hospital-7", "hospital-7": 1}) for name in names]
        write_splits(splits, folder / "splits" / "hospital-7.csv")
        (folder / "logs").mkdir()
        (folder / "logs" / "tokenize.tsv").write_text("hospital-7/MRN-4711")
        (folder / "problems.tsv").write_text(f"{SUBJECTS[0]}\thospital-7")
        return store

    return make


@pytest.fixture(scope="session")
def shipped_autoencoder():
    return SHIPPED_WEIGHTS / "natural-f32c32"


@pytest.fixture
def results(model_folder):
    """What results.json of `tablet-hf evaluate` holds, of the model in `model_folder`."""

    def metrics(**figures):
        return {
            "metrics": {name: dict(zip(("value", "low", "high"), each, strict=True)) for name, each in figures.items()}
        }

    baseline = metrics(accuracy=(0.7, 0.6, 0.8), auroc=(0.7654, 0.6, 0.9))
    model = metrics(accuracy=(0.8, 0.7, 0.9), auroc=(0.8764, 0.75, 0.95))
    return {
        "label": "sex",
        "num_subjects": 40,
        "main_metric": "auroc",
        "methods": {"functional connectivity": baseline, "TABLeT": model},
        "baselines": ["functional connectivity"],
        "warnings": [f"{SUBJECTS[0]} stands twice in /home/hospital-7"],
        "are_held_out": True,
        "about": {"weights": f"0123456789abcdef, {saved_weights_checksum(model_folder)}", "model": "/home/hospital-7"},
    }
