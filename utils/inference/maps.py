"""From samples of logits to maps at the image's own size: per-pixel statistics over the samples, in blocks of rows."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from utils.inference.overlaps import OverlapCounter
from utils.inference.upsampling import LogitSamples, StackUpsampler
from utils.metrics.uncertainty import entropy

STATISTICS = ("predictive_entropy", "expected_entropy", "std", "overlaps")
_MAP_FIELDS = ("probs", "predictive_entropy", "expected_entropy", "std")  # the fields of ProbabilityMaps that are maps


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
        overlaps: (C - 1, T, T) int64, for each class but the background and each pair of samples the number of pixels
            that both assign to the class; on the diagonal its area in each sample. None for a single sample.

    Statistics that were not requested are None.
    """

    probs: Tensor
    num_samples: int
    predictive_entropy: Tensor | None = None
    expected_entropy: Tensor | None = None
    std: Tensor | None = None
    overlaps: Tensor | None = None

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
        overlaps = torch.zeros_like(self.overlaps) if "overlaps" in statistics and self.overlaps is not None else None
        return ProbabilityMaps(num_samples=self.num_samples, overlaps=overlaps, **maps)

    def cpu(self) -> "ProbabilityMaps":
        """The same maps on the CPU."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: t.cpu() for name, t in tensors.items() if isinstance(t, Tensor)})

    def put_rows(self, rows: slice, block: "ProbabilityMaps") -> None:
        """Fill in the maps of some rows, and add their overlaps."""
        for name in _MAP_FIELDS:
            if getattr(self, name) is not None:
                getattr(self, name)[..., rows, :] = getattr(block, name)
        if self.overlaps is not None:
            self.overlaps += block.overlaps


@torch.inference_mode()
def full_size_blocks(
    samples: Sequence[LogitSamples],
    size: tuple[int, int],
    statistics: Collection[str] = STATISTICS,
    threshold: float = 0.5,
    block_values: int | None = None,
) -> Iterator[tuple[slice, ProbabilityMaps]]:
    """Upsample the samples of an image and compute statistics over them, a block of rows at a time, top to bottom.

    The logits are interpolated bilinearly (`align_corners=False`); the softmax comes after. All samples of a block are
    upsampled together, so T full-size maps never exist in memory, and a block stays in the processor's cache while it
    is used.

    Args:
        samples: samples of one image.
        size: width and height of the image.
        statistics: which of `STATISTICS` to compute in addition to the mean.
        threshold: with two classes, the probability above which a sample assigns a pixel to class 1 in `overlaps`.
        block_values: how many probabilities are computed at a time; None for the default of the device.

    Yields:
        The rows, and their maps, on the samples' device.
    """
    width, height = size
    stack = StackUpsampler(samples, width, height, block_values)
    overlaps = OverlapCounter(stack, threshold) if "overlaps" in statistics and stack.n_samples > 1 else None
    for begin in range(0, height, stack.block_rows):
        rows = slice(begin, min(begin + stack.block_rows, height))
        probs = stack.probs(rows)
        maps = _summarise(probs, stack.n_classes, statistics)
        yield rows, replace(maps, overlaps=overlaps.count(rows, probs)) if overlaps else maps


@torch.inference_mode()
def full_size_maps(
    samples: Sequence[LogitSamples],
    size: tuple[int, int],
    statistics: Collection[str] = STATISTICS,
    threshold: float = 0.5,
    block_values: int | None = None,
) -> ProbabilityMaps:
    """The maps of a whole image: all of its `full_size_blocks` in one, with the same arguments."""
    whole = None
    for rows, block in full_size_blocks(samples, size, statistics, threshold, block_values):
        whole = whole or block.empty_like(size[1], statistics)
        whole.put_rows(rows, block)
    return whole


def _summarise(probs: Tensor, n_classes: int, statistics: Collection[str]) -> ProbabilityMaps:
    """The requested statistics of each pixel, of (T, 1 or C, rows, W) probabilities; of two classes the second's."""
    n_samples, channels = probs.shape[:2]
    mean = probs.new_empty(n_classes, *probs.shape[2:])  # (C, rows, W)
    mean[-channels:] = probs.mean(dim=0) if n_samples > 1 else probs[0]
    if channels < n_classes:
        torch.sub(1, mean[1], out=mean[0])
    std = None
    if "std" in statistics:
        std = (probs - mean[-channels:]).square_().mean(dim=0).sqrt_()  # torch.std is far slower
    return ProbabilityMaps(
        probs=mean,
        num_samples=n_samples,
        predictive_entropy=entropy(mean) if "predictive_entropy" in statistics else None,
        expected_entropy=entropy(probs).mean(dim=0) if "expected_entropy" in statistics else None,
        std=None if std is None else std.expand(n_classes, -1, -1),  # two classes share one
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
    classes = probs[1] > threshold if len(probs) == 2 else probs.argmax(dim=0)
    return classes.byte()


def to_greyscale(values: Tensor, white: float = 1.0) -> Tensor:
    """A map as an 8-bit greyscale image: 0 is black, `white` is 255, rounded."""
    return (values * (255 / white)).round_().clamp_(0, 255).byte()
