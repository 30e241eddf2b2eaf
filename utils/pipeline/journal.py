"""The journal of a run over many images, with which an interrupted run is resumed.

Its first line has the settings, each further one a finished image. What an earlier run has written for an image is
listed until this one has finished that image: the files that are not rewritten are then removed, since maps of two runs
beside each other would be taken for those of one.
"""

import base64
import json
import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from utils.pipeline.ground_truth import GroundTruth
from utils.pipeline.items import Item
from utils.pipeline.report import remove_metrics
from utils.runtime import distributed
from utils.runtime.atomic_files import atomic_file, remove_partial_files
from utils.runtime.errors import InputError
from utils.runtime.output_folder import journal_files

logger = logging.getLogger(__name__)


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
        self._earlier: dict[str, list[str]] = {}  # the files of images that an earlier run has finished, by their first
        self._has_removed = False  # any of them
        if distributed.is_main():
            if resume:
                remove_partial_files({item.output(folder).parent for item in items})
            else:
                end_journals(folder)
        if resume or distributed.is_main():
            for path in sorted(journal_files(folder)):
                self._take_over(path)
        # All processes use what the main process has read, and none writes before all have read.
        own = (self.rows, self.packed, self._earlier)
        self.rows, self.packed, self._earlier = distributed.all_gather(own)[0]

    def _take_over(self, path: Path) -> None:
        """Read the finished images of a file of an earlier run."""
        lines = _read_lines(path)
        settings = next(iter(lines.values()), {})
        changed = _differing(settings, self.settings)
        for line, entry in list(lines.items())[1:]:
            if "row" not in entry:
                kept = True
                self._earlier[entry["files"][0]] = entry["files"]
            elif changed:
                name = changed[0]
                raise InputError(
                    f"{self.folder} contains results with {name} = {settings.get(name)}, but this run has "
                    f"{self.settings.get(name)}: choose another output folder, or start over without skipping existing "
                    "results"
                )
            else:
                kept = self._take_over_image(entry)
            if kept and path == self._path and self._kept_lines is not None:
                self._kept_lines.append(line)

    def _take_over_image(self, entry: Mapping[str, Any]) -> bool:
        """Take over a finished image, and return True, if its file and mask are unchanged and its results exist."""
        key = entry["row"]["image"]
        files_exist = all((self.folder / file).is_file() for file in entry["files"])
        masks = self._masks.get(key)
        unchanged = entry["source"] == self._sources.get(key) and entry.get("masks", masks) == masks
        if not (files_exist and unchanged):  # earlier versions recorded no masks
            return False
        self.rows[key] = entry["row"]
        for file in entry["files"][:1]:
            self._earlier.pop(file, None)
        if entry["counts"]:
            self.packed[key] = base64.b64decode(entry["counts"])
        return True

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
            self._remove_earlier(entry["files"])
            if self._kept_lines is not None:  # the first call
                remove_metrics(self.folder)
                with atomic_file(self._path) as file:
                    for line in (json.dumps(self.settings).encode(), *self._kept_lines):
                        file.write(line + b"\n")
                self._kept_lines = None
            with open(self._path, "ab") as file:
                file.write(b"\n" + json.dumps(entry).encode() + b"\n")  # after a line that may have been cut off

    def _remove_earlier(self, files: Sequence[str]) -> None:
        """Remove what an earlier run has written for an image, and this one has not."""
        for name in self._earlier.pop(files[0], ()) if files else ():
            path = self.folder / name
            beside = path.parent == (self.folder / files[0]).parent  # as all results of an image are
            if beside and name not in files and name not in self._earlier and path.is_file():
                path.unlink()
                if not self._has_removed:
                    logger.info("Removing files of an earlier run that this one does not write, such as %s", path)
                self._has_removed = True


def end_journals(folder: Path) -> None:
    """End what earlier runs into a folder have recorded: of their results only the files are still listed."""
    paths, kept, earlier = sorted(journal_files(folder)), folder / ".progress-0.jsonl", {}
    for path in paths:
        for entry in _read_lines(path).values():
            if entry.get("files"):
                earlier[entry["files"][0]] = {"files": entry["files"]}
    if earlier:
        with atomic_file(kept) as file:
            file.writelines(json.dumps(entry).encode() + b"\n" for entry in ({}, *earlier.values()))
    for path in paths:
        if not earlier or path != kept:
            path.unlink(missing_ok=True)


def read_journal(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What the latest run into a folder has recorded.

    Returns:
        Its settings, and the entry of each finished image by its reported name; both empty without a journal.
    """
    settings, finished = {}, {}
    for path in sorted(journal_files(folder), key=lambda path: path.stat().st_mtime_ns):
        first, *entries = [*_read_lines(path).values()] or [{}]
        entries = {entry["row"]["image"]: entry for entry in entries if "row" in entry}
        if entries:
            finished = entries if _differing(first, settings) else finished | entries
            settings = first
    return settings, finished


def _differing(settings: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """The settings that two runs do not share; the file extensions only say which images they were to predict."""
    return [name for name in {**settings, **others} if name != "ext" and settings.get(name) != others.get(name)]


def _read_lines(path: Path) -> dict[bytes, dict[str, Any]]:
    """The settings and the images in a file of a journal, by their lines."""
    entries = {}
    for line in path.read_bytes().splitlines():
        with suppress(ValueError):  # a line that a killed process was writing
            entries[line] = json.loads(line)
    return entries


def file_state(path: Path) -> list[int]:
    """Size and modification time of a file."""
    try:
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]
    except OSError:  # reading the file will report why
        return []
