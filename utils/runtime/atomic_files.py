"""Atomic writes: a file appears under its name when it is complete, and not before."""

import csv
import errno
import json
import math
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np

from utils.runtime.errors import InputError

_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.part")
_RENAMING_ATTEMPTS = 20 if os.name == "nt" else 1
_PAUSE = 0.1  # seconds between two of them


@contextmanager
def atomic_file(path: Path | str) -> Iterator[BinaryIO]:
    """A binary file to write to that is renamed to `path` when the `with` block has ended without an error.

    The folder is created if it does not exist.

    Raises:
        OSError: the file cannot be written; an existing file of that name is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with open(partial, "xb") as file:
            yield file
        rename(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(partial), partial):
            error.filename, error.filename2 = str(path), None
        raise


def rename(path: Path, target: Path) -> None:
    """Rename a file, replacing another one, or a folder.

    Windows refuses while another program reads one of them: it is tried for two seconds, as long as a virus scanner or
    an index of the system may take.
    """
    for attempt in range(1, _RENAMING_ATTEMPTS + 1):
        try:
            os.replace(path, target)
            return
        except PermissionError:
            if attempt == _RENAMING_ATTEMPTS:
                raise
            time.sleep(_PAUSE)


def check_replaceable(path: Path) -> None:
    """Check that a file, if there is one, can be replaced: Windows refuses while another program has it open.

    Raises:
        InputError: it cannot be replaced.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        try:
            rename(path, path)
        except PermissionError as error:
            raise InputError(f"{path} cannot be replaced ({error.strerror}): close it in other programs") from error


def write_file(path: Path | str, content: bytes | memoryview) -> None:
    """Write a file, atomically; raises as `atomic_file`."""
    with atomic_file(path) as file:
        file.write(content)


def remove_partial_files(folders: Iterable[Path]) -> None:
    """Remove what a killed process has left of files that `atomic_file` was writing; none may be writing now."""
    for folder in folders:
        for path in folder.glob(".*.part"):
            if _PARTIAL.fullmatch(path.name):
                path.unlink(missing_ok=True)


@contextmanager
def atomic_npy_file(path: Path | str, shape: tuple[int, ...]) -> Iterator[Callable[[np.ndarray, int], None]]:
    """A float32 .npy file that is written block by block, so that the array need not fit into memory.

    Args:
        path: of the file.
        shape: of the whole array.

    Yields:
        The function that writes a block, given its offset in the flattened array; it may be called in threads.
    """
    lock = threading.Lock()

    def write(block: np.ndarray, offset: int) -> None:
        values = np.ascontiguousarray(block, dtype="<f4")
        with lock:
            file.seek(start + values.itemsize * offset)
            file.write(values.data)

    with atomic_file(path) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        start = file.tell()
        allocate(file, start + 4 * math.prod(shape))
        yield write


def allocate(file: BinaryIO, size: int) -> None:
    """Reserve a file's space on the disk, so that a full one is noticed at once; a file system may be unable to."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise


def write_csv(path: Path | str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same columns as a CSV file with a header, atomically; the cells of None and NaN are empty."""
    lines: list[str] = []
    writer = csv.DictWriter(SimpleNamespace(write=lines.append), fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows({name: None if value != value else value for name, value in row.items()} for row in rows)
    # The writer quotes a "\r" in a cell, such as in a file name, only if lines end with it.
    text = "".join(line.removesuffix("\r\n") + "\n" for line in lines)
    write_file(path, text.encode(errors="surrogateescape"))  # file names need not be UTF-8


def write_json(path: Path | str, content: Mapping[str, Any]) -> None:
    """Write plain values as a JSON file, atomically."""
    write_file(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
