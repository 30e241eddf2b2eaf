"""The synthetic images: reproducible, and like dermoscopy images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, run_module
from utils.checkpoint import load_model
from utils.data.images import read_image
from utils.data.masks import read_mask
from utils.inference.maps import predict_classes
from utils.inference.predictor import predict
from utils.inference.samplers import Softmax
from utils.metrics.segmentation import segmentation_scores
from utils.sample_data import make_sample

SAMPLES = sorted((ROOT / "data" / "samples" / "imgs").iterdir())


def sample_mask(path: Path) -> np.ndarray:
    return read_mask(path.parent.parent / "masks" / f"{path.stem}_Segmentation.png").codes


@pytest.mark.parametrize("seed", range(20, 24))
def test_samples_depend_on_their_seed_only(seed: int):
    image, mask = make_sample(seed, (120, 90))
    again, mask_again = make_sample(seed, (120, 90))
    other, _ = make_sample(seed + 1, (120, 90))
    assert np.array_equal(image, again)
    assert np.array_equal(mask, mask_again)
    assert not np.array_equal(image, other)
    assert (image.mode, image.size, mask.mode, mask.size) == ("RGB", (120, 90), "L", (120, 90))
    lesion = np.asarray(mask) == 255
    assert set(np.unique(mask)) == {0, 255}
    assert 0.03 < lesion.mean() < 0.6
    pixels = np.asarray(image).astype(float)
    assert pixels[lesion].mean() < pixels[~lesion].mean()  # a lesion is darker than skin


def test_built_in_samples_are_reproducible(tmp_path: Path):
    assert run_module("utils.sample_data", "--output-dir", tmp_path, "--count", 2).returncode == 0
    assert len(SAMPLES) == 9
    for path in SAMPLES[:2]:
        image = np.asarray(read_image(tmp_path / "imgs" / path.name)).astype(int)
        assert abs(image - np.asarray(read_image(path))).mean() < 1  # another version of a JPEG encoder may round
        mask = read_mask(tmp_path / "masks" / f"{path.stem}_Segmentation.png").codes
        assert (mask != sample_mask(path)).mean() < 1e-3


def test_shipped_model_segments_most_samples():
    model = load_model(ROOT / "pretrained_model.pth")
    dices = []
    for path in SAMPLES:
        with Image.open(path) as image:
            classes = predict_classes(predict(model, image, Softmax()).probs).numpy()
        dices.append(segmentation_scores(classes, sample_mask(path) // 255)["dice"])
    assert np.median(dices) > 0.9


@pytest.mark.filterwarnings("error")
def test_far_outside_the_lesion_nothing_overflows():
    _, mask = make_sample(0, (16, 300))
    assert 0 < (np.asarray(mask) > 0).mean() < 0.2
