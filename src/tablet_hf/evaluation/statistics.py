"""Evaluate predictions: bootstrap intervals, p values, sites, folds, calibration, paired comparison of methods.

    evaluation = evaluate_predictions(predictions)
    evaluation.metrics["auroc"]                       # Estimate(value=0.71, low=0.6, high=0.81, ...)
    compare(predictions, baseline).metrics["auroc"]   # the difference on the same subjects

Intervals are percentile bootstraps over subjects (95%): models and splits are held fixed, so they cover the choice of
test subjects and nothing else. A subject in several folds is drawn with all entries or none.

The permutation p value is one-sided. Subjects exchange targets only with subjects of the same folds, so that what
differs between folds (their models, and where a site is left out, the site) does not count as skill.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np

from tablet_hf.errors import InputError
from tablet_hf.evaluation.metrics import accuracy_interval
from tablet_hf.evaluation.predictions import Predictions, check_same_label
from tablet_hf.evaluation.resampling import (
    bootstrap_counts,
    permutation_p_value,
    predicted_classes,
    weighted_classification_metrics,
    weighted_regression_metrics,
)

__all__ = [
    "CalibrationBin",
    "Comparison",
    "Estimate",
    "Evaluation",
    "Fold",
    "Site",
    "as_json",
    "compare",
    "evaluate_predictions",
    "main_metric",
    "on_shared_subjects",
]

CONFIDENCE = 0.95
CALIBRATION = ("brier", "slope", "intercept")

# With fewer subjects an interval is wide, and a percentile bootstrap still makes it too narrow (Hesterberg 2015).
FEW_SUBJECTS = 30
FEW_OF_A_CLASS = 10
MIN_SITE_SUBJECTS = 10  # smaller sites are counted but not evaluated

# Where a larger share of the draws lacks a metric, the others are no fair sample: there is no interval.
MAX_UNDEFINED = 0.1

# The reliability curve has as many bins of equally many entries as have ten each, ten at most.
MAX_BINS, MIN_BIN_ENTRIES = 10, 10


@dataclass(frozen=True)
class Estimate:
    """A metric, its 95% interval (NaN where there is none), and the share of draws in which it is not defined."""

    value: float
    low: float = math.nan
    high: float = math.nan
    undefined: float = 0.0


@dataclass(frozen=True)
class Site:
    """The subjects of one site; `name` is None where the site is unknown, `metrics` is empty for a small site."""

    name: str | None
    num_subjects: int
    metrics: Mapping[str, Estimate]
    note: str = ""


@dataclass(frozen=True)
class Fold:
    """The subjects of one fold, and the metrics on them."""

    name: str
    num_subjects: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class CalibrationBin:
    """`count` entries of similar probability: its mean, and the share that came true with its exact 95% interval."""

    predicted: float
    observed: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of one method's predictions.

    Attributes:
        num_entries: an entry is a subject in a fold.
        main_metric: the metric of the p value and of comparisons.
        metrics: of all entries, see `tablet_hf.evaluation.metrics`.
        chance: what the best constant guess reaches on these subjects.
        p_value: of the main metric, by permutation; NaN where it is not defined.
        by_site, by_fold: sites in alphabetical order (none where none is known), folds as they came.
        over_folds: mean, sample standard deviation and number of folds for each metric.
        confusion: `(classes, classes)` counts of entries, rows are true classes; None for a regression.
        calibration: for classes the Brier score and, without interval, the expected calibration error; for a regression
            slope and intercept of the target on the prediction, ideally 1 and 0.
        reliability: of two classes the probability of the positive one, of more that of the predicted one.
        notes: warnings for the reader, a sentence each.
    """

    method: str
    label: str
    classes: tuple[Any, ...] | None
    num_subjects: int
    num_entries: int
    main_metric: str
    metrics: Mapping[str, Estimate]
    chance: Mapping[str, float]
    p_value: float
    by_site: tuple[Site, ...]
    by_fold: tuple[Fold, ...]
    over_folds: Mapping[str, Mapping[str, float]]
    confusion: np.ndarray | None
    calibration: Mapping[str, Estimate]
    reliability: tuple[CalibrationBin, ...]
    notes: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def main(self) -> Estimate:
        return self.metrics[self.main_metric]


@dataclass(frozen=True)
class Comparison:
    """The difference of two methods on the same subjects.

    Attributes:
        first, second: names of the methods.
        num_subjects, num_left_out: subjects predicted by both methods, and by one only.
        metrics: the first method's minus the second's. For mae, mse and brier less is better.
        p_value: of the difference in the main metric, two-sided: twice the share of draws in which it is 0 or has the
            rarer sign, these subjects counted in; NaN without an interval.
    """

    first: str
    second: str
    num_subjects: int
    num_left_out: int
    main_metric: str
    p_value: float
    metrics: Mapping[str, Estimate]

    @property
    def main(self) -> Estimate:
        return self.metrics[self.main_metric]


def evaluate_predictions(
    predictions: Predictions, num_bootstraps: int = 2000, num_permutations: int = 2000, seed: int = 0
) -> Evaluation:
    """Evaluate the predictions of one method.

    The same subjects, seed and number of bootstraps give the same draws for every method.

    Raises:
        InputError: outputs that are not finite or no probabilities, or a subject twice in one fold.
    """
    import pandas as pd
    from sklearn.metrics import confusion_matrix

    _check(predictions)
    estimates = _estimates(predictions, num_bootstraps, seed)
    calibration = {name: estimate for name, estimate in estimates.items() if name in CALIBRATION}
    confusion, reliability = None, ()
    if not predictions.is_regression:
        predicted = predicted_classes(predictions.outputs)
        confusion = confusion_matrix(predictions.targets, predicted, labels=range(len(predictions.classes)))
        reliability = tuple(_reliability(predictions))
        error = sum(part.count * abs(part.observed - part.predicted) for part in reliability) / len(predictions)
        calibration["ece"] = Estimate(float(error))
    by_fold = []
    for name in dict.fromkeys(predictions.folds):
        there = predictions.chosen([fold == name for fold in predictions.folds])
        by_fold.append(Fold(name, len(set(there.subjects)), _without_calibration(_values(there))))
    metrics = _without_calibration(estimates)
    return Evaluation(
        method=predictions.method,
        label=predictions.label,
        classes=predictions.classes,
        num_subjects=len(set(predictions.subjects)),
        num_entries=len(predictions),
        main_metric=main_metric(predictions),
        metrics=metrics,
        chance=_chance(predictions),
        p_value=_p_value(predictions, num_permutations, seed),
        by_site=tuple(_by_site(predictions, num_bootstraps, seed)),
        by_fold=tuple(by_fold),
        over_folds={
            name: {"mean": float(column.mean()), "std": float(column.std()), "num_folds": int(column.count())}
            for name, column in pd.DataFrame([fold.metrics for fold in by_fold]).items()
        },
        confusion=confusion,
        calibration=calibration,
        reliability=reliability,
        notes=tuple(_notes(predictions, metrics)),
        settings={
            "confidence": CONFIDENCE,
            "num_bootstraps": num_bootstraps,
            "num_permutations": num_permutations,
            "seed": seed,
        },
    )


def compare(first: Predictions, second: Predictions, num_bootstraps: int = 2000, seed: int = 0) -> Comparison:
    """Compare two methods on the subjects (and folds) that both predicted, with the same draws for both.

    Raises:
        InputError: see `on_shared_subjects`.
    """
    num_all = len({*first.subjects, *second.subjects})
    first, second = on_shared_subjects([first, second])
    num_subjects, main = len(set(first.subjects)), main_metric(first)
    values, others = _values(first), _values(second)
    draws, other_draws = (_draws(each, num_bootstraps, seed) for each in (first, second))
    differences = {name: draws[name] - other_draws[name] for name in draws if name not in ("slope", "intercept")}
    metrics = {name: _estimate(values[name] - others[name], drawn, num_subjects) for name, drawn in differences.items()}
    p_value = math.nan
    if math.isfinite(metrics[main].low):
        drawn = differences[main][np.isfinite(differences[main])]
        rarer = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
        p_value = min(1.0, 2 * (rarer + 1) / (len(drawn) + 1))
    return Comparison(first.method, second.method, num_subjects, num_all - num_subjects, main, p_value, metrics)


def on_shared_subjects(methods: Sequence[Predictions]) -> list[Predictions]:
    """Return each method on the subjects and folds that all predicted, in the order of the first.

    Raises:
        InputError: methods of one name or for different tasks, no subject in common, different targets of one subject,
            or what `evaluate_predictions` refuses.
    """
    check_same_label(methods)
    for each in methods:
        _check(each)
    indices = [
        {key: index for index, key in enumerate(zip(each.subjects, each.folds, strict=True))} for each in methods
    ]
    keys = [key for key in indices[0] if all(key in others for others in indices)]
    if not keys:
        raise InputError("No subject was predicted by all methods; predict the same folds with each of them.")
    shared = [each.chosen([index[key] for key in keys]) for each, index in zip(methods, indices, strict=True)]
    for each in shared[1:]:
        if len(differing := np.flatnonzero(each.targets != shared[0].targets)):
            subject, names = each.subjects[differing[0]], f"{shared[0].method} and {each.method}"
            raise InputError(f"{subject}: its targets differ in {names}; predict from the same table.")
    return shared


def main_metric(predictions: Predictions) -> str:
    """Return the metric to evaluate by: AUROC (accuracy where a class has no subject), or the correlation."""
    if predictions.is_regression:
        return "pearson_r"
    return "auroc" if len(np.unique(predictions.targets)) == len(predictions.classes) else "accuracy"


def as_json(value: Any) -> Any:
    """Convert dataclasses, arrays and mappings to what JSON can hold; numbers that are not finite become None."""
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- metrics and their intervals


def _subject_numbers(predictions: Predictions) -> np.ndarray:
    """The number `(n,)` of each entry's subject among the sorted subjects."""
    return np.unique(np.array(predictions.subjects), return_inverse=True)[1]


def _metrics(predictions: Predictions, blocks: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Each metric `(draws,)` with the entries weighted by blocks of `(draws, n)`."""
    compute = weighted_regression_metrics if predictions.is_regression else weighted_classification_metrics
    found = [compute(predictions.targets, predictions.outputs, weights) for weights in blocks]
    return {name: np.concatenate([block[name] for block in found]) for name in found[0]}


def _values(predictions: Predictions) -> dict[str, float]:
    return {name: float(value[0]) for name, value in _metrics(predictions, [np.ones((1, len(predictions)))]).items()}


def _draws(predictions: Predictions, num_bootstraps: int, seed: int) -> dict[str, np.ndarray]:
    numbers = _subject_numbers(predictions)
    counts = bootstrap_counts(numbers.max() + 1, num_bootstraps, seed)
    return _metrics(predictions, (block[:, numbers] for block in counts))


def _estimates(predictions: Predictions, num_bootstraps: int, seed: int) -> dict[str, Estimate]:
    draws, num_subjects = _draws(predictions, num_bootstraps, seed), len(set(predictions.subjects))
    return {name: _estimate(value, draws[name], num_subjects) for name, value in _values(predictions).items()}


def _estimate(value: float, draws: np.ndarray, num_subjects: int) -> Estimate:
    defined = draws[np.isfinite(draws)]
    undefined = 1 - len(defined) / len(draws)
    # Draws of one subject are all the same.
    if num_subjects < 2 or not math.isfinite(value) or undefined > MAX_UNDEFINED:
        return Estimate(value, undefined=undefined)
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high), undefined)


def _without_calibration(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in CALIBRATION}


def _chance(predictions: Predictions) -> dict[str, float]:
    """What the best constant guess reaches on these targets."""
    targets = predictions.targets
    if predictions.is_regression:
        mae = float(np.abs(targets - np.median(targets)).mean())
        return {"pearson_r": 0.0, "r2": 0.0, "mae": mae, "mse": float(targets.var())}
    num_classes = len(predictions.classes)
    shares = np.bincount(targets, minlength=num_classes) / len(targets)
    is_binary = num_classes == 2
    # Always the positive class of two, or the most frequent of more, whose F1 is averaged with those of the others, 0.
    share, averaged = (shares[1], 1) if is_binary else (shares.max(), num_classes)
    return {
        "auroc": 0.5,
        "balanced_accuracy": 1 / num_classes,
        "accuracy": float(shares.max()),
        "f1": float(2 * share / (1 + share) / averaged),
        "brier": float((1 - np.square(shares).sum()) / (2 if is_binary else 1)),
    }


def _p_value(predictions: Predictions, num_permutations: int, seed: int) -> float:
    import pandas as pd

    merits = _merits(predictions)
    if merits is None:
        return math.nan
    order = np.argsort(np.array(predictions.folds), kind="stable")
    numbers = _subject_numbers(predictions)[order]
    blocks = pd.Series(predictions.folds)[order].groupby(numbers).agg("\n".join)
    return permutation_p_value(predictions.targets[order], merits[order], numbers, blocks, num_permutations, seed)


def _merits(predictions: Predictions) -> np.ndarray | None:
    """What an entry adds to a sum that grows with the main metric; None where the metric is not defined."""
    from scipy.stats import rankdata

    targets, outputs, metric = predictions.targets, predictions.outputs, main_metric(predictions)
    if not np.ptp(targets) > 0:
        return None
    if metric == "pearson_r":
        return outputs - outputs.mean() if np.ptp(outputs) > 0 else None
    num_classes = len(predictions.classes)
    if metric == "accuracy":
        return np.eye(num_classes)[predicted_classes(outputs)]
    # The AUROC of a class against the rest is the sum of its entries' ranks, up to what no permutation changes.
    counts = np.bincount(targets, minlength=num_classes)
    merits = rankdata(outputs, axis=0) / (counts * (len(targets) - counts))
    return merits * (0, 1) if num_classes == 2 else merits


# --- sites and calibration


def _by_site(predictions: Predictions, num_bootstraps: int, seed: int) -> Iterator[Site]:
    names = sorted(set(predictions.sites) - {None})
    for name in [*names, None] if names and None in predictions.sites else names:
        there = predictions.chosen([site == name for site in predictions.sites])
        num_subjects = len(set(there.subjects))
        if num_subjects < MIN_SITE_SUBJECTS:
            yield Site(name, num_subjects, {}, f"fewer than {MIN_SITE_SUBJECTS} subjects")
            continue
        metrics = _without_calibration(_estimates(there, num_bootstraps, seed))
        undefined = _undefined(metrics)
        yield Site(name, num_subjects, metrics, f"not defined: {', '.join(undefined)}" if undefined else "")


def _undefined(metrics: Mapping[str, Estimate]) -> list[str]:
    return [name for name, estimate in metrics.items() if math.isnan(estimate.value)]


def _reliability(predictions: Predictions) -> Iterator[CalibrationBin]:
    """Entries sorted by probability in bins of about equally many; equal probabilities share a bin."""
    if len(predictions.classes) == 2:
        probabilities, came_true = predictions.outputs[:, 1], predictions.targets == 1
    else:
        probabilities = predictions.outputs.max(axis=1)
        came_true = predictions.targets == predicted_classes(predictions.outputs)
    num_bins = int(np.clip(len(probabilities) // MIN_BIN_ENTRIES, 1, MAX_BINS))
    bins = np.digitize(probabilities, np.unique(np.quantile(probabilities, np.arange(1, num_bins) / num_bins)))
    for number in np.unique(bins):
        here = bins == number
        hits, count = int(came_true[here].sum()), int(here.sum())
        low, high = accuracy_interval(hits, count, CONFIDENCE)
        yield CalibrationBin(float(probabilities[here].mean()), hits / count, low, high, count)


# --- checks and notes


def _check(predictions: Predictions) -> None:
    name = predictions.method
    entries = Counter(zip(predictions.subjects, predictions.folds, strict=True))
    (subject, fold), count = entries.most_common(1)[0]
    if count > 1:
        raise InputError(f"{name}: {subject} is twice in {fold}; average the predictions of a subject first.")
    outputs = predictions.outputs.reshape(len(predictions), -1)
    if broken := np.count_nonzero(~np.isfinite(outputs).all(axis=1) | ~np.isfinite(predictions.targets)):
        raise InputError(
            f"{name}: {broken} of {len(predictions)} predictions are not finite; the training diverged, or scans are "
            "damaged."
        )
    is_classes = not predictions.is_regression
    if is_classes and (outputs.min() < -1e-6 or np.abs(outputs.sum(axis=1) - 1).max() > 1e-3):
        raise InputError(f"{name}: its scores are not probabilities that sum to 1; give probabilities, not logits.")


def _notes(predictions: Predictions, metrics: Mapping[str, Estimate]) -> Iterator[str]:
    numbers = _subject_numbers(predictions)
    num_subjects = int(numbers.max()) + 1
    if num_subjects == 1:
        yield "There is 1 subject: no interval is given, and nothing follows for others."
    elif num_subjects < FEW_SUBJECTS:
        yield (
            f"There are {num_subjects} subjects, fewer than {FEW_SUBJECTS}: intervals are wide, and still too narrow."
        )
    for number, name in enumerate(predictions.classes or ()):
        count = len(np.unique(numbers[predictions.targets == number]))
        if count < FEW_OF_A_CLASS:
            yield f"Subjects with {predictions.label} {name}: {count}; metrics of this class are uncertain."
    if num_several := int(np.count_nonzero(np.bincount(numbers) > 1)):
        yield f"{num_several} subjects are in several folds; the bootstrap draws each with all folds or none."
    if len(set(predictions.folds)) > 1:
        yield (
            "Folds are pooled, though their models may score on different scales: see the means over folds as well. "
            "Models of different folds are trained on largely the same subjects, so folds are not independent."
        )
    if undefined := _undefined(metrics):
        yield f"Not defined on these subjects: {', '.join(undefined)}."
    if constant := [name for name, estimate in metrics.items() if estimate.low == estimate.high]:
        yield f"All draws have the same {', '.join(constant)}: an interval without width is no certainty."
