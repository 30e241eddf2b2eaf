"""Write a mask for each image of a folder, and compare the masks with the ground truth if there is any."""

import argparse
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from utils import arguments, cli, model_flags
from utils.data.images import save_png
from utils.data.masks import mask_to_image
from utils.figures.predictions import prediction_row, show_predictions
from utils.inference.guarantees import make_guarantee
from utils.inference.predictor import MapOptions, Prediction
from utils.inference.samplers import Softmax
from utils.pipeline.folder_predictor import FolderPredictor
from utils.pipeline.ground_truth import GroundTruth
from utils.pipeline.image_loop import ImageLoop
from utils.pipeline.items import Item
from utils.pipeline.journal import Journal
from utils.pipeline.report import check_tables, write_tables
from utils.pipeline.run_settings import run_settings


def get_args_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description=__doc__, parents=[arguments.folder_parent(), arguments.mask_parent(), arguments.model_parent()]
    )


def main(args: argparse.Namespace) -> int:
    # The images, the model, and the ground truth
    cli.check_no_save(args)
    cli.check_review_flags(args)
    items = cli.items_from_args(args)
    if not args.no_save:
        check_tables(args.output_dir)
    model, dtype = model_flags.model_from_args(args, [item.path for item in items])
    sampler = Softmax(args.batch_size, dtype)
    guarantee = make_guarantee(model, sampler, args.guarantee)
    ground_truth = None
    if args.mask_dir:
        ground_truth = GroundTruth(items, args.mask_dir, model.mask_classes, args.ignore_value, args.mask_suffix)
        ground_truth.check_kept([] if args.no_save else [item.output(args.output_dir) for item in items])

    # What is done with each prediction
    def save(item: Item, prediction: Prediction) -> list[Path]:
        if args.no_save:
            return []
        files = {item.output(args.output_dir): mask_to_image(prediction.classes, model.mask_values)}
        for suffix, region in prediction.greyscale_maps.items():  # of a guarantee
            files[item.output(args.output_dir, f"_OUT{suffix}.png")] = region
        for path, pixels in files.items():
            save_png(path, pixels)
        return list(files)

    def show(item: Item, prediction: Prediction, target: np.ndarray | None) -> None:
        image = item.read(model.white)
        row = prediction_row(image, prediction.classes, prediction.maps, target, item.key, prediction.regions)
        show_predictions([row], fallback=None if args.no_save else item.output(args.output_dir, "_OUT_figure.png"))

    # The record of finished images, with what has to be equal for an interrupted run to be resumed
    journal = None
    if not args.no_save:
        settings = {"threshold": args.mask_threshold, "mask_dir": str(args.mask_dir), "mask_suffix": args.mask_suffix}
        settings |= {"ext": cli.named_extensions(args)}
        settings |= run_settings(model, sampler, ground_truth, guarantee)
        journal = Journal(args.output_dir, settings, items, args.skip_existing, ground_truth)

    # Loop over the images, report
    keep = ("predictive_entropy",) if args.viz else ()
    options = MapOptions(args.mask_threshold, keep=keep, guarantee=guarantee, count_pixels=False)
    predictor = FolderPredictor(model, sampler, save, options, show if args.viz else None, args.compile)
    write_rows = (lambda rows: None) if args.no_save else partial(write_tables, args.output_dir)
    report = predictor.run(ImageLoop(items, ground_truth, journal, write_rows))
    run = {"guarantee": asdict(guarantee)} if guarantee else None
    report.write(None if args.no_save else args.output_dir, ground_truth, run)
    return cli.finish_prediction(args, report, args.input_dir, "" if args.no_save else f": {args.output_dir}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
