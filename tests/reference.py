"""The straightforward way to the maps, one pass or view at a time at full size: what the project is held to."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn


def network_probability(network: nn.Module, image: Image.Image, device: str = "cpu") -> Tensor:
    """(H, W) probability of class 1: resize with Pillow, run, upsample the logits, softmax (or sigmoid)."""
    small = np.asarray(image.convert("RGB").resize((128, 128), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    x = torch.from_numpy(small).permute(2, 0, 1)[None].to(device)  # (1, 3, 128, 128)
    with torch.inference_mode():
        logits = F.interpolate(network(x), size=(image.height, image.width), mode="bilinear", align_corners=False)
    return logits.sigmoid()[0, 0] if logits.shape[1] == 1 else logits.softmax(dim=1)[0, 1]


def tta_probability(probability: Callable[[Image.Image], Tensor], image: Image.Image, shrink: float = 0.8) -> Tensor:
    """(H, W) mean over the 16 views, each made and turned back at full size, in whole pixels."""
    width, height = image.size
    w, h = round(width * shrink), round(height * shrink)
    left, top = (width - w) // 2, (height - h) // 2
    shrunk = Image.new("RGB", image.size)
    shrunk.paste(image.resize((w, h), Image.Resampling.BICUBIC), (left, top))
    total = torch.zeros(height, width)
    for base in (image, shrunk):
        for flip in (False, True):
            for turns in range(4):
                pixels = np.asarray(base)
                pixels = np.rot90(pixels[:, ::-1] if flip else pixels, turns)
                view = probability(Image.fromarray(np.ascontiguousarray(pixels))).numpy()
                back = np.rot90(view, -turns)
                back = torch.from_numpy((back[:, ::-1] if flip else back).copy())
                if base is shrunk:
                    inner = back[top : top + h, left : left + w]
                    back = F.interpolate(inner[None, None], (height, width), mode="bilinear", align_corners=False)[0, 0]
                total += back
    return total / 16
