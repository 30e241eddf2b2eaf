"""Segmentation metrics, by hand and against torchmetrics and scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional.classification as tm
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.metrics import SCORES, segmentation_scores, summarize_scores


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


@settings(max_examples=60, deadline=None)
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


@settings(max_examples=30, deadline=None)
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


def test_summary_for_people():
    rows = [dict.fromkeys(SCORES, value) for value in (0.5, 0.75, 1.0, 1.0)]
    lines = summarize_scores(rows).splitlines()
    assert len(lines) == 5
    assert lines[0].split() == ["Dice", "mean", "0.8125", "median", "0.8750"]
