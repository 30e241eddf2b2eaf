"""Whether the project is right and fast on a CUDA GPU, in one command.

`python tests/benchmarks/gpu.py --data data` compares maps with those of the CPU, trains, stops and resumes trainings,
times the prediction of large images, profiles both, and runs the tests of whole scripts on the GPU. Everything is
written to `gpu.json` as soon as it is measured, and to `gpu.md` after each part. A wrong result ends its part, the
others follow, and the exit code is 1. `--fill FILE` measures nothing: it writes the table of an earlier run into a
document.
"""

import argparse
import datetime
import json
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import gpu_checks, gpu_speed
from tests.benchmarks.gpu_report import document, fill
from tests.benchmarks.gpu_setting import Setting
from tests.benchmarks.measuring import WrongResult, processor
from utils.runtime.threads import usable_cores

PARTS = {
    "maps": gpu_checks.maps,
    "steps": gpu_checks.steps,
    "training": gpu_speed.training,
    "resume": gpu_checks.resume,
    "throughput": gpu_speed.throughput,
    "profile": gpu_speed.profile,
    "tests": gpu_checks.tests,
}


class Recorder:
    """The results, which are written to `STEM.json` with every change.

    Args:
        stem: path of the results' files without a suffix.
        machine: what is measured on.
    """

    def __init__(self, stem: Path, machine: dict[str, Any]) -> None:
        self.stem, self.started = stem, time.monotonic()
        self.results: dict[str, Any] = {"machine": machine, "parts": {}, "seconds": {}, "wrong": []}

    def record(self, part: str, name: str, value: object) -> None:
        """Add a value that was measured."""
        self.results["parts"].setdefault(part, {})[name] = value
        print(f"{time.monotonic() - self.started:5.0f} s  {part}: {name}: {str(value)[:300]}", flush=True)
        self._write()

    def fail(self, message: str) -> None:
        """Add a wrong result."""
        self.results["wrong"].append(message)
        print(message, file=sys.stderr, flush=True)
        self._write()

    def end_part(self, part: str, seconds: float) -> None:
        """Record how long a part took, and write `STEM.md`."""
        self.results["seconds"][part] = round(seconds, 1)
        self._write()
        self.stem.with_suffix(".md").write_text(document(self.results), encoding="utf-8")

    def _write(self) -> None:
        self.stem.with_suffix(".json").write_text(json.dumps(self.results, indent=1), encoding="utf-8")


def measure(part: str, setting: Setting, recorder: Recorder) -> None:
    """Run a part; whatever its failure, it is recorded, and the other parts can be measured."""
    started = time.monotonic()
    try:
        PARTS[part](setting)
    except WrongResult as error:
        recorder.fail(f"{part}: {error}")
    except Exception as error:
        recorder.fail(f"{part}: {type(error).__name__}: {error}\n{traceback.format_exc()}")
    recorder.end_part(part, time.monotonic() - started)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try this command")
    parser.add_argument("--quick", action="store_true", help="few and small images: whether it works, no measurement")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--data", type=Path, help="folder with imgs, masks, imgs_test, masks_test (default: synthetic)")
    parser.add_argument("--out", type=Path, default=Path("gpu"), metavar="STEM", help="writes STEM.md and STEM.json")
    parser.add_argument("--fill", type=Path, metavar="FILE", help="write the table of STEM.json into this document")
    args = parser.parse_args()
    if args.fill:
        fill(args.fill, json.loads(args.out.with_suffix(".json").read_text(encoding="utf-8")))
        return 0
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"device {args.device} is not available")
    if args.data and not (args.data / "imgs").is_dir():
        parser.error(f"{args.data / 'imgs'}: there is no such folder")
    args.data = args.data and args.data.resolve()
    machine = {
        "name": processor(args.device),
        "cores": usable_cores(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "quick": args.quick,
    }
    recorder = Recorder(args.out.resolve(), machine)
    with tempfile.TemporaryDirectory() as folder:
        for part in args.only or PARTS:
            record = partial(recorder.record, part)
            measure(part, Setting(args.device, args.quick, args.data, Path(folder), record), recorder)
    if wrong := recorder.results["wrong"]:
        print(f"Wrong: {wrong[0].splitlines()[0]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
