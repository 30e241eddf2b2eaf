"""The corruptions of the benchmark: shapes, determinism, strengths, ground truth."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.benchmarks.corruptions import CLEAN, CORRUPTIONS, STRENGTHS, Results, Variant, rows, table, variants
from tests.benchmarks.small_lesions import extrapolated, grown, largest_square, small_lesion, texture
from utils.data.corruptions import defocus, lens_vignette
from utils.data.spatial_filters import disc_blur, gaussian_blur
from utils.metrics.pixel_counter import count_pixels
from utils.metrics.uncertainty import entropy
from utils.sample_data import make_sample


@pytest.fixture(scope="module")
def sample() -> tuple[Image.Image, np.ndarray]:
    image, mask = make_sample(3, (128, 96))
    return image, (np.asarray(mask) > 0).astype(np.uint8)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32) / 255


def test_all_variants(sample: tuple[Image.Image, np.ndarray]):
    first, second = (list(variants(*sample, "a")) for _ in range(2))
    assert len(first) == 1 + len(CORRUPTIONS) * len(STRENGTHS)
    assert (first[0].corruption, first[0].strength) == (CLEAN, 0)
    for one, other in zip(first, second, strict=True):
        assert one.image == other.image
        assert np.array_equal(one.classes, other.classes)
        assert one.image.size == sample[0].size
        assert one.classes.shape == sample[1].shape
        assert one.classes.dtype == np.uint8
    others = variants(*sample, "b")
    differing = [one.corruption for one, other in zip(first, others, strict=True) if one.image != other.image]
    assert {"ruler", "ink", "hair", "tone curve", "skin colour", "small lesion"} <= set(differing)


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "small lesion"])
def test_strength_increases_the_change(name: str, sample: tuple[Image.Image, np.ndarray]):
    image, classes = pixels(sample[0]), sample[1]
    changes = []
    for strength in STRENGTHS:
        changed, _ = CORRUPTIONS[name](image, classes, strength, np.random.default_rng(5))
        assert changed.dtype == np.float32
        assert changed.min() >= 0
        assert changed.max() <= 1
        changes.append(np.abs(changed - image).mean())
    assert changes[0] > 0
    assert changes == sorted(changes)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_small_lesion(strength: int, sample: tuple[Image.Image, np.ndarray]):
    image, classes = pixels(sample[0]), sample[1]
    small, moved = small_lesion(image, classes, strength, np.random.default_rng(1))
    assert moved.mean() == pytest.approx((0.1, 0.05, 0.025, 0.01, 0.005)[strength - 1], rel=0.2)
    where, surroundings = moved > 0, grown(moved > 0, 8) & ~grown(moved > 0, 3)
    assert small[where].mean() < small[surroundings].mean() - 0.05  # the lesion is where its mask is
    assert np.isfinite(small).all()
    assert np.abs(small[~grown(where, 3)].mean(axis=0) - image[~grown(classes > 0, 3)].mean(axis=0)).max() < 0.1


def test_small_lesion_without_skin_or_lesion():
    image, rng = np.full((32, 32, 3), 0.5, dtype=np.float32), np.random.default_rng(0)
    assert small_lesion(image, np.zeros((32, 32), dtype=np.uint8), 1, rng) is None
    assert small_lesion(image, np.ones((32, 32), dtype=np.uint8), 1, rng) is None
    across = np.zeros((32, 32), dtype=np.uint8)
    across[10:20] = 1
    assert small_lesion(image, across, 1, rng) is None


def test_lesions_end_at_the_vignette():
    image, classes = np.ones((64, 64, 3), dtype=np.float32), np.ones((64, 64), dtype=np.uint8)
    changed, visible = lens_vignette(image, classes, 0.88, np.random.default_rng(0))
    assert 0.5 < visible.mean() < 0.7
    assert changed[visible == 0].max() < 0.6 < changed[32, 32].min()


def test_filters():
    point = np.zeros((33, 41), dtype=np.float32)
    point[16, 20] = 1
    for blurred in (gaussian_blur(point, 2.0), disc_blur(point, 4.0)):
        assert blurred.sum() == pytest.approx(1, abs=1e-4)
        assert np.unravel_index(blurred.argmax(), blurred.shape)[0] in range(12, 21)
    assert gaussian_blur(point, 2.0)[16, 20] == pytest.approx(1 / (8 * np.pi), rel=0.01)
    assert disc_blur(point, 4.0)[16, 20] == pytest.approx(1 / (np.pi * 16), rel=0.1)
    constant = np.full((16, 17, 3), 0.3, dtype=np.float32)
    assert np.allclose(defocus(constant, point, 9.0, np.random.default_rng(0))[0], 0.3, atol=1e-5)


def test_skin():
    region = np.zeros((60, 60), dtype=bool)
    region[10:40, 20:50] = True
    top, left, side = largest_square(region)
    assert region[top : top + side, left : left + side].mean() >= 0.98
    assert side >= 24
    filled = extrapolated(np.full((60, 60, 3), 0.4, dtype=np.float32), region, 3.0)
    assert np.allclose(filled, 0.4, atol=1e-3)
    residual = np.random.default_rng(0).normal(0, 0.1, (60, 60, 3)).astype(np.float32)
    assert texture(residual, region, np.random.default_rng(0)).std() == pytest.approx(0.1, rel=0.15)


def test_table_and_rows(sample: tuple[Image.Image, np.ndarray]):
    results, target = Results(), torch.from_numpy(sample[1])
    probs = torch.full((2, *target.shape), 0.5)
    counts = count_pixels(probs, entropy(probs), target)
    results.add(Variant(CLEAN, 0, *sample), 0.9, counts)
    for strength in STRENGTHS:
        results.add(Variant("ink", strength, *sample), strength / 10, counts)
    text = table({("m.pth", "softmax"): results})
    assert "| m.pth | softmax | ink | 0.100 | 0.200 | 0.300 | 0.400 | 0.500 | 0.300 | 1 |" in text
    assert "mean Dice 0.3000 over all corruptions and strengths, NLL 0.693" in text
    assert [row["dice"] for row in rows({("m.pth", "softmax"): results})] == [0.9, 0.1, 0.2, 0.3, 0.4, 0.5]
