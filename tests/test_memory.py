"""What the system is asked for, and what Python looks for."""

import os
import platform
import subprocess
import sys

import pytest

from tests.conftest import ROOT

MAKE_TENSORS = """
import resource, torch
from utils.memory import keep_freed_memory

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        torch.ones(2**21), torch.ones(2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = page_faults()
keep_freed_memory()
page_faults()
print(before, page_faults())
"""


def test_freed_memory_is_used_again():
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    command = [sys.executable, "-c", MAKE_TENSORS]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    before, after = map(int, result.stdout.split())
    if platform.libc_ver()[0] == "glibc":
        assert after < before / 10
    assert after <= before + 100


@pytest.mark.parametrize(("before", "kept"), [("", True), ("import torch;", False), ("gc.disable();", False)])
def test_what_importing_pytorch_makes_is_no_garbage(before: str, kept: bool):
    code = (
        f"import gc; {before} was = gc.isenabled(); import utils; print(gc.get_freeze_count(), was == gc.isenabled())"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    count, as_before = result.stdout.split()
    assert as_before == "True"
    assert (int(count) > 100_000) == kept
