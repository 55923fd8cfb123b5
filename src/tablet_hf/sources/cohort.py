"""What all sources share: checking the folder, selecting labels, and leaving out what cannot be used."""

import glob
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tablet_hf.errors import InputError
from tablet_hf.sources.records import Cohort, Problem, ScanRecord

__all__ = ["Layout", "find_files", "make_cohort", "select_labels", "sibling", "warn_if_mixed"]


@dataclass(frozen=True)
class Layout:
    """The dataset that a source expects, and the path of one of its scans for error messages."""

    name: str
    example: str

    def check_folder(self, root: Path) -> Path:
        """Return the root; raise InputError if it is not a folder."""
        if not root.is_dir():
            found = "is a file" if root.exists() else "does not exist"
            raise InputError(f"{root}: it {found}; give the folder of {self.name}, with {self.example} in it.")
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


def select_labels(
    root: Path, records: Iterable[ScanRecord], name: str, wanted: Iterable[str] | None
) -> tuple[list[ScanRecord], list[Problem]]:
    """Keep the records of the wanted sessions or tasks, and list wanted labels that no record has.

    Args:
        root: Folder of the dataset, for messages.
        records: Scans to choose from.
        name: "session" or "task".
        wanted: Labels with or without their BIDS prefix; None or empty keeps all.

    Raises:
        InputError: If no record has any of them.
    """
    records = list(records)
    if not wanted:
        return records, []
    prefix = {"session": "ses-", "task": "task-"}[name]
    labels = {str(label).removeprefix(prefix) for label in wanted}
    existing = {getattr(record, name) for record in records} - {None}
    absent, others = (", ".join(prefix + label for label in sorted(these)) for these in (labels - existing, existing))
    why = f"no scan has {absent}; choose from {others or 'none'}."
    if not labels & existing:
        raise InputError(f"{root}: {why}")
    problems = [Problem(str(root), why)] if absent else []
    return [record for record in records if getattr(record, name) in labels], problems


def warn_if_mixed(root: Path, kinds: Iterable[str], option: str) -> None:
    """Warn where scans were preprocessed in different ways, which distinguishes subjects for the wrong reason."""
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
    problems = list(problems)
    unique: list[ScanRecord] = []
    for key, group in _grouped(records, lambda record: record.key).items():
        if any(record != group[0] for record in group):
            why = f"{len(group)} scans have the key {key}; give them different subjects, sessions, tasks or runs."
            problems += [Problem(str(record.scan), why) for record in group]
        else:
            unique.append(group[0])
    usable: list[ScanRecord] = []
    for scan, group in _grouped(unique, lambda record: os.path.abspath(record.scan)).items():
        if len(group) > 1:
            keys = " and ".join(record.key for record in group)
            problems.append(Problem(scan, f"this one file is listed as {keys}; list it once."))
            continue
        reasons = {path: _why_absent(path) for path in (group[0].scan, group[0].mask) if path is not None}
        absent = [Problem(str(path), why) for path, why in reasons.items() if why]
        problems += absent
        usable += [] if absent else group
    return Cohort(tuple(sorted(usable, key=lambda record: record.key)), tuple(problems), is_restricted)


def _grouped(records: Iterable[ScanRecord], label: Callable[[ScanRecord], str]) -> dict[str, list[ScanRecord]]:
    groups: dict[str, list[ScanRecord]] = {}
    for record in records:
        groups.setdefault(label(record), []).append(record)
    return groups


def _why_absent(path: Path) -> str | None:
    """Return why a file cannot be opened, None where it can. A small file may be a pointer of git-annex."""
    if path.is_file():
        is_pointer = path.stat().st_size < 1024 and path.read_bytes().startswith(b"/annex/objects/")
        return f"its content was not downloaded; run `datalad get {path}`." if is_pointer else None
    if path.is_symlink():
        return f"its content was not downloaded; run `datalad get {path}`."
    return "this is a folder, not a scan." if path.is_dir() else "the file does not exist; check the path."
