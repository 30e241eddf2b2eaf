"""Threads: what is computed ahead, what is written behind, and how many threads PyTorch uses."""

import os
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from tests.conftest import ROOT, forked
from utils.runtime.threads import (
    BackgroundWriter,
    cores_per_process,
    in_groups,
    limit_torch_threads,
    map_ahead,
    usable_cores,
)


def test_writer_runs_all_and_bounds_its_queue():
    running, concurrent, done = set(), [], []

    def work(i: int) -> None:
        running.add(i)
        time.sleep(0.002)
        concurrent.append(len(running))
        running.discard(i)
        done.append(i)

    with BackgroundWriter() as writer:
        for i in range(50):
            writer.submit(work, i)
            assert i + 1 - len(done) <= 3
    assert sorted(done) == list(range(50))
    assert max(concurrent) == 2


def test_slow_task_does_not_block_the_writer():
    release, done = threading.Event(), []
    with BackgroundWriter(2) as writer:
        writer.submit(release.wait, 60)
        for i in range(20):
            writer.submit(done.append, i)  # would wait for the first
        assert len(done) > 15
        release.set()
    assert done == list(range(20))


def test_writer_raises_the_first_error():
    with pytest.raises(ZeroDivisionError), BackgroundWriter() as writer:
        writer.submit(lambda: 1 / 0)
    with pytest.raises(KeyError), BackgroundWriter() as writer:
        writer.submit(lambda: 1 / 0)
        raise KeyError


def test_writer_writes_nothing_more_after_an_error():
    release, written = threading.Event(), []
    with pytest.raises(KeyError), BackgroundWriter(1) as writer:
        writer.submit(release.wait, 60)
        writer.submit(written.append, 1)
        threading.Timer(0.5, release.set).start()  # when the queue has been emptied
        raise KeyError
    assert not written


def test_map_ahead_waits_for_what_is_running():
    release, started, done = threading.Event(), threading.Event(), []

    def work(i: int) -> None:
        if i == 1:
            started.set()
            release.wait(60)
            done.append(i)

    with closing(map_ahead(work, range(9), threads=2, ahead=2)) as results:
        next(results)
        started.wait(60)
        threading.Timer(0.1, release.set).start()
    assert done == [1]


def test_map_ahead_keeps_order_and_bounds_lookahead():
    read = []

    def items():
        for i in range(20):
            read.append(i)
            yield i

    with closing(map_ahead(lambda i: i**2, items(), threads=3, ahead=4)) as results:
        for i, (item, future) in enumerate(results):
            assert (item, future.result()) == (i, i**2)
            assert len(read) <= i + 5
    assert len(read) == 20


def test_groups():
    assert list(in_groups((i for i in range(7)), 3)) == [[0, 1, 2], [3, 4, 5], [6]]


def test_items_taken_before_they_are_computed():
    """As where a GPU takes a batch of images: those that are still to be read must not be cancelled."""

    def slow(i: int) -> int:
        time.sleep(0.01)
        return i

    (group,) = in_groups(map_ahead(slow, range(6), threads=1, ahead=6), 6)
    assert [future.result() for _, future in group] == list(range(6))


CONVOLVE = """
import os, threading, torch
from utils.runtime.threads import BackgroundWriter, one_torch_thread

def others():  # threads of this process that are not Python's
    return len(os.listdir("/proc/self/task")) - threading.active_count()

def convolve():
    before = others()
    torch.nn.functional.conv2d(images, weights)  # the first operation of PyTorch in its thread
    print(others() - before)

images, weights = torch.ones(8, 64, 128, 128), torch.ones(64, 64, 3, 3)
torch.set_num_threads(2)
with one_torch_thread(torch.device("cpu")) as threads, BackgroundWriter(threads) as writer:
    writer.submit(convolve)
print(threads, torch.get_num_threads())
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="only Linux lists the threads of a process there")
def test_one_torch_thread():
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    printed = subprocess.check_output([sys.executable, "-c", CONVOLVE], cwd=ROOT, env=environment, text=True)
    assert printed.split() == ["0", "2", "2"]


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "300000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu.max": "nonsense"}, 8),
        ({"cpu.max": "100000 0"}, 8),
        ({"slurm/job_7/cpu.max": "400000 100000"}, 4),  # that of the process
        ({"slurm/cpu.max": "200000 100000", "slurm/job_7/cpu.max": "400000 100000"}, 2),
        ({"slurm/job_8/cpu.max": "100000 100000"}, 8),  # that of another one
        ({"cpu/docker/5f/cpu.cfs_quota_us": "250000", "cpu/docker/5f/cpu.cfs_period_us": "100000"}, 3),
    ],
)
def test_usable_cores(files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "own").write_text("4:cpu,cpuacct:/docker/5f\n0::/slurm/job_7\n")
    assert usable_cores(tmp_path, tmp_path / "own") == cores


@pytest.mark.parametrize(("processes", "cores"), [(1, 8), (2, 4), (3, 2), (16, 1)])
def test_cores_are_shared_among_processes(processes: int, cores: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("utils.runtime.threads.usable_cores", lambda: 8)
    started = {"RANK": 0, "WORLD_SIZE": processes, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": processes}
    for name, value in (started | {"MASTER_ADDR": "localhost", "MASTER_PORT": 29500}).items():
        monkeypatch.setenv(name, str(value))
    assert cores_per_process() == cores


@pytest.mark.parametrize(("chosen", "threads"), [(None, 2), ("6", 6), ("many", 2)])
def test_torch_threads_are_limited_to_the_cores(chosen: str | None, threads: int):
    """Unless the user has chosen their number."""

    def limit() -> None:
        os.environ.pop("OMP_NUM_THREADS")
        os.environ.update({"OMP_NUM_THREADS": chosen} if chosen else {})
        torch.set_num_threads(6)
        with patch("utils.runtime.threads.usable_cores", lambda: 2):
            limit_torch_threads()
        print(torch.get_num_threads())

    assert int(forked(["limit"], ROOT, limit).stdout) == threads
