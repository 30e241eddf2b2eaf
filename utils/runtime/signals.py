"""Ctrl-C and termination: finish the current step, save, and exit with 130 or 143."""

import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any, NoReturn

logger = logging.getLogger(__name__)


def exit_on_termination() -> None:
    """On SIGTERM run `finally` blocks and exit with 143; a second SIGTERM kills the process."""
    signal.signal(signal.SIGTERM, _exit)


def leave_signal_group(*_: object) -> None:
    """In a worker process: receive no signals that are sent to the group of the main process, which ends its workers.

    A worker that died of one would end the main process with an error before it has saved.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def _exit(signum: int, frame: Any) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(128 + signum)


class GracefulStop:
    """Within the `with` block a first Ctrl-C or termination is only recorded; a second one takes effect at once.

    Call it to ask whether to stop; `exit` then does so. In a thread, which receives no signals, it does nothing.
    """

    def __init__(self) -> None:
        self._signal: int | None = None

    def __enter__(self) -> "GracefulStop":
        numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        handlers = {number: signal.getsignal(number) for number in numbers}
        # A signal that is ignored, as in a background job, stays ignored.
        self._handlers = {number: old for number, old in handlers.items() if old not in (signal.SIG_IGN, None)}
        for number in self._handlers:
            signal.signal(number, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self._signal is not None

    def _record(self, signum: int, frame: Any) -> None:
        self._signal = signum
        self.__exit__()  # the next one takes effect at once
        with suppress(RuntimeError):  # "reentrant call": the signal came while another line was being written
            logger.warning("Stopping after the current step; a second signal stops immediately")

    def exit(self) -> NoReturn:
        """End the process as the signal demands; without one, since another process has received it, as SIGTERM."""
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + signal.SIGTERM)
