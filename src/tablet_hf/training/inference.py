"""Predictions of subjects from a model and the windows of their runs."""

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np

from tablet_hf.datasets.tasks import Task
from tablet_hf.datasets.windows import EvaluationWindows, average_by
from tablet_hf.errors import InputError
from tablet_hf.evaluation.metrics import class_probabilities, classification_metrics, regression_metrics
from tablet_hf.evaluation.predictions import Predictions
from tablet_hf.sources.records import phenotype_values
from tablet_hf.training.trainer import make_trainer

__all__ = ["METHOD", "predict_subjects", "predictions_of", "subject_metrics", "task_of_config"]

METHOD = "TABLeT"


def predictions_of(logits: np.ndarray, windows: EvaluationWindows, task: Task, fold: str) -> Predictions:
    """Average each subject's logits over windows and runs, as the released code does, and predict from them.

    Args:
        logits: `(windows, labels)`, in the order of `windows`; of a regression in the unit of the target.
        windows: with a label.
        fold: name of the split.
    """
    subjects, means = average_by(logits, windows.subjects)
    first_run = dict(zip(reversed(windows.subjects), reversed(windows.run_indices), strict=True))
    runs = [first_run[subject] for subject in subjects]
    return Predictions(
        METHOD,
        task.label,
        task.classes,
        tuple(subjects),
        np.array([windows.labels[run] for run in runs], dtype=np.float64 if task.is_regression else np.int64),
        means[:, 0] if task.is_regression else class_probabilities(means),
        tuple(windows.store.runs[run].site for run in runs),
        (fold,) * len(subjects),
    )


def subject_metrics(windows: EvaluationWindows, task: Task) -> Callable[[Any], dict[str, float]]:
    """Make a `Trainer(compute_metrics=...)` that evaluates subjects, not windows."""
    metrics = regression_metrics if task.is_regression else classification_metrics

    def compute(predictions: Any) -> dict[str, float]:
        logits = predictions.predictions[0] if isinstance(predictions.predictions, tuple) else predictions.predictions
        subjects = predictions_of(logits, windows, task, "validation")
        return metrics(subjects.targets, subjects.outputs)

    return compute


def task_of_config(config: Any, store: Any, label: str | None = None, runs: Sequence[int] | None = None) -> Task:
    """Return the task a fine-tuned model was trained on, with the classes as the store has them.

    Args:
        config: `TabletConfig` of the model.
        store: a `TokenDataset`.
        label: name of the phenotype; None for the one that the model records.
        runs: indices of runs whose values must be among the classes; None for all.

    Raises:
        InputError: the model does not record what it predicts, predicts several labels, or other classes.
    """
    if config.num_labels > 1 and config.problem_type in ("regression", "multi_label_classification"):
        raise InputError(f"the model predicts {config.num_labels} labels at once; evaluate models of one label.")
    label = label or config.target_name
    if label is None:
        raise InputError("the model does not record what it predicts; name the phenotype (command line: --label).")
    values = phenotype_values(store.runs, label, store.folder)
    found = {values[run] for run in (range(len(values)) if runs is None else runs)} - {None}
    reason = "recorded in the model"
    if config.problem_type == "regression":
        if texts := [value for value in found if isinstance(value, bool) or not isinstance(value, Real)]:
            raise InputError(f"{label}: {texts[0]!r} is not a number, but the model predicts numbers; name another.")
        mean, std = config.target_mean or [0.0], config.target_std or [1.0]
        return Task(label, None, None, mean[0], std[0], reason)
    names = [config.id2label[number] for number in range(config.num_labels)]
    if config.num_labels == 1:
        if config.negative_label is None:
            raise InputError(f"the config of the model names {names[0]!r}, but not the other class (negative_label).")
        names = [config.negative_label, *names]
    if unknown := {str(value) for value in found} - set(names):
        raise InputError(
            f"{label}: {min(unknown)!r} is not a class of the model ({', '.join(names)}); leave such subjects out of "
            "the split, or use another model."
        )
    by_name = {str(value): value for value in values}
    return Task(label, tuple(by_name.get(name, name) for name in names), None, reason=reason)


def predict_subjects(
    model: Any, store: Any, runs: Sequence[int | str], task: Task, arguments: Any, fold: str = "test"
) -> Predictions:
    """Predict the subjects of some runs, with the loader, devices and precision of `Trainer`.

    Args:
        model: a `TabletForSequenceClassification`.
        store: a `TokenDataset`.
        runs: indices in `store.runs`, or keys; those without a label are left out.
        task: what is predicted.
        arguments: `TabletTrainingArguments`; without `window_frames` windows are as long as those in training.
        fold: name of the split.

    Raises:
        InputError: predictions that are not finite.
    """
    frames = arguments.window_frames or model.config.num_frames
    windows = EvaluationWindows(store, frames, runs, task.label, classes=task.classes)
    logits = make_trainer(model, arguments).predict(windows).predictions
    if not np.isfinite(logits).all():
        subject = windows.subjects[int(np.isfinite(logits).all(axis=1).argmin())]
        raise InputError(f"{subject}: the model's prediction is not finite; try another precision.")
    return predictions_of(logits, windows, task, fold)
