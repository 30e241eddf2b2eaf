"""Image files: listing, reading every mode, damaged files, and the PNG writer."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from utils.data.images import image_size, list_images, read_image, save_png
from utils.data.masks import read_mask
from utils.runtime.errors import InputError

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [90, 80, 70]]], dtype=np.uint8)


def saved(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


# -- listing -----------------------------------------------------------------------------------------------------------


def test_list_images_ignores_other_files(tmp_path: Path):
    for name in ("b.JPG", "a.png", ".hidden.png", "Thumbs.db", "notes.txt", "sub/c.jpg", ".git/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.name for p in list_images(tmp_path)] == ["a.png", "b.JPG"]
    found = list_images(tmp_path, recursive=True)
    assert [p.relative_to(tmp_path).as_posix() for p in found] == ["a.png", "b.JPG", "sub/c.jpg"]
    assert [p.name for p in list_images(tmp_path, ["jpg"])] == ["b.JPG"]


def test_link_cycle_is_followed_once(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "up").symlink_to(tmp_path)
    (tmp_path / "x.png").touch()
    assert len(list_images(tmp_path, recursive=True)) == 1


@pytest.mark.parametrize(
    ("name", "reason"), [("", "contains no image"), ("no", "no such folder"), ("file", "is a file")]
)
def test_folder_without_images(tmp_path: Path, name: str, reason: str):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=reason) as error:
        list_images(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P", "CMYK", "YCbCr", "LAB"])
def test_8_bit_modes_become_rgb(tmp_path: Path, mode: str):
    image = Image.fromarray(COLOURS)
    image = Image.new("LAB", (2, 2), (200, 128, 128)) if mode == "LAB" else image.convert(mode)
    suffix = ".png" if mode in ("RGB", "RGBA", "L", "LA", "1", "P") else ".tif"
    read = read_image(saved(image, tmp_path / f"x{suffix}"))
    assert (read.mode, read.size) == ("RGB", (2, 2))
    np.testing.assert_allclose(np.asarray(read), np.asarray(image.convert("RGB")), atol=1)


def test_16_bit_and_float_images_are_rescaled(tmp_path: Path):
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
    upright = Image.fromarray(np.kron(COLOURS, np.ones((8, 12, 1), dtype=np.uint8)))  # 24 x 16
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


def test_unreadable_files_raise_input_error(tmp_path: Path):
    intact = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50, 3), dtype=np.uint8)).save(intact, "PNG")
    contents = {"empty.png": b"", "text.jpg": b"hello", "truncated.png": intact.getvalue()[:2000]}
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


# -- writing -----------------------------------------------------------------------------------------------------------


def test_only_uint8_arrays_are_written(tmp_path: Path):
    with pytest.raises(AssertionError, match="uint16"):
        save_png(tmp_path / "x.png", np.ones((2, 2), dtype=np.uint16))
    assert not list(tmp_path.iterdir())


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99), st.booleans(), st.booleans())
@example(16, 16, 0, False, False)
def test_grey_png_round_trip(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, seed: int, transposed: bool, as_image: bool
):
    grey = np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)
    grey = grey.T if transposed else grey  # need not be contiguous
    path = tmp_path_factory.getbasetemp() / "new" / "grey.png"
    save_png(path, Image.fromarray(grey) if as_image else grey)
    with Image.open(path) as image:
        image.verify()  # the checksums
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        assert np.array_equal(np.asarray(image), grey)


def test_map_is_smaller_than_written_by_pillow(tmp_path: Path):
    y, x = np.mgrid[:900, :1200]
    grey = Image.fromarray((255 / (1 + np.exp(np.hypot(x - 600, y - 450) / 21 - 11))).astype(np.uint8))
    save_png(tmp_path / "ours.png", grey)
    grey.save(tmp_path / "pillow.png", compress_level=2)
    ours, pillow = ((tmp_path / name).stat().st_size for name in ("ours.png", "pillow.png"))
    assert ours < pillow
