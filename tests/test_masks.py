"""Mask files: reading them in every mode, counting their values, drawing classes."""

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from tests.conftest import ROOT, forked
from tests.test_images import COLOURS, saved
from utils import RGB_OFFSET
from utils.data.images import image_size, save_png
from utils.data.mask_values import PALETTE_OFFSET, read_palettes
from utils.data.masks import RawMask, mask_to_image, read_mask
from utils.runtime.errors import InputError

GREY = np.array([[0, 1, 7], [128, 254, 255]], dtype=np.uint8)
RED = RGB_OFFSET + 0xFF0000


def values_of(path: Path) -> list[list[int]]:
    codes, values = read_mask(path)
    return values[codes].tolist()


# -- reading -----------------------------------------------------------------------------------------------------------


def test_mask_values_are_kept(tmp_path: Path):
    assert values_of(saved(Image.fromarray(GREY), tmp_path / "grey.png")) == GREY.tolist()
    rgb = Image.fromarray(np.repeat(GREY[..., None], 3, axis=2))
    assert values_of(saved(rgb, tmp_path / "rgb.png")) == GREY.tolist()
    assert values_of(saved(rgb.convert("RGBA"), tmp_path / "rgba.png")) == GREY.tolist()
    bilevel = Image.fromarray(GREY >= 128)
    assert values_of(saved(bilevel, tmp_path / "bilevel.png")) == [[0, 0, 0], [255, 255, 255]]
    deep = Image.fromarray(np.array([[0, 40000]], dtype=np.uint16))
    assert values_of(saved(deep, tmp_path / "deep.png")) == [[0, 40000]]


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint16])
def test_wide_tiff(tmp_path: Path, dtype: type):
    assert values_of(saved(Image.fromarray(GREY.astype(dtype)), tmp_path / "x.tif")) == GREY.tolist()


def write_64_bit_tiff(
    path: Path, values: np.ndarray, order: str = "<", compression: int = 1, predictor: int = 1
) -> None:
    """A TIFF of one strip, as tifffile writes 64-bit arrays."""
    height, width = values.shape
    kind = 2 if values.dtype.kind == "i" else 3
    tags = [(256, width), (257, height), (258, 64), (259, compression), (262, 1), (273, 200), (277, 1), (278, height)]
    if predictor == 2:
        values = np.diff(values, axis=1, prepend=0)
    strip = values.astype(values.dtype.newbyteorder(order)).tobytes()
    strip = strip if compression == 1 else zlib.compress(strip)
    tags += [(279, len(strip)), (317, predictor), (339, kind)]
    content = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, len(tags))
    content += b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags) + bytes(4)
    path.write_bytes(content.ljust(200, b"\0") + strip)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("dtype", "compression", "predictor"),
    [(np.int64, 1, 1), (np.int64, 8, 1), (np.int64, 32946, 2), (np.float64, 1, 1), (np.float64, 8, 1)],
)
def test_64_bit_tiff(tmp_path: Path, order: str, dtype: type, compression: int, predictor: int):
    write_64_bit_tiff(tmp_path / "x.tif", GREY.astype(dtype), order, compression, predictor)
    assert image_size(tmp_path / "x.tif") == (3, 2)
    assert values_of(tmp_path / "x.tif") == GREY.tolist()


def test_what_is_no_mask(tmp_path: Path):
    with pytest.raises(InputError, match="not integers"):
        read_mask(saved(Image.fromarray(np.array([[0.5]], dtype=np.float32)), tmp_path / "half.tif"))
    with pytest.raises(InputError, match=r"photo\.png has \d+ distinct values.*is it a mask\?"):
        noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
        read_mask(saved(Image.fromarray(noise), tmp_path / "photo.png"))
    write_64_bit_tiff(tmp_path / "x.tif", GREY.astype(np.int64), compression=5)
    with pytest.raises(InputError, match="other than deflate, which cannot be read: save it with 8 or 16 bits"):
        read_mask(tmp_path / "x.tif")


@pytest.mark.parametrize("name", ["x.tif", "x.gif", "x.png"])
def test_stack_of_masks_is_refused(tmp_path: Path, name: str):
    pages = [Image.fromarray(np.roll(GREY, i)) for i in range(2)]
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match=f"{re.escape(name)} has 2 pages or frames of one size, where a single mask"):
        read_mask(tmp_path / name)
    if name == "x.tif":
        pages[0].save(tmp_path / name, save_all=True, append_images=[pages[1].resize((1, 1))])  # a thumbnail
        assert values_of(tmp_path / name) == GREY.tolist()
        content = bytearray(saved(pages[0], tmp_path / name).read_bytes())
        directory = struct.unpack("<I", content[4:8])[0]
        following = directory + 2 + 12 * struct.unpack("<H", content[directory : directory + 2])[0]
        content[following : following + 4] = struct.pack("<I", 9)  # no directory is there
        (tmp_path / name).write_bytes(content)
        assert values_of(tmp_path / name) == GREY.tolist()


def test_each_colour_has_a_value(tmp_path: Path):
    expected = [[RGB_OFFSET + 0xFF0000, RGB_OFFSET + 0xFF00], [RGB_OFFSET + 0xFF, RGB_OFFSET + 0x5A5046]]
    assert values_of(saved(Image.fromarray(COLOURS), tmp_path / "x.png")) == expected


def test_palette_keeps_index_and_colour(tmp_path: Path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode="P")
    image.putpalette([0, 0, 0, 128, 0, 0, 7, 7, 7])
    codes, values = read_mask(saved(image, tmp_path / "x.png"))
    assert read_palettes(values, by_index=True)[codes].tolist() == [[0, 1], [2, 1]]
    dark_red = RGB_OFFSET + 0x800000
    assert read_palettes(values, by_index=False)[codes].tolist() == [[0, dark_red], [7, dark_red]]


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (255, 255, 255)), ("RGBA", (0, 0, 0)), ("LA", (90,))])
def test_shape_in_the_alpha_channel(tmp_path: Path, mode: str, colour: tuple[int, ...]):
    alpha = Image.fromarray(np.array([[0, 255, 128]], dtype=np.uint8))
    image = Image.new(mode, (3, 1), (*colour, 0))
    image.putalpha(alpha)
    assert values_of(saved(image, tmp_path / "x.png")) == [[0, 255, 128]]
    image.putalpha(255)  # opaque: the colour counts
    assert values_of(saved(image, tmp_path / "x.png")) == [[colour[0]] * 3]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.tuples(st.integers(1, 900), st.integers(1, 40)), st.sampled_from([1, 3, 17]))
def test_values_are_counted_one_by_one(seed: int, shape: tuple[int, int], side: int):
    """In masks of areas, and where every pixel differs from its neighbour."""
    coarse = np.random.default_rng(seed).integers(0, 256, [-(-length // side) for length in shape], dtype=np.uint8)
    codes = coarse.repeat(side, axis=0).repeat(side, axis=1)[: shape[0], : shape[1]]
    found, pixels = np.unique(codes, return_counts=True)
    counts = RawMask(codes, np.arange(256)).count()
    assert (counts.values.tolist(), counts.pixels.tolist()) == (found.tolist(), pixels.tolist())
    solid = [(scipy.ndimage.minimum_filter(codes == value, 3, mode="constant")).sum() for value in found]
    assert counts.solid.tolist() == solid


@settings(max_examples=50)
@given(
    arrays(
        st.sampled_from([np.uint8, np.uint16, np.int32]),
        st.tuples(*2 * [st.integers(1, 9)]),
        elements=st.integers(0, 5),
    ),
    st.permutations([0, 7, 255, 65535, RED, RED + 1]),
)
def test_runs_round_trip(codes: np.ndarray, values: list[int]):
    mask = RawMask(codes, np.array(values))
    runs = mask.runs()
    assert runs.lengths.sum() == codes.size
    assert (np.diff(runs.values) > 0).all()
    again = runs.to_mask()
    assert np.array_equal(again.values[again.codes], mask.values[mask.codes])
    assert set(runs.values.tolist()) == set(mask.values[mask.codes].ravel().tolist())
    rows = np.zeros((4, 100), np.uint8)
    rows[2] = 1
    assert [array.tolist() for array in RawMask(rows, np.array([9, 5])).runs()[:2]] == [[1, 0, 1], [200, 100, 100]]


def test_solid_pixels_lie_in_areas_of_one_value(tmp_path: Path):
    mask = np.zeros((6, 9), dtype=np.uint8)
    mask[:4, :4] = 5  # 16 pixels, the middles of four 3x3 areas
    mask[5, 6:] = 9  # thin
    counts = read_mask(saved(Image.fromarray(mask), tmp_path / "x.png")).count()
    assert [array.tolist() for array in counts] == [[0, 5, 9], [35, 16, 3], [9, 4, 0]]


# -- drawing -----------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    st.one_of(
        st.lists(st.integers(0, 255), min_size=2, max_size=6, unique=True),
        st.lists(st.integers(256, 65535), min_size=2, max_size=6, unique=True),
        st.lists(
            st.one_of(st.integers(0, 255), st.integers(1, 255).map(lambda blue: RGB_OFFSET + 0x5000 + blue)),
            min_size=2,
            max_size=6,
            unique=True,
        ),
    ),
    st.integers(0, 99),
)
def test_file_round_trip(tmp_path_factory: pytest.TempPathFactory, values: list[int], seed: int):
    classes = np.random.default_rng(seed).integers(0, len(values), (7, 5))
    classes.flat[: len(values)] = range(len(values))  # every value occurs
    path = tmp_path_factory.getbasetemp() / "round_trip.png"
    save_png(path, mask_to_image(classes, values))
    codes, found = read_mask(path)
    indexed = max(values) < 16
    assert (found[codes] >= PALETTE_OFFSET).all() == indexed
    assert np.array_equal(read_palettes(found, by_index=indexed)[codes], np.array(values)[classes])


def test_small_labels_can_be_seen(tmp_path: Path):
    path = tmp_path / "x.png"
    for values, colours in (
        ([0, 1], [(0, 0, 0), (255, 255, 255)]),
        ([1, 0], [(0, 0, 0), (255, 255, 255)]),  # the background is labelled 1
        ([0, 1, 2], [(0, 0, 0), (128, 0, 0), (0, 128, 0)]),
    ):
        save_png(path, mask_to_image(np.arange(len(values))[None], values))
        with Image.open(path) as image:
            assert (image.mode, np.asarray(image).tolist()) == ("P", [values])
            assert [image.convert("RGB").getpixel((x, 0)) for x in range(len(values))] == colours


def test_class_without_a_value_is_not_drawn():
    with pytest.raises(AssertionError, match="class without a mask value"):
        mask_to_image(np.array([[0, 2]]), [0, 255])


def test_masks_of_every_mode_become_two_classes_as_the_document_says(tmp_path: Path):
    grey = np.array([[0, 1], [128, 255]], np.uint8)
    palette = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8))
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 90, 90, 90])
    colours = COLOURS.copy()
    colours[0, 0] = 0
    opaque = np.full((2, 2, 1), 255, np.uint8)
    images = {
        "grey": grey,
        "deep": grey.astype(np.uint16),
        "rgb": colours,
        "rgba": np.concatenate([colours, opaque], axis=2),
        "la": np.concatenate([grey[..., None], opaque], axis=2),
    }
    (tmp_path / "masks").mkdir()
    for name, image in ({name: Image.fromarray(pixels) for name, pixels in images.items()} | {"p": palette}).items():
        image.save(tmp_path / "masks" / f"{name}.png")
    document = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    program = re.search(r'mkdir lesions && python -c "\n(.*?)"\n', document, re.DOTALL)[1]
    (tmp_path / "lesions").mkdir()
    result = forked(["-c"], tmp_path, lambda: exec(program, {"__name__": "__main__"}))
    assert result.returncode == 0, result.stderr
    written = sorted((tmp_path / "lesions").iterdir())
    assert [path.stem for path in written] == ["deep", "grey", "la", "p", "rgb", "rgba"]
    for path in written:
        assert values_of(path) == [[0, 255], [255, 255]], path
