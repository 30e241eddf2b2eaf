"""Train the MC-dropout U-Net on the images and masks of two folders."""

import argparse
import logging
import os
import time
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset

from unet import BayesianUNet
from utils import calibration, cli, distributed, tracking, training
from utils.checkpoint import DEFAULT_INPUT_SIZE, TrainedModel, load_model
from utils.data_loading import DEFAULT_CACHE_DIR, SegmentationDataset, decode_pairs, pair_files, split_indices
from utils.errors import InputError
from utils.image_io import remove_unfinished

logger = logging.getLogger(__name__)

# What a resumed training must have in common with the one that it goes on with.
SETTINGS = ("epochs", "batch_size", "learning_rate", "validation", "augmentation", "seed", "amp")


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, parents=[cli.device_parent()])
    cli.add_defaulted(parser, "--epochs", "-e", type=cli.whole_number(1), default=20, metavar="N")
    cli.add_defaulted(parser, "--batch-size", "-b", type=cli.whole_number(1), default=8, metavar="N")
    cli.add_defaulted(
        parser, "--learning-rate", "-l", type=cli.number(0, 10), default=1e-3, metavar="RATE", help="its highest value"
    )
    cli.add_defaulted(
        parser, "--validation", "-v", type=float, default=15.0, metavar="PERCENT", help="images kept for validation"
    )
    parser.add_argument(
        "--classes",
        "-c",
        type=cli.whole_number(1, 256),
        metavar="N",
        help="1 is a sigmoid, for two classes (default: 2, or as --load has)",
    )
    cli.add_defaulted(
        parser,
        "--augmentation",
        choices=["light", "strong"],
        default="light",
        help="random changes of the training images; strong is for trainings of 60 epochs and more",
    )
    parser.add_argument(
        "--bilinear", action="store_true", default=None, help="upsample bilinearly, not by transposed convolutions"
    )
    parser.add_argument("--load", "-f", type=Path, metavar="FILE", help="start from the weights of this checkpoint")
    parser.add_argument(
        "--resume",
        nargs="?",
        type=Path,
        const=Path(),
        metavar="FILE",
        help="go on with an interrupted training, from FILE or from last.pth in the checkpoint folder",
    )
    parser.add_argument(
        "--wandb", choices=tracking.MODES, help="Weights & Biases (default: online with a login, offline without)"
    )
    folders = parser.add_argument_group("folders")
    for flag, default, what in (
        ("--imgs-dir", Path("data/imgs"), "images"),
        ("--masks-dir", Path("data/masks"), "masks, NAME.* or NAME_Segmentation.* for the image NAME.jpg"),
        ("--checkpoint-dir", Path("checkpoints"), "checkpoints and metrics.csv"),
    ):
        cli.add_defaulted(folders, flag, type=Path, default=default, metavar="DIR", help=what)
    folders.add_argument(
        "--cache-dir",
        type=Path,
        default=DEFAULT_CACHE_DIR,
        metavar="DIR",
        help="decoded images, for the next run (default: data/.cache of this project)",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    if args.load and args.resume:
        raise InputError("--load starts a new training and --resume goes on with one: give one of the two")
    device = cli.choose_device(args.device)
    dtype = cli.amp_dtype(device, args.amp)
    torch.manual_seed(args.seed)

    pairs = pair_files(args.imgs_dir, args.masks_dir)
    with distributed.main_first():
        decoded = decode_pairs(pairs, DEFAULT_INPUT_SIZE, args.cache_dir, show_progress=distributed.is_main())
    if args.load:
        network = load_model(args.load, n_classes=args.classes, bilinear=args.bilinear).network
    else:
        network = BayesianUNet(n_classes=args.classes or 2, bilinear=bool(args.bilinear))
    network.to(device, memory_format=torch.channels_last)
    mask_values = decoded.mask_values(network.n_classes)
    train_indices, validation_indices = split_indices(len(pairs), args.validation, args.seed)
    from utils.augmentation import TrainingTransforms  # torchvision takes a second to import

    training_set = SegmentationDataset(decoded, train_indices, mask_values, TrainingTransforms(args.augmentation))
    validation_set = SegmentationDataset(decoded, validation_indices, mask_values)
    on_gpu = device.type == "cuda"
    workers = min(8, os.cpu_count() or 1) if on_gpu else 0  # a CPU that trains has none to spare
    batches = DataLoader(
        training_set,
        batch_sampler=training.SeededBatches(len(training_set), args.batch_size, args.seed),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=on_gpu,
        collate_fn=partial(training.collate, size=DEFAULT_INPUT_SIZE),
        generator=torch.Generator(),  # or else each epoch would draw from the global one, and a resumed one once more
    )
    own = range(distributed.rank(), len(validation_set), distributed.world_size())
    validation_batches = DataLoader(Subset(validation_set, own), args.batch_size)

    total_steps = args.epochs * len(batches)
    state = training.training_state(network, args.learning_rate, total_steps, dtype)
    settings = {name: getattr(args, name) for name in SETTINGS} | network.architecture
    settings |= {"images": len(pairs), "optimizer": type(state.optimizer).__name__}
    if args.resume is not None:
        training.resume(state, args.checkpoint_dir / "last.pth" if args.resume == Path() else args.resume, settings)
        if distributed.is_main():
            remove_unfinished([args.checkpoint_dir])
    elif distributed.is_main():
        training.set_aside(args.checkpoint_dir)

    logger.info("Training on %d images, validating on another %d", len(training_set), len(validation_set))
    logger.info("Computing on %s in %s", cli.describe_device(device), cli.describe_dtype(dtype))
    logger.info("Checkpoints go to %s", args.checkpoint_dir)
    wandb_run = tracking.WandbRun(args.wandb if distributed.is_main() else "disabled", settings, args.checkpoint_dir)
    started, first = time.monotonic(), state.epoch
    with cli.GentleStop() as stop:
        while state.epoch < args.epochs:
            finished = train_epoch(state, batches, device, dtype, args.epochs, stop)
            scores = training.evaluate(network, validation_batches, device, dtype) if finished else {}
            model = TrainedModel(network, DEFAULT_INPUT_SIZE, mask_values, state.epoch + finished, scores, settings)
            if finished:
                state.add_epoch(scores)
            if distributed.is_main():
                save = training.save_epoch if finished else training.save_last
                save(args.checkpoint_dir, model, state)
            if finished:
                left = (time.monotonic() - started) / (state.epoch - first) * (args.epochs - state.epoch)
                ahead = f"; about {cli.duration(left)} left" if left else ""
                logger.info("Epoch %d/%d: %s%s", state.epoch, args.epochs, describe(state), ahead)
                wandb_run.log(state.history[-1], *training.predict_examples(network, validation_set, device))
            if distributed.any_of(stop()) or not finished:
                wandb_run.finish()
                logger.info("What --resume needs is in %s", args.checkpoint_dir / "last.pth")
                stop.leave()
    wandb_run.finish()
    best = args.checkpoint_dir / "best.pth"
    if distributed.is_main() and best.exists():  # or else a resumed training has not bettered one in another folder
        temperatures = calibration.fit_temperatures(load_model(best, device), validation_set, args.batch_size, dtype)
        calibration.save_temperatures(best, temperatures)
        logger.info("Temperatures for --calibrated: %s", calibration.describe(temperatures))
        logger.info("Best validation Dice %.4f: %s", state.best, best)


def train_epoch(
    state: training.TrainingState,
    batches: DataLoader,
    device: torch.device,
    dtype: torch.dtype | None,
    epochs: int,
    stop: cli.GentleStop,
) -> bool:
    """`train_one_epoch` behind a progress bar."""
    options = {"desc": f"Epoch {state.epoch + 1}/{epochs}", "unit": "batch", "leave": False}
    with cli.progress(total=len(batches), initial=state.step, **options) as bar:

        def show(loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.4f}", best_Dice=f"{state.best:.4f}", refresh=False)
            bar.update()

        return training.train_one_epoch(state, batches, device, dtype, on_step=show, stop=stop)


def describe(state: training.TrainingState) -> str:
    """The last epoch for people."""
    row = state.history[-1]
    return (
        f"loss {row['train_loss']:.4f}; validation Dice {row['val_dice']:.4f} (best {state.best:.4f}), "
        f"accuracy {row['val_accuracy']:.4f} (of all background: {row['val_accuracy_all_background']:.4f})"
    )


if __name__ == "__main__":
    cli.run(main, get_args_parser())
