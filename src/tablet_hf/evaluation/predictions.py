"""Predictions for held-out subjects: the form in which all methods are compared."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

__all__ = ["Predictions", "joined"]


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
