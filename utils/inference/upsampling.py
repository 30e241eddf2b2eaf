"""Bilinear upsampling of stacks of logits, as matrix products over a few rows at a time."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from utils.runtime.device import free_memory, to_device

CPU_BLOCK_VALUES = 2**20  # computed at a time: 4 MB, which fit into a CPU's cache
_GPU_BLOCK_VALUES = 2**27  # enough to keep a GPU busy
_BYTES_PER_VALUE = 64  # of free memory; a block requires about half of it
_CACHED_SIZES = 16  # of images, of which the weights of the interpolation are kept
_BAND_ROWS = 8  # rows of the network's resolution that are taken to full width at a time


class LogitSamples(NamedTuple):
    """Samples of an image's logits, in the image's own orientation.

    Attributes:
        logits: (T, C, h, w) float32, C >= 2.
        zoom: 1.0 where they cover the image; else the image is their central 1 / zoom.
    """

    logits: Tensor
    zoom: float = 1.0


def bilinear_matrix(n_in: int, n_out: int, zoom: float = 1.0) -> Tensor:
    """The matrix that interpolates n_in values, or their central 1 / zoom, to n_out values.

    With `zoom` 1 it is that of `torch.nn.functional.interpolate` with `align_corners=False`.

    Returns:
        (n_out, n_in) float32; each row sums to 1.
    """
    before, after, weight = _neighbours(n_in, n_out, zoom)
    matrix = torch.zeros(n_out, n_in)
    row = torch.arange(n_out)
    matrix[row, before] = 1 - weight
    matrix[row, after] += weight
    return matrix


def _neighbours(n_in: int, n_out: int, zoom: float) -> tuple[Tensor, Tensor, Tensor]:
    """The indices of the two inputs between which each output lies, and the weight of the second; each (n_out,)."""
    position = (torch.arange(n_out, dtype=torch.float64) + 0.5) / n_out  # of an output in the image, in (0, 1)
    source = (((position - 0.5) / zoom + 0.5) * n_in - 0.5).clamp(0, n_in - 1)
    before = source.floor().clamp(max=max(n_in - 2, 0)).long()
    return before, (before + 1).clamp(max=n_in - 1), (source - before).float()


@lru_cache(_CACHED_SIZES)
def _column_weights(n_in: int, n_out: int, zoom: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """`_neighbours` on a device."""
    return tuple(to_device(values, device) for values in _neighbours(n_in, n_out, zoom))


@lru_cache(_CACHED_SIZES)
def _row_weights(n_in: int, n_out: int, zoom: float, device: torch.device) -> tuple[Tensor, list[int]]:
    """`bilinear_matrix` on a device, and the first input of each output."""
    matrix = bilinear_matrix(n_in, n_out, zoom)
    return to_device(matrix, device), (matrix != 0).int().argmax(dim=1).tolist()


def _block_values(device: torch.device) -> int:
    """How many values are computed at a time on a device."""
    if device.type == "cpu":
        return CPU_BLOCK_VALUES
    return min(_GPU_BLOCK_VALUES, free_memory(device) // _BYTES_PER_VALUE)


class StackUpsampler:
    """Upsamples all samples of an image; probabilities of a block of rows on demand.

    A softmax of two classes is the sigmoid of the difference of their logits, so two classes are one channel here.

    Args:
        samples: samples of one image.
        width, height: size of the image.
        block_values: how many values are computed at a time; None for the default of the device.
    """

    def __init__(
        self, samples: Sequence[LogitSamples], width: int, height: int, block_values: int | None = None
    ) -> None:
        self.n_samples = sum(len(logits) for logits, _ in samples)
        self.n_classes = samples[0].logits.shape[1]
        self.channels = 1 if self.n_classes == 2 else self.n_classes
        self.device = samples[0].logits.device
        self.width = width
        self.stacks = [_ZoomStack(logits, zoom, width, height) for logits, zoom in samples]
        self.columns = sum(stack.columns for stack in self.stacks)  # T C W
        values = block_values or _block_values(self.device)
        self.block_rows = max(1, values // (self.columns + 3 * width))  # the statistics need space, too

    def probs(self, rows: slice, temperature: float = 1.0) -> Tensor:
        """(T, 1 or C, rows, W) probabilities, of the logits divided by a temperature."""
        values = torch.empty(rows.stop - rows.start, self.columns, device=self.device)
        blocks = values.split([stack.columns for stack in self.stacks], dim=1)
        for stack, block in zip(self.stacks, blocks, strict=True):
            torch.mm(*stack.factors(rows), out=block)
        if temperature != 1:
            values /= temperature
        return self._to_probs(values.view(len(values), self.n_samples, self.channels, self.width)).permute(1, 2, 0, 3)

    def corner_probs(self) -> list[Tensor]:
        """The (h, T, 1 or C, w) probabilities at the network's resolution, of each zoom."""
        return [self._to_probs(stack.values.clone()) for stack in self.stacks]

    def _to_probs(self, values: Tensor) -> Tensor:
        """Of (rows, T, 1 or C, W) logits, which are overwritten."""
        return values.sigmoid_() if self.channels == 1 else values.softmax(dim=2)


class _ZoomStack:
    """Samples of one zoom. The columns are interpolated first, for only the rows between which a block lies."""

    def __init__(self, logits: Tensor, zoom: float, width: int, height: int) -> None:
        values = logits[:, 1:] - logits[:, :1] if logits.shape[1] == 2 else logits
        self.values = values.permute(2, 0, 1, 3).contiguous()  # (h, T, 1 or C, w)
        self.columns = values.shape[0] * values.shape[1] * width
        self.to_rows, self.first = _row_weights(values.shape[2], height, zoom, logits.device)  # (H, h)
        *self.neighbours, self.weight = _column_weights(values.shape[3], width, zoom, logits.device)  # each (W,)
        self.begin, self.band = 0, values.new_empty(0, self.columns)  # input rows at full width, from `begin` on

    def input_rows(self, rows: slice) -> tuple[int, int]:
        """The first and the last (excluded) row of the network's resolution between which these rows lie."""
        return self.first[rows.start], min(self.first[rows.stop - 1] + 2, len(self.values))

    def factors(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Two matrices whose product is (rows, T C W)."""
        first, last = self.input_rows(rows)
        if not self.begin <= first <= last <= self.begin + len(self.band):
            self.begin = first
            enough = max(last, first + min(_BAND_ROWS, _BAND_ROWS * CPU_BLOCK_VALUES // self.columns))
            near = self.values[first:enough]
            lines = near.view(-1, near.shape[-1])  # (rows T C, w): `index_select` is fastest with two dimensions
            left, right = (lines.index_select(1, index) for index in self.neighbours)
            self.band = torch.lerp(left, right, self.weight).view(len(near), -1)
        near = slice(first - self.begin, last - self.begin)
        return self.to_rows[rows, first:last], self.band[near]
