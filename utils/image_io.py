"""List images, read an image or a mask, write a map or a mask whole or not at all."""

import csv
import errno
import io
import json
import math
import os
import re
import struct
import threading
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from utils.errors import InputError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
READABLE_EXTENSIONS = (*IMAGE_EXTENSIONS, ".webp", ".gif", ".jfif", ".jp2", ".ppm", ".pgm", ".pbm", ".tga")

CHALLENGE_FOLDERS = ("imgs", "masks", "imgs_test", "masks_test")  # in data/

# A colour (r, g, b) of an RGB mask is the value RGB_VALUE + 65536 r + 256 g + b, so that it is never taken for a grey.
RGB_VALUE = 1 << 24

# What Pillow raises on files that are no images, or broken ones; its plugins are not uniform in this.
_UNREADABLE = (
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
_UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.part")
_ORIENTATION = 0x0112  # the EXIF tag; its values 5 to 8 exchange width and height


def list_images(
    folder: Path | str, extensions: Iterable[str] = IMAGE_EXTENSIONS, recursive: bool = False, advice: str = ""
) -> list[Path]:
    """The images of a folder, sorted; hidden files and other types of file are passed over.

    Args:
        folder: where to look.
        extensions: endings of image files, with or without the dot, in any case.
        recursive: look into sub-folders, too, except hidden ones.
        advice: for the case that there is no image.

    Raises:
        InputError: there is no such folder, it cannot be read, or it holds no image.
    """
    folder = Path(folder)
    endings = {"." + extension.lower().lstrip(".") for extension in extensions}
    if not folder.exists():
        raise InputError(f"{folder}: there is no such folder")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: a folder with images was expected")
    found, visited = [], set()
    for root, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        if os.path.realpath(root) in visited:  # a link to a folder above
            folders.clear()
            continue
        visited.add(os.path.realpath(root))
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if recursive else []
        found += [
            Path(root, name) for name in names if not name.startswith(".") and Path(name).suffix.lower() in endings
        ]
    if not found:
        if folder.name in CHALLENGE_FOLDERS:
            advice += "; python -m utils.download_isic fetches the images and masks of the challenge"
        raise InputError(f"{folder} has no image (looked for {' '.join(sorted(endings))}){advice}")
    return sorted(found)


def _raise(error: OSError) -> None:
    raise InputError(f"{error.filename}: the folder cannot be read ({error.strerror})") from error


def image_size(path: Path | str) -> tuple[int, int]:
    """Width and height as `read_image` would return them, from the file's header alone.

    Raises:
        InputError: the file cannot be read as an image.
    """
    with _decoding(path), Image.open(path) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(_ORIENTATION) in (5, 6, 7, 8) else (width, height)


def read_image(path: Path | str) -> Image.Image:
    """Read an image of any mode as 8-bit RGB, turned upright as its EXIF orientation says.

    16-bit grey (65535 is white) and floating-point images (1.0 is white) are scaled; an alpha channel is dropped; of
    an animation or a multi-page file the first image counts.

    Raises:
        InputError: the file cannot be read as an image.
    """
    image = _read(path)
    if image.mode.startswith("I") or image.mode == "F":
        white = 1.0 if image.mode == "F" else 65535.0
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= white):
            raise InputError(
                f"{path} has values from {values.min()} to {values.max()}, where 0 to {white:g} was expected: scale it"
            )
        image = Image.fromarray(np.round(values * (255 / white)).astype(np.uint8))
    with _decoding(path):
        return image.convert("RGB")


def read_mask(path: Path | str) -> np.ndarray:
    """Read a mask.

    Returns:
        (H, W) int32 values: the grey value of a pixel (255 for white in a black-and-white mask, 65535 in a 16-bit
        one); `RGB_VALUE` + 65536 r + 256 g + b for a pixel with a colour; the index for a mask with a palette, unless
        all of the palette is grey.

    Raises:
        InputError: the file cannot be read as an image, or its values are not whole numbers.
    """
    image = _read(path)
    if image.mode == "P":
        entries = np.asarray(image, dtype=np.int32)
        palette = np.array(image.getpalette("RGB"), dtype=np.int32).reshape(-1, 3)
        all_grey = (palette == palette[:, :1]).all() and entries.max() < len(palette)
        return palette[:, 0][entries] if all_grey else entries
    with _decoding(path):
        if image.mode in ("1", "LA", "La"):
            image = image.convert("L")
        elif image.mode not in ("L", "RGB", "F") and not image.mode.startswith("I"):
            image = image.convert("RGB")
    values = np.asarray(image)
    if values.ndim == 3:
        red, green, blue = np.moveaxis(values.astype(np.int32), -1, 0)
        is_grey = (red == green) & (red == blue)
        return np.where(is_grey, red, RGB_VALUE + (red << 16) + (green << 8) + blue)
    if image.mode == "F" and not (np.isin(values % 1, 0).all() and abs(values).max() < RGB_VALUE):
        raise InputError(f"{path} has values that are not whole numbers: is it a mask?")
    return values.astype(np.int32)


def mask_image(classes: np.ndarray, mask_values: Sequence[int]) -> Image.Image:
    """A mask as it is saved: class k drawn in the k-th mask value.

    Args:
        classes: (H, W) class indices.
        mask_values: a value for each class, as `read_mask` returns them.
    """
    values = np.asarray(mask_values, dtype=np.int32)
    if values.max() >= RGB_VALUE:
        colours = np.stack([values >> 16 & 255, values >> 8 & 255, values & 255], axis=-1)
        colours[values < 256] = values[values < 256, None]  # greys among them
        return Image.fromarray(colours.astype(np.uint8)[classes])
    if values.max() >= 256:
        return Image.fromarray(values.astype(np.uint16)[classes])
    assert classes.max(initial=0) < len(values), "a class without a value"
    table = np.resize(values, 256)  # of which only the beginning is used; Pillow looks up faster than NumPy
    return Image.fromarray(classes.astype(np.uint8, copy=False)).point(table.tolist())


def save_png(path: Path | str, image: Image.Image | np.ndarray) -> None:
    """Write an image, or a (H, W) uint8 array as a grey one, as a PNG; its folder is made where it is missing.

    Raises:
        OSError: the file cannot be written; nothing is left of it.
    """
    with whole_file(path) as file:
        if isinstance(image, np.ndarray) or image.mode == "L":
            file.write(_grey_png(np.asarray(image)))
        else:
            image.save(file, format="PNG", compress_level=2)  # level 6 takes three times as long for a few per cent


def _grey_png(pixels: np.ndarray) -> bytes:
    """An 8-bit grey PNG (ISO/IEC 15948) of an (H, W) uint8 array: of each row, what it differs from the one above.

    In maps and masks that is long runs of nothing. Pillow tries five such filters for each row, takes three times as
    long, and makes larger files of them.
    """
    assert pixels.dtype == np.uint8, pixels.dtype
    height, width = pixels.shape
    rows = np.empty((height, 1 + width), dtype=np.uint8)
    rows[:, 0] = 2  # the filter: "up"
    rows[0, 1:] = pixels[0]
    np.subtract(pixels[1:], pixels[:-1], out=rows[1:, 1:])  # modulo 256
    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", packer.compress(rows) + packer.flush()), (b"IEND", b"")):
        png += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png


@contextmanager
def whole_file(path: Path | str) -> Iterator[BinaryIO]:
    """A file to write to that appears under its name only when the `with` block has ended without an error.

    Raises:
        OSError: the file cannot be written; a file of that name from before is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with open(unfinished, "xb") as file:
            yield file
        os.replace(unfinished, path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(unfinished), unfinished):
            error.filename, error.filename2 = str(path), None
        raise


def remove_unfinished(folders: Iterable[Path]) -> None:
    """Remove what a killed process has left there of files that `whole_file` was writing; none may be writing now."""
    for folder in folders:
        for path in folder.glob(".*.part"):
            if _UNFINISHED.fullmatch(path.name):
                path.unlink(missing_ok=True)


@contextmanager
def npy_file(path: Path | str, shape: tuple[int, ...]) -> Iterator[Callable[[np.ndarray, int], None]]:
    """A float32 .npy file that is written piece by piece, so that the array need not fit into memory.

    Args:
        path: of the file.
        shape: of the whole array.

    Yields:
        The function that writes a piece, given where in the flattened array it begins; it may be called in threads.
    """
    lock = threading.Lock()

    def write(piece: np.ndarray, begin: int) -> None:
        values = np.ascontiguousarray(piece, dtype="<f4")
        with lock:
            file.seek(start + values.itemsize * begin)
            file.write(values.data)

    with whole_file(path) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        start = file.tell()
        _reserve(file, start + 4 * math.prod(shape))
        yield write


def _reserve(file: BinaryIO, size: int) -> None:
    """Ask for a file's room at once, so that a full disk says so first and room is not looked for piece by piece.

    Where a file system cannot, the C library may write a byte into each block instead, or say so.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise


def write_csv(path: Path | str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same columns as a CSV file with a header, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with whole_file(path) as file:
        file.write(text.getvalue().encode(errors="surrogateescape"))  # file names need not be UTF-8


def write_json(path: Path | str, content: Mapping[str, Any]) -> None:
    """Write plain values as a JSON file, whole or not at all."""
    with whole_file(path) as file:
        file.write((json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def _read(path: Path | str) -> Image.Image:
    """A decoded image, upright."""
    with _decoding(path), Image.open(path) as image:
        image.load()
        return ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image


@contextmanager
def _decoding(path: Path | str) -> Iterator[None]:
    """Whatever Pillow finds wrong with a file becomes an `InputError`."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except _UNREADABLE as error:
        reason = "no image format that is known" if isinstance(error, Image.UnidentifiedImageError) else error
        raise InputError(f"{path} cannot be read as an image ({reason})") from error
