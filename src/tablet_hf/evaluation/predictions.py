"""What a method says of subjects that it did not train on: the form in which all methods are compared."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["Predictions", "joined"]


@dataclass(frozen=True)
class Predictions:
    """One method's word on each held-out subject, an entry a subject (and fold).

    Attributes:
        method: what it is called in tables, such as "TABLeT" or "functional connectivity".
        label: the phenotype that is predicted.
        classes: its values in the order of their numbers, of two the second is the positive one; None for a regression.
        subjects: `(n,)`, see `tablet_hf.datasets.subject_ids`.
        targets: `(n,)`, the number of the true class as int64, or the true value as float64.
        outputs: `(n, classes)` probabilities, or `(n,)` values in the target's own unit; float64.
        sites: `(n,)`, None where it is not known.
        folds: `(n,)`, the name of the split whose held-out part the subject stood in.

    Raises:
        ValueError: arrays that do not fit together.
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
        if self.outputs.shape != shape or self.targets.shape != (count,) or not count:
            raise ValueError(
                f"{count} subjects need targets of shape ({count},) and outputs of shape {shape}, not "
                f"{self.targets.shape} and {self.outputs.shape}."
            )
        if len(self.sites) != count or len(self.folds) != count:
            raise ValueError(f"{count} subjects need a site and a fold each.")

    def __len__(self) -> int:
        return len(self.subjects)

    @property
    def is_regression(self) -> bool:
        return self.classes is None

    def chosen(self, places: Sequence[int] | np.ndarray) -> "Predictions":
        """Those at these places, or where a mask is true."""
        places = np.arange(len(self))[np.asarray(places)]
        return Predictions(
            self.method,
            self.label,
            self.classes,
            tuple(self.subjects[place] for place in places),
            self.targets[places],
            self.outputs[places],
            tuple(self.sites[place] for place in places),
            tuple(self.folds[place] for place in places),
        )

    def to_json(self) -> dict[str, Any]:
        """As numbers, texts and lists; `from_json` takes it."""
        return asdict(self) | {"targets": self.targets.tolist(), "outputs": self.outputs.tolist()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Predictions":
        classes = None if fields["classes"] is None else tuple(fields["classes"])
        kind = np.float64 if classes is None else np.int64
        texts = {name: tuple(fields[name]) for name in ("subjects", "sites", "folds")}
        numbers = {"targets": np.array(fields["targets"], kind), "outputs": np.array(fields["outputs"], np.float64)}
        return cls(fields["method"], fields["label"], classes, **texts, **numbers)


def joined(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of one method in several folds as one table.

    Raises:
        ValueError: none, or those of different methods or tasks.
    """
    if len({(part.method, part.label, part.classes) for part in parts}) != 1:
        raise ValueError("Predictions of one method for one label can be joined, and there must be some.")
    first = parts[0]
    return Predictions(
        first.method,
        first.label,
        first.classes,
        tuple(subject for part in parts for subject in part.subjects),
        np.concatenate([part.targets for part in parts]),
        np.concatenate([part.outputs for part in parts]),
        tuple(site for part in parts for site in part.sites),
        tuple(fold for part in parts for fold in part.folds),
    )
