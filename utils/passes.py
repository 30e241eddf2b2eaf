"""How many passes of MC dropout are enough: calibration, triage and Dice against their number, in one run of many.

`python -m utils.passes --input-dir … --mask-dir … --output-dir …` prints a table and writes it with a picture.
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from utils import batch, cli, figures
from utils.checkpoint import TrainedModel
from utils.errors import InputError
from utils.image_io import read_image, write_csv
from utils.metrics import PIXEL_METRICS, PixelCounts, aurc, pixel_counts, segmentation_scores
from utils.probability import MCDropout, full_size_probs, most_probable_class
from utils.uncertainty import ScoreSums, entropy

STEPS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 300, 500, 700, 1000)


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m utils.passes", description=__doc__, parents=[cli.folder_parent(), cli.model_parent()]
    )
    cli.add_defaulted(parser, "--mc", type=cli.whole_number(1), default=100, metavar="T", help="most passes")
    return parser


def main(args: argparse.Namespace) -> int:
    if args.mask_dir is None:
        raise InputError("--mask-dir is needed: the passes are judged against true masks")
    items = batch.find_items(args.input_dir, args.output_dir, args.ext, args.recursive)
    model, dtype = cli.load_model(args)
    truth = batch.Truth(items, args.mask_dir, model.mask_values)
    sampler = MCDropout(args.batch_size, dtype, num_samples=args.mc, seed=args.seed)
    sampler.check(model)
    steps = [step for step in STEPS if step < args.mc] + [args.mc]

    report, curves = batch.Report(), []
    sums: list[PixelCounts] = []  # for each number of passes
    for item in cli.progress(items, unit="image"):
        with report.failing_alone(str(item.name)):
            points = curve(model, sampler, item, truth, steps)
            sums = [a + b.counts for a, b in zip(sums, points, strict=True)] if sums else [p.counts for p in points]
            curves.append(points)
            report.rows.append({"image": item.name.as_posix()})
    if curves:
        table = [summary(step, sums[i], [points[i] for points in curves]) for i, step in enumerate(steps)]
        for row in table:
            print("   ".join(f"{name} {value:.4f}" if name != "T" else f"T {value:<4}" for name, value in row.items()))
        write_csv(args.output_dir / "passes.csv", table)
        panels = {name: (steps, [row[name] for row in table]) for name in table[0] if name != "T"}
        figures.save_figure(figures.draw_passes(panels), args.output_dir / "passes.png")
    return report.finish(f": {args.output_dir}")


class Point(NamedTuple):
    """What an image's first T passes say.

    Attributes:
        counts: of its pixels.
        dice: of the mask of their mean.
        confidence: its soft Dice confidence.
    """

    counts: PixelCounts
    dice: float
    confidence: float


@torch.inference_mode()
def curve(
    model: TrainedModel, sampler: MCDropout, item: batch.Item, truth: batch.Truth, steps: Sequence[int]
) -> list[Point]:
    """A point for each number of passes in `steps`, which rise."""
    image = read_image(item.path)
    true_classes = truth.read(item, (image.height, image.width))
    inputs = sampler.inputs(image, model.input_size)
    samples = sampler.sample(model, [inputs], [item.name.as_posix()])[0]
    points, total = [], 0.0
    for t, probs in enumerate(full_size_probs(samples, image.size), start=1):
        total = total + probs.to(model.device)
        if t in steps:
            mean = total / t
            classes = most_probable_class(mean)
            entropy_of_mean, sums = entropy(mean), ScoreSums()
            predicted, true = (torch.from_numpy(c).to(mean.device) for c in (classes, true_classes))
            sums.add(mean, entropy_of_mean, predicted)
            counts = pixel_counts(mean, entropy_of_mean, true).coarse()
            dice = segmentation_scores(classes, true_classes, len(mean))["dice"]
            points.append(Point(counts, dice, sums.soft_dice_confidence))
    return points


def summary(step: int, counts: PixelCounts, points: Sequence[Point]) -> dict[str, float]:
    """The metrics of the set after so many passes."""
    dice = np.array([point.dice for point in points])
    confidence = np.array([point.confidence for point in points])
    return {
        "T": step,
        "ECE, top-label": float(PIXEL_METRICS["ece_top_label"](counts)),
        "NLL": float(PIXEL_METRICS["nll"](counts)),
        "AURC": aurc(confidence, 1 - dice),
        "mean Dice": float(dice.mean()),
    }


if __name__ == "__main__":
    cli.run(main, get_args_parser())
