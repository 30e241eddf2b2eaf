"""Small lesions: masks in which a lesion vanishes at the network's input size keep the pixel with its largest share."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from utils.data.decoding import DecodedPairs
from utils.data.fitting import MaskFitter
from utils.data.images import image_size
from utils.data.mask_classes import MaskClasses
from utils.runtime.atomic_files import write_json
from utils.runtime.console import progress
from utils.runtime.seeds import json_digest
from utils.runtime.threads import usable_cores

KeptPixels = list[tuple[int, int]]  # index in the flattened mask, class


def pixels_per_class(decoded: DecodedPairs, tables: Sequence[np.ndarray], n_classes: int) -> np.ndarray:
    """(N, n_classes) pixels of each class in each mask at its own size; `tables` holds the classes of its values."""
    counted = zip(tables, decoded.counts, strict=True)
    return np.array([np.bincount(table, counts.pixels, minlength=256)[:n_classes] for table, counts in counted])


def keep_lesions(
    decoded: DecodedPairs, indices: Sequence[int], mask_classes: MaskClasses, tables: Sequence[np.ndarray]
) -> dict[int, KeptPixels]:
    """The pixels to add to masks that have lost a class but the background at the network's input size, or twice that.

    Args:
        decoded: all pairs.
        indices: which of them.
        mask_classes: what the mask values mean.
        tables: for each mask the class of each of its values.

    Returns:
        For each of the indices whose mask has lost a class, a pixel of each lost class.
    """
    n_classes = len(mask_classes.values)
    at_own_size = pixels_per_class(decoded, tables, n_classes) > 0
    resized = (decoded.masks, decoded.fine_masks)
    lost: dict[int, list[int]] = {}
    for i in indices:
        shown = [tables[i][np.bincount(masks[i].ravel(), minlength=len(tables[i])) > 0] for masks in resized]
        vanished = [k for k in range(1, n_classes) if at_own_size[i, k] and not all(k in classes for classes in shown)]
        if vanished:
            lost[i] = vanished

    def keep(i: int) -> KeptPixels:
        pair = decoded.pairs[i]
        masks = MaskFitter().read(pair.masks, image_size(pair.image))
        return largest_shares(mask_classes.unite(masks), tables[i][decoded.masks[i]], lost[i])

    path = _cache_file(decoded, mask_classes)
    known = {}
    if path:
        with suppress(OSError, ValueError):  # not there, or damaged
            known = json.loads(path.read_text())
    todo = [i for i in lost if str(i) not in known]
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        kept = progress(pool.map(keep, todo), total=len(todo), desc="Small lesions", unit="mask", leave=False)
        known |= {str(i): pixels for i, pixels in zip(todo, kept, strict=True)}
    if path and todo:
        with suppress(OSError):  # the next run reads the masks again
            write_json(path, known)
    return {i: [(pixel, k) for pixel, k in known[str(i)]] for i in lost}


def _cache_file(decoded: DecodedPairs, mask_classes: MaskClasses) -> Path | None:
    """Where the kept pixels of masks that are interpreted so are kept, in the folder of the cache if there is one."""
    if not isinstance(decoded.masks, np.memmap):
        return None
    digest = json_digest([*mask_classes.values, mask_classes.ignored, mask_classes.by_index])
    return Path(decoded.masks.filename).with_name(f"kept-{digest}.json")


def largest_shares(classes: np.ndarray, downscaled: np.ndarray, lost: Sequence[int]) -> KeptPixels:
    """For each lost class the pixel of the downscaled mask that covers most of it.

    A pixel that is the only one of another class but the background is left to that class.

    Args:
        classes: (H, W) classes.
        downscaled: (h, w) the same, downscaled.
        lost: classes that hardly occur in it, or in `classes` only.
    """
    (height, width), (h, w) = classes.shape, downscaled.shape
    candidates = {}
    for k in lost:
        rows, columns = np.nonzero(classes == k)
        covering = (2 * rows + 1) * h // (2 * height) * w + (2 * columns + 1) * w // (2 * width)
        pixels, shares = np.unique(covering, return_counts=True)
        candidates[k] = pixels[np.argsort(-shares, kind="stable")].tolist()
    flat, kept = downscaled.flatten(), []
    for k in sorted(lost, key=lambda k: len(candidates[k])):  # those with the least choice first
        for pixel in candidates[k]:
            if flat[pixel] in (0, k) or np.count_nonzero(flat == flat[pixel]) > 1:
                flat[pixel] = k
                kept.append((pixel, k))
                break
    return kept
