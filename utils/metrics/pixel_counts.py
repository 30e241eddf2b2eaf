"""Sums and histograms over pixels, from which all pixel metrics are computed.

`PixelCounts` has a fixed size, 115 kilobytes, so the metrics of a set are over all of its pixels in constant memory.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

N_BINS = 15  # bins of a reliability diagram
MIN_PROBABILITY = 1e-7  # lower clamp of probabilities in the NLL

_OCTAVES, _BINS_PER_OCTAVE = 24, 2**7  # of 1 - confidence; float32 has no smaller steps below 1
N_CONFIDENCE_BINS = _OCTAVES * _BINS_PER_OCTAVE
N_ENTROPY_BINS, _MAX_LOGIT = 2**12, 16.2  # just above the logit of 1 - 1e-7
_MERGE_FACTOR = 8  # fine bins per bin of `PixelCounts.coarse`


def confidence_bins(confidence: Tensor) -> Tensor:
    """The fine bin of each confidence, int32: 128 bins per octave of 1 - confidence, each at most 0.8 % of it wide.

    A bin index consists of the leading bits of a float32, which sort like its value.

    Args:
        confidence: float32 in (0, 1].
    """
    return doubt_bins(1 - confidence)


def doubt_bins(doubt: Tensor) -> Tensor:
    """The bin in `confidence_bins` of each 1 - confidence, int32."""
    lowest = (127 - _OCTAVES) * _BINS_PER_OCTAVE  # 127 is the biased exponent of 1
    bits = doubt.view(torch.int32) >> 16  # keeps 7 of the 23 bits of the mantissa
    return bits.sub_(lowest).clamp_(0, N_CONFIDENCE_BINS - 1)


def confidence_bin_centres(n: int) -> np.ndarray:
    """The confidence at the centre of each bin, (n,) float64, when the fine bins are merged into n."""
    edges = np.linspace(0, N_CONFIDENCE_BINS, n + 1).astype(np.int64)
    octave, step = np.divmod(edges, _BINS_PER_OCTAVE)
    values = 2.0 ** (octave - _OCTAVES) * (1 + step / _BINS_PER_OCTAVE)
    return 1 - (values[:-1] + values[1:]) / 2


def entropy_bins(values: Tensor, n_classes: int) -> Tensor:
    """The fine bin of each entropy, int32: equal-width bins of the logit of entropy / ln C.

    So the bins are narrow near 0, where most pixels are, and near ln C, where most errors are. Entropies below
    1e-7 ln C, as of a network whose logits differ by 20 or more almost everywhere, are one tie in the AUROC of errors.

    Args:
        values: float32 of any shape in [0, ln C], in nats.
        n_classes: number of classes C.

    Returns:
        The bin of each, of the same shape.
    """
    logit = (values / math.log(n_classes)).logit_(eps=1e-7)
    return logit.add_(_MAX_LOGIT).mul_(N_ENTROPY_BINS / (2 * _MAX_LOGIT)).clamp_(0, N_ENTROPY_BINS - 1).int()


_PACKED_DTYPES = ("<f8", "<f8", "<f8", "<f8", "<i4", "<i4")  # of the fields of PixelCounts
_PACKED_SHAPES = ((3, N_BINS), (3, N_BINS), (), (), (2, N_CONFIDENCE_BINS), (2, N_ENTROPY_BINS))


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
