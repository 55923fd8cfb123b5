"""Metrics against scikit-learn, scipy and numbers worked out by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn import metrics as sk

from tablet_hf.training.metrics import (
    accuracy_interval,
    accuracy_p_value,
    binary_metrics,
    chance_accuracy,
    compute_binary_metrics,
    compute_regression_metrics,
    permutation_p_value,
    positive_probabilities,
    regression_metrics,
)


@pytest.mark.parametrize("seed", range(5))
def test_binary_metrics_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels, probabilities = rng.integers(0, 2, 40), rng.random(40).round(1)  # rounded: ties, and some exactly 0.5
    predicted = (probabilities >= 0.5).astype(int)
    assert binary_metrics(labels, probabilities) == pytest.approx(
        {
            "accuracy": sk.accuracy_score(labels, predicted),
            "auroc": sk.roc_auc_score(labels, probabilities),
            "f1": sk.f1_score(labels, predicted),
            "sensitivity": sk.recall_score(labels, predicted),
            "specificity": sk.recall_score(labels, predicted, pos_label=0),
        }
    )


def test_binary_metrics_by_hand():
    found = binary_metrics(np.array([1, 1, 0, 0]), np.array([0.9, 0.4, 0.6, 0.1]))
    assert found == {"accuracy": 0.5, "auroc": 0.75, "f1": 0.5, "sensitivity": 0.5, "specificity": 0.5}


def test_one_class_alone_has_no_auroc():
    found = binary_metrics(np.zeros(3), np.array([0.1, 0.2, 0.3]))
    assert found["accuracy"] == found["specificity"] == 1
    assert np.isnan([found["auroc"], found["f1"], found["sensitivity"]]).all()


def test_what_is_not_binary_or_of_one_length_is_refused():
    with pytest.raises(ValueError, match="0 or 1"):
        binary_metrics(np.array([0, 2]), np.array([0.1, 0.2]))
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        binary_metrics(np.zeros(3), np.zeros(2))


def test_regression_metrics_by_hand():
    found = regression_metrics(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 5.0]))
    assert found == pytest.approx({"mse": 5 / 3, "mae": 1.0, "pearson_r": 3 / np.sqrt(12)})
    assert np.isnan(regression_metrics(np.array([1.0, 2.0]), np.array([1.0, 1.0]))["pearson_r"])


def test_chance_is_the_larger_class():
    assert chance_accuracy(np.array([1, 1, 1, 0])) == 0.75
    assert chance_accuracy(np.array([0, 0, 1, 0])) == 0.75


def test_interval_and_p_value_of_an_accuracy_by_hand():
    # All 12 right: the lower end solves x^12 = 0.025; by guessing that happens once in 2^12.
    assert accuracy_interval(12, 12) == pytest.approx((0.025 ** (1 / 12), 1.0))
    assert accuracy_p_value(12, 12, 0.5) == pytest.approx(0.5**12)
    assert accuracy_p_value(0, 12, 0.5) == 1


def test_permutation_p_value_comes_near_the_exact_one():
    # Perfect order of 4 and 4: one of the 70 ways to place the positives.
    labels, scores = np.repeat([0, 1], 4), np.arange(8.0)
    assert permutation_p_value(labels, scores, num_permutations=20_000) == pytest.approx(1 / 70, rel=0.15)
    assert permutation_p_value(labels, -scores, num_permutations=100) == 1


def test_permutation_p_value_of_noise_is_uniform():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 10)
    values = [permutation_p_value(labels, rng.random(20), num_permutations=99, seed=s) for s in range(200)]
    assert np.mean(np.array(values) <= 0.1) == pytest.approx(0.1, abs=0.06)


def test_one_logit_and_two_mean_the_same():
    odds = np.array([-800.0, -1.0, 0.0, 2.0, 800.0])
    expected = [0, 1 / (1 + np.e), 0.5, 1 / (1 + np.exp(-2)), 1]
    assert positive_probabilities(odds[:, None]) == pytest.approx(expected)
    assert positive_probabilities(np.stack([odds - odds, odds], axis=1)) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"\(5, 3\)"):
        positive_probabilities(np.zeros((5, 3)))


def test_trainer_gets_the_same_numbers():
    logits, labels = np.array([[2.0], [-1.0], [0.5]]), np.array([[1.0], [0.0], [0.0]])
    found = compute_binary_metrics(SimpleNamespace(predictions=logits, label_ids=labels))
    assert found == binary_metrics(labels[:, 0], positive_probabilities(logits))
    found = compute_regression_metrics(SimpleNamespace(predictions=(logits, None), label_ids=labels))
    assert found == regression_metrics(labels[:, 0], logits[:, 0])
