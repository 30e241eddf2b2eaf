"""Which mask belongs to which image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from utils.data.images import READABLE_EXTENSIONS, image_size, list_images
from utils.runtime.errors import InputError, bulleted

_MASK_SUFFIXES = ("", "_Segmentation", "_segmentation")  # what a mask's stem adds to its image's


@dataclass(frozen=True)
class Pair:
    """An image file and its mask file."""

    image: Path
    mask: Path


def pair_files(imgs_dir: Path | str, masks_dir: Path | str) -> list[Pair]:
    """Pair the images of a folder with their masks.

    The mask of `STEM.jpg` is `STEM.*`, `STEM_Segmentation.*` or `STEM_segmentation.*`. Sub-folders, hidden files and
    files that are not images are ignored.

    Raises:
        InputError: an image without a mask, a mask without an image, or several files with one stem; all are listed.
    """
    images, masks = (_by_stem(list_images(folder, READABLE_EXTENSIONS)) for folder in (imgs_dir, masks_dir))
    problems, pairs, used = [], [], set()
    for stem, image_paths in sorted(images.items()):
        mask_paths = _masks_of(stem, masks, images)
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
    if problems:  # sizes are otherwise compared when a pair is decoded; here they complete the list
        problems += [problem for problem in map(size_problem, pairs) if problem]
        title = (
            f"the images in {imgs_dir} and the masks in {masks_dir} do not match (an image NAME.jpg requires one mask, "
        )
        raise InputError(bulleted(f"{title}NAME.png or NAME_Segmentation.png)", problems))
    return pairs


def find_masks(image_paths: Sequence[PurePath], masks_dir: Path | str) -> dict[PurePath, Path]:
    """The mask of each of the given images, found as by `pair_files`; masks of other images are ignored.

    Args:
        image_paths: the images' paths within their folder; the masks are in the same sub-folders of `masks_dir`.
        masks_dir: folder of the masks.

    Raises:
        InputError: the folder does not exist, or an image has no mask or several; all such images are listed.
    """
    if not Path(masks_dir).is_dir():
        raise InputError(f"{masks_dir}: there is no such folder of masks")
    stems: dict[PurePath, set[str]] = {}  # of the images, by folder
    for path in image_paths:
        stems.setdefault(path.parent, set()).add(path.stem)
    masks = {folder: _masks_in(Path(masks_dir) / folder) for folder in stems}
    found, problems = {}, []
    for path in image_paths:
        mask_paths = _masks_of(path.stem, masks[path.parent], stems[path.parent])
        if len(mask_paths) == 1:
            found[path] = mask_paths[0]
        else:
            problems.append(
                f"{path}: " + (f"{len(mask_paths)} masks ({_names(mask_paths)})" if mask_paths else "no mask")
            )
    if problems:
        title = f"{masks_dir} does not have one mask per image (NAME.jpg requires NAME.png or NAME_Segmentation.png)"
        raise InputError(bulleted(title, problems))
    return found


def size_problem(pair: Pair) -> str | None:
    """What is wrong with the sizes of a pair, or with its files; None if nothing is."""
    try:
        (width, height), (mask_width, mask_height) = image_size(pair.image), image_size(pair.mask)
    except InputError as error:
        return str(error)
    if (width, height) == (mask_width, mask_height):
        return None
    return f"{pair.image.name} has {width}x{height} pixels, its mask {pair.mask.name} has {mask_width}x{mask_height}"


def _masks_of(stem: str, masks: dict[str, list[Path]], image_stems: dict[str, list[Path]] | set[str]) -> list[Path]:
    """The masks of the image `stem` among those of a folder, by stem.

    `a_segmentation.png` is the mask of `a_segmentation.jpg`, if that exists, and not of `a.jpg`.
    """
    candidates = [path for suffix in _MASK_SUFFIXES for path in masks.get(stem + suffix, [])]
    return [path for path in candidates if path.stem == stem or path.stem not in image_stems]


def _masks_in(folder: Path) -> dict[str, list[Path]]:
    return _by_stem(list_images(folder, READABLE_EXTENSIONS)) if folder.is_dir() else {}


def _by_stem(paths: Sequence[Path]) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in paths:
        files.setdefault(path.stem, []).append(path)
    return files


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths)
