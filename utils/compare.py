"""Several methods side by side: one table, and the pictures that explain it.

`python -m utils.compare OUT_DIRECT OUT_BAYESIAN OUT_TTA --imgs-dir … --masks-dir … --output-dir diagram` reads what the
predict_prob scripts wrote with --mask-dir.
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

from utils import cli, figures
from utils.data_loading import find_masks, mask_to_classes
from utils.errors import InputError
from utils.image_io import read_image, read_mask, whole_file, write_json
from utils.metrics import score_title
from utils.results import beside, read_summary
from utils.uncertainty import CONFIDENCE_SIGNS, entropy, readable

logger = logging.getLogger(__name__)

# Where a row of the table is in metrics.json, by its title.
TABLE = {
    "Dice, mean": ("segmentation", "dice", "value"),
    "Dice, median": ("segmentation", "dice", "median"),
    "Jaccard, mean": ("segmentation", "jaccard", "value"),
    "Sensitivity": ("segmentation", "sensitivity", "value"),
    "Specificity": ("segmentation", "specificity", "value"),
    "Accuracy": ("segmentation", "accuracy", "value"),
    "ECE, top-label, pooled": ("calibration", "ece_top_label", "value"),
    "ECE, top-label, per image": ("calibration", "ece_top_label_per_image", "value"),
    "ECE, foreground, pooled": ("calibration", "ece_foreground", "value"),
    "ECE, foreground, per image": ("calibration", "ece_foreground_per_image", "value"),
    "Adaptive ECE": ("calibration", "adaptive_ece", "value"),
    "Brier score": ("calibration", "brier", "value"),
    "NLL (nats)": ("calibration", "nll", "value"),
    "Pixel error AUROC of entropy": ("errors", "error_auroc", "value"),
    "Pixel error AUPR of entropy": ("errors", "error_aupr", "value"),
    **{
        f"{metric.upper().replace('_', '-')}, {readable(score)}": ("selective", score, metric, "value")
        for score in CONFIDENCE_SIGNS
        for metric in ("aurc", "e_aurc", "augrc")
    },
    "AURC, best possible order": ("selective", "best_order", "aurc"),
    "AURC, random order": ("selective", "random_order", "aurc"),
}


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m utils.compare", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, metavar="OUT", help="output folder of a predict_prob script")
    parser.add_argument("--imgs-dir", type=Path, required=True, metavar="DIR", help="the images")
    parser.add_argument("--masks-dir", type=Path, required=True, metavar="DIR", help="their true masks")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="for the table and the pictures")
    cli.add_defaulted(parser, "--rows", type=cli.whole_number(1, 50), default=4, metavar="N", help="images to show")
    parser.add_argument(
        "--images", nargs="+", metavar="NAME", help="images to show, of --imgs-dir (default: from the least certain on)"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    results = read_results(args.results)
    names = args.images or pick(args.results[0] / "summary.csv", args.rows)
    rows = [picture_row(name, results, args.results, args.imgs_dir, args.masks_dir) for name in names]

    table = tabulate(results)
    with whole_file(args.output_dir / "comparison.md") as file:
        file.write(table.encode() + b"\n")
    write_json(args.output_dir / "comparison.json", {title: dict(result) for title, result in results.items()})
    pictures = {
        "reliability.png": figures.draw_reliability(results),
        "risk_coverage.png": figures.draw_risk_coverage(results),
        "UQ_compare.png": figures.draw_comparison(rows),
    }
    for name, figure in pictures.items():
        figures.save_figure(figure, args.output_dir / name)
    print(table)
    logger.info("%s: comparison.md, comparison.json, %s", args.output_dir, ", ".join(pictures))


def read_results(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """What each folder's metrics.json holds, by the method's name (with the folder's, where two are the same).

    Raises:
        InputError: a folder has no such file, or the folders are of different images.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("a folder was given twice")
    found = []
    for folder in folders:
        path = folder / "metrics.json"
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
            methods = [result["run"]["method"] for result in found]
            if found[-1]["images"] and found[-1]["pixels"] and found[-1]["run"]["class_index"] == 0:
                raise InputError(f"{folder} holds the probability of the background: --class-index 1 has to write it")
        except FileNotFoundError as error:
            raise InputError(
                f"{path} is missing: --mask-dir makes the predict_prob scripts write it; run them again with it"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no file of metrics that a predict_prob script wrote") from error
    if len({(result["images"], result["pixels"]) for result in found}) > 1:
        counts = ", ".join(f"{folder} of {result['images']}" for folder, result in zip(folders, found, strict=True))
        raise InputError(f"the results are of different images: {counts}")
    titles = [
        method if methods.count(method) == 1 else f"{method} ({folder})"
        for method, folder in zip(methods, folders, strict=True)
    ]
    return dict(zip(titles, found, strict=True))


def tabulate(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The metrics of several methods as a Markdown table."""
    lines = [["", *results], ["---"] * (len(results) + 1)]
    first = next(iter(results.values()))["segmentation"]
    of_classes = {f"{score_title(name)}, mean": ("segmentation", name, "value") for name in first if "_c" in name}
    for title, path in (TABLE | of_classes).items():
        values = [_look_up(result, path) for result in results.values()]
        if any(value is not None for value in values):
            lines.append([title, *("" if value is None else f"{value:.4f}" for value in values)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _look_up(result: Mapping[str, Any], path: Sequence[str]) -> float | None:
    for key in path:
        result = (result or {}).get(key)
    return result


def pick(summary: Path, count: int) -> list[str]:
    """Names of images from the least to the most certain, at equal steps of their order in a summary.

    Raises:
        InputError: there is no such file.
    """
    names = [row["image"] for row in read_summary(summary)]
    if not names:
        raise InputError(f"{summary} is missing: run the predict_prob script again")
    return [names[i] for i in sorted({round(i) for i in np.linspace(0, len(names) - 1, min(count, len(names)))})]


def picture_row(
    name: str, results: Mapping[str, Mapping[str, Any]], folders: Sequence[Path], imgs_dir: Path, masks_dir: Path
) -> figures.Row:
    """An image's row of the comparison.

    The maps are those of the written pictures, so the entropy of two classes, if --save-entropy did not write it, is
    that of the probability in steps of 1/255.
    """
    relative = PurePosixPath(name)
    image = read_image(imgs_dir / relative)
    mask_path = find_masks([relative], masks_dir)[relative]
    s = figures.shown(image.size)
    maps = {}
    for (title, result), folder in zip(results.items(), folders, strict=True):
        mask_values = result["run"]["mask_values"]
        probability_path = folder / relative.with_name(f"{relative.stem}_OUT.png")
        entropy_path = beside(probability_path, "_entropy.png")
        probability = read_mask(probability_path)[s] / 255
        if result["run"]["save_entropy"]:
            uncertainty = read_mask(entropy_path)[s] / 255 * math.log(len(mask_values))
        elif len(mask_values) == 2:
            uncertainty = entropy(torch.from_numpy(probability)[None]).numpy()
        else:
            raise InputError(f"{entropy_path} is missing: with more than two classes --save-entropy has to write it")
        maps[title] = (probability, uncertainty)
    truth = mask_to_classes(read_mask(mask_path), mask_values, str(mask_path))
    return figures.Row(np.asarray(image)[s], truth[s], maps, n_classes=len(mask_values), title=relative.name)


if __name__ == "__main__":
    cli.run(main, get_args_parser())
