"""Random logits, probabilities and ground truth; images and masks in memory."""

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from utils.data.class_shares import class_shares
from utils.inference.upsampling import LogitSamples
from utils.metrics.pixel_counter import PixelCounter
from utils.metrics.pixel_counts import PixelCounts
from utils.metrics.pixel_metrics import PIXEL_METRICS
from utils.metrics.uncertainty import entropy


def random_samples(seed: int = 0, t: int = 5, c: int = 2, h: int = 6, w: int = 7) -> list[LogitSamples]:
    """T samples of an image's logits, all of zoom 1."""
    generator = torch.Generator().manual_seed(seed)
    return [LogitSamples(3 * torch.randn(t, c, h, w, generator=generator))]


def random_maps(seed: int, n_classes: int = 2, size: tuple[int, int] = (16, 20)) -> tuple[Tensor, Tensor]:
    """(C, H, W) probabilities of all magnitudes, and an (H, W) target for which they are badly calibrated."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(n_classes, *size, generator=generator)
    target = (logits + 6 * torch.randn(n_classes, *size, generator=generator)).argmax(dim=0)
    return logits.softmax(dim=0), target


class SeededTensorDataset(TensorDataset):
    """Images and masks by their number; by number and seed images and the shares of the classes."""

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, ...]:
        if not isinstance(key, tuple):
            return super().__getitem__(key)
        image, mask = super().__getitem__(key[0])
        return image, class_shares(mask, 2)


def counts_of(probs: Tensor, target: Tensor, **options: int) -> PixelCounts:
    """The pixel counts of a single image."""
    counter = PixelCounter(**options)
    counter.add(probs, entropy(probs), target)
    return counter.read()


def pixel_metrics(counts: PixelCounts) -> dict[str, float]:
    """All pixel metrics of a single image."""
    return {name: float(metric(counts)) for name, metric in PIXEL_METRICS.items()}
