"""The training transforms: random changes of an image and its mask together."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2


def training_transforms() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Random transforms of a dermoscopy image and its mask, both turned and moved alike.

    A lesion has no upright: flips and rotations. It is photographed from nearer or farther: scale and shift. Devices
    and light differ: brightness, contrast, and each colour channel by itself.

    Returns:
        A function from an image (3, h, w) uint8 and a mask (h, w) uint8 to the same, changed, with what comes
        in from outside black, and background in the mask. It draws from PyTorch's global random state.
    """
    transforms = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomAffine(
                degrees=35, translate=(0.15, 0.15), scale=(0.7, 1.45), interpolation=v2.InterpolationMode.BILINEAR
            ),
            v2.ColorJitter(brightness=0.3, contrast=0.3),
            RandomChannelGain(0.12),
        ]
    )

    def transform(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        image, mask = transforms(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)

    return transform


class RandomChannelGain(v2.Transform):
    """Multiply each colour channel of an image by a random factor.

    Args:
        strength: factors are drawn from [1 - strength, 1 + strength].
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def make_params(self, flat_inputs: list) -> dict[str, Tensor]:
        return {"gains": 1 + self.strength * (2 * torch.rand(3, 1, 1) - 1)}

    def transform(self, inpt: Tensor, params: dict[str, Tensor]) -> Tensor:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        changed = (inpt.float() * params["gains"]).round_().clamp_(0, 255).to(inpt.dtype)
        return tv_tensors.wrap(changed, like=inpt)
