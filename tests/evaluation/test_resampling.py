"""Metrics of many draws at once against scikit-learn and scipy on each draw alone."""

import itertools
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from tablet_hf.evaluation.metrics import classification_metrics, regression_metrics
from tablet_hf.evaluation.resampling import (
    bootstrap_counts,
    permutation_p_value,
    weighted_classification_metrics,
    weighted_regression_metrics,
)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def draws_of(num_entries, num_draws=12, seed=0):
    weights = np.concatenate(list(bootstrap_counts(num_entries, num_draws, seed)))
    return weights, [np.repeat(np.arange(num_entries), row.astype(int)) for row in weights]


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_weighted_classes_are_repeated_rows(num_classes):
    rng = np.random.default_rng(num_classes)
    labels = rng.integers(0, num_classes, 20)
    probabilities = rng.dirichlet(np.ones(num_classes), 20).round(1)  # ties
    weights, draws = draws_of(20)
    found = weighted_classification_metrics(labels, probabilities, weights)
    expected = [classification_metrics(labels[rows], probabilities[rows]) for rows in draws]
    assert found.keys() == {*expected[0], "brier"}
    for name in expected[0]:
        assert found[name] == pytest.approx([each[name] for each in expected], nan_ok=True, abs=1e-12), name


def test_weighted_brier_score_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels, positive = np.r_[0, 1, rng.integers(0, 2, 20)], rng.random(22)
    weights, draws = draws_of(22)
    found = weighted_classification_metrics(labels, np.stack([1 - positive, positive], 1), weights)["brier"]
    assert found == pytest.approx([sk.brier_score_loss(labels[rows], positive[rows], pos_label=1) for rows in draws])
    # Of more classes: the squares summed over the classes, so that a sure mistake costs 2.
    sure = weighted_classification_metrics(np.array([0, 1]), np.eye(3)[[0, 2]], np.ones((1, 2)))["brier"]
    assert sure.tolist() == [1.0]


@pytest.mark.parametrize(("centre", "scale"), [(0.0, 1.0), (1e6, 1.0), (0.0, 1e-6)])
def test_weighted_regression_is_repeated_rows(centre, scale):
    rng = np.random.default_rng(0)
    targets = centre + scale * rng.standard_normal(25)
    predictions = centre + 0.5 * (targets - centre) + scale * rng.standard_normal(25)
    weights, draws = draws_of(25)
    found = weighted_regression_metrics(targets, predictions, weights)
    for name in ("mse", "mae", "pearson_r", "r2"):
        expected = [regression_metrics(targets[rows], predictions[rows])[name] for rows in draws]
        assert found[name] == pytest.approx(expected, rel=1e-6), name
    lines = [stats.linregress(predictions[rows], targets[rows]) for rows in draws]
    assert found["slope"] == pytest.approx([line.slope for line in lines], rel=1e-6)
    assert found["intercept"] == pytest.approx([line.intercept for line in lines], rel=1e-5)


def test_draws_that_lack_something_are_nan():
    labels, probabilities = np.array([0, 1]), np.array([[0.8, 0.2], [0.3, 0.7]])
    found = weighted_classification_metrics(labels, probabilities, np.array([[2.0, 0.0], [1.0, 1.0]]))
    assert found["accuracy"].tolist() == [1, 1]
    assert np.isnan([found[name][0] for name in ("auroc", "balanced_accuracy", "sensitivity", "f1")]).all()
    assert found["auroc"][1] == found["balanced_accuracy"][1] == 1
    found = weighted_regression_metrics(np.array([1.1, 2.2]), np.array([1.3, 2.1]), np.array([[2.0, 0.0], [0.0, 2.0]]))
    assert np.isnan([found[name] for name in ("pearson_r", "r2", "slope")]).all()
    assert found["mae"] == pytest.approx([0.2, 0.1])


def test_many_subjects_are_drawn_in_several_blocks():
    blocks = list(bootstrap_counts(100_000, 50, seed=1))
    assert len(blocks) > 1
    assert np.concatenate(blocks).shape == (50, 100_000)
    assert (np.concatenate(blocks).sum(axis=1) == 100_000).all()
    assert len(np.unique(np.concatenate(blocks)[:, :20], axis=0)) == 50


def test_targets_are_permuted_within_blocks_only():
    # In each block of two the true order is one of two; over both blocks one of four, over all entries one of six.
    targets, merits = np.array([0, 1, 0, 1]), np.stack([np.zeros(4), [0.0, 1, 2, 4]], axis=1)
    found = permutation_p_value(targets, merits, np.arange(4), ["b", "b", "a", "a"], 8000, 0)
    assert found == pytest.approx(1 / 4, abs=0.02)
    every = [sum(merits[list(places), 1]) >= 5 for places in itertools.combinations(range(4), 2)]
    assert permutation_p_value(targets, merits, np.arange(4), [0] * 4, 8000, 0) == pytest.approx(
        np.mean(every), abs=0.02
    )


def test_the_p_value_counts_permutations_that_fit_as_well():
    rng = np.random.default_rng(0)
    targets, predictions = rng.standard_normal((2, 6))
    predictions += targets
    observed = np.corrcoef(targets, predictions)[0, 1]
    everything = [np.corrcoef(order, predictions)[0, 1] for order in itertools.permutations(targets)]
    exact = np.mean(np.array(everything) >= observed - 1e-12)
    found = permutation_p_value(targets, predictions - predictions.mean(), np.arange(6), [0] * 6, 20_000, 0)
    assert found == pytest.approx(exact, rel=0.15)


def test_a_subject_of_several_folds_is_permuted_whole():
    # Two subjects with two entries each have two orders, so p is about 1/2; four single entries have six.
    targets, subjects = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1])
    merits = np.stack([np.zeros(4), np.arange(4.0)], axis=1)
    assert permutation_p_value(targets, merits, subjects, [0, 0], 4000, 0) == pytest.approx(1 / 2, abs=0.03)
    assert permutation_p_value(targets, merits, np.arange(4), [0] * 4, 4000, 0) == pytest.approx(1 / 6, abs=0.03)
    mixed = np.array([2, 0, 3, 1])
    found = permutation_p_value(targets[mixed], merits[mixed], subjects[mixed], [0, 0], 4000, 0)
    assert found == pytest.approx(1 / 2, abs=0.03)
