"""Thousands of resampled evaluations at once: bootstraps over subjects as weights, permutations as sums.

A bootstrap draws subjects with replacement, so it says how often each counts. All metrics are computed for a block of
draws together from those weights, `(draws, n)`; they are those of `tablet_hf.evaluation.metrics` on the repeated rows.
A subject who stands in several folds is drawn with all entries or none. A permutation hands each subject the target of
another; AUROC, accuracy and correlation then order the permutations by a plain sum over subjects.
"""

from collections.abc import Iterator, Sequence

import numpy as np

__all__ = [
    "bootstrap_counts",
    "shuffled_p_value",
    "shuffles",
    "weighted_classification_metrics",
    "weighted_regression_metrics",
]

BLOCK_NUMBERS = 2**22
"""Numbers in one block of draws: 32 MB, with some copies of them in memory at a time."""


def bootstrap_counts(num_subjects: int, num_draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each subject is drawn, block by block: `(draws, num_subjects)` float64, rows sum to num_subjects."""
    rng = np.random.default_rng(seed)
    for size in _block_sizes(num_subjects, num_draws):
        drawn = rng.integers(num_subjects, size=(size, num_subjects)) + num_subjects * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * num_subjects)
        yield counts.reshape(size, num_subjects).astype(np.float64)


def shuffles(num_subjects: int, blocks: Sequence | None, num_draws: int, seed: int) -> Iterator[np.ndarray]:
    """Whose target each subject is given, in blocks of draws: each `(draws, num_subjects)` places of subjects.

    Args:
        blocks: `(num_subjects,)`, subjects are only exchanged with subjects of the same block; None for one block.
    """
    rng = np.random.default_rng(seed)
    numbers = np.zeros(num_subjects) if blocks is None else np.unique(np.asarray(blocks), return_inverse=True)[1]
    in_order = np.argsort(numbers, kind="stable")
    for size in _block_sizes(num_subjects, num_draws):
        order = np.argsort(numbers + rng.random((size, num_subjects)), axis=1)
        shuffled = np.empty_like(order)
        shuffled[:, in_order] = order  # both go through the blocks in the same order
        yield shuffled


def shuffled_p_value(
    targets: np.ndarray,
    merits: np.ndarray,
    person_of_entry: np.ndarray,
    blocks: Sequence | None,
    num_permutations: int,
    seed: int,
) -> float:
    """How often shuffled targets suit the predictions as well as the true ones, the true ones counted in.

    Args:
        targets: `(n,)`, of each entry; int for classes, float64 for a regression.
        merits: what an entry adds to the statistic: `(n, classes)` for each class it might be, or `(n,)`, to be
            multiplied with its target.
        person_of_entry: `(n,)`, places of subjects. All subjects of one block have as many entries, and those of each
            subject are in the order in which they are to be exchanged.
        blocks: see `shuffles`.

    Returns:
        `(as good + 1) / (num_permutations + 1)` (Phipson & Smyth 2010, doi:10.2202/1544-6115.1585).
    """
    in_order = np.argsort(person_of_entry, kind="stable")
    targets, merits, people = targets[in_order], merits[in_order], person_of_entry[in_order]
    first = np.searchsorted(people, np.arange(people[-1] + 1))
    nth = np.arange(len(people)) - first[people]

    def statistic(given: np.ndarray) -> np.ndarray:
        values = given * merits if merits.ndim == 1 else merits[np.arange(len(people)), given]
        return values.sum(axis=-1)

    observed = statistic(targets)
    # Sums in another order differ by rounding; what is equal shall count as equal.
    tolerance = 1e-9 * max(float(np.abs(merits).max() * np.abs(targets).max()), float(np.abs(merits).max()))
    as_good = 0
    for whose in shuffles(len(first), blocks, num_permutations, seed):
        given = targets[first[whose[:, people]] + nth]
        as_good += int(np.count_nonzero(statistic(given) >= observed - tolerance))
    return (as_good + 1) / (num_permutations + 1)


def weighted_classification_metrics(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """`metrics.classification_metrics`, and the Brier score, where each entry counts as often as its weight says.

    Args:
        labels: `(n,)`, numbers of classes.
        probabilities: `(n, classes)`.
        weights: `(draws, n)`, whole numbers or not.

    Returns:
        For each name `(draws,)`; NaN where not defined. The Brier score of two classes is that of the second's
        probability, of more the sum over the classes.
    """
    num_classes = probabilities.shape[1]
    is_binary = num_classes == 2
    predicted = (probabilities[:, 1] >= 0.5).astype(int) if is_binary else probabilities.argmax(axis=1)
    cells = np.zeros((len(labels), num_classes**2))
    cells[np.arange(len(labels)), labels * num_classes + predicted] = 1
    confusion = (weights @ cells).reshape(-1, num_classes, num_classes)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    true, named = confusion.sum(axis=2), confusion.sum(axis=1)
    recalls, f1 = _ratio(hits, true), _ratio(2 * hits, true + named)
    scored = (1,) if is_binary else range(num_classes)
    auroc = np.mean([_weighted_auroc(labels == number, probabilities[:, number], weights) for number in scored], axis=0)
    errors = np.square(probabilities - np.eye(num_classes)[labels]).sum(axis=1) / (2 if is_binary else 1)
    total = weights.sum(axis=1)
    metrics = {
        "accuracy": _ratio(hits.sum(axis=1), total),
        "balanced_accuracy": recalls.mean(axis=1),
        "auroc": auroc,
        "f1": f1[:, 1] if is_binary else f1.mean(axis=1),
    }
    if is_binary:
        metrics |= {"sensitivity": recalls[:, 1], "specificity": recalls[:, 0]}
    return metrics | {"brier": _ratio(weights @ errors, total)}


def weighted_regression_metrics(
    targets: np.ndarray, predictions: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """`metrics.regression_metrics`, and slope and intercept of the target on the prediction; see above.

    Args:
        targets, predictions: `(n,)` float64.
        weights: `(draws, n)`.
    """
    # About their means, since squares of large numbers that hardly differ cancel.
    middle, middle_predicted = targets.mean(), predictions.mean()
    t, p, error = targets - middle, predictions - middle_predicted, predictions - targets
    sums = weights @ np.stack([np.ones(len(t)), t, p, t * t, p * p, t * p, error**2, np.abs(error)], axis=1)
    total = sums[:, 0]
    t, p, tt, pp, tp, squared, absolute = (_ratio(column, total) for column in sums.T[1:])
    variance, variance_predicted, covariance = tt - t * t, pp - p * p, tp - t * p
    # What is left by rounding of a variance that is none.
    variance = np.where(variance > 1e-12 * tt, variance, 0)
    variance_predicted = np.where(variance_predicted > 1e-12 * pp, variance_predicted, 0)
    slope = _ratio(covariance, variance_predicted)
    return {
        "mse": squared,
        "mae": absolute,
        "pearson_r": np.clip(_ratio(covariance, np.sqrt(variance * variance_predicted)), -1, 1),
        "r2": 1 - _ratio(squared, variance),
        "slope": slope,
        "intercept": middle + t - slope * (middle_predicted + p),
    }


# --- parts


def _block_sizes(num_subjects: int, num_draws: int) -> Iterator[int]:
    largest = max(1, BLOCK_NUMBERS // num_subjects)
    for start in range(0, num_draws, largest):
        yield min(largest, num_draws - start)


def _ratio(numbers: np.ndarray, totals: np.ndarray) -> np.ndarray:
    return np.divide(numbers, totals, out=np.full(np.shape(numbers), np.nan), where=totals > 0)


def _weighted_auroc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The share of pairs of a positive and a negative that the scores put in order, ties counted half: `(draws,)`."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)  # of each run of equal scores
    weights, positive = weights[:, order], positive[order]
    positives = np.add.reduceat(weights * positive, starts, axis=1)
    negatives = np.add.reduceat(weights * ~positive, starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    return _ratio((positives * below).sum(axis=1), positives.sum(axis=1) * negatives.sum(axis=1))
