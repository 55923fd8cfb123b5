"""Figures of an evaluation: methods side by side, which answers, ROC, calibration, sites. Readable without colour.

    figure = methods_figure([evaluate_predictions(predictions) for predictions in methods])
    save_figure(figure, Path("methods.png"))

Axes show the whole range that a metric can take, or start at what a constant guess reaches; intervals are 95%.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tablet_hf.evaluation.predictions import Predictions
from tablet_hf.evaluation.statistics import Estimate, Evaluation
from tablet_hf.report.pictures import BLUE, GREEN, GREY, ORANGE, label_panel, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "METRIC_NAMES",
    "confusion_figure",
    "methods_figure",
    "reliability_figure",
    "roc_figure",
    "scatter_figure",
    "sites_figure",
]

METRIC_NAMES = {
    "auroc": "AUROC",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "f1": "F1",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "pearson_r": "Pearson r",
    "r2": "R²",
    "mae": "mean absolute error",
    "mse": "mean squared error",
    "brier": "Brier score",
    "ece": "expected calibration error",
    "slope": "slope",
    "intercept": "intercept",
}
"""What a metric is called on a page."""

# Okabe & Ito's colours; each method also has its own marker and line.
STYLES = (
    (BLUE, "o", "-"),
    (ORANGE, "s", "--"),
    (GREEN, "^", "-."),
    ("#CC79A7", "D", ":"),
    ("black", "v", "-"),
    ("#56B4E9", "P", "--"),
    ("#E69F00", "X", "-."),
)
LONGEST_NAME = 28
LOWEST_R2 = -1.0
PANELS_IN_A_ROW = 3
OVER_LINES = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
"""Behind words, so that a line does not cross them."""


def methods_figure(evaluations: Sequence[Evaluation]) -> "Figure":
    """Each metric in a panel, each method in a row of it, with intervals and with what a constant guess reaches."""
    from matplotlib.lines import Line2D

    first = evaluations[0]
    names = list(first.metrics)
    columns = 2 if len(names) == 4 else PANELS_IN_A_ROW
    rows = math.ceil(len(names) / columns)
    figure = new_figure(10.0, 0.9 + rows * (1.1 + 0.42 * len(evaluations)))
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for panel, name in zip(panels.flat, names, strict=True):
        low, high = _metric_range(name, [each.metrics[name] for each in evaluations], first.chance.get(name))
        if name in first.chance:
            panel.axvline(first.chance[name], color=GREY, linestyle=":", linewidth=1.8)
        for row, each in enumerate(evaluations):
            _point(panel, each.metrics[name], len(evaluations) - 1 - row, _style(row), (low, high), _digits(name, high))
        panel.set_xlim(low, high)
        panel.set_ylim(-0.6, len(evaluations) - 0.25)
        title = METRIC_NAMES[name] + (" (less is better)" if name in ("mae", "mse") else "")
        label_panel(panel, "", "", title)
    for row in panels:
        row[0].set_yticks(range(len(evaluations)), [_text(each.method) for each in reversed(evaluations)])
    handles = [
        Line2D([], [], color=GREY, linestyle=":", linewidth=1.8, label="chance: the best constant guess"),
        Line2D([], [], color=BLUE, marker="o", label="value and 95% interval"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(f"{_text(first.label)}: {_people(first)}", fontsize=13)
    return figure


def confusion_figure(evaluations: Sequence[Evaluation]) -> "Figure":
    """Who was taken for what, of each method: counts, and shares of those who truly are of a class."""
    classes = [_text(name) for name in evaluations[0].classes]
    size = len(classes)
    columns, rows = _grid(len(evaluations))
    edge = 0.9 * size if size <= 3 else 0.62 * size
    is_slanted = size > 4 or max(map(len, classes)) >= 10
    names = 0.09 * max(map(len, classes))  # inches
    figure = new_figure(
        columns * (edge + 0.3) + names + 2.2, rows * (edge + 0.9 + (0.7 * names if is_slanted else 0.1))
    )
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    image = None
    for panel, each in _filled(panels, evaluations):
        totals = each.confusion.sum(axis=1, keepdims=True)
        shares = np.divide(100 * each.confusion, totals, out=np.zeros((size, size)), where=totals > 0)
        image = panel.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        for row, column in np.ndindex(size, size):
            colour = "white" if shares[row, column] > 55 else "black"
            share = f"\n{shares[row, column]:.0f}%" if totals[row, 0] else ""
            text = f"{each.confusion[row, column]}{share}"
            panel.text(column, row, text, ha="center", va="center", color=colour, fontsize=11 if size <= 4 else 8)
        label_panel(panel, "predicted", "", _text(each.method, 12 + 6 * size))
        turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if is_slanted else {}
        panel.set_xticks(range(size), classes, **turned)
        panel.set_yticks(range(size), classes)
        panel.spines[:].set_visible(False)
    for row in panels:
        row[0].set_ylabel("true")
    figure.colorbar(image, ax=list(figure.axes), label="% of the true class")  # without panels that were taken away
    return figure


def roc_figure(methods: Sequence[Predictions], evaluations: Sequence[Evaluation]) -> "Figure":
    """ROC curves: all methods in one panel for two classes, a panel a method with a curve a class for more."""
    from sklearn.metrics import roc_auc_score, roc_curve

    classes = methods[0].classes
    is_binary = len(classes) == 2
    columns, rows = (1, 1) if is_binary else _grid(len(methods))
    figure = new_figure(6.4, 5.6) if is_binary else new_figure(max(5.0, 4.2 * columns), 4.6 * rows)
    panels = figure.subplots(rows, columns, squeeze=False)
    pairs = list(zip(methods, evaluations, strict=True))
    for panel, shown in _filled(panels, [pairs] if is_binary else [[pair] for pair in pairs]):
        panel.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="chance")
        number = 0
        for predictions, evaluation in shown:
            for place in (1,) if is_binary else range(len(classes)):
                truth, scores = predictions.targets == place, predictions.outputs[:, place]
                if not 0 < truth.sum() < len(truth):
                    continue
                false_positives, true_positives, _ = roc_curve(truth, scores)
                area = (
                    _estimate_text(evaluation.metrics["auroc"], 2)
                    if is_binary
                    else f"{roc_auc_score(truth, scores):.2f}"
                )
                name = predictions.method if is_binary else str(classes[place])
                colour, marker, line = _style(number)
                panel.plot(
                    false_positives, true_positives, line, color=colour, linewidth=2, marker=marker, markersize=6,
                    markevery=max(1, len(false_positives) // 8), label=f"{_text(name)}: {area}",
                )  # fmt: skip
                number += 1
        title = f"ROC: {_text(classes[1])} against {_text(classes[0])}" if is_binary else _text(shown[0][0].method)
        label_panel(panel, "false positive rate (1 − specificity)", "true positive rate (sensitivity)", title)
        _square(panel, (-0.02, 1.02), (-0.02, 1.02))
        panel.legend(edgecolor="none", loc="lower right", title="area under the curve", fontsize=9)
    return figure


def reliability_figure(methods: Sequence[Predictions], evaluations: Sequence[Evaluation]) -> "Figure":
    """Predicted probabilities against how often they came true, with exact intervals, and how many there are."""
    classes = methods[0].classes
    is_binary = len(classes) == 2
    columns, rows = _grid(len(methods))
    figure = new_figure(max(5.0, 3.7 * columns), 5.2 * rows + 0.3)
    ratios = [ratio for _ in range(rows) for ratio in (3.2, 1)]
    panels = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=ratios)
    for number, (predictions, evaluation) in enumerate(zip(methods, evaluations, strict=True)):
        upper, lower = panels[2 * (number // columns) : 2 * (number // columns) + 2, number % columns]
        colour, marker, _ = _style(number)
        upper.plot([0, 1], [0, 1], color=GREY, linestyle=":")
        bins = evaluation.reliability
        x, y = (np.array([getattr(part, name) for part in bins]) for name in ("predicted", "observed"))
        reach = np.abs([[part.observed - part.low, part.high - part.observed] for part in bins]).T
        upper.errorbar(x, y, reach, color=colour, marker=marker, markersize=7, linewidth=1.2, elinewidth=1.8)
        of_what = f"share that is {_text(classes[1])}" if is_binary else "share that is right"
        title = f"{_text(evaluation.method)}\nerror {evaluation.calibration['ece'].value:.2f}"
        label_panel(upper, "", of_what, title)
        _square(upper, (-0.03, 1.03), (-0.03, 1.03))
        probabilities = predictions.outputs[:, 1] if is_binary else predictions.outputs.max(axis=1)
        lower.hist(probabilities, bins=np.linspace(0, 1, 21), color=colour, edgecolor="white")
        lower.set_xlim(-0.03, 1.03)
        lower.yaxis.get_major_locator().set_params(integer=True, nbins=4)
        of_whom = f"probability of {_text(classes[1])}" if is_binary else "probability of the predicted class"
        label_panel(lower, f"predicted {of_whom}", "people" if not _has_several_folds(predictions) else "entries", "")
    for number in range(len(methods), rows * columns):
        for row in (0, 1):
            panels[2 * (number // columns) + row, number % columns].remove()
    return figure


def scatter_figure(methods: Sequence[Predictions], evaluations: Sequence[Evaluation]) -> "Figure":
    """True against predicted values of each method, equally scaled, with the line of both being the same."""
    columns, rows = _grid(len(methods))
    figure = new_figure(max(5.0, 3.9 * columns), 4.5 * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False)
    numbers = np.concatenate([np.concatenate([each.targets, each.outputs]) for each in methods])
    margin = 0.04 * (np.ptp(numbers) or 1.0)
    span = (numbers.min() - margin, numbers.max() + margin)
    label = _text(methods[0].label)
    for number, (panel, (predictions, evaluation)) in enumerate(
        _filled(panels, list(zip(methods, evaluations, strict=True)))
    ):
        colour, marker, _ = _style(number)
        panel.plot(span, span, color=GREY, linestyle=":", label="prediction = truth")
        alpha = float(np.clip(12 / math.sqrt(len(predictions)), 0.15, 0.8))
        panel.plot(
            predictions.outputs, predictions.targets, marker, color=colour, alpha=alpha, markersize=5,
            markeredgewidth=0,
        )  # fmt: skip
        slope, intercept = (evaluation.calibration[name].value for name in ("slope", "intercept"))
        if math.isfinite(slope):
            ends = np.array([predictions.outputs.min(), predictions.outputs.max()])
            panel.plot(
                ends, intercept + slope * ends, color="black", linewidth=2, label=f"fit, slope {_number(slope, 2)}"
            )
        r, r2 = evaluation.metrics["pearson_r"], evaluation.metrics["r2"]
        title = f"{_text(evaluation.method)}\nr = {_estimate_text(r, 2)}, R² = {_number(r2.value, 2)}"
        label_panel(panel, f"predicted {label}", f"true {label}", title)
        _square(panel, span, span)
        panel.legend(edgecolor="none", loc="upper left", fontsize=9)
    return figure


def sites_figure(evaluations: Sequence[Evaluation]) -> "Figure":
    """The main metric at each site and at all together, of each method."""
    from matplotlib.lines import Line2D

    first = evaluations[0]
    name = first.main_metric
    rows = [
        ("all", first.num_subjects, "", [each.metrics[name] for each in evaluations]),
        *(
            (site.name or "not known", site.num_subjects, site.note,
             [each.by_site[place].metrics.get(name, Estimate(math.nan)) for each in evaluations])
            for place, site in enumerate(first.by_site)
        ),
    ]  # fmt: skip
    low, high = _metric_range(name, [estimate for row in rows for estimate in row[3]], first.chance.get(name))
    step = 0.7 / max(len(evaluations), 2)
    figure = new_figure(8.0, 1.7 + len(rows) * (0.26 + 0.17 * len(evaluations)))
    panel = figure.subplots()
    panel.axvline(first.chance[name], color=GREY, linestyle=":", linewidth=1.8)
    panel.axhline(len(rows) - 1.5, color="#bbbbbb", linewidth=0.8)
    for row, (_, _, note, estimates) in enumerate(rows):
        y = len(rows) - 1 - row
        if all(math.isnan(estimate.value) for estimate in estimates):
            _say_instead(panel, y, (low, high), f"not judged: {_text(note, 60)}")
            continue
        for number, estimate in enumerate(estimates):
            height = y + step * ((len(estimates) - 1) / 2 - number)
            _point(panel, estimate, height, _style(number), (low, high), None)
    panel.set_yticks(range(len(rows)), [f"{_text(row[0])} (n = {row[1]})" for row in reversed(rows)])
    panel.set_xlim(low, high)
    panel.set_ylim(-0.6, len(rows) - 0.4)
    label_panel(panel, f"{METRIC_NAMES[name]}, 95% interval", "", f"{_text(first.label)} by site")
    handles = [
        Line2D([], [], color=_style(number)[0], marker=_style(number)[1], label=_text(each.method))
        for number, each in enumerate(evaluations)
    ] + [Line2D([], [], color=GREY, linestyle=":", linewidth=1.8, label="chance")]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
    return figure


# --- parts


def _style(number: int) -> tuple[str, str, str]:
    return STYLES[number % len(STYLES)]


def _grid(num_panels: int) -> tuple[int, int]:
    columns = min(num_panels, PANELS_IN_A_ROW)
    return columns, math.ceil(num_panels / columns)


def _filled(panels: np.ndarray, contents: Sequence[Any]) -> list[tuple[Any, Any]]:
    """A panel for each content; panels left over are taken away."""
    for panel in panels.flat[len(contents) :]:
        panel.remove()
    return list(zip(panels.flat, contents, strict=False))


def _square(panel: Any, x: tuple[float, float], y: tuple[float, float]) -> None:
    panel.set_xlim(*x)
    panel.set_ylim(*y)
    panel.set_aspect("equal", adjustable="box")


def _metric_range(name: str, estimates: Sequence[Estimate], chance: float | None) -> tuple[float, float]:
    numbers = [number for each in estimates for number in (each.value, each.low, each.high) if math.isfinite(number)]
    lowest, highest = min(numbers, default=0.0), max(numbers, default=1.0)
    if name in ("mae", "mse"):
        return 0.0, 1.12 * max(highest, chance or 0.0, 1e-12)
    if name == "r2":
        return max(LOWEST_R2, min(-0.25, lowest - 0.1)), 1.02
    if name == "pearson_r":
        return (-1.02 if lowest < -0.5 else -0.52), 1.02
    return -0.02, 1.02


def _point(
    panel: Any, estimate: Estimate, y: float, style: tuple[str, str, str], span: tuple[float, float], digits: int | None
) -> None:
    """A value with its interval; what is beyond the axis is an arrow at its end."""
    if not math.isfinite(estimate.value):
        _say_instead(panel, y, span, "not defined")
        return
    colour, marker, _ = style
    low, high = np.clip([estimate.low, estimate.high], *span)
    if math.isfinite(estimate.low):
        panel.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
    x = float(np.clip(estimate.value, *span))
    beyond = {-1: "<", 0: marker, 1: ">"}[int(np.sign(estimate.value - x))]
    panel.plot(x, y, beyond, color=colour, markersize=8, clip_on=False)
    if digits is not None:
        edge = 0.08 * (span[1] - span[0])
        align = "left" if x < span[0] + edge else "right" if x > span[1] - edge else "center"
        panel.annotate(
            _number(estimate.value, digits), (x, y), (0, 7), textcoords="offset points", ha=align, va="bottom",
            fontsize=9, bbox=OVER_LINES,
        )  # fmt: skip


def _say_instead(panel: Any, y: float, span: tuple[float, float], words: str) -> None:
    panel.text(sum(span) / 2, y, words, ha="center", va="center", color=GREY, fontsize=9, bbox=OVER_LINES)


def _digits(name: str, highest: float) -> int:
    """After the point: two of what is between -1 and 1, three in all of an error in its own unit."""
    return int(np.clip(2 - math.floor(math.log10(highest)), 0, 6)) if name in ("mae", "mse") else 2


def _number(value: float, digits: int) -> str:
    return "n/a" if not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def _estimate_text(estimate: Estimate, digits: int) -> str:
    text = _number(estimate.value, digits)
    if not math.isfinite(estimate.low):
        return text
    return f"{text} ({_number(estimate.low, digits)} to {_number(estimate.high, digits)})"


def _text(name: Any, longest: int = LONGEST_NAME) -> str:
    """What others named, as a picture can hold it: not too long, and no formula between dollar signs."""
    text = " ".join(str(name).split())
    return (text if len(text) <= longest else text[: longest - 1] + "…").replace("$", r"\$")


def _people(evaluation: Evaluation) -> str:
    people = f"{evaluation.num_subjects} people"
    return (
        people if evaluation.num_subjects == evaluation.num_entries else f"{people}, {evaluation.num_entries} entries"
    )


def _has_several_folds(predictions: Predictions) -> bool:
    return len(set(predictions.subjects)) < len(predictions)
