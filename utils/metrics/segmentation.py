"""Segmentation scores of a mask against its ground truth."""

import math

import numpy as np
from PIL import Image

from utils import IGNORED_CLASS

# The scores of the ISIC 2016 challenge, which ranks by the mean Jaccard index (Gutman et al., arXiv:1605.01397).
CHALLENGE_SCORES = ("dice", "jaccard", "sensitivity", "specificity", "accuracy")


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
    positives_of = _histogram(target)  # by class
    n_ignored = positives_of[IGNORED_CLASS]
    predicted_of = _histogram(predicted, target != IGNORED_CLASS if n_ignored else None)
    correct_of = _histogram(target, target == predicted)
    total = target.size - n_ignored
    by_class = []
    for k in range(1, n_classes):
        true_positives, positives, predicted_positives = correct_of[k], positives_of[k], predicted_of[k]
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
    scores["accuracy"] = _ratio(sum(correct_of), total)
    if n_classes > 2:
        scores |= {f"{name}_c{k}": value for k, one in enumerate(by_class, 1) for name, value in one.items()}
    return scores if total else dict.fromkeys(scores, math.nan)


def _histogram(classes: np.ndarray, where: np.ndarray | None = None) -> list[int]:
    """The number of pixels of each of 256 classes; Pillow's is several times as fast as `np.bincount`."""
    where = None if where is None else Image.fromarray(where.astype(np.uint8))
    return Image.fromarray(classes.astype(np.uint8, copy=False)).histogram(where)


def _ratio(numerator: int, denominator: int) -> float:
    return float(numerator / denominator) if denominator else 1.0


def segmentation_title(name: str) -> str:
    """The display name of a segmentation score, or of that of a single class, such as dice_c2."""
    score, of_class, k = name.partition("_c")
    return f"{score.capitalize()}, class {k}" if of_class else name.capitalize()
