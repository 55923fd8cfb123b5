"""Batches of windows, as the model and `Trainer(remove_unused_columns=False)` take them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

__all__ = ["TabletCollator"]

LABEL_DTYPES = {
    "single_label_classification": torch.int64,
    "multi_label_classification": torch.float32,  # one logit a label, binary cross-entropy
    "regression": torch.float32,
}


class WindowBatch(list):
    """Items of windows of one length, whose tokens are in one tensor already: `input_values (windows, frames, ...)`."""

    def __init__(self, items: Sequence[dict[str, Any]], input_values: Tensor):
        super().__init__(items)
        self.input_values = input_values


@dataclass(frozen=True)
class TabletCollator:
    """Stacks windows into a batch.

    Where all have the same length there is no `attention_mask`, since attention is several times slower with one (see
    `padded_frames_mask` of the model); else shorter ones are followed by zeros and masked.

    Args:
        problem_type: of the model's config: "single_label_classification" takes labels as int64, the others as float32.
            None leaves classes int64 and numbers float32.
        pad_to: frames that every batch shall have; None pads to the longest window.
        keep_run_index: also give `run_index`, which the model does not take.

    A batch: `input_values (windows, frames, cells, features)` in the dtype of the items, `repetition_time (windows,)`
    float32 in seconds, `labels (windows,)` where items have them, and `attention_mask (windows, frames)` int64, 1 where
    a frame is real, where one is not. `bool_masked_pos (windows, frames, cells)` where items have it.

    Raises:
        ValueError: windows longer than `pad_to`, or labels that are no classes.
    """

    problem_type: str | None = None
    pad_to: int | None = None
    keep_run_index: bool = False

    def __post_init__(self):
        if self.problem_type is not None and self.problem_type not in LABEL_DTYPES:
            raise ValueError(f"problem_type is {self.problem_type!r}, which is none of {', '.join(LABEL_DTYPES)}.")

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
        longest = int(lengths.max())
        frames = longest if self.pad_to is None else self.pad_to
        if longest > frames:
            raise ValueError(f"A window has {longest} frames, which do not fit into the {frames} of pad_to.")
        if (lengths == frames).all():
            # In a worker it stacks in shared memory, so that nothing is copied on the way to the main process.
            return {"input_values": default_collate(list(windows))}
        values = windows[0].new_zeros((len(windows), frames, *windows[0].shape[1:]))
        for place, window in zip(values, windows, strict=True):
            place[: len(window)] = window
        return {"input_values": values, "attention_mask": (torch.arange(frames) < lengths[:, None]).long()}

    def _labels(self, labels: Sequence[int | float]) -> Tensor:
        if self.problem_type is None:
            return torch.tensor(labels, dtype=torch.int64 if isinstance(labels[0], int) else torch.float32)
        dtype = LABEL_DTYPES[self.problem_type]
        if dtype == torch.int64 and any(label != int(label) for label in labels):
            raise ValueError(f"labels must be classes with {self.problem_type}, but they hold {labels}.")
        return torch.tensor(labels, dtype=dtype)
