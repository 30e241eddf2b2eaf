"""Corruptions of dermoscopy images by the camera: JPEG, tone curve, colour of the skin, defocus, vignette.

A corruption takes an (H, W, 3) float32 image in [0, 1], its (H, W) uint8 classes, a strength from 1 to 5 and a random
generator, and returns both as changed. With the same generator a higher strength is more of the same change. Lengths
are for a shorter side of 256 pixels.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

STRENGTHS = range(1, 6)
Corrupted = tuple[np.ndarray, np.ndarray]

_JPEG_QUALITY = (60, 35, 20, 10, 5)
_DEFOCUS_RADIUS = (1.5, 3.0, 4.5, 6.5, 9.0)
_VIGNETTE_RADIUS = (1.35, 1.22, 1.1, 1.0, 0.88)  # relative to half the shorter side
_RED, _YELLOW = np.array([0.01, 0.1, 0.07]), np.array([0.01, 0.035, 0.12])  # absorption per strength


# -- filters and fields ------------------------------------------------------------------------------------------------


def coordinates(shape: tuple[int, ...]) -> np.ndarray:
    """(2, H, W) float32 x and y of the pixels of an image, from its centre, in units for a shorter side of 256."""
    height, width = shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([x - (width - 1) / 2, y - (height - 1) / 2]) / unit(shape)


def unit(shape: tuple[int, ...]) -> float:
    """The number of pixels that a pixel of a 256-pixel image is."""
    return min(shape[:2]) / 256


def convolve(values: np.ndarray, radius: float, transfer: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Convolve (H, W) or (H, W, C) values, reflected at the borders, by way of their Fourier transform.

    Args:
        values: floating-point.
        radius: of the kernel, in pixels.
        transfer: the kernel's Fourier transform as a function of the vertical and the horizontal frequency.
    """
    height, width = values.shape[:2]
    pad = int(np.ceil(radius))
    padded = np.pad(values, [(pad, pad), (pad, pad)] + [(0, 0)] * (values.ndim - 2), mode="symmetric")
    vertical = np.fft.fftfreq(padded.shape[0]).astype(values.dtype)[:, None]
    horizontal = np.fft.rfftfreq(padded.shape[1]).astype(values.dtype)[None]
    factors = transfer(vertical, horizontal)
    spectrum = np.fft.rfft2(padded, axes=(0, 1)) * factors.reshape(*factors.shape, *[1] * (values.ndim - 2))
    result = np.fft.irfft2(spectrum, s=padded.shape[:2], axes=(0, 1))
    return result[pad : pad + height, pad : pad + width].astype(values.dtype)


def gaussian_blur(values: np.ndarray, sigma: float) -> np.ndarray:
    """Blur (H, W) or (H, W, C) values with a Gaussian of `sigma` pixels."""
    return convolve(values, 3 * sigma, lambda v, h: np.exp(-2 * (np.pi * sigma) ** 2 * (v**2 + h**2)))


def disc_blur(values: np.ndarray, radius: float) -> np.ndarray:
    """Average (H, W) or (H, W, C) values over a disc of `radius` pixels around each pixel."""

    def transfer(vertical: np.ndarray, horizontal: np.ndarray) -> np.ndarray:
        shape = vertical.size, 2 * horizontal.size - 1 - (horizontal[0, -1] == 0.5)
        y, x = (np.fft.fftfreq(n, 1 / n) for n in shape)
        disc = np.clip(radius + 0.5 - np.hypot(y[:, None], x[None]), 0, 1)
        return (np.fft.rfft2(disc) / disc.sum()).astype(np.complex64)

    return convolve(values, radius + 2, transfer)


def noise(rng: np.random.Generator, shape: tuple[int, ...], grain: float) -> np.ndarray:
    """(H, W) float32 smooth noise with mean 0 and standard deviation 1.

    Args:
        rng: the random generator.
        shape: of an image.
        grain: standard deviation of the Gaussian that smooths it, in units for a shorter side of 256.
    """
    smooth = gaussian_blur(rng.normal(0, 1, shape[:2]).astype(np.float32), grain * unit(shape))
    return (smooth - smooth.mean()) / max(smooth.std(), 1e-6)


def soft_step(values: np.ndarray, width: float) -> np.ndarray:
    """From 0 to 1 where `values` change their sign, over about 4 `width`."""
    return 0.5 + 0.5 * np.tanh(values / (2 * width))


# -- corruptions -------------------------------------------------------------------------------------------------------


def jpeg(image: np.ndarray, classes: np.ndarray, strength: int, rng: np.random.Generator) -> Corrupted:
    """JPEG compression, of quality 60 to 5."""
    file = io.BytesIO()
    Image.fromarray((image * 255 + 0.5).astype(np.uint8)).save(file, "JPEG", quality=_JPEG_QUALITY[strength - 1])
    return np.asarray(Image.open(file), dtype=np.float32) / 255, classes


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
    blotches = soft_step(noise(rng, image.shape, 16) + 0.3 * noise(rng, image.shape, 6) - 0.5, 0.6)
    places = rng.uniform(0.4, 0.7) + 0.7 * blotches + 0.06 * noise(rng, image.shape, 2)
    density = strength * places[..., None] * absorption.astype(np.float32)
    return image * np.exp(-density), classes


def defocus(image: np.ndarray, classes: np.ndarray, strength: int, rng: np.random.Generator) -> Corrupted:
    """A lens out of focus: the image of a point is a disc."""
    return np.clip(disc_blur(image, _DEFOCUS_RADIUS[strength - 1] * unit(image.shape)), 0, 1), classes


def vignette(image: np.ndarray, classes: np.ndarray, strength: int, rng: np.random.Generator) -> Corrupted:
    """The black surroundings of a round lens, with less light towards its rim; lesions end there, too."""
    x, y = coordinates(image.shape)
    centre = rng.uniform(-8, 8, 2)
    distance = np.hypot(x - centre[0], y - centre[1]) / 128
    radius = _VIGNETTE_RADIUS[strength - 1]
    light = 1 - rng.uniform(0.25, 0.4) * np.clip(distance / radius, 0, 1) ** 4
    inside = soft_step(radius - distance, rng.uniform(0.005, 0.015))
    black = rng.uniform(0.0, 0.06) * np.array([0.9, 0.9, 1.1])
    changed = image * (light * inside)[..., None] + black * (1 - inside)[..., None]
    return changed.astype(np.float32), np.where(inside > 0.5, classes, 0).astype(np.uint8)
