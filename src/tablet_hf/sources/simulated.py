"""A simulated cohort in MNI152 space with two groups that differ only in how two networks are coupled.

    write_cohort(Path("cohort"), CohortDesign(num_subjects=32, seed=0))    # BIDS derivatives with participants.tsv

Every subject has the anatomy of the ICBM152 template and, on it, three networks that fluctuate by a few per cent,
spatially smooth fluctuations, and noise. In one group the default mode and the dorsal attention network are in phase,
in the other in anti-phase, as they are in most resting brains (Fox et al. 2005, PNAS 102:9673). The distribution of
every network's time series is the same in both groups, so that mean, variance and autocorrelation of every voxel are
equal in expectation: neither single regions nor the average image distinguish the groups.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tablet_hf.errors import InputError
from tablet_hf.files import atomic_folder, write_json

__all__ = ["GROUPS", "NETWORKS", "CohortDesign", "is_cohort", "simulate_run", "write_cohort"]

GROUPS = ("in-phase", "anti-phase")

NETWORKS = {
    "default mode": ((0, -52, 28), (0, 52, 4), (-46, -66, 34), (46, -66, 34)),
    "dorsal attention": ((-26, -56, 54), (26, -56, 54), (-28, -4, 54), (28, -4, 54)),
    "visual": ((-10, -88, 4), (10, -88, 4)),
}
"""Centres of the nodes in MNI152 mm. The first two networks are coupled, the third is independent in both groups."""

SPACE = "MNI152NLin2009aAsym"
"""The BIDS name of the template that nilearn ships: ICBM152 2009, release a, non-linear, asymmetric."""

DESIGN_FILE = Path("code", "design.json")

REPETITION_TIME = 2.0
COUPLING = 0.8
"""Correlation of the two networks' time series, positive in the first group and negative in the second."""
FREQUENCIES = (0.06, 0.12)
"""Range of the oscillations in Hz."""
NETWORK_AMPLITUDE = 0.02
SMOOTH_NOISE = 0.01
WHITE_NOISE = 0.02
"""Standard deviations over time, relative to the mean intensity; that of a network at the centre of a node."""
NODE_WIDTH = 9.0
NODE_JITTER = 2.0
SMOOTHNESS = 6.0
"""Standard deviations in mm: of the shape of a node, of its position over subjects, and of the filter of the noise."""
FIELD_OF_VIEW = ((-34, 34), (-64, -42), (18, 64))
"""Ranges in mm along x, y and z: a part of the brain has fewer slices to encode."""


@dataclass(frozen=True)
class CohortDesign:
    """What a cohort can differ in; equal designs give equal files. Half of the subjects are in each group."""

    num_subjects: int = 32
    num_frames: int = 16
    seed: int = 0


class Anatomy(NamedTuple):
    """The template: intensity (X, Y, Z) float32 in [0, 1], brain mask (X, Y, Z) bool, affine (4, 4) in mm."""

    intensity: np.ndarray
    brain: np.ndarray
    affine: np.ndarray


def load_anatomy(resolution: int = 2, field_of_view: tuple[tuple[float, float], ...] | None = None) -> Anatomy:
    """Load nilearn's ICBM152 template with voxels of a size in mm, cropped to ranges in mm along x, y and z."""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_template

    template = load_mni152_template(resolution=resolution)
    brain = np.asarray(load_mni152_brain_mask(resolution=resolution).dataobj) > 0
    intensity = np.asarray(template.dataobj, dtype=np.float32) * brain
    intensity, brain, affine = intensity / intensity.max(), brain & (intensity > 0), template.affine.copy()
    if field_of_view is not None:
        # The axes of the template are parallel to those of MNI152 space.
        ends = np.rint((np.array(field_of_view).T - affine[:3, 3]) / np.diag(affine)[:3]).astype(int)
        box = tuple(slice(*sorted(axis)) for axis in ends.T)
        affine[:3, 3] += np.diag(affine)[:3] * [part.start for part in box]
        intensity, brain = intensity[box], brain[box]
    return Anatomy(intensity, brain, affine)


def network_time_series(num_frames: int, label: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the time series (num_frames, networks) of one subject of the group with this index.

    Each is a cosine of random frequency and phase, with mean 0 and variance 1 in every frame. The second is
    `+-COUPLING` times the first plus an independent oscillation: its distribution is the same under either sign.
    """
    seconds = np.arange(num_frames) * REPETITION_TIME

    def oscillation() -> np.ndarray:
        frequency, phase = rng.uniform(*FREQUENCIES), rng.uniform(0, 2 * np.pi)
        return np.sqrt(2) * np.cos(2 * np.pi * frequency * seconds + phase)

    first, independent, third = oscillation(), oscillation(), oscillation()
    second = (1, -1)[label] * COUPLING * first + np.sqrt(1 - COUPLING**2) * independent
    return np.stack([first, second, third], axis=1)


def network_maps(anatomy: Anatomy, rng: np.random.Generator | None = None) -> np.ndarray:
    """Return the weight of each voxel in each network: 1 at the centre of a node, falling off as a Gaussian.

    A voxel belongs to one network only: the variance of a voxel in two coupled networks would depend on the group.

    Args:
        rng: Draws the positions of this subject's nodes (default: all at the centres in `NETWORKS`).

    Returns:
        (networks, X, Y, Z) float32 in [0, 1], 0 outside the brain.
    """
    from nibabel.affines import apply_affine

    positions = apply_affine(anatomy.affine, np.argwhere(anatomy.brain)).astype(np.float32)
    weights = []
    for centres in NETWORKS.values():
        shifts = 0 if rng is None else rng.normal(0, NODE_JITTER, (len(centres), 3))
        nodes = (np.array(centres, np.float32) + shifts).astype(np.float32)
        nearest = np.min([np.square(positions - node).sum(axis=1) for node in nodes], axis=0)
        weights.append(np.exp(-nearest / (2 * NODE_WIDTH**2)))
    weights = np.array(weights, dtype=np.float32)
    maps = np.zeros((len(NETWORKS), *anatomy.brain.shape), dtype=np.float32)
    is_strongest = weights.argmax(axis=0) == np.arange(len(NETWORKS))[:, None]
    maps[:, anatomy.brain] = weights * is_strongest
    return maps


def simulate_run(design: CohortDesign, subject: int, label: int, anatomy: Anatomy) -> np.ndarray:
    """Return the intensities (X, Y, Z, num_frames) of one subject in float32, 0 outside the brain."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng([design.seed, subject])
    time_series = network_time_series(design.num_frames, label, rng)
    maps = network_maps(anatomy, rng)[:, anatomy.brain]
    mean = np.float32(rng.normal(8000, 400)) * anatomy.intensity[anatomy.brain]
    sigma = SMOOTHNESS / abs(anatomy.affine[0, 0])
    run = np.zeros((*anatomy.brain.shape, design.num_frames), dtype=np.float32)
    for frame, levels in zip(np.moveaxis(run, -1, 0), time_series, strict=True):
        change = (NETWORK_AMPLITUDE * levels).astype(np.float32) @ maps
        smooth = gaussian_filter(rng.standard_normal(anatomy.brain.shape, dtype=np.float32), sigma, truncate=3)
        change += (smooth * np.float32(SMOOTH_NOISE / smooth.std()))[anatomy.brain]
        change += WHITE_NOISE * rng.standard_normal(change.shape, dtype=np.float32)
        frame[anatomy.brain] = np.maximum(mean * (1 + change), 0)
    return run


def write_cohort(folder: Path, design: CohortDesign) -> None:
    """Write a cohort as BIDS derivatives: a scan and a mask per subject, and `group` in participants.tsv.

    Raises:
        InputError: If the folder exists.
    """
    if folder.exists():
        raise InputError(f"{folder}: this folder exists already; choose another --out.")
    anatomy = load_anatomy(2, FIELD_OF_VIEW)
    # Subjects have the seeds (seed, number), the groups one of their own.
    labels = np.random.default_rng([design.seed, 2**32 - 1]).permutation(np.arange(design.num_subjects) % 2).tolist()
    names = [f"sub-{number + 1:02d}" for number in range(design.num_subjects)]
    with atomic_folder(folder) as unfinished:

        def write_subject(number: int) -> None:
            stem = unfinished / names[number] / "func" / f"{names[number]}_task-rest_space-{SPACE}_res-2_desc-"
            stem.parent.mkdir(parents=True)
            run = np.rint(simulate_run(design, number, labels[number], anatomy)).astype(np.int16)
            _save_image(Path(f"{stem}preproc_bold.nii.gz"), run, anatomy.affine, REPETITION_TIME)
            _save_image(Path(f"{stem}brain_mask.nii.gz"), anatomy.brain.astype(np.uint8), anatomy.affine)
            sidecar = {"RepetitionTime": REPETITION_TIME, "TaskName": "rest", "SkullStripped": True}
            write_json(Path(f"{stem}preproc_bold.json"), sidecar, indent=2)

        # Random numbers, filters and compression release the interpreter's lock.
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            list(pool.map(write_subject, range(design.num_subjects)))
        rows = [f"{name}\t{GROUPS[label]}\n" for name, label in zip(names, labels, strict=True)]
        (unfinished / "participants.tsv").write_text("".join(["participant_id\tgroup\n", *rows]))
        description = {"Name": "Simulated cohort of the TABLeT demo", "BIDSVersion": "1.10.0", "License": "CC0"}
        description |= {"DatasetType": "derivative", "GeneratedBy": [{"Name": "tablet-hf demo"}]}
        write_json(unfinished / "dataset_description.json", description, indent=2)
        (unfinished / DESIGN_FILE).parent.mkdir()
        write_json(unfinished / DESIGN_FILE, asdict(design), indent=2)


def is_cohort(folder: Path, design: CohortDesign) -> bool:
    """Return whether a folder holds the complete cohort of a design."""
    try:
        recorded = json.loads((folder / DESIGN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return recorded == asdict(design)


def _save_image(path: Path, data: np.ndarray, affine: np.ndarray, repetition_time: float = 0.0) -> None:
    from nibabel import Nifti1Image

    image = Nifti1Image(data, affine)
    image.set_sform(affine, code="mni")
    image.set_qform(affine, code="mni")
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((*image.header.get_zooms()[:3], repetition_time)[: data.ndim])
    image.to_filename(path)
