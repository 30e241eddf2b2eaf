"""Computations that a CUDA GPU records once and then replays, as CUDA graphs."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def graph_recorder(device: torch.device) -> Callable[..., Any] | None:
    """The `record` of a `RecordedCall` on a device; None where nothing can be recorded."""
    return torch.cuda.make_graphed_callables if device.type == "cuda" else None


class RecordedCall:
    """A function of tensors that is recorded when it is called a second time with the same shapes.

    Hundreds of small kernels take a CPU longer to launch than a GPU to compute; a recording is launched as one. Calls
    with other shapes are computed as usual.

    Args:
        function: a function, or a module whose parameters get gradients. It takes and returns tensors on one device,
            does not wait for values, and draws no random numbers.
        record: `graph_recorder`, or None to record nothing.
    """

    def __init__(self, function: Callable[..., Any], record: Callable[..., Any] | None) -> None:
        self._function, self._record = function, record
        self._recording: Callable[..., Any] | None = None
        self._seen: set[tuple[torch.Size, ...]] = set()
        self._recorded_shapes: tuple[torch.Size, ...] | None = None

    def __call__(self, *tensors: Tensor) -> Any:
        """The result of the function; that of a recording is overwritten by the next call."""
        shapes = tuple(tensor.shape for tensor in tensors)
        if self._record is not None and self._recording is None and shapes in self._seen:
            self._recording, self._recorded_shapes = self._recorded(tensors), shapes
        self._seen.add(shapes)
        return (self._recording if shapes == self._recorded_shapes else self._function)(*tensors)

    def _recorded(self, tensors: tuple[Tensor, ...]) -> Callable[..., Any]:
        """A recording; that the function is tried out before it leaves no trace in the buffers of a module."""
        # A recording keeps nodes of its own stream alive, to which later gradients come from another one, in order.
        warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream")
        buffers = list(self._function.buffers()) if isinstance(self._function, nn.Module) else []
        before = [buffer.clone() for buffer in buffers]
        function = copy.copy(self._function)  # recording replaces the `forward` of a module
        recording = self._record(function, tuple(tensor.clone() for tensor in tensors))
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        return recording
