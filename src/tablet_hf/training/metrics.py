"""How good predictions are: pure functions of arrays, and the `compute_metrics` that `Trainer` takes.

Binary labels are 0 and 1, scores any numbers that grow with the positive class.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = [
    "accuracy_interval",
    "accuracy_p_value",
    "binary_metrics",
    "chance_accuracy",
    "compute_binary_metrics",
    "compute_regression_metrics",
    "permutation_p_value",
    "positive_probabilities",
    "regression_metrics",
]


def binary_metrics(labels: np.ndarray, probabilities: np.ndarray, threshold: float = 0.5) -> dict[str, float]:
    """Accuracy, AUROC, F1, sensitivity and specificity of a binary classifier, each in [0, 1].

    Args:
        labels: `(n,)`, 0 or 1.
        probabilities: `(n,)`, of the positive class.
        threshold: from which probability on the positive class is predicted.

    Returns:
        A number for each name; NaN where it is not defined: AUROC, sensitivity or specificity of labels that lack a
        class, F1 where no positive is there and none is predicted.
    """
    labels, probabilities = _checked(labels, probabilities)
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1.")
    positive, predicted = labels == 1, probabilities >= threshold
    hits = np.count_nonzero(positive & predicted)
    return {
        "accuracy": float(np.mean(positive == predicted)),
        "auroc": _auroc(positive, probabilities),
        "f1": _share(2 * hits, np.count_nonzero(positive) + np.count_nonzero(predicted)),
        "sensitivity": _share(hits, np.count_nonzero(positive)),
        "specificity": _share(np.count_nonzero(~positive & ~predicted), np.count_nonzero(~positive)),
    }


def regression_metrics(targets: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Mean squared error, mean absolute error and Pearson correlation of `(n,)` predictions with their targets.

    The correlation is NaN where either does not vary.
    """
    targets, predictions = _checked(targets, predictions)
    error = predictions - targets
    varies = np.ptp(targets) > 0 and np.ptp(predictions) > 0
    return {
        "mse": float(np.mean(error**2)),
        "mae": float(np.mean(np.abs(error))),
        "pearson_r": float(np.corrcoef(targets, predictions)[0, 1]) if varies else float("nan"),
    }


# --- against chance


def chance_accuracy(labels: np.ndarray) -> float:
    """The accuracy of always naming the class that is more frequent in `(n,)` labels of 0 and 1."""
    share = float(np.mean(np.asarray(labels) == 1))
    return max(share, 1 - share)


def accuracy_interval(num_correct: int, num_people: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact (Clopper-Pearson) confidence interval of an accuracy."""
    from scipy.stats import binomtest

    interval = binomtest(num_correct, num_people).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def accuracy_p_value(num_correct: int, num_people: int, chance: float) -> float:
    """One-sided binomial p value: how often guessing with accuracy `chance` is right so often or more often."""
    from scipy.stats import binomtest

    return float(binomtest(num_correct, num_people, chance, alternative="greater").pvalue)


def permutation_p_value(
    labels: np.ndarray,
    scores: np.ndarray,
    statistic: Callable[[np.ndarray, np.ndarray], float] | None = None,
    num_permutations: int = 10_000,
    seed: int = 0,
) -> float:
    """One-sided permutation p value of what `statistic(labels, scores)` says; AUROC by default.

    The share of shuffled labels, the true ones counted in, that do as well: never 0, and at least
    `1 / (num_permutations + 1)` (Phipson & Smyth 2010, doi:10.2202/1544-6115.1585).
    """
    labels, scores = _checked(labels, scores)
    statistic = statistic or (lambda truth, values: _auroc(truth == 1, values))
    observed = statistic(labels, scores)
    rng = np.random.default_rng(seed)
    as_good = sum(statistic(rng.permutation(labels), scores) >= observed - 1e-12 for _ in range(num_permutations))
    return (as_good + 1) / (num_permutations + 1)


# --- for Trainer


def positive_probabilities(logits: np.ndarray) -> np.ndarray:
    """Probabilities `(n,)` of the positive class from logits `(n, 1)` (sigmoid) or `(n, 2)` (softmax, the second)."""
    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2 or logits.shape[1] not in (1, 2):
        raise ValueError(f"logits must have shape (n, 1) or (n, 2), not {logits.shape}.")
    odds = logits[:, -1] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
    return np.exp(-np.logaddexp(0, -odds))


def compute_binary_metrics(predictions: Any) -> dict[str, float]:
    """`Trainer(compute_metrics=...)` of a classifier of two classes, with one logit or two."""
    logits = predictions.predictions[0] if isinstance(predictions.predictions, tuple) else predictions.predictions
    return binary_metrics(np.asarray(predictions.label_ids).reshape(-1), positive_probabilities(logits))


def compute_regression_metrics(predictions: Any) -> dict[str, float]:
    """`Trainer(compute_metrics=...)` of a regression of one target, in its own unit."""
    values = predictions.predictions[0] if isinstance(predictions.predictions, tuple) else predictions.predictions
    return regression_metrics(np.asarray(predictions.label_ids).reshape(-1), np.asarray(values).reshape(-1))


# --- parts


def _checked(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise ValueError(f"Expected two arrays of shape (n,), n >= 1, got {first.shape} and {second.shape}.")
    return first, second


def _share(count: int, total: int) -> float:
    return count / total if total else float("nan")


def _auroc(positive: np.ndarray, scores: np.ndarray) -> float:
    """The share of pairs of a positive and a negative that the scores put in order; ties count half."""
    from scipy.stats import rankdata

    num_positive, num_negative = np.count_nonzero(positive), np.count_nonzero(~positive)
    if not num_positive or not num_negative:
        return float("nan")
    rank_sum = rankdata(scores)[positive].sum()
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))
