"""Look closely at the uncertainty of single images: their Monte Carlo dropout maps."""

import argparse
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils import cli, figures
from utils.batch import BackgroundWriter, Report
from utils.checkpoint import TrainedModel
from utils.errors import InputError
from utils.image_io import mask_image, npy_file, read_image, save_png
from utils.probability import (
    LogitSamples,
    MCDropout,
    ProbabilityMaps,
    Softmax,
    full_size_probs,
    most_probable_class,
    summarize,
    to_grey,
)

logger = logging.getLogger(__name__)


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
    return parser


def main(args: argparse.Namespace) -> int:
    outputs = output_paths(args.input, args.output)
    model, dtype = cli.load_model(args)
    if args.mc > 1:
        sampler = MCDropout(args.batch_size, dtype, num_samples=args.mc, seed=args.seed)
    else:
        sampler = Softmax(args.batch_size, dtype)
    sampler.check(model)

    report = Report()
    for path, output in zip(args.input, cli.progress(outputs, unit="image"), strict=True):
        with report.failing_alone(str(path)):
            image = read_image(path)
            samples = sampler.sample(model, [sampler.inputs(image, model.input_size)], [path.name])[0]
            maps = summarize(samples, image.size)
            classes = most_probable_class(maps.probs, args.mask_threshold)
            if args.viz:
                figure = figures.draw_prediction(image, classes, maps, title=path.name)
                figures.show_figure(figure, instead=beside(output, "_figure.png"))
            if not args.no_save:
                save_maps(output, model, maps, classes)
                if args.save_mean_std:
                    save_mean_std(output, model, maps)
                del maps  # each pass is as large
                if args.save_prob:
                    save_passes(output, model, samples, image.size)
            report.rows.append({"image": str(path)})
    return report.finish()


# What is written beside the mask NAME.png begins with NAME and goes on like this.
_RESULTS = r"(_(prob|std)(_c\d+)?|_(entropy|mutual_information|figure)|_mc\d+_c\d+)\.png|_(mean|std|probs)\.npy"


def output_paths(inputs: list[Path], outputs: list[Path] | None) -> list[Path]:
    """The mask file of each image; neither it nor what is written beside it stands for another file."""
    if outputs is None:
        outputs = [beside(path, "_OUT.png") for path in inputs]
    if len(outputs) != len(inputs):
        raise InputError(f"{len(inputs)} images and {len(outputs)} names for their masks: --output needs one for each")
    for i, path in enumerate(outputs):
        if path.suffix.lower() != ".png":
            raise InputError(f"--output {path}: a mask is written as a PNG, so its name must end with .png")
        if path.is_dir():
            raise InputError(f"--output {path} is a folder: a file was expected")
        results = re.compile(re.escape(path.stem) + f"(?:{re.escape(path.suffix)}|{_RESULTS})")
        for other in (*inputs, *outputs[:i], *outputs[i + 1 :]):
            if other.resolve().parent == path.resolve().parent and results.fullmatch(other.name):
                raise InputError(
                    f"--output {path}: a result of it would replace {other}; choose another name or folder"
                )
    return outputs


def beside(path: Path, ending: str) -> Path:
    """`DIR/NAME.png` with another ending behind NAME."""
    return path.with_name(path.stem + ending)


def saved_classes(model: TrainedModel) -> slice:
    """The classes whose probabilities are saved: all, but of a one-class model the lesion alone."""
    return slice(1, 2) if model.network.n_classes == 1 else slice(None)


def save_maps(output: Path, model: TrainedModel, maps: ProbabilityMaps, classes: np.ndarray) -> None:
    """Write the mask, and beside it the grey maps; those of the spread only if there are several samples."""
    n_classes = len(model.mask_values)
    white = math.log(n_classes)  # the highest entropy that there is
    greys = {"_entropy": to_grey(maps.predictive_entropy, white)}
    for k in range(1, n_classes):
        of_class = f"_c{k}" if n_classes > 2 else ""
        greys[f"_prob{of_class}"] = to_grey(maps.probs[k])
        if maps.num_samples > 1:
            greys[f"_std{of_class}"] = to_grey(maps.std[k], white=0.5)  # the highest that there is
    if maps.num_samples > 1:
        greys["_mutual_information"] = to_grey(maps.mutual_information, white)
    with BackgroundWriter() as writer:
        writer.submit(save_png, output, mask_image(classes, model.mask_values))
        for name, grey in greys.items():
            writer.submit(save_png, beside(output, f"{name}.png"), grey)
    logger.info(
        "%s: the mask, and beside it %s. White is probability 1, standard deviation 0.5, entropy and mutual "
        "information ln %d = %.3f nats",
        output,
        ", ".join(sorted(greys)),
        n_classes,
        white,
    )


def save_mean_std(output: Path, model: TrainedModel, maps: ProbabilityMaps) -> None:
    """Write mean and standard deviation over the passes: float32 (C, H, W), or (H, W) for a one-class model."""
    for name, values in (("mean", maps.probs), ("std", maps.std)):
        array = values[saved_classes(model)].cpu().numpy()
        array = array[0] if model.network.n_classes == 1 else array
        with npy_file(beside(output, f"_{name}.npy"), array.shape) as write:
            write(array)


def save_passes(output: Path, model: TrainedModel, samples: Sequence[LogitSamples], size: tuple[int, int]) -> None:
    """Write the probabilities of every pass, one pass after the other: PNGs, and one float32 array of all.

    The array is (T, C, H, W), or (T, H, W) for a one-class model.
    """
    n_samples, n_classes = sum(len(s.logits) for s in samples), model.network.n_classes
    shape = (n_samples, *([n_classes] if n_classes > 1 else []), size[1], size[0])
    with npy_file(beside(output, "_probs.npy"), shape) as write, BackgroundWriter() as writer:
        for t, probs in enumerate(full_size_probs(samples, size)):
            for c, values in enumerate(probs[saved_classes(model)]):
                writer.submit(save_png, beside(output, f"_mc{t:02d}_c{c}.png"), to_grey(values))
            write(probs[saved_classes(model)].cpu().numpy())


if __name__ == "__main__":
    cli.run(main, get_args_parser())
