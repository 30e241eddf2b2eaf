"""`summary.csv`: the scores that need no ground truth, with the image to review first at the top."""

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from utils.runtime.atomic_files import write_csv
from utils.runtime.errors import InputError

SUMMARY_COLUMNS = (
    "image",
    "soft_dice_confidence",
    "pairwise_dice",
    "mean_entropy",
    "area",
    "area_mean",
    "area_std",
    "area_variation",
    "largest_probability",
)
MASK_COLUMN = "mask"  # the file of an image's mask in the folder, by predict_bayesian.py


def write_summary(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the scores of images that need no ground truth as a CSV file, sorted by soft Dice confidence.

    Args:
        path: of the file; without any rows it is removed.
        rows: for each image its name, the scores of `ImageScores` and, if one is to be recorded, the file of its mask;
            other entries are not written.
    """
    ordered = sorted(rows, key=review_order)
    if not ordered:
        path.unlink(missing_ok=True)
        return
    columns = [*SUMMARY_COLUMNS, *([MASK_COLUMN] if any(row.get(MASK_COLUMN) for row in ordered) else [])]
    write_csv(path, [{name: row.get(name) for name in columns} for row in ordered])


def review_order(row: Mapping[str, Any]) -> tuple[float, str]:
    """By which images are sorted: the one to review first has the least soft Dice confidence."""
    return row["soft_dice_confidence"], row["image"]


def read_earlier_summary(path: Path) -> list[dict[str, str]]:
    """The rows of a summary that is about to be written.

    Raises:
        InputError: the file is not a summary.
    """
    try:
        return read_summary(path)
    except InputError as error:
        raise InputError(f"{error}, and would be overwritten: move it away, or choose another folder") from error


def read_summary(path: Path) -> list[dict[str, str]]:
    """The rows of a summary; none if there is no such file.

    Raises:
        InputError: the file is not a summary.
    """
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            known = {*(reader.fieldnames or ())} - {MASK_COLUMN} == {*SUMMARY_COLUMNS}
            if not known or not all(_is_number(row[SUMMARY_COLUMNS[1]]) for row in rows):
                raise InputError(f"{path} is not a summary of predictions")
            return rows
    except (FileNotFoundError, NotADirectoryError):
        return []
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as CSV ({error})") from error


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except (TypeError, ValueError):
        return False
