"""What linear models see of the runs of a store: the mean token, and the time series of regions.

A store holds tokens, and time series are those of voxels: of the scans that the tokens were made from, where these are
still at hand, else of the volumes that the store's own autoencoder decodes from the tokens. Either way a run is gone
through once, frame by frame, and what comes of it is kept in a file, so that other folds, labels and calls need not do
so again.
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
from dataclasses import dataclass, field
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

__all__ = ["FoundScans", "RegionTimeSeries", "RunCache", "find_scans", "mean_token"]

FORMAT = "tablet_hf run features 1"
SCANS_AT_ONCE = 8
TOKEN_FRAMES_AT_ONCE = 64
AXIAL = 2
"""The axis whose slices are decoded, of the three that tokens hold."""


# --- files


class RunCache:
    """A folder with an .npz file for each run and each thing that was computed of it.

    A file is named by the checksum of the run's tokens and by what it holds, so a run that was made again, or other
    regions, never meet an old file; one that is damaged is computed again. Several processes may share a folder.

    Args:
        folder: made if need be; None keeps files as long as this object lives.
    """

    def __init__(self, folder: str | Path | None = None):
        self._scratch = tempfile.TemporaryDirectory() if folder is None else None
        self.folder = Path(self._scratch.name if folder is None else folder)

    def path(self, run: Any, what: str) -> Path:
        digest = hashlib.sha256(self._record(run, what).encode()).hexdigest()
        return self.folder / f"{re.sub(r'[^0-9A-Za-z+._-]', '_', run.key)}_{digest[:16]}.npz"

    def read(self, run: Any, what: str) -> np.ndarray | None:
        """What was computed of that run; None where it was not, or its file cannot be read."""
        try:
            with np.load(self.path(run, what), allow_pickle=False) as file:
                return file["values"] if str(file["record"]) == self._record(run, what) else None
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def write(self, run: Any, what: str, values: np.ndarray) -> None:
        path = self.path(run, what)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as unfinished:
            np.savez(unfinished, values=values, record=np.array(self._record(run, what)))

    def _record(self, run: Any, what: str) -> str:
        return json.dumps({"format": FORMAT, "tokens_sha256": run.sha256, "what": what})


# --- tokens


def mean_token(store: Any, run: int | str, cache: RunCache) -> np.ndarray:
    """The mean over time of a run's tokens, `(cells * features,)` float32."""
    index = store.index(run)
    known = store.runs[index]
    if (kept := cache.read(known, "mean token")) is not None:
        return kept
    total = np.zeros(store.geometry.shape)
    for start, frames in _blocks(known.num_frames, TOKEN_FRAMES_AT_ONCE):
        total += store.window(index, start, frames).float().numpy().sum(0, dtype=np.float64)
    values = (total / known.num_frames).astype(np.float32).reshape(-1)
    cache.write(known, "mean token", values)
    return values


# --- scans


@dataclass(frozen=True)
class FoundScans:
    """Where the scans lie that a store's tokens were made from.

    Attributes:
        folders: that were searched.
        paths: by key of a run.
        problems: by key of a run, why its scan was not found: a sentence.
    """

    folders: tuple[Path, ...]
    paths: Mapping[str, Path] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


def find_scans(store: Any, folders: str | Path | Iterable[str | Path]) -> FoundScans:
    """Look for the scans of a store's runs in folders and all that is below them.

    A store remembers of a scan its name, its size in bytes and when it was changed. A file of that name and size is
    taken; of several, that of the same time, or else the one whose path names the subject. Where runs of one store
    share a name, as in HCP, time or path must agree in any case. What is not distinguished so is a problem, not a
    guess.

    Raises:
        InputError: a folder that is none.
    """
    folders = tuple(Path(folder) for folder in ([folders] if isinstance(folders, str | Path) else folders))
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: there is no such folder; give the folder that the scans lie in.")
    sharing = Counter(run.scan["name"] for run in store.runs if "name" in run.scan)
    files: dict[str, set[Path]] = defaultdict(set)
    for folder in folders:
        for path in _files_below(folder):
            if path.name in sharing:
                files[path.name].add(path)
    paths, problems = {}, {}
    for run in store.runs:
        if "name" not in run.scan:
            problems[run.key] = "exports do not tell what scans they were made from; give the store."
            continue
        found = _candidates(run, files[run.scan["name"]], sharing[run.scan["name"]] > 1)
        if isinstance(found, str):
            problems[run.key] = found
        else:
            paths[run.key] = found
    claims = Counter(path.resolve() for path in paths.values())
    for key, path in list(paths.items()):
        if claims[path.resolve()] > 1:
            problems[key] = f"{path} fits several runs, and nothing tells whose it is."
            del paths[key]
    return FoundScans(folders, paths, problems)


def _candidates(run: Any, files: Iterable[Path], is_shared_name: bool) -> Path | str:
    """The file that a run was made from, or a sentence that says why none is taken."""
    name, size = run.scan["name"], run.scan["bytes"]
    states = {}
    for path in sorted(files):
        try:
            states.setdefault(path.resolve(), (path, path.stat()))
        except OSError:  # a link to what is not there
            continue
    if not states:
        return f"no file is called {name}."
    same = [(path, state) for path, state in states.values() if state.st_size == size]
    if not same:
        return f"{next(iter(states.values()))[0]} has not the {size:,} bytes that were tokenized; it has changed."
    by_time = [path for path, state in same if state.st_mtime_ns == run.scan["modified_ns"]]
    left = by_time or [path for path, _ in same]
    if len(left) > 1 or (is_shared_name and not by_time):
        left = [path for path in left if _names_subject(path, run.subject)]
    if len(left) == 1:
        return left[0]
    return f"{len(same)} files are called {name} and have its size, and neither time nor path tells which it is."


def _names_subject(path: Path, subject: str) -> bool:
    words = re.split(r"[/\\_.]", str(path))
    return without_prefix(str(subject)) in {without_prefix(word) for word in words}


def _files_below(folder: Path) -> Iterator[Path]:
    """All files, through links to folders as well; a link back up is not followed twice."""
    seen = set()
    for place, names, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            names.clear()
            continue
        seen.add(real)
        yield from (Path(place, name) for name in files)


# --- time series


class RegionTimeSeries:
    """Courses of regions in the runs of a store, all from scans or all from decoded tokens.

    Of tokens the axial slices that regions are in are decoded, a quarter of all slices: over a region's voxels the mean
    of three axes is hardly truer than one (docs/baselines.md). Under percent change that change itself is averaged; no
    mean volume is needed for correlations.

    Args:
        store: a `TokenDataset`.
        scans: from which they are read; None decodes the store's tokens.
        device: to decode on.
        cache: where time series are kept.

    Attributes:
        is_decoded: whether they come from tokens.
    """

    def __init__(self, store: Any, scans: FoundScans | None, device: str = "cpu", cache: RunCache | None = None):
        self.store, self.scans, self.is_decoded = store, scans, scans is None
        self.cache = cache or RunCache()
        self._device = device
        self._extractor: TabletFeatureExtractor | None = None

    def prepare(
        self, runs: Sequence[int], regions: Regions, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Go through those runs whose time series are not kept yet; scans several at once.

        Args:
            runs: places in `store.runs`.
            on_progress: is reported frames done and frames in all, those that were done before counted in.

        Raises:
            InputError: a scan that cannot be read or has other frames than its tokens, or no autoencoder to decode by.
        """
        total = sum(self.store.runs[run].num_frames for run in runs)
        done = 0

        def tell(frames: int) -> None:
            nonlocal done
            done += frames
            if on_progress is not None:
                on_progress(done, total)

        missing = [run for run in runs if not self.cache.path(self.store.runs[run], self._what(regions)).is_file()]
        tell(total - sum(self.store.runs[run].num_frames for run in missing))
        if self.is_decoded:
            for run in missing:
                self._compute(run, regions, tell)
        elif missing:
            import nilearn.image  # noqa: F401  (several threads that import one large module wait for each other)

            with ThreadPoolExecutor(min(SCANS_AT_ONCE, os.cpu_count() or 1)) as readers:
                work = [readers.submit(self._compute, run, regions) for run in missing]
                try:
                    for run, part in zip(missing, work, strict=True):
                        part.result()
                        tell(self.store.runs[run].num_frames)
                except BaseException:
                    readers.shutdown(cancel_futures=True)
                    raise

    def of(self, run: int, regions: Regions) -> np.ndarray:
        """`(frames, regions)` float32 of one run, NaN for a region that has no voxel on its grid; errors as above."""
        kept = self.cache.read(self.store.runs[run], self._what(regions))
        return self._compute(run, regions) if kept is None else kept

    def _what(self, regions: Regions) -> str:
        return f"courses of {regions.fingerprint}, {'decoded axial slices' if self.is_decoded else 'from the scan'}"

    def _compute(self, run: int, regions: Regions, on_frames: Callable[[int], None] | None = None) -> np.ndarray:
        frames, labels = self._decoded(run, regions, on_frames) if self.is_decoded else self._read(run, regions)
        courses = region_means(frames, labels, len(regions))
        self.cache.write(self.store.runs[run], self._what(regions), courses)
        return courses

    def _read(self, run: int, regions: Regions) -> tuple[Iterator[np.ndarray], np.ndarray]:
        known = self.store.runs[run]
        path = self.scans.paths.get(known.key)
        if path is None:
            raise InputError(f"{known.key}: {self.scans.problems.get(known.key, 'its scan was not searched for.')}")
        source = open_source(path, check_space=False)
        if source.num_frames != known.num_frames:
            raise InputError(
                f"{path}: it has {source.num_frames} frames, but the tokens of {known.key} {known.num_frames}; give "
                "the folder of the scans that were tokenized."
            )
        return source.frames(range(source.num_frames)), regions.on_grid(source.shape, source.affine)

    def _decoded(
        self, run: int, regions: Regions, on_frames: Callable[[int], None] | None
    ) -> tuple[Iterator[np.ndarray], np.ndarray]:
        size, num_frames = self.store.geometry.volume_size, self.store.runs[run].num_frames
        extractor = self._loaded_extractor()
        labels = regions.on_grid((size,) * 3, grid_affine(size)).transpose(2, 0, 1)  # as axial slices are in a volume
        used = np.flatnonzero(labels.any((1, 2)))

        def frames() -> Iterator[np.ndarray]:
            for start, count in _blocks(num_frames, FRAMES_PER_BLOCK):
                tokens = self.store.window(run, start, count).to(extractor.device)
                latents = tokens_to_latents(tokens, size)[:, AXIAL, used]
                slices = extractor.decode_slices(latents.flatten(0, 1)).float().clamp(-1, 1).cpu()
                yield from slices.unflatten(0, (count, len(used))).numpy()
                if on_frames is not None:
                    on_frames(count)

        return frames(), labels[used]

    def _loaded_extractor(self) -> TabletFeatureExtractor:
        if self._extractor is None:
            import torch

            extractor = TabletFeatureExtractor.from_dict(self.store.preprocessing)
            is_cuda = str(self._device).startswith("cuda")
            extractor.to(self._device, torch.float16 if is_cuda else torch.float32)
            _ = extractor.slice_autoencoder
            self._extractor = extractor
        return self._extractor


def _blocks(total: int, at_once: int) -> Iterator[tuple[int, int]]:
    """First place and number of items of each block."""
    for start in range(0, total, at_once):
        yield start, min(at_once, total - start)
