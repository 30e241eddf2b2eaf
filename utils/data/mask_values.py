"""Mask values: grey values, colours and entries of palettes as integers, and how often each occurs."""

from typing import NamedTuple

import numpy as np

from utils import RGB_OFFSET

# Entry i of a palette is PALETTE_OFFSET (i + 1) + its grey value or colour; the set shows which of the two counts.
PALETTE_OFFSET = 1 << 25


class ValueCounts(NamedTuple):
    """The K values of one or several masks, each with its number of pixels.

    Attributes:
        values: (K,) int64, increasing.
        pixels: (K,) int64, how many pixels have the value.
        solid: (K,) int64, how many of these lie in the middle of 3x3 pixels of that value: areas have many, edges none.
    """

    values: np.ndarray
    pixels: np.ndarray
    solid: np.ndarray


def colour_value(red: int, green: int, blue: int) -> int:
    """The value of a colour that is not grey."""
    return RGB_OFFSET + (red << 16) + (green << 8) + blue


def format_mask_value(value: int) -> str:
    """A human-readable mask value: 255, or (255, 0, 0) of an RGB mask."""
    if value < RGB_OFFSET:
        return str(value)
    return f"({value >> 16 & 255}, {value >> 8 & 255}, {value & 255})"


def read_palettes(values: np.ndarray, by_index: bool) -> np.ndarray:
    """Values with the entries of palettes as their indices, or as their grey values or colours."""
    entries = values // PALETTE_OFFSET - 1 if by_index else values % PALETTE_OFFSET
    return np.where(values >= PALETTE_OFFSET, entries, values)


def palettes_count_by_index(values: np.ndarray) -> bool:
    """Whether the entries of a set's palettes are read as indices.

    They are not if the palettes differ, if all are grey, or if index 0 is not black, as in a drawing with few colours.
    Palettes of grey values beside masks without palettes are read so that the set has fewer values.
    """
    entries = values[values >= PALETTE_OFFSET]
    indices, colours = entries // PALETTE_OFFSET - 1, entries % PALETTE_OFFSET
    if len(np.unique(indices)) < len(entries) or len(np.unique(colours)) < len(entries):
        return False
    n_colours, n_indices = (len(np.unique(read_palettes(values, by_index))) for by_index in (False, True))
    if n_colours != n_indices:
        return n_indices < n_colours
    return bool((colours >= RGB_OFFSET).any()) and not colours[indices == 0].any()


def distance(values: np.ndarray, value: int) -> np.ndarray:
    """The distance of values to another one, in grey levels; root mean square over the channels of colours."""
    return np.sqrt(np.square(as_colours(values) - as_colours(np.array([value]))).mean(axis=1))


def as_colours(values: np.ndarray) -> np.ndarray:
    """(K, 3): red, green and blue, or three times the grey value."""
    colours = np.stack([values >> 16 & 255, values >> 8 & 255, values & 255], axis=1)
    return np.where(values[:, None] < RGB_OFFSET, values[:, None], colours).astype(np.float64)


def merge_counts(values: np.ndarray, pixels: np.ndarray, solid: np.ndarray) -> ValueCounts:
    """Values that may occur several times, with the sums of their counts."""
    found, index = np.unique(values, return_inverse=True)
    return ValueCounts(found, *(np.bincount(index, weights=n).astype(np.int64) for n in (pixels, solid)))
