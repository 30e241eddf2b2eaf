"""The cache of decoded pairs: each file is decoded once, and again only when it has changed.

A cache is a folder `DATASET-CONTENT` of arrays, memory-mapped when it is read: DATASET is a digest of the folders, the
input size and the given values of white and, for united masks, of background and ignored pixels; CONTENT one of the
files' names, sizes and modification times, and of whether unusable ones were skipped.
"""

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from utils.data.decoding import ARRAY_NAMES, DecodedPairs, PairDecoder, array_layout
from utils.data.fitting import log_resized
from utils.data.images import find_white
from utils.data.mask_values import ValueCounts
from utils.data.pairing import Pair
from utils.runtime import distributed
from utils.runtime.atomic_files import allocate, rename
from utils.runtime.seeds import json_digest

logger = logging.getLogger(__name__)

DEFAULT_CACHE_DIR = Path(__file__).resolve().parents[2] / "data" / ".cache"
_VERSION = 6  # to be incremented when the cached arrays change
_ABANDONED_AFTER = 86400  # seconds, after which an unfinished folder counts as abandoned


@distributed.main_first()
def decode_pairs(
    pairs: Sequence[Pair],
    size: tuple[int, int],
    cache_dir: Path | str | None = DEFAULT_CACHE_DIR,
    white: float | None = None,
    skip_unusable: bool = False,
    background: int | None = None,
    ignored: int | None = None,
) -> DecodedPairs:
    """Every image and mask at the network's input size; of several processes the main one decodes.

    Args:
        pairs: the files.
        size: width and height of the network's input.
        cache_dir: where the arrays are kept; if None, or if it cannot be written, they are in memory only.
        white: the value of white in 16-bit images; None to find it.
        skip_unusable: continue without pairs that cannot be used.
        background: the value of the background of masks, if it is not the lowest; see `unite_masks`.
        ignored: the value of pixels that do not count, if it is known.

    Raises:
        InputError: files that cannot be read, or pairs of different sizes; all are listed.
    """
    values = (white, (background, ignored) if any(len(pair.masks) > 1 for pair in pairs) else None)
    fingerprints = [[_fingerprint(path) for path in (pair.image, *pair.masks)] for pair in pairs]
    if cache_dir is None:
        return _decode(pairs, fingerprints, _new_arrays(len(pairs), size), None, values, skip_unusable)

    # The cache of exactly these files, if it exists and is intact.
    cache_dir = Path(cache_dir)
    dataset = json_digest([_VERSION, size, values, _common_folder(fingerprints, 0), _common_folder(fingerprints, 1)])
    limit = Image.MAX_IMAGE_PIXELS if skip_unusable else None  # a larger one makes more of them usable
    folder = cache_dir / f"{dataset}-{json_digest([fingerprints, skip_unusable, limit])}"
    cached = _load(folder, pairs)
    if cached is not None:
        _log_cached(cached, len(pairs), white)
        return cached

    # A new one, built in a hidden folder, reusing entries of an earlier cache of the same dataset.
    shutil.rmtree(folder, ignore_errors=True)
    earlier = sorted(cache_dir.glob(f"{dataset}-*"))
    building = _new_folder(folder, len(pairs), size)
    arrays = _new_arrays(len(pairs), size) if building is None else _memory_map(building, "r+")
    try:
        decoded = _decode(pairs, fingerprints, arrays, earlier[0] if earlier else None, values, skip_unusable)
        if building is None or not _complete(building, arrays, pairs, fingerprints, decoded):
            return decoded
    except BaseException:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)
        raise

    del arrays, decoded  # Windows renames no folder with files that are mapped
    cached = _load(_move_into_place(building, folder, [*earlier, *_abandoned(cache_dir, dataset)]), pairs)
    # Another process, which decodes other files of these folders, may have removed it.
    return cached or _decode(pairs, fingerprints, _new_arrays(len(pairs), size), None, values, skip_unusable)


def _complete(
    building: Path,
    arrays: dict[str, np.ndarray],
    pairs: Sequence[Pair],
    fingerprints: list[list],
    decoded: DecodedPairs,
) -> bool:
    """Write what has not been written of a new cache; returns False, with a warning, if it cannot be written."""
    try:
        for array in arrays.values():
            array.flush()
        _write_index(building, pairs, fingerprints, decoded)
    except OSError as error:
        _give_up(building, error)
        return False
    return True


def _move_into_place(building: Path, folder: Path, replaced: Sequence[Path]) -> Path:
    """Give a finished cache its name, and remove those that it replaces; returns where it is."""
    try:
        rename(building, folder)
    except OSError as error:
        if _load(folder) is None:
            words = "The cache %s cannot be kept (%s): the next run decodes the images again"
            logger.warning(words, building.parent, error.strerror)
            return building
        shutil.rmtree(building, ignore_errors=True)  # another process has meanwhile built the same one
    for path in replaced:
        shutil.rmtree(path, ignore_errors=True)
    return folder


def _log_cached(cached: DecodedPairs, n_pairs: int, white: float | None) -> None:
    """Say what decoding has said when the cache was made."""
    log_resized([line for lines in cached.resized for line in lines])
    if skipped := n_pairs - len(cached.pairs):
        logger.warning("%d of %d pairs cannot be used, and are skipped", skipped, n_pairs)
    if white is None and cached.white is not None:
        logger.info("White in 16-bit images is %g", cached.white)


def _decode(
    pairs: Sequence[Pair],
    fingerprints: list[list],
    arrays: dict[str, np.ndarray],
    earlier: Path | None,
    values: tuple[float | None, tuple[int | None, int | None] | None],
    skip_unusable: bool,
) -> DecodedPairs:
    """Decode the pairs into arrays; those whose files have not changed are copied from an earlier cache."""
    white, of_united = values
    white = white or find_white(pair.image for pair in pairs)
    decoder = PairDecoder(pairs, arrays, white, *(of_united or ()))
    source = _load(earlier) if earlier else None
    source = None if source and source.white != white else source
    rows = {}
    if source:
        with suppress(OSError, ValueError):  # another process may remove it meanwhile
            rows = {json.dumps(files): row for row, files in enumerate(_index(earlier)["files"])}
    todo = []
    for i, files in enumerate(fingerprints):
        row = rows.get(json.dumps(files))
        if row is None:
            todo.append(i)
        else:
            decoder.reuse(i, source, row)
    decoder.decode_all(todo, skip_unusable)
    return decoder.decoded


def _fingerprint(path: Path) -> list:
    """Path, size and modification time of a file; of one that cannot be read, which reading it will report, only -1."""
    name = os.path.join(os.path.realpath(path.parent), path.name)
    try:
        status = path.stat()
    except OSError:
        return [name, -1, -1]
    return [name, status.st_size, status.st_mtime_ns] if os.access(path, os.R_OK) else [name, -1, -1]


def _common_folder(fingerprints: list[list], i: int) -> str:
    """The folder with the i-th file of every pair in it or in its sub-folders."""
    folders = {os.path.dirname(files[i][0]) for files in fingerprints}
    with suppress(ValueError):  # on Windows they may be on several drives
        return os.path.commonpath(folders)
    return min(folders)


def _abandoned(cache_dir: Path, dataset: str) -> list[Path]:
    """Unfinished folders of killed processes."""
    oldest = time.time() - _ABANDONED_AFTER
    abandoned = []
    for path in cache_dir.glob(f".{dataset}-*.part"):
        with suppress(OSError):  # another process has meanwhile given it its name
            if path.stat().st_mtime < oldest:
                abandoned.append(path)
    return abandoned


def _new_folder(folder: Path, n: int, size: tuple[int, int]) -> Path | None:
    """A new hidden folder beside `folder` with the arrays of a cache; None, with a warning, if it cannot be written."""
    building = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        building.mkdir(parents=True)
        for name, (shape, dtype) in array_layout(n, size).items():
            path = building / f"{name}.npy"
            array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
            with open(path, "r+b") as file:  # on a full disk, writing to the mapped file would kill the process
                allocate(file, array.offset + array.nbytes)
    except OSError as error:
        _give_up(building, error)
        return None
    return building


def _give_up(building: Path, error: OSError) -> None:
    """Remove an unfinished folder that cannot be written, and say so."""
    shutil.rmtree(building, ignore_errors=True)
    logger.warning(
        "The cache %s cannot be written (%s): the decoded images stay in memory, the next run decodes them again",
        building.parent,
        error.strerror,
    )


def _new_arrays(n: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, dtype) for name, (shape, dtype) in array_layout(n, size).items()}


def _memory_map(folder: Path, mode: str) -> dict[str, np.ndarray]:
    return {name: np.load(folder / f"{name}.npy", mmap_mode=mode) for name in ARRAY_NAMES}


def _write_index(folder: Path, pairs: Sequence[Pair], fingerprints: list[list], decoded: DecodedPairs) -> None:
    """Write which of the pairs the rows of the arrays are, and what is known of each, or of all of them."""
    kept = set(decoded.pairs)
    usable = [i for i, pair in enumerate(pairs) if pair in kept]
    lengths = [len(counts.values) for counts in decoded.counts]
    index = {"usable": usable, "files": [fingerprints[i] for i in usable], "lengths": lengths}
    index |= {"resized": decoded.resized, "white": decoded.white}
    np.save(folder / "counts.npy", np.concatenate(decoded.counts, axis=1))
    (folder / "index.json").write_text(json.dumps(index))


def _index(folder: Path) -> dict:
    return json.loads((folder / "index.json").read_text())


def _load(folder: Path, pairs: Sequence[Pair] = ()) -> DecodedPairs | None:
    """The cache in a folder, of those of the pairs that can be used; None if there is none, or a damaged one."""
    try:
        index, counts = _index(folder), np.load(folder / "counts.npy")
        of_masks = np.split(counts, np.cumsum(index["lengths"])[:-1], axis=1)
        arrays, of_all = _memory_map(folder, "r"), {name: index[name] for name in ("white", "resized")}
    except (OSError, ValueError, EOFError, LookupError):
        return None
    usable = [pairs[i] for i in index["usable"]] if pairs else []
    n = len(index["usable"])
    arrays = {name: array[:n] for name, array in arrays.items()}
    return DecodedPairs(usable, **arrays, counts=[ValueCounts(*rows) for rows in of_masks], **of_all)
