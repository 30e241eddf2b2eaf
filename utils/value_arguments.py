"""The flags that say what the values of masks and images mean."""

import argparse

from utils.argument_types import mask_value, number
from utils.data.images import DEFAULT_MAX_MEGAPIXELS


def add_value_flags(parser: argparse._ActionsContainer, recorded: str = "as in the model, or ") -> None:
    """Add --ignore-value, --white, --max-megapixels.

    Args:
        parser: to which they are added.
        recorded: begins the defaults of the first two, which a model has recorded.
    """
    add_ignore_value(parser, recorded)
    parser.add_argument(
        "--white",
        type=number(0),
        metavar="V",
        help=f"value of white in 16-bit images (default: {recorded}by the bit depth that the images show)",
    )
    add_max_megapixels(parser)


def add_ignore_value(parser: argparse._ActionsContainer, recorded: str) -> None:
    """Add --ignore-value, whose default begins with what has been recorded."""
    parser.add_argument(
        "--ignore-value",
        type=mask_value,
        metavar="V",
        help=f"mask value of pixels that do not count (default: {recorded}255 beside all labels 0, 1, 2, ...)",
    )


def add_max_megapixels(parser: argparse._ActionsContainer) -> None:
    """Add --max-megapixels, which `utils.cli` heeds."""
    parser.add_argument(
        "--max-megapixels",
        type=number(0),
        default=DEFAULT_MAX_MEGAPIXELS,
        metavar="N",
        help="refuse larger images, whose files may be malicious (default: %(default)s)",
    )


def add_class_value_flags(parser: argparse._ActionsContainer) -> None:
    """Add --mask-values, --background."""
    parser.add_argument(
        "--mask-values",
        type=mask_value,
        nargs="+",
        metavar="V",
        help="mask values of class 0, 1, ... (default: as in --load if the masks have its values, or the most frequent "
        "ones, sorted)",
    )
    parser.add_argument(
        "--background", type=mask_value, metavar="V", help="mask value of class 0, if it is not the lowest one"
    )
