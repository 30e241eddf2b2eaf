"""How much of each pixel of the network's resolution each class covers: the targets of the training."""

import torch
import torch.nn.functional as F
from torch import Tensor

from utils import IGNORED_CLASS


def class_shares(classes: Tensor, n_classes: int, side: int = 1) -> Tensor:
    """The shares of the classes in the pixels of a mask, or in squares of several pixels.

    Args:
        classes: (H, W) or (N, H, W) uint8 classes, or `IGNORED_CLASS`.
        n_classes: number of classes, C.
        side: of the squares, by which H and W are divisible.

    Returns:
        (C, H / side, W / side) or (N, C, H / side, W / side) float32 in [0, 1]: the share of the ignored pixels, then
        those of class 1, 2, ... The rest is background.
    """
    shares = torch.stack([classes == k for k in (IGNORED_CLASS, *range(1, n_classes))], dim=-3).float()
    return F.avg_pool2d(shares, side) if side > 1 else shares
