"""From images to the network's input."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import make_image
from utils.data.preprocessing import downscale_and_pad, preprocess, to_network_input


def test_preprocess_is_a_bicubic_resize():
    image = make_image(0, (300, 200))[0]
    expected = np.asarray(image.resize((128, 96), Image.Resampling.BICUBIC))
    preprocessed = preprocess(image, (128, 96))
    assert (preprocessed.dtype, preprocessed.shape) == (torch.uint8, (3, 96, 128))
    assert np.array_equal(preprocessed.permute(1, 2, 0), expected)
    assert preprocess(image.convert("L"), (8, 8)).shape == (3, 8, 8)


def test_network_input_is_scaled_to_1():
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
    x = to_network_input(images, torch.device("cpu"))
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x, images / 255)
    assert to_network_input(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8), torch.device("cpu")).max() == 1


@pytest.mark.parametrize("size", [(640, 480), (256, 256), (333, 1000)])
@pytest.mark.parametrize("scale", [0.8, 0.5, 0.97, 0.1])
def test_downscale_and_pad_against_a_larger_canvas(size: tuple[int, int], scale: float):
    """Resizing a larger canvas gives the same and does not depend on what lies between the pixels of the result."""
    image = make_image(5, size)[0]
    pads = [math.ceil(length * (1 / scale - 1) / 2) for length in size]
    exact = [length * (1 / scale - 1) / 2 for length in size]
    canvas = Image.new("RGB", (size[0] + 2 * pads[0], size[1] + 2 * pads[1]))
    canvas.paste(image, tuple(pads))
    left, top = (pad - e for pad, e in zip(pads, exact, strict=True))
    box = (left, top, canvas.width - left, canvas.height - top)
    expected = np.asarray(canvas.resize((128, 128), Image.Resampling.BICUBIC, box=box), dtype=int)
    padded = downscale_and_pad(image, (128, 128), scale).permute(1, 2, 0).numpy().astype(int)
    assert abs(padded - expected).max() <= 1
    assert (padded[:3] == 0).all() or scale > 0.95


@pytest.mark.parametrize("side", [4, 12, 16, 20, 24, 100, 128, 256])
def test_downscaled_copies_of_small_images_are_surrounded_by_black(side: int):
    """Images that are enlarged, for which interpolation reaches far; the reference has far more black around them."""
    image = Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, side + 1, 3), dtype=np.uint8))
    lengths, ratios = image.size, [length / (0.8 * 128) for length in image.size]
    edges = [length + (0.2 * 64 + 32) * ratio for length, ratio in zip(lengths, ratios, strict=True)]  # 32 around it
    black = Image.new("RGB", tuple(3 * length + 100 for length in lengths))
    corner = tuple(length + 50 for length in lengths)
    black.paste(image, corner)
    box = [
        *(c + n - e for c, n, e in zip(corner, lengths, edges, strict=True)),
        *map(sum, zip(corner, edges, strict=True)),
    ]
    expected = np.asarray(black.resize((192, 192), Image.Resampling.BICUBIC, box=box))[32:-32, 32:-32]
    assert np.array_equal(downscale_and_pad(image, (128, 128), 0.8).permute(1, 2, 0), expected)


@pytest.mark.parametrize("side", [20, 128, 300])
def test_nothing_is_downscaled_to_its_own_size(side: int):
    image = make_image(side, (side, side))[0]
    assert torch.equal(downscale_and_pad(image, (128, 128), 1.0), preprocess(image, (128, 128)))
