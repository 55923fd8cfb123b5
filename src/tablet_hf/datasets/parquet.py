"""A store as Parquet, for the Hub: written from a store, unpacked into one, or streamed.

    EXPORT/
      README.md                              tells `datasets.load_dataset` which files hold rows
      store.json, runs.parquet, splits/      as in the store
      data/train-00000-of-00012.parquet      whole runs, a row a frame, phenotypes as typed columns

`datasets.load_dataset(EXPORT)` gives typed rows to everyone; `TokenDataset.load(EXPORT)` unpacks them once into Arrow
files of the cache, since Parquet cannot be mapped into memory; `StreamedWindows` reads them without keeping anything.
"""

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tablet_hf.datasets.run_files import (
    DTYPES,
    FRAMES_PER_BATCH,
    ONCE,
    Geometry,
    KeptTokens,
    MappedRun,
    frame_factors,
    joined,
    kept_once,
    token_values,
    write_arrow,
)
from tablet_hf.datasets.splits import Split, subject_ids
from tablet_hf.datasets.store import TokenDataset
from tablet_hf.datasets.store_files import (
    IDENTITY,
    INDEX_FILE,
    RUNS_FOLDER,
    SPLITS_FOLDER,
    STORE_FILE,
    StoredRun,
    file_checksum,
    file_fault,
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
from tablet_hf.files import atomic_folder
from tablet_hf.sources.records import typed_columns

__all__ = ["StreamedWindows", "export_parquet", "unpacked"]

SHARD_BYTES = 500_000_000
DATA_FOLDER = "data"
PUBLISHED_SETTINGS = ("format", "dtype", "preprocessing", "is_restricted", "software")
COPY_AGAIN = "copy or download the dataset again."

README = """---
configs:
- config_name: default
  data_files: data/*.parquet
tags: [fmri, neuroimaging, nifti, tablet, dc-ae]
---
Tokens of fMRI (runs: {runs:,}, people: {subjects:,}, frames: {frames:,}), a row a frame, made by tablet-hf with the
autoencoder `{autoencoder}`.
{restricted}
```python
from tablet_hf.datasets import TokenDataset
tokens = TokenDataset.load("this folder, or its Hub id")
```
"""


RESTRICTED = """
**Restricted.** The terms of these data forbid passing on what concerns single people. Tokens are such data, since scans
can be decoded from them: keep them where the scans may be kept, and do not upload them to a public place.
"""


def export_parquet(
    store: TokenDataset,
    out: str | Path,
    shard_bytes: int = SHARD_BYTES,
    on_progress: Callable[[int, int], None] | None = None,
    published: Sequence[StoredRun] | None = None,
) -> Path:
    """Write a store as Parquet files of whole runs.

    Each run is compared with its checksum as it is read, and the checksum of its numbers goes along. Names and times of
    scans, and where a local autoencoder lies, stay behind; so do problems.tsv and logs. Subjects and splits go along.

    Args:
        out: a folder that is not there yet or empty. It is made under another name first, so a folder of that name is
            always whole.
        shard_bytes: size of tokens at which a file is closed; a run is never divided.
        on_progress: is told runs done and runs in all.
        published: what is told of each run, in the order of `store.runs`, with other names for people say (see
            `tablet_hf.hub.privacy.published_runs`); splits get these names too, and of the settings only those that
            every store has go along. None tells what the store does.

    Raises:
        InputError: `out` holds something, or a run is damaged.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: it is there already; choose another folder for the export.")
    with atomic_folder(out) as unfinished:
        told = list(store.runs if published is None else published)
        columns, runs = _write_shards(store, told, unfinished / DATA_FOLDER, shard_bytes, on_progress)
        settings = store.settings | {"preprocessing": without_paths(store.preprocessing)}
        if published is not None:
            settings = {name: settings[name] for name in PUBLISHED_SETTINGS if name in settings}
            known = (*IDENTITY, "autoencoder", "autoencoder_subfolder", "feature_extractor_type")
            settings["preprocessing"] = {
                name: value for name, value in settings["preprocessing"].items() if name in known
            }
        write_settings(unfinished, settings | {"phenotype_columns": columns})
        write_index(unfinished, runs)
        if (store.folder / SPLITS_FOLDER).is_dir():
            if published is None:
                shutil.copytree(store.folder / SPLITS_FOLDER, unfinished / SPLITS_FOLDER)
            else:
                _publish_splits(store, published, unfinished / SPLITS_FOLDER)
        people = {(run.dataset, run.subject) for run in store.runs}
        text = README.format(
            runs=len(store.runs),
            subjects=len(people),
            frames=sum(run.num_frames for run in store.runs),
            autoencoder=" ".join(
                filter(None, (settings["preprocessing"].get(name) for name in ("autoencoder", "autoencoder_revision")))
            ),
            restricted=RESTRICTED if settings["is_restricted"] else "",
        )
        (unfinished / "README.md").write_text(text, encoding="utf-8")
    return out


def _publish_splits(store: TokenDataset, published: Sequence[StoredRun], folder: Path) -> None:
    from tablet_hf.datasets.split_files import DELIMITERS, read_splits, write_splits

    for path in sorted((store.folder / SPLITS_FOLDER).iterdir()):
        if path.suffix.lower() in DELIMITERS:
            splits = read_splits(path, runs=store.runs)
            write_splits([_published_split(split, store, published) for split in splits], folder / path.name)


def _published_split(split: Split, store: TokenDataset, published: Sequence[StoredRun]) -> Split:
    """A split with the names that people have in the published runs, without how it was drawn but for numbers."""
    names = dict(zip(subject_ids(store.runs), subject_ids(published), strict=True))
    settings = {name: value for name, value in split.settings.items() if isinstance(value, int | float | bool)}
    return Split(
        split.name,
        {names[subject]: part for subject, part in split.assignment.items()},
        split.seed,
        settings,
        tuple(names[subject] for subject in split.left_out),
    )


def _write_shards(
    store: TokenDataset,
    told: Sequence[StoredRun],
    folder: Path,
    shard_bytes: int,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, str], list[StoredRun]]:
    """Write the rows of all runs, and give the phenotype that each column of them holds, and the runs as exported."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    kinds = typed_columns([run.phenotypes for run in told])
    names = phenotype_columns(kinds)
    # By the names that are told: the order of others would tell of these.
    pairs = sorted(zip(store.runs, told, strict=True), key=lambda pair: pair[1].key)
    shards = _shards(pairs, shard_bytes)
    exported: list[StoredRun] = []
    for number, runs in enumerate(shards):
        path = folder / f"train-{number:05d}-of-{len(shards):05d}.parquet"
        writer = None
        for run, known in runs:
            file = store.folder / run.file
            if fault := file_fault(file, run):
                raise InputError(fault)
            for batch in _rows(file, store.dtype, known, kinds, names):
                if writer is None:
                    # The numbers are noise to any general compressor; zstd's lowest level takes what little there is.
                    writer = pq.ParquetWriter(path, batch.schema, compression="zstd", compression_level=1,
                                              use_dictionary=False, write_statistics=False,
                                              write_page_checksum=True)  # fmt: skip
                # A run without tokens of its mean has those columns last.
                writer.write_table(pa.Table.from_batches([batch]).select(writer.schema.names))
            kept = MappedRun(file, store.geometry, store.dtype, run.num_frames).whole()
            checksum = kept.checksum()
            if known is not run:
                # That of a file which has the names that people have would tell them to who tries all names.
                known = replace(known, sha256=checksum)
            exported.append(_without_source(replace(known, tokens_sha256=checksum)))
            if on_progress is not None:
                on_progress(len(exported), len(store.runs))
        writer.close()
    return {column: name for name, column in names.items()}, exported


def _without_source(run: StoredRun) -> StoredRun:
    """The run without name and time of its scan, which may tell a hospital's numbers or a person's day of visit."""
    scan = hashlib.sha256(json.dumps(run.scan, sort_keys=True).encode()).hexdigest()
    return replace(run, scan=run.scan if set(run.scan) == {"sha256"} else {"sha256": scan}, beside=None)


def without_paths(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """What made the tokens; of an autoencoder in a folder, the folder's name alone. Its revision tells its weights."""
    name = str(preprocessing["autoencoder"])
    is_folder = Path(name).is_dir() or name.startswith((".", "~")) or Path(name).is_absolute() or name.count("/") > 1
    return dict(preprocessing) | ({"autoencoder": Path(name).name} if is_folder else {})


def phenotype_columns(kinds: dict[str, type]) -> dict[str, str]:
    """The column of each phenotype: its own name, unless a column of the tokens is called so."""
    taken = {"subject", "session", "task", "run", "dataset", "site", "family", "frame", "num_frames", "tokens"}
    taken |= {"key", "repetition_time", "intensity_scale", "frame_scale", *ONCE}
    return {name: f"phenotype_{name}" if name in taken else name for name in kinds}


def _shards(runs: Sequence[tuple[StoredRun, StoredRun]], shard_bytes: int) -> list[list[tuple[StoredRun, StoredRun]]]:
    shards: list[list[tuple[StoredRun, StoredRun]]] = [[]]
    size = 0
    for run, told in runs:
        if shards[-1] and size + run.num_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append((run, told))
        size += run.num_bytes
    return shards


def _rows(file: Path, dtype: str, run: StoredRun, kinds: dict[str, type], names: dict[str, str]) -> Iterator[Any]:
    """The rows of a run's file as record batches, with what is told of the run in each."""
    import pyarrow as pa
    from datasets import Features, Value

    arrow = {bool: "bool", int: "int64", float: "float64", str: "string"}
    with pa.memory_map(os.fsencode(file)) as source:
        for batch in pa.ipc.open_stream(source):
            count = len(batch)
            kept_elsewhere = (*ONCE, "tokens", "frame_scale")
            columns = {name: batch.column(name) for name in batch.schema.names if name not in kept_elsewhere}
            features = dict(Features.from_arrow_schema(batch.schema))
            for name in ("subject", "session", "task", "run", "dataset"):
                if name in columns:
                    columns[name] = pa.array([getattr(run, name)] * count, features[name].pa_type)
            added = {
                "repetition_time": (run.repetition_time, float),
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
            if dtype == "int8":
                features["frame_scale"] = Value("float32")
                columns["frame_scale"] = batch.column("frame_scale")
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
        for rows in runs_of(_tables(path), geometry, settings["dtype"], known, path):
            run = known[rows.key]
            file = target / run.file
            if not sidecar_of(file).is_file():
                checksum, size = write_arrow(file, rows.kept, run)
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
    """The rows of one run: its key, and its tokens as they are kept."""

    key: str
    kept: KeptTokens

    def tokens(self, start: int, frames: int) -> Tensor:
        """(frames, cells, features) float16, a copy."""
        part = self.kept[start : start + frames]
        return part.widen(torch.empty(part.values.shape, dtype=torch.float16))


def runs_of(
    tables: Iterable[Any], geometry: Geometry, dtype: str, known: Mapping[str, StoredRun], file: Any
) -> Iterator[RunRows]:
    """Rows of a file put together run by run; the rows of a run stand behind one another.

    Raises:
        InputError: the file is damaged, or the tokens of a run are not those whose checksum `known` has for its key.
    """
    key, parts = None, []
    with _damage_told(file):
        for table in tables:
            for batch in table.combine_chunks().to_batches():
                keys = batch.column("key").to_pylist()
                begin = 0
                while begin < len(keys):
                    if keys[begin] != key:
                        if parts:
                            yield _whole_run(key, parts, known, file)
                        key, parts = keys[begin], []
                    end = begin
                    while end < len(keys) and keys[end] == key:
                        end += 1
                    rows = batch.slice(begin, end - begin)
                    values = token_values(rows.column("tokens"), geometry, DTYPES[dtype])
                    once = {} if parts else {name: kept_once(rows, name, geometry) for name in ONCE}
                    parts.append(KeptTokens(values, **once, frame_scale=frame_factors(rows)))
                    begin = end
        if parts:
            yield _whole_run(key, parts, known, file)


def _whole_run(key: str, parts: Sequence[KeptTokens], known: Mapping[str, StoredRun], file: Any) -> RunRows:
    run, kept = known.get(key), joined(parts)
    if run is None:
        raise InputError(f"{file}: it holds a run {key} that {INDEX_FILE} does not know; {COPY_AGAIN}")
    if len(kept.values) != run.num_frames or run.tokens_sha256 != kept.checksum():
        raise InputError(f"{file}: the tokens of {key} are not those that were exported; {COPY_AGAIN}")
    return RunRows(key, kept)


@contextmanager
def _damage_told(file: Any) -> Iterator[None]:
    """What pyarrow says of a damaged file as one sentence."""
    import pyarrow as pa

    try:
        yield
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(f"{file}: it is damaged or out of reach ({reason}); {COPY_AGAIN}") from error


def _tables(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _damage_told(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        for batch in file.iter_batches(batch_size=FRAMES_PER_BATCH):
            yield pa.Table.from_batches([batch])


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

    The workers of a `DataLoader` share out the files among themselves, so have at least as many files; their order is
    drawn anew in every epoch, and windows pass through a buffer that mixes them.

    Processes do not share by themselves, since whoever prepares the loader does: under `Trainer` and accelerate the
    first process reads and hands out batches, or each reads everything and keeps its part. In a loop of your own on
    several processes, take `windows.shard(world_size, rank)`.

    Of an export, the tokens of each run are compared with the checksum that was written beside them.

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
        keys = [key for key in sorted(self.runs) for _ in self._starts(self.runs[key].num_frames)]
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
                yield RunRows(key, KeptTokens(store.window(key)))
            return
        from datasets import load_dataset

        # In the cache that all share, `datasets` takes folders of one name for one dataset, and reads one of them with
        # the types of the other.
        cache = _cache_folder(self._descriptions(), self.source) / "streamed"
        with _damage_told(self.source):
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

    def _starts(self, total: int) -> range:
        """First frames of the windows of a run of `total` frames, to evaluate on."""
        if total <= self.num_frames:
            return range(1)
        return range(0, total if self.keep_remainder else total - self.num_frames + 1, self.num_frames)

    def _windows(self, rows: RunRows, generator: np.random.Generator) -> Iterator[dict[str, Any]]:
        total = len(rows.kept.values)
        starts = self._starts(total)
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
