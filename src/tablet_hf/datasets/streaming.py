"""Windows of runs as they are read, from Parquet or a store, in a folder or on the Hub."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tablet_hf.datasets.parquet import data_files, downloaded, runs_in_file
from tablet_hf.datasets.run_files import StoredTokens, open_tokens
from tablet_hf.datasets.splits import subject_ids
from tablet_hf.datasets.store_files import RUNS_FOLDER, StoredRun, geometry_of, read_runs, read_settings
from tablet_hf.errors import InputError
from tablet_hf.tokens import cut_windows

__all__ = ["StreamedWindows", "mixed"]


class StreamedWindows(torch.utils.data.IterableDataset):
    """Windows of runs read from Parquet or a store, from a folder or the Hub; nothing is stored on disk.

    The workers of a `DataLoader` share the files among themselves, so have at least as many files; the order of files
    is drawn again in every epoch, and windows pass through a buffer that mixes them.

    Processes do not share the files by themselves: under `Trainer` and accelerate the first process reads and
    dispatches batches, or each reads everything and uses its part. In a loop of your own on several processes, take
    `windows.shard(world_size, rank)`.

    The tokens of each run of an export are compared with their checksum.

    Args:
        path_or_repo: folder of an export or of a store, or the Hub id of an export.
        num_frames: frames of a window. A shorter run is one window.
        labels: label of each run by its key; runs without one are left out. None gives windows without labels.
        runs: keys of the runs to read; None for all.
        is_training: one random window per run and epoch; else all its non-overlapping windows, in order.
        shuffle_buffer: windows that are held back for mixing in training (42 MB each at 256 frames).
        seed: of the windows and their order.
        revision: branch, tag or commit on the Hub.

    Yields:
        `input_values (frames, cells, features)` float16, `repetition_time` in seconds, `run` (its key), `run_index`
        (index in `all_runs`), and `labels`.

    Attributes:
        runs: by key, those that are read.
        all_runs: of the dataset, sorted by key.
        subjects: subject of each run by its key, see `subject_ids`.

    Raises:
        InputError: no dataset is there; while reading, a damaged file, or fewer files than readers.
    """

    def __init__(
        self,
        path_or_repo: str | Path,
        num_frames: int,
        labels: Mapping[str, int | float] | None = None,
        runs: Iterable[str] | None = None,
        is_training: bool = True,
        shuffle_buffer: int = 16,
        seed: int = 0,
        revision: str | None = None,
    ):
        folder = downloaded(path_or_repo, revision, with_data=False)
        self.source = str(path_or_repo)
        # Rows and records of one commit; its folder in the cache is named after it.
        self.revision = revision if Path(path_or_repo).is_dir() else folder.name
        self.num_frames, self.labels = num_frames, labels
        self.is_training, self.shuffle_buffer, self.seed, self.epoch = is_training, shuffle_buffer, seed, 0
        self._share, self._shares = 0, 1
        self.settings = read_settings(folder)
        self.geometry = geometry_of(self.settings)
        self.all_runs = read_runs(folder)
        self.subjects = dict(zip((run.key for run in self.all_runs), subject_ids(self.all_runs), strict=True))
        self._index = {run.key: index for index, run in enumerate(self.all_runs)}
        wanted = self._index.keys() if runs is None else set(runs)
        self.runs = {
            run.key: run
            for run in self.all_runs
            if run.key in wanted and (labels is None or labels.get(run.key) is not None)
        }

    def set_epoch(self, epoch: int) -> None:
        """Draw other windows, in another order."""
        self.epoch = epoch

    def shard(self, num_shards: int, index: int) -> "StreamedWindows":
        """The same windows, but only those of every `num_shards`-th file, from the `index`-th on."""
        if not 0 <= index < num_shards:
            raise ValueError(f"index must be from 0 to {num_shards - 1}, not {index}.")
        part = copy.copy(self)
        part._share, part._shares = self._share + self._shares * index, self._shares * num_shards
        return part

    @property
    def window_subjects(self) -> list[str]:
        """The subject of each window in the order of a single reader, for `average_by`.

        Raises:
            ValueError: training windows, whose order is drawn.
        """
        if self.is_training or self._shares > 1:
            raise ValueError("Only the order of evaluation windows (is_training=False) without shards is fixed.")
        return [
            self.subjects[key]
            for key in sorted(self.runs)
            for _ in cut_windows(self.runs[key].num_frames, self.num_frames)
        ]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        share, shares = self._share * workers + number, self._shares * workers
        generator = np.random.default_rng((self.seed, self.epoch, share))
        windows = (
            window for run, stored in self._read(share, shares) for window in self._windows(run, stored, generator)
        )
        return mixed(windows, self.shuffle_buffer, generator) if self.is_training else windows

    def _read(self, share: int, shares: int) -> Iterator[tuple[StoredRun, StoredTokens]]:
        """The runs of every `shares`-th file, from the `share`-th on."""
        folder = Path(self.source)
        is_store = (folder / RUNS_FOLDER).is_dir()
        files = sorted(self.runs) if is_store else data_files(self.source, self.revision)
        if not is_store and len(files) < shares:
            raise InputError(
                f"{self.source}: {shares} readers cannot share its {len(files)} files; use fewer workers or processes, "
                "or export with a smaller shard_bytes."
            )
        if self.is_training:
            np.random.default_rng((self.seed, self.epoch)).shuffle(files)
        expected = {run.key: run for run in self.all_runs}
        for file in files[share::shares]:
            if is_store:
                run = self.runs[file]
                yield run, open_tokens(folder / run.file, self.geometry, self.settings["dtype"], run.num_frames)
            else:
                runs = runs_in_file(file, self.settings, expected)
                yield from ((run, stored) for run, stored in runs if run.key in self.runs)

    def _windows(
        self, run: StoredRun, stored: StoredTokens, generator: np.random.Generator
    ) -> Iterator[dict[str, Any]]:
        windows = cut_windows(run.num_frames, self.num_frames)
        if self.is_training:
            frames = min(run.num_frames, self.num_frames)
            windows = [(int(generator.integers(run.num_frames - frames + 1)), frames)]
        for start, frames in windows:
            item = {
                "input_values": stored[start : start + frames].widen(),
                "repetition_time": run.repetition_time,
                "run": run.key,
                "run_index": self._index[run.key],
            }
            yield item if self.labels is None else item | {"labels": self.labels[run.key]}


def mixed(items: Iterator[Any], size: int, generator: np.random.Generator) -> Iterator[Any]:
    """The same items in an order mixed by a buffer of that size."""
    buffer: list[Any] = []
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
            continue
        if size:
            index = int(generator.integers(size))
            buffer[index], item = item, buffer[index]
        yield item
    generator.shuffle(buffer)
    yield from buffer
