"""Whole experiments: a model and the baselines on the same subjects of the same folds, evaluated and written down.

arguments = TabletTrainingArguments(num_train_epochs=20)
results = finetune(store, splits, "sex", "my-model", arguments, scans="derivatives/")
results = evaluate(load_model("my-model/fold-1/model"), store, splits[0], "results", arguments, scans="derivatives/")
"""

import tempfile
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tablet_hf.baselines.features import match_scans
from tablet_hf.baselines.linear import CONNECTIVITY, Fold, OnProgress, baseline_predictions
from tablet_hf.datasets.split_files import read_splits, write_splits
from tablet_hf.datasets.splits import Split, folds, runs_in, split_columns, subject_ids
from tablet_hf.datasets.tasks import Task
from tablet_hf.errors import InputError
from tablet_hf.evaluation.predictions import Predictions, joined
from tablet_hf.files import saved_weights_checksum, weights_checksum
from tablet_hf.report.evaluation_page import write_results
from tablet_hf.training.arguments import TabletTrainingArguments, process_state
from tablet_hf.training.checkpoints import training_subjects
from tablet_hf.training.finetuning import FinetunedFold, finetune_fold
from tablet_hf.training.inference import predict_subjects, task_of_config

__all__ = ["baselines", "evaluate", "finetune"]

CACHE = "baselines"
SPLITS_FILE = "splits.csv"
NO_CONNECTIVITY = (
    "Functional connectivity could not be computed, so it is not known whether the model does better than a linear "
    "model of it; give the folder of the scans (command line: --scans)."
)


def finetune(
    store: Any,
    splits: Sequence[Split] | int,
    label: str,
    out: str | Path,
    arguments: TabletTrainingArguments,
    *,
    only: Collection[str] = (),
    scans: Any = None,
    atlas: str | Path | None = None,
    on_fold: Callable[[FinetunedFold], None] | None = None,
    on_progress: OnProgress | None = None,
    init: str | Path | None = None,
    **options: Any,
) -> dict[str, Any] | None:
    """Fine-tune in every fold, run the baselines on the same subjects, and write the results.

    Args:
        store: a `TokenDataset`.
        splits: the folds, or their number, to draw them and keep them in `splits.csv`.
        label: name of a phenotype.
        out: folder of the results, with a folder for each fold and its model.
        arguments: how to train.
        only: names of folds to train; empty for all.
        scans, atlas: for the baselines, see `baseline_predictions`.
        on_fold: called with each finished fold.
        on_progress: called with frames done and in all, of the baselines of each fold.
        init: folder or Hub id of the starting weights, in which {fold} stands for the name of the fold, since weights
            should not have been pre-trained on the subjects that a fold predicts.
        options: further options of `finetune_fold`.

    Returns:
        What `write_results` returns; None on processes other than the main one.

    Raises:
        InputError: see `finetune_fold`; or folds that differ in their classes or are not those drawn before.
    """
    out, is_drawn = Path(out), isinstance(splits, int)
    if is_drawn:
        splits = _drawn_folds(store, label, splits, arguments.seed, out / SPLITS_FILE)
    if unknown := set(only) - {split.name for split in splits}:
        raise InputError(f"{min(unknown)}: no such fold; there are {', '.join(split.name for split in splits)}.")
    chosen = [split for split in splits if not only or split.name in only]
    starts = [None if init is None else str(init).replace("{fold}", split.name) for split in chosen]
    messages = _seen_in_pretraining(starts, chosen)
    finished = []
    for split, start in zip(chosen, starts, strict=True):
        finished.append(finetune_fold(store, split, label, out / split.name, arguments, init=start, **options))
        if is_drawn and process_state().is_main_process:
            write_splits(splits, out / SPLITS_FILE)
        if on_fold is not None:
            on_fold(finished[-1])
    if not process_state().is_main_process:
        return None
    if other := [fold for fold in finished if fold.task.classes != finished[0].task.classes]:
        raise InputError(f"{other[0].name}: its classes of {label} are not those of {finished[0].name}.")
    tasks = [(split, fold.task) for split, fold in zip(chosen, finished, strict=True)]
    methods = [joined([fold.predictions for fold in finished])]
    methods += baselines(store, tasks, scans, atlas, arguments.device.type, out / CACHE, on_progress=on_progress)
    about = {
        "store": store.folder.name,
        **{name: store.preprocessing.get(name) for name in ("signal", "autoencoder")},
        "window (frames)": arguments.window_frames,
        "started from": str(init or "scratch"),
        "mode": arguments.mode,
        "learning rate by fold": ", ".join(f"{fold.name} {fold.learning_rate or 'head'}" for fold in finished),
        "chosen by": f"{finished[0].metric} of the validation part",
        "weights": ", ".join(saved_weights_checksum(fold.folder) for fold in finished),
    }
    sentences = [*messages, *_no_connectivity(methods)]
    return write_results(out, methods, about=about, warnings=sentences, are_held_out=not messages)


def evaluate(
    model: Any,
    store: Any,
    split: Split | None,
    out: str | Path,
    arguments: TabletTrainingArguments,
    *,
    part: str = "test",
    label: str | None = None,
    scans: Any = None,
    atlas: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    training_data: Collection[str] = (),
    on_progress: OnProgress | None = None,
) -> dict[str, Any] | None:
    """Evaluate a fine-tuned model on subjects of a store, and compare it with the baselines.

    Args:
        model: a `TabletForSequenceClassification`.
        store: a `TokenDataset`.
        split: its `part` is predicted, and the baselines train on its training part. None predicts all subjects,
            without baselines; the training part has none either.
        out: folder of `results.json`, `predictions.csv` and `index.html`.
        arguments: batch size, precision and device; without `window_frames` windows are as long as in training.
        part: "train", "validation" or "test".
        label: name of the phenotype; None for the one recorded in the model.
        scans, atlas: for the baselines, see `baseline_predictions`.
        about: further entries of the results.
        training_data: subjects that the model was trained on or chosen by, see `training_subjects`.
        on_progress: see `finetune`.

    Raises:
        InputError: tokens or classes that the model does not know.
    """
    with warnings.catch_warnings(record=True) as caught:  # a warning of the results is shown with them
        warnings.simplefilter("always")
        model.config.check_tokens_compatible(store.preprocessing, str(store.folder))
    runs = range(len(store.runs)) if split is None else runs_in(split, store.runs, part)
    names = subject_ids(store.runs)
    messages = _seen_in_training({names[run] for run in runs}, split, part, set(training_data))
    are_held_out = not messages
    messages += [str(warning.message) for warning in caught]
    task = task_of_config(model.config, store, label, runs)
    with tempfile.TemporaryDirectory() as scratch:  # Trainer makes a folder, though it writes nothing
        arguments = replace(arguments, output_dir=scratch, save_strategy="no", report_to=[])
        name = "all" if split is None else split.name
        methods = [predict_subjects(model, store, runs, task, arguments, name)]
    if not process_state().is_main_process:
        return None
    if split is not None and part != "train":
        folder, device = Path(out) / CACHE, arguments.device.type
        methods += baselines(store, [(split, task)], scans, atlas, device, folder, part, on_progress)
    about = {"store": store.folder.name, "part": "all" if split is None else part} | dict(about or {})
    about["weights"] = weights_checksum(model.state_dict())
    messages += _no_connectivity(methods)
    return write_results(out, methods, about=about, warnings=messages, are_held_out=are_held_out)


def baselines(
    store: Any,
    tasks: Sequence[tuple[Split, Task]],
    scans: Any,
    atlas: str | Path | None,
    device: str,
    cache: Path,
    part: str = "test",
    on_progress: OnProgress | None = None,
) -> list[Predictions]:
    """Predict the subjects of all folds by each baseline that could be run in every fold."""
    scans = match_scans(store, scans) if scans else None
    by_method: dict[str, list[Predictions]] = {}
    for split, task in tasks:
        training, held_out = (runs_in(split, store.runs, which) for which in ("train", part))
        fold = Fold(store, task, training, held_out, split.name)
        for table in baseline_predictions(fold, scans, atlas, device, cache, on_progress):
            by_method.setdefault(table.method, []).append(table)
    return [joined(tables) for tables in by_method.values() if len(tables) == len(tasks)]


def _drawn_folds(store: Any, label: str, num_folds: int, seed: int, path: Path) -> list[Split]:
    """Draw folds for a label, or read those that were drawn for this folder before."""
    if path.is_file():
        splits = read_splits(path, runs=store.runs)
        found = splits[0].settings.get("label", label), len(splits), splits[0].seed
        if found != (label, num_folds, seed):
            raise InputError(
                f"{path}: holds {found[1]} folds of {found[0]} (seed {found[2]}), not {num_folds} of {label} (seed "
                f"{seed}); choose another output folder, or delete it."
            )
        return splits
    columns = split_columns(store, label, by_site=any(run.site for run in store.runs))
    drawn = folds(**columns, num_folds=num_folds, seed=seed)
    return [replace(split, settings={**split.settings, "label": label}) for split in drawn]


def _no_connectivity(methods: Sequence[Predictions]) -> list[str]:
    has_it = any(method.method.startswith(CONNECTIVITY) for method in methods)
    return [] if len(methods) == 1 or has_it else [NO_CONNECTIVITY]  # without baselines `write_results` warns


def _seen_in_pretraining(starts: Sequence[str | None], splits: Sequence[Split]) -> list[str]:
    """Return a warning where subjects are predicted whose scans the starting weights were trained on."""
    tested = [set(split.subjects("test")) for split in splits]
    seen = set().union(*(training_subjects(init) & test for init, test in zip(starts, tested, strict=True) if init))
    if not seen:
        return []
    message = (
        f"{len(seen)} of {len(set().union(*tested))} test subjects have the names of subjects in the pre-training, so "
        "the model may have seen their scans, without labels; pre-train for each fold (--init "
        "'pretrained/{fold}/model')."
    )
    warnings.warn(message, stacklevel=3)
    return [message]


def _seen_in_training(subjects: set[str], split: Split | None, part: str, training_data: set[str]) -> list[str]:
    """Return a warning where subjects are evaluated that were, or may have been, trained on."""
    seen = subjects & training_data
    if split is None:
        some = f"{len(seen)} of {len(subjects)} subjects are" if seen else "Some of these subjects may be"
        return [f"{some} among those the model was trained on; give a split to evaluate it on others."]
    if part == "train":
        return ["These subjects were trained on: the metrics do not say how well others are predicted."]
    if part == "validation":
        return ["These subjects chose epoch and learning rate: the metrics of others will be worse."]
    if seen:
        return [
            f"{len(seen)} of {len(subjects)} test subjects of {split.name} have the names of subjects the model was "
            f"trained on, such as {min(seen)}; give the fold that the model was trained in (--fold)."
        ]
    return []
