"""HCP Young Adult as ConnectomeDB and its mirrors lay it out: `SUBJECT/MNINonLinear/Results/rfMRI_REST1_LR/`.

The four resting runs of 3 T: two days, REST1 and REST2, each with two phase-encoding directions, LR and RL (Van Essen
et al. 2013, NeuroImage 80:62; S1200 reference manual).
"""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tablet_hf.errors import InputError
from tablet_hf.sources.cohort import Layout, beside, check_labels, files_like, gather, mixture
from tablet_hf.sources.records import Cohort, Problem, ScanRecord
from tablet_hf.sources.tables import People, join, number_label

__all__ = ["CLEANED", "UNCLEANED", "find"]

CLEANED = ("rfMRI_{run}_hp2000_clean.nii.gz", "rfMRI_{run}_hp2000_clean_rclean_tclean.nii.gz")
"""File names of cleaned runs, the first one found is taken: ICA-FIX (S1200), and what a later release has."""

UNCLEANED = "rfMRI_{run}.nii.gz"
"""Pass this as `pattern` for the minimally preprocessed runs."""

LAYOUT = Layout("HCP Young Adult", f"100307/MNINonLinear/Results/rfMRI_REST1_LR/{CLEANED[0].format(run='REST1_LR')}")

REPETITION_TIME = 0.72
"""Seconds, all 3 T runs (S1200 reference manual)."""

MASK = "brainmask_fs.2.nii.gz"


def find(
    root: Path,
    *,
    phenotypes: Sequence[Path] | None = None,
    sessions: Sequence[str] | None = None,
    pattern: str | None = None,
    dataset: str = "HCP-YA",
) -> Cohort:
    """Find the resting runs of HCP-YA.

    Args:
        root: the folder that holds the six-digit folders of subjects.
        phenotypes: the unrestricted and the restricted CSV of ConnectomeDB, either or both, in any order.
        sessions: "REST1" or "REST2"; None for both.
        pattern: name of the file of a run, with `{run}` where REST1_LR stands; None takes the cleaned one (`CLEANED`),
            `UNCLEANED` the minimally preprocessed one.
        dataset: another name, say for the retest data: its subjects and files are called like those of the first time.

    Returns:
        Records with session REST1 or REST2, run LR or RL, and the mask `brainmask_fs.2.nii.gz` next to the scan. The
        columns of the tables are the phenotypes, and `sex` (Gender) and `age` (Age_in_Yrs, restricted) by the names
        that all sources use; Family_ID becomes the family. The cohort is restricted.

    Raises:
        InputError: no such folder, no run in it, a pattern without `{run}`, or a table that cannot be read.
    """
    root = LAYOUT.folder(root)
    if pattern is not None and "{run}" not in pattern:
        raise InputError(f"The pattern {pattern!r} lacks {{run}}; give a file name such as {UNCLEANED}.")
    names = (pattern,) if pattern else CLEANED
    records, problems, kinds = [], [], []
    for folder in files_like(root, "*/MNINonLinear/Results/rfMRI_REST*"):
        subject, run = folder.relative_to(root).parts[0], re.fullmatch(r"rfMRI_(REST[12])_(LR|RL)", folder.name)
        if not run or not re.fullmatch("[0-9]{6}", subject):
            continue  # other scanners and other studies have such folders too, with another repetition time
        scans = {name: folder / name.replace("{run}", f"{run[1]}_{run[2]}") for name in names}
        name = next((name for name in names if os.path.lexists(scans[name])), None)
        if name is None:
            problems.append(Problem(str(folder), f"it holds no {scans[names[0]].name}; fetch that file."))
            continue
        kinds.append(name)
        record = ScanRecord(
            subject,
            scans[name],
            beside(scans[name], MASK),
            REPETITION_TIME,
            session=run[1],
            task="rest",
            run=run[2],
            dataset=dataset,
        )
        records.append(record)
    if not records:
        raise LAYOUT.nothing(root, str(problems[0]) if problems else "")
    there = {record.session for record in records}
    wanted, absent = check_labels(root, "ses", sessions or there, there)
    records = [record for record in records if record.session in wanted]
    people = People()
    for table in phenotypes or ():
        people.add(Path(table), ("Subject",), number_label())
    if not any(column.casefold() == "family_id" for column in people.columns):
        why = "no table gives Family_ID, so splits cannot keep families together; name the restricted CSV."
        problems.append(Problem(str(root), why, is_note=True))
    records, unlabelled = join(records, people)
    records = [_with_common_names(record) for record in records]
    problems += [*absent, *mixture(root, kinds, "pattern= (command line: --pattern)"), *people.problems, *unlabelled]
    return gather(records, problems, is_restricted=True)


def _with_common_names(record: ScanRecord) -> ScanRecord:
    own = record.phenotypes
    common = {"sex": own.get("Gender"), "age": own.get("Age_in_Yrs")}
    return replace(record, phenotypes={**common, **own} if own else {})
