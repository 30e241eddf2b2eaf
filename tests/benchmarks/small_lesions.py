"""A corruption of dermoscopy images: the lesion shrunk into a wide view of its skin. Function as in `corrupting.py`."""

import numpy as np
from PIL import Image

from utils.data.corruptions import Corrupted
from utils.data.spatial_filters import disc_blur, gaussian_blur, unit

_AREA = (0.1, 0.05, 0.025, 0.01, 0.005)  # of the image
_MIN_SKIN = 0.02  # of the image, so that there is something to make the skin of
_DARK = 0.65  # of the skin's brightness: vignette, hair, ink
_OTHER_COLOUR = 0.045  # difference of a chromaticity from that of the skin: stickers


def small_lesion(image: np.ndarray, classes: np.ndarray, strength: int, rng: np.random.Generator) -> Corrupted | None:
    """The image shrunk so that the lesion fills 10 % to 0.5 % of the frame, on skin made from the rest of the image.

    The skin has the low frequencies of the lesion-free parts of the image, matched to the surroundings of the lesion,
    and the texture of its largest lesion-free square. A lesion that a border of the image cuts off stays at that
    border; otherwise the position is random. An image whose lesion is as small already is not changed.

    Returns:
        Image and classes; None without a lesion, without skin, or if opposite borders cut off the lesion.
    """
    lesion, pixel = classes > 0, unit(image.shape)
    free, frame = ~grown(lesion, 6 * pixel), max(round(5 * pixel), 1)
    left, right, top, bottom = (bool(border.mean() > 0.01) for border in _borders(lesion, frame))
    if not lesion.any() or not free.any() or (left and right) or (top and bottom):
        return None
    foreign = grown(_is_foreign(image, free), 6 * pixel)
    for cut, border in zip((left, right, top, bottom), _borders(foreign, frame), strict=True):
        border |= not cut  # some images have a frame
    skin = free & ~foreign
    if skin.mean() < _MIN_SKIN:
        return None
    x, y = rng.uniform(0.05, 0.95, 2)
    position = np.array([0.0 if left else 1.0 if right else x, 0.0 if top else 1.0 if bottom else y])
    texture_rng = np.random.default_rng(rng.integers(2**31))
    scale = float(np.sqrt(_AREA[strength - 1] / lesion.mean()))
    if scale >= 1:
        return image, classes
    height, width = lesion.shape
    size = max(round(width * scale), 2), max(round(height * scale), 2)

    # The shrunk image on an empty canvas
    small = _placed(classes.astype(np.float32), size, position, Image.Resampling.NEAREST).astype(np.uint8)
    pasted = np.clip(_placed(image, size, position), 0, 1)
    own = _placed((~foreign).astype(np.float32), size, position).clip(0, 1)
    known = _placed(skin.astype(np.float32), size, position).clip(0, 1)

    # The skin around it: its own low frequencies, shifted to those of the lesion's surroundings, and its texture
    low = extrapolated(image, skin, 16 * pixel)
    margin = 3 * pixel + 0.2 * np.sqrt(np.count_nonzero(small))
    near = grown(small > 0, 1.6 * margin)
    background = low + texture(image - low, skin, texture_rng)
    background = background + extrapolated(pasted - low, known * near, max(margin / 2, 2.0))

    # The lesion, and a margin that fades into the skin
    lesion_opacity = gaussian_blur(grown(small > 0, 1.5).astype(np.float32), 0.7)
    margin_opacity = gaussian_blur(grown(small > 0, margin).astype(np.float32), margin / 2.5) * own
    opacity = np.maximum(lesion_opacity, margin_opacity)[..., None]
    return np.clip(background + (pasted - background) * opacity, 0, 1).astype(np.float32), small


def _borders(values: np.ndarray, frame: int) -> tuple[np.ndarray, ...]:
    """Views of the pixels along the left, the right, the top and the bottom border of (H, W) values."""
    return values[:, :frame], values[:, -frame:], values[:frame], values[-frame:]


def _is_foreign(image: np.ndarray, free: np.ndarray) -> np.ndarray:
    """(H, W) bool, which of the lesion-free pixels are a vignette, hair, ink or stickers, by darkness and colour."""
    brightness = image.mean(axis=-1)
    chroma = image / (image.sum(axis=-1, keepdims=True) + 1e-3)
    away = np.abs(chroma - np.median(chroma[free], axis=0)).max(axis=-1)
    return free & ((brightness < _DARK * np.percentile(brightness[free], 75)) | (away > _OTHER_COLOUR))


def grown(region: np.ndarray, radius: float) -> np.ndarray:
    """An (H, W) bool region and all pixels within `radius` pixels of it."""
    return disc_blur(region.astype(np.float32), radius) > 0.3 / (np.pi * max(radius, 1) ** 2)


def extrapolated(values: np.ndarray, weights: np.ndarray, sigma: float) -> np.ndarray:
    """Smooth (H, W, C) values, extrapolated from where their (H, W) weights are positive: a normalised convolution.

    Where there are none within a few sigma, those from further away count.
    """
    height, width = weights.shape
    step = max(1, int(sigma / 2))  # is smooth: fewer pixels are enough
    size = -(-width // step), -(-height // step)
    weights = weights.astype(np.float32)[..., None]
    sources = resized(np.concatenate([values * weights, weights], axis=-1), size, Image.Resampling.BOX)
    sources = sources.astype(np.float64)  # far from the weights little is left of them
    total = sum(0.01**k * gaussian_blur(sources, sigma / step * 2.0**k) for k in range(4))
    total += 1e-7 * sources.mean(axis=(0, 1))
    means = total[..., :-1] / total[..., -1:]
    return resized(means.astype(np.float32), (width, height), Image.Resampling.BICUBIC)


def texture(residual: np.ndarray, skin: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(H, W, C) texture like that of the largest square of skin: overlapping blocks of it, turned and flipped.

    Args:
        residual: (H, W, C) image without its low frequencies.
        skin: (H, W) bool, which pixels are skin.
        rng: the random generator.
    """
    top, left, side = largest_square(skin)
    patch = (residual * skin[..., None])[top : top + side, left : left + side]
    patch = patch - patch.mean(axis=(0, 1))
    height, width, channels = residual.shape
    block = min(side, max(side // 2, 24))
    step = max(block // 2, 1)
    window = np.hanning(block + 2)[1:-1]
    window = np.outer(window, window).astype(np.float32)[..., None]
    total = np.zeros((height + 2 * block, width + 2 * block, channels), dtype=np.float32)
    squares = np.full((*total.shape[:2], 1), 1e-6, dtype=np.float32)
    for y in range(0, height + block, step):
        for x in range(0, width + block, step):
            i, j = rng.integers(0, side - block + 1, 2)
            part = np.rot90(patch[i : i + block, j : j + block], rng.integers(4))
            total[y : y + block, x : x + block] += window * (part if rng.random() < 0.5 else part[::-1])
            squares[y : y + block, x : x + block] += window**2
    inner = slice(block, block + height), slice(block, block + width)
    return total[inner] / np.sqrt(squares[inner])  # the variance of the patch everywhere


def largest_square(region: np.ndarray) -> tuple[int, int, int]:
    """Top, left and side of a large square that is almost within an (H, W) bool region, or mostly, if there is none."""
    sums = np.pad(region.astype(np.int64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    side = min(region.shape) // 2
    while True:
        inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
        if inside.max() >= 0.98 * side * side or side * 0.85 < min(region.shape) / 12:
            top, left = np.unravel_index(inside.argmax(), inside.shape)
            return int(top), int(left), side
        side = int(side * 0.85)


def resized(values: np.ndarray, size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    """Resize (H, W, C) float32 values to a width and height."""
    channels = [Image.fromarray(channel).resize(size, method) for channel in np.moveaxis(values, -1, 0).copy()]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def _placed(
    values: np.ndarray,
    size: tuple[int, int],
    position: np.ndarray,
    method: Image.Resampling = Image.Resampling.BICUBIC,
) -> np.ndarray:
    """(H, W) or (H, W, C) values, shrunk to a width and height, at a position from (0, 0) to (1, 1); 0 elsewhere."""
    (width, height), canvas = size, np.zeros_like(values)
    left, top = (round(p * (n - s)) for p, n, s in zip(position, values.shape[1::-1], size, strict=True))
    small = resized(values.reshape(*values.shape[:2], -1), size, method)
    canvas[top : top + height, left : left + width] = small.reshape(height, width, *values.shape[2:])
    return canvas
