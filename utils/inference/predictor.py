"""Predict one image: its maps, or its mask, scores and greyscale maps in one sweep over its rows."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from utils.checkpoint import TrainedModel
from utils.inference.maps import STATISTICS, ProbabilityMaps, full_size_blocks, full_size_maps, predict_classes
from utils.inference.samplers import Sampler, Softmax
from utils.inference.upsampling import LogitSamples
from utils.metrics.uncertainty import ImageScores


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
        image: an image of any mode and size.
        sampler: `Softmax()`, `MCDropout()` or `TestTimeAugmentation()`; None for the first.
        name: name of the image, from which MC dropout derives its random numbers; the scripts use the file's path
            within the input folder.
        statistics: which of `STATISTICS` to compute in addition to the mean.

    Returns:
        The maps, at the image's own size, on the model's device.

    Raises:
        InputError: the sampler cannot be used with the model.
    """
    sampler = (sampler or Softmax()).for_single_images()
    return full_size_maps(draw_samples(model, image, sampler, name), image.size, statistics)


def draw_samples(model: TrainedModel, image: Image.Image, sampler: Sampler, name: str) -> list[LogitSamples]:
    """The samples of a single image's logits.

    Args:
        model, image, sampler, name: as for `predict`.

    Raises:
        InputError: the sampler cannot be used with the model.
    """
    sampler.check(model)
    return sampler.sample(model, [sampler.preprocess_image(image, model.input_size)], [name])[0]


def _no_greyscale_maps(block: ProbabilityMaps) -> Mapping[str, np.ndarray]:
    return {}


@dataclass(frozen=True)
class MapOptions:
    """What is computed of an image at full size, in addition to its mask and scores.

    Attributes:
        threshold: with two classes, the probability above which a pixel is class 1.
        greyscale_maps: makes (rows, W) uint8 greyscale maps of a block of rows, by their names; called in threads.
        statistics: which of `STATISTICS` it requires.
        keep: which of `STATISTICS` are kept as float32 maps of the whole image, together with the mean probabilities;
            without any no such maps are kept.
    """

    threshold: float = 0.5
    greyscale_maps: Callable[[ProbabilityMaps], Mapping[str, np.ndarray]] = _no_greyscale_maps
    statistics: Collection[str] = ()
    keep: Collection[str] = ()


@dataclass
class Prediction:
    """The prediction of an image.

    Attributes:
        classes: (H, W) uint8, the predicted class of each pixel.
        scores: scores of the image, from `ImageScores.scores`.
        greyscale_maps: (H, W) uint8 greyscale maps, by name.
        maps: the float32 maps that were kept, if any.
    """

    classes: np.ndarray
    scores: dict[str, Any] = field(default_factory=dict)
    greyscale_maps: dict[str, np.ndarray] = field(default_factory=dict)
    maps: ProbabilityMaps | None = None


def predict_full_size(
    samples: Sequence[LogitSamples], size: tuple[int, int], options: MapOptions, block_values: int | None = None
) -> Prediction:
    """The prediction of an image from its samples, block by block.

    Args:
        samples: samples of one image.
        size: width and height of the image.
        options: what to compute.
        block_values: as for `full_size_blocks`.
    """
    width, height = size
    prediction = Prediction(np.empty((height, width), dtype=np.uint8))
    scores = ImageScores()
    statistics = {*options.statistics, *options.keep, "predictive_entropy", "overlaps"}
    for rows, block in full_size_blocks(samples, size, statistics, options.threshold, block_values):
        # The mask and the scores of these rows.
        classes = predict_classes(block.probs, options.threshold)
        prediction.classes[rows] = classes
        on_device = torch.from_numpy(classes).to(block.probs.device)
        scores.add(block.probs, block.predictive_entropy, on_device, block.overlaps)

        # Their greyscale maps, and their float32 maps.
        for name, grey in options.greyscale_maps(block).items():
            if name not in prediction.greyscale_maps:
                prediction.greyscale_maps[name] = np.empty_like(prediction.classes)
            prediction.greyscale_maps[name][rows] = grey
        if options.keep:
            prediction.maps = prediction.maps or block.empty_like(height, options.keep)
            prediction.maps.put_rows(rows, block)
    prediction.scores = scores.scores()
    return prediction
