"""Scores of an image without a truth, by hand and by what they stand for."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.uncertainty import ScoreSums, pairwise_dice


def two(lesion: list[list[float]]) -> torch.Tensor:
    p = torch.tensor(lesion)
    return torch.stack([1 - p, p])


def sums_of(
    probs: torch.Tensor, classes: torch.Tensor, overlaps: torch.Tensor | None = None, pieces: int = 1
) -> ScoreSums:
    """Of maps with an entropy of 1/4 everywhere, in pieces of rows; the overlaps come with the first."""
    sums = ScoreSums()
    for p, c in zip(probs.tensor_split(pieces, dim=1), classes.tensor_split(pieces), strict=True):
        sums.add(p, torch.full(c.shape, 0.25), c, overlaps)
        overlaps = None if overlaps is None else torch.zeros_like(overlaps)
    return sums


def soft_dice_confidence(probs: torch.Tensor, classes: torch.Tensor) -> float:
    return sums_of(probs, classes).soft_dice_confidence


def test_soft_dice_confidence_by_hand():
    probs = two([[0.9, 0.6, 0.2, 0.1]])
    assert soft_dice_confidence(probs, torch.tensor([[1, 1, 0, 0]])) == pytest.approx(2 * 1.5 / (1.8 + 2))
    nothing_there = 0.1 * 0.4 * 0.8 * 0.9  # the probability that the truth is empty, as an empty mask says
    assert soft_dice_confidence(probs, torch.tensor([[0, 0, 0, 0]])) == pytest.approx(nothing_there)
    assert soft_dice_confidence(two([[0.0, 0.0]]), torch.tensor([[0, 0]])) == 1
    assert soft_dice_confidence(two([[1.0, 0.0]]), torch.tensor([[1, 0]])) == 1


def test_an_empty_mask_counts_the_smallest_probabilities():
    probs = two(np.full((1000, 1000), 1e-8).tolist())
    assert soft_dice_confidence(probs, torch.zeros(1000, 1000)) == pytest.approx(math.exp(-0.01), abs=1e-5)


def test_what_is_no_number_is_said():
    probs = two([[0.1, math.nan], [0.3, 0.2]])
    assert math.isnan(sums_of(probs, torch.zeros(2, 2), pieces=2).scores()["largest_probability"])


def test_soft_dice_confidence_is_the_mean_over_the_classes():
    probs = torch.tensor([[[0.2, 0.1]], [[0.7, 0.3]], [[0.1, 0.6]]])  # (3, 1, 2)
    classes = torch.tensor([[1, 2]])
    first, second = 2 * 0.7 / (1.0 + 1), 2 * 0.6 / (0.7 + 1)
    assert soft_dice_confidence(probs, classes) == pytest.approx((first + second) / 2)


def overlaps_of(masks: np.ndarray) -> torch.Tensor:
    """(1, T, T) of (T, n) masks."""
    m = torch.from_numpy(masks.astype(float))
    return (m @ m.T)[None]


def test_pairwise_dice_by_hand():
    masks = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
    assert pairwise_dice(overlaps_of(masks)) == pytest.approx((2 * 2 / 5 + 0 + 0) / 3)
    assert pairwise_dice(overlaps_of(np.zeros((3, 4)))) == 1
    both = torch.cat([overlaps_of(masks), overlaps_of(np.ones((3, 4)))])
    assert pairwise_dice(both) == pytest.approx((4 / 15 + 1) / 2)


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_scores_are_what_the_samples_say(seed: int, t: int):
    rng = np.random.default_rng(seed)
    samples = rng.random((t, 5, 6)) ** rng.uniform(0.2, 5)
    masks = (samples > 0.5).reshape(t, -1)
    probs = two(samples.mean(0).tolist())
    classes = probs.argmax(dim=0)
    scores = sums_of(probs, classes, overlaps_of(masks)).scores()
    in_pieces = sums_of(probs, classes, overlaps_of(masks), pieces=3).scores()
    assert in_pieces == pytest.approx(scores)
    areas = masks.sum(1)
    assert scores["area"] == (samples.mean(0) > 0.5).sum()
    assert scores["area_mean"] == pytest.approx(areas.mean())
    assert scores["area_std"] == pytest.approx(areas.std())
    assert scores["area_variation"] == pytest.approx(areas.std() / areas.mean() if areas.any() else 0)
    assert scores["mean_entropy"] == pytest.approx(0.25)
    pairs = [(a, b) for i, a in enumerate(masks) for b in masks[i + 1 :]]
    dices = [2 * (a & b).sum() / (a.sum() + b.sum()) if a.any() or b.any() else 1.0 for a, b in pairs]
    assert scores["pairwise_dice"] == pytest.approx(np.mean(dices))
    assert 0 <= scores["soft_dice_confidence"] <= 1


def test_one_sample_has_no_spread():
    scores = sums_of(two([[0.9, 0.1]]), torch.tensor([[1, 0]]), torch.ones(1, 1, 1)).scores()
    assert [name for name, value in scores.items() if value is None] == [
        "area_mean",
        "area_std",
        "area_variation",
        "pairwise_dice",
    ]
    assert scores["area"] == 1


def test_soft_dice_confidence_is_near_the_expected_dice():
    rng = np.random.default_rng(0)
    p = np.clip(rng.normal(0.5, 0.4, (60, 60)), 0, 1)
    mask = p > 0.5
    truths = rng.random((200, 60, 60)) < p  # truths of which the probabilities are right
    dices = 2 * (truths & mask).sum((1, 2)) / (truths.sum((1, 2)) + mask.sum())
    confidence = soft_dice_confidence(two(p.tolist()), torch.from_numpy(mask.astype(int)))
    assert confidence == pytest.approx(dices.mean(), abs=0.005)
