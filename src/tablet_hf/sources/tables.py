"""Phenotype tables: read as text by pandas, converted column by column, and joined with the scans of their subjects."""

import codecs
import csv
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from tablet_hf.errors import InputError
from tablet_hf.sources.records import Phenotype, Problem, ScanRecord, typed_value

__all__ = [
    "PhenotypeTables",
    "Table",
    "add_sex_and_age",
    "bids_label",
    "find_column",
    "number_label",
    "read_table",
    "typed_cells",
]

SITE_COLUMNS = ("site", "site_id")
FAMILY_COLUMNS = ("family", "family_id")

SEX = {"f": "F", "female": "F", "m": "M", "male": "M"}
"""Words in lower case. Codes are not among them: which sex is 1 differs between studies."""

USUAL_MISSING = ("", "n/a", "na", "nan")
"""Missing values that are not worth a warning."""

CONTRADICTORY = object()
"""In place of a value for which two tables differ."""

DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
NUMBER_WITH_COMMA = re.compile(r"[+-]?\d+(,\d+)?([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Table:
    """A table of stripped text, indexed by the row of the file; "" where a cell is empty. Blank rows are left out."""

    path: Path
    cells: pd.DataFrame
    delimiter: str


class _WithFirstLine:
    """A text file with one more line in front, for pandas."""

    def __init__(self, line: str, file: TextIO):
        self.line, self.file = line, file

    def read(self, size: int = -1) -> str:
        line, self.line = self.line, ""
        return line or self.file.read(size)

    def __iter__(self) -> Iterator[str]:
        return iter(self.file)


def read_table(path: Path, rename: Callable[[str], str | None] = str) -> Table:
    """Read a CSV or TSV file: comma, semicolon or tab; UTF-8, UTF-16 with a byte order mark, or Windows-1252.

    Args:
        path: The table. Only the wanted columns are kept in memory, so that it may have many gigabytes.
        rename: Returns the name of a column for its heading, None for a column that is not wanted. Columns without a
            heading, as pandas and R write them, are never wanted.

    Raises:
        InputError: If the file cannot be read, is empty or not text, repeats a column, or has a row that is too long.
    """
    try:
        with path.open("rb") as stream:
            beginning = stream.read(4)
        if beginning == b"PK\x03\x04":  # .xlsx and .ods are zip archives
            raise InputError(f"{path}: this is a spreadsheet or an archive, not text; save the table as CSV.")
        is_utf_16 = beginning[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        try:
            return _read(path, rename, "utf-16" if is_utf_16 else "utf-8-sig")
        except UnicodeError:
            return _read(path, rename, "cp1252")
    except OSError as error:
        raise InputError(f"{path}: the table cannot be read ({error.strerror}); check its path.") from error
    except pd.errors.ParserError as error:
        raise InputError(f"{path}: this is not a table ({str(error).strip()}); check its quotation marks.") from error


def _read(path: Path, rename: Callable[[str], str | None], encoding: str) -> Table:
    errors = "replace" if encoding == "cp1252" else "strict"
    with path.open(encoding=encoding, errors=errors, newline="") as file:
        num_blank, header = next(((row, line) for row, line in enumerate(file) if line.strip()), (0, ""))
        if not header:
            raise InputError(f"{path}: the table is empty; its first line must name the columns.")
        delimiter = _delimiter(header, path.suffix.lower())
        headings = next(csv.reader(chain([header], file), delimiter=delimiter, skipinitialspace=True))
        names = {index: rename(heading.strip()) for index, heading in enumerate(headings) if heading.strip()}
        names = {index: name for index, name in names.items() if name}
        if repeated := [name for name, count in Counter(names.values()).items() if count > 1]:
            raise InputError(f"{path}: the column {repeated[0]!r} appears more than once; rename or remove one.")
        # With `usecols`, pandas ignores what a row has too much. A first line of one cell more gives that a column.
        file.seek(0)
        cells = pd.read_csv(
            _WithFirstLine(delimiter * len(headings) + "\n", file),
            sep=delimiter,
            header=None,
            usecols=[*names, len(headings)],
            dtype=object,
            na_filter=False,
            skipinitialspace=True,
            skip_blank_lines=False,
        ).iloc[num_blank + 2 :]
    too_long = cells.index[cells.pop(len(headings)) != ""]
    if len(too_long):
        raise InputError(
            f"{path}: row {too_long[0]} has more cells than the header; quote cells that contain {delimiter!r}."
        )
    cells = cells.rename(columns=names).apply(lambda column: column.str.strip())
    return Table(path, cells[(cells != "").any(axis=1)], delimiter)


def _delimiter(header: str, suffix: str) -> str:
    """Return the mark that occurs most often outside quotes; among equals, that of the file name."""
    unquoted = re.sub(r'"[^"]*"', "", header)
    usual = "\t" if suffix in (".tsv", ".tab", ".txt") else ","
    return max((usual, ",", ";", "\t"), key=unquoted.count)


def find_column(columns: Iterable[str], names: Sequence[str]) -> str | None:
    """Return the column with the first of these names that exists, in the table's own spelling; case is ignored."""
    written = {column.casefold(): column for column in reversed(list(columns))}
    return next((written[name.casefold()] for name in names if name.casefold() in written), None)


def typed_cells(table: Table, columns: Sequence[str]) -> list[dict[str, Phenotype]]:
    """Return the rows of a table as typed values, see `typed_value`, and warn about what is ambiguous.

    In a table with semicolons, a column of numbers may have decimal commas. "none" is a category where a column of
    texts has it in at least two cells and in 5% of those that are not missing; elsewhere it is a missing value.
    """
    values: dict[str, list[Phenotype]] = {}
    remarks: dict[str, list[str]] = {}
    for name in columns:
        cells = table.cells[name].tolist()
        counts = Counter(cells)
        typed = {cell: typed_value(cell) for cell in counts}
        present = [cell for cell, value in typed.items() if value is not None]
        with_comma = [cell for cell in present if DECIMAL_COMMA.fullmatch(cell)]
        if with_comma and table.delimiter == ";" and all(map(NUMBER_WITH_COMMA.fullmatch, present)):
            typed = {cell: typed_value(cell.replace(",", ".")) for cell in counts}
            remarks.setdefault("commas read as decimal points", []).append(name)
        elif with_comma:
            remarks.setdefault("cells with a comma read as text", []).append(f"{name} ({with_comma[0]})")
        nones = [cell for cell in counts if cell.lower() == "none"]
        num_none, num_present = (sum(counts[cell] for cell in each) for each in (nones, present))
        is_text = any(isinstance(value, str) for value in typed.values())
        if is_text and num_none >= max(2, 0.05 * (num_present + num_none)):
            typed |= {cell: cell for cell in nones}
            remarks.setdefault("'none' read as a category, not as missing", []).append(name)
        missing = (cell for cell, value in typed.items() if value is None)
        if unusual := sorted(cell for cell in missing if cell.lower() not in USUAL_MISSING):
            remarks.setdefault("cells read as missing values", []).append(f"{name} ({', '.join(unusual[:4])})")
        values[name] = [typed[cell] for cell in cells]
    for remark, names in remarks.items():
        warnings.warn(f"{table.path}: {remark}: {_listed(names)}.", stacklevel=2)
    return [{name: values[name][row] for name in columns} for row in range(len(table.cells))]


def bids_label(cell: str) -> str | None:
    """Return a label without the prefix of its entity ("sub-01" -> "01"), None for an empty cell."""
    return re.sub(r"^(sub|ses|task|run)-", "", cell) or None


def number_label(cell: str, width: int = 0) -> str | None:
    """Return a number as a label, padded with zeros to `width` digits; None for anything else.

    Spreadsheets drop leading zeros ("10042" for 0010042), and tables that were read as floats have "10042.0".
    """
    found = re.fullmatch(r"0*([0-9]+?)(?:\.0*)?", cell)
    return found[1].zfill(width) if found else None


class PhenotypeTables:
    """Phenotypes from tables, by subject, and by session where a table has a column of sessions.

    Equal rows of a subject count once, rows that differ give no values. A value fills what is missing in another
    table; values that differ give None. Each such case is in `problems`.

    Args:
        paths: CSV or TSV files; None for none.
        subject_columns: Possible names of the column of subjects, in order of preference.
        subject_label: Returns the label of a subject for a cell, None for a cell that is none.
        session_columns: Possible names of the column of sessions.
        rename: As for `read_table`.
        wanted: Subjects to keep (default: all).

    Raises:
        InputError: If a table cannot be read or has no column of subjects.
    """

    def __init__(
        self,
        paths: Iterable[str | Path] | None,
        subject_columns: Sequence[str],
        subject_label: Callable[[str], str | None],
        session_columns: Sequence[str] = (),
        rename: Callable[[str], str | None] = str,
        wanted: Collection[str] | None = None,
    ):
        self.subject_columns, self.subject_label = subject_columns, subject_label
        self.session_columns, self.rename, self.wanted = session_columns, rename, wanted
        self.columns: dict[str, None] = {}
        self.problems: list[Problem] = []
        self._values: dict[tuple[str, str | None], dict[str, Any]] = {}
        for path in paths or ():
            self.add(Path(path))

    @property
    def subjects(self) -> set[str]:
        """Subjects with a row in any table."""
        return {subject for subject, _ in self._values}

    def add(self, path: Path, subject: str | None = None) -> None:
        """Add a table, which is about one subject where that is given."""
        table = read_table(path, self.rename)
        cells = table.cells
        subject_column, session_column = (
            find_column(cells, names) for names in (self.subject_columns, self.session_columns)
        )
        if subject is None and subject_column is None:
            raise InputError(f"{path}: no column has the subjects; name one {' or '.join(self.subject_columns)}.")
        labels = [subject] * len(cells) if subject else list(map(self.subject_label, cells[subject_column]))
        if self.wanted is not None:
            cells = cells[[label in self.wanted for label in labels]]
            labels = [label for label in labels if label in self.wanted]
        sessions = map(bids_label, cells[session_column]) if session_column else [None] * len(cells)
        names = [name for name in cells if name not in (subject_column, session_column)]
        self.columns |= dict.fromkeys(names)
        groups: dict[tuple[str, str | None], list[tuple[int, dict[str, Phenotype]]]] = {}
        typed = typed_cells(replace(table, cells=cells), names)
        for row, label, session, values in zip(cells.index, labels, sessions, typed, strict=True):
            if label is None:
                self.problems.append(Problem(f"{path}, row {row}", f"the column {subject_column!r} names no subject."))
            else:
                groups.setdefault((label, session), []).append((row, values))
        for key, group in groups.items():
            self._merge(path, key, group)

    def _merge(self, path: Path, key: tuple[str, str | None], rows: list[tuple[int, dict[str, Phenotype]]]) -> None:
        what = f"{path}, subject {key[0]}" + (f", session {key[1]}" if key[1] else "")
        existing = self._values.setdefault(key, {})
        (_, first), *others = rows
        if differ := [name for name in first if any(values[name] != first[name] for _, values in others)]:
            why = f"rows {_listed([row for row, _ in rows])} differ in {_listed(differ)}, so none is used; keep one."
            self.problems.append(Problem(what, why))
            first = dict.fromkeys(first)
        for name, value in first.items():
            other = existing.get(name)
            if other is None:
                existing[name] = value
            elif value not in (None, other) and other is not CONTRADICTORY:
                existing[name] = CONTRADICTORY
                why = f"{name} is {value!r} here and {other!r} in another table, so neither is used."
                self.problems.append(Problem(what, why))

    def join(self, records: Iterable[ScanRecord]) -> list[ScanRecord]:
        """Return the records with all columns, None where missing; rows about the session go before other rows.

        Columns of sites and families become `site` and `family`. One warning lists the subjects without a row.
        """
        site_column, family_column = (find_column(self.columns, names) for names in (SITE_COLUMNS, FAMILY_COLUMNS))
        joined, without_row, subjects = [], {}, self.subjects
        for record in records:
            keys = [(record.subject, None), (record.subject, record.session)]
            found = {name: value for key in keys for name, value in self._values.get(key, {}).items()}
            values = {name: None if found.get(name) is CONTRADICTORY else found.get(name) for name in self.columns}
            site, family = values.pop(site_column, None), values.pop(family_column, None)
            if self.columns and self._values.keys().isdisjoint(keys):
                session = f" (session {record.session})" if record.subject in subjects else ""
                without_row[record.subject + session] = None
            site = record.site if site is None else str(site)
            family = record.family if family is None else str(family)
            joined.append(replace(record, site=site, family=family, phenotypes=values))
        if without_row:
            warnings.warn(f"The phenotype tables have no row for subject {_listed(list(without_row))}.", stacklevel=2)
        return joined


def add_sex_and_age(
    records: Sequence[ScanRecord],
    sex_columns: Sequence[str] = ("sex", "gender"),
    age_columns: Sequence[str] = ("age",),
    sexes: Mapping[str, str] = SEX,
) -> list[ScanRecord]:
    """Add `sex` ("F", "M") and `age` from columns with other names, such as Gender and AGE.

    Only where no column has that very name, and all values of the column are in `sexes` (lower case), or numbers.
    """
    columns = {name: None for record in records for name in record.phenotypes}
    for name, names in (("age", age_columns), ("sex", sex_columns)):
        column = find_column(columns, names)
        values = [record.phenotypes.get(column) for record in records]
        if name == "sex":
            added = [sexes.get(str(value).casefold()) for value in values]
            is_clear = all(value is None or sex for value, sex in zip(values, added, strict=True))
        else:
            added, is_clear = values, not any(isinstance(value, str) for value in values)
        if column is not None and name not in columns and is_clear:
            pairs = zip(records, added, strict=True)
            records = [replace(each, phenotypes={name: value, **each.phenotypes}) for each, value in pairs]
    return list(records)


def _listed(items: Sequence) -> str:
    return ", ".join(map(str, items[:5])) + (f" and {len(items) - 5} more" if len(items) > 5 else "")
