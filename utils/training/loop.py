"""Train one epoch, evaluate an epoch."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from unet import class_logits, draw_dropout_masks, use_dropout_masks
from utils.data.preprocessing import to_network_input
from utils.data_loading import SeededBatchSampler
from utils.dice_score import dice_coefficient, segmentation_loss
from utils.runtime import distributed
from utils.runtime.errors import InputError
from utils.training.state import TrainingState

MAX_GRAD_NORM = 1.0  # gradients are clipped to this norm


def train_one_epoch(
    state: TrainingState,
    batches: DataLoader,
    on_step: Callable[[float], None] = lambda loss: None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train on the remaining batches of the next epoch.

    Args:
        state: is updated; its `loss` is the mean over the epoch so far.
        batches: of (N, 3, h, w) uint8 images and (N, h, w) uint8 classes, with a `SeededBatchSampler`.
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
    for images, target in batches:
        n = sampler.size(state.step)  # images of this batch, over all processes
        dropout = draw_dropout_masks(state.network, n, sampler.batch_seed(state.step))
        share = len(images) / n
        own_loss = train_step(state, images, target, dropout, share)

        # The loss of the batch, and whether to stop, over all processes.
        values = torch.tensor([own_loss.item() * share, stop()], dtype=torch.float64)
        loss, stopping = distributed.sum_over_processes(values).tolist()
        update_weights(state, loss)
        state.step += 1
        state.loss_sum += loss * n
        state.images_seen += n
        on_step(loss)
        if stopping:
            break
    return state.step == len(sampler)


def train_step(state: TrainingState, images: Tensor, target: Tensor, dropout: list[Tensor], share: float) -> Tensor:
    """Do the forward and backward pass of a batch.

    Args:
        state: gets the gradients of the mean loss over the images of all processes.
        images: (N, 3, h, w) uint8, of this process.
        target: (N, h, w) uint8 classes.
        dropout: the dropout masks of the images of all processes.
        share: of this process in the images of all processes.

    Returns:
        The mean loss over the images of this process.
    """
    images, target = to_network_input(images, state.device), target.to(state.device)
    own = slice(distributed.rank(), None, distributed.world_size())
    dropout = [layer_masks[own].to(state.device) for layer_masks in dropout]
    state.optimizer.zero_grad(set_to_none=True)
    with use_dropout_masks(state.network, dropout), state.autocast():
        logits = class_logits(state.parallel(images))
    if len(images):
        loss = segmentation_loss(logits, target)
    else:
        loss = logits.sum()  # 0: a process without images takes part in the backward pass
    state.scaler.scale(loss * share * distributed.world_size()).backward()  # gradients are averaged over the processes
    return loss.detach()


def update_weights(state: TrainingState, loss: float) -> None:
    """Take an optimizer step with clipped gradients.

    Raises:
        InputError: the loss or the gradient is not finite.
    """
    state.scaler.unscale_(state.optimizer)
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), MAX_GRAD_NORM)
    # With a gradient scaler, a gradient that is not finite is normal: the step is skipped and the scale halved. Only a
    # scale that has been halved to almost nothing means that the loss has diverged.
    scale = state.scaler.get_scale()
    if not math.isfinite(loss) or not (torch.isfinite(norm) or (state.scaler.is_enabled() and scale > 1e-3)):
        raise InputError(
            f"The loss is no longer finite (epoch {state.epoch + 1}, step {state.step + 1}: {loss}): training "
            "stops; earlier checkpoints are intact. Try a lower learning rate"
        )
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.scaler.get_scale() >= scale:  # the step was not skipped
        state.scheduler.step()


@torch.inference_mode()
def evaluate(state: TrainingState, batches: DataLoader) -> dict[str, float]:
    """Scores of the network, without dropout, at its input size, over the images of all processes.

    Returns:
        Means over the images: `loss`; `dice` per image, over the classes but the background; pixel `accuracy`, and
        `accuracy_all_background`, that of a prediction of background everywhere.
    """
    state.network.eval()
    sums = {"loss": 0.0, "dice": 0.0, "accuracy": 0.0, "accuracy_all_background": 0.0}
    n_images = 0
    for images, target in batches:
        with state.autocast():
            logits = class_logits(state.network(to_network_input(images, state.device)))
        target = target.to(state.device)
        predicted = logits.argmax(dim=1)
        foreground = range(1, logits.shape[1])
        dice = torch.stack([dice_coefficient(predicted == k, target == k) for k in foreground]).mean(dim=0)
        sums["loss"] += segmentation_loss(logits, target).item() * len(images)
        sums["dice"] += dice.sum().item()
        sums["accuracy"] += (predicted == target).float().mean((1, 2)).sum().item()
        sums["accuracy_all_background"] += (target == 0).float().mean((1, 2)).sum().item()
        n_images += len(images)
    totals = torch.tensor([*sums.values(), n_images], dtype=torch.float64)
    *totals, n_images = distributed.sum_over_processes(totals).tolist()
    return {name: total / n_images for name, total in zip(sums, totals, strict=True)}


@torch.inference_mode()
def predict_examples(
    state: TrainingState, dataset: Dataset, count: int = 4
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """The first images of a dataset, (h, w, 3) uint8, with their ground truth and predicted (h, w) classes."""
    state.network.eval()
    images, masks = zip(*(dataset[i] for i in range(min(count, len(dataset)))), strict=True)
    logits = class_logits(state.network(to_network_input(torch.stack(images), state.device)))
    predicted = logits.argmax(dim=1).byte().cpu()
    return [i.permute(1, 2, 0).numpy() for i in images], [m.numpy() for m in masks], list(predicted.numpy())
