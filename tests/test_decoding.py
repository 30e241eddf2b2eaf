"""Decoding pairs: the same pixels as Pillow's, EXIF orientation, several classes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import dataset_of, make_folders
from utils.data.cache import decode_pairs
from utils.data.pairing import pair_files
from utils.data.preprocessing import preprocess
from utils.data_loading import SegmentationDataset
from utils.runtime.errors import InputError


def test_decoded_pairs_equal_pillows(tmp_path: Path):
    pairs = pair_files(*make_folders(tmp_path, 3))
    decoded = decode_pairs(pairs, (128, 128), tmp_path / "cache")
    dataset = SegmentationDataset(decoded, [2, 0], decoded.mask_classes(2))
    assert len(dataset) == 2
    image, mask = dataset[0]
    assert (image.dtype, image.shape, mask.dtype, mask.shape) == (torch.uint8, (3, 128, 128), torch.uint8, (128, 128))
    with Image.open(pairs[2].image) as file:
        assert torch.equal(image, preprocess(file, (128, 128)))
    with Image.open(pairs[2].mask) as file:
        nearest = np.asarray(file.resize((128, 128), Image.Resampling.NEAREST))
    assert np.array_equal(mask.numpy() * 255, nearest)


def test_exif_rotated_image_with_an_upright_mask(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "m").mkdir()
    (tmp_path / "i").mkdir()
    Image.new("RGB", (20, 30)).save(tmp_path / "i" / "a.jpg", exif=exif)
    Image.new("L", (30, 20)).save(tmp_path / "m" / "a.png")
    assert len(decode_pairs(pair_files(tmp_path / "i", tmp_path / "m"), (16, 16), None).images) == 1


def test_masks_of_several_classes(tmp_path: Path):
    for folder in ("i", "m"):
        (tmp_path / folder).mkdir()
    for name, row in (("a.png", [0, 0, 5, 5]), ("b.png", [0, 9, 9, 9])):
        Image.new("L", (4, 4)).save(tmp_path / "i" / name)
        Image.fromarray(np.array([row] * 4, dtype=np.uint8)).save(tmp_path / "m" / name)
    decoded = decode_pairs(pair_files(tmp_path / "i", tmp_path / "m"), (4, 4), None)
    dataset = SegmentationDataset(decoded, [0, 1], decoded.mask_classes(3))
    assert dataset[0][1][0].tolist() == [0, 0, 1, 1]
    assert dataset[1][1][0].tolist() == [0, 2, 2, 2]
    with pytest.raises(InputError, match=r"b\.png, for example, contains the value 9"):
        dataset_of(decoded, [0, 1], [0, 5, 6])


def test_masks_of_one_image_are_united_and_resized(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "d").mkdir()
    left = np.zeros((4, 4), dtype=np.uint8)
    left[:, 0] = 255
    Image.new("RGB", (8, 8)).save(tmp_path / "d" / "a.png")
    Image.fromarray(left).save(tmp_path / "d" / "a_mask.png")
    Image.fromarray(np.repeat(np.repeat(left[:, ::-1], 2, 0), 2, 1)).save(tmp_path / "d" / "a_mask_1.png")
    decoded = decode_pairs(pair_files(tmp_path / "d", tmp_path / "d"), (8, 8), None)
    assert decoded.counts[0].values[decoded.masks[0, 3]].tolist() == [255, 255, 0, 0, 0, 0, 255, 255]
    assert decoded.counts[0].pixels.sum() == 64
    assert "1 mask was resized" in caplog.text
    assert "a_mask.png has 4x4" in caplog.text
