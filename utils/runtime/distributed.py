"""Several processes started by torchrun: rank, barriers, and collectives.

With a single process every function is trivial, so that no other module has to distinguish the two cases.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group that torchrun has started, and leave it at the end; do nothing in a single process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(days=1))  # the others wait while the main process decodes
    try:
        yield
        dist.barrier()  # torchrun kills all processes once one has failed: each gets to report its error
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The rank of this process, from 0 to `world_size()` - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """The rank of this process on its host, which is the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes files and log lines for all."""
    return rank() == 0


@contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block before the others, which then find what it has written."""
    if world_size() > 1 and not is_main():
        dist.barrier()
    try:
        yield
    finally:
        if world_size() > 1 and is_main():
            dist.barrier()


def all_gather(value: Value) -> list[Value]:
    """The values of all processes, by rank, in every process."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of a tensor over the processes, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def any_process(condition: bool) -> bool:
    """Whether a condition is true in any of the processes."""
    return bool(sum_over_processes(torch.tensor(float(condition))))
