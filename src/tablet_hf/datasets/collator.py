"""Batches of windows for the model and for `Trainer(remove_unused_columns=False)`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

__all__ = ["TabletCollator"]

LABEL_DTYPES = {
    "single_label_classification": torch.int64,
    "multi_label_classification": torch.float32,  # one logit per label, binary cross-entropy
    "regression": torch.float32,
}


class WindowBatch(list):
    """Items of one length whose tokens are already one tensor, `input_values` (windows, frames, cells, features)."""

    def __init__(self, items: Sequence[dict[str, Any]], input_values: Tensor):
        super().__init__(items)
        self.input_values = input_values


@dataclass(frozen=True)
class TabletCollator:
    """Stack windows into a batch; shorter ones are padded with zeros and masked.

    Without padding there is no `attention_mask`, since attention is several times slower with one.

    Args:
        problem_type: of the model's config; it decides the dtype of labels. None leaves classes int64 and numbers
            float32.
        pad_to: frames of every batch; None pads to the longest window.
        keep_run_index: whether to keep `run_index`, which the model does not take.

    Returns:
        `input_values` (windows, frames, cells, features) in the dtype of the items, `repetition_time` (windows,)
        float32 in seconds, `labels` (windows,) where items have them, `attention_mask` (windows, frames) int64, 1 for a
        real frame, and `bool_masked_pos` (windows, frames, cells) where items have it.

    Raises:
        ValueError: windows longer than `pad_to`, or labels that are no classes.
    """

    problem_type: str | None = None
    pad_to: int | None = None
    keep_run_index: bool = False

    def __post_init__(self):
        if self.problem_type is not None and self.problem_type not in LABEL_DTYPES:
            raise ValueError(f"problem_type {self.problem_type!r} is none of {', '.join(LABEL_DTYPES)}.")

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        if isinstance(items, WindowBatch) and self.pad_to in (None, items.input_values.shape[1]):
            batch = {"input_values": items.input_values}
        else:
            batch = self._stacked([item["input_values"] for item in items])
        if "bool_masked_pos" in items[0]:
            batch["bool_masked_pos"] = self._stacked([item["bool_masked_pos"] for item in items])["input_values"]
        batch["repetition_time"] = torch.tensor([item["repetition_time"] for item in items], dtype=torch.float32)
        if "labels" in items[0]:
            batch["labels"] = self._labels([item["labels"] for item in items])
        if self.keep_run_index:
            batch["run_index"] = torch.tensor([item["run_index"] for item in items])
        return batch

    def _stacked(self, windows: Sequence[Tensor]) -> dict[str, Tensor]:
        lengths = torch.tensor([len(window) for window in windows])
        frames = int(lengths.max()) if self.pad_to is None else self.pad_to
        if lengths.max() > frames:
            raise ValueError(f"A window of {lengths.max()} frames is longer than pad_to ({frames}).")
        if (lengths == frames).all():
            # In a worker it stacks in shared memory, so nothing is copied on the way to the main process.
            return {"input_values": default_collate(list(windows))}
        values = torch.nn.utils.rnn.pad_sequence(windows, batch_first=True)
        values = torch.nn.functional.pad(values, (0, 0) * (values.ndim - 2) + (0, frames - values.shape[1]))
        return {"input_values": values, "attention_mask": (torch.arange(frames) < lengths[:, None]).long()}

    def _labels(self, labels: Sequence[int | float]) -> Tensor:
        dtype = LABEL_DTYPES.get(self.problem_type, torch.int64 if isinstance(labels[0], int) else torch.float32)
        if dtype == torch.int64 and any(label != int(label) for label in labels):
            raise ValueError(f"With {self.problem_type} labels must be numbers of classes, got {labels}.")
        return torch.tensor(labels, dtype=dtype)
