"""The three samplers, and the one way from their logits to full-size maps.

Whatever the method, an image becomes a stack of logits at the network's resolution: one sample by the plain softmax,
T by MC dropout, 16 by test-time augmentation. `strips` takes any stack to the image's own size.
"""

import hashlib
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unet import class_logits, draw_dropout_masks, mc_dropout
from unet.mc_dropout import active_dropout_layers
from utils.checkpoint import TrainedModel
from utils.data_loading import preprocess
from utils.errors import InputError
from utils.memory import in_batches, to_input
from utils.uncertainty import entropy

logger = logging.getLogger(__name__)

STATISTICS = ("predictive_entropy", "expected_entropy", "std", "overlaps")
_OF_PIXELS = ("probs", "predictive_entropy", "expected_entropy", "std")  # the fields of ProbabilityMaps that are maps

_CPU_BLOCK = 4 * 128 * 128  # pixels of network inputs that a CPU computes at once
_CPU_STRIP = 2**20  # values computed at once on the way to full size: 4 MB, so that a CPU's cache holds them
_GPU_STRIP = 2**24  # enough to keep a GPU busy
_BAND = 8  # rows of the network's resolution that are taken to full width at once


class LogitSamples(NamedTuple):
    """Samples of an image's logits, turned back to the image's own orientation.

    Attributes:
        logits: (T, C, h, w) float32, C >= 2.
        zoom: 1.0 where they cover the image; else the image is their central 1 / zoom.
    """

    logits: Tensor
    zoom: float = 1.0


# -- samplers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampler(ABC):
    """A way to draw samples of an image's logits.

    Attributes:
        batch_size: number of network inputs that a GPU computes at once; a CPU takes four of an image, of 128x128 or
            as many as have their pixels, so that its maps do not depend on the batch size.
        dtype: of mixed precision; None for single precision.
        temperature: by which the logits are divided; `utils.calibration` finds one (Guo et al., ICML 2017).
    """

    method: ClassVar[str]  # its name in a checkpoint's `temperatures`

    batch_size: int = 8
    dtype: torch.dtype | None = None
    temperature: float = 1.0

    @property
    def inputs_per_image(self) -> int:
        """How many network inputs one image is."""
        return 1

    @property
    def settings(self) -> dict[str, Any]:
        """What the samples depend on, by name."""
        settings = {**asdict(self), "dtype": str(self.dtype)}
        del settings["batch_size"]  # may matter for the last digits, and on a GPU alone
        return settings

    def for_single_images(self) -> "Sampler":
        """The same for images that are predicted one by one: no batch is filled up beyond an image's inputs."""
        return replace(self, batch_size=min(self.batch_size, self.inputs_per_image))

    @abstractmethod
    def __str__(self) -> str:
        """Its name for people, with what matters of its settings."""

    def check(self, model: TrainedModel) -> None:  # noqa: B027 - most methods can be used with every model
        """See that the method can be used with a model.

        Raises:
            InputError: it cannot.
        """

    def inputs(self, image: Image.Image, size: tuple[int, int]) -> Tensor:
        """What the network has to see of an image: (V, 3, h, w) uint8, for an input size of width and height."""
        return preprocess(image, size)[None]

    @abstractmethod
    def sample(self, model: TrainedModel, inputs: Sequence[Tensor], names: Sequence[str]) -> list[list[LogitSamples]]:
        """Samples of several images' logits.

        Args:
            model: to predict with.
            inputs: for each image what `inputs` returned, (V, 3, h, w) uint8.
            names: of the images, from which random numbers derive.

        Returns:
            For each image its samples.
        """

    @torch.inference_mode()
    def logits(self, model: TrainedModel, inputs: Tensor, masks: Sequence[Tensor] | None = None) -> Tensor:
        """The network's logits, in batches, without dropout or with given masks.

        Batches are filled up, the last input repeated: the last bits of a result depend on how many inputs are computed
        at once, but on nothing else of them, so this makes an image's maps equal whatever else is predicted with it.

        Args:
            model: to predict with.
            inputs: (N, 3, h, w) uint8.
            masks: for each dropout layer (N, C, 1, 1), as `draw_dropout_masks` returns them.

        Returns:
            (N, C, h, w) float32, C >= 2, on the model's device.
        """
        device = model.device
        n, (width, height) = len(inputs), model.input_size
        size = self.batch_size
        if device.type == "cpu":
            size = min(max(1, _CPU_BLOCK // (width * height)), self.inputs_per_image)
        filled = torch.arange(-(-n // size) * size).clamp(max=n - 1)

        def compute(part: slice) -> Tensor:
            rows = filled[part]
            x = to_input(inputs[rows], device)
            with torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype is not None):
                if masks is None:
                    out = model.network(x)
                else:
                    with mc_dropout(model.network, [mask[rows].to(device) for mask in masks]):
                        out = model.network(x)
            return class_logits(out).float() / self.temperature

        return in_batches(compute, len(filled), size)[:n]

    def _calibration(self) -> str:
        return "" if self.temperature == 1 else ", calibrated"


@dataclass(frozen=True)
class Softmax(Sampler):
    """One deterministic pass: the uncalibrated softmax (sigmoid for a one-class model)."""

    method = "softmax"

    def __str__(self) -> str:
        return "softmax" + self._calibration()

    def sample(self, model: TrainedModel, inputs: Sequence[Tensor], names: Sequence[str]) -> list[list[LogitSamples]]:
        return [[LogitSamples(logits[None])] for logits in self.logits(model, torch.cat(list(inputs)))]


@dataclass(frozen=True)
class MCDropout(Sampler):
    """T passes with dropout on (Gal and Ghahramani, ICML 2016).

    Attributes:
        num_samples: number of passes T.
        seed: with an image's name it gives the image's dropout masks, so a map depends neither on the order of
            the images nor on the batch size.
    """

    method = "mc_dropout"

    num_samples: int = 20
    seed: int = 0

    def __str__(self) -> str:
        return f"MC dropout, {self.num_samples} passes" + self._calibration()

    @property
    def inputs_per_image(self) -> int:
        return self.num_samples

    def check(self, model: TrainedModel) -> None:
        if not active_dropout_layers(model.network):
            raise InputError("this model has no dropout, so MC dropout cannot be used with it")

    def sample(self, model: TrainedModel, inputs: Sequence[Tensor], names: Sequence[str]) -> list[list[LogitSamples]]:
        masks = [draw_dropout_masks(model.network, self.num_samples, derived_seed(self.seed, name)) for name in names]
        by_layer = [torch.cat(layer) for layer in zip(*masks, strict=True)]  # each (N T, C, 1, 1)
        passes = torch.cat(list(inputs)).repeat_interleave(self.num_samples, dim=0)  # (N T, 3, h, w)
        logits = self.logits(model, passes, by_layer)
        return [[LogitSamples(part)] for part in logits.split(self.num_samples)]


@dataclass(frozen=True)
class TestTimeAugmentation(Sampler):
    """16 views: the 8 symmetries of the square, of the image and of its copy made smaller on black.

    The symmetries commute with the resize to a square input, so two resizes are enough for all views.

    Attributes:
        shrink: size of the smaller copy, as a part of the image's, in (0, 1].
    """

    method = "tta"

    shrink: float = 0.8

    def __str__(self) -> str:
        return "test-time augmentation" + self._calibration()

    @property
    def inputs_per_image(self) -> int:
        return 16

    def check(self, model: TrainedModel) -> None:
        width, height = model.input_size
        if width != height:
            raise InputError(f"test-time augmentation turns the square: it needs a square input, not {width}x{height}")

    def inputs(self, image: Image.Image, size: tuple[int, int]) -> Tensor:
        return torch.stack([preprocess(image, size), shrunk_on_black(image, size, self.shrink)])

    def sample(self, model: TrainedModel, inputs: Sequence[Tensor], names: Sequence[str]) -> list[list[LogitSamples]]:
        views = torch.stack([turn(torch.stack(list(inputs)), k) for k in range(8)], dim=2)  # (N, 2, 8, 3, h, w)
        logits = self.logits(model, views.flatten(0, 2)).unflatten(0, views.shape[:3])  # (N, 2, 8, C, h, w)
        upright = torch.stack([turn_back(logits[:, :, k], k) for k in range(8)], dim=2)
        return [[LogitSamples(plain), LogitSamples(shrunk, 1 / self.shrink)] for plain, shrunk in upright]


TestTimeAugmentation.__test__ = False  # its name makes pytest take it for a test


def calibrate(sampler: Sampler, model: TrainedModel) -> Sampler:
    """The same method with the temperature that was fitted for it.

    Raises:
        InputError: the model has none.
    """
    if sampler.method not in model.temperatures:
        raise InputError(
            f"this model has no temperature for {sampler}: train_bayesian.py fits one at the end of a training, "
            "python -m utils.calibration for a model that is there already"
        )
    return replace(sampler, temperature=model.temperatures[sampler.method])


def turn(x: Tensor, k: int) -> Tensor:
    """The k-th symmetry of the square, 0 <= k < 8: k % 4 quarter turns, after a left-right flip for k >= 4.

    Args:
        x: (..., n, n).
    """
    return torch.rot90(x.flip(-1) if k >= 4 else x, k % 4, (-2, -1))


def turn_back(x: Tensor, k: int) -> Tensor:
    """The inverse of `turn`."""
    turned = torch.rot90(x, -(k % 4), (-2, -1))
    return turned.flip(-1) if k >= 4 else turned


def shrunk_on_black(image: Image.Image, size: tuple[int, int], shrink: float) -> Tensor:
    """An image made smaller at the exact centre of a black canvas of its own size, as the network takes it.

    Args:
        image: of any mode.
        size: width and height of the network's input.
        shrink: size of the copy, as a part of the canvas, in (0, 1].

    Returns:
        (3, h, w) uint8. Only the part near the image is resized: it begins and ends at whole pixels of the result,
        while the image may begin and end between them.
    """
    image = image.convert("RGB")
    begin, pads, box = [], [], []  # for x and y
    for pixels, length in zip(size, image.size, strict=True):
        per_pixel = length / (pixels * shrink)  # the image's pixels in one of the result's
        margin = pixels * (1 - shrink) / 2
        first = max(0, math.floor(margin) - 2)  # bicubic interpolation reaches 2 pixels far
        reach = 2 if first else 0
        pad = math.ceil((margin - first + reach) * per_pixel)
        begin.append(first)
        pads.append(pad)
        box.append(pad - (margin - first) * per_pixel)
    padded = Image.new("RGB", (image.width + 2 * pads[0], image.height + 2 * pads[1]))
    padded.paste(image, tuple(pads))
    inner = (size[0] - 2 * begin[0], size[1] - 2 * begin[1])
    near = padded.resize(
        inner, Image.Resampling.BICUBIC, box=(box[0], box[1], padded.width - box[0], padded.height - box[1])
    )
    canvas = Image.new("RGB", size)
    canvas.paste(near, tuple(begin))
    return preprocess(canvas, size)


def derived_seed(seed: int, name: str) -> int:
    """The seed of the random numbers of one image, or of whatever has that name, from 0 to 2**63 - 1."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


# -- to full size ----------------------------------------------------------------------------------------------------


@dataclass
class ProbabilityMaps:
    """What the samples say of each pixel, at the image's own size, of the whole image or of a strip of H rows.

    Attributes:
        probs: (C, H, W) float32, the mean over the samples.
        num_samples: number of samples T.
        predictive_entropy: (H, W) float32 in nats, the entropy of the mean; total uncertainty.
        expected_entropy: (H, W) float32 in nats, the mean of the samples' entropies; under MC dropout the aleatoric
            part.
        std: (C, H, W) float32, the standard deviation over the samples (divided by T, not by T - 1).
        overlaps: (C - 1, T, T) int64, for each class but the background the pixels to which both of two samples give
            it; on the diagonal its area in each sample. None for a single sample.

    What was not asked for is None.
    """

    probs: Tensor
    num_samples: int
    predictive_entropy: Tensor | None = None
    expected_entropy: Tensor | None = None
    std: Tensor | None = None
    overlaps: Tensor | None = None

    @property
    def mutual_information(self) -> Tensor:
        """(H, W) float32 in nats: predictive minus expected entropy, BALD (Houlsby et al. 2011; Gal et al. 2017)."""
        return (self.predictive_entropy - self.expected_entropy).clamp_(min=0)

    def with_height(self, height: int, statistics: Collection[str]) -> "ProbabilityMaps":
        """Maps of so many rows with these statistics, for `put` to fill in; on the CPU if the device has no room."""
        wanted = {"probs": self.probs} | {name: getattr(self, name) for name in _OF_PIXELS if name in statistics}

        def new(device: torch.device | str) -> dict[str, Tensor]:
            maps = {}
            for name, values in wanted.items():
                planes = _planes(values)
                empty = planes.new_empty(*planes.shape[:-2], height, planes.shape[-1], device=device)
                maps[name] = empty.expand(*values.shape[:-2], -1, -1)
            return maps

        try:
            maps = new(self.probs.device)
        except torch.OutOfMemoryError:
            logger.warning("Out of memory with maps of %d rows: they are kept on the CPU", height)
            maps = new("cpu")
        overlaps = torch.zeros_like(self.overlaps) if "overlaps" in statistics and self.overlaps is not None else None
        return ProbabilityMaps(num_samples=self.num_samples, overlaps=overlaps, **maps)

    def put(self, rows: slice, maps: "ProbabilityMaps") -> None:
        """Fill in the maps of some rows, and add their overlaps."""
        for name in _OF_PIXELS:
            if getattr(self, name) is not None:
                _planes(getattr(self, name))[..., rows, :] = _planes(getattr(maps, name))
        if self.overlaps is not None:
            self.overlaps += maps.overlaps.to(self.overlaps.device)


def _planes(values: Tensor) -> Tensor:
    """What is in memory of maps that all classes have in common, (1, H, W); else the maps."""
    return values[:1] if values.stride(0) == 0 else values


@torch.inference_mode()
def summarize(
    samples: Sequence[LogitSamples],
    size: tuple[int, int],
    statistics: Collection[str] = STATISTICS,
    threshold: float = 0.5,
) -> ProbabilityMaps:
    """Take samples to full size and average their probabilities there: all the `strips` of an image in one.

    Args:
        samples: of one image.
        size: width and height of the image.
        statistics: which of `STATISTICS` are wanted beside the mean.
        threshold: with two classes, the probability above which a sample's pixel is class 1 in `overlaps`.

    Returns:
        The maps of the whole image, on the samples' device as long as its memory allows.
    """
    whole = None
    for rows, strip in strips(samples, size, statistics, threshold):
        whole = whole or strip.with_height(size[1], statistics)
        whole.put(rows, strip)
    return whole


@torch.inference_mode()
def strips(
    samples: Sequence[LogitSamples],
    size: tuple[int, int],
    statistics: Collection[str] = STATISTICS,
    threshold: float = 0.5,
) -> Iterator[tuple[slice, ProbabilityMaps]]:
    """Take samples to full size and average their probabilities there, a few rows at a time, from top to bottom.

    The logits are interpolated bilinearly (pixel centres as with `align_corners=False`), the softmax comes after. All
    samples of a strip are taken to full size together, so T full-size maps never exist, and whoever makes of a strip
    what is wanted before the next one comes finds it in the processor's cache.

    Args:
        samples, size, statistics, threshold: as for `summarize`.

    Yields:
        The rows, and their maps.
    """
    width, height = size
    stacks, rows = None, slice(0, 0)
    while rows.stop < height:
        maps = None
        try:
            stacks = stacks or _Stacks(samples, width, height)
            following = slice(rows.stop, min(rows.stop + stacks.rows_at_once, height))
            maps = _maps(stacks.probs(following), stacks.n_classes, statistics, threshold)
        except torch.OutOfMemoryError:
            stacks = None
        if maps is None:  # outside the handler, so that what the failed attempt holds can go
            logger.warning("Out of memory with maps of %dx%d pixels: making them on the CPU", *size)
            torch.cuda.empty_cache()
            samples = [LogitSamples(logits.cpu(), zoom) for logits, zoom in samples]
            continue
        rows = following
        yield rows, maps


def _maps(probs: Tensor, n_classes: int, statistics: Collection[str], threshold: float) -> ProbabilityMaps:
    """What (T, 1 or C, rows, W) probabilities of samples say of each pixel."""
    n_samples, channels = probs.shape[:2]
    mean = probs.new_empty(n_classes, *probs.shape[2:])  # (C, rows, W)
    mean[-channels:] = probs.mean(dim=0) if n_samples > 1 else probs[0]
    if channels < n_classes:
        torch.sub(1, mean[1], out=mean[0])
    std = None
    if "std" in statistics:
        std = (probs - mean[-channels:]).square_().mean(dim=0).sqrt_()  # `std` is far slower
    return ProbabilityMaps(
        probs=mean,
        num_samples=n_samples,
        predictive_entropy=entropy(mean) if "predictive_entropy" in statistics else None,
        expected_entropy=entropy(probs).mean(dim=0) if "expected_entropy" in statistics else None,
        std=None if std is None else std.expand(n_classes, -1, -1),  # two classes have one in common
        overlaps=_overlaps(probs, threshold) if "overlaps" in statistics and n_samples > 1 else None,
    )


def _overlaps(probs: Tensor, threshold: float) -> Tensor:
    """How many pixels two samples give to the same class, (C - 1, T, T), of (T, 1 or C, rows, W) probabilities."""
    if probs.shape[1] == 1:
        return _overlaps_of(probs[:, 0], threshold)[None]
    predicted = probs.argmax(dim=1)
    return torch.stack([_overlaps_of((predicted == k).float(), 0.5) for k in range(1, probs.shape[1])])


def _overlaps_of(values: Tensor, threshold: float) -> Tensor:
    """How many of the pixels are above the threshold in each two of the samples, (T, T) int64, of (T, rows, W) values.

    Most pixels are so in all samples or in none, and only the others have to be compared pair by pair.
    """
    possible = values.amax(dim=0) > threshold  # (rows, W)
    if not possible.any():
        return torch.zeros(len(values), len(values), dtype=torch.int64, device=values.device)
    certain = values.amin(dim=0) > threshold
    places = _nonzero(possible ^ certain)
    disputed = (values[:, places // values.shape[2], places % values.shape[2]] > threshold).float()  # (T, n)
    return certain.count_nonzero() + (disputed @ disputed.T).long()  # below 2^24, so exact


def _nonzero(mask: Tensor) -> Tensor:
    """Where a mask is true, as indices of the flattened mask."""
    if mask.device.type == "cpu":  # NumPy is several times as fast
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero()[:, 0]


def single_samples(samples: Sequence[LogitSamples]) -> list[LogitSamples]:
    """Each sample of an image by itself."""
    return [LogitSamples(one[None], zoom) for logits, zoom in samples for one in logits]


def full_size_probs(samples: Sequence[LogitSamples], size: tuple[int, int]) -> Iterator[Tensor]:
    """The probabilities of each sample, one after the other, (C, H, W) float32."""
    return (summarize([one], size, statistics=()).probs for one in single_samples(samples))


def bilinear_matrix(n_in: int, n_out: int, zoom: float = 1.0) -> Tensor:
    """The matrix that interpolates n_in values to n_out, or their central 1 / zoom; a row for each that comes out.

    With `zoom` 1 it does what `torch.nn.functional.interpolate` does with `align_corners=False`.

    Returns:
        (n_out, n_in) float32, each row with a sum of 1.
    """
    before, after, weight = _neighbours(n_in, n_out, zoom)
    matrix = torch.zeros(n_out, n_in)
    row = torch.arange(n_out)
    matrix[row, before] = 1 - weight
    matrix[row, after] += weight
    return matrix


def _neighbours(n_in: int, n_out: int, zoom: float) -> tuple[Tensor, Tensor, Tensor]:
    """The two values between which each that comes out lies, and the weight of the second; each (n_out,)."""
    position = (torch.arange(n_out, dtype=torch.float64) + 0.5) / n_out  # of an output in the image, from 0 to 1
    source = (((position - 0.5) / zoom + 0.5) * n_in - 0.5).clamp(0, n_in - 1)
    before = source.floor().clamp(max=max(n_in - 2, 0)).long()
    return before, (before + 1).clamp(max=n_in - 1), (source - before).float()


class _Stacks:
    """Samples with the matrices that take them to full size; rows of their probabilities on demand.

    A softmax of two classes is the sigmoid of their logits' difference, so two classes are one channel here.
    """

    def __init__(self, samples: Sequence[LogitSamples], width: int, height: int) -> None:
        self.n_samples = sum(len(logits) for logits, _ in samples)
        self.n_classes = samples[0].logits.shape[1]
        self.channels = 1 if self.n_classes == 2 else self.n_classes
        self.device = samples[0].logits.device
        self.width = width
        self.parts = [_Part(logits, zoom, width, height) for logits, zoom in samples]
        self.columns = sum(part.columns for part in self.parts)  # T C W
        at_once = _CPU_STRIP if self.device.type == "cpu" else _GPU_STRIP
        self.rows_at_once = max(1, at_once // (self.columns + 3 * width))  # the maps, too

    def probs(self, rows: slice) -> Tensor:
        """(T, 1 or C, rows, W)."""
        values = torch.empty(rows.stop - rows.start, self.columns, device=self.device)
        for part, of_part in zip(self.parts, values.split([part.columns for part in self.parts], dim=1), strict=True):
            torch.mm(*part.factors(rows), out=of_part)
        values = values.view(len(values), self.n_samples, self.channels, self.width)
        return (values.sigmoid_() if self.channels == 1 else values.softmax(dim=2)).permute(1, 2, 0, 3)


class _Part:
    """Samples of one zoom. Taking them to full width comes first, for the few rows that a strip lies between."""

    def __init__(self, logits: Tensor, zoom: float, width: int, height: int) -> None:
        values = logits[:, 1:] - logits[:, :1] if logits.shape[1] == 2 else logits
        self.values = values.permute(2, 0, 1, 3).contiguous()  # (h, T, 1 or C, w)
        self.columns = values.shape[0] * values.shape[1] * width
        to_rows = bilinear_matrix(values.shape[2], height, zoom)  # (H, h)
        self.first = (to_rows != 0).int().argmax(dim=1).tolist()  # of the rows that a row lies between
        self.to_rows = to_rows.to(logits.device)
        *neighbours, weight = _neighbours(values.shape[3], width, zoom)
        self.neighbours = [n.to(logits.device) for n in neighbours]
        self.weight = weight.to(logits.device)  # (W,)
        self.begin, self.band = 0, values.new_empty(0, self.columns)  # rows at full width, from `begin` on

    def factors(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Two matrices of which the product is (rows, T C W)."""
        first, last = self.first[rows.start], min(self.first[rows.stop - 1] + 2, len(self.values))
        if not self.begin <= first <= last <= self.begin + len(self.band):
            self.begin = first
            enough = max(last, first + min(_BAND, _BAND * _CPU_STRIP // self.columns))
            near = self.values[first:enough]
            lines = near.view(-1, near.shape[-1])  # (rows T C, w): `index_select` is fastest with two dimensions
            left, right = (lines.index_select(1, n) for n in self.neighbours)
            self.band = torch.lerp(left, right, self.weight).view(len(near), -1)
        near = slice(first - self.begin, last - self.begin)
        return self.to_rows[rows, first:last], self.band[near]


def most_probable_class(probs: Tensor, threshold: float = 0.5) -> np.ndarray:
    """The predicted mask.

    Args:
        probs: (C, H, W).
        threshold: with two classes, class 1 is predicted where its probability is above this.

    Returns:
        (H, W) uint8 class indices.
    """
    if len(probs) > 2:
        return _bytes(probs.argmax(dim=0))
    if probs.device.type == "cpu":  # NumPy is several times as fast
        return (probs[1].numpy() > threshold).view(np.uint8)
    return _bytes(probs[1] > threshold)


def predict(
    model: TrainedModel,
    image: Image.Image,
    sampler: Sampler | None = None,
    name: str = "",
    statistics: Collection[str] = STATISTICS,
) -> ProbabilityMaps:
    """Maps of a single image.

    Args:
        model: what `utils.checkpoint.load_model` returned.
        image: of any mode and size.
        sampler: `Softmax()`, `MCDropout()` or `TestTimeAugmentation()`; the first if None.
        name: of the image; MC dropout derives its random numbers from it, as the scripts do
            from a file's name, and from its path within the folder for sub-folders.
        statistics: which of `STATISTICS` are wanted beside the mean.

    Returns:
        The maps, at the image's own size, on the model's device.

    Raises:
        InputError: the sampler cannot be used with the model.
    """
    sampler = (sampler or Softmax()).for_single_images()
    sampler.check(model)
    inputs = sampler.inputs(image, model.input_size)
    return summarize(sampler.sample(model, [inputs], [name])[0], image.size, statistics)


def to_grey(values: Tensor, white: float = 1.0) -> np.ndarray:
    """A map as an 8-bit grey picture: 0 is black, `white` is 255, rounded."""
    return _bytes((values * (255 / white)).round_().clamp_(0, 255))


def _bytes(values: Tensor) -> np.ndarray:
    """Whole numbers from 0 to 255 as uint8; NumPy converts them faster, but from a GPU only bytes are to be copied."""
    if values.device.type != "cpu":
        return values.to(torch.uint8).cpu().numpy()
    with np.errstate(invalid="ignore"):  # NaN becomes 0
        return values.numpy().astype(np.uint8)
