"""Mask files: read them as codes with a value each, count the values, draw classes in mask values."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from utils import RGB_OFFSET
from utils.data.images import PILLOW_ERRORS, decoding_errors, is_deep, open_upright, read_wide_integers
from utils.data.mask_values import PALETTE_OFFSET, ValueCounts, as_colours, colour_values
from utils.runtime.errors import InputError

_MAX_INDEXED = 16  # mask values below this look black in every viewer, unless a palette shows them
_STRIP = 400  # rows that are counted at a time: little memory, and few calls, among which threads take turns
_MAX_NOISE = 256, 0.25  # more values than this, with less of the pixels in areas of one value: a photograph


class RawMask(NamedTuple):
    """The pixels of a mask file.

    Attributes:
        codes: (H, W) uint8, uint16 or int32.
        values: (K,) int64, the value of each code: a grey value (255 for white in a 1-bit mask, 65535 in a 16-bit one)
            or a colour, see `RGB_OFFSET`, or an entry of a palette, see `PALETTE_OFFSET`.
    """

    codes: np.ndarray
    values: np.ndarray

    def runs(self) -> "MaskRuns":
        """The same as runs, of the values that occur."""
        codes = self.codes.ravel()
        starts = np.append(0, np.flatnonzero(codes[1:] != codes[:-1]) + 1)
        found = np.flatnonzero(np.bincount(codes[starts]))
        found = found[np.argsort(self.values[found])]
        rank = np.empty(len(self.values), np.min_scalar_type(len(found) - 1))
        rank[found] = np.arange(len(found))
        lengths = np.diff(starts, append=codes.size).astype(np.int32)
        return MaskRuns(rank[codes[starts]], lengths, self.codes.shape, self.values[found])

    def count(self) -> ValueCounts:
        """The values that occur."""
        return self.runs().count()


class MaskRuns(NamedTuple):
    """A mask, row after row, as runs of equal pixels: a few kilobytes of one that is mostly areas.

    Attributes:
        codes: (R,) unsigned integers, of each run its index into `values`.
        lengths: (R,) int32, its number of pixels.
        shape: of the mask.
        values: (K,) int64, increasing, as of a `RawMask`; all of them occur.
    """

    codes: np.ndarray
    lengths: np.ndarray
    shape: tuple[int, int]
    values: np.ndarray

    @property
    def nbytes(self) -> int:
        """Their memory in bytes."""
        return self.codes.nbytes + self.lengths.nbytes + self.values.nbytes

    def to_mask(self) -> RawMask:
        """The mask, much faster than from its file."""
        return RawMask(np.repeat(self.codes, self.lengths).reshape(self.shape), self.values)

    def count(self) -> ValueCounts:
        """The values."""
        pixels = np.bincount(self.codes, self.lengths, len(self.values)).astype(np.int64)
        codes, solid = self.to_mask().codes, np.zeros(len(self.values), np.int64)
        for top in range(0, len(codes), _STRIP):
            solid += _count_solid(codes[top : top + _STRIP + 2], len(self.values))
        return ValueCounts(self.values, pixels, solid)


def _count_solid(codes: np.ndarray, n: int) -> np.ndarray:
    """How many pixels of each of n codes lie in the middle of 3x3 pixels of that code."""
    inner = codes[1:-1, 1:-1]
    runs = (codes[:, 1:-1] == codes[:, :-2]) & (codes[:, 1:-1] == codes[:, 2:])  # three equal ones side by side
    solid = runs[:-2] & runs[1:-1] & runs[2:] & (inner == codes[:-2, 1:-1]) & (inner == codes[2:, 1:-1])
    if codes.dtype != np.uint8 or not inner.size:
        return np.bincount(inner[solid], minlength=n)
    return np.array(Image.fromarray(inner).histogram(Image.fromarray(solid.astype(np.uint8))))[:n]  # far faster


def read_mask(path: Path | str) -> RawMask:
    """Read a mask of any mode. Where one colour is everywhere and the alpha channel holds the shape, that is read.

    Raises:
        InputError: the file cannot be read as an image, has several pages, is a photograph, or its values are not
            integers.
    """
    _check_single(path)
    mask = _read_codes(path)
    if len(mask.values) > _MAX_NOISE[0]:
        counts = mask.count()
        if len(counts.values) > _MAX_NOISE[0] and counts.solid.sum() < _MAX_NOISE[1] * mask.codes.size:
            raise InputError(
                f"{path} has {len(counts.values)} distinct values and hardly an area of one of them, where one value "
                "per class was expected: is it a mask?"
            )
    return mask


def _check_single(path: Path | str) -> None:
    """Check that a file has no second page or frame of the first one's size, as stacks of masks do."""
    n_masks = 1
    with decoding_errors(path), Image.open(path) as image, suppress(*PILLOW_ERRORS):  # a page that cannot be opened
        size = image.size
        for page in range(1, getattr(image, "n_frames", 1)):
            image.seek(page)
            n_masks += image.size == size
    if n_masks > 1:
        raise InputError(
            f"{path} has {n_masks} pages or frames of one size, where a single mask was expected: write each to a file "
            "of its own, or all of them as one mask"
        )


def _read_codes(path: Path | str) -> RawMask:
    pixels = read_wide_integers(path)
    if pixels is None:
        image = open_upright(path)
        with decoding_errors(path):
            image = _shape_in_alpha(image) or image
            if image.mode == "P":
                colours = np.array(image.getpalette("RGB")).reshape(-1, 3)
                colours = np.pad(colours, ((0, 256 - len(colours)), (0, 0)))
                offsets = PALETTE_OFFSET * np.arange(1, 257, dtype=np.int64)
                return RawMask(np.asarray(image), offsets + colour_values(colours))
            if image.mode not in ("L", "RGB") and not is_deep(image):
                image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
        pixels = np.asarray(image)
    if pixels.ndim == 3:
        is_grey = (pixels == pixels[..., :1]).all()
        pixels = pixels[..., 0] if is_grey else colour_values(pixels)
    elif pixels.dtype.kind == "f" and not np.isin(pixels % 1, 0).all():
        raise InputError(
            f"{path} contains values that are not integers, one integer per class was expected: is it a mask?"
        )
    elif pixels.size and not (pixels.min() > -RGB_OFFSET and pixels.max() < RGB_OFFSET):
        raise InputError(f"{path} contains the value {pixels.max():g}: is it a mask?")
    if pixels.dtype == np.uint8:
        return RawMask(pixels, np.arange(256))
    values, codes = np.unique(pixels, return_inverse=True)
    return RawMask(codes.reshape(pixels.shape).astype(np.int32), values.astype(np.int64))


def _shape_in_alpha(image: Image.Image) -> Image.Image | None:
    """The alpha channel, if not all is opaque and the colour is the same everywhere."""
    if not image.has_transparency_data:
        return None
    *colour, alpha = image.convert(image.mode.upper()).convert("RGBA").split()  # La and RGBa have no way to RGBA
    uniform = all(low == high for low, high in (channel.getextrema() for channel in colour))
    return alpha if uniform and alpha.getextrema()[0] < 255 else None


def mask_to_image(classes: np.ndarray, mask_values: Sequence[int]) -> Image.Image:
    """The image in which class k is drawn in the k-th mask value.

    Labels such as 0, 1, 2 have a palette, which shows the background black, a single other class white and several in
    colours; the values in the file are 0, 1, 2 all the same: `MaskClasses(values, by_index=True)` reads them.

    Args:
        classes: (H, W) class indices.
        mask_values: the value of each class, as `MaskClasses.values`.
    """
    values = np.asarray(mask_values, dtype=np.int64)
    assert classes.max(initial=0) < len(values), "a class without a mask value"
    if values.max() >= RGB_OFFSET:
        return Image.fromarray(as_colours(values).astype(np.uint8)[classes])
    if values.max() >= 256:
        return Image.fromarray(values.astype(np.uint16)[classes])
    image = Image.fromarray(classes.astype(np.uint8, copy=False)).point(np.resize(values, 256).tolist())
    if values.max() < _MAX_INDEXED:
        palette = np.zeros((values.max() + 1, 3), np.uint8)
        palette[values[1:]] = 255 if len(values) == 2 else [label_colour(k) for k in range(1, len(values))]
        image.putpalette(palette.tobytes())
    return image


def label_colour(k: int) -> tuple[int, ...]:
    """Colour k < 512 of the PASCAL VOC palette, its bits spread over the channels: (128, 0, 0), (0, 128, 0), ..."""
    return tuple(sum((k >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3))
