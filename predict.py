"""Write a mask for each image of a folder, and compare the masks with the truth where there is one."""

import argparse
from typing import Any

from utils import batch, cli, figures
from utils.image_io import mask_image, read_image, save_png
from utils.probability import ProbabilityMaps, Softmax, most_probable_class


def get_args_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description=__doc__, parents=[cli.folder_parent(), cli.mask_parent(), cli.model_parent()]
    )


def main(args: argparse.Namespace) -> int:
    items = batch.find_items(args.input_dir, args.output_dir, args.ext, args.recursive)
    truth = batch.Truth(items, args.mask_dir) if args.mask_dir else None
    model, dtype = cli.load_model(args)

    def save(item: batch.Item, maps: ProbabilityMaps) -> dict[str, Any]:
        classes = most_probable_class(maps.probs, args.mask_threshold)
        if not args.no_save:
            save_png(item.output(args.output_dir), mask_image(classes, model.mask_values))
        scores = truth.scores(item, classes, model.mask_values) if truth else {}
        return {"image": item.name.as_posix(), **scores}

    def show(item: batch.Item, maps: ProbabilityMaps) -> None:
        classes = most_probable_class(maps.probs, args.mask_threshold)
        figure = figures.draw_prediction(read_image(item.path), classes, maps, title=str(item.name))
        figures.show_figure(figure, instead=item.output(args.output_dir, "_figure.png"))

    sampler = Softmax(args.batch_size, dtype)
    statistics = ["predictive_entropy"] if args.viz else []
    report = batch.predict_folder(model, sampler, items, save, statistics, show if args.viz else None)
    if truth:
        truth.report(report.rows, None if args.no_save else args.output_dir)
    return report.finish("" if args.no_save else f": {args.output_dir}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
