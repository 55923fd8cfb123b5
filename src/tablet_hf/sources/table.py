"""A table of scans, CSV or TSV: for every dataset that has no source of its own."""

import math
from collections.abc import Mapping
from pathlib import Path

from tablet_hf.errors import InputError
from tablet_hf.sources.bids import read_entities
from tablet_hf.sources.cohort import make_cohort
from tablet_hf.sources.records import ENTITIES, Cohort, Phenotype, Problem, ScanRecord, typed_value
from tablet_hf.sources.tables import add_sex_and_age, bids_label, find_column, read_table, typed_cells

__all__ = ["find"]

PATH_COLUMNS = ("path", "scan", "file")
FIELDS = (*ENTITIES.values(), "mask", "repetition_time", "site", "family", "dataset")


def find(root: Path, *, dataset: str | None = None) -> Cohort:
    """Find the scans that a table lists.

    Args:
        root: Table with a row per scan and a column `path` (or `scan`, `file`). `subject`, `session`, `run`, `task`,
            `mask`, `repetition_time` in seconds, `site`, `family` and `dataset` are optional columns; all others are
            phenotypes. Paths are absolute or relative to the folder of the table.
        dataset: Name of the study where the table has none.

    Returns:
        Cohort in which missing labels are read from the BIDS name of a scan, and the subject also from its folder
        `sub-*`. Rows without a path, subject or valid repetition time are left out, each with a problem.

    Raises:
        InputError: If the table cannot be read, has no column of paths or no rows.
    """
    table = read_table(root)
    path_column = find_column(table.cells, PATH_COLUMNS)
    if path_column is None:
        raise InputError(f"{root}: no column is called path; the table needs one, such as path,subject,sex.")
    if table.cells.empty:
        raise InputError(f"{root}: the table lists no scan; add rows such as sub-01_bold.nii.gz,01,F.")
    found = {find_column(table.cells, (field,)): field for field in FIELDS}
    columns = {column: field for column, field in found.items() if column} | {path_column: "path"}
    rows = table.cells[list(columns)].rename(columns=columns).to_dict("records")
    typed = typed_cells(table, [name for name in table.cells if columns.get(name) in (None, "repetition_time")])
    seconds_column = find_column(columns, ("repetition_time",))
    records, problems = [], []
    for number, row, phenotypes in zip(table.cells.index, rows, typed, strict=True):
        fields = {name: cell for name, cell in row.items() if typed_value(cell) is not None}
        seconds = phenotypes.pop(seconds_column, None)
        record = _record(root.parent, {"dataset": dataset} | fields, seconds, phenotypes)
        if isinstance(record, str):
            problems.append(Problem(f"{root}, row {number}", record))
        else:
            records.append(record)
    return make_cohort(add_sex_and_age(records), problems)


def _record(
    folder: Path, fields: Mapping[str, str], seconds: Phenotype, phenotypes: Mapping[str, Phenotype]
) -> ScanRecord | str:
    """Return the record of a row, or why the row is left out."""
    if "path" not in fields:
        return "it has no path; add it or remove the row."
    scan = folder / fields["path"]
    named = read_entities(scan) if scan.name.startswith("sub-") else {}
    if folders := [parent.name for parent in scan.parents if parent.name.startswith("sub-")]:
        named = {"sub": folders[0].removeprefix("sub-")} | named
    labels = {name: bids_label(fields.get(name, "")) or named.get(entity) for entity, name in ENTITIES.items()}
    if not labels["subject"]:
        return f"it has no subject, nor has the name {scan.name}; add a column called subject."
    if seconds is not None and (isinstance(seconds, str) or not 0 < seconds < math.inf):
        return f"its repetition_time {str(seconds)!r} is not a number of seconds, such as 0.72."
    return ScanRecord(
        scan=scan,
        mask=folder / fields["mask"] if "mask" in fields else None,
        repetition_time=None if seconds is None else float(seconds),
        **{name: fields.get(name) for name in ("dataset", "site", "family")},
        phenotypes=phenotypes,
        **labels,
    )
