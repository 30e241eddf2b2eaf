"""Calibrate a model on labelled images: its temperatures, and the losses that its masks with a guarantee require."""

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from utils import IGNORED_CLASS
from utils.checkpoint import TrainedModel, calibration_content, read_checkpoint, write_checkpoint
from utils.inference.guarantees import probability_settings
from utils.inference.predictor import draw_samples
from utils.inference.samplers import DEFAULT_BATCH_SIZE, MCDropout, Sampler, Softmax, TestTimeAugmentation
from utils.inference.upsampling import StackUpsampler
from utils.metrics.risk_control import RiskCurves, foreground_probability, image_losses
from utils.runtime.console import progress
from utils.runtime.device import to_device
from utils.runtime.errors import InputError
from utils.training.temperatures import minimising_temperature, nll_by_temperature, warn_of_limits

logger = logging.getLogger(__name__)


def calibrate(
    model: TrainedModel,
    dataset: Dataset,
    batch_size: int = DEFAULT_BATCH_SIZE,
    dtype: torch.dtype | None = None,
    trained_on: bool = False,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> None:
    """Fit the temperature and the risk curves of each prediction method.

    Both are computed at the network's resolution, as the images are decoded for training: a guarantee is one of the
    losses there, not of those at the images' own sizes. If no pixel counts there are none, without a lesion no risk
    curves, and a warning. The images of a group may be alike, so a guarantee is one for groups: of the mean loss of a
    further group's images.

    Args:
        model: to be calibrated; its `temperatures` and `risk_curves` are replaced.
        dataset: of (3, h, w) uint8 images and (h, w) classes at the model's input size.
        trained_on: whether the network was trained on these images; their losses then say nothing about others, and
            there are no risk curves.
        batch_size: maximum number of network inputs per batch on a GPU.
        dtype: dtype of mixed precision; None for single precision.
        seed: of the dropout masks.
        groups: of each image, such as its patient.
    """
    samplers = _applicable_samplers(model, batch_size, dtype, seed)
    # An image without pixels that count has no loss: it proves nothing
    shown = [set(dataset[i][1].unique().tolist()) - {IGNORED_CLASS} for i in range(len(dataset))]
    counted, has_lesion = [i for i, classes in enumerate(shown) if classes], any(classes - {0} for classes in shown)
    units = groups or range(len(dataset))  # what the guarantee is for
    sizes = Counter(units[i] for i in counted)
    nll, losses = defaultdict(float), defaultdict(float)
    for i in progress(counted, desc="Calibration", unit="image", leave=False):
        image, target = dataset[i]
        for sampler in samplers:
            upsampler = sample_at_own_size(model, sampler, image, name=str(i))
            on_device = to_device(target, upsampler.device)
            nll[sampler.method] += nll_by_temperature(upsampler, on_device)
            losses[sampler.method] += foreground_losses(upsampler, on_device) / sizes[units[i]]
    if not counted:
        logger.warning(
            "All pixels of the %d images to calibrate on are ignored: there are no temperatures and no guarantees. "
            "Calibrate on images with pixels that count",
            len(dataset),
        )
    elif not has_lesion:
        logger.warning("No image has a lesion: the images give temperatures, but cannot support a guarantee")
    model.temperatures = {method: minimising_temperature(of_method) for method, of_method in nll.items()}
    model.risk_curves = {}
    for sampler in samplers if has_lesion and not trained_on else ():
        outer, inner = np.minimum(losses[sampler.method] / len(sizes), 1)  # rounding may exceed it
        of_units = (outer, inner, probability_settings(sampler), len(sizes) if groups else None)
        model.risk_curves[sampler.method] = RiskCurves(len(counted), *of_units)
    warn_of_limits(model.temperatures)


def _applicable_samplers(model: TrainedModel, batch_size: int, dtype: torch.dtype | None, seed: int) -> list[Sampler]:
    """The methods that can be used with a model."""
    options = {"batch_size": batch_size, "dtype": dtype}
    samplers = []
    for sampler in (Softmax(**options), MCDropout(**options, seed=seed), TestTimeAugmentation(**options)):
        with suppress(InputError):
            sampler.check(model)
            samplers.append(sampler.for_single_images())
    return samplers


def sample_at_own_size(model: TrainedModel, sampler: Sampler, image: Tensor, name: str) -> StackUpsampler:
    """The samples of a (3, h, w) uint8 image, to be upsampled to its size."""
    pil_image = Image.fromarray(image.permute(1, 2, 0).numpy())
    return StackUpsampler(draw_samples(model, pil_image, sampler, name), *pil_image.size)


@torch.inference_mode()
def foreground_losses(upsampler: StackUpsampler, target: Tensor) -> np.ndarray:
    """The losses of an image's outer and inner masks, (2, K), see `image_losses`.

    Args:
        upsampler, target: as for `nll_by_temperature`.
    """
    probs = upsampler.probs(slice(0, len(target))).mean(dim=0)  # (1 or C, h, w)
    return np.stack(image_losses(foreground_probability(probs), target))


def save_calibration(path: Path, model: TrainedModel) -> None:
    """Write the calibration of a model, and white, into its checkpoint, and leave everything else in it unchanged.

    Raises:
        InputError: the file is not a checkpoint.
        OSError: the file cannot be written; it is unchanged.
    """
    write_checkpoint(path, read_checkpoint(path) | calibration_content(model))
