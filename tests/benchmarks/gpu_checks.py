"""Whether a GPU's results are right: maps like those of the CPU, trainings that resume, the test suite."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tests.benchmarks.gpu_setting import Setting, copy_some
from tests.benchmarks.gpu_speed import epoch_lines
from tests.benchmarks.measuring import WrongResult, make_folders, run_logged
from tests.random_data import SeededTensorDataset
from unet import BayesianUNet
from utils.checkpoint import read_checkpoint
from utils.data_loading import SeededBatchSampler
from utils.runtime.device import amp_dtype, choose_device, precision_name
from utils.training.batch_loss import BatchLoss
from utils.training.loop import train_one_epoch
from utils.training.state import new_training_state

# -- maps --------------------------------------------------------------------------------------------------------------

METHODS = {
    "direct": ["predict_prob_direct.py", "--save-entropy"],
    "bayesian": ["predict_prob_bayesian.py", "--save-entropy", "--mc", "20"],
    "tta": ["predict_prob_tta.py", "--save-entropy"],
    "mask": ["predict.py"],
}
SIZES = [(160, 120), (613, 411), (256, 256), (77, 90), (1001, 1103), (1800, 1200)]
MAX_LEVELS = 1  # between two maps: a value may be rounded up on one device and down on the other
MAX_MASK_FRACTION = 1e-4  # of the pixels of all masks: some have a probability of almost exactly one half


def maps(setting: Setting) -> None:
    """Compare the maps and masks that both devices write of the same images, in single precision."""
    imgs = setting.work / "mixed" / "all"
    for i in range(setting.choose(12, 4)):
        made, _ = make_folders(setting.work / "mixed" / f"{i}", 1, SIZES[i % len(SIZES)], seed=i)
        copy_some(made, imgs, 1)
        (imgs / "SKIN_000.jpg").rename(imgs / f"{i}.jpg")
    if setting.data:
        copy_some(setting.data / "imgs_test", imgs, setting.choose(12, 4))

    def predict(folder: str, device: str) -> dict[str, float]:
        out = setting.work / "maps" / folder
        common = ["--input-dir", imgs, "--device", device]
        return {
            method: run_logged([sys.executable, *script, *common, "--output-dir", out / method], 90).check().seconds
            for method, script in METHODS.items()
        }

    with ThreadPoolExecutor() as pool:
        of_cpu = pool.submit(predict, "reference", "cpu")
        of_device = pool.submit(predict, "device", setting.device)
        seconds = {"CPU": of_cpu.result(), setting.device.upper(): of_device.result()}
    wrong = []
    for method in METHODS:
        compared = compare_folders(*(setting.work / "maps" / folder / method for folder in ("reference", "device")))
        times = {f"seconds, {device}, not alone": round(values[method], 1) for device, values in seconds.items()}
        setting.record(method, compared | times)
        if method == "mask" and compared["fraction of differing pixels"] > MAX_MASK_FRACTION:
            wrong.append(f"{compared['fraction of differing pixels']:.2e} of the masks' pixels differ")
        elif method != "mask" and compared["largest difference"] > MAX_LEVELS:
            wrong.append(f"{method}: the maps of the CPU differ by up to {compared['largest difference']} grey levels")
    if wrong:
        raise WrongResult("; ".join(wrong))


def compare_folders(one: Path, other: Path) -> dict[str, float]:
    """Difference of the PNG files of two folders in grey levels.

    Raises:
        WrongResult: the files have not the same names or sizes.
    """
    names = sorted(path.name for path in one.glob("*.png"))
    if not names or names != sorted(path.name for path in other.glob("*.png")):
        raise WrongResult(f"{one} and {other} have not the same files")
    largest = differing = total = 0
    for name in names:
        first, second = (np.asarray(Image.open(folder / name)).astype(int) for folder in (one, other))
        if first.shape != second.shape:
            raise WrongResult(f"{name} has not the same size in {one} and {other}")
        difference = abs(first - second)
        largest = max(largest, int(difference.max()))
        differing += int((difference > 0).sum())
        total += difference.size
    return {"files": len(names), "largest difference": largest, "fraction of differing pixels": differing / total}


# -- recorded steps ----------------------------------------------------------------------------------------------------

STEPS, BATCH = 6, 8
MAX_LOSS_DIFFERENCE, MAX_LOSS_DIFFERENCE_MIXED = 0.01, 0.05  # relative: the sums of a GPU have no fixed order


def steps(setting: Setting) -> None:
    """Compare the losses of training steps whose kernels are recorded and replayed with those of ordinary ones."""
    device = choose_device(setting.device)
    for dtype, limit in ((None, MAX_LOSS_DIFFERENCE), (amp_dtype(device, amp=True), MAX_LOSS_DIFFERENCE_MIXED)):
        ordinary, recorded = (np.array(step_losses(device, dtype, recorded)) for recorded in (False, True))
        difference = float((abs(recorded - ordinary) / ordinary).max())
        losses = {"largest relative difference of a loss": difference, "loss of the last step": float(recorded[-1])}
        losses["limit"] = limit
        setting.record(precision_name(dtype, device), losses)
        if not difference <= limit:
            raise WrongResult(f"recorded steps have the losses {recorded}, ordinary ones {ordinary}")


def step_losses(device: torch.device, dtype: torch.dtype | None, recorded: bool) -> list[float]:
    """The losses of some training steps in a precision, see `amp_dtype`; the last batch is smaller."""
    torch.manual_seed(0)
    network = BayesianUNet().to(device, memory_format=torch.channels_last)
    state = new_training_state(network, 1e-3, STEPS, dtype)
    if not recorded:
        state.batch_loss = BatchLoss(network, dtype)
    n = STEPS * BATCH - 3
    images = torch.randint(0, 256, (n, 3, 128, 128), dtype=torch.uint8)
    images[:, :, 30:90, 40:100] //= 3
    masks = torch.zeros(n, 128, 128, dtype=torch.uint8)
    masks[:, 30:90, 40:100] = 1
    batches = DataLoader(SeededTensorDataset(images, masks), batch_sampler=SeededBatchSampler(n, BATCH, seed=0))
    losses: list[float] = []
    train_one_epoch(state, batches, on_step=losses.append)
    return losses


# -- trainings that resume ---------------------------------------------------------------------------------------------

EPOCHS = 6


def resume(setting: Setting) -> None:
    """Stop a training by Ctrl-C after an epoch, another by a termination amid one, and resume both."""
    setting.training_folders()  # which both use
    with ThreadPoolExecutor(1 if setting.device == "cpu" else 2) as pool:  # each training uses all cores of a CPU
        runs = [
            pool.submit(stop_and_resume, setting, signal.SIGINT, 0.0),
            pool.submit(stop_and_resume, setting, signal.SIGTERM, 0.5),
        ]
    for result in runs:
        result.result()


def stop_and_resume(setting: Setting, signum: signal.Signals, wait: float) -> None:
    """Send a training a signal some fraction of an epoch after its second one, and resume it."""
    ends: list[float] = []

    def stop(line: str, process: subprocess.Popen) -> None:
        if epoch_lines([(0, line)]):
            ends.append(time.perf_counter())
            if len(ends) == 2:
                time.sleep(wait * (ends[1] - ends[0]))
                os.killpg(process.pid, signum)

    command = setting.train_command(signum.name, "--epochs", EPOCHS)
    log = run_logged(command, 100, stop).check(128 + signum)
    state = read_checkpoint(setting.work / signum.name / "last.pth")["training"]
    run_logged([*command, "--resume"], 100).check()
    with open(setting.work / signum.name / "metrics.csv", newline="") as file:
        epochs = [int(row["epoch"]) for row in csv.DictReader(file)]
    stopped = f"{state['step']} steps after epoch {state['epoch']}"
    setting.record(
        signum.name, {"exit code": log.code, "stopped": stopped, "epochs after resuming": ", ".join(map(str, epochs))}
    )
    if epochs != [*range(1, EPOCHS + 1)]:
        raise WrongResult(f"after {signum.name} and --resume metrics.csv has the epochs {epochs}, not 1 to {EPOCHS}")


# -- the test suite ----------------------------------------------------------------------------------------------------

TEST_FILES = (
    "test_bad_input.py",
    "test_calibration.py",
    "test_compare.py",
    "test_interruptions.py",
    "test_predict_bayesian.py",
    "test_prediction_scripts.py",
    "test_readme.py",
    "test_scripts.py",
    "test_training_script.py",
)
# Which tests of these are left out, and why.
LEFT_OUT = {
    "equal bits, also for other batches and in another run, which CUDA does not guarantee": (
        "test_interruptions.py::test_resume_after_a_kill",
        "test_interruptions.py::test_resume_restores_missing_files_and_refuses_other_settings",
        "test_prediction_scripts.py::test_probability_maps",
        "test_training_script.py::test_resume_after_a_kill_is_exact",
    ),
    "memory or size of files, which include those of CUDA": (
        "test_interruptions.py::test_folder_on_a_full_disk_lists_what_is_missing",
        "test_interruptions.py::test_passes_on_a_full_disk_leave_no_array",
        "test_interruptions.py::test_training_on_a_full_disk_keeps_earlier_checkpoints",
        "test_predict_bayesian.py::test_memory_of_a_large_image",
    ),
    "a user without privileges, who may not use the GPU": ("test_bad_input.py::test_folders_without_permission",),
    "a server, wandb, or nothing that depends on the device": (
        "test_readme.py::test_nothing_is_left_to_write",
        "test_readme.py::test_relative_links",
        "test_scripts.py::test_help",
        "test_scripts.py::test_mistakes_are_one_clear_message",
        "test_training_script.py::test_log_in_a_file",
    ),
}


def tests(setting: Setting) -> None:
    """Run the tests of whole scripts, which choose the GPU themselves."""
    files = setting.choose(TEST_FILES, ("test_calibration.py",))
    left_out = [
        argument for group in LEFT_OUT.values() for test in group for argument in ("--deselect", f"tests/{test}")
    ]
    processes = setting.choose("12", "2")
    options = ["-n", processes, "--dist", "worksteal", "-p", "no:cacheprovider", "--tb=short", "--durations=5"]
    command = [sys.executable, "-m", "pytest", *(f"tests/{file}" for file in files), *options, *left_out]
    log = run_logged(command, 240, env={**os.environ, "TESTS_SHOW_GPU": "1"})
    counts = pytest_counts(log.text)
    setting.record("outcome", counts | {"seconds": round(log.seconds, 1)})
    failed = re.findall(r"^(?:FAILED|ERROR) (.*)$", log.text, flags=re.MULTILINE)
    setting.record("failures", failed)
    if log.code != 0 or not counts.get("passed"):
        setting.record("output", log.text[-20000:])
        raise WrongResult(f"{len(failed)} tests failed, pytest ended with {log.code}: {', '.join(failed[:3])}")


def pytest_counts(text: str) -> dict[str, int]:
    """How many tests passed, failed and so on, from the last line of pytest's output."""
    lines = [line for line in text.splitlines() if re.search(r"\d+ \w+.* in [\d.]+s", line)]
    return {name: int(n) for n, name in re.findall(r"(\d+) ([a-z]+)", lines[-1].split(" in ")[0])} if lines else {}
