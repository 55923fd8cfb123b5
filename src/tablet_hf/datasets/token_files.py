"""The tokens of one run in one safetensors file, with what they were made from."""

import itertools
import json
import math
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tablet_hf.errors import InputError
from tablet_hf.feature_extraction_tablet import TokenizedRun
from tablet_hf.files import atomic_write, source_identity

SUFFIX = "_tokens.safetensors"
FORMAT = "tablet_hf tokens 1"
DTYPE = torch.float16
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def token_file_name(scan: Path) -> str:
    """`sub-01_..._bold.nii.gz` -> `sub-01_..._bold_tokens.safetensors`."""
    return scan.name.removesuffix(".gz").removesuffix(".nii") + SUFFIX


def token_file_names(scans: Sequence[Path]) -> list[str]:
    """A name for each of several scans, which says whose it is where the scan's own name does not.

    Scans that would get one name are distinguished by the folders they are in: of those in which their paths differ,
    the leading ones that are needed stand in front. `100307/Results/rest.nii.gz` and `100408/Results/rest.nii.gz`
    become `100307_rest_tokens.safetensors` and `100408_rest_tokens.safetensors`. The order of the scans does not
    matter.
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


class TokenFolder:
    """The files of tokens in a folder, each known by the scan that its record names.

    What a new file is called depends on the scans that are tokenized together (`token_file_names`), so a scan that
    comes again in other company is looked for before it gets a name. Several processes may write to one folder.
    """

    def __init__(self, folder: Path, scans: Sequence[Path]):
        self._folder = folder
        self._names = dict(zip(map(os.path.abspath, scans), token_file_names(scans), strict=True))
        self._sources: dict[Path, dict[str, Any]] = {}
        self._users: dict[Path, str] = {}  # links to one content are several scans, and have a file each

    def finished(self, scan: Path, record: dict[str, Any]) -> Path | None:
        """The file of a scan's tokens, if it is there.

        Raises:
            InputError: it is there, but its record is another one; or no name is left for the scan.
        """
        path = self._file_of(scan)
        if not path.exists():
            return None
        if read_record(path) != record:
            raise InputError(f"{path}: it holds tokens made otherwise; choose another --out, or pass --overwrite.")
        return path

    def save(self, run: TokenizedRun, record: dict[str, Any], scan: Path, overwrite: bool = False) -> Path:
        """Write the tokens of a scan, never over those of another; errors as for `finished`.

        Returns:
            The file that holds them: another process may have written it meanwhile.
        """
        while True:
            if not overwrite and (path := self.finished(scan, record)):
                return path
            path = self._file_of(scan)
            replace = overwrite and path.exists() and self._file_of(scan) == path
            try:
                save_tokens(run, record, path, replace)
                return path
            except FileExistsError:
                continue  # another process took the name

    def _file_of(self, scan: Path) -> Path:
        """Where the tokens of a scan are, else where they may go."""
        given, source = os.path.abspath(scan), source_identity(scan)
        wanted, name = self._folder / self._names[given], token_file_name(scan)
        namesakes = [path for path in self._folder.iterdir() if path.name == name or path.name.endswith(f"_{name}")]
        for path in (wanted, *sorted(namesakes)):
            if self._users.get(path, given) == given and _is_of_scan(self._source_of(path), source):
                break
        else:
            path = self._free_file(scan, wanted)
        self._users[path] = given
        return path

    def _free_file(self, scan: Path, path: Path) -> Path:
        """`path`, or a name that tells the scan from those whose tokens have its names already."""
        resolved = scan.resolve()
        scan = resolved if resolved.name == scan.name else scan
        others: list[Path] = []
        while (holder := self._source_of(path)) is not None:
            other = Path(holder["path"])
            if other in others:
                raise InputError(
                    f"{scan}: it would become {path}, as {other} did; tokenize them into different folders."
                )
            others.append(other)
            path = self._folder / token_file_names([scan, *others])[0]
        return path

    def _source_of(self, path: Path) -> dict[str, Any] | None:
        """What the record of a file says of its scan; None where there is no file, or none that tells."""
        if path not in self._sources:
            try:
                source = read_record(path).get("source")
            except InputError:
                return None
            if not isinstance(source, dict) or not isinstance(source.get("path"), str):
                return None
            self._sources[path] = source
        return self._sources[path]


def _is_of_scan(recorded: dict[str, Any] | None, source: dict[str, Any]) -> bool:
    """Whether a recorded source is a scan, which may have been moved since."""
    if recorded is None or recorded["path"] == source["path"]:
        return recorded is not None
    is_alike = all(name in source and recorded.get(name) == source[name] for name in ("bytes", "modified_ns"))
    return is_alike and not Path(recorded["path"]).exists()


def save_tokens(run: TokenizedRun, record: dict[str, Any], path: Path, replace: bool = True) -> None:
    """Write tokens as float16; `path` never holds half a run.

    Args:
        run: the tokens, (frames, cells, features).
        record: JSON-able: what made them (`TabletFeatureExtractor.to_dict()`) and from what. Read back as it was.
        replace: whether a `path` that is there may be replaced.

    Raises:
        FileExistsError: `path` is there and may not be replaced.
    """
    from safetensors.torch import save

    tensors = {"tokens": run.tokens.to(DTYPE).contiguous(), "frames": torch.from_numpy(np.asarray(run.frames))}
    if run.mean_tokens is not None:
        tensors["mean_tokens"] = run.mean_tokens.to(DTYPE).contiguous()
    description = {
        "format": FORMAT,
        "name": run.name,
        "repetition_time": run.repetition_time,
        "intensity_scale": run.intensity_scale,
        "clipped_share": run.clipped_share,
        "record": record,
    }
    with atomic_write(path, replace) as unfinished:
        # Written by Python, whose error names a full disk.
        metadata = {name: json.dumps(value) for name, value in description.items()}
        unfinished.write_bytes(save(tensors, metadata=metadata))


def load_tokens(path: str | Path) -> tuple[TokenizedRun, dict[str, Any]]:
    """Read a file of `save_tokens`: the run, tokens float16, and its record.

    Raises:
        InputError: the file is missing, cut short, no file of tokens, or a part of it is not what it should be.
    """
    from safetensors import SafetensorError, safe_open

    record, metadata = _read_metadata(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (a file, not a dict)
    except (SafetensorError, OSError, TypeError) as error:
        raise _not_whole(path, error) from error
    if missing := [name for name in ("tokens", "frames") if name not in tensors]:
        raise InputError(f"{path}: it holds no {missing[0]}; tokenize the scan again.")
    _check_tensors(tensors["tokens"], tensors["frames"], tensors.get("mean_tokens"), path)
    run = TokenizedRun(
        tokens=tensors["tokens"],
        frames=tensors["frames"].numpy(),
        repetition_time=_number(metadata, "repetition_time", path),
        intensity_scale=_number(metadata, "intensity_scale", path),
        mean_tokens=tensors.get("mean_tokens"),
        clipped_share=_number(metadata, "clipped_share", path),
        name=str(path),
    )
    if run.repetition_time <= 0 or run.intensity_scale <= 0:
        raise InputError(
            f"{path}: its repetition time is {run.repetition_time:g} and its intensity scale {run.intensity_scale:g}, "
            "which must be positive; tokenize the scan again."
        )
    return run, record


def read_record(path: str | Path) -> dict[str, Any]:
    """The record alone, without reading the tokens; errors as for `load_tokens`."""
    record, _ = _read_metadata(path)
    return record


def _read_metadata(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The record, and all that is written next to the tensors, each as JSON."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _not_whole(path, error) from error
    if metadata.get("format") != json.dumps(FORMAT) or "record" not in metadata:
        raise InputError(f"{path}: it holds no tokens of a run; files of `tablet-hf tokenize` end in {SUFFIX}.")
    record = _from_json(metadata, "record", path)
    if not isinstance(record, dict):
        raise InputError(f"{path}: its record is {record!r}, no names with values; tokenize the scan again.")
    return record, metadata


def _not_whole(path: str | Path, error: Exception) -> InputError:
    return InputError(f"{path}: it is not a whole safetensors file ({error}); tokenize the scan again.")


def _from_json(metadata: dict[str, str], name: str, path: str | Path) -> Any:
    if name not in metadata:
        raise InputError(f"{path}: its metadata hold no {name}; tokenize the scan again.")
    try:
        return json.loads(metadata[name])
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its {name} is not readable as JSON ({error}); tokenize the scan again.") from error


def _number(metadata: dict[str, str], name: str, path: str | Path) -> float:
    value = _from_json(metadata, name, path)
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return value
    except OverflowError:  # a whole number beyond all floats
        pass
    raise InputError(f"{path}: its {name} is {value!r}, no finite number; tokenize the scan again.")


def _check_tensors(tokens: Tensor, frames: Tensor, mean_tokens: Tensor | None, path: str | Path) -> None:
    shape = tuple(tokens.shape)
    if tokens.dtype not in FLOATS:
        raise InputError(
            f"{path}: its tokens are {tokens.dtype}, no floating-point numbers of 16 bits; tokenize the scan again."
        )
    if frames.ndim != 1 or frames.dtype not in (torch.int32, torch.int64):
        raise InputError(
            f"{path}: its frames have the shape {tuple(frames.shape)} and are {frames.dtype}, not one whole number for "
            "each; tokenize the scan again."
        )
    if tokens.ndim != 3 or len(tokens) != len(frames):
        raise InputError(
            f"{path}: its tokens have the shape {shape}, not (frames, cells, features) of its {len(frames)} frames; "
            "tokenize the scan again."
        )
    if not tokens.numel():
        raise InputError(f"{path}: its tokens have the shape {shape}, so there are none; tokenize the scan again.")
    if mean_tokens is not None and (mean_tokens.dtype not in FLOATS or mean_tokens.shape != (1, *shape[1:])):
        raise InputError(
            f"{path}: its mean tokens have the shape {tuple(mean_tokens.shape)} and are {mean_tokens.dtype}, not "
            f"floating-point numbers of the shape {(1, *shape[1:])}; tokenize the scan again."
        )
    for name, values in {"tokens": tokens, "mean tokens": mean_tokens}.items():
        if values is not None and not values.isfinite().all():
            raise InputError(f"{path}: its {name} hold numbers that are not finite; tokenize the scan again.")
