"""Run the scripts, in this process, with random flags, environments and permissions: no traceback may result.

`python tests/benchmarks/environment_fuzzing.py --runs 10000` prints each command that ended otherwise than documented.
"""

import argparse
import ctypes
import importlib
import io
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from tqdm import tqdm  # noqa: E402

from unet import BayesianUNet  # noqa: E402
from utils import cli  # noqa: E402
from utils.arguments import add_with_default, integer  # noqa: E402
from utils.checkpoint import TrainedModel, save_checkpoint  # noqa: E402
from utils.figures.environment import load_matplotlib  # noqa: E402

FOLDER_SCRIPTS = ("predict", "predict_prob_direct", "predict_prob_bayesian", "predict_prob_tta")
CODES = (0, 1, 2)

# What may be left over in an environment. Never all that torchrun sets: this process would wait for the others.
VARIABLES = {
    "WORLD_SIZE": ("", "1", "4", "x", "-1"),
    "RANK": ("", "0", "3", "x"),
    "LOCAL_RANK": ("", "0", "x"),
    "LOCAL_WORLD_SIZE": ("", "0", "2", "x", "-3"),
    "MASTER_ADDR": ("", "localhost"),
    "OMP_NUM_THREADS": ("", "0", "2", "x"),
    "MPLBACKEND": ("", "agg", "nonsense", "module://matplotlib_inline.backend_inline", "TkAgg"),
    "MPLCONFIGDIR": ("", "/dev/null/nowhere"),
    "CUDA_VISIBLE_DEVICES": ("", "0", "x", "-1"),
    "WANDB_MODE": ("disabled", "nonsense", ""),
    "WANDB_API_KEY": ("", "nonsense"),
    "WANDB_BASE_URL": ("", "nonsense"),
    "NETRC": ("", "/dev/null/nowhere"),
    "HOME": ("", "/", "/nowhere"),
    "TMPDIR": ("/nowhere", ""),
    "COLUMNS": ("", "0", "1", "x"),
    "LANG": ("C", "", "nonsense"),
    "SLURM_NTASKS": ("2", "x"),
}
SWITCHES = ("--recursive", "--skip-existing", "--amp", "--quiet", "--bilinear", "--calibrated", "--save-npy")
SWITCHES += ("--no-save", "--save-entropy", "--save-prob", "--save-mean-std", "--viz", "--resume", "--skip-unusable")
VALUES = {
    "--batch-size": ("1", "0", "3", "x"),
    "--classes": ("1", "2", "3", "256"),
    "--class-index": ("0", "1", "2"),
    "--mask-threshold": ("0", "0.5", "1", "nan"),
    "--device": ("cpu", "cuda", "cuda:7", "meta", "toaster", ""),
    "--seed": ("0", "7", "-1"),
    "--mc": ("0", "1", "2", "x"),
    "--ext": (".jpg", "jpg", "", ".nothing"),
    "--newW": ("16", "32", "15"),
    "--shrink": ("0.5", "1", "2"),
    "--mask-suffix": ("_Segmentation", "", "_x"),
    "--ignore-value": ("255", "x", "7"),
    "--white": ("255", "0", "1e9"),
    "--max-megapixels": ("179", "0.0001", "1e300"),
    "--validation": ("50", "0", "100", "nan", "-5"),
    "--learning-rate": ("1e-3", "10", "0"),
    "--epochs": ("1", "0"),
    "--background": ("0", "255", "9"),
}


class Workplace:
    """A folder with a tiny model and a few images, good ones, broken ones and with names of all kinds."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        self.model = folder / "model.pth"
        torch.manual_seed(0)
        save_checkpoint(self.model, TrainedModel(BayesianUNet(base_channels=1).eval(), (32, 32)))
        (folder / "empty").mkdir()
        self.tidy()
        (folder / "broken.jpg").write_bytes(b"\xff\xd8 broken")
        (folder / "file").touch()

    def tidy(self) -> None:
        """Leave no results of earlier runs among the images, which later ones would only refuse."""
        for kind in ("imgs", "masks"):
            shutil.rmtree(self.folder / kind, ignore_errors=True)
            (self.folder / kind).mkdir()
        for name in ("a.jpg", "b$x$.jpg", "皮膚.png"):
            Image.new("RGB", (20, 16), "pink").save(self.folder / "imgs" / name)
            mask = Image.new("L", (20, 16))
            mask.paste(255, (5, 5, 12, 12))
            mask.save(self.folder / "masks" / f"{Path(name).stem}.png")

    def arguments(self, rng: random.Random) -> tuple[str, list[str]]:
        """A script with arguments, of which most are right."""
        script = rng.choice([*FOLDER_SCRIPTS, "predict_bayesian", "train_bayesian"])
        imgs = rng.choice([self.folder / "imgs"] * 16 + [self.folder / name for name in ("empty", "none", "file", ".")])
        masks = rng.choice([self.folder / "masks"] * 10 + [self.folder / "empty", self.folder / "none"])
        model = rng.choice([self.model] * 25 + [self.folder / "file", self.folder / "none"])
        out = rng.choice([self.out] * 20 + [self.folder / "file", self.folder / "file" / "o", self.out / "new", imgs])
        if script == "train_bayesian":
            words = ["--imgs-dir", imgs, "--masks-dir", masks, "--checkpoint-dir", out, "--load", model]
            words += ["--epochs", 1, "--cache-dir", self.folder / "cache", "--validation", 50, "--wandb", "disabled"]
        elif script == "predict_bayesian":
            images = rng.choice([[imgs], [self.folder / "imgs" / "a.jpg", self.folder / "broken.jpg"]])
            words = ["-i", *images, "--output-dir", out, "-m", model, "--mc", 1, *["-n"] * (rng.random() < 0.8)]
        else:
            words = ["--input-dir", imgs, "--output-dir", out, "-m", model]
        if script != "train_bayesian" and rng.random() < 0.3:
            words += ["--mask-dir", masks]
        known = importlib.import_module(script).get_args_parser()._option_string_actions
        switches = [flag for flag in SWITCHES if flag in known or rng.random() < 0.02]
        words += rng.sample(switches, min(len(switches), rng.choice([0, 0, 1, 2])))
        flags = [flag for flag in VALUES if flag in known or rng.random() < 0.02]
        for flag in rng.sample(flags, rng.choice([0, 0, 0, 1, 2])):
            words += [flag, rng.choice(VALUES[flag])]
        return script, [str(word) for word in words]

    @contextmanager
    def permissions(self, rng: random.Random) -> Iterator[str]:
        """Now and then a file or folder may not be read, written or entered; yields which one."""
        path, mode = None, 0o700
        if rng.random() < 0.25:
            self.out.mkdir(exist_ok=True)
            names = ("out", "imgs", "masks", "model.pth", "imgs/a.jpg", "masks/a.png", "cache", "out/summary.csv")
            path, mode = self.folder / rng.choice(names), rng.choice([0o000, 0o500, 0o400, 0o300])
            path = path if path.exists() else self.out
            path.chmod(mode)
        try:
            yield f"{path.name} {mode:o}" if path else ""
        finally:
            if path and path.exists():
                path.chmod(0o700)


@contextmanager
def random_environment(rng: random.Random) -> Iterator[dict[str, str]]:
    """A random subset of the variables."""
    before = dict(os.environ)
    chosen = {name: rng.choice(VARIABLES[name]) for name in rng.sample([*VARIABLES], rng.choice([0, 1, 2, 5]))}
    os.environ.update(chosen)
    try:
        yield chosen
    finally:
        os.environ.clear()
        os.environ.update(before)


def obey_permissions() -> None:
    """Have root obey the permissions of files from now on, as other users do."""
    if sys.platform != "linux":
        return
    libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    sets[0] &= ~0b110  # of the effective ones CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    libc.capset(header, sets)


def run_once(rng: random.Random, workplace: Workplace) -> tuple[str, object, str]:
    """A random run: what was run, its exit code (or what else it raised) and its standard error."""
    if rng.random() < 0.3:
        shutil.rmtree(workplace.out, ignore_errors=True)
    workplace.tidy()
    script, words = workplace.arguments(rng)
    module, stderr = importlib.import_module(script), io.StringIO()
    argv, sys.argv = sys.argv, [f"{script}.py", *words]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)}
    threads, root = torch.get_num_threads(), logging.getLogger()
    log_handlers, root.handlers = root.handlers, []
    with workplace.permissions(rng) as locked, random_environment(rng) as variables:
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(stderr), warnings.catch_warnings():
                cli.run(module.main, module.get_args_parser())
        except SystemExit as stop:
            code: object = stop.code
        except BaseException as error:
            code = repr(error)
    sys.argv, root.handlers = argv, log_handlers
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_num_threads(threads)
    description = f"{' '.join(f'{k}={v!r}' for k, v in variables.items())} {script}.py {' '.join(words)}; {locked}"
    return description, code, stderr.getvalue()


def is_documented(code: object, stderr: str) -> bool:
    """Whether a run has ended as it should: a documented exit code, no traceback, and an error with code 1 and 2."""
    told = code == 0 or "Error: " in stderr or "error: " in stderr
    return code in CODES and "Traceback" not in stderr and told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_with_default(parser, "--runs", type=integer(1), default=10_000, metavar="N", help="number of runs")
    add_with_default(parser, "--seed", type=integer(0), default=0, metavar="N", help="random seed of what is run")
    args = parser.parse_args()
    load_matplotlib()
    codes, started = Counter(), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        obey_permissions()
        workplace, rng = Workplace(Path(name)), random.Random(args.seed)
        os.chdir(name)
        for i in tqdm(range(args.runs), unit="run", mininterval=5):
            description, code, stderr = run_once(rng, workplace)
            codes[code if code in CODES else "other"] += 1
            if not is_documented(code, stderr):
                print(f"--- run {i}: {description}\nended with {code}\n{stderr[-3000:]}", flush=True)
    print(f"{args.runs} runs in {time.monotonic() - started:.0f} s: {dict(codes)}")


if __name__ == "__main__":
    main()
