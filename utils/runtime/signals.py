"""Ctrl-C, termination, a closed connection, Slurm's warning: finish the current step, save, exit with 128 + signal."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NoReturn

from utils.runtime.distributed import started_by_torchrun

logger = logging.getLogger(__name__)


_TERMINATION = signal.SIGTERM
# A terminal or connection that is closed, and what a batch system such as Slurm sends ahead of its time limit: they may
# come more than once, and whoever sends them does not want the process to hurry. Windows has neither.
_WARNINGS = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1") if hasattr(signal, name))


def _may_repeat(number: int) -> bool:
    """Whether a signal may come more than once and mean no more by it.

    A batch system may terminate each process of a job, and torchrun, which it has terminated, then its own once more.
    """
    return number in _WARNINGS or (number == _TERMINATION and started_by_torchrun())


def exit_on_termination() -> None:
    """On SIGTERM, SIGHUP or SIGUSR1 run `finally` blocks and exit with 128 + signal; a second SIGTERM kills.

    Under torchrun a second one is ignored: torchrun itself kills what has not ended after 30 seconds.
    """
    for number in (_TERMINATION, *_WARNINGS):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has SIGHUP ignored
            signal.signal(number, _exit)


def leave_signal_group(*_: object) -> None:
    """In a worker process: heed no signals but those of the main process, which ends its workers.

    A worker that died of one would end the main process with an error before it has saved.
    """
    for number in (signal.SIGINT, *_WARNINGS):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    if hasattr(signal, "sigwaitinfo"):  # a batch system may terminate each process of a job: where it says who sends
        signal.pthread_sigmask(signal.SIG_BLOCK, {_TERMINATION})
        threading.Thread(target=_exit_for, args=(multiprocessing.parent_process().pid,), daemon=True).start()


def _exit_for(parent: int) -> None:
    """Exit at once when this process terminates the worker."""
    while signal.sigwaitinfo({_TERMINATION}).si_pid != parent:
        pass
    os._exit(0)


def _exit(signum: int, frame: Any) -> NoReturn:
    signal.signal(signum, signal.SIG_IGN if _may_repeat(signum) else signal.SIG_DFL)
    sys.exit(128 + signum)


class GracefulStop:
    """Within the `with` block a first Ctrl-C or termination is only recorded; a second one takes effect at once.

    SIGHUP and SIGUSR1 are only recorded, however often they come, and so is SIGTERM under torchrun, unless it follows a
    Ctrl-C. Call it to ask whether to stop; `exit` then does so. In a thread, which gets no signals, it does nothing.
    """

    def __init__(self) -> None:
        self._signal: int | None = None

    def __enter__(self) -> "GracefulStop":
        in_main_thread = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, _TERMINATION, *_WARNINGS) if in_main_thread else ()
        handlers = {number: signal.getsignal(number) for number in numbers}
        # A signal that is ignored, as in a background job, stays ignored.
        self._handlers = {number: old for number, old in handlers.items() if old not in (signal.SIG_IGN, None)}
        for number in self._handlers:
            signal.signal(number, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore(self._handlers)

    def _restore(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            signal.signal(number, self._handlers[number])

    def __call__(self) -> bool:
        return self._signal is not None

    def _record(self, signum: int, frame: Any) -> None:
        first, self._signal = self._signal is None, self._signal or signum
        # A second Ctrl-C reaches the processes of torchrun as a termination.
        urgent = {_TERMINATION} if self._signal == signal.SIGINT else set()
        self._restore(number for number in self._handlers if number in urgent or not _may_repeat(number))
        if first:
            with suppress(RuntimeError):  # "reentrant call": the signal came while another line was being written
                logger.warning("Stopping after the current step; a second Ctrl-C stops immediately")

    def exit(self) -> NoReturn:
        """End the process as the signal demands; without one, since another process has received it, as SIGTERM."""
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + (self._signal or _TERMINATION))
