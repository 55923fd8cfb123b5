"""Splits as CSV files that can be read, edited and written by hand."""

import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tablet_hf.datasets.splits import PARTS, Split, check, families_of, subject_ids, without_prefix
from tablet_hf.errors import InputError
from tablet_hf.files import atomic_write, checksum, protect_cell, unprotect_cell, write_json

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["read_splits", "write_splits"]

DELIMITERS = {".csv": ",", ".tsv": "\t"}
PART_OF_WORD = {"": ""} | {part: part for part in PARTS} | dict.fromkeys(("val", "valid", "dev"), "validation")
SUBJECT_COLUMNS = ("subject", "participant_id")  # ours, and that of BIDS


def write_splits(splits: Sequence[Split], path: str | Path) -> None:
    """Write a table with a row for each subject and a column for each split, and a JSON file with how they were drawn.

        subject,fold-1,fold-2
        0010001,train,test
        0010002,,

    An empty cell is a subject in no part. `sex.csv` has the record `sex.json`, and `sex.tsv` has `sex.tsv.json`. Names
    that a spreadsheet would run as a formula get an apostrophe, which `read_splits` removes.

    Raises:
        InputError: a name that does not end in .csv or .tsv, or a JSON file of another kind in place of the record.
        ValueError: no splits, or two of one name.
    """
    import pandas as pd

    path = Path(path)
    if path.suffix.lower() not in DELIMITERS:
        raise InputError(f"{path}: splits are written as .csv or .tsv; choose a name that ends so.")
    if _record_file(path).exists() and not _read_record(path):
        raise InputError(f"{_record_file(path)}: this is not the record of {path.name}; choose another name.")
    names = [split.name for split in splits]
    if not names or len({*names, *SUBJECT_COLUMNS}) < len(names) + len(SUBJECT_COLUMNS):
        raise ValueError(f"Splits need different names, none of them {' or '.join(SUBJECT_COLUMNS)}; got {names}.")
    subjects = sorted({subject for split in splits for subject in (*split.assignment, *split.left_out)})
    table = pd.DataFrame({split.name: [split.assignment.get(name) for name in subjects] for split in splits}, subjects)
    table = table.rename(index=protect_cell, columns=protect_cell)
    record = {
        split.name: {
            "seed": split.seed,
            "counts": split.counts,
            "num_left_out": len(split.left_out),
            "settings": dict(split.settings),
            "assignment_sha256": checksum(dict(split.assignment)),
        }
        for split in splits
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as unfinished:
        table.to_csv(unfinished, sep=DELIMITERS[path.suffix.lower()], index_label="subject", lineterminator="\n")
    write_json(_record_file(path), {"splits": record}, indent=2)


def read_splits(path: str | Path, runs: Sequence[Any] | None = None) -> list[Split]:
    """Read a table of `write_splits`, or one written by hand.

        splits = read_splits("STORE/splits/sex.csv", store.runs)

    It has a column `subject` (or `participant_id`) and one for each split. Cells are train, validation (val, valid,
    dev), test, or empty. Commas, semicolons and tabs separate. A subject may have several equal rows, and a `sub-` that
    the store does not have.

    Args:
        runs: all runs of a store, whose subjects must be those of the table, and whose families are checked.

    Raises:
        InputError: a table that is not such; it names the file and the subject or column.
    """
    path = Path(path)
    table = _read_table(path)
    names = None if runs is None else set(subject_ids(runs))
    table.index = [_subject_of_store(subject, names, path) for subject in table.index]
    parts = table.map(lambda word: PART_OF_WORD.get(word.lower()))
    if len(unknown := table.to_numpy()[parts.isna().to_numpy()]):
        raise InputError(f"{path}: {unknown[0]!r} is no part of a split; write train, validation, test or nothing.")
    parts = parts[~parts.reset_index().duplicated().to_numpy()]
    if twice := parts.index[parts.index.duplicated()].tolist():
        raise InputError(f"{path}: the subject {twice[0]!r} is in several rows that differ; keep one.")
    if missing := sorted((names or set()) - set(parts.index)):
        raise InputError(
            f"{path}: {len(missing)} subjects of the store are missing, such as {missing[0]!r}; add rows, with empty "
            "cells for subjects in no part."
        )
    record, families, splits = _read_record(path), None if runs is None else families_of(runs), []
    for name, column in parts.sort_index().items():
        assignment = {subject: part for subject, part in column.items() if part}
        drawn = record.get(name, {})
        if drawn and drawn.get("assignment_sha256") != checksum(assignment):
            warnings.warn(f"{path}: {name} was changed after it was drawn; its seed no longer holds.", stacklevel=2)
            drawn = {}
        left_out = tuple(subject for subject, part in column.items() if not part)
        try:
            splits.append(Split(name, assignment, drawn.get("seed"), drawn.get("settings", {}), left_out))
            check(splits[-1], families)
        except InputError as error:
            raise InputError(f"{path}, column {error}") from error
    return splits


def _read_table(path: Path) -> "DataFrame":
    """All cells as stripped text, subjects as index, a column for each split."""
    import pandas as pd

    try:
        text = path.read_text(encoding="utf-8-sig")
        delimiter = max(",;\t", key=text.lstrip().split("\n")[0].count)
        cells = pd.read_csv(io.StringIO(text), sep=delimiter, header=None, dtype=str, na_filter=False)
    except (OSError, ValueError) as error:  # not UTF-8, or what pandas cannot parse
        raise InputError(f"{path}: it cannot be read as a table ({error}); save it as CSV UTF-8.") from error
    cells = cells.map(str.strip).map(unprotect_cell)
    cells = cells[(cells != "").any(axis=1)]
    header = cells.iloc[0].tolist()
    column = next((name for name in SUBJECT_COLUMNS if name in header), None)
    if column is None or len(header) < 2 or len({*header, ""}) <= len(header) or len(cells) < 2:
        raise InputError(f"{path}: it needs a column 'subject', one for each split, all of different names, and rows.")
    return cells[1:].set_axis(header, axis=1).set_index(column)


def _subject_of_store(cell: str, names: set[str] | None, path: Path) -> str:
    if not cell:
        raise InputError(f"{path}: a row has no subject; name it, or delete the row.")
    if names is None or cell in names:
        return cell
    if without_prefix(cell) in names:
        return without_prefix(cell)
    similar = [name for name in sorted(names) if name.lstrip("0") == cell.lstrip("0")]
    reason = f"it has {similar[0]!r}, so a spreadsheet may have dropped zeros" if similar else "delete the row"
    raise InputError(f"{path}: the store has no subject {cell!r}; {reason}.")


def _record_file(path: Path) -> Path:
    return path.with_suffix(".json") if path.suffix == ".csv" else path.with_name(path.name + ".json")


def _read_record(path: Path) -> dict[str, Any]:
    """How the splits of a file were drawn, by name; a file written by hand has no such record."""
    try:
        return dict(json.loads(_record_file(path).read_text(encoding="utf-8"))["splits"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
