"""Masks with a guarantee, by the losses of a model's calibration images."""

import logging
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from utils.checkpoint import TrainedModel
from utils.inference.samplers import Sampler, method_title
from utils.metrics.risk_control import controlling_thresholds, foreground_probability, required_number
from utils.runtime.errors import InputError

logger = logging.getLogger(__name__)

OUTER, INNER = "_outer", "_inner"  # the suffixes of their files


@dataclass(frozen=True)
class Guarantee:
    """The thresholds of a level that is guaranteed on average over images, or groups, like those of the calibration.

    It holds neither for each image nor for images of another source.

    Attributes:
        level: such as 0.9: on average at least 90 % of the lesion lie in the outer mask, and at least 90 % of the inner
            mask are lesion.
        outer: the outer mask has the pixels with at least this foreground probability.
        inner: the inner mask has the pixels above this one.
        images: number of calibration images.
        temperature: by which the logits of the samples were divided; the thresholds are for undivided ones.
        groups: number of groups of calibration images, such as patients; None if each image is its own.
    """

    level: float
    outer: float
    inner: float
    images: int
    temperature: float = 1.0
    groups: int | None = None

    def masks(self, probs: Tensor) -> dict[str, Tensor]:
        """The outer and the inner mask by the suffix of their file names, (H, W) uint8: 255 inside, 0 outside.

        Args:
            probs: (1 or C, H, W), the mean over samples that were not divided by a temperature.
        """
        p = foreground_probability(probs)
        return {OUTER: (p >= self.outer).byte() * 255, INNER: (p > self.inner).byte() * 255}

    def __str__(self) -> str:
        thresholds = f"outer mask from a probability of {self.outer:.4g}, inner mask above {self.inner:.4g}"
        if self.outer == self.inner:
            thresholds = f"one mask, from a probability of {self.outer:.4g}, is outer and inner mask"
        of_groups = f" in {self.groups} groups" if self.groups else ""
        return (
            f"guarantee of {self.level:g} from {self.images} calibration images{of_groups}: {thresholds}; on average "
            f"over {'groups' if self.groups else 'images'} like those, not for each"
        )


def make_guarantee(model: TrainedModel, sampler: Sampler, level: float | None) -> Guarantee | None:
    """The thresholds of a level for a method.

    Args:
        model: with its `risk_curves`.
        sampler: the method, with the settings of the calibration. It may divide the logits by a temperature.
        level: in (0, 1), such as 0.9; None for no guarantee.

    Raises:
        InputError: the model has not been calibrated for the method and its settings, or with too few images.
    """
    if level is None:
        return None
    method, curves = method_title(sampler, model), model.risk_curves.get(sampler.method)
    if curves is None:
        stored = "; it stores all members in one file" if model.members else ""
        raise InputError(
            f"a guarantee requires a calibration for {method}, which this model does not have: run python -m "
            f"utils.calibration on labelled images like those to predict{stored}",
            "guarantee",
        )
    settings = probability_settings(sampler)
    if settings != curves.settings:
        expected, found = _describe(curves.settings), _describe(settings)
        text = f"a guarantee holds for the probabilities of the calibration, which had {expected}, not {found}"
        raise InputError(text, "mc", "shrink")
    required = required_number(level)
    if curves.n < required:
        raise InputError(
            f"a guarantee of {level:g} requires {required} {curves.unit}, this model has {curves.n}: calibrate it with "
            "more, or choose a lower level",
            "guarantee",
        )
    thresholds = controlling_thresholds(curves, level)
    guarantee = Guarantee(level, *thresholds, curves.images, sampler.temperature, curves.groups)
    logger.info("%s: %s", method, guarantee)
    return guarantee


def probability_settings(sampler: Sampler) -> dict[str, Any]:
    """The settings that determine the distribution of the mean probability before any temperature, by name."""
    return {name: value for name, value in sampler.settings.items() if name not in ("dtype", "seed", "temperature")}


def _describe(settings: dict[str, Any]) -> str:
    words = [f"{value} passes" if name == "num_samples" else f"{name} = {value}" for name, value in settings.items()]
    return ", ".join(words) or "no settings"
