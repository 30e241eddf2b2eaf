"""The training state: what changes from step to step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR

from utils.runtime.device import mixed_precision
from utils.runtime.distributed import world_size
from utils.runtime.recording import RecordedCall, graph_recorder
from utils.training.batch_loss import BatchLoss
from utils.training.data_parallel import data_parallel
from utils.training.muon import Muon

_COUNTERS = ("epoch", "step", "loss_sum", "images_seen", "history")  # plain values of a TrainingState

Scores = dict[str, float | None]  # None for what is not defined, such as the Dice of images without a lesion


def headline_score(row: Scores) -> tuple[str, float]:
    """Name and value of the validation score by which the best epoch is chosen: Dice, or the loss if there is none."""
    return ("loss", row["val_loss"]) if row["val_dice"] is None else ("Dice", row["val_dice"])


@dataclass
class TrainingState:
    """What training changes from step to step; with the weights, `state_dict` is all that resuming requires.

    Every random number is drawn with a seed of its own, so there is no random state to save.

    Attributes:
        network: the network that is trained.
        batch_loss: the loss of a batch, as a function of images, target and dropout masks.
        optimizer, scheduler, scaler: optimizer, learning rate schedule and gradient scaler.
        dtype: dtype of mixed precision; None for single precision.
        epoch: number of completed epochs.
        step: number of completed steps of the next epoch.
        loss_sum, images_seen: sum of the losses of these steps over their images, and number of these images.
        history: a row of scores for each completed epoch.
    """

    network: nn.Module
    batch_loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    dtype: torch.dtype | None = None
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    images_seen: int = 0
    history: list[Scores] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters()).device

    @property
    def best(self) -> Scores:
        """The row of the best epoch so far: the highest validation Dice, of equal ones the lowest loss.

        Without a lesion in the validation images there is no Dice, and the loss decides. Empty before the first epoch.
        """
        return max(self.history, key=lambda row: (row["val_dice"] or 0.0, -row["val_loss"]), default={})

    @property
    def loss(self) -> float:
        """The mean loss per image over the completed steps of the next epoch."""
        return self.loss_sum / max(self.images_seen, 1)

    def autocast(self) -> torch.autocast:
        """The context of mixed precision; without effect in single precision."""
        return mixed_precision(self.device, self.dtype)

    def complete_epoch(self, scores: Scores) -> None:
        """Record an epoch whose steps are completed, with its validation scores."""
        self.epoch += 1
        row = {"epoch": self.epoch, "train_loss": self.loss, "learning_rate": self.scheduler.get_last_lr()[0]}
        self.history.append(row | {f"val_{name}": score for name, score in scores.items()})
        self.step, self.loss_sum, self.images_seen = 0, 0.0, 0

    def __str__(self) -> str:
        """The last epoch in one line."""
        row = self.history[-1]
        (score, value), (_, best) = headline_score(row), headline_score(self.best)
        return (
            f"loss {row['train_loss']:.4f}; validation {score} {value:.4f} (best {best:.4f}), "
            + (f"false alarms {100 * row['val_false_alarm_rate']:.1f} %, " if row["val_images_without_lesion"] else "")
            + f"accuracy {row['val_accuracy']:.4f} (background everywhere: {row['val_accuracy_all_background']:.4f})"
        )

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain values, without the weights, which every checkpoint holds."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            **{name: getattr(self, name) for name in _COUNTERS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned; the network already has its weights."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if state["scaler"]:  # empty without gradient scaling
            self.scaler.load_state_dict(state["scaler"])
        for name in _COUNTERS:
            setattr(self, name, state[name])


def new_training_state(
    network: nn.Module, learning_rate: float, total_steps: int, dtype: torch.dtype | None = None
) -> TrainingState:
    """The state of a new training run with Muon and a one-cycle learning rate (Smith and Topin 2017).

    Args:
        network: the network, on its device.
        learning_rate: peak of the cycle.
        total_steps: number of steps of the whole run.
        dtype: dtype of mixed precision; None for single precision.
    """
    device = next(network.parameters()).device
    batch_loss = BatchLoss(data_parallel(network), dtype)
    record = graph_recorder(device) if world_size() == 1 else None
    optimizer = Muon(network, learning_rate, dtype=dtype or torch.float32)
    return TrainingState(
        network=network,
        batch_loss=RecordedCall(batch_loss, record),
        optimizer=optimizer,
        scheduler=_new_schedule(optimizer, learning_rate, total_steps),
        scaler=torch.amp.GradScaler(device.type, enabled=dtype is torch.float16),
        dtype=dtype,
    )


def _new_schedule(optimizer: torch.optim.Optimizer, peak: float, total_steps: int) -> LRScheduler:
    """One cycle of the learning rate; a single step, with which the cycle would end, has the peak."""
    if total_steps == 1:
        return ConstantLR(optimizer, factor=1)
    return OneCycleLR(optimizer, max_lr=peak, total_steps=total_steps, cycle_momentum=False)
