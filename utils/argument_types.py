"""Types of flags for argparse, which report what was expected."""

import argparse
from collections.abc import Callable

from utils.data.mask_values import colour_values

_NO_LIMIT = 10**9


def integer(minimum: int, maximum: int = _NO_LIMIT) -> Callable[[str], int]:
    """An argparse type: an integer from `minimum` to `maximum`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if not minimum <= value <= maximum:
            bounds = f"of {minimum} or more" if maximum == _NO_LIMIT else f"from {minimum} to {maximum}"
            raise argparse.ArgumentTypeError(f"expected an integer {bounds}, not {text!r}")
        return value

    return parse


def number(low: float, high: float = _NO_LIMIT, include_low: bool = False) -> Callable[[str], float]:
    """An argparse type: a number above `low`, or from `low` on if `include_low`, up to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (low < value <= high or (include_low and value == low)):
            bounds = f"{'from' if include_low else 'above'} {low:g}"
            bounds += f" and up to {high:g}" if high < _NO_LIMIT else ""
            raise argparse.ArgumentTypeError(f"expected a number {bounds}, not {text!r}")
        return value

    return parse


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
