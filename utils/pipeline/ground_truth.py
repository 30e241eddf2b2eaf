"""The ground truth of a folder of images, and what predictions score against it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.data.masks import mask_to_classes, read_mask
from utils.data.pairing import find_masks
from utils.metrics.evaluation import evaluate_set
from utils.metrics.pixel_counts import PixelCounts
from utils.metrics.pixel_metrics import PIXEL_METRICS
from utils.metrics.segmentation import segmentation_scores
from utils.pipeline.items import Item
from utils.runtime.errors import InputError


class GroundTruth:
    """The ground-truth masks of some images.

    Args:
        items: the images.
        mask_dir: folder of the masks, which are found as by `utils.data.pairing.find_masks`.
        mask_values: the value of class 0, 1, ... in them.
        evaluate_probs: evaluate the probabilities of a prediction, not only its mask.

    Attributes:
        packed: by an image's key its `PixelCounts.pack()`.

    Raises:
        InputError: a mask is missing.
    """

    def __init__(
        self, items: Sequence[Item], mask_dir: Path, mask_values: Sequence[int], evaluate_probs: bool = True
    ) -> None:
        self.mask_dir, self.mask_values, self.evaluate_probs = mask_dir, mask_values, evaluate_probs
        self.paths = find_masks([item.name for item in items], mask_dir)
        self.packed: dict[str, bytes] = {}

    def read(self, item: Item, shape: tuple[int, int]) -> np.ndarray:
        """The (H, W) uint8 class indices of an image.

        Raises:
            InputError: the mask cannot be read, contains a value that belongs to no class, or has another size.
        """
        path = self.paths[item.name]
        target = mask_to_classes(read_mask(path), self.mask_values, str(path))
        if target.shape != shape:
            (height, width), (mask_height, mask_width) = shape, target.shape
            raise InputError(f"it has {width}x{height} pixels, its mask {path} {mask_width}x{mask_height}")
        return target

    def compare(
        self, item: Item, target: np.ndarray, classes: np.ndarray, counts: PixelCounts | None = None
    ) -> dict[str, float]:
        """The scores of a prediction; may be called in threads.

        Args:
            item: the image.
            target: (H, W) class indices, from `read`.
            classes: (H, W) predicted class indices.
            counts: of its pixels, for the scores of its probabilities.
        """
        scores = segmentation_scores(classes, target, len(self.mask_values))
        if counts is not None:
            scores |= {name: float(metric(counts)) for name, metric in PIXEL_METRICS.items()}
            self.packed[item.key] = counts.pack()
        return scores

    def evaluate(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`evaluate_set` of the compared images with these rows."""
        if not self.packed:
            return evaluate_set(rows)
        coarse, total = [], None
        for row in rows:
            counts = PixelCounts.unpack(self.packed[row["image"]])
            coarse.append(counts.coarse())
            total = counts if total is None else total + counts
        return evaluate_set(rows, coarse, total)
