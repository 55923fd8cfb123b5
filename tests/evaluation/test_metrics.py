"""Metrics against scikit-learn, scipy and numbers worked out by hand."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit
from sklearn import metrics as sk

from tablet_hf.errors import InputError
from tablet_hf.evaluation.metrics import (
    accuracy_interval,
    class_probabilities,
    classification_metrics,
    load_metric,
    regression_metrics,
)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --- classes


@pytest.mark.parametrize("seed", range(3))
def test_two_classes_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels, positive = np.r_[0, 1, rng.integers(0, 2, 40)], rng.random(42).round(1)  # ties, and some exactly 0.5
    predicted = positive >= 0.5
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "auroc": sk.roc_auc_score(labels, positive),
        "f1": sk.f1_score(labels, predicted),
        "sensitivity": sk.recall_score(labels, predicted),
        "specificity": sk.recall_score(labels, predicted, pos_label=0),
    }
    assert classification_metrics(labels, positive) == pytest.approx(expected)
    assert classification_metrics(labels, np.stack([1 - positive, positive], axis=1)) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_three_classes_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels, probabilities = np.r_[0, 1, 2, rng.integers(0, 3, 30)], rng.dirichlet(np.ones(3), 33)
    predicted = probabilities.argmax(1)
    assert classification_metrics(labels, probabilities) == pytest.approx(
        {
            "accuracy": sk.accuracy_score(labels, predicted),
            "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
            "auroc": sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"),
            "f1": sk.f1_score(labels, predicted, average="macro"),
        }
    )


@pytest.mark.parametrize(
    ("labels", "probabilities", "undefined"),
    [
        ([0, 0, 0], [0.1, 0.2, 0.3], {"auroc", "f1", "sensitivity", "balanced_accuracy"}),
        ([0, 1, 0], np.eye(3)[[0, 1, 1]], {"auroc", "f1", "balanced_accuracy"}),
        ([0, 1], [0.2, np.nan], {"accuracy", "auroc", "f1", "sensitivity", "specificity", "balanced_accuracy"}),
        ([0, 1], np.full((2, 3), np.inf), {"accuracy", "auroc", "f1", "balanced_accuracy"}),
    ],
)
def test_undefined_metrics_are_nan(labels, probabilities, undefined):
    found = classification_metrics(np.array(labels), np.array(probabilities))
    assert {name for name, value in found.items() if np.isnan(value)} == undefined


@pytest.mark.parametrize(
    ("labels", "probabilities"),
    [
        ([0, 2], [0.1, 0.2]),
        ([0, 3], np.full((2, 3), 1 / 3)),
        ([0, 0, 0], [0.0, 0.0]),
        ([0, 0, 0], np.zeros((2, 3))),
        ([], []),
    ],
)
def test_wrong_labels_and_shapes_are_refused(labels, probabilities):
    with pytest.raises(ValueError, match="labels"):
        classification_metrics(np.array(labels), np.array(probabilities))


# --- numbers


@given(st.integers(0, 1000))
def test_regression_is_that_of_scikit_learn_and_scipy(seed):
    targets, predictions = np.random.default_rng(seed).normal(40, 12, (2, 9))
    assert regression_metrics(targets, predictions) == pytest.approx(
        {
            "mse": sk.mean_squared_error(targets, predictions),
            "mae": sk.mean_absolute_error(targets, predictions),
            "pearson_r": stats.pearsonr(targets, predictions).statistic,
            "r2": sk.r2_score(targets, predictions),
        }
    )


def test_constants_have_no_correlation():
    constant, varied = np.array([1.0, 1.0]), np.array([1.0, 2.0])
    assert np.isnan(regression_metrics(varied, constant)["pearson_r"])
    assert regression_metrics(varied, constant)["r2"] == -1
    assert np.isnan([regression_metrics(constant, varied)[name] for name in ("pearson_r", "r2")]).all()
    assert regression_metrics(np.array([3.0]), np.array([5.0]))["mae"] == 2
    assert np.isnan(list(regression_metrics(varied, np.array([1.0, np.nan])).values())).all()
    with pytest.raises(ValueError, match="shape"):
        regression_metrics(varied, np.zeros(3))


def test_accuracy_interval_by_hand():
    # All 12 right: the lower end solves x^12 = 0.025.
    assert accuracy_interval(12, 12) == pytest.approx((0.025 ** (1 / 12), 1.0))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.floats(-700, 700), min_size=3, max_size=3), min_size=1, max_size=5))
def test_probabilities_of_logits(logits):
    logits = np.array(logits)
    found = class_probabilities(logits)
    assert found.sum(1) == pytest.approx(1)
    assert (np.take_along_axis(found, logits.argmax(1)[:, None], 1)[:, 0] == found.max(1)).all()
    one = class_probabilities(logits[:, :1])
    assert one[:, 1] == pytest.approx(expit(logits[:, 0]))
    assert one.sum(1) == pytest.approx(1)


# --- for evaluate


def test_evaluate_modules_compute_the_same_metrics():
    labels, positive = [1, 0, 1, 0], [0.9, 0.2, 0.4, 0.6]
    found = load_metric("tablet_classification").compute(predictions=positive, references=labels)
    assert found == classification_metrics(np.array(labels), np.array(positive))
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 12)
    metric = load_metric("tablet_classification")
    for rows in (slice(0, 5), slice(5, 12)):
        metric.add_batch(predictions=probabilities[rows], references=np.tile([0, 1, 2], 4)[rows])
    assert metric.compute() == classification_metrics(np.tile([0, 1, 2], 4), probabilities)
    found = load_metric("tablet_regression").compute(predictions=[2.0, 2.0, 5.0], references=[1.0, 2.0, 3.0])
    assert found == regression_metrics(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 5.0]))
    with pytest.raises(InputError, match="tablet_classification"):
        load_metric("accuracy")


def test_evaluate_modules_need_no_network():
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
