"""Shared by the tests: synthetic images, a small trained network, the scripts as processes."""

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # the tests run side by side, and with more a forked process would wait forever
# They are the same with a GPU, which a forked process could not use, unless tests/benchmarks/gpu.py runs them for it.
os.environ.update({} if "TESTS_SHOW_GPU" in os.environ else {"CUDA_VISIBLE_DEVICES": ""})
os.environ["no_proxy"] = "127.0.0.1"

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from PIL import Image, ImageDraw, ImageFilter
from torch.utils.data import DataLoader

from tests.forking import ForkedProcess, run_forked
from unet import BayesianUNet
from utils.checkpoint import TrainedModel, load_model, save_checkpoint
from utils.data.cache import decode_pairs
from utils.data.decoding import DecodedPairs
from utils.data.mask_classes import MaskClasses
from utils.data.pairing import pair_files
from utils.data_loading import SeededBatchSampler, SegmentationDataset
from utils.training.loop import train_one_epoch
from utils.training.state import new_training_state

settings.register_profile("tests", deadline=None)  # machines are slow at times
settings.load_profile("tests")

ROOT = Path(__file__).resolve().parent.parent
FORKS = sys.platform == "linux" and "TESTS_SHOW_GPU" not in os.environ  # whether scripts run in forked processes
ENVIRONMENT = {
    **os.environ,
    "MPLBACKEND": "agg",
    "WANDB_MODE": "offline",
}  # no test may reach for a display or a network


def make_image(seed: int, size: tuple[int, int] = (160, 120)) -> tuple[Image.Image, Image.Image]:
    """A dark blot with a soft edge on pale skin, and its mask of 0 and 255."""
    rng = np.random.default_rng(seed)
    width, height = size
    centre, radii = rng.uniform(0.35, 0.65, 2) * size, rng.uniform(0.15, 0.3, 2) * size
    box = [*(centre - radii), *(centre + radii)]
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    alpha = np.asarray(mask.filter(ImageFilter.GaussianBlur(min(size) / 60)), dtype=float)[..., None] / 255
    skin = np.array([222, 178, 160]) + rng.normal(0, 5, (height, width, 3))
    blot = np.array([110, 70, 60]) + rng.normal(0, 5, (height, width, 3))
    return Image.fromarray((skin * (1 - alpha) + blot * alpha).clip(0, 255).astype(np.uint8)), mask


def make_folders(folder: Path, count: int, size: tuple[int, int] = (160, 120), seed: int = 0) -> tuple[Path, Path]:
    """Folders `imgs` and `masks` with images, named as by the ISIC archive."""
    imgs, masks = folder / "imgs", folder / "masks"
    imgs.mkdir(parents=True)
    masks.mkdir()
    for i in range(count):
        image, mask = make_image(seed + i, size)
        image.save(imgs / f"SKIN_{i:03d}.jpg", quality=92)
        mask.save(masks / f"SKIN_{i:03d}_Segmentation.png")
    return imgs, masks


def dataset_of(
    decoded: DecodedPairs, indices: Sequence[int], values: Sequence[int], transform: Callable | None = None
) -> SegmentationDataset:
    """The dataset of some pairs, whose masks have these values of class 0, 1, ..."""
    classes = decoded.mask_classes(len(values), expected=MaskClasses(values))
    return SegmentationDataset(decoded, indices, classes, transform)


def lively_network(seed: int = 0, **architecture) -> BayesianUNet:
    """A small untrained network whose outputs differ from pixel to pixel and from pass to pass."""
    torch.manual_seed(seed)
    network = BayesianUNet(**{"base_channels": 8, **architecture})
    network.train()
    with torch.no_grad():
        for _ in range(5):  # batch norm gets to know what comes in
            network(torch.rand(4, network.n_channels, 32, 32))
        network.outc.conv.weight.mul_(4)
    return network.eval()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """A network of 8 base channels that has learnt the images of `make_image`."""
    folder = tmp_path_factory.getbasetemp()
    path = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "trained.pth"
    with FileLock(path.with_suffix(".lock")):  # one of the processes that run tests trains it for all
        if not path.exists():
            save_checkpoint(path, train_network(tmp_path_factory.mktemp("training")))
    return load_model(path)


def train_network(folder: Path) -> TrainedModel:
    """Train on synthetic images, which are created in `folder`."""
    pairs = pair_files(*make_folders(folder, 24, (64, 64), seed=1000))
    decoded = decode_pairs(pairs, (128, 128), cache_dir=None)
    dataset = dataset_of(decoded, range(24), [0, 255], lambda image, shares: (image, shares))
    torch.manual_seed(0)
    network = BayesianUNet(base_channels=8).to(memory_format=torch.channels_last)
    state = new_training_state(network, 5e-3, 10 * 6)
    batches = DataLoader(dataset, batch_sampler=SeededBatchSampler(24, 4, seed=0))
    for _ in range(10):
        train_one_epoch(state, batches)
        state.complete_epoch({})
    return TrainedModel(network.eval(), epoch=10)


@pytest.fixture(scope="session")
def model_file(trained: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of `trained`."""
    path = tmp_path_factory.mktemp("model") / "model.pth"
    save_checkpoint(path, trained)
    return path


@pytest.fixture(scope="session")
def lively_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a small untrained network, from which training takes a moment."""
    path = tmp_path_factory.mktemp("lively") / "lively.pth"
    save_checkpoint(path, TrainedModel(lively_network()))
    return path


def run_script(
    script: str | Path, *arguments: object, cwd: Path = ROOT, before: Callable[[], object] = lambda: None
) -> subprocess.CompletedProcess:
    """Run a script of the project, in the folder `cwd`, to its end.

    Its process is forked from this one and so has imported PyTorch and the project, which takes seconds; in the test of
    the README's commands the first of each script imports the project itself.

    Args:
        script: its path, relative to the root of the project or absolute.
        arguments: of its command line.
        cwd: the folder it runs in.
        before: called in the process before the script begins.
    """
    path = str(ROOT / script)
    if not FORKS:
        return _started([sys.executable, path, *map(str, arguments)], cwd, before)
    return forked([path, *map(str, arguments)], cwd, lambda: (before(), runpy.run_path(path, run_name="__main__")))


def run_module(
    module: str, *arguments: object, cwd: Path = ROOT, before: Callable[[], object] = lambda: None
) -> subprocess.CompletedProcess:
    """Run `python -m MODULE` in a folder, that of the project by default, to its end, as `run_script` does."""
    command = [module, *map(str, arguments)]
    if not FORKS:
        return _started([sys.executable, "-m", *command], cwd, before)
    return forked(command, cwd, lambda: (before(), runpy.run_module(module, run_name="__main__", alter_sys=True)))


def _started(command: list[str], cwd: Path, before: Callable[[], object]) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=ENVIRONMENT, cwd=cwd, preexec_fn=before
    )


def forked(command: list[str], cwd: Path, run: Callable[[], object]) -> subprocess.CompletedProcess:
    """Call a function to its end in a forked process, in which `sys.argv` is `command`, in the folder `cwd`."""
    return run_forked([command], run, cwd, [ENVIRONMENT])[0]


def heed_ctrl_c() -> None:
    """Have the next program heed SIGINT, which a process in the background may have been told to ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start_script(script: str, *arguments: object, fork: bool = FORKS) -> subprocess.Popen | ForkedProcess:
    """Start a script of the project; its standard error can be read line by line.

    Args:
        script: its name.
        arguments: of its command line.
        fork: whether in a forked process, as in `run_script`, rather than a new one.
    """
    path, words = str(ROOT / script), list(map(str, arguments))
    if fork:
        with open(os.devnull, "w") as nowhere:
            run = partial(runpy.run_path, path, run_name="__main__")
            return ForkedProcess([path, *words], run, ROOT, ENVIRONMENT, nowhere)
    return subprocess.Popen(
        [sys.executable, path, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        cwd=ROOT,
        preexec_fn=heed_ctrl_c,
    )


def assert_one_clear_line(result: subprocess.CompletedProcess, *words: str) -> None:
    """A mistake of the user: exit code 2, no traceback, and a message that holds these words."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
