"""The command that fits the temperatures of an existing model, and --calibrated, which uses them."""

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import lively_network, make_folders, run_module, run_script
from utils.calibration import held_out_indices
from utils.checkpoint import TrainedModel, load_model, save_checkpoint
from utils.data_loading import split_indices
from utils.runtime.errors import InputError


def test_command_uses_the_validation_images(tmp_path: Path):
    imgs, masks = make_folders(tmp_path, 8, (48, 40))
    path = tmp_path / "m.pth"
    settings = {"validation": 25.0, "seed": 3, "images": 8}
    save_checkpoint(path, TrainedModel(lively_network(), (32, 32), settings=settings))
    flags = ["-m", path, "--imgs-dir", imgs, "--masks-dir", masks, "--cache-dir", tmp_path / "cache"]
    result = run_module("utils.calibration", *flags)
    assert result.returncode == 0, result.stderr
    assert "Fitting on 2 images" in result.stderr
    temperature = load_model(path).temperatures["softmax"]
    assert f"softmax {temperature:.3f}" in result.stderr

    logits = {}
    for flag in ("", "--calibrated"):
        folder = tmp_path / f"o{flag}"
        common = ["--input-dir", imgs, "--output-dir", folder, "-m", path, "--save-npy", *flag.split()]
        assert run_script("predict_prob_direct.py", *common).returncode == 0
        p = np.load(folder / "SKIN_000_OUT_mean.npy")[1].astype(float)
        logits[flag] = np.log(p / (1 - p))
    # One pass: the logits at the image's size are linear in those of the network.
    np.testing.assert_allclose(logits["--calibrated"], logits[""] / temperature, rtol=1e-3, atol=1e-4)

    (imgs / "SKIN_000.jpg").unlink()
    (masks / "SKIN_000_Segmentation.png").unlink()
    result = run_module("utils.calibration", *flags)
    assert result.returncode == 2
    assert "8 images, this one has 7" in result.stderr


def test_held_out_images():
    settings = {"validation": 25.0, "seed": 3, "images": 8}
    model = TrainedModel(lively_network(), settings=settings)
    assert held_out_indices(model, 8) == split_indices(8, 25.0, 3)[1]
    with pytest.raises(InputError, match="8 images, this one has 7"):
        held_out_indices(model, 7)
    assert list(held_out_indices(TrainedModel(lively_network()), 7)) == list(range(7))  # the split is not recorded


def test_calibrated_requires_temperatures(tmp_path: Path):
    imgs, _ = make_folders(tmp_path, 1, (48, 40))
    save_checkpoint(tmp_path / "m.pth", TrainedModel(lively_network(), (32, 32)))
    common = ["--input-dir", imgs, "--output-dir", tmp_path / "o", "-m", tmp_path / "m.pth", "--calibrated"]
    result = run_script("predict_prob_tta.py", *common)
    assert result.returncode == 2
    assert "no temperature for test-time augmentation" in result.stderr
