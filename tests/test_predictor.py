"""Predictions at full size, block by block."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import lively_network, make_image
from tests.random_data import random_samples
from utils.checkpoint import TrainedModel
from utils.inference.maps import STATISTICS, full_size_maps, predict_classes
from utils.inference.overlaps import count_overlaps
from utils.inference.predictor import MapOptions, draw_samples, predict, predict_full_size
from utils.inference.samplers import MCDropout, Softmax
from utils.metrics.uncertainty import ImageScores
from utils.pipeline.outputs import make_greyscale_maps
from utils.runtime.errors import InputError


def test_predict_summarizes_the_samples():
    model, image = TrainedModel(lively_network(), (32, 32)), make_image(0, (40, 30))[0]
    sampler = MCDropout(num_samples=3).for_single_images()
    expected = full_size_maps(draw_samples(model, image, sampler, "a.jpg"), image.size)
    assert torch.equal(predict(model, image, sampler, "a.jpg").probs, expected.probs)
    assert torch.equal(predict(model, image).probs, predict(model, image, Softmax()).probs)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("target", [None, np.zeros((43, 50), np.uint8)])
def test_output_that_is_not_finite_is_refused(value: float, target: np.ndarray | None):
    samples = random_samples()
    samples[0].logits[2, 1, 3, 4] = value
    with pytest.raises(InputError, match="the network's output is not finite"):
        predict_full_size(samples, (50, 43), MapOptions(), target)


def test_pixels_are_counted_against_ground_truth_unless_only_the_mask_counts():
    target = np.zeros((43, 50), np.uint8)
    assert predict_full_size(random_samples(), (50, 43), MapOptions(), target).counts.pixels == 43 * 50
    assert predict_full_size(random_samples(), (50, 43), MapOptions(), None).counts is None
    assert predict_full_size(random_samples(), (50, 43), MapOptions(count_pixels=False), target).counts is None


def test_an_image_of_16_bits_is_refused():
    """Pillow would convert all of its values above 255 to white."""
    deep = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40))
    with pytest.raises(InputError, match="I;16, not 8 bits per channel"):
        predict(TrainedModel(lively_network(), (32, 32)), deep)


def test_output_of_a_single_image_that_is_not_finite_is_refused():
    model, image = TrainedModel(lively_network(), (32, 32)), make_image(0, (40, 30))[0]
    with torch.no_grad():
        model.network.outc.conv.bias[1] = float("inf")
    with pytest.raises(InputError, match="the network's output is not finite"):
        predict(model, image)


@pytest.mark.parametrize(("t", "c"), [(1, 2), (5, 2), (4, 3)])
def test_prediction_in_blocks_is_that_of_whole_maps(t: int, c: int):
    samples, size, max_values = random_samples(t, t, c), (50, 43), 700  # several blocks, the last one smaller
    maps = full_size_maps(samples, size)
    classes = predict_classes(maps.probs, 0.4)
    scores = ImageScores(count_overlaps(samples, size, 0.4) if t > 1 else None)
    scores.add(maps.probs, maps.predictive_entropy, classes)

    options = MapOptions(0.4, make_greyscale_maps, STATISTICS, keep=STATISTICS)
    prediction = predict_full_size(samples, size, options, max_values=max_values)
    assert np.array_equal(prediction.classes, classes.numpy())
    assert prediction.scores == pytest.approx(scores.scores())
    expected = make_greyscale_maps(maps)
    assert set(prediction.greyscale_maps) == set(expected)
    for suffix, greyscale_map in expected.items():
        assert abs(prediction.greyscale_maps[suffix].astype(int) - greyscale_map.numpy()).max() <= 1
    torch.testing.assert_close(prediction.maps.probs, maps.probs)
    torch.testing.assert_close(prediction.maps.std, maps.std, atol=1e-6, rtol=0)


def test_only_requested_maps_are_kept():
    samples, size = random_samples(), (50, 43)
    maps = predict_full_size(samples, size, MapOptions(keep=["predictive_entropy"]), max_values=700).maps
    torch.testing.assert_close(maps.predictive_entropy, full_size_maps(samples, size).predictive_entropy)
    assert (maps.std, maps.expected_entropy) == (None, None)
    prediction = predict_full_size(samples, size, MapOptions())
    assert (prediction.maps, prediction.greyscale_maps) == (None, {})
