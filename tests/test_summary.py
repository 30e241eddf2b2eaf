"""summary.csv."""

import csv
from pathlib import Path

import pytest

from utils.pipeline.summary import SUMMARY_COLUMNS, read_earlier_summary, read_summary, write_summary
from utils.runtime.errors import InputError


def summary_row(image: str, confidence: float) -> dict[str, object]:
    return dict.fromkeys(SUMMARY_COLUMNS) | {"image": image, "soft_dice_confidence": confidence, "other": 1}


def test_least_confident_image_comes_first(tmp_path: Path):
    path = tmp_path / "summary.csv"
    write_summary(path, [summary_row("a.jpg", 0.9), summary_row("b.jpg", 0.5), summary_row("c.jpg", 0.7)])
    assert [row["image"] for row in read_summary(path)] == ["b.jpg", "c.jpg", "a.jpg"]
    with open(path, newline="") as file:
        assert tuple(next(csv.reader(file))) == SUMMARY_COLUMNS


def test_summary_of_nothing_is_none(tmp_path: Path):
    path = tmp_path / "summary.csv"
    write_summary(path, [summary_row("a.jpg", 0.9)])
    for _ in range(2):
        write_summary(path, [])
        assert not path.exists()


@pytest.mark.parametrize("content", ["", "patient,age\n1,50\n", f"{','.join(SUMMARY_COLUMNS)}\na.jpg,\n"])
def test_only_who_writes_says_that_a_file_would_be_overwritten(content: str, tmp_path: Path):
    path = tmp_path / "summary.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=r"summary\.csv is not a summary of predictions$"):
        read_summary(path)
    with pytest.raises(InputError, match="is not a summary of predictions, and would be overwritten: move it away"):
        read_earlier_summary(path)
