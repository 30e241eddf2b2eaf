"""Speed and memory of the scripts, between the straightforward implementation and the network alone.

`python tests/benchmarks/speed.py` makes synthetic images, runs both implementations in turn as whole processes, checks
that their results agree, and prints tables; `--quick` uses a few small images, `--amp` mixed precision, `--compile` the
compiled network in the scripts. The straightforward implementation is `straightforward.py`: one image after the other,
one pass or view at a time, each at full size. The network alone is `network_alone.py`: the forward passes, in batches.
Nothing else should run meanwhile. `gpu.py` measures a GPU.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.measuring import ROOT, WrongResult, make_jpegs, processor
from tests.benchmarks.straightforward import PASSES

BENCHMARKS = Path(__file__).parent
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
SAMPLE = 10  # images that the straightforward implementation predicts: it is slow
DISTINCT = 10  # images that differ; the others are links to them

CAPTION = f"""
Whole processes with their start, per image; medians with minimum and maximum; peak memory beyond that of `import
torch`. The straightforward way predicts the first {SAMPLE} images, and once more the first one: the difference, divided
by {SAMPLE - 1}, is its time for each further image. The network alone: the forward passes of the same images, no start.
"""
HEADER = (
    "| task | straightforward | this project | speed-up | time / network alone | time / compiled network alone "
    "| memory, straightforward | this project |\n|---|---|---|---|---|---|---|---|"
)

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


def run_straightforward(task: str, imgs: Path, out: Path, flags: list[str]) -> tuple[float, float]:
    """Seconds that the straightforward implementation takes for a folder, and its peak memory in MB.

    Of a folder of more than SAMPLE images it predicts so many, and one. The difference is the time of the further ones.
    """
    n, command = len(list(imgs.iterdir())), [sys.executable, BENCHMARKS / "straightforward.py", task, imgs, out, *flags]
    seconds, memory = run([*command, "--first", SAMPLE])
    if n > SAMPLE:
        seconds += (n - SAMPLE) * (seconds - run([*command, "--first", 1])[0]) / (SAMPLE - 1)
    return seconds, memory


def run_network_alone(task: str, imgs: Path, flags: list[str]) -> list[float]:
    """Seconds of the forward passes for a folder, as PyTorch runs them and compiled.

    Raises:
        WrongResult: the process failed.
    """
    command = [sys.executable, BENCHMARKS / "network_alone.py", task, imgs, *flags]
    result = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise WrongResult(f"{' '.join(map(str, command))} failed:\n{result.stderr}")
    return [float(value) for value in result.stdout.split()]


def difference(one: Path, other: Path) -> float:
    """Mean difference of the images of two folders in grey levels."""
    names = {path.name for path in one.glob("*.png")} & {path.name for path in other.glob("*.png")}
    pairs = [[np.asarray(Image.open(folder / name), dtype=float) for folder in (one, other)] for name in names]
    return float(np.mean([abs(a - b).mean() for a, b in pairs]))


class Measured(NamedTuple):
    """Seconds for a folder, and peak memory in MB."""

    straightforward: float
    here: float
    alone: float
    compiled: float
    straightforward_memory: float
    memory: float


def compare(
    tasks: dict[str, Path],
    work: Path,
    flags: list[str],
    repeats: int,
    compile_scripts: bool,
    compile_network: bool,
) -> None:
    """Run both implementations and the network alone in turn for each task.

    Args:
        tasks: with the folder of images of each.
        work: folder for the results.
        flags: of all processes.
        repeats: how often each is measured.
        compile_scripts: measure the scripts with --compile, after a run that fills the compiler's cache.
        compile_network: also measure the compiled network alone.
    """
    _, base = run([sys.executable, "-c", "import torch"])
    network_flags = [*flags, *["--compile"] * compile_network]
    print(HEADER)
    for task, imgs in tasks.items():
        before, now, measured = work / f"{task}_before", work / f"{task}_now", []
        script = ours(task, imgs, now, flags)
        if compile_scripts:
            script.append("--compile")
            run(script)
        for _ in range(repeats):
            seconds, memory = zip(run_straightforward(task, imgs, before, flags), run(script), strict=True)
            measured.append(Measured(*seconds, *run_network_alone(task, imgs, network_flags), *memory))
        differs, tolerance = difference(before, now), MAX_DIFFERENCE_AMP if "--amp" in flags else MAX_DIFFERENCE[task]
        if not differs <= tolerance:
            raise WrongResult(f"{task}: the results differ by {differs:.3f} grey levels, more than {tolerance}")
        print(row(task, len(list(imgs.iterdir())), measured, base), flush=True)


def row(task: str, n: int, measured: list[Measured], base: float) -> str:
    """A row of the table: times per image, ratios of times, and memory beyond `base`."""
    middle = Measured(*map(statistics.median, zip(*measured, strict=True)))
    cells = [
        f"`{' '.join(SCRIPTS[task])}`" + (", one image" if n == 1 else ""),
        f"{middle.straightforward / n:.2f} s",
        f"{middle.here / n:.2f} s",
        spread([run.straightforward / run.here for run in measured], 1),
        spread([run.here / run.alone for run in measured]),
        spread([run.here / run.compiled for run in measured]),
        f"{middle.straightforward_memory - base:.0f} MB",
        f"{middle.memory - base:.0f} MB",
    ]
    return f"| {' | '.join(cells)} |"


def spread(values: list[float], digits: int = 2) -> str:
    """Median, minimum and maximum; a dash if there is none."""
    if any(map(math.isnan, values)):
        return "-"
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def growth(make: Callable[[int, float], Path], work: Path, flags: list[str]) -> None:
    """Scaling of the time per image, without the start-up time of the script."""
    megapixels, n = 6.0, 4
    start, _ = run(ours("direct", make(1, 0.01), work / "g", flags))

    def seconds(script: list[str], imgs: Path) -> float:
        return run([sys.executable, *script, "--input-dir", imgs, "--output-dir", work / "g", *flags])[0] - start

    def show(title: str, times: dict[object, float]) -> None:
        print(f"| {title} | {', '.join(f'{x}: {value:.2f} s' for x, value in times.items())} |", flush=True)

    print("\n| scaling | |\n|---|---|")
    some = make(n, megapixels)
    passes = {t: seconds(["predict_prob_bayesian.py", "--mc", str(t)], some) / n for t in (1, 5, 20, 50)}
    show(f"time per image of {megapixels:g} megapixels, MC dropout, by passes", passes)
    sizes = (0.5, 2.0, 6.0, 12.0)
    show("time per image, 16 views, by megapixels", {m: seconds(SCRIPTS["tta"], make(n, m)) / n for m in sizes})
    show(
        f"total time of images of {megapixels:g} megapixels, 16 views, by their number",
        {count: seconds(SCRIPTS["tta"], make(count, megapixels)) for count in (2, 4, 8, 16)},
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
    parser.add_argument("--quick", action="store_true", help="two small images, the first table: about a minute")
    parser.add_argument("--amp", action="store_true", help="mixed precision, for both implementations")
    parser.add_argument("--compile", action="store_true", help="the scripts with --compile; the first table only")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for both implementations")
    parser.add_argument("--repeats", type=int, help="runs of each (3, with --quick 1)")
    parser.add_argument("--images", type=int, help="images per folder (100, with --quick 2)")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, help="only these comparisons")
    args = parser.parse_args()
    flags = ["--device", args.device, *["--amp"] * args.amp]
    repeats = args.repeats or (1 if args.quick else 3)
    n, megapixels = args.images or (2 if args.quick else 100), 1.0 if args.quick else 6.0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)

        def make(count: int, size: float) -> Path:
            """A folder of so many JPEGs of so many megapixels, 3:2."""
            target = work / f"{count}_{size}"
            if not target.exists():
                distinct = min(count, DISTINCT)
                imgs, _ = make_jpegs(target, distinct, size, copies=math.ceil(count / distinct))
                for path in sorted(imgs.iterdir())[count:]:
                    path.unlink()
            return target / "imgs"

        machine = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {processor(args.device)}"
        print(f"{machine}, torch {torch.__version__}")
        shown = " ".join([*flags, *["--compile"] * args.compile])
        print(f"{shown}; {n} JPEGs of {megapixels:g} megapixels; runs: {repeats}\n{CAPTION}")
        tasks = {task: make(1 if task == "single" else n, megapixels) for task in args.only or SCRIPTS}
        compile_network = args.compile or not args.quick  # to compile takes several seconds every time
        compare(tasks, work, flags, repeats, args.compile, compile_network)
        if args.only or args.quick or args.compile:
            return
        growth(make, work, flags)
        starts(3)


if __name__ == "__main__":
    main()
