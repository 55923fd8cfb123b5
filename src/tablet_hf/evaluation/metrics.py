"""How good predictions are, by scikit-learn and scipy: pure functions of arrays, and `compute_metrics` for `Trainer`.

A metric that is not defined is NaN, without a warning: the AUROC of subjects who are all of one class, the correlation
with a constant, everything where a prediction is no finite number. The same metrics are `evaluate` modules that need
no network:

    metric = load_metric("tablet_classification")
    metric.compute(predictions=[0.9, 0.2, 0.6], references=[1, 0, 0])
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tablet_hf.errors import InputError

__all__ = [
    "accuracy_interval",
    "accuracy_p_value",
    "binary_metrics",
    "chance_accuracy",
    "class_probabilities",
    "classification_metrics",
    "compute_binary_metrics",
    "compute_multiclass_metrics",
    "compute_regression_metrics",
    "load_metric",
    "metrics_for",
    "multiclass_metrics",
    "permutation_p_value",
    "positive_probabilities",
    "regression_metrics",
]

EVALUATE_MODULES = Path(__file__).parent / "evaluate_modules"


def binary_metrics(labels: np.ndarray, probabilities: np.ndarray, threshold: float = 0.5) -> dict[str, float]:
    """Accuracy, AUROC, F1, sensitivity, specificity and their mean, the balanced accuracy; each in [0, 1].

    Args:
        labels: `(n,)`, 0 or 1.
        probabilities: `(n,)`, of the positive class.
        threshold: from which probability on the positive class is predicted.

    Returns:
        A number for each name; NaN where it is not defined: AUROC, balanced accuracy, sensitivity or specificity of
        labels that lack a class, F1 where no positive is there and none is predicted.
    """
    from sklearn.metrics import accuracy_score, f1_score

    labels, probabilities = _checked(labels, probabilities)
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1.")
    if not np.isfinite(probabilities).all():
        names = ("accuracy", "balanced_accuracy", "auroc", "f1", "sensitivity", "specificity")
        return dict.fromkeys(names, float("nan"))
    labels, predicted = labels.astype(int), (probabilities >= threshold).astype(int)
    specificity, sensitivity = _recalls(labels, predicted, 2)
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "auroc": _auroc(labels, probabilities),
        "f1": float(f1_score(labels, predicted, zero_division=np.nan)),
        "sensitivity": sensitivity,
        "specificity": specificity,
    }


def multiclass_metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy (the mean of the classes' recalls), macro AUROC and macro F1; each in [0, 1].

    AUROC and F1 are those of each class against all others, averaged with equal weights.

    Args:
        labels: `(n,)`, numbers of classes from 0 on.
        probabilities: `(n, classes)`; the largest is predicted, of equal ones the first.

    Returns:
        A number for each name; NaN where it is not defined for one of the classes.
    """
    from sklearn.metrics import accuracy_score, f1_score

    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ValueError(
            f"Expected labels (n,) and probabilities (n, classes), n >= 1, got {labels.shape} and "
            f"{probabilities.shape}."
        )
    num_classes = probabilities.shape[1]
    if not np.isin(labels, range(num_classes)).all():
        raise ValueError(f"labels must be whole numbers from 0 to {num_classes - 1}.")
    if not np.isfinite(probabilities).all():
        return dict.fromkeys(("accuracy", "balanced_accuracy", "auroc", "f1"), float("nan"))
    labels, predicted = labels.astype(int), probabilities.argmax(axis=1)
    f1 = f1_score(labels, predicted, labels=range(num_classes), average=None, zero_division=np.nan)
    one_against_rest = [
        _auroc((labels == number).astype(int), probabilities[:, number]) for number in range(num_classes)
    ]
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "balanced_accuracy": float(np.mean(_recalls(labels, predicted, num_classes))),
        "auroc": float(np.mean(one_against_rest)),
        "f1": float(np.mean(f1)),
    }


def classification_metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """`binary_metrics` of `(n,)` probabilities of the positive class or of `(n, 2)`, else `multiclass_metrics`."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim == 2 and probabilities.shape[1] == 2:
        probabilities = probabilities[:, 1]
    return (binary_metrics if probabilities.ndim == 1 else multiclass_metrics)(labels, probabilities)


def regression_metrics(targets: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Mean squared and mean absolute error, Pearson correlation and R2 of `(n,)` predictions with their targets.

    R2 is 1 - squared error / squared deviation from the mean of these targets: under 0 where naming that mean would
    have been better. It is NaN where the targets do not vary, the correlation where either does not.
    """
    from scipy.stats import pearsonr
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    targets, predictions = _checked(targets, predictions)
    if not (np.isfinite(targets).all() and np.isfinite(predictions).all()):
        return dict.fromkeys(("mse", "mae", "pearson_r", "r2"), float("nan"))
    targets_vary = np.ptp(targets) > 0
    both_vary = targets_vary and np.ptp(predictions) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's word on what nearly is constant
        r = float(pearsonr(targets, predictions).statistic) if both_vary else float("nan")
    return {
        "mse": float(mean_squared_error(targets, predictions)),
        "mae": float(mean_absolute_error(targets, predictions)),
        "pearson_r": r,
        "r2": float(r2_score(targets, predictions)) if targets_vary else float("nan"),
    }


# --- against chance


def chance_accuracy(labels: np.ndarray) -> float:
    """The accuracy of always naming the class that is most frequent in `(n,)` labels."""
    _, counts = np.unique(labels, return_counts=True)
    return float(counts.max() / counts.sum())


def accuracy_interval(num_correct: int, num_subjects: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact (Clopper-Pearson) confidence interval of an accuracy."""
    from scipy.stats import binomtest

    interval = binomtest(num_correct, num_subjects).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def accuracy_p_value(num_correct: int, num_subjects: int, chance: float) -> float:
    """One-sided binomial p value: how often guessing with accuracy `chance` is right so often or more often."""
    from scipy.stats import binomtest

    return float(binomtest(num_correct, num_subjects, chance, alternative="greater").pvalue)


def permutation_p_value(labels: np.ndarray, scores: np.ndarray, num_permutations: int = 10_000, seed: int = 0) -> float:
    """One-sided permutation p value of the AUROC of `(n,)` scores for `(n,)` labels of 0 and 1.

    The share of shuffled labels, the true ones counted in, that do as well: never 0, and at least
    `1 / (num_permutations + 1)` (Phipson & Smyth 2010, doi:10.2202/1544-6115.1585). NaN where there is no AUROC.
    """
    from scipy.stats import rankdata

    from tablet_hf.evaluation.resampling import shuffled_p_value

    labels, scores = _checked(labels, scores)
    if len(np.unique(labels)) < 2 or not np.isfinite(scores).all():
        return float("nan")
    # With as many positives in every shuffle, the AUROC grows with the sum of their ranks and with nothing else.
    merits = np.stack([np.zeros(len(scores)), rankdata(scores)], axis=1)
    return shuffled_p_value(labels.astype(int), merits, np.arange(len(labels)), None, num_permutations, seed)


# --- for Trainer


def positive_probabilities(logits: np.ndarray) -> np.ndarray:
    """Probabilities `(n,)` of the positive class from logits `(n, 1)` (sigmoid) or `(n, 2)` (softmax, the second)."""
    from scipy.special import expit

    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2 or logits.shape[1] not in (1, 2):
        raise ValueError(f"logits must have shape (n, 1) or (n, 2), not {logits.shape}.")
    return expit(logits[:, -1] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0])


def class_probabilities(logits: np.ndarray) -> np.ndarray:
    """Probabilities `(n, classes)` from logits `(n, 1)` (sigmoid, the second class of two) or `(n, classes)`."""
    from scipy.special import softmax

    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2 or not logits.shape[1]:
        raise ValueError(f"logits must have shape (n, classes), not {logits.shape}.")
    if logits.shape[1] == 1:
        positive = positive_probabilities(logits)
        return np.stack([1 - positive, positive], axis=1)
    return softmax(logits, axis=1)


def compute_binary_metrics(predictions: Any) -> dict[str, float]:
    """`Trainer(compute_metrics=...)` of a classifier of two classes, with one logit or two."""
    logits, labels = _of_trainer(predictions)
    return binary_metrics(labels.reshape(-1), positive_probabilities(logits))


def compute_multiclass_metrics(predictions: Any) -> dict[str, float]:
    """`Trainer(compute_metrics=...)` of a classifier of several classes, a logit each."""
    logits, labels = _of_trainer(predictions)
    return multiclass_metrics(labels.reshape(-1), class_probabilities(logits))


def compute_regression_metrics(predictions: Any) -> dict[str, float]:
    """`Trainer(compute_metrics=...)` of a regression of one target, in its own unit."""
    values, targets = _of_trainer(predictions)
    return regression_metrics(targets.reshape(-1), values.reshape(-1))


def metrics_for(config: Any) -> Callable[[Any], dict[str, float]]:
    """The `compute_metrics` that suits what a `TabletConfig` learns.

    Raises:
        InputError: no problem type, several targets, or several labels that do not exclude each other.
    """
    kind, num_labels = config.problem_type, config.num_labels
    if kind == "regression" and num_labels == 1:
        return compute_regression_metrics
    if (kind, num_labels) in (("multi_label_classification", 1), ("single_label_classification", 2)):
        return compute_binary_metrics
    if kind == "single_label_classification" and num_labels > 2:
        return compute_multiclass_metrics
    raise InputError(
        f"problem_type {kind!r} with {num_labels} labels: metrics are for one target, for two classes or for several "
        "that exclude each other; set problem_type and num_labels of the configuration."
    )


# --- for evaluate


def load_metric(name: str) -> Any:
    """An `evaluate.EvaluationModule` that computes the metrics above, from the files of this package: no network.

    Args:
        name: "tablet_classification" (predictions: probabilities, references: numbers of classes) or
            "tablet_regression".

    Raises:
        InputError: there is no such module.
    """
    names = sorted(path.parent.name for path in EVALUATE_MODULES.glob("*/*.py"))
    if name not in names:
        raise InputError(f"{name}: there is no such metric; there are {' and '.join(names)}.")
    import evaluate

    return evaluate.load(str(EVALUATE_MODULES / name))


# --- parts


def _checked(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise ValueError(f"Expected two arrays of shape (n,), n >= 1, got {first.shape} and {second.shape}.")
    return first, second


def _of_trainer(predictions: Any) -> tuple[np.ndarray, np.ndarray]:
    outputs = predictions.predictions
    return np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs), np.asarray(predictions.label_ids)


def _recalls(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> list[float]:
    from sklearn.metrics import recall_score

    recalls = recall_score(labels, predicted, labels=range(num_classes), average=None, zero_division=np.nan)
    return [float(recall) for recall in recalls]


def _auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores)) if 0 < labels.sum() < len(labels) else float("nan")
