"""Statistics over the samples at full size, from few points of each cell of the network's grid.

Within a cell a sample's logits are bilinear, and so what is computed of all samples is a smooth function of the place:
a polynomial through 11 x 11 points gives it everywhere. Where cells are large, these points are few of the pixels.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.polynomial.chebyshev import chebpts2, chebvander
from torch import Tensor

from utils.inference.upsampling import (
    CACHED_SIZES,
    CPU_BLOCK_VALUES,
    Interpolation,
    LogitSamples,
    Upsampler,
    blocks_of,
    linear_interpolation,
    logit_maps,
    pixel_positions,
    to_probs,
)

_DEGREE = 10
_POINTS = chebpts2(_DEGREE + 1)  # of a cell, in [-1, 1]; the first and the last one are shared with its neighbours
_TO_COEFFICIENTS = np.linalg.inv(chebvander(_POINTS, _DEGREE))  # from values at the points to Chebyshev coefficients
_MAX_COEFFICIENT = 5e-5  # of the two highest degrees, beyond which a cell is not smooth
_MIN_VARIANCE = 1e-12  # below which its root does not matter
_MIN_SAMPLES = 4  # of each zoom, and
_MIN_PIXELS = 2  # for each point: from there on points are faster than all pixels


@lru_cache(CACHED_SIZES)
def _interpolations(n_in: int, n_out: int, zoom: float) -> tuple[Interpolation, Interpolation]:
    """From `n_in` values to the points, and from the points to `n_out` pixels, along an axis."""
    positions = pixel_positions(n_in, n_out, zoom)
    cells = np.floor(positions).clip(max=n_in - 2).astype(np.int64)
    first, n_cells = cells[0], cells[-1] - cells[0] + 1
    points = np.append(first + np.arange(n_cells)[:, None] + (_POINTS[:-1] + 1) / 2, first + n_cells)
    weights = chebvander(2 * (positions - cells) - 1, _DEGREE) @ _TO_COEFFICIENTS  # (n_out, 11)
    to_pixels = Interpolation.of(weights, _DEGREE * (cells - first), len(points))
    return linear_interpolation(points, n_in), to_pixels


class SmoothMaps:
    """Maps at full size; a block of rows on demand.

    Args:
        samples: samples of one image, on a CPU.
        size: width and height of the image, for which `are_faster` is true.
        statistics: computes n maps, (n, rows, W), of (T, 1 or C, rows, W) probabilities.
        n_variances: how many of them, the last ones, are variances, of which the roots will be taken; the others are
            means over the samples.

    Attributes:
        n_samples: the numbers of samples of which `block` returns maps: those of each zoom, or of all together.
        block_rows: how many rows to take at a time.
    """

    def __init__(
        self,
        samples: Sequence[LogitSamples],
        size: tuple[int, int],
        statistics: Callable[[Tensor], Tensor],
        n_variances: int = 0,
    ) -> None:
        width, height = size
        self._n_variances, self._width, self._zooms = n_variances, width, []
        self.n_samples = [len(logits) for logits, _ in samples]
        for logits, zoom in samples:
            to_rows, rows = _interpolations(logits.shape[2], height, zoom)
            to_columns, columns = _interpolations(logits.shape[3], width, zoom)
            at_points = Upsampler(logit_maps(logits), to_rows, to_columns)
            self._zooms.append(Upsampler(_compute(at_points, len(logits), statistics), rows, columns))
        if not n_variances:  # all maps are means, and so the weighted sum of those of the zooms
            for zoom, n in zip(self._zooms, self.n_samples, strict=True):
                zoom.maps *= n / sum(self.n_samples)
            self.n_samples = [sum(self.n_samples)]
        self.block_rows = max(1, CPU_BLOCK_VALUES // (sum(zoom.n_columns for zoom in self._zooms) + 3 * width))

    @staticmethod
    def are_faster(samples: Sequence[LogitSamples], size: tuple[int, int]) -> bool:
        """Whether they are faster than computing all samples at all pixels."""
        logits, width, height = samples[0].logits, *size
        n_samples, points = sum(len(logits) for logits, _ in samples), _DEGREE**2 * logits[0, 0].numel()
        return (
            logits.is_cpu
            and min(logits.shape[2:]) > 1
            and n_samples >= _MIN_SAMPLES * len(samples)
            and width * height >= _MIN_PIXELS * points
        )

    @property
    def converged(self) -> bool:
        """Whether the maps are smooth enough: the polynomials' coefficients of the highest degrees vanish."""
        weights = torch.from_numpy(_TO_COEFFICIENTS[-2:].T).float()  # (11, 2)
        for zoom in self._zooms:
            for axis in (0, 2):
                cells = zoom.maps.unfold(axis, _DEGREE + 1, _DEGREE)  # (cells, n, w', 11) or (h', n, cells, 11)
                errors = (cells @ weights).abs().amax(dim=-1)
                if self._n_variances:
                    variances = cells[:, -self._n_variances :].amin(dim=-1).clamp_(min=_MIN_VARIANCE)
                    errors[:, -self._n_variances :] /= 2 * variances.sqrt_()  # the error of the root
                if not errors.max() < _MAX_COEFFICIENT:  # NaN, too
                    return False
        return True

    def block(self, rows: slice) -> list[Tensor]:
        """(n, rows, W), the maps of some rows; of each zoom, or of all together."""
        blocks = [torch.mm(*self._zooms[0].factors(rows))]
        for zoom in self._zooms[1:]:
            if self._n_variances:
                blocks.append(torch.mm(*zoom.factors(rows)))
            else:
                blocks[0].addmm_(*zoom.factors(rows))
        return [block.view(len(block), -1, self._width).transpose(0, 1) for block in blocks]


def _compute(at_points: Upsampler, n_samples: int, statistics: Callable[[Tensor], Tensor]) -> Tensor:
    """(h', n, w'), the maps at the points."""
    n_rows, width = len(at_points.rows), len(at_points.columns)
    at_a_time = max(1, min(_DEGREE, CPU_BLOCK_VALUES // at_points.n_columns))  # rows, of one row of cells
    blocks = []
    for rows in blocks_of(slice(0, n_rows), at_a_time):
        probs = to_probs(torch.mm(*at_points.factors(rows)).view(rows.stop - rows.start, n_samples, -1, width))
        blocks.append(statistics(probs.permute(1, 2, 0, 3)).transpose(0, 1))
    return torch.cat(blocks)
