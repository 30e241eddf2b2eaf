"""Training one network in several processes: averaged gradients, and batch norm over the images of all of them."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.runtime.distributed import sum_over_processes, world_size


def data_parallel(network: nn.Module) -> nn.Module:
    """The network with gradients and batch norm statistics over the images of all processes.

    Its weights and buffers remain those of `network`.
    """
    if world_size() == 1:
        return network
    device = next(network.parameters()).device
    _synchronise_batch_norm(network, GPUBatchNorm if device.type == "cuda" else CPUBatchNorm)
    return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)


def _synchronise_batch_norm(module: nn.Module, kind: type[nn.BatchNorm2d | nn.SyncBatchNorm]) -> None:
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            synchronised = kind(child.num_features, child.eps, child.momentum)
            for values in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                setattr(synchronised, values, getattr(child, values))
            setattr(module, name, synchronised)
        else:
            _synchronise_batch_norm(child, kind)


class _SumOverProcesses(torch.autograd.Function):
    """`sum_over_processes` with gradients."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return sum_over_processes(values.clone())

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return sum_over_processes(gradient.clone())


class GPUBatchNorm(nn.SyncBatchNorm):
    """Batch norm over the images of all processes, also in mixed precision in a process without images.

    `nn.SyncBatchNorm` sends the statistics of no images in the dtype of its input, those of any images in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if len(x) else super().forward(x.float()).to(x.dtype)


class CPUBatchNorm(nn.BatchNorm2d):
    """Batch norm over the images of all processes, also in a process without images.

    `nn.SyncBatchNorm` supports GPUs only.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x.float()
        count = torch.tensor(float(values.numel() // values.shape[1]), device=x.device)
        dist.all_reduce(count)
        mean = _SumOverProcesses.apply(values.sum(dim=(0, 2, 3))) / count
        centred = values - mean[None, :, None, None]
        variance = _SumOverProcesses.apply(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[None, :, None, None] + self.bias[None, :, None, None]).to(x.dtype)
