"""Where training starts from: weights in the layout of the released code do as those of this package do."""

import pytest
import torch
from loopback_hub import LoopbackHub
from released_layout import RELEASED, released_folder, released_weights
from safetensors.torch import save_file

from tablet_hf import TabletForMaskedTokenModeling, TabletForSequenceClassification, TabletModel
from tablet_hf.errors import InputError
from tablet_hf.hub.loading import load_model
from tablet_hf.training.arguments import TabletTrainingArguments
from tablet_hf.training.checkpoints import initial_model
from tablet_hf.training.finetuning import finetune_fold
from tablet_hf.training.pretraining import pretrain

SETTINGS = TabletTrainingArguments(
    window_frames=12, max_steps=1, per_device_train_batch_size=8, learning_rate=1e-12, use_cpu=True, disable_tqdm=True
)

CONFIG = RELEASED | {"num_tokens": 324, "num_heads": 2, "num_kv_heads": 1, "d_model": 64, "d_ff": 48}


def write_released(folder, token_size=96):
    """A checkpoint as the released code lays it out, of random weights, which are given back."""
    config = CONFIG | {"input_feature_size": token_size}
    weights = released_weights(config)
    released_folder(folder, config, weights)
    return weights


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released") / "model"
    return folder, write_released(folder)


def assert_is_of(model, weights):
    """Whether a model of this package has the released weights, as far as a step of next to no length changes them."""
    network = model if isinstance(model, TabletModel) else model.tablet
    found = {
        "feature_projection.weight": network.embeddings.projection.weight,
        "cls_token": network.embeddings.cls_token,
        "layers.1.self_attn.k_proj.weight": network.layers[1].attention.k_proj.weight,
        "layers.1.ff.3.bias": network.layers[1].mlp.fc2.bias,
        "layers.0.norm2.weight": network.layers[0].norm_after.weight,
    }
    for name, weight in found.items():
        torch.testing.assert_close(weight.detach(), weights[name], atol=1e-6, rtol=0)


class TestReleasedLayout:
    def test_pretraining_starts_from_it(self, released, planted_store, planted_split, tmp_path):
        folder, weights = released
        result = pretrain(planted_store, tmp_path, SETTINGS, split=planted_split, init=folder)
        assert_is_of(TabletForMaskedTokenModeling.from_pretrained(result.folder), weights)
        config = TabletForMaskedTokenModeling.from_pretrained(result.folder).config
        assert (config.position_embedding_type, config.intermediate_size) == ("none", 48)
        assert (config.autoencoder, config.num_frames) == ("natural-f32c32", 12)

    def test_fine_tuning_starts_from_it(self, released, planted_store, planted_split, tmp_path):
        folder, weights = released
        with pytest.warns(UserWarning, match=r"classifier\.bias"):
            fold = finetune_fold(planted_store, planted_split, "kind", tmp_path, SETTINGS, init=folder)
        model = load_model(fold.folder)
        assert_is_of(model, weights)
        assert model.config.num_labels == 3

    def test_head_of_one_label_is_taken_over(self, released, planted_store):
        folder, weights = released
        fields = {"num_labels": 1, "problem_type": "multi_label_classification"}
        model = initial_model(TabletForSequenceClassification, folder, fields, planted_store.preprocessing)
        assert torch.equal(model.classifier.weight, weights["fc.weight"])

    def test_from_a_hub(self, planted_store, tmp_path, monkeypatch):
        weights = write_released(tmp_path / "hub" / "models" / "lab" / "released")
        hub = LoopbackHub(tmp_path / "hub")
        try:
            hub.answer_here(monkeypatch, tmp_path / "cache")
            model = initial_model(
                TabletForMaskedTokenModeling, "lab/released", {"num_frames": 12}, planted_store.preprocessing
            )
        finally:
            hub.stop()
        assert_is_of(model, weights)

    def test_tokens_of_another_shape_are_refused(self, planted_store, tmp_path):
        write_released(tmp_path / "model", token_size=3072)
        with pytest.raises(InputError, match="token_size"):
            initial_model(TabletForMaskedTokenModeling, tmp_path / "model", {}, planted_store.preprocessing)

    def test_how_these_tokens_were_made_is_recorded_and_not_how_the_published_ones_were(self, tmp_path):
        write_released(tmp_path / "model", token_size=3072)
        tokens = {"token_size": 3072, "grid_size": 3, "signal": "percent_change", "autoencoder": "natural-f32c32"}
        model = initial_model(TabletForMaskedTokenModeling, tmp_path / "model", {}, tokens)
        assert (model.config.signal, model.config.autoencoder) == ("percent_change", "natural-f32c32")

    def test_weights_of_another_network_are_refused(self, released, planted_store, tmp_path):
        folder, weights = released
        (tmp_path / "config.json").write_text((folder / "config.json").read_text())
        save_file(
            {name: weight for name, weight in weights.items() if "k_proj" not in name}, tmp_path / "model.safetensors"
        )
        with pytest.raises(InputError, match="k_proj"):
            initial_model(TabletForMaskedTokenModeling, tmp_path, {}, planted_store.preprocessing)
