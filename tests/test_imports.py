"""Importing PyTorch through `utils` spares the garbage collector its objects."""

import subprocess
import sys

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
