"""The loop over many images: what is done already, each process's share, failures, a stop, summaries on the way."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from utils.metrics.pixel_counts import PixelCounts
from utils.pipeline.ground_truth import GroundTruth
from utils.pipeline.items import Item
from utils.pipeline.journal import Journal, SharedJournal
from utils.pipeline.report import DISK_ERRORS, Report
from utils.runtime import distributed
from utils.runtime.console import progress
from utils.runtime.errors import InputError
from utils.runtime.signals import GracefulStop

logger = logging.getLogger(__name__)

RowWriter = Callable[[Sequence[Mapping[str, Any]]], None]


@dataclass
class ImageLoop:
    """The loop over many images, whatever predicts them. One that fails is reported, and the others continue.

    Of several processes each predicts its share of the images, and all get the report of the whole.

    Attributes:
        items: the images.
        ground_truth: with which the predictions are compared.
        journal: images that it has are not predicted again; finished ones are added to it.
        write_rows: writes the scores of the images that are finished; called on the way, when the run is stopped and
            when it fails, but not at its end.
        summary_interval: seconds between its calls on the way, or twenty times as long as one takes if that is longer.
        report: the failures so far.
    """

    items: Sequence[Item]
    ground_truth: GroundTruth | None = None
    journal: Journal | SharedJournal | None = None
    write_rows: RowWriter = lambda rows: None
    summary_interval: float = 30.0
    report: Report = field(init=False, default_factory=Report)
    _rows: dict[str, dict[str, Any]] = field(init=False, default_factory=dict)
    _packed: dict[str, bytes] = field(init=False, default_factory=dict)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)
    _next_rows: float = field(init=False, default=0.0)

    def run(self, predict: Callable[[Sequence[Item], Callable[[int], bool]], None]) -> Report:
        """Predict the images.

        Args:
            predict: predicts images and passes each to `finish`. Its second argument is to be called with each number
                of images that are handled, and returns whether to stop.

        Raises:
            OSError: nothing can be written any more.
        """
        # What an interrupted run has finished, and this process's share of the rest.
        remaining = self.remaining()
        if self._rows:
            logger.info("%d of %d images are already done", len(self.items) - len(remaining), len(self.items))
        share = remaining[distributed.rank() :: distributed.world_size()]
        self._next_rows = time.monotonic() + self.summary_interval
        try:
            with GracefulStop() as stop, progress(total=len(share), unit="image") as bar:

                def handled(n: int) -> bool:
                    bar.update(n)
                    return stop()

                predict(share, handled)
            if stop():
                stop.exit()
        except BaseException:
            self._write_rows_of_all()
            self.report.log_failures()
            raise
        return self._merged_report()

    def remaining(self) -> list[Item]:
        """The images that are left to predict, by all processes together."""
        self._rows |= self._finished_rows()
        return [item for item in self.items if item.reported not in self._rows]

    def finish(
        self, item: Item, scores: Mapping[str, Any], files: Sequence[Path], counts: PixelCounts | None = None
    ) -> None:
        """Record a finished image; may be called in threads.

        Args:
            item: the image.
            scores: its scores.
            files: what was written for it.
            counts: of its pixels, if its probabilities were compared with a ground truth.
        """
        row, packed = {"image": item.reported, **scores}, counts.pack() if counts else None
        if self.journal:
            self.journal.add(row, files, packed)
        with self._lock:
            self._rows[item.reported] = row
            if packed:
                self._packed[item.reported] = packed
            if distributed.is_main() and time.monotonic() > self._next_rows:
                started = time.monotonic()
                self._write_rows_so_far()
                self._next_rows = time.monotonic() + max(self.summary_interval, 20 * (time.monotonic() - started))

    def _write_rows_so_far(self) -> None:
        """Write the scores of the images that are finished; a failure is not that of the image that was just added."""
        try:
            self.write_rows(self._ordered(self._rows))
        except (OSError, InputError) as error:
            if getattr(error, "errno", None) in DISK_ERRORS:
                raise
            logger.warning("The summary of the images so far could not be written (%s)", error)

    def _finished_rows(self) -> dict[str, dict[str, Any]]:
        if self.journal is None:
            return {}
        if self.ground_truth is None:
            return dict(self.journal.rows)
        self._packed |= self.journal.packed
        labelled = {item.reported for item in self.items if item.name in self.ground_truth.paths}
        # A mask may have been added or removed.
        return {name: row for name, row in self.journal.rows.items() if ("dice" in row) == (name in labelled)}

    def _write_rows_of_all(self) -> None:
        """Write the scores of all that is finished, before the process ends; those of other processes as recorded."""
        if not distributed.is_main():
            return
        try:
            rows = self._rows
            if self.journal and distributed.world_size() > 1:
                rows = {**self.journal.all_rows(), **rows}
            if rows:
                self.write_rows(self._ordered(rows))
        except OSError as error:
            logger.warning("The summary could not be written (%s)", error.strerror or error)

    def _ordered(self, rows: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows in the order of the images."""
        return [rows[item.reported] for item in self.items if item.reported in rows]

    def _merged_report(self) -> Report:
        """The report of all processes, in the order of the images."""
        rows, packed = distributed.merge_dicts(self._rows), distributed.merge_dicts(self._packed)
        failures = [*chain(*distributed.all_gather(self.report.failures))]
        if self.ground_truth:
            fitter = self.ground_truth.fitter
            fitter.resized = [*chain(*distributed.all_gather(fitter.resized))]
        known = {*rows, *(name for name, _ in failures)}
        assert all(item.reported in known for item in self.items), "an image is neither done nor failed"
        return Report(self._ordered(rows), failures, packed)
