"""Image files: listing, reading every mode, damaged files, and the PNG writer."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from utils.data.images import find_white, image_size, limit_image_size, list_images, read_image, save_png
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


def test_folder_with_images_in_sub_folders_only(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    with pytest.raises(InputError, match="no image outside its sub-folders") as error:
        list_images(tmp_path)
    assert error.value.options == ("recursive",)
    with pytest.raises(InputError, match="contains no image \\(") as error:
        list_images(tmp_path, recursive=True)
    assert error.value.options == ()


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


@pytest.mark.parametrize(
    ("largest", "white"),
    [(200, 255), (1023, 1023), (1024, 4095), (4080, 4095), (4096, 16383), (40000, 65535)],
)
def test_white_is_that_of_the_bit_depth_of_all_images(
    tmp_path: Path, largest: int, white: int, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    dim, bright = (np.array([[0, value]], dtype=np.uint16) for value in (100, largest))
    paths = [saved(Image.fromarray(dim), tmp_path / "dim.png"), saved(Image.fromarray(bright), tmp_path / "bright.tif")]
    paths += [saved(Image.new("L", (2, 2), 9), tmp_path / "8_bits.png"), tmp_path / "missing.png"]
    assert find_white(paths) == white
    (line,) = caplog.messages
    assert line == f"2 16-bit images with values up to {largest}: {white.bit_length()} bits, white is {white}"
    for path, value in ((paths[0], 100), (paths[1], largest)):
        assert np.asarray(read_image(path, white))[0, :, 0].tolist() == [0, round(value * 255 / white)]
    caplog.clear()
    find_white(paths[1:])
    assert caplog.messages[0].startswith("1 16-bit image with values up to ")
    assert find_white(paths[2:]) is None


def test_colours_of_twelve_bits_are_refused(tmp_path: Path):
    """Pillow reads the upper 8 of 16 bits per channel, in which 12 bits are nearly black."""

    def write_png(largest: int) -> Path:
        def chunk(kind: bytes, body: bytes) -> bytes:
            return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
        rows = b"\0" + np.array([0, 0, 0, largest, largest, largest], dtype=">u2").tobytes()
        content = header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
        return tmp_path / "x.png"

    with pytest.raises(InputError, match=r"x\.png has 16 bits per channel with values of at most 14 bits"):
        read_image(write_png(4095))
    assert np.asarray(read_image(write_png(65535)))[0, :, 0].tolist() == [0, 255]


def test_values_above_white(tmp_path: Path):
    path = saved(Image.fromarray(np.array([[0, 4096]], dtype=np.uint16)), tmp_path / "x.png")
    with pytest.raises(InputError, match="0 to 4096, where 0 to 4095 was expected") as error:
        read_image(path, 4095)
    assert error.value.options == ("white",)


def test_16_bit_and_float_images_are_rescaled(tmp_path: Path):
    grey = np.array([[0, 257, 65535], [32896, 128, 129]], dtype=np.uint16)
    read = read_image(saved(Image.fromarray(grey), tmp_path / "x.png"))
    assert np.asarray(read)[..., 0].tolist() == [[0, 1, 255], [128, 0, 1]]
    unit = np.array([[0, 0.5, 1]], dtype=np.float32)
    read = read_image(saved(Image.fromarray(unit), tmp_path / "x.tif"))
    assert np.asarray(read)[..., 0].tolist() == [[0, 128, 255]]
    beside_others = read_image(tmp_path / "x.tif", white=4095)  # of 16-bit images
    assert np.array_equal(beside_others, read)
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


def test_large_jpegs_may_be_decoded_smaller(tmp_path: Path):
    """As they would be reduced afterwards, upright, with no side below the given length; other formats as they are."""
    ramp = np.linspace(0, 255, 320 * 640).reshape(320, 640).astype(np.uint8)
    image, exif = Image.fromarray(np.stack([ramp, ramp.T.reshape(320, 640), 255 - ramp], axis=-1)), Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    path = saved(image, tmp_path / "a.jpg", quality=95, exif=exif)
    whole = read_image(path)
    for side, factor in ((80, 4), (81, 2), (160, 2), (161, 1)):
        reduced = read_image(path, side=side)
        assert reduced.size == (320 // factor, 640 // factor)
        assert abs(np.asarray(reduced, dtype=int) - np.asarray(whole.reduce(factor))).mean() < 2
    assert read_image(saved(image, tmp_path / "a.png"), side=80).size == (640, 320)


def test_odd_exif(tmp_path: Path):
    """ImageDescription is a RATIONAL, where text belongs: the image is turned by its orientation all the same."""
    entries = struct.pack("<HHII", 0x10E, 5, 1, 38) + struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4) + struct.pack("<II", 1, 2)
    for extension in ("jpg", "png", "webp"):
        path = saved(Image.new("RGB", (24, 16)), tmp_path / f"x.{extension}", exif=exif)
        assert read_image(path).size == image_size(path) == (16, 24)
    path = saved(Image.new("RGB", (24, 16)), tmp_path / "damaged.jpg", exif=b"Exif\0\0II*\0" + bytes(3))
    assert read_image(path).size == image_size(path) == (24, 16)


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_tiff_is_turned_once(tmp_path: Path, orientation: int, mode: str):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.kron(COLOURS, np.ones((8, 12, 1), dtype=np.uint8))).convert(mode)
    path = saved(image, tmp_path / "x.tif", exif=exif)
    upright = image.rotate({3: 180, 6: 270}[orientation], expand=True)
    assert np.array_equal(np.asarray(read_image(path)), np.asarray(upright.convert("RGB")))
    assert image_size(path) == upright.size


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


def test_limit_of_the_image_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    Image.new("L", (1000, 700)).save(tmp_path / "x.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        limit_image_size(0.6)
        with pytest.raises(InputError, match=r"x.png has more than 0.6 megapixels: raise the limit") as error:
            read_image(tmp_path / "x.png")
        assert error.value.options == ("max_megapixels",)
        limit_image_size(0.8)  # Pillow alone would warn from half of it on
        assert read_image(tmp_path / "x.png").size == (1000, 700)
