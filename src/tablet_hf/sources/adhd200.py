"""ADHD-200 as its preprocessing pipelines and nilearn deliver it, and the dialects of its phenotypic tables.

Layouts of the Preprocessed Connectomes Project (Bellec et al. 2017, NeuroImage 144:275), with or without a folder for
each site: Athena, NIAK, and BIDS derivatives; besides those `nilearn.datasets.fetch_adhd`. Athena's files whose names
begin with more than `w` had nuisance regressed out (n), were filtered (f) or smoothed (s); what was demeaned on the way
is refused when it is opened.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tablet_hf.errors import InputError
from tablet_hf.sources.bids import find_runs, participants_tables
from tablet_hf.sources.cohort import Layout, files_like, gather, mixture
from tablet_hf.sources.records import Cohort, Phenotype, Problem, ScanRecord
from tablet_hf.sources.tables import People, join, number_label

__all__ = ["find"]

LAYOUT = Layout("ADHD-200", "NYU/0010042/wmrda0010042_session_1_rest_1.nii.gz")

FILE_NAMES = {
    "Athena": r"(?P<steps>[sfn]*w)mrda(?P<id>[0-9]+)_session_(?P<session>[0-9]+)_rest_(?P<run>[0-9]+)",
    "NIAK": r"fmri_X_?(?P<id>[0-9]+)_session_(?P<session>[0-9]+)_run(?P<run>[0-9]+)",
    "nilearn": r"(?P<id>[0-9]+)_rest_tshift_RPI_voreg_mni",
}
"""Pipeline -> names of its files of functional runs in MNI152 space, without .nii.gz."""

DEEPEST = 4
"""Folders between the root and a scan, at most: Athena's archives unpack to SITE_athena/SITE_preproc/ID."""

ID_DIGITS = 7
"""Folders are called 0010042 where tables say 10042."""

SUBJECT_COLUMNS = ("ScanDir ID", "Participant", "participant_id", "Subject", "ID")

HEADINGS = (
    *SUBJECT_COLUMNS,
    *("Site", "Gender", "Age", "Handedness", "DX", "Secondary Dx", "ADHD Measure", "ADHD Index", "Inattentive"),
    *("Hyper/Impulsive", "IQ Measure", "Verbal IQ", "Performance IQ", "Full2 IQ", "Full4 IQ", "Med Status"),
    *(f"QC_Rest_{run}" for run in range(1, 7)),
    *(f"QC_S{session}_Rest_{run}" for session in (1, 2) for run in range(1, 7)),
    *("QC_Anatomical_1", "QC_Anatomical_2", "QC_Athena", "QC_NIAK"),
)
"""Headings of the phenotypic key. Tables that write ScanDirID or full_2_iq mean these."""

SITES = {
    1: "Peking",
    2: "Brown",
    3: "KKI",
    4: "NeuroIMAGE",
    5: "NYU",
    6: "OHSU",
    7: "Pittsburgh",
    8: "WashU",
}
"""Codes of the phenotypic key. 2 is Bradley Hospital / Brown University."""

SITE_BEGINNINGS = {
    "peking": "Peking",
    "bradley": "Brown",
    "brown": "Brown",
    "kki": "KKI",
    "kennedy": "KKI",
    "neuroimage": "NeuroIMAGE",
    "nyu": "NYU",
    "ohsu": "OHSU",
    "pitt": "Pittsburgh",
    "washu": "WashU",
    "wustl": "WashU",
}
"""How names of sites and of their folders begin, lower case: Peking_1 to Peking_3 are one site."""

SEX = {0: "F", 1: "M", "female": "F", "male": "M", "f": "F", "m": "M"}
"""The phenotypic key's codes of Gender, and words that other tables have, lower case."""


@dataclass(frozen=True)
class _Run:
    """A record and what made it: the pipeline and, for Athena, the letters of its steps."""

    record: ScanRecord
    pipeline: str
    steps: str = ""


def find(
    root: Path,
    *,
    phenotypes: Sequence[Path] | None = None,
    space: str | None = None,
    keep_failed_quality: bool = False,
) -> Cohort:
    """Find the resting runs of ADHD-200.

    Args:
        root: folder of one pipeline, of one or more sites; where a run was kept after several steps of Athena the
            file with the fewest is taken (`wmrda`, which is not demeaned).
        phenotypes: phenotypic tables, in any of their dialects; None takes files with "phenotypic" in their name in
            the root or in folders in it, and participants.tsv of BIDS derivatives.
        space: for BIDS derivatives alone, as for `bids.find`.
        keep_failed_quality: keep runs whose quality control says 0 (`QC_Rest_*` by run, `QC_Athena` and `QC_NIAK` by
            subject), which are left out otherwise.

    Returns:
        Records whose subject is the ScanDir ID with seven digits. The columns of the tables are the phenotypes, by the
        names of the phenotypic key; besides, `adhd` is 1 where DX > 0, 0 where DX = 0 and None where it is "pending",
        `sex` is "F" or "M" and `age` in years. The repetition time, which differs by site, is left to the header.

    Raises:
        InputError: no such folder, no run in it, runs of two pipelines, or a table that cannot be read.
    """
    root = LAYOUT.folder(root)
    runs, problems = _runs(root, space)
    tables = [Path(table) for table in phenotypes or ()] or _tables(root, runs)
    people = People()
    for table in tables:
        people.add(table, SUBJECT_COLUMNS, _subject_label, rename=_heading)
    if not tables:
        why = "no table with phenotypic in its name was found in it, so scans have no labels; name a table."
        problems.append(Problem(str(root), why, is_note=True))
    for subject in sorted(people.subjects - {run.record.subject for run in runs}):
        problems.append(Problem(f"subject {subject}", "the phenotypic tables name it, but no run of it was found."))
    records, unlabelled = join([run.record for run in runs], people)
    kept = []
    for run, record in zip(runs, records, strict=True):
        failed = _failed_quality(run, record.phenotypes)
        if failed and not keep_failed_quality:
            why = f"{failed} is 0 (failed quality control), so it is left out; keep it with --keep-failed-quality."
            problems.append(Problem(str(record.scan), why))
        else:
            labels = _with_common_names(record.phenotypes) if people.columns else {}
            kept.append(replace(record, site=_site(record.site), phenotypes=labels))
    return gather(kept, [*problems, *people.problems, *unlabelled])


def _runs(root: Path, space: str | None) -> tuple[list[_Run], list[Problem]]:
    if any(folder.is_dir() for folder in files_like(root, "sub-*")):
        found = find_runs(root, space=space, layout=LAYOUT)
        records = [
            replace(record, subject=_subject_label(record.subject) or record.subject, dataset="ADHD-200")
            for record in found.records
        ]
        return [_Run(record, "BIDS") for record in records], list(found.problems)
    if space:
        raise InputError(f"{root}: no folder sub-* is there, and --space is for BIDS derivatives; leave it out.")
    runs: dict[str, list[_Run]] = {}
    for depth in range(DEEPEST):
        for path in files_like(root, "*/" * depth + "*.nii*"):
            if run := _run(path, root):
                runs.setdefault(run.record.key, []).append(run)
    pipelines = sorted({run.pipeline for versions in runs.values() for run in versions})
    if not runs:
        raise LAYOUT.nothing(root)
    if len(pipelines) > 1:
        raise InputError(f"{root}: it holds runs of {' and '.join(pipelines)}; give the folder of one pipeline.")
    taken = []
    for versions in runs.values():
        fewest = min(len(run.steps) for run in versions)
        taken += [run for run in versions if len(run.steps) == fewest]
    return taken, mixture(root, (f"{run.pipeline} {run.steps}".strip() for run in taken), "a folder of one kind alone")


def _run(path: Path, root: Path) -> _Run | None:
    """The run that a file is, None for other files."""
    stem, dot, ending = path.name.partition(".")
    if dot + ending not in (".nii.gz", ".nii"):
        return None
    for pipeline, expression in FILE_NAMES.items():
        if match := re.fullmatch(expression, stem):
            parts = match.groupdict()
            record = ScanRecord(
                parts["id"].zfill(ID_DIGITS),
                path,
                session=parts.get("session"),
                task="rest",
                run=parts.get("run"),
                dataset="ADHD-200",
                site=next(filter(None, map(_known_site, path.relative_to(root).parts[:-1])), None),
            )
            return _Run(record, pipeline, parts.get("steps", ""))
    return None


def _tables(root: Path, runs: Sequence[_Run]) -> list[Path]:
    named = [*files_like(root, "*phenotypic*"), *files_like(root, "*/*phenotypic*")]
    tables = [path for path in named if path.suffix.lower() in (".csv", ".tsv")]
    return tables or (participants_tables(root) if runs and runs[0].pipeline == "BIDS" else [])


def _subject_label(cell: str) -> str | None:
    return number_label(ID_DIGITS)(cell.removeprefix("sub-"))


def _normalised(heading: str) -> str:
    return re.sub(r"[^0-9a-z]", "", heading.casefold())


OFFICIAL_HEADINGS = {_normalised(heading): heading for heading in HEADINGS}


def _heading(heading: str) -> str:
    return OFFICIAL_HEADINGS.get(_normalised(heading), heading)


def _known_site(text: str) -> str | None:
    return next((site for start, site in SITE_BEGINNINGS.items() if text.casefold().startswith(start)), None)


def _site(said: str | None) -> str | None:
    """The name of a site that a table gives as a code or in other words; what is not known stays as it is."""
    if said is None:
        return None
    return SITES.get(int(said)) or said if said.isdecimal() else _known_site(said) or said


def _failed_quality(run: _Run, phenotypes: Mapping[str, Phenotype]) -> str | None:
    """The column that says that a run failed, None where none does."""
    columns = [f"QC_{run.pipeline}"]
    session, number = run.record.session or "1", run.record.run
    if number and number.isdecimal() and session.isdecimal():
        columns.append(f"QC_S{int(session)}_Rest_{int(number)}")
        if int(session) == 1:  # QC_Rest_1 and so on count the runs of a first session, the only one for most
            columns.append(f"QC_Rest_{int(number)}")
    return next((column for column in columns if phenotypes.get(column) == 0), None)


def _with_common_names(phenotypes: Mapping[str, Phenotype]) -> dict[str, Phenotype]:
    diagnosis, gender = phenotypes.get("DX"), phenotypes.get("Gender")
    common = {
        "adhd": _has_adhd(diagnosis),
        "sex": SEX.get(gender.casefold() if isinstance(gender, str) else gender),
        "age": phenotypes.get("Age"),
    }
    return {**common, **phenotypes}


def _has_adhd(diagnosis: Phenotype) -> int | None:
    """1 or 0 for the codes of DX and for the words of participants.tsv, None for what is neither."""
    if isinstance(diagnosis, int | float):
        return int(diagnosis > 0)
    words = (diagnosis or "").casefold()
    return 1 if words.startswith("adhd") else 0 if words.startswith("typically developing") else None
