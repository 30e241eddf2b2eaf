"""The corruptions of `utils.shift`: the same for the same name, stronger with the strength, masks with their images."""

import numpy as np
import pytest
from PIL import Image

from utils import IGNORED_CLASS
from utils.data.corruptions import (
    CORRUPTIONS,
    SHIFT_STRENGTHS,
    colour_temperature,
    corrupt,
    exposure,
    farther,
    nearer,
    rotation,
    sensor_noise,
)
from utils.data.spatial_filters import line_blur
from utils.sample_data import make_sample

GEOMETRIC = ("rotation", "nearer", "farther")
RED = (200, 40, 40)


@pytest.fixture(scope="module")
def sample() -> tuple[Image.Image, np.ndarray]:
    image, mask = make_sample(3, (96, 80))
    return image, (np.asarray(mask) > 0).astype(np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_change_grows_with_strength_and_depends_on_seed_and_name_alone(name: str, sample):
    image, classes = sample
    original, changes = np.asarray(image, dtype=float), []
    for strength in SHIFT_STRENGTHS:
        changed, mask = corrupt(image, classes, name, strength, (0, "a.jpg"))
        again, mask_again = corrupt(image.copy(), classes.copy(), name, strength, (0, "a.jpg"))
        assert changed == again
        assert np.array_equal(mask, mask_again)
        assert (changed.mode, changed.size) == ("RGB", image.size)
        assert (mask.dtype, mask.shape) == (np.uint8, classes.shape)
        assert set(np.unique(mask)) <= {0, 1}
        assert np.array_equal(mask, classes) or name in (*GEOMETRIC, "vignette")
        changes.append(np.abs(np.asarray(changed, dtype=float) - original).mean())
    assert changes[0] > 0
    assert changes == sorted(set(changes))


def test_strength_0_is_the_image_itself(sample):
    image, classes = sample
    unchanged, mask = corrupt(image, classes, "hair", 0, (0, "a.jpg"))
    assert unchanged is image
    assert mask is classes


@pytest.mark.parametrize(
    "name", ["motion blur", "vignette", "sensor noise", "gamma", "colour temperature", "hair", "rotation"]
)
def test_images_and_seeds_differ(name: str, sample):
    keys = [(seed, image) for seed in (0, 1) for image in ("a.jpg", "b.jpg", "c.jpg", "d.jpg")]
    assert len({corrupt(*sample, name, 3, key)[0].tobytes() for key in keys}) > 1


@pytest.mark.parametrize("size", [(90, 60), (60, 90)])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_masks_follow_their_images(name: str, size: tuple[int, int]):
    """A red rectangle on grey: whatever is red is in the mask, and nothing else, but for a pixel at its edges."""
    pixels = np.full((size[1], size[0], 3), 180, dtype=np.uint8)
    classes = np.zeros(pixels.shape[:2], dtype=np.uint8)
    inside = (slice(size[1] // 2 - 14, size[1] // 2 + 6), slice(size[0] // 2 - 4, size[0] // 2 + 18))
    pixels[inside], classes[inside] = RED, 1
    for strength in SHIFT_STRENGTHS:
        changed, mask = corrupt(Image.fromarray(pixels), classes, name, strength, (0, "a.jpg"))
        red = np.abs(np.asarray(changed, dtype=int) - RED).sum(axis=-1) < 150
        edges = np.zeros(mask.shape, dtype=bool)
        for axis in (0, 1):
            edges |= (mask != np.roll(mask, 1, axis)) | (mask != np.roll(mask, -1, axis))
        assert np.array_equal(red[~edges], mask[~edges] > 0), strength
        assert not np.array_equal(mask, classes)


def test_areas_and_positions_by_hand():
    image, classes = np.full((80, 100, 3), 0.7, dtype=np.float32), np.zeros((80, 100), dtype=np.uint8)
    classes[30:50, 40:60] = 1  # 20 x 20 at the centre
    assert nearer(image, classes, 1.5, rng())[1].sum() == 30 * 30
    assert farther(image, classes, 2.0, rng())[1].sum() == 10 * 10
    turned = rotation(image, classes, 45.0, rng())[1]
    assert float(turned.sum()) == pytest.approx(400, rel=0.1)
    assert turned.any(axis=0).sum() == pytest.approx(20 * np.sqrt(2), abs=2)  # a square on its corner


@pytest.mark.parametrize("lesion", [0, 1])
def test_farther_without_lesion_or_skin(lesion: int):
    image, classes = np.full((40, 52, 3), 0.6, dtype=np.float32), np.full((40, 52), lesion, dtype=np.uint8)
    changed, mask = farther(image, classes, 2.0, rng())
    assert mask.sum() == lesion * 20 * 26
    assert np.isfinite(changed).all()
    assert np.allclose(changed[mask > 0], 0.6, atol=1 / 255)


def test_lesions_are_not_mirrored_beyond_the_borders():
    """A dark lesion at the border, of which a mirror image would be beside it."""
    image, classes = np.full((64, 64, 3), 0.8, dtype=np.float32), np.zeros((64, 64), dtype=np.uint8)
    image[24:40, :16], classes[24:40, :16] = 0.2, 1
    changed, mask = farther(image, classes, 2.0, rng())
    assert mask.sum() == 8 * 8
    assert changed[28:36, 17:23].mean() < 0.25
    assert changed[:, :14].min() > 0.7


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_ignored_pixels_stay_ignored(name: str, sample):
    """An image of which no pixel counts has none after any change; others have none of the ignored part."""
    image, classes = sample
    _, mask = corrupt(image, np.full_like(classes, IGNORED_CLASS), name, 5, (0, "a.jpg"))
    assert (mask == IGNORED_CLASS).all()
    half = np.where(np.arange(classes.shape[1]) < 40, IGNORED_CLASS, classes).astype(np.uint8)
    _, mask = corrupt(image, half, name, 5, (0, "a.jpg"))
    _, marked = corrupt(image, (half == IGNORED_CLASS).astype(np.uint8), name, 5, (0, "a.jpg"))
    assert (mask[marked == 1] == IGNORED_CLASS).all()
    if name in ("vignette", "farther"):
        assert (mask == IGNORED_CLASS).sum() > marked.sum()  # also where the marked pixels would be background


def test_dark_corners_that_are_ignored_are_not_moved():
    """Nor are ignored pixels mirrored, since they may be of a lesion: smooth skin is in the places of both."""
    image, classes = np.full((64, 64, 3), 0.8, dtype=np.float32), np.zeros((64, 64), dtype=np.uint8)
    image[24:40, 24:40], classes[24:40, 24:40] = 0.3, 1
    image[:10, :10], classes[:10, :10] = 0.05, IGNORED_CLASS
    image[28:36, :8], classes[28:36, :8] = 0.3, IGNORED_CLASS
    changed, mask = farther(image, classes, 2.0, rng())
    assert changed[:26, :26].min() > 0.7  # the corner and its mirror images
    assert changed[30:34, 12:14].min() > 0.7
    assert changed[30:34, 17:19] == pytest.approx(0.3, abs=0.1)
    assert (mask[11:21, 11:21] == IGNORED_CLASS).all()


def test_light_by_hand():
    image, classes = np.full((4, 4, 3), 0.5, dtype=np.float32), np.zeros((4, 4), dtype=np.uint8)
    brighter = exposure(image, classes, 1.0, rng())[0]
    assert brighter == pytest.approx((2 * 0.5**2.2) ** (1 / 2.2), abs=1e-5)
    assert exposure(brighter, classes, -1.0, rng())[0] == pytest.approx(0.5, abs=1e-5)
    red, green, blue = colour_temperature(image, classes, 150.0, rng())[0][0, 0]
    assert green == pytest.approx(0.5, abs=1e-6)
    assert (red - 0.5) * (blue - 0.5) < 0
    # Wien's law: exp(c2 / wavelength (1 / 6500 K - 1 / T)), relative to that of green.
    gain = np.exp(0.014388 * 150e-6 * (1 / 540e-9 - 1 / 610e-9))
    assert max(red / 0.5, 0.5 / red) ** 2.2 == pytest.approx(gain, rel=1e-3)


def test_noise_is_as_coarse_at_every_size():
    """Of an image of 512 pixels, neighbours differ less than of one of 256 pixels."""
    differences = []
    for side in (256, 512):
        image = np.full((side, side, 3), 0.5, dtype=np.float32)
        changed = sensor_noise(image, np.zeros((side, side), dtype=np.uint8), 0.15, rng())[0]
        assert changed.std() == pytest.approx(0.1, rel=0.3)  # two thirds at this brightness
        differences.append(np.abs(np.diff(changed, axis=1)).mean())
    assert differences[1] < 0.7 * differences[0]


@pytest.mark.parametrize("size", [(257, 300), (300, 400), (384, 512), (1000, 700), (90, 60)])
def test_noise_has_its_standard_deviation_at_every_size(size: tuple[int, int]):
    image, n = np.full((*size, 3), 1.0, dtype=np.float32), 10 if size[0] == 1000 else 40
    noise = np.stack([sensor_noise(image, image[..., 0], 0.01, np.random.default_rng(i))[0] - 1 for i in range(n)])
    assert np.sqrt(2 * (noise**2).mean()) == pytest.approx(0.01, rel=0.02)  # what is above white is cut off
    by_column = np.sqrt(2 * (noise**2).mean(axis=(0, 1, 3)))
    assert by_column.max() / by_column.min() < 1.4


def test_noise_of_256_pixels_is_that_of_the_generator():
    image = np.random.default_rng(0).random((256, 256, 3)).astype(np.float32)
    noise = np.moveaxis(rng().normal(0, 1, (3, 256, 256)).astype(np.float32), 0, -1)
    expected = np.clip(image + 0.2 * (1 + 2 * image) / 3 * noise, 0, 1)
    assert np.array_equal(sensor_noise(image, image[..., 0], 0.2, rng())[0], expected)


def test_line_blur():
    point = np.zeros((41, 41), dtype=np.float32)
    point[20, 20] = 1
    horizontal = line_blur(point, 10.0, 0.0)
    assert horizontal.sum() == pytest.approx(1, abs=1e-4)
    assert horizontal[20, 15:26] == pytest.approx(1 / 11, abs=0.01)
    assert horizontal[19].max() < 0.01
    assert line_blur(point, 10.0, np.pi / 2) == pytest.approx(horizontal.T, abs=1e-5)


@pytest.mark.parametrize(("name", "sign"), [("overexposure", 1), ("underexposure", -1)])
def test_exposure_is_changed_as_its_name_says(name: str, sign: int):
    image = np.full((4, 4, 3), 0.5, np.float32)
    for level in CORRUPTIONS[name].levels:
        assert sign * (exposure(image, image[..., 0], level, None)[0].mean() - 0.5) > 0


@pytest.mark.parametrize("degrees", [0, 30, -60])
def test_line_blur_is_along_its_line(degrees: int):
    """The principal axis of a blurred point; rows count downwards."""
    point = np.zeros((41, 41), np.float32)
    point[20, 20] = 1
    blurred = line_blur(point, 10, np.radians(degrees))
    y, x = np.mgrid[-20:21, -20:21]
    axis = 0.5 * np.arctan2(2 * (x * y * blurred).sum(), ((x**2 - y**2) * blurred).sum())
    assert np.degrees(axis) == pytest.approx(degrees, abs=1)
