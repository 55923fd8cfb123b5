"""Find the scans of a dataset: one small module per layout, each with a function `find` that returns a `Cohort`.

    cohort = find_scans("bids", "derivatives/fmriprep", tasks=["rest"])
    cohort.records      # scans and their phenotypes
    cohort.problems     # what was left out, and why

A source reads names and tables only, no image. `docs/sources.md` shows the files that each source expects.
"""

from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from tablet_hf.errors import InputError
from tablet_hf.sources.records import Cohort, Problem, ScanRecord

__all__ = ["SOURCES", "Cohort", "Problem", "ScanRecord", "find_scans"]

SOURCES = ("adhd200", "bids", "hbn", "hcp", "table", "ukb")
"""Names of the sources, which are modules of this package."""


def find_scans(source: str, root: str | Path, **options: Any) -> Cohort:
    """Find the scans of a dataset and the phenotypes of its subjects.

    Args:
        source: A name in `SOURCES`.
        root: Folder of the dataset, or the table for the source "table".
        options: Options of the source's own `find`.

    Raises:
        InputError: If there is no such source, option or root, or no scan of the expected layout in it.
    """
    if source not in SOURCES:
        raise InputError(f"There is no source {source!r}; choose one of {', '.join(SOURCES)}.")
    root, find = Path(root), import_module(f".{source}", __name__).find
    _, *existing = signature(find).parameters
    if unknown := [option for option in options if option not in existing]:
        raise InputError(f"The source {source} has no {_options(unknown)}; its options are {_options(existing)}.")
    if source != "table" and not root.is_dir():
        raise InputError(f"{root}: this is not a folder; give that of the dataset.")
    return find(root, **options)


def _options(names: list[str]) -> str:
    """Return the options of the command line that these arguments are."""
    words = {"tasks": "task", "sessions": "session"}
    return ", ".join("--" + words.get(name, name).replace("_", "-") for name in names)
