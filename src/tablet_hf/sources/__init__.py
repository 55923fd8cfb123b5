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
        options: Options of the source's own `find`; None, False and empty count as not given.

    Raises:
        InputError: If there is no such source, option or root, or no scan of the expected layout in it.
    """
    if source not in SOURCES:
        raise InputError(f"There is no source {source!r}; choose one of {', '.join(SOURCES)}.")
    find = import_module(f".{source}", __name__).find
    existing = [option for option in signature(find).parameters if option != "root"]
    given = {option: value for option, value in options.items() if value not in (None, False, [], ())}
    for option in given:
        if option not in existing:
            choices = ", ".join(map(_on_command_line, existing))
            raise InputError(f"The source {source} has no option {_on_command_line(option)}; it has {choices}.")
    return find(Path(root), **given)


def _on_command_line(option: str) -> str:
    return {"tasks": "--task", "sessions": "--session"}.get(option, f"--{option.replace('_', '-')}")
