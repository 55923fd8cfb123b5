"""Masked token modeling on a token dataset with `Trainer`: weights that know the tokens before they know a label.

    store = TokenDataset.load("STORE")
    result = pretrain(store, "pretrained", Settings(epochs=40), init=None, model={"hidden_size": 256})

What was begun in a folder goes on from its last checkpoint, to the same loss curve.
"""

import copy
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tablet_hf.datasets.splits import Split, runs_in, subject_ids
from tablet_hf.datasets.streaming import StreamedWindows
from tablet_hf.datasets.windows import EvaluationWindows, TrainingWindows
from tablet_hf.errors import InputError
from tablet_hf.files import atomic_write
from tablet_hf.hub.training_data import TrainingData
from tablet_hf.modeling_tablet import TabletForMaskedTokenModeling, draw_token_mask, standardize_over_frames
from tablet_hf.training.arguments import Settings, check_gpus_to_share_out, process_state, training_arguments
from tablet_hf.training.checkpoints import (
    agreed_checkpoint,
    checksums,
    initial_model,
    keep_to_one_training,
    save_model,
)
from tablet_hf.training.trainer import make_trainer

__all__ = ["MaskedWindows", "PretrainingResult", "pretrain"]

MODEL_FOLDER = "model"
CHECKPOINTS = "checkpoints"
RESULT_FILE = "pretraining.json"
TASK = "masked token modeling"

MOST_WINDOWS = 256
"""That evaluate, evenly spaced over all of the validation part."""

KEPT_BYTES = 2 * 2**30
"""Of tokens of the validation part of a stream, which each process keeps in memory: 50 windows of 256 frames."""


@dataclass(frozen=True)
class PretrainingResult:
    """What pre-training gave.

    Attributes:
        folder: of the model, for `from_pretrained`.
        loss: mean loss over the steps since the line of the log before, by step.
        validation_loss: by step; empty without a validation part. Masks are the same every time.
        mean_predictor_loss: what `mean_predictor_loss` says of the validation windows; None without a validation part.
        said: what had to be said of the weights it started from.
    """

    folder: Path
    loss: list[tuple[int, float]]
    validation_loss: list[tuple[int, float]]
    mean_predictor_loss: float | None
    said: list[str]


class MaskedWindows(EvaluationWindows):
    """Windows to evaluate masked token modeling on: each comes with the same mask in every pass.

    Args:
        store, num_frames, runs: see `EvaluationWindows`.
        config: whose `mask_ratio` and `mask_strategy` draw the mask.
        seed: of the masks.
        most: windows, evenly spaced over all; None for all.

    Items: as those of `EvaluationWindows`, and `bool_masked_pos (frames, cells)` bool.
    """

    def __init__(
        self,
        store: Any,
        num_frames: int | None,
        runs: Sequence[int | str] | None,
        config: Any,
        seed: int = 0,
        most: int | None = None,
    ):
        super().__init__(store, num_frames, runs)
        self.config, self.seed = config, seed
        if most is not None and len(self.windows) > most:
            places = torch.linspace(0, len(self.windows) - 1, most).round().long().tolist()
            self.windows = [self.windows[place] for place in places]

    def _fields(self, index: int, run: int, frames: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        are_there = torch.ones(1, frames, dtype=torch.bool)
        mask = draw_token_mask(self.config, are_there, generator)[0]
        return super()._fields(index, run, frames) | {"bool_masked_pos": mask}


def pretrain(
    store: Any,
    out: str | Path,
    settings: Settings,
    *,
    split: Split | None = None,
    init: str | Path | None = None,
    model: Mapping[str, Any] | None = None,
    evaluations: int = 10,
    callbacks: Sequence[Any] = (),
    is_quiet: bool = False,
    on_note: Callable[[str], None] | None = None,
) -> PretrainingResult:
    """Train a model to predict hidden tokens from the others.

    Args:
        store: a `TokenDataset`, or a `StreamedWindows` made for training.
        out: folder; checkpoints and logs, and at the end `model/` and `pretraining.json`. Training that was begun there
            goes on, and what has come to its end is given back as it is.
        settings: how to train; `max_steps` is needed for streamed windows.
        split: its training part is trained on and its validation part evaluates; its test part is not looked at. None
            takes all runs and evaluates by none. Of a stream the windows that evaluate are read once, at the start,
            and kept
            in memory: as many as go into `KEPT_BYTES`.
        init: folder or Hub id of weights to start from.
        model: fields of `TabletConfig`, such as `mask_ratio`, `mask_strategy`, `norm_target` or sizes.
        evaluations: times that the validation loss is computed.
        callbacks, is_quiet: see `make_trainer`.
        on_note: is reported what had to be decided.

    Raises:
        InputError: nothing to train on, weights that do not fit, or a folder that holds another training.
    """
    from transformers import set_seed

    check_gpus_to_share_out(settings)
    out, said = Path(out), []
    is_streamed = isinstance(store, StreamedWindows)
    if is_streamed and not settings.max_steps:
        raise InputError("streamed data have no length that is known, so say how long to train with max_steps.")
    preprocessing = store.settings["preprocessing"]
    # Weights that are new are drawn the same way again when training goes on.
    set_seed(settings.seed)
    network, told = initial_model(
        TabletForMaskedTokenModeling, init, {"num_frames": settings.window_frames} | dict(model or {}), preprocessing
    )
    said += told
    training, validation = _windows(store, settings, split, network.config)
    config = {name: value for name, value in network.config.to_dict().items() if name != "transformers_version"}
    runs = store.all_runs if is_streamed else store.runs
    people = {"train": sorted(set(subject_ids(runs))), "validation": []}
    if split is not None:
        people = {part: split.subjects(part) for part in people}
    described = {"settings": settings.deciding, "config": config, "split": people} | checksums(runs)
    keep_to_one_training(out, described, settings.carried_out, RESULT_FILE)
    if (result := read_result(out)) is not None:
        return result
    for sentence in said:
        if on_note is not None:
            on_note(sentence)

    if is_streamed and validation is not None:
        if on_note is not None:
            on_note(f"Reading {len(validation)} windows of the validation part of {split.name} ...")
        validation.store.read(validation.windows)
    trainings = () if init is None else TrainingData.of_model(init)
    learnt, chosen_by = ([] if windows is None else _runs_of(windows) for windows in (training, validation))
    this = TrainingData.of_runs(TASK, learnt, chosen_by, store.settings["is_restricted"], init)
    checkpoint = agreed_checkpoint(out / CHECKPOINTS)
    judging = {"eval_strategy": "no"}
    if validation is not None:
        steps = settings.max_steps or _num_steps(len(training), settings)
        judging = {"eval_strategy": "steps", "eval_steps": max(1, steps // evaluations)}
        judging["eval_on_start"] = checkpoint is None
    arguments = training_arguments(settings, out / CHECKPOINTS, prediction_loss_only=True, label_names=[], **judging)
    trainer = make_trainer(network, arguments, training, validation, callbacks=callbacks, is_quiet=is_quiet)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    history = trainer.state.log_history
    result = PretrainingResult(
        out / MODEL_FOLDER,
        [(entry["step"], entry["loss"]) for entry in history if "loss" in entry],
        [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry],
        None if validation is None else mean_predictor_loss(validation, network.config),
        said,
    )
    save_model(trainer, result.folder, preprocessing, [*trainings, this])
    if trainer.is_world_process_zero():
        with atomic_write(out / RESULT_FILE) as unfinished:
            facts = asdict(replace(result, folder=MODEL_FOLDER))
            unfinished.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        for path in (out / CHECKPOINTS).glob("checkpoint-*"):
            shutil.rmtree(path)
    return result


def read_result(out: str | Path) -> PretrainingResult | None:
    """What a training that has come to its end left in a folder."""
    path = Path(out) / RESULT_FILE
    if not path.is_file():
        return None
    facts = json.loads(path.read_text(encoding="utf-8"))
    curves = {name: [tuple(pair) for pair in facts[name]] for name in ("loss", "validation_loss")}
    return PretrainingResult(**facts | curves | {"folder": Path(out) / facts["folder"]})


def mean_predictor_loss(windows: MaskedWindows, config: Any) -> float:
    """The loss of naming for each hidden token the mean of its cell's visible ones in the window.

    It is what masked token modeling must get below to have learned more than the still anatomy.
    """
    total, count = 0.0, 0.0
    for index in range(len(windows)):
        item = windows[index]
        tokens, hidden = item["input_values"].float(), item["bool_masked_pos"]
        target, mean, _ = (part[0] for part in standardize_over_frames(tokens[None], None, hidden[None]))
        guess = torch.zeros_like(tokens)
        if not config.standardize_tokens:
            target, guess = tokens, mean.expand_as(tokens)
        if config.norm_target:
            target = torch.nn.functional.layer_norm(target, target.shape[-1:], eps=1e-6)
            guess = torch.nn.functional.layer_norm(guess, guess.shape[-1:], eps=1e-6)
        error = (guess - target).square().mean(-1)
        total += float(error[hidden].sum())
        count += float(hidden.sum())
    return total / max(count, 1.0)


# --- parts


class _StreamedStore:
    """Chosen windows of a stream, as `MaskedWindows` reads them from a store."""

    def __init__(self, streamed: StreamedWindows):
        self.streamed, self.runs = streamed, streamed.all_runs
        self.tokens: dict[tuple[int, int, int], torch.Tensor] = {}

    def read(self, windows: Sequence[tuple[int, int, int]]) -> None:
        """Keep the windows of these places in `runs`, first frames and numbers of frames."""
        streamed = copy.copy(self.streamed)
        streamed.is_training, streamed.keep_remainder, streamed.labels = False, False, None
        streamed.runs = {self.runs[run].key: self.runs[run] for run, _, _ in windows}
        wanted, num_seen = set(windows), Counter()
        for window in streamed:
            run, tokens = window["run_index"], window["input_values"]
            place = run, num_seen[run] * streamed.num_frames, len(tokens)
            num_seen[run] += 1
            if place in wanted:
                self.tokens[place] = tokens
            if len(self.tokens) == len(wanted):
                return
        lost = min(run for run, _, _ in wanted - self.tokens.keys())
        raise InputError(f"{streamed.source}: {self.runs[lost].key} is in none of its files; copy it again.")

    def window(self, run: int, start: int, frames: int) -> torch.Tensor:
        return self.tokens[run, start, frames]


def _windows(store: Any, settings: Settings, split: Split | None, config: Any) -> tuple[Any, MaskedWindows | None]:
    """To train on and to evaluate by; of a stream the latter are not read yet."""
    if isinstance(store, StreamedWindows):
        return _streamed_windows(store, settings, split, config)
    runs = None if split is None else runs_in(split, store.runs, "train")
    training = TrainingWindows(store, settings.window_frames, runs, seed=settings.seed)
    if split is None or not split.counts["validation"]:
        return training, None
    held_out = runs_in(split, store.runs, "validation")
    return training, MaskedWindows(store, settings.window_frames, held_out, config, settings.seed, MOST_WINDOWS)


def _streamed_windows(
    store: StreamedWindows, settings: Settings, split: Split | None, config: Any
) -> tuple[StreamedWindows, MaskedWindows | None]:
    training, parts = copy.copy(store), {}
    if split is not None:
        for part in ("train", "validation"):
            parts[part] = {
                key: run for key, run in store.runs.items() if split.assignment.get(store.subjects[key]) == part
            }
        training.runs = parts["train"]
    if not training.runs:
        raise InputError("The stream has no run of the training part; use a split that was made for this dataset.")
    if not parts.get("validation"):
        return training, None
    held_out = [place for place, run in enumerate(store.all_runs) if run.key in parts["validation"]]
    most = min(MOST_WINDOWS, max(1, KEPT_BYTES // (2 * store.num_frames * math.prod(store.geometry.shape))))
    return training, MaskedWindows(_StreamedStore(store), store.num_frames, held_out, config, settings.seed, most)


def _runs_of(windows: Any) -> list[Any]:
    """What windows are cut from, as records of runs."""
    if isinstance(windows, StreamedWindows):
        return list(windows.runs.values())
    return [windows.store.runs[run] for run in windows.runs]


def _num_steps(num_windows: int, settings: Settings) -> int:
    a_step = settings.batch_size * process_state().num_processes * settings.accumulate
    return max(1, int(settings.epochs * max(1, -(-num_windows // a_step))))
