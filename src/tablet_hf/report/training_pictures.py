"""Figures of pre-training: the loss, and masked tokens with their predictions.

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

__all__ = ["masked_tokens_figure", "pretraining_curve_figure"]


def pretraining_curve_figure(
    loss: Sequence[tuple[float, float]],
    validation_loss: Sequence[tuple[float, float]],
    mean_loss: float | None = None,
) -> "Figure":
    """Draw pairs of step and masked loss; `mean_loss` is that of predicting each cell's mean."""
    figure = new_figure(7.0, 3.8)
    panel = figure.subplots()
    if mean_loss is not None:
        panel.axhline(mean_loss, color=GREY, linestyle=":", label="each cell's mean")
    panel.plot(*np.reshape(loss, (-1, 2)).T, color=BLUE, label="training windows")
    if validation_loss:
        panel.plot(*np.transpose(validation_loss), "o-", color=ORANGE, markersize=4, label="validation subjects")
    panel.set_yscale("log")
    label_panel(panel, "step", "mean squared error of masked tokens", "Masked token modeling")
    panel.legend(frameon=False)
    return figure


def masked_tokens_figure(
    original: np.ndarray, visible: np.ndarray, predicted: np.ndarray, title: str, unit: str
) -> "Figure":
    """Draw one frame, its visible tokens and its predicted tokens in three planes, as changes about the window's mean.

    Args:
        original, visible, predicted: `(V, V, V)` on the model's grid: decoded tokens, with masked ones at their
            mean, and with masked ones as predicted.
        unit: unit of the colour bar.
    """
    span = max(float(np.percentile(np.abs(original), 99.5)), 1e-12)
    style = {"cmap": "RdBu_r", "vmin": -span, "vmax": span}
    columns = {"decoded tokens": original, "masked ones at their mean": visible, "masked ones predicted": predicted}
    figure = new_figure(9.0, 9.2)
    panels = figure.subplots(3, 3)
    centre = nearest_voxel((0, 0, 0), original.shape[0])
    for axis, row in enumerate(panels):
        for panel, (name, volume) in zip(row, columns.items(), strict=True):
            image = show_slice(panel, volume, axis, centre[axis], **style)
            if axis == 0:
                panel.set_title(name, fontsize=11)
        row[0].set_ylabel(f"{PLANES[axis]}, {COORDINATES[axis]} = 0 mm")
    figure.colorbar(image, ax=panels, orientation="horizontal", fraction=0.03, pad=0.02, label=unit)
    figure.suptitle(title, fontsize=13)
    return figure
