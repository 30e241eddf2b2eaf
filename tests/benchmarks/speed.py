"""Speed and memory of the scripts, compared with the straightforward implementation.

`python tests/benchmarks/speed.py` makes synthetic images, runs both implementations in turn as whole processes, checks
that their results agree, and prints tables; `--quick` uses a few small images, `--amp` mixed precision. The
straightforward implementation is `straightforward.py`: one image after the other, one pass or view at a time, each at
full size.
Nothing else should run meanwhile. `gpu.py` measures a GPU.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.measuring import ROOT, WrongResult, make_jpegs, processor
from tests.benchmarks.straightforward import PASSES

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
    """Seconds that a command takes, and its peak memory in MB.

    Raises:
        WrongResult: it failed.
    """
    launched = [sys.executable, "-c", LAUNCHER, *map(str, command)]
    result = subprocess.run(launched, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise WrongResult(f"{' '.join(map(str, command))} failed:\n{result.stderr}")
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
            raise WrongResult(f"{task}: the results differ by {differs:.3f} grey levels, more than {tolerance}")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few small images: a few minutes")
    parser.add_argument("--amp", action="store_true", help="mixed precision, for both implementations")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for both implementations")
    parser.add_argument("--repeats", type=int, help="pairs of runs (3, with --quick 1)")
    parser.add_argument("--images", type=int, help="images per folder (30, with --quick 4)")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, help="only these comparisons")
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
                make_jpegs(target, count, size)
            return target / "imgs"

        base = statistics.median(run([sys.executable, "-c", "import torch"])[1] for _ in range(3))
        machine = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {processor(args.device)}"
        print(f"{machine}, torch {torch.__version__}")
        print(f"{' '.join(flags)}; images of {megapixels:g} megapixels; medians of {repeats}\n", flush=True)
        tasks = {task: make(1 if task == "single" else n, megapixels) for task in args.only or SCRIPTS}
        compare(tasks, work, flags, repeats, base)
        if args.only:
            return
        growth(make, work, flags, args.quick)
        starts(3)


if __name__ == "__main__":
    main()
