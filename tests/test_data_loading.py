"""The dataset: loading two folders, the split, the items, their transforms, small lesions."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import dataset_of, make_folders
from utils.data import fitting
from utils.data.cache import decode_pairs
from utils.data.class_shares import class_shares
from utils.data.lesions import largest_shares
from utils.data.mask_classes import MaskClasses, MaskOptions
from utils.data.masks import read_mask
from utils.data.pairing import pair_files
from utils.data.wild_transforms import WildTransforms
from utils.data_loading import SegmentationDataset, indices_not_held_out, split_indices
from utils.runtime.errors import InputError


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
        (10, -1, "must be at least 0 and below 100, not -1"),
        (10, 100, "must be at least 0 and below 100, not 100"),
    ],
)
def test_impossible_split(n: int, percent: float, reason: str):
    with pytest.raises(InputError, match=reason):
        split_indices(n, percent, 0)


@pytest.mark.parametrize("n", [1, 5])
def test_no_validation_percentage_validates_on_the_training_images(n: int):
    assert split_indices(n, 0, seed=3) == (list(range(n)), list(range(n)))


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=80), st.floats(0.1, 99.9), st.integers(0, 2**40))
def test_split_keeps_groups_together(groups: list[str], percent: float, seed: int):
    if len(set(groups)) == 1:
        with pytest.raises(InputError, match="of one group"):
            split_indices(len(groups), percent, seed, groups)
        return
    train, validation = split_indices(len(groups), percent, seed, groups)
    assert sorted(train + validation) == list(range(len(groups)))
    assert train
    assert validation
    assert {groups[i] for i in train}.isdisjoint(groups[i] for i in validation)
    assert (train, validation) == split_indices(len(groups), percent, seed, groups)


def test_groups_of_equal_size_are_held_out_by_percentage():
    groups = [f"patient {i // 7}" for i in range(63)]
    train, validation = split_indices(63, 33, 0, groups)  # 21 images
    assert (len(train), len(validation)) == (42, 21)
    assert split_indices(63, 33, 0, groups) != split_indices(63, 33, 1, groups)


def test_images_that_are_held_out_are_not_trained_on(tmp_path: Path):
    pairs = pair_files(*make_folders(tmp_path / "all", 4))
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "SKIN_001.jpg").symlink_to(pairs[1].image)
    held_out = pair_files(tmp_path / "val", tmp_path / "all" / "masks")
    assert indices_not_held_out(pairs, held_out) == [0, 2, 3]
    assert indices_not_held_out(pairs, pair_files(*make_folders(tmp_path / "others", 4))) == [0, 1, 2, 3]
    with pytest.raises(InputError, match="all 4 images to train on are validation images"):
        indices_not_held_out(pairs, pairs)


def test_masks_of_ignored_pixels_alone_are_not_without_a_lesion(tmp_path: Path):
    imgs, masks = make_folders(tmp_path, 3)
    for i, values in enumerate([(0, 7), (7,), (0, 255)]):
        mask = np.resize(np.repeat(np.uint8(values), 40), (120, 160))
        Image.fromarray(mask).save(masks / f"SKIN_{i:03d}_Segmentation.png")
    decoded = decode_pairs(pair_files(imgs, masks), (32, 32), None)
    classes = decoded.mask_classes(2, MaskOptions(ignored=7))
    counts = [SegmentationDataset(decoded, [i], classes) for i in range(3)]
    assert [(data.n_counted, data.n_without_lesion) for data in counts] == [(1, 1), (0, 0), (1, 0)]
    every = SegmentationDataset(decoded, range(3), classes)
    assert (every.n_counted, every.n_without_lesion) == (2, 1)


def test_seed_determines_the_transform_and_the_random_state_is_restored(tmp_path: Path):
    decoded = decode_pairs(pair_files(*make_folders(tmp_path, 1)), (32, 32), None)

    def add_noise(image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return image + torch.randint(0, 200, (1,)).byte(), mask

    dataset = dataset_of(decoded, [0], [0, 255], add_noise)
    state = torch.get_rng_state()
    assert torch.equal(dataset[(0, 5)][0], dataset[(0, 5)][0])
    assert not torch.equal(dataset[(0, 5)][0], dataset[(0, 6)][0])
    assert torch.equal(torch.get_rng_state(), state)
    assert len({tuple(dataset[0][0].flatten().tolist()) for _ in range(8)}) > 1


@pytest.mark.parametrize("cached", [True, False])
def test_cached_dataset_is_pickled_without_its_arrays(tmp_path: Path, cached: bool):
    pairs = pair_files(*make_folders(tmp_path, 12, (40, 40)))
    decoded = decode_pairs(pairs, (128, 128), tmp_path / "cache" if cached else None)
    plain = dataset_of(decoded, range(12), [0, 255])
    dataset = plain.with_transform(WildTransforms(others=plain, other_skin=1, other_amplitudes=1))
    content = pickle.dumps(dataset)
    assert (len(content) < 100_000) == cached  # the arrays are 2.6 MB
    assert len(content) < 3_000_000  # and there once
    copy = pickle.loads(content)
    (image, shares), (expected_image, expected_shares), (unchanged, mask) = copy[(5, 1)], dataset[(5, 1)], plain[5]
    assert torch.equal(image, expected_image)
    assert torch.equal(shares, expected_shares)
    assert not torch.equal(image, unchanged)
    assert not torch.equal(shares, class_shares(mask, 2))


def small_lesions(folder: Path) -> tuple[Path, Path]:
    """Images of 200x100 pixels: large lesions, one of 3 pixels, none, and small ones of two classes."""
    imgs, masks = folder / "imgs", folder / "masks"
    for path in (imgs, masks):
        path.mkdir()
    drawn = np.zeros((4, 100, 200), dtype=np.uint8)
    drawn[0, 20:80, 20:150] = 1
    drawn[0, :20, :50] = 2
    drawn[1, 53, 119:122] = 1  # at 20x10 pixels one of them is in column 11, two are in column 12
    drawn[3, 0, 0], drawn[3, 2, 1:3] = 2, 1  # both in the first pixel, which the class leaves that has another one
    drawn[3, 9, 199] = 1
    for i, mask in enumerate(drawn):
        Image.fromarray(np.full((100, 200, 3), 90, np.uint8)).save(imgs / f"{i}.png")
        Image.fromarray(mask).save(masks / f"{i}.png")
    return imgs, masks


@pytest.mark.parametrize("cached", [True, False])
def test_a_lesion_keeps_the_pixel_with_its_largest_share(tmp_path: Path, cached: bool):
    pairs = pair_files(*small_lesions(tmp_path))
    decoded = decode_pairs(pairs, (20, 10), tmp_path / "cache" if cached else None)
    dataset = dataset_of(decoded, [1, 2, 3, 0], [0, 1, 2])
    assert dataset.n_without_lesion == 1
    assert dataset.kept == {1: [(5 * 20 + 12, 1)], 3: [(0, 2), (19, 1)]}
    masks = [dataset[i][1].numpy() for i in range(4)]
    assert [np.argwhere(mask).tolist() for mask in masks[:3]] == [[[5, 12]], [], [[0, 0], [0, 19]]]
    assert [masks[0][5, 12], masks[2][0, 0], masks[2][0, 19]] == [1, 2, 1]
    assert np.array_equal(masks[3], decoded.masks[0])  # a mask that keeps its lesion is not changed
    other = dataset_of(decoded, [0, 2], [0, 1, 2])
    assert (other.n_without_lesion, other.kept) == (1, {})
    shares = [dataset.with_transform(lambda image, shares: (image, shares))[i][1] for i in range(3)]
    for mask, (_, *of_classes) in zip(masks[:3], shares, strict=True):  # the whole pixel, for the network, too
        assert [np.argwhere(values.numpy() == 1).tolist() for values in of_classes] == [
            np.argwhere(mask == k).tolist() for k in (1, 2)
        ]


def test_a_lesion_that_only_half_of_the_resolution_shows_keeps_a_pixel(tmp_path: Path):
    """Of 1 pixel, in the middle of one of 20x10 pixels, but of none of 40x20, of which training sees the shares."""
    imgs, masks = small_lesions(tmp_path)
    drawn = np.zeros((100, 200), np.uint8)
    drawn[55, 125] = 1
    Image.fromarray(drawn).save(masks / "1.png")
    dataset = dataset_of(decode_pairs(pair_files(imgs, masks), (20, 10), None), [1], [0, 1, 2])
    assert dataset.absent == [2]
    _, (_, *of_classes) = dataset.with_transform(lambda image, shares: (image, shares))[0]
    for k, share in enumerate(of_classes, start=1):
        assert np.array_equal(share.numpy() == 1, dataset[0][1].numpy() == k)
        assert share.sum() == (k == 1)


def test_training_sees_the_shares_of_the_classes(tmp_path: Path):
    """Of four pixels: a lesion covers three quarters of two of them, and half of another one is ignored."""
    for name in ("imgs", "masks"):
        (tmp_path / name).mkdir()
    drawn = np.array([[0, 1, 1, 1], [1, 1, 1, 0], [255, 255, 0, 0], [0, 0, 0, 0]], np.uint8)
    Image.fromarray(np.full((4, 4, 3), 90, np.uint8)).save(tmp_path / "imgs" / "a.png")
    Image.fromarray(drawn).save(tmp_path / "masks" / "a.png")
    decoded = decode_pairs(pair_files(tmp_path / "imgs", tmp_path / "masks"), (2, 2), None)
    dataset = SegmentationDataset(decoded, [0], MaskClasses((0, 1), ignored=255))
    _, shares = dataset.with_transform(lambda image, shares: (image, shares))[0]
    assert shares.tolist() == [[[0, 0], [0.5, 0]], [[0.75, 0.75], [0, 0]]]


def test_kept_pixels_are_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pairs = pair_files(*small_lesions(tmp_path))
    first = dataset_of(decode_pairs(pairs, (20, 10), tmp_path / "cache"), [1], [0, 1, 2])
    read = []
    monkeypatch.setattr(fitting, "read_mask", lambda path: (read.append(path.name), read_mask(path))[1])
    decoded = decode_pairs(pairs, (20, 10), tmp_path / "cache")
    again = dataset_of(decoded, [1], [0, 1, 2])
    assert first.kept == again.kept == {1: [(5 * 20 + 12, 1)]}
    assert read == []
    assert dataset_of(decoded, [1, 3], [0, 1, 2]).kept[3] == [(0, 2), (19, 1)]
    assert read == ["3.png"]
    other = dataset_of(decoded, [1, 3], [0, 2, 1])  # values with another meaning
    assert other.kept[1] == [(5 * 20 + 12, 2)]
    assert dataset_of(decoded, [1, 3], [0, 1, 2]).kept == again.kept | {3: [(0, 2), (19, 1)]}


def test_a_small_lesion_keeps_the_pixel_that_covers_most_of_it():
    classes = np.array([[0], [1], [0], [0]], np.uint8)
    assert largest_shares(classes, np.zeros((3, 1), np.uint8), [1]) == [(1, 1)]
