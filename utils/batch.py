"""A folder in, maps out: reading ahead, writing behind, failures, the report at the end."""

import errno
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from torch import Tensor

from utils.checkpoint import TrainedModel
from utils.cli import progress
from utils.data_loading import find_masks, mask_to_classes
from utils.errors import InputError
from utils.image_io import list_images, read_image, read_mask, save_png, write_csv
from utils.metrics import segmentation_scores, summarize_scores
from utils.probability import ProbabilityMaps, Sampler, most_probable_class, summarize, to_grey

logger = logging.getLogger(__name__)

_READERS, _WRITERS = 2, 2  # threads; Pillow decodes and encodes without Python's lock
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

    Raises:
        InputError: a mask is missing.
    """

    def __init__(self, items: Sequence[Item], mask_dir: Path) -> None:
        self.mask_dir, self.paths = mask_dir, find_masks([item.name for item in items], mask_dir)

    def scores(self, item: Item, classes: np.ndarray, mask_values: Sequence[int]) -> dict[str, float]:
        """`segmentation_scores` of the (H, W) predicted class indices of an image.

        Raises:
            InputError: the mask cannot be read, holds a value that no class has, or has another size.
        """
        path = self.paths[item.name]
        truth = mask_to_classes(read_mask(path), mask_values, str(path))
        if truth.shape != classes.shape:
            (height, width), (mask_height, mask_width) = classes.shape, truth.shape
            raise InputError(f"it has {width}x{height} pixels, its mask {path} {mask_width}x{mask_height}")
        return segmentation_scores(classes, truth, len(mask_values))

    def report(self, rows: Sequence[dict[str, Any]], output_dir: Path | None) -> None:
        """Print the scores of all images, and write those of each to `metrics.csv` of a folder."""
        if not rows:
            return
        print(f"{len(rows)} images against {self.mask_dir}:\n{summarize_scores(rows)}")
        if output_dir is not None:
            write_csv(output_dir / "metrics.csv", rows)


@dataclass
class Report:
    """What became of a batch.

    Attributes:
        rows: what `save` returned for the images that are done, in their order.
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

    def finish(self, where: str = "") -> int:
        """Say how the batch ended; returns the exit code."""
        total = len(self.rows) + len(self.failures)
        logger.info("%d of %d images done%s", len(self.rows), total, where)
        if self.failures:
            listing = "".join(f"\n  {name}: {reason}" for name, reason in sorted(self.failures))
            logger.error("%d of %d images failed:%s", len(self.failures), total, listing)
        return 1 if self.failures else 0


class BackgroundWriter:
    """Runs functions in threads, few at a time, so that what they hold does not pile up in memory.

    At the end of the `with` block all have run. The first error that one raised is raised there, or by `submit`.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_WRITERS)
        self._pending: deque[Future] = deque()

    def submit(self, function: Callable, *args: Any) -> None:
        """Run `function(*args)` soon; waits where too many are waiting already."""
        while len(self._pending) > _WRITERS:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(function, *args))

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        try:
            while self._pending and error_type is None:
                self._pending.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)


def predict_folder(
    model: TrainedModel,
    sampler: Sampler,
    items: Sequence[Item],
    save: Callable[[Item, ProbabilityMaps], dict[str, Any]],
    statistics: Collection[str] = (),
    show: Callable[[Item, ProbabilityMaps], None] | None = None,
) -> Report:
    """Predict every image of a batch. One that fails is noted, and the others go on.

    Args:
        model: to predict with.
        sampler: the method.
        items: the images.
        save: called in a thread for each image's maps; what it returns becomes the image's row in the report. An
            `InputError` or `OSError` that it raises is the image's failure.
        statistics: which of `probability.STATISTICS` are wanted.
        show: called between the predictions, in the main thread.

    Raises:
        InputError: the method cannot be used with the model.
        OSError: the disk is full or cannot be written at all.
    """
    sampler.check(model)
    report, rows = Report(), {}

    def read(item: Item) -> tuple[tuple[int, int], Tensor]:
        image = read_image(item.path)
        return image.size, sampler.inputs(image, model.input_size)

    def write(item: Item, maps: ProbabilityMaps) -> None:
        with report.failing_alone(str(item.name)):
            rows[item] = save(item, maps)

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
                    if show is not None:
                        show(item, maps)
                    writer.submit(write, item, maps)
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
    class_index: int = 1,
    mask_dir: Path | None = None,
) -> int:
    """Write each image's map of one class's probability, an 8-bit grey PNG in which 255 is 1; returns the exit code.

    Args:
        model: to predict with.
        sampler: the method.
        items: the images.
        output_dir: where the maps go.
        class_index: which class's.
        mask_dir: folder of true masks, with which the most probable classes are compared.

    Raises:
        InputError: the model has no such class, or a true mask is missing.
    """
    n_classes = len(model.mask_values)
    if class_index >= n_classes:
        raise InputError(f"--class-index {class_index}: the model has the classes 0 to {n_classes - 1}")
    truth = Truth(items, mask_dir) if mask_dir else None

    def save(item: Item, maps: ProbabilityMaps) -> dict[str, Any]:
        save_png(item.output(output_dir), to_grey(maps.probs[class_index]))
        scores = truth.scores(item, most_probable_class(maps.probs), model.mask_values) if truth else {}
        return {"image": item.name.as_posix(), **scores}

    report = predict_folder(model, sampler, items, save)
    if truth:
        truth.report(report.rows, output_dir)
    return report.finish(f": {output_dir}")
