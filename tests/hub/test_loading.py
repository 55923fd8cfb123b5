"""Autoencoders, models with their extractors and token datasets load by their name on a Hub, over real HTTP."""

import shutil

import pytest
import torch
from loopback_hub import LoopbackHub
from transformers import AutoFeatureExtractor, AutoModelForSequenceClassification

from tablet_hf import InputError, TabletConfig, TabletFeatureExtractor, TabletForSequenceClassification, TabletModel
from tablet_hf.datasets import TokenDataset, TokenStoreWriter, export_parquet
from tablet_hf.hub.loading import load_extractor, load_model
from tablet_hf.slice_autoencoder import SHIPPED_WEIGHTS, load_autoencoder
from tablet_hf.sources import ScanRecord

RECORD = {"autoencoder": "lab/vae", "autoencoder_subfolder": "vae", "signal": "intensity", "scaling": "max"}
SIZES = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
SIZES |= {"intermediate_size": 8}


def test_pickled_weights_are_not_read_unless_they_are_asked_for(tmp_path):
    model = TabletForSequenceClassification(TabletConfig(**SIZES, num_labels=2))
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    for model_class in (TabletModel, TabletForSequenceClassification, AutoModelForSequenceClassification):
        with pytest.raises(OSError, match=r"model\.safetensors"):
            model_class.from_pretrained(tmp_path)
    loaded = TabletForSequenceClassification.from_pretrained(tmp_path, use_safetensors=False)
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub with an autoencoder, a model that needs it, and a token dataset."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "models" / "lab").mkdir(parents=True)
    shutil.copytree(SHIPPED_WEIGHTS / "natural-f32c32", folder / "models" / "lab" / "autoencoder")
    torch.manual_seed(0)
    heads = {"num_labels": 2, "problem_type": "single_label_classification"}
    model = TabletForSequenceClassification(TabletConfig(**SIZES, **heads))
    model.save_pretrained(folder / "models" / "lab" / "model")
    TabletFeatureExtractor(autoencoder="lab/autoencoder").save_pretrained(folder / "models" / "lab" / "model")
    record = {"autoencoder": "lab/autoencoder", "signal": "intensity", "scaling": "max", "volume_size": 96}
    writer = TokenStoreWriter(folder / "store", record | {"token_size": 96, "grid_size": 3})
    writer.write(ScanRecord("01", folder), torch.randn(9, 27, 96).half(), 2.0, {})
    export_parquet(writer.finish(), folder / "datasets" / "lab" / "tokens", shard_bytes=1)
    hub = LoopbackHub(folder)
    hub.model = model
    yield hub
    hub.stop()


@pytest.fixture
def here(hub, online, monkeypatch, tmp_path):
    """That Hub for this process, with an empty cache."""
    hub.answer_here(monkeypatch, tmp_path / "cache")
    return hub


def test_a_model_its_extractor_and_its_autoencoder(here):
    model = AutoModelForSequenceClassification.from_pretrained("lab/model").eval()
    extractor = AutoFeatureExtractor.from_pretrained("lab/model")
    _ = extractor.slice_autoencoder
    torch.manual_seed(1)
    windows = torch.randn(1, 2, 27, 3072)
    torch.testing.assert_close(model(windows).logits, here.model.eval()(windows).logits, atol=1e-5, rtol=1e-4)
    assert extractor.autoencoder == "lab/autoencoder"
    assert extractor.autoencoder_revision == here.find("models", "lab/autoencoder").branches["main"]


@pytest.mark.parametrize(
    ("kind", "load"), [("dataset", TokenDataset.load), ("model", load_model), ("model", load_autoencoder)]
)
def test_what_the_hub_does_not_have_is_reported_in_one_line(here, kind, load):
    with pytest.raises(InputError, match=f"lab/nothing: .*no {kind}") as caught:
        load("lab/nothing")
    assert "\n" not in str(caught.value)


def test_a_revision_that_is_not_there(here):
    with pytest.raises(InputError, match="lab/tokens: it has no revision v9"):
        TokenDataset.load("lab/tokens", revision="v9")


def test_a_config_alone_records_which_extractor_its_model_needs(tmp_path):
    TabletForSequenceClassification(TabletConfig(**SIZES, **RECORD)).save_pretrained(tmp_path)
    extractor = load_extractor(tmp_path, load_model(tmp_path))
    assert {name: getattr(extractor, name) for name in RECORD} == RECORD


@pytest.mark.parametrize("settings", ['{"autoencoder": "natural-f32c32", "volume_size": 0}', '{"size": 3}', "{", None])
def test_an_unusable_extractor_is_refused_by_its_file(settings, tmp_path):
    if settings is not None:
        (tmp_path / "preprocessor_config.json").write_text(settings)
    with pytest.raises(InputError, match=r"preprocessor_config\.json") as caught:
        load_extractor(tmp_path)
    assert str(tmp_path) in str(caught.value)


def damage(folder, what):
    """Change a saved model's folder."""
    if what == "config.json":
        (folder / what).write_text('{"model_type": "tablet", "num_attention_heads": 5}')
    elif what == "classifier":
        TabletModel(TabletConfig(**SIZES)).save_pretrained(folder)
    elif what in ("mlp", "layers"):
        config = TabletConfig.from_pretrained(folder)
        setattr(config, *(("intermediate_size", 16) if what == "mlp" else ("num_hidden_layers", 1)))
        config.save_pretrained(folder)
    else:
        weights = folder / "model.safetensors"
        weights.unlink() if what == "model.safetensors" else weights.write_bytes(weights.read_bytes()[:900])


@pytest.mark.parametrize("what", ["config.json", "classifier", "mlp", "layers", "model.safetensors", "safetensors"])
def test_a_model_that_is_not_whole_is_refused(what, tmp_path):
    TabletForSequenceClassification(TabletConfig(**SIZES | {"num_hidden_layers": 2})).save_pretrained(tmp_path)
    damage(tmp_path, what)
    with pytest.raises(InputError, match=what.split(".")[0]) as caught:
        load_model(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
