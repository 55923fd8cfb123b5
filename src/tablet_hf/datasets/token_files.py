"""Store the tokens of one run in a safetensors file, with the record of what made them."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tablet_hf.errors import InputError
from tablet_hf.feature_extraction_tablet import TokenizedRun
from tablet_hf.files import atomic_write

__all__ = ["SUFFIX", "load_tokens", "read_record", "save_tokens", "token_file_name"]

SUFFIX = "_tokens.safetensors"
FORMAT = "tablet_hf tokens 1"


def token_file_name(scan: Path) -> str:
    """`sub-01_..._bold.nii.gz` -> `sub-01_..._bold_tokens.safetensors`."""
    return scan.name.removesuffix(".gz").removesuffix(".nii") + SUFFIX


def save_tokens(run: TokenizedRun, record: dict[str, Any], path: Path) -> None:
    """Write the tokens of a run as float16; `path` never holds half of them.

    Args:
        run: tokens `(frames, cells, features)` and their frames, scale and repetition time.
        record: JSON-able settings and source of the tokens, which `load_tokens` returns.
    """
    from safetensors.torch import save

    tensors = {"tokens": run.tokens.half().contiguous(), "frames": torch.as_tensor(run.frames, dtype=torch.int64)}
    if run.mean_tokens is not None:
        tensors["mean_tokens"] = run.mean_tokens.half().contiguous()
    description = {
        "format": FORMAT,
        "name": run.name,
        "repetition_time": run.repetition_time,
        "intensity_scale": run.intensity_scale,
        "clipped_share": run.clipped_share,
        "record": record,
    }
    metadata = {name: json.dumps(value) for name, value in description.items()}
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(save(tensors, metadata=metadata))  # an OSError of Python names a full disk


def load_tokens(path: str | Path) -> tuple[TokenizedRun, dict[str, Any]]:
    """Read a file of `save_tokens`: the run with its tokens as stored, and its record.

    Raises:
        InputError: the file is missing, damaged, or not a token file.
    """
    with _opened(path) as (file, metadata):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (a file, not a dict)
        tokens, frames, mean_tokens = tensors["tokens"], tensors["frames"], tensors.get("mean_tokens")
        _check_tensors(tokens, frames, mean_tokens)
        numbers = {name: metadata[name] for name in ("repetition_time", "intensity_scale", "clipped_share")}
        if any(type(value) not in (int, float) or not math.isfinite(value) for value in numbers.values()):
            raise ValueError(f"{numbers} are not all finite numbers")
        if numbers["repetition_time"] <= 0 or numbers["intensity_scale"] <= 0:
            raise ValueError("its repetition time or intensity scale is not positive")
    return TokenizedRun(tokens, frames.numpy(), mean_tokens=mean_tokens, name=str(path), **numbers), metadata["record"]


def read_record(path: str | Path) -> dict[str, Any]:
    """Read the record of a token file without its tokens; errors as for `load_tokens`."""
    with _opened(path) as (_, metadata):
        return metadata["record"]


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The open safetensors file and its metadata; what is wrong with either, or in the block, is an InputError."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
            if metadata.get("format") != FORMAT or not isinstance(metadata["record"], dict):
                raise ValueError("it was not written by tablet-hf tokenize")
            yield file, metadata
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)[:90]
        raise InputError(f"{path}: not a whole token file ({reason}); tokenize the scan again.") from error


def _check_tensors(tokens: torch.Tensor, frames: torch.Tensor, mean_tokens: torch.Tensor | None) -> None:
    if tokens.ndim != 3 or not tokens.numel() or frames.shape != tokens.shape[:1] or frames.dtype != torch.int64:
        raise ValueError(f"tokens {tuple(tokens.shape)} and {frames.dtype} frames {tuple(frames.shape)} do not match")
    if mean_tokens is not None and mean_tokens.shape != (1, *tokens.shape[1:]):
        raise ValueError(f"mean tokens {tuple(mean_tokens.shape)} do not match tokens {tuple(tokens.shape)}")
    for values in filter(torch.is_tensor, (tokens, mean_tokens)):
        if values.dtype != torch.float16 or not values.isfinite().all():
            raise ValueError("its tokens are not all finite numbers in float16")
