"""All metrics of a labelled set of images."""

import json
import math
import operator
from functools import reduce

import numpy as np
import pytest
import torch

from tests.random_data import counts_of, pixel_metrics, random_maps
from utils.metrics.evaluation import MIN_IMAGES_OF_INTERVAL, evaluate_set, format_evaluation
from utils.metrics.risk_control import REGION_LOSS_TITLES
from utils.metrics.segmentation import CHALLENGE_SCORES, segmentation_scores
from utils.metrics.uncertainty import ImageScores, entropy


def rows_of(dices: list[float]) -> list[dict[str, float]]:
    return [
        dict.fromkeys(CHALLENGE_SCORES, dice)
        | {"soft_dice_confidence": dice, "pairwise_dice": None, "mean_entropy": dice}
        for dice in dices
    ]


def test_evaluate_set():
    rows = rows_of(3 * [0.5, 0.75, 1.0, 1.0])
    result = evaluate_set(rows)
    dice = result["segmentation"]["dice"]
    assert (dice["value"], dice["median"]) == (0.8125, 0.875)
    assert 0.5 <= dice["low"] < 0.8125 < dice["high"] <= 1
    assert result["selective"]["soft_dice_confidence"]["e_aurc"]["value"] == pytest.approx(0)
    assert result["selective"]["mean_entropy"]["aurc"]["value"] > result["selective"]["random"]["aurc"]
    ranked, oracle = result["selective"]["soft_dice_confidence"], result["selective"]["oracle"]
    assert oracle == pytest.approx({name: ranked[name]["value"] for name in ("aurc", "augrc")})
    assert result["selective"]["random"] == pytest.approx({"aurc": 0.1875, "augrc": 0.1875 * (1 + 1 / 12) / 2})
    assert "pairwise_dice" not in result["selective"]
    assert "without" not in result
    assert "Dice         mean 0.8125   median 0.8750   95 % CI of the mean" in format_evaluation(result)
    assert evaluate_set(rows) == result
    few = evaluate_set(rows[:4])
    assert few["risk_coverage"]["soft_dice_confidence"]["risk"] == pytest.approx([0, 0, 0.25 / 3, 0.1875])


def test_images_without_a_lesion_are_scored_apart():
    """Their Dice, 1 or 0 by convention, is in no mean, interval or ranking; other scores are."""
    lesions = rows_of(6 * [0.5, 0.75])
    healthy = [
        row | {"sensitivity": math.nan, "specificity": 0.9, "soft_dice_confidence": 0.0}
        for row in rows_of([1.0, 0.0, 1.0])
    ]
    alone, result = evaluate_set(lesions), evaluate_set([*lesions, *healthy])
    assert (result["images"], result["without"]) == (15, {"lesion": {"images": 3, "false_alarm_rate": 1 / 3}})
    for name in ("dice", "jaccard", "sensitivity"):
        one = result["segmentation"][name]
        assert (one["value"], one["median"]) == (0.625, 0.625)
        assert 0.5 < one["low"] < 0.625 < one["high"] < 0.75
    assert result["segmentation"]["specificity"]["value"] == pytest.approx((12 * 0.625 + 3 * 0.9) / 15)
    assert result["risk_coverage"] == alone["risk_coverage"]
    for name, of_lesions in alone["selective"].items():
        for metric, value in of_lesions.items():
            of_all = result["selective"][name][metric]
            assert of_all == value if name in ("oracle", "random") else of_all["value"] == value["value"]
    assert "Without a lesion: 3 images, 1 of them with something marked" in format_evaluation(result)
    none = evaluate_set(healthy[1:2])
    assert (none["segmentation"]["dice"]["value"], none["selective"], none["risk_coverage"]) == (None, {}, {})
    assert "Dice         undefined\n" in format_evaluation(none)
    assert "Without a lesion: 1 image, with something marked" in format_evaluation(none)
    json.dumps(none, allow_nan=False)


def test_images_without_a_class_are_scored_apart():
    target, predicted = np.zeros((2, 4, 3, 3), int)
    target[0, 0], target[1, 0, 0], target[1, 1] = 1, 1, 2  # both classes in the second image, none in the last two
    predicted[0, 0, 0], predicted[0, 1], predicted[1, 0, 0], predicted[1, 1, 0], predicted[2] = 1, 2, 1, 2, 1
    common = {"soft_dice_confidence": 0.5, "pairwise_dice": None, "mean_entropy": 0.1}
    scores = [segmentation_scores(p, t, 3) | common for p, t in zip(predicted, target, strict=True)]
    result = evaluate_set(scores)
    dice = [1 / 2, 1.0, 1 / 2]  # of class 1 in the first two images, and of class 2 in the second
    means = {"dice": np.mean([dice[0], np.mean(dice[1:])]), "dice_c1": np.mean(dice[:2]), "dice_c2": dice[2]}
    assert {name: result["segmentation"][name]["value"] for name in means} == pytest.approx(means)
    assert result["without"] == {
        "lesion": {"images": 2, "false_alarm_rate": 1 / 2},
        "class_1": {"images": 2, "false_alarm_rate": 1 / 2},
        "class_2": {"images": 3, "false_alarm_rate": 1 / 3},
    }
    text = format_evaluation(result)
    assert "Without class 2: 3 images, 1 of them with some of it marked" in text
    assert len({line.index(" mean ") for line in text.splitlines() if " median " in line}) == 1  # in one column


@pytest.mark.parametrize("n", [MIN_IMAGES_OF_INTERVAL - 1, MIN_IMAGES_OF_INTERVAL])
def test_few_images_have_no_interval(n: int):
    images = [counts_of(*random_maps(seed)) for seed in range(n)]
    rows = [row | pixel_metrics(image) for row, image in zip(rows_of([0.5] * (n - 1) + [0.75]), images, strict=True)]
    rows = [row | dict.fromkeys(("area", "outer_area", "inner_area", *REGION_LOSS_TITLES), 0.5) for row in rows]
    result = evaluate_set(rows, [image.coarse() for image in images], reduce(operator.add, images), resamples=20)
    ranked = result["selective"]["mean_entropy"]
    groups = (result["segmentation"], result["calibration"], result["errors"], result["guarantee"], ranked)
    known = {one["low"] is not None for group in groups for one in group.values()}
    assert known == {n >= MIN_IMAGES_OF_INTERVAL}
    text = format_evaluation(result)
    assert ("95 % CI of the mean" in text) == (n >= MIN_IMAGES_OF_INTERVAL)
    assert ("No 95 % CI of fewer than 10 images" in text) == (n < MIN_IMAGES_OF_INTERVAL)


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


def test_intervals_of_equal_images_are_their_values():
    image, n = counts_of(*random_maps(0)), MIN_IMAGES_OF_INTERVAL
    rows = [row | pixel_metrics(image) for row in rows_of(n * [0.5])]
    result = evaluate_set(rows, n * [image.coarse()], reduce(operator.add, n * [image]), resamples=20)
    for metric in (result["calibration"] | result["errors"]).values():
        assert metric["low"] == pytest.approx(metric["value"]) == pytest.approx(metric["high"])


def test_single_image_with_empty_masks():
    probs = torch.zeros(2, 4, 4)
    probs[0] = 1
    target = torch.zeros(4, 4, dtype=torch.long)
    counts = counts_of(probs, target)
    scores = ImageScores()
    scores.add(probs, entropy(probs), target)
    row = segmentation_scores(np.zeros((4, 4)), target.numpy()) | pixel_metrics(counts) | scores.scores()
    result = evaluate_set([row], [counts.coarse()], counts)
    assert result["segmentation"]["dice"]["value"] is None
    assert result["without"] == {"lesion": {"images": 1, "false_alarm_rate": 0}}
    assert "Without a lesion: 1 image, with nothing marked" in format_evaluation(result)
    assert result["errors"]["error_auroc"] == {"value": None, "low": None, "high": None}
    json.dumps(result, allow_nan=False)
    assert "undefined" in format_evaluation(result)


def test_intervals_are_those_of_resampled_images():
    """Of the NLL, a mean over pixels of which each image has as many; those of the rankings are not empty."""
    images = [counts_of(*random_maps(seed)) for seed in range(12)]
    rows = rows_of(np.linspace(0.3, 0.9, 12).tolist())
    rows = [row | pixel_metrics(one) for row, one in zip(rows, images, strict=True)]
    result = evaluate_set(rows, [one.coarse() for one in images], reduce(operator.add, images))
    drawn = np.random.default_rng(0).multinomial(12, [1 / 12] * 12, size=1000)
    pixels = sum(int(one.pixels) for one in images)
    expected = np.percentile(drawn @ [float(one.log_loss) for one in images] / pixels, [2.5, 97.5])
    nll = result["calibration"]["nll"]
    assert [nll["low"], nll["high"]] == pytest.approx(expected.tolist(), rel=1e-6)
    for metric in result["selective"]["mean_entropy"].values():
        assert metric["low"] < metric["value"] < metric["high"]
