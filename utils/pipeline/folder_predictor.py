"""Predict every image of a folder: read ahead, predict, write behind, and isolate failures."""

import logging
import queue
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from utils.checkpoint import TrainedModel
from utils.data.images import read_image
from utils.inference.predictor import MapOptions, Prediction, predict_full_size
from utils.inference.samplers import Sampler
from utils.inference.upsampling import LogitSamples
from utils.pipeline.ground_truth import GroundTruth
from utils.pipeline.items import Item
from utils.pipeline.journal import Journal
from utils.pipeline.report import Report
from utils.runtime import distributed
from utils.runtime.console import progress
from utils.runtime.signals import GracefulStop
from utils.runtime.threads import BackgroundWriter, cores_per_process, in_groups, map_ahead, one_torch_thread

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
    """Predicts the images of a folder. One that fails is reported, and the others continue.

    Of several processes each predicts its share of the images, and all get the report of the whole.

    Attributes:
        model: to predict with.
        sampler: the method.
        save: called in a thread with each image and its prediction; returns the files that it has written. An
            `InputError` or `OSError` that it raises is the image's failure.
        options: what else is computed of each image.
        ground_truth: with which the predictions are compared.
        journal: images that it has are not predicted again; finished ones are added to it.
        show: called in the main thread, in the order of the images, with the same arguments as `save`.
    """

    model: TrainedModel
    sampler: Sampler
    save: Callable[[Item, Prediction], Collection[Path]]
    options: MapOptions = field(default_factory=MapOptions)
    ground_truth: GroundTruth | None = None
    journal: Journal | None = None
    show: Callable[[Item, Prediction], None] | None = None
    _report: Report = field(init=False, default_factory=Report)
    _rows: dict[str, dict[str, Any]] = field(init=False, default_factory=dict)
    _replicas: queue.SimpleQueue = field(init=False, default_factory=queue.SimpleQueue)

    def run(self, items: Sequence[Item]) -> Report:
        """Predict the images, once.

        Raises:
            InputError: the method cannot be used with the model.
        """
        self.sampler.check(self.model)

        # What an interrupted run has finished, and this process's share of the rest.
        self._rows |= self._finished_rows()
        remaining = [item for item in items if item.key not in self._rows]
        if self._rows:
            logger.info("%d of %d images are already done", len(items) - len(remaining), len(items))
        share = remaining[distributed.rank() :: distributed.world_size()]
        try:
            self._predict_share(share)
        except OSError as error:  # nothing can be written any more
            handled = {*self._rows, *(key for key, _ in self._report.failures)}
            reason = f"not done, since nothing can be written ({error.strerror})"
            self._report.failures += [(item.key, reason) for item in share if item.key not in handled]
        return self._merged_report(items)

    def _finished_rows(self) -> dict[str, dict[str, Any]]:
        if self.journal is None:
            return {}
        if self.ground_truth is None:
            return dict(self.journal.rows)
        self.ground_truth.packed |= self.journal.packed
        labelled = {name.as_posix() for name in self.ground_truth.paths}  # a mask may have been added or removed
        return {key: row for key, row in self.journal.rows.items() if ("dice" in row) == (key in labelled)}

    def _predict_share(self, share: Sequence[Item]) -> None:
        """Read, predict and save images in threads, and show them in the main thread."""
        device = self.model.device
        group_size = 1 if device.type == "cpu" else self.sampler.images_per_batch
        # Pillow decodes and encodes without holding Python's lock; a GPU leaves all cores to that.
        cores = cores_per_process()
        readers, writers = (max(2, cores // 2), 2) if device.type == "cpu" else (max(2, cores), max(2, cores // 2))
        with (
            GracefulStop() as stop,
            progress(total=len(share), unit="image") as bar,
            one_torch_thread(device) as threads,
            BackgroundWriter(writers) as writer,
            closing(in_groups(map_ahead(self._read, share, readers, group_size + readers), group_size)) as groups,
            closing(map_ahead(self._predict_group, groups, threads, threads - 1)) as predictions,
        ):
            for _ in range(threads):
                self._replicas.put(self.model.replica())
            for group, future in predictions:
                for item, prediction, target in future.result():
                    with self._report.isolating(item.key):
                        if self.show is not None:
                            self.show(item, prediction)
                        writer.submit(self._finish, item, prediction, target)
                bar.update(len(group))
                if stop():
                    break
        if stop():
            stop.exit()

    def _read(self, item: Item) -> _Input:
        image = read_image(item.path, self.model.white)
        target = self.ground_truth.read(item, (image.height, image.width)) if self.ground_truth else None
        return _Input(image.size, self.sampler.preprocess_image(image, self.model.input_size), target)

    def _predict_group(self, group: Sequence[tuple[Item, Future]]) -> list[tuple[Item, Prediction, np.ndarray | None]]:
        """Predict images that share a batch, each with failures of its own; returns their ground truth with them."""
        inputs: dict[Item, _Input] = {}
        for item, reading in group:
            with self._report.isolating(item.key):
                inputs[item] = reading.result()
        if not inputs:
            return []
        predictions = []
        for (item, (size, _, target)), samples in zip(inputs.items(), self._draw_samples(inputs), strict=False):
            with self._report.isolating(item.key):
                counted = target if self.ground_truth and self.ground_truth.evaluate_probs else None
                predictions.append((item, predict_full_size(samples, size, self.options, counted), target))
        return predictions

    def _draw_samples(self, inputs: Mapping[Item, _Input]) -> list[list[LogitSamples]]:
        """The samples of images that share a batch; none if the batch has failed."""
        keys, tensors = [item.key for item in inputs], [read.tensor for read in inputs.values()]
        replica = self._replicas.get()
        try:
            with self._report.isolating(*keys):
                return self.sampler.sample(replica, tensors, keys)
        finally:
            self._replicas.put(replica)
        return []

    def _finish(self, item: Item, prediction: Prediction, target: np.ndarray | None) -> None:
        """Save the prediction of an image, compare it with its ground truth, and record both."""
        with self._report.isolating(item.key):
            files = self.save(item, prediction)
            scores, packed = {}, None
            if target is not None:
                scores = self.ground_truth.compare(item, target, prediction.classes, prediction.counts)
                packed = self.ground_truth.packed.get(item.key)
            row = {"image": item.key, **scores, **prediction.scores}
            if self.journal:
                self.journal.add(row, files, packed)
            self._rows[item.key] = row
            height, width = prediction.classes.shape
            logger.debug(
                "%s: %dx%d pixels, area %d, soft Dice confidence %.3f",
                item.key,
                width,
                height,
                row["area"],
                row["soft_dice_confidence"],
            )

    def _merged_report(self, items: Sequence[Item]) -> Report:
        """The report of all processes, in the order of the images."""
        parts = distributed.all_gather(
            (self._rows, self._report.failures, *(self.ground_truth.share() if self.ground_truth else ()))
        )
        rows = {key: row for rows, *_ in parts for key, row in rows.items()}
        failures = [failure for _, failures, *_ in parts for failure in failures]
        if self.ground_truth:
            self.ground_truth.merge([share for _, _, *share in parts])
        report = Report([rows[item.key] for item in items if item.key in rows], failures)
        assert len(report.rows) + len(report.failures) == len(items), "an image is neither done nor failed"
        return report
