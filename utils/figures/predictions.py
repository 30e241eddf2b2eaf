"""Figures of images and what is predicted of them: one row per image."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from utils import IGNORED_CLASS
from utils.figures.environment import load_matplotlib
from utils.figures.grid import Column, draw_grid, save_figure
from utils.figures.palette import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    GROUND_TRUTH,
    IGNORED,
    INNER_CONTOUR,
    OUTER_CONTOUR,
    PREDICTION,
    class_colour,
)
from utils.inference.guarantees import INNER, OUTER
from utils.inference.maps import ProbabilityMaps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

_MAX_SIDE = 768  # pixels of a panel's values; more cannot be seen
_CONTOUR_WIDTH = 1 / 160  # of those of the masks with a guarantee, relative to the image's longer side
_IGNORED_OPACITY = 0.75
_ERRORS = ((FALSE_NEGATIVE, "false negatives"), (FALSE_POSITIVE, "false positives"))
_CONTOURS = ((OUTER, OUTER_CONTOUR, "outer mask"), (INNER, INNER_CONTOUR, "inner mask"))  # on the prediction
_GUARANTEED = {
    "outer_false_negative_rate": "false negative rate of the outer mask",
    "inner_false_discovery_proportion": "false discoveries of the inner mask",
}

Colour = tuple[int, int, int]


@dataclass
class FigureRow:
    """What a figure shows of an image, at a reduced size.

    Attributes:
        image: (h, w, 3) uint8.
        target: (h, w) class indices of the ground truth, or None.
        maps: by the display name of each method the (h, w) foreground probability, or that of the class that was saved,
            and the (h, w) predictive entropy, in nats.
        classes: (h, w) predicted class indices, or None.
        n_classes: number of classes.
        caption: a line below the row.
        regions: (h, w) bool, the outer and the inner mask if there is a guarantee, by `OUTER` and `INNER`.
    """

    image: np.ndarray
    target: np.ndarray | None
    maps: dict[str, tuple[np.ndarray, np.ndarray]]
    classes: np.ndarray | None = None
    n_classes: int = 2
    caption: str = ""
    regions: dict[str, np.ndarray] = field(default_factory=dict)


def prediction_row(
    image: Image.Image,
    classes: np.ndarray,
    maps: ProbabilityMaps,
    target: np.ndarray | None = None,
    caption: str = "",
    regions: Mapping[str, np.ndarray] | None = None,
) -> FigureRow:
    """The row of an image and its prediction.

    Args:
        image: RGB.
        classes: (H, W) predicted class indices.
        maps: of the image, with `predictive_entropy`.
        target: (H, W) class indices of the ground truth.
        caption: a line below the row.
        regions: (H, W) bool, the outer and the inner mask if there is a guarantee, by `OUTER` and `INNER`.
    """
    step = reduction(image.size)  # the slices are copied, so that nothing of full size is kept
    foreground, entropy = 1 - maps.probs[0][step].cpu().numpy(), maps.predictive_entropy[step].cpu().numpy().copy()
    return FigureRow(
        np.asarray(image)[step].copy(),
        None if target is None else target[step].copy(),
        {"": (foreground, entropy)},
        classes[step].copy(),
        len(maps.probs),
        caption,
        {name: region[step].copy() for name, region in (regions or {}).items()},
    )


def format_scores(name: str, scores: Mapping[str, Any]) -> str:
    """The caption of an image: its name and scores."""
    parts = [name]
    if math.isfinite(scores.get("dice", math.nan)):
        parts.append(f"Dice {scores['dice']:.3f}, Jaccard {scores['jaccard']:.3f}")
    for loss, title in _GUARANTEED.items():
        if math.isfinite(scores.get(loss, math.nan)):
            parts.append(f"{title} {scores[loss]:.3f}")
    parts.append(f"soft Dice confidence {scores['soft_dice_confidence']:.3f}")
    if scores["pairwise_dice"] is not None:
        parts.append(f"pairwise Dice {scores['pairwise_dice']:.3f}")
        parts.append(f"mean area {scores['area_mean']:.0f} ± {scores['area_std']:.0f} pixels")
    else:
        parts.append(f"area {scores['area']} pixels")
    parts.append(f"mean entropy {scores['mean_entropy']:.3f} nats")
    return " · ".join(parts)


def reduction(size: tuple[int, int]) -> tuple[slice, slice]:
    """Which rows and columns of an image of that width and height a figure shows."""
    step = max(1, math.ceil(max(size) / _MAX_SIDE))
    return slice(None, None, step), slice(None, None, step)


def draw_predictions(rows: Sequence[FigureRow], new_figure: Callable[..., Figure] | None = None) -> Figure:
    """One row per image: image, ground truth if there is any, prediction, errors, probability, entropy.

    Args:
        rows: with the same methods; those without ground truth have white panels where others have it.
        new_figure: makes the figure; `matplotlib.figure.Figure` if None.
    """
    n_classes = max(row.n_classes for row in rows)
    labelled = any(row.target is not None for row in rows)
    legend = _class_legend(n_classes)
    contours = tuple(entry for name, *entry in _CONTOURS if any(name in row.regions for row in rows))
    truth = [Column("Ground truth", legend=_ignored_legend(rows))] * labelled
    columns = [Column("Image"), *truth, Column("Prediction", legend=(*legend, *contours))]
    columns += [Column("Errors", legend=_ERRORS)] * labelled
    panels = []
    for row in rows:
        prediction = tint_classes(row.image, row.classes, row.n_classes, PREDICTION)
        for name, colour, _ in _CONTOURS:
            if name in row.regions:
                width = math.ceil(max(row.image.shape) * _CONTOUR_WIDTH)
                prediction = tint_region(prediction, row.regions[name], colour, opacity=0, width=width)
        if row.target is not None:
            target = tint_target(row)
            errors = tint_errors(row.image, row.classes, row.target)
            panels.append([row.image, target, prediction, errors])
        elif labelled:
            white = np.full_like(row.image, 255)
            panels.append([row.image, white, prediction, white])
        else:
            panels.append([row.image, prediction])
    titles = dict.fromkeys(rows[0].maps, "Foreground probability") if n_classes > 2 else {}
    return _with_maps(columns, panels, rows, titles, new_figure)


def draw_comparison(rows: Sequence[FigureRow], probability: Mapping[str, str] | None = None) -> Figure:
    """One row per image: image, ground truth, and probability and entropy by each method.

    Args:
        rows: with ground truth, and the same methods.
        probability: the title of the probabilities of each method.
    """
    legend = _class_legend(max(row.n_classes for row in rows))
    columns = [Column("Image"), Column("Ground truth", legend=(*legend, *_ignored_legend(rows)))]
    panels = [[row.image, tint_target(row)] for row in rows]
    return _with_maps(columns, panels, rows, probability or {})


def _with_maps(
    columns: list[Column],
    panels: list[list[np.ndarray]],
    rows: Sequence[FigureRow],
    probability: Mapping[str, str],
    new_figure: Callable[..., Figure] | None = None,
) -> Figure:
    """The figure of these columns, with those of each method's probability and entropy added."""
    for method in rows[0].maps:
        title = probability.get(method, "Probability")
        columns = [*columns, Column(title, "probability", method), Column("Entropy", "entropy", method)]
    panels = [
        [*images, *(values for pair in row.maps.values() for values in pair)]
        for images, row in zip(panels, rows, strict=True)
    ]
    max_entropy = math.log(max(row.n_classes for row in rows))
    return draw_grid(columns, panels, [row.caption for row in rows], max_entropy, new_figure)


def _class_legend(n_classes: int) -> tuple[tuple[Colour, str], ...]:
    """The colours of several classes; none for two."""
    return tuple((class_colour(k), f"class {k}") for k in range(1, n_classes)) if n_classes > 2 else ()


def _ignored_legend(rows: Sequence[FigureRow]) -> tuple[tuple[Colour, str], ...]:
    """The colour of pixels that do not count, if any ground truth has some."""
    occurs = any(row.target is not None and (row.target == IGNORED_CLASS).any() for row in rows)
    return ((IGNORED, "ignored"),) if occurs else ()


def tint_target(row: FigureRow) -> np.ndarray:
    """The image of a row with its ground truth, as `tint_classes`, in which pixels that do not count are grey."""
    image = tint_classes(row.image, row.target, row.n_classes, GROUND_TRUTH)
    return tint_region(image, row.target == IGNORED_CLASS, IGNORED, opacity=_IGNORED_OPACITY)


def tint_classes(image: np.ndarray, classes: np.ndarray, n_classes: int, colour: Colour) -> np.ndarray:
    """An image with all classes but the background tinted and outlined.

    Args:
        image: (H, W, 3) uint8.
        classes: (H, W) class indices.
        n_classes: number of classes.
        colour: red, green and blue, 0 to 255, of a single foreground class; several have colours of their own.

    Returns:
        (H, W, 3) uint8.
    """
    for k in range(1, n_classes):
        image = tint_region(image, classes == k, colour if n_classes == 2 else class_colour(k))
    return image


def tint_errors(image: np.ndarray, classes: np.ndarray, target: np.ndarray) -> np.ndarray:
    """A greyscale image with false negatives and false positives tinted; a wrong foreground class is a false negative.

    Args:
        image: (H, W, 3) uint8.
        classes, target: (H, W) class indices, predicted and of the ground truth, of which ignored pixels are grey.

    Returns:
        (H, W, 3) uint8.
    """
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    missed = (target != classes) & (target > 0) & (target != IGNORED_CLASS)
    grey = tint_region(grey, missed, FALSE_NEGATIVE, opacity=0.75)
    grey = tint_region(grey, (target == 0) & (classes > 0), FALSE_POSITIVE, opacity=0.75)
    return tint_region(grey, target == IGNORED_CLASS, IGNORED, opacity=_IGNORED_OPACITY)


def tint_region(
    image: np.ndarray, region: np.ndarray, colour: Colour, opacity: float = 0.35, width: int = 1
) -> np.ndarray:
    """An image with a region tinted and outlined.

    Args:
        image: (H, W, 3) uint8.
        region: (H, W) bool.
        colour: red, green and blue, 0 to 255.
        opacity: of the tint, in [0, 1]; the outline is opaque.
        width: of the outline, which is inside the region, in pixels.

    Returns:
        (H, W, 3) uint8.
    """
    within = region
    for _ in range(width):
        padded = np.pad(within, 1, mode="edge")
        within = within & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    alpha = (opacity * region + (1 - opacity) * (region & ~within))[..., None]
    return np.round(image * (1 - alpha) + np.array(colour) * alpha).astype(np.uint8)


def show_predictions(rows: Sequence[FigureRow], fallback: Path | None = None) -> None:
    """Show `draw_predictions` in a window until it is closed; where no window can be opened, warn.

    Args:
        rows: of the figure.
        fallback: file to which the figure is written instead.
    """
    load_matplotlib()
    import matplotlib.pyplot as plt

    figure = None
    try:
        if chosen := os.environ.get("MPLBACKEND"):
            plt.switch_backend(chosen)
        if plt.get_backend().lower() != "agg":
            figure = draw_predictions(rows, plt.figure)
            plt.show()
            return
        reason = "There is no display to show the figure on"
    except Exception as error:  # of a toolkit, which has errors of its own
        logger.debug("", exc_info=True)
        reason = f"The figure cannot be shown ({error})"
    finally:
        if figure is not None:
            plt.close(figure)
    if fallback is None:
        logger.warning("%s", reason)
    else:
        save_figure(draw_predictions(rows), fallback)
        logger.warning("%s: it has been written to %s", reason, fallback)
