"""Maps at full size from few points of each cell, against those of all pixels."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.random_data import random_samples
from utils.inference.maps import STATISTICS, full_size_maps, to_greyscale
from utils.inference.smooth_maps import SmoothMaps
from utils.inference.upsampling import LogitSamples

MAX_ERROR = 1e-4


def smooth_samples(seed: int, t: int = 4, c: int = 2, steepness: float = 0.3, zoom: float = 1.0) -> LogitSamples:
    """Samples that agree about some lesion but for noise. With a steepness of 0.6 their polynomials may converge."""
    generator = torch.Generator().manual_seed(seed)
    shape = 5 * torch.randn(1, c, 3, 3, generator=generator) + torch.randn(t, c, 3, 3, generator=generator)
    logits = F.interpolate(shape, (12, 12), mode="bicubic") + 0.3 * torch.randn(t, c, 12, 12, generator=generator)
    return LogitSamples(steepness * logits, zoom)


def of_all_pixels(samples: list[LogitSamples], size: tuple[int, int]) -> dict[str, Tensor]:
    """The maps by PyTorch's interpolation, in double precision."""
    width, height = size
    probs = []
    for logits, zoom in samples:
        whole = F.interpolate(logits.double(), (round(height * zoom), round(width * zoom)), mode="bilinear")
        top, left = (whole.shape[2] - height) // 2, (whole.shape[3] - width) // 2
        probs.append(whole[..., top : top + height, left : left + width].softmax(dim=1))
    probs = torch.cat(probs)
    mean = probs.mean(dim=0)
    return {
        "probs": mean,
        "predictive_entropy": torch.special.entr(mean).sum(dim=0),
        "expected_entropy": torch.special.entr(probs).sum(dim=1).mean(dim=0),
        "std": probs.std(dim=0, correction=0),
    }


@settings(max_examples=25)
@given(st.integers(0, 9999), st.integers(2, 3), st.sampled_from([0.3, 0.6, 0.8, 1, 5]), st.booleans())
def test_maps_are_those_of_all_pixels_however_steep_the_logits(seed: int, c: int, steepness: float, two_zooms: bool):
    samples, size = [smooth_samples(seed, c=c, steepness=steepness)], (240, 240)
    if two_zooms:
        samples.append(smooth_samples(seed + 1, t=8, c=c, steepness=steepness, zoom=1.25))
    assert SmoothMaps.are_faster(samples, size)
    maps, expected = full_size_maps(samples, size), of_all_pixels(samples, size)
    for name in ("probs", *STATISTICS):
        assert (getattr(maps, name) - expected[name]).abs().max() < MAX_ERROR, name


def test_polynomials_are_used_for_smooth_samples_only(monkeypatch: pytest.MonkeyPatch):
    used = []
    block, steep = SmoothMaps.block, smooth_samples(0, steepness=30).logits
    monkeypatch.setattr(SmoothMaps, "block", lambda self, rows: used.append(rows) or block(self, rows))
    for samples, size, expected in (
        ([smooth_samples(0)], (240, 200), True),
        ([smooth_samples(0, steepness=30)], (240, 200), False),  # steps
        ([LogitSamples(steep[..., :1].expand(-1, -1, 12, 12))], (240, 200), False),  # along one axis
        ([LogitSamples(steep[:, :, :1].expand(-1, -1, 12, 12))], (240, 200), False),  # along the other
        ([smooth_samples(0, t=3)], (240, 200), False),  # few samples: all of their pixels take less time
        ([smooth_samples(0)], (160, 160), False),  # about as many pixels as points
        (random_samples(t=8, h=1), (240, 200), False),  # a grid without cells
    ):
        used.clear()
        full_size_maps(samples, size)
        assert bool(used) == expected, (samples[0].logits.shape, size)


@pytest.mark.parametrize("height", [5, 15])
def test_steps_that_even_degrees_do_not_see(height: float):
    """An odd function has no coefficients of even degrees, whether its polynomial has converged or not."""
    logits = torch.zeros(4, 2, 4, 4)
    logits[:, 1] = torch.tensor([-height, -height, height, height])
    samples, size = [LogitSamples(logits)], (90, 90)
    assert SmoothMaps.are_faster(samples, size)
    assert (full_size_maps(samples, size).probs - of_all_pixels(samples, size)["probs"]).abs().max() < MAX_ERROR


@pytest.mark.parametrize("difference", [0, 30])
def test_values_are_in_their_range_despite_rounding(difference: float):
    logits = torch.zeros(8, 2, 6, 6)
    logits[:, 1] = difference
    maps = full_size_maps([LogitSamples(logits)], (200, 180))
    assert 0 <= maps.probs.min() <= maps.probs.max() <= 1
    assert 0 <= maps.expected_entropy.min() <= maps.expected_entropy.max() <= math.log(2)


def test_std_of_samples_that_hardly_differ():
    """The root magnifies the error of a small variance: 4e-3, if the polynomials were used here."""
    samples, size = [smooth_samples(92, c=3, steepness=0.6)], (240, 200)
    std = full_size_maps(samples, size, statistics=["std"]).std
    assert (std - of_all_pixels(samples, size)["std"]).abs().max() < MAX_ERROR


def test_two_zooms_of_different_numbers_of_samples():
    """By polynomials, with and without variances."""
    samples, size = [smooth_samples(0, t=4), smooth_samples(1, t=12, zoom=1.25)], (240, 240)
    expected = of_all_pixels(samples, size)["probs"]
    for statistics in ([], ["std"]):
        assert (full_size_maps(samples, size, statistics).probs - expected).abs().max() < MAX_ERROR


def test_nan_remains():
    samples = [smooth_samples(0)]
    samples[0].logits[0, 0, 3, 4] = math.nan
    assert full_size_maps(samples, (240, 200)).probs[:, 55:60, 70:75].isnan().all()


def test_greyscale_maps_hardly_differ():
    samples, size = [smooth_samples(3, t=8)], (300, 250)
    grey = to_greyscale(full_size_maps(samples, size, statistics=()).probs[1]).int()
    exact = np.rint(255 * of_all_pixels(samples, size)["probs"][1].numpy())
    assert abs(grey.numpy() - exact).max() <= 1
    assert (grey.numpy() != exact).mean() < 1e-3


def test_only_requested_statistics():
    maps = full_size_maps([smooth_samples(0)], (240, 200), statistics=["expected_entropy"])
    assert [getattr(maps, name) is not None for name in STATISTICS] == [
        name == "expected_entropy" for name in STATISTICS
    ]
