"""UK Biobank: resting runs of bulk field 20227 that were warped to MNI152, and labels from a tabular export.

The bulk field's own `filtered_func_data_clean.nii.gz` lies in the space of the scan; `APPLYWARP` is how to warp it
(Alfaro-Almagro et al. 2018, NeuroImage 166:400). Fields: https://biobank.ndph.ox.ac.uk/showcase/
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tablet_hf.datasets.records import Cohort, Phenotype, Problem, ScanRecord
from tablet_hf.datasets.sources._cohort import Layout, beside, check_labels, files_like, gather
from tablet_hf.datasets.sources._people import People, number_label
from tablet_hf.errors import InputError

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
    "applywarp --in=filtered_func_data_clean --ref=$FSLDIR/data/standard/MNI152_T1_2mm "
    "--warp=reg/example_func2standard_warp --out=reg_standard/filtered_func_data_clean --interp=spline"
)
"""To be run in `rfMRI.ica`, after `mkdir reg_standard`; FSL's own command."""

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
        withdrawn: list of people who withdrew, one eid a line, as UK Biobank sends it. Their scans are left out.

    Returns:
        Records whose session is the instance. Labels: `sex` "F" or "M" and its code `p31`, `age` (21003) and
        `fluid_intelligence` (20016) at the visit of the scan; the site is the assessment centre (54) of that visit.
        Negative codes ("do not know", "prefer not to answer") are missing values. The cohort is restricted.

    Raises:
        InputError: no such folder, no warped scan in it, or a pattern, list or table that cannot be read.
    """
    root = LAYOUT.folder(root)
    scans = _scans(root, (pattern,) if pattern else PATTERNS)
    natives = [] if pattern else _scans(root, (f"{{eid}}_20227_{{instance}}_0/{CLEANED}",))
    if not scans and natives:
        raise LAYOUT.nothing(root, f"Those in the space of the scan are there; warp each, in its folder: {APPLYWARP}.")
    if not scans:
        is_zipped = files_like(root, "*_20227_*_0.zip")
        raise LAYOUT.nothing(
            root, "The bulk files are there as zip archives; unpack and warp them." if is_zipped else ""
        )
    warped = {(eid, instance) for _, eid, instance in scans}
    problems = [
        Problem(str(scan), f"it is in the space of the scan; warp it, in its folder: {APPLYWARP}.")
        for scan, eid, instance in natives
        if (eid, instance) not in warped
    ]
    gone = _withdrawn(Path(withdrawn)) if withdrawn else frozenset()
    for eid in sorted({eid for _, eid, _ in scans} & gone):
        problems.append(Problem(f"subject {eid}", "withdrawn from UK Biobank, so left out; delete these scans."))
    there = {instance for _, _, instance in scans}
    instances, absent = check_labels(root, "ses", sessions or there, there)
    problems += absent
    wanted = [scan for scan in scans if scan[1] not in gone and scan[2] in instances]
    people = People()
    for table in phenotypes or ():
        people.add(Path(table), ("eid",), number_label(), rename=_column, wanted={eid for _, eid, _ in wanted})
    problems += people.problems + _missing_columns(people, {instance for _, _, instance in wanted})
    records = []
    for scan, eid, instance in wanted:
        if people.columns and not people.has(eid):
            problems.append(Problem(f"subject {eid}", "no row of the phenotype tables is about this person."))
        labels, site = _labels(people.phenotypes(eid), instance) if people.columns else ({}, None)
        record = ScanRecord(
            eid,
            scan,
            beside(scan, "mask.nii.gz") if scan.parent.name == "reg_standard" else None,
            REPETITION_TIME,
            session=instance,
            task="rest",
            dataset="UKB",
            site=site,
            phenotypes=labels,
        )
        records.append(record)
    return gather(records, problems, is_restricted=True)


def _scans(root: Path, patterns: Sequence[str]) -> list[tuple[Path, str, str]]:
    """Paths that match, each with the eid and the instance in it."""
    found = []
    for pattern in patterns:
        missing = [place for place in ("{eid}", "{instance}") if place not in pattern]
        if missing or Path(pattern).is_absolute():
            why = f"lacks {missing[0]}" if missing else "is not below the root"
            raise InputError(f"The pattern {pattern!r} {why}; write it as in {PATTERNS[1]}.")
        wildcard = re.sub(r"\{(eid|instance)\}", "*", pattern.replace("[", "[[]"))
        # The same label twice in a pattern, as folder and in the file's name, must be the same in a path.
        expression = re.escape(pattern).replace(r"\*", "[^/]*")
        for name, digits in (("eid", "[0-9]+"), ("instance", "[0-9]")):
            expression = expression.replace(rf"\{{{name}\}}", f"(?P<{name}>{digits})", 1)
            expression = expression.replace(rf"\{{{name}\}}", f"(?P={name})")
        for path in files_like(root, wildcard):
            match = re.fullmatch(expression, path.relative_to(root).as_posix())
            if match:
                found.append((path, match["eid"], match["instance"]))
    return found


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
    absent = [column for column in wanted if people.columns and column not in people.columns]
    why = f"no column for {', '.join(absent)}, which are the label's field and instance; that label is missing."
    return [Problem("phenotype tables", why)] if absent else []


def _labels(row: Mapping[str, Phenotype], instance: str) -> tuple[dict[str, Phenotype], str | None]:
    """The labels of a scan, and its site."""
    coded = {
        column: None if isinstance(value, int | float) and value < 0 else value
        for column, value in row.items()
        if re.fullmatch(HEADINGS[2], column)
    }
    sex, centre = coded.get(f"p{SEX}_i0"), coded.get(f"p{CENTRE}_i{instance}")
    labels = {
        "sex": SEX_CODES.get(sex),
        "p31": sex,
        "age": coded.get(f"p{AGE}_i{instance}"),
        "fluid_intelligence": coded.get(f"p{FLUID_INTELLIGENCE}_i{instance}"),
    }
    others = {column: value for column, value in row.items() if column not in coded}
    return labels | others, None if centre is None else str(centre)


def _withdrawn(path: Path) -> frozenset[str]:
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
