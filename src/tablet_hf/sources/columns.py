"""What the columns of a table mean. A cell alone does not say it: `31,5` and `none` are read by their neighbours."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tablet_hf.sources.delimited import Table
from tablet_hf.sources.records import Phenotype, Problem, typed_value

__all__ = ["typed_cells"]

NONE = "none"
"""Missing where a program wrote it, and a group where subjects did ("none", "mild", "severe")."""

FREQUENT = 0.05
"""The share of a column's known cells from which on, and from two cells on, `NONE` next to other texts is a group."""

DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
FITS_DECIMAL_COMMA = re.compile(r"[+-]?\d+(,\d+)?([eE][+-]?\d+)?")

MOST_COLUMNS = 20
"""Columns that a note names."""


@dataclass(frozen=True)
class _Column:
    """Values of a column, and what is worth a word: cells that were taken for missing by what stands in them."""

    values: list[Phenotype]
    missing: Counter[str]
    num_none: int
    has_decimal_commas: bool
    comma_left: str | None


def typed_cells(table: Table, columns: Sequence[str]) -> tuple[list[dict[str, Phenotype]], list[Problem]]:
    """The cells of these columns as `typed_value` reads them, row by row, and notes of what is not plain to see.

    - With semicolons between cells, a column whose numbers have commas is read with decimal commas.
    - `none` is a text of its own where it is frequent next to other texts, and missing elsewhere.
    - How many cells of each column were taken for missing, though something stands in them.
    """
    read = {name: _read([row.cells[name] for row in table.rows], table.delimiter) for name in columns}
    rows = [{name: read[name].values[place] for name in columns} for place in range(len(table.rows))]
    return rows, [Problem(str(table.path), why, is_note=True) for why in _notes(read)]


def _read(cells: Sequence[str], delimiter: str) -> _Column:
    values = [typed_value(cell) for cell in cells]
    known = [cell for cell, value in zip(cells, values, strict=True) if value is not None]
    with_comma = [cell for cell in known if DECIMAL_COMMA.fullmatch(cell)]
    has_decimal_commas = bool(with_comma) and delimiter == ";" and all(map(FITS_DECIMAL_COMMA.fullmatch, known))
    if has_decimal_commas:
        values = [typed_value(cell.replace(",", ".")) for cell in cells]
    num_none = sum(cell.lower() == NONE for cell in cells)
    has_texts = any(isinstance(value, str) for value in values)
    is_group = has_texts and num_none >= max(2, FREQUENT * (len(known) + num_none))
    if is_group:
        values = [cell if cell.lower() == NONE else value for cell, value in zip(cells, values, strict=True)]
    missing = Counter(cell for cell, value in zip(cells, values, strict=True) if cell and value is None)
    comma_left = with_comma[0] if with_comma and not has_decimal_commas else None
    return _Column(values, missing, num_none if is_group else 0, has_decimal_commas, comma_left)


def _notes(read: dict[str, _Column]) -> Iterable[str]:
    # A column with more kinds of such words is more likely to be misread than one that says n/a as BIDS does.
    by_doubt = sorted(read.items(), key=lambda item: (-len(item[1].missing), -item[1].missing.total()))
    missing = [
        f"{name} {column.missing.total()} ({', '.join(word for word, _ in column.missing.most_common(4))})"
        for name, column in by_doubt
        if column.missing
    ]
    if missing:
        yield f"cells that were taken for missing values, by column: {_listed(missing)}."
    if groups := [f"{name} ({column.num_none} cells)" for name, column in read.items() if column.num_none]:
        yield f"'none' was taken for a group and not for a missing value in {_listed(groups)}; write n/a if it is none."
    if commas := [name for name, column in read.items() if column.has_decimal_commas]:
        yield f"the comma was read as the decimal point in {_listed(commas)}."
    if left := [f"{name} ({column.comma_left})" for name, column in read.items() if column.comma_left]:
        yield f"cells with a comma were kept as text in {_listed(left)}; write numbers with a decimal point."


def _listed(items: Sequence[str]) -> str:
    more = len(items) - MOST_COLUMNS
    return ", ".join(items[:MOST_COLUMNS]) + (f" and {more} more columns" if more > 0 else "")
