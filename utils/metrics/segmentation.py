"""Segmentation scores of a mask against its ground truth."""

import math

import numpy as np

from utils import IGNORED_CLASS

# The scores of the ISIC 2016 challenge, which ranks by the mean Jaccard index (Gutman et al., arXiv:1605.01397).
CHALLENGE_SCORES = ("dice", "jaccard", "sensitivity", "specificity", "accuracy")

_BLOCK_SIZE = 2**18  # pixels that are compared at a time: few calls, among which threads take turns


def segmentation_scores(predicted: np.ndarray, target: np.ndarray, n_classes: int = 2) -> dict[str, float]:
    """Segmentation scores of one image.

    Args:
        predicted, target: (H, W) class indices; pixels of `IGNORED_CLASS` in the target do not count.
        n_classes: number of classes C >= 2, of which the first is the background.

    Returns:
        `CHALLENGE_SCORES` by name, in [0, 1]. Each class but the background is scored against all others; 0 / 0 is
        1, so two empty masks score 1, but all are NaN if no pixel counts. With more than two classes the scores are
        means over the classes, followed by those of each class (`dice_c1`, ...), and the accuracy is that of all
        classes.
    """
    counts = _count_classes(predicted.ravel(), target.ravel(), n_classes)
    total, correct = counts[:, 1].sum(), counts[:, 0].sum()
    by_class = []
    for true_positives, positives, predicted_positives in counts[1:]:
        true_negatives = total - positives - predicted_positives + true_positives
        by_class.append(
            {
                "dice": _ratio(2 * true_positives, positives + predicted_positives),
                "jaccard": _ratio(true_positives, positives + predicted_positives - true_positives),
                "sensitivity": _ratio(true_positives, positives),
                "specificity": _ratio(true_negatives, total - positives),
            }
        )
    scores = {name: float(np.mean([scores_k[name] for scores_k in by_class])) for name in by_class[0]}
    scores["accuracy"] = _ratio(correct, total)
    if n_classes > 2:
        scores |= {f"{name}_c{k}": value for k, one in enumerate(by_class, 1) for name, value in one.items()}
    return scores if total else dict.fromkeys(scores, math.nan)


def _count_classes(predicted: np.ndarray, target: np.ndarray, n_classes: int) -> np.ndarray:
    """(C, 3): by class the true positives, the positives and the predicted positives among the (n,) pixels that count.

    A block of pixels stays in the processor's cache, where comparisons are much faster than a histogram.
    """
    counts = np.zeros((n_classes, 3), np.int64)
    for start in range(0, len(target), _BLOCK_SIZE):
        predicted_classes, classes = predicted[start : start + _BLOCK_SIZE], target[start : start + _BLOCK_SIZE]
        counted = classes != IGNORED_CLASS
        for k in range(n_classes):
            is_class, is_predicted = classes == k, (predicted_classes == k) & counted
            counts[k] += [np.count_nonzero(mask) for mask in (is_class & is_predicted, is_class, is_predicted)]
    return counts


def _ratio(numerator: int, denominator: int) -> float:
    return float(numerator / denominator) if denominator else 1.0


def segmentation_title(name: str) -> str:
    """The display name of a segmentation score, or of that of a single class, such as dice_c2."""
    score, of_class, k = name.partition("_c")
    return f"{score.capitalize()}, class {k}" if of_class else name.capitalize()
