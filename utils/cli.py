"""What the scripts share: argparse parents, the choice of the device, logging, the exit code."""

import argparse
import errno
import io
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from utils import checkpoint, distributed
from utils.checkpoint import TrainedModel
from utils.errors import InputError
from utils.image_io import IMAGE_EXTENSIONS
from utils.memory import keep_freed_memory

logger = logging.getLogger(__name__)

DEFAULT_MODEL = Path("pretrained_model.pth")


# -- argument types: a wrong value is an argparse error, which says what was expected --------------------------------


def whole_number(minimum: int, maximum: int = 10**9) -> Callable[[str], int]:
    """An argparse type: a whole number from `minimum` to `maximum`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if not minimum <= value <= maximum:
            bounds = f"of {minimum} or more" if maximum == 10**9 else f"from {minimum} to {maximum}"
            raise argparse.ArgumentTypeError(f"a whole number {bounds} was expected, not {text!r}")
        return value

    return parse


def number(low: float, high: float, low_too: bool = False) -> Callable[[str], float]:
    """An argparse type: a number above `low`, or from `low` on if `low_too`, up to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (low < value <= high or (low_too and value == low)):
            bounds = f"{'from' if low_too else 'above'} {low:g} and up to {high:g}"
            raise argparse.ArgumentTypeError(f"a number {bounds} was expected, not {text!r}")
        return value

    return parse


def add_defaulted(parser: argparse._ActionsContainer, *flags: str, help: str = "", **options: Any) -> None:
    """Add an argument whose help ends with its default."""
    default = "default: %(default)s"
    parser.add_argument(*flags, help=f"{help} ({default})" if help else default, **options)


# -- argparse parents ------------------------------------------------------------------------------------------------


def device_parent() -> argparse.ArgumentParser:
    """--device, --amp, --seed."""
    parent = argparse.ArgumentParser(add_help=False)
    _device_flags(parent)
    return parent


def _device_flags(parent: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parent.add_argument_group("computing")
    group.add_argument("--device", metavar="NAME", help="cuda, cuda:1, mps or cpu (default: the first there is)")
    group.add_argument("--amp", action="store_true", help="mixed precision, faster where the device has bfloat16")
    group.add_argument(
        "--seed",
        type=whole_number(0, 2**63 - 1),
        default=0,
        metavar="N",
        help="of all random numbers; the same seed repeats the same result (default: %(default)s)",
    )
    return group


def model_parent() -> argparse.ArgumentParser:
    """--model and what is believed of it, --batch-size, and those of `device_parent`; see `load_model`."""
    parent = argparse.ArgumentParser(add_help=False)
    model = parent.add_argument_group(
        "model (all but the file is known from it; a flag that contradicts it is an error)"
    )
    add_defaulted(model, "--model", "-m", type=Path, default=DEFAULT_MODEL, metavar="FILE", help="checkpoint")
    model.add_argument("--bilinear", action="store_true", default=None, help="it upsamples bilinearly")
    model.add_argument("--classes", "-c", type=whole_number(1, 256), metavar="N", help="its number of classes")
    for flag, side in (("--newW", "width"), ("--newH", "height")):
        model.add_argument(flag, type=whole_number(16, 8192), metavar="N", help=f"{side} of its input")
    computing = _device_flags(parent)
    add_defaulted(
        computing,
        "--batch-size",
        type=whole_number(1),
        default=8,
        metavar="N",
        help="images, passes or views that a GPU computes at once",
    )
    return parent


def folder_parent() -> argparse.ArgumentParser:
    """--input-dir, --output-dir, --mask-dir, --ext, --skip-existing, --recursive."""
    parent = argparse.ArgumentParser(add_help=False)
    group = parent.add_argument_group("images")
    group.add_argument("--input-dir", type=Path, required=True, metavar="DIR", help="folder of images")
    group.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="folder for the results")
    group.add_argument(
        "--mask-dir",
        type=Path,
        metavar="DIR",
        help="folder of true masks; the scores go to metrics.csv and metrics.json of the results",
    )
    group.add_argument(
        "--ext",
        nargs="+",
        default=IMAGE_EXTENSIONS,
        metavar=".EXT",
        help=f"endings of image files (default: {' '.join(IMAGE_EXTENSIONS)})",
    )
    group.add_argument(
        "--skip-existing", action="store_true", help="go on with an interrupted batch: what is done stays"
    )
    group.add_argument("--recursive", action="store_true", help="sub-folders, too; the results keep them")
    return parent


def image_parent() -> argparse.ArgumentParser:
    """--input, --output, --output-dir."""
    parent = argparse.ArgumentParser(add_help=False)
    group = parent.add_argument_group("images")
    group.add_argument(
        "--input", "-i", nargs="+", type=Path, required=True, metavar="FILE", help="images, or folders of images"
    )
    results = group.add_mutually_exclusive_group()
    results.add_argument(
        "--output",
        "-o",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="masks, .png, one for each image; the maps go beside them (default: the image's name with _OUT.png)",
    )
    results.add_argument("--output-dir", type=Path, metavar="DIR", help="folder for the masks NAME.png and the maps")
    return parent


def probability_parent() -> argparse.ArgumentParser:
    """--class-index, --save-entropy, --save-npy, --calibrated."""
    parent = argparse.ArgumentParser(add_help=False)
    add_defaulted(
        parent,
        "--class-index",
        type=whole_number(0, 255),
        default=1,
        metavar="K",
        help="class whose probability is saved",
    )
    parent.add_argument(
        "--save-entropy",
        action="store_true",
        help="the maps of uncertainty, too: entropy, and with several samples standard deviation, expected entropy and "
        "mutual information",
    )
    exact_flags(parent)
    return parent


def exact_flags(parser: argparse.ArgumentParser) -> None:
    """Add --save-npy, --calibrated."""
    parser.add_argument("--save-npy", action="store_true", help="all maps, too, as exact float32 .npy files")
    parser.add_argument(
        "--calibrated", action="store_true", help="divide the logits by the temperature that the model was given"
    )


def mask_parent() -> argparse.ArgumentParser:
    """--mask-threshold, --no-save, --viz."""
    parent = argparse.ArgumentParser(add_help=False)
    add_defaulted(
        parent,
        "--mask-threshold",
        "-t",
        type=number(0, 1, low_too=True),
        default=0.5,
        metavar="P",
        help="with two classes, the probability above which a pixel is lesion",
    )
    parent.add_argument("--no-save", "-n", action="store_true", help="write no results")
    parent.add_argument("--viz", "-v", action="store_true", help="show each result in a window")
    return parent


# -- device ----------------------------------------------------------------------------------------------------------


def choose_device(name: str | None = None) -> torch.device:
    """The device of that name; without one CUDA, MPS or the CPU, the first that there is.

    Raises:
        InputError: there is no such device, or one of several processes is given the GPU of another.
    """
    if distributed.world_size() > 1 and (name or "").startswith("cuda:"):
        raise InputError(f"--device {name}: several processes have a GPU each: give --device cuda, or none")
    if name in (None, "cuda") and distributed.world_size() > 1 and torch.cuda.is_available():
        name = f"cuda:{distributed.local_rank()}"
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.empty(0, device=name).device  # with its index, which set_device requires
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        there = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        there += ["mps"] * torch.backends.mps.is_available()
        raise InputError(f"--device {name} is not to be had here; there is {', '.join([*there, 'cpu'])}") from error
    return device


def amp_dtype(device: torch.device, amp: bool) -> torch.dtype | None:
    """The type of mixed precision on a device, or None for single precision, with a word where --amp gains nothing."""
    if not amp:
        return None
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and _cpu_has_bfloat16():
        return torch.bfloat16
    logger.warning("--amp would gain nothing on this %s: computing in single precision", device.type.upper())
    return None


def describe_device(device: torch.device) -> str:
    """A device's name for people."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'s' * (threads > 1)})" if device.type == "cpu" else str(device)


def describe_dtype(dtype: torch.dtype | None) -> str:
    """A precision's name for people."""
    return "single precision" if dtype is None else f"mixed precision ({str(dtype).removeprefix('torch.')})"


def _cpu_has_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(flags.split())


def load_model(args: argparse.Namespace) -> tuple[TrainedModel, torch.dtype | None]:
    """The model that the flags of `model_parent` name, on its device, and the type of mixed precision."""
    device = choose_device(args.device)
    if args.model == DEFAULT_MODEL and not args.model.exists():  # called from elsewhere: that of the project
        args.model = Path(__file__).resolve().parent.parent / DEFAULT_MODEL
    model = checkpoint.load_model(
        args.model,
        device,
        n_classes=args.classes,
        bilinear=args.bilinear,
        input_size=(args.newW, args.newH),
    )
    dtype = amp_dtype(device, args.amp)
    size = "{}x{}".format(*model.input_size)
    logger.info("Model %s, which sees images at %s", args.model, size)
    logger.info("Computing on %s in %s", describe_device(device), describe_dtype(dtype))
    return model, dtype


def probability_options(args: argparse.Namespace) -> dict[str, Any]:
    """The flags of `probability_parent` and what else `batch.predict_probabilities` wants to know."""
    names = ("class_index", "save_entropy", "save_npy", "calibrated", "mask_dir", "skip_existing")
    return {name: getattr(args, name) for name in names} | {"model_name": str(args.model)}


# -- running ---------------------------------------------------------------------------------------------------------


def progress(items: Iterable | None = None, **options: Any) -> tqdm:
    """A progress bar on a terminal, a line a minute elsewhere, none with --quiet; one of several processes has it."""
    disable = not (distributed.is_main() and logger.isEnabledFor(logging.INFO))
    if sys.stderr.isatty():
        return tqdm(items, disable=disable, dynamic_ncols=True, **options)
    options |= {"mininterval": 60, "miniters": 1, "file": io.StringIO()}  # the text of a bar goes nowhere
    return _Lines(items, disable=disable, **options)


class _Lines(tqdm):
    """A progress bar for log files."""

    monitor_interval = 0  # no thread that asks for more lines

    def display(self, *_: object, **__: object) -> None:
        if self.initial < self.n < (self.total or 0):
            done = self.format_dict
            left = done["elapsed"] / (self.n - self.initial) * (self.total - self.n)
            size = self.format_sizeof if self.unit_scale else str
            what = f"{self.desc}: " if self.desc else ""
            units = "B" if self.unit_scale else self.unit + ("es" if self.unit.endswith("ch") else "s")
            logger.info("%s%s of %s %s, about %s left", what, size(self.n), size(self.total), units, duration(left))

    def close(self) -> None:
        self.total = None  # at the end, whichever, there is nothing to say
        super().close()


def duration(seconds: float) -> str:
    """A time for people, such as 40 s, 12 min or 3 h 20 min."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


class _AboveBars(logging.Handler):
    """Writes log lines to standard error without breaking a progress bar."""

    def createLock(self) -> None:
        self.lock = tqdm.get_lock()  # a lock of its own could be waited for by a bar that the line waits for

    def emit(self, record: logging.LogRecord) -> None:
        prefix = {logging.WARNING: "Warning: ", logging.ERROR: "Error: "}.get(record.levelno, "")
        tqdm.write(prefix + self.format(record), file=sys.stderr)


def run(main: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser) -> NoReturn:
    """Parse the command line, to which --quiet and --verbose belong, run a script's `main`, and exit.

    The exit code is what `main` returns (None is 0); 2 after an `InputError` or an error of the operating system,
    which are shown as one line; 130 after Ctrl-C and 143 after a termination. Of several processes that torchrun has
    started, only the main one says what it does; errors are said by each that has one.
    """
    logging.basicConfig(format="%(message)s", handlers=[_AboveBars()])
    words = parser.add_argument_group("messages").add_mutually_exclusive_group()
    words.add_argument("--quiet", action="store_true", help="only results, warnings and errors")
    words.add_argument("--verbose", action="store_true", help="a line for each image, too")
    args = parser.parse_args()
    level = logging.WARNING if args.quiet else logging.DEBUG if args.verbose else logging.INFO
    signal.signal(signal.SIGTERM, _terminate)
    keep_freed_memory()
    try:
        with distributed.process_group():
            for ours in ("__main__", "utils", "unet"):
                logging.getLogger(ours).setLevel(level if distributed.is_main() else logging.ERROR)
            code = main(args) or 0
    except InputError as error:
        logger.error("%s", error)
        code = 2
    except OSError as error:
        what_to_do = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            flags = [flag for flag in ("--resume", "--skip-existing") if hasattr(args, flag[2:].replace("-", "_"))]
            what_to_do = f"; make room and call it again{' with ' * bool(flags)}{''.join(flags)}"
        logger.error("%s%s", f"{error.filename}: {error.strerror}" if error.filename else error, what_to_do)
        code = 2
    except KeyboardInterrupt:
        logger.error("Stopped by Ctrl-C")
        code = 130
    sys.exit(code)


def _terminate(signum: int, frame: Any) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(128 + signum)


class GentleStop:
    """Within the `with` block Ctrl-C and a termination are noted, not obeyed; a second one ends the process at once.

    Call it to ask whether to stop; `leave` then does so. In a thread, which gets no signals, it does nothing.
    """

    def __init__(self) -> None:
        self._signal: int | None = None

    def __enter__(self) -> "GentleStop":
        numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.getsignal(number) for number in numbers}
        # One that is ignored, as by a job in the background, stays so.
        self._before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
        for number in self._before:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self._signal is not None

    def _note(self, signum: int, frame: Any) -> None:
        self._signal = signum
        self.__exit__()  # the next one is obeyed
        logger.warning("Stopping in a moment, when this step is done; a second signal stops at once")

    def leave(self) -> NoReturn:
        """End the process as the signal asked, or as one that another of several processes got."""
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + signal.SIGTERM)
