"""How many pixels each pair of samples assigns to the same class."""

from collections.abc import Sequence

import torch
from torch import Tensor

from utils.inference.upsampling import CPU_BLOCK_VALUES, LogitSamples, StackUpsampler, Upsampler, blocks_of


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
    blocks = blocks_of(slice(0, height), stack.block_rows)
    logit = torch.logit(torch.tensor(threshold, dtype=torch.float64)).item()
    count = _count_along_borders if stack.device.type == "cpu" else _count_all  # a GPU would wait to know the borders
    return count(stack, blocks, logit)


def _count_all(stack: StackUpsampler, blocks: Sequence[slice], threshold: float) -> Tensor:
    """`count_overlaps` of all pixels."""
    return sum(_count_pairs(_assign(stack.logits(rows), threshold), stack.n_classes) for rows in blocks)


def _count_along_borders(stack: StackUpsampler, blocks: Sequence[slice], threshold: float) -> Tensor:
    """`count_overlaps` of the pixels of cells with a border between classes; the others are counted cell by cell."""
    # Columns of the image that lie in the same column of cells, in each zoom, are one group.
    cells = torch.tensor([zoom.columns.first for zoom in stack.stacks])  # (Z, W)
    starts = (cells != cells.roll(1, dims=1)).any(dim=0)
    starts[0] = True
    widths = starts.nonzero()[:, 0].diff(append=torch.tensor([stack.width]))
    uniform, corners = torch.ones(len(blocks), len(widths), dtype=torch.bool), []
    for zoom, of_groups in zip(stack.stacks, cells[:, starts], strict=True):
        uniform_in_zoom, classes, first = _find_uniform(zoom, blocks, of_groups, stack.channels, threshold)
        uniform &= uniform_in_zoom
        corners.append((classes, first))
    heights = torch.tensor([rows.stop - rows.start for rows in blocks])
    total = torch.zeros(stack.n_classes - 1, stack.n_samples, stack.n_samples, dtype=torch.int64)
    values = stack.n_samples * max(stack.n_samples, len(widths))  # of a block
    for part in torch.arange(len(blocks)).split(max(1, CPU_BLOCK_VALUES // values)):
        classes = torch.cat([classes[first[part]] for classes, first in corners], dim=1)
        total += _count_pairs(classes, stack.n_classes, heights[part, None] * uniform[part] * widths)

    # The other groups, pixel by pixel.
    block, column = uniform.logical_not()[:, starts.cumsum(0) - 1].nonzero().T
    for rows, columns in zip(blocks, column.split(block.bincount(minlength=len(blocks)).tolist()), strict=True):
        classes = [_assign(_upsample(zoom, rows, columns, stack.channels), threshold) for zoom in stack.stacks]
        total += _count_pairs(classes[0] if len(classes) == 1 else torch.cat(classes, dim=1), stack.n_classes)
    return total


def _find_uniform(
    zoom: Upsampler, blocks: Sequence[slice], cells: Tensor, channels: int, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Which columns of cells have no border in a block, (blocks, G) bool.

    Also the classes of the cells' left upper corners, (h + 1, T, G), and the first row of cells of each block.

    Args:
        zoom: the samples of a zoom.
        blocks: of rows of the image.
        cells: (G,), in which column of cells each group of columns lies.
        channels: 1 or C.
        threshold: of the logit of one channel.
    """
    h, _, w = zoom.maps.shape
    corners = _assign(zoom.maps.view(h, -1, channels, w).clone(), threshold)
    corners = torch.cat([corners, corners[-1:]])  # (h + 1, T, w): below the last row lies the same
    left, right = corners.index_select(2, cells), corners.index_select(2, (cells + 1).clamp(max=w - 1))
    differ = (left[1:] != left[:-1]) | (right[1:] != right[:-1]) | (left[1:] != right[1:])  # (h, T, G)
    borders = torch.cat([torch.zeros(1, len(cells)), differ.any(dim=1).cumsum(dim=0)])  # (h + 1, G), above each row
    near = [zoom.rows.inputs(rows) for rows in blocks]
    first = torch.tensor([inputs.start for inputs in near])
    last = torch.tensor([max(inputs.start + 1, inputs.stop - 1) for inputs in near])
    return borders[last] == borders[first], left, first


def _upsample(zoom: Upsampler, rows: slice, columns: Tensor, channels: int) -> Tensor:
    """(rows, T, 1 or C, columns) logits."""
    near = zoom.rows.inputs(rows)
    band = zoom.maps[near].flatten(0, 1) @ zoom.columns.matrix(columns).T
    logits = zoom.rows.matrix(rows, near) @ band.view(near.stop - near.start, -1)
    return logits.view(len(logits), zoom.maps.shape[1] // channels, channels, len(columns))


def _assign(logits: Tensor, threshold: float) -> Tensor:
    """The class to which each sample assigns each pixel, float, (rows, T, W) of (rows, T, 1 or C, W) logits.

    Of two classes the logits are overwritten.
    """
    if logits.shape[2] > 1:
        return logits.argmax(dim=2).float()
    return logits[:, :, 0].gt_(threshold)  # as float, which is several times as fast as bool


def _count_pairs(classes: Tensor, n_classes: int, weights: Tensor | None = None) -> Tensor:
    """(C - 1, T, T) int64 of (B, T, n) classes, of pixels that count (B, n) times."""
    pairs = []
    for k in range(1, n_classes):
        is_class = classes if n_classes == 2 else classes.eq(k).float()
        weighted = is_class if weights is None else is_class * weights[:, None]
        pairs.append((weighted @ is_class.mT).sum(dim=0, dtype=torch.int64))  # of a block below 2^24: exact
    return torch.stack(pairs)
