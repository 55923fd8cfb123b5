"""Writing a store as Parquet, for the Hub; `tablet_hf.datasets.parquet` describes the files, and reads them."""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tablet_hf.datasets.parquet import DATA_FOLDER
from tablet_hf.datasets.run_files import FIRST_ROW, LABELS, open_rows, tokens_in
from tablet_hf.datasets.splits import subject_ids
from tablet_hf.datasets.store import TokenDataset
from tablet_hf.datasets.store_files import (
    IDENTITY,
    SPLITS_FOLDER,
    StoredRun,
    file_fault,
    typed_runs,
    write_index,
    write_settings,
)
from tablet_hf.errors import InputError
from tablet_hf.files import atomic_folder, checksum
from tablet_hf.sources.records import typed_columns

__all__ = ["PUBLISHED_PREPROCESSING", "export_parquet", "without_paths"]

SHARD_BYTES = 500_000_000
# Rows of one piece of a file: 10.6 MB of float16.
FRAMES_PER_GROUP = 64
PUBLISHED_PREPROCESSING = (*IDENTITY, "autoencoder", "autoencoder_subfolder", "feature_extractor_type")
RUN_COLUMNS = {
    "repetition_time": "float64",
    "key": "string",
    "site": "string",
    "family": "string",
    "num_frames": "int64",
    "intensity_scale": "float64",
}

README = """---
configs:
- config_name: default
  data_files: data/*.parquet
tags: [fmri, neuroimaging, nifti, tablet, dc-ae]
---
Tokens of fMRI (subjects: {subjects:,}, runs: {runs:,}, frames: {frames:,}), one row per frame, made by tablet-hf with
the autoencoder `{autoencoder}`.
{restricted}
```python
from tablet_hf.datasets import TokenDataset
tokens = TokenDataset.load("this folder, or its Hub id")
```
"""

RESTRICTED = """
**Restricted.** The terms of these data forbid passing on data of single subjects. Tokens are such data, since scans can
be decoded from them: keep them where the scans may be kept, and do not upload them to a public place.
"""


def export_parquet(
    store: TokenDataset,
    out: str | Path,
    shard_bytes: int = SHARD_BYTES,
    on_progress: Callable[[int, int], None] | None = None,
    published: Sequence[StoredRun] | None = None,
) -> Path:
    """Write a store as Parquet files of whole runs.

    Each run is compared with its checksum as it is read, and the checksum of its numbers is exported. Names and times
    of scans, the folder of a local autoencoder and problems.tsv stay behind; subjects and splits are exported.

    Args:
        store: the store.
        out: a folder that does not exist or is empty; it appears once it is complete.
        shard_bytes: size of tokens at which a file is closed; a run is never divided.
        on_progress: called with runs done and runs in all.
        published: records to export in place of `store.runs`, in their order, with pseudonyms for example (see
            `tablet_hf.hub.privacy.published_runs`); splits and README.md are left out then.

    Raises:
        InputError: `out` holds something, or a run is damaged.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: it is there already; choose another folder for the export.")
    made = without_paths(store.preprocessing)
    made = {name: made[name] for name in PUBLISHED_PREPROCESSING if name in made}
    settings = {name: store.settings[name] for name in ("format", "dtype", "is_restricted")}
    with atomic_folder(out) as unfinished:
        records = typed_runs(store.runs if published is None else published)
        runs = _write_shards(store, records, unfinished / DATA_FOLDER, shard_bytes, on_progress)
        write_settings(unfinished, settings | {"preprocessing": made})
        write_index(unfinished, runs)
        if published is None:
            _describe(store, unfinished, runs, made)
    return out


def _describe(store: TokenDataset, folder: Path, runs: Sequence[StoredRun], made: Mapping[str, Any]) -> None:
    """Add the splits of the store and a README; a published export has its own."""
    if (store.folder / SPLITS_FOLDER).is_dir():
        shutil.copytree(store.folder / SPLITS_FOLDER, folder / SPLITS_FOLDER)
    text = README.format(
        runs=len(runs),
        subjects=len(set(subject_ids(runs))),
        frames=sum(run.num_frames for run in runs),
        autoencoder=" ".join(filter(None, (made.get("autoencoder"), made.get("autoencoder_revision")))),
        restricted=RESTRICTED if store.settings["is_restricted"] else "",
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def without_paths(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Preprocessing settings without paths of this machine: a local autoencoder is named by its folder alone."""
    settings = dict(preprocessing)
    name = settings.get("autoencoder")
    if name is not None and (not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) or Path(name).is_dir()):
        settings["autoencoder"] = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    for field in ("autoencoder_revision", "autoencoder_subfolder"):
        if not re.fullmatch(r"(?:sha256:)?\w[\w.-]*(?:/\w[\w.-]*)*", str(settings.get(field) or "none")):
            del settings[field]
    return settings


def _write_shards(
    store: TokenDataset,
    records: Sequence[StoredRun],
    folder: Path,
    shard_bytes: int,
    on_progress: Callable[[int, int], None] | None,
) -> list[StoredRun]:
    """Write the rows of all runs, and return the exported records."""
    import pyarrow.parquet as pq

    folder.mkdir()
    kinds = typed_columns([record.phenotypes for record in records])
    taken = {*LABELS, *RUN_COLUMNS, *FIRST_ROW, "frame", "frame_scale", "tokens"}
    columns = {name: f"phenotype_{name}" if name in taken else name for name in kinds}
    schema = _schema(store, {columns[name]: kind for name, kind in kinds.items()})
    # In the order of the exported names: that of the store's would reveal those.
    pairs = sorted(zip(store.runs, records, strict=True), key=lambda pair: pair[1].key)
    shards, size = [[]], 0
    for run, record in pairs:
        if shards[-1] and size + run.num_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append((run, record))
        size += run.num_bytes
    exported: list[StoredRun] = []
    for number, shard in enumerate(shards):
        path = folder / f"train-{number:05d}-of-{len(shards):05d}.parquet"
        # The numbers are noise to any general compressor; zstd's lowest level takes what little there is.
        with pq.ParquetWriter(path, schema, compression="zstd", compression_level=1, use_dictionary=False,
                              write_statistics=False, write_page_checksum=True) as writer:  # fmt: skip
            for run, record in shard:
                if fault := file_fault(store.folder / run.file, run):
                    raise InputError(fault)
                rows = open_rows(store.folder / run.file)
                writer.write_table(_rows(rows, record, schema, columns), row_group_size=FRAMES_PER_GROUP)
                stored = tokens_in(rows, store.geometry, store.dtype)
                # Names and times of scans may hold a hospital's numbers or the day of a visit.
                scan = {"sha256": checksum(run.scan)}
                exported.append(replace(record, scan=scan, companions=None, sha256=stored.checksum()))
                if on_progress is not None:
                    on_progress(len(exported), len(store.runs))
    return exported


def _schema(store: TokenDataset, phenotypes: Mapping[str, type]) -> Any:
    """The Arrow columns of an export, the same in all of its files."""
    from datasets import Array2D, Features, Value

    types = {bool: "bool", int: "int64", float: "float64", str: "string"}
    features = dict.fromkeys(LABELS, Value("string")) | {"frame": Value("int32")}
    features |= {name: Value(kind) for name, kind in RUN_COLUMNS.items()}
    features |= {column: Value(types[kind]) for column, kind in phenotypes.items()}
    features |= {"frame_scale": Value("float32")} if store.dtype == "int8" else {}
    features |= dict.fromkeys(FIRST_ROW, Value("binary"))
    return Features(features | {"tokens": Array2D(store.geometry.shape, store.dtype)}).arrow_schema


def _rows(stored: Any, record: StoredRun, schema: Any, columns: Mapping[str, str]) -> Any:
    """The stored rows of a run with the labels and phenotypes of its record."""
    import pyarrow as pa

    cells = {name: getattr(record, name) for name in (*LABELS, *RUN_COLUMNS)}
    cells |= {column: record.phenotypes[name] for name, column in columns.items()}
    arrays = {name: pa.repeat(pa.scalar(value, schema.field(name).type), len(stored)) for name, value in cells.items()}
    arrays |= {name: pa.nulls(len(stored), pa.binary()) for name in FIRST_ROW if name not in stored.column_names}
    return pa.table([arrays[name] if name in arrays else stored[name] for name in schema.names], schema=schema)
