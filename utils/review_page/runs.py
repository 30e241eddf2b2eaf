"""What a prediction run has written: its method, and the scores and files of each image."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.data.mask_classes import MaskClasses
from utils.pipeline.ground_truth import GroundTruth
from utils.pipeline.items import Item
from utils.pipeline.journal import Entry, file_state, read_entries
from utils.pipeline.summary import SUMMARY_COLUMNS, review_order
from utils.runtime.errors import InputError
from utils.runtime.output_folder import JOURNAL_OF_MAIN
from utils.runtime.seeds import json_digest

logger = logging.getLogger(__name__)

LAYER_SUFFIXES = ("std", "entropy", "expected_entropy", "mutual_information")
REGION_SUFFIXES = ("outer", "inner")  # of the masks with a guarantee


@dataclass(frozen=True)
class ResultFiles:
    """The files of an image's results in one run.

    Attributes:
        mask: the predicted mask, if one was written.
        probs: the probability map of each class that has one.
        layers: the other greyscale maps, by the end of their names, such as entropy or std_c1.
        regions: the masks with a guarantee, if the run has one, by `REGION_SUFFIXES`.
    """

    mask: Path | None
    probs: Mapping[int, Path]
    layers: Mapping[str, Path]
    regions: Mapping[str, Path]


@dataclass(frozen=True)
class PredictionRun:
    """The results of a run.

    Attributes:
        folder: its output folder.
        settings: those of its journal.
        scores: those of each image by its path within the folder of images, the least confident first; with those
            against a ground truth, if the run has compared its predictions with one.
        written: the files of each image, as paths within the folder, the mask or probability map first.
        masks: sizes and modification times of the masks with which each image was compared.
        title: display name of its method.
    """

    folder: Path
    settings: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, float]]
    written: Mapping[str, Sequence[str]]
    masks: Mapping[str, Sequence[Sequence[int]]]
    title: str

    def files(self, name: str) -> ResultFiles:
        """The files of an image.

        Raises:
            InputError: its mask or probability map is missing.
        """
        first, *others = (self.folder / file for file in self.written[name])
        if not first.is_file():
            raise InputError(f"its result is missing: {first}")
        probs, layers, regions = {}, {}, {}
        for path in (path for path in others if path.suffix == ".png" and path.is_file()):
            suffix = path.stem.removeprefix(f"{first.stem}_")
            kind, _, k = suffix.partition("_c")
            if kind == "prob":
                probs[int(k or 1)] = path
            elif kind in REGION_SUFFIXES:
                regions[suffix] = path
            elif kind in LAYER_SUFFIXES:
                layers[suffix] = path
        if "class_index" in self.settings:  # it has written probabilities
            return ResultFiles(None, {self.settings["class_index"]: first}, layers, regions)
        return ResultFiles(first, probs, layers, regions)

    def compared_with(self, masks_dir: Path, mask_suffix: str | None) -> "PredictionRun":
        """The run without its scores against a ground truth, unless it is this one.

        The value that it ignored there is then treated as one of the model's, which may be a class in other masks.
        """
        recorded = self.settings.get("mask_dir"), self.settings.get("mask_suffix")
        if recorded[0] and (Path(recorded[0]).resolve(), recorded[1]) == (masks_dir.resolve(), mask_suffix):
            return self
        scores = {name: _without_truth(row) for name, row in self.scores.items()}
        settings = {**self.settings, "ignore_value": None}
        if self.settings.get("ignore_value") is not None:
            settings["model_ignore_value"] = self.settings["ignore_value"]
        return replace(self, scores=scores, settings=settings)

    def without_outdated_scores(self, ground_truth: GroundTruth, items: Sequence[Item]) -> "PredictionRun":
        """The run without its scores against masks that have changed since, or in which it ignored other pixels."""
        others = self.settings.get("ignore_value") != ground_truth.ignore_value
        scores = dict(self.scores)
        for item in items:
            states = [file_state(path) for path in ground_truth.paths.get(item.name, ())]
            if item.key in scores and (others or self.masks[item.key] not in ((), states)):
                scores[item.key] = _without_truth(scores[item.key])
        return replace(self, scores=scores)


def read_run(folder: Path, imgs_dir: Path) -> PredictionRun:
    """Read what the latest run into an output folder has recorded, and earlier ones with the same settings.

    Images of other runs, which predict_bayesian.py keeps in the summary, and images of other folders are left out.

    Args:
        folder: the output folder of any script that predicts.
        imgs_dir: the folder of its images.

    Raises:
        InputError: there is no journal, or none of these images, or the run has written background probabilities.
    """
    finished = [entry for entry in read_entries(folder).values() if entry.row is not None]
    if not finished:
        raise InputError(
            f"{folder} has no {JOURNAL_OF_MAIN} with results: the output folder of a prediction was expected, together "
            "with its hidden files"
        )
    settings = finished[-1].settings
    if settings.get("class_index") == 0:
        raise InputError(f"{folder} contains background probabilities: predict those of class 1")
    latest = [entry for entry in finished if entry.of_run(settings)]
    entries = _by_names_within(folder, imgs_dir, finished, latest)
    scores = {name: _numbers(entry.row) for name, entry in entries.items()}
    written = {name: entry.files for name, entry in entries.items()}
    masks = {name: entry.masks for name, entry in entries.items()}
    return PredictionRun(folder, settings, scores, written, masks, settings["method"])


def read_runs(folders: Sequence[Path], imgs_dir: Path) -> list[PredictionRun]:
    """Read several runs of the same images, whose titles are then distinct.

    Raises:
        InputError: as `read_run`, or a folder is given twice, or two runs have no image in common.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("a result folder was given twice")
    runs = [read_run(folder, imgs_dir) for folder in folders]
    for run in runs[1:]:
        if not run.scores.keys() & runs[0].scores.keys():
            raise InputError(f"{run.folder} and {runs[0].folder} are of different images")
    titles = [run.title for run in runs]
    return [run if titles.count(run.title) == 1 else replace(run, title=f"{run.title} ({run.folder})") for run in runs]


def mask_values_of(runs: Sequence[PredictionRun]) -> list[list[int]]:
    """For each run the mask value of class 0, 1, ….

    Raises:
        InputError: the runs have different numbers of classes.
    """
    of_runs = [run.settings["mask_values"] for run in runs]
    for run, values in zip(runs, of_runs, strict=True):
        if len(values) != len(of_runs[0]):
            numbers = f"{len(values)} classes, {runs[0].folder} {len(of_runs[0])}"
            raise InputError(f"{run.folder} has {numbers}: they do not fit on one page")
    return of_runs


def compare_runs(
    runs: Sequence[PredictionRun],
    items: Sequence[Item],
    masks_dir: Path,
    mask_suffix: str | None = None,
    ignore_value: int | None = None,
) -> tuple[list[PredictionRun], GroundTruth]:
    """The ground truth of the images, and the runs with those of their recorded scores that are against it.

    Args:
        runs: of the same number of classes.
        items: the images.
        masks_dir, mask_suffix: as for `GroundTruth`.
        ignore_value: the value of pixels that do not count; None for what a run has ignored in these masks.
    """
    runs = [run.compared_with(masks_dir, mask_suffix) for run in runs]

    def recorded(name: str) -> int | None:
        return next((value for run in runs if (value := run.settings.get(name)) is not None), None)

    classes = MaskClasses(runs[0].settings["mask_values"], recorded("model_ignore_value"))
    ignored = recorded("ignore_value") if ignore_value is None else ignore_value
    ground_truth = GroundTruth(items, masks_dir, classes, ignored, mask_suffix)
    return [run.without_outdated_scores(ground_truth, items) for run in runs], ground_truth


def _without_truth(row: Mapping[str, float]) -> dict[str, float]:
    """The scores that need no ground truth."""
    return {score: value for score, value in row.items() if score in SUMMARY_COLUMNS}


def fingerprint(runs: Sequence[PredictionRun]) -> str:
    """What distinguishes these results from all others: a hash of the images' scores that need no ground truth."""
    scores = [{name: [row.get(score) for score in SUMMARY_COLUMNS] for name, row in run.scores.items()} for run in runs]
    return json_digest(scores)


def result_digest(runs: Sequence[PredictionRun], name: str) -> str:
    """What distinguishes the results of an image from others: a hash of the methods and of its scores by them."""
    rows = [run.scores.get(name, {}) for run in runs]
    return json_digest([[run.title, *map(row.get, SUMMARY_COLUMNS)] for run, row in zip(runs, rows, strict=True)])


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row."""
    return {name: value for name, value in row.items() if isinstance(value, (int, float)) and math.isfinite(value)}


def _by_names_within(
    folder: Path, imgs_dir: Path, finished: Sequence[Entry], latest: Sequence[Entry]
) -> dict[str, Entry]:
    """The results of the latest run by their images' paths within their folder; says how many others are left out."""
    entries = {name: entry for entry in latest if (name := _name_within(entry.row["image"], imgs_dir)) is not None}
    if not entries:
        raise InputError(f"the latest run into {folder} has predicted none of the images in {imgs_dir}")
    shown = {entry.files[0] for entry in entries.values()}
    if left_out := [entry.row["image"] for entry in finished if entry.files[0] not in shown]:
        words = "Not on the page, as of an earlier run, or of no image in %s: %d other result%s in %s, such as of %s"
        logger.warning(words, imgs_dir, len(left_out), "s" * (len(left_out) > 1), folder, left_out[0])
    return dict(sorted(entries.items(), key=lambda item: review_order(item[1].row)))


def _name_within(image: str, imgs_dir: Path) -> str | None:
    """The path of an image within its folder, None if it is in another; predict_bayesian.py records it as it was given.

    A link to an image keeps its name, whatever it points to.
    """
    path = Path(image)
    if (imgs_dir / path).exists() and not path.is_absolute() and ".." not in path.parts:
        return path.as_posix()
    above = imgs_dir.resolve().name
    if above in path.parts and not path.exists():  # named from another working directory, or before the folder moved
        inner = Path(*path.parts[path.parts.index(above) + 1 :])
        if (imgs_dir / inner).is_file():
            return inner.as_posix()
    given, resolved = Path(os.path.abspath(path)), path.parent.resolve() / path.name
    for inner, folder in ((given, Path(os.path.abspath(imgs_dir))), (resolved, imgs_dir.resolve())):
        if inner.is_relative_to(folder):
            return inner.relative_to(folder).as_posix()
    if path.exists():
        return None
    return path.name if (imgs_dir / path.name).exists() else image
