"""The tokens of one run as an Arrow file: a row a frame, float16 or int8, mapped into memory when read.

int8 tokens are deviations from the run's mean token, in steps that are one for each feature; mean and steps stand in
the first row, and so do the tokens of the run's mean volume where it has any.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tablet_hf.errors import InputError
from tablet_hf.files import written_whole

__all__ = ["DTYPES", "Geometry", "MappedRun", "kept_once", "quantise", "token_values", "widen", "write_arrow"]

DTYPES = {"float16": torch.float16, "int8": torch.int8}

# Frames in one piece of an Arrow file: 10.6 MB of float16.
FRAMES_PER_BATCH = 64
# Numbers that are widened at a time: 8 frames of the paper's tokens, 2.7 MB of float32, which stay in the cache.
NUMBERS_AT_ONCE = 8 * 27 * 3072


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


# --- writing


def quantise(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, float]]:
    """int8 deviations of a run's tokens from their mean.

    Under intensities 98% of a token's variance is the still anatomy, so what is rounded is only what changes.

    Args:
        tokens: (frames, cells, features) float32.

    Returns:
        Deviations (frames, cells, features) int8; mean (cells, features) and step (features,) float16; and errors of
        `deviations * step + mean`: `relative` to the tokens, `of_temporal_deviation` to what changes over time.
    """
    mean = tokens.mean(0).half()
    deviations = tokens - mean.float()
    # The step is rounded up to what float16 holds, so that the largest deviation still fits into 127 of them.
    step = (deviations.abs().amax((0, 1)) / 127 * (1 + 2**-10)).clamp_min(2**-24).half()
    values = (deviations / step.float()).round().clamp(-127, 127).to(torch.int8)
    residual = values.float() * step.float() + mean.float() - tokens
    temporal = (tokens - tokens.mean(0)).norm()
    error = {
        "relative": float(residual.norm() / tokens.norm().clamp_min(1e-30)),
        "of_temporal_deviation": float(residual.norm() / temporal) if temporal > 0 else 0.0,
    }
    return values, mean, step, error


def write_arrow(
    path: Path,
    values: Tensor,
    record: Any,
    repetition_time: float,
    once: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> tuple[str, int]:
    """Write one run's rows; the checksum and size of the file.

    `record` is a `ScanRecord` or `StoredRun`; `once` is what stands in the first row alone: mean and step of int8
    tokens, tokens of the mean volume.
    """
    import pyarrow as pa

    schema = arrow_schema(str(values.dtype).removeprefix("torch."), tuple(values.shape[1:]), once)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as unfinished, unfinished.open("wb") as file:
        digest = _Digest(file)
        with pa.ipc.new_stream(digest, schema) as writer:
            for start in range(0, len(values), FRAMES_PER_BATCH):
                part = values[start : start + FRAMES_PER_BATCH].contiguous().numpy()
                count = len(part)
                columns = {
                    "subject": pa.array([record.subject] * count, pa.string()),
                    "session": pa.array([record.session] * count, pa.string()),
                    "task": pa.array([record.task] * count, pa.string()),
                    "run": pa.array([record.run] * count, pa.string()),
                    "dataset": pa.array([record.dataset] * count, pa.string()),
                    "frame": pa.array(np.arange(start, start + count, dtype=np.int32)),
                    "repetition_time": pa.array(np.full(count, repetition_time)),
                    "tokens": token_column(part, schema.field("tokens").type),
                }
                for name, tensor in zip(("token_mean", "token_scale", "mean_tokens"), once, strict=True):
                    if tensor is not None:
                        first = [tensor.half().numpy().tobytes()] if start == 0 else []
                        columns[name] = pa.array(first + [None] * (count - len(first)), pa.binary())
                writer.write_batch(pa.record_batch([columns[name] for name in schema.names], schema=schema))
    return digest.sha256.hexdigest(), digest.size


def arrow_schema(dtype: str, shape: tuple[int, int], once: Sequence[Any]) -> Any:
    """Columns as `datasets` types them."""
    from datasets import Array2D, Features, Value

    text = dict.fromkeys(("subject", "session", "task", "run", "dataset"), Value("string"))
    kept = {
        name: Value("binary")
        for name, tensor in zip(("token_mean", "token_scale", "mean_tokens"), once, strict=True)
        if tensor is not None
    }
    return Features(
        {
            **text,
            "frame": Value("int32"),
            "repetition_time": Value("float64"),
            **kept,
            "tokens": Array2D(shape, dtype),
        }
    ).arrow_schema


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


class MappedRun:
    """One Arrow file of tokens, mapped into memory."""

    def __init__(self, path: Path, geometry: Geometry, dtype: str, num_frames: int):
        import pyarrow as pa

        try:
            with pa.memory_map(str(path)) as source:
                batches = list(pa.ipc.open_stream(source))
            self._parts = [token_values(batch.column("tokens"), geometry, DTYPES[dtype]) for batch in batches]
        except FileNotFoundError as error:
            raise InputError(f"{path}: the file is missing; run tablet-hf dataset check on its store.") from error
        except (pa.ArrowException, OSError, KeyError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{path}: it is damaged or holds no tokens ({error}); delete it and tokenize the run again."
            ) from error
        self._ends = np.cumsum([len(part) for part in self._parts])
        if num_frames != (found := int(self._ends[-1]) if batches else 0):
            raise InputError(
                f"{path}: it holds {found} frames, not {num_frames}; delete it and tokenize the run again."
            )

        def kept(name: str) -> Tensor | None:
            has_it = name in batches[0].schema.names
            return kept_once(batches[0].column(name)[0], geometry) if has_it else None

        self._mean, self._scale, mean_tokens = kept("token_mean"), kept("token_scale"), kept("mean_tokens")
        self.mean_tokens = None if mean_tokens is None else mean_tokens[None]

    def read(self, start: int, out: Tensor) -> None:
        """Write the frames from `start` on into `out` (frames, cells, features) float16."""
        place = 0
        for values in self._pieces(start, start + len(out)):
            widen(values, self._mean, self._scale, out[place : place + len(values)])
            place += len(values)

    def _pieces(self, start: int, stop: int) -> Iterator[Tensor]:
        """The frames asked for, in pieces (n, cells, features) that are views of the file."""
        for part, end in zip(self._parts, self._ends, strict=True):
            begin = end - len(part)
            if begin < stop and start < end:
                yield part[max(0, start - begin) : stop - begin]


def kept_once(cell: Any, geometry: Geometry) -> Tensor | None:
    """What a run's first row alone holds: (cells, features) float16, or (features,) for the steps of int8."""
    if not cell.is_valid:
        return None
    values = torch.from_numpy(np.frombuffer(cell.as_buffer(), np.float16).copy())
    return values if len(values) == geometry.token_size else values.view(geometry.shape)


def token_values(column: Any, geometry: Geometry, dtype: torch.dtype) -> Tensor:
    """The numbers of a token column (frames, cells, features), without a copy: a view to read and never to write."""
    storage = getattr(column, "storage", column)
    return torch.from_dlpack(storage.flatten().flatten()).view(dtype).view(len(column), *geometry.shape)


def widen(values: Tensor, mean: Tensor | None, scale: Tensor | None, out: Tensor) -> None:
    """Write tokens as they are kept into `out`, both (frames, cells, features): int8 times its steps, plus the mean.

    Args:
        values: int8, or float16 where there is no mean.
        mean, scale: (cells, features) and (features,) float16.
        out: float16.
    """
    if mean is None:
        out.copy_(values)
        return
    mean, scale = mean.float(), scale.float()
    frames_at_once = max(1, NUMBERS_AT_ONCE // mean.numel())
    scratch = torch.empty(min(frames_at_once, len(values)), *mean.shape)
    for some, target in zip(values.split(frames_at_once), out.split(frames_at_once), strict=True):
        wide = scratch[: len(some)].copy_(some)
        target.copy_(torch.addcmul(mean, wide, scale, out=wide))
