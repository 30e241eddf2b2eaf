"""The choice of the device and the precision, and batches that are halved when memory runs out."""

import gc
import re
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch.cuda._utils import _get_device_index

from utils.runtime import device
from utils.runtime.device import amp_dtype, choose_device, in_batches, memory_format, precision_name
from utils.runtime.errors import InputError

# -- device ------------------------------------------------------------------------------------------------------------


GPU_IS_FULL = torch.OutOfMemoryError("CUDA out of memory")
FIRST_TENSOR = SimpleNamespace(device=torch.device("cuda:0"), tolist=list)


def test_choose_device():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device().type in ("cuda", "cpu")
    for name in ("toaster", "cuda:99"):
        with pytest.raises(InputError, match=f"device {name} is not available; available: .*cpu"):
            choose_device(name)


def test_mps_has_to_be_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert choose_device() == torch.device("cpu")
    with pytest.raises(InputError, match=r"available: .*mps, cpu"):
        choose_device("toaster")
    assert memory_format(torch.device("cpu")) == memory_format(torch.device("cuda")) == torch.channels_last
    assert memory_format(torch.device("mps")) == torch.contiguous_format


@pytest.mark.parametrize("name", [None, "cuda", "cuda:0"])
def test_cuda_device_has_its_index(name: str | None, monkeypatch: pytest.MonkeyPatch):
    """`torch.cuda.set_device` takes no device without one."""
    chosen, threads = [], []
    monkeypatch.setattr("torch.backends.cudnn.allow_tf32", True)
    torch.backends.cuda.matmul.allow_tf32 = True  # as with NVIDIA's TORCH_ALLOW_TF32_CUBLAS_OVERRIDE
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.zeros", lambda *_, device: FIRST_TENSOR)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: chosen.append(_get_device_index(device)))
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    assert choose_device(name) == torch.device("cuda:0")
    assert threads == [1]
    assert chosen == [0]
    assert not torch.backends.cudnn.allow_tf32  # single precision is what it says
    assert not torch.backends.cuda.matmul.allow_tf32


def test_each_process_of_a_host_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.zeros", lambda *_, device: asked.append(device) or torch.ones(1))
    for name, value in (("world_size", 16), ("rank", 9), ("local_rank", 1)):  # the second one of the second host
        monkeypatch.setattr(f"utils.runtime.distributed.{name}", lambda value=value: value)
    choose_device()
    choose_device("cuda")
    assert asked == ["cuda:1", "cuda:1"]


def test_device_that_cannot_be_set(monkeypatch: pytest.MonkeyPatch):
    def refuse(device: torch.device) -> None:
        raise ValueError("Expected a torch.device with a specified index")

    monkeypatch.setattr("torch.zeros", lambda *_, device: FIRST_TENSOR)
    monkeypatch.setattr("torch.cuda.set_device", refuse)
    with pytest.raises(InputError, match="device cuda is not available"):
        choose_device("cuda")


@pytest.mark.parametrize(
    "reason",
    ["no kernel image is available for execution on the device", "all CUDA-capable devices are busy", "out of memory"],
)
def test_gpu_that_fails_at_its_first_use(
    reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail() -> None:
        raise RuntimeError(f"CUDA error: {reason}\nCUDA kernel errors might be asynchronously reported")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    monkeypatch.setattr("torch.zeros", lambda *_, device: SimpleNamespace(device=FIRST_TENSOR.device, tolist=fail))
    with pytest.raises(InputError, match=rf"^device cuda:0 cannot be used \(CUDA error: {reason}\)$"):
        choose_device("cuda:0")
    assert choose_device() == torch.device("cpu")
    assert f"The CUDA device cannot be used (CUDA error: {reason}): using the CPU" in caplog.text


def test_processes_cannot_share_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("utils.runtime.distributed.world_size", lambda: 2)
    with pytest.raises(InputError, match="uses its own GPU"):
        choose_device("cuda:1")


# -- precision ---------------------------------------------------------------------------------------------------------


def test_mixed_precision_on_a_cpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    cpu = torch.device("cpu")
    assert amp_dtype(cpu, False) is None
    monkeypatch.setattr(device, "cpu_has_bfloat16", lambda: True)
    assert amp_dtype(cpu, True) is torch.bfloat16
    assert not caplog.text
    monkeypatch.setattr(device, "cpu_has_bfloat16", lambda: False)
    assert amp_dtype(cpu, True) is None
    assert "is not faster on this CPU" in caplog.text


def test_mixed_precision_on_cuda(monkeypatch: pytest.MonkeyPatch):
    cuda = torch.device("cuda")
    for supported, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported, **_: supported)
        assert amp_dtype(cuda, True) is dtype


# -- batches -----------------------------------------------------------------------------------------------------------


class LimitedMemory:
    """Squares its inputs as long as there are at most `limit` of them, and records how many were tried."""

    def __init__(self, n: int, limit: int, error: RuntimeError = GPU_IS_FULL) -> None:
        self.inputs = torch.arange(2.0 * n).view(n, 2)
        self.limit, self.error = limit, error
        self.tried: list[int] = []

    def __call__(self, part: slice) -> torch.Tensor:
        inputs = self.inputs[part]
        self.tried.append(len(inputs))
        if len(inputs) > self.limit:
            raise self.error
        return inputs**2


@pytest.mark.parametrize(
    ("n", "batch_size", "limit", "sizes"),
    [
        (10, 4, 4, [4, 4, 2]),
        (3, 8, 8, [3]),
        (10, 8, 3, [8, 4, 2, 2, 2, 2, 2]),
        (5, 8, 4, [5, 2, 2, 1]),
        (7, 7, 1, [7, 3, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_batches_are_halved_out_of_memory(
    n: int, batch_size: int, limit: int, sizes: list[int], caplog: pytest.LogCaptureFixture
):
    compute = LimitedMemory(n, limit)
    assert torch.equal(in_batches(compute, n, batch_size), compute.inputs**2)
    assert compute.tried == sizes
    assert len(caplog.records) == sum(size > limit for size in sizes)
    if limit < sizes[0]:
        assert f"a batch of {sizes[0]}: continuing with batches of {sizes[0] // 2}" in caplog.messages[0]


def test_memory_runs_out_halfway():
    compute = LimitedMemory(10, 4)

    def shrinking(part: slice) -> torch.Tensor:
        compute.limit = 4 if part.start < 4 else 2  # another program takes some
        return compute(part)

    assert torch.equal(in_batches(shrinking, 10, 4), compute.inputs**2)
    assert compute.tried == [4, 4, 2, 2, 2]


@pytest.mark.parametrize(
    ("message", "sizes"),
    [
        ("MPS backend out of memory (MPS allocated: 1 GB)", [4, 2, 2]),
        ("CUDA error: out of memory", [4, 2, 2]),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", [4, 2, 2]),
        ("GET was unable to find an engine to execute this computation", [4, 2, 2]),
        ("view size is not compatible", [4]),
        ("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory", [4]),
    ],
)
def test_errors_without_a_type_of_their_own(message: str, sizes: list[int]):
    compute = LimitedMemory(4, 2, RuntimeError(message))
    if len(sizes) > 1:
        assert torch.equal(in_batches(compute, 4, 4), compute.inputs**2)
    else:
        with pytest.raises(RuntimeError, match=re.escape(message)):
            in_batches(compute, 4, 4)
    assert compute.tried == sizes


@pytest.mark.parametrize(("n", "sizes"), [(1, [1]), (8, [8, 4, 2, 1])])
def test_single_input_out_of_memory(n: int, sizes: list[int]):
    compute = LimitedMemory(n, 0)
    with pytest.raises(torch.OutOfMemoryError):
        in_batches(compute, n, 8)
    assert compute.tried == sizes


def test_failed_batch_is_freed_before_the_next(monkeypatch: pytest.MonkeyPatch):
    activations: list[weakref.ref] = []
    emptied = []

    def compute(part: slice) -> torch.Tensor:
        activation = torch.ones(part.stop - part.start)
        activations.append(weakref.ref(activation))
        if len(activation) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return activation

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: emptied.append(activations[-1]() is None))
    gc.disable()  # which could free it by chance
    try:
        assert in_batches(compute, 4, 4).tolist() == [1, 1, 1, 1]
    finally:
        gc.enable()
    assert emptied == [True, True]


def test_precision_names():
    cuda, cpu = torch.device("cuda:0"), torch.device("cpu")
    assert precision_name(None, cpu) == "single precision"
    assert precision_name(None, cuda) == "single precision (float32, without TF32)"
    assert precision_name(torch.bfloat16, cuda) == "mixed precision (bfloat16)"


# -- transfers ---------------------------------------------------------------------------------------------------------


def test_values_are_read_when_they_have_arrived(monkeypatch: pytest.MonkeyPatch):
    """Those of a GPU, and nothing that it computes later is waited for."""
    happened, gpu = [], torch.device("cuda:1")
    event = SimpleNamespace(record=happened.append, synchronize=lambda: happened.append("waited"))
    monkeypatch.setattr("torch.cuda.Event", lambda: event)
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: f"stream of {device}")
    copied = SimpleNamespace(tolist=lambda: happened.append("read") or [1.0])
    read = device.read_later(SimpleNamespace(device=gpu, to=lambda *_, non_blocking: non_blocking and copied))
    assert happened == ["stream of cuda:1"]
    assert read() == [1.0]
    assert happened[1:] == ["waited", "read"]


def test_arrays_wait_for_the_device_of_the_tensors(monkeypatch: pytest.MonkeyPatch):
    """In a thread, the current device is the first one."""
    waited = []

    def stream_of(gpu: torch.device) -> SimpleNamespace:
        return SimpleNamespace(synchronize=lambda: waited.append(gpu))

    monkeypatch.setattr("torch.cuda.current_stream", stream_of)
    on_gpu = SimpleNamespace(
        device=torch.device("cuda:1"), to=lambda *_, non_blocking: torch.tensor([int(non_blocking)])
    )
    arrays = device.to_arrays({"gpu": on_gpu, "cpu": torch.tensor([7])})
    assert {name: array.tolist() for name, array in arrays.items()} == {"gpu": [1], "cpu": [7]}
    assert waited == [torch.device("cuda:1")]
