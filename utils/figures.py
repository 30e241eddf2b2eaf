"""Every picture, and all of matplotlib, which is imported when a picture is drawn and not before."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from utils.image_io import whole_file
from utils.probability import ProbabilityMaps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

GREEN = (0, 200, 83)
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


def draw_prediction(image: Image.Image, classes: np.ndarray, maps: ProbabilityMaps, title: str = "") -> Figure:
    """One row: the image, its predicted segmentation, the probability and the predictive entropy.

    Args:
        image: RGB.
        classes: (H, W) predicted class indices.
        maps: of the image, with `predictive_entropy`; the probability shown is that of anything but background.
        title: of the figure.
    """
    import matplotlib.pyplot as plt

    step = max(1, math.ceil(max(image.size) / _LONGEST_SIDE))
    pixels = np.asarray(image)[::step, ::step]
    n_classes = len(maps.probs)
    panels = [
        ("Image", pixels, {}),
        ("Prediction", overlay(pixels, classes[::step, ::step] > 0, GREEN), {}),
        ("Probability", 1 - maps.probs[0, ::step, ::step].cpu().numpy(), {"cmap": "viridis", "vmin": 0, "vmax": 1}),
        (
            "Predictive entropy (nats)",
            maps.predictive_entropy[::step, ::step].cpu().numpy(),
            {"cmap": "inferno", "vmin": 0, "vmax": math.log(n_classes)},
        ),
    ]
    height = 3.2 * image.height / image.width
    figure, axes = plt.subplots(1, len(panels), figsize=(13.6, min(max(height, 1.5), 12) + 0.9), layout="constrained")
    for ax, (name, values, style) in zip(axes, panels, strict=True):
        shown = ax.imshow(values, interpolation="nearest", **style)
        ax.set_title(name, fontsize=11)
        ax.set_axis_off()
        if style:
            figure.colorbar(shown, ax=ax, shrink=0.9, pad=0.02)
    figure.suptitle(title, fontsize=12)
    return figure


def show_figure(figure: Figure, instead: Path) -> None:
    """Show a figure in a window until it is closed; where there is no display, save it to the file `instead`."""
    import matplotlib.pyplot as plt

    try:
        if plt.get_backend().lower() != "agg":
            plt.show()
            return
        with whole_file(instead) as file:
            figure.savefig(file, format="png", dpi=110)
        logger.warning("There is no display for --viz: the picture is in %s", instead)
    finally:
        plt.close(figure)
