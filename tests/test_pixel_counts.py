"""Sums and histograms over pixels."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.random_data import counts_of, pixel_metrics, random_maps
from utils import IGNORED_CLASS
from utils.metrics.pixel_counter import PixelCounter
from utils.metrics.pixel_counts import (
    PixelCounts,
    confidence_bin_centres,
    confidence_bins,
    entropy_bins,
    sum_counts,
)
from utils.metrics.pixel_metrics import PIXEL_METRICS
from utils.metrics.uncertainty import entropy


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(1, 15))
def test_counts_of_two_parts_add_up(seed: int, cut: int):
    probs, target = random_maps(seed)
    whole = counts_of(probs, target)
    total = counts_of(probs[:, :cut], target[:cut]) + counts_of(probs[:, cut:], target[cut:])
    for name, value in pixel_metrics(whole).items():
        assert pixel_metrics(total)[name] == pytest.approx(value, rel=1e-7), name
    assert whole.pixels == target.numel()


def test_counts_do_not_depend_on_the_block_size():
    probs, target = random_maps(3)
    whole = pixel_metrics(counts_of(probs, target))
    assert pixel_metrics(counts_of(probs, target, block_size=100)) == pytest.approx(whole, rel=1e-7)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_pixels_are_counted_in_parts(n_classes: int):
    """Of any size, and read in between."""
    probs, target = random_maps(4, n_classes)
    counter = PixelCounter(block_size=50)
    for rows in (slice(0, 1), slice(1, 9), slice(9, 16)):
        counter.add(probs[:, rows], entropy(probs[:, rows]), target[rows])
        expected = counts_of(probs[:, : rows.stop], target[: rows.stop])
        for counts in (counter.read(), counter.read()):
            for field in dataclasses.fields(PixelCounts):
                found = getattr(counts, field.name)
                np.testing.assert_allclose(found, getattr(expected, field.name), rtol=1e-6, err_msg=field.name)


def test_coarse_counts_are_nearly_as_good():
    counts = counts_of(*random_maps(4, size=(200, 200)))
    assert pixel_metrics(counts.coarse()) == pytest.approx(pixel_metrics(counts), abs=2e-3)
    assert sum(getattr(counts.coarse(), name).nbytes for name in ("by_confidence", "by_entropy")) < 20_000


def test_pack_round_trip():
    counts = counts_of(*random_maps(5, size=(60, 60)))
    packed = counts.pack()
    assert len(packed) < 20_000
    unpacked = PixelCounts.unpack(packed)
    for field in dataclasses.fields(PixelCounts):
        assert np.array_equal(getattr(unpacked, field.name), getattr(counts, field.name))
    assert unpacked.by_confidence.dtype == unpacked.coarse().by_entropy.dtype == np.int64  # int32 is too small for sets


def test_weighted_sums():
    images = [counts_of(*random_maps(seed)).coarse() for seed in range(3)]
    sets = sum_counts(images, np.array([[1, 1, 1], [0, 2, 0]]))
    for name, metric in PIXEL_METRICS.items():
        assert metric(sets)[0] == pytest.approx(float(metric(images[0] + images[1] + images[2])), rel=1e-9)
        assert metric(sets)[1] == pytest.approx(float(metric(images[1])), abs=1e-2 if name == "error_aupr" else 1e-9)


def test_confidence_bins_are_narrow_and_ordered():
    confidence = 1 - torch.logspace(-24, -0.001, 5000, base=2)
    index = confidence_bins(confidence)
    assert (index.diff() >= 0).all()  # the first bins are those of the highest confidence
    centres = confidence_bin_centres(24 * 128)
    assert centres.dtype == np.float64
    np.testing.assert_allclose(1 - centres[index.numpy()], 1 - confidence.double(), rtol=5e-3)
    assert confidence_bins(torch.tensor([1.0, 1 - 2**-24])).tolist() == [0, 0]


def test_entropy_bins_are_narrow_and_ordered():
    probability = torch.linspace(0.001, 0.5, 2000)
    index = entropy_bins(entropy(probability[None, None])[0], 2)
    assert (index.diff() >= 0).all()
    assert len(index.unique()) > 700
    lowest, highest = entropy_bins(torch.tensor([0.0, math.log(2)]), 2).tolist()
    assert 0 <= lowest < 20
    assert 2**12 - 60 < highest < 2**12


@pytest.mark.parametrize("n_classes", [2, 3])
def test_ignored_pixels_are_not_counted(n_classes: int):
    probs = torch.rand(n_classes, 6, 8, generator=torch.Generator().manual_seed(0)).log().mul(-1).softmax(dim=0)
    target = torch.randint(0, n_classes, (6, 8), generator=torch.Generator().manual_seed(1)).byte()
    expected = counts_of(probs[..., :5], target[:, :5])
    target[:, 5:] = IGNORED_CLASS
    counts = counts_of(probs, target)
    assert counts.pixels == 6 * 5
    for field in dataclasses.fields(PixelCounts):
        np.testing.assert_allclose(getattr(counts, field.name), getattr(expected, field.name), rtol=1e-6)


def test_saturated_probabilities_do_not_rank_errors():
    """Right and wrong pixels of probability 1 tie: the entropy of both is 0."""
    probs, target = torch.zeros(2, 4, 6), torch.zeros(4, 6, dtype=torch.uint8)
    probs[0], target[:2] = 1, 1
    assert pixel_metrics(counts_of(probs, target))["error_auroc"] == 0.5


def test_probabilities_that_are_no_numbers_are_not_counted_as_correct():
    probs, target = torch.full((2, 4, 6), math.nan), torch.zeros(4, 6, dtype=torch.uint8)
    with pytest.raises(RuntimeError):
        counts_of(probs, target)


@pytest.mark.parametrize("scale", [0.1, 2, 20])
def test_sums_by_bin_against_numpy(scale: float):
    """Of confident models as of others, with probabilities at the edges of the bins."""
    rng = np.random.default_rng(0)
    p = torch.from_numpy(1 / (1 + np.exp(-scale * rng.normal(size=(50, 64))))).float()
    p[0, :16] = torch.arange(16) / 15
    target = torch.from_numpy(rng.random(p.shape) < p.numpy()).byte()
    counts = counts_of(torch.stack([1 - p, p]), target)
    q, p, y = (values.numpy().ravel() for values in (1 - p, p, target))
    is_target = (p > q) == y
    for found, probability, outcome in ((counts.top_label, np.maximum(p, q), is_target), (counts.foreground, p, y)):
        index = np.clip(np.ceil(probability * np.float32(15)) - 1, 0, 14).astype(int)
        weights = (np.ones(len(p)), probability.astype(np.float64), outcome)
        expected = [np.bincount(index, one, 15) for one in weights]
        np.testing.assert_array_equal(found[[0, 2]], [expected[0], expected[2]])
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-7)  # 1 - p is rounded
    p_target = np.where(y, p, q).astype(np.float64)
    assert counts.squared_error == pytest.approx(np.square(1 - p_target).sum(), rel=1e-6)
    assert counts.log_loss == pytest.approx(-np.log(p_target.clip(1e-7)).sum(), rel=1e-6)
    assert counts.by_confidence.sum(axis=1).tolist() == [(~is_target).sum(), is_target.sum()]
