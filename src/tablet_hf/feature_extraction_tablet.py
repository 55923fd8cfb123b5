"""Feature extractor class for TABLeT: 4D fMRI scans to tokens, and tokens back to volumes."""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .errors import InputError
from .intensities import scale_intensity, undo_percent_change, unscale_intensity
from .scans import Scan
from .slice_autoencoder import SliceAutoencoder, find_bundled_autoencoder, load_autoencoder
from .tokens import latents_to_tokens, slices_to_volumes, tokens_to_latents, volumes_to_slices
from .volumes import BoldRun, open_run

SIGNALS = ("intensity", "percent_change")
SCALINGS = ("max", "percentile")
BACKGROUND = {"intensity": -1.0, "percent_change": 0.0}

FRAMES_PER_BLOCK = 8


@dataclass
class TokenizedRun:
    """The tokens of one run, and what decoding them takes.

    Attributes:
        tokens: (frames, cells, features), on the CPU, in the dtype of the extractor.
        frames: (frames,) int64, indices of these frames in the scan.
        repetition_time: seconds between two of *these* frames: the scan's repetition time times the stride.
        intensity_scale: the intensity of the scan that becomes 1.
        mean_tokens: (1, cells, features), the run's mean volume as an intensity frame, for percent change; else None.
        clipped_share: share of clipped values in the brain in these frames.
        name: the scan in messages.
    """

    tokens: Tensor
    frames: np.ndarray
    repetition_time: float
    intensity_scale: float
    mean_tokens: Tensor | None
    clipped_share: float
    name: str


class TokenizedScans(BatchFeature):
    """The `BatchFeature` that the extractor returns, whose seconds keep their precision."""

    def to(self, *args, **kwargs) -> "TokenizedScans":
        """Move or cast as `BatchFeature.to`, but never cast `repetition_time`: 0.72 s is 0.72022 s in float16, which
        is a quarter of a second at frame 1,200."""
        seconds = self["repetition_time"]
        super().to(*args, **kwargs)
        if isinstance(seconds, Tensor):
            self["repetition_time"] = seconds.to(self["repetition_time"].device)
        return self


class TabletFeatureExtractor(FeatureExtractionMixin):
    r"""
    Turns 4D fMRI scans in MNI152 space into TABLeT tokens.

    Every frame is put on a cube of `volume_size` voxels of 2 mm, masked and scaled to [-1, 1], cut into slices along
    three axes, encoded slice by slice by a frozen 2D autoencoder, and folded into the tokens of its cells
    (arXiv 2604.03619). With an f32c32 autoencoder a frame becomes 27 tokens of 3,072 numbers.

    Args:
        autoencoder (`str`, defaults to `"natural-f32c32"`):
            A name that ships with tablet_hf, a folder, or a Hub id of any diffusers autoencoder. Only the name is
            saved; weights are loaded at first use.
        autoencoder_revision (`str`, *optional*):
            Commit on the Hub, or checksum of local weights; filled in when the autoencoder is loaded.
        autoencoder_subfolder (`str`, *optional*):
            Its subfolder in the folder or repository.
        signal (`"intensity"` or `"percent_change"`, defaults to `"intensity"`):
            The value of a voxel: its intensity (released behaviour), or its change about the run's mean.
        scaling (`"max"` or `"percentile"`, defaults to `"max"`):
            The intensity that becomes 1: the run's maximum (released behaviour) or its 99.9th percentile.
        volume_size (`int`, defaults to 96):
            Voxels along each side of the cube.
        token_size, grid_size (`int`, *optional*):
            Geometry of the tokens; filled in when the autoencoder is loaded, and checked if given.

    Example:

    ```python
    >>> from tablet_hf import TabletFeatureExtractor

    >>> extractor = TabletFeatureExtractor()
    >>> features = extractor("sub-01_task-rest_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz", num_frames=64)
    >>> features["input_values"].shape
    torch.Size([1, 64, 27, 3072])
    ```"""

    model_input_names = ["input_values", "attention_mask", "repetition_time"]  # noqa: RUF012  (the library's way)
    # Used by the pipelines of the library to batch windows of different length.
    padding_value, padding_side = 0.0, "right"

    def __init__(
        self,
        autoencoder: str = "natural-f32c32",
        autoencoder_revision: str | None = None,
        autoencoder_subfolder: str | None = None,
        signal: str = "intensity",
        scaling: str = "max",
        volume_size: int = 96,
        token_size: int | None = None,
        grid_size: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        for name, value, choices in (("signal", signal, SIGNALS), ("scaling", scaling, SCALINGS)):
            if value not in choices:
                raise ValueError(f"{name} must be {' or '.join(choices)}, not {value!r} (command line: --{name}).")
        if not isinstance(volume_size, int) or volume_size < 1:
            raise ValueError(f"volume_size must be a positive integer, not {volume_size!r}.")
        self.autoencoder = str(autoencoder)  # a Path cannot be serialised
        self.autoencoder_revision = autoencoder_revision
        self.autoencoder_subfolder = autoencoder_subfolder
        self.signal = signal
        self.scaling = scaling
        self.volume_size = volume_size
        self.token_size = token_size
        self.grid_size = grid_size
        self._slice_autoencoder = None
        self._loaded_from: tuple[str, dict[str, Any]] | None = None
        self._device, self._dtype = torch.device("cpu"), torch.float32
        self._empty_latents: dict[float, Tensor] = {}

    # --- the autoencoder

    @property
    def slice_autoencoder(self) -> SliceAutoencoder:
        """The frozen autoencoder, loaded at first use. Assign a diffusers model to use that one."""
        if self._slice_autoencoder is None:
            bundled = find_bundled_autoencoder(self.autoencoder, *self._loaded_from) if self._loaded_from else None
            self._adopt(
                load_autoencoder(self.autoencoder, self.autoencoder_revision, self.autoencoder_subfolder, bundled)
            )
        return self._slice_autoencoder

    @slice_autoencoder.setter
    def slice_autoencoder(self, model: Any) -> None:
        if not isinstance(model, SliceAutoencoder):
            model = SliceAutoencoder(model, name=str(model.config.get("_name_or_path") or type(model).__name__))
        self.autoencoder, self.autoencoder_revision, self.autoencoder_subfolder = model.name, None, None
        self.token_size = self.grid_size = None
        self._adopt(model)

    def _adopt(self, loaded: SliceAutoencoder) -> None:
        """Check that an autoencoder fits `volume_size` and the recorded geometry, record its geometry, and use it."""
        size, error = self.volume_size, None
        try:
            latents = loaded.encode(torch.zeros(1, size, size))
            decoded = loaded.decode(latents)
        except (RuntimeError, TypeError, ValueError, AttributeError) as caught:  # sound and videos fail in many ways
            error = caught
        fits = error is None and latents.ndim == 4 and latents.shape[2] == latents.shape[3]
        if not fits or size % latents.shape[3] or decoded.shape[1:] != (size, size):
            raise InputError(
                f"{self.autoencoder}: this {type(loaded.model).__name__} does not encode slices of {size} x {size} "
                "voxels; give a 2D autoencoder of images, and a volume_size that its spatial compression divides."
            ) from error
        _, channels, grid, _ = latents.shape
        for name, found in {"token_size": 3 * (size // grid) * channels, "grid_size": grid}.items():
            if getattr(self, name) not in (None, found):
                raise InputError(
                    f"{self.autoencoder}: {name} is {found} with this autoencoder, but {getattr(self, name)} is "
                    "recorded; use the recorded autoencoder."
                )
            setattr(self, name, found)
        self.autoencoder_revision = loaded.revision or self.autoencoder_revision
        self._slice_autoencoder = loaded.to(self._device, self._dtype)
        self._empty_latents = {}

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def to(
        self, device: torch.device | str | int | None = None, dtype: torch.dtype | None = None
    ) -> "TabletFeatureExtractor":
        """Set device and precision of the encoding, in either order: `.to("cuda", torch.float16)`.

        Tokens have that dtype. Against float32, float16 changes latents by 0.1% (benchmarks/dcae_scan.py), bfloat16 by
        eight times as much: that is of the order of the BOLD signal under `signal="intensity"`.

        Raises:
            RuntimeError, AssertionError: torch has no such device, or no room on it.
            TypeError: no floating-point precision.
        """
        if isinstance(device, torch.dtype):
            device, dtype = dtype, device
        device = self._device if device is None else torch.device(device)
        dtype = self._dtype if dtype is None else dtype
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"Slices are encoded in a floating-point dtype of torch, not in {dtype!r}.")
        torch.empty(0, device=device)  # fails where there is no such device
        if self._slice_autoencoder is not None:
            self._slice_autoencoder.to(device, dtype)
        self._device, self._dtype = device, dtype
        self._empty_latents = {}
        return self

    # --- scans to tokens

    def __call__(
        self,
        scans: Scan | Sequence[Scan],
        masks: Any = None,
        num_frames: int | None = None,
        start: int = 0,
        stride: int = 1,
        padding: bool = False,
        repetition_time: float | list[float | None] | None = None,
        add_mean: Any = None,
        check_space: bool = True,
        return_tensors: str = "pt",
    ) -> TokenizedScans:
        r"""
        Tokenize one scan or several.

        Args:
            scans:
                A path to a 4D NIfTI, a nibabel image, or a pair (array `(X, Y, Z, T)`, affine `(4, 4)`); or a list of
                those. Scans must be in MNI152 space, not demeaned; see `tablet_hf.volumes.open_run`.
            masks, repetition_time, add_mean:
                Brain mask, seconds between frames (one number is for all scans), and image to add to every frame of a
                demeaned run; or a list with one (or None) per scan.
            num_frames, start, stride (`int`, *optional*):
                Frames of the window, by default all; its first frame; and the step between frames.
            padding (`bool`, defaults to `False`):
                Whether a scan that is shorter than the window is padded with zeros and masked, rather than refused.
            check_space (`bool`, defaults to `True`):
                Whether scans that are not in MNI152 space are refused.
            return_tensors (`str`, defaults to `"pt"`):
                "pt" or "np" (which has no bfloat16).

        Returns:
            A `BatchFeature` with `input_values` `(scans, frames, cells, features)` in the extractor's dtype,
            `attention_mask` `(scans, frames)` int64, 1 where a frame is real, and `repetition_time` `(scans,)` float32,
            seconds between frames of the window. Scans of different length are padded to the longest.

        Raises:
            `InputError`: a scan cannot be used.
        """
        runs = [scans] if _is_one_scan(scans) else list(scans)
        if not runs:
            raise ValueError("No scans were given.")
        window = {"num_frames": num_frames, "start": start, "stride": stride, "allow_short": padding}
        tokenized = [
            self.tokenize(scan, mask, **window, repetition_time=seconds, add_mean=mean, check_space=check_space)
            for scan, mask, seconds, mean in zip(
                runs,
                _one_each(masks, len(runs), "masks"),
                _one_each(repetition_time, len(runs), "repetition_time"),
                _one_each(add_mean, len(runs), "add_mean"),
                strict=True,
            )
        ]
        lengths = [len(run.tokens) for run in tokenized]
        longest = num_frames if padding and num_frames else max(lengths)
        features = {
            "input_values": tokenized[0].tokens.new_zeros(len(runs), longest, *tokenized[0].tokens.shape[1:]),
            "attention_mask": (torch.arange(longest) < torch.tensor(lengths)[:, None]).long(),
            "repetition_time": torch.tensor([run.repetition_time for run in tokenized], dtype=torch.float32),
        }
        for values, run in zip(features["input_values"], tokenized, strict=True):
            values[: len(run.tokens)] = run.tokens
        return TokenizedScans(features, tensor_type=return_tensors)

    def tokenize(
        self,
        scan: Scan | BoldRun,
        mask: Any = None,
        num_frames: int | None = None,
        start: int = 0,
        stride: int = 1,
        allow_short: bool = False,
        repetition_time: float | None = None,
        add_mean: Any = None,
        check_space: bool = True,
        on_progress: Callable[[int, int], None] | None = None,
        dtype: torch.dtype | None = None,
    ) -> TokenizedRun:
        """Tokenize one scan, with what decoding its tokens takes; arguments as for a call, and:

        Args:
            scan: as for a call, or an open `BoldRun`.
            allow_short: accept a scan that is shorter than the window.
            on_progress: called with the number of frames done and in all.
            dtype: of the tokens; by default that of the extractor. In float16 a long run needs half the memory.
        """
        run = scan
        if not isinstance(run, BoldRun):
            run = open_run(scan, mask, repetition_time, self.volume_size, add_mean, check_space)
        frames = _window(run, num_frames, start, stride, allow_short)
        encoder = self.slice_autoencoder
        tokens, done = torch.empty(len(frames), self.grid_size**3, self.token_size, dtype=dtype or encoder.dtype), 0
        for block in self.token_blocks(run, frames):
            tokens[done : done + len(block)] = block
            done += len(block)
            if on_progress is not None:
                on_progress(done, len(frames))
        scale = run.intensity_scale(self.scaling)
        mean_tokens = None
        if self.signal == "percent_change":
            mean = torch.from_numpy(scale_intensity(run.mean[None], scale))
            mean_tokens = self.volumes_to_tokens(mean, "intensity").cpu()
        seconds = run.repetition_time * stride
        return TokenizedRun(tokens, frames, seconds, scale, mean_tokens, run.clipped_share, run.name)

    def token_blocks(self, run: BoldRun, frames: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Yield tokens (n, cells, features) of an open run's frames, all by default, on the extractor's device, a few
        frames at a time, so that a long run needs little memory."""
        for _, volumes in run.scaled_blocks(self.signal, self.scaling, frames, FRAMES_PER_BLOCK):
            yield self.volumes_to_tokens(torch.from_numpy(volumes), self.signal)

    def volumes_to_tokens(self, volumes: Tensor, signal: str | None = None) -> Tensor:
        """Encode scaled volumes.

        Args:
            volumes: (T, V, V, V) in [-1, 1].
            signal: their signal, by default that of the extractor; slices of nothing but its background are encoded
                once.

        Returns:
            (T, cells, features) on the extractor's device, in its dtype.
        """
        encoder = self.slice_autoencoder
        background = BACKGROUND[signal or self.signal]
        slices = volumes_to_slices(volumes.to(encoder.device)).flatten(0, 2)
        is_occupied = (slices != background).flatten(1).any(1)
        latents = self.empty_latents(background).repeat(len(slices), 1, 1, 1)
        if is_occupied.any():
            latents[is_occupied] = encoder.in_batches(encoder.encode, slices[is_occupied])
        return latents_to_tokens(latents.unflatten(0, (len(volumes), 3, self.volume_size)))

    def decode_slices(self, latents: Tensor) -> Tensor:
        """Decode latents (N, C, g, g) to slices (N, V, V) on the device, in batches that fit into memory."""
        return self.slice_autoencoder.in_batches(self.slice_autoencoder.decode, latents)

    def empty_latents(self, background: float) -> Tensor:
        """Latents (1, C, g, g) of a slice of nothing but background; encoded once."""
        if background not in self._empty_latents:
            empty = torch.full((1, self.volume_size, self.volume_size), background)
            self._empty_latents[background] = self.slice_autoencoder.encode(empty)
        return self._empty_latents[background]

    # --- tokens to volumes

    def decode(self, tokens: Tensor, intensity_scale: float | None = None, mean_tokens: Tensor | None = None) -> Tensor:
        """Decode tokens to volumes: every slice of every axis, then the mean of the three volumes.

        Args:
            tokens: (..., cells, features), a tensor or a numpy array: a frame, frames, or a batch of runs of frames.
            intensity_scale: the intensity that becomes 1 (`TokenizedRun.intensity_scale`). With it the result is in
                the unit of the scan, without it in [-1, 1].
            mean_tokens: (1, cells, features) tokens of the run's mean volume, needed with `intensity_scale` under
                `signal="percent_change"`.

        Returns:
            (..., V, V, V) float32 on the CPU.

        Raises:
            ValueError: tokens of another geometry, or no mean for a percent change.
        """
        self.slice_autoencoder  # noqa: B018  (loaded, since it sets the geometry)
        tokens = torch.as_tensor(tokens)
        if tuple(tokens.shape[-2:]) != (self.grid_size**3, self.token_size):
            raise ValueError(
                f"Tokens of shape {tuple(tokens.shape)} do not fit {self.autoencoder}, whose frames have shape "
                f"({self.grid_size**3}, {self.token_size}); decode them with the autoencoder that made them."
            )
        is_change = intensity_scale is not None and self.signal == "percent_change"
        if is_change and mean_tokens is None:
            raise ValueError("Tokens of percent change become intensities with the run's mean_tokens only.")
        if not tokens.numel():  # some autoencoders cannot attend to a batch of nothing
            return torch.empty(*tokens.shape[:-2], *(self.volume_size,) * 3)
        frames = tokens.reshape(-1, *tokens.shape[-2:])
        volumes = torch.cat([self._decode_frames(block) for block in frames.split(FRAMES_PER_BLOCK)])
        if is_change:
            mean = unscale_intensity(self._decode_frames(mean_tokens).numpy()[0], intensity_scale)
            volumes = torch.from_numpy(undo_percent_change(volumes.numpy(), mean))
        elif intensity_scale is not None:
            volumes = torch.from_numpy(unscale_intensity(volumes.numpy(), intensity_scale))
        return volumes.reshape(*tokens.shape[:-2], *volumes.shape[1:])

    def _decode_frames(self, tokens: Tensor) -> Tensor:
        latents = tokens_to_latents(tokens.to(self.device), self.volume_size)
        slices = self.decode_slices(latents.flatten(0, 2)).unflatten(0, (len(tokens), 3, self.volume_size))
        return slices_to_volumes(slices.float()).mean(1).clamp(-1, 1).cpu()

    # --- loading and saving

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs) -> "TabletFeatureExtractor":
        """Load as everywhere in the library. An autoencoder that `tablet_hf.hub.custom_code` bundled in the same folder
        or repository is found by its name."""
        names = ("cache_dir", "force_download", "local_files_only", "revision", "token")
        options = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        extractor = loaded[0] if isinstance(loaded, tuple) else loaded
        extractor._loaded_from = (str(pretrained_model_name_or_path), options)
        return loaded

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs) -> "TabletFeatureExtractor":
        if not cls.__module__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):
            # It names code next to the file, which the installed package would not save again.
            feature_extractor_dict = {key: value for key, value in feature_extractor_dict.items() if key != "auto_map"}
        return super().from_dict(feature_extractor_dict, **kwargs)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Save preprocessor_config.json. The autoencoder is loaded first, so that its revision and the geometry of its
        tokens are recorded; one that cannot be loaded is recorded by name alone, with a warning."""
        try:
            _ = self.slice_autoencoder
        except InputError as error:
            warnings.warn(f"The revision of the autoencoder is not recorded: {error}", stacklevel=2)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def from_config(cls, config: Any) -> "TabletFeatureExtractor":
        """Make the extractor of the tokens that a model was trained on, as its `TabletConfig` records them.

        Raises:
            InputError: the config does not record an autoencoder.
        """
        if config.autoencoder is None:
            raise InputError(
                "The model's config records no autoencoder; save the TabletFeatureExtractor of its tokens with it."
            )
        names = (*config.token_provenance, *config.token_geometry)
        return cls(**{name: value for name in names if (value := getattr(config, name)) is not None})

    def to_dict(self) -> dict[str, Any]:
        """The content of preprocessor_config.json: names and settings, never weights."""
        state = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return copy.deepcopy(state) | {"feature_extractor_type": type(self).__name__}


def _window(run: BoldRun, num_frames: int | None, start: int, stride: int, allow_short: bool) -> np.ndarray:
    """Indices `(frames,)` int64 of the frames of a window."""
    if start < 0 or stride < 1 or (num_frames is not None and num_frames < 1):
        raise ValueError(
            f"A window needs start >= 0, stride >= 1 and num_frames >= 1, not {start}, {stride} and {num_frames}."
        )
    frames = np.arange(start, run.num_frames, stride)[:num_frames]
    if len(frames) < (1 if num_frames is None or allow_short else num_frames):
        raise InputError(
            f"{run.name}: {num_frames or 1} frames were asked for (start {start}, stride {stride}), but {len(frames)} "
            f"of its {run.num_frames} are left; lower num_frames= or start= (command line: --num-frames, --start)."
        )
    return frames


def _is_one_scan(scans: Any) -> bool:
    is_pair = isinstance(scans, tuple) and len(scans) == 2 and np.shape(scans[1]) == (4, 4)
    return is_pair or not isinstance(scans, list | tuple)


def _one_each(values: Any, count: int, name: str) -> list:
    """A list with one value per scan, of a list or of a single value."""
    if name == "repetition_time":  # one number is for all scans; arrays and tensors are lists
        values = values if isinstance(values, list) else np.broadcast_to(values, count).tolist()
    elif not isinstance(values, list) and (values is None or count == 1):
        values = [values] * count
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"{name}: give a list with one for each of the {count} scans.")
    return values


__all__ = ["TabletFeatureExtractor", "TokenizedRun"]
