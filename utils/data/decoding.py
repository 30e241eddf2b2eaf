"""Decode all pairs of a dataset into arrays at the network's input size, in threads."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from utils.data.class_rule import decide_classes
from utils.data.fitting import MaskFitter, log_resized, unite_masks
from utils.data.images import read_image
from utils.data.mask_classes import MaskClasses, MaskOptions
from utils.data.mask_values import ValueCounts
from utils.data.pairing import Pair
from utils.data.preprocessing import preprocess
from utils.runtime.console import progress
from utils.runtime.errors import InputError, bulleted
from utils.runtime.threads import usable_cores

logger = logging.getLogger(__name__)

_NO_VALUES = ValueCounts(*np.zeros((3, 0), np.int64))


@dataclass
class DecodedPairs:
    """All pairs of a dataset at the network's input size.

    Attributes:
        pairs: the N files.
        images: (N, h, w, 3) uint8, in memory or memory-mapped from the cache.
        masks: (N, h, w) uint16 indices into the mask's own values.
        fine_masks: (N, 2 h, 2 w), the same at twice the resolution.
        counts: for each mask its values, each with its number of pixels at the mask's own size.
        white: the value of white in 16-bit images; None if there are none.
        resized: for each pair a line about each mask that had another size than its image.
    """

    pairs: list[Pair]
    images: np.ndarray
    masks: np.ndarray
    fine_masks: np.ndarray
    counts: list[ValueCounts] = field(default_factory=list)
    white: float | None = None
    resized: list[list[str]] = field(default_factory=list)

    def mask_classes(
        self, n_classes: int, options: MaskOptions | None = None, expected: MaskClasses | None = None
    ) -> MaskClasses:
        """`decide_classes` of these masks."""
        masks = {str(pair.mask): counts for pair, counts in zip(self.pairs, self.counts, strict=True)}
        return decide_classes(masks, n_classes, options, expected)


def array_layout(n: int, size: tuple[int, int]) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape and dtype of the arrays of `DecodedPairs`, by name, for n pairs and an input size of width and height."""
    width, height = size
    return {
        "images": ((n, height, width, 3), np.uint8),
        "masks": ((n, height, width), np.uint16),
        "fine_masks": ((n, 2 * height, 2 * width), np.uint16),
    }


ARRAY_NAMES = tuple(array_layout(0, (0, 0)))


class PairDecoder:
    """Decodes pairs into given arrays.

    Args:
        pairs: the files.
        arrays: with the names, shapes and dtypes of `array_layout`, zero-initialised; filled in.
        white: the value of white in 16-bit images.
        background, ignored: of masks that are united, see `unite_masks`.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        arrays: dict[str, np.ndarray],
        white: float | None = None,
        background: int | None = None,
        ignored: int | None = None,
    ) -> None:
        counts, resized = [_NO_VALUES] * len(pairs), [[] for _ in pairs]
        self.decoded = DecodedPairs(list(pairs), **arrays, counts=counts, white=white, resized=resized)
        self._background, self._ignored = background, ignored

    def reuse(self, i: int, source: DecodedPairs, row: int) -> None:
        """Copy pair i from row `row` of an earlier result."""
        for name in (*ARRAY_NAMES, "counts", "resized"):
            getattr(self.decoded, name)[i] = getattr(source, name)[row]

    def decode(self, i: int) -> InputError | None:
        """Decode pair i from its files; returns what is wrong with the pair, or None."""
        target, pair, fitter = self.decoded, self.decoded.pairs[i], MaskFitter()
        height, width = target.masks.shape[1:]
        try:
            image = read_image(pair.image, target.white)
            mask = unite_masks(fitter.read(pair.masks, image.size), self._background, self._ignored)
            target.images[i] = preprocess(image, (width, height)).permute(1, 2, 0).numpy()
            counts = target.counts[i] = mask.count()
            if len(counts.values) > np.iinfo(target.masks.dtype).max:
                raise InputError(f"{pair.mask} has {len(counts.values)} distinct values: is it a mask?")
        except InputError as error:
            return InputError(f"{pair.image.name}, {pair.mask.name}: {error}", *error.options)
        codes = Image.fromarray(mask.codes)
        for masks in (target.masks, target.fine_masks):
            height, width = masks.shape[1:]
            resized = mask.values[codes.resize((width, height), Image.Resampling.NEAREST)]
            masks[i] = np.searchsorted(counts.values, resized)
        target.resized[i] = fitter.resized
        return None

    def decode_all(self, todo: Sequence[int], skip_unusable: bool = False) -> None:
        """Decode these pairs from their files, in threads, and remove those that are skipped from `decoded`.

        Raises:
            InputError: pairs cannot be used, and are not to be skipped, or none is left; all are listed.
        """
        with ThreadPoolExecutor(min(8, usable_cores())) as pool:
            results = progress(pool.map(self.decode, todo), total=len(todo), desc="Decoding", unit="pair")
            problems = {i: problem for i, problem in zip(todo, results, strict=True) if problem}
        log_resized([line for lines in self.decoded.resized for line in lines])
        n = len(self.decoded.pairs)
        title, listed = f"{len(problems)} of {n} pairs cannot be used", [str(error) for error in problems.values()]
        if problems and not (skip_unusable and len(problems) < n):
            options = dict.fromkeys(option for error in problems.values() for option in error.options)
            raise InputError(bulleted(title, listed), *options, "skip_unusable")
        if problems:
            logger.warning("%s", bulleted(f"{title}, and are skipped", listed, limit=10))
            self._keep([i for i in range(n) if i not in problems])

    def _keep(self, usable: Sequence[int]) -> None:
        """Keep these pairs, and move their rows to the beginning of the arrays."""
        decoded = self.decoded
        for name in ("pairs", "counts", "resized"):
            setattr(decoded, name, [getattr(decoded, name)[i] for i in usable])
        for name in ARRAY_NAMES:
            array = getattr(decoded, name)
            for row, i in enumerate(usable):
                array[row] = array[i]
            setattr(decoded, name, array[: len(usable)])
