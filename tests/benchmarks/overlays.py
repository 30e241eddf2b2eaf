"""Corruptions of dermoscopy images by what lies on the skin: rulers and ink.

Everything is computed from distances and noise, so it does not look like what `utils.sample_data` draws. Functions as
in `corrupting.py`.
"""

import numpy as np

from utils.data.corruptions import Corrupted
from utils.data.spatial_filters import coordinates, gaussian_blur, soft_step, unit

_INKS = np.array([[0.42, 0.24, 0.62], [0.34, 0.22, 0.5], [0.2, 0.36, 0.7], [0.16, 0.44, 0.4], [0.2, 0.2, 0.26]])
_INK_MARKS = (1, 2, 4, 6, 9)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], grain: float) -> np.ndarray:
    """(H, W) float32 smooth noise with mean 0 and standard deviation 1.

    Args:
        rng: the random generator.
        shape: of an image.
        grain: standard deviation of the Gaussian that smooths it, in units for a shorter side of 256.
    """
    smooth = gaussian_blur(rng.normal(0, 1, shape[:2]).astype(np.float32), grain * unit(shape))
    return (smooth - smooth.mean()) / max(smooth.std(), 1e-6)


# -- rulers ------------------------------------------------------------------------------------------------------------


def ruler(image: np.ndarray, classes: np.ndarray, strength: int, rng: np.random.Generator) -> Corrupted:
    """A scale at one of the borders, as a dermoscope has it engraved; from strength 3 on on a strip of paper as well.

    The borders with the least of the lesion are taken. Where paper covers the lesion, there is none.
    """
    changed, covered = image, np.zeros(classes.shape, dtype=np.float32)
    spacing, tilts, ink = rng.uniform(7, 15), rng.uniform(-0.09, 0.09, 2), rng.uniform(0.06, 0.25)
    offsets, shade = rng.uniform(0, 100, 2), rng.uniform(0.8, 0.97)
    sides = _free_sides(classes)
    engraved, printed = (0.45, 0.8, 0.8, 0.9, 0.95)[strength - 1], strength >= 3
    depth = (14, 18, 22, 26, 32)[strength - 1]
    if printed:
        u, v = _along_border(image.shape, sides[0], tilts[0])
        paper = soft_step(1.5 * depth - v, 0.5)
        texture = shade * (1 + 0.015 * smooth_noise(rng, image.shape, 1.0))
        light = gaussian_blur(image.mean(axis=-1), 12 * unit(image.shape))  # the lamp of the image
        colour = np.array([1.0, 0.99, 0.95]) * np.clip(texture * (0.55 + 0.45 * light / light.max()), 0, 1)[..., None]
        shadow = 1 - 0.25 * np.exp(-np.clip(v - 1.5 * depth, 0, None) / 3) * (1 - paper)
        changed = changed * shadow[..., None] * (1 - paper)[..., None] + colour * paper[..., None]
        covered = paper
        lines = _ticks(u + offsets[0], 1.5 * depth - v, spacing, depth, 1.2 + 0.2 * strength)
        changed = changed * (1 - 0.9 * lines[..., None]) + 0.9 * ink * lines[..., None]
    for side, tilt, offset in list(zip(sides, tilts, offsets, strict=False))[printed : 1 + (strength >= 2)]:
        u, v = _along_border(image.shape, side, tilt)
        lines = engraved * _ticks(u + offset, v - 6, spacing, depth, 0.8 + 0.25 * strength)
        changed = changed * (1 - lines[..., None]) + ink * lines[..., None]
    return np.clip(changed, 0, 1).astype(np.float32), np.where(covered > 0.5, 0, classes).astype(np.uint8)


def _free_sides(classes: np.ndarray) -> list[int]:
    """The two sides (right, bottom, left and top are 0 to 3) with the least lesion in a fifth of the image."""
    rows, columns = classes.any(axis=1), classes.any(axis=0)
    lesion = classes > 0
    h, w = len(rows) // 5, len(columns) // 5
    areas = [lesion[:, -w:].mean(), lesion[-h:].mean(), lesion[:, :w].mean(), lesion[:h].mean()]
    return np.argsort(areas, kind="stable")[:2].tolist()


def _along_border(shape: tuple[int, ...], side: int, tilt: float) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) position along a border, and distance from it, of a line that is tilted against it."""
    x, y = coordinates(shape)
    half = np.abs(x).max() if side in (0, 2) else np.abs(y).max()
    angle = side * np.pi / 2 + tilt
    outwards = x * np.cos(angle) + y * np.sin(angle)
    return y * np.cos(angle) - x * np.sin(angle), half - outwards


def _ticks(u: np.ndarray, v: np.ndarray, spacing: float, length: float, width: float) -> np.ndarray:
    """(H, W) coverage of the ticks of a scale along u, each from v = 0 on; every fifth and tenth is longer."""
    index = np.round(u / spacing)
    distance = np.abs(u - index * spacing)
    lengths = np.where(index % 10 == 0, 1.0, np.where(index % 5 == 0, 0.75, 0.5)) * length
    return np.clip(width / 2 - distance + 0.5, 0, 1) * np.clip(v + 0.5, 0, 1) * np.clip(lengths - v + 0.5, 0, 1)


# -- ink ---------------------------------------------------------------------------------------------------------------


def ink(image: np.ndarray, classes: np.ndarray, strength: int, rng: np.random.Generator) -> Corrupted:
    """Marks of a surgical pen around the lesion: arcs, strokes and dots, whose ink the furrows of the skin take up."""
    x, y = coordinates(image.shape)
    x, y = x + 1.6 * smooth_noise(rng, image.shape, 9), y + 1.6 * smooth_noise(rng, image.shape, 9)
    ragged = 0.5 * smooth_noise(rng, image.shape, 1.0) + 0.8 * smooth_noise(rng, image.shape, 5)
    furrows = np.clip(
        0.72 + 0.2 * smooth_noise(rng, image.shape, 1.0) + 0.16 * smooth_noise(rng, image.shape, 6), 0.15, 1.1
    )
    colour = _INKS[rng.integers(len(_INKS))] * rng.uniform(0.85, 1.2, 3)
    centre, radius = _lesion_circle(classes)
    density = np.zeros(classes.shape, dtype=np.float32)
    widths = (0.5 + 0.2 * strength) * rng.uniform(5, 12, max(_INK_MARKS))
    angles = rng.uniform(0, 2 * np.pi) + 2.4 * np.arange(max(_INK_MARKS)) + rng.uniform(-0.4, 0.4, max(_INK_MARKS))
    kinds = rng.permutation([0, 0, 0, 1, 1, 1, 1, 2, 2])
    sizes = rng.uniform(0.0, 1.0, (max(_INK_MARKS), 2))
    for kind, angle, width, size in list(zip(kinds, angles, widths, sizes, strict=True))[: _INK_MARKS[strength - 1]]:
        distance = _mark_distance(int(kind), x - centre[0], y - centre[1], angle, radius, size)
        mark = soft_step(width / 2 - distance + ragged, 0.6)
        rim = 1 + 0.25 * np.exp(-((distance - width / 2 + 1.5) ** 2) / 3)  # ink dries at the rim
        density = np.maximum(density, mark * rim)
    density = density * furrows * (0.55 + 0.13 * strength)
    transmitted = np.exp(np.log(np.clip(colour, 0.05, 0.95)) * density[..., None])
    return (image * transmitted).astype(np.float32), classes


def _lesion_circle(classes: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre and radius of a circle around most of the lesion, in the units of `coordinates`, within the image."""
    x, y = coordinates(classes.shape)
    inside = classes > 0
    if not inside.any():
        return np.zeros(2), 50.0
    centre = np.array([x[inside].mean(), y[inside].mean()])
    distance = np.hypot(x[inside] - centre[0], y[inside] - centre[1])
    return centre, float(np.clip(np.percentile(distance, 95), 12, 95))


def _mark_distance(
    kind: int, x: np.ndarray, y: np.ndarray, angle: float, radius: float, size: np.ndarray
) -> np.ndarray:
    """(H, W) distance from a mark in a direction from the lesion: an arc (0), a stroke (1) or a dot (2)."""
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    start = radius + 7 + 14 * size[0]
    if kind == 0:  # along the circle, then straight to its end
        half = 0.3 + 0.5 * size[1]
        along = np.clip(np.arctan2(v, u), -half, half)
        return np.hypot(u - start * np.cos(along), v - start * np.sin(along))
    if kind == 1:  # outwards, as the cross-hairs that mark where to cut
        return np.hypot(u - np.clip(u, start, start + 18 + 30 * size[1]), v)
    return np.clip(np.hypot(u - start - 6, v) - 14 * size[1] ** 2, 0, None)
