"""Monte Carlo dropout uncertainty of single images: mask, maps and a figure of each."""

import argparse
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from utils import arguments, cli, model_flags, pairing_arguments
from utils.checkpoint import TrainedModel
from utils.figures.grid import save_figure
from utils.figures.predictions import FigureRow, draw_predictions, format_scores, prediction_row, show_predictions
from utils.inference.compiled import compile_model
from utils.inference.guarantees import Guarantee, make_guarantee
from utils.inference.samplers import MCDropout, Sampler, Softmax, calibrated
from utils.pipeline.ground_truth import GroundTruth
from utils.pipeline.image_loop import ImageLoop
from utils.pipeline.items import Item
from utils.pipeline.journal import Journal, SharedJournal, record_file, write_recorded_summary
from utils.pipeline.outputs import FLOAT_MAPS, check_room_for_floats
from utils.pipeline.report import Report
from utils.pipeline.run_settings import run_settings
from utils.pipeline.single_images import (
    SingleImage,
    SingleImageOptions,
    find_single_images,
    predict_single_image,
    save_single_image,
)
from utils.result_arguments import add_passes
from utils.runtime import distributed
from utils.runtime.errors import InputError

logger = logging.getLogger(__name__)

MAX_LOGGED = 3  # up to this many images, each one is logged


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, parents=[arguments.image_parent(), arguments.mask_parent(), arguments.model_parent()]
    )
    words = "number of MC dropout passes; 0 or 1: a single pass without dropout"
    add_passes(parser, 20, arguments.integer(0), words)
    parser.add_argument(
        "--save-prob", action="store_true", help="also save each pass: NAME_mc00_c0.png ..., and all in NAME_probs.npy"
    )
    parser.add_argument("--save-mean-std", action="store_true", help="also save NAME_mean.npy and NAME_std.npy")
    parser.add_argument(
        "--mask-dir",
        type=Path,
        metavar="DIR",
        help="folder of ground-truth masks: adds ground truth, errors, Dice and Jaccard to the figures",
    )
    pairing_arguments.add_mask_suffix(parser)
    arguments.add_float_flags(parser)
    parser.add_argument("--figure", type=Path, metavar="FILE", help="figure of all images, .png, one row each")
    return parser


def main(args: argparse.Namespace) -> int:
    # The images and their output files, the model, the method, the ground truth
    check_flags(args)
    masks = (args.mask_dir, args.mask_suffix)
    images = find_single_images(args.input, args.output, args.output_dir, args.figure, not args.no_save, masks)
    items, outputs = [item for item, _ in images], {item.reported: output for item, output in images}
    if args.review and (args.output_dir is None or len({item.path.parent for item in items}) > 1):
        raise InputError("--review requires --output-dir, and images of one folder")
    model, dtype = model_flags.model_from_args(args, [item.path for item in items])
    sampler = sampler_from_args(args, model, dtype)
    guarantee = make_guarantee(model, sampler, args.guarantee)
    options, ground_truth = options_from_args(args, guarantee), None
    if args.mask_dir:
        ground_truth = GroundTruth(items, args.mask_dir, model.mask_classes, args.ignore_value, args.mask_suffix)
        ground_truth.check_kept([] if args.no_save else outputs.values())
        ground_truth.check_kept([args.figure] if args.figure else [])
    loop = ImageLoop(items, ground_truth)
    if not args.no_save:
        values = options.values_per_pixel(sampler.passes_per_image * len(model.networks), model.network.n_classes)
        paths = {item.path: outputs[item.reported] for item in items}
        check_room_for_floats(images[0][1].parent, paths, values, ("_probs.npy", *FLOAT_MAPS))
        open_journal(loop, args, options, outputs.values(), run_settings(model, sampler, ground_truth, guarantee))
    model = compile_model(model, sampler) if args.compile and loop.remaining() else model
    rows: dict[str, FigureRow] = {}  # of the figure of all images

    # Loop over the images: predict, compare, save, show
    def predict(share: Sequence[Item], handled: Callable[[int], bool]) -> None:
        for item in share:
            with loop.report.isolating(item.reported):
                result = predict_single_image(model, sampler, item, options)
                row, output, files = make_row(item, result, loop), outputs[item.reported], []
                if args.figure:
                    rows[item.reported] = row
                if not args.no_save:
                    save_figure_of_image = partial(save_row, row, loop.report, item.reported)
                    files = save_single_image(output, result, model, options, save_figure_of_image)
                    log_files(files, logging.INFO if len(images) <= MAX_LOGGED else logging.DEBUG)
                loop.finish(item, result.prediction.scores, files)
                if args.viz:
                    show_predictions([row])
            if handled(1):
                break

    report = loop.run(predict)

    # The summary of each output folder; the figure of all images
    if distributed.is_main():
        loop.write_rows(report.rows)
        if ground_truth:
            ground_truth.fitter.log()
    rows = distributed.merge_dicts(rows)
    if rows and distributed.is_main():
        with report.isolating(str(args.figure)):
            save_figure(draw_predictions([rows[name] for name in outputs if name in rows]), args.figure)
            record_file(args.figure)
            logger.info("Figure of all images: %s", args.figure)
    destination = "" if args.no_save else describe_results(images, model.n_classes)
    return cli.finish_prediction(args, report, items[0].path.parent, destination)


def check_flags(args: argparse.Namespace) -> None:
    """Check that no flag contradicts another.

    Raises:
        InputError: one does.
    """
    cli.check_no_save(args)
    cli.check_review_flags(args)
    if args.skip_existing and (args.output_dir is None or args.figure is not None):
        raise InputError(
            "--skip-existing requires --output-dir and excludes --figure, which shows the images of one run"
        )


def sampler_from_args(args: argparse.Namespace, model: TrainedModel, dtype: torch.dtype | None) -> Sampler:
    """The method."""
    passes = model_flags.passes_from_args(args, model)
    sampler = Softmax(args.batch_size, dtype)
    if passes > 1:
        sampler = MCDropout(args.batch_size, dtype, num_samples=passes, seed=args.seed)
    sampler = (calibrated(sampler, model) if args.calibrated else sampler).for_single_images()
    sampler.check(model)
    return sampler


def options_from_args(args: argparse.Namespace, guarantee: Guarantee | None) -> SingleImageOptions:
    """What is written of each image."""
    return SingleImageOptions(
        threshold=args.mask_threshold,
        save=not args.no_save,
        save_passes=args.save_prob,
        save_mean_std=args.save_mean_std,
        save_npy=args.save_npy,
        guarantee=guarantee,
    )


def open_journal(
    loop: ImageLoop,
    args: argparse.Namespace,
    options: SingleImageOptions,
    outputs: Collection[Path],
    settings: Mapping[str, Any],
) -> None:
    """Record finished images, with these settings, in the output folder or in that of each result."""
    settings = {**asdict(options), "mask_dir": str(args.mask_dir), "mask_suffix": args.mask_suffix, **settings}
    if args.output_dir is None:
        loop.journal = SharedJournal(settings, outputs)
    else:
        resume = args.skip_existing
        loop.journal = Journal(args.output_dir, settings, loop.items, resume, loop.ground_truth, outputs)
        loop.write_rows = lambda rows: write_recorded_summary(args.output_dir)


def make_row(item: Item, result: SingleImage, loop: ImageLoop) -> FigureRow:
    """The row of an image in a figure; with ground truth, its scores are added to the prediction's."""
    prediction = result.prediction
    target = loop.report.read_target(loop.ground_truth, item, prediction.classes.shape)
    if target is not None:
        prediction.scores |= loop.ground_truth.compare(target, prediction)
    caption = format_scores(item.key, prediction.scores)
    return prediction_row(result.image, prediction.classes, prediction.maps, target, caption, prediction.regions)


def save_row(row: FigureRow, report: Report, name: str, path: Path) -> None:
    """Write the figure of a single image; a figure that cannot be drawn is a failure, but its image is not lost."""
    with report.isolating(f"figure of {name}"):
        save_figure(draw_predictions([row]), path, dpi=200)


def log_files(files: Sequence[Path], level: int) -> None:
    """Log what was written for an image: the mask, the first of these files, and the ends of the names of the maps."""
    ends = (path.name.removeprefix(files[0].stem) for path in files[1:])
    maps = ", ".join(end for end in ends if not end.startswith("_mc"))  # of single passes there are many
    logger.log(level, "Saved the mask %s and, beside it, %s", files[0], maps)


def describe_results(images: list[tuple[Item, Path]], n_classes: int) -> str:
    """Where the results are, and what white is in the greyscale maps."""
    folders = ", ".join(sorted({str(output.parent) for _, output in images}))
    white = f"entropy and mutual information ln {n_classes} = {math.log(n_classes):.3f} nats"
    return f": {folders}; in the greyscale maps white is probability 1, standard deviation 0.5, {white}"


if __name__ == "__main__":
    cli.run(main, get_args_parser())
