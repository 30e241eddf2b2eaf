"""From the weights in a file to their network, of files of this project and of others.

Other projects' files hold weights of the same names: the file itself is the dict of weights (and of `mask_values`), or
one of its values is, such as `state_dict`; a prefix that all names share, such as `module.` or `_orig_mod.`, is
removed. The bias of a convolution before batch norm only shifts the mean there, from which it is subtracted. Dropout
leaves no trace in such a file, so the number of filters tells: 32 are the original project's, with dropout at the end
of each double convolution but the first; any other number, such as the 64 of Pytorch-UNet, is read as a network without
dropout.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unet.unet_model import BayesianUNet

logger = logging.getLogger(__name__)

_ORIGINAL_BASE_CHANNELS = 32
_FIRST, _LAST, _UPSAMPLING = "inc.double_conv.0.weight", "outc.conv.weight", "up1.up.weight"


def from_another_project(content: Mapping[str, Any], name: Path | str, input_size: tuple[int, int]) -> dict[str, Any]:
    """The content of a file that has no record of its network, as that of a checkpoint of this project.

    Args:
        content: of the file.
        name: of the file, for messages.
        input_size: width and height of the network's input, which such a file does not record.

    Raises:
        KeyError: the file has no such weights.
    """
    dicts = [content, *(value for value in content.values() if isinstance(value, Mapping))]
    found = [(str(key), weights) for weights in dicts for key in weights if f".{key}".endswith(f".{_FIRST}")]
    if not found:
        raise KeyError(_FIRST)
    first, source = found[0]
    prefix, filters = first.removesuffix(_FIRST), len(source[first])
    weights = {str(key): value for key, value in source.items() if isinstance(value, Tensor)}
    weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    for biased in [key for key in weights if re.search(r"double_conv\.[03]\.bias$", key)]:
        convolution, layer = biased.removesuffix(".bias").rsplit(".", 1)
        mean = f"{convolution}.{int(layer) + 1}.running_mean"
        weights[mean] = weights[mean] - weights.pop(biased)
    original = filters == _ORIGINAL_BASE_CHANNELS
    if not original:
        logger.info(
            "%s records neither dropout nor an input size: with %d filters it is read as a U-Net without dropout, for "
            "inputs of %dx%d",
            *(name, filters, *input_size),
        )
    architecture = {"dropout": 0.2 if original else 0.0, "dropout_placement": "block"}
    values = {key: value for part in (content, source) for key, value in part.items() if key == "mask_values"}
    return {"network": weights, "architecture": architecture, "input_size": input_size, **values}


def rebuild_network(weights: Mapping[str, Tensor], recorded: Mapping[str, Any]) -> BayesianUNet:
    """The network with these weights, in evaluation mode; the shapes of the weights complete what is recorded.

    Args:
        weights: by name.
        recorded: arguments of the network.

    Raises:
        KeyError: weights are missing.
        RuntimeError: their shapes are those of no such network.
        ValueError: they contradict what is recorded, or are not finite, or the network is for other images.
    """
    inferred = {
        "n_channels": weights[_FIRST].shape[1],
        "n_classes": weights[_LAST].shape[0],
        "bilinear": _UPSAMPLING not in weights,
        "base_channels": weights[_FIRST].shape[0],
    }
    if any(recorded.get(key, value) != value for key, value in inferred.items()):
        raise ValueError(f"its weights are those of {inferred}, not of {recorded}")
    if inferred["n_channels"] != 3:
        raise ValueError(f"it is for images of {inferred['n_channels']} channels, 3 are supported")
    not_finite = [key for key, value in weights.items() if not torch.isfinite(value).all()]
    if not_finite:
        raise ValueError(
            f"{len(not_finite)} of its tensors contain values that are not finite, such as {not_finite[0]}"
        )
    network = BayesianUNet(**{**recorded, **inferred})
    network.load_state_dict(weights)
    return network.eval()
