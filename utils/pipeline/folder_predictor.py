"""Predict the images of a folder: read ahead, predict, write behind, and isolate failures."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from utils.checkpoint import TrainedModel
from utils.inference.compiled import compile_model, compiling_pays
from utils.inference.predictor import MapOptions, Prediction, predict_full_size
from utils.inference.samplers import Sampler
from utils.inference.upsampling import LogitSamples
from utils.pipeline.image_loop import ImageLoop
from utils.pipeline.items import Item
from utils.pipeline.report import Report
from utils.runtime.threads import (
    BackgroundWriter,
    cores_per_process,
    in_groups,
    map_ahead,
    one_torch_thread,
    usable_cores,
)

logger = logging.getLogger(__name__)


class _Input(NamedTuple):
    """What is read of an image.

    Attributes:
        size: width and height.
        tensor: its network inputs, from `Sampler.preprocess_image`.
        target: (H, W) uint8 ground-truth classes, if there are any.
    """

    size: tuple[int, int]
    tensor: Tensor
    target: np.ndarray | None


@dataclass
class FolderPredictor:
    """Predicts images, several at a time.

    Attributes:
        model: to predict with.
        sampler: the method.
        save: called in a thread with each image and its prediction; returns the files that it has written. An error
            that it raises is the image's failure.
        options: what else is computed of each image.
        show: called in the main thread, in the order of the images, with each image, its prediction and its (H, W)
            uint8 ground-truth classes, if there are any. An error that it raises loses nothing else of the image.
        compile: compile the network first, if there is an image to predict.
    """

    model: TrainedModel
    sampler: Sampler
    save: Callable[[Item, Prediction], Sequence[Path]]
    options: MapOptions = field(default_factory=MapOptions)
    show: Callable[[Item, Prediction, np.ndarray | None], None] | None = None
    compile: bool = False
    _loop: ImageLoop = field(init=False)

    def run(self, loop: ImageLoop) -> Report:
        """Predict the images of a loop, once.

        Raises:
            InputError: the method cannot be used with the model.
        """
        self.sampler.check(self.model)
        self._loop = loop
        n_passes = len(loop.remaining()) * self.sampler.passes_per_image * len(self.model.networks)
        if self.compile and n_passes:
            with one_torch_thread(self.model.device):
                self.model = compile_model(self.model, self.sampler)
        report = loop.run(self._predict_share)
        if not self.compile and compiling_pays(n_passes, self.model.device, usable_cores()):
            logger.info("A run of so many forward passes, %d, is shorter with a compiled network", n_passes)
        return report

    def _predict_share(self, share: Sequence[Item], handled: Callable[[int], bool]) -> None:
        """Read, predict and save images in threads, and show them in the main thread."""
        device = self.model.device
        group_size = 1 if device.type == "cpu" else self.sampler.images_per_batch
        # Pillow decodes and encodes without holding Python's lock; a GPU leaves all cores to that.
        cores = cores_per_process()
        readers, writers = (max(2, cores // 2), 2) if device.type == "cpu" else (max(2, cores), max(2, cores // 2))
        with (
            one_torch_thread(device) as threads,
            BackgroundWriter(writers) as writer,
            closing(in_groups(map_ahead(self._read, share, readers, group_size + readers), group_size)) as groups,
            closing(map_ahead(self._predict_group, groups, threads, threads - 1)) as predictions,
        ):
            for group, future in predictions:
                for item, prediction, target in future.result():
                    writer.submit(self._finish, item, prediction, target)
                    if self.show is not None:
                        with self._loop.report.isolating(f"figure of {item.reported}"):
                            self.show(item, prediction, target)
                if handled(len(group)):
                    break

    def _read(self, item: Item) -> _Input:
        image = item.read(self.model.white)
        target = self._loop.report.read_target(self._loop.ground_truth, item, (image.height, image.width))
        return _Input(image.size, self.sampler.preprocess_image(image, self.model.input_size), target)

    def _predict_group(self, group: Sequence[tuple[Item, Future]]) -> list[tuple[Item, Prediction, np.ndarray | None]]:
        """Predict images that share a batch, each with failures of its own; returns their ground truth with them."""
        inputs: dict[Item, _Input] = {}
        for item, reading in group:
            with self._loop.report.isolating(item.reported):
                inputs[item] = reading.result()
        if not inputs:
            return []
        predictions = []
        for (item, (size, _, target)), samples in zip(inputs.items(), self._draw_samples(inputs), strict=False):
            with self._loop.report.isolating(item.reported):
                predictions.append((item, predict_full_size(samples, size, self.options, target), target))
        return predictions

    def _draw_samples(self, inputs: Mapping[Item, _Input]) -> list[list[LogitSamples]]:
        """The samples of images that share a batch; none if the batch has failed."""
        keys, tensors = [item.key for item in inputs], [read.tensor for read in inputs.values()]
        with self._loop.report.isolating(*(item.reported for item in inputs)):
            return self.sampler.sample(self.model, tensors, keys)
        return []

    def _finish(self, item: Item, prediction: Prediction, target: np.ndarray | None) -> None:
        """Save the prediction of an image, compare it with its ground truth, and record both."""
        with self._loop.report.isolating(item.reported):
            files = self.save(item, prediction)
            scores = {} if target is None else self._loop.ground_truth.compare(target, prediction)
            self._loop.finish(item, {**scores, **prediction.scores}, files, prediction.counts)
            height, width = prediction.classes.shape
            logger.debug(
                "%s: %dx%d pixels, area %d, soft Dice confidence %.3f",
                *(item.reported, width, height),
                *(prediction.scores[name] for name in ("area", "soft_dice_confidence")),
            )
