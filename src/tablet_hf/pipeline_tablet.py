"""Pipelines of transformers for TABLeT: scans go in, predictions or embeddings come out."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.pipelines.base import ChunkPipeline

from .errors import InputError
from .feature_extraction_tablet import FRAMES_PER_BLOCK, TabletFeatureExtractor
from .scans import check_repetition_time
from .volumes import open_run

# Frames of a window of embeddings where the model's config tells none: the context of arXiv:2604.03619.
DEFAULT_NUM_FRAMES = 256

READING = ("mask", "repetition_time", "add_mean", "check_space")


@dataclass(frozen=True)
class Window:
    """Frames of a run that the model sees together.

    Attributes:
        start, stop: the first frame, and the one after the last.
        new_from: the first frame that no window before it has.
    """

    start: int
    stop: int
    new_from: int


@dataclass(frozen=True)
class ScanEmbeddings:
    """What a model makes of one run; float32, on the CPU.

    Attributes:
        scan: the name of the scan.
        run: (pooled_size,), what a head would read, by `config.pooling_type` (the CLS state, the mean of the token
            states, or how much those of each cell vary); of several windows the mean, each by the number of frames
            that it adds.
        frames: (num_frames, hidden_size), the mean of a frame's token states.
        tokens: (num_frames, num_cells, hidden_size), the token states, cells in the order of
            `tablet_hf.tokens.latents_to_tokens`; None where they were not asked for.
        repetition_time: seconds between two frames.
        num_windows: windows that the run was cut into; a state has seen the frames of its own window.
    """

    scan: str
    run: Tensor
    frames: Tensor
    tokens: Tensor | None
    repetition_time: float
    num_windows: int


def windows_without_remainder(num_frames: int, window: int | None) -> list[Window]:
    """Windows that do not overlap, without the remainder; a run that is shorter than one window is one by itself."""
    if window is None or num_frames <= window:
        return [Window(0, num_frames, 0)]
    return [Window(start, start + window, start) for start in range(0, num_frames - window + 1, window)]


def windows_of_all_frames(num_frames: int, window: int) -> list[Window]:
    """As above and, for the remainder, a last window that reaches back: no frame is seen with fewer others around."""
    windows = windows_without_remainder(num_frames, window)
    done = windows[-1].stop
    return windows if done == num_frames else [*windows, Window(num_frames - window, num_frames, done)]


def gather_windows(blocks: Iterator[Tensor], windows: list[Window]) -> Iterator[Tensor]:
    """Tokens (frames, cells, features) of each window, from blocks of a run's frames in their order; what no later
    window needs is not kept."""
    held, first, stop = [], 0, 0
    for window, following in zip(windows, [*windows[1:], None], strict=True):
        while stop < window.stop:
            held.append(next(blocks))
            stop += len(held[-1])
        tokens = torch.cat(held)
        yield tokens[window.start - first : window.stop - first]
        if following is not None:
            held, first = [tokens[following.start - first :].clone()], following.start


def read_logits(logits: Tensor, config: Any) -> tuple[str | float, dict[str, float]]:
    """What logits (labels,) mean by `config.problem_type`: the prediction, and a score for each label."""
    names = [config.id2label[index] for index in range(config.num_labels)]
    if config.problem_type == "regression":
        scores = dict(zip(names, logits.tolist(), strict=True))
        return scores[names[0]], scores
    if config.problem_type == "single_label_classification":
        scores = dict(zip(names, logits.softmax(-1).tolist(), strict=True))
        return max(scores, key=scores.__getitem__), scores
    scores = dict(zip(names, logits.sigmoid().tolist(), strict=True))
    positive = [name for name in names if scores[name] >= 0.5]
    if not positive and len(names) == 1 and config.negative_label is not None:
        return config.negative_label, scores
    return " ".join(positive) if positive else f"not {' '.join(names)}", scores


class ScanPipeline(ChunkPipeline):
    """
    What the pipelines for scans share: a scan is tokenized a few frames at a time and given to the model window by
    window.

    A scan is a path to a 4D NIfTI, a nibabel image, or a pair (array, affine), as for [`TabletFeatureExtractor`]; a
    `TokenizedRun`; or a mapping with the key `"scan"` and any of `mask`, `repetition_time`, `add_mean` and
    `check_space` for this scan alone. A list of scans gives a list of results. `batch_size` windows, of one scan or of
    several, go through the model at once.

    Args:
        model, feature_extractor: as of any pipeline. Without an extractor, one as `model.config` records it.
        num_frames (`int`, *optional*): frames of a window; by default those the model was trained on.
        mask, repetition_time, add_mean, check_space: how scans are read; see [`TabletFeatureExtractor`]. The
            repetition time is that of the scan unless one is given.

    All but the first line may be given to the pipeline or to a call. On a GPU slices are encoded and the model runs in
    float16; an extractor that is on another kind of device is moved to the pipeline's.

    Raises:
        `InputError`: a scan cannot be used, or its tokens do not fit the model.
    """

    # Loaded where the repository has one; a model's config may tell the same.
    _load_feature_extractor = None
    _load_tokenizer = _load_image_processor = _load_video_processor = _load_processor = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model.eval()
        if self.feature_extractor is None:
            self.feature_extractor = TabletFeatureExtractor.from_config(self.model.config)
        if self.feature_extractor.device.type != self.device.type:
            dtype = torch.float16 if self.device.type == "cuda" else torch.float32
            self.feature_extractor.to(self.device, dtype)

    def _sanitize_parameters(self, num_frames: int | None = None, **reading):
        if unknown := sorted(reading.keys() - set(READING)):
            raise TypeError(f"{type(self).__name__} has no parameter {unknown[0]!r}.")
        if num_frames is None:
            return reading, {}, {}
        if num_frames < 1:
            raise ValueError(f"A window needs at least one frame, got num_frames={num_frames}.")
        return reading | {"num_frames": num_frames}, {}, {}

    def __call__(self, inputs: Any, *args, **kwargs) -> Any:
        # The library looks at the first of a list, whether or not there is one.
        return [] if isinstance(inputs, list) and not inputs else super().__call__(inputs, *args, **kwargs)

    def choose_windows(self, num_frames: int, window: int | None) -> list[Window]:
        """Windows for a run of so many frames; `window` is their length where one was asked for or is recorded."""
        raise NotImplementedError

    def preprocess(self, scan: Any, num_frames: int | None = None, **reading) -> Iterator[dict[str, Any]]:
        """Windows of one scan, as the model takes them, each once its frames are tokenized."""
        if isinstance(scan, dict):
            scan, reading = unpack(scan, reading)
        if isinstance(getattr(scan, "tokens", None), Tensor):  # of this class, or of custom code from elsewhere
            name, length = scan.name, len(scan.tokens)
            seconds = check_repetition_time(scan.repetition_time, f"{name}: its repetition time")
            self.check_shape(scan)
            blocks = iter(scan.tokens.split(FRAMES_PER_BLOCK))
        else:
            self.check_extractor()
            run = open_run(scan, volume_size=self.feature_extractor.volume_size, **reading)
            name, length, seconds = run.name, run.num_frames, run.repetition_time
            blocks = self.feature_extractor.token_blocks(run)
        if not length:
            raise InputError(f"{name}: there are no frames in it; tokenize the scan again.")
        windows = self.choose_windows(length, num_frames or self.model.config.num_frames)
        for window, tokens in zip(windows, gather_windows(blocks, windows), strict=True):
            yield {
                "input_values": tokens[None],
                "attention_mask": torch.ones(1, len(tokens), dtype=torch.long),
                "repetition_time": torch.tensor([seconds], dtype=torch.float32),
                "seconds": seconds,
                "name": name,
                "window": window,
                "is_last": window is windows[-1],
            }

    def check_shape(self, run: Any) -> None:
        """Compare the shape of a run's tokens with those that the model was made for."""
        found, known = tuple(run.tokens.shape[1:]), (self.model.config.grid_size**3, self.model.config.token_size)
        if found != known:
            raise InputError(
                f"{run.name}: its tokens have the shape (frames, {', '.join(map(str, found))}), but this model reads "
                f"(frames, {known[0]}, {known[1]}); tokenize the scan with the extractor saved beside the model."
            )

    def check_extractor(self) -> None:
        """Load the autoencoder, and compare its tokens with those that the model was made for."""
        _ = self.feature_extractor.slice_autoencoder
        try:
            self.model.config.check_tokens_compatible(self.feature_extractor)
        except ValueError as error:
            raise InputError(f"{self.feature_extractor.autoencoder}: {error}") from error

    def run_model(self, inputs: dict[str, Any]) -> Any:
        with torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda"):
            return self.model(
                inputs["input_values"],
                attention_mask=inputs["attention_mask"],
                repetition_time=inputs["repetition_time"],
            )


def unpack(scan: dict[str, Any], reading: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The scan of a mapping, and how it is read: as all are, but for what the mapping says."""
    if "scan" not in scan or scan.keys() - {"scan", *READING}:
        raise InputError(
            f"A mapping in place of a scan has the key 'scan' and may have {', '.join(READING)}, but its keys are "
            f"{', '.join(map(repr, scan)) or 'none'}."
        )
    return scan["scan"], reading | {name: scan[name] for name in READING if name in scan}


class FmriClassificationPipeline(ScanPipeline):
    """
    Classes or values from scans, by a [`TabletForSequenceClassification`].

    ```python
    >>> from transformers import pipeline
    >>> import tablet_hf

    >>> classify = pipeline("fmri-classification", model="owner/sex-model")
    >>> classify("sub-01_task-rest_space-MNI152NLin2009cAsym_res-2_desc-preproc_bold.nii.gz")
    [{'label': 'F', 'score': 0.71}, {'label': 'M', 'score': 0.29}]
    ```

    Args:
        top_k (`int`, *optional*): how many classes are reported; all by default.

    Returns for each scan a list of `{"label": ..., "score": ...}`. Of a classifier the most probable class is first,
    and the score is its probability; a classifier of one logit tells the other class too, as `config.negative_label`
    or `"not ..."`. Of a regression the score is the value in its own unit, one for each target in their order. The
    logits of all windows are averaged; frames that do not fill a window are left out, as in the evaluation of
    arXiv:2604.03619, but a run that is shorter than a window is used whole: of 28 frames and windows of 16 the first 16
    decide. [`FmriFeatureExtractionPipeline`] sees all 28.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.model.config.problem_type is None:
            raise InputError(
                f"{self.model.name_or_path or 'The model'}: its configuration does not say what it predicts; fine-tune "
                "it, or set problem_type and id2label in its config.json."
            )

    def _sanitize_parameters(self, top_k: int | None = None, **kwargs):
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        if top_k is not None and top_k < 1:
            raise ValueError(f"At least one class must be told, got top_k={top_k}.")
        return preprocess, forward, postprocess | ({} if top_k is None else {"top_k": top_k})

    def choose_windows(self, num_frames: int, window: int | None) -> list[Window]:
        return windows_without_remainder(num_frames, window)

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        logits = self.run_model(inputs).logits.float()
        return {"logits": logits, "name": inputs["name"], "is_last": inputs["is_last"]}

    def postprocess(self, windows: list[dict[str, Any]], top_k: int | None = None) -> list[dict[str, Any]]:
        config, logits = self.model.config, torch.cat([window["logits"] for window in windows])
        if not logits.isfinite().all():
            raise InputError(
                f"{windows[0]['name']}: no finite prediction comes from it; its tokens hold numbers that are not "
                "finite, or the model's weights do."
            )
        _, scores = read_logits(logits.mean(0), config)
        if config.problem_type == "regression":
            return [{"label": name, "score": score} for name, score in scores.items()]
        if config.problem_type == "multi_label_classification" and config.num_labels == 1:
            ((name, score),) = scores.items()
            scores[config.negative_label or f"not {name}"] = 1 - score
        ranked = sorted(scores.items(), key=lambda entry: -entry[1])
        return [{"label": name, "score": score} for name, score in ranked[:top_k]]


class FmriFeatureExtractionPipeline(ScanPipeline):
    """
    Embeddings of scans, of their frames and of their tokens, by a [`TabletModel`].

    ```python
    >>> from transformers import pipeline
    >>> import tablet_hf

    >>> embed = pipeline("fmri-feature-extraction", model="owner/model")
    >>> embeddings = embed("sub-01_task-rest_space-MNI152NLin2009cAsym_res-2_desc-preproc_bold.nii.gz")
    >>> embeddings.run.shape, embeddings.frames.shape, embeddings.tokens.shape
    (torch.Size([896]), torch.Size([490, 896]), torch.Size([490, 27, 896]))
    ```

    Args:
        return_tokens (`bool`, defaults to `True`): whether the token states are kept, which weigh 97 kB a frame in the
            published network.

    Returns for each scan a `ScanEmbeddings`. Every frame is there: frames that do not fill a window are seen in a last
    window that reaches back into the one before, whereas a prediction leaves them out. Windows have 256 frames where
    neither the call nor the model's config says otherwise.
    """

    def _sanitize_parameters(self, return_tokens: bool | None = None, **kwargs):
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        return preprocess, forward | ({} if return_tokens is None else {"return_tokens": return_tokens}), postprocess

    def choose_windows(self, num_frames: int, window: int | None) -> list[Window]:
        return windows_of_all_frames(num_frames, window or DEFAULT_NUM_FRAMES)

    def _forward(self, inputs: dict[str, Any], return_tokens: bool = True) -> dict[str, Any]:
        outputs = self.run_model(inputs)
        states = outputs.last_hidden_state[:, 1:].float().unflatten(1, inputs["input_values"].shape[1:3])
        return {
            "pooled": outputs.pooler_output.float(),
            "frames": states.mean(2),
            "tokens": states if return_tokens else None,
            **{name: inputs[name] for name in ("seconds", "name", "window", "is_last")},
        }

    def postprocess(self, windows: list[dict[str, Any]]) -> ScanEmbeddings:
        def joined(name: str) -> Tensor:
            parts = []
            for states in windows:
                window = states["window"]
                # A batch may have padded it behind its last frame.
                parts.append(states[name][0, window.new_from - window.start : window.stop - window.start])
            return torch.cat(parts)

        weights = torch.tensor([float(states["window"].stop - states["window"].new_from) for states in windows])
        pooled = torch.cat([states["pooled"] for states in windows])
        run = (pooled * (weights / weights.sum())[:, None]).sum(0)
        if not run.isfinite().all():
            raise InputError(
                f"{windows[0]['name']}: no finite embedding comes from it; its tokens hold numbers that are not "
                "finite, or the model's weights do."
            )
        return ScanEmbeddings(
            scan=windows[0]["name"],
            run=run,
            frames=joined("frames"),
            tokens=None if windows[0]["tokens"] is None else joined("tokens"),
            repetition_time=windows[0]["seconds"],
            num_windows=len(windows),
        )


__all__ = ["FmriClassificationPipeline", "FmriFeatureExtractionPipeline", "ScanEmbeddings"]
