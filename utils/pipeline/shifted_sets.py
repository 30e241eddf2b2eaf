"""A labelled set of images under one corruption after another: the metrics of each method, in constant memory."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from utils.checkpoint import TrainedModel
from utils.data.corruptions import CORRUPTIONS, corrupt
from utils.inference.compiled import compile_model
from utils.inference.guarantees import Guarantee
from utils.inference.predictor import MapOptions, Prediction, predict_full_size
from utils.inference.samplers import Sampler
from utils.metrics.pixel_counts import PixelCounts
from utils.metrics.pixel_metrics import PIXEL_METRIC_TITLES, PIXEL_METRICS
from utils.metrics.risk_control import REGION_LOSS_TITLES
from utils.metrics.segmentation import segmentation_scores, where_shown
from utils.metrics.selective import mean_dice_and_aurc
from utils.pipeline.ground_truth import GroundTruth
from utils.pipeline.items import Item
from utils.pipeline.report import Report
from utils.runtime.errors import InputError
from utils.runtime.threads import map_ahead, one_torch_thread

UNCHANGED = "unchanged"

# The metrics under shift, as metrics.json has them of a set, with the titles of the comparison of methods.
SHIFT_METRICS = {
    "dice": "Dice, mean",
    "ece_top_label": PIXEL_METRIC_TITLES["ece_top_label"],
    "nll": PIXEL_METRIC_TITLES["nll"],
    "aurc": "AURC, soft Dice confidence",
    "error_auroc": PIXEL_METRIC_TITLES["error_auroc"],
}


class Shift(NamedTuple):
    """A corruption in one strength; `UNCHANGED` in strength 0 for the images as they are."""

    corruption: str
    strength: int


def list_shifts(strengths: Sequence[int]) -> list[Shift]:
    """The images as they are, and each corruption in each of these strengths."""
    return [Shift(UNCHANGED, 0), *(Shift(name, strength) for name in CORRUPTIONS for strength in sorted({*strengths}))]


class _SetScores:
    """What is summed over the images for one method.

    Args:
        n_classes: number of classes.
    """

    def __init__(self, n_classes: int) -> None:
        self._n_classes = n_classes
        self._counts: PixelCounts | None = None
        self._dice: list[float] = []
        self._confidence: list[float] = []
        self._regions: list[dict[str, float]] = []

    def add(self, prediction: Prediction, target: np.ndarray) -> None:
        """Add an image; one without any pixel that counts is left out, and of Dice and AURC one without a lesion."""
        scores = segmentation_scores(prediction.classes, target, self._n_classes)
        if math.isnan(scores["accuracy"]):
            return
        self._counts = prediction.counts if self._counts is None else self._counts + prediction.counts
        self._dice.append(where_shown(scores)["dice"])
        self._confidence.append(prediction.scores["soft_dice_confidence"])
        if prediction.regions:
            self._regions.append(prediction.region_losses(target))

    def metrics(self) -> dict[str, Any]:
        """The number of images, and the metrics, None where one is undefined. Empty without images."""
        if self._counts is None:
            return {}
        dice, aurc = mean_dice_and_aurc(self._dice, self._confidence)
        values = {
            "dice": dice,
            **{name: PIXEL_METRICS[name](self._counts) for name in SHIFT_METRICS if name in PIXEL_METRICS},
            "aurc": aurc,
            **{name: np.mean([one[name] for one in self._regions]) for name in REGION_LOSS_TITLES if self._regions},
        }
        numbers = {name: float(value) for name, value in values.items()}
        return {"images": len(self._dice)} | {name: x if math.isfinite(x) else None for name, x in numbers.items()}


@dataclass
class ShiftEvaluation:
    """Evaluates methods on a set of images, changed by one corruption at a time.

    Each changed image is made once, predicted by all methods and forgotten. An image that fails is reported, and left
    out from then on.

    Attributes:
        model: to predict with.
        samplers: the methods by their display names.
        ground_truth: of the images.
        seed: from it and an image's name the corruption's random numbers are derived.
        guarantees: of the methods whose masks with a guarantee are evaluated, too, by the same names.
        compile: compile the network for each method first.
        report: the failures.
    """

    model: TrainedModel
    samplers: Mapping[str, Sampler]
    ground_truth: GroundTruth
    seed: int = 0
    guarantees: Mapping[str, Guarantee] = field(default_factory=dict)
    compile: bool = False
    report: Report = field(default_factory=Report)
    _models: dict[str, TrainedModel] = field(init=False, default_factory=dict)  # of each method

    def evaluate(
        self, items: Sequence[Item], shift: Shift, handled: Callable[[int], object] = lambda n: None
    ) -> list[dict[str, Any]]:
        """The metrics of the images under a shift, one row for each method; none if every image has failed.

        A row lists the images that have failed by then, and so are not in it.

        Args:
            items: labelled images.
            shift: the corruption and its strength.
            handled: called with each number of images that are done.
        """
        failed = {*self.failed}
        remaining = [item for item in items if item.reported not in failed]
        handled(len(items) - len(remaining))
        scores = {method: _SetScores(self.model.n_classes) for method in self.samplers}
        with (
            one_torch_thread(self.model.device) as threads,
            closing(map_ahead(lambda item: self._predict(item, shift), remaining, threads, threads)) as predictions,
        ):
            if not self._models:
                self._models = self._compile() if self.compile else dict.fromkeys(self.samplers, self.model)
            for item, future in predictions:
                with self.report.isolating(item.reported):
                    by_method, target = future.result()
                    for method, prediction in by_method.items():
                        scores[method].add(prediction, target)
                handled(1)
        rows = {method: one.metrics() for method, one in scores.items()}
        same = {**shift._asdict(), "failed": self.failed}
        return [{**same, "method": method, **metrics} for method, metrics in rows.items() if metrics]

    @property
    def failed(self) -> list[str]:
        """The names of the images that have failed, sorted."""
        return sorted({name for name, _ in self.report.failures})

    def _compile(self) -> dict[str, TrainedModel]:
        """The model compiled for each method; as it is from the first one on for which it cannot be compiled."""
        models = dict.fromkeys(self.samplers, self.model)
        for method, sampler in self.samplers.items():
            models[method] = compile_model(self.model, sampler)
            if models[method] is self.model:
                break
        return models

    def _predict(self, item: Item, shift: Shift) -> tuple[dict[str, Prediction], np.ndarray]:
        """The predictions of a changed image by each method, and its (H, W) ground truth."""
        image = item.read(self.model.white)
        target = self.ground_truth.read(item, (image.height, image.width))
        if target is None:
            raise InputError("it has no mask")
        image, target = corrupt(image, target, *shift, (self.seed, item.key))
        predictions = {}
        for method, sampler in self.samplers.items():
            inputs = [sampler.preprocess_image(image, self.model.input_size)]
            (samples,) = sampler.sample(self._models[method], inputs, [item.key])
            options = MapOptions(guarantee=self.guarantees.get(method))
            predictions[method] = predict_full_size(samples, image.size, options, target)
        return predictions, target
