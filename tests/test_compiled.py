"""Compiled networks, with compilers in place of the standard one, which takes minutes."""

import argparse
import importlib
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from tests.conftest import forked, lively_network, make_folders, make_image
from unet.mc_dropout import dropout_layers
from utils import cli
from utils.checkpoint import TrainedModel, save_checkpoint
from utils.inference.compiled import compile_model
from utils.inference.samplers import MCDropout, Sampler, Softmax, TestTimeAugmentation
from utils.models import combine_models
from utils.pipeline.items import find_items
from utils.pipeline.probability_maps import ProbabilityMapOptions, predict_probabilities
from utils.runtime.errors import InputError


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Callable]:
    """The networks that have been compiled, to themselves."""
    networks = []
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch, "compile", lambda forward, **options: networks.append(forward) or forward)
    monkeypatch.setattr("utils.inference.compiled.constant_weights", lambda device: nullcontext())
    return networks


def test_a_network_is_traced_once_for_all_threads(tmp_path: Path):
    """In a process of its own: one that has traced a network cannot fork others that train."""
    result = forked(["compiled"], tmp_path, check_tracing)
    assert result.returncode == 0, result.stderr


def check_tracing() -> None:
    traced = []  # the number of inputs of each graph

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        traced.append(len(inputs))
        return graph.forward

    model, sampler = TrainedModel(lively_network(), (32, 32)), MCDropout(num_samples=6)
    with patch("torch.compile", partial(torch.compile, backend=backend)):
        compiled = compile_model(model, sampler, Path("cache"))
    norms = [module for module in model.network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert traced == [1 + len(dropout_layers(model.network)) + 2 * len(norms)]  # the weights are constants
    inputs = [sampler.preprocess_image(make_image(i, (40, 30))[0], model.input_size) for i in range(4)]

    def sample(i: int) -> list[torch.Tensor]:
        return [logits for logits, _ in sampler.sample(compiled.replica(), [inputs[i]], [f"{i}.jpg"])[0]]

    with ThreadPoolExecutor(2, initializer=torch.get_num_threads) as pool:
        results = list(pool.map(sample, range(4)))
    assert len(traced) == 1
    for i, stacks in enumerate(results):
        expected = sampler.sample(model, [inputs[i]], [f"{i}.jpg"])[0]
        for found, (logits, _) in zip(stacks, expected, strict=True):
            torch.testing.assert_close(found, logits)


def test_each_member_of_an_ensemble_is_compiled(compiled: list[Callable]):
    model = combine_models({name: TrainedModel(lively_network(seed), (32, 32)) for seed, name in enumerate("ab")})
    sampler = MCDropout(num_samples=3)
    new_model, inputs = compile_model(model, sampler), sampler.preprocess_image(make_image(0, (40, 30))[0], (32, 32))
    expected, found = (sampler.sample(one, [inputs], ["a.jpg"])[0][0].logits for one in (model, new_model))
    torch.testing.assert_close(found, expected)
    assert len(compiled) == 2
    assert all(member.compiled for member in new_model.members)


@pytest.mark.parametrize("script", ["predict", "predict_bayesian", "predict_prob_bayesian"])
def test_scripts_compile_if_an_image_is_left(script: str, compiled: list[Callable], tmp_path: Path):
    module, (imgs, _) = importlib.import_module(script), make_folders(tmp_path, 2, (40, 30))
    save_checkpoint(tmp_path / "model.pth", TrainedModel(lively_network(), (32, 32)))

    def run(*flags: str) -> dict[str, bytes]:
        out = tmp_path / "compiled" if "--compile" in flags else tmp_path / "eager"
        passes = () if script == "predict" else ("--mc", "3")
        inputs = "--input" if script == "predict_bayesian" else "--input-dir"
        model = tmp_path / "model.pth"
        arguments = (inputs, imgs, "--output-dir", out, "-m", model, "--device", "cpu", *passes, *flags)
        assert module.main(module.get_args_parser().parse_args(list(map(str, arguments)))) == 0
        return {path.name: path.read_bytes() for path in out.glob("*.png")}

    expected = run()
    assert not compiled
    assert run("--compile") == expected
    assert len(compiled) == 1
    run("--compile", "--skip-existing")
    assert len(compiled) == 1


def test_nothing_is_compiled_for_a_run_that_cannot_be(compiled: list[Callable], tmp_path: Path):
    imgs, _ = make_folders(tmp_path, 1, (40, 30))
    items, options = find_items(imgs, tmp_path / "out", [".jpg"]), ProbabilityMapOptions(class_index=2, compile=True)
    with pytest.raises(InputError, match="class index 2"):
        predict_probabilities(TrainedModel(lively_network(), (32, 32)), Softmax(), items, tmp_path / "out", options)
    assert not compiled


@pytest.mark.parametrize(("chosen", "writable"), [(None, True), (None, False), ("elsewhere", True)])
@pytest.mark.usefixtures("compiled")
def test_the_code_is_kept(chosen: str | None, writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    if chosen:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", chosen)
    (tmp_path / "file").touch()
    cache = tmp_path / "new" if writable else tmp_path / "file" / "new"
    compile_model(TrainedModel(lively_network(), (32, 32)), Softmax(), cache)
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == (chosen or (str(cache) if writable else None))


@pytest.mark.usefixtures("compiled")
def test_without_a_compiler_it_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    def fail(*args: object) -> None:
        raise RuntimeError("No working C++ compiler found\nand much more")

    monkeypatch.setattr(torch, "compile", lambda forward, **options: fail)
    model = TrainedModel(lively_network(), (32, 32))
    with caplog.at_level(logging.WARNING):
        assert compile_model(model, Softmax()) is model
    assert caplog.messages == [
        "The network cannot be compiled here (No working C++ compiler found): continuing without"
    ]


@pytest.mark.parametrize(
    ("given", "sampler", "seconds", "suggested"),
    [
        (False, MCDropout(num_samples=20), 3000, True),
        (False, TestTimeAugmentation(), 3000, True),
        (False, MCDropout(num_samples=20), 1000, False),
        (False, MCDropout(num_samples=2), 3000, False),
        (True, MCDropout(num_samples=20), 3000, False),
    ],
)
def test_compiling_is_suggested_where_it_surely_pays(
    given: bool, sampler: Sampler, seconds: float, suggested: bool, monkeypatch: pytest.MonkeyPatch, caplog
):
    monkeypatch.setattr(time, "monotonic", iter([100.0, 100.0 + seconds]).__next__)
    args = argparse.Namespace(compile=given)
    with caplog.at_level(logging.INFO), cli.suggesting_compile(args, TrainedModel(lively_network()), sampler):
        pass
    assert ["--compile" in message for message in caplog.messages] == [True] * suggested
