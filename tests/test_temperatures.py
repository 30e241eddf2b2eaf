"""Temperature scaling: known temperatures are recovered, and a checkpoint keeps everything else."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.conftest import lively_network, make_image
from unet import BayesianUNet
from utils import IGNORED_CLASS
from utils.checkpoint import TrainedModel, checkpoint_content, load_model, read_checkpoint, write_checkpoint
from utils.inference.upsampling import LogitSamples, StackUpsampler
from utils.training.calibrator import calibrate, save_calibration
from utils.training.temperatures import (
    TEMPERATURES,
    format_temperatures,
    minimising_temperature,
    nll_by_temperature,
    warn_of_limits,
)


def calibrated_model(network: BayesianUNet, size: tuple[int, int], dataset: list) -> TrainedModel:
    model = TrainedModel(network, size)
    calibrate(model, dataset)
    return model


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.3])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_known_temperature_is_recovered(temperature: float, n_classes: int):
    """The ground truth is drawn from the probabilities at that temperature."""
    generator = torch.Generator().manual_seed(n_classes)
    logits = 3 * torch.randn(1, n_classes, 128, 128, generator=generator)
    probs = (logits[0] / temperature).softmax(dim=0)
    target = torch.multinomial(probs.flatten(1).T, 1, generator=generator).view(128, 128)
    losses = nll_by_temperature(StackUpsampler([LogitSamples(logits)], 128, 128), target)
    assert losses.shape == TEMPERATURES.shape
    assert minimising_temperature(losses) == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_probabilities_of_several_samples_are_averaged(n_classes: int):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, n_classes, 8, 8, generator=generator)
    target = torch.randint(n_classes, (8, 8), generator=generator)
    probs = [(logits.double() / temperature).softmax(dim=1).mean(dim=0) for temperature in TEMPERATURES]
    expected = [F.nll_loss(p.log()[None], target[None]).item() for p in probs]
    losses = nll_by_temperature(StackUpsampler([LogitSamples(logits)], 8, 8), target)
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)


def test_minimum_between_the_temperatures():
    for expected in (0.26, 0.31, 1.0, 3.7, 7.9):
        losses = np.log(TEMPERATURES / expected) ** 2
        assert minimising_temperature(losses) == pytest.approx(expected, rel=1e-6)
    assert minimising_temperature(-TEMPERATURES) == pytest.approx(8.0)  # no minimum: the end of the range
    assert minimising_temperature(TEMPERATURES) == pytest.approx(0.25)


def test_one_temperature_per_method():
    image = torch.from_numpy(np.array(make_image(0, (32, 32))[0])).permute(2, 0, 1)
    dataset = [(image, (image[0] < 150).long())]
    square = calibrated_model(lively_network(), (32, 32), dataset).temperatures
    assert set(square) == {"softmax", "mc_dropout", "tta"}
    assert all(0.25 <= value <= 8 for value in square.values())
    wide = torch.cat([image, image], dim=2)
    oblong = calibrated_model(lively_network(), (64, 32), [(wide, (wide[0] < 150).long())]).temperatures
    assert set(oblong) == {"softmax", "mc_dropout"}


def test_limits_are_warned_of(caplog: pytest.LogCaptureFixture):
    warn_of_limits({"softmax": 1.2, "tta": 7.9})
    assert not caplog.text
    warn_of_limits({"softmax": 0.25, "mc_dropout": 8.0, "tta": 0.25})
    low, high = caplog.messages
    assert "temperature 0.25 of softmax, tta is the limit of the range from 0.25 to 8: " in low
    assert "too cautious" in low
    assert "temperature 8 of mc_dropout is the limit" in high
    assert "too confident" in high


def test_a_fit_at_the_limit_warns(caplog: pytest.LogCaptureFixture):
    """Every pixel is lesion, and the network says so, with little certainty."""
    network = lively_network()
    with torch.no_grad():
        network.outc.conv.weight.zero_()
        network.outc.conv.bias.copy_(torch.tensor([0.0, 0.5]))
    dataset = [(torch.zeros(3, 32, 32, dtype=torch.uint8), torch.ones(32, 32).long())]
    temperatures = calibrated_model(network, (32, 32), dataset).temperatures
    assert temperatures == {"softmax": 0.25, "mc_dropout": 0.25, "tta": 0.25}
    assert "0.25 of softmax, mc_dropout, tta is the limit" in caplog.text


def test_checkpoint_keeps_everything_else(tmp_path: Path):
    path = tmp_path / "m.pth"
    model = TrainedModel(lively_network(), epoch=3, settings={"seed": 7})
    write_checkpoint(path, checkpoint_content(model) | {"training": {"step": 5}})
    before = read_checkpoint(path)
    save_calibration(path, TrainedModel(lively_network(1), temperatures={"softmax": 1.25}))
    after = read_checkpoint(path)
    assert load_model(path).temperatures == {"softmax": 1.25}
    assert before.pop("temperatures") == {}
    after.pop("temperatures")
    for name, weights in before.pop("network").items():
        assert torch.equal(weights, after["network"][name])
    after.pop("network")
    assert before == after


def test_format():
    assert format_temperatures({"softmax": 1.25, "tta": 0.5}) == "softmax 1.250, tta 0.500"
    assert format_temperatures({}) == "none"


def test_ignored_pixels_are_not_fitted():
    logits, target = torch.randn(1, 2, 32, 32), torch.randint(0, 2, (32, 32), dtype=torch.uint8)
    target[:, 8:] = IGNORED_CLASS
    first = nll_by_temperature(StackUpsampler([LogitSamples(logits)], 32, 32), target)
    logits[..., 9:] *= 7  # upsampling to the same size leaves the others as they are
    assert nll_by_temperature(StackUpsampler([LogitSamples(logits)], 32, 32), target) == pytest.approx(first, rel=1e-5)


def test_no_temperatures_without_a_pixel_that_counts(caplog: pytest.LogCaptureFixture):
    ignored = torch.full((32, 32), IGNORED_CLASS, dtype=torch.uint8)
    model = calibrated_model(lively_network(), (32, 32), [(torch.zeros(3, 32, 32, dtype=torch.uint8), ignored)] * 2)
    assert (model.temperatures, model.risk_curves) == ({}, {})
    (message,) = caplog.messages
    assert message.startswith("All pixels of the 2 images to calibrate on are ignored: there are no temperatures")
