"""A labelled folder: its masks, and the metrics of its predictions."""

import csv
import json
from pathlib import Path, PurePath

import numpy as np
import pytest
import sklearn.metrics
from PIL import Image

from tests.conftest import make_folders
from utils import IGNORED_CLASS
from utils.checkpoint import TrainedModel
from utils.data.images import IMAGE_EXTENSIONS
from utils.data.mask_classes import MaskClasses
from utils.data.masks import read_mask
from utils.inference.predictor import Prediction
from utils.inference.samplers import MCDropout
from utils.pipeline import ground_truth as ground_truth_module
from utils.pipeline.ground_truth import GroundTruth
from utils.pipeline.items import Item, find_items
from utils.pipeline.probability_maps import ProbabilityMapOptions, predict_probabilities
from utils.runtime.errors import InputError


def test_set_metrics_equal_those_of_all_pixels(tmp_path: Path, trained: TrainedModel):
    imgs, masks = make_folders(tmp_path, 5, (60, 44))
    (masks / "SKIN_003_Segmentation.png").write_bytes(b"")  # fails: the image is predicted, but not counted
    out = tmp_path / "o"
    options = ProbabilityMapOptions(mask_dir=masks, save_npy=True)
    items = find_items(imgs, out, IMAGE_EXTENSIONS)
    assert len(predict_probabilities(trained, MCDropout(num_samples=4), items, out, options).failures) == 1
    result = json.loads((out / "metrics.json").read_text())
    assert (result["images"], result["pixels"]) == (4, 4 * 60 * 44)
    assert result["run"]["method"] == "MC dropout, 4 passes"
    probs, targets = [], []
    for i in (0, 1, 2, 4):
        probs.append(np.load(out / f"SKIN_00{i}_OUT_mean.npy")[1].ravel())
        targets.append(np.asarray(Image.open(masks / f"SKIN_00{i}_Segmentation.png")).ravel() > 0)
    p, y = np.concatenate(probs).astype(float), np.concatenate(targets)
    assert result["calibration"]["brier"]["value"] == pytest.approx(sklearn.metrics.brier_score_loss(y, p), abs=1e-6)
    assert result["calibration"]["nll"]["value"] == pytest.approx(sklearn.metrics.log_loss(y, p), abs=1e-6)
    uncertainty, wrong = np.minimum(p, 1 - p), (p > 0.5) != y
    auroc = sklearn.metrics.roc_auc_score(wrong, uncertainty)
    assert result["errors"]["error_auroc"]["value"] == pytest.approx(auroc, abs=1e-4)
    with open(out / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, p, y in zip(rows, probs, targets, strict=True):
        assert float(row["brier"]) == pytest.approx(sklearn.metrics.brier_score_loss(y, p), abs=1e-6)
    with open(out / "summary.csv", newline="") as file:
        confidences = [float(row["soft_dice_confidence"]) for row in csv.DictReader(file)]
    assert confidences == sorted(confidences)
    assert len(confidences) == 5


def test_images_of_one_name(tmp_path: Path):
    make_folders(tmp_path, 1, (20, 16))
    items = [Item(tmp_path / folder / "SKIN_000.jpg", PurePath("SKIN_000.jpg")) for folder in ("imgs", "other")]
    with pytest.raises(InputError, match=r"imgs/SKIN_000\.jpg and .*other/SKIN_000\.jpg have the same name"):
        GroundTruth(items, tmp_path / "masks", MaskClasses((0, 255)))
    assert (
        len(GroundTruth([items[0]] * 2, tmp_path / "masks", MaskClasses((0, 255))).paths) == 1
    )  # the same image twice


def test_void_of_a_healthy_image_is_ignored_if_the_user_says_so(tmp_path: Path):
    """Of 0 and 255 alone, 255 is the object that a model has learnt as 1, though it has recorded 255 as ignored."""
    imgs, masks = make_folders(tmp_path, 1, (20, 16))
    Image.fromarray(np.pad(np.zeros((12, 20), np.uint8), ((4, 0), (0, 0)), constant_values=255)).save(
        masks / "SKIN_000_Segmentation.png"
    )
    items, recorded = find_items(imgs, tmp_path / "o", IMAGE_EXTENSIONS), MaskClasses((0, 1), 255)
    for ignore_value, expected in ((None, 1), (255, IGNORED_CLASS)):
        ground_truth = GroundTruth(items, masks, recorded, ignore_value)
        assert ground_truth.ignore_value == ignore_value
        target = ground_truth.read(items[0], (16, 20))
        assert (target[:4] == expected).all()
        assert not target[4:].any()


@pytest.mark.parametrize("room", [ground_truth_module._MAX_KEPT, 0])
def test_masks_are_decoded_once_if_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int):
    monkeypatch.setattr(ground_truth_module, "_MAX_KEPT", room)
    imgs, masks = make_folders(tmp_path, 3, (20, 16))
    ground_truth = GroundTruth(find_items(imgs, tmp_path / "o", IMAGE_EXTENSIONS), masks, MaskClasses((0, 255)))
    expected = [np.asarray(Image.open(masks / f"SKIN_00{i}_Segmentation.png")) > 0 for i in range(3)]
    decoded = []
    monkeypatch.setattr(ground_truth_module, "read_mask", lambda path: decoded.append(path) or read_mask(path))
    for item, target in zip(find_items(imgs, tmp_path / "o", IMAGE_EXTENSIONS), expected, strict=True):
        assert np.array_equal(ground_truth.read(item, (16, 20)), target)
    assert len(decoded) == (0 if room else 3)


def test_masks_that_do_not_fit(tmp_path: Path):
    imgs, masks = make_folders(tmp_path, 2, (20, 16))
    items = find_items(imgs, tmp_path / "o", IMAGE_EXTENSIONS)
    ground_truth = GroundTruth(items, masks, MaskClasses((0, 255)))
    target = ground_truth.read(items[0], (16, 20))
    assert ground_truth.compare(target, Prediction(target))["dice"] == 1
    with pytest.raises(InputError, match=r"it has 30x16 pixels, its mask .* has 20x16"):
        ground_truth.read(items[0], (16, 30))
    labels = GroundTruth(items, masks, MaskClasses((0, 1)))  # two classes are two classes
    assert np.array_equal(labels.read(items[0], (16, 20)), target)
    with pytest.raises(InputError, match="contains the value 255"):
        GroundTruth(items, masks, MaskClasses((0, 7, 9)))
    (masks / "SKIN_001_Segmentation.png").unlink()
    partial = GroundTruth(items, masks, MaskClasses((0, 255)))
    assert [partial.read(item, (16, 20)) is None for item in items] == [False, True]
    (masks / "SKIN_000_Segmentation.png").rename(masks / "other.png")
    with pytest.raises(InputError, match="no image has a mask"):
        GroundTruth(items, masks, MaskClasses((0, 255)))
