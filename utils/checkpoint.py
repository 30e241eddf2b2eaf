"""Save and load checkpoints; reads those of the original project and of similar U-Nets too.

A checkpoint is a dict of tensors and plain values, read with `weights_only=True`, so an untrusted file cannot run
code:

    network       weights, by name
    architecture  the arguments of the network: BayesianUNet(**architecture)
    input_size    [width, height] of the network's input
    mask_values   the mask value of class 0, 1, ...
    ignore_value  the mask value of pixels that do not count, or None
    white         the value of white in 16-bit images, or None if there were none
    epoch         number of epochs trained
    validation    scores on the validation images, by name
    temperatures  divisors of the logits, by prediction method; empty before they are fitted
    settings      how it was trained, by name
    training      only in last.pth: the training state, for resuming

Files of other projects are read, too, as `unet.weights` says.
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

from unet import BayesianUNet
from unet.weights import from_another_project, rebuild_network
from utils import RGB_OFFSET
from utils.runtime.atomic_files import atomic_file
from utils.runtime.device import copy_to_cpu
from utils.runtime.errors import InputError

DEFAULT_INPUT_SIZE = (128, 128)
_MIN_SIDE = 16  # pixels of the network's input, of which four poolings leave one

# What torch.load and the checks below raise on files that are not checkpoints, or are damaged.
_LOADING_ERRORS = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, RuntimeError, ValueError, TypeError, LookupError),
    *(AttributeError, AssertionError, ArithmeticError, EOFError, OSError, MemoryError),
)


@dataclass
class TrainedModel:
    """A network and what is needed to use it.

    Attributes:
        network: the network; in evaluation mode after loading.
        input_size: width and height of its input.
        mask_values: the value of class 0, 1, ... in masks, as in `utils.data.mask_classes.MaskClasses`.
        epoch: number of epochs trained.
        validation: scores on the validation images, by name; None where there is none.
        settings: how it was trained, by name.
        temperatures: divisors of the logits that calibrate the probabilities, by `Sampler.method`.
        ignore_value: the value in masks of pixels that do not count; None if there is none.
        white: the value of white in 16-bit images; None if it was trained on none.
    """

    network: BayesianUNet
    input_size: tuple[int, int] = DEFAULT_INPUT_SIZE
    mask_values: list[int] = field(default_factory=lambda: [0, 255])
    epoch: int = 0
    validation: dict[str, float | None] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    temperatures: dict[str, float] = field(default_factory=dict)
    ignore_value: int | None = None
    white: float | None = None

    @property
    def device(self) -> torch.device:
        """The device of the network's weights."""
        return next(self.network.parameters()).device

    @property
    def n_classes(self) -> int:
        """The number of classes that predictions distinguish; 2 for a one-class (sigmoid) network as well."""
        return len(self.mask_values)

    @property
    def one_class(self) -> bool:
        """Whether the network has a single sigmoid output."""
        return self.network.n_classes == 1

    def replica(self) -> "TrainedModel":
        """The same model for another thread: it shares the weights, but not the modes and masks of the layers."""
        shared = {id(tensor): tensor for tensor in (*self.network.parameters(), *self.network.buffers())}
        return replace(self, network=copy.deepcopy(self.network, shared))

    def fingerprint(self) -> str:
        """A digest of the weights."""
        digest = hashlib.blake2b(digest_size=12)
        for name, value in self.network.state_dict().items():
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().numpy())
        return digest.hexdigest()


def save_checkpoint(path: Path | str, model: TrainedModel) -> None:
    """Write a checkpoint, atomically.

    Args:
        path: output file; its folder is created if it does not exist.
        model: the model to save.

    Raises:
        OSError: the file cannot be written; an existing file of that name is unchanged.
    """
    write_checkpoint(path, checkpoint_content(model))


def checkpoint_content(model: TrainedModel) -> dict[str, Any]:
    """The content of a checkpoint, with copies of the weights."""
    return {
        "network": copy_to_cpu(model.network.state_dict()),
        "architecture": model.network.architecture,
        "input_size": list(model.input_size),
        "mask_values": list(model.mask_values),
        "ignore_value": model.ignore_value,
        "white": model.white,
        "epoch": model.epoch,
        "validation": dict(model.validation),
        "temperatures": dict(model.temperatures),
        "settings": dict(model.settings),
    }


def write_checkpoint(path: Path | str, content: Mapping[str, Any]) -> None:
    """Write the content of a checkpoint, atomically.

    Raises:
        OSError: the file cannot be written; an existing file of that name is unchanged.
    """
    buffer = io.BytesIO()  # torch.save does not report a full disk as an OSError
    torch.save(dict(content), buffer)
    with atomic_file(path) as file:
        file.write(buffer.getbuffer())


def load_model(
    path: Path | str, device: torch.device | str = "cpu", default_input_size: tuple[int, int] = DEFAULT_INPUT_SIZE
) -> TrainedModel:
    """Load a model of this project, or of the original one, ready to predict.

    Args:
        path: checkpoint file.
        device: device for the network.
        default_input_size: width and height for a file of another project, which does not record them.

    Raises:
        InputError: the file does not exist or is not a checkpoint of such a network.
    """
    model = model_from_checkpoint(read_checkpoint(path), path, default_input_size)
    model.network.to(device, memory_format=torch.channels_last)  # the fastest layout for convolutions
    return model


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """The content of a checkpoint file.

    Raises:
        InputError: there is no such file, or it does not contain a dict of tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: there is no such model file; expected a .pth file that train_bayesian.py has written"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _LOADING_ERRORS as error:
        raise InputError(
            f"{path} cannot be read as a checkpoint: it is damaged, or not a PyTorch file, or contains objects other "
            f"than weights, which are not loaded because they could run code ({type(error).__name__})"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a checkpoint of a U-Net: it contains a {type(content).__name__}, not a dict")
    return content


def model_from_checkpoint(
    content: Mapping[str, Any], name: Path | str, default_input_size: tuple[int, int] = DEFAULT_INPUT_SIZE
) -> TrainedModel:
    """Rebuild the model of a checkpoint.

    Args:
        content: the content of the file, from `read_checkpoint`.
        name: name of the file, for messages.
        default_input_size: width and height for a file that does not record them.

    Raises:
        InputError: it is not the checkpoint of such a network, or its weights are not finite.
    """
    try:
        if not {"network", "architecture"} <= content.keys():
            content = from_another_project(content, name, default_input_size)
        network = rebuild_network(content["network"], content["architecture"])
        default_values = [0, 255] if network.n_classes <= 2 else list(range(network.n_classes))
        mask_values = [_mask_value(value) for value in content.get("mask_values", default_values)]
        if len(mask_values) != max(network.n_classes, 2):
            raise ValueError(f"it has {len(mask_values)} mask values for {network.n_classes} classes")
        width, height = (int(length) for length in content["input_size"])
        if min(width, height) < _MIN_SIDE:
            raise ValueError(f"its input size is {width}x{height}, smaller than {_MIN_SIDE}x{_MIN_SIDE}")
        return TrainedModel(
            network,
            (width, height),
            mask_values,
            epoch=int(content.get("epoch", 0)),
            validation=dict(content.get("validation", {})),
            settings=dict(content.get("settings", {})),
            temperatures=_temperatures(content.get("temperatures", {})),
            ignore_value=None if content.get("ignore_value") is None else int(content["ignore_value"]),
            white=None if content.get("white") is None else float(content["white"]),
        )
    except _LOADING_ERRORS as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise InputError(f"{name} is not a checkpoint of a U-Net of this project: {reason[:300]}") from error


def _mask_value(value: int | list[int]) -> int:
    """A mask value of a file: a number or, in those of other projects, a colour."""
    if not isinstance(value, list):
        return int(value)
    red, green, blue = value
    return int(red) if red == green == blue else RGB_OFFSET + (int(red) << 16) + (int(green) << 8) + int(blue)


def _temperatures(content: Mapping[str, Any]) -> dict[str, float]:
    temperatures = {str(method): float(value) for method, value in content.items()}
    if not all(0 < value < float("inf") for value in temperatures.values()):
        raise ValueError(f"its temperatures are {temperatures}, positive numbers were expected")
    return temperatures
