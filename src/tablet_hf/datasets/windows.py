"""Windows of a token store as torch datasets: random ones to train on, adjacent ones to evaluate on.

    store = TokenDataset.load("STORE")
    classes = label_classes(store, "sex")                     # ["F", "M"]: F is 0, M is 1
    training = TrainingWindows(store, 256, runs_in(split, store.runs, "train"), "sex", classes=classes)
    held_out = EvaluationWindows(store, 256, runs_in(split, store.runs, "test"), "sex", classes=classes)
    trainer = Trainer(model, arguments, TabletCollator(), training, callbacks=[EpochCallback()])
    trainer.train()
    subjects, logits = average_by(trainer.predict(held_out).predictions, held_out.subjects)

As in the code released with arXiv:2604.03619, training draws one window per run and epoch, and evaluation cuts windows
that do not overlap and averages the logits of a subject.
"""

import os
import warnings
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers.trainer_callback import TrainerCallback

from tablet_hf.datasets.collator import WindowBatch
from tablet_hf.datasets.splits import subject_ids
from tablet_hf.errors import InputError
from tablet_hf.sources.records import phenotype_values
from tablet_hf.tokens import cut_windows

__all__ = ["EpochCallback", "EvaluationWindows", "TrainingWindows", "average_by", "label_classes"]

# Parallel copies that together approach the bandwidth of memory.
READERS = 4


class _Windows(Dataset):
    """Windows of some runs of a store; a subclass decides which frames a window has."""

    def __init__(
        self,
        store: Any,
        num_frames: int | None,
        runs: Sequence[int | str] | None = None,
        label: str | None = None,
        *,
        classes: Sequence[Any] | None = None,
    ):
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}.")
        if classes is not None and label is None:
            raise ValueError("classes need a label.")
        self.store, self.num_frames = store, num_frames
        self.runs = list(range(len(store.runs))) if runs is None else [store.index(run) for run in runs]
        self.labels: dict[int, int | float] = {}
        if label is not None:
            values = phenotype_values(store.runs, label, store.folder)
            self.runs = [run for run in self.runs if values[run] is not None]
            self.labels = {run: _target(store.runs[run].key, label, values[run], classes) for run in self.runs}
        if not self.runs:
            raise InputError(f"{store.folder}: no run to take windows from has the label {label}; choose other runs.")

    def _window(self, index: int) -> tuple[int, int, int]:
        """Run, first frame and number of frames."""
        raise NotImplementedError

    def _item(self, run: int, start: int, frames: int, out: Tensor | None = None) -> dict[str, Any]:
        tokens = self.store.window(run, start, frames, out=out)
        item = {"input_values": tokens, "repetition_time": self.store.runs[run].repetition_time, "run_index": run}
        return item | {"labels": self.labels[run]} if run in self.labels else item

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._item(*self._window(index))

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Read the items of a batch, as a `DataLoader` asks for them.

        Windows of one length are read in parallel into one pinned tensor: allocating a batch (170 MB for four windows
        of 256 frames) takes longer than reading it.
        """
        windows = [self._window(index) for index in indices]
        if len({frames for _, _, frames in windows}) > 1:
            return [self._item(*window) for window in windows]
        is_pinned = torch.cuda.is_available() and torch.utils.data.get_worker_info() is None
        shape = (len(windows), windows[0][2], *self.store.geometry.shape)
        batch = torch.empty(shape, dtype=torch.float16, pin_memory=is_pinned)
        items = list(_readers(os.getpid()).map(lambda window, out: self._item(*window, out=out), windows, batch))
        return WindowBatch(items, batch)


class TrainingWindows(_Windows):
    """One item per run: a random window of contiguous frames, another one in each epoch.

    The window follows from `(seed, epoch, index)` alone, whatever the number of workers and processes. The epoch is set
    by `set_epoch` in the main process; workers, persistent ones too, see it.

    - `Trainer` and accelerate set it in a single process. With several processes, and when training resumes within an
      epoch, give `Trainer` an `EpochCallback`.
    - In a loop of your own call `set_epoch(epoch)` before each pass.

    Args:
        store: a `TokenDataset`.
        num_frames: frames of a window; a shorter run is one shorter window. None for whole runs.
        runs: indices in `store.runs` or keys; None for all.
        label: name of a phenotype; runs without it are left out. None for items without labels.
        classes: values of the label in the order of their numbers, see `label_classes`; None for a regression.
        seed: of the windows.

    Items: `input_values` (frames, cells, features) float16, `repetition_time` in seconds, `run_index` in `store.runs`,
    and `labels`, the number of a class as int, or a float.

    Attributes:
        runs: indices in `store.runs`.

    Raises:
        InputError: no such run or phenotype, no run with the label, or a label that is no class or no number.
    """

    def __init__(
        self,
        store: Any,
        num_frames: int | None,
        runs: Sequence[int | str] | None = None,
        label: str | None = None,
        *,
        classes: Sequence[Any] | None = None,
        seed: int = 0,
    ):
        super().__init__(store, num_frames, runs, label, classes=classes)
        self.seed = seed
        # Epoch, and items drawn in it; in shared memory, since persistent workers hold a copy of everything else.
        self._state = torch.zeros(2, dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        return int(self._state[0])

    def set_epoch(self, epoch: int) -> None:
        """Choose the windows of an epoch."""
        self._state.copy_(torch.tensor([epoch, 0]))

    def __len__(self) -> int:
        return len(self.runs)

    def _window(self, index: int) -> tuple[int, int, int]:
        index = range(len(self))[index]
        self._state[1] += 1
        if self._state[1] == 2 * len(self) + 1:
            warnings.warn(
                f"Every window of epoch {self.epoch} was drawn twice; call set_epoch before each pass, or give Trainer "
                "an EpochCallback.",
                stacklevel=2,
            )
        run = self.runs[index]
        length = self.store.runs[run].num_frames
        frames = min(self.num_frames or length, length)
        start = np.random.default_rng((self.seed, self.epoch, index)).integers(length - frames + 1)
        return run, int(start), frames


class EvaluationWindows(_Windows):
    """All windows of each run that do not overlap, one after the other; the same in every pass.

    A remainder shorter than a window is left out; a run shorter than a window is one window.

    Args:
        store, num_frames, runs, label, classes: see `TrainingWindows`.

    Items: those of `TrainingWindows`.

    Attributes:
        windows: run, first frame and number of frames of each.
        subjects: subject of each window, see `subject_ids`; `average_by` averages over them.
        run_indices: index in `store.runs` of each window's run.
        runs: see `TrainingWindows`.
    """

    @cached_property
    def windows(self) -> list[tuple[int, int, int]]:
        runs = self.store.runs
        return [(run, *window) for run in self.runs for window in cut_windows(runs[run].num_frames, self.num_frames)]

    @cached_property
    def run_indices(self) -> list[int]:
        return [run for run, _, _ in self.windows]

    @cached_property
    def subjects(self) -> list[str]:
        names = subject_ids(self.store.runs)
        return [names[run] for run in self.run_indices]

    def __len__(self) -> int:
        return len(self.windows)

    def _window(self, index: int) -> tuple[int, int, int]:
        return self.windows[index]


class EpochCallback(TrainerCallback):
    """Set the epoch of `TrainingWindows` where accelerate does not: in several processes, and on resuming."""

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
    """Threads that read windows; after a fork those of the parent process are gone."""
    return ThreadPoolExecutor(READERS)


def label_classes(store: Any, label: str, runs: Sequence[int | str] | None = None) -> list[Any]:
    """Return the different values of a label, sorted, numbers before texts; a class is an index in this list.

    Take them from all runs of a store, so that every part numbers them alike. Of two classes the second is positive.

    Args:
        store, label: see `TrainingWindows`.
        runs: indices in `store.runs` or keys; None for all.

    Raises:
        InputError: no such phenotype, or fewer than two classes.
    """
    values = phenotype_values(store.runs, label, store.folder)
    found = {values[store.index(run)] for run in (range(len(values)) if runs is None else runs)} - {None}
    if len(found) < 2:
        only = ", ".join(map(repr, found)) or "no value"
        raise InputError(f"{label}: all runs have the same value, {only}; choose another label.")
    return sorted(found, key=lambda value: (not isinstance(value, Real), value))


def average_by(logits: np.ndarray | Tensor, ids: Sequence[Hashable]) -> tuple[list[Hashable], np.ndarray]:
    """Average the logits of windows by subject or run; all windows count alike.

    Args:
        logits: `(windows, ...)`.
        ids: of each window, such as `EvaluationWindows.subjects`.

    Returns:
        The different ids in the order of their first window, and their means `(ids, ...)` in float64.
    """
    logits = np.asarray(logits, dtype=np.float64)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(ids))}
    rows = np.array([numbers[name] for name in ids], dtype=int)
    if logits.shape[:1] != rows.shape:
        raise ValueError(f"logits of shape {logits.shape} need an id for each window, got {len(ids)} ids.")
    sums = np.zeros((len(numbers), *logits.shape[1:]))
    np.add.at(sums, rows, logits)
    return list(numbers), sums / np.bincount(rows).reshape(-1, *[1] * (logits.ndim - 1))


def _target(key: str, label: str, value: Any, classes: Sequence[Any] | None) -> int | float:
    """A label as the model is trained on it: the index of its class, or the number itself."""
    if classes is not None:
        if value not in classes:
            raise InputError(f"{key}: its {label} is {value!r}, not one of {list(classes)}; add this class.")
        return list(classes).index(value)
    if not isinstance(value, Real):
        raise InputError(f"{key}: its {label} is {value!r}, which is no number; give classes.")
    return float(value)
