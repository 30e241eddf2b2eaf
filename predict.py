"""Write a mask for each image of a folder, and compare the masks with the truth where there is one."""

import argparse
from pathlib import Path
from typing import Any

from utils import batch, cli, figures
from utils.data_loading import find_masks, mask_to_classes
from utils.errors import InputError
from utils.image_io import mask_image, read_image, read_mask, save_png, write_csv
from utils.metrics import segmentation_scores, summarize_scores
from utils.probability import ProbabilityMaps, Softmax, most_probable_class


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, parents=[cli.folder_parent(), cli.mask_parent(), cli.model_parent()]
    )
    parser.add_argument(
        "--mask-dir",
        type=Path,
        metavar="DIR",
        help="folder of true masks; the scores go to metrics.csv in --output-dir",
    )
    return parser


def main(args: argparse.Namespace) -> int:
    items = batch.find_items(args.input_dir, args.output_dir, args.ext, args.recursive)
    truths = find_masks([item.name for item in items], args.mask_dir) if args.mask_dir else {}
    model, dtype = cli.load_model(args)

    def save(item: batch.Item, maps: ProbabilityMaps) -> dict[str, Any]:
        classes = most_probable_class(maps.probs, args.mask_threshold)
        if not args.no_save:
            save_png(item.output(args.output_dir), mask_image(classes, model.mask_values))
        row: dict[str, Any] = {"image": item.name.as_posix()}
        if truths:
            path = truths[item.name]
            truth = mask_to_classes(read_mask(path), model.mask_values, str(path))
            if truth.shape != classes.shape:
                sizes = "{1}x{0} and {3}x{2}".format(*classes.shape, *truth.shape)
                raise InputError(f"the image and its mask {path} have different sizes, {sizes}")
            row |= segmentation_scores(classes, truth, len(model.mask_values))
        return row

    def show(item: batch.Item, maps: ProbabilityMaps) -> None:
        classes = most_probable_class(maps.probs, args.mask_threshold)
        figure = figures.draw_prediction(read_image(item.path), classes, maps, title=str(item.name))
        figures.show_figure(figure, instead=item.output(args.output_dir, "_figure.png"))

    report = batch.predict_folder(
        model,
        Softmax(args.batch_size, dtype),
        items,
        save,
        statistics=["predictive_entropy"] if args.viz else [],
        show=show if args.viz else None,
    )
    if truths and report.rows:
        print(f"{len(report.rows)} images against {args.mask_dir}:\n{summarize_scores(report.rows)}")
        if not args.no_save:
            write_csv(args.output_dir / "metrics.csv", report.rows)
    return report.finish("" if args.no_save else f": {args.output_dir}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
