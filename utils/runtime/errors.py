"""The error for invalid user input, which the scripts print as one line without a traceback."""

import torch

# How PyTorch's errors of a GPU begin, of which only some have a type of their own, and only in newer versions.
_GPU_ERRORS = ("CUDA error", "CUDA driver error", "cuDNN error", "CUDA out of memory", "MPS backend", "NCCL error")
# In which the memory of a GPU is full; cuDNN finds no way to compute when its workspace does not fit.
_GPU_IS_FULL = (
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "_STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED",
    "unable to find an engine",
)
_GPU_STATUS = ("CUBLAS_STATUS", "CUDNN_STATUS", "CUSOLVER_STATUS", "CUFFT_STATUS", "no kernel image is available")


class InputError(ValueError):
    """An input is wrong; the message says what was wrong, what was expected and what to do.

    Args:
        message: the message.
        options: names of options that help, such as mask_values; the command line adds the flags that it has for them.
    """

    def __init__(self, message: str, *options: str) -> None:
        super().__init__(message)
        self.options = options


def flag_of(option: str) -> str:
    """The flag of an option."""
    return "--" + option.replace("_", "-")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a GPU or of the host did not suffice; for that of the host PyTorch has no type of error."""
    of_host = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return of_host or isinstance(error, MemoryError) or is_gpu_full(error)


def is_gpu_full(error: BaseException) -> bool:
    """Whether the memory of a GPU did not suffice; only where PyTorch itself allocates it is there a type of error."""
    others = isinstance(error, RuntimeError) and any(text in str(error) for text in _GPU_IS_FULL)
    return others or isinstance(error, torch.OutOfMemoryError)


def is_gpu_error(error: BaseException) -> bool:
    """Whether a GPU has failed, and not a single computation: what follows on it would fail as well."""
    text = str(error)
    return isinstance(error, RuntimeError) and (
        text.startswith(_GPU_ERRORS) or any(status in text for status in _GPU_STATUS)
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def bulleted(title: str, problems: list[str], limit: int | None = None) -> str:
    """A message that lists several problems, one per line; of more than `limit` the first ones, and how many more."""
    more = len(problems[limit:]) if limit is not None else 0
    return f"{title}:" + "".join(f"\n  {problem}" for problem in problems[:limit]) + f"\n  and {more} more" * bool(more)
