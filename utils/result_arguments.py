"""The flags that every script that predicts has beside those of its images and its model."""

import argparse

_MAX_LEVEL = 0.999  # of which 999 calibration images are required


def guarantee_level(text: str) -> float:
    """An argparse type: the level of a guarantee."""
    try:
        level = float(text)
        if not 0 < level <= _MAX_LEVEL:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a level such as 0.9, above 0 and up to {_MAX_LEVEL}, not {text!r}"
        ) from None
    return level


def add_result_flags(parser: argparse._ActionsContainer) -> None:
    """Add --guarantee, --review, --compile."""
    parser.add_argument(
        "--guarantee",
        type=guarantee_level,
        metavar="LEVEL",
        help="such as 0.9: also save NAME_outer.png, in which at least 90 %% of the lesion lie, and NAME_inner.png, of "
        "which at least 90 %% are lesion. On average over images like those of the calibration: not for each image, "
        "and not for other sources without labelled images of theirs (python -m utils.calibration). MC dropout with "
        "as many passes as in the calibration, 20",
    )
    parser.add_argument("--review", action="store_true", help="also write review.html, a page to review the results on")
    add_compile(parser)


def add_compile(parser: argparse._ActionsContainer) -> None:
    """Add --compile."""
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the network, with a C++ compiler; it takes six seconds, twenty or more the first time, "
        "and pays on a CPU for hundreds of images with many passes each, or thousands with one",
    )
