"""Scans and phenotypes as every source yields them, whatever the layout of the dataset."""

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
    "store_key",
    "typed_columns",
    "typed_rows",
    "typed_value",
]

Phenotype = bool | int | float | str | None
"""A cell of a phenotype table; None where the value is missing."""

MISSING_WORDS = frozenset({"", "n/a", "na", "<na>", "nan", "none", "null", "pending", "missing", "unknown", "-", "."})
"""Missing values in lower case: BIDS writes n/a, ADHD-200 pending; tabular exports leave the cell empty."""

MISSING_NUMBERS = frozenset({-999.0, -9999.0, -888.0, -777.0})
"""Codes of missing values in the phenotypic keys of ADHD-200 and ABIDE."""

ENTITIES = {"sub": "subject", "ses": "session", "task": "task", "run": "run"}
"""BIDS entity -> attribute of a record."""


@dataclass(frozen=True)
class ScanRecord:
    """One run of one subject.

    Args:
        subject: Label without the prefix `sub-`, unique in its dataset.
        scan: 4D NIfTI file in MNI152 space.
        mask: Brain mask on the grid of the scan (default: found when the scan is opened).
        repetition_time: In seconds (default: from the sidecar or the header).
        session, task, run: BIDS labels without their prefix.
        dataset: Name of the study, such as "HCP-YA".
        site: Scanning site.
        family: Subjects of one family stay in one part of a split.
        phenotypes: Values by name. numpy scalars become Python scalars; NaN, infinity and pandas' NA become None.

    Raises:
        InputError: If a phenotype is not a text, a number, a bool or None.
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
        phenotypes = {name: _plain(name, value) for name, value in self.phenotypes.items()}
        object.__setattr__(self, "phenotypes", phenotypes)

    @property
    def key(self) -> str:
        """Name of the run in a token store, see `store_key`."""
        return store_key(self)


@dataclass(frozen=True)
class Problem:
    """Something that could not be used: `what` is a file or a subject, `why` one sentence."""

    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


@dataclass(frozen=True)
class Cohort:
    """The scans that a source found.

    Args:
        records: Usable scans, sorted by key; keys are unique.
        problems: What was left out, and why. Nothing is dropped without one.
        is_restricted: Whether the terms of the data forbid sharing data of single subjects (HCP, UK Biobank).
    """

    records: Sequence[ScanRecord]
    problems: Sequence[Problem] = ()
    is_restricted: bool = False


def phenotype_values(runs: Sequence[Any], name: str, where: Any) -> list[Any]:
    """Return a phenotype of every run, None where it is missing.

    Args:
        runs: Runs of a store, or records.
        name: Name of the phenotype.
        where: Name of the store, for the error.

    Raises:
        InputError: If it is missing for all runs.
    """
    values = [run.phenotypes.get(name) for run in runs]
    if runs and all(value is None for value in values):
        others = {other for run in runs for other, value in run.phenotypes.items() if value is not None}
        raise InputError(
            f"{where}: no run has the phenotype {name}; choose from {', '.join(sorted(others)) or 'none'}."
        )
    return values


def typed_value(cell: str) -> Phenotype:
    """Convert a cell of a table to None, a number or a stripped text.

    Whole numbers become int ("1", "1.0"), others float. `MISSING_WORDS`, `MISSING_NUMBERS`, NaN and infinity become
    None. Labels that only look like numbers stay text: "007", "52259_82122", more than 15 digits.
    """
    text = cell.strip()
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
    raise InputError(f"The phenotype {name!r} is a {type(value).__name__}; give a text, a number, True, False or None.")


def typed_rows(rows: Sequence[Mapping[str, Phenotype]]) -> list[dict[str, Phenotype]]:
    """Return the rows with all columns, each of the one type that `typed_columns` gives."""
    kinds = typed_columns(rows)
    return [{name: None if row.get(name) is None else kind(row[name]) for name, kind in kinds.items()} for row in rows]


def typed_columns(rows: Sequence[Mapping[str, Phenotype]]) -> dict[str, type]:
    """Return the type of each column over all rows: bool, int, float, or str where types are mixed or all is None."""
    kinds: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            kinds.setdefault(name, set()).update([] if value is None else [type(value)])
    return {
        name: next(iter(found)) if len(found) == 1 else float if found == {int, float} else str
        for name, found in kinds.items()
    }


def store_key(record: Any) -> str:
    """Return the name of a record or run in a store: `sub-01_task-rest`, `HCP-YA/sub-100307_task-rest` of a dataset."""
    labels = {entity: getattr(record, name) for entity, name in ENTITIES.items()}
    key = "_".join(f"{entity}-{_label(label)}" for entity, label in labels.items() if label is not None)
    return key if record.dataset is None else f"{_label(record.dataset, allowed='+-')}/{key}"


def _label(value: str, allowed: str = "+") -> str:
    """Return a label fit for a file name; a checksum keeps labels apart that differ only in what was removed."""
    value = unicodedata.normalize("NFC", str(value))  # file systems differ in how they compose letters
    plain = re.sub(rf"[^0-9A-Za-z{re.escape(allowed)}]", "", unicodedata.normalize("NFKD", value)) or "x"
    if plain == value:
        return plain
    return f"{plain}+{hashlib.sha256(value.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
