"""Weights & Biases: which mode, and that nothing of it can stop a training."""

import logging
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from utils.tracking import WandbRun, has_login

EXAMPLE = ([np.zeros((4, 4, 3), np.uint8)], [np.zeros((4, 4), np.uint8)], np.zeros((1, 4, 4), np.uint8))


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    caplog.set_level(logging.INFO)


def fake_wandb(monkeypatch: pytest.MonkeyPatch, **functions) -> None:
    module = types.ModuleType("wandb")
    module.Settings = dict
    module.Image = lambda *_, **__: "picture"
    for name, function in functions.items():
        setattr(module, name, function)
    monkeypatch.setitem(sys.modules, "wandb", module)


def raising(*_: object, **__: object) -> None:
    raise RuntimeError("out of order")


def test_a_login_is_found_in_the_environment_and_in_netrc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
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


def test_the_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked = []

    def init(**options):
        asked.append(options["mode"])
        raise RuntimeError

    fake_wandb(monkeypatch, init=init)
    WandbRun(None, {}, tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "key")
    WandbRun(None, {}, tmp_path)
    WandbRun("offline", {}, tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    WandbRun(None, {}, tmp_path)
    WandbRun("disabled", {}, tmp_path)
    assert asked == ["offline", "online", "offline", "offline"]


def test_a_missing_wandb_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setitem(sys.modules, "wandb", None)  # what makes an import fail
    run = WandbRun(None, {}, tmp_path)
    run.log({"epoch": 1}, *EXAMPLE)
    run.finish()
    assert caplog.text.count("going on without it") == 1


@pytest.mark.parametrize("broken", ["init", "define_metric", "log", "finish"])
def test_a_broken_wandb_is_a_warning(
    broken: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    functions = {name: (lambda *_, **__: None) for name in ("define_metric", "log", "finish")}
    run = types.SimpleNamespace(dir=str(tmp_path / "files"), url="", **functions)
    setattr(run, broken, raising)
    fake_wandb(monkeypatch, init=raising if broken == "init" else lambda **_: run)
    tracked = WandbRun("offline", {"epochs": 1}, tmp_path)
    tracked.log({"epoch": 1}, *EXAMPLE)
    tracked.log({"epoch": 2}, *EXAMPLE)
    tracked.finish()
    assert caplog.text.count("out of order") == 1


def test_what_is_logged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    logged = []
    functions = {name: (lambda *_, **__: None) for name in ("define_metric", "finish")}
    run = types.SimpleNamespace(dir=str(tmp_path / "run" / "files"), url="", log=logged.append, **functions)
    fake_wandb(monkeypatch, init=lambda **_: run)
    tracked = WandbRun("offline", {}, tmp_path)
    tracked.log({"epoch": 1, "val_dice": 0.5}, *EXAMPLE)
    tracked.finish()
    assert logged == [{"epoch": 1, "val_dice": 0.5, "examples": ["picture"]}]
    assert f"wandb sync {tmp_path / 'run'}" in caplog.text  # said at the start, for those who stop it
