"""A folder in, probability maps out."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import lively_network, make_folders, make_image
from utils.checkpoint import TrainedModel
from utils.data.images import IMAGE_EXTENSIONS, read_image
from utils.inference.maps import to_greyscale
from utils.inference.predictor import predict
from utils.inference.samplers import MCDropout, Softmax, TestTimeAugmentation
from utils.pipeline.items import find_items
from utils.pipeline.probability_maps import ProbabilityMapOptions, predict_probabilities
from utils.runtime.errors import InputError


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return TrainedModel(lively_network(base_channels=4), (32, 32))


@pytest.mark.parametrize("sampler", [Softmax(batch_size=3), MCDropout(num_samples=3), TestTimeAugmentation()])
def test_folder_equals_single_images(tmp_path: Path, model: TrainedModel, sampler):
    imgs, _ = make_folders(tmp_path, 4, (50, 40))
    make_image(9, (33, 71))[0].save(imgs / "other_size.png")
    out = tmp_path / "out"
    items = find_items(imgs, out, IMAGE_EXTENSIONS)
    assert not predict_probabilities(model, sampler, items, out, ProbabilityMapOptions()).failures
    assert len(list(out.glob("*.png"))) == 5
    for path in imgs.iterdir():
        expected = to_greyscale(predict(model, read_image(path), sampler, path.name, statistics=()).probs[1])
        with Image.open(out / f"{path.stem}_OUT.png") as image:
            assert (image.mode, image.format) == ("L", "PNG")
            assert np.array_equal(image, expected)


@pytest.mark.parametrize("sampler", [Softmax(), MCDropout(num_samples=3), TestTimeAugmentation()])
def test_bit_identical_for_every_number_of_threads(tmp_path: Path, sampler):
    model = TrainedModel(lively_network(base_channels=8))
    imgs, masks = make_folders(tmp_path, 3, (700, 500))  # large enough for PyTorch to use several threads
    options = ProbabilityMapOptions(save_npy=True, mask_dir=masks)
    before = torch.get_num_threads()
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            out = tmp_path / str(threads)
            assert not predict_probabilities(
                model, sampler, find_items(imgs, out, IMAGE_EXTENSIONS), out, options
            ).failures
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    files = sorted(path.name for path in (tmp_path / "1").iterdir() if not path.name.startswith("."))
    assert len(files) >= 3 * 2 + 3
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "4" / name).read_bytes(), name


def test_class_index(tmp_path: Path, model: TrainedModel):
    imgs, _ = make_folders(tmp_path, 1, (20, 20))
    items = find_items(imgs, tmp_path / "o", IMAGE_EXTENSIONS)
    pixels = []
    for k in (0, 1):
        predict_probabilities(model, Softmax(), items, tmp_path / str(k), ProbabilityMapOptions(class_index=k))
        with Image.open(tmp_path / str(k) / "SKIN_000_OUT.png") as image:
            pixels.append(np.asarray(image).astype(int))
    assert abs(pixels[0] + pixels[1] - 255).max() <= 1
    with pytest.raises(InputError, match="classes 0 to 1"):
        predict_probabilities(model, Softmax(), items, tmp_path / "2", ProbabilityMapOptions(class_index=2))
    assert not (tmp_path / "2").exists()


def test_room_for_the_float32_maps_is_checked(tmp_path: Path, model: TrainedModel, monkeypatch: pytest.MonkeyPatch):
    imgs, _ = make_folders(tmp_path, 2, (50, 40))
    out = tmp_path / "out"
    items, options = find_items(imgs, out, IMAGE_EXTENSIONS), ProbabilityMapOptions(save_npy=True)
    needed = 2 * 50 * 40 * (2 + 2 + 3) * 4
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=needed - 1))
    with pytest.raises(InputError, match="out has room for"):
        predict_probabilities(model, Softmax(), items, out, options)
    assert not out.exists()
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=needed))
    assert not predict_probabilities(model, Softmax(), items, out, options).failures
    assert sum(path.stat().st_size - 128 for path in out.glob("*.npy")) == needed  # but for their headers


def test_impossible_method_leaves_the_earlier_run_resumable(tmp_path: Path):
    """The journal of an earlier run is not replaced by that of a run that cannot begin."""
    imgs, _ = make_folders(tmp_path, 2, (40, 30))
    items = find_items(imgs, tmp_path / "out", [".jpg"])
    model = TrainedModel(lively_network(), input_size=(64, 32))
    predict_probabilities(model, Softmax(), items, tmp_path / "out", ProbabilityMapOptions())
    journal = (tmp_path / "out" / ".progress-0.jsonl").read_bytes()
    with pytest.raises(InputError, match="square input"):
        predict_probabilities(model, TestTimeAugmentation(), items, tmp_path / "out", ProbabilityMapOptions())
    assert (tmp_path / "out" / ".progress-0.jsonl").read_bytes() == journal
