"""Reading a store that was exported as Parquet, from a folder or the Hub.

    EXPORT/
      README.md                              names the files that hold rows, for `datasets.load_dataset`
      store.json, runs.parquet, splits/      as in the store
      data/train-00000-of-00012.parquet      whole runs, one row per frame, phenotypes as typed columns

`datasets.load_dataset(EXPORT)` gives everyone typed rows; `TokenDataset.load(EXPORT)` unpacks them once into Arrow
files of the cache, since Parquet cannot be memory-mapped; `tablet_hf.datasets.streaming` reads them and stores nothing.
`tablet_hf.datasets.export` writes them.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from tablet_hf.datasets.run_files import StoredTokens, tokens_in, write_arrow
from tablet_hf.datasets.store_files import (
    INDEX_FILE,
    SPLITS_FOLDER,
    STORE_FILE,
    StoredRun,
    geometry_of,
    read_index,
    read_settings,
    read_sidecar,
    sidecar_of,
    write_index,
    write_settings,
    write_sidecar,
)
from tablet_hf.errors import InputError, not_on_hub
from tablet_hf.files import checksum, file_checksum

__all__ = ["DATA_FOLDER", "data_files", "downloaded", "runs_in_file", "unpacked"]

DATA_FOLDER = "data"
COPY_AGAIN = "copy or download the dataset again."


def unpacked(path_or_repo: str | Path, revision: str | None = None) -> Path:
    """Unpack a Parquet export into a store in the cache, at the first call, and return its folder.

    Raises:
        InputError: there is no export, here or on the Hub, or it is damaged.
    """
    from huggingface_hub.constants import HF_HOME

    source = downloaded(path_or_repo, revision)
    settings, index = read_settings(source), source / INDEX_FILE
    if not (source / DATA_FOLDER).is_dir():
        raise InputError(f"{source}: it holds neither runs nor Parquet files of a token dataset; check the path.")
    # The table of runs distinguishes states of a dataset.
    state = checksum([str(source.resolve()), file_checksum(index)])
    target = Path(HF_HOME) / "tablet_hf" / "token_datasets" / state[:16]
    if (target / INDEX_FILE).is_file():
        return target
    expected = {run.key: run for run in read_index(source)}
    runs = {}
    for file in data_files(source):
        for run, stored in runs_in_file(file, settings, expected):
            path = target / run.file
            if not sidecar_of(path).is_file():
                write_arrow(path, stored, run)
                run = replace(run, sha256=file_checksum(path), num_bytes=path.stat().st_size)
                write_sidecar(run, sidecar_of(path))
            runs[run.key] = read_sidecar(sidecar_of(path))
    if missing := expected.keys() - runs.keys():
        raise InputError(
            f"{source}: {len(missing)} of its {len(expected)} runs are missing, first {min(missing)}; {COPY_AGAIN}"
        )
    if (source / SPLITS_FOLDER).is_dir():
        shutil.copytree(source / SPLITS_FOLDER, target / SPLITS_FOLDER, dirs_exist_ok=True)
    write_settings(target, settings)
    write_index(target, sorted(runs.values(), key=lambda run: run.key))
    return target


def data_files(source: str | Path, revision: str | None = None) -> list[str]:
    """The Parquet files of an export, as paths or `hf://` addresses, sorted."""
    if Path(source).is_dir():
        return sorted(str(path) for path in (Path(source) / DATA_FOLDER).glob("*.parquet"))
    from huggingface_hub import HfFileSystem

    with damage_explained(source):
        found = HfFileSystem().glob(f"datasets/{source}@{revision or 'main'}/{DATA_FOLDER}/*.parquet")
    return sorted(f"hf://{path}" for path in found)


def runs_in_file(
    file: str, settings: Mapping[str, Any], expected: Mapping[str, StoredRun]
) -> Iterator[tuple[StoredRun, StoredTokens]]:
    """Read the runs of a Parquet file one after the other; each of its row groups holds rows of one run.

    Args:
        file: path or `hf://` address.
        settings: of the dataset.
        expected: all its runs by key.

    Raises:
        InputError: the file is damaged, or the tokens of a run do not have the checksum that `expected` has.
    """
    import fsspec
    import pyarrow as pa
    import pyarrow.parquet as pq

    def key_of(group: Any) -> str:
        (key,) = group["key"].unique().to_pylist()
        return key

    with (
        damage_explained(file),
        fsspec.open(file) as opened,
        pq.ParquetFile(opened, page_checksum_verification=True, pre_buffer=False) as rows,
    ):
        columns = ["key", "tokens", "frame_scale", "token_mean", "token_scale", "mean_tokens"]
        groups = (rows.read_row_group(n, columns, use_threads=False) for n in range(rows.num_row_groups))
        for key, parts in groupby(groups, key_of):
            run = expected[key]
            stored = tokens_in(pa.concat_tables(parts), geometry_of(settings), settings["dtype"])
            if len(stored.values) != run.num_frames or run.sha256 != stored.checksum():
                raise InputError(f"{file}: the tokens of {key} are not those that were exported; {COPY_AGAIN}")
            yield run, stored


@contextmanager
def damage_explained(file: Any) -> Iterator[None]:
    """Raise what pyarrow and the network raise over a damaged file as an `InputError`."""
    import pyarrow as pa

    try:
        yield
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(f"{file}: it is damaged or out of reach ({reason}); {COPY_AGAIN}") from error


def downloaded(path_or_repo: str | Path, revision: str | None = None, with_data: bool = True) -> Path:
    """The folder of an export: the given one, or that of the Hub's copy in the cache.

    Raises:
        InputError: there is no such folder or dataset, or the Hub is out of reach.
    """
    from huggingface_hub import snapshot_download

    if Path(path_or_repo).is_dir():
        return Path(path_or_repo)
    repo = str(path_or_repo)
    patterns = [STORE_FILE, INDEX_FILE, f"{SPLITS_FOLDER}/*"] + [f"{DATA_FOLDER}/*.parquet"] * with_data
    try:
        return Path(snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        if explained := not_on_hub(error, repo, "dataset", revision):
            raise explained from error
        raise InputError(f"{repo}: no token dataset could be downloaded ({error}).") from error
