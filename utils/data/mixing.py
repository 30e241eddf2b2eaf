"""Mix images for training: a lesion on the skin of another image, the Fourier amplitudes of another image."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_RING = 2  # pixels beyond the margin that a lesion keeps, in which the colour around it is measured as well


def lesion_free_patch(rng: np.random.Generator, image: Tensor, mask: Tensor) -> Tensor | None:
    """A random square of an image with neither lesion nor black corner, as large as possible; None if none is found.

    Args:
        rng: random numbers.
        image: (3, h, w) float in [0, 255].
        mask: (h, w) classes, or where there is a lesion.
    """
    height, width = mask.shape
    for part in (0.4, 0.3, 0.22, 0.15):
        n = int(part * min(height, width))
        rows, columns = rng.integers(0, [[height - n + 1], [width - n + 1]], (2, 12))
        for y, x in zip(rows, columns, strict=True):
            patch = image[:, y : y + n, x : x + n]
            if not mask[y : y + n, x : x + n].any() and patch.mean(dim=0).amin() > 60:
                return patch
    return None


def spread_skin(patch: Tensor, shape: tuple[int, int]) -> Tensor:
    """Skin of a shape (h, w), made of a patch and its reflections."""
    side = shape[-1]
    skin = F.interpolate(patch[None], size=[max(8, side // 3)] * 2, mode="bilinear", align_corners=False)
    skin = F.pad(skin, [skin.shape[-1] - 1] * 4, mode="reflect")[..., :side, :side]
    return F.interpolate(skin, size=list(shape), mode="bilinear", align_corners=False)[0]


def put_on_skin(rng: np.random.Generator, image: Tensor, lesion: Tensor, patch: Tensor) -> Tensor:
    """An image whose lesion, with some of what is around it, lies on other skin (Ghiasi et al., CVPR 2021).

    The skin's colour is drawn towards that around the lesion, by a random fraction. An image that is lesion everywhere
    or nowhere stays as it is.

    Args:
        rng: random numbers.
        image: (3, h, w) float in [0, 255].
        lesion: (h, w) bool.
        patch: from `lesion_free_patch` of another image.
    """
    margin = int(rng.integers(2, 9))
    lesion = lesion[None].float()
    ring = (grown(lesion, margin + _RING) > lesion)[0]
    if not lesion.any() or not ring.any():
        return image
    skin = spread_skin(patch, lesion.shape[1:])
    shift = image[:, ring].mean(dim=1) - skin.mean(dim=(1, 2))
    skin = skin + rng.uniform(0.2, 1.0) * shift[:, None, None]
    opacity = blurred(grown(lesion, margin), max(0.6, margin / 2.5))
    opacity = torch.maximum(opacity, lesion)  # no seam through the lesion
    return (skin + (image - skin) * opacity).clamp(0, 255)


def grown(mask: Tensor, pixels: int) -> Tensor:
    """A (1, h, w) float mask of 0 and 1, larger by some pixels on all sides."""
    side = 2 * pixels + 1
    columns = F.max_pool2d(mask, (side, 1), 1, (pixels, 0))  # one direction after the other is several times as fast
    return F.max_pool2d(columns, (1, side), 1, (0, pixels))


def blurred(image: Tensor, sigma: float) -> Tensor:
    """A (C, h, w) image after a Gaussian blur of `sigma` pixels."""
    radius = math.ceil(2 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    channels = len(image)
    kernel = (kernel / kernel.sum()).expand(channels, 1, -1)
    padded = F.pad(image[None], [radius] * 4, mode="reflect")
    rows = F.conv2d(padded, kernel[:, :, None], groups=channels)
    return F.conv2d(rows, kernel[..., None], groups=channels)[0]


def mix_amplitudes(image: Tensor, other: Tensor, fraction: float) -> Tensor:
    """An image with a fraction of another one's Fourier amplitudes, and its own phases (Xu et al., CVPR 2021).

    Args:
        image, other: (3, h, w) float in [0, 255].
        fraction: from 0 to 1.
    """
    spectrum = torch.fft.rfft2(image)
    amplitudes = spectrum.abs().lerp(torch.fft.rfft2(other).abs(), fraction)
    mixed = torch.fft.irfft2(torch.polar(amplitudes, spectrum.angle()), s=image.shape[-2:])
    return mixed.clamp(0, 255)
