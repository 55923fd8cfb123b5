"""Metrics of predictions.

A metric that is not defined is NaN, without a warning: the AUROC of subjects of one class, the correlation with a
constant, everything where a prediction is not finite. The same metrics are `evaluate` modules that need no network:

    metric = load_metric("tablet_classification")
    metric.compute(predictions=[0.9, 0.2, 0.6], references=[1, 0, 0])
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tablet_hf.errors import InputError
from tablet_hf.evaluation.resampling import weighted_classification_metrics, weighted_regression_metrics

__all__ = [
    "accuracy_interval",
    "class_probabilities",
    "classification_metrics",
    "load_metric",
    "regression_metrics",
]

EVALUATE_MODULES = Path(__file__).parent / "evaluate_modules"


def classification_metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Compute AUROC, balanced accuracy, accuracy and F1, for two classes also sensitivity and specificity.

    With more than two classes the most probable one is predicted, and AUROC and F1 are means over the classes, each
    against the rest.

    Args:
        labels: `(n,)`, numbers of classes from 0 on.
        probabilities: `(n, classes)`, or `(n,)` of the positive class of two, predicted from 0.5 on.

    Returns:
        A number in [0, 1] for each name, or NaN.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim == 1:
        probabilities = np.stack([1 - probabilities, probabilities], axis=1)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ValueError(
            f"Expected labels (n,) and probabilities (n, classes), got {labels.shape} and {probabilities.shape}."
        )
    if not np.isin(labels, range(probabilities.shape[1])).all():
        raise ValueError(f"labels must be whole numbers from 0 to {probabilities.shape[1] - 1}.")
    found = _unweighted(weighted_classification_metrics, labels.astype(int), probabilities)
    del found["brier"]
    return found


def regression_metrics(targets: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Compute Pearson correlation, R2, mean absolute and mean squared error of `(n,)` predictions.

    R2 is 1 - squared error / squared deviation from the mean of these targets; it is negative where predicting that
    mean would have been better.
    """
    targets, predictions = np.asarray(targets, dtype=np.float64), np.asarray(predictions, dtype=np.float64)
    if targets.ndim != 1 or targets.shape != predictions.shape or not len(targets):
        raise ValueError(f"Expected two arrays of shape (n,), got {targets.shape} and {predictions.shape}.")
    found = _unweighted(weighted_regression_metrics, targets, predictions)
    return {name: found[name] for name in ("pearson_r", "r2", "mae", "mse")}


def accuracy_interval(num_correct: int, num_subjects: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute the exact binomial (Clopper-Pearson) confidence interval of an accuracy."""
    from scipy.stats import binomtest

    interval = binomtest(num_correct, num_subjects).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def class_probabilities(logits: np.ndarray) -> np.ndarray:
    """Convert logits to probabilities `(n, classes)`, float64.

    Args:
        logits: `(n, 1)`, for the second of two classes (sigmoid), or `(n, classes)` (softmax).
    """
    from scipy.special import softmax

    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2 or not logits.shape[1]:
        raise ValueError(f"logits must have shape (n, classes), not {logits.shape}.")
    return softmax(np.pad(logits, ((0, 0), (1, 0))) if logits.shape[1] == 1 else logits, axis=1)


def load_metric(name: str) -> Any:
    """Load an `evaluate.EvaluationModule` with the metrics above from the files of this package.

    Args:
        name: "tablet_classification" (predictions: probabilities, references: numbers of classes) or
            "tablet_regression".

    Raises:
        InputError: no such module.
    """
    names = sorted(path.parent.name for path in EVALUATE_MODULES.glob("*/*.py"))
    if name not in names:
        raise InputError(f"{name}: no such metric; choose {' or '.join(names)}.")
    import evaluate

    return evaluate.load(str(EVALUATE_MODULES / name))


def _unweighted(
    compute: Callable[..., dict[str, np.ndarray]], truth: np.ndarray, outputs: np.ndarray
) -> dict[str, float]:
    """Metrics of entries that all count once; NaN for the outputs of a training that diverged."""
    is_finite = np.isfinite(truth).all() and np.isfinite(outputs).all()
    found = compute(truth, outputs if is_finite else np.zeros_like(outputs), np.ones((1, len(truth))))
    return {name: float(values[0]) if is_finite else float("nan") for name, values in found.items()}
