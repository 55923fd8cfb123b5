"""Splits as plain CSV files that subjects can read, edit and bring along."""

import csv
import io
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tablet_hf.datasets.splits import PARTS, Split, check, families_of, subject_ids, without_prefix
from tablet_hf.errors import InputError
from tablet_hf.files import atomic_write, checksum

__all__ = ["read_splits", "write_splits"]

FORMAT = "tablet_hf splits 1"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
PART_OF_WORD = {part: part for part in PARTS} | dict.fromkeys(("val", "valid", "dev"), "validation")
SUBJECT_COLUMNS = ("subject", "participant_id")  # ours, and that of BIDS


def write_splits(splits: Sequence[Split], path: str | Path) -> None:
    """Write a plain CSV file, a row a subject and a column a split, and how they were made as JSON next to it.

        subject,fold-1,fold-2
        0010001,train,test
        0010002,,

    An empty cell is a subject in no part. `sex.csv` has `sex.json` next to it, and `sex.tsv`, with tabs for commas, has
    `sex.tsv.json`; their folder is made if need be.

    Raises:
        InputError: the name ends in neither .csv nor .tsv, or a file of another kind is in the place of the record.
        ValueError: no splits, or two of one name.
    """
    path = Path(path)
    if path.suffix.lower() not in DELIMITERS:
        raise InputError(f"{path}: splits are written as {' or '.join(DELIMITERS)}; let the name end in one of them.")
    if record_of(path).exists() and not _read_record(record_of(path)):
        raise InputError(
            f"{record_of(path)}: it is in the place of the record of {path.name}, and is none; choose another name."
        )
    names = [split.name for split in splits]
    if not names or len({*names, *SUBJECT_COLUMNS}) < len(names) + len(SUBJECT_COLUMNS):
        raise ValueError(f"Splits need names that differ, none of them {' or '.join(SUBJECT_COLUMNS)}; got {names}.")
    everybody = sorted({subject for split in splits for subject in (*split.assignment, *split.left_out)})
    rows = [[subject, *(split.assignment.get(subject, "") for split in splits)] for subject in everybody]
    text = io.StringIO(newline="")
    table = csv.writer(text, delimiter=DELIMITERS[path.suffix.lower()], lineterminator="\n")
    table.writerows([["subject", *names], *rows])
    made = {
        split.name: {
            "seed": split.seed,
            "counts": split.counts,
            "num_left_out": len(split.left_out),
            "settings": dict(split.settings),
            "assignment_sha256": _fingerprint(split.assignment),
        }
        for split in splits
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(text.getvalue().encode())
    with atomic_write(record_of(path)) as unfinished:
        unfinished.write_text(json.dumps({"format": FORMAT, "splits": made}, indent=2) + "\n", encoding="utf-8")


def record_of(path: Path) -> Path:
    """Where it is written how the splits of a file were made."""
    return path.with_suffix(".json") if path.suffix == ".csv" else path.with_name(path.name + ".json")


def read_splits(
    path: str | Path,
    subjects: Iterable[str] | None = None,
    families: Mapping[str, str | None] | None = None,
    *,
    runs: Sequence[Any] | None = None,
) -> list[Split]:
    """Read a CSV file of `write_splits`, or one of your own.

        splits = read_splits("STORE/splits/sex.csv", runs=store.runs)

    The first line names the columns: `subject` (or `participant_id`), and one for each split. Its cells are train,
    validation (val, valid, dev) or test, or empty for a subject in no part. Commas, semicolons and tabs separate; a
    subject may have several rows that say the same, and a `sub-` that the data set does not have.

    Args:
        subjects: all that there are: others are refused, and so is a file that lacks one.
        families: of each subject, for `check`.
        runs: all runs of a store, in place of both.

    Raises:
        InputError: see above; it names file and line.
    """
    path = Path(path)
    if runs is not None:
        if subjects is not None or families is not None:
            raise ValueError("runs say who the subjects and their families are; give either these or those.")
        subjects, families = subject_ids(runs), families_of(runs)
    (first_line, header), *rows = _read_rows(path)
    column = next((header.index(name) for name in SUBJECT_COLUMNS if name in header), None)
    names = [name for place, name in enumerate(header) if place != column]
    if column is None or not names or len(set(header)) < len(header) or not all(header):
        raise InputError(
            f"{path}, line {first_line}: the columns are {', '.join(map(repr, header))}; there must be one called "
            "subject and one for each split, all of different names."
        )
    known = None if subjects is None else set(subjects)
    cells: dict[str, tuple[int, list[str | None]]] = {}
    for line, row in rows:
        where = f"{path}, line {line}"
        if len(row) != len(header):
            raise InputError(f"{where}: it has {len(row)} cells, but the first line has {len(header)}; mend it.")
        subject = _known_subject(row[column], known, where)
        parts = [_part(row[header.index(name)], name, where) for name in names]
        first, earlier = cells.setdefault(subject, (line, parts))
        if parts != earlier:
            raise InputError(
                f"{where}: the subject {subject!r} stands elsewhere here than in line {first}; a subject belongs to "
                "one part of a split."
            )
    missing = sorted((known or set()) - set(cells))
    if missing:
        raise InputError(
            f"{path}: {len(missing)} subjects of the data set have no row, the first is {missing[0]!r}; draw the "
            "split again, or give each a row, with empty cells where it shall stand in no part."
        )
    made = _read_record(record_of(path))
    splits = []
    for place, name in enumerate(names):
        assignment = {subject: parts[place] for subject, (_, parts) in sorted(cells.items()) if parts[place]}
        left_out = tuple(subject for subject, (_, parts) in sorted(cells.items()) if not parts[place])
        how = made.get(name, {})
        if how and how.get("assignment_sha256") != _fingerprint(assignment):
            why = "was changed after it was drawn, so how it was drawn is not recorded any more."
            warnings.warn(f"{path}: {name} {why}", stacklevel=2)
            how = {}
        split = Split(name, assignment, how.get("seed"), how.get("settings", {}), left_out)
        try:
            check(split, families)
        except InputError as error:
            raise InputError(f"{path}, column {error}") from error
        splits.append(split)
    return splits


def _read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Rows that are not empty with the number of their line, cells stripped."""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # spreadsheets put a mark in front
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: it is no text in UTF-8; save it as CSV UTF-8.") from error
    first = text.lstrip().split("\n")[0]
    delimiter = max(",;\t", key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise InputError(f"{path}: it is no table ({error}); save it as CSV.") from error
    rows = [(line, row) for line, row in rows if any(row)]
    if len(rows) < 2:
        raise InputError(
            f"{path}: it has no subjects; a line with the names of columns and one a subject must be there."
        )
    return rows


def _known_subject(cell: str, known: set[str] | None, where: str) -> str:
    if not cell:
        raise InputError(f"{where}: the cell of the subject is empty; name it, or delete the line.")
    if known is None or cell in known:
        return cell
    if without_prefix(cell) in known:
        return without_prefix(cell)
    alike = sorted(name for name in known if name.lstrip("0") == cell.lstrip("0"))
    reason = (
        f"it has {alike[0]!r}: a spreadsheet may have dropped the zeros"
        if alike
        else "delete the line, or check how subjects are called there"
    )
    raise InputError(f"{where}: the data set has no subject {cell!r}; {reason}.")


def _part(cell: str, name: str, where: str) -> str | None:
    if not cell:
        return None
    part = PART_OF_WORD.get(cell.lower())
    if part is None:
        raise InputError(
            f"{where}: {cell!r} in column {name!r} is no part of a split; write train, validation (or val, valid, "
            "dev), test or nothing."
        )
    return part


def _read_record(path: Path) -> Mapping[str, Any]:
    """How splits were made, by name; a CSV file of the user's own has no such record."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        is_ours = content["format"] == FORMAT
        return dict(content["splits"]) if is_ours else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _fingerprint(assignment: Mapping[str, str]) -> str:
    return checksum(sorted(assignment.items()))
