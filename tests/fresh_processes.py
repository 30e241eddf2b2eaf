"""Python programs in processes that have imported PyTorch, which takes seconds, but nothing of the project.

Other than those of `tests.forking` they import it themselves, from where they run, as a program that is started does.
This file, run as a script, is the process from which they are forked.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch  # noqa: F401

_TIME_LIMIT = 400  # seconds after which a program is killed


@cache
def _server() -> subprocess.Popen:
    """Ends with this process, which holds the other end of the pipe."""
    return subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run_fresh(words: list[str], cwd: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess:
    """Run a program to its end; the result has its `peak_memory` in bytes, on Linux.

    Args:
        words: what follows `python` on the command line: a script, `-m` and a module or `-c` and a program; arguments.
        cwd: the folder of the process.
        environment: all of its variables.
    """
    with tempfile.NamedTemporaryFile("w+") as stdout, tempfile.NamedTemporaryFile("w+") as stderr:
        outputs = [stdout.name, stderr.name]
        task = {"words": words, "cwd": str(cwd), "environment": dict(environment), "outputs": outputs}
        print(json.dumps(task), file=_server().stdin, flush=True)
        returncode, kilobytes = map(int, _server().stdout.readline().split())
        result = subprocess.CompletedProcess(words, returncode, stdout.read(), stderr.read())
        result.peak_memory = kilobytes * 1024
        return result


def _serve() -> None:
    """Write exit code and memory of each program that is read; in the process that is forked for it, be it."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            return _run(**json.loads(line))
        _, status, usage = os.wait4(pid, 0)
        print(os.waitstatus_to_exitcode(status), usage.ru_maxrss, flush=True)
    return None


def _run(words: list[str], cwd: str, environment: dict[str, str], outputs: list[str]) -> None:
    signal.alarm(_TIME_LIMIT)
    for number, path in enumerate((os.devnull, *outputs)):
        os.dup2(os.open(path, os.O_WRONLY if number else os.O_RDONLY), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    kind, *others = words
    if kind == "-c":
        sys.argv, sys.path[0] = ["-c", *others[1:]], ""
        exec(others[0], {"__name__": "__main__"})
    elif kind == "-m":
        sys.argv, sys.path[0] = others, cwd
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(kind).resolve().parent)
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    _serve()
