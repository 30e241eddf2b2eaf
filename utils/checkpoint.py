"""Save and load models, and ensembles of them; reads files of the original project and of similar U-Nets too.

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
    risk_curves   the losses of the calibration images, by prediction method: dicts of `RiskCurves`
    settings      how it was trained, by name
    training      only in last.pth: the training state, for resuming

An ensemble has `members`, a list of such dicts, in place of `network` and `architecture`. Files of other projects are
read as `unet.weights` says.
"""

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unet.weights import from_another_project, rebuild_network
from utils import RGB_OFFSET
from utils.metrics.risk_control import RISK_THRESHOLDS, RiskCurves
from utils.models import DEFAULT_INPUT_SIZE, TrainedModel, combine_models
from utils.runtime.atomic_files import write_file
from utils.runtime.device import copy_to_cpu, memory_format
from utils.runtime.errors import InputError

_MIN_SIDE = 16  # pixels of the network's input, of which four poolings leave one

# What torch.load and the checks below raise on files that are not checkpoints, or are damaged.
_LOADING_ERRORS = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, RuntimeError, ValueError, TypeError, LookupError),
    *(AttributeError, AssertionError, ArithmeticError, EOFError, OSError, MemoryError),
)


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
    """The content of a checkpoint, with copies of the weights.

    Raises:
        ValueError: it has not one mask value for each class.
    """
    if model.n_classes != max(model.network.n_classes, 2):
        raise ValueError(f"the model has {model.n_classes} mask values for {model.network.n_classes} classes")
    if model.members:
        networks = {"members": [checkpoint_content(member) for member in model.members]}
    else:
        networks = {"network": copy_to_cpu(model.network.state_dict()), "architecture": model.network.architecture}
    return {
        **networks,
        "input_size": list(model.input_size),
        "mask_values": list(model.mask_values),
        "ignore_value": model.ignore_value,
        "epoch": model.epoch,
        "validation": dict(model.validation),
        "settings": dict(model.settings),
        **calibration_content(model),
    }


def calibration_content(model: TrainedModel) -> dict[str, Any]:
    """The part of a checkpoint that a calibration determines, with the value of white that it holds for."""
    curves = {
        method: {
            "images": one.images,
            "groups": one.groups,
            "settings": dict(one.settings),
            "outer": torch.from_numpy(one.outer.copy()),
            "inner": torch.from_numpy(one.inner.copy()),
        }
        for method, one in model.risk_curves.items()
    }
    return {"white": model.white, "temperatures": dict(model.temperatures), "risk_curves": curves}


def write_checkpoint(path: Path | str, content: Mapping[str, Any]) -> None:
    """Write the content of a checkpoint, atomically.

    Raises:
        OSError: the file cannot be written; an existing file of that name is unchanged.
    """
    buffer = io.BytesIO()  # torch.save does not report a full disk as an OSError
    torch.save(dict(content), buffer)
    write_file(path, buffer.getbuffer())


def load_model(
    path: Path | str, device: torch.device | str = "cpu", default_input_size: tuple[int, int] = DEFAULT_INPUT_SIZE
) -> TrainedModel:
    """Load a model or an ensemble of this project, or a model of another one, ready to predict.

    Args:
        path: checkpoint file.
        device: device for the network.
        default_input_size: width and height for a file of another project, which does not record them.

    Raises:
        InputError: the file does not exist or is not a checkpoint of such a network.
    """
    model = model_from_checkpoint(read_checkpoint(path), path, default_input_size)
    for network in model.networks:
        network.to(device, memory_format=memory_format(torch.device(device)))
    return model


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """The content of a checkpoint file.

    Raises:
        InputError: there is no such file, or it does not contain a dict of tensors and plain values.
    """
    path = Path(path)
    if path.is_dir():
        files = ", ".join(sorted(file.name for file in path.glob("*.pth"))) or "no .pth file"
        raise InputError(f"{path} is a folder, a model file was expected: it has {files}")
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


def is_of_this_project(content: Mapping[str, Any]) -> bool:
    """Whether a file records its network or its members, as those of this project do."""
    return "members" in content or {"network", "architecture"} <= content.keys()


def model_from_checkpoint(
    content: Mapping[str, Any], name: Path | str, default_input_size: tuple[int, int] = DEFAULT_INPUT_SIZE
) -> TrainedModel:
    """Rebuild the model, or the ensemble, of a checkpoint.

    Args:
        content: the content of the file, from `read_checkpoint`.
        name: name of the file, for messages.
        default_input_size: width and height for a file that does not record them.

    Raises:
        InputError: it is not the checkpoint of such a network, or its weights are not finite.
    """
    try:
        if "members" in content and "network" not in content:
            parts = {f"{name}, member {i}": one for i, one in enumerate(content["members"], start=1)}
            ensemble = combine_models({part: model_from_checkpoint(one, part) for part, one in parts.items()})
            return replace(ensemble, **_recorded_options(content))
        if not is_of_this_project(content):
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
            **_recorded_options(content),
        )
    except InputError:  # of a member
        raise
    except _LOADING_ERRORS as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise InputError(f"{name} is not a checkpoint of a U-Net of this project: {reason[:300]}") from error


def _mask_value(value: int | list[int]) -> int:
    """A mask value of a file: a number or, in those of other projects, a colour."""
    if not isinstance(value, list):
        return int(value)
    if len(value) != 3:
        raise ValueError(f"it has a mask value {value}: a number or the three channels of a colour were expected")
    red, green, blue = value
    return int(red) if red == green == blue else RGB_OFFSET + (int(red) << 16) + (int(green) << 8) + int(blue)


def _recorded_options(content: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that a model and an ensemble have alike, and that a file may lack."""
    temperatures = {str(method): float(value) for method, value in content.get("temperatures", {}).items()}
    if not all(0 < value < float("inf") for value in temperatures.values()):
        raise ValueError(f"its temperatures are {temperatures}, positive numbers were expected")
    return {
        "temperatures": temperatures,
        "risk_curves": {str(key): _rebuild_curves(one) for key, one in content.get("risk_curves", {}).items()},
        "ignore_value": None if content.get("ignore_value") is None else int(content["ignore_value"]),
        "white": None if content.get("white") is None else float(content["white"]),
    }


def _rebuild_curves(content: Mapping[str, Any]) -> RiskCurves:
    """The curves of one method, as `calibration_content` stores them."""
    outer, inner = content["outer"].double().numpy(), content["inner"].double().numpy()
    images, groups, n = int(content["images"]), content.get("groups"), len(RISK_THRESHOLDS)
    rising = (outer, inner[::-1])  # from the mask of all pixels, and of none, which have no loss
    valid = all(one.shape == (n,) and one[0] == 0 and one[-1] <= 1 and (np.diff(one) >= 0).all() for one in rising)
    if images < 1 or not (groups is None or 1 <= int(groups) <= images) or not valid:
        raise ValueError(f"its risk curves are not monotone losses of images in [0, 1] at {n} thresholds")
    return RiskCurves(images, outer, inner, dict(content["settings"]), groups and int(groups))
