"""Which mask belongs to which image: by their names, and among equal names by their folders."""

import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import join, realpath
from pathlib import Path, PurePath

from utils.data.images import IMAGE_EXTENSIONS, list_images
from utils.runtime.errors import InputError, bulleted

logger = logging.getLogger(__name__)

# What the stems of an image and of its mask add to what they share: `21_training.tif` and `21_manual1.gif` (DRIVE).
IMAGE_SUFFIXES = ("", "_0000", "_training", "_test")
MASK_SUFFIXES = ("", "_Segmentation", "_mask", "_masks", "_seg", "_label", "_lesion", "_manual1", "_gt")


@dataclass(frozen=True)
class Pair:
    """An image file and its mask files, which are united."""

    image: Path
    masks: tuple[Path, ...]

    @property
    def mask(self) -> Path:
        """The first of the mask files, for messages."""
        return self.masks[0]


@dataclass(frozen=True)
class PairingOptions:
    """How images and masks are found.

    Attributes:
        mask_suffix: what the stem of a mask adds to its image's; None tries all of `MASK_SUFFIXES`.
        recursive: include sub-folders.
        extensions: file extensions of the images.
        skip_unusable: continue without images that have no mask, or whose files cannot be used.
    """

    mask_suffix: str | None = None
    recursive: bool = False
    extensions: Iterable[str] = IMAGE_EXTENSIONS
    skip_unusable: bool = False


@dataclass
class Matches:
    """The masks of some images; all paths are relative to the folder of the images or of the masks.

    Attributes:
        images: the images, without the masks and other annotations among them.
        masks: the masks of each image that has any.
        ambiguous: why other images have none of their own, though some fit.
        namings: the numbers of images by how they and their masks are named.
        unused: how many masks belong to none of the images.
    """

    images: list[PurePath]
    masks: dict[PurePath, tuple[PurePath, ...]] = field(default_factory=dict)
    ambiguous: dict[PurePath, str] = field(default_factory=dict)
    namings: Counter[str] = field(default_factory=Counter)
    unused: int = 0

    def log(self, masks_dir: Path | str) -> None:
        """Say how many images have masks, and how these are named."""
        namings = ", ".join(f"{naming} ({count})" for naming, count in self.namings.items())
        logger.info("%d of %d images have a mask in %s: %s", len(self.masks), len(self.images), masks_dir, namings)
        if self.unused:
            logger.info("%d more masks in %s belong to none of the images", self.unused, masks_dir)


def pair_files(imgs_dir: Path | str, masks_dir: Path | str, options: PairingOptions | None = None) -> list[Pair]:
    """Pair the images of a folder with their masks, as `match_names` does.

    Raises:
        InputError: an image has no mask, or several that are not numbered, and these are not to be skipped.
    """
    options = options or PairingOptions()
    paths = list_images(imgs_dir, options.extensions, options.recursive)
    images = {path.relative_to(imgs_dir): path for path in paths}
    matches = match_folders(images, masks_dir, options.mask_suffix, options.recursive)
    matches.log(masks_dir)
    unusable = [matches.ambiguous.get(name, f"{name}: no mask") for name in matches.images if name not in matches.masks]
    if unusable:
        title = (
            f"{len(unusable)} of {len(matches.images)} images in {imgs_dir} have no mask of their own in {masks_dir}"
        )
        if not (options.skip_unusable and matches.masks):
            raise InputError(bulleted(f"{title}; add the masks, or skip these", unusable, 10), "skip_unusable")
        logger.warning("%s", bulleted(f"{title}, and are skipped", unusable, limit=10))
    found = sorted(matches.masks.items(), key=lambda item: (item[0].parent, item[0].stem))
    return [Pair(images[name], tuple(Path(masks_dir, mask) for mask in masks)) for name, masks in found]


def find_masks(
    images: Mapping[PurePath, Path], masks_dir: Path | str, mask_suffix: str | None = None
) -> dict[PurePath, tuple[Path, ...]]:
    """The masks of those of the given images that have any, as `match_names` finds them.

    Args:
        images: the files of the images, by their paths within their folder.
        masks_dir: folder of the masks.
        mask_suffix: see `PairingOptions`.

    Raises:
        InputError: no image has a mask, or one has several that are not numbered.
    """
    matches = match_folders(images, masks_dir, mask_suffix)
    matches.log(masks_dir)
    if matches.ambiguous:
        title = f"{masks_dir} does not have one mask per image"
        raise InputError(bulleted(title, list(matches.ambiguous.values()), limit=10), "mask_suffix")
    return {name: tuple(Path(masks_dir, mask) for mask in masks) for name, masks in matches.masks.items()}


def without_masks(
    paths: Sequence[Path], imgs_dir: Path, masks_dir: Path | None, mask_suffix: str | None = None
) -> list[Path]:
    """The images of a folder, without the masks of `masks_dir` if that is the same folder or within it."""
    images = {path.relative_to(imgs_dir): path for path in paths}
    if masks_dir is None or not _within(images, masks_dir):
        return list(paths)
    return [images[name] for name in match_folders(images, masks_dir, mask_suffix).images]


def match_folders(
    images: Mapping[PurePath, Path], masks_dir: Path | str, mask_suffix: str | None = None, recursive: bool = False
) -> Matches:
    """Match images with the masks of a folder; the arguments are those of `find_masks`.

    Sub-folders of masks are included if `recursive`, or if images are in sub-folders. Images and masks may be in one
    folder, or either within the folder of the other.

    Raises:
        InputError: no image has a mask.
    """
    recursive = recursive or any(len(name.parts) > 1 for name in images)
    masks = {path.relative_to(masks_dir): path for path in list_images(masks_dir, recursive=recursive)}
    inside = _within(images, masks_dir)
    images = {name: path for name, path in images.items() if name not in inside} or images
    files = {path: name for name, path in _real_paths(images).items()}
    both = {mask: files[path] for mask, path in _real_paths(masks).items() if path in files}
    matches = match_names(list(images), list(masks), mask_suffix, both)
    if not matches.masks and not matches.ambiguous:
        known = "that suffix" if mask_suffix else "a usual suffix, such as NAME_mask.png"
        raise InputError(
            f"no image has a mask in {masks_dir}: the images are {_first_names(images)}, the masks "
            f"{_first_names(masks)}, where NAME.jpg requires NAME.png or {known}",
            "mask_suffix",
        )
    matches.unused = len(masks.keys() - both.keys() - {mask for found in matches.masks.values() for mask in found})
    return matches


def match_names(
    images: Sequence[PurePath],
    masks: Sequence[PurePath],
    mask_suffix: str | None = None,
    both: Mapping[PurePath, PurePath] | None = None,
) -> Matches:
    """The masks of images, by their names.

    The stems of an image and its mask are equal but for a suffix of each; after that of the mask a number may follow,
    `NAME_mask_1.png`, and numbered masks belong to one image. The two suffixes that match most images are taken, and
    for the images that they leave the next ones. Where several files have one name, those that are nearest in the tree
    of folders belong together.

    Args:
        images, masks: paths within their folders.
        mask_suffix: see `PairingOptions`.
        both: masks that are among the images, too, in a folder of both, and these images. The masks of an image, and
            other files `IMAGE_*`, are not images then.
    """
    both, stems = both or {}, {_stem(image) for image in images}

    def may_have(mask: PurePath, suffix: str) -> bool:
        """In another folder, `a_mask.png` is the mask of `a_mask.jpg`, if that exists, and not of `a.jpg`."""
        return suffix != "" if mask in both else suffix == "" or _stem(mask) not in stems

    suffixes = MASK_SUFFIXES if mask_suffix is None else (mask_suffix,)
    by_mask = {suffix: _by_base([mask for mask in masks if may_have(mask, suffix)], suffix) for suffix in suffixes}
    by_image = {suffix: _by_base(images, suffix) for suffix in IMAGE_SUFFIXES}
    found = {(i, m): _nearest(by_image[i], by_mask[m]) for i in by_image for m in by_mask}
    best, *_ = ranked = sorted(found, key=lambda naming: -len(found[naming].masks))

    matches, used, not_images = Matches(list(images)), set(), set()
    for naming in [naming for naming in ranked if naming[0] == best[0]]:
        for image, its_masks in found[naming].masks.items():
            if image not in matches.masks and image not in not_images and used.isdisjoint(its_masks):
                matches.masks[image] = its_masks
                matches.namings["NAME{1} for NAME{0}".format(*naming) if any(naming) else "equal names"] += 1
                used.update(its_masks)
                not_images.update(both[mask] for mask in its_masks if mask in both)
        matches.ambiguous = found[naming].ambiguous | matches.ambiguous
    matches.ambiguous = {image: why for image, why in matches.ambiguous.items() if image not in matches.masks}
    if both:
        named = {_stem(image) for image in matches.masks}
        not_images.update(image for image in both.values() if _prefixes(_stem(image)) & named)
        matches.images = [image for image in images if image in matches.masks or image not in not_images]
    return matches


def _stem(path: PurePath) -> str:
    """The stem, in one of the forms of Unicode: `ä` may be one character or two in a file name."""
    return unicodedata.normalize("NFC", path.stem)


def _prefixes(stem: str) -> set[str]:
    """What is before each separator: `a` and `a_b` for `a_b_c`."""
    return {stem[: separator.start()] for separator in re.finditer(r"[\W_]", stem)}


def _by_base(paths: Iterable[PurePath], suffix: str) -> dict[str, list[PurePath]]:
    """The paths whose stems are BASE, the suffix in any case, and perhaps a number, by BASE."""
    number = r"(?:_\d+)?" if suffix else ""
    pattern = re.compile(f"(.+){re.escape(unicodedata.normalize('NFC', suffix))}{number}", re.IGNORECASE | re.DOTALL)
    found = defaultdict(list)
    for path in paths:
        if match := pattern.fullmatch(_stem(path)):
            found[match[1]].append(path)
    return found


def _nearest(images: Mapping[str, list[PurePath]], masks: Mapping[str, list[PurePath]]) -> Matches:
    """Of the images and masks of each base those that are nearest to each other in the tree of folders."""
    matches = Matches([])
    for base in (base for base in images if base in masks):
        highest_images, highest_masks = _highest(images[base]), _highest(masks[base])
        for image in images[base]:
            near = _closest(image, highest_masks)
            rivals = _closest(near[0], highest_images)
            if image not in rivals:
                continue  # they are another image's
            if len(rivals) > 1:
                matches.ambiguous[image] = f"{near[0]}: {len(rivals)} images ({_first_names(rivals)})"
            elif len({_stem(mask).casefold() for mask in near}) < len(near):
                matches.ambiguous[image] = f"{image}: {len(near)} masks ({_first_names(near)})"
            else:
                matches.masks[image] = tuple(near)
    return matches


def _highest(paths: Iterable[PurePath]) -> dict[PurePath, list[PurePath]]:
    """For each folder the paths in it or its sub-folders that are the fewest steps below it."""
    highest: dict[PurePath, list[PurePath]] = {}
    for path in sorted(paths, key=lambda path: len(path.parts)):
        for folder in path.parents:
            found = highest.setdefault(folder, [])
            if not found or len(found[0].parts) == len(path.parts):
                found.append(path)
    return highest


def _closest(path: PurePath, highest: Mapping[PurePath, list[PurePath]]) -> list[PurePath]:
    """Of paths, as `_highest` gives them, those that are the fewest steps from another."""
    folders = [folder for folder in path.parents if folder in highest]
    return highest[min(folders, key=lambda folder: len(highest[folder][0].parts) - 2 * len(folder.parts))]


def _real_paths(files: Mapping[PurePath, Path]) -> dict[PurePath, str]:
    folders = {folder: realpath(folder) for folder in {path.parent for path in files.values()}}
    return {name: join(folders[path.parent], path.name) for name, path in files.items()}


def _within(files: Mapping[PurePath, Path], folder: Path | str) -> set[PurePath]:
    return {name for name, path in _real_paths(files).items() if path.startswith(join(realpath(folder), ""))}


def _first_names(paths: Iterable[PurePath]) -> str:
    first = [str(path) for path, _ in zip(paths, range(3), strict=False)]
    return ", ".join(first[:2]) + ", ..." * (len(first) > 2)
