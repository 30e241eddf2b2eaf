"""The flags that say which files are images, which are done already, and which masks belong to them."""

import argparse

from utils.data.images import IMAGE_EXTENSIONS
from utils.data.pairing import MASK_SUFFIXES


def add_mask_suffix(parser: argparse._ActionsContainer) -> None:
    """Add --mask-suffix."""
    parser.add_argument(
        "--mask-suffix",
        metavar="TEXT",
        help="suffix of the masks' names, such as _mask for NAME_mask.png (default: the one that fits most images of "
        f"{', '.join(MASK_SUFFIXES[1:])} and none)",
    )


def add_extensions(parser: argparse._ActionsContainer) -> None:
    """Add --ext."""
    parser.add_argument(
        "--ext",
        nargs="+",
        default=IMAGE_EXTENSIONS,
        metavar=".EXT",
        help=f"file extensions of images (default: {' '.join(IMAGE_EXTENSIONS)})",
    )


def add_skip_existing(parser: argparse._ActionsContainer) -> None:
    """Add --skip-existing."""
    parser.add_argument("--skip-existing", action="store_true", help="resume an interrupted run: keep finished images")


def add_pairing_flags(parser: argparse._ActionsContainer) -> None:
    """Add --mask-suffix, --ext, --recursive, --skip-unusable."""
    add_mask_suffix(parser)
    add_extensions(parser)
    parser.add_argument("--recursive", action="store_true", help="include sub-folders")
    parser.add_argument(
        "--skip-unusable",
        action="store_true",
        help="continue without images that have no mask, files that cannot be read, and pairs of different sizes",
    )
