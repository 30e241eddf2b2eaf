"""Masks: from files to class indices and back, and which mask value is which class."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from utils.data.images import decoding_errors, open_upright
from utils.runtime.errors import InputError

logger = logging.getLogger(__name__)

# A colour (r, g, b) of an RGB mask is the value RGB_OFFSET + 65536 r + 256 g + b, which differs from every grey value.
RGB_OFFSET = 1 << 24

_LISTED_VALUES = 10  # mask values in a message
_MIN_CONTRAST = 16  # between the two values of an anti-aliased mask; class indices are closer together
_MAX_SOFT_FRACTION = 0.25  # of the pixels between the two: edges, not another class


def read_mask(path: Path | str) -> np.ndarray:
    """Read a mask.

    Returns:
        (H, W) int32 values: the grey value of a pixel (255 for white in a 1-bit mask, 65535 in a 16-bit one);
        `RGB_OFFSET` + 65536 r + 256 g + b for a coloured pixel; the palette index for a mask with a palette, unless
        all colours of the palette are grey.

    Raises:
        InputError: the file cannot be read as an image, or its values are not integers.
    """
    image = open_upright(path)
    if image.mode == "P":
        indices = np.asarray(image, dtype=np.int32)
        palette = np.array(image.getpalette("RGB"), dtype=np.int32).reshape(-1, 3)
        all_grey = (palette == palette[:, :1]).all() and indices.max() < len(palette)
        return palette[:, 0][indices] if all_grey else indices
    with decoding_errors(path):
        if image.mode in ("1", "LA", "La"):
            image = image.convert("L")
        elif image.mode not in ("L", "RGB", "F") and not image.mode.startswith("I"):
            image = image.convert("RGB")
    values = np.asarray(image)
    if values.ndim == 3:
        red, green, blue = np.moveaxis(values.astype(np.int32), -1, 0)
        is_grey = (red == green) & (red == blue)
        return np.where(is_grey, red, RGB_OFFSET + (red << 16) + (green << 8) + blue)
    if image.mode == "F" and not (np.isin(values % 1, 0).all() and abs(values).max() < RGB_OFFSET):
        raise InputError(
            f"{path} contains values that are not integers, one integer per class was expected: is it a mask?"
        )
    return values.astype(np.int32)


def mask_to_image(classes: np.ndarray, mask_values: Sequence[int]) -> Image.Image:
    """The image in which class k is drawn in the k-th mask value.

    Args:
        classes: (H, W) class indices.
        mask_values: the value of each class, as `read_mask` returns it.
    """
    values = np.asarray(mask_values, dtype=np.int32)
    if values.max() >= RGB_OFFSET:
        colours = np.stack([values >> 16 & 255, values >> 8 & 255, values & 255], axis=-1)
        colours[values < 256] = values[values < 256, None]  # grey values among them
        return Image.fromarray(colours.astype(np.uint8)[classes])
    if values.max() >= 256:
        return Image.fromarray(values.astype(np.uint16)[classes])
    assert classes.max(initial=0) < len(values), "a class without a mask value"
    table = np.resize(values, 256)  # `point` requires 256 entries
    return Image.fromarray(classes.astype(np.uint8, copy=False)).point(table.tolist())


def format_mask_value(value: int) -> str:
    """A human-readable mask value: 255, or (255, 0, 0) of an RGB mask."""
    if value < RGB_OFFSET:
        return str(value)
    return f"({value >> 16 & 255}, {value >> 8 & 255}, {value & 255})"


def _format_mask_values(values: Sequence[int]) -> str:
    listed = ", ".join(format_mask_value(value) for value in values[:_LISTED_VALUES])
    return listed + (", ..." if len(values) > _LISTED_VALUES else "")


def classes_of_values(values: Sequence[int], mask_values: Sequence[int], name: str) -> dict[int, int]:
    """The class of each distinct value of a mask.

    Masks of two grey values may be anti-aliased or compressed: a value between the two belongs to the nearer class, at
    exactly half to class 1. At least one value of such a mask must be of class 1; otherwise a mask of 0 and 1 would be
    read as an empty one of 0 and 255.

    Args:
        values: the distinct values of the mask.
        mask_values: the value of class 0, 1, ...
        name: of the mask, for the message.

    Raises:
        InputError: a value belongs to no class.
    """
    table = {value: k for k, value in enumerate(mask_values)}
    unknown = [value for value in values if value not in table]
    if unknown and len(mask_values) == 2 and max(mask_values) < RGB_OFFSET:
        half = sum(mask_values) / 2
        nearest = {value: int(value >= half) for value in values}
        is_between = min(mask_values) <= min(unknown) and max(unknown) <= max(mask_values)
        if is_between and max(nearest.values()) == 1:
            return nearest
    if unknown:
        raise InputError(
            f"{name} contains the value {format_mask_value(unknown[0])}, which belongs to no class: the "
            f"{len(mask_values)} classes have the mask values {_format_mask_values(mask_values)}"
        )
    return {value: table[value] for value in values}


def mask_to_classes(mask: np.ndarray, mask_values: Sequence[int], name: str) -> np.ndarray:
    """The class indices of a mask.

    Args:
        mask: (H, W) values, as `read_mask` returns them.
        mask_values: the value of class 0, 1, ...
        name: of the mask, for the message.

    Returns:
        (H, W) uint8 class indices.

    Raises:
        InputError: a value belongs to no class.
    """
    low, high = int(mask.min(initial=0)), int(mask.max(initial=0))
    if high - low >= 2 * RGB_OFFSET:  # too many for a table
        values, indices = np.unique(mask, return_inverse=True)
        positions = np.arange(len(values))
    else:
        indices = mask - low
        occurs = np.zeros(high - low + 1, dtype=bool)
        occurs[indices] = True
        positions = np.flatnonzero(occurs)
        values = positions + low
    classes = classes_of_values(values.tolist(), mask_values, name)
    table = np.zeros(positions.max(initial=0) + 1, dtype=np.uint8)
    table[positions] = [classes[value] for value in values.tolist()]
    return table[indices].reshape(mask.shape)


def infer_mask_values(values: Sequence[int], counts: np.ndarray, names: Sequence[str], n_classes: int) -> list[int]:
    """The mask values of a dataset, sorted: the k-th is that of class k.

    Masks of two classes may be anti-aliased, with many values between the two on a small fraction of the pixels.

    Args:
        values: the V distinct mask values.
        counts: (N, V), for each mask the number of pixels of each value.
        names: of the masks, for the messages.
        n_classes: number of classes; 1, a sigmoid output, distinguishes two values as well.

    Raises:
        InputError: there are more or fewer values than classes.
    """
    n_classes = max(n_classes, 2)
    totals = counts.sum(axis=0, dtype=np.int64)
    pixels = {value: int(count) for value, count in zip(values, totals, strict=True) if count}
    found = sorted(pixels)
    if len(found) == n_classes:
        return found
    if n_classes == 2 and len(found) > 2:
        low, high = found[0], found[-1]
        soft = 1 - (pixels[low] + pixels[high]) / sum(pixels.values())
        if high - low >= _MIN_CONTRAST and high < RGB_OFFSET and soft <= _MAX_SOFT_FRACTION:
            logger.info(
                "Masks have values between %d and %d on %.1f %% of their pixels: treated as anti-aliased edges, with a "
                "threshold halfway between the two",
                low,
                high,
                100 * soft,
            )
            return [low, high]
    if len(found) < n_classes:
        raise InputError(
            f"the masks have too few values for {n_classes} classes, only {_format_mask_values(found)}: each class "
            "must occur in at least one mask"
        )
    rarest = min(pixels, key=lambda value: pixels[value])
    example = names[int(np.argmax(counts[:, list(values).index(rarest)] > 0))]
    raise InputError(
        f"the masks have {len(found)} values, {_format_mask_values(found)}, for {n_classes} classes; for example "
        f"{example} contains the value {format_mask_value(rarest)}. Correct the masks, or train with {len(found)} "
        "classes"
    )
