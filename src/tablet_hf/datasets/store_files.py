"""The files of a store: their names, the record of each run, and whether they are as they were written.

    STORE/
      store.json                                geometry, how tokens were made, how they are stored
      runs/sub-01/sub-01_task-rest_tokens.arrow one row per frame, memory-mapped when read
      runs/sub-01/sub-01_task-rest_tokens.json  labels, phenotypes, checksum: written last, which makes the run complete
      runs.parquet                              the latter of all runs in one typed table
      splits/*.csv

A run is a pair of files: any process on any machine can write it, it is complete or absent, and a subject who withdraws
is a folder to delete. Rows are frames because in Arrow the numbers of such rows are contiguous, so that a window is one
copy, and because `datasets.load_dataset` then gives everyone typed arrays; `benchmarks/token_layouts.py` compares other
layouts.
"""

import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from tablet_hf.datasets.run_files import DTYPES, Geometry, open_tokens
from tablet_hf.errors import InputError
from tablet_hf.files import atomic_write, file_checksum, write_json
from tablet_hf.sources.records import Problem, typed_columns, typed_rows

FORMAT = "tablet_hf token dataset 1"
STORE_FILE, INDEX_FILE, RUNS_FOLDER, SPLITS_FOLDER = "store.json", "runs.parquet", "runs", "splits"
PROBLEMS_FILE = "problems.tsv"
TOKENS_ENDING, SIDECAR_ENDING = "_tokens.arrow", "_tokens.json"

# Fields of an extractor that decide whether tokens are of one kind.
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
        clipped_share: share of the brain's values beyond the range.
        has_mean_tokens: whether tokens of the run's mean volume are stored (percent change), for decoding.
        error: of int8, relative to what was encoded, see `tablet_hf.datasets.run_files.quantise`.
        scan: name, size and time of the scan file, and a mark of its folder; in an export, a checksum of these.
        file: path of the tokens, relative to the store.
        num_bytes: size of that file.
        sha256: checksum of that file; in an export, of the numbers, see `StoredTokens.checksum`.
        phenotypes: typed.
        made: how it was tokenized: what decides the tokens, space and grid of the scan, origin of its mask, precision
            of the encoder, versions.
        companions: identity of the scan's mask file and BIDS sidecars, and the repetition time that the source gave;
            None in exports.
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
    error: dict | None
    scan: dict
    file: str
    num_bytes: int
    sha256: str
    phenotypes: dict
    made: dict
    companions: dict | None


def checked_run(cells: Mapping[str, Any]) -> StoredRun:
    """A run from a file that anyone may have written.

    Raises:
        TypeError, ValueError: fields are missing or of another type, or its file is outside the store.
    """
    run = StoredRun(**cells)
    if wrong := [field.name for field in fields(run) if not isinstance(getattr(run, field.name), field.type)]:
        raise ValueError(f"its {wrong[0]} is {getattr(run, wrong[0])!r}")
    file = PurePosixPath(run.file)
    if file.is_absolute() or file.parts[:1] != (RUNS_FOLDER,) or ".." in file.parts or "\\" in run.file:
        raise ValueError(f"{run.key} names the file {run.file!r}, which is outside the store")
    return run


# --- the settings of the store


def read_settings(folder: Path) -> dict[str, Any]:
    """Read store.json.

    Raises:
        InputError: it is missing, damaged or of another format.
    """
    path = Path(folder) / STORE_FILE
    if not path.is_file():
        raise InputError(f"{folder}: no token dataset is there ({STORE_FILE} is missing); check the path.")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        preprocessing = settings["preprocessing"]
        checks = {
            "format": settings["format"] == FORMAT,
            "dtype": settings["dtype"] in DTYPES,
            "is_restricted": settings["is_restricted"] in (0, 1),
            "autoencoder": isinstance(preprocessing["autoencoder"], str),
        }
        for name in ("token_size", "grid_size", "volume_size"):
            checks[name] = type(preprocessing[name]) is int and preprocessing[name] > 0
        if wrong := [name for name, is_right in checks.items() if not is_right]:
            raise ValueError(wrong[0])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: missing or wrong content ({error}); restore it from a copy.") from error
    return settings


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write store.json."""
    write_json(folder / STORE_FILE, settings, indent=2)


def geometry_of(settings: Mapping[str, Any]) -> Geometry:
    """The geometry of a store's tokens."""
    return Geometry(*(settings["preprocessing"][name] for name in ("token_size", "grid_size", "volume_size")))


# --- one run


def file_of_key(key: str) -> Path:
    """Path of a run's tokens, relative to the store: `runs/sub-01/sub-01_task-rest_tokens.arrow`."""
    *dataset, name = key.split("/")
    return Path(RUNS_FOLDER, *dataset, name.split("_")[0], name + TOKENS_ENDING)


def sidecar_of(path: Path) -> Path:
    """Path of the record of a run, given that of its tokens."""
    return path.with_name(path.name.removesuffix(TOKENS_ENDING) + SIDECAR_ENDING)


def write_sidecar(run: StoredRun, path: Path) -> None:
    """Write the record of a run, which makes the run complete."""
    write_json(path, asdict(run), indent=1)


def read_sidecar(path: Path) -> StoredRun:
    """Read the record of a run.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        return checked_run(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: no valid record of a run ({error}); delete it and tokenize the run again."
        ) from error


def read_sidecars(folder: Path) -> tuple[list[StoredRun], list[Problem]]:
    """All complete runs, sorted by key, and the sidecars that cannot be read."""
    runs, problems = [], []
    for path in sorted((folder / RUNS_FOLDER).rglob(f"*{SIDECAR_ENDING}")):
        try:
            runs.append(read_sidecar(path))
        except InputError as error:
            problems.append(Problem(str(path), str(error).removeprefix(f"{path}: ")))
    return sorted(runs, key=lambda run: run.key), problems


# --- all runs


def read_runs(folder: Path) -> list[StoredRun]:
    """All complete runs of a store or an export, sorted by key, each phenotype of one type."""
    if (folder / INDEX_FILE).is_file():
        return read_index(folder)
    runs, problems = read_sidecars(folder)
    for problem in problems:
        warnings.warn(str(problem), stacklevel=2)
    return typed_runs(runs)


def write_index(folder: Path, runs: Sequence[StoredRun]) -> None:
    """Write the typed table of all runs, phenotypes as columns `phenotype.NAME`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    schema = [(field.name, kinds.get(field.type, pa.string())) for field in fields(StoredRun)]
    schema = [column for column in schema if column[0] != "phenotypes"]
    types = typed_columns([run.phenotypes for run in runs])
    schema += [(f"phenotype.{name}", kinds.get(kind, pa.string())) for name, kind in types.items()]
    rows = []
    for run in typed_runs(runs):
        row = asdict(run)
        row |= {f"phenotype.{name}": value for name, value in row.pop("phenotypes").items()}
        rows.append(row | {name: json.dumps(row[name]) for name in _json_columns()})
    # Opened by Python, which takes any name and names what a disk refused.
    with atomic_write(folder / INDEX_FILE) as unfinished, unfinished.open("wb") as file:
        pq.write_table(pa.Table.from_pylist(rows, pa.schema(schema)), file, write_page_checksum=True)


def read_index(folder: Path) -> list[StoredRun]:
    """Read the table of all runs.

    Raises:
        InputError: it is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / INDEX_FILE
    try:
        # Without Arrow's threads: one that releases a Python object while Python ends aborts the process.
        with path.open("rb") as file, pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False) as table:
            rows = table.read(use_threads=False).to_pylist()
        runs = []
        for row in rows:
            cells = {name: value for name, value in row.items() if not name.startswith("phenotype.")}
            phenotypes = {name.removeprefix("phenotype."): row[name] for name in row if name not in cells}
            cells |= {name: json.loads(cells[name]) for name in _json_columns()}
            runs.append(checked_run(cells | {"phenotypes": phenotypes}))
        return runs
    except (pa.ArrowException, OSError, TypeError, KeyError, ValueError) as error:
        raise InputError(
            f"{path}: the table of runs cannot be read ({error}); delete it to have it rebuilt."
        ) from error


def _json_columns() -> list[str]:
    return [
        field.name for field in fields(StoredRun) if field.type in (dict, dict | None) and field.name != "phenotypes"
    ]


def typed_runs(runs: Sequence[StoredRun]) -> list[StoredRun]:
    """The runs with all phenotypes, each of one type."""
    rows = typed_rows([run.phenotypes for run in runs])
    return [replace(run, phenotypes=row) for run, row in zip(runs, rows, strict=True)]


def forget_subjects(folder: Path, subjects: Collection[str]) -> list[StoredRun]:
    """Delete all runs of these subjects from a store and its table, and return them."""
    gone = [run for run in read_sidecars(folder)[0] if run.subject in subjects]
    for run in gone:
        path = folder / run.file
        sidecar_of(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        if path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()
    if (folder / INDEX_FILE).is_file():
        write_index(folder, [run for run in read_index(folder) if run.subject not in subjects])
    return gone


# --- whether they are as they were written


def faults_in(folder: Path, settings: Mapping[str, Any], runs: Sequence[StoredRun]) -> list[str]:
    """Read every file of a store and compare it with the records: one sentence per fault."""
    sidecars, unreadable = read_sidecars(folder)
    faults, broken = [str(problem) for problem in unreadable], {problem.what for problem in unreadable}
    listed = {run.file for run in runs}
    written = {run.file: run for run in typed_runs([run for run in sidecars if run.file in listed])}
    for run in runs:
        path = folder / run.file
        if fault := file_fault(path, run) or _fault_of_kind(path, settings, run):
            faults.append(fault)
        if str(sidecar_of(path)) not in broken and written.get(run.file) != run:
            faults.append(f"{sidecar_of(path)}: missing, or other than in {INDEX_FILE}; run tablet-hf tokenize again.")
    for path in sorted((folder / RUNS_FOLDER).rglob(f"*{TOKENS_ENDING}")):
        if path.relative_to(folder).as_posix() not in listed and str(sidecar_of(path)) not in broken:
            faults.append(f"{path}: these tokens are missing from {INDEX_FILE}; run tablet-hf tokenize again.")
    return faults


def file_fault(path: Path, run: StoredRun) -> str | None:
    """What is wrong with the file of a run, in a sentence; None where it is as it was written."""
    if not path.is_file():
        return f"{path}: the file is missing; tokenize the run again."
    if path.stat().st_size != run.num_bytes or file_checksum(path) != run.sha256:
        return f"{path}: its content is not what was written; delete it and tokenize the run again."
    return None


def _fault_of_kind(path: Path, settings: Mapping[str, Any], run: StoredRun) -> str | None:
    """Whether the tokens of a run are of the kind that store.json states."""
    try:
        open_tokens(path, geometry_of(settings), settings["dtype"], run.num_frames)
    except InputError as error:
        return f"{error} Or {STORE_FILE} is of another store."
    stated = settings["preprocessing"] | {"dtype": settings["dtype"]}
    if other := [name for name, value in run.made.get("tokens", {}).items() if value != stated.get(name)]:
        return f"{path}: {STORE_FILE} states another {other[0]} than these tokens were made with; restore it."
    return None
