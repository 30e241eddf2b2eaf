"""Pairs, mask values, the cache and the dataset."""

import logging
import os
import pickle
import time
from pathlib import Path, PurePath

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import make_folders, make_picture
from utils import data_loading
from utils.augmentation import TrainingTransforms
from utils.data_loading import (
    SegmentationDataset,
    class_table,
    decode_pairs,
    find_masks,
    infer_mask_values,
    mask_to_classes,
    pair_files,
    preprocess,
    split_indices,
)
from utils.errors import InputError
from utils.image_io import RGB_VALUE


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.new("L", (4, 4)).save(folder / name)
    return folder


# -- pairs


def test_pairs_by_stem_whatever_the_mask_is_called(tmp_path: Path):
    imgs = touch(tmp_path / "i", "a.jpg", "b.png", "c.d.tif", "e_segmentation.jpg", "e.jpg")
    masks = touch(tmp_path / "m", "a.png", "b_Segmentation.png", "c.d_segmentation.png", "e_segmentation.png", "e.bmp")
    (imgs / "Thumbs.db").touch()
    (masks / ".a.png").touch()
    (imgs / "sub").mkdir()
    names = [(pair.image.name, pair.mask.name) for pair in pair_files(imgs, masks)]
    assert names == [
        ("a.jpg", "a.png"),
        ("b.png", "b_Segmentation.png"),
        ("c.d.tif", "c.d_segmentation.png"),
        ("e.jpg", "e.bmp"),
        ("e_segmentation.jpg", "e_segmentation.png"),
    ]


def test_one_error_names_everything_that_does_not_pair(tmp_path: Path):
    imgs = touch(tmp_path / "i", "alone.jpg", "twice.jpg", "twice.png", "two_masks.jpg", "good.jpg", "small.jpg")
    Image.new("L", (5, 5)).save(touch(tmp_path / "m") / "small.gif")
    masks = touch(
        tmp_path / "m", "stranger.png", "twice.png", "two_masks.png", "two_masks_Segmentation.png", "good.png"
    )
    with pytest.raises(InputError) as error:
        pair_files(imgs, masks)
    message = str(error.value)
    for words in ("alone.jpg: no mask", "twice: 2 images", "two_masks: 2 masks", "stranger.png: no image"):
        assert words in message
    assert "good" not in message
    assert "small.jpg has 4x4 pixels, its mask small.gif has 5x5" in message


def test_masks_of_images_in_sub_folders(tmp_path: Path):
    touch(tmp_path, "a_Segmentation.png", "unused.png")
    touch(tmp_path / "s", "a.png")
    names = [PurePath("a.jpg"), PurePath("s/a.jpg")]
    assert find_masks(names, tmp_path) == {
        names[0]: tmp_path / "a_Segmentation.png",
        names[1]: tmp_path / "s" / "a.png",
    }
    with pytest.raises(InputError, match=r"b\.jpg: no mask\n  nowhere/c\.jpg: no mask"):
        find_masks([PurePath("b.jpg"), PurePath("nowhere/c.jpg")], tmp_path)
    with pytest.raises(InputError, match="no such folder of masks"):
        find_masks(names, tmp_path / "nowhere")
    touch(tmp_path, "x.png", "x_segmentation.png")
    pairs = find_masks([PurePath("x.jpg"), PurePath("x_segmentation.jpg")], tmp_path)
    assert [path.name for path in pairs.values()] == ["x.png", "x_segmentation.png"]


# -- preprocessing


def test_preprocess_is_pillows_bicubic_resize():
    image = make_picture(0, (300, 200))[0]
    expected = np.asarray(image.resize((128, 96), Image.Resampling.BICUBIC))
    got = preprocess(image, (128, 96))
    assert (got.dtype, got.shape) == (torch.uint8, (3, 96, 128))
    assert np.array_equal(got.permute(1, 2, 0).numpy(), expected)
    assert preprocess(image.convert("L"), (8, 8)).shape == (3, 8, 8)


# -- mask values


def infer(values: list[dict[int, int]], n_classes: int) -> list[int]:
    found = sorted({value for counts in values for value in counts}, reverse=True)  # in any order
    table = np.array([[counts.get(value, 0) for value in found] for counts in values], dtype=np.int32)
    return infer_mask_values(found, table, [f"{i}.png" for i in range(len(values))], n_classes)


def test_values_in_order_become_classes():
    assert infer([{255: 3, 0: 5}], 2) == [0, 255]
    assert infer([{1: 3}, {7: 5}], 1) == [1, 7]
    assert infer([{0: 9, 4: 1}, {2: 1}], 3) == [0, 2, 4]


def test_soft_edges_of_two_classes_are_cut_at_half(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    assert infer([{0: 700, 100: 50, 200: 50, 255: 200}], 2) == [0, 255]
    assert "soft edges" in caplog.text
    mask = np.array([[0, 100, 127], [128, 200, 255]])
    assert mask_to_classes(mask, [0, 255], "m.png").tolist() == [[0, 0, 0], [1, 1, 1]]


def test_three_classes_are_not_taken_for_soft_edges():
    for counts in ({0: 90, 1: 5, 2: 5}, {0: 400, 128: 300, 255: 300}):
        with pytest.raises(InputError, match="--classes 3"):
            infer([counts], 2)


def test_a_value_without_a_class_names_file_and_value():
    with pytest.raises(InputError, match=r"1\.png has the value 9.*--classes 4"):
        infer([{0: 50, 1: 20, 2: 30}, {0: 90, 9: 1}], 3)
    with pytest.raises(InputError, match="too few for 3 classes"):
        infer([{0: 5, 1: 5}], 3)
    with pytest.raises(InputError, match="too few"):
        infer([{0: 5}], 2)
    with pytest.raises(InputError, match=r"x\.png has the value 5"):
        class_table([0, 5], [0, 1, 2], "x.png")


def test_a_mask_of_other_values_is_not_taken_for_an_empty_one():
    with pytest.raises(InputError, match=r"x\.png has the value 1.*0, 255"):
        class_table([0, 1], [0, 255], "x.png")
    with pytest.raises(InputError, match="255"):
        class_table([0, 255], [0, 1], "x.png")
    with pytest.raises(InputError, match="which no class has"):  # between a grey and a colour there is no edge
        class_table([0, RGB_VALUE + 5], [0, RGB_VALUE + 255], "x.png")
    assert class_table([0], [0, 255], "x.png") == {0: 0}
    assert class_table([255], [0, 255], "x.png") == {255: 1}


def test_colours_are_written_as_colours():
    red = (1 << 24) + 0xFF0000
    assert infer([{0: 5, red: 5}], 2) == [0, red]
    with pytest.raises(InputError, match=r"\(255, 0, 0\)"):
        infer([{0: 5, 1: 5, red: 1}], 2)


@given(st.lists(st.integers(0, 2**25), min_size=2, max_size=9, unique=True), st.integers(0, 99))
def test_classes_and_values_make_a_round_trip(values: list[int], seed: int):
    classes = np.random.default_rng(seed).integers(0, len(values), (6, 5))
    assert np.array_equal(mask_to_classes(np.array(values)[classes], values, "x"), classes)


# -- the cache


def test_decoded_pairs_are_what_pillow_makes_of_the_files(tmp_path: Path):
    pairs = pair_files(*make_folders(tmp_path, 3))
    decoded = decode_pairs(pairs, (128, 128), tmp_path / "cache")
    dataset = SegmentationDataset(decoded, [2, 0], decoded.mask_values(2))
    assert len(dataset) == 2
    image, mask = dataset[0]
    assert (image.dtype, image.shape, mask.dtype, mask.shape) == (torch.uint8, (3, 128, 128), torch.uint8, (128, 128))
    with Image.open(pairs[2].image) as file:
        assert torch.equal(image, preprocess(file, (128, 128)))
    with Image.open(pairs[2].mask) as file:
        nearest = np.asarray(file.resize((128, 128), Image.Resampling.NEAREST))
    assert np.array_equal(mask.numpy() * 255, nearest)


def test_a_second_run_decodes_nothing_and_a_changed_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    imgs, masks = make_folders(tmp_path, 4)
    read = []
    for name in ("read_image", "read_mask"):
        original = getattr(data_loading, name)
        monkeypatch.setattr(data_loading, name, lambda p, original=original: (read.append(p.name), original(p))[1])

    def decode() -> data_loading.DecodedPairs:
        read.clear()
        return decode_pairs(pair_files(imgs, masks), (32, 32), tmp_path / "cache")

    first = decode()
    assert len(read) == 8
    assert isinstance(first.images, np.memmap)
    second = decode()
    assert not read
    assert np.array_equal(first.images, second.images)
    assert np.array_equal(first.masks, second.masks)
    assert np.array_equal(second.counts, first.counts)

    make_picture(99)[0].save(imgs / "SKIN_002.jpg")
    third = decode()
    assert sorted(read) == ["SKIN_002.jpg", "SKIN_002_Segmentation.png"]  # and nothing else
    assert not np.array_equal(third.images[2], second.images[2])
    assert np.array_equal(third.images[3], second.images[3])

    make_picture(50)[0].save(imgs / "NEW.jpg")
    Image.fromarray(np.full((120, 160), 7, dtype=np.uint8)).save(masks / "NEW.png")
    fourth = decode()
    assert sorted(read) == ["NEW.jpg", "NEW.png"]
    assert np.array_equal(fourth.images[1:], third.images)
    assert fourth.values[fourth.masks[0, 0, 0]] == 7
    assert fourth.counts[0].sum() == 160 * 120

    mask = Image.fromarray(np.zeros((120, 160), dtype=np.uint8))
    mask.save(masks / "NEW.png")
    fifth = decode()
    assert sorted(fifth.values) == [0, 255]  # nothing is left of the value that was a mistake
    assert len(SegmentationDataset(fifth, range(5), fifth.mask_values(2))) == 5
    assert [fifth.values[entry] for entry in np.unique(fifth.masks[1:])] == fifth.values
    assert len(list((tmp_path / "cache").iterdir())) == 1  # what is outdated is gone


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    pairs = pair_files(*make_folders(tmp_path, 2))
    (tmp_path / "file").touch()
    decoded = decode_pairs(pairs, (32, 32), tmp_path / "file" / "cache")
    assert "in memory" in caplog.text
    assert decoded.images.shape == (2, 32, 32, 3)
    assert np.array_equal(decoded.images, decode_pairs(pairs, (32, 32), None).images)


def test_a_damaged_cache_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pairs = pair_files(*make_folders(tmp_path, 2))
    first = decode_pairs(pairs, (32, 32), tmp_path / "cache")
    (index,) = (tmp_path / "cache").glob("*/index.json")
    index.write_text("{")
    assert np.array_equal(decode_pairs(pairs, (32, 32), tmp_path / "cache").images, first.images)
    monkeypatch.setattr(data_loading, "read_image", None)  # the new one is found
    assert np.array_equal(decode_pairs(pairs, (32, 32), tmp_path / "cache").images, first.images)


def test_a_full_disk_is_met_with_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    pairs = pair_files(*make_folders(tmp_path, 2))
    monkeypatch.setattr("os.posix_fallocate", full)
    decoded = decode_pairs(pairs, (32, 32), tmp_path / "cache")
    assert not isinstance(decoded.images, np.memmap)
    assert "No space left" in caplog.text
    assert not list((tmp_path / "cache").iterdir())


def test_what_a_killed_process_was_building_is_removed_after_a_day(tmp_path: Path):
    pairs = pair_files(*make_folders(tmp_path, 2))
    decode_pairs(pairs, (32, 32), tmp_path / "cache")
    (done,) = (tmp_path / "cache").iterdir()
    for name, age in (("old", 90_000), ("new", 100)):
        (tmp_path / "cache" / f".{done.name}.{name}.part").mkdir()
        os.utime(tmp_path / "cache" / f".{done.name}.{name}.part", (time.time() - age,) * 2)
    os.utime(pairs[0].image)
    decode_pairs(pairs, (32, 32), tmp_path / "cache")
    assert [p.name.split(".")[-2] for p in (tmp_path / "cache").glob(".*")] == ["new"]


def test_pairs_that_cannot_be_used_are_all_named_and_leave_no_cache(tmp_path: Path):
    imgs, masks = make_folders(tmp_path, 4)
    (imgs / "SKIN_000.jpg").write_bytes(b"no image")
    Image.new("L", (10, 10)).save(masks / "SKIN_002_Segmentation.png")
    noise = np.arange(160 * 120, dtype=np.uint16).reshape(120, 160)
    Image.fromarray(noise).save(masks / "SKIN_003_Segmentation.png")
    with pytest.raises(InputError, match="3 of 4") as error:
        decode_pairs(pair_files(imgs, masks), (32, 32), tmp_path / "cache")
    for words in ("SKIN_000.jpg", "SKIN_002.jpg has 160x120 pixels", "has 10x10", "SKIN_003", "more than 256"):
        assert words in str(error.value)
    assert not list((tmp_path / "cache").iterdir())


def test_images_turned_by_exif_pair_with_upright_masks(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    touch(tmp_path / "m", "a.png")
    (tmp_path / "i").mkdir()
    Image.new("RGB", (20, 30)).save(tmp_path / "i" / "a.jpg", exif=exif)
    Image.new("L", (30, 20)).save(tmp_path / "m" / "a.png")
    assert len(decode_pairs(pair_files(tmp_path / "i", tmp_path / "m"), (16, 16), None).images) == 1


def test_masks_of_several_classes(tmp_path: Path):
    touch(tmp_path / "i", "a.png", "b.png")
    (tmp_path / "m").mkdir()
    Image.fromarray(np.array([[0, 0, 5, 5]] * 4, dtype=np.uint8)).save(tmp_path / "m" / "a.png")
    Image.fromarray(np.array([[0, 9, 9, 9]] * 4, dtype=np.uint8)).save(tmp_path / "m" / "b.png")
    decoded = decode_pairs(pair_files(tmp_path / "i", tmp_path / "m"), (4, 4), None)
    dataset = SegmentationDataset(decoded, [0, 1], decoded.mask_values(3))
    assert dataset[0][1][0].tolist() == [0, 0, 1, 1]
    assert dataset[1][1][0].tolist() == [0, 2, 2, 2]
    with pytest.raises(InputError, match=r"b\.png has the value 9"):
        SegmentationDataset(decoded, [0, 1], [0, 5, 6])


# -- the dataset


@given(st.integers(2, 500), st.floats(0.1, 99.9), st.integers(0, 2**40))
def test_split_loses_nothing_and_repeats(n: int, percent: float, seed: int):
    train, validation = split_indices(n, percent, seed)
    assert sorted(train + validation) == list(range(n))
    assert train
    assert validation
    assert abs(len(validation) - n * percent / 100) <= 1
    assert (train, validation) == split_indices(n, percent, seed)


def test_split_refuses_what_cannot_be_split():
    for n, percent, word in ((1, 15, "too few"), (10, 0, "--validation"), (10, 100, "--validation")):
        with pytest.raises(InputError, match=word):
            split_indices(n, percent, 0)


def test_a_seed_repeats_an_items_transform_and_leaves_the_random_state_alone(tmp_path: Path):
    decoded = decode_pairs(pair_files(*make_folders(tmp_path, 1)), (32, 32), None)

    def noisy(image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return image + torch.randint(0, 200, (1,)).byte(), mask

    dataset = SegmentationDataset(decoded, [0], [0, 255], noisy)
    state = torch.get_rng_state()
    assert torch.equal(dataset[(0, 5)][0], dataset[(0, 5)][0])
    assert not torch.equal(dataset[(0, 5)][0], dataset[(0, 6)][0])
    assert torch.equal(torch.get_rng_state(), state)
    assert len({tuple(dataset[0][0].flatten().tolist()) for _ in range(8)}) > 1


@pytest.mark.parametrize("cached", [True, False])
def test_a_dataset_goes_to_worker_processes_without_its_arrays(tmp_path: Path, cached: bool):
    pairs = pair_files(*make_folders(tmp_path, 12, (40, 40)))
    decoded = decode_pairs(pairs, (128, 128), tmp_path / "cache" if cached else None)
    dataset = SegmentationDataset(decoded, range(12), [0, 255], TrainingTransforms())
    content = pickle.dumps(dataset)
    assert (len(content) < 100_000) == cached  # the images are 590 kB
    again = pickle.loads(content)
    for a, b in zip(again[(5, 1)], dataset[(5, 1)], strict=True):
        assert torch.equal(a, b)
