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
