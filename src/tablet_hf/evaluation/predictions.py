"""Predictions for held-out subjects: the form in which all methods are compared."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tablet_hf.errors import InputError
from tablet_hf.evaluation.resampling import predicted_classes
from tablet_hf.files import atomic_write, protect_cell, unprotect_cell

__all__ = ["Predictions", "check_same_label", "joined", "read_predictions", "write_predictions"]

FIRST_COLUMNS = ["subject", "site", "fold"]


@dataclass(frozen=True)
class Predictions:
    """The predictions of one method, an entry for each subject (and fold).

    Attributes:
        method: its name in tables, such as "TABLeT" or "functional connectivity".
        label: the predicted phenotype.
        classes: its values in the order of their numbers, of two the second is the positive one; None for a regression.
        subjects: `(n,)`, see `tablet_hf.datasets.subject_ids`.
        targets: `(n,)`, the number of the true class as int64, or the true value as float64.
        outputs: `(n, classes)` probabilities, or `(n,)` values in the unit of the target; float64.
        sites: `(n,)`, None where unknown.
        folds: `(n,)`, name of the split in which the subject was held out.

    Raises:
        ValueError: shapes that do not match.
    """

    method: str
    label: str
    classes: tuple[Any, ...] | None
    subjects: tuple[str, ...]
    targets: np.ndarray
    outputs: np.ndarray
    sites: tuple[str | None, ...]
    folds: tuple[str, ...]

    def __post_init__(self):
        count = len(self.subjects)
        shape = (count,) if self.classes is None else (count, len(self.classes))
        lengths = {len(self.targets), len(self.sites), len(self.folds)}
        if not count or lengths != {count} or self.outputs.shape != shape:
            raise ValueError(
                f"{count} subjects need as many targets, sites and folds, and outputs of shape {shape}, not "
                f"{self.outputs.shape}."
            )

    def __len__(self) -> int:
        return len(self.subjects)

    @property
    def is_regression(self) -> bool:
        return self.classes is None

    def chosen(self, indices: Sequence[int] | np.ndarray) -> "Predictions":
        """Return the entries at these indices, or where a mask is true."""
        indices = np.arange(len(self))[np.asarray(indices)]
        texts = {
            name: tuple(getattr(self, name)[index] for index in indices) for name in ("subjects", "sites", "folds")
        }
        return replace(self, targets=self.targets[indices], outputs=self.outputs[indices], **texts)

    def to_json(self) -> dict[str, Any]:
        """Return all fields as numbers, texts and lists, which `from_json` reads."""
        return asdict(self) | {"targets": self.targets.tolist(), "outputs": self.outputs.tolist()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Predictions":
        classes = None if fields["classes"] is None else tuple(fields["classes"])
        texts = {name: tuple(fields[name]) for name in ("subjects", "sites", "folds")}
        targets = np.array(fields["targets"], np.float64 if classes is None else np.int64)
        return cls(
            fields["method"],
            fields["label"],
            classes,
            targets=targets,
            outputs=np.array(fields["outputs"], np.float64),
            **texts,
        )


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Concatenate the predictions of one method in several folds.

    Raises:
        ValueError: no predictions, or those of different methods or tasks.
    """
    if len({(part.method, part.label, part.classes) for part in parts}) != 1:
        raise ValueError("Only predictions of one method for one label can be joined, and there must be some.")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("targets", "outputs")}
    texts = {name: sum((getattr(part, name) for part in parts), ()) for name in ("subjects", "sites", "folds")}
    return replace(parts[0], **arrays, **texts)


def check_same_label(methods: Sequence[Predictions]) -> None:
    """Check that there are methods, of different names, which predict one label with the same classes.

    Raises:
        InputError: there are not.
    """
    names = [each.method for each in methods]
    if not methods:
        raise InputError("There are no predictions to evaluate; give those of one method at least.")
    if len(set(names)) < len(names):
        raise InputError(f"{', '.join(names)}: two methods have one name; give each its own.")
    for each in methods[1:]:
        if (each.label, each.classes) != (methods[0].label, methods[0].classes):
            raise InputError(f"{each.method}: it predicts another label or other classes than {names[0]}.")


# --- predictions.csv


def write_predictions(path: str | Path, methods: Sequence[Predictions]) -> Path:
    """Write one row a subject and fold, with the true value and each method's predictions, and return the path.

    Columns: subject, site, fold, `true LABEL`, and of each method `METHOD: predicted LABEL` and, for classes,
    `METHOD: probability of CLASS`. Cells are empty where a method did not predict a subject. Text that a spreadsheet
    would run as a formula gets an apostrophe in front, which `read_predictions` removes.
    """
    import pandas as pd

    check_same_label(methods)
    tables, label = [], methods[0].label
    for each in methods:
        keys = {"subject": each.subjects, "site": [site or "" for site in each.sites], "fold": each.folds}
        if each.is_regression:
            keys[f"true {label}"] = each.targets
            columns = {f"{each.method}: predicted {label}": each.outputs}
        else:
            keys[f"true {label}"] = [str(each.classes[number]) for number in each.targets]
            predicted = [str(each.classes[number]) for number in predicted_classes(each.outputs)]
            columns = {f"{each.method}: predicted {label}": predicted}
            for name, values in zip(each.classes, each.outputs.T, strict=True):
                columns[f"{each.method}: probability of {name}"] = values
        tables.append(pd.DataFrame(columns, index=pd.MultiIndex.from_frame(pd.DataFrame(keys))))
    table = pd.concat(tables, axis=1).reset_index().rename(columns=protect_cell)
    with atomic_write(path) as unfinished:
        table.map(protect_cell).to_csv(unfinished, index=False)
    return Path(path)


def read_predictions(path: str | Path) -> list[Predictions]:
    """Read a table of `write_predictions`, with numbers equal to the last bit.

    Classes that are all whole numbers come back as int, True and False as bool, others as text.

    Raises:
        InputError: no such file, or no such table.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig").map(unprotect_cell)
        columns = [unprotect_cell(name) for name in table.columns]
        label = columns[3].removeprefix("true ")
        starts = [index for index, name in enumerate(columns) if index > 3 and name.endswith(f": predicted {label}")]
        if columns[:3] != FIRST_COLUMNS or not len(table):
            raise ValueError("other columns, or no rows")
        ends = [*starts[1:], len(columns)]
        return [_read_method(table, columns, label, range(*span)) for span in zip(starts, ends, strict=True)]
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file.") from error
    except (OSError, ValueError, IndexError) as error:
        message = " ".join(str(error).split())[:80]
        raise InputError(
            f"{path}: no table of predictions ({message}); give predictions.csv of an evaluation."
        ) from error


def _read_method(table: Any, columns: Sequence[str], label: str, span: range) -> Predictions:
    """The method with these columns of the table; ValueError where they hold something else."""
    method = columns[span.start].removesuffix(f": predicted {label}")
    rows = table[table.iloc[:, span.start] != ""]
    names = [columns[index].removeprefix(f"{method}: probability of ") for index in span[1:]]
    truth = rows.iloc[:, 3]
    if names:
        outputs = np.array([[float(cell) for cell in row] for row in rows.iloc[:, span[1] : span.stop].to_numpy()])
        targets = np.array([names.index(name) for name in truth], dtype=np.int64)
    else:
        outputs = np.array([float(cell) for cell in rows.iloc[:, span.start]])
        targets = np.array([float(cell) for cell in truth])
    subjects, sites, folds = (tuple(rows.iloc[:, index]) for index in range(3))
    classes = _typed(names) if names else None
    return Predictions(method, label, classes, subjects, targets, outputs, tuple(site or None for site in sites), folds)


def _typed(names: Sequence[str]) -> tuple[Any, ...]:
    for kind in (int, float, {"True": True, "False": False}.__getitem__):
        try:
            values = tuple(kind(name) for name in names)
        except (ValueError, KeyError):
            continue
        if [str(value) for value in values] == list(names):
            return values
    return tuple(names)
