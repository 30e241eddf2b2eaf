"""Calibration and error detection by hand, and against torchmetrics, scikit-learn and sorted pixels."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import torchmetrics.functional.classification as tm
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.random_data import counts_of, pixel_metrics, random_maps
from utils import IGNORED_CLASS
from utils.metrics.pixel_counter import count_pixels
from utils.metrics.pixel_counts import MIN_PROBABILITY
from utils.metrics.pixel_metrics import error_auroc
from utils.metrics.uncertainty import entropy


def test_pixel_metrics_by_hand():
    # Confidences 0.9, 0.9, 0.7, 0.6; the second and the fourth pixel are errors.
    foreground = torch.tensor([[0.9, 0.9, 0.3, 0.6]])
    metrics = pixel_metrics(counts_of(torch.stack([1 - foreground, foreground]), torch.tensor([[1, 0, 0, 0]])))
    assert metrics["ece_top_label"] == pytest.approx((2 * abs(0.5 - 0.9) + abs(1 - 0.7) + abs(0 - 0.6)) / 4)
    assert metrics["ece_foreground"] == pytest.approx((2 * abs(0.5 - 0.9) + abs(0 - 0.3) + abs(0 - 0.6)) / 4)
    assert metrics["brier"] == pytest.approx((0.01 + 0.81 + 0.09 + 0.36) / 4)
    assert metrics["nll"] == pytest.approx(-np.log([0.9, 0.1, 0.7, 0.4]).mean())
    # Entropy decreases from 0.6 over 0.7 to 0.9, so the error at 0.6 ranks above both correct pixels, and the error at
    # 0.9 ties with one of them, so that it precedes it in half of the orders.
    assert metrics["error_auroc"] == pytest.approx((2 + 0.5) / 4)
    assert metrics["error_aupr"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3.5)


def test_without_pixels():
    """All may be ignored; a warning would be an error here."""
    foreground = torch.full((1, 4), 0.3)
    counts = counts_of(torch.stack([1 - foreground, foreground]), torch.full((1, 4), IGNORED_CLASS))
    assert np.isnan([*pixel_metrics(counts).values()]).all()


def test_perfect_prediction():
    target = torch.tensor([[0, 1], [1, 1]])
    probs = torch.nn.functional.one_hot(target, 2).permute(2, 0, 1).float()
    metrics = pixel_metrics(counts_of(probs, target))
    for name in ("ece_top_label", "ece_foreground", "adaptive_ece", "brier", "nll"):
        assert metrics[name] == pytest.approx(0, abs=1e-6)
    assert np.isnan([metrics["error_auroc"], metrics["error_aupr"]]).all()  # there is no error to detect


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_two_classes_against_torchmetrics_and_sklearn(seed: int):
    probs, target = random_maps(seed)
    metrics = pixel_metrics(counts_of(probs, target))
    p, y = probs[1].flatten(), target.flatten()
    top_label = tm.multiclass_calibration_error(probs.flatten(1).T.double(), y, num_classes=2, n_bins=15, norm="l1")
    assert metrics["ece_top_label"] == pytest.approx(top_label.item(), abs=1e-6)
    foreground = tm.binary_calibration_error(p.double(), y, n_bins=15, norm="l1")
    assert metrics["ece_foreground"] == pytest.approx(foreground.item(), abs=1e-6)
    assert metrics["brier"] == pytest.approx(sklearn.metrics.brier_score_loss(y, p.double()), abs=1e-6)
    clamped = probs.flatten(1).T.double().clamp(min=MIN_PROBABILITY)
    log_loss = -clamped[torch.arange(len(y)), y].log().mean().item()
    assert metrics["nll"] == pytest.approx(log_loss, abs=1e-6)


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(3, 5))
def test_several_classes_against_torchmetrics(seed: int, n_classes: int):
    probs, target = random_maps(seed, n_classes)
    metrics = pixel_metrics(counts_of(probs, target))
    p, y = probs.flatten(1).T.double(), target.flatten()
    top_label = tm.multiclass_calibration_error(p, y, num_classes=n_classes, n_bins=15, norm="l1")
    assert metrics["ece_top_label"] == pytest.approx(top_label.item(), abs=1e-6)
    foreground = p[:, 1:].sum(dim=1).clamp(max=1)
    ece_foreground = tm.binary_calibration_error(foreground, (y > 0).long(), n_bins=15, norm="l1")
    assert metrics["ece_foreground"] == pytest.approx(ece_foreground.item(), abs=1e-6)
    one_hot = torch.nn.functional.one_hot(y, n_classes)
    assert metrics["brier"] == pytest.approx(0.5 * ((p - one_hot) ** 2).sum(dim=1).mean().item(), abs=1e-6)


@settings(max_examples=12)
@given(st.integers(0, 10_000), st.integers(2, 4))
@example(385, 2)  # an AUPR that the bins change by 1.03e-4
def test_fine_histograms_against_sorted_pixels(seed: int, n_classes: int):
    probs, target = random_maps(seed, n_classes, size=(250, 240))
    metrics = pixel_metrics(counts_of(probs, target))
    uncertainty = scipy.stats.entropy(probs.double().numpy(), axis=0).ravel()
    confidence, predicted = probs.max(dim=0)
    errors = (predicted != target).flatten().numpy()
    assert metrics["error_auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(errors, uncertainty), abs=1e-4)
    assert metrics["error_aupr"] == pytest.approx(
        sklearn.metrics.average_precision_score(errors, uncertainty), abs=2e-4
    )
    assert metrics["adaptive_ece"] == pytest.approx(adaptive_ece(confidence.flatten().numpy(), ~errors), abs=1e-4)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_any_uncertainty_as_a_detector_of_errors(n_classes: int):
    """Not only the entropy of the probabilities, which determine it."""
    probs, target = random_maps(7, n_classes, size=(250, 240))
    probs = (8 * probs).softmax(dim=0)  # most of them certain
    samples = (probs + torch.rand(6, *probs.shape, generator=torch.Generator().manual_seed(0))).softmax(dim=1)
    uncertainty = entropy(samples.mean(dim=0)) - entropy(samples).mean(dim=0)
    counts, errors = count_pixels(probs, uncertainty, target), probs.argmax(dim=0) != target
    expected = sklearn.metrics.roc_auc_score(errors.flatten(), uncertainty.flatten())
    assert error_auroc(counts.by_entropy) == pytest.approx(expected, abs=1e-3)
    assert abs(expected - error_auroc(counts_of(probs, target).by_entropy)) > 0.05
    assert pixel_metrics(counts)["nll"] == pytest.approx(pixel_metrics(counts_of(probs, target))["nll"], abs=1e-6)


def test_maps_of_different_sizes():
    probs, target = random_maps(0, 2, size=(6, 4))
    for maps in ((entropy(probs), target.T), (entropy(probs).T, target), (entropy(probs)[:, :3], target)):
        with pytest.raises(ValueError, match=r"the sizes of \(2, \d, \d\) probabilities, .* differ"):
            count_pixels(probs, *maps)


def adaptive_ece(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """From the sorted pixels, each repeated so often that they divide into bins of equal mass."""
    order = np.argsort(confidence)
    excess = np.repeat((confidence.astype(float) - correct)[order], bins)
    return sum(abs(part.sum()) for part in np.split(excess, bins)) / len(excess)
