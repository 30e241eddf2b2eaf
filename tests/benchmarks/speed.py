"""Speed and memory of the scripts, compared with the straightforward implementation.

`python tests/benchmarks/speed.py` makes synthetic images, runs both implementations in turn as whole processes, checks
that their results agree, and prints tables; `--quick` uses a few small images, `--amp` mixed precision. The
straightforward implementation is `straightforward.py`: one image after the other, one pass or view at a time, each at
full size.
Nothing else should run meanwhile. `--imgs-dir` and `--masks-dir` time a training with the default settings, too.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

environment = dict(os.environ)
from tests.conftest import make_folders  # noqa: E402

os.environ.clear()
os.environ.update(environment)  # without the settings of the tests: one thread and no GPU
from tests.benchmarks.straightforward import PASSES  # noqa: E402

SCRIPTS = {
    "tta": ["predict_prob_tta.py"],
    "mc": ["predict_prob_bayesian.py", "--mc", str(PASSES)],
    "direct": ["predict_prob_direct.py"],
    "mask": ["predict.py"],
    "single": ["predict_bayesian.py", "--mc", str(PASSES), "--save-prob"],
}
# Largest mean difference of the results in grey levels: views at full size begin and end at whole pixels, both use the
# same dropout masks, and bfloat16 has 8 bits of precision.
MAX_DIFFERENCE = {"tta": 0.3, "mc": 0.1, "direct": 0.1, "mask": 0.1, "single": 0.1}
MAX_DIFFERENCE_AMP = 1.0


# -- measuring ---------------------------------------------------------------------------------------------------------


# A process inherits the peak memory of its parent, which therefore has to be a small one.
LAUNCHER = """
import os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
print(time.perf_counter() - started, used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))
sys.exit(status != 0)
"""


def run(command: list[object]) -> tuple[float, float]:
    """Seconds that a command takes, and its peak memory in MB."""
    launched = [sys.executable, "-c", LAUNCHER, *map(str, command)]
    result = subprocess.run(launched, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stderr}")
    seconds, memory = map(float, result.stdout.split())
    return seconds, memory


def ours(task: str, imgs: Path, out: Path, flags: list[str]) -> list[object]:
    folder = "-i" if task == "single" else "--input-dir"
    return [sys.executable, *SCRIPTS[task], folder, imgs, "--output-dir", out, *flags]


def theirs(task: str, imgs: Path, out: Path, flags: list[str]) -> list[object]:
    return [sys.executable, Path(__file__).with_name("straightforward.py"), task, imgs, out, *flags]


def difference(one: Path, other: Path) -> float:
    """Mean difference of the images of two folders in grey levels."""
    names = {path.name for path in one.glob("*.png")} & {path.name for path in other.glob("*.png")}
    pairs = [[np.asarray(Image.open(folder / name), dtype=float) for folder in (one, other)] for name in names]
    return float(np.mean([abs(a - b).mean() for a, b in pairs]))


def spread(values: list[float], digits: int = 2) -> str:
    """Median, minimum and maximum."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def compare(tasks: dict[str, Path], work: Path, flags: list[str], repeats: int, base: float) -> None:
    """Run both implementations in turn for each task."""
    print(
        "| task | straightforward | this project | speed-up | MB over `import torch`, straightforward | this project |"
    )
    print("|---|---|---|---|---|---|")
    for task, imgs in tasks.items():
        n = len(list(imgs.iterdir()))
        pairs = []
        for _ in range(repeats):
            before = run(theirs(task, imgs, work / f"{task}_before", flags))
            pairs.append((before, run(ours(task, imgs, work / f"{task}_now", flags))))
        differs = difference(work / f"{task}_before", work / f"{task}_now")
        tolerance = MAX_DIFFERENCE_AMP if "--amp" in flags else MAX_DIFFERENCE[task]
        if not differs <= tolerance:
            sys.exit(f"{task}: the results differ by {differs:.3f} grey levels, more than {tolerance}")
        ratios = [before[0] / now[0] for before, now in pairs]
        seconds, memory = (
            [statistics.median(side[i] for side in sides) for sides in zip(*pairs, strict=True)] for i in (0, 1)
        )
        work_done = f"`{' '.join(SCRIPTS[task])}`, {n} image{'s' * (n > 1)}"
        times = f"{seconds[0] / n:.2f} s | {seconds[1] / n:.2f} s | {spread(ratios)}"
        print(
            f"| {work_done} | {times} | {memory[0] - base:.0f} | {memory[1] - base:.0f} |",
            flush=True,
        )


def growth(make: Callable[[int, float], Path], work: Path, flags: list[str], quick: bool) -> None:
    """Scaling of the time per image, without the start-up time of the script."""
    megapixels, n = (1.0, 2) if quick else (6.0, 4)
    start, _ = run(ours("direct", make(1, 0.01), work / "g", flags))

    def seconds(script: list[str], imgs: Path) -> float:
        return run([sys.executable, *script, "--input-dir", imgs, "--output-dir", work / "g", *flags])[0] - start

    def row(title: str, times: dict[object, float]) -> None:
        print(f"| {title} | {', '.join(f'{x}: {value:.2f} s' for x, value in times.items())} |", flush=True)

    print("\n| scaling | |\n|---|---|")
    some = make(n, megapixels)
    passes = {t: seconds(["predict_prob_bayesian.py", "--mc", str(t)], some) / n for t in (1, 5, 20, 50)}
    row(f"time per image of {megapixels:g} megapixels, MC dropout, by passes", passes)
    sizes = (0.5, 1.0) if quick else (0.5, 2.0, 6.0, 12.0)
    row("time per image, 16 views, by megapixels", {m: seconds(SCRIPTS["tta"], make(n, m)) / n for m in sizes})
    counts = (2, 4) if quick else (2, 4, 8, 16)
    row(
        f"total time of images of {megapixels:g} megapixels, 16 views, by their number",
        {count: seconds(SCRIPTS["tta"], make(count, megapixels)) for count in counts},
    )


def starts(repeats: int) -> None:
    """Start-up time of the scripts beyond importing PyTorch."""
    print("\n| start-up of | seconds over `import torch` |\n|---|---|")
    for script in sorted(ROOT.glob("*.py")):
        over = []
        for _ in range(repeats):
            base, _ = run([sys.executable, "-c", "import torch"])
            over.append(run([sys.executable, script, "--help"])[0] - base)
        print(f"| {script.name} | {spread(over)} |", flush=True)


def throughput(imgs: Path, work: Path, flags: list[str]) -> None:
    """Images per second of a folder that is large enough for the start-up time to be negligible."""
    many = work / "many"
    many.mkdir()
    for copy in range(10):
        for path in imgs.iterdir():
            os.link(path, many / f"{copy}_{path.name}")
    n = len(list(many.iterdir()))
    print("\n| whole process | images per second |\n|---|---|")
    for script in (["predict_prob_bayesian.py", "--mc", "50"], SCRIPTS["tta"]):
        seconds, _ = run([sys.executable, *script, "--input-dir", many, "--output-dir", work / "m", *flags])
        print(f"| `{' '.join(script)}`, {n} images | {n / seconds:.1f} |", flush=True)


def training(imgs: Path, masks: Path, work: Path, device: torch.device, amp: bool) -> None:
    """Fraction of an epoch's time, from the second one on, in the network, and of that in convolutions."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile
    from torch.utils.data import DataLoader

    from unet import BayesianUNet
    from utils.data.augmentation import TrainingTransforms
    from utils.data_loading import SeededBatchSampler, SegmentationDataset, load_pairs
    from utils.training.loop import train_one_epoch
    from utils.training.state import new_training_state

    class Timed(DataLoader):
        waited = 0.0

        def __iter__(self):
            batches = super().__iter__()
            while True:
                started = time.perf_counter()
                batch = next(batches, None)
                self.waited += time.perf_counter() - started
                if batch is None:
                    return
                yield batch

    decoded = load_pairs(imgs, masks, (128, 128), work / "cache")
    n = len(decoded.pairs)
    dataset = SegmentationDataset(decoded, range(n), decoded.mask_values(2), TrainingTransforms("light"))
    batches = Timed(dataset, batch_sampler=SeededBatchSampler(n, 4, seed=0))
    network = BayesianUNet().to(device, memory_format=torch.channels_last)
    dtype = torch.bfloat16 if amp else None
    state = new_training_state(network, 1e-3, 4 * len(batches), dtype)
    fractions = []
    for _ in range(3):
        batches.waited, started = 0.0, time.perf_counter()
        train_one_epoch(state, batches)
        fractions.append(1 - batches.waited / (time.perf_counter() - started))
        state.complete_epoch({})
    print(f"\nTraining on full-size JPEGs, fraction of an epoch's time in the network: {spread(fractions[1:], 3)}")

    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiled:
        train_one_epoch(state, batches)
    times = {
        event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total
        for event in profiled.key_averages()
        if event.device_type == DeviceType.CPU  # operations, to which the time of a GPU's kernels is attributed, too
    }
    total = sum(times.values())
    convolutions = sum(spent for name, spent in times.items() if "conv" in name)
    print(
        f"Fraction of the {device.type.upper()} time in convolutions: {convolutions / total:.2f}. Slowest operations:"
    )
    for name in sorted(times, key=times.get, reverse=True)[:8]:
        print(f"  {name}: {times[name] / total:.3f}")


def train(imgs: Path, masks: Path, work: Path, flags: list[str]) -> None:
    """A training with the default settings on real images."""
    folders = ["--imgs-dir", imgs, "--masks-dir", masks, "--checkpoint-dir", work / "c", "--cache-dir", work / "cache"]
    seconds, _ = run([sys.executable, "train_bayesian.py", "--wandb", "disabled", *folders, *flags])
    print(f"\nA training with the default settings: {seconds:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few small images: a few minutes")
    parser.add_argument("--amp", action="store_true", help="mixed precision, for both implementations")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for both implementations")
    parser.add_argument("--repeats", type=int, help="pairs of runs (3, with --quick 1)")
    parser.add_argument("--images", type=int, help="images per folder (30, with --quick 4)")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, help="only these comparisons")
    parser.add_argument("--imgs-dir", type=Path, help="images for a training with the default settings")
    parser.add_argument("--masks-dir", type=Path, help="their masks")
    args = parser.parse_args()
    flags = [*(["--amp"] if args.amp else []), "--device", args.device]
    repeats = args.repeats or (1 if args.quick else 3)
    n, megapixels = args.images or (4 if args.quick else 30), 1.0 if args.quick else 6.0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)

        def make(count: int, size: float) -> Path:
            """A folder of so many JPEGs of so many megapixels, 3:2."""
            target = work / f"{count}_{size}"
            if not target.exists():
                width = round((size * 1e6 * 1.5) ** 0.5)
                make_folders(target, count, (width, round(width / 1.5)))
            return target / "imgs"

        base = statistics.median(run([sys.executable, "-c", "import torch"])[1] for _ in range(3))
        print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {processor()}, torch {torch.__version__}")
        print(f"{' '.join(flags)}; images of {megapixels:g} megapixels; medians of {repeats}\n", flush=True)
        tasks = {task: make(1 if task == "single" else n, megapixels) for task in args.only or SCRIPTS}
        compare(tasks, work, flags, repeats, base)
        if args.only:
            return
        growth(make, work, flags, args.quick)
        starts(3)
        imgs, device = make(n, megapixels), torch.device(args.device)
        if device.type == "cuda":
            throughput(imgs, work, flags)
        training(imgs, imgs.parent / "masks", work, device, args.amp)
        if args.imgs_dir and args.masks_dir:
            train(args.imgs_dir, args.masks_dir, work, flags)


def processor() -> str:
    """The name of the GPU or the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
