"""Intensities and the [-1, 1] that an autoencoder takes, both signals and their inverses, and percentiles by counting.

Pure functions of arrays; the run they come from is `volumes.BoldRun`.
"""

import numpy as np

__all__ = [
    "PERCENT_CHANGE_WINDOW",
    "count_intensities",
    "percent_change",
    "percentile_of_counts",
    "scale_intensity",
    "undo_percent_change",
    "unscale_intensity",
]

PERCENT_CHANGE_WINDOW = 0.0625
"""The change about the mean, as a fraction of it, that is mapped to 1; larger ones are clipped."""


def scale_intensity(volumes: np.ndarray, scale: float) -> np.ndarray:
    """Map intensities from [0, `scale`] to [-1, 1] as float32; what is outside is clipped, and 0 is exactly -1."""
    scaled = np.divide(volumes, np.float32(scale), dtype=np.float32)
    scaled *= np.float32(2)
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
    return np.clip(unclipped_percent_change(volumes, mean, has_change), -1, 1)


def undo_percent_change(volumes: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Turn changes `(n, V, V, V)` in units of +-6.25% of `mean` `(V, V, V)` back into intensities, float32."""
    intensities = np.multiply(volumes, np.float32(PERCENT_CHANGE_WINDOW), dtype=np.float32)
    intensities += np.float32(1)
    intensities *= mean.astype(np.float32, copy=False)
    return intensities


def unclipped_percent_change(volumes: np.ndarray, mean: np.ndarray, has_change: np.ndarray) -> np.ndarray:
    """`percent_change` before the clipping, for those who count what is clipped."""
    per_unit = np.zeros(mean.shape, dtype=np.float32)
    np.divide(1 / PERCENT_CHANGE_WINDOW, mean, out=per_unit, where=has_change)
    change = np.subtract(volumes, mean, dtype=np.float32)
    change *= per_unit
    return change


# The bits of a positive float32, read as an integer, grow with its value. Their upper 19 make bins of a fixed relative
# width of 1/2048, so that one pass of counting gives every percentile within 1/4096 of its value.
_DROPPED_BITS = 12
NUM_INTENSITY_BINS = 1 << (31 - _DROPPED_BITS)


def count_intensities(values: np.ndarray) -> np.ndarray:
    """Histogram of non-negative finite float32 values (any shape) in bins of 1/2048 relative width, int64."""
    bits = np.ascontiguousarray(values, dtype=np.float32).reshape(-1).view(np.int32) & 0x7FFFFFFF
    return np.bincount(bits >> _DROPPED_BITS, minlength=NUM_INTENSITY_BINS)


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
