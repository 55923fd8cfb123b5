"""Functional connectivity: regions of the brain, their time series in a scan, and the correlations between these.

    regions = atlas_regions("atlas.nii.gz")                       # or brain_cells(), to be clustered
    values = region_means(frames, regions.on_grid(shape, affine), len(regions))
    connections = fisher_z(values)

Without an atlas the brain is cut into cubes of 8 mm, which depend on no data, and cubes with similar time series in the
training subjects are merged into regions (`clustered_cells`). So a scan is read once for all folds. Time series are
means over voxels: no confounds are regressed out, nothing is filtered or smoothed.
"""

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tablet_hf.errors import InputError
from tablet_hf.grid import grid_affine, way_to_grid

__all__ = ["Regions", "atlas_regions", "brain_cells", "clustered_cells", "fisher_z", "region_means"]

CELL_VOXELS = 4
"""Voxels of 2 mm along an edge of a cell. 8 mm is a common smoothing kernel; the brain has some 3,700 cells."""

MIN_CELL_VOXELS = CELL_VOXELS**3 // 4

MAX_CLUSTERED_SUBJECTS, MAX_CLUSTERED_FRAMES = 40, 60
"""Training subjects, and frames of each, that a clustering is fitted on."""

MIN_FRAMES = 4
"""Fisher's z has the variance 1 / (frames - 3)."""

MAX_CORRELATION = 1 - 1e-6
"""Two regions with the same time series, as in atlases with overlaps, are not infinitely connected."""


@dataclass(frozen=True, eq=False)
class Regions:
    """Regions of the brain in MNI152 space.

    Attributes:
        labels: `(X, Y, Z)` int32, r + 1 in region r, and 0 outside.
        affine: `(4, 4)`, voxel indices to mm.
        values: value of each region in the image it came from.
    """

    labels: np.ndarray
    affine: np.ndarray
    values: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def checksum(self) -> str:
        """Checksum of labels and affine: files with the same content are the same regions."""
        digest = hashlib.sha256(repr((self.labels.shape, np.round(self.affine, 5).tolist())).encode())
        digest.update(np.ascontiguousarray(self.labels, dtype=np.int32).tobytes())
        return digest.hexdigest()

    @cached_property
    def num_voxels(self) -> np.ndarray:
        """Voxels `(regions,)` of each region on the grid of `labels`."""
        return np.bincount(self.labels.reshape(-1), minlength=len(self) + 1)[1:]

    def on_grid(self, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
        """Resample the labels to another grid by nearest neighbours, `shape` int32.

        Raises:
            InputError: no region is on that grid.
        """
        return _on_grid(self, tuple(shape), tuple(map(tuple, np.asarray(affine).tolist())))


@lru_cache(maxsize=1)  # scans of one study share a grid
def _on_grid(regions: Regions, shape: tuple[int, ...], affine: tuple[tuple[float, ...], ...]) -> np.ndarray:
    if shape == regions.labels.shape and np.allclose(affine, regions.affine):
        return regions.labels
    from nibabel import Nifti1Image
    from nilearn.image import resample_img
    from nilearn.image.resampling import BoundingBoxError

    image, options = Nifti1Image(regions.labels, regions.affine), {"force_resample": True, "copy_header": True}
    try:
        resampled = resample_img(image, np.array(affine), shape, interpolation="nearest", **options)
        labels = np.asarray(resampled.dataobj).astype(np.int32)
    except BoundingBoxError:
        labels = np.zeros(shape, dtype=np.int32)
    if not labels.any():
        grid = "x".join(map(str, shape))
        raise InputError(f"no region is within a scan of {grid} voxels; both must be in MNI152 space.")
    return labels


def atlas_regions(path: str | Path) -> Regions:
    """Read the regions of a NIfTI label image in MNI152 space, on any grid.

    Raises:
        InputError: not an image of at least two labels.
    """
    import nibabel

    try:
        image = nibabel.load(path)
        values = np.asarray(image.dataobj)
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"{path}: not a readable image ({error}); give a NIfTI label image.") from error
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    values = np.nan_to_num(values)
    if values.ndim != 3 or not np.array_equal(values, np.round(values)):
        raise InputError(f"{path}: shape {values.shape}; an atlas is a 3D image of whole numbers, one per region.")
    names = np.unique(values[values != 0])
    if len(names) < 2:
        raise InputError(f"{path}: {len(names)} regions, but connectivity needs two; give another atlas.")
    labels = np.where(values != 0, np.searchsorted(names, values) + 1, 0).astype(np.int32)
    return Regions(labels, np.asarray(image.affine, dtype=float), tuple(int(name) for name in names))


@lru_cache(maxsize=1)
def brain_cells() -> Regions:
    """Cut the MNI152 brain (nilearn's mask) into cubes of 8 mm, on the grid of tokens."""
    from nilearn.datasets import load_mni152_brain_mask

    mask = load_mni152_brain_mask(resolution=2)
    brain = way_to_grid(mask.shape, mask.affine).mask_to_grid(np.asarray(mask.dataobj) > 0)
    cells = np.arange((len(brain) // CELL_VOXELS) ** 3).reshape((len(brain) // CELL_VOXELS,) * 3)
    cells = cells.repeat(CELL_VOXELS, 0).repeat(CELL_VOXELS, 1).repeat(CELL_VOXELS, 2)
    counts = np.bincount(cells[brain], minlength=cells.max() + 1)
    used = np.flatnonzero(counts >= MIN_CELL_VOXELS)
    number = np.zeros(len(counts), dtype=np.int32)
    number[used] = np.arange(1, len(used) + 1)
    return Regions(np.where(brain, number[cells], 0).astype(np.int32), grid_affine(), tuple(int(cell) for cell in used))


def region_means(frames: Iterable[np.ndarray], labels: np.ndarray, num_regions: int) -> np.ndarray:
    """Average each frame over each region.

    Args:
        frames: `(X, Y, Z)` each, one after another; voxels that are not finite count as 0.
        labels: `(X, Y, Z)` int, r + 1 in region r, and 0 outside.
        num_regions: number of regions.

    Returns:
        `(frames, num_regions)` float32, NaN for a region without voxels.
    """
    inside = labels > 0
    numbers = labels[inside]
    counts = np.bincount(numbers, minlength=num_regions + 1)[1:]
    sums = [
        np.bincount(numbers, np.nan_to_num(frame[inside], posinf=0, neginf=0), num_regions + 1)[1:] for frame in frames
    ]
    with np.errstate(invalid="ignore"):
        return (np.array(sums).reshape(-1, num_regions) / counts).astype(np.float32)


def standardised(values: np.ndarray) -> np.ndarray:
    """Standardise time series `(frames, regions)` to mean 0 and standard deviation 1; constant ones become NaN."""
    values = np.asarray(values, dtype=np.float64)
    mean = values.mean(0)
    deviations = values - mean
    spread = np.sqrt((deviations**2).sum(0) / max(1, len(values) - 1))
    is_varying = spread > 1e-6 * np.abs(mean)  # means of a constant can differ in their last digits
    return np.divide(deviations, spread, out=np.full_like(deviations, np.nan), where=is_varying)


def clustered_cells(time_series: Iterable[np.ndarray], num_regions: int) -> np.ndarray:
    """Merge neighbouring cells of `brain_cells` with similar time series: Ward's clustering by nilearn.

    Args:
        time_series: `(frames, cells)` of each training subject, one after another. Of more than 60 frames 60 are used,
            evenly spaced.
        num_regions: number of regions.

    Returns:
        `(cells,)` int, region of each cell, from 0.
    """
    from nibabel import Nifti1Image
    from nilearn.regions import Parcellations

    cells = brain_cells()
    shape = tuple(size // CELL_VOXELS for size in cells.labels.shape)
    indices = np.unravel_index(np.array(cells.values), shape)
    affine = cells.affine @ np.diag([CELL_VOXELS] * 3 + [1.0])
    affine[:3, 3] = (cells.affine @ [*[(CELL_VOXELS - 1) / 2] * 3, 1])[:3]

    def image_of(values: np.ndarray) -> Any:
        volumes = np.zeros((*shape, *values.shape[1:]), dtype=np.float32)
        volumes[indices] = values
        return Nifti1Image(volumes, affine)

    images = []
    for values in time_series:
        frames = evenly_spaced(range(len(values)), MAX_CLUSTERED_FRAMES)
        images.append(image_of(np.nan_to_num(standardised(np.nan_to_num(values[frames]))).T))
    mask = image_of(np.ones(len(cells)))
    options = {"mask": mask, "smoothing_fwhm": None, "standardize": False, "random_state": 0}
    clustering = Parcellations(method="ward", n_parcels=num_regions, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about changes in later versions
        clustering.fit(images)
    return np.unique(np.asarray(clustering.labels_img_.dataobj)[indices], return_inverse=True)[1]


def merged_cells(values: np.ndarray, region_of_cell: np.ndarray, num_voxels: np.ndarray) -> np.ndarray:
    """Average the time series of cells over regions, weighted by their numbers of voxels.

    Args:
        values: `(frames, cells)`, NaN for a cell without voxels.
        region_of_cell: `(cells,)` int, from 0.
        num_voxels: `(cells,)`.

    Returns:
        `(frames, regions)` float64, NaN for a region of which no cell has voxels.
    """
    from scipy.sparse import csr_array

    is_known = np.isfinite(values).all(0)
    weights = np.where(is_known, num_voxels, 0).astype(np.float64)
    cells = np.arange(len(region_of_cell))
    members = csr_array((weights, (region_of_cell, cells)), shape=(region_of_cell.max() + 1, len(cells)))
    with np.errstate(invalid="ignore"):
        return (members @ np.where(is_known, values, 0).T.astype(np.float64)).T / members.sum(1)


def evenly_spaced(items: Sequence[Any], count: int) -> list[Any]:
    """Return at most `count` items, evenly spaced from first to last."""
    indices = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))
    return [items[index] for index in indices]


def fisher_z(values: np.ndarray) -> np.ndarray:
    """Compute the connections of one run: Fisher's z (artanh) of the correlations between regions.

    Args:
        values: time series `(frames, regions)`.

    Returns:
        `(regions * (regions - 1) / 2,)` float64, the lower triangle without its diagonal; NaN where a region is missing
        or constant, and everywhere with less than 4 frames.
    """
    rows, columns = np.tril_indices(values.shape[1], -1)
    if len(values) < MIN_FRAMES:
        return np.full(len(rows), np.nan)
    units = standardised(values)
    correlations = (units.T @ units / (len(units) - 1))[rows, columns]
    return np.arctanh(np.clip(correlations, -MAX_CORRELATION, MAX_CORRELATION))
