"""Checkpoints: round trips, the original project's files, and files that are not checkpoints."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import ROOT, lively_network, make_image
from unet import BayesianUNet
from unet.unet_parts import ChannelDropout, DoubleConv
from utils.checkpoint import TrainedModel, load_model, read_checkpoint, save_checkpoint
from utils.data.groups import count_named, name_digests
from utils.data.mask_values import colour_values
from utils.data_loading import split_indices
from utils.inference.maps import predict_classes
from utils.inference.predictor import predict
from utils.metrics.segmentation import segmentation_scores
from utils.runtime.errors import InputError

LAYOUTS = Path(__file__).parent / "original_checkpoint_layout.json"


def original_file(path: Path, layout: str = "transposed", **changes) -> dict:
    """A file as the original project writes it, with random weights."""
    torch.manual_seed(0)
    content: dict = {}
    for name, shape in json.loads(LAYOUTS.read_text())["layouts"][layout].items():
        content[name] = torch.rand(shape) if shape else torch.tensor(3)
    content |= {"mask_values": [0, 255], **changes}
    torch.save(content, path)
    return content


@pytest.mark.parametrize("n_classes", [1, 2, 4])
@pytest.mark.parametrize("placement", ["layer", "block"])
def test_round_trip(tmp_path: Path, n_classes: int, placement: str):
    network = lively_network(n_classes=n_classes, dropout=0.3, dropout_placement=placement, bilinear=True)
    values = [0, 3, 8, 255][: max(2, n_classes)]
    model = TrainedModel(network, (96, 64), values, epoch=7, validation={"dice": 0.75}, settings={"seed": 3})
    save_checkpoint(tmp_path / "new" / "m.pth", model)
    loaded = load_model(tmp_path / "new" / "m.pth")
    assert loaded.network.architecture == network.architecture
    assert (loaded.input_size, loaded.mask_values) == ((96, 64), values)
    assert (loaded.epoch, loaded.validation, loaded.settings) == (7, {"dice": 0.75}, {"seed": 3})
    assert not loaded.network.training
    x = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.network(x), network(x))


def test_shipped_model():
    model = load_model(ROOT / "pretrained_model.pth")
    assert model.network.architecture == BayesianUNet().architecture
    assert (model.input_size, model.mask_values) == ((128, 128), [0, 255])
    assert {"epochs", "augmentation", "learning_rate", "batch_size", "seed", "validation"} <= set(model.settings)
    assert 0 < model.epoch <= model.settings["epochs"]
    dices = []
    for seed in range(4):
        image, mask = make_image(seed, (400, 300))
        classes = predict_classes(predict(model, image).probs).numpy()
        dices.append(segmentation_scores(classes, np.asarray(mask) > 127)["dice"])
    assert np.mean(dices) > 0.8


def test_shipped_model_names_its_training_images():
    settings = load_model(ROOT / "pretrained_model.pth").settings
    training, validation = (len(part) for part in split_indices(settings["images"], settings["validation"], 0))
    assert (len(set(settings["trained_names"])), validation) == (training, 37)
    names = name_digests([Path("imgs", f"ISIC_000000{i}.jpg") for i in (0, 1, 2, 3)], Path("imgs"))
    trained = [count_named([one], settings["trained_names"]) for one in names]
    assert trained == [1, 1, 1, 0]  # the last one is a test image


def test_a_model_without_a_value_for_each_class(tmp_path: Path):
    with pytest.raises(ValueError, match="the model has 2 mask values for 3 classes"):
        save_checkpoint(tmp_path / "m.pth", TrainedModel(BayesianUNet(n_classes=3, base_channels=2)))
    assert not [*tmp_path.iterdir()]


def test_a_model_can_be_printed():
    """What fills pages is left out: the weights, the losses of the calibration, the names of the training images."""
    text = repr(load_model(ROOT / "pretrained_model.pth"))
    assert len(text) < 1000
    for known in ("input_size=(128, 128)", "mask_values=[0, 255]", "'mc_dropout': RiskCurves(images=37"):
        assert known in text


def test_half_precision_file_loads_in_single_precision(tmp_path: Path):
    save_checkpoint(tmp_path / "m.pth", TrainedModel(lively_network().half()))
    assert {p.dtype for p in load_model(tmp_path / "m.pth").network.parameters()} == {torch.float32}


@pytest.mark.parametrize("layout", ["transposed", "bilinear"])
def test_original_checkpoint(tmp_path: Path, layout: str):
    content = original_file(tmp_path / "o.pth", layout)
    model = load_model(tmp_path / "o.pth")
    assert model.network.architecture == {
        "n_channels": 3,
        "n_classes": 2,
        "bilinear": layout == "bilinear",
        "dropout": 0.2,
        "base_channels": 32,
        "dropout_placement": "block",
    }
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, content[name]), name
    assert not [m for m in model.network.inc.modules() if isinstance(m, ChannelDropout)]
    assert (model.input_size, model.mask_values) == ((128, 128), [0, 255])
    assert load_model(tmp_path / "o.pth", default_input_size=(64, 128)).input_size == (64, 128)


def test_original_checkpoint_of_one_class(tmp_path: Path):
    one_class = {"outc.conv.weight": torch.rand(1, 32, 1, 1), "outc.conv.bias": torch.rand(1)}
    original_file(tmp_path / "o.pth", **one_class, mask_values=[0, 1])
    model = load_model(tmp_path / "o.pth")
    assert (model.network.n_classes, model.mask_values) == (1, [0, 1])


def filters_file(path: Path, filters: int, wrap: str | None = None, prefix: str = "", **architecture) -> BayesianUNet:
    """A file of another project: weights alone, in a dict of the file and under a prefix; returns the network."""
    network = lively_network(base_channels=filters, dropout_placement="block", **architecture)
    weights = {prefix + name: value for name, value in network.state_dict().items()}
    others = {"epoch": "third", "optimizer": {"state": {0: torch.ones(1)}}, "loss": torch.ones(1), "validation": 0.5}
    torch.save({**others, wrap: weights} if wrap else weights, path)
    return network


def test_convolutions_with_bias(tmp_path: Path):
    """As older U-Nets have them in front of their batch norms."""
    network = lively_network(dropout=0.0)
    for block in network.modules():
        if isinstance(block, DoubleConv):
            for i in (0, 3):
                block.double_conv[i].bias = torch.nn.Parameter(torch.randn(block.double_conv[i].out_channels))
    assert "up4.conv.double_conv.3.bias" in network.state_dict()
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}, tmp_path / "o"
    )
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(load_model(tmp_path / "o").network(image), network(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        *((None, prefix) for prefix in ("", "module.", "_orig_mod.", "_orig_mod.module.", "net.")),
        *((wrap, "module.") for wrap in ("state_dict", "model_state_dict")),
    ],
)
def test_wrapped_and_prefixed_weights(tmp_path: Path, wrap: str | None, prefix: str):
    network = filters_file(tmp_path / "o.pth", 4, wrap, prefix, n_classes=3)
    model = load_model(tmp_path / "o.pth")
    assert (model.mask_values, model.epoch, model.validation) == ([0, 1, 2], 0, {})
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name


@pytest.mark.parametrize("inside", [True, False])
def test_mask_values_of_wrapped_weights(tmp_path: Path, inside: bool):
    weights, values = lively_network(dropout=0.0).state_dict(), {"mask_values": [[9, 9, 9], [255, 0, 1]]}
    torch.save({"state_dict": weights | values} if inside else {"state_dict": weights} | values, tmp_path / "o.pth")
    assert load_model(tmp_path / "o.pth").mask_values == [9, int(colour_values([255, 0, 1]))]


def test_mask_values_with_an_alpha_channel(tmp_path: Path):
    values = {"mask_values": [[0, 0, 0, 0], [0, 0, 0, 255]]}
    torch.save({"state_dict": lively_network(dropout=0.0).state_dict()} | values, tmp_path / "o.pth")
    with pytest.raises(InputError, match=r"o\.pth is not a .* it has a mask value \[0, 0, 0, 0\]: a number or"):
        load_model(tmp_path / "o.pth")


@pytest.mark.parametrize(("filters", "layers"), [(32, 8), (64, 0), (16, 0)])
def test_the_number_of_filters_tells_the_dropout(
    tmp_path: Path, filters: int, layers: int, caplog: pytest.LogCaptureFixture
):
    """32 filters are those of the original project; 64 are Pytorch-UNet's, which has no dropout."""
    network = filters_file(tmp_path / "o.pth", filters, bilinear=True, dropout=0.0)
    with caplog.at_level("INFO"):
        model = load_model(tmp_path / "o.pth", default_input_size=(64, 48))
    assert len(model.network.dropout_channels) == layers
    assert (model.network.architecture["base_channels"], model.input_size) == (filters, (64, 48))
    assert (f"with {filters} filters it is read as a U-Net without dropout, for inputs of 64x48" in caplog.text) == (
        filters != 32
    )
    x = torch.rand(1, 3, 48, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model.network(x), network(x))


def test_recorded_input_size_prevails(tmp_path: Path):
    save_checkpoint(tmp_path / "m.pth", TrainedModel(lively_network(), (96, 64)))
    assert load_model(tmp_path / "m.pth", default_input_size=(32, 32)).input_size == (96, 64)


@pytest.mark.parametrize("n_classes", [1, 2, 4])
def test_number_of_classes(n_classes: int):
    mask_values = list(range(max(2, n_classes)))
    model = TrainedModel(BayesianUNet(n_classes=n_classes, base_channels=2), mask_values=mask_values)
    assert (model.n_classes, model.one_class) == (len(mask_values), n_classes == 1)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil-was-here",)


def test_files_that_are_not_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint("good.pth", TrainedModel(lively_network()))
    good = Path("good.pth").read_bytes()
    Path("empty.pth").touch()
    Path("text.pth").write_text("hello")
    Path("truncated.pth").write_bytes(good[: len(good) // 2])
    Path("flipped.pth").write_bytes(good[:1000] + bytes(1000) + good[2000:])
    Path("evil.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"network": Evil()}, "evil2.pth")
    torch.save([1, 2], "list.pth")
    torch.save({"a": 1}, "other.pth")
    torch.save(torch.nn.Linear(2, 2).state_dict(), "linear.pth")
    for name in ("empty", "text", "truncated", "flipped", "evil", "evil2", "list", "other", "linear", "missing"):
        with pytest.raises(InputError, match=rf"{name}\.pth"):
            load_model(f"{name}.pth")
    for name in ("evil", "evil2"):
        with pytest.raises(InputError, match="could run code"):
            load_model(f"{name}.pth")
    assert not Path("evil-was-here").exists()
    with pytest.raises(InputError, match=r"is a folder, a model file was expected: it has empty\.pth, evil\.pth, "):
        load_model(tmp_path)


def test_inconsistent_content(tmp_path: Path):
    def changed(**changes) -> Path:
        save_checkpoint(tmp_path / "m.pth", TrainedModel(lively_network()))
        content = read_checkpoint(tmp_path / "m.pth")
        for name, value in changes.items():
            content[name] = {**content[name], **value} if isinstance(value, dict) else value
        torch.save(content, tmp_path / "m.pth")
        return tmp_path / "m.pth"

    wrong = {
        "not finite": {"network": {"up1.up.bias": torch.full((64,), float("nan"))}},
        "mask values": {"mask_values": [0]},
        "not of": {"architecture": {"n_classes": 5}},
        "dropout": {"architecture": {"dropout": 1.5}},
        "size mismatch": {"network": {"up1.up.bias": torch.zeros(3)}},
        "Unexpected": {"network": {"stranger": torch.zeros(3)}},
        "8x128, smaller than 16x16": {"input_size": [8, 128]},
        "of 4 channels": {
            "network": {"inc.double_conv.0.weight": torch.zeros(8, 4, 3, 3)},
            "architecture": {"n_channels": 4},
        },
    }
    for words, changes in wrong.items():
        with pytest.raises(InputError, match=words):
            load_model(changed(**changes))
    content = read_checkpoint(changed())
    del content["network"]["outc.conv.bias"]
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(InputError, match=r"outc\.conv\.bias"):
        load_model(tmp_path / "m.pth")


def test_failed_save_leaves_the_existing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "m.pth"
    save_checkpoint(path, TrainedModel(lively_network()))
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, TrainedModel(BayesianUNet(base_channels=4)))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
