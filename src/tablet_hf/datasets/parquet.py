"""A store as Parquet, for the Hub: written from a store, unpacked into one, or streamed.

    EXPORT/
      README.md                              tells `datasets.load_dataset` which files hold rows
      store.json, runs.parquet, splits/      as in the store
      data/train-00000-of-00012.parquet      whole runs, a row a frame, phenotypes as typed columns

`datasets.load_dataset(EXPORT)` gives typed rows to everyone; `TokenDataset.load(EXPORT)` unpacks them once into Arrow
files of the cache, since Parquet cannot be mapped into memory; `StreamedWindows` reads them without keeping anything.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tablet_hf.datasets.run_files import (
    DTYPES,
    FRAMES_PER_BATCH,
    Geometry,
    kept_once,
    token_values,
    widen,
    write_arrow,
)
from tablet_hf.datasets.store import (
    INDEX_FILE,
    RUNS_FOLDER,
    SPLITS_FOLDER,
    STORE_FILE,
    StoredRun,
    TokenDataset,
    file_checksum,
    geometry_of,
    read_index,
    read_runs,
    read_settings,
    read_sidecar,
    sidecar_of,
    write_index,
    write_settings,
    write_sidecar,
)
from tablet_hf.errors import InputError, not_on_hub
from tablet_hf.files import folder_written_whole

__all__ = ["StreamedWindows", "export_parquet", "unpacked"]

SHARD_BYTES = 500_000_000
DATA_FOLDER = "data"

# Columns that hold something in the first row of a run alone.
ONCE = ("token_mean", "token_scale", "mean_tokens")

README = """---
configs:
- config_name: default
  data_files: data/*.parquet
tags: [fmri, neuroimaging, nifti, tablet, dc-ae]
---
Tokens of {runs:,} fMRI runs of {subjects:,} people ({frames:,} frames), a row a frame, made by tablet-hf with the
autoencoder `{autoencoder}`.

```python
from tablet_hf.datasets import TokenDataset
tokens = TokenDataset.load("this folder, or its Hub id")
```
"""


def export_parquet(
    store: TokenDataset,
    out: str | Path,
    shard_bytes: int = SHARD_BYTES,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a store as Parquet files of whole runs.

    Args:
        out: a folder that is not there yet or empty. It is made under another name first, so a folder of that name is
            always whole.
        shard_bytes: size of tokens at which a file is closed; a run is never divided.
        on_progress: is told runs done and runs in all.

    Raises:
        InputError: `out` holds something.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: it is there already; choose another folder for the export.")
    with folder_written_whole(out) as unfinished:
        columns = _write_shards(store, unfinished / DATA_FOLDER, shard_bytes, on_progress)
        write_settings(unfinished, store.settings | {"phenotype_columns": columns})
        write_index(unfinished, store.runs)
        if (store.folder / SPLITS_FOLDER).is_dir():
            shutil.copytree(store.folder / SPLITS_FOLDER, unfinished / SPLITS_FOLDER)
        people = {(run.dataset, run.subject) for run in store.runs}
        text = README.format(
            runs=len(store.runs),
            subjects=len(people),
            frames=sum(run.num_frames for run in store.runs),
            autoencoder=store.preprocessing["autoencoder"],
        )
        (unfinished / "README.md").write_text(text, encoding="utf-8")
    return out


def _write_shards(
    store: TokenDataset, folder: Path, shard_bytes: int, on_progress: Callable[[int, int], None] | None
) -> dict[str, str]:
    """Write the rows of all runs, and give the phenotype that each column of them holds."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    kinds = store.phenotype_types()
    names = phenotype_columns(kinds)
    shards = _shards(store.runs, shard_bytes)
    done = 0
    for number, runs in enumerate(shards):
        path = folder / f"train-{number:05d}-of-{len(shards):05d}.parquet"
        writer = None
        for run in runs:
            for batch in _rows(store, run, kinds, names):
                if writer is None:
                    # The numbers are noise to any general compressor; zstd's lowest level takes what little there is.
                    writer = pq.ParquetWriter(path, batch.schema, compression="zstd", compression_level=1,
                                              use_dictionary=False, write_statistics=False)  # fmt: skip
                # A run without tokens of its mean has those columns last.
                writer.write_table(pa.Table.from_batches([batch]).select(writer.schema.names))
            done += 1
            if on_progress is not None:
                on_progress(done, len(store.runs))
        writer.close()
    return {column: name for name, column in names.items()}


def phenotype_columns(kinds: dict[str, type]) -> dict[str, str]:
    """The column of each phenotype: its own name, unless a column of the tokens is called so."""
    taken = {"subject", "session", "task", "run", "dataset", "site", "family", "frame", "num_frames", "tokens"}
    taken |= {"key", "repetition_time", "intensity_scale", "token_mean", "token_scale", "mean_tokens"}
    return {name: f"phenotype_{name}" if name in taken else name for name in kinds}


def _shards(runs: Sequence[StoredRun], shard_bytes: int) -> list[list[StoredRun]]:
    shards: list[list[StoredRun]] = [[]]
    size = 0
    for run in runs:
        if shards[-1] and size + run.num_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(run)
        size += run.num_bytes
    return shards


def _rows(store: TokenDataset, run: StoredRun, kinds: dict[str, type], names: dict[str, str]) -> Iterator[Any]:
    """A run's rows as record batches, with what the sidecar knows added to each."""
    import pyarrow as pa
    from datasets import Features, Value

    arrow = {bool: "bool", int: "int64", float: "float64", str: "string"}
    with pa.memory_map(str(store.folder / run.file)) as source:
        for batch in pa.ipc.open_stream(source):
            count = len(batch)
            columns = {name: batch.column(name) for name in batch.schema.names if name not in (*ONCE, "tokens")}
            features = dict(Features.from_arrow_schema(batch.schema))
            added = {
                "key": (run.key, str),
                "site": (run.site, str),
                "family": (run.family, str),
                "num_frames": (run.num_frames, int),
            }
            added |= {"intensity_scale": (run.intensity_scale, float)}
            added |= {names[name]: (run.phenotypes.get(name), kind) for name, kind in kinds.items()}
            for name, (value, kind) in added.items():
                features[name] = Value(arrow[kind])
                cell = None if value is None else kind(value)
                columns[name] = pa.array([cell] * count, features[name].pa_type)
            for name in ONCE:
                # Every file of one export has the same columns, whichever of them a run needs.
                features[name] = Value("binary")
                has_it = name in batch.schema.names
                columns[name] = batch.column(name) if has_it else pa.array([None] * count, pa.binary())
            columns["tokens"], tokens = batch.column("tokens"), features.pop("tokens")
            schema = Features(features | {"tokens": tokens}).arrow_schema
            yield pa.record_batch([columns[name] for name in schema.names], schema=schema)


# --- back again


def unpacked(path_or_repo: str | Path, revision: str | None = None) -> Path:
    """The folder of a store with what a Parquet export holds, made in the cache at the first call.

    Raises:
        InputError: there is no export, here or on the Hub.
    """
    source = Path(path_or_repo)
    if source.is_dir():
        if not (source / DATA_FOLDER).is_dir():
            read_settings(source)  # says what is missing
            raise InputError(f"{source}: it holds neither runs nor Parquet files of a token dataset; check the path.")
        origin = str(source.resolve())
    else:
        source = _downloaded(str(path_or_repo), revision)
        origin = str(source)
    target = _cache_folder(source, origin)
    if (target / INDEX_FILE).is_file():
        return target
    settings = read_settings(source)
    geometry, known = geometry_of(settings), {run.key: run for run in read_index(source)}
    runs = []
    for path in sorted((source / DATA_FOLDER).glob("*.parquet")):
        for rows in runs_of(_tables(path), geometry, settings["dtype"]):
            run = known[rows.key]
            file = target / run.file
            if not sidecar_of(file).is_file():
                checksum, size = write_arrow(file, rows.values, run, run.repetition_time, rows.once)
                run = replace(run, sha256=checksum, num_bytes=size)
                write_sidecar(run, sidecar_of(file))
            runs.append(read_sidecar(sidecar_of(file)))
    if missing := known.keys() - {run.key for run in runs}:
        raise InputError(
            f"{source}: {len(missing)} of its {len(known)} runs are in none of its Parquet files, first "
            f"{min(missing)}; copy or download it again."
        )
    if (source / SPLITS_FOLDER).is_dir():
        shutil.copytree(source / SPLITS_FOLDER, target / SPLITS_FOLDER, dirs_exist_ok=True)
    write_settings(target, settings)
    write_index(target, sorted(runs, key=lambda run: run.key))
    return target


@dataclass(frozen=True)
class RunRows:
    """The rows of one run: its key, values (frames, cells, features) as kept, and what its first row alone holds."""

    key: str
    values: Tensor
    once: tuple[Tensor | None, Tensor | None, Tensor | None]

    def tokens(self, start: int, frames: int) -> Tensor:
        """(frames, cells, features) float16, a copy."""
        part = self.values[start : start + frames]
        mean, scale, _ = self.once
        tokens = torch.empty(part.shape, dtype=torch.float16)
        widen(part, mean, scale, tokens)
        return tokens


def runs_of(tables: Iterable[Any], geometry: Geometry, dtype: str) -> Iterator[RunRows]:
    """Rows put together run by run; the rows of a run stand behind one another."""
    key, once, parts = None, None, []
    for table in tables:
        for batch in table.combine_chunks().to_batches():
            keys = batch.column("key").to_pylist()
            begin = 0
            while begin < len(keys):
                if keys[begin] != key:
                    if parts:
                        yield RunRows(key, torch.cat(parts), once)
                    key, parts = keys[begin], []
                    once = tuple(kept_once(batch.column(name)[begin], geometry) for name in ONCE)
                end = begin
                while end < len(keys) and keys[end] == key:
                    end += 1
                values = token_values(batch.column("tokens").slice(begin, end - begin), geometry, DTYPES[dtype])
                parts.append(values)
                begin = end
    if parts:
        yield RunRows(key, torch.cat(parts), once)


def _tables(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=FRAMES_PER_BATCH):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: it cannot be read ({error}); copy or download it again.") from error


def _downloaded(repo: str, revision: str | None, with_data: bool = True) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [STORE_FILE, INDEX_FILE, f"{SPLITS_FOLDER}/*"] + [f"{DATA_FOLDER}/*.parquet"] * with_data
    try:
        return Path(snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise InputError(f"{repo}: there is no such folder, and datasets on the Hub are called owner/name.") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        if told := not_on_hub(error, repo, "dataset", revision):
            raise told from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(
            f"{repo}: no token dataset could be had under this name ({reason}); give the folder of a store, or a "
            "dataset on the Hub that this machine can reach or has cached."
        ) from error


def _cache_folder(source: Path, origin: str) -> Path:
    """Named after the place and the table of runs, which tells one state of a dataset from another."""
    import hashlib

    from huggingface_hub.constants import HF_HOME

    state = hashlib.sha256(f"{origin} {file_checksum(source / INDEX_FILE)}".encode()).hexdigest()[:16]
    return Path(HF_HOME) / "tablet_hf" / "token_datasets" / state


# --- streaming


class StreamedWindows(torch.utils.data.IterableDataset):
    """Windows of runs read from Parquet or a store as they come, from a folder or the Hub; nothing is kept on disk.

    Files are shared out among the processes of `torch.distributed` and the workers of a `DataLoader`, so have at least
    as many of them; their order is drawn anew in every epoch, and windows pass through a buffer that mixes them.

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
        `input_values (frames, cells, features)` float16, `repetition_time` in seconds, `run` (its key), and `labels`.
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
        folder = self._descriptions()
        self.settings = read_settings(folder)
        self.geometry = geometry_of(self.settings)
        wanted = None if runs is None else set(runs)
        self.runs = {
            run.key: run
            for run in read_runs(folder)
            if (wanted is None or run.key in wanted) and (labels is None or labels.get(run.key) is not None)
        }

    def set_epoch(self, epoch: int) -> None:
        """Other windows, in another order."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if is_distributed else (0, 1)
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        share, shares = rank * workers + number, world * workers
        generator = np.random.default_rng((self.seed, self.epoch, share))
        windows = (window for rows in self._rows(share, shares) for window in self._windows(rows, generator))
        return mixed(windows, self.shuffle_buffer, generator) if self.is_training else windows

    def _descriptions(self) -> Path:
        """A folder with store.json and the table of runs."""
        folder = Path(self.source)
        return folder if folder.is_dir() else _downloaded(self.source, self.revision, with_data=False)

    def _rows(self, share: int, shares: int) -> Iterator[RunRows]:
        order = np.random.default_rng((self.seed, self.epoch))
        folder = Path(self.source)
        if (folder / RUNS_FOLDER).is_dir():
            keys = sorted(self.runs)
            if self.is_training:
                order.shuffle(keys)
            store = TokenDataset.load(folder)
            for key in keys[share::shares]:
                yield RunRows(key, store.window(key), (None, None, None))
            return
        from datasets import load_dataset

        # In the cache that all share, `datasets` takes folders of one name for one dataset, and reads one of them with
        # the types of the other.
        cache = _cache_folder(self._descriptions(), self.source) / "streamed"
        rows = load_dataset(self.source, split="train", streaming=True, revision=self.revision, cache_dir=str(cache))
        if rows.num_shards < shares:
            raise InputError(
                f"{self.source}: its {rows.num_shards} files cannot be shared out among {shares} readers; use fewer "
                "workers or processes, or export with a smaller shard_bytes."
            )
        files = np.arange(rows.num_shards)
        if self.is_training:
            order.shuffle(files)
        for file in files[share::shares]:
            tables = rows.shard(num_shards=rows.num_shards, index=int(file)).with_format("arrow").iter(FRAMES_PER_BATCH)
            for run in runs_of(tables, self.geometry, self.settings["dtype"]):
                if run.key in self.runs:
                    yield run

    def _windows(self, rows: RunRows, generator: np.random.Generator) -> Iterator[dict[str, Any]]:
        total = len(rows.values)
        if self.is_training or total <= self.num_frames:
            starts = [int(generator.integers(max(1, total - self.num_frames + 1))) if self.is_training else 0]
        else:
            starts = list(range(0, total if self.keep_remainder else total - self.num_frames + 1, self.num_frames))
        for start in starts:
            item = {
                "input_values": rows.tokens(start, min(self.num_frames, total - start)),
                "repetition_time": self.runs[rows.key].repetition_time,
                "run": rows.key,
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
