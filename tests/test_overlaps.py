"""The pixels that pairs of samples assign to the same class, against counts of whole masks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.random_data import random_samples
from utils.inference.maps import full_size_maps, predict_classes, split_samples
from utils.inference.overlaps import count_overlaps
from utils.inference.upsampling import LogitSamples


def masks_of_each(samples: list[LogitSamples], size: tuple[int, int], threshold: float = 0.5) -> list[Tensor]:
    """The mask of each sample."""
    return [predict_classes(full_size_maps([s], size, ()).probs, threshold) for s in split_samples(samples)]


@pytest.mark.parametrize("c", [2, 3])
def test_overlaps_count_the_pixels_of_each_pair_of_samples(c: int):
    samples, size = random_samples(t=4, c=c), (31, 17)
    overlaps, masks = count_overlaps(samples, size), masks_of_each(samples, size)
    for k in range(1, c):
        for i, a in enumerate(masks):
            for j, b in enumerate(masks):
                assert overlaps[k - 1, i, j] == ((a == k) & (b == k)).sum()


@settings(max_examples=60)
@given(
    st.integers(0, 999), st.integers(2, 3), *[st.integers(1, n) for n in (9, 9, 60, 60)], st.sampled_from([0, 0.3, 1])
)
def test_overlaps_of_areas(seed: int, c: int, h: int, w: int, width: int, height: int, threshold: float):
    """Samples that agree about most cells of the network's grid, whose pixels are not looked at."""
    generator = torch.Generator().manual_seed(seed)
    areas = 9.0 * torch.randint(-1, 2, (c, h, w), generator=generator)
    noise, some = torch.rand(2, 5, c, h, w, generator=generator)
    logits = areas + noise + 9 * (some < 0.1)
    samples = [LogitSamples(logits[:2]), LogitSamples(logits[2:4], 1.25), LogitSamples(logits[4:], 3.0)]
    overlaps = count_overlaps(samples, (width, height), threshold, max_values=20 * width)
    masks = masks_of_each(samples, (width, height), threshold)
    for k in range(1, c):
        assert overlaps[k - 1].tolist() == [[int(((a == k) & (b == k)).sum()) for b in masks] for a in masks]


def test_many_blocks_of_many_samples():
    """So many that not all of their pairs are counted at a time."""
    samples, size = random_samples(t=40, h=5, w=3), (3, 1000)
    samples[0].logits[:, 1, :2] += 50  # no borders in the first cells
    masks = torch.stack(masks_of_each(samples, size)).flatten(1).long()
    assert torch.equal(count_overlaps(samples, size, max_values=1)[0], masks @ masks.T)


def test_nan_is_no_class_but_the_background():
    samples, size = random_samples(t=4, c=2), (8, 8)
    samples[0].logits[:2, :, :, 0] = math.nan
    masks = torch.stack(masks_of_each(samples, size)).flatten(1).long()
    assert torch.equal(count_overlaps(samples, size)[0], masks @ masks.T)
    assert masks[2:].sum() > masks[:2].sum()
