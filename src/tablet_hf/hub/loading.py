"""Load a fine-tuned model and its feature extractor, with errors that say which file is wrong."""

from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, FEATURE_EXTRACTOR_NAME

from tablet_hf.convert_tablet_to_hf import OPTIONAL_WEIGHTS
from tablet_hf.errors import InputError
from tablet_hf.feature_extraction_tablet import TabletFeatureExtractor
from tablet_hf.hub.files import fetch
from tablet_hf.modeling_tablet import TabletForSequenceClassification, TabletPreTrainedModel


def load_model(
    name: str | Path,
    revision: str = "main",
    model_class: type[TabletPreTrainedModel] = TabletForSequenceClassification,
) -> TabletPreTrainedModel:
    """Load a model from a folder or Hub id, and refuse one whose weights are not those of its config.json.

    Raises:
        InputError: there is no such model, or its weights are damaged, missing, too many or of another shape.
    """
    if not (Path(name) / ADAPTER_CONFIG_NAME).is_file():  # an adapter names the folder of its model
        fetch(name, CONFIG_NAME, revision)
    try:
        model, info = model_class.from_pretrained(
            str(name), revision=revision, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise unusable(name, "no model could be loaded from there", error) from error
    misfits = {
        "of another shape": {key for key, *_ in info["mismatched_keys"]},
        "missing": info["missing_keys"],
        "not in its config.json": {key for key in info["unexpected_keys"] if not OPTIONAL_WEIGHTS.fullmatch(key)},
    }
    for what, keys in misfits.items():
        if keys:
            raise InputError(
                f"{name}: weights are {what}, such as {min(keys)}; give the folder of a trained "
                f"{model_class.__name__} with the config.json that was saved with it."
            )
    return model


def load_extractor(
    name: str | Path, model: TabletPreTrainedModel | None = None, revision: str = "main"
) -> TabletFeatureExtractor:
    """Load the extractor saved with a model or, where there is none, the one that the model's config records.

    Raises:
        InputError: neither says how tokens are made.
    """
    try:
        settings, _ = TabletFeatureExtractor.get_feature_extractor_dict(str(name), revision=revision)
        if "autoencoder" not in settings:
            raise ValueError("it is not that of a TabletFeatureExtractor")
        return TabletFeatureExtractor.from_pretrained(str(name), revision=revision)
    except (OSError, ValueError, TypeError) as error:
        is_absent = isinstance(error, OSError) and not (Path(name) / FEATURE_EXTRACTOR_NAME).exists()
        if is_absent and model is not None and model.config.autoencoder is not None:
            return TabletFeatureExtractor.from_config(model.config)
        raise unusable(name, f"its {FEATURE_EXTRACTOR_NAME} cannot be used", error) from error


def unusable(name: str | Path, what: str, error: Exception) -> InputError:
    """Say on one line what is wrong with a model's folder or repository."""
    reason = str(error)
    if isinstance(error, StrictDataclassError):  # the last line has the reason
        what, reason = f"its {CONFIG_NAME} cannot be used", reason.strip().splitlines()[-1].split("Error: ")[-1]
    elif isinstance(error, SafetensorError):
        what = "its safetensors file is damaged"
    return InputError(f"{name}: {what}; {' '.join(reason.split())}")


__all__ = ["load_extractor", "load_model", "unusable"]
