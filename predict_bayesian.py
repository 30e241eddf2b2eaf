"""Monte Carlo dropout uncertainty of single images: mask, maps and a figure of each."""

import argparse
import logging
import math
from collections import defaultdict
from functools import partial
from pathlib import Path

from utils import arguments, cli, pairing_arguments
from utils.data.mask_classes import MaskClasses
from utils.figures.grid import save_figure
from utils.figures.predictions import FigureRow, draw_predictions, format_scores, prediction_row, show_predictions
from utils.inference.samplers import MCDropout, Softmax, calibrated
from utils.metrics.segmentation import segmentation_scores
from utils.pipeline.ground_truth import GroundTruth
from utils.pipeline.items import Item
from utils.pipeline.report import Report
from utils.pipeline.single_images import (
    SingleImage,
    SingleImageOptions,
    find_single_images,
    predict_single_image,
    save_single_image,
)
from utils.pipeline.summary import write_summary
from utils.runtime.console import progress
from utils.runtime.signals import GracefulStop

logger = logging.getLogger(__name__)

MAX_LOGGED = 3  # up to this many images, each one is logged


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, parents=[arguments.image_parent(), arguments.mask_parent(), arguments.model_parent()]
    )
    arguments.add_with_default(
        parser,
        "--mc",
        type=arguments.integer(0),
        default=20,
        metavar="T",
        help="number of MC dropout passes; 0 or 1: a single pass without dropout",
    )
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
    masks = (args.mask_dir, args.mask_suffix)
    images = find_single_images(args.input, args.output, args.output_dir, args.figure, not args.no_save, masks)
    items = [item for item, _ in images]
    model, dtype = cli.model_from_args(args, [item.path for item in items])
    sampler = MCDropout(args.batch_size, dtype, num_samples=args.mc, seed=args.seed)
    if args.mc <= 1:
        sampler = Softmax(args.batch_size, dtype)
    sampler = (calibrated(sampler, model) if args.calibrated else sampler).for_single_images()
    sampler.check(model)
    options = SingleImageOptions(
        threshold=args.mask_threshold,
        save=not args.no_save,
        save_passes=args.save_prob,
        save_mean_std=args.save_mean_std,
        save_npy=args.save_npy,
    )
    ground_truth = None
    if args.mask_dir:
        recorded = MaskClasses(model.mask_values, model.ignore_value)
        ground_truth = GroundTruth(items, args.mask_dir, recorded, args.ignore_value, args.mask_suffix)
    report, rows, summaries = Report(), [], defaultdict(list)

    # Loop over the images: predict, compare, save, show
    with GracefulStop() as stop:
        for item, output in progress(images, unit="image"):
            with report.isolating(str(item.path)):
                result = predict_single_image(model, sampler, item, options)
                row = make_row(item, result, ground_truth)
                if not args.no_save:
                    suffixes = save_single_image(output, result, model, options, partial(save_row, row))
                    level = logging.INFO if len(images) <= MAX_LOGGED else logging.DEBUG
                    maps = ", ".join(f"{suffix}.png" for suffix in suffixes)
                    logger.log(level, "Saved the mask %s and, beside it, %s", output, maps)
                if args.viz:
                    show_predictions([row])
                report.rows.append({"image": str(item.path), **result.prediction.scores})
                summaries[output.parent].append(report.rows[-1])
                if args.figure:
                    rows.append(row)
            if stop():
                break

    # The summary of each output folder, also after a stop; the figure of all images
    if not args.no_save:
        for folder, folder_rows in summaries.items():
            write_summary(folder / "summary.csv", folder_rows, keep_others=True)
    if stop():
        stop.exit()
    if rows:
        with report.isolating(str(args.figure)):
            save_figure(draw_predictions(rows), args.figure)
            logger.info("Figure of all images: %s", args.figure)
    return report.finish("" if args.no_save else describe_results(images, model.n_classes))


def make_row(item: Item, result: SingleImage, ground_truth: GroundTruth | None) -> FigureRow:
    """The row of an image in a figure; with ground truth, its scores are added to the prediction's."""
    prediction, target = result.prediction, None
    if ground_truth:
        target = ground_truth.read(item, prediction.classes.shape)
    if target is not None:
        prediction.scores |= segmentation_scores(prediction.classes, target, ground_truth.n_classes)
    caption = format_scores(item.key, prediction.scores)
    return prediction_row(result.image, prediction.classes, prediction.maps, target, caption)


def save_row(row: FigureRow, path: Path) -> None:
    """Write the figure of a single image."""
    save_figure(draw_predictions([row]), path, dpi=200)


def describe_results(images: list[tuple[Item, Path]], n_classes: int) -> str:
    """Where the results are, and what white is in the greyscale maps."""
    folders = ", ".join(sorted({str(output.parent) for _, output in images}))
    white = f"entropy and mutual information ln {n_classes} = {math.log(n_classes):.3f} nats"
    return f": {folders}; in the greyscale maps white is probability 1, standard deviation 0.5, {white}"


if __name__ == "__main__":
    cli.run(main, get_args_parser())
