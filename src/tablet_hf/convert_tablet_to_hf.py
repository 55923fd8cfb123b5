"""
Checkpoints of the code released with arXiv:2604.03619: what is in them, in the names of this package.

The released code saves a `PyTorchModelHubMixin` folder (`config.json` and `model.safetensors`), as on the Hub at
`beotborry/TABLeT_pretrained`, or a training checkpoint (`.pth`). Both name the weights alike.
"""

import json
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, cached_file, logging

from .configuration_tablet import TabletConfig
from .errors import InputError

logger = logging.get_logger(__name__)

Weights = dict[str, torch.Tensor]

# What of the arguments of `from_pretrained` says where files are.
DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")

# Our names to the released ones, each applied once, in this order.
RELEASED_NAMES = (
    (r"^tablet\.", ""),
    (r"^embeddings\.projection\.", "feature_projection."),
    (r"^embeddings\.", ""),
    (r"^output_norm\.", "out_norm."),
    (r"^classifier\.", "fc."),
    (r"\.norm_before\.", ".norm1."),
    (r"\.norm_after\.", ".norm2."),
    (r"\.attention\.o_proj\.", ".self_attn.out_proj."),
    (r"\.attention\.", ".self_attn."),
    (r"\.mlp\.fc1\.", ".ff.0."),
    (r"\.mlp\.fc2\.", ".ff.3."),
    (r"\.mlp\.", ".ff."),
)

# What `DataParallel` and `torch.compile` put before every name.
WRAPPER_PREFIX = re.compile(r"^(?:module\.|_orig_mod\.)+")

# Weights of the unpublished pre-training code: they may are next to the network, and need not fit ours.
PRETRAINING_NAMES = ("mask_token", "decoder.weight", "decoder.bias", "TR_embedding", "TR_embedding.weight")

# Weights whose shapes tell the network, and how many dimensions they have.
TELLING_WEIGHTS = (
    (r"feature_projection\.weight", 2),
    (r"fc\.weight", 2),
    (r"layers\.0\.ff\.(0|gate_proj)\.weight", 2),
    (r"layers\.0\.self_attn\.(q|k)_proj\.weight", 2),
    (r"layers\.0\.self_attn\.q_norm\.weight", 1),
)

RELEASED_NORMS = {"ln": "layer_norm", "rms": "rms_norm"}

# Keys of the released configuration that say nothing the weights do not: `num_tokens` is the length of a sequence,
# which no weight depends on.
KEYS_WITHOUT_MEANING = {"num_tokens", "num_classes"}

# Under what a training checkpoint keeps the weights: the released code, and what others save.
WRAPPERS = ("model_state_dict", "state_dict")

# Where the released weights lie.
RELEASED_REPO = "beotborry/TABLeT_pretrained"

# The published network, whose heads are known although shapes do not tell them: hidden size, key rows.
PUBLISHED_SHAPE, PUBLISHED_HEADS = (896, 128), 14

# The geometry of the tokens that the released weights were trained on, and how they were made.
PUBLISHED_TOKEN_SIZE, PUBLISHED_GRID_SIZE = 3072, 3
PUBLISHED_TOKENS = {
    "autoencoder": "mit-han-lab/dc-ae-f32c32-in-1.0-diffusers",
    "signal": "intensity",
    "scaling": "max",
    "volume_size": 96,
}


def released_name(name: str) -> str:
    """The released name of one of our weights."""
    for pattern, replacement in RELEASED_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


# --- reading


def read_weights(path: Path) -> Weights:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is no readable safetensors file ({error}).") from error
    return read_training_checkpoint(path)


def read_training_checkpoint(path: Path) -> Weights:
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than weights (or is damaged), and reading it could run code, so it was not read; where "
            "you trust it, save its `model_state_dict` alone with `torch.save` and convert that."
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        raise InputError(f"{path} is no readable torch checkpoint; it may be cut short.") from error

    for wrapper in WRAPPERS:
        if isinstance(stored, Mapping) and isinstance(stored.get(wrapper), Mapping):
            beside = {name: stored[name] for name in PRETRAINING_NAMES if isinstance(stored.get(name), torch.Tensor)}
            stored = {**beside, **stored[wrapper]}
            break
    if not isinstance(stored, Mapping) or not stored:
        raise InputError(f"{path} holds no weights: expected a dict of them, or one with `model_state_dict`.")
    others = sorted(
        str(name) for name, value in stored.items() if not isinstance(name, str) or not isinstance(value, torch.Tensor)
    )
    if others:
        raise InputError(
            f"{path} holds things that are no weights ({', '.join(others[:10])}), and nothing called "
            f"{' or '.join(WRAPPERS)} that holds weights alone; save these alone with torch.save, and convert that."
        )
    return dict(stored)


def read_released_config(config: Mapping[str, Any] | str | os.PathLike) -> dict[str, Any]:
    if isinstance(config, Mapping):
        return dict(config)
    try:
        loaded = json.loads(Path(config).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{os.fspath(config)} is no readable JSON file ({error}).") from error
    if not isinstance(loaded, dict):
        raise InputError(f"{os.fspath(config)} is no configuration: expected a JSON object.")
    if loaded.get("model_type") == TabletConfig.model_type:
        raise InputError(f"{os.fspath(config)} is a configuration of tablet_hf already: there is nothing to convert.")
    return loaded


def without_wrapper_prefixes(weights: Weights, source: str) -> Weights:
    bare = {}
    for name, tensor in weights.items():
        bare_name = WRAPPER_PREFIX.sub("", name)
        if bare_name in bare:
            raise InputError(f"{source} holds {bare_name} twice, with and without the prefix of a wrapper.")
        bare[bare_name] = tensor
    return bare


# --- concluding


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse what is no field of a configuration: the library would keep it there without a word."""
    known = {field.name for field in fields(TabletConfig)} | {"num_labels"}
    for name in settings:
        if name not in known:
            resembling = get_close_matches(name, known, n=1)
            hint = f"did you mean `{resembling[0]}`?" if resembling else "see TabletConfig for those there are."
            raise InputError(f"`{name}` is no setting of a model; {hint}")


def check_dimensions(weights: Weights, source: str) -> None:
    """Refuse weights from whose shapes the network could not be told."""
    for name, tensor in weights.items():
        num_dimensions = next((number for pattern, number in TELLING_WEIGHTS if re.fullmatch(pattern, name)), None)
        if num_dimensions is not None and (tensor.ndim != num_dimensions or not tensor.numel()):
            raise InputError(
                f"{source} is no TABLeT checkpoint: {name} has the shape {tuple(tensor.shape)}, but it must have "
                f"{num_dimensions} dimension{'s' * (num_dimensions > 1)}, none of them empty."
            )


def build_config(
    weights: Weights,
    released_config: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    with_classifier: bool,
    source: str,
) -> tuple[TabletConfig, list[str]]:
    """The configuration of a checkpoint and how it was concluded: from its weights, then its config, then settings.

    `with_classifier` says whether the model takes over the classifier of the checkpoint, and with it how many labels
    there are.
    """
    fields = infer_from_weights(weights, source)
    notes = apply_released_config(fields, released_config or {}, has_qk_norm_weights=fields["qk_norm"])
    if with_classifier and "fc.weight" in weights and not {"id2label", "num_labels"} & settings.keys():
        fields["num_labels"] = weights["fc.weight"].shape[0]
    fields |= settings
    notes += infer_tokens(fields, source)
    notes += infer_heads(fields, weights, source)
    if fields["mlp_type"] == "vanilla" and "hidden_act" not in fields:
        notes.append("no configuration tells the activation of the MLP: ReLU, as published")
    if fields["position_embedding_type"] == "none":
        notes.append("no positions, as in the released model: it sees a run as a set of tokens")
    try:
        return TabletConfig(**fields), notes
    except (StrictDataclassError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"{source} cannot be converted with this configuration: {reason}") from error


def infer_from_weights(weights: Weights, source: str) -> dict[str, Any]:
    """Fields of the configuration that names and shapes tell."""
    projection = weights.get("feature_projection.weight")
    layers = {int(match[1]) for name in weights if (match := re.match(r"layers\.(\d+)\.", name))}
    if projection is None or not layers:
        raise InputError(
            f"{source} is no TABLeT checkpoint: it has no feature_projection.weight or no layers; it begins with "
            f"{', '.join(sorted(weights)[:5])}."
        )

    gated = "layers.0.ff.gate_proj.weight" in weights
    inner = weights.get("layers.0.ff.gate_proj.weight" if gated else "layers.0.ff.0.weight")
    has_qk_norm = "layers.0.self_attn.q_norm.weight" in weights
    fields = {
        "token_size": projection.shape[1],
        "hidden_size": projection.shape[0],
        "num_hidden_layers": max(layers) + 1,
        "mlp_type": "swiglu" if gated else "vanilla",
        "mlp_bias": ("layers.0.ff.gate_proj.bias" if gated else "layers.0.ff.0.bias") in weights,
        "norm_type": "layer_norm" if "layers.0.norm1.bias" in weights else "rms_norm",
        "qk_norm": has_qk_norm,
        "use_feature_norm": "feature_norm.weight" in weights,
        "use_input_norm": "input_norm.weight" in weights,
        "use_output_norm": "out_norm.weight" in weights,
        "position_embedding_type": "none",
    }
    if inner is not None:
        fields["intermediate_size"] = inner.shape[0]
    if has_qk_norm:
        has_bias = "layers.0.self_attn.q_norm.bias" in weights
        fields["qk_norm_type"] = "layer_norm" if has_bias else "rms_norm"
    return fields


def apply_released_config(fields: dict[str, Any], released: Mapping[str, Any], has_qk_norm_weights: bool) -> list[str]:
    """Set what a released configuration says, in our vocabulary; return what is worth telling."""
    notes = []
    same_meaning = {
        "input_feature_size": "token_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "d_model": "hidden_size",
        "d_ff": "intermediate_size",
        "hidden_act": "hidden_act",
        "mlp_type": "mlp_type",
        "input_norm": "use_input_norm",
        "out_norm": "use_output_norm",
        "feature_norm": "use_feature_norm",
    }
    for theirs, ours in same_meaning.items():
        if theirs in released:
            fields[ours] = released[theirs]
    if "norm_type" in released:
        norm_type = released["norm_type"]
        # What cannot be looked up, such as a list, is refused with all other values of the wrong type.
        fields["norm_type"] = RELEASED_NORMS.get(norm_type, norm_type) if isinstance(norm_type, str) else norm_type
    if "dropout" in released:
        fields["hidden_dropout_prob"] = fields["attention_probs_dropout_prob"] = released["dropout"]
        if released.get("feature_dropout"):
            fields["feature_dropout_prob"] = released["dropout"]
    if "qk_norm" in released:
        # The released layer takes `qk_norm` in the place of `use_rope`: where no norm was learned, it meant rotation.
        if released["qk_norm"] and not has_qk_norm_weights:
            fields["position_embedding_type"] = "rope"
            notes.append("rotary positions: the configuration says qk_norm, but no such weights were learned")
        fields["qk_norm"] = bool(released["qk_norm"]) and has_qk_norm_weights
    known = {*same_meaning, *KEYS_WITHOUT_MEANING, "norm_type", "dropout", "feature_dropout", "qk_norm"}
    notes += [f"the configuration says {key}, which is not known" for key in sorted(set(released) - known)]
    return notes


def infer_tokens(fields: dict[str, Any], source: str) -> list[str]:
    """Set how tokens were made where nothing tells it and their size allows it; return what is worth telling."""
    if fields["token_size"] != PUBLISHED_TOKEN_SIZE:
        if "grid_size" not in fields:
            raise InputError(
                f"{source} takes tokens of {fields['token_size']} numbers, not the {PUBLISHED_TOKEN_SIZE} of the "
                "released weights, and nothing in it tells how many cells a frame has; give the cells along one edge "
                "as grid_size= (command line: --grid-size), which are voxels of the volume / spatial compression of "
                "the autoencoder, such as 12 for 96 voxels and f8."
            )
        return []
    if fields.setdefault("grid_size", PUBLISHED_GRID_SIZE) != PUBLISHED_GRID_SIZE:
        return []
    assumed = {name: value for name, value in PUBLISHED_TOKENS.items() if name not in fields}
    if not assumed:
        return []
    fields |= assumed
    return [
        f"assumed from the size of the tokens, as the checkpoint does not tell how they were made: "
        f"{', '.join(f'{name} {value}' for name, value in assumed.items())}, as for the released weights; if it was "
        f"otherwise, convert again with {', '.join(f'{name}=' for name in assumed)} (command line: --autoencoder, "
        "--signal, --scaling)"
    ]


def infer_heads(fields: dict[str, Any], weights: Weights, source: str) -> list[str]:
    """Set the numbers of heads where the configuration does not tell them; return what is worth telling."""
    query = weights.get("layers.0.self_attn.q_proj.weight")
    key = weights.get("layers.0.self_attn.k_proj.weight")
    if query is None or key is None:
        return []  # told with all other missing weights
    notes = []
    if "num_attention_heads" not in fields:
        head_norm = weights.get("layers.0.self_attn.q_norm.weight")
        if head_norm is not None:
            fields["num_attention_heads"] = query.shape[0] // head_norm.shape[-1]
        elif (query.shape[0], key.shape[0]) == PUBLISHED_SHAPE:
            fields["num_attention_heads"] = PUBLISHED_HEADS
            notes.append(f"{PUBLISHED_HEADS} attention heads, as in the published network of this shape")
        else:
            raise InputError(
                f"The weights in {source} do not tell the number of attention heads; give the configuration they were "
                'trained with, or `{"num_heads": ...}`, as `config`.'
            )
    heads = fields["num_attention_heads"]
    if "num_key_value_heads" not in fields and isinstance(heads, int):
        fields["num_key_value_heads"] = heads * key.shape[0] // query.shape[0]
    return notes


def match_weights(model: torch.nn.Module, weights: Weights, source: str) -> tuple[Weights, dict[str, str]]:
    """The weights of a model by our names, and the released names that were left out with the reason."""
    converted, missing, misshapen, left_out = {}, [], [], {}
    remaining = dict(weights)
    classifier_names = {"fc.weight", "fc.bias"}
    may_be_new = set(PRETRAINING_NAMES) | (set() if classifier_names & weights.keys() else classifier_names)
    for name, parameter in model.state_dict().items():
        theirs = released_name(name)
        tensor = remaining.pop(theirs, None)
        if tensor is None:
            if theirs not in may_be_new:
                missing.append(theirs)
        elif theirs in ("cls_token", "mask_token") and tensor.numel() == parameter.numel():
            converted[name] = tensor.reshape(parameter.shape)
        elif tensor.shape == parameter.shape:
            converted[name] = tensor
        elif theirs in PRETRAINING_NAMES:
            left_out[theirs] = f"its shape is {tuple(tensor.shape)}, not {tuple(parameter.shape)}"
        else:
            misshapen.append(f"{theirs} has the shape {tuple(tensor.shape)}, not {tuple(parameter.shape)}")

    unknown = []
    for theirs in remaining:
        if theirs in PRETRAINING_NAMES or theirs in classifier_names:
            left_out[theirs] = f"{type(model).__name__} has no place for it"
        else:
            unknown.append(theirs)

    complaints = []
    if missing:
        complaints.append(f"missing: {', '.join(sorted(missing))}")
    if unknown:
        complaints.append(f"unknown: {', '.join(sorted(unknown))}")
    if misshapen:
        complaints.append(f"of another shape: {', '.join(sorted(misshapen))}")
    if complaints:
        raise InputError(f"The weights in {source} are not those of this network; {'; '.join(complaints)}.")
    return converted, left_out


# --- loading


def convert_in_memory(
    model_class: type[torch.nn.Module], with_classifier: bool, name: Any, *model_args, **kwargs
) -> tuple[TabletConfig, Weights, dict[str, Any]]:
    """A folder or repository of the released layout, as what a class of `modeling_tablet` loads.

    What was concluded, assumed and left out is reported in one warning.

    Args:
        model_class, name, model_args, kwargs: as of `model_class.from_pretrained`. Of `kwargs` are used what tells
            where to find the files, and fields of [`TabletConfig`].
        with_classifier: whether the model takes over the classifier of the checkpoint.

    Returns:
        The configuration, the weights by our names, and what of `kwargs` was not used.

    Raises:
        `InputError`: as of `tablet_hf.hub.conversion.convert_checkpoint`.
        `OSError`: a file is not there or cannot be reached; a sentence of the library.
    """
    source = str(name)
    download = {option: kwargs.pop(option) for option in DOWNLOAD_OPTIONS if option in kwargs}
    config_file, weights_file = (cached_file(name, file, **download) for file in (CONFIG_NAME, SAFE_WEIGHTS_NAME))
    released_config, weights = read_released_config(config_file), read_weights(Path(weights_file))
    weights = without_wrapper_prefixes(weights, source)
    check_dimensions(weights, source)
    known = {field.name for field in fields(TabletConfig)} - {"dtype"} | {"num_labels"}
    settings = {setting: kwargs.pop(setting) for setting in known & kwargs.keys()}
    config, notes = build_config(weights, released_config, settings, with_classifier, source)

    found = weights.get("fc.weight")
    if kwargs.get("ignore_mismatched_sizes") and found is not None and len(found) != config.num_labels:
        notes.append(f"its head of {len(found)} labels is replaced by a new one of {config.num_labels}")
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("fc.")}
    options = {option: kwargs[option] for option in ("use_mask_token",) if option in kwargs}
    with torch.device("meta"):  # for names and shapes alone
        model = model_class(config, *model_args, **options)
    converted, left_out = match_weights(model, weights, source)
    notes += [f"left out: {name} ({reason})" for name, reason in left_out.items()]
    logger.warning(f"{source} was converted from the layout of the released code; {'; '.join(notes)}.")
    return config, converted, kwargs
