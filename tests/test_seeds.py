"""Seeds that are derived from names."""

import os

from utils.runtime.seeds import derived_seed


def test_derived_seeds_differ():
    seeds = {derived_seed(seed, name) for seed in range(10) for name in ("a.jpg", "b.jpg", "0:a.jpg")}
    assert len(seeds) == 30
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_derived_seed_of_a_name_that_is_not_utf8():
    assert derived_seed(0, os.fsdecode(b"l\xe9sion.jpg")) >= 0


def test_derived_seed_is_reproducible():
    assert derived_seed(0, "a.jpg") == 3631673385855393483  # in every version, so that a study can be repeated
