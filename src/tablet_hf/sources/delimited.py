"""Tables of text as spreadsheets, R and the exports of studies write them. Every cell stays text.

Subject labels such as 0010042 must never pass through a float, so nothing is converted here; `_columns` does that for
the columns that are phenotypes.
"""

import codecs
import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tablet_hf.errors import InputError
from tablet_hf.sources.records import Problem

__all__ = ["Row", "Table", "column_among", "read_table"]

ZIP_SIGNATURE = b"PK\x03\x04"
"""How .xlsx and .ods files begin: both are zip archives."""

NOT_UTF_8_IS_LATIN_1 = "tablet_hf.not_utf_8_is_latin_1"
codecs.register_error(
    NOT_UTF_8_IS_LATIN_1, lambda error: (error.object[error.start : error.end].decode("latin-1"), error.end)
)


@dataclass(frozen=True)
class Row:
    """One row: the line of the file that it ends on, and its cells by column, stripped, "" where there is nothing."""

    line: int
    cells: dict[str, str]


@dataclass(frozen=True)
class Table:
    """A table, the rows of it that could not be read, and what stood between its cells."""

    path: Path
    columns: tuple[str, ...]
    rows: Sequence[Row]
    problems: Sequence[Problem]
    delimiter: str


def read_table(
    path: Path,
    rename: Callable[[str], str | None] = str,
    keep: Callable[[dict[str, str]], bool] = lambda cells: True,
) -> Table:
    """Read a CSV or TSV file: comma, semicolon or tab, told by the header and, where that leaves it open, by the name.

    UTF-8 with or without a byte order mark, UTF-16 with one, or Latin-1; any line ending. Columns without a name (the
    row numbers that pandas and R write) and empty rows are passed over.

    Args:
        path: the file. It is read row by row, so that an export of many gigabytes can be searched.
        rename: from a heading to the name of the column, or None for one that is not wanted.
        keep: whether a row, its cells by column, is wanted.

    Raises:
        InputError: the file is missing, empty or not text, a quotation mark is not closed, or two columns have one
            name.
    """
    try:
        with path.open("rb") as stream:
            beginning = stream.read(4)
        if beginning == ZIP_SIGNATURE:
            raise InputError(f"{path}: this is a spreadsheet or an archive, not text; save the table as CSV.")
        is_utf_16 = beginning[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        encoding = "utf-16" if is_utf_16 else "utf-8-sig"
        with path.open(encoding=encoding, errors=NOT_UTF_8_IS_LATIN_1, newline="") as lines:
            return _parse(path, lines, rename, keep)
    except OSError as error:
        raise InputError(f"{path}: the table cannot be read ({error.strerror}); check its name.") from error


def column_among(columns: Iterable[str], names: Sequence[str]) -> str | None:
    """The first of `names` that is a column, upper and lower case alike, as the table writes it."""
    written = {column.casefold(): column for column in reversed(list(columns))}
    return next((written[name.casefold()] for name in names if name.casefold() in written), None)


def _parse(path: Path, lines: Iterable[str], rename: Callable, keep: Callable) -> Table:
    lines = iter(lines)
    header = next((line for line in lines if line.strip()), None)
    if header is None:
        raise InputError(f"{path}: the table is empty; its first line must name the columns.")
    delimiter = _delimiter(header, path.suffix.lower())
    reader = csv.reader(chain([header], lines), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows, problems = [], []
    try:
        headings = [heading.strip() for heading in next(reader)]
        places = [(place, name) for place, heading in enumerate(headings) if heading and (name := rename(heading))]
        columns = tuple(name for _, name in places)
        if repeated := sorted({name for name in columns if columns.count(name) > 1}):
            raise InputError(f"{path}: the column {repeated[0]!r} stands there more than once; rename or remove one.")
        for cells in reader:
            if any(map(str.strip, cells[len(headings) :])):
                why = f"{len(cells)} cells where the header has {len(headings)}; quote those that hold {delimiter!r}."
                problems.append(Problem(f"{path}, line {reader.line_num}", why))
            elif any(map(str.strip, cells)):
                row = {name: cells[place].strip() if place < len(cells) else "" for place, name in places}
                if keep(row):
                    rows.append(Row(reader.line_num, row))
    except csv.Error as error:
        raise InputError(
            f"{path}: line {reader.line_num} is not a row of a table ({error}); check its quotation marks."
        ) from error
    return Table(path, columns, rows, problems, delimiter)


def _delimiter(header: str, suffix: str) -> str:
    preferred = "\t" if suffix in (".tsv", ".tab", ".txt") else ","
    return max((preferred, ",", ";", "\t"), key=lambda mark: len(next(csv.reader([header], delimiter=mark))))
