"""A table of scans, CSV or TSV: for every dataset that none of the other sources knows.

One row a scan. The column `path` (or `scan`, or `file`) is required; `subject`, `session`, `run`, `task`, `mask`,
`repetition_time`, `site`, `family` and `dataset` are what they are called; every other column is a phenotype.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from tablet_hf.errors import InputError
from tablet_hf.sources.bids import read_entities
from tablet_hf.sources.cohort import gather
from tablet_hf.sources.columns import typed_cells
from tablet_hf.sources.delimited import column_among, read_table
from tablet_hf.sources.records import Cohort, Phenotype, Problem, ScanRecord, typed_value
from tablet_hf.sources.tables import bids_label, with_common_names

__all__ = ["find"]

PATH_COLUMNS = ("path", "scan", "file")
LABELS = {"subject": "sub", "session": "ses", "run": "run", "task": "task"}
"""Column -> the entity of a BIDS name that says the same."""

FIELDS = (*LABELS, "mask", "repetition_time", "site", "family", "dataset")


def find(root: Path, *, dataset: str | None = None) -> Cohort:
    """Find the scans that a table lists.

    Args:
        root: the table. Paths in it are absolute or start from its folder.
        dataset: what the study is called, where the table does not say so in a column `dataset`.

    Returns:
        Records in which what the table does not say of subject, session, run and task is read from the BIDS name of
        the scan, or from its folder `sub-*` for the subject. Rows without a path, without a subject or with a
        repetition time that is no number of seconds are left out, each with a problem.

    Raises:
        InputError: the table cannot be read, has no column of paths or no rows.
    """
    if root.is_dir():
        raise InputError(f"{root}: this is a folder; give a CSV or TSV file with the columns path, subject, LABEL ...")
    table = read_table(root)
    path_column = column_among(table.columns, PATH_COLUMNS)
    if path_column is None:
        raise InputError(f"{root}: no column is called path; the table needs one, such as path,subject,sex.")
    if not table.rows and not table.problems:
        raise InputError(f"{root}: the table lists no scan; expected are rows such as sub-01_bold.nii.gz,01,F.")
    columns = {field: column_among(table.columns, (field,)) for field in FIELDS}
    labels = [column for column in table.columns if column not in (path_column, *columns.values())]
    time_column = columns["repetition_time"]
    typed, notes = typed_cells(table, labels if time_column is None else [*labels, time_column])
    records, problems = [], [*table.problems, *notes]
    for row, phenotypes in zip(table.rows, typed, strict=True):
        cells = {field: row.cells.get(column, "") or None for field, column in columns.items()}
        for field in ("mask", "site", "family", "dataset"):
            cells[field] = None if typed_value(cells[field]) is None else cells[field]
        cells["dataset"] = cells["dataset"] or dataset
        seconds = phenotypes.pop(time_column, None)
        try:
            records.append(_record(root.parent, row.cells[path_column], cells, seconds, phenotypes))
        except _UnusableRow as error:
            problems.append(Problem(f"{root}, line {row.line}", str(error)))
    return gather(with_common_names(records), problems)


class _UnusableRow(Exception):
    """Why a row is left out."""


def _record(
    folder: Path, path: str, cells: Mapping[str, str | None], seconds: Phenotype, phenotypes: Mapping[str, Phenotype]
) -> ScanRecord:
    if not path:
        raise _UnusableRow("it gives no path; fill it in or remove the row.")
    scan = folder / path
    entities = _entities(scan)
    said = {field: bids_label(entity)(cells[field] or "") or entities.get(entity) for field, entity in LABELS.items()}
    if said["subject"] is None:
        raise _UnusableRow(f"neither it nor the name {scan.name} tells the subject; add a column called subject.")
    return ScanRecord(
        scan=scan,
        mask=folder / cells["mask"] if cells["mask"] else None,
        repetition_time=_seconds(seconds),
        dataset=cells["dataset"],
        site=cells["site"],
        family=cells["family"],
        phenotypes=phenotypes,
        **said,
    )


def _entities(scan: Path) -> dict[str, str]:
    """What the name of a scan says; the subject also from the nearest folder `sub-*`."""
    folders = [folder.name.removeprefix("sub-") for folder in scan.parents if folder.name.startswith("sub-")]
    named = read_entities(scan) if scan.name.startswith("sub-") else {}
    return ({"sub": folders[0]} if folders else {}) | named


def _seconds(value: Phenotype) -> float | None:
    if value is None:
        return None
    if isinstance(value, str) or not 0 < value < math.inf:
        raise _UnusableRow(f"its repetition_time {str(value)!r} is not a number of seconds; write one such as 0.72.")
    return float(value)
