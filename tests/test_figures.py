"""Pictures: the overlay by hand, and what a figure shows."""

import logging
import math
import operator
from functools import reduce
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

matplotlib.use("agg")

from tests.conftest import lively_network, make_picture
from utils.checkpoint import TrainedModel
from utils.figures import (
    Row,
    class_colour,
    draw_comparison,
    draw_passes,
    draw_predictions,
    draw_reliability,
    draw_risk_coverage,
    overlay,
    row,
    show_predictions,
)
from utils.metrics import SCORES, evaluate_set, pixel_counts
from utils.probability import ProbabilityMaps, Softmax, most_probable_class, predict
from utils.uncertainty import entropy


def test_overlay_tints_the_inside_and_draws_the_outline():
    image = np.full((5, 5, 3), 100, dtype=np.uint8)
    mask = np.zeros((5, 5), dtype=bool)
    mask[1:4, 1:4] = True
    drawn = overlay(image, mask, (0, 200, 0), opacity=0.4)
    assert drawn[0, 0].tolist() == [100, 100, 100]
    assert drawn[2, 2].tolist() == [60, 140, 60]  # 0.6 * 100 + 0.4 * colour
    assert drawn[1, 2].tolist() == [0, 200, 0]
    assert np.array_equal(overlay(image, np.zeros_like(mask), (0, 200, 0)), image)


def row_of(size: tuple[int, int], with_truth: bool = False) -> tuple[Row, ProbabilityMaps]:
    image, mask = make_picture(0, size)
    maps = predict(TrainedModel(lively_network(), (32, 32)), image, Softmax())
    truth = (np.asarray(mask) > 0).astype(np.uint8) if with_truth else None
    return row(image, most_probable_class(maps.probs), maps, truth, title="x.jpg"), maps


def pictures_of(figure: Figure) -> list[AxesImage]:
    return [ax.get_images()[0] for ax in figure.axes if ax.get_images()]


@pytest.mark.parametrize("size", [(90, 60), (2000, 1500)])
def test_prediction_figure(size: tuple[int, int]):
    one, maps = row_of(size)
    pictures = pictures_of(draw_predictions([one]))
    assert [p.get_cmap().name for p in pictures[2:]] == ["viridis", "inferno"]
    assert pictures[2].get_clim() == (0, 1)
    assert pictures[3].get_clim() == pytest.approx((0, math.log(2)))
    probability = np.asarray(pictures[2].get_array())
    assert max(probability.shape) <= 1024
    step = math.ceil(max(size) / 768)
    np.testing.assert_allclose(probability, maps.probs[1, ::step, ::step], atol=1e-6)


def test_a_truth_adds_its_overlay_and_the_errors():
    one, _ = row_of((90, 60), with_truth=True)
    one.classes = np.zeros_like(one.classes)
    one.classes[:30] = 1
    figure = draw_predictions([one, one])
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles[:3] == ["Image", "Truth", "Prediction"]
    assert titles[3].startswith("Errors")
    pictures = [np.asarray(p.get_array()).astype(int) for p in pictures_of(figure)]
    assert len(pictures) == 12
    _, true, predicted, errors = pictures[:4]
    image = one.image.astype(int)
    lesion, prediction = one.truth > 0, one.classes > 0
    assert np.array_equal((true != image).any(axis=2), lesion)
    assert np.array_equal((predicted != image).any(axis=2), prediction)
    coloured = np.ptp(errors, axis=2) > 0
    assert np.array_equal(coloured, lesion != prediction)
    missed, extra = errors[lesion & ~prediction], errors[prediction & ~lesion]
    assert (missed[:, 0] > missed[:, 2]).all()  # orange
    assert (extra[:, 2] > extra[:, 1]).all()  # purple


def test_several_classes_have_each_its_colour_and_a_legend():
    one, _ = row_of((90, 60), with_truth=True)
    one.n_classes = 3
    one.truth[30:] *= 2
    figure = draw_predictions([one])
    true = np.asarray(pictures_of(figure)[1].get_array())
    for k in (1, 2):
        inside = one.truth == k
        assert (true[inside] != one.image[inside]).any()
        tint = np.median(true[inside].astype(int) - one.image[inside], axis=0)
        assert np.argmax(tint) == np.argmax(np.array(class_colour(k)) - np.median(one.image[inside], axis=0))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["class 1", "class 2"]
    assert not draw_predictions([row_of((90, 60))[0]]).legends


def test_comparison_has_two_maps_of_each_method():
    one, _ = row_of((90, 60), with_truth=True)
    one.maps = {"a": one.maps[""], "b": one.maps[""]}
    figure = draw_comparison([one, one, one])
    assert len(pictures_of(figure)) == 3 * (2 + 2 * 2)


def results() -> dict:
    """Metrics of two sets of images, one better than the other."""
    made = {}
    for name, sharpness in (("good", 6.0), ("bad", 1.0)):
        generator = torch.Generator().manual_seed(0)
        rows, counts = [], []
        for i in range(5):
            logits = sharpness * torch.randn(2, 20, 20, generator=generator)
            truth = (logits + torch.randn(2, 20, 20, generator=generator)).argmax(dim=0)
            probs = logits.softmax(dim=0)
            counts.append(pixel_counts(probs, entropy(probs), truth))
            rows.append({**dict.fromkeys((*SCORES, "ece_top_label", "ece_foreground"), 0.1 * i + 0.4)})
            rows[-1] |= {"soft_dice_confidence": i, "mean_entropy": -i}
        made[name] = evaluate_set(rows, counts, reduce(operator.add, counts), resamples=10)
        made[name]["run"] = {"mask_values": [0, 255]}
    return made


def test_reliability_diagram_shows_each_bin():
    both = results()
    upper = draw_reliability(both).axes[0]
    assert [text.get_text().split(" (")[0] for text in upper.get_legend().get_texts()] == ["good", "bad"]
    for line, result in zip(upper.get_lines(), both.values(), strict=False):
        bins = {key: np.array(value) for key, value in result["reliability"]["top_label"].items()}
        used = bins["pixels"] > 0
        np.testing.assert_allclose(line.get_xdata(), bins["probability"][used] / bins["pixels"][used])
        np.testing.assert_allclose(line.get_ydata(), bins["hits"][used] / bins["pixels"][used])


def test_risk_coverage_and_passes_show_their_numbers():
    both = results()
    ax = draw_risk_coverage(both).axes[0]
    curve = both["good"]["risk_coverage"]["soft_dice_confidence"]
    np.testing.assert_allclose(ax.get_lines()[0].get_xydata(), np.stack([curve["coverage"], curve["risk"]], axis=1))
    figure = draw_passes({"ECE": ([1, 10], [0.3, 0.1]), "Dice": ([1, 10], [0.8, 0.9])})
    assert [ax.get_title() for ax in figure.axes] == ["ECE", "Dice"]
    assert figure.axes[1].get_lines()[0].get_ydata().tolist() == [0.8, 0.9]


def test_without_a_display_the_figure_is_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    show_predictions([row_of((90, 60))[0]], tmp_path / "f.png")
    assert "no display" in caplog.text
    with Image.open(tmp_path / "f.png") as picture:
        assert picture.width > 1000


def test_a_window_is_closed_once_it_was_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    seen = []
    monkeypatch.setattr(plt, "get_backend", lambda: "TkAgg")
    monkeypatch.setattr(plt, "show", lambda: seen.extend(plt.get_fignums()))
    show_predictions([row_of((90, 60))[0]], tmp_path / "f.png")
    assert len(seen) == 1
    assert plt.get_fignums() == []
    assert list(tmp_path.iterdir()) == []
