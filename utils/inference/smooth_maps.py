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
    CPU_BLOCK_VALUES,
    Interpolation,
    LogitSamples,
    Upsampler,
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
_MIN_SAMPLES = 4  # from which on points are faster, if there are
_MIN_PIXELS = 2  # times as many pixels


@lru_cache
def _interpolations(n_in: int, n_out: int, zoom: float) -> tuple[Interpolation, Interpolation]:
    """From `n_in` values to the points, and from the points to `n_out` pixels, along an axis."""
    positions = pixel_positions(n_in, n_out, zoom)
    cells = np.floor(positions).clip(max=n_in - 2).astype(int)
    first, n_cells = cells[0], cells[-1] - cells[0] + 1
    points = np.append(first + np.arange(n_cells)[:, None] + (_POINTS[:-1] + 1) / 2, first + n_cells)
    within = chebvander(2 * (positions - cells) - 1, _DEGREE) @ _TO_COEFFICIENTS  # (n_out, 11)
    matrix, begin = np.zeros((n_out, len(points)), dtype=np.float32), _DEGREE * (cells - first)
    np.put_along_axis(matrix, begin[:, None] + np.arange(_DEGREE + 1), within.astype(np.float32), axis=1)
    to_pixels = Interpolation(torch.from_numpy(matrix), begin.tolist(), _DEGREE + 1)
    return linear_interpolation(points, n_in), to_pixels


class SmoothMaps:
    """Maps at full size, of each zoom; a block of rows on demand.

    Args:
        samples: samples of one image, on a CPU.
        size: width and height of the image, for which `pays` is true.
        statistics: computes n maps, (n, rows, W), of (T, 1 or C, rows, W) probabilities.
        n_variances: how many of them, the last ones, are variances, of which the roots will be taken.
    """

    def __init__(
        self,
        samples: Sequence[LogitSamples],
        size: tuple[int, int],
        statistics: Callable[[Tensor], Tensor],
        n_variances: int = 0,
    ) -> None:
        self._n_variances = n_variances
        width, height = size
        self._width, self._zooms = width, []
        for logits, zoom in samples:
            to_rows, rows = _interpolations(logits.shape[2], height, zoom)
            to_columns, columns = _interpolations(logits.shape[3], width, zoom)
            at_points = Upsampler(logit_maps(logits), to_rows, to_columns)
            self._zooms.append(Upsampler(_compute(at_points, len(logits), statistics), rows, columns))
        self.block_rows = max(1, CPU_BLOCK_VALUES // (sum(zoom.n_columns for zoom in self._zooms) + 3 * width))

    @staticmethod
    def pay(samples: Sequence[LogitSamples], size: tuple[int, int]) -> bool:
        """Whether they are faster than to compute all pixels of the samples."""
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
        """Of each zoom (n, rows, W), the maps of some rows."""
        return [
            torch.mm(*zoom.factors(rows)).view(rows.stop - rows.start, -1, self._width).transpose(0, 1)
            for zoom in self._zooms
        ]


def _compute(at_points: Upsampler, n_samples: int, statistics: Callable[[Tensor], Tensor]) -> Tensor:
    """(h', n, w'), the maps at the points."""
    n_rows, width = len(at_points.rows.matrix), len(at_points.columns.matrix)
    blocks = []
    for begin in range(0, n_rows, _DEGREE):
        rows = slice(begin, min(begin + _DEGREE, n_rows))
        probs = to_probs(torch.mm(*at_points.factors(rows)).view(rows.stop - rows.start, n_samples, -1, width))
        blocks.append(statistics(probs.permute(1, 2, 0, 3)).transpose(0, 1))
    return torch.cat(blocks)
