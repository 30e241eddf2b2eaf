"""Checkpoints: round trips, the original project's files, and files that are none."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import ROOT, lively_network, make_picture
from unet import BayesianUNet, draw_dropout_masks, mc_dropout
from unet.mc_dropout import active_dropout_layers
from unet.unet_parts import ChannelDropout
from utils.checkpoint import TrainedModel, load_model, read_checkpoint, save_checkpoint
from utils.errors import InputError
from utils.metrics import segmentation_scores
from utils.probability import most_probable_class, predict

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
    again = load_model(tmp_path / "new" / "m.pth")
    assert again.network.architecture == network.architecture
    assert (again.input_size, again.mask_values) == ((96, 64), values)
    assert (again.epoch, again.validation, again.settings) == (7, {"dice": 0.75}, {"seed": 3})
    assert not again.network.training
    x = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(again.network(x), network(x))


def test_the_shipped_model_is_whole_and_knows_its_recipe():
    model = load_model(ROOT / "pretrained_model.pth")
    assert model.network.architecture == BayesianUNet().architecture
    assert (model.input_size, model.mask_values) == ((128, 128), [0, 255])
    assert {"epochs", "augmentation", "learning_rate", "batch_size", "seed", "validation"} <= set(model.settings)
    assert model.epoch == model.settings["epochs"]
    dices = []
    for seed in range(4):  # blots that it has never seen, on skin that it knows
        image, mask = make_picture(seed, (400, 300))
        classes = most_probable_class(predict(model, image).probs)
        dices.append(segmentation_scores(classes, np.asarray(mask) > 127)["dice"])
    assert np.mean(dices) > 0.8


def test_half_precision_files_load_in_single_precision(tmp_path: Path):
    save_checkpoint(tmp_path / "m.pth", TrainedModel(lively_network().half()))
    assert {p.dtype for p in load_model(tmp_path / "m.pth").network.parameters()} == {torch.float32}


@pytest.mark.parametrize("layout", ["transposed", "bilinear"])
def test_files_of_the_original_project_load_as_they_are(tmp_path: Path, layout: str):
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
    assert load_model(tmp_path / "o.pth", input_size=(64, None)).input_size == (64, 128)


def test_weights_of_other_versions_of_the_original(tmp_path: Path):
    one_class = {"outc.conv.weight": torch.rand(1, 32, 1, 1), "outc.conv.bias": torch.rand(1)}
    original_file(tmp_path / "o.pth", **one_class, mask_values=[0, 1])
    model = load_model(tmp_path / "o.pth")
    assert (model.network.n_classes, model.mask_values) == (1, [0, 1])


@pytest.mark.parametrize(
    ("belief", "flag"),
    [
        ({"n_classes": 3}, "--classes 3"),
        ({"bilinear": True}, "--bilinear"),
        ({"input_size": (64, None)}, "--newW 64"),
        ({"input_size": (None, 64)}, "--newH 64"),
    ],
)
def test_a_flag_that_contradicts_the_file_is_an_error(tmp_path: Path, belief: dict, flag: str):
    save_checkpoint(tmp_path / "m.pth", TrainedModel(lively_network()))
    with pytest.raises(InputError, match=f"contradicts {flag}"):
        load_model(tmp_path / "m.pth", **belief)
    assert load_model(tmp_path / "m.pth", n_classes=2, bilinear=None, input_size=(128, 128)).input_size == (128, 128)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil-was-here",)


def test_files_that_are_no_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint("good.pth", TrainedModel(lively_network()))
    good = Path("good.pth").read_bytes()
    Path("empty.pth").touch()
    Path("text.pth").write_text("hello")
    Path("cut.pth").write_bytes(good[: len(good) // 2])
    Path("flipped.pth").write_bytes(good[:1000] + bytes(1000) + good[2000:])
    Path("evil.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"network": Evil()}, "evil2.pth")
    torch.save([1, 2], "list.pth")
    torch.save({"a": 1}, "other.pth")
    torch.save(torch.nn.Linear(2, 2).state_dict(), "linear.pth")
    for name in ("empty", "text", "cut", "flipped", "evil", "evil2", "list", "other", "linear", "missing"):
        with pytest.raises(InputError, match=rf"{name}\.pth"):
            load_model(f"{name}.pth")
    assert not Path("evil-was-here").exists()
    with pytest.raises(InputError, match="no such model"):
        load_model(tmp_path)


def test_contents_that_do_not_fit_together(tmp_path: Path):
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
        "16x16": {"input_size": [8, 128]},
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


def test_a_failed_save_leaves_the_file_from_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "m.pth"
    save_checkpoint(path, TrainedModel(lively_network()))
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, TrainedModel(BayesianUNet(base_channels=4)))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_twin_shares_the_weights_and_nothing_else():
    model = TrainedModel(lively_network())
    twin = model.twin()
    ours, theirs = model.network.state_dict(), twin.network.state_dict()
    assert all(ours[name].data_ptr() == theirs[name].data_ptr() for name in ours)
    assert set(model.network.modules()).isdisjoint(twin.network.modules())
    with mc_dropout(model.network, draw_dropout_masks(model.network, 1, seed=0)):
        assert not any(module.training for module in twin.network.modules())
        assert all(layer.mask is None for layer in active_dropout_layers(twin.network))
    assert twin.mask_values == model.mask_values
