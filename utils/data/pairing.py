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
from utils.runtime.output_folder import folders_below, holds_pictures, recorded_results

logger = logging.getLogger(__name__)

# What the stems of an image and of its mask add to what they share: `21_training.tif` and `21_manual1.gif` (DRIVE).
IMAGE_SUFFIXES = ("", "_0000", "_training", "_test")
MASK_SUFFIXES = ("", "_Segmentation", "_mask", "_masks", "_seg", "_label", "_lesion", "_manual1", "_gt")

Masks = dict[PurePath, tuple[PurePath, ...]]  # of each image, both as paths within their folders


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
    """The masks of some images.

    Attributes:
        images: the images, without the masks and other annotations among them.
        masks: of each image that has any.
        ambiguous: why other images have none of their own, though some fit.
        namings: the numbers of images by how they and their masks are named.
    """

    images: list[PurePath]
    masks: Masks = field(default_factory=dict)
    ambiguous: dict[PurePath, str] = field(default_factory=dict)
    namings: Counter[str] = field(default_factory=Counter)


def pair_files(imgs_dir: Path | str, masks_dir: Path | str, options: PairingOptions | None = None) -> list[Pair]:
    """Pair the images of a folder with their masks, as `match_names` does.

    Raises:
        InputError: an image has no mask, or several that are not numbered, and these are not to be skipped.
    """
    options = options or PairingOptions()
    paths = list_images(imgs_dir, options.extensions, options.recursive)
    images = {path.relative_to(imgs_dir): path for path in _without_results(paths, Path(imgs_dir), [Path(imgs_dir)])}
    if len(images) < len(paths):
        logger.info("Ignoring results of predictions in %s: %d", imgs_dir, len(paths) - len(images))
    matches = _match_folders(images, masks_dir, options.mask_suffix, options.recursive)
    unusable = [matches.ambiguous.get(name, f"{name}: no mask") for name in matches.images if name not in matches.masks]
    if unusable:
        counts = f"{len(unusable)} of {len(matches.images)} images in {imgs_dir}"
        title = f"{counts} have no mask of their own in {masks_dir}"
        if not (options.skip_unusable and matches.masks):
            raise InputError(bulleted(f"{title}; add the masks, or skip these", unusable, 10), "skip_unusable")
        logger.warning("%s", bulleted(f"{title}, and are skipped", unusable, limit=10))
    found = sorted(matches.masks.items(), key=lambda item: (item[0].parent, item[0].stem))
    return [Pair(images[name], tuple(Path(masks_dir, mask) for mask in masks)) for name, masks in found]


def find_masks(
    images: Mapping[PurePath, Path], masks_dir: Path | str, mask_suffix: str | None = None
) -> dict[PurePath, tuple[Path, ...]]:
    """The masks of those of the given images, by their paths within their folder, that have any.

    Raises:
        InputError: no image has a mask, or one has several that are not numbered.
    """
    matches = _match_folders(images, masks_dir, mask_suffix)
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
    return [images[name] for name in _match_folders(images, masks_dir, mask_suffix, level=logging.DEBUG).images]


def _without_results(paths: Sequence[Path], folder: Path, further: Sequence[Path] = ()) -> list[Path]:
    """The paths in a folder that are no results of runs into the folders below it, or into further ones."""
    below = folders_below(folder, paths)
    results, pictures = recorded_results({*further, *below}), {*filter(holds_pictures, below)}
    return [path for path in paths if path not in results and pictures.isdisjoint(path.parents)]


def _match_folders(
    images: Mapping[PurePath, Path],
    masks_dir: Path | str,
    mask_suffix: str | None,
    recursive: bool = False,
    level: int = logging.INFO,
) -> Matches:
    """Match images with the masks of a folder, which may be theirs, or either within the other, and log the result."""
    recursive = recursive or any(len(name.parts) > 1 for name in images)
    paths = list_images(masks_dir, recursive=recursive)
    paths = _without_results(paths, Path(masks_dir))  # in the folder itself they may be corrected
    masks = {path.relative_to(masks_dir): path for path in paths}
    inside = _within(images, masks_dir)
    images = {name: path for name, path in images.items() if name not in inside} or images
    files = {path: name for name, path in _real_paths(images).items()}
    both = {mask: files[path] for mask, path in _real_paths(masks).items() if path in files}
    matches = match_names(list(images), list(masks), mask_suffix, both)
    if not matches.masks and not matches.ambiguous:
        stems = Counter(map(_stem, both.values()))
        if max(stems.values(), default=0) > 1:
            twins = [image for image in both.values() if stems[_stem(image)] > 1]
            raise InputError(
                f"no image has a mask in {masks_dir}, which is the folder of the images as well, and has files that "
                f"differ in their file extension alone ({_first_names(twins)}): choose that of the images",
                "ext",
            )
        known = "that suffix" if mask_suffix else "a usual suffix, such as NAME_mask.png"
        raise InputError(
            f"no image has a mask in {masks_dir}: the images are {_first_names(images)}, the masks "
            f"{_first_names(masks)}, where NAME.jpg requires NAME.png or {known}",
            "mask_suffix",
        )
    namings = ", ".join(f"{naming} ({count})" for naming, count in matches.namings.items())
    text = "%d of %d images have a mask in %s: %s"
    logger.log(level, text, len(matches.masks), len(matches.images), masks_dir, namings)
    if unused := masks.keys() - both.keys() - {mask for found in matches.masks.values() for mask in found}:
        plural = len(unused) > 1
        masks_belong = f"mask{'s' * plural} in {masks_dir} belong{'s' * (not plural)}"
        logger.log(level, "%d other %s to none of these images", len(unused), masks_belong)
    return matches


def match_names(
    images: Sequence[PurePath],
    masks: Sequence[PurePath],
    mask_suffix: str | None = None,
    both: Mapping[PurePath, PurePath] | None = None,
) -> Matches:
    """The masks of images, by their names.

    The stems of an image and its mask are equal but for a suffix of each; after that of the mask a number may follow,
    `NAME_mask_1.png`, and numbered masks belong to one image. The two suffixes that match most images are taken; an
    image with that suffix, but without such a mask, may have one with another suffix.

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
    by_mask = {suffix: _bases([mask for mask in masks if may_have(mask, suffix)], suffix) for suffix in suffixes}
    by_image = {suffix: _bases(images, suffix) for suffix in IMAGE_SUFFIXES}
    found = {(i, m): _nearest(by_image[i], by_mask[m]) for i in by_image for m in by_mask}
    best, *_ = ranked = sorted(found, key=lambda naming: -len(found[naming][0]))

    matches, used, not_images = Matches(list(images)), set(), set()
    for naming in [naming for naming in ranked if naming[0] == best[0]]:
        its_masks, ambiguous = found[naming]
        for image, near in its_masks.items():
            if image not in matches.masks and image not in not_images and used.isdisjoint(near):
                matches.masks[image] = near
                matches.namings["NAME{1} for NAME{0}".format(*naming) if any(naming) else "equal names"] += 1
                used.update(near)
                not_images.update(both[mask] for mask in near if mask in both)
        matches.ambiguous = ambiguous | matches.ambiguous
    matches.ambiguous = {image: why for image, why in matches.ambiguous.items() if image not in matches.masks}
    named = {_stem(image) for image in matches.masks}
    for image in both.values():
        stem = _stem(image)
        if any(stem[: separator.start()] in named for separator in re.finditer(r"[\W_]", stem)):
            not_images.add(image)
    matches.images = [image for image in images if image in matches.masks or image not in not_images]
    return matches


def _stem(path: PurePath) -> str:
    """The stem, in one of the forms of Unicode: `ä` may be one character or two in a file name."""
    return unicodedata.normalize("NFC", path.stem)


def _bases(paths: Iterable[PurePath], suffix: str) -> dict[PurePath, str]:
    """What the stems of paths have before the suffix, in any case, and perhaps a number, of those that have it."""
    number = r"(?:_\d+)?" if suffix else ""
    pattern = re.compile(f"(.+){re.escape(unicodedata.normalize('NFC', suffix))}{number}", re.IGNORECASE | re.DOTALL)
    return {path: match[1] for path in paths if (match := pattern.fullmatch(_stem(path)))}


def _nearest(images: Mapping[PurePath, str], masks: Mapping[PurePath, str]) -> tuple[Masks, dict[PurePath, str]]:
    """The masks of images of one base, in the deepest folder that both are in; why others have none of their own."""
    shared = {*images.values()} & {*masks.values()}
    images, masks = ({path: base for path, base in paths.items() if base in shared} for paths in (images, masks))
    found, ambiguous = {}, {}
    for depth in range(max((len(image.parts) for image in images), default=0), -1, -1):
        of_masks = _group(masks, depth)
        together = [(group, of_masks[key]) for key, group in _group(images, depth).items() if key in of_masks]
        for group, its_masks in together:
            rivals, near = _highest(group), _highest(its_masks)
            if len(rivals) > 1:
                ambiguous |= dict.fromkeys(rivals, f"{near[0]}: {len(rivals)} images ({_first_names(rivals)})")
            elif len({_stem(mask).casefold() for mask in near}) < len(near):
                ambiguous[rivals[0]] = f"{rivals[0]}: {len(near)} masks ({_first_names(near)})"
            else:
                found[rivals[0]] = tuple(near)
            for image in group:
                del images[image]
            for mask in its_masks:
                del masks[mask]
    return found, ambiguous


def _group(bases: Mapping[PurePath, str], depth: int) -> dict[tuple, list[PurePath]]:
    """The paths of each base in or below each of the folders that are `depth` steps down."""
    groups = defaultdict(list)
    for path, base in bases.items():
        if len(path.parts) > depth:
            groups[path.parts[:depth], base].append(path)
    return groups


def _highest(paths: Sequence[PurePath]) -> list[PurePath]:
    """Those of the paths that are the fewest steps down."""
    steps = min(len(path.parts) for path in paths)
    return [path for path in paths if len(path.parts) == steps]


def _real_paths(files: Mapping[PurePath, Path]) -> dict[PurePath, str]:
    folders = {folder: realpath(folder) for folder in {path.parent for path in files.values()}}
    return {name: join(folders[path.parent], path.name) for name, path in files.items()}


def _within(files: Mapping[PurePath, Path], folder: Path | str) -> set[PurePath]:
    return {name for name, path in _real_paths(files).items() if path.startswith(join(realpath(folder), ""))}


def _first_names(paths: Iterable[PurePath]) -> str:
    first = [str(path) for path, _ in zip(paths, range(3), strict=False)]
    return ", ".join(first[:2]) + ", ..." * (len(first) > 2)
