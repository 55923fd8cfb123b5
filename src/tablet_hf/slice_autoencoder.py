"""Autoencoders by name, folder or Hub id, behind one narrow interface: slices in, latents out, and back."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError, not_on_hub

SHIPPED_WEIGHTS = Path(__file__).parent / "autoencoders" / "weights"
DEFAULT_AUTOENCODER = "natural-f32c32"

BUNDLED_FOLDER = "autoencoders"
"""Folder in the repository of a model for the autoencoder that is bundled with it, by name."""

BUNDLED_FILES = ("config.json", "diffusion_pytorch_model.safetensors")

# Slices encoded at once by all threads: more are no faster, and on a CPU, whose caches they exceed, up to half as fast.
# A batch that does not fit into memory is halved and tried again.
SLICES_AT_ONCE = {"cpu": 48, "cuda": 1152}
MIN_SLICES_PER_THREAD = 8


def shipped_autoencoders() -> list[str]:
    """Names of the autoencoders that ship with the package; none where this file is custom code from the Hub."""
    return sorted(config.parent.name for config in SHIPPED_WEIGHTS.glob("*/config.json"))


@dataclass
class SliceAutoencoder:
    """A frozen 2D autoencoder of diffusers as a map between grey slices and latents.

    Attributes:
        model: the diffusers model. Latents are the output of its encoder, not multiplied by a `scaling_factor`; for
            `AutoencoderKL` the mode of the posterior (as in the code released with arXiv:2604.03619).
        name: the shipped name, folder or Hub id it was loaded by.
        revision: the Hub commit, or `sha256:` and 12 digits of the weights file. None for a model made in memory.
    """

    model: nn.Module
    name: str | None = None
    revision: str | None = None
    _compiled: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    _slices_per_batch: int | None = field(default=None, repr=False)

    def __post_init__(self):
        self.model = self.model.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "SliceAutoencoder":
        """Move the model in place, to the channels-last layout, in which convolutions are faster on CPU and GPU."""
        # nn.Module's own `to`: diffusers wraps it in a warning about models of mixed precision, which this is not.
        nn.Module.to(self.model, device=device, dtype=dtype, memory_format=torch.channels_last)
        self._slices_per_batch = None
        return self

    @torch.inference_mode()
    def encode(self, slices: Tensor) -> Tensor:
        """Encode grey slices.

        Args:
            slices: (N, V, V) in [-1, 1], repeated to the channels of the model.

        Returns:
            (N, C, V/f, V/f) in the model's dtype.
        """
        slices = slices.to(self.device, self.dtype)
        return (self._compiled or self._encode)(slices)

    def compile(self, **options: Any) -> None:
        """Let `encode` run a compiled network; its first batches take about half a minute longer on a GPU.

        Options are those of `torch.compile`.
        """
        self._compiled = torch.compile(self._encode, **options)

    def _encode(self, slices: Tensor) -> Tensor:
        images = slices[:, None].expand(-1, self.model.config.get("in_channels", 3), -1, -1)
        encoded = self.model.encode(images.contiguous(memory_format=torch.channels_last))
        if hasattr(encoded, "latent"):  # AutoencoderDC
            return encoded.latent
        if hasattr(encoded, "latents"):  # AutoencoderTiny, VQModel
            return encoded.latents
        return encoded.latent_dist.mode()  # AutoencoderKL

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (N, C, g, g) to slices (N, V, V), the mean over image channels, in the model's dtype."""
        return self.model.decode(latents.to(self.device, self.dtype)).sample.mean(1)

    def in_batches(self, function: Callable[[Tensor], Tensor], items: Tensor) -> Tensor:
        """Apply `function` batch by batch; when a batch does not fit into memory, halve it and start again."""
        if self._slices_per_batch is None:
            at_once = SLICES_AT_ONCE.get(self.device.type, SLICES_AT_ONCE["cpu"])
            threads = torch.get_num_threads() if self.device.type == "cpu" else 1
            self._slices_per_batch = max(at_once // threads, MIN_SLICES_PER_THREAD)
        while True:
            try:
                with _map_over_threads(self.device) as map_batches:
                    return torch.cat(list(map_batches(function, items.split(self._slices_per_batch))))
            except torch.OutOfMemoryError:
                if self._slices_per_batch == 1:
                    raise
                self._slices_per_batch //= 2
            torch.cuda.empty_cache()


@contextmanager
def _map_over_threads(device: torch.device) -> Iterator[Callable]:
    """`map`, which on a CPU gives every core batches of its own.

    That is faster than all cores working on one batch and waiting for the slowest of them at every layer, and far
    faster where other programs keep some of the cores busy.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield map
        return
    try:
        # The setting holds for the thread that makes it and for later threads, hence the restoring.
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as workers:
            yield workers.map
    finally:
        torch.set_num_threads(threads)


def find_bundled_autoencoder(name: str, repository: str, options: dict[str, Any]) -> Path | None:
    """The folder of an autoencoder that is bundled with a model, downloaded if need be; None where there is none.

    Args:
        name: as the model records it; names that ship with this package are not searched for.
        repository: the model's folder or Hub id.
        options: of the download, as for `from_pretrained`: `revision`, `token`, `cache_dir`, ...
    """
    from transformers.utils import cached_file

    if name in shipped_autoencoders() or name != Path(name).name or not name.strip("."):
        return None
    options = options | {"_raise_exceptions_for_missing_entries": False}
    found = [cached_file(repository, f"{BUNDLED_FOLDER}/{name}/{file}", **options) for file in BUNDLED_FILES]
    return None if None in found else Path(found[0]).parent


def load_autoencoder(
    name: str, revision: str | None = None, subfolder: str | None = None, bundled: Path | None = None
) -> SliceAutoencoder:
    """Load any diffusers autoencoder with `encode` and `decode`, in float32 on the CPU.

    Args:
        name: a shipped name (`shipped_autoencoders()`), a folder with config.json and safetensors weights, or a Hub id.
        revision: for a Hub id, the branch, tag or commit. For a shipped name or folder, the expected weights: others
            are refused, since tokens of two autoencoders do not mix.
        subfolder: subfolder of the folder or repository, e.g. "vae".
        bundled: the folder of an autoencoder of this name (see `find_bundled_autoencoder`).

    Raises:
        InputError: no usable autoencoder under that name.
    """
    import diffusers

    folder = bundled
    if folder is None and name in shipped_autoencoders():
        folder = SHIPPED_WEIGHTS / name
    elif folder is None and name and Path(name).is_dir():
        folder = Path(name)
    location = str(folder or name)
    options = {"subfolder": subfolder, "revision": None if folder else revision, "local_files_only": bool(folder)}
    hint = f"give {DEFAULT_AUTOENCODER}, or the folder or Hub id of a diffusers autoencoder"
    try:
        kind = str(diffusers.AutoModel.load_config(location, **options).get("_class_name"))
        model_class = getattr(diffusers, kind, None)
        if not (hasattr(model_class, "encode") and hasattr(model_class, "decode")):
            raise InputError(f"{name}: its config.json names {kind}, which is no autoencoder of diffusers; {hint}.")
        model, loaded = model_class.from_pretrained(
            location, torch_dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
    except InputError:
        raise
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".")
        unusable = InputError(f"{name}: no autoencoder could be loaded from it ({reason}); {hint}.")
        raise (not_on_hub(error, name, "model", revision) or unusable) from error
    if missing := loaded["missing_keys"]:  # diffusers would leave them random, with a warning
        raise InputError(
            f"{name}: {len(missing)} weights of its config.json are missing, first {min(missing)}; download it again."
        )
    if folder is None:
        return SliceAutoencoder(model, name, _hub_commit(name, subfolder, revision))
    found = weights_fingerprint(folder / (subfolder or ""))
    if revision not in (None, found):
        raise InputError(
            f"{name}: its weights are {found}, but {revision} was asked for; tokens of different weights do not mix, "
            "so use the same weights, or tokenize again."
        )
    return SliceAutoencoder(model, name, found)


def weights_fingerprint(folder: Path) -> str:
    """`sha256:` and 12 digits of the checksum of the safetensors files in a folder."""
    digest = hashlib.sha256()
    for weights in sorted(folder.glob("*.safetensors")):
        digest.update(weights.read_bytes())
    return f"sha256:{digest.hexdigest()[:12]}"


def _hub_commit(repository: str, subfolder: str | None, revision: str | None) -> str | None:
    """The commit of what was just loaded, read from the cache, so that no network is needed."""
    from huggingface_hub import try_to_load_from_cache

    filename = f"{subfolder}/config.json" if subfolder else "config.json"
    cached: Any = try_to_load_from_cache(repository, filename, revision=revision)
    if not isinstance(cached, str):
        return revision
    # .../snapshots/COMMIT/FILENAME
    return Path(cached).parts[-1 - len(Path(filename).parts)]
