"""The functional-connectivity baseline on images whose connectivity is known."""

import nibabel
import numpy as np
import pytest

from tablet_hf.training.baselines import (
    connectivity_features,
    linear_classifier,
    power_regions,
    region_time_courses,
    spheres_to_labels,
)

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def blank(shape):
    return nibabel.Nifti1Image(np.zeros(shape, dtype=np.float32), AFFINE)


def test_spheres_are_where_they_were_put():
    labels = spheres_to_labels([[10, 10, 10], [10, 10, 26]], blank((12, 12, 20)), radius_mm=4)
    found = np.asarray(labels.dataobj)
    assert found[5, 5, 5] == 1
    assert found[5, 5, 13] == 2
    # Lattice points within two voxels of a centre: 1 + 6 + 12 + 8 + 6.
    assert np.count_nonzero(found == 1) == np.count_nonzero(found == 2) == 33


def test_where_spheres_overlap_the_nearer_centre_wins():
    found = np.asarray(spheres_to_labels([[4, 4, 4], [10, 4, 4]], blank((8, 5, 5)), radius_mm=5).dataobj)
    assert found[:, 2, 2].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]


def test_all_regions_of_power_lie_on_the_template():
    from nilearn.datasets import load_mni152_template

    labels = np.asarray(power_regions(load_mni152_template(resolution=2)).dataobj)
    assert set(np.unique(labels)) == set(range(265))


def test_time_courses_and_connectivity_are_those_that_went_in():
    rng = np.random.default_rng(0)
    courses = rng.standard_normal((30, 3))
    courses[:, 1] = courses[:, 0] + 0.5 * courses[:, 1]
    labels = spheres_to_labels([[6, 6, 6], [6, 6, 18], [6, 6, 30]], blank((7, 7, 19)), radius_mm=3)
    regions = np.asarray(labels.dataobj)
    data = np.zeros((*regions.shape, 30), dtype=np.float32)
    for region in range(3):
        data[regions == region + 1] = 100 + courses[:, region]

    found = region_time_courses([nibabel.Nifti1Image(data, AFFINE)], labels)
    expected = (courses - courses.mean(0)) / courses.std(0, ddof=1)
    assert found[0] == pytest.approx(expected, abs=1e-4)
    r = np.corrcoef(courses.T)
    assert connectivity_features(found)[0] == pytest.approx([r[1, 0], r[2, 0], r[2, 1]], abs=1e-4)


def test_a_region_without_signal_goes_with_nothing():
    courses = np.random.default_rng(0).standard_normal((10, 3))
    courses[:, 2] = 0
    features = connectivity_features([courses])
    assert features[0, 1:].tolist() == [0, 0]
    assert features[0, 0] != 0


def test_the_linear_model_finds_a_difference_and_invents_none():
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], 30)
    noise = rng.standard_normal((60, 300))
    with_signal = noise + labels[:, None] * (np.arange(300) < 30)
    scores = [
        linear_classifier().fit(features[:40], labels[:40]).predict(features[40:]) == labels[40:]
        for features in (with_signal, noise)
    ]
    assert scores[0].mean() > 0.85
    assert 0.2 < scores[1].mean() < 0.8
