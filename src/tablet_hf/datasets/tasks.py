"""What is to be learned: the kind of a label, its classes and weights, or the mean and spread of a target."""

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
    """A label and how it is learned.

    Attributes:
        label: the phenotype's name.
        classes: its values in the order of their numbers, of two the second is the positive one; None for a regression.
        class_weights: of each class in the loss, so that all classes weigh alike: of two 1 and negatives / positives
            (the code released with arXiv:2604.03619 has larger / smaller class, the same where the positive class is
            the smaller one); of more `people / (classes * people of the class)`.
        target_mean, target_std: of a regression, over the subjects that are trained on.
        reason: why it was taken for what it is, a sentence.
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
    def is_binary(self) -> bool:
        return self.classes is not None and len(self.classes) == 2

    @property
    def config_fields(self) -> dict[str, Any]:
        """What a `TabletConfig` says of it. Two classes are one logit, as in the paper."""
        fields: dict[str, Any] = {"target_name": self.label}
        if self.is_regression:
            mean_and_std = {"target_mean": [self.target_mean], "target_std": [self.target_std]}
            names = {"id2label": {0: self.label}, "label2id": {self.label: 0}}
            return fields | {"problem_type": "regression", "num_labels": 1} | mean_and_std | names
        names = [str(value) for value in self.classes]
        if self.is_binary:
            return fields | {
                "problem_type": "multi_label_classification",
                "num_labels": 1,
                "id2label": {0: names[1]},
                "label2id": {names[1]: 0},
                "negative_label": names[0],
                "positive_weight": self.class_weights[1],
            }
        return fields | {
            "problem_type": "single_label_classification",
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
            "class_weights": list(self.class_weights),
        }

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
    """Find out what a label is; weights, mean and spread come from the subjects that are trained on, each counted once.

    Text, truth values and whole numbers of at most ten different values are classes, numbered alike for all who are
    trained on or predicted; other numbers are a regression.

    Args:
        store: a `TokenDataset`.
        label: a phenotype's name.
        training_runs: places in `store.runs` or keys.
        kind: decides where the above would decide otherwise.
        positive: of two classes, the one to call positive; by default the second by number or alphabet.
        runs: of all parts, whose values are the classes; None for the whole store.

    Raises:
        InputError: no such phenotype, one value only, text as a regression, a class no one has to train on.
    """
    if kind not in (None, "classification", "regression"):
        raise InputError(f"a label is learnt by classification or regression, not by {kind!r}.")
    values = phenotype_values(store.runs, label, store.folder)
    places = range(len(store.runs)) if runs is None else [store.index(run) for run in runs]
    known = {values[place] for place in places} - {None}
    is_number = all(isinstance(value, Real) and not isinstance(value, bool) for value in known)
    is_few = len(known) <= MAX_CLASSES and all(not is_number or value == int(value) for value in known)
    if kind == "regression" and not is_number:
        text = next(value for value in known if isinstance(value, bool) or not isinstance(value, Real))
        raise InputError(f"{label}: {text!r} is no number, so there is no regression; leave --task out.")
    if kind is not None:
        reason = f"{kind}, as asked for"
    elif not is_number:
        kind, reason = "classification", "its values are no numbers"
    elif is_few:
        kind = "classification"
        reason = f"it has {len(known)} different whole numbers; --task regression decides otherwise"
    else:
        kind, reason = "regression", f"it has {len(known)} different numbers"

    people = _values_of_people(store, label, training_runs)
    if kind == "regression":
        numbers = np.array(list(people.values()), dtype=np.float64)
        if len(numbers) < 2 or not numbers.std() > 0:
            raise InputError(f"{label}: the people to learn from do not differ in it; choose another label or split.")
        return Task(label, None, None, float(numbers.mean()), float(numbers.std()), reason)

    classes = label_classes(store, label, places)
    if positive is not None:
        classes = _with_positive_last(label, classes, positive)
    counts = Counter(people.values())
    if missing := [value for value in classes if not counts[value]]:
        raise InputError(
            f"{label}: nobody in the training part is {missing[0]!r}; draw a split with --label {label}, or take such "
            "people out of the table of the split."
        )
    numbers = np.array([counts[value] for value in classes], dtype=np.float64)
    weights = (1.0, numbers[0] / numbers[1]) if len(classes) == 2 else numbers.sum() / (len(classes) * numbers)
    return Task(label, tuple(classes), tuple(float(weight) for weight in weights), reason=reason)


def _values_of_people(store: Any, label: str, runs: Sequence[int | str]) -> dict[tuple, Any]:
    """The label of each subject, where it is known; of several runs the first counts."""
    people: dict[tuple, Any] = {}
    for run in (store.runs[store.index(run)] for run in runs):
        value = run.phenotypes.get(label)
        if value is not None and value == value:
            people.setdefault((run.dataset, run.subject), value)
    return people


def _with_positive_last(label: str, classes: list[Any], positive: Any) -> list[Any]:
    if len(classes) != 2:
        raise InputError(f"{label}: it has {len(classes)} classes, so none of them is the positive one.")
    named = [value for value in classes if value == positive or str(value) == str(positive)]
    if not named:
        raise InputError(f"{label}: it is never {positive!r}; it is {' or '.join(map(repr, classes))}.")
    return [value for value in classes if value != named[0]] + named
