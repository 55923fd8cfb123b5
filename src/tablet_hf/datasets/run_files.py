"""The tokens of one run as an Arrow file: a row a frame, float16 or int8, mapped into memory when read.

int8 tokens are deviations from the run's mean token, in steps that are one for each feature, times a factor that is one
for each frame, so that a frame in which somebody moved is coarse alone. Mean and steps stand in the first row, and so
do the tokens of the run's mean volume where it has any; the factor stands in the row of its frame.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tablet_hf.errors import InputError
from tablet_hf.files import atomic_write

__all__ = [
    "DTYPES",
    "ONCE",
    "Geometry",
    "KeptTokens",
    "MappedRun",
    "frame_factors",
    "joined",
    "kept_in",
    "kept_once",
    "quantise",
    "token_values",
    "write_arrow",
]

DTYPES = {"float16": torch.float16, "int8": torch.int8}

# Columns that hold something in the first row of a run alone, as the attributes of `KeptTokens` are called.
ONCE = ("token_mean", "token_scale", "mean_tokens")

# Frames in one piece of an Arrow file: 10.6 MB of float16.
FRAMES_PER_BATCH = 64
# Numbers that are widened at a time: 8 frames of the paper's tokens, 2.7 MB of float32, which stay in the cache.
NUMBERS_AT_ONCE = 8 * 27 * 3072
# By how much the largest deviation of a feature may exceed what is usual for it before its step grows: a feature that
# is still in most frames has no step to go by otherwise, and would make the factors of the others' frames immense.
LARGEST_FACTOR = 100


@dataclass(frozen=True)
class Geometry:
    """Shape of a frame's tokens: `num_cells` = `grid_size`³ cells of `token_size` numbers, from a cube of voxels."""

    token_size: int
    grid_size: int
    volume_size: int

    @property
    def num_cells(self) -> int:
        return self.grid_size**3

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_cells, self.token_size


@dataclass(frozen=True)
class KeptTokens:
    """The tokens of a run, or of some of its frames, as they are kept.

    Attributes:
        values: (frames, cells, features) float16, or int8.
        token_mean: (cells, features) float16, of int8 alone.
        token_scale: the step of each feature, (features,) float16, of int8 alone.
        frame_scale: what the steps are multiplied by in each frame, (frames,) float32, of int8 alone.
        mean_tokens: the run's mean volume, (cells, features) float16, where it is kept.
    """

    values: Tensor
    token_mean: Tensor | None = None
    token_scale: Tensor | None = None
    frame_scale: Tensor | None = None
    mean_tokens: Tensor | None = None

    def __getitem__(self, frames: slice) -> "KeptTokens":
        factors = None if self.frame_scale is None else self.frame_scale[frames]
        return replace(self, values=self.values[frames], frame_scale=factors)

    def widen(self, out: Tensor) -> Tensor:
        """Write the tokens into `out` (frames, cells, features) float16: int8 times its steps, plus the mean."""
        if self.token_mean is None:
            return out.copy_(self.values)
        mean, step = self.token_mean.float(), self.token_scale.float()
        frames_at_once = max(1, NUMBERS_AT_ONCE // mean.numel())
        scratch = torch.empty(min(frames_at_once, len(out)), *mean.shape)
        steps = step * self.frame_scale[:, None, None]
        parts = (part.split(frames_at_once) for part in (self.values, steps, out))
        for some, their_steps, target in zip(*parts, strict=True):
            wide = scratch[: len(some)].copy_(some)
            target.copy_(torch.addcmul(mean, wide, their_steps, out=wide))
        return out

    def checksum(self) -> str:
        """SHA-256 of all the numbers."""
        digest = hashlib.sha256()
        for tensor in (self.values, self.token_mean, self.token_scale, self.frame_scale, self.mean_tokens):
            if tensor is not None:
                digest.update(memoryview(tensor.contiguous().numpy().reshape(-1)).cast("B"))
        return digest.hexdigest()


def joined(parts: Sequence[KeptTokens]) -> KeptTokens:
    """The parts of one run behind one another; what it has once, the first one holds."""
    factors = None if parts[0].frame_scale is None else torch.cat([part.frame_scale for part in parts])
    return replace(parts[0], values=torch.cat([part.values for part in parts]), frame_scale=factors)


# --- writing


def quantise(tokens: Tensor) -> tuple[KeptTokens, dict[str, float]]:
    """int8 deviations of a run's tokens from their mean.

    Under intensities 98% of a token's variance is the still anatomy, so what is rounded is only what changes. A step is
    the median over frames of the largest deviation of its feature, over 127; a frame's factor is as large as its own
    largest deviations need it, so that one frame does not decide how finely the others are kept.

    Args:
        tokens: (frames, cells, features) float32.

    Returns:
        What is kept, and the errors of what is read of it: `relative` to the tokens; `of_temporal_deviation`, to what
        changes over time; the latter frame by frame, `of_median_frame` and `of_worst_frame`.
    """
    mean = tokens.mean(0).half()
    deviations = tokens - mean.float()
    largest = deviations.abs().amax(1)
    usual = torch.maximum(largest.median(0).values, largest.amax(0) / LARGEST_FACTOR)
    step = (usual / 127).clamp_min(2**-24).half()
    factors = (largest / step.float()).amax(1) / 127
    factors = torch.where(factors > 0, factors, 1.0)
    values = (deviations / (step.float() * factors[:, None, None])).round().clamp(-127, 127).to(torch.int8)
    kept = KeptTokens(values, mean, step, factors)
    residual = kept.widen(torch.empty(tokens.shape, dtype=torch.float16)).float() - tokens
    temporal = tokens - tokens.mean(0)
    by_frame = _ratios(residual.flatten(1).norm(dim=1), temporal.flatten(1).norm(dim=1))
    error = {
        "relative": float(residual.norm() / tokens.norm().clamp_min(1e-30)),
        "of_temporal_deviation": float(_ratios(residual.norm(), temporal.norm())),
        "of_median_frame": float(by_frame.median()),
        "of_worst_frame": float(by_frame.max()),
    }
    return kept, error


def _ratios(errors: Tensor, deviations: Tensor) -> Tensor:
    """0 where nothing changes."""
    return torch.where(deviations > 0, errors / deviations.clamp_min(1e-30), 0.0)


def write_arrow(path: Path, kept: KeptTokens, record: Any) -> tuple[str, int]:
    """Write one run's rows; the checksum and size of the file. `record` is a `ScanRecord` or `StoredRun`."""
    import pyarrow as pa

    schema = arrow_schema(kept)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as unfinished, unfinished.open("wb") as file:
        digest = _Digest(file)
        with pa.ipc.new_stream(digest, schema) as writer:
            for start in range(0, len(kept.values), FRAMES_PER_BATCH):
                part = kept[start : start + FRAMES_PER_BATCH]
                count = len(part.values)
                columns = {
                    "subject": pa.array([record.subject] * count, pa.string()),
                    "session": pa.array([record.session] * count, pa.string()),
                    "task": pa.array([record.task] * count, pa.string()),
                    "run": pa.array([record.run] * count, pa.string()),
                    "dataset": pa.array([record.dataset] * count, pa.string()),
                    "frame": pa.array(np.arange(start, start + count, dtype=np.int32)),
                    "tokens": token_column(part.values.contiguous().numpy(), schema.field("tokens").type),
                }
                if part.frame_scale is not None:
                    columns["frame_scale"] = pa.array(part.frame_scale.numpy())
                for name in ONCE:
                    if (tensor := getattr(kept, name)) is not None:
                        first = [tensor.half().numpy().tobytes()] if start == 0 else []
                        columns[name] = pa.array(first + [None] * (count - len(first)), pa.binary())
                writer.write_batch(pa.record_batch([columns[name] for name in schema.names], schema=schema))
    return digest.sha256.hexdigest(), digest.size


def arrow_schema(kept: KeptTokens) -> Any:
    """Columns as `datasets` types them."""
    from datasets import Array2D, Features, Value

    dtype, shape = str(kept.values.dtype).removeprefix("torch."), tuple(kept.values.shape[1:])
    text = dict.fromkeys(("subject", "session", "task", "run", "dataset"), Value("string"))
    once = {name: Value("binary") for name in ONCE if getattr(kept, name) is not None}
    factors = {} if kept.frame_scale is None else {"frame_scale": Value("float32")}
    return Features({**text, "frame": Value("int32"), **factors, **once, "tokens": Array2D(shape, dtype)}).arrow_schema


def token_column(values: np.ndarray, kind: Any) -> Any:
    """(frames, cells, features) as an Arrow column of that extension type, without a copy of the numbers."""
    import pyarrow as pa

    frames, cells, features = values.shape
    flat = pa.array(values.reshape(-1))
    inner = pa.ListArray.from_arrays(pa.array(np.arange(frames * cells + 1, dtype=np.int32) * features), flat)
    outer = pa.ListArray.from_arrays(pa.array(np.arange(frames + 1, dtype=np.int32) * cells), inner)
    return pa.ExtensionArray.from_storage(kind, outer)


class _Digest:
    """A file that adds up the checksum of what is written to it."""

    closed = False

    def __init__(self, file: Any):
        self._file, self.sha256, self.size = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        data = memoryview(data)
        self.sha256.update(data)
        self.size += data.nbytes
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        pass


# --- reading


def kept_in(path: Path) -> tuple[str, tuple[int, int]]:
    """The dtype of a file's tokens, and the shape (cells, features) of a frame's."""
    import pyarrow as pa
    from datasets import Features

    with pa.memory_map(os.fsencode(path)) as source:
        kind = Features.from_arrow_schema(pa.ipc.open_stream(source).schema)["tokens"]
    return kind.dtype, tuple(kind.shape)


class MappedRun:
    """One Arrow file of tokens, mapped into memory."""

    def __init__(self, path: Path, geometry: Geometry, dtype: str, num_frames: int):
        import pyarrow as pa

        try:
            with pa.memory_map(os.fsencode(path)) as source:
                batches = list(pa.ipc.open_stream(source))
            values = [token_values(batch.column("tokens"), geometry, DTYPES[dtype]) for batch in batches]
            once = {name: kept_once(batches[0], name, geometry) for name in ONCE} if batches else {}
            factors = [frame_factors(batch) for batch in batches]
            if (
                dtype == "int8"
                and batches
                and any(each is None for each in (once["token_mean"], once["token_scale"], factors[0]))
            ):
                raise ValueError("it has no mean, steps or factors")
            self._parts = [
                KeptTokens(some, **once, frame_scale=scale) for some, scale in zip(values, factors, strict=True)
            ]
        except FileNotFoundError as error:
            raise InputError(f"{path}: the file is missing; run tablet-hf dataset check on its store.") from error
        except (pa.ArrowException, OSError, KeyError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{path}: it is damaged or holds no tokens ({error}); delete it and tokenize the run again."
            ) from error
        self._ends = np.cumsum([len(part.values) for part in self._parts])
        if num_frames != (found := int(self._ends[-1]) if batches else 0):
            raise InputError(
                f"{path}: it holds {found} frames, not {num_frames}; delete it and tokenize the run again."
            )

        self.mean_tokens = None if once["mean_tokens"] is None else once["mean_tokens"][None]

    def read(self, start: int, out: Tensor) -> None:
        """Write the frames from `start` on into `out` (frames, cells, features) float16."""
        place = 0
        for part in self._pieces(start, start + len(out)):
            count = len(part.values)
            part.widen(out[place : place + count])
            place += count

    def whole(self) -> KeptTokens:
        """All frames as they are kept, a copy."""
        return joined(self._parts)

    def _pieces(self, start: int, stop: int) -> Iterator[KeptTokens]:
        """The frames asked for, in pieces that are views of the file."""
        for part, end in zip(self._parts, self._ends, strict=True):
            begin = end - len(part.values)
            if begin < stop and start < end:
                yield part[max(0, start - begin) : stop - begin]


def kept_once(batch: Any, name: str, geometry: Geometry) -> Tensor | None:
    """What a run's first row alone holds: (cells, features) float16, or (features,) for the steps of int8."""
    if name not in batch.schema.names or not (cell := batch.column(name)[0]).is_valid:
        return None
    values = torch.from_numpy(np.frombuffer(cell.as_buffer(), np.float16).copy())
    return values.view(geometry.token_size) if name == "token_scale" else values.view(geometry.shape)


def frame_factors(batch: Any) -> Tensor | None:
    """What the steps of int8 are multiplied by in each frame, (frames,) float32; None for float16."""
    if "frame_scale" not in batch.schema.names:
        return None
    return torch.from_numpy(batch.column("frame_scale").to_numpy(zero_copy_only=False).astype(np.float32))


def token_values(column: Any, geometry: Geometry, dtype: torch.dtype) -> Tensor:
    """The numbers of a token column (frames, cells, features), without a copy: a view to read and never to write."""
    storage = getattr(column, "storage", column)
    return torch.from_dlpack(storage.flatten().flatten()).view(dtype).view(len(column), *geometry.shape)
