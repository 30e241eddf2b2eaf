"""The symmetries of the square, the dihedral group D4."""

import torch
from torch import Tensor

N_SYMMETRIES = 8


def apply_symmetry(x: Tensor, k: int) -> Tensor:
    """Apply the k-th D4 symmetry, 0 <= k < 8: a left-right flip for k >= 4, then k % 4 quarter turns.

    Args:
        x: (..., n, n).
    """
    return torch.rot90(x.flip(-1) if k >= 4 else x, k % 4, (-2, -1))


def invert_symmetry(x: Tensor, k: int) -> Tensor:
    """Invert `apply_symmetry`."""
    rotated = torch.rot90(x, -(k % 4), (-2, -1))
    return rotated.flip(-1) if k >= 4 else rotated
