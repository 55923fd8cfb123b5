"""Functional connectivity: regions of the brain, their time series in a scan, and how these go together.

    regions = atlas_regions("atlas.nii.gz")                       # or brain_cells(), to be clustered
    time series = region_means(frames, regions.on_grid(shape, affine), len(regions))
    connections = fisher_z(time series)

Without an atlas the brain is cut into cubes of 8 mm, which look at no data, and cubes that move together in the
subjects who are trained on become regions (`clustered_cells`). So a scan is read once, whatever the fold, and only the
merging of its cubes differs from fold to fold. Courses are plain means over voxels: nothing is regressed out, filtered
or smoothed.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tablet_hf.brain import zero_where_not_finite
from tablet_hf.errors import InputError
from tablet_hf.grid import grid_affine, way_to_grid
from tablet_hf.scans import open_source

__all__ = [
    "Regions",
    "atlas_regions",
    "brain_cells",
    "clustered_cells",
    "connectivity_features",
    "evenly_spaced",
    "fisher_z",
    "merged_cells",
    "power_regions",
    "region_means",
    "region_time_series",
    "spheres_to_labels",
]

POWER_RADIUS_MM = 5.0
"""Radius of the 264 spheres of Power et al. 2011 (Neuron 72:665), 10 mm wide."""

CELL_VOXELS = 4
"""Voxels of 2 mm along an edge of a cell. 8 mm is as wide as fMRI is commonly smoothed; the brain has some 3,700."""

FEWEST_CELL_VOXELS = CELL_VOXELS**3 // 4
"""Cells with less brain than a quarter of them are left out."""

CLUSTERED_PEOPLE, CLUSTERED_FRAMES = 40, 60
"""The most subjects, and frames of each, that a clustering is fitted on: enough for regions, and quick."""

MOST_GRIDS = 8
"""Grids on which labels are kept. Scans of one study share one; where each scan has its own none is worth keeping."""

FEWEST_FRAMES = 4
"""A Fisher-z value has the variance 1 / (frames - 3), so of fewer frames nothing is known."""

LARGEST_CORRELATION = 1 - 1e-6
"""Two regions with the same course, as atlases with overlaps have, are not infinitely connected."""


# --- regions


@dataclass(frozen=True, eq=False)
class Regions:
    """Regions of the brain in MNI152 space.

    Attributes:
        labels: `(X, Y, Z)` int32, region r (from 0) has the number r + 1, and 0 is no region.
        affine: `(4, 4)`, voxel indices to mm.
        values: what each region is called in the image that it came from.
    """

    labels: np.ndarray
    affine: np.ndarray
    values: tuple[int, ...]
    _on_grids: dict[tuple, np.ndarray] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def fingerprint(self) -> str:
        """Of the labels and where they lie: files with the same content are the same regions."""
        digest = hashlib.sha256(repr((self.labels.shape, np.round(self.affine, 5).tolist())).encode())
        digest.update(np.ascontiguousarray(self.labels, dtype=np.int32).tobytes())
        return digest.hexdigest()

    @cached_property
    def num_voxels(self) -> np.ndarray:
        """Voxels `(regions,)` of each region on the grid that they are drawn on."""
        return np.bincount(self.labels.reshape(-1), minlength=len(self) + 1)[1:]

    def on_grid(self, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
        """The labels at the nearest voxels of another grid, `shape` int32; a region between them is lost.

        Raises:
            InputError: no region is on that grid.
        """
        key = (tuple(shape), np.asarray(affine).tobytes())
        labels = self._on_grids.get(key)
        if labels is None:
            labels = self._resampled(shape, affine)
            if len(self._on_grids) >= MOST_GRIDS:
                self._on_grids.clear()
            self._on_grids[key] = labels
        return labels

    def _resampled(self, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
        if tuple(shape) == self.labels.shape and np.allclose(affine, self.affine):
            return self.labels
        from nibabel import Nifti1Image
        from nilearn.image import resample_img
        from nilearn.image.resampling import BoundingBoxError

        try:
            resampled = resample_img(
                Nifti1Image(self.labels, self.affine),
                target_affine=affine,
                target_shape=shape,
                interpolation="nearest",
                force_resample=True,
                copy_header=True,
            )
            labels = np.asarray(resampled.dataobj).astype(np.int32)
        except BoundingBoxError:
            labels = np.zeros(shape, dtype=np.int32)
        if not labels.any():
            raise InputError(
                f"no region lies within a scan of {'x'.join(map(str, shape))} voxels; regions and scans must both be "
                "in MNI152 space."
            )
        return labels


def atlas_regions(path: str | Path) -> Regions:
    """The regions of a NIfTI label image in MNI152 space, on any grid; 0 is no region.

    Raises:
        InputError: no such image, values that are no labels, or less than two regions.
    """
    import nibabel

    path = Path(path)
    try:
        image = nibabel.load(path)
        values = np.asarray(image.dataobj)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file; give a NIfTI label image as atlas.") from error
    except Exception as error:  # whatever a reader stumbles over is the file's fault
        raise InputError(f"{path}: it cannot be read as an image ({error}); give a NIfTI label image.") from error
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise InputError(
            f"{path}: its shape is {values.shape}, but regions are numbers in a 3D image; of a map for each region "
            "make one image of labels first."
        )
    values = np.nan_to_num(values)
    if not np.array_equal(values, np.round(values)):
        raise InputError(f"{path}: its values are no whole numbers, so it is no label image; give one of labels.")
    names = np.unique(values[values != 0])
    if len(names) < 2:
        raise InputError(f"{path}: it has {len(names)} regions, and connections need two; give another atlas.")
    labels = np.where(values != 0, np.searchsorted(names, values) + 1, 0).astype(np.int32)
    return Regions(labels, np.asarray(image.affine, dtype=float), tuple(int(name) for name in names))


@lru_cache(maxsize=1)
def brain_cells() -> Regions:
    """The MNI152 brain (nilearn's mask) in cubes of 8 mm, on the grid of tokens: geometry alone, no data."""
    from nilearn.datasets import load_mni152_brain_mask

    mask = load_mni152_brain_mask(resolution=2)
    brain = way_to_grid(mask.shape, mask.affine).mask_to_grid(np.asarray(mask.dataobj) > 0)
    cells = np.arange((len(brain) // CELL_VOXELS) ** 3).reshape((len(brain) // CELL_VOXELS,) * 3)
    cells = cells.repeat(CELL_VOXELS, 0).repeat(CELL_VOXELS, 1).repeat(CELL_VOXELS, 2)
    counts = np.bincount(cells[brain], minlength=cells.max() + 1)
    used = np.flatnonzero(counts >= FEWEST_CELL_VOXELS)
    number = np.zeros(len(counts), dtype=np.int32)
    number[used] = np.arange(1, len(used) + 1)
    return Regions(np.where(brain, number[cells], 0).astype(np.int32), grid_affine(), tuple(int(cell) for cell in used))


def power_regions(reference: Any) -> Any:
    """The 264 regions of Power et al. 2011 as a label image on the grid of `reference`; nilearn ships their places."""
    from nilearn.datasets import fetch_coords_power_2011

    places = fetch_coords_power_2011().rois[["x", "y", "z"]].to_numpy(dtype=float)
    return spheres_to_labels(places, reference, POWER_RADIUS_MM)


def spheres_to_labels(centres_mm: np.ndarray, reference: Any, radius_mm: float = POWER_RADIUS_MM) -> Any:
    """Draw spheres as a label image: once for all scans of one grid, which is faster than a masker of spheres on each.

    Args:
        centres_mm: `(regions, 3)` in the reference's space.
        reference: an image (or its path) whose first three dimensions and affine are taken.
        radius_mm: of all spheres. A voxel in two of them belongs to the nearer centre.

    Returns:
        A nibabel image of int16, region r labelled r + 1 and 0 elsewhere. A sphere between voxels gets none.
    """
    import nibabel
    from nibabel.affines import apply_affine
    from scipy.spatial import cKDTree

    image = nibabel.load(reference) if not hasattr(reference, "affine") else reference
    shape = image.shape[:3]
    places = apply_affine(image.affine, np.stack(np.indices(shape), axis=-1).reshape(-1, 3))
    reach = np.nextafter(radius_mm, np.inf)  # the bound itself does not count as within
    distance, nearest = cKDTree(np.asarray(centres_mm, dtype=float)).query(places, distance_upper_bound=reach)
    labels = np.where(np.isfinite(distance), nearest + 1, 0).astype(np.int16).reshape(shape)
    return nibabel.Nifti1Image(labels, image.affine)


# --- time series


def region_means(frames: Iterable[np.ndarray], labels: np.ndarray, num_regions: int) -> np.ndarray:
    """The mean of each frame in each region; frames come one after another, so that no run is in memory.

    Args:
        frames: `(X, Y, Z)` each; voxels that are no numbers count as 0.
        labels: `(X, Y, Z)` int, region r numbered r + 1 and 0 for no region.

    Returns:
        `(frames, num_regions)` float32, NaN for a region without voxels.
    """
    inside = labels > 0
    numbers = labels[inside]
    counts = np.bincount(numbers, minlength=num_regions + 1)[1:]
    means = []
    for frame in frames:
        values, _ = zero_where_not_finite(frame[inside])
        means.append(np.bincount(numbers, values, num_regions + 1)[1:])
    with np.errstate(invalid="ignore"):
        return (np.array(means).reshape(-1, num_regions) / counts).astype(np.float32)


def region_time_series(
    scans: Iterable[Any], labels: Any, on_progress: Callable[[int], None] | None = None
) -> list[np.ndarray]:
    """Average each scan in the regions of a label image and standardise every course over time.

    Args:
        scans: 4D images or paths, on any grid (labels are brought to it by their nearest voxels).
        labels: a label image, region r numbered r + 1 and 0 for no region, as `spheres_to_labels` draws them.
        on_progress: is reported how many scans are done.

    Returns:
        For each scan `(frames, regions)`; 0 for a region that is constant, or has no voxel on the scan's grid.
    """
    numbers = np.asarray(labels.dataobj).astype(np.int32)
    regions = Regions(numbers, np.asarray(labels.affine, dtype=float), tuple(range(1, int(numbers.max()) + 1)))
    courses = []
    for scan in scans:
        source = open_source(scan, check_space=False)
        on_grid = regions.on_grid(source.shape, source.affine)
        means = region_means(source.frames(range(source.num_frames)), on_grid, len(regions))
        courses.append(np.nan_to_num(standardised(means)))
        if on_progress is not None:
            on_progress(len(courses))
    return courses


def standardised(courses: np.ndarray) -> np.ndarray:
    """Courses `(frames, regions)` with mean 0 and standard deviation 1 (of a sample) each, float64; NaN for a constant.

    Means of a constant can differ in their last digits, which is no signal.
    """
    courses = np.asarray(courses, dtype=np.float64)
    mean = courses.mean(0)
    deviations = courses - mean
    spread = np.sqrt((deviations**2).sum(0) / max(1, len(courses) - 1))
    is_varying = spread > 1e-6 * np.abs(mean)
    return np.divide(deviations, spread, out=np.full_like(deviations, np.nan), where=is_varying)


def clustered_cells(courses: Iterable[np.ndarray], num_regions: int, seed: int = 0) -> np.ndarray:
    """Put neighbouring cells of `brain_cells` that move together into one region: Ward's clustering by nilearn.

    Args:
        courses: `(frames, cells)` of subjects who are trained on, and of no one else; one after another, and
            `CLUSTERED_PEOPLE` of them are enough. Of more than 60 frames 60 are taken, evenly spaced, and each cell is
            standardised over these.
        num_regions: how many regions.

    Returns:
        `(cells,)`, the region of each cell, from 0 to `num_regions` - 1.
    """
    from nibabel import Nifti1Image
    from nilearn.regions import Parcellations

    cells = brain_cells()
    corner = cells.labels[::CELL_VOXELS, ::CELL_VOXELS, ::CELL_VOXELS]
    places = np.unravel_index(np.array(cells.values), corner.shape)
    affine = cells.affine @ np.diag([CELL_VOXELS] * 3 + [1.0])
    affine[:3, 3] = (cells.affine @ [*[(CELL_VOXELS - 1) / 2] * 3, 1])[:3]

    def image_of(values: np.ndarray) -> Any:
        volumes = np.zeros((*corner.shape, *values.shape[1:]), dtype=np.float32)
        volumes[places] = values
        return Nifti1Image(volumes, affine)

    images = []
    for person in courses:
        some = standardised(np.nan_to_num(person[evenly_spaced(range(len(person)), CLUSTERED_FRAMES)]))
        images.append(image_of(np.nan_to_num(some).T))
    mask = image_of(np.ones(len(cells)))
    clustering = Parcellations(
        method="ward", n_parcels=num_regions, mask=mask, smoothing_fwhm=None, standardize=False, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it will do otherwise in versions to come
        clustering.fit(images)
    found = np.asarray(clustering.labels_img_.dataobj)[places]
    return np.unique(found, return_inverse=True)[1]


def merged_cells(courses: np.ndarray, region_of_cell: np.ndarray, num_voxels: np.ndarray) -> np.ndarray:
    """Courses of regions from those of their cells, each counted as often as it has voxels.

    Args:
        courses: `(frames, cells)`, NaN for a cell without voxels.
        region_of_cell: `(cells,)`, from 0 on.
        num_voxels: `(cells,)`.

    Returns:
        `(frames, regions)` float64, NaN for a region of which no cell has voxels.
    """
    from scipy.sparse import csr_array

    is_known = np.isfinite(courses).all(0)
    weights = np.where(is_known, num_voxels, 0).astype(np.float64)
    cells = np.arange(len(region_of_cell))
    members = csr_array((weights, (region_of_cell, cells)), shape=(region_of_cell.max() + 1, len(cells)))
    with np.errstate(invalid="ignore"):
        return (members @ np.where(is_known, courses, 0).T.astype(np.float64)).T / members.sum(1)


def evenly_spaced(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, from first to last."""
    places = np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))
    return [items[place] for place in places]


# --- connections


def connectivity_features(courses: Sequence[np.ndarray], kind: str = "correlation") -> np.ndarray:
    """Functional connectivity of each scan as a row of features.

    Args:
        courses: for each scan `(frames, regions)`.
        kind: as for `nilearn.connectome.ConnectivityMeasure`; only kinds that look at one scan at a time, such as
            "correlation", may be computed for training and held-out subjects together.

    Returns:
        `(scans, regions * (regions - 1) / 2)` float64, the lower triangle without its diagonal.
    """
    from nilearn.connectome import ConnectivityMeasure
    from sklearn.covariance import EmpiricalCovariance

    # nilearn shrinks covariances by default; this is the correlation as a reader expects it.
    measure = ConnectivityMeasure(EmpiricalCovariance(), kind=kind, vectorize=True, discard_diagonal=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        features = measure.fit_transform(list(courses))
    return np.nan_to_num(features)  # a region without signal goes with nothing


def fisher_z(courses: np.ndarray) -> np.ndarray:
    """How regions go together in one run: Fisher's z (artanh) of the correlations of their time series.

    Args:
        courses: `(frames, regions)`.

    Returns:
        `(regions * (regions - 1) / 2,)` float64, ordered as by `connectivity_features`. NaN where a region is missing
        or constant, and everywhere with less than 4 frames.
    """
    rows, columns = np.tril_indices(courses.shape[1], -1)
    if len(courses) < FEWEST_FRAMES:
        return np.full(len(rows), np.nan)
    units = standardised(courses)
    is_missing = np.isnan(units).any(0)
    correlations = connectivity_features([np.nan_to_num(units)])[0]
    z = np.arctanh(np.clip(correlations, -LARGEST_CORRELATION, LARGEST_CORRELATION))
    return np.where(is_missing[rows] | is_missing[columns], np.nan, z)
