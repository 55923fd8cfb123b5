"""Writing files whose name never stands for half of them."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["written_whole"]


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; what the block writes there becomes `path` when the block ends well.

        with written_whole("results.json") as unfinished:
            unfinished.write_text("{}")

    A block that fails leaves nothing behind, and an older `path` as it was. Temporary names are hidden, and no two are
    the same, so that processes may write to one folder. They end as `path` does: some libraries tell a format by that.
    """
    path = Path(path)
    ending = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    unfinished = path.with_name(f".{uuid.uuid4().hex}{ending}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        if str(error.filename) == str(unfinished):
            error.filename = str(path)  # the name that the person at the keyboard gave
        raise
    finally:
        unfinished.unlink(missing_ok=True)
