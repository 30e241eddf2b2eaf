"""Entropy of probabilities, and the scores of an image that need no ground truth."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# The scores by which images can be ranked; 1 where a high value indicates a good segmentation, -1 where a low one does.
CONFIDENCE_SIGNS = {"soft_dice_confidence": 1, "pairwise_dice": 1, "mean_entropy": -1, "area_variation": -1}


_TINY = 1e-38  # at which probabilities are clamped, so that 0 ln 0 is 0
_MAX_PROBABILITY = 1 - 1e-7  # at which probabilities are clamped, so that ln(1 - p) is finite


def score_title(score: str) -> str:
    """The display name of a score."""
    return score.replace("_", " ").replace("dice", "Dice")


def entropy(probs: Tensor) -> Tensor:
    """Entropy in nats (Shannon 1948) of probabilities.

    Args:
        probs: (..., C, H, W), without gradients; with C = 1 the probability of one of two classes.

    Returns:
        (..., H, W), in [0, ln C] (ln 2 for C = 1).
    """
    first, *others = probs.unbind(dim=-3)
    others = others or [1 - first]
    total = torch.zeros_like(first)
    for p in (first, *others):
        total.addcmul_(p.clamp(min=_TINY).log_(), p)  # several times as fast as torch.special.entr
    return total.neg_().clamp_(0, math.log(1 + len(others)))


@dataclass
class _ClassSums:
    """Sums over pixels for one class.

    Attributes:
        area: number of pixels for which the class is predicted.
        prob_in_mask: sum of its probabilities over these pixels.
        prob: sum of its probabilities over all pixels.
        log_prob_empty: sum of ln(1 - p); no longer updated once the class is predicted anywhere.
    """

    area: int = 0
    prob_in_mask: float = 0.0
    prob: float = 0.0
    log_prob_empty: float = 0.0

    def add(self, probs: Tensor, classes: Tensor, k: int) -> None:
        mask = (classes == k).to(probs.dtype)
        self.area += int(_sum(mask))
        self.prob_in_mask += _sum(mask.mul_(probs))
        self.prob += _sum(probs)
        if not self.area:
            self.log_prob_empty += _sum(probs.clamp(max=_MAX_PROBABILITY).neg_().log1p_())

    def confidence(self) -> float:
        return 2 * self.prob_in_mask / (self.prob + self.area) if self.area else math.exp(self.log_prob_empty)


class ImageScores:
    """The scores of an image that need no ground truth, from sums over its pixels, which can be added in blocks."""

    def __init__(self) -> None:
        self._pixels = 0
        self._entropy = self._largest = 0.0
        self._classes: list[_ClassSums] = []  # of all but the background
        self._overlaps: Tensor | None = None

    def add(self, probs: Tensor, predictive_entropy: Tensor, classes: Tensor, overlaps: Tensor | None = None) -> None:
        """Add a block of pixels.

        Args:
            probs: (C, H, W), the mean over the samples.
            predictive_entropy: (H, W) in nats.
            classes: (H, W) predicted class indices, on the same device.
            overlaps: of these pixels, as `pairwise_dice` takes them; None for a single sample.
        """
        self._pixels += classes.numel()
        self._entropy += _sum(predictive_entropy)
        self._largest = float(np.maximum(self._largest, probs[1:].amax().item()))  # NaN stays NaN
        self._classes = self._classes or [_ClassSums() for _ in probs[1:]]
        for k, sums in enumerate(self._classes, start=1):
            sums.add(probs[k], classes, k)
        if overlaps is not None:
            self._overlaps = overlaps if self._overlaps is None else self._overlaps + overlaps

    @property
    def soft_dice_confidence(self) -> float:
        """An estimate of the Dice coefficient, for calibrated probabilities: 2 sum(p m) / (sum(p) + sum(m)).

        In [0, 1], the mean over the classes but the background (Borges et al., "Soft Dice confidence", 2024). For a
        class with an empty mask it is the product of 1 - p, the probability that the ground truth is empty as well if
        the pixels are independent.
        """
        return sum(sums.confidence() for sums in self._classes) / len(self._classes)

    def scores(self) -> dict[str, float | None]:
        """The scores by name.

        Returns:
            `area`, the pixels of the mask (of any class but the background); `area_mean`, `area_std` and their ratio
            `area_variation` over the masks of the samples; `soft_dice_confidence`; `pairwise_dice` of the samples;
            `mean_entropy` of the pixels, in nats; `largest_probability` of any class but the background. The scores of
            several samples are None for a single one.
        """
        scores = {"area": sum(sums.area for sums in self._classes)}
        scores |= {"area_mean": None, "area_std": None, "area_variation": None}
        scores["soft_dice_confidence"] = self.soft_dice_confidence
        scores["pairwise_dice"] = None
        scores["mean_entropy"] = self._entropy / self._pixels
        scores["largest_probability"] = self._largest
        if self._overlaps is not None and self._overlaps.shape[-1] > 1:
            overlaps = self._overlaps.cpu().double()
            areas = overlaps.diagonal(dim1=-2, dim2=-1).sum(dim=0)  # (T,)
            mean, std = areas.mean().item(), areas.std(correction=0).item()
            scores |= {"area_mean": mean, "area_std": std, "area_variation": std / mean if mean else 0.0}
            scores["pairwise_dice"] = pairwise_dice(overlaps)
        return scores


def _sum(values: Tensor) -> float:
    """The sum of an (H, W) map, in single precision along the rows and in double precision over them."""
    return values.sum(dim=-1).cpu().sum(dtype=torch.float64).item()  # MPS does not support double precision


def pairwise_dice(overlaps: Tensor) -> float:
    """The mean Dice coefficient between the masks of all pairs of samples (Roy et al., NeuroImage 2019).

    Args:
        overlaps: (K, T, T), for each class and pair of samples the pixels that both assign to the class, T >= 2.

    Returns:
        In [0, 1], the mean over the K classes; two empty masks score 1.
    """
    areas = overlaps.diagonal(dim1=-2, dim2=-1)  # (K, T)
    first, second = torch.triu_indices(areas.shape[1], areas.shape[1], offset=1)
    total = areas[:, first] + areas[:, second]
    dice = torch.where(total > 0, 2 * overlaps[:, first, second] / total.clamp(min=1), 1.0)
    return dice.mean().item()
