"""Mask values: grey values, colours and entries of palettes as integers, and how often each occurs."""

from collections.abc import Iterable, Sequence
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

    def without(self, value: int | None) -> "ValueCounts":
        """All values but one."""
        return ValueCounts(*(array[self.values != value] for array in self))


def merge_counts(counts: Iterable[ValueCounts], by_index: bool | None = None) -> ValueCounts:
    """The sums over several masks, with the entries of palettes read by `read_palettes` unless `by_index` is None."""
    values, *numbers = (np.concatenate(arrays) for arrays in zip(*counts, strict=True))
    found, index = np.unique(values if by_index is None else read_palettes(values, by_index), return_inverse=True)
    return ValueCounts(found, *(np.bincount(index, weights=n).astype(np.int64) for n in numbers))


def read_palettes(values: np.ndarray, by_index: bool) -> np.ndarray:
    """Values with the entries of palettes as their indices, or as their grey values or colours."""
    entries = values // PALETTE_OFFSET - 1 if by_index else values % PALETTE_OFFSET
    return np.where(values >= PALETTE_OFFSET, entries, values)


def palettes_count_by_index(values: np.ndarray, expected: Sequence[int] = (), by_index: bool = False) -> bool:
    """Whether the entries of a set's palettes are read as indices.

    They are not if the palettes differ, if all are grey, or if index 0 is not black, as in a drawing with few colours.
    Palettes of grey values beside masks without palettes are read so that the set has fewer values. Index 255, the
    void of label maps, may have another one's colour, since palettes often end in black.

    Args:
        values: of all masks of the set.
        expected: the values of another set, of whose entries this one may show a part, such as the grey ones, and those
            that the user names. They are read as indices, unless index 0 is not black, if only that gives expected
            values.
        by_index: whether those of the other set were; then those of this one are, unless index 0 is not black.
    """
    if max(expected, default=0) >= RGB_OFFSET:
        return False
    values = values[~_is_void_of_used_colour(values)]
    entries = values[values >= PALETTE_OFFSET]
    indices, colours = entries // PALETTE_OFFSET - 1, entries % PALETTE_OFFSET
    if min(len(np.unique(indices)), len(np.unique(colours))) < len(entries):
        return False
    black_first = not colours[indices == 0].any()
    by_colour_or_index = [np.unique(read_palettes(values, one)) for one in (False, True)]
    if black_first and (by_index or [np.isin(found, expected).all() for found in by_colour_or_index] == [False, True]):
        return True
    n_colours, n_indices = map(len, by_colour_or_index)
    if n_colours != n_indices:
        return n_indices < n_colours
    return bool((colours >= RGB_OFFSET).any()) and black_first


def _is_void_of_used_colour(values: np.ndarray) -> np.ndarray:
    """Which of the values are entry 255 of a palette, in a colour that other entries have as well; (K,) bool."""
    indices, colours = values // PALETTE_OFFSET - 1, values % PALETTE_OFFSET
    others = (indices >= 0) & (indices != 255)
    return (indices == 255) & np.isin(colours, colours[others])


def as_colours(values: np.ndarray | Sequence[int]) -> np.ndarray:
    """(K, 3) int64: red, green and blue of each value, or three times the grey value."""
    values = np.asarray(values, dtype=np.int64)[:, None]
    return np.where(values < RGB_OFFSET, values, values >> np.array([16, 8, 0]) & 255)


def colour_values(colours: np.ndarray | Sequence[int]) -> np.ndarray:
    """The inverse of `as_colours`, (...) int32 of (..., 3) colours."""
    red, green, blue = np.moveaxis(np.asarray(colours, dtype=np.int32), -1, 0)
    return np.where((red == green) & (green == blue), red, RGB_OFFSET + (red << 16) + (green << 8) + blue)


def distances(values: np.ndarray | Sequence[int], others: Sequence[int]) -> np.ndarray:
    """(K, M) distances of values to M others, in grey levels; root mean square over the channels of colours."""
    differences = as_colours(values)[:, None] - as_colours(others)
    return np.sqrt(np.square(differences).mean(axis=2))


def format_mask_value(value: int) -> str:
    """A human-readable mask value: 255, or (255, 0, 0) of an RGB mask."""
    return str(value) if value < RGB_OFFSET else str(tuple(as_colours([value])[0].tolist()))
