"""What the parts of the GPU benchmark share: the device, the images, how a training is started, where results go."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.benchmarks.measuring import make_folders

Value = TypeVar("Value")


@dataclass
class Setting:
    """The setting of a part.

    Attributes:
        device: cuda or cpu.
        quick: few and small images.
        data: folder of labelled images, `imgs`, `masks`, `imgs_test`, `masks_test`; None for synthetic ones.
        work: folder for images and results.
        record: writes a value that was measured under its name.
    """

    device: str
    quick: bool
    data: Path | None
    work: Path
    record: Callable[[str, Any], None]

    def choose(self, normal: Value, quick: Value) -> Value:
        """The first value, or the second one for a quick run."""
        return quick if self.quick else normal

    def training_folders(self) -> tuple[Path, Path]:
        """Images and masks to train on."""
        folder = self.work / "training"
        if self.data and not self.quick:
            return self.data / "imgs", self.data / "masks"
        if folder.exists():
            return folder / "imgs", folder / "masks"
        if self.data is None:
            return make_folders(folder, self.choose(200, 12))
        for name in ("imgs", "masks"):
            copy_some(self.data / name, folder / name, 24)
        return folder / "imgs", folder / "masks"

    def train_command(self, name: str, *more: object) -> list[object]:
        """A training in mixed precision, whose checkpoints go to the folder of that name."""
        imgs, masks = self.training_folders()
        folders = ["--imgs-dir", imgs, "--masks-dir", masks, "--checkpoint-dir", self.work / name]
        flags = ["--cache-dir", self.work / "cache", "--device", self.device, "--amp", "--wandb", "disabled"]
        return [sys.executable, "train_bayesian.py", *folders, *flags, *more]


def copy_some(source: Path, target: Path, count: int) -> None:
    """Copy the first files of a folder."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir())[:count]:
        shutil.copy(path, target)
