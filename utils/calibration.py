"""Calibrate an existing model on labelled images: fit its temperatures, keep what a guarantee requires.

`python -m utils.calibration -m MODEL` does what train_bayesian.py does at the end of training, on the same validation
images. With --output a new file is written, and --imgs-dir and --masks-dir may be images of your own, all of which are
used unless they have the names of the training images; several models are a deep ensemble, whose file is a model like
any other. A guarantee then holds on average over images like these, or with --groups over such groups: not for each
image, and not for other sources.
"""

import argparse
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from utils import arguments, cli, model_flags
from utils.checkpoint import TrainedModel, is_of_this_project, read_checkpoint, save_checkpoint
from utils.data.cache import decode_pairs
from utils.data.groups import count_named, groups_of, name_digests, names_digest, read_groups
from utils.data.mask_classes import MaskOptions
from utils.data.pairing import pair_files
from utils.data_loading import SegmentationDataset, split_indices
from utils.runtime.errors import InputError
from utils.runtime.output_folder import output_folder
from utils.runtime.seeds import json_digest
from utils.training.calibrator import calibrate, save_calibration
from utils.training.temperatures import format_temperatures

logger = logging.getLogger(__name__)


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m utils.calibration",
        description=__doc__,
        parents=[arguments.model_parent(), arguments.training_folders_parent()],
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write a new model file, .pth; required for several models"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    cli.require_one_process()
    if len(args.model) > 1 and args.output is None:
        raise InputError("an ensemble of several model files is stored in a new one: name it with --output")
    if args.output and (args.output.suffix != ".pth" or args.output.is_dir()):
        raise InputError(f"output {args.output}: a file name that ends with .pth was expected")
    model, dtype = model_flags.model_from_args(args)
    if args.output and args.output.exists() and any(path.samefile(args.output) for path in args.model):
        raise InputError(f"output {args.output} is one of the model files: it would be lost. Choose another name")
    if args.output is None and not is_of_this_project(read_checkpoint(args.model[0])):
        raise InputError(
            f"{args.model[0]} is a file of another project, which cannot keep a calibration: name a new one", "output"
        )
    # Without a new file the folder is that of a training, which writes files of these names.
    stored = args.output or args.model[0]
    file = stored.resolve()  # of a link its target
    with nullcontext() if args.output else output_folder(file.parent):
        _calibrate_on_images(args, model, dtype)
        if args.output:
            save_checkpoint(file, model)
        else:
            save_calibration(file, model)
    logger.info("Temperatures stored in %s: %s", stored, format_temperatures(model.temperatures))
    if curves := next(iter(model.risk_curves.values()), None):
        level = math.floor(1000 * curves.n / (curves.n + 1)) / 1000
        logger.info("Levels that %d %s can guarantee: up to %g", curves.n, curves.unit, level)


def _calibrate_on_images(args: argparse.Namespace, model: TrainedModel, dtype: torch.dtype | None) -> None:
    """Calibrate a model on the images that the flags name."""
    # Pair, group and decode; a guarantee is one for images that are read like these
    folders = cli.validation_folders(args) or (args.imgs_dir, args.masks_dir)
    pairs = pair_files(*folders, cli.pairing_options(args))
    group_of = read_groups(args.groups, [pair.image for pair in pairs], args.skip_unusable) if args.groups else None
    of_masks = {"background": model.background, "ignored": args.ignore_value}
    decoded = decode_pairs(pairs, model.input_size, args.cache_dir, model.white, args.skip_unusable, **of_masks)
    model.white, images = decoded.white, [pair.image for pair in decoded.pairs]
    groups = groups_of(images, group_of)

    # Choose those that no network was trained on
    names, trained = names_digest(images, folders[0]), [member.settings for member in model.members or (model,)]
    if args.val_imgs_dir and args.output is None:
        check_validation_images(model, names)
    own = args.val_imgs_dir or (args.output and are_other_images(trained, len(images), names))
    indices = range(len(images)) if own else held_out_by_all(model, len(images), names, groups)
    trained_on = not own and 0 in [settings.get("validation") for settings in trained]
    if not trained_on:
        warn_of_training_images(trained, name_digests([images[i] for i in indices], folders[0]))

    # Calibrate
    expected = model.mask_classes
    mask_classes = decoded.mask_classes(model.n_classes, MaskOptions(ignored=args.ignore_value), expected)
    dataset = SegmentationDataset(decoded, indices, mask_classes, groups=groups)
    if not dataset.n_counted:
        text = f"every pixel of the {len(dataset)} images is ignored: some have to count"
        raise InputError(text, "ignore_value")
    without = f", {dataset.n_without_lesion} of them without a lesion" * bool(dataset.n_without_lesion)
    logger.info("Fitting on %d images%s", len(dataset), without)
    calibrate(model, dataset, args.batch_size, dtype, trained_on, args.seed, dataset.groups)


def are_other_images(trained: Sequence[Mapping[str, Any]], n_images: int, names: str) -> bool:
    """Whether a folder has other images than that of the training, or of each member's; then a line says so.

    Args:
        trained: the settings of the model, or of each member; files of other projects have none.
        n_images: number of images of the folder.
        names: their `names_digest`.
    """
    recorded = [settings for settings in trained if "image_names" in settings]
    of_these = [settings for settings in recorded if settings["image_names"] == names]
    if any(settings.get("validation") and not settings.get("validation_images") for settings in of_these):
        logger.info(
            "By their names these are the %d images of the training: those that were held out are used. If they are "
            "others, name them with --val-imgs-dir and --val-masks-dir",
            n_images,
        )
    if of_these or not recorded:
        return False
    numbers = " or ".join(sorted({str(settings["images"]) for settings in recorded}))
    logger.info("These are not the %s images of the training: all %d are used", numbers, n_images)
    return True


def warn_of_training_images(trained: Sequence[Mapping[str, Any]], names: Sequence[set[str]]) -> None:
    """Warn of images that a model, or a member of an ensemble, may have been trained on, by their names.

    Args:
        trained: as for `are_other_images`.
        names: `name_digests` of the images.
    """
    if seen := count_named(names, {name for settings in trained for name in settings.get("trained_names", ())}):
        logger.warning(
            "The model may have been trained on %d of the %d images, by their names: temperatures and guarantees are "
            "then too optimistic. If they are the same images, calibrate it on others, into a new file (see --output)",
            *(seen, len(names)),
        )


def check_validation_images(model: TrainedModel, names: str) -> None:
    """Check that the images of a folder of their own are those that a model was validated on in its training.

    Args:
        model: the model; ensembles do not record them.
        names: `names_digest` of the images.

    Raises:
        InputError: they are not.
    """
    if model.settings.get("validation_image_names", names) != names:
        raise InputError(
            "these are not the images that the model was validated on in its training: on other labelled images, "
            "calibrate it into a new file",
            "output",
        )


def held_out_by_all(model: TrainedModel, n_images: int, names: str, groups: Sequence[str] | None) -> Sequence[int]:
    """The images that every member of an ensemble, or a single model, has held out; see `held_out_indices`.

    Raises:
        InputError: there are none, or these are not the images and groups that a member was trained on.
    """
    if not model.members:
        return held_out_indices(model, n_images, names, groups)
    indices = sorted(set.intersection(*(set(held_out_indices(one, n_images, names, groups)) for one in model.members)))
    if not indices:
        raise InputError(
            "no image was held out by all members: name images that none was trained on with --val-imgs-dir and "
            "--val-masks-dir"
        )
    return indices


def held_out_indices(model: TrainedModel, n_images: int, names: str, groups: Sequence[str] | None) -> Sequence[int]:
    """The images that were held out when a model was trained; all, if its file does not record the split.

    Args:
        model: the model.
        n_images: number of images of the folder that it was trained on.
        names: `names_digest` of the images.
        groups: of each image, if the split was one of groups.

    Raises:
        InputError: these are not the images and groups that the model was trained on.
    """
    settings = model.settings
    if "validation" not in settings:
        logger.warning("The model file does not record which images were held out: fitting on all of them")
        return range(n_images)
    if settings.get("validation_images"):
        raise InputError(
            f"the model was validated on {settings['validation_images']} images of another folder: name it with "
            "--val-imgs-dir and --val-masks-dir"
        )
    if settings.get("image_names") != names:
        raise InputError(
            f"these {n_images} images are not the {settings.get('images')} that the model was trained on, or not in "
            "their order: its validation images cannot be identified. To calibrate it on other labelled images, name "
            "them with --val-imgs-dir and --val-masks-dir, and a new file",
            "output",
        )
    if settings.get("groups") != (json_digest(groups) if groups else None):
        expected = "with the groups of another file" if groups else "by groups"
        expected = expected if settings.get("groups") else "without groups"
        raise InputError(
            f"the images were split {expected} when the model was trained: its validation images can be identified "
            "with the same --groups only"
        )
    if settings["validation"] == 0:
        logger.warning(
            "The model was validated on its training images: temperatures fitted on them are too low, and they give no "
            "guarantee"
        )
    return split_indices(n_images, settings["validation"], settings["seed"], groups)[1]


if __name__ == "__main__":
    cli.run(main, get_args_parser())
