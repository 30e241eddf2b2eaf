"""Write a mask for each image of a folder, and compare the masks with the truth where there is one."""

import argparse
from pathlib import Path

from utils import batch, cli, figures
from utils.image_io import mask_image, read_image, save_png
from utils.probability import Softmax
from utils.results import Prediction


def get_args_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description=__doc__, parents=[cli.folder_parent(), cli.mask_parent(), cli.model_parent()]
    )


def main(args: argparse.Namespace) -> int:
    items = batch.find_items(args.input_dir, args.output_dir, args.ext, args.recursive)
    model, dtype = cli.load_model(args)
    truth = batch.Truth(items, args.mask_dir, model.mask_values) if args.mask_dir else None

    def save(item: batch.Item, prediction: Prediction) -> list[Path]:
        if args.no_save:
            return []
        save_png(item.output(args.output_dir), mask_image(prediction.classes, model.mask_values))
        return [item.output(args.output_dir)]

    def show(item: batch.Item, prediction: Prediction) -> None:
        classes = prediction.classes
        true_classes = truth.read(item, classes.shape) if truth else None
        row = figures.row(read_image(item.path), classes, prediction.maps, true_classes, title=str(item.name))
        figures.show_predictions([row], instead=item.output(args.output_dir, "_figure.png"))

    sampler = Softmax(args.batch_size, dtype)
    settings = {"threshold": args.mask_threshold, "mask_dir": str(args.mask_dir), "weights": model.fingerprint()}
    report = batch.predict_folder(
        model,
        sampler,
        items,
        save,
        threshold=args.mask_threshold,
        keep=("predictive_entropy",) if args.viz else (),
        truth=truth,
        judge_probabilities=False,
        show=show if args.viz else None,
        journal=None
        if args.no_save
        else batch.Journal(args.output_dir, sampler.settings | settings, items, args.skip_existing),
    )
    report.write(None if args.no_save else args.output_dir, truth)
    return report.finish("" if args.no_save else f": {args.output_dir}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
