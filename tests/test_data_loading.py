"""The dataset: loading two folders, the split, the items and their transforms (test_batch_sampler.py: batches)."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import make_folders
from utils.data.augmentation import TrainingTransforms
from utils.data.cache import decode_pairs
from utils.data.pairing import pair_files
from utils.data_loading import SegmentationDataset, load_pairs, split_indices
from utils.runtime.errors import InputError


def test_load_pairs(tmp_path: Path):
    folders = make_folders(tmp_path, 2)
    expected = decode_pairs(pair_files(*folders), (24, 16), None)
    for _ in range(2):
        loaded = load_pairs(*folders, (24, 16), tmp_path / "cache")
        assert loaded.pairs == expected.pairs
        assert isinstance(loaded.images, np.memmap)
        assert np.array_equal(loaded.images, expected.images)
        assert np.array_equal(loaded.masks, expected.masks)


@given(st.integers(2, 500), st.floats(0.1, 99.9), st.integers(0, 2**40))
def test_split_is_a_reproducible_partition(n: int, percent: float, seed: int):
    train, validation = split_indices(n, percent, seed)
    assert sorted(train + validation) == list(range(n))
    assert train
    assert validation
    assert abs(len(validation) - n * percent / 100) <= 1
    assert (train, validation) == split_indices(n, percent, seed)


@pytest.mark.parametrize(
    ("n", "percent", "reason"),
    [
        (1, 15, "too few"),
        (10, 0, "must be above 0 and below 100, not 0"),
        (10, 100, "must be above 0 and below 100, not 100"),
    ],
)
def test_impossible_split(n: int, percent: float, reason: str):
    with pytest.raises(InputError, match=reason):
        split_indices(n, percent, 0)


def test_seed_determines_the_transform_and_the_random_state_is_restored(tmp_path: Path):
    decoded = decode_pairs(pair_files(*make_folders(tmp_path, 1)), (32, 32), None)

    def add_noise(image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return image + torch.randint(0, 200, (1,)).byte(), mask

    dataset = SegmentationDataset(decoded, [0], [0, 255], add_noise)
    state = torch.get_rng_state()
    assert torch.equal(dataset[(0, 5)][0], dataset[(0, 5)][0])
    assert not torch.equal(dataset[(0, 5)][0], dataset[(0, 6)][0])
    assert torch.equal(torch.get_rng_state(), state)
    assert len({tuple(dataset[0][0].flatten().tolist()) for _ in range(8)}) > 1


@pytest.mark.parametrize("cached", [True, False])
def test_cached_dataset_is_pickled_without_its_arrays(tmp_path: Path, cached: bool):
    pairs = pair_files(*make_folders(tmp_path, 12, (40, 40)))
    decoded = decode_pairs(pairs, (128, 128), tmp_path / "cache" if cached else None)
    dataset = SegmentationDataset(decoded, range(12), [0, 255], TrainingTransforms())
    content = pickle.dumps(dataset)
    assert (len(content) < 100_000) == cached  # the images are 590 kB
    copy = pickle.loads(content)
    for a, b in zip(copy[(5, 1)], dataset[(5, 1)], strict=True):
        assert torch.equal(a, b)
