"""Features of an image's appearance, and clusters by them."""

from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.appearance import link_pairs, row, table
from tests.benchmarks.appearance_features import FEATURES, appearance, clusters, in_words, k_means, standardised
from utils.data.pairing import Pair
from utils.sample_data import make_sample


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray]:
    image, mask = make_sample(3, (128, 96))
    return np.asarray(image, dtype=np.float32) / 255, np.asarray(mask) > 0


def test_features(sample: tuple[np.ndarray, np.ndarray]):
    image, lesion = sample
    plain = appearance(image, lesion)
    assert list(plain) == list(FEATURES)
    assert appearance(0.8 * image, lesion)["brightness"] == pytest.approx(0.8 * plain["brightness"], rel=0.01)
    assert appearance(image * np.float32([1, 1, 0.7]), lesion)["yellowness"] > plain["yellowness"] + 0.2
    assert appearance(image * np.float32([1, 0.8, 1]), lesion)["redness"] > plain["redness"] + 0.1
    assert appearance(image, lesion)["area"] == pytest.approx(lesion.mean() ** 0.5)


def test_features_of_what_is_added(sample: tuple[np.ndarray, np.ndarray]):
    image, lesion = sample
    plain = appearance(image, lesion)
    y, x = np.mgrid[-1:1:96j, -1:1:128j]
    black = image * (np.hypot(x, y) < 1.1)[..., None].astype(np.float32)
    assert appearance(black, lesion)["corners"] > plain["corners"] + 0.3
    sticker = np.where((x > 0.8)[..., None], np.float32([0.1, 0.4, 0.9]), image).astype(np.float32)
    assert appearance(sticker, lesion)["coloured"] > plain["coloured"] + 0.2
    lines = np.where((np.arange(128) % 8 == 0)[None, :, None], 0.8 * image, image)
    assert appearance(lines, lesion)["detail"] > plain["detail"] + 0.5


@pytest.mark.parametrize("filled", [0, 1])
def test_features_without_lesion_or_skin(filled: int):
    image = np.full((32, 32, 3), 0.5, dtype=np.float32)
    assert np.isfinite(list(appearance(image, np.full((32, 32), bool(filled))).values())).all()
    assert np.isfinite(list(appearance(0 * image, np.full((32, 32), bool(filled))).values())).all()


def test_k_means():
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 10]])
    truth = np.repeat([0, 1, 2], [50, 30, 20])
    points = centres[truth] + rng.normal(0, 0.5, (100, 2))
    assert np.array_equal(k_means(points, 3), truth)  # the largest first
    assert np.array_equal(k_means(np.zeros((4, 2)), 2), [0] * 4)


def test_clusters_in_words():
    scores = standardised(np.array([[1.0, 5.0], [3.0, 5.0]]))
    assert np.array_equal(scores, [[-1, 0], [1, 0]])
    rows = [dict.fromkeys(FEATURES, 0.0) | {"corners": corners} for corners in (0.0, 0.0, 0.0, 1.0)]
    labels, words = clusters(rows, 2)
    assert labels.tolist() == [0, 0, 0, 1]
    assert words == ["no vignette (-0.6)", "vignette (+1.7)"]
    assert in_words(np.zeros(len(FEATURES))) == "average"


def test_links(tmp_path: Path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "a.png").touch()
    for _ in range(2):
        imgs, masks = link_pairs([Pair(tmp_path / "a.jpg", (tmp_path / "a.png",))], tmp_path / "links")
        assert [path.resolve() for path in imgs.iterdir()] == [tmp_path / "a.jpg"]
        assert [path.name for path in masks.iterdir()] == ["a.png"]


def test_table():
    text = table([row(0, 3, "vignette", {}) | {"Dice softmax": 0.5}, row(1, 4, "red", {}) | {"Dice softmax": 0.7}])
    assert "| 2 | 4 | red | 0.7 |" in text
    assert "| mean of the clusters | 7 | | 0.6000 |" in text
