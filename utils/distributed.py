"""Several processes that torchrun has started: which am I, what do the others have, one batch among all.

Everything here does the obvious for a single process, so nothing else has to ask whether there are several.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@contextmanager
def process_group() -> Iterator[None]:
    """Join the group of processes that torchrun has started, and leave it at the end; alone, do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(days=1))  # one may have to wait while another decodes
    try:
        yield
        dist.barrier()  # torchrun ends all once one has failed: let each say what it has to
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0 to `world_size()` - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """The number of this process on its host, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return rank() == 0


@contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block before the others, so that they find what it has made."""
    if world_size() > 1 and not is_main():
        dist.barrier()
    try:
        yield
    finally:
        if world_size() > 1 and is_main():
            dist.barrier()


def gather(value: T) -> list[T]:
    """The values of all processes, by rank, in every process."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def total(values: Tensor) -> Tensor:
    """The sum of a tensor over the processes."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def any_of(condition: bool) -> bool:
    """Whether a condition is true in any of the processes."""
    return bool(total(torch.tensor(float(condition))))


def data_parallel(network: nn.Module) -> nn.Module:
    """The network as its training needs it: gradients, and the statistics of batch norm, of all processes' images.

    Its weights and buffers remain those of `network`.
    """
    if world_size() == 1:
        return network
    _synchronise_batch_norm(network)
    device = next(network.parameters()).device
    return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)


def _synchronise_batch_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            synchronised = SynchronisedBatchNorm(child.num_features, child.eps, child.momentum)
            for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                setattr(synchronised, kind, getattr(child, kind))
            setattr(module, name, synchronised)
        else:
            _synchronise_batch_norm(child)


class _Sum(torch.autograd.Function):
    """The sum over the processes, with gradients."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return total(values.clone())

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return total(gradient.clone())


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the images of all processes (`nn.SyncBatchNorm` knows no CPU, and no process without images)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x.float()
        count = torch.tensor(float(values.numel() // values.shape[1]), device=x.device)
        dist.all_reduce(count)
        mean = _Sum.apply(values.sum(dim=(0, 2, 3))) / count
        centred = values - mean[None, :, None, None]
        variance = _Sum.apply(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[None, :, None, None] + self.bias[None, :, None, None]).to(x.dtype)
