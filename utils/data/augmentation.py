"""The training transforms: random transforms of an image and the shares of its classes together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from utils.data.wild_transforms import WildTransforms


@dataclass(frozen=True)
class Strength:
    """The ranges of the training transforms.

    Attributes:
        brightness, contrast: maximum relative change.
        channel_gain: maximum relative change of each colour channel on its own.
        degrees: maximum rotation, in addition to quarter turns.
        shift: maximum translation, as a fraction of the image's side.
        scale: minimum and maximum scale factor.
    """

    brightness: float
    contrast: float
    channel_gain: float
    degrees: float
    shift: float
    scale: tuple[float, float]


STRENGTHS = {
    "light": Strength(brightness=0.1, contrast=0.1, channel_gain=0.05, degrees=10, shift=0.05, scale=(0.9, 1.1)),
    "strong": Strength(brightness=0.3, contrast=0.3, channel_gain=0.12, degrees=35, shift=0.15, scale=(0.7, 1.45)),
}


class TrainingTransforms:
    """Random transforms of a dermoscopy image and its `class_shares`; the geometric ones are the same for both.

    Photometric, for different devices and lighting: brightness, contrast, and each colour channel on its own.
    Geometric, since a lesion has no orientation and no fixed distance: flips, quarter turns, rotation, scale and
    translation. Random numbers come from PyTorch's global random state.

    Args:
        strength: one of `STRENGTHS`.
    """

    def __init__(self, strength: str = "light") -> None:
        s = STRENGTHS[strength]
        self.photometric = v2.Compose(
            [v2.ColorJitter(brightness=s.brightness, contrast=s.contrast), RandomChannelGain(s.channel_gain)]
        )
        self.geometric = v2.Compose(
            [
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
                RandomQuarterTurn(),  # with the flips: all symmetries of the square
                v2.RandomAffine(
                    degrees=s.degrees,
                    translate=(s.shift, s.shift),
                    scale=s.scale,
                    interpolation=v2.InterpolationMode.BILINEAR,
                ),
            ]
        )

    def __call__(self, image: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Transform an image (3, h, w) uint8 and shares (C, h, w); areas from outside are black and background."""
        image, shares = self.geometric(self.photometric(tv_tensors.Image(image)), tv_tensors.Image(shares))
        return image.as_subclass(Tensor), shares.as_subclass(Tensor)


def training_transforms(
    name: str, others: Sequence[tuple[Tensor, Tensor]] = ()
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The transforms of that name, one of `STRENGTHS` or wild, which mixes images with `others`.

    wild applies light ones to half of the images: with wild ones alone, the Dice on images like the training images
    is lower.
    """
    if name == "wild":
        return v2.RandomChoice([TrainingTransforms("light"), WildTransforms(others=others)], p=[0.5, 0.5])
    return TrainingTransforms(name)


class RandomQuarterTurn(v2.RandomApply):
    """Turn half of the square images; others stay as they are, since they would lose their ends."""

    def __init__(self) -> None:
        super().__init__([v2.RandomRotation((90, 90))], p=0.5)

    def forward(self, image: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(image, shares) if shares.shape[-2] == shares.shape[-1] else (image, shares)


class RandomChannelGain(v2.Transform):
    """Multiply each colour channel of an image by a random factor.

    Args:
        max_change: factors are drawn from [1 - max_change, 1 + max_change].
    """

    def __init__(self, max_change: float) -> None:
        super().__init__()
        self.max_change = max_change

    def make_params(self, flat_inputs: list) -> dict[str, Tensor]:
        return {"gains": 1 + self.max_change * (2 * torch.rand(3, 1, 1) - 1)}

    def transform(self, inpt: Tensor, params: dict[str, Tensor]) -> Tensor:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        scaled = (inpt.float() * params["gains"]).round_().clamp_(0, 255).to(inpt.dtype)
        return tv_tensors.wrap(scaled, like=inpt)
