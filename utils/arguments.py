"""The flags that scripts and commands share, as argparse parents."""

import argparse
from pathlib import Path
from typing import Any

from utils.argument_types import integer, number
from utils.data.cache import DEFAULT_CACHE_DIR
from utils.inference.samplers import DEFAULT_BATCH_SIZE
from utils.pairing_arguments import add_extensions, add_mask_suffix, add_pairing_flags, add_skip_existing
from utils.result_arguments import add_result_flags
from utils.training.tracking import MODES
from utils.value_arguments import add_class_value_flags, add_value_flags

DEFAULT_MODEL = Path("pretrained_model.pth")
DEFAULT_THRESHOLD = 0.5
_MODEL_HELP = f"checkpoint; several are a deep ensemble (default: {DEFAULT_MODEL})"


def add_with_default(parser: argparse._ActionsContainer, *flags: str, help: str = "", **options: Any) -> None:
    """Add an argument whose help ends with its default."""
    default = "default: %(default)s"
    parser.add_argument(*flags, help=f"{help} ({default})" if help else default, **options)


# -- parents -----------------------------------------------------------------------------------------------------------


def _parent() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(add_help=False)


def compute_parent() -> argparse.ArgumentParser:
    """--device, --amp, --seed."""
    parent = _parent()
    _add_compute_flags(parent)
    return parent


def _add_compute_flags(parent: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parent.add_argument_group("computation")
    group.add_argument("--device", metavar="NAME", help="cuda, cuda:1, cpu or mps (default: cuda or, without it, cpu)")
    group.add_argument("--amp", action="store_true", help="mixed precision, faster on devices with bfloat16")
    add_with_default(
        group,
        "--seed",
        type=integer(0, 2**63 - 1),
        default=0,
        metavar="N",
        help="random seed, for reproducible results",
    )
    return group


def model_parent() -> argparse.ArgumentParser:
    """--model and its properties, --batch-size, and the flags of `compute_parent`; see `model_from_args`."""
    parent = _parent()
    group = parent.add_argument_group("model (what is not given comes from its file; a contradicting flag is an error)")
    group.add_argument("--model", "-m", nargs="+", type=Path, default=[DEFAULT_MODEL], metavar="FILE", help=_MODEL_HELP)
    group.add_argument("--bilinear", action="store_true", default=None, help="bilinear upsampling")
    group.add_argument("--classes", "-c", type=integer(1, 255), metavar="N", help="number of classes")
    _add_size_flags(group)
    add_value_flags(parent.add_argument_group("values of masks and images"))
    computation = _add_compute_flags(parent)
    add_with_default(
        computation,
        "--batch-size",
        type=integer(1),
        default=DEFAULT_BATCH_SIZE,
        metavar="N",
        help="maximum number of network inputs per batch on a GPU",
    )
    return parent


def _add_size_flags(group: argparse._ArgumentGroup, default: str = "") -> None:
    for flag, side in (("--newW", "width"), ("--newH", "height")):
        group.add_argument(flag, type=integer(16, 8192), metavar="N", help=f"{side} of the network's input{default}")


def folder_parent(evaluates_only: bool = False) -> argparse.ArgumentParser:
    """--input-dir, --output-dir, --mask-dir, --mask-suffix, --ext, --skip-existing, --recursive.

    Args:
        evaluates_only: there are no results of single images: --mask-dir is required, --skip-existing not offered.
    """
    parent = _parent()
    group = parent.add_argument_group("images")
    group.add_argument("--input-dir", type=Path, required=True, metavar="DIR", help="folder of images")
    group.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="folder for the results")
    metrics = "" if evaluates_only else "; the metrics are written to metrics.csv and metrics.json"
    mask_help = f"folder of ground-truth masks{metrics}"
    group.add_argument("--mask-dir", type=Path, required=evaluates_only, metavar="DIR", help=mask_help)
    add_mask_suffix(group)
    add_extensions(group)
    if not evaluates_only:
        add_skip_existing(group)
    mirrored = "" if evaluates_only else "; the output folder mirrors them"
    group.add_argument("--recursive", action="store_true", help=f"include sub-folders{mirrored}")
    return parent


def image_parent() -> argparse.ArgumentParser:
    """--input, --output, --output-dir, --skip-existing."""
    parent = _parent()
    group = parent.add_argument_group("images")
    group.add_argument(
        "--input", "-i", nargs="+", type=Path, required=True, metavar="FILE", help="images, or folders of images"
    )
    results = group.add_mutually_exclusive_group()
    results.add_argument(
        "--output",
        "-o",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="mask files, .png, one per image; maps are written beside them (default: the image's name with _OUT.png)",
    )
    results.add_argument("--output-dir", type=Path, metavar="DIR", help="folder for the masks NAME.png and the maps")
    add_skip_existing(group)
    return parent


def probability_parent() -> argparse.ArgumentParser:
    """--class-index, --save-entropy, --save-npy, --calibrated, --guarantee, --review, --compile."""
    parent = _parent()
    add_with_default(
        parent, "--class-index", type=integer(0, 255), default=1, metavar="K", help="class whose probability is saved"
    )
    parent.add_argument(
        "--save-entropy",
        action="store_true",
        help="also save the uncertainty maps: entropy and, for several samples, standard deviation, expected entropy "
        "and mutual information",
    )
    add_float_flags(parent)
    add_result_flags(parent)
    return parent


def add_float_flags(parser: argparse.ArgumentParser) -> None:
    """Add --save-npy, --calibrated."""
    parser.add_argument("--save-npy", action="store_true", help="also save all maps as float32 .npy files")
    parser.add_argument(
        "--calibrated", action="store_true", help="divide the logits by the temperature stored in the model file"
    )


def mask_parent() -> argparse.ArgumentParser:
    """--mask-threshold, --no-save, --viz, --guarantee, --review, --compile."""
    parent = _parent()
    add_with_default(
        parent,
        "--mask-threshold",
        "-t",
        type=number(0, 1, include_low=True),
        default=DEFAULT_THRESHOLD,
        metavar="P",
        help="for two classes, the probability above which a pixel is foreground",
    )
    parent.add_argument("--no-save", "-n", action="store_true", help="do not save masks, maps or scores")
    parent.add_argument("--viz", "-v", action="store_true", help="show each result in a window")
    add_result_flags(parent)
    return parent


def training_parent() -> argparse.ArgumentParser:
    """The flags of train_bayesian.py, with those of `compute_parent`, but for the folders of its data."""
    parent = _parent()
    recipe = parent.add_argument_group("training")
    add_with_default(recipe, "--epochs", "-e", type=integer(1), default=20, metavar="N", help="number of epochs")
    add_with_default(recipe, "--batch-size", "-b", type=integer(1), default=8, metavar="N", help="images per step")
    add_with_default(
        recipe,
        "--learning-rate",
        "-l",
        type=number(0, 10),
        default=1e-3,
        metavar="RATE",
        help="peak of the one-cycle schedule",
    )
    add_with_default(
        recipe,
        "--validation",
        "-v",
        type=float,
        default=15.0,
        metavar="PERCENT",
        help="percentage of images held out for validation; 0 validates on the training images",
    )
    add_with_default(
        recipe,
        "--augmentation",
        choices=["light", "strong", "wild"],
        default="light",
        help="random transforms of the training images; strong (60 epochs or more) and wild (140) are for images of "
        "other sources",
    )
    recipe.add_argument(
        "--classes",
        "-c",
        type=integer(1, 255),
        metavar="N",
        help="number of classes; 1 trains a single sigmoid output (default: 2, or as in --load)",
    )
    recipe.add_argument(
        "--bilinear", action="store_true", default=None, help="bilinear upsampling in place of transposed convolutions"
    )
    _add_size_flags(recipe, " (default: 128, or as in --load)")
    values = parent.add_argument_group("values of masks and images")
    add_class_value_flags(values)
    add_value_flags(values, recorded="as in --load, or ")
    _add_run_flags(parent)
    _add_compute_flags(parent)
    return parent


def _add_run_flags(parent: argparse.ArgumentParser) -> None:
    start = parent.add_argument_group("initialisation")
    start.add_argument("--load", "-f", type=Path, metavar="FILE", help="initialise with the weights of this checkpoint")
    start.add_argument(
        "--resume",
        nargs="?",
        type=Path,
        const=Path(),
        metavar="FILE",
        help="resume an interrupted run, from FILE or from last.pth in the checkpoint folder",
    )
    results = parent.add_argument_group("results")
    add_with_default(
        results,
        "--checkpoint-dir",
        type=Path,
        default=Path("checkpoints"),
        metavar="DIR",
        help="folder for checkpoints and metrics.csv",
    )
    results.add_argument("--wandb", choices=MODES, help="Weights & Biases (default: online with a login, else offline)")


def training_folders_parent() -> argparse.ArgumentParser:
    """--imgs-dir, --masks-dir, those of `add_pairing_flags`, --val-imgs-dir, --val-masks-dir, --groups, --cache-dir."""
    parent = _parent()
    folders = parent.add_argument_group("folders")
    for flag, default, content in (
        ("--imgs-dir", Path("data/imgs"), "folder of images"),
        ("--masks-dir", Path("data/masks"), "folder of masks; it may be that of the images"),
    ):
        add_with_default(folders, flag, type=Path, default=default, metavar="DIR", help=content)
    add_pairing_flags(folders)
    folders.add_argument("--val-imgs-dir", type=Path, metavar="DIR", help="images to validate on, in place of a split")
    folders.add_argument("--val-masks-dir", type=Path, metavar="DIR", help="their masks")
    folders.add_argument(
        "--groups",
        type=Path,
        metavar="FILE",
        help="CSV file with the columns image and group, such as the patient: a split keeps a group on one side, a "
        "guarantee is for new groups",
    )
    folders.add_argument(
        "--cache-dir",
        type=Path,
        default=DEFAULT_CACHE_DIR,
        metavar="DIR",
        help="cache of decoded images (default: data/.cache of this project)",
    )
    return parent
