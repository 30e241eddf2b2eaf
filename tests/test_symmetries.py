"""The symmetries of the square, and their inverses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.inference.symmetries import N_SYMMETRIES, apply_symmetry, invert_symmetry


def test_symmetries_are_distinct():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    views = {tuple(apply_symmetry(x, k).flatten().tolist()) for k in range(N_SYMMETRIES)}
    assert N_SYMMETRIES == 8
    assert len(views) == 8


@given(st.integers(0, N_SYMMETRIES - 1), st.integers(1, 9), st.lists(st.integers(1, 3), max_size=3), st.integers(0, 99))
def test_symmetries_round_trip(k: int, n: int, leading: list[int], seed: int):
    x = torch.rand(*leading, n, n, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(invert_symmetry(apply_symmetry(x, k), k), x)
    assert torch.equal(apply_symmetry(invert_symmetry(x, k), k), x)


@pytest.mark.parametrize("k", range(N_SYMMETRIES))
def test_symmetry_against_numpy(k: int):
    x = np.arange(9).reshape(3, 3)
    expected = np.rot90(np.fliplr(x) if k >= 4 else x, k % 4)
    assert apply_symmetry(torch.from_numpy(x), k).tolist() == expected.tolist()


def test_symmetries_by_hand():
    x = torch.tensor([[1, 2], [3, 4]])
    assert apply_symmetry(x, 0).tolist() == [[1, 2], [3, 4]]
    assert apply_symmetry(x, 1).tolist() == [[2, 4], [1, 3]]  # anticlockwise
    assert apply_symmetry(x, 4).tolist() == [[2, 1], [4, 3]]  # left-right
    assert apply_symmetry(x, 6).tolist() == [[3, 4], [1, 2]]  # upside down
