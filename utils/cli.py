"""From the flags to what they name, and running a script: logging, errors, the exit code.

Imported by scripts and commands only. The layers below raise errors that name values; only this one, `model_flags` and
the modules that define the flags know these.
"""

import argparse
import errno
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

from utils.data.images import DEFAULT_MAX_MEGAPIXELS, IMAGE_EXTENSIONS, limit_image_size
from utils.data.mask_classes import MaskOptions
from utils.data.pairing import PairingOptions
from utils.model_flags import join_names
from utils.pipeline.items import Item, find_items
from utils.pipeline.probability_maps import ProbabilityMapOptions
from utils.pipeline.report import Report
from utils.review_page.page import DEFAULT_PAGE, ReviewOptions, check_page, write_review
from utils.runtime import distributed
from utils.runtime.atomic_files import check_replaceable
from utils.runtime.console import ConsoleHandler, lasting_streams, only_warnings, set_log_level
from utils.runtime.errors import InputError, first_line, flag_of, is_gpu_error, is_gpu_full, is_out_of_memory
from utils.runtime.output_folder import check_writable, output_folder
from utils.runtime.signals import exit_on_termination
from utils.runtime.threads import limit_torch_threads

logger = logging.getLogger(__name__)


# -- from the flags to what they name ----------------------------------------------------------------------------------


def validation_folders(args: argparse.Namespace) -> tuple[Path, Path] | None:
    """The folders of images and masks that --val-imgs-dir and --val-masks-dir name; None without them.

    Raises:
        InputError: there is only one of the two.
    """
    folders = (args.val_imgs_dir, args.val_masks_dir)
    if folders == (None, None):
        return None
    if None in folders:
        raise InputError("--val-imgs-dir and --val-masks-dir belong together: give both, or neither for a split")
    return folders


def items_from_args(args: argparse.Namespace) -> list[Item]:
    """The images that the flags of `arguments.folder_parent` name."""
    folders = (args.input_dir, args.output_dir, args.ext, args.recursive)
    return find_items(*folders, args.mask_dir, args.mask_suffix)


def named_extensions(args: argparse.Namespace) -> list[str] | None:
    """The file extensions that --ext names, as a run records them; None for all."""
    return None if args.ext == IMAGE_EXTENSIONS else sorted(args.ext)


@contextmanager
def outputs_from_args(args: argparse.Namespace) -> Iterator[None]:
    """Within the `with` block, what the flags name as folders and files of results can be written, by this run alone.

    Files that --output and --figure name are checked only: runs for other images may write beside them.

    Raises:
        InputError: they cannot, or another run writes to one of the folders.
    """
    given = vars(args) if distributed.is_main() else {}
    with ExitStack() as stack:
        if not given.get("no_save"):
            for name in ("output_dir", "checkpoint_dir", "data_dir"):
                if given.get(name) is not None:
                    with adding_option(name):
                        stack.enter_context(output_folder(given[name]))
                        _check_tables(given[name])
            files = given.get("output") or ()
            for folder in {path.parent for path in ([files] if isinstance(files, Path) else files)}:
                with adding_option("output"):
                    check_writable(folder)
        if given.get("figure"):
            with adding_option("figure"):
                check_writable(given["figure"].parent)
        yield


def _check_tables(folder: Path) -> None:
    """Check that no table of an earlier run in a folder is open in a program that keeps others from replacing it."""
    for name in ("summary.csv", "metrics.csv", "passes.csv"):
        check_replaceable(folder / name)


@contextmanager
def adding_option(name: str) -> Iterator[None]:
    """Name an option in the `InputError` that is raised in the `with` block."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error), name) from error


def pairing_options(args: argparse.Namespace) -> PairingOptions:
    """How the flags of `arguments.training_folders_parent` pair images and masks."""
    return PairingOptions(args.mask_suffix, args.recursive, args.ext, args.skip_unusable)


def mask_options(args: argparse.Namespace) -> MaskOptions:
    """What the flags of `arguments.training_parent` say of the mask values.

    Raises:
        InputError: both --mask-values and --background, which say the same.
    """
    if args.mask_values and args.background is not None:
        raise InputError("--mask-values names the background already, as its first value: omit --background")
    return MaskOptions(args.mask_values or (), args.background, args.ignore_value)


def probability_options(args: argparse.Namespace) -> ProbabilityMapOptions:
    """The options that the flags of `arguments.probability_parent` and `arguments.folder_parent` give."""
    names = ("class_index", "save_entropy", "save_npy", "calibrated", "mask_dir", "mask_suffix", "ignore_value")
    options = {name: getattr(args, name) for name in (*names, "skip_existing", "guarantee", "compile")}
    return ProbabilityMapOptions(**options, ext=named_extensions(args), model_name=join_names(args.model))


def check_review_flags(args: argparse.Namespace) -> None:
    """Check that --review has results to show, and that nothing is in the way of its page.

    Raises:
        InputError: --no-save leaves none, --class-index 0 leaves those of the background only, or see `check_page`.
    """
    if args.review and getattr(args, "class_index", 1) == 0:
        raise InputError("--review shows no background, whose probability --class-index 0 writes: omit one of them")
    if args.review and getattr(args, "no_save", False):
        raise InputError("--review shows the results, which --no-save does not write: omit one of them")
    if args.review and args.output_dir is not None:
        check_page(args.output_dir / DEFAULT_PAGE)


def check_no_save(args: argparse.Namespace) -> None:
    """Check that --no-save contradicts no flag that saves more, or resumes what is saved.

    Raises:
        InputError: it does.
    """
    names = ("save_prob", "save_npy", "save_mean_std", "skip_existing")
    others = [flag_of(name) for name in names if getattr(args, name, False)]
    if args.no_save and others:
        raise InputError(f"--no-save saves nothing, which contradicts {', '.join(others)}: omit one or the other")


def finish_prediction(args: argparse.Namespace, report: Report, input_dir: Path, destination: str) -> int:
    """Log how a prediction ended, its failures last; with --review, write the page of its output folder before.

    Args:
        args: of a script that predicts.
        report: of the images, to which failures of the page are added.
        input_dir: the folder of the images.
        destination: where the results are.

    Returns:
        The exit code.
    """
    report.log_results(destination)
    if args.review and report.rows and distributed.is_main() and (args.output_dir / "summary.csv").exists():
        options = ReviewOptions(args.mask_dir, args.mask_suffix)
        # The other processes are done, and what there is to say of the masks has been said.
        with report.isolating("the page"), distributed.alone(), only_warnings("utils.data", "utils.pipeline.items"):
            page, of_page = write_review([args.output_dir], input_dir, options)
            of_page.log_results(f": open {page} in a browser")
            known = {reason for _, reason in report.failures}
            report.failures += [(name, reason) for name, reason in of_page.failures if reason not in known]
    return report.log_failures()


# -- running -----------------------------------------------------------------------------------------------------------


def run(main: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser) -> NoReturn:
    """Parse the command line, to which --quiet and --verbose are added, run the `main` of a script, and exit.

    The exit code is what `main` returns (None is 0); 2 after an `InputError`, an error of the operating system or of a
    GPU, or out of memory, reported in one line; 128 + signal after a signal, such as 130 after Ctrl-C. Of several
    processes the main one logs; each reports its own errors.
    """
    with lasting_streams():
        code = _run(main, parser)
    distributed.leave(code)


def _run(main: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser) -> int:
    """Parse the command line and run the `main` of a script; returns the exit code."""
    logging.basicConfig(format="%(message)s", handlers=[ConsoleHandler()])
    group = parser.add_argument_group("messages").add_mutually_exclusive_group()
    group.add_argument("--quiet", action="store_true", help="only results, warnings and errors")
    group.add_argument("--verbose", action="store_true", help="also show debug messages, such as a line per image")
    args = parser.parse_args()
    level = logging.WARNING if args.quiet else logging.DEBUG if args.verbose else logging.INFO
    limit_image_size(getattr(args, "max_megapixels", DEFAULT_MAX_MEGAPIXELS))
    exit_on_termination()
    limit_torch_threads()
    try:
        with distributed.process_group(), outputs_from_args(args):
            set_log_level(level)
            return main(args) or 0
    except InputError as error:
        flags = [flag_of(name) for name in error.options if hasattr(args, name)]
        separator = "\n" if "\n" in str(error) else " "
        logger.error("%s%s", error, f"{separator}(see {', '.join(flags)})" if flags else "")
    except OSError as error:
        logger.error("%s", _describe_os_error(error, args))
    except KeyboardInterrupt:
        logger.error("Stopped by Ctrl-C")
        return 130
    except SystemExit as stop:  # after a signal
        return stop.code
    except Exception as error:
        if is_out_of_memory(error):
            logger.error("Out of memory: %s", _memory_advice(error, args))
            return 2
        if is_gpu_error(error):
            logger.debug("", exc_info=True)
            logger.error("The GPU failed (%s): use --device cpu, or another GPU", first_line(error))
            return 2
        if distributed.world_size() == 1:
            raise
        traceback.print_exc()
        return 1
    return 2


def require_one_process() -> None:
    """Check that a command whose work is not shared among processes has not been started in several.

    Raises:
        InputError: it has.
    """
    if distributed.world_size() > 1:
        raise InputError("this command does not share its work among processes: start it without torchrun")


def _memory_advice(error: Exception, args: argparse.Namespace) -> str:
    """What needs less memory: of the GPU, if that is full, or of the host, where only training heeds a batch size."""
    if is_gpu_full(error):
        advice = ["reduce --batch-size"] * ("batch_size" in args) + ["use --device cpu"] * ("device" in args)
    else:
        advice = ["reduce --batch-size, or --newW and --newH"] * ("learning_rate" in args)
    return ", or ".join(advice or ["end other programs, or use a machine with more memory"])


def _describe_os_error(error: OSError, args: argparse.Namespace) -> str:
    """What failed with which file, and how to continue after a full disk."""
    message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return message
    flags = ["--resume"] * ("checkpoint_dir" in args and (args.checkpoint_dir / "last.pth").exists())
    flags += ["--skip-existing"] * ("skip_existing" in args and args.output_dir is not None)
    with_flags = f" with {' '.join(flags)}" if flags else ""
    return f"{message}; free some space and run it again{with_flags}"
