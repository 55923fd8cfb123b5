"""Figures of an evaluation, with 95% intervals. Methods differ by marker and line as well as by colour."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tablet_hf.evaluation.predictions import Predictions
from tablet_hf.evaluation.statistics import Estimate, Evaluation
from tablet_hf.report.pictures import BLUE, GREEN, GREY, ORANGE, label_panel, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "METRIC_NAMES",
    "calibration_figure",
    "confusion_figure",
    "methods_figure",
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
"""Name of each metric on a page."""

SHARES = ("auroc", "balanced_accuracy", "accuracy", "f1", "sensitivity", "specificity")
"""Metrics between 0 and 1, the range of their axes."""

STYLES = (
    {"color": BLUE, "marker": "o", "linestyle": "-"},
    {"color": ORANGE, "marker": "s", "linestyle": "--"},
    {"color": GREEN, "marker": "^", "linestyle": "-."},
    {"color": "#CC79A7", "marker": "D", "linestyle": ":"},
    {"color": "black", "marker": "v", "linestyle": "-"},
    {"color": "#56B4E9", "marker": "P", "linestyle": "--"},
)
LONGEST_NAME = 28


def methods_figure(evaluations: Sequence[Evaluation]) -> "Figure":
    """Draw a panel for each metric and in it a row for each method, with intervals and the best constant guess."""
    first = evaluations[0]
    figure, panels = _panels(len(first.metrics), 3.4, 1.1 + 0.42 * len(evaluations), sharey=True)
    for panel, name in zip(panels, first.metrics, strict=True):
        if name in first.chance:
            panel.axvline(first.chance[name], color=GREY, linestyle=":")
        for number, each in enumerate(evaluations):
            _draw_estimate(panel, each.metrics[name], number, number)
        panel.set_yticks(range(len(evaluations)), [short_text(each.method) for each in evaluations])
        panel.set_ylim(len(evaluations) - 0.5, -0.5)  # the first method on top
        if name in SHARES:
            panel.set_xlim(-0.03, 1.03)
        elif name in ("mae", "mse"):
            panel.set_xlim(left=0)
        label_panel(panel, title=METRIC_NAMES[name])
    figure.suptitle(f"{short_text(first.label)}, {first.num_subjects} subjects (dotted: best constant guess)")
    return figure


def confusion_figure(evaluations: Sequence[Evaluation]) -> "Figure":
    """Draw the confusion matrix of each method, in counts; rows are true classes."""
    from sklearn.metrics import ConfusionMatrixDisplay

    classes = [short_text(name) for name in evaluations[0].classes]
    size = max(2.6, 0.6 * len(classes)) + 0.05 * max(map(len, classes))
    figure, panels = _panels(len(evaluations), size + 0.6, size + 0.6)
    for panel, each in zip(panels, evaluations, strict=True):
        display = ConfusionMatrixDisplay(each.confusion, display_labels=classes)
        display.plot(ax=panel, cmap="Blues", colorbar=False, xticks_rotation=30 if len("".join(classes)) > 12 else 0)
        panel.set_title(short_text(each.method), fontsize=11)
    return figure


def roc_figure(methods: Sequence[Predictions]) -> "Figure":
    """Draw ROC curves: one panel with a curve a method for two classes, a panel a method with a curve a class for more.

    A class that has no subject, or all of them, has no curve.
    """
    from sklearn.metrics import RocCurveDisplay

    classes = methods[0].classes
    if len(classes) == 2:
        titles = [f"{short_text(classes[1])} against {short_text(classes[0])}"]
        curves = [[(each.method, each, 1) for each in methods]]
    else:
        titles = [short_text(each.method) for each in methods]
        curves = [[(name, each, index) for index, name in enumerate(classes)] for each in methods]
    figure, panels = _panels(len(titles), 5.2 if len(titles) == 1 else 4.2, 4.8)
    for panel, title, shown in zip(panels, titles, curves, strict=True):
        panel.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="chance")
        for number, (name, each, index) in enumerate(shown):
            truth = each.targets == index
            if 0 < truth.sum() < len(truth):
                line = _style(number) | {"linewidth": 2, "markevery": max(1, len(truth) // 8)}
                RocCurveDisplay.from_predictions(
                    truth, each.outputs[:, index], name=short_text(name), ax=panel, curve_kwargs=line
                )
        label_panel(panel, "false positive rate (1 − specificity)", "true positive rate (sensitivity)", title)
        panel.legend(edgecolor="none", loc="lower right", fontsize=9)
    return figure


def calibration_figure(evaluations: Sequence[Evaluation]) -> "Figure":
    """Draw the share of entries of a class against its predicted probability, with exact intervals.

    The class is the positive one of two, and of more the predicted one.
    """
    classes = evaluations[0].classes
    figure, panels = _panels(len(evaluations), 3.7, 3.9)
    for number, (panel, each) in enumerate(zip(panels, evaluations, strict=True)):
        panel.plot([0, 1], [0, 1], color=GREY, linestyle=":")
        bins = each.reliability
        x, y = [part.predicted for part in bins], [part.observed for part in bins]
        reach = [[part.observed - part.low for part in bins], [part.high - part.observed for part in bins]]
        panel.errorbar(x, y, np.abs(reach), elinewidth=1.5, **_style(number))
        panel.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
        of_what = short_text(classes[1], 18) if len(classes) == 2 else "predicted class"
        title = f"{short_text(each.method)}\ncalibration error {each.calibration['ece'].value:.2f}"
        label_panel(panel, f"predicted probability of {of_what}", f"share of {of_what}", title)
    return figure


def scatter_figure(methods: Sequence[Predictions], evaluations: Sequence[Evaluation]) -> "Figure":
    """Draw true against predicted values of each method, with the line of equality and the fitted line."""
    from sklearn.metrics import PredictionErrorDisplay

    figure, panels = _panels(len(methods), 3.9, 4.3)
    for number, (panel, each, evaluation) in enumerate(zip(panels, methods, evaluations, strict=True)):
        points = {"color": _style(number)["color"], "marker": _style(number)["marker"], "alpha": 0.5, "linewidths": 0}
        PredictionErrorDisplay(y_true=each.targets, y_pred=each.outputs).plot(
            ax=panel, kind="actual_vs_predicted", scatter_kwargs=points, line_kwargs={"color": GREY, "linestyle": ":"}
        )
        slope, intercept = (evaluation.calibration[name].value for name in ("slope", "intercept"))
        if math.isfinite(slope):
            ends = np.array([each.outputs.min(), each.outputs.max()])
            panel.plot(ends, intercept + slope * ends, color="black", label=f"fit, slope {slope:.2f}")
            panel.legend(edgecolor="none", loc="upper left", fontsize=9)
        label = short_text(each.label, 18)
        label_panel(panel, f"predicted {label}", f"true {label}", short_text(each.method))
    return figure


def sites_figure(evaluations: Sequence[Evaluation]) -> "Figure":
    """Draw the main metric of each method over all subjects and at each site that is large enough."""
    from matplotlib.lines import Line2D

    first = evaluations[0]
    name = first.main_metric
    sites = [index for index, site in enumerate(first.by_site) if site.metrics]
    rows = [(f"all (n = {first.num_subjects})", [each.metrics[name] for each in evaluations])]
    for index in sites:
        site = first.by_site[index]
        found = [each.by_site[index].metrics.get(name, Estimate(math.nan)) for each in evaluations]
        rows.append((f"{short_text(site.name or 'unknown')} (n = {site.num_subjects})", found))
    figure = new_figure(8.0, 1.5 + len(rows) * (0.26 + 0.17 * len(evaluations)))
    panel = figure.subplots()
    panel.axvline(first.chance[name], color=GREY, linestyle=":")
    for row, (_, estimates) in enumerate(rows):
        for number, estimate in enumerate(estimates):
            _draw_estimate(panel, estimate, row + 0.6 * ((number + 0.5) / len(estimates) - 0.5), number)
    panel.set_yticks(range(len(rows)), [title for title, _ in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    label_panel(panel, f"{METRIC_NAMES[name]}, 95% interval (dotted: best constant guess)")
    names = [short_text(each.method) for each in evaluations]
    handles = [Line2D([], [], **_style(number), label=name) for number, name in enumerate(names)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
    return figure


def short_text(name: Any, longest: int = LONGEST_NAME) -> str:
    """Return a name from outside as a figure can hold it: not too long, and without formulas between dollar signs."""
    text = " ".join(str(name).split())
    return (text if len(text) <= longest else text[: longest - 1] + "…").replace("$", r"\$")


def _panels(count: int, width: float, height: float, **settings: Any) -> tuple["Figure", list["Axes"]]:
    """Return a figure of `count` panels, each of this size in inches, in rows of two or three."""
    columns = 2 if count == 4 else min(count, 3)
    rows = math.ceil(count / columns)
    figure = new_figure(max(5.0, columns * width), rows * height)
    panels = figure.subplots(rows, columns, squeeze=False, **settings)
    for panel in panels.flat[count:]:
        panel.remove()
    return figure, list(panels.flat[:count])


def _draw_estimate(panel: "Axes", estimate: Estimate, y: float, number: int) -> None:
    """Draw a value with its interval; nothing where it is not defined."""
    panel.plot([estimate.low, estimate.high], [y, y], color=_style(number)["color"], linewidth=2)
    panel.plot(estimate.value, y, color=_style(number)["color"], marker=_style(number)["marker"], markersize=8)


def _style(number: int) -> dict[str, str]:
    return STYLES[number % len(STYLES)]
