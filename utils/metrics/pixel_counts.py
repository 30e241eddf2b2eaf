"""Sums and histograms over pixels, from which all pixel metrics are computed.

`PixelCounts` has a fixed size, a few kilobytes, so the metrics of a set are over all of its pixels in constant memory.
"""

import math
import operator
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache, reduce

import numpy as np
import torch
from torch import Tensor

from utils import IGNORED_CLASS
from utils.metrics.uncertainty import entropy

N_BINS = 15  # bins of a reliability diagram
MIN_PROBABILITY = 1e-7  # lower clamp of probabilities in the NLL
CPU_BLOCK_SIZE, _GPU_BLOCK_SIZE = 2**18, 2**24  # pixels that are counted at a time

_OCTAVES, _BINS_PER_OCTAVE = 24, 2**7  # of 1 - confidence; float32 has no smaller steps below 1
_CONFIDENCE_BINS = _OCTAVES * _BINS_PER_OCTAVE
_ENTROPY_BINS, _MAX_LOGIT = 2**12, 16.2  # just above the logit of 1 - 1e-7
_NOT_COUNTED = 2  # beside the outcomes 0 and 1 of a pixel
_SURE_LOSS = 1 / 16  # 1 - the probability of the true class, below which that is in the last bin, from 14/15 on
_PIECE = 256  # values that are summed in single precision
_COPIES = 64  # of the bins of a histogram on a GPU
_MERGE_FACTOR = 8  # fine bins per bin of `PixelCounts.coarse`


def confidence_bins(confidence: Tensor) -> Tensor:
    """The fine bin of each confidence, int32: 128 bins per octave of 1 - confidence, each at most 0.8 % of it wide.

    A bin index consists of the leading bits of a float32, which sort like its value.

    Args:
        confidence: float32 in (0, 1].
    """
    return _doubt_bins(1 - confidence)


def _doubt_bins(doubt: Tensor) -> Tensor:
    """`confidence_bins` of 1 - confidence."""
    lowest = (127 - _OCTAVES) * _BINS_PER_OCTAVE  # 127 is the biased exponent of 1
    bits = doubt.view(torch.int32) >> 16  # keeps 7 of the 23 bits of the mantissa
    return bits.sub_(lowest).clamp_(0, _CONFIDENCE_BINS - 1)


def confidence_bin_centres(n: int) -> np.ndarray:
    """The confidence at the centre of each bin, (n,) float64, when the fine bins are merged into n."""
    edges = np.linspace(0, _CONFIDENCE_BINS, n + 1).astype(np.int64)
    octave, step = np.divmod(edges, _BINS_PER_OCTAVE)
    values = 2.0 ** (octave - _OCTAVES) * (1 + step / _BINS_PER_OCTAVE)
    return 1 - (values[:-1] + values[1:]) / 2


def entropy_bins(values: Tensor, n_classes: int) -> Tensor:
    """The fine bin of each entropy, int32: equal-width bins of the logit of entropy / ln C.

    So the bins are narrow near 0, where most pixels are, and near ln C, where most errors are.

    Args:
        values: float32 of any shape in [0, ln C], in nats.
        n_classes: number of classes C.

    Returns:
        The bin of each, of the same shape.
    """
    logit = (values / math.log(n_classes)).logit_(eps=1e-7)
    return logit.add_(_MAX_LOGIT).mul_(_ENTROPY_BINS / (2 * _MAX_LOGIT)).clamp_(0, _ENTROPY_BINS - 1).int()


@cache
def _entropy_bins_of_confidence() -> np.ndarray:
    """With two classes, the entropy bin of the centre of each confidence bin, (n,)."""
    confidence = torch.from_numpy(confidence_bin_centres(_CONFIDENCE_BINS)).float()
    confidence[0] = 1  # as that of errors in this bin, whose entropy is 0
    return entropy_bins(entropy(confidence[None, None])[0], 2).numpy()


_PACKED_DTYPES = ("<f8", "<f8", "<f8", "<f8", "<i4", "<i4")  # of the fields of PixelCounts
_PACKED_SHAPES = ((3, N_BINS), (3, N_BINS), (), (), (2, _CONFIDENCE_BINS), (2, _ENTROPY_BINS))


@dataclass
class PixelCounts:
    """Sums over pixels: arrays, or tensors on a device until they are read. Leading dimensions: several images or sets.

    The confidence of a pixel is the probability of its most probable class; the pixel is correct if that is the class
    of the ground truth.

    Attributes:
        top_label: (..., 3, N_BINS) float64, by equal-width bins of the confidence: number of pixels, sum of their
            confidences, number of correct ones.
        foreground: (..., 3, N_BINS) float64, by equal-width bins of the probability of any class but the background:
            number of pixels, sum of their probabilities, number of foreground pixels.
        squared_error: (...,) float64, half the sum over the classes of (p_k - [y = k])^2; with two classes (p - y)^2.
        log_loss: (...,) float64, the sum of -ln p_y in nats, with p_y clamped at `MIN_PROBABILITY`.
        by_confidence: (..., 2, n) int64, errors and correct pixels in the bins of `confidence_bins` or merged ones.
        by_entropy: (..., 2, n) int64, errors and correct pixels by predictive entropy, in the bins of `entropy_bins`
            or merged ones.
    """

    top_label: np.ndarray | Tensor
    foreground: np.ndarray | Tensor
    squared_error: np.ndarray | Tensor
    log_loss: np.ndarray | Tensor
    by_confidence: np.ndarray | Tensor
    by_entropy: np.ndarray | Tensor

    def read(self) -> "PixelCounts":
        """The same as arrays; waits for the device."""
        return PixelCounts(*(np.asarray(torch.as_tensor(getattr(self, f.name)).cpu()) for f in fields(self)))

    @property
    def pixels(self) -> np.ndarray:
        """(...,) the number of pixels."""
        return self.top_label[..., 0, :].sum(axis=-1)

    def __add__(self, other: "PixelCounts") -> "PixelCounts":
        return PixelCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def pack(self) -> bytes:
        """The counts of one image, compressed to a few kilobytes."""
        arrays = [getattr(self, f.name).astype(t) for f, t in zip(fields(self), _PACKED_DTYPES, strict=True)]
        return zlib.compress(b"".join(array.tobytes() for array in arrays))

    @classmethod
    def unpack(cls, packed: bytes) -> "PixelCounts":
        """The inverse of `pack`."""
        content, start, arrays = zlib.decompress(packed), 0, []
        for dtype, shape in zip(_PACKED_DTYPES, _PACKED_SHAPES, strict=True):
            array = np.frombuffer(content, dtype, math.prod(shape), start).reshape(shape)
            arrays.append(array.astype(np.float64 if dtype == "<f8" else np.int64))
            start += array.nbytes
        return cls(*arrays)

    def coarse(self) -> "PixelCounts":
        """The same counts with merged fine bins, small enough for a bootstrap over many images."""

        def merge(counts: np.ndarray) -> np.ndarray:
            return counts.reshape(*counts.shape[:-1], -1, _MERGE_FACTOR).sum(axis=-1)

        rest = (self.top_label, self.foreground, self.squared_error, self.log_loss)
        return PixelCounts(*rest, merge(self.by_confidence), merge(self.by_entropy))


def count_pixels(
    probs: Tensor, predictive_entropy: Tensor, target: Tensor, block_size: int | None = None
) -> PixelCounts:
    """The counts of the pixels of one image, or of some of its rows: arrays; of a GPU tensors, to be read later.

    Args:
        probs: (C, H, W) float32.
        predictive_entropy: (H, W) float32 in nats.
        target: (H, W) integer class indices of the ground truth, on the same device; pixels of `IGNORED_CLASS` are not
            counted.
        block_size: number of pixels that are counted at a time; None for the default of the device.
    """
    if probs.device.type == "mps":  # does not support double precision
        probs, predictive_entropy, target = probs.cpu(), predictive_entropy.cpu(), target.cpu()
    block_size = block_size or (CPU_BLOCK_SIZE if probs.is_cpu else _GPU_BLOCK_SIZE)
    blocks = zip(
        probs.flatten(1).split(block_size, dim=1),
        predictive_entropy.flatten().split(block_size),
        target.flatten().split(block_size),
        strict=True,
    )
    count = _count_two_classes if probs.is_cpu and len(probs) == 2 else _count_block
    counts = reduce(operator.add, (count(*block) for block in blocks))
    return counts.read() if probs.is_cpu else counts


def _count_two_classes(probs: Tensor, predictive_entropy: Tensor, target: Tensor) -> PixelCounts:
    """`_count_block` of two classes, several times as fast on a CPU: of most pixels only sums are required.

    These are surely correct, and lie in the first or the last bin of a reliability diagram. The others are few.
    """
    if target.numpy().max(initial=0) == IGNORED_CLASS:
        counted = target != IGNORED_CLASS
        probs, predictive_entropy, target = probs[:, counted], predictive_entropy[counted], target[counted]
    positive = target.to(probs.dtype)
    loss = (probs[1] - positive).abs_()  # 1 - the probability of the true class; of a sure pixel 1 - confidence
    others = torch.from_numpy(np.flatnonzero(~(loss.numpy() < _SURE_LOSS)))  # NaN, too
    values = (probs, predictive_entropy, target)
    counts = _count_block(*(value.index_select(-1, others) for value in values)).read()
    n = len(target) - len(others)
    n_positive = np.count_nonzero(target.numpy()) - int(counts.foreground[2].sum())

    # The sums over the sure pixels: the others are set to 0.
    loss.index_fill_(0, others, 0)
    total, of_positive = _sum(loss), _sum(positive.mul_(loss))
    counts.squared_error += _sum(loss.square())
    counts.foreground[:, 0] += n - n_positive, total - of_positive, 0
    counts.foreground[:, -1] += n_positive, n_positive - of_positive, n_positive
    counts.top_label[:, -1] += n, n - total, n

    # Their histograms: the entropy is a function of the confidence.
    correct = torch.bincount(_doubt_bins(loss), minlength=_CONFIDENCE_BINS).numpy()
    correct[0] -= len(others)
    counts.by_confidence[1] += correct
    np.add.at(counts.by_entropy[1], _entropy_bins_of_confidence(), correct)
    counts.log_loss -= _sum(loss.neg_().log1p_())
    return counts


def _sum(values: Tensor) -> float:
    """The sum of float32 values: in single precision of a few hundred each, of these in double precision."""
    n = len(values) // _PIECE * _PIECE
    return (values[:n].view(-1, _PIECE).sum(dim=1).sum(dtype=torch.float64) + values[n:].sum()).item()


def _count_block(probs: Tensor, predictive_entropy: Tensor, target: Tensor) -> PixelCounts:
    """`count_pixels` of (C, n), (n,) and (n,)."""
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
        by_confidence=errors_and_correct(confidence_bins(confidence), _CONFIDENCE_BINS),
        by_entropy=errors_and_correct(entropy_bins(predictive_entropy, len(probs)), _ENTROPY_BINS),
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


def sum_counts(counts: Sequence[PixelCounts], weights: np.ndarray) -> PixelCounts:
    """The counts of B weighted sets of images, with a leading dimension B.

    Args:
        counts: counts of n images.
        weights: (B, n), how often each image occurs in each set.
    """
    weights = weights.astype(np.float64)

    def total(name: str) -> np.ndarray:
        return np.tensordot(weights, np.stack([getattr(one, name) for one in counts]), axes=1)

    return PixelCounts(*(total(f.name) for f in fields(PixelCounts)))
