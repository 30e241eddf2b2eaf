"""How fast a GPU is: a whole training, whole folders of large images, and profiles of both."""

import csv
import json
import os
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.gpu_setting import Setting
from tests.benchmarks.measuring import Log, WrongResult, make_jpegs, run_logged

Lines = Sequence[tuple[float, str]]

# -- a whole training --------------------------------------------------------------------------------------------------

STARTED = "Writing checkpoints to"  # the last log line before the first epoch
MIN_DICE = {"real": 0.85, "synthetic": 0.5}


def training(setting: Setting) -> None:
    """Time the default training, whose images have not been decoded before, and evaluate it."""
    epochs = setting.choose([], ["--epochs", 2])
    log = run_logged(setting.train_command("trained", *epochs), 240)
    if any(STARTED in line for _, line in log.lines) and epoch_lines(log.lines):
        setting.record("images", len(list(setting.training_folders()[0].iterdir())))
        for name, value in training_times(log.lines, log.seconds).items():
            setting.record(name, value)
    log.check()

    def stop(line: str, process: subprocess.Popen) -> None:
        if STARTED in line:
            os.killpg(process.pid, signal.SIGTERM)

    again = run_logged(setting.train_command("again"), 60, stop).check(143)
    start = next(at for at, line in again.lines if STARTED in line)
    setting.record("start with a warm cache, seconds", round(start, 2))

    dice = best_dice(log.lines)
    setting.record("best validation Dice", dice)
    minimum = setting.choose(MIN_DICE["real" if setting.data else "synthetic"], 0.0)
    if setting.data:
        out = setting.work / "test"
        folders = ["--input-dir", setting.data / "imgs_test", "--mask-dir", setting.data / "masks_test"]
        model = ["--output-dir", out, "-m", setting.work / "trained" / "best.pth", "--device", setting.device]
        run_logged([sys.executable, "predict.py", *folders, *model], 90).check()
        scores = mean_scores(out / "metrics.csv")
        for name, value in scores.items():
            setting.record(name, value)
        dice = min(dice, scores["test Dice, mean"])
    if dice < minimum:
        raise WrongResult(f"a training ends with a Dice of {dice:.4f}, less than {minimum}")


def epoch_lines(lines: Lines) -> list[tuple[float, str]]:
    """The lines that report a completed epoch."""
    return [(at, line) for at, line in lines if re.match(r"Epoch \d+/\d+: loss ", line)]


def training_times(lines: Lines, seconds: float) -> dict[str, float]:
    """The time of a training by part, from the arrival times of its log lines."""
    start = next(at for at, line in lines if STARTED in line)
    ends = [at for at, _ in epoch_lines(lines)]
    durations = [end - begin for begin, end in zip([start, *ends], ends, strict=False)]
    return {
        "seconds": round(seconds, 1),
        "epochs": len(ends),
        "start and decoding, seconds": round(start, 2),
        "all epochs, seconds": round(ends[-1] - start, 2),
        "first epoch, seconds": round(durations[0], 2),
        "median epoch, seconds": round(statistics.median(durations), 3),
        "temperatures and end, seconds": round(seconds - ends[-1], 2),
    }


def best_dice(lines: Lines) -> float:
    """The best validation Dice of a training, from its last line."""
    return float(re.findall(r"Best validation Dice ([\d.]+):", "".join(line for _, line in lines))[-1])


def mean_scores(path: Path) -> dict[str, float]:
    """Mean and median test Dice and Jaccard index of the rows of a metrics.csv."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        f"test {score}, {name}": round(average([float(row[score.lower()]) for row in rows]), 4)
        for score in ("Dice", "Jaccard")
        for name, average in (("mean", statistics.mean), ("median", statistics.median))
    }


# -- folders of large images -------------------------------------------------------------------------------------------

MC = ["predict_prob_bayesian.py", "--mc", "50"]
FOLDERS = {"MC 50": MC, "TTA": ["predict_prob_tta.py"], "direct": ["predict_prob_direct.py"]}


def throughput(setting: Setting) -> None:
    """Images per second of folders of photographs, in mixed precision, with and without ground truth."""
    distinct, copies, megapixels = setting.choose((30, 10, 6.0), (2, 2, 1.0))
    imgs, masks = make_jpegs(setting.work / "many", distinct, megapixels, copies)
    runs = {name: (script, []) for name, script in FOLDERS.items()}
    runs["MC 50 with --mask-dir"] = (MC, ["--mask-dir", masks])
    setting.record("megapixels", megapixels)
    logs = []
    for name, (script, more) in runs.items():
        out = ["--output-dir", setting.work / "many" / name]
        common = ["--input-dir", imgs, *out, "--device", setting.device, "--amp", "--verbose"]
        logs.append(run_logged([sys.executable, *script, *common, *more], 90))
        setting.record(name, image_rates(logs[-1]))
    for log in logs:
        log.check()


def image_rates(log: Log) -> dict[str, float]:
    """Images per second of the whole process, and between the first quarter of the images and the last one."""
    times = [at for at, line in log.lines if re.search(r": \d+x\d+ pixels, area ", line)]
    rates = {"images": len(times), "seconds": round(log.seconds, 2)}
    rates["images per second, whole process"] = round(len(times) / log.seconds, 2)
    first = len(times) // 4
    if len(times) - first > 1:
        rates["images per second, steady"] = round((len(times) - 1 - first) / (times[-1] - times[first]), 2)
    return rates


# -- profiles ----------------------------------------------------------------------------------------------------------


def profile(setting: Setting) -> None:
    """Profile training and MC dropout, each in a process of its own."""
    imgs, masks = setting.training_folders()
    large, _ = make_jpegs(setting.work / "large", *setting.choose((16, 6.0), (2, 1.0)))
    folders = {
        "training": ["--imgs", imgs, "--masks", masks, "--cache-dir", setting.work / "cache"],
        "prediction": ["--imgs", large],
    }
    logs = []
    for name, flags in folders.items():
        out = setting.work / f"{name}.json"
        script = [sys.executable, Path(__file__).with_name("profiling.py"), name]
        more = setting.choose([], ["--quick"])
        logs.append(run_logged([*script, *flags, "--device", setting.device, "--out", out, *more], 120))
        for key, value in json.loads(out.read_text()).items() if out.exists() else ():
            setting.record(f"{name}: {key}", value)
    for log in logs:
        log.check()
