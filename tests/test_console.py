"""Progress in log files, and durations."""

import logging
import os
import sys

import pytest

from utils.runtime.console import ConsoleHandler, format_duration, lasting_streams, progress


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
    ("seconds", "text"),
    [
        *((0.2, "1 s"), (8.4, "8 s"), (43, "40 s"), (61, "60 s")),
        *((100, "2 min"), (3599, "1 h 0 min"), (12_000, "3 h 20 min")),
    ],
)
def test_durations(seconds: float, text: str):
    assert format_duration(seconds) == text


def test_streams_outlive_their_readers(monkeypatch: pytest.MonkeyPatch):
    """As with `| head`: without this, the first line that nobody reads would end the script."""
    for name in ("stdout", "stderr"):
        reading, writing = os.pipe()
        os.close(reading)
        monkeypatch.setattr(sys, name, os.fdopen(writing, "w"))
    with lasting_streams():
        files = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
        for i in range(3):
            print(i)
            print(i, flush=True)
            ConsoleHandler().emit(logging.makeLogRecord({"msg": f"line {i}"}))
        assert not files or len(os.listdir("/proc/self/fd")) == files  # none stays open for each line
    sys.stdout.close()  # what was in the buffer is not written now
    sys.stderr.close()


def test_streams_that_do_not_exist_or_lack_letters(monkeypatch: pytest.MonkeyPatch, tmp_path):
    with open(tmp_path / "out.txt", "w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdout", file)
        monkeypatch.setattr(sys, "stderr", None)  # as of a program without a console on Windows
        with lasting_streams():
            print("皮膚 caf\udce9")
            print("lost", file=sys.stderr)
    assert (tmp_path / "out.txt").read_text() == "\\u76ae\\u819a caf\\udce9\n"
