"""Which voxels of a scan are brain, whether they are usable and in MNI152 space; all on the scan's own grid."""

import warnings
from functools import lru_cache

import numpy as np

from .errors import InputError

__all__ = ["Survey", "check_mni_space", "find_brain", "share_in_mni_brain"]

MIN_SHARE_IN_MNI_BRAIN = 0.83
"""A scan is in MNI152 space when at least this share of its brain is inside the MNI152 brain.

Measured in MNI152: a skull-stripped real run 0.990, slabs of 7 to 30 slices of it 0.983 to 0.998; under nilearn's EPI
mask an unstripped run brought to MNI by nine parameters 0.901. Elsewhere: brains 20 mm off at most 0.809, upside down
0.80, a native-space scan 0.649. An outline cannot reveal a slab that is moved within the brain or a brain turned front
to back about its own centre (0.87); an unstripped slab through the face can be refused wrongly (0.75).
"""

MAX_BRAIN_LITRES = 2.75
"""Largest volume of signal to be a brain: the MNI152 brain has 1.9 litres, a head 3 or more."""

AIR_INTENSITY = 0.1
MAX_AIR_SHARE = 0.15
"""The share of those voxels that may be darker than a tenth of the bright ones (their 98th percentile).

Of real stripped runs and slabs of them 0.000 to 0.016 are, of unstripped ones with air around the head 0.40 to 0.86.
"""

MAX_NEGATIVE_SHARE = 0.25
"""BOLD intensities are positive; half of the values of a demeaned run are not. Interpolation leaves a percent or so."""

MAX_MEAN_ABOUT_ZERO = 0.5
MIN_MEAN_ABOVE_ZERO = 5
"""In standard deviations over time: the mean of voxels that move about zero, and of those that move about an intensity.

Of two real runs' brain voxels 99% lie above 12 and half above 74; magnitude noise in air has 1.9 (Rayleigh).
"""


def find_brain(has_signal: np.ndarray, mean: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, str]:
    """Find the brain in a scan without a mask.

    Args:
        has_signal: `(X, Y, Z)` bool, the voxels that are not zero in every frame.
        mean: `(X, Y, Z)`, the mean over the run.
        affine: `(4, 4)`, voxel indices to mm.

    Returns:
        The mask `(X, Y, Z)` bool, which may be empty, and the method: "nonzero" where everything outside a brain-like
        region was set to zero before, else "epi" (`nilearn.masking.compute_epi_mask`).
    """
    litres = np.count_nonzero(has_signal) * abs(np.linalg.det(affine[:3, :3])) / 1e6
    if not has_signal.all() and litres <= MAX_BRAIN_LITRES:
        intensities = mean[has_signal]
        if np.mean(intensities < AIR_INTENSITY * np.percentile(intensities, 98)) <= MAX_AIR_SHARE:
            return has_signal, "nonzero"

    from nibabel import Nifti1Image
    from nilearn.masking import compute_epi_mask

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty mask is reported by the caller
        try:
            epi_mask = compute_epi_mask(Nifti1Image(mean.astype(np.float32), affine), exclude_zeros=True)
        except (ValueError, IndexError):  # too few voxels or intensities for a histogram
            return np.zeros(mean.shape, dtype=bool), "epi"
    return np.asarray(epi_mask.dataobj).astype(bool) & has_signal, "epi"


def check_mni_space(mask: np.ndarray, affine: np.ndarray, name: str) -> None:
    """Refuse a scan whose brain is not at the position of the MNI152 brain.

    Args:
        mask: `(X, Y, Z)` bool, the brain.
        affine: `(4, 4)`, voxel indices to mm.
        name: the scan in messages.

    Raises:
        InputError: less than `MIN_SHARE_IN_MNI_BRAIN` of the mask is inside the MNI152 brain.
    """
    inside = share_in_mni_brain(mask, affine)
    if inside < MIN_SHARE_IN_MNI_BRAIN:
        raise InputError(
            f"{name}: only {inside:.0%} of its brain is inside the MNI152 brain; normalise it to MNI152 first, give "
            "mask= (command line: --mask), or pass check_space=False (command line: --no-space-check)."
        )


def share_in_mni_brain(mask: np.ndarray, affine: np.ndarray) -> float:
    """The share, 0 to 1, of a mask's voxels `(X, Y, Z)` bool inside nilearn's MNI152 brain, at the nearest voxel."""
    template, template_affine = _mni_brain()
    to_template = np.linalg.inv(template_affine) @ affine
    voxels = np.rint(to_template[:3, :3] @ np.stack(np.nonzero(mask)) + to_template[:3, 3:]).astype(np.int64)
    in_grid = ((voxels >= 0) & (voxels < np.array(template.shape)[:, None])).all(axis=0)
    return np.count_nonzero(template[tuple(voxels[:, in_grid])]) / len(in_grid)


@lru_cache(maxsize=1)
def _mni_brain() -> tuple[np.ndarray, np.ndarray]:
    from nilearn.datasets import load_mni152_brain_mask

    image = load_mni152_brain_mask(resolution=2)
    return np.asarray(image.dataobj).astype(bool), image.affine


class Survey:
    """What one pass over a scan's own grid finds out: where there is signal, and what is wrong with it.

    Args:
        name: the scan in messages.
        shape: `(X, Y, Z)`.
        find_brain: whether the brain is to be found, which takes sums that a given mask makes needless.
    """

    def __init__(self, name: str, shape: tuple[int, int, int], find_brain: bool):
        self._name = name
        self._num_frames = 0
        self._has_signal = np.zeros(shape, dtype=bool, order="F")
        self._is_bad = np.zeros(shape, dtype=bool, order="F")
        self._num_negative = np.zeros(shape, dtype=np.int32, order="F")
        self._totals = tuple(np.zeros(shape, order="F") for _ in range(2)) if find_brain else None
        self._first_frame: np.ndarray | None = None
        self._is_constant = True

    def add(self, frame: np.ndarray, add_mean: np.ndarray | None) -> np.ndarray:
        """Take in the next frame `(X, Y, Z)` float32; return it with NaN and Inf set to 0 and the mean added."""
        is_finite = np.isfinite(frame)
        if not is_finite.all():
            self._is_bad |= ~is_finite
            frame = np.where(is_finite, frame, np.float32(0))
        self._has_signal |= frame != 0
        if self._first_frame is None:
            self._first_frame = frame
        self._is_constant = self._is_constant and np.array_equal(frame, self._first_frame)
        if add_mean is not None:
            frame = frame + add_mean
        if frame.min() < 0:
            self._num_negative += frame < 0
        if self._totals is not None:
            total, total_squares = self._totals
            total += frame
            total_squares += np.square(frame, dtype=np.float64)
        self._num_frames += 1
        return frame

    def find_brain(self, affine: np.ndarray) -> tuple[np.ndarray, str]:
        """Find the brain as `find_brain` does, with `affine` `(4, 4)` from voxel indices to mm.

        Raises:
            InputError: there is no signal, no brain, or the run was demeaned.
        """
        if not self._has_signal.any():
            raise InputError(f"{self._name}: every voxel of every frame is zero or NaN; check how it was made.")
        mean, mean_square = (total / self._num_frames for total in self._totals)
        self._check_about_zero(mean, mean_square - mean**2)
        brain, method = find_brain(self._has_signal, mean, affine)
        if not brain.any():
            raise InputError(f"{self._name}: no brain was found in it; give mask= (command line: --mask).")
        return brain, method

    def check(self, brain: np.ndarray) -> None:
        """Refuse a run without usable values inside the brain mask `(X, Y, Z)` bool."""
        if count := np.count_nonzero(self._is_bad & brain):
            raise InputError(
                f"{self._name}: {count:,} voxels inside the brain are NaN or infinite in some frame; repair them, or "
                "give a mask= (command line: --mask) without them."
            )
        if not self._has_signal[brain].any():
            raise InputError(f"{self._name}: every voxel inside the brain mask is zero; check scan and mask.")
        self._check_negative(brain)
        if self._is_constant and self._num_frames > 1:
            warnings.warn(f"{self._name}: all {self._num_frames} frames are equal: no BOLD signal.", stacklevel=2)

    def _check_about_zero(self, mean: np.ndarray, variance: np.ndarray) -> None:
        """Refuse a demeaned run, in which no brain can be found since its intensities are gone.

        Noise about zero is fine in air, and a background that is never negative does not hide a demeaned brain: the
        voxels that change most decide.
        """
        is_about_zero = mean**2 < MAX_MEAN_ABOUT_ZERO**2 * variance
        is_above_zero = (mean > 0) & (mean**2 > MIN_MEAN_ABOVE_ZERO**2 * variance)
        if variance[is_above_zero].sum() > variance[is_about_zero].sum():
            return
        self._check_negative(self._has_signal)
        if is_about_zero.any():
            self._check_negative(is_about_zero)

    def _check_negative(self, region: np.ndarray) -> None:
        share = self._num_negative[region].sum(dtype=np.int64) / (self._num_frames * np.count_nonzero(region))
        if share > MAX_NEGATIVE_SHARE:
            raise InputError(
                f"{self._name}: {share:.0%} of its values are negative, so it was demeaned or z-scored; use the run "
                "before that step, or pass its mean image as add_mean= (command line: --add-mean)."
            )
