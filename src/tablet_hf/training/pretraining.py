"""Pre-training on a token dataset with `Trainer`: masked token modeling, which needs no labels.

    store = TokenDataset.load("STORE")
    result = pretrain(store, "pretrained", TabletTrainingArguments(num_train_epochs=40), model={"hidden_size": 256})

An interrupted training resumes from its last checkpoint, with the same loss curve.
"""

import copy
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tablet_hf.baselines.connectivity import evenly_spaced
from tablet_hf.datasets.splits import Split, runs_in, subject_ids
from tablet_hf.datasets.streaming import StreamedWindows
from tablet_hf.datasets.windows import EvaluationWindows, TrainingWindows
from tablet_hf.errors import InputError
from tablet_hf.hub.training_data import TrainingData
from tablet_hf.modeling_tablet import TabletForMaskedTokenModeling, draw_token_mask, standardize_over_frames
from tablet_hf.training import checkpoints
from tablet_hf.training.arguments import TabletTrainingArguments
from tablet_hf.training.trainer import make_trainer

__all__ = ["MaskedWindows", "PretrainingResult", "mean_predictor_loss", "pretrain", "read_result"]

MODEL_FOLDER = "model"
CHECKPOINTS = "checkpoints"
RESULT_FILE = "pretraining.json"
TASK = "masked token modeling"

MAX_WINDOWS = 256
"""Number of validation windows, evenly spaced over all."""

MAX_STREAMED_BYTES = 2 * 2**30
"""Size of the validation windows of a stream, which each process keeps in memory: 50 of 256 frames."""


@dataclass(frozen=True)
class PretrainingResult:
    """The result of pre-training.

    Attributes:
        folder: folder of the model, for `from_pretrained`.
        loss: pairs of step and mean loss since the step before.
        validation_loss: pairs of step and loss; empty without a validation part. Masks are the same every time.
        mean_predictor_loss: see `mean_predictor_loss`, of the validation windows; None without a validation part.
    """

    folder: Path
    loss: list[tuple[int, float]]
    validation_loss: list[tuple[int, float]]
    mean_predictor_loss: float | None


class MaskedWindows(torch.utils.data.Dataset):
    """Windows for evaluating masked token modeling, each with the same mask in every pass.

    Args:
        windows: `EvaluationWindows`, or a list of such items.
        config: `TabletConfig` with `mask_ratio` and `mask_strategy`.
        seed: seed of the masks.
        max_windows: number of windows, evenly spaced over all; None for all.

    Items: as those of `windows`, and `bool_masked_pos (frames, cells)` bool.
    """

    def __init__(self, windows: Sequence[dict[str, Any]], config: Any, seed: int = 0, max_windows: int | None = None):
        self.windows, self.config, self.seed = windows, config, seed
        self.indices = evenly_spaced(range(len(windows)), max_windows or len(windows))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.windows[self.indices[index]]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        frames = torch.ones(1, len(item["input_values"]), dtype=torch.bool)
        return item | {"bool_masked_pos": draw_token_mask(self.config, frames, generator)[0]}


def pretrain(
    store: Any,
    out: str | Path,
    arguments: TabletTrainingArguments,
    *,
    split: Split | None = None,
    init: str | Path | None = None,
    model: Mapping[str, Any] | None = None,
    callbacks: Sequence[Any] = (),
) -> PretrainingResult:
    """Train a model to predict masked tokens from the others.

    Args:
        store: a `TokenDataset`, or a `StreamedWindows` made for training.
        out: folder; `model/` and `pretraining.json` at the end. An interrupted training resumes, and the result of a
            finished one is returned.
        arguments: how to train; `output_dir` is not used, and `max_steps` is needed for a stream. The validation loss
            is computed every `eval_steps`, by default ten times.
        split: its training part is trained on, its validation part evaluates, its test part is not used. None trains on
            all runs.
        init: folder or Hub id of the starting weights.
        model: fields of `TabletConfig`, such as `mask_ratio`, `mask_strategy`, `norm_target` or sizes.
        callbacks: further callbacks of `Trainer`.

    Raises:
        InputError: nothing to train on, weights that do not fit, or a folder of another training.
    """
    from transformers import set_seed

    out, is_streamed = Path(out), isinstance(store, StreamedWindows)
    if is_streamed and arguments.max_steps < 1:
        raise InputError("a stream has no length; give the number of steps (command line: --max-steps).")
    preprocessing = store.settings["preprocessing"]
    set_seed(arguments.seed)  # new weights are the same again when training resumes
    fields = {"num_frames": arguments.window_frames} | dict(model or {})
    network = checkpoints.initial_model(TabletForMaskedTokenModeling, init, fields, preprocessing)
    training = _windows(store, split, "train", arguments)
    runs = store.all_runs if is_streamed else store.runs
    subjects = {"train": sorted(set(subject_ids(runs))), "validation": []}
    if split is not None:
        subjects = {part: split.subjects(part) for part in subjects}
    config = {name: value for name, value in network.config.to_dict().items() if name != "transformers_version"}
    description = config | {"split": subjects} | checkpoints.checksums(runs)
    checkpoints.check_same_training(out, description, arguments, RESULT_FILE)
    if (finished := read_result(out)) is not None:
        return finished
    trainings = () if init is None else TrainingData.of_model(init)
    validation = None
    if subjects["validation"]:
        windows = _windows(store, split, "validation", arguments)
        validation = MaskedWindows(windows, network.config, arguments.seed, MAX_WINDOWS)
    checkpoint = checkpoints.last_checkpoint(out / CHECKPOINTS)
    arguments = replace(
        arguments,
        output_dir=str(out / CHECKPOINTS),
        prediction_loss_only=True,
        label_names=[],
        eval_strategy="no" if validation is None else "steps",
        eval_steps=arguments.eval_steps or 0.1,
        eval_on_start=validation is not None and checkpoint is None,
    )
    trainer = make_trainer(network, arguments, training, validation, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    history = trainer.state.log_history
    result = PretrainingResult(
        out / MODEL_FOLDER,
        [(entry["step"], entry["loss"]) for entry in history if "loss" in entry],
        [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry],
        None if validation is None else mean_predictor_loss(validation, network.config),
    )
    used = store.runs.values() if is_streamed else runs
    this = _training_data(used, runs, subjects, store.settings["is_restricted"], init)
    checkpoints.save_model(trainer, result.folder, preprocessing, [*trainings, this])
    if trainer.is_world_process_zero():
        checkpoints.write_result(out / RESULT_FILE, asdict(replace(result, folder=MODEL_FOLDER)))
    return result


def _training_data(
    used: Iterable[Any], runs: Any, subjects: Mapping[str, Collection[str]], is_restricted: Any, init: Any
) -> TrainingData:
    """Describe the runs of the training and the validation part; names of subjects depend on all runs of the store."""
    names = dict(zip((run.key for run in runs), subject_ids(runs), strict=True))
    by_part = [[run for run in used if names[run.key] in subjects[part]] for part in ("train", "validation")]
    return TrainingData.of_runs(TASK, *by_part, is_restricted, init)


def read_result(out: str | Path) -> PretrainingResult | None:
    """Read the result of a finished pre-training from its folder; None where it is not finished."""
    path = Path(out) / RESULT_FILE
    if not path.is_file():
        return None
    facts = json.loads(path.read_text(encoding="utf-8"))
    curves = {name: [tuple(pair) for pair in facts[name]] for name in ("loss", "validation_loss")}
    return PretrainingResult(**facts | curves | {"folder": Path(out) / facts["folder"]})


@torch.no_grad()
def mean_predictor_loss(windows: MaskedWindows, config: Any) -> float:
    """Compute the loss of predicting for each masked token the mean of its cell's visible tokens in the window.

    A model that is not below it has learned the anatomy and nothing more.
    """
    total, count = 0.0, 0
    for item in windows:
        tokens, masked = item["input_values"].float(), item["bool_masked_pos"]
        target, mean, _ = (part[0] for part in standardize_over_frames(tokens[None], None, masked[None]))
        predicted = torch.zeros_like(tokens)
        if not config.standardize_tokens:
            target, predicted = tokens, mean.expand_as(tokens)
        if config.norm_target:
            target, predicted = (
                torch.nn.functional.layer_norm(values, values.shape[-1:], eps=1e-6) for values in (target, predicted)
            )
        total += float((predicted - target).square().mean(-1)[masked].sum())
        count += int(masked.sum())
    return total / max(count, 1)


def _windows(store: Any, split: Split | None, part: str, arguments: TabletTrainingArguments) -> Any:
    """Make the windows of a part: random ones for training, else all; those of a stream are read at once."""
    if not isinstance(store, StreamedWindows):
        runs = None if split is None else runs_in(split, store.runs, part)
        if part == "train":
            return TrainingWindows(store, arguments.window_frames, runs, seed=arguments.seed)
        return EvaluationWindows(store, arguments.window_frames, runs)
    stream = copy.copy(store)
    if split is not None:
        stream.runs = {key: run for key, run in store.runs.items() if split.assignment.get(store.subjects[key]) == part}
    if not stream.runs:
        raise InputError(f"{store.source}: no run in the {part} part; use a split that was made for this dataset.")
    if part == "train":
        return stream
    stream.is_training, stream.labels = False, None
    bytes_each = 2 * stream.num_frames * math.prod(stream.geometry.shape)
    num_windows = min(MAX_WINDOWS, max(1, MAX_STREAMED_BYTES // bytes_each))
    chosen = set(evenly_spaced(range(len(stream.window_subjects)), num_windows))
    windows = [window for index, window in enumerate(stream) if index in chosen]
    if len(windows) < len(chosen):
        raise InputError(f"{store.source}: runs of the {part} part are missing from its files; copy it again.")
    return windows
