"""Which voxels of a scan are brain, whether they can be used, and whether they lie where the MNI152 brain does.

All of it on the scan's own grid, before anything is moved or resampled.
"""

import warnings
from functools import lru_cache

import numpy as np

from .errors import InputError
from .scans import BoldSource

__all__ = ["Survey", "check_mni_space", "find_brain", "mni_overlap", "zero_where_not_finite"]

MIN_SHARE_IN_MNI_BRAIN = 0.83
"""A scan is taken to be in MNI152 space when at least this share of its brain is inside the MNI152 brain.

Measured with `mni_overlap`. In place: a skull-stripped real run 0.990, slabs of 7 to 30 slices of it 0.983 to 0.998,
fMRIPrep's template mask 0.988; under nilearn's EPI mask fMRIPrep's unstripped EPI template 0.956 and an unstripped run
brought to MNI by nine parameters 0.901. Out of place: whole brains 20 mm off along any axis at most 0.809, upside down
0.80, a native-space scan 0.649, axes swapped 0.55 to 0.82 (about the centre: up to 0.85). A slab that is moved within
the brain and a brain turned about its own centre (front to back 0.87) cannot be told by an outline and are not refused;
an unstripped slab through the face can be refused wrongly (0.75), which a mask of its own prevents.
"""

MAX_BRAIN_LITRES = 2.75
"""What the voxels that are not always zero may occupy to be a brain: the MNI152 brain has 1.9 litres, a head 3 or more.
"""

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
    """Tell the brain from the rest of a scan that no mask came with.

    Args:
        has_signal: `(X, Y, Z)` bool, the voxels that are not zero in every frame.
        mean: `(X, Y, Z)`, the mean over the run.
        affine: `(4, 4)`, voxel indices to mm.

    Returns:
        The mask `(X, Y, Z)` bool and how it was found: "nonzero" where everything outside a brain-like region was set
        to zero before, else "epi" (`nilearn.masking.compute_epi_mask`). The mask may be empty.
    """
    litres = np.count_nonzero(has_signal) * abs(np.linalg.det(affine[:3, :3])) / 1e6
    intensities = mean[has_signal]
    if not has_signal.all() and litres <= MAX_BRAIN_LITRES:
        air_share = np.mean(intensities < AIR_INTENSITY * np.percentile(intensities, 98))
        if air_share <= MAX_AIR_SHARE:
            return has_signal, "nonzero"

    from nibabel import Nifti1Image
    from nilearn.masking import compute_epi_mask

    image = Nifti1Image(mean.astype(np.float32), affine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty mask is for the caller to evaluate
        try:
            mask = np.asarray(compute_epi_mask(image, exclude_zeros=True).dataobj).astype(bool)
        except (ValueError, IndexError):  # too few voxels or intensities for a histogram
            mask = np.zeros(mean.shape, dtype=bool)
    return mask & has_signal, "epi"


def check_mni_space(mask: np.ndarray, source: BoldSource) -> None:
    """Refuse a scan whose brain does not lie where the MNI152 brain is.

    Raises:
        InputError: less than `MIN_SHARE_IN_MNI_BRAIN` of the mask `(X, Y, Z)` is inside the MNI152 brain.
    """
    inside, _ = mni_overlap(mask, source.affine)
    if inside < MIN_SHARE_IN_MNI_BRAIN:
        raise InputError(
            f"{source.name}: only {inside:.0%} of the brain found in it lies inside the MNI152 brain "
            f"({MIN_SHARE_IN_MNI_BRAIN:.0%} is asked for), so it is not in MNI152 space or its affine is wrong; "
            "normalise it first (fMRIPrep: --output-spaces MNI152NLin2009cAsym:res-2), give mask= (command line: "
            "--mask) if only the mask is bad, or pass check_space=False (command line: --no-space-check)."
        )


def mni_overlap(mask: np.ndarray, affine: np.ndarray) -> tuple[float, float]:
    """How well a brain mask agrees with the MNI152 brain, wherever on either grid it is.

    Args:
        mask: `(X, Y, Z)` bool, with at least one voxel.
        affine: `(4, 4)`, voxel indices to mm.

    Returns:
        The share of the mask's voxels that lie inside nilearn's MNI152 brain mask, and the share of that brain which
        the mask covers; both in [0, 1], read at the nearest voxel.
    """
    template, template_affine = _mni_brain()
    inside = _nearest(template, template_affine, _places_mm(mask, affine))
    covered = _nearest(mask, affine, _places_mm(template, template_affine))
    return float(inside.mean()), float(covered.mean())


@lru_cache(maxsize=1)
def _mni_brain() -> tuple[np.ndarray, np.ndarray]:
    from nilearn.datasets import load_mni152_brain_mask

    image = load_mni152_brain_mask(resolution=2)
    return np.asarray(image.dataobj).astype(bool), image.affine


def _places_mm(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Millimetre coordinates `(3, n)` of the voxels of a mask."""
    return affine[:3, :3] @ np.stack(np.nonzero(mask)) + affine[:3, 3:]


def _nearest(mask: np.ndarray, affine: np.ndarray, places_mm: np.ndarray) -> np.ndarray:
    """The mask's values `(n,)` at places `(3, n)` in mm, False outside its grid."""
    to_voxel = np.linalg.inv(affine)
    voxels = np.rint(to_voxel[:3, :3] @ places_mm + to_voxel[:3, 3:]).astype(np.int64)
    in_grid = ((voxels >= 0) & (voxels < np.array(mask.shape)[:, None])).all(axis=0)
    values = np.zeros(places_mm.shape[1], dtype=bool)
    values[in_grid] = mask[tuple(voxels[:, in_grid])]
    return values


def zero_where_not_finite(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The frame with NaN and infinite voxels set to 0, and where those were (None if nowhere)."""
    is_finite = np.isfinite(frame)
    if is_finite.all():
        return frame, None
    return np.where(is_finite, frame, np.float32(0)), ~is_finite


class Survey:
    """What one pass over a scan's own grid tells: where there is signal, and what is wrong with it.

    `brain` is the mask `(X, Y, Z)` where it is known beforehand, which saves the sums that finding it takes.
    """

    def __init__(self, source: BoldSource, brain: np.ndarray | None):
        self._source = source
        self._num_frames = 0
        self.has_signal = np.zeros(source.shape, dtype=bool, order="F")
        self._total = np.zeros(source.shape, order="F") if brain is None else None
        self._total_squares = np.zeros(source.shape, order="F") if brain is None else None
        self._num_negative: np.ndarray | None = None
        self._num_nonfinite: np.ndarray | None = None
        self._first_nonfinite: np.ndarray | None = None
        self._first_frame: np.ndarray | None = None
        self._is_constant = True

    def add(self, frame: np.ndarray, add_mean: np.ndarray | None) -> np.ndarray:
        """Take in the next frame `(X, Y, Z)` float32; returns it with NaN and Inf set to 0 and the mean added."""
        frame, is_bad = zero_where_not_finite(frame)
        if is_bad is not None:
            self._note_nonfinite(is_bad)
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
        if self._total is not None and self._total_squares is not None:
            self._total += frame
            self._total_squares += np.square(frame, dtype=np.float64)
        self._num_frames += 1
        return frame

    def _note_nonfinite(self, is_bad: np.ndarray) -> None:
        if self._num_nonfinite is None or self._first_nonfinite is None:
            self._num_nonfinite = np.zeros(is_bad.shape, dtype=np.int32, order="F")
            self._first_nonfinite = np.zeros(is_bad.shape, dtype=np.int32, order="F")
        self._first_nonfinite[is_bad & (self._num_nonfinite == 0)] = self._num_frames
        self._num_nonfinite += is_bad

    def find_brain(self) -> tuple[np.ndarray, str]:
        name = self._source.name
        if not self.has_signal.any():
            raise InputError(f"{name}: every voxel of every frame is zero or not a number; check how it was made.")
        mean = self._total / self._num_frames
        self._check_about_zero(mean)
        brain, how = find_brain(self.has_signal, mean, self._source.affine)
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
                f"in frame {frame}; repair them, or give a mask= (command line: --mask) that leaves those voxels out."
            )
        if not self.has_signal[brain].any():
            raise InputError(f"{name}: every voxel inside the brain mask is zero in every frame; check scan and mask.")
        self._check_negative(brain, "the brain's")
        if self._is_constant and self._num_frames > 1:
            warnings.warn(
                f"{name}: all {self._num_frames} frames are the same, so there is no BOLD signal.", stacklevel=2
            )

    def _check_about_zero(self, mean: np.ndarray) -> None:
        """Refuse a demeaned run before a brain is looked for, which has no intensities to be found by.

        Noise about zero is no fault in the air, and a background that is never negative does not hide that the brain
        is: whatever changes most in the scan tells.
        """
        variance = self._total_squares / self._num_frames - mean**2
        is_about_zero = mean**2 < MAX_MEAN_ABOUT_ZERO**2 * variance
        is_above_zero = (mean > 0) & (mean**2 > MIN_MEAN_ABOVE_ZERO**2 * variance)
        if variance[is_above_zero].sum() > variance[is_about_zero].sum():
            return
        self._check_negative(self.has_signal, "its")
        if is_about_zero.any():
            self._check_negative(is_about_zero, "its changing voxels'")

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
