"""A folder in, maps out: reading ahead, writing behind, failures, the report at the end."""

import base64
import errno
import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from utils import distributed
from utils.checkpoint import TrainedModel
from utils.cli import GentleStop, progress
from utils.data_loading import find_masks, mask_to_classes
from utils.errors import InputError
from utils.image_io import (
    list_images,
    read_image,
    read_mask,
    remove_unfinished,
    save_png,
    whole_file,
    write_csv,
    write_json,
)
from utils.metrics import (
    PIXEL_METRICS,
    PixelCounts,
    describe,
    evaluate_set,
    pixel_counts,
    segmentation_scores,
)
from utils.probability import STATISTICS, ProbabilityMaps, Sampler, calibrate, to_grey
from utils.results import Prediction, beside, pictures, predict_full_size, save_arrays, write_summary

logger = logging.getLogger(__name__)

T = TypeVar("T")

_NAMED = 3  # empty masks
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
    advice = "" if recursive else "; --recursive looks into its sub-folders, too"
    paths = list_images(input_dir, extensions, recursive, advice)
    if output_dir.resolve() == input_dir.resolve():
        raise InputError(f"--output-dir is the input folder, {input_dir}: results would be taken for images next time")
    if input_dir.resolve() in output_dir.resolve().parents:  # results of before are no images
        paths = [path for path in paths if output_dir.resolve() not in path.resolve().parents]
    items = [Item(path, path.relative_to(input_dir)) for path in paths]
    if not items:
        raise InputError(f"{input_dir} has no image outside the output folder {output_dir}")
    logger.info("%d images in %s", len(items), input_dir)
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
        self.packed: dict[str, bytes] = {}  # by an image's name its `PixelCounts.pack()`

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
            self.packed[item.name.as_posix()] = counts.pack()
        return scores

    def evaluate(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`evaluate_set` of the images that were compared, of which these are the rows."""
        if not self.packed:
            return evaluate_set(rows)
        coarse, total = [], None
        for row in rows:
            counts = PixelCounts.unpack(self.packed[row["image"]])
            coarse.append(counts.coarse())
            total = counts if total is None else total + counts
        return evaluate_set(rows, coarse, total)


def _state(path: Path) -> list[int]:
    """Size and time of a file, which change with it."""
    try:
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]
    except OSError:  # reading it will say why
        return []


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
        if not self.rows or not distributed.is_main():
            return
        result = truth.evaluate(self.rows) if truth else {}
        if truth is not None:
            print(f"{len(self.rows)} images against {truth.mask_dir}:\n{describe(result)}")
        if folder is not None:
            try:
                for name in ("metrics.csv", "metrics.json"):  # of other predictions
                    (folder / name).unlink(missing_ok=True)
                write_summary(folder / "summary.csv", self.rows)
                if truth is not None:
                    write_csv(folder / "metrics.csv", self.rows)
                    write_json(folder / "metrics.json", {"run": dict(run or {}), **result})
            except OSError as error:
                self.failures.append(("the summary", f"cannot be written to {folder} ({error.strerror})"))

    def finish(self, where: str = "") -> int:
        """Say how the batch ended; returns the exit code."""
        empty = [row for row in self.rows if row.get("area") == 0]
        if empty:
            some = [f"{row['largest_probability']:.3f} in {row['image']}" for row in empty[:_NAMED]]
            logger.info(
                "%d of %d masks are empty; the largest probability of anything but background is %s%s",
                len(empty),
                len(self.rows),
                ", ".join(some),
                ", … (all are in summary.csv)" if len(empty) > _NAMED else "",
            )
        logger.info("%d image%s done%s", len(self.rows), "s" * (len(self.rows) != 1), where)
        if self.failures and distributed.is_main():
            listing = "".join(f"\n  {name}: {reason}" for name, reason in sorted(self.failures))
            logger.error("%d failed:%s", len(self.failures), listing)
        return 1 if self.failures else 0


class Journal:
    """What a batch has done, a line for each image, in hidden files of the output folder: to go on after a stop.

    Args:
        folder: the output folder.
        settings: what has to be the same for the results to belong together, of plain values.
        items: the images; a file that has changed is predicted again.
        go_on: take over what was done before; else begin anew.

    Attributes:
        rows: by the images' names their rows of scores, for those whose files are all there.
        packed: by the images' names their `PixelCounts.pack()`.

    Raises:
        InputError: the results of before were made with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], items: Sequence[Item], go_on: bool) -> None:
        self.folder, self.settings = folder, json.loads(json.dumps(settings))
        self._sources = {item.name.as_posix(): _state(item.path) for item in items}
        self.rows: dict[str, dict[str, Any]] = {}
        self.packed: dict[str, bytes] = {}
        self._path = folder / f".progress-{distributed.rank()}.jsonl"
        self._lock = threading.Lock()
        if go_on and distributed.is_main():
            remove_unfinished({item.output(folder).parent for item in items})
        self._lines: list[bytes] | None = []  # of this file, noted before; None once they are written again
        for path in sorted(folder.glob(".progress-*.jsonl")):
            if go_on:
                self._take_over(path)
            elif distributed.is_main():
                path.unlink(missing_ok=True)
        # All go by what the main process has read, and none writes before all have read.
        self.rows, self.packed = distributed.gather((self.rows, self.packed))[0]

    def _take_over(self, path: Path) -> None:
        entries = {}  # by their lines
        for line in path.read_bytes().splitlines():
            with suppress(ValueError):  # a line that a killed process was writing
                entries[line] = json.loads(line)
        before = next(iter(entries.values()), self.settings)
        if before != self.settings:
            name = next(name for name in before | self.settings if before.get(name) != self.settings.get(name))
            raise InputError(
                f"{self.folder} holds results that were made with {name} = {before.get(name)}, and this run has "
                f"{self.settings.get(name)}: choose another --output-dir, or leave --skip-existing out to begin anew"
            )
        for line, entry in list(entries.items())[1:]:
            name = entry["row"]["image"]
            files_are_there = all((self.folder / file).is_file() for file in entry["files"])
            if files_are_there and entry["source"] == self._sources.get(name):
                self.rows[name] = entry["row"]
                if entry["counts"]:
                    self.packed[name] = base64.b64decode(entry["counts"])
                if path == self._path:
                    self._lines.append(line)

    def note(self, row: Mapping[str, Any], files: Collection[Path], packed: bytes | None) -> None:
        """Write that an image is done; may be called in threads.

        Args:
            row: its scores.
            files: what was written for it.
            packed: its pixel counts, if the probabilities were compared with a truth.
        """
        entry = {
            "row": row,
            "source": self._sources[row["image"]],
            "files": [path.relative_to(self.folder).as_posix() for path in files],
            "counts": base64.b64encode(packed).decode() if packed else None,
        }
        with self._lock:
            if self._lines is not None:  # the first time
                with whole_file(self._path) as file:
                    for line in (json.dumps(self.settings).encode(), *self._lines):
                        file.write(line + b"\n")
                self._lines = None
            with open(self._path, "ab") as file:
                file.write(b"\n" + json.dumps(entry).encode() + b"\n")  # begins anew where one before was cut off


def predict_folder(
    model: TrainedModel,
    sampler: Sampler,
    items: Sequence[Item],
    save: Callable[[Item, Prediction], Collection[Path]],
    *,
    draw: Callable[[ProbabilityMaps], Mapping[str, np.ndarray]] = lambda maps: {},
    statistics: Collection[str] = (),
    threshold: float = 0.5,
    keep: Collection[str] = (),
    truth: Truth | None = None,
    judge_probabilities: bool = True,
    show: Callable[[Item, Prediction], None] | None = None,
    journal: Journal | None = None,
) -> Report:
    """Predict every image of a batch. One that fails is noted, and the others go on.

    Of several processes that torchrun has started each predicts its share, and all get the report of the whole.

    Args:
        model: to predict with.
        sampler: the method.
        items: the images.
        save: called in a thread with each image and its prediction; returns the files that it has written. An
            `InputError` or `OSError` that it raises is the image's failure.
        draw, statistics, threshold, keep: as `results.predict_full_size` takes them; `draw` is called in threads.
        truth: with which the predictions are compared.
        judge_probabilities: compare the probabilities with the truth, and not the mask alone.
        show: called in the main thread, in the order of the items, with the same as `save`.
        journal: what it has of before is not predicted again, and what is done now is noted there.

    Raises:
        InputError: the method cannot be used with the model.
    """
    sampler.check(model)
    rows = dict(journal.rows) if journal else {}
    if truth and journal:
        truth.packed |= journal.packed
    left = [item for item in items if item.name.as_posix() not in rows]
    if rows:
        logger.info("%d of %d images are done already", len(items) - len(left), len(items))
    own = left[distributed.rank() :: distributed.world_size()]
    report = Report()
    if truth and judge_probabilities:
        keep = {*keep, "predictive_entropy"}

    def read(item: Item) -> tuple[tuple[int, int], Tensor]:
        image = read_image(item.path)
        return image.size, sampler.inputs(image, model.input_size)

    def write(item: Item, prediction: Prediction) -> None:
        with report.failing_alone(str(item.name)):
            name, classes = item.name.as_posix(), prediction.classes
            files = save(item, prediction)
            scores = truth.compare(item, classes, prediction.maps if judge_probabilities else None) if truth else {}
            row = {"image": name, **scores, **prediction.scores}
            if journal:
                journal.note(row, files, truth.packed.get(name) if truth else None)
            rows[name] = row
            height, width = classes.shape
            logger.debug(
                "%s: %dx%d pixels, area %d, soft Dice confidence %.3f",
                name,
                width,
                height,
                row["area"],
                row["soft_dice_confidence"],
            )

    at_once = 1 if model.device.type == "cpu" else max(1, sampler.batch_size // sampler.inputs_per_image)
    readers = max(2, torch.get_num_threads() // 2)  # threads; Pillow decodes without Python's lock
    of_thread = threading.local()

    def predict(group: Sequence[tuple[Item, Future]]) -> list[tuple[Item, Prediction]]:
        inputs: dict[Item, tuple[tuple[int, int], Tensor]] = {}
        for item, reading in group:
            with report.failing_alone(str(item.name)):
                inputs[item] = reading.result()
        if not inputs:
            return []
        if not hasattr(of_thread, "model"):
            of_thread.model = model.twin()
        names = [item.name.as_posix() for item in inputs]
        samples_of_each = sampler.sample(of_thread.model, [views for _, views in inputs.values()], names)
        return [
            (item, predict_full_size(samples, size, draw, statistics, threshold, keep))
            for (item, (size, _)), samples in zip(inputs.items(), samples_of_each, strict=True)
        ]

    try:
        with (
            GentleStop() as stop,
            progress(total=len(own), unit="image") as bar,
            one_thread_each(model.device) as threads,
            BackgroundWriter() as writer,
            closing(_groups(_ahead(read, own, readers, at_once + readers), at_once)) as groups,
            closing(_ahead(predict, groups, threads, threads - 1)) as predictions,
        ):
            for group, predicting in predictions:
                for item, prediction in predicting.result():
                    with report.failing_alone(str(item.name)):
                        if show is not None:
                            show(item, prediction)
                        writer.submit(write, item, prediction)
                bar.update(len(group))
                if stop():
                    break
        if stop():
            stop.leave()
    except OSError as error:  # nothing can be written any more
        known = {name for name, _ in report.failures}
        left = [item for item in own if item.name.as_posix() not in rows and str(item.name) not in known]
        report.failures += [
            (str(item.name), f"not done, since nothing can be written ({error.strerror})") for item in left
        ]
    parts = distributed.gather((rows, report.failures, truth.packed if truth else {}))
    merged = {name: row for rows, _, _ in parts for name, row in rows.items()}
    report.rows = [merged[item.name.as_posix()] for item in items if item.name.as_posix() in merged]
    report.failures = [failure for _, failures, _ in parts for failure in failures]
    assert len(report.rows) + len(report.failures) == len(items), "an image is neither done nor failed"
    if truth:
        for _, _, packed in parts:
            truth.packed |= packed
    return report


class BackgroundWriter:
    """Runs functions in threads, few at a time, so that what they hold does not pile up in memory.

    At the end of the `with` block all have run. The first error that one raised is raised there, or by `submit`.

    Args:
        threads: how many run at once; as many more may wait, and one.
    """

    def __init__(self, threads: int = 2) -> None:
        self._threads, self._pool = threads, _pool(threads)
        self._pending: set[Future] = set()

    def submit(self, function: Callable, *args: Any) -> None:
        """Run `function(*args)` soon; waits where too many are waiting already."""
        while len(self._pending) > self._threads:
            done = next(as_completed(self._pending))
            self._pending.remove(done)
            done.result()
        self._pending.add(self._pool.submit(function, *args))

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        try:
            for done in as_completed(self._pending if error_type is None else ()):
                done.result()
        finally:
            self._pool.shutdown(cancel_futures=True)


def _pool(threads: int) -> ThreadPoolExecutor:
    """So many threads; a new one takes over PyTorch's own number of threads when it is asked for it."""
    return ThreadPoolExecutor(threads, initializer=torch.get_num_threads)


def _ahead(function: Callable[[T], Any], things: Iterable[T], threads: int, ahead: int) -> Iterator[tuple[T, Future]]:
    """Each of the things with the future of `function(thing)`, in so many threads; `ahead` more are under way."""
    pool = _pool(threads)
    waiting: deque[tuple[T, Future]] = deque()
    try:
        for thing in things:
            waiting.append((thing, pool.submit(function, thing)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        # Not for the threads: of one for which it waits when a signal comes, Python believes that it has ended.
        pool.shutdown(wait=False, cancel_futures=True)
        wait([future for _, future in waiting if not future.cancelled()])


def _groups(things: Iterator[T], size: int) -> Iterator[list[T]]:
    """Consecutive things, so many together; the last ones may be fewer."""
    with closing(things):
        while group := list(islice(things, size)):
            yield group


@contextmanager
def one_thread_each(device: torch.device) -> Iterator[int]:
    """Have PyTorch use one thread in each of ours, of which a CPU should have as many as this says: one per core.

    So each has work of its own, an image say, which scales better than sharing one.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu":
        yield 1
        return
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


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
    skip_existing: bool = False,
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
        skip_existing: go on with a batch that was interrupted, see `Journal`.
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

    run = {"method": str(sampler), "temperature": sampler.temperature, "mask_values": list(model.mask_values)}
    run |= {"class_index": class_index, "save_entropy": save_entropy}
    settings = {**run, **sampler.settings, "save_npy": save_npy, "mask_dir": str(mask_dir)}
    journal = Journal(output_dir, settings | {"weights": model.fingerprint()}, items, skip_existing)
    one_class = model.network.n_classes == 1

    def draw(maps: ProbabilityMaps) -> dict[str, np.ndarray]:
        return pictures(maps, [class_index]) if save_entropy else {"_prob": to_grey(maps.probs[class_index])}

    def save(item: Item, prediction: Prediction) -> list[Path]:
        output, files = item.output(output_dir), []
        for ending, picture in prediction.pictures.items():
            files.append(output if ending == "_prob" else beside(output, f"{ending}.png"))
            save_png(files[-1], picture)
        return [*files, *(save_arrays(output, prediction.maps, one_class=one_class) if save_npy else [])]

    statistics = STATISTICS if save_npy or save_entropy else ()
    report = predict_folder(
        model,
        sampler,
        items,
        save,
        draw=draw,
        statistics=statistics,
        keep=STATISTICS if save_npy else (),
        truth=truth,
        journal=journal,
    )
    report.write(output_dir, truth, run | {"model": model_name})
    return report.finish(f": {output_dir}")
