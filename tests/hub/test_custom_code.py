"""A repository with its code loads and runs where this package is not, and gives way to it where it is."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from loopback_hub import LoopbackHub
from safetensors.torch import load_file, save_file

import tablet_hf
from tablet_hf import InputError, TabletConfig, TabletFeatureExtractor, TabletForSequenceClassification, TabletModel
from tablet_hf.hub.custom_code import write_custom_code
from tablet_hf.slice_autoencoder import find_bundled_autoencoder

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
TASK = {"problem_type": "single_label_classification", "id2label": {0: "F", 1: "M"}, "label2id": {"F": 0, "M": 1}}
TOKENS = {"autoencoder": "natural-f32c32", "signal": "intensity", "scaling": "max", "volume_size": 96}


def save_models(folder):
    """A classifier with its extractor and a masked model without one, each with its code: {name: model}."""
    torch.manual_seed(0)
    config = TabletConfig(**SIZES, **TASK, **TOKENS, intermediate_size=16, initializer_range=0.2)
    models = {"head": TabletForSequenceClassification(config), "masked": tablet_hf.TabletForMaskedTokenModeling(config)}
    for name, model in models.items():
        model.eval().save_pretrained(folder / name)
    TabletFeatureExtractor().save_pretrained(folder / "head")
    for name in models:
        write_custom_code(folder / name)
    return models


@pytest.fixture(scope="module")
def packages_without_tablet(tmp_path_factory):
    """A folder with all installed packages but this one."""
    view = tmp_path_factory.mktemp("packages")
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "tablet_hf" not in entry.name and entry.suffix != ".pth":
            (view / entry.name).symlink_to(entry)
    return view


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    hub = LoopbackHub(tmp_path_factory.mktemp("hub"))
    hub.models = save_models(hub.folder / "models" / "lab")
    for name in hub.models:  # read once, not with each request
        hub.repositories["models", f"lab/{name}"] = hub.find("models", f"lab/{name}")
    yield hub
    hub.stop()


def run_python(code, folder, *options, **environment):
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        env=os.environ | {"HF_HOME": str(folder / "home")} | environment,
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def small_brain(scan):
    """Of most slices nothing is left: empty ones are encoded once."""
    image = nibabel.load(scan)
    values, part = np.zeros(image.shape, np.int16), np.s_[42:50, 54:62, 36:44]
    values[part] = np.asarray(image.dataobj)[part]
    nibabel.save(nibabel.Nifti1Image(values, image.affine, image.header), scan)
    return scan


@pytest.mark.slow
def test_everything_loads_from_the_hub_where_the_package_is_not(hub, packages_without_tablet, make_scan, tmp_path):
    scan = small_brain(make_scan(tmp_path / "sub-01_bold.nii.gz", frames=1))
    tokens = TabletFeatureExtractor()(scan)["input_values"]
    save_file({"tokens": tokens}, tmp_path / "tokens.safetensors")
    code = f"""
import importlib.util, sys
assert importlib.util.find_spec("tablet_hf") is None
from safetensors.torch import load_file, save_file
from transformers import (AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForPreTraining,
                          AutoModelForSequenceClassification, pipeline)
trusting = {{"trust_remote_code": True}}
tokens, seconds = load_file("tokens.safetensors")["tokens"], 2.0
print(AutoConfig.from_pretrained("lab/head", **trusting).num_cells)
try:
    AutoModel.from_pretrained("lab/head", trust_remote_code=False)
except ValueError as error:
    print("trust_remote_code" in str(error))
head = AutoModelForSequenceClassification.from_pretrained("lab/head", **trusting)
backbone = AutoModel.from_pretrained("lab/head", **trusting)
masked = AutoModelForPreTraining.from_pretrained("lab/masked", **trusting)
hidden = (tokens[..., 0] > tokens[..., 0].median()).long()
extractor = AutoFeatureExtractor.from_pretrained("lab/head", **trusting)
classify = pipeline("fmri-classification", model="lab/head", device="cpu", **trusting)
embed = pipeline("fmri-feature-extraction", model="lab/masked", feature_extractor=extractor, device="cpu", **trusting)
run = extractor.tokenize({str(scan)!r})
(first, _), embeddings = classify({str(scan)!r}), embed(run)
print(first["label"], first["score"])
save_file({{
    "logits": head(tokens, repetition_time=seconds).logits,
    "pooled": backbone(tokens, repetition_time=seconds).pooler_output.clone(),
    "reconstruction": masked(tokens, repetition_time=seconds, bool_masked_pos=hidden).reconstruction,
    "tokens": run.tokens[None],
    "frames": embeddings.frames,
}}, "found.safetensors")
assert not [name for name in sys.modules if name.split(".")[0] == "tablet_hf"]
"""
    variables = hub.environment(tmp_path / "home") | {"PYTHONPATH": str(packages_without_tablet)}
    cells, is_refused, predicted = run_python(code, tmp_path, "-S", "-P", **variables)
    assert (cells, is_refused) == ("27", "True")

    found = load_file(tmp_path / "found.safetensors")
    head, masked = hub.models["head"], hub.models["masked"]
    hidden = (tokens[..., 0] > tokens[..., 0].median()).long()
    with torch.no_grad():
        expected = {
            "tokens": tokens,
            "logits": head(tokens, repetition_time=2.0).logits,
            "pooled": head.tablet(tokens, repetition_time=2.0).pooler_output,
            "reconstruction": masked(tokens, repetition_time=2.0, bool_masked_pos=hidden).reconstruction,
            "frames": masked.tablet(tokens, repetition_time=2.0).last_hidden_state[0, 1:].view(1, 27, 32).mean(1),
        }
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, msg=lambda text, name=name: f"{name}: {text}")
    best = expected["logits"].softmax(-1)[0].max()
    label, score = predicted.split()
    assert label == TASK["id2label"][int(expected["logits"].argmax())]
    assert float(score) == pytest.approx(best.item(), abs=1e-5)


@pytest.mark.slow
def test_the_installed_package_is_what_runs_where_it_is_imported(hub, tmp_path):
    code = """
import tablet_hf, sys
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForSequenceClassification, pipeline
model = AutoModelForSequenceClassification.from_pretrained("lab/head", trust_remote_code=True)
extractor = AutoFeatureExtractor.from_pretrained("lab/head", trust_remote_code=True)
classify = pipeline("fmri-classification", model="lab/head", device="cpu")
for thing in (model, model.config, extractor, classify, classify.model, classify.feature_extractor):
    print(type(thing).__module__.split(".")[0])
model.save_pretrained("again")
extractor.save_pretrained("again")
print("transformers_modules" in sys.modules)
"""
    lines = run_python(code, tmp_path, **hub.environment(tmp_path / "home"))
    assert lines == ["tablet_hf"] * 6 + ["False"]
    for name in ("config.json", "preprocessor_config.json"):
        assert not {"auto_map", "custom_pipelines"} & json.loads((tmp_path / "again" / name).read_text()).keys()
    assert not list((tmp_path / "again").glob("*.py"))


@pytest.fixture
def folder(tmp_path):
    config = TabletConfig(**SIZES, **TOKENS, intermediate_size=16)
    TabletModel(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_files_are_the_packages_own_and_a_second_time_changes_nothing(folder):
    weights = (folder / "model.safetensors").read_bytes()
    write_custom_code(folder)
    written = contents(folder)
    for path in folder.glob("*.py"):
        assert path.read_bytes() == (Path(tablet_hf.__file__).parent / path.name).read_bytes()
    write_custom_code(folder)
    assert contents(folder) == written
    assert written[Path("model.safetensors")] == weights
    settings = json.loads(written[Path("preprocessor_config.json")])  # the extractor that the model records
    assert TOKENS.items() <= settings.items()
    assert settings["auto_map"] == {"AutoFeatureExtractor": "feature_extraction_tablet.TabletFeatureExtractor"}
    assert list(json.loads(written[Path("config.json")])["custom_pipelines"]) == ["fmri-feature-extraction"]


def test_a_model_of_unknown_tokens_needs_no_code_for_scans(tmp_path):
    TabletModel(TabletConfig(**SIZES, intermediate_size=16)).save_pretrained(tmp_path)
    write_custom_code(tmp_path)
    added = {path.name for path in tmp_path.iterdir()} - {"config.json", "model.safetensors"}
    assert added == {"configuration_tablet.py", "errors.py", "modeling_tablet.py"}


def test_a_bundled_autoencoder_is_found_by_its_name(folder, tmp_path, monkeypatch):
    write_custom_code(folder)
    expected = TabletFeatureExtractor().slice_autoencoder
    monkeypatch.setattr("tablet_hf.slice_autoencoder.SHIPPED_WEIGHTS", tmp_path / "nowhere")

    extractor = TabletFeatureExtractor.from_pretrained(folder)
    found = extractor.slice_autoencoder
    assert (found.name, found.revision) == ("natural-f32c32", expected.revision)
    torch.testing.assert_close(found.encode(torch.ones(1, 96, 96)), expected.encode(torch.ones(1, 96, 96)))

    shutil.rmtree(folder / "autoencoders")
    with pytest.raises(InputError, match="natural-f32c32: "):
        _ = TabletFeatureExtractor.from_pretrained(folder).slice_autoencoder


@pytest.mark.parametrize("name", ["", ".", "..", "../secret", "a/b"])
def test_a_bundled_autoencoder_has_a_plain_name(name, tmp_path):
    for folder in (tmp_path / "model" / "autoencoders" / name, tmp_path / "model"):
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("config.json", "diffusion_pytorch_model.safetensors"):
            (folder / file).touch()
    assert find_bundled_autoencoder(name, str(tmp_path / "model"), {}) is None


def test_an_access_token_is_used_and_not_kept_in_what_is_saved(folder, tmp_path):
    write_custom_code(folder)
    extractor = TabletFeatureExtractor.from_pretrained(folder, token="hf_secret")
    extractor.save_pretrained(tmp_path / "saved")
    assert "hf_secret" not in repr(extractor) + (tmp_path / "saved" / "preprocessor_config.json").read_text()


@pytest.mark.parametrize("text", [None, '{"model_type": "vit"}', "{", "[1]"])
def test_folders_without_a_tablet_model_are_refused(text, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        write_custom_code(tmp_path)
    assert len(list(tmp_path.iterdir())) == (text is not None)
