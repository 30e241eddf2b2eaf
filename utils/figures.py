"""Every picture, and all of matplotlib, which is imported when a picture is drawn and not before."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from utils.image_io import whole_file
from utils.probability import ProbabilityMaps
from utils.uncertainty import readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

BLUE, GREEN, ORANGE, PURPLE = (30, 100, 255), (0, 200, 83), (255, 145, 0), (190, 40, 220)
METHOD_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")  # Tol's, safe for colour-blind eyes
# Of class 1, 2, ... where there are several; saturated, to be told from skin.
CLASS_COLOURS = (GREEN, BLUE, (240, 220, 0), (230, 30, 60), (0, 200, 220), ORANGE, PURPLE)
_LONGEST_SIDE = 768  # pixels of a panel's image; more is not seen


def overlay(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], opacity: float = 0.4) -> np.ndarray:
    """An image with an area tinted and outlined.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) bool, the area.
        colour: red, green and blue, 0 to 255.
        opacity: of the tint, from 0 to 1.

    Returns:
        (H, W, 3) uint8.
    """
    inside = np.pad(mask, 1, mode="edge")
    outline = mask & ~(inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:])
    alpha = (opacity * mask + (1 - opacity) * outline)[..., None]
    return np.round(image * (1 - alpha) + np.array(colour) * alpha).astype(np.uint8)


def tinted(image: np.ndarray, classes: np.ndarray, n_classes: int, colour: tuple[int, int, int]) -> np.ndarray:
    """An image with its classes tinted and outlined, all but the background.

    Args:
        image: (H, W, 3) uint8.
        classes: (H, W) class indices.
        n_classes: number of classes.
        colour: red, green and blue, 0 to 255, where there is one; several have each its own.

    Returns:
        (H, W, 3) uint8.
    """
    for k in range(1, n_classes):
        image = overlay(image, classes == k, colour if n_classes == 2 else class_colour(k))
    return image


def class_colour(k: int) -> tuple[int, int, int]:
    """The colour of class k, from 1 on, where there are several."""
    return CLASS_COLOURS[(k - 1) % len(CLASS_COLOURS)]


# -- an image and what is predicted of it ------------------------------------------------------------------------------


@dataclass
class Row:
    """What a row of a figure shows, at a size that can be seen.

    Attributes:
        image: (h, w, 3) uint8.
        truth: (h, w) true class indices, or None.
        maps: for each method by its name the (h, w) probability of anything but background and the (h, w) predictive
            entropy, in nats.
        classes: (h, w) predicted class indices, or None.
        n_classes: number of classes.
        title: a line above the row.
    """

    image: np.ndarray
    truth: np.ndarray | None
    maps: dict[str, tuple[np.ndarray, np.ndarray]]
    classes: np.ndarray | None = None
    n_classes: int = 2
    title: str = ""


def row(
    image: Image.Image, classes: np.ndarray, maps: ProbabilityMaps, truth: np.ndarray | None = None, title: str = ""
) -> Row:
    """The row of an image.

    Args:
        image: RGB.
        classes: (H, W) predicted class indices.
        maps: of the image, with `predictive_entropy`.
        truth: (H, W) true class indices.
        title: a line above the row.
    """
    s = shown(image.size)  # copied, or else all of the image would be kept
    probability, entropy = 1 - maps.probs[0][s].cpu().numpy(), maps.predictive_entropy[s].cpu().numpy().copy()
    true_classes = None if truth is None else truth[s].copy()
    pixels, classes = np.asarray(image)[s].copy(), classes[s].copy()
    return Row(pixels, true_classes, {"": (probability, entropy)}, classes, len(maps.probs), title)


def shown(size: tuple[int, int]) -> tuple[slice, slice]:
    """Which rows and columns of an image of that width and height are drawn."""
    step = max(1, math.ceil(max(size) / _LONGEST_SIDE))
    return slice(None, None, step), slice(None, None, step)


def draw_predictions(rows: Sequence[Row], new_figure: Callable[..., Figure] | None = None) -> Figure:
    """A row for each image: image, truth and errors if there is a truth, predicted mask, probability, entropy.

    Args:
        rows: of the images.
        new_figure: makes the figure; `Figure` if None.
    """
    panels = []
    for one in rows:
        image, classes, truth = one.image, one.classes, one.truth
        columns = [("Image", image, {})]
        if truth is not None:
            columns.append(("Truth", tinted(image, truth, one.n_classes, BLUE), {}))
        columns.append(("Prediction", tinted(image, classes, one.n_classes, GREEN), {}))
        if truth is not None:
            grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
            wrong = overlay(grey, (truth != classes) & (truth > 0), ORANGE, opacity=0.7)
            wrong = overlay(wrong, (truth == 0) & (classes > 0), PURPLE, opacity=0.7)
            columns.append(("Errors: missed (orange), extra (purple)", wrong, {}))
        panels.append(columns + _map_panels(one))
    return _draw_grid(panels, [one.title for one in rows], max(one.n_classes for one in rows), new_figure)


def draw_comparison(rows: Sequence[Row]) -> Figure:
    """A row for each image: image, truth, and probability and entropy of each method."""
    panels = []
    for one in rows:
        columns = [("Image", one.image, {})]
        if one.truth is not None:
            columns.append(("Truth", tinted(one.image, one.truth, one.n_classes, BLUE), {}))
        panels.append(columns + _map_panels(one))
    return _draw_grid(panels, [one.title for one in rows], max(one.n_classes for one in rows))


def _map_panels(one: Row) -> list[tuple[str, np.ndarray, dict[str, Any]]]:
    panels = []
    for method, (probability, entropy) in one.maps.items():
        of_method = f"\n{method}" if method else ""
        panels += [
            (f"Probability{of_method}", probability, {"cmap": "viridis", "vmin": 0, "vmax": 1}),
            (f"Entropy (nats){of_method}", entropy, {"cmap": "inferno", "vmin": 0, "vmax": math.log(one.n_classes)}),
        ]
    return panels


def _draw_grid(
    panels: Sequence[Sequence[tuple[str, np.ndarray, dict[str, Any]]]],
    titles: Sequence[str],
    n_classes: int,
    new_figure: Callable[..., Figure] | None = None,
) -> Figure:
    """Panels (title, picture, style), a list for each row; a map gets a colour bar, several classes a legend."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    width = 3.3  # inches of a panel
    heights = [min(max(width * one[0][1].shape[0] / one[0][1].shape[1], 1.5), 8) for one in panels]
    size = (width * len(panels[0]) + 1, sum(heights) + 0.45 * len(panels) + 0.5)
    figure = (new_figure or Figure)(figsize=size, layout="constrained")
    strips = np.atleast_1d(figure.subfigures(len(panels), 1, height_ratios=heights))
    for i, (strip, columns, title) in enumerate(zip(strips, panels, titles, strict=True)):
        axes = np.atleast_1d(strip.subplots(1, len(columns)))
        for ax, (name, values, style) in zip(axes, columns, strict=True):
            picture = ax.imshow(values, interpolation="nearest", **style)
            if i == 0:
                ax.set_title(name, fontsize=11)
            ax.set_axis_off()
            if style:
                figure.colorbar(picture, ax=ax, shrink=0.85, pad=0.02)
        strip.suptitle(title, fontsize=10, x=0.005, ha="left")
    if n_classes > 2:
        colours = {k: np.array(class_colour(k)) / 255 for k in range(1, n_classes)}
        patches = [Patch(color=colour, label=f"class {k}") for k, colour in colours.items()]
        figure.legend(handles=patches, loc="outside upper right", ncols=min(n_classes - 1, 8))
    return figure


# -- numbers of sets of images -----------------------------------------------------------------------------------------


def draw_reliability(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Reliability diagrams of several methods, top-label and foreground.

    Args:
        results: by the method's name what `metrics.evaluate_set` returned.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.4), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", height_ratios=(3, 1))
    lowest = min(1 / len(result["run"]["mask_values"]) for result in results.values())
    kinds = {
        "top_label": ("confidence", "accuracy", (lowest, 1)),
        "foreground": ("probability of lesion", "part that is lesion", (0, 1)),
    }
    for (upper, lower), (kind, (x, y, limits)) in zip(axes.T, kinds.items(), strict=True):
        for colour, (name, result) in zip(itertools.cycle(METHOD_COLOURS), results.items(), strict=False):
            bins = result["reliability"][kind]
            n, total, hits = (np.array(bins[key]) for key in ("pixels", "probability", "hits"))
            used = n > 0
            ece = result["calibration"][f"ece_{kind}"]["value"]
            label = f"{name} (ECE {ece:.3f})"
            upper.plot(total[used] / n[used], hits[used] / n[used], "o-", color=colour, markersize=4, label=label)
            edges = np.linspace(0, 1, len(n) + 1)
            lower.stairs(n / n.sum(), edges, color=colour)
        upper.plot([0, 1], [0, 1], "--", color="0.6", linewidth=1)
        upper.set(xlim=limits, ylim=(0, 1), ylabel=y, title=kind.replace("_", "-"))
        upper.legend(fontsize=9, loc="lower right")
        lower.set(yscale="log", xlabel=x, ylabel="part of the pixels")
        for ax in (upper, lower):
            ax.grid(alpha=0.25)
    return figure


def draw_risk_coverage(results: Mapping[str, Mapping[str, Any]], score: str = "soft_dice_confidence") -> Figure:
    """The mean risk, 1 - Dice, of the most confident images, against their part of all.

    Args:
        results: by the method's name what `metrics.evaluate_set` returned.
        score: by which the images are sorted.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    ax = figure.subplots()
    for colour, (name, result) in zip(itertools.cycle(METHOD_COLOURS), results.items(), strict=False):
        curve, selective = result["risk_coverage"][score], result["selective"]
        label = (
            f"{name} (AURC {selective[score]['aurc']['value']:.3f}, best order {selective['best_order']['aurc']:.3f})"
        )
        ax.plot(curve["coverage"], curve["risk"], color=colour, label=label)
        ax.axhline(selective["random_order"]["aurc"], color=colour, linestyle=":", linewidth=1)
    ax.set(
        xlabel=f"coverage: part of the images that is kept, by {readable(score)}",
        ylabel="mean risk of the kept images, 1 - Dice",
        xlim=(0, 1),
        ylim=(0, None),
    )
    ax.grid(alpha=0.25)
    ax.legend(fontsize=9, title="dotted: random order", title_fontsize=9)
    return figure


def draw_passes(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> Figure:
    """What more passes of MC dropout bring: a panel for each metric, against the number of passes.

    Args:
        curves: by the metric's name the numbers of passes and the values.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(curves), 3), layout="constrained")
    axes = figure.subplots(1, len(curves), squeeze=False)
    for ax, (name, (passes, values)) in zip(axes[0], curves.items(), strict=True):
        ax.plot(passes, values, "o-", color=METHOD_COLOURS[0], markersize=3)
        ax.set(xscale="log", xlabel="passes T", title=name)
        ax.grid(alpha=0.25)
    return figure


# -- out ---------------------------------------------------------------------------------------------------------------


def save_figure(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Write a figure as a PNG, whole or not at all."""
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None}, pil_kwargs={"compress_level": 2})


def show_predictions(rows: Sequence[Row], instead: Path) -> None:
    """Show `draw_predictions` in a window until it is closed; where there is no display, save it as `instead`."""
    import matplotlib.pyplot as plt

    if plt.get_backend().lower() == "agg":
        save_figure(draw_predictions(rows), instead)
        logger.warning("There is no display for --viz: the picture is in %s", instead)
        return
    figure = draw_predictions(rows, plt.figure)
    try:
        plt.show()
    finally:
        plt.close(figure)
