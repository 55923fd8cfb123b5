"""TabletConfig: what it accepts, what it saves, and which tokens it takes."""

import json
import warnings

import pytest
from huggingface_hub.errors import StrictDataclassError

from tablet_hf.configuration_tablet import TabletConfig
from tablet_hf.errors import InputError
from tablet_hf.feature_extraction_tablet import TabletFeatureExtractor


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


REGRESSION = {"problem_type": "regression", "num_labels": 1}


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"hidden_size": 100}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 0}, "num_key_value_heads"),
        ({"hidden_size": "896"}, "hidden_size"),
        ({"mlp_type": "moe"}, "swiglu"),
        ({"norm_type": "batch_norm"}, "rms_norm"),
        ({"mask_ratio": 0.0}, "mask_ratio"),
        ({"mask_strategy": "block"}, "tube"),
        ({"position_embedding_type": "learned"}, "spatiotemporal_rope"),
        ({"hidden_size": 84, "num_attention_heads": 14}, "at least 8"),
        ({"hidden_size": 70, "num_attention_heads": 14, "position_embedding_type": "rope"}, "even"),
        ({"problem_type": "regresion"}, "regresion"),
        ({"problem_type": ["regression"]}, "problem_type"),
        (REGRESSION | {"target_mean": [1.0]}, "target_std"),
        ({"num_labels": 1, "target_mean": [1.0], "target_std": [1.0]}, "regression"),
        (REGRESSION | {"num_labels": 2, "target_mean": [1.0], "target_std": [1.0]}, "2 labels"),
        (REGRESSION | {"target_mean": [1.0], "target_std": [0.0]}, "target_std"),
        (REGRESSION | {"target_mean": [float("nan")], "target_std": [1.0]}, "target_mean"),
        ({"problem_type": "single_label_classification", "positive_weight": 2.0}, "positive_weight"),
        ({"problem_type": "multi_label_classification", "num_labels": 1, "positive_weight": -1.0}, "positive_weight"),
        *(
            ({"problem_type": "single_label_classification", "class_weights": weights}, "class_weights")
            for weights in ([1.0], [1.0, 0.0], [1.0, float("nan")])
        ),
    ],
)
def test_settings_that_contradict_are_refused_at_once(settings, name):
    with pytest.raises(StrictDataclassError, match=name):
        TabletConfig(**settings)


def test_tokens_of_another_geometry_are_refused():
    config = TabletConfig(autoencoder="lab/f32c32")
    record = {"token_size": 96, "grid_size": 12, "autoencoder": "lab/f8c4"}
    with pytest.raises(InputError, match=r"a\.nii: .*token_size 96 instead of 3072, grid_size 12.*lab/f32c32"):
        config.check_tokens_compatible(record, "a.nii")


def test_tokens_made_in_another_way_are_warned_of():
    config = TabletConfig(autoencoder="lab/pipeline", autoencoder_subfolder="vae", signal="intensity", scaling="max")
    record = {"token_size": 3072, "autoencoder": "lab/pipeline", "autoencoder_subfolder": "vae_1_0"}
    with pytest.warns(UserWarning, match=r"a\.nii.*autoencoder_subfolder 'vae_1_0'.*signal 'percent_change'"):
        config.check_tokens_compatible(record | {"signal": "percent_change"}, "a.nii")


def test_what_is_not_recorded_is_not_compared():
    of_pipeline = TabletConfig(autoencoder="lab/pipeline", autoencoder_subfolder="vae", volume_size=96)
    with warnings.catch_warnings(action="error"):
        TabletConfig().check_tokens_compatible({"token_size": 3072, "autoencoder": "lab/any", "signal": "intensity"})
        TabletConfig(autoencoder="lab/f32c32").check_tokens_compatible({"autoencoder": None})
        of_pipeline.check_tokens_compatible(TabletFeatureExtractor.from_config(of_pipeline))
