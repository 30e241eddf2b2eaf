"""Several masks of an image, and masks of other sizes than their images."""

import logging
from pathlib import Path

import numpy as np
import pytest

from utils import IGNORED_CLASS, RGB_OFFSET
from utils.data.fitting import MaskFitter, unite_masks
from utils.data.mask_classes import MaskClasses
from utils.data.mask_values import PALETTE_OFFSET, read_palettes
from utils.data.masks import RawMask
from utils.runtime.errors import InputError

VOC = ((1, 128 << 16), (2, 128 << 8))  # entries of a palette, dark red and dark green


def test_masks_are_united():
    a = RawMask(np.array([[0, 1, 0]], dtype=np.uint8), np.array([0, 255]))
    b = RawMask(np.array([[0, 0, 2]], dtype=np.uint8), np.array([0, 7, 9]))
    united = unite_masks([a, b])
    assert united.values[united.codes].tolist() == [[0, 255, 9]]
    assert MaskClasses((0, 9, 255)).unite([a, b]).tolist() == [[0, 2, 1]]


def test_lesions_are_united_on_a_white_background():
    """One lesion each, of 0 and of the 3 that compression has made of it, on white that compression has moved, too."""
    a = RawMask(np.array([[0, 1, 1]], dtype=np.uint8), np.array([0, 255]))
    b = RawMask(np.array([[1, 1, 0]], dtype=np.uint8), np.array([3, 253]))
    united = unite_masks([a, b], background=255)
    assert united.values[united.codes].tolist() == [[0, 253, 3]]
    assert MaskClasses((255, 0)).unite([a, b]).tolist() == [[1, 0, 1]]
    counts = united.count()
    assert [array.tolist() for array in counts[:2]] == [[0, 3, 253], [1, 1, 1]]
    b = RawMask(np.array([[1, 0, 0]], dtype=np.uint8), np.arange(256))
    united = unite_masks([b, b], background=255)  # of another set of masks
    assert united.values[united.codes].tolist() == [[1, 0, 0]]


@pytest.mark.parametrize(("ignored", "background", "lesion"), [(-1, 0, 1), (0, 128, 255), (255, 0, 1)])
def test_ignored_pixels_are_not_taken_for_the_background(ignored: int, background: int, lesion: int):
    table = np.array([ignored, background, lesion])
    a, b = (RawMask(codes, table) for codes in np.mgrid[:3, :3].astype(np.uint8))
    classes, united = MaskClasses((background, lesion), ignored), unite_masks([a, b], ignored=ignored)
    assert np.array_equal(classes.unite([a, b]), classes.of(united.values)[united.codes])
    assert classes.unite([a, b])[0, 1] == IGNORED_CLASS  # ignored in one, background in the other
    only = RawMask(np.zeros((2, 2), np.uint8), np.array([ignored]))
    assert unite_masks([only, only], ignored=ignored).values.tolist() == [ignored]


@pytest.mark.parametrize("values", [(0, 100, 200), (0, 200, 100), (200, 100, 0)])
def test_training_and_scoring_unite_alike(values: tuple[int, ...]):
    """Whatever the order of the classes; with palettes, too."""
    a, b = (RawMask(codes, np.array([0, 100, 200])) for codes in np.mgrid[:3, :3].astype(np.uint8))
    classes = MaskClasses(values)
    united = unite_masks([a, b], values[0])
    assert np.array_equal(classes.unite([a, b]), classes.of(united.values)[united.codes])
    assert classes.unite([a, b]).flags.writeable  # PyTorch warns otherwise

    red, green = (
        RawMask(m.codes.clip(max=1), PALETTE_OFFSET * np.array([1, k + 1]) + [0, RGB_OFFSET + v])
        for m, (k, v) in zip((a, b), VOC, strict=True)
    )
    classes, united = MaskClasses((0, 1, 2), by_index=True), unite_masks([red, green])
    assert np.array_equal(classes.unite([red, green]), classes.of(united.values)[united.codes])


def test_masks_with_and_without_a_palette_are_united():
    grey = RawMask(np.array([[0, 1, 0]], dtype=np.uint8), np.array([0, 255]))
    palette = RawMask(np.array([[0, 0, 1]], dtype=np.uint8), PALETTE_OFFSET * np.array([1, 2]) + [0, 255])
    united = unite_masks([grey, palette])
    assert read_palettes(united.values, by_index=False)[united.codes].tolist() == [[0, 255, 255]]


@pytest.mark.parametrize(
    ("size", "mask_size"),
    [
        ((40, 30), (41, 30)),
        ((40, 30), (39, 31)),
        ((40, 30), (20, 15)),
        ((41, 31), (20, 15)),
        ((41, 31), (21, 16)),
        ((40, 30), (10, 8)),
        ((20, 15), (40, 30)),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_whole_fractions_are_resized(size: tuple[int, int], mask_size: tuple[int, int], dtype: type, caplog):
    codes = np.zeros(mask_size[::-1], dtype)
    codes[:, mask_size[0] // 2 :] = 1
    fitter = MaskFitter()
    fitted = fitter.fit(Path("m.png"), RawMask(codes, np.array([0, 70_000])), size)
    values = fitted.values[fitted.codes]
    assert values.shape == size[::-1]
    assert sorted(np.unique(values).tolist()) == [0, 70_000]
    assert (values > 0).mean() == pytest.approx(0.5, abs=0.03)
    caplog.set_level(logging.INFO)
    fitter.log()
    assert "1 mask was resized" in caplog.text
    assert f"{mask_size[0]}x{mask_size[1]}" in caplog.text


@pytest.mark.parametrize("mask_size", [(42, 30), (30, 40), (20, 30), (16, 12), (5, 5)])
def test_other_sizes_are_errors(mask_size: tuple[int, int]):
    with pytest.raises(InputError, match=rf"it has 40x30 pixels, its mask m\.png has {mask_size[0]}x{mask_size[1]}"):
        MaskFitter().fit(Path("m.png"), RawMask(np.zeros(mask_size[::-1], np.uint8), np.array([0])), (40, 30))
