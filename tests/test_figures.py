"""Figures of predictions: the tints by hand, what the panels show, and where everything is."""

import itertools
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

matplotlib.use("agg")

from tests.conftest import lively_network, make_image
from utils import IGNORED_CLASS
from utils.checkpoint import TrainedModel
from utils.figures.grid import Column, draw_grid, save_figure
from utils.figures.palette import FALSE_NEGATIVE, FALSE_POSITIVE, IGNORED, class_colour
from utils.figures.predictions import (
    FigureRow,
    draw_comparison,
    draw_predictions,
    prediction_row,
    show_predictions,
    tint_classes,
    tint_errors,
    tint_region,
)
from utils.inference.maps import ProbabilityMaps, predict_classes
from utils.inference.predictor import predict
from utils.inference.samplers import Softmax

METHODS = ("softmax", "MC dropout, 20 passes", "test-time augmentation")
CAPTION = (
    "ISIC_0000000.jpg  ·  Dice 0.912, Jaccard 0.838  ·  soft Dice confidence 0.923  ·  pairwise Dice 0.945  ·  "
    "mean area 12345 ± 123 pixels  ·  mean entropy 0.123 nats"
)


def row_and_maps(
    size: tuple[int, int] = (90, 60), labelled: bool = False, caption: str = "x.jpg"
) -> tuple[FigureRow, ProbabilityMaps]:
    image, mask = make_image(0, size)
    maps = predict(TrainedModel(lively_network(), (32, 32)), image, Softmax())
    target = (np.asarray(mask) > 0).astype(np.uint8) if labelled else None
    return prediction_row(image, predict_classes(maps.probs).numpy(), maps, target, caption), maps


def random_row(
    n_classes: int = 2, methods: Sequence[str] = ("",), size: tuple[int, int] = (90, 60), caption: str = "x.jpg"
) -> FigureRow:
    rng = np.random.default_rng(0)
    width, height = size
    shape = (height, width)
    target, classes = rng.integers(0, n_classes, (2, *shape), dtype=np.uint8)
    maps = {method: (rng.random(shape), rng.random(shape) * math.log(n_classes)) for method in methods}
    return FigureRow(rng.integers(0, 256, (*shape, 3), dtype=np.uint8), target, maps, classes, n_classes, caption)


# -- what a figure consists of


def panels_of(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.axes if ax.get_images()]


def images_of(figure: Figure) -> list[AxesImage]:
    return [ax.get_images()[0] for ax in panels_of(figure)]


def colour_bars_of(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.axes if not ax.get_images()]


def texts_of(figure: Figure, *contents: str) -> list[Text]:
    return [text for text in figure.texts if text.get_text() in contents]


def legends_of(figure: Figure) -> list[list[str]]:
    return [[text.get_text() for text in legend.get_texts()] for legend in figure.legends]


def box_of(artist: Axes | Text) -> Bbox:
    """What an artist covers, with the ticks and labels of axes, in figure coordinates."""
    figure = artist.get_figure(root=True)
    renderer = FigureCanvasAgg(figure).get_renderer()
    extent = artist.get_tightbbox(renderer) if isinstance(artist, Axes) else artist.get_window_extent(renderer)
    return extent.transformed(figure.transFigure.inverted())


# -- tints


def test_tint_region():
    image = np.full((5, 5, 3), 100, dtype=np.uint8)
    region = np.zeros((5, 5), dtype=bool)
    region[1:4, 1:4] = True
    tinted = tint_region(image, region, (0, 200, 0), opacity=0.4)
    assert tinted[0, 0].tolist() == [100, 100, 100]
    assert tinted[2, 2].tolist() == [60, 140, 60]  # 0.6 * 100 + 0.4 * colour
    assert tinted[1, 2].tolist() == [0, 200, 0]  # the outline
    assert np.array_equal(tint_region(image, np.zeros_like(region), (0, 200, 0)), image)


def test_width_of_an_outline():
    region = np.zeros((7, 7), dtype=bool)
    region[1:6, :6] = True  # up to the left border, where it is not outlined
    outlined = tint_region(np.zeros((7, 7, 3), dtype=np.uint8), region, (0, 200, 0), opacity=0, width=2)[..., 1] == 200
    region[3, :4] = False
    assert np.array_equal(outlined, region)


def test_tint_classes():
    image = np.full((3, 9, 3), 100, dtype=np.uint8)
    classes = np.repeat([[0, 1, 2]], 3, axis=0).repeat(3, axis=1)
    tinted = tint_classes(image, classes, 3, (1, 2, 3))
    assert np.array_equal(tinted[:, :3], image[:, :3])
    for k in (1, 2):
        assert tinted[1, 3 * k].tolist() == list(class_colour(k))  # the outline
    two = tint_classes(image, np.minimum(classes, 1), 2, (1, 2, 3))
    assert two[1, 3].tolist() == [1, 2, 3]


def test_tint_errors():
    image = np.full((5, 20, 3), (90, 100, 110), dtype=np.uint8)
    target = np.repeat([[0, 1, 0, 1]], 5, axis=0).repeat(5, axis=1)
    classes = np.repeat([[0, 0, 1, 1]], 5, axis=0).repeat(5, axis=1)
    tinted = tint_errors(image, classes, target)
    for column, colour in ((5, FALSE_NEGATIVE), (10, FALSE_POSITIVE)):
        assert tinted[2, column].tolist() == list(colour)  # the outline
        assert tinted[2, column + 2].tolist() == np.round(0.25 * 100 + 0.75 * np.array(colour)).astype(int).tolist()
    for column in (2, 17):  # correct background and foreground
        assert tinted[2, column].tolist() == [100, 100, 100]


def test_wrong_foreground_class_is_a_false_negative():
    image = np.full((5, 5, 3), 100, dtype=np.uint8)
    tinted = tint_errors(image, np.full((5, 5), 1), np.full((5, 5), 2))
    assert np.array_equal(tinted, tint_errors(image, np.zeros((5, 5)), np.ones((5, 5))))


# -- what the panels show


@pytest.mark.parametrize("size", [(90, 60), (2000, 1500)])
def test_prediction_figure(size: tuple[int, int]):
    row, maps = row_and_maps(size)
    images = images_of(draw_predictions([row]))
    assert [image.get_cmap().name for image in images[2:]] == ["viridis", "inferno"]
    assert images[2].get_clim() == (0, 1)
    assert images[3].get_clim() == pytest.approx((0, math.log(2)))
    probability = np.asarray(images[2].get_array())
    assert max(probability.shape) <= 1024
    step = math.ceil(max(size) / 768)
    np.testing.assert_allclose(probability, maps.probs[1, ::step, ::step], atol=1e-6)
    np.testing.assert_allclose(images[3].get_array(), maps.predictive_entropy[::step, ::step], atol=1e-6)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_maps_have_fixed_limits(n_classes: int):
    images = images_of(draw_comparison([random_row(n_classes, METHODS)] * 2))
    maps = [image for image in images if np.asarray(image.get_array()).ndim == 2]
    assert len(maps) == 2 * 2 * 3
    for probability, entropy in zip(maps[::2], maps[1::2], strict=True):
        assert (probability.get_cmap().name, entropy.get_cmap().name) == ("viridis", "inferno")
        assert probability.get_clim() == (0, 1)
        assert entropy.get_clim() == pytest.approx((0, math.log(n_classes)))


def test_ground_truth_adds_two_panels():
    row, _ = row_and_maps(labelled=True)
    row.classes = np.zeros_like(row.classes)
    row.classes[:30] = 1
    figure = draw_predictions([row, row])
    titles = ["Image", "Ground truth", "Prediction", "Errors", "Probability", "Entropy"]
    assert [text.get_text() for text in texts_of(figure, *titles)] == titles
    panels = [np.asarray(image.get_array()).astype(int) for image in images_of(figure)]
    assert len(panels) == 12
    image, target, prediction, errors = panels[:4]
    assert np.array_equal(image, row.image)
    actual, predicted = row.target > 0, row.classes > 0
    assert np.array_equal((target != image).any(axis=2), actual)
    assert np.array_equal((prediction != image).any(axis=2), predicted)
    coloured = np.ptp(errors, axis=2) > 0
    assert np.array_equal(coloured, actual != predicted)
    assert np.array_equal(errors, tint_errors(row.image, row.classes, row.target))
    false_negatives, false_positives = errors[actual & ~predicted], errors[predicted & ~actual]
    assert (false_negatives[:, 0] > false_negatives[:, 2]).all()  # orange
    assert (false_positives[:, 2] > false_positives[:, 1]).all()  # blue
    assert legends_of(figure) == [["false negatives", "false positives"]]
    colours = [patch.get_facecolor()[:3] for patch in figure.legends[0].get_patches()]
    np.testing.assert_allclose(colours, np.array([FALSE_NEGATIVE, FALSE_POSITIVE]) / 255)


@pytest.mark.parametrize("first", [True, False])
def test_rows_without_ground_truth_among_others(first: bool):
    rows = [random_row(), random_row()]
    rows[first].target = None
    panels = [np.asarray(image.get_array()) for image in images_of(draw_predictions(rows))]
    assert len(panels) == 12
    target, errors = panels[6 * first + 1], panels[6 * first + 3]
    assert target.min() == errors.min() == 255


def test_each_class_has_a_colour_of_its_own():
    colours = np.array([class_colour(k) for k in range(1, 256)])
    assert len(np.unique(colours, axis=0)) == 255
    distances = np.linalg.norm(colours[:20, None] - colours[None, :20], axis=2)
    assert distances[~np.eye(20, dtype=bool)].min() > 30


def test_several_classes_have_colours_and_a_legend():
    row, _ = row_and_maps(labelled=True)
    row.n_classes = 3
    row.target[30:] *= 2
    figure = draw_predictions([row])
    target = np.asarray(images_of(figure)[1].get_array())
    for k in (1, 2):
        inside = row.target == k
        assert (target[inside] != row.image[inside]).any()
        tint = np.median(target[inside].astype(int) - row.image[inside], axis=0)
        assert np.argmax(tint) == np.argmax(np.array(class_colour(k)) - np.median(row.image[inside], axis=0))
    assert legends_of(figure) == [["class 1", "class 2"], ["false negatives", "false positives"]]
    colours = [patch.get_facecolor()[:3] for patch in figure.legends[0].get_patches()]
    np.testing.assert_allclose(colours, np.array([class_colour(1), class_colour(2)]) / 255)
    of_errors = {FALSE_NEGATIVE, FALSE_POSITIVE}
    assert not of_errors & {class_colour(k) for k in range(1, 6)}
    assert legends_of(draw_comparison([row])) == [["class 1", "class 2"]]
    assert texts_of(figure, "Foreground probability")
    assert texts_of(draw_comparison([row], {"": "Probability, class 2"}), "Probability, class 2")
    assert not draw_predictions([row_and_maps()[0]]).legends


@pytest.mark.parametrize("n_classes", [2, 3])
def test_ignored_pixels_are_grey(n_classes: int):
    row = random_row(n_classes)
    row.target[:4] = IGNORED_CLASS
    row.classes[:4] = 1  # which is no error there
    for figure, columns in ((draw_predictions([row]), (1, 3)), (draw_comparison([row]), (1,))):
        for column in columns:
            panel = np.asarray(images_of(figure)[column].get_array())
            grey = row.image.mean(axis=2, keepdims=True) if column == 3 else row.image
            assert abs(panel[:2] - (0.25 * grey[:2] + 0.75 * np.array(IGNORED))).max() <= 1
        assert "ignored" in itertools.chain(*legends_of(figure))
    assert "ignored" not in itertools.chain(*legends_of(draw_predictions([random_row(n_classes)])))


def test_comparison_has_two_maps_of_each_method():
    row, _ = row_and_maps(labelled=True)
    row.maps = {"a": row.maps[""], "b": row.maps[""]}
    figure = draw_comparison([row, row, row])
    assert len(images_of(figure)) == 3 * (2 + 2 * 2)


# -- where everything is


@pytest.mark.parametrize("methods", [METHODS[:1], METHODS])
def test_titles_and_headings_are_above_all_panels(methods: Sequence[str]):
    figure = draw_comparison([random_row(methods=methods)] * 3)
    panels = [box_of(panel) for panel in panels_of(figure)]
    titles = texts_of(figure, "Image", "Ground truth", "Probability", "Entropy")
    assert len(titles) == 2 + 2 * len(methods)
    for panel, title in zip(panels, titles, strict=False):  # the first row
        box = box_of(title)
        assert box.y0 >= max(p.y1 for p in panels)
        assert (box.x0 + box.x1) / 2 == pytest.approx((panel.x0 + panel.x1) / 2, abs=0.005)
    for i, method in enumerate(methods):
        (heading,) = texts_of(figure, method)  # once over its two columns
        box, left, right = box_of(heading), panels[2 + 2 * i], panels[3 + 2 * i]
        assert box.y0 >= max(box_of(title).y1 for title in titles)
        assert (box.x0 + box.x1) / 2 == pytest.approx((left.x0 + right.x1) / 2, abs=0.005)


def test_unnamed_methods_have_no_heading():
    figure = draw_predictions([random_row()])
    titles = ["Image", "Ground truth", "Prediction", "Errors", "Probability", "Entropy"]
    assert [text.get_text() for text in figure.texts if text.get_text()] == [*titles, "x.jpg"]


def test_captions_are_below_their_rows():
    names = [f"{name}.jpg" for name in "abc"]
    sizes = [(90, 60), (60, 90), (200, 60)]
    figure = draw_predictions([random_row(caption=n, size=s) for n, s in zip(names, sizes, strict=True)])
    rows = np.array([box_of(panel).extents for panel in panels_of(figure)]).reshape(3, 6, 4)  # x0, y0, x1, y1
    captions = [box_of(text) for text in texts_of(figure, *names)]
    for i, caption in enumerate(captions):
        assert caption.y1 <= rows[i, :, 1].min()
        if i < 2:
            assert caption.y0 >= rows[i + 1, :, 3].max()
        else:
            assert caption.y0 >= max(box_of(bar).y1 for bar in colour_bars_of(figure))


@pytest.mark.parametrize("methods", [METHODS[:1], METHODS])
def test_one_colour_bar_per_kind_of_map(methods: Sequence[str]):
    figure = draw_comparison([random_row(methods=methods)] * 2)
    panels = [box_of(panel) for panel in panels_of(figure)]
    bars = colour_bars_of(figure)
    assert [bar.get_xlabel() for bar in bars] == ["Probability", "Entropy (nats)"]
    for bar, column, limit in zip(bars, panels[2:4], (1, math.log(2)), strict=True):
        box = box_of(bar)
        assert box.y1 <= min(p.y0 for p in panels)
        assert column.x0 <= box.x0 < box.x1 <= column.x1
        assert bar.get_xlim() == pytest.approx((0, limit))


def test_figure_without_maps_has_no_colour_bar():
    figure = draw_grid([Column("Image")], [[np.zeros((5, 5, 3), dtype=np.uint8)]], [""])
    assert not colour_bars_of(figure)


@pytest.mark.parametrize(
    ("n_classes", "size"), [(2, (90, 60)), (3, (60, 90)), (4, (900, 30)), (7, (30, 900)), (7, (90, 60))]
)
def test_nothing_overlaps(n_classes: int, size: tuple[int, int]):
    rows = [random_row(n_classes, size=size, caption=caption) for caption in ("x.jpg", CAPTION, 3 * CAPTION)]
    comparison = [random_row(n_classes, METHODS, size)] * 2
    for figure in (draw_predictions(rows), draw_comparison(comparison)):
        texts = [text for text in figure.texts if text.get_text()]
        artists = [*figure.axes, *texts, *figure.legends]
        boxes = [box_of(artist) for artist in artists]
        for box in boxes:
            assert -1e-3 <= box.x0 <= box.x1 <= 1 + 1e-3
            assert -1e-3 <= box.y0 <= box.y1 <= 1 + 1e-3
        for a, b in itertools.combinations(boxes, 2):
            intersection = Bbox.intersection(a, b)
            assert intersection is None or min(intersection.width, intersection.height) < 1e-3


@pytest.mark.parametrize("size", [(900, 30), (30, 900), (90, 60)])
def test_images_keep_their_aspect_ratio(size: tuple[int, int]):
    figure = draw_predictions([random_row(size=size)])
    FigureCanvasAgg(figure).draw()
    for panel in panels_of(figure):
        extent = panel.get_window_extent()
        assert extent.width / extent.height == pytest.approx(size[0] / size[1], rel=0.02)
    assert 0.15 < figure.get_figheight() / figure.get_figwidth() < 1


@pytest.mark.parametrize("size", [(5000, 3), (2, 4000)])
def test_extremely_elongated_images_are_seen(size: tuple[int, int], tmp_path: Path):
    """As strips of some pixels; in their proportions they would be thinner than one."""
    figure = draw_predictions([random_row(size=size)])
    save_figure(figure, tmp_path / "x.png")
    for panel in panels_of(figure):
        extent = panel.get_window_extent()
        assert min(extent.width, extent.height) > 4
        assert max(extent.width, extent.height) / min(extent.width, extent.height) == pytest.approx(32, rel=0.02)


def test_caption_with_dollar_signs_is_literal():
    name = r"cost $5, \frac$ and $x_1$.jpg"
    figure = draw_predictions([random_row(caption=name)])
    (caption,) = texts_of(figure, name)
    assert not caption.get_parse_math()
    FigureCanvasAgg(figure).draw()  # as a formula it would be an error
    longer = draw_predictions([random_row(caption=name.replace("$", "S"))])
    assert box_of(caption).width == pytest.approx(box_of(longer.texts[-1]).width, abs=0.01)


@pytest.mark.parametrize(
    "text", [CAPTION, 3 * CAPTION, "lesion_of_patient_7_" * 25], ids=["scores", "long", "one word"]
)
def test_long_captions_are_wrapped(text: str):
    figure = draw_predictions([random_row(caption=text)])
    caption = figure.texts[-1]
    lines = caption.get_text().split("\n")
    assert "".join("".join(lines).split()) == "".join(text.split())  # nothing is lost
    box, panels = box_of(caption), [box_of(panel) for panel in panels_of(figure)]
    assert len(lines) > 1 or text == CAPTION
    assert panels[0].x0 - 0.005 <= box.x0 < box.x1 <= 1
    assert box.y1 <= min(panel.y0 for panel in panels)


# -- to a file, to a window


def test_saved_figure_is_readable(tmp_path: Path):
    figure = draw_predictions([random_row(caption=CAPTION)] * 3)
    save_figure(figure, tmp_path / "f.png")
    with Image.open(tmp_path / "f.png") as image:
        width, height = image.size
        assert image.mode == "RGB"
        assert len(np.unique(np.asarray(image.convert("L")))) > 100
    assert 1200 <= width <= 2000
    assert 500 <= height <= width
    assert list(tmp_path.iterdir()) == [tmp_path / "f.png"]
    panels = [box_of(panel).width * width for panel in panels_of(figure)]
    assert min(panels) >= 200
    labels = [text for bar in colour_bars_of(figure) for text in (*bar.get_xticklabels(), bar.xaxis.label)]
    labels += [text for legend in figure.legends for text in legend.get_texts()]
    pixels_per_point = width / figure.get_figwidth() / 72
    for text in (*figure.texts, *labels):
        assert text.get_fontsize() * pixels_per_point >= 14  # pixels


def test_save_figure_uses_dpi(tmp_path: Path):
    for dpi in (50, 100):
        figure = draw_predictions([random_row()])
        save_figure(figure, tmp_path / "f.png", dpi=dpi)
        with Image.open(tmp_path / "f.png") as image:
            assert image.width == pytest.approx(dpi * figure.get_figwidth(), abs=1)


def test_without_display_the_figure_is_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    show_predictions([row_and_maps()[0]], tmp_path / "f.png")
    assert "There is no display" in caplog.text
    assert str(tmp_path / "f.png") in caplog.text
    with Image.open(tmp_path / "f.png") as image:
        assert image.width > 900


def test_window_is_closed_after_it_was_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    shown = []
    monkeypatch.setattr(plt, "get_backend", lambda: "TkAgg")
    monkeypatch.setattr(plt, "show", lambda: shown.extend(plt.get_fignums()))
    show_predictions([row_and_maps()[0]], tmp_path / "f.png")
    assert len(shown) == 1
    assert plt.get_fignums() == []
    assert list(tmp_path.iterdir()) == []
