"""The loss of a batch, as one module, which a GPU can record."""

import torch
from torch import Tensor, nn

from unet import class_logits
from utils.data.preprocessing import to_network_input
from utils.dice_score import segmentation_loss
from utils.runtime.device import mixed_precision


class BatchLoss(nn.Module):
    """Forward pass and loss, as a module of the network's weights.

    Args:
        network: the network, perhaps wrapped for training in several processes.
        dtype: dtype of mixed precision; None for single precision.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, images: Tensor, target: Tensor, dropout: Tensor) -> Tensor:
        """The mean loss over the images; 0 without images, but with gradients.

        Args:
            images: (N, 3, h, w) uint8, on the network's device.
            target: (N, C, h, w) `class_shares`.
            dropout: (N, D) dropout masks.
        """
        x = to_network_input(images, images.device)
        # A recording must not contain what an earlier forward pass has cached; each weight is used once anyway.
        with mixed_precision(x.device, self.dtype, cache=False):
            logits = class_logits(self.network(x, dropout))
        return segmentation_loss(logits, target) if len(images) else logits.sum()
