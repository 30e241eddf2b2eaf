"""What the values of a set of masks mean: the one place that decides which are classes, ignored, or edges.

The classes are the N most frequent values or colours of the set, sorted, so that of two the lower is the background.
Any other value belongs to the nearest class if it is thin, as edges and compression leave it; one with an area of its
own is an error. 255 beside labels 0 ... N - 1 is ignored.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils import IGNORED_CLASS, RGB_OFFSET
from utils.data.mask_values import (
    ValueCounts,
    as_colours,
    colour_value,
    distance,
    format_mask_value,
    merge_counts,
    palettes_count_by_index,
    read_palettes,
)
from utils.runtime.errors import InputError

logger = logging.getLogger(__name__)

_VOID = 255  # the value that marks pixels to ignore in label maps
_MIN_VOID_RATIO = 0.01  # of labelled pixels to those of 255, which are otherwise the object, and the labels specks
_MANY = 8  # more values than classes and this many others: compressed or anti-aliased masks
_MIN_CONTRAST = 16  # between two classes of such masks
_MAX_NOISE_DISTANCE = 8  # of compression within an area
_MIN_SOLID, _MIN_FRACTION_OF_REST = 0.2, 0.05  # of a value with an area of its own
_MAX_REST = 0.5  # of the pixels
_MAX_CANDIDATES = 1000  # of the many values of compressed masks; noise is further down
_CLIPPED = 3  # this near to black or white, compression has moved it
_LISTED_VALUES = 5  # in a message
_OPTIONS = ("classes", "ignore_value", "mask_values")


@dataclass(frozen=True)
class MaskOptions:
    """What a user says of the mask values.

    Attributes:
        values: of class 0, 1, ...; empty to infer them.
        background: the value of class 0, if it is not the lowest.
        ignored: the value of pixels that do not count; None for 255 beside labels 0 ... N - 1.
    """

    values: Sequence[int] = ()
    background: int | None = None
    ignored: int | None = None


@dataclass(frozen=True)
class MaskClasses:
    """Which value of a set of masks is which class.

    Attributes:
        values: of class 0, 1, ... in these masks.
        ignored: the value of pixels that do not count, if any.
        by_index: whether the entries of palettes count by their index, not their colour.
    """

    values: tuple[int, ...]
    ignored: int | None = None
    by_index: bool = False

    @property
    def recorded(self) -> dict[str, Any]:
        """What a model records of them."""
        return {"mask_values": list(self.values), "ignore_value": self.ignored}

    def of(self, values: np.ndarray) -> np.ndarray:
        """The (K,) uint8 class of each of the values of a `RawMask`: the nearest, at half way the higher one."""
        values = read_palettes(values, self.by_index)
        distances = np.stack([distance(values, value) for value in self.values[::-1]])
        classes = (len(self.values) - 1 - distances.argmin(axis=0)).astype(np.uint8)
        if self.ignored is not None:
            classes[values == self.ignored] = IGNORED_CLASS
        return classes


def decide_classes(
    masks: Mapping[str, ValueCounts], n_classes: int, options: MaskOptions | None = None, expected: Sequence[int] = ()
) -> MaskClasses:
    """Decide what the values of a set of masks mean, and log it in a line.

    Args:
        masks: the values of each mask, by its name in messages.
        n_classes: number of classes; 1, a sigmoid output, distinguishes two values as well.
        options: what the user says.
        expected: the values that a model was trained on, of which other masks may lack some. Two classes are two
            classes, whatever their values.

    Raises:
        InputError: there are fewer values than classes, or others with an area of their own.
    """
    options, n_classes = options or MaskOptions(), max(n_classes, 2)
    raw = merge_counts(*(np.concatenate(arrays) for arrays in zip(*masks.values(), strict=True)))
    by_index = palettes_count_by_index(raw.values) and max(expected, default=0) < RGB_OFFSET
    counts = merge_counts(read_palettes(raw.values, by_index), raw.pixels, raw.solid)
    ignored = options.ignored if options.ignored is not None else _void_value(counts, n_classes, masks, by_index)
    if expected and n_classes == 2 and ignored == _VOID and (counts.values != ignored).sum() < 2:
        ignored = None  # 0 and 255: the object that the model has learnt as 1
    kept = ValueCounts(*(array[counts.values != ignored] for array in counts))

    if options.values and len({*options.values}) != n_classes:
        raise InputError(f"{len(options.values)} mask values were given for {n_classes} classes", *_OPTIONS)
    found = tuple(options.values) or _most_frequent(kept, n_classes)
    if expected:
        found = _in_order_of(found, expected) if n_classes == 2 else tuple(expected)
    elif len(found) < n_classes:
        raise InputError(
            f"the masks have too few values for {n_classes} classes, only {_list_values(found)}: each class must occur "
            "in at least one mask",
            "classes",
            "mask_values",
        )
    if options.background is not None and not options.values:
        if options.background not in found:
            background = format_mask_value(options.background)
            raise InputError(f"the background {background} is none of the mask values {_list_values(found)}")
        found = (options.background, *(value for value in found if value != options.background))
    classes = MaskClasses(found, ignored, by_index)
    rest = _rest(kept, found, masks, classes)
    logger.info("%s", _describe_masks(counts, classes, rest))
    if not (expected or options.values or options.background is not None):
        _warn_of_small_background(kept, classes)
    return classes


def _warn_of_small_background(counts: ValueCounts, classes: MaskClasses) -> None:
    fraction = counts.pixels[classes.of(counts.values) == 0].sum() / counts.pixels.sum()
    if fraction < 0.5:
        text = "Class 0, mask value %s, covers less than half of the pixels, %s: is it the background?"
        logger.warning(text, format_mask_value(classes.values[0]), _percent(fraction))


# -- the rule ----------------------------------------------------------------------------------------------------------


def _void_value(counts: ValueCounts, n_classes: int, masks: Mapping[str, ValueCounts], by_index: bool) -> int | None:
    """255 beside labels 0 ... N - 1, of which most masks with 255 have one; otherwise it may be an object."""
    if not np.array_equal(counts.values, [*range(n_classes), _VOID]):
        return None
    n_void = n_beside_labels = 0
    for one in masks.values():
        values = read_palettes(one.values, by_index)
        n = one.pixels[values == _VOID].sum()
        n_void += n
        n_beside_labels += n if ((values > 0) & (values != _VOID)).any() else 0
    labelled = counts.pixels[1:-1].sum()
    return _VOID if n_beside_labels >= n_void / 2 and labelled >= _MIN_VOID_RATIO * n_void else None


def _most_frequent(counts: ValueCounts, n: int) -> tuple[int, ...]:
    """The n values with the largest areas, sorted; of compressed masks far enough from each other."""
    order = np.lexsort((counts.pixels, counts.solid))[::-1]
    if len(order) <= n + _MANY:
        return tuple(sorted(counts.values[order[:n]].tolist()))
    found: list[int] = []
    for i in order[:_MAX_CANDIDATES]:
        value, own_area = int(counts.values[i]), counts.solid[i] >= _MIN_SOLID * counts.pixels[i]
        is_far = not found or distance(np.array(found), value).min() >= _MIN_CONTRAST
        if len(found) < n and is_far and (own_area or len(found) < 2):  # of two classes, one may be of thin lines
            found.append(value)
    unclipped = tuple(sorted(_unclip(value) for value in found))
    return unclipped if len(set(unclipped)) == n else tuple(sorted(found))


def _unclip(value: int) -> int:
    """Black and white, and full colours, where compression has moved them a little: flat black in a JPEG may be 1."""
    if 255 < value < RGB_OFFSET:
        return value
    near = [0 if c <= _CLIPPED else 255 if c >= 255 - _CLIPPED else int(c) for c in as_colours(np.array([value]))[0]]
    return near[0] if len({*near}) == 1 else colour_value(*near)


def _in_order_of(found: tuple[int, ...], expected: Sequence[int]) -> tuple[int, ...]:
    """One or two values in the order of the expected ones next to them; two next to the same one are sorted."""
    nearest = MaskClasses(tuple(expected)).of(np.array(found, np.int64)).tolist()
    if len({*nearest}) < len(found):
        return found
    values = dict(enumerate(expected)) | dict(zip(nearest, found, strict=True))
    return tuple(values[k] for k in sorted(values))


def _rest(
    counts: ValueCounts, found: Sequence[int], masks: Mapping[str, ValueCounts], classes: MaskClasses
) -> np.ndarray:
    """Which values are none of the classes, bool.

    Raises:
        InputError: one has an area of its own, or lies beside labels such as 0, 1, 2, or they are most of the pixels.
    """
    many = len(counts.values) > len(found) + _MANY
    distances = np.stack([distance(counts.values, value) for value in found])
    rest = distances.min(axis=0) > (_MAX_NOISE_DISTANCE if many else 0)
    n_rest, n_pixels = counts.pixels[rest].sum(), counts.pixels.sum()
    own_area = (counts.solid >= _MIN_SOLID * counts.pixels) & (counts.pixels >= _MIN_FRACTION_OF_REST * n_rest)
    contrast = min((float(distance(np.array([a]), b)[0]) for a in found for b in found if a != b), default=np.inf)
    further = rest & (own_area | (contrast < _MIN_CONTRAST))
    if further.any():
        order = np.flatnonzero(further)[np.argsort(-counts.pixels[further])]
        value = int(counts.values[order[0]])
        example = next(name for name, one in masks.items() if value in read_palettes(one.values, classes.by_index))
        shares = counts.pixels / n_pixels
        listed = [f"{format_mask_value(int(counts.values[i]))} ({_percent(shares[i])})" for i in order]
        raise InputError(
            f"the masks have values that belong to no class, with areas of their own: {_shortened(listed)}; {example}, "
            f"for example, contains the value {format_mask_value(value)}. The {len(found)} classes have the values "
            f"{_list_values(found)}. Correct the masks, or say what those values are",
            *_OPTIONS,
        )
    if n_rest > _MAX_REST * n_pixels:
        raise InputError(
            f"the {len(found)} most frequent values of the masks, {_list_values(found)}, cover only "
            f"{_percent(1 - n_rest / n_pixels)} of the pixels, where one value per class was expected: are these masks?"
        )
    return counts.values[rest]


# -- messages ----------------------------------------------------------------------------------------------------------


def _list_values(values: Sequence[int]) -> str:
    return _shortened([format_mask_value(int(value)) for value in values])


def _shortened(items: Sequence[str]) -> str:
    return ", ".join(items[:_LISTED_VALUES]) + (", ..." if len(items) > _LISTED_VALUES else "")


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.{0 if fraction >= 0.0995 else 1 if fraction >= 0.00095 else 4}f} %"


def _describe_masks(counts: ValueCounts, classes: MaskClasses, rest: np.ndarray) -> str:
    """What each value was taken for, with its share of the pixels that are not ignored."""
    of_class, is_rest = classes.of(counts.values), np.isin(counts.values, rest)  # both of resolved values
    ignored = of_class == IGNORED_CLASS
    total = max(counts.pixels[~ignored].sum(), 1)
    names = ["background", "lesion"] if len(classes.values) == 2 else ["background", *map(str, range(1, 256))]
    shares = [counts.pixels[(of_class == k) & ~is_rest].sum() / total for k in range(len(classes.values))]
    parts = [
        f"{format_mask_value(value)} {name if name in ('background', 'lesion') else 'class ' + name} {_percent(share)}"
        for value, name, share in zip(classes.values, names, shares, strict=False)
    ]
    text = f"masks: {', '.join(parts)}"
    if ignored.any():
        n_ignored = counts.pixels[ignored].sum()
        text += f"; {format_mask_value(classes.ignored)} ignored, {_percent(n_ignored / counts.pixels.sum())} of all"
    if len(rest):
        share = counts.pixels[is_rest].sum() / total
        text += (
            f"; the rest, {_percent(share)}, to the nearer of the two"
            if len(names) == 2
            else (f"; the rest, {_percent(share)}, to the nearest of these")
        )
    return text
