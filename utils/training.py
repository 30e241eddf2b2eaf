"""Train one epoch, evaluate, and all that a training has to keep from one epoch to the next."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import DataLoader, Dataset, Sampler

from unet import class_logits, draw_dropout_masks, dropout_masks
from utils import distributed
from utils.checkpoint import TrainedModel, read_checkpoint, save_checkpoint
from utils.dice_score import dice_coefficient, segmentation_loss
from utils.errors import InputError
from utils.image_io import write_csv
from utils.memory import in_batches, smaller, to_input
from utils.muon import Muon
from utils.probability import derived_seed

logger = logging.getLogger(__name__)

_PLAIN = ("at_once", "epoch", "step", "loss_sum", "images_seen", "history")  # plain values of a TrainingState
_FILES = ("checkpoint_epoch*.pth", "best.pth", "last.pth", "metrics.csv")  # what save_epoch writes


class SeededBatches(Sampler[list[tuple[int, int]]]):
    """Every number below n once an epoch, in random order and in batches, each with a seed for its random transforms.

    All depends on the seed and on `epoch` and nothing else, so an epoch can be entered at any batch, and each of
    several processes can take its part of every batch.

    Args:
        n: how many numbers there are.
        batch_size: of the batches of all processes together; the last one of an epoch may be smaller.
        seed: of the order, and of the seeds.

    Attributes:
        epoch: from 1 on; the caller sets it.
        start: the first batch that is wanted, from 0 on; the caller sets it.
    """

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.epoch, self.start = 1, 0

    def __len__(self) -> int:
        """The number of batches of a whole epoch."""
        return -(-self.n // self.batch_size)

    def size(self, batch: int) -> int:
        """How many numbers a batch has."""
        return min(self.batch_size, self.n - batch * self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(self.batch_seed(-1))
        order = torch.randperm(self.n, generator=generator).tolist()
        seeds = torch.randint(2**62, (self.n,), generator=generator).tolist()
        items = list(zip(order, seeds, strict=True))
        for first in range(self.start * self.batch_size, self.n, self.batch_size):
            yield items[first : first + self.batch_size][distributed.rank() :: distributed.world_size()]

    def batch_seed(self, batch: int) -> int:
        """A seed for what is random in a batch of this epoch but its images; -1 is the epoch itself."""
        return derived_seed(self.seed, f"{self.epoch}:{batch}")


def collate(items: Sequence[tuple[Tensor, Tensor]], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A batch of the items; where a process has no part of a batch, tensors for no images of that width and height."""
    if not items:
        width, height = size
        return torch.empty(0, 3, height, width, dtype=torch.uint8), torch.empty(0, height, width, dtype=torch.uint8)
    images, masks = zip(*items, strict=True)
    return torch.stack(images), torch.stack(masks)


@dataclass
class TrainingState:
    """What a training changes as it goes; `state_dict` is all that resuming needs.

    Attributes:
        network: the network that is trained.
        parallel: the same, as several processes train it together.
        at_once: how many images fit into the device's memory; 0 as long as every batch did.
        epoch: number of epochs that are done.
        step: number of steps of the next epoch that are done.
        loss_sum, images_seen: sum of the losses in these steps, and number of the images.
        history: a row of scores for each of them.
    """

    network: nn.Module
    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    at_once: int = 0
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    images_seen: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def best(self) -> float:
        """The best validation Dice so far; 0 before the first epoch."""
        return max((row["val_dice"] for row in self.history), default=0.0)

    @property
    def loss(self) -> float:
        """The mean loss of an image in the steps of the next epoch that are done."""
        return self.loss_sum / max(self.images_seen, 1)

    def add_epoch(self, scores: dict[str, float]) -> None:
        """Count an epoch whose steps are done, with its validation scores."""
        self.epoch += 1
        row = {"epoch": self.epoch, "train_loss": self.loss, "learning_rate": self.scheduler.get_last_lr()[0]}
        self.history.append(row | {f"val_{name}": score for name, score in scores.items()})
        self.step, self.loss_sum, self.images_seen = 0, 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain values, with the random states."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            **{name: getattr(self, name) for name in _PLAIN},
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state_dict` returned."""
        for name in ("network", "optimizer", "scheduler"):
            getattr(self, name).load_state_dict(state[name])
        if state["scaler"]:  # empty where the training needed none
            self.scaler.load_state_dict(state["scaler"])
        for name in _PLAIN:
            setattr(self, name, state.get(name, getattr(self, name)))  # an earlier version did not stop amid an epoch
        self.history = list(self.history)
        torch.set_rng_state(state["random"])
        if torch.cuda.is_available() and len(state["random_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["random_cuda"])


def training_state(
    network: nn.Module, learning_rate: float, total_steps: int, dtype: torch.dtype | None = None
) -> TrainingState:
    """A fresh training: Muon, and one cycle of the learning rate (Smith and Topin 2017).

    Args:
        network: on its device already.
        learning_rate: at the top of the cycle.
        total_steps: number of steps of the whole training.
        dtype: of mixed precision; None for single precision.
    """
    device = next(network.parameters()).device
    parallel = distributed.data_parallel(network)
    optimizer = Muon(network, learning_rate, dtype=dtype or torch.float32)
    return TrainingState(
        network=network,
        parallel=parallel,
        optimizer=optimizer,
        scheduler=OneCycleLR(optimizer, max_lr=learning_rate, total_steps=total_steps, cycle_momentum=False),
        scaler=torch.amp.GradScaler(device.type, enabled=dtype is torch.float16),
    )


def train_one_epoch(
    state: TrainingState,
    batches: DataLoader,
    device: torch.device,
    dtype: torch.dtype | None = None,
    max_grad_norm: float = 1.0,
    on_step: Callable[[float], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train on the batches of the next epoch that are left, each once.

    Args:
        state: is changed; its `loss` is the mean over the epoch so far.
        batches: of (N, 3, h, w) uint8 images and (N, h, w) uint8 classes, with `SeededBatches` for its batch sampler.
        device: of the network.
        dtype: of mixed precision; None for single precision.
        max_grad_norm: longer gradients are shortened to this norm.
        on_step: is told the loss after each step.
        stop: is asked after each step; where it says yes, in any of several processes, all stop.

    Returns:
        Whether the epoch was finished.

    Raises:
        InputError: the loss is not finite, or not even one image fits into the device's memory.
    """
    sampler: SeededBatches = batches.batch_sampler
    sampler.epoch, sampler.start = state.epoch + 1, state.step
    state.network.train()
    for images, masks in batches:
        n, seed = sampler.size(state.step), sampler.batch_seed(state.step)
        dropout = [
            mask[distributed.rank() :: distributed.world_size()].to(device)
            for mask in draw_dropout_masks(state.network, n, seed)
        ]
        loss = _backward(state, images, masks, dropout, len(images) / n, device, dtype)
        loss, stops = distributed.total(torch.tensor([loss, stop()], dtype=torch.float64)).tolist()
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(state.network.parameters(), max_grad_norm)
        # With a scaler, a gradient that is not finite is an everyday event: the step is left out, the scale halved,
        # and only a scale that has been halved to nothing says that the loss itself has gone.
        scale = state.scaler.get_scale()
        if not math.isfinite(loss) or not (torch.isfinite(norm) or (state.scaler.is_enabled() and scale > 1e-3)):
            raise InputError(
                f"The loss is no longer finite (epoch {state.epoch + 1}, step {state.step + 1}: {loss}), so the "
                "training stops; the checkpoints from before are sound. A lower --learning-rate is the usual cure"
            )
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.scaler.get_scale() >= scale:  # the step was taken
            state.scheduler.step()
        state.step += 1
        state.loss_sum += loss * n
        state.images_seen += n
        if on_step is not None:
            on_step(loss)
        if stops:
            break
    return state.step == len(sampler)


def _backward(
    state: TrainingState,
    images: Tensor,
    masks: Tensor,
    dropout: Sequence[Tensor],
    share: float,
    device: torch.device,
    dtype: torch.dtype | None,
) -> float:
    """Gradients of a batch's mean loss, in parts that fit into the device's memory.

    Args:
        dropout: masks of the dropout layers.
        share: the part of all processes' images that these are.

    Returns:
        The mean loss times the share, so that the sum over the processes is that of the batch.
    """
    while True:
        state.optimizer.zero_grad(set_to_none=True)
        at_once = state.at_once if distributed.world_size() == 1 else 0  # processes must have as many parts
        size = max(min(at_once or len(images), len(images)), 1)
        try:
            total = 0.0
            for first in range(0, max(len(images), 1), size):
                part = slice(first, first + size)
                x = to_input(images[part], device)
                with (
                    dropout_masks(state.network, [mask[part] for mask in dropout]),
                    torch.autocast(device.type, dtype=dtype, enabled=dtype is not None),
                ):
                    logits = class_logits(state.parallel(x))
                if len(x):
                    loss = segmentation_loss(logits, masks[part].to(device)) * (share * len(x) / len(images))
                else:
                    loss = logits.sum()  # of nothing: a process without images still takes part
                state.scaler.scale(loss * distributed.world_size()).backward()  # the processes' gradients are averaged
                total += loss.item()
            return total
        except torch.OutOfMemoryError:
            if distributed.world_size() > 1:
                raise InputError(
                    f"Out of memory with {len(images)} images: a smaller --batch-size, of which each of the "
                    f"{distributed.world_size()} processes has its part, will do"
                ) from None
        state.at_once = smaller(size)  # outside the handler, so that what the failed attempt holds can go


@torch.inference_mode()
def evaluate(
    network: nn.Module, batches: DataLoader, device: torch.device, dtype: torch.dtype | None = None
) -> dict[str, float]:
    """Scores of a network, without dropout, at its input size; of several processes' images together.

    Returns:
        Means over the images: `loss`; `dice` per image, over the classes but the background; `accuracy` of the
        pixels, and `accuracy_all_background`, what a prediction of nothing would get.
    """
    network.eval()
    sums = {"loss": 0.0, "dice": 0.0, "accuracy": 0.0, "accuracy_all_background": 0.0}
    n_images = 0
    for images, masks in batches:

        def compute(part: slice, images: Tensor = images) -> Tensor:
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                return class_logits(network(to_input(images[part], device)))

        logits, masks = in_batches(compute, len(images), len(images)), masks.to(device)
        predicted = logits.argmax(dim=1)
        foreground = range(1, logits.shape[1])
        dice = torch.stack([dice_coefficient(predicted == k, masks == k) for k in foreground]).mean(dim=0)
        sums["loss"] += segmentation_loss(logits, masks).item() * len(images)
        sums["dice"] += dice.sum().item()
        sums["accuracy"] += (predicted == masks).float().mean((1, 2)).sum().item()
        sums["accuracy_all_background"] += (masks == 0).float().mean((1, 2)).sum().item()
        n_images += len(images)
    *totals, n_images = distributed.total(torch.tensor([*sums.values(), n_images], dtype=torch.float64)).tolist()
    return {name: total / n_images for name, total in zip(sums, totals, strict=True)}


@torch.inference_mode()
def predict_examples(
    network: nn.Module, dataset: Dataset, device: torch.device, count: int = 4
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """The first images of a dataset, (h, w, 3) uint8, with their true and predicted (h, w) classes."""
    network.eval()
    images, masks = zip(*(dataset[i] for i in range(min(count, len(dataset)))), strict=True)
    predicted = class_logits(network(to_input(torch.stack(images), device))).argmax(dim=1).byte().cpu()
    return [i.permute(1, 2, 0).numpy() for i in images], [m.numpy() for m in masks], list(predicted.numpy())


def set_aside(folder: Path) -> None:
    """Move what an earlier training has written to a sub-folder, so that a new one does not replace it."""
    files = [path for name in _FILES for path in sorted(folder.glob(name))]
    if files:
        numbers = [int(path.name.removeprefix("earlier-")) for path in folder.glob("earlier-[0-9]*")]
        target = folder / f"earlier-{max(numbers, default=0) + 1}"
        target.mkdir()
        for path in files:
            path.rename(target / path.name)
        logger.info("The files of an earlier training are now in %s", target)


def save_epoch(folder: Path, model: TrainedModel, state: TrainingState) -> None:
    """Write an epoch's `checkpoint_epoch{N}.pth`, `last.pth` and `metrics.csv`, and `best.pth` if it is the best.

    Args:
        folder: where they go.
        model: with the settings that a resumed training must agree with.
        state: of the training.

    Raises:
        InputError: the validation loss is not finite; nothing is written.
    """
    scores = state.history[-1]
    if not math.isfinite(scores["val_loss"]):
        raise InputError(
            f"The validation loss of epoch {state.epoch} is {scores['val_loss']}: the training stops, and the "
            "checkpoints from before are sound. A lower --learning-rate is the usual cure"
        )
    save_checkpoint(folder / f"checkpoint_epoch{state.epoch}.pth", model)
    if scores["val_dice"] > max((row["val_dice"] for row in state.history[:-1]), default=-1.0):
        save_checkpoint(folder / "best.pth", model)
    write_csv(folder / "metrics.csv", state.history)
    save_last(folder, model, state)


def save_last(folder: Path, model: TrainedModel, state: TrainingState) -> None:
    """Write `last.pth`, from which a training goes on, at the end of an epoch or amid it."""
    save_checkpoint(folder / "last.pth", model, state.state_dict())


def resume(state: TrainingState, path: Path, settings: dict[str, Any]) -> None:
    """Go on where the training that wrote `path` stood.

    Raises:
        InputError: the file is none that can be resumed from, or was written with other settings.
    """
    content = read_checkpoint(path)
    if "training" not in content:
        raise InputError(f"{path} cannot be resumed from: last.pth can; --load starts anew with its weights")
    for name, value in settings.items():
        if content["settings"].get(name) != value:
            raise InputError(
                f"{path} was written with {name} = {content['settings'].get(name)}, and this run has {value}: "
                "resuming needs the same settings and images"
            )
    state.load_state_dict(content["training"])
    steps = f" and {state.step} steps" if state.step else ""
    logger.info("Going on after epoch %d%s of %s", state.epoch, steps, path)
