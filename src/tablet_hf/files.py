"""Files and folders: what tells one from a changed one, and names that never stand for half of what is written."""

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "atomic_folder",
    "atomic_write",
    "saved_weights_checksum",
    "scan_identity",
    "source_identity",
    "weights_checksum",
]


def source_identity(scan: Path) -> dict[str, Any]:
    """Path, size and time of a scan; of one that cannot be looked at, the path: reading it will tell why."""
    try:
        status = scan.stat()
    except OSError:
        return {"path": str(scan)}
    return {"path": str(scan.resolve()), "bytes": status.st_size, "modified": status.st_mtime}


def scan_identity(scan: Path) -> dict[str, Any]:
    """What tells a scan from a changed one; its name alone, since folders may name subjects or places."""
    state = Path(scan).stat()
    return {"name": Path(scan).name, "bytes": state.st_size, "modified_ns": state.st_mtime_ns}


def weights_checksum(tensors: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that tell weights, by name and number, from others; the same however they are stored."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().float().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()[:16]


def saved_weights_checksum(folder: str | Path) -> str:
    """`weights_checksum` of a model's safetensors files."""
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        tensors |= load_file(path)
    return weights_checksum(tensors)


@contextmanager
def atomic_write(path: str | Path, replace: bool = True) -> Iterator[Path]:
    """Give a temporary name next to `path`; what the block writes there becomes `path` when the block ends well.

        with atomic_write("results.json") as unfinished:
            unfinished.write_text("{}")

    A block that fails leaves nothing behind, and an older `path` as it was. Temporary names are hidden, and no two are
    the same, so that processes may write to one folder. They end as `path` does: some libraries tell a format by that.

    Raises:
        FileExistsError: there is a `path` already, though it was not to be replaced.
    """
    path = Path(path)
    ending = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    unfinished = path.with_name(f".{uuid.uuid4().hex}{ending}")
    try:
        yield unfinished
        if replace:
            os.replace(unfinished, path)
        else:
            _rename_to_what_is_not_there(unfinished, path)
    except OSError as error:
        if str(error.filename) == str(unfinished):
            error.filename = str(path)  # the name that the user gave
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def _rename_to_what_is_not_there(unfinished: Path, path: Path) -> None:
    try:
        os.link(unfinished, path)  # unlike a renaming, never takes the place of what came meanwhile
    except FileExistsError:
        raise
    except OSError as error:  # a file system without links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        os.replace(unfinished, path)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give an empty folder under a hidden name next to `path`; it becomes `path` when the block ends well.

        with atomic_folder("my-model") as unfinished:
            model.save_pretrained(unfinished)

    A folder that was there before is replaced with all that it holds: whoever calls makes sure that it may be. A block
    that fails leaves it as it was, and nothing next to it; what a killed process left is deleted by the next one, hence
    only one process at a time may write a folder. Files can be read by whom the umask says, also those that a library
    kept to their owner, as safetensors does.
    """
    path = Path(path)
    scratch = path.parent / f".{path.name}-unfinished"
    shutil.rmtree(scratch, ignore_errors=True)
    unfinished, replaced = scratch / "new", scratch / "old"
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        _open_as_the_umask_says(unfinished)
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


def _open_as_the_umask_says(folder: Path) -> None:
    allowed = folder.stat().st_mode & 0o666  # a new folder has what the umask leaves; asking for the umask changes it
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(path.stat().st_mode | allowed)
