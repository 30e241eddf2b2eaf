"""The device and the precision that a script computes with, and batches that fit into the device's memory."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.runtime import distributed
from utils.runtime.errors import InputError, first_line, is_gpu_error, is_gpu_full

logger = logging.getLogger(__name__)


def choose_device(name: str | None = None) -> torch.device:
    """The device of that name, with its index; by default a CUDA GPU, or else the CPU.

    MPS, on which nothing of this has been tried, has to be named. With a GPU, PyTorch then uses a single thread of the
    CPU.

    Raises:
        InputError: the device is not available, or several processes are to share one GPU. (One that was not named is
            replaced by the CPU, with a warning.)
    """
    if distributed.world_size() > 1 and (name or "").startswith("cuda:"):
        raise InputError(
            f"device {name}: each of several processes uses its own GPU; give cuda without an index, or nothing"
        )
    if name in (None, "cuda") and distributed.world_size() > 1 and torch.cuda.is_available():
        name = f"cuda:{distributed.local_rank()}"
    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        first = torch.zeros(1, device=chosen)
        device = first.device  # with its index, which set_device requires
        if device.type == "cuda":
            torch.cuda.set_device(device)
            # Single precision is what it says, whatever the environment asks for; mixed precision is for speed.
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        first.tolist()  # a GPU that is closed, or too old for this build of PyTorch, has looked available until here
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        if name is None:
            logger.warning("The %s device cannot be used (%s): using the CPU", chosen.upper(), first_line(error))
            return torch.device("cpu")
        if is_gpu_error(error):
            raise InputError(f"device {name} cannot be used ({first_line(error)})", "device") from error
        available = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        available += ["mps"] * torch.backends.mps.is_available()
        raise InputError(f"device {name} is not available; available: {', '.join([*available, 'cpu'])}") from error
    if device.type != "cpu":
        torch.set_num_threads(1)  # what is left to the CPU is small; its cores read and write
    return device


def amp_dtype(device: torch.device, amp: bool) -> torch.dtype | None:
    """The dtype of mixed precision on a device; None for single precision, with a warning where `amp` is not faster."""
    if not amp:
        return None
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and cpu_has_bfloat16():
        return torch.bfloat16
    logger.warning("Mixed precision is not faster on this %s: using single precision", device.type.upper())
    return None


def mixed_precision(device: torch.device, dtype: torch.dtype | None, cache: bool = True) -> torch.autocast:
    """The context of mixed precision in a dtype; without effect for None, which is single precision.

    Args:
        device: which computes.
        dtype: from `amp_dtype`.
        cache: keep weights that have been converted until the context ends.
    """
    return torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=cache)


def cpu_has_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(flags.split())


def device_name(device: torch.device) -> str:
    """A human-readable name of a device."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'s' * (threads > 1)})" if device.type == "cpu" else str(device)


def precision_name(dtype: torch.dtype | None, device: torch.device) -> str:
    """A human-readable name of a precision, as `amp_dtype` returns it, on a device."""
    if dtype is None:
        return "single precision (float32, without TF32)" if device.type == "cuda" else "single precision"
    return f"mixed precision ({str(dtype).removeprefix('torch.')})"


def memory_format(device: torch.device) -> torch.memory_format:
    """The layout of weights and inputs with which convolutions are fastest.

    On MPS it is the default one: there PyTorch has had wrong gradients of batch norm in channels last (issue 175189).
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; a GPU copies it from pinned memory and does not have the caller wait."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def read_later(values: Tensor) -> Callable[[], list[float]]:
    """Start copying a few values from their device; the function returned waits for them, but for nothing later."""
    if values.device.type != "cuda":
        return values.tolist
    copied, done = values.to("cpu", non_blocking=True), torch.cuda.Event()
    done.record(torch.cuda.current_stream(values.device))

    def read() -> list[float]:
        done.synchronize()
        return copied.tolist()

    return read


def copy_to_cpu(content: Any) -> Any:
    """A copy, on the CPU, of tensors in nested dicts, lists and tuples; other values are taken over."""
    if isinstance(content, Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, Mapping):
        return {key: copy_to_cpu(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(copy_to_cpu(value) for value in content)
    return content


def to_arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Tensors as arrays; a GPU copies all of them before the caller waits, once."""
    gpus = {tensor.device for tensor in tensors.values() if tensor.device.type == "cuda"}
    copies = {name: tensor.to("cpu", non_blocking=tensor.device in gpus) for name, tensor in tensors.items()}
    for gpu in gpus:  # in a thread the current device is the first one, whatever the main thread has set
        torch.cuda.current_stream(gpu).synchronize()
    return {name: copied.numpy() for name, copied in copies.items()}


def free_memory(device: torch.device) -> int:
    """The memory of a GPU that is free, or that PyTorch holds without using it, in bytes; 4 GB where it is unknown."""
    if device.type != "cuda":
        return 2**32
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def in_batches(compute: Callable[[slice], Tensor], n: int, batch_size: int) -> Tensor:
    """The concatenated results of `compute` for consecutive slices of n inputs.

    A slice has `batch_size` inputs; each time the device runs out of memory, the batch size is halved.

    Raises:
        RuntimeError: there is not even enough memory for a single input.
    """
    results: list[Tensor] = []
    start, size = 0, min(batch_size, n)
    while start < n:
        result = None
        try:
            result = compute(slice(start, min(start + size, n)))
        except RuntimeError as error:
            if size == 1 or not is_gpu_full(error):
                raise
        if result is not None:
            results.append(result)
            start += size
            continue
        if torch.cuda.is_available():  # the failed attempt no longer holds anything: its error is gone
            torch.cuda.empty_cache()
        logger.warning("Out of memory with a batch of %d: continuing with batches of %d", size, size // 2)
        size //= 2
    return torch.cat(results)
