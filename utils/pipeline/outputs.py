"""The files of an image's results: greyscale maps, float32 maps, single passes."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from utils.data.images import image_size, save_png
from utils.inference.maps import ProbabilityMaps, full_size_blocks, split_samples, to_greyscale
from utils.inference.upsampling import LogitSamples
from utils.pipeline.items import sibling
from utils.runtime.atomic_files import atomic_npy_file
from utils.runtime.errors import InputError
from utils.runtime.output_folder import check_room

FLOAT_MAPS = ("_mean.npy", "_std.npy", "_entropy.npy", "_expected_entropy.npy", "_mutual_information.npy")
MAX_STD = 0.5  # the largest standard deviation of a probability


def make_greyscale_maps(maps: ProbabilityMaps, classes: Sequence[int] | None = None) -> dict[str, Tensor]:
    """The maps as (H, W) uint8 greyscale maps, by the suffix of their file names.

    White is probability 1, standard deviation 0.5, and ln C nats of entropy and mutual information for C classes. Maps
    of the spread exist for several samples only.

    Args:
        maps: with all statistics.
        classes: whose probability and standard deviation are drawn; None for all but the background. With several,
            the suffixes end with `_cK`.
    """
    n_classes = len(maps.probs)
    classes = range(1, n_classes) if classes is None else classes
    max_entropy = math.log(n_classes)
    drawn = {}
    for k in classes:
        suffix = f"_c{k}" if len(classes) > 1 else ""
        drawn[f"_prob{suffix}"] = to_greyscale(maps.probs[k])
        if maps.num_samples > 1:
            drawn[f"_std{suffix}"] = to_greyscale(maps.std[k], white=MAX_STD)
    drawn["_entropy"] = to_greyscale(maps.predictive_entropy, white=max_entropy)
    if maps.num_samples > 1:
        drawn["_expected_entropy"] = to_greyscale(maps.expected_entropy, white=max_entropy)
        drawn["_mutual_information"] = to_greyscale(maps.mutual_information, white=max_entropy)
    return drawn


def save_float_maps(
    output: Path, maps: ProbabilityMaps, *, entropies: bool = True, one_class: bool = False
) -> list[Path]:
    """Write the maps as float32 .npy files beside `output`, `DIR/NAME.png`.

    `NAME_mean.npy` and `NAME_std.npy` are (C, H, W), `NAME_entropy.npy`, `NAME_expected_entropy.npy` and
    `NAME_mutual_information.npy` (H, W) in nats.

    Args:
        output: path of another result of the image.
        maps: with all statistics, on the CPU.
        entropies: write all five, not only the first two.
        one_class: of a one-class model: mean and standard deviation of the foreground only, (H, W).

    Returns:
        The files.
    """
    classes = 1 if one_class else slice(None)
    arrays = {"_mean": maps.probs[classes], "_std": maps.std[classes]}
    if entropies:
        arrays["_entropy"] = maps.predictive_entropy
        arrays |= {"_expected_entropy": maps.expected_entropy, "_mutual_information": maps.mutual_information}
    files = {sibling(output, f"{suffix}.npy"): values.numpy() for suffix, values in arrays.items()}
    for path, array in files.items():
        with atomic_npy_file(path, array.shape) as write:
            write(array, 0)
    return list(files)


def check_room_for_floats(
    folder: Path, outputs: Mapping[Path, Path], values_per_pixel: int, suffixes: Sequence[str]
) -> None:
    """Check that a folder has room for the float32 arrays of some images; greyscale maps take little beside them.

    Args:
        folder: the output folder.
        outputs: by the path of each image that of one of its results, `DIR/NAME.png`.
        values_per_pixel: numbers of each pixel.
        suffixes: of the arrays, which replace earlier ones.

    Raises:
        InputError: it has not.
    """
    pixels = 0
    for path in outputs if values_per_pixel else ():
        with suppress(InputError):  # reading it will report why
            width, height = image_size(path)
            pixels += width * height
    replaced = (sibling(output, suffix) for output in outputs.values() for suffix in suffixes)
    check_room(folder, 4 * values_per_pixel * pixels, replaced if pixels else ())


def _pass_file(output: Path, t: int, c: int) -> Path:
    return sibling(output, f"_mc{t:02d}_c{c}.png")


def pass_files(output: Path, samples: Sequence[LogitSamples], one_class: bool = False) -> list[Path]:
    """The files of `pass_writers`."""
    classes = range(1 if one_class else samples[0].logits.shape[1])
    maps = [_pass_file(output, t, c) for t in range(len(split_samples(samples))) for c in classes]
    return [sibling(output, "_probs.npy"), *maps]


@contextmanager
def pass_writers(
    output: Path,
    samples: Sequence[LogitSamples],
    size: tuple[int, int],
    one_class: bool = False,
    max_values: int | None = None,
) -> Iterator[list[Callable[[], None]]]:
    """Functions that write the probabilities of each pass, as greyscale maps and into one float32 array.

    The files are `NAME_mc00_c0.png` ... and `NAME_probs.npy`, (T, C, H, W); of a one-class model the foreground only,
    (T, H, W). The array appears when the `with` block ends.

    Args:
        output: path of another result of the image, `DIR/NAME.png`.
        samples: of the image.
        size: width and height of the image.
        one_class: of a one-class model.
        max_values: as for `full_size_blocks`.

    Yields:
        One function per pass; they may be called in threads.
    """
    passes, n_classes = split_samples(samples), 1 if one_class else samples[0].logits.shape[1]
    width, height = size
    shape = (len(passes), *([] if one_class else [n_classes]), height, width)

    def save_pass(t: int) -> None:
        greyscale_maps = np.empty((n_classes, height, width), dtype=np.uint8)
        for rows, block in full_size_blocks([passes[t]], size, statistics=(), max_values=max_values):
            for c, probs in enumerate(block.probs[-n_classes:].cpu()):
                write(probs.numpy(), ((t * n_classes + c) * height + rows.start) * width)
                greyscale_maps[c, rows] = to_greyscale(probs).numpy()
        for c, greyscale_map in enumerate(greyscale_maps):
            save_png(_pass_file(output, t, c), greyscale_map)

    with atomic_npy_file(sibling(output, "_probs.npy"), shape) as write:
        yield [partial(save_pass, t) for t in range(len(passes))]
