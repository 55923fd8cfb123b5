"""From a 4D scan to checked, masked, gridded and scaled frames, streamed in blocks, and back to NIfTI.

    run = open_run("sub-01_task-rest_space-MNI152NLin2009cAsym_res-2_desc-preproc_bold.nii.gz")
    for frames, volumes in run.scaled_blocks():     # volumes: (n, 96, 96, 96) float32 in [-1, 1]
        ...
    save_nifti(volumes_to_nifti(intensities, run), "reconstruction.nii.gz")

A run is never held whole unless it is small: one pass over the file surveys it (brain mask, mean, maximum, what is
wrong with it) and a second one delivers the frames. Files and headers are read in `scans.py`, the grid is in `grid.py`.
"""

import os
import uuid
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .grid import VOXEL_SIZE_MM, grid_affine, mni_overlap, way_to_grid
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
    "grid_affine",
    "open_run",
    "percent_change",
    "save_nifti",
    "scale_intensity",
    "undo_percent_change",
    "unscale_intensity",
    "volumes_to_nifti",
]

PERCENT_CHANGE_WINDOW = 0.0625
"""The change about the mean, as a fraction of it, that is mapped to 1; larger ones are clipped."""

LOW_MEAN_SHARE = 0.05
"""Voxels whose mean is below this share of the run's 99.9th percentile have no percent change: noise over nothing."""

ROBUST_PERCENTILE = 99.9

MIN_SHARE_IN_MNI_BRAIN = 0.83
"""A scan is taken to be in MNI152 space when at least this share of its brain lies inside the MNI152 brain.

Measured with `mni_overlap`. In place: a skull-stripped real run 0.990, fMRIPrep's template mask 0.988, slabs of 7 to 30
slices of the former 0.983 to 0.998, an unstripped run brought to MNI by nine parameters, under nilearn's EPI mask,
0.901. Out of place: whole brains 20 mm off along any axis at most 0.809, upside down 0.80, native-space scan 0.649,
axes swapped 0.55 to 0.82 (about the centre: up to 0.85). A slab that is moved within the brain and a brain turned about
its own centre (front to back 0.87) cannot be told by an outline and are not refused.
"""

MAX_BRAIN_LITRES = 2.75
MAX_BOX_FILL = 0.85
"""What the voxels that are not always zero may occupy, and the share of their bounding box, to be a brain mask.

The MNI152 brain is 1.9 litres and fills 0.45 of its box (a stripped slab up to 0.8). A head with its skull is 3 litres
or more, and a field of view that was merely padded with zeros fills its box.
"""

MAX_NEGATIVE_SHARE = 0.25
"""BOLD intensities are positive; half of the values of a demeaned run are not. Interpolation leaves a percent or so."""

DEFAULT_BLOCK_FRAMES = 16
DEFAULT_CACHE_BYTES = 512 * 2**20


# --- intensities


def scale_intensity(volumes: np.ndarray, scale: float) -> np.ndarray:
    """Map intensities from [0, `scale`] to [-1, 1] as float32; what lies outside is clipped, and 0 is exactly -1."""
    scaled = np.multiply(volumes, np.float32(2 / scale), dtype=np.float32)
    scaled -= np.float32(1)
    return np.clip(scaled, -1, 1, out=scaled)


def unscale_intensity(volumes: np.ndarray, scale: float) -> np.ndarray:
    """Undo `scale_intensity`: [-1, 1] back to intensities in [0, `scale`], float32."""
    intensities = np.add(volumes, np.float32(1), dtype=np.float32)
    intensities *= np.float32(scale / 2)
    return intensities


def percent_change(volumes: np.ndarray, mean: np.ndarray, has_change: np.ndarray) -> np.ndarray:
    """Express frames as their change about the run's mean, +-6.25% of it mapped to +-1 and clipped there.

    Args:
        volumes: `(n, V, V, V)` intensities.
        mean: `(V, V, V)`, the run's mean.
        has_change: `(V, V, V)` bool, where the mean is large enough to divide by; elsewhere the result is 0.

    Returns:
        `(n, V, V, V)` float32 in [-1, 1].
    """
    return np.clip(_unclipped_percent_change(volumes, mean, has_change), -1, 1)


def undo_percent_change(volumes: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Turn changes `(n, V, V, V)` in units of +-6.25% of `mean` `(V, V, V)` back into intensities, float32."""
    intensities = np.multiply(volumes, np.float32(PERCENT_CHANGE_WINDOW), dtype=np.float32)
    intensities += np.float32(1)
    intensities *= mean.astype(np.float32, copy=False)
    return intensities


def _unclipped_percent_change(volumes: np.ndarray, mean: np.ndarray, has_change: np.ndarray) -> np.ndarray:
    per_unit = np.zeros(mean.shape, dtype=np.float32)
    np.divide(1 / PERCENT_CHANGE_WINDOW, mean, out=per_unit, where=has_change)
    change = np.subtract(volumes, mean, dtype=np.float32)
    change *= per_unit
    return change


# The bits of a positive float32, read as an integer, grow with its value. Their upper 19 make bins of a fixed relative
# width of 1/2048, so that one pass of counting gives every percentile within 1/4096 of its value.
_DROPPED_BITS = 12
_NUM_INTENSITY_BINS = 1 << (31 - _DROPPED_BITS)


def count_intensities(values: np.ndarray) -> np.ndarray:
    """Histogram of non-negative finite float32 values (any shape) in bins of 1/2048 relative width, int64."""
    bits = np.ascontiguousarray(values, dtype=np.float32).reshape(-1).view(np.int32) & 0x7FFFFFFF
    return np.bincount(bits >> _DROPPED_BITS, minlength=_NUM_INTENSITY_BINS)


def percentile_of_counts(counts: np.ndarray, q: float) -> float:
    """The `q`-th percentile (0 to 100) of what `count_intensities` counted, within 1/4096 of its value."""
    if not 0 <= q <= 100:
        raise ValueError(f"a percentile lies between 0 and 100, not at {q!r}")
    up_to = np.cumsum(counts)
    rank = q / 100 * (up_to[-1] - 1)
    lower, upper = np.floor(rank), np.ceil(rank)
    low_bin, high_bin = np.searchsorted(up_to, (lower, upper), side="right")
    low, high = _bin_centre(int(low_bin)), _bin_centre(int(high_bin))
    return low + (high - low) * float(rank - lower)


def _bin_centre(index: int) -> float:
    if index == 0:  # zero, and denormal numbers that no scanner means
        return 0.0
    bits = np.array([index << _DROPPED_BITS | 1 << (_DROPPED_BITS - 1)], dtype=np.int32)
    return float(bits.view(np.float32)[0])


# --- the brain


def find_brain(has_signal: np.ndarray, mean: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, str]:
    """Tell the brain from the rest of a scan that no mask came with.

    Args:
        has_signal: `(X, Y, Z)` bool, the voxels that are not zero in every frame.
        mean: `(X, Y, Z)`, the mean over the run.
        affine: `(4, 4)`, voxel indices to mm.

    Returns:
        The mask `(X, Y, Z)` bool and how it was found: "nonzero" where everything outside a brain-like region was set
        to zero before, else "epi" (`nilearn.masking.compute_epi_mask`). The mask may be empty.
    """
    places = np.nonzero(has_signal)
    litres = len(places[0]) * abs(np.linalg.det(affine[:3, :3])) / 1e6
    box_fill = len(places[0]) / np.prod([np.ptp(axis) + 1 for axis in places])
    if has_signal.mean() < 1 and litres <= MAX_BRAIN_LITRES and box_fill <= MAX_BOX_FILL:
        return has_signal, "nonzero"

    from nibabel import Nifti1Image
    from nilearn.masking import compute_epi_mask

    image = Nifti1Image(mean.astype(np.float32), affine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty mask is for the caller to judge
        try:
            mask = np.asarray(compute_epi_mask(image, exclude_zeros=True).dataobj).astype(bool)
        except (ValueError, IndexError):  # too few voxels or intensities for a histogram
            mask = np.zeros(mean.shape, dtype=bool)
    return mask & has_signal, "epi"


def check_mni_space(mask: np.ndarray, source: BoldSource) -> None:
    """Refuse a scan whose brain does not lie where the MNI152 brain is.

    Raises:
        InputError: less than `MIN_SHARE_IN_MNI_BRAIN` of the mask `(X, Y, Z)` lies inside the MNI152 brain.
    """
    inside, _ = mni_overlap(mask, source.affine)
    if inside < MIN_SHARE_IN_MNI_BRAIN:
        raise InputError(
            f"{source.name}: only {inside:.0%} of the brain found in it lies inside the MNI152 brain "
            f"({MIN_SHARE_IN_MNI_BRAIN:.0%} is asked for), so it is not in MNI152 space or its affine is wrong; "
            "normalise it first (fMRIPrep: --output-spaces MNI152NLin2009cAsym:res-2), give mask= if only the mask is "
            "bad, or pass check_space=False (command line: --no-space-check)."
        )


# --- the run


class _Survey:
    """What one pass over a scan's own grid tells: where there is signal, and what is wrong with it.

    `brain` is the mask `(X, Y, Z)` where it is known beforehand, which saves the mean that finding it takes.
    """

    def __init__(self, source: BoldSource, brain: np.ndarray | None):
        self._source = source
        self._num_frames = 0
        self.has_signal = np.zeros(source.shape, dtype=bool, order="F")
        self._total = np.zeros(source.shape, order="F") if brain is None else None
        self._num_negative: np.ndarray | None = None
        self._num_nonfinite: np.ndarray | None = None
        self._first_nonfinite: np.ndarray | None = None
        self._first_frame: np.ndarray | None = None
        self._is_constant = True

    def add(self, frame: np.ndarray, add_mean: np.ndarray | None) -> np.ndarray:
        """Take in the next frame `(X, Y, Z)` float32; returns it with NaN and Inf set to 0 and the mean added."""
        frame = self._without_nonfinite(frame)
        self.has_signal |= frame != 0
        if self._first_frame is None:
            self._first_frame = frame
        elif self._is_constant:
            self._is_constant = np.array_equal(frame, self._first_frame)
        if add_mean is not None:
            frame = frame + add_mean
        if frame.min() < 0:
            if self._num_negative is None:
                self._num_negative = np.zeros(frame.shape, dtype=np.int32, order="F")
            self._num_negative += frame < 0
        if self._total is not None:
            self._total += frame
        self._num_frames += 1
        return frame

    def _without_nonfinite(self, frame: np.ndarray) -> np.ndarray:
        is_finite = np.isfinite(frame)
        if is_finite.all():
            return frame
        is_bad = ~is_finite
        if self._num_nonfinite is None or self._first_nonfinite is None:
            self._num_nonfinite = np.zeros(frame.shape, dtype=np.int32, order="F")
            self._first_nonfinite = np.zeros(frame.shape, dtype=np.int32, order="F")
        self._first_nonfinite[is_bad & (self._num_nonfinite == 0)] = self._num_frames
        self._num_nonfinite += is_bad
        return np.where(is_finite, frame, np.float32(0))

    def find_brain(self) -> tuple[np.ndarray, str]:
        name = self._source.name
        if not self.has_signal.any():
            raise InputError(f"{name}: every voxel of every frame is zero or not a number; check how it was made.")
        self._check_negative(self.has_signal, "its")
        brain, how = find_brain(self.has_signal, self._total / self._num_frames, self._source.affine)
        if not brain.any():
            raise InputError(f"{name}: no brain could be made out in it; give mask= (command line: --mask).")
        return brain, how

    def check(self, brain: np.ndarray) -> None:
        """Refuse a run without usable values inside the brain mask `(X, Y, Z)`."""
        name = self._source.name
        if self._num_nonfinite is not None and self._num_nonfinite[brain].any():
            is_bad = brain & (self._num_nonfinite > 0)
            count, frame = self._num_nonfinite[is_bad].sum(dtype=np.int64), self._first_nonfinite[is_bad].min()
            raise InputError(
                f"{name}: {count:,} values inside the brain are NaN or infinite, in {is_bad.sum():,} voxels and first "
                f"in frame {frame}; repair them, or give a mask= that leaves those voxels out."
            )
        if not self.has_signal[brain].any():
            raise InputError(f"{name}: every voxel inside the brain mask is zero in every frame; check scan and mask.")
        self._check_negative(brain, "the brain's")
        if self._is_constant and self._num_frames > 1:
            warnings.warn(
                f"{name}: all {self._num_frames} frames are the same, so there is no BOLD signal.", stacklevel=2
            )

    def _check_negative(self, region: np.ndarray, whose: str) -> None:
        if self._num_negative is None:
            return
        share = self._num_negative[region].sum(dtype=np.int64) / (self._num_frames * np.count_nonzero(region))
        if share > MAX_NEGATIVE_SHARE:
            raise InputError(
                f"{self._source.name}: {share:.0%} of {whose} values are negative, so the run was demeaned or z-scored "
                "and its intensities are gone; use the run from before that step, or pass the mean image to be added "
                "to each frame as add_mean= (command line: --add-mean)."
            )


@dataclass(frozen=True)
class _Statistics:
    mask: np.ndarray
    mask_source: str
    mean: np.ndarray
    maximum: float
    counts: np.ndarray | None
    frames_in_memory: np.ndarray | None


class BoldRun:
    """A run on the model's grid: its frames in blocks, and what is known of the whole of it.

    Made by `open_run`. The file is read when a statistic or a frame is first asked for: one pass over all frames,
    which also finds whatever is wrong with the voxels (`InputError`).

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

    @property
    def is_resampled(self) -> bool:
        return not hasattr(self._way, "offset")

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
            change = _unclipped_percent_change(volumes, mean, has_change)
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
                frame = next(frames)
                frame = np.where(np.isfinite(frame), frame, np.float32(0))
                if self._add_mean is not None:
                    frame += self._add_mean
                np.multiply(self._gridded(frame), mask, out=volume)
            yield block, volumes

    def _gridded(self, frame: np.ndarray) -> np.ndarray:
        volume = self._way.to_grid(frame)
        return np.maximum(volume, 0, out=volume)

    @cached_property
    def _statistics(self) -> _Statistics:
        cube = (self.volume_size,) * 3
        survey = _Survey(self._source, self._brain)
        total, peak = np.zeros(cube), np.zeros(cube, dtype=np.float32)
        fits = self.num_frames * peak.nbytes <= self._cache_bytes
        held = np.empty((self.num_frames, *cube), dtype=np.float32) if fits else None
        counts = None if fits else np.zeros(_NUM_INTENSITY_BINS, dtype=np.int64)
        region = None if self._brain is None else np.flatnonzero(self._way.mask_to_grid(self._brain))
        for index, frame in enumerate(self._source.frames(range(self.num_frames))):
            volume = self._gridded(survey.add(frame, self._add_mean))
            total += volume
            np.maximum(peak, volume, out=peak)
            if held is not None:
                held[index] = volume
            else:
                counts += count_intensities(volume if region is None else volume.reshape(-1).take(region))

        brain, mask_source = (self._brain, self._mask_source) if self._brain is not None else survey.find_brain()
        survey.check(brain)
        if self._brain is None and self._check_space:
            check_mni_space(brain, self._source)
        mask = self._way.mask_to_grid(brain)
        if not mask.any():
            raise InputError(f"{self.name}: no voxel of the brain lies on the MNI152 grid; check the affine.")
        maximum = float(peak[mask].max())
        if maximum == 0:
            raise InputError(f"{self.name}: no voxel inside the brain mask is ever positive; check scan and mask.")
        if held is not None:
            held *= mask
        if region is None and counts is not None:
            # Counted over the whole cube, as the brain was not known yet. Where frames are zero outside it those zeros
            # are taken off again; where they are not, counting takes a pass of its own.
            if mask_source == "nonzero" and not self.is_resampled and self._add_mean is None:
                counts[0] -= self.num_frames * np.count_nonzero(~mask)
            else:
                counts = None
        mean = (total / self.num_frames * mask).astype(np.float32)
        return _Statistics(mask, mask_source, mean, maximum, counts, held)

    @cached_property
    def _counts(self) -> np.ndarray:
        if self._statistics.counts is not None:
            return self._statistics.counts
        region = np.flatnonzero(self.mask)
        counts = np.zeros(_NUM_INTENSITY_BINS, dtype=np.int64)
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
            Without one: the BIDS `desc-brain_mask` beside the scan, else the voxels that are not zero in every frame
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
    volume_size = int(volume_size)
    source = open_source(scan, check_space)
    space = declared_space(source.path)
    if check_space and space is not None and is_native_space(space):
        raise InputError(
            f"{source.name}: its name says space-{space}, and only volumes in MNI152 space can be used; take the "
            "space-MNI152... file of the same run, or pass check_space=False (command line: --no-space-check)."
        )
    seconds = find_repetition_time(source, repetition_time)
    mask_source = "given"
    if mask is None and (mask := find_brain_mask_file(source.path)) is not None:
        mask_source = "bids"
    brain = None
    if mask is not None:
        brain = load_volume(mask, "mask", source) > 0.5
        if not brain.any():
            raise InputError(f"{source.name}: its brain mask ({_said(mask)}) is empty; give one with the brain in it.")
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
    import nibabel

    volumes = np.asarray(volumes, dtype=np.float32)
    if volumes.ndim != 4 or len(set(volumes.shape[1:])) != 1:
        raise ValueError(f"volumes must have shape (frames, V, V, V), not {volumes.shape}")
    source = run_or_scan._source if isinstance(run_or_scan, BoldRun) else open_source(run_or_scan, check_space=False)
    if repetition_time is None and isinstance(run_or_scan, BoldRun):
        repetition_time = run_or_scan.repetition_time
    seconds = find_repetition_time(source, repetition_time)
    way = way_to_grid(source.shape, source.affine, volumes.shape[1])
    data = np.empty((*source.shape, len(volumes)), dtype=np.float32, order="F")
    for index, volume in enumerate(volumes):
        data[..., index] = way.to_scan(volume)
    kind = nibabel.Nifti2Image if max(data.shape) > np.iinfo(np.int16).max else nibabel.Nifti1Image
    image = kind(data, source.affine)
    code = source.xform_code or 4  # 4: MNI152, which is what the grid is in
    image.set_sform(source.affine, code)
    image.set_qform(source.affine, code)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((*image.header.get_zooms()[:3], seconds))
    return image


def save_nifti(image: Any, path: str | Path) -> Path:
    """Write an image to `path` (.nii or .nii.gz), which never holds half of it: the name is given when it is whole.

    Raises:
        InputError: the name has another ending, or its folder is missing or not writable.
    """
    path = Path(path)
    ending = next((ending for ending in (".nii.gz", ".nii") if path.name.endswith(ending)), None)
    if ending is None:
        raise InputError(f"{path}: images are written as NIfTI; choose a name that ends in .nii.gz or .nii.")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first.")
    unfinished = path.with_name(f".{path.name.removesuffix(ending)}-{uuid.uuid4().hex}{ending}")
    try:
        image.to_file_map(image.filespec_to_file_map(unfinished))
        os.replace(unfinished, path)
    except PermissionError as error:
        raise InputError(f"{path}: the folder {path.parent} may not be written to; choose another.") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return path
