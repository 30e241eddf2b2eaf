"""Synthetic dermoscopy images with masks, for trying the scripts without real data.

`python -m utils.sample_data --output-dir data/samples --count 9` writes the built-in ones, always the same.
"""

import argparse
import io
import logging
from pathlib import Path

import numpy as np
from PIL import Image

from utils import arguments, cli
from utils.data.artefacts import draw_bubbles, draw_hairs, vignette
from utils.data.images import save_png
from utils.runtime.atomic_files import write_file
from utils.runtime.console import progress

logger = logging.getLogger(__name__)

SIZE = (512, 384)


def make_sample(seed: int, size: tuple[int, int] = SIZE) -> tuple[Image.Image, Image.Image]:
    """A synthetic image of a skin lesion, and its mask.

    The skin has a tone, lighting from one side, noise and redness; the lesion an irregular border, partly sharp and
    partly fading, blotches and a pigment network; over them are hairs, bubbles of immersion fluid, and vignetting.

    Args:
        seed: the same seed makes the same image.
        size: width and height.

    Returns:
        RGB image, and greyscale mask of 0 and 255.
    """
    rng = np.random.default_rng(seed)
    width, height = size
    tone = np.array([222, 178, 156]) * rng.uniform(0.86, 1.06) + rng.normal(0, 1, 3) * (4, 6, 8)
    pixels = _skin(rng, size, tone)
    depth, alpha = _lesion_shape(rng, size)
    pixels += (_lesion_colours(rng, size, tone, depth) - pixels) * alpha[..., None]
    if rng.random() < 0.5:
        pixels *= vignette(rng, size)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    image = draw_hairs(rng, image, int(rng.integers(0, 14)))
    image = draw_bubbles(rng, image, int(rng.integers(0, 5)))
    grain = rng.normal(0, 2.2, (height, width, 1))
    image = Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
    return image, Image.fromarray(((alpha > 0.2) * 255).astype(np.uint8))  # a generous outline, like that of experts


def _coordinates(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) rows and columns of the pixels."""
    width, height = size
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return rows, columns


def _skin(rng: np.random.Generator, size: tuple[int, int], tone: np.ndarray) -> np.ndarray:
    """(H, W, 3) skin of a tone: light from one side, noise of several grain sizes, and redness."""
    width, height = size
    y, x = _coordinates(size)
    direction = rng.uniform(0, 2 * np.pi)
    slope = ((x - width / 2) * np.cos(direction) + (y - height / 2) * np.sin(direction)) / min(size)
    skin = 1 + 0.06 * slope + 0.045 * _noise(rng, size, 5) + 0.03 * _noise(rng, size, 18) + 0.02 * _noise(rng, size, 90)
    pixels = tone * skin[..., None]
    pixels += np.clip(_noise(rng, size, 9), 0, None)[..., None] * np.array([0.5, -5, -4])
    return pixels


def _lesion_shape(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) depth, which is positive inside the lesion, and (H, W) opacity of the lesion.

    The border is a circle whose radius varies with the angle.
    """
    width, height = size
    y, x = _coordinates(size)
    centre = np.array([width, height]) * rng.uniform(0.42, 0.58, 2)
    radius = min(size) * rng.uniform(0.2, 0.33)
    stretch, rotation = rng.uniform(0.72, 1.0), rng.uniform(0, np.pi)
    dx, dy = x - centre[0], y - centre[1]
    u = dx * np.cos(rotation) + dy * np.sin(rotation)
    v = (-dx * np.sin(rotation) + dy * np.cos(rotation)) / stretch
    angle, distance = np.arctan2(v, u), np.hypot(u, v)
    border = np.ones_like(angle)
    for k in range(2, 9):
        border += rng.normal(0, 0.16 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    depth = border - distance / radius + 0.035 * _noise(rng, size, 14) + 0.015 * _noise(rng, size, 60)
    softness = 0.05 + 0.1 * (1 + np.cos(angle + rng.uniform(0, 2 * np.pi))) * rng.uniform(0.2, 1.6)
    with np.errstate(over="ignore"):  # far outside, where the opacity is 0
        return depth, 1 / (1 + np.exp(-4 * depth / softness))


def _lesion_colours(rng: np.random.Generator, size: tuple[int, int], tone: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """(H, W, 3) colours of the lesion: from the rim to a darker centre, with blotches and a pigment network."""
    paleness = rng.uniform(0.0, 0.6)  # a faint lesion is hardly darker than the skin
    rim = np.array([0.72, 0.58, 0.48]) * rng.uniform(0.94, 1.06, 3)
    rim = tone * (rim + (1 - rim) * paleness)
    centre = rim * (rng.uniform(0.45, 0.75) + 0.35 * paleness) * rng.uniform(0.93, 1.07, 3)
    inwards = np.clip(depth + 0.35 * _noise(rng, size, 7) + 0.1 * _noise(rng, size, 25), 0, 0.8)[..., None] / 0.8
    colours = rim + (centre - rim) * inwards
    network = np.abs(_noise(rng, size, 55)) * rng.uniform(0.05, 0.14) + 0.03 * _noise(rng, size, 110)
    return colours * (1 - network)[..., None]


def _noise(rng: np.random.Generator, size: tuple[int, int], grains: float) -> np.ndarray:
    """(H, W) smooth random values with a standard deviation of about 1 and that many grains along the shorter side."""
    width, height = size
    step = max(min(size) / grains, 1.0)
    coarse = rng.normal(0, 1, (int(np.ceil(height / step)) + 3, int(np.ceil(width / step)) + 3)).astype(np.float32)
    smooth = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(smooth) * 1.4


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m utils.sample_data", description=__doc__)
    arguments.add_with_default(
        parser,
        "--output-dir",
        type=Path,
        default=Path("data/samples"),
        metavar="DIR",
        help="folder for imgs/SAMPLE_NN.jpg and masks/SAMPLE_NN_Segmentation.png",
    )
    arguments.add_with_default(
        parser, "--count", type=arguments.integer(1, 100_000), default=9, metavar="N", help="number of images"
    )
    arguments.add_with_default(
        parser, "--seed", type=arguments.integer(0), default=0, metavar="N", help="seed of the first image"
    )
    for flag, value in (("--width", SIZE[0]), ("--height", SIZE[1])):
        arguments.add_with_default(
            parser, flag, type=arguments.integer(16, 20_000), default=value, metavar="N", help=f"{flag[2:]} in pixels"
        )
    return parser


def main(args: argparse.Namespace) -> None:
    cli.require_one_process()
    for i in progress(range(args.seed, args.seed + args.count), unit="image"):
        image, mask = make_sample(i, (args.width, args.height))
        jpeg = io.BytesIO()  # Pillow does not report a full disk for each JPEG
        image.save(jpeg, "JPEG", quality=88)
        write_file(args.output_dir / "imgs" / f"SAMPLE_{i:02d}.jpg", jpeg.getbuffer())
        save_png(args.output_dir / "masks" / f"SAMPLE_{i:02d}_Segmentation.png", mask)
    logger.info("%d images with masks in %s", args.count, args.output_dir)


if __name__ == "__main__":
    cli.run(main, get_args_parser())
