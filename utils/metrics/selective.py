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


def aurc(confidence: np.ndarray, risks: np.ndarray) -> float:
    """Area under the risk-coverage curve (Geifman and El-Yaniv, NeurIPS 2017): its mean risk.

    Args:
        confidence, risks: (n,).
    """
    return float(np.mean(risk_coverage_curve(confidence, risks)[1]))


def excess_aurc(confidence: np.ndarray, risks: np.ndarray) -> float:
    """E-AURC: the AURC minus that of the oracle, which sorts by risk (Geifman, Uziel and El-Yaniv, ICLR 2019)."""
    return aurc(confidence, risks) - aurc(-risks, risks)


def augrc(confidence: np.ndarray, risks: np.ndarray) -> float:
    """Area under the generalised risk-coverage curve (Traub et al., NeurIPS 2024).

    The mean over k = 1 ... n of the summed risk of the k most confident images, divided by n.
    """
    return float(np.mean(np.cumsum(risks_by_confidence(confidence, risks))) / len(risks))


def mean_dice_and_aurc(dice: Sequence[float], confidence: Sequence[float]) -> tuple[float, float]:
    """Mean Dice, and AURC with the risk 1 - Dice, of the images whose Dice is defined; NaN if there is none.

    Args:
        dice, confidence: (n,).
    """
    dice, confidence = np.array(dice), np.array(confidence)
    if not (defined := np.isfinite(dice)).any():
        return math.nan, math.nan
    return float(dice[defined].mean()), aurc(confidence[defined], 1 - dice[defined])


SELECTIVE_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "aurc": aurc,
    "e_aurc": excess_aurc,
    "augrc": augrc,
}
