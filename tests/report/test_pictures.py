"""Figures are drawn from arrays, are not blank, and show what they say they show."""

import matplotlib.image
import numpy as np
import pytest

from tablet_hf.report import pictures

V = 24


@pytest.fixture
def volumes():
    rng = np.random.default_rng(0)
    original = np.zeros((V, V, V), dtype=np.float32)
    original[4:20, 4:20, 4:20] = 1000 + 100 * rng.standard_normal((16, 16, 16))
    return original, original + 50


def read(figure, path):
    return matplotlib.image.imread(pictures.save_figure(figure, path))


def figures(volumes):
    original, decoded = volumes
    course = pictures.Course("node", np.arange(6.0), np.arange(6.0) ** 2)
    yield "reconstruction", pictures.reconstruction_figure(original, decoded, "A frame", "intensity")
    yield "change", pictures.reconstruction_figure(original - 1000, decoded - 1000, "A change", "%", is_signed=True)
    yield (
        "networks",
        pictures.networks_figure(
            original, {"one": original / 1000}, {"group": np.ones((6, 1))}, 2.0, (0, 0, 0), "Networks"
        ),
    )
    yield "courses", pictures.time_series_figure([course] * 3, 2.0, "Courses", "%")
    yield "learning", pictures.learning_curve_figure([0.7, 0.2], [0.7, 0.4], 0.69)
    yield "predictions", pictures.predictions_figure(["a", "b"], [0, 1], [0.2, 0.4], ("no", "yes"), "People")
    yield "results", pictures.results_figure({"ours": 0.8}, {"ours": (0.6, 0.9)}, 0.5, "Results")


def test_every_picture_is_written_and_not_blank(volumes, tmp_path):
    for name, figure in figures(volumes):
        image = read(figure, tmp_path / f"{name}.png")
        assert image.shape[0] > 150, name
        assert image.shape[1] > 500, name
        assert image.std() > 0.02, name


def panel_titled(figure, title):
    return next(panel for panel in figure.axes if panel.get_title() == title)


def test_the_difference_is_what_was_added(volumes):
    figure = pictures.reconstruction_figure(*volumes, "A frame", "intensity")
    shown = panel_titled(figure, "reconstruction − original").images[0].get_array()
    assert np.allclose(shown, 50, atol=1e-3)


def test_slices_stand_upright_with_right_on_the_left():
    volume = np.zeros((V, V, V), dtype=np.float32)
    volume[0, :, -1] = 1  # x = 0 is the right, the last z the top of the head
    figure = pictures.reconstruction_figure(volume, volume, "A frame", "intensity")
    coronal = figure.axes[3].images[0].get_array()
    assert coronal[0, 0] == 1
    assert coronal.sum() == 1
    assert [text.get_text() for text in figure.axes[3].texts] == ["R", "L"]


def test_the_plane_goes_through_the_point_asked_for():
    index = pictures._voxel((-26.0, -56.0, 42.0), 96)
    assert index.tolist() == [61, 28, 60]  # (96 + 26) / 2, (-56 + 112) / 2, (42 + 78) / 2 of the FSL lattice


def test_who_is_wrong_is_marked():
    figure = pictures.predictions_figure(["a", "b", "c"], [0, 1, 1], [0.2, 0.4, 0.5], ("no", "yes"), "People")
    markers = {
        line.get_ydata()[0]: line.get_marker() for line in figure.axes[0].lines if line.get_marker() in ("o", "X")
    }
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert {names[row]: marker for row, marker in markers.items()} == {"a": "o", "b": "X", "c": "o"}


def test_pyplot_keeps_nothing(volumes):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    assert len(list(figures(volumes))) == 7
    assert plt.get_fignums() == before
