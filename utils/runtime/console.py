"""What the user sees while a script runs: log lines, progress bars, durations."""

import io
import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO

from tqdm import tqdm

from utils.runtime import distributed

logger = logging.getLogger(__name__)

tqdm.set_lock(threading.RLock())  # by default a lock of several processes, which stays locked if one is killed

PACKAGES = ("__main__", "utils", "unet")  # whose log lines are shown


class LastingStream:
    """A text stream that may lose its reader, such as `head` or a terminal that is closed: what follows is dropped.

    Args:
        stream: sys.stdout or sys.stderr; None, as of a program without a console, drops everything.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115 - as long
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")  # file names that the terminal cannot show

    def write(self, text: str) -> int:
        """Write a text, if anybody reads it."""
        with self._losing_the_reader():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Pass on what has been written."""
        with self._losing_the_reader():
            self._stream.flush()

    @contextmanager
    def _losing_the_reader(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # the other end is closed, or this one
            with suppress(OSError, ValueError), open(os.devnull, "wb") as null:
                os.dup2(null.fileno(), self._stream.fileno())  # what is still in the buffer goes there, too

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Within the `with` block, sys.stdout and sys.stderr are lasting streams."""
    with redirect_stdout(LastingStream(sys.stdout)) as stdout, redirect_stderr(LastingStream(sys.stderr)) as stderr:
        try:
            yield
        finally:
            stdout.flush()
            stderr.flush()


class ConsoleHandler(logging.Handler):
    """Writes log lines to standard error without breaking a progress bar."""

    def createLock(self) -> None:
        self.lock = tqdm.get_lock()  # with two locks, a bar and a log line could wait for each other

    def emit(self, record: logging.LogRecord) -> None:
        prefix = {logging.WARNING: "Warning: ", logging.ERROR: "Error: "}.get(record.levelno, "")
        tqdm.write(prefix + self.format(record), file=sys.stderr)


def set_log_level(level: int) -> None:
    """Show this project's log lines from that level up; of several processes the others show errors only."""
    for package in PACKAGES:
        logging.getLogger(package).setLevel(level if distributed.is_main() else logging.ERROR)


@contextmanager
def only_warnings(*names: str) -> Iterator[None]:
    """Within the `with` block, show no log lines of these packages and modules but warnings and errors."""
    levels = {named: named.level for named in map(logging.getLogger, names)}
    for named in levels:
        named.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for named, level in levels.items():
            named.setLevel(level)


def progress(items: Iterable | None = None, **options: object) -> tqdm:
    """A progress bar on a terminal, a line per minute in a log file, nothing with --quiet or in a secondary process.

    Args:
        items: to iterate over.
        options: of `tqdm`.
    """
    disable = not (distributed.is_main() and logger.isEnabledFor(logging.INFO))
    if sys.stderr.isatty():
        return tqdm(items, disable=disable, dynamic_ncols=True, **options)
    options |= {"mininterval": 60, "miniters": 1, "file": io.StringIO()}  # the drawn bar itself is thrown away
    return ProgressLines(items, disable=disable, **options)


class ProgressLines(tqdm):
    """A progress bar for log files: a line of text in place of a bar."""

    monitor_interval = 0  # disables tqdm's monitor thread

    def display(self, *_: object, **__: object) -> None:
        if self.initial < self.n < (self.total or 0):
            state = self.format_dict
            remaining = state["elapsed"] / (self.n - self.initial) * (self.total - self.n)
            size = self.format_sizeof if self.unit_scale else str
            prefix = f"{self.desc}: " if self.desc else ""
            units = "B" if self.unit_scale else self.unit + ("es" if self.unit.endswith("ch") else "s")
            counts = f"{size(self.n)} of {size(self.total)} {units}"
            logger.info("%s%s, about %s left", prefix, counts, format_duration(remaining))

    def close(self) -> None:
        self.total = None  # no last line when the bar is closed
        super().close()


def format_duration(seconds: float) -> str:
    """A rounded duration, such as 4 s, 40 s, 12 min or 3 h 20 min."""
    if seconds < 85:
        return f"{max(round(seconds, -1 if seconds >= 20 else 0), 1):.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
