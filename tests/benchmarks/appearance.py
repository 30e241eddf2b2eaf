"""How well a recipe works on images unlike its training images: clusters by appearance are held out in turn.

`python tests/benchmarks/appearance.py --imgs-dir DIR --masks-dir DIR` clusters the images by what differs between
sources: colour, vignette, contrast, size of the lesion, stickers and ink, hair and rulers, reflections. For each
cluster `train_bayesian.py` trains on all others, and its best epoch, by a random part of those, is tested on this one.
Flags after `--` are passed on to it, such as `-- --batch-size 16`. `--show FILE.png` draws examples of each cluster in
place of that. Images are scored at 256 pixels or their own smaller size.
"""

import argparse
import logging
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.appearance_features import appearance, clusters
from tests.benchmarks.corruptions import CLEAN, SAMPLERS, Results, Variant, read_pair, score
from utils import arguments, cli, model_flags
from utils.checkpoint import load_model
from utils.data.images import save_png
from utils.data.pairing import Pair, pair_files
from utils.inference.samplers import Sampler
from utils.metrics.pixel_metrics import PIXEL_METRICS
from utils.runtime.atomic_files import write_csv
from utils.runtime.console import progress
from utils.runtime.errors import InputError
from utils.runtime.threads import usable_cores

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
MASK_VALUES = [0, 255]


def features_of(pair: Pair) -> dict[str, float]:
    """The features of the appearance of an image."""
    image, classes = read_pair(pair, MASK_VALUES)
    return appearance(np.asarray(image, dtype=np.float32) / 255, classes > 0)


def link_pairs(pairs: list[Pair], folder: Path) -> tuple[Path, Path]:
    """Folders with symbolic links to these images and masks; those of an earlier run are removed."""
    imgs, masks = folder / "imgs", folder / "masks"
    for target, files in (
        (imgs, [pair.image for pair in pairs]),
        (masks, [mask for pair in pairs for mask in pair.masks]),
    ):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for file in files:
            (target / file.name).symlink_to(file.resolve())
    return imgs, masks


def train(pairs: list[Pair], folder: Path, flags: list[str]) -> Path:
    """Train on these pairs with `train_bayesian.py`.

    Args:
        pairs: for training and validation.
        folder: for links to them, a cache, and the checkpoints.
        flags: of `train_bayesian.py`.

    Returns:
        The checkpoint of the best epoch.

    Raises:
        InputError: it failed.
    """
    imgs, masks = link_pairs(pairs, folder)
    checkpoints = folder / "checkpoints"
    shutil.rmtree(checkpoints, ignore_errors=True)
    folders = {"imgs": imgs, "masks": masks, "cache": folder / "cache", "checkpoint": checkpoints}
    command = [sys.executable, str(ROOT / "train_bayesian.py"), "--wandb", "disabled", *flags]
    for name, path in folders.items():
        command += [f"--{name}-dir", str(path.resolve())]
    if code := subprocess.run(command, cwd=ROOT).returncode:
        raise InputError(f"train_bayesian.py ended with {code} for {folder}")
    return checkpoints / "best.pth"


def evaluate(pairs: list[Pair], path: Path, samplers: list[Sampler], device: torch.device) -> dict[str, Results]:
    """The scores of a model on these images, by method."""
    model = load_model(path, device)
    results = {sampler.method: Results() for sampler in samplers}
    with torch.inference_mode():
        for pair in progress(pairs, desc="Held out", unit="image", leave=False):
            items = [Variant(CLEAN, 0, *read_pair(pair, model.mask_values))]
            for sampler in samplers:
                score(model, sampler, items, pair.image.stem, results[sampler.method])
    return results


def row(k: int, size: int, words: str, results: dict[str, Results]) -> dict[str, object]:
    """A row of the table: a cluster, and the scores of the model that has not seen it."""
    values: dict[str, object] = {"cluster": k + 1, "images": size, "appearance": words}
    for method, one in results.items():
        values[f"Dice {method}"] = round(one.clean, 4)
        values[f"NLL {method}"] = round(float(PIXEL_METRICS["nll"](one.counts[False])), 4)
        values[f"ECE {method}"] = round(float(PIXEL_METRICS["ece_top_label"](one.counts[False])), 4)
    return values


def table(rows: list[dict[str, object]]) -> str:
    """The rows as a Markdown table, with the mean over the clusters below."""
    names = list(rows[0])
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    lines += [f"| {' | '.join(str(one[name]) for name in names)} |" for one in rows]
    means = [f"{np.mean([one[name] for one in rows]):.4f}" for name in names[3:]]
    if means:
        total = sum(one["images"] for one in rows)
        lines.append(f"| mean of the clusters | {total} | | {' | '.join(means)} |")
    return "\n".join(lines)


def contact_sheet(pairs: list[Pair], labels: np.ndarray, columns: int = 10, side: int = 128) -> Image.Image:
    """A row of examples per cluster, evenly spaced by name."""
    sheet = Image.new("RGB", (side * columns, side * (labels.max() + 1)))
    for k in range(labels.max() + 1):
        members = np.flatnonzero(labels == k)
        for column, i in enumerate(members[np.unique(np.linspace(0, len(members) - 1, columns).astype(int))]):
            image, _ = read_pair(pairs[i], MASK_VALUES)
            sheet.paste(image.resize((side, side), Image.Resampling.LANCZOS), (side * column, side * k))
    return sheet


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[arguments.compute_parent()]
    )
    add = partial(arguments.add_with_default, parser)
    add("--imgs-dir", type=Path, default=Path("data/imgs"), metavar="DIR", help="folder of images")
    add("--masks-dir", type=Path, default=Path("data/masks"), metavar="DIR", help="folder of masks of 0 and 255")
    add("--clusters", type=arguments.integer(2, 50), default=5, metavar="N", help="number of clusters")
    add("--augmentation", default="light", metavar="NAME", help="as for train_bayesian.py")
    add("--epochs", type=arguments.integer(1), default=20, metavar="N", help="as for train_bayesian.py")
    parser.add_argument(
        "--only", nargs="+", type=arguments.integer(1), metavar="K", help="hold out these clusters only"
    )
    methods = {"choices": SAMPLERS, "default": ["softmax"], "metavar": "METHOD"}
    add("--methods", nargs="+", help=", ".join(SAMPLERS), **methods)
    add("--out", type=Path, default=Path("appearance"), metavar="DIR", help="folder for checkpoints and appearance.csv")
    parser.add_argument("--list", action="store_true", help="print the clusters, and do no more")
    parser.add_argument(
        "--show", type=Path, metavar="FILE", help="draw examples into a PNG, print the clusters, no more"
    )
    parser.add_argument("recipe", nargs="*", metavar="FLAG", help="after --: further flags of train_bayesian.py")
    return parser


def main(args: argparse.Namespace) -> None:
    pairs = pair_files(args.imgs_dir, args.masks_dir)
    if len(pairs) < 2 * args.clusters:
        raise InputError(f"{len(pairs)} images are too few for {args.clusters} clusters")
    if args.only and max(args.only) > args.clusters:
        raise InputError(f"there is no cluster {max(args.only)}: they are numbered from 1 to {args.clusters}")
    device, dtype = model_flags.device_from_args(args)

    # Clusters by appearance, the largest first
    with ThreadPoolExecutor(usable_cores()) as pool:
        features = list(progress(pool.map(features_of, pairs), total=len(pairs), desc="Features", unit="image"))
    labels, words = clusters(features, args.clusters)
    if args.show:
        save_png(args.show, contact_sheet(pairs, labels))
    if args.show or args.list:
        print(table([row(k, int((labels == k).sum()), words[k], {}) for k in range(args.clusters)]))
        return

    # Train on all clusters but one, and test on that one
    flags = ["--augmentation", args.augmentation, "--epochs", str(args.epochs), "--seed", str(args.seed)]
    flags += ["--device", str(device), *["--amp"] * args.amp, *args.recipe]
    samplers = [SAMPLERS[name](dtype=dtype) for name in args.methods]
    rows = []
    for k in sorted({one - 1 for one in args.only} if args.only else range(args.clusters)):
        held_out = [pair for pair, label in zip(pairs, labels, strict=True) if label == k]
        others = [pair for pair, label in zip(pairs, labels, strict=True) if label != k]
        logger.info("Cluster %d, held out: %d images, %s", k + 1, len(held_out), words[k])
        path = train(others, args.out / f"cluster_{k + 1}", flags)
        rows.append(row(k, len(held_out), words[k], evaluate(held_out, path, samplers, device)))
        write_csv(args.out / "appearance.csv", rows)
    print(table(rows))


if __name__ == "__main__":
    cli.run(main, get_args_parser())
