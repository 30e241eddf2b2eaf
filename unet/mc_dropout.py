"""Monte Carlo dropout: a context manager that keeps dropout active and everything else in evaluation mode."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from unet.unet_parts import ChannelDropout


def dropout_layers(model: nn.Module) -> list[_DropoutNd]:
    """The dropout layers of a model with p > 0, in the order of `model.modules()`."""
    return [module for module in model.modules() if isinstance(module, _DropoutNd) and module.p > 0]


@contextmanager
def use_dropout_masks(model: nn.Module, masks: Sequence[Tensor]) -> Iterator[None]:
    """Have the dropout layers apply given masks within the `with` block.

    Args:
        model: a network whose dropout layers are all `ChannelDropout`.
        masks: masks from `draw_dropout_masks`.
    """
    layers = dropout_layers(model)
    try:
        for layer, mask in zip(layers, masks, strict=True):
            layer.mask = mask
        yield
    finally:
        for layer in layers:
            layer.mask = None


@contextmanager
def mc_dropout(model: nn.Module, masks: Sequence[Tensor] | None = None) -> Iterator[None]:
    """Run a network with its dropout layers in training mode and everything else in evaluation mode.

    Batch norm uses its running statistics and does not update them. On exit, also after an exception, every module
    is restored to its previous mode (Gal and Ghahramani, ICML 2016).

    Args:
        model: a network with dropout; with `masks`, all of its dropout layers must be `ChannelDropout`.
        masks: masks from `draw_dropout_masks`, for reproducible passes; if None, each forward pass draws its own
            from PyTorch's global random state.

    Raises:
        ValueError: the model has no dropout layer with p > 0, so that all passes would be equal.
    """
    layers = dropout_layers(model)
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no dropout layer with p > 0: its Monte Carlo passes would all be equal"
        )
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        for layer in layers:
            layer.train()
        with use_dropout_masks(model, masks) if masks is not None else nullcontext():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def draw_dropout_masks(model: nn.Module, num_samples: int, seed: int) -> list[Tensor]:
    """Masks for `mc_dropout`, which depend on the seed alone, not on the device or the batch size.

    The first k masks do not depend on `num_samples`: fewer passes are a prefix of more.

    Args:
        model: a network whose dropout layers are all `ChannelDropout`.
        num_samples: number of passes T.
        seed: of the random numbers, from 0 to 2**63 - 1.

    Returns:
        For each dropout layer a (T, C, 1, 1) float32 tensor of 0 and 1 / (1 - p), on the CPU.

    Raises:
        ValueError: a dropout layer is of another type, which takes no masks.
    """
    layers = dropout_layers(model)
    for layer in layers:
        if not isinstance(layer, ChannelDropout):
            raise ValueError(f"only ChannelDropout layers take masks, not a {type(layer).__name__}")
    if not layers:
        return []
    channels = [layer.channels for layer in layers]
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(num_samples, sum(channels), generator=generator)  # one row per pass
    return [
        ((part >= layer.p).float() / (1 - layer.p))[:, :, None, None]
        for layer, part in zip(layers, uniform.split(channels, dim=1), strict=True)
    ]
