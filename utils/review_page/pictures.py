"""The pictures of one image on the page: the photograph, small ones with contours, and its maps as values."""

import base64
import io
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from utils import IGNORED_CLASS
from utils.data.images import image_size, open_upright, read_image
from utils.data.mask_classes import MaskClasses
from utils.data.masks import read_mask
from utils.figures.palette import GROUND_TRUTH, PREDICTION, class_colour
from utils.metrics.segmentation import segmentation_scores
from utils.pipeline.items import Item
from utils.review_page.runs import PredictionRun, ResultFiles
from utils.runtime.errors import InputError

SIDES = (1000, 512, 240)  # the longer sides of photographs, maps and small pictures, in pixels
SMALL_SIDES = (720, 256, 160)  # those of a page that can be sent by mail
_JPEG = {"format": "JPEG", "quality": 85}


@dataclass
class ImagePictures:
    """What the page shows of an image.

    Attributes:
        size: its width and height.
        photo: a JPEG file.
        small: for each run a smaller one with the contours of prediction and ground truth.
        maps: width and height of the maps; `runs`, for each run its maps by name; `truth`, the ground truth of each
            class but the background, and `ignored`, the pixels that do not count. A map is text, see `_deflated`, and
            255 is certain, or covered.
        scores: for each run the scores of its mask against the ground truth, if there are both.
    """

    size: tuple[int, int]
    photo: bytes
    small: list[bytes | None]
    maps: dict[str, Any]
    scores: list[dict[str, float]]


class PictureMaker:
    """Makes the pictures of images; may be called in threads.

    Args:
        runs: whose results are shown.
        mask_values: for each of them the mask value of each class.
        read_target: the ground truth of an image, see `GroundTruth.read`, if there is any.
        sides: as `SIDES`.
    """

    def __init__(
        self,
        runs: Sequence[PredictionRun],
        mask_values: Sequence[Sequence[int]],
        read_target: Callable[[Item, tuple[int, int]], np.ndarray | None] = lambda item, shape: None,
        sides: tuple[int, int, int] = SIDES,
    ) -> None:
        self.runs, self.read_target, self.sides = runs, read_target, sides
        self.n_classes = len(mask_values[0])
        self._classes = [MaskClasses(tuple(values), by_index=True) for values in mask_values]

    def make(self, item: Item) -> ImagePictures:
        """The pictures of an image.

        Raises:
            InputError: a file is missing, cannot be read, or has another size than the image.
        """
        full_size, (photo_side, map_side, small_side) = image_size(item.path), self.sides
        target = self.read_target(item, full_size[::-1])
        size = _fitting(full_size, map_side)
        truth = {} if target is None else self._coverages(target, size)
        photo = read_image(item.path, self.runs[0].settings.get("white"), photo_side)
        photo = photo.resize(_fitting(full_size, photo_side), Image.Resampling.BICUBIC, reducing_gap=1)
        base = photo.resize(_fitting(full_size, small_side), Image.Resampling.BICUBIC, reducing_gap=2)
        maps_of_runs, small, scores = [], [], []
        for run, mask_classes in zip(self.runs, self._classes, strict=True):
            maps, measured = {}, {}
            if item.key in run.scores:
                maps, measured = self._maps_of(run.files(item.key), mask_classes, full_size, size, target)
            maps_of_runs.append(maps)
            small.append(_encoded(_with_contours(base, truth, maps, self.n_classes)) if maps else None)
            scores.append(measured)
        maps = {"width": size[0], "height": size[1], "runs": [_deflated_maps(one) for one in maps_of_runs]}
        maps["truth"] = list(_deflated_maps(truth).values())
        if target is not None and (ignored := target == IGNORED_CLASS).any():
            maps["ignored"] = _deflated(_coverage(ignored, size))
        return ImagePictures(full_size, _encoded(photo), small, maps, scores)

    def _maps_of(
        self,
        files: ResultFiles,
        mask_classes: MaskClasses,
        full_size: tuple[int, int],
        size: tuple[int, int],
        target: np.ndarray | None,
    ) -> tuple[dict[str, Image.Image], dict[str, float]]:
        """The maps of an image in one run, reduced to a size, and the scores of its mask."""
        maps, classes = {}, None
        if files.mask is not None:
            mask = read_mask(files.mask)
            classes = mask_classes.of(mask.values)[mask.codes]
            _check_size(files.mask, classes.shape[::-1], full_size)
            maps |= {f"mask_c{k}": coverage for k, coverage in self._coverages(classes, size).items()}
        named = {f"probability_c{k}": path for k, path in files.probs.items()}
        named |= {**files.layers, **files.regions}
        for name, path in named.items():
            grey = open_upright(path).convert("L")
            _check_size(path, grey.size, full_size)
            if classes is None and self.n_classes == 2 and target is not None:
                classes = (np.asarray(grey) > 127).astype(np.uint8)  # 127 is below one half, 128 above
            maps[name] = grey.resize(size, Image.Resampling.BOX, reducing_gap=1)
        if target is None or classes is None:
            return maps, {}
        return maps, segmentation_scores(classes, target, self.n_classes)

    def _coverages(self, classes: np.ndarray, size: tuple[int, int]) -> dict[int, Image.Image]:
        """For each class but the background how much of each pixel of the given size it covers."""
        return {k: _coverage(classes == k, size) for k in range(1, self.n_classes)}


def _coverage(region: np.ndarray, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(region.view(np.uint8) * 255).resize(size, Image.Resampling.BOX, reducing_gap=1)


def _check_size(path: Path, size: tuple[int, int], expected: tuple[int, int]) -> None:
    if size != expected:
        raise InputError(f"it has {expected[0]}x{expected[1]} pixels, its result {path} {size[0]}x{size[1]}")


def _fitting(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height of an image that is downscaled to a longer side."""
    scale = min(1, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, **_JPEG)
    return file.getvalue()


def _deflated_maps(maps: Mapping[Any, Image.Image]) -> dict[Any, str]:
    return {name: _deflated(image) for name, image in maps.items()}


def _deflated(image: Image.Image) -> str:
    """The greyscale values as differences to the pixel before, deflated, as base64 text.

    Not a PNG: a page that was opened from the disk may read the pixels of no picture, and browsers that guard against
    fingerprinting change a few of those that it may read.
    """
    values = np.asarray(image).ravel()
    differences = np.diff(values, prepend=values.dtype.type(0))  # modulo 256; they take a fifth less space
    return base64.b64encode(zlib.compress(differences.tobytes(), 1)).decode()


def _with_contours(
    photo: Image.Image, truth: Mapping[int, Image.Image], maps: Mapping[str, Image.Image], n_classes: int
) -> Image.Image:
    """A photograph with the contours of the ground truth and, above them, of the prediction."""
    predicted = {name: one for name, one in maps.items() if name.startswith("mask_c")}
    predicted = predicted or {name: one for name, one in maps.items() if name.startswith("probability_c")}
    photo = photo.copy()
    for k, coverage in truth.items():
        _draw_contour(photo, coverage, GROUND_TRUTH if n_classes == 2 else class_colour(k))
    for name, coverage in predicted.items():
        _draw_contour(photo, coverage, PREDICTION if n_classes == 2 else class_colour(int(name.rpartition("_c")[2])))
    return photo


def _draw_contour(photo: Image.Image, coverage: Image.Image, colour: tuple[int, int, int]) -> None:
    """Draw the outline of a region, with a dark rim that keeps it visible on any skin."""
    width, height = photo.size
    large = coverage.resize((2 * width, 2 * height), Image.Resampling.BILINEAR)
    region = large.point(lambda value: 255 * (value > 127))
    for radius, ink in ((3, (0, 0, 0)), (2, colour)):
        line = region.filter(ImageFilter.BoxBlur(radius)).point(lambda value: 255 * (0 < value < 255))
        photo.paste(ink, mask=line.resize(photo.size, Image.Resampling.BOX))
