"""Whole experiments: a model and the baselines on the same people of the same folds, judged and written down.

results = finetune(store, splits, "sex", "my-model", Settings(epochs=20), scans="derivatives/")
results = evaluate(load_model("my-model/fold-1/model"), store, splits[0], "results", scans="derivatives/")
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tablet_hf.datasets.splits import Split, runs_in
from tablet_hf.errors import InputError
from tablet_hf.training.arguments import Settings, training_arguments
from tablet_hf.training.finetuning import FinetunedFold, finetune_fold
from tablet_hf.training.inference import predict_people, task_of_config
from tablet_hf.training.predictions import Predictions, joined
from tablet_hf.training.tasks import Task

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
    """Fine-tune in every fold, run the baselines on the same people, and write what came out.

    Args:
        store: a `TokenDataset`.
        splits: the folds.
        label: a phenotype's name.
        out: folder; a folder for each fold with its model, and `results.json`, `predictions.csv` and `index.html`.
        settings: how to train.
        scans, atlas: for the baselines, see `baseline_predictions`.
        on_fold: is told of every fold that is done.
        on_note: is told what had to be decided.
        options: of `finetune_fold`.

    Returns:
        What `write_results` gives; None on processes other than the main one.
    """
    from accelerate import PartialState

    out = Path(out)
    folds = []
    for split in splits:
        folds.append(finetune_fold(store, split, label, out / split.name, settings, on_note=on_note, **options))
        if on_fold is not None:
            on_fold(folds[-1])
    if not PartialState().is_main_process:
        return None
    methods = [joined([fold.predictions for fold in folds])]
    device = "cuda" if settings.on_gpu else "cpu"
    pairs = [(split, fold.task) for split, fold in zip(splits, folds, strict=True)]
    methods += baselines(store, pairs, scans, atlas, device, out / CACHE, on_note)
    about = {
        "store": store.folder.name,
        "signal": store.preprocessing.get("signal"),
        "autoencoder": store.preprocessing.get("autoencoder"),
        "window (frames)": settings.window_frames,
        "started from": options.get("init") or "scratch",
        "mode": options.get("mode", "full"),
        "learning rate by fold": ", ".join(_rate(fold) for fold in folds),
        "chosen by": f"{folds[0].metric} of the validation part",
    }
    return _write(out, methods, about)


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
    on_note: OnNote | None = None,
) -> dict[str, Any] | None:
    """Judge a fine-tuned model on people of a store, beside the baselines.

    Args:
        model: a `TabletForSequenceClassification`.
        store: a `TokenDataset`.
        split: whose part is predicted, and whose training part the baselines learn from. None predicts everybody, and
            there are no baselines then.
        out: folder of `results.json`, `predictions.csv` and `index.html`.
        part: "test", or another one.
        label: by default what the model was trained on.
        settings: of which batch size, precision, device and `window_frames` count; by default the model's own window.
        scans, atlas: for the baselines, see `baseline_predictions`.
        about: what else is to stand in the results.
        on_note: is told what had to be decided.

    Raises:
        InputError: tokens or classes that the model does not know.
    """
    from accelerate import PartialState

    settings = settings or Settings(window_frames=None)
    try:
        model.config.check_tokens_compatible(store.preprocessing)
    except ValueError as error:
        raise InputError(f"{store.folder}: {error}") from error
    task = task_of_config(model.config, store, label)
    runs = range(len(store.runs)) if split is None else runs_in(split, store.runs, part)
    arguments = training_arguments(settings, Path(out) / "work", eval_strategy="no", save_strategy="no", report_to=[])
    fold = "all" if split is None else split.name
    methods = [predict_people(model, store, runs, task, arguments, settings.window_frames, fold)]
    if not PartialState().is_main_process:
        return None
    if split is None:
        if on_note is not None:
            on_note("Without a split nobody is known that baselines may learn from, so none stand beside the model.")
    else:
        device = "cuda" if settings.on_gpu else "cpu"
        methods += baselines(store, [(split, task)], scans, atlas, device, Path(out) / CACHE, on_note, part)
    return _write(Path(out), methods, {"store": store.folder.name, "part": part} | dict(about or {}))


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
    """Each baseline's word on the people of all folds; of those that could be run in every fold."""
    from tablet_hf.training.baselines import baseline_predictions
    from tablet_hf.training.run_features import find_scans

    found = None if scans is None else find_scans(store, scans)
    by_method: dict[str, list[Predictions]] = {}
    for split, task in folds:
        if on_note is not None:
            on_note(f"Baselines of {split.name} ...")
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


def _write(out: Path, methods: Sequence[Predictions], about: Mapping[str, Any]) -> dict[str, Any]:
    from tablet_hf.training.results import write_results

    return write_results(out, methods, about=about)


def _rate(fold: FinetunedFold) -> str:
    return f"{fold.name} {'head' if fold.learning_rate is None else f'{fold.learning_rate:g}'}"
