"""Dice coefficient and Dice loss.

Dice, "Measures of the Amount of Ecologic Association Between Species", 1945; as a loss: Milletari et al.,
"V-Net", 3DV 2016.
"""

import torch
from torch import Tensor


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

    The coefficient is 2 sum min(p, t) / (sum p + sum t), which for shares t of 0 and 1 is 2 sum p t / (sum p + sum t),
    and for all shares has its maximum at p = t (Wang et al., "Dice Semimetric Losses", MICCAI 2023). A class that an
    image does not show is left out: its coefficient would be 0, and its gradient too, whatever is predicted.

    Args:
        logits: (N, C, H, W), C >= 2.
        target: (N, C, H, W) `class_shares`; ignored shares do not count.

    Returns:
        The mean over the images, a float32 scalar.
    """
    ignored, shares = target[:, :1], target[:, 1:]
    probs = logits.float().softmax(dim=1)[:, 1:] * (1 - ignored)  # (N, C - 1, H, W)
    total = probs.sum((2, 3)) + shares.sum((2, 3))
    dice = 2 * torch.minimum(probs, shares).sum((2, 3)) / total.clamp(min=1e-12)
    shown = shares.flatten(2).any(dim=2)  # (N, C - 1)
    n_shown = shown.sum(dim=1)
    return 1 - torch.where(n_shown > 0, (dice * shown).sum(dim=1) / n_shown.clamp(min=1), 1.0).mean()


def segmentation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy plus Dice loss, averaged over the batch.

    Args:
        logits: (N, C, H, W), C >= 2.
        target: (N, C, H, W) `class_shares`; ignored shares do not count.

    Returns:
        A float32 scalar.
    """
    ignored, foreground = target[:, :1], target[:, 1:]
    background = 1 - target.sum(dim=1, keepdim=True)
    shares = torch.cat([background, foreground], dim=1)
    cross_entropies = -(shares * logits.float().log_softmax(dim=1)).sum((1, 2, 3))
    counted = (1 - ignored).sum((1, 2, 3)).clamp(min=1)
    return (cross_entropies / counted).mean() + dice_loss(logits, target)
