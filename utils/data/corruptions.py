"""What happens to dermoscopy images: lens, motion, sensor, light, hair, angle and distance, in five strengths.

A corruption takes an (H, W, 3) float32 image in [0, 1], its (H, W) uint8 classes, a level and a random generator, and
returns both as changed. Ignored pixels stay ignored in all of them. With the same generator a higher strength is more
of the same change. Lengths are for a shorter side of 256 pixels, so that a change looks the same at every size; only
JPEG compresses the pixels as they are.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from utils import IGNORED_CLASS
from utils.data.hairs import add_hairs
from utils.data.spatial_filters import coordinates, disc_blur, gaussian_blur, line_blur, soft_step, unit
from utils.runtime.seeds import derived_seed

SHIFT_STRENGTHS = range(1, 6)
Corrupted = tuple[np.ndarray, np.ndarray]  # image and classes

_DARK = 0.75  # of the skin's brightness: hair, and the corners behind a round lens
_DISPLAY_GAMMA = 2.2  # a pixel's value is the light to the power of 1 / 2.2
# Wien's law: the light of a lamp at a wavelength, relative to green light, by 1 / temperature in 1e6 / K (mired).
_WAVELENGTHS = np.array([610e-9, 540e-9, 450e-9])
_PER_MIRED = 1e-6 * 1.4388e-2 * (1 / _WAVELENGTHS[1] - 1 / _WAVELENGTHS)


# -- lens and motion ---------------------------------------------------------------------------------------------------


def defocus(image: np.ndarray, classes: np.ndarray, radius: float, rng: np.random.Generator) -> Corrupted:
    """A lens out of focus: the image of a point is a disc of this radius."""
    return np.clip(disc_blur(image, radius * unit(image.shape)), 0, 1), classes


def motion(image: np.ndarray, classes: np.ndarray, length: float, rng: np.random.Generator) -> Corrupted:
    """A camera that moves during the exposure: the image of a point is a line of this length."""
    return np.clip(line_blur(image, length * unit(image.shape), rng.uniform(0, np.pi)), 0, 1), classes


def lens_vignette(image: np.ndarray, classes: np.ndarray, radius: float, rng: np.random.Generator) -> Corrupted:
    """The black surroundings of a round lens, with less light towards its rim; lesions end there, too.

    Ignored pixels stay ignored, so that no image counts that did not count without the lens. The radius is relative to
    half of the shorter side.
    """
    x, y = coordinates(image.shape)
    centre = rng.uniform(-8, 8, 2)
    distance = np.hypot(x - centre[0], y - centre[1]) / 128
    light = 1 - rng.uniform(0.25, 0.4) * np.clip(distance / radius, 0, 1) ** 4
    inside = soft_step(radius - distance, rng.uniform(0.005, 0.015))
    black = rng.uniform(0.0, 0.06) * np.array([0.9, 0.9, 1.1])
    changed = image * (light * inside)[..., None] + black * (1 - inside)[..., None]
    kept = (inside > 0.5) | (classes == IGNORED_CLASS)
    return changed.astype(np.float32), np.where(kept, classes, 0).astype(np.uint8)


# -- sensor and file ---------------------------------------------------------------------------------------------------


def sensor_noise(image: np.ndarray, classes: np.ndarray, sigma: float, rng: np.random.Generator) -> Corrupted:
    """Noise of each channel, with the standard deviation `sigma` where the image is white, a third where it is black.

    In images of more than 256 pixels it is as coarse as in one of 256 pixels.
    """
    height, width = image.shape[:2]
    scale = max(1.0, unit(image.shape))
    small = rng.normal(0, 1, (3, round(height / scale), round(width / scale))).astype(np.float32)
    noise = [Image.fromarray(channel).resize((width, height), Image.Resampling.BICUBIC) for channel in small]
    deviations = np.outer(
        _interpolated_deviations(small.shape[1], height), _interpolated_deviations(small.shape[2], width)
    )
    noise = np.stack([channel / deviations for channel in noise], axis=-1)
    return np.clip(image + sigma * (1 + 2 * image) / 3 * noise, 0, 1), classes


def _interpolated_deviations(n: int, length: int) -> np.ndarray:
    """(length,) float32 standard deviations of n independent values of deviation 1 after they have been interpolated.

    Each result has at most five values, so those eight apart never meet: a row for each remainder shows all weights.
    """
    rows = (np.arange(n) % 8 == np.arange(8)[:, None]).astype(np.float32)
    weights = np.asarray(Image.fromarray(rows).resize((length, 8), Image.Resampling.BICUBIC))
    return np.sqrt((weights**2).sum(axis=0))


def jpeg(image: np.ndarray, classes: np.ndarray, quality: int, rng: np.random.Generator) -> Corrupted:
    """JPEG compression, of a quality up to 100."""
    file = io.BytesIO()
    Image.fromarray((image * 255 + 0.5).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file), dtype=np.float32) / 255, classes


def camera_gamma(image: np.ndarray, classes: np.ndarray, gamma: float, rng: np.random.Generator) -> Corrupted:
    """Another camera's gamma: this one or, as often, its inverse."""
    return image ** np.float32(gamma if rng.random() < 0.5 else 1 / gamma), classes


# -- light -------------------------------------------------------------------------------------------------------------


def exposure(image: np.ndarray, classes: np.ndarray, stops: float, rng: np.random.Generator) -> Corrupted:
    """Another exposure: twice as much light per stop, or half for each negative one."""
    return _relit(image, np.full(3, 2.0**stops)), classes


def colour_temperature(image: np.ndarray, classes: np.ndarray, mired: float, rng: np.random.Generator) -> Corrupted:
    """A lamp that is warmer than the camera assumes or, as often, colder, by these mired (1e6 / K).

    150 mired are from daylight of 6500 K to a lamp of 3300 K. The green light stays as it is.
    """
    return _relit(image, np.exp(_PER_MIRED * (mired if rng.random() < 0.5 else -mired))), classes


def _relit(image: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """An image in which each channel has so many times the light."""
    return np.clip(image * gains.astype(np.float32) ** np.float32(1 / _DISPLAY_GAMMA), 0, 1)


# -- what is on the skin -----------------------------------------------------------------------------------------------


def hair(image: np.ndarray, classes: np.ndarray, level: tuple[int, float], rng: np.random.Generator) -> Corrupted:
    """Hairs over skin and lesion; the level is their number and their thickness."""
    return add_hairs(image, *level, rng), classes


# -- view --------------------------------------------------------------------------------------------------------------


def rotation(image: np.ndarray, classes: np.ndarray, degrees: float, rng: np.random.Generator) -> Corrupted:
    """A camera that is rotated to either side; skin and lesion are mirrored beyond the borders."""
    height, width = classes.shape
    pad = int(np.ceil((np.hypot(height, width) - min(height, width)) / 2)) + 2
    angle, box = degrees * rng.choice([-1, 1]), (pad, pad, pad + width, pad + height)
    return _moved(image, classes, pad, lambda picture, resampling: picture.rotate(angle, resampling).crop(box))


def nearer(image: np.ndarray, classes: np.ndarray, factor: float, rng: np.random.Generator) -> Corrupted:
    """A camera that is nearer by this factor."""
    return _zoomed(image, classes, factor)


def farther(image: np.ndarray, classes: np.ndarray, factor: float, rng: np.random.Generator) -> Corrupted:
    """A camera that is farther by this factor, with mirrored skin beyond the borders.

    The lesion is not mirrored, and dark corners are not moved: smooth skin is in their places. It is also in the places
    of mirrored pixels that are ignored, which may be of a lesion; they stay ignored, as do those within the picture.
    """
    changed, mask = _zoomed(image, classes, 1 / factor)
    height, width = classes.shape
    pixel, skin, ignored = unit(image.shape), mask == 0, mask == IGNORED_CLASS
    x, y = np.abs(coordinates(image.shape)) * pixel * 2 * factor / np.array([width, height])[:, None, None]
    beyond = np.maximum(x, y) > 1
    brightness = changed.mean(axis=-1)
    dark = brightness < _DARK * np.median(brightness[skin] if skin.any() else brightness)
    kept = ~(skin | ignored | beyond)
    foreign = ((~skin & beyond) | (dark & (np.hypot(x, y) > 1))) & ~kept
    opacity = np.clip(2.5 * gaussian_blur(foreign.astype(np.float32), 3 * pixel), 0, 1) * ~kept
    changed = changed + (_smooth_skin(changed, skin & ~dark) - changed) * opacity[..., None]
    return np.clip(changed, 0, 1).astype(np.float32), np.where(beyond & ~ignored, 0, mask).astype(np.uint8)


def _smooth_skin(image: np.ndarray, is_skin: np.ndarray) -> np.ndarray:
    """(H, W, 3) the colour of an image's skin, averaged over its surroundings, also where there is no skin."""
    weights, sigma = is_skin.astype(np.float32)[..., None], 24 * unit(image.shape)
    mean = (image * weights).sum((0, 1)) / max(weights.sum(), 1)
    return (gaussian_blur(image * weights, sigma) + 1e-3 * mean) / (gaussian_blur(weights, sigma) + 1e-3)


def _zoomed(image: np.ndarray, classes: np.ndarray, factor: float) -> Corrupted:
    """Image and classes enlarged about the centre, or made smaller and mirrored beyond the borders."""
    height, width = classes.shape
    pad = int(np.ceil(max(height, width) * max(0.0, 1 / factor - 1) / 2)) + 2
    left, top = pad + width * (1 - 1 / factor) / 2, pad + height * (1 - 1 / factor) / 2
    box = (left, top, left + width / factor, top + height / factor)
    return _moved(image, classes, pad, lambda picture, resampling: picture.resize((width, height), resampling, box))


def _moved(
    image: np.ndarray,
    classes: np.ndarray,
    pad: int,
    move: Callable[[Image.Image, Image.Resampling], Image.Image],
) -> Corrupted:
    """Image and classes after a movement, with `pad` mirrored pixels at each border before it."""
    pixels = np.pad((image * 255 + 0.5).astype(np.uint8), ((pad, pad), (pad, pad), (0, 0)), mode="symmetric")
    moved = move(Image.fromarray(pixels), Image.Resampling.BICUBIC)
    mask = move(Image.fromarray(np.pad(classes, pad, mode="symmetric")), Image.Resampling.NEAREST)
    return np.asarray(moved, dtype=np.float32) / 255, np.array(mask)


# -- the suite ---------------------------------------------------------------------------------------------------------


class Corruption(NamedTuple):
    """A change and its levels at strengths 1 to 5."""

    change: Callable[[np.ndarray, np.ndarray, Any, np.random.Generator], Corrupted]
    levels: Sequence[Any]


CORRUPTIONS: dict[str, Corruption] = {
    "defocus blur": Corruption(defocus, (2, 4, 7, 11, 16)),
    "motion blur": Corruption(motion, (6, 12, 20, 32, 48)),
    "vignette": Corruption(lens_vignette, (1.35, 1.22, 1.1, 1.0, 0.88)),
    "sensor noise": Corruption(sensor_noise, (0.04, 0.08, 0.13, 0.2, 0.3)),
    "JPEG": Corruption(jpeg, (40, 20, 10, 7, 5)),
    "gamma": Corruption(camera_gamma, (1.2, 1.45, 1.75, 2.1, 2.5)),
    "overexposure": Corruption(exposure, (0.4, 0.8, 1.2, 1.6, 2.0)),
    "underexposure": Corruption(exposure, (-0.8, -1.6, -2.4, -3.2, -4.0)),
    "colour temperature": Corruption(colour_temperature, (30, 60, 90, 120, 150)),
    "hair": Corruption(hair, ((5, 0.92), (12, 1.04), (24, 1.16), (42, 1.28), (70, 1.4))),
    "rotation": Corruption(rotation, (9, 18, 27, 36, 45)),
    "nearer": Corruption(nearer, (1.15, 1.3, 1.45, 1.6, 1.8)),
    "farther": Corruption(farther, (1.2, 1.45, 1.75, 2.1, 2.5)),
}


def corrupt(
    image: Image.Image, classes: np.ndarray, corruption: str, strength: int, key: tuple[int, str]
) -> tuple[Image.Image, np.ndarray]:
    """An image and its ground truth after a corruption; the same for the same seed and name.

    Args:
        image: RGB.
        classes: (H, W) uint8 class indices.
        corruption: one of `CORRUPTIONS`.
        strength: one of `SHIFT_STRENGTHS`, or 0 for the image as it is.
        key: the seed, and the name of the image.

    Returns:
        Both as changed, of the same size.
    """
    if strength == 0:
        return image, classes
    change, levels = CORRUPTIONS[corruption]
    seed, name = key
    rng = np.random.default_rng(derived_seed(seed, f"{corruption}:{name}"))
    pixels = np.asarray(image, dtype=np.float32) / 255
    changed, classes = change(pixels, classes, levels[strength - 1], rng)
    return Image.fromarray((changed * 255 + 0.5).clip(0, 255).astype(np.uint8)), classes
