"""BIDS derivatives as fMRIPrep writes them: `sub-*/[ses-*/]func/*_space-MNI152*_desc-preproc_bold.nii.gz`.

Of several versions of a run, one is taken: resolution `res-2` before `res-1` before none (the voxel size of the scan)
before others, and among equals the space MNI152NLin6Asym (that of HCP and UK Biobank) before MNI152NLin2009cAsym
before others by name.
"""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tablet_hf.errors import InputError
from tablet_hf.scans import is_native_space
from tablet_hf.sources.cohort import Layout, find_files, grouped, make_cohort, select_labels, sibling, warn_if_mixed
from tablet_hf.sources.records import Cohort, Problem, ScanRecord
from tablet_hf.sources.tables import PhenotypeTables, add_sex_and_age, bids_label

__all__ = ["find", "read_entities"]

LAYOUT = Layout(
    "fMRIPrep derivatives",
    "sub-01/func/sub-01_task-rest_space-MNI152NLin2009cAsym_res-2_desc-preproc_bold.nii.gz",
)

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
        InputError: If there is no such folder, no run of these labels, or a table cannot be read.
    """
    root = LAYOUT.check_folder(root)
    records, problems = _find_runs(root, tasks, sessions, space)
    raw_folders = _raw_folders(root)
    raw = next((folder for folder in raw_folders if (folder / "participants.tsv").is_file()), None)
    participants = [folder / "participants.tsv" for folder in (root, raw) if folder]
    paths = phenotypes or [path for path in participants if path.is_file()][:1]
    tables = PhenotypeTables(paths, SUBJECT_COLUMNS, bids_label, SESSION_COLUMNS)
    if not paths:
        warnings.warn(
            f"{root}: no participants.tsv was found, so scans have no phenotypes; name a table.", stacklevel=2
        )
    subjects = {record.subject for record in records}
    for subject in sorted(tables.subjects - subjects):
        problems.append(Problem(f"subject {subject}", "it is in the phenotype tables, but no run of it was found."))
    for folder in filter(None, (root, raw)):
        for subject in sorted(subjects):
            path = folder / f"sub-{subject}" / f"sub-{subject}_sessions.tsv"
            if path.is_file():
                tables.add(path, subject)
    dataset = dataset or next(filter(None, map(_study_name, (root, *raw_folders))), None)
    records = add_sex_and_age(tables.join(replace(record, dataset=dataset) for record in records))
    return make_cohort(records, [*problems, *tables.problems])


def _find_runs(
    root: Path,
    tasks: Sequence[str] | None,
    sessions: Sequence[str] | None,
    space: str | None,
) -> tuple[list[ScanRecord], list[Problem]]:
    """Find runs without reading any table; arguments and errors as for `find`."""
    wanted = _parse_space(space)
    paths = [
        path
        for folders in ("sub-*", "sub-*/ses-*")
        for path in find_files(root, f"{folders}/func/*desc-preproc_bold.nii*")
        if path.name.endswith((".nii", ".nii.gz"))
    ]
    if not paths:
        raise LAYOUT.not_found(root, _hint(root))
    reasons = {path: _why_misplaced(path, root) for path in paths}
    problems = [Problem(str(path), why) for path, why in reasons.items() if why]
    versions = [_record(path) for path, why in reasons.items() if not why]
    for name, labels in (("task", tasks), ("session", sessions)):
        versions, absent = select_labels(root, versions, name, labels)
        problems += absent
    records: list[ScanRecord] = []
    for candidates in grouped(versions).values():
        fitting = [version for version in candidates if f"{_space(version)}:".startswith(wanted)]
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
    parts = (part.partition("-") for part in path.name.split(".")[0].split("_")[:-1])
    return {entity: label for entity, _, label in parts if entity and label}


def _record(path: Path) -> ScanRecord:
    entities = read_entities(path)
    others = [f"{name}{label}" for name, label in entities.items() if name not in VERSION_ENTITIES]
    run = "+".join(([entities["run"]] if "run" in entities else []) + others)
    stem = path.name.partition(".")[0].removesuffix("_desc-preproc_bold")
    masks = (sibling(path, f"{stem}_desc-brain_mask{ending}") for ending in (".nii.gz", ".nii"))
    return ScanRecord(
        entities["sub"],
        path,
        next(filter(None, masks), None),
        session=entities.get("ses"),
        task=entities.get("task"),
        run=run or None,
    )


def _why_misplaced(path: Path, root: Path) -> str | None:
    entities = read_entities(path)
    if "sub" not in entities:
        return "its name has no subject after sub-; rename it as BIDS asks."
    for folder in path.relative_to(root).parts[:-1]:
        entity, _, label = folder.partition("-")
        if entity in ("sub", "ses") and entities.get(entity) != label:
            return f"its name contradicts its folder {folder}; correct one of them."
    return None


def _parse_space(space: str | None) -> str:
    """Return how the `_space` of wanted versions begins, with a colon behind it."""
    if space is None:
        return "MNI152"
    parts = re.fullmatch(r"(?:space-)?([A-Za-z0-9]+)(?:[:_]res-([A-Za-z0-9]+))?", space.strip())
    if not parts or is_native_space(parts[1]):
        raise InputError(
            f"The space {space!r} is not a template space; give one such as MNI152NLin2009cAsym or "
            "MNI152NLin2009cAsym:res-2."
        )
    return f"{parts[1]}:" + (f"res-{_resolution(parts[2])}:" if parts[2] else "")


def _resolution(label: str) -> str:
    return label.lstrip("0").removesuffix("mm")  # "2" for res-2, res-02 and res-2mm


def _space(version: ScanRecord) -> str:
    """Return space and resolution as in fMRIPrep's option: `MNI152NLin2009cAsym:res-2`, `T1w:res-native`."""
    entities = read_entities(version.scan)
    return f"{entities.get('space', 'func')}:res-{_resolution(entities.get('res', 'native'))}"


def _rank(version: ScanRecord) -> tuple[int, int, str]:
    """Smaller is preferred."""
    space, resolution = _space(version).split(":res-")
    ranks = (
        order.index(item) if item in order else len(order)
        for item, order in ((resolution, RESOLUTIONS), (space, SPACES))
    )
    return (*ranks, _space(version))


def _study_name(folder: Path) -> str | None:
    """Return the `Name` of a dataset, None where it is that of a pipeline or of a template."""
    name = _description(folder).get("Name")
    name = name.strip() if isinstance(name, str) else ""
    return None if not name or name.casefold().startswith(GENERIC_NAMES) else name


def _description(folder: Path) -> dict[str, Any]:
    try:
        description = json.loads((folder / "dataset_description.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return description if isinstance(description, dict) else {}


def _raw_folders(root: Path) -> list[Path]:
    """Return where the raw dataset may be: the link of the derivatives, two folders above, and folders in those."""
    links = _description(root).get("DatasetLinks")
    raw = links.get("raw") if isinstance(links, Mapping) else None
    linked = [root / raw.removeprefix("file://")] if isinstance(raw, str) else []
    above = root.absolute().parents[:2]
    return [*linked, *above, *(folder / name for folder in above for name in ("rawdata", "sourcedata/raw"))]


def _hint(root: Path) -> str:
    subjects = [*find_files(root, "*/sub-*"), *find_files(root, "derivatives/*/sub-*")]
    folders = sorted({str(subject.parent) for subject in subjects if subject.is_dir()})
    return f"Subjects are in {' and '.join(folders[:3])}; give that folder." if folders else ""
