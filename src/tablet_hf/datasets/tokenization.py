"""Many scans to one store: read in threads, encoded in batches across scans, written run by run.

    readers ──► volumes, block by block ──► slices of many runs, one full batch at a time ──► tokens ──► writers
    (threads)                                (this thread, the GPU)                                     (threads)

Decompression and gridding keep a CPU core busy for about as long as a large GPU takes to encode a frame, so several
scans are read at once. A run is written when its last frame is encoded, and is then done for good: whatever ends the
work, it goes on from there (`TokenStoreWriter.finished`).
"""

import contextlib
import csv
import errno
import logging
import os
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tablet_hf.datasets.store_files import LOGS_FOLDER
from tablet_hf.datasets.writer import TokenStoreWriter
from tablet_hf.errors import InputError
from tablet_hf.feature_extraction_tablet import BACKGROUND, FRAMES_PER_BLOCK, TabletFeatureExtractor
from tablet_hf.files import file_identity
from tablet_hf.intensities import scale_intensity
from tablet_hf.scans import (
    declared_space,
    find_brain_mask_file,
    find_repetition_time,
    find_sidecars,
    open_source,
)
from tablet_hf.sources.records import Problem, ScanRecord, store_key
from tablet_hf.tokens import latents_to_tokens, volumes_to_slices
from tablet_hf.volumes import DEFAULT_CACHE_BYTES, BoldRun, open_run

__all__ = ["Outcome", "Resources", "beside", "tokenize_scans"]

logger = logging.getLogger(__name__)

# A disk that is full, and one that is broken, read-only or not ours: there another run may fare better, not several.
FULL = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE = (errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EFBIG)
MOST_FAILED_WRITES = 3


@dataclass(frozen=True)
class Resources:
    """What tokenization may use.

    Attributes:
        readers: scans read at once, a thread each.
        cache_bytes: a run whose frames on the grid take no more is decompressed once, not twice; for each reader.
        slices_at_once: slices collected over blocks and runs before they are encoded.
        is_compiled: whether the encoder is compiled first, which takes about half a minute on a GPU.
    """

    readers: int
    cache_bytes: int
    slices_at_once: int
    is_compiled: bool

    @classmethod
    def of_device(cls, device: torch.device, processes: int = 1) -> "Resources":
        """For a machine that `processes` like this one share."""
        if device.type != "cuda":
            return cls(readers=1, cache_bytes=DEFAULT_CACHE_BYTES, slices_at_once=384, is_compiled=False)
        import psutil

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        readers = max(1, min(8, cores // processes - 1))
        memory = psutil.virtual_memory().available // processes
        return cls(readers, cache_bytes=int(0.4 * memory / readers), slices_at_once=1152, is_compiled=True)


@dataclass
class Outcome:
    """What became of the scans: runs written now, runs that were there, and what could not be used and why.

    Attributes:
        done, kept: keys of runs.
        failed: scans.
        frames: encoded now.
        seconds: that the work has taken so far, without the looking for runs that were there.
        bytes_done, bytes_to_do: of scans to tokenize, with the part of each scan whose frames are encoded counted as
            done. Neither those that were there nor those that failed are among them.
    """

    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: list[Problem] = field(default_factory=list)
    frames: int = 0
    seconds: float = 0.0
    bytes_done: float = 0.0
    bytes_to_do: float = 0.0

    @property
    def seconds_left(self) -> float | None:
        """As long as what is left takes at the rate so far; None before there is one."""
        if not self.bytes_done:
            return None
        return self.seconds * max(0.0, self.bytes_to_do / self.bytes_done - 1)


def tokenize_scans(
    records: Sequence[ScanRecord],
    extractor: TabletFeatureExtractor,
    writer: TokenStoreWriter,
    resources: Resources | None = None,
    check_space: bool = True,
    on_progress: Callable[[Outcome, int], None] | None = None,
    log_name: str = "tokenize",
) -> Outcome:
    """Tokenize scans that are not in the store yet.

    Args:
        records: what to tokenize.
        extractor: on its device, in the precision to encode in; its autoencoder decides the geometry.
        writer: of the store, see `TokenStoreWriter`.
        resources: by default what suits the extractor's device.
        check_space: refuse scans that are not in MNI152 space.
        on_progress: is reported what was done so far and how many scans there are, after every block of frames.
        log_name: of the table in the store's logs folder, a line for each scan.

    Returns:
        What was done. A scan that cannot be used is in `failed`, and the others go on; a full disk ends the work, and
        so do several runs in a row that cannot be written, with what was not begun in `failed` too.
    """
    resources = resources or Resources.of_device(extractor.device)
    if resources.is_compiled:
        extractor.slice_autoencoder.compile(resources.slices_at_once)
    return _Tokenization(extractor, writer, resources, check_space, on_progress, log_name).run(list(records))


class _Run:
    """A run under way: its tokens fill up block by block."""

    def __init__(
        self,
        record: ScanRecord,
        run: BoldRun,
        extractor: TabletFeatureExtractor,
        identity: dict[str, Any],
        beside: dict[str, Any],
    ):
        self.record, self.run = record, run
        self.identity, self.beside = identity, beside
        shape = (extractor.grid_size**3, extractor.token_size)
        pinned = extractor.device.type == "cuda"
        self.tokens = torch.empty(run.num_frames, *shape, dtype=torch.float16, pin_memory=pinned)
        self.mean_tokens: Tensor | None = None
        self.frames_left = run.num_frames
        self.needs_mean = extractor.signal == "percent_change"
        self.is_copied: Any = None
        self.started = time.perf_counter()

    @property
    def is_encoded(self) -> bool:
        return self.frames_left == 0 and (not self.needs_mean or self.mean_tokens is not None)


@dataclass
class _Block:
    """Frames of a run on their way to the encoder.

    `first` is None for the run's mean volume. `occupied` are the slices, of all of the block's, with brain in them.
    """

    run: _Run
    first: int | None
    volumes: Tensor
    occupied: Tensor
    background: float
    latents: Tensor | None = None
    slices_left: int = 0


class _Tokenization:
    def __init__(self, extractor, writer, resources, check_space, on_progress, log_name):
        self.extractor, self.writer, self.resources = extractor, writer, resources
        self.check_space, self.on_progress = check_space, on_progress
        self.outcome = Outcome()
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.blocks: queue.Queue[_Block] = queue.Queue(maxsize=2 * resources.readers)
        # Runs whose tokens may are in memory at once.
        self.places = threading.Semaphore(2 * resources.readers + 2)
        self.todo: queue.Queue[ScanRecord] = queue.Queue()
        self.log = _Log(writer.folder / LOGS_FOLDER, log_name)
        self.waiting: list[tuple[_Block, Tensor, Tensor]] = []
        self.num_waiting = 0
        self.num_scans = 0
        self.started = time.perf_counter()
        # Of scans to tokenize that have not failed, and what is encoded of them.
        self.bytes_of: dict[str, int] = {}
        self.bytes_done_of: dict[str, float] = {}
        self.failed_writes = 0

    def run(self, records: list[ScanRecord]) -> Outcome:
        self.num_scans = len(records)
        with self.log:
            for record in records:
                self._keep_or_queue(record)
            self.started = time.perf_counter()
            self._tell()
            self._tokenize()
            self._tell()
        return self.outcome

    def _keep_or_queue(self, record: ScanRecord) -> None:
        try:
            scan = file_identity(record.scan)
            is_there = self.writer.finished(
                record,
                scan,
                beside(record),
                lambda: find_repetition_time(open_source(record.scan, self.check_space), record.repetition_time),
            )
        except (InputError, OSError) as error:
            self._failed(record, error)
            return
        if is_there:
            self.outcome.kept.append(store_key(record))
            self.log.add(record, "kept")
        else:
            self.bytes_of[store_key(record)] = scan["bytes"]
            self.outcome.bytes_to_do += scan["bytes"]
            self.todo.put(record)

    def _tokenize(self) -> None:
        # Imported now: several threads that import one large module wait for each other.
        import nilearn.masking  # noqa: F401

        readers = [threading.Thread(target=self._read, daemon=True) for _ in range(self.resources.readers)]
        with ThreadPoolExecutor(2) as self.writers:
            for reader in readers:
                reader.start()
            try:
                for block in self._arriving(readers):
                    self._take(block)
                self._encode_waiting(everything=True)
            except BaseException:
                self.stop.set()
                raise
            finally:
                for reader in readers:
                    reader.join()
        while not self.todo.empty():
            self._failed(self.todo.get(), InputError("not begun, since the work was stopped; run it again."))

    def _arriving(self, readers: list[threading.Thread]) -> Iterator[_Block]:
        while True:
            is_going_on = any(reader.is_alive() for reader in readers)
            try:
                yield self.blocks.get(timeout=0.2)
            except queue.Empty:
                if not is_going_on:
                    return

    # --- reading

    def _read(self) -> None:
        while not self.stop.is_set():
            if not self.places.acquire(timeout=0.5):
                continue
            try:
                record = self.todo.get_nowait()
            except queue.Empty:
                self.places.release()
                break
            try:
                self._read_run(record)
            except Exception as error:
                self.places.release()
                self._failed(record, error)

    def _read_run(self, record: ScanRecord) -> None:
        extractor = self.extractor
        # Before anything is read: what changes meanwhile is found to be another file the next time.
        identities = file_identity(record.scan), beside(record)
        bold = open_run(
            record.scan,
            record.mask,
            record.repetition_time,
            extractor.volume_size,
            check_space=self.check_space,
            cache_bytes=self.resources.cache_bytes,
        )
        bold.survey()
        run = _Run(record, bold, extractor, *identities)
        occupied = occupied_slices(bold.mask)
        for frames, volumes in bold.scaled_blocks(extractor.signal, extractor.scaling, None, FRAMES_PER_BLOCK):
            self._put(self._block(run, int(frames[0]), volumes, occupied, BACKGROUND[extractor.signal]))
        if run.needs_mean:
            mean = scale_intensity(bold.mean[None], bold.intensity_scale(extractor.scaling))
            self._put(self._block(run, None, mean, occupied, BACKGROUND["intensity"]))

    def _block(self, run: _Run, first: int | None, volumes: np.ndarray, occupied: Tensor, background: float) -> _Block:
        per_frame = 3 * self.extractor.volume_size
        places = (torch.arange(len(volumes))[:, None] * per_frame + occupied).flatten()
        tensor = torch.from_numpy(volumes).to(self.extractor.dtype)
        if self.extractor.device.type == "cuda":
            tensor = tensor.pin_memory()
        return _Block(run, first, tensor, places, background)

    def _put(self, block: _Block) -> None:
        while not self.stop.is_set():
            with contextlib.suppress(queue.Full):
                self.blocks.put(block, timeout=0.5)
                return
        raise InputError("not finished, since the work was stopped; run it again.")

    # --- encoding

    @torch.inference_mode()
    def _take(self, block: _Block) -> None:
        device = self.extractor.device
        slices = volumes_to_slices(block.volumes.to(device, non_blocking=True)).flatten(0, 2)
        block.latents = self.extractor.empty_latents(block.background).repeat(len(slices), 1, 1, 1)
        places = block.occupied.to(device, non_blocking=True)
        block.slices_left = len(places)
        self.waiting.append((block, places, slices[places]))
        self.num_waiting += len(places)
        self._encode_waiting()

    @torch.inference_mode()
    def _encode_waiting(self, everything: bool = False) -> None:
        at_once = self.resources.slices_at_once
        while self.num_waiting >= at_once or (everything and self.waiting):
            batch, room = [], at_once
            while self.waiting and room:
                block, places, slices = self.waiting.pop(0)
                if len(places) > room:
                    self.waiting.insert(0, (block, places[room:], slices[room:]))
                    places, slices = places[:room], slices[:room]
                batch.append((block, places, slices))
                room -= len(places)
            self.num_waiting -= at_once - room
            latents = self.extractor.encode_slices(torch.cat([slices for _, _, slices in batch]))
            for (block, places, _), part in zip(batch, latents.split([len(p) for _, p, _ in batch]), strict=True):
                block.latents[places] = part
                block.slices_left -= len(places)
                if not block.slices_left:
                    self._collect(block)

    def _collect(self, block: _Block) -> None:
        run, extractor = block.run, self.extractor
        tokens = latents_to_tokens(block.latents.unflatten(0, (-1, 3, extractor.volume_size)))
        if block.first is None:
            run.mean_tokens = tokens.half().cpu()
        else:
            run.tokens[block.first : block.first + len(tokens)].copy_(tokens, non_blocking=True)
            run.frames_left -= len(tokens)
            with self.lock:
                self.outcome.frames += len(tokens)
                if (key := store_key(run.record)) in self.bytes_of:  # else it has failed meanwhile
                    done = self.bytes_of[key] * len(tokens) / len(run.tokens)
                    self.bytes_done_of[key] = self.bytes_done_of.get(key, 0.0) + done
                    self.outcome.bytes_done += done
        if run.is_encoded:
            if extractor.device.type == "cuda":
                run.is_copied = torch.cuda.Event()
                run.is_copied.record()
            self.writers.submit(self._write, run)
        self._tell()

    # --- writing

    def _write(self, run: _Run) -> None:
        try:
            if run.is_copied is not None:
                run.is_copied.synchronize()
            self.writer.write(
                run.record,
                run.tokens,
                run.run.repetition_time,
                run.identity,
                run.run.intensity_scale(self.extractor.scaling),
                run.run.clipped_share,
                run.mean_tokens,
                how_made(run.run, run.record, self.extractor),
                run.beside,
            )
        except Exception as error:
            self._stop_if_unwritable(error)
            if isinstance(error, OSError):
                why = error.strerror or str(error)
                error = InputError(f"its tokens could not be written ({why}); mend the store's disk and run it again.")
            self._failed(run.record, error)
        else:
            with self.lock:
                self.failed_writes = 0
                self.outcome.done.append(store_key(run.record))
            frames, clipped = run.run.num_frames, run.run.clipped_share
            self.log.add(run.record, "done", frames, time.perf_counter() - run.started, clipped)
        finally:
            self.places.release()

    def _stop_if_unwritable(self, error: Exception) -> None:
        if not isinstance(error, OSError):
            return
        with self.lock:
            self.failed_writes += error.errno in UNWRITABLE
            if error.errno in FULL or self.failed_writes >= MOST_FAILED_WRITES:
                self.stop.set()

    def _failed(self, record: ScanRecord, error: Exception) -> None:
        reason = str(error).strip() or type(error).__name__
        if isinstance(error, OSError):
            reason = f"{error.strerror or reason}; make sure that it can be read, and run it again."
        elif not isinstance(error, InputError):
            reason = f"{type(error).__name__}: {reason}"
            logger.warning("%s failed", record.scan, exc_info=error)
        # Sentences of open_run name the file themselves.
        reason = reason.removeprefix(f"{record.scan}: ")
        with self.lock:
            self.outcome.failed.append(Problem(str(record.scan), reason))
            self.outcome.bytes_to_do -= self.bytes_of.pop(store_key(record), 0)
            self.outcome.bytes_done -= self.bytes_done_of.pop(store_key(record), 0)
        self.log.add(record, "failed", message=reason)

    def _tell(self) -> None:
        self.outcome.seconds = time.perf_counter() - self.started
        if self.on_progress is not None:
            self.on_progress(self.outcome, self.num_scans)


def occupied_slices(mask: np.ndarray) -> Tensor:
    """Which of the 3 V slices of a frame have brain in them, given its mask (V, V, V): (n,) int64, ascending.

    The others are background in every frame of the run.
    """
    has_brain = np.stack([mask.any(axis=(1, 2)), mask.any(axis=(0, 2)), mask.any(axis=(0, 1))])
    return torch.from_numpy(np.flatnonzero(has_brain))


def beside(record: ScanRecord) -> dict[str, Any]:
    """What stands next to a scan and speaks for it: its mask, and what tells its repetition time. JSON-able."""
    mask = find_brain_mask_file(record.scan) if record.mask is None else record.mask
    is_given = record.repetition_time is not None
    sidecars = [] if is_given else find_sidecars(record.scan)
    return {
        "mask": None if mask is None else file_identity(mask),
        "repetition_time": record.repetition_time,
        "sidecars": [file_identity(path) for path in sidecars],
    }


def how_made(run: BoldRun, record: ScanRecord, extractor: TabletFeatureExtractor) -> dict[str, Any]:
    """What a store records of the making of one run, next to what all of its runs share. JSON-able."""
    voxel_size = np.linalg.norm(run.source_affine[:3, :3], axis=0)
    return {
        "space": declared_space(record.scan),
        "voxel_size": [round(float(size), 4) for size in voxel_size],
        "shape": [int(size) for size in run.source_shape],
        "is_resampled": run.is_resampled,
        "mask": run.mask_source,
        "encoder": f"{str(extractor.dtype).removeprefix('torch.')} on {extractor.device.type}",
    }


class _Log:
    """A table of what became of each scan, a line as soon as it is known."""

    COLUMNS = ("time", "run", "scan", "status", "frames", "seconds", "clipped_share", "message")

    def __init__(self, folder: Path, name: str):
        folder.mkdir(exist_ok=True)
        self.path = folder / f"{name}.tsv"
        self.lock = threading.Lock()

    def __enter__(self) -> "_Log":
        self.file = self.path.open("a", newline="", encoding="utf-8", errors="backslashreplace")
        self.table = csv.writer(self.file, delimiter="\t")
        if not self.path.stat().st_size:
            self.table.writerow(self.COLUMNS)
            self.file.flush()
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError):  # lines that a full disk did not take
            self.file.close()

    def add(
        self,
        record: ScanRecord,
        status: str,
        frames: int | str = "",
        seconds: float | None = None,
        clipped_share: float | None = None,
        message: str = "",
    ) -> None:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        row = [now, store_key(record), record.scan.name, status, frames]
        row += ["" if value is None else f"{value:.4g}" for value in (seconds, clipped_share)]
        # A full disk must not turn the telling of it into another failure.
        with self.lock, contextlib.suppress(OSError):
            self.table.writerow([*row, " ".join(message.split())])
            self.file.flush()


# --- several processes


def gathered(outcome: Outcome, state: Any) -> list[Outcome]:
    """The outcomes of all processes."""
    if state.num_processes == 1:
        return [outcome]
    from accelerate.utils import gather_object

    return gather_object([outcome])


@contextlib.contextmanager
def shared_out(records: Sequence[ScanRecord], cpu: bool = False) -> Iterator[tuple[list[ScanRecord], Any]]:
    """This process's share of the records, under `accelerate launch` or alone, and accelerate's state.

    Shares are of about the same number of bytes. Processes wait for each other at the end for as long as it takes.
    Where a launcher was asked for several and started one, a warning says so.
    """
    from accelerate import PartialState

    # A cohort takes days, and one process may end hours before another.
    state = PartialState(
        cpu=cpu, **({"timeout": timedelta(days=30)} if int(os.environ.get("WORLD_SIZE", 1)) > 1 else {})
    )

    if state.num_processes == 1 and launched_for_several(os.environ):
        warnings.warn(
            "accelerate launch was asked for several processes and started this one alone, as it does with --cpu; "
            "start them with `torchrun --nproc-per-node 2 -m tablet_hf ...`.",
            stacklevel=3,
        )

    def size(record: ScanRecord) -> int:
        try:
            return record.scan.stat().st_size
        except OSError:
            return 0

    largest_first = sorted(records, key=lambda record: (-size(record), record.key))
    dealt = [record for turn in range(state.num_processes) for record in largest_first[turn :: state.num_processes]]
    with state.split_between_processes(dealt) as share:
        yield list(share), state


def launched_for_several(environment: Mapping[str, str]) -> bool:
    """Whether accelerate launch was asked for several processes and set up none but this one.

    It gives them an address to meet at in any case, but a number only to those that it starts itself or through MPI
    (`prepare_simple_launcher_cmd_env` of accelerate 1.15).
    """
    numbers = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    is_by_accelerate = "ACCELERATE_MIXED_PRECISION" in environment
    return is_by_accelerate and "MASTER_ADDR" in environment and not any(name in environment for name in numbers)
