"""Figures of numbers: what their curves show."""

import operator
from functools import reduce

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D

matplotlib.use("agg")

from tests.random_data import counts_of
from utils.figures.curves import draw_passes, draw_reliability, draw_risk_coverage
from utils.metrics.evaluation import evaluate_set
from utils.metrics.segmentation import CHALLENGE_SCORES


@pytest.fixture(scope="module")
def results() -> dict[str, dict]:
    """Metrics of two methods, one better than the other."""
    results = {}
    for name, sharpness in (("good", 6.0), ("bad", 1.0)):
        generator = torch.Generator().manual_seed(0)
        rows, counts = [], []
        for i in range(5):
            logits = sharpness * torch.randn(2, 20, 20, generator=generator)
            target = (logits + torch.randn(2, 20, 20, generator=generator)).argmax(dim=0)
            counts.append(counts_of(logits.softmax(dim=0), target))
            rows.append(dict.fromkeys((*CHALLENGE_SCORES, "ece_top_label", "ece_foreground"), 0.1 * i + 0.4))
            rows[-1] |= {"soft_dice_confidence": i, "mean_entropy": -i}
        results[name] = evaluate_set(rows, counts, reduce(operator.add, counts), resamples=10)
        results[name]["run"] = {"mask_values": [0, 255]}
    return results


def labelled_lines(ax: Axes) -> list[Line2D]:
    """The lines with an entry in the legend."""
    labels = {text.get_text() for text in ax.get_legend().get_texts()}
    return [line for line in ax.get_lines() if line.get_label() in labels]


@pytest.mark.parametrize(("column", "kind"), [(0, "top_label"), (1, "foreground")])
def test_reliability_diagram_shows_each_bin(results: dict[str, dict], column: int, kind: str):
    upper, lower = draw_reliability(results).axes[column::2]
    assert [text.get_text().split(" (")[0] for text in upper.get_legend().get_texts()] == ["good", "bad"]
    for line, result in zip(labelled_lines(upper), results.values(), strict=True):
        bins = {key: np.array(value) for key, value in result["reliability"][kind].items()}
        used = bins["pixels"] > 0
        np.testing.assert_allclose(line.get_xdata(), bins["probability"][used] / bins["pixels"][used])
        np.testing.assert_allclose(line.get_ydata(), bins["positives"][used] / bins["pixels"][used])
        assert line.get_label().endswith(f"(ECE {result['calibration'][f'ece_{kind}']['value']:.3f})")
    FigureCanvasAgg(upper.figure).draw()
    assert upper.get_legend().get_window_extent().y0 >= upper.get_window_extent().y1  # it covers no point
    (diagonal,) = [line for line in upper.get_lines() if line not in labelled_lines(upper)]
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    for stairs, result in zip(lower.patches, results.values(), strict=True):
        n = np.array(result["reliability"][kind]["pixels"])
        np.testing.assert_allclose(stairs.get_data().values, n / n.sum())


def test_risk_coverage_curves(results: dict[str, dict]):
    ax = draw_risk_coverage(results).axes[0]
    for line, result in zip(labelled_lines(ax), results.values(), strict=True):
        curve, selective = result["risk_coverage"]["soft_dice_confidence"], result["selective"]
        np.testing.assert_allclose(line.get_xydata(), np.stack([curve["coverage"], curve["risk"]], axis=1))
        aurc = selective["soft_dice_confidence"]["aurc"]["value"]
        assert f"AURC {aurc:.3f}, oracle {selective['oracle']['aurc']:.3f}" in line.get_label()
    random = [line.get_ydata()[0] for line in ax.get_lines() if line not in labelled_lines(ax)]
    assert random == [result["selective"]["random"]["aurc"] for result in results.values()]


def test_methods_differ_in_colour_marker_and_dashes(results: dict[str, dict]):
    six = {f"{name} {i}": result for i in range(3) for name, result in results.items()}
    for figure in (draw_reliability(six), draw_risk_coverage(six)):
        lines = labelled_lines(figure.axes[0])
        assert len(lines) == 6
        for style in (Line2D.get_color, Line2D.get_marker):
            assert len({style(line) for line in lines}) == 6


def test_passes():
    figure = draw_passes({"ECE": ([1, 10], [0.3, 0.1]), "Dice": ([1, 10], [0.8, 0.9])})
    assert [ax.get_title() for ax in figure.axes] == ["ECE", "Dice"]
    assert figure.axes[1].get_lines()[0].get_xdata().tolist() == [1, 10]
    assert figure.axes[1].get_lines()[0].get_ydata().tolist() == [0.8, 0.9]
