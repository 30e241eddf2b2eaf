"""Coordinates and blurs of images as arrays. Lengths are for a shorter side of 256 pixels."""

from collections.abc import Callable

import numpy as np


def coordinates(shape: tuple[int, ...]) -> np.ndarray:
    """(2, H, W) float32 x and y of the pixels of an image, from its centre, in units for a shorter side of 256."""
    height, width = shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([x - (width - 1) / 2, y - (height - 1) / 2]) / unit(shape)


def unit(shape: tuple[int, ...]) -> float:
    """The number of pixels that a pixel of a 256-pixel image is."""
    return min(shape[:2]) / 256


def soft_step(values: np.ndarray, width: float) -> np.ndarray:
    """From 0 to 1 where `values` change their sign, over about 4 `width`."""
    return 0.5 + 0.5 * np.tanh(values / (2 * width))


# -- blurs, in pixels of the image -------------------------------------------------------------------------------------


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
    return _blur(values, radius, lambda y, x: np.hypot(y, x) - radius)


def line_blur(values: np.ndarray, length: float, angle: float) -> np.ndarray:
    """Average (H, W) or (H, W, C) values along a line of `length` pixels through each pixel.

    Args:
        values: floating-point.
        length: of the line.
        angle: of the line with the horizontal, in radians.
    """

    def distance(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        return np.hypot(np.clip(np.abs(along) - length / 2, 0, None), across) - 0.5

    return _blur(values, length / 2, distance)


def _blur(values: np.ndarray, radius: float, distance: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Average values over a shape, from the distance of a point (y, x) to its border, negative inside."""

    def transfer(vertical: np.ndarray, horizontal: np.ndarray) -> np.ndarray:
        shape = vertical.size, 2 * horizontal.size - 1 - (horizontal[0, -1] == 0.5)
        y, x = (np.fft.fftfreq(n, 1 / n) for n in shape)
        kernel = np.clip(0.5 - distance(y[:, None], x[None]), 0, 1)
        return (np.fft.rfft2(kernel) / kernel.sum()).astype(np.complex64)

    return convolve(values, radius + 2, transfer)
