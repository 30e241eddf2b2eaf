"""Dice coefficient and Dice loss.

Dice, "Measures of the Amount of Ecologic Association Between Species", 1945; as a loss: Milletari et al.,
"V-Net", 3DV 2016.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from utils import IGNORED_CLASS


def dice_coefficient(prediction: Tensor, target: Tensor) -> Tensor:
    """Dice coefficient 2 sum(p t) / (sum p + sum t) over the last two dimensions; 1 if both are empty.

    Args:
        prediction: (..., H, W) in [0, 1], binary or soft.
        target: (..., H, W) in [0, 1].

    Returns:
        (...) float32 in [0, 1].
    """
    prediction, target = prediction.float(), target.float()
    overlap = 2 * (prediction * target).sum((-2, -1))
    total = prediction.sum((-2, -1)) + target.sum((-2, -1))
    return torch.where(total > 0, overlap / total.clamp(min=1e-12), 1.0)


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice coefficient: of each image the mean over the classes but the background that it shows, or 0.

    A class that an image does not show has a coefficient of 0, and hardly any gradient, whatever is predicted.

    Args:
        logits: (N, C, H, W), C >= 2.
        target: (N, H, W) integer classes; pixels of `IGNORED_CLASS` do not count.

    Returns:
        The mean over the images, a float32 scalar.
    """
    counted = (target != IGNORED_CLASS)[:, None]
    probs = logits.float().softmax(dim=1)[:, 1:] * counted  # (N, C - 1, H, W)
    one_hot = F.one_hot(target.long().clamp(max=logits.shape[1] - 1), logits.shape[1]).movedim(-1, 1)[:, 1:] * counted
    shown = one_hot.flatten(2).any(dim=2)  # (N, C - 1)
    n_shown = shown.sum(dim=1)
    dice = (dice_coefficient(probs, one_hot) * shown).sum(dim=1) / n_shown.clamp(min=1)
    return 1 - torch.where(n_shown > 0, dice, 1.0).mean()


def segmentation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy plus Dice loss, averaged over the batch.

    Args:
        logits: (N, C, H, W), C >= 2.
        target: (N, H, W) integer classes; pixels of `IGNORED_CLASS` do not count.

    Returns:
        A float32 scalar.
    """
    pixel_losses = F.cross_entropy(logits.float(), target.long(), reduction="none", ignore_index=IGNORED_CLASS)
    counted = (target != IGNORED_CLASS).sum((1, 2)).clamp(min=1)
    return (pixel_losses.sum((1, 2)) / counted).mean() + dice_loss(logits, target)
