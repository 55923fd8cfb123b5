"""Windows of a token store as torch datasets: random ones to train on, adjoining ones to evaluate on.

    store = TokenDataset.load("STORE")
    classes = label_classes(store, "sex")                     # ["F", "M"]: F is 0, M is 1
    training = TrainingWindows(store, 256, runs_in(split, store.runs, "train"), "sex", classes=classes)
    held_out = EvaluationWindows(store, 256, runs_in(split, store.runs, "test"), "sex", classes=classes)
    trainer = Trainer(model, arguments, TabletCollator(), training, callbacks=[EpochCallback()])
    trainer.train()
    subjects, logits = average_by(trainer.predict(held_out).predictions, held_out.subjects)

As in the code released with arXiv:2604.03619, training draws one window a run and epoch, and evaluation cuts windows
that do not overlap and averages the logits of a subject.
"""

import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers.trainer_callback import TrainerCallback

from tablet_hf.datasets.collator import WindowBatch
from tablet_hf.datasets.splits import subject_ids
from tablet_hf.datasets.store import TokenDataset
from tablet_hf.errors import InputError
from tablet_hf.sources.records import phenotype_values
from tablet_hf.tokens import cut_windows

__all__ = ["EpochCallback", "EvaluationWindows", "TrainingWindows", "average_by", "label_classes"]

# Copies that together come near to what memory gives.
READERS = 4

Label = str | Callable[[Any], Any]
"""A phenotype's name, or a function of a run of the store that gives its value, None for a run to leave out."""


class _Windows(Dataset, ABC):
    """What both kinds share: which runs there are, what they are labelled, and how a window is read."""

    def __init__(
        self,
        store: Any,
        num_frames: int | None,
        runs: Sequence[int | str] | None,
        label: Label | None,
        classes: Sequence[Any] | None,
        stride: int,
        dtype: torch.dtype | None,
    ):
        if (num_frames is not None and num_frames < 1) or stride < 1:
            raise ValueError(f"num_frames and stride must be at least 1, got {num_frames} and {stride}.")
        if classes is not None and label is None:
            raise ValueError("classes need a label.")
        self.store, self.num_frames, self.stride, self.dtype = store, num_frames, stride, dtype
        asked = _places(store, runs)
        values = [None] * len(asked) if label is None else _values(store, label, asked)
        self.left_out = [run for run, value in zip(asked, values, strict=True) if label is not None and value is None]
        self.labels = {
            run: _target(store.runs[run], value, label, classes)
            for run, value in zip(asked, values, strict=True)
            if value is not None
        }
        self.runs = asked if label is None else [run for run in asked if run in self.labels]
        if not self.runs:
            raise InputError(
                f"None of the {len(asked)} runs that were asked for has a label ({_name(label)}); choose other runs, "
                "or another label."
                if asked
                else "No runs were asked for; choose some."
            )

    def _num_strided(self, run: int) -> int:
        """Frames of a run, every `stride`-th counted."""
        return math.ceil(self.store.runs[run].num_frames / self.stride)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._item(index, *self._place(index))

    def _item(self, index: int, run: int, start: int, frames: int) -> dict[str, Any]:
        tokens = self.store.window(run, start, (frames - 1) * self.stride + 1)[:: self.stride]
        tokens = tokens if self.dtype is None else tokens.to(self.dtype)
        return {"input_values": tokens} | self._fields(index, run, frames)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The items of a batch; a `DataLoader` asks for them so.

        Windows of one length are read side by side into one tensor, in memory from which a GPU copies without waiting.
        What is new memory in each batch costs more time than reading: at 256 frames a batch of four is 170 MB.
        """
        places = [self._place(index) for index in indices]
        lengths = {frames for _, _, frames in places}
        if len(lengths) > 1 or self.stride > 1 or self.dtype is not None or not isinstance(self.store, TokenDataset):
            return [self._item(index, *place) for index, place in zip(indices, places, strict=True)]
        is_pinned = torch.cuda.is_available() and torch.utils.data.get_worker_info() is None
        shape = (len(places), lengths.pop(), *self.store.geometry.shape)
        batch = torch.empty(shape, dtype=torch.float16, pin_memory=is_pinned)
        list(_readers(os.getpid()).map(lambda place, out: self.store.window(*place, out=out), places, batch))
        items = [
            {"input_values": tokens} | self._fields(index, run, frames)
            for index, tokens, (run, _, frames) in zip(indices, batch, places, strict=True)
        ]
        return WindowBatch(items, batch)

    @abstractmethod
    def _place(self, index: int) -> tuple[int, int, int]:
        """Run, first frame and number of frames of a window."""

    def _fields(self, index: int, run: int, frames: int) -> dict[str, Any]:
        """What an item has next to its tokens."""
        fields = {"repetition_time": self.store.runs[run].repetition_time * self.stride}
        return fields | {"labels": self.labels[run]} if run in self.labels else fields


class TrainingWindows(_Windows):
    """One item a run: a random window of contiguous frames, a new one in each epoch.

    Which window it is follows from `(seed, epoch, index)` alone, so neither the number of workers nor that of processes
    changes it. Who iterates tells the epoch by `set_epoch`, from outside the workers, persistent ones too:

    - `Trainer` and accelerate on one process do so by themselves. On several processes accelerate tells its sampler
      only, and on resuming within an epoch as well: give `Trainer` an `EpochCallback`.
    - In a loop of your own call `set_epoch(epoch)` before each pass.

    Args:
        store: a `TokenDataset`, or what has its `runs` and `window`.
        num_frames: of a window; a shorter run is given whole, and so is every run with None.
        runs: places in `store.runs` or keys; None for all.
        label: a phenotype's name, or a function of a run; runs without one are left out. None gives items without.
        classes: values of the label in the order of their numbers, see `label_classes`; None for a label that is a
            number itself, such as the target of a regression.
        seed: of the windows.
        stride: every so many frames; the repetition time is multiplied by it.
        dtype: of the tokens; None for the store's own float16, which the model casts.

    Items: `input_values (frames, cells, features)`, `repetition_time` in seconds, `labels`: a class as int, or a float.

    Attributes:
        runs, left_out: places in `store.runs`, of those that are here and of those that have no label.

    Raises:
        InputError: no such run or phenotype, no run with a label, or a label that is none of the classes or no number.
    """

    def __init__(
        self,
        store: Any,
        num_frames: int | None,
        runs: Sequence[int | str] | None = None,
        label: Label | None = None,
        *,
        classes: Sequence[Any] | None = None,
        seed: int = 0,
        stride: int = 1,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(store, num_frames, runs, label, classes, stride, dtype)
        self.seed = seed
        # Epoch, and items given in it: in shared memory, since workers that persist hold a copy of everything else.
        self._state = torch.zeros(2, dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        return int(self._state[0])

    def set_epoch(self, epoch: int) -> None:
        """Choose the windows of that epoch."""
        self._state.copy_(torch.tensor([epoch, 0]))

    def __len__(self) -> int:
        return len(self.runs)

    def _place(self, index: int) -> tuple[int, int, int]:
        index = range(len(self))[index]
        self._state[1] += 1
        if self._state[1] == 2 * len(self) + 1:
            warnings.warn(
                f"Every run was drawn twice in epoch {self.epoch}, in the same window; call set_epoch before each "
                "pass, or give Trainer a tablet_hf.datasets.windows.EpochCallback.",
                stacklevel=2,
            )
        run = self.runs[index]
        frames = self.num_frames or self._num_strided(run)
        num_starts = self.store.runs[run].num_frames - (frames - 1) * self.stride
        if num_starts < 1:
            return run, 0, self._num_strided(run)
        start = np.random.default_rng((self.seed, self.epoch, index)).integers(num_starts)
        return run, int(start), frames


class EvaluationWindows(_Windows):
    """All windows of each run that do not overlap, one after the other; the same in every pass.

    A remainder shorter than a window is left out, but for a run that is shorter altogether, which is one window.

    Args:
        keep_remainder: give the remainder as a shorter window.
        store, num_frames, runs, label, classes, stride, dtype: see `TrainingWindows`.

    Items: as those of `TrainingWindows`, and `run_index`: the place in `store.runs`.

    Attributes:
        windows: run, first frame and number of frames of each.
        subjects: subject of each window, see `subject_ids`: what `average_by` averages over.
        run_indices: place in `store.runs` of each window's run.
        runs, left_out: see `TrainingWindows`.
    """

    def __init__(
        self,
        store: Any,
        num_frames: int | None,
        runs: Sequence[int | str] | None = None,
        label: Label | None = None,
        *,
        classes: Sequence[Any] | None = None,
        keep_remainder: bool = False,
        stride: int = 1,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(store, num_frames, runs, label, classes, stride, dtype)
        self.windows = [
            (run, first * stride, frames)
            for run in self.runs
            for first, frames in cut_windows(self._num_strided(run), num_frames, keep_remainder)
        ]
        self.run_indices = [run for run, _, _ in self.windows]
        subjects = subject_ids(store.runs)
        self.subjects = [subjects[run] for run in self.run_indices]

    def __len__(self) -> int:
        return len(self.windows)

    def _place(self, index: int) -> tuple[int, int, int]:
        return self.windows[index]

    def _fields(self, index: int, run: int, frames: int) -> dict[str, Any]:
        return super()._fields(index, run, frames) | {"run_index": run}


class EpochCallback(TrainerCallback):
    """Tells `TrainingWindows` the epoch where accelerate does not: on several processes, and when training resumes."""

    def __init__(self):
        self._next = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._next = int(state.epoch or 0)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        dataset = getattr(train_dataloader, "dataset", None)
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(self._next)
        self._next += 1


@lru_cache(maxsize=1)
def _readers(process: int) -> ThreadPoolExecutor:
    """Threads that read windows; those of another process are not there after a fork."""
    return ThreadPoolExecutor(READERS)


def label_classes(store: Any, label: Label, runs: Sequence[int | str] | None = None) -> list[Any]:
    """The different values of a label, sorted: numbers by size, before texts by alphabet. A class is its place here.

    Take them from all runs of a store, not from those of one part, so that every part numbers them alike. Of two
    classes the second is the positive one.

    Args:
        store, label: see `TrainingWindows`.
        runs: places in `store.runs` or keys; None for all.

    Raises:
        InputError: no such phenotype, or less than two classes.
    """
    values = {value for value in _values(store, label, _places(store, runs)) if value is not None}
    if len(values) < 2:
        raise InputError(
            f"{_name(label)}: runs differ in nothing to learn, there is {', '.join(map(repr, values)) or 'no value'} "
            "only; choose another label."
        )
    return sorted(values, key=lambda value: (not isinstance(value, Real), value))


def average_by(logits: np.ndarray | Tensor, ids: Sequence[Hashable]) -> tuple[list[Hashable], np.ndarray]:
    """Average what windows say, by subject or by run; all windows count alike.

    Args:
        logits: `(windows, ...)`.
        ids: of each window, such as `EvaluationWindows.subjects`.

    Returns:
        The different ids in the order in which they come first, and their means `(ids, ...)` in float64.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if not logits.ndim or len(logits) != len(ids):
        raise ValueError(f"logits of shape {logits.shape} need an id for each window, got {len(ids)} ids.")
    place = {name: number for number, name in enumerate(dict.fromkeys(ids))}
    places = np.array([place[name] for name in ids], dtype=int)
    sums = np.zeros((len(place), *logits.shape[1:]))
    np.add.at(sums, places, logits)
    counts = np.bincount(places, minlength=len(place))
    return list(place), sums / counts.reshape(-1, *[1] * (logits.ndim - 1))


# --- parts


def _places(store: Any, runs: Sequence[int | str] | None) -> list[int]:
    if runs is None:
        return list(range(len(store.runs)))
    place_of_key = {run.key: place for place, run in enumerate(store.runs)}
    unknown = [run for run in runs if isinstance(run, str) and run not in place_of_key]
    if unknown:
        raise InputError(f"{unknown[0]}: the store has no run of this key; its first is {store.runs[0].key}.")
    return [place_of_key[run] if isinstance(run, str) else range(len(store.runs))[run] for run in runs]


def _values(store: Any, label: Label, places: Sequence[int]) -> list[Any]:
    """The label of each run, None where it is missing."""
    if callable(label):
        values = [label(store.runs[place]) for place in places]
        return [None if value != value else value for value in values]  # NaN is not equal to itself
    values = phenotype_values(store.runs, label, getattr(store, "folder", "the store"))
    return [values[place] for place in places]


def _target(run: Any, value: Any, label: Label, classes: Sequence[Any] | None) -> int | float:
    """A label as the model learns it: the place of its class, or the number that it is."""
    if classes is not None:
        if value not in classes:
            raise InputError(
                f"{run.key}: its {_name(label)} is {value!r}, which is none of the classes {list(classes)}; add it, or "
                "give a label that is None for such runs."
            )
        return list(classes).index(value)
    if not isinstance(value, Real):
        raise InputError(
            f"{run.key}: its {_name(label)} is {value!r}, which is no number; give classes (see label_classes) to "
            "learn which of several it is."
        )
    return float(value)


def _name(label: Label | None) -> str:
    return getattr(label, "__name__", "label") if callable(label) else str(label)
