"""What a linear model reaches without TABLeT: on functional connectivity, or on any other table of features.

Trait prediction by large models has often hardly beaten functional connectivity with a linear model, so a result is
told with that baseline beside it, on the same people.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

__all__ = [
    "connectivity_features",
    "linear_classifier",
    "power_regions",
    "region_time_courses",
    "spheres_to_labels",
]

POWER_RADIUS_MM = 5.0
"""Radius of the 264 spheres of Power et al. 2011 (Neuron 72:665), 10 mm wide."""


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


def region_time_courses(
    scans: Iterable[Any], labels: Any, on_progress: Callable[[int], None] | None = None
) -> list[np.ndarray]:
    """Average each scan in the regions of a label image and standardise every course over time.

    Args:
        scans: 4D images or paths, on any grid (labels are resampled to it where it is another).
        labels: a label image, 0 for no region.
        on_progress: is told how many scans are done.

    Returns:
        For each scan `(frames, regions)`, the regions in the order of their labels.
    """
    from nilearn.maskers import NiftiLabelsMasker

    masker = NiftiLabelsMasker(labels, standardize="zscore_sample", resampling_target="data", reports=False)
    courses = []
    for scan in scans:
        courses.append(masker.fit_transform(scan))
        if on_progress is not None:
            on_progress(len(courses))
    return courses


def connectivity_features(courses: Sequence[np.ndarray], kind: str = "correlation") -> np.ndarray:
    """Functional connectivity of each scan as a row of features.

    Args:
        courses: for each scan `(frames, regions)`.
        kind: as for `nilearn.connectome.ConnectivityMeasure`; only kinds that look at one scan at a time, such as
            "correlation", may be computed for training and held-out people together.

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


def linear_classifier(num_folds: int = 4, seed: int = 0) -> Any:
    """A scikit-learn estimator for more features than people: features are standardised on the training people, and the
    ridge penalty of a logistic regression is chosen by cross-validation among them, in `num_folds` parts."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        {"logisticregression__C": np.logspace(-6, 0, 4)},
        scoring="neg_log_loss",
        cv=StratifiedKFold(num_folds, shuffle=True, random_state=seed),
    )
