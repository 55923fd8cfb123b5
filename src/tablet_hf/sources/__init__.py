"""Find the scans of a dataset: one small module per layout of folders and tables, each of which yields `ScanRecord`s.

    cohort = find_scans("bids", "derivatives/fmriprep", tasks=["rest"])
    cohort.records      # what can be tokenized, and what is known of each subject
    cohort.problems     # what was left out or is missing, and why

A source reads names and tables only, never a voxel. `records`, `cohort`, `tables`, `columns` and `delimited` are what
the sources share. `docs/sources.md` shows the file tree that each source expects.
"""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tablet_hf.errors import InputError
from tablet_hf.sources.records import Cohort, Problem, ScanRecord

__all__ = ["SOURCES", "Cohort", "Problem", "ScanRecord", "find_scans"]


def _find(name: str, root: str | Path, **options: Any) -> Cohort:
    find = import_module(f".{name}", __name__).find
    known = [option for option in signature(find).parameters if option != "root"]
    # A command line hands on all options that it has; those that were not set are no one's business.
    given = {option: value for option, value in options.items() if value not in (None, False, [], ())}
    for option in given:
        if option not in known:
            takes = ", ".join(map(_as_typed, known)) if known else "no options"
            raise InputError(f"The source {name} does not know {_as_typed(option)}, it takes {takes}; leave it out.")
    return find(Path(root), **given)


def _as_typed(option: str) -> str:
    """How the command line writes an option: one that may be repeated names one thing at a time."""
    return {"tasks": "--task", "sessions": "--session"}.get(option, f"--{option.replace('_', '-')}")


SOURCES: Mapping[str, Callable[..., Cohort]] = MappingProxyType(
    {name: partial(_find, name) for name in ("adhd200", "bids", "hbn", "hcp", "table", "ukb")}
)
"""Name of a source -> `find(root, **options)`; its module is imported by the first call."""


def find_scans(source: str, root: str | Path, **options: Any) -> Cohort:
    """Find the scans of a dataset and what is known of its subjects.

    Args:
        source: a name in `SOURCES`.
        root: the folder of the dataset, or the table for the source "table".
        options: those of the source's own `find`; what is None, False or empty counts as not given.

    Raises:
        InputError: no such source, an option that it does not know, a root that is missing, or one that holds nothing
            of the expected layout.
    """
    if source not in SOURCES:
        raise InputError(f"There is no source {source!r}; choose one of {', '.join(SOURCES)}.")
    return SOURCES[source](root, **options)
