"""Put the page together: its data, its pictures in a folder beside it, and the template."""

import base64
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from utils.data.images import IMAGE_EXTENSIONS
from utils.figures.palette import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    GROUND_TRUTH,
    INNER_CONTOUR,
    OUTER_CONTOUR,
    PREDICTION,
    class_colour,
)
from utils.metrics.pixel_metrics import PIXEL_METRIC_TITLES
from utils.metrics.segmentation import CHALLENGE_SCORES, segmentation_title
from utils.metrics.uncertainty import CONFIDENCE_SIGNS, score_title
from utils.pipeline.items import Item, find_images
from utils.pipeline.outputs import MAX_STD
from utils.pipeline.report import Report
from utils.pipeline.summary import SUMMARY_COLUMNS
from utils.review_page.pictures import SIDES, SMALL_SIDES, ImagePictures, PictureMaker
from utils.review_page.runs import PredictionRun, compare_runs, fingerprint, mask_values_of, read_runs, result_digest
from utils.runtime.atomic_files import rename, write_file
from utils.runtime.console import progress
from utils.runtime.errors import InputError
from utils.runtime.output_folder import check_writable, output_folder
from utils.runtime.seeds import json_digest
from utils.runtime.threads import cores_per_process, map_ahead

TEMPLATE = Path(__file__).parent / "template"
SCRIPT_FILES = ("scores", "decisions", "maps", "panes", "image_list", "viewer", "main", "actions", "keys")
DEFAULT_PAGE = "review.html"  # in the output folder
MAX_EMBEDDED = 200  # images in a single file
_DATA_TAG = b'<script type="application/json" id="data">'  # in every page
_PICTURES = re.compile(r"[0-9a-f]{16}")  # a folder of pictures


@dataclass(frozen=True)
class ReviewOptions:
    """What is shown besides the predictions, and how.

    Attributes:
        masks_dir: folder of ground-truth masks.
        mask_suffix: how the masks are named, see `PairingOptions`.
        ignore_value: the value of their pixels that do not count; None for what a run has ignored in them.
        output: the file of the page; None for `review.html` in the first output folder.
        single_file: embed all pictures in the page.
    """

    masks_dir: Path | None = None
    mask_suffix: str | None = None
    ignore_value: int | None = None
    output: Path | None = None
    single_file: bool = False


def write_review(folders: Sequence[Path], imgs_dir: Path, options: ReviewOptions | None = None) -> tuple[Path, Report]:
    """Write the page on which the results of prediction runs are reviewed, with its pictures beside it.

    Args:
        folders: the output folders of the runs, by different methods on the same images.
        imgs_dir: the folder of the images.
        options: what else is shown.

    Returns:
        The file of the page, and a report with the images that could not be shown.

    Raises:
        InputError: a folder holds no results, none of the images can be shown, or another run is writing this page.
    """
    options = options or ReviewOptions()
    output = options.output or folders[0] / DEFAULT_PAGE
    check_page(output, options.single_file)
    if options.single_file:
        check_writable(output.parent)
    with nullcontext() if options.single_file else output_folder(_folder_of_pictures(output)):
        return output, _write_page(output, folders, imgs_dir, options)


def _write_page(output: Path, folders: Sequence[Path], imgs_dir: Path, options: ReviewOptions) -> Report:
    """Write the page, as `write_review`, whose folder of pictures belongs to this run."""
    runs = read_runs(folders, imgs_dir)
    names = list(dict.fromkeys(name for run in runs for name in run.scores))
    if options.single_file and len(names) > MAX_EMBEDDED:
        raise InputError(f"{len(names)} images do not fit into a single file, which holds {MAX_EMBEDDED}")
    items = [Item(imgs_dir / name, PurePosixPath(name)) for name in names]
    mask_values, ground_truth = mask_values_of(runs), None
    if options.masks_dir:
        runs, ground_truth = compare_runs(runs, items, options.masks_dir, options.mask_suffix, options.ignore_value)
    without = _without_result(runs, imgs_dir, options, folders)  # before there are pictures of the page
    page = _Page(output, options.single_file, _run_data(runs, len(mask_values[0])))
    report = Report()
    read_target = partial(report.read_target, ground_truth)
    maker = PictureMaker(runs, mask_values, read_target, SMALL_SIDES if options.single_file else SIDES)
    threads = cores_per_process()
    for item, future in progress(map_ahead(maker.make, items, threads, 2 * threads), total=len(items), unit="image"):
        with report.isolating(item.key):
            scores = [run.scores.get(item.key) for run in runs]
            page.add(item.key, result_digest(runs, item.key), scores, future.result())
            report.rows.append({"image": item.key})
    if not report.rows:
        reason = report.failures[0][1]
        raise InputError(f"none of the {len(items)} images in {imgs_dir} can be shown: {items[0].key}: {reason}")
    failed = [(name, reason.replace(f"{imgs_dir}{os.sep}", "")) for name, reason in report.failures if name in names]
    page.write([*failed, *without])
    return report


def check_page(path: Path, single_file: bool = False) -> None:
    """Check that nothing but an earlier page is in the way of a page and its pictures.

    Raises:
        InputError: something is, or the name is not that of a page.
    """
    if path.is_dir() or path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"page {path}: a file name that ends with .html was expected", "output")
    if path.is_file() and _DATA_TAG not in path.read_bytes():
        raise InputError(f"{path} is not a review page, and would be overwritten: move it away, or choose another name")
    files = _folder_of_pictures(path)
    if (files.exists() or files.is_symlink()) and not files.is_dir() and not single_file:
        raise InputError(f"{files} is in the way of the page's folder of pictures: move it away")


def _folder_of_pictures(page: Path) -> Path:
    return page.with_name(f"{page.stem}_files")


def _without_result(
    runs: Sequence[PredictionRun], imgs_dir: Path, options: ReviewOptions, results: Collection[Path]
) -> list[tuple[str, str]]:
    """The images of the folder that no run has predicted, those that failed for example, and words for that."""
    names, settings = {name for run in runs for name in run.scores}, runs[0].settings
    extensions = {extension for run in runs for extension in run.settings.get("ext") or IMAGE_EXTENSIONS}
    masks = (options.masks_dir, options.mask_suffix)
    if options.masks_dir is None and "mask_dir" in settings:
        masks = (Path(settings["mask_dir"]), settings.get("mask_suffix"))
    with suppress(InputError):  # only the names of some images are lost
        paths = find_images(imgs_dir, extensions, any("/" in name for name in names), masks, results)
        others = [name for path in paths if (name := path.relative_to(imgs_dir).as_posix()) not in names]
        return [(name, "no result in this run") for name in others]
    return []


# -- data --------------------------------------------------------------------------------------------------------------


def _run_data(runs: Sequence[PredictionRun], n_classes: int) -> dict[str, Any]:
    """What the page knows of the runs, without the images."""
    colours = {"prediction": PREDICTION, "truth": GROUND_TRUTH, "outer": OUTER_CONTOUR, "inner": INNER_CONTOUR}
    colours |= {"falseNegative": FALSE_NEGATIVE, "falsePositive": FALSE_POSITIVE}
    classes = [_css_colour(class_colour(k)) for k in range(1, n_classes)]
    return {
        "fingerprint": fingerprint(runs),
        "methods": [
            {"title": run.title, "threshold": run.settings.get("threshold", 0.5), "guarantee": _guarantee_of(run)}
            for run in runs
        ],
        "classes": n_classes,
        "maxEntropy": math.log(n_classes),
        "maxStd": MAX_STD,
        "colours": {**{name: _css_colour(colour) for name, colour in colours.items()}, "classes": classes},
    }


def _guarantee_of(run: PredictionRun) -> dict[str, Any] | None:
    """The level of a run's guarantee, and its numbers of calibration images and, if they were in any, of groups."""
    guarantee = run.settings.get("guarantee")
    return guarantee and {name: guarantee.get(name) for name in ("level", "images", "groups")}


def _css_colour(colour: tuple[int, ...]) -> str:
    return f"#{bytes(colour).hex()}"


def describe_score(name: str) -> dict[str, Any]:
    """How the page shows a score: its title, its sign (1 if a high one indicates a good segmentation), its kind."""
    if name in SUMMARY_COLUMNS:
        title, measured, sign = score_title(name), False, CONFIDENCE_SIGNS.get(name, -1 if name == "area_std" else 1)
    elif name in PIXEL_METRIC_TITLES:
        title = re.sub(r", pooled| \(nats\)", "", PIXEL_METRIC_TITLES[name])  # these are of one image
        measured, sign = True, 1 if name.startswith("error") else -1
    else:
        title, measured, sign = segmentation_title(name), True, 1
    unit = "nats" if name in ("mean_entropy", "nll") else "pixels" if re.fullmatch("area(_mean|_std)?", name) else ""
    of_one = name in ("soft_dice_confidence", "pairwise_dice", "largest_probability")
    bounded = of_one or name.split("_c")[0] in CHALLENGE_SCORES
    return {"name": name, "title": title, "sign": sign, "measured": measured, "unit": unit, "bounded": bounded}


class _Page:
    """The page that is being made: the pictures are written first, the page when all of them are there.

    The pictures have a folder of their own, named by a hash of what the page shows, so that an earlier page never shows
    the pictures of other images.
    """

    def __init__(self, path: Path, single_file: bool, run: dict[str, Any]) -> None:
        self.path, self.single_file, self.run = path, single_file, run
        self._images: list[dict[str, Any]] = []
        self._embedded: list[dict[str, Any]] = []
        self.files = _folder_of_pictures(path)
        self._partial = self.files / ".unfinished"

    def add(
        self, name: str, result: str, scores: Sequence[Mapping[str, float] | None], pictures: ImagePictures
    ) -> None:
        """Add an image, with a digest of its results."""
        index = len(self._images)
        together = [
            None if of_run is None else {**of_run, **measured}
            for of_run, measured in zip(scores, pictures.scores, strict=True)
        ]
        self._images.append({"name": name, "result": result, "size": pictures.size, "scores": together})
        if self.single_file:
            content = {"photo": _data_url(pictures.photo), "small": [one and _data_url(one) for one in pictures.small]}
            self._embedded.append({**content, "maps": pictures.maps})
            return
        if not index:
            shutil.rmtree(self._partial, ignore_errors=True)  # of an interrupted run
        data = f"receiveMaps({index}, {_json(pictures.maps)});\n".encode()
        files = {"photo.jpg": pictures.photo, "maps.js": data}
        files |= {f"{m}.jpg": one for m, one in enumerate(pictures.small) if one is not None}
        for end, content in files.items():
            write_file(self._partial / f"{index:05d}_{end}", content)

    def write(self, missing: Sequence[tuple[str, str]]) -> None:
        """Write the page, when all images are added; `missing` are name and reason of those that are not."""
        present = {name for image in self._images for one in image["scores"] for name in one or ()}
        measured = [*CHALLENGE_SCORES, *PIXEL_METRIC_TITLES]
        known = [name for name in (*SUMMARY_COLUMNS[1:], *measured) if name in present]
        of_classes = sorted(name for name in present if name.split("_c")[0] in CHALLENGE_SCORES and "_c" in name)
        columns = [*known, *(name for name in of_classes if name not in known)]
        for image in self._images:
            image["scores"] = [one and [_rounded(one.get(name)) for name in columns] for one in image["scores"]]
        content = {**self.run, "scores": [describe_score(name) for name in columns], "images": self._images}
        content["missing"] = [list(one) for one in missing]
        if self.single_file:
            content["embedded"] = self._embedded
        else:
            digest = json_digest(content)
            content["folder"] = f"{self.files.name}/{digest}"
            shutil.rmtree(self.files / digest, ignore_errors=True)
            rename(self._partial, self.files / digest)
        write_file(self.path, render(content, self.single_file).encode())
        if not self.single_file:
            for folder in self.files.iterdir():
                if _PICTURES.fullmatch(folder.name) and folder.name != digest:
                    shutil.rmtree(folder, ignore_errors=True)


def render(content: Mapping[str, Any], single_file: bool = False) -> str:
    """The page with its data, in one HTML text that may load nothing but its own pictures."""
    style = "\n" + (TEMPLATE / "style.css").read_text(encoding="utf-8")
    script = '\n"use strict";\n' + "\n".join(
        (TEMPLATE / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPT_FILES
    )
    beside = "" if single_file else " 'self' file:"
    policy = (
        f"default-src 'none'; img-src data:{beside}; script-src {_hash_source(script)}{beside}; "
        f"style-src {_hash_source(style)}; base-uri 'none'; form-action 'none'"
    )
    parts = {"policy": policy, "style": style, "script": script, "data": _json(content)}
    template = (TEMPLATE / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _hash_source(text: str) -> str:
    """The source expression of a Content-Security-Policy that allows exactly this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(content: Any) -> str:
    """JSON that is harmless in HTML and in JavaScript: ASCII without `<`."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _rounded(value: float | None) -> float | None:
    if value is None or math.isnan(value):  # no pixel of the ground truth counts
        return None
    return float(f"{value:.10g}") if value < 1000 else round(value)  # the page rounds once


def _data_url(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
