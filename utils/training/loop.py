"""Train one epoch, evaluate an epoch."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from unet import class_logits, draw_dropout_masks
from utils import IGNORED_CLASS
from utils.data.class_shares import class_shares
from utils.data.preprocessing import to_network_input
from utils.data_loading import SeededBatchSampler
from utils.dice_score import dice_coefficient, segmentation_loss
from utils.runtime import distributed
from utils.runtime.device import read_later, to_device
from utils.runtime.errors import InputError
from utils.training.state import TrainingState

MAX_GRAD_NORM = 1.0  # gradients are clipped to this norm
_DIVERGED_SCALE = 1e-3  # of the gradient scaler, which starts at 65536


def train_one_epoch(
    state: TrainingState,
    batches: DataLoader,
    on_step: Callable[[float], None] = lambda loss: None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train on the remaining batches of the next epoch.

    Args:
        state: is updated; its `loss` is the mean over the epoch so far.
        batches: of (N, 3, h, w) uint8 images and their (N, C, h, w) `class_shares`, with a `SeededBatchSampler`.
        on_step: is called with the loss of each step.
        stop: is called after each step; if it returns True in any of several processes, all stop.

    Returns:
        Whether the epoch was completed.

    Raises:
        InputError: the loss is not finite.
    """
    sampler: SeededBatchSampler = batches.batch_sampler
    sampler.epoch, sampler.start = state.epoch + 1, state.step
    state.network.train()
    unread: _StepLoss | None = None
    for step, (images, target) in enumerate(batches, start=state.step):
        n = sampler.size(step)  # images of this batch, over all processes
        dropout = draw_dropout_masks(state.network, n, sampler.batch_seed(step))
        loss_and_norm = train_step(state, images, target, dropout, fraction=len(images) / n)

        # A GPU is still busy with this step: read the loss of the one before.
        stopping = _record(state, unread, on_step, stop())
        unread = _StepLoss(n, read_later(loss_and_norm))
        if stopping:
            break
    _record(state, unread, on_step)
    return state.step == len(sampler)


def train_step(state: TrainingState, images: Tensor, target: Tensor, dropout: Tensor, fraction: float) -> Tensor:
    """Train on a batch; does not wait for the result, but in float16, where the gradient scaler does.

    Args:
        state: gets the gradients of the mean loss over the images of all processes, and an optimizer step.
        images: (N, 3, h, w) uint8, of this process.
        target: (N, C, h, w) `class_shares`.
        dropout: the dropout masks of the images of all processes.
        fraction: of the images of all processes, that of this process.

    Returns:
        (2,) on the device: the mean loss over the images of this process times `fraction`, and the norm of the
        gradient, 0 where it need not be finite.
    """
    own = dropout[distributed.rank() :: distributed.world_size()]
    state.optimizer.zero_grad(set_to_none=True)
    loss = fraction * state.batch_loss(*(to_device(tensor, state.device) for tensor in (images, target, own)))
    state.scaler.scale(loss * distributed.world_size()).backward()  # gradients are averaged over the processes
    norm = _update_weights(state)
    return torch.stack([loss.detach(), norm])


def _update_weights(state: TrainingState) -> Tensor:
    """Take an optimizer step with clipped gradients; returns their norm, 0 where it need not be finite."""
    state.scaler.unscale_(state.optimizer)
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), MAX_GRAD_NORM)
    scale = state.scaler.get_scale()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.scaler.get_scale() >= scale:  # the step was not skipped
        state.scheduler.step()
    # With a gradient scaler, a gradient that is not finite is normal: the step is skipped and the scale halved. Only a
    # scale that has been halved to almost nothing means that the loss has diverged.
    return torch.zeros_like(norm) if state.scaler.is_enabled() and scale > _DIVERGED_SCALE else norm


class _StepLoss(NamedTuple):
    """A step whose loss has not been read yet.

    Attributes:
        n_images: number of images of the batch, over all processes.
        read: waits for what `train_step` has returned.
    """

    n_images: int
    read: Callable[[], list[float]]


def _record(state: TrainingState, step: _StepLoss | None, on_step: Callable[[float], None], stop: bool = False) -> bool:
    """Add the loss of a step, if there is one, to those of the epoch; returns whether any process is to stop.

    Raises:
        InputError: the loss or the gradient is not finite.
    """
    values = [*(step.read() if step else (0.0, 0.0)), float(stop)]
    loss, norm, stopping = distributed.sum_over_processes(torch.tensor(values, dtype=torch.float64)).tolist()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise InputError(
            f"the loss is no longer finite (epoch {state.epoch + 1}, step {state.step + 1}: {loss}): training "
            "stops; earlier checkpoints are intact. Try a lower learning rate"
        )
    if step:
        state.step += 1
        state.loss_sum += loss * step.n_images
        state.images_seen += step.n_images
        on_step(loss)
    return stopping > 0


@torch.inference_mode()
def evaluate(state: TrainingState, batches: DataLoader) -> dict[str, float | None]:
    """Scores of the network, without dropout, at its input size, over the images of all processes.

    Returns:
        Means over the images: `loss`; `dice`, over the images with a lesion, in each over the classes but the
        background that it shows; pixel `accuracy`, and `accuracy_all_background`, that of a prediction of background
        everywhere; `false_alarm_rate`, the fraction of the images without a lesion in which one is predicted, 0 if
        there is no such image. Then their number, `images_without_lesion`. If all are, `dice` is None. Ignored pixels
        do not count, nor do images that have no others.
    """
    state.network.eval()
    sums = [torch.zeros(7, device=state.device)]  # over the images of each batch
    for images, target in batches:
        with state.autocast():
            logits = class_logits(state.network(to_network_input(images, state.device)))
        target = to_device(target, state.device)
        loss = segmentation_loss(logits, class_shares(target, logits.shape[1])) * len(images)
        sums.append(torch.stack([loss, *_prediction_sums(logits.argmax(dim=1), target, logits.shape[1])]))
    totals = distributed.sum_over_processes(torch.stack(sums).cpu().double().sum(dim=0)).tolist()
    loss, accuracy, all_background, dice, n_lesions, false_alarms, n_scored = totals
    n_images = max(n_scored, 1)
    return {
        "loss": loss / n_images,
        "dice": dice / n_lesions if n_lesions else None,
        "accuracy": accuracy / n_images,
        "accuracy_all_background": all_background / n_images,
        "false_alarm_rate": false_alarms / max(n_scored - n_lesions, 1),
        "images_without_lesion": round(n_scored - n_lesions),
    }


def _prediction_sums(predicted: Tensor, target: Tensor, n_classes: int) -> list[Tensor]:
    """Sums over images: accuracy, that of background, Dice, images with a lesion, false alarms, images with a score."""
    counted = target != IGNORED_CLASS
    n_counted = counted.sum((1, 2))
    accuracy, all_background = ((target == p).sum((1, 2)) / n_counted.clamp(min=1) for p in (predicted, 0))
    foreground = range(1, n_classes)
    dice = torch.stack([dice_coefficient((predicted == k) & counted, target == k) for k in foreground])  # (C - 1, N)
    shown = torch.stack([(target == k).flatten(1).any(dim=1) for k in foreground]).float()
    dice = (dice * shown).sum(dim=0) / shown.sum(dim=0).clamp(min=1)  # 0 without a lesion
    lesion = shown.amax(dim=0)
    false_alarm = ((predicted > 0) & counted).flatten(1).any(dim=1) * (1 - lesion)
    return [values.sum() for values in (accuracy, all_background, dice, lesion, false_alarm, (n_counted > 0).float())]


@torch.inference_mode()
def predict_examples(
    state: TrainingState, dataset: Dataset, count: int = 4
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """The first images of a dataset, (h, w, 3) uint8, with their ground truth and predicted (h, w) classes."""
    state.network.eval()
    images, masks = zip(*(dataset[i] for i in range(min(count, len(dataset)))), strict=True)
    predicted = []
    for image in images:  # one by one: training may have left no memory for more
        with state.autocast():
            logits = class_logits(state.network(to_network_input(image[None], state.device)))
        predicted.append(logits[0].argmax(dim=0).byte().cpu().numpy())
    return [i.permute(1, 2, 0).numpy() for i in images], [m.numpy() for m in masks], predicted
