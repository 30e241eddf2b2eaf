"""Several processes: collectives, batch norm over all of them, and the scripts under torchrun against one process."""

import csv
import multiprocessing
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePath

import pytest
import torch
import torch.distributed as dist

from tests.conftest import ENVIRONMENT, ROOT, make_folders, run_script
from tests.forking import ForkedProcess, run_forked
from utils.checkpoint import read_checkpoint
from utils.pipeline.image_loop import ImageLoop
from utils.pipeline.items import Item
from utils.pipeline.journal import Journal
from utils.runtime import distributed
from utils.runtime.errors import InputError
from utils.training.data_parallel import CPUBatchNorm, GPUBatchNorm, data_parallel


def in_two_processes(
    script: str, *arguments: object, before: Callable[[], object] = lambda: None
) -> list[subprocess.CompletedProcess]:
    """Run a script to its end in two processes that are forked from this one, with the variables that torchrun sets.

    `before` is called in both of them before the script begins.
    """
    path = str(ROOT / script)

    def run() -> None:
        before()
        runpy.run_path(path, run_name="__main__")

    return run_forked([[path, *map(str, arguments)]] * 2, run, ROOT, environments_of_two())


def environments_of_two() -> list[dict[str, str]]:
    """The variables of two processes, as torchrun sets them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**ENVIRONMENT, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


def torchrun(script: str | Path, *arguments: object) -> list[subprocess.CompletedProcess]:
    """Run a script to its end with torchrun in two processes, as in the README; one result for both."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", ROOT / script]
    return [
        subprocess.run(
            list(map(str, [*command, *arguments])),
            capture_output=True,
            text=True,
            timeout=240,
            env=ENVIRONMENT,
            cwd=ROOT,
        )
    ]


def printed(results: list[subprocess.CompletedProcess]) -> tuple[str, str]:
    """What the processes of a run have written to standard output and error."""
    return "".join(result.stdout for result in results), "".join(result.stderr for result in results)


def in_processes(work, sizes: list[int], folder: Path) -> list:
    """The results of `work(rank, size)` in a group of forked processes."""
    context = multiprocessing.get_context("fork")

    def run(rank: int, size: int) -> None:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(len(sizes)), LOCAL_RANK=str(rank))
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(sizes))
        torch.save(work(rank, size), folder / f"{rank}.pt")
        dist.destroy_process_group()

    processes = [context.Process(target=run, args=pair) for pair in enumerate(sizes)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(len(sizes))]


@pytest.mark.parametrize("sizes", [[3, 3], [4, 2], [5, 0]])
def test_batch_norm_over_all_processes(tmp_path: Path, sizes: list[int]):
    torch.manual_seed(0)
    x, weight = torch.randn(sum(sizes), 4, 5, 6) * 3 + 1, torch.randn(sum(sizes), 4, 5, 6)

    def forward(layer: torch.nn.Module, part: slice) -> list[torch.Tensor]:
        mine = x[part].clone().requires_grad_()
        out = layer(mine)
        (out * weight[part]).sum().backward()
        return [out.detach(), mine.grad]

    def work(rank: int, size: int) -> list[torch.Tensor]:
        layer = CPUBatchNorm(4)
        first = sum(sizes[:rank])
        results = forward(layer, slice(first, first + size))
        return [*results, layer.running_mean, layer.running_var]

    layer = torch.nn.BatchNorm2d(4)
    expected = forward(layer, slice(None))
    parts = in_processes(work, sizes, tmp_path)
    for i in range(2):
        torch.testing.assert_close(torch.cat([part[i] for part in parts]), expected[i], atol=1e-5, rtol=1e-4)
    for part in parts:
        torch.testing.assert_close(part[2], layer.running_mean)
        torch.testing.assert_close(part[3], layer.running_var)


def test_collectives(tmp_path: Path):
    def work(rank: int, size: int) -> dict:
        return {
            "gathered": distributed.all_gather({"rank": rank}),
            "sum": distributed.sum_over_processes(torch.tensor([1.0, rank])).tolist(),
            "any": [distributed.any_process(rank == 1), distributed.any_process(False)],
            "main": distributed.is_main(),
        }

    first, second = in_processes(work, [0, 0], tmp_path)
    assert first.pop("main")
    assert not second.pop("main")
    assert first == second == {"gathered": [{"rank": 0}, {"rank": 1}], "sum": [2.0, 1.0], "any": [True, False]}


def test_single_process():
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.all_gather(5) == [5]
    assert distributed.sum_over_processes(torch.tensor(3)) == 3
    network = torch.nn.BatchNorm2d(3)
    assert data_parallel(network) is network


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
TORCHRUN |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def test_torchrun_is_recognised_by_all_of_its_variables(monkeypatch: pytest.MonkeyPatch):
    assert distributed.started_by_torchrun(TORCHRUN)
    for name in TORCHRUN:
        left_over = {other: value for other, value in TORCHRUN.items() if other != name}
        assert not distributed.started_by_torchrun(left_over)
        assert not distributed.started_by_torchrun(left_over | {name: ""})
    for changed in ({"RANK": "4"}, {"WORLD_SIZE": "x"}, {"LOCAL_RANK": "-1"}, {"LOCAL_WORLD_SIZE": "5"}):
        assert not distributed.started_by_torchrun(TORCHRUN | changed)
    for left_over in ("4", "", "x"):
        monkeypatch.setenv("WORLD_SIZE", left_over)
        with distributed.process_group():
            assert (distributed.world_size(), distributed.processes_on_host()) == (1, 1)


def test_processes_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch):
    def refuse(backend: str) -> None:
        raise dist.DistNetworkError("The client socket has failed to connect\nmore")

    monkeypatch.setattr(dist, "init_process_group", refuse)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    expected = "cannot be reached at localhost:29500 (The client socket has failed to connect)"
    with pytest.raises(InputError, match=re.escape(expected)), distributed.process_group():
        pass


def test_two_processes_train_and_resume_like_one(tmp_path: Path, lively_file: Path):
    imgs, masks = make_folders(tmp_path, 8, (48, 40))  # 6 for training, in batches of 5 and 1: one process gets none
    data = ["--imgs-dir", imgs, "--masks-dir", masks, "--cache-dir", tmp_path / "cache", "--wandb", "disabled"]
    common = [*data, "--validation", 25, "--batch-size", 5, "--epochs", 2, "--newW", 64, "--newH", 64]
    new = [*common, "--load", lively_file]
    result = run_script("train_bayesian.py", *new, "--checkpoint-dir", tmp_path / "one")
    assert result.returncode == 0, result.stderr
    results = in_two_processes("train_bayesian.py", *new, "--checkpoint-dir", tmp_path / "two")
    _, logged = printed(results)
    assert [result.returncode for result in results] == [0, 0], logged
    assert logged.count("Training on 6 images, validating on another 2") == 1  # one of them logs
    assert "Warning" not in logged.replace("Warning: The temperature ", "")  # which two epochs do not fit
    rows = []
    for name in ("one", "two"):
        with open(tmp_path / name / "metrics.csv", newline="") as file:
            rows.append([{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)])
    for row, other in zip(*rows, strict=True):
        assert row == pytest.approx(other, abs=1e-4)
    one, two = (read_checkpoint(tmp_path / name / "last.pth")["network"] for name in ("one", "two"))
    difference = sum((value - two[name]).double().norm() ** 2 for name, value in one.items()) ** 0.5
    assert difference < 5e-3 * sum(value.double().norm() ** 2 for value in one.values()) ** 0.5
    assert {p.name for p in (tmp_path / "one").iterdir()} == {p.name for p in (tmp_path / "two").iterdir()}

    interrupted = tmp_path / "interrupted"
    results = in_two_processes(
        "train_bayesian.py", *new, "--checkpoint-dir", interrupted, before=terminate_in_first_epoch
    )
    _, logged = printed(results)
    assert [result.returncode for result in results] == [143, 143], logged
    assert logged.count(f"Saved {interrupted / 'last.pth'}; continue with --resume") == 1
    assert "Epoch 1/2" not in logged
    results = in_two_processes("train_bayesian.py", *common, "--checkpoint-dir", interrupted, "--resume")
    assert [result.returncode for result in results] == [0, 0], printed(results)
    three = read_checkpoint(interrupted / "last.pth")["network"]
    assert all(torch.equal(value, three[name]) for name, value in two.items())
    assert (interrupted / "metrics.csv").read_bytes() == (tmp_path / "two" / "metrics.csv").read_bytes()


def terminate_in_first_epoch() -> None:
    """Have the first process, which others have to follow, terminated during its first step."""
    if os.environ["RANK"] == "0":
        backward = torch.Tensor.backward
        torch.Tensor.backward = lambda loss, **options: (backward(loss, **options), signal.raise_signal(signal.SIGTERM))


@pytest.mark.parametrize(
    ("script", "launch"), [("predict.py", torchrun), ("predict_prob_bayesian.py", in_two_processes)]
)
def test_two_processes_predict_like_one(script: str, launch, tmp_path: Path, model_file: Path):
    imgs, masks = make_folders(tmp_path, 7, (50, 40))
    more = ["--mc", 3] if "bayes" in script else []
    common = ["--input-dir", imgs, "--mask-dir", masks, "-m", model_file, *more]
    one = run_script(script, *common, "--output-dir", tmp_path / "one")
    two = launch(script, *common, "--output-dir", tmp_path / "two")
    stdout, stderr = printed(two)
    assert {one.returncode, *(result.returncode for result in two)} == {0}, stderr
    assert one.stdout == stdout
    names = {path.name for path in (tmp_path / "one").glob("[!.]*")}
    assert names == {path.name for path in (tmp_path / "two").glob("[!.]*")}
    assert len(names) == 7 + 3  # summary.csv, metrics.csv, metrics.json
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    (imgs / "SKIN_004.jpg").write_bytes(b"broken")
    results = in_two_processes(script, *common, "--output-dir", tmp_path / "three", "--review")
    assert (tmp_path / "three" / "review.html").is_file()  # by the first process alone
    assert any(result.returncode != 0 for result in results)
    assert printed(results)[1].count("SKIN_004.jpg: ") == 1
    assert len(list((tmp_path / "three").glob("*_OUT.png"))) == 6


@pytest.mark.parametrize("error", ["InputError('one clear line')", "ValueError('a bug')"])
def test_failed_process_does_not_wait_for_the_others(error: str, tmp_path: Path):
    """Leaving the group could wait for them, while they wait for this one."""
    script, environments = tmp_path / "script.py", environments_of_two()
    script.write_text(
        f"""
import argparse, sys, time
sys.path.insert(0, {str(ROOT)!r})
from utils import cli
from utils.runtime import distributed
from utils.runtime.errors import InputError

def main(args):
    distributed.all_gather(1)
    if distributed.is_main():
        raise {error}
    time.sleep(120)  # as one that waits in a collective

cli.run(main, argparse.ArgumentParser())
"""
    )
    run = partial(runpy.run_path, str(script), run_name="__main__")
    with (
        open(os.devnull, "w") as nowhere,
        ForkedProcess([str(script)], run, ROOT, environments[1], nowhere, nowhere) as other,
    ):
        command = [sys.executable, script]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environments[0])
        assert other.poll() is None
        other.kill()
    assert result.returncode == (2 if "InputError" in error else 1)
    assert ("Error: one clear line" if "InputError" in error else "ValueError: a bug") in result.stderr
    assert ("Traceback" in result.stderr) == ("ValueError" in error)


def test_others_wait_while_the_main_process_decodes(tmp_path: Path):
    def work(rank: int, size: int) -> bool:
        mark = tmp_path / "decoded"
        with distributed.main_first():
            if rank == 0:
                time.sleep(0.5)
                mark.touch()
            return mark.exists()

    assert in_processes(work, [0, 0], tmp_path) == [True, True]


def test_others_do_not_wait_for_a_main_process_that_has_failed(tmp_path: Path):
    def work(rank: int, size: int) -> str:
        try:
            with distributed.main_first():
                if rank == 0:
                    raise ValueError
                return "done"
        except ValueError:
            return "failed"

    assert in_processes(work, [0, 0], tmp_path) == ["failed", "done"]


def test_summary_at_a_stop_has_the_images_of_all_processes(tmp_path: Path):
    items = [Item(tmp_path / name, PurePath(name)) for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")]
    out = tmp_path / "out"
    out.mkdir()

    def work(rank: int, size: int) -> list[str]:
        written: list[list[str]] = [[]]
        write = lambda rows: written.append([row["image"] for row in rows])  # noqa: E731
        loop = ImageLoop(items, journal=Journal(out, {}, items, resume=False), write_rows=write)

        def predict(share: Sequence[Item], handled: Callable[[int], bool]) -> None:
            for item in share[:2]:
                item.output(out).touch()
                loop.finish(item, {"area": 1}, [item.output(out)])
            distributed.all_gather(None)
            raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            loop.run(predict)
        return written[-1]

    assert in_processes(work, [0, 0], tmp_path) == [["a.jpg", "b.jpg", "c.jpg", "d.jpg"], []]


def test_batch_norm_of_the_device(monkeypatch: pytest.MonkeyPatch):
    """PyTorch's own on a GPU, this project's on a CPU, with the same parameters and buffers."""
    monkeypatch.setattr("utils.training.data_parallel.world_size", lambda: 2)
    monkeypatch.setattr("utils.training.data_parallel.DistributedDataParallel", lambda network, device_ids: network)
    for device, kind in (("cuda", GPUBatchNorm), ("cpu", CPUBatchNorm)):
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
        state = network.state_dict(keep_vars=True)
        with monkeypatch.context() as patched:
            patched.setattr(torch.nn.Parameter, "device", torch.device(device), raising=False)
            converted = data_parallel(network)
        assert type(converted[1]) is kind
        assert all(value is state[name] for name, value in converted.state_dict(keep_vars=True).items())


def test_statistics_of_no_images_are_sent_in_the_dtype_of_others(monkeypatch: pytest.MonkeyPatch):
    """NCCL does not compare dtypes, and would wait for bytes that never come."""
    sent = []
    monkeypatch.setattr("torch.nn.SyncBatchNorm.forward", lambda self, x: sent.append(x.dtype) or x)
    norm = GPUBatchNorm(4)
    for n in (0, 2):
        x = torch.zeros(n, 4, 3, 3, dtype=torch.bfloat16)
        y = norm(x)
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert sent == [torch.float32, torch.bfloat16]


def test_group_is_destroyed_unless_there_was_an_error(monkeypatch: pytest.MonkeyPatch):
    """With NCCL, destroying it waits for the other processes."""
    calls = []
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    for name in ("init_process_group", "new_group", "barrier", "destroy_process_group"):
        monkeypatch.setattr(f"torch.distributed.{name}", lambda *_, name=name, **__: calls.append(name))
    with distributed.process_group():
        pass
    assert calls == ["init_process_group", "new_group", "barrier", "destroy_process_group"]
    calls.clear()
    with pytest.raises(ZeroDivisionError), distributed.process_group():
        raise ZeroDivisionError
    assert calls == ["init_process_group", "new_group"]
