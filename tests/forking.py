"""Programs in processes that are forked from this one, and so have imported PyTorch, which takes seconds."""

import faulthandler
import gc
import importlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TextIO

import numpy as np
from tqdm import tqdm

from utils.figures.predictions import FigureRow, draw_predictions


@cache
def prepare_to_fork() -> None:
    """Do once what each forked process would do by itself, in seconds."""
    for name in ("torch._dynamo", "torchvision.transforms.v2"):  # what optimizers import, and what trainings do
        importlib.import_module(name)
    values = np.zeros((9, 9))
    figure = draw_predictions([FigureRow(np.zeros((9, 9, 3), np.uint8), None, {"": (values, values)}, values > 0)])
    importlib.import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure).draw()  # fonts are looked for
    gc.freeze()  # no process needs to look through what there is by now


class ForkedProcess:
    """A function in a forked process, as if it were a program; has what the tests use of `subprocess.Popen`.

    Its standard output and error are those of the process, not only of Python. PyTorch may have one thread only: a
    forked process has none of the others, and would wait for them.

    Args:
        command: `sys.argv` of the process.
        run: called to its end; what it leaves by `sys.exit` is the exit code, as that of a program.
        cwd: the folder of the process.
        environment: added to the variables of this process.
        stdout: a file.
        stderr: a file; None for a pipe, of which `stderr` is the end to read.
    """

    def __init__(
        self,
        command: list[str],
        run: Callable[[], object],
        cwd: Path,
        environment: Mapping[str, str],
        stdout: TextIO,
        stderr: TextIO | None = None,
    ) -> None:
        prepare_to_fork()
        self.args = command
        read, write = os.pipe() if stderr is None else (None, stderr.fileno())

        def work() -> None:
            for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
                signal.signal(number, handler)
            faulthandler.register(signal.SIGUSR2, file=os.dup(2))  # to where pytest looks for what a test writes
            os.dup2(stdout.fileno(), 1)
            os.dup2(write, 2)
            sys.argv = command
            sys.stdout, sys.stderr = (os.fdopen(i, "w", buffering, closefd=False) for i, buffering in ((1, -1), (2, 1)))
            tqdm.set_lock(threading.RLock())  # a thread of this process may hold the other one
            logging.getLogger().handlers.clear()  # pytest's
            os.chdir(cwd)
            os.environ.update(environment)
            run()

        self._process = multiprocessing.get_context("fork").Process(target=work)
        self._process.start()
        self.pid = self._process.pid
        if stderr is None:
            os.close(write)
            self.stderr = os.fdopen(read)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float = 240) -> int:
        """Wait for the end; a process that takes longer than that is killed, and says where it was."""
        self._process.join(timeout)
        if self.returncode is None:
            self.send_signal(signal.SIGUSR2)
            self._process.join(1)
            self.kill()
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        self._process.join()

    def __enter__(self) -> "ForkedProcess":
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        if error_type is not None:
            self.kill()
        self.wait()
        if hasattr(self, "stderr"):
            self.stderr.close()


def run_forked(
    commands: list[list[str]], run: Callable[[], object], cwd: Path, environments: list[Mapping[str, str]]
) -> list[subprocess.CompletedProcess]:
    """Run a function to its end in forked processes side by side, one for each command and its environment."""
    results = []
    with ExitStack() as stack:
        files = [[stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2)] for _ in commands]
        processes = [
            ForkedProcess(command, run, cwd, environment, *outputs)
            for command, environment, outputs in zip(commands, environments, files, strict=True)
        ]
        for process, outputs in zip(processes, files, strict=True):
            process.wait()
            for file in outputs:
                file.seek(0)
            results.append(subprocess.CompletedProcess(process.args, process.returncode, *(f.read() for f in outputs)))
    return results
