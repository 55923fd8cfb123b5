"""Whole experiments: a model and the baselines on the same subjects of the same folds, evaluated and written down.

results = finetune(store, splits, "sex", "my-model", Settings(epochs=20), scans="derivatives/")
results = evaluate(load_model("my-model/fold-1/model"), store, splits[0], "results", scans="derivatives/")
"""

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tablet_hf.datasets.splits import Split, runs_in, subject_ids
from tablet_hf.datasets.tasks import Task
from tablet_hf.errors import InputError
from tablet_hf.evaluation.predictions import Predictions, joined
from tablet_hf.files import saved_weights_checksum, weights_checksum
from tablet_hf.training.arguments import Settings, process_state, training_arguments
from tablet_hf.training.checkpoints import training_subjects
from tablet_hf.training.finetuning import FinetunedFold, finetune_fold
from tablet_hf.training.inference import predict_subjects, task_of_config

__all__ = ["evaluate", "finetune"]

CACHE = "baselines"

OnNote = Callable[[str], None]


def finetune(
    store: Any,
    splits: Sequence[Split],
    label: str,
    out: str | Path,
    settings: Settings,
    *,
    scans: Any = None,
    atlas: str | Path | None = None,
    on_fold: Callable[[FinetunedFold], None] | None = None,
    on_note: OnNote | None = None,
    **options: Any,
) -> dict[str, Any] | None:
    """Fine-tune in every fold, run the baselines on the same subjects, and write what came out.

    Args:
        store: a `TokenDataset`.
        splits: the folds.
        label: a phenotype's name.
        out: folder; a folder for each fold with its model, and `results.json`, `predictions.csv` and `index.html`.
        settings: how to train.
        scans, atlas: for the baselines, see `baseline_predictions`.
        on_fold: is reported of every fold that is done.
        on_note: is reported what had to be decided.
        options: of `finetune_fold`. In `init` the word {fold} stands for the name of each split: what is pre-trained on
            the training part of a fold knows no one of its test part.

    Returns:
        What `write_results` gives; None on processes other than the main one.

    Raises:
        InputError: as of `finetune_fold`, or folds of which one has classes that another does not have.
    """
    out = Path(out)
    start = options.pop("init", None)
    starts = [start if start is None else str(start).replace("{fold}", split.name) for split in splits]
    remarks = _known_before(starts, splits)
    if on_note is not None:
        for remark in remarks:
            on_note(remark)
    folds = []
    for split, init in zip(splits, starts, strict=True):
        folder = out / split.name
        folds.append(finetune_fold(store, split, label, folder, settings, init=init, on_note=on_note, **options))
        if on_fold is not None:
            on_fold(folds[-1])
    if not process_state().is_main_process:
        return None
    if other := [fold for fold in folds if fold.task.classes != folds[0].task.classes]:
        raise InputError(
            f"{other[0].name}: {label} has other classes there than in {folds[0].name}; give splits of the same people."
        )
    methods = [joined([fold.predictions for fold in folds])]
    device = "cuda" if settings.on_gpu else "cpu"
    pairs = [(split, fold.task) for split, fold in zip(splits, folds, strict=True)]
    methods += baselines(store, pairs, scans, atlas, device, out / CACHE, on_note)
    about = {
        "store": store.folder.name,
        "signal": store.preprocessing.get("signal"),
        "autoencoder": store.preprocessing.get("autoencoder"),
        "window (frames)": settings.window_frames,
        "started from": str(start or "scratch"),
        "mode": options.get("mode", "full"),
        "learning rate by fold": ", ".join(_rate(fold) for fold in folds),
        "chosen by": f"{folds[0].metric} of the validation part",
        "weights": ", ".join(saved_weights_checksum(fold.folder) for fold in folds),
    }
    return _write(out, methods, about, warnings=[*remarks, *_absent(methods)], are_held_out=not remarks)


def evaluate(
    model: Any,
    store: Any,
    split: Split | None,
    out: str | Path,
    *,
    part: str = "test",
    label: str | None = None,
    settings: Settings | None = None,
    scans: Any = None,
    atlas: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    training_data: Collection[str] = (),
    on_note: OnNote | None = None,
) -> dict[str, Any] | None:
    """Judge a fine-tuned model on subjects of a store, next to the baselines.

    Args:
        model: a `TabletForSequenceClassification`.
        store: a `TokenDataset`.
        split: whose part is predicted, and whose training part the baselines train on. None predicts everyone, and
            there are no baselines then, nor are there for the training part itself.
        out: folder of `results.json`, `predictions.csv` and `index.html`.
        part: "test", or another one.
        label: by default what the model was trained on.
        settings: of which batch size, precision, device and `window_frames` count; by default the model's own window.
        scans, atlas: for the baselines, see `baseline_predictions`.
        about: what else is to stand in the results.
        training_data: subjects that the model was trained on or chosen by, see `training_subjects`.
        on_note: is reported what had to be decided.

    Raises:
        InputError: tokens or classes that the model does not know.
    """
    settings = settings or Settings(window_frames=None)
    try:
        model.config.check_tokens_compatible(store.preprocessing)
    except ValueError as error:
        raise InputError(f"{store.folder}: {error}") from error
    runs = range(len(store.runs)) if split is None else runs_in(split, store.runs, part)
    remarks = _whom_it_knows(store, runs, split, part, set(training_data))
    are_held_out = not remarks
    if other := model.config.token_differences(store.preprocessing, model.config.token_provenance):
        remarks.append(
            f"The tokens were not made as those the model was trained on ({', '.join(other)}), so the figures tell "
            "what it makes of numbers that it does not know."
        )
    task = task_of_config(model.config, store, label, runs)
    fold = "all" if split is None else split.name
    with tempfile.TemporaryDirectory() as scratch:  # Trainer makes a folder, though it writes nothing
        arguments = training_arguments(settings, scratch, eval_strategy="no", save_strategy="no", report_to=[])
        methods = [predict_subjects(model, store, runs, task, arguments, settings.window_frames, fold)]
    if not process_state().is_main_process:
        return None
    if split is None:
        if on_note is not None:
            on_note("Without a split nobody is known that baselines may learn from, so none stand beside the model.")
    elif part != "train":
        device = "cuda" if settings.on_gpu else "cpu"
        methods += baselines(store, [(split, task)], scans, atlas, device, Path(out) / CACHE, on_note, part)
    about = {"store": store.folder.name, "part": "everybody" if split is None else part} | dict(about or {})
    about["weights"] = weights_checksum(model.state_dict())
    return _write(Path(out), methods, about, warnings=[*remarks, *_absent(methods)], are_held_out=are_held_out)


def baselines(
    store: Any,
    folds: Sequence[tuple[Split, Task]],
    scans: Any,
    atlas: str | Path | None,
    device: str,
    cache: Path,
    on_note: OnNote | None = None,
    part: str = "test",
) -> list[Predictions]:
    """Each baseline's word on the subjects of all folds; of those that could be run in every fold."""
    from tablet_hf.baselines.features import find_scans
    from tablet_hf.baselines.linear import baseline_predictions

    found = None if scans is None else find_scans(store, scans)
    by_method: dict[str, list[Predictions]] = {}
    for split, task in folds:
        if on_note is not None:
            way = "" if found is not None else " (connectivity of decoded tokens: scans, by --scans, are read faster)"
            on_note(f"Baselines of {split.name}{way} ...")
        tables = baseline_predictions(
            store,
            task,
            runs_in(split, store.runs, "train"),
            runs_in(split, store.runs, part),
            split.name,
            found,
            atlas,
            device,
            cache=cache,
            **({} if on_note is None else {"on_note": on_note}),
        )
        for table in tables:
            by_method.setdefault(table.method, []).append(table)
    return [joined(parts) for parts in by_method.values() if len(parts) == len(folds)]


def _absent(methods: Sequence[Predictions]) -> list[str]:
    """What a reader of results misses, in sentences."""
    from tablet_hf.baselines.linear import CONNECTIVITY

    if len(methods) == 1 or any(method.method.startswith(CONNECTIVITY) for method in methods):
        return []  # of no baselines at all `write_results` tells
    return [
        "Functional connectivity does not stand beside the model, so whether it does better than a linear model of "
        "that is not known; the command said why, and --scans with the folder of the scans lets it be computed."
    ]


def _write(out: Path, methods: Sequence[Predictions], about: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    from tablet_hf.report.evaluation_page import write_results

    return write_results(out, methods, about=about, **more)


def _known_before(starts: Sequence[str | None], splits: Sequence[Split]) -> list[str]:
    """What is to be said of subjects who are predicted, but whom the weights that a fold starts from had trained on."""
    tested, known = set(), set()
    for init, split in zip(starts, splits, strict=True):
        tested |= set(split.subjects("test"))
        if init is not None:
            known |= training_subjects(init) & set(split.subjects("test"))
    if not known:
        return []
    return [
        f"{len(known)} of {len(tested)} people who are predicted are called like people whom the model had learnt from "
        "before. If they are the same, they are not new to it, even if it saw no labels; pre-train for each fold "
        "(command line: pretrain --splits FILE --fold fold-1 --out pretrained/fold-1, and so on) and fine-tune from "
        "there (--init 'pretrained/{fold}/model')."
    ]


def _whom_it_knows(
    store: Any, runs: Sequence[int], split: Split | None, part: str, training_data: set[str]
) -> list[str]:
    """What is to be said of subjects who are evaluated though they were, or may have been, trained on."""
    names = subject_ids(store.runs)
    people = {names[run] for run in runs}
    known = people & training_data
    if split is None:
        told = f"{len(known)} of {len(people)} people are" if known else "Some of these people may be"
        return [f"{told} among those whom the model learnt from; give a split to judge it on others."]
    if part == "train":
        return ["These people were learnt from: the figures tell what is remembered, and nothing of others."]
    if part == "validation":
        return ["These people chose among epochs and learning rates: of others the figures will be worse."]
    if known:
        return [
            f"{len(known)} of {len(people)} people of the test part of {split.name} are called like people whom the "
            f"model learnt from, {min(known)} for one. If they are the same, these figures say nothing of others; give "
            "the fold that the model was trained in (command line: --fold)."
        ]
    return []


def _rate(fold: FinetunedFold) -> str:
    return f"{fold.name} {'head' if fold.learning_rate is None else f'{fold.learning_rate:g}'}"
