"""Writing stores: runs from tokens, and one store from several.

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

from tablet_hf.datasets.run_files import DTYPES, LABELS, MAX_NUMBERS, StoredTokens, quantise, write_arrow
from tablet_hf.datasets.store import TokenDataset
from tablet_hf.datasets.store_files import (
    FORMAT,
    IDENTITY,
    PROBLEMS_FILE,
    RUNS_FOLDER,
    STORE_FILE,
    StoredRun,
    file_of_key,
    geometry_of,
    read_settings,
    read_sidecar,
    read_sidecars,
    sidecar_of,
    write_index,
    write_settings,
    write_sidecar,
)
from tablet_hf.errors import InputError
from tablet_hf.files import atomic_write, file_checksum
from tablet_hf.sources.records import Problem, ScanRecord, store_key

__all__ = ["TokenStoreWriter", "merge_stores"]


class TokenStoreWriter:
    """Writes runs into a store, each completely or not at all. Any number of processes may write to one store.

    Args:
        folder: folder of the store, made if need be.
        preprocessing: `TabletFeatureExtractor.to_dict()` of an extractor that has loaded its autoencoder.
        dtype: "float16" or "int8".
        is_restricted: whether the terms of the data forbid passing on data of single subjects.

    Attributes:
        unreadable: after `finish`, the records of runs that could not be read.

    Raises:
        InputError: the folder holds a store of other tokens, or something else.
    """

    def __init__(
        self, folder: str | Path, preprocessing: Mapping[str, Any], dtype: str = "float16", is_restricted: bool = False
    ):
        if dtype not in DTYPES:
            raise InputError(f"--dtype {dtype}: tokens are stored as {' or '.join(DTYPES)}.")
        self.folder = Path(folder)
        self.problems_file = self.folder / PROBLEMS_FILE
        self.unreadable: list[Problem] = []
        for name in ("token_size", "grid_size", "volume_size", "autoencoder"):
            if preprocessing.get(name) is None:
                raise ValueError(f"the record of preprocessing has no {name}; load the extractor's autoencoder first.")
        if (self.folder / STORE_FILE).is_file():
            settings = read_settings(self.folder)
            if difference := kind_difference(settings, preprocessing, dtype):
                raise InputError(f"{self.folder}: its tokens were made with {difference}; choose another --out.")
            settings |= {"is_restricted": is_restricted or settings["is_restricted"]}
        else:
            if self.folder.exists() and any(self.folder.iterdir()):
                raise InputError(f"{self.folder}: the folder holds something other than a store; choose another --out.")
            (self.folder / RUNS_FOLDER).mkdir(parents=True, exist_ok=True)
            settings = {"format": FORMAT, "dtype": dtype, "is_restricted": is_restricted}
            settings |= {"preprocessing": dict(preprocessing)}
        write_settings(self.folder, settings)
        self.settings, self.geometry = settings, geometry_of(settings)

    def finished(
        self,
        record: ScanRecord,
        scan: Mapping[str, Any],
        companions: Mapping[str, Any],
        find_repetition_time: Callable[[], float],
    ) -> bool:
        """Whether the run is complete and made from the same scan and mask; the rest of its record is updated.

        New or corrected phenotypes, sites, families and repetition times are written without touching the tokens.

        Args:
            record: labels and phenotypes of the scan.
            scan, companions: see `write`.
            find_repetition_time: returns it in seconds; called where the companions have changed.

        Raises:
            InputError: another scan would take the place of the run.
        """
        key = store_key(record)
        path = self.folder / file_of_key(key)
        try:
            run = read_sidecar(sidecar_of(path))
        except InputError:
            return False
        is_same_scan = all(run.scan.get(name) == value for name, value in scan.items())
        # Files of two studies without a name can be called alike: then the folder decides.
        is_same_study = record.dataset is not None or run.scan.get("folder") == _folder_mark(record)
        if not is_same_scan and (not is_same_study or run.scan.get("name") != scan.get("name")):
            raise InputError(
                f"{key}: the store has this run from another file, {run.scan.get('name')}; name the study of this one "
                "with --dataset, or choose another --out."
            )
        is_whole = path.is_file() and path.stat().st_size == run.num_bytes
        is_same_mask = (run.companions or {}).get("mask") == companions["mask"]
        if not (is_same_scan and is_whole and is_same_mask):
            return False
        updated = replace(
            run,
            site=record.site,
            family=record.family,
            scan=run.scan | {"folder": _folder_mark(record)},
            phenotypes=dict(record.phenotypes),
        )
        if run.companions != companions:
            updated = replace(updated, companions=dict(companions), repetition_time=float(find_repetition_time()))
        if updated != run:
            write_sidecar(updated, sidecar_of(path))
        return True

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
        companions: Mapping[str, Any] | None = None,
    ) -> StoredRun:
        """Write one run.

        Args:
            record: labels and phenotypes of the scan.
            tokens: (frames, cells, features), any float dtype.
            repetition_time: seconds between frames.
            scan: identity of the scan file, see `tablet_hf.files.file_identity`.
            intensity_scale, clipped_share, mean_tokens: as in `TokenizedRun`.
            made: how the tokens were made; what the whole store shares is added.
            companions: see `StoredRun`; its "mask" is the identity of that file, or None.

        Raises:
            InputError: tokens of another geometry, or numbers or labels that cannot be stored.
            OSError: the disk is full, for example; nothing of the run is left behind.
        """
        self._check(record, tokens)
        stored, error = StoredTokens(tokens.half()), None
        if self.settings["dtype"] == "int8":
            stored, error = quantise(tokens.float())
        key = store_key(record)
        path = self.folder / file_of_key(key)
        write_arrow(path, replace(stored, mean_tokens=mean_tokens), record)
        kind = {name: self.settings["preprocessing"].get(name) for name in IDENTITY} | {"dtype": self.settings["dtype"]}
        run = StoredRun(
            key=key,
            **{name: getattr(record, name) for name in (*LABELS, "site", "family")},
            repetition_time=float(repetition_time),
            num_frames=len(tokens),
            intensity_scale=float(intensity_scale),
            clipped_share=float(clipped_share),
            has_mean_tokens=mean_tokens is not None,
            error=error,
            scan=dict(scan) | {"folder": _folder_mark(record)},
            file=path.relative_to(self.folder).as_posix(),
            num_bytes=path.stat().st_size,
            sha256=file_checksum(path),
            phenotypes=dict(record.phenotypes),
            made={"tokens": kind, "software": _software_versions()} | dict(made or {}),
            companions=None if companions is None else dict(companions),
        )
        write_sidecar(run, sidecar_of(path))
        return run

    def _check(self, record: ScanRecord, tokens: Tensor) -> None:
        """Raise an `InputError` for tokens or labels that cannot be stored."""
        shape, limit = self.geometry.shape, torch.finfo(torch.float16).max
        if tokens.ndim != 3 or tuple(tokens.shape[1:]) != shape or not 0 < tokens.numel() <= MAX_NUMBERS:
            raise InputError(
                f"{record.key}: its tokens have the shape {tuple(tokens.shape)}; the store takes (frames, {shape[0]}, "
                f"{shape[1]}), 1 to {MAX_NUMBERS // (shape[0] * shape[1]):,} frames."
            )
        if not tokens.isfinite().all() or tokens.abs().max() > limit:
            raise InputError(
                f"{record.key}: its tokens hold numbers beyond float16; use another autoencoder, or float32."
            )
        for name in (*LABELS, "site", "family"):
            label = getattr(record, name) or ""
            if label != label.encode("utf-8", "replace").decode():
                raise InputError(f"its {name} {label!r} is not text in UTF-8; rename the file or folder.")

    def write_problems(self, problems: Sequence[Problem]) -> None:
        """Write the table of what could not be used, and why."""
        # Names of files need not be text; what is not is written as its number.
        with (
            atomic_write(self.problems_file) as unfinished,
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

        Runs with unreadable records are left out and listed in `unreadable`.

        Raises:
            InputError: no run is complete.
        """
        runs, self.unreadable = read_sidecars(self.folder)
        write_index(self.folder, runs)
        return TokenDataset.load(self.folder)


def kind_difference(settings: Mapping[str, Any], preprocessing: Mapping[str, Any], dtype: str) -> str | None:
    """How tokens differ from those of a store, `dtype float16, not int8`; None where they are of its kind."""
    stored, wanted = settings["preprocessing"] | {"dtype": settings["dtype"]}, {**preprocessing, "dtype": dtype}
    # A revision identifies the weights, wherever they are; without one there is only the name.
    names = ("dtype", *IDENTITY) if stored.get("autoencoder_revision") else ("dtype", "autoencoder", *IDENTITY)
    different = next((name for name in names if stored.get(name) != wanted.get(name)), None)
    return None if different is None else f"{different} {stored.get(different)}, not {wanted.get(different)}"


def _folder_mark(record: ScanRecord) -> str:
    """Four digits of the checksum of a scan's folder: enough to notice another study, too little to find the name."""
    return hashlib.sha256(os.fsencode(os.path.abspath(record.scan.parent))).hexdigest()[:4]


@cache
def _software_versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("tablet-hf", "torch", "diffusers", "nibabel", "nilearn", "numpy")}


def merge_stores(sources: Sequence[str | Path], out: str | Path) -> TokenDataset:
    """Merge several stores into one: files are hard-linked where the disk allows it, else copied, without splits.

    Runs of a store at `out` stay there. Everything is checked before anything is written.

    Raises:
        InputError: tokens of different kinds, or two runs of one key.
    """
    stores, out = [TokenDataset.load(source) for source in sources], Path(out)
    first = stores[0]
    holders: dict[str, Path] = {}
    for store in stores:
        if difference := kind_difference(first.settings, store.preprocessing, store.dtype):
            raise InputError(
                f"{first.folder}: its tokens were made with {difference} as in {store.folder}; merge one kind."
            )
        for run in store.runs:
            there = sidecar_of(out / run.file)  # of the same run after a merge that was cut short
            is_other_there = there.is_file() and read_sidecar(there).sha256 != run.sha256
            holder = out if is_other_there else holders.setdefault(run.file, store.folder)
            if holder != store.folder:
                raise InputError(
                    f"{run.key}: it is in {holder} and in {store.folder}; give the studies different names by "
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
