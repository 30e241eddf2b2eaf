"""Onto the device, how to go on when its memory runs out, and how not to ask the system for memory all the time."""

import ctypes
import logging
import os
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from utils.errors import InputError

logger = logging.getLogger(__name__)

_GLIBC = {-1: 2**28, -3: 2**25, -8: 1}  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX


def keep_freed_memory() -> None:
    """Have glibc keep freed memory, 256 MB or so, for the next tensor of up to 32 MB.

    Else it goes back to the system with many a tensor and comes again page by page, a twentieth of the time of a
    prediction on a CPU. Another C library is left as it is, and so is one for which the environment has settings.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _GLIBC.items():
            mallopt(parameter, value)


def to_input(images: Tensor, device: torch.device) -> Tensor:
    """(N, 3, h, w) uint8 images as the network takes them: float in [0, 1], channels last, on its device."""
    return images.to(device, non_blocking=True).to(memory_format=torch.channels_last).float().div_(255)


def in_batches(compute: Callable[[slice], Tensor], n: int, batch_size: int) -> Tensor:
    """What `compute` makes of consecutive slices of n things, concatenated.

    A slice has `batch_size` things, or fewer once the device's memory has run out.

    Raises:
        InputError: there is not even memory for one.
    """
    results: list[Tensor] = []
    start, size = 0, min(batch_size, n)
    while start < n:
        try:
            results.append(compute(slice(start, min(start + size, n))))
            start += size
            continue
        except torch.OutOfMemoryError:
            pass
        size = smaller(size)  # outside the handler, so that what the failed attempt holds can go
    return torch.cat(results)


def smaller(batch_size: int) -> int:
    """Half a batch size that was too much for the device's memory; what lies there unused is released.

    Raises:
        InputError: it was 1.
    """
    if batch_size == 1:
        raise InputError("The device has too little free memory for a single image; --device cpu will do")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    logger.warning("Out of memory with %d images at once: going on with %d", batch_size, batch_size // 2)
    return batch_size // 2
