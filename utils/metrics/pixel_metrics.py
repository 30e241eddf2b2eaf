"""Calibration of the probabilities, and pixel uncertainty as a detector of errors: functions of `PixelCounts`.

All are vectorised over leading dimensions: the same code serves an image, a set, and a thousand resamples of it.
"""

from collections.abc import Callable

import numpy as np

from utils.metrics.pixel_counts import N_BINS, PixelCounts, confidence_bin_centres


def expected_calibration_error(by_bin: np.ndarray) -> np.ndarray:
    """ECE (Naeini et al., AAAI 2015): sum over the bins of n_b / N |acc_b - conf_b|.

    Args:
        by_bin: (..., 3, N_BINS), `PixelCounts.top_label` or `.foreground`.

    Returns:
        (...,) in [0, 1]; NaN without pixels.
    """
    n, total, positives = np.moveaxis(by_bin, -2, 0)
    return _divide(np.abs(positives - total).sum(axis=-1), n.sum(axis=-1))


def adaptive_calibration_error(by_confidence: np.ndarray) -> np.ndarray:
    """The top-label ECE with `N_BINS` equal-mass bins (Nixon et al., CVPR workshops 2019).

    Confidences count as the centres of their bins, which are finest near 1: above 0.99 the result is exact to 4e-5,
    below to 2e-3. Of `PixelCounts.coarse` bins, the errors are eight times as large.

    Args:
        by_confidence: (..., 2, n), `PixelCounts.by_confidence`.

    Returns:
        (...,) in [0, 1]; NaN without pixels.
    """
    errors, correct = np.moveaxis(by_confidence.astype(np.float64), -2, 0)
    n = errors + correct
    excess = n * confidence_bin_centres(n.shape[-1]) - correct  # of confidence over accuracy, in pixels
    result = np.empty(n.shape[:-1])
    for i in np.ndindex(result.shape):
        mass = np.concatenate([[0], n[i].cumsum()])
        edges = np.linspace(0, mass[-1], N_BINS + 1)
        gaps = np.diff(np.interp(edges, mass, np.concatenate([[0], excess[i].cumsum()])))
        result[i] = np.abs(gaps).sum() / mass[-1] if mass[-1] else np.nan
    return result


def error_auroc(by_entropy: np.ndarray) -> np.ndarray:
    """The probability that an error has a higher entropy than a correct pixel (area under the ROC curve).

    Args:
        by_entropy: (..., 2, n), `PixelCounts.by_entropy`.

    Returns:
        (...,) in [0, 1]; NaN without errors or without correct pixels.
    """
    errors, correct = np.moveaxis(by_entropy.astype(np.float64), -2, 0)
    below = correct.cumsum(axis=-1) - correct / 2  # correct pixels of lower entropy; ties within a bin count half
    return _divide((errors * below).sum(axis=-1), errors.sum(axis=-1) * correct.sum(axis=-1))


def error_aupr(by_entropy: np.ndarray) -> np.ndarray:
    """The average precision of the entropy as a detector of errors (area under the precision-recall curve).

    The errors of one bin of the entropy are found at a precision in its middle: with half of the bin's other errors and
    half of its correct pixels. (scikit-learn takes that at its end.)

    Args:
        by_entropy: (..., 2, n), `PixelCounts.by_entropy`.

    Returns:
        (...,) in [0, 1]; NaN without errors.
    """
    errors, correct = np.moveaxis(by_entropy[..., ::-1].astype(np.float64), -2, 0)  # in order of decreasing entropy
    true_positives = errors.cumsum(axis=-1) - (errors - 1) / 2
    false_positives = correct.cumsum(axis=-1) - correct / 2
    precision = true_positives / np.maximum(true_positives + false_positives, 1)
    return _divide((errors * precision).sum(axis=-1), errors.sum(axis=-1))


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


# By their names in metrics.json and metrics.csv.
PIXEL_METRICS: dict[str, Callable[[PixelCounts], np.ndarray]] = {
    "ece_top_label": lambda counts: expected_calibration_error(counts.top_label),
    "ece_foreground": lambda counts: expected_calibration_error(counts.foreground),
    "adaptive_ece": lambda counts: adaptive_calibration_error(counts.by_confidence),
    "brier": lambda counts: _divide(counts.squared_error, counts.pixels),
    "nll": lambda counts: _divide(counts.log_loss, counts.pixels),
    "error_auroc": lambda counts: error_auroc(counts.by_entropy),
    "error_aupr": lambda counts: error_aupr(counts.by_entropy),
}

PIXEL_METRIC_TITLES = {
    "ece_top_label": "ECE, top-label, pooled",
    "ece_top_label_per_image": "ECE, top-label, per image",
    "ece_foreground": "ECE, foreground, pooled",
    "ece_foreground_per_image": "ECE, foreground, per image",
    "adaptive_ece": "Adaptive ECE",
    "brier": "Brier score",
    "nll": "NLL (nats)",
    "error_auroc": "Pixel error AUROC of entropy",
    "error_aupr": "Pixel error AUPR of entropy",
}
