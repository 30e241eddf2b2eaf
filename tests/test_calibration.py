"""Temperature scaling: known temperatures are found again, and files keep all else."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import lively_network, make_folders, make_picture, run_module, run_script
from utils import calibration
from utils.calibration import TEMPERATURES, fit_temperatures, save_temperatures
from utils.checkpoint import TrainedModel, load_model, read_checkpoint, save_checkpoint
from utils.probability import LogitSamples, Sampler


@dataclass(frozen=True)
class Told(Sampler):
    """A method that says the same logits of every image."""

    method = "told"
    stack: Tensor | None = None  # (T, C, h, w)

    def __str__(self) -> str:
        return "told"

    def sample(self, model: TrainedModel, inputs: Sequence[Tensor], names: Sequence[str]) -> list[list[LogitSamples]]:
        return [[LogitSamples(self.stack)] for _ in inputs]


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.3])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_temperature_that_made_the_truth_is_found(temperature: float, n_classes: int):
    generator = torch.Generator().manual_seed(n_classes)
    logits = 3 * torch.randn(1, n_classes, 128, 128, generator=generator)
    probs = (logits[0] / temperature).softmax(dim=0)
    truth = torch.multinomial(probs.flatten(1).T, 1, generator=generator).view(128, 128)
    image = torch.zeros(3, 128, 128, dtype=torch.uint8)
    model = TrainedModel(lively_network(n_classes=n_classes), mask_values=list(range(n_classes)))
    losses = calibration._losses(model, Told(stack=logits), image, truth, "x")
    assert losses.shape == TEMPERATURES.shape
    assert calibration._least(losses) == pytest.approx(temperature, rel=0.05)


def test_the_least_loss_between_the_temperatures():
    for wanted in (0.31, 1.0, 3.7):
        losses = np.log(TEMPERATURES / wanted) ** 2
        assert calibration._least(losses) == pytest.approx(wanted, rel=1e-6)
    assert calibration._least(-TEMPERATURES) == pytest.approx(8.0)  # no minimum: the end of the range
    assert calibration._least(TEMPERATURES) == pytest.approx(0.25)


def test_every_method_gets_its_temperature():
    image = torch.from_numpy(np.array(make_picture(0, (32, 32))[0])).permute(2, 0, 1)
    dataset = [(image, (image[0] < 150).long())]
    square = fit_temperatures(TrainedModel(lively_network(), (32, 32)), dataset)
    assert set(square) == {"softmax", "mc_dropout", "tta"}
    assert all(0.25 <= value <= 8 for value in square.values())
    wide = torch.cat([image, image], dim=2)
    oblong = fit_temperatures(TrainedModel(lively_network(), (64, 32)), [(wide, (wide[0] < 150).long())])
    assert set(oblong) == {"softmax", "mc_dropout"}


def test_a_checkpoint_keeps_all_else(tmp_path: Path):
    path = tmp_path / "m.pth"
    save_checkpoint(path, TrainedModel(lively_network(), epoch=3, settings={"seed": 7}), {"step": 5})
    before = read_checkpoint(path)
    save_temperatures(path, {"softmax": 1.25})
    after = read_checkpoint(path)
    assert load_model(path).temperatures == {"softmax": 1.25}
    assert before.pop("temperatures") == {}
    after.pop("temperatures")
    for name, weights in before.pop("network").items():
        assert torch.equal(weights, after["network"][name])
    after.pop("network")
    assert before == after


def test_the_command_uses_the_validation_images(tmp_path: Path):
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

    out = {}
    for flag in ("", "--calibrated"):
        folder = tmp_path / f"o{flag}"
        common = ["--input-dir", imgs, "--output-dir", folder, "-m", path, "--save-npy", *flag.split()]
        assert run_script("predict_prob_direct.py", *common).returncode == 0
        p = np.load(folder / "SKIN_000_OUT_mean.npy")[1].astype(float)
        out[flag] = np.log(p / (1 - p))
    # One pass: the logits at the image's size are linear in those of the network.
    np.testing.assert_allclose(out["--calibrated"], out[""] / temperature, rtol=1e-3, atol=1e-4)

    (imgs / "SKIN_000.jpg").unlink()
    (masks / "SKIN_000_Segmentation.png").unlink()
    result = run_module("utils.calibration", *flags)
    assert result.returncode == 2
    assert "8 images, this one has 7" in result.stderr


def test_calibrated_needs_temperatures(tmp_path: Path):
    imgs, _ = make_folders(tmp_path, 1, (48, 40))
    save_checkpoint(tmp_path / "m.pth", TrainedModel(lively_network(), (32, 32)))
    common = ["--input-dir", imgs, "--output-dir", tmp_path / "o", "-m", tmp_path / "m.pth", "--calibrated"]
    result = run_script("predict_prob_tta.py", *common)
    assert result.returncode == 2
    assert "no temperature for test-time augmentation" in result.stderr
