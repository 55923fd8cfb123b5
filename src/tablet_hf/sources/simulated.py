"""A small simulated cohort in MNI152 space whose two groups differ only in how two networks move together.

    design = CohortDesign(num_subjects=54, seed=0)
    write_cohort(Path("cohort"), design)            # a BIDS derivatives folder of 4D NIfTI files
    subjects = read_cohort(Path("cohort"))            # who is in which group, and where the scan is

Every subject has the anatomy of nilearn's ICBM152 template and, on it, three networks whose nodes rise and fall by a
few per cent, spatially smooth fluctuations, and noise. In the one group the default mode network and the dorsal
attention network move in phase, in the other in anti-phase, as they do in most resting brains (Fox et al. 2005, PNAS
102:9673). Their time series come from the same law otherwise, so that mean, variance and autocorrelation of every
voxel are equal in both groups in expectation. Neither single regions nor the average image tell who is who.
"""

import csv
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from tablet_hf.errors import InputError
from tablet_hf.files import atomic_folder
from tablet_hf.version import __version__

__all__ = [
    "GROUPS",
    "NETWORKS",
    "Anatomy",
    "CohortDesign",
    "Person",
    "is_cohort",
    "load_anatomy",
    "network_courses",
    "network_maps",
    "read_cohort",
    "simulate_run",
    "write_cohort",
]

GROUPS = ("in-phase", "anti-phase")
"""Names of the groups; the place of a name is its label, so the second one is the positive class."""

NETWORKS = {
    "default mode": ((0, -52, 28), (0, 52, 4), (-46, -66, 34), (46, -66, 34)),
    "dorsal attention": ((-26, -56, 54), (26, -56, 54), (-28, -4, 54), (28, -4, 54)),
    "visual": ((-10, -88, 4), (10, -88, 4)),
}
"""Centres of the nodes in MNI152 mm. The first two networks are coupled; the third goes its own way in both groups."""

SPACE = "MNI152NLin2009aAsym"
"""The BIDS name of the template that nilearn carries: ICBM152 2009, release a, non-linear, asymmetric."""

TASK = "rest"
_DESIGN_FILE = Path("code", "design.json")  # BIDS leaves the folder code/ to whoever made the dataset
_GENERATED_BY = "tablet-hf demo"
"""What the design of a cohort says made it. Only a folder that says so is ever replaced."""


@dataclass(frozen=True)
class CohortDesign:
    """Everything that decides what a cohort looks like; two equal designs give equal files.

    Attributes:
        num_subjects: half of them (rounded down) in the second group.
        num_frames: frames of each run.
        repetition_time: seconds between frames.
        coupling: correlation of the two networks' time series, positive in the first group and negative in the second.
        frequencies: range in Hz from which each oscillation draws its own.
        network_amplitude: standard deviation over time at the centre of a node, as a fraction of the mean intensity.
        node_width: standard deviation in mm of the Gaussian shape of a node.
        node_jitter: standard deviation in mm by which a subject's nodes are next to those of others.
        smooth_noise: standard deviation of smooth fluctuations (`smoothness` mm), as a fraction of the mean intensity.
        white_noise: standard deviation of noise of single voxels, as a fraction of the mean intensity.
        field_of_view: range in mm along x, y and z that is scanned; None is the whole brain. Of a part of the brain
            fewer slices have anything to encode.
        seed: of all that is drawn.
    """

    num_subjects: int = 32
    num_frames: int = 16
    repetition_time: float = 2.0
    coupling: float = 0.8
    frequencies: tuple[float, float] = (0.06, 0.12)
    network_amplitude: float = 0.02
    node_width: float = 9.0
    node_jitter: float = 2.0
    smooth_noise: float = 0.01
    smoothness: float = 6.0
    white_noise: float = 0.02
    field_of_view: tuple[tuple[float, float], ...] | None = ((-34, 34), (-64, -42), (18, 64))
    seed: int = 0


@dataclass(frozen=True)
class Anatomy:
    """What all subjects share: intensities `(X, Y, Z)` float32 in [0, 1], the brain `(X, Y, Z)` bool, affine to mm."""

    intensity: np.ndarray
    brain: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True)
class Person:
    """One participant: BIDS name (`sub-01`), label (place in `GROUPS`) and the path of the BOLD run."""

    name: str
    label: int
    scan: Path


@lru_cache(maxsize=2)
def load_anatomy(resolution: int = 2, field_of_view: tuple[tuple[float, float], ...] | None = None) -> Anatomy:
    """The ICBM152 2009 template and its brain mask as nilearn ships them, at `resolution` mm; no network is used.

    Args:
        field_of_view: range in mm along x, y and z to which both are cropped.
    """
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_template

    template = load_mni152_template(resolution=resolution)
    brain = np.asarray(load_mni152_brain_mask(resolution=resolution).dataobj) > 0
    intensity = np.asarray(template.dataobj, dtype=np.float32) * brain
    intensity, brain, affine = intensity / intensity.max(), brain & (intensity > 0), template.affine.copy()
    if field_of_view is not None:
        # Axes of the template run along those of MNI152 space.
        ends = np.rint((np.array(field_of_view).T - affine[:3, 3]) / np.diag(affine)[:3]).astype(int)
        box = tuple(slice(*sorted(axis)) for axis in ends.T)
        affine[:3, 3] += np.diag(affine)[:3] * [part.start for part in box]
        intensity, brain = intensity[box], brain[box]
    return Anatomy(intensity, brain, affine)


# --- the dynamics


def network_courses(design: CohortDesign, label: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the time series of the networks of one subject.

    Each is an oscillation of random phase and frequency, of mean 0 and variance 1 at every moment. The second is
    `+-coupling` times the first plus an oscillation of its own: its law is the same under either sign.

    Returns:
        `(num_frames, len(NETWORKS))` float64.
    """
    first, own, third = (_oscillation(design, rng) for _ in range(3))
    sign = (1, -1)[label]
    second = sign * design.coupling * first + np.sqrt(1 - design.coupling**2) * own
    return np.stack([first, second, third], axis=1)


def _oscillation(design: CohortDesign, rng: np.random.Generator) -> np.ndarray:
    """A cosine `(num_frames,)` of random frequency and phase with variance 1 over all phases."""
    frequency, phase = rng.uniform(*design.frequencies), rng.uniform(0, 2 * np.pi)
    seconds = np.arange(design.num_frames) * design.repetition_time
    return np.sqrt(2) * np.cos(2 * np.pi * frequency * seconds + phase)


def network_maps(anatomy: Anatomy, design: CohortDesign, rng: np.random.Generator | None = None) -> np.ndarray:
    """How much each voxel takes part in each network: 1 at the centre of a node, falling off as a Gaussian.

    A voxel follows the network it takes most part in and no other: in a voxel of two coupled networks the variance
    would be larger where they go together than where they go apart.

    Args:
        rng: draws how far this subject's nodes are next to the usual places; None leaves them there.

    Returns:
        `(len(NETWORKS), X, Y, Z)` float32 in [0, 1], 0 outside the brain.
    """
    from nibabel.affines import apply_affine

    maps = np.zeros((len(NETWORKS), *anatomy.brain.shape), dtype=np.float32)
    voxels = np.stack(np.nonzero(anatomy.brain), axis=1)
    places = apply_affine(anatomy.affine, voxels).astype(np.float32)
    for network, centres in zip(maps, NETWORKS.values(), strict=True):
        for centre in centres:
            moved = np.asarray(centre, dtype=np.float32)
            if rng is not None:
                moved = moved + rng.normal(0, design.node_jitter, 3).astype(np.float32)
            squared_mm = np.square(places - moved).sum(axis=1)
            network[anatomy.brain] = np.maximum(
                network[anatomy.brain], np.exp(-squared_mm / (2 * design.node_width**2))
            )
    strongest = maps.argmax(axis=0)
    for number, network in enumerate(maps):
        network[strongest != number] = 0
    return maps


def simulate_run(design: CohortDesign, person: int, label: int, anatomy: Anatomy) -> np.ndarray:
    """Simulate the run of one subject, the same for the same design and number.

    Returns:
        `(X, Y, Z, num_frames)` float32 intensities, 0 outside the brain.
    """
    rng = np.random.default_rng([design.seed, person])
    courses = network_courses(design, label, rng)
    maps = network_maps(anatomy, design, rng)[:, anatomy.brain]
    gain = rng.normal(8000, 400)  # scanners know no units
    run = np.zeros((*anatomy.brain.shape, design.num_frames), dtype=np.float32)
    still = np.float32(gain) * anatomy.intensity[anatomy.brain]
    for frame, levels in zip(np.moveaxis(run, -1, 0), courses, strict=True):
        change = (design.network_amplitude * levels).astype(np.float32) @ maps
        change += _smooth_noise(design, anatomy, rng)[anatomy.brain]
        change += design.white_noise * rng.standard_normal(change.shape, dtype=np.float32)
        frame[anatomy.brain] = np.maximum(still * (1 + change), 0)
    return run


def _smooth_noise(design: CohortDesign, anatomy: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """White noise smoothed to `smoothness` mm, `(X, Y, Z)` float32 with standard deviation `smooth_noise`."""
    from scipy.ndimage import gaussian_filter

    voxel_mm = abs(anatomy.affine[0, 0])
    noise = gaussian_filter(
        rng.standard_normal(anatomy.brain.shape, dtype=np.float32), design.smoothness / voxel_mm, truncate=3
    )
    return noise * np.float32(design.smooth_noise / noise.std())


# --- the folder


def write_cohort(
    folder: Path, design: CohortDesign, resolution: int = 2, on_progress: Callable[[int, int], None] | None = None
) -> list[Person]:
    """Write the cohort as a BIDS derivatives dataset that appears under its name only when it is whole.

    Args:
        folder: must not exist, or hold a cohort that an earlier call made, which is replaced.
        design: what to write.
        resolution: voxel size in mm.
        on_progress: is reported subjects done and subjects in all.

    Raises:
        InputError: `folder` holds something else, which is left as it is.
    """
    if folder.exists() and not is_cohort(folder):
        raise InputError(f"{folder}: this folder is in the way and holds no cohort of the demo; choose another --out.")
    anatomy = load_anatomy(resolution, design.field_of_view)

    with atomic_folder(folder) as unfinished:

        def write_person(person: int, label: int) -> Person:
            name = f"sub-{person + 1:02d}"
            run = simulate_run(design, person, label, anatomy)
            return Person(name, label, _write_person(unfinished, name, run, anatomy, design))

        people = []
        # Random numbers, filters and compression all let other threads work meanwhile.
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            for person in pool.map(write_person, range(design.num_subjects), _labels(design)):
                people.append(person)
                if on_progress is not None:
                    on_progress(len(people), design.num_subjects)
        _write_description(unfinished, people, design, resolution)
    return read_cohort(folder)


def is_cohort(folder: Path, design: CohortDesign | None = None, resolution: int = 2) -> bool:
    """Whether `folder` holds a whole cohort of this demo and, if a design is given, of that design."""
    try:
        recorded = json.loads((folder / _DESIGN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if design is not None:
        return recorded == _design_record(design, resolution)
    # Any dataset may hold a file of this name: the demo's own has just these keys, and says who wrote it.
    return (
        isinstance(recorded, dict)
        and recorded.keys() == _design_record(CohortDesign(), resolution).keys()
        and recorded["GeneratedBy"] == _GENERATED_BY
    )


def read_cohort(folder: Path) -> list[Person]:
    """The subjects of a cohort in the order of participants.tsv."""
    with (folder / "participants.tsv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    return [
        Person(row["participant_id"], GROUPS.index(row["group"]), _func(folder, row["participant_id"], "preproc_bold"))
        for row in rows
    ]


def _labels(design: CohortDesign) -> list[int]:
    """Groups of equal size in random order, so that the number of a subject tells nothing."""
    labels = np.arange(design.num_subjects) % 2
    # A stream of its own: the seeds of subjects are (seed, number) with numbers from 0 on.
    return np.random.default_rng([design.seed, 2**32 - 1]).permutation(labels).tolist()


def _func(folder: Path, name: str, end: str, ending: str = ".nii.gz") -> Path:
    return folder / name / "func" / f"{name}_task-{TASK}_space-{SPACE}_res-2_desc-{end}{ending}"


def _write_person(folder: Path, name: str, run: np.ndarray, anatomy: Anatomy, design: CohortDesign) -> Path:
    scan = _func(folder, name, "preproc_bold")
    scan.parent.mkdir(parents=True)
    _save_image(scan, np.rint(run).astype(np.int16), anatomy.affine, design.repetition_time)
    _save_image(_func(folder, name, "brain_mask"), anatomy.brain.astype(np.uint8), anatomy.affine)
    _write_json(
        _func(folder, name, "preproc_bold", ".json"),
        {"RepetitionTime": design.repetition_time, "TaskName": TASK, "SkullStripped": True},
    )
    _write_json(_func(folder, name, "brain_mask", ".json"), {"Type": "Brain"})
    return scan


def _save_image(path: Path, data: np.ndarray, affine: np.ndarray, repetition_time: float | None = None) -> None:
    import nibabel
    from nibabel.openers import Opener

    image = nibabel.Nifti1Image(data, affine)
    image.set_sform(affine, code="mni")
    image.set_qform(affine, code="mni")
    image.header.set_xyzt_units("mm", "sec")
    if repetition_time is not None:
        image.header.set_zooms((*image.header.get_zooms()[:3], repetition_time))
    # Noise does not compress: the lowest level makes files as small as any, in a third of the time.
    with Opener(path, "wb", compresslevel=1) as stream:
        image.to_file_map({"image": nibabel.FileHolder(fileobj=stream)})


def _write_description(folder: Path, people: list[Person], design: CohortDesign, resolution: int) -> None:
    with (folder / "participants.tsv").open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table, delimiter="\t", lineterminator="\n")
        writer.writerow(["participant_id", "group"])
        writer.writerows([person.name, GROUPS[person.label]] for person in people)
    _write_json(
        folder / "participants.json",
        {
            "group": {
                "Description": "How the default mode and the dorsal attention network move together",
                "Levels": {GROUPS[0]: "up and down together", GROUPS[1]: "one up while the other is down"},
            }
        },
    )
    _write_json(
        folder / "dataset_description.json",
        {
            "Name": "Simulated cohort of the TABLeT demo (nobody was scanned)",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "License": "CC0",
            "GeneratedBy": [{"Name": _GENERATED_BY, "Version": __version__}],
        },
    )
    (folder / _DESIGN_FILE).parent.mkdir()
    _write_json(folder / _DESIGN_FILE, _design_record(design, resolution))


def _design_record(design: CohortDesign, resolution: int) -> dict:
    """The design as it reads back from JSON, where tuples are lists."""
    record = {"GeneratedBy": _GENERATED_BY, "version": __version__, "resolution": resolution, **asdict(design)}
    return json.loads(json.dumps(record))


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
