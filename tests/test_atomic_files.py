"""Atomic writes: a file is complete or does not exist."""

import csv
import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from utils.runtime import atomic_files
from utils.runtime.atomic_files import atomic_file, atomic_npy_file, check_replaceable, remove_partial_files, write_csv
from utils.runtime.errors import InputError


def test_failed_write_leaves_nothing(tmp_path: Path):
    path = tmp_path / "x.txt"
    with atomic_file(path) as file:
        file.write(b"first")
        assert not path.exists()
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write(b"second")
        raise RuntimeError
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_only_partial_files_are_removed(tmp_path: Path):
    kept = {tmp_path / name for name in ("x.txt", "x.part", ".other.part")}
    for path in kept:
        path.touch()
    with pytest.raises(FileNotFoundError, match=r"y\.txt"), atomic_file(tmp_path / "y.txt"):
        assert len(list(tmp_path.iterdir())) == 4
        remove_partial_files([tmp_path])  # as if the process had been killed before
        assert set(tmp_path.iterdir()) == kept
    assert set(tmp_path.iterdir()) == kept


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that another program has open: each of them is refused once, as on Windows."""
    files, replace = [], os.replace

    def refuse(source: Path, target: Path) -> None:
        if target in files:
            files.remove(target)
            raise PermissionError(errno.EACCES, "The file is being used by another process", str(source))
        replace(source, target)

    monkeypatch.setattr("os.replace", refuse)
    return files


def test_a_file_that_another_program_has_open_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[Path]
):
    path = tmp_path / "x.csv"
    monkeypatch.setattr(atomic_files, "_RENAMING_ATTEMPTS", 3)
    monkeypatch.setattr(atomic_files, "_PAUSE", 0)
    opened[:] = [path, path]
    write_csv(path, [{"a": 1}])
    opened[:] = [path, path, path]
    with pytest.raises(PermissionError, match=r"x\.csv"):
        write_csv(path, [{"a": 2}])
    assert path.read_text() == "a\n1\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_another_program_has_open(tmp_path: Path, opened: list[Path]):
    path = tmp_path / "x.csv"
    check_replaceable(path)
    path.write_text("a")
    check_replaceable(path)
    opened.append(path)
    with pytest.raises(InputError, match=r"x\.csv cannot be replaced \(The file is .*\): close it in other programs"):
        check_replaceable(path)
    assert path.read_text() == "a"


def test_npy_in_blocks(tmp_path: Path):
    array = np.random.default_rng(0).random((5, 2, 30, 40)).astype(np.float32)
    blocks = [(t, c, row) for t in range(5) for c in range(2) for row in range(0, 30, 10)]
    with atomic_npy_file(tmp_path / "x.npy", array.shape) as write, ThreadPoolExecutor(4) as pool:
        for t, c, row in reversed(blocks):
            block = array[t, c, row : row + 10]
            offset = np.ravel_multi_index((t, c, row, 0), array.shape)
            pool.submit(write, block.T.copy().T, offset)  # blocks need not be contiguous
    read = np.load(tmp_path / "x.npy")
    assert read.dtype == np.float32
    assert np.array_equal(read, array)


def test_full_disk_is_noticed_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def failing(code: int) -> Callable:
        def reserve(*_: int) -> None:
            raise OSError(code, os.strerror(code))

        return reserve

    monkeypatch.setattr(os, "posix_fallocate", failing(errno.ENOSPC), raising=False)
    with pytest.raises(OSError, match=r"No space.*x\.npy"), atomic_npy_file(tmp_path / "x.npy", (2, 3)):
        pytest.fail("something was computed")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.EOPNOTSUPP), raising=False)
    with atomic_npy_file(tmp_path / "x.npy", (2, 3)) as write:
        write(np.ones((2, 3)), 0)
    assert np.load(tmp_path / "x.npy").sum() == 6


def test_csv(tmp_path: Path):
    write_csv(tmp_path / "x.csv", [{"image": "a, b.jpg", "dice": 0.5}, {"image": "ü.jpg", "dice": 1.0}])
    write_csv(tmp_path / "y.csv", [{"image": os.fsdecode(b"l\xe9sion.jpg")}])  # a name that is not UTF-8
    assert (tmp_path / "y.csv").read_bytes() == b"image\nl\xe9sion.jpg\n"
    assert (tmp_path / "x.csv").read_text(encoding="utf-8") == 'image,dice\n"a, b.jpg",0.5\nü.jpg,1.0\n'


def test_csv_of_names_with_control_characters(tmp_path: Path):
    names = ["cr\rx.jpg", "lf\nx.jpg", "both\r\nx.jpg", "end\r", '"\r', "tab\tx.jpg"]
    write_csv(tmp_path / "x.csv", [{"image": name, "dice": 0.5} for name in names])
    with open(tmp_path / "x.csv", newline="") as file:
        assert [(row["image"], row["dice"]) for row in csv.DictReader(file)] == [(name, "0.5") for name in names]
