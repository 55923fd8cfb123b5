"""From a model and the windows of subjects to what it says of each subject."""

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np

from tablet_hf.datasets.tasks import Task
from tablet_hf.datasets.windows import EvaluationWindows, average_by
from tablet_hf.errors import InputError
from tablet_hf.evaluation.predictions import Predictions
from tablet_hf.training.trainer import make_trainer

__all__ = ["METHOD", "outputs_of", "predict_subjects", "predictions_of", "subject_metrics", "task_of_config"]

METHOD = "TABLeT"


def outputs_of(logits: np.ndarray, task: Task) -> np.ndarray:
    """What mean logits `(people, labels)` say: probabilities `(people, classes)`, or values `(people,)`."""
    from tablet_hf.evaluation.metrics import class_probabilities

    return np.asarray(logits, dtype=np.float64)[:, 0] if task.is_regression else class_probabilities(logits)


def predictions_of(logits: np.ndarray, windows: EvaluationWindows, task: Task, fold: str) -> Predictions:
    """The mean of each subject's logits over windows and runs, as the released code has it, and what they say.

    Args:
        logits: `(windows, labels)`, in the order of `windows`; a regression's in the target's own unit.
        windows: with a label.
        fold: the name of the split they were held out in.
    """
    people, means = average_by(logits, windows.subjects)
    places = {subject: place for place, subject in reversed(list(enumerate(windows.subjects)))}
    runs = [windows.run_indices[places[subject]] for subject in people]
    kind = np.float64 if task.is_regression else np.int64
    return Predictions(
        METHOD,
        task.label,
        task.classes,
        tuple(people),
        np.array([windows.labels[run] for run in runs], dtype=kind),
        outputs_of(means, task),
        tuple(windows.store.runs[run].site for run in runs),
        (fold,) * len(people),
    )


def subject_metrics(windows: EvaluationWindows, task: Task) -> Callable[[Any], dict[str, float]]:
    """`Trainer(compute_metrics=...)` that evaluates subjects, not windows."""
    from tablet_hf.evaluation.metrics import classification_metrics, regression_metrics

    judge = regression_metrics if task.is_regression else classification_metrics

    def compute(predictions: Any) -> dict[str, float]:
        logits = predictions.predictions[0] if isinstance(predictions.predictions, tuple) else predictions.predictions
        people = predictions_of(np.asarray(logits), windows, task, "validation")
        return judge(people.targets, people.outputs)

    return compute


def task_of_config(config: Any, store: Any, label: str | None = None, runs: Sequence[int | str] | None = None) -> Task:
    """The task that a fine-tuned model was trained on, its classes as the store has them.

    Args:
        runs: of the subjects who matter; None for the whole store.

    Raises:
        InputError: the model does not say what it predicts, it predicts several things at once, or these subjects are
        of
            other classes.
    """
    if config.num_labels > 1 and config.problem_type in ("regression", "multi_label_classification"):
        names = ", ".join(config.id2label.values())
        raise InputError(
            f"The model predicts {config.num_labels} things at once ({names}); judged are models of one label, so "
            "train one for each."
        )
    label = label or config.target_name
    if label is None:
        raise InputError("The model does not record what it predicts; name the phenotype with --label.")
    if config.problem_type == "regression":
        places = range(len(store.runs)) if runs is None else [store.index(run) for run in runs]
        texts = [value for value in (store.runs[place].phenotypes.get(label) for place in places) if _is_text(value)]
        if texts:
            raise InputError(f"{label}: {texts[0]!r} is no number, but the model predicts one; name another --label.")
        mean, std = config.target_mean or [0.0], config.target_std or [1.0]
        return Task(label, None, None, mean[0], std[0], "the model's config says so")
    names = [config.id2label[number] for number in range(config.num_labels)]
    if config.num_labels == 1:
        names = [config.negative_label, *names]
    known = {run.phenotypes.get(label) for run in store.runs}
    known = {value for value in known if value is not None and value == value}
    if names[0] is None:  # a model that was not made here: the other of two
        others = [value for value in known if str(value) != names[1]]
        if len(others) != 1:
            raise InputError(f"{label}: the model tells {names[1]!r} from one other class, but the store has {known}.")
        names[0] = str(others[0])
    by_name = {str(value): value for value in known}
    places = range(len(store.runs)) if runs is None else [store.index(run) for run in runs]
    there = {str(store.runs[place].phenotypes.get(label)) for place in places} & set(by_name)
    if unknown := sorted(there - set(names)):
        raise InputError(
            f"{label}: {unknown[0]!r} is none of the classes that the model knows, which are {', '.join(names)}; take "
            "such people out of the table of the split, or use another model."
        )
    return Task(label, tuple(by_name.get(name, name) for name in names), None, reason="the model's config says so")


def _is_text(value: Any) -> bool:
    return value is not None and (isinstance(value, bool) or not isinstance(value, Real))


def predict_subjects(
    model: Any,
    store: Any,
    runs: Sequence[int | str],
    task: Task,
    arguments: Any,
    window_frames: int | None = None,
    fold: str = "test",
) -> Predictions:
    """What a model says of the subjects of some runs, with the loader, devices and precision of `Trainer`.

    Args:
        model: a `TabletForSequenceClassification`.
        store: a `TokenDataset`.
        runs: places in `store.runs` or keys; those without a label are left out.
        task: what is predicted.
        arguments: `training_arguments`, of which batch size, precision and device count.
        window_frames: by default those that the model was trained on.
        fold: what to call the split.
    """
    frames = window_frames or model.config.num_frames
    windows = EvaluationWindows(store, frames, runs, task.label, classes=task.classes)
    logits = make_trainer(model, arguments, is_quiet=True).predict(windows).predictions
    if not np.isfinite(logits).all():
        subject = windows.subjects[int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])]
        raise InputError(f"{subject}: the model's answer is not a finite number; try another --precision.")
    return predictions_of(logits, windows, task, fold)
