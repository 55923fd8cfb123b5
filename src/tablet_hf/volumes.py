"""From a 4D scan to checked, masked, gridded and scaled frames, streamed in blocks, and back to NIfTI.

    run = open_run("sub-01_task-rest_space-MNI152NLin2009cAsym_res-2_desc-preproc_bold.nii.gz")
    for frames, volumes in run.scaled_blocks():     # volumes: (n, 96, 96, 96) float32 in [-1, 1]
        ...
    save_nifti(volumes_to_nifti(intensities, run), "reconstruction.nii.gz")
    stream_to_nifti(blocks_of_intensities, num_frames, run, "reconstruction.nii.gz")    # the same, never held whole

A run is never held whole unless it is small: one pass over the file surveys it (brain mask, mean, maximum, what is
wrong with it) and a second one delivers the frames. The steps are reported elsewhere: `scans.py` reads files and
headers, `brain.py` finds and checks the brain, `grid.py` moves frames, `intensities.py` scales them.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from .brain import Survey, check_mni_space, zero_where_not_finite
from .errors import InputError
from .files import atomic_write
from .grid import VOXEL_SIZE_MM, Resampling, grid_affine, way_to_grid
from .intensities import (
    NUM_INTENSITY_BINS,
    PERCENT_CHANGE_WINDOW,
    count_intensities,
    percent_change,
    percentile_of_counts,
    scale_intensity,
    unclipped_percent_change,
    undo_percent_change,
    unscale_intensity,
)
from .scans import (
    BoldSource,
    Scan,
    declared_space,
    find_brain_mask_file,
    find_repetition_time,
    is_native_space,
    load_volume,
    open_source,
)

__all__ = [
    "PERCENT_CHANGE_WINDOW",
    "VOXEL_SIZE_MM",
    "BoldRun",
    "check_nifti_name",
    "grid_affine",
    "open_run",
    "percent_change",
    "save_nifti",
    "scale_intensity",
    "stream_to_nifti",
    "undo_percent_change",
    "unscale_intensity",
    "volumes_to_nifti",
]

LOW_MEAN_SHARE = 0.05
"""Voxels whose mean is below this share of the run's 99.9th percentile have no percent change: noise over nothing."""

ROBUST_PERCENTILE = 99.9

ALIGNED_XFORM, MNI152_XFORM = 2, 4
"""NIfTI codes of coordinates aligned to another file, and of MNI152."""

DEFAULT_BLOCK_FRAMES = 16
DEFAULT_CACHE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class _Statistics:
    """What is known of a run once all of it was read; `counts` and `frames_in_memory` only where they were kept."""

    mask: np.ndarray
    mask_source: str
    mean: np.ndarray
    maximum: float
    counts: np.ndarray | None
    frames_in_memory: np.ndarray | None


class _Tally:
    """What adds up over the frames on the grid, while the brain may not be known yet.

    A run that fits into `cache_bytes` is kept, so intensities need not be counted now. `brain` is the mask
    `(V, V, V)` where it is known beforehand; without it the positive values are counted wherever they lie.
    """

    def __init__(self, num_frames: int, volume_size: int, brain: np.ndarray | None, cache_bytes: int):
        cube = (volume_size,) * 3
        self._num_frames, self._num_added = num_frames, 0
        self._total, self._peak = np.zeros(cube), np.zeros(cube, dtype=np.float32)
        self._region = None if brain is None else np.flatnonzero(brain)
        is_kept = num_frames * self._peak.nbytes <= cache_bytes
        self._kept = np.empty((num_frames, *cube), dtype=np.float32) if is_kept else None
        self._counts = None if is_kept else np.zeros(NUM_INTENSITY_BINS, dtype=np.int64)

    def add(self, volume: np.ndarray) -> None:
        self._total += volume
        np.maximum(self._peak, volume, out=self._peak)
        if self._kept is not None:
            self._kept[self._num_added] = volume
        elif self._counts is not None:
            values = volume[volume > 0] if self._region is None else volume.reshape(-1).take(self._region)
            self._counts += count_intensities(values)
        self._num_added += 1

    def statistics(self, mask: np.ndarray, mask_source: str, is_zero_outside: bool) -> _Statistics:
        """Settle on a mask `(V, V, V)`; `is_zero_outside` says whether frames are zero outside it by themselves."""
        counts = self._counts
        if counts is not None and self._region is None:
            if is_zero_outside:
                counts[0] += self._num_frames * np.count_nonzero(mask) - counts.sum()
            else:
                counts = None
        if self._kept is not None:
            self._kept *= mask
        mean = (self._total / self._num_frames * mask).astype(np.float32)
        return _Statistics(mask, mask_source, mean, float(self._peak[mask].max()), counts, self._kept)


class BoldRun:
    """A run on the model's grid: its frames in blocks, and what is known of the whole of it.

    Made by `open_run`. The file is read by `survey`, or when a statistic or a frame is first asked for: one pass over
    all frames, which also finds whatever is wrong with the voxels (`InputError`).

    Attributes:
        name: how messages call the scan.
        num_frames: frames of the run.
        repetition_time: seconds between two frames.
        source_shape, source_affine: the grid the scan was stored on, `(X, Y, Z)` and `(4, 4)` float64.
        volume_size: V, voxels along each side of the cube.
        is_resampled: whether frames are interpolated rather than moved by whole voxels.
    """

    def __init__(
        self,
        source: BoldSource,
        repetition_time: float,
        volume_size: int,
        brain: np.ndarray | None,
        mask_source: str,
        add_mean: np.ndarray | None,
        check_space: bool,
        cache_bytes: int,
    ):
        self._source = source
        self.name = source.name
        self.num_frames = source.num_frames
        self.repetition_time = repetition_time
        self.source_shape, self.source_affine = source.shape, source.affine
        self.volume_size = volume_size
        self._way = way_to_grid(source.shape, source.affine, volume_size)
        self._brain, self._mask_source = brain, mask_source
        self._add_mean = add_mean
        self._check_space = check_space
        self._cache_bytes = cache_bytes
        self._num_scaled = self._num_clipped = 0
        # One lock for each run: `cached_property` has one for all of them (Python 3.11) or none (3.12).
        self._lock = RLock()
        self._known_statistics: _Statistics | None = None
        self._known_counts: np.ndarray | None = None

    def survey(self) -> None:
        """Read the whole run once, now, unless that was done: what is wrong with its voxels is raised here.

        Another thread may do so while this one works on other runs; who asks for a run meanwhile waits for it.

        Raises:
            InputError: the run cannot be used.
        """
        _ = self._statistics

    @property
    def is_resampled(self) -> bool:
        return isinstance(self._way, Resampling)

    @property
    def mask(self) -> np.ndarray:
        """The brain on the grid, `(V, V, V)` bool."""
        return self._statistics.mask

    @property
    def mask_source(self) -> str:
        """Where the mask came from: "given", "bids", "nonzero" or "epi"."""
        return self._statistics.mask_source

    @property
    def mean(self) -> np.ndarray:
        """The mean over the run of what `blocks` delivers, `(V, V, V)` float32."""
        return self._statistics.mean

    @property
    def maximum(self) -> float:
        """The largest intensity in the brain over the run."""
        return self._statistics.maximum

    def percentile(self, q: float) -> float:
        """The `q`-th percentile (0 to 100) of all intensities in the brain over the run, within 1/4096 of its value."""
        return min(percentile_of_counts(self._counts, q), self.maximum)

    @property
    def clipped_share(self) -> float:
        """Of the brain's values that `scaled_blocks` last delivered, the share that had to be clipped."""
        return self._num_clipped / self._num_scaled if self._num_scaled else 0.0

    @property
    def has_change(self) -> np.ndarray:
        """Where percent change is defined, `(V, V, V)` bool: the brain without voxels of nearly no intensity."""
        return self.mask & (self.mean >= LOW_MEAN_SHARE * self.percentile(ROBUST_PERCENTILE)) & (self.mean > 0)

    def intensity_scale(self, scaling: str = "max") -> float:
        """The intensity that becomes 1: the run's maximum ("max") or its 99.9th percentile ("percentile")."""
        if scaling == "max":
            return self.maximum
        if scaling == "percentile":
            return self.percentile(ROBUST_PERCENTILE) or self.maximum
        raise ValueError(f'scaling must be "max" or "percentile", not {scaling!r}')

    def blocks(
        self, frames: Sequence[int] | None = None, block_frames: int = DEFAULT_BLOCK_FRAMES
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Deliver intensities on the grid, block by block.

        Args:
            frames: indices of the frames wanted, in the order wanted (ascending is fast); None for all.
            block_frames: frames in a block; the last one may have fewer.

        Yields:
            Frame indices `(n,)` int64 and volumes `(n, V, V, V)` float32, never negative and 0 outside the mask, which
            the caller may change.

        Raises:
            InputError: a frame the run does not have, or a run that cannot be used.
        """
        indices = self._checked_frames(frames)
        if block_frames < 1:
            raise ValueError(f"block_frames must be at least 1, not {block_frames!r}")
        return self._blocks(indices, block_frames)

    def scaled_blocks(
        self,
        signal: str = "intensity",
        scaling: str = "max",
        frames: Sequence[int] | None = None,
        block_frames: int = DEFAULT_BLOCK_FRAMES,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Deliver frames as the autoencoder takes them, block by block: float32 in [-1, 1].

        Args:
            signal: "intensity", where the background is exactly -1, or "percent_change" about the run's mean, where
                it is exactly 0.
            scaling: "max" or "percentile", for intensities alone.
            frames, block_frames: as for `blocks`. The scale and the mean are those of the whole run in any case.

        Yields:
            Frame indices `(n,)` int64 and volumes `(n, V, V, V)` float32. `clipped_share` counts along.
        """
        if signal not in ("intensity", "percent_change"):
            raise ValueError(f'signal must be "intensity" or "percent_change", not {signal!r}')
        if scaling not in ("max", "percentile"):
            raise ValueError(f'scaling must be "max" or "percentile", not {scaling!r}')
        blocks = self.blocks(frames, block_frames)
        return self._intensity_blocks(blocks, scaling) if signal == "intensity" else self._change_blocks(blocks)

    def _intensity_blocks(self, blocks: Iterator, scaling: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        self._num_scaled = self._num_clipped = 0
        scale, size = self.intensity_scale(scaling), np.count_nonzero(self.mask)
        for indices, volumes in blocks:
            self._num_scaled += len(indices) * size
            self._num_clipped += int(np.count_nonzero(volumes > scale))
            yield indices, scale_intensity(volumes, scale)

    def _change_blocks(self, blocks: Iterator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        self._num_scaled = self._num_clipped = 0
        mean, has_change = self.mean, self.has_change
        size = np.count_nonzero(has_change)
        for indices, volumes in blocks:
            change = unclipped_percent_change(volumes, mean, has_change)
            self._num_scaled += len(indices) * size
            self._num_clipped += int(np.count_nonzero(np.abs(change) > 1))
            yield indices, np.clip(change, -1, 1, out=change)

    def _checked_frames(self, frames: Sequence[int] | None) -> np.ndarray:
        if frames is None:
            return np.arange(self.num_frames)
        indices = np.asarray(frames, dtype=np.int64).reshape(-1)
        outside = indices[(indices < 0) | (indices >= self.num_frames)]
        if outside.size:
            raise InputError(
                f"{self.name}: frame {outside[0]} was asked for but the run has {self.num_frames}, numbered 0 to "
                f"{self.num_frames - 1}; ask for fewer."
            )
        return indices

    def _blocks(self, indices: np.ndarray, block_frames: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        statistics = self._statistics
        starts = range(0, len(indices), block_frames)
        if statistics.frames_in_memory is not None:
            for start in starts:
                block = indices[start : start + block_frames]
                yield block, statistics.frames_in_memory[block]
            return
        mask = statistics.mask.astype(np.float32)
        frames = self._source.frames(indices)
        for start in starts:
            block = indices[start : start + block_frames]
            volumes = np.empty((len(block), *mask.shape), dtype=np.float32)
            for volume in volumes:
                frame, _ = zero_where_not_finite(next(frames))
                if self._add_mean is not None:
                    frame = frame + self._add_mean
                np.multiply(self._gridded(frame), mask, out=volume)
            yield block, volumes

    def _gridded(self, frame: np.ndarray) -> np.ndarray:
        volume = self._way.to_grid(frame)
        return np.maximum(volume, 0, out=volume)

    @property
    def _statistics(self) -> _Statistics:
        with self._lock:
            if self._known_statistics is None:
                self._known_statistics = self._surveyed()
            return self._known_statistics

    def _surveyed(self) -> _Statistics:
        known_mask = None if self._brain is None else self._way.mask_to_grid(self._brain)
        survey = Survey(self._source, self._brain)
        tally = _Tally(self.num_frames, self.volume_size, known_mask, self._cache_bytes)
        for frame in self._source.frames(range(self.num_frames)):
            tally.add(self._gridded(survey.add(frame, self._add_mean)))

        brain, mask_source = survey.find_brain() if self._brain is None else (self._brain, self._mask_source)
        survey.check(brain)
        if self._brain is None and self._check_space:
            check_mni_space(brain, self._source)
        mask = self._way.mask_to_grid(brain)
        if not mask.any():
            raise InputError(f"{self.name}: no voxel of the brain lies on the MNI152 grid; check the affine.")
        is_zero_outside = mask_source == "nonzero" and not self.is_resampled and self._add_mean is None
        statistics = tally.statistics(mask, mask_source, is_zero_outside)
        if statistics.maximum == 0:
            raise InputError(f"{self.name}: no voxel inside the brain mask is ever positive; check scan and mask.")
        return statistics

    @property
    def _counts(self) -> np.ndarray:
        with self._lock:
            if self._known_counts is None:
                counts = self._statistics.counts
                self._known_counts = self._counted() if counts is None else counts
            return self._known_counts

    def _counted(self) -> np.ndarray:
        # Kept in memory, or the brain was found too late to count in it: the frames are gone through once more.
        region = np.flatnonzero(self.mask)
        counts = np.zeros(NUM_INTENSITY_BINS, dtype=np.int64)
        for _, volumes in self.blocks():
            for volume in volumes:
                counts += count_intensities(volume.reshape(-1).take(region))
        return counts


def open_run(
    scan: Scan,
    mask: Any = None,
    repetition_time: float | None = None,
    volume_size: int = 96,
    add_mean: Any = None,
    check_space: bool = True,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
) -> BoldRun:
    """Open a 4D BOLD run in MNI152 space. Headers are checked now, voxels when they are first asked for.

    Args:
        scan: a path to NIfTI, a nibabel spatial image, or a pair (array `(X, Y, Z, T)`, affine `(4, 4)` in mm).
        mask: the brain on the scan's own grid: path, image, (array, affine) or array `(X, Y, Z)`; above 0.5 is brain.
            Without one: the BIDS `desc-brain_mask` next to the scan, else the voxels that are not zero in every frame
            where those make a brain, else nilearn's EPI mask of the mean.
        repetition_time: seconds between frames. Without it: the BIDS sidecar, else the header.
        volume_size: voxels along each side of the grid, see `grid_affine`.
        add_mean: an image `(X, Y, Z)` on the scan's own grid, added to each frame of a demeaned run.
        check_space: refuse a scan that is not in MNI152 space.
        cache_bytes: a run whose gridded frames fit in so many bytes is kept in memory after its first pass.

    Raises:
        InputError: the scan, its mask or its repetition time cannot be used; what only the voxels tell is raised when
            they are first read.
    """
    source = open_source(scan, check_space)
    space = declared_space(source.path)
    if check_space and space is not None and is_native_space(space):
        raise InputError(
            f"{source.name}: its name says space-{space}, and only volumes in MNI152 space can be used; take the "
            "space-MNI152... file of the same run, or pass check_space=False (command line: --no-space-check)."
        )
    if check_space and space is None and source.has_scanner_axes:
        warnings.warn(
            f"{source.name}: its voxel axes are oblique or its header says scanner coordinates, as before a "
            "registration to MNI152; make sure that it was normalised.",
            stacklevel=2,
        )
    seconds = find_repetition_time(source, repetition_time)
    mask_source = "given"
    if mask is None and (mask := find_brain_mask_file(source.path)) is not None:
        mask_source = "bids"
    brain = None
    if mask is not None:
        brain = load_volume(mask, "mask", source) > 0.5
        if not brain.any():
            raise InputError(
                f"{source.name}: its brain mask ({_said(mask)}) is empty; give one with the brain in it as mask= "
                "(command line: --mask)."
            )
        if check_space:
            check_mni_space(brain, source)
    if add_mean is not None:
        add_mean = load_volume(add_mean, "mean image", source)
    return BoldRun(source, seconds, volume_size, brain, mask_source, add_mean, check_space, cache_bytes)


def _said(image: Any) -> str:
    return str(image) if isinstance(image, str | Path) else "the one given"


# --- back again


def volumes_to_nifti(volumes: np.ndarray, run_or_scan: BoldRun | Scan, repetition_time: float | None = None) -> Any:
    """Put volumes of the cube back on the grid that a run was stored on.

    Whole-voxel moves are undone exactly, other grids are resampled; voxels outside the cube are 0.

    Args:
        volumes: `(T, V, V, V)`, any number of frames.
        run_or_scan: a `BoldRun`, or a scan as for `open_run`, whose grid is wanted.
        repetition_time: seconds for the header; the run's own if None.

    Returns:
        A nibabel image `(X, Y, Z, T)` float32: NIfTI-1, or NIfTI-2 where a dimension exceeds 32,767.
    """
    volumes = _checked_volumes(volumes)
    source, seconds = _grid_and_seconds(run_or_scan, repetition_time)
    way = way_to_grid(source.shape, source.affine, volumes.shape[1])
    data = np.empty((*source.shape, len(volumes)), dtype=np.float32, order="F")
    for index, volume in enumerate(volumes):
        data[..., index] = way.to_scan(volume)
    return _nifti_image(data, source, _xform_code(run_or_scan, source), seconds)


def stream_to_nifti(
    blocks: Iterable[np.ndarray],
    num_frames: int,
    run_or_scan: BoldRun | Scan,
    path: str | Path,
    repetition_time: float | None = None,
) -> Path:
    """Write volumes of the cube to a file, on the grid that a run was stored on, block by block as they come.

    The file is that of `volumes_to_nifti` and `save_nifti`, but never more of it than one block is in memory.

    Args:
        blocks: volumes `(n, V, V, V)`, n of any size; whatever makes them may do so when it is asked for the next.
        num_frames: how many volumes will come, since a NIfTI file begins with that.
        run_or_scan, repetition_time: as for `volumes_to_nifti`.
        path: as for `save_nifti`.

    Raises:
        InputError: as for `save_nifti`.
        ValueError: not as many volumes came as were announced, or of another shape.
    """
    from nibabel.openers import ImageOpener

    path = Path(path)
    source, seconds = _grid_and_seconds(run_or_scan, repetition_time)
    nothing = np.broadcast_to(np.float32(0), (*source.shape, num_frames))
    header = _nifti_image(nothing, source, _xform_code(run_or_scan, source), seconds).header
    header.set_slope_inter(1, 0)
    num_written = 0
    with _new_nifti(path) as unfinished, ImageOpener(unfinished, "wb") as stream:
        header.write_to(stream)
        for block in blocks:
            volumes = _checked_volumes(block)
            way = way_to_grid(source.shape, source.affine, volumes.shape[1])
            for volume in volumes:
                stream.write(way.to_scan(volume).tobytes("F"))
            num_written += len(volumes)
        if num_written != num_frames:
            raise ValueError(f"{num_frames} volumes were announced for {path}, but {num_written} came")
    return path


def _checked_volumes(volumes: np.ndarray) -> np.ndarray:
    volumes = np.asarray(volumes, dtype=np.float32)
    if volumes.ndim != 4 or len(set(volumes.shape[1:])) != 1:
        raise ValueError(f"volumes must have shape (frames, V, V, V), not {volumes.shape}")
    return volumes


def _grid_and_seconds(run_or_scan: BoldRun | Scan, repetition_time: float | None) -> tuple[BoldSource, float]:
    """Where volumes go back to, and the seconds between two of them."""
    source = run_or_scan._source if isinstance(run_or_scan, BoldRun) else open_source(run_or_scan, check_space=False)
    if repetition_time is None:
        is_open = isinstance(run_or_scan, BoldRun)
        return source, run_or_scan.repetition_time if is_open else find_repetition_time(source)
    # What is plausible of a scan is no limit here: of a run's frames there may be one of many.
    seconds = float(repetition_time)
    if not (math.isfinite(seconds) and seconds > 0):
        raise InputError(
            f"{source.name}: a repetition time of {seconds:g} s cannot be written; give a positive number of seconds."
        )
    return source, seconds


def _xform_code(run_or_scan: BoldRun | Scan, source: BoldSource) -> int:
    """What a header says of its space: what the scan's own did, else MNI152 only where that was checked."""
    is_checked = isinstance(run_or_scan, BoldRun) and run_or_scan._check_space
    return source.xform_code or (MNI152_XFORM if is_checked else ALIGNED_XFORM)


def _nifti_image(data: np.ndarray, source: BoldSource, code: int, repetition_time: float) -> Any:
    import nibabel

    kind = nibabel.Nifti2Image if max(data.shape) > np.iinfo(np.int16).max else nibabel.Nifti1Image
    image = kind(data, source.affine)
    image.set_sform(source.affine, code)
    image.set_qform(source.affine, code)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((*image.header.get_zooms()[:3], repetition_time))
    return image


def save_nifti(image: Any, path: str | Path) -> Path:
    """Write an image to `path` (.nii or .nii.gz), which never holds half of it: the name is given when it is whole.

    Raises:
        InputError: the name has another ending, or its folder is missing or not writable.
    """
    path = Path(path)
    with _new_nifti(path) as unfinished:
        image.to_file_map(image.filespec_to_file_map(unfinished))
    return path


def check_nifti_name(path: Path) -> None:
    """Refuse what no image can be written to; called before the work that makes the image.

    Raises:
        InputError: the name has another ending than .nii or .nii.gz, or its folder is missing.
    """
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: images are written as NIfTI; choose a name that ends in .nii.gz or .nii.")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first.")


@contextmanager
def _new_nifti(path: Path) -> Iterator[Path]:
    check_nifti_name(path)
    try:
        with atomic_write(path) as unfinished:
            yield unfinished
    except PermissionError as error:
        if error.filename != str(path):
            raise
        raise InputError(f"{path}: the folder {path.parent} may not be written to; choose another.") from error
