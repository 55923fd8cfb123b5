"""Scans of 8 mm voxels with planted connectivity, and a store of tokens that seems made from them."""

from pathlib import Path

import nibabel
import numpy as np
import torch
from preprocessing import PREPROCESSING as RECORD

from tablet_hf.datasets import TokenStoreWriter
from tablet_hf.files import file_identity
from tablet_hf.sources import ScanRecord

SHAPE = (24, 28, 24)
AFFINE = np.array([[-8.0, 0, 0, 92], [0, 8, 0, -110], [0, 0, 8, -74], [0, 0, 0, 1]])
BOXES = [(slice(x, x + 4), slice(y, y + 4), slice(8, 12)) for x in (6, 12) for y in (6, 12, 18)]
"""Voxels of the regions that time series are planted in, inside the MNI152 brain."""

PREPROCESSING = RECORD | {"autoencoder_revision": None, "signal": "percent_change"}


def write_atlas(path):
    """The boxes, numbered 10, 20, ..."""
    labels = np.zeros(SHAPE, dtype=np.int16)
    for number, box in enumerate(BOXES):
        labels[box] = 10 * (number + 1)
    nibabel.save(nibabel.Nifti1Image(labels, AFFINE), path)
    return path


def masked_by_nilearn(labels, image):
    """Means of the regions of a label image in a scan, `(frames, regions)`."""
    from nilearn.maskers import NiftiLabelsMasker

    return NiftiLabelsMasker(labels, standardize=None, resampling_target="data", reports=False).fit_transform(image)


def planted_series(coupling, frames, rng):
    """`(frames, boxes)` of unit variance; the first two boxes correlate by `coupling`, and no others."""
    series = rng.standard_normal((frames, len(BOXES)))
    series[:, 1] = coupling * series[:, 0] + np.sqrt(1 - coupling**2) * series[:, 1]
    return series


def write_scan(path, series, rng, noise=0.005):
    """Voxels of 1000 that rise and fall by 2% with the time series of their box."""
    volumes = np.full((*SHAPE, len(series)), 1000, dtype=np.float32)
    for box, one in zip(BOXES, series.T, strict=True):
        volumes[box] *= 1 + 0.02 * one
    volumes *= 1 + noise * rng.standard_normal(volumes.shape, dtype=np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(volumes, AFFINE)
    image.header.set_zooms((8, 8, 8, 2))
    nibabel.save(image, path)
    return path


def write_cohort(folder, subjects, seed=0, preprocessing=None, mean_tokens=None):
    """Scans below `folder/scans` and a store `folder/store`.

    Args:
        subjects: dicts of `subject`, `coupling` and `phenotypes`, optionally `family`, `site` and `frames`, a list
            with a number for each run.
        mean_tokens: by subject, what is added to all of their tokens.
    """
    folder = Path(folder)
    rng = np.random.default_rng(seed)
    writer = TokenStoreWriter(folder / "store", preprocessing or PREPROCESSING)
    for subject in subjects:
        for number, frames in enumerate(subject.get("frames", [40])):
            name = subject["subject"]
            path = folder / "scans" / f"sub-{name}" / f"sub-{name}_run-{number + 1}_bold.nii"
            write_scan(path, planted_series(subject["coupling"], frames, rng), rng)
            tokens = 0.1 * torch.from_numpy(rng.standard_normal((frames, 27, writer.geometry.token_size)))
            record = ScanRecord(
                name,
                path,
                run=str(number + 1),
                family=subject.get("family"),
                site=subject.get("site"),
                phenotypes=subject["phenotypes"],
            )
            writer.write(record, tokens + (mean_tokens or {}).get(name, 0), 2.0, file_identity(path))
    return writer.finish()
