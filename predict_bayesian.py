"""Look closely at the uncertainty of single images: their Monte Carlo dropout maps."""

import argparse
import logging
import math
import re
from collections import Counter, defaultdict
from contextlib import nullcontext
from pathlib import Path, PurePath
from typing import Any

from utils import batch, cli, figures
from utils.checkpoint import TrainedModel
from utils.errors import InputError
from utils.image_io import list_images, mask_image, read_image, save_png
from utils.metrics import segmentation_scores
from utils.probability import STATISTICS, MCDropout, Sampler, Softmax, calibrate
from utils.results import beside, pictures, predict_full_size, read_summary, save_arrays, saving_passes, write_summary

logger = logging.getLogger(__name__)

MANY = 4  # images, from which on not each has its line
MOST_ROWS = 50  # of a figure


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, parents=[cli.image_parent(), cli.mask_parent(), cli.model_parent()]
    )
    cli.add_defaulted(
        parser, "--mc", type=cli.whole_number(0), default=20, metavar="T", help="passes; 0 or 1: one without dropout"
    )
    parser.add_argument(
        "--save-prob", action="store_true", help="each pass, too: NAME_mc00_c0.png ..., and all in NAME_probs.npy"
    )
    parser.add_argument("--save-mean-std", action="store_true", help="NAME_mean.npy and NAME_std.npy over the passes")
    parser.add_argument("--mask-dir", type=Path, metavar="DIR", help="folder of true masks, for the figure")
    cli.exact_flags(parser)
    parser.add_argument("--figure", type=Path, metavar="FILE", help="one picture of all images, .png, a row each")
    return parser


def main(args: argparse.Namespace) -> int:
    args.input, args.output = files(args)  # no folders any more
    model, dtype = cli.load_model(args)
    if args.mc > 1:
        sampler = MCDropout(args.batch_size, dtype, num_samples=args.mc, seed=args.seed)
    else:
        sampler = Softmax(args.batch_size, dtype)
    if args.calibrated:
        sampler = calibrate(sampler, model)
    sampler = sampler.for_single_images()
    sampler.check(model)
    items = [batch.Item(path, PurePath(path.name)) for path in args.input]
    truth = batch.Truth(items, args.mask_dir, model.mask_values) if args.mask_dir else None

    report, rows, summaries = batch.Report(), [], defaultdict(list)
    with cli.GentleStop() as stop:
        for item, output in zip(items, cli.progress(args.output, unit="image"), strict=True):
            with report.failing_alone(str(item.path)):
                scores, row = look_at(item, output, model, sampler, truth, args)
                report.rows.append({"image": str(item.path), **scores})
                summaries[output.parent / "summary.csv"].append(report.rows[-1])
                if args.figure:
                    rows.append(row)
            if stop():
                break
    if not args.no_save:
        for path, of_folder in summaries.items():
            write_summary(path, of_folder, keep_others=True)
    if stop():
        stop.leave()
    if args.figure and rows:
        with report.failing_alone(str(args.figure)):
            figures.save_figure(figures.draw_predictions(rows), args.figure)
            logger.info("All in one picture: %s", args.figure)
    folders = ", ".join(sorted({str(path.parent) for path in args.output}))
    return report.finish(
        ""
        if args.no_save
        else f": {folders}; in the grey maps white is probability 1, standard deviation 0.5, entropy and mutual "
        f"information ln {len(model.mask_values)} = {math.log(len(model.mask_values)):.3f} nats"
    )


def files(args: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    """The images, and for each the file of its mask."""
    paths = [image for path in args.input for image in (list_images(path) if path.is_dir() else [path])]
    if any(path.is_dir() for path in args.input) and not (args.output_dir or args.no_save):
        raise InputError("--output-dir is needed for the results of a folder of images")
    if args.output_dir and args.output_dir.resolve() in [path.resolve() for path in args.input]:
        raise InputError(f"--output-dir is the input folder, {args.output_dir}: results would be images next time")
    if args.figure and len(paths) > MOST_ROWS:
        raise InputError(f"--figure shows up to {MOST_ROWS} images, not {len(paths)}; each has its own NAME_figure.png")
    masks = [args.output_dir / f"{path.stem}.png" for path in paths] if args.output_dir else args.output
    return paths, output_paths(paths, masks, args.figure, not args.no_save)


def look_at(
    item: batch.Item,
    output: Path,
    model: TrainedModel,
    sampler: Sampler,
    truth: batch.Truth | None,
    args: argparse.Namespace,
) -> tuple[dict[str, Any], figures.Row]:
    """Predict an image, save and show what the flags ask for; returns its scores and its row of a figure."""
    image = read_image(item.path)
    samples = sampler.sample(model, [sampler.inputs(image, model.input_size)], [item.path.name])[0]
    draw, statistics = ((lambda maps: {}), ()) if args.no_save else (pictures, STATISTICS)
    keep = statistics if args.save_mean_std or args.save_npy else ()
    keep = {*keep, "predictive_entropy"}  # the figure's
    prediction = predict_full_size(samples, image.size, draw, statistics, args.mask_threshold, keep)
    classes, scores = prediction.classes, prediction.scores
    true_classes = truth.read(item, classes.shape) if truth else None
    if truth:
        scores = scores | segmentation_scores(classes, true_classes, len(model.mask_values))
    row = figures.row(image, classes, prediction.maps, true_classes, caption(item.path.name, scores))
    if not args.no_save:
        one_class = model.network.n_classes == 1
        if args.save_mean_std or args.save_npy:
            save_arrays(output, prediction.maps, entropies=args.save_npy, one_class=one_class)
        prediction.maps = None  # as large as a pass
        saving = saving_passes(output, samples, image.size, one_class) if args.save_prob else nullcontext(())
        with (
            batch.one_thread_each(model.device) as threads,
            saving as passes,
            batch.BackgroundWriter(max(2, threads)) as writer,
        ):
            writer.submit(lambda: figures.save_figure(figures.draw_predictions([row]), beside(output, "_figure.png")))
            writer.submit(save_png, output, mask_image(classes, model.mask_values))
            for ending, grey in prediction.pictures.items():
                writer.submit(save_png, beside(output, f"{ending}.png"), grey)
            for save_pass in passes:
                writer.submit(save_pass)
        level, endings = logging.INFO if len(args.input) < MANY else logging.DEBUG, [*prediction.pictures, "_figure"]
        logger.log(level, "%s: the mask, and beside it %s", output, ", ".join(f"{e}.png" for e in endings))
    if args.viz:
        figures.show_predictions([row], instead=beside(output, "_figure.png"))
    return scores, row


def caption(name: str, scores: dict[str, Any]) -> str:
    """An image's name and scores for people."""
    parts = [name]
    if "dice" in scores:
        parts.append(f"Dice {scores['dice']:.3f}, Jaccard {scores['jaccard']:.3f}")
    parts.append(f"soft Dice confidence {scores['soft_dice_confidence']:.3f}")
    if scores["pairwise_dice"] is not None:
        parts.append(f"pairwise Dice {scores['pairwise_dice']:.3f}")
        parts.append(f"area {scores['area_mean']:.0f} ± {scores['area_std']:.0f} pixels")
    else:
        parts.append(f"area {scores['area']} pixels")
    parts.append(f"mean entropy {scores['mean_entropy']:.3f} nats")
    return "   ·   ".join(parts)


# What is written beside the mask NAME.png begins with NAME and goes on like this.
_RESULTS = (
    r"(_(prob|std)(_c\d+)?|_((expected_)?entropy|mutual_information|figure)|_mc\d+_c\d+)\.png"
    r"|_(mean|std|probs|(expected_)?entropy|mutual_information)\.npy"
)


def output_paths(
    inputs: list[Path], outputs: list[Path] | None, figure: Path | None = None, saving: bool = True
) -> list[Path]:
    """The mask file of each image; neither it nor what is written beside it, nor the figure, replaces another file."""
    if figure and (figure.suffix.lower() != ".png" or figure.is_dir()):
        raise InputError(f"--figure {figure}: a file whose name ends with .png was expected")
    if figure and figure.resolve() in [path.resolve() for path in (*inputs, *(outputs or []))]:
        raise InputError(f"--figure {figure} would replace an image or its mask; choose another name or folder")
    if outputs is None:
        outputs = [beside(path, "_OUT.png") for path in inputs]
    if len(outputs) != len(inputs):
        raise InputError(f"{len(inputs)} images and {len(outputs)} names for their masks: --output needs one for each")
    others = defaultdict(Counter)  # by their folders the names that are taken
    for path in (*inputs, *outputs):
        others[path.parent.resolve()][path.name] += 1
    for folder in {path.parent for path in outputs} if saving else ():
        read_summary(folder / "summary.csv")  # see that it is one
    of_outputs = Counter(path.resolve() for path in outputs)
    for path in outputs:
        if of_outputs[path.resolve()] > 1:
            raise InputError(f"two images would both have the mask {path}: the second would replace {path}; rename one")
        if path.suffix.lower() != ".png":
            raise InputError(
                f"--output {path}: a mask is a PNG, so its name must end with .png (--output-dir takes a folder)"
            )
        if path.is_dir():
            raise InputError(f"--output {path} is a folder: a file was expected")
        results = re.compile(re.escape(path.stem) + f"(?:{re.escape(path.suffix)}|{_RESULTS})")
        for name, count in others[path.parent.resolve()].items():
            if results.fullmatch(name) and (name != path.name or count > 1):
                other = path.with_name(name)
                raise InputError(
                    f"--output {path}: a result of it would replace {other}; choose another name or folder"
                )
    return outputs


if __name__ == "__main__":
    cli.run(main, get_args_parser())
