"""What the benchmarks share: processes with the arrival times of their log lines, large images, the processor."""

import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

environment = dict(os.environ)
from tests.conftest import heed_ctrl_c, make_folders  # noqa: E402
from utils.runtime.threads import usable_cores  # noqa: E402

os.environ.clear()
os.environ.update(environment)  # without the settings of the tests: one thread and no GPU


class WrongResult(Exception):
    """What was measured is worth nothing: a process failed, or its result is wrong."""


@dataclass
class Log:
    """A finished process.

    Attributes:
        command: what was run, for messages.
        code: its exit code.
        seconds: how long it ran.
        lines: the lines of its output, each with the seconds from the start until it arrived.
    """

    command: str
    code: int
    seconds: float
    lines: list[tuple[float, str]]

    @property
    def text(self) -> str:
        """The whole output."""
        return "".join(line for _, line in self.lines)

    def check(self, code: int = 0) -> "Log":
        """The same log, of a process that has ended as expected.

        Raises:
            WrongResult: it has another exit code, or a traceback.
        """
        if self.code != code or "Traceback" in self.text:
            last = self.text[-3000:]
            raise WrongResult(f"{self.command} ended with {self.code} after {self.seconds:.0f} s, not {code}:\n{last}")
        return self


def run_logged(
    command: list[object],
    timeout: float,
    on_line: Callable[[str, subprocess.Popen], None] = lambda line, process: None,
    env: dict[str, str] | None = None,
) -> Log:
    """Run a command in a process group of its own; after `timeout` seconds the group is killed.

    Args:
        command: to run in the project's folder.
        timeout: in seconds.
        on_line: is called with each line of the output when it arrives, and the running process.
        env: its environment; None for that of this process.
    """
    started, lines = time.perf_counter(), []
    with subprocess.Popen(
        [*map(str, command)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
    ) as process:
        timer = threading.Timer(timeout, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        try:
            for line in process.stdout:
                lines.append((time.perf_counter() - started, line))
                on_line(line, process)
            process.wait()
        finally:
            timer.cancel()
    return Log(" ".join(map(str, command)), process.returncode, time.perf_counter() - started, lines)


def make_jpegs(folder: Path, count: int, megapixels: float, copies: int = 1) -> tuple[Path, Path]:
    """Folders of so many distinct synthetic JPEGs, 3:2, and of their masks, each hard-linked `copies` times."""
    width = round((megapixels * 1e6 * 1.5) ** 0.5)
    size = (width, round(width / 1.5))
    parts = [folder / f"{i}" for i in range(count)]
    with ProcessPoolExecutor(min(count, usable_cores())) as pool:  # the noise takes a second per image
        made = list(pool.map(make_folders, parts, [1] * count, [size] * count, range(count)))
    imgs, masks = folder / "imgs", folder / "masks"
    for target, sources in ((imgs, [one[0] for one in made]), (masks, [one[1] for one in made])):
        target.mkdir()
        for i, source in enumerate(sources):
            (path,) = source.iterdir()
            for copy in range(copies):
                os.link(path, target / path.name.replace("000", f"{copy:03d}_{i:03d}"))
    return imgs, masks


def processor(device: str) -> str:
    """The name of the GPU or the CPU."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
