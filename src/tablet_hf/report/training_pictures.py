"""Figures of pre-training: the loss, and hidden tokens next to what was predicted for them.

figure = pretraining_curve_figure(loss, validation_loss, mean_loss)
save_figure(figure, Path("loss.png"))
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tablet_hf.report.pictures import (
    BLUE,
    COORDINATES,
    GREY,
    ORANGE,
    PLANES,
    label_panel,
    nearest_voxel,
    new_figure,
    show_slice,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["hidden_tokens_figure", "pretraining_curve_figure"]


def pretraining_curve_figure(
    loss: Sequence[tuple[float, float]],
    validation_loss: Sequence[tuple[float, float]],
    mean_loss: float | None = None,
) -> "Figure":
    """Masked loss by step, of the windows that are trained on and of those of held-out subjects.

    Args:
        loss, validation_loss: pairs of step and loss.
        mean_loss: what naming the mean of each cell reaches on the latter.
    """
    figure = new_figure(7.0, 3.8)
    panel = figure.subplots()
    if mean_loss is not None:
        panel.axhline(mean_loss, color=GREY, linestyle=":", label="naming each cell's mean")
    for pairs, colour, marker, name in (
        (loss, BLUE, "", "windows learnt from"),
        (validation_loss, ORANGE, "o", "people held out"),
    ):
        if pairs:
            steps, values = np.asarray(pairs, dtype=float).T
            panel.plot(steps, values, color=colour, marker=marker, markersize=4, label=name)
    panel.set_yscale("log")
    label_panel(panel, "step", "mean squared error of hidden tokens", "Masked token modeling")
    panel.legend(frameon=False)
    return figure


def hidden_tokens_figure(
    original: np.ndarray,
    visible: np.ndarray,
    predicted: np.ndarray,
    title: str,
    unit: str,
    centre_mm: Sequence[float] = (0.0, 0.0, 0.0),
) -> "Figure":
    """One frame, what was left of it, and what was predicted, as changes about the window's mean, in three planes.

    Args:
        original, visible, predicted: `(V, V, V)` on the model's grid: decoded tokens, those with hidden ones at their
            mean, and those with hidden ones as predicted.
        unit: of the numbers, for the colour bars.
        centre_mm: the point in MNI152 mm.
    """
    span = max(float(np.percentile(np.abs(original), 99.5)), 1e-12)
    style = {"cmap": "RdBu_r", "vmin": -span, "vmax": span}
    columns = (
        ("decoded tokens", original),
        ("hidden ones at their mean", visible),
        ("hidden ones predicted", predicted),
    )
    figure = new_figure(9.0, 9.2)
    panels = figure.subplots(3, 3)
    place = nearest_voxel(centre_mm, original.shape[0])
    for axis, row in enumerate(panels):
        for panel, (name, volume) in zip(row, columns, strict=True):
            image = show_slice(panel, volume, axis, place[axis], **style)
            if axis == 0:
                panel.set_title(name, fontsize=11)
        row[0].set_ylabel(f"{PLANES[axis]}, {COORDINATES[axis]} = {centre_mm[axis]:.0f} mm")
    figure.colorbar(image, ax=panels, orientation="horizontal", fraction=0.03, pad=0.02, label=unit)
    figure.suptitle(title, fontsize=13)
    return figure
