"""What the scripts share: argument types, devices, exit codes."""

import argparse
import logging
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch.cuda._utils import _get_device_index

from utils import cli
from utils.errors import InputError


def test_whole_numbers():
    parse = cli.whole_number(1, 10)
    assert (parse("1"), parse("10")) == (1, 10)
    for text in ("0", "11", "-1", "1.5", "nan", "", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="from 1 to 10"):
            parse(text)
    with pytest.raises(argparse.ArgumentTypeError, match="of 3 or more"):
        cli.whole_number(3)("2")


def test_numbers():
    parse = cli.number(0, 1)
    assert (parse("1"), parse("1e-3")) == (1.0, 0.001)
    for text in ("0", "-1", "1.01", "nan", "inf", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="above 0 and up to 1"):
            parse(text)


def test_devices():
    assert cli.choose_device("cpu") == torch.device("cpu")
    assert cli.choose_device().type in ("cuda", "mps", "cpu")
    for name in ("toaster", "cuda:99"):
        with pytest.raises(InputError, match=f"--device {name} .*cpu"):
            cli.choose_device(name)


@pytest.mark.parametrize("name", [None, "cuda", "cuda:0"])
def test_a_cuda_device_has_its_index(name: str | None, monkeypatch: pytest.MonkeyPatch):
    """`torch.cuda.set_device` takes no device without one."""
    chosen = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.empty", lambda *_, device: SimpleNamespace(device=torch.device("cuda:0")))
    monkeypatch.setattr("torch.cuda.set_device", lambda device: chosen.append(_get_device_index(device)))
    assert cli.choose_device(name) == torch.device("cuda:0")
    assert chosen == [0]


def test_a_device_that_cannot_be_set_is_one_clear_error(monkeypatch: pytest.MonkeyPatch):
    def refuse(device: torch.device) -> None:
        raise ValueError("Expected a torch.device with a specified index")

    monkeypatch.setattr("torch.empty", lambda *_, device: SimpleNamespace(device=torch.device("cuda:0")))
    monkeypatch.setattr("torch.cuda.set_device", refuse)
    with pytest.raises(InputError, match="--device cuda"):
        cli.choose_device("cuda")


def test_several_processes_cannot_share_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("utils.distributed.world_size", lambda: 2)
    with pytest.raises(InputError, match="a GPU each"):
        cli.choose_device("cuda:1")


def test_mixed_precision_on_a_cpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    cpu = torch.device("cpu")
    assert cli.amp_dtype(cpu, False) is None
    monkeypatch.setattr(cli, "_cpu_has_bfloat16", lambda: True)
    assert cli.amp_dtype(cpu, True) is torch.bfloat16
    assert not caplog.text
    monkeypatch.setattr(cli, "_cpu_has_bfloat16", lambda: False)
    assert cli.amp_dtype(cpu, True) is None
    assert "gain nothing on this CPU" in caplog.text


def test_mixed_precision_on_cuda(monkeypatch: pytest.MonkeyPatch):
    cuda = torch.device("cuda")
    for has, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has, **_: has)
        assert cli.amp_dtype(cuda, True) is dtype


@pytest.mark.parametrize(
    ("outcome", "code", "words"),
    [
        (None, 0, ""),
        (1, 1, ""),
        (InputError("what was wrong"), 2, "Error: what was wrong\n"),
        (OSError(13, "Permission denied", "x.png"), 2, "Error: x.png: Permission denied\n"),
        (OSError(28, "No space left on device", "x.png"), 2, "Error: x.png: No space left on device; make room"),
        (KeyboardInterrupt(), 130, "Ctrl-C"),
    ],
)
def test_exit_codes(
    outcome: object, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def main(args: argparse.Namespace) -> int | None:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr("sys.argv", ["script"])
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as error:
        cli.run(main, argparse.ArgumentParser())
    assert error.value.code == code
    assert words in capsys.readouterr().err


def test_errors_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["script"])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda args: 1 // 0, argparse.ArgumentParser())


def test_a_first_signal_waits_for_the_step_and_a_second_does_not():
    def work(gentle: bool) -> None:
        with cli.GentleStop() as stop:
            assert not stop()
            signal.raise_signal(signal.SIGINT)
            assert stop()
            if gentle:
                stop.leave()
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the second one was not obeyed")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may ignore it
    try:
        for gentle in (True, False):
            with pytest.raises(KeyboardInterrupt):
                work(gentle)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: cli.GentleStop().__enter__()()).result() is False


def test_a_log_file_gets_a_line_from_time_to_time(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    caplog.set_level(logging.INFO)
    with cli.progress(total=10, desc="Epoch 1/2", unit="batch") as bar:
        bar.mininterval = 0
        for _ in range(10):
            bar.update()
    lines = caplog.text.splitlines()
    assert any("Epoch 1/2: 4 of 10 batches, about 1 s left" in line for line in lines)
    assert not any("10 of 10" in line for line in lines)
    caplog.clear()
    caplog.set_level(logging.WARNING)
    with cli.progress(range(3), unit="image") as bar:
        bar.mininterval = 0
        assert list(bar) == [0, 1, 2]
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (45, "45 s"), (100, "2 min"), (3599, "1 h 0 min"), (12_000, "3 h 20 min")]
)
def test_durations(seconds: float, words: str):
    assert cli.duration(seconds) == words
