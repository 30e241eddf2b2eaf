"""Pictures: the overlay by hand, and what a figure shows."""

import logging
import math
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

matplotlib.use("agg")

from tests.conftest import lively_network, make_picture
from utils.checkpoint import TrainedModel
from utils.figures import draw_prediction, overlay, show_figure
from utils.probability import Softmax, most_probable_class, predict


def test_overlay_tints_the_inside_and_draws_the_outline():
    image = np.full((5, 5, 3), 100, dtype=np.uint8)
    mask = np.zeros((5, 5), dtype=bool)
    mask[1:4, 1:4] = True
    drawn = overlay(image, mask, (0, 200, 0), opacity=0.4)
    assert drawn[0, 0].tolist() == [100, 100, 100]
    assert drawn[2, 2].tolist() == [60, 140, 60]  # 0.6 * 100 + 0.4 * colour
    assert drawn[1, 2].tolist() == [0, 200, 0]
    assert np.array_equal(overlay(image, np.zeros_like(mask), (0, 200, 0)), image)


@pytest.mark.parametrize("size", [(90, 60), (2000, 1500)])
def test_prediction_figure(size: tuple[int, int]):
    image = make_picture(0, size)[0]
    maps = predict(TrainedModel(lively_network(), (32, 32)), image, Softmax())
    figure = draw_prediction(image, most_probable_class(maps.probs), maps, title="x.jpg")
    pictures = [ax.get_images()[0] for ax in figure.axes if ax.get_images()]
    assert [p.get_cmap().name for p in pictures[2:]] == ["viridis", "inferno"]
    assert pictures[2].get_clim() == (0, 1)
    assert pictures[3].get_clim() == pytest.approx((0, math.log(2)))
    probability = np.asarray(pictures[2].get_array())
    assert max(probability.shape) <= 1024
    step = math.ceil(max(size) / 768)
    np.testing.assert_allclose(probability, maps.probs[1, ::step, ::step], atol=1e-6)


def test_without_a_display_the_figure_is_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    image = make_picture(0, (90, 60))[0]
    maps = predict(TrainedModel(lively_network(), (32, 32)), image, Softmax())
    show_figure(draw_prediction(image, most_probable_class(maps.probs), maps), tmp_path / "f.png")
    assert "no display" in caplog.text
    with Image.open(tmp_path / "f.png") as picture:
        assert picture.width > 1000
