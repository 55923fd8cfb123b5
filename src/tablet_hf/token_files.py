"""The tokens of one run in one safetensors file, with what they were made from."""

import itertools
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tablet_hf.errors import InputError
from tablet_hf.feature_extraction_tablet import TokenizedRun
from tablet_hf.files import written_whole

SUFFIX = "_tokens.safetensors"
FORMAT = "tablet_hf tokens 1"


def token_file_name(scan: Path) -> str:
    """`sub-01_..._bold.nii.gz` -> `sub-01_..._bold_tokens.safetensors`."""
    return scan.name.removesuffix(".gz").removesuffix(".nii") + SUFFIX


def token_file_names(scans: Sequence[Path]) -> list[str]:
    """A name for each of several scans, which says whose it is where the scan's own name does not.

    Scans that would get one name are told apart by the folders they lie in: of those in which their paths differ, the
    leading ones that are needed stand in front. `100307/Results/rest.nii.gz` and `100408/Results/rest.nii.gz` become
    `100307_rest_tokens.safetensors` and `100408_rest_tokens.safetensors`. The order of the scans does not matter.
    """
    paths = [
        Path(os.path.abspath(scan)) for scan in scans
    ]  # links are not followed: their targets may be called hashes
    namesakes: dict[str, set[Path]] = {}
    for path in paths:
        namesakes.setdefault(token_file_name(path), set()).add(path)
    prefixes = {path: prefix for group in namesakes.values() for path, prefix in _distinguishing_folders(group).items()}
    return ["_".join((*prefixes[path], token_file_name(path))) for path in paths]


def _distinguishing_folders(paths: Collection[Path]) -> dict[Path, tuple[str, ...]]:
    """For each path, its folders at as many of the places where they differ as tell them all apart; none for one."""
    prefixes: dict[Path, tuple[str, ...]] = dict.fromkeys(paths, ())
    for folders in itertools.zip_longest(*(path.parent.parts[1:] for path in paths)):
        if len(set(prefixes.values())) == len(paths):
            break
        if len(set(folders)) > 1:
            for path, folder in zip(paths, folders, strict=True):
                prefixes[path] += () if folder is None else (folder,)
    return prefixes


def save_tokens(run: TokenizedRun, record: dict[str, Any], path: Path) -> None:
    """Write tokens as float16; `path` never holds half a run.

    Args:
        run: the tokens, (frames, cells, features).
        record: JSON-able: what made them (`TabletFeatureExtractor.to_dict()`) and from what. Read back as it was.
    """
    from safetensors.torch import save

    tensors = {"tokens": run.tokens.half().contiguous(), "frames": torch.from_numpy(np.asarray(run.frames))}
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
    with written_whole(path) as unfinished:
        # Written by Python, whose error names a full disk.
        metadata = {name: json.dumps(value) for name, value in description.items()}
        unfinished.write_bytes(save(tensors, metadata=metadata))


def load_tokens(path: str | Path) -> tuple[TokenizedRun, dict[str, Any]]:
    """Read a file of `save_tokens`: the run, tokens float16, and its record.

    Raises:
        InputError: the file is missing, cut short, or no file of tokens.
    """
    from safetensors import safe_open

    record = read_record(path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (a file, not a dict)
        metadata = file.metadata()
    try:
        run = TokenizedRun(
            tokens=tensors["tokens"],
            frames=tensors["frames"].numpy(),
            repetition_time=json.loads(metadata["repetition_time"]),
            intensity_scale=json.loads(metadata["intensity_scale"]),
            mean_tokens=tensors.get("mean_tokens"),
            clipped_share=json.loads(metadata["clipped_share"]),
            name=str(path),
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path}: it lacks a part of what a file of tokens holds ({error}); tokenize again."
        ) from error
    if run.tokens.ndim != 3 or len(run.tokens) != len(run.frames):
        raise InputError(
            f"{path}: its tokens have the shape {tuple(run.tokens.shape)}, not (frames, cells, features) of its "
            f"{len(run.frames)} frames; tokenize the scan again."
        )
    return run, record


def read_record(path: str | Path) -> dict[str, Any]:
    """The record alone, without reading the tokens; errors as for `load_tokens`."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: it is not a whole safetensors file ({error}); tokenize the scan again.") from error
    if metadata.get("format") != json.dumps(FORMAT) or "record" not in metadata:
        raise InputError(f"{path}: it holds no tokens of a run; files of `tablet-hf tokenize` end in {SUFFIX}.")
    return json.loads(metadata["record"])
