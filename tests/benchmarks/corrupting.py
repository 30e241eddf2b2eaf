"""Corruptions of dermoscopy images by the camera: tone curve, colour of the skin; beside `utils.data.corruptions`.

A corruption takes an (H, W, 3) float32 image in [0, 1], its (H, W) uint8 classes, a strength from 1 to 5 and a random
generator, and returns both as changed. With the same generator a higher strength is more of the same change. Lengths
are for a shorter side of 256 pixels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.benchmarks.overlays import smooth_noise
from utils.data.corruptions import Corrupted
from utils.data.spatial_filters import soft_step

STRENGTHS = range(1, 6)

_RED, _YELLOW = np.array([0.01, 0.1, 0.07]), np.array([0.01, 0.035, 0.12])  # absorption per strength


def at_levels(change: Callable[..., Corrupted], levels: Sequence[Any]) -> Callable[..., Corrupted]:
    """A corruption of `utils.data.corruptions` as one that takes a strength in place of a level."""

    def corrupt(image: np.ndarray, classes: np.ndarray, strength: int, rng: np.random.Generator) -> Corrupted:
        return change(image, classes, levels[strength - 1], rng)

    return corrupt


def tone_curve(image: np.ndarray, classes: np.ndarray, strength: int, rng: np.random.Generator) -> Corrupted:
    """The tone curve of another camera: a gamma and an S-curve, or an inverted one, which differ by channel."""
    amount = strength / 5
    gamma = rng.choice([-1, 1]) * rng.uniform(0.35, 0.65) + rng.uniform(-0.2, 0.2, 3)
    contrast = rng.choice([-0.5, 0.9]) * rng.uniform(0.6, 1.0) + rng.uniform(-0.15, 0.15, 3)
    values = image ** np.exp(amount * gamma).astype(np.float32)
    s_curve = values * values * (3 - 2 * values)
    return np.clip(values + amount * contrast.astype(np.float32) * (s_curve - values), 0, 1), classes


def skin_colour(image: np.ndarray, classes: np.ndarray, strength: int, rng: np.random.Generator) -> Corrupted:
    """Redder or yellower skin: a filter that absorbs green and blue, more so in blotches, as of inflamed skin."""
    absorption = (_RED if rng.random() < 0.5 else _YELLOW) * rng.uniform(0.8, 1.2, 3)
    blotches = soft_step(smooth_noise(rng, image.shape, 16) + 0.3 * smooth_noise(rng, image.shape, 6) - 0.5, 0.6)
    places = rng.uniform(0.4, 0.7) + 0.7 * blotches + 0.06 * smooth_noise(rng, image.shape, 2)
    density = strength * places[..., None] * absorption.astype(np.float32)
    return image * np.exp(-density), classes
