"""Count the pixels of an image for `PixelCounts`, block by block."""

from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch import Tensor

from utils import IGNORED_CLASS
from utils.metrics.pixel_counts import (
    MIN_PROBABILITY,
    N_BINS,
    N_CONFIDENCE_BINS,
    N_ENTROPY_BINS,
    PixelCounts,
    confidence_bin_centres,
    confidence_bins,
    doubt_bins,
    entropy_bins,
)
from utils.metrics.uncertainty import entropy

_CPU_BLOCK_SIZE, _GPU_BLOCK_SIZE = 2**17, 2**24  # pixels that are counted at a time
_NOT_COUNTED = 2  # beside the outcomes 0 and 1 of a pixel
_SURE_LOSS = 1 / 16  # 1 - the probability of the true class, below which that is in the last bin, from 14/15 on
_COPIES = 64  # of the bins of a histogram on a GPU


def count_pixels(probs: Tensor, uncertainty: Tensor, target: Tensor) -> PixelCounts:
    """The counts of the pixels of a whole image, with any uncertainty in place of the entropy.

    Args:
        uncertainty: (H, W) float32 in [0, ln C], by which errors are to be detected, such as the mutual information.
        probs, target: as for `PixelCounter.add`.
    """
    counter = PixelCounter(of_entropy=False)
    counter.add(probs, uncertainty, target)
    return counter.read()


class PixelCounter:
    """Counts the pixels of an image. Only `read` waits for a CUDA device.

    Args:
        block_size: number of pixels that are counted at a time; None for the default of the device.
        of_entropy: whether the uncertainty of a pixel is the entropy of its probabilities, which saves a CPU much time.
    """

    def __init__(self, block_size: int | None = None, of_entropy: bool = True) -> None:
        self._block_size, self._of_entropy = block_size, of_entropy
        self._total: PixelCounts | None = None
        self._sure = _SurePixels()
        self._unsure: list[tuple[Tensor, Tensor, Tensor]] = []  # few, which are counted together

    def add(self, probs: Tensor, uncertainty: Tensor, target: Tensor) -> None:
        """Count the pixels of some rows.

        Args:
            probs: (C, H, W) float32, C >= 2.
            uncertainty: (H, W) float32 in [0, ln C], the entropy of these probabilities unless `of_entropy` is False.
            target: (H, W) integer class indices of the ground truth, on the same device; pixels of `IGNORED_CLASS` are
                not counted.

        Raises:
            ValueError: their sizes differ.
        """
        if not probs.shape[1:] == uncertainty.shape == target.shape:
            shapes = [tuple(values.shape) for values in (probs, uncertainty, target)]
            raise ValueError(f"the sizes of {shapes[0]} probabilities, {shapes[1]} and {shapes[2]} maps differ")
        if probs.device.type == "mps":  # does not support double precision
            probs, uncertainty, target = probs.cpu(), uncertainty.cpu(), target.cpu()
        block_size = self._block_size or (_CPU_BLOCK_SIZE if probs.is_cpu else _GPU_BLOCK_SIZE)
        for block in zip(
            probs.flatten(1).split(block_size, dim=1),
            uncertainty.flatten().split(block_size),
            target.flatten().split(block_size),
            strict=True,
        ):
            if self._of_entropy and probs.is_cpu and len(probs) == 2:
                self._unsure.append(self._sure.take(*block))
                if sum(len(values) for _, _, values in self._unsure) >= block_size:
                    self._count_unsure()
            else:
                self._add(_count_block(*block))

    def read(self) -> PixelCounts:
        """The counts of the pixels so far, as arrays."""
        self._count_unsure()
        total = self._total.read()
        return total + self._sure.counts() if self._sure.pixels else total

    def _count_unsure(self) -> None:
        if self._unsure:
            self._add(_count_block(*(torch.cat(values, dim=-1) for values in zip(*self._unsure, strict=True))).read())
            self._unsure.clear()

    def _add(self, counts: PixelCounts) -> None:
        self._total = counts if self._total is None else self._total + counts


@dataclass
class _SurePixels:
    """Sums over the pixels, of two classes and on a CPU, that are correct with a high confidence: most pixels.

    Sums are enough, for these pixels lie in the first or the last bin of a reliability diagram, and their entropy is a
    function of the confidence.

    Attributes:
        pixels, positives: their number, and how many of them are foreground.
        loss, positives_loss: sum of 1 - the probability of the true class, and that of the foreground.
        powers: sums of the second, third and fourth powers of that loss.
        by_doubt: their number in the bins of `doubt_bins`.
    """

    pixels: int = 0
    positives: int = 0
    loss: float = 0.0
    positives_loss: float = 0.0
    powers: np.ndarray = field(default_factory=lambda: np.zeros(3))
    by_doubt: np.ndarray = field(default_factory=lambda: np.zeros(N_CONFIDENCE_BINS, np.int64))

    def take(self, probs: Tensor, predictive_entropy: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Add the sure ones of n pixels, as (2, n), (n,) and (n,); returns the others."""
        if target.numpy().max(initial=0) == IGNORED_CLASS:
            counted = target != IGNORED_CLASS
            probs, predictive_entropy, target = probs[:, counted], predictive_entropy[counted], target[counted]
        positive = target.to(probs.dtype)
        loss = (probs[1] - positive).abs_()
        others = torch.from_numpy(np.flatnonzero(~(loss.numpy() < _SURE_LOSS)))  # NaN, too
        unsure = tuple(values.index_select(-1, others) for values in (probs, predictive_entropy, target))
        self.pixels += len(target) - len(others)
        self.positives += np.count_nonzero(target.numpy()) - np.count_nonzero(unsure[2].numpy())

        # Sums over the sure ones: the others are set to 0.
        loss.index_fill_(0, others, 0)
        self.by_doubt += torch.bincount(doubt_bins(loss), minlength=N_CONFIDENCE_BINS).numpy()
        self.by_doubt[0] -= len(others)
        self.loss += loss.sum().item()
        self.positives_loss += positive.mul_(loss).sum().item()
        squares = torch.square(loss, out=positive)
        self.powers += squares.sum().item(), squares.dot(loss).item(), squares.dot(squares).item()
        return unsure

    def counts(self) -> PixelCounts:
        """Their counts."""
        foreground, top_label = np.zeros((2, 3, N_BINS))
        negatives = self.pixels - self.positives
        foreground[:, 0] = negatives, self.loss - self.positives_loss, 0
        foreground[:, -1] = self.positives, self.positives - self.positives_loss, self.positives
        top_label[:, -1] = self.pixels, self.pixels - self.loss, self.pixels
        by_confidence = np.stack([np.zeros_like(self.by_doubt), self.by_doubt])
        by_entropy = np.zeros((2, N_ENTROPY_BINS), np.int64)
        np.add.at(by_entropy[1], _entropy_bins_of_confidence(), self.by_doubt)
        # -ln(1 - loss) as a series, whose remainder is less than 2.1e-7 per pixel.
        log_loss = self.loss + (self.powers / (2, 3, 4)).sum()
        return PixelCounts(top_label, foreground, self.powers[0], log_loss, by_confidence, by_entropy)


@cache
def _entropy_bins_of_confidence() -> np.ndarray:
    """With two classes, the entropy bin of the centre of each confidence bin, (n,)."""
    confidence = torch.from_numpy(confidence_bin_centres(N_CONFIDENCE_BINS)).float()
    confidence[0] = 1  # as that of errors in this bin, whose entropy is 0
    return entropy_bins(entropy(confidence[None, None])[0], 2).numpy()


def _count_block(probs: Tensor, predictive_entropy: Tensor, target: Tensor) -> PixelCounts:
    """The counts of (C, n), (n,) and (n,) pixels."""
    counted = target != IGNORED_CLASS
    if len(probs) == 2:
        confidence, predicted, foreground = torch.maximum(probs[0], probs[1]), probs[1] > probs[0], probs[1]
        p_target = torch.where(target > 0, probs[1], probs[0])
        squared_error = (1 - p_target).square_()
    else:
        (confidence, predicted), foreground = probs.max(dim=0), probs[1:].sum(dim=0)
        p_target = probs.gather(0, (target * counted)[None].long())[0]
        squared_error = 0.5 * (probs.square().sum(dim=0) - 2 * p_target + 1)
    correct = torch.where(counted, (predicted == target).int(), _NOT_COUNTED)

    def errors_and_correct(index: Tensor, n: int) -> Tensor:
        return _bin_sums(index + n * correct, 3 * n).view(3, -1)[:2]

    return PixelCounts(
        top_label=_reliability(confidence, correct, counted),
        foreground=_reliability(foreground, torch.where(counted, (target > 0).int(), _NOT_COUNTED), counted),
        squared_error=squared_error.mul_(counted).sum(dtype=torch.float64),
        log_loss=-p_target.clamp(min=MIN_PROBABILITY).log().mul_(counted).sum(dtype=torch.float64),
        by_confidence=errors_and_correct(confidence_bins(confidence), N_CONFIDENCE_BINS),
        by_entropy=errors_and_correct(entropy_bins(predictive_entropy, len(probs)), N_ENTROPY_BINS),
    )


def _reliability(probability: Tensor, outcome: Tensor, counted: Tensor) -> Tensor:
    """(3, N_BINS): pixels, sum of probabilities and positive outcomes in the bins (0, 1/15], (1/15, 2/15], ..."""
    index = (probability * N_BINS).ceil_().sub_(1).clamp_(0, N_BINS - 1).int()
    negatives, positives, _ = _bin_sums(index + N_BINS * outcome, 3 * N_BINS).view(3, -1)
    total = _bin_sums(index, N_BINS, probability.double().mul_(counted))
    return torch.stack([negatives + positives, total, positives]).double()


def _bin_sums(index: Tensor, n: int, weights: Tensor | None = None) -> Tensor:
    """The sum of the weights of each index below n, or how often it occurs: a `torch.bincount` that waits for no GPU.

    A GPU adds to one place one value at a time, and most pixels fall into a few bins: it gets several copies of them.
    """
    if index.is_cpu:
        return torch.bincount(index, weights, n)
    copies = torch.arange(len(index), dtype=torch.int32, device=index.device).remainder_(_COPIES)
    weights = index.new_ones(1).expand(len(index)) if weights is None else weights
    sums = weights.new_zeros(n * _COPIES).index_add_(0, copies.mul_(n).add_(index), weights)
    return sums.view(_COPIES, n).sum(dim=0)
