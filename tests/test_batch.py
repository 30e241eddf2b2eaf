"""A folder in, maps out."""

import csv
import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
from PIL import Image

from tests.conftest import ROOT, lively_network, make_folders, make_picture
from utils.batch import BackgroundWriter, find_items, predict_folder, predict_probabilities
from utils.checkpoint import TrainedModel
from utils.errors import InputError
from utils.image_io import IMAGE_EXTENSIONS, read_image
from utils.probability import MCDropout, Softmax, TestTimeAugmentation, predict, to_grey
from utils.results import Prediction


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return TrainedModel(lively_network(base_channels=4), (32, 32))


def test_items_keep_their_sub_folders(tmp_path: Path):
    for name in ("a.jpg", "s/a.jpg", "s/t/b.c.png", "out/old_OUT.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    out = tmp_path / "out"
    items = find_items(tmp_path, out, IMAGE_EXTENSIONS, recursive=True)
    outputs = [item.output(out).relative_to(out).as_posix() for item in items]
    assert outputs == ["a_OUT.png", "s/a_OUT.png", "s/t/b.c_OUT.png"]
    assert [item.name.as_posix() for item in find_items(tmp_path, out, IMAGE_EXTENSIONS)] == ["a.jpg"]
    assert len(find_items(tmp_path / "s", tmp_path, IMAGE_EXTENSIONS, recursive=True)) == 2  # results above the images


def test_folders_that_cannot_work_are_refused(tmp_path: Path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(InputError, match="is the input folder"):
        find_items(tmp_path, tmp_path / "." / "x" / "..", IMAGE_EXTENSIONS)
    with pytest.raises(InputError, match="is a file"):
        find_items(tmp_path, tmp_path / "a.jpg", IMAGE_EXTENSIONS)
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match=r"a\.jpg and a\.png would both"):
        find_items(tmp_path, tmp_path / "out", IMAGE_EXTENSIONS)
    assert len(find_items(tmp_path, tmp_path / "out", [".png"])) == 1


@pytest.mark.parametrize("sampler", [Softmax(batch_size=3), MCDropout(num_samples=3), TestTimeAugmentation()])
def test_maps_of_a_folder_are_those_of_its_images(tmp_path: Path, model: TrainedModel, sampler):
    imgs, _ = make_folders(tmp_path, 4, (50, 40))
    make_picture(9, (33, 71))[0].save(imgs / "other_size.png")
    out = tmp_path / "out"
    assert predict_probabilities(model, sampler, find_items(imgs, out, IMAGE_EXTENSIONS), out) == 0
    assert len(list(out.glob("*.png"))) == 5
    for path in imgs.iterdir():
        expected = to_grey(predict(model, read_image(path), sampler, path.name, statistics=()).probs[1])
        with Image.open(out / f"{path.stem}_OUT.png") as image:
            assert (image.mode, image.format) == ("L", "PNG")
            assert np.array_equal(image, expected)


@pytest.mark.parametrize("sampler", [Softmax(), MCDropout(num_samples=3), TestTimeAugmentation()])
def test_results_are_the_same_to_the_bit_for_every_number_of_threads(tmp_path: Path, sampler):
    model = TrainedModel(lively_network(base_channels=8))
    imgs, masks = make_folders(tmp_path, 5, (700, 500))  # large enough for PyTorch to share the work out
    before = torch.get_num_threads()
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            out = tmp_path / str(threads)
            items = find_items(imgs, out, IMAGE_EXTENSIONS)
            assert predict_probabilities(model, sampler, items, out, save_npy=True, mask_dir=masks) == 0
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    files = sorted(path.name for path in (tmp_path / "1").iterdir() if not path.name.startswith("."))
    assert len(files) >= 5 * 2 + 3
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "4" / name).read_bytes(), name


def test_class_index(tmp_path: Path, model: TrainedModel):
    imgs, _ = make_folders(tmp_path, 1, (20, 20))
    items = find_items(imgs, tmp_path / "o", IMAGE_EXTENSIONS)
    pixels = []
    for k in (0, 1):
        predict_probabilities(model, Softmax(), items, tmp_path / str(k), class_index=k)
        with Image.open(tmp_path / str(k) / "SKIN_000_OUT.png") as image:
            pixels.append(np.asarray(image).astype(int))
    assert abs(pixels[0] + pixels[1] - 255).max() <= 1
    with pytest.raises(InputError, match="classes 0 to 1"):
        predict_probabilities(model, Softmax(), items, tmp_path, class_index=2)


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """So many images are predicted at once."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_what_fails_fails_alone(tmp_path: Path, model: TrainedModel, caplog: pytest.LogCaptureFixture):
    imgs, _ = make_folders(tmp_path, 6, (20, 20))
    (imgs / "SKIN_001.jpg").write_bytes(b"")
    (imgs / "SKIN_005.jpg").write_bytes(b"hello")
    out = tmp_path / "out"
    items = find_items(imgs, out, IMAGE_EXTENSIONS)
    assert predict_probabilities(model, Softmax(batch_size=2), items, out) == 1
    assert sorted(p.name for p in out.glob("[!.]*")) == [*(f"SKIN_00{i}_OUT.png" for i in (0, 2, 3, 4)), "summary.csv"]
    assert "2 failed:" in caplog.text
    assert "SKIN_001.jpg: " in caplog.text


@pytest.mark.usefixtures("threads")
def test_results_that_cannot_be_written_fail_alone_but_a_full_disk_ends_it(tmp_path: Path, model: TrainedModel):
    imgs, _ = make_folders(tmp_path, 8, (20, 20))
    items = find_items(imgs, tmp_path / "out", IMAGE_EXTENSIONS)

    def saving(number: int):
        def save(item, prediction: Prediction) -> list[Path]:
            if item.name.stem == "SKIN_002":
                raise OSError(number, "reason")
            return []

        return save

    report = predict_folder(model, Softmax(), items, saving(errno.EACCES))
    assert [row["image"] for row in report.rows] == [f"SKIN_00{i}.jpg" for i in range(8) if i != 2]
    assert report.failures == [("SKIN_002.jpg", "its result cannot be written (reason)")]
    report = predict_folder(model, Softmax(), items, saving(errno.ENOSPC))
    done = {row["image"] for row in report.rows}
    missing = {name for name, _ in report.failures}
    assert "SKIN_002.jpg" in missing
    assert done | missing == {f"SKIN_00{i}.jpg" for i in range(8)}
    assert not done & missing
    assert all(reason == "not done, since nothing can be written (reason)" for _, reason in report.failures)


def test_an_error_of_ours_is_not_hidden(tmp_path: Path, model: TrainedModel):
    imgs, _ = make_folders(tmp_path, 3, (20, 20))
    items = find_items(imgs, tmp_path / "out", IMAGE_EXTENSIONS)
    with pytest.raises(ZeroDivisionError):
        predict_folder(model, Softmax(), items, lambda *_: 1 / 0)


def test_showing_happens_in_order_in_the_main_thread(tmp_path: Path, model: TrainedModel):
    imgs, _ = make_folders(tmp_path, 5, (20, 20))
    items = find_items(imgs, tmp_path / "out", IMAGE_EXTENSIONS)
    shown = []

    def show(item, prediction: Prediction) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert prediction.maps.predictive_entropy.shape == prediction.classes.shape == (20, 20)
        shown.append(item)

    predict_folder(model, Softmax(), items, lambda *_: [], keep=["predictive_entropy"], show=show)
    assert shown == items


def test_background_writer_runs_everything_and_holds_little():
    running, most, done = set(), [], []

    def work(i: int) -> None:
        running.add(i)
        time.sleep(0.002)
        most.append(len(running))
        running.discard(i)
        done.append(i)

    with BackgroundWriter() as writer:
        for i in range(50):
            writer.submit(work, i)
            assert len(writer._pending) <= 3
    assert sorted(done) == list(range(50))
    assert max(most) == 2


def test_background_writer_goes_on_beside_what_takes_long():
    go_on, done = threading.Event(), []
    with BackgroundWriter(2) as writer:
        writer.submit(go_on.wait, 60)
        for i in range(20):
            writer.submit(done.append, i)  # would wait for the first
        assert len(done) > 15
        go_on.set()
    assert done == list(range(20))


CONVOLVE = """
import os, threading, torch
from utils.batch import BackgroundWriter, one_thread_each

def others():  # threads of this process that are not Python's
    return len(os.listdir("/proc/self/task")) - threading.active_count()

def convolve():
    before = others()
    torch.nn.functional.conv2d(images, weights)  # the first that its thread has PyTorch do
    print(others() - before)

images, weights = torch.ones(8, 64, 128, 128), torch.ones(64, 64, 3, 3)
torch.set_num_threads(2)
with one_thread_each(torch.device("cpu")) as threads, BackgroundWriter(threads) as writer:
    writer.submit(convolve)
print(threads, torch.get_num_threads())
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="only Linux lists the threads of a process there")
def test_threads_of_ours_have_none_of_pytorch():
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    printed = subprocess.check_output([sys.executable, "-c", CONVOLVE], cwd=ROOT, env=environment, text=True)
    assert printed.split() == ["0", "2", "2"]


def test_background_writer_raises_the_first_error():
    with pytest.raises(ZeroDivisionError), BackgroundWriter() as writer:
        writer.submit(lambda: 1 / 0)
    with pytest.raises(KeyError), BackgroundWriter() as writer:
        writer.submit(lambda: 1 / 0)
        raise KeyError


def test_a_set_is_judged_as_its_pixels_are_in_one_go(tmp_path: Path, trained: TrainedModel):
    imgs, masks = make_folders(tmp_path, 5, (60, 44))
    (masks / "SKIN_003_Segmentation.png").write_bytes(b"")  # fails, and is not counted
    items = find_items(imgs, tmp_path / "o", IMAGE_EXTENSIONS)
    sampler = MCDropout(num_samples=4)
    assert predict_probabilities(trained, sampler, items, tmp_path / "o", mask_dir=masks, save_npy=True) == 1
    result = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert (result["images"], result["pixels"]) == (4, 4 * 60 * 44)
    assert result["run"]["method"] == "MC dropout, 4 passes"
    probs, truths = [], []
    for i in (0, 1, 2, 4):
        probs.append(np.load(tmp_path / "o" / f"SKIN_00{i}_OUT_mean.npy")[1].ravel())
        truths.append(np.asarray(Image.open(masks / f"SKIN_00{i}_Segmentation.png")).ravel() > 0)
    p, y = np.concatenate(probs).astype(float), np.concatenate(truths)
    assert result["calibration"]["brier"]["value"] == pytest.approx(sklearn.metrics.brier_score_loss(y, p), abs=1e-6)
    assert result["calibration"]["nll"]["value"] == pytest.approx(sklearn.metrics.log_loss(y, p), abs=1e-6)
    uncertainty, wrong = np.minimum(p, 1 - p), (p > 0.5) != y
    auroc = sklearn.metrics.roc_auc_score(wrong, uncertainty)
    assert result["errors"]["error_auroc"]["value"] == pytest.approx(auroc, abs=1e-4)
    with open(tmp_path / "o" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, p, y in zip(rows, probs, truths, strict=True):
        assert float(row["brier"]) == pytest.approx(sklearn.metrics.brier_score_loss(y, p), abs=1e-6)
    with open(tmp_path / "o" / "summary.csv", newline="") as file:
        confidences = [float(row["soft_dice_confidence"]) for row in csv.DictReader(file)]
    assert confidences == sorted(confidences)
    assert len(confidences) == 4
