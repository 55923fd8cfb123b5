"""The files of a store: what they are called, what they say of each run, and whether they are as they were written.

    STORE/
      store.json                                geometry, what made the tokens, how they are kept
      runs/sub-01/sub-01_task-rest_tokens.arrow one row a frame, memory-mapped when read
      runs/sub-01/sub-01_task-rest_tokens.json  who and when, phenotypes, checksum: written last, so it says "whole"
      runs.parquet                              all of the latter in one typed table
      splits/*.csv

A run is a pair of files of its own: it can be written by any process on any machine, is finished or not there at all,
and a subject who withdraws is a folder to delete. Rows are frames because in Arrow the values of such rows are in one
piece, so that a window is one copy, and because `datasets.load_dataset` then gives every user typed arrays; how other
layouts compare is measured in `benchmarks/token_layouts.py`. The rows themselves are the matter of
`tablet_hf.datasets.run_files`.
"""

import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from tablet_hf.datasets.run_files import DTYPES, Geometry, kept_in
from tablet_hf.errors import InputError
from tablet_hf.files import atomic_write, file_checksum
from tablet_hf.sources.records import Phenotype, Problem, typed_columns, typed_rows

__all__ = [
    "StoredRun",
    "faults_in",
    "file_fault",
    "file_of_key",
    "forget_people",
    "geometry_of",
    "is_whole_sidecar",
    "read_index",
    "read_runs",
    "read_settings",
    "read_sidecar",
    "read_sidecars",
    "sidecar_of",
    "write_index",
    "write_settings",
    "write_sidecar",
]

FORMAT = "tablet_hf token dataset 1"
STORE_FILE, INDEX_FILE, RUNS_FOLDER, SPLITS_FOLDER = "store.json", "runs.parquet", "runs", "splits"
LOGS_FOLDER, PROBLEMS_FILE = "logs", "problems.tsv"
JSON_COLUMNS = ("error", "scan", "made", "beside")
TOKENS_ENDING, SIDECAR_ENDING = "_tokens.arrow", "_tokens.json"

# Of what an extractor says of itself, what decides whether tokens are of one kind.
IDENTITY = ("autoencoder_revision", "signal", "scaling", "volume_size", "token_size", "grid_size")


@dataclass(frozen=True)
class StoredRun:
    """One run of a store.

    Attributes:
        key: unique in the store.
        subject, session, task, run, dataset, site, family: as in `ScanRecord`.
        repetition_time: seconds between frames.
        num_frames: frames.
        intensity_scale: intensity of the scan that stands for 1, for decoding.
        clipped_share: of the brain's values, those beyond the range.
        has_mean_tokens: whether the run's mean volume is kept as tokens (percent change), for decoding.
        error: of what is read against what was encoded, for int8: see `tablet_hf.datasets.run_files.quantise`.
        scan: name, size and time of the file it was made from, and a mark of its folder (`writer.mark_of_folder`);
            of an export, a checksum of these.
        file: of the tokens, relative to the store; `num_bytes` and `sha256` are its.
        phenotypes: typed.
        made: how, in the call that wrote it: what decides the tokens, the space and grid of the scan, where its mask
            came from, the encoder's precision, versions.
        beside: what stood next to the scan and speaks for it: identity of its mask file and of its BIDS sidecars, and
            the repetition time that the source gave. None in exports.
        tokens_sha256: of an export, the checksum of the numbers, see `KeptTokens.checksum`.
    """

    key: str
    subject: str
    session: str | None
    task: str | None
    run: str | None
    dataset: str | None
    site: str | None
    family: str | None
    repetition_time: float
    num_frames: int
    intensity_scale: float
    clipped_share: float
    has_mean_tokens: bool
    error: Mapping[str, float] | None
    scan: Mapping[str, Any]
    file: str
    num_bytes: int
    sha256: str
    phenotypes: Mapping[str, Phenotype]
    made: Mapping[str, Any]
    beside: Mapping[str, Any] | None
    tokens_sha256: str | None = None


# --- what the whole store is


def read_settings(folder: Path) -> dict[str, Any]:
    path = Path(folder) / STORE_FILE
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no token dataset is there ({STORE_FILE} is missing); check the path.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: it cannot be read ({error}).") from error
    if not isinstance(settings, dict) or settings.get("format") != FORMAT:
        found = settings.get("format") if isinstance(settings, dict) else type(settings).__name__
        raise InputError(f"{path}: its format is {found!r}, but this version of tablet-hf reads {FORMAT!r}.")
    preprocessing = settings.get("preprocessing")
    if not isinstance(preprocessing, dict):
        raise InputError(f"{path}: it says nothing of the preprocessing; restore it from where it was copied.")
    wanted: dict[str, Any] = {"dtype": lambda value: value in DTYPES, "is_restricted": lambda value: value in (0, 1)}
    wanted |= dict.fromkeys(("token_size", "grid_size", "volume_size"), lambda value: type(value) is int and value > 0)
    wanted |= {"autoencoder": lambda value: isinstance(value, str)}
    for name, is_right in wanted.items():
        value = (preprocessing if name in preprocessing else settings).get(name)
        if not is_right(value):
            raise InputError(f"{path}: its {name} is {value!r}; restore the file from where it was copied.")
    return settings


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    with atomic_write(folder / STORE_FILE) as unfinished:
        unfinished.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def geometry_of(settings: Mapping[str, Any]) -> Geometry:
    """That of a store, from its store.json."""
    return Geometry(*(settings["preprocessing"][name] for name in ("token_size", "grid_size", "volume_size")))


# --- a run


def file_of_key(key: str) -> Path:
    """Where a run's tokens lie, relative to the store: `runs/sub-01/sub-01_task-rest_tokens.arrow`."""
    *dataset, name = key.split("/")
    return Path(RUNS_FOLDER, *dataset, name.split("_")[0], name + TOKENS_ENDING)


def sidecar_of(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(TOKENS_ENDING) + SIDECAR_ENDING)


def write_sidecar(run: StoredRun, path: Path) -> None:
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(asdict(run), indent=1) + "\n", encoding="utf-8")


def check_stays_inside(run: StoredRun) -> StoredRun:
    """The run, unless it names a file that is elsewhere: tables of runs may come from others.

    Raises:
        ValueError: it does.
    """
    file = PurePosixPath(run.file)
    if file.is_absolute() or file.parts[:1] != (RUNS_FOLDER,) or ".." in file.parts or "\\" in run.file:
        raise ValueError(f"{run.key} names the file {run.file!r}, which is not one of the store")
    return run


def read_sidecar(path: Path) -> StoredRun:
    try:
        run = check_stays_inside(StoredRun(**json.loads(path.read_text(encoding="utf-8"))))
        if wrong := [name for name, kinds in _FIELDS.items() if not isinstance(getattr(run, name), kinds)]:
            raise ValueError(f"its {wrong[0]} is {getattr(run, wrong[0])!r}")
        return run
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: it does not describe a run ({error}); delete it and tokenize the run again."
        ) from error


def is_whole_sidecar(path: Path) -> bool:
    try:
        read_sidecar(path)
    except InputError:
        return False
    return True


_FIELDS: dict[str, Any] = dict.fromkeys(("key", "subject", "file", "sha256"), str)
_FIELDS |= dict.fromkeys(("session", "task", "run", "dataset", "site", "family", "tokens_sha256"), str | None)
_FIELDS |= dict.fromkeys(("num_frames", "num_bytes"), int)
_FIELDS |= dict.fromkeys(("repetition_time", "intensity_scale", "clipped_share"), int | float)
_FIELDS |= dict.fromkeys(("scan", "phenotypes", "made"), Mapping)
_FIELDS |= dict.fromkeys(("error", "beside"), Mapping | None)


def read_sidecars(folder: Path) -> tuple[list[StoredRun], list[Problem]]:
    """All finished runs, sorted by key, and the sidecars that cannot be read."""
    runs, problems = [], []
    for path in sorted((folder / RUNS_FOLDER).rglob(f"*{SIDECAR_ENDING}")):
        try:
            runs.append(read_sidecar(path))
        except InputError as error:
            problems.append(Problem(str(path), str(error).removeprefix(f"{path}: ")))
    return sorted(runs, key=lambda run: run.key), problems


# --- all runs


def read_runs(folder: Path) -> list[StoredRun]:
    """All finished runs of a store, sorted by key; of an export too. Phenotypes are those of the table of all runs,
    each of one type, also where that table is not there."""
    if (folder / INDEX_FILE).is_file():
        return read_index(folder)
    runs, problems = read_sidecars(folder)
    for problem in problems:
        warnings.warn(str(problem), stacklevel=2)
    rows = typed_rows([run.phenotypes for run in runs])
    return [replace(run, phenotypes=row) for run, row in zip(runs, rows, strict=True)]


def write_index(folder: Path, runs: Sequence[StoredRun]) -> None:
    """One typed table of all runs: phenotypes as columns `phenotype.NAME`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = typed_columns([run.phenotypes for run in runs])
    arrow = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    rows, types, columns = [asdict(run) for run in runs], _index_types(), {}
    for name in (name for name in StoredRun.__dataclass_fields__ if name != "phenotypes"):
        values = [json.dumps(row[name]) if name in JSON_COLUMNS else row[name] for row in rows]
        columns[name] = pa.array(values, types.get(name, pa.string()))
    for name, kind in kinds.items():
        cells = [run.phenotypes.get(name) for run in runs]
        cells = [None if cell is None else kind(cell) for cell in cells]
        columns[f"phenotype.{name}"] = pa.array(cells, arrow[kind])
    # Opened by Python, which takes any name and says what a disk did not take.
    with atomic_write(folder / INDEX_FILE) as unfinished, unfinished.open("wb") as file:
        pq.write_table(pa.table(columns), file, write_page_checksum=True)


def read_index(folder: Path) -> list[StoredRun]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / INDEX_FILE
    try:
        # Without threads of Arrow's: one that lets go of a Python object while Python ends aborts the process.
        with path.open("rb") as file, pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False) as table:
            rows = table.read(use_threads=False).to_pylist()
        runs = []
        for row in rows:
            phenotypes = {
                name.removeprefix("phenotype."): row.pop(name) for name in list(row) if name.startswith("phenotype.")
            }
            row |= {name: json.loads(row[name]) for name in JSON_COLUMNS}
            runs.append(check_stays_inside(StoredRun(**row, phenotypes=phenotypes)))
        return runs
    except (pa.ArrowException, OSError, TypeError, KeyError, ValueError) as error:
        raise InputError(
            f"{path}: the table of runs cannot be read ({error}); delete it, and it is made again."
        ) from error


def _index_types() -> dict[str, Any]:
    import pyarrow as pa

    numbers = dict.fromkeys(("repetition_time", "intensity_scale", "clipped_share"), pa.float64())
    return numbers | {"num_frames": pa.int64(), "num_bytes": pa.int64(), "has_mean_tokens": pa.bool_()}


def forget_people(folder: Path, subjects: Collection[str]) -> list[StoredRun]:
    """Delete all runs of these subjects from a store, and from its table; the runs that it had of them."""
    runs, _ = read_sidecars(folder)
    gone = [run for run in runs if run.subject in subjects]
    for run in gone:
        path = folder / run.file
        sidecar_of(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        if path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()
    if (folder / INDEX_FILE).is_file():
        known = read_index(folder)
        if any(run.subject in subjects for run in known):
            write_index(folder, [run for run in known if run.subject not in subjects])
    return gone


# --- whether they are as they were written


def faults_in(folder: Path, settings: Mapping[str, Any], runs: Sequence[StoredRun]) -> list[str]:
    """Read every file again and compare it with what is recorded; one sentence for each fault."""
    faults = []
    written, unreadable = read_sidecars(folder)
    by_file = {run.file: run for run in written}
    broken = {problem.what for problem in unreadable}
    kinds = typed_columns([run.phenotypes for run in written])
    for run in runs:
        path = folder / run.file
        sidecar = sidecar_of(path)
        if fault := file_fault(path, run) or _fault_of_kind(folder, settings, run):
            faults.append(fault)
        if run.file in by_file:
            found, known = (_comparable(each, kinds) for each in (by_file[run.file], run))
            if differing := [name for name in known if found[name] != known[name]]:
                faults.append(
                    f"{sidecar}: its {differing[0]} is {found[differing[0]]!r}, but {INDEX_FILE} says "
                    f"{known[differing[0]]!r}; run tablet-hf tokenize again, which makes the table anew."
                )
        elif str(sidecar) not in broken:
            faults.append(f"{sidecar}: the file is missing; tokenize the run again.")
    faults += map(str, unreadable)
    listed = {folder / run.file for run in runs}
    for path in sorted((folder / RUNS_FOLDER).rglob(f"*{TOKENS_ENDING}")):
        if path in listed or str(sidecar_of(path)) in broken:
            continue
        if path.relative_to(folder).as_posix() in by_file:
            faults.append(
                f"{path}: the run is whole, but {INDEX_FILE} does not list it, so nothing reads it; run tablet-hf "
                f"tokenize again, or delete {INDEX_FILE}."
            )
        else:
            faults.append(f"{path}: no run of the store is kept there; run tablet-hf tokenize to its end.")
    return faults


def _comparable(run: StoredRun, kinds: Mapping[str, type]) -> dict[str, Any]:
    """What a run says, as the table of all runs would have it."""
    said = asdict(run)
    known = {name: value for name, value in said.pop("phenotypes").items() if value is not None}
    said |= {f"phenotype {name}": kinds[name](known[name]) if name in known else None for name in kinds}
    # Bytes and checksum are compared with the file.
    return {name: value for name, value in said.items() if name != "file"}


def file_fault(path: Path, run: StoredRun) -> str | None:
    """What is wrong with a run's file as a sentence, None where it is as it was written."""
    if not path.is_file():
        return f"{path}: the file is missing; tokenize the run again."
    if path.stat().st_size != run.num_bytes or file_checksum(path) != run.sha256:
        return f"{path}: its content is not what was written; delete it and tokenize the run again."
    return None


def _fault_of_kind(folder: Path, settings: Mapping[str, Any], run: StoredRun) -> str | None:
    """Whether the tokens of a run are of the kind that store.json says."""
    path = folder / run.file
    found, wanted = kept_in(path), (settings["dtype"], geometry_of(settings).shape)
    if found != wanted:
        kinds = [f"{dtype} of {shape[0]} x {shape[1]} a frame" for dtype, shape in (found, wanted)]
        return f"{path}: it holds {kinds[0]}, but {STORE_FILE} says {kinds[1]}; restore {STORE_FILE}."
    for name, value in run.made.get("tokens", {}).items():
        said = settings["dtype"] if name == "dtype" else settings["preprocessing"].get(name)
        if value != said:
            return (
                f"{path}: it was made with {name} {value}, but {STORE_FILE} says {said}; restore {STORE_FILE}, or "
                "delete the run and tokenize it again."
            )
    return None
