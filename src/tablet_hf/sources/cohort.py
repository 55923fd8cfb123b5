"""What all sources share: finding files, selecting labels, and leaving out what cannot be used."""

import glob
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tablet_hf.errors import InputError
from tablet_hf.sources.records import Cohort, Problem, ScanRecord

__all__ = ["find_files", "grouped", "make_cohort", "not_found", "select_labels", "sibling", "warn_if_mixed"]


def not_found(root: Path, layout: str, example: str, hint: str = "") -> InputError:
    """Return the error for a root without any scan of a layout; the example is the path of such a scan."""
    return InputError(f"{root}: no scan of {layout} was found, such as {example}. {hint}".rstrip())


def find_files(root: Path, pattern: str) -> list[Path]:
    """Return the paths below a folder that match a glob pattern, sorted; links without a target are included."""
    return [root / name for name in sorted(glob.glob(pattern, root_dir=root))]


def sibling(scan: Path, name: str) -> Path | None:
    """Return a file in the folder of a scan, None where there is none; a link without a target counts as one."""
    path = scan.with_name(name)
    return path if os.path.lexists(path) else None


def grouped(records: Iterable[ScanRecord], attribute: str) -> dict[Any, list[ScanRecord]]:
    """Return the records by one of their attributes."""
    groups: dict[Any, list[ScanRecord]] = {}
    for record in records:
        groups.setdefault(getattr(record, attribute), []).append(record)
    return groups


def select_labels(
    root: Path, records: Sequence[ScanRecord], attribute: str, wanted: Iterable[str] | None
) -> tuple[list[ScanRecord], list[Problem]]:
    """Keep the records of wanted sessions or tasks, and list the labels that no record has.

    Args:
        root: Folder of the dataset, for messages.
        attribute: "session" or "task".
        wanted: Labels with or without their BIDS prefix; None or empty keeps all.

    Raises:
        InputError: If no record has any of them.
    """
    if not wanted:
        return list(records), []
    prefix = {"session": "ses-", "task": "task-"}[attribute]
    labels, existing = {label.removeprefix(prefix) for label in wanted}, grouped(records, attribute).keys() - {None}
    absent, choices = (", ".join(sorted(prefix + label for label in each)) for each in (labels - existing, existing))
    problem = Problem(str(root), f"no scan has {absent}; choose from {choices or 'none'}.")
    if not labels & existing:
        raise InputError(str(problem))
    selected = [record for record in records if getattr(record, attribute) in labels]
    return selected, [problem] if absent else []


def warn_if_mixed(root: Path, kinds: Iterable[str], option: str) -> None:
    """Warn where scans were preprocessed in different ways, by which a model could distinguish subjects."""
    counts = Counter(kinds)
    if len(counts) > 1:
        listed = ", ".join(f"{kind} ({count})" for kind, count in counts.most_common())
        message = f"{root}: the scans are mixed, which can bias a model: {listed}; choose one kind with {option}."
        warnings.warn(message, stacklevel=3)


def make_cohort(records: Iterable[ScanRecord], problems: Iterable[Problem] = (), is_restricted: bool = False) -> Cohort:
    """Make a cohort of the usable records.

    Left out, each with a problem: scans without a file or with a missing mask, scans with the same key, and a file
    that is listed as several scans. An identical record counts once.
    """
    problems, usable = list(problems), []
    groups = grouped(records, "key")
    keys_of_file: dict[str, list[str]] = {}
    for key, (record, *_) in sorted(groups.items()):
        keys_of_file.setdefault(os.path.abspath(record.scan), []).append(key)
    for key, (record, *others) in sorted(groups.items()):
        keys = keys_of_file[os.path.abspath(record.scan)]
        if any(other != record for other in others):
            why = f"{len(others) + 1} scans have the key {key}; give them different subjects, sessions, tasks or runs."
            reasons = {each.scan: why for each in (record, *others)}
        elif len(keys) > 1:
            reasons = {record.scan: f"this one file is listed as {' and '.join(keys)}; list it once."}
        else:
            reasons = {path: _why_absent(path) for path in (record.scan, record.mask) if path is not None}
        found = [Problem(str(path), why) for path, why in reasons.items() if why]
        problems += found
        usable += [] if found else [record]
    return Cohort(tuple(usable), tuple(problems), is_restricted)


def _why_absent(path: Path) -> str | None:
    """Return why a file cannot be opened, None where it can. A small file may be a pointer of git-annex."""
    is_pointer = path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(b"/annex/objects/")
    if is_pointer or (path.is_symlink() and not path.exists()):
        return f"its content was not downloaded; run `datalad get {path}`."
    return None if path.is_file() else "there is no such file; check the path."
