"""Progress in log files, and durations."""

import logging
import sys

import pytest

from utils.runtime.console import format_duration, progress


def test_progress_lines_in_a_log_file(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    caplog.set_level(logging.INFO, "utils")
    with progress(total=10, desc="Epoch 1/2", unit="batch") as bar:
        bar.mininterval = 0
        for _ in range(10):
            bar.update()
    lines = caplog.text.splitlines()
    assert any("Epoch 1/2: 4 of 10 batches, about 1 s left" in line for line in lines)
    assert not any("10 of 10" in line for line in lines)


def test_no_progress_with_quiet(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    caplog.set_level(logging.WARNING, "utils")
    with progress(range(3), unit="image") as bar:
        bar.mininterval = 0
        assert bar.disable
        assert list(bar) == [0, 1, 2]
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (45, "45 s"), (100, "2 min"), (3599, "1 h 0 min"), (12_000, "3 h 20 min")]
)
def test_durations(seconds: float, text: str):
    assert format_duration(seconds) == text
