"""Figures of an evaluation show its numbers, on honest axes, and can be read without colour."""

import matplotlib.image
import numpy as np
import pytest
from sklearn.metrics import roc_curve

from tablet_hf.evaluation.predictions import Predictions
from tablet_hf.evaluation.statistics import evaluate_predictions
from tablet_hf.report import evaluation_pictures as pictures
from tablet_hf.report.pictures import save_figure

SITES = ("NYU", "KKI", "OHSU")


def predictions(method, classes, skill=1.0, seed=0, count=60):
    people = np.random.default_rng(1)
    targets = people.permutation(np.arange(count) % len(classes)) if classes else people.normal(50, 10, count)
    rng = np.random.default_rng(seed)
    if classes is None:
        outputs = 50 + skill * (targets - 50) + 5 * rng.standard_normal(count)
    else:
        odds = rng.standard_normal((count, len(classes)))
        odds[np.arange(count), targets] += skill
        outputs = np.exp(odds) / np.exp(odds).sum(1, keepdims=True)
    sites = tuple(SITES[min(number // 25, 2)] for number in range(count - 5)) + (SITES[2],) * 5
    subjects = tuple(map(str, range(count)))
    return Predictions(method, "label", classes, subjects, targets, outputs, sites, ("test",) * count)


def pair(classes):
    methods = [predictions("TABLeT", classes), predictions("functional connectivity", classes, 0.3, 1)]
    return methods, [evaluate_predictions(each, 100, 10) for each in methods]


@pytest.fixture(scope="module")
def binary():
    return pair(("control", "ADHD"))


@pytest.fixture(scope="module")
def several():
    return pair(("a", "b", "c"))


@pytest.fixture(scope="module")
def numbers():
    return pair(None)


def panel_titled(figure, start):
    return next(panel for panel in figure.axes if panel.get_title().startswith(start))


def curves(panel):
    """What is drawn under each name of the legend."""
    return {line.get_label(): line for line in panel.lines if not line.get_label().startswith("_")}


def test_every_picture_is_written_and_not_blank(binary, several, numbers, tmp_path):
    drawn = {"two": binary, "three": several, "numbers": numbers}
    for name, (methods, evaluations) in drawn.items():
        figures = [pictures.methods_figure(evaluations), pictures.sites_figure(evaluations)]
        if name == "numbers":
            figures.append(pictures.scatter_figure(methods, evaluations))
        else:
            figures += [pictures.confusion_figure(evaluations)]
            figures += [draw(methods, evaluations) for draw in (pictures.roc_figure, pictures.reliability_figure)]
        for number, figure in enumerate(figures):
            image = matplotlib.image.imread(save_figure(figure, tmp_path / f"{name}{number}.png"))
            assert min(image.shape[:2]) > 200, (name, number)
            assert image.std() > 0.02, (name, number)


def test_methods_stand_at_their_values_with_their_intervals_and_chance(binary):
    _, evaluations = binary
    figure = pictures.methods_figure(evaluations)
    assert [panel.get_title() for panel in figure.axes] == [
        pictures.METRIC_NAMES[name] for name in evaluations[0].metrics
    ]
    for panel, name in zip(figure.axes, evaluations[0].metrics, strict=True):
        drawn = [line.get_xdata() for line in panel.lines]
        for each in evaluations:
            estimate = each.metrics[name]
            assert any(np.array_equal(x, [estimate.low, estimate.high]) for x in drawn)
            assert any(len(x) == 1 and x[0] == estimate.value for x in drawn)
        assert any(np.array_equal(x, [evaluations[0].chance.get(name)] * 2) for x in drawn) == (
            name in evaluations[0].chance
        )
        assert panel.get_xlim() == (-0.02, 1.02)  # the whole range of a share
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["functional connectivity", "TABLeT"]  # from below: the method in question on top


def test_methods_differ_in_more_than_colour(binary):
    figure = pictures.methods_figure(binary[1])
    markers = [line.get_marker() for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert len(set(markers)) == len(markers) == 2
    lines = list(curves(pictures.roc_figure(*binary).axes[0]).values())
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == len(lines) == 3


def test_errors_start_at_zero_and_what_lies_beyond_an_axis_is_an_arrow(numbers):
    _, evaluations = numbers
    awful = predictions("awful", None, -5)
    figure = pictures.methods_figure([*evaluations, evaluate_predictions(awful, 50, 10)])
    assert panel_titled(figure, "mean absolute error").get_xlim()[0] == 0
    panel = panel_titled(figure, "R²")
    assert panel.get_xlim()[0] == pictures.LOWEST_R2
    assert [line.get_xdata()[0] for line in panel.lines if line.get_marker() == "<"] == [pictures.LOWEST_R2]


def test_the_confusion_matrix_has_counts_and_shares_of_the_truth(binary):
    _, evaluations = binary
    panel = panel_titled(pictures.confusion_figure(evaluations), "TABLeT")
    matrix = evaluations[0].confusion
    texts = [text.get_text() for text in panel.texts]
    expected = [
        f"{matrix[true, named]}\n{100 * matrix[true, named] / matrix[true].sum():.0f}%"
        for true, named in np.ndindex(2, 2)
    ]
    assert texts == expected
    assert np.asarray(panel.images[0].get_array()).sum(1) == pytest.approx([100, 100])
    assert [label.get_text() for label in panel.get_xticklabels()] == ["control", "ADHD"]


def test_the_roc_curve_is_that_of_scikit_learn(binary):
    methods, evaluations = binary
    panel = pictures.roc_figure(methods, evaluations).axes[0]
    shown = curves(panel)
    x, y, _ = roc_curve(methods[0].targets, methods[0].outputs[:, 1])
    line = next(line for name, line in shown.items() if name.startswith("TABLeT"))
    assert np.array_equal(line.get_xdata(), x)
    assert np.array_equal(line.get_ydata(), y)
    assert f"TABLeT: {evaluations[0].main.value:.2f} (" in line.get_label()
    assert shown["chance"].get_xydata().tolist() == [[0, 0], [1, 1]]


def test_several_classes_have_a_curve_each_and_a_lacking_one_has_none(several):
    methods, evaluations = several
    panel = panel_titled(pictures.roc_figure(methods, evaluations), "TABLeT")
    assert [name.split(":")[0] for name in curves(panel)] == ["chance", "a", "b", "c"]
    without = methods[0].chosen(methods[0].targets < 2)
    figure = pictures.roc_figure([without], [evaluate_predictions(without, 10, 10)])
    assert [name.split(":")[0] for name in curves(figure.axes[0])] == ["chance", "a", "b"]


def test_the_reliability_curve_stands_over_all_people(binary):
    methods, evaluations = binary
    figure = pictures.reliability_figure(methods, evaluations)
    panel = panel_titled(figure, "TABLeT")
    shown = [line.get_xydata().tolist() for line in panel.lines]
    assert [[part.predicted, part.observed] for part in evaluations[0].reliability] in shown
    assert [[0, 0], [1, 1]] in shown
    heights = [sum(bar.get_height() for bar in panel.patches) for panel in figure.axes if panel.patches]
    assert heights == [60, 60]


def test_the_scatter_has_equal_axes_and_truth_upwards(numbers):
    methods, evaluations = numbers
    panel = panel_titled(pictures.scatter_figure(methods, evaluations), "TABLeT")
    assert panel.get_xlim() == panel.get_ylim()
    points = max(panel.lines, key=lambda line: len(line.get_xdata())).get_xydata()
    assert np.array_equal(points, np.stack([methods[0].outputs, methods[0].targets], 1))
    fit = next(line for name, line in curves(panel).items() if name.startswith("fit"))
    (x0, y0), (x1, y1) = fit.get_xydata()
    assert (y1 - y0) / (x1 - x0) == pytest.approx(evaluations[0].calibration["slope"].value)


def test_sites_without_enough_people_are_named_and_not_judged(binary):
    methods, evaluations = binary
    panel = pictures.sites_figure(evaluations).axes[0]
    names = [label.get_text() for label in panel.get_yticklabels()]
    assert names == ["OHSU (n = 10)", "NYU (n = 25)", "KKI (n = 25)", "all (n = 60)"]
    few = methods[0].chosen(np.arange(58))
    panel = pictures.sites_figure([evaluate_predictions(few, 10, 10)]).axes[0]
    assert [text.get_text() for text in panel.texts] == ["not judged: fewer than 10 subjects"]


def test_dollars_are_no_formulas_and_long_names_end():
    assert pictures._text("$x^{") == r"\$x^{"
    assert pictures._text("a\nb") == "a b"
    assert len(pictures._text("long " * 20)) == pictures.LONGEST_NAME


def test_pyplot_keeps_nothing(binary):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    pictures.methods_figure(binary[1])
    assert plt.get_fignums() == before


@pytest.mark.parametrize("count", [1, 4])
def test_any_number_of_methods_is_drawn(count, tmp_path):
    """Grids that are not full: functional connectivity beside three others is four methods in rows of three."""
    for classes in (("control", "ADHD"), ("a", "b", "c"), None):
        methods = [predictions(f"method {number}", classes, seed=number) for number in range(count)]
        evaluations = [evaluate_predictions(each, 100, 100) for each in methods]
        figures = [pictures.methods_figure(evaluations)]
        if classes is None:
            figures.append(pictures.scatter_figure(methods, evaluations))
        else:
            figures += [pictures.confusion_figure(evaluations), pictures.roc_figure(methods, evaluations)]
            figures.append(pictures.reliability_figure(methods, evaluations))
        for number, figure in enumerate(figures):
            assert save_figure(figure, tmp_path / f"{number}.png", 40).stat().st_size > 1000
