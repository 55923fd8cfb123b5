"""The task of a label: classification with its classes and weights, or regression with mean and deviation."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np

from tablet_hf.datasets.splits import MAX_CLASSES
from tablet_hf.datasets.windows import label_classes
from tablet_hf.errors import InputError
from tablet_hf.sources.records import phenotype_values

__all__ = ["Task", "find_task"]

Kind = Literal["classification", "regression"]


@dataclass(frozen=True)
class Task:
    """A label and how it is predicted.

    Attributes:
        label: name of the phenotype.
        classes: its values in the order of their numbers, of two the second is the positive one; None for a regression.
        class_weights: of each class in the loss. Of two classes 1 and negatives / positives, as in the code released
            with arXiv:2604.03619 where the positive class is the smaller one; of more
            `subjects / (classes * subjects of the class)`.
        target_mean, target_std: of a regression, over the training subjects.
        reason: why it is this kind of task, a sentence.
    """

    label: str
    classes: tuple[Any, ...] | None
    class_weights: tuple[float, ...] | None = None
    target_mean: float | None = None
    target_std: float | None = None
    reason: str = ""

    @property
    def is_regression(self) -> bool:
        return self.classes is None

    @property
    def config_fields(self) -> dict[str, Any]:
        """Fields of a `TabletConfig` for this task. Two classes are one logit, as in the paper."""
        names = [self.label] if self.is_regression else [str(value) for value in self.classes]
        if self.is_regression:
            fields = {"problem_type": "regression", "target_mean": [self.target_mean], "target_std": [self.target_std]}
        elif len(names) == 2:
            negative, *names = names
            fields = {"problem_type": "multi_label_classification", "negative_label": negative}
            fields["positive_weight"] = self.class_weights[1]
        else:
            fields = {"problem_type": "single_label_classification", "class_weights": list(self.class_weights)}
        label2id = {name: number for number, name in enumerate(names)}
        fields |= {"id2label": dict(enumerate(names)), "label2id": label2id}
        return fields | {"target_name": self.label, "num_labels": len(names)}

    def __str__(self) -> str:
        if self.is_regression:
            return f"regression of {self.label} (mean {self.target_mean:.4g}, standard deviation {self.target_std:.4g})"
        return f"classification of {self.label}: {', '.join(map(str, self.classes))}"


def find_task(
    store: Any,
    label: str,
    training_runs: Sequence[int | str],
    kind: Kind | None = None,
    positive: Any = None,
    runs: Sequence[int | str] | None = None,
) -> Task:
    """Determine the task of a label, with weights, mean and deviation over the training subjects.

    Text, booleans and whole numbers of at most ten different values are classes; other numbers are a regression.

    Args:
        store: a `TokenDataset`.
        label: name of a phenotype.
        training_runs: indices in `store.runs` or keys; of several runs of a subject the first counts.
        kind: "classification" or "regression", in place of the rule above.
        positive: the positive one of two classes; by default the second in sorted order.
        runs: of all parts, whose values are the classes; None for the whole store.

    Raises:
        InputError: no such phenotype, one value only, text as a regression, a class without training subjects.
    """
    if kind not in (None, "classification", "regression"):
        raise InputError(f"{kind!r} is no kind of task; choose classification or regression.")
    values = phenotype_values(store.runs, label, store.folder)
    indices = range(len(store.runs)) if runs is None else [store.index(run) for run in runs]
    found = {values[index] for index in indices} - {None}
    texts = [value for value in found if isinstance(value, bool) or not isinstance(value, Real)]
    if kind == "regression" and texts:
        raise InputError(f"{label}: {texts[0]!r} is no number, so it cannot be the target of a regression.")
    if kind is not None:
        reason = f"{kind}, as requested"
    elif texts:
        kind, reason = "classification", "its values are not numbers"
    elif len(found) <= MAX_CLASSES and all(value == int(value) for value in found):
        kind = "classification"
        reason = f"it has {len(found)} different whole numbers; --task regression overrides this"
    else:
        kind, reason = "regression", f"it has {len(found)} different numbers"

    subjects: dict[tuple, Any] = {}
    for index in (store.index(run) for run in training_runs):
        if values[index] is not None:
            subjects.setdefault((store.runs[index].dataset, store.runs[index].subject), values[index])
    if kind == "regression":
        numbers = np.array(list(subjects.values()), dtype=np.float64)
        if len(numbers) < 2 or not numbers.std() > 0:
            raise InputError(f"{label}: it does not vary over the training subjects; choose another label or split.")
        return Task(label, None, None, float(numbers.mean()), float(numbers.std()), reason)

    classes = label_classes(store, label, indices)
    if positive is not None:
        named = [value for value in classes if str(value) == str(positive)]
        if len(classes) != 2 or not named:
            raise InputError(
                f"{label}: {positive!r} is not one of two classes; it has {', '.join(map(repr, classes))}."
            )
        classes = [value for value in classes if value != named[0]] + named
    counts = Counter(subjects.values())
    if missing := [value for value in classes if not counts[value]]:
        raise InputError(
            f"{label}: no training subject has {missing[0]!r}; draw a split with --label {label}, or leave this class "
            "out of the splits file."
        )
    numbers = np.array([counts[value] for value in classes], dtype=np.float64)
    weights = (1.0, numbers[0] / numbers[1]) if len(classes) == 2 else numbers.sum() / (len(classes) * numbers)
    return Task(label, tuple(classes), tuple(float(weight) for weight in weights), reason=reason)
