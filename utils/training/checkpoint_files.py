"""The files of a training run: written while training continues, and how an interrupted run is resumed from them."""

import logging
import math
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from utils.checkpoint import TrainedModel, checkpoint_content, read_checkpoint, write_checkpoint
from utils.runtime.atomic_files import remove_partial_files, rename, write_csv
from utils.runtime.device import copy_to_cpu
from utils.runtime.errors import InputError
from utils.runtime.threads import torch_thread_pool
from utils.training.state import TrainingState

logger = logging.getLogger(__name__)

# Settings that identify files, and which they are.
_DIGESTS = {
    "image_names": "training images",
    "mask_names": "training masks",
    "validation_image_names": "validation images",
    "validation_mask_names": "validation masks",
}
_FILES = ("metrics.csv", "checkpoint_epoch*.pth", "best.pth", "last.pth")  # first what another program may have open


def archive_earlier_run(folder: Path) -> None:
    """Move the files of an earlier run in a checkpoint folder to a sub-folder `earlier-N`, if there are any."""
    files = [path for name in _FILES for path in sorted(folder.glob(name))]
    if files:
        suffixes = [path.name.removeprefix("earlier-") for path in folder.glob("earlier-*")]
        numbers = [int(suffix) for suffix in suffixes if suffix.isdecimal()]
        target = folder / f"earlier-{max(numbers, default=0) + 1}"
        target.mkdir()
        for path in files:
            rename(path, target / path.name)
        logger.info("The files of the earlier run have been moved to %s", target)


def checkpoint_bytes(network: nn.Module, epochs: int, continues: bool = False) -> int:
    """The room that is needed for what is written in that many epochs.

    Their own files, `best.pth`, and `last.pth`: twice the weights, and written beside the one that it replaces.

    Args:
        network: the network.
        epochs: number of epochs to come.
        continues: whether the run has been interrupted in this folder, where `best.pth` and `last.pth` are.
    """
    size = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    files, replacing = 0 if continues else 3, 2 if continues or epochs > 1 else 0
    return size * (epochs + files + replacing) if epochs else 0


class CheckpointWriter:
    """Writes the files of a training run in a thread, from copies of the weights.

    At the end of the `with` block all have been written. An error of the thread is raised there or by the next call.

    Args:
        folder: output folder.
        continues: whether the run was interrupted in this folder and is resumed. Any other, also if it was resumed from
            another folder, replaces an earlier run, whose files are archived as soon as there are new ones.
    """

    def __init__(self, folder: Path, continues: bool = False) -> None:
        self.folder = folder
        self._begun, self._continues = False, continues
        self._pool = torch_thread_pool(1)
        self._writing: Future | None = None

    def save_epoch(self, model: TrainedModel, state: TrainingState) -> None:
        """Write `checkpoint_epoch{N}.pth`, `last.pth`, `metrics.csv` and, if the epoch is the best so far, `best.pth`.

        Args:
            model: the model, with the settings that a resumed run has to share.
            state: the training state.

        Raises:
            InputError: the validation loss is not finite; nothing is written.
            OSError: an earlier file could not be written.
        """
        scores = state.history[-1]
        if not math.isfinite(scores["val_loss"]):
            raise InputError(
                f"the validation loss of epoch {state.epoch} is {scores['val_loss']}: training stops; earlier "
                "checkpoints are intact. Try a lower learning rate"
            )
        names = [f"checkpoint_epoch{state.epoch}.pth"]
        if state.best is scores:
            names.append("best.pth")
        self._submit(names, model, state)

    def save_last(self, model: TrainedModel, state: TrainingState) -> None:
        """Write `last.pth`, from which training can be resumed within the epoch, and the table of earlier epochs.

        Raises:
            OSError: an earlier file could not be written.
        """
        self._submit([], model, state)

    def take_over(self, path: Path, model: TrainedModel, state: TrainingState) -> None:
        """Write `last.pth` of a run that is resumed from another folder, and `best.pth` of its best epoch, if there.

        In the same folder, `best.pth` is of a later epoch if the run was killed before `last.pth` was written.

        Args:
            path: what it is resumed from.
            model, state: as resumed.
        """
        if not self._continues:
            self.save_last(model, state)
        epoch, best = state.best.get("epoch"), self.folder / "best.pth"
        for source in (path.with_name("best.pth"), path.with_name(f"checkpoint_epoch{epoch}.pth")):
            with suppress(InputError):  # it is not there, or damaged
                content = read_checkpoint(source)
                if content.get("epoch") == epoch and not changed_setting(content.get("settings", {}), model.settings):
                    if not (best.exists() and best.samefile(source)):
                        write_checkpoint(best, content)
                    break

    def _write(self, names: list[str], content: Mapping[str, Any], training: Mapping[str, Any]) -> None:
        for name in names:
            write_checkpoint(self.folder / name, content)
        if training["history"]:
            try:
                write_csv(self.folder / "metrics.csv", training["history"])
            except PermissionError as error:  # on Windows a table that is open in another program: last.pth has it, too
                logger.warning("%s could not be written (%s)", error.filename, error.strerror)
        write_checkpoint(self.folder / "last.pth", {**content, "training": training})

    def _submit(self, names: list[str], model: TrainedModel, state: TrainingState) -> None:
        """Write copies soon, once what was submitted before is written: one copy at most is waiting."""
        content, training = checkpoint_content(model), copy_to_cpu(state.state_dict())
        self._wait()
        if not self._begun and self._continues:
            remove_partial_files([self.folder])  # of a killed process
        elif not self._begun:
            archive_earlier_run(self.folder)
        self._begun = True
        self._writing = self._pool.submit(self._write, names, content, training)

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        self._pool.shutdown()
        if error_type is None:
            self._wait()


def changed_setting(recorded: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
    """The first setting that differs from what a checkpoint records; `trained_names` follows from the others."""
    compared = [name for name in settings if name != "trained_names"]
    return next((name for name in compared if recorded.get(name) != settings[name]), None)


def resume(
    state: TrainingState, path: Path, settings: Mapping[str, Any], classes: Mapping[str, Any] | None = None
) -> None:
    """Resume the training run that wrote `path`.

    Args:
        state: the state to restore; its network has been loaded from the file.
        path: the file.
        settings: of this run.
        classes: what this run will record of its mask values.

    Raises:
        InputError: the file has no training state, or was written with other settings or mask values.
    """
    content = read_checkpoint(path)
    if "training" not in content:
        raise InputError(f"{path} contains no training state: resume from last.pth, or load it to start a new run")
    name = changed_setting(content["settings"], settings)
    if name in _DIGESTS:
        raise InputError(
            f"{path} was saved in a run on {_DIGESTS[name]} of other names, or in another order: resuming requires the "
            "same images and masks"
        )
    if name is not None:
        raise InputError(
            f"{path} was saved with {name} = {content['settings'].get(name)}, but this run has {settings[name]}: "
            "resuming requires the same settings and images"
        )
    for name, value in (classes or {}).items():
        if content[name] != value:
            raise InputError(
                f"{path} was saved with {name} = {content[name]}, but the masks of this run have {value}: resuming "
                "requires masks of the same values"
            )
    state.load_state_dict(content["training"])
    steps = f" and {state.step} steps" if state.step else ""
    logger.info("Resuming after epoch %d%s from %s", state.epoch, steps, path)
