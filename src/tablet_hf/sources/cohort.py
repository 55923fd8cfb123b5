"""From what a source found to a cohort: files that are there, keys that are unique."""

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tablet_hf.errors import InputError
from tablet_hf.sources.records import Cohort, Problem, ScanRecord, store_key

__all__ = ["Layout", "beside", "check_labels", "files_like", "gather", "mixture", "why_absent"]

ANNEX_POINTER = b"/annex/objects/"
"""How git-annex writes an unlocked file whose content is elsewhere (git-annex documentation, "pointer file")."""


@dataclass(frozen=True)
class Layout:
    """What a source expects: `what` in words, `example` as a path below the root. Both stand in its messages."""

    what: str
    example: str

    def folder(self, root: Path) -> Path:
        """Check that the root is a folder.

        Raises:
            InputError: it is not.
        """
        if not root.is_dir():
            found = "this is a file" if root.exists() else "there is no such folder"
            raise InputError(f"{root}: {found}; give the folder of {self.what}, with {self.example} in it.")
        return root

    def nothing(self, root: Path, hint: str = "") -> InputError:
        """The error for a root that holds nothing of this layout."""
        hint = f" {hint}" if hint else ""
        return InputError(f"{root}: no scan of {self.what} was found; expected is, for one, {self.example}.{hint}")


def files_like(root: Path, pattern: str) -> list[Path]:
    """Paths below `root` that match a glob pattern, sorted; links without a target are among them.

    `Path.glob` leaves those out or not, depending on where in the pattern the wildcards are.
    """
    return [root / name for name in sorted(glob.glob(pattern, root_dir=root))]


def beside(scan: Path, name: str) -> Path | None:
    """A file in the folder of a scan, None where there is none; a link without a target counts as one."""
    path = scan.with_name(name)
    return path if os.path.lexists(path) else None


def check_labels(
    root: Path, entity: str, wanted: Iterable[str], there: Iterable[str | None]
) -> tuple[set[str], list[Problem]]:
    """The labels of an entity ("task", "ses") that are wanted, without its prefix, and a problem for those not there.

    Raises:
        InputError: none of them is there.
    """
    labels = {str(label).removeprefix(f"{entity}-") for label in wanted}
    known = {label for label in there if label is not None}
    absent = labels - known
    if not absent:
        return labels, []
    missing, others = (", ".join(f"{entity}-{label}" for label in sorted(these)) for these in (absent, known))
    why = f"no scan has {missing}; there are: {others or 'none'}."
    if absent == labels:
        raise InputError(f"{root}: {why}")
    return labels, [Problem(str(root), why)]


def why_absent(path: Path) -> str | None:
    """Why a file cannot be opened, without reading it; None where it seems all right."""
    if path.is_file():
        if path.stat().st_size < 1024 and path.read_bytes().startswith(ANNEX_POINTER):
            return f"its content is not here, only a pointer of git-annex; fetch it with `datalad get {path}`."
        return None
    if path.is_symlink():
        return f"it links to content that is not here; fetch it with `datalad get {path}`."
    return "this is a folder, not a scan." if path.is_dir() else "there is no such file; check the path."


def gather(records: Iterable[ScanRecord], problems: Iterable[Problem] = (), is_restricted: bool = False) -> Cohort:
    """Make a cohort of what can be used.

    Left out, each with a problem: scans whose file or mask is not there; all scans of a key that is not unique in their
    dataset; a file that is listed as different scans. The same record twice counts once.
    """
    problems = list(problems)
    usable: list[ScanRecord] = []
    for key, alike in _groups(records, store_key).items():
        if any(record != alike[0] for record in alike):
            why = (
                f"{len(alike)} scans would all be called {key}, so none is taken; say what tells them apart (subject, "
                "session, task, run), or name the file of a run once."
            )
            problems += [Problem(str(record.scan), why) for record in alike]
        else:
            usable.append(alike[0])
    present: list[ScanRecord] = []
    for scan, listed in _groups(usable, lambda record: os.path.abspath(record.scan)).items():
        if len(listed) > 1:
            keys = " and ".join(map(store_key, listed))
            problems.append(Problem(scan, f"this one file is listed as {keys}, so it is not taken; list it once."))
            continue
        (record,) = listed
        reasons = {path: why_absent(path) for path in (record.scan, record.mask) if path is not None}
        absent = [Problem(str(path), why) for path, why in reasons.items() if why]
        problems += absent
        present += [] if absent else [record]
    return Cohort(tuple(sorted(present, key=store_key)), tuple(problems), is_restricted)


def _groups(records: Iterable[ScanRecord], label: Callable[[ScanRecord], str]) -> dict[str, list[ScanRecord]]:
    groups: dict[str, list[ScanRecord]] = {}
    for record in records:
        groups.setdefault(label(record), []).append(record)
    return groups


def mixture(root: Path, kinds: Iterable[str], option: str) -> list[Problem]:
    """A note where the scans of a cohort were not all made alike, which tells subjects apart for the wrong reason."""
    counts = Counter(kinds)
    if len(counts) < 2:
        return []
    said = ", ".join(f"{kind} ({count})" for kind, count in counts.most_common())
    why = f"the scans were not all made alike: {said}; choose one kind with {option}."
    return [Problem(str(root), why, is_note=True)]
