"""The scores of an image that need no ground truth, by hand and against their definitions."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.metrics.uncertainty import CONFIDENCE_SIGNS, ImageScores, entropy, pairwise_dice, score_title


def two_classes(foreground: list[list[float]]) -> torch.Tensor:
    p = torch.tensor(foreground)
    return torch.stack([1 - p, p])


def image_scores(
    probs: torch.Tensor, classes: torch.Tensor, overlaps: torch.Tensor | None = None, blocks: int = 1
) -> ImageScores:
    """Of maps with an entropy of 1/4 everywhere, in blocks of rows."""
    scores = ImageScores(overlaps)
    for p, c in zip(probs.tensor_split(blocks, dim=1), classes.tensor_split(blocks), strict=True):
        scores.add(p, torch.full(c.shape, 0.25), c)
    return scores


def soft_dice_confidence(probs: torch.Tensor, classes: torch.Tensor) -> float:
    return image_scores(probs, classes).soft_dice_confidence


# -- entropy


def test_entropy_by_hand():
    probs = torch.tensor([[0.0, 1.0, 0.5]]).view(1, 1, 3)
    assert entropy(probs).flatten().tolist() == pytest.approx([0, 0, math.log(2)])


@given(st.integers(0, 10_000), st.integers(2, 5))
def test_entropy_against_scipy(seed: int, n_classes: int):
    generator = torch.Generator().manual_seed(seed)
    probs = (4 * torch.randn(2, n_classes, 3, 4, generator=generator)).softmax(dim=1)
    np.testing.assert_allclose(entropy(probs), scipy.stats.entropy(probs.double().numpy(), axis=1), atol=2e-6)


# -- soft Dice confidence


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_entropy_of_certain_pixels(dtype: torch.dtype):
    """0 ln 0 is 0 in any precision, and where numbers below the smallest normal one count as 0."""
    probs = torch.tensor([0, 0.5, 1], dtype=dtype)[None, None]
    expected = [0, pytest.approx(math.log(2), rel=4e-3), 0]
    assert entropy(probs)[0].tolist() == expected
    torch.set_flush_denormal(True)
    try:
        assert entropy(torch.cat([probs, 1 - probs]))[0].tolist() == expected
    finally:
        torch.set_flush_denormal(False)


def test_soft_dice_confidence_by_hand():
    probs = two_classes([[0.9, 0.6, 0.2, 0.1]])
    assert soft_dice_confidence(probs, torch.tensor([[1, 1, 0, 0]])) == pytest.approx(2 * 1.5 / (1.8 + 2))
    all_background = 0.1 * 0.4 * 0.8 * 0.9  # the probability that the ground truth is empty, like the mask
    assert soft_dice_confidence(probs, torch.tensor([[0, 0, 0, 0]])) == pytest.approx(all_background)
    assert soft_dice_confidence(two_classes([[0.0, 0.0]]), torch.tensor([[0, 0]])) == 1
    assert soft_dice_confidence(two_classes([[1.0, 0.0]]), torch.tensor([[1, 0]])) == 1


def test_empty_mask_accumulates_tiny_probabilities():
    probs = two_classes(np.full((1000, 1000), 1e-8).tolist())
    assert soft_dice_confidence(probs, torch.zeros(1000, 1000)) == pytest.approx(math.exp(-0.01), abs=1e-5)


def test_soft_dice_confidence_is_the_mean_over_classes():
    probs = torch.tensor([[[0.2, 0.1]], [[0.7, 0.3]], [[0.1, 0.6]]])  # (3, 1, 2)
    classes = torch.tensor([[1, 2]])
    first, second = 2 * 0.7 / (1.0 + 1), 2 * 0.6 / (0.7 + 1)
    assert soft_dice_confidence(probs, classes) == pytest.approx((first + second) / 2)


def test_classes_that_are_not_predicted_have_no_part_in_the_confidence():
    probs = torch.tensor([[[0.2, 0.1, 0.9]], [[0.7, 0.6, 0.0]], [[0.1, 0.3, 0.1]]])  # (3, 1, 3)
    assert soft_dice_confidence(probs, torch.tensor([[1, 1, 0]])) == pytest.approx(2 * 1.3 / (1.3 + 2))
    all_background = 0.2 * 0.1 * 0.9  # the probability of background in each pixel
    assert soft_dice_confidence(probs, torch.tensor([[0, 0, 0]])) == pytest.approx(all_background)


def test_soft_dice_confidence_estimates_the_expected_dice():
    rng = np.random.default_rng(0)
    p = np.clip(rng.normal(0.5, 0.4, (60, 60)), 0, 1)
    mask = p > 0.5
    targets = rng.random((200, 60, 60)) < p  # for which the probabilities are calibrated
    dices = 2 * (targets & mask).sum((1, 2)) / (targets.sum((1, 2)) + mask.sum())
    confidence = soft_dice_confidence(two_classes(p.tolist()), torch.from_numpy(mask.astype(int)))
    assert confidence == pytest.approx(dices.mean(), abs=0.005)


# -- pairwise Dice and the other scores


def overlaps_of(masks: np.ndarray) -> torch.Tensor:
    """(1, T, T) of (T, n) masks."""
    m = torch.from_numpy(masks.astype(float))
    return (m @ m.T)[None]


def test_pairwise_dice_by_hand():
    masks = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
    assert pairwise_dice(overlaps_of(masks)) == pytest.approx((2 * 2 / 5 + 0 + 0) / 3)
    assert pairwise_dice(overlaps_of(np.zeros((3, 4)))) == 1
    two = torch.cat([overlaps_of(masks), overlaps_of(np.ones((3, 4)))])
    assert pairwise_dice(two) == pytest.approx((4 / 15 + 1) / 2)
    by_one_sample = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])  # one pair agrees that there is none
    two = torch.cat([overlaps_of(masks), overlaps_of(by_one_sample)])
    assert pairwise_dice(two) == pytest.approx((4 / 15 + 1 / 3) / 2)


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(2, 4), st.floats(0, 6))
def test_class_that_no_sample_shows_changes_no_score(seed: int, n_classes: int, background: float):
    """Also of masks without any class, which a large logit of the background gives."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, n_classes, 5, 6, generator=generator)
    logits[:, 0] += background
    absent = torch.full((3, 1, 5, 6), -200.0)  # a probability of 0
    results = []
    for stack in (logits, torch.cat([logits[:, :-1], absent, logits[:, -1:]], dim=1)):
        mean, samples = stack.softmax(dim=1).mean(dim=0), stack.argmax(dim=1).flatten(1).numpy()
        overlaps = torch.cat([overlaps_of(samples == k) for k in range(1, len(mean))])
        results.append(image_scores(mean, mean.argmax(dim=0), overlaps).scores())
    assert results[0] == pytest.approx(results[1], rel=1e-6)


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_scores_against_all_samples(seed: int, t: int):
    rng = np.random.default_rng(seed)
    samples = rng.random((t, 5, 6)) ** rng.uniform(0.2, 5)
    masks = (samples > 0.5).reshape(t, -1)
    probs = two_classes(samples.mean(0).tolist())
    classes = probs.argmax(dim=0)
    scores = image_scores(probs, classes, overlaps_of(masks)).scores()
    in_blocks = image_scores(probs, classes, overlaps_of(masks), blocks=3).scores()
    assert in_blocks == pytest.approx(scores)
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


def test_single_sample_has_no_spread():
    scores = image_scores(two_classes([[0.9, 0.1]]), torch.tensor([[1, 0]]), torch.ones(1, 1, 1)).scores()
    assert [name for name, value in scores.items() if value is None] == [
        "area_mean",
        "area_std",
        "area_variation",
        "pairwise_dice",
    ]
    assert scores["area"] == 1


def test_largest_probability_is_that_of_the_foreground():
    probs = torch.tensor([[[0.4, 0.9]], [[0.35, 0.1]], [[0.25, 0.0]]])
    scores = image_scores(probs, torch.zeros(1, 2)).scores()
    assert scores["largest_probability"] == pytest.approx(0.6)
    assert scores["area"] == 0


def test_nan_is_not_hidden():
    probs = two_classes([[0.1, math.nan], [0.3, 0.2]])
    assert math.isnan(image_scores(probs, torch.zeros(2, 2), blocks=2).scores()["largest_probability"])


def test_titles():
    assert [score_title(name) for name in ("soft_dice_confidence", "mean_entropy")] == [
        "soft Dice confidence",
        "mean entropy",
    ]


def test_signs_of_confidence():
    assert CONFIDENCE_SIGNS == {"soft_dice_confidence": 1, "pairwise_dice": 1, "mean_entropy": -1, "area_variation": -1}
