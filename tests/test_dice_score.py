"""Dice coefficient and loss, against values computed by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils import IGNORED_CLASS
from utils.data.class_shares import class_shares
from utils.dice_score import dice_coefficient, dice_loss, segmentation_loss


def dice_loss_of_classes(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return dice_loss(logits, class_shares(target.byte(), logits.shape[1]))


def loss_of_classes(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return segmentation_loss(logits, class_shares(target.byte(), logits.shape[1]))


def test_dice_by_hand():
    prediction = torch.tensor([[1, 1, 0], [0, 0, 0]])
    target = torch.tensor([[0, 1, 1], [1, 0, 0]])
    assert dice_coefficient(prediction, target).item() == pytest.approx(2 * 1 / (2 + 3))


def test_dice_of_empty_masks_in_a_batch():
    a = torch.zeros(3, 4, 4)
    b = torch.zeros(3, 4, 4)
    a[1], b[1], a[2] = 1, 1, 1
    assert dice_coefficient(a, b).tolist() == [1, 1, 0]


def test_soft_dice_by_hand():
    assert dice_coefficient(torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]])).item() == pytest.approx(0.5)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_dice_is_symmetric_and_in_the_unit_interval(pixels: list[tuple[bool, bool]]):
    a, b = (torch.tensor([[p[i] for p in pixels]]) for i in (0, 1))
    dice = dice_coefficient(a, b).item()
    assert 0 <= dice <= 1
    assert dice == dice_coefficient(b, a).item()
    assert (dice == 1) == torch.equal(a, b)


def test_dice_loss_by_hand():
    logits = torch.zeros(1, 2, 1, 4)  # every probability is 1/2
    target = torch.tensor([[[1, 1, 0, 0]]])
    assert dice_loss_of_classes(logits, target).item() == pytest.approx(1 - 2 * (0.5 + 0.5) / (2 + 2))
    assert loss_of_classes(logits, target).item() == pytest.approx(0.5 + math.log(2))


def test_dice_loss_is_the_mean_over_foreground_classes():
    target = torch.tensor([[[0, 1, 2, 2]]])
    perfect = 50 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    assert dice_loss_of_classes(perfect, target).item() == pytest.approx(0, abs=1e-6)
    wrong = perfect.clone()
    wrong[:, :, :, 2:] = torch.tensor([50.0, 0, 0]).view(1, 3, 1, 1)  # class 2 is predicted as background
    assert dice_loss_of_classes(wrong, target).item() == pytest.approx(0.5, abs=1e-6)


def test_dice_loss_is_the_mean_over_the_classes_that_an_image_shows():
    logits = torch.zeros(3, 4, 1, 4, requires_grad=True)  # every probability is 1/4
    target = torch.tensor([[[1, 1, 0, 0]], [[3, 2, 2, IGNORED_CLASS]], [[0, 0, 0, 0]]])
    first = 1 - 2 * 0.5 / (1 + 2)
    second = (2 - 2 * 0.5 / (0.75 + 2) - 2 * 0.25 / (0.75 + 1)) / 2
    loss = dice_loss_of_classes(logits, target)
    assert loss.item() == pytest.approx((first + second + 0) / 3)
    loss.backward()
    assert logits.grad[:2].abs().sum((1, 2, 3)).all()
    assert not logits.grad[2].any()


@given(st.integers(0, 10_000), st.integers(2, 4))
def test_class_that_no_image_shows_does_not_change_the_dice_loss(seed: int, n_classes: int):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, n_classes, 4, 5, generator=generator)
    target = torch.randint(0, n_classes, (3, 4, 5), generator=generator)
    with_absent = torch.cat([logits, torch.full((3, 2, 4, 5), -200.0)], dim=1)
    torch.testing.assert_close(dice_loss_of_classes(with_absent, target), dice_loss_of_classes(logits, target))


def test_loss_of_a_batch_is_the_mean_over_its_images():
    """So that several processes, each with a part of the batch, compute the same."""
    logits = torch.randn(4, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(4, 5, 6, dtype=torch.uint8)
    target[1, :2], target[2, 1:3], target[2, 3], target[3] = 1, 2, 3, IGNORED_CLASS
    singles = torch.stack([loss_of_classes(logits[i : i + 1], target[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(loss_of_classes(logits, target), singles.mean())


def test_sigmoid_loss_is_binary_cross_entropy():
    z = torch.randn(2, 1, 5, 5)
    target = torch.randint(0, 2, (2, 5, 5))
    pair = torch.cat([torch.zeros_like(z), z], dim=1)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(z[:, 0], target.float())
    cross_entropy = loss_of_classes(pair, target) - dice_loss_of_classes(pair, target)
    torch.testing.assert_close(cross_entropy, expected)


def test_loss_can_be_minimised():
    logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
    target = torch.zeros(1, 4, 4, dtype=torch.uint8)
    target[:, 1:3, 1:3] = 1
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        loss_of_classes(logits, target).backward()
        optimizer.step()
    assert torch.equal(logits.argmax(1), target.long())


def test_ignored_pixels_do_not_count():
    logits = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = torch.randint(0, 3, (2, 4, 6), generator=torch.Generator().manual_seed(1)).byte()
    target[:, :, 4:] = IGNORED_CLASS
    loss = loss_of_classes(logits, target)
    assert loss.item() == pytest.approx(loss_of_classes(logits[..., :4], target[..., :4]).item(), rel=1e-6)
    loss.backward()
    assert not logits.grad[..., 4:].any()


def test_image_of_ignored_pixels_has_no_loss():
    target = torch.full((1, 4, 4), IGNORED_CLASS, dtype=torch.uint8)
    assert loss_of_classes(torch.randn(1, 2, 4, 4), target).item() == 0


# -- shares of classes -------------------------------------------------------------------------------------------------


def test_loss_of_shares_by_hand():
    """Of class 1 in four pixels, of the last of which a quarter is ignored, with a probability of 1/2 everywhere."""
    shares = torch.tensor([[[[0, 0, 0, 0.25]], [[1, 0.5, 0.25, 0.75]]]])
    total = (0.5 + 0.5 + 0.5 + 0.5 * 0.75) + (1 + 0.5 + 0.25 + 0.75)
    differences = 0.5 + 0 + 0.25 + (0.75 - 0.5 * 0.75)
    logits = torch.zeros(1, 2, 1, 4)
    assert dice_loss(logits, shares).item() == pytest.approx(1 - (total - differences) / total)
    cross_entropy = segmentation_loss(logits, shares) - dice_loss(logits, shares)
    assert cross_entropy.item() == pytest.approx(math.log(2))
    confident = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1).expand(1, 2, 1, 4)  # a probability of 3/4
    cross_entropy = segmentation_loss(confident, shares) - dice_loss(confident, shares)
    expected = -(2.5 * math.log(0.75) + 1.25 * math.log(0.25)) / 3.75
    assert cross_entropy.item() == pytest.approx(expected)


@given(st.integers(0, 10_000), st.integers(2, 4))
def test_loss_has_its_minimum_where_the_probabilities_are_the_shares(seed: int, n_classes: int):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, n_classes, 3, 4, generator=generator)
    shares = logits.softmax(dim=1)
    shares[:, 0] = 0  # nothing is ignored, the rest is background
    minimum = segmentation_loss(logits, shares)
    assert dice_loss(logits, shares).item() == pytest.approx(0, abs=1e-6)
    for _ in range(5):
        other = logits + 0.3 * torch.randn(logits.shape, generator=generator)
        assert segmentation_loss(other, shares) > minimum
