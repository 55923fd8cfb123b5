"""Autoencoders by name, folder or Hub id, behind one narrow interface: images in, latents out, and back."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError, not_on_hub

SHIPPED_WEIGHTS = Path(__file__).parent / "autoencoders" / "weights"
DEFAULT_AUTOENCODER = "natural-f32c32"

# Where an autoencoder is in the repository of a model that brings it along, by its name, and what is needed of it.
BESIDE = "autoencoders"
BESIDE_FILES = ("config.json", "diffusion_pytorch_model.safetensors")


def shipped_autoencoders() -> list[str]:
    """The names of the autoencoders that come with the package; none where this file is custom code from the Hub."""
    return sorted(config.parent.name for config in SHIPPED_WEIGHTS.glob("*/config.json"))


@dataclass
class SliceAutoencoder:
    """A frozen 2D autoencoder of diffusers, seen as a map between grey slices and latents.

    Attributes:
        model: the diffusers model. Latents are what its encoder gives, not multiplied by a `scaling_factor`; of
            `AutoencoderKL`'s posterior the mode is taken (as in the code released with arXiv:2604.03619).
        name: what was asked for: a shipped name, a folder or a Hub id.
        revision: the Hub commit, or `sha256:` and 12 digits of the weights file. None for a model made in memory.
    """

    model: nn.Module
    name: str | None = None
    revision: str | None = None
    _compiled: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    _batch_size: int | None = field(default=None, repr=False)

    def __post_init__(self):
        self.model = self.model.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "SliceAutoencoder":
        """Moves the model in place, in the channels-last layout, in which convolutions are faster on CPU and GPU."""
        # nn.Module's own `to`: diffusers wraps it in a warning about models of mixed precision, which this is not.
        nn.Module.to(self.model, device=device, dtype=dtype, memory_format=torch.channels_last)
        return self

    @torch.inference_mode()
    def encode(self, slices: Tensor) -> Tensor:
        """Encodes grey slices.

        Args:
            slices: (N, V, V) in [-1, 1], repeated to as many channels as the model takes.

        Returns:
            (N, C, V/f, V/f) in the model's dtype.
        """
        slices = slices.to(self.device, self.dtype)
        is_of_size = self._compiled is not None and len(slices) == self._batch_size
        return self._compiled(slices) if is_of_size else self._encode(slices)

    def compile(self, batch_size: int, **options: Any) -> None:
        """Have `encode` run a compiled network on batches of just this size, and any other as before.

        Compilation happens at the first such batch and takes about half a minute on a GPU. Options are those of
        `torch.compile`.
        """
        self._compiled, self._batch_size = torch.compile(self._encode, dynamic=False, **options), batch_size

    def _encode(self, slices: Tensor) -> Tensor:
        images = slices[:, None].expand(-1, self._in_channels, -1, -1)
        encoded = self.model.encode(images.contiguous(memory_format=torch.channels_last))
        if hasattr(encoded, "latent"):  # AutoencoderDC
            return encoded.latent
        if hasattr(encoded, "latents"):  # AutoencoderTiny, VQModel
            return encoded.latents
        return encoded.latent_dist.mode()  # AutoencoderKL

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Decodes latents (N, C, g, g) to slices (N, V, V), the mean of the image's channels, in the model's dtype."""
        return self.model.decode(latents.to(self.device, self.dtype)).sample.mean(1)

    @property
    def _in_channels(self) -> int:
        return self.model.config.get("in_channels", 3)


def find_beside(name: str, repository: str, options: dict[str, Any]) -> Path | None:
    """The folder of an autoencoder that came with a model's repository, by way of the cache; None where none did.

    Args:
        name: as the model records it; looked for is only what this package does not ship.
        repository: the model's folder or Hub id.
        options: of the download, as `from_pretrained` knows them: `revision`, `token`, `cache_dir`, ...
    """
    from transformers.utils import cached_file

    if name in shipped_autoencoders() or name != Path(name).name or not name.strip("."):
        return None
    found = [
        cached_file(repository, f"{BESIDE}/{name}/{file}", _raise_exceptions_for_missing_entries=False, **options)
        for file in BESIDE_FILES
    ]
    return None if None in found else Path(found[0]).parent


def load_autoencoder(
    name: str, revision: str | None = None, subfolder: str | None = None, beside: Path | None = None
) -> SliceAutoencoder:
    """Loads any diffusers autoencoder with `encode` and `decode`, in float32 on the CPU.

    Args:
        name: a shipped name (`shipped_autoencoders()`), a folder with config.json and safetensors weights, or a Hub id.
        revision: for a Hub id, the branch, tag or commit. For a shipped name or folder, the weights that are expected:
            other ones are refused, since tokens of two autoencoders do not mix.
        subfolder: where the autoencoder is within the folder or repository, e.g. "vae".
        beside: a folder that holds what goes by that name (see `find_beside`).

    Raises:
        InputError: nothing usable under that name.
    """
    import diffusers

    folder = beside or _local_folder(name)
    if folder is not None:
        _check_folder(folder / (subfolder or ""))
    location = str(folder) if folder else name
    options = {
        "subfolder": subfolder,
        "revision": None if folder else revision,
        "local_files_only": folder is not None,
    }
    try:
        kind = str(diffusers.AutoModel.load_config(location, **options).get("_class_name"))
        model_class = getattr(diffusers, kind, None)
        if not (hasattr(model_class, "encode") and hasattr(model_class, "decode")):
            raise InputError(
                f"{name}: its config.json names the class {kind}, which is not an autoencoder of diffusers; give one "
                f"that encodes and decodes, or {_shipped_names()}."
            )
        if folder is not None:
            _check_weights(folder / (subfolder or ""))
        model, loaded = model_class.from_pretrained(
            location, torch_dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
    except InputError:
        raise
    except (OSError, ValueError) as error:
        if told := not_on_hub(error, name, "model", revision):
            raise told from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".")
        raise InputError(
            f"{name}: no autoencoder could be loaded from this {'folder' if folder else 'Hub id'} ({reason}); give "
            f"{_shipped_names()}, a folder with config.json and safetensors weights, or a Hub id that this machine "
            "can reach or has cached."
        ) from error
    if missing := loaded["missing_keys"]:
        # diffusers would leave them random, with a warning.
        raise InputError(
            f"{name}: {len(missing)} of the weights that its config.json asks for are missing, first {min(missing)}; "
            "copy or download it again."
        )
    if folder is None:
        return SliceAutoencoder(model, name, _hub_commit(name, subfolder, revision))
    found = weights_fingerprint(folder / (subfolder or ""))
    if revision is not None and revision != found:
        raise InputError(
            f"{name}: its weights are {found}, but {revision} was asked for; tokens of different weights do not mix, "
            "so use the same weights, or tokenize everything again."
        )
    return SliceAutoencoder(model, name, found)


def _check_folder(folder: Path) -> None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{folder}: there is no config.json in it that can be read, so it is not an autoencoder of diffusers; give "
            f"a folder that its save_pretrained wrote, or {_shipped_names()}."
        ) from error
    except ValueError as error:
        raise InputError(f"{folder}: its config.json is not valid JSON; copy or download it again.") from error
    if not isinstance(config, dict) or "_class_name" not in config:
        raise InputError(
            f"{folder}: its config.json does not say which class of diffusers it is for (_class_name), so it is not an "
            f"autoencoder; give a folder that save_pretrained of an autoencoder wrote, or {_shipped_names()}."
        )


def _check_weights(folder: Path) -> None:
    from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME

    if not any((folder / name).is_file() for name in (SAFETENSORS_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
        raise InputError(
            f"{folder}: there are no weights in it ({SAFETENSORS_WEIGHTS_NAME}); copy or download all of it again, or, "
            "where it has weights in another format, save them with save_pretrained."
        )


def _shipped_names() -> str:
    if names := shipped_autoencoders():
        return f"a shipped name ({', '.join(names)})"
    return f"a name that ships with tablet-hf, such as {DEFAULT_AUTOENCODER}, after pip install tablet-hf"


def _local_folder(name: str) -> Path | None:
    if name in shipped_autoencoders():
        return SHIPPED_WEIGHTS / name
    return Path(name) if name and Path(name).is_dir() else None


def weights_fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for weights in sorted(folder.glob("*.safetensors")):
        digest.update(weights.read_bytes())
    return f"sha256:{digest.hexdigest()[:12]}"


def _hub_commit(repository: str, subfolder: str | None, revision: str | None) -> str | None:
    """The commit of what was just loaded, read off the cache, so that no network is needed."""
    from huggingface_hub import try_to_load_from_cache

    filename = f"{subfolder}/config.json" if subfolder else "config.json"
    cached: Any = try_to_load_from_cache(repository, filename, revision=revision)
    if not isinstance(cached, str):
        return revision
    # .../snapshots/COMMIT/FILENAME
    return Path(cached).parts[-1 - len(Path(filename).parts)]
