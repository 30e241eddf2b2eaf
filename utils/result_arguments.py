"""The flags that every script that predicts has beside those of its images and its model."""

import argparse
from collections.abc import Callable

from utils.argument_types import number

guarantee_level = number(0, 0.999)  # the highest one requires 999 calibration images


def add_result_flags(parser: argparse._ActionsContainer) -> None:
    """Add --guarantee, --review, --compile."""
    parser.add_argument(
        "--guarantee",
        type=guarantee_level,
        metavar="LEVEL",
        help="such as 0.95: also save an outer mask, in which at least 95 %% of the lesion lies, and an inner mask, of "
        "which at least 95 %% is lesion, as NAME_outer.png and NAME_inner.png beside the result NAME.png. Both hold on "
        "average over images like those of the calibration: not for each image, and for other sources only after a "
        "calibration on labelled images of theirs (python -m utils.calibration)",
    )
    parser.add_argument("--review", action="store_true", help="also write review.html, a page to review the results on")
    add_compile(parser)


def add_passes(parser: argparse._ActionsContainer, default: int, passes: Callable[[str], int], help: str) -> None:
    """Add --mc, None if it is not given: see `model_flags.passes_from_args`, which then reads `default_passes`."""
    text = f"{help} (default: {default}; with --guarantee as many as in the calibration)"
    parser.add_argument("--mc", type=passes, metavar="T", help=text)
    parser.set_defaults(default_passes=default)


def add_compile(parser: argparse._ActionsContainer) -> None:
    """Add --compile."""
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the network, which requires a C++ compiler and takes about six seconds, twenty the first time; "
        "on a CPU it pays for hundreds of images with many passes each, or thousands with one",
    )
