"""Upsampling of stacks of maps, as products with matrices, some rows at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.runtime.device import free_memory, to_device

CPU_BLOCK_VALUES = 2**20  # computed at a time: 4 MB, which fit into a CPU's cache
_GPU_BLOCK_VALUES = 2**27  # enough to keep a GPU busy
_BYTES_PER_VALUE = 64  # of free memory; a block requires about half of it
CACHED_SIZES = 16  # of an axis of images, of which the weights of the interpolation are kept
_BAND_ROWS = 8  # rows of the network's resolution that are taken to full width at a time
_CPU_COLUMNS = 256  # of a band that are computed at a time: a GPU takes all, though most of the factors are 0


class LogitSamples(NamedTuple):
    """Samples of an image's logits, in the image's own orientation.

    Attributes:
        logits: (T, C, h, w) float32, C >= 2.
        zoom: 1.0 where they cover the image; else the image is their central 1 / zoom.
    """

    logits: Tensor
    zoom: float = 1.0


@dataclass(frozen=True)
class Interpolation:
    """From `n_in` values along an axis to others, each of which depends on a few neighbouring ones.

    Attributes:
        weights: (n_out, taps) float32.
        index: (n_out, taps) int64, of which values these are the weights; it never decreases.
        n_in: the number of values.
        first: the first of the values on which each output depends.
    """

    weights: Tensor
    index: Tensor
    n_in: int
    first: Sequence[int]

    @classmethod
    def of(cls, weights: np.ndarray, first: np.ndarray, n_in: int) -> "Interpolation":
        """Of (n_out, taps) weights of the values from `first`, (n_out,), on."""
        index = torch.from_numpy(first[:, None] + np.arange(weights.shape[1]))
        return cls(torch.from_numpy(weights).float(), index, n_in, first.tolist())

    def __len__(self) -> int:
        return len(self.weights)

    def inputs(self, outputs: slice) -> slice:
        """All values on which some consecutive outputs depend."""
        return slice(self.first[outputs.start], self.first[outputs.stop - 1] + self.index.shape[1])

    def matrix(self, outputs: slice | Tensor, inputs: slice = slice(None)) -> Tensor:
        """(outputs, inputs) float32, from these values, which suffice, to some outputs."""
        begin, end, _ = inputs.indices(self.n_in)  # not kept: small tensors that stay between the blocks split the heap
        weights, index = self.weights[outputs], self.index[outputs] - begin
        return weights.new_zeros(len(weights), end - begin).scatter_(1, index, weights)

    def to(self, device: torch.device) -> "Interpolation":
        """The same on a device."""
        return Interpolation(to_device(self.weights, device), to_device(self.index, device), self.n_in, self.first)


def pixel_positions(n_in: int, n_out: int, zoom: float = 1.0) -> np.ndarray:
    """Where the pixels of an image of `n_out` lie among `n_in` values that cover it, or whose central 1 / zoom does.

    With `zoom` 1 as in `torch.nn.functional.interpolate` with `align_corners=False`.

    Returns:
        (n_out,) float64 in [0, n_in - 1].
    """
    in_image = (np.arange(n_out) + 0.5) / n_out  # in (0, 1)
    return (((in_image - 0.5) / zoom + 0.5) * n_in - 0.5).clip(0, n_in - 1)


def linear_interpolation(positions: np.ndarray, n_in: int) -> Interpolation:
    """Interpolates `n_in` values linearly at increasing positions in [0, n_in - 1]."""
    before = np.floor(positions).clip(max=max(n_in - 2, 0)).astype(np.int64)
    weights = np.stack([1 - (positions - before), positions - before], axis=1)[:, :n_in]  # a single value has no other
    return Interpolation.of(weights, before, n_in)


@lru_cache(CACHED_SIZES)
def to_pixels(n_in: int, n_out: int, zoom: float, device: torch.device) -> Interpolation:
    """Linear interpolation at `pixel_positions`."""
    return linear_interpolation(pixel_positions(n_in, n_out, zoom), n_in).to(device)


class Upsampler:
    """Upsamples a stack of maps; some rows on demand. Columns come first, of only the rows between which these lie.

    Args:
        maps: (h, n, w) float32, n maps as the rows of each lie in memory.
        rows, columns: the interpolations along both axes.
    """

    def __init__(self, maps: Tensor, rows: Interpolation, columns: Interpolation) -> None:
        self.maps, self.rows, self.columns = maps, rows, columns
        self.n_columns = maps.shape[1] * len(columns)  # n W
        self._begin, self._band = 0, maps.new_empty(0, self.n_columns)  # input rows at full width, from there on

    def factors(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Two matrices whose product is (rows, n W)."""
        needed = self.rows.inputs(rows)
        if not self._begin <= needed.start <= needed.stop <= self._begin + len(self._band):
            self._begin = needed.start
            ahead = min(_BAND_ROWS, _BAND_ROWS * CPU_BLOCK_VALUES // self.n_columns)
            self._band = self._widen(self.maps[needed.start : max(needed.stop, needed.start + ahead)])
        band = self._band[needed.start - self._begin : needed.stop - self._begin]
        return self.rows.matrix(rows, needed), band

    def _widen(self, maps: Tensor) -> Tensor:
        """Rows of the maps, (rows, n, w), at full width: (rows, n W)."""
        n, width = maps.shape[0] * maps.shape[1], len(self.columns)
        band = maps.new_empty(n, width)
        for columns, needed, matrix in self._column_blocks:
            torch.mm(maps.view(n, -1)[:, needed], matrix.T, out=band[:, columns])
        return band.view(len(maps), -1)

    @cached_property
    def _column_blocks(self) -> list[tuple[slice, slice, Tensor]]:
        """Consecutive columns, the inputs on which they depend, and the matrix from these to them."""
        width = len(self.columns)
        blocks = blocks_of(slice(0, width), _CPU_COLUMNS if self.maps.is_cpu else width)
        needed = [self.columns.inputs(block) for block in blocks]
        return [(*both, self.columns.matrix(*both)) for both in zip(blocks, needed, strict=True)]


def blocks_of(rows: slice, size: int) -> list[slice]:
    """Consecutive rows, or columns, in blocks of this size; the last one may be smaller."""
    return [slice(begin, min(begin + size, rows.stop)) for begin in range(rows.start, rows.stop, size)]


def _block_values(device: torch.device) -> int:
    """How many values are computed at a time on a device."""
    if device.type == "cpu":
        return CPU_BLOCK_VALUES
    return min(_GPU_BLOCK_VALUES, free_memory(device) // _BYTES_PER_VALUE)


def n_channels(n_classes: int) -> int:
    """Of logits and probabilities: two classes are one channel, that of the second one."""
    return 1 if n_classes == 2 else n_classes


def logit_maps(logits: Tensor) -> Tensor:
    """(T, C, h, w) logits as a stack of maps, (h, T C, w); of two classes their difference, (h, T, w)."""
    values = logits[:, 1:] - logits[:, :1] if logits.shape[1] == 2 else logits
    return values.flatten(0, 1).permute(1, 0, 2).contiguous()


class StackUpsampler:
    """Upsamples all samples of an image; logits or probabilities of a block of rows on demand.

    A softmax of two classes is the sigmoid of the difference of their logits, so two classes are one channel here.

    Args:
        samples: samples of one image.
        width, height: size of the image.
        max_values: how many values are computed at a time; None for the default of the device.
    """

    def __init__(self, samples: Sequence[LogitSamples], width: int, height: int, max_values: int | None = None) -> None:
        self.n_samples = sum(len(logits) for logits, _ in samples)
        self.n_classes = samples[0].logits.shape[1]
        self.channels = n_channels(self.n_classes)
        self.device = samples[0].logits.device
        self.width = width
        self.stacks = [
            Upsampler(
                logit_maps(logits),
                to_pixels(logits.shape[2], height, zoom, self.device),
                to_pixels(logits.shape[3], width, zoom, self.device),
            )
            for logits, zoom in samples
        ]
        self.columns = sum(stack.n_columns for stack in self.stacks)  # T C W
        values = max_values or _block_values(self.device)
        self.block_rows = max(1, values // (self.columns + 3 * width))  # the statistics need space, too

    def logits(self, rows: slice) -> Tensor:
        """(rows, T, 1 or C, W) logits."""
        blocks = [torch.mm(*stack.factors(rows)) for stack in self.stacks]
        values = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)  # MPS writes no product into a part of it
        return values.view(len(values), self.n_samples, self.channels, self.width)

    def probs(self, rows: slice, temperature: float = 1.0) -> Tensor:
        """(T, 1 or C, rows, W) probabilities, of the logits divided by a temperature."""
        values = self.logits(rows)
        if temperature != 1:
            values /= temperature
        return to_probs(values).permute(1, 2, 0, 3)

    def mean_probs(self, rows: slice, temperature: float = 1.0) -> Tensor:
        """(1 or C, rows, W), the mean of `probs` over the samples, of any number of rows."""
        blocks = blocks_of(rows, self.block_rows)
        return torch.cat([self.probs(block, temperature).mean(dim=0) for block in blocks], dim=1)


def to_probs(logits: Tensor) -> Tensor:
    """(..., 1 or C, W) probabilities of logits, which are overwritten."""
    return logits.sigmoid_() if logits.shape[-2] == 1 else logits.softmax(dim=-2)
