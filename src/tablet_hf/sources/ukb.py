"""UK Biobank: resting runs of bulk field 20227 that were warped to MNI152, and labels from a tabular export.

The bulk field's own `filtered_func_data_clean.nii.gz` is in the space of the scan; `APPLYWARP` is how to warp it
(Alfaro-Almagro et al. 2018, NeuroImage 166:400). Fields: https://biobank.ndph.ox.ac.uk/showcase/
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tablet_hf.errors import InputError
from tablet_hf.sources.cohort import Layout, beside, check_labels, files_like, gather
from tablet_hf.sources.records import Cohort, Problem, ScanRecord
from tablet_hf.sources.tables import People, join, number_label

__all__ = ["APPLYWARP", "find"]

CLEANED = "fMRI/rfMRI.ica/filtered_func_data_clean.nii.gz"
"""What the bulk field holds, in the space of the scan."""

PATTERNS = (
    "{eid}_20227_{instance}_0/fMRI/rfMRI.ica/reg_standard/filtered_func_data_clean.nii.gz",
    "{eid}_20227_{instance}_0_MNI.nii.gz",
)
"""Where warped runs are looked for."""

LAYOUT = Layout("UK Biobank field 20227, warped to MNI152", PATTERNS[0].format(eid="1000012", instance="2"))

APPLYWARP = (
    "mkdir -p reg_standard && applywarp --in=filtered_func_data_clean --ref=$FSLDIR/data/standard/MNI152_T1_2mm "
    "--warp=reg/example_func2standard_warp --out=reg_standard/filtered_func_data_clean --interp=spline"
)
"""To be run in the folder `rfMRI.ica`; applywarp is FSL's."""

REPETITION_TIME = 0.735
"""Seconds (UK Biobank brain imaging documentation)."""

SEX, AGE, FLUID_INTELLIGENCE, CENTRE = 31, 21003, 20016, 54
FIELDS = (SEX, AGE, FLUID_INTELLIGENCE, CENTRE)

SEX_CODES = {0: "F", 1: "M", "Female": "F", "Male": "M"}
"""Data-coding 9, and its meanings, which exports can write in its place."""

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
        root: the folder that the pattern starts from.
        phenotypes: exports as CSV or TSV, with the headings of the raw export (`31-0.0`), of R (`f.31.0.0`) or of the
            Research Analysis Platform (`p31`), and `eid`. Columns that are no field of UK Biobank come along as
            phenotypes; other fields do not: rename those that are wanted.
        sessions: instances that are wanted, "2" (first imaging visit) or "3"; None for all.
        pattern: paths of the warped scans below the root, with `{eid}` and `{instance}`, and `*` for whatever differs;
            None takes both of `PATTERNS`.
        withdrawn: list of subjects who withdrew, one eid a line, as UK Biobank sends it. Their scans are left out.

    Returns:
        Records whose session is the instance. Labels: `sex` "F" or "M" and its code `p31`, `age` (21003) and
        `fluid_intelligence` (20016) at the visit of the scan; the site is the assessment centre (54) of that visit.
        Negative codes ("do not know", "prefer not to answer") are missing values. The cohort is restricted.

    Raises:
        InputError: no such folder, no warped scan in it, or a pattern, list or table that cannot be read.
    """
    root = LAYOUT.folder(root)
    scans = _scans(root, (pattern,) if pattern else PATTERNS)
    problems = [] if pattern else _not_warped(root, scans)
    if not scans:
        is_zipped = files_like(root, "*_20227_*_0.zip")
        hint = problems[0].why if problems else "Unpack the zip archives there, and warp." if is_zipped else ""
        raise LAYOUT.nothing(root, hint)
    gone = withdrawn_people(Path(withdrawn)) if withdrawn else frozenset()
    for eid in sorted({record.subject for record in scans} & gone):
        problems.append(Problem(f"subject {eid}", "withdrawn from UK Biobank, so left out; delete these scans."))
    there = {record.session for record in scans}
    instances, absent = check_labels(root, "ses", sessions or there, there)
    records = [record for record in scans if record.subject not in gone and record.session in instances]

    people = People()
    for table in phenotypes or ():
        people.add(Path(table), ("eid",), number_label(), rename=_column, wanted={each.subject for each in records})
    if people.columns:
        absent += _missing_columns(people, {record.session for record in records})
    records, unlabelled = join(records, people)
    records = [_with_labels(record) if people.columns else record for record in records]
    return gather(records, [*problems, *absent, *people.problems, *unlabelled], is_restricted=True)


def _scans(root: Path, patterns: Sequence[str]) -> list[ScanRecord]:
    """Records, without labels, of the paths that match."""
    records = []
    for pattern in patterns:
        missing = [place for place in ("{eid}", "{instance}") if place not in pattern]
        if missing or Path(pattern).is_absolute():
            why = f"lacks {missing[0]}" if missing else "is not below the root"
            raise InputError(f"The pattern {pattern!r} {why}; write it as in {PATTERNS[1]}.")
        wildcard = re.sub(r"\{(eid|instance)\}", "*", pattern.replace("[", "[[]"))
        expression = re.escape(pattern).replace(r"\*", "[^/]*")
        for name, digits in (("eid", "[0-9]+"), ("instance", "[0-9]")):
            # Where a label stands twice, as folder and in the file's name, both must be the same.
            expression = expression.replace(rf"\{{{name}\}}", f"(?P<{name}>{digits})", 1)
            expression = expression.replace(rf"\{{{name}\}}", f"(?P={name})")
        for path in files_like(root, wildcard):
            if match := re.fullmatch(expression, path.relative_to(root).as_posix()):
                mask = beside(path, "mask.nii.gz") if path.parent.name == "reg_standard" else None
                record = ScanRecord(
                    match["eid"], path, mask, REPETITION_TIME, session=match["instance"], task="rest", dataset="UKB"
                )
                records.append(record)
    return records


def _not_warped(root: Path, warped: Sequence[ScanRecord]) -> list[Problem]:
    known = {record.key for record in warped}
    natives = _scans(root, (f"{{eid}}_20227_{{instance}}_0/{CLEANED}",))
    why = f"it is in the space of the scan; warp it, in the folder rfMRI.ica: `{APPLYWARP}`."
    return [Problem(str(record.scan), why) for record in natives if record.key not in known]


def _column(heading: str) -> str | None:
    """`p21003_i2` for any way to write that field and instance, "eid", None for other fields, or the heading itself."""
    heading = heading.removeprefix("participant.")  # the platform's own tool writes participant.p31
    if heading.lower() in ("eid", "f.eid"):
        return "eid"
    match = next(filter(None, (re.fullmatch(expression, heading) for expression in HEADINGS)), None)
    if match is None:
        return heading
    field, instance, array = (int(number or 0) for number in match.groups())
    return f"p{field}_i{instance}" if field in FIELDS and array == 0 else None


def _missing_columns(people: People, instances: set[str]) -> list[Problem]:
    wanted = [f"p{SEX}_i0"] + [f"p{field}_i{instance}" for instance in sorted(instances) for field in FIELDS[1:]]
    absent = [column for column in wanted if column not in people.columns]
    why = f"they have no column for {', '.join(absent)} (field and instance), so what it says is missing."
    return [Problem("phenotype tables", why, is_note=True)] if absent else []


def _with_labels(record: ScanRecord) -> ScanRecord:
    """Field names of the visit of the scan replaced by what they mean."""
    coded = {
        column: None if isinstance(value, int | float) and value < 0 else value
        for column, value in record.phenotypes.items()
        if re.fullmatch(HEADINGS[2], column)
    }
    sex, centre = coded.get(f"p{SEX}_i0"), coded.get(f"p{CENTRE}_i{record.session}")
    labels = {
        "sex": SEX_CODES.get(sex),
        f"p{SEX}": sex,
        "age": coded.get(f"p{AGE}_i{record.session}"),
        "fluid_intelligence": coded.get(f"p{FLUID_INTELLIGENCE}_i{record.session}"),
    }
    others = {column: value for column, value in record.phenotypes.items() if column not in coded}
    return replace(record, site=record.site if centre is None else str(centre), phenotypes=labels | others)


def withdrawn_people(path: Path) -> frozenset[str]:
    """The eids of a list without a header, or with one."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the list of withdrawn people cannot be read ({error}); check its name.") from error
    cells = [cell for line in lines if (cell := line.split(",")[0].strip().strip('"'))]
    if cells and cells[0].lower() in ("eid", "f.eid"):
        del cells[0]
    eids = [number_label()(cell) for cell in cells]
    if None in eids:
        raise InputError(f"{path}: {cells[eids.index(None)]!r} is not an eid; give one number a line.")
    return frozenset(eids)
