"""Masks: reading and drawing them, and which mask value is which class."""

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from utils.data.images import save_png
from utils.data.masks import (
    RGB_OFFSET,
    classes_of_values,
    format_mask_value,
    infer_mask_values,
    mask_to_classes,
    mask_to_image,
    read_mask,
)
from utils.runtime.errors import InputError

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [90, 80, 70]]], dtype=np.uint8)
RED = RGB_OFFSET + 0xFF0000


def saved(image: Image.Image, path: Path) -> Path:
    image.save(path)
    return path


# -- files -------------------------------------------------------------------------------------------------------------


def test_mask_values_are_kept(tmp_path: Path):
    grey = np.array([[0, 1, 7], [128, 254, 255]], dtype=np.uint8)
    assert read_mask(saved(Image.fromarray(grey), tmp_path / "grey.png")).tolist() == grey.tolist()
    rgb = Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
    assert read_mask(saved(rgb, tmp_path / "rgb.png")).tolist() == grey.tolist()
    assert read_mask(saved(rgb.convert("RGBA"), tmp_path / "rgba.png")).tolist() == grey.tolist()
    bilevel = Image.fromarray(grey >= 128)
    assert read_mask(saved(bilevel, tmp_path / "bilevel.png")).tolist() == [[0, 0, 0], [255, 255, 255]]
    deep = Image.fromarray(np.array([[0, 40000]], dtype=np.uint16))
    assert read_mask(saved(deep, tmp_path / "deep.png")).tolist() == [[0, 40000]]
    with pytest.raises(InputError, match="not integers"):
        read_mask(saved(Image.fromarray(np.array([[0.5]], dtype=np.float32)), tmp_path / "half.tif"))


def test_each_colour_has_a_value(tmp_path: Path):
    mask = read_mask(saved(Image.fromarray(COLOURS), tmp_path / "x.png"))
    expected = [[RGB_OFFSET + 0xFF0000, RGB_OFFSET + 0xFF00], [RGB_OFFSET + 0xFF, RGB_OFFSET + 0x5A5046]]
    assert mask.tolist() == expected


def test_palette_index_unless_the_palette_is_grey(tmp_path: Path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode="P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    assert read_mask(saved(image, tmp_path / "colours.png")).tolist() == [[0, 1], [2, 1]]
    image.putpalette([0, 0, 0, 255, 255, 255, 7, 7, 7])
    assert read_mask(saved(image, tmp_path / "greys.png")).tolist() == [[0, 255], [7, 255]]
    image.putpalette([0, 0, 0, 255, 255, 255, 7, 7, 7, 255, 0, 0])  # a colour that this file does not use
    assert read_mask(saved(image, tmp_path / "unused.png")).tolist() == [[0, 1], [2, 1]]


def test_colour_has_the_same_value_in_every_file(tmp_path: Path):
    black, red = (0, 0, 0), (255, 0, 0)
    both, empty = Image.new("RGB", (2, 1), black), Image.new("RGB", (2, 1), black)
    both.putpixel((1, 0), red)
    assert read_mask(saved(both, tmp_path / "both.png")).tolist() == [[0, RED]]
    assert read_mask(saved(empty, tmp_path / "empty.png")).tolist() == [[0, 0]]


@settings(max_examples=40)
@given(
    st.one_of(
        st.lists(st.integers(0, 255), min_size=2, max_size=6, unique=True),
        st.lists(st.integers(256, 65535), min_size=2, max_size=6, unique=True),
        st.lists(
            st.one_of(st.integers(0, 255), st.integers(1, 255).map(lambda blue: RGB_OFFSET + 0x5000 + blue)),
            min_size=2,
            max_size=6,
            unique=True,
        ),
    ),
    st.integers(0, 99),
)
def test_file_round_trip(tmp_path_factory: pytest.TempPathFactory, values: list[int], seed: int):
    classes = np.random.default_rng(seed).integers(0, len(values), (7, 5))
    classes.flat[: len(values)] = range(len(values))  # every value occurs
    path = tmp_path_factory.getbasetemp() / "round_trip.png"
    save_png(path, mask_to_image(classes, values))
    assert np.array_equal(read_mask(path), np.array(values)[classes])


def test_class_without_a_value_is_not_drawn():
    with pytest.raises(AssertionError, match="class without a mask value"):
        mask_to_image(np.array([[0, 2]]), [0, 255])


# -- values and classes ------------------------------------------------------------------------------------------------


def infer(masks: list[dict[int, int]], n_classes: int) -> list[int]:
    """The mask values inferred from the number of pixels of each value, for each mask."""
    values = sorted({value for counts in masks for value in counts}, reverse=True)  # in any order
    table = np.array([[counts.get(value, 0) for value in values] for counts in masks], dtype=np.int32)
    return infer_mask_values(values, table, [f"{i}.png" for i in range(len(masks))], n_classes)


def test_sorted_values_become_classes():
    assert infer([{255: 3, 0: 5}], 2) == [0, 255]
    assert infer([{1: 3}, {7: 5}], 1) == [1, 7]
    assert infer([{0: 9, 4: 1}, {2: 1}], 3) == [0, 2, 4]


def test_anti_aliased_edges_are_thresholded(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    assert infer([{0: 700, 100: 50, 200: 50, 255: 200}], 2) == [0, 255]
    assert "anti-aliased edges" in caplog.text
    mask = np.array([[0, 100, 127], [128, 200, 255]])
    assert mask_to_classes(mask, [0, 255], "m.png").tolist() == [[0, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("counts", [{0: 90, 1: 5, 2: 5}, {0: 400, 128: 300, 255: 300}])
def test_third_class_is_no_anti_aliased_edge(counts: dict[int, int]):
    with pytest.raises(InputError, match="train with 3 classes"):
        infer([counts], 2)


def test_value_without_a_class_is_named_with_its_file():
    with pytest.raises(InputError, match=r"1\.png contains the value 9.*train with 4 classes"):
        infer([{0: 50, 1: 20, 2: 30}, {0: 90, 9: 1}], 3)
    with pytest.raises(InputError, match="too few values for 3 classes"):
        infer([{0: 5, 1: 5}], 3)
    with pytest.raises(InputError, match="too few"):
        infer([{0: 5}], 2)
    with pytest.raises(InputError, match=r"x\.png contains the value 5"):
        classes_of_values([0, 5], [0, 1, 2], "x.png")


def test_mask_of_other_values_is_not_read_as_empty():
    with pytest.raises(InputError, match=r"x\.png contains the value 1.*0, 255"):
        classes_of_values([0, 1], [0, 255], "x.png")
    with pytest.raises(InputError, match="255"):
        classes_of_values([0, 255], [0, 1], "x.png")
    with pytest.raises(InputError, match="which belongs to no class"):  # no edge between a grey value and a colour
        classes_of_values([0, RGB_OFFSET + 5], [0, RGB_OFFSET + 255], "x.png")
    assert classes_of_values([0], [0, 255], "x.png") == {0: 0}
    assert classes_of_values([255], [0, 255], "x.png") == {255: 1}


def test_colours_in_messages():
    assert [format_mask_value(value) for value in (0, 255, 65535, RED)] == ["0", "255", "65535", "(255, 0, 0)"]
    assert infer([{0: 5, RED: 5}], 2) == [0, RED]
    with pytest.raises(InputError, match=r"\(255, 0, 0\)"):
        infer([{0: 5, 1: 5, RED: 1}], 2)


@given(st.lists(st.integers(0, 2**25), min_size=2, max_size=9, unique=True), st.integers(0, 99))
def test_classes_round_trip(values: list[int], seed: int):
    classes = np.random.default_rng(seed).integers(0, len(values), (6, 5))
    assert np.array_equal(mask_to_classes(np.array(values)[classes], values, "x"), classes)
