"""What all sources share: checking the folder, selecting labels, and leaving out what cannot be used."""

import glob
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tablet_hf.errors import InputError
from tablet_hf.sources.records import Cohort, Problem, ScanRecord

__all__ = ["Layout", "find_files", "grouped", "make_cohort", "select_labels", "sibling", "warn_if_mixed"]


@dataclass(frozen=True)
class Layout:
    """The dataset that a source expects, and the path of one of its scans for error messages."""

    name: str
    example: str

    def check_folder(self, root: Path) -> Path:
        """Return the root; raise InputError if it is not a folder."""
        if not root.is_dir():
            raise InputError(f"{root}: this is not a folder; give that of {self.name}, with {self.example} in it.")
        return root

    def not_found(self, root: Path, hint: str = "") -> InputError:
        """Return the error for a root without any scan of this layout."""
        return InputError(f"{root}: no scan of {self.name} was found, such as {self.example}. {hint}".rstrip())


def find_files(root: Path, pattern: str) -> list[Path]:
    """Return the paths below a folder that match a glob pattern, sorted; links without a target are included."""
    return [root / name for name in sorted(glob.glob(pattern, root_dir=root))]


def sibling(scan: Path, name: str) -> Path | None:
    """Return a file in the folder of a scan, None where there is none; a link without a target counts as one."""
    path = scan.with_name(name)
    return path if os.path.lexists(path) else None


def grouped(records: Iterable[ScanRecord], attribute: str = "key") -> dict[Any, list[ScanRecord]]:
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
        records: Scans to choose from.
        attribute: "session" or "task".
        wanted: Labels with or without their BIDS prefix; None or empty keeps all.

    Raises:
        InputError: If no record has any of them.
    """
    if not wanted:
        return list(records), []
    prefix = {"session": "ses-", "task": "task-"}[attribute]
    labels, groups = {str(label).removeprefix(prefix) for label in wanted}, grouped(records, attribute)
    absent, existing = (
        ", ".join(sorted(prefix + label for label in each)) for each in (labels - groups.keys(), groups.keys() - {None})
    )
    why = f"no scan has {absent}; choose from {existing or 'none'}."
    if not labels & groups.keys():
        raise InputError(f"{root}: {why}")
    return [record for record in records if getattr(record, attribute) in labels], [
        Problem(str(root), why)
    ] if absent else []


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
    keys_of_file: dict[str, set[str]] = {}
    groups = grouped(records)
    for key, group in groups.items():
        keys_of_file.setdefault(os.path.abspath(group[0].scan), set()).add(key)
    for key, group in groups.items():
        record, keys = group[0], keys_of_file[os.path.abspath(group[0].scan)]
        if any(other != record for other in group):
            why = f"{len(group)} scans have the key {key}; give them different subjects, sessions, tasks or runs."
            reasons = {other.scan: why for other in group}
        elif len(keys) > 1:
            reasons = {record.scan: f"this one file is listed as {' and '.join(sorted(keys))}; list it once."}
        else:
            reasons = {path: _why_absent(path) for path in (record.scan, record.mask) if path is not None}
        found = [Problem(str(path), why) for path, why in reasons.items() if why]
        problems += found
        usable += [] if found else [record]
    return Cohort(tuple(sorted(usable, key=lambda record: record.key)), tuple(problems), is_restricted)


def _why_absent(path: Path) -> str | None:
    """Return why a file cannot be opened, None where it can. A small file may be a pointer of git-annex."""
    is_pointer = path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(b"/annex/objects/")
    if is_pointer or (path.is_symlink() and not path.exists()):
        return f"its content was not downloaded; run `datalad get {path}`."
    if path.is_file():
        return None
    return "this is a folder, not a scan." if path.is_dir() else "the file does not exist; check the path."
