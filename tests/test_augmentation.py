"""The training transforms: an image and the shares of its classes stay together, a seed repeats the random choices."""

from collections.abc import Callable
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from tests.conftest import make_image
from utils import IGNORED_CLASS
from utils.data.artefacts import draw_sticker
from utils.data.augmentation import STRENGTHS, RandomChannelGain, training_transforms
from utils.data.class_shares import class_shares
from utils.data.mixing import grown, lesion_free_patch, mix_amplitudes, put_on_skin
from utils.data.wild_transforms import WildTransforms


def example(seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """An image and its mask."""
    image, mask = make_image(seed, (128, 128))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1), torch.from_numpy(np.array(mask)) // 255


def example_with_shares() -> tuple[torch.Tensor, torch.Tensor]:
    """The image, and the shares of its classes."""
    image, mask = example()
    return image, class_shares(mask, 2)


NAMES = (*STRENGTHS, "wild")


@pytest.mark.parametrize("name", NAMES)
def test_types_shapes_and_ranges_are_kept(name: str):
    image, shares = example_with_shares()
    transform = training_transforms(name)
    for seed in range(20):
        torch.manual_seed(seed)
        for before, after in zip((image, shares), transform(image, shares), strict=True):
            assert (after.dtype, after.shape, type(after)) == (before.dtype, before.shape, torch.Tensor)
        assert -1e-6 <= after.min() <= after.sum(dim=0).max() <= 1 + 1e-6


ONLY_MOVED = WildTransforms(
    **dict.fromkeys(
        ("colour", "blotches", "hair", "ink", "ruler", "sticker", "bubbles", "vignette", "blur", "noise"), 0
    )
)


@pytest.mark.parametrize("transform", [*map(training_transforms, STRENGTHS), ONLY_MOVED, replace(ONLY_MOVED, skin=1)])
def test_mask_moves_with_the_image(transform: Callable):
    image, shares = example_with_shares()
    n_moved = 0
    for seed in range(20):
        torch.manual_seed(seed)
        changed, (_, share) = transform(image, shares)
        if share.sum() < 500:
            continue
        lesion, skin = share > 0.99, (share == 0) & (changed.amax(0) > 60)  # black came in from outside
        brightness = changed.float().mean(0)
        assert brightness[lesion].mean() + 20 < brightness[skin].mean()
        n_moved += not torch.equal(shares[1], share)
    assert n_moved >= 15


STILL = replace(ONLY_MOVED, scale=(1, 1), degrees=0, shift=0, black_border=0, skin=0)


@pytest.mark.parametrize(
    "transform", [replace(ONLY_MOVED, skin=0, black_border=0), replace(STILL, black_border=1)], ids=["moved", "black"]
)
def test_pixels_and_shares_of_a_disc_match(transform: WildTransforms):
    """Where the image is dark, after as before."""
    rows, columns = np.mgrid[:128, :128]
    for seed in range(20):
        mask = torch.from_numpy((np.hypot(rows - 50 - seed, columns - 70 + seed) < 15 + seed).astype(np.uint8))
        image, shares = (255 - 155 * mask).expand(3, -1, -1), class_shares(mask, 2)
        torch.manual_seed(seed)
        changed, (_, share) = transform(image, shares)
        assert not torch.equal(changed, image)
        inside = changed[0] > 50
        assert (255 - 155 * share - changed[0])[inside].abs().max() < 2
        assert share[~inside].sum() == 0


def test_shares_of_a_smaller_lesion_are_areas():
    """Those of a disc, against one drawn at eight times the resolution, and not those of its nearest pixels."""

    def disc(radius: float, side: int) -> torch.Tensor:
        rows, columns = np.mgrid[: 128 * side, : 128 * side] - 64 * side + 0.5
        return class_shares(torch.from_numpy((np.hypot(rows, columns) < radius * side).astype(np.uint8)), 2, side)

    transform = replace(ONLY_MOVED, scale=(0.4, 0.4), degrees=0, shift=0, skin=0, black_border=0)
    _, (_, share) = transform(torch.full((3, 128, 128), 150, dtype=torch.uint8), disc(20, 2))
    expected = disc(8, 8)[1]
    middle = slice(48, 80)  # beyond are reflections of the disc
    errors = (share - expected)[middle, middle].abs()
    assert errors.max() < 0.12
    assert errors[expected[middle, middle] > 0].mean() < 0.013


def test_wild_leaves_half_of_the_images_to_light_transforms(monkeypatch: pytest.MonkeyPatch):
    seen = []

    def record(transforms: WildTransforms, image: torch.Tensor, shares: torch.Tensor) -> tuple:
        seen.append(transforms.others)
        return image, shares

    monkeypatch.setattr(WildTransforms, "__call__", record)
    image, shares = torch.full((3, 32, 32), 150, dtype=torch.uint8), torch.zeros(2, 32, 32)
    others = [example(8)]
    transform = training_transforms("wild", others)
    torch.manual_seed(0)
    pixels = torch.stack([transform(image, shares)[0][:, 16, 16] for _ in range(200)])
    assert 70 < len(seen) < 130
    assert all(one is others for one in seen)
    assert 150 * 0.9 * 0.95 - 1 <= pixels.min() < 150 < pixels.max() <= 150 * 1.1 * 1.05 + 1  # light ones


def test_wide_images_keep_their_ends():
    image, shares = torch.full((3, 32, 128), 200, dtype=torch.uint8), torch.zeros(2, 32, 128)
    for seed in range(20):
        torch.manual_seed(seed)
        changed, _ = training_transforms("light")(image, shares)
        assert (changed == 0).float().mean() < 0.5


@pytest.mark.parametrize("name", NAMES)
def test_seed_repeats_the_transforms(name: str):
    image, shares = example_with_shares()
    transform = training_transforms(name)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(transform(image, shares)[0])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_channel_gain_leaves_the_mask():
    image = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    gain = RandomChannelGain(0.2)
    pixels = []
    for _ in range(50):
        changed, mask = gain(tv_tensors.Image(image), tv_tensors.Mask(image[0]))
        assert torch.equal(mask, image[0])
        assert all(len(channel.unique()) == 1 for channel in changed)
        pixels.append(changed[:, 0, 0])
    values = torch.stack(pixels).float()
    assert values.min() >= 80
    assert values.max() <= 120
    assert (values.std(0) > 5).all()
    bright = gain(tv_tensors.Image(torch.full((3, 4, 4), 254, dtype=torch.uint8)))
    assert bright.min() > 190  # clipped, not wrapped


def test_ignored_pixels_stay_ignored():
    image, mask = example()
    shares = class_shares(IGNORED_CLASS * mask, 2)
    for name in ("strong", "wild"):
        for seed in range(20):
            torch.manual_seed(seed)
            ignored, lesion = training_transforms(name)(image, shares)[1]
            assert ignored.any()
            assert not lesion.any()


def test_sticker_has_one_colour_and_leaves_the_rest():
    """Opaque inside, nothing outside, and of a size that leaves most of the image."""
    image = Image.new("RGB", (128, 128), (200, 160, 150))
    covered = []
    for seed in range(20):
        pixels = np.asarray(draw_sticker(np.random.default_rng(seed), image)).reshape(-1, 3)
        colours, counts = np.unique(pixels, axis=0, return_counts=True)
        frequent = {tuple(colours[i].tolist()): counts[i] / len(pixels) for i in counts.argsort()[-2:]}
        skin = frequent.pop((200, 160, 150))
        assert skin > 0.4
        covered.append(1 - skin)
        assert sum(frequent.values()) > 0.4 * (1 - skin) or skin > 0.98  # the rest is its blurred edge
    assert 0.02 < np.mean(covered) < 0.3


def test_blotches_change_neither_the_mask_nor_a_black_image():
    transform = replace(STILL, blotches=1)
    _, shares = example_with_shares()
    for value, is_changed in ((0, False), (120, True)):
        image = torch.full((3, 128, 128), value, dtype=torch.uint8)
        torch.manual_seed(0)
        changed, changed_shares = transform(image, shares)
        assert changed_shares.sum() == pytest.approx(shares.sum())
        assert (changed.float().std(dim=(1, 2)).min() > 2) == is_changed


def test_wild_transforms_of_any_shape():
    transform = replace(ONLY_MOVED, scale=(0.4, 0.8), skin=1)
    for shape in ((32, 96), (96, 32)):
        image, shares = torch.full((3, *shape), 150, dtype=torch.uint8), torch.zeros(2, *shape)
        for seed in range(10):
            torch.manual_seed(seed)
            changed, changed_shares = transform(image, shares)
            assert (changed.shape, changed_shares.shape) == (image.shape, shares.shape)


@pytest.mark.parametrize("value", [2, IGNORED_CLASS])
def test_wild_transforms_of_any_class(value: int):
    """The image does not depend on which class a lesion is of."""
    image, mask = example()
    for seed in range(10):
        results = []
        for k in (1, value):
            torch.manual_seed(seed)
            results.append(replace(ONLY_MOVED, skin=1)(image, class_shares(mask * k, 3)))
        (image_1, shares_1), (image_k, shares_k) = results
        assert torch.equal(image_1, image_k)
        assert torch.equal(shares_1[1], shares_k[2 if value == 2 else 0])


# -- other images ------------------------------------------------------------------------------------------------------


def test_lesion_keeps_its_pixels_on_other_skin():
    image, mask = example()
    patch = lesion_free_patch(np.random.default_rng(0), *(tensor.float() for tensor in example(8)))
    far = grown((mask[None] > 0).float(), 20)[0] == 0
    colours = []
    for seed in range(5):
        changed = put_on_skin(np.random.default_rng(seed), image.float(), mask > 0, patch)
        assert torch.equal(changed[:, mask > 0], image[:, mask > 0].float())
        assert (changed - image).abs()[:, far].mean() > 2
        colours.append(changed[:, far].mean())
    assert np.ptp(colours) > 1  # it is drawn how far the skin takes on the lesion's surroundings


@pytest.mark.parametrize("value", [0, 1])
def test_image_without_lesion_or_skin_keeps_its_skin(value: int):
    image, mask = example()
    patch = torch.full((3, 20, 20), 200.0)
    changed = put_on_skin(np.random.default_rng(0), image.float(), torch.full(mask.shape, value == 1), patch)
    assert torch.equal(changed, image.float())


@pytest.mark.parametrize("shape", [(32, 48), (31, 47)])
def test_mixed_amplitudes(shape: tuple[int, int]):
    """Of images in whose middle nothing is clipped."""
    one, another = 120 + 10 * torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    mixed = mix_amplitudes(one, another, 0.25)
    spectra = [torch.fft.fft2(image.double()) for image in (one, another, mixed)]
    torch.testing.assert_close(spectra[2].abs(), 0.75 * spectra[0].abs() + 0.25 * spectra[1].abs(), rtol=1e-3, atol=0.1)
    torch.testing.assert_close(mix_amplitudes(one, another, 0.0), one)
    mean = mixed.mean(dim=(1, 2))
    torch.testing.assert_close(mean, 0.75 * one.mean(dim=(1, 2)) + 0.25 * another.mean(dim=(1, 2)))


def test_wild_transforms_mix_with_other_images():
    """Their amplitudes and their skin; the shares do not change, and a seed repeats the choices."""
    image, shares = example_with_shares()
    for changes in ({"other_skin": 1, "other_amplitudes": 0}, {"other_skin": 0, "other_amplitudes": 1}):
        results = []
        for others in ((), [example(8)], [example(8)]):
            torch.manual_seed(0)
            results.append(replace(STILL, others=others, **changes)(image, shares))
        (alone, _), (mixed, mixed_shares), (again, _) = results
        assert torch.equal(mixed, again)
        assert mixed_shares.sum() == pytest.approx(shares.sum())
        assert (mixed.float() - alone.float()).abs().mean() > 1


def test_strong_augmentation_is_stronger():
    light, strong = (astuple(STRENGTHS[name])[:5] for name in ("light", "strong"))
    assert all(a < b for a, b in zip(light, strong, strict=True))
