"""One mask of the size of its image, from one or several masks that may be a whole fraction of it."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from utils.data.mask_values import PALETTE_OFFSET, read_palettes
from utils.data.masks import RawMask
from utils.runtime.errors import InputError

logger = logging.getLogger(__name__)


class MaskFitter:
    """Unites the masks of an image at its size, and remembers which it has resized; may be called in threads.

    Attributes:
        resized: a line about each mask that had another size than its image.
    """

    def __init__(self) -> None:
        self.resized: list[str] = []

    def fit(self, masks: Mapping[Path, RawMask], size: tuple[int, int]) -> RawMask:
        """An image's masks as one of (H, W) pixels, of each pixel the largest value.

        Args:
            masks: the masks, by their files.
            size: width and height of the image. Masks that are a whole fraction or multiple of it, or differ by a
                pixel, are resized.

        Raises:
            InputError: a mask has another size.
        """
        fitted = []
        for path, mask in masks.items():
            codes = mask.codes
            mask_size = codes.shape[1], codes.shape[0]
            if mask_size != size:
                sizes = f"{size[0]}x{size[1]} pixels, its mask {path} has {mask_size[0]}x{mask_size[1]}"
                if not _is_whole_fraction(*sorted((size, mask_size))):
                    raise InputError(f"it has {sizes}")
                self.resized.append(f"an image has {sizes}")
                codes = np.asarray(Image.fromarray(codes).resize(size, Image.Resampling.NEAREST))
            fitted.append(RawMask(codes, mask.values))
        if len(fitted) == 1:
            return fitted[0]
        if len({one.values.max() >= PALETTE_OFFSET for one in fitted}) > 1:  # palettes and none: compare their colours
            fitted = [RawMask(one.codes, read_palettes(one.values, by_index=False)) for one in fitted]
        values, codes = np.unique(np.maximum.reduce([one.values[one.codes] for one in fitted]), return_inverse=True)
        return RawMask(codes.reshape(size[::-1]).astype(np.int32), values)

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
