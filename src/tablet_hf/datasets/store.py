"""The store: the tokens of many runs in a folder, read as windows at the speed of memory.

    tokens = TokenDataset.load("STORE")
    window = tokens.window("sub-01_task-rest", start=100, frames=256)

The files in the folder are described in `tablet_hf.datasets.store_files`, and written by `tablet_hf.datasets.writer`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tablet_hf.datasets.parquet import unpacked
from tablet_hf.datasets.run_files import StoredTokens, open_tokens
from tablet_hf.datasets.store_files import (
    RUNS_FOLDER,
    STORE_FILE,
    StoredRun,
    faults_in,
    geometry_of,
    read_runs,
    read_settings,
)
from tablet_hf.errors import InputError
from tablet_hf.sources.records import typed_columns

__all__ = ["TokenDataset"]

# Memory-mapped files that stay open: each takes a file descriptor, of which a process commonly has 1,024.
OPEN_RUNS = 256


class TokenDataset(torch.utils.data.Dataset):
    """A store of tokens, read run by run or window by window.

        tokens = TokenDataset.load("STORE")
        tokens.runs[0].subject, tokens.runs[0].phenotypes["age"]
        tokens.window(tokens.runs[0], start=100, frames=256)  # (256, 27, 3072) float16

    As a torch dataset it has one item per run: `input_values (frames, cells, features)` and `repetition_time`. Windows
    to train on are cut by `tablet_hf.datasets.windows`.

    Attributes:
        folder: folder of the store.
        runs: records of the runs, sorted by key.
        geometry: shape of the tokens of a frame.
        preprocessing: `TabletFeatureExtractor.to_dict()` of the extractor that made the tokens.
        dtype: "float16", or "int8": deviations from the run's mean token, which `window` returns as float16.
        settings: content of store.json.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], runs: Sequence[StoredRun]):
        self.folder = Path(folder)
        self.settings = dict(settings)
        self.preprocessing = dict(settings["preprocessing"])
        self.geometry = geometry_of(settings)
        self.dtype = settings["dtype"]
        self.runs = list(runs)
        self._index = {run.key: index for index, run in enumerate(self.runs)}
        self._open = lru_cache(maxsize=OPEN_RUNS)(self._open_run)

    @classmethod
    def load(cls, path_or_repo: str | Path, revision: str | None = None) -> "TokenDataset":
        """Open a store.

        Args:
            path_or_repo: folder of a store, folder of its Parquet export, or the Hub id of one; Parquet is unpacked
                into the cache of huggingface_hub once and then memory-mapped.
            revision: branch, tag or commit on the Hub.

        Raises:
            InputError: no store is there, it is of another format, or it holds no run.
        """
        folder = Path(path_or_repo)
        if not (folder / STORE_FILE).is_file() or not (folder / RUNS_FOLDER).is_dir():
            folder = unpacked(path_or_repo, revision)
        settings, runs = read_settings(folder), read_runs(folder)
        if not runs:
            raise InputError(f"{folder}: this store holds no complete run yet; run tablet-hf tokenize to its end.")
        return cls(folder, settings, runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_values": self.window(index), "repetition_time": self.runs[index].repetition_time}

    def __reduce__(self) -> tuple:
        return type(self), (self.folder, self.settings, self.runs)

    def index(self, run: StoredRun | str | int) -> int:
        """The index in `runs` of a run given by its record, its key or its index.

        Raises:
            InputError: a key that the store does not hold, or a record of another store.
            IndexError: an index beyond the last run.
        """
        if not isinstance(run, StoredRun | str):
            return range(len(self.runs))[run]
        key = run if isinstance(run, str) else run.key
        index = self._index.get(key)
        if index is None or (isinstance(run, StoredRun) and run.sha256 != self.runs[index].sha256):
            raise InputError(f"{self.folder}: it holds no such run {key!r}; the first is {self.runs[0].key!r}.")
        return index

    def window(
        self, run: StoredRun | str | int, start: int = 0, frames: int | None = None, out: Tensor | None = None
    ) -> Tensor:
        """Contiguous frames of one run.

        Args:
            run: a record of `runs`, its key, or its index.
            start: first frame.
            frames: number of frames; None for all that are left.
            out: (frames, cells, features) float16 to fill instead of new memory, e.g. a part of a pinned batch.

        Returns:
            (frames, cells, features) float16, a copy.

        Raises:
            InputError: a run that the store does not hold, frames that the run does not have, or a damaged file.
        """
        index = self.index(run)
        record = self.runs[index]
        frames = record.num_frames - start if frames is None else frames
        if start < 0 or frames < 1 or start + frames > record.num_frames:
            raise InputError(
                f"{record.key}: frames {start} to {start + frames - 1} were asked for, but it has {record.num_frames}; "
                "ask for fewer."
            )
        shape = (frames, *self.geometry.shape)
        if out is not None and (out.shape != shape or out.dtype != torch.float16 or not out.is_contiguous()):
            raise ValueError(f"out must be contiguous float16 of shape {shape}, not {out.dtype} {tuple(out.shape)}")
        return self._open(index)[start : start + frames].widen(out)

    def mean_tokens(self, run: StoredRun | str | int) -> Tensor | None:
        """Tokens of a run's mean volume for `TabletFeatureExtractor.decode`, (1, cells, features) float16, or None."""
        tokens = self._open(self.index(run)).mean_tokens
        return None if tokens is None else tokens[None]

    def phenotype_types(self) -> dict[str, type]:
        """The type of each phenotype over all runs."""
        return typed_columns([run.phenotypes for run in self.runs])

    def describe(self) -> dict[str, Any]:
        """Facts by name: subjects, runs, frames, how the tokens were made and stored, phenotypes."""
        frames = [run.num_frames for run in self.runs]
        seconds = sorted({round(run.repetition_time, 4) for run in self.runs})
        size, made = sum(run.num_bytes for run in self.runs), self.preprocessing
        facts = {
            "subjects": f"{len({(run.dataset, run.subject) for run in self.runs}):,}",
            "runs": f"{len(self.runs):,}",
            "frames": f"{sum(frames):,}, {min(frames)} to {max(frames)} per run",
            "repetition time": ", ".join(f"{value:g} s" for value in seconds[:6]) + (", ..." if seconds[6:] else ""),
            "datasets": _frequencies(run.dataset for run in self.runs),
            "sites": _frequencies(run.site for run in self.runs),
            "tasks": _frequencies(run.task for run in self.runs),
            "tokens": f"{self.geometry.num_cells} x {self.geometry.token_size:,} per frame, stored as {self.dtype}",
            "size": f"{size / 1e6:,.1f} MB, {size / sum(frames):,.0f} bytes per frame",
            "autoencoder": f"{made['autoencoder']}, {made.get('autoencoder_revision') or 'no recorded revision'}",
            "signal": f"{made.get('signal')}, scaling {made.get('scaling')}",
            "restricted": "yes: its terms forbid passing on data of single subjects"
            if self.settings["is_restricted"]
            else "not marked as such",
        }
        if errors := [run.error for run in self.runs if run.error]:
            names = ("of_temporal_deviation", "of_median_frame", "of_worst_frame")
            run, median, worst = (max(error[name] for error in errors) for name in names)
            facts["error of int8"] = (
                f"at most {run:.2%} of the temporal deviation of a run; of a run's median frame {median:.2%}, of a "
                f"single frame {worst:.2%}"
            )
        for name, kind in self.phenotype_types().items():
            values = [value for run in self.runs if (value := run.phenotypes.get(name)) is not None]
            is_range = kind in (int, float) and len(set(values)) > 6
            what = f"{min(values):g} to {max(values):g}" if is_range else _frequencies(map(str, values))
            missing = f"{len(self.runs) - len(values)} missing" if len(values) < len(self.runs) else ""
            facts[f"phenotype {name}"] = "; ".join(filter(None, (what, missing)))
        return {name: value for name, value in facts.items() if value}

    def check(self) -> list[str]:
        """Read every file again and compare it with the records; one sentence per fault."""
        return faults_in(self.folder, self.settings, self.runs)

    def _open_run(self, index: int) -> StoredTokens:
        run = self.runs[index]
        return open_tokens(self.folder / run.file, self.geometry, self.dtype, run.num_frames)


def _frequencies(values: Iterable[str | None], most: int = 8) -> str:
    """`a (12), b (3)`, the most frequent first; empty where there are none."""
    counts = Counter(value for value in values if value is not None).most_common()
    listed = ", ".join(f"{value} ({count:,})" for value, count in counts[:most])
    return f"{listed} and {len(counts) - most} more" if len(counts) > most else listed
