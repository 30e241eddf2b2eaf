"""How many MC dropout passes are enough: calibration, selective prediction and Dice against their number.

`python -m utils.passes --input-dir … --mask-dir … --output-dir …` evaluates the first 1, 2, 3, … of many passes, prints
a table and writes it as passes.csv and as a figure, passes.png.
"""

import argparse
import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch

from utils import arguments, cli, model_flags
from utils.checkpoint import TrainedModel
from utils.figures.curves import draw_passes
from utils.figures.grid import save_figure
from utils.inference.maps import full_size_maps, predict_classes
from utils.inference.predictor import draw_samples
from utils.inference.samplers import MCDropout
from utils.inference.upsampling import LogitSamples
from utils.metrics.pixel_counter import PixelCounter
from utils.metrics.pixel_counts import PixelCounts
from utils.metrics.pixel_metrics import PIXEL_METRICS
from utils.metrics.segmentation import segmentation_scores, where_shown
from utils.metrics.selective import mean_dice_and_aurc
from utils.metrics.uncertainty import ImageScores, entropy
from utils.pipeline.ground_truth import GroundTruth
from utils.pipeline.items import Item
from utils.pipeline.report import Report
from utils.runtime.atomic_files import write_csv
from utils.runtime.console import progress
from utils.runtime.errors import InputError

logger = logging.getLogger(__name__)

NUMBERS_OF_PASSES = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 300, 500, 700, 1000)


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m utils.passes",
        description=__doc__,
        parents=[arguments.folder_parent(evaluates_only=True), arguments.model_parent()],
    )
    arguments.add_with_default(
        parser, "--mc", type=arguments.integer(1), default=100, metavar="T", help="largest number of passes"
    )
    return parser


def main(args: argparse.Namespace) -> int:
    cli.require_one_process()
    items = cli.items_from_args(args)
    model, dtype = model_flags.model_from_args(args, [item.path for item in items])
    ground_truth = GroundTruth(items, args.mask_dir, model.mask_classes, args.ignore_value, args.mask_suffix)
    items = [item for item in items if item.name in ground_truth.paths]
    sampler = MCDropout(args.batch_size, dtype, num_samples=args.mc, seed=args.seed).for_single_images()
    sampler.check(model)
    numbers = [t for t in NUMBERS_OF_PASSES if t < args.mc] + [args.mc]

    # Each image after each number of passes; the pixel counts are summed over the images
    report, curves = Report(), []
    totals: list[PixelCounts] = []  # for each number of passes
    for item in progress(items, unit="image"):
        with report.isolating(item.key):
            points = evaluate_passes(model, sampler, item, ground_truth, numbers)
            if not points[0].counts.pixels:
                logger.warning("%s is left out: its mask has no pixel that counts", item.key)
                continue
            counts = [point.counts for point in points]
            totals = [a + b for a, b in zip(totals, counts, strict=True)] if totals else counts
            curves.append(points)
            report.rows.append({"image": item.key})
    ground_truth.fitter.log()

    # The set after each number of passes: a table and a figure
    if not curves and not report.failures:
        raise InputError(f"the masks in {args.mask_dir} have no pixel that counts: there is nothing to evaluate")
    if curves:
        table = [table_row(t, totals[i], [points[i] for points in curves]) for i, t in enumerate(numbers)]
        for row in table:
            print("   ".join(f"{name} {value:.4f}" if name != "T" else f"T {value:<4}" for name, value in row.items()))
        write_csv(args.output_dir / "passes.csv", table)
        panels = {name: (numbers, [row[name] for row in table]) for name in table[0] if name != "T"}
        save_figure(draw_passes(panels), args.output_dir / "passes.png", dpi=150)
    return report.finish(f": {args.output_dir}")


class PassesPoint(NamedTuple):
    """The evaluation of the first T passes of an image.

    Attributes:
        counts: of its pixels.
        dice: of the mask of their mean; NaN without a lesion.
        confidence: the soft Dice confidence of that mask.
    """

    counts: PixelCounts
    dice: float
    confidence: float


@torch.inference_mode()
def evaluate_passes(
    model: TrainedModel, sampler: MCDropout, item: Item, ground_truth: GroundTruth, numbers: Sequence[int]
) -> list[PassesPoint]:
    """Evaluate an image after each of these numbers of passes, by every member of an ensemble; they are increasing."""
    image = item.read(model.white)
    target = ground_truth.read(item, (image.height, image.width))
    (samples,) = draw_samples(model, image, sampler, item.key)  # of an ensemble, of one member after the other
    points, total = [], 0.0
    for t, logits in enumerate(samples.logits.unflatten(0, (-1, sampler.num_samples)).unbind(1), start=1):
        total = total + full_size_maps([LogitSamples(logits)], image.size, statistics=()).probs
        if t in numbers:
            mean = total / t
            entropy_of_mean, classes, scores = entropy(mean), predict_classes(mean), ImageScores()
            scores.add(mean, entropy_of_mean, classes)
            counter = PixelCounter()
            counter.add(mean, entropy_of_mean, torch.from_numpy(target).to(mean.device))
            dice = where_shown(segmentation_scores(classes.cpu().numpy(), target, len(mean)))["dice"]
            points.append(PassesPoint(counter.read().coarse(), dice, scores.soft_dice_confidence))
    return points


def table_row(t: int, counts: PixelCounts, points: Sequence[PassesPoint]) -> dict[str, float]:
    """The metrics of a set after t passes."""
    dice, aurc = mean_dice_and_aurc([point.dice for point in points], [point.confidence for point in points])
    return {
        "T": t,
        "ECE, top-label": float(PIXEL_METRICS["ece_top_label"](counts)),
        "NLL (nats)": float(PIXEL_METRICS["nll"](counts)),
        "AURC": aurc,
        "mean Dice": dice,
    }


if __name__ == "__main__":
    cli.run(main, get_args_parser())
