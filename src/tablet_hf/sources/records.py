"""What is known of one scan before it is tokenized: who, when, where it is, and what was measured of the subject.

Every source (`tablet_hf.sources`) yields these, and nothing after the sources knows which one it was.
"""

import hashlib
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tablet_hf.errors import InputError

__all__ = [
    "Cohort",
    "Phenotype",
    "Problem",
    "ScanRecord",
    "phenotype_values",
    "same_labels",
    "store_key",
    "typed_columns",
    "typed_rows",
    "typed_value",
]

Phenotype = bool | int | float | str | None
"""What a cell of a phenotype table can hold; None where it is missing."""

MISSING_WORDS = frozenset({"", "n/a", "na", "<na>", "nan", "none", "null", "pending", "missing", "unknown", "-", "."})
"""Cells that mean "not known", lower case: BIDS writes n/a, ADHD-200 pending, tabular exports leave them empty."""

MISSING_NUMBERS = frozenset({-999.0, -9999.0, -888.0, -777.0})
"""Numbers that ADHD-200 and ABIDE write where nothing was measured (their phenotypic keys)."""


@dataclass(frozen=True)
class ScanRecord:
    """One run of one subject.

    Attributes:
        subject: label without the `sub-` of BIDS; unique in its dataset.
        scan: 4D NIfTI in MNI152 space.
        mask: brain mask on the scan's own grid; None leaves finding it to `tablet_hf.volumes.open_run`.
        repetition_time: seconds; None leaves it to sidecar and header.
        session, run, task: BIDS entities without their prefix, None where the layout has none.
        dataset: name of the dataset, e.g. "HCP-YA".
        site: where it was scanned.
        family: subjects of one family share it; splits keep them on one side.
        phenotypes: typed, see `typed_value`; the same names for all records of a cohort. Numbers of numpy become those
            of Python, and what is no number (NaN, infinity, the NA of pandas) None.

    Raises:
        InputError: a phenotype that is no text, number, bool or None.
    """

    subject: str
    scan: Path
    mask: Path | None = None
    repetition_time: float | None = None
    session: str | None = None
    task: str | None = None
    run: str | None = None
    dataset: str | None = None
    site: str | None = None
    family: str | None = None
    phenotypes: Mapping[str, Phenotype] = field(default_factory=dict)

    def __post_init__(self):
        # Tables of pandas give numbers of numpy and NaN, and neither can be written as JSON.
        own = {name: _plain(name, value) for name, value in self.phenotypes.items()}
        object.__setattr__(self, "phenotypes", own)

    @property
    def key(self) -> str:
        """What tells this run from all others of its dataset, as BIDS would write it; fit for a file name.

        A label of other signs than letters, digits and `+` gets eight signs of its checksum behind it, so that `a-1`
        and `a1`, or `Jörg` and `Jorg`, are called differently.
        """
        return _key(self)


@dataclass(frozen=True)
class Problem:
    """Something of a source that could not be used: `what` names the file or the subject, `why` is one sentence.

    A note tells of something that may be missed, such as a table of labels, where all that was given is used.
    """

    what: str
    why: str
    is_note: bool = False

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


@dataclass(frozen=True)
class Cohort:
    """What a source found.

    Attributes:
        records: usable scans, sorted by `store_key`, which is unique.
        problems: what was left out or is missing, and why. Nothing is dropped without one.
        is_restricted: whether the terms of the data forbid passing on what concerns single subjects (HCP, UK Biobank).
    """

    records: Sequence[ScanRecord]
    problems: Sequence[Problem] = ()
    is_restricted: bool = False

    @property
    def is_all_used(self) -> bool:
        """Whether nothing was left out; there may be notes."""
        return all(problem.is_note for problem in self.problems)


def phenotype_values(runs: Sequence[Any], name: str, where: Any = "the store") -> list[Any]:
    """A phenotype of each run of a store, None where it is not known.

    Args:
        runs: all of them, or records.
        name: of the phenotype.
        where: what the error calls their store, its folder say.

    Raises:
        InputError: it is known of none of them.
    """
    values = [run.phenotypes.get(name) for run in runs]
    if runs and all(value is None for value in values):
        known = {other for run in runs for other, value in run.phenotypes.items() if value is not None}
        raise InputError(
            f"{name}: no run of {where} has this phenotype; there are {', '.join(sorted(known)) or 'none'}."
        )
    return values


def typed_value(cell: Any) -> Phenotype:
    """What a cell of a table means: None, a number or a text; never a guess.

    Whole numbers become int ("1", "1.0"), others float; "n/a", "pending", empty cells, NaN and the -999 of ADHD-200 and
    ABIDE become None. Texts such as "M" or "yes" stay as they are, stripped; so do labels that only look like numbers:
    with a leading zero ("007"), with an underscore ("52259_82122", which Python reads as one number), or with more
    digits than the 15 that a float keeps.
    """
    if cell is None or isinstance(cell, int):  # bool among them
        return None if cell in MISSING_NUMBERS else cell
    text = str(cell).strip()
    if text.lower() in MISSING_WORDS:
        return None
    if re.fullmatch(r"[+-]?(0\d+|\d{16,})", text) or "_" in text:
        return text
    try:
        number = float(text)
    except ValueError:
        return text
    if not math.isfinite(number) or number in MISSING_NUMBERS:
        return None
    return int(number) if number.is_integer() and abs(number) < 2**53 and "e" not in text.lower() else number


def _plain(name: str, value: Any) -> Phenotype:
    value = value.item() if getattr(value, "shape", None) == () else value
    if type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(f"the phenotype {name!r} is a {type(value).__name__}; give a text, a number, True, False or None.")


def typed_rows(rows: Sequence[Mapping[str, Phenotype]]) -> list[dict[str, Phenotype]]:
    """The rows with all columns, each of the one type that `typed_columns` says."""
    kinds = typed_columns(rows)
    return [{name: None if row.get(name) is None else kind(row[name]) for name, kind in kinds.items()} for row in rows]


def typed_columns(rows: Sequence[Mapping[str, Phenotype]]) -> dict[str, type]:
    """The one type of each column over all rows: bool, int, float, or str where kinds are mixed; all None is str."""
    kinds: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            kinds.setdefault(name, set()).update([] if value is None else [type(value)])
    return {
        name: next(iter(found)) if len(found) == 1 else float if found == {int, float} else str
        for name, found in kinds.items()
    }


# --- what runs are called


def store_key(record: Any) -> str:
    """`sub-01_task-rest`, behind its dataset's name where there is one: `HCP-YA/sub-100307_task-rest_run-REST1LR`.

    `record` is a `ScanRecord`, or a `StoredRun`.
    """
    key = _key(record)
    return key if record.dataset is None else f"{_label(record.dataset, allowed='+-')}/{key}"


def same_labels(one: Any, other: Any) -> bool:
    """Whether two records, or runs of a store, say the same of subject, session, task and run."""
    return all(_text(getattr(one, name)) == _text(getattr(other, name)) for name in _ENTITIES.values())


_ENTITIES = {"sub": "subject", "ses": "session", "task": "task", "run": "run"}


def _key(record: Any) -> str:
    labels = {entity: getattr(record, name) for entity, name in _ENTITIES.items()}
    return "_".join(f"{entity}-{_label(label)}" for entity, label in labels.items() if label is not None)


def _label(value: str, allowed: str = "+") -> str:
    """A label of ASCII letters, digits and the signs `allowed`; anything else would break file names apart.

    Letters with marks lose them (`ö` becomes `o`); whatever is lost, the checksum behind the label tells it apart.
    """
    value = _text(value)
    plain = re.sub(rf"[^0-9A-Za-z{re.escape(allowed)}]", "", unicodedata.normalize("NFKD", value)) or "x"
    if plain == value:
        return plain
    return f"{plain}+{hashlib.sha256(value.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def _text(value: str | None) -> str | None:
    """Composed and decomposed letters are the same: which of them a folder's name has depends on the computer."""
    return None if value is None else unicodedata.normalize("NFC", str(value))
