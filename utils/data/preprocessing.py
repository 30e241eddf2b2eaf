"""Preprocess images into network input."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.runtime.device import memory_format, to_device


def preprocess(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """Resize an image to the network's input size, bicubically, without keeping the aspect ratio.

    Args:
        image: an upright image of 8 bits, of any size.
        size: width and height of the network's input.

    Returns:
        (3, h, w) uint8, RGB.
    """
    resized = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)  # (h, w, 3) -> (3, h, w)


def to_network_input(images: Tensor, device: torch.device) -> Tensor:
    """Move preprocessed images to the network's device and scale them to [0, 1].

    Args:
        images: (N, 3, h, w) uint8.
        device: device of the network.

    Returns:
        (N, 3, h, w) float32 in [0, 1], in the `memory_format` of the device.
    """
    return to_device(images, device).to(memory_format=memory_format(device)).float().div_(255)


def downscale_and_pad(image: Image.Image, size: tuple[int, int], scale: float) -> Tensor:
    """Preprocess an image that is downscaled and zero-padded back to its own size, centred to sub-pixel accuracy.

    Args:
        image: an upright image of 8 bits, of any size.
        size: width and height of the network's input.
        scale: size of the downscaled image relative to the padded one, in (0, 1].

    Returns:
        (3, h, w) uint8, RGB. Only a region around the downscaled image is resampled, aligned to whole pixels of the
        result.
    """
    image = image.convert("RGB")
    begin, pads, box = [], [], []  # for x and y
    for pixels, length in zip(size, image.size, strict=True):
        ratio = length / (pixels * scale)  # pixels of the image per pixel of the result
        margin = pixels * (1 - scale) / 2
        radius = 2 * max(1, 1 / ratio)  # of bicubic interpolation: 2 pixels of the result, when enlarging of the image
        first = max(0, math.floor(margin - radius))
        pad = math.ceil((margin - first + (radius if margin >= 3 else 0)) * ratio)  # a narrower margin is all there is
        begin.append(first)
        pads.append(pad)
        box.append(pad - (margin - first) * ratio)
    padded = Image.new("RGB", (image.width + 2 * pads[0], image.height + 2 * pads[1]))
    padded.paste(image, tuple(pads))
    region = padded.resize(
        (size[0] - 2 * begin[0], size[1] - 2 * begin[1]),
        Image.Resampling.BICUBIC,
        box=(box[0], box[1], padded.width - box[0], padded.height - box[1]),
    )
    canvas = Image.new("RGB", size)
    canvas.paste(region, tuple(begin))
    return preprocess(canvas, size)
