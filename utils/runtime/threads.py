"""Cores and threads: compute ahead of the consumer, write behind the producer, with one PyTorch thread in each."""

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch

from utils.runtime.distributed import processes_on_host

Element = TypeVar("Element")


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """The number of cores that a process may use, by its CPU affinity and by the quota of its container or job.

    Args:
        cgroups: folder of the control groups, version 2 or 1.
        own: the file that names those of this process; a container may show its own as the root.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _control_groups(own):
        for folder, files in (
            (cgroups / group, ("cpu.max",)),
            (cgroups / "cpu" / group, ("cpu.cfs_quota_us", "cpu.cfs_period_us")),
            (cgroups / "cpu,cpuacct" / group, ("cpu.cfs_quota_us", "cpu.cfs_period_us")),
        ):
            try:
                quota, period = " ".join((folder / file).read_text() for file in files).split()
                if int(quota) > 0:
                    cores = min(cores, math.ceil(int(quota) / int(period)))
            except (OSError, ValueError, ArithmeticError):  # there is no such file, or no quota
                continue
    return max(1, cores)


def _control_groups(own: Path) -> set[PurePosixPath]:
    """The control groups of this process and those above them, up to the root."""
    try:
        lines = own.read_text().splitlines()
    except (OSError, ValueError):
        lines = []
    paths = [PurePosixPath(line.split(":", 2)[-1].lstrip("/")) for line in lines]
    return {PurePosixPath(), *paths, *(parent for path in paths for parent in path.parents)}


def cores_per_process() -> int:
    """Each process's share of the usable cores, if torchrun has started several processes on the host."""
    return max(1, usable_cores() // processes_on_host())


def limit_torch_threads() -> None:
    """Have PyTorch use no more threads than there are usable cores, unless the user has chosen their number."""
    if not os.environ.get("OMP_NUM_THREADS", "").strip().isdecimal():
        torch.set_num_threads(min(torch.get_num_threads(), cores_per_process()))


def torch_thread_pool(threads: int) -> ThreadPoolExecutor:
    """A pool whose threads respect `torch.set_num_threads`, which new threads ignore until they call the getter."""
    return ThreadPoolExecutor(threads, initializer=torch.get_num_threads)


@contextmanager
def one_torch_thread(device: torch.device) -> Iterator[int]:
    """Limit PyTorch to one thread per worker thread, so that each core works on an image of its own.

    Yields:
        The number of worker threads to use: one per core on a CPU; two on a CUDA GPU, so that one can launch work
        while the other waits for results; a single one on any other device.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu":
        yield 2 if device.type == "cuda" else 1
        return
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def map_ahead(
    function: Callable[[Element], Any], items: Iterable[Element], threads: int, ahead: int
) -> Generator[tuple[Element, Future], None, None]:
    """Each item with the future of `function(item)`, in order, computed in threads.

    Args:
        function: what is computed.
        items: read no further ahead than `ahead` allows.
        threads: number of worker threads.
        ahead: maximum number of items submitted beyond the one that is consumed.
    """
    pool = torch_thread_pool(threads)
    waiting: deque[tuple[Element, Future]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        # Wait for the futures, not for the threads: when a signal interrupts joining a thread, Python believes that
        # the thread has ended.
        wait([future for _, future in waiting if not future.cancel()])  # those that the consumer has continue
        pool.shutdown(wait=False)


def in_groups(items: Generator[Element, None, None], size: int) -> Generator[list[Element], None, None]:
    """Consecutive items in lists of `size`; the last list may be shorter. Closes the generator `items` at the end."""
    with closing(items):
        while group := list(islice(items, size)):
            yield group


class BackgroundWriter:
    """Runs functions in threads, with a bounded queue, so that what they hold does not pile up in memory.

    At the end of the `with` block all have run. The first error that one raised is raised there, or by `submit`.

    Args:
        threads: how many run at the same time; one more than that may be waiting.
    """

    def __init__(self, threads: int = 2) -> None:
        self._threads, self._pool = threads, torch_thread_pool(threads)
        self._pending: set[Future] = set()

    def submit(self, function: Callable, *args: Any) -> None:
        """Run `function(*args)` soon; blocks while the queue is full."""
        while len(self._pending) > self._threads:
            done = next(as_completed(self._pending))
            self._pending.remove(done)
            done.result()
        self._pending.add(self._pool.submit(function, *args))

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        try:
            for done in as_completed(self._pending if error_type is None else ()):
                done.result()
        finally:
            self._pool.shutdown(cancel_futures=True)
