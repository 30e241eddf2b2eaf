"""What is kept and written of a prediction: grey pictures, exact arrays, the summary that says what to review first."""

import csv
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.errors import InputError
from utils.image_io import npy_file, save_png, write_csv
from utils.probability import LogitSamples, ProbabilityMaps, most_probable_class, single_samples, strips, to_grey
from utils.uncertainty import ScoreSums

SUMMARY = (
    "image",
    "soft_dice_confidence",
    "pairwise_dice",
    "mean_entropy",
    "area",
    "area_mean",
    "area_std",
    "area_variation",
    "largest_probability",
)


def beside(path: Path, ending: str) -> Path:
    """`DIR/NAME.png` with another ending behind NAME."""
    return path.with_name(path.stem + ending)


@dataclass
class Prediction:
    """What is kept of an image's prediction.

    Attributes:
        classes: (H, W) uint8, the predicted class of each pixel.
        scores: of the image as a whole, as `uncertainty.ScoreSums` has them.
        pictures: (H, W) uint8 grey pictures, by the endings of their names.
        maps: the exact maps that were asked for, if any.
    """

    classes: np.ndarray
    scores: dict[str, Any]
    pictures: dict[str, np.ndarray]
    maps: ProbabilityMaps | None = None


def predict_full_size(
    samples: Sequence[LogitSamples],
    size: tuple[int, int],
    draw: Callable[[ProbabilityMaps], Mapping[str, np.ndarray]],
    statistics: Collection[str] = (),
    threshold: float = 0.5,
    keep: Collection[str] = (),
) -> Prediction:
    """Take samples to full size, and there make of each strip at once what is kept of it.

    Args:
        samples: of one image.
        size: width and height of the image.
        draw: makes (rows, W) pictures of a strip's maps, by the endings of their names.
        statistics: which of `probability.STATISTICS` it needs beside `predictive_entropy` and what is kept.
        threshold: of `most_probable_class`.
        keep: which of `probability.STATISTICS` are kept as exact maps; the mean probabilities then are, too.
    """
    width, height = size
    prediction = Prediction(np.empty((height, width), dtype=np.uint8), {}, {})
    sums = ScoreSums()
    for rows, maps in strips(samples, size, {*statistics, *keep, "predictive_entropy", "overlaps"}, threshold):
        classes = most_probable_class(maps.probs, threshold)
        sums.add(maps.probs, maps.predictive_entropy, torch.from_numpy(classes).to(maps.probs.device), maps.overlaps)
        prediction.classes[rows] = classes
        for ending, of_strip in draw(maps).items():
            if ending not in prediction.pictures:
                prediction.pictures[ending] = np.empty_like(prediction.classes)
            prediction.pictures[ending][rows] = of_strip
        if keep:
            prediction.maps = prediction.maps or maps.with_height(height, keep)
            prediction.maps.put(rows, maps)
    prediction.scores = sums.scores()
    return prediction


def pictures(maps: ProbabilityMaps, classes: Sequence[int] | None = None) -> dict[str, np.ndarray]:
    """The maps as (H, W) uint8 grey pictures, by the ending of their names; those of the spread if there are samples.

    White is probability 1, standard deviation 0.5, and ln C nats of entropy and mutual information, C classes.

    Args:
        maps: with all statistics.
        classes: whose probability and standard deviation are wanted, all but the background if None; with several,
            `_cK` stands at their endings.
    """
    n_classes = len(maps.probs)
    classes = range(1, n_classes) if classes is None else classes
    white = math.log(n_classes)  # the highest entropy that there is
    made = {}
    for k in classes:
        of_class = f"_c{k}" if len(classes) > 1 else ""
        made[f"_prob{of_class}"] = to_grey(maps.probs[k])
        if maps.num_samples > 1:
            made[f"_std{of_class}"] = to_grey(maps.std[k], white=0.5)  # the highest that there is
    made["_entropy"] = to_grey(maps.predictive_entropy, white)
    if maps.num_samples > 1:
        made["_expected_entropy"] = to_grey(maps.expected_entropy, white)
        made["_mutual_information"] = to_grey(maps.mutual_information, white)
    return made


def save_arrays(output: Path, maps: ProbabilityMaps, *, entropies: bool = True, one_class: bool = False) -> list[Path]:
    """Write the exact maps as float32 .npy files beside `output`, `DIR/NAME.png`.

    `NAME_mean.npy` and `NAME_std.npy` are (C, H, W), `NAME_entropy.npy`, `NAME_expected_entropy.npy` and
    `NAME_mutual_information.npy` (H, W) in nats.

    Args:
        output: path of a picture of the same image.
        maps: with all statistics.
        entropies: not only the first two.
        one_class: the model has one class: of mean and standard deviation only the lesion's, (H, W).

    Returns:
        The files.
    """
    of_class = 1 if one_class else slice(None)
    arrays = {"_mean": maps.probs[of_class], "_std": maps.std[of_class]}
    if entropies:
        arrays["_entropy"] = maps.predictive_entropy
        arrays |= {"_expected_entropy": maps.expected_entropy, "_mutual_information": maps.mutual_information}
    files = {beside(output, f"{ending}.npy"): values.cpu().numpy() for ending, values in arrays.items()}
    for path, array in files.items():
        with npy_file(path, array.shape) as write:
            write(array, 0)
    return list(files)


@contextmanager
def saving_passes(
    output: Path, samples: Sequence[LogitSamples], size: tuple[int, int], one_class: bool = False
) -> Iterator[list[Callable[[], None]]]:
    """Write the probabilities of every pass, as pictures and as one float32 array of all.

    `NAME_mc00_c0.png` ... and `NAME_probs.npy`, (T, C, H, W); of a model with one class only the lesion's, (T, H, W).
    The array is there when the `with` block ends.

    Yields:
        For each pass the function that writes it; they may be called in threads.
    """
    passes, n_classes = single_samples(samples), 1 if one_class else samples[0].logits.shape[1]
    width, height = size
    shape = (len(passes), *([] if one_class else [n_classes]), height, width)

    def save(t: int) -> None:
        greys = np.empty((n_classes, height, width), dtype=np.uint8)
        for rows, maps in strips([passes[t]], size, statistics=()):
            for c, probs in enumerate(maps.probs[-n_classes:]):
                write(probs.cpu().numpy(), ((t * n_classes + c) * height + rows.start) * width)
                greys[c, rows] = to_grey(probs)
        for c, grey in enumerate(greys):
            save_png(beside(output, f"_mc{t:02d}_c{c}.png"), grey)

    with npy_file(beside(output, "_probs.npy"), shape) as write:
        yield [partial(save, t) for t in range(len(passes))]


def write_summary(path: Path, rows: Sequence[Mapping[str, Any]], keep_others: bool = False) -> None:
    """Write the scores of images that need no truth as a CSV file, the image to review first at the top.

    The order is that of the soft Dice confidence.

    Args:
        path: of the file.
        rows: for each image its name and the scores of `uncertainty.ScoreSums`; what else they hold is not written.
        keep_others: rows of other images that the file has already stay.

    Raises:
        InputError: the file is there and is no such summary.
    """
    names = {row["image"] for row in rows}
    others = [row for row in read_summary(path) if row["image"] not in names] if keep_others else []
    ordered = sorted([*rows, *others], key=lambda row: (float(row["soft_dice_confidence"]), row["image"]))
    write_csv(path, [{name: row.get(name) for name in SUMMARY} for row in ordered])


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except (TypeError, ValueError):
        return False


def read_summary(path: Path) -> list[dict[str, str]]:
    """The rows of a summary; none if there is no such file.

    Raises:
        InputError: the file is no summary.
    """
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            known = set(SUMMARY[:2]) <= set(reader.fieldnames or ()) <= set(SUMMARY)  # an earlier version had fewer
            if not known or not all(_is_number(row[SUMMARY[1]]) for row in rows):
                raise InputError(f"{path} is no summary of predictions, and would be replaced by one: move it away")
            return rows
    except (FileNotFoundError, NotADirectoryError):
        return []
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as CSV ({error}): move it away") from error
