"""Pipelines of transformers for TABLeT: scans go in, predictions or embeddings come out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.pipelines.base import ChunkPipeline

from .errors import InputError
from .feature_extraction_tablet import FRAMES_PER_BLOCK, TabletFeatureExtractor
from .scans import check_repetition_time
from .tokens import cut_windows
from .volumes import BoldRun, open_run

READING = ("mask", "repetition_time", "add_mean", "check_space")


@dataclass(frozen=True)
class ScanEmbeddings:
    """Embeddings of one run; float32, on the CPU.

    Attributes:
        scan: name of the scan.
        run: (pooled_size,), what a head reads, by `config.pooling_type`; the mean over windows by the frames they add.
        frames: (num_frames, hidden_size), the mean of each frame's token states.
        tokens: (num_frames, num_cells, hidden_size), cells as in `latents_to_tokens`; None with `return_tokens=False`.
        repetition_time: seconds between two frames.
        num_windows: windows that the run was cut into; a state has seen the frames of its own window.
    """

    scan: str
    run: Tensor
    frames: Tensor
    tokens: Tensor | None
    repetition_time: float
    num_windows: int


def choose_windows(num_frames: int, window: int | None, covers_all_frames: bool) -> list[tuple[int, int]]:
    """First frames and ends of windows without overlap; to cover all frames, a last one reaches back to be whole."""
    windows = [(start, start + frames) for start, frames in cut_windows(num_frames, window)]
    if covers_all_frames and windows[-1][1] < num_frames:
        windows.append((num_frames - window, num_frames))
    return windows


def gather_windows(blocks: Iterator[Tensor], windows: list[tuple[int, int]]) -> Iterator[Tensor]:
    """Give the tokens (frames, cells, features) of each window, from consecutive blocks of a run's frames; frames that
    no later window needs are not kept."""
    held, first, read = [], 0, 0
    for (start, stop), following in zip(windows, [*windows[1:], None], strict=True):
        while read < stop:
            held.append(next(blocks))
            read += len(held[-1])
        tokens = torch.cat(held)
        yield tokens[start - first : stop - first]
        if following is not None:
            held, first = [tokens[following[0] - first :].clone()], following[0]


class ScanPipeline(ChunkPipeline):
    """
    Base of the pipelines for scans: a scan is tokenized a few frames at a time and given to the model window by window.

    A scan is a path to a 4D NIfTI, a nibabel image, or a pair (array, affine), as for [`TabletFeatureExtractor`]; a
    `BoldRun` or a `TokenizedRun`; or a mapping with the key `"scan"` and any of `mask`, `repetition_time`, `add_mean`
    and `check_space` for this scan alone. `batch_size` windows, of one scan or several, go through the model at once.

    Args:
        model, feature_extractor: as of any pipeline. Without an extractor, one as `model.config` records it.
        num_frames (`int`, *optional*): frames of a window; by default those the model was trained on.
        mask, repetition_time, add_mean, check_space: how scans are read, see [`TabletFeatureExtractor`].
        on_progress (`Callable`, *optional*): called with the frames that are tokenized, and all frames of the scan.

    All but the first line may be given to the pipeline or to a call. On a GPU all networks run in float16.

    Raises:
        `InputError`: a scan cannot be used, or its tokens do not fit the model.
    """

    # Loaded where the repository has one, since a model's config may hold the same.
    _load_feature_extractor = None
    _load_tokenizer = _load_image_processor = _load_video_processor = _load_processor = False

    covers_all_frames: ClassVar[bool]
    default_num_frames: ClassVar[int | None] = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model.eval()
        if self.feature_extractor is None:
            self.feature_extractor = TabletFeatureExtractor.from_config(self.model.config)
        if self.feature_extractor.device.type != self.device.type:
            dtype = torch.float16 if self.device.type == "cuda" else torch.float32
            self.feature_extractor.to(self.device, dtype)

    def _sanitize_parameters(self, **parameters):
        if unknown := sorted(parameters.keys() - {"num_frames", "on_progress", *READING}):
            raise TypeError(f"{type(self).__name__} has no parameter {unknown[0]!r}.")
        if parameters.get("num_frames") is not None and parameters["num_frames"] < 1:
            raise ValueError(f"A window needs at least one frame, got num_frames={parameters['num_frames']}.")
        return parameters, {}, {}

    def __call__(self, inputs: Any, *args, **kwargs) -> Any:
        # The library looks at the first element of a list, also of an empty one.
        return [] if isinstance(inputs, list) and not inputs else super().__call__(inputs, *args, **kwargs)

    def preprocess(
        self,
        scan: Any,
        num_frames: int | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        **reading,
    ) -> Iterator[dict[str, Any]]:
        """Give the windows of one scan, as the model reads them, each once its frames are tokenized."""
        if isinstance(scan, dict):
            if "scan" not in scan or scan.keys() - {"scan", *READING}:
                raise InputError(f"A mapping has a 'scan' and any of {', '.join(READING)}, but its keys are {[*scan]}.")
            reading |= scan
            scan = reading.pop("scan")
        if isinstance(getattr(scan, "tokens", None), Tensor):  # a `TokenizedRun`, of this package or of custom code
            run, length = scan, len(scan.tokens)
            check_repetition_time(run.repetition_time, f"{run.name}: its repetition time")
            expected = (self.model.config.num_cells, self.model.config.token_size)
            if not length or run.tokens.shape[1:] != expected:
                raise InputError(
                    f"{run.name}: its tokens have the shape {tuple(run.tokens.shape)}, but this model reads (frames, "
                    f"{expected[0]}, {expected[1]}); tokenize the scan with the extractor saved with the model."
                )
            blocks = iter(run.tokens.split(FRAMES_PER_BLOCK))
        else:
            self.check_extractor()
            size = self.feature_extractor.volume_size
            run = scan if isinstance(scan, BoldRun) else open_run(scan, volume_size=size, **reading)
            length, blocks = run.num_frames, self.feature_extractor.token_blocks(run)
        if on_progress is not None:
            blocks = report_progress(blocks, length, on_progress)
        window = num_frames or self.model.config.num_frames or self.default_num_frames
        windows = choose_windows(length, window, self.covers_all_frames)
        for number, tokens in enumerate(gather_windows(blocks, windows), 1):
            yield {
                "input_values": tokens[None],
                "attention_mask": torch.ones(1, len(tokens), dtype=torch.long),
                "repetition_time": torch.tensor([run.repetition_time], dtype=torch.float32),
                "seconds": run.repetition_time,
                "name": run.name,
                "window": windows[number - 1],
                "is_last": number == len(windows),
            }

    def check_extractor(self) -> None:
        """Load the autoencoder, and compare its tokens with those that the model was made for."""
        _ = self.feature_extractor.slice_autoencoder
        self.model.config.check_tokens_compatible(self.feature_extractor, self.feature_extractor.autoencoder)

    def run_model(self, inputs: dict[str, Any]) -> Any:
        names = ("input_values", "attention_mask", "repetition_time")
        with torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda"):
            return self.model(**{name: inputs[name] for name in names})


def report_progress(blocks: Iterator[Tensor], total: int, on_progress: Callable[[int, int], None]) -> Iterator[Tensor]:
    done = 0
    for block in blocks:
        done += len(block)
        on_progress(done, total)
        yield block


def check_finite(values: Tensor, name: str) -> None:
    if not values.isfinite().all():
        raise InputError(f"{name}: the result is not finite, so its tokens or the model's weights are not.")


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
        top_k (`int`, *optional*): number of classes to return; all by default.

    Returns for each scan a list of `{"label": ..., "score": ...}`. Of a classifier the most probable class is first,
    and the score is its probability; a classifier of one logit returns the other class too, as `config.negative_label`
    or `"not ..."`. Of a regression the score is the value in its own unit, one for each target in their order. The
    logits of all windows are averaged. Frames that do not fill a window are left out, as in the evaluation of
    arXiv:2604.03619 (of 28 frames and windows of 16 the first 16 decide); a run shorter than a window is used whole.
    """

    covers_all_frames = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.model.config.problem_type is None:
            raise InputError(
                f"{self.model.name_or_path or 'The model'}: its configuration does not say what it predicts; fine-tune "
                "it, or set problem_type and id2label in its config.json."
            )

    def _sanitize_parameters(self, top_k: int | None = None, **kwargs):
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        return preprocess, forward, postprocess | ({} if top_k is None else {"top_k": top_k})

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        logits = self.run_model(inputs).logits.float()
        return {"logits": logits, "name": inputs["name"], "is_last": inputs["is_last"]}

    def postprocess(self, windows: list[dict[str, Any]], top_k: int | None = None) -> list[dict[str, Any]]:
        config, logits = self.model.config, torch.cat([window["logits"] for window in windows]).mean(0)
        check_finite(logits, windows[0]["name"])
        labels = [config.id2label[index] for index in range(config.num_labels)]
        if config.problem_type == "regression":
            return [{"label": label, "score": score} for label, score in zip(labels, logits.tolist(), strict=True)]
        is_softmax = config.problem_type == "single_label_classification"
        scores = (logits.softmax(-1) if is_softmax else logits.sigmoid()).tolist()
        if len(labels) == 1:
            labels.append(config.negative_label or f"not {labels[0]}")
            scores.append(1 - scores[0])
        ranked = sorted(zip(labels, scores, strict=True), key=lambda entry: -entry[1])
        return [{"label": label, "score": score} for label, score in ranked[:top_k]]


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
        return_tokens (`bool`, defaults to `True`): whether to keep the token states, 97 kB per frame in the published
            network.

    Returns for each scan a `ScanEmbeddings` of all frames: those that do not fill a window are seen in a last one that
    reaches back into the one before. Windows have 256 frames where neither the call nor the model's config says.
    """

    covers_all_frames, default_num_frames = True, 256

    def _sanitize_parameters(self, return_tokens: bool | None = None, **kwargs):
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        return preprocess, forward | ({} if return_tokens is None else {"return_tokens": return_tokens}), postprocess

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
        added, done = [], 0  # the frames of each window that no earlier one has; a batch may have padded it behind them
        for window in windows:
            start, stop = window["window"]
            added.append(slice(done - start, stop - start))
            done = stop

        def join(name: str) -> Tensor:
            return torch.cat([window[name][0, frames] for window, frames in zip(windows, added, strict=True)])

        weights = torch.tensor([frames.stop - frames.start for frames in added], dtype=torch.float32)
        pooled = torch.cat([window["pooled"] for window in windows])
        run = (pooled * (weights / weights.sum())[:, None]).sum(0)
        first = windows[0]
        check_finite(run, first["name"])
        tokens = None if first["tokens"] is None else join("tokens")
        return ScanEmbeddings(first["name"], run, join("frames"), tokens, first["seconds"], len(windows))


__all__ = ["FmriClassificationPipeline", "FmriFeatureExtractionPipeline", "ScanEmbeddings"]
