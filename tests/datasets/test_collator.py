"""Batches as the model takes them: a mask only where something is padded, labels of the right type."""

import pytest
import torch

from tablet_hf import TabletConfig, TabletForSequenceClassification
from tablet_hf.datasets.collator import TabletCollator

SMALL = {
    "token_size": 6,
    "grid_size": 2,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
}


def item(frames, label=None, repetition_time=2.0, run_index=None, seed=0):
    tokens = torch.randn(frames, 8, 6, generator=torch.Generator().manual_seed(seed)).half()
    found = {"input_values": tokens, "repetition_time": repetition_time}
    found |= {} if label is None else {"labels": label}
    return found | ({} if run_index is None else {"run_index": run_index})


def test_windows_of_one_length_have_no_mask():
    items = [item(5, seed=0, repetition_time=0.72), item(5, seed=1)]
    batch = TabletCollator()(items)
    assert set(batch) == {"input_values", "repetition_time"}
    assert batch["input_values"].dtype == torch.float16
    assert torch.equal(batch["input_values"], torch.stack([item["input_values"] for item in items]))
    assert batch["repetition_time"].tolist() == pytest.approx([0.72, 2.0])
    assert batch["repetition_time"].dtype == torch.float32


def test_shorter_windows_are_followed_by_zeros_and_masked():
    items = [item(2, seed=0), item(5, seed=1), item(4, seed=2)]
    batch = TabletCollator()(items)
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0, 0], [1] * 5, [1, 1, 1, 1, 0]]
    assert batch["attention_mask"].dtype == torch.int64
    assert batch["input_values"].shape == (3, 5, 8, 6)
    assert batch["input_values"].dtype == torch.float16
    for values, mask, one in zip(batch["input_values"], batch["attention_mask"].bool(), items, strict=True):
        assert torch.equal(values[mask], one["input_values"])
        assert not values[~mask].any()


def test_batches_can_be_padded_to_one_length():
    pad = TabletCollator(pad_to=5)
    batch = pad([item(3), item(3)])
    assert batch["input_values"].shape == (2, 5, 8, 6)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0]] * 2
    assert "attention_mask" not in pad([item(5)])
    with pytest.raises(ValueError, match="pad_to"):
        pad([item(6), item(3)])


@pytest.mark.parametrize(
    ("problem_type", "labels", "dtype"),
    [
        (None, [0, 2], torch.int64),
        (None, [20.0, 31.5], torch.float32),
        ("single_label_classification", [0, 2], torch.int64),
        ("multi_label_classification", [0, 1], torch.float32),
        ("regression", [20, 31], torch.float32),
    ],
)
def test_labels_have_the_type_that_the_problem_needs(problem_type, labels, dtype):
    found = TabletCollator(problem_type)([item(2, labels[0]), item(2, labels[1])])["labels"]
    assert found.dtype == dtype
    assert found.tolist() == labels


def test_numbers_are_no_classes():
    with pytest.raises(ValueError, match="classes"):
        TabletCollator("single_label_classification")([item(2, 0.5)])
    with pytest.raises(ValueError, match="problem_type"):
        TabletCollator("classification")


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels"),
    [
        ("single_label_classification", 3, [0, 2, 1]),
        ("multi_label_classification", 1, [0, 1, 1]),
        ("regression", 1, [20.5, 31.0, 44.0]),
    ],
)
def test_the_model_takes_a_batch_and_padding_changes_nothing(problem_type, num_labels, labels):
    config = TabletConfig(**SMALL, problem_type=problem_type, num_labels=num_labels)
    model = TabletForSequenceClassification(config).eval()
    items = [item(frames, label, seed=frames) for frames, label in zip((3, 6, 4), labels, strict=True)]
    collate = TabletCollator(problem_type)
    with torch.no_grad():
        together = model(**collate(items))
        alone = [model(**collate([one])) for one in items]
    assert torch.allclose(together.logits, torch.cat([one.logits for one in alone]), atol=1e-4)
    assert together.loss.isclose(torch.stack([one.loss for one in alone]).mean(), rtol=1e-3)
