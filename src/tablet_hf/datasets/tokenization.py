"""Many scans to one store: read in threads, encoded block by block, written run by run.

    readers ──► blocks of volumes of several scans ──► tokens ──► writers
    (threads)        (this thread, the GPU)                       (threads)

Decompression and gridding of a frame take a CPU core about as long as a large GPU takes to encode it, so several scans
are read at once. A run is written when its last frame is encoded and is then done for good: however the work ends, it
continues from there (`TokenStoreWriter.finished`).
"""

import errno
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tablet_hf.datasets.writer import TokenStoreWriter
from tablet_hf.errors import InputError
from tablet_hf.feature_extraction_tablet import FRAMES_PER_BLOCK, TabletFeatureExtractor
from tablet_hf.files import file_identity
from tablet_hf.intensities import scale_intensity
from tablet_hf.scans import declared_space, find_brain_mask_file, find_repetition_time, find_sidecars, open_source
from tablet_hf.sources.records import Problem, ScanRecord, store_key
from tablet_hf.volumes import DEFAULT_CACHE_BYTES, BoldRun, open_run

__all__ = ["Outcome", "share_records", "tokenize_scans"]

# A full disk ends the work; of one that is broken, read-only or not ours, another run may still take something.
FULL = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE = (errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EFBIG)
MAX_FAILED_WRITES = 3
WRITERS = 2


@dataclass
class Outcome:
    """What became of the scans.

    Attributes:
        done, existing: keys of runs that were written now, and that were there.
        failed: scans that could not be used, and why.
        frames: number of frames encoded now.
        seconds: duration of the work so far, without the search for existing runs.
        bytes_done, bytes_to_do: size of the scans to tokenize, and its part whose frames are encoded; without existing
            and failed scans.
    """

    done: list[str] = field(default_factory=list)
    existing: list[str] = field(default_factory=list)
    failed: list[Problem] = field(default_factory=list)
    frames: int = 0
    seconds: float = 0.0
    bytes_done: float = 0.0
    bytes_to_do: float = 0.0

    @property
    def seconds_left(self) -> float | None:
        """Time that the rest takes at the rate so far; None before there is one."""
        if not self.bytes_done:
            return None
        return self.seconds * max(0.0, self.bytes_to_do / self.bytes_done - 1)


def tokenize_scans(
    records: Sequence[ScanRecord],
    extractor: TabletFeatureExtractor,
    writer: TokenStoreWriter,
    readers: int | None = None,
    check_space: bool = True,
    on_progress: Callable[[Outcome, int], None] | None = None,
) -> Outcome:
    """Tokenize the scans that are not in the store yet.

    Args:
        records: scans to tokenize.
        extractor: on its device, in the precision to encode in; its autoencoder decides the geometry.
        writer: writer of the store.
        readers: number of scans to read at once, a thread each; None for one on a CPU, and up to eight for a GPU.
        check_space: refuse scans that are not in MNI152 space.
        on_progress: called with the outcome so far and the number of scans, after every block of frames.

    Returns:
        What was done. A scan that cannot be used is in `failed`, and the others continue; a full disk ends the work, as
        do several runs in a row that cannot be written, with the scans not begun in `failed` too.
    """
    if extractor.device.type == "cuda":
        extractor.slice_autoencoder.compile()
    work = _Tokenization(extractor, writer, readers, check_space)
    report = (lambda: None) if on_progress is None else (lambda: on_progress(work.outcome, len(records)))
    work.run(records, report)
    return work.outcome


@dataclass(eq=False)
class _Scan:
    """A scan on its way: blocks of volumes as a reader makes them, and tokens as they are encoded."""

    record: ScanRecord
    num_bytes: int
    bytes_done: float = 0.0
    mean_tokens: Tensor | None = None


class _Tokenization:
    """The work on many scans; all of its state is touched by one thread."""

    def __init__(
        self, extractor: TabletFeatureExtractor, writer: TokenStoreWriter, readers: int | None, check_space: bool
    ):
        self.extractor, self.writer, self.check_space = extractor, writer, check_space
        self.num_readers, self.cache_bytes = _readers_and_cache(extractor.device, readers)
        self.outcome = Outcome()
        self.todo: deque[_Scan] = deque()
        self.reading: list[_Scan] = []
        self.writes: dict[Future, _Scan] = {}
        self.failed_writes, self.is_stopped = 0, False

    def run(self, records: Sequence[ScanRecord], report: Callable[[], None]) -> None:
        # Imported now: several threads that import one large module wait for each other.
        import nilearn.masking  # noqa: F401

        for record in records:
            self._find_existing(record)
        started = time.perf_counter()
        report()
        with ThreadPoolExecutor(self.num_readers) as self.readers, ThreadPoolExecutor(WRITERS) as self.writers:
            while (self.todo or self.reading) and not self.is_stopped:
                self._start_reading()
                wait([scan.next_block for scan in self.reading], return_when=FIRST_COMPLETED)
                # Of the scan that was begun first: scans that end at different times are not all surveyed at once.
                self._advance(next(scan for scan in self.reading if scan.next_block.done()))
                self._collect_writes(most_left=WRITERS)
                self.outcome.seconds = time.perf_counter() - started
                report()
            self._collect_writes(most_left=0)
        for scan in (*self.reading, *self.todo):
            self._failed(scan.record, InputError("not tokenized, since the work was stopped; run it again."), scan)
        self.outcome.seconds = time.perf_counter() - started
        report()

    def _find_existing(self, record: ScanRecord) -> None:
        def repetition_time() -> float:
            return find_repetition_time(open_source(record.scan, self.check_space), record.repetition_time)

        try:
            scan = file_identity(record.scan)
            is_there = self.writer.finished(record, scan, companions_of(record), repetition_time)
        except (InputError, OSError) as error:
            self._failed(record, error)
            return
        if is_there:
            self.outcome.existing.append(store_key(record))
        else:
            self.outcome.bytes_to_do += scan["bytes"]
            self.todo.append(_Scan(record, scan["bytes"]))

    def _start_reading(self) -> None:
        while self.todo and len(self.reading) < self.num_readers:
            scan = self.todo.popleft()
            scan.blocks = self._read(scan)
            scan.next_block = self.readers.submit(next, scan.blocks)
            self.reading.append(scan)

    def _read(self, scan: _Scan) -> Iterator[tuple[slice | None, Tensor, bool]]:
        """Blocks of frames as slice, volumes and whether it is the last; the slice of the mean volume is None."""
        record, extractor = scan.record, self.extractor
        # Before the scan is read: if it changes meanwhile, it is another file the next time.
        scan.identity, scan.companions = file_identity(record.scan), companions_of(record)
        scan.run = run = open_run(
            record.scan,
            record.mask,
            record.repetition_time,
            extractor.volume_size,
            check_space=self.check_space,
            cache_bytes=self.cache_bytes,
        )
        run.survey()
        on_gpu = extractor.device.type == "cuda"
        shape = (run.num_frames, extractor.grid_size**3, extractor.token_size)
        scan.tokens = torch.empty(shape, dtype=torch.float16, pin_memory=on_gpu)

        def tensor(volumes: np.ndarray) -> Tensor:
            volumes = torch.from_numpy(volumes).to(extractor.dtype)
            return volumes.pin_memory() if on_gpu else volumes

        needs_mean = extractor.signal == "percent_change"
        for frames, volumes in run.scaled_blocks(extractor.signal, extractor.scaling, None, FRAMES_PER_BLOCK):
            stop = int(frames[-1]) + 1
            yield slice(int(frames[0]), stop), tensor(volumes), stop == run.num_frames and not needs_mean
        if needs_mean:
            yield None, tensor(scale_intensity(run.mean[None], run.intensity_scale(extractor.scaling))), True

    def _advance(self, scan: _Scan) -> None:
        """Encode the block that was read, while a reader makes the next one, of this scan or of another."""
        try:
            frames, volumes, is_last = scan.next_block.result()
        except Exception as error:
            self.reading.remove(scan)
            self._failed(scan.record, error, scan)
            return
        if is_last:
            self.reading.remove(scan)
            self._start_reading()
        else:
            scan.next_block = self.readers.submit(next, scan.blocks)
        tokens = self.extractor.volumes_to_tokens(volumes, self.extractor.signal if frames is not None else "intensity")
        if frames is None:
            scan.mean_tokens = tokens.half().cpu()
        else:
            scan.tokens[frames] = tokens
            done = scan.num_bytes * len(tokens) / len(scan.tokens)
            scan.bytes_done += done
            self.outcome.bytes_done += done
            self.outcome.frames += len(tokens)
        if is_last:
            write = self.writers.submit(
                self.writer.write,
                scan.record,
                scan.tokens,
                scan.run.repetition_time,
                scan.identity,
                scan.run.intensity_scale(self.extractor.scaling),
                scan.run.clipped_share,
                scan.mean_tokens,
                how_made(scan.run, scan.record, self.extractor),
                scan.companions,
            )
            self.writes[write] = scan

    def _collect_writes(self, most_left: int) -> None:
        """Record what was written, and wait until no more than so many runs are in memory."""
        while self.writes:
            done = [write for write in self.writes if write.done()]
            if not done and len(self.writes) <= most_left:
                return
            for write in done or wait(self.writes, return_when=FIRST_COMPLETED).done:
                scan, error = self.writes.pop(write), write.exception()
                if error is None:
                    self.failed_writes = 0
                    self.outcome.done.append(store_key(scan.record))
                    continue
                if isinstance(error, OSError):
                    self.failed_writes += error.errno in UNWRITABLE
                    self.is_stopped |= error.errno in FULL or self.failed_writes >= MAX_FAILED_WRITES
                    why = error.strerror or str(error)
                    error = InputError(f"its tokens could not be written ({why}); repair the disk and run it again.")
                self._failed(scan.record, error, scan)

    def _failed(self, record: ScanRecord, error: BaseException, scan: _Scan | None = None) -> None:
        reason = str(error).strip() or type(error).__name__
        if isinstance(error, OSError):
            reason = f"{error.strerror or reason}; make sure that it can be read, and run it again."
        elif not isinstance(error, InputError):
            reason = f"{type(error).__name__}: {reason}"
        # Messages of open_run name the file themselves.
        self.outcome.failed.append(Problem(str(record.scan), reason.removeprefix(f"{record.scan}: ")))
        if scan is not None:
            self.outcome.bytes_to_do -= scan.num_bytes
            self.outcome.bytes_done -= scan.bytes_done


def _readers_and_cache(device: torch.device, readers: int | None) -> tuple[int, int]:
    """How many scans are read at once, and the memory of each for the frames of a run, which spares a second pass."""
    if device.type != "cuda":
        return readers or 1, DEFAULT_CACHE_BYTES
    import psutil

    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # that share this machine
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    readers = readers or max(1, min(8, cores // processes - 1))
    return readers, int(0.4 * psutil.virtual_memory().available / processes / readers)


def companions_of(record: ScanRecord) -> dict[str, Any]:
    """Identities of the files that a scan's tokens and repetition time depend on; JSON-able."""
    mask = record.mask or find_brain_mask_file(record.scan)
    sidecars = find_sidecars(record.scan) if record.repetition_time is None else []
    return {
        "mask": None if mask is None else file_identity(mask),
        "repetition_time": record.repetition_time,
        "sidecars": [file_identity(path) for path in sidecars],
    }


def how_made(run: BoldRun, record: ScanRecord, extractor: TabletFeatureExtractor) -> dict[str, Any]:
    """How one run was tokenized, besides what all runs of the store share; JSON-able."""
    voxel_size = np.linalg.norm(run.source_affine[:3, :3], axis=0)
    return {
        "space": declared_space(record.scan),
        "voxel_size": [round(float(size), 4) for size in voxel_size],
        "shape": [int(size) for size in run.source_shape],
        "is_resampled": run.is_resampled,
        "mask": run.mask_source,
        "encoder": f"{str(extractor.dtype).removeprefix('torch.')} on {extractor.device.type}",
    }


# --- several processes


@contextmanager
def share_records(records: Sequence[ScanRecord], cpu: bool = False) -> Iterator[tuple[list[ScanRecord], Any]]:
    """This process's share of the records, under `accelerate launch`, `torchrun` or alone, and accelerate's state.

    Shares have about the same number of bytes. Processes wait for each other at the end, for days if need be.
    """
    from accelerate import PartialState

    # A cohort takes days, and one process may end hours before another.
    options = {"timeout": timedelta(days=30)} if int(os.environ.get("WORLD_SIZE", 1)) > 1 else {}
    state = PartialState(cpu=cpu, **options)

    def size(record: ScanRecord) -> int:
        try:
            return record.scan.stat().st_size
        except OSError:
            return 0

    largest_first = sorted(records, key=lambda record: (-size(record), record.key))
    dealt = [record for turn in range(state.num_processes) for record in largest_first[turn :: state.num_processes]]
    with state.split_between_processes(dealt) as share:
        yield list(share), state
