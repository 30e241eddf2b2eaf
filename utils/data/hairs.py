"""Hairs over an image, as random walks: in no way as those of `artefacts.py`, with which networks are trained."""

import numpy as np

from utils.data.spatial_filters import gaussian_blur, unit

MAX_HAIRS = 70
_STEPS = 600


def add_hairs(image: np.ndarray, count: int, thickness: float, rng: np.random.Generator) -> np.ndarray:
    """Hairs with a slowly changing direction, mostly along a common one, dark or fair, with their shadows.

    With the same generator, more hairs are the same ones and others.

    Args:
        image: (H, W, 3) float32 in [0, 1].
        count: number of hairs, up to `MAX_HAIRS`.
        thickness: of all of them, relative to about 1 pixel of a 256-pixel image.
        rng: the random generator.
    """
    n, steps = MAX_HAIRS, _STEPS
    height, width = image.shape[:2]
    scale = unit(image.shape)
    stride = 0.5 * scale
    heading = rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.45, n) + np.pi * (rng.random(n) < 0.2)
    bend = rng.normal(0, 0.0035, (n, 1)) + 0.0018 * np.cumsum(rng.normal(0, 0.05, (n, steps)), axis=1)
    angles = heading[:, None] + np.cumsum(bend, axis=1)
    lengths = np.clip(rng.lognormal(5.2, 0.6, n), 60, steps)
    starts = rng.uniform(-0.15, 1.05, (n, 2)) * (width, height)
    xs = starts[:, :1] + stride * np.cumsum(np.cos(angles), axis=1)
    ys = starts[:, 1:] + stride * np.cumsum(np.sin(angles), axis=1)
    along = np.arange(steps) / lengths[:, None]
    widths = rng.uniform(0.35, 1.0, (n, 1)) * np.sqrt(np.clip(1 - along, 0, 1)) * thickness
    cover = np.zeros((height, width), dtype=np.float32)
    for offset in (-0.45, 0.0, 0.45):  # across the hair
        shift = offset * scale * widths
        points = xs - shift * np.sin(angles), ys + shift * np.cos(angles)
        _splat(cover, *(p[:count] for p in points), weights=widths[:count])
    cover = 1 - np.exp(-1.3 * gaussian_blur(cover, 0.5 * scale) * 2 * stride / scale)
    fair = rng.random() < 0.2
    colour = np.array([0.86, 0.78, 0.62]) if fair else np.array([0.17, 0.11, 0.08]) * rng.uniform(0.5, 1.4)
    shadow = gaussian_blur(np.roll(cover, (round(2 * scale), round(2 * scale)), (0, 1)), 1.5 * scale)
    changed = image * (1 - 0.25 * shadow)[..., None]
    return (changed + (colour - changed) * 0.93 * cover[..., None]).astype(np.float32)


def _splat(cover: np.ndarray, xs: np.ndarray, ys: np.ndarray, weights: np.ndarray) -> None:
    """Add weights to (H, W) values at positions between pixels, shared by the four nearest ones."""
    height, width = cover.shape
    left, top = np.floor(xs).astype(int), np.floor(ys).astype(int)
    for dx in (0, 1):
        for dy in (0, 1):
            share = weights * np.abs(1 - dx - (xs - left)) * np.abs(1 - dy - (ys - top))
            column, row = left + dx, top + dy
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = row[inside] * width + column[inside]
            cover += np.bincount(index, share[inside], minlength=height * width).reshape(height, width)
