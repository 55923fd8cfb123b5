"""A 4D scan as checked, masked, gridded and scaled frames, streamed in blocks.

Only a small run is held in memory: one pass over the file surveys it (brain mask, mean, maximum, faults) and a second
one delivers the frames.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any

import numpy as np

from .brain import Survey, check_mni_space
from .errors import InputError
from .grid import Resampling, way_to_grid
from .intensities import NUM_INTENSITY_BINS, count_intensities, percent_change, percentile_of_counts, scale_intensity
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

__all__ = ["BoldRun", "open_run"]

LOW_MEAN_SHARE = 0.05
"""Voxels whose mean is below this share of the run's 99.9th percentile have no percent change: noise."""

ROBUST_PERCENTILE = 99.9

ALIGNED_XFORM, MNI152_XFORM = 2, 4
"""NIfTI codes of coordinates aligned to another file, and of MNI152."""

DEFAULT_BLOCK_FRAMES = 16
DEFAULT_CACHE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class _Statistics:
    mask: np.ndarray
    mask_source: str
    mean: np.ndarray
    maximum: float
    counts: np.ndarray | None  # of intensities in the mask; None where they were not counted
    frames: np.ndarray | None  # (T, V, V, V); None where they need too much memory


class _Sums:
    """What adds up over the frames on the grid, while the brain may still be unknown.

    Frames that fit into `cache_bytes` are kept. Otherwise intensities are counted: in the brain mask `(V, V, V)`, or,
    where it is not given, wherever they are positive.
    """

    def __init__(self, num_frames: int, volume_size: int, brain: np.ndarray | None, cache_bytes: int):
        cube = (volume_size,) * 3
        self._num_frames, self._num_added = num_frames, 0
        self._total, self._maximum = np.zeros(cube), np.zeros(cube, dtype=np.float32)
        self._region = None if brain is None else np.flatnonzero(brain)
        is_cached = num_frames * self._maximum.nbytes <= cache_bytes
        self._frames = np.empty((num_frames, *cube), dtype=np.float32) if is_cached else None
        self._counts = np.zeros(NUM_INTENSITY_BINS, dtype=np.int64)

    def add(self, volume: np.ndarray) -> None:
        self._total += volume
        np.maximum(self._maximum, volume, out=self._maximum)
        if self._frames is not None:
            self._frames[self._num_added] = volume
        else:
            values = volume[volume > 0] if self._region is None else volume.reshape(-1).take(self._region)
            self._counts += count_intensities(values)
        self._num_added += 1

    def statistics(self, mask: np.ndarray, mask_source: str, is_zero_outside: bool) -> _Statistics:
        """Results for a mask `(V, V, V)`; `is_zero_outside`: unmasked frames are zero outside it."""
        counts = None
        if self._frames is not None:
            self._frames *= mask
        elif self._region is not None or is_zero_outside:
            counts = self._counts
            counts[0] += self._num_frames * np.count_nonzero(mask) - counts.sum()  # those not counted are zero
        mean = (self._total / self._num_frames * mask).astype(np.float32)
        return _Statistics(mask, mask_source, mean, float(self._maximum[mask].max()), counts, self._frames)


class BoldRun:
    """A run on the model's grid: its frames in blocks, and statistics of the whole run.

    Made by `open_run`. The file is read by `survey`, or when a statistic or a frame is first asked for: one pass over
    all frames, which also finds unusable voxels (`InputError`).

    Attributes:
        name: the scan in messages.
        num_frames: T, frames of the run.
        repetition_time: seconds between two frames.
        source_shape, source_affine: the grid the scan was stored on, `(X, Y, Z)` and `(4, 4)` float64, voxels to mm.
        xform_code: NIfTI code of that space: that of the scan, else MNI152 only where the space was checked.
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
        self.name = source.name
        self.num_frames = source.num_frames
        self.repetition_time = repetition_time
        self.source_shape, self.source_affine = source.shape, source.affine
        self.xform_code = source.xform_code or (MNI152_XFORM if check_space else ALIGNED_XFORM)
        self.volume_size = volume_size
        self._source = source
        self._way = way_to_grid(source.shape, source.affine, volume_size)
        self.is_resampled = isinstance(self._way, Resampling)
        self._brain, self._mask_source, self._add_mean = brain, mask_source, add_mean
        self._check_space, self._cache_bytes = check_space, cache_bytes
        self._num_scaled = self._num_clipped = 0
        # One lock per run: `cached_property` has one for all runs (Python 3.11) or none (3.12).
        self._lock = RLock()
        self._cached_statistics: _Statistics | None = None
        self._cached_counts: np.ndarray | None = None

    def survey(self) -> None:
        """Read the whole run once, unless that was done. Thread-safe: other threads wait for the result.

        Raises:
            InputError: the run cannot be used.
        """
        _ = self._statistics

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
        with self._lock:
            if self._cached_counts is None:
                self._cached_counts = self._count() if self._statistics.counts is None else self._statistics.counts
        return min(percentile_of_counts(self._cached_counts, q), self.maximum)

    @property
    def clipped_share(self) -> float:
        """The share of clipped values in the brain among those that `scaled_blocks` last delivered."""
        return self._num_clipped / self._num_scaled if self._num_scaled else 0.0

    @property
    def has_change(self) -> np.ndarray:
        """Where percent change is defined, `(V, V, V)` bool: the brain without voxels of nearly no intensity."""
        return self.mask & (self.mean >= LOW_MEAN_SHARE * self.percentile(ROBUST_PERCENTILE)) & (self.mean > 0)

    def intensity_scale(self, scaling: str = "max") -> float:
        """The intensity that becomes 1: the run's maximum ("max") or its 99.9th percentile ("percentile")."""
        if scaling not in ("max", "percentile"):
            raise ValueError(f'scaling must be "max" or "percentile", not {scaling!r}')
        return (scaling == "percentile" and self.percentile(ROBUST_PERCENTILE)) or self.maximum

    def blocks(
        self, frames: Sequence[int] | None = None, block_frames: int = DEFAULT_BLOCK_FRAMES
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Deliver intensities on the grid, block by block.

        Args:
            frames: indices of the frames, in the order wanted (ascending is fast); None for all.
            block_frames: frames per block; the last one may have fewer.

        Yields:
            Frame indices `(n,)` int64 and volumes `(n, V, V, V)` float32, never negative and 0 outside the mask, which
            the caller may change.

        Raises:
            InputError: a frame that the run does not have, or a run that cannot be used.
        """
        indices = np.arange(self.num_frames) if frames is None else np.asarray(frames, dtype=np.int64)
        if ((indices < 0) | (indices >= self.num_frames)).any():
            raise InputError(f"{self.name}: it has frames 0 to {self.num_frames - 1}; ask for no others.")
        blocks = [indices[start : start + block_frames] for start in range(0, len(indices), block_frames)]
        statistics = self._statistics
        if statistics.frames is not None:
            for block in blocks:
                yield block, statistics.frames[block]
            return
        mask = statistics.mask.astype(np.float32)
        stored = self._source.frames(indices)
        for block in blocks:
            volumes = np.empty((len(block), *mask.shape), dtype=np.float32)
            for volume in volumes:
                frame = next(stored)
                frame[~np.isfinite(frame)] = 0
                if self._add_mean is not None:
                    frame += self._add_mean
                np.multiply(self._gridded(frame), mask, out=volume)
            yield block, volumes

    def scaled_blocks(
        self,
        signal: str = "intensity",
        scaling: str = "max",
        frames: Sequence[int] | None = None,
        block_frames: int = DEFAULT_BLOCK_FRAMES,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Deliver frames as the autoencoder takes them, block by block: float32 in [-1, 1].

        Args:
            signal: "intensity", with a background of exactly -1, or "percent_change" about the run's mean, with a
                background of exactly 0.
            scaling: "max" or "percentile", for intensities alone.
            frames, block_frames: as for `blocks`. Scale and mean are those of the whole run in any case.

        Yields:
            Frame indices `(n,)` int64 and volumes `(n, V, V, V)` float32. `clipped_share` is updated with each block.
        """
        if signal not in ("intensity", "percent_change"):
            raise ValueError(f'signal must be "intensity" or "percent_change", not {signal!r}')
        self._num_scaled = self._num_clipped = 0
        scale, region = self.intensity_scale(scaling), self.mask if signal == "intensity" else self.has_change
        size = np.count_nonzero(region)
        for indices, volumes in self.blocks(frames, block_frames):
            if signal == "intensity":
                scaled = scale_intensity(volumes, scale)
                self._num_clipped += int(np.count_nonzero(volumes > scale))
            else:
                scaled = percent_change(volumes, self.mean, region)
                self._num_clipped += int(np.count_nonzero(np.abs(scaled) > 1))
                np.clip(scaled, -1, 1, out=scaled)
            self._num_scaled += len(indices) * size
            yield indices, scaled

    def _gridded(self, frame: np.ndarray) -> np.ndarray:
        volume = self._way.to_grid(frame)
        return np.maximum(volume, 0, out=volume)

    @property
    def _statistics(self) -> _Statistics:
        with self._lock:
            if self._cached_statistics is None:
                self._cached_statistics = self._read()
            return self._cached_statistics

    def _read(self) -> _Statistics:
        grid_brain = None if self._brain is None else self._way.mask_to_grid(self._brain)
        survey = Survey(self.name, self.source_shape, find_brain=self._brain is None)
        sums = _Sums(self.num_frames, self.volume_size, grid_brain, self._cache_bytes)
        for frame in self._source.frames(range(self.num_frames)):
            sums.add(self._gridded(survey.add(frame, self._add_mean)))

        brain, mask_source = self._brain, self._mask_source
        if brain is None:
            brain, mask_source = survey.find_brain(self.source_affine)
        survey.check(brain)
        if self._brain is None and self._check_space:
            check_mni_space(brain, self.source_affine, self.name)
        mask = self._way.mask_to_grid(brain)
        if not mask.any():
            raise InputError(f"{self.name}: no voxel of the brain is on the MNI152 grid; check the affine.")
        is_zero_outside = mask_source == "nonzero" and not self.is_resampled and self._add_mean is None
        statistics = sums.statistics(mask, mask_source, is_zero_outside)
        if statistics.maximum == 0:
            raise InputError(f"{self.name}: no voxel inside the brain mask is ever positive; check scan and mask.")
        return statistics

    def _count(self) -> np.ndarray:
        """Count intensities in one more pass: frames are in memory, or the brain was found too late to count in it."""
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
            By default the BIDS `desc-brain_mask` next to the scan, else the voxels that are not zero in every frame
            where those make a brain, else nilearn's EPI mask of the mean.
        repetition_time: seconds between frames; by default that of the BIDS sidecar, else of the header.
        volume_size: voxels along each side of the grid, see `grid.grid_affine`.
        add_mean: an image `(X, Y, Z)` on the scan's own grid, added to each frame of a demeaned run.
        check_space: refuse a scan that is not in MNI152 space.
        cache_bytes: a run whose gridded frames fit in so many bytes is kept in memory after its first pass.

    Raises:
        InputError: the scan, its mask or its repetition time cannot be used; faults of the voxels are raised when
            they are first read.
    """
    source = open_source(scan, check_space)
    space = declared_space(source.path)
    if check_space and space is not None and is_native_space(space):
        raise InputError(
            f"{source.name}: its name declares space-{space}; give the space-MNI152... file of the same run, or pass "
            "check_space=False (command line: --no-space-check)."
        )
    if check_space and space is None and source.has_scanner_axes:
        warnings.warn(
            f"{source.name}: its axes are oblique or its header declares scanner coordinates, as before a "
            "registration to MNI152; make sure that it was normalised.",
            stacklevel=2,
        )
    seconds = find_repetition_time(source, repetition_time)
    mask_source, brain = "given", None
    if mask is None:
        mask_source, mask = "bids", find_brain_mask_file(source.path)
    if mask is not None:
        brain = load_volume(mask, "mask", source) > 0.5
        if not brain.any():
            label = f" {mask}" if mask_source == "bids" else ""
            raise InputError(f"{source.name}: its brain mask{label} is empty; give mask= (command line: --mask).")
        if check_space:
            check_mni_space(brain, source.affine, source.name)
    if add_mean is not None:
        add_mean = load_volume(add_mean, "mean image", source)
    return BoldRun(source, seconds, volume_size, brain, mask_source, add_mean, check_space, cache_bytes)
