"""HCP Young Adult as ConnectomeDB lays it out: `SUBJECT/MNINonLinear/Results/rfMRI_REST1_LR/`.

The four resting runs of 3 T: two days, REST1 and REST2, with the phase-encoding directions LR and RL (Van Essen et al.
2013, NeuroImage 80:62; S1200 reference manual).
"""

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from tablet_hf.errors import InputError
from tablet_hf.sources.cohort import find_files, make_cohort, not_found, select_labels, sibling, warn_if_mixed
from tablet_hf.sources.records import Cohort, Problem, ScanRecord
from tablet_hf.sources.tables import FAMILY_COLUMNS, PhenotypeTables, add_sex_and_age, find_column, number_label

__all__ = ["find"]

CLEANED = ("rfMRI_{run}_hp2000_clean.nii.gz", "rfMRI_{run}_hp2000_clean_rclean_tclean.nii.gz")
"""Cleaned runs by ICA-FIX, of S1200 and of a later release; the first one that exists is taken."""

EXAMPLE = f"100307/MNINonLinear/Results/rfMRI_REST1_LR/{CLEANED[0].format(run='REST1_LR')}"

REPETITION_TIME = 0.72
"""Seconds, all 3 T runs (S1200 reference manual)."""


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
        root: Folder with the six-digit folders of subjects.
        phenotypes: Unrestricted and restricted CSV of ConnectomeDB, either or both.
        sessions: "REST1" or "REST2" (default: both).
        pattern: File name of a run, with `{run}` for REST1_LR (default: the cleaned run; `rfMRI_{run}.nii.gz` is
            minimally preprocessed).
        dataset: Another name for the retest data, which have the same subjects and file names.

    Returns:
        Restricted cohort with session REST1 or REST2, run LR or RL and the mask `brainmask_fs.2.nii.gz`. All columns
        are phenotypes, with `sex` (Gender) and `age` (Age_in_Yrs) added; Family_ID is the family.

    Raises:
        InputError: If there is no run, or a table cannot be read.
    """
    if pattern is not None and "{run}" not in pattern:
        raise InputError(f"The pattern {pattern!r} lacks {{run}}; give a file name such as rfMRI_{{run}}.nii.gz.")
    names = (pattern,) if pattern else CLEANED
    records, problems, kinds = [], [], []
    for folder in find_files(root, "*/MNINonLinear/Results/rfMRI_REST*"):
        subject, run = folder.relative_to(root).parts[0], re.fullmatch(r"rfMRI_(REST[12])_(LR|RL)", folder.name)
        if not run or not re.fullmatch("[0-9]{6}", subject):
            continue  # 7 T runs and other HCP studies have such folders too, with another repetition time
        files = {name: folder / name.replace("{run}", f"{run[1]}_{run[2]}") for name in names}
        kind = next((name for name, file in files.items() if os.path.lexists(file)), None)
        if kind is None:
            problems.append(Problem(str(folder), f"it has no {files[names[0]].name}; download that file."))
            continue
        kinds.append(kind)
        labels = {"session": run[1], "task": "rest", "run": run[2], "dataset": dataset}
        mask = sibling(files[kind], "brainmask_fs.2.nii.gz")
        records.append(ScanRecord(subject, files[kind], mask, REPETITION_TIME, **labels))
    if not records:
        raise not_found(root, "HCP Young Adult", EXAMPLE, str(problems[0]) if problems else "")
    warn_if_mixed(root, kinds, "--pattern")
    records, absent = select_labels(root, records, "session", sessions)
    tables = PhenotypeTables(phenotypes, ("Subject",), number_label)
    if find_column(tables.columns, FAMILY_COLUMNS) is None:
        warnings.warn("No table has Family_ID, so splits can separate families; add the restricted CSV.", stacklevel=2)
    records = add_sex_and_age(tables.join(records), ("Gender",), ("Age_in_Yrs",))
    return make_cohort(records, [*problems, *absent, *tables.problems], is_restricted=True)
