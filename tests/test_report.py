"""The outcome of a run over many images: failures, the exit code, the files."""

import errno
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from utils.data.fitting import MaskFitter
from utils.metrics.segmentation import CHALLENGE_SCORES
from utils.pipeline.report import Report, check_tables
from utils.runtime.errors import InputError


def make_ground_truth() -> SimpleNamespace:
    """What a report asks a `GroundTruth` for."""
    return SimpleNamespace(mask_dir=Path("masks"), fitter=MaskFitter())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InputError("it is empty"), "it is empty"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: ..."), "out of memory"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
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
    "error",
    [OSError(errno.ENOSPC, ""), OSError(errno.EDQUOT, ""), OSError(errno.EROFS, ""), RuntimeError("CUDA error: x")],
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
    Report([*rows[3:], {"image": "5.jpg", "area": 7}]).finish()
    assert "1 of 2 masks is empty; its largest foreground probability is 0.300 in 3.jpg" in caplog.text
    caplog.clear()
    assert Report([{"image": "5.jpg", "area": 7}], [("b.jpg", "reason b"), ("a.jpg", "reason a")]).finish() == 1
    assert "empty" not in caplog.text
    assert caplog.records[-1].levelname == "ERROR"
    assert "1 image done" in caplog.text
    assert "2 failed:\n  a.jpg: reason a\n  b.jpg: reason b" in caplog.text


def test_unwritable_summary_is_a_failure(tmp_path: Path):
    (tmp_path / "file").touch()
    report = Report([{"image": "a.jpg", "soft_dice_confidence": 0.5}])
    report.write(tmp_path / "file")
    assert [name for name, _ in report.failures] == ["the summary"]
    assert "could not be written" in report.failures[0][1]


def test_image_without_a_score_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys):
    rows = [{"image": f"{i}.jpg", **dict.fromkeys(CHALLENGE_SCORES, dice)} for i, dice in enumerate((0.5, math.nan))]
    common = {"soft_dice_confidence": 0.5, "pairwise_dice": None, "mean_entropy": 0.1}
    Report([row | common for row in rows]).write(tmp_path, make_ground_truth())
    assert "1 of 2 masks have no pixel that counts" in caplog.text
    assert "1 of 2 images compared" in capsys.readouterr().out
    assert json.loads((tmp_path / "metrics.json").read_text())["segmentation"]["dice"]["value"] == 0.5
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1:] == [
        "0.jpg,0.5,0.5,0.5,0.5,0.5,0.5,,0.1",
        "1.jpg,,,,,,0.5,,0.1",
    ]


def test_write_removes_metrics_of_an_earlier_run(tmp_path: Path):
    for name, content in (("metrics.csv", "image,dice\na.jpg,0.5\n"), ("metrics.json", '{"run": {}}')):
        (tmp_path / name).write_text(content)
    Report(failures=[("a.jpg", "it is empty")]).write(tmp_path)  # which leaves the results that they are of
    assert len(list(tmp_path.iterdir())) == 2
    Report([{"image": "a.jpg", "soft_dice_confidence": 0.5}]).write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.csv"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.csv", "epoch,train_loss\n1,0.5\n"),
        ("metrics.csv", ""),
        ("metrics.json", '{"epoch": 1, "run": 2}'),
        ("metrics.json", "[]"),
        ("metrics.json", 10_000 * " " + "[]"),
        ("summary.csv", "patient,age\n1,50\n"),
    ],
)
def test_tables_of_others_are_not_overwritten(name: str, content: str, tmp_path: Path):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"{name} is not .*, and would be (removed|overwritten): move it away"):
        check_tables(tmp_path)


def test_tables_of_an_earlier_run_may_be_overwritten(tmp_path: Path):
    check_tables(tmp_path / "new")
    common = {"soft_dice_confidence": 0.5, "pairwise_dice": None, "mean_entropy": 0.1}
    Report([{"image": "a.jpg", **dict.fromkeys(CHALLENGE_SCORES, 0.5), **common}]).write(tmp_path, make_ground_truth())
    assert {path.name for path in tmp_path.iterdir()} == {"summary.csv", "metrics.csv", "metrics.json"}
    check_tables(tmp_path)
