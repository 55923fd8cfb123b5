"""The task of a label, and the configuration of a model for it."""

import pytest
import torch

from tablet_hf import TabletConfig, TabletForSequenceClassification
from tablet_hf.datasets import runs_in
from tablet_hf.datasets.tasks import find_task
from tablet_hf.errors import InputError


@pytest.fixture
def training_runs(planted_store, planted_split):
    return runs_in(planted_split, planted_store.runs, "train")


@pytest.mark.parametrize(
    ("label", "options", "classes", "problem_type"),
    [
        ("group", {}, ("a", "b"), "multi_label_classification"),
        ("group", {"positive": "a"}, ("b", "a"), "multi_label_classification"),
        ("kind", {}, (0, 1, 2), "single_label_classification"),
        ("kind", {"kind": "regression"}, None, "regression"),
        ("strength", {}, None, "regression"),
    ],
)
def test_kinds(planted_store, training_runs, label, options, classes, problem_type):
    task = find_task(planted_store, label, training_runs, **options)
    assert task.classes == classes
    assert task.is_regression == (classes is None)
    config = TabletConfig(**task.config_fields)
    assert (config.target_name, config.problem_type) == (label, problem_type)
    assert task.reason


def test_mean_and_deviation_of_a_regression(planted_store, training_runs):
    task = find_task(planted_store, "strength", training_runs)
    values = torch.tensor([planted_store.runs[run].phenotypes["strength"] for run in training_runs])
    assert task.target_mean == pytest.approx(float(values.mean()), rel=1e-5)
    assert task.target_std == pytest.approx(float(values.std(unbiased=False)), rel=1e-5)


def test_weights_of_classes(planted_store):
    five_of_a_and_one_of_b = [0, 2, 4, 6, 8, 1]
    assert find_task(planted_store, "group", five_of_a_and_one_of_b).class_weights == (1, 5)
    runs = [0, 3, 6, 9, 1, 4, 2]  # four of class 0, two of 1, one of 2
    weights = find_task(planted_store, "kind", runs).class_weights
    assert [4 * weights[0], 2 * weights[1], 1 * weights[2]] == pytest.approx([7 / 3] * 3)


def test_the_loss_uses_the_weights():
    config = TabletConfig(
        token_size=96, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32, num_labels=3, problem_type="single_label_classification", class_weights=[1, 2, 4],
    )  # fmt: skip
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 1])
    loss = TabletForSequenceClassification(config).classification_loss(logits, labels)
    picked = -logits.log_softmax(-1)[range(5), labels]
    weights = torch.tensor([1.0, 2, 4, 4, 2])
    torch.testing.assert_close(loss, (weights * picked).sum() / weights.sum())


@pytest.mark.parametrize(
    ("label", "options", "word"),
    [
        ("iq", {}, "iq"),
        ("group", {"kind": "regression"}, "no number"),
        ("group", {"kind": "ranking"}, "ranking"),
        ("group", {"positive": "c"}, "'c'"),
        ("kind", {"positive": 1}, "two classes"),
        ("rare", {}, "same value"),
        ("group", {"training_runs": [0, 2, 4]}, "'b'"),
        ("strength", {"training_runs": [0]}, "vary"),
    ],
)
def test_impossible_tasks_are_refused(planted_store, training_runs, label, options, word):
    with pytest.raises(InputError, match=word):
        find_task(**{"store": planted_store, "label": label, "training_runs": training_runs} | options)
