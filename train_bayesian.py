"""Train the MC-dropout U-Net on the images and masks of two folders."""

import argparse
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from utils import arguments, cli, model_flags
from utils.checkpoint import TrainedModel, load_model
from utils.data.cache import decode_pairs
from utils.data.groups import count_named, groups_of, name_digests, names_digest, read_groups
from utils.data.mask_classes import MaskOptions
from utils.data.pairing import Pair, pair_files
from utils.data_loading import (
    SegmentationDataset,
    indices_not_held_out,
    split_indices,
    training_batches,
    validation_batches,
)
from utils.runtime import distributed
from utils.runtime.console import format_duration, progress
from utils.runtime.device import memory_format
from utils.runtime.errors import InputError
from utils.runtime.output_folder import check_room
from utils.runtime.seeds import json_digest
from utils.runtime.signals import GracefulStop
from utils.runtime.threads import cores_per_process
from utils.training.calibrator import calibrate, save_calibration
from utils.training.checkpoint_files import CheckpointWriter, checkpoint_bytes, resume
from utils.training.loop import evaluate, predict_examples, train_one_epoch
from utils.training.state import TrainingState, headline_score, new_training_state
from utils.training.temperatures import format_temperatures
from utils.training.tracking import WandbRun

logger = logging.getLogger(__name__)

# What a resumed run has to share with the interrupted one.
SETTINGS = (
    "epochs",
    "batch_size",
    "learning_rate",
    "validation",
    "augmentation",
    "seed",
    "amp",
    "mask_values",
    "background",
    "ignore_value",
    "white",
)


def get_args_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description=__doc__, parents=[arguments.training_parent(), arguments.training_folders_parent()]
    )


def main(args: argparse.Namespace) -> None:
    device, dtype = model_flags.device_from_args(args)
    torch.manual_seed(args.seed)

    # The model, and its data: decode, split, batch
    resumed = args.checkpoint_dir / "last.pth" if args.resume == Path() else args.resume
    loaded = model_flags.initial_model_from_args(args, resumed)
    network = loaded.network.to(device, memory_format=memory_format(device))
    training_set, validation_set, data_settings, validation_names = load_datasets(args, loaded)
    workers = min(8, cores_per_process()) if device.type == "cuda" else 0  # on a CPU, training needs all cores
    batches = training_batches(training_set, args.batch_size, args.seed, workers)
    held_out = validation_batches(validation_set, args.batch_size)

    # State: new, or that of an interrupted run
    state = new_training_state(network, args.learning_rate, args.epochs * len(batches), dtype)
    settings = {name: getattr(args, name) for name in SETTINGS} | network.architecture
    settings |= {"optimizer": type(state.optimizer).__name__} | data_settings
    classes = training_set.mask_classes.recorded
    model = TrainedModel(network, loaded.input_size, settings=settings, white=training_set.white, **classes)
    if resumed is not None:
        resume(state, resumed, settings, classes)
    model.epoch = state.epoch
    continues = resumed is not None and args.checkpoint_dir.exists() and args.checkpoint_dir.samefile(resumed.parent)
    if distributed.is_main():
        check_room(args.checkpoint_dir, checkpoint_bytes(network, args.epochs - state.epoch, continues))
    seen = count_named(validation_names, {*loaded.settings.get("trained_names", ())}) if args.load else 0
    log_datasets(training_set, validation_set, seen)
    model_flags.log_device(device, dtype)
    logger.info("Writing checkpoints to %s", args.checkpoint_dir)
    wandb_run = WandbRun(args.wandb if distributed.is_main() else "disabled", settings, args.checkpoint_dir, continues)

    # Epochs: train, validate, save, log
    started, first_epoch, stopping = time.monotonic(), state.epoch, False
    with GracefulStop() as stop, CheckpointWriter(args.checkpoint_dir, continues) as writer:
        if resumed is not None and distributed.is_main():
            writer.take_over(resumed, model, state)
        while state.epoch < args.epochs and not stopping:
            if train_with_progress(state, batches, args.epochs, stop):
                model.validation = evaluate(state, held_out)
                state.complete_epoch(model.validation)
                model.epoch = state.epoch
                if distributed.is_main():
                    writer.save_epoch(model, state)
                forecast = forecast_remaining(started, state.epoch - first_epoch, args.epochs - state.epoch)
                logger.info("Epoch %d/%d: %s%s", state.epoch, args.epochs, state, forecast)
                wandb_run.log(state.history[-1], partial(predict_examples, state, validation_set))
                stopping = distributed.any_process(stop())
            else:
                model.validation, stopping = {}, True
                if distributed.is_main():
                    writer.save_last(model, state)
    if stopping or distributed.any_process(stop()):  # also while the last files were being written
        logger.info("Saved %s; continue with --resume", args.checkpoint_dir / "last.pth")
        wandb_run.finish()
        stop.exit()

    if distributed.is_main():
        calibrate_best_epoch(args.checkpoint_dir / "best.pth", state, validation_set)
    wandb_run.finish()


def load_datasets(
    args: argparse.Namespace, loaded: TrainedModel
) -> tuple[SegmentationDataset, SegmentationDataset, dict[str, Any], list[set[str]]]:
    """The training set, with random transforms, the validation set, their settings, `name_digests` of the second."""
    from utils.data.augmentation import training_transforms  # torchvision takes a second to import

    folders = cli.validation_folders(args)
    pairs, held_out_pairs, group_of = pair_folders(args, folders)

    # Decode: white and the classes mean what they mean to the loaded weights
    options = replace(cli.mask_options(args), loaded=loaded.mask_classes)
    n_classes, size, white = loaded.network.n_classes, loaded.input_size, args.white or loaded.white
    if args.load and white != args.white:
        logger.info("White in 16-bit images is %g, as in the loaded model (--white names another)", white)
    background = loaded.background if options.first is None else options.first  # of masks that are united
    of_masks = {"background": background, "ignored": options.ignored}
    decode = partial(decode_pairs, size=size, cache_dir=args.cache_dir, skip_unusable=args.skip_unusable, **of_masks)
    decoded = decode(pairs, white=white)
    mask_classes = decoded.mask_classes(n_classes, options)
    kept = options.first is None and list(mask_classes.values) == loaded.mask_values
    if args.load and kept and loaded.mask_values != sorted(loaded.mask_values):
        logger.info("The classes are in the order of the loaded model (--mask-values names another)")
    images = [pair.image for pair in decoded.pairs]
    groups = groups_of(images, group_of)

    # Split, or take the validation images from folders of their own
    if folders:
        held_out = decode(held_out_pairs, white=decoded.white)
        ignored = MaskOptions(ignored=args.ignore_value)
        held_out_classes = held_out.mask_classes(n_classes, ignored, mask_classes)
        training, validation = indices_not_held_out(decoded.pairs, held_out.pairs), range(len(held_out.pairs))
    else:
        held_out, held_out_classes = decoded, mask_classes
        training, validation = split_indices(len(images), args.validation, args.seed, groups)
    if (size[0] // 16) * (size[1] // 16) == 1 and 1 in (args.batch_size, len(training) % args.batch_size):
        text = (
            f"batch norm cannot be trained on a batch of one image at {size[0]}x{size[1]}, which leaves it one value "
            "per channel: choose another batch size, or a larger network input"
        )
        raise InputError(text, "batch_size", "newW", "newH")
    files = identify_files(decoded.pairs, args.imgs_dir, args.masks_dir)
    held_out_files = identify_files(held_out.pairs, *folders) if folders else dict.fromkeys(files)
    settings = files | {f"validation_{name}": value for name, value in held_out_files.items()}
    settings |= {"groups": json_digest(groups) if groups else None}
    trained = name_digests([images[i] for i in training], args.imgs_dir)
    settings |= {"trained_names": sorted({*loaded.settings.get("trained_names", ())}.union(*trained))}
    validation_names = name_digests([held_out.pairs[i].image for i in validation], (folders or (args.imgs_dir,))[0])
    training_set = SegmentationDataset(decoded, training, mask_classes)
    validation_set = SegmentationDataset(held_out, validation, held_out_classes, groups=groups)
    for data, name in ((training_set, "training"), (validation_set, "validation")):
        if not data.n_counted:
            of_split = () if folders or not args.validation else ("validation", "seed", "val_imgs_dir")
            text = f"in the {name} masks every pixel is ignored: some have to count"
            raise InputError(text, "ignore_value", *of_split)
    transforms = training_transforms(args.augmentation, others=training_set)
    return training_set.with_transform(transforms), validation_set, settings, validation_names


def pair_folders(
    args: argparse.Namespace, folders: tuple[Path, Path] | None
) -> tuple[list[Pair], list[Pair], dict[Path, str] | None]:
    """What names alone tell, before anything is decoded: all pairs, those of `folders`, the groups."""
    if folders and args.groups:
        raise InputError("--groups is for a split, which --val-imgs-dir and --val-masks-dir replace: omit one of them")
    options = cli.pairing_options(args)
    pairs = pair_files(args.imgs_dir, args.masks_dir, options)
    held_out = pair_files(*folders, options) if folders else []
    groups = read_groups(args.groups, [pair.image for pair in pairs], args.skip_unusable) if args.groups else None
    if not folders:  # if this split fails, so does that of the images that can be decoded
        split_indices(len(pairs), args.validation, args.seed, groups and [*groups.values()])
    return pairs, held_out, groups


def identify_files(pairs: Sequence[Pair], imgs_dir: Path, masks_dir: Path) -> dict[str, Any]:
    """Settings that identify the images and masks of two folders."""
    images, masks = [pair.image for pair in pairs], [mask for pair in pairs for mask in pair.masks]
    names = {"image_names": names_digest(images, imgs_dir), "mask_names": names_digest(masks, masks_dir)}
    return {"images": len(images), **names}


def calibrate_best_epoch(path: Path, state: TrainingState, validation_set: SegmentationDataset) -> None:
    """Calibrate the best epoch and store it, unless a resumed run has left it in another folder."""
    model = load_model(path, state.device) if path.exists() else None
    if model is None or model.epoch != state.best["epoch"]:
        logger.warning(
            "The best epoch is %d, after which this run was resumed without its file: %s does not contain it. python "
            "-m utils.calibration -m FILE calibrates that of the interrupted run",
            *(state.best["epoch"], path),
        )
        return
    no_split = model.settings["validation"] == 0 and not model.settings["validation_images"]
    calibrate(model, validation_set, dtype=state.dtype, trained_on=no_split, groups=validation_set.groups)
    save_calibration(path, model)
    logger.info("Temperatures for --calibrated: %s", format_temperatures(model.temperatures))
    logger.info("Best validation %s %.4f: %s", *headline_score(state.best), path)
    if state.best["val_dice"] == 0:
        words = "The best validation Dice is 0: this network predicts no lesion, or none where there is one; see %s"
        logger.warning(words, '"My prediction is black" in data/README.md')


def log_datasets(training: SegmentationDataset, validation: SegmentationDataset, seen: int) -> None:
    """Log what is trained and validated on, how much of it the loaded model may have seen, and what the masks lack."""
    if validation.images is training.images and list(validation.indices) == list(training.indices):
        ones = "one" if len(training) == 1 else "ones"
        words = "Training on %s and validating on the same %s: the scores say nothing about other images"
        logger.info(words, _count_images(training), ones)
    else:
        logger.info("Training on %s, validating on another %d", _count_images(training), len(validation))
        if seen:
            logger.warning(
                "The loaded model may have been trained on %d of the %d validation images, by their names: scores, "
                "temperatures and guarantees are then too optimistic",
                *(seen, len(validation)),
            )
    numbers = ((training, "training"), (validation, "validation"))
    if training.n_without_lesion or validation.n_without_lesion:
        counts = [f"{data.n_without_lesion} of {len(data)} {name} masks" for data, name in numbers]
        logger.info("Without a lesion: %s", ", ".join(counts))
    for data, name in numbers:
        if data.absent and len(data.mask_classes.values) > 2:
            logger.warning("No %s mask shows class %s", name, ", ".join(map(str, data.absent)))
    if training.kept or validation.kept:
        height, width = training.masks.shape[1:]
        logger.warning(
            "At %dx%d pixels %s would lose a lesion: they keep the pixel with its largest share. A larger network "
            "input keeps more of it: --newW, --newH",
            *(width, height, " and ".join(f"{len(data.kept)} of {len(data)} {name} masks" for data, name in numbers)),
        )
    if training.n_without_lesion == training.n_counted:
        logger.warning(
            "No training image has a lesion, so the network cannot learn to mark one. If the masks show any, see above "
            "what their values were taken for; another --seed draws other training images"
        )
    if validation.n_without_lesion == validation.n_counted:
        logger.warning(
            "No validation image has a lesion: there is no Dice, and best.pth is the epoch of the lowest validation "
            "loss. --validation, --seed or --val-imgs-dir change the validation images"
        )


def _count_images(dataset: SegmentationDataset) -> str:
    return f"{len(dataset)} image{'s' * (len(dataset) != 1)}"


def forecast_remaining(started: float, completed: int, remaining: int) -> str:
    """How long the remaining epochs will take, for a log line; nothing after the last one."""
    seconds = (time.monotonic() - started) / completed * remaining
    return f"; about {format_duration(seconds)} left" if remaining else ""


def running_scores(state: TrainingState, loss: float) -> dict[str, str]:
    """What a progress bar shows: the loss of a step and, after the first epoch, the best validation score."""
    best = [headline_score(state.best)] if state.history else []
    return {"loss": f"{loss:.4f}", **{f"best_{name}": f"{value:.4f}" for name, value in best}}


def train_with_progress(state: TrainingState, batches: DataLoader, epochs: int, stop: GracefulStop) -> bool:
    """`train_one_epoch` with a progress bar; returns whether the epoch was completed."""
    options = {"desc": f"Epoch {state.epoch + 1}/{epochs}", "unit": "batch", "leave": False}
    with progress(total=len(batches), initial=state.step, **options) as bar:

        def show(loss: float) -> None:
            bar.set_postfix(running_scores(state, loss), refresh=False)
            bar.update()

        return train_one_epoch(state, batches, on_step=show, stop=stop)


if __name__ == "__main__":
    cli.run(main, get_args_parser())
