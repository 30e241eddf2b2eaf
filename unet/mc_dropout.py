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


def split_masks(layers: Sequence[ChannelDropout], masks: Tensor) -> tuple[Tensor, ...]:
    """The (N, C, 1, 1) mask of each layer, of (N, D) masks from `draw_dropout_masks`."""
    return masks[:, :, None, None].split([layer.channels for layer in layers], dim=1)


@contextmanager
def use_dropout_masks(model: nn.Module, masks: Tensor) -> Iterator[None]:
    """Have the dropout layers apply given masks within the `with` block.

    Args:
        model: a network whose dropout layers are all `ChannelDropout`.
        masks: (N, D) masks from `draw_dropout_masks`, one row for each input of the network, on its device.
    """
    layers = dropout_layers(model)
    try:
        for layer, mask in zip(layers, split_masks(layers, masks), strict=True):
            layer.mask = mask
        yield
    finally:
        for layer in layers:
            layer.mask = None


@contextmanager
def mc_dropout(model: nn.Module, masks: Tensor | None = None) -> Iterator[None]:
    """Run a network with its dropout layers in training mode and everything else in evaluation mode.

    Batch norm uses its running statistics and does not update them. On exit, also after an exception, every module
    is restored to its previous mode (Gal and Ghahramani, ICML 2016).

    Args:
        model: a network with dropout; with `masks`, all of its dropout layers must be `ChannelDropout`.
        masks: as for `use_dropout_masks`, for reproducible passes; if None, each forward pass draws its own from
            PyTorch's global random state.

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


def draw_dropout_masks(model: nn.Module, num_samples: int, seed: int) -> Tensor:
    """Masks for `mc_dropout`, which depend on the seed alone, not on the device or the batch size.

    The first k masks do not depend on `num_samples`: fewer passes are a prefix of more.

    Args:
        model: a network whose dropout layers are all `ChannelDropout`.
        num_samples: number of passes T.
        seed: of the random numbers, from 0 to 2**63 - 1.

    Returns:
        (T, D) float32 of 0 and 1 / (1 - p), on the CPU: D is the number of channels of all dropout layers together, in
        their order.

    Raises:
        ValueError: a dropout layer is of another type, which takes no masks.
    """
    layers = dropout_layers(model)
    for layer in layers:
        if not isinstance(layer, ChannelDropout):
            raise ValueError(f"only ChannelDropout layers take masks, not a {type(layer).__name__}")
    p = torch.cat([torch.full((layer.channels,), layer.p) for layer in layers] or [torch.empty(0)])  # (D,)
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(num_samples, len(p), generator=generator)
    return (uniform >= p) / (1 - p)
