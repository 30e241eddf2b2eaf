"""The cache of decoded pairs: what is decoded again, and what happens when it cannot be used."""

import errno
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import make_folders, make_image
from utils.data import cache, decoding, fitting
from utils.data.cache import decode_pairs
from utils.data.decoding import DecodedPairs
from utils.data.images import limit_image_size
from utils.data.pairing import Pair, pair_files
from utils.data_loading import SegmentationDataset
from utils.runtime.errors import InputError


def test_only_changed_files_are_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    imgs, masks = make_folders(tmp_path, 4)
    read = []
    for module, name in ((decoding, "read_image"), (fitting, "read_mask")):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda p, *a, original=original: (read.append(p.name), original(p, *a))[1])

    def decode() -> decoding.DecodedPairs:
        read.clear()
        return decode_pairs(pair_files(imgs, masks), (32, 32), tmp_path / "cache")

    first = decode()
    assert len(read) == 8
    assert isinstance(first.images, np.memmap)
    second = decode()
    assert not read
    assert np.array_equal(first.images, second.images)
    assert np.array_equal(first.masks, second.masks)
    assert all(np.array_equal(a, b) for a, b in zip(second.counts, first.counts, strict=True))

    make_image(99)[0].save(imgs / "SKIN_002.jpg")
    third = decode()
    assert sorted(read) == ["SKIN_002.jpg", "SKIN_002_Segmentation.png"]  # and nothing else
    assert not np.array_equal(third.images[2], second.images[2])
    assert np.array_equal(third.images[3], second.images[3])

    make_image(50)[0].save(imgs / "NEW.jpg")
    Image.fromarray(np.full((120, 160), 7, dtype=np.uint8)).save(masks / "NEW.png")
    fourth = decode()
    assert sorted(read) == ["NEW.jpg", "NEW.png"]
    assert np.array_equal(fourth.images[1:], third.images)
    assert (fourth.masks[0] == 0).all()
    assert [a.tolist() for a in fourth.counts[0]] == [[7], [160 * 120], [158 * 118]]

    mask = Image.fromarray(np.zeros((120, 160), dtype=np.uint8))
    mask.save(masks / "NEW.png")
    fifth = decode()
    assert fifth.mask_classes(2).values == (0, 255)  # nothing remains of the wrong value
    assert len(SegmentationDataset(fifth, range(5), fifth.mask_classes(2))) == 5
    assert [counts.values.tolist() for counts in fifth.counts] == [[0]] + [[0, 255]] * 4
    assert len(list((tmp_path / "cache").iterdir())) == 1  # outdated caches are removed


def test_white_is_kept(tmp_path: Path):
    imgs, masks = make_folders(tmp_path, 2)
    for path in imgs.iterdir():
        grey = np.asarray(Image.open(path).convert("L"))
        Image.fromarray(grey.astype(np.uint16) * 4).save(path.with_suffix(".png"))
        path.unlink()

    def decode(white: float | None = None) -> decoding.DecodedPairs:
        return decode_pairs(pair_files(imgs, masks), (32, 32), tmp_path / "cache", white)

    first = decode()
    assert first.white == 1023
    brighter = decode(white=2046)
    assert brighter.white == 2046
    np.testing.assert_allclose(brighter.images, first.images / 2, atol=1)
    Image.fromarray(np.full((120, 160), 4000, np.uint16)).save(imgs / "SKIN_001.png")
    second = decode()  # also the image that has not changed has another scale
    assert second.white == 4095
    np.testing.assert_allclose(second.images[0], first.images[0] / 4, atol=1)


def test_resized_masks_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    imgs, masks = make_folders(tmp_path, 3)
    for i in range(2):
        path = masks / f"SKIN_00{i}_Segmentation.png"
        Image.open(path).resize((80, 60)).save(path)

    def message() -> str:
        caplog.clear()
        decode_pairs(pair_files(imgs, masks), (32, 32), tmp_path / "cache")
        return next(line for line in caplog.messages if "were resized" in line)

    first = message()
    assert first.startswith("2 masks were resized")
    assert message() == first
    make_image(99)[0].save(imgs / "SKIN_002.jpg")  # the other pairs are not decoded again
    assert message() == first
    assert message() == first


def test_unwritable_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    pairs = pair_files(*make_folders(tmp_path, 2))
    (tmp_path / "file").touch()
    decoded = decode_pairs(pairs, (32, 32), tmp_path / "file" / "cache")
    assert "stay in memory" in caplog.text
    assert decoded.images.shape == (2, 32, 32, 3)
    assert np.array_equal(decoded.images, decode_pairs(pairs, (32, 32), None).images)


@pytest.mark.parametrize("name", ["index.json", "counts.npy", "images.npy"])
@pytest.mark.parametrize("content", ["", "{"])  # after a power failure, a file may be empty
def test_damaged_cache_is_rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str):
    pairs = pair_files(*make_folders(tmp_path, 2))
    first = decode_pairs(pairs, (32, 32), tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob(f"*/{name}")
    file.unlink()  # the first one is still mapped
    file.write_text(content)
    assert np.array_equal(decode_pairs(pairs, (32, 32), tmp_path / "cache").images, first.images)
    monkeypatch.setattr(decoding, "read_image", None)  # the new one is found
    assert np.array_equal(decode_pairs(pairs, (32, 32), tmp_path / "cache").images, first.images)


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    pairs = pair_files(*make_folders(tmp_path, 2))
    monkeypatch.setattr("os.posix_fallocate", full)
    decoded = decode_pairs(pairs, (32, 32), tmp_path / "cache")
    assert not isinstance(decoded.images, np.memmap)
    assert "No space left" in caplog.text
    assert not list((tmp_path / "cache").iterdir())

    caplog.clear()
    monkeypatch.undo()
    monkeypatch.setattr("numpy.save", full)  # when the arrays have been written
    late = decode_pairs(pairs, (32, 32), tmp_path / "cache")
    assert np.array_equal(late.images, decoded.images)
    assert "No space left" in caplog.text
    assert not list((tmp_path / "cache").iterdir())


def test_file_system_that_cannot_reserve_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def unable(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr("os.posix_fallocate", unable, raising=False)
    decoded = decode_pairs(pair_files(*make_folders(tmp_path, 2)), (32, 32), tmp_path / "cache")
    assert isinstance(decoded.images, np.memmap)


def test_another_process_finishes_while_its_folder_is_looked_at(tmp_path: Path):
    pairs = pair_files(*make_folders(tmp_path, 2))
    decode_pairs(pairs, (32, 32), tmp_path / "cache")
    (cache,) = (tmp_path / "cache").iterdir()
    (tmp_path / "cache" / f".{cache.name}.gone.part").symlink_to(tmp_path / "nothing")  # listed, but not to be found
    os.utime(pairs[0].image)
    assert len(decode_pairs(pairs, (32, 32), tmp_path / "cache").pairs) == 2


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="says what is mapped, on Linux only")
def test_nothing_is_mapped_when_a_cache_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Windows renames no folder with files that are mapped."""
    mapped, rename = [], cache.rename

    def look(path: Path, target: Path) -> None:
        mapped.append([line for line in Path("/proc/self/maps").read_text().splitlines() if path.name in line])
        rename(path, target)

    monkeypatch.setattr(cache, "rename", look)
    decoded = decode_pairs(pair_files(*make_folders(tmp_path, 2)), (32, 32), tmp_path / "cache")
    assert isinstance(decoded.images, np.memmap)
    assert mapped == [[]]


def test_a_cache_that_cannot_get_its_name_or_is_removed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    pairs = pair_files(*make_folders(tmp_path, 2))
    expected = decode_pairs(pairs, (32, 32), cache_dir=None)

    def refuse(path: Path, target: Path) -> None:
        raise PermissionError

    for rename in (refuse, lambda path, target: shutil.rmtree(path)):
        monkeypatch.setattr(cache, "rename", rename)
        decoded = decode_pairs(pairs, (32, 32), tmp_path / "cache")
        assert isinstance(decoded.images, np.memmap) == (rename is refuse)
        assert ("cannot be kept" in caplog.text) == (rename is refuse)
        caplog.clear()
        assert (decoded.pairs, decoded.resized) == (pairs, expected.resized)
        np.testing.assert_array_equal(decoded.images, expected.images)
        np.testing.assert_array_equal(decoded.fine_masks, expected.fine_masks)


def test_abandoned_folders_are_removed_after_a_day(tmp_path: Path):
    pairs = pair_files(*make_folders(tmp_path, 2))
    decode_pairs(pairs, (32, 32), tmp_path / "cache")
    (cache,) = (tmp_path / "cache").iterdir()
    for name, age in (("old", 90_000), ("new", 100)):
        (tmp_path / "cache" / f".{cache.name}.{name}.part").mkdir()
        os.utime(tmp_path / "cache" / f".{cache.name}.{name}.part", (time.time() - age,) * 2)
    os.utime(pairs[0].image)
    decode_pairs(pairs, (32, 32), tmp_path / "cache")
    assert [p.name.split(".")[-2] for p in (tmp_path / "cache").glob(".*")] == ["new"]


def test_unusable_pairs_are_listed_and_leave_no_cache(tmp_path: Path):
    imgs, masks = make_folders(tmp_path, 4)
    (imgs / "SKIN_000.jpg").write_bytes(b"no image")
    Image.new("L", (10, 10)).save(masks / "SKIN_002_Segmentation.png")
    noise = np.arange(160 * 120, dtype=np.uint16).reshape(120, 160)
    Image.fromarray(noise).save(masks / "SKIN_003_Segmentation.png")
    with pytest.raises(InputError, match="3 of 4") as error:
        decode_pairs(pair_files(imgs, masks), (32, 32), tmp_path / "cache")
    for words in ("SKIN_000.jpg", "SKIN_002.jpg", "it has 160x120 pixels", "has 10x10", "SKIN_003", "19200 distinct"):
        assert words in str(error.value)
    assert not list((tmp_path / "cache").iterdir())


def mask_values(decoded: DecodedPairs, i: int) -> np.ndarray:
    """The (h, w) values of a mask."""
    return decoded.counts[i].values[decoded.masks[i]]


def test_unusable_pairs_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    imgs, masks = make_folders(tmp_path, 5)
    whole = decode_pairs(pair_files(imgs, masks), (32, 32), tmp_path / "cache")
    content = (imgs / "SKIN_001.jpg").read_bytes()
    (imgs / "SKIN_001.jpg").write_bytes(content[: len(content) * 97 // 100])
    Image.new("L", (10, 10)).save(masks / "SKIN_003_Segmentation.png")
    pairs = pair_files(imgs, masks)
    for reported in ("SKIN_001.jpg", "and are skipped"):  # the second time from the cache
        caplog.clear()
        decoded = decode_pairs(pairs, (32, 32), tmp_path / "cache", skip_unusable=True)
        assert isinstance(decoded.images, np.memmap)
        assert reported in caplog.text
        assert "2 of 5 pairs cannot be used" in caplog.text
        assert decoded.pairs == [pairs[i] for i in (0, 2, 4)]
        assert np.array_equal(decoded.images, whole.images[[0, 2, 4]])
        for row, i in enumerate((0, 2, 4)):
            assert mask_values(decoded, row).tolist() == mask_values(whole, i).tolist()
            assert np.array_equal(decoded.counts[row], whole.counts[i])
    in_memory = decode_pairs(pairs, (32, 32), None, skip_unusable=True)
    assert np.array_equal(in_memory.images, decoded.images)
    with pytest.raises(InputError, match="2 of 5"):  # though the others are in the cache
        decode_pairs(pairs, (32, 32), tmp_path / "cache")
    (imgs / "SKIN_001.jpg").write_bytes(content)
    assert len(decode_pairs(pairs, (32, 32), tmp_path / "cache", skip_unusable=True).pairs) == 4
    with pytest.raises(InputError, match="1 of 1"):
        decode_pairs([pairs[3]], (32, 32), None, skip_unusable=True)


def test_a_higher_limit_is_noticed(tmp_path: Path):
    pairs = pair_files(*make_folders(tmp_path, 2))
    make_image(0, (320, 240))[0].save(pairs[0].image)
    make_image(0, (320, 240))[1].save(pairs[0].masks[0])
    try:
        for limit, usable in ((0.05, 1), (1, 2)):
            limit_image_size(limit)
            assert len(decode_pairs(pairs, (32, 32), tmp_path / "cache", skip_unusable=True).pairs) == usable
    finally:
        limit_image_size()


def test_files_of_one_name_in_several_folders(tmp_path: Path):
    """And of one size and time: each is decoded."""
    pairs = []
    for i, folder in enumerate(("a", "b")):
        for side, value in (("imgs", i * 100), ("masks", i * 255)):
            path = tmp_path / side / folder / "x.bmp"
            path.parent.mkdir(parents=True)
            Image.new("L", (4, 4), value).save(path)
            os.utime(path, (1, 1))
        pairs.append(Pair(tmp_path / "imgs" / folder / "x.bmp", (path,)))
    decode_pairs(pairs[:1], (4, 4), tmp_path / "cache")
    decoded = decode_pairs(pairs, (4, 4), tmp_path / "cache")
    assert decoded.images[:, 0, 0, 0].tolist() == [0, 100]
    assert [int(mask_values(decoded, i)[0, 0]) for i in range(2)] == [0, 255]


def test_masks_of_an_image_on_a_white_background(tmp_path: Path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.jpg")
    masks = [tmp_path / f"a_mask_{i}.png" for i in (1, 2)]
    for i, path in enumerate(masks):
        mask = np.full((32, 32), 255, np.uint8)
        mask[8 * i : 8 * i + 4] = 0  # a lesion of four rows each
        Image.fromarray(mask).save(path)
    rows = {}
    for background in (None, 255, None):
        decoded = decode_pairs(
            [Pair(tmp_path / "a.jpg", tuple(masks))], (32, 32), tmp_path / "cache", None, False, background
        )
        rows[background] = int((decoded.counts[0].values[decoded.masks[0]] == 0).all(axis=1).sum())
    assert rows == {None: 0, 255: 8}


def test_masks_of_an_image_with_ignored_pixels_below_the_background(tmp_path: Path):
    """And the cache of another value is not taken for theirs."""
    Image.new("RGB", (32, 32)).save(tmp_path / "a.jpg")
    masks = [tmp_path / f"a_mask_{i}.png" for i in (1, 2)]
    for i, path in enumerate(masks):
        mask = np.full((32, 32), 128, np.uint8)
        mask[8 * i : 8 * i + 4] = 255 * i  # four rows that are ignored, and four of lesion
        Image.fromarray(mask).save(path)
    pairs = [Pair(tmp_path / "a.jpg", tuple(masks))]
    for ignored, values in ((None, [128, 255]), (0, [0, 128, 255]), (None, [128, 255])):
        decoded = decode_pairs(pairs, (32, 32), tmp_path / "cache", ignored=ignored)
        assert decoded.counts[0].values.tolist() == values
