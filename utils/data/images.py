"""Image files: list, read, write."""

import logging
import os
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin

from utils.runtime.atomic_files import atomic_file
from utils.runtime.errors import InputError
from utils.runtime.threads import usable_cores

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".tif", ".tiff", ".bmp"),
    *(".webp", ".gif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".tga"),
)

DEFAULT_MAX_MEGAPIXELS = 179  # what Pillow allows

_SUPERPIXELS = "_superpixels"  # ends the stems of ISIC 2017's label maps, which lie among the images
_CHALLENGE_FOLDERS = ("imgs", "masks", "imgs_test", "masks_test")  # in data/

# What Pillow and its plugins raise on files that are not images, or are damaged.
PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
)
_ORIENTATION = 0x0112  # the EXIF tag; its values 5 to 8 exchange width and height
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BIT_DEPTHS = (8, 10, 12, 14, 16)
_MIN_DEEP_COLOUR = 64  # of 255: images of 16 bits per channel with no brighter pixel hold data of fewer bits
_8_BIT_EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".tga")

# Pillow opens a TIFF of 64-bit numbers only if it is told how; it can decode floating-point numbers, not integers.
_64_BIT_INTEGERS = "I;64"
_DEFLATE = (8, 32946)  # compressions of TIFF
for _prefix, _order in ((b"II", ""), (b"MM", "B")):
    for _photometric in (0, 1):
        for _kind, _raw in ((1, _64_BIT_INTEGERS), (2, _64_BIT_INTEGERS), (3, f"F;64{_order}F")):
            TiffImagePlugin.OPEN_INFO.setdefault(
                (_prefix, _photometric, (_kind,), 1, (64,), ()), ("F" if _kind == 3 else "I", _raw)
            )


def limit_image_size(megapixels: float = DEFAULT_MAX_MEGAPIXELS) -> None:
    """Refuse larger images from now on: a small file can claim a size that fills the memory."""
    Image.MAX_IMAGE_PIXELS = round(megapixels * 1e6 / 2)  # Pillow warns from there on, and refuses twice that size
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def list_images(
    folder: Path | str, extensions: Iterable[str] = IMAGE_EXTENSIONS, recursive: bool = False
) -> list[Path]:
    """The image files of a folder, sorted; hidden files, superpixels and other file types are ignored.

    Args:
        folder: where to look.
        extensions: file extensions, with or without the dot, case-insensitive.
        recursive: include sub-folders, except hidden ones.

    Raises:
        InputError: the folder does not exist, cannot be read, or contains no image.
    """
    folder = Path(folder)
    suffixes = {"." + extension.lower().lstrip(".") for extension in extensions}
    if not folder.exists():
        raise InputError(f"{folder}: there is no such folder")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file, a folder of images was expected")
    found, visited, has_folders = [], set(), False
    for root, folders, names in os.walk(folder, onerror=_raise_unreadable, followlinks=True):
        if os.path.realpath(root) in visited:  # a link to a folder above
            folders.clear()
            continue
        visited.add(os.path.realpath(root))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if not recursive:
            has_folders = bool(folders)
            folders.clear()
        found += [
            Path(root, name) for name in names if not name.startswith(".") and Path(name).suffix.lower() in suffixes
        ]
    if not found:
        within = " outside its sub-folders: name one of these" * has_folders
        of_challenge = folder.name in _CHALLENGE_FOLDERS and folder.parent.resolve() == Path("data").resolve()
        advice = "; python -m utils.download_isic downloads the images and masks of the challenge"
        raise InputError(
            f"{folder} contains no image{within} (looked for {' '.join(sorted(suffixes))})"
            f"{advice * (of_challenge and not has_folders)}",
            *["recursive"] * has_folders,
        )
    images = [path for path in found if not path.stem.lower().endswith(_SUPERPIXELS)]
    if len(images) < len(found):
        logger.info("%d files *%s in %s are ignored", len(found) - len(images), _SUPERPIXELS, folder)
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
        return (height, width) if _exif_orientation(image) >= 5 else (width, height)


def _exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if there is none, or the EXIF data are damaged. Pillow applies that of a TIFF."""
    try:
        orientation = 1 if image.format == "TIFF" else image.getexif().get(_ORIENTATION)
    except PILLOW_ERRORS:
        return 1
    return orientation if orientation in (*_UPRIGHT,) else 1


def read_image(path: Path | str, white: float | None = None, side: int | None = None) -> Image.Image:
    """Read an image of any mode as 8-bit RGB, with its EXIF orientation applied.

    16-bit grey and floating-point images are rescaled; an alpha channel is dropped; of an animation or a multi-page
    file the first image is read.

    Args:
        path: the file.
        white: the value of white in a 16-bit image, from `find_white` for all images of a run; None for the largest
            value of the bit depth that this image shows. White in floating-point images of values up to 1 is 1.
        side: a JPEG may be decoded at a half, a quarter or an eighth of its size, with sides of at least this length.

    Raises:
        InputError: the file cannot be read as an image.
    """
    image = open_upright(path, side)
    if is_deep(image):
        values = np.asarray(image)
        if image.mode == "F" and (white is None or values.max() <= 1):
            white = 1.0
        white = white or _white_of_bit_depth(values.max()) or 65535.0
        if not (values.min() >= 0 and values.max() <= white):
            raise InputError(
                f"{path} has values from {values.min():g} to {values.max():g}, where 0 to {white:g} was expected: "
                "rescale them, or name the value of white",
                "white",
            )
        image = Image.fromarray(np.round(values * (255 / white)).astype(np.uint8))
    with decoding_errors(path):
        return image.convert("RGB")


def is_deep(image: Image.Image) -> bool:
    """Whether an image has one channel of more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


def find_white(paths: Iterable[Path]) -> float | None:
    """The value of white in the 16-bit images among these: the largest of the bit depth that their values show.

    Returns:
        255, 1023, 4095, 16383 or 65535, for all of the images; None if there is no 16-bit image.
    """
    candidates = [path for path in paths if path.suffix.lower() not in _8_BIT_EXTENSIONS]
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        largest = [value for value in pool.map(_largest_of_16_bits, candidates) if value is not None]
    white = _white_of_bit_depth(max(largest, default=0)) if largest else None
    if white is not None:
        bits = int(white).bit_length()
        text = "%d 16-bit image%s with values up to %d: %d bits, white is %d"
        logger.info(text, len(largest), "s" * (len(largest) > 1), max(largest), bits, white)
    return white


def _largest_of_16_bits(path: Path) -> int | None:
    """The largest value of a 16-bit image; None for other images, and for those that cannot be read."""
    try:
        with decoding_errors(path), Image.open(path) as image:
            return int(np.asarray(image).max()) if image.mode.startswith("I") else None
    except InputError:  # reading it again will report why
        return None


def _white_of_bit_depth(largest: float) -> float | None:
    """The largest value of the smallest bit depth that holds a value."""
    return next((2.0**bits - 1 for bits in _BIT_DEPTHS if largest < 2**bits), None)


def open_upright(path: Path | str, side: int | None = None) -> Image.Image:
    """The decoded image of a file in its own mode, with its EXIF orientation applied; `side` as for `read_image`.

    Raises:
        InputError: the file cannot be read as an image.
    """
    with decoding_errors(path), Image.open(path) as image:
        is_deep_colour = image.mode in ("RGB", "RGBA") and any(";16" in str(tile) for tile in image.tile)
        orientation = _exif_orientation(image)
        if image.tile and image.tile[0].codec_name == "libtiff" and image.tile[0].args[0] == "F;64BF":
            image.tile = [image.tile[0]._replace(args=("F;64F", *image.tile[0].args[1:]))]  # libtiff swaps the bytes
        if side is not None:
            image.draft(None, (side, side))  # does nothing but to a JPEG
        if image.format == "TIFF":
            image.filename = ""  # Pillow would map an uncompressed file, with wrong sides if its orientation turns it
        image.load()
        if is_deep_colour and max(high for _, high in image.getextrema()[:3]) < _MIN_DEEP_COLOUR:
            raise InputError(
                f"{path} has 16 bits per channel with values of at most 14 bits, of which the upper 8 can be read: "
                "save it with 8 bits per channel"
            )
        return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def read_wide_integers(path: Path | str) -> np.ndarray | None:
    """The (H, W) values of a TIFF of 64-bit integers, which Pillow cannot decode; None for any other file.

    Raises:
        InputError: the file cannot be read as an image, has an orientation, or is compressed in another way than by
            deflate.
    """
    if Path(path).suffix.lower() not in (".tif", ".tiff"):
        return None
    with decoding_errors(path), Image.open(path) as image:
        if image.format != "TIFF" or not image.tile or image.tile[0].args[0] != _64_BIT_INTEGERS:
            return None
        (width, height), tags = image.size, image.tag_v2
        if tags.get(_ORIENTATION, 1) != 1:
            raise InputError(f"{path} has 64-bit integers and an orientation: save it upright, or with 8 or 16 bits")
        compression, predictor = tags.get(TiffImagePlugin.COMPRESSION, 1), tags.get(TiffImagePlugin.PREDICTOR, 1)
        if compression not in (1, *_DEFLATE) or predictor not in (1, 2) or TiffImagePlugin.TILEOFFSETS in tags:
            raise InputError(
                f"{path} has 64-bit integers in tiles or in a compression other than deflate, which cannot be read: "
                "save it with 8 or 16 bits, or uncompressed"
            )
        content = Path(path).read_bytes()
        sizes = zip(tags[TiffImagePlugin.STRIPOFFSETS], tags[TiffImagePlugin.STRIPBYTECOUNTS], strict=True)
        strips = [content[start : start + n] for start, n in sizes]
        strips = strips if compression == 1 else map(zlib.decompress, strips)
        values = np.frombuffer(b"".join(strips), "<i8" if tags.prefix == b"II" else ">i8", width * height)
        values = values.reshape(height, width).astype(np.int64)
        return values.cumsum(axis=1) if predictor == 2 else values  # 2: the differences of neighbours are stored


@contextmanager
def decoding_errors(path: Path | str) -> Iterator[None]:
    """Turn whatever Pillow raises in the `with` block into an `InputError` that names the file."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except Image.DecompressionBombError as error:
        limit = f"more than {2 * Image.MAX_IMAGE_PIXELS / 1e6:g} megapixels"
        raise InputError(f"{path} has {limit}: raise the limit if the file can be trusted", "max_megapixels") from error
    except PILLOW_ERRORS as error:
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
