"""The journal of a run over many images, with which an interrupted run is resumed."""

import base64
import json
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.pipeline.ground_truth import GroundTruth
from utils.pipeline.items import Item
from utils.pipeline.report import remove_metrics
from utils.runtime import distributed
from utils.runtime.atomic_files import atomic_file, remove_partial_files
from utils.runtime.errors import InputError
from utils.runtime.output_folder import journal_entries, journal_files


class Journal:
    """The finished images of a run, one line each, in hidden files of the output folder.

    Args:
        folder: the output folder.
        settings: plain values that have to be equal for results to belong together.
        items: the images; one whose file has changed is predicted again.
        resume: take over what an earlier run has finished; otherwise start over.
        ground_truth: an image with a mask whose file has changed is predicted again, too.

    Attributes:
        rows: the scores of the finished images whose files all exist, by their reported names.
        packed: their `PixelCounts.pack()`, by their reported names.

    Raises:
        InputError: the earlier results were made with other settings.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        items: Sequence[Item],
        resume: bool,
        ground_truth: GroundTruth | None = None,
    ) -> None:
        self.folder, self.settings = folder, json.loads(json.dumps(settings))
        self.rows: dict[str, dict[str, Any]] = {}
        self.packed: dict[str, bytes] = {}
        self._sources = {item.reported: file_state(item.path) for item in items}
        masks = ground_truth.paths if ground_truth else {}
        self._masks = {item.reported: [file_state(path) for path in masks.get(item.name, ())] for item in items}
        self._path = folder / f".progress-{distributed.rank()}.jsonl"
        self._lock = threading.Lock()
        self._kept_lines: list[bytes] | None = []  # of this process's file; None once they have been rewritten
        if resume and distributed.is_main():
            remove_partial_files({item.output(folder).parent for item in items})
        if resume:
            for path in sorted(journal_files(folder)):
                self._take_over(path)
        elif distributed.is_main():
            remove_journals(folder)
        # All processes use what the main process has read, and none writes before all have read.
        self.rows, self.packed = distributed.all_gather((self.rows, self.packed))[0]

    def _take_over(self, path: Path) -> None:
        """Read the finished images of a file of an earlier run."""
        entries = journal_entries(path)
        earlier = next(iter(entries.values()), self.settings)
        changed = [name for name in earlier | self.settings if earlier.get(name) != self.settings.get(name)]
        if changed:
            name = changed[0]
            raise InputError(
                f"{self.folder} contains results with {name} = {earlier.get(name)}, but this run has "
                f"{self.settings.get(name)}: choose another output folder, or start over without skipping existing "
                "results"
            )
        for line, entry in list(entries.items())[1:]:
            key = entry["row"]["image"]
            files_exist = all((self.folder / file).is_file() for file in entry["files"])
            masks = self._masks.get(key)
            unchanged = entry["source"] == self._sources.get(key) and entry.get("masks", masks) == masks
            if files_exist and unchanged:  # earlier versions recorded no masks
                self.rows[key] = entry["row"]
                if entry["counts"]:
                    self.packed[key] = base64.b64decode(entry["counts"])
                if path == self._path and self._kept_lines is not None:
                    self._kept_lines.append(line)

    def all_rows(self) -> dict[str, dict[str, Any]]:
        """The scores of what all processes have finished so far, by reported names."""
        for path in journal_files(self.folder):
            self._take_over(path)
        return self.rows

    def add(self, row: Mapping[str, Any], files: Collection[Path], packed: bytes | None) -> None:
        """Record a finished image; may be called in threads. The first one ends the metrics of what was there before.

        Args:
            row: its scores.
            files: what was written for it.
            packed: its pixel counts, if its probabilities were compared with a ground truth.
        """
        entry = {
            "row": row,
            "source": self._sources[row["image"]],
            "masks": self._masks[row["image"]],
            "files": [path.relative_to(self.folder).as_posix() for path in files],
            "counts": base64.b64encode(packed).decode() if packed else None,
        }
        with self._lock:
            if self._kept_lines is not None:  # the first call
                remove_metrics(self.folder)
                with atomic_file(self._path) as file:
                    for line in (json.dumps(self.settings).encode(), *self._kept_lines):
                        file.write(line + b"\n")
                self._kept_lines = None
            with open(self._path, "ab") as file:
                file.write(b"\n" + json.dumps(entry).encode() + b"\n")  # after a line that may have been cut off


def remove_journals(folder: Path) -> None:
    """Remove what earlier runs into a folder have recorded: its files are no longer theirs."""
    for path in journal_files(folder):
        path.unlink(missing_ok=True)


def read_journal(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What the latest run into a folder has recorded.

    Returns:
        Its settings, and the entry of each finished image by its reported name; both empty without a journal.
    """
    settings, finished = {}, {}
    for path in sorted(journal_files(folder), key=lambda path: path.stat().st_mtime_ns):
        first, *entries = [*journal_entries(path).values()] or [{}]
        if first != settings:
            settings, finished = first, {}
        finished |= {entry["row"]["image"]: entry for entry in entries}
    return settings, finished


def file_state(path: Path) -> list[int]:
    """Size and modification time of a file."""
    try:
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]
    except OSError:  # reading the file will report why
        return []
