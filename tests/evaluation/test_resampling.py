"""Thousands of draws at once are what scikit-learn and scipy say of each draw alone."""

import itertools
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from tablet_hf.evaluation import resampling
from tablet_hf.evaluation.metrics import classification_metrics, regression_metrics
from tablet_hf.evaluation.resampling import (
    bootstrap_counts,
    shuffled_p_value,
    shuffles,
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


def assert_same(found, expected):
    """`found`: a name to `(draws,)`; `expected`: of each draw a name to a number."""
    for name in expected[0]:
        assert found[name] == pytest.approx([each[name] for each in expected], nan_ok=True, abs=1e-12), name


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_weighted_classes_are_repeated_rows(num_classes):
    rng = np.random.default_rng(num_classes)
    labels = rng.integers(0, num_classes, 20)
    probabilities = rng.dirichlet(np.ones(num_classes), 20).round(1)  # ties
    weights, draws = draws_of(20)
    found = weighted_classification_metrics(labels, probabilities, weights)
    expected = [classification_metrics(labels[rows], probabilities[rows]) for rows in draws]
    assert_same(found, expected)
    assert found.keys() == {*expected[0], "brier"}


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


def test_a_bootstrap_draws_as_many_people_as_there_are_each_alike():
    counts = np.concatenate(list(bootstrap_counts(50, 4000, seed=3)))
    assert counts.shape == (4000, 50)
    assert (counts.sum(1) == 50).all()
    assert counts.mean(0) == pytest.approx(np.ones(50), abs=0.1)
    assert (counts == 0).mean() == pytest.approx((1 - 1 / 50) ** 50, abs=0.01)


def test_blocks_of_draws_change_nothing_but_memory(monkeypatch):
    whole = np.concatenate(list(bootstrap_counts(20, 30, seed=1)))
    monkeypatch.setattr(resampling, "BLOCK_NUMBERS", 100)
    blocks = list(bootstrap_counts(20, 30, seed=1))
    assert {len(block) for block in blocks} == {5}
    assert (np.concatenate(blocks) == whole).all()


def test_people_are_exchanged_within_their_block_only_and_alike():
    blocks = ["b", "a", "b", "c", "a", "b"]
    found = np.concatenate(list(shuffles(6, blocks, 6000, seed=0)))
    assert (np.sort(found, axis=1) == np.arange(6)).all()
    names = np.array(blocks)
    assert (names[found] == names).all()
    orders, counts = np.unique(found[:, [0, 2, 5]], axis=0, return_counts=True)
    assert sorted(map(tuple, orders.tolist())) == sorted(itertools.permutations([0, 2, 5]))
    assert counts / 6000 == pytest.approx(np.full(6, 1 / 6), abs=0.02)


def test_the_p_value_counts_all_exchanges_that_do_as_well():
    rng = np.random.default_rng(0)
    targets, predictions = rng.standard_normal((2, 6))
    predictions += targets
    observed = np.corrcoef(targets, predictions)[0, 1]
    everything = [np.corrcoef(order, predictions)[0, 1] for order in itertools.permutations(targets)]
    exact = np.mean(np.array(everything) >= observed - 1e-12)
    found = shuffled_p_value(targets, predictions - predictions.mean(), np.arange(6), None, 20_000, 0)
    assert found == pytest.approx(exact, rel=0.15)


def test_a_person_of_several_folds_is_exchanged_whole():
    # Of two people with two entries each there are two ways, the true one and the exchange, so p is about 1/2; entries
    # that went their own ways would have six.
    targets, people = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1])
    merits = np.stack([np.zeros(4), np.arange(4.0)], axis=1)
    assert shuffled_p_value(targets, merits, people, None, 4000, 0) == pytest.approx(1 / 2, abs=0.03)
    assert shuffled_p_value(targets, merits, np.arange(4), None, 4000, 0) == pytest.approx(1 / 6, abs=0.03)
    # The order of the entries is nothing but the order of the table.
    mixed = np.array([2, 0, 3, 1])
    found = shuffled_p_value(targets[mixed], merits[mixed], people[mixed], None, 4000, 0)
    assert found == pytest.approx(1 / 2, abs=0.03)
