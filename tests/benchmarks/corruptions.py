"""How robust models are to corruptions: JPEG, tone curve, colour, defocus, vignette, ruler, ink, hair, small lesions.

`python tests/benchmarks/corruptions.py -m MODEL --imgs-dir DIR --masks-dir DIR` changes each image in nine ways, each
in five strengths, and prints the mean Dice coefficient of each as a Markdown table. No training transform draws or
computes these changes in the same way, so they stand for images from other sources. The same image is always changed in
the same way. `--show FILE.png` draws examples instead. Images are scored at 256 pixels or their own smaller size.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import corrupting, overlays
from tests.benchmarks.corrupting import STRENGTHS, at_levels
from tests.benchmarks.small_lesions import small_lesion
from utils import arguments, cli, model_flags
from utils.checkpoint import TrainedModel, load_model
from utils.data import corruptions
from utils.data.images import read_image, save_png
from utils.data.mask_classes import MaskClasses
from utils.data.masks import read_mask
from utils.data.pairing import Pair, pair_files
from utils.inference.predictor import MapOptions, predict_full_size
from utils.inference.samplers import MCDropout, Sampler, Softmax, TestTimeAugmentation
from utils.metrics.pixel_counts import PixelCounts
from utils.metrics.pixel_metrics import PIXEL_METRICS
from utils.metrics.segmentation import segmentation_scores
from utils.runtime.atomic_files import write_csv
from utils.runtime.console import progress
from utils.runtime.seeds import derived_seed
from utils.runtime.threads import map_ahead, usable_cores

logger = logging.getLogger(__name__)

CORRUPTIONS: dict[str, Callable] = {
    "ruler": overlays.ruler,
    "ink": overlays.ink,
    "hair": at_levels(corruptions.hair, [(n, 0.8 + 0.12 * i) for i, n in enumerate((5, 12, 24, 42, 70), 1)]),
    "JPEG": at_levels(corruptions.jpeg, (60, 35, 20, 10, 5)),
    "tone curve": corrupting.tone_curve,
    "skin colour": corrupting.skin_colour,
    "defocus": at_levels(corruptions.defocus, (1.5, 3.0, 4.5, 6.5, 9.0)),
    "vignette": at_levels(corruptions.lens_vignette, (1.35, 1.22, 1.1, 1.0, 0.88)),
    "small lesion": small_lesion,
}
CLEAN = "clean"
MAX_SIDE = 256
SAMPLERS = {Softmax.method: Softmax, MCDropout.method: MCDropout, TestTimeAugmentation.method: TestTimeAugmentation}


@dataclass
class Variant:
    """An image as changed by a corruption.

    Attributes:
        corruption: its name, or `CLEAN`.
        strength: from 1 to 5; 0 for the image itself.
        image: the image.
        classes: (H, W) uint8 classes of the ground truth.
    """

    corruption: str
    strength: int
    image: Image.Image
    classes: np.ndarray


@dataclass
class Results:
    """The scores of a model with a method.

    Attributes:
        dice: Dice coefficients of the images, by corruption and strength.
        counts: the counts of the pixels of the clean (False) and of all corrupted images (True).
    """

    dice: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    counts: dict[bool, PixelCounts] = field(default_factory=dict)

    def add(self, variant: Variant, dice: float, counts: PixelCounts) -> None:
        """Add the scores of an image."""
        self.dice.setdefault((variant.corruption, variant.strength), []).append(dice)
        key = variant.corruption != CLEAN
        self.counts[key] = self.counts[key] + counts if key in self.counts else counts

    def means(self, corruption: str) -> list[float]:
        """The mean Dice coefficient at each strength."""
        return [float(np.mean(self.dice[corruption, strength])) for strength in STRENGTHS]

    @property
    def corruptions(self) -> list[str]:
        """Those that could be applied to at least one image."""
        return [name for name in CORRUPTIONS if (name, 1) in self.dice]

    @property
    def clean(self) -> float:
        """The mean Dice coefficient of the images as they are."""
        return float(np.mean(self.dice[CLEAN, 0]))

    @property
    def corrupted(self) -> float:
        """The mean Dice coefficient over all corruptions and strengths."""
        return float(np.mean([self.means(name) for name in self.corruptions]))


def variants(image: Image.Image, classes: np.ndarray, name: str) -> Iterator[Variant]:
    """The image itself, and as changed by each corruption that can be applied to it, in each strength.

    Args:
        image: RGB image.
        classes: (H, W) uint8 classes of the ground truth.
        name: of the image, from which the random numbers are derived.
    """
    yield Variant(CLEAN, 0, image, classes)
    pixels = np.asarray(image, dtype=np.float32) / 255
    for corruption, function in CORRUPTIONS.items():
        for strength in STRENGTHS:
            rng = np.random.default_rng(derived_seed(0, f"{corruption}:{name}"))
            changed = function(pixels, classes, strength, rng)
            if changed is not None:
                changed_image = Image.fromarray((changed[0] * 255 + 0.5).clip(0, 255).astype(np.uint8))
                yield Variant(corruption, strength, changed_image, changed[1])


def read_pair(pair: Pair, mask_values: list[int]) -> tuple[Image.Image, np.ndarray]:
    """An image and the classes of its mask, downscaled to a longer side of at most `MAX_SIDE` pixels."""
    image = read_image(pair.image)
    mask = read_mask(pair.mask)
    classes = MaskClasses(tuple(mask_values)).of(mask.values)[mask.codes]
    scale = min(1.0, MAX_SIDE / max(image.size))
    size = tuple(max(1, round(length * scale)) for length in image.size)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
        classes = np.asarray(Image.fromarray(classes).resize(size, Image.Resampling.NEAREST))
    return image, classes


def read_variants(pair: Pair, mask_values: list[int]) -> list[Variant]:
    """All variants of a pair of files."""
    return list(variants(*read_pair(pair, mask_values), pair.image.stem))


def score(model: TrainedModel, sampler: Sampler, items: list[Variant], name: str, results: Results) -> None:
    """Predict the variants of an image, and add their scores to the results."""
    n = sampler.images_per_batch
    for group in (items[i : i + n] for i in range(0, len(items), n)):
        inputs = [sampler.preprocess_image(item.image, model.input_size) for item in group]
        for item, samples in zip(group, sampler.sample(model, inputs, [name] * len(group)), strict=True):
            prediction = predict_full_size(samples, item.image.size, MapOptions(), item.classes)
            scores = segmentation_scores(prediction.classes, item.classes, model.n_classes)
            results.add(item, scores["dice"], prediction.counts)


def table(results: dict[tuple[str, str], Results]) -> str:
    """The results as a Markdown table, and a summary line per model and method."""
    lines = ["| model | method | corruption | 1 | 2 | 3 | 4 | 5 | mean | images |", "|---" * 10 + "|"]
    for (model, method), one in results.items():
        lines.append(f"| {model} | {method} | {CLEAN} | | | | | | {one.clean:.3f} | {len(one.dice[CLEAN, 0])} |")
        for name in one.corruptions:
            means = one.means(name)
            values = " | ".join(f"{value:.3f}" for value in [*means, np.mean(means)])
            lines.append(f"| {model} | {method} | {name} | {values} | {len(one.dice[name, 1])} |")
    lines.append("")
    for (model, method), one in results.items():
        pixels = {key: (PIXEL_METRICS["nll"](c), PIXEL_METRICS["ece_top_label"](c)) for key, c in one.counts.items()}
        nll, ece = pixels[True]
        lines.append(
            f"{model}, {method}: mean Dice {one.corrupted:.4f} over all corruptions and strengths, NLL {nll:.4f}, "
            f"ECE {ece:.4f}; clean {one.clean:.4f}, {pixels[False][0]:.4f}, {pixels[False][1]:.4f}"
        )
    return "\n".join(lines)


def rows(results: dict[tuple[str, str], Results]) -> list[dict[str, object]]:
    """The mean Dice coefficient of each model, method, corruption and strength, for a CSV file."""
    return [
        {"model": model, "method": method, "corruption": name, "strength": strength, "images": len(dice)}
        | {"dice": round(float(np.mean(dice)), 6)}
        for (model, method), one in results.items()
        for (name, strength), dice in one.dice.items()
    ]


def contact_sheet(pairs: list[Pair], side: int = 192) -> Image.Image:
    """A row per corruption, all of them of another image in turn: the image, and the five strengths, masks outlined."""
    sheet = Image.new("RGB", (side * (1 + len(STRENGTHS)), side * len(CORRUPTIONS)))
    for row, corruption in enumerate(CORRUPTIONS):
        pair = pairs[row % len(pairs)]
        for variant in read_variants(pair, [0, 255]):
            if variant.corruption in (CLEAN, corruption):
                lesion = variant.classes > 0
                edge = lesion & ~(np.roll(lesion, 1, 0) & np.roll(lesion, -1, 0) & np.roll(lesion, (1, -1), (0, 1)))
                pixels = np.where(edge[..., None], np.array([0, 255, 0]), np.asarray(variant.image)).astype(np.uint8)
                tile = Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
                sheet.paste(tile, (side * variant.strength, side * row))
    return sheet


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[arguments.compute_parent()]
    )
    add = partial(arguments.add_with_default, parser)
    parser.add_argument("--model", "-m", type=Path, action="append", metavar="FILE", help="checkpoint; repeatable")
    add("--imgs-dir", type=Path, default=Path("data/samples/imgs"), metavar="DIR", help="folder of images")
    add("--masks-dir", type=Path, default=Path("data/samples/masks"), metavar="DIR", help="folder of masks")
    add("--images", type=arguments.integer(1), default=60, metavar="N", help="number of images, evenly spaced by name")
    add("--methods", nargs="+", choices=SAMPLERS, default=[Softmax.method], metavar="METHOD", help=", ".join(SAMPLERS))
    add("--csv", type=Path, default=Path("corruptions.csv"), metavar="FILE", help="is written")
    parser.add_argument("--show", type=Path, metavar="FILE", help="draw the corruptions into a PNG, and do no more")
    return parser


def main(args: argparse.Namespace) -> None:
    pairs = pair_files(args.imgs_dir, args.masks_dir)
    pairs = [pairs[i] for i in sorted({int(i) for i in np.linspace(0, len(pairs) - 1, args.images)})]
    if args.show:
        save_png(args.show, contact_sheet(pairs))
        return
    device, dtype = model_flags.device_from_args(args)
    models = {str(path): load_model(path, device) for path in args.model or [arguments.DEFAULT_MODEL]}
    samplers = [SAMPLERS[name](dtype=dtype) for name in args.methods]
    results = {(model, sampler.method): Results() for model in models for sampler in samplers}
    mask_values = next(iter(models.values())).mask_values
    make = partial(read_variants, mask_values=mask_values)
    made = map_ahead(make, pairs, threads=usable_cores(), ahead=2 * usable_cores())
    with torch.inference_mode():
        for pair, future in progress(made, total=len(pairs), unit="image"):
            items = future.result()
            for path, model in models.items():
                for sampler in samplers:
                    score(model, sampler, items, pair.image.stem, results[path, sampler.method])
    write_csv(args.csv, rows(results))
    print(table(results))


if __name__ == "__main__":
    cli.run(main, get_args_parser())
