"""The tokens of one run as an Arrow file: one row per frame, float16 or int8, memory-mapped when read.

int8 tokens are deviations from the run's mean token, in steps of each feature times a factor of each frame, so that
motion makes only its own frames coarse. Mean and steps are in the first row, as are the tokens of the run's mean volume
where there are any; the factor is in the row of its frame.
"""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tablet_hf.errors import InputError
from tablet_hf.files import atomic_write

DTYPES = {"float16": torch.float16, "int8": torch.int8}

LABELS = ("subject", "session", "task", "run", "dataset")
# Columns that hold something in the first row of a run only; attributes of `StoredTokens` of the same names.
FIRST_ROW = ("token_mean", "token_scale", "mean_tokens")
# Lists of Arrow count their numbers in int32.
MAX_NUMBERS = 2**31 - 1
# Numbers that are widened at a time: 8 frames of the paper's tokens, 2.7 MB of float32, which stay in the cache.
NUMBERS_AT_ONCE = 8 * 27 * 3072
# How far the largest deviation of a feature may exceed its usual one before its step grows: a feature that is still in
# most frames would otherwise have a step of nothing, and the others' factors would be immense.
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
class StoredTokens:
    """The tokens of a run, or of some of its frames, as they are stored.

    Attributes:
        values: (frames, cells, features) float16 or int8.
        token_mean: (cells, features) float16, int8 only.
        token_scale: step of each feature, (features,) float16, int8 only.
        frame_scale: factor of each frame, (frames,) float32, int8 only.
        mean_tokens: tokens of the run's mean volume, (cells, features) float16, or None.
    """

    values: Tensor
    token_mean: Tensor | None = None
    token_scale: Tensor | None = None
    frame_scale: Tensor | None = None
    mean_tokens: Tensor | None = None

    def __getitem__(self, frames: slice) -> "StoredTokens":
        factors = None if self.frame_scale is None else self.frame_scale[frames]
        return replace(self, values=self.values[frames], frame_scale=factors)

    def widen(self, out: Tensor | None = None) -> Tensor:
        """Write the tokens into `out`, or new memory: (frames, cells, features) float16."""
        if out is None:
            out = torch.empty(self.values.shape, dtype=torch.float16)
        if self.token_mean is None:
            return out.copy_(self.values)
        mean, step = self.token_mean.float(), self.token_scale.float()
        frames_at_once = max(1, NUMBERS_AT_ONCE // mean.numel())
        scratch = torch.empty(min(frames_at_once, len(out)), *mean.shape)
        steps = step * self.frame_scale[:, None, None]
        parts = (part.split(frames_at_once) for part in (self.values, steps, out))
        for values, steps_of_values, target in zip(*parts, strict=True):
            wide = scratch[: len(values)].copy_(values)
            target.copy_(torch.addcmul(mean, wide, steps_of_values, out=wide))
        return out

    def checksum(self) -> str:
        """SHA-256 of all numbers."""
        digest = hashlib.sha256()
        for tensor in (self.values, self.token_mean, self.token_scale, self.frame_scale, self.mean_tokens):
            if tensor is not None:
                digest.update(memoryview(tensor.contiguous().numpy().reshape(-1)).cast("B"))
        return digest.hexdigest()


# --- writing


def quantise(tokens: Tensor) -> tuple[StoredTokens, dict[str, float]]:
    """int8 deviations of a run's tokens from their mean.

    Under intensities 98% of a token's variance is static anatomy, so only what changes is rounded. A step is the median
    over frames of the largest deviation of its feature, over 127; a frame's factor is as large as its own largest
    deviation needs, so that one frame does not decide the precision of the others.

    Args:
        tokens: (frames, cells, features) float32.

    Returns:
        The stored tokens, and their errors relative to what changes over time: `of_temporal_deviation`, and frame by
        frame, `of_median_frame` and `of_worst_frame`.
    """
    mean = tokens.mean(0).half()
    deviations = tokens - mean.float()
    largest = deviations.abs().amax(1)
    usual = torch.maximum(largest.median(0).values, largest.amax(0) / LARGEST_FACTOR)
    step = (usual / 127).clamp_min(2**-24).half()
    factors = (largest / step.float()).amax(1) / 127
    factors = torch.where(factors > 0, factors, 1.0)
    values = (deviations / (step.float() * factors[:, None, None])).round().clamp(-127, 127).to(torch.int8)
    stored = StoredTokens(values, mean, step, factors)
    residual = stored.widen().float() - tokens
    temporal = tokens - tokens.mean(0)
    by_frame = _ratios(residual.flatten(1).norm(dim=1), temporal.flatten(1).norm(dim=1))
    error = {
        "of_temporal_deviation": float(_ratios(residual.norm(), temporal.norm())),
        "of_median_frame": float(by_frame.median()),
        "of_worst_frame": float(by_frame.max()),
    }
    return stored, error


def _ratios(errors: Tensor, deviations: Tensor) -> Tensor:
    """0 where nothing changes."""
    return torch.where(deviations > 0, errors / deviations.clamp_min(1e-30), 0.0)


def write_arrow(path: Path, stored: StoredTokens, record: Any) -> None:
    """Write the rows of one run, typed as `datasets` types them; `record` is a `ScanRecord` or `StoredRun`."""
    import pyarrow as pa
    from datasets import Array2D, Features, Value

    values = stored.values
    features = {name: Value("string") for name in LABELS} | {"frame": Value("int32")}
    columns = {name: pa.repeat(pa.scalar(getattr(record, name), pa.string()), len(values)) for name in LABELS}
    columns["frame"] = pa.array(np.arange(len(values), dtype=np.int32))
    if stored.frame_scale is not None:
        features["frame_scale"] = Value("float32")
        columns["frame_scale"] = pa.array(stored.frame_scale.numpy())
    for name in FIRST_ROW:
        if (tensor := getattr(stored, name)) is not None:
            features[name] = Value("binary")
            first = tensor.half().numpy().tobytes()
            columns[name] = pa.array([first] + [None] * (len(values) - 1), pa.binary())
    features["tokens"] = Array2D(tuple(values.shape[1:]), str(values.dtype).removeprefix("torch."))
    schema = Features(features).arrow_schema
    columns["tokens"] = token_column(values.contiguous().numpy(), schema.field("tokens").type)
    table = pa.table([columns[name] for name in schema.names], schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Opened by Python, which takes any name and names what a disk refused.
    with atomic_write(path) as unfinished, unfinished.open("wb") as file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_table(table)


def token_column(values: np.ndarray, kind: Any) -> Any:
    """(frames, cells, features) as an Arrow column of that extension type, without copying the numbers."""
    import pyarrow as pa

    frames, cells, features = values.shape
    flat = pa.array(values.reshape(-1))
    inner = pa.ListArray.from_arrays(pa.array(np.arange(frames * cells + 1, dtype=np.int32) * features), flat)
    outer = pa.ListArray.from_arrays(pa.array(np.arange(frames + 1, dtype=np.int32) * cells), inner)
    return pa.ExtensionArray.from_storage(kind, outer)


# --- reading


def open_tokens(path: Path, geometry: Geometry, dtype: str, num_frames: int) -> StoredTokens:
    """Map the tokens of a run's file into memory.

    Raises:
        InputError: no such file, or its content is not `num_frames` frames of that geometry and dtype.
    """
    import pyarrow as pa

    try:
        stored = tokens_in(open_rows(path), geometry, dtype)
        if len(stored.values) != num_frames:
            raise ValueError(f"{len(stored.values)} frames, not {num_frames}")
    except FileNotFoundError as error:
        raise InputError(f"{path}: the file is missing; run tablet-hf dataset check on its store.") from error
    except (pa.ArrowException, OSError, KeyError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: it is damaged ({reason}); delete it and tokenize the run again.") from error
    return stored


def open_rows(path: Path) -> Any:
    """The rows of a run's file as an Arrow table, mapped into memory."""
    import pyarrow as pa

    with pa.memory_map(os.fsencode(path)) as source:
        return pa.ipc.open_stream(source).read_all()


def tokens_in(table: Any, geometry: Geometry, dtype: str) -> StoredTokens:
    """The tokens in the Arrow rows of one run: views of them, to be read only, where the rows are in one piece.

    Raises:
        KeyError, ValueError, RuntimeError: no such tokens are in there.
    """
    table = table.combine_chunks()
    if not len(table):
        raise ValueError("no frames")
    column = table["tokens"].chunk(0)
    values = torch.from_dlpack(getattr(column, "storage", column).flatten().flatten())
    expected = len(table) * geometry.num_cells * geometry.token_size
    if (values.dtype, len(values)) != (DTYPES[dtype], expected):
        raise ValueError(f"{len(values)} numbers of {values.dtype}, not {expected} of {dtype}")
    shapes = {"token_scale": (geometry.token_size,)}
    first_row = {}
    for name in set(FIRST_ROW) & set(table.column_names):
        if (cell := table[name][0]).is_valid:
            numbers = np.frombuffer(cell.as_buffer(), np.float16).copy()
            first_row[name] = torch.from_numpy(numbers).view(shapes.get(name, geometry.shape))
    if dtype == "int8":
        if not {"token_mean", "token_scale"} <= first_row.keys():
            raise ValueError("no mean or steps")
        factors = table["frame_scale"].to_numpy().astype(np.float32)
        first_row["frame_scale"] = torch.from_numpy(factors)
    return StoredTokens(values.view(len(table), *geometry.shape), **first_row)
