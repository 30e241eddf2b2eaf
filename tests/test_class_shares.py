"""The shares of classes in pixels of the network's resolution."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from utils import IGNORED_CLASS
from utils.data.class_shares import class_shares


def test_shares_by_hand():
    classes = torch.tensor([[0, 1, 2, 2], [1, 1, 2, IGNORED_CLASS]], dtype=torch.uint8)
    assert class_shares(classes, 3, side=2).tolist() == [[[0, 0.25]], [[0.75, 0]], [[0, 0.75]]]
    each = class_shares(classes, 3)
    assert each.argmax(dim=0)[each.any(dim=0)].tolist() == [1, 2, 2, 1, 1, 2, 0]


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_shares_are_means_over_squares(seed: int, side: int):
    classes = np.random.default_rng(seed).integers(0, 2, (3 * side, 5 * side), dtype=np.uint8)
    shares = class_shares(torch.from_numpy(classes), 2, side)[1]
    means = Image.fromarray(classes.astype(np.float32)).resize((5, 3), Image.Resampling.BOX)
    np.testing.assert_allclose(shares, np.asarray(means), atol=1e-6)
