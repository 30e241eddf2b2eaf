"""A week's worth in an hour: many images and epochs, with kills, broken files, and a look at memory and open files.

`python tests/benchmarks/soak.py --output-dir DIR` predicts 20,000 small images by each method, killed every two minutes
and resumed, and trains 2,000 short epochs with 50 kills, all with a tiny network. It prints a table, and ends with 1 if
anything is not as it should be.
"""

import argparse
import csv
import random
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from unet import BayesianUNet  # noqa: E402
from utils.arguments import add_with_default, integer, number  # noqa: E402
from utils.checkpoint import TrainedModel, save_checkpoint  # noqa: E402

METHODS = {
    "predict.py": [],
    "predict_prob_direct.py": [],
    "predict_prob_bayesian.py": ["--mc", 3],
    "predict_prob_tta.py": [],
    "predict_bayesian.py": ["--mc", 2],
}
BROKEN_EVERY = 1000
GROWTH = 1.3  # by which memory may grow between the first fifth of the longest life of a process and its end
SPARE_FILES = 8  # by which the number of open files may


def make_images(folder: Path, count: int) -> int:
    """Write small images, of which one in a thousand is broken; returns the number of good ones."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i:05d}.png"
        if i % BROKEN_EVERY == BROKEN_EVERY - 1:
            path.write_bytes(b"\x89PNG broken")
        elif not path.exists():
            Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(path)
    return count - count // BROKEN_EVERY


def state_of(pid: int) -> tuple[float, int] | None:
    """Memory in MB and number of open files of a process; None where the system does not show them, or it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        memory = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        return memory / 1024, sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except (OSError, StopIteration):
        return None


def run_until_killed(command: list[object], seconds: float | None) -> tuple[int | None, list]:
    """Run a command, and kill it after so many seconds.

    Returns:
        The exit code, None if it was killed; and the states of the process, one per second.
    """
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    states, started = [], time.monotonic()
    try:
        while process.poll() is None and (seconds is None or time.monotonic() < started + seconds):
            time.sleep(min(1.0, (seconds or 20) / 20))
            states.append(state_of(process.pid))
        return process.poll(), states
    finally:
        process.kill()
        process.wait()


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none if there is no such file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def describe_states(lives: list[list]) -> tuple[str, bool]:
    """Memory and open files of the longest life, and whether they have kept their level."""
    states = [state for state in max(lives, key=len) if state]
    if len(states) < 10:
        return "too short to tell", True
    early, late = states[len(states) // 5], states[-2]
    text = f"{early[0]:.0f} to {late[0]:.0f} MB, {early[1]} to {late[1]} open files"
    return text, late[0] < GROWTH * early[0] and late[1] <= early[1] + SPARE_FILES


def soak_prediction(script: str, model: Path, imgs: Path, good: int, out: Path, seconds: float) -> bool:
    """Predict all images with kills; prints a line of the table."""
    flag = "-i" if script == "predict_bayesian.py" else "--input-dir"
    command = [sys.executable, script, flag, imgs, "-m", model, "--output-dir", out, "--skip-existing"]
    started, code, lives = time.monotonic(), None, []
    while code is None:
        code, life = run_until_killed([*command, *METHODS[script]], seconds)
        lives.append(life)
    kills = len(lives) - 1
    minutes = (time.monotonic() - started) / 60
    suffix = ".png" if script == "predict_bayesian.py" else "_OUT.png"
    masks = sum(1 for path in out.glob(f"?????{suffix}"))
    rows = len(rows_of(out / "summary.csv"))
    left = [path.name for path in out.glob(".*") if not path.name.startswith(".progress-")]
    states, level = describe_states(lives)
    expected_code = 1 if any(path.stat().st_size < 20 for path in imgs.iterdir()) else 0
    fine = level and code == expected_code and masks == rows == good and not left
    results = f"{masks} masks, {rows} rows of {good}"
    print(f"| {script} | {kills} | {minutes:.1f} | {results} | {states} | {'yes' if fine else left or code} |")
    return fine


def soak_training(model: Path, folder: Path, epochs: int, kills: int) -> bool:
    """Train many short epochs with kills at random times; prints a line of the table."""
    imgs, masks, out = folder / "train_imgs", folder / "train_masks", folder / "checkpoints"
    make_images(imgs, 8)
    masks.mkdir(exist_ok=True)
    for path in imgs.iterdir():
        mask = Image.new("L", (32, 24))
        mask.paste(255, (8, 6, 20, 18))
        mask.save(masks / path.name)
    common = [sys.executable, "train_bayesian.py", "--imgs-dir", imgs, "--masks-dir", masks, "--wandb", "disabled"]
    common += ["--cache-dir", folder / "cache", "--checkpoint-dir", out, "--epochs", epochs, "--validation", 25]
    started, rng, killed, code, lives = time.monotonic(), random.Random(0), 0, None, []
    while code is None:
        start = ["--resume"] if (out / "last.pth").exists() else ["--load", model]
        seconds = rng.uniform(5, 15) if killed < kills else None
        code, life = run_until_killed([*common, *start], seconds)
        lives.append(life)
        killed += code is None
    found = [int(float(row["epoch"])) for row in rows_of(out / "metrics.csv")]
    states, level = describe_states(lives)
    fine = level and code == 0 and found == [*range(1, epochs + 1)]
    minutes = (time.monotonic() - started) / 60
    results = f"{len(found)} of {epochs} epochs"
    print(f"| train_bayesian.py | {killed} | {minutes:.1f} | {results} | {states} | {'yes' if fine else code} |")
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = partial(add_with_default, parser)
    parser.add_argument(
        "--output-dir",
        type=lambda text: Path(text).resolve(),
        required=True,
        metavar="DIR",
        help="folder for images, model and results; results in it are resumed",
    )
    add("--images", type=integer(1), default=20_000, metavar="N", help="number of images for each script")
    add("--seconds", type=number(0, 1e9), default=120, metavar="S", help="time between the kills of a prediction")
    add("--epochs", type=integer(0), default=2_000, metavar="N", help="epochs of the training; 0 for no training")
    add("--kills", type=integer(0), default=50, metavar="N", help="kills of the training")
    names = {"default": [*METHODS], "choices": [*METHODS], "metavar": "SCRIPT"}
    parser.add_argument("--scripts", nargs="*", **names, help=f"of {', '.join(METHODS)} (default: all)")
    args = parser.parse_args()
    print(
        "| script | kills | minutes | results | longest life | as it should be |\n|---|---|---|---|---|---|", flush=True
    )
    good = make_images(args.output_dir / "imgs", args.images)
    model = args.output_dir / "tiny.pth"
    torch.manual_seed(0)
    save_checkpoint(model, TrainedModel(BayesianUNet(base_channels=1), (32, 32)))
    fine = [soak_training(model, args.output_dir, args.epochs, args.kills)] if args.epochs else []
    for script in args.scripts:
        out = args.output_dir / script.removesuffix(".py")
        fine.append(soak_prediction(script, model, args.output_dir / "imgs", good, out, args.seconds))
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    sys.exit(main())
