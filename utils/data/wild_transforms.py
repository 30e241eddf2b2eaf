"""Training transforms for images of sources that the training images do not come from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from utils.data.artefacts import draw_bubbles, draw_hairs, draw_ink, draw_ruler, draw_sticker, vignette
from utils.data.mixing import blurred, grown, lesion_free_patch, mix_amplitudes, put_on_skin, spread_skin

_HAIR_COLOURS = ((46, 32, 28), (20, 16, 15), (110, 80, 50), (215, 205, 190))


@dataclass(frozen=True)
class WildTransforms:
    """Random transforms that go far beyond what differs between the images of one source.

    Geometry: all symmetries of the square, rotation, scale (evenly in its logarithm), and translation, with reflected
    borders or on lesion-free skin. Colour: temperature, tint, brightness, contrast, saturation, gamma, uneven light and
    blotchy skin, and the amplitudes of other images. The skin of other images around the lesion. Artefacts: hairs,
    rulers, ink, stickers, bubbles. Optics: round vignettes, black borders, blur, noise. Random numbers come from
    PyTorch's global random state.

    Attributes:
        scale: minimum and maximum scale factor.
        degrees: maximum rotation.
        shift: maximum translation, as a fraction of the image's side.
        colour: strength of the changes of colour.
        blotches, hair, ink, ruler, sticker, bubbles, vignette, black_border, blur, noise: how often each occurs.
        skin: how often an image that becomes smaller is put on skin instead of its own reflection.
        others: other images and their masks, with which images are mixed; none to mix nothing.
        other_skin, other_amplitudes: how often an image gets the skin, and a part of the amplitudes, of another one.
    """

    scale: tuple[float, float] = (0.35, 1.5)
    degrees: float = 45.0
    shift: float = 1 / 3
    colour: float = 1.25
    blotches: float = 0.5
    hair: float = 0.33
    ink: float = 0.25
    ruler: float = 0.33
    sticker: float = 0.2
    bubbles: float = 0.1
    vignette: float = 0.25
    black_border: float = 0.15
    blur: float = 0.2
    noise: float = 0.3
    skin: float = 0.8
    others: Sequence[tuple[Tensor, Tensor]] = ()
    other_skin: float = 0.35
    other_amplitudes: float = 0.5

    def __call__(self, image: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Transform an image (3, h, w) uint8 and its `class_shares` (C, h, w)."""
        rng = np.random.default_rng(torch.randint(2**62, ()).item())
        image = image.float()
        if self.others and rng.random() < self.other_amplitudes:
            other, _ = self._draw_other(rng)
            image = mix_amplitudes(image, other, rng.uniform(0, 0.7))
        changed, shares = self._move(rng, image, shares)
        if self.others and rng.random() < self.other_skin:
            changed = self._change_skin(rng, changed, _is_covered(shares))
        picture = Image.fromarray(self._recolour(rng, changed.permute(1, 2, 0).numpy()))
        picture = self._draw(rng, picture)
        pixels = np.asarray(picture)
        if rng.random() < self.vignette:
            pixels = pixels * vignette(rng, picture.size, radius=(0.6, 1.0))
        if rng.random() < self.noise:
            shape = (*pixels.shape[:2], rng.choice([1, 3]))  # grey or coloured
            pixels = pixels + rng.normal(0, rng.uniform(1, 8), shape)
        result = torch.from_numpy(np.clip(np.round(pixels), 0, 255).astype(np.uint8)).permute(2, 0, 1)
        if rng.random() < self.black_border:
            return _on_black(result, shares, rng.uniform(0.7, 0.95))
        return result, shares

    # -- geometry ------------------------------------------------------------------------------------------------------

    def _move(self, rng: np.random.Generator, image: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        scale = math.exp(rng.uniform(*map(math.log, self.scale)))
        angle = math.radians(rng.uniform(-self.degrees, self.degrees)) + rng.integers(4) * math.pi / 2
        flip = rng.choice([-1.0, 1.0])
        cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
        shift = rng.uniform(-2, 2, 2) * self.shift  # a side is 2 long
        inverse = torch.tensor([[[cos * flip, -sin * flip, shift[0]], [sin, cos, shift[1]]]], dtype=torch.float32)
        grid = F.affine_grid(inverse, [1, *shares.shape], align_corners=False)
        if scale < 0.8:  # no aliasing
            image, shares = (blurred(values, 0.45 / scale - 0.4) for values in (image, shares))
        options = {"mode": "bilinear", "padding_mode": "reflection", "align_corners": False}
        moved, moved_shares = (F.grid_sample(values[None], grid, **options)[0] for values in (image, shares))
        if scale < 0.9 and rng.random() < self.skin:
            patch = lesion_free_patch(rng, image, _is_covered(shares))
            if patch is not None:
                return _on_skin(patch, moved, moved_shares, grid)
        return moved, moved_shares

    # -- other images --------------------------------------------------------------------------------------------------

    def _draw_other(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        image, mask = self.others[int(rng.integers(len(self.others)))]
        return image.float(), mask

    def _change_skin(self, rng: np.random.Generator, image: Tensor, lesion: Tensor) -> Tensor:
        if lesion.float().mean() < 0.5:  # otherwise hardly any of its skin is to be seen
            for _ in range(4):
                if (patch := lesion_free_patch(rng, *self._draw_other(rng))) is not None:
                    return put_on_skin(rng, image, lesion, patch)
        return image

    # -- colour --------------------------------------------------------------------------------------------------------

    def _recolour(self, rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
        """(h, w, 3) float in [0, 255] to uint8."""
        c = self.colour
        temperature, tint = rng.uniform(-0.18, 0.18) * c, rng.uniform(-0.10, 0.10) * c
        gains = np.array([1 + temperature, 1 + tint, 1 - temperature]) * (1 + rng.uniform(-0.3, 0.3) * c)
        pixels = pixels / 255 * gains
        mean = pixels.mean(axis=(0, 1), keepdims=True)
        pixels = mean + (pixels - mean) * (1 + rng.uniform(-0.4, 0.4) * c)  # contrast
        grey = pixels.mean(axis=2, keepdims=True)
        pixels = grey + (pixels - grey) * (1 + rng.uniform(-0.5, 0.4) * c)  # saturation
        pixels = np.clip(pixels, 0, 1) ** math.exp(rng.uniform(-0.35, 0.35) * c)  # gamma
        if rng.random() < self.blotches:
            pixels = np.clip(pixels * _blotches(rng, pixels.shape[:2]), 0, 1)
        return np.round(255 * pixels).astype(np.uint8)

    # -- artefacts -----------------------------------------------------------------------------------------------------

    def _draw(self, rng: np.random.Generator, image: Image.Image) -> Image.Image:
        if rng.random() < self.ink:
            image = draw_ink(rng, image)
        if rng.random() < self.ruler:
            image = draw_ruler(rng, image)
        if rng.random() < self.bubbles:
            image = draw_bubbles(rng, image, int(rng.integers(1, 5)))
        if rng.random() < self.hair:
            colour = _HAIR_COLOURS[rng.integers(len(_HAIR_COLOURS))]
            image = draw_hairs(rng, image, int(rng.integers(1, 25)), colour, rng.uniform(0.8, 2.2))
        if rng.random() < self.blur:
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5)))
        if rng.random() < self.sticker:
            image = draw_sticker(rng, image)
        return image


def _blotches(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) smooth random factors of uneven light, and of skin that is redder or paler."""
    n = int(rng.integers(2, 6))
    light, redness = rng.normal(size=(2, 1, n, n)) * np.array([0.12, 0.08])[:, None, None, None]
    redness = redness * np.array([1.0, -0.6, -0.8])[:, None, None]
    field = torch.from_numpy(light + redness).float()
    smooth = F.interpolate(field[None], size=shape, mode="bicubic", align_corners=True)[0]
    return smooth.exp().permute(1, 2, 0).numpy()


def _is_covered(shares: Tensor) -> Tensor:
    """(h, w) bool, the pixels that are not background alone."""
    return shares.any(dim=0)


def _on_skin(patch: Tensor, moved: Tensor, moved_shares: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """A moved image with its own pixels only, on skin made of a patch of it without lesion."""
    skin = spread_skin(patch, moved.shape[1:])
    outside = grid[0].abs().amax(dim=-1)  # 1 at the border of the image
    opacity = ((1 - outside) / 0.15).clamp(0, 1)
    lesion = grown(_is_covered(moved_shares)[None].float(), 2)[0] * (outside < 1)  # no seam through the lesion
    opacity = torch.maximum(opacity, lesion)
    return skin + (moved - skin) * opacity, moved_shares * (outside < 1)


def _on_black(image: Tensor, shares: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """An image and its shares, downscaled and zero-padded, as the views of test-time augmentation are."""
    height, width = image.shape[1:]
    rows, columns = round(height * scale), round(width * scale)
    small, small_shares = (
        F.interpolate(values[None].float(), size=[rows, columns], mode="bilinear", antialias=True)[0]
        for values in (image, shares)
    )
    top, left = (height - rows) // 2, (width - columns) // 2
    padding = [left, width - columns - left, top, height - rows - top]
    return F.pad(small.round().to(torch.uint8), padding), F.pad(small_shares, padding)
