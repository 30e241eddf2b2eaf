"""The flags that say what the values of masks and images mean."""

import argparse

from utils.data.images import DEFAULT_MAX_MEGAPIXELS
from utils.data.mask_values import colour_values


def mask_value(text: str) -> int:
    """An argparse type: a grey value or label such as 255 or, to be ignored, -1, or a colour such as 255,0,0."""
    try:
        numbers = [int(part) for part in text.split(",")]
        low, high = (0, 255) if len(numbers) == 3 else (-65535, 65535)
        if len(numbers) not in (1, 3) or not low <= min(numbers) <= max(numbers) <= high:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a value such as 255 or a colour such as 255,0,0, not {text!r}"
        ) from None
    return int(colour_values(numbers if len(numbers) == 3 else numbers * 3))


def positive_number(text: str) -> float:
    """An argparse type: a number above 0, up to a billion."""
    try:
        value = float(text)
        if not 0 < value <= 1e9:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number above 0, such as 4095, not {text!r}") from None
    return value


def add_value_flags(parser: argparse._ActionsContainer, recorded: str = "as in the model, or ") -> None:
    """Add --ignore-value, --white, --max-megapixels.

    Args:
        parser: to which they are added.
        recorded: begins the defaults of the first two, which a model has recorded.
    """
    parser.add_argument(
        "--ignore-value",
        type=mask_value,
        metavar="V",
        help=f"mask value of pixels that do not count (default: {recorded}255 beside labels 0, 1, 2, ...)",
    )
    parser.add_argument(
        "--white",
        type=positive_number,
        metavar="V",
        help=f"value of white in 16-bit images (default: {recorded}by the bit depth that the images show)",
    )
    parser.add_argument(
        "--max-megapixels",
        type=positive_number,
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
