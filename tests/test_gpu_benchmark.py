"""What the GPU benchmark reads from logs and profiles, and what it writes."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torch.autograd import DeviceType

from tests.benchmarks.gpu_checks import LEFT_OUT, TEST_FILES, compare_folders, pytest_counts
from tests.benchmarks.gpu_report import BEGIN, END, document, fill, table
from tests.benchmarks.gpu_speed import best_dice, epoch_lines, image_rates, training_times
from tests.benchmarks.measuring import Log, WrongResult
from tests.benchmarks.profiling import busy_us, summary
from tests.conftest import ROOT

TRAINING = [
    (2.0, "Training on 8 images, validating on another 2\n"),
    (3.0, "Writing checkpoints to checkpoints\n"),
    (4.0, "Epoch 1/3: 5 of 10 batches, about 2 s left\n"),
    (5.0, "Epoch 1/3: loss 0.9; validation Dice 0.4 (best 0.4), accuracy 0.8; about 9 s left\n"),
    (6.0, "Epoch 2/3: loss 0.8; validation Dice 0.6 (best 0.6), accuracy 0.8; about 9 s left\n"),
    (7.5, "Epoch 3/3: loss 0.7; validation Dice 0.5 (best 0.6), accuracy 0.8\n"),
    (9.0, "Best validation Dice 0.6123: checkpoints/best.pth\n"),
]
RESULTS = {
    "machine": {"name": "GPU", "cores": 2, "torch": "2.0", "date": "2026-01-01", "quick": False},
    "parts": {
        "maps": {
            "tta": {"files": 4, "largest difference": 1, "fraction of differing pixels": 1e-3},
            "mask": {"files": 4, "largest difference": 255, "fraction of differing pixels": 1e-5},
        },
        "training": {**training_times(TRAINING, 10.0), "images": 10},
        "throughput": {
            "megapixels": 6.0,
            "MC 50": {"images": 300, "seconds": 10.0, "images per second, whole process": 30.0},
            "MC 50 with --mask-dir": {"images": 300, "seconds": 12.0, "images per second, whole process": 25.0},
        },
        "profile": {"training: longest": [{"name": "a|b", "milliseconds": 1.5}]},
        "tests": {"outcome": {"passed": 3, "failed": 1}, "failures": ["x - y"], "output": "one\ntwo"},
    },
    "seconds": {"maps": 3.0},
    "wrong": ["tests: 1 failed"],
}


def test_times_of_a_training():
    times = training_times(TRAINING, 10.0)
    assert len(epoch_lines(TRAINING)) == times["epochs"] == 3
    assert times["start and decoding, seconds"] == 3
    assert (times["all epochs, seconds"], times["first epoch, seconds"]) == (4.5, 2)
    assert (times["median epoch, seconds"], times["temperatures and end, seconds"]) == (1.5, 2.5)
    assert best_dice(TRAINING) == 0.6123


def test_images_per_second():
    lines = [(at, f"{at}.jpg: 30x20 pixels, area 5, soft Dice confidence 0.9\n") for at in (2.0, 4.0, 5.0, 6.0, 7.0)]
    log = Log("predict", 0, 10.0, [(1.0, "5 images in x\n"), *lines])
    rates = image_rates(log)
    assert (rates["images"], rates["images per second, whole process"]) == (5, 0.5)
    assert rates["images per second, steady"] == 1  # from the second image on
    assert "images per second, steady" not in image_rates(Log("predict", 1, 10.0, []))


def test_failed_processes():
    assert Log("x", 130, 1.0, []).check(130).code == 130
    for code, text in ((1, ""), (0, "Traceback (most recent call last)")):
        with pytest.raises(WrongResult, match="x ended with"):
            Log("x", code, 1.0, [(0.5, text)]).check()


def test_counts_of_pytest():
    text = "FAILED tests/a.py::b - 3 failed in it\n1 failed, 12 passed, 2 warnings in 3.21s\n"
    assert pytest_counts(text) == {"failed": 1, "passed": 12, "warnings": 2}
    assert pytest_counts("==== 4 passed in 63.10s (0:01:03) ====") == {"passed": 4}
    assert pytest_counts("killed") == {}


def test_tests_that_are_left_out_exist():
    for test in (test for group in LEFT_OUT.values() for test in group):
        file, name = test.split("::")
        assert file in TEST_FILES
        assert f"def {name}(" in (ROOT / "tests" / file).read_text()


def test_difference_of_folders(tmp_path: Path):
    for folder, value in (("a", 10), ("b", 12)):
        (tmp_path / folder).mkdir()
        image = np.zeros((2, 5), dtype=np.uint8)
        image[0, 0] = value
        Image.fromarray(image).save(tmp_path / folder / "x.png")
    compared = compare_folders(tmp_path / "a", tmp_path / "b")
    assert compared == {"files": 1, "largest difference": 2, "fraction of differing pixels": 0.1}
    (tmp_path / "b" / "y.png").touch()
    with pytest.raises(WrongResult, match="not the same files"):
        compare_folders(tmp_path / "a", tmp_path / "b")


def operation(name: str, cpu: float, gpu: float) -> SimpleNamespace:
    return SimpleNamespace(name=name, device_type=DeviceType.CPU, self_cpu_time_total=cpu, self_device_time_total=gpu)


def kernel(name: str, start: float, end: float) -> SimpleNamespace:
    times = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
    return SimpleNamespace(name=name, device_type=DeviceType.CUDA, time_range=times)


def test_profile_of_a_gpu():
    events = [
        operation("aten::cudnn_convolution", 100, 300),
        operation("aten::convolution_backward", 50, 300),
        operation("aten::add", 850, 200),
        operation("Optimizer.step", 10, 0),
        kernel("gemm", 0, 600),
        kernel("add", 500, 800),
        kernel("Memcpy HtoD", 900, 1000),
        kernel("Optimizer.step", 0, 1000),
    ]
    result = summary(events, on_gpu=True, units=2, seconds=1e-3, unit="step")
    assert result["milliseconds per step"] == 1
    assert result["GPU milliseconds per step"] == 0.5
    assert result["fraction of GPU time in convolutions"] == 0.6
    assert result["fraction of time in which the GPU is busy"] == 0.45
    assert result["fraction of GPU time attributed to operations"] == 0.8
    assert result["kernels per step"] == 1
    assert result["longest kernels, milliseconds per step"][0] == {"name": "gemm", "milliseconds": 0.3, "fraction": 0.6}
    assert result["operations with most CPU time, milliseconds per step"][0]["name"] == "aten::add"
    assert busy_us([]) == 0


def test_profile_of_a_cpu():
    events = [operation("aten::mkldnn_convolution", 300, 0), operation("aten::add", 100, 0)]
    result = summary(events, on_gpu=False, units=1, seconds=1.0, unit="image")
    assert result["fraction of CPU time in convolutions"] == 0.75
    assert not any("kernel" in name for name in result)


def test_profile_without_kernels():
    result = summary([operation("aten::add", 1, 0)], on_gpu=True, units=1, seconds=1.0, unit="step")
    assert result["milliseconds per step"] == 1000
    json.dumps(result)


def test_table():
    text = table(RESULTS)
    assert "| 3 epochs on 10 images, with decoding and temperatures | 10.0 s | at most 45 s |" in text
    assert "| MC 50, 300 images of 6 megapixels, whole process | 30.0 per second | at least 20 per second |" in text
    assert "| MC 50 with `--mask-dir`, additional time | 20 % | at most 33 % |" in text
    assert "| tta, maps of CPU and GPU, largest difference in grey levels | 1 | at most 1 |" in text
    assert "| masks that differ between CPU and GPU | 0.0010 % of the pixels | at most 0.01 % |" in text
    assert "| tests of whole scripts on the GPU | 3 passed, 1 failed | 0 failed |" in text
    assert "resume" not in text  # it has not been run


def test_document():
    text = document(RESULTS)
    assert text.startswith("# GPU, 2 cores, torch 2.0, 2026-01-01\n\nWrong:\n\n```\ntests: 1 failed\n```\n\n| what |")
    assert "| a b | 1.5 |" in text
    assert "```\none\ntwo\n```" in text


def test_fill(tmp_path: Path):
    path = tmp_path / "x.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        fill(path, RESULTS)
        assert path.read_text() == (
            f"before\n{BEGIN}\nMeasured on one GPU, 2 cores, torch 2.0, 2026-01-01:\n\n"
            f"{table(RESULTS)}\n\n{END}\nafter\n"
        )
    path.write_text(f"{BEGIN}\n")
    with pytest.raises(WrongResult, match="has no lines"):
        fill(path, RESULTS)


def test_the_document_can_be_filled():
    text = (ROOT / "tests" / "benchmarks" / "README.md").read_text()
    assert f"{BEGIN}\n" in text
    assert f"\n{END}\n" in text
