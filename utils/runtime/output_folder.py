"""Folders that results are written to: checked before anything is computed, and used by one run at a time.

The lock is one of the operating system, on a hidden file that names the process that holds it: it ends with the
process, however that ends, and also holds between hosts where the file system supports that.
"""

import errno
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from utils.runtime.errors import InputError

JOURNAL_OF_MAIN = ".progress-0.jsonl"  # that of the main or only process
_LOCK_NAME = ".lock"
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # by another process; others are of file systems without locks
_LOCK_ATTEMPTS = 10  # another run that ends may remove an empty folder between two steps
_LOCKED_BYTE = 2**30  # Windows lets no other process read what is locked


@contextmanager
def output_folder(folder: Path, patience: float = 0) -> Iterator[None]:
    """Within the `with` block a folder exists and belongs to this run; if it is new and stays empty, it is removed.

    Args:
        folder: the folder.
        patience: seconds to wait for another run.

    Raises:
        InputError: it cannot be written, or another run is using it.
    """
    created = _make(folder)
    try:
        file = _lock(folder, time.monotonic() + patience)
        try:
            yield
        finally:
            _unlock(folder / _LOCK_NAME, file)
    finally:
        _remove_empty(created)


def journal_files(folder: Path) -> list[Path]:
    """The files of the journals of the runs that have written into a folder, see `utils.pipeline.journal`."""
    return [*folder.glob(".progress-*.jsonl")]


def folders_below(folder: Path, paths: Iterable[Path]) -> set[Path]:
    """The folders below `folder` in which these paths lie."""
    return {parent for path in paths for parent in path.parents if folder in parent.parents}


def recorded_results(folders: Iterable[Path]) -> set[Path]:
    """The files that the journals of these folders list as results of runs."""
    results = set()
    for folder in folders:
        for line in (line for path in journal_files(folder) for line in path.read_bytes().splitlines()):
            with suppress(ValueError, AttributeError):  # a line cut off by a kill, or of another program
                results.update(folder / name for name in json.loads(line).get("files", ()))
    return results


def holds_pictures(folder: Path) -> bool:
    """Whether a folder is that of the pictures of a review page."""
    if not folder.name.endswith("_files"):
        return False
    stem = folder.name.removesuffix("_files")
    return any(path.stem == stem and path.suffix.lower() in (".html", ".htm") for path in folder.parent.iterdir())


def check_writable(folder: Path) -> None:
    """Check that files can be written in a folder, or in a new one of that name.

    Raises:
        InputError: they cannot.
    """
    created = _make(folder)
    try:
        path = folder / f".{uuid.uuid4().hex}.part"
        path.touch(exist_ok=False)
        path.unlink()
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror})") from error
    finally:
        _remove_empty(created)


def check_room(folder: Path, needed: int, replaced: Iterable[Path] = ()) -> None:
    """Check that a file system has room for results.

    Args:
        folder: where they are written, or will be.
        needed: their size in bytes, or less.
        replaced: files that some of them replace.

    Raises:
        InputError: it has not.
    """
    for path in replaced:
        with suppress(OSError):
            needed -= path.stat().st_size
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free
    except (OSError, StopIteration):  # unknown
        return
    if needed > free:
        raise InputError(f"{folder} has room for {free / 1e9:.2f} GB, the results need {needed / 1e9:.2f} GB or more")


def _make(folder: Path) -> list[Path]:
    """Create a folder; returns what did not exist before, the deepest first."""
    for attempt in range(1, _LOCK_ATTEMPTS + 1):
        try:
            created = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            break
        except OSError as error:
            if isinstance(error, (FileExistsError, FileNotFoundError)) and attempt < _LOCK_ATTEMPTS:
                continue
            if os.path.lexists(folder) and not folder.is_dir():
                raise InputError(f"the output folder {folder} is a file, a folder was expected") from error
            raise InputError(f"the output folder {folder} cannot be created ({error.strerror})") from error
    return created


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _lock(folder: Path, deadline: float) -> BinaryIO:
    """The open file of the lock, which names this process."""
    path, missing = folder / _LOCK_NAME, 0
    while True:
        _make(folder)  # the run that held the lock may have removed it
        try:
            file = open(path, "a+b")  # noqa: SIM115 - open as long as the lock is held
        except OSError as error:
            missing += isinstance(error, FileNotFoundError)
            if isinstance(error, FileNotFoundError) and missing < _LOCK_ATTEMPTS:
                continue
            if isinstance(error, PermissionError) and os.path.lexists(path) and os.access(folder, os.W_OK):
                raise InputError(
                    f"{path} belongs to a run of another user: wait for its end, remove that file if the run was "
                    "killed, or choose another folder"
                ) from error
            raise InputError(f"{folder} cannot be written ({error.strerror})") from error
        missing = 0
        try:
            _lock_file(file)
        except OSError as error:
            if error.errno in _TAKEN:
                file.seek(0)
                holder = file.read(200).decode(errors="replace").strip() or "another process"
                file.close()
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                raise InputError(
                    f"{folder} is being written by another run ({holder}): wait for its end, or choose another folder"
                ) from error
        try:
            # Windows neither removes nor renames an open file, and some of its file systems have no stable numbers.
            if os.name == "nt" or os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                file.flush()
                return file
        except FileNotFoundError:  # the run that held it has removed it
            pass
        except OSError as error:
            _unlock(path, file)
            raise InputError(f"{folder} cannot be written ({error.strerror})") from error
        file.close()


def _lock_file(file: BinaryIO) -> None:
    """Lock a file for this process; a forked one, such as a worker, does not share the lock.

    Raises:
        OSError: another process has locked it, or the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(_LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _unlock(path: Path, file: BinaryIO) -> None:
    with suppress(OSError):  # Windows removes no open file
        path.unlink()
    with suppress(OSError):
        file.close()
    if os.name == "nt":
        with suppress(OSError):
            path.unlink()
