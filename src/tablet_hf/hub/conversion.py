"""
Checkpoints of the code released with the paper, made into folders that `from_pretrained` loads.

What is in them is reported in `tablet_hf.convert_tablet_to_hf`.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers.utils import FEATURE_EXTRACTOR_NAME

from tablet_hf.configuration_tablet import TabletConfig
from tablet_hf.convert_tablet_to_hf import (
    Weights,
    build_config,
    check_dimensions,
    check_settings,
    match_weights,
    read_released_config,
    read_weights,
    released_name,
    without_wrapper_prefixes,
)
from tablet_hf.errors import InputError
from tablet_hf.feature_extraction_tablet import TabletFeatureExtractor
from tablet_hf.files import atomic_folder
from tablet_hf.modeling_tablet import (
    TabletForMaskedTokenModeling,
    TabletForSequenceClassification,
    TabletModel,
    TabletPreTrainedModel,
)

# Next to the weights, for the card of who publishes them later; the file itself is never sent.
CONVERTED_FROM_FILE = "converted_from.json"


@dataclass(frozen=True)
class ConversionReport:
    """
    What became of a checkpoint.

    Args:
        destination: the folder that was written.
        architecture: name of the model class in it.
        config: its configuration.
        used: names of the released weights that were taken over.
        left_out: released names that were not, each with the reason.
        initialised: names of weights of ours that the checkpoint does not hold, and which are random.
        notes: what was concluded about the network, and from what.
    """

    destination: Path
    architecture: str
    config: TabletConfig
    used: tuple[str, ...]
    left_out: dict[str, str]
    initialised: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.architecture} with {len(self.used)} weights taken over, in {self.destination}"]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"left out: {name} ({reason})" for name, reason in self.left_out.items()]
        lines += [f"not in the checkpoint, now random: {name}" for name in self.initialised]
        return "\n".join(lines)


def convert_checkpoint(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    config: Mapping[str, Any] | str | os.PathLike | None = None,
    head: Literal["masked", "classification"] | None = None,
    revision: str | None = None,
    **settings,
) -> ConversionReport:
    """
    Convert a checkpoint of the released code to a folder for `from_pretrained`.

    Args:
        source: a released folder, a training checkpoint (`.pth`, `.pt`), or a model id on the Hub.
        destination: the folder to write; it appears whole or not at all, and must not hold anything yet.
        config: the released configuration as a mapping or a JSON file, in the released vocabulary. A folder brings
            its own; a `.pth` does not, and its weights tell all but `num_heads`, `hidden_act` and `dropout`.
        head: which model to write where the checkpoint holds weights for both. By default the masked head wherever a
            mask token or a decoder fits, else the classifier, else the bare encoder.
        revision: branch, tag or commit on the Hub.
        **settings: fields of [`TabletConfig`] to set on top, such as `problem_type="regression"`, which no
            checkpoint tells. Tokens of 3,072 numbers are taken for those of the released weights, and a note says so;
            `autoencoder`, `signal`, `scaling` and `volume_size` say otherwise. Tokens of another size need
            `grid_size`, the cells along one edge of a frame.

    Returns:
        `ConversionReport`: what was used, what was left out, and what was concluded.

    Raises:
        `InputError`: where the source cannot be read or is not such a checkpoint; unknown, missing and misshapen
            weights are listed in the message. A setting that no model has. Nothing is written then.
    """
    check_settings(settings)
    source, destination = os.fspath(source), Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise InputError(
            f"{destination} already holds something; choose a folder that does not exist yet, or, where it "
            "is this checkpoint, converted, publish it with tablet-hf push."
        )

    weights, own_config = read_checkpoint(source, revision)
    released_config = read_released_config(config) if config is not None else own_config
    weights = without_wrapper_prefixes(weights, source)
    check_dimensions(weights, source)
    model_class = choose_model_class(weights, head)
    tablet_config, notes = build_config(
        weights, released_config, settings, model_class is TabletForSequenceClassification, source
    )
    model = model_class(tablet_config)
    converted, left_out = match_weights(model, weights, source)

    initialised = tuple(name for name in model.state_dict() if name not in converted)
    model.load_state_dict(converted, strict=False)
    save_model(model, destination, source)
    return ConversionReport(
        destination=destination,
        architecture=model_class.__name__,
        config=tablet_config,
        used=tuple(released_name(name) for name in converted),
        left_out=left_out,
        initialised=initialised,
        notes=tuple(notes),
    )


# --- reading


def read_checkpoint(source: str, revision: str | None) -> tuple[Weights, dict[str, Any] | None]:
    """Weights by their stored names, and the released configuration where one is next to them."""
    path = Path(source)
    if not path.exists():
        path = fetch_from_hub(source, revision)
    if path.is_file():
        return read_weights(path), None

    config_file, weights_file = path / "config.json", path / "model.safetensors"
    if not weights_file.is_file():
        raise InputError(f"{source} holds no weights: there is no model.safetensors in it.")
    if not config_file.is_file():
        return read_weights(weights_file), None
    return read_weights(weights_file), read_released_config(config_file)


def fetch_from_hub(source: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=["config.json", "model.safetensors"]))
    except HFValidationError as error:
        raise InputError(f"{source} does not exist.") from error
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{source} is no file or folder here and could not be fetched from the Hub; check the name, and the "
            f"network or your access to it ({reason})."
        ) from error


# --- concluding


def choose_model_class(
    weights: Weights, head: Literal["masked", "classification"] | None
) -> type[TabletPreTrainedModel]:
    if head == "masked":
        return TabletForMaskedTokenModeling
    if head == "classification":
        return TabletForSequenceClassification
    if head is not None:
        raise InputError(f'`head` must be "masked" or "classification", got {head!r}.')
    projection, decoder = weights.get("feature_projection.weight"), weights.get("decoder.weight")
    mask_token = weights.get("mask_token")
    if projection is not None:
        decoder_fits = decoder is not None and decoder.shape == projection.shape[::-1]
        mask_token_fits = mask_token is not None and mask_token.numel() == projection.shape[0]
        if decoder_fits or mask_token_fits:
            return TabletForMaskedTokenModeling
    return TabletForSequenceClassification if "fc.weight" in weights else TabletModel


# --- writing


def save_model(model: TabletPreTrainedModel, destination: Path, source: str) -> None:
    """Write a model's folder, with the extractor where the config tells it, and the name of what it was made of."""
    with atomic_folder(destination) as unfinished:
        model.save_pretrained(unfinished)
        if model.config.autoencoder is not None:
            # Its own `save_pretrained` would load the autoencoder to ask for the geometry, which is known here.
            TabletFeatureExtractor.from_config(model.config).to_json_file(unfinished / FEATURE_EXTRACTOR_NAME)
        name = Path(source).name if Path(source).exists() else source
        (unfinished / CONVERTED_FROM_FILE).write_text(json.dumps({"source": name}) + "\n", encoding="utf-8")


def converted_from(folder: Path) -> str | None:
    """Hub id of the checkpoint that a folder was converted from, or the name of its file; None where nothing says it.

    Raises:
        InputError: the record cannot be read.
    """
    path = folder / CONVERTED_FROM_FILE
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["source"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: it does not say what the model was converted from; delete it, or convert again."
        ) from error


__all__ = ["ConversionReport", "convert_checkpoint", "converted_from"]
