"""Windows of runs as they come, from Parquet or a store, in a folder or on the Hub."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tablet_hf.datasets.parquet import RunRows, cache_folder, damage_explained, downloaded, runs_of
from tablet_hf.datasets.run_files import FRAMES_PER_BATCH, KeptTokens
from tablet_hf.datasets.splits import subject_ids
from tablet_hf.datasets.store import TokenDataset
from tablet_hf.datasets.store_files import RUNS_FOLDER, geometry_of, read_runs, read_settings
from tablet_hf.errors import InputError
from tablet_hf.tokens import cut_windows

__all__ = ["StreamedWindows", "mixed"]


class StreamedWindows(torch.utils.data.IterableDataset):
    """Windows of runs read from Parquet or a store as they come, from a folder or the Hub; nothing is kept on disk.

    The workers of a `DataLoader` share out the files among themselves, so have at least as many files; their order is
    drawn again in every epoch, and windows pass through a buffer that mixes them.

    Processes do not share by themselves, since whoever prepares the loader does: under `Trainer` and accelerate the
    first process reads and hands out batches, or each reads everything and keeps its part. In a loop of your own on
    several processes, take `windows.shard(world_size, rank)`.

    Of an export, the tokens of each run are compared with the checksum that was written next to them.

    Args:
        path_or_repo: folder of an export or of a store, or the Hub id of an export.
        num_frames: of a window. A shorter run comes whole.
        labels: by key of the run; runs without one are left out. None gives windows without labels.
        runs: keys of the runs wanted; None for all.
        is_training: one random window of each run and epoch; else all its non-overlapping windows, in order.
        keep_remainder: without training, also the shorter last window of a run.
        shuffle_buffer: windows that are held back to be mixed in training (42 MB each at 256 frames).
        revision: on the Hub.

    Yields:
        `input_values (frames, cells, features)` float16, `repetition_time` in seconds, `run` (its key), `run_index`
        (place in `all_runs`), and `labels`.

    Attributes:
        runs: by key, those that are read.
        all_runs: of the dataset, sorted by key.
        subjects: subject of each run by its key, see `subject_ids`.

    Raises:
        InputError: no dataset is there; as it is read, a file that is damaged, or fewer files than readers.
    """

    def __init__(
        self,
        path_or_repo: str | Path,
        num_frames: int,
        labels: Mapping[str, int | float] | None = None,
        runs: Iterable[str] | None = None,
        is_training: bool = True,
        keep_remainder: bool = False,
        shuffle_buffer: int = 16,
        seed: int = 0,
        revision: str | None = None,
    ):
        self.source, self.revision = str(path_or_repo), revision
        self.num_frames, self.labels = num_frames, labels
        self.is_training, self.keep_remainder = is_training, keep_remainder
        self.shuffle_buffer, self.seed, self.epoch = shuffle_buffer, seed, 0
        self._share, self._shares = 0, 1
        folder = self._descriptions()
        self.settings = read_settings(folder)
        self.geometry = geometry_of(self.settings)
        self.all_runs = read_runs(folder)
        self.subjects = dict(zip((run.key for run in self.all_runs), subject_ids(self.all_runs), strict=True))
        self._places = {run.key: place for place, run in enumerate(self.all_runs)}
        wanted = None if runs is None else set(runs)
        self.runs = {
            run.key: run
            for run in self.all_runs
            if (wanted is None or run.key in wanted) and (labels is None or labels.get(run.key) is not None)
        }

    def set_epoch(self, epoch: int) -> None:
        """Other windows, in another order."""
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
        """The subject of each window in the order in which one reader gives them, for `average_by`.

        Raises:
            ValueError: windows to train on, whose order is drawn.
        """
        if self.is_training or self._shares > 1:
            raise ValueError("Only the order of all windows to evaluate on (is_training=False) is known beforehand.")
        keys = [key for key in sorted(self.runs) for _ in self._cut(self.runs[key].num_frames)]
        return [self.subjects[key] for key in keys]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        share, shares = self._share * workers + number, self._shares * workers
        generator = np.random.default_rng((self.seed, self.epoch, share))
        windows = (window for rows in self._rows(share, shares) for window in self._windows(rows, generator))
        return mixed(windows, self.shuffle_buffer, generator) if self.is_training else windows

    def _descriptions(self) -> Path:
        """A folder with store.json and the table of runs."""
        folder = Path(self.source)
        return folder if folder.is_dir() else downloaded(self.source, self.revision, with_data=False)

    def _rows(self, share: int, shares: int) -> Iterator[RunRows]:
        order = np.random.default_rng((self.seed, self.epoch))
        folder = Path(self.source)
        if (folder / RUNS_FOLDER).is_dir():
            keys = sorted(self.runs)
            if self.is_training:
                order.shuffle(keys)
            store = TokenDataset.load(folder)
            for key in keys[share::shares]:
                yield RunRows(key, KeptTokens(store.window(key)))
            return
        from datasets import load_dataset

        # In the cache that all share, `datasets` takes folders of one name for one dataset, and reads one of them with
        # the types of the other.
        cache = cache_folder(self._descriptions(), self.source) / "streamed"
        with damage_explained(self.source):
            rows = load_dataset(
                self.source, split="train", streaming=True, revision=self.revision, cache_dir=str(cache)
            )
        if rows.num_shards < shares:
            raise InputError(
                f"{self.source}: its {rows.num_shards} files cannot be shared out among {shares} readers; use fewer "
                "workers or processes, or export with a smaller shard_bytes."
            )
        files = np.arange(rows.num_shards)
        if self.is_training:
            order.shuffle(files)
        known = {run.key: run for run in self.all_runs}
        for file in files[share::shares]:
            tables = rows.shard(num_shards=rows.num_shards, index=int(file)).with_format("arrow").iter(FRAMES_PER_BATCH)
            runs = runs_of(tables, self.geometry, self.settings["dtype"], known, f"{self.source}, file {file + 1}")
            yield from (run for run in runs if run.key in self.runs)

    def _cut(self, total: int) -> list[tuple[int, int]]:
        return cut_windows(total, self.num_frames, self.keep_remainder)

    def _windows(self, rows: RunRows, generator: np.random.Generator) -> Iterator[dict[str, Any]]:
        total = len(rows.kept.values)
        starts = [start for start, _ in self._cut(total)]
        if self.is_training:
            starts = [int(generator.integers(max(1, total - self.num_frames + 1)))]
        for start in starts:
            item = {
                "input_values": rows.tokens(start, min(self.num_frames, total - start)),
                "repetition_time": self.runs[rows.key].repetition_time,
                "run": rows.key,
                "run_index": self._places[rows.key],
            }
            yield item if self.labels is None else item | {"labels": self.labels[rows.key]}


def mixed(items: Iterator[Any], size: int, generator: np.random.Generator) -> Iterator[Any]:
    """The same items in an order mixed by a buffer of that size."""
    buffer: list[Any] = []
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
            continue
        place = int(generator.integers(size)) if size else 0
        if size:
            buffer[place], item = item, buffer[place]
        yield item
    generator.shuffle(buffer)
    yield from buffer
