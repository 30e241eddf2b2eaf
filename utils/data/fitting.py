"""The masks of an image at its size, of which they may be a whole fraction, and their union."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from utils.data.mask_values import distances, read_palettes
from utils.data.masks import RawMask, read_mask
from utils.runtime.errors import InputError

logger = logging.getLogger(__name__)

_MAX_DISTANCE = 16  # between the background and its value in masks, which compression may have moved


class MaskFitter:
    """Reads the masks of an image at its size, and remembers which it has resized; may be called in threads.

    Attributes:
        resized: a line about each mask that had another size than its image.
    """

    def __init__(self) -> None:
        self.resized: list[str] = []

    def read(self, paths: Sequence[Path], size: tuple[int, int]) -> list[RawMask]:
        """The masks of an image of that width and height; those that differ by a whole factor or a pixel are resized.

        Raises:
            InputError: a mask cannot be read or has another size.
        """
        return [self.fit(path, read_mask(path), size) for path in paths]

    def fit(self, path: Path, mask: RawMask, size: tuple[int, int]) -> RawMask:
        """A mask, of that file, as `read` returns it."""
        mask_size = mask.codes.shape[1], mask.codes.shape[0]
        if mask_size == size:
            return mask
        sizes = f"{size[0]}x{size[1]} pixels, its mask {path} has {mask_size[0]}x{mask_size[1]}"
        (width, height), large = sorted((size, mask_size))
        factor = max(1, round(large[0] / width))
        if max(abs(large[0] - factor * width), abs(large[1] - factor * height)) > max(1, factor - 1):  # rounding
            raise InputError(f"it has {sizes}")
        self.resized.append(f"an image has {sizes}")
        return RawMask(np.asarray(Image.fromarray(mask.codes).resize(size, Image.Resampling.NEAREST)), mask.values)

    def log(self) -> None:
        """Say how many masks were resized."""
        log_resized(self.resized)


def log_resized(resized: Sequence[str]) -> None:
    """Say how many masks were resized, of which these are the lines that a `MaskFitter` remembers."""
    if resized:
        were = " was" if len(resized) == 1 else "s were"
        text = "%d mask%s resized to the size of the image, for example: %s"
        logger.warning(text, len(resized), were, min(resized))


def unite_masks(masks: Sequence[RawMask], background: int | None = None, ignored: int | None = None) -> RawMask:
    """The masks of an image as one: of each pixel the value furthest from the background, or the larger of two.

    Args:
        masks: of one size.
        background: its grey value or colour; the lowest of these masks if it is None, or none of them is near it.
        ignored: the value of pixels that do not count, which is not the lowest one, unless there is no other.
    """
    if len(masks) == 1:
        return masks[0]
    if background is not None or ignored is not None:
        found = np.concatenate([mask.count().values for mask in masks])  # of `mask.values`, some may not occur
        found = read_palettes(found, by_index=False)
        if background is None or distances(found, [background]).min() > _MAX_DISTANCE:
            background = min(found[found != ignored], default=ignored)
    values = np.unique(np.concatenate([mask.values for mask in masks]))
    shown = read_palettes(values, by_index=False)
    distance = distances(shown, [shown.min() if background is None else background])[:, 0]
    values = values[np.argsort(distance, kind="stable")]
    rank = np.argsort(values)
    codes = [rank[np.searchsorted(values, mask.values, sorter=rank)].astype(np.int32)[mask.codes] for mask in masks]
    return RawMask(np.maximum.reduce(codes), values)
