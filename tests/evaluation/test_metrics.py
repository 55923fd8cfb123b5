"""Metrics against scikit-learn, scipy and numbers worked out by hand."""

import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

import tablet_hf
from tablet_hf import TabletConfig
from tablet_hf.errors import InputError
from tablet_hf.evaluation.metrics import (
    accuracy_interval,
    accuracy_p_value,
    binary_metrics,
    chance_accuracy,
    class_probabilities,
    classification_metrics,
    compute_binary_metrics,
    compute_multiclass_metrics,
    compute_regression_metrics,
    load_metric,
    metrics_for,
    multiclass_metrics,
    permutation_p_value,
    positive_probabilities,
    regression_metrics,
)

BINARY = {"accuracy", "balanced_accuracy", "auroc", "f1", "sensitivity", "specificity"}


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --- two classes


def by_counting(labels, probabilities):
    """The metrics of two classes from their definitions, pair by pair and person by person."""
    named = probabilities >= 0.5
    hits, false_alarms = np.sum(named & (labels == 1)), np.sum(named & (labels == 0))
    positives, negatives = np.sum(labels == 1), np.sum(labels == 0)
    pairs = [
        float(high > low) + 0.5 * (high == low)
        for high in probabilities[labels == 1]
        for low in probabilities[labels == 0]
    ]
    sensitivity, specificity = hits / positives, 1 - false_alarms / negatives
    return {
        "accuracy": (hits + negatives - false_alarms) / len(labels),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "auroc": np.mean(pairs),
        "f1": 2 * hits / (positives + hits + false_alarms),
        "sensitivity": sensitivity,
        "specificity": specificity,
    }


@pytest.mark.parametrize("seed", range(5))
def test_binary_metrics_are_what_they_are_defined_to_be(seed):
    rng = np.random.default_rng(seed)
    labels, probabilities = rng.integers(0, 2, 40), rng.random(40).round(1)  # rounded: ties, and some exactly 0.5
    assert binary_metrics(labels, probabilities) == pytest.approx(by_counting(labels, probabilities))


def test_binary_metrics_by_hand():
    found = binary_metrics(np.array([1, 1, 0, 0]), np.array([0.9, 0.4, 0.6, 0.1]))
    assert found == dict.fromkeys(BINARY, 0.5) | {"auroc": 0.75}


def test_one_class_alone_has_no_auroc():
    found = binary_metrics(np.zeros(3), np.array([0.1, 0.2, 0.3]))
    assert found["accuracy"] == found["specificity"] == 1
    assert np.isnan([found[name] for name in ("auroc", "f1", "sensitivity", "balanced_accuracy")]).all()


def test_what_is_not_binary_or_of_one_length_is_refused():
    with pytest.raises(ValueError, match="0 or 1"):
        binary_metrics(np.array([0, 2]), np.array([0.1, 0.2]))
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        binary_metrics(np.zeros(3), np.zeros(2))


# --- several classes


@pytest.mark.parametrize("seed", range(5))
def test_multiclass_metrics_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels, probabilities = np.r_[0, 1, 2, rng.integers(0, 3, 30)], rng.dirichlet(np.ones(3), 33)
    predicted = probabilities.argmax(1)
    assert multiclass_metrics(labels, probabilities) == pytest.approx(
        {
            "accuracy": sk.accuracy_score(labels, predicted),
            "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
            "auroc": sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"),
            "f1": sk.f1_score(labels, predicted, average="macro"),
        }
    )


def test_a_class_that_nobody_has_leaves_accuracy_alone():
    found = multiclass_metrics(np.array([0, 1, 0]), np.eye(3)[[0, 1, 1]])
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert np.isnan([found["auroc"], found["balanced_accuracy"], found["f1"]]).all()


def test_classes_that_are_none_are_refused():
    with pytest.raises(ValueError, match="0 to 2"):
        multiclass_metrics(np.array([0, 3]), np.full((2, 3), 1 / 3))
    with pytest.raises(ValueError, match=r"\(3,\) and \(2, 3\)"):
        multiclass_metrics(np.zeros(3), np.zeros((2, 3)))


def test_two_columns_are_two_classes_and_the_second_is_positive():
    labels, positive = np.array([1, 0, 1, 0]), np.array([0.9, 0.2, 0.4, 0.6])
    two_columns = np.stack([1 - positive, positive], axis=1)
    assert classification_metrics(labels, two_columns) == classification_metrics(labels, positive)
    assert classification_metrics(labels, positive) == binary_metrics(labels, positive)
    assert set(classification_metrics(np.arange(3), np.eye(3))) == {"accuracy", "balanced_accuracy", "auroc", "f1"}


# --- numbers


def test_regression_metrics_by_hand():
    found = regression_metrics(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 5.0]))
    assert found == pytest.approx({"mse": 5 / 3, "mae": 1.0, "pearson_r": 3 / np.sqrt(12), "r2": 1 - 5 / 2})


def test_what_does_not_vary_has_no_correlation():
    constant, varied = np.array([1.0, 1.0]), np.array([1.0, 2.0])
    assert np.isnan(regression_metrics(varied, constant)["pearson_r"])
    assert regression_metrics(varied, constant)["r2"] == -1
    assert np.isnan([regression_metrics(constant, varied)[name] for name in ("pearson_r", "r2")]).all()
    assert regression_metrics(np.array([3.0]), np.array([5.0]))["mae"] == 2


def test_a_training_that_diverged_has_no_metrics_and_does_not_stop_there():
    broken = np.array([0.2, np.nan])
    found = [
        *binary_metrics(np.array([0, 1]), broken).values(),
        *multiclass_metrics(np.array([0, 1]), np.full((2, 3), np.nan)).values(),
        *regression_metrics(np.array([0.0, 1.0]), broken).values(),
    ]
    assert len(found) == 14
    assert np.isnan(found).all()


# --- against chance


def test_chance_is_the_largest_class():
    assert chance_accuracy(np.array([1, 1, 1, 0])) == 0.75
    assert chance_accuracy(np.array([0, 0, 1, 0])) == 0.75
    assert chance_accuracy(np.array([0, 1, 2, 2])) == 0.5


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


def test_permutation_p_value_is_that_of_mann_and_whitney():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], (9, 8))
    scores = rng.standard_normal(17) + 0.5 * labels
    exact = stats.mannwhitneyu(scores[labels == 1], scores[labels == 0], alternative="greater", method="exact").pvalue
    assert permutation_p_value(labels, scores, num_permutations=20_000) == pytest.approx(exact, rel=0.1)


def test_permutation_p_value_of_noise_is_uniform():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 10)
    values = [permutation_p_value(labels, rng.random(20), num_permutations=99, seed=s) for s in range(200)]
    assert np.mean(np.array(values) <= 0.1) == pytest.approx(0.1, abs=0.06)


def test_what_has_no_auroc_has_no_p_value():
    assert np.isnan(permutation_p_value(np.ones(3), np.arange(3.0)))
    assert np.isnan(permutation_p_value(np.array([0, 1]), np.array([np.nan, 1])))


# --- for Trainer


def test_one_logit_and_two_mean_the_same():
    odds = np.array([-800.0, -1.0, 0.0, 2.0, 800.0])
    expected = [0, 1 / (1 + np.e), 0.5, 1 / (1 + np.exp(-2)), 1]
    assert positive_probabilities(odds[:, None]) == pytest.approx(expected)
    assert positive_probabilities(np.stack([odds - odds, odds], axis=1)) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"\(5, 3\)"):
        positive_probabilities(np.zeros((5, 3)))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.floats(-700, 700), min_size=3, max_size=3), min_size=1, max_size=5))
def test_probabilities_of_classes_sum_to_one_and_keep_the_order(logits):
    logits = np.array(logits)
    found = class_probabilities(logits)
    assert found.sum(1) == pytest.approx(1)
    assert (np.take_along_axis(found, logits.argmax(1)[:, None], 1)[:, 0] == found.max(1)).all()
    one = class_probabilities(logits[:, :1])
    assert one[:, 1] == pytest.approx(positive_probabilities(logits[:, :1]))
    assert one.sum(1) == pytest.approx(1)


def test_trainer_gets_the_same_numbers():
    logits, labels = np.array([[2.0], [-1.0], [0.5]]), np.array([[1.0], [0.0], [0.0]])
    found = compute_binary_metrics(SimpleNamespace(predictions=logits, label_ids=labels))
    assert found == binary_metrics(labels[:, 0], positive_probabilities(logits))
    found = compute_regression_metrics(SimpleNamespace(predictions=(logits, None), label_ids=labels))
    assert found == regression_metrics(labels[:, 0], logits[:, 0])
    logits = np.random.default_rng(0).standard_normal((6, 3))
    found = compute_multiclass_metrics(SimpleNamespace(predictions=logits, label_ids=np.tile([0, 1, 2], 2)))
    assert found == multiclass_metrics(np.tile([0, 1, 2], 2), class_probabilities(logits))


def small_config(**fields):
    return TabletConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, **fields)


def test_the_configuration_says_which_metrics_suit():
    names = {0: "a", 1: "b", 2: "c"}
    assert metrics_for(small_config(problem_type="regression", num_labels=1)) is compute_regression_metrics
    binary = small_config(problem_type="multi_label_classification", num_labels=1)
    assert metrics_for(binary) is compute_binary_metrics
    two = small_config(problem_type="single_label_classification", num_labels=2)
    assert metrics_for(two) is compute_binary_metrics
    three = small_config(problem_type="single_label_classification", id2label=names)
    assert metrics_for(three) is compute_multiclass_metrics
    for fields in ({"problem_type": "regression", "num_labels": 2}, {"problem_type": None}):
        with pytest.raises(InputError, match="set problem_type"):
            metrics_for(small_config(**fields))


# --- for evaluate


def test_evaluate_modules_compute_the_same_metrics():
    labels, positive = [1, 0, 1, 0], [0.9, 0.2, 0.4, 0.6]
    found = load_metric("tablet_classification").compute(predictions=positive, references=labels)
    assert found == binary_metrics(np.array(labels), np.array(positive))

    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 12)
    metric = load_metric("tablet_classification")
    for rows in (slice(0, 5), slice(5, 12)):
        metric.add_batch(predictions=probabilities[rows], references=np.tile([0, 1, 2], 4)[rows])
    assert metric.compute() == multiclass_metrics(np.tile([0, 1, 2], 4), probabilities)

    found = load_metric("tablet_regression").compute(predictions=[2.0, 2.0, 5.0], references=[1.0, 2.0, 3.0])
    assert found == regression_metrics(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 5.0]))
    with pytest.raises(InputError, match="tablet_classification and tablet_regression"):
        load_metric("accuracy")


def test_evaluate_modules_ask_for_no_network():
    """A fresh process whose sockets are taken away, without a cache."""
    code = (
        "import socket, sys, tempfile, os\n"
        "os.environ['HF_HOME'] = tempfile.mkdtemp()\n"
        "os.environ.pop('HF_HUB_OFFLINE', None)\n"
        "def refuse(*arguments, **named): raise AssertionError('the network was asked for')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from tablet_hf.evaluation.metrics import load_metric\n"
        "print(load_metric('tablet_classification').compute(predictions=[0.9, 0.2], references=[1, 0])['auroc'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "1.0\n", done.stderr


def test_evaluate_modules_are_shipped():
    setup = (Path(tablet_hf.__file__).parents[2] / "setup.py").read_text(encoding="utf-8")
    assert '"tablet_hf.evaluation": ["evaluate_modules/*/*.py"]' in setup
    folder = Path(tablet_hf.__file__).parent / "evaluation"
    modules = sorted(path.relative_to(folder).as_posix() for path in folder.glob("evaluate_modules/*/*.py"))
    assert modules == [f"evaluate_modules/{name}/{name}.py" for name in ("tablet_classification", "tablet_regression")]
