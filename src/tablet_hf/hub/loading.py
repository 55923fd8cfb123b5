"""A scan goes in, a prediction comes out: a fine-tuned model and the extractor that made its tokens, together."""

import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
)

from tablet_hf.datasets.token_files import SUFFIX, load_tokens
from tablet_hf.errors import InputError
from tablet_hf.feature_extraction_tablet import TabletFeatureExtractor, TokenizedRun
from tablet_hf.hub.files import check_model_name, fetch
from tablet_hf.modeling_tablet import TabletForSequenceClassification
from tablet_hf.pipeline_tablet import read_logits, windows_without_remainder
from tablet_hf.scans import check_repetition_time

# Others are pickles, which can hold code.
WEIGHT_FILES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)


@dataclass(frozen=True)
class Prediction:
    """What a model says of one run, or of all runs of a subject.

    Attributes:
        scan: the name of the scan, or of the subject.
        prediction: the class, or the value of the (first) regression target in its own unit.
        scores: a probability for each class of a classifier, a value for each target of a regression.
        num_frames: frames that were used.
        num_windows: windows that they were cut into; the logits of all windows are averaged.
        repetition_time: seconds; None for runs that differ in it.
    """

    scan: str
    prediction: str | float
    scores: dict[str, float]
    num_frames: int
    num_windows: int
    repetition_time: float | None


class ScanPredictor:
    """A fine-tuned TABLeT with its feature extractor.

    Args:
        model: its config must say what it predicts (`problem_type`).
        extractor: makes tokens as the model knows them; another geometry is refused, another autoencoder, signal or
            scaling is warned of.
        num_frames: frames of a window; by default those the model was trained on (`config.num_frames`), else the
            whole run at once.

    Raises:
        InputError: a model that does not say what it predicts.
        ValueError: windows of no frames.
    """

    def __init__(
        self,
        model: TabletForSequenceClassification,
        extractor: TabletFeatureExtractor,
        num_frames: int | None = None,
    ):
        if model.config.problem_type is None:
            raise InputError(
                f"{model.name_or_path or 'The model'}: its configuration does not say what it predicts; fine-tune it, "
                "or set problem_type and id2label in its config.json."
            )
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"A window needs at least one frame, got num_frames={num_frames}.")
        self.model = model.eval()
        self.extractor = extractor
        self.num_frames = num_frames or model.config.num_frames

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: torch.device | str = "cpu",
        num_frames: int | None = None,
        revision: str = "main",
    ) -> "ScanPredictor":
        """Load model and extractor from one folder or Hub id; on a GPU the extractor encodes in float16.

        Raises:
            InputError: there is no such model, it has no weights or no trained head, or weights of another shape.
        """
        model = load_model(name, revision)
        extractor = load_extractor(name, model, revision)
        device = torch.device(device)
        extractor.to(device, torch.float16 if device.type == "cuda" else torch.float32)
        return cls(model.to(device), extractor, num_frames)

    def __call__(
        self,
        scan: Any,
        mask: Any = None,
        repetition_time: float | None = None,
        add_mean: Any = None,
        check_space: bool = True,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Prediction:
        """Predict from one scan (see `TabletFeatureExtractor`) or from a file of `tablet-hf tokenize`.

        `repetition_time` is that of the scan, also where the file holds one of several frames only.

        Raises:
            InputError: the scan or its tokens cannot be used.
        """
        if isinstance(scan, str | Path) and str(scan).endswith(SUFFIX):
            if mask is not None or add_mean is not None:
                raise InputError(
                    f"{scan}: it holds tokens, to which no mask and no mean can be applied any more; give the scan "
                    "itself, or tokenize it again with them."
                )
            run, record = load_tokens(scan)
            _, cells, token_size = run.tokens.shape
            grid_size = round(cells ** (1 / 3))
            if grid_size**3 != cells:
                raise InputError(f"{scan}: its {cells} tokens a frame are no cube of cells; tokenize the scan again.")
            if repetition_time is not None:
                seconds = check_repetition_time(repetition_time, f"{scan}: repetition_time={repetition_time!r}")
                stride = int(run.frames[1] - run.frames[0]) if len(run.frames) > 1 else 1
                run = replace(run, repetition_time=seconds * stride)
            self._check_tokens({"grid_size": grid_size, "token_size": token_size}, str(scan))
            self._warn_of_other_tokens(record, str(scan))
        else:
            run = self.extractor.tokenize(
                scan,
                mask,
                repetition_time=repetition_time,
                add_mean=add_mean,
                check_space=check_space,
                on_progress=on_progress,
            )
            self._check_tokens(self.extractor.to_dict(), run.name)
            self._warn_of_other_tokens(self.extractor.to_dict(), self.extractor.autoencoder)
        return self.predict_tokens(run)

    def prepare(self) -> None:
        """Load the autoencoder now and not with the first scan, so that what is wrong with it is reported once.

        Raises:
            InputError: it cannot be loaded, or its tokens do not fit the model.
        """
        _ = self.extractor.slice_autoencoder
        self._check_tokens(self.extractor.to_dict(), self.extractor.autoencoder)
        self._warn_of_other_tokens(self.extractor.to_dict(), self.extractor.autoencoder)

    def _check_tokens(self, record: dict[str, Any], name: str) -> None:
        geometry = {field: record.get(field) for field in self.model.config.token_geometry}
        try:
            self.model.config.check_tokens_compatible(geometry)
        except ValueError as error:
            raise InputError(f"{name}: {error}") from error

    def _warn_of_other_tokens(self, record: dict[str, Any], name: str) -> None:
        # As `check_tokens_compatible` does, but for each file, by its name.
        surprises = self.model.config.token_differences(record, self.model.config.token_provenance)
        if surprises:
            warnings.warn(
                f"{name}: its tokens were not made as those the model was trained on ({', '.join(surprises)}); "
                "predictions on them mean little until it is fine-tuned on such tokens.",
                stacklevel=3,
            )

    def predict_tokens(self, run: TokenizedRun) -> Prediction:
        """Predict from tokens (frames, cells, features).

        A run is cut into windows that do not overlap, a remainder is left out (of 28 frames and windows of 16 the
        first 16 are used, as `Prediction.num_frames` says), and only a run shorter than one window
        is used as it is: the evaluation of the code released with arXiv:2604.03619, except that a short run needs no
        padding here.

        Raises:
            InputError: no frames, an impossible repetition time, or tokens that hold no finite numbers.
        """
        return self.predict_subject([run], run.name)

    def predict_subject(self, runs: Sequence[TokenizedRun], name: str) -> Prediction:
        """One prediction from all runs of a subject: each is cut into windows of its own, and the logits of all
        windows count alike, as in the paper's evaluation.

        Args:
            runs: tokens as for `predict_tokens`; their repetition times may differ.
            name: of the subject.

        Raises:
            InputError: no runs, or one of them cannot be used (see `predict_tokens`).
        """
        if not runs:
            raise InputError(f"{name}: there are no runs to predict from.")
        cut = [cut_windows(run.tokens, self.num_frames) for run in runs]
        logits = torch.cat([self._logits(run, windows) for run, windows in zip(runs, cut, strict=True)])
        prediction, scores = read_logits(logits.mean(0), self.model.config)
        repetition_times = {run.repetition_time for run in runs}
        return Prediction(
            scan=name,
            prediction=prediction,
            scores=scores,
            num_frames=sum(len(window) for windows in cut for window in windows),
            num_windows=len(logits),
            repetition_time=repetition_times.pop() if len(repetition_times) == 1 else None,
        )

    @torch.inference_mode()
    def _logits(self, run: TokenizedRun, windows: list[Tensor]) -> Tensor:
        """Logits (windows, labels), float32, on the CPU."""
        if not len(run.tokens):
            raise InputError(f"{run.name}: there are no frames in it; tokenize the scan again.")
        seconds = run.repetition_time
        if not (isinstance(seconds, Real) and math.isfinite(seconds) and seconds > 0):
            raise InputError(f"{run.name}: its repetition time is {seconds!r}; give the right one in seconds.")
        device = self.model.device
        logits = []
        for window in windows:
            with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
                outputs = self.model(window[None].to(device, self.model.dtype), repetition_time=float(seconds))
            logits.append(outputs.logits[0].float().cpu())
        logits = torch.stack(logits)
        if not logits.isfinite().all():
            raise InputError(
                f"{run.name}: no finite prediction comes from it; its tokens hold numbers that are not finite, so "
                "tokenize the scan again, or the model's weights do."
            )
        return logits


def cut_windows(tokens: Tensor, num_frames: int | None) -> list[Tensor]:
    """Windows of `num_frames` frames that do not overlap, without the remainder; a shorter run is one window."""
    return [tokens[window.start : window.stop] for window in windows_without_remainder(len(tokens), num_frames)]


def load_model(name: str | Path, revision: str = "main") -> TabletForSequenceClassification:
    """Load a classifier or regressor, refusing what is not one.

    Raises:
        InputError: see `ScanPredictor.from_pretrained`.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    check_model_name(name)
    check_model_folder(Path(name))
    if not Path(name).is_dir():
        fetch(name, CONFIG_NAME, revision)  # says in a sentence what is wrong with a name
    try:
        model, info = TabletForSequenceClassification.from_pretrained(
            str(name),
            revision=revision,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except StrictDataclassError as error:
        raise unusable_config(name, error) from error
    except SafetensorError as error:
        raise InputError(f"{name}: its weights are damaged ({error}); copy or download them again.") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: no model could be loaded from there; {' '.join(str(error).split())}") from error
    misshapen = sorted(info["mismatched_keys"])
    if misshapen:
        key, found, expected = misshapen[0]
        raise InputError(
            f"{name}: {len(misshapen)} of its weights do not have the shape its config.json asks for, first {key} with "
            f"{tuple(found)} instead of {tuple(expected)}; use the config.json that was saved with these weights."
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(
            f"{name}: it holds no trained weights for {', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''}, so "
            "it cannot predict; fine-tune it as a TabletForSequenceClassification first."
        )
    return model


def unusable_config(name: str | Path, error: Exception) -> InputError:
    """Of what strict configurations raise the last line says what is wrong, behind the name of an exception."""
    reason = str(error).strip().splitlines()[-1].strip()
    reason = re.sub(r"^\w+Error: ", "", reason).rstrip(".")
    return InputError(f"{name}: its config.json cannot be used ({reason}); mend it, or save the model again.")


def check_model_folder(folder: Path) -> None:
    """Refuse a folder without the files of a model; a Hub id is no folder, and an adapter finds its model elsewhere.

    Raises:
        InputError: there is no config.json in it, or there are no weights.
    """
    if not folder.is_dir() or (folder / ADAPTER_CONFIG_NAME).is_file():
        return
    if not (folder / CONFIG_NAME).is_file():
        raise InputError(f"{folder}: there is no {CONFIG_NAME} in it; give the folder of a fine-tuned model.")
    if not any((folder / weights).is_file() for weights in WEIGHT_FILES):
        raise InputError(
            f"{folder}: there are no weights in it ({SAFE_WEIGHTS_NAME}), so it cannot predict; give the folder of a "
            "fine-tuned model, as its save_pretrained wrote it."
        )


def load_extractor(
    name: str | Path, model: TabletForSequenceClassification | None = None, revision: str = "main"
) -> TabletFeatureExtractor:
    """Load the extractor saved next to a model or, where there is none, one as the model's config records it.

    Raises:
        InputError: neither says how tokens are made.
    """
    try:
        settings, _ = TabletFeatureExtractor.get_feature_extractor_dict(str(name), revision=revision)
        if "autoencoder" not in settings:
            raise InputError(
                f"{name}: its preprocessor_config.json is not that of a TabletFeatureExtractor (it names no "
                "autoencoder); save the one that made the model's tokens there."
            )
        return TabletFeatureExtractor.from_pretrained(str(name), revision=revision)
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(f"{name}: its preprocessor_config.json cannot be used; {error}") from error
    except OSError as error:
        if (Path(name) / "preprocessor_config.json").exists():
            raise InputError(f"{name}: its preprocessor_config.json is not readable JSON; save it again.") from error
        if model is None or model.config.autoencoder is None:
            raise InputError(
                f"{name}: there is no preprocessor_config.json that says how its tokens are made; save the "
                "TabletFeatureExtractor that made them into the same folder."
            ) from error
        return TabletFeatureExtractor.from_config(model.config)
