"""The project on a pretended device, which refuses what CUDA refuses and counts transfers."""

import csv
import os
import re
import runpy
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import ROOT, assert_one_clear_line, forked, make_folders, make_image, run_script
from tests.device_costs import costs, marginal_costs, total
from tests.pretended_device import AVAILABLE, KINDS, NAME, PretendedDevice, format_counts, install, on_pretended_device
from tests.test_training_script import training_flags
from utils import IGNORED_CLASS
from utils.checkpoint import load_model, read_checkpoint
from utils.inference.maps import full_size_blocks
from utils.inference.upsampling import LogitSamples
from utils.metrics.pixel_counter import PixelCounter
from utils.metrics.pixel_counts import PixelCounts
from utils.metrics.uncertainty import entropy
from utils.pipeline.summary import SUMMARY_COLUMNS, read_summary

pytestmark = pytest.mark.skipif(
    not AVAILABLE, reason="requires Linux, and a PyTorch that can have a device written in Python"
)

Setup = Callable[[PretendedDevice], object]


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("pretended out of memory")


def run_on_device(script: str, *arguments: object, setup: Setup = lambda device: None) -> subprocess.CompletedProcess:
    """Run a script to its end on the pretended device, which `setup` has prepared."""
    path = str(ROOT / script)

    def run() -> None:
        setup(install())
        runpy.run_path(path, run_name="__main__")

    return forked([path, *map(str, arguments), "--device", NAME], ROOT, run)


# -- the device --------------------------------------------------------------------------------------------------------


def test_refusals():
    def work(device: PretendedDevice) -> None:
        inside, outside = torch.rand(2, 3, device=NAME), torch.rand(2, 3)
        assert inside.device == torch.device(NAME, 0)
        for meet in (
            lambda: inside + outside,
            lambda: outside * inside.sum(),
            lambda: torch.stack([inside.sum(), outside.sum()]),
            lambda: outside.sum().add_(inside.sum()),
            lambda: outside[torch.tensor([0], device=NAME)],
            lambda: torch.mm(inside, outside.T),
        ):
            with pytest.raises(RuntimeError, match="on the same device"):
                meet()
        for read in (inside.numpy, lambda: np.asarray(inside)):
            with pytest.raises(RuntimeError, match="numpy"):
                read()
        assert torch.equal((inside + torch.tensor(1.0)).cpu(), inside.cpu() + 1)  # a scalar may meet them
        assert torch.equal(inside[torch.tensor([1])].cpu(), inside.cpu()[[1]])  # and so may indices

    on_pretended_device(work)


COSTS = [  # of an operation on `x` on the device and `values` on the CPU: copies to the device, reads, launches
    (lambda x, values: values.to(NAME), [1, 0, 0]),
    (lambda x, values: torch.tensor([1.0, 2.0], device=NAME), [1, 0, 0]),
    (lambda x, values: x[torch.tensor([0])], [1, 0, 1]),
    (lambda x, values: x.to("cpu", non_blocking=True), [0, 1, 0]),
    (lambda x, values: x.sum().item(), [0, 1, 1]),
    (lambda x, values: bool((x > 1).any()), [0, 1, 2]),
    (lambda x, values: x.tolist(), [0, 1, 0]),
    (lambda x, values: x.nonzero(), [0, 1, 1]),
    (lambda x, values: x[x > 1], [0, 1, 2]),
    (lambda x, values: torch.bincount(x.flatten().int()), [0, 1, 2]),
    (lambda x, values: torch.equal(x, x), [0, 1, 1]),
    (lambda x, values: x.view(3, 2).T[1:], [0, 0, 0]),
    (lambda x, values: x.masked_fill(x > 1, 0), [0, 0, 2]),
    (lambda x, values: torch.nn.functional.conv2d(x[None, None], x[None, None, :1, :2]), [0, 0, 1]),
    (lambda x, values: (x + 1).mul_(2), [0, 0, 2]),
]


@pytest.mark.parametrize("inference", [False, True])
def test_counts(inference: bool):
    def work(device: PretendedDevice) -> list[list[int]]:
        values = torch.arange(6.0).view(2, 3)
        x = values.to(NAME)
        counted = []
        for operation, _ in COSTS:
            device.counts.clear()
            with torch.inference_mode(inference):
                operation(x, values)
            counted.append([device.total(kind) for kind in KINDS])
            assert all(line.startswith("tests/test_pretended_device.py:") for _, line in device.counts)
        return counted

    assert on_pretended_device(work) == [expected for _, expected in COSTS]


def test_threads_and_pinned_memory():
    def work(device: PretendedDevice) -> int:
        results = []
        x = torch.ones(3).pin_memory().to(NAME, non_blocking=True)
        threads = [threading.Thread(target=lambda: results.append((x + x).sum().item())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [6] * 4
        return device.total("read")

    assert on_pretended_device(work) == 4


def test_gradients_and_views():
    def work(device: PretendedDevice) -> None:
        network = torch.nn.Linear(3, 1).to(NAME)
        inputs = torch.rand(2, 3)
        network(inputs.to(NAME)).sum().backward()
        torch.testing.assert_close(network.weight.grad.cpu()[0], inputs.sum(dim=0))
        x = torch.zeros(2, 2, device=NAME)
        x[:, 1] += 1
        assert x.tolist() == [[0, 1], [0, 1]]
        assert f"{x.sum():.1f}" == "2.0"

    on_pretended_device(work)


def test_planned_failure():
    def work(device: PretendedDevice) -> None:
        x = torch.ones(2, device=NAME)
        x.sin()
        device.at_launch("aten::sin", 2, out_of_memory)
        x.sin()
        with pytest.raises(torch.OutOfMemoryError):
            x.sin()
        x.sin()

    on_pretended_device(work)


# -- the same results as on the CPU ------------------------------------------------------------------------------------


def numbers(path: Path) -> tuple[str, list[float]]:
    """The words and the numbers of a text file."""
    pattern = r"-?\b\d+(?:\.\d+)?(?:e-?\d+)?\b"
    text = path.read_text()
    return re.sub(pattern, "#", text), [float(number) for number in re.findall(pattern, text)]


def assert_same_results(folder: Path, expected: Path) -> None:
    """Check that two folders have the same files: images within a grey level, but for a pixel in a thousand."""
    paths = sorted(path.relative_to(expected) for path in expected.iterdir() if not path.name.startswith("."))
    assert sorted(path.relative_to(folder) for path in folder.iterdir() if not path.name.startswith(".")) == paths
    for path in paths:
        if path.suffix == ".png":
            with Image.open(folder / path) as one, Image.open(expected / path) as other:
                difference = np.abs(np.asarray(one).astype(int) - np.asarray(other))
            assert (difference > 1).mean() < 1e-3, path
        elif path.suffix == ".npy":
            np.testing.assert_allclose(np.load(folder / path), np.load(expected / path), atol=1e-4, err_msg=str(path))
        else:
            (words, values), (expected_words, expected_values) = numbers(folder / path), numbers(expected / path)
            assert words == expected_words, path
            assert values == pytest.approx(expected_values, rel=2e-3, abs=2e-3), path


FOLDER_SCRIPTS = [
    ("predict.py",),
    ("predict_prob_direct.py", "--save-entropy", "--save-npy"),
    ("predict_prob_bayesian.py", "--save-entropy", "--save-npy", "--mc", 5),
    ("predict_prob_tta.py", "--save-entropy", "--save-npy"),
]


@pytest.mark.parametrize("command", FOLDER_SCRIPTS, ids=lambda command: command[0])
def test_folder(command: tuple[object, ...], tmp_path: Path, lively_file: Path):
    imgs, masks = make_folders(tmp_path, 2, (150, 110), seed=40)
    script, *flags = command
    flags += ["--input-dir", imgs, "--mask-dir", masks, "-m", lively_file, "--output-dir"]
    result = run_on_device(script, *flags, tmp_path / "device")
    assert result.returncode == 0, result.stderr
    expected = run_script(script, *flags, tmp_path / "cpu", "--device", "cpu")
    assert expected.returncode == 0, expected.stderr
    assert_same_results(tmp_path / "device", tmp_path / "cpu")


def test_single_images(tmp_path: Path, lively_file: Path):
    imgs, masks = make_folders(tmp_path, 2, (90, 70), seed=40)
    flags = ["-i", imgs, "--mask-dir", masks, "-m", lively_file, "--mc", 3, "--save-prob", "--save-npy", "--output-dir"]
    result = run_on_device("predict_bayesian.py", *flags, tmp_path / "device")
    assert result.returncode == 0, result.stderr
    expected = run_script("predict_bayesian.py", *flags, tmp_path / "cpu", "--device", "cpu")
    assert expected.returncode == 0, expected.stderr
    assert_same_results(tmp_path / "device", tmp_path / "cpu")


def read_metrics(folder: Path) -> list[dict[str, float]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_training(tmp_path: Path, lively_file: Path):
    flags = [*training_flags(tmp_path, n=5), "--epochs", 2, "--batch-size", 2, "--newW", 64, "--newH", 64]
    folders = [tmp_path / name for name in ("device", "resumed", "cpu")]
    for result in (
        run_on_device("train_bayesian.py", *flags, "--load", lively_file, "--checkpoint-dir", folders[0]),
        run_script("train_bayesian.py", *flags, "--load", lively_file, "--checkpoint-dir", folders[2]),
    ):
        assert result.returncode == 0, result.stderr
        assert "Temperatures for --calibrated: softmax" in result.stderr

    # Interrupted in the first step of the second epoch, and resumed.
    flags += ["--checkpoint-dir", folders[1]]
    interrupted = run_on_device("train_bayesian.py", *flags, "--load", lively_file, setup=terminate_in_second_epoch)
    assert interrupted.returncode == 143, interrupted.stderr
    training = read_checkpoint(folders[1] / "last.pth")["training"]
    assert (training["epoch"], training["step"]) == (1, 1)
    resumed = run_on_device("train_bayesian.py", *flags, "--resume")
    assert resumed.returncode == 0, resumed.stderr

    rows, resumed_rows, expected_rows = map(read_metrics, folders)
    assert rows == resumed_rows
    for row, expected in zip(rows, expected_rows, strict=True):
        assert row == pytest.approx(expected, rel=5e-3, abs=1e-3)
    device, again, cpu = (load_model(folder / "best.pth") for folder in folders)
    assert device.temperatures == again.temperatures == pytest.approx(cpu.temperatures, rel=0.02)


def terminate_in_second_epoch(device: PretendedDevice) -> None:
    convolutions = 23  # of the network; there are two steps per epoch
    first_of_third_step = 2 * convolutions + 1
    stop = partial(os.kill, os.getpid(), signal.SIGTERM)
    device.at_launch("aten::convolution_backward", first_of_third_step, stop)


# -- out of memory -----------------------------------------------------------------------------------------------------


def test_image_out_of_memory(tmp_path: Path, lively_file: Path):
    def fail_twice(device: PretendedDevice) -> None:
        device.at_launch("aten::sigmoid_", 3, out_of_memory)  # the second of two blocks of rows of the second image
        device.at_launch("aten::index_add_", 5, out_of_memory)  # while another one is compared with ground truth

    imgs, masks = make_folders(tmp_path, 3, (60, 50))
    for picture, path in zip(make_image(1, (1000, 900)), (imgs / "SKIN_001.jpg", masks / "SKIN_001.png"), strict=True):
        picture.save(path)
    (masks / "SKIN_001_Segmentation.png").unlink()
    flags = ["--input-dir", imgs, "--mask-dir", masks, "-m", lively_file, "--mc", 100, "--output-dir", tmp_path / "o"]
    result = run_on_device("predict_prob_bayesian.py", *flags, setup=fail_twice)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    failed = re.findall(r"^  (.*): out of memory$", result.stderr, re.MULTILINE)
    assert len(failed) == 2
    assert "SKIN_001.jpg" in failed
    (done,) = {row["image"] for row in read_summary(tmp_path / "o" / "summary.csv")}
    assert {done, *failed} == {f"SKIN_00{i}.jpg" for i in range(3)}
    assert (tmp_path / "o" / f"{Path(done).stem}_OUT.png").is_file()


def test_training_step_out_of_memory(tmp_path: Path, lively_file: Path):
    def fail_late_in_backward(device: PretendedDevice) -> None:
        backward = torch.Tensor.backward
        torch.Tensor.backward = lambda loss, **options: (backward(loss, **options), out_of_memory())

    flags = [*training_flags(tmp_path, n=4), "--epochs", 1, "--load", lively_file]
    result = run_on_device("train_bayesian.py", *flags, setup=fail_late_in_backward)
    assert_one_clear_line(result, "Out of memory", "--batch-size", "--device cpu")
    assert len([line for line in result.stderr.splitlines() if "memory" in line]) == 1


def test_network_batch_out_of_memory(tmp_path: Path, lively_file: Path):
    imgs, _ = make_folders(tmp_path, 2, (60, 50))
    flags = ["--input-dir", imgs, "-m", lively_file, "--save-npy", "--mc", 6, "--output-dir"]
    expected = run_on_device("predict_prob_bayesian.py", *flags, tmp_path / "expected")
    assert expected.returncode == 0, expected.stderr
    result = run_on_device(
        "predict_prob_bayesian.py",
        *flags,
        tmp_path / "o",
        setup=lambda device: device.at_launch("aten::convolution", 5, out_of_memory),
    )
    assert result.returncode == 0, result.stderr
    assert "Out of memory with a batch of 48: continuing with batches of 24" in result.stderr
    assert_same_results(tmp_path / "o", tmp_path / "expected")


# -- budgets -----------------------------------------------------------------------------------------------------------


def test_budget_of_a_training_step():
    step = marginal_costs("train")
    assert 0 < total(step, "host to device") <= 3, format_counts(step)
    assert total(step, "read") <= 1, format_counts(step)


def test_budget_of_a_validation():
    """A single read, however many batches there are."""
    batch = marginal_costs("evaluate")
    assert 0 < total(batch, "host to device") <= 2, format_counts(batch)
    assert total(batch, "read") == 0, format_counts(batch)
    assert total(costs("evaluate", 3), "read") == 1


@pytest.mark.parametrize("method", ["softmax", "mc_dropout", "tta"])
def test_budget_of_a_network_batch(method: str):
    batch = marginal_costs(method)
    assert 0 < total(batch, "host to device") <= 2, format_counts(batch)
    assert total(batch, "read") == 0, format_counts(batch)


N_COUNTS = len(fields(PixelCounts))


@pytest.mark.parametrize(("name", "more"), [("mask", 0), ("judged", N_COUNTS), ("maps", 5)])
def test_budget_of_an_image(name: str, more: int):
    """At most a read for each of mask, scores, counts and greyscale maps, however many blocks of rows there are."""
    block = marginal_costs(name)
    assert total(block, "read") == 0, format_counts(block)
    image = costs(name, 3)
    n_scores = len(SUMMARY_COLUMNS) - 1  # but for the image's name
    assert total(image, "read") <= 1 + n_scores + more, format_counts(image)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_pixels_are_counted_as_on_a_cpu(n_classes: int):
    rng = torch.Generator().manual_seed(0)
    probs = (3 * torch.randn(n_classes, 40, 50, generator=rng)).softmax(dim=0)
    target = torch.randint(0, n_classes, (40, 50), generator=rng)
    target[:5] = IGNORED_CLASS
    values = (probs, entropy(probs[None])[0], target)

    def count(*values: torch.Tensor) -> PixelCounts:
        counter = PixelCounter()
        counter.add(*values)
        return counter.read()

    def work(device: PretendedDevice) -> list[np.ndarray]:
        counts = count(*(value.to(NAME) for value in values))
        return [getattr(counts, field.name) for field in fields(counts)]

    expected = count(*values)
    for found, field in zip(on_pretended_device(work), fields(expected), strict=True):
        on_cpu = getattr(expected, field.name)
        if field.name.startswith("by_") and n_classes == 2:  # a CPU computes the values in another way
            found, on_cpu = found.sum(axis=-1), on_cpu.sum(axis=-1)
        np.testing.assert_allclose(found, on_cpu, rtol=1e-5, err_msg=field.name)


def test_blocks_of_an_image_wait_for_nothing():
    """Not even before the first one: what a GPU computes is read at the end."""

    def work(device: PretendedDevice) -> float:
        logits = torch.randn(4, 2, 8, 8).to(NAME)
        assert len([*full_size_blocks([LogitSamples(logits)], (16, 16))]) == 1
        return sum(n for (kind, _), n in device.counts.items() if kind == "read")

    assert on_pretended_device(work) == 0
