"""Subject-level train/validation/test splits, stratified by label and site, with families kept together.

    splits = folds(**split_columns(store, "sex"))  # five; every subject is tested exactly once
    training_runs = runs_in(splits[0], store.runs, "train")

Whole families are dealt into parts by scikit-learn's `StratifiedKFold`. A stratum is a label, or a label at a site;
numbers are cut at quantiles. Families of several members are stratified by their size and the strata of all members.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from tablet_hf.errors import InputError
from tablet_hf.files import safe_name
from tablet_hf.sources.records import phenotype_values
from tablet_hf.version import __version__

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "PARTS",
    "Split",
    "check",
    "family_ids",
    "folds",
    "leave_one_site_out",
    "random_splits",
    "runs_in",
    "split_columns",
    "subject_ids",
    "without_prefix",
]

PARTS = ("train", "validation", "test")

# What commands write next to the folders of splits.
RESERVED_NAMES = {"baselines", "checkpoints", "model", "pictures", "index.html", "predictions.csv", "pretraining.json"}
RESERVED_NAMES |= {"results.json", "splits.csv", "splits.json"}

# Numbers with more different values are a regression.
MAX_CLASSES = 10
MAX_BINS, MIN_BIN_SUBJECTS = 5, 10


@dataclass(frozen=True)
class Split:
    """The part of each subject.

    Attributes:
        name: a column of a splits file; results of the split are written to a folder of this name.
        assignment: "train", "validation" or "test" for each subject (see `subject_ids`).
        seed: it was drawn with; None where it was not drawn.
        settings: how it was drawn, JSON-able.
        left_out: subjects in no part, such as those without the label.

    Raises:
        InputError: a name that is no file name or that of other output, or another word for a part.
    """

    name: str
    assignment: Mapping[str, str]
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def __post_init__(self):
        if safe_name(self.name) != self.name or self.name.lower() in RESERVED_NAMES:
            raise InputError(f"{self.name!r}: this name of a split cannot be the name of a folder; rename the column.")
        if unknown := set(self.assignment.values()) - set(PARTS):
            raise InputError(f"{self.name}: {unknown.pop()!r} is no part of a split; use {', '.join(PARTS)}.")

    def subjects(self, part: str) -> list[str]:
        """Return the subjects of one part, sorted."""
        return sorted(subject for subject, its_part in self.assignment.items() if its_part == part)

    @property
    def counts(self) -> dict[str, int]:
        """Number of subjects in each part."""
        return {part: list(self.assignment.values()).count(part) for part in PARTS}


# --- subjects of a store


def subject_ids(runs: Sequence[Any]) -> list[str]:
    """Return the subject of each of all runs of a store, as `dataset/subject` where it has several datasets."""
    return _within_dataset(runs, [str(run.subject) for run in runs])


def family_ids(runs: Sequence[Any]) -> list[str | None]:
    """Return the family of each run's subject, None where there is none; named like `subject_ids`."""
    return _within_dataset(runs, [None if run.family is None else str(run.family) for run in runs])


def _within_dataset(runs: Sequence[Any], names: Sequence[str | None]) -> list[str | None]:
    if len({run.dataset for run in runs}) < 2:
        return list(names)
    return [
        name if name is None or run.dataset is None else f"{run.dataset}/{name}"
        for run, name in zip(runs, names, strict=True)
    ]


def families_of(runs: Sequence[Any]) -> dict[str, int]:
    """Return a number for the family of each subject; families that share a subject are one."""
    subjects = subject_ids(runs)
    return dict(zip(sorted(set(subjects)), _family_numbers(subjects, family_ids(runs)).tolist(), strict=True))


def split_columns(store: Any, label: str | None = None, by_site: bool = False) -> dict[str, list[Any] | None]:
    """Return what the splits of a store are drawn from: the arguments that `folds` and the other functions share.

    Args:
        store: a `TokenDataset`.
        label: phenotype to stratify by.
        by_site: whether to stratify by site, too.

    Raises:
        InputError: no run has the phenotype, or no run has a site.
    """
    sites = [run.site for run in store.runs] if by_site else None
    if by_site and not any(sites):
        raise InputError(f"{store.folder}: no run has a site; tokenize again with a table that has a site column.")
    return {
        "subjects": subject_ids(store.runs),
        "labels": None if label is None else phenotype_values(store.runs, label, store.folder),
        "sites": sites,
        "families": family_ids(store.runs),
    }


def without_prefix(subject: str) -> str:
    """Remove the `sub-` of BIDS: `sub-01` is `01`, and `HCP/sub-01` is `HCP/01`."""
    return re.sub(r"(^|/)sub-", r"\1", subject)


def runs_in(split: Split, runs: Sequence[Any], part: str) -> list[int]:
    """Return the indices in `runs` (all runs of a store) of those in one part of a split.

    Raises:
        InputError: there are none, or a family is in two parts.
    """
    check(split, families_of(runs))
    indices = [index for index, subject in enumerate(subject_ids(runs)) if split.assignment.get(subject) == part]
    if not indices:
        raise InputError(
            f"{split.name}: none of the {len(runs)} runs is in its {part} part; draw a split of this store."
        )
    return indices


def check(split: Split, families: Mapping[str, Any] | None = None) -> None:
    """Check that every subject and every family is in one part.

    Args:
        families: of each subject, None for no family.

    Raises:
        InputError: a subject (`01` and `sub-01` are the same), or members of one family, in two parts.
    """
    for kind, group_of in (("subject", without_prefix), ("family", (families or {}).get)):
        first: dict[Any, str] = {}
        for subject, part in split.assignment.items():
            group = group_of(subject)
            other = first.setdefault(group, subject)
            if group is not None and split.assignment[other] != part:
                raise InputError(
                    f"{split.name}: {other!r} in {split.assignment[other]} and {subject!r} in {part} are the same "
                    f"{kind}; put them into one part."
                )


# --- drawing splits


def folds(
    subjects: Sequence[str],
    labels: Sequence[Any] | None = None,
    sites: Sequence[Any] | None = None,
    families: Sequence[Any] | None = None,
    num_folds: int = 5,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> list[Split]:
    """Draw folds in which every subject is tested exactly once; a validation part is taken from each training part.

    Where no stratum has as many families as there are parts, they are dealt at random, with a warning.

    Args:
        subjects: `(n,)`, an entry for each subject or each run; order and repetition do not matter.
        labels: `(n,)`: parts get their share of each class. Numbers of more than ten different values are cut into up
            to five quantile bins. Subjects without a label (None, NaN) are in no part. Of several labels of a subject
            the first in sorted order counts.
        sites: `(n,)`: parts get their share of each label at each site.
        families: `(n,)`: members of a family are in one part; None is no family.
        num_folds: at least 2.
        validation_fraction: share of all subjects.
        seed: a whole number from 0 to 2³² - 1.

    Returns:
        Splits called fold-1, fold-2, ...

    Raises:
        InputError: too few subjects or families.
    """
    cohort = _Cohort.of(subjects, labels, sites, families)
    parts = _deal(cohort.table, num_folds, seed)
    settings = {"scheme": "folds", "num_folds": num_folds, "validation_fraction": validation_fraction}
    share = validation_fraction * num_folds / (num_folds - 1)
    return [cohort.split(f"fold-{n + 1}", parts == n, share, seed, settings) for n in range(num_folds)]


def random_splits(
    subjects: Sequence[str],
    labels: Sequence[Any] | None = None,
    sites: Sequence[Any] | None = None,
    families: Sequence[Any] | None = None,
    num_splits: int = 4,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> list[Split]:
    """Draw independent random splits, by default four as in the code released with arXiv:2604.03619.

    Their test parts overlap by chance: some subjects are tested several times, others never.

    Args:
        fractions: of the subjects in train, validation and test; they add up to 1.
        seed: of the first split; the next one has `seed + 1`, and so on.
        subjects, labels, sites, families: see `folds`.

    Returns:
        Splits called split-1, split-2, ...
    """
    train, validation, test = fractions
    if min(fractions) < 0 or not train or abs(sum(fractions) - 1) > 1e-6:
        raise InputError(f"Fractions {tuple(fractions)}: give train, validation and test, which add up to 1.")
    cohort = _Cohort.of(subjects, labels, sites, families)
    settings, share = {"scheme": "random", "fractions": list(fractions)}, validation / (1 - test)
    return [
        cohort.split(f"split-{n + 1}", _draw(cohort.table, test, seed + n), share, seed + n, settings)
        for n in range(num_splits)
    ]


def leave_one_site_out(
    subjects: Sequence[str],
    labels: Sequence[Any] | None = None,
    sites: Sequence[Any] | None = None,
    families: Sequence[Any] | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> list[Split]:
    """Make a split for each site, which is its test part; the validation part is drawn from the other sites.

    Subjects without a site or with several are in no part; nor are, in each split, subjects of other sites with family
    at the tested site.

    Args:
        validation_fraction: share of the subjects of the other sites.
        subjects, labels, sites, families, seed: see `folds`.

    Returns:
        Splits called site-NAME, sorted; characters that a file name cannot have are replaced.

    Raises:
        InputError: fewer than two sites, or too few subjects at the others.
    """
    cohort = _Cohort.of(subjects, labels, sites, families)
    cohort.table = cohort.table[cohort.table["num_sites"] == 1]
    site_of = cohort.table["site"].to_numpy()
    names = sorted(set(site_of))
    if len(names) < 2:
        raise InputError(
            f"{len(names)} sites: leaving one out needs two; tokenize with a table that has a site column."
        )
    settings = {"scheme": "site", "validation_fraction": validation_fraction}
    return [
        cohort.split(safe_name(f"site-{name}"), site_of == name, validation_fraction, seed, settings) for name in names
    ]


@dataclass
class _Cohort:
    """Subjects to split.

    Attributes:
        table: a row for each subject with a label: `site`, `num_sites`, numbers of `family` and `stratum`.
        everyone: all subjects, sorted.
        settings: of every split.
    """

    table: "DataFrame"
    everyone: list[str]
    settings: dict[str, Any]

    @classmethod
    def of(cls, subjects: Sequence[str], labels: Sequence | None, sites: Sequence | None, families: Sequence | None):
        import pandas as pd
        import sklearn

        columns = {"subject": map(str, subjects), "label": labels, "site": sites, "family": families}
        columns = {name: values if values is None else list(values) for name, values in columns.items()}
        runs = pd.DataFrame(columns, dtype=object)
        runs = runs.sort_values(["subject", "label", "site"], key=lambda column: column.map(str))
        by_subject = runs.groupby("subject")
        table = by_subject[["label", "site"]].first()
        table["num_sites"] = by_subject["site"].nunique()
        table["family"] = _family_numbers(runs["subject"], runs["family"])
        everyone = table.index.tolist()
        if labels is not None and table["label"].isna().any():
            warnings.warn(f"{table['label'].isna().sum()} subjects have no label and are in no part.", stacklevel=3)
            table = table[table["label"].notna()]
        classes = table["label"]
        if classes.nunique() > MAX_CLASSES and all(isinstance(value, Real) for value in classes):
            num_bins = int(np.clip(len(classes) // MIN_BIN_SUBJECTS, 1, MAX_BINS))
            classes = pd.qcut(classes.astype(float), num_bins, labels=False, duplicates="drop")
        table = table.assign(site=table["site"].map(str))
        table["stratum"] = table.groupby([classes.map(str), table["site"]]).ngroup()
        settings = {
            "stratified_by": [name for name, values in (("label", labels), ("site", sites)) if values is not None],
            "software": {"tablet-hf": __version__, "scikit-learn": sklearn.__version__},
        }
        # Sorted, the strata of a label are adjacent, so that StratifiedKFold spreads the label evenly over the parts.
        return cls(table.sort_values("stratum", kind="stable"), everyone, settings)

    def split(
        self, name: str, is_test: np.ndarray, validation_share: float, seed: int, settings: Mapping[str, Any]
    ) -> Split:
        """Test on some; draw a share of the others for validation, without families of tested subjects."""
        test = self.table[is_test]
        others = self.table[~self.table["family"].isin(test["family"])]
        if others.empty:
            raise InputError(f"{name}: no subjects are left to train on; draw other splits.")
        is_validation = _draw(others, validation_share, seed)
        parts = dict.fromkeys(test.index, "test")
        parts |= zip(others.index, np.where(is_validation, "validation", "train").tolist(), strict=True)
        assignment = {subject: parts[subject] for subject in self.everyone if subject in parts}
        left_out = tuple(subject for subject in self.everyone if subject not in parts)
        return Split(name, assignment, seed, {**settings, **self.settings}, left_out)


def _family_numbers(subjects: Sequence[str], families: Sequence[Any]) -> np.ndarray:
    """A number for the family of each of the sorted subjects; a subject without a family is one of its own."""
    import pandas as pd
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # A graph of subjects and families, in which families that share a subject are connected.
    rows, names = pd.factorize(np.array(subjects, dtype=object), sort=True)
    columns, family_names = pd.factorize(pd.Series(list(families), dtype=object).map(str, na_action="ignore"))
    has_family = columns >= 0
    edges = (np.ones(has_family.sum()), (rows[has_family], len(names) + columns[has_family]))
    size = len(names) + len(family_names)
    return connected_components(coo_array(edges, shape=(size, size)), directed=False)[1][: len(names)]


def _draw(table: "DataFrame", fraction: float, seed: int) -> np.ndarray:
    """Draw a share of the subjects at random, stratified and with families together: a mask `(subjects,)`."""
    if not fraction:
        return np.zeros(len(table), dtype=bool)
    # Of small strata more than the fraction is drawn, so that they are in both parts.
    most = int(min(table["family"].nunique(), max(table["stratum"].value_counts().max(), 4), 100))
    share = max(Fraction(fraction).limit_denominator(most), Fraction(1, most))
    drawn = np.random.default_rng(seed).permutation(share.denominator)[: share.numerator]
    return np.isin(_deal(table, share.denominator, seed), drawn)


def _deal(table: "DataFrame", num_parts: int, seed: int) -> np.ndarray:
    """The part `(subjects,)` of each subject, from 0 to `num_parts` - 1, stratified and with families together."""
    import pandas as pd
    from sklearn.model_selection import StratifiedKFold

    members = table.groupby("family", sort=False)["stratum"].agg(tuple)
    if not 2 <= num_parts <= len(members):
        raise InputError(f"{len(table)} subjects of {len(members)} families cannot be dealt into {num_parts} parts.")
    # In this order families alike are adjacent; StratifiedKFold spreads neighbours over the parts, so all are alike.
    order = {strata: number for number, strata in enumerate(sorted(set(members), key=lambda of: (len(of), of)))}
    strata = members.map(order)
    if strata.value_counts().max() < num_parts:
        warnings.warn(
            f"There are too few subjects to stratify {num_parts} parts; families stay together.", stacklevel=4
        )
        strata = strata * 0
    part_of_family = pd.Series(0, members.index)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of strata with fewer members than parts
        dealt = StratifiedKFold(num_parts, shuffle=True, random_state=seed).split(strata, strata)
        for number, (_, families) in enumerate(dealt):
            part_of_family.iloc[families] = number
    return table["family"].map(part_of_family).to_numpy()
