"""Selective prediction: how well an image's confidence predicts the quality of its mask."""

import math
from collections.abc import Callable, Sequence

import numpy as np


def risks_by_confidence(confidence: np.ndarray, risks: np.ndarray) -> np.ndarray:
    """Risks in order of decreasing confidence; images of equal confidence get their mean risk.

    Args:
        confidence, risks: (n,).
    """
    values, group = np.unique(-np.asarray(confidence, dtype=np.float64), return_inverse=True)
    size = np.bincount(group, minlength=len(values))
    mean = np.bincount(group, weights=risks, minlength=len(values)) / size
    return np.repeat(mean, size)


def risk_coverage_curve(confidence: np.ndarray, risks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage k / n and mean risk of the k most confident images, for k = 1 ... n.

    Args:
        confidence, risks: (n,).
    """
    count = np.arange(1, len(risks) + 1)
    return count / len(risks), np.cumsum(risks_by_confidence(confidence, risks)) / count


def aurc(confidence: np.ndarray, risks: np.ndarray, repeats: np.ndarray | None = None) -> np.ndarray:
    """Area under the risk-coverage curve (Geifman and El-Yaniv, NeurIPS 2017): its mean risk.

    Args:
        confidence, risks: (n,).
        repeats: (..., n) integers, how often each image occurs in one or several sets, such as bootstrap samples, of at
            least one image; None for a set of all, once each.

    Returns:
        (...), of each set.
    """
    count, risk = _by_group(confidence, risks, repeats)
    last, risk_before = count.cumsum(axis=-1), risk.cumsum(axis=-1) - risk
    before = last - count
    # At rank k in a group of mean risk r, after K images of summed risk R, the curve is (R + (k - K) r) / k, which is
    # r + (R - K r) / k.
    inverse_ranks = np.append(0, np.cumsum(1 / np.arange(1, last.max(initial=0) + 1)))
    sum_of_inverses = inverse_ranks[last] - inverse_ranks[before]
    return (risk + (risk_before - before * risk / np.maximum(count, 1)) * sum_of_inverses).sum(axis=-1) / last[..., -1]


def excess_aurc(confidence: np.ndarray, risks: np.ndarray, repeats: np.ndarray | None = None) -> np.ndarray:
    """E-AURC: the AURC minus that of the oracle, which sorts by risk (Geifman, Uziel and El-Yaniv, ICLR 2019)."""
    return aurc(confidence, risks, repeats) - aurc(-risks, risks, repeats)


def augrc(confidence: np.ndarray, risks: np.ndarray, repeats: np.ndarray | None = None) -> np.ndarray:
    """Area under the generalised risk-coverage curve (Traub et al., NeurIPS 2024), with arguments as for `aurc`.

    The mean over k = 1 ... n of the summed risk of the k most confident images, divided by n.
    """
    count, risk = _by_group(confidence, risks, repeats)
    risk_before = risk.cumsum(axis=-1) - risk
    return (count * risk_before + (count + 1) / 2 * risk).sum(axis=-1) / count.sum(axis=-1) ** 2


def _by_group(confidence: np.ndarray, risks: np.ndarray, repeats: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Number and summed risk of the images of equal confidence, (..., G) each, the most confident ones first."""
    repeats = np.ones(len(risks), np.int64) if repeats is None else repeats
    order = np.argsort(-confidence)
    first = np.flatnonzero(np.diff(confidence[order], prepend=np.nan))
    return tuple(np.add.reduceat(values[..., order], first, axis=-1) for values in (repeats, repeats * risks))


def mean_dice_and_aurc(dice: Sequence[float], confidence: Sequence[float]) -> tuple[float, float]:
    """Mean Dice, and AURC with the risk 1 - Dice, of the images whose Dice is defined; NaN if there is none.

    Args:
        dice, confidence: (n,).
    """
    dice, confidence = np.array(dice), np.array(confidence)
    if not (defined := np.isfinite(dice)).any():
        return math.nan, math.nan
    return float(dice[defined].mean()), float(aurc(confidence[defined], 1 - dice[defined]))


SELECTIVE_METRICS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray | None], np.ndarray]] = {
    "aurc": aurc,
    "e_aurc": excess_aurc,
    "augrc": augrc,
}
