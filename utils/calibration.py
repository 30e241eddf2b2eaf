"""Temperature scaling: the one number by which logits are divided, so that probabilities fit what is seen.

`python -m utils.calibration` fits it for a model that is there already, on its validation images.
"""

import argparse
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from unet.mc_dropout import active_dropout_layers
from utils import cli
from utils.checkpoint import TrainedModel, read_checkpoint, write_checkpoint
from utils.data_loading import DEFAULT_CACHE_DIR, SegmentationDataset, decode_pairs, pair_files, split_indices
from utils.errors import InputError
from utils.metrics import MIN_PROBABILITY
from utils.probability import LogitSamples, MCDropout, Sampler, Softmax, TestTimeAugmentation, summarize

logger = logging.getLogger(__name__)

TEMPERATURES = 2.0 ** (np.arange(-8, 13) / 4)  # 0.25 to 8


def fit_temperatures(
    model: TrainedModel, dataset: Dataset, batch_size: int = 8, dtype: torch.dtype | None = None
) -> dict[str, float]:
    """The temperatures with which the mean NLL of the pixels is least, for each method of prediction.

    The logits of every sample are divided by the temperature before the softmax, and the probabilities averaged
    (Guo et al., ICML 2017; with MC dropout Laves et al., 2019). The NLL is computed at `TEMPERATURES`, at the
    network's resolution, and a parabola through the least of them and its neighbours tells the minimum.

    Args:
        model: to be calibrated; `temperatures` it has already do not matter.
        dataset: of (3, h, w) uint8 images and (h, w) classes at the model's input size, none of which it has learnt.
        batch_size: number of network inputs computed at once.
        dtype: of mixed precision; None for single precision.

    Returns:
        Temperatures by `Sampler.method`.
    """
    common = {"batch_size": batch_size, "dtype": dtype}
    samplers: list[Sampler] = [Softmax(**common)]
    if active_dropout_layers(model.network):
        samplers.append(MCDropout(**common))
    if model.input_size[0] == model.input_size[1]:
        samplers.append(TestTimeAugmentation(**common))
    samplers = [sampler.for_single_images() for sampler in samplers]
    losses = {sampler.method: np.zeros(len(TEMPERATURES)) for sampler in samplers}
    for i in cli.progress(range(len(dataset)), desc="Calibration", unit="image", leave=False):
        image, truth = dataset[i]
        for sampler in samplers:
            losses[sampler.method] += _losses(model, sampler, image, truth, name=str(i))
    return {method: _least(loss) for method, loss in losses.items()}


def _losses(model: TrainedModel, sampler: Sampler, image: torch.Tensor, truth: torch.Tensor, name: str) -> np.ndarray:
    """The mean NLL of an image's pixels at each of `TEMPERATURES`."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    samples = sampler.sample(model, [sampler.inputs(picture, model.input_size)], [name])[0]
    losses = []
    for temperature in TEMPERATURES:
        scaled = [LogitSamples(logits / float(temperature), zoom) for logits, zoom in samples]
        probs = summarize(scaled, picture.size, statistics=()).probs
        p_true = probs.gather(0, truth.long()[None].to(probs.device))
        losses.append(-p_true.clamp(min=MIN_PROBABILITY).log().mean().item())
    return np.array(losses)


def _least(losses: np.ndarray) -> float:
    """The temperature of the least loss, between those at which it was computed."""
    i = int(np.argmin(losses))
    if i in (0, len(losses) - 1):
        return float(TEMPERATURES[i])
    curvature, slope, _ = np.polyfit([-1, 0, 1], losses[i - 1 : i + 2], 2)
    step = math.log(TEMPERATURES[1] / TEMPERATURES[0])
    return float(TEMPERATURES[i] * math.exp(-slope / (2 * curvature) * step))


def describe(temperatures: Mapping[str, float]) -> str:
    """Temperatures for people."""
    return ", ".join(f"{method} {value:.3f}" for method, value in temperatures.items())


def save_temperatures(path: Path, temperatures: Mapping[str, float]) -> None:
    """Write temperatures into a checkpoint, of which all else stays as it is.

    Raises:
        InputError: the file is no checkpoint.
    """
    write_checkpoint(path, read_checkpoint(path) | {"temperatures": dict(temperatures)})


# -- the command -------------------------------------------------------------------------------------------------------


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m utils.calibration", description=__doc__, parents=[cli.model_parent()]
    )
    folders = parser.add_argument_group("images that the model was trained with (or, if it does not tell, others)")
    for flag, default in (("--imgs-dir", Path("data/imgs")), ("--masks-dir", Path("data/masks"))):
        cli.add_defaulted(folders, flag, type=Path, default=default, metavar="DIR")
    folders.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE_DIR, metavar="DIR", help="decoded images")
    return parser


def main(args: argparse.Namespace) -> None:
    model, dtype = cli.load_model(args)
    pairs = pair_files(args.imgs_dir, args.masks_dir)
    decoded = decode_pairs(pairs, model.input_size, args.cache_dir, show_progress=True)
    dataset = SegmentationDataset(decoded, _not_learnt(model, len(pairs)), model.mask_values)
    logger.info("Fitting on %d images", len(dataset))
    temperatures = fit_temperatures(model, dataset, args.batch_size, dtype)
    save_temperatures(args.model, temperatures)
    logger.info("Temperatures, now in %s: %s", args.model, describe(temperatures))


def _not_learnt(model: TrainedModel, n_images: int) -> Sequence[int]:
    """The model's validation images among those of the folder; all of them, if it does not tell how it was trained."""
    if "validation" not in model.settings:
        return range(n_images)
    if model.settings.get("images") != n_images:
        raise InputError(
            f"the model was trained on a folder of {model.settings.get('images')} images, this one has {n_images}: "
            "its validation images cannot be told from the others"
        )
    return split_indices(n_images, model.settings["validation"], model.settings["seed"])[1]


if __name__ == "__main__":
    cli.run(main, get_args_parser())
