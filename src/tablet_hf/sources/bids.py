"""BIDS derivatives as fMRIPrep writes them: `sub-*/[ses-*/]func/*_space-MNI152*_desc-preproc_bold.nii.gz`.

Where one run is there in several versions, the first of this order is taken: resolution `res-2`, then `res-1`, then
without `res-` (fMRIPrep's name for the voxel size of the scan itself), then others; and among equals the space
MNI152NLin6Asym (FSL's, that of HCP and UK Biobank), then MNI152NLin2009cAsym, then others by name.
"""

import glob
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tablet_hf.errors import InputError
from tablet_hf.scans import is_native_space
from tablet_hf.sources.cohort import Layout, beside, check_labels, files_like, gather, mixture
from tablet_hf.sources.records import Cohort, Problem, ScanRecord
from tablet_hf.sources.tables import People, bids_label, join, with_common_names

__all__ = ["Runs", "find", "find_runs", "participants_tables", "read_entities"]

LAYOUT = Layout(
    "fMRIPrep derivatives",
    "sub-01/func/sub-01_task-rest_space-MNI152NLin2009cAsym_res-2_desc-preproc_bold.nii.gz",
)

SUBJECT_COLUMNS = ("participant_id", "subject_id", "subject", "participant", "sub", "id")
SESSION_COLUMNS = ("session_id", "session")
"""BIDS prescribes the first of each; the others are what subjects write in tables of their own."""

RESOLUTIONS = ("2", "1", None)
SPACES = ("MNI152NLin6Asym", "MNI152NLin2009cAsym")
"""The order in which versions of a run are preferred; what is not named here comes last."""

NAMES_OF_NO_STUDY = ("fMRIPrep", "TODO", "REQUIRED")
"""How names of datasets begin that say nothing: fMRIPrep's own, and those of heudiconv's and BIDScoin's templates."""

ANY = "any"

ENDINGS = (".nii.gz", ".nii")

NOT_OF_THE_RUN = ("sub", "ses", "task", "run", "space", "cohort", "res", "den", "desc")
"""Entities that tell subjects, sessions, tasks or versions of one run apart; all others tell runs apart."""


@dataclass(frozen=True)
class Runs:
    """Runs that were found, phenotypes not yet next to them; `subjects` are all subjects with any BOLD scan."""

    records: Sequence[ScanRecord]
    problems: Sequence[Problem]
    subjects: frozenset[str]


@dataclass(frozen=True)
class _Version:
    """One file of a run."""

    path: Path
    entities: Mapping[str, str]

    @property
    def space(self) -> str:
        return self.entities.get("space", "native")

    @property
    def resolution(self) -> str | None:
        return _resolution(self.entities["res"]) if "res" in self.entities else None

    @property
    def kind(self) -> str:
        """As fMRIPrep's --output-spaces has it."""
        return self.space + (f":res-{self.resolution}" if self.resolution else "")

    @property
    def rank(self) -> tuple[int, int, str]:
        """Smaller is preferred."""
        return _place(self.resolution, RESOLUTIONS), _place(self.space, SPACES), self.kind

    @property
    def run(self) -> tuple[str, str | None, str | None, str | None]:
        """Subject, session, task and run: what all versions of a run have in common."""
        labels = [self.entities["run"]] if "run" in self.entities else []
        labels += [f"{name}{label}" for name, label in self.entities.items() if name not in NOT_OF_THE_RUN]
        session, task = self.entities.get("ses"), self.entities.get("task")
        return self.entities["sub"], session, task, "+".join(labels) or None

    def fits(self, space: str | None, resolution: str | None) -> bool:
        """Whether it is what `_split_space` says is wanted."""
        is_of_space = self.space == space if space else self.space.startswith("MNI152")
        return is_of_space and resolution in (ANY, self.resolution)

    def record(self) -> ScanRecord:
        subject, session, task, run = self.run
        stem = self.path.name.split(".")[0].removesuffix("_desc-preproc_bold")
        masks = (beside(self.path, f"{stem}_desc-brain_mask{ending}") for ending in ENDINGS)
        mask = next(filter(None, masks), None)
        return ScanRecord(subject, self.path, mask, session=session, task=task, run=run)


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
        root: the folder that holds `sub-*`.
        phenotypes: tables with a column `participant_id`, and `session_id` where rows are about single sessions. None
            takes `participants.tsv` from the derivatives, from the raw dataset that their `dataset_description.json`
            links to, or from a raw dataset around or next to them, whichever is found first. `sub-*_sessions.tsv` of
            the derivatives and of the raw dataset are read in any case.
        tasks, sessions: labels of those that are wanted, with or without `task-` and `ses-`; None for all.
        space: `MNI152NLin2009cAsym` or, as in fMRIPrep's own option, `MNI152NLin2009cAsym:res-2`, or as a file name has
            it, `MNI152NLin2009cAsym_res-02`; None takes any MNI152 space in the order above.
        dataset: what the study is called, for stores that hold several; None takes `Name` of the
            `dataset_description.json` of the derivatives, or of the raw dataset where the first is none or says only
            which pipeline wrote them ("fMRIPrep - fMRI PREProcessing workflow").

    Returns:
        Records with the labels of BIDS. `run` also holds whatever else tells runs apart: "1+acqAP" for
        `acq-AP_run-1`. The brain mask is that of the same entities; the repetition time is left to the sidecar. The
        columns of the tables are the phenotypes; `sex` and `age` stand for columns that plainly say the same.

    Raises:
        InputError: no such folder, nothing in it that was asked for, or a table that cannot be read.
    """
    root = LAYOUT.folder(root)
    runs = find_runs(root, tasks, sessions, space)
    tables = [Path(table) for table in phenotypes or ()] or participants_tables(root)
    people, problems = People(), list(runs.problems)
    for table in tables:
        people.add(table, SUBJECT_COLUMNS, bids_label("sub"), SESSION_COLUMNS)
    if not tables:
        why = "no participants.tsv was found in, above or beside it, so scans have no labels; name a table."
        problems.append(Problem(str(root), why, is_note=True))
    for subject in sorted(people.subjects - runs.subjects):
        problems.append(Problem(f"subject {subject}", "the phenotype tables name it, but no run of it was found."))
    folders = [folder for folder in (root, _raw_folder(root)) if folder]
    for subject in sorted({record.subject for record in runs.records}):
        for folder in folders:
            table = folder / f"sub-{subject}" / f"sub-{subject}_sessions.tsv"
            if table.is_file():
                people.add(table, (), bids_label("sub"), SESSION_COLUMNS, subject=subject)
    dataset = dataset or _study(root)
    records, unlabelled = join([replace(record, dataset=dataset) for record in runs.records], people)
    return gather(with_common_names(records), [*problems, *people.problems, *unlabelled])


def find_runs(
    root: Path,
    tasks: Sequence[str] | None = None,
    sessions: Sequence[str] | None = None,
    space: str | None = None,
    layout: Layout = LAYOUT,
) -> Runs:
    """Find runs without asking any table; arguments and errors as for `find`."""
    from nilearn.interfaces.bids import get_bids_files

    wanted_space, wanted_resolution = _split_space(space)
    root_as_text = glob.escape(str(root))  # nilearn makes one pattern of folder and name
    paths = get_bids_files(root_as_text, file_tag="desc-preproc_bold", file_type="nii*", modality_folder="func")
    found = [_Version(Path(path), read_entities(Path(path))) for path in paths if path.endswith(ENDINGS)]
    if not found:
        raise layout.nothing(root, _where_else(root))
    misplaced = {version.path: _misplaced(version, root) for version in found}
    problems = [Problem(str(path), why) for path, why in misplaced.items() if why]
    versions = [version for version in found if not misplaced[version.path]]
    for entity, wanted in (("task", tasks), ("ses", sessions)):
        if wanted:
            there = [version.entities.get(entity) for version in versions]
            labels, absent = check_labels(root, entity, wanted, there)
            versions = [version for version in versions if version.entities.get(entity) in labels]
            problems += absent

    runs: dict[tuple, list[_Version]] = {}
    for version in versions:
        runs.setdefault(version.run, []).append(version)
    taken: list[_Version] = []
    for candidates in runs.values():
        fitting = [version for version in candidates if version.fits(wanted_space, wanted_resolution)]
        if not fitting:
            kinds = ", ".join(sorted({version.kind for version in candidates}))
            why = f"this run is there in {kinds}, not in {space or 'an MNI152 space'}; run fMRIPrep with that output."
            problems.append(Problem(str(candidates[0].path), why))
        # A run whose file is there compressed and not has two first ones, and `gather` tells of it.
        taken += [version for version in fitting if version.rank == min(other.rank for other in fitting)]
    problems += mixture(root, (version.kind for version in taken), "space= (command line: --space)")
    subjects = frozenset(version.entities["sub"] for version in versions)
    return Runs([version.record() for version in taken], problems, subjects)


def participants_tables(root: Path) -> list[Path]:
    """The participants.tsv of derivatives, else that of the raw dataset; none or one."""
    tables = [folder / "participants.tsv" for folder in (root, _raw_folder(root)) if folder]
    return [table for table in tables if table.is_file()][:1]


def read_entities(path: Path) -> dict[str, str]:
    """Entities of a BIDS file name: `sub-01_task-rest_bold.nii.gz` -> {"sub": "01", "task": "rest"}.

    nilearn's `parse_bids_filename` cuts labels at a second hyphen, so that `sub-A-01` and `sub-A-02` become one
    subject.
    """
    parts = path.name.split(".")[0].split("_")[:-1]
    pairs = (part.partition("-") for part in parts)
    return {entity: label for entity, _, label in pairs if entity and label}


def _split_space(space: str | None) -> tuple[str | None, str | None]:
    """The space and the resolution that are wanted: `ANY` where none was named, None for that of the scan itself.

    Written as in fMRIPrep's option, `MNI152NLin6Asym:res-2`, or as in names of files, `space-MNI152NLin6Asym_res-02`.
    """
    if space is None:
        return None, ANY
    name, *others = re.split("[:_]", space.strip().removeprefix("space-"))
    if is_native_space(name):
        raise InputError(f"The space {name} is not an MNI152 space, and no other can be tokenized; choose one that is.")
    if unknown := [part for part in others if not re.fullmatch(r"res-.+|\d+(mm)?|native", part)]:
        raise InputError(
            f"The space {space!r} has a part {unknown[0]!r}; write it as in MNI152NLin2009cAsym or "
            "MNI152NLin2009cAsym:res-2."
        )
    resolution = _resolution(others[-1].removeprefix("res-")) if others else ANY
    return name, None if resolution == "native" else resolution


def _resolution(label: str) -> str:
    """ "2" for `res-2`, `res-02` and `res-2mm` alike."""
    return label.lstrip("0").removesuffix("mm")


def _place(item: str | None, order: Sequence[str | None]) -> int:
    return order.index(item) if item in order else len(order)


def _misplaced(version: _Version, root: Path) -> str | None:
    """Why the folders of a file contradict its name; None where they do not."""
    if "sub" not in version.entities:
        return "its name holds no label of a person after sub-; rename it as BIDS asks."
    for folder in version.path.relative_to(root).parts[:-1]:
        entity, _, label = folder.partition("-")
        if entity in ("sub", "ses") and version.entities.get(entity) != label:
            return f"its name contradicts its folder {folder}, so it is not taken; put right the one that is wrong."
    return None


def _study(root: Path) -> str | None:
    """What the study is called; None where no one named it."""
    names = (_name_of_study(_description(folder)) for folder in (root, *_folders_of_raw_data(root)))
    return next(filter(None, names), None)


def _name_of_study(description: Mapping[str, Any]) -> str | None:
    """`Name`, unless it says which pipeline wrote the files, which is the same for all studies, or is a template's."""
    name = description.get("Name")
    if not isinstance(name, str) or not name.strip():
        return None
    made_by = description.get("GeneratedBy") or description.get("PipelineDescription") or []  # the latter before 1.4
    tools = [made_by] if isinstance(made_by, Mapping) else made_by if isinstance(made_by, list) else []
    pipelines = [str(tool["Name"]) for tool in tools if isinstance(tool, Mapping) and tool.get("Name")]
    no_names = tuple(word.casefold() for word in (*pipelines, *NAMES_OF_NO_STUDY))
    return None if name.strip().casefold().startswith(no_names) else name.strip()


def _description(folder: Path) -> dict[str, Any]:
    """Its `dataset_description.json`, empty where there is none that can be read."""
    try:
        description = json.loads((folder / "dataset_description.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return description if isinstance(description, dict) else {}


def _raw_folder(root: Path) -> Path | None:
    """The raw dataset that the derivatives were made from: where another participants.tsv is."""
    return next((folder for folder in _folders_of_raw_data(root) if (folder / "participants.tsv").is_file()), None)


def _folders_of_raw_data(root: Path) -> list[Path]:
    """Where the raw dataset may lie, in this order: what `dataset_description.json` links to as "raw", the two folders
    above, and `rawdata` or `sourcedata/raw` in those."""
    try:
        linked = [root / _description(root)["DatasetLinks"]["raw"].removeprefix("file://")]
    except (KeyError, TypeError, AttributeError):
        linked = []  # most derivatives have no such link, and many a link leads into a container that is gone
    above = root.absolute().parents[:2]
    return [*linked, *above, *(folder / name for folder in above for name in ("rawdata", "sourcedata/raw"))]


def _where_else(root: Path) -> str:
    """A hint where the folder of the derivatives is a deeper one, as in a whole dataset or in fMRIPrep before 21.0."""
    people = [*files_like(root, "*/sub-*"), *files_like(root, "derivatives/*/sub-*")]
    folders = sorted({str(person.parent) for person in people if person.is_dir()})
    return f"There are people in {' and '.join(folders[:3])}; give that folder." if folders else ""
