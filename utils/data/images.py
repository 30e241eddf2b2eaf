"""Image files: list, read, write."""

import logging
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from utils.runtime.atomic_files import atomic_file
from utils.runtime.errors import InputError

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".tif", ".tiff", ".bmp"),
    *(".webp", ".gif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".tga"),
)

_SUPERPIXELS = "_superpixels"  # ends the stems of ISIC 2017's label maps, which lie among the images
_CHALLENGE_FOLDERS = ("imgs", "masks", "imgs_test", "masks_test")  # in data/

# What Pillow and its plugins raise on files that are not images, or are damaged.
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_ORIENTATION = 0x0112  # the EXIF tag; its values 5 to 8 exchange width and height


def list_images(
    folder: Path | str, extensions: Iterable[str] = IMAGE_EXTENSIONS, recursive: bool = False, advice: str = ""
) -> list[Path]:
    """The image files of a folder, sorted; hidden files, superpixels and other file types are ignored.

    Args:
        folder: where to look.
        extensions: file extensions, with or without the dot, case-insensitive.
        recursive: include sub-folders, except hidden ones.
        advice: ends the error message if there is no image.

    Raises:
        InputError: the folder does not exist, cannot be read, or contains no image.
    """
    folder = Path(folder)
    suffixes = {"." + extension.lower().lstrip(".") for extension in extensions}
    if not folder.exists():
        raise InputError(f"{folder}: there is no such folder")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file, a folder of images was expected")
    found, visited = [], set()
    for root, folders, names in os.walk(folder, onerror=_raise_unreadable, followlinks=True):
        if os.path.realpath(root) in visited:  # a link to a folder above
            folders.clear()
            continue
        visited.add(os.path.realpath(root))
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if recursive else []
        found += [
            Path(root, name) for name in names if not name.startswith(".") and Path(name).suffix.lower() in suffixes
        ]
    if not found:
        if folder.name in _CHALLENGE_FOLDERS:
            advice += "; python -m utils.download_isic downloads the images and masks of the challenge"
        raise InputError(f"{folder} contains no image (looked for {' '.join(sorted(suffixes))}){advice}")
    images = [path for path in found if not path.stem.lower().endswith(_SUPERPIXELS)]
    if len(images) < len(found):
        logger.info("%d files *%s in %s are passed over", len(found) - len(images), _SUPERPIXELS, folder)
    return sorted(images or found)


def _raise_unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename}: the folder cannot be read ({error.strerror})") from error


def image_size(path: Path | str) -> tuple[int, int]:
    """Width and height of the image that `read_image` would return, from the file's header alone.

    Raises:
        InputError: the file cannot be read as an image.
    """
    with decoding_errors(path), Image.open(path) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(_ORIENTATION) in (5, 6, 7, 8) else (width, height)


def read_image(path: Path | str) -> Image.Image:
    """Read an image of any mode as 8-bit RGB, with its EXIF orientation applied.

    16-bit grey (white is 65535) and floating-point images (white is 1.0) are rescaled; an alpha channel is dropped; of
    an animation or a multi-page file the first image is read.

    Raises:
        InputError: the file cannot be read as an image.
    """
    image = open_upright(path)
    if image.mode.startswith("I") or image.mode == "F":
        white = 1.0 if image.mode == "F" else 65535.0
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= white):
            raise InputError(
                f"{path} has values from {values.min()} to {values.max()}, where 0 to {white:g} was expected: "
                "rescale them"
            )
        image = Image.fromarray(np.round(values * (255 / white)).astype(np.uint8))
    with decoding_errors(path):
        return image.convert("RGB")


def open_upright(path: Path | str) -> Image.Image:
    """The decoded image of a file in its own mode, with its EXIF orientation applied.

    Raises:
        InputError: the file cannot be read as an image.
    """
    with decoding_errors(path), Image.open(path) as image:
        image.load()
        return ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image


@contextmanager
def decoding_errors(path: Path | str) -> Iterator[None]:
    """Turn whatever Pillow raises in the `with` block into an `InputError` that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except _PILLOW_ERRORS as error:
        reason = "not a known image format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise InputError(f"{path} cannot be read as an image ({reason})") from error


def save_png(path: Path | str, image: Image.Image | np.ndarray) -> None:
    """Write an image, or an (H, W) uint8 array as a greyscale one, as a PNG, atomically.

    Raises:
        OSError: the file cannot be written; an existing file of that name is unchanged.
    """
    if isinstance(image, np.ndarray):
        assert image.dtype == np.uint8, image.dtype
        image = Image.fromarray(image)
    with atomic_file(path) as file:
        # Run-length encoding compresses maps and masks well, and is as fast as the lowest level.
        image.save(file, format="PNG", compress_level=1, compress_type=zlib.Z_RLE)
