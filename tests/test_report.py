"""The outcome of a run over many images: failures, the exit code, the files."""

import errno
from pathlib import Path

import pytest
import torch

from utils.pipeline.report import Report
from utils.runtime.errors import InputError


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InputError("it is empty"), "it is empty"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
        (PermissionError(errno.EACCES, "Permission denied"), "its result could not be written (Permission denied)"),
    ],
)
def test_isolated_errors(error: Exception, reason: str):
    report = Report()
    with report.isolating("a.jpg", "b.jpg"):
        raise error
    assert report.failures == [("a.jpg", reason), ("b.jpg", reason)]
    with report.isolating("c.jpg"):
        pass
    assert len(report.failures) == 2


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, ""), OSError(errno.EDQUOT, ""), OSError(errno.EROFS, ""), ZeroDivisionError()]
)
def test_other_errors_propagate(error: Exception):
    report = Report()
    with pytest.raises(type(error)), report.isolating("a.jpg"):
        raise error
    assert not report.failures


def test_finish(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    rows = [{"image": f"{i}.jpg", "area": 0, "largest_probability": i / 10} for i in range(4)]
    assert Report([*rows, {"image": "5.jpg", "area": 7}]).finish(": out") == 0
    assert "4 of 5 masks are empty" in caplog.text
    assert "0.000 in 0.jpg, 0.100 in 1.jpg, 0.200 in 2.jpg, … (see summary.csv)" in caplog.text
    assert "5 images done: out" in caplog.text
    caplog.clear()
    assert Report([{"image": "5.jpg", "area": 7}], [("b.jpg", "reason b"), ("a.jpg", "reason a")]).finish() == 1
    assert "empty" not in caplog.text
    assert "1 image done" in caplog.text
    assert "2 failed:\n  a.jpg: reason a\n  b.jpg: reason b" in caplog.text


def test_unwritable_summary_is_a_failure(tmp_path: Path):
    (tmp_path / "file").touch()
    report = Report([{"image": "a.jpg", "soft_dice_confidence": 0.5}])
    report.write(tmp_path / "file")
    assert [name for name, _ in report.failures] == ["the summary"]
    assert "could not be written" in report.failures[0][1]


def test_write_removes_metrics_of_an_earlier_run(tmp_path: Path):
    for name in ("metrics.csv", "metrics.json"):
        (tmp_path / name).touch()
    Report([{"image": "a.jpg", "soft_dice_confidence": 0.5}]).write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.csv"]
    Report(failures=[("a.jpg", "it is empty")]).write(tmp_path)
    assert list(tmp_path.iterdir()) == []
