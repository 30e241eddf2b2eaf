"""Bilinear upsampling as matrix products, against PyTorch and by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.random_data import random_samples
from utils.data.preprocessing import downscale_and_pad
from utils.inference.upsampling import LogitSamples, StackUpsampler, linear_interpolation, pixel_positions


def matrix_to_pixels(n_in: int, n_out: int, zoom: float = 1.0) -> torch.Tensor:
    return linear_interpolation(pixel_positions(n_in, n_out, zoom), n_in).matrix(slice(None))


@given(st.integers(1, 40), st.integers(1, 90))
def test_interpolation_against_torch(n_in: int, n_out: int):
    values = torch.rand(1, 1, n_in, generator=torch.Generator().manual_seed(n_in), dtype=torch.float64)
    expected = F.interpolate(values, n_out, mode="linear", align_corners=False)[0, 0]
    interpolated = matrix_to_pixels(n_in, n_out).double() @ values[0, 0]
    torch.testing.assert_close(interpolated, expected, atol=1e-6, rtol=0)


def test_interpolation_by_hand():
    assert matrix_to_pixels(2, 4).tolist() == [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    # The central half of four values: two outputs at 1.25 / 4 ... 2.75 / 4, that is at the values 1 and 2 themselves.
    assert matrix_to_pixels(4, 2, zoom=2).tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]
    assert matrix_to_pixels(1, 3).tolist() == [[1], [1], [1]]


@given(st.integers(1, 30), st.integers(1, 60), st.floats(1, 4))
def test_interpolation_is_a_weighted_mean_of_the_inputs_that_it_names(n_in: int, n_out: int, zoom: float):
    interpolation = linear_interpolation(pixel_positions(n_in, n_out, zoom), n_in)
    whole = interpolation.matrix(slice(None))
    assert (whole >= 0).all()
    torch.testing.assert_close(whole.sum(1), torch.ones(n_out))
    for begin in range(n_out):
        outputs = slice(begin, min(begin + 5, n_out))
        needed = interpolation.inputs(outputs)
        assert torch.equal(interpolation.matrix(outputs, needed), whole[outputs, needed])
        torch.testing.assert_close(whole[outputs, needed].sum(1), torch.ones(outputs.stop - begin))


@pytest.mark.parametrize("c", [2, 3])
@pytest.mark.parametrize("max_values", [None, 300])
def test_stack_upsampler_against_torch(c: int, max_values: int | None):
    samples, width, height = random_samples(t=4, c=c), 23, 19
    upsampler = StackUpsampler(samples, width, height, max_values)
    blocks = [
        upsampler.probs(slice(begin, min(begin + upsampler.block_rows, height)))
        for begin in range(0, height, upsampler.block_rows)
    ]
    assert (len(blocks) > 1) == (max_values is not None)
    logits = F.interpolate(samples[0].logits, (height, width), mode="bilinear", align_corners=False)
    expected = logits.softmax(dim=1)[:, 1:] if c == 2 else logits.softmax(dim=1)
    torch.testing.assert_close(torch.cat(blocks, dim=2), expected, atol=5e-6, rtol=0)
    mean = upsampler.mean_probs(slice(3, height))
    torch.testing.assert_close(mean, expected[:, :, 3:].mean(dim=0), atol=5e-6, rtol=0)


@pytest.mark.parametrize("shrink", [0.8, 0.6, 0.93])
@pytest.mark.parametrize("size", [(256, 256), (250, 333)])
def test_zoom_inverts_downscaling(size: tuple[int, int], shrink: float):
    """A smooth image that is downscaled, padded and upsampled is itself again, pixel by pixel."""
    x, y = np.meshgrid(np.linspace(0, 2.2, size[0]), np.linspace(0, 1.7, size[1]))
    smooth = 128 + 50 * np.sin(x + 0.3) * np.cos(1.5 * y) + 30 * np.sin(2 * y + x)
    image = Image.fromarray(np.repeat(np.round(smooth).astype(np.uint8)[..., None], 3, axis=2))
    padded = downscale_and_pad(image, (128, 128), shrink).float()  # in place of the network's logits
    upsampled = upsample(LogitSamples(padded[None, :1], 1 / shrink), size)[0]
    inner = slice(8, -8)  # at its border the image meets the padding
    difference = (upsampled - torch.from_numpy(smooth))[inner, inner]
    assert difference.abs().max() < 1.5  # of 255, half of it from rounding to 8 bits twice
    assert abs(difference.mean()) < 0.05


def upsample(samples: LogitSamples, size: tuple[int, int]) -> list[torch.Tensor]:
    """The full-size logits of the first class."""
    (logits, zoom), (width, height) = samples, size
    rows, columns = (
        matrix_to_pixels(n_in, n_out, zoom) for n_in, n_out in zip(logits.shape[-2:], (height, width), strict=True)
    )
    return [rows @ sample[0] @ columns.T for sample in logits]
