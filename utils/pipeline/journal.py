"""The journal of an output folder: the results that runs have written there, with which an interrupted run is resumed.

What an earlier run has written for an image is listed until another run has finished that image: the files that are not
rewritten are then removed, since maps of two runs beside each other would be taken for those of one.
"""

import base64
import json
import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.pipeline.ground_truth import GroundTruth
from utils.pipeline.items import Item
from utils.pipeline.report import remove_metrics
from utils.pipeline.summary import MASK_COLUMN, write_summary
from utils.runtime import distributed
from utils.runtime.atomic_files import atomic_file, remove_partial_files
from utils.runtime.errors import InputError
from utils.runtime.output_folder import JOURNAL_OF_MAIN, journal_files, output_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """The results of an image in an output folder.

    Attributes:
        files: their paths within the folder, the mask or probability map first.
        row: the name of the image and its scores; None if a later run has started over, and the files may be replaced.
        source: size and modification time of the image, see `file_state`.
        masks: those of its ground truth.
        counts: its packed pixel counts in Base64, if its probabilities were compared with a ground truth.
        settings: plain values, those of the run; results belong together if these are equal.
    """

    files: Sequence[str]
    row: Mapping[str, Any] | None = None
    source: Sequence[int] = ()
    masks: Sequence[Sequence[int]] = ()
    counts: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def of_run(self, settings: Mapping[str, Any]) -> bool:
        """Whether a run with these settings has written the results."""
        return self.row is not None and not _differing(self.settings, settings)

    def line(self) -> bytes:
        """The line of a journal, which follows that of the settings."""
        if self.row is None:
            return _line({"files": self.files})
        names = ("row", "source", "masks", "files", "counts")
        return _line({name: getattr(self, name) for name in names})


class Journal:
    """What a run over many images has finished, in an output folder that belongs to it.

    Args:
        folder: the output folder.
        settings: plain values that have to be equal for results to belong together.
        items: the images; one whose file has changed is predicted again.
        resume: take over what an earlier run has finished; otherwise start over.
        ground_truth: an image with a mask whose file has changed is predicted again, too.
        outputs: the first file of each result, if the results of other first files are to keep their scores, whatever
            their settings; otherwise those of all other images end.

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
        outputs: Collection[Path] | None = None,
    ) -> None:
        self.folder, self.settings = folder, json.loads(json.dumps(settings))
        self._sources = {item.reported: file_state(item.path) for item in items}
        masks = ground_truth.paths if ground_truth else {}
        self._masks = {item.reported: [file_state(path) for path in masks.get(item.name, ())] for item in items}
        self._outputs = None if outputs is None else {*_names_in(folder, outputs)}
        self._path = folder / f".progress-{distributed.rank()}.jsonl"
        self._lock = threading.Lock()
        self._has_added = self._has_removed = False
        entries = [self._taken_over(entry, resume) for entry in read_entries(folder).values()]
        entries.sort(key=self._is_own)  # this run is now the latest
        entries = distributed.all_gather(entries)[0]  # none writes before all have read
        if distributed.is_main():
            if resume:
                remove_partial_files({item.output(folder).parent for item in items})
            write_entries(folder, entries)
        distributed.all_gather(None)  # and none adds before that
        own = {entry.row["image"]: entry for entry in entries if self._is_own(entry)}
        self.rows = {image: entry.row for image, entry in own.items()}
        self.packed = {image: base64.b64decode(entry.counts) for image, entry in own.items() if entry.counts}
        self._earlier = {entry.files[0]: entry.files for entry in entries if not self._is_own(entry)}

    def _is_written(self, entry: Entry) -> bool:
        """Whether this run is to write the result of an entry with scores, or has written it."""
        if self._outputs is None:
            return entry.row["image"] in self._sources
        return entry.files[0] in self._outputs

    def _is_own(self, entry: Entry) -> bool:
        return entry.of_run(self.settings) and self._is_written(entry)

    def _taken_over(self, entry: Entry, resume: bool) -> Entry:
        """An entry of an earlier run, of which only the files are left if the image is to be predicted again."""
        if entry.row is None:
            return entry
        keep = (resume and self._is_complete(entry)) if self._is_written(entry) else self._outputs is not None
        return entry if keep else Entry(entry.files)

    def _is_complete(self, entry: Entry) -> bool:
        """Whether the image and its mask are unchanged, and its results exist."""
        if not entry.of_run(self.settings):
            name = _differing(entry.settings, self.settings)[0]
            raise InputError(
                f"{self.folder} contains results with {name} = {entry.settings.get(name)}, but this run has "
                f"{self.settings.get(name)}: choose another output folder, or start over without skipping existing "
                "results"
            )
        image = entry.row["image"]
        unchanged = (entry.source, entry.masks) == (self._sources.get(image), self._masks.get(image))
        return unchanged and all((self.folder / file).is_file() for file in entry.files)

    def all_rows(self) -> dict[str, Mapping[str, Any]]:
        """The scores of what all processes have finished so far, by reported names."""
        entries = read_entries(self.folder).values()
        return {entry.row["image"]: entry.row for entry in entries if self._is_own(entry)}

    def add(self, row: Mapping[str, Any], files: Sequence[Path], packed: bytes | None = None) -> None:
        """Record a finished image; may be called in threads.

        Args:
            row: its name and scores.
            files: what was written for it, the mask or probability map first.
            packed: its pixel counts, if its probabilities were compared with a ground truth.
        """
        counts = base64.b64encode(packed).decode() if packed else None
        image, names = row["image"], _names_in(self.folder, files)
        entry = Entry(names, row, self._sources[image], self._masks[image], counts, self.settings)
        with self._lock:
            removed = _end_earlier(self.folder, self._earlier, names)
            if removed and not self._has_removed:
                logger.info("Removing files of an earlier run that this one does not write, such as %s", removed[0])
                self._has_removed = True
            with open(self._path, "ab") as file:
                if not self._has_added:
                    file.write(b"\n" + _line(self.settings))  # after a line that may have been cut off
                file.write(b"\n" + entry.line())
            self._has_added = True


class SharedJournal:
    """In place of a `Journal` for results in any folders, which other runs may be writing into as well.

    Nothing is resumed; each folder is locked while a result is added to its journal and its `summary.csv`.

    Args:
        settings: plain values that have to be equal for results to belong together.
        outputs: the first file of each result.

    Raises:
        InputError: another run has locked a folder in which this one is to replace a result.
    """

    rows: Mapping[str, Mapping[str, Any]] = {}
    packed: Mapping[str, bytes] = {}

    def __init__(self, settings: Mapping[str, Any], outputs: Collection[Path]) -> None:
        self.settings = settings
        if distributed.is_main():
            for folder in {path.parent for path in outputs if journal_files(path.parent)}:
                with output_folder(folder, patience=60):  # of results that this run replaces only the files stay listed
                    entries = read_entries(folder)
                    for name in entries.keys() & {path.name for path in outputs if path.parent == folder}:
                        entries[name] = Entry(entries[name].files)
                    write_entries(folder, [*entries.values()])
        distributed.all_gather(None)  # none adds before that

    def add(self, row: Mapping[str, Any], files: Sequence[Path], packed: bytes | None = None) -> None:
        """Record a finished image, see `Journal.add`."""
        folder = files[0].parent
        with output_folder(folder, patience=60):
            entries, names = read_entries(folder), _names_in(folder, files)
            for path in _end_earlier(folder, {first: entry.files for first, entry in entries.items()}, names):
                logger.info("Removing a file of an earlier run that this one does not write: %s", path)
            entries.pop(names[0], None)
            write_entries(folder, [*entries.values(), Entry(names, row, settings=self.settings)])
            write_recorded_summary(folder)

    def all_rows(self) -> dict[str, Mapping[str, Any]]:
        """None: they are written as they come."""
        return {}


def record_file(path: Path) -> None:
    """List a file that is not of a single image, such as a figure of all, if it is in a folder with a journal."""
    if journal_files(path.parent):
        with open(path.parent / JOURNAL_OF_MAIN, "ab") as file:
            file.write(b"\n" + Entry([path.name]).line())


def read_entries(folder: Path) -> dict[str, Entry]:
    """The results that a folder has, by the first of their files, the latest last."""
    entries: dict[str, Entry] = {}
    for path in sorted(journal_files(folder)):
        settings: Mapping[str, Any] = {}
        for line in path.read_bytes().splitlines():
            with suppress(ValueError, TypeError, LookupError):  # a line cut off by a kill, or of another program
                content = json.loads(line)
                if "files" not in content:
                    settings = content
                    continue
                first = content["files"][0]
                entries.pop(first, None)
                entries[first] = Entry(**content, settings=settings)
    return entries


def write_entries(folder: Path, entries: Sequence[Entry]) -> None:
    """Write the journal of a folder anew, in place of those of all processes."""
    path, settings = folder / JOURNAL_OF_MAIN, None
    if entries:
        with atomic_file(path) as file:
            for entry in entries:
                if entry.row is not None and entry.settings != settings:
                    settings = entry.settings
                    file.write(_line(settings))
                file.write(entry.line())
    for other in journal_files(folder):
        if other != path or not entries:
            other.unlink(missing_ok=True)


def write_recorded_summary(folder: Path) -> None:
    """Write the `summary.csv` of all images that a folder has results of, by whatever runs, as far as they exist."""
    entries = [entry for entry in read_entries(folder).values() if entry.row is not None]
    rows = [{**entry.row, MASK_COLUMN: entry.files[0]} for entry in entries if (folder / entry.files[0]).exists()]
    write_summary(folder / "summary.csv", rows)


def _line(content: Any) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _names_in(folder: Path, files: Collection[Path]) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in files]


def _end_earlier(folder: Path, earlier: dict[str, Sequence[str]], files: Sequence[str]) -> list[Path]:
    """End the results that a new one of these files replaces, and the metrics that they were part of.

    Args:
        folder: the output folder.
        earlier: the files of all earlier results by their first; the replaced ones are taken from it.
        files: those of the new result.

    Returns:
        The files of the replaced result that the new one does not have: they are removed.
    """
    if files[0] not in earlier:
        return []
    remove_metrics(folder)
    unlisted = (folder / name for name in earlier.pop(files[0]) if name not in files and name not in earlier)
    beside = (folder / files[0]).parent  # where all results of an image are
    removed = [path for path in unlisted if path.parent == beside and path.is_file()]
    for path in removed:
        path.unlink()
    return removed


def _differing(settings: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """The settings that two runs do not share; the file extensions only say which images they were to predict."""
    return [name for name in {**settings, **others} if name != "ext" and settings.get(name) != others.get(name)]


def file_state(path: Path) -> list[int]:
    """Size and modification time of a file."""
    try:
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]
    except OSError:  # reading the file will report why
        return []
