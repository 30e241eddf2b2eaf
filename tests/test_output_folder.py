"""Output folders: one run at a time, and checked before anything is computed."""

import errno
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from utils.runtime import output_folder as module
from utils.runtime.errors import InputError
from utils.runtime.output_folder import check_room, check_writable, output_folder

fork = multiprocessing.get_context("fork") if sys.platform == "linux" else None
needs_fork = pytest.mark.skipif(fork is None, reason="tried on Linux only")


def hold(folder: Path, held, release) -> None:
    with output_folder(folder):
        held.set()
        release.wait(30)


@contextmanager
def run_in(folder: Path) -> Iterator[tuple]:
    """A process that uses a folder, and the event that ends it."""
    held, release = fork.Event(), fork.Event()
    process = fork.Process(target=hold, args=(folder, held, release))
    process.start()
    try:
        assert held.wait(30)
        yield process, release
    finally:
        process.kill()
        process.join()


@needs_fork
def test_one_run_at_a_time(tmp_path: Path):
    with run_in(tmp_path / "o") as (process, release):
        expected = rf"o is being written by another run \(process {process.pid} on .+\): wait for its end"
        for patience in (0, 0.1):
            with pytest.raises(InputError, match=expected), output_folder(tmp_path / "o", patience):
                pass
        release.set()
        with output_folder(tmp_path / "o", patience=30):
            (tmp_path / "o" / "result").touch()
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["result"]


@needs_fork
def test_killed_run_leaves_no_lock(tmp_path: Path):
    with run_in(tmp_path / "o"):
        pass  # it is killed
    assert (tmp_path / "o" / ".lock").exists()
    with output_folder(tmp_path / "o"):
        assert f"process {os.getpid()} on" in (tmp_path / "o" / ".lock").read_text()
    assert list((tmp_path / "o").iterdir()) == []  # it was there before this run


def test_new_folder_that_stays_empty_is_removed(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), output_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
        raise ZeroDivisionError
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").touch()
    for check in (check_writable, lambda folder: output_folder(folder).__enter__()):
        with pytest.raises(InputError, match="file is a file, a folder was expected"):
            check(tmp_path / "file")
        with pytest.raises(InputError, match=r"file/o cannot be created \(Not a directory\)"):
            check(tmp_path / "file" / "o")


def test_folder_that_another_run_removes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mkdir = Path.mkdir
    refusals = [FileNotFoundError(errno.ENOENT, "No such file"), FileExistsError(errno.EEXIST, "File exists")] * 2

    def removed(path: Path, *arguments, **options) -> None:
        if refusals:
            raise refusals.pop()
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", removed)
    with output_folder(tmp_path / "o"):
        assert (tmp_path / "o").is_dir()
    assert not refusals
    assert list(tmp_path.iterdir()) == []


def test_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(file) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module, "_lock_file", fail)
    with output_folder(tmp_path / "o"):
        (tmp_path / "o" / "result").touch()
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["result"]


def test_lock_that_another_run_has_replaced_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One on a removed file would keep nobody out."""
    lock, replaced = module._lock_file, []

    def replace_first(file: BinaryIO) -> None:
        if not replaced:
            replaced.append(Path(file.name))
            replaced[0].unlink()
            replaced[0].touch()
        lock(file)

    monkeypatch.setattr(module, "_lock_file", replace_first)
    with output_folder(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()


def test_lock_that_cannot_be_created(tmp_path: Path):
    (tmp_path / ".lock").symlink_to(tmp_path / "nowhere" / "lock")
    with pytest.raises(InputError, match=r"cannot be written \(No such file or directory\)"), output_folder(tmp_path):
        pass


def test_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = type("Usage", (), {"free": 3_000_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    check_room(tmp_path, 3_000_000_000)
    with pytest.raises(InputError, match=r"has room for 3.00 GB, the results need 3.50 GB or more"):
        check_room(tmp_path, 3_500_000_000)
    (tmp_path / "old").write_bytes(b"0" * 1000)
    check_room(tmp_path, 3_000_001_000, [tmp_path / "old", tmp_path / "none"])
    monkeypatch.setattr("shutil.disk_usage", lambda folder: os.stat(tmp_path / "none"))
    check_room(tmp_path, 10**15)  # unknown


def test_lock_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / ".lock").write_text("process 1 on elsewhere\n")

    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(module, "open", refuse, raising=False)
    with pytest.raises(InputError, match=r"\.lock belongs to a run of another user"), output_folder(tmp_path):
        pass
    (tmp_path / ".lock").unlink()
    with pytest.raises(InputError, match="cannot be written"), output_folder(tmp_path):
        pass
