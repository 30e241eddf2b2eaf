"""Segmentation scores by hand, and against scikit-learn and torchmetrics."""

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional.classification as tm
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.metrics.segmentation import absent_classes, segmentation_scores, segmentation_title, where_shown


def test_scores_by_hand():
    predicted = np.array([[1, 1, 1, 0], [0, 0, 0, 0]])
    target = np.array([[1, 0, 0, 1], [1, 0, 0, 0]])  # 1 true positive, 2 false positives, 2 false and 3 true negatives
    assert segmentation_scores(predicted, target) == pytest.approx(
        {"dice": 2 / 6, "jaccard": 1 / 5, "sensitivity": 1 / 3, "specificity": 3 / 5, "accuracy": 4 / 8}
    )


def test_empty_and_full_masks():
    empty, full = np.zeros((3, 3), dtype=np.uint8), np.ones((3, 3), dtype=np.uint8)
    scores = segmentation_scores(empty, empty)
    assert math.isnan(scores.pop("sensitivity"))  # to no lesion
    assert set(scores.values()) == {1.0}
    assert set(segmentation_scores(full, full).values()) == {1.0}
    scores = segmentation_scores(full, empty)
    assert (scores["dice"], scores["jaccard"], scores["specificity"], scores["accuracy"]) == (0, 0, 0, 0)
    assert math.isnan(scores["sensitivity"])


def test_classes_that_do_not_occur():
    target = np.array([[1, 1, 0, 0]])
    scores = segmentation_scores(np.array([[1, 0, 0, 2]]), target, 4)  # a false alarm of class 2, none of class 3
    assert absent_classes(scores) == ["_c2", "_c3"]
    assert (scores["dice"], scores["jaccard"], scores["sensitivity"]) == pytest.approx((2 / 3, 1 / 2, 1 / 2))  # class 1
    assert scores["specificity"] == pytest.approx(np.mean([1, 3 / 4, 1]))
    assert (scores["dice_c2"], scores["dice_c3"]) == (0, 1)
    shown = where_shown(scores)
    assert {name for name, value in shown.items() if math.isnan(value)} == {
        f"{name}_c{k}" for name in ("dice", "jaccard", "sensitivity") for k in (2, 3)
    }
    assert {name: value for name, value in scores.items() if not math.isnan(shown[name])}.items() <= shown.items()
    assert absent_classes(segmentation_scores(target, np.zeros_like(target), 3)) == ["", "_c1", "_c2"]


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 60))
def test_two_classes_against_sklearn(seed: int, n: int):
    rng = np.random.default_rng(seed)
    predicted, target = rng.integers(0, 2, (2, n, 3))
    scores = segmentation_scores(predicted, target)
    p, y = predicted.ravel(), target.ravel()
    if y.any() or p.any():
        assert scores["dice"] == pytest.approx(sklearn.metrics.f1_score(y, p))
        assert scores["jaccard"] == pytest.approx(sklearn.metrics.jaccard_score(y, p))
        assert scores["jaccard"] == pytest.approx(scores["dice"] / (2 - scores["dice"]))
    if y.any():
        assert scores["sensitivity"] == pytest.approx(sklearn.metrics.recall_score(y, p))
    if not y.all():
        assert scores["specificity"] == pytest.approx(sklearn.metrics.recall_score(1 - y, 1 - p))
    assert scores["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(y, p))


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_several_classes_against_torchmetrics(seed: int):
    rng = np.random.default_rng(seed)
    predicted, target = rng.integers(0, 4, (2, 20, 20))
    scores = segmentation_scores(predicted, target, 4)
    p, y = torch.from_numpy(predicted), torch.from_numpy(target)
    references = {
        "dice": tm.multiclass_f1_score,
        "jaccard": tm.multiclass_jaccard_index,
        "sensitivity": tm.multiclass_recall,
        "specificity": tm.multiclass_specificity,
    }
    for name, reference in references.items():
        by_class = reference(p, y, num_classes=4, average=None)[1:].tolist()
        assert [scores[f"{name}_c{k}"] for k in (1, 2, 3)] == pytest.approx(by_class)
        assert scores[name] == pytest.approx(sum(by_class) / 3)
    assert scores["accuracy"] == pytest.approx((predicted == target).mean())


def test_titles():
    assert [segmentation_title(name) for name in ("dice", "jaccard_c2")] == ["Dice", "Jaccard, class 2"]


def test_image_without_a_pixel_that_counts_has_no_score():
    ignored = np.full((2, 2), 255)
    for n_classes, names in ((2, 5), (3, 13)):
        scores = segmentation_scores(np.ones((2, 2), dtype=np.uint8), ignored, n_classes)
        assert len(scores) == names
        assert all(np.isnan(value) for value in scores.values())
        assert absent_classes(scores) == []


def test_ignored_pixels_are_not_scored():
    predicted = np.array([[1, 1, 1, 0], [0, 0, 0, 0]])
    target = np.array([[1, 0, 255, 255], [1, 0, 0, 0]])  # 1 true and 1 false positive, 3 true and 1 false negatives
    assert segmentation_scores(predicted, target) == pytest.approx(
        {"dice": 2 / 4, "jaccard": 1 / 3, "sensitivity": 1 / 2, "specificity": 3 / 4, "accuracy": 4 / 6}
    )


@pytest.mark.parametrize(
    ("predicted", "target", "n_classes"),
    [
        (np.zeros((4, 6)), np.zeros((6, 4)), 2),
        (np.zeros((1, 1)), np.zeros((6, 4)), 2),
        (np.zeros((700, 900)), np.zeros((600, 900)), 2),  # alike in the first pixels
        (np.array([[0, 1, 1]]), np.array([[0, 1, 2]]), 2),
        (np.array([[0, 1, 2]]), np.array([[0, 1, 1]]), 2),
        (np.array([[0, 1, 255]]), np.array([[0, 1, 1]]), 3),
    ],
)
def test_what_cannot_be_compared(predicted: np.ndarray, target: np.ndarray, n_classes: int):
    with pytest.raises(ValueError, match=r"its ground truth of size|has other classes than those from 0 to \d"):
        segmentation_scores(predicted, target, n_classes)
