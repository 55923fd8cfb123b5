"""Feature extractor class for TABLeT: 4D fMRI scans to tokens, and tokens back to volumes."""

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME, logging

from .errors import InputError
from .intensities import scale_intensity, undo_percent_change, unscale_intensity
from .scans import Scan
from .slice_autoencoder import SliceAutoencoder, find_beside, load_autoencoder
from .tokens import latents_to_tokens, slices_to_volumes, tokens_to_latents, volumes_to_slices
from .volumes import BoldRun, open_run

logger = logging.get_logger(__name__)

SIGNALS = ("intensity", "percent_change")
SCALINGS = ("max", "percentile")
BACKGROUND = {"intensity": -1.0, "percent_change": 0.0}

# Slices encoded at once, by all threads together: more than these are no faster, and on a CPU, whose caches they leave,
# up to half as fast. What does not fit into memory is halved and tried again.
SLICES_AT_ONCE = {"cpu": 48, "cuda": 1152}
FEWEST_SLICES_PER_THREAD = 8
FRAMES_PER_BLOCK = 8


@dataclass
class TokenizedRun:
    """The tokens of one run, and what it takes to go back from them.

    Attributes:
        tokens: (frames, cells, features), on the CPU, in the extractor's dtype.
        frames: (frames,) int64, which frames of the scan these are.
        repetition_time: seconds between two of *these* frames: the scan's repetition time times the stride.
        intensity_scale: the intensity of the scan that stands for 1.
        mean_tokens: (1, cells, features), the run's mean volume as an intensity frame, for percent change; else None.
        clipped_share: of the brain's values in these frames, the share beyond the range that was clipped.
        name: how messages call the scan.
    """

    tokens: Tensor
    frames: np.ndarray
    repetition_time: float
    intensity_scale: float
    mean_tokens: Tensor | None
    clipped_share: float
    name: str


class TokenizedScans(BatchFeature):
    """What the extractor returns: a `BatchFeature` whose seconds stay as exact as they are."""

    def to(self, *args, **kwargs) -> "TokenizedScans":
        """As of any `BatchFeature`, but `repetition_time` is moved only, never cast: 0.72 s is 0.72022 s in float16,
        which is a quarter of a second at frame 1,200."""
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
            Commit on the Hub, or fingerprint of local weights; filled in when the autoencoder is loaded.
        autoencoder_subfolder (`str`, *optional*):
            Where it is in the folder or repository.
        signal (`"intensity"` or `"percent_change"`, defaults to `"intensity"`):
            What a voxel's number is: its intensity (released behaviour), or its change about the run's mean.
        scaling (`"max"` or `"percentile"`, defaults to `"max"`):
            The intensity that becomes 1: the run's maximum (released behaviour) or its 99.9th percentile.
        volume_size (`int`, defaults to 96):
            Voxels along each side of the cube.
        token_size, grid_size (`int`, *optional*):
            Geometry of the tokens; filled in when the autoencoder is loaded, and checked where they are given.

    Example:

    ```python
    >>> from tablet_hf import TabletFeatureExtractor

    >>> extractor = TabletFeatureExtractor()
    >>> features = extractor("sub-01_task-rest_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz", num_frames=64)
    >>> features["input_values"].shape
    torch.Size([1, 64, 27, 3072])
    ```"""

    model_input_names = ["input_values", "attention_mask", "repetition_time"]  # noqa: RUF012  (the library's way)
    # How the pipelines of the library make a batch of windows of different length.
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
        if signal not in SIGNALS:
            raise ValueError(f"signal must be {' or '.join(SIGNALS)}, not {signal!r} (command line: --signal).")
        if scaling not in SCALINGS:
            raise ValueError(f"scaling must be {' or '.join(SCALINGS)}, not {scaling!r} (command line: --scaling).")
        if not isinstance(volume_size, Integral) or isinstance(volume_size, bool) or volume_size < 1:
            raise ValueError(f"volume_size must be a whole number of voxels, at least 1, not {volume_size!r}.")
        self.autoencoder = str(autoencoder)  # a Path cannot be saved
        self.autoencoder_revision = autoencoder_revision
        self.autoencoder_subfolder = autoencoder_subfolder
        self.signal = signal
        self.scaling = scaling
        self.volume_size = int(volume_size)  # an integer of numpy cannot be saved
        self.token_size = token_size
        self.grid_size = grid_size
        self._slice_autoencoder = None
        self._loaded_from: tuple[str, dict[str, Any]] | None = None
        self._device, self._dtype = torch.device("cpu"), torch.float32
        self._empty_latents: dict[float, Tensor] = {}
        self._slices_per_batch: int | None = None

    # --- the autoencoder

    @property
    def slice_autoencoder(self):
        """The frozen autoencoder, a `SliceAutoencoder`; loaded at first use. Assign a diffusers
        model to inject one."""
        if self._slice_autoencoder is None:
            beside = find_beside(self.autoencoder, *self._loaded_from) if self._loaded_from else None
            self._adopt(
                load_autoencoder(self.autoencoder, self.autoencoder_revision, self.autoencoder_subfolder, beside)
            )
        return self._slice_autoencoder

    @slice_autoencoder.setter
    def slice_autoencoder(self, model: Any) -> None:
        if not isinstance(model, SliceAutoencoder):
            model = SliceAutoencoder(model, name=str(model.config.get("_name_or_path") or type(model).__name__))
        recorded = ("autoencoder", "autoencoder_revision", "autoencoder_subfolder", "token_size", "grid_size")
        before = {name: getattr(self, name) for name in recorded}
        vars(self).update(dict.fromkeys(recorded), autoencoder=model.name)
        try:
            self._adopt(model)
        except InputError:
            vars(self).update(before)
            raise

    def _adopt(self, loaded) -> None:
        size = self.volume_size
        try:
            probe = loaded.encode(torch.zeros(1, size, size))
            decoded = loaded.decode(probe)
            if (probe.ndim, decoded.ndim) != (4, 3):
                raise TypeError(f"latents have {probe.ndim} dimensions, images {decoded.ndim + 1}")
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            # What is made for sound or videos fails in many ways; of a size that does not fit torch itself complains.
            of_other_things = any(isinstance(layer, nn.Conv1d | nn.Conv3d) for layer in loaded.model.modules())
            if of_other_things or not isinstance(error, RuntimeError):
                raise InputError(
                    f"{self.autoencoder}: this {type(loaded.model).__name__} is not a 2D autoencoder of images, which "
                    "is what slices need; give one such as AutoencoderDC, AutoencoderKL or AutoencoderTiny."
                ) from error
            raise InputError(
                f"{self.autoencoder}: this autoencoder cannot take slices of {size} x {size} voxels; choose a "
                "volume_size that its spatial compression divides."
            ) from error
        _, channels, grid, width = probe.shape
        if grid != width or size % grid or decoded.shape[1:] != (size, size):
            raise InputError(
                f"{self.autoencoder}: slices of {size} voxels become latents of {grid} x {width} and come back as "
                f"{decoded.shape[1]} x {decoded.shape[2]}; choose a volume_size that the spatial compression divides."
            )
        geometry = {"token_size": 3 * (size // grid) * channels, "grid_size": grid}
        for name, found in geometry.items():
            if getattr(self, name) not in (None, found):
                raise InputError(
                    f"{self.autoencoder}: {name} is {found} with this autoencoder, but {getattr(self, name)} is "
                    "recorded; use the autoencoder that the record was made with."
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
        """Set where and in which precision slices are encoded: `.to("cuda")`, `.to("cuda", torch.float16)`.

        Both may also be given the other way round, and what is not given stays as it is. Tokens come in that
        precision. Against float32, float16 costs 0.1% of the latents (0.101%: DC-AE f32c32 with random weights on an
        H200, by benchmarks/dcae_scan.py). bfloat16 rounds eight times as coarsely: that is of the order of what the
        BOLD signal moves them by under `signal="intensity"`.

        Raises:
            RuntimeError, AssertionError: torch has no such device, or no room on it; the extractor stays where it was.
            TypeError: no floating-point precision.
        """
        if isinstance(device, torch.dtype):
            device, dtype = dtype, device
        device = self._device if device is None else torch.device(device)
        dtype = self._dtype if dtype is None else dtype
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"Slices are encoded in a floating-point dtype of torch, not in {dtype!r}.")
        torch.empty(0, device=device)  # asks for the device before anything is changed
        if self._slice_autoencoder is not None:
            try:
                self._slice_autoencoder.to(device, dtype)
            except BaseException:  # some weights may have moved already
                self._slice_autoencoder.to(self._device, self._dtype)
                raise
        self._device, self._dtype = device, dtype
        self._empty_latents = {}
        self._slices_per_batch = None
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
            masks:
                A brain mask, or a list with one (or None) for each scan.
            num_frames (`int`, *optional*):
                Frames of the window; by default all that are left after `start`.
            start (`int`, defaults to 0):
                First frame of the window.
            stride (`int`, defaults to 1):
                Every how many frames one is taken; the repetition time that is returned grows with it.
            padding (`bool`, defaults to `False`):
                Whether a scan that is shorter than the window is padded with zeros and masked; it is refused otherwise.
            repetition_time:
                Seconds, one number or a list with one (or None) for each scan, in place of what sidecar or header say.
            add_mean:
                For demeaned runs: an image to add back to every frame, or a list with one (or None) for each scan.
            check_space (`bool`, defaults to `True`):
                Whether scans that are not in MNI152 space are refused.
            return_tensors (`str`, defaults to `"pt"`):
                "pt" or "np" (which has no bfloat16).

        Returns:
            A `BatchFeature` with `input_values` `(scans, frames, cells, features)` in the extractor's dtype,
            `attention_mask` `(scans, frames)` int64, 1 where a frame is real, and `repetition_time` `(scans,)` float32
            in seconds. Scans of different length are padded to the longest. `.to(torch.float16)` on it casts
            `input_values` alone.

        Raises:
            `InputError`: a scan cannot be used; one sentence says which, why and what to do.
        """
        if return_tensors not in ("pt", "np"):
            raise ValueError(f'return_tensors must be "pt" or "np", not {return_tensors!r}.')
        runs = [scans] if _is_one_scan(scans) else list(scans)
        if not runs:
            raise ValueError("No scans were given.")
        tokenized = [
            self.tokenize(
                scan,
                mask=mask,
                num_frames=num_frames,
                start=start,
                stride=stride,
                allow_short=padding,
                repetition_time=seconds,
                add_mean=mean,
                check_space=check_space,
            )
            for scan, mask, seconds, mean in zip(
                runs,
                _one_each(masks, len(runs), "masks"),
                _one_each(repetition_time, len(runs), "repetition_time"),
                _one_each(add_mean, len(runs), "add_mean"),
                strict=True,
            )
        ]
        lengths = [len(run.tokens) for run in tokenized]
        longest = num_frames if padding and num_frames is not None else max(lengths)
        input_values = tokenized[0].tokens.new_zeros(len(runs), longest, *tokenized[0].tokens.shape[1:])
        for place, run in zip(input_values, tokenized, strict=True):
            place[: len(run.tokens)] = run.tokens
        features = TokenizedScans(
            {
                "input_values": input_values,
                "attention_mask": (torch.arange(longest) < torch.tensor(lengths)[:, None]).long(),
                "repetition_time": torch.tensor([run.repetition_time for run in tokenized], dtype=torch.float32),
            }
        )
        if return_tensors == "np":
            return TokenizedScans({name: value.numpy() for name, value in features.items()})
        return features

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
        """Tokenize one scan, with all that is needed to go back; arguments as for a call.

        `scan` may also be an open `BoldRun`. `on_progress` is reported frames done and frames in all. `dtype` is that
        of the tokens, the extractor's own by default: a long run that is to be stored as float16 needs half the memory.
        """
        if isinstance(scan, BoldRun):
            run = scan
        else:
            run = open_run(scan, mask, repetition_time, self.volume_size, add_mean, check_space)
        frames = _window(run, num_frames, start, stride, allow_short)
        encoder = self.slice_autoencoder
        tokens = torch.empty(len(frames), self.grid_size**3, self.token_size, dtype=dtype or encoder.dtype)
        done = 0
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
        return TokenizedRun(
            tokens, frames, run.repetition_time * stride, scale, mean_tokens, run.clipped_share, run.name
        )

    def token_blocks(self, run: BoldRun, frames: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Tokens of an open run's frames, all by default, a few at a time, so that a long run needs little memory:
        (n, cells, features) on the extractor's device, in its dtype."""
        for _, volumes in run.scaled_blocks(self.signal, self.scaling, frames, FRAMES_PER_BLOCK):
            yield self.volumes_to_tokens(torch.from_numpy(volumes), self.signal)

    def volumes_to_tokens(self, volumes: Tensor, signal: str | None = None) -> Tensor:
        """Encode scaled volumes.

        Args:
            volumes: (T, V, V, V) in [-1, 1].
            signal: what they hold, if it is not the extractor's own signal; slices that are nothing but its
                background are encoded once.

        Returns:
            (T, cells, features) on the extractor's device, in its dtype.
        """
        encoder = self.slice_autoencoder
        background = BACKGROUND[signal or self.signal]
        slices = volumes_to_slices(volumes.to(encoder.device)).flatten(0, 2)
        is_occupied = (slices != background).flatten(1).any(1)
        latents = self.empty_latents(background).repeat(len(slices), 1, 1, 1)
        if is_occupied.any():
            latents[is_occupied] = self.encode_slices(slices[is_occupied])
        return latents_to_tokens(latents.unflatten(0, (len(volumes), 3, self.volume_size)))

    def encode_slices(self, slices: Tensor) -> Tensor:
        """Encode grey slices (N, V, V) in [-1, 1] in batches that fit: (N, C, g, g) on the extractor's device."""
        return self._in_batches(self.slice_autoencoder.encode, slices)

    def decode_slices(self, latents: Tensor) -> Tensor:
        """Decode latents (N, C, g, g) of slices in batches that fit: (N, V, V) on the extractor's device."""
        return self._in_batches(self.slice_autoencoder.decode, latents)

    def empty_latents(self, background: float) -> Tensor:
        """The latents (1, C, g, g) of a slice that is nothing but background; encoded once."""
        if background not in self._empty_latents:
            empty = torch.full((1, self.volume_size, self.volume_size), background)
            self._empty_latents[background] = self.slice_autoencoder.encode(empty)
        return self._empty_latents[background]

    # --- tokens to volumes

    def decode(self, tokens: Tensor, intensity_scale: float | None = None, mean_tokens: Tensor | None = None) -> Tensor:
        """Decode tokens to volumes: every slice of every axis, then the mean of the three volumes.

        Args:
            tokens: (..., cells, features), a tensor or a numpy array: a frame, frames, or a batch of runs of frames.
            intensity_scale: the intensity that stands for 1 (`TokenizedRun.intensity_scale`). With it the result is
                in the scan's own unit, without it in [-1, 1] as the autoencoder sees it.
            mean_tokens: (1, cells, features) tokens of the run's mean volume, needed with `intensity_scale` under
                `signal="percent_change"`.

        Returns:
            (..., V, V, V) float32 on the CPU.

        Raises:
            ValueError: tokens of another geometry, or no mean to add a change to.
        """
        encoder = self.slice_autoencoder
        tokens = torch.as_tensor(tokens)
        if tuple(tokens.shape[-2:]) != (self.grid_size**3, self.token_size):
            raise ValueError(
                f"Tokens of shape {tuple(tokens.shape)} do not fit {self.autoencoder}, whose frames have shape "
                f"({self.grid_size**3}, {self.token_size}); decode them with the autoencoder that made them."
            )
        if intensity_scale is not None and self.signal == "percent_change" and mean_tokens is None:
            raise ValueError("Tokens of percent change go back to intensities with the run's mean_tokens only.")
        if not tokens.numel():  # some autoencoders cannot attend to a batch of nothing
            return torch.empty(*tokens.shape[:-2], *(self.volume_size,) * 3)
        frames = tokens.reshape(-1, *tokens.shape[-2:])
        volumes = torch.cat([self._decode_frames(block, encoder) for block in frames.split(FRAMES_PER_BLOCK)])
        if intensity_scale is not None and self.signal == "percent_change":
            mean = unscale_intensity(self._decode_frames(mean_tokens, encoder).numpy()[0], intensity_scale)
            volumes = torch.from_numpy(undo_percent_change(volumes.numpy(), mean))
        elif intensity_scale is not None:
            volumes = torch.from_numpy(unscale_intensity(volumes.numpy(), intensity_scale))
        return volumes.reshape(*tokens.shape[:-2], *volumes.shape[1:])

    def _decode_frames(self, tokens: Tensor, encoder) -> Tensor:
        latents = tokens_to_latents(tokens.to(encoder.device), self.volume_size)
        slices = self.decode_slices(latents.flatten(0, 2))
        slices = slices.unflatten(0, (len(tokens), 3, self.volume_size))
        return slices_to_volumes(slices.float()).mean(1).clamp(-1, 1).cpu()

    def _in_batches(self, function: Callable[[Tensor], Tensor], items: Tensor) -> Tensor:
        """Apply `function` batch by batch; when one does not fit into memory, all again in batches of half the size."""
        if self._slices_per_batch is None:
            at_once = SLICES_AT_ONCE.get(self._device.type, SLICES_AT_ONCE["cpu"])
            threads = torch.get_num_threads() if self._device.type == "cpu" else 1
            self._slices_per_batch = max(at_once // threads, FEWEST_SLICES_PER_THREAD)
        while True:
            try:
                with _map_over_threads(self._device) as map_batches:
                    return torch.cat(list(map_batches(function, items.split(self._slices_per_batch))))
            except torch.OutOfMemoryError:
                if self._slices_per_batch == 1:
                    raise
                self._slices_per_batch //= 2
            torch.cuda.empty_cache()
            logger.info(f"Out of memory: {self._slices_per_batch} slices at once from here on.")

    # --- loading and saving

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs) -> "TabletFeatureExtractor":
        """As everywhere in the library. An autoencoder that is in the same folder or repository, as
        `tablet_hf.hub.custom_code` puts it there, is found by its name."""
        names = ("cache_dir", "force_download", "local_files_only", "revision", "token")
        options = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        extractor = loaded[0] if isinstance(loaded, tuple) else loaded
        extractor._loaded_from = (str(pretrained_model_name_or_path), options)
        return loaded

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs) -> "TabletFeatureExtractor":
        if not cls.__module__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):
            # Names code that is next to the file; saved elsewhere by the installed package, it would name nothing.
            feature_extractor_dict = {
                name: value for name, value in feature_extractor_dict.items() if name != "auto_map"
            }
        return super().from_dict(feature_extractor_dict, **kwargs)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Save preprocessor_config.json. The autoencoder is loaded first where it was not yet, so that its revision
        and the geometry of its tokens are recorded; one that cannot be loaded here is recorded by name alone."""
        try:
            _ = self.slice_autoencoder
        except InputError as error:
            logger.warning(f"The revision of the autoencoder is not recorded: {error}")
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def from_config(cls, config: Any) -> "TabletFeatureExtractor":
        """The extractor of the tokens that a model was trained on, as its `TabletConfig` records them.

        Raises:
            InputError: the config does not record an autoencoder.
        """
        if config.autoencoder is None:
            raise InputError(
                "The model's configuration does not record which autoencoder made its tokens; save the "
                "TabletFeatureExtractor that made them beside the model."
            )
        names = (*config.token_provenance, *config.token_geometry)
        return cls(**{name: value for name in names if (value := getattr(config, name)) is not None})

    def to_dict(self) -> dict[str, Any]:
        """What is saved in preprocessor_config.json: names and settings, never weights."""
        state = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return copy.deepcopy(state) | {"feature_extractor_type": type(self).__name__}


@contextmanager
def _map_over_threads(device: torch.device) -> Iterator[Callable]:
    """`map`, which on a CPU gives every core batches of its own.

    That is faster than all cores working on one batch and then waiting for the slowest of them at every layer, and far
    faster where other programs keep some of the cores busy.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield map
        return
    try:
        # The setting holds for the thread that makes it and for threads still to come, hence the restoring.
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as workers:
            yield workers.map
    finally:
        torch.set_num_threads(threads)


def _window(run: BoldRun, num_frames: int | None, start: int, stride: int, allow_short: bool) -> np.ndarray:
    if start < 0 or stride < 1 or (num_frames is not None and num_frames < 1):
        raise ValueError(
            f"A window needs start >= 0, stride >= 1 and num_frames >= 1, not {start}, {stride} and {num_frames}."
        )
    frames = np.arange(start, run.num_frames, stride)[:num_frames]
    if not len(frames):
        raise InputError(
            f"{run.name}: it has {run.num_frames} frames, so none from frame {start} on; lower start= (command line: "
            "--start)."
        )
    if num_frames is not None and len(frames) < num_frames and not allow_short:
        raise InputError(
            f"{run.name}: {num_frames} frames were asked for (start {start}, stride {stride}) but only {len(frames)} "
            f"of its {run.num_frames} are there; lower num_frames= (command line: --num-frames), or ask for padding."
        )
    return frames


def _is_one_scan(scans: Any) -> bool:
    if not isinstance(scans, list | tuple):
        return True
    is_pair = isinstance(scans, tuple) and len(scans) == 2
    return is_pair and not isinstance(scans[0], str | Path) and np.shape(scans[1]) == (4, 4)


def _one_each(values: Any, count: int, name: str) -> list:
    if name == "repetition_time" and not np.ndim(values):
        return [values] * count
    if name == "repetition_time":
        values = [None if value is None else float(value) for value in values]
    if isinstance(values, list) or (count > 1 and isinstance(values, tuple)):
        values = list(values)
        if len(values) != count:
            raise ValueError(f"{name}: {len(values)} were given for {count} scans.")
        return values
    if count > 1 and values is not None:
        raise ValueError(f"{name}: give a list with one for each of the {count} scans.")
    return [values] * count


__all__ = ["TabletFeatureExtractor", "TokenizedRun"]
