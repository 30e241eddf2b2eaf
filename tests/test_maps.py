"""The per-pixel statistics over the samples at full size, by hand and against NumPy and SciPy."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.random_data import random_samples
from utils.inference.maps import (
    STATISTICS,
    full_size_blocks,
    full_size_maps,
    predict_classes,
    split_samples,
    to_greyscale,
)
from utils.inference.upsampling import LogitSamples


@settings(max_examples=40)
@given(st.integers(0, 999), st.integers(1, 6), st.integers(2, 4), st.integers(1, 30), st.integers(1, 30))
def test_invariants(seed: int, t: int, c: int, width: int, height: int):
    samples = random_samples(seed, t, c)
    maps = full_size_maps(samples, (width, height))
    ln_c, tiny = math.log(c), 1e-5
    assert maps.probs.shape == maps.std.shape == (c, height, width)
    torch.testing.assert_close(maps.probs.sum(0), torch.ones(height, width))
    assert (maps.predictive_entropy >= 0).all()
    assert (maps.predictive_entropy <= ln_c).all()
    assert (maps.mutual_information >= 0).all()
    assert (maps.mutual_information <= maps.predictive_entropy + tiny).all()
    assert (maps.expected_entropy <= maps.predictive_entropy + tiny).all()
    assert (maps.std <= 0.5 + tiny).all()
    if t == 1:
        assert maps.std.max() < tiny
        assert maps.mutual_information.max() < tiny


def probs_of_each(samples: Sequence[LogitSamples], size: tuple[int, int]) -> list[torch.Tensor]:
    """The probabilities of each sample, (C, H, W)."""
    return [full_size_maps([sample], size, statistics=()).probs for sample in split_samples(samples)]


@pytest.mark.parametrize("c", [2, 3])
def test_statistics_against_numpy_and_scipy(c: int):
    samples = [*random_samples(1, 5, c), LogitSamples(random_samples(2, 3, c)[0].logits, 1.25)]
    maps = full_size_maps(samples, (23, 19), max_values=100)  # several blocks, the last one smaller
    probs = np.stack([p.double().numpy() for p in probs_of_each(samples, (23, 19))])  # (T, C, H, W)
    assert probs.shape == (8, c, 19, 23)
    assert maps.num_samples == 8
    np.testing.assert_allclose(maps.probs, probs.mean(0), atol=1e-6)
    np.testing.assert_allclose(maps.std, probs.std(0), atol=1e-6)
    predictive_entropy = scipy.stats.entropy(probs.mean(0), axis=0)
    np.testing.assert_allclose(maps.predictive_entropy, predictive_entropy, atol=2e-6)
    expected_entropy = scipy.stats.entropy(probs, axis=1).mean(0)
    np.testing.assert_allclose(maps.expected_entropy, expected_entropy, atol=2e-6)
    np.testing.assert_allclose(maps.mutual_information, predictive_entropy - expected_entropy, atol=4e-6)


@pytest.mark.parametrize(("t", "c"), [(1, 2), (5, 2), (4, 3)])
@pytest.mark.parametrize("max_values", [1, 100, 600])
def test_maps_do_not_depend_on_the_block_size(t: int, c: int, max_values: int):
    samples, size = random_samples(t=t, c=c), (23, 19)
    expected, maps = full_size_maps(samples, size), full_size_maps(samples, size, max_values=max_values)
    for name in (*STATISTICS, "probs"):
        torch.testing.assert_close(getattr(maps, name), getattr(expected, name))
    rows = [rows for rows, _ in full_size_blocks(samples, size, max_values=max_values)]
    assert len(rows) > 1
    assert [i for block in rows for i in range(block.start, block.stop)] == list(range(19))


def test_statistics_by_hand():
    z = math.log(3)  # softmax of (0, z) is (1/4, 3/4)
    samples = [LogitSamples(torch.tensor([[0.0, z], [0.0, -z]]).view(2, 2, 1, 1))]
    maps = full_size_maps(samples, (1, 1))
    assert maps.probs.flatten().tolist() == pytest.approx([0.5, 0.5])
    assert maps.std.flatten().tolist() == pytest.approx([0.25, 0.25])
    assert maps.predictive_entropy.item() == pytest.approx(math.log(2))
    assert maps.expected_entropy.item() == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3))


def test_only_requested_statistics_are_computed():
    maps = full_size_maps(random_samples(), (9, 8), statistics=["std"])
    assert (maps.predictive_entropy, maps.expected_entropy) == (None, None)
    assert maps.std is not None


def test_unknown_statistic():
    with pytest.raises(ValueError, match="there is no statistic mutual_information: predictive_entropy, "):
        full_size_maps(random_samples(2, 2), (30, 20), ["mutual_information", "std"])


def test_entropy_of_certain_predictions_is_finite():
    maps = full_size_maps([LogitSamples(torch.tensor([[-500.0, 500.0]]).view(1, 2, 1, 1))], (3, 3))
    assert torch.isfinite(maps.predictive_entropy).all()


# -- single samples, masks, greyscale maps


def test_split_samples():
    samples = [*random_samples(t=2), LogitSamples(random_samples(1, t=1)[0].logits, 1.25)]
    split = split_samples(samples)
    assert [(tuple(logits.shape), zoom) for logits, zoom in split] == [((1, 2, 6, 7), z) for z in (1.0, 1.0, 1.25)]
    assert torch.equal(torch.cat([logits for logits, _ in split[:2]]), samples[0].logits)
    assert torch.equal(split[2].logits, samples[1].logits)


def test_most_probable_class():
    two = torch.tensor([[0.5, 0.4, 0.2], [0.5, 0.6, 0.8]])[:, None]
    assert predict_classes(two).tolist() == [[0, 1, 1]]
    assert predict_classes(two, 0.7).tolist() == [[0, 0, 1]]
    three = torch.tensor([[0.3, 0.4], [0.5, 0.1], [0.2, 0.5]])[:, None]
    assert predict_classes(three).tolist() == [[1, 2]]


def test_grey_values_are_rounded():
    values = torch.tensor([[0, 0.5 / 255 - 1e-4, 0.5 / 255 + 1e-4, 0.6, 1.0, 1.2, -0.1]])
    assert to_greyscale(values).tolist() == [[0, 0, 1, 153, 255, 255, 0]]
    assert to_greyscale(torch.tensor([[math.log(2)]]), white=math.log(2)).tolist() == [[255]]
