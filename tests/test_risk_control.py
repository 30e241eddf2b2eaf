"""Conformal risk control: losses against naive ones, thresholds by hand, and the guarantee in a simulation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import IGNORED_CLASS
from utils.metrics.risk_control import (
    RISK_THRESHOLDS,
    RiskCurves,
    controlling_thresholds,
    foreground_probability,
    image_losses,
    region_losses,
    required_number,
    risk_bound,
)

THRESHOLDS = RISK_THRESHOLDS.numpy()


def test_thresholds():
    assert len(THRESHOLDS) == 1000
    assert (np.diff(THRESHOLDS) > 0).all()
    assert (THRESHOLDS[0], THRESHOLDS[-1]) == (0, 1)
    near_half = np.diff(THRESHOLDS[(THRESHOLDS > 0.4) & (THRESHOLDS < 0.6)])
    assert near_half.max() < 0.007


@settings(max_examples=15)
@given(st.integers(0, 999), st.floats(0, 1), st.booleans())
def test_losses_against_naive_ones(seed: int, lesion: float, extreme: bool):
    """Of the outer and inner mask as `region_losses` has them, at every threshold, of probabilities of any size."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(5, 7, generator=generator).mul(100 if extreme else 2).sigmoid()  # extreme: exactly 0 and 1, too
    target = (torch.rand(5, 7, generator=generator) < lesion).byte()
    target[torch.rand(5, 7, generator=generator) < 0.2] = IGNORED_CLASS
    outer, inner = image_losses(p, target)
    counted = target.numpy()
    naive = [region_losses((p >= t).numpy(), (p > t).numpy(), counted) for t in RISK_THRESHOLDS]
    np.testing.assert_allclose(outer, [one["outer_false_negative_rate"] for one in naive], atol=1e-12)
    proportions = [one["inner_false_discovery_proportion"] for one in naive]
    np.testing.assert_allclose(inner, [max(proportions[k:]) for k in range(1000)], atol=1e-12)
    assert (np.diff(outer) >= 0).all()
    assert (np.diff(inner) <= 0).all()
    assert outer[0] == inner[-1] == 0


def test_losses_by_hand():
    outer = np.array([[1, 1, 0, 0, 0]], dtype=bool)
    inner = np.array([[1, 0, 1, 1, 1]], dtype=bool)
    target = np.array([[1, 0, 2, 0, IGNORED_CLASS]])
    assert region_losses(outer, inner, target) == {
        "outer_false_negative_rate": 0.5,
        "inner_false_discovery_proportion": pytest.approx(1 / 3),
        "outer_area": 2,
        "inner_area": 4,
    }
    ignored = region_losses(outer, inner, np.full_like(target, IGNORED_CLASS))
    assert np.isnan([ignored["outer_false_negative_rate"], ignored["inner_false_discovery_proportion"]]).all()
    nothing = region_losses(~outer, np.zeros_like(inner), np.zeros_like(target))
    assert (nothing["outer_false_negative_rate"], nothing["inner_false_discovery_proportion"]) == (0, 0)


def test_foreground_probability():
    probs = torch.tensor([0.2, 0.3, 0.5]).view(3, 1, 1)
    assert foreground_probability(probs).item() == pytest.approx(0.8)
    assert foreground_probability(probs[:2]).item() == foreground_probability(probs[1:2]).item() == probs[1].item()


def test_bound():
    assert risk_bound(np.array([0.0, 0.05]), 19).tolist() == pytest.approx([1 / 20, 1.95 / 20])


@pytest.mark.parametrize(
    ("level", "images"), [(0.5, 1), (2 / 3, 2), (0.9, 9), (0.95, 19), (0.98, 49), (0.99, 99), (0.999, 999)]
)
def test_required_number(level: float, images: int):
    """n + 1 >= 1 / alpha; with them only masks without any loss are left."""
    assert required_number(level) == images
    lossy = (np.concatenate([[0], np.full(999, 1e-3)]), np.concatenate([np.full(999, 1e-3), [0]]))
    assert controlling_thresholds(RiskCurves(images, *lossy), level) == (0.0, 1.0)
    with pytest.raises(IndexError):
        controlling_thresholds(RiskCurves(images - 1, *lossy), level)


def test_thresholds_by_hand():
    """With 99 images and a level of 0.9 the mean loss may be (0.1 * 100 - 1) / 99 = 1 / 11."""
    rising = np.linspace(0, 1, 1000)
    curves = RiskCurves(99, rising, rising[::-1])
    k = int(np.floor(999 / 11))
    outer, inner = controlling_thresholds(curves, 0.9)
    assert outer == THRESHOLDS[k]
    assert inner == THRESHOLDS[999 - k]


@pytest.mark.parametrize(("begin", "end", "met"), [(300, 700, None), (700, 900, 700), (100, 300, 300)])
def test_thresholds_that_cross_meet_near_one_half(begin: int, end: int, met: int | None):
    """Here both masks are without loss from one threshold to another; one half is between the steps 499 and 500."""
    k = np.arange(1000)
    curves = RiskCurves(19, (k > end).astype(float), (k < begin).astype(float))
    expected = 0.5 if met is None else THRESHOLDS[met]
    assert controlling_thresholds(curves, 0.95) == (expected, expected)


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(20, 200), st.floats(0.05, 0.95))
def test_masks_are_nested_and_keep_their_bounds(seed: int, n: int, level: float):
    """At every level; and, unless they would cross, the next step would break the bound."""
    rng = np.random.default_rng(seed)
    rising, falling = np.sort(rng.beta(*rng.uniform(0.05, 3, 2), size=(2, 1000)), axis=1)
    rising[0] = falling[0] = 0
    falling = falling[::-1]
    outer, inner = controlling_thresholds(RiskCurves(n, rising, falling), level)
    assert outer <= inner
    tolerated = 1 - level + 1e-9
    up, down = np.searchsorted(THRESHOLDS, outer), np.searchsorted(THRESHOLDS, inner, side="right") - 1
    assert risk_bound(rising[up], n) <= tolerated
    assert risk_bound(falling[down], n) <= tolerated
    if outer < inner:
        assert risk_bound(rising[up + 1], n) > tolerated - 2e-9
        assert risk_bound(falling[down - 1], n) > tolerated - 2e-9


@pytest.fixture(scope="module")
def population() -> tuple[np.ndarray, np.ndarray]:
    """The losses of 120 simulated images, (120, 1000) each, with false discoveries that are far from monotone."""
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(120):
        overconfidence, bias = 1.5 * torch.randn(2, 1, generator=generator)
        logits = 2 * torch.randn(12, 12, generator=generator) - 1 + bias
        target = torch.rand(12, 12, generator=generator) < (logits + overconfidence).sigmoid()
        losses.append(image_losses(logits.sigmoid(), target.long()))
    outer, inner = zip(*losses, strict=True)
    return np.array(outer), np.array(inner)


@pytest.mark.parametrize("n", [20, 33, 75, 200, 500])
def test_guarantee_in_a_simulation(population: tuple[np.ndarray, np.ndarray], n: int):
    """Over 2,000 calibrations with n images the mean loss of a further image is below 1 - level, and close to it.

    All images are drawn from the population, each with the same probability, so the expected loss of a further one is
    the mean over the population. Only the 2,000 calibrations are random: their mean differs from its expectation by
    four standard errors once in 16,000 times.

    Close: among n + 1 images, the first step at which their mean R exceeds 0.1 - 1 / (n + 1) is at most the one after
    the threshold of the first n of them, as n R_n + 1 is at most (n + 1) R + 1. By symmetry the last image has the
    expected loss R at that step, and no smaller one at the one after the threshold.
    """
    outer, inner = population
    weights = np.random.default_rng(n).multinomial(n, np.full(len(outer), 1 / len(outer)), size=2000) / n
    drawn = zip(weights @ outer, weights @ inner, strict=True)
    chosen = np.array([controlling_thresholds(RiskCurves(n, *mean_losses), 0.9) for mean_losses in drawn])
    assert (chosen[:, 0] < chosen[:, 1]).all()
    for losses, thresholds, looser in ((outer, chosen[:, 0], 1), (inner, chosen[:, 1], -1)):
        steps, expected = np.searchsorted(THRESHOLDS, thresholds.astype(np.float32)), losses.mean(axis=0)
        reached, beyond = expected[steps], expected[steps + looser]
        assert reached.mean() + 4 * reached.std() / np.sqrt(2000) <= 0.1
        assert beyond.mean() > 0.1 - 1 / (n + 1) - 4 * beyond.std() / np.sqrt(2000)


def test_guarantee_for_images_in_groups():
    """Ten groups of images that are alike: counted as groups they keep the promise of 0.9, as images they break it.

    The groups are drawn from 30, all of which have ten kinds of images, so the expected loss of a further group is the
    mean over all kinds. The tolerance is that of `test_guarantee_in_a_simulation`.
    """
    rng = np.random.default_rng(0)
    first_lossy = rng.integers(20, 460, size=(30, 1)) + rng.integers(-20, 20, size=(30, 10))  # each below one half
    losses = (np.arange(1000) >= first_lossy[..., None]).astype(float)  # (30, 10, 1000)
    chosen: dict[int | None, list[float]] = {None: [], 10: []}
    for _ in range(500):
        sizes = rng.integers(1, 40, 10)
        drawn = [losses[rng.integers(30), rng.integers(10, size=size)] for size in sizes]
        over_groups = np.mean([images.mean(axis=0) for images in drawn], axis=0)
        for groups, means in ((None, np.concatenate(drawn).mean(axis=0)), (10, over_groups)):
            curves = RiskCurves(int(sizes.sum()), means, means[::-1], groups=groups)
            outer, inner = controlling_thresholds(curves, 0.9)
            assert np.searchsorted(THRESHOLDS, outer) == 999 - np.searchsorted(THRESHOLDS, inner)
            chosen[groups].append(outer)
    by_units = [losses.mean(axis=(0, 1))[np.searchsorted(THRESHOLDS, np.float32(chosen[one]))] for one in (None, 10)]
    of_images, of_groups = by_units
    assert of_groups.mean() + 4 * of_groups.std() / np.sqrt(500) <= 0.1
    assert of_images.mean() - 4 * of_images.std() / np.sqrt(500) > 0.1


def test_too_few_groups():
    rising = np.linspace(0, 1, 1000)
    with pytest.raises(IndexError):
        controlling_thresholds(RiskCurves(100, rising, rising[::-1], groups=8), 0.9)
