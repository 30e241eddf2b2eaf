"""What the values of masks mean: what is known of them beforehand, and which are classes or ignored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from utils import IGNORED_CLASS
from utils.data.fitting import unite_masks
from utils.data.mask_values import distances, format_mask_value, read_palettes
from utils.data.masks import RawMask
from utils.runtime.errors import InputError

MASK_FLAGS = ("classes", "ignore_value", "mask_values")  # the options that say more of them


@dataclass(frozen=True)
class MaskClasses:
    """Which value of a set of masks is which class, or what a model has recorded of them.

    Attributes:
        values: of class 0, 1, ... in these masks.
        ignored: the value of pixels that do not count, if any.
        by_index: whether the entries of palettes count by their index, not their colour.
    """

    values: Sequence[int]
    ignored: int | None = None
    by_index: bool = False

    @property
    def recorded(self) -> dict[str, Any]:
        """What a model records of them."""
        return {"mask_values": list(self.values), "ignore_value": self.ignored}

    def of(self, values: np.ndarray) -> np.ndarray:
        """The (K,) uint8 class of each of the values of a `RawMask`: the nearest, at half way the higher one."""
        values = read_palettes(values, self.by_index)
        classes = len(self.values) - 1 - distances(values, self.values[::-1]).argmin(axis=1)
        return np.where(values == self.ignored, IGNORED_CLASS, classes).astype(np.uint8)

    def unite(self, masks: Sequence[RawMask]) -> np.ndarray:
        """The (H, W) uint8 classes of an image that has these masks, see `unite_masks`."""
        mask = unite_masks(masks, self.values[0])
        return _classes_of(self.of(mask.values), mask.codes)


@dataclass(frozen=True)
class MaskOptions:
    """What is known of the mask values beforehand.

    Attributes:
        values: of class 0, 1, ...; empty to infer them.
        background: the value of class 0, if it is not the lowest.
        ignored: the value of pixels that do not count; None for that of a model, or 255 beside labels 0 ... N - 1.
        loaded: what a model that is trained further has recorded. Its order of the classes is that of masks with just
            these values, and what it ignores is ignored in masks with all of them.
    """

    values: Sequence[int] = ()
    background: int | None = None
    ignored: int | None = None
    loaded: MaskClasses = MaskClasses(())

    @property
    def first(self) -> int | None:
        """The value of class 0, as far as the user says it."""
        return self.values[0] if self.values else self.background

    @property
    def of_classes(self) -> tuple[int, ...]:
        """The values that the user says are classes."""
        return tuple(value for value in (*self.values, self.background) if value is not None)

    def check(self, n_classes: int) -> None:
        """Raise an `InputError` unless each of the classes can have a value of its own that counts."""
        if twice := [value for i, value in enumerate(self.values) if value in self.values[:i]]:
            raise InputError(f"the mask value {format_mask_value(twice[0])} was given for two classes", "mask_values")
        if self.values and len(self.values) != n_classes:
            raise InputError(f"{len(self.values)} mask values were given for {n_classes} classes", *MASK_FLAGS)
        if self.ignored in self.of_classes:
            value, flags = format_mask_value(self.ignored), ("mask_values", "background", "ignore_value")
            raise InputError(f"the mask value {value} was given for a class and for pixels to ignore", *flags)


def _classes_of(table: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """`table[codes]` for a uint8 table; Pillow is several times as fast with uint8 codes."""
    if (table == np.arange(len(table))).all():
        return codes.astype(np.uint8)
    if codes.dtype != np.uint8 or not codes.size:
        return table[codes]
    return np.array(Image.fromarray(codes).point(np.resize(table, 256).tolist()))  # a copy, to be written to
