"""What a demo finds: who was held out, how each method did on them, and how that is said."""

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tablet_hf.evaluation.metrics import accuracy_interval, classification_metrics
from tablet_hf.evaluation.resampling import permutation_p_value
from tablet_hf.files import atomic_write
from tablet_hf.sources.simulated import GROUPS, Person

__all__ = [
    "RESULT_COLUMNS",
    "TABLET",
    "DemoResult",
    "MethodResult",
    "Split",
    "judge",
    "next_command",
    "result_rows",
    "split_people",
    "verdict",
    "write_results",
]

TABLET = "TABLeT"
"""Its name among the methods."""


@dataclass(frozen=True)
class Split:
    """Who is trained on and who is predicted: places in the list of subjects, both ascending."""

    train: np.ndarray
    held_out: np.ndarray


@dataclass(frozen=True)
class MethodResult:
    """What one method reached on the subjects held out.

    Attributes:
        probabilities: `(held-out people,)`, of the second group.
        metrics: see `tablet_hf.evaluation.metrics.classification_metrics`.
        interval: 95% confidence interval of the accuracy.
        accuracy_p: one-sided binomial p of the accuracy against chance.
        auroc_p: one-sided permutation p of the AUROC.
    """

    probabilities: np.ndarray
    metrics: dict[str, float]
    interval: tuple[float, float]
    accuracy_p: float
    auroc_p: float


@dataclass(frozen=True)
class DemoResult:
    """What a demo found, and where it is.

    Attributes:
        out: the folder, with `page`, `model`, `cohort` and pictures in it.
        page: the HTML page.
        model: folder of the fine-tuned model with its feature extractor.
        people: all participants.
        split: which of them were trained on and which predicted.
        chance: the accuracy of guessing.
        methods: results of each method by name; "TABLeT" is one of them.
        seconds: what each stage took by the clock.
    """

    out: Path
    page: Path
    model: Path
    people: list[Person]
    split: Split
    chance: float
    methods: dict[str, MethodResult]
    seconds: dict[str, float]


def split_people(labels: Sequence[int], num_held_out: int, seed: int) -> Split:
    """Draw who is held out, with the groups in the proportion of the whole."""
    from sklearn.model_selection import train_test_split

    train, held_out = train_test_split(
        np.arange(len(labels)), test_size=num_held_out, stratify=labels, random_state=seed
    )
    return Split(np.sort(train), np.sort(held_out))


def judge(labels: np.ndarray, probabilities: np.ndarray) -> MethodResult:
    """Compare predictions `(n,)` with the truth `(n,)` and with chance."""
    from scipy.stats import binomtest, rankdata

    metrics = classification_metrics(labels, probabilities)
    num_correct = round(metrics["accuracy"] * len(labels))
    return MethodResult(
        probabilities,
        metrics,
        accuracy_interval(num_correct, len(labels)),
        binomtest(num_correct, len(labels), np.bincount(labels).max() / len(labels), alternative="greater").pvalue,
        permutation_p_value(
            labels, rankdata(probabilities)[:, None] * (0, 1), np.arange(len(labels)), None, 10_000, seed=0
        ),
    )


RESULT_COLUMNS = ("method", "accuracy (95% interval)", "AUROC", "p of AUROC")


def result_rows(methods: dict[str, MethodResult], chance: float) -> list[tuple[str, str, str, str]]:
    """A row of `RESULT_COLUMNS` to print for each method, and one for guessing."""
    rows = [
        (
            name,
            f"{method.metrics['accuracy']:.0%} ({method.interval[0]:.0%} to {method.interval[1]:.0%})",
            f"{method.metrics['auroc']:.2f}",
            f"{method.auroc_p:.2g}",
        )
        for name, method in methods.items()
    ]
    return [*rows, ("guessing", f"{chance:.0%}", "0.50", "")]


def verdict(methods: dict[str, MethodResult], chance: float) -> str:
    """By how much TABLeT beats chance, or that it does not, and how others compare; as it came out."""
    tablet = methods[TABLET]
    num_subjects = len(tablet.probabilities)

    def num_right(method: MethodResult) -> int:
        return round(method.metrics["accuracy"] * num_subjects)

    points = 100 * (tablet.metrics["accuracy"] - chance)
    compared = "clearly better than chance" if tablet.accuracy_p < 0.05 else "not clearly different from chance"
    sentences = [
        f"TABLeT is right about {num_right(tablet)} of {num_subjects} held-out subjects: {points:+.0f} points against "
        f"guessing ({chance:.0%}), {compared} (p = {tablet.accuracy_p:.2g})."
    ]
    sentences += [
        f"A {name} is right about {num_right(method)} of them." for name, method in methods.items() if name != TABLET
    ]
    return " ".join(sentences)


def next_command(model: Path, scan: Path) -> str:
    """What to type next: a prediction from a scan, by the model that was just made."""
    return f"tablet-hf predict {shlex.quote(str(model))} {shlex.quote(str(scan))}"


def write_results(result: DemoResult, seed: int) -> None:
    """Write results.json: figures of every method, and what it said of everyone who was held out."""
    held_out = [result.people[index] for index in result.split.held_out]
    content = {
        "seed": seed,
        "held_out_people": len(held_out),
        "chance_accuracy": result.chance,
        "methods": {
            name: {
                **{metric: None if math.isnan(value) else value for metric, value in method.metrics.items()},
                "accuracy_interval_95": method.interval,
                "accuracy_p": method.accuracy_p,
                "auroc_p": method.auroc_p,
            }
            for name, method in result.methods.items()
        },
        "predictions": {
            person.name: {
                "group": GROUPS[person.label],
                **{
                    f"probability of {GROUPS[1]}, {name}": float(method.probabilities[place])
                    for name, method in result.methods.items()
                },
            }
            for place, person in enumerate(held_out)
        },
        "seconds": result.seconds,
    }
    with atomic_write(result.out / "results.json") as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
