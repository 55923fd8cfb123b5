"""ADHD-200 as its preprocessing pipelines and nilearn deliver it.

Layouts of the Preprocessed Connectomes Project (Bellec et al. 2017, NeuroImage 144:275): Athena and NIAK, with or
without a folder per site; and `nilearn.datasets.fetch_adhd`. The letters in Athena's file names are steps: w warped, n
nuisance regressed out, f filtered, s smoothed.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from tablet_hf.errors import InputError
from tablet_hf.sources.cohort import find_files, make_cohort, not_found, warn_if_mixed
from tablet_hf.sources.records import Cohort, Problem, ScanRecord
from tablet_hf.sources.tables import PhenotypeTables, add_sex_and_age, number_label

__all__ = ["find"]

FILE_NAMES = {
    "Athena": r"(?P<steps>[sfn]*w)mrda(?P<id>[0-9]+)_session_(?P<session>[0-9]+)_rest_(?P<run>[0-9]+)\.nii(\.gz)?",
    "NIAK": r"fmri_X_?(?P<id>[0-9]+)_session_(?P<session>[0-9]+)_run(?P<run>[0-9]+)\.nii(\.gz)?",
    "nilearn": r"(?P<id>[0-9]+)_rest_tshift_RPI_voreg_mni\.nii(\.gz)?",
}
"""Pipeline -> its file names of functional runs in MNI152 space."""

SUBJECT_COLUMNS = ("ScanDir ID", "ScanDirID", "Participant", "Subject", "ID")

SITES = ("Peking", "Brown", "KKI", "NeuroIMAGE", "NYU", "OHSU", "Pittsburgh", "WashU")
SITE_CODES = dict(zip("12345678", SITES, strict=True))
"""Codes of the phenotypic key. 2 is Bradley Hospital / Brown University."""

SEX = {"0": "F", "1": "M", "f": "F", "m": "M"}
"""The phenotypic key's codes of Gender, and the letters of other tables."""


def find(
    root: Path,
    *,
    phenotypes: Sequence[Path] | None = None,
    keep_failed_quality: bool = False,
) -> Cohort:
    """Find the resting runs of ADHD-200.

    Args:
        root: Folder of one pipeline. Of several files of a run, the one with the fewest steps is taken.
        phenotypes: Phenotypic tables (default: files with "phenotypic" in their name in the root or in folders in it).
        keep_failed_quality: Keep runs with 0 in `QC_Rest_*`, `QC_Athena` or `QC_NIAK`.

    Returns:
        Cohort with the ScanDir ID in seven digits as the subject. All columns are phenotypes; `adhd` (1 for DX > 0, 0
        for DX = 0, else None), `sex` and `age` in years are added.

    Raises:
        InputError: If there is no run, there are runs of two pipelines, or a table cannot be read.
    """
    records, pipeline = _find_runs(root)
    problems = []
    tables = PhenotypeTables(
        phenotypes or [*find_files(root, "*phenotypic*.[ct]sv"), *find_files(root, "*/*phenotypic*.[ct]sv")],
        SUBJECT_COLUMNS,
        partial(number_label, width=7),
    )
    if not tables.columns:
        warnings.warn(f"{root}: no phenotypic table was found, so scans have no phenotypes; name one.", stacklevel=2)
    for subject in sorted(tables.subjects - {record.subject for record in records}):
        problems.append(Problem(f"subject {subject}", "it is in the phenotypic tables, but no run of it was found."))
    passed = []
    for record in add_sex_and_age(tables.join(records), sexes=SEX):
        failed = _failed_quality(record, pipeline)
        if failed and not keep_failed_quality:
            why = f"{failed} is 0 (failed quality control); include it with --keep-failed-quality."
            problems.append(Problem(str(record.scan), why))
        else:
            diagnosis = record.phenotypes.get("DX")
            adhd = int(diagnosis > 0) if isinstance(diagnosis, int | float) else None
            phenotypes = {"adhd": adhd} | record.phenotypes if tables.columns else {}
            site = SITE_CODES.get(record.site) or _known_site(record.site or "") or record.site
            passed.append(replace(record, site=site, phenotypes=phenotypes))
    return make_cohort(passed, [*problems, *tables.problems])


def _find_runs(root: Path) -> tuple[list[ScanRecord], str]:
    """Return one record per run, and the name of the pipeline that wrote them."""
    versions: dict[str, list[tuple[str, ScanRecord]]] = {}
    pipelines = set()
    for depth in range(4):  # Athena's archives unpack to SITE_athena/SITE_preproc/ID
        for path in find_files(root, "*/" * depth + "*.nii*"):
            for pipeline, pattern in FILE_NAMES.items():
                if match := re.fullmatch(pattern, path.name):
                    parts = match.groupdict()
                    labels = {"session": parts.get("session"), "task": "rest", "run": parts.get("run")}
                    site = next(filter(None, map(_known_site, path.relative_to(root).parts[:-1])), None)
                    record = ScanRecord(parts["id"].zfill(7), path, dataset="ADHD-200", site=site, **labels)
                    versions.setdefault(record.key, []).append((parts.get("steps", ""), record))
                    pipelines.add(pipeline)
    if not pipelines:
        raise not_found(root, "ADHD-200", "NYU/0010042/wmrda0010042_session_1_rest_1.nii.gz")
    if len(pipelines) > 1:
        raise InputError(f"{root}: it has runs of {' and '.join(sorted(pipelines))}; give the folder of one pipeline.")
    taken = []
    for candidates in versions.values():
        fewest = min(len(steps) for steps, _ in candidates)
        taken += [(steps, record) for steps, record in candidates if len(steps) == fewest]
    warn_if_mixed(root, (steps for steps, _ in taken), "a folder with one kind of files")
    return [record for _, record in taken], pipelines.pop()


def _known_site(text: str) -> str | None:
    """Return the site that a name begins with: Peking_1 to Peking_3 are one site."""
    return next((site for site in SITES if text.casefold().startswith(site.casefold())), None)


def _failed_quality(record: ScanRecord, pipeline: str) -> str | None:
    """Return the column by which a run failed quality control, None where there is none."""
    columns, session = [f"QC_{pipeline}"], int(record.session or 1)
    if record.run:
        columns.append(f"QC_S{session}_Rest_{int(record.run)}")
        if session == 1:  # QC_Rest_1 and so on are about the first session, the only one of most subjects
            columns.append(f"QC_Rest_{int(record.run)}")
    return next((column for column in columns if record.phenotypes.get(column) == 0), None)
