"""Features of the runs of a store: the mean token, and time series of regions, cached by run.

Time series come from the scans that the tokens were made from, or from the volumes that the store's autoencoder decodes
from the tokens. Either way a run is read once, frame by frame, for all folds, labels and calls.
"""

import hashlib
import json
import os
import re
import tempfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tablet_hf.baselines.connectivity import Regions, region_means
from tablet_hf.datasets.splits import without_prefix
from tablet_hf.errors import InputError
from tablet_hf.feature_extraction_tablet import FRAMES_PER_BLOCK, TabletFeatureExtractor
from tablet_hf.files import atomic_write
from tablet_hf.grid import grid_affine
from tablet_hf.scans import open_source
from tablet_hf.tokens import tokens_to_latents

__all__ = ["RegionTimeSeries", "RunCache", "ScanPaths", "match_scans", "mean_token"]

FORMAT = "tablet_hf run features 1"
MAX_READERS = 8
TOKEN_FRAMES_PER_BLOCK = 64
AXIAL = 2
"""Axis of the decoded slices, of the three that tokens hold."""

ScanPaths = Mapping[str, Path]
"""Paths of scans by the key of their run."""


class RunCache:
    """A folder with an .npz file for each run and each feature.

    A file is named by the checksum of the run's tokens and the feature, so other tokens or regions never meet an old
    file; a damaged one is computed again. Several processes may share a folder.

    Args:
        folder: made if it does not exist; None for a temporary one.
    """

    def __init__(self, folder: str | Path | None = None):
        self._scratch = tempfile.TemporaryDirectory() if folder is None else None
        self.folder = Path(self._scratch.name if folder is None else folder)

    def path(self, run: Any, feature: str) -> Path:
        digest = hashlib.sha256(self._record(run, feature).encode()).hexdigest()
        return self.folder / f"{re.sub(r'[^0-9A-Za-z+._-]', '_', run.key)}_{digest[:16]}.npz"

    def read(self, run: Any, feature: str) -> np.ndarray | None:
        """Return a feature of a run; None where it was not computed, or its file cannot be read."""
        try:
            with np.load(self.path(run, feature), allow_pickle=False) as file:
                return file["values"] if str(file["record"]) == self._record(run, feature) else None
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def write(self, run: Any, feature: str, values: np.ndarray) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path(run, feature)) as unfinished:
            np.savez(unfinished, values=values, record=np.array(self._record(run, feature)))

    def _record(self, run: Any, feature: str) -> str:
        return json.dumps({"format": FORMAT, "tokens_sha256": run.sha256, "what": feature})


def mean_token(store: Any, run: int | str, cache: RunCache) -> np.ndarray:
    """Return the mean over time of a run's tokens, `(cells * features,)` float32."""
    record = store.runs[store.index(run)]
    if (cached := cache.read(record, "mean token")) is not None:
        return cached
    total = np.zeros(store.geometry.shape)
    for start, frames in _blocks(record.num_frames, TOKEN_FRAMES_PER_BLOCK):
        total += store.window(run, start, frames).float().numpy().sum(0, dtype=np.float64)
    values = (total / record.num_frames).astype(np.float32).reshape(-1)
    cache.write(record, "mean token", values)
    return values


def match_scans(store: Any, folders: str | Path | Iterable[str | Path]) -> ScanPaths:
    """Find the scans of a store's runs in folders and everything below them.

    A store records name, size and modification time of a scan. A file matches by name, size and time, or by name, size
    and a path that contains the subject. Ambiguous matches are left out.

    Raises:
        InputError: a folder that does not exist.
    """
    names = {run.scan.get("name") for run in store.runs}
    files: dict[tuple, dict[Path, Path]] = defaultdict(dict)
    for folder in map(Path, [folders] if isinstance(folders, str | Path) else folders):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give the folder of the scans.")
        visited = set()
        for parent, subfolders, children in os.walk(folder, followlinks=True):
            if (real := os.path.realpath(parent)) in visited:  # a link back up
                subfolders.clear()
            visited.add(real)
            for path in (Path(parent, name) for name in children if name in names):
                if path.is_file():
                    files[path.name, path.stat().st_size].setdefault(path.resolve(), path)
    found = {}
    for run in store.runs:
        same = files.get((run.scan.get("name"), run.scan.get("bytes")), {}).values()
        by_time = [path for path in same if path.stat().st_mtime_ns == run.scan["modified_ns"]]
        matching = [path for path in by_time or same if _has_subject(path, run.subject)] or by_time
        if len(matching) == 1:
            found[run.key] = matching[0]
    runs_of_file = Counter(path.resolve() for path in found.values())
    return {key: path for key, path in found.items() if runs_of_file[path.resolve()] == 1}


def _has_subject(path: Path, subject: str) -> bool:
    return without_prefix(str(subject)) in map(without_prefix, re.split(r"[/\\_.]", str(path)))


class RegionTimeSeries:
    """Time series of regions in the runs of a store, all from scans or all from decoded tokens.

    Of tokens the axial slices with regions are decoded, a quarter of all slices: averaged over regions they are nearly
    as accurate as three axes (docs/baselines.md). Percent change needs no mean volume for correlations.

    Args:
        store: a `TokenDataset`.
        scans: scans of all runs; None decodes the store's tokens.
        device: device that decodes.
        cache: cache of the time series.

    Attributes:
        is_decoded: whether they come from tokens.
    """

    def __init__(self, store: Any, scans: ScanPaths | None, device: str = "cpu", cache: RunCache | None = None):
        self.store, self.scans, self.is_decoded = store, scans, scans is None
        self.device, self.cache = device, cache or RunCache()

    def prepare(
        self, runs: Sequence[int], regions: Regions, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Compute the time series that are not cached; several scans at once.

        Args:
            runs: indices in `store.runs`.
            regions: the regions.
            on_progress: called with frames done and in all, cached ones included.

        Raises:
            InputError: a scan that cannot be read or has other frames than its tokens, or no autoencoder for decoding.
        """
        total = sum(self.store.runs[run].num_frames for run in runs)
        missing = [run for run in runs if not self.cache.path(self.store.runs[run], self._feature(regions)).is_file()]
        done = total - sum(self.store.runs[run].num_frames for run in missing)
        import nilearn.image  # noqa: F401  (several threads that import one large module wait for each other)

        with ThreadPoolExecutor(1 if self.is_decoded else min(MAX_READERS, os.cpu_count() or 1)) as readers:
            work = [readers.submit(self._compute, run, regions) for run in missing]
            try:
                for run, part in zip(missing, work, strict=True):
                    part.result()
                    done += self.store.runs[run].num_frames
                    if on_progress is not None:
                        on_progress(done, total)
            finally:
                readers.shutdown(cancel_futures=True)
                if on_progress is not None:
                    on_progress(total, total)

    def of(self, run: int, regions: Regions) -> np.ndarray:
        """Return `(frames, regions)` float32 of one run, NaN for a region without voxels; raises as `prepare`."""
        cached = self.cache.read(self.store.runs[run], self._feature(regions))
        return self._compute(run, regions) if cached is None else cached

    def _feature(self, regions: Regions) -> str:
        return f"time series of {regions.checksum}, {'decoded axial slices' if self.is_decoded else 'from the scan'}"

    def _compute(self, run: int, regions: Regions) -> np.ndarray:
        frames, labels = (self._decoded if self.is_decoded else self._read)(run, regions)
        values = region_means(frames, labels, len(regions))
        self.cache.write(self.store.runs[run], self._feature(regions), values)
        return values

    def _read(self, run: int, regions: Regions) -> tuple[Iterator[np.ndarray], np.ndarray]:
        record = self.store.runs[run]
        source = open_source(self.scans[record.key], check_space=False)
        if source.num_frames != record.num_frames:
            raise InputError(
                f"{self.scans[record.key]}: {source.num_frames} frames, but its tokens have {record.num_frames}; give "
                "the folder of the tokenized scans."
            )
        return source.frames(range(source.num_frames)), regions.on_grid(source.shape, source.affine)

    def _decoded(self, run: int, regions: Regions) -> tuple[Iterator[np.ndarray], np.ndarray]:
        size, extractor = self.store.geometry.volume_size, self._extractor
        labels = regions.on_grid((size,) * 3, grid_affine(size)).transpose(2, 0, 1)  # as axial slices are in a volume
        used = np.flatnonzero(labels.any((1, 2)))

        def frames() -> Iterator[np.ndarray]:
            for start, count in _blocks(self.store.runs[run].num_frames, FRAMES_PER_BLOCK):
                tokens = self.store.window(run, start, count).to(extractor.device)
                latents = tokens_to_latents(tokens, size)[:, AXIAL, used]
                slices = extractor.decode_slices(latents.flatten(0, 1)).float().clamp(-1, 1).cpu()
                yield from slices.unflatten(0, (count, len(used))).numpy()

        return frames(), labels[used]

    @cached_property
    def _extractor(self) -> TabletFeatureExtractor:
        import torch

        extractor = TabletFeatureExtractor.from_dict(self.store.preprocessing)
        extractor.to(self.device, torch.float16 if str(self.device).startswith("cuda") else torch.float32)
        extractor.slice_autoencoder  # noqa: B018  (loads it, or raises)
        return extractor


def _blocks(total: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield start and length of each block."""
    for start in range(0, total, size):
        yield start, min(size, total - start)
