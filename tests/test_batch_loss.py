"""The loss of a batch, and that it is recorded at the right time and leaves no trace."""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.conftest import lively_network
from unet import draw_dropout_masks
from utils.data.class_shares import class_shares
from utils.runtime.recording import RecordedCall
from utils.training.batch_loss import BatchLoss


class Recorder:
    """Takes the place of `torch.cuda.make_graphed_callables`: tries a module out, and counts the replays."""

    def __init__(self) -> None:
        self.recorded: list[int] = []  # sizes of the batches
        self.replays = 0

    def __call__(self, module: BatchLoss, batch: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        self.recorded.append(len(batch[0]))
        for _ in range(3):
            torch.autograd.grad(module(*batch), list(module.parameters()))
        forward, shapes = module.forward, [tensor.shape for tensor in batch]

        def replay(*args: Tensor) -> Tensor:
            assert [tensor.shape for tensor in args] == shapes
            self.replays += 1
            return forward(*args)

        module.forward = replay  # as CUDA's does
        return module


def make_batch(network: torch.nn.Module, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return images, class_shares((images[:, 0] > 128).byte(), 2), draw_dropout_masks(network, n, seed)


def test_second_batch_of_a_size_is_recorded():
    network, other = lively_network().train(), lively_network().train()
    record, ordinary = Recorder(), BatchLoss(other, None)
    recorded = RecordedCall(BatchLoss(network, None), record)
    for step, n in enumerate((2, 4, 4, 2, 4)):
        batch = make_batch(network, n, step)
        loss, expected = recorded(*batch), ordinary(*batch)
        assert torch.equal(loss, expected)
        loss.backward()
        expected.backward()
    assert record.recorded == [4]
    assert record.replays == 2
    for (name, value), expected in zip(network.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name
    for weight, expected in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(weight.grad, expected.grad)


def test_nothing_is_recorded_without_a_recorder():
    network = lively_network()  # in evaluation mode: the same statistics each time
    module = BatchLoss(network, None)
    recorded, batch = RecordedCall(module, None), make_batch(network, 2, 0)
    for _ in range(3):
        assert torch.equal(recorded(*batch), module(*batch))


def test_mixed_precision_keeps_no_converted_weights():
    """A recording must not contain those of an earlier forward pass."""
    network, caches = lively_network(), []
    network.register_forward_pre_hook(lambda *_: caches.append(torch.is_autocast_cache_enabled()))
    BatchLoss(network, torch.bfloat16)(*make_batch(network, 2, 0))
    assert caches == [False]


def test_batch_without_images_has_gradients_of_zero():
    network = lively_network().eval()
    loss = BatchLoss(network, None)(*make_batch(network, 0, 0))
    loss.backward()
    assert loss == 0
    assert all((weight.grad == 0).all() for weight in network.parameters())
