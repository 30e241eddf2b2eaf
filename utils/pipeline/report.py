"""The outcome of a run over many images: scores, failures, the exit code."""

import csv
import errno
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.metrics.evaluation import evaluate_set, format_evaluation
from utils.metrics.pixel_counts import PixelCounts
from utils.pipeline.ground_truth import GroundTruth
from utils.pipeline.items import Item
from utils.pipeline.summary import read_earlier_summary, write_summary
from utils.runtime import distributed
from utils.runtime.atomic_files import write_csv, write_json
from utils.runtime.errors import InputError, bulleted, first_line, flag_of, is_gpu_error, is_out_of_memory
from utils.runtime.seeds import json_digest

logger = logging.getLogger(__name__)

_BEGINNINGS = {"metrics.csv": "image,", "metrics.json": '{"run":'}  # without white space
_HEAD = 100  # characters, with white space
_LISTED_IMAGES = 3  # empty masks in a message
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # what fails for one file would fail for all


def check_tables(folder: Path) -> None:
    """Check that `write_tables` overwrites no files but those of earlier predictions.

    Raises:
        InputError: a file of that name is something else, such as the metrics of a training.
    """
    read_earlier_summary(folder / "summary.csv")
    for path, of_predictions in _metrics_files(folder):
        if not of_predictions:
            words = "is not of predictions, and would be removed: move it away, or choose another folder"
            raise InputError(f"{path} {words}")


def write_tables(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `summary.csv` and, of the images that were compared with ground truth, `metrics.csv`.

    Those of an earlier run, and its metrics.json, are removed.
    """
    remove_metrics(folder)
    write_summary(folder / "summary.csv", rows)
    if compared := [row for row in rows if "dice" in row]:
        write_csv(folder / "metrics.csv", compared)


def remove_metrics(folder: Path) -> None:
    """Remove the metrics.csv and metrics.json of earlier predictions, whose results are no longer all there."""
    for path, of_predictions in _metrics_files(folder):
        if of_predictions:
            path.unlink(missing_ok=True)


def _metrics_files(folder: Path) -> Iterator[tuple[Path, bool]]:
    """The metrics.csv and metrics.json that there are in a folder, and whether they are of predictions."""
    for name, beginning in _BEGINNINGS.items():
        path = folder / name
        with suppress(FileNotFoundError, NotADirectoryError):
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read(_HEAD)
            yield path, "".join(text.split()).startswith(beginning)


def read_metrics_table(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a metrics.csv by their images; none if there is no such file."""
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return {}
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as CSV ({error}): move it away") from error
    if not all("image" in row for row in rows):
        raise InputError(f"{path} is not a table of metrics, and has no column image: move it away")
    return {row.pop("image"): row for row in rows}


@dataclass
class Report:
    """The outcome of a run.

    Attributes:
        rows: the scores of each finished image, in the order of the images.
        failures: name and reason of each failed image.
        packed: by an image's name its `PixelCounts.pack()`, if its probabilities were compared with a ground truth.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    packed: Mapping[str, bytes] = field(default_factory=dict)

    @contextmanager
    def isolating(self, *names: str) -> Iterator[None]:
        """Record an error in the `with` block as a failure of these images, unless every image would fail with it."""
        try:
            yield
        except InputError as error:
            reason = str(error) + f" (see {', '.join(map(flag_of, error.options))})" * bool(error.options)
        except OSError as error:
            if error.errno in DISK_ERRORS:
                raise
            reason = f"its result could not be written ({error.strerror or error})"
        except Exception as error:
            if is_out_of_memory(error):
                reason = "out of memory"
            elif is_gpu_error(error):
                raise
            else:
                reason = f"{type(error).__name__}: {first_line(error)}"
                logger.debug("%s", ", ".join(names), exc_info=True)
        else:
            return
        self.failures += [(name, reason) for name in names]

    def read_target(self, ground_truth: GroundTruth | None, item: Item, shape: tuple[int, int]) -> np.ndarray | None:
        """The ground truth of an image, see `GroundTruth.read`; a mask that cannot be used is a failure of its own."""
        if ground_truth is not None:
            with self.isolating(f"{item.reported}, not scored"):
                return ground_truth.read(item, shape)
        return None

    def write(
        self, folder: Path | None, ground_truth: GroundTruth | None = None, run: Mapping[str, Any] | None = None
    ) -> None:
        """Write `summary.csv` and, with ground truth, `metrics.csv` and `metrics.json`, and print the metrics.

        Those of an earlier run are removed if any image is finished.

        Args:
            folder: where they are written; None writes nothing.
            ground_truth: with which the images were compared.
            run: settings of the run, for metrics.json.
        """
        if not distributed.is_main():
            return
        compared = [row for row in self.rows if "dice" in row]
        scored = [row for row in compared if not math.isnan(row["dice"])]
        if len(scored) < len(compared):
            words = "%d of %d masks have no pixel that counts: these images have no score"
            logger.warning(words, len(compared) - len(scored), len(compared))
        result = self._evaluate(scored) if scored else {}
        if folder is not None and self.rows:
            try:
                write_tables(folder, self.rows)
                if scored:
                    write_json(folder / "metrics.json", {"run": dict(run or {}), **result})
            except OSError as error:
                self.failures.append(("the summary", f"could not be written to {folder} ({error.strerror})"))
        if scored:
            ground_truth.fitter.log()
            of_all = f" of {len(self.rows)}" if len(scored) < len(self.rows) else ""
            masks = f"{len(scored)}{of_all} images compared with the masks in {ground_truth.mask_dir}"
            print(f"{masks}:\n{format_evaluation(result)}", flush=True)

    def _evaluate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """`evaluate_set` of compared images, which have these rows; of counted pixels a digest of the ground truth."""
        if not self.packed:
            return evaluate_set(rows)
        coarse, truth, total = [], [], None
        for row in rows:
            counts = PixelCounts.unpack(self.packed[row["image"]])
            coarse.append(counts.coarse())
            truth.append([row["image"], int(counts.pixels), int(counts.foreground[2].sum())])
            total = counts if total is None else total + counts
        return {"ground_truth": json_digest(truth), **evaluate_set(rows, coarse, total)}

    def finish(self, destination: str = "") -> int:
        """Log how the run ended; returns the exit code.

        Args:
            destination: where the results are.
        """
        self.log_results(destination)
        return self.log_failures()

    def log_results(self, destination: str = "") -> None:
        """Log how many images are done, and where the results are."""
        empty = [row for row in self.rows if row.get("area") == 0]
        if empty:
            examples = ", ".join(
                f"{row['largest_probability']:.3f} in {row['image']}" for row in empty[:_LISTED_IMAGES]
            )
            are = "are empty; their" if len(empty) > 1 else "is empty; its"
            more = ", … (see summary.csv)" * (len(empty) > _LISTED_IMAGES)
            text = "%d of %d masks %s largest foreground probability is %s%s"
            logger.info(text, len(empty), len(self.rows), are, examples, more)
        logger.info("%d image%s done%s", len(self.rows), "s" * (len(self.rows) != 1), destination)

    def log_failures(self) -> int:
        """Log the failures, which is the last that a run logs; returns the exit code."""
        if self.failures and distributed.is_main():
            problems = [f"{name}: {reason}" for name, reason in sorted(self.failures)]
            logger.error("%s", bulleted(f"{len(self.failures)} failed", problems))
        return 1 if self.failures else 0
