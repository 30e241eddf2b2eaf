"""Every image of a folder is predicted, and a failure is that of its image alone."""

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import lively_network, make_folders
from utils.checkpoint import TrainedModel
from utils.data.images import IMAGE_EXTENSIONS
from utils.data.mask_classes import MaskClasses
from utils.inference.predictor import MapOptions, Prediction, predict_full_size
from utils.inference.samplers import MCDropout, Sampler, Softmax
from utils.inference.upsampling import LogitSamples
from utils.pipeline.folder_predictor import FolderPredictor
from utils.pipeline.ground_truth import GroundTruth
from utils.pipeline.image_loop import ImageLoop
from utils.pipeline.items import Item, find_items
from utils.pipeline.probability_maps import ProbabilityMapOptions, predict_probabilities
from utils.pipeline.report import Report
from utils.runtime.errors import InputError

OUT_OF_MEMORY = "out of memory"


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return TrainedModel(lively_network(base_channels=4), (32, 32))


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The number of images that are predicted at the same time."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def make_items(folder: Path, count: int) -> list[Item]:
    """The items of a folder `imgs` of synthetic images."""
    imgs, _ = make_folders(folder, count, (20, 20))
    return find_items(imgs, folder / "out", IMAGE_EXTENSIONS)


def save_nothing(item: Item, prediction: Prediction) -> list[Path]:
    return []


def names(*numbers: int) -> list[str]:
    return [f"SKIN_{i:03d}.jpg" for i in numbers]


def done(report: Report) -> list[str]:
    """The images that were predicted."""
    return [row["image"] for row in report.rows]


@pytest.mark.usefixtures("threads")
def test_unreadable_images(tmp_path: Path, model: TrainedModel):
    items, out = make_items(tmp_path, 6), tmp_path / "out"
    items[1].path.write_bytes(b"")
    items[5].path.write_bytes(b"hello")
    report = predict_probabilities(model, Softmax(batch_size=2), items, out, ProbabilityMapOptions())
    assert [name for name, _ in report.failures] == ["SKIN_001.jpg", "SKIN_005.jpg"]
    assert all(reason.startswith("cannot be read as an image (") for _, reason in report.failures)
    assert sorted(p.name for p in out.glob("[!.]*")) == [*(f"SKIN_00{i}_OUT.png" for i in (0, 2, 3, 4)), "summary.csv"]


@pytest.mark.usefixtures("threads")
def test_failed_writing(tmp_path: Path, model: TrainedModel, caplog: pytest.LogCaptureFixture):
    items = make_items(tmp_path, 8)

    def failing_with(number: int) -> Callable:
        def save(item: Item, prediction: Prediction) -> list[Path]:
            if item.name.stem == "SKIN_002":
                raise OSError(number, "reason")
            return []

        return save

    report = FolderPredictor(model, Softmax(), failing_with(errno.EACCES)).run(ImageLoop(items))
    assert done(report) == names(0, 1, 3, 4, 5, 6, 7)
    assert report.failures == [("SKIN_002.jpg", "its result could not be written (reason)")]

    # A full disk ends the run, with the scores and the failures so far.
    items[0].path.write_bytes(b"")
    written: list[list[str]] = []
    loop = ImageLoop(items, write_rows=lambda rows: written.append([row["image"] for row in rows]))
    with pytest.raises(OSError, match="reason"):
        FolderPredictor(model, Softmax(), failing_with(errno.ENOSPC)).run(loop)
    assert "SKIN_001.jpg" in written[-1]
    assert "SKIN_002.jpg" not in written[-1]
    assert [name for name, _ in loop.report.failures] == ["SKIN_000.jpg"]
    assert "1 failed:" in caplog.text


@pytest.mark.usefixtures("threads")
def test_out_of_memory_at_full_size(tmp_path: Path, model: TrainedModel, monkeypatch: pytest.MonkeyPatch):
    items = make_items(tmp_path, 6)
    for i in (2, 5):
        Image.new("RGB", (33, 31)).save(items[i].path)

    def predict_if_small(samples: Sequence[LogitSamples], size: tuple[int, int], *others: object) -> Prediction:
        if size == (33, 31):
            raise torch.OutOfMemoryError("no room")
        return predict_full_size(samples, size, *others)

    monkeypatch.setattr("utils.pipeline.folder_predictor.predict_full_size", predict_if_small)
    report = FolderPredictor(model, MCDropout(num_samples=2), save_nothing).run(ImageLoop(items))
    assert done(report) == names(0, 1, 3, 4)
    assert sorted(report.failures) == [(name, OUT_OF_MEMORY) for name in names(2, 5)]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("sampler", [Softmax(), MCDropout(num_samples=3)])
def test_out_of_memory_in_the_network(tmp_path: Path, sampler: Sampler):
    items = make_items(tmp_path, 4)
    Image.new("RGB", (20, 20), "white").save(items[2].path)
    network, batch_sizes = lively_network(base_channels=4), []

    def refuse_white(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].min() > 0.99:
            batch_sizes.append(len(inputs[0]))
            raise torch.OutOfMemoryError("no room")

    network.register_forward_pre_hook(refuse_white)
    report = FolderPredictor(TrainedModel(network, (32, 32)), sampler, save_nothing).run(ImageLoop(items))
    assert done(report) == names(0, 1, 3)
    assert report.failures == [("SKIN_002.jpg", OUT_OF_MEMORY)]
    assert (batch_sizes[0], batch_sizes[-1]) == (sampler.passes_per_image, 1)  # smaller batches have been tried


def test_out_of_memory_fails_the_images_of_the_batch(tmp_path: Path):
    class ModelOnAccelerator(TrainedModel):
        """A model with which images share a batch, unlike on a CPU."""

        device = torch.device("meta")

    class ExhaustingSampler(Softmax):
        def sample(self, model, inputs, names):
            if "SKIN_002.jpg" in names:
                raise torch.OutOfMemoryError("no room")
            return [[LogitSamples(torch.zeros(1, 2, 4, 4))] for _ in inputs]

    model = ModelOnAccelerator(lively_network(base_channels=4), (32, 32))
    report = FolderPredictor(model, ExhaustingSampler(batch_size=2), save_nothing).run(
        ImageLoop(make_items(tmp_path, 5))
    )
    assert done(report) == names(0, 1, 4)
    assert report.failures == [(name, OUT_OF_MEMORY) for name in names(2, 3)]


def test_unexpected_errors_are_those_of_the_image(
    tmp_path: Path, model: TrainedModel, caplog: pytest.LogCaptureFixture
):
    def save(item: Item, prediction: Prediction) -> list[Path]:
        if item.name.stem == "SKIN_001":
            raise ZeroDivisionError("division by zero")
        return []

    with caplog.at_level("DEBUG", "utils"):
        report = FolderPredictor(model, Softmax(), save).run(ImageLoop(make_items(tmp_path, 3)))
    assert done(report) == names(0, 2)
    assert report.failures == [("SKIN_001.jpg", "ZeroDivisionError: division by zero")]
    assert "Traceback" in caplog.text  # with --verbose


def test_rows_are_written_whatever_happens(tmp_path: Path, model: TrainedModel):
    """A GPU that fails would fail for every image: the run ends, but what is done is not lost."""
    written: list[list[str]] = []

    def save(item: Item, prediction: Prediction) -> list[Path]:
        if item.name.stem == "SKIN_002":
            raise RuntimeError("CUDA error: unspecified launch failure")
        return []

    loop = ImageLoop(make_items(tmp_path, 3), write_rows=lambda rows: written.append([row["image"] for row in rows]))
    with pytest.raises(RuntimeError, match="CUDA error"):
        FolderPredictor(model, Softmax(), save).run(loop)
    assert written == [names(0, 1)]


def test_show_in_order_in_the_main_thread(tmp_path: Path, model: TrainedModel):
    items = make_items(tmp_path, 5)
    shown = []

    def show(item: Item, prediction: Prediction, target: np.ndarray | None) -> None:
        assert target is None
        assert threading.current_thread() is threading.main_thread()
        assert prediction.maps.predictive_entropy.shape == prediction.classes.shape == (20, 20)
        shown.append(item)

    options = MapOptions(keep=["predictive_entropy"])
    FolderPredictor(model, Softmax(), save_nothing, options, show=show).run(ImageLoop(items))
    assert shown == items


def test_figure_that_fails_loses_nothing_else(tmp_path: Path, model: TrainedModel):
    imgs, masks = make_folders(tmp_path, 2, (20, 20))
    items = find_items(imgs, tmp_path / "out", IMAGE_EXTENSIONS)
    saved, shown = [], []

    def save(item: Item, prediction: Prediction) -> list[Path]:
        saved.append(item.key)
        return []

    def show(item: Item, prediction: Prediction, target: np.ndarray | None) -> None:
        shown.append(target)
        raise OSError(errno.EACCES, "reason")

    for path in masks.iterdir():  # read once for each image, so that the number of resized masks is right
        with Image.open(path) as mask:
            resized = mask.resize((40, 40))
        resized.save(path)
    ground_truth = GroundTruth(items, masks, MaskClasses((0, 255)))
    predictor = FolderPredictor(model, Softmax(), save, show=show)
    report = predictor.run(ImageLoop(items, ground_truth))
    assert sorted(saved) == done(report) == names(0, 1)
    assert report.failures == [
        (f"figure of {name}", "its result could not be written (reason)") for name in names(0, 1)
    ]
    assert [target.shape for target in shown] == [(20, 20)] * 2
    assert len(ground_truth.fitter.resized) == 2


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "reason"), InputError("reason")])
def test_unwritable_summary_on_the_way_is_no_failure_of_an_image(
    error: Exception, tmp_path: Path, model: TrainedModel, caplog: pytest.LogCaptureFixture
):
    def write_rows(rows: object) -> None:
        raise error

    loop = ImageLoop(make_items(tmp_path, 2), write_rows=write_rows, summary_interval=-1)
    report = FolderPredictor(model, Softmax(), save_nothing).run(loop)
    assert (done(report), report.failures) == (names(0, 1), [])
    assert "The summary of the images so far could not be written" in caplog.text
