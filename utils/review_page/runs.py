"""What a prediction run has written: its method, and the scores and files of each image."""

import hashlib
import json
import logging
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from PIL import Image

from utils.data.images import decoding_errors
from utils.data.mask_values import read_palettes
from utils.data.masks import read_mask
from utils.pipeline.items import sibling
from utils.pipeline.journal import read_journal
from utils.pipeline.report import read_metrics_table
from utils.pipeline.summary import SUMMARY_COLUMNS, read_summary
from utils.runtime.errors import InputError

logger = logging.getLogger(__name__)

LAYER_SUFFIXES = ("std", "entropy", "expected_entropy", "mutual_information")
REGION_SUFFIXES = ("outer", "inner")  # of the masks with a guarantee
_MAX_MASK_VALUES = 16  # a map with more grey values than this holds probabilities


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
        title: display name of its method.
        scores: those of each image by its path within the folder of images, the least confident first; with those
            against a ground truth, if the run has compared its predictions with one.
        settings: those of its journal, or of metrics.json.
        holds_probs: whether NAME_OUT.png is a probability map, not a mask.
        written: the files of each image as its journal lists them, since another run may have left more of them in the
            same folder; None without a journal.
    """

    folder: Path
    title: str
    scores: Mapping[str, Mapping[str, float]]
    settings: Mapping[str, Any]
    holds_probs: bool
    written: Mapping[str, Collection[Path]] | None = None

    def files(self, name: str) -> ResultFiles:
        """The files of an image.

        Raises:
            InputError: there are none.
        """
        written = None if self.written is None else self.written[name]
        base = _find_result(self.folder, PurePath(name), written)
        probs, layers, regions = {}, {}, {}
        for suffix, path in _beside(base, self._map_kinds(), written):
            kind, _, k = suffix.partition("_c")
            if kind == "prob":
                probs[int(k or 1)] = path
            elif kind in REGION_SUFFIXES:
                regions[suffix] = path
            else:
                layers[suffix] = path
        if self.holds_probs and not probs:
            return ResultFiles(None, {self.settings.get("class_index", 1): base}, layers, regions)
        return ResultFiles(base, probs, layers, regions)

    def _map_kinds(self) -> list[str]:
        """The maps that the run may have written beside a result, as far as its settings say."""
        kinds = ["prob"]
        if self.settings.get("save_entropy", True):
            kinds += LAYER_SUFFIXES
        if not self.settings or self.settings.get("guarantee"):
            kinds += REGION_SUFFIXES
        return kinds

    def compared_with(self, masks_dir: Path, mask_suffix: str | None) -> "PredictionRun":
        """The run without its scores against a ground truth, unless it is this one."""
        recorded = self.settings.get("mask_dir"), self.settings.get("mask_suffix")
        if recorded[0] and (Path(recorded[0]).resolve(), recorded[1]) == (masks_dir.resolve(), mask_suffix):
            return self
        scores = {}
        for name, row in self.scores.items():
            scores[name] = {score: value for score, value in row.items() if score in SUMMARY_COLUMNS}
        return replace(self, scores=scores)

    def shown_values(self) -> set[int]:
        """The values that its masks show, as far as they can be read, with that of a background.

        Raises:
            InputError: they are too many for masks.
        """
        values = {0}
        for name in self.scores:
            with suppress(InputError):  # showing the image will report why
                if (mask := self.files(name).mask) is not None:
                    values.update(map(int, read_palettes(read_mask(mask).count().values, by_index=True)))
        if len(values) > _MAX_MASK_VALUES:
            words = "too many for masks: copy the results once more, together with their hidden files"
            raise InputError(f"the files in {self.folder} show {len(values)} values, {words}")
        return values


def read_run(folder: Path, imgs_dir: Path) -> PredictionRun:
    """Read what the latest run into an output folder has recorded.

    Images of earlier runs, which predict_bayesian.py keeps in the summary, and images of other folders are left out.

    Args:
        folder: the output folder of any script that predicts.
        imgs_dir: the folder of its images.

    Raises:
        InputError: there is no summary, or none of these images, or the run has written background probabilities.
    """
    summary = {row.pop("image"): row for row in read_summary(folder / "summary.csv")}
    if not summary:
        raise InputError(f"{folder} has no summary.csv: the output folder of a prediction was expected")
    settings, finished = read_journal(folder)
    if settings:
        measured = {image: entry["row"] for image, entry in finished.items()}
    else:  # hidden files were not copied
        settings = _read_metrics_settings(folder / "metrics.json")
        measured = {image: {} for image in summary} | read_metrics_table(folder / "metrics.csv")
    if settings.get("class_index") == 0:
        raise InputError(f"{folder} contains background probabilities: predict those of class 1")
    names = _names_within(folder, imgs_dir, summary, measured)
    scores = {name: _numbers({**summary[image], **measured[image]}) for image, name in names.items()}
    holds_probs = "class_index" in settings
    if not settings:
        holds_probs = _looks_like_probs(folder, scores)
    written = None
    if finished:
        written = {name: {folder / file for file in finished[image]["files"]} for image, name in names.items()}
    return PredictionRun(folder, _method_of(folder, settings, scores), scores, settings, holds_probs, written)


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
    """For each run the mask value of class 0, 1, …, as recorded or, failing that, as its masks show them.

    A run that has recorded none, and whose masks show no others than those of a run that has, has the same ones.

    Raises:
        InputError: the runs have different numbers of classes, or masks show too many values.
    """
    recorded = [run.settings.get("mask_values") for run in runs]
    usual, of_runs = next(filter(None, recorded), [0, 255]), []
    for run, values in zip(runs, recorded, strict=True):
        shown = set() if values else run.shown_values()
        of_runs.append(list(values or (usual if shown - {0} <= {*usual} else sorted(shown))))
    for run, values in zip(runs, of_runs, strict=True):
        if len(values) != len(of_runs[0]):
            numbers = f"{len(values)} classes, {runs[0].folder} {len(of_runs[0])}"
            raise InputError(f"{run.folder} has {numbers}: they do not fit on one page")
    return of_runs


def fingerprint(runs: Sequence[PredictionRun]) -> str:
    """What distinguishes these results from all others: a hash of the images' scores that need no ground truth."""
    text = "".join((run.folder / "summary.csv").read_text("utf-8", "surrogateescape") for run in runs)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _read_metrics_settings(path: Path) -> dict[str, Any]:
    """What metrics.json says of the run; nothing if there is no such file."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["run"])
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row of a CSV file."""
    numbers = {}
    for name, text in row.items():
        try:
            value = float(text)
        except (TypeError, ValueError):
            continue
        if math.isfinite(value):
            numbers[name] = value
    return numbers


def _names_within(folder: Path, imgs_dir: Path, images: Collection[str], finished: Collection[str]) -> dict[str, str]:
    """The paths within their folder of those images of a summary that the run has finished; says how many are not."""
    within = {image: _name_within(image, imgs_dir) for image in images}
    names = {image: name for image, name in within.items() if name is not None and image in finished}
    names = {image: name for image, name in names.items() if image == name or name not in names}  # that of the folder
    if not names:
        raise InputError(f"the latest run into {folder} has predicted none of the images in {imgs_dir}")
    shown = {*names.values()}
    if left_out := [image for image, name in within.items() if name not in shown]:
        words = "Not on the page, since they are of an earlier run into %s or not in %s: %d image%s, such as %s"
        logger.warning(words, folder, imgs_dir, len(left_out), "s" * (len(left_out) > 1), left_out[0])
    return names


def _name_within(image: str, imgs_dir: Path) -> str | None:
    """The path of an image within its folder, None if it is in another; predict_bayesian.py records it as it was given.

    A link to an image keeps its name, whatever it points to.
    """
    path = Path(image)
    if (imgs_dir / path).exists() and not path.is_absolute() and ".." not in path.parts:
        return image
    given, resolved = Path(os.path.abspath(path)), path.parent.resolve() / path.name
    for inner, folder in ((given, Path(os.path.abspath(imgs_dir))), (resolved, imgs_dir.resolve())):
        if inner.is_relative_to(folder):
            return inner.relative_to(folder).as_posix()
    if path.exists():
        return None
    return path.name if (imgs_dir / path.name).exists() else image


def _find_result(folder: Path, name: PurePath, written: Collection[Path] | None = None) -> Path:
    """The mask or probability map of an image, beside which its other results are."""
    mirrored = folder / name.with_name(f"{name.stem}_OUT.png")
    candidates = (mirrored, folder / mirrored.name, folder / f"{name.stem}.png")
    for path in candidates:
        if _is_written(path, written):
            return path
    raise InputError(f"its result is missing (looked for {candidates[0]} and {candidates[-1]})")


def _is_written(path: Path, written: Collection[Path] | None) -> bool:
    """Whether a file exists and, if it is known what the run has written, is not of another run."""
    return path.is_file() and (written is None or path in written)


def _beside(base: Path, kinds: Sequence[str], written: Collection[Path] | None) -> Iterator[tuple[str, Path]]:
    """The maps beside a result, with the ends of their names; with several classes these are numbered from 1 on."""
    for kind in kinds:
        for end in (kind, *(f"{kind}_c{k}" for k in range(1, 256))):
            path = sibling(base, f"_{end}.png")
            if _is_written(path, written):
                yield end, path
            elif end != kind:
                break


def _looks_like_probs(folder: Path, names: Iterable[str]) -> bool:
    """Whether any result has more grey values than a mask; where nothing was found, a probability map has few."""
    for name in names:
        with suppress(InputError):  # showing the image will report why
            path = _find_result(folder, PurePath(name))
            with decoding_errors(path), Image.open(path) as image:
                if image.mode == "L" and image.getcolors(_MAX_MASK_VALUES) is None:
                    return True
    return False


def _method_of(folder: Path, settings: Mapping[str, Any], scores: Mapping[str, Mapping[str, float]]) -> str:
    """The display name of a run's method; that of its folder, if the run does not say it."""
    if "method" in settings:
        return settings["method"]
    if "threshold" in settings or any(folder.glob("*_prob*.png")):  # of predict.py or predict_bayesian.py
        return "MC dropout" if any("pairwise_dice" in row for row in scores.values()) else "softmax"
    return folder.name or str(folder)
