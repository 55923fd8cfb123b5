"""Parts that figures share: a figure without pyplot, slices of a volume, colours, PNG files.

Volumes are cubes of the model's grid: x runs from right to left, y from back to front, z from foot to head.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tablet_hf.files import atomic_write
from tablet_hf.grid import grid_affine

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

__all__ = ["label_panel", "nearest_voxel", "new_figure", "save_figure", "show_slice"]

PLANES = ("sagittal", "coronal", "axial")
COORDINATES = ("x", "y", "z")
EDGES = (("back", "front"), ("R", "L"), ("R", "L"))
"""Left and right edge of the slice of each plane, as `show_slice` draws it."""

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
"""Okabe & Ito's colours, which remain distinct with any colour vision."""


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of this size in inches, independent of pyplot and of a display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def label_panel(panel: "Axes", x: str = "", y: str = "", title: str = "") -> None:
    """Set the labels and the title of a panel, and hide its upper and right spine."""
    panel.set(xlabel=x, ylabel=y)
    panel.set_title(title, fontsize=11)
    panel.spines[["top", "right"]].set_visible(False)


def nearest_voxel(point_mm: Sequence[float], volume_size: int) -> np.ndarray:
    """Return the index `(3,)` of the voxel of the model's grid nearest to a point in MNI152 mm."""
    index = np.linalg.inv(grid_affine(volume_size)) @ [*point_mm, 1]
    return np.clip(np.rint(index[:3]).astype(int), 0, volume_size - 1)


def show_slice(panel: "Axes", volume: np.ndarray, axis: int, index: int, **style: Any) -> "AxesImage":
    """Draw one slice of a volume `(V, V, V)`, upright, with its edges named; `style` goes to `imshow`."""
    image = panel.imshow(volume.take(index, axis=axis).T[::-1], interpolation="nearest", **style)
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set_visible(False)
    for x, align, text in zip((0.02, 0.98), ("left", "right"), EDGES[axis], strict=True):
        panel.text(x, 0.02, text, transform=panel.transAxes, ha=align, va="bottom", fontsize=8)
    return image


def save_figure(figure: "Figure", path: Path, dots_per_inch: int = 110) -> Path:
    """Write a figure as PNG and return its path."""
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, dpi=dots_per_inch, format="png")
    return path
