"""Compiled networks, with compilers in place of the standard one, which takes minutes."""

import importlib
import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import forked, lively_network, make_folders, make_image
from utils.checkpoint import TrainedModel, save_checkpoint
from utils.inference.compiled import compile_model, compiling_pays
from utils.inference.samplers import MCDropout, Softmax
from utils.models import combine_models
from utils.pipeline.items import find_items
from utils.pipeline.probability_maps import ProbabilityMapOptions, predict_probabilities
from utils.runtime.errors import InputError
from utils.runtime.threads import one_torch_thread, torch_thread_pool


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Callable]:
    """The networks that have been compiled, to themselves."""
    networks = []
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch, "compile", lambda forward, **options: networks.append(forward) or forward)
    monkeypatch.setattr("utils.inference.compiled.compiler_settings", lambda device: nullcontext())
    return networks


def test_a_network_is_traced_once_for_all_threads(tmp_path: Path):
    """In a process of its own: one that has traced a network cannot fork others that train."""
    result = forked(["compiled"], tmp_path, check_tracing)
    assert result.returncode == 0, result.stderr


@one_torch_thread(torch.device("cpu"))  # a graph is for one number of threads
def check_tracing() -> None:
    traced = []  # the number of inputs of each graph

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        traced.append(len(inputs))
        return graph.forward

    model = combine_models({name: TrainedModel(lively_network(seed), (64, 64)) for seed, name in enumerate("ab")})
    sampler = MCDropout(num_samples=20)  # two batches of 16 for each image, the second one padded
    few = torch._dynamo.config.patch(recompile_limit=1)
    with patch("torch.compile", partial(torch.compile, backend=backend)), few:
        compiled, softmax = (compile_model(model, method, Path("cache")) for method in (sampler, Softmax()))
    norms = [module for module in model.network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    n_inputs = 2 + 2 * len(norms)  # image and masks; the weights are constants
    assert traced == [n_inputs, n_inputs, n_inputs - 1, n_inputs - 1]
    inputs = [sampler.preprocess_image(make_image(i, (40, 30))[0], model.input_size) for i in range(2)]

    def sample(i: int) -> torch.Tensor:
        return sampler.sample(compiled, [inputs[i]], [f"{i}.jpg"])[0][0].logits

    with torch_thread_pool(2) as pool:
        results = list(pool.map(sample, range(2)))
    with pytest.raises(RuntimeError, match="recompile"):  # in threads, a late compilation is neither safe nor wanted
        sampler.sample(compiled, [inputs[0][..., :32, :32]], ["0.jpg"])
    for i, found in enumerate(results):
        torch.testing.assert_close(found, sampler.sample(model, [inputs[i]], [f"{i}.jpg"])[0][0].logits)
    found, expected = (Softmax().sample(one, inputs[:1], [""])[0][0].logits for one in (softmax, model))
    torch.testing.assert_close(found, expected)
    assert len(traced) == 4


def test_smaller_batches_are_not_for_the_compiled_network():
    """As after the memory of a GPU has run out; a compiled network is for batches of one size."""
    sizes, model = [], TrainedModel(lively_network(), (32, 32))

    def compiled(x: torch.Tensor, masks: torch.Tensor | None) -> torch.Tensor:
        sizes.append(len(x))
        raise torch.OutOfMemoryError

    inputs = [torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)]
    sampler = MCDropout(num_samples=4, batch_size=4)
    expected = sampler.sample(model, inputs, ["a"])[0][0].logits
    found = sampler.sample(replace(model, compiled=compiled), inputs, ["a"])[0][0].logits
    torch.testing.assert_close(found, expected)
    assert sizes == [4]


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

    def run(*flags: str) -> dict[str, np.ndarray]:
        out = tmp_path / "compiled" if "--compile" in flags else tmp_path / "eager"
        passes = () if script == "predict" else ("--mc", "3")
        inputs = "--input" if script == "predict_bayesian" else "--input-dir"
        model = tmp_path / "model.pth"
        arguments = (inputs, imgs, "--output-dir", out, "-m", model, "--device", "cpu", *passes, *flags)
        assert module.main(module.get_args_parser().parse_args(list(map(str, arguments)))) == 0
        return {path.name: np.asarray(Image.open(path), dtype=int) for path in out.glob("*.png")}

    expected = run()
    assert not compiled
    found = run("--compile")
    assert found.keys() == expected.keys() != set()
    assert max(abs(found[name] - expected[name]).max() for name in found) <= 1
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


@pytest.mark.parametrize("at_first", [True, False])
@pytest.mark.usefixtures("compiled")
def test_without_a_compiler_it_is_said_in_one_line(
    at_first: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("No working C++ compiler found\nand much more")

    monkeypatch.setattr(torch, "compile", fail if at_first else lambda forward, **options: fail)
    model = TrainedModel(lively_network(), (32, 32))
    with caplog.at_level(logging.WARNING):
        assert compile_model(model, Softmax()) is model
    assert caplog.messages == [
        "The network cannot be compiled here (No working C++ compiler found): continuing without"
    ]


@pytest.mark.usefixtures("compiled")
def test_out_of_memory_is_no_lack_of_a_compiler(monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        compile_model(TrainedModel(lively_network(), (32, 32)), Softmax())


@pytest.mark.parametrize(
    ("n_passes", "device", "cores", "pays"),
    [(20_000, "cpu", 2, True), (19_999, "cpu", 2, False), (20_000, "cpu", 4, False), (10**9, "cuda", 1, False)],
)
def test_compiling_surely_pays_for_many_passes_on_each_core_of_a_cpu(
    n_passes: int, device: str, cores: int, pays: bool
):
    assert compiling_pays(n_passes, torch.device(device), cores) is pays


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.usefixtures("compiled")
def test_the_end_of_a_long_run_says_that_compiling_pays(
    compiling: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    numbers = []
    monkeypatch.setattr("utils.pipeline.folder_predictor.compiling_pays", lambda n, *args: numbers.append(n) or True)
    imgs, _ = make_folders(tmp_path, 2, (40, 30))
    items, options = find_items(imgs, tmp_path / "out", [".jpg"]), ProbabilityMapOptions(compile=compiling)
    model = TrainedModel(lively_network(), (32, 32))
    with caplog.at_level(logging.INFO):
        assert not predict_probabilities(model, MCDropout(num_samples=3), items, tmp_path / "out", options).failures
    said = "A run of so many forward passes, 6, is shorter with a compiled network"
    assert (said in caplog.messages, numbers) == ((False, []) if compiling else (True, [6]))
