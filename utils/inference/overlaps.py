"""How many pixels each pair of samples assigns to the same class."""

from collections.abc import Sequence

import torch
from torch import Tensor

from utils.inference.upsampling import LogitSamples, StackUpsampler, Upsampler


@torch.inference_mode()
def count_overlaps(
    samples: Sequence[LogitSamples], size: tuple[int, int], threshold: float = 0.5, max_values: int | None = None
) -> Tensor:
    """For each class but the background and each pair of samples the number of pixels that both assign to the class.

    On a CPU few pixels are looked at: a sample that has one class at the four corners of a cell of the network's grid
    has it everywhere within the cell, because an interpolation is a weighted mean.

    Args:
        samples: samples of one image.
        size: width and height of the image.
        threshold: with two classes, the probability above which a sample assigns a pixel to class 1.
        max_values: how many logits are computed at a time; None for the default of the device.

    Returns:
        (C - 1, T, T) int64; on the diagonal the area of the class in each sample.
    """
    width, height = size
    stack = StackUpsampler(samples, width, height, max_values)
    counter = (_BorderCounter if stack.device.type == "cpu" else _Counter)(stack, threshold)
    total = torch.zeros(stack.n_classes - 1, stack.n_samples, stack.n_samples, dtype=torch.int64, device=stack.device)
    for begin in range(0, height, stack.block_rows):
        total += counter.count(slice(begin, min(begin + stack.block_rows, height)))
    return total


class _Counter:
    """Counts all pixels of a block of rows."""

    def __init__(self, stack: StackUpsampler, threshold: float) -> None:
        self.stack = stack
        self.threshold = torch.logit(torch.tensor(threshold, dtype=torch.float64)).item()

    def count(self, rows: slice) -> Tensor:
        """(C - 1, T, T) int64."""
        return self.count_pairs(self.assign(self.stack.logits(rows)))

    def assign(self, logits: Tensor) -> Tensor:
        """The class to which each sample assigns each pixel, float, (rows, T, W) of (rows, T, 1 or C, W) logits.

        Of two classes the logits are overwritten.
        """
        if logits.shape[2] > 1:
            return logits.argmax(dim=2).float()
        return logits[:, :, 0].gt_(self.threshold)  # as float, which is several times as fast as bool

    def count_pairs(self, classes: Tensor, weights: Tensor | None = None) -> Tensor:
        """(C - 1, T, T) int64 of (B, T, n) classes, of pixels that count (n,) times."""
        pairs = []
        for k in range(1, self.stack.n_classes):
            is_class = classes if self.stack.channels == 1 else classes.eq(k).float()
            weighted = is_class if weights is None else is_class * weights
            pairs.append((weighted @ is_class.mT).sum(dim=0, dtype=torch.int64))  # of a block below 2^24: exact
        return torch.stack(pairs)


class _BorderCounter(_Counter):
    """Counts the pixels of cells with a border between classes, and takes the others cell by cell.

    Neighbouring columns of the image that lie in the same column of cells, in each zoom, are one group.
    """

    def __init__(self, stack: StackUpsampler, threshold: float) -> None:
        super().__init__(stack, threshold)
        cells = torch.tensor([zoom.columns.first for zoom in stack.stacks])  # (Z, W)
        differ = (cells != cells.roll(1, dims=1)).any(dim=0)  # from their left neighbours
        differ[0] = True
        self._group, self._widths = (
            differ.cumsum(0) - 1,
            differ.nonzero()[:, 0].diff(append=torch.tensor([stack.width])),
        )
        self._zooms = [self._find_uniform(*of_zoom) for of_zoom in zip(stack.stacks, cells[:, differ], strict=True)]

    def count(self, rows: slice) -> Tensor:
        uniform, classes = torch.ones(len(self._widths), dtype=torch.bool), []
        for zoom, (uniform_cells, corners) in zip(self.stack.stacks, self._zooms, strict=True):
            near = zoom.rows.inputs(rows)
            uniform &= uniform_cells[near.start : max(near.start + 1, near.stop - 1)].all(dim=0)
            classes.append(corners[near.start])
        columns = uniform.logical_not()[self._group].nonzero()[:, 0]
        pixels = (rows.stop - rows.start) * uniform * self._widths  # of each group
        return self.count_pairs(self._borders(rows, columns)) + self.count_pairs(torch.cat(classes)[None], pixels)

    def _borders(self, rows: slice, columns: Tensor) -> Tensor:
        """The (rows, T, n) classes of some columns."""
        classes, channels = [], self.stack.channels
        for zoom in self.stack.stacks:
            near = zoom.rows.inputs(rows)
            to_columns = zoom.columns.matrix.index_select(0, columns)
            band = (zoom.maps[near].flatten(0, 1) @ to_columns.T).view(near.stop - near.start, -1)
            logits = zoom.rows.matrix[rows, near] @ band
            classes.append(
                self.assign(logits.view(len(logits), zoom.maps.shape[1] // channels, channels, len(columns)))
            )
        return classes[0] if len(classes) == 1 else torch.cat(classes, dim=1)

    def _find_uniform(self, zoom: Upsampler, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Which cells have no border between classes in any sample, (h, G) bool, and their (h, T, G) classes."""
        h, _, w = zoom.maps.shape
        corners = self.assign(zoom.maps.view(h, -1, self.stack.channels, w).clone())
        corners = torch.cat([corners, corners[-1:]])  # (h + 1, T, w): below the last row lies the same
        right = corners.index_select(2, (cells + 1).clamp_(max=w - 1))
        left = corners.index_select(2, cells)
        uniform = (left[1:] == left[:-1]) & (right[1:] == right[:-1]) & (left[1:] == right[1:])
        return uniform.all(dim=1), left[:-1]
