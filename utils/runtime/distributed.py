"""Several processes started by torchrun: rank, barriers, and collectives.

With a single process every function is trivial, so that no other module has to distinguish the two cases.
"""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from utils.runtime.errors import InputError, first_line

Key, Value = TypeVar("Key"), TypeVar("Value")

# Where processes wait for others with more work, such as the one that decodes; None is the default group.
_patient_group: "dist.ProcessGroup | None" = None  # quoted: some builds of PyTorch have no process groups

_alone = False  # see `alone`


# What torchrun gives each process. Some of these variables may be left over from something else, such as a job script.
_COUNTS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")


def started_by_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun has started this process: all of its variables are set, and agree."""
    if not all(environment.get(name) for name in _ADDRESS):
        return False
    try:
        rank, world_size, local_rank, local_world_size = (int(environment.get(name, "")) for name in _COUNTS)
    except ValueError:
        return False
    return 0 <= local_rank <= rank < world_size and local_rank < local_world_size <= world_size


def processes_on_host() -> int:
    """The number of processes that torchrun has started on this host."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if started_by_torchrun() else 1


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group that torchrun has started, and leave it at the end; do nothing in a single process.

    After an exception the group is not destroyed: that could wait for processes that wait for this one.

    Raises:
        InputError: the other processes cannot be reached.
    """
    if not started_by_torchrun() or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        dist.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        address = ":".join(os.environ[name] for name in _ADDRESS)
        raise InputError(f"the other processes cannot be reached at {address} ({first_line(error)})") from error
    global _patient_group
    _patient_group = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    yield
    dist.barrier(_patient_group)  # torchrun kills all processes once one has failed: each gets to report its error
    dist.destroy_process_group()
    _patient_group = None


def leave(code: int) -> NoReturn:
    """End the process, at once if its group is still waiting for it: nothing that has been written is lost."""
    if not dist.is_initialized():
        sys.exit(code)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def alone() -> Iterator[None]:
    """Within the block this process is as a single one: the others do not take part in it, and no collective waits."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def rank() -> int:
    """The rank of this process, from 0 to `world_size()` - 1."""
    return dist.get_rank() if dist.is_initialized() and not _alone else 0


def local_rank() -> int:
    """The rank of this process on its host, which is the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes files and log lines for all."""
    return rank() == 0


@contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block, for hours if need be, before the others, which then find what it has written."""
    if world_size() == 1:
        yield
        return
    if not is_main():
        dist.barrier(_patient_group)
    try:
        yield
    finally:
        if is_main():
            dist.barrier(_patient_group)


def all_gather(value: Value) -> list[Value]:
    """The values of all processes, by rank, in every process."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value, group=_patient_group)
    return values


def merge_dicts(values: Mapping[Key, Value]) -> dict[Key, Value]:
    """The dictionaries of all processes as one, in every process."""
    return {key: value for part in all_gather(values) for key, value in part.items()}


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of a tensor over the processes, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def any_process(condition: bool) -> bool:
    """Whether a condition is true in any of the processes."""
    return bool(sum_over_processes(torch.tensor(float(condition))))
