"""The flags for the values of masks and images."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import assert_one_clear_line, make_folders, run_script
from utils.argument_types import mask_value
from utils.checkpoint import load_model
from utils.data.mask_values import colour_values


def test_types():
    assert [mask_value(text) for text in ("0", "-1", "65535", "9,9,9", "255,0,0")] == [
        0,
        -1,
        65535,
        9,
        int(colour_values([255, 0, 0])),
    ]
    for text in ("", "-65536", "x", "1,2", "256,0,0", "-1,0,0", "65536"):
        with pytest.raises(argparse.ArgumentTypeError, match="such as 255"):
            mask_value(text)


def test_labels_with_void_pixels_and_12_bit_images(tmp_path: Path, lively_file: Path):
    """From files to a trained model, and back: everything that it needs to know is in its file."""
    imgs, masks = make_folders(tmp_path, 4, (64, 64))
    for image, mask in zip(sorted(imgs.iterdir()), sorted(masks.iterdir()), strict=True):
        Image.fromarray(np.asarray(Image.open(image).convert("L")).astype(np.uint16) * 16).save(
            image.with_suffix(".png")
        )
        image.unlink()
        labels = np.asarray(Image.open(mask)) // 255
        labels[:4] = 40
        Image.fromarray(labels).save(mask)
    command = ["train_bayesian.py", "--imgs-dir", imgs, "--masks-dir", masks, "--cache-dir", tmp_path / "cache"]
    command += ["--checkpoint-dir", tmp_path / "c", "--epochs", 1, "--wandb", "disabled"]
    first = run_script(*command)
    assert_one_clear_line(first, "40 (6.2 %)", "(see --classes, --ignore-value, --mask-values)")
    assert "4 16-bit images with values up to" in first.stderr
    assert "12 bits, white is 4095" in first.stderr
    both = run_script(*command, "--mask-values", 0, 1, "--background", 0)
    assert_one_clear_line(both, "omit --background")
    result = run_script(*command, "--ignore-value", 40, "--load", lively_file)
    assert result.returncode == 0, result.stderr
    assert "; 40 ignored, 6.2 % of all" in result.stderr
    assert "White in 16-bit images is 4095" in result.stderr  # from the cache
    model = load_model(tmp_path / "c" / "last.pth")
    assert (model.mask_values, model.ignore_value, model.white) == ([0, 1], 40, 4095)

    common = ["--input-dir", imgs, "--output-dir", tmp_path / "o", "-m", tmp_path / "c" / "last.pth"]
    result = run_script("predict_prob_direct.py", *common, "--mask-dir", masks)
    assert result.returncode == 0, result.stderr
    assert "; 40 ignored" in result.stderr
    assert json.loads((tmp_path / "o" / "metrics.json").read_text())["pixels"] == 4 * 60 * 64
    result = run_script("predict.py", *common)
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "o" / "SKIN_000_OUT.png") as image:
        assert image.mode == "P"
        assert set(np.unique(image)) <= {0, 1}
    assert_one_clear_line(run_script("predict.py", *common, "--white", "x"), "expected a number above 0")
    result = run_script("predict.py", *common, "--white", 1000)
    assert (result.returncode, "where 0 to 1000 was expected" in result.stderr) == (1, True)
