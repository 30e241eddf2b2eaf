"""A folder in, maps out: reading ahead, writing behind, failures, the report at the end."""

import errno
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.checkpoint import TrainedModel
from utils.cli import progress
from utils.data_loading import find_masks, mask_to_classes
from utils.errors import InputError
from utils.image_io import BackgroundWriter, list_images, read_image, read_mask, save_png, write_csv, write_json
from utils.metrics import (
    PIXEL_METRICS,
    PixelCounts,
    describe,
    evaluate_set,
    pixel_counts,
    segmentation_scores,
    sum_counts,
)
from utils.probability import STATISTICS, ProbabilityMaps, Sampler, calibrate, most_probable_class, summarize, to_grey
from utils.results import beside, pictures, save_arrays, write_summary
from utils.uncertainty import image_scores

logger = logging.getLogger(__name__)

_READERS = 2  # threads; Pillow decodes without Python's lock
_NO_MORE_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # what fails for one file would fail for all


@dataclass(frozen=True)
class Item:
    """An image of a batch.

    Attributes:
        path: of its file.
        name: its path within the input folder; reports and random numbers go by it.
    """

    path: Path
    name: PurePath

    def output(self, folder: Path, ending: str = "_OUT.png") -> Path:
        """Where its result goes: `ending` behind its stem, in the same sub-folder of `folder`."""
        return folder / self.name.with_name(self.name.stem + ending)


def find_items(input_dir: Path, output_dir: Path, extensions: Iterable[str], recursive: bool = False) -> list[Item]:
    """The images of a folder.

    Raises:
        InputError: there are none, the output folder is a file or the input folder itself, or two images would be
            written to the same file.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"--output-dir {output_dir} is a file: a folder was expected")
    paths = list_images(input_dir, extensions, recursive)
    if output_dir.resolve() == input_dir.resolve():
        raise InputError(f"--output-dir is the input folder, {input_dir}: results would be taken for images next time")
    if input_dir.resolve() in output_dir.resolve().parents:  # results of before are no images
        paths = [path for path in paths if output_dir.resolve() not in path.resolve().parents]
    items = [Item(path, path.relative_to(input_dir)) for path in paths]
    if not items:
        raise InputError(f"{input_dir} has no image outside the output folder {output_dir}")
    outputs: dict[Path, Item] = {}
    for item in items:
        other = outputs.setdefault(item.output(output_dir), item)
        if other is not item:
            raise InputError(
                f"{other.name} and {item.name} would both be written to {item.output(output_dir)}: rename one, or "
                "choose between them with --ext"
            )
    return items


class Truth:
    """The true masks of a batch's images, with which predictions are compared.

    Args:
        items: the images.
        mask_dir: folder of the masks, which are found as `utils.data_loading.find_masks` does.
        mask_values: the value of class 0, 1, ... in them.

    Raises:
        InputError: a mask is missing.
    """

    def __init__(self, items: Sequence[Item], mask_dir: Path, mask_values: Sequence[int]) -> None:
        self.mask_dir, self.mask_values = mask_dir, mask_values
        self.paths = find_masks([item.name for item in items], mask_dir)
        self._counts: dict[str, PixelCounts] = {}
        self._fine: list[np.ndarray] = []  # the histograms that are too large to be kept for each image
        self._lock = threading.Lock()

    def read(self, item: Item, shape: tuple[int, int]) -> np.ndarray:
        """The (H, W) uint8 true class indices of an image.

        Raises:
            InputError: the mask cannot be read, holds a value that no class has, or has another size.
        """
        path = self.paths[item.name]
        truth = mask_to_classes(read_mask(path), self.mask_values, str(path))
        if truth.shape != shape:
            (height, width), (mask_height, mask_width) = shape, truth.shape
            raise InputError(f"it has {width}x{height} pixels, its mask {path} {mask_width}x{mask_height}")
        return truth

    def compare(self, item: Item, classes: np.ndarray, maps: ProbabilityMaps | None = None) -> dict[str, float]:
        """Scores of an image against its truth; may be called in threads.

        Args:
            item: the image.
            classes: (H, W) predicted class indices.
            maps: with `predictive_entropy`; with them the probabilities are judged, too.

        Raises:
            InputError: as `read` does.
        """
        truth = self.read(item, classes.shape)
        scores = segmentation_scores(classes, truth, len(self.mask_values))
        if maps is not None:
            truth = torch.from_numpy(truth).to(maps.probs.device)
            counts = pixel_counts(maps.probs, maps.predictive_entropy, truth)
            scores |= {name: float(metric(counts)) for name, metric in PIXEL_METRICS.items()}
            fine = [counts.by_doubt, counts.by_entropy]
            with self._lock:
                self._counts[item.name.as_posix()] = counts.coarse()
                self._fine = [a + b for a, b in zip(self._fine, fine, strict=True)] if self._fine else fine
        return scores

    def evaluate(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`evaluate_set` of the images that were compared, of which these are the rows."""
        if not self._counts:
            return evaluate_set(rows)
        counts = [self._counts[row["image"]] for row in rows]
        by_doubt, by_entropy = self._fine
        return evaluate_set(rows, counts, replace(sum_counts(counts), by_doubt=by_doubt, by_entropy=by_entropy))


@dataclass
class Report:
    """What became of a batch.

    Attributes:
        rows: for each image that is done its scores, in their order.
        failures: name and reason for each of the others.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)

    @contextmanager
    def failing_alone(self, name: str) -> Iterator[None]:
        """What goes wrong with an image in this block is noted as its failure, unless it would go wrong with all."""
        try:
            yield
        except InputError as error:
            self.failures.append((name, str(error)))
        except OSError as error:
            if error.errno in _NO_MORE_WRITING:
                raise
            self.failures.append((name, f"its result cannot be written ({error.strerror})"))

    def write(self, folder: Path | None, truth: Truth | None = None, run: Mapping[str, Any] | None = None) -> None:
        """Write `summary.csv`, the scores that need no truth; with a truth `metrics.csv` and `metrics.json`, too.

        Args:
            folder: where they go; None writes nothing.
            truth: with which the images were compared; its metrics are printed.
            run: what is to be known of the predictions, for metrics.json.
        """
        if not self.rows:
            return
        if folder is not None:
            write_summary(folder / "summary.csv", self.rows)
        if truth is not None:
            result = truth.evaluate(self.rows)
            print(f"{len(self.rows)} images against {truth.mask_dir}:\n{describe(result)}")
            if folder is not None:
                write_csv(folder / "metrics.csv", self.rows)
                write_json(folder / "metrics.json", {"run": dict(run or {}), **result})

    def finish(self, where: str = "") -> int:
        """Say how the batch ended; returns the exit code."""
        total = len(self.rows) + len(self.failures)
        logger.info("%d of %d images done%s", len(self.rows), total, where)
        if self.failures:
            listing = "".join(f"\n  {name}: {reason}" for name, reason in sorted(self.failures))
            logger.error("%d of %d images failed:%s", len(self.failures), total, listing)
        return 1 if self.failures else 0


def predict_folder(
    model: TrainedModel,
    sampler: Sampler,
    items: Sequence[Item],
    save: Callable[[Item, ProbabilityMaps, np.ndarray], None],
    *,
    statistics: Collection[str] = ("predictive_entropy", "overlaps"),
    threshold: float = 0.5,
    truth: Truth | None = None,
    judge_probabilities: bool = True,
    show: Callable[[Item, ProbabilityMaps, np.ndarray], None] | None = None,
) -> Report:
    """Predict every image of a batch. One that fails is noted, and the others go on.

    Args:
        model: to predict with.
        sampler: the method.
        items: the images.
        save: called in a thread with each image's maps and its (H, W) uint8 predicted classes. An `InputError` or
            `OSError` that it raises is the image's failure.
        statistics: which of `probability.STATISTICS` `save` wants; the scores need the two of the default.
        threshold: of `most_probable_class`.
        truth: with which the predictions are compared.
        judge_probabilities: compare the probabilities with the truth, and not the mask alone.
        show: called between the predictions, in the main thread, with the same as `save`.

    Raises:
        InputError: the method cannot be used with the model.
        OSError: the disk is full or cannot be written at all.
    """
    sampler.check(model)
    report, rows = Report(), {}

    def read(item: Item) -> tuple[tuple[int, int], Tensor]:
        image = read_image(item.path)
        return image.size, sampler.inputs(image, model.input_size)

    def write(item: Item, maps: ProbabilityMaps, classes: np.ndarray) -> None:
        with report.failing_alone(str(item.name)):
            save(item, maps, classes)
            scores = truth.compare(item, classes, maps if judge_probabilities else None) if truth else {}
            on_device = torch.from_numpy(classes).to(maps.probs.device)
            scores |= image_scores(maps.probs, maps.predictive_entropy, on_device, maps.overlaps)
            rows[item] = {"image": item.name.as_posix(), **scores}

    at_once = max(1, sampler.batch_size // sampler.inputs_per_image)
    with progress(total=len(items), unit="image") as bar, BackgroundWriter() as writer:
        group = []
        for i, (item, reading) in enumerate(_read_ahead(read, items, at_once + 2 * _READERS), start=1):
            with report.failing_alone(str(item.name)):
                group.append((item, *reading.result()))
            if group and (len(group) == at_once or i == len(items)):
                names = [item.name.as_posix() for item, _, _ in group]
                samples_of_each = sampler.sample(model, [inputs for _, _, inputs in group], names)
                for (item, size, _), samples in zip(group, samples_of_each, strict=True):
                    maps = summarize(samples, size, statistics)
                    classes = most_probable_class(maps.probs, threshold)
                    with report.failing_alone(str(item.name)):
                        if show is not None:
                            show(item, maps, classes)
                        writer.submit(write, item, maps, classes)
                group = []
            bar.update()
    report.rows = [rows[item] for item in items if item in rows]
    return report


def _read_ahead(read: Callable, items: Sequence[Item], ahead: int) -> Iterator[tuple[Item, Future]]:
    """Each item with the future of `read(item)`, `ahead` of them under way."""
    with ThreadPoolExecutor(_READERS) as pool:
        waiting: deque[tuple[Item, Future]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(read, item)))
                if len(waiting) > ahead:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            pool.shutdown(cancel_futures=True)


def predict_probabilities(
    model: TrainedModel,
    sampler: Sampler,
    items: Sequence[Item],
    output_dir: Path,
    *,
    class_index: int = 1,
    save_entropy: bool = False,
    save_npy: bool = False,
    calibrated: bool = False,
    mask_dir: Path | None = None,
    model_name: str = "",
) -> int:
    """Write each image's map of one class's probability, an 8-bit grey PNG in which 255 is 1; returns the exit code.

    Args:
        model: to predict with.
        sampler: the method.
        items: the images.
        output_dir: where the maps go, and `summary.csv`.
        class_index: which class's.
        save_entropy: write the other maps, too, as `results.pictures` makes them.
        save_npy: write the exact maps, as `results.save_arrays` does.
        calibrated: divide the logits by the model's temperature.
        mask_dir: folder of true masks, with which the probabilities are compared.
        model_name: for metrics.json.

    Raises:
        InputError: the model has no such class or no temperature, or a true mask is missing.
    """
    if calibrated:
        sampler = calibrate(sampler, model)
    n_classes = len(model.mask_values)
    if class_index >= n_classes:
        raise InputError(f"--class-index {class_index}: the model has the classes 0 to {n_classes - 1}")
    truth = Truth(items, mask_dir, model.mask_values) if mask_dir else None

    def save(item: Item, maps: ProbabilityMaps, classes: np.ndarray) -> None:
        output = item.output(output_dir)
        made = pictures(maps, [class_index]) if save_entropy else {"_prob": to_grey(maps.probs[class_index])}
        for ending, grey in made.items():
            save_png(output if ending == "_prob" else beside(output, f"{ending}.png"), grey)
        if save_npy:
            save_arrays(output, maps)

    everything = save_npy or save_entropy
    statistics = STATISTICS if everything else ("predictive_entropy", "overlaps")
    report = predict_folder(model, sampler, items, save, statistics=statistics, truth=truth)
    run = {"method": str(sampler), "temperature": sampler.temperature, "model": model_name}
    report.write(output_dir, truth, run | {"mask_values": list(model.mask_values)})
    return report.finish(f": {output_dir}")
