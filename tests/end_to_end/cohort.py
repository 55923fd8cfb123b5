"""A small cohort as fMRIPrep leaves it, made with numpy and nibabel alone: nothing of the package has a part in it."""

import csv
import json
from pathlib import Path

import nibabel
import numpy as np

AFFINE = np.array([[-2, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1.0]])
"""Of the FSL MNI152 grid of 2 mm, 91 x 109 x 91."""

SHAPE, FRAMES, SECONDS = (91, 109, 91), 5, 2.0
PEOPLE = {f"{number:02}": {"sex": "FM"[number % 2], "age": 20 + 5 * number} for number in range(1, 9)}
SPACE = "space-MNI152NLin2009cAsym_res-2"


def write_cohort(folder: Path) -> dict[str, Path]:
    """Write eight people with a scan each; returns the scans by person. The last one has no mask."""
    folder.mkdir(parents=True)
    about = {"Name": "Frozen", "BIDSVersion": "1.8.0", "DatasetType": "derivative"}
    (folder / "dataset_description.json").write_text(json.dumps(about))
    with (folder / "participants.tsv").open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["participant_id", "sex", "age"])
        table.writerows([f"sub-{subject}", person["sex"], person["age"]] for subject, person in PEOPLE.items())
    scans = {}
    for subject, person in PEOPLE.items():
        stem = folder / f"sub-{subject}" / "func" / f"sub-{subject}_task-rest_{SPACE}"
        scans[subject] = write_scan(
            stem.with_name(f"{stem.name}_desc-preproc_bold.nii.gz"), int(subject), person["sex"], person["age"]
        )
        if subject != list(PEOPLE)[-1]:
            save(brain().astype(np.uint8), stem.with_name(f"{stem.name}_desc-brain_mask.nii.gz"))
    return scans


def brain() -> np.ndarray:
    x, y, z = np.meshgrid(*(np.arange(size) for size in SHAPE), indexing="ij", sparse=True)
    return ((x - 45) / 6) ** 2 + ((y - 58) / 7) ** 2 + ((z - 40) / 6) ** 2 < 1  # small: empty slices cost nothing


def write_scan(path: Path, seed: int, sex: str, age: int, frames: int = FRAMES) -> Path:
    """Write a scan with the JSON beside it."""
    x, y, z = np.meshgrid(*(np.arange(size) for size in SHAPE), indexing="ij", sparse=True)
    anatomy = (600 + 300 * np.sin(x / 5) * np.cos(y / 6) + 100 * np.cos(z / 4)) * brain()
    random = np.random.default_rng(seed)
    slow = np.sin(np.arange(frames) + random.uniform(0, 6))
    # The halves of a woman's brain rise and fall together, those of a man's against each other; more so with age.
    other = slow if sex == "F" else -slow
    course = np.where((x > 45)[..., None], slow, other) * (0.02 + 0.0005 * age)
    values = anatomy[..., None] * (1 + course + 0.02 * random.standard_normal(frames) * (z > 40)[..., None])
    path.parent.mkdir(parents=True, exist_ok=True)
    save(values.astype(np.int16), path)
    sidecar = path.with_name(path.name.replace(".nii.gz", ".json"))
    sidecar.write_text(json.dumps({"RepetitionTime": SECONDS, "TaskName": "rest"}))
    return path


def save(values: np.ndarray, path: Path) -> None:
    """Write an image. Its header says 1 s a frame, so that 2 s can only come from the JSON beside it."""
    image = nibabel.Nifti1Image(values, AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, path)
