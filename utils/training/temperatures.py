"""Temperature scaling: the divisor of the logits with which the probabilities are calibrated best.

The logits of every sample are divided by the temperature before the softmax, and the probabilities averaged (Guo et
al., ICML 2017; with MC dropout Laves et al., 2019). The NLL is evaluated at `TEMPERATURES`, at the network's
resolution, and a parabola through its minimum and the two neighbours is minimised.
"""

import logging
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from utils import IGNORED_CLASS
from utils.inference.upsampling import StackUpsampler
from utils.metrics.pixel_counts import MIN_PROBABILITY

logger = logging.getLogger(__name__)

TEMPERATURES = 2.0 ** (np.arange(-8, 13) / 4)  # 0.25 to 8


def warn_of_limits(temperatures: Mapping[str, float]) -> None:
    """Warn of temperatures at an end of the range of `TEMPERATURES`, which do not calibrate."""
    for limit, meaning in (
        (TEMPERATURES[0], "too cautious for how often they are right, as after a short training"),
        (TEMPERATURES[-1], "too confident for how often they are wrong, as with few training images or wrong masks"),
    ):
        methods = [method for method, value in temperatures.items() if value == limit]
        if methods:
            logger.warning(
                "The temperature %g of %s is the limit of the range from %g to %g: the probabilities are far %s. "
                "Calibrated ones are better, but still not right",
                *(limit, ", ".join(methods), TEMPERATURES[0], TEMPERATURES[-1], meaning),
            )


@torch.inference_mode()
def nll_by_temperature(upsampler: StackUpsampler, target: Tensor) -> np.ndarray:
    """The mean NLL in nats of an image's pixels, but for ignored ones, at each of `TEMPERATURES`.

    Args:
        upsampler: of the samples of the image, to the size of the target.
        target: (h, w) classes, on its device.
    """
    counted, target = target != IGNORED_CLASS, target.long()
    target, n_counted, losses = target * counted, counted.sum().clamp(min=1), []
    for temperature in TEMPERATURES:
        probs = upsampler.probs(slice(0, len(target)), float(temperature)).mean(dim=0)  # (1 or C, h, w)
        if len(probs) == 1:
            probs = torch.cat([1 - probs, probs])
        p_target = probs.gather(0, target[None])
        losses.append((-p_target.clamp(min=MIN_PROBABILITY).log() * counted).sum() / n_counted)
    return torch.stack(losses).cpu().double().numpy()


def minimising_temperature(losses: np.ndarray) -> float:
    """The temperature that minimises the loss, interpolated between `TEMPERATURES`.

    Args:
        losses: at each of `TEMPERATURES`.
    """
    lowest = int(np.argmin(losses))
    i = min(max(lowest, 1), len(losses) - 2)  # the minimum may be between the outermost temperatures
    curvature, slope, _ = np.polyfit([-1, 0, 1], losses[i - 1 : i + 2], 2)
    steps = -slope / (2 * curvature) if curvature > 0 else lowest - i
    step = math.log(TEMPERATURES[1] / TEMPERATURES[0])
    return float(TEMPERATURES[i] * math.exp(min(max(steps, -1), 1) * step))


def format_temperatures(temperatures: Mapping[str, float]) -> str:
    """Temperatures in one human-readable line."""
    return ", ".join(f"{method} {value:.3f}" for method, value in temperatures.items()) or "none"
