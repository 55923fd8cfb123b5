"""UK Biobank: resting runs of bulk field 20227 warped to MNI152, with phenotypes from a tabular export.

The bulk field's own `filtered_func_data_clean.nii.gz` is in the space of the scan and has to be warped first
(Alfaro-Almagro et al. 2018, NeuroImage 166:400). Fields: https://biobank.ndph.ox.ac.uk/showcase/
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tablet_hf.errors import InputError
from tablet_hf.sources.cohort import find_files, make_cohort, not_found, select_labels, sibling
from tablet_hf.sources.records import Cohort, Problem, ScanRecord
from tablet_hf.sources.tables import PhenotypeTables, number_label

__all__ = ["find", "withdrawn_subjects"]

NATIVE = "{eid}_20227_{instance}_0/fMRI/rfMRI.ica/filtered_func_data_clean.nii.gz"
"""What the bulk field has, in the space of the scan."""

PATTERNS = (
    "{eid}_20227_{instance}_0/fMRI/rfMRI.ica/reg_standard/filtered_func_data_clean.nii.gz",
    "{eid}_20227_{instance}_0_MNI.nii.gz",
)
"""Paths of warped runs."""

NOT_WARPED = "it is in the space of the scan; warp it to MNI152 by FSL's applywarp, as docs/sources.md shows."

REPETITION_TIME = 0.735
"""Seconds (UK Biobank brain imaging documentation)."""

SEX, CENTRE = 31, 54
VISIT_FIELDS = {21003: "age", 20016: "fluid_intelligence", CENTRE: "site"}
"""Fields with a value per visit, and what they are called here."""

SEX_CODES = {0: "F", 1: "M", "Female": "F", "Male": "M"}
"""Data-coding 9, and its meanings, which some exports have instead."""

HEADINGS = (
    r"([0-9]+)-([0-9]+)\.([0-9]+)",  # 21003-2.0: ukbconv to CSV
    r"f\.([0-9]+)\.([0-9]+)\.([0-9]+)",  # f.21003.2.0: ukbconv to R
    r"p([0-9]+)(?:_i([0-9]+))?(?:_a([0-9]+))?",  # p21003_i2: Research Analysis Platform
)


def find(
    root: Path,
    *,
    phenotypes: Sequence[Path] | None = None,
    sessions: Sequence[str] | None = None,
    pattern: str | None = None,
    withdrawn: Path | None = None,
) -> Cohort:
    """Find resting runs of UK Biobank in MNI152 space.

    Args:
        root: Folder that the pattern starts from.
        phenotypes: Exports with a column `eid` and headings as in the raw export (`31-0.0`), in R (`f.31.0.0`) or on
            the Research Analysis Platform (`p31`). Columns that are not fields are phenotypes, other fields are not
            read: rename those that are wanted.
        sessions: Instances, "2" (first imaging visit) or "3" (default: all).
        pattern: Path of warped scans below the root, with `{eid}`, `{instance}` and `*` (default: both `PATTERNS`).
        withdrawn: List of withdrawn subjects, one eid a line. Their scans are left out.

    Returns:
        Restricted cohort with the instance as the session. Phenotypes: `sex` and its code `p31`, `age` and
        `fluid_intelligence` at the visit of the scan; the site is the assessment centre of that visit. Negative codes
        ("do not know", "prefer not to answer") are missing values.

    Raises:
        InputError: If there is no warped scan, or a pattern, list or table cannot be read.
    """
    records = _find_scans(root, (pattern,) if pattern else PATTERNS)
    warped = {record.key for record in records}
    natives = [] if pattern else [each for each in _find_scans(root, (NATIVE,)) if each.key not in warped]
    if not records:
        zipped = "Unpack the zip archives, and warp." if find_files(root, "*_20227_*_0.zip") else ""
        hint = f"{natives[0].scan}: {NOT_WARPED}" if natives else zipped
        raise not_found(root, "UK Biobank warped to MNI152", PATTERNS[1].format(eid="1000012", instance="2"), hint)
    problems = [Problem(str(record.scan), NOT_WARPED) for record in natives]
    gone = withdrawn_subjects(Path(withdrawn)) if withdrawn else frozenset()
    for eid in sorted({record.subject for record in records} & gone):
        problems.append(Problem(f"subject {eid}", "withdrawn from UK Biobank; delete these scans."))
    records, absent = select_labels(root, records, "session", sessions)
    records = [record for record in records if record.subject not in gone]
    subjects = {record.subject for record in records}
    tables = PhenotypeTables(phenotypes, ("eid",), number_label, rename=_column, wanted=subjects)
    if tables.columns:
        visits = sorted({record.session for record in records})
        columns = [f"p{SEX}_i0", *(f"p{field}_i{visit}" for visit in visits for field in VISIT_FIELDS)]
        if missing := [column for column in columns if column not in tables.columns]:
            warnings.warn(f"Missing in the phenotype tables: {', '.join(missing)} (field, instance).", stacklevel=2)
        records = [_with_phenotypes(record) for record in tables.join(records)]
    return make_cohort(records, [*problems, *absent, *tables.problems], is_restricted=True)


def _find_scans(root: Path, patterns: Sequence[str]) -> list[ScanRecord]:
    records = []
    for pattern in patterns:
        if "{eid}" not in pattern or "{instance}" not in pattern or Path(pattern).is_absolute():
            raise InputError(
                f"The pattern {pattern!r} must be a path below the root with {{eid}} and {{instance}}, such as "
                f"{PATTERNS[1]}."
            )
        wildcard = re.sub(r"\{(eid|instance)\}", "*", pattern.replace("[", "[[]"))
        expression = re.escape(pattern).replace(r"\*", "[^/]*")
        for name, digits in (("eid", "[0-9]+"), ("instance", "[0-9]")):
            # Where a label occurs twice, in the folder and in the file name, both must be the same.
            expression = expression.replace(rf"\{{{name}\}}", f"(?P<{name}>{digits})", 1)
            expression = expression.replace(rf"\{{{name}\}}", f"(?P={name})")
        for path in find_files(root, wildcard):
            if match := re.fullmatch(expression, path.relative_to(root).as_posix()):
                mask = sibling(path, "mask.nii.gz") if path.parent.name == "reg_standard" else None
                labels = {"session": match["instance"], "task": "rest", "dataset": "UKB"}
                records.append(ScanRecord(match["eid"], path, mask, REPETITION_TIME, **labels))
    return records


def _column(heading: str) -> str | None:
    """Return `p21003_i2` for any spelling of a field that is used, None for other fields, else the heading."""
    heading = heading.removeprefix("participant.")  # the platform's own tool writes participant.p31
    if heading.lower() in ("eid", "f.eid"):
        return "eid"
    match = next(filter(None, (re.fullmatch(expression, heading) for expression in HEADINGS)), None)
    if match is None:
        return heading
    field, instance, array = (int(number or 0) for number in match.groups())
    return f"p{field}_i{instance}" if field in (SEX, *VISIT_FIELDS) and array == 0 else None


def _with_phenotypes(record: ScanRecord) -> ScanRecord:
    """Replace the fields by what they mean at the visit of the scan."""
    values = {
        column: None if isinstance(value, int | float) and value < 0 and re.fullmatch(HEADINGS[2], column) else value
        for column, value in record.phenotypes.items()
    }
    sex = values.get(f"p{SEX}_i0")
    named = {"sex": SEX_CODES.get(sex), f"p{SEX}": sex}
    named |= {name: values.get(f"p{field}_i{record.session}") for field, name in VISIT_FIELDS.items()}
    site = named.pop("site")
    others = {column: value for column, value in values.items() if not re.fullmatch(HEADINGS[2], column)}
    return replace(record, site=record.site if site is None else str(site), phenotypes=named | others)


def withdrawn_subjects(path: Path) -> frozenset[str]:
    """Return the eids of UK Biobank's list of withdrawn subjects, one a line, with or without a header.

    Raises:
        InputError: If the list cannot be read or has anything else in it.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the list of withdrawn subjects cannot be read; check its path.") from error
    cells = [cell for line in lines if (cell := line.split(",")[0].strip().strip('"'))]
    cells = cells[1:] if cells[:1] in (["eid"], ["f.eid"]) else cells
    if wrong := [cell for cell in cells if number_label(cell) is None]:
        raise InputError(f"{path}: {wrong[0]!r} is not an eid; give one number a line.")
    return frozenset(map(number_label, cells))
