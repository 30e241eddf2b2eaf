"""Save and load; reads the original project's files too.

A checkpoint is one dict of tensors and plain values, read with `weights_only=True`, so a file from a stranger cannot
run code:

    network       weights, by name
    architecture  what rebuilds the network: BayesianUNet(**architecture)
    input_size    [width, height] of the network's input
    mask_values   the mask value of class 0, 1, ...
    epoch         number of epochs behind it
    validation    scores on the validation images, by name
    temperatures  by which logits are divided to be calibrated, by method of prediction; empty before they are fitted
    settings      how it was trained, by name
    training      only in last.pth: all that resuming needs

A checkpoint of the original project is one flat dict of weights and `mask_values`.
"""

import copy
import hashlib
import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unet import BayesianUNet
from utils.errors import InputError
from utils.image_io import whole_file

DEFAULT_INPUT_SIZE = (128, 128)
_FIRST, _LAST, _UPSAMPLING = "inc.double_conv.0.weight", "outc.conv.weight", "up1.up.weight"

# What torch.load and the checks below raise on files that are no checkpoints, or broken ones.
_UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    EOFError,
    OSError,
    MemoryError,
    struct.error,
)


@dataclass
class TrainedModel:
    """A network and what has to be known to use it.

    Attributes:
        network: the network, in evaluation mode when it was loaded.
        input_size: width and height of its input.
        mask_values: the value that class 0, 1, ... has in masks, as `utils.image_io.read_mask` returns it.
        epoch: number of epochs that it was trained.
        validation: scores on the validation images, by name.
        settings: how it was trained, by name.
        temperatures: by which logits are divided to be calibrated, by `Sampler.method`.
    """

    network: BayesianUNet
    input_size: tuple[int, int] = DEFAULT_INPUT_SIZE
    mask_values: list[int] = field(default_factory=lambda: [0, 255])
    epoch: int = 0
    validation: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    temperatures: dict[str, float] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the network's weights lie."""
        return next(self.network.parameters()).device

    def twin(self) -> "TrainedModel":
        """The same model for another thread: it shares the weights, but not the modes and masks of the layers."""
        shared = {id(tensor): tensor for tensor in (*self.network.parameters(), *self.network.buffers())}
        return replace(self, network=copy.deepcopy(self.network, shared))

    def fingerprint(self) -> str:
        """A short text that differs from that of any model with other weights."""
        digest = hashlib.blake2b(digest_size=12)
        for name, value in self.network.state_dict().items():
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().numpy())
        return digest.hexdigest()


def save_checkpoint(path: Path | str, model: TrainedModel, training: Mapping[str, Any] | None = None) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: of the file; its folder is made where it is missing.
        model: what is saved.
        training: what resuming needs, of tensors, numbers, strings, lists and dicts.

    Raises:
        OSError: the file cannot be written; one from before is as it was.
    """
    content = {
        "network": model.network.state_dict(),
        "architecture": model.network.architecture,
        "input_size": list(model.input_size),
        "mask_values": list(model.mask_values),
        "epoch": model.epoch,
        "validation": dict(model.validation),
        "temperatures": dict(model.temperatures),
        "settings": dict(model.settings),
    }
    if training is not None:
        content["training"] = dict(training)
    write_checkpoint(path, content)


def write_checkpoint(path: Path | str, content: Mapping[str, Any]) -> None:
    """Write the content of a checkpoint, whole or not at all.

    Raises:
        OSError: the file cannot be written; one from before is as it was.
    """
    buffer = io.BytesIO()  # torch.save reports a full disk as anything but an OSError
    torch.save(dict(content), buffer)
    with whole_file(path) as file:
        file.write(buffer.getbuffer())


def load_model(
    path: Path | str,
    device: torch.device | str = "cpu",
    *,
    n_classes: int | None = None,
    bilinear: bool | None = None,
    input_size: tuple[int | None, int | None] = (None, None),
) -> TrainedModel:
    """Load a model of this project, or of the original one, ready to predict.

    Args:
        path: of the checkpoint.
        device: where the network is to be.
        n_classes, bilinear, input_size: what the user believes of the model, None for no opinion. A file of the
            original project does not know its input size: it is the one given, or 128x128.

    Raises:
        InputError: the file is missing or no checkpoint of such a network, or contradicts what the user believes.
    """
    model = model_from_checkpoint(read_checkpoint(path), path, input_size)
    architecture = model.network.architecture
    believed = {
        "--classes": (n_classes, architecture["n_classes"]),
        "--bilinear": (bilinear, architecture["bilinear"]),
        "--newW": (input_size[0], model.input_size[0]),
        "--newH": (input_size[1], model.input_size[1]),
    }
    for flag, (belief, truth) in believed.items():
        if belief is not None and belief != truth:
            given = flag if belief is True else f"{flag} {belief}"
            raise InputError(f"{path} contradicts {given}: the model has {truth}. Leave the flag out")
    model.network.to(device, memory_format=torch.channels_last)  # the layout that convolutions like best
    return model


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """The content of a checkpoint file.

    Raises:
        InputError: there is no such file, or it is not a dict of tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such model file; train_bayesian.py writes them (.pth)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise InputError(
            f"{path} cannot be read as a checkpoint: it is damaged, or no PyTorch file, or holds other things than "
            f"weights, which are not loaded because they could run code ({type(error).__name__})"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is no checkpoint of a U-Net: it holds a {type(content).__name__}, not a dict")
    return content


def model_from_checkpoint(
    content: Mapping[str, Any], name: Path | str, input_size: tuple[int | None, int | None] = (None, None)
) -> TrainedModel:
    """Rebuild the model of a checkpoint.

    Args:
        content: what `read_checkpoint` returned.
        name: of the file, for messages.
        input_size: width and height, used only for a file that does not tell.

    Raises:
        InputError: it is not the checkpoint of such a network, or its weights are not finite.
    """
    try:
        if "architecture" in content:
            weights, told = content["network"], dict(content["architecture"])
            size = content["input_size"]
        else:
            weights = {key: value for key, value in content.items() if isinstance(value, Tensor)}
            told = {"dropout": 0.2, "dropout_placement": "block"}
            size = [given or default for given, default in zip(input_size, DEFAULT_INPUT_SIZE, strict=True)]
        n_classes = weights[_LAST].shape[0]
        seen = {
            "n_channels": weights[_FIRST].shape[1],
            "n_classes": n_classes,
            "bilinear": _UPSAMPLING not in weights,
            "base_channels": weights[_FIRST].shape[0],
        }
        if any(told.get(key, value) != value for key, value in seen.items()):
            raise ValueError(f"its weights are those of {seen}, not of {told}")
        if seen["n_channels"] != 3:
            raise ValueError(f"it is for images of {seen['n_channels']} channels, not of 3")
        not_finite = [key for key, value in weights.items() if not torch.isfinite(value).all()]
        if not_finite:
            raise ValueError(f"{not_finite[0]} and {len(not_finite) - 1} more hold values that are not finite")
        network = BayesianUNet(**{**told, **seen})
        network.load_state_dict(weights)
        network.eval()
        default_values = [0, 255] if n_classes <= 2 else list(range(n_classes))
        mask_values = [int(value) for value in content.get("mask_values", default_values)]
        if len(mask_values) != max(n_classes, 2):
            raise ValueError(f"it has {len(mask_values)} mask values for {n_classes} classes")
        width, height = (int(length) for length in size)
        if min(width, height) < 16:
            raise ValueError(f"its input size is {width}x{height}, and 16x16 is the least")
        return TrainedModel(
            network,
            (width, height),
            mask_values,
            epoch=int(content.get("epoch", 0)),
            validation=dict(content.get("validation", {})),
            settings=dict(content.get("settings", {})),
            temperatures=_temperatures(content.get("temperatures", {})),
        )
    except _UNREADABLE as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise InputError(f"{name} is not the checkpoint of a U-Net of this project: {reason[:300]}") from error


def _temperatures(content: Mapping[str, Any]) -> dict[str, float]:
    temperatures = {str(method): float(value) for method, value in content.items()}
    if not all(0 < value < float("inf") for value in temperatures.values()):
        raise ValueError(f"its temperatures are {temperatures}")
    return temperatures
