"""Weights & Biases: its mode, what is logged, and that its failures never stop a training."""

import json
import logging
import os
import socket
import struct
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, forked
from utils.training.tracking import WandbRun, has_login, is_reachable, panel_name

REACHABLE = is_reachable  # the tests do not ask the server


def example() -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    return [np.zeros((4, 4, 3), np.uint8)], [np.zeros((4, 4), np.uint8)], [np.zeros((4, 4), np.uint8)]


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("utils.training.tracking.is_reachable", lambda: True)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    caplog.set_level(logging.INFO)


def fake_wandb(monkeypatch: pytest.MonkeyPatch, **functions) -> None:
    module = types.ModuleType("wandb")
    module.Settings = dict
    module.Image = lambda *_, **__: "image"
    for name, function in functions.items():
        setattr(module, name, function)
    monkeypatch.setitem(sys.modules, "wandb", module)


def raising(*_: object, **__: object) -> None:
    raise RuntimeError("out of order")


def test_login_in_environment_and_netrc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert not has_login()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    assert has_login()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_login()
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert has_login()
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text("nonsense")
    assert not has_login()


@pytest.mark.parametrize("name", [".netrc", "_netrc"])
def test_login_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str):
    """`wandb login` writes _netrc on Windows."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC")
    assert not has_login()
    (tmp_path / "home" / name).write_text("machine api.wandb.ai login user password key\n")
    assert has_login()
    monkeypatch.setenv("NETRC", f"~/{name}")
    assert has_login()


def test_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    modes = []

    def init(**options):
        modes.append(options["mode"])
        raise RuntimeError

    fake_wandb(monkeypatch, init=init)
    WandbRun(None, {}, tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "key")
    WandbRun(None, {}, tmp_path)
    WandbRun("offline", {}, tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    WandbRun(None, {}, tmp_path)
    WandbRun("disabled", {}, tmp_path)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr("utils.training.tracking.is_reachable", lambda: False)
    WandbRun("online", {}, tmp_path)
    assert modes == ["offline", *("online", "offline"), "offline", "offline", "offline"]  # offline where online fails


@pytest.mark.parametrize("answer", ["HTTP/1.0 404 Not Found\r\n\r\n", "nonsense\r\n\r\n", None])
def test_server(answer: str | None, monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                if answer:
                    connection.sendall(answer.encode())

        thread = threading.Thread(target=serve)
        thread.start()
        assert REACHABLE(timeout=5) == (answer is not None and answer.startswith("HTTP"))
        thread.join()
        assert not REACHABLE(timeout=0.05)  # connected, but no answer
    for address in ("http://127.0.0.1:1", "nonsense"):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        assert not REACHABLE(timeout=0.05)


def test_environment_and_resumed_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    started = []

    def init(**options):
        started.append(options)
        functions = {name: (lambda *_, **__: None) for name in ("define_metric", "log", "finish")}
        return types.SimpleNamespace(id=f"id{len(started)}", dir=str(tmp_path / "run" / "files"), url="", **functions)

    fake_wandb(monkeypatch, init=init)
    WandbRun("offline", {}, tmp_path, resumed=True).finish()
    for resumed in (False, True, True):  # they end without an epoch
        run = WandbRun("offline", {}, tmp_path, resumed)
    run.log({"epoch": 1}, lambda: ([], [], []))
    WandbRun("offline", {}, tmp_path, resumed=True)
    assert [options.get("id") for options in started] == [None, None, "id1", "id1", "id4"]
    assert started[2]["resume"] == "allow"
    assert "resume" not in started[1]
    assert (started[0]["project"], started[0]["dir"]) == ("bayesian-unet", str(tmp_path))
    for name, value in {"WANDB_PROJECT": "mine", "WANDB_DIR": str(tmp_path), "WANDB_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    WandbRun("offline", {}, tmp_path, resumed=True)
    assert started[-1].keys() == {"config", "mode", "settings"}  # the rest is what wandb reads itself


def test_end_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    release = threading.Event()
    functions = {name: (lambda *_, **__: None) for name in ("define_metric", "log")}
    run = types.SimpleNamespace(id="7", dir=str(tmp_path / "files"), url="", finish=release.wait, **functions)
    fake_wandb(monkeypatch, init=lambda **_: run)
    WandbRun("offline", {}, tmp_path, patience=0.05).finish()
    release.set()
    assert f"wandb sync {tmp_path} uploads the rest" in caplog.text


def test_missing_wandb_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    monkeypatch.setitem(sys.modules, "wandb", None)  # what makes an import fail
    run = WandbRun(None, {}, tmp_path)
    run.log({"epoch": 1}, example)
    run.finish()
    assert caplog.text.count("continuing without it") == 1


@pytest.mark.parametrize("broken", ["init", "define_metric", "log", "finish"])
def test_broken_wandb_is_a_warning(
    broken: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    functions = {name: (lambda *_, **__: None) for name in ("define_metric", "log", "finish")}
    run = types.SimpleNamespace(id="7", dir=str(tmp_path / "files"), url="", **functions)
    setattr(run, broken, raising)
    fake_wandb(monkeypatch, init=raising if broken == "init" else lambda **_: run)
    tracked = WandbRun("offline", {"epochs": 1}, tmp_path)
    tracked.log({"epoch": 1}, example)
    tracked.log({"epoch": 2}, example)
    tracked.finish()
    assert caplog.text.count("out of order") == 1


def test_numbers_are_logged_without_the_images(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    logged = []
    functions = {name: (lambda *_, **__: None) for name in ("define_metric", "finish")}
    run = types.SimpleNamespace(id="7", dir=str(tmp_path / "run" / "files"), url="", log=logged.append, **functions)
    fake_wandb(monkeypatch, init=lambda **_: run, Image=raising)
    tracked = WandbRun("offline", {}, tmp_path)
    for epoch, examples in ((1, example), (2, pytest.fail)):  # which are not predicted again
        tracked.log({"epoch": epoch, "val_dice": 0.5}, examples)
    assert logged == [{"epoch": 1, "val/dice": 0.5}, {"epoch": 2, "val/dice": 0.5}]
    assert caplog.text.count("cannot log the example predictions") == 1


def test_logged_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    logged = []
    functions = {name: (lambda *_, **__: None) for name in ("define_metric", "finish")}
    run = types.SimpleNamespace(id="7", dir=str(tmp_path / "run" / "files"), url="", log=logged.append, **functions)
    fake_wandb(monkeypatch, init=lambda **_: run)
    tracked = WandbRun("offline", {}, tmp_path)
    tracked.log({"epoch": 1, "val_dice": 0.5}, example)
    tracked.finish()
    assert logged == [{"epoch": 1, "val/dice": 0.5, "val/examples": ["image"]}]
    assert f"wandb sync {tmp_path / 'run'}" in caplog.text  # logged at the start, in case the run is stopped


def test_examples_that_nobody_sees_are_not_predicted(tmp_path: Path):
    WandbRun("disabled", {}, tmp_path).log({"epoch": 1}, pytest.fail)


def test_panel_names():
    assert [panel_name(name) for name in ("epoch", "train_loss", "val_dice", "val_accuracy_all_background")] == [
        "epoch",
        "train/loss",
        "val/dice",
        "val/accuracy_all_background",
    ]


def records(path: Path) -> list:
    """The records of an offline run's file, a LevelDB log: fragments in blocks of 32 kB, after a header."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    found, record, at = [], b"", 7
    while at + 7 <= len(content):
        if at % 32768 > 32768 - 7:  # no room for another fragment in this block
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the only fragment of a record, or its last one
            found.append(Record.FromString(record))
            record = b""
    return found


def test_offline_run(tmp_path: Path):
    """The file that the installed wandb writes."""

    def track() -> None:
        run = WandbRun("offline", {"epochs": 3, "augmentation": "light"}, tmp_path)
        image, mask = np.full((8, 8, 3), 200, np.uint8), np.eye(8, dtype=np.uint8)
        for epoch, dice in ((1, 0.25), (2, 0.75), (3, 0.5)):
            run.log({"epoch": epoch, "train_loss": 1 / epoch, "val_dice": dice}, lambda: ([image], [mask], [1 - mask]))
        run.finish()

    result = forked(["track"], ROOT, track)
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    found = records(path)
    (run,) = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (run.project, config["epochs"], config["augmentation"]) == ("bayesian-unet", 3, "light")

    def values(items) -> dict:
        return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}

    history = [values(r.history.item) for r in found if r.WhichOneof("record_type") == "history"]
    assert [row["val/dice"] for row in history] == [0.25, 0.75, 0.5]
    assert [row["epoch"] for row in history] == [1, 2, 3]
    summary = {}
    for record in found:
        if record.WhichOneof("record_type") == "summary":
            summary |= values(record.summary.update)
    assert summary.get("val/dice") == {"max": 0.75} or summary.get("val/dice/max") == 0.75  # by version
    masks = list(tmp_path.glob("wandb/offline-run-*/files/media/images/mask/**/*.mask.png"))
    assert len({mask.read_bytes() for mask in masks}) == 2  # ground truth and prediction
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/**/*.png"))
