"""Writing stores: runs from tokens, and one store of several.

writer = TokenStoreWriter("STORE", extractor.to_dict())
writer.write(record, run.tokens, run.repetition_time, file_identity(record.scan))
tokens = writer.finish()
"""

import csv
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tablet_hf.datasets.run_files import DTYPES, KeptTokens, quantise, write_arrow
from tablet_hf.datasets.store import TokenDataset
from tablet_hf.datasets.store_files import (
    FORMAT,
    IDENTITY,
    PROBLEMS_FILE,
    RUNS_FOLDER,
    SIDECAR_ENDING,
    STORE_FILE,
    StoredRun,
    file_of_key,
    geometry_of,
    is_whole_sidecar,
    read_settings,
    read_sidecar,
    read_sidecars,
    sidecar_of,
    write_index,
    write_settings,
    write_sidecar,
)
from tablet_hf.errors import InputError
from tablet_hf.files import atomic_write
from tablet_hf.sources.records import Problem, ScanRecord, store_key

__all__ = ["TokenStoreWriter", "merge_stores"]


class TokenStoreWriter:
    """Writes runs into a store, each whole or not at all. Any number of processes may write to one store.

    Args:
        folder: made if need be.
        preprocessing: `TabletFeatureExtractor.to_dict()` of an extractor that has loaded its autoencoder.
        dtype: "float16" or "int8".
        is_restricted: whether the terms of the data forbid passing on what concerns single subjects.

    Raises:
        InputError: the folder holds a store of other tokens, or something else.
    """

    def __init__(
        self, folder: str | Path, preprocessing: Mapping[str, Any], dtype: str = "float16", is_restricted: bool = False
    ):
        if dtype not in DTYPES:
            raise InputError(f"tokens are kept as {' or '.join(DTYPES)}, not as {dtype!r}.")
        self.folder = Path(folder)
        for name in ("token_size", "grid_size", "volume_size", "autoencoder"):
            if preprocessing.get(name) is None:
                raise ValueError(f"the record of preprocessing has no {name}; load the extractor's autoencoder first.")
        wanted = {"format": FORMAT, "dtype": dtype, "preprocessing": dict(preprocessing)}
        if (self.folder / STORE_FILE).is_file():
            settings = read_settings(self.folder)
            if other := other_kind(settings, preprocessing, dtype):
                raise InputError(f"{self.folder}: it holds tokens made with {other}; choose another --out.")
            if is_restricted and not settings["is_restricted"]:
                write_settings(self.folder, settings | {"is_restricted": True})
        else:
            if self.folder.exists() and any(self.folder.iterdir()):
                raise InputError(f"{self.folder}: the folder holds something else than a store; choose another --out.")
            (self.folder / RUNS_FOLDER).mkdir(parents=True, exist_ok=True)
            settings = wanted | {"is_restricted": is_restricted, "software": _software_versions()}
            write_settings(self.folder, settings)
        self.settings = read_settings(self.folder)
        self.geometry = geometry_of(self.settings)
        self.unreadable: list[Problem] = []

    def finished(
        self,
        record: ScanRecord,
        scan: Mapping[str, Any],
        beside: Mapping[str, Any] | None = None,
        find_repetition_time: Callable[[], float] | None = None,
    ) -> bool:
        """Whether the run is there already, made from the same file; what else is known of it is brought up to date.

        New or corrected phenotypes, sites or families are written without touching the tokens, and so is a new
        repetition time; with another mask the run is not there, and has to be made again.

        Args:
            record: who and when.
            scan: see `write`.
            beside: see `write`; None where only the scan counts.
            find_repetition_time: reads it, in seconds; is called where something that may tell it has changed.

        Raises:
            InputError: the run of another dataset or file would be lost.
        """
        known = self._stored(record, scan)
        if known is None:
            return False
        path = self.folder / known.file
        if not is_of_scan(known, scan) or not path.is_file() or path.stat().st_size != known.num_bytes:
            return False
        if beside is not None and (known.beside or {}).get("mask") != beside["mask"]:
            return False
        updated = replace(
            known,
            site=record.site,
            family=record.family,
            scan=dict(known.scan) | {"folder": mark_of_folder(record)},
            phenotypes=dict(record.phenotypes),
        )
        if beside is not None and known.beside != beside:
            updated = replace(updated, beside=dict(beside))
            seconds = known.repetition_time if find_repetition_time is None else float(find_repetition_time())
            updated = replace(updated, repetition_time=seconds)
        if updated != known:
            write_sidecar(updated, sidecar_of(path))
        return True

    def _stored(self, record: ScanRecord, scan: Mapping[str, Any]) -> StoredRun | None:
        """What the store has of a run; None where that cannot be read, so that it is written again."""
        key, name = store_key(record), scan.get("name")
        sidecar = sidecar_of(self.folder / file_of_key(key))
        if not is_whole_sidecar(sidecar):
            return None
        run = read_sidecar(sidecar)
        # Files of two datasets without a name can have the same names: the folder decides, unless it was moved.
        is_of_folder = run.scan.get("folder") == mark_of_folder(record)
        is_of_dataset = record.dataset is not None or is_of_folder or is_of_scan(run, scan)
        if not is_of_dataset or run.scan.get("name", name) != name:
            raise InputError(
                f"the store has {key} of {_whose(run, run.scan.get('name'))} already, and this would be another file, "
                f"{_whose(record, name)}; if it is of another study, name that with --dataset, else choose another "
                "--out."
            )
        return run

    def write(
        self,
        record: ScanRecord,
        tokens: Tensor,
        repetition_time: float,
        scan: Mapping[str, Any],
        intensity_scale: float = 1.0,
        clipped_share: float = 0.0,
        mean_tokens: Tensor | None = None,
        made: Mapping[str, Any] | None = None,
        beside: Mapping[str, Any] | None = None,
    ) -> StoredRun:
        """Write one run.

        Args:
            record: who and when.
            tokens: (frames, cells, features), any float dtype.
            repetition_time: seconds between frames.
            scan: what tells the file it was made from: see `tablet_hf.files.file_identity`.
            intensity_scale, clipped_share, mean_tokens: as in `TokenizedRun`.
            made: how they were made; what is the same for the whole store is added.
            beside: what stood next to the scan, see `StoredRun`; its "mask" is that file's identity, or None.

        Raises:
            InputError: tokens of another geometry, or none, or a name that is no text.
            OSError: the disk is full, say; nothing of the run is left behind then.
        """
        if tuple(tokens.shape[1:]) != self.geometry.shape or tokens.ndim != 3 or not len(tokens):
            raise InputError(
                f"{record.key}: its tokens have the shape {tuple(tokens.shape)}, but the store keeps (frames, "
                f"{self.geometry.num_cells}, {self.geometry.token_size})."
            )
        if not tokens.isfinite().all() or tokens.abs().max() > torch.finfo(torch.float16).max:
            raise InputError(
                f"{record.key}: its tokens hold numbers that float16 has not; use another autoencoder, or float32."
            )
        key = store_key(record)
        path = self.folder / file_of_key(key)
        for name in ("subject", "session", "task", "run", "dataset", "site", "family"):
            if not _is_text(getattr(record, name) or ""):
                raise InputError(
                    f"its {name} {getattr(record, name)!r} is no text in UTF-8; rename the file or folder."
                )
        error = None
        if self.settings["dtype"] == "int8":
            kept, error = quantise(tokens.float())
        else:
            kept = KeptTokens(tokens.half())
        checksum, size = write_arrow(path, replace(kept, mean_tokens=mean_tokens), record)
        identity = {name: self.settings["preprocessing"].get(name) for name in IDENTITY}
        made = {"tokens": identity | {"dtype": self.settings["dtype"]}, "software": _software_versions()} | dict(
            made or {}
        )
        run = StoredRun(
            key=key,
            **{name: getattr(record, name) for name in ("subject", "session", "task", "run", "dataset", "site")},
            family=record.family,
            repetition_time=float(repetition_time),
            num_frames=len(tokens),
            intensity_scale=float(intensity_scale),
            clipped_share=float(clipped_share),
            has_mean_tokens=mean_tokens is not None,
            error=error,
            scan=dict(scan) | {"folder": mark_of_folder(record)},
            file=path.relative_to(self.folder).as_posix(),
            num_bytes=size,
            sha256=checksum,
            phenotypes=dict(record.phenotypes),
            made=made,
            beside=None if beside is None else dict(beside),
        )
        write_sidecar(run, sidecar_of(path))
        return run

    def has_runs(self) -> bool:
        """Whether any run is finished."""
        written = (self.folder / RUNS_FOLDER).rglob(f"*{SIDECAR_ENDING}")
        return any(is_whole_sidecar(path) for path in written)

    @property
    def problems_file(self) -> Path:
        """A table of what was left out, and why."""
        return self.folder / PROBLEMS_FILE

    def write_problems(self, problems: Sequence[Problem]) -> None:
        path = self.problems_file
        # Names of files need not be text; what is not is written as its number.
        with (
            atomic_write(path) as unfinished,
            unfinished.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        ):
            table = csv.writer(file, delimiter="\t")
            table.writerow(("what", "why"))
            table.writerows((problem.what, " ".join(problem.why.split())) for problem in problems)

    def clean_up(self, older_than: float = 3600.0) -> None:
        """Delete what killed processes left half-written; files younger than so many seconds may still grow."""
        for path in (self.folder / RUNS_FOLDER).rglob(".*"):
            if path.is_file() and time.time() - path.stat().st_mtime > older_than:
                path.unlink(missing_ok=True)

    def finish(self) -> TokenDataset:
        """Gather what all processes wrote into one typed table, and open the store.

        A run whose sidecar cannot be read is left out; `unreadable` says of which ones this is so.
        """
        runs, self.unreadable = read_sidecars(self.folder)
        write_index(self.folder, runs)
        return TokenDataset.load(self.folder)


def other_kind(settings: Mapping[str, Any], preprocessing: Mapping[str, Any], dtype: str) -> str | None:
    """`dtype float16, not int8`: how tokens differ from those of a store; None where they are of its kind."""
    if settings["dtype"] != dtype:
        return f"dtype {settings['dtype']}, not {dtype}"
    known = settings["preprocessing"]
    # A revision tells the weights, wherever they lie; without one there is only the name.
    names = IDENTITY if known.get("autoencoder_revision") else ("autoencoder", *IDENTITY)
    different = next((name for name in names if known.get(name) != preprocessing.get(name)), None)
    return None if different is None else f"{different} {known.get(different)}, not {preprocessing.get(different)}"


def is_of_scan(run: StoredRun, scan: Mapping[str, Any]) -> bool:
    """Whether a run was made from just this file, wherever it is now."""
    return all(run.scan.get(name) == value for name, value in scan.items())


def mark_of_folder(record: ScanRecord) -> str:
    """Four signs of the checksum of a scan's folder.

    Enough to see that files of the same names are another study's, and too little to find out what the folder is
    called: one name in 65,536 has the same.
    """
    return hashlib.sha256(os.fsencode(os.path.abspath(record.scan.parent))).hexdigest()[:4]


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@cache
def _software_versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("tablet-hf", "torch", "diffusers", "nibabel", "nilearn", "numpy")}


def _whose(run: Any, scan: str | None) -> str:
    return f"subject {run.subject!r}" + (f" of {run.dataset!r}" if run.dataset else "") + f" from {scan or 'a file'}"


def merge_stores(sources: Sequence[str | Path], out: str | Path) -> TokenDataset:
    """One store of several: files are copied (linked where the disk allows it). Splits stay where they are.

    What is in a store at `out` stays there. Everything is looked at before anything is written.

    Raises:
        InputError: tokens of different kinds, one run in two of them, or a run that another one at `out` would be lost
            for.
    """
    stores, out = [TokenDataset.load(source) for source in sources], Path(out)
    first = stores[0]
    taken: dict[str, Path] = {}
    for store in stores:
        if other := other_kind(first.settings, store.preprocessing, store.dtype):
            raise InputError(
                f"{first.folder}: it holds tokens made with {other} as in {store.folder}; merge stores of one kind."
            )
        for run in store.runs:
            if taken.setdefault(run.file, store.folder) != store.folder or _is_another(run, store.folder, out):
                holder = taken[run.file] if taken[run.file] != store.folder else out
                raise InputError(
                    f"{run.key}: it is in {holder} and in {store.folder}; give the datasets different names, by "
                    "tokenizing one of them again with --dataset."
                )
    is_restricted = any(store.settings["is_restricted"] for store in stores)
    writer = TokenStoreWriter(out, first.preprocessing, first.dtype, is_restricted)
    for store in stores:
        for run in store.runs:
            source, target = store.folder / run.file, out / run.file
            if target.exists() and target.samefile(source):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(target) as unfinished:
                try:
                    unfinished.hardlink_to(source)
                except OSError:
                    shutil.copyfile(source, unfinished)
            write_sidecar(run, sidecar_of(target))
    return writer.finish()


def _is_another(run: StoredRun, folder: Path, out: Path) -> bool:
    """Whether the store at `out` has another run in this one's place; the same one is there after a merge cut short."""
    sidecar = sidecar_of(out / run.file)
    if not sidecar.is_file() or sidecar.samefile(sidecar_of(folder / run.file)):
        return False
    return read_sidecar(sidecar).sha256 != run.sha256
