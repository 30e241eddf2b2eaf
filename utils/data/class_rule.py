"""Decide what the values of a set of masks mean: which are classes, ignored, or edges.

The classes are the N most frequent values or colours of the set, sorted, so that of two the lower is the background.
Any other value belongs to the nearest class if it is thin, as edges and compression leave it; one with an area of its
own is an error. 255 beside all labels 0 ... N - 1 is ignored; beside some of them the user has to say what it is.
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from utils import IGNORED_CLASS, RGB_OFFSET
from utils.data.mask_classes import MASK_FLAGS, MaskClasses, MaskOptions
from utils.data.mask_values import (
    ValueCounts,
    as_colours,
    colour_values,
    distances,
    format_mask_value,
    merge_counts,
    palettes_count_by_index,
)
from utils.runtime.errors import InputError

logger = logging.getLogger(__name__)

_VOID = 255  # the value that marks pixels to ignore in label maps
_MIN_VOID_RATIO = 0.01  # of labelled pixels to those of 255, which are otherwise the object, and the labels specks
_MIN_MARKED = 0.01  # of all pixels; in masks of less, compression leaves as many specks as there is of the object
_MANY = 8  # more values than classes and this many others: compressed or anti-aliased masks
_MIN_CONTRAST = 16  # between two classes of such masks
_MAX_NOISE_DISTANCE = 8  # of compression within an area
_MIN_SOLID, _MIN_FRACTION_OF_REST = 0.2, 0.05  # of a value with an area of its own in the set
_MIN_SOLID_IN_MASK, _MIN_FRACTION_IN_MASK = 0.65, 0.4  # in a single mask, whose smooth edges may be enlarged
_MACROBLOCK = 256  # pixels: WebP leaves one that differs in a mask that is otherwise constant
_MAX_REST = 0.5  # of the pixels
_MAX_CANDIDATES = 1000  # of the many values of compressed masks; noise is further down
_CLIPPED = 3  # this near to black or white, compression has moved it
_LISTED_VALUES = 5  # in a message


def decide_classes(
    masks: Mapping[str, ValueCounts],
    n_classes: int,
    options: MaskOptions | None = None,
    expected: MaskClasses | None = None,
) -> MaskClasses:
    """Decide what the values of a set of masks mean, and log it in a line.

    Args:
        masks: the values of each mask, by its name in messages.
        n_classes: number of classes; 1, a sigmoid output, distinguishes two values as well.
        options: what the user says.
        expected: what a model has recorded, of whose values other masks may lack some. Two classes are two classes,
            whatever their values.

    Raises:
        InputError: there are fewer values than classes, or others with an area of their own, or the options contradict
            each other; or a class has a value that the file of a mask cannot hold.
    """
    options, n_classes = options or MaskOptions(), max(n_classes, 2)
    options.check(n_classes)
    raw = merge_counts(masks.values())
    learnt = expected or MaskClasses(())
    named = (*options.of_classes, options.ignored)
    of_others = (*learnt.values, learnt.ignored) if expected else (*options.loaded.values, options.loaded.ignored)
    # Without masks that a model expects, only named colours tell how palettes are meant
    known = [value for value in (*named, *of_others) if value is not None and (expected or value >= RGB_OFFSET)]
    by_index = palettes_count_by_index(raw.values, known, learnt.by_index)
    by_mask = {name: merge_counts([one], by_index) for name, one in masks.items()}
    counts = merge_counts(by_mask.values())
    voids = (options.ignored, _recorded_void(counts, expected, options.loaded), _void_value(counts, by_mask, n_classes))
    ignored = next((value for value in voids if value not in (None, *options.of_classes)), None)
    if ignored is None and not expected and _VOID not in (*options.of_classes, *options.loaded.values):
        _check_no_label_is_missing(counts, n_classes)
    kept, by_mask = counts.without(ignored), {name: one.without(ignored) for name, one in by_mask.items()}
    if expected is None and options.ignored is not None and options.ignored not in counts.values:
        text = "No mask has the value %s, which is to be ignored"
        logger.warning(text, format_mask_value(options.ignored))
    classes = MaskClasses(_class_values(kept, n_classes, options, expected), ignored, by_index)
    _check_class_values(classes.values)
    if ignored is None and learnt.ignored in classes.values:
        text = (
            "The value %s, which the model ignores beside labels, is taken for lesion, because the masks show at most "
            "one other value: if its pixels do not count, name it as the value to ignore"
        )
        logger.warning(text, learnt.ignored)
    is_rest = _find_rest(kept, classes.values, by_mask)
    logger.info("%s", _describe_masks(counts, kept.values[is_rest], classes))
    background = kept.pixels[classes.of(kept.values) == 0].sum() / max(kept.pixels.sum(), 1)
    if background < 0.5 and expected is None and options.first is None:
        text = "Class 0, mask value %s, covers less than half of the pixels, %s: is it the background?"
        logger.warning(text, format_mask_value(classes.values[0]), _percent(background))
    return classes


# -- the rule ----------------------------------------------------------------------------------------------------------


def _void_value(counts: ValueCounts, masks: Mapping[str, ValueCounts], n_classes: int) -> int | None:
    """255 beside labels 0 ... N - 1, of which most masks with 255 have one; otherwise it may be an object."""
    if not np.array_equal(counts.values, [*range(n_classes), _VOID]):
        return None
    beside_labels = [one for one in masks.values() if np.isin(one.values, range(1, n_classes)).any()]
    n_beside = sum(one.pixels[one.values == _VOID].sum() for one in beside_labels)
    is_little = counts.pixels[1:].sum() < _MIN_MARKED * counts.pixels.sum()  # then specks without areas are no labels
    n_labelled = (counts.solid if is_little else counts.pixels)[1:-1].sum()
    enough = n_beside >= counts.pixels[-1] / 2 and n_labelled >= _MIN_VOID_RATIO * counts.pixels[-1]
    return _VOID if enough else None


def _check_no_label_is_missing(counts: ValueCounts, n_classes: int) -> None:
    """Raise an `InputError` if 255 lies beside some of the labels 0 ... N - 1: it may be a class, or mark no class."""
    others = counts.without(_VOID).values
    are_labels = np.isin(others, range(n_classes)).all() and 0 in others
    if are_labels and 1 < len(others) < min(n_classes, len(counts.values)):
        raise InputError(
            f"the masks have the values {_list_values(counts.values)}, of which 255 may be a class or mark pixels that "
            f"do not count, as it does beside all labels from 0 to {n_classes - 1}: name the values of the {n_classes} "
            "classes, and the value to ignore",
            "mask_values",
            "ignore_value",
        )


def _recorded_void(counts: ValueCounts, expected: MaskClasses | None, loaded: MaskClasses) -> int | None:
    """The ignored value of a model; but in masks of 0 and 255, the latter is the object that it has learnt as 1."""
    if expected is None:
        return loaded.ignored if {*loaded.values} <= {*counts.values.tolist()} else None
    is_object = expected.ignored == _VOID and len(expected.values) == 2 and len(counts.without(_VOID).values) < 2
    return None if is_object else expected.ignored


def _class_values(
    counts: ValueCounts, n_classes: int, options: MaskOptions, expected: MaskClasses | None
) -> tuple[int, ...]:
    """The values of class 0, 1, ..."""
    found = tuple(options.values) or _most_frequent(counts, n_classes)
    if expected:
        return _in_order_of(found, expected.values) if n_classes == 2 else tuple(expected.values)
    if len(found) < n_classes:
        raise InputError(
            f"the masks have too few values for {n_classes} classes, only {_list_values(found)}: each class must occur "
            "in at least one mask",
            "classes",
            "mask_values",
        )
    if options.first is not None and options.first not in found:
        background = format_mask_value(options.first)
        raise InputError(f"the background {background} is none of the mask values {_list_values(found)}")
    if options.first is None and {*found} == {*options.loaded.values}:
        return tuple(options.loaded.values)
    return tuple(sorted(found, key=lambda value: value != options.first))


def _most_frequent(counts: ValueCounts, n: int) -> tuple[int, ...]:
    """The n values with the largest areas, sorted; of compressed masks far enough from each other."""
    order = np.lexsort((counts.pixels, counts.solid))[::-1]
    if len(order) <= n + _MANY:
        return tuple(sorted(counts.values[order[:n]].tolist()))
    found: list[int] = []
    for i in order[:_MAX_CANDIDATES]:
        value, own_area = int(counts.values[i]), counts.solid[i] >= _MIN_SOLID * counts.pixels[i]
        is_far = not found or distances([value], found).min() >= _MIN_CONTRAST
        if len(found) < n and is_far and (own_area or len(found) < 2):  # of two classes, one may be of thin lines
            found.append(value)
    # Black and white, and full colours, where compression has moved them a little: flat black in a JPEG may be 1
    colours = as_colours(found)
    colours[colours <= _CLIPPED] = 0
    colours[(colours >= 255 - _CLIPPED) & (colours <= 255)] = 255
    unclipped = colour_values(colours).tolist()
    return tuple(sorted(unclipped if len({*unclipped}) == n else found))


def _in_order_of(found: tuple[int, ...], expected: Sequence[int]) -> tuple[int, ...]:
    """One or two values in the order of the expected ones next to them; two next to the same one are sorted."""
    nearest = MaskClasses(expected).of(np.array(found, np.int64)).tolist()
    if len({*nearest}) < len(found):
        return found
    values = dict(enumerate(expected)) | dict(zip(nearest, found, strict=True))
    return tuple(values[k] for k in sorted(values))


def _check_class_values(values: Sequence[int]) -> None:
    """Raise an `InputError` unless a file can hold these values of classes, in which masks are predicted."""
    greys = [value for value in values if value < RGB_OFFSET]
    if (lowest := min(greys, default=0)) < 0:
        raise InputError(
            f"the mask value {lowest} is negative, which the value of a class cannot be: ignore its pixels, or correct "
            "the masks",
            "ignore_value",
        )
    kind, limit = ("a grey value", 65535) if len(greys) == len(values) else ("a grey value beside colours", 255)
    if (highest := max(greys, default=0)) > limit:
        raise InputError(
            f"the mask value {highest} is above {limit}, which {kind} of a class cannot be: write the masks with lower "
            "values, such as 0, 1, 2"
        )


def _find_rest(counts: ValueCounts, found: Sequence[int], masks: Mapping[str, ValueCounts]) -> np.ndarray:
    """Which values are none of the classes, bool.

    Raises:
        InputError: one has an area of its own, or lies beside labels such as 0, 1, 2, or they are most of the pixels.
    """
    noise = _MAX_NOISE_DISTANCE if len(counts.values) > len(found) + _MANY else 0
    rest = distances(counts.values, found).min(axis=1) > noise
    n_rest, n_pixels = counts.pixels[rest].sum(), counts.pixels.sum()
    own_area = (counts.solid >= _MIN_SOLID * counts.pixels) & (counts.pixels >= _MIN_FRACTION_OF_REST * n_rest)
    contrasts = distances(found, found)
    own_area |= contrasts[contrasts > 0].min(initial=np.inf) < _MIN_CONTRAST
    in_one = np.concatenate([_areas_in_one_mask(one, found, noise) for one in masks.values()])
    further = np.flatnonzero((rest & own_area) | np.isin(counts.values, in_one))
    if len(further):
        further = further[np.argsort(-counts.pixels[further])]
        names = [format_mask_value(value) for value in counts.values[further].tolist()]
        fractions = map(_percent, counts.pixels[further] / n_pixels)
        listed = [f"{name} ({fraction})" for name, fraction in zip(names, fractions, strict=True)]
        first = counts.values[further[0]]
        example = max(masks, key=lambda name: masks[name].solid[masks[name].values == first].sum())
        raise InputError(
            f"the masks have values that belong to no class, with areas of their own: {_shortened(listed)}; {example}, "
            f"for example, contains the value {names[0]}. The {len(found)} classes have the values "
            f"{_list_values(found)}. Correct the masks, or say what those values are",
            *MASK_FLAGS,
        )
    if n_rest > _MAX_REST * n_pixels:
        raise InputError(
            f"the {len(found)} most frequent values of the masks, {_list_values(found)}, cover only "
            f"{_percent(1 - n_rest / n_pixels)} of the pixels, where one value per class was expected: are these masks?"
        )
    return rest


def _areas_in_one_mask(counts: ValueCounts, found: Sequence[int], noise: float) -> np.ndarray:
    """The values of no class that have areas of their own in one mask, however small its part of the set is.

    If all of its values are noise around one class, they are labels: noise comes with the edges between two classes.
    """
    to_found = distances(counts.values, found)
    distance, nearest, solid = to_found.min(axis=1), to_found.argmin(axis=1), counts.solid / counts.pixels
    rest = distance > noise
    if not rest.any() and len({*nearest.tolist()}) == 1:
        areas = (solid >= _MIN_SOLID) & (counts.pixels > _MACROBLOCK)
        return counts.values[areas & (distance > 0) & (np.count_nonzero(areas) > 1)]
    much = counts.pixels >= _MIN_FRACTION_IN_MASK * counts.pixels[rest].sum()
    return counts.values[rest & much & (solid >= _MIN_SOLID_IN_MASK)]


# -- messages ----------------------------------------------------------------------------------------------------------


def _list_values(values: Sequence[int]) -> str:
    return _shortened([format_mask_value(int(value)) for value in values])


def _shortened(items: Sequence[str]) -> str:
    return ", ".join(items[:_LISTED_VALUES]) + (", ..." if len(items) > _LISTED_VALUES else "")


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.{0 if fraction >= 0.0995 else 1 if fraction >= 0.00095 else 4}f} %"


def _describe_masks(counts: ValueCounts, rest: np.ndarray, classes: MaskClasses) -> str:
    """What each value was taken for, with its share of the pixels that are not ignored."""
    of_class = classes.of(counts.values).astype(int)
    of_class[np.isin(counts.values, rest)] = -1
    n_pixels = {k: counts.pixels[of_class == k].sum() for k in (*range(len(classes.values)), -1, IGNORED_CLASS)}
    n_ignored, n_all = n_pixels.pop(IGNORED_CLASS), counts.pixels.sum()
    shares = {k: _percent(n / max(n_all - n_ignored, 1)) for k, n in n_pixels.items()}
    two = len(classes.values) == 2
    names = ["background", *(["lesion"] if two else [f"class {k}" for k in range(1, len(classes.values))])]
    parts = [
        f"{format_mask_value(v)} {name} {shares[k]}"
        for k, (v, name) in enumerate(zip(classes.values, names, strict=True))
    ]
    text = f"masks: {', '.join(parts)}"
    if n_ignored:
        text += f"; {format_mask_value(classes.ignored)} ignored, {_percent(n_ignored / n_all)} of all"
    if len(rest):
        text += f"; the rest, {shares[-1]}, to the {'nearer of the two' if two else 'nearest of these'}"
    return text
