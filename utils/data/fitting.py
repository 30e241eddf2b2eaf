"""One mask of the size of its image, from one or several masks that may be a whole fraction of it."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from utils.runtime.errors import InputError

logger = logging.getLogger(__name__)


class MaskFitter:
    """Unites the masks of an image at its size, and remembers which it has resized; may be called in threads.

    Attributes:
        resized: a line about each mask that had another size than its image.
    """

    def __init__(self) -> None:
        self.resized: list[str] = []

    def fit(self, masks: Mapping[Path, np.ndarray], size: tuple[int, int]) -> np.ndarray:
        """The (H, W) int32 values of an image's masks, of each pixel the largest.

        Args:
            masks: the values of each mask, by its file.
            size: width and height of the image. Masks that are a whole fraction or multiple of it, or differ by a
                pixel, are resized.

        Raises:
            InputError: a mask has another size.
        """
        fitted = []
        for path, mask in masks.items():
            mask_size = mask.shape[1], mask.shape[0]
            if mask_size != size:
                sizes = f"{size[0]}x{size[1]} pixels, its mask {path} has {mask_size[0]}x{mask_size[1]}"
                if not _is_whole_fraction(*sorted((size, mask_size))):
                    raise InputError(f"it has {sizes}")
                self.resized.append(f"an image has {sizes}")
                mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
            fitted.append(mask)
        return np.maximum.reduce(fitted)

    def log(self) -> None:
        """Say how many masks were resized."""
        if self.resized:
            logger.warning(
                "%d mask%s resized to the size of the image, for example: %s",
                len(self.resized),
                " was" if len(self.resized) == 1 else "s were",
                min(self.resized),
            )


def _is_whole_fraction(small: tuple[int, int], large: tuple[int, int]) -> bool:
    """Whether both sides of a size are the same fraction, 1/1, 1/2, ..., of another, but for what rounding may do."""
    factor = max(1, round(large[0] / small[0]))
    return all(abs(b - factor * a) <= max(1, factor - 1) for a, b in zip(small, large, strict=True))
