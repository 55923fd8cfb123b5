"""TabletConfig: what it refuses, what it keeps, and which tokens it lets into a model."""

import json
import logging

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers.utils import logging as transformers_logging

from tablet_hf.configuration_tablet import TabletConfig
from tablet_hf.feature_extraction_tablet import TabletFeatureExtractor


@pytest.fixture
def warnings_of(caplog):
    """What the library's logger says; its handlers do not reach pytest by themselves, and it says things only once."""
    transformers_logging.enable_propagation()
    transformers_logging.warning_once.cache_clear()
    caplog.set_level(logging.WARNING)
    yield lambda: [record.getMessage() for record in caplog.records]
    transformers_logging.disable_propagation()


def test_a_fresh_config_is_the_published_network_with_positions_in_seconds():
    config = TabletConfig()

    assert (config.token_size, config.num_cells) == (3072, 27)
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (896, 12, 4864)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (14, 2, 64)
    assert config.position_embedding_type == "spatiotemporal_rope"
    assert config.problem_type is None


def test_saving_and_loading_keeps_every_field(tmp_path):
    config = TabletConfig(
        num_labels=2,
        problem_type="regression",
        target_mean=[54.0, 100.0],
        target_std=[7.5, 15.0],
        autoencoder="lab/autoencoder",
        signal="percent_change",
        volume_size=96,
    )
    config.save_pretrained(tmp_path)

    assert TabletConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["target_mean"] == [54.0, 100.0]
    assert "num_cells" not in saved


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"hidden_size": 100}, "hidden_size.*multiple.*num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_attention_heads.*multiple.*num_key_value_heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers.*at least 1"),
        ({"num_attention_heads": 0}, "num_attention_heads.*at least 1"),
        ({"num_key_value_heads": 0}, "num_key_value_heads.*at least 1"),
        ({"hidden_size": "896"}, "hidden_size"),
        ({"volume_size": 96, "grid_size": 5}, "volume_size.*96.*multiple of.*grid_size.*5"),
        ({"volume_size": 96, "token_size": 1059}, "token_size.*1059.*multiple of 96:.*32 slices in a cell"),
        ({"volume_size": 64}, "volume_size.*64.*multiple of.*grid_size.*3"),
        ({"hidden_act": "tanhh"}, "tanhh"),
        ({"mlp_type": "moe"}, "vanilla.*swiglu"),
        ({"norm_type": "batch_norm"}, "layer_norm.*rms_norm"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob"),
        ({"mask_ratio": 0.0}, "mask_ratio"),
        ({"mask_strategy": "block"}, "random.*frame.*tube"),
        ({"position_embedding_type": "learned"}, "spatiotemporal_rope"),
        ({"hidden_size": 84, "num_attention_heads": 14}, "head width.*at least 8"),
        ({"hidden_size": 70, "num_attention_heads": 14, "position_embedding_type": "rope"}, "even head width"),
        ({"rope_theta": 1.0}, "rope_theta"),
        ({"problem_type": "regresion"}, "problem_type.*'regression'.*'multi_label_classification'.*got 'regresion'"),
        ({"problem_type": ["regression"]}, "problem_type.*got"),
        ({"rope_shortest_period": 7200}, "rope_longest_period"),
        ({"problem_type": "regression", "num_labels": 1, "target_mean": [1.0]}, "belong together"),
        ({"num_labels": 1, "target_mean": [1.0], "target_std": [1.0]}, "regression"),
        ({"problem_type": "regression", "num_labels": 2, "target_mean": [1.0], "target_std": [1.0]}, "2 labels"),
        ({"problem_type": "regression", "num_labels": 1, "target_mean": [1.0], "target_std": [0.0]}, "over 0"),
        (
            {"problem_type": "regression", "num_labels": 1, "target_mean": [float("nan")], "target_std": [1.0]},
            "finite",
        ),
        ({"problem_type": "single_label_classification", "positive_weight": 2.0}, "num_labels=1"),
        ({"problem_type": "multi_label_classification", "num_labels": 1, "positive_weight": -1.0}, "over 0"),
    ],
)
def test_settings_that_contradict_are_refused_at_once(settings, complaint):
    with pytest.raises(StrictDataclassError, match=complaint):
        TabletConfig(**settings)


@pytest.mark.parametrize(("volume_size", "grid_size", "token_size"), [(96, 3, 3072), (96, 12, 96), (64, 2, 3072)])
def test_the_geometry_of_every_autoencoder_is_let_in(volume_size, grid_size, token_size):
    """f32c32 and f8c4 on the paper's cube, f32c32 on a smaller one."""
    config = TabletConfig(volume_size=volume_size, grid_size=grid_size, token_size=token_size)
    assert config.num_cells == grid_size**3


class Extractor:
    """Stands for anything that tells how it makes tokens."""

    def __init__(self, **record):
        self.record = record

    def to_dict(self):
        return self.record


@pytest.mark.parametrize("give", [dict, Extractor])
def test_tokens_of_another_geometry_are_refused(give):
    config = TabletConfig(autoencoder="lab/f32c32")

    with pytest.raises(ValueError, match=r"token_size 96 instead of 3072, grid_size 12 instead of 3.*lab/f32c32"):
        config.check_tokens_compatible(give(token_size=96, grid_size=12, autoencoder="lab/f8c4"))


def test_tokens_made_otherwise_are_let_in_with_one_warning(warnings_of):
    config = TabletConfig(autoencoder="lab/f32c32", signal="intensity", scaling="max")
    record = {"token_size": 3072, "grid_size": 3, "autoencoder": "lab/other", "signal": "percent_change"}

    config.check_tokens_compatible(record)
    config.check_tokens_compatible(record)

    (warning,) = warnings_of()
    assert "autoencoder 'lab/other' instead of 'lab/f32c32'" in warning
    assert "signal 'percent_change' instead of 'intensity'" in warning


def test_an_autoencoder_in_a_subfolder_is_known_by_it(warnings_of):
    config = TabletConfig(autoencoder="lab/pipeline", autoencoder_subfolder="vae", volume_size=96)

    extractor = TabletFeatureExtractor.from_config(config)
    assert extractor.autoencoder_subfolder == "vae"
    config.check_tokens_compatible(extractor)
    assert warnings_of() == []
    config.check_tokens_compatible({"autoencoder": "lab/pipeline", "autoencoder_subfolder": "vae_1_0"})
    (warning,) = warnings_of()
    assert "autoencoder_subfolder 'vae_1_0' instead of 'vae'" in warning


def test_what_is_not_recorded_is_not_compared(warnings_of):
    TabletConfig().check_tokens_compatible({"token_size": 3072, "autoencoder": "lab/any", "signal": "intensity"})
    TabletConfig(autoencoder="lab/f32c32").check_tokens_compatible({"autoencoder": None})

    assert warnings_of() == []
