"""What predictions are worth, as a reviewer asks for it: intervals, p value, sites, folds, calibration, comparison.

    evaluation = evaluate_predictions(predictions)
    evaluation.metrics["auroc"]                       # Estimate(value=0.71, low=0.6, high=0.81, ...)
    compare(predictions, baseline).metrics["auroc"]   # the difference on the same subjects

Intervals are percentile bootstraps over subjects (95%, from the 2.5th to the 97.5th percentile of the draws): models
and splits are held fixed, so they tell of the subjects drawn for testing and of nothing else. A subject who stands in
several folds is drawn with all entries or none.

The permutation p value is one-sided, and says how often targets handed around at random suit the predictions as well.
Subjects exchange targets only with subjects who stood in the same folds: what differs between folds (their models, and
where a site is left out, the site) is then the same in all permutations, and is not taken for a skill.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np

from tablet_hf.errors import InputError
from tablet_hf.evaluation.metrics import accuracy_interval, classification_metrics, regression_metrics
from tablet_hf.evaluation.predictions import Predictions
from tablet_hf.evaluation.resampling import (
    bootstrap_counts,
    shuffled_p_value,
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
    "predicted_classes",
]

CONFIDENCE = 0.95

FEW_PEOPLE = 30
"""With fewer subjects an interval is wide, and a percentile bootstrap still makes it too narrow (Hesterberg 2015)."""

FEW_OF_A_CLASS = 10

MIN_SITE_PEOPLE = 10
"""A site with fewer subjects is counted, and not evaluated."""

MAX_UNDEFINED = 0.1
"""Where a larger share of the draws lacks a metric, those that have it are no fair sample: there is no interval."""

MAX_BINS, MIN_BIN_PEOPLE = 10, 10
"""Of the reliability curve: as many bins of equally many entries as have ten each, ten at most."""


@dataclass(frozen=True)
class Estimate:
    """A metric and its interval.

    Attributes:
        value: on the subjects as they are.
        low, high: ends of the 95% interval; NaN where there is none.
        undefined: the share of draws in which the metric was not defined, and which were left out.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    undefined: float = 0.0


@dataclass(frozen=True)
class Site:
    """The subjects of one site.

    Attributes:
        name: None for subjects whose site is not known.
        metrics: empty where there are too few subjects.
        note: why something is missing, or empty.
    """

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
    """Entries with about the same predicted probability.

    Attributes:
        predicted: their mean probability.
        observed: the share of them for which it came true.
        low, high: the exact 95% interval of that share.
        count: of entries.
    """

    predicted: float
    observed: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Evaluation:
    """What one method's predictions are worth.

    Attributes:
        method, label, classes: of the predictions.
        num_subjects, num_entries: an entry is a subject in a fold.
        main_metric: the one that p value and comparisons are about.
        metrics: of all entries together. Two classes have auroc, balanced_accuracy, accuracy, f1, sensitivity and
            specificity; more classes auroc and f1 as means over the classes, balanced_accuracy and accuracy; a
            regression pearson_r, r2, mae and mse.
        chance: what the best constant guess reaches on these subjects, where that is a number.
        p_value: of the main metric, by permutation; NaN where it is not defined.
        by_site, by_fold: in alphabetical order, and as they came; no sites where none is known.
        over_folds: of each metric mean, standard deviation (of a sample, NaN for one fold) and number of folds that
            have it.
        confusion: `(classes, classes)` counts of entries, rows are true; None for a regression.
        calibration: of classes the Brier score and, without interval, the expected calibration error; of a regression
            slope and intercept of the target on the prediction, 1 and 0 where predictions mean what they say.
        calibration_if_perfect: mean and 95th percentile of the expected calibration error that just as many subjects
            would show if all probabilities were true; None for a regression.
        reliability: of two classes the probability of the positive one, of more that of the predicted one.
        notes: what a reader must know before believing the numbers, a sentence each.
        settings: how it was computed.
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
    calibration_if_perfect: tuple[float, float] | None
    reliability: tuple[CalibrationBin, ...]
    notes: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def main(self) -> Estimate:
        return self.metrics[self.main_metric]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON knows it, NaN as None."""
        return as_json(self)


@dataclass(frozen=True)
class Comparison:
    """One method against another on the same subjects.

    Attributes:
        first, second: names of the methods.
        num_subjects: who have predictions of both; `num_left_out` have one of one only.
        metrics: of each metric the first method's minus the second's. Of mae, mse and brier less is better.
        p_value: of the main metric's difference, two-sided, from the draws of its interval: twice the share in which it
            is 0 or has the rarer sign, these subjects themselves counted in as one more of these, and 1 at most. It is
            at least `2 / (num_bootstraps + 1)`, and NaN where there is no interval.
    """

    first: str
    second: str
    num_subjects: int
    num_left_out: int
    main_metric: str
    p_value: float
    metrics: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def main(self) -> Estimate:
        return self.metrics[self.main_metric]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON knows it, NaN as None."""
        return as_json(self)


def evaluate_predictions(
    predictions: Predictions, num_bootstraps: int = 2000, num_permutations: int = 2000, seed: int = 0
) -> Evaluation:
    """Judge the predictions of one method.

    The same subjects, seed and number of bootstraps give the same draws, whatever the method. Everything that is drawn
    is computed for thousands of draws at once: 1,000 subjects take about a second.

    Raises:
        InputError: predictions that are no finite numbers, probabilities that are none, a subject who stands twice in
            one fold.
    """
    _check(predictions)
    people, person_of_entry = np.unique(np.asarray(predictions.subjects, dtype=object).astype(str), return_inverse=True)
    metrics, calibration = _estimates(predictions, person_of_entry, len(people), num_bootstraps, seed)
    by_site = _by_site(predictions, num_bootstraps, seed)
    by_fold = tuple(_by_fold(predictions))
    main = main_metric(predictions)
    is_class = not predictions.is_regression
    return Evaluation(
        method=predictions.method,
        label=predictions.label,
        classes=predictions.classes,
        num_subjects=len(people),
        num_entries=len(predictions),
        main_metric=main,
        metrics=metrics,
        chance=_chance(predictions),
        p_value=_p_value(predictions, main, people, person_of_entry, num_permutations, seed),
        by_site=by_site,
        by_fold=by_fold,
        over_folds=_over_folds(by_fold),
        confusion=_confusion(predictions) if is_class else None,
        calibration=calibration,
        calibration_if_perfect=_error_if_calibrated(predictions, num_bootstraps, seed) if is_class else None,
        reliability=tuple(_reliability(predictions)) if is_class else (),
        notes=tuple(_notes(predictions, metrics, person_of_entry)),
        settings={
            "confidence": CONFIDENCE,
            "num_bootstraps": num_bootstraps,
            "num_permutations": num_permutations,
            "seed": seed,
        },
    )


def compare(first: Predictions, second: Predictions, num_bootstraps: int = 2000, seed: int = 0) -> Comparison:
    """The difference of two methods on the subjects (and folds) that both predicted, each draw used for both.

    Raises:
        InputError: methods that learned different things, no subject in common, or different truths about one.
    """
    if (first.label, first.classes) != (second.label, second.classes):
        raise InputError(
            f"{first.method} and {second.method}: one predicts {_task(first)}, the other {_task(second)}; compare "
            "methods that predict the same."
        )
    _check(first)
    _check(second)
    keys = [list(zip(each.subjects, each.folds, strict=True)) for each in (first, second)]
    place_in_second = {key: place for place, key in enumerate(keys[1])}
    shared = [(place, place_in_second[key]) for place, key in enumerate(keys[0]) if key in place_in_second]
    if not shared:
        raise InputError(f"{first.method} and {second.method}: nobody was predicted by both in one fold.")
    everybody = {*first.subjects, *second.subjects}
    first, second = (each.chosen(places) for each, places in zip((first, second), np.array(shared).T, strict=True))
    if differing := np.flatnonzero(first.targets != second.targets).tolist():
        raise InputError(
            f"{first.subjects[differing[0]]}: {first.method} and {second.method} were told different truths about "
            "this person; predict from the same table."
        )
    people, person_of_entry = np.unique(np.asarray(first.subjects, dtype=object).astype(str), return_inverse=True)
    values = [{**_values(each), **_calibration_values(each)} for each in (first, second)]
    draws: dict[str, list[np.ndarray]] = {}
    for counts in bootstrap_counts(len(people), num_bootstraps, seed):
        weights = counts[:, person_of_entry]
        drawn, drawn_second = (_weighted(each)(weights) for each in (first, second))
        for name in drawn:
            draws.setdefault(name, []).append(drawn[name] - drawn_second[name])
    names = [name for name in values[0] if name not in ("slope", "intercept")]
    differences = {
        name: _estimate(values[0][name] - values[1][name], np.concatenate(draws[name]), len(people)) for name in names
    }
    main = main_metric(first)
    return Comparison(
        first.method,
        second.method,
        len(people),
        len(everybody) - len(people),
        main,
        _p_value_of_difference(differences[main], np.concatenate(draws[main])),
        differences,
    )


def main_metric(predictions: Predictions) -> str:
    """What a method is evaluated by: AUROC (accuracy where a class has no one), or the correlation."""
    if predictions.is_regression:
        return "pearson_r"
    return "auroc" if len(np.unique(predictions.targets)) == len(predictions.classes) else "accuracy"


def predicted_classes(predictions: Predictions) -> np.ndarray:
    """`(n,)` numbers of classes: of two the second from a probability of 0.5 on, of more the most probable."""
    outputs = predictions.outputs
    return (outputs[:, 1] >= 0.5).astype(int) if outputs.shape[1] == 2 else outputs.argmax(axis=1)


def as_json(value: Any) -> Any:
    """Dataclasses, arrays, tuples and mappings as JSON knows them; what is no finite number is None."""
    if is_dataclass(value):
        return {item.name: as_json(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return as_json(value.tolist())
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, np.generic):
        return as_json(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# --- metrics and their intervals


def _values(predictions: Predictions) -> dict[str, float]:
    """Metrics of all entries together, the telling ones first."""
    if predictions.is_regression:
        found, order = regression_metrics(predictions.targets, predictions.outputs), ("pearson_r", "r2", "mae", "mse")
    else:
        found = classification_metrics(predictions.targets, predictions.outputs)
        order = ("auroc", "balanced_accuracy", "accuracy", "f1", "sensitivity", "specificity")
    return {name: found[name] for name in order if name in found}


def _calibration_values(predictions: Predictions) -> dict[str, float]:
    if not predictions.is_regression:
        from sklearn.metrics import brier_score_loss

        if len(predictions.classes) == 2:
            brier = brier_score_loss(predictions.targets, predictions.outputs[:, 1], pos_label=1)
        else:
            truth = np.eye(len(predictions.classes))[predictions.targets]
            brier = np.mean(np.square(predictions.outputs - truth).sum(axis=1))
        return {"brier": float(brier)}
    from scipy.stats import linregress

    if not np.ptp(predictions.outputs) > 0:
        return {"slope": math.nan, "intercept": math.nan}
    line = linregress(predictions.outputs, predictions.targets)
    return {"slope": float(line.slope), "intercept": float(line.intercept)}


def _weighted(predictions: Predictions) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    compute = weighted_regression_metrics if predictions.is_regression else weighted_classification_metrics
    return lambda weights: compute(predictions.targets, predictions.outputs, weights)


def _estimates(
    predictions: Predictions, person_of_entry: np.ndarray, num_subjects: int, num_bootstraps: int, seed: int
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """Metrics, and what is said of calibration."""
    compute, draws = _weighted(predictions), {}
    for counts in bootstrap_counts(num_subjects, num_bootstraps, seed):
        for name, drawn in compute(counts[:, person_of_entry]).items():
            draws.setdefault(name, []).append(drawn)
    metrics, calibration = (
        {name: _estimate(value, np.concatenate(draws[name]), num_subjects) for name, value in values.items()}
        for values in (_values(predictions), _calibration_values(predictions))
    )
    if not predictions.is_regression:
        calibration["ece"] = Estimate(_calibration_error(predictions))
    return metrics, calibration


def _estimate(value: float, draws: np.ndarray, num_subjects: int) -> Estimate:
    defined = draws[np.isfinite(draws)]
    undefined = 1 - len(defined) / len(draws)
    # Of one subject all draws are the same.
    if num_subjects < 2 or not math.isfinite(value) or undefined > MAX_UNDEFINED:
        return Estimate(value, undefined=undefined)
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high), undefined)


def _p_value_of_difference(estimate: Estimate, draws: np.ndarray) -> float:
    if not math.isfinite(estimate.low):
        return math.nan
    draws = draws[np.isfinite(draws)]
    rarer = min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0))
    return min(1.0, 2 * (rarer + 1) / (len(draws) + 1))


def _chance(predictions: Predictions) -> dict[str, float]:
    """What the best constant guess reaches on these very targets."""
    targets = predictions.targets
    if predictions.is_regression:
        mae = float(np.abs(targets - np.median(targets)).mean())
        return {"pearson_r": 0.0, "r2": 0.0, "mae": mae, "mse": float(targets.var())}
    num_classes = len(predictions.classes)
    shares = np.bincount(targets, minlength=num_classes) / len(targets)
    is_binary = num_classes == 2
    # Naming one class only, the positive one of two and the most frequent of more: others have an F1 of 0.
    share, averaged = (shares[1], 1) if is_binary else (shares.max(), num_classes)
    return {
        "auroc": 0.5,
        "balanced_accuracy": 1 / num_classes,
        "accuracy": float(shares.max()),
        "f1": float(2 * share / (1 + share) / averaged),
        "brier": float((1 - np.square(shares).sum()) / (2 if is_binary else 1)),
    }


def _p_value(
    predictions: Predictions,
    metric: str,
    people: np.ndarray,
    person_of_entry: np.ndarray,
    num_permutations: int,
    seed: int,
) -> float:
    merits = _merits(predictions, metric)
    if merits is None:
        return math.nan
    folds_of_person: list[list[str]] = [[] for _ in people]
    for person, fold in zip(person_of_entry, predictions.folds, strict=True):
        folds_of_person[person].append(fold)
    numbers = {names: number for number, names in enumerate(sorted({tuple(sorted(one)) for one in folds_of_person}))}
    blocks = [numbers[tuple(sorted(one))] for one in folds_of_person]
    by_fold = np.argsort(np.asarray(predictions.folds, dtype=object).astype(str), kind="stable")
    return shuffled_p_value(
        predictions.targets[by_fold], merits[by_fold], person_of_entry[by_fold], blocks, num_permutations, seed
    )


def _merits(predictions: Predictions, metric: str) -> np.ndarray | None:
    """What an entry adds to a sum that grows with the metric; None where the metric is not defined."""
    from scipy.stats import rankdata

    targets, outputs = predictions.targets, predictions.outputs
    if metric == "pearson_r":
        varies = np.ptp(targets) > 0 and np.ptp(outputs) > 0
        return outputs - outputs.mean() if varies else None
    num_classes = len(predictions.classes)
    counts = np.bincount(targets, minlength=num_classes)
    if np.count_nonzero(counts) < 2:
        return None
    if metric == "accuracy":
        return np.eye(num_classes)[predicted_classes(predictions)]
    # The AUROC of a class against the rest is its entries' sum of ranks, but for what no permutation changes.
    merits = rankdata(outputs, axis=0) / (counts * (len(targets) - counts))
    return merits * (0, 1) if num_classes == 2 else merits


# --- parts of the subjects


def _by_site(predictions: Predictions, num_bootstraps: int, seed: int) -> tuple[Site, ...]:
    names = sorted({name for name in predictions.sites if name is not None})
    if not names:
        return ()
    found = []
    for name in [*names, None] if None in predictions.sites else names:
        there = predictions.chosen([site == name for site in predictions.sites])
        people, person_of_entry = np.unique(np.asarray(there.subjects, dtype=object).astype(str), return_inverse=True)
        if len(people) < MIN_SITE_PEOPLE:
            found.append(Site(name, len(people), {}, f"fewer than {MIN_SITE_PEOPLE} people"))
            continue
        metrics, _ = _estimates(there, person_of_entry, len(people), num_bootstraps, seed)
        found.append(Site(name, len(people), metrics, _what_lacks(there, metrics)))
    return tuple(found)


def _what_lacks(predictions: Predictions, metrics: Mapping[str, Estimate]) -> str:
    undefined = [name for name, estimate in metrics.items() if math.isnan(estimate.value)]
    if not undefined:
        return ""
    if predictions.is_regression:
        return f"targets or predictions do not vary: no {', '.join(undefined)}"
    absent = [str(name) for number, name in enumerate(predictions.classes) if number not in predictions.targets]
    reason = f"nobody is {' or '.join(absent)}" if absent else "a class neither occurs nor is predicted"
    return f"{reason}: no {', '.join(undefined)}"


def _by_fold(predictions: Predictions) -> Iterator[Fold]:
    for name in dict.fromkeys(predictions.folds):
        there = predictions.chosen([fold == name for fold in predictions.folds])
        yield Fold(name, len(set(there.subjects)), _values(there))


def _over_folds(folds: tuple[Fold, ...]) -> dict[str, dict[str, float]]:
    found = {}
    for metric in folds[0].metrics:
        values = np.array([fold.metrics[metric] for fold in folds])
        values = values[np.isfinite(values)]
        found[metric] = {
            "mean": float(values.mean()) if len(values) else math.nan,
            "std": float(values.std(ddof=1)) if len(values) > 1 else math.nan,
            "num_folds": len(values),
        }
    return found


def _confusion(predictions: Predictions) -> np.ndarray:
    from sklearn.metrics import confusion_matrix

    labels = range(len(predictions.classes))
    return confusion_matrix(predictions.targets, predicted_classes(predictions), labels=list(labels))


# --- calibration


def _confidence(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """A probability `(n,)` of each entry, and whether it came true: of the positive class, or of the predicted one."""
    if len(predictions.classes) == 2:
        return predictions.outputs[:, 1], predictions.targets == 1
    predicted = predicted_classes(predictions)
    return predictions.outputs[np.arange(len(predictions)), predicted], predictions.targets == predicted


def _bins(probabilities: np.ndarray) -> list[np.ndarray]:
    """Places of entries, about equally many in each bin; equal probabilities are never parted."""
    num_bins = int(np.clip(len(probabilities) // MIN_BIN_PEOPLE, 1, MAX_BINS))
    edges = np.unique(np.quantile(probabilities, np.arange(1, num_bins) / num_bins))
    bins = np.digitize(probabilities, edges)
    return [np.flatnonzero(bins == number) for number in np.unique(bins)]


def _reliability(predictions: Predictions) -> Iterator[CalibrationBin]:
    probabilities, came_true = _confidence(predictions)
    for places in _bins(probabilities):
        hits, count = int(came_true[places].sum()), len(places)
        low, high = accuracy_interval(hits, count, CONFIDENCE)
        yield CalibrationBin(float(probabilities[places].mean()), hits / count, low, high, count)


def _calibration_error(predictions: Predictions) -> float:
    bins = _reliability(predictions)
    return float(sum(part.count * abs(part.observed - part.predicted) for part in bins) / len(predictions))


def _error_if_calibrated(predictions: Predictions, num_draws: int, seed: int) -> tuple[float, float]:
    """Mean and 95th percentile of the calibration error where each probability is true: it is never 0 for so few."""
    probabilities, _ = _confidence(predictions)
    bins, rng = _bins(probabilities), np.random.default_rng(seed)
    counts = np.array([len(places) for places in bins])
    errors = np.zeros(num_draws)
    for places, count in zip(bins, counts, strict=True):
        for start in range(0, num_draws, 256):
            block = errors[start : start + 256]
            came_true = rng.random((len(block), count)) < probabilities[places]
            block += np.abs(came_true.mean(axis=1) - probabilities[places].mean()) * count / counts.sum()
    return float(errors.mean()), float(np.quantile(errors, 0.95))


# --- checks and notes


def _check(predictions: Predictions) -> None:
    name = predictions.method
    keys = list(zip(predictions.subjects, predictions.folds, strict=True))
    if len(set(keys)) < len(keys):
        subject, fold = next(key for number, key in enumerate(keys) if key in keys[:number])
        raise InputError(
            f"{name}: {subject} stands twice in {fold}; average a person's predictions before judging them."
        )
    outputs = predictions.outputs.reshape(len(predictions), -1)
    if broken := np.count_nonzero(~np.isfinite(outputs).all(axis=1) | ~np.isfinite(predictions.targets)):
        raise InputError(
            f"{name}: {broken} of {len(predictions)} predictions are no finite numbers; the training has diverged, or "
            "the scans of these people are broken."
        )
    if predictions.is_regression:
        return
    if outputs.min() < -1e-6 or outputs.max() > 1 + 1e-6 or np.abs(outputs.sum(axis=1) - 1).max() > 1e-3:
        raise InputError(f"{name}: its scores are no probabilities that sum to 1; give probabilities, not logits.")


def _notes(predictions: Predictions, metrics: Mapping[str, Estimate], person_of_entry: np.ndarray) -> Iterator[str]:
    num_subjects = int(person_of_entry.max()) + 1
    if num_subjects == 1:
        yield "There is 1 person: nothing can be said of others by it, and no interval is given."
    elif num_subjects < FEW_PEOPLE:
        yield (
            f"There are {num_subjects} people, fewer than {FEW_PEOPLE}: intervals are wide, and wider in truth than "
            "the bootstrap makes them."
        )
    if not predictions.is_regression:
        for number, name in enumerate(predictions.classes):
            count = len(set(person_of_entry[predictions.targets == number].tolist()))
            if count < FEW_OF_A_CLASS:
                yield (
                    f"{count or 'No'} {'person has' if count <= 1 else 'people have'} {predictions.label} {name}: what "
                    "concerns this class is known badly."
                )
    if num_several := int(np.count_nonzero(np.bincount(person_of_entry) > 1)):
        yield f"{num_several} people stand in several folds; the bootstrap draws each of them with all folds or none."
    if len(set(predictions.folds)) > 1:
        yield (
            "Folds are put together, though their models differ and may place their scores differently: see the means "
            "over folds as well. The folds' models learnt from largely the same people, so folds are not independent."
        )
    if undefined := [name for name, estimate in metrics.items() if math.isnan(estimate.value)]:
        yield f"Not defined on these people: {', '.join(undefined)}."
    if constant := [name for name, estimate in metrics.items() if estimate.low == estimate.high]:
        exact = [
            f"the exact binomial interval of {name} is {low:.0%} to {high:.0%}"
            for name, (low, high) in _exact_intervals(predictions, num_subjects).items()
            if name in constant
        ]
        yield "; ".join([f"All draws have the same {', '.join(constant)}, which is no certainty", *exact]) + "."


def _exact_intervals(predictions: Predictions, num_subjects: int) -> dict[str, tuple[float, float]]:
    """Of what is a share of subjects, where each subject is one entry."""
    if predictions.is_regression or len(predictions) > num_subjects:
        return {}
    right = predicted_classes(predictions) == predictions.targets
    among = {"accuracy": np.ones(num_subjects, dtype=bool)}
    if len(predictions.classes) == 2:
        among |= {"sensitivity": predictions.targets == 1, "specificity": predictions.targets == 0}
    return {
        name: accuracy_interval(int(right[who].sum()), int(who.sum()), CONFIDENCE)
        for name, who in among.items()
        if who.any()
    }


def _task(predictions: Predictions) -> str:
    if predictions.is_regression:
        return f"{predictions.label} as a number"
    return f"{predictions.label} ({', '.join(map(str, predictions.classes))})"
