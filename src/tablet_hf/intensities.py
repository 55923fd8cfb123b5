"""Map intensities to the [-1, 1] that an autoencoder takes and back, and percentiles by counting.

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
"""The change about the mean, as a fraction of it, that is mapped to 1."""


def scale_intensity(volumes: np.ndarray, scale: float) -> np.ndarray:
    """Map intensities from [0, `scale`] to [-1, 1] as float32; others are clipped, and 0 becomes exactly -1."""
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
    """Express frames as their change about the run's mean, in units of 6.25% of it, not clipped.

    Args:
        volumes: `(n, V, V, V)` intensities.
        mean: `(V, V, V)`, the run's mean.
        has_change: `(V, V, V)` bool, where the mean is large enough to divide by; elsewhere the result is 0.

    Returns:
        `(n, V, V, V)` float32.
    """
    per_unit = np.zeros(mean.shape, dtype=np.float32)
    np.divide(1 / PERCENT_CHANGE_WINDOW, mean, out=per_unit, where=has_change)
    change = np.subtract(volumes, mean, dtype=np.float32)
    change *= per_unit
    return change


def undo_percent_change(volumes: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Turn changes `(n, V, V, V)` in units of 6.25% of `mean` `(V, V, V)` back into intensities, float32."""
    intensities = np.multiply(volumes, np.float32(PERCENT_CHANGE_WINDOW), dtype=np.float32)
    intensities += np.float32(1)
    intensities *= mean.astype(np.float32, copy=False)
    return intensities


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
        raise ValueError(f"a percentile is between 0 and 100, not {q!r}")
    cumulative = np.cumsum(counts)
    rank = q / 100 * (cumulative[-1] - 1)
    bins = np.searchsorted(cumulative, (np.floor(rank), np.ceil(rank)), side="right").astype(np.int32)
    centres = (bins << _DROPPED_BITS | 1 << (_DROPPED_BITS - 1)).view(np.float32).astype(np.float64)
    low, high = np.where(bins == 0, 0.0, centres)  # zero, and denormal numbers that no scanner writes
    return float(low + (high - low) * (rank - np.floor(rank)))
