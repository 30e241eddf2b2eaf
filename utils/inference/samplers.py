"""The three samplers: plain softmax, MC dropout, test-time augmentation; each by one network or by an ensemble.

Whatever the method, an image becomes a stack of logits at the network's resolution: one sample by the plain softmax,
T by MC dropout, 16 by test-time augmentation; by an ensemble those of all members. `utils.inference.maps` takes any
stack to the image's own size.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from unet import class_logits, draw_dropout_masks
from utils.checkpoint import TrainedModel
from utils.data.preprocessing import downscale_and_pad, preprocess, to_network_input
from utils.inference.symmetries import N_SYMMETRIES, apply_symmetry, invert_symmetry
from utils.inference.upsampling import LogitSamples
from utils.runtime.device import in_batches, mixed_precision, to_device
from utils.runtime.errors import InputError
from utils.runtime.seeds import derived_seed

DEFAULT_BATCH_SIZE = 64
_MAX_IMAGES_PER_BATCH = 8  # whose results are in memory together
_CPU_BATCH_PIXELS = 4 * 128 * 128  # a batch of this size uses a CPU's caches well


@dataclass(frozen=True)
class Sampler(ABC):
    """A way to draw samples of an image's logits.

    Attributes:
        batch_size: maximum number of network inputs per batch on a GPU. A CPU takes four inputs of 128x128, or as many
            as have that number of pixels, so that its maps do not depend on the batch size.
        dtype: dtype of mixed precision; None for single precision.
        temperature: divisor of the logits (Guo et al., ICML 2017).

    Raises:
        ValueError: an attribute is out of its range.
    """

    method: ClassVar[str]  # its name in a checkpoint's `temperatures`

    batch_size: int = DEFAULT_BATCH_SIZE
    dtype: torch.dtype | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"a finite temperature above 0 was expected, not {self.temperature}")

    @property
    def passes_per_image(self) -> int:
        """The number of forward passes per image."""
        return 1

    @property
    def images_per_batch(self) -> int:
        """The number of images that share a batch on a GPU."""
        return min(max(1, self.batch_size // self.passes_per_image), _MAX_IMAGES_PER_BATCH)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine the samples, by name, as plain values."""
        settings = {**asdict(self), "dtype": str(self.dtype)}
        del settings["batch_size"]  # changes the last digits at most
        return settings

    def for_single_images(self) -> "Sampler":
        """The same sampler for images that are predicted one by one: a batch has at most the inputs of one image."""
        return replace(self, batch_size=min(self.batch_size, self.passes_per_image))

    @abstractmethod
    def __str__(self) -> str:
        """The display name of the method, with its main settings."""

    def check(self, model: TrainedModel) -> None:  # noqa: B027 - most methods work with every model
        """Check that the method can be used with a model.

        Raises:
            InputError: it cannot.
        """

    def preprocess_image(self, image: Image.Image, size: tuple[int, int]) -> Tensor:
        """Preprocess an image for an input size of width and height: (V, 3, h, w) uint8, V versions of it."""
        return preprocess(image, size)[None]

    def sample(self, model: TrainedModel, inputs: Sequence[Tensor], names: Sequence[str]) -> list[list[LogitSamples]]:
        """Samples of several images' logits.

        Those of an ensemble are the samples of its members, one member after the other, and its mean probability is
        the mean of theirs.

        Args:
            model: to predict with.
            inputs: the results of `preprocess_image` for each image, (V, 3, h, w) uint8.
            names: names of the images, from which random numbers are derived.

        Returns:
            For each image its samples, one `LogitSamples` per zoom.
        """
        if not model.members:
            return self.sample_network(model, inputs, names)
        by_member = [self.sample_network(member, inputs, names) for member in model.members]
        return [[_concatenate(stacks) for stacks in zip(*image, strict=True)] for image in zip(*by_member, strict=True)]

    @abstractmethod
    def sample_network(
        self, model: TrainedModel, inputs: Sequence[Tensor], names: Sequence[str]
    ) -> list[list[LogitSamples]]:
        """`sample` of a single network."""

    @torch.inference_mode()
    def compute_logits(self, model: TrainedModel, inputs: Tensor, masks: Tensor | None = None) -> Tensor:
        """The network's logits, in batches, without dropout or with given dropout masks.

        Batches are padded with copies of the last input: the last bits of a result depend on the batch size, so an
        image's maps are then the same whatever else is predicted with it.

        Args:
            model: to predict with.
            inputs: (N, 3, h, w) uint8.
            masks: (N, D), as `draw_dropout_masks` returns them.

        Returns:
            (N, C, h, w) float32, C >= 2, on the model's device.
        """
        device, n = model.device, len(inputs)
        size = self._inputs_per_batch(device, model.input_size)
        inputs = _pad(to_device(inputs, device), size)
        if masks is not None:
            masks = _pad(to_device(masks, device), size)

        def compute(batch: slice) -> Tensor:
            x = to_network_input(inputs[batch], device)
            forward = model.forward if len(x) == size else model.network  # compiled for whole batches only
            with mixed_precision(device, self.dtype):
                output = forward(x, None if masks is None else masks[batch])
            return class_logits(output).float() / self.temperature

        return in_batches(compute, len(inputs), size)[:n]

    def _inputs_per_batch(self, device: torch.device, input_size: tuple[int, int]) -> int:
        """The batch size: on a GPU the passes of some images, or an equal part of those of a single one."""
        passes = self.passes_per_image
        if device.type == "cpu":
            return min(max(1, _CPU_BATCH_PIXELS // math.prod(input_size)), passes)
        if passes <= self.batch_size:
            return self.images_per_batch * passes
        return math.ceil(passes / math.ceil(passes / self.batch_size))

    def _title_suffix(self) -> str:
        return "" if self.temperature == 1 else ", calibrated"


def _pad(values: Tensor, size: int) -> Tensor:
    """Append copies of the last row up to a multiple of `size` rows."""
    return torch.cat([values, values[-1:].expand(-len(values) % size, *values.shape[1:])])


def _concatenate(stacks: Sequence[LogitSamples]) -> LogitSamples:
    """The samples of several stacks of one zoom as one stack."""
    return LogitSamples(torch.cat([logits for logits, _ in stacks]), stacks[0].zoom)


@dataclass(frozen=True)
class Softmax(Sampler):
    """One deterministic forward pass: softmax (sigmoid for a one-class model)."""

    method = "softmax"

    def __str__(self) -> str:
        return "softmax" + self._title_suffix()

    def sample_network(
        self, model: TrainedModel, inputs: Sequence[Tensor], names: Sequence[str]
    ) -> list[list[LogitSamples]]:
        return [[LogitSamples(logits[None])] for logits in self.compute_logits(model, torch.cat(list(inputs)))]


@dataclass(frozen=True)
class MCDropout(Sampler):
    """T passes with active dropout (Gal and Ghahramani, ICML 2016).

    Attributes:
        num_samples: number of passes T.
        seed: an image's dropout masks are derived from it and the image's name, so a map depends neither on the order
            of the images nor on the batch size.
    """

    method = "mc_dropout"

    num_samples: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples < 1:
            raise ValueError(f"at least one pass was expected, not {self.num_samples}")

    def __str__(self) -> str:
        return f"MC dropout, {self.num_samples} passes" + self._title_suffix()

    @property
    def passes_per_image(self) -> int:
        return self.num_samples

    def check(self, model: TrainedModel) -> None:
        without = [network for network in model.networks if not network.dropout_channels]
        if without:
            subject = "this model has"
            if model.members:
                subject = f"{len(without)} of the {len(model.members)} members of this ensemble have"
            raise InputError(
                f"{subject} no dropout layers: all passes of MC dropout would be equal. Use the softmax or "
                "test-time augmentation, which need none, or train a network with dropout"
            )

    def sample_network(
        self, model: TrainedModel, inputs: Sequence[Tensor], names: Sequence[str]
    ) -> list[list[LogitSamples]]:
        masks = [draw_dropout_masks(model.network, self.num_samples, derived_seed(self.seed, name)) for name in names]
        images = to_device(torch.cat(list(inputs)), model.device)
        passes = images.repeat_interleave(self.num_samples, dim=0)  # (N T, 3, h, w)
        logits = self.compute_logits(model, passes, torch.cat(masks))
        return [[LogitSamples(image_logits)] for image_logits in logits.split(self.num_samples)]


@dataclass(frozen=True)
class TestTimeAugmentation(Sampler):
    """16 views: the 8 symmetries of the square, of the image and of its downscaled and zero-padded copy.

    The symmetries commute with the resize to a square input, so two resizes are enough for all views.

    Attributes:
        shrink: size of the downscaled copy relative to the image, in (0, 1].
    """

    method = "tta"

    shrink: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.shrink <= 1:
            raise ValueError(f"a size above 0 and at most 1 was expected, not {self.shrink}")

    def __str__(self) -> str:
        return "test-time augmentation" + self._title_suffix()

    @property
    def passes_per_image(self) -> int:
        return 2 * N_SYMMETRIES

    def check(self, model: TrainedModel) -> None:
        width, height = model.input_size
        if width != height:
            raise InputError(
                f"test-time augmentation by symmetries of the square requires a square input, not {width}x{height}"
            )

    def preprocess_image(self, image: Image.Image, size: tuple[int, int]) -> Tensor:
        return torch.stack([preprocess(image, size), downscale_and_pad(image, size, self.shrink)])

    def sample_network(
        self, model: TrainedModel, inputs: Sequence[Tensor], names: Sequence[str]
    ) -> list[list[LogitSamples]]:
        images = to_device(torch.stack(list(inputs)), model.device)  # (N, 2, 3, h, w)
        views = torch.stack([apply_symmetry(images, k) for k in range(N_SYMMETRIES)], dim=2)  # (N, 2, 8, 3, h, w)
        logits = self.compute_logits(model, views.flatten(0, 2)).unflatten(0, views.shape[:3])  # (N, 2, 8, C, h, w)
        upright = torch.stack([invert_symmetry(logits[:, :, k], k) for k in range(N_SYMMETRIES)], dim=2)
        return [[LogitSamples(plain), LogitSamples(padded, 1 / self.shrink)] for plain, padded in upright]


TestTimeAugmentation.__test__ = False  # pytest would collect it because of its name


def method_title(sampler: Sampler, model: TrainedModel) -> str:
    """The display name of a method with a model, such as "deep ensemble of 5, softmax"."""
    return f"deep ensemble of {len(model.members)}, {sampler}" if model.members else str(sampler)


def calibrated(sampler: Sampler, model: TrainedModel) -> Sampler:
    """The same method with the temperature that was fitted for it.

    Raises:
        InputError: the model has none.
    """
    if sampler.method not in model.temperatures:
        raise InputError(
            f"this model has no temperature for {method_title(sampler, model)}: train_bayesian.py fits one at the end "
            "of training, for an existing model or an ensemble run python -m utils.calibration"
        )
    return replace(sampler, temperature=model.temperatures[sampler.method])
