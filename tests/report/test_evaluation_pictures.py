"""Figures of an evaluation show its numbers, and can be read without colour."""

import matplotlib.image
import numpy as np
import pytest
from sklearn.metrics import roc_curve

from tablet_hf.evaluation.predictions import Predictions
from tablet_hf.evaluation.statistics import evaluate_predictions
from tablet_hf.report import evaluation_pictures as pictures
from tablet_hf.report.pictures import save_figure

CLASSES = {"two classes": ("control", "ADHD"), "three classes": ("a", "b", "c"), "a number": None}


def predictions(method, classes, skill=1.0, seed=0, count=60):
    subjects = np.random.default_rng(1)
    targets = subjects.permutation(np.arange(count) % len(classes)) if classes else subjects.normal(50, 10, count)
    rng = np.random.default_rng(seed)
    if classes is None:
        outputs = 50 + skill * (targets - 50) + 5 * rng.standard_normal(count)
    else:
        odds = rng.standard_normal((count, len(classes)))
        odds[np.arange(count), targets] += skill
        outputs = np.exp(odds) / np.exp(odds).sum(1, keepdims=True)
    sites = tuple(("NYU", "KKI", "OHSU")[min(number // 28, 2)] for number in range(count))
    return Predictions(
        method, "label", classes, tuple(map(str, range(count))), targets, outputs, sites, ("test",) * count
    )


def pair(classes):
    methods = [predictions("TABLeT", classes), predictions("functional connectivity", classes, 0.3, 1)]
    return methods, [evaluate_predictions(each, 100, 10) for each in methods]


@pytest.fixture(scope="module")
def binary():
    return pair(CLASSES["two classes"])


def panel_titled(figure, start):
    return next(panel for panel in figure.axes if panel.get_title().startswith(start))


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("kind", CLASSES)
def test_every_figure_is_drawn_for_any_number_of_methods(kind, count, tmp_path):
    classes = CLASSES[kind]
    methods = [predictions(f"method {number} of $x^{{", classes, seed=number) for number in range(count)]
    evaluations = [evaluate_predictions(each, 50, 10) for each in methods]
    figures = [pictures.methods_figure(evaluations), pictures.sites_figure(evaluations)]
    if classes is None:
        figures.append(pictures.scatter_figure(methods, evaluations))
    else:
        figures += [pictures.confusion_figure(evaluations), pictures.roc_figure(methods)]
        figures.append(pictures.calibration_figure(evaluations))
    for number, figure in enumerate(figures):
        image = matplotlib.image.imread(save_figure(figure, tmp_path / f"{number}.png", 40))
        assert min(image.shape[:2]) > 50
        assert image.std() > 0.02


def test_methods_are_drawn_at_their_values_with_intervals_and_chance(binary):
    _, evaluations = binary
    figure = pictures.methods_figure(evaluations)
    assert [panel.get_title() for panel in figure.axes] == [
        pictures.METRIC_NAMES[name] for name in evaluations[0].metrics
    ]
    for panel, name in zip(figure.axes, evaluations[0].metrics, strict=True):
        drawn = [np.asarray(line.get_xdata()).tolist() for line in panel.lines]
        for each in evaluations:
            estimate = each.metrics[name]
            assert [estimate.low, estimate.high] in drawn
            assert [estimate.value] in drawn
        assert ([evaluations[0].chance.get(name)] * 2 in drawn) == (name in evaluations[0].chance)
        assert panel.get_xlim() == (-0.03, 1.03)
    panel = figure.axes[0]
    heights = {label.get_text(): label.get_position()[1] for label in panel.get_yticklabels()}
    top = panel.get_ylim()[1]
    assert min(heights, key=lambda name: abs(heights[name] - top)) == "TABLeT"
    markers = [line.get_marker() for line in panel.lines if len(line.get_xdata()) == 1]
    assert len(set(markers)) == len(markers) == 2


def test_the_confusion_matrix_has_counts_of_the_truth(binary):
    _, evaluations = binary
    panel = panel_titled(pictures.confusion_figure(evaluations), "TABLeT")
    assert np.array_equal(panel.images[0].get_array(), evaluations[0].confusion)
    assert [label.get_text() for label in panel.get_yticklabels()] == ["control", "ADHD"]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("Predicted label", "True label")


def test_the_roc_curve_is_that_of_scikit_learn_and_an_absent_class_has_none(binary):
    methods, evaluations = binary
    panel = pictures.roc_figure(methods).axes[0]
    lines = {line.get_label(): line for line in panel.lines}
    (name,) = [name for name in lines if name.startswith("TABLeT")]
    x, y, _ = roc_curve(methods[0].targets, methods[0].outputs[:, 1])
    assert np.array_equal(lines[name].get_xydata(), np.stack([x, y], 1))
    assert f"{evaluations[0].main.value:.2f}" in name
    assert len({(line.get_linestyle(), line.get_marker()) for line in panel.lines}) == 3
    several = predictions("TABLeT", CLASSES["three classes"])
    for each, expected in ((several, ["chance", "a", "b", "c"]), (several.chosen(several.targets < 2), None)):
        shown = [line.get_label().split(" ")[0] for line in pictures.roc_figure([each]).axes[0].lines]
        assert shown == (expected or ["chance", "a", "b"])


def test_the_calibration_curve_is_that_of_the_evaluation(binary):
    _, evaluations = binary
    panel = panel_titled(pictures.calibration_figure(evaluations), "TABLeT")
    shown = [line.get_xydata().tolist() for line in panel.lines]
    assert [[part.predicted, part.observed] for part in evaluations[0].reliability] in shown
    assert [[0, 0], [1, 1]] in shown


def test_the_scatter_has_the_truth_upwards_and_the_fitted_line():
    methods, evaluations = pair(None)
    panel = panel_titled(pictures.scatter_figure(methods, evaluations), "TABLeT")
    assert np.array_equal(panel.collections[0].get_offsets(), np.stack([methods[0].outputs, methods[0].targets], 1))
    (fit,) = [line for line in panel.lines if line.get_label().startswith("fit")]
    (x0, y0), (x1, y1) = fit.get_xydata()
    assert (y1 - y0) / (x1 - x0) == pytest.approx(evaluations[0].calibration["slope"].value)


def test_sites_without_enough_subjects_are_left_out(binary):
    panel = pictures.sites_figure(binary[1]).axes[0]
    names = [label.get_text() for label in panel.get_yticklabels()]
    assert names == ["all (n = 60)", "KKI (n = 28)", "NYU (n = 28)"]


def test_names_from_outside_are_short_and_no_formulas():
    assert pictures.short_text("$x^{") == r"\$x^{"
    assert pictures.short_text("a\nb") == "a b"
    assert len(pictures.short_text("long " * 20)) == pictures.LONGEST_NAME
