"""BIDS derivatives as fMRIPrep writes them: `sub-*/[ses-*/]func/*_space-MNI152*_desc-preproc_bold.nii.gz`.

Of several versions of a run, one is taken: resolution `res-2` before `res-1` before none (the voxel size of the scan)
before others, and among equals the space MNI152NLin6Asym (that of HCP and UK Biobank) before MNI152NLin2009cAsym
before others by name.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tablet_hf.errors import InputError
from tablet_hf.scans import bids_name, is_native_space
from tablet_hf.sources.cohort import find_files, grouped, make_cohort, not_found, select_labels, sibling, warn_if_mixed
from tablet_hf.sources.records import Cohort, Problem, ScanRecord
from tablet_hf.sources.tables import PhenotypeTables, add_sex_and_age, bids_label

__all__ = ["find", "read_entities"]

EXAMPLE = "sub-01/func/sub-01_task-rest_space-MNI152NLin2009cAsym_res-2_desc-preproc_bold.nii.gz"

SUBJECT_COLUMNS = ("participant_id", "subject_id", "subject", "participant", "sub", "id")
SESSION_COLUMNS = ("session_id", "session")
"""BIDS prescribes the first of each."""

RESOLUTIONS = ("2", "1", "native")
SPACES = ("MNI152NLin6Asym", "MNI152NLin2009cAsym")
"""Preferred versions of a run, in this order."""

VERSION_ENTITIES = ("sub", "ses", "task", "run", "space", "cohort", "res", "den", "desc")
"""Entities with an attribute of their own, or that distinguish versions of a run; all others distinguish runs."""

GENERIC_NAMES = ("fmriprep", "xcp", "nibabies", "todo", "required")
"""How dataset names begin that name no study: those of pipelines, and of heudiconv's and BIDScoin's templates."""


def find(
    root: Path,
    *,
    phenotypes: Sequence[Path] | None = None,
    tasks: Sequence[str] | None = None,
    sessions: Sequence[str] | None = None,
    space: str | None = None,
    dataset: str | None = None,
) -> Cohort:
    """Find the runs of fMRIPrep derivatives in MNI152 space.

    Args:
        root: Folder with the folders `sub-*`.
        phenotypes: Tables with a column `participant_id`, and `session_id` where rows are about sessions (default:
            `participants.tsv` of the derivatives or else of the raw dataset, see `docs/sources.md`).
            `sub-*_sessions.tsv` are always read.
        tasks, sessions: Labels to include, with or without `task-` and `ses-` (default: all).
        space: Such as `MNI152NLin2009cAsym` or `MNI152NLin2009cAsym:res-2` (default: any MNI152 space).
        dataset: Name of the study (default: from `dataset_description.json` of the derivatives or the raw dataset).

    Returns:
        Cohort with BIDS labels; `run` includes other entities, "1+acqAP" for `acq-AP_run-1`. All columns are
        phenotypes; `sex` and `age` are added where columns with other names have them.

    Raises:
        InputError: If no run has these labels, the space is no template, or a table cannot be read.
    """
    records, problems = _find_runs(root, tasks, sessions, space)
    above = root.absolute().parents[:2]
    folders = [root, *above, *(folder / name for folder in above for name in ("rawdata", "sourcedata/raw"))]
    participants = [folder / "participants.tsv" for folder in folders if (folder / "participants.tsv").is_file()]
    tables = PhenotypeTables(phenotypes or participants[:1], SUBJECT_COLUMNS, bids_label, SESSION_COLUMNS)
    if not tables.columns:
        warnings.warn(f"{root}: no participants.tsv was found, so scans have no phenotypes; name one.", stacklevel=2)
    subjects = {record.subject for record in records}
    for subject in sorted(tables.subjects - subjects):
        problems.append(Problem(f"subject {subject}", "it is in the phenotype tables, but no run of it was found."))
    raw = [path.parent for path in participants if path.parent != root][:1]
    for folder in (root, *raw):
        for subject in sorted(subjects):
            path = folder / f"sub-{subject}" / f"sub-{subject}_sessions.tsv"
            if path.is_file():
                tables.add(path, subject)
    dataset = dataset or next(filter(None, map(_study_name, folders)), None)
    records = add_sex_and_age(tables.join(replace(record, dataset=dataset) for record in records))
    return make_cohort(records, [*problems, *tables.problems])


def _find_runs(
    root: Path, tasks: Sequence[str] | None, sessions: Sequence[str] | None, space: str | None
) -> tuple[list[ScanRecord], list[Problem]]:
    """Find runs without reading any table."""
    if space and is_native_space(space.partition(":")[0]):
        raise InputError(f"The space {space!r} is not that of a template; give one such as MNI152NLin2009cAsym:res-2.")
    versions, problems = [], []
    for folders in ("sub-?*", "sub-?*/ses-?*"):
        for path in find_files(root, f"{folders}/func/*desc-preproc_bold.nii*"):
            labels = path.relative_to(root).parts[:-2]
            if not {f"{entity}-{label}" for entity, label in read_entities(path).items()}.issuperset(labels):
                why = f"its name does not have {'_'.join(labels)}, as its folder; correct one of them."
                problems.append(Problem(str(path), why))
            elif path.name.endswith((".nii", ".nii.gz")):
                versions.append(_record(path))
    if not versions:
        raise not_found(root, "fMRIPrep derivatives", EXAMPLE, str(problems[0]) if problems else _hint(root))
    for name, labels in (("task", tasks), ("session", sessions)):
        versions, absent = select_labels(root, versions, name, labels)
        problems += absent
    records: list[ScanRecord] = []
    for candidates in grouped(versions, "key").values():
        fitting = [each for each in candidates if f"{_space(each)}:".startswith(f"{space}:" if space else "MNI152")]
        if not fitting:
            spaces = ", ".join(sorted({_space(version) for version in candidates}))
            why = f"this run exists in {spaces}, not in {space or 'an MNI152 space'}; run fMRIPrep with that output."
            problems.append(Problem(str(candidates[0].scan), why))
        # A run that exists compressed and uncompressed has two best versions, which `make_cohort` reports.
        records += [version for version in fitting if _rank(version) == min(map(_rank, fitting))]
    warn_if_mixed(root, map(_space, records), "--space")
    return records, problems


def read_entities(path: Path) -> dict[str, str]:
    """Return the entities of a BIDS file name: `sub-01_task-rest_bold.nii.gz` -> {"sub": "01", "task": "rest"}."""
    parts = (part.partition("-") for part in bids_name(path.name)[0])
    return {entity: label for entity, _, label in parts if entity and label}


def _record(path: Path) -> ScanRecord:
    entities = read_entities(path)
    others = [f"{name}{label}" for name, label in entities.items() if name not in VERSION_ENTITIES]
    run = "+".join(([entities["run"]] if "run" in entities else []) + others)
    stem = path.name.partition(".")[0].removesuffix("_desc-preproc_bold")
    masks = (sibling(path, f"{stem}_desc-brain_mask{ending}") for ending in (".nii.gz", ".nii"))
    labels = {"session": entities.get("ses"), "task": entities.get("task"), "run": run or None}
    return ScanRecord(entities["sub"], path, next(filter(None, masks), None), **labels)


def _space(version: ScanRecord) -> str:
    """Return space and resolution as in fMRIPrep's option: `MNI152NLin2009cAsym:res-2`, `T1w:res-native`."""
    entities = read_entities(version.scan)
    resolution = entities.get("res", "native").lstrip("0").removesuffix("mm")  # "2" for res-2, res-02 and res-2mm
    return f"{entities.get('space', 'func')}:res-{resolution}"


def _rank(version: ScanRecord) -> tuple[int, int, str]:
    """Smaller is preferred."""
    space, resolution = _space(version).split(":res-")
    return (*RESOLUTIONS, resolution).index(resolution), (*SPACES, space).index(space), _space(version)


def _study_name(folder: Path) -> str | None:
    """Return the `Name` of a dataset, None where it is that of a pipeline or of a template."""
    try:
        name = json.loads((folder / "dataset_description.json").read_text(encoding="utf-8-sig"))["Name"].strip()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return None if name.casefold().startswith(GENERIC_NAMES) else name


def _hint(root: Path) -> str:
    subjects = [*find_files(root, "*/sub-*"), *find_files(root, "derivatives/*/sub-*")]
    folders = sorted({str(subject.parent) for subject in subjects if subject.is_dir()})
    return f"Subjects are in {' and '.join(folders[:3])}; give that folder." if folders else ""
