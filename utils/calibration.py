"""Fit the temperatures of an existing model on its validation images, and store them in its file.

`python -m utils.calibration -m MODEL` does what train_bayesian.py does at the end of training.
"""

import argparse
import logging
from collections.abc import Sequence

from utils import arguments, cli
from utils.checkpoint import TrainedModel
from utils.data_loading import SegmentationDataset, load_pairs, split_indices
from utils.runtime.errors import InputError
from utils.training.temperatures import fit_temperatures, format_temperatures, save_temperatures

logger = logging.getLogger(__name__)


def get_args_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="python -m utils.calibration",
        description=__doc__,
        parents=[arguments.model_parent(), arguments.training_folders_parent()],
    )


def main(args: argparse.Namespace) -> None:
    model, dtype = cli.model_from_args(args)
    pairing = cli.pairing_options(args)
    decoded = load_pairs(args.imgs_dir, args.masks_dir, model.input_size, args.cache_dir, pairing)
    dataset = SegmentationDataset(decoded, held_out_indices(model, len(decoded.pairs)), model.mask_values)
    logger.info("Fitting on %d images", len(dataset))
    temperatures = fit_temperatures(model, dataset, args.batch_size, dtype)
    save_temperatures(args.model, temperatures)
    logger.info("Temperatures stored in %s: %s", args.model, format_temperatures(temperatures))


def held_out_indices(model: TrainedModel, n_images: int) -> Sequence[int]:
    """The images that were held out when a model was trained; all, if its file does not record the split.

    Raises:
        InputError: the folder has another number of images than the one that the model was trained on.
    """
    if "validation" not in model.settings:
        logger.warning("The model file does not record which images were held out: fitting on all of them")
        return range(n_images)
    if model.settings.get("images") != n_images:
        raise InputError(
            f"the model was trained on a folder of {model.settings.get('images')} images, this one has {n_images}: "
            "its validation images cannot be identified"
        )
    return split_indices(n_images, model.settings["validation"], model.settings["seed"])[1]


if __name__ == "__main__":
    cli.run(main, get_args_parser())
