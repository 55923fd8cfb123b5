"""Files of models by name: a folder, or a repository of the Hub through its cache."""

import json
import math
from pathlib import Path
from typing import Any

from tablet_hf.errors import InputError, not_on_hub

__all__ = ["check_model_name", "count_parameters", "fetch", "read_json", "weight_files"]


def check_model_name(name: str | Path) -> None:
    """Refuse what can be neither a folder nor a Hub id, before the Hub is asked for it.

    Raises:
        InputError: no such folder, and not of the form `owner/name`.
    """
    from tablet_hf.slice_autoencoder import shipped_autoencoders

    if Path(name).is_dir():
        return
    if str(name) in shipped_autoencoders():
        raise InputError(f"{name}: that is an autoencoder, which makes tokens; give a TABLeT model.")
    if str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        raise InputError(f"{name}: there is no such folder, and models on the Hub are called owner/name.")


def fetch(name: str | Path, filename: str, revision: str | None = None) -> Path:
    """A file of a folder, or of a Hub id through the cache.

    Raises:
        InputError: there is no such folder or Hub id, no such file in it, or no way to the Hub.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    check_model_name(name)
    absent = f"{name}: there is no {filename} in it; give the folder or Hub id of a whole model or autoencoder."
    if Path(name).is_dir():
        if not (Path(name) / filename).is_file():
            raise InputError(absent)
        return Path(name) / filename
    try:
        return Path(hf_hub_download(str(name), filename, revision=revision))
    except (OSError, ValueError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise InputError(absent) from error
        raise not_on_hub(error, str(name), "model", revision) or InputError(f"{name}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of settings.

    Raises:
        InputError: there is no such file, or it is not a JSON object.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: it cannot be read as a JSON object ({error}); save or fetch it again.") from error


def weight_files(name: str | Path, stem: str = "model") -> list[Path]:
    """The safetensors files of a model or, by another stem, an autoencoder: those that its index names, or the one.

    Raises:
        InputError: neither is there, or the index names no files, or files elsewhere.
    """
    try:
        index = fetch(name, f"{stem}.safetensors.index.json")
    except InputError:
        return [fetch(name, f"{stem}.safetensors")]
    try:
        shards = sorted(set(read_json(index)["weight_map"].values()))
        is_valid = bool(shards) and all(Path(shard).name == shard for shard in shards)
    except (KeyError, TypeError, AttributeError):
        is_valid = False
    if not is_valid:
        raise InputError(f"{index}: it does not name weights in its own folder; save or fetch the model again.")
    return [fetch(name, shard) for shard in shards]


def count_parameters(weights: Path) -> int:
    """The number of parameters in a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="pt") as file:
            return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{weights}: it is not a whole safetensors file ({error}); fetch it again.") from error
