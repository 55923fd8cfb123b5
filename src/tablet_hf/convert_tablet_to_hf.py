"""
Convert checkpoints of the code released with arXiv 2604.03619 to folders for `from_pretrained`.

The released code saves a folder (`config.json` and `model.safetensors`), which the model classes also load as it is, or
a training checkpoint (`.pth`).
"""

import json
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import CONFIG_NAME, FEATURE_EXTRACTOR_NAME, SAFE_WEIGHTS_NAME

from .configuration_tablet import TabletConfig, translate_released_config
from .errors import InputError, not_on_hub
from .feature_extraction_tablet import TabletFeatureExtractor
from .files import atomic_folder, write_json
from .modeling_tablet import (
    TabletForMaskedTokenModeling,
    TabletForSequenceClassification,
    TabletModel,
    TabletPreTrainedModel,
)

RELEASED_REPO = "beotborry/TABLeT_pretrained"

# Read by the card of a model that is published later; the file itself is never sent.
CONVERTED_FROM_FILE = "converted_from.json"

# Weights of pre-training and of the head. A checkpoint may lack them, and those that do not fit are left out.
OPTIONAL_WEIGHTS = re.compile(r"(?:.*\.)?(?:mask_token|decoder\..*|TR_embedding.*|classifier\..*)")

# Hidden size and key rows of the published network, and its number of heads, which no shape shows.
PUBLISHED_SHAPE, PUBLISHED_HEADS = (896, 128), 14

Weights = dict[str, torch.Tensor]


def convert_checkpoint(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    config: Mapping[str, Any] | str | os.PathLike | None = None,
    head: Literal["masked", "classification"] | None = None,
    revision: str | None = None,
    **settings,
) -> TabletPreTrainedModel:
    """
    Convert a checkpoint of the released code to a folder for `from_pretrained`.

    Args:
        source: released folder, training checkpoint (`.pth`, `.pt`), or model id on the Hub.
        destination: folder to write; it appears whole or not at all, and must not hold anything yet.
        config: released configuration, as a mapping or a JSON file, by default that of the folder. Weights alone show
            all but `num_heads`, `hidden_act` and `dropout`.
        head: model to write; by default the masked one where a mask token or a decoder fits, else the classifier, else
            the bare encoder.
        revision: branch, tag or commit on the Hub.
        **settings: fields of [`TabletConfig`] to set on top, such as `problem_type="regression"`, which no checkpoint
            records. Tokens of other than 3,072 numbers need `grid_size`, the cells along one edge of a frame.

    Returns:
        The model in the folder. Warnings list what was assumed and which weights were left out.

    Raises:
        `InputError`: the source cannot be read, or is not such a checkpoint. Nothing is written then.
    """
    if head not in (None, "masked", "classification"):
        raise InputError(f"--head {head}: give masked or classification.")
    source, destination = os.fspath(source), Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise InputError(f"{destination}: it already holds something; choose another folder, or tablet-hf push it.")
    weights, released = read_checkpoint(source, revision)
    if config is not None:
        released = dict(config) if isinstance(config, Mapping) else read_config(config)
    try:
        model_class = choose_model_class(weights, head)
        model, info = model_class.from_pretrained(
            None,
            config=build_config(weights, released, settings),
            state_dict=weights,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (LookupError, ZeroDivisionError) as error:
        raise InputError(f"{source}: it is not a TABLeT checkpoint ({type(error).__name__}: {error}).") from error
    except (StrictDataclassError, ValueError) as error:
        raise InputError(f"{source}: it cannot be converted; {str(error).strip().splitlines()[-1].strip()}") from error
    report_misfits(info, source, is_head_given="fc.weight" in weights)
    with atomic_folder(destination) as unfinished:
        model.save_pretrained(unfinished)
        if model.config.autoencoder is not None:
            # `save_pretrained` of the extractor would load the autoencoder to find the geometry, which is known here.
            TabletFeatureExtractor.from_config(model.config).to_json_file(unfinished / FEATURE_EXTRACTOR_NAME)
        name = Path(source).name if Path(source).exists() else source
        write_json(unfinished / CONVERTED_FROM_FILE, {"source": name})
    return model


def report_misfits(info: Mapping[str, Any], source: str, is_head_given: bool) -> None:
    """Refuse weights of another network, and warn of optional ones that are left out or random."""
    misfits = {
        "missing": info["missing_keys"],
        "unknown": info["unexpected_keys"],
        "of another shape": [name for name, *_ in info["mismatched_keys"]],
    }
    for what, names in misfits.items():
        needed = [name for name in sorted(names) if not OPTIONAL_WEIGHTS.fullmatch(name)]
        needed += [name for name in sorted(names) if name.startswith("classifier.") and is_head_given]
        if needed:
            raise InputError(f"{source}: it is another network, since weights are {what}: {', '.join(needed)}.")
        if names:
            effect = "left out" if what == "unknown" else "random now"
            warnings.warn(f"{source}: weights {what}, {effect}: {', '.join(sorted(names))}.", stacklevel=3)


# --- reading


def read_checkpoint(source: str, revision: str | None) -> tuple[Weights, dict[str, Any]]:
    """The weights under their released names, and the configuration of a folder."""
    path = Path(source)
    if not path.exists():
        try:
            path = Path(snapshot_download(source, revision=revision, allow_patterns=[CONFIG_NAME, SAFE_WEIGHTS_NAME]))
        except (OSError, ValueError) as error:
            raise not_on_hub(error, source, "model", revision) or InputError(f"{source}: {error}") from error
    released = read_config(path / CONFIG_NAME) if (path / CONFIG_NAME).is_file() else {}
    weights = read_weights(path / SAFE_WEIGHTS_NAME if path.is_dir() else path)
    # `DataParallel` and `torch.compile` put these before every name.
    weights = {re.sub(r"^(?:module\.|_orig_mod\.)+", "", name): tensor for name, tensor in weights.items()}
    for name in {"cls_token", "mask_token"} & weights.keys():
        weights[name] = weights[name].reshape(1, 1, -1)
    return weights, released


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    try:
        released = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{os.fspath(path)}: it is not a readable JSON file ({error}).") from error
    if not isinstance(released, dict) or "model_type" in released:
        raise InputError(f"{os.fspath(path)}: it is not a configuration of the released code; nothing to convert.")
    return released


def read_weights(path: Path) -> Weights:
    """Weights from safetensors or a training checkpoint, which is read without running any code in it."""
    try:
        is_safetensors = path.suffix == ".safetensors"
        stored = load_file(path) if is_safetensors else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: it holds more than weights (or is damaged) and reading it could run code, so it was not read; "
            "if you trust it, save its `model_state_dict` alone with `torch.save`."
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(f"{path}: no weights could be read from it ({error}).") from error
    stored = stored if isinstance(stored, dict) else {"": stored}
    # Next to the weights of the network, a checkpoint of pre-training holds those of its head.
    outside = {name: stored[name] for name in stored if OPTIONAL_WEIGHTS.fullmatch(str(name))}
    weights = stored.get("model_state_dict", stored.get("state_dict"))
    weights = {**outside, **weights} if isinstance(weights, Mapping) else stored
    if not all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in weights.items()):
        raise InputError(f"{path}: not a dict of weights, alone or as model_state_dict; save them with `torch.save`.")
    return dict(weights)


# --- inferring the network


def choose_model_class(weights: Weights, head: str | None) -> type[TabletPreTrainedModel]:
    if head is None:
        hidden_size, token_size = weights["feature_projection.weight"].shape
        decoder, mask_token = weights.get("decoder.weight"), weights.get("mask_token")
        fits = decoder is not None and decoder.shape == (token_size, hidden_size)
        if fits or (mask_token is not None and mask_token.numel() == hidden_size):
            head = "masked"
        elif "fc.weight" not in weights:
            return TabletModel
    return TabletForMaskedTokenModeling if head == "masked" else TabletForSequenceClassification


def build_config(weights: Weights, released: Mapping[str, Any], settings: Mapping[str, Any]) -> TabletConfig:
    """The configuration of a checkpoint: what its weights show, then its own configuration, then the settings."""
    layer, attention = "layers.0.ff", "layers.0.self_attn"
    is_gated = f"{layer}.gate_proj.weight" in weights
    first = f"{layer}.gate_proj" if is_gated else f"{layer}.0"
    query, key = (weights[f"{attention}.{name}_proj.weight"].shape[0] for name in "qk")
    d_model, token_size = weights["feature_projection.weight"].shape
    shown = {
        "input_feature_size": token_size,
        "d_model": d_model,
        "num_layers": 1 + max(int(match[1]) for name in weights if (match := re.match(r"layers\.(\d+)\.", name))),
        "d_ff": weights[f"{first}.weight"].shape[0],
        "mlp_type": "swiglu" if is_gated else "vanilla",
        "norm_type": "ln" if "layers.0.norm1.bias" in weights else "rms",
        **{norm: f"{norm}.weight" in weights for norm in ("feature_norm", "input_norm", "out_norm")},
    }
    released = {**shown, **released}
    if "fc.weight" in weights:
        released["num_classes"] = weights["fc.weight"].shape[0]
    has_qk_norm = f"{attention}.q_norm.weight" in weights
    if "num_heads" not in released:
        if has_qk_norm:
            released["num_heads"] = query // weights[f"{attention}.q_norm.weight"].shape[0]
        elif (query, key) == PUBLISHED_SHAPE:
            released["num_heads"] = PUBLISHED_HEADS
        else:
            raise InputError("the weights do not show the number of attention heads; give it as num_heads in a config.")
    if isinstance(released["num_heads"], int):
        released.setdefault("num_kv_heads", released["num_heads"] * key // query)

    network = {"mlp_bias": f"{first}.bias" in weights}
    if has_qk_norm:
        has_bias = f"{attention}.q_norm.bias" in weights
        network |= {"qk_norm": True, "qk_norm_type": "layer_norm" if has_bias else "rms_norm"}
        network["position_embedding_type"] = "none"
    return TabletConfig(**{**translate_released_config(released, **network | dict(settings)), **settings})


def converted_from(folder: Path) -> str | None:
    """Hub id or file name of the checkpoint that a folder was converted from; None where it does not record one."""
    path = folder / CONVERTED_FROM_FILE
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["source"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: it does not name what the model was converted from; delete the file.") from error


__all__ = ["RELEASED_REPO", "convert_checkpoint", "converted_from"]
