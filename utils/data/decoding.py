"""Decode all pairs of a dataset into arrays at the network's input size, in threads."""

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from utils.data.fitting import MaskFitter
from utils.data.images import read_image
from utils.data.masks import classes_of_values, infer_mask_values, read_mask
from utils.data.pairing import Pair
from utils.data.preprocessing import preprocess
from utils.runtime.console import progress
from utils.runtime.errors import InputError, bulleted
from utils.runtime.threads import usable_cores

logger = logging.getLogger(__name__)

MAX_VALUES = 256  # distinct values in the masks of a dataset, so that their indices are bytes


@dataclass
class DecodedPairs:
    """All pairs of a dataset at the network's input size.

    Attributes:
        pairs: the N files.
        images: (N, h, w, 3) uint8, in memory or memory-mapped from the cache.
        masks: (N, h, w) uint8 indices into `values`.
        values: the distinct mask values.
        counts: (N, 256) int32, for each mask at its own size the number of pixels of each of `values`.
    """

    pairs: list[Pair]
    images: np.ndarray
    masks: np.ndarray
    values: list[int]
    counts: np.ndarray

    def mask_values(self, n_classes: int) -> list[int]:
        """`infer_mask_values` of these masks."""
        names = [str(pair.mask) for pair in self.pairs]
        return infer_mask_values(self.values, self.counts[:, : len(self.values)], names, n_classes)

    def class_table(self, mask_values: Sequence[int]) -> np.ndarray:
        """The class of each of `values`, as a (len(values),) uint8 lookup table.

        Raises:
            InputError: a mask contains a value that belongs to no class.
        """
        classes: dict[int, int] = {}
        for pair, counts in zip(self.pairs, self.counts, strict=True):
            found = [self.values[index] for index in np.flatnonzero(counts).tolist()]
            classes.update(classes_of_values(found, mask_values, str(pair.mask)))
        return np.array([classes[value] for value in self.values], dtype=np.uint8)


def array_layout(n: int, size: tuple[int, int]) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape and dtype of the arrays of `DecodedPairs`, by name, for n pairs and an input size of width and height."""
    width, height = size
    return {
        "images": ((n, height, width, 3), np.uint8),
        "masks": ((n, height, width), np.uint8),
        "counts": ((n, MAX_VALUES), np.int32),
    }


class PairDecoder:
    """Decodes pairs into given arrays.

    Args:
        pairs: the files.
        arrays: with the names, shapes and dtypes of `array_layout`, zero-initialised; filled in.
    """

    def __init__(self, pairs: Sequence[Pair], arrays: dict[str, np.ndarray]) -> None:
        self.decoded = DecodedPairs(list(pairs), values=[], **arrays)
        self._fitter = MaskFitter()
        self._lock = threading.Lock()

    def reuse(self, i: int, source: DecodedPairs, row: int) -> None:
        """Copy pair i from row `row` of an earlier result."""
        target = self.decoded
        found = np.flatnonzero(source.counts[row])
        indices = self._indices([source.values[index] for index in found])
        target.images[i], target.counts[i, indices] = source.images[row], source.counts[row, found]
        target.masks[i] = indices[np.searchsorted(found, source.masks[row])]

    def decode(self, i: int) -> str | None:
        """Decode pair i from its files; returns what is wrong with the pair, or None."""
        target, pair = self.decoded, self.decoded.pairs[i]
        height, width = target.masks.shape[1:]
        try:
            image = read_image(pair.image)
            mask = self._fitter.fit({path: read_mask(path) for path in pair.masks}, image.size)
            target.images[i] = preprocess(image, (width, height)).permute(1, 2, 0).numpy()
            found, pixels = np.unique(mask, return_counts=True)
            indices = self._indices(found.tolist())
        except InputError as error:
            return f"{pair.image.name}, {pair.mask.name}: {error}"
        target.counts[i, indices] = pixels
        resized = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
        target.masks[i] = indices[np.searchsorted(found, resized)]
        return None

    def decode_all(self, todo: Sequence[int], skip_unusable: bool = False) -> None:
        """Decode these pairs from their files, in threads, and remove those that are skipped from `decoded`.

        Raises:
            InputError: pairs cannot be used, and are not to be skipped, or none is left; all are listed.
        """
        with ThreadPoolExecutor(min(8, usable_cores())) as pool:
            results = progress(pool.map(self.decode, todo), total=len(todo), desc="Decoding", unit="pair")
            problems = {i: problem for i, problem in zip(todo, results, strict=True) if problem}
        self._fitter.log()
        n = len(self.decoded.pairs)
        title, listed = f"{len(problems)} of {n} pairs cannot be used", list(problems.values())
        if problems and not (skip_unusable and len(problems) < n):
            raise InputError(bulleted(title, listed), option="skip_unusable")
        if problems:
            logger.warning("%s", bulleted(f"{title}, and are skipped", listed, limit=10))
            self._keep([i for i in range(n) if i not in problems])

    def _keep(self, usable: Sequence[int]) -> None:
        """Keep these pairs, and move their rows to the beginning of the arrays."""
        self.decoded.pairs = [self.decoded.pairs[i] for i in usable]
        for name in array_layout(0, (0, 0)):
            array = getattr(self.decoded, name)
            for row, i in enumerate(usable):
                array[row] = array[i]
            setattr(self.decoded, name, array[: len(usable)])

    def _indices(self, found: list[int]) -> np.ndarray:
        """The indices of mask values in `values`, to which new values are appended."""
        with self._lock:
            values = self.decoded.values
            new = [value for value in found[: MAX_VALUES + 1] if value not in values]
            if len(values) + len(new) > MAX_VALUES:
                raise InputError(
                    f"it has {len(found)} distinct values, and all masks together more than {MAX_VALUES}, where one "
                    "per class was expected: is it a mask?"
                )
            values.extend(new)
            return np.array([values.index(value) for value in found], dtype=np.uint8)
