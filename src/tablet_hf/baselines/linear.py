"""Baselines on the same subjects: class frequencies, and linear models of the mean token and of connectivity.

    for split in splits:
        training, held_out = (runs_in(split, store.runs, part) for part in ("train", "test"))
        fold = Fold(store, find_task(store, "sex", training), training, held_out, split.name)
        tables += baseline_predictions(fold, match_scans(store, "DERIVATIVES"))

Few fMRI foundation models have beaten a linear model of functional connectivity at predicting traits
(CortexMAE/Brainmarks, 2026), so every result is reported with these. Means, penalties, regions and all else
is fitted on the training subjects alone.
"""

import warnings
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tablet_hf.baselines import connectivity
from tablet_hf.baselines.connectivity import Regions, evenly_spaced
from tablet_hf.baselines.features import RegionTimeSeries, RunCache, ScanPaths, mean_token
from tablet_hf.datasets.splits import family_ids, subject_ids
from tablet_hf.datasets.tasks import Task
from tablet_hf.errors import InputError
from tablet_hf.evaluation.predictions import Predictions

__all__ = ["Fold", "LinearModel", "baseline_predictions"]

MAJORITY, MEAN = "majority class", "training mean"
MEAN_TOKEN = "mean token"
CONNECTIVITY = "functional connectivity"
DECODED_CONNECTIVITY = "functional connectivity (decoded tokens)"

NUM_REGIONS = 100
"""Number of clustered regions: a choice, not an optimum."""

STRENGTHS = np.logspace(-4, 3, 8)
"""Inverse penalties to choose from, for rows of features with a mean square of 1."""

NUM_FOLDS = 5
"""Folds of cross-validation; fewer where a class has fewer groups."""

DEFAULT_STRENGTH = 0.1
"""Inverse penalty with too few subjects for cross-validation."""

MAX_COMPONENTS = 2000
"""With more rows and features than this the leading principal components are used."""

OnProgress = Callable[[int, int], None]


class LinearModel:
    """Logistic or ridge regression for more features than subjects.

    Missing features are imputed by their training mean, constant ones are left out, and the others are standardised and
    rotated into the space that the rows span, in which the weights of an L2-penalised model lie anyway (Hastie &
    Tibshirani 2004, doi:10.1093/biostatistics/kxh010). The penalty minimises the log loss, or squared error, of
    cross-validated predictions; ties go to the strongest.

    Classes are weighted equally, as in the loss of TABLeT: otherwise strong regularisation reduces to the class prior.

    Args:
        num_classes: None for a regression.
        seed: seed of the folds of cross-validation.

    Attributes (once fitted):
        strength: the chosen inverse penalty.
        folds: pairs of training and test indices; empty with too few subjects.
    """

    def __init__(self, num_classes: int | None = 2, seed: int = 0):
        self.num_classes, self.seed = num_classes, seed

    def fit(self, features: np.ndarray, targets: np.ndarray, groups: Sequence[Hashable] | None = None) -> "LinearModel":
        """Fit the model and its penalty.

        Args:
            features: `(subjects, features)`, NaN where missing.
            targets: `(subjects,)`, numbers of classes, all of them present, or values.
            groups: `(subjects,)`, such as families, whose members share a fold; None without groups.

        Raises:
            ValueError: all features are missing.
        """
        from sklearn.decomposition import PCA

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of features that are all missing
            self._mean = np.nanmean(features, axis=0, dtype=np.float64)
        if np.isnan(self._mean).all():
            raise ValueError("all features are missing.")
        self._mean = np.nan_to_num(self._mean)
        spread = self._centred(features).std(0, dtype=np.float64)
        # Rounding leaves a constant with a spread, which standardising would magnify.
        self._scale = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 1e-6 * np.abs(self._mean))
        # Exact unless the number of components is much less than both sides.
        self._rotation = PCA(min(MAX_COMPONENTS, *features.shape), random_state=self.seed)
        with np.errstate(invalid="ignore"):  # rows may all be equal
            rows = self._rotation.fit_transform(self._centred(features) * self._scale)
        # In this unit a strength means the same for any number of features.
        self._unit = np.sqrt((rows**2).sum(1).mean()) or 1.0
        rows /= self._unit
        groups = np.arange(len(targets)) if groups is None else np.unique(groups, return_inverse=True)[1]
        self.folds = self._cross_validation(targets, groups)
        self.strength = DEFAULT_STRENGTH
        if self.folds:
            errors = [self._error(rows, targets, strength) for strength in STRENGTHS]
            self.strength = float(STRENGTHS[np.argmin(errors)])
        self._model = self._estimator(self.strength).fit(rows, targets)
        return self

    def outputs(self, features: np.ndarray) -> np.ndarray:
        """Predict probabilities `(subjects, classes)`, or values `(subjects,)`, float64."""
        rows = self._rotation.transform(self._centred(features) * self._scale) / self._unit
        return self._model.predict(rows) if self.num_classes is None else self._model.predict_proba(rows)

    def coefficients(self) -> tuple[np.ndarray, np.ndarray]:
        """Return weights `(outputs, features)` and biases `(outputs,)` of the logits, or values."""
        standardised = np.atleast_2d(self._model.coef_) / self._unit @ self._rotation.components_
        weight = standardised * self._scale
        bias = np.atleast_1d(self._model.intercept_) - standardised @ self._rotation.mean_ - weight @ self._mean
        return weight, bias

    def _centred(self, features: np.ndarray) -> np.ndarray:
        return np.nan_to_num(features - self._mean)  # the mean, where it is missing

    def _estimator(self, strength: float) -> Any:
        from sklearn.linear_model import LogisticRegression, Ridge

        if self.num_classes is None:
            return Ridge(alpha=1 / strength)
        return LogisticRegression(C=strength, max_iter=2000, class_weight="balanced")

    def _error(self, rows: np.ndarray, targets: np.ndarray, strength: float) -> float:
        from sklearn.metrics import log_loss, mean_squared_error
        from sklearn.model_selection import cross_val_predict
        from sklearn.utils.class_weight import compute_sample_weight

        method = "predict" if self.num_classes is None else "predict_proba"
        predicted = cross_val_predict(self._estimator(strength), rows, targets, cv=self.folds, method=method)
        if self.num_classes is None:
            return mean_squared_error(targets, predicted)
        weights = compute_sample_weight("balanced", targets)
        return log_loss(targets, predicted, sample_weight=weights, labels=np.arange(self.num_classes))

    def _cross_validation(self, targets: np.ndarray, groups: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

        if self.num_classes is None:
            count = min(NUM_FOLDS, len(np.unique(groups)))
            return [] if count < 2 else list(GroupKFold(count).split(targets, groups=groups))
        groups_of_class = [len(np.unique(groups[targets == number])) for number in range(self.num_classes)]
        # Families can still leave a class to one fold alone.
        for count in range(min(NUM_FOLDS, *groups_of_class), 1, -1):
            parts = StratifiedGroupKFold(count, shuffle=True, random_state=self.seed)
            parts = list(parts.split(targets, targets, groups))
            if all(len(test) and len(np.unique(targets[train])) == self.num_classes for train, test in parts):
                return parts
        return []


class Fold:
    """The subjects of one fold that have the label.

    Args:
        store: a `TokenDataset`.
        task: see `find_task`.
        training_runs, held_out_runs: indices in `store.runs`, or keys; runs without the label are left out.
        name: name of the fold.

    Attributes:
        training, held_out: tables with a row per subject: the indices of his or her `runs`, `target`, `site`, `family`.

    Raises:
        InputError: no labelled subject on one of the sides, or a value that is not one of the classes.
        ValueError: a subject on both sides.
    """

    def __init__(
        self, store: Any, task: Task, training_runs: Sequence[int | str], held_out_runs: Sequence[int | str], name: str
    ):
        self.store, self.task, self.name = store, task, name
        self.training, self.held_out = (_subjects(store, task, runs) for runs in (training_runs, held_out_runs))
        if both := set(self.training.index) & set(self.held_out.index):
            raise ValueError(f"{min(both)} is both a training and a held-out subject.")
        self.all_runs = [run for side in (self.training, self.held_out) for runs in side["runs"] for run in runs]

    def predictions(self, method: str, outputs: np.ndarray) -> Predictions:
        """Return outputs for the held-out subjects as a table."""
        table, names = self.held_out, (self.name,) * len(self.held_out)
        sites = tuple(site if isinstance(site, str) else None for site in table["site"])
        subjects, targets = tuple(table.index), table["target"].to_numpy()
        return Predictions(method, self.task.label, self.task.classes, subjects, targets, outputs, sites, names)

    def linear_predictions(self, method: str, features_of: Callable[[Sequence[int]], np.ndarray]) -> Predictions:
        """Fit a linear model to the training subjects and predict the held-out ones.

        Args:
            method: name of the method.
            features_of: returns features `(features,)` of a subject from the indices of his or her runs.

        Raises:
            InputError: no training subject has any feature.
        """
        features, held_out = (np.stack([*map(features_of, side["runs"])]) for side in (self.training, self.held_out))
        if not np.isfinite(features).any():
            raise InputError(f"{self.name}: no training run has enough frames and regions for {method}.")
        model = LinearModel(None if self.task.is_regression else len(self.task.classes))
        model.fit(features, self.training["target"].to_numpy(), self.training["family"])
        return self.predictions(method, model.outputs(held_out))


def majority_predictions(fold: Fold) -> Predictions:
    """Predict the class frequencies, or the mean, of the training subjects."""
    targets, num_held_out = fold.training["target"].to_numpy(), len(fold.held_out)
    if fold.task.is_regression:
        return fold.predictions(MEAN, np.full(num_held_out, targets.mean()))
    frequencies = np.bincount(targets, minlength=len(fold.task.classes)) / len(targets)
    return fold.predictions(MAJORITY, np.tile(frequencies, (num_held_out, 1)))


def mean_token_predictions(fold: Fold, cache: RunCache) -> Predictions:
    """Predict by a linear model of each subject's mean token, which shows what is predicted without any dynamics."""

    def features_of(runs: Sequence[int]) -> np.ndarray:
        return np.mean([mean_token(fold.store, run, cache) for run in runs], axis=0)

    return fold.linear_predictions(MEAN_TOKEN, features_of)


def connectivity_predictions(
    fold: Fold,
    time_series: RegionTimeSeries,
    atlas: Regions | None = None,
    num_regions: int = NUM_REGIONS,
    on_progress: OnProgress | None = None,
) -> Predictions:
    """Predict by a linear model of functional connectivity: Fisher's z of the correlations between regions.

    Runs of a subject are averaged, weighted by their frames less 3, the inverse variance of z. Runs that are too short
    and missing regions, whose connections are imputed (see `LinearModel`), are reported by warnings.

    Args:
        fold: the subjects.
        time_series: time series from scans or from tokens, after which the method is named.
        atlas: regions; None clusters 8 mm cells of the training subjects' first runs, see `clustered_cells`.
        num_regions: number of clustered regions.
        on_progress: called with frames done and in all.

    Raises:
        InputError: time series cannot be computed, or no training subject has connections.
    """
    regions = atlas or connectivity.brain_cells()
    time_series.prepare(fold.all_runs, regions, on_progress)
    region_of_cell = None
    if atlas is None:
        some = evenly_spaced(list(fold.training["runs"]), connectivity.MAX_CLUSTERED_SUBJECTS)
        region_of_cell = connectivity.clustered_cells((time_series.of(own[0], regions) for own in some), num_regions)
    too_short, with_gaps = [], []

    def features_of(runs: Sequence[int]) -> np.ndarray:
        sums = weights = 0.0
        for run in runs:
            values = time_series.of(run, regions)
            if region_of_cell is not None:
                values = connectivity.merged_cells(values, region_of_cell, regions.num_voxels)
            z = connectivity.fisher_z(values)
            if len(values) < connectivity.MIN_FRAMES:
                too_short.append(fold.store.runs[run].key)
            elif np.isnan(z).any():
                with_gaps.append(fold.store.runs[run].key)
            weight = np.where(np.isnan(z), 0, max(0, len(values) - 3))
            sums, weights = sums + weight * np.nan_to_num(z), weights + weight
        return np.divide(sums, weights, out=np.full(len(weights), np.nan), where=weights > 0)

    method = DECODED_CONNECTIVITY if time_series.is_decoded else CONNECTIVITY
    predictions = fold.linear_predictions(method, features_of)
    if too_short:
        warnings.warn(
            f"{method}: {len(too_short)} runs are too short and not used, such as {too_short[0]}.", stacklevel=2
        )
    if with_gaps:
        warnings.warn(
            f"{method}: in {len(with_gaps)} runs regions are missing or constant, such as {with_gaps[0]}; their "
            "connections are imputed by the training mean.",
            stacklevel=2,
        )
    return predictions


def baseline_predictions(
    fold: Fold,
    scans: ScanPaths | None = None,
    atlas: str | Path | None = None,
    device: str = "cpu",
    cache: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> list[Predictions]:
    """Predict the held-out subjects of one fold by all baselines.

    Connectivity comes from the scans if those of all labelled runs of the store were found, else, for all runs, from
    decoded tokens; its name says which. Where neither is possible a warning says so.

    Args:
        fold: the subjects.
        scans: see `match_scans`.
        atlas: label image; None clusters regions in each fold.
        device: device that decodes tokens.
        cache: folder for what is computed of each run, which other folds and labels can share.
        on_progress: called with frames done and in all.

    Returns:
        One table per method.

    Raises:
        InputError: an atlas that cannot be read.
        OSError: `cache` cannot be written.
    """
    regions, run_cache = None if atlas is None else connectivity.atlas_regions(atlas), RunCache(cache)
    if scans is not None:
        label, runs = fold.task.label, fold.store.runs
        missing = [run.key for run in runs if run.phenotypes.get(label) is not None and run.key not in scans]
        if missing:  # scans and decoded tokens must not be mixed
            warnings.warn(
                f"{len(missing)} scans were not found, such as that of {missing[0]}; time series are decoded from "
                "tokens for all runs.",
                stacklevel=2,
            )
            scans = None
    tables = [majority_predictions(fold), mean_token_predictions(fold, run_cache)]
    time_series = RegionTimeSeries(fold.store, scans, device, run_cache)
    try:
        tables.append(connectivity_predictions(fold, time_series, regions, on_progress=on_progress))
    except InputError as error:
        warnings.warn(f"{CONNECTIVITY} was not computed for {fold.name}: {error}", stacklevel=2)
    return tables


def _subjects(store: Any, task: Task, runs: Sequence[int | str]) -> pd.DataFrame:
    """Return a row per labelled subject, in the order of their first runs; see `Fold`."""
    subjects, families = subject_ids(store.runs), family_ids(store.runs)
    rows = []
    for index in dict.fromkeys(store.index(run) for run in runs):
        run, family = store.runs[index], families[index]
        if (value := run.phenotypes.get(task.label)) is None:
            continue
        if not task.is_regression and value not in task.classes:
            raise InputError(f"{run.key}: {task.label} {value!r} is not one of the classes; leave the run out.")
        target = float(value) if task.is_regression else task.classes.index(value)
        family = None if family is None else f"family {family}"
        rows.append({"subject": subjects[index], "runs": index, "target": target, "site": run.site, "family": family})
    if not rows:
        raise InputError(f"none of {len(runs)} runs has a {task.label}; choose other runs, or another label.")
    table = pd.DataFrame(rows).groupby("subject", sort=False)
    table = table.agg({"runs": list, "target": "first", "site": "first", "family": "first"})
    table["family"] = table["family"].fillna("subject " + table.index.to_series())
    return table
