"""A pretended accelerator, to find device mistakes and to count transfers without one.

Its tensors hold their values in the CPU's memory, but say that they are on the device `pretended`. As on CUDA, they
refuse `numpy()` and refuse to meet tensors on the CPU, except scalars. What the device is asked to do is counted, with
the innermost line of the project that caused it:

    device = install()
    x = torch.rand(4, 3, device="pretended")
    x.numpy()  # an error
    x + torch.rand(4, 3)  # an error
    x.sum().item()
    device.total("read")  # 1

A process cannot get rid of the device again: tests use it in a process of their own, with `on_pretended_device`. Any
script can be run on it, and ends with a table of the lines that transfer and wait:

    python -m tests.pretended_device predict.py --device pretended --input-dir data/imgs --output-dir out

Memory is not limited; `PretendedDevice.at_launch` lets it run out. Copies are never asynchronous.
"""

import argparse
import multiprocessing
import runpy
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim.optimizer import _foreach_supported_types as types_of_foreach_optimizers
from torch.utils import backend_registration
from torch.utils._foreach_utils import _foreach_supported_types as types_of_foreach_functions
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.forking import prepare_to_fork

Result = TypeVar("Result")

NAME = "pretended"
KINDS = ("host to device", "read", "launch")
ROOT = Path(__file__).resolve().parent.parent
AVAILABLE = sys.platform == "linux" and hasattr(backend_registration, "_setup_privateuseone_for_python_backend")

aten = torch.ops.aten
_COPIES = (aten.copy_.default, aten._to_copy.default)
_INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
# The host waits for operations whose results, or the shapes of these, depend on values.
_READING_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_NO_LAUNCH = ("aten::empty", "aten::new_empty", "aten::detach_", "aten::_local_scalar_dense")


class PretendedTensor(torch.Tensor):
    """A tensor on the pretended device.

    Attributes:
        content: the same values on the CPU, with the same strides; views share them.
    """

    content: Tensor

    @staticmethod
    def __new__(cls, content: Tensor) -> "PretendedTensor":
        with torch.inference_mode(content.is_inference()):  # a view is an inference tensor only if its base is one
            tensor = torch.Tensor._make_wrapper_subclass(
                cls,
                content.size(),
                strides=content.stride(),
                storage_offset=content.storage_offset(),
                dtype=content.dtype,
                device=torch.device(NAME, 0),
            )
        tensor.content = content
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        return _device.run(op, args, kwargs or {})

    # What a CUDA tensor can do as well, and a subclass cannot without this.

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.dim() == 0 else repr(self), spec)

    def __repr__(self, **_: Any) -> str:
        return f"PretendedTensor({self.content})"

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.detach().cpu().__reduce_ex__(protocol)  # a file holds the values, not the device


class PretendedDevice:
    """Runs the operations of the device, and counts them.

    Attributes:
        counts: how often something happened, by kind and line. "host to device": copies to the device; "read": copies
            and values for which the host waits; "launch": operations that compute on the device.
    """

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._launches: Counter[str] = Counter()  # by operation
        self._plans: dict[tuple[str, int], Callable[[], object]] = {}
        self._lock = threading.Lock()

    def total(self, kind: str) -> int:
        """How often something of a kind happened."""
        return sum(count for (of_kind, _), count in self.counts.items() if of_kind == kind)

    def at_launch(self, op: str, number: int, action: Callable[[], object]) -> None:
        """Call a function just before a launch to come: with 2, before the second of `op`, such as "aten::relu_".

        The function may raise an exception, but not in `backward`, where PyTorch would abort the process.
        """
        self._plans[op, self._launches[op] + number] = action

    def run(self, op: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """Run an operation on tensors of the device, or one that makes them.

        Raises:
            RuntimeError: tensors on the device and on the CPU meet.
        """
        # In inference mode some operations arrive whole, which otherwise arrive in parts.
        result = op.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result

        # Where the result is, what it costs.
        inside = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, PretendedTensor)]
        on_device = bool(inside)
        if op is aten.copy_.default:
            on_device = isinstance(args[0], PretendedTensor)
        elif kwargs.get("device") is not None:
            on_device = torch.device(kwargs["device"]).type == NAME
            kwargs = {**kwargs, "device": torch.device("cpu")}
        _check_devices(op, args, kwargs)
        for kind in _costs(op, args, on_device):
            self._count(kind, op)

        # Run it on the CPU; a tensor that is changed in place stays the same object.
        args, kwargs = tree_map_only(PretendedTensor, lambda tensor: tensor.content, (args, kwargs))
        result = op(*args, **kwargs)
        if not on_device:
            return result
        known = {id(tensor.content): tensor for tensor in inside}
        return tree_map_only(Tensor, lambda t: known[id(t)] if id(t) in known else PretendedTensor(t), result)

    def _count(self, kind: str, op: Any) -> None:
        name, plan = op.name().partition(".")[0], None
        with self._lock:
            self.counts[kind, _project_line()] += 1
            if kind == "launch":
                self._launches[name] += 1
                plan = self._plans.pop((name, self._launches[name]), None)
        if plan is not None:
            plan()


def _check_devices(op: Any, args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Refuse CPU tensors where CUDA does: all but those that are copied, indices, and scalars that are only read."""
    if op in _COPIES:
        return
    if op in _INDEXING:
        args = (args[0], *args[2:])
    only_read = args[1:] if op._schema.is_mutable else args
    accepted = {id(arg) for arg in only_read if isinstance(arg, PretendedTensor) or _is_cpu_scalar(arg)}
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor) and not isinstance(leaf, PretendedTensor) and id(leaf) not in accepted:
            raise RuntimeError(f"Expected all tensors to be on the same device, but {op} got some on the CPU")


def _is_cpu_scalar(value: object) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, PretendedTensor) and value.dim() == 0


def _costs(op: Any, args: tuple, on_device: bool) -> list[str]:
    """The kinds of what an operation costs."""
    if op in _COPIES and isinstance(args[op is aten.copy_.default], PretendedTensor) != on_device:
        return ["host to device" if on_device else "read"]
    costs = []
    if op in _INDEXING:
        indices = [index for index in args[1] if index is not None]
        costs += ["host to device" for index in indices if not isinstance(index, PretendedTensor)]
        is_mask = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
        is_filled = op is not aten.index.Tensor and args[2].numel() == 1  # which needs no positions
        costs += ["read"] * (is_mask and not is_filled)
    elif not _READING_TAGS.isdisjoint(op.tags):
        costs.append("read")
    launches = on_device and not op.is_view and not op.name().startswith(_NO_LAUNCH)
    return costs + ["launch"] * launches


def _project_line() -> str:
    """The innermost line of the project on the stack of this thread, as `FILE:LINE`."""
    frame = sys._getframe()
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(f"{ROOT}/") and path != __file__ and "site-packages" not in path:
            return f"{path.removeprefix(f'{ROOT}/')}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


class _Module:
    """`torch.pretended`, which PyTorch asks about the device."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        pass

    def _is_in_bad_fork(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_device = PretendedDevice()
_registered: list[torch.library.Library] = []  # kernels, which stay registered while they are referred to


def install() -> PretendedDevice:
    """Make the device available in this process."""
    if _registered:
        return _device
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    kernels = torch.library.Library("aten", "IMPL")  # for what PyTorch requires where it does not ask the tensors
    for op in (aten.empty.memory_format, aten.empty_strided.default):
        kernels.impl(op, lambda *args, op=op, **kwargs: _device.run(op, args, kwargs), "PrivateUse1")
    copy = aten.copy_.default
    kernels.impl("_copy_from", lambda source, target, *_: _device.run(copy, (target, source), {}), "PrivateUse1")
    _registered.append(kernels)
    torch.autograd.set_multithreading_enabled(False)  # what `backward` launches has `backward` on its stack
    torch.Tensor.pin_memory = lambda tensor, device=None: tensor
    types_of_foreach_optimizers.append(PretendedTensor)  # as on CUDA, one launch for all weights
    types_of_foreach_functions.append(PretendedTensor)
    return _device


def on_pretended_device(work: Callable[[PretendedDevice], Result]) -> Result:
    """The result of a function that is called, with the device, in a forked process."""
    prepare_to_fork()
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def run() -> None:
        try:
            sender.send((work(install()), None))
        except BaseException:
            sender.send((None, traceback.format_exc()))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    sender.close()
    result, error = receiver.recv()
    process.join()
    assert error is None, error
    return result


def format_counts(counts: Mapping[tuple[str, str], float]) -> str:
    """A table of counts by kind and line, the largest first."""
    lines = []
    for kind in KINDS:
        by_line = {line: count for (of_kind, line), count in counts.items() if of_kind == kind}
        lines.append(f"{kind}: {sum(by_line.values()):g}")
        lines += [f"{count:10g}  {line}" for line, count in sorted(by_line.items(), key=lambda pair: -pair[1])]
    return "\n".join(lines)


def main() -> None:
    """Run a script with the device, and print what it has cost."""
    parser = argparse.ArgumentParser(prog="python -m tests.pretended_device", description=main.__doc__)
    parser.add_argument("script", help="of the project, such as predict.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the script, with --device pretended")
    args = parser.parse_args()
    device = install()
    sys.argv = [args.script, *args.arguments]
    try:
        runpy.run_path(args.script, run_name="__main__")
    finally:
        print(format_counts(device.counts), file=sys.stderr)


if __name__ == "__main__":
    main()
