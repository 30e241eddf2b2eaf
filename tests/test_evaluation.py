"""All metrics of a labelled set of images."""

import json

import numpy as np
import pytest
import torch

from tests.random_data import counts_of, pixel_metrics, random_maps
from utils.metrics.evaluation import evaluate_set, format_evaluation
from utils.metrics.segmentation import CHALLENGE_SCORES, segmentation_scores
from utils.metrics.uncertainty import ImageScores, entropy


def rows_of(dices: list[float]) -> list[dict[str, float]]:
    return [
        dict.fromkeys(CHALLENGE_SCORES, dice)
        | {"soft_dice_confidence": dice, "pairwise_dice": None, "mean_entropy": dice}
        for dice in dices
    ]


def test_evaluate_set():
    result = evaluate_set(rows_of([0.5, 0.75, 1.0, 1.0]))
    dice = result["segmentation"]["dice"]
    assert (dice["value"], dice["median"]) == (0.8125, 0.875)
    assert 0.5 <= dice["low"] < 0.8125 < dice["high"] <= 1
    assert result["selective"]["soft_dice_confidence"]["e_aurc"]["value"] == pytest.approx(0)
    assert result["selective"]["mean_entropy"]["aurc"]["value"] > result["selective"]["random"]["aurc"]
    aurc = result["selective"]["soft_dice_confidence"]["aurc"]["value"]
    assert result["selective"]["oracle"]["aurc"] == pytest.approx(aurc)
    assert "pairwise_dice" not in result["selective"]
    assert result["risk_coverage"]["soft_dice_confidence"]["risk"] == pytest.approx([0, 0, 0.25 / 3, 0.1875])
    assert "Dice         mean 0.8125   median 0.8750" in format_evaluation(result)
    assert evaluate_set(rows_of([0.5, 0.75, 1.0, 1.0])) == result


def test_pixel_metrics_are_pooled():
    images = [counts_of(*random_maps(seed)) for seed in range(3)]
    total = images[0] + images[1] + images[2]
    rows = [row | pixel_metrics(image) for row, image in zip(rows_of([0.5, 0.75, 1.0]), images, strict=True)]
    result = evaluate_set(rows, [image.coarse() for image in images], total, resamples=20)
    pooled = result["calibration"] | result["errors"]
    for name, value in pixel_metrics(total).items():
        assert pooled[name]["value"] == pytest.approx(value)
    per_image = result["calibration"]["ece_top_label_per_image"]["value"]
    assert per_image == pytest.approx(np.mean([row["ece_top_label"] for row in rows]))
    assert result["pixels"] == total.pixels == 3 * 16 * 20
    for kind, counts in (("top_label", total.top_label), ("foreground", total.foreground)):
        assert list(result["reliability"][kind]) == ["pixels", "probability", "positives"]
        np.testing.assert_array_equal(list(result["reliability"][kind].values()), counts)


def test_intervals_of_one_image_are_its_values():
    image = counts_of(*random_maps(0))
    rows = [rows_of([0.5])[0] | pixel_metrics(image)]
    result = evaluate_set(rows, [image.coarse()], image, resamples=20)
    for metric in (result["calibration"] | result["errors"]).values():
        assert metric["low"] == pytest.approx(metric["value"]) == pytest.approx(metric["high"])


def test_confidence_intervals_have_their_nominal_coverage():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(100):
        dice = evaluate_set(rows_of(rng.beta(8, 2, 60).tolist()), resamples=300)["segmentation"]["dice"]
        inside += dice["low"] <= 0.8 <= dice["high"]
    assert 85 <= inside <= 100


def test_single_image_with_empty_masks():
    probs = torch.zeros(2, 4, 4)
    probs[0] = 1
    target = torch.zeros(4, 4, dtype=torch.long)
    counts = counts_of(probs, target)
    scores = ImageScores()
    scores.add(probs, entropy(probs), target)
    row = segmentation_scores(np.zeros((4, 4)), target.numpy()) | pixel_metrics(counts) | scores.scores()
    result = evaluate_set([row], [counts.coarse()], counts)
    assert result["segmentation"]["dice"]["value"] == 1
    assert result["errors"]["error_auroc"] == {"value": None, "low": None, "high": None}
    json.dumps(result, allow_nan=False)
    assert "undefined" in format_evaluation(result)
