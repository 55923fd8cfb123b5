"""What a label is taken for, and what the config then says."""

import pytest
import torch

from tablet_hf import TabletConfig, TabletForSequenceClassification
from tablet_hf.datasets import runs_in
from tablet_hf.datasets.tasks import find_task
from tablet_hf.errors import InputError


@pytest.fixture
def training_data(planted_store, planted_split):
    return runs_in(planted_split, planted_store.runs, "train")


class TestKinds:
    def test_text_is_a_class(self, planted_store, training_data):
        task = find_task(planted_store, "group", training_data)
        assert (task.classes, task.is_binary, task.is_regression) == (("a", "b"), True, False)
        assert task.reason == "its values are no numbers"

    def test_few_whole_numbers_are_classes_unless_said_otherwise(self, planted_store, training_data):
        assert find_task(planted_store, "kind", training_data).classes == (0, 1, 2)
        assert find_task(planted_store, "kind", training_data, kind="regression").is_regression

    def test_many_numbers_are_a_regression(self, planted_store, training_data):
        task = find_task(planted_store, "strength", training_data)
        values = torch.tensor([planted_store.runs[run].phenotypes["strength"] for run in training_data])
        assert task.is_regression
        assert task.target_mean == pytest.approx(float(values.mean()), rel=1e-5)
        assert task.target_std == pytest.approx(float(values.std(unbiased=False)), rel=1e-5)

    def test_the_positive_class_can_be_chosen(self, planted_store, training_data):
        assert find_task(planted_store, "group", training_data, positive="a").classes == ("b", "a")


class TestWeights:
    def test_of_two_classes_are_negatives_over_positives(self, planted_store):
        five_of_a_and_one_of_b = [0, 2, 4, 6, 8, 1]
        assert find_task(planted_store, "group", five_of_a_and_one_of_b).class_weights == (1, 5)

    def test_of_more_let_all_classes_weigh_alike(self, planted_store):
        runs = [0, 3, 6, 9, 1, 4, 2]  # four of class 0, two of 1, one of 2
        weights = find_task(planted_store, "kind", runs).class_weights
        assert [4 * weights[0], 2 * weights[1], 1 * weights[2]] == pytest.approx([7 / 3] * 3)

    def test_softmax_loss_uses_them(self):
        config = TabletConfig(
            token_size=96, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=32, num_labels=3, problem_type="single_label_classification", class_weights=[1, 2, 4],
        )  # fmt: skip
        logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 1])
        loss = TabletForSequenceClassification(config).classification_loss(logits, labels)
        picked = -logits.log_softmax(-1)[range(5), labels]
        weights = torch.tensor([1.0, 2, 4, 4, 2])
        torch.testing.assert_close(loss, (weights * picked).sum() / weights.sum())


@pytest.mark.parametrize("label", ["group", "kind", "strength"])
def test_config_takes_what_a_task_says(planted_store, training_data, label):
    task = find_task(planted_store, label, training_data)
    config = TabletConfig(**task.config_fields)
    assert config.target_name == label
    assert (
        config.problem_type
        == {
            "group": "multi_label_classification",
            "kind": "single_label_classification",
            "strength": "regression",
        }[label]
    )


class TestRefused:
    @pytest.mark.parametrize(
        ("label", "options", "said"),
        [
            ("iq", {}, "no run of .* has this phenotype; there are group, kind, rare, strength"),
            ("group", {"kind": "regression"}, "'a' is no number|'b' is no number"),
            ("group", {"positive": "c"}, "it is never 'c'; it is 'a' or 'b'"),
            ("kind", {"positive": 1}, "it has 3 classes"),
            ("rare", {}, "runs differ in nothing to learn"),
        ],
    )
    def test_labels_that_cannot_be_learnt(self, planted_store, training_data, label, options, said):
        with pytest.raises(InputError, match=said):
            find_task(planted_store, label, training_data, **options)

    def test_a_class_that_nobody_learns(self, planted_store):
        with pytest.raises(InputError, match="nobody in the training part is 'b'"):
            find_task(planted_store, "group", [0, 2, 4])

    def test_a_number_in_which_nobody_differs(self, planted_store):
        with pytest.raises(InputError, match="do not differ"):
            find_task(planted_store, "strength", [0], kind="regression")
