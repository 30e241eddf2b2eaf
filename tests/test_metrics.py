"""Metrics by hand, and against torchmetrics, scikit-learn and scipy."""

import dataclasses
import json
import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import torchmetrics.functional.classification as tm
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.metrics import (
    MIN_PROBABILITY,
    PIXEL_METRICS,
    SCORES,
    PixelCounts,
    augrc,
    aurc,
    describe,
    doubt_bins,
    doubt_middles,
    entropy_bins,
    evaluate_set,
    excess_aurc,
    pixel_counts,
    risks_by_confidence,
    segmentation_scores,
    sum_counts,
)
from utils.uncertainty import ScoreSums, entropy


def test_scores_by_hand():
    predicted = np.array([[1, 1, 1, 0], [0, 0, 0, 0]])
    truth = np.array([[1, 0, 0, 1], [1, 0, 0, 0]])  # 1 hit, 2 false alarms, 2 misses, 3 rightly background
    assert segmentation_scores(predicted, truth) == pytest.approx(
        {"dice": 2 / 6, "jaccard": 1 / 5, "sensitivity": 1 / 3, "specificity": 3 / 5, "accuracy": 4 / 8}
    )


def test_empty_and_full_masks():
    empty, full = np.zeros((3, 3), dtype=np.uint8), np.ones((3, 3), dtype=np.uint8)
    assert set(segmentation_scores(empty, empty).values()) == {1.0}
    assert set(segmentation_scores(full, full).values()) == {1.0}
    scores = segmentation_scores(full, empty)
    assert (scores["dice"], scores["jaccard"], scores["specificity"], scores["accuracy"]) == (0, 0, 0, 0)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 60))
def test_two_classes_against_others(seed: int, n: int):
    rng = np.random.default_rng(seed)
    predicted, truth = rng.integers(0, 2, (2, n, 3))
    scores = segmentation_scores(predicted, truth)
    p, t = predicted.ravel(), truth.ravel()
    if t.any() or p.any():
        assert scores["dice"] == pytest.approx(sklearn.metrics.f1_score(t, p))
        assert scores["jaccard"] == pytest.approx(sklearn.metrics.jaccard_score(t, p))
        assert scores["jaccard"] == pytest.approx(scores["dice"] / (2 - scores["dice"]))
    if t.any():
        assert scores["sensitivity"] == pytest.approx(sklearn.metrics.recall_score(t, p))
    if not t.all():
        assert scores["specificity"] == pytest.approx(sklearn.metrics.recall_score(1 - t, 1 - p))
    assert scores["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(t, p))


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_several_classes_against_torchmetrics(seed: int):
    rng = np.random.default_rng(seed)
    predicted, truth = rng.integers(0, 4, (2, 20, 20))
    scores = segmentation_scores(predicted, truth, 4)
    p, t = torch.from_numpy(predicted), torch.from_numpy(truth)
    oracles = {
        "dice": tm.multiclass_f1_score,
        "jaccard": tm.multiclass_jaccard_index,
        "sensitivity": tm.multiclass_recall,
        "specificity": tm.multiclass_specificity,
    }
    for name, oracle in oracles.items():
        each = oracle(p, t, num_classes=4, average=None)[1:].tolist()
        assert [scores[f"{name}_c{k}"] for k in (1, 2, 3)] == pytest.approx(each)
        assert scores[name] == pytest.approx(sum(each) / 3)
    assert scores["accuracy"] == pytest.approx((predicted == truth).mean())


# -- pixels


def random_maps(seed: int, n_classes: int = 2, size: tuple[int, int] = (16, 20)) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of all magnitudes, and a truth that fits them badly."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(n_classes, *size, generator=generator)
    truth = (logits + 6 * torch.randn(n_classes, *size, generator=generator)).argmax(dim=0)
    return logits.softmax(dim=0), truth


def counts_of(probs: torch.Tensor, truth: torch.Tensor) -> PixelCounts:
    return pixel_counts(probs, entropy(probs), truth)


def values(counts: PixelCounts) -> dict[str, float]:
    return {name: float(metric(counts)) for name, metric in PIXEL_METRICS.items()}


def test_calibration_by_hand():
    # Confidences 0.9, 0.9, 0.7, 0.6; the second and the fourth pixel are wrong.
    lesion = torch.tensor([[0.9, 0.9, 0.3, 0.6]])
    got = values(counts_of(torch.stack([1 - lesion, lesion]), torch.tensor([[1, 0, 0, 0]])))
    assert got["ece_top_label"] == pytest.approx((2 * abs(0.5 - 0.9) + abs(1 - 0.7) + abs(0 - 0.6)) / 4)
    assert got["ece_foreground"] == pytest.approx((2 * abs(0.5 - 0.9) + abs(0 - 0.3) + abs(0 - 0.6)) / 4)
    assert got["brier"] == pytest.approx((0.01 + 0.81 + 0.09 + 0.36) / 4)
    assert got["nll"] == pytest.approx(-np.log([0.9, 0.1, 0.7, 0.4]).mean())
    # Entropy falls from 0.6 over 0.7 to 0.9, so the wrong 0.6 is above both right ones, the wrong 0.9 ties with one,
    # which half of the orders put before it.
    assert got["error_auroc"] == pytest.approx((2 + 0.5) / 4)
    assert got["error_aupr"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3.5)


def test_a_perfect_prediction_scores_perfectly():
    truth = torch.tensor([[0, 1], [1, 1]])
    got = values(counts_of(torch.nn.functional.one_hot(truth, 2).permute(2, 0, 1).float(), truth))
    for name in ("ece_top_label", "ece_foreground", "brier", "nll"):
        assert got[name] == pytest.approx(0, abs=1e-6)
    assert got["adaptive_ece"] == pytest.approx(0, abs=1e-6)
    assert np.isnan([got["error_auroc"], got["error_aupr"]]).all()  # there is no error to be found


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_two_classes_of_pixels_against_others(seed: int):
    probs, truth = random_maps(seed)
    got = values(counts_of(probs, truth))
    p, y = probs[1].flatten(), truth.flatten()
    top_label = tm.multiclass_calibration_error(probs.flatten(1).T.double(), y, num_classes=2, n_bins=15, norm="l1")
    assert got["ece_top_label"] == pytest.approx(top_label.item(), abs=1e-6)
    foreground = tm.binary_calibration_error(p.double(), y, n_bins=15, norm="l1")
    assert got["ece_foreground"] == pytest.approx(foreground.item(), abs=1e-6)
    assert got["brier"] == pytest.approx(sklearn.metrics.brier_score_loss(y, p.double()), abs=1e-6)
    clamped = probs.flatten(1).T.double().clamp(min=MIN_PROBABILITY)
    log_loss = -clamped[torch.arange(len(y)), y].log().mean().item()
    assert got["nll"] == pytest.approx(log_loss, abs=1e-6)


@settings(max_examples=12)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_what_fine_histograms_say_against_sorted_pixels(seed: int, n_classes: int):
    probs, truth = random_maps(seed, n_classes, size=(250, 240))
    got = values(counts_of(probs, truth))
    uncertainty = scipy.stats.entropy(probs.double().numpy(), axis=0).ravel()
    confidence, predicted = probs.max(dim=0)
    wrong = (predicted != truth).flatten().numpy()
    assert got["error_auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(wrong, uncertainty), abs=1e-4)
    assert got["error_aupr"] == pytest.approx(sklearn.metrics.average_precision_score(wrong, uncertainty), abs=1e-4)
    assert got["adaptive_ece"] == pytest.approx(adaptive_ece(confidence.flatten().numpy(), ~wrong), abs=1e-4)


def adaptive_ece(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """From the sorted pixels, each repeated so often that they divide into bins of equal mass."""
    order = np.argsort(confidence)
    excess = np.repeat((confidence.astype(float) - right)[order], bins)
    return sum(abs(part.sum()) for part in np.split(excess, bins)) / len(excess)


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(3, 5))
def test_several_classes_of_pixels_against_others(seed: int, n_classes: int):
    probs, truth = random_maps(seed, n_classes)
    got = values(counts_of(probs, truth))
    flat, y = probs.flatten(1).T.double(), truth.flatten()
    top_label = tm.multiclass_calibration_error(flat, y, num_classes=n_classes, n_bins=15, norm="l1")
    assert got["ece_top_label"] == pytest.approx(top_label.item(), abs=1e-6)
    lesion = flat[:, 1:].sum(dim=1).clamp(max=1)
    foreground = tm.binary_calibration_error(lesion, (y > 0).long(), n_bins=15, norm="l1")
    assert got["ece_foreground"] == pytest.approx(foreground.item(), abs=1e-6)
    one_hot = torch.nn.functional.one_hot(y, n_classes)
    assert got["brier"] == pytest.approx(0.5 * ((flat - one_hot) ** 2).sum(dim=1).mean().item(), abs=1e-6)


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(1, 15))
def test_the_counts_of_two_halves_are_those_of_the_whole(seed: int, cut: int):
    probs, truth = random_maps(seed)
    whole = counts_of(probs, truth)
    halves = counts_of(probs[:, :cut], truth[:cut]) + counts_of(probs[:, cut:], truth[cut:])
    for name, value in values(whole).items():
        assert values(halves)[name] == pytest.approx(value, rel=1e-9), name
    assert whole.pixels == truth.numel()


def test_large_images_are_counted_in_pieces(monkeypatch: pytest.MonkeyPatch):
    probs, truth = random_maps(3)
    whole = values(counts_of(probs, truth))
    monkeypatch.setattr("utils.metrics._AT_ONCE", 100)
    assert values(counts_of(probs, truth)) == pytest.approx(whole, rel=1e-9)


def test_coarse_counts_are_nearly_as_good():
    probs, truth = random_maps(4, size=(200, 200))
    counts = counts_of(probs, truth)
    assert values(counts.coarse()) == pytest.approx(values(counts), abs=2e-3)
    assert sum(getattr(counts.coarse(), name).nbytes for name in ("by_doubt", "by_entropy")) < 20_000


def test_packed_counts_come_back():
    counts = counts_of(*random_maps(5, size=(60, 60)))
    packed = counts.pack()
    assert len(packed) < 20_000
    back = PixelCounts.unpack(packed)
    for field in dataclasses.fields(PixelCounts):
        assert np.array_equal(getattr(back, field.name), getattr(counts, field.name))
    assert back.by_doubt.dtype == back.coarse().by_entropy.dtype == np.int64  # a set has more pixels than int32


def test_many_sets_at_once():
    images = [counts_of(*random_maps(seed)).coarse() for seed in range(3)]
    sets = sum_counts(images, np.array([[1, 1, 1], [0, 2, 0]]))
    for name, metric in PIXEL_METRICS.items():
        assert metric(sets)[0] == pytest.approx(float(metric(images[0] + images[1] + images[2])), rel=1e-9)
        assert metric(sets)[1] == pytest.approx(float(metric(images[1])), abs=1e-2 if name == "error_aupr" else 1e-9)


def test_fine_bins_are_in_order_and_narrow():
    doubt = torch.logspace(-24, -0.001, 5000, base=2)
    index = doubt_bins(doubt)
    assert (index.diff() >= 0).all()
    np.testing.assert_allclose(doubt_middles(24 * 128)[index.numpy()], doubt, rtol=5e-3)
    assert doubt_bins(torch.tensor([0.0, 1e-30])).tolist() == [0, 0]
    lesion = torch.linspace(0.001, 0.5, 2000)
    index = entropy_bins(entropy(lesion[None, None])[0], 2)
    assert (index.diff() >= 0).all()
    assert len(index.unique()) > 700
    lowest, highest = entropy_bins(torch.tensor([0.0, math.log(2)]), 2).tolist()
    assert 0 <= lowest < 20
    assert 2**12 - 60 < highest < 2**12


# -- images in the order of their confidence


def test_selective_metrics_by_hand():
    confidence, risks = np.array([0.9, 0.7, 0.5, 0.1]), np.array([0.0, 0.4, 0.1, 0.5])
    assert aurc(confidence, risks) == pytest.approx((0 + 0.2 + 0.5 / 3 + 0.25) / 4)
    best = (0 + 0.05 + 0.5 / 3 + 0.25) / 4
    assert excess_aurc(confidence, risks) == pytest.approx(aurc(confidence, risks) - best)
    assert augrc(confidence, risks) == pytest.approx((0 + 0.1 + 0.125 + 0.25) / 4)
    assert excess_aurc(np.zeros(4), risks) == pytest.approx(0.25 - best)  # no order is not the best order


def test_equal_confidences_share_their_risk():
    ordered = risks_by_confidence(np.array([0.5, 0.9, 0.5]), np.array([0.3, 0.1, 0.5]))
    assert ordered.tolist() == pytest.approx([0.1, 0.4, 0.4])


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_no_order_beats_the_best_and_order_of_the_rows_does_not_matter(pairs: list[tuple[float, float]]):
    confidence, risks = np.array(pairs).T
    assert excess_aurc(confidence, risks) >= -1e-12
    assert 0 <= augrc(confidence, risks) <= aurc(risks, risks) + 1e-12
    assert aurc(confidence[::-1], risks[::-1]) == pytest.approx(aurc(confidence, risks), abs=1e-12)
    assert aurc(np.zeros(len(risks)), risks) == pytest.approx(risks.mean(), abs=1e-12)


# -- a set


def rows_of(dices: list[float]) -> list[dict[str, float]]:
    return [
        dict.fromkeys(SCORES, dice) | {"soft_dice_confidence": dice, "pairwise_dice": None, "mean_entropy": dice}
        for dice in dices
    ]


def test_a_set_of_images():
    result = evaluate_set(rows_of([0.5, 0.75, 1.0, 1.0]))
    dice = result["segmentation"]["dice"]
    assert (dice["value"], dice["median"]) == (0.8125, 0.875)
    assert 0.5 <= dice["low"] < 0.8125 < dice["high"] <= 1
    assert result["selective"]["soft_dice_confidence"]["e_aurc"]["value"] == pytest.approx(0)
    assert result["selective"]["mean_entropy"]["aurc"]["value"] > result["selective"]["random_order"]["aurc"]
    assert "pairwise_dice" not in result["selective"]
    assert result["risk_coverage"]["soft_dice_confidence"]["risk"] == pytest.approx([0, 0, 0.25 / 3, 0.1875])
    assert "Dice         mean 0.8125   median 0.8750" in describe(result)
    assert evaluate_set(rows_of([0.5, 0.75, 1.0, 1.0])) == result


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(100):
        dice = evaluate_set(rows_of(rng.beta(8, 2, 60).tolist()), resamples=300)["segmentation"]["dice"]
        inside += dice["low"] <= 0.8 <= dice["high"]
    assert 85 <= inside <= 100


def test_a_single_image_with_empty_masks_does_no_harm():
    empty = torch.zeros(2, 4, 4)
    empty[0] = 1
    truth = torch.zeros(4, 4, dtype=torch.long)
    counts = counts_of(empty, truth)
    row = segmentation_scores(np.zeros((4, 4)), truth.numpy()) | values(counts)
    sums = ScoreSums()
    sums.add(empty, entropy(empty), truth)
    row |= sums.scores()
    result = evaluate_set([row], [counts.coarse()], counts)
    assert result["segmentation"]["dice"]["value"] == 1
    assert result["errors"]["error_auroc"] == {"value": None, "low": None, "high": None}
    json.dumps(result, allow_nan=False)
    assert "undefined" in describe(result)
