"""What is reached without TABLeT, on the same subjects: no more than the training subjects' labels, a linear model of
the mean token, and a linear model of functional connectivity.

    for split in splits:
        training, held_out = (runs_in(split, store.runs, part) for part in ("train", "test"))
        task = find_task(store, "sex", training)
        tables += baseline_predictions(store, task, training, held_out, split.name, scans="DERIVATIVES", cache="CACHE")

On the prediction of traits most fMRI foundation models have hardly beaten functional connectivity with a linear model
(CortexMAE/Brainmarks, 2026), so a result is reported with these next to it.

The linear models are logistic regression and ridge regression, with the penalty chosen by cross-validation among the
subjects who are trained on, of whom members of one family stay together. Whatever is fitted, features' means and
spreads, the penalty and the regions among it, is fitted on these subjects alone.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tablet_hf.baselines.connectivity import (
    CLUSTERED_PEOPLE,
    FEWEST_FRAMES,
    Regions,
    atlas_regions,
    brain_cells,
    clustered_cells,
    evenly_spaced,
    fisher_z,
    merged_cells,
)
from tablet_hf.baselines.features import FoundScans, RegionTimeSeries, RunCache, find_scans, mean_token
from tablet_hf.datasets.splits import family_ids, subject_ids
from tablet_hf.datasets.tasks import Task
from tablet_hf.errors import InputError
from tablet_hf.evaluation.predictions import Predictions

__all__ = [
    "CONNECTIVITY",
    "DECODED_CONNECTIVITY",
    "MAJORITY",
    "MEAN",
    "MEAN_TOKEN",
    "LinearModel",
    "baseline_predictions",
    "connectivity_predictions",
    "majority_predictions",
    "mean_token_predictions",
    "principal_axes",
]

MAJORITY, MEAN = "majority class", "training mean"
MEAN_TOKEN = "mean token"
CONNECTIVITY = "functional connectivity"
DECODED_CONNECTIVITY = "functional connectivity (decoded tokens)"

NUM_REGIONS = 100
"""Regions of a clustering: a choice, not an optimum."""

STRENGTHS = np.logspace(-4, 3, 8)
"""Inverse penalties to choose from, for rows of features whose mean square is 1: from next to nothing learned to next
to no penalty."""

DEFAULT_STRENGTH = 0.1
"""Where there are too few subjects to choose by cross-validation."""

MOST_AXES = 2000
"""Of more rows than this the leading principal components are taken: all of them would be a matrix of rows by rows."""

OnProgress = Callable[[int, int], None]
OnNote = Callable[[str], None]


# --- the linear model


def principal_axes(num_rows: int, num_features: int, seed: int = 0) -> Any:
    """A PCA (scikit-learn's, not fitted) that turns rows into the space that they span.

    A penalty on the squares of weights leaves them within that space, so up to `MOST_AXES` rows no prediction changes
    by it (Hastie & Tibshirani 2004, doi:10.1093/biostatistics/kxh010). Of more rows, where there are more features
    too, the leading axes are found by a randomised decomposition, and what is across them is not trained on.

    Args:
        num_rows, num_features: that it will be fitted on.
        seed: of the randomised decomposition.
    """
    from sklearn.decomposition import PCA

    if min(num_rows, num_features) <= MOST_AXES:
        return PCA(svd_solver="full" if num_rows <= MOST_AXES else "covariance_eigh")
    return PCA(MOST_AXES, svd_solver="randomized", random_state=seed)


class LinearModel:
    """Logistic or ridge regression for more features than subjects.

    Missing features become their mean over the subjects who are trained on, and a feature that none of them has, or in
    which they differ by rounding alone, is left out; then each is standardised. A penalty on the squares of weights
    leaves them within the space that the subjects span, so the features are turned into that space first, which makes
    the fits fast and changes no prediction for up to 2,000 subjects (see `principal_axes` for more). The penalty is
    chosen by the pooled log loss, or squared error, of subjects left out in turn; of equally good ones the strongest.

    Classes weigh alike, as in the loss of TABLeT, in fits and in that choice. Without that, a strong penalty leaves
    little but how frequent the classes are, and where subjects of several folds are evaluated together that alone ranks
    them. For the connectivity of 140 semi-real subjects it was small: sex at an AUROC of 0.52 without and 0.53 with it,
    diagnosis at 0.65 and 0.64 (docs/semireal.md).

    Args:
        num_classes: None for a regression.
        num_folds: of the choice of the penalty; fewer where a class has fewer subjects (or families).
        seed: of these folds.

    Attributes (once fitted):
        strength: the inverse penalty that was chosen.
        folds: held-out places of each fold that it was chosen by; empty where there were too few subjects.
    """

    def __init__(self, num_classes: int | None = 2, num_folds: int = 5, seed: int = 0):
        self.num_classes, self.num_folds, self.seed = num_classes, num_folds, seed

    def fit(self, features: np.ndarray, targets: np.ndarray, groups: Sequence[Any] | None = None) -> "LinearModel":
        """Learn from subjects.

        Args:
            features: `(people, features)`, NaN where one is missing.
            targets: `(people,)`, numbers of classes, each of them there, or values.
            groups: `(people,)`, those of one group (a family) stand in one fold; None for no one related.

        Raises:
            ValueError: no feature that anybody has.
        """
        from sklearn.impute import SimpleImputer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self._is_used = _telling_features(features)
        groups = np.arange(len(targets)) if groups is None else np.unique(groups, return_inverse=True)[1]
        axes = principal_axes(len(targets), int(self._is_used.sum()), self.seed)
        self._turn = make_pipeline(SimpleImputer(), StandardScaler(), axes)
        with np.errstate(invalid="ignore"):  # where subjects do not differ in anything
            rows = self._turn.fit_transform(features[:, self._is_used]).astype(np.float64)
        # In units in which strengths mean the same for any number of features.
        self._unit = np.sqrt((rows**2).sum(1).mean()) or 1.0
        rows = rows / self._unit
        self.folds = self._folds(targets, groups)
        self.strength = DEFAULT_STRENGTH if not self.folds else self._chosen_strength(rows, targets)
        self._model = self._fitted(rows, targets, self.strength)
        return self

    def outputs(self, features: np.ndarray) -> np.ndarray:
        """Probabilities `(people, classes)`, or values `(people,)`, float64."""
        rows = self._turn.transform(features[:, self._is_used]).astype(np.float64) / self._unit
        return self._said(self._model, rows)

    def _fitted(self, rows: np.ndarray, targets: np.ndarray, strength: float) -> Any:
        from sklearn.linear_model import LogisticRegression, Ridge

        if self.num_classes is None:
            return Ridge(alpha=1 / strength).fit(rows, targets)
        return LogisticRegression(C=strength, max_iter=2000, class_weight="balanced").fit(rows, targets)

    def _said(self, model: Any, rows: np.ndarray) -> np.ndarray:
        return model.predict(rows) if self.num_classes is None else model.predict_proba(rows)

    def _chosen_strength(self, rows: np.ndarray, targets: np.ndarray) -> float:
        errors = [self._error(rows, targets, strength) for strength in STRENGTHS]
        return float(STRENGTHS[int(np.argmin(errors))])

    def _error(self, rows: np.ndarray, targets: np.ndarray, strength: float) -> float:
        from sklearn.metrics import log_loss, mean_squared_error
        from sklearn.utils.class_weight import compute_sample_weight

        said, true = [], []
        for left_out in self.folds:
            learnt = np.setdiff1d(np.arange(len(targets)), left_out)
            model = self._fitted(rows[learnt], targets[learnt], strength)
            said.append(self._said(model, rows[left_out]))
            true.append(targets[left_out])
        said, true = np.concatenate(said), np.concatenate(true)
        if self.num_classes is None:
            return mean_squared_error(true, said)
        weights = compute_sample_weight("balanced", true)
        return log_loss(true, said, sample_weight=weights, labels=np.arange(self.num_classes))

    def _folds(self, targets: np.ndarray, groups: np.ndarray) -> list[np.ndarray]:
        from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

        if self.num_classes is None:
            most = min(self.num_folds, len(np.unique(groups)))
            return [] if most < 2 else [test for _, test in GroupKFold(most).split(targets, groups=groups)]
        groups_of_class = [len(np.unique(groups[targets == number])) for number in range(self.num_classes)]
        # Families can still leave a class to one fold alone.
        for count in range(min(self.num_folds, *groups_of_class), 1, -1):
            dealt = StratifiedGroupKFold(count, shuffle=True, random_state=self.seed)
            parts = list(dealt.split(targets, targets, groups))
            if all(len(test) and len(np.unique(targets[train])) == self.num_classes for train, test in parts):
                return [test for _, test in parts]
        return []


def _telling_features(features: np.ndarray) -> np.ndarray:
    """Which columns `(features,)` bool somebody has, and, but where there are no others, subjects differ in.

    The mean of equal tokens differs in its last digits by the number of frames, and standardising would make that as
    large as anything else.
    """
    is_known = np.isfinite(features).any(0)
    if not is_known.any():
        raise ValueError("There is no feature that anybody has.")
    known = features[:, is_known]
    spread, mean = np.nanstd(known, axis=0, dtype=np.float64), np.nanmean(known, axis=0, dtype=np.float64)
    is_telling = is_known.copy()
    is_telling[is_known] = spread > 1e-6 * np.abs(mean)
    return is_telling if is_telling.any() else is_known


# --- baselines


def majority_predictions(
    store: Any, task: Task, training_runs: Sequence[int | str], held_out_runs: Sequence[int | str], fold_name: str
) -> Predictions:
    """What is known of a subject of whom nothing is known: how frequent each class is among the subjects who are
    learned from, or the mean of their values.

    Args:
        store: a `TokenDataset`.
        task: see `find_task`.
        training_runs, held_out_runs: places in `store.runs` or keys; those without the label do not count.
        fold_name: of the split.

    Raises:
        InputError: no one on one of the sides has the label, or a value that is none of the classes.
        ValueError: a subject stands on both sides.
    """
    training, held_out = _sides(store, task, training_runs, held_out_runs)
    if task.is_regression:
        return held_out.predictions(MEAN, task, np.full(len(held_out), training.targets.mean()), fold_name)
    shares = np.bincount(training.targets, minlength=len(task.classes)) / len(training)
    return held_out.predictions(MAJORITY, task, np.tile(shares, (len(held_out), 1)), fold_name)


def mean_token_predictions(
    store: Any,
    task: Task,
    training_runs: Sequence[int | str],
    held_out_runs: Sequence[int | str],
    fold_name: str,
    cache: RunCache | None = None,
    on_progress: OnProgress | None = None,
) -> Predictions:
    """A linear model of each subject's mean token: over the frames of a run, then over runs.

    Of percent change the mean is next to nothing, and of intensities it is anatomy, so this says what can be known of
    subjects without any dynamics.

    Args:
        cache: where the mean token of each run is kept.
        on_progress: is reported frames done and frames in all.
        store, task, training_runs, held_out_runs, fold_name: see `majority_predictions`; errors as there.
    """
    training, held_out = _sides(store, task, training_runs, held_out_runs)
    cache = cache or RunCache()
    runs = [*training.all_runs, *held_out.all_runs]
    total, done = sum(store.runs[run].num_frames for run in runs), 0

    def of_person(places: Sequence[int]) -> np.ndarray:
        nonlocal done
        tokens = []
        for run in places:
            tokens.append(mean_token(store, run, cache))
            done += store.runs[run].num_frames
            if on_progress is not None:
                on_progress(done, total)
        return np.mean(tokens, axis=0)

    features, held_out_features = (np.stack([of_person(own) for own in side.runs]) for side in (training, held_out))
    return _linear_predictions(MEAN_TOKEN, task, training, held_out, features, held_out_features, fold_name)


def connectivity_predictions(
    store: Any,
    task: Task,
    training_runs: Sequence[int | str],
    held_out_runs: Sequence[int | str],
    fold_name: str,
    courses: RegionTimeSeries,
    atlas: Regions | None = None,
    num_regions: int = NUM_REGIONS,
    on_progress: OnProgress | None = None,
    on_note: OnNote = warnings.warn,
) -> Predictions:
    """A linear model of functional connectivity: Fisher's z of the correlations of regions' time series.

    Several runs of a subject are averaged, each weighted by its frames less 3, the inverse variance of z. Regions that
    are missing or constant in somebody have unknown connections there, see `LinearModel`.

    Args:
        courses: from scans or from tokens; decides what the method is called.
        atlas: regions; None clusters 8 mm cells of the subjects who are trained on (`clustered_cells`), their first
            runs, into `num_regions`.
        on_progress: is reported frames done and frames in all.
        on_note: is reported what a reader should know: regions that are missing, runs that are too short.
        store, task, training_runs, held_out_runs, fold_name: see `majority_predictions`.

    Raises:
        InputError: as there; or time series cannot be had, or there is no connection that anybody has.
    """
    training, held_out = _sides(store, task, training_runs, held_out_runs)
    runs = [*training.all_runs, *held_out.all_runs]
    regions = brain_cells() if atlas is None else atlas
    courses.prepare(runs, regions, on_progress)
    region_of_cell = None
    if atlas is None:
        training_data = (courses.of(own[0], regions) for own in evenly_spaced(training.runs, CLUSTERED_PEOPLE))
        region_of_cell = clustered_cells(training_data, num_regions)
    num_missing: dict[int, int] = {}
    too_short = []

    def of_person(places: Sequence[int]) -> np.ndarray:
        sums = weights = 0.0
        for run in places:
            known = courses.of(run, regions)
            if region_of_cell is not None:
                known = merged_cells(known, region_of_cell, regions.num_voxels)
            if len(known) < FEWEST_FRAMES:
                too_short.append(store.runs[run].key)
            z = fisher_z(known)
            if len(known) >= FEWEST_FRAMES:
                num_missing[run] = _num_missing_regions(z, known.shape[1])
            weight = np.where(np.isnan(z), 0, max(0, len(known) - 3))
            sums, weights = sums + weight * np.nan_to_num(z), weights + weight
        return np.divide(sums, weights, out=np.full(len(weights), np.nan), where=weights > 0)

    method = DECODED_CONNECTIVITY if courses.is_decoded else CONNECTIVITY
    features, held_out_features = (np.stack([of_person(own) for own in side.runs]) for side in (training, held_out))
    if not np.isfinite(features).any():
        raise InputError(
            f"{fold_name}: no run that is learnt from has {FEWEST_FRAMES} frames and two regions with signal; choose "
            "another atlas or longer runs."
        )
    if too_short:
        on_note(
            f"{len(too_short)} runs have less than {FEWEST_FRAMES} frames and count for nothing in {method}, the first "
            f"is {too_short[0]}."
        )
    if with_gaps := {run: count for run, count in num_missing.items() if count}:
        worst = max(with_gaps, key=with_gaps.get)
        on_note(
            f"In {len(with_gaps)} of {len(runs)} runs regions are missing or constant, {with_gaps[worst]} at most (in "
            f"{store.runs[worst].key}); their connections were filled with the mean of the people learnt from."
        )
    return _linear_predictions(method, task, training, held_out, features, held_out_features, fold_name)


def baseline_predictions(
    store: Any,
    task: Task,
    training_runs: Sequence[int | str],
    held_out_runs: Sequence[int | str],
    fold_name: str,
    scans: FoundScans | str | Path | Iterable[str | Path] | None = None,
    atlas: Regions | str | Path | None = None,
    device: str = "cpu",
    on_progress: OnProgress | None = None,
    cache: str | Path | None = None,
    on_note: OnNote = warnings.warn,
) -> list[Predictions]:
    """All baselines of one fold: majority class or training mean, mean token, functional connectivity.

    Connectivity comes from the scans where all of the store's runs that have the label are found, else for all of them
    from decoded tokens, so that all folds and subjects are treated alike; its name says which.

    Args:
        scans: folders to find the scans in, or what `find_scans` found, to search once for several folds.
        atlas: a label image, else regions are clustered in each fold.
        device: to decode tokens on.
        on_progress: is reported frames done and frames in all.
        cache: folder that keeps what was computed of runs; give the same one for other folds and labels.
        on_note: is reported, in sentences, what could not be run and why, and what else a reader should know.
        store, task, training_runs, held_out_runs, fold_name: see `majority_predictions`.

    Returns:
        One table a method. Connectivity is not among them where neither scans nor an autoencoder can be had.

    Raises:
        InputError: as for `majority_predictions`; an atlas or a folder that is none.
        OSError: `cache` cannot be written.
    """
    regions = atlas if atlas is None or isinstance(atlas, Regions) else atlas_regions(atlas)
    kept = RunCache(cache)
    found = _scans_of_all(store, task, scans, on_note)
    sides = _sides(store, task, training_runs, held_out_runs)
    num_frames = sum(store.runs[run].num_frames for side in sides for run in side.all_runs)

    def told(earlier: int) -> OnProgress | None:
        return None if on_progress is None else lambda done, total: on_progress(earlier + done, 2 * num_frames)

    fold = (store, task, training_runs, held_out_runs, fold_name)
    tables = [majority_predictions(*fold), mean_token_predictions(*fold, kept, told(0))]
    courses = RegionTimeSeries(store, found, device, kept)
    try:
        tables.append(connectivity_predictions(*fold, courses, regions, on_progress=told(num_frames), on_note=on_note))
    except InputError as error:
        on_note(f"{CONNECTIVITY} could not be run in {fold_name}: {error}")
    return tables


def _scans_of_all(store: Any, task: Task, scans: Any, on_note: OnNote) -> FoundScans | None:
    """Where all scans lie; None where one is missing, which is reported."""
    if scans is None:
        return None
    found = scans if isinstance(scans, FoundScans) else find_scans(store, scans)
    needed = [run.key for run in store.runs if _is_known(run.phenotypes.get(task.label))]
    if missing := [key for key in needed if key not in found.paths]:
        on_note(
            f"The scans of {len(missing)} of {len(needed)} runs were not found in {', '.join(map(str, found.folders))} "
            f"({missing[0]}: {found.problems.get(missing[0], 'it was not searched for.')}) So courses of regions come "
            "from decoded tokens, for all runs."
        )
        return None
    return found


# --- subjects


@dataclass(frozen=True)
class _People:
    """Those with the label on one side, in the order in which they come first.

    `runs` are places in `store.runs` of those of their runs that have the label; `family_numbers` `(n,)` are the same
    within a family.
    """

    subjects: tuple[str, ...]
    runs: tuple[tuple[int, ...], ...]
    targets: np.ndarray
    sites: tuple[str | None, ...]
    family_numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.subjects)

    @property
    def all_runs(self) -> list[int]:
        return [run for own in self.runs for run in own]

    def predictions(self, method: str, task: Task, outputs: np.ndarray, fold_name: str) -> Predictions:
        folds = (fold_name,) * len(self)
        return Predictions(method, task.label, task.classes, self.subjects, self.targets, outputs, self.sites, folds)


def _sides(
    store: Any, task: Task, training_runs: Sequence[int | str], held_out_runs: Sequence[int | str]
) -> tuple[_People, _People]:
    training, held_out = (_people(store, task, runs) for runs in (training_runs, held_out_runs))
    if both := set(training.subjects) & set(held_out.subjects):
        raise ValueError(f"{min(both)} stands among the people to learn from and among those held out.")
    return training, held_out


def _people(store: Any, task: Task, runs: Sequence[int | str]) -> _People:
    subjects, families = subject_ids(store.runs), family_ids(store.runs)
    own_runs: dict[str, list[int]] = {}
    for run in dict.fromkeys(store.index(run) for run in runs):
        if _is_known(store.runs[run].phenotypes.get(task.label)):
            own_runs.setdefault(subjects[run], []).append(run)
    if not own_runs:
        raise InputError(f"None of {len(runs)} runs has a {task.label}; choose other runs, or another label.")
    targets = [_target(store.runs[own[0]], task) for own in own_runs.values()]

    def first_known(values: Iterable[Any]) -> Any:
        return next((value for value in values if value is not None), None)

    own_families = [first_known(families[run] for run in own) for own in own_runs.values()]
    groups = [
        ("person", subject) if family is None else ("family", family)
        for subject, family in zip(own_runs, own_families, strict=True)
    ]
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return _People(
        tuple(own_runs),
        tuple(tuple(own) for own in own_runs.values()),
        np.array(targets, dtype=np.float64 if task.is_regression else np.int64),
        tuple(first_known(store.runs[run].site for run in own) for own in own_runs.values()),
        np.array([numbers[group] for group in groups]),
    )


def _target(run: Any, task: Task) -> int | float:
    value = run.phenotypes[task.label]
    if task.is_regression:
        return float(value)
    if value not in task.classes:
        raise InputError(
            f"{run.key}: its {task.label} is {value!r}, which is none of {', '.join(map(repr, task.classes))}; leave "
            "the run out."
        )
    return task.classes.index(value)


def _is_known(value: Any) -> bool:
    return value is not None and value == value  # NaN is not equal to itself


def _linear_predictions(
    method: str,
    task: Task,
    training: _People,
    held_out: _People,
    features: np.ndarray,
    held_out_features: np.ndarray,
    fold_name: str,
) -> Predictions:
    model = LinearModel(None if task.is_regression else len(task.classes))
    model.fit(features, training.targets, training.family_numbers)
    return held_out.predictions(method, task, model.outputs(held_out_features), fold_name)


def _num_missing_regions(connections: np.ndarray, num_regions: int) -> int:
    """Regions without a single known connection."""
    rows, columns = np.tril_indices(num_regions, -1)
    is_known = np.isfinite(connections)
    return num_regions - len({*rows[is_known], *columns[is_known]})
