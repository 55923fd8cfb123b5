"""Metrics of thousands of resampled cohorts at once: bootstraps as weights of entries, permutations as sums.

A bootstrap draws subjects with replacement, so each draw is a weight for every entry: 0, 1, 2, ... A block of draws is
evaluated together from weights `(draws, n)`. One row of ones gives the plain metrics (`tablet_hf.evaluation.metrics`).
"""

from collections.abc import Iterator, Sequence

import numpy as np

__all__ = [
    "bootstrap_counts",
    "permutation_p_value",
    "predicted_classes",
    "weighted_classification_metrics",
    "weighted_regression_metrics",
]

# Numbers in one block of draws: 32 MB, with a few copies in memory at a time.
BLOCK_NUMBERS = 2**22


def bootstrap_counts(num_subjects: int, num_draws: int, seed: int) -> Iterator[np.ndarray]:
    """Draw subjects with replacement: blocks of counts `(draws, num_subjects)`, float64, rows sum to num_subjects."""
    rng = np.random.default_rng(seed)
    for size in _block_sizes(num_subjects, num_draws):
        drawn = rng.integers(num_subjects, size=(size, num_subjects)) + num_subjects * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * num_subjects)
        yield counts.reshape(size, num_subjects).astype(np.float64)


def permutation_p_value(
    targets: np.ndarray,
    merits: np.ndarray,
    subject_of_entry: np.ndarray,
    blocks: Sequence,
    num_permutations: int,
    seed: int,
) -> float:
    """Compute the share of permutations of the targets that fit the predictions as well as the true targets.

    Args:
        targets: `(n,)`, of each entry; int for classes, float64 for a regression.
        merits: what an entry adds to the statistic: `(n, classes)` for each class it might have, or `(n,)`, which is
            multiplied by its target.
        subject_of_entry: `(n,)`, index of the subject. Subjects of one block have equally many entries, which are
            exchanged in their order.
        blocks: `(subjects,)`; subjects exchange targets within their block.

    Returns:
        `(as good + 1) / (num_permutations + 1)` (Phipson & Smyth 2010, doi:10.2202/1544-6115.1585).
    """
    order = np.argsort(subject_of_entry, kind="stable")
    targets, merits, subjects = targets[order], merits[order], subject_of_entry[order]
    num_subjects, rows = int(subjects[-1]) + 1, np.arange(len(subjects))
    first = np.searchsorted(subjects, np.arange(num_subjects))
    nth = rows - first[subjects]

    def statistic(given: np.ndarray) -> np.ndarray:
        return (given * merits if merits.ndim == 1 else merits[rows, given]).sum(axis=-1)

    # Sums in another order differ by rounding; equal ones count as equal.
    tolerance = 1e-9 * np.abs(merits).max() * max(np.abs(targets).max(), 1)
    least, as_good = statistic(targets) - tolerance, 0
    rng = np.random.default_rng(seed)
    block_numbers = np.unique(np.asarray(blocks), return_inverse=True)[1]
    in_order = np.argsort(block_numbers, kind="stable")
    for size in _block_sizes(num_subjects, num_permutations):
        permuted = np.empty((size, num_subjects), dtype=int)
        # Both sides go through the blocks in the same order, the right one at random within each block.
        permuted[:, in_order] = np.argsort(block_numbers + rng.random((size, num_subjects)), axis=1)
        as_good += int(np.count_nonzero(statistic(targets[first[permuted[:, subjects]] + nth]) >= least))
    return (as_good + 1) / (num_permutations + 1)


def predicted_classes(probabilities: np.ndarray) -> np.ndarray:
    """Return the predicted class `(n,)`: of two the second from 0.5 on, of more the most probable."""
    is_binary = probabilities.shape[1] == 2
    return (probabilities[:, 1] >= 0.5).astype(int) if is_binary else probabilities.argmax(axis=1)


def weighted_classification_metrics(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Compute the metrics of a classifier for each row of weights.

    Args:
        labels: `(n,)`, numbers of classes.
        probabilities: `(n, classes)`.
        weights: `(draws, n)`, how often each entry counts.

    Returns:
        `(draws,)` for each name, NaN where not defined. AUROC and F1 are those of the positive class of two, or means
        over the classes, each against the rest. The Brier score of two classes is that of the second's probability, of
        more the sum over the classes.
    """
    num_classes = probabilities.shape[1]
    is_binary = num_classes == 2
    cells = np.zeros((len(labels), num_classes**2))
    cells[np.arange(len(labels)), labels * num_classes + predicted_classes(probabilities)] = 1
    confusion = (weights @ cells).reshape(-1, num_classes, num_classes)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    true, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    recalls, f1 = _ratio(hits, true), _ratio(2 * hits, true + predicted)
    scored = (1,) if is_binary else range(num_classes)
    aurocs = [_weighted_auroc(labels == number, probabilities[:, number], weights) for number in scored]
    errors = np.square(probabilities - np.eye(num_classes)[labels]).sum(axis=1) / (2 if is_binary else 1)
    total = weights.sum(axis=1)
    metrics = {
        "auroc": np.mean(aurocs, axis=0),
        "balanced_accuracy": recalls.mean(axis=1),
        "accuracy": _ratio(hits.sum(axis=1), total),
        "f1": f1[:, 1] if is_binary else f1.mean(axis=1),
    }
    if is_binary:
        metrics |= {"sensitivity": recalls[:, 1], "specificity": recalls[:, 0]}
    return metrics | {"brier": _ratio(weights @ errors, total)}


def weighted_regression_metrics(
    targets: np.ndarray, predictions: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Compute the metrics of a regression for each row of weights.

    Args:
        targets, predictions: `(n,)` float64.
        weights: `(draws, n)`, how often each entry counts.

    Returns:
        `(draws,)` for each name, NaN where not defined; slope and intercept are those of the target on the prediction.
    """
    # Centred, since squares of large numbers that hardly differ cancel.
    mean_target, mean_prediction = targets.mean(), predictions.mean()
    t, p, error = targets - mean_target, predictions - mean_prediction, predictions - targets
    sums = weights @ np.stack([np.ones(len(t)), t, p, t * t, p * p, t * p, error**2, np.abs(error)], axis=1)
    total = sums[:, 0]
    t, p, tt, pp, tp, squared, absolute = (_ratio(column, total) for column in sums.T[1:])
    variance, predicted_variance, covariance = tt - t * t, pp - p * p, tp - t * p
    # Rounding leaves a little of a variance that is zero.
    variance = np.where(variance > 1e-12 * tt, variance, 0)
    predicted_variance = np.where(predicted_variance > 1e-12 * pp, predicted_variance, 0)
    slope = _ratio(covariance, predicted_variance)
    return {
        "pearson_r": np.clip(_ratio(covariance, np.sqrt(variance * predicted_variance)), -1, 1),
        "r2": 1 - _ratio(squared, variance),
        "mae": absolute,
        "mse": squared,
        "slope": slope,
        "intercept": mean_target + t - slope * (mean_prediction + p),
    }


def _block_sizes(num_subjects: int, num_draws: int) -> Iterator[int]:
    largest = max(1, BLOCK_NUMBERS // num_subjects)
    for start in range(0, num_draws, largest):
        yield min(largest, num_draws - start)


def _ratio(numbers: np.ndarray, totals: np.ndarray) -> np.ndarray:
    return np.divide(numbers, totals, out=np.full(np.shape(numbers), np.nan), where=totals > 0)


def _weighted_auroc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The share of pairs of a positive and a negative that the scores order rightly, ties counted half: `(draws,)`."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)  # of each run of equal scores
    weights, positive = weights[:, order], positive[order]
    positives = np.add.reduceat(weights * positive, starts, axis=1)
    negatives = np.add.reduceat(weights * ~positive, starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    return _ratio((positives * below).sum(axis=1), positives.sum(axis=1) * negatives.sum(axis=1))
