"""Segmentation metrics, over all pixels of an image at its own size."""

from collections.abc import Sequence

import numpy as np

# The scores of the ISIC 2016 challenge, which ranks by the mean Jaccard index (Gutman et al., arXiv:1605.01397).
SCORES = ("dice", "jaccard", "sensitivity", "specificity", "accuracy")


def segmentation_scores(predicted: np.ndarray, truth: np.ndarray, n_classes: int = 2) -> dict[str, float]:
    """Scores of one image's mask.

    Args:
        predicted, truth: (H, W) class indices.
        n_classes: number of classes C >= 2, the first of them background.

    Returns:
        `SCORES` by name, from 0 to 1. Each class but the background is taken against all others; a ratio of
        nothing to nothing is 1, so two empty masks agree. With more than two classes these are the means over the
        classes, beside each class's own (`dice_c1`, ...), and the accuracy counts all classes at once.
    """
    codes = truth.astype(np.int64).ravel() * n_classes + predicted.astype(np.int64).ravel()
    confusion = np.bincount(codes, minlength=n_classes**2).reshape(n_classes, n_classes)  # [truth, predicted]
    total, correct = confusion.sum(), np.trace(confusion)
    by_class = []
    for k in range(1, n_classes):
        both = confusion[k, k]
        true_k, predicted_k = confusion[k].sum(), confusion[:, k].sum()
        neither = total - true_k - predicted_k + both
        by_class.append(
            {
                "dice": _ratio(2 * both, true_k + predicted_k),
                "jaccard": _ratio(both, true_k + predicted_k - both),
                "sensitivity": _ratio(both, true_k),
                "specificity": _ratio(neither, total - true_k),
            }
        )
    scores = {name: float(np.mean([one[name] for one in by_class])) for name in by_class[0]}
    scores["accuracy"] = _ratio(correct, total)
    if n_classes > 2:
        scores |= {f"{name}_c{k}": value for k, one in enumerate(by_class, 1) for name, value in one.items()}
    return scores


def _ratio(part: int, whole: int) -> float:
    return float(part / whole) if whole else 1.0


def summarize_scores(rows: Sequence[dict[str, float]], names: Sequence[str] = SCORES) -> str:
    """A line for people: the mean of each score over the images, and its median."""
    return "\n".join(
        f"{name.capitalize():<12} mean {np.mean([row[name] for row in rows]):.4f}   "
        f"median {np.median([row[name] for row in rows]):.4f}"
        for name in names
    )
