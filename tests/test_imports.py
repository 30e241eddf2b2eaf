"""Importing `utils`: an old Python is told so, and the garbage collector is spared the objects of PyTorch."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize(("before", "frozen"), [("", True), ("import torch;", False), ("gc.disable();", False)])
def test_objects_of_pytorch_are_not_garbage_collected(before: str, frozen: bool):
    code = (
        f"import gc; {before} was = gc.isenabled(); import utils; print(gc.get_freeze_count(), was == gc.isenabled())"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    count, unchanged = result.stdout.split()
    assert unchanged == "True"
    assert (int(count) > 100_000) == frozen


def test_old_python_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit) as error:
        runpy.run_path(str(ROOT / "utils" / "__init__.py"))
    assert error.value.code == 2
    assert capsys.readouterr().err == "Error: Python 3.10 or newer is required, this is 3.9\n"


@pytest.mark.parametrize("path", [*ROOT.glob("*.py"), ROOT / "utils" / "__init__.py"], ids=lambda path: path.name)
def test_an_old_python_can_read_that_far(path: Path):
    """A file is read as a whole before it is run; what a script imports first of this project is `utils`."""
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 7))
    modules = [node.module.split(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert [module for module in modules if module in ("unet", "utils")][:1] in (["utils"], [])
