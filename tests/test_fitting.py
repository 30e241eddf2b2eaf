"""Several masks of an image, and masks of other sizes than their images."""

import logging
from pathlib import Path

import numpy as np
import pytest

from utils.data.fitting import MaskFitter
from utils.runtime.errors import InputError


def test_masks_are_united():
    a, b = np.array([[0, 255, 0]], dtype=np.int32), np.array([[0, 0, 255]], dtype=np.int32)
    fitter = MaskFitter()
    assert fitter.fit({Path("a"): a, Path("b"): b}, (3, 1)).tolist() == [[0, 255, 255]]
    assert fitter.resized == []


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
def test_whole_fractions_are_resized(size: tuple[int, int], mask_size: tuple[int, int], caplog):
    mask = np.zeros(mask_size[::-1], dtype=np.int32)
    mask[:, mask_size[0] // 2 :] = 70_000
    fitter = MaskFitter()
    fitted = fitter.fit({Path("m.png"): mask}, size)
    assert fitted.shape == size[::-1]
    assert sorted(np.unique(fitted).tolist()) == [0, 70_000]
    assert (fitted > 0).mean() == pytest.approx(0.5, abs=0.03)
    caplog.set_level(logging.INFO)
    fitter.log()
    assert "1 mask was resized" in caplog.text
    assert f"{mask_size[0]}x{mask_size[1]}" in caplog.text


@pytest.mark.parametrize("mask_size", [(42, 30), (30, 40), (20, 30), (16, 12), (5, 5)])
def test_other_sizes_are_errors(mask_size: tuple[int, int]):
    with pytest.raises(InputError, match=rf"it has 40x30 pixels, its mask m\.png has {mask_size[0]}x{mask_size[1]}"):
        MaskFitter().fit({Path("m.png"): np.zeros(mask_size[::-1], dtype=np.int32)}, (40, 30))
