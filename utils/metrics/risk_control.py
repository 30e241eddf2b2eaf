"""Conformal risk control (Angelopoulos, Bates, Fisch, Lei and Schuster, ICLR 2024): masks with a guarantee.

The outer mask of an image has the pixels whose foreground probability is at least one threshold, the inner mask those
above another. The loss of the outer mask is its false negative rate, the fraction of the lesion outside of it, and that
of the inner mask its false discovery proportion, the fraction of it outside of the lesion; an empty lesion or mask has
no loss. With n calibration images and their mean loss R at a threshold, a further image of the same distribution has an
expected loss of at most (n R + 1) / (n + 1) if the loss of every image is monotone in the threshold.

This holds for exchangeable images. Where only groups of images are exchangeable, such as all images of a patient, n is
the number of groups, and the loss of a group is the mean of its images' losses, which is monotone as well.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils import IGNORED_CLASS

_STEPS, _MAX_LOGIT_OF_STEPS = 998, 12.0

# 1000 thresholds, in equal steps of their logit, so dense near 0 and 1, and at the ends all pixels and none.
RISK_THRESHOLDS = torch.cat(
    [
        torch.zeros(1),
        torch.linspace(-_MAX_LOGIT_OF_STEPS, _MAX_LOGIT_OF_STEPS, _STEPS, dtype=torch.float64).sigmoid().float(),
        torch.ones(1),
    ]
)

# The losses of the outer and the inner mask, with their titles.
REGION_LOSS_TITLES = {
    "outer_false_negative_rate": "False negative rate, outer mask",
    "inner_false_discovery_proportion": "False discoveries, inner mask",
}


@dataclass(frozen=True)
class RiskCurves:
    """The mean losses of calibration images, or of groups of them.

    Attributes:
        images: number of images.
        outer: (K,) float64, the mean false negative rate of the outer mask at each of `RISK_THRESHOLDS`.
        inner: (K,) float64, the mean of the largest false discovery proportion of the inner mask at each threshold or a
            higher one.
        settings: those of the method by which the probabilities were predicted, such as its number of passes; with
            others the losses are others.
        groups: number of groups, over whose mean losses the means are; None if they are over the images.
    """

    images: int
    outer: np.ndarray = field(repr=False)
    inner: np.ndarray = field(repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    groups: int | None = None

    @property
    def n(self) -> int:
        """The number of what is exchangeable: of groups, or without them of images."""
        return self.groups or self.images

    @property
    def unit(self) -> str:
        """What that number counts."""
        return "groups of calibration images" if self.groups else "calibration images"


def foreground_probability(probs: Tensor) -> Tensor:
    """The probability of any class but the background, (H, W), of (1 or C, H, W); 1 channel is that of class 1."""
    return probs[-1] if len(probs) <= 2 else 1 - probs[0]


def image_losses(foreground: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The losses of an image's outer and inner masks at each of `RISK_THRESHOLDS`.

    The false discovery proportion is not monotone in the threshold, so the largest one at any higher threshold counts.

    Args:
        foreground: (H, W) float32, the probability of any class but the background.
        target: (H, W) integer class indices of the ground truth, on the same device; pixels of `IGNORED_CLASS` are not
            counted.

    Returns:
        Two (K,) float64 arrays in [0, 1], the first one increasing, the second one decreasing.
    """
    thresholds, counted = RISK_THRESHOLDS.to(foreground.device), target != IGNORED_CLASS
    lesion = (target > 0)[counted]
    values = foreground[counted].contiguous()
    n, in_lesion = len(thresholds), float(lesion.sum())

    def pixels_above(reached: Tensor) -> np.ndarray:
        """(2, K): pixels outside and inside the lesion that have passed each threshold, from how many each has."""
        counts = torch.bincount(reached + (n + 1) * lesion, minlength=2 * (n + 1)).view(2, n + 1)
        return counts.flip(1).cumsum(1).flip(1)[:, 1:].cpu().double().numpy()

    _, inside = pixels_above(torch.bucketize(values, thresholds, right=True))  # at least the threshold
    outer = 1 - inside / in_lesion if in_lesion else np.zeros(n)
    false, true = pixels_above(torch.bucketize(values, thresholds))  # above the threshold
    inner = false / np.maximum(false + true, 1)
    return outer, np.maximum.accumulate(inner[::-1])[::-1]


def region_losses(outer: np.ndarray, inner: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """The losses of an image's outer and inner mask, NaN if no pixel counts, and their areas in pixels, by name.

    Args:
        outer, inner: (H, W) bool.
        target: (H, W) class indices of the ground truth; pixels of `IGNORED_CLASS` are not counted.
    """
    counted = target != IGNORED_CLASS
    lesion, within = (target > 0) & counted, inner & counted
    losses = [(lesion & ~outer).sum() / max(lesion.sum(), 1), (within & ~lesion).sum() / max(within.sum(), 1)]
    if not counted.any():
        losses = [math.nan, math.nan]
    return {
        **{name: float(loss) for name, loss in zip(REGION_LOSS_TITLES, losses, strict=True)},
        "outer_area": int(outer.sum()),
        "inner_area": int(inner.sum()),
    }


def risk_bound(mean_loss: np.ndarray, n: int) -> np.ndarray:
    """The bound on the expected loss of a further image, or group, (n R + 1) / (n + 1).

    Args:
        mean_loss: R, of any shape, of losses in [0, 1].
        n: number of calibration images, or of groups of them.
    """
    return (n * mean_loss + 1) / (n + 1)


def required_number(level: float) -> int:
    """The smallest number of images, or groups, with which a level can be guaranteed: n + 1 >= 1 / (1 - level)."""
    return max(1, math.ceil(1 / _tolerated(level) - 1 - 1e-9))


def controlling_thresholds(curves: RiskCurves, level: float) -> tuple[float, float]:
    """The thresholds of the smallest outer and the largest inner mask whose expected losses are at most 1 - level.

    At a low level the largest inner mask may be larger than the smallest outer one. Both thresholds are then one half,
    or whatever between them is nearest to it: every image's losses are monotone, so both masks keep their bounds.

    Args:
        curves: of the calibration images.
        level: in (0, 1), such as 0.9, for which there are as many as the `required_number`.
    """
    thresholds, tolerated = RISK_THRESHOLDS.numpy(), _tolerated(level)
    outer = np.flatnonzero(risk_bound(curves.outer, curves.n) <= tolerated + 1e-12)[-1]
    inner = np.flatnonzero(risk_bound(curves.inner, curves.n) <= tolerated + 1e-12)[0]
    if inner < outer:
        return (float(np.clip(0.5, thresholds[inner], thresholds[outer])),) * 2
    return float(thresholds[outer]), float(thresholds[inner])


def _tolerated(level: float) -> float:
    """The tolerated loss 1 - level, without the rounding error that would make 9 images too few for 0.9."""
    return round(1 - level, 12)
