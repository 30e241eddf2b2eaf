"""How reliable the uncertainty of each method remains as images get worse: metrics under shift (Ovadia et al. 2019).

`python -m utils.shift -m MODEL --imgs-dir … --masks-dir … --output-dir …` predicts labelled images as they are and with
thirteen corruptions in five strengths, such as blur, noise, another colour temperature, hair, a rotated or more distant
camera, and writes the metrics of each method as tables (shift.md), numbers (shift.json) and a figure (shift.png).
"""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from utils import arguments, cli, model_flags, pairing_arguments
from utils.checkpoint import TrainedModel
from utils.data.corruptions import SHIFT_STRENGTHS
from utils.data.groups import names_digest
from utils.data.images import IMAGE_EXTENSIONS
from utils.figures.grid import save_figure
from utils.figures.small_multiples import draw_small_multiples
from utils.inference.guarantees import make_guarantee
from utils.inference.samplers import MCDropout, Sampler, Softmax, TestTimeAugmentation, method_title
from utils.pipeline.ground_truth import GroundTruth
from utils.pipeline.items import evenly_spaced, find_items
from utils.pipeline.journal import file_state
from utils.pipeline.run_settings import run_settings
from utils.pipeline.shift_tables import format_shift_means, format_shift_tables, shift_panels
from utils.pipeline.shifted_sets import ShiftEvaluation, list_shifts
from utils.result_arguments import add_compile, guarantee_level
from utils.runtime.atomic_files import write_file, write_json
from utils.runtime.console import progress
from utils.runtime.errors import InputError
from utils.runtime.seeds import json_digest

logger = logging.getLogger(__name__)

METHODS = ("direct", "bayesian", "tta")


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m utils.shift", description=__doc__, parents=[arguments.model_parent()]
    )
    images = parser.add_argument_group("images")
    images.add_argument("--imgs-dir", type=Path, required=True, metavar="DIR", help="folder of images")
    images.add_argument("--masks-dir", type=Path, required=True, metavar="DIR", help="their ground-truth masks")
    images.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="folder for the results")
    pairing_arguments.add_mask_suffix(images)
    images.add_argument(
        "--max-images", type=arguments.integer(1), metavar="N", help="at most N images, evenly spaced by name"
    )
    images.add_argument(
        "--skip-existing",
        action="store_true",
        help="resume an interrupted run: keep finished corruptions and strengths",
    )
    methods = parser.add_argument_group("methods and corruptions")
    methods.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        metavar="METHOD",
        help=f"as the predict_prob scripts: {', '.join(METHODS)} (default: all that the model supports)",
    )
    arguments.add_with_default(
        methods, "--mc", type=arguments.integer(1), default=20, metavar="T", help="number of passes of bayesian"
    )
    lowest, highest = SHIFT_STRENGTHS[0], SHIFT_STRENGTHS[-1]
    methods.add_argument(
        "--strengths",
        nargs="+",
        type=arguments.integer(lowest, highest),
        default=SHIFT_STRENGTHS,
        metavar="S",
        help=f"strengths of the corruptions, from {lowest} to {highest} (default: all)",
    )
    methods.add_argument(
        "--guarantee",
        type=guarantee_level,
        metavar="LEVEL",
        help="such as 0.95: also evaluate the masks with a guarantee, see the prediction scripts",
    )
    add_compile(methods)
    return parser


def main(args: argparse.Namespace) -> int:
    cli.require_one_process()
    items = find_items(args.imgs_dir, args.output_dir, IMAGE_EXTENSIONS, False, args.masks_dir, args.mask_suffix)
    model, dtype = model_flags.model_from_args(args, [item.path for item in items])
    samplers = {method_title(sampler, model): sampler for sampler in samplers_from_args(args, model, dtype)}
    guarantees = {name: make_guarantee(model, one, args.guarantee) for name, one in samplers.items() if args.guarantee}
    ground_truth = GroundTruth(items, args.masks_dir, model.mask_classes, args.ignore_value, args.mask_suffix)
    items = evenly_spaced([item for item in items if item.name in ground_truth.paths], args.max_images)

    # What makes up a run, and what an interrupted one has finished
    run = {
        "seed": args.seed,
        "images": len(items),
        "image_names": names_digest([item.path for item in items], args.imgs_dir),
        "image_files": files_digest([item.path for item in items]),
        "mask_files": files_digest([path for item in items for path in ground_truth.paths[item.name]]),
        "methods": [
            run_settings(model, sampler, ground_truth, guarantees.get(name)) for name, sampler in samplers.items()
        ],
    }
    path = args.output_dir / "shift.json"
    finished = read_finished(path, run) if args.skip_existing else []

    # The images as they are, which show which ones fail; then the corruptions that were not finished for the others
    evaluation = ShiftEvaluation(model, samplers, ground_truth, args.seed, guarantees, args.compile)
    unchanged, *shifts = asked = list_shifts(args.strengths)
    with progress(total=(1 + len(shifts)) * len(items), unit="image") as bar:
        results = evaluation.evaluate(items, unchanged, bar.update)
        ground_truth.fitter.log()
        if not results and not evaluation.failed:
            raise InputError(f"the masks in {args.masks_dir} have no pixel that counts: there is nothing to compare")
        results += [row for row in finished if row["strength"] and row["failed"] == evaluation.failed]
        done = {(row["corruption"], row["strength"]) for row in results}
        shifts = [shift for shift in shifts if shift not in done]
        bar.total = (1 + len(shifts)) * len(items)
        write_json(path, {"run": run, "results": results})
        for shift in shifts:
            results += evaluation.evaluate(items, shift, bar.update)
            write_json(path, {"run": run, "results": results})
    report, failed = evaluation.report, {*evaluation.failed}
    report.rows = [{"image": item.reported} for item in items if item.reported not in failed]
    results = [row for row in results if (row["corruption"], row["strength"]) in asked]  # others may be incomplete
    if any(row["strength"] for row in results):
        write_results(args.output_dir, results)
    return report.finish(f": {args.output_dir}")


def samplers_from_args(args: argparse.Namespace, model: TrainedModel, dtype: torch.dtype | None) -> list[Sampler]:
    """The methods that --methods names, each once; by default all that the model supports.

    Raises:
        InputError: it does not support one that is named.
    """
    samplers = {
        "direct": Softmax(args.batch_size, dtype),
        "bayesian": MCDropout(args.batch_size, dtype, num_samples=args.mc, seed=args.seed),
        "tta": TestTimeAugmentation(args.batch_size, dtype),
    }
    supported = []
    for name in dict.fromkeys(args.methods or METHODS):
        try:
            samplers[name].check(model)
            supported.append(samplers[name].for_single_images())
        except InputError as error:
            if args.methods:
                raise
            logger.warning("The method %s is left out: %s", name, error)
    return supported


def files_digest(paths: Sequence[Path]) -> str:
    """A digest of the sizes and modification times of files, to recognise them."""
    return json_digest([str(file_state(path)) for path in paths])


def read_finished(path: Path, run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results that an earlier run has written; none if there is no file.

    Raises:
        InputError: they were made with other settings, or the file is none of this command.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        earlier, results = dict(content["run"]), list(content["results"])
        methods = _methods_of(earlier)
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} was not written by this command: choose another output folder") from error
    run = json.loads(json.dumps(run))
    changed = [name for name, value in run.items() if earlier.get(name) != value]
    if changed == ["methods"] and methods == _methods_of(run):  # their settings differ
        pairs = zip(earlier["methods"], run["methods"], strict=True)
        changed = list(dict.fromkeys(key for a, b in pairs for key in a | b if a.get(key) != b.get(key)))
    if changed:
        raise InputError(
            f"{path} has results with other {', '.join(changed).replace('_', ' ')}: choose another output folder, or "
            "start over without skipping existing results"
        )
    return results


def _methods_of(run: Mapping[str, Any]) -> list[str]:
    return [method.get("method") for method in run.get("methods", ())]


def write_results(folder: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write shift.md and shift.png, and print the means over the corruptions."""
    means = format_shift_means(results)
    text = f"## Means over the corruptions\n\n{means}\n\n{format_shift_tables(results)}\n"
    write_file(folder / "shift.md", text.encode())
    figure = draw_small_multiples(shift_panels(results), "strength of the corruption (0: unchanged images)")
    save_figure(figure, folder / "shift.png", dpi=200)
    print(means)


if __name__ == "__main__":
    cli.run(main, get_args_parser())
