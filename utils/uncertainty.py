"""Entropy of probabilities, and the scores of a whole image that need no truth."""

import math

import torch
from torch import Tensor

# The scores by which images can be sorted; 1 where a high value speaks for a good segmentation, -1 for a bad one.
CONFIDENCE_SIGNS = {"soft_dice_confidence": 1, "pairwise_dice": 1, "mean_entropy": -1, "area_variation": -1}


def readable(score: str) -> str:
    """The name of a score for people."""
    return score.replace("_", " ").replace("dice", "Dice")


def entropy(probs: Tensor) -> Tensor:
    """Entropy in nats (Shannon 1948) of probabilities.

    Args:
        probs: (..., C, H, W); with C = 1 the probability of one of two classes.

    Returns:
        (..., H, W), from 0 to ln C (ln 2 for C = 1).
    """
    entropy = _minus_p_log_p(probs).sum(dim=-3)
    if probs.shape[-3] == 1:
        entropy += _minus_p_log_p(1 - probs[..., 0, :, :])
    return entropy.clamp_(0, math.log(max(probs.shape[-3], 2)))


def _minus_p_log_p(p: Tensor) -> Tensor:
    return p.clamp(min=1e-38).log_().mul_(p).neg_()  # several times as fast as torch.special.entr


def soft_dice_confidence(probs: Tensor, classes: Tensor) -> float:
    """The Dice that is to be expected of a mask if the probabilities are right: 2 sum(p m) / (sum(p) + sum(m)).

    Args:
        probs: (C, H, W).
        classes: (H, W) predicted class indices.

    Returns:
        From 0 to 1, the mean over the classes but the background (Borges et al., "Soft Dice confidence", 2024). For
        a class without a pixel in the mask it is the probability that the truth has none either.
    """
    confidences = []
    for k in range(1, len(probs)):
        mask = classes == k
        area = mask.count_nonzero().item()
        if area:
            confidences.append(2 * _sum(probs[k] * mask) / (_sum(probs[k]) + area))
        else:
            confidences.append(math.exp(_sum(torch.log1p(-probs[k].clamp(max=1 - 1e-7)))))
    return sum(confidences) / len(confidences)


def _sum(values: Tensor) -> float:
    """The sum of an (H, W) map, in single precision along the rows and in double precision over them."""
    return values.sum(dim=-1).cpu().sum(dtype=torch.float64).item()  # Apple's GPUs have no double precision


def pairwise_dice(overlaps: Tensor) -> float:
    """The mean Dice between the masks of every two samples (Roy et al., NeuroImage 2019).

    Args:
        overlaps: (K, T, T), for each class the pixels to which both of two samples give it, T >= 2.

    Returns:
        From 0 to 1, the mean over the K classes; two masks without a pixel agree, 1.
    """
    areas = overlaps.diagonal(dim1=-2, dim2=-1)  # (K, T)
    first, second = torch.triu_indices(areas.shape[1], areas.shape[1], offset=1)
    total = areas[:, first] + areas[:, second]
    dice = torch.where(total > 0, 2 * overlaps[:, first, second] / total.clamp(min=1), 1.0)
    return dice.mean().item()


def image_scores(
    probs: Tensor, predictive_entropy: Tensor, classes: Tensor, overlaps: Tensor | None = None
) -> dict[str, float | None]:
    """What the maps say of the image as a whole.

    Args:
        probs: (C, H, W), the mean over the samples.
        predictive_entropy: (H, W).
        classes: (H, W) predicted class indices, on any device.
        overlaps: as `pairwise_dice` takes them; None if there is one sample.

    Returns:
        `area`, the pixels of the mask (of anything but background); `area_mean`, `area_std` and their ratio
        `area_variation` over the masks of the samples; `soft_dice_confidence`; `pairwise_dice` of the samples;
        `mean_entropy` of the pixels, in nats; `largest_probability`, the highest of a class other than background.
        What needs several samples is None where there is one.
    """
    classes = classes.to(probs.device)
    scores = {"area": classes.count_nonzero().item(), "area_mean": None, "area_std": None, "area_variation": None}
    scores["soft_dice_confidence"] = soft_dice_confidence(probs, classes)
    scores["pairwise_dice"] = None
    scores["mean_entropy"] = _sum(predictive_entropy) / predictive_entropy.numel()
    scores["largest_probability"] = probs[1:].max().item()
    if overlaps is not None and overlaps.shape[-1] > 1:
        overlaps = overlaps.cpu().double()
        areas = overlaps.diagonal(dim1=-2, dim2=-1).sum(dim=0)  # (T,)
        mean, std = areas.mean().item(), areas.std(correction=0).item()
        scores |= {"area_mean": mean, "area_std": std, "area_variation": std / mean if mean else 0.0}
        scores["pairwise_dice"] = pairwise_dice(overlaps)
    return scores
