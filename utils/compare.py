"""Compare methods: a table of their metrics, reliability diagrams, risk-coverage curves, and maps side by side.

`python -m utils.compare OUT_DIRECT OUT_BAYESIAN OUT_TTA --imgs-dir … --masks-dir … --output-dir diagram` reads what the
predict_prob scripts have written with --mask-dir.
"""

import argparse
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from utils import arguments, cli, pairing_arguments, value_arguments
from utils.data.images import read_image
from utils.data.mask_classes import MaskClasses
from utils.figures.curves import draw_reliability, draw_risk_coverage
from utils.figures.grid import save_figure
from utils.figures.predictions import FigureRow, draw_comparison, reduction
from utils.metrics.pixel_metrics import PIXEL_METRIC_TITLES
from utils.metrics.segmentation import segmentation_title
from utils.metrics.uncertainty import CONFIDENCE_SIGNS, entropy, score_title
from utils.pipeline.ground_truth import GroundTruth
from utils.pipeline.items import Item, check_output_folders, evenly_spaced, sibling
from utils.pipeline.report import read_metrics_table
from utils.pipeline.summary import read_summary
from utils.runtime.atomic_files import write_file, write_json
from utils.runtime.errors import InputError

logger = logging.getLogger(__name__)

# Where each row of the table is in metrics.json, by its title.
TABLE = {
    "Dice, mean": ("segmentation", "dice", "value"),
    "Dice, median": ("segmentation", "dice", "median"),
    "Jaccard, mean": ("segmentation", "jaccard", "value"),
    "Sensitivity": ("segmentation", "sensitivity", "value"),
    "Specificity": ("segmentation", "specificity", "value"),
    "Accuracy": ("segmentation", "accuracy", "value"),
    **{
        title: ("errors" if name.startswith("error") else "calibration", name, "value")
        for name, title in PIXEL_METRIC_TITLES.items()
    },
    **{
        f"{metric.upper().replace('_', '-')}, {score_title(score)}": ("selective", score, metric, "value")
        for score in CONFIDENCE_SIGNS
        for metric in ("aurc", "e_aurc", "augrc")
    },
    "AURC, oracle": ("selective", "oracle", "aurc"),
    "AURC, random": ("selective", "random", "aurc"),
}


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m utils.compare", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, metavar="OUT", help="output folder of a predict_prob script")
    parser.add_argument("--imgs-dir", type=Path, required=True, metavar="DIR", help="the images")
    parser.add_argument("--masks-dir", type=Path, required=True, metavar="DIR", help="their ground-truth masks")
    pairing_arguments.add_mask_suffix(parser)
    value_arguments.add_max_megapixels(parser)
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="for the table and the figures")
    arguments.add_with_default(
        parser, "--rows", type=arguments.integer(1, 50), default=4, metavar="N", help="number of images shown"
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="NAME",
        help="images shown, of --imgs-dir (default: from the least to the most confident)",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    cli.require_one_process()
    results = read_results(args.results)
    folders = dict(zip(results, args.results, strict=True))
    summary = args.results[0] / "summary.csv"
    ranked = read_names(summary)
    items = [Item(args.imgs_dir / name, PurePosixPath(name)) for name in ranked]
    below = {item.name.parent for item in items}
    check_output_folders([args.output_dir], [item.path for item in items], args.masks_dir, below)
    run = next(iter(results.values()))["run"]
    recorded = MaskClasses(run["mask_values"])
    ground_truth = GroundTruth(items, args.masks_dir, recorded, run["ignore_value"], args.mask_suffix)
    labelled = {str(name) for name in ground_truth.paths}
    if scored := read_metrics_table(args.results[0] / "metrics.csv"):  # of the others the masks do not fit
        labelled &= {name for name, row in scored.items() if row.get("dice")}
    names = args.images or evenly_spaced([name for name in ranked if name in labelled], args.rows)
    if not names:
        raise InputError(f"no image of {summary} has a mask in {args.masks_dir} that it was compared with")
    shown = [Item(args.imgs_dir / name, PurePosixPath(name)) for name in names]
    rows = [comparison_row(item, results, folders, ground_truth) for item in shown]

    table = format_table(results)
    write_file(args.output_dir / "comparison.md", table.encode() + b"\n")
    write_json(args.output_dir / "comparison.json", {title: dict(result) for title, result in results.items()})
    figures = {"reliability.png": draw_reliability(results)}
    if all(result["risk_coverage"] for result in results.values()):  # not without a lesion
        figures["risk_coverage.png"] = draw_risk_coverage(results)
    for name, figure in figures.items():
        save_figure(figure, args.output_dir / name, dpi=150)
    save_figure(draw_comparison(rows, probability_titles(results)), args.output_dir / "UQ_compare.png")
    print(table)
    logger.info("%s: comparison.md, comparison.json, %s, UQ_compare.png", args.output_dir, ", ".join(figures))


def read_results(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """The content of each folder's metrics.json, by the name of the method (and of the folder, if two have one name).

    Raises:
        InputError: a folder is given twice, has no such file, one of an earlier version or of background
            probabilities, or the folders are of different images, masks or numbers of classes.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("a result folder was given twice")
    results = [_read_metrics(folder) for folder in folders]
    if len({(result["images"], result["pixels"]) for result in results}) > 1:
        counts = ", ".join(f"{folder} of {result['images']}" for folder, result in zip(folders, results, strict=True))
        raise InputError(f"the result folders are of different images: {counts}")
    if len({result["ground_truth"] for result in results}) > 1:
        raise InputError("the result folders are of different images, or were compared with different masks")
    if len({len(result["run"]["mask_values"]) for result in results}) > 1:
        numbers = [f"{folder} of {len(r['run']['mask_values'])}" for folder, r in zip(folders, results, strict=True)]
        raise InputError(f"the result folders are of different numbers of classes: {', '.join(numbers)}")
    methods = [result["run"]["method"] for result in results]
    titles = [
        method if methods.count(method) == 1 else f"{method} ({folder})"
        for method, folder in zip(methods, folders, strict=True)
    ]
    return dict(zip(titles, results, strict=True))


def _read_metrics(folder: Path) -> dict[str, Any]:
    """The content of a folder's metrics.json."""
    path = folder / "metrics.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        run, bins = result["run"], result["reliability"].values()
        complete = {"method", "class_index", "mask_values", "ignore_value", "white", "save_entropy"} <= run.keys()
        complete = complete and result["images"] and result["pixels"] and result["ground_truth"]
        complete = complete and all("positives" in one for one in bins)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: the predict_prob scripts write it when run with --mask-dir") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise InputError(
            f"{path} was not written by a predict_prob script of this version: run the script again with --mask-dir"
        )
    if run["class_index"] == 0:
        raise InputError(f"{folder} contains background probabilities: predict with --class-index 1")
    return result


def probability_titles(results: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The title of the probabilities that each method has saved; with several classes it says of which."""
    runs = {method: result["run"] for method, result in results.items()}
    return {
        method: f"Probability, class {run['class_index']}" if len(run["mask_values"]) > 2 else "Probability"
        for method, run in runs.items()
    }


def format_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The metrics of several methods as a Markdown table."""
    lines = [["", *results], ["---"] * (len(results) + 1)]
    first = next(iter(results.values()))["segmentation"]
    of_classes = {
        f"{segmentation_title(name)}, mean": ("segmentation", name, "value") for name in first if "_c" in name
    }
    for title, path in (TABLE | of_classes).items():
        values = [_look_up(result, path) for result in results.values()]
        if any(value is not None for value in values):
            lines.append([title, *("" if value is None else f"{value:.4f}" for value in values)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _look_up(result: Mapping[str, Any], path: Sequence[str]) -> float | None:
    for key in path:
        result = (result or {}).get(key)
    return result


def read_names(summary: Path) -> list[str]:
    """Names of the images of a summary, from the least to the most confident.

    Raises:
        InputError: there is no such file.
    """
    names = [row["image"] for row in read_summary(summary)]
    if not names:
        raise InputError(f"{summary} is missing: run the predict_prob script again")
    return names


def comparison_row(
    item: Item, results: Mapping[str, Mapping[str, Any]], folders: Mapping[str, Path], ground_truth: GroundTruth
) -> FigureRow:
    """The row of an image, with the maps that each method has written.

    Args:
        item: the image.
        results, folders: metrics and output folder of each method, by its display name.
        ground_truth: of the image.

    Raises:
        InputError: a file is missing, or the image has no mask.
    """
    image = read_image(item.path, next(iter(results.values()))["run"]["white"])
    step = reduction(image.size)
    maps = {}
    for title, folder in folders.items():
        run = results[title]["run"]
        probability_path = item.output(folder)
        probability = _read_map(probability_path)[step]
        maps[title] = (probability, read_entropy(probability_path, probability, run, step))
    target = ground_truth.read(item, (image.height, image.width))
    if target is None:
        raise InputError(f"{item.key} has no mask")
    n_classes = ground_truth.n_classes
    return FigureRow(np.asarray(image)[step], target[step], maps, n_classes=n_classes, caption=item.name.name)


def _read_map(path: Path) -> np.ndarray:
    """A greyscale map, (H, W) in [0, 1]."""
    return np.asarray(read_image(path).convert("L")) / 255


def read_entropy(
    probability_path: Path, probability: np.ndarray, run: Mapping[str, Any], step: tuple[slice, slice]
) -> np.ndarray:
    """The (h, w) entropy beside a probability map; if it was not saved, that of the probability in steps of 1/255.

    Raises:
        InputError: it was not saved, and there are more than two classes.
    """
    path, n_classes = sibling(probability_path, "_entropy.png"), len(run["mask_values"])
    if run["save_entropy"]:
        return _read_map(path)[step] * math.log(n_classes)
    if n_classes > 2:
        raise InputError(f"{path} is missing: with more than two classes predict with --save-entropy")
    return entropy(torch.from_numpy(probability)[None]).numpy()


if __name__ == "__main__":
    cli.run(main, get_args_parser())
