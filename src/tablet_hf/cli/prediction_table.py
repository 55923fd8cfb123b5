"""A table of predictions that is continued: what is still true is kept, and several commands may write at once."""

import csv
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tablet_hf.errors import InputError
from tablet_hf.files import atomic_write

__all__ = ["PredictionTable"]


class PredictionTable:
    """Rows of one model's predictions by scan, in a CSV file or, without a path, in memory.

    Every change reads the file again under a lock (a hidden file next to it), so that rows which another process wrote
    meanwhile stay.

    Raises:
        InputError: the file holds something else, or its folder does not exist.
    """

    def __init__(self, path: Path | None, model: str):
        if path is not None and not path.parent.is_dir():
            raise InputError(f"{path}: the folder {path.parent} does not exist; make it first.")
        self.path, self.model = path, _model_name(model)
        self._rows: dict[str, dict[str, Any]] = {}
        self._rows = self._read()
        self._places = {scan: place for place, scan in enumerate(self._rows)}

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, scan: Path) -> dict[str, Any] | None:
        return self._rows.get(str(scan))

    def holds(self, scan: Path, request: str) -> bool:
        """Whether the scan was predicted with just that request: this scan, this model, these options."""
        return self._rows.get(str(scan), {}).get("request") == request

    def add(self, scan: Path, row: Mapping[str, Any]) -> None:
        self._change({str(scan): {"scan": str(scan), "model": self.model, **row}}, ())

    def drop(self, scans: Collection[Path]) -> None:
        """Take out rows that are not true any more; where their scans come back, they do at their old places."""
        self._change({}, {str(scan) for scan in scans} & self._rows.keys())

    def _change(self, added: dict[str, dict[str, Any]], dropped: Collection[str]) -> None:
        from filelock import FileLock

        if not added and not dropped:
            return
        if self.path is None:
            self._rows = _changed(self._rows, added, dropped)
            return
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            rows = _changed(self._read(), added, dropped)
            last = len(self._places)
            self._rows = dict(sorted(rows.items(), key=lambda item: self._places.get(item[0], last)))
            self._write()

    def _read(self) -> dict[str, dict[str, Any]]:
        if self.path is None or not self.path.exists():
            return {}
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                columns = [_text_of(name) for name in next(csv.reader(file), [])]
                rows = [
                    {name: _text_of(cell) if isinstance(cell, str) else cell for name, cell in row.items()}
                    for row in csv.DictReader(file, columns)
                ]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{self.path}: it is no CSV file that can be continued; choose another --out.") from error
        # DictReader keeps cells beyond the columns under None.
        is_ours = {"scan", "model"} <= set(columns) or not columns
        if not is_ours or any(not row["scan"] or row["model"] is None or None in row for row in rows):
            raise InputError(f"{self.path}: it holds something else than predictions; choose another --out.")
        if others := {row["model"] for row in rows if _model_name(row["model"]) != self.model}:
            raise InputError(
                f"{self.path}: it holds predictions of another model, {min(others)}; choose another --out."
            )
        return {row["scan"]: {name: value for name, value in row.items() if value not in (None, "")} for row in rows}

    def _write(self) -> None:
        rows = self._rows.values()
        columns = list(dict.fromkeys(name for row in rows for name in row)) or ["scan", "model", "prediction"]
        with atomic_write(self.path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(map(_cell, columns))
            writer.writerows([_cell(row.get(name, "")) for name in columns] for row in rows)


def _cell(value: Any) -> Any:
    """Labels come with a model, and spreadsheets run cells that begin so; an apostrophe makes them text (OWASP, CSV
    injection). Numbers below 0 stay numbers."""
    if isinstance(value, str) and re.match(r"'*[=+\-@\t\r\n]", value) and not _is_number(value):
        return f"'{value}"
    return value


def _text_of(cell: str) -> str:
    return cell[1:] if re.match(r"'+[=+\-@\t\r\n]", cell) else cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _changed(rows: dict[str, dict], added: dict[str, dict], dropped: Collection[str]) -> dict[str, dict]:
    return {scan: row for scan, row in rows.items() if scan not in dropped} | added


def _model_name(name: str) -> str:
    """`my-model/` and `my-model` are one folder."""
    return str(Path(name)) if Path(name).is_dir() else name
