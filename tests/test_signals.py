"""Ctrl-C and termination: a first signal waits for the current step, a second one does not."""

import logging
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from utils.runtime.signals import GracefulStop, exit_on_termination


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


@pytest.fixture
def terminating() -> Iterator[None]:
    """`exit_on_termination` has been called."""
    if not hasattr(signal, "SIGUSR1"):
        pytest.skip("Windows has no such signals")
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)}
    for n in before:
        signal.signal(n, signal.SIG_DFL)  # nohup ignores SIGHUP
    exit_on_termination()
    yield
    for n, handler in before.items():
        signal.signal(n, handler)


@pytest.mark.usefixtures("terminating")
@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_warnings_are_gentle_however_often_they_come(name: str):
    number = getattr(signal, name)
    with pytest.raises(SystemExit) as error, GracefulStop() as stop:
        for _ in range(3):
            signal.raise_signal(number)
        assert stop()
        stop.exit()
    assert error.value.code == 128 + number
    with pytest.raises(SystemExit) as error, GracefulStop() as stop:
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)  # what Slurm sends at its time limit
    assert error.value.code == 143
    with pytest.raises(SystemExit) as error:  # where nothing is waited for
        signal.raise_signal(number)
    assert error.value.code == 128 + number
    signal.raise_signal(number)  # while `finally` blocks run
    signal.signal(number, signal.SIG_IGN)  # as by nohup
    exit_on_termination()
    signal.raise_signal(number)


@pytest.mark.usefixtures("terminating")
def test_the_first_signal_decides_the_exit_code():
    """After Slurm's warning a connection may be closed, too; its job is queued again by the code of the warning."""
    with pytest.raises(SystemExit) as error, GracefulStop() as stop:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGHUP)
        stop.exit()
    assert error.value.code == 128 + signal.SIGUSR1


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its variables are set."""
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    counts = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (address | counts).items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("terminating", "torchrun")
def test_termination_under_torchrun_may_come_twice():
    """To each process of a job, and once more from torchrun, which has been terminated with them."""
    with pytest.raises(SystemExit) as error, GracefulStop() as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert stop()
        stop.exit()
    assert error.value.code == 143
    with pytest.raises(SystemExit) as error:  # where nothing is waited for
        signal.raise_signal(signal.SIGTERM)
    assert error.value.code == 143
    signal.raise_signal(signal.SIGTERM)  # while `finally` blocks run


@pytest.mark.usefixtures("terminating", "torchrun")
def test_second_ctrl_c_under_torchrun_is_a_termination():
    """That is what its processes receive."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as error, GracefulStop():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
        assert error.value.code == 143
    finally:
        signal.signal(signal.SIGINT, before)
