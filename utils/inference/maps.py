"""From samples of logits to maps at the image's own size: per-pixel statistics over the samples, in blocks of rows."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from utils.inference.smooth_maps import SmoothMaps
from utils.inference.upsampling import LogitSamples, StackUpsampler, blocks_of, n_channels
from utils.metrics.uncertainty import entropy

STATISTICS = ("predictive_entropy", "expected_entropy", "std")
_MAP_FIELDS = ("probs", *STATISTICS)


@dataclass
class ProbabilityMaps:
    """Per-pixel statistics over the samples, at the image's own size, of the whole image or of a block of H rows.

    Attributes:
        probs: (C, H, W) float32, the mean over the samples.
        num_samples: number of samples T.
        predictive_entropy: (H, W) float32 in nats, the entropy of the mean; total uncertainty.
        expected_entropy: (H, W) float32 in nats, the mean of the samples' entropies; the aleatoric part under MC
            dropout.
        std: (C, H, W) float32, the standard deviation over the samples (with denominator T).

    Statistics that were not requested are None.
    """

    probs: Tensor
    num_samples: int
    predictive_entropy: Tensor | None = None
    expected_entropy: Tensor | None = None
    std: Tensor | None = None

    @property
    def mutual_information(self) -> Tensor:
        """(H, W) float32 in nats: predictive minus expected entropy, BALD (Houlsby et al. 2011; Gal et al. 2017).

        Requires both entropies.
        """
        return (self.predictive_entropy - self.expected_entropy).clamp_(min=0)

    def empty_like(self, height: int, statistics: Collection[str]) -> "ProbabilityMaps":
        """Uninitialised maps of that many rows with these statistics, for `put_rows` to fill in."""
        maps = {}
        for name in _MAP_FIELDS:
            if name == "probs" or name in statistics:
                values = getattr(self, name)
                maps[name] = values.new_empty(*values.shape[:-2], height, values.shape[-1])
        return ProbabilityMaps(num_samples=self.num_samples, **maps)

    def cpu(self) -> "ProbabilityMaps":
        """The same maps on the CPU."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: t.cpu() for name, t in tensors.items() if isinstance(t, Tensor)})

    def put_rows(self, rows: slice, block: "ProbabilityMaps") -> None:
        """Fill in the maps of some rows."""
        for name in _MAP_FIELDS:
            if getattr(self, name) is not None:
                getattr(self, name)[..., rows, :] = getattr(block, name)


@torch.inference_mode()
def full_size_blocks(
    samples: Sequence[LogitSamples],
    size: tuple[int, int],
    statistics: Collection[str] = STATISTICS,
    max_values: int | None = None,
) -> Iterator[tuple[slice, ProbabilityMaps]]:
    """Statistics over the samples of an image at its own size, a block of rows at a time, top to bottom.

    The logits are interpolated bilinearly (`align_corners=False`); the softmax comes after. A block stays in the
    processor's cache while it is used, and T full-size maps never exist in memory. Where `SmoothMaps` are faster and
    have converged, they take the place of the samples' probabilities at all pixels.

    Args:
        samples: samples of one image.
        size: width and height of the image.
        statistics: which of `STATISTICS` to compute in addition to the mean.
        max_values: how many probabilities are computed at a time at all pixels; None for the default of the device.

    Yields:
        The rows, and their maps, on the samples' device.

    Raises:
        ValueError: there is no such statistic.
    """
    if unknown := {*statistics} - {*STATISTICS}:
        raise ValueError(f"there is no statistic {min(unknown)}: {', '.join(STATISTICS)} were expected")
    moments = partial(_moments, statistics=statistics)
    n_classes = samples[0].logits.shape[1]
    n_variances = n_channels(n_classes) * ("std" in statistics)
    smooth = SmoothMaps(samples, size, moments, n_variances) if SmoothMaps.are_faster(samples, size) else None
    if smooth and smooth.converged:
        block_rows, n_samples, compute = smooth.block_rows, smooth.n_samples, smooth.block
    else:
        stack = StackUpsampler(samples, *size, max_values)
        block_rows, n_samples, compute = stack.block_rows, [stack.n_samples], lambda rows: [moments(stack.probs(rows))]
    for rows in blocks_of(slice(0, size[1]), block_rows):
        yield rows, _to_maps(compute(rows), n_samples, n_classes, statistics)


@torch.inference_mode()
def full_size_maps(
    samples: Sequence[LogitSamples],
    size: tuple[int, int],
    statistics: Collection[str] = STATISTICS,
    max_values: int | None = None,
) -> ProbabilityMaps:
    """The maps of a whole image: all of its `full_size_blocks` in one, with the same arguments."""
    whole = None
    for rows, block in full_size_blocks(samples, size, statistics, max_values):
        whole = whole or block.empty_like(size[1], statistics)
        whole.put_rows(rows, block)
    return whole


def _moments(probs: Tensor, statistics: Collection[str]) -> Tensor:
    """(n, rows, W) of (T, 1 or C, rows, W) probabilities: the mean, then the entropy and the variance if requested.

    Of two classes the second's.
    """
    mean = probs.mean(dim=0) if len(probs) > 1 else probs[0]
    moments = [mean]
    if "expected_entropy" in statistics:
        moments.append(entropy(probs).mean(dim=0)[None])
    if "std" in statistics:
        moments.append((probs - mean).square_().mean(dim=0))  # torch.var is far slower
    return mean if len(moments) == 1 else torch.cat(moments)


def _to_maps(
    moments: Sequence[Tensor], n_samples: Sequence[int], n_classes: int, statistics: Collection[str]
) -> ProbabilityMaps:
    """The maps of one or several sets of samples, of their `_moments` and numbers."""
    channels, total = n_channels(n_classes), sum(n_samples)

    def mean_of(values: Sequence[Tensor]) -> Tensor:
        mean = values[0] * (n_samples[0] / total) if len(values) > 1 else values[0]
        for value, n in zip(values[1:], n_samples[1:], strict=True):
            mean.add_(value, alpha=n / total)
        return mean

    mean = mean_of([values[:channels] for values in moments])
    probs = mean.new_empty(n_classes, *mean.shape[1:])
    torch.clamp(mean, 0, 1, out=probs[-channels:])  # polynomials may go beyond by rounding errors
    if channels < n_classes:
        torch.sub(1, probs[1], out=probs[0])
    std = expected_entropy = None
    if "std" in statistics:
        variances = [values[-channels:] for values in moments]
        if len(moments) > 1:  # the law of total variance
            variances = [v + (m[:channels] - mean).square_() for v, m in zip(variances, moments, strict=True)]
        std = mean_of(variances).clamp_(min=0).sqrt_().expand(n_classes, -1, -1)  # two classes share one
    if "expected_entropy" in statistics:
        expected_entropy = mean_of([values[channels] for values in moments]).clamp_(0, math.log(n_classes))
    return ProbabilityMaps(
        probs=probs,
        num_samples=total,
        predictive_entropy=entropy(probs) if "predictive_entropy" in statistics else None,
        expected_entropy=expected_entropy,
        std=std,
    )


def split_samples(samples: Sequence[LogitSamples]) -> list[LogitSamples]:
    """Each sample of an image on its own."""
    return [LogitSamples(sample[None], zoom) for logits, zoom in samples for sample in logits]


def predict_classes(probs: Tensor, threshold: float = 0.5) -> Tensor:
    """The predicted mask: the most probable class or, with two classes, class 1 above a threshold.

    Args:
        probs: (C, H, W).
        threshold: with two classes, class 1 is predicted where its probability is above this.

    Returns:
        (H, W) uint8 class indices.
    """
    if len(probs) > 2:
        return probs.argmax(dim=0).byte()
    return torch.gt(probs[1], threshold, out=torch.empty_like(probs[1])).byte()  # as float, which is faster than bool


def to_greyscale(values: Tensor, white: float = 1.0) -> Tensor:
    """A map as an 8-bit greyscale image: 0 is black, `white` is 255, rounded."""
    return (values * (255 / white)).round_().clamp_(0, 255).byte()
