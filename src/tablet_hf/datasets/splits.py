"""Who is trained on, who chooses the model and who evaluates it: splits by subject, never by window or run.

    subjects, families = subject_ids(store.runs), family_ids(store.runs)
    labels, sites = [run.phenotypes["sex"] for run in store.runs], [run.site for run in store.runs]
    splits = folds(subjects, labels, sites, families)         # the paper's four, 80/10/10
    training_runs = runs_in(splits[0], store.runs, "train")

How subjects are dealt out. They are cut into pieces of equal size, ten for 80/10/10, each with its share of every
stratum (label and site); one piece is the test part, one the validation part, eight are for training, and which is
which is drawn. Pieces of subjects without relatives come from scikit-learn's `StratifiedKFold`: a stratum's members in
any two pieces differ by one at most. Where families have several members, `StratifiedGroupKFold` places whole
families, the most one-sided first, wherever the strata stay most even.

What neither can do, and what happens then:

- A stratum with fewer members than there are pieces cannot be in all parts. Such strata of one label are pooled over
  their sites, so that the label stays even where the site cannot; a label too rare by itself stays a stratum.
- Where no stratum has as many members as there are pieces, fewer pieces are made, so that every part has its share of
  the labels but is not of the size that was asked for; where that is not possible either, strata are given up, and the
  largest families are placed first, wherever there is most room.
- A family larger than a piece makes that piece too large; it is then trained on.

Each of these is said in a `UserWarning` and recorded in `Split.settings["notes"]`.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np

from tablet_hf.errors import InputError
from tablet_hf.files import safe_name
from tablet_hf.version import __version__

__all__ = [
    "PARTS",
    "Split",
    "check",
    "family_ids",
    "folds",
    "leave_one_site_out",
    "runs_in",
    "split_subjects",
    "subject_ids",
    "without_prefix",
]

PARTS = ("train", "validation", "test")

# Subjects are dealt into pieces of 1% at the finest.
MAX_PIECES = 100
# Numbers of more different values than this are no classes.
MAX_CLASSES = 10
MAX_BINS = 5
# That numpy's generators take.
LARGEST_SEED = 2**32 - 1
# A part may be larger or smaller by five points before a word is said about it.
TOLERATED_SHARE = 0.05


@dataclass(frozen=True)
class Split:
    """Which subjects stand in which part.

    Attributes:
        name: the column of a CSV file.
        assignment: "train", "validation" or "test" for each subject (see `subject_ids`).
        seed: that it was drawn with; None where it was not drawn.
        settings: how it was made, JSON-able.
        left_out: subjects that stand in no part, such as those without the label.
    """

    name: str
    assignment: Mapping[str, str]
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def __post_init__(self):
        if safe_name(self.name) != self.name:  # results are written to a folder of this name
            raise InputError(f"{self.name!r}: the name of a split cannot be that of a folder; rename its column.")
        for subject, part in self.assignment.items():
            if part not in PARTS:
                raise InputError(f"{self.name}: {subject!r} stands in {part!r}; parts are {', '.join(PARTS)}.")

    def subjects(self, part: str) -> list[str]:
        """The subjects of one part, sorted."""
        return sorted(subject for subject, its_part in self.assignment.items() if its_part == part)

    @property
    def counts(self) -> dict[str, int]:
        """Subjects of each part."""
        return {part: list(self.assignment.values()).count(part) for part in PARTS}


# --- who is who


def subject_ids(runs: Sequence[Any]) -> list[str]:
    """The subject of each run, as `dataset/subject` where the runs come from more than one dataset.

    Give all runs of a store at once: which datasets it holds decides what its subjects are called.
    """
    return _within_dataset(runs, [str(run.subject) for run in runs])


def family_ids(runs: Sequence[Any]) -> list[str | None]:
    """The family of each run's subject, None where there is none; named like `subject_ids`."""
    return _within_dataset(runs, [None if run.family is None else str(run.family) for run in runs])


def families_of(runs: Sequence[Any]) -> dict[str, str | None]:
    """The family of each subject of a store, named like `subject_ids`; families that share a subject are one."""
    subjects, families = subject_ids(runs), family_ids(runs)
    numbers = dict(zip(sorted(set(subjects)), _family_numbers(subjects, families).tolist(), strict=True))
    names: dict[int, str] = {}
    for subject, family in sorted(zip(subjects, families, strict=True), key=lambda pair: str(pair[1])):
        if family is not None:
            names.setdefault(numbers[subject], family)
    return {subject: names.get(number) for subject, number in numbers.items()}


def runs_in(split: Split, runs: Sequence[Any], part: str) -> list[int]:
    """Places in `runs` (all runs of a store) of those whose subject stands in `part`.

    Raises:
        InputError: there is none, or members of one family stand in two parts.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, not {part!r}.")
    check(split, families_of(runs))
    places = [place for place, subject in enumerate(subject_ids(runs)) if split.assignment.get(subject) == part]
    if not places:
        raise InputError(
            f"{split.name}: none of the {len(runs)} runs is of a subject in its {part} part; use a split that was made "
            "for this store."
        )
    return places


def check(split: Split, families: Mapping[str, str | None] | None = None) -> None:
    """Make sure that no one is trained on and evaluated by.

    Args:
        families: of each subject, None for no family; subjects that are not in the split do not matter.

    Raises:
        InputError: a subject (`01` and `sub-01` are one), or members of one family, in two parts.
    """
    groups = [("subject", without_prefix, "call one of them otherwise if they are two people")]
    if families is not None:
        groups.append(("family", families.get, "put all of a family on one side"))
    for kind, group_of, remedy in groups:
        first: dict[str, str] = {}
        for subject, part in split.assignment.items():
            group = group_of(subject)
            if group is None:
                continue
            other = first.setdefault(group, subject)
            if split.assignment[other] != part:
                raise InputError(
                    f"{split.name}: the {kind} {group!r} stands on both sides, {other!r} in "
                    f"{split.assignment[other]} and {subject!r} in {part}; {remedy}."
                )


# --- making splits


def split_subjects(
    subjects: Sequence[str],
    labels: Sequence[Any] | None = None,
    sites: Sequence[Any] | None = None,
    families: Sequence[Any] | None = None,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> Split:
    """One split, the first of `folds` with the same arguments.

    Args:
        subjects: `(n,)`, one entry a subject, or one a run: entries of one subject are taken together.
        labels: `(n,)`, what will be predicted: parts get their share of each class. Numbers of more than ten different
            values are a regression: parts get their share of each of up to five bins between quantiles. A subject whose
            label is missing (None, NaN) is left out. Of differing labels of one subject the most frequent counts.
        sites: `(n,)`: parts get their share of each label at each site; missing ones count as one site.
        families: `(n,)`: all members stand in one part; None is no family.
        fractions: of the subjects in train, validation and test, 0 or at least 0.01, adding up to 1.
        seed: a whole number from 0 to 2³² - 1. Order and repetition of subjects do not matter.

    Raises:
        InputError: fractions that are none, or too few subjects (or families) for as many parts.
    """
    (split,) = folds(subjects, labels, sites, families, num_folds=1, fractions=fractions, seed=seed)
    return split


def folds(
    subjects: Sequence[str],
    labels: Sequence[Any] | None = None,
    sites: Sequence[Any] | None = None,
    families: Sequence[Any] | None = None,
    num_folds: int = 4,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> list[Split]:
    """Several splits of the same subjects whose test parts are disjoint; by default the four of arXiv:2604.03619.

    The validation part of a fold is taken from the pieces that come next, so it may be the test part of another fold.

    Args:
        num_folds: how many; as many test parts must fit into the whole.
        subjects, labels, sites, families, fractions, seed: see `split_subjects`.

    Returns:
        Splits called fold-1, fold-2, ...; a single one is called split.
    """
    fractions, seed = _checked_fractions(fractions), _checked_seed(seed)
    if num_folds < 1 or (num_folds > 1 and not 0 < fractions[2] <= 1 / num_folds + 1e-6):
        raise InputError(
            f"{num_folds} splits whose test parts hold {fractions[2]:.0%} each and are disjoint are not possible; ask "
            "for another number of folds, or another test fraction."
        )
    people = _gather(subjects, labels, sites, families)
    assignments, settings = _deal(people, fractions, num_folds, seed)
    if people.left_out:
        settings["notes"].insert(0, f"{len(people.left_out)} subjects have no label and stand in no part.")
    names = ["split"] if num_folds == 1 else [f"fold-{number + 1}" for number in range(num_folds)]
    _warn(settings["notes"])
    return [
        Split(name, assignment, seed, {"method": "folds"} | settings, people.left_out)
        for name, assignment in zip(names, assignments, strict=True)
    ]


def leave_one_site_out(
    subjects: Sequence[str],
    labels: Sequence[Any] | None = None,
    sites: Sequence[Any] | None = None,
    families: Sequence[Any] | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> list[Split]:
    """A split for each site: it is the test part, and the validation part is drawn from the other sites.

    Subjects without a site, and subjects seen at several, stand in no part; nor do, in one split, those elsewhere who
    have family at the site that is tested on.

    Args:
        validation_fraction: of the subjects of the other sites; they are dealt out as in `split_subjects`.
        subjects, labels, sites, families, seed: see `split_subjects`.

    Returns:
        Splits called site-NAME, sorted.

    Raises:
        InputError: less than two sites, or too few subjects at the others.
    """
    fractions, seed = _checked_fractions((1 - validation_fraction, validation_fraction, 0)), _checked_seed(seed)
    people = _gather(subjects, labels, sites, families)
    settled = people.take([place for place, own in enumerate(people.all_sites) if len(own) == 1])
    names = sorted(set(settled.sites or ()), key=_sort_key)
    if len(names) < 2:
        raise InputError(
            f"Leaving one site out needs subjects of two sites at least, and there are {len(names)} sites; the site of "
            "a run comes from the source it was tokenized from."
        )
    splits = []
    for site in names:
        here = [place for place, its_site in enumerate(settled.sites) if its_site == site]
        kin = np.isin(settled.families, settled.families[here])
        (assignment,), settings = _deal(settled.take(np.flatnonzero(~kin)), fractions, 1, seed)
        assignment |= dict.fromkeys(settled.take(here).subjects, "test")
        left_out = sorted({*people.left_out, *people.subjects} - set(assignment))
        if left_out:
            settings["notes"].insert(
                0, f"{len(left_out)} subjects stand in no part: without label, of no or several sites, or kin."
            )
        name = safe_name(f"site-{site}")
        _warn(f"{name}: {note}" for note in settings["notes"])
        settings = {"method": "leave_one_site_out", "site": str(site)} | settings
        splits.append(Split(name, dict(sorted(assignment.items())), seed, settings, tuple(left_out)))
    return splits


@dataclass(frozen=True)
class _People:
    """Subjects with a label, sorted; `families` are numbers, one of his own for who has no family."""

    subjects: list[str]
    labels: list[Any] | None
    sites: list[Any] | None
    all_sites: list[set[Any]]
    families: np.ndarray
    left_out: tuple[str, ...] = ()

    def take(self, places: Iterable[int]) -> "_People":
        places = list(places)

        def of(values: list | None) -> list | None:
            return None if values is None else [values[place] for place in places]

        families = self.families[np.array(places, dtype=int)]
        return _People(of(self.subjects), of(self.labels), of(self.sites), of(self.all_sites), families, self.left_out)


def _gather(
    subjects: Sequence[str],
    labels: Sequence[Any] | None,
    sites: Sequence[Any] | None,
    families: Sequence[Any] | None,
) -> _People:
    subjects = [str(subject) for subject in subjects]
    for name, values in (("labels", labels), ("sites", sites), ("families", families)):
        if values is not None and len(values) != len(subjects):
            raise ValueError(f"{name} must have one entry for each of {len(subjects)} subjects, not {len(values)}.")
    if not subjects:
        raise InputError("There are no subjects to split.")
    all_labels, all_sites = _known_by_subject(subjects, labels), _known_by_subject(subjects, sites)
    everybody = list(all_labels)
    unlabelled = {subject for subject in everybody if labels is not None and not all_labels[subject]}
    people = _People(
        everybody,
        None if labels is None else [_most_frequent(all_labels[subject]) for subject in everybody],
        None if sites is None else [_most_frequent(all_sites[subject]) for subject in everybody],
        [set(all_sites[subject]) for subject in everybody],
        _family_numbers(subjects, families),
        tuple(sorted(unlabelled)),
    )
    return people.take(place for place, subject in enumerate(everybody) if subject not in unlabelled)


def _family_numbers(subjects: Sequence[str], families: Sequence[Any] | None) -> np.ndarray:
    """A number for each of the sorted subjects, the same within a family; families that share a subject are one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    everybody, rows = np.unique(subjects, return_inverse=True)
    members = [
        (row, str(family))
        for row, family in zip(rows, families if families is not None else (), strict=False)
        if _is_known(family)
    ]
    named, columns = np.unique([family for _, family in members], return_inverse=True)
    size = len(everybody) + len(named)
    links = coo_array(
        (np.ones(len(members)), ([row for row, _ in members], len(everybody) + columns)), shape=(size, size)
    )
    return connected_components(links, directed=False)[1][: len(everybody)]


def _deal(
    people: _People, fractions: Sequence[float], num_folds: int, seed: int
) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """The part of each subject in each fold, and how that was found."""
    from sklearn import __version__ as sklearn_version

    counts, strata, stratified_by, notes = _plan(people, fractions, num_folds)
    pieces = _pieces(strata, people.families, sum(counts), seed)
    if len(np.unique(pieces)) < sum(counts):
        # Placed for the sake of strata, families can leave a piece empty; placed for size alone they do not.
        pieces, stratified_by = _pieces(np.zeros_like(strata), people.families, sum(counts), seed), []
        notes.append("The families are too large for a share of every label and site in every part.")
    assignments = [
        dict(zip(people.subjects, parts[pieces].tolist(), strict=True))
        for parts in _parts_of_pieces(np.bincount(pieces), counts, num_folds, seed)
    ]
    for assignment in assignments:
        shares = [list(assignment.values()).count(part) / len(assignment) for part in PARTS]
        if max(abs(share - asked) for share, asked in zip(shares, fractions, strict=True)) > TOLERATED_SHARE:
            notes.append(
                f"Train, validation and test hold {_percent(shares)} of the subjects instead of {_percent(fractions)}: "
                "there are too few subjects, or families are too large."
            )
            break
    settings = {
        "fractions": list(fractions),
        "num_folds": num_folds,
        "num_pieces": dict(zip(PARTS, counts, strict=True)),
        "stratified_by": stratified_by,
        "num_subjects": len(people.subjects),
        "num_families": len(np.unique(people.families)),
        "notes": notes,
        "software": {"tablet-hf": __version__, "scikit-learn": sklearn_version},
    }
    return assignments, settings


def _plan(
    people: _People, fractions: Sequence[float], num_folds: int
) -> tuple[tuple[int, int, int], np.ndarray, list[str], list[str]]:
    """How many pieces each part gets, the stratum `(people,)` of everyone, what makes one, and what to say of it."""
    num_subjects, num_families = len(people.subjects), len(np.unique(people.families))
    counts = _piece_counts(fractions, num_families, num_folds)
    if counts is None:
        raise InputError(
            f"{num_subjects} subjects of {num_families} families are too few for parts of {_percent(fractions)} in "
            f"{num_folds} splits whose test parts are disjoint; ask for fewer parts or folds, or add subjects."
        )
    stratified_by = [name for name, values in (("label", people.labels), ("site", people.sites)) if values is not None]
    labels, label_names = _label_classes(people.labels or [None] * num_subjects, num_subjects // sum(counts))
    sites, site_names = _codes(people.sites or [None] * num_subjects)
    strata, small = _strata(labels, sites, sum(counts))
    notes = []
    if small:
        named = [
            " at ".join(
                [f"label {label_names[label]}"] * ("label" in stratified_by)
                + [f"site {site_names[site]}"] * ("site" in stratified_by)
            )
            + f" ({count})"
            for label, site, count in small
        ]
        notes.append(
            f"{len(small)} strata have fewer subjects than the {sum(counts)} pieces that are dealt out, so not every "
            f"part has its share of them: {', '.join(named[:5])}{', and others' if len(named) > 5 else ''}."
            + " Sites that are too small are pooled."
            * ("site" in stratified_by)
        )
    largest = int(np.bincount(strata).max())
    if largest < sum(counts):
        fewer = _piece_counts(fractions, largest, num_folds)
        if fewer is None:
            notes.append(f"There are too few subjects to stratify by {' and '.join(stratified_by)}.")
            return counts, np.zeros_like(strata), [], notes
        counts = fewer
    return counts, strata, stratified_by, notes


def _piece_counts(fractions: Sequence[float], most: int, num_folds: int) -> tuple[int, int, int] | None:
    """Pieces for train, validation and test: as few as come within 2% of each fraction, `most` at most."""
    _, validation, test = fractions

    def counts_of(total: int, least: int) -> tuple[int, int, int]:
        rest = [max(round(fraction * total), least) if fraction else 0 for fraction in (validation, test)]
        return total - sum(rest), *rest

    most = min(most, MAX_PIECES)
    for total in range(2, most + 1):
        counts = counts_of(total, 0)
        if all(abs(count / total - share) <= 0.02 * share for count, share in zip(counts, fractions, strict=True)):
            break
    else:
        counts = counts_of(most, 1)
    return counts if counts[0] >= 1 and num_folds * counts[2] <= sum(counts) else None


def _label_classes(labels: Sequence[Any], members_per_piece: int) -> tuple[np.ndarray, list[str]]:
    """A number `(people,)` for each label's class, and what the classes are called."""
    is_number = all(isinstance(label, Real) and not isinstance(label, bool | np.bool_) for label in labels)
    if not is_number or len(set(labels)) <= MAX_CLASSES:
        return _codes(labels)
    num_bins = min(max(members_per_piece, 1), MAX_BINS)
    edges = np.quantile(np.asarray(labels, dtype=float), np.linspace(0, 1, num_bins + 1)[1:-1])
    bins = np.searchsorted(edges, np.asarray(labels, dtype=float), side="right")
    return bins, [f"quantile bin {number + 1} of {num_bins}" for number in range(num_bins)]


def _strata(labels: np.ndarray, sites: np.ndarray, smallest: int) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """The stratum `(people,)` of each label at each site, sorted by label; and small ones as (label, site, members).

    Strata of fewer than `smallest` members are pooled with the others of their label.
    """
    cells = Counter(zip(labels.tolist(), sites.tolist(), strict=True))
    small = {cell for cell, count in cells.items() if count < smallest}
    pooled = [(label, -1 if (label, site) in small else site) for label, site in zip(labels, sites, strict=True)]
    strata = np.unique(np.array(pooled), axis=0, return_inverse=True)[1].reshape(-1)
    return strata, [(*cell, cells[cell]) for cell in sorted(small)]


def _pieces(strata: np.ndarray, families: np.ndarray, num_pieces: int, seed: int) -> np.ndarray:
    """The piece `(people,)` of everyone, from 0 to `num_pieces` - 1."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if not strata.any():
        return _even_pieces(families, num_pieces, seed)
    # StratifiedKFold deals classes one after the other in the order in which it meets them. Sorted, all strata of a
    # label lie together, so that the label is spread evenly even where a stratum is too small for it.
    order = np.argsort(strata, kind="stable")
    strata, families = strata[order], families[order]
    if len(np.unique(families)) == len(families):
        parts = StratifiedKFold(num_pieces, shuffle=True, random_state=seed).split(strata, strata)
    else:
        parts = StratifiedGroupKFold(num_pieces, shuffle=True, random_state=seed).split(strata, strata, families)
    pieces = np.empty(len(order), dtype=int)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # told by our own names
        for piece, (_, members) in enumerate(parts):
            pieces[order[members]] = piece
    return pieces


def _even_pieces(families: np.ndarray, num_pieces: int, seed: int) -> np.ndarray:
    """As `_pieces`, for size alone: the largest families first, each to the smallest piece, so that none is empty."""
    _, family, sizes = np.unique(families, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(sizes))
    piece_of_family, filled = np.empty(len(sizes), dtype=int), np.zeros(num_pieces, dtype=int)
    for number in order[np.argsort(-sizes[order], kind="stable")]:
        piece_of_family[number] = filled.argmin()
        filled[piece_of_family[number]] += sizes[number]
    return piece_of_family[family]


def _parts_of_pieces(
    sizes: np.ndarray, counts: tuple[int, int, int], num_folds: int, seed: int
) -> Iterable[np.ndarray]:
    """For each fold, the part of each piece."""
    _, num_validation, num_test = counts
    order = np.random.default_rng(seed).permutation(len(sizes))
    # A piece that a large family made far too large, or left far too small, comes last and is trained on. Small
    # differences do not matter, or families would hardly ever be tested on.
    oddness = np.maximum(np.abs(sizes - sizes.mean()) - max(1, sizes.mean() / 4), 0)
    order = order[np.argsort(oddness[order], kind="stable")]
    for fold in range(num_folds):
        turned = np.roll(order, -fold * num_test)
        parts = np.full(len(sizes), "train", dtype=object)
        parts[turned[:num_test]] = "test"
        parts[turned[num_test : num_test + num_validation]] = "validation"
        yield parts


# --- parts


def _within_dataset(runs: Sequence[Any], names: Sequence[str | None]) -> list[str | None]:
    if len({run.dataset for run in runs}) < 2:
        return list(names)
    return [
        name if name is None or run.dataset is None else f"{run.dataset}/{name}"
        for run, name in zip(runs, names, strict=True)
    ]


def without_prefix(subject: str) -> str:
    """`sub-01` and `HCP/sub-01` as the data set calls them: `01` and `HCP/01`."""
    return re.sub(r"(^|/)sub-", r"\1", subject)


def _known_by_subject(subjects: Sequence[str], values: Sequence[Any] | None) -> dict[str, list[Any]]:
    """What is known of each subject, sorted by subject."""
    known: dict[str, list[Any]] = {subject: [] for subject in sorted(set(subjects))}
    for subject, value in zip(subjects, values if values is not None else (), strict=values is not None):
        if _is_known(value):
            known[subject].append(value)
    return known


def _is_known(value: Any) -> bool:
    return value is not None and value == value  # NaN is not equal to itself


def _most_frequent(values: Sequence[Any]) -> Any:
    """None of none; of equally frequent ones the first in order."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], _sort_key(value)), default=None)


def _codes(values: Sequence[Any]) -> tuple[np.ndarray, list[str]]:
    """The place `(n,)` of each value among the sorted different ones, and their names."""
    distinct = sorted(set(values), key=_sort_key)
    place = {value: number for number, value in enumerate(distinct)}
    return np.array([place[value] for value in values]), [str(value) for value in distinct]


def _sort_key(value: Any) -> tuple[bool, Any]:
    """Numbers before texts."""
    return (False, value) if isinstance(value, Real) else (True, str(value))


def _checked_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    fractions = tuple(float(fraction) for fraction in fractions)
    is_share = all(fraction == 0 or 0.01 <= fraction < 1 for fraction in fractions)
    if len(fractions) != 3 or not is_share or not fractions[0] or abs(sum(fractions) - 1) > 1e-6:
        raise InputError(
            f"Parts of {fractions} are not possible; give train, validation and test as shares that add up to 1, each "
            "0 or at least 0.01, train not 0."
        )
    return fractions


def _checked_seed(seed: int) -> int:
    if not isinstance(seed, Integral) or not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"The seed {seed} is not possible; give a whole number from 0 to {LARGEST_SEED}.")
    return int(seed)


def _percent(shares: Iterable[float]) -> str:
    return ", ".join(f"{share:.0%}" for share in shares)


def _warn(notes: Iterable[str]) -> None:
    for note in notes:
        warnings.warn(note, stacklevel=3)
