"""Selective prediction by hand, and its invariants."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.metrics.selective import (
    augrc,
    aurc,
    excess_aurc,
    mean_dice_and_aurc,
    risk_coverage_curve,
    risks_by_confidence,
)


def test_selective_metrics_by_hand():
    confidence, risks = np.array([0.9, 0.7, 0.5, 0.1]), np.array([0.0, 0.4, 0.1, 0.5])
    assert aurc(confidence, risks) == pytest.approx((0 + 0.2 + 0.5 / 3 + 0.25) / 4)
    oracle = (0 + 0.05 + 0.5 / 3 + 0.25) / 4
    assert excess_aurc(confidence, risks) == pytest.approx(aurc(confidence, risks) - oracle)
    assert augrc(confidence, risks) == pytest.approx((0 + 0.1 + 0.125 + 0.25) / 4)
    assert excess_aurc(np.zeros(4), risks) == pytest.approx(0.25 - oracle)  # without an order at all
    coverage, risk = risk_coverage_curve(confidence, risks)
    assert coverage.tolist() == pytest.approx([0.25, 0.5, 0.75, 1])
    assert risk.tolist() == pytest.approx([0, 0.2, 0.5 / 3, 0.25])


def test_images_without_a_lesion_are_not_ranked():
    dice, confidence = [0.9, math.nan, 0.5], [0.8, 0.0, 0.6]
    assert mean_dice_and_aurc(dice, confidence) == pytest.approx((0.7, (0.1 + 0.3) / 2))
    assert all(map(math.isnan, mean_dice_and_aurc([math.nan], [0.5])))


def test_equal_confidences_share_their_risk():
    ordered = risks_by_confidence(np.array([0.5, 0.9, 0.5]), np.array([0.3, 0.1, 0.5]))
    assert ordered.tolist() == pytest.approx([0.1, 0.4, 0.4])


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from([0, 0.25, 0.5, 1]), st.floats(0, 1)), min_size=1, max_size=12),
    st.integers(0, 99),
)
def test_repeated_images_are_images_of_their_own(pairs: list[tuple[float, float]], seed: int):
    """The metrics of several sets at once are those by the curve of each."""
    confidence, risks = np.array(pairs).T
    repeats = np.random.default_rng(seed).integers(0, 4, (3, len(risks)))
    repeats[:, 0] += 1
    curves = [risk_coverage_curve(np.repeat(confidence, one), np.repeat(risks, one)) for one in repeats]
    oracles = [risk_coverage_curve(-np.repeat(risks, one), np.repeat(risks, one)) for one in repeats]
    expected = np.array([curve.mean() for _, curve in curves])
    assert aurc(confidence, risks, repeats) == pytest.approx(expected, abs=1e-12)
    excess = expected - [curve.mean() for _, curve in oracles]
    assert excess_aurc(confidence, risks, repeats) == pytest.approx(excess, abs=1e-12)
    generalised = [(coverage * curve).mean() for coverage, curve in curves]
    assert augrc(confidence, risks, repeats) == pytest.approx(generalised, abs=1e-12)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_oracle_is_optimal_and_order_of_images_irrelevant(pairs: list[tuple[float, float]]):
    confidence, risks = np.array(pairs).T
    assert excess_aurc(confidence, risks) >= -1e-12
    assert 0 <= augrc(confidence, risks) <= aurc(risks, risks) + 1e-12
    assert aurc(confidence[::-1], risks[::-1]) == pytest.approx(aurc(confidence, risks), abs=1e-12)
    assert aurc(np.zeros(len(risks)), risks) == pytest.approx(risks.mean(), abs=1e-12)
