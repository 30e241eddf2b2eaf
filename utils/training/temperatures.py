"""Temperature scaling: fit the divisor of the logits with which the probabilities are calibrated best."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from unet.mc_dropout import dropout_layers
from utils import IGNORED_CLASS
from utils.checkpoint import TrainedModel, read_checkpoint, write_checkpoint
from utils.inference.predictor import draw_samples
from utils.inference.samplers import DEFAULT_BATCH_SIZE, MCDropout, Sampler, Softmax, TestTimeAugmentation
from utils.inference.upsampling import StackUpsampler
from utils.metrics.pixel_counts import MIN_PROBABILITY
from utils.runtime.console import progress
from utils.runtime.device import to_device

logger = logging.getLogger(__name__)

TEMPERATURES = 2.0 ** (np.arange(-8, 13) / 4)  # 0.25 to 8


def fit_temperatures(
    model: TrainedModel,
    dataset: Dataset,
    batch_size: int = DEFAULT_BATCH_SIZE,
    dtype: torch.dtype | None = None,
) -> dict[str, float]:
    """The temperature that minimises the mean NLL of the pixels, for each prediction method.

    The logits of every sample are divided by the temperature before the softmax, and the probabilities averaged
    (Guo et al., ICML 2017; with MC dropout Laves et al., 2019). The NLL is evaluated at `TEMPERATURES`, at the
    network's resolution, and a parabola through its minimum and the two neighbours is minimised.

    Args:
        model: to be calibrated; its present `temperatures` are ignored.
        dataset: of (3, h, w) uint8 images and (h, w) classes at the model's input size, not used in its training.
        batch_size: maximum number of network inputs per batch on a GPU.
        dtype: dtype of mixed precision; None for single precision.

    Returns:
        Temperatures by `Sampler.method`.
    """
    options = {"batch_size": batch_size, "dtype": dtype}
    samplers: list[Sampler] = [Softmax(**options)]
    if all(dropout_layers(network) for network in model.networks):
        samplers.append(MCDropout(**options))
    if model.input_size[0] == model.input_size[1]:
        samplers.append(TestTimeAugmentation(**options))
    samplers = [sampler.for_single_images() for sampler in samplers]
    losses = {sampler.method: np.zeros(len(TEMPERATURES)) for sampler in samplers}
    for i in progress(range(len(dataset)), desc="Calibration", unit="image", leave=False):
        image, target = dataset[i]
        for sampler in samplers:
            losses[sampler.method] += nll_by_temperature(model, sampler, image, target, name=str(i))
    temperatures = {method: minimising_temperature(loss) for method, loss in losses.items()}
    warn_of_limits(temperatures)
    return temperatures


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
def nll_by_temperature(
    model: TrainedModel, sampler: Sampler, image: torch.Tensor, target: torch.Tensor, name: str
) -> np.ndarray:
    """The mean NLL in nats of an image's pixels, but for ignored ones, at each of `TEMPERATURES`.

    Args:
        model: to predict with.
        sampler: the method.
        image: (3, h, w) uint8.
        target: (h, w) classes.
        name: of the image, from which random numbers are derived.
    """
    pil_image = Image.fromarray(image.permute(1, 2, 0).numpy())
    samples = draw_samples(model, pil_image, sampler, name)
    upsampler = StackUpsampler(samples, *pil_image.size)
    target = to_device(target, upsampler.device).long()
    counted = target != IGNORED_CLASS
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
    i = int(np.argmin(losses))
    if i in (0, len(losses) - 1):
        return float(TEMPERATURES[i])
    curvature, slope, _ = np.polyfit([-1, 0, 1], losses[i - 1 : i + 2], 2)
    step = math.log(TEMPERATURES[1] / TEMPERATURES[0])
    return float(TEMPERATURES[i] * math.exp(-slope / (2 * curvature) * step))


def format_temperatures(temperatures: Mapping[str, float]) -> str:
    """Temperatures in one human-readable line."""
    return ", ".join(f"{method} {value:.3f}" for method, value in temperatures.items())


def save_temperatures(path: Path, temperatures: Mapping[str, float]) -> None:
    """Write temperatures into a checkpoint and leave everything else in it unchanged.

    Raises:
        InputError: the file is not a checkpoint.
        OSError: the file cannot be written; it is unchanged.
    """
    write_checkpoint(path, read_checkpoint(path) | {"temperatures": dict(temperatures)})
