"""Reading a store that was exported as Parquet, from a folder or the Hub.

    EXPORT/
      README.md                              names the files that hold rows, for `datasets.load_dataset`
      store.json, runs.parquet, splits/      as in the store
      data/train-00000-of-00012.parquet      whole runs, a row a frame, phenotypes as typed columns

`datasets.load_dataset(EXPORT)` gives typed rows to everyone; `TokenDataset.load(EXPORT)` unpacks them once into Arrow
files of the cache, since Parquet cannot be mapped into memory; `tablet_hf.datasets.streaming` reads them and keeps
nothing. `tablet_hf.datasets.export` writes them.
"""

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tablet_hf.datasets.run_files import (
    DTYPES,
    FRAMES_PER_BATCH,
    ONCE,
    Geometry,
    KeptTokens,
    frame_factors,
    joined,
    kept_once,
    token_values,
    write_arrow,
)
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
from tablet_hf.files import file_checksum

__all__ = ["DATA_FOLDER", "RunRows", "cache_folder", "damage_explained", "downloaded", "runs_of", "unpacked"]

DATA_FOLDER = "data"
COPY_AGAIN = "copy or download the dataset again."


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
        source = downloaded(str(path_or_repo), revision)
        origin = str(source)
    target = cache_folder(source, origin)
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
    with damage_explained(file):
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
def damage_explained(file: Any) -> Iterator[None]:
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

    with damage_explained(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        for batch in file.iter_batches(batch_size=FRAMES_PER_BATCH):
            yield pa.Table.from_batches([batch])


def downloaded(repo: str, revision: str | None, with_data: bool = True) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = [STORE_FILE, INDEX_FILE, f"{SPLITS_FOLDER}/*"] + [f"{DATA_FOLDER}/*.parquet"] * with_data
    try:
        return Path(snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=patterns))
    except (HFValidationError, OSError) as error:
        if told := not_on_hub(error, repo, "dataset", revision):
            raise told from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(
            f"{repo}: no token dataset could be had under this name ({reason}); give the folder of a store, or a "
            "dataset on the Hub that this machine can reach or has cached."
        ) from error


def cache_folder(source: Path, origin: str) -> Path:
    """Named after the place and the table of runs, which tells one state of a dataset from another."""
    from huggingface_hub.constants import HF_HOME

    state = hashlib.sha256(f"{origin} {file_checksum(source / INDEX_FILE)}".encode()).hexdigest()[:16]
    return Path(HF_HOME) / "tablet_hf" / "token_datasets" / state
