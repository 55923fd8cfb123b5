"""What tables say of subjects, brought together and laid next to their scans."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tablet_hf.errors import InputError
from tablet_hf.sources.columns import typed_cells
from tablet_hf.sources.delimited import column_among, read_table
from tablet_hf.sources.records import Phenotype, Problem, ScanRecord

__all__ = ["People", "bids_label", "join", "number_label", "with_common_names"]

SITE_COLUMNS = ("site", "site_id")
FAMILY_COLUMNS = ("family", "family_id")
"""Columns that become the fields `site` and `family` of a record, not phenotypes, whatever their case."""


SEX_COLUMNS = ("sex", "gender")
SEX = {"f": "F", "female": "F", "m": "M", "male": "M"}
"""Words that say nothing else, lower case. Codes are not among them: which sex is 1 differs between studies."""


def bids_label(entity: str) -> Callable[[str], str | None]:
    """From a cell to a label without the prefix of its entity ("sub-01" -> "01"); None where the cell is empty."""
    return lambda cell: cell.removeprefix(f"{entity}-") or None


def number_label(width: int = 0) -> Callable[[str], str | None]:
    """From a cell to a number as a label, zeros in front up to `width` digits; None for what is no whole number.

    Spreadsheets drop the zeros in front ("10042" for 0010042), and tables that went through floats write "10042.0".
    """

    def label(cell: str) -> str | None:
        found = re.fullmatch(r"0*([0-9]+?)(?:\.0*)?", cell)
        return found[1].zfill(width) if found else None

    return label


class People:
    """Rows of one or more tables by subject, and by session where a table tells sessions apart.

    Within one table equal rows of a subject count once, and rows that differ give nothing. Between tables a value fills
    what is missing in another, and values that differ give nothing. Each such case is a problem.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str | None], dict[str, Phenotype]] = {}
        self._columns: dict[str, None] = {}
        self._contradicted: set[tuple[str, str | None, str]] = set()
        self.problems: list[Problem] = []

    @property
    def subjects(self) -> set[str]:
        return {subject for subject, _ in self._rows}

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all phenotypes, in the order of the tables."""
        return tuple(self._columns)

    def has(self, subject: str, session: str | None = None) -> bool:
        return (subject, None) in self._rows or (subject, session) in self._rows

    def phenotypes(self, subject: str, session: str | None = None) -> dict[str, Phenotype]:
        """All columns; None where nothing is known. What a table says of the session goes before what it says of the
        subject, also where it says "n/a": the age at a first visit is not that at a second."""
        own = self._rows.get((subject, None), {}) | self._rows.get((subject, session), {})
        return {column: own.get(column) for column in self._columns}

    def add(
        self,
        path: Path,
        subject_columns: Sequence[str],
        subject_label: Callable[[str], str | None],
        session_columns: Sequence[str] = (),
        rename: Callable[[str], str | None] = str,
        wanted: Collection[str] | None = None,
        subject: str | None = None,
    ) -> None:
        """Add a table.

        Args:
            path: a CSV or TSV file, see `read_table`.
            subject_columns: names that the column of subjects may have, the first one found is taken.
            subject_label: from a cell of it to the label that records carry, None for what cannot be one.
            session_columns: likewise for sessions; () where rows are never distinguished by session.
            rename: as for `read_table`.
            wanted: labels of the subjects whose rows are kept; None for all.
            subject: the one subject whom the table is about, for tables without a column of subjects.

        Raises:
            InputError: the table cannot be read, or has no column of subjects.
        """

        def person(cells: Mapping[str, str]) -> str | None:
            return subject or subject_label(cells.get(column_among(cells, subject_columns), ""))

        table = read_table(path, rename, lambda cells: wanted is None or person(cells) in wanted)
        subject_column = column_among(table.columns, subject_columns)
        session_column = column_among(table.columns, session_columns)
        if subject is None and subject_column is None:
            raise InputError(f"{path}: no column names the people; one must be called {' or '.join(subject_columns)}.")
        names = [name for name in table.columns if name not in (subject_column, session_column)]
        self._columns.update(dict.fromkeys(names))
        typed, notes = typed_cells(table, names)
        self.problems += [*table.problems, *notes]

        lines: dict[tuple[str, str | None], list[int]] = {}
        rows: dict[tuple[str, str | None], list[dict[str, Phenotype]]] = {}
        for row, values in zip(table.rows, typed, strict=True):
            label = person(row.cells)
            if label is None:
                cell = row.cells[subject_column]
                why = f"{cell!r} in the column {subject_column!r} names nobody; the row is passed over."
                self.problems.append(Problem(f"{path}, line {row.line}", why))
                continue
            session = bids_label("ses")(row.cells[session_column]) if session_column else None
            lines.setdefault((label, session), []).append(row.line)
            rows.setdefault((label, session), []).append(values)
        for who, said in rows.items():
            self._add_row(path, who, lines[who], said)

    def _add_row(self, path: Path, who: tuple[str, str | None], lines: list[int], said: list[dict]) -> None:
        what = f"{path}, {_said(*who)}"
        differ = [name for name in said[0] if any(row[name] != said[0][name] for row in said)]
        if differ:
            why = f"the rows on lines {_listed(lines)} differ in {_listed(differ)}, so none is taken; keep one."
            self.problems.append(Problem(what, why))
            said = [dict.fromkeys(said[0])]
        known = self._rows.setdefault(who, {})
        for name, value in said[0].items():
            if value is None or (*who, name) in self._contradicted:
                known.setdefault(name, None)
            elif known.get(name) in (None, value):
                known[name] = value
            else:
                why = f"it gives {name} as {value!r} where another table gives {known[name]!r}, so neither is taken."
                self.problems.append(Problem(what, why))
                self._contradicted.add((*who, name))
                known[name] = None


def join(records: Iterable[ScanRecord], people: People) -> tuple[list[ScanRecord], list[Problem]]:
    """Lay what is known of subjects next to their scans.

    Columns that name sites and families become those fields of a record, and go before what stands there; all others
    become its phenotypes. A scan without a row stays usable, with phenotypes that are None, and a note.
    """
    site_column = column_among(people.columns, SITE_COLUMNS)
    family_column = column_among(people.columns, FAMILY_COLUMNS)
    subjects = people.subjects
    joined: list[ScanRecord] = []
    unlabelled: dict[str, Problem] = {}
    for record in records:
        phenotypes = people.phenotypes(record.subject, record.session)
        site, family = phenotypes.pop(site_column, None), phenotypes.pop(family_column, None)
        if people.columns and not people.has(record.subject, record.session):
            what = _said(record.subject, record.session if record.subject in subjects else None)
            why = "no row of the phenotype tables is about it, so its scans have no labels."
            unlabelled[what] = Problem(what, why, is_note=True)
        record = replace(
            record,
            site=record.site if site is None else str(site),
            family=record.family if family is None else str(family),
            phenotypes=phenotypes,
        )
        joined.append(record)
    return joined, list(unlabelled.values())


def with_common_names(records: Sequence[ScanRecord]) -> list[ScanRecord]:
    """`sex` ("F", "M") and `age` besides the columns that plainly say so by other names, such as Gender and AGE.

    Only where no column has that very name, and where all of a column's known cells are words for a sex, or numbers.
    """

    def known(column: str | None) -> list[Phenotype]:
        return [value for record in records if (value := record.phenotypes.get(column)) is not None]

    columns = list(dict.fromkeys(name for record in records for name in record.phenotypes))
    found: dict[str, tuple[str, Callable[[Phenotype], Phenotype]]] = {}
    sex, age = column_among(columns, SEX_COLUMNS), column_among(columns, ("age",))
    if "sex" not in columns and (said := known(sex)) and all(str(value).casefold() in SEX for value in said):
        found["sex"] = sex, lambda value: None if value is None else SEX[str(value).casefold()]
    if "age" not in columns and (said := known(age)) and all(type(value) in (int, float) for value in said):
        found["age"] = age, lambda value: value

    def common(record: ScanRecord) -> dict[str, Phenotype]:
        return {name: convert(record.phenotypes.get(column)) for name, (column, convert) in found.items()}

    return [replace(record, phenotypes={**common(record), **record.phenotypes}) for record in records]


def _said(subject: str, session: str | None) -> str:
    return f"subject {subject}" + (f", session {session}" if session else "")


def _listed(items: Sequence) -> str:
    return ", ".join(map(str, items[:5])) + (f" and {len(items) - 5} more" if len(items) > 5 else "")
