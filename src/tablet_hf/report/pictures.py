"""Figures: what reconstruction keeps, how training went, what was predicted. Arrays go in, matplotlib figures come out.

    figure = reconstruction_figure(original, decoded, title="Frame 0")      # two (V, V, V) arrays
    save_figure(figure, Path("reconstruction.png"))

Volumes are cubes of the model's grid: x runs from right to left, y from back to front, z from foot to head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tablet_hf.files import atomic_write
from tablet_hf.grid import grid_affine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Course",
    "learning_curve_figure",
    "networks_figure",
    "predictions_figure",
    "reconstruction_figure",
    "results_figure",
    "save_figure",
    "time_series_figure",
]

PLANES = ("sagittal", "coronal", "axial")
COORDINATES = ("x", "y", "z")
EDGES = (("back", "front"), ("R", "L"), ("R", "L"))
"""What is left and right in a slice of each plane, as `_upright` turns it."""

# Okabe & Ito's colours, which subjects with any colour vision tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
GROUP_COLOURS = (BLUE, ORANGE)


@dataclass(frozen=True)
class Course:
    """Two time series `(frames,)` of one place: from the scan, and after encoding and decoding."""

    title: str
    original: np.ndarray
    decoded: np.ndarray


def reconstruction_figure(
    original: np.ndarray,
    decoded: np.ndarray,
    title: str,
    unit: str,
    centre_mm: Sequence[float] = (0.0, 0.0, 0.0),
    is_signed: bool = False,
) -> "Figure":
    """One frame before and after the autoencoder, and what is lost, in three planes through a point.

    Args:
        original, decoded: `(V, V, V)` on the model's grid.
        unit: of the numbers, for the colour bars.
        centre_mm: the point in MNI152 mm.
        is_signed: whether the numbers are changes about 0 rather than intensities from 0 on.
    """
    difference = decoded - original
    span = float(np.percentile(np.abs(original[original != 0]), 99.5)) if original.any() else 1.0
    # What is lost of a change is read in the scale of the change; of an intensity it would not be seen there.
    lost = span if is_signed else max(float(np.percentile(np.abs(difference), 99.5)), 1e-12)
    signal = {"cmap": "RdBu_r", "vmin": -span, "vmax": span} if is_signed else {"cmap": "gray", "vmin": 0, "vmax": span}
    columns = (
        ("original", original, signal),
        ("reconstruction", decoded, signal),
        ("reconstruction − original", difference, {"cmap": "RdBu_r", "vmin": -lost, "vmax": lost}),
    )
    figure = _figure(9.0, 9.2)
    panels = figure.subplots(3, 3)
    place = _voxel(centre_mm, original.shape[0])
    for axis, row in enumerate(panels):
        for panel, (name, volume, style) in zip(row, columns, strict=True):
            image = _show(panel, volume, axis, place[axis], **style)
            if axis == 0:
                panel.set_title(name, fontsize=11)
            if axis == 2:
                bar = figure.colorbar(image, ax=panel, orientation="horizontal", fraction=0.05, pad=0.09, label=unit)
                bar.ax.locator_params(nbins=5)
        row[0].set_ylabel(f"{PLANES[axis]}, {COORDINATES[axis]} = {centre_mm[axis]:.0f} mm")
    figure.suptitle(title, fontsize=13)
    return figure


def networks_figure(
    background: np.ndarray,
    maps: Mapping[str, np.ndarray],
    courses: Mapping[str, np.ndarray],
    repetition_time: float,
    centre_mm: Sequence[float],
    title: str,
) -> "Figure":
    """Where networks lie, and one example of their time series for each group.

    Args:
        background: `(V, V, V)` intensities.
        maps: for each network `(V, V, V)` in [0, 1].
        courses: for each group `(frames, networks)` in percent, the networks in the order of `maps`.
        repetition_time: seconds.
        centre_mm: the point that the planes go through.
    """
    from matplotlib.lines import Line2D

    colours = dict(zip(maps, (ORANGE, BLUE, GREEN), strict=False))
    figure = _figure(9.0, 6.4)
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 0.9))
    place = _voxel(centre_mm, background.shape[0])
    for axis, panel in enumerate(upper.subplots(1, 3)):
        _show(panel, background, axis, place[axis], cmap="gray", vmin=0, vmax=np.percentile(background, 99.5))
        panel.set_title(f"{PLANES[axis]}, {COORDINATES[axis]} = {centre_mm[axis]:.0f} mm", fontsize=10)
        for name, volume in maps.items():
            # Nodes seldom are in one plane: what is drawn is their shadow along the axis.
            panel.contour(_upright(volume.max(axis=axis)), levels=[0.5], colors=colours[name], linewidths=1.6)
    upper.suptitle(title, fontsize=13)
    panels = np.atleast_1d(lower.subplots(1, len(courses), sharey=True))
    for panel, (group, values) in zip(panels, courses.items(), strict=True):
        seconds = np.arange(len(values)) * repetition_time
        for name, course in zip(maps, values.T, strict=True):
            panel.plot(seconds, course, "o-", color=colours[name], linewidth=1.8, markersize=4)
        _plain(panel, "time (s)", "", group)
    panels[0].set_ylabel("change about the mean (%)")
    handles = [Line2D([], [], color=colour, linewidth=2) for colour in colours.values()]
    lower.legend(handles, list(colours), loc="outside lower center", ncols=len(colours), frameon=False)
    return figure


def time_series_figure(courses: Sequence[Course], repetition_time: float, title: str, unit: str) -> "Figure":
    """Courses of some places from the scan and after decoding, with their correlation."""
    figure = _figure(9.0, 1.0 + 2.1 * ((len(courses) + 1) // 2))
    panels = figure.subplots((len(courses) + 1) // 2, 2, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat[len(courses) :]:
        panel.remove()
    for panel, course in zip(panels.flat, courses, strict=False):
        seconds = np.arange(len(course.original)) * repetition_time
        panel.plot(seconds, course.original, "o-", color="black", label="scan", markersize=4)
        panel.plot(seconds, course.decoded, "s--", color=ORANGE, label="decoded from tokens", markersize=4)
        r = np.corrcoef(course.original, course.decoded)[0, 1]
        _plain(panel, "", "", f"{course.title} (r = {r:.2f})")
    for panel in panels[-1]:
        panel.set_xlabel("time (s)")
    for row in panels:
        row[0].set_ylabel(unit)
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(title, fontsize=13)
    return figure


def learning_curve_figure(train_loss: Sequence[float], held_out_loss: Sequence[float], chance_loss: float) -> "Figure":
    """Mean loss by epoch, of the subjects that are trained on and of those held out."""
    figure = _figure(7.0, 3.8)
    panel = figure.subplots()
    panel.axhline(chance_loss, color=GREY, linestyle=":", label="guessing")
    panel.plot(np.arange(1, len(train_loss) + 1), train_loss, color=BLUE, label="training people")
    panel.plot(np.arange(1, len(held_out_loss) + 1), held_out_loss, color=ORANGE, label="people held out")
    panel.set_ylim(bottom=0)
    _plain(panel, "epoch", "cross-entropy (nats)", "Learning curve")
    panel.legend(frameon=False)
    return figure


def predictions_figure(
    names: Sequence[str], labels: Sequence[int], probabilities: Sequence[float], groups: Sequence[str], title: str
) -> "Figure":
    """The probability of the second group that each subject was given; where it falls beyond 0.5, and who is wrong.

    Args:
        names, labels, probabilities: of the subjects; labels are places in `groups`.
        groups: names of the two groups.
    """
    from matplotlib.lines import Line2D

    order = sorted(range(len(names)), key=lambda person: (labels[person], probabilities[person]))
    figure = _figure(7.0, 1.6 + 0.26 * len(names))
    panel = figure.subplots()
    panel.axvline(0.5, color=GREY, linestyle=":")
    for row, person in enumerate(order):
        colour, probability = GROUP_COLOURS[labels[person]], probabilities[person]
        is_right = (probability >= 0.5) == (labels[person] == 1)
        panel.plot([0.5, probability], [row, row], color=colour, linewidth=1.5, alpha=0.6)
        panel.plot(probability, row, "o" if is_right else "X", color=colour, markersize=8)
    panel.set_yticks(range(len(order)), [names[person] for person in order])
    panel.set_xlim(-0.03, 1.03)
    panel.set_ylim(-0.7, len(order) - 0.3)
    _plain(panel, f"predicted probability of “{groups[1]}”", "", title)
    handles = [
        Line2D([], [], color=colour, marker="o", linestyle="", label=f"in truth {group}")
        for group, colour in zip(groups, GROUP_COLOURS, strict=True)
    ] + [Line2D([], [], color=GREY, marker="X", linestyle="", label="wrong")]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def results_figure(
    accuracies: Mapping[str, float], intervals: Mapping[str, tuple[float, float]], chance: float, title: str
) -> "Figure":
    """Accuracies of several methods with their confidence intervals, and chance."""
    figure = _figure(7.0, 1.6 + 0.5 * len(accuracies))
    panel = figure.subplots()
    panel.axvline(100 * chance, color=GREY, linestyle=":")
    for row, (name, accuracy) in enumerate(reversed(accuracies.items())):
        low, high = intervals[name]
        panel.plot([100 * low, 100 * high], [row, row], color=BLUE, linewidth=2)
        panel.plot(100 * accuracy, row, "o", color=BLUE, markersize=9)
    panel.set_yticks(range(len(accuracies)), list(reversed(accuracies)))
    panel.set_xlim(0, 102)
    panel.set_ylim(-0.6, len(accuracies) - 0.4)
    panel.annotate(
        "chance", (100 * chance, 1), (4, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
        va="top", color=GREY,
    )  # fmt: skip
    _plain(panel, "accuracy (%), 95% confidence interval", "", title)
    return figure


def save_figure(figure: "Figure", path: Path, dots_per_inch: int = 110) -> Path:
    """Write a figure as PNG."""
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, dpi=dots_per_inch, format="png")
    return path


# --- parts


def _figure(width: float, height: float) -> "Figure":
    """A figure that belongs to no one: pyplot would keep it, and ask for a screen."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _plain(panel: Any, x: str, y: str, title: str) -> None:
    panel.set_xlabel(x)
    if y:
        panel.set_ylabel(y)
    panel.set_title(title, fontsize=11)
    panel.spines[["top", "right"]].set_visible(False)


def _voxel(place_mm: Sequence[float], volume_size: int) -> np.ndarray:
    """The voxel of the grid nearest to a place in mm, inside the cube."""
    index = np.linalg.inv(grid_affine(volume_size)) @ [*place_mm, 1]
    return np.clip(np.rint(index[:3]).astype(int), 0, volume_size - 1)


def _upright(plane: np.ndarray) -> np.ndarray:
    """Turn a slice (first, second axis of the cube that are left) so that rows run from its second axis's end down."""
    return plane.T[::-1]


def _show(panel: Any, volume: np.ndarray, axis: int, index: int, **style: Any) -> Any:
    """Draw one slice without ticks and say where left and right are."""
    image = panel.imshow(_upright(volume.take(index, axis=axis)), interpolation="nearest", **style)
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[:].set_visible(False)
    colour = "white" if style.get("cmap") == "gray" else "black"
    for x, align, text in zip((0.02, 0.98), ("left", "right"), EDGES[axis], strict=True):
        panel.text(x, 0.02, text, transform=panel.transAxes, ha=align, va="bottom", fontsize=8, color=colour)
    return image
