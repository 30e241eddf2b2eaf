"""Pair images with masks, preprocess, the dataset and its cache of decoded files."""

import hashlib
import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path, PurePath

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from utils.cli import progress
from utils.errors import InputError
from utils.image_io import READABLE_EXTENSIONS, RGB_VALUE, image_size, list_images, read_image, read_mask

logger = logging.getLogger(__name__)

DEFAULT_CACHE_DIR = Path(__file__).resolve().parent.parent / "data" / ".cache"
_CACHE_VERSION = 1  # to be raised whenever the cached arrays are made in another way
_MASK_SUFFIXES = ("", "_Segmentation", "_segmentation")  # of a mask's stem, behind its image's


@dataclass(frozen=True)
class Pair:
    """An image file and its mask file."""

    image: Path
    mask: Path


def preprocess(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """An image as the network takes it, before the division by 255.

    Args:
        image: of any mode.
        size: width and height of the network's input.

    Returns:
        (3, h, w) uint8, resized bicubically, without keeping the aspect ratio.
    """
    resized = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)  # (h, w, 3) -> (3, h, w)


# -- pairs ---------------------------------------------------------------------------------------------------------


def _masks_of(stem: str, masks: dict[str, list[Path]]) -> list[Path]:
    """The masks of the image `stem` among a folder's files by stem."""
    return [path for suffix in _MASK_SUFFIXES for path in masks.get(stem + suffix, [])]


def _by_stem(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Files by their names without the ending."""
    files: dict[str, list[Path]] = {}
    for path in paths:
        files.setdefault(path.stem, []).append(path)
    return files


def pair_files(imgs_dir: Path | str, masks_dir: Path | str) -> list[Pair]:
    """Pair the images of a folder with their masks.

    The mask of `STEM.jpg` is `STEM.*`, `STEM_Segmentation.*` or `STEM_segmentation.*`. Sub-folders, hidden files and
    files that are no images are passed over.

    Raises:
        InputError: an image without a mask, a mask without an image, or a stem that stands for several files; all of
            them are named.
    """
    images, masks = (_by_stem(list_images(folder, READABLE_EXTENSIONS)) for folder in (imgs_dir, masks_dir))
    problems, pairs, used = [], [], set()
    for stem, image_paths in sorted(images.items()):
        # "a_segmentation.png" is the mask of "a_segmentation.jpg", where there is one, and not of "a.jpg"
        mask_paths = [p for p in _masks_of(stem, masks) if p.stem == stem or p.stem not in images]
        used.update(mask_paths)
        if len(image_paths) > 1:
            problems.append(f"{stem}: {len(image_paths)} images ({_names(image_paths)})")
        if len(mask_paths) > 1:
            problems.append(f"{stem}: {len(mask_paths)} masks ({_names(mask_paths)})")
        if not mask_paths:
            problems.append(f"{_names(image_paths)}: no mask in {masks_dir}")
        if len(image_paths) == len(mask_paths) == 1:
            pairs.append(Pair(image_paths[0], mask_paths[0]))
    problems += [
        f"{path.name}: no image in {imgs_dir}" for paths in masks.values() for path in paths if path not in used
    ]
    if problems:  # sizes are compared when a pair is decoded; here they complete the list
        problems += [problem for problem in map(_size_problem, pairs) if problem]
        raise InputError(
            _listing(
                f"{imgs_dir} and {masks_dir} do not pair (an image NAME.jpg needs one mask, NAME.png or "
                "NAME_Segmentation.png)",
                problems,
            )
        )
    return pairs


def find_masks(names: Sequence[PurePath], masks_dir: Path | str) -> dict[PurePath, Path]:
    """The mask of each of some images, looked for as in `pair_files`; masks of other images do not matter.

    Args:
        names: the images' paths within their folder; the masks are in the same sub-folders of `masks_dir`.
        masks_dir: folder of the masks.

    Raises:
        InputError: an image has no mask, or several; all such images are named.
    """
    if not Path(masks_dir).is_dir():
        raise InputError(f"{masks_dir}: there is no such folder of masks")
    found, problems, folders = {}, [], {}
    stems_in: dict[PurePath, set[str]] = {}
    for name in names:
        stems_in.setdefault(name.parent, set()).add(name.stem)
    for name in names:
        if name.parent not in folders:
            folders[name.parent] = _masks_in(Path(masks_dir) / name.parent)
        stems = stems_in[name.parent]
        masks = [p for p in _masks_of(name.stem, folders[name.parent]) if p.stem == name.stem or p.stem not in stems]
        if len(masks) == 1:
            found[name] = masks[0]
        else:
            problems.append(f"{name}: " + (f"{len(masks)} masks ({_names(masks)})" if masks else "no mask"))
    if problems:
        title = f"{masks_dir} does not have one mask for each image (for NAME.jpg NAME.png or NAME_Segmentation.png)"
        raise InputError(_listing(title, problems))
    return found


def _masks_in(folder: Path) -> dict[str, list[Path]]:
    return _by_stem(list_images(folder, READABLE_EXTENSIONS)) if folder.is_dir() else {}


def _size_problem(pair: Pair) -> str | None:
    """What is wrong with the sizes of a pair, or with its files."""
    try:
        (width, height), (mask_width, mask_height) = image_size(pair.image), image_size(pair.mask)
    except InputError as error:
        return str(error)
    if (width, height) == (mask_width, mask_height):
        return None
    return f"{pair.image.name} has {width}x{height} pixels, its mask {pair.mask.name} has {mask_width}x{mask_height}"


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths)


def _listing(title: str, problems: Sequence[str]) -> str:
    return f"{title}:" + "".join(f"\n  {problem}" for problem in problems)


# -- mask values and classes ---------------------------------------------------------------------------------------


def describe_value(value: int) -> str:
    """A mask value as a person would write it: 255, or (255, 0, 0) of an RGB mask."""
    if value < RGB_VALUE:
        return str(value)
    return f"({value >> 16 & 255}, {value >> 8 & 255}, {value & 255})"


def class_table(values: Sequence[int], mask_values: Sequence[int], name: str) -> dict[int, int]:
    """The class of each value that one mask holds.

    With two classes, both grey, a value that is neither's belongs to the nearer one (at half, to class 1), since
    edges may be anti-aliased or compressed; but it must lie between the two, and some value of such a mask must
    reach class 1, or else a mask of 0 and 1 would be taken for an empty one of 0 and 255.

    Args:
        values: the distinct values of the mask.
        mask_values: the value of class 0, 1, ...
        name: of the mask, for the message.

    Raises:
        InputError: a value that no class has.
    """
    table = {value: k for k, value in enumerate(mask_values)}
    strange = [value for value in values if value not in table]
    if strange and len(mask_values) == 2 and max(mask_values) < RGB_VALUE:
        half = sum(mask_values) / 2
        nearest = {value: int(value >= half) for value in values}
        inside = min(mask_values) <= min(strange) and max(strange) <= max(mask_values)
        if inside and max(nearest.values()) == 1:
            return nearest
    if strange:
        raise InputError(
            f"{name} has the value {describe_value(strange[0])}, which no class has: the {len(mask_values)} classes "
            f"have the mask values {_values(mask_values)}"
        )
    return {value: table[value] for value in values}


def mask_to_classes(mask: np.ndarray, mask_values: Sequence[int], name: str) -> np.ndarray:
    """Class indices of a mask.

    Args:
        mask: (H, W) values, as `read_mask` returns them.
        mask_values: the value of class 0, 1, ...
        name: of the mask, for the message.

    Returns:
        (H, W) uint8 class indices.

    Raises:
        InputError: a value that no class has.
    """
    values, entries = np.unique(mask, return_inverse=True)
    table = class_table(values.tolist(), mask_values, name)
    return np.array([table[value] for value in values.tolist()], dtype=np.uint8)[entries].reshape(mask.shape)


def infer_mask_values(values: Sequence[int], counts: np.ndarray, names: Sequence[str], n_classes: int) -> list[int]:
    """The mask values of a dataset, sorted: the k-th is class k.

    Two classes may have anti-aliased masks: many values between the two, on few of the pixels.

    Args:
        values: V different mask values.
        counts: (N, V), for each mask the number of pixels of each value.
        names: of the masks, for the messages.
        n_classes: number of classes; 1, a sigmoid output, tells two values apart as well.

    Raises:
        InputError: there are more or fewer values than classes.
    """
    n_classes = max(n_classes, 2)
    totals = counts.sum(axis=0, dtype=np.int64)
    total = {value: int(count) for value, count in zip(values, totals, strict=True) if count}
    found = sorted(total)
    if len(found) == n_classes:
        return found
    if n_classes == 2 and len(found) > 2:
        low, high = found[0], found[-1]
        between = 1 - (total[low] + total[high]) / sum(total.values())
        # Classes are numbered closely (0, 1, 2) or cover areas; the blurred edge of black and white does neither.
        if high - low >= 16 and high < RGB_VALUE and between <= 0.25:
            logger.info(
                "Masks hold values between %d and %d on %.1f %% of their pixels: taken as soft edges, cut at half",
                low,
                high,
                100 * between,
            )
            return [low, high]
    if len(found) < n_classes:
        raise InputError(
            f"the masks have {len(found)} value(s), {_values(found)}, too few for {n_classes} classes: "
            "each class needs one in some mask"
        )
    rarest = min(total, key=lambda value: total[value])
    example = names[int(np.argmax(counts[:, list(values).index(rarest)] > 0))]
    raise InputError(
        f"the masks have {len(found)} values, {_values(found)}, for {n_classes} classes; for example {example} has the "
        f"value {describe_value(rarest)}. Correct the masks, or give --classes {len(found)}"
    )


def _values(values: Sequence[int]) -> str:
    shown = ", ".join(describe_value(value) for value in values[:10])
    return shown + (", ..." if len(values) > 10 else "")


# -- the cache -----------------------------------------------------------------------------------------------------


@dataclass
class DecodedPairs:
    """All pairs of a dataset at the network's input size.

    Attributes:
        pairs: the files.
        images: (N, h, w, 3) uint8, in memory or mapped from the cache.
        masks: (N, h, w) uint8 entries of `values`.
        values: the mask values that occur.
        counts: (N, 256) int32, for each mask, as it was before it was made smaller, the number of pixels of each entry.
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

    def class_of_entry(self, mask_values: Sequence[int]) -> np.ndarray:
        """The class of each entry of `values`, as a (len(values),) uint8 table.

        Raises:
            InputError: a mask holds a value that no class has.
        """
        classes: dict[int, int] = {}
        for pair, counts in zip(self.pairs, self.counts, strict=True):
            found = [self.values[entry] for entry in np.flatnonzero(counts).tolist()]
            classes.update(class_table(found, mask_values, str(pair.mask)))
        return np.array([classes[value] for value in self.values], dtype=np.uint8)


def decode_pairs(
    pairs: Sequence[Pair],
    size: tuple[int, int],
    cache_dir: Path | str | None = DEFAULT_CACHE_DIR,
    show_progress: bool = False,
) -> DecodedPairs:
    """Every image and mask at the network's input size; each file is decoded once, and again only if it has changed.

    Args:
        pairs: the files.
        size: width and height of the network's input.
        cache_dir: where the arrays are kept for the next run and mapped into memory; if it cannot be written, or is
            None, they are kept in memory alone.
        show_progress: show a progress bar on a terminal.

    Raises:
        InputError: files that cannot be read, or pairs of different sizes; all of them are named.
    """
    files = [_fingerprint(pair.image) + _fingerprint(pair.mask) for pair in pairs]
    if cache_dir is None:
        return _decode(pairs, files, size, None, None, show_progress)
    cache_dir = Path(cache_dir)
    dataset = _digest(
        [_CACHE_VERSION, size, sorted({str(p.parent.resolve()) for pair in pairs for p in astuple(pair)})]
    )
    folder = cache_dir / f"{dataset}-{_digest(files)}"
    decoded = _load_cache(folder, pairs)
    if decoded is not None:
        return decoded
    shutil.rmtree(folder, ignore_errors=True)  # a damaged one
    older = sorted(cache_dir.glob(f"{dataset}-*"))
    building = _new_folder(folder, len(pairs), size)
    decoded = _decode(pairs, files, size, building, older[0] if older else None, show_progress)
    if building is None:
        return decoded
    try:
        building.rename(folder)
    except OSError:  # another process has made the same one meanwhile
        shutil.rmtree(building, ignore_errors=True)
    for path in (*older, *_abandoned(cache_dir, dataset)):
        shutil.rmtree(path, ignore_errors=True)
    return _load_cache(folder, pairs) or decoded


def _fingerprint(path: Path) -> list:
    try:
        status = path.stat()
    except OSError:  # reading it will say why
        return [path.name, -1, -1]
    return [path.name, status.st_size, status.st_mtime_ns]


def _digest(value: list) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _abandoned(cache_dir: Path, dataset: str) -> list[Path]:
    """Folders that a killed process was building more than a day ago."""
    return [path for path in cache_dir.glob(f".{dataset}-*.part") if time.time() - path.stat().st_mtime > 86400]


def _new_folder(folder: Path, n: int, size: tuple[int, int]) -> Path | None:
    """A new folder beside `folder` with the arrays of a cache, or None with a word where that is not possible."""
    building = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        building.mkdir(parents=True)
        for name, (shape, dtype) in _arrays(n, size).items():
            array = np.lib.format.open_memmap(building / name, mode="w+", dtype=dtype, shape=shape)
            if hasattr(os, "posix_fallocate"):  # without the space, writing to the mapped file would kill the process
                with open(building / name, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, array.offset + array.nbytes)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        logger.warning(
            "The cache %s cannot be written (%s): the decoded images stay in memory and are decoded again next time",
            folder.parent,
            error.strerror,
        )
        return None
    return building


def _arrays(n: int, size: tuple[int, int]) -> dict[str, tuple[tuple[int, ...], type]]:
    """File name, shape and type of the arrays of a cache."""
    width, height = size
    return {
        "images.npy": ((n, height, width, 3), np.uint8),
        "masks.npy": ((n, height, width), np.uint8),
        "counts.npy": ((n, 256), np.int32),
    }


def _decode(
    pairs: Sequence[Pair],
    files: list[list],
    size: tuple[int, int],
    building: Path | None,
    older: Path | None,
    show_progress: bool,
) -> DecodedPairs:
    """Decode the pairs into arrays in the folder `building`, or in memory; take what `older` has of the same files."""
    if building is None:
        images, masks, counts = (np.zeros(shape, dtype) for shape, dtype in _arrays(len(pairs), size).values())
    else:
        images, masks, counts = (np.load(building / name, mmap_mode="r+") for name in _arrays(len(pairs), size))
    values: list[int] = []
    lock = threading.Lock()

    def entries_of(found: list[int]) -> np.ndarray:
        """The entries of mask values, new ones for those that are new."""
        with lock:
            new = [value for value in found[:257] if value not in values]
            if len(values) + len(new) > 256:
                raise InputError(
                    f"with its {len(found)} values the masks have more than 256 different ones; is it a mask?"
                )
            values.extend(new)
            return np.array([values.index(value) for value in found], dtype=np.uint8)

    known = _load_cache(older, pairs) if older else None
    known_rows = {tuple(row): i for i, row in enumerate(_read_index(older)["files"])} if known else {}

    def decode(i: int) -> str | None:
        """Fill row i; what is wrong with the pair, if anything is."""
        pair, row = pairs[i], known_rows.get(tuple(files[i]))
        try:
            if row is not None:
                found = np.flatnonzero(known.counts[row])
                entries = entries_of([known.values[entry] for entry in found])
                images[i], counts[i, entries] = known.images[row], known.counts[row, found]
                masks[i] = entries[np.searchsorted(found, known.masks[row])]
                return None
            problem = _size_problem(pair)
            if problem:
                return problem
            images[i] = preprocess(read_image(pair.image), size).permute(1, 2, 0).numpy()
            mask = read_mask(pair.mask)
            found, pixels = np.unique(mask, return_counts=True)
            entries = entries_of(found.tolist())
        except InputError as error:
            return f"{pair.image.name}, {pair.mask.name}: {error}"
        counts[i, entries] = pixels
        small = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        masks[i] = entries[np.searchsorted(found, small)]
        return None

    try:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            decoding = pool.map(decode, range(len(pairs)))
            if show_progress:
                decoding = progress(decoding, total=len(pairs), desc="Decoding", unit="pair")
            problems = [problem for problem in decoding if problem]
        if problems:
            raise InputError(_listing(f"{len(problems)} of {len(pairs)} pairs cannot be used", problems))
        if building is not None:
            for array in (images, masks, counts):
                array.flush()
            (building / "index.json").write_text(json.dumps({"files": files, "values": values}))
    except BaseException:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)
        raise
    return DecodedPairs(list(pairs), images, masks, values, counts)


def _read_index(folder: Path) -> dict:
    return json.loads((folder / "index.json").read_text())


def _load_cache(folder: Path, pairs: Sequence[Pair]) -> DecodedPairs | None:
    try:
        values = _read_index(folder)["values"]
        images, masks, counts = (np.load(folder / name, mmap_mode="r") for name in _arrays(0, (0, 0)))
    except (OSError, ValueError):  # none there, or not a whole one
        return None
    return DecodedPairs(list(pairs), images, masks, values, counts)


# -- the dataset ---------------------------------------------------------------------------------------------------


def split_indices(n: int, validation_percent: float, seed: int) -> tuple[list[int], list[int]]:
    """Training and validation indices of n images, at random by seed, with at least one image on each side.

    Raises:
        InputError: there are fewer than two images, or the percentage is not between 0 and 100.
    """
    if not 0 < validation_percent < 100:
        raise InputError(f"--validation must be above 0 and below 100 per cent, not {validation_percent:g}")
    if n < 2:
        raise InputError(f"{n} image is too few: one is needed for training and another for validation")
    n_validation = min(max(round(n * validation_percent / 100), 1), n - 1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[n_validation:]), sorted(order[:n_validation])


class SegmentationDataset(Dataset):
    """Some of the decoded pairs, as uint8 image and class indices.

    Args:
        decoded: all pairs.
        indices: which of them.
        mask_values: the value of class 0, 1, ...
        transform: takes and returns an image (3, h, w) uint8 and a mask (h, w) uint8, both as tensors.

    An item is asked for by its number, or by `(number, seed)` to make the transform's random choices repeat.
    """

    def __init__(
        self,
        decoded: DecodedPairs,
        indices: Sequence[int],
        mask_values: Sequence[int],
        transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.images, self.masks = decoded.images, decoded.masks
        self.indices, self.transform = indices, transform
        self.table = decoded.class_of_entry(mask_values)

    def __getstate__(self) -> dict:
        """For worker processes: what lies in a file is mapped again there, and not copied."""
        state = dict(self.__dict__)
        for name in ("images", "masks"):
            if isinstance(state[name], np.memmap):
                state[name] = Path(state[name].filename)
        return state

    def __setstate__(self, state: dict) -> None:
        for name in ("images", "masks"):
            if isinstance(state[name], Path):
                state[name] = np.load(state[name], mmap_mode="r")
        self.__dict__.update(state)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        number, seed = key if isinstance(key, tuple) else (key, None)
        i = self.indices[number]
        image = torch.from_numpy(np.array(self.images[i])).permute(2, 0, 1)  # (3, h, w) uint8
        mask = torch.from_numpy(self.table[self.masks[i]])  # (h, w) uint8
        if self.transform is None:
            return image, mask
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            return self.transform(image, mask)
