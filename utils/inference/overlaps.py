"""How many pixels each pair of samples assigns to the same class."""

import torch
from torch import Tensor

from utils.inference.upsampling import StackUpsampler


class OverlapCounter:
    """Counts the pixels of an image, a block of rows at a time.

    On a CPU few pixels are looked at: a sample that has one class at the four corners of a cell of the network's grid
    has it everywhere within the cell, because an interpolation is a weighted mean.

    Args:
        stack: the samples of the image.
        threshold: with two classes, the probability above which a sample assigns a pixel to class 1.
    """

    def __init__(self, stack: StackUpsampler, threshold: float) -> None:
        self._stack, self._threshold = stack, threshold
        if stack.device.type != "cpu":  # a GPU would have to wait to know which pixels are at borders
            return
        # Neighbouring columns of the image that lie in the same column of cells, in each zoom, are counted together.
        cells = torch.stack([zoom.neighbours[0] for zoom in stack.stacks])  # (Z, W)
        cells, self._group, self._widths = cells.unique_consecutive(return_inverse=True, return_counts=True, dim=1)
        self._zooms = [
            self._find_uniform(probs, cells_z) for probs, cells_z in zip(stack.corner_probs(), cells, strict=True)
        ]

    def count(self, rows: slice, probs: Tensor) -> Tensor:
        """(C - 1, T, T) int64: for each class but the background the pixels that both of two samples assign to it.

        Args:
            rows: of the image.
            probs: (T, 1 or C, rows, W), their probabilities.
        """
        lines = probs.permute(2, 0, 1, 3)  # (rows, T, 1 or C, W), as they lie in memory
        if not probs.is_cpu:
            return self._pairs(self._assign(lines))
        uniform, classes = torch.ones(len(self._widths), dtype=torch.bool), []
        for zoom, (uniform_cells, corners) in zip(self._stack.stacks, self._zooms, strict=True):
            first, last = zoom.input_rows(rows)
            uniform &= uniform_cells[first : max(first + 1, last - 1)].all(dim=0)
            classes.append(corners[first])
        columns = uniform.logical_not()[self._group].nonzero()[:, 0]
        borders = lines.reshape(-1, lines.shape[-1]).index_select(1, columns).view(*lines.shape[:3], -1)
        pixels = (rows.stop - rows.start) * uniform * self._widths  # of each group of columns
        return self._pairs(self._assign(borders)) + self._pairs(torch.cat(classes)[None], pixels)

    def _assign(self, probs: Tensor) -> Tensor:
        """The class to which each sample assigns each pixel, (rows, T, W) of (rows, T, 1 or C, W) probabilities."""
        return probs[:, :, 0] > self._threshold if probs.shape[2] == 1 else probs.argmax(dim=2).byte()

    def _find_uniform(self, corner_probs: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Which cells have no border between classes in any sample, (h, G) bool, and their (h, T, G) classes."""
        corners = self._assign(corner_probs)
        corners = torch.cat([corners, corners[-1:]])  # (h + 1, T, w): below the last row lies the same
        right = corners.index_select(2, (cells + 1).clamp_(max=corners.shape[2] - 1))
        left = corners.index_select(2, cells)
        uniform = (left[1:] == left[:-1]) & (right[1:] == right[:-1]) & (left[1:] == right[1:])
        return uniform.all(dim=1), left[:-1]

    def _pairs(self, classes: Tensor, weights: Tensor | None = None) -> Tensor:
        """(C - 1, T, T) int64 of (B, T, n) classes, of pixels that count (n,) times."""
        pairs = []
        for k in range(1, self._stack.n_classes):
            is_class = (classes if classes.dtype == torch.bool else classes == k).float()
            weighted = is_class if weights is None else is_class * weights
            pairs.append((weighted @ is_class.mT).sum(dim=0, dtype=torch.int64))  # of a block below 2^24: exact
        return torch.stack(pairs)
