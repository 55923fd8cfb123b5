"""Writing a store as Parquet, for the Hub; `tablet_hf.datasets.parquet` describes the files, and reads them."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tablet_hf.datasets.parquet import DATA_FOLDER
from tablet_hf.datasets.run_files import ONCE, MappedRun
from tablet_hf.datasets.split_files import DELIMITERS, read_splits, write_splits
from tablet_hf.datasets.splits import Split, subject_ids
from tablet_hf.datasets.store import TokenDataset
from tablet_hf.datasets.store_files import (
    IDENTITY,
    SPLITS_FOLDER,
    StoredRun,
    file_fault,
    write_index,
    write_settings,
)
from tablet_hf.errors import InputError
from tablet_hf.files import atomic_folder, checksum
from tablet_hf.sources.records import typed_columns

__all__ = ["export_parquet", "without_paths"]

SHARD_BYTES = 500_000_000
PUBLISHED_SETTINGS = ("format", "dtype", "preprocessing", "is_restricted", "software")

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
    scans, and where a local autoencoder is, stay behind; so do problems.tsv and logs. Subjects and splits go along.

    Args:
        out: a folder that is not there yet or empty. It is made under another name first, so a folder of that name is
            always whole.
        shard_bytes: size of tokens at which a file is closed; a run is never divided.
        on_progress: is reported runs done and runs in all.
        published: what is reported of each run, in the order of `store.runs`, with other names for subjects say (see
            `tablet_hf.hub.privacy.published_runs`); splits get these names too, and of the settings only those that
            every store has go along. None says what the store does.

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
    for path in sorted((store.folder / SPLITS_FOLDER).iterdir()):
        if path.suffix.lower() in DELIMITERS:
            splits = read_splits(path, runs=store.runs)
            write_splits([_published_split(split, store, published) for split in splits], folder / path.name)


def _published_split(split: Split, store: TokenDataset, published: Sequence[StoredRun]) -> Split:
    """A split with the names that subjects have in the published runs, without how it was drawn but for numbers."""
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
    # By the names that are reported: the order of others would tell of these.
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
                # That of a file which has the names that subjects have would tell them to who tries all names.
                known = replace(known, sha256=checksum)
            exported.append(_without_source(replace(known, tokens_sha256=checksum)))
            if on_progress is not None:
                on_progress(len(exported), len(store.runs))
        writer.close()
    return {column: name for name, column in names.items()}, exported


def _without_source(run: StoredRun) -> StoredRun:
    """The run without name and time of its scan, which may tell a hospital's numbers or a subject's day of visit."""
    scan = checksum(run.scan)
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
    """The rows of a run's file as record batches, with what is reported of the run in each."""
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
