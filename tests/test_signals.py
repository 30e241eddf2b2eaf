"""Ctrl-C and termination: a first signal waits for the current step, a second one does not."""

import logging
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from utils.runtime.signals import GracefulStop


def test_second_signal_takes_effect_at_once():
    def work(graceful: bool) -> None:
        with GracefulStop() as stop:
            assert not stop()
            signal.raise_signal(signal.SIGINT)
            assert stop()
            if graceful:
                stop.exit()
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the second signal had no effect")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process may ignore it
    try:
        for graceful in (True, False):
            with pytest.raises(KeyboardInterrupt):
                work(graceful)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_no_signals_in_a_thread():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: GracefulStop().__enter__()()).result() is False


def test_exit_after_a_termination():
    with pytest.raises(SystemExit) as error, GracefulStop() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        stop.exit()
    assert error.value.code == 143
    with pytest.raises(SystemExit) as error:  # another process has received the signal
        GracefulStop().exit()
    assert error.value.code == 143


def test_signal_while_a_line_is_written():
    """Python refuses to write another one then, as it does here."""

    class BusyHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    logger, handler = logging.getLogger("utils.runtime.signals"), BusyHandler()
    logger.addHandler(handler)
    try:
        with GracefulStop() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop()
    finally:
        logger.removeHandler(handler)
