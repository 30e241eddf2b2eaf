"""Segmentation scores of a mask against its ground truth."""

import math
from collections.abc import Mapping

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
        1, so two empty masks score 1, but the sensitivity to a class that does not occur is NaN, and all scores are
        if no pixel counts. With more than two classes the scores are means over the classes but the background: of the
        specificity over all, of the others over those that occur, or all if none does; those of each class follow
        (`dice_c1`, ...). The accuracy is that of all classes.

    Raises:
        ValueError: their sizes differ, or there are other classes among the pixels that count.
    """
    if predicted.shape != target.shape:
        raise ValueError(f"the prediction is of size {predicted.shape}, its ground truth of size {target.shape}")
    counts = _count_classes(predicted.ravel(), target.ravel(), n_classes)
    total, correct = counts[:, 1].sum(), counts[:, 0].sum()
    by_class = []
    for true_positives, positives, predicted_positives in counts[1:]:
        true_negatives = total - positives - predicted_positives + true_positives
        by_class.append(
            {
                "dice": _ratio(2 * true_positives, positives + predicted_positives),
                "jaccard": _ratio(true_positives, positives + predicted_positives - true_positives),
                "sensitivity": _ratio(true_positives, positives) if positives else math.nan,
                "specificity": _ratio(true_negatives, total - positives),
            }
        )
    occurring = [one for one, n in zip(by_class, counts[1:, 1], strict=True) if n] or by_class
    scores = {name: float(np.mean([one[name] for one in occurring])) for name in by_class[0]}
    scores["specificity"] = float(np.mean([one["specificity"] for one in by_class]))
    scores["accuracy"] = _ratio(correct, total)
    if n_classes > 2:
        scores |= {f"{name}_c{k}": value for k, one in enumerate(by_class, 1) for name, value in one.items()}
    return scores if total else dict.fromkeys(scores, math.nan)


def where_shown(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores of an image for means over images: of a class that does not occur, Dice and Jaccard are NaN, too.

    A prediction without it is right, but what it scores says nothing of how well the class is segmented.
    """
    absent = absent_classes(scores)
    return {**scores, **{name + suffix: math.nan for suffix in absent for name in ("dice", "jaccard")}}


def absent_classes(scores: Mapping[str, float]) -> list[str]:
    """The suffixes in the scores of an image, such as `_c2`, of classes that do not occur, and "" if there is none.

    Nothing is known of an image in which no pixel counts.
    """
    if math.isnan(scores["accuracy"]):
        return []
    undefined = [name for name in scores if name.startswith("sensitivity") and math.isnan(scores[name])]
    return [name.removeprefix("sensitivity") for name in undefined]


def _count_classes(predicted: np.ndarray, target: np.ndarray, n_classes: int) -> np.ndarray:
    """(C, 3): by class the true positives, the positives and the predicted positives among the (n,) pixels that count.

    A block of pixels stays in the processor's cache, where comparisons are much faster than a histogram.

    Raises:
        ValueError: there are other classes among them.
    """
    counts, total = np.zeros((n_classes, 3), np.int64), 0
    for start in range(0, len(target), _BLOCK_SIZE):
        predicted_classes, classes = predicted[start : start + _BLOCK_SIZE], target[start : start + _BLOCK_SIZE]
        counted = classes != IGNORED_CLASS
        total += np.count_nonzero(counted)
        for k in range(n_classes):
            is_class, is_predicted = classes == k, (predicted_classes == k) & counted
            counts[k] += [np.count_nonzero(mask) for mask in (is_class & is_predicted, is_class, is_predicted)]
    for name, known in zip(("ground truth", "prediction"), counts[:, 1:].sum(axis=0), strict=True):
        if known != total:
            raise ValueError(f"the {name} has other classes than those from 0 to {n_classes - 1} that were expected")
    return counts


def _ratio(numerator: int, denominator: int) -> float:
    return float(numerator / denominator) if denominator else 1.0


def segmentation_title(name: str) -> str:
    """The display name of a segmentation score, or of that of a single class, such as dice_c2."""
    score, of_class, k = name.partition("_c")
    return f"{score.capitalize()}, class {k}" if of_class else name.capitalize()
