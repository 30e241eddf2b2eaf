"""Train the MC-dropout U-Net on the images and masks of two folders."""

import argparse
import logging
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from utils import arguments, cli
from utils.checkpoint import DEFAULT_INPUT_SIZE, TrainedModel, load_model
from utils.data.decoding import DecodedPairs
from utils.data_loading import SegmentationDataset, load_pairs, split_indices, training_batches, validation_batches
from utils.runtime import distributed
from utils.runtime.console import format_duration, progress
from utils.runtime.errors import InputError
from utils.runtime.signals import GracefulStop
from utils.runtime.threads import cores_per_process
from utils.training.checkpoint_files import CheckpointWriter, prepare_checkpoint_dir, resume
from utils.training.loop import evaluate, predict_examples, train_one_epoch
from utils.training.state import TrainingState, new_training_state
from utils.training.temperatures import fit_temperatures, format_temperatures, save_temperatures
from utils.training.tracking import WandbRun

logger = logging.getLogger(__name__)

# What a resumed run has to share with the interrupted one.
SETTINGS = ("epochs", "batch_size", "learning_rate", "validation", "augmentation", "seed", "amp")


def get_args_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description=__doc__, parents=[arguments.training_parent(), arguments.training_folders_parent()]
    )


def main(args: argparse.Namespace) -> None:
    if args.load and args.resume:
        raise InputError("--load starts a new run, --resume continues one: give only one of them")
    device, dtype = cli.device_from_args(args)
    torch.manual_seed(args.seed)

    # Data: decode, split, batch
    decoded = load_pairs(args.imgs_dir, args.masks_dir, DEFAULT_INPUT_SIZE, args.cache_dir, cli.pairing_options(args))
    resumed = args.checkpoint_dir / "last.pth" if args.resume == Path() else args.resume
    network = cli.network_from_args(args, resumed).to(device, memory_format=torch.channels_last)
    mask_values = decoded.mask_values(network.n_classes)
    training_set, validation_set = split_datasets(args, decoded, mask_values)
    workers = min(8, cores_per_process()) if device.type == "cuda" else 0  # on a CPU, training needs all cores
    batches = training_batches(training_set, args.batch_size, args.seed, workers)
    held_out = validation_batches(validation_set, args.batch_size)

    # State: new, or that of an interrupted run
    state = new_training_state(network, args.learning_rate, args.epochs * len(batches), dtype)
    settings = {name: getattr(args, name) for name in SETTINGS} | network.architecture
    settings |= {"images": len(decoded.pairs), "optimizer": type(state.optimizer).__name__}
    if resumed is not None:
        resume(state, resumed, settings)
    if distributed.is_main():
        prepare_checkpoint_dir(args.checkpoint_dir, resumed=resumed is not None)
    model = TrainedModel(network, DEFAULT_INPUT_SIZE, mask_values, settings=settings)
    logger.info("Training on %d images, validating on another %d", len(training_set), len(validation_set))
    cli.log_device(device, dtype)
    logger.info("Writing checkpoints to %s", args.checkpoint_dir)
    wandb_run = WandbRun(args.wandb if distributed.is_main() else "disabled", settings, args.checkpoint_dir)

    # Epochs: train, validate, save, log
    started, first_epoch = time.monotonic(), state.epoch
    with GracefulStop() as stop, CheckpointWriter(args.checkpoint_dir) as writer:
        stopping = False
        while state.epoch < args.epochs and not stopping:
            completed = train_with_progress(state, batches, args.epochs, stop)
            model.validation = evaluate(state, held_out) if completed else {}
            if completed:
                state.complete_epoch(model.validation)
            model.epoch = state.epoch
            if distributed.is_main():
                (writer.save_epoch if completed else writer.save_last)(model, state)
            if completed:
                forecast = forecast_remaining(started, state.epoch - first_epoch, args.epochs - state.epoch)
                logger.info("Epoch %d/%d: %s%s", state.epoch, args.epochs, state, forecast)
                wandb_run.log(state.history[-1], *predict_examples(state, validation_set))
            stopping = distributed.any_process(stop()) or not completed
    wandb_run.finish()
    if stopping:
        logger.info("Saved %s; continue with --resume", args.checkpoint_dir / "last.pth")
        stop.exit()

    # Temperatures of the best epoch, which a resumed run may have left in another folder
    best = args.checkpoint_dir / "best.pth"
    if distributed.is_main() and best.exists() and (model := load_model(best, device)).settings == settings:
        temperatures = fit_temperatures(model, validation_set, dtype=dtype)
        save_temperatures(best, temperatures)
        logger.info("Temperatures for --calibrated: %s", format_temperatures(temperatures))
        logger.info("Best validation Dice %.4f: %s", state.best, best)


def split_datasets(
    args: argparse.Namespace, decoded: DecodedPairs, mask_values: list[int]
) -> tuple[SegmentationDataset, SegmentationDataset]:
    """The training set, with random transforms, and the validation set."""
    from utils.data.augmentation import training_transforms  # torchvision takes a second to import

    training, validation = split_indices(len(decoded.pairs), args.validation, args.seed)
    return (
        SegmentationDataset(decoded, training, mask_values, training_transforms(args.augmentation)),
        SegmentationDataset(decoded, validation, mask_values),
    )


def forecast_remaining(started: float, completed: int, remaining: int) -> str:
    """How long the remaining epochs will take, for a log line; nothing after the last one."""
    seconds = (time.monotonic() - started) / completed * remaining
    return f"; about {format_duration(seconds)} left" if remaining else ""


def train_with_progress(state: TrainingState, batches: DataLoader, epochs: int, stop: GracefulStop) -> bool:
    """`train_one_epoch` with a progress bar; returns whether the epoch was completed."""
    options = {"desc": f"Epoch {state.epoch + 1}/{epochs}", "unit": "batch", "leave": False}
    with progress(total=len(batches), initial=state.step, **options) as bar:

        def show(loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.4f}", best_Dice=f"{state.best:.4f}", refresh=False)
            bar.update()

        return train_one_epoch(state, batches, on_step=show, stop=stop)


if __name__ == "__main__":
    cli.run(main, get_args_parser())
