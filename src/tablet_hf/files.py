"""Identity and checksums of files, and names that never stand for half of what is written."""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError

__all__ = [
    "atomic_folder",
    "atomic_write",
    "checksum",
    "file_checksum",
    "file_identity",
    "protect_cell",
    "safe_name",
    "saved_weights_checksum",
    "unprotect_cell",
    "weights_checksum",
    "write_json",
]


def file_identity(path: str | Path) -> dict[str, Any]:
    """Name, size and modification time of a file: enough to notice that it changed.

    The folder is left out, since its name may identify a subject.

    Raises:
        InputError: there is no such file.
    """
    path = Path(path)
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(
            f"{path}: there is no such file ({error.strerror}); check the path, or fetch it (DataLad: datalad get)."
        ) from error
    return {"name": path.name, "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def checksum(value: Any) -> str:
    """The SHA-256 of anything that JSON can represent; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_checksum(path: str | Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_checksum(tensors: Mapping[str, Any]) -> str:
    """16 hexadecimal digits for the names, shapes and values of weights, whatever their dtype and file."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().float().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()[:16]


def saved_weights_checksum(folder: str | Path) -> str:
    """`weights_checksum` of the safetensors files in a folder."""
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        tensors |= load_file(path)
    return weights_checksum(tensors)


def safe_name(text: str) -> str:
    """Turn any text into the name of a file or folder; text that already is a safe name is returned as it is.

    Separators, control characters and what Windows forbids become `_`; leading and trailing dots and spaces go, device
    names of Windows get a `_` in front, and long names are cut. A checksum then keeps different texts apart.
    """
    name = re.sub(r'[<>:"/\\|?*\x00-\x1f\x7f\ud800-\udfff]', "_", text).strip(". ")
    if not name or re.match(r"(CON|PRN|AUX|NUL|COM\d|LPT\d)(\.|$)", name, re.IGNORECASE):
        name = f"_{name}"
    if name == text and len(name.encode()) <= 100:
        return name
    name = name.encode()[:91].decode(errors="ignore").rstrip(". ")
    return f"{name}+{checksum(text)[:8]}"


def protect_cell(value: Any) -> Any:
    """Put an apostrophe before text, other than a number, that a spreadsheet would run as a formula (OWASP)."""
    is_text = isinstance(value, str) and not re.fullmatch(r"-\d+(\.\d+)?(e[+-]?\d+)?", value)
    return f"'{value}" if is_text and re.match(r"'*[=+\-@\t\r\n]", value) else value


def unprotect_cell(value: Any) -> Any:
    """Remove the apostrophe of `protect_cell`."""
    return value[1:] if isinstance(value, str) and re.match(r"'+[=+\-@\t\r\n]", value) else value


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary name next to `path`, which becomes `path` when the block succeeds.

        with atomic_write("results.json") as unfinished:
            unfinished.write_text("{}")

    A block that fails leaves nothing behind and an existing `path` as it was. Temporary names are hidden, unique, so
    that processes may write to one folder, and end as `path` does, since libraries infer the format from that.
    """
    path = Path(path)
    ending = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    unfinished = path.with_name(f".{uuid.uuid4().hex}{ending}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        if str(error.filename) == str(unfinished):
            error.filename = str(path)  # the name that the user gave
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any, **options: Any) -> None:
    """Write JSON with `atomic_write`; options are those of `json.dumps`."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(content, **options) + "\n", encoding="utf-8")


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give an empty folder next to `path`, which becomes `path` when the block succeeds.

        with atomic_folder("my-model") as unfinished:
            model.save_pretrained(unfinished)

    An existing folder is replaced with all its content; a block that fails leaves it as it was. What a killed process
    left is deleted by the next one, so only one process at a time may write a folder. Files get the permissions
    that the umask allows, also those that a library restricted to their owner, as safetensors does.
    """
    path = Path(path)
    scratch = path.parent / f".{path.name}-unfinished"
    shutil.rmtree(scratch, ignore_errors=True)
    unfinished, replaced = scratch / "new", scratch / "old"
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        allowed = unfinished.stat().st_mode & 0o666  # reading the umask would mean setting it
        for file in unfinished.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(file.stat().st_mode | allowed)
        if path.exists():
            os.replace(path, replaced)
        try:
            os.replace(unfinished, path)
        except BaseException:
            if replaced.exists():
                os.rename(replaced, path)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
