"""Predict one image: its maps, or its mask, scores and greyscale maps in one sweep over its rows."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.checkpoint import TrainedModel
from utils.data.images import is_deep
from utils.inference.guarantees import INNER, OUTER, Guarantee
from utils.inference.maps import STATISTICS, ProbabilityMaps, full_size_blocks, full_size_maps, predict_classes
from utils.inference.overlaps import count_overlaps
from utils.inference.samplers import Sampler, Softmax
from utils.inference.upsampling import LogitSamples, StackUpsampler
from utils.metrics.pixel_counter import PixelCounter
from utils.metrics.pixel_counts import PixelCounts
from utils.metrics.risk_control import region_losses
from utils.metrics.uncertainty import ImageScores
from utils.runtime.device import to_arrays, to_device
from utils.runtime.errors import InputError

_MASK = ""  # the name of the mask among the greyscale maps


def predict(
    model: TrainedModel,
    image: Image.Image,
    sampler: Sampler | None = None,
    name: str = "",
    statistics: Collection[str] = STATISTICS,
) -> ProbabilityMaps:
    """The maps of a single image.

    Args:
        model: a model from `utils.checkpoint.load_model`.
        image: an upright image of 8 bits, such as `utils.data.images.read_image` makes of any file.
        sampler: `Softmax()`, `MCDropout()` or `TestTimeAugmentation()`; None for the first.
        name: name of the image, from which MC dropout derives its random numbers; the scripts use the file's path
            within the input folder.
        statistics: which of `STATISTICS` to compute in addition to the mean.

    Returns:
        The maps, at the image's own size, on the model's device.

    Raises:
        InputError: as of `draw_samples`.
    """
    sampler = (sampler or Softmax()).for_single_images()
    return full_size_maps(draw_samples(model, image, sampler, name), image.size, statistics)


def draw_samples(model: TrainedModel, image: Image.Image, sampler: Sampler, name: str) -> list[LogitSamples]:
    """The samples of a single image's logits.

    Args:
        model, image, sampler, name: as for `predict`.

    Raises:
        InputError: the image has more than 8 bits, the sampler cannot be used with the model, or a logit is not finite.
    """
    if is_deep(image):
        raise InputError(
            f"the image has mode {image.mode}, not 8 bits per channel: utils.data.images.read_image rescales"
        )
    sampler.check(model)
    (samples,) = sampler.sample(model, [sampler.preprocess_image(image, model.input_size)], [name])
    _check_finite(_are_finite(samples))
    return samples


@dataclass(frozen=True)
class MapOptions:
    """What is computed of an image at full size, in addition to its mask and scores.

    Attributes:
        threshold: with two classes, the probability above which a pixel is class 1.
        greyscale_maps: makes (rows, W) uint8 greyscale maps of a block of rows, by their names; called in threads.
        statistics: which of `STATISTICS` it requires.
        keep: which of `STATISTICS` are kept as float32 maps of the whole image, together with the mean probabilities;
            without any no such maps are kept.
        guarantee: whose masks are made, too, as greyscale maps.
        count_pixels: count the pixels by their probabilities, entropies and classes, where there is ground truth.
    """

    threshold: float = 0.5
    greyscale_maps: Callable[[ProbabilityMaps], Mapping[str, Tensor]] = lambda block: {}
    statistics: Collection[str] = ()
    keep: Collection[str] = ()
    guarantee: Guarantee | None = None
    count_pixels: bool = True


@dataclass
class Prediction:
    """The prediction of an image, on the CPU.

    Attributes:
        classes: (H, W) uint8, the predicted class of each pixel.
        scores: scores of the image, from `ImageScores.scores`.
        greyscale_maps: (H, W) uint8 greyscale maps, by name.
        maps: the float32 maps that were kept, if any.
        counts: the counts of its pixels, if they were compared with the ground truth.
    """

    classes: np.ndarray
    scores: dict[str, Any] = field(default_factory=dict)
    greyscale_maps: dict[str, np.ndarray] = field(default_factory=dict)
    maps: ProbabilityMaps | None = None
    counts: PixelCounts | None = None

    @property
    def regions(self) -> dict[str, np.ndarray]:
        """The outer and the inner mask, (H, W) bool, by `OUTER` and `INNER`; none without a guarantee."""
        return {name: self.greyscale_maps[name] > 0 for name in (OUTER, INNER) if name in self.greyscale_maps}

    def region_losses(self, target: np.ndarray) -> dict[str, float]:
        """`region_losses` of these masks against (H, W) ground-truth classes; empty without a guarantee."""
        regions = self.regions
        return region_losses(regions[OUTER], regions[INNER], target) if regions else {}


def _are_finite(samples: Sequence[LogitSamples]) -> Tensor:
    """Whether all logits are finite, as a scalar on their device."""
    return torch.stack([logits.isfinite().all() for logits, _ in samples]).all()


def _check_finite(finite: Tensor) -> None:
    """Refuse logits that are not all finite; waits for a GPU."""
    if not finite:
        raise InputError(
            "the network's output is not finite: its activations are too large for this precision. Predict in single "
            "precision; if it was that already, the network cannot be used"
        )


@torch.inference_mode()
def predict_full_size(
    samples: Sequence[LogitSamples],
    size: tuple[int, int],
    options: MapOptions,
    target: np.ndarray | None = None,
    max_values: int | None = None,
) -> Prediction:
    """The prediction of an image from its samples, block by block. What a GPU computes is read once, at the end.

    Args:
        samples: samples of one image.
        size: width and height of the image.
        options: what to compute.
        target: (H, W) uint8 ground-truth classes, for the counts of its pixels.
        max_values: as for `full_size_blocks`.

    Raises:
        InputError: a logit is not finite.
    """
    width, height = size
    finite = _are_finite(samples)
    if finite.is_cpu:  # before the pixels are counted, which cannot count NaN; a GPU would have to be waited for
        _check_finite(finite)
    overlaps = None
    if sum(len(logits) for logits, _ in samples) > 1:
        overlaps = count_overlaps(samples, size, options.threshold, max_values)
    scores, images, maps = ImageScores(overlaps), {}, None
    counter = PixelCounter() if options.count_pixels and target is not None else None
    statistics = {*options.statistics, *options.keep, "predictive_entropy"}
    guarantee, uncalibrated = options.guarantee, None
    if guarantee and guarantee.temperature != 1:
        uncalibrated = StackUpsampler(samples, width, height, max_values)
    for rows, block in full_size_blocks(samples, size, statistics, max_values):
        # The mask and the scores of these rows.
        classes = predict_classes(block.probs, options.threshold)
        scores.add(block.probs, block.predictive_entropy, classes)
        if counter:
            on_device = to_device(torch.from_numpy(target[rows]), classes.device)
            counter.add(block.probs, block.predictive_entropy, on_device)

        # The mask and the greyscale maps, and the float32 maps, of the whole image.
        made = {_MASK: classes, **options.greyscale_maps(block)}
        if guarantee:
            probs = block.probs
            if uncalibrated:
                probs = uncalibrated.mean_probs(rows, temperature=1 / guarantee.temperature)
            made |= guarantee.masks(probs)
        for name, values in made.items():
            if name not in images:
                images[name] = values.new_empty(height, width)
            images[name][rows] = values
        if options.keep:
            maps = maps or block.empty_like(height, options.keep)
            maps.put_rows(rows, block)
    _check_finite(finite)
    arrays = to_arrays(images)
    return Prediction(arrays.pop(_MASK), scores.scores(), arrays, maps and maps.cpu(), counter and counter.read())
