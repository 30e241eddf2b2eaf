"""Entropy of probabilities, and the scores of an image that need no ground truth."""

import math

import numpy as np
import torch
from torch import Tensor

# The scores by which images can be ranked; 1 where a high value indicates a good segmentation, -1 where a low one does.
CONFIDENCE_SIGNS = {"soft_dice_confidence": 1, "pairwise_dice": 1, "mean_entropy": -1, "area_variation": -1}


_MAX_PROBABILITY = 1 - 1e-7  # at which probabilities are clamped, so that ln(1 - p) is finite


def score_title(score: str) -> str:
    """The display name of a score."""
    return score.replace("_", " ").replace("dice", "Dice")


def entropy(probs: Tensor) -> Tensor:
    """Entropy in nats (Shannon 1948) of probabilities.

    Args:
        probs: (..., C, H, W), floating-point, without gradients; with C = 1 the probability of one of two classes.

    Returns:
        (..., H, W), in [0, ln C] (ln 2 for C = 1).
    """
    first, *others = probs.unbind(dim=-3)
    others = others or [1 - first]
    total = torch.zeros_like(first)
    tiny = torch.finfo(first.dtype).tiny  # at which probabilities are clamped, so that 0 ln 0 is 0
    for p in (first, *others):
        total.addcmul_(p.clamp(min=tiny).log_(), p)  # several times as fast as torch.special.entr
    return total.neg_().clamp_(0, math.log(1 + len(others)))


class ImageScores:
    """The scores of an image that need no ground truth, from sums over its pixels, which can be added in blocks.

    The sums stay on the device until the scores are read: in single precision along the rows, then in double precision.

    Args:
        overlaps: of the whole image, as `pairwise_dice` takes them; None for a single sample.
    """

    def __init__(self, overlaps: Tensor | None = None) -> None:
        self._overlaps = overlaps
        self._pixels = 0
        self._row_sums: list[Tensor] = []  # of each block (3 + 3 K, rows): see `add`
        self._known_mask = False  # whether it is known that the mask is not empty

    def add(self, probs: Tensor, predictive_entropy: Tensor, classes: Tensor) -> None:
        """Add a block of pixels.

        Args:
            probs: (C, H, W), the mean over the samples.
            predictive_entropy: (H, W) in nats.
            classes: (H, W) predicted class indices, on the same device.
        """
        self._pixels += classes.numel()
        foreground = probs[1:]
        sums = [one for k, p in enumerate(foreground, start=1) for one in _class_sums(p, classes, k)]
        if classes.is_cpu and not self._known_mask:  # a GPU would have to wait for the answer
            self._known_mask = any(area.any() for area in sums[::3])
        any_class = foreground[0] if len(foreground) == 1 else foreground.sum(dim=0).clamp_(max=1)
        if self._known_mask:  # the logarithms, which take a CPU a long time, are for an empty mask
            log_empty = torch.zeros_like(sums[0])
        else:
            log_empty = any_class.clamp(max=_MAX_PROBABILITY).neg_().log1p_().sum(dim=-1)
        largest = any_class.amax(dim=-1)
        self._row_sums.append(torch.stack([predictive_entropy.sum(dim=-1), largest, log_empty, *sums]))

    def _sums(self) -> tuple[float, float, float, np.ndarray]:
        """The sum of the entropy, the largest probability, the sum of ln(1 - p), and (K, 3) those of each class.

        Those are the area of its mask, and the sums of its probability in the mask and in all pixels.
        """
        table = torch.cat(self._row_sums, dim=1).cpu().double().numpy()
        sums = table[3:].sum(axis=1).reshape(-1, 3)
        return table[0].sum(), table[1].max(), table[2].sum(), sums  # NaN stays NaN

    @property
    def soft_dice_confidence(self) -> float:
        """An estimate of the Dice coefficient, for calibrated probabilities: 2 sum(p m) / (sum(p) + sum(m)).

        In [0, 1], the mean over the classes but the background that have pixels in the mask (Borges et al., "Soft Dice
        confidence", 2024). For an empty mask it is the product of 1 - p, with p that of any of them: the probability
        that the ground truth is empty as well if the pixels are independent.
        """
        return _soft_dice_confidence(*self._sums()[2:])

    def scores(self) -> dict[str, float | None]:
        """The scores by name.

        Returns:
            `area`, the pixels of the mask (of any class but the background); `area_mean`, `area_std` and their ratio
            `area_variation` over the masks of the samples; `soft_dice_confidence`; `pairwise_dice` of the samples;
            `mean_entropy` of the pixels, in nats; `largest_probability` of the foreground, of any pixel. The scores of
            several samples are None for a single one.
        """
        entropy_sum, largest, log_empty, by_class = self._sums()
        scores = {"area": int(by_class[:, 0].sum())}
        scores |= {"area_mean": None, "area_std": None, "area_variation": None}
        scores["soft_dice_confidence"] = _soft_dice_confidence(log_empty, by_class)
        scores["pairwise_dice"] = None
        scores["mean_entropy"] = float(entropy_sum) / self._pixels
        scores["largest_probability"] = float(largest)
        if self._overlaps is not None and self._overlaps.shape[-1] > 1:
            overlaps = self._overlaps.cpu().double()
            areas = overlaps.diagonal(dim1=-2, dim2=-1).sum(dim=0)  # (T,)
            mean, std = areas.mean().item(), areas.std(correction=0).item()
            scores |= {"area_mean": mean, "area_std": std, "area_variation": std / mean if mean else 0.0}
            scores["pairwise_dice"] = pairwise_dice(overlaps)
        return scores


def _class_sums(p: Tensor, classes: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sums along the rows: the mask of class k; its probabilities p in the mask, and in all pixels."""
    mask = classes.to(p.dtype).eq_(k)  # several times as fast as converting a comparison
    return mask.sum(dim=-1), mask.mul_(p).sum(dim=-1), p.sum(dim=-1)


def _soft_dice_confidence(log_empty: float, by_class: np.ndarray) -> float:
    """Of sums as `ImageScores` collects them."""
    values = [2 * prob_in_mask / (prob + area) for area, prob_in_mask, prob in by_class if area]
    return float(sum(values)) / len(values) if values else math.exp(log_empty)


def pairwise_dice(overlaps: Tensor) -> float:
    """The mean Dice coefficient between the masks of all pairs of samples (Roy et al., NeuroImage 2019).

    Args:
        overlaps: (K, T, T), for each class and pair of samples the pixels that both assign to the class, T >= 2.

    Returns:
        In [0, 1], the mean over the classes that any sample shows, or 1 without any; of these two empty masks score 1.
    """
    areas = overlaps.diagonal(dim1=-2, dim2=-1)  # (K, T)
    first, second = torch.triu_indices(areas.shape[1], areas.shape[1], offset=1)
    total = areas[:, first] + areas[:, second]
    dice = torch.where(total > 0, 2 * overlaps[:, first, second] / total.clamp(min=1), 1.0)
    shown = areas.any(dim=1)
    return dice[shown].mean().item() if shown.any() else 1.0
