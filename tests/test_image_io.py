"""Reading images and masks of every kind, and writing files whole or not at all."""

import errno
import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from utils.errors import InputError
from utils.image_io import (
    RGB_VALUE,
    image_size,
    list_images,
    mask_image,
    npy_file,
    read_image,
    read_mask,
    save_png,
    whole_file,
    write_csv,
)

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [90, 80, 70]]], dtype=np.uint8)


def saved(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def test_list_images_passes_over_strangers(tmp_path: Path):
    for name in ("b.JPG", "a.png", ".hidden.png", "Thumbs.db", "notes.txt", "sub/c.jpg", ".git/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.name for p in list_images(tmp_path)] == ["a.png", "b.JPG"]
    found = list_images(tmp_path, recursive=True)
    assert [p.relative_to(tmp_path).as_posix() for p in found] == ["a.png", "b.JPG", "sub/c.jpg"]
    assert [p.name for p in list_images(tmp_path, ["jpg"])] == ["b.JPG"]


def test_folders_without_images_are_named(tmp_path: Path):
    (tmp_path / "circle" / "deep").mkdir(parents=True)
    (tmp_path / "circle" / "deep" / "up").symlink_to(tmp_path / "circle")
    (tmp_path / "circle" / "x.png").touch()
    assert len(list_images(tmp_path / "circle", recursive=True)) == 1
    (tmp_path / "file").touch()
    for path, word in (
        (tmp_path, "has no image"),
        (tmp_path / "no", "no such folder"),
        (tmp_path / "file", "is a file"),
    ):
        with pytest.raises(InputError, match=word) as error:
            list_images(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P", "CMYK", "YCbCr", "LAB"])
def test_every_8_bit_mode_becomes_rgb(tmp_path: Path, mode: str):
    image = Image.fromarray(COLOURS)
    image = Image.new("LAB", (2, 2), (200, 128, 128)) if mode == "LAB" else image.convert(mode)
    ending = "png" if mode in ("RGB", "RGBA", "L", "LA", "1", "P") else "tif"
    read = read_image(saved(image, tmp_path / f"x.{ending}"))
    assert (read.mode, read.size) == ("RGB", (2, 2))
    np.testing.assert_allclose(np.asarray(read), np.asarray(image.convert("RGB")), atol=1)


def test_16_bit_and_floating_point_images_are_scaled(tmp_path: Path):
    grey = np.array([[0, 257, 65535], [32896, 128, 129]], dtype=np.uint16)
    read = read_image(saved(Image.fromarray(grey), tmp_path / "x.png"))
    assert np.asarray(read)[..., 0].tolist() == [[0, 1, 255], [128, 0, 1]]
    unit = np.array([[0, 0.5, 1]], dtype=np.float32)
    read = read_image(saved(Image.fromarray(unit), tmp_path / "x.tif"))
    assert np.asarray(read)[..., 0].tolist() == [[0, 128, 255]]
    with pytest.raises(InputError, match="0 to 1"):
        read_image(saved(Image.fromarray(unit * 3), tmp_path / "y.tif"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int):
    upright = Image.fromarray(np.kron(COLOURS[:, :, :], np.ones((8, 12, 1), dtype=np.uint8)))  # 24 x 16
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = upright if stored is None else upright.transpose(stored)
    path = saved(image, tmp_path / "x.png", exif=exif)
    assert read_image(path).size == image_size(path) == (24, 16)
    assert np.array_equal(np.asarray(read_image(path)), np.asarray(upright))


def test_unreadable_files_are_one_kind_of_error(tmp_path: Path):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50, 3), dtype=np.uint8)).save(whole, "PNG")
    contents = {"empty.png": b"", "text.jpg": b"hello", "cut.png": whole.getvalue()[:2000]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        for read in (read_image, read_mask):
            with pytest.raises(InputError, match=name):
                read(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(InputError):
        read_image(tmp_path)


@settings(max_examples=150)
@given(st.integers(0, 2000), st.binary(min_size=1, max_size=20), st.sampled_from(["PNG", "JPEG", "TIFF", "BMP"]))
def test_damaged_files_never_crash(tmp_path_factory: pytest.TempPathFactory, at: int, noise: bytes, kind: str):
    buffer = io.BytesIO()
    Image.fromarray(COLOURS.repeat(9, axis=0).repeat(9, axis=1)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    at %= len(content)
    content[at : at + len(noise)] = noise
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    path.write_bytes(content)
    for read in (read_image, read_mask, image_size):
        try:
            read(path)
        except InputError as error:
            assert "damaged" in str(error)


def test_masks_keep_their_values(tmp_path: Path):
    grey = np.array([[0, 1, 7], [128, 254, 255]], dtype=np.uint8)
    assert read_mask(saved(Image.fromarray(grey), tmp_path / "grey.png")).tolist() == grey.tolist()
    rgb = Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
    assert read_mask(saved(rgb, tmp_path / "rgb.png")).tolist() == grey.tolist()
    assert read_mask(saved(rgb.convert("RGBA"), tmp_path / "rgba.png")).tolist() == grey.tolist()
    bilevel = Image.fromarray(grey >= 128)
    assert read_mask(saved(bilevel, tmp_path / "bilevel.png")).tolist() == [[0, 0, 0], [255, 255, 255]]
    deep = Image.fromarray(np.array([[0, 40000]], dtype=np.uint16))
    assert read_mask(saved(deep, tmp_path / "deep.png")).tolist() == [[0, 40000]]
    with pytest.raises(InputError, match="whole numbers"):
        read_mask(saved(Image.fromarray(np.array([[0.5]], dtype=np.float32)), tmp_path / "half.tif"))


def test_coloured_masks_have_a_value_for_each_colour(tmp_path: Path):
    mask = read_mask(saved(Image.fromarray(COLOURS), tmp_path / "x.png"))
    expected = [[RGB_VALUE + 0xFF0000, RGB_VALUE + 0xFF00], [RGB_VALUE + 0xFF, RGB_VALUE + 0x5A5046]]
    assert mask.tolist() == expected


def test_palette_masks_mean_the_index_unless_the_palette_is_grey(tmp_path: Path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode="P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    assert read_mask(saved(image, tmp_path / "colours.png")).tolist() == [[0, 1], [2, 1]]
    image.putpalette([0, 0, 0, 255, 255, 255, 7, 7, 7])
    assert read_mask(saved(image, tmp_path / "greys.png")).tolist() == [[0, 255], [7, 255]]
    image.putpalette([0, 0, 0, 255, 255, 255, 7, 7, 7, 255, 0, 0])  # a colour that this file does not use
    assert read_mask(saved(image, tmp_path / "unused.png")).tolist() == [[0, 1], [2, 1]]


def test_a_colour_has_the_same_value_in_every_file(tmp_path: Path):
    black, red = (0, 0, 0), (255, 0, 0)
    both, empty = Image.new("RGB", (2, 1), black), Image.new("RGB", (2, 1), black)
    both.putpixel((1, 0), red)
    assert read_mask(saved(both, tmp_path / "both.png")).tolist() == [[0, RGB_VALUE + 0xFF0000]]
    assert read_mask(saved(empty, tmp_path / "empty.png")).tolist() == [[0, 0]]


@settings(max_examples=40)
@given(
    st.one_of(
        st.lists(st.integers(0, 255), min_size=2, max_size=6, unique=True),
        st.lists(st.integers(256, 65535), min_size=2, max_size=6, unique=True),
        st.lists(
            st.one_of(st.integers(0, 255), st.integers(1, 255).map(lambda blue: RGB_VALUE + 0x5000 + blue)),
            min_size=2,
            max_size=6,
            unique=True,
        ),
    ),
    st.integers(0, 99),
)
def test_masks_make_a_round_trip(tmp_path_factory: pytest.TempPathFactory, values: list[int], seed: int):
    classes = np.random.default_rng(seed).integers(0, len(values), (7, 5))
    classes.flat[: len(values)] = range(len(values))  # every value occurs
    path = tmp_path_factory.getbasetemp() / "round.png"
    save_png(path, mask_image(classes, values))
    assert np.array_equal(read_mask(path), np.array(values)[classes])


def test_wrong_pixels_are_not_drawn(tmp_path: Path):
    with pytest.raises(AssertionError, match="class without a value"):
        mask_image(np.array([[0, 2]]), [0, 255])
    with pytest.raises(AssertionError, match="uint16"):
        save_png(tmp_path / "x.png", np.ones((2, 2), dtype=np.uint16))
    assert not list(tmp_path.iterdir())


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99), st.booleans(), st.booleans())
@example(16, 16, 0, False, False)
def test_grey_png_is_written_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, seed: int, turned: bool, as_image: bool
):
    grey = np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)
    grey = grey.T if turned else grey  # need not be contiguous
    path = tmp_path_factory.getbasetemp() / "new" / "grey.png"
    save_png(path, Image.fromarray(grey) if as_image else grey)
    with Image.open(path) as image:
        image.verify()  # the check sums
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        assert np.array_equal(np.asarray(image), grey)


def test_a_map_is_packed_better_than_by_pillow(tmp_path: Path):
    y, x = np.mgrid[:900, :1200]
    grey = Image.fromarray((255 / (1 + np.exp(np.hypot(x - 600, y - 450) / 21 - 11))).astype(np.uint8))
    save_png(tmp_path / "ours.png", grey)
    grey.save(tmp_path / "pillow.png", compress_level=2)
    ours, pillow = ((tmp_path / name).stat().st_size for name in ("ours.png", "pillow.png"))
    assert ours < pillow


def test_nothing_is_left_of_a_file_that_was_not_finished(tmp_path: Path):
    path = tmp_path / "x.txt"
    with whole_file(path) as file:
        file.write(b"first")
        assert not path.exists()
    with pytest.raises(RuntimeError), whole_file(path) as file:
        file.write(b"second")
        raise RuntimeError
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_npy_in_pieces(tmp_path: Path):
    array = np.random.default_rng(0).random((5, 2, 30, 40)).astype(np.float32)
    pieces = [(t, c, row) for t in range(5) for c in range(2) for row in range(0, 30, 10)]
    with npy_file(tmp_path / "x.npy", array.shape) as write, ThreadPoolExecutor(4) as pool:
        for t, c, row in reversed(pieces):
            piece = array[t, c, row : row + 10]
            begin = np.ravel_multi_index((t, c, row, 0), array.shape)
            pool.submit(write, piece.T.copy().T, begin)  # pieces need not be contiguous
    read = np.load(tmp_path / "x.npy")
    assert read.dtype == np.float32
    assert np.array_equal(read, array)


def test_npy_on_a_full_disk_says_so_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def failing(code: int) -> Callable:
        def reserve(*_: int) -> None:
            raise OSError(code, os.strerror(code))

        return reserve

    monkeypatch.setattr(os, "posix_fallocate", failing(errno.ENOSPC), raising=False)
    with pytest.raises(OSError, match=r"No space.*x\.npy"), npy_file(tmp_path / "x.npy", (2, 3)):
        pytest.fail("something was computed")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.EOPNOTSUPP), raising=False)
    with npy_file(tmp_path / "x.npy", (2, 3)) as write:
        write(np.ones((2, 3)), 0)
    assert np.load(tmp_path / "x.npy").sum() == 6


def test_csv(tmp_path: Path):
    write_csv(tmp_path / "x.csv", [{"image": "a, b.jpg", "dice": 0.5}, {"image": "ü.jpg", "dice": 1.0}])
    write_csv(tmp_path / "y.csv", [{"image": os.fsdecode(b"l\xe9sion.jpg")}])  # a name that is not UTF-8
    assert (tmp_path / "y.csv").read_bytes() == b"image\nl\xe9sion.jpg\n"
    assert (tmp_path / "x.csv").read_text(encoding="utf-8") == 'image,dice\n"a, b.jpg",0.5\nü.jpg,1.0\n'
