"""Training steps, and evaluation after an epoch."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.conftest import lively_network
from tests.random_data import SeededTensorDataset
from unet import BayesianUNet, class_logits, draw_dropout_masks
from utils import IGNORED_CLASS
from utils.data.preprocessing import to_network_input
from utils.data_loading import SeededBatchSampler
from utils.runtime.errors import InputError
from utils.training.loop import MAX_GRAD_NORM, evaluate, predict_examples, train_one_epoch
from utils.training.state import TrainingState, new_training_state


def make_batches(n: int = 4, batch_size: int = 2, size: int = 32) -> DataLoader:
    torch.manual_seed(5)
    masks = torch.zeros(n, size, size, dtype=torch.uint8)
    masks[:, 8:20, 6:22] = 1
    images = (220 - 140 * masks[:, None] + torch.randint(0, 30, (n, 3, size, size))).to(torch.uint8)
    return DataLoader(SeededTensorDataset(images, masks), batch_sampler=SeededBatchSampler(n, batch_size, seed=0))


def make_held_out() -> DataLoader:
    """The same images with their classes."""
    return DataLoader(make_batches().dataset, 2)


def new_state(
    total_steps: int = 100, learning_rate: float = 3e-3, dtype: torch.dtype | None = None, **architecture
) -> TrainingState:
    torch.manual_seed(0)
    return new_training_state(BayesianUNet(base_channels=4, **architecture), learning_rate, total_steps, dtype)


def scaled_state() -> TrainingState:
    """A state with a gradient scaler."""
    state = new_state(total_steps=200)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    return state


def train(state: TrainingState, batches: DataLoader) -> float:
    """Train an epoch; returns its mean loss."""
    assert train_one_epoch(state, batches)
    loss = state.loss
    state.complete_epoch({})
    return loss


def test_training_learns():
    state = new_state(total_steps=80, learning_rate=1e-2, dropout=0.05)
    first = train(state, make_batches())
    for _ in range(39):
        last = train(state, make_batches())
    assert last < first / 2
    scores = evaluate(state, make_held_out())
    assert scores["dice"] > 0.9
    assert scores["accuracy"] > scores["accuracy_all_background"] + 0.1


def test_evaluate_by_hand():
    class UpperHalf(torch.nn.Linear):
        """Predicts a lesion in the upper half of every image."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = torch.full((len(x), 1, *x.shape[-2:]), -20.0)
            z[:, :, : x.shape[-2] // 2] = 20.0
            return z

    state = new_state()
    state.network = UpperHalf(1, 1)
    masks = torch.zeros(3, 4, 4, dtype=torch.uint8)
    masks[0, :2] = 1  # Dice 1
    masks[1, :, :2] = 1  # overlap of 4 pixels: Dice 8 / 16; the cross-entropy of each wrong pixel is 20
    batches = DataLoader(TensorDataset(torch.zeros(3, 3, 4, 4, dtype=torch.uint8), masks), 2)
    scores = evaluate(state, batches)  # the third image has no lesion: no Dice, but a false alarm
    assert scores["dice"] == pytest.approx((1 + 0.5) / 2)
    assert (scores["false_alarm_rate"], scores["images_without_lesion"]) == (1, 1)
    assert scores["accuracy"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert scores["accuracy_all_background"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert scores["loss"] == pytest.approx((0 + 8 / 16 * 20 + (1 - 0.5) + 8 / 16 * 20) / 3)  # no Dice of the third
    masks[1, :2, 2:] = IGNORED_CLASS  # the false positives
    scores = evaluate(state, batches)
    assert scores["dice"] == pytest.approx((1 + 8 / 12) / 2)
    assert scores["accuracy"] == pytest.approx((1 + 8 / 12 + 0.5) / 3)
    assert scores["accuracy_all_background"] == pytest.approx((0.5 + 4 / 12 + 1) / 3)
    assert scores["loss"] == pytest.approx((0 + 4 / 12 * 20 + (1 - 8 / 12) + 8 / 16 * 20) / 3)


class CopiesTheImage(torch.nn.Linear):
    """Predicts the class that the image has as its value in [0, 255]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 20 * torch.nn.functional.one_hot((255 * x[:, 0]).round().long(), 3).movedim(-1, 1).float()


def copied_scores(predicted: list, target: list) -> dict[str, float | None]:
    """The scores of (N, h, w) predicted classes, in batches of two."""
    state = new_state()
    state.network = CopiesTheImage(1, 1)
    images = torch.tensor(predicted, dtype=torch.uint8)[:, None].expand(-1, 3, -1, -1)
    return evaluate(state, DataLoader(TensorDataset(images, torch.tensor(target, dtype=torch.uint8)), 2))


def test_empty_images_are_scored_apart():
    empty, lesion = [[0, 0], [0, 0]], [[1, 1], [0, 0]]
    scores = copied_scores([empty, empty, lesion, empty, empty], [lesion, empty, empty, empty, empty])
    assert (scores["dice"], scores["false_alarm_rate"], scores["images_without_lesion"]) == (0, 0.25, 4)
    scores = copied_scores([lesion, lesion], [lesion, lesion])
    assert (scores["dice"], scores["false_alarm_rate"], scores["images_without_lesion"]) == (1, 0, 0)
    scores = copied_scores([empty, lesion], [empty, empty])
    assert (scores["dice"], scores["false_alarm_rate"]) == (None, 0.5)


def test_images_without_a_pixel_that_counts_have_no_score():
    lesion, ignored = [[1, 1], [0, 0]], [[IGNORED_CLASS] * 2] * 2
    scores = copied_scores([lesion, lesion, lesion], [ignored, lesion, ignored])
    assert scores == pytest.approx(copied_scores([lesion], [lesion]))
    assert (scores["accuracy"], scores["images_without_lesion"]) == (1, 0)
    assert copied_scores([lesion], [ignored])["dice"] is None


def test_an_image_is_scored_by_the_classes_that_it_shows():
    scores = copied_scores([[[1, 1], [2, 0]], [[0, 0], [2, 2]]], [[[1, 1], [0, 0]], [[1, 0], [2, 2]]])
    assert scores["dice"] == pytest.approx((1 + (0 + 1) / 2) / 2)


def test_dropout_in_training_only():
    state = new_state()
    seen = []
    state.network.up4.register_forward_hook(lambda module, *_: seen.append(module.training))
    train_one_epoch(state, make_batches())
    evaluate(state, make_held_out())
    assert seen == [True, True, False, False]


def test_network_without_dropout_is_trained():
    state = new_state(dropout=0.0)
    assert train(state, make_batches()) > train(state, make_batches())


def test_on_step_and_stop():
    """The loss of an epoch is the mean over its images, of which the last step has fewer."""
    state, losses = new_state(), []
    assert not train_one_epoch(state, make_batches(n=3), on_step=losses.append, stop=lambda: True)
    assert (state.step, state.images_seen) == (1, 2)
    assert train_one_epoch(state, make_batches(n=3), on_step=losses.append)  # the rest of the epoch
    assert (state.step, state.images_seen) == (2, 3)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    assert state.loss == pytest.approx((2 * losses[0] + losses[1]) / 3)


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch):
    state, norms = new_state(), []
    step = state.scaler.step

    def record(optimizer: torch.optim.Optimizer) -> None:
        norms.append(torch.cat([weight.grad.flatten() for weight in state.network.parameters()]).norm().item())
        step(optimizer)

    state.network.outc.conv.weight.register_hook(lambda gradient: 1000 * gradient)
    monkeypatch.setattr(state.scaler, "step", record)
    train_one_epoch(state, make_batches())
    assert norms == pytest.approx([MAX_GRAD_NORM] * 2, rel=1e-3)


@pytest.mark.parametrize("attempt", [train_one_epoch, evaluate])
def test_out_of_memory_propagates(attempt: Callable):
    state = new_state()
    before = [weight.clone() for weight in state.network.parameters()]

    def exhaust_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    state.network.outc.register_forward_hook(exhaust_memory)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        attempt(state, make_batches() if attempt is train_one_epoch else make_held_out())
    assert (state.step, state.images_seen) == (0, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, state.network.parameters(), strict=True))


def test_nonfinite_loss_stops():
    state = new_state()
    with torch.no_grad():
        state.network.outc.conv.bias.fill_(float("nan"))
    with pytest.raises(InputError, match=r"no longer finite \(epoch 1, step 1"):
        train_one_epoch(state, make_batches())


def test_nonfinite_gradient_stops():
    state = new_state()
    state.network.outc.conv.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(InputError, match="finite"):
        train_one_epoch(state, make_batches())


def test_scaler_skips_step_with_nonfinite_gradient():
    state = scaled_state()
    state.network.outc.conv.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = [p.clone() for p in state.network.parameters()]
    train(state, make_batches())
    assert all(torch.equal(a, b) for a, b in zip(before, state.network.parameters(), strict=True))
    assert (state.scaler.get_scale(), state.scheduler.last_epoch) == (256, 0)
    with pytest.raises(InputError, match="finite"):  # but not forever
        for _ in range(20):
            train(state, make_batches())


def test_scaler_changes_nothing_else():
    losses = []
    for state in (new_state(total_steps=200), scaled_state()):
        losses.append([train(state, make_batches()) for _ in range(3)])
        restored = new_state(total_steps=200)
        restored.load_state_dict(state.state_dict())
        assert restored.scheduler.last_epoch == 6
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("architecture", [{}, {"n_classes": 1}, {"bilinear": True}])
def test_bfloat16_trains_like_single_precision(architecture: dict):
    losses = []
    for dtype in (None, torch.bfloat16):
        state = new_state(dtype=dtype, **architecture)
        losses.append([train(state, make_batches()) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    assert losses[0] != losses[1]


def test_examples():
    state, dataset = new_state(dtype=torch.bfloat16), make_batches().dataset
    state.network = lively_network()
    outputs = []
    state.network.register_forward_hook(lambda network, inputs, output: outputs.append(output))
    images, masks, predicted = predict_examples(state, dataset, count=3)
    assert [output.shape[0] for output in outputs] == [1, 1, 1]  # no more memory than a single image takes
    assert {output.dtype for output in outputs} == {torch.bfloat16}
    assert len(images) == len(masks) == len(predicted) == 3
    assert images[0].shape == (32, 32, 3)
    assert masks[0].shape == predicted[0].shape == (32, 32)
    assert images[1].tolist() == dataset[1][0].permute(1, 2, 0).tolist()
    inputs = to_network_input(torch.stack([dataset[i][0] for i in range(3)]), state.device)
    with torch.inference_mode(), state.autocast():
        expected = class_logits(state.network(inputs))
    for prediction, logits in zip(predicted, expected, strict=True):
        assert (prediction == logits.argmax(dim=0).numpy()).mean() > 0.99


def test_each_step_has_dropout_masks_of_its_own(monkeypatch: pytest.MonkeyPatch):
    seeds: list[int] = []

    def recording(network: BayesianUNet, n: int, seed: int) -> torch.Tensor:
        seeds.append(seed)
        return draw_dropout_masks(network, n, seed)

    monkeypatch.setattr("utils.training.loop.draw_dropout_masks", recording)
    state = new_state()
    for _ in range(2):
        train(state, make_batches())
    assert len(set(seeds)) == len(seeds) == 4
