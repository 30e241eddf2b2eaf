"""Naive reference implementations of the probability maps: one pass or view at a time, at full size."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn


def network_probability(
    network: nn.Module,
    image: Image.Image,
    device: str = "cpu",
    size: tuple[int, int] = (128, 128),
    masks: Tensor | None = None,
) -> Tensor:
    """(H, W) probability of class 1: resize with Pillow, forward pass, upsample the logits, softmax (or sigmoid)."""
    resized = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC), dtype=np.float32) / 255
    x = torch.from_numpy(resized).permute(2, 0, 1)[None].to(device)  # (1, 3, h, w)
    with torch.inference_mode():
        logits = F.interpolate(
            network(x, masks), size=(image.height, image.width), mode="bilinear", align_corners=False
        )
    return logits.sigmoid()[0, 0] if logits.shape[1] == 1 else logits.softmax(dim=1)[0, 1]


def tta_probability(probability: Callable[[Image.Image], Tensor], image: Image.Image, shrink: float = 0.8) -> Tensor:
    """(H, W) mean over the 16 views, each made and inverted at full size, in whole pixels."""
    width, height = image.size
    w, h = round(width * shrink), round(height * shrink)
    left, top = (width - w) // 2, (height - h) // 2
    padded = Image.new("RGB", image.size)
    padded.paste(image.resize((w, h), Image.Resampling.BICUBIC), (left, top))
    total = torch.zeros(height, width)
    for base in (image, padded):
        for flip in (False, True):
            for quarter_turns in range(4):
                # Apply the symmetry to the image.
                pixels = np.asarray(base)
                pixels = np.rot90(pixels[:, ::-1] if flip else pixels, quarter_turns)
                view = probability(Image.fromarray(np.ascontiguousarray(pixels))).numpy()

                # Invert it on the probabilities.
                rotated = np.rot90(view, -quarter_turns)
                upright = torch.from_numpy((rotated[:, ::-1] if flip else rotated).copy())
                if base is padded:
                    inner = upright[top : top + h, left : left + w]
                    upright = F.interpolate(inner[None, None], (height, width), mode="bilinear", align_corners=False)[
                        0, 0
                    ]
                total += upright
    return total / 16
