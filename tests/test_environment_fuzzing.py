"""Random flags, environments and permissions: see `tests/benchmarks/environment_fuzzing.py`, which tries 10,000."""

import os
import random
from pathlib import Path

from tests.benchmarks.environment_fuzzing import Workplace, is_documented, run_once

RUNS = int(os.environ.get("FUZZ_EXAMPLES", "25"))


def test_every_run_ends_as_documented(tmp_path: Path):
    workplace, rng = Workplace(tmp_path), random.Random(0)
    for _ in range(RUNS):
        description, code, stderr = run_once(rng, workplace)
        assert is_documented(code, stderr), f"{description}\n{code}\n{stderr}"


def test_what_is_documented():
    assert is_documented(0, "Warning: x")
    assert is_documented(2, "Error: x")
    for code, stderr in ((0, "Traceback"), (2, "nothing said"), (3, "Error: x"), ("ValueError()", "Error: x")):
        assert not is_documented(code, stderr)
