"""Monte Carlo dropout: its masks, and that they alone make it active."""

import pytest
import torch

from tests.conftest import lively_network
from unet import BayesianUNet, draw_dropout_masks
from unet.unet_parts import ChannelDropout


def test_passes_differ_and_buffers_are_unchanged():
    network = lively_network()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    x = torch.rand(2, 3, 32, 32)
    first, second = (network(x, draw_dropout_masks(network, 2, seed)) for seed in (0, 1))
    assert not torch.equal(first, second)
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert torch.equal(network(x), network(x))


def test_fewer_masks_are_a_prefix_of_more():
    network = lively_network()
    few, many = draw_dropout_masks(network, 3, seed=7), draw_dropout_masks(network, 50, seed=7)
    assert torch.equal(few, many[:3])
    assert not torch.equal(few, draw_dropout_masks(network, 3, seed=8))


def test_dropout_rate_and_scale_of_masks():
    network = BayesianUNet(base_channels=4, dropout=0.3)
    values = draw_dropout_masks(network, 400, seed=0)
    n = values.numel()
    assert values.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert abs((values == 0).float().mean() - 0.3) < 5 * (0.3 * 0.7 / n) ** 0.5


def test_each_pass_applies_its_mask():
    network = lively_network()
    masks = draw_dropout_masks(network, 4, seed=1)
    x = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        batch = network(x.expand(4, -1, -1, -1), masks)
        for t in range(4):
            torch.testing.assert_close(network(x, masks[t : t + 1])[0], batch[t], atol=1e-5, rtol=0)
    assert not torch.equal(batch[0], batch[1])


@pytest.mark.parametrize(("placement", "layers"), [("layer", 18), ("block", 8)])
def test_each_layer_applies_its_part_of_the_masks(placement: str, layers: int):
    network, applied = lively_network(dropout_placement=placement), []
    for module in network.modules():
        if isinstance(module, ChannelDropout):
            module.register_forward_hook(lambda _, inputs, output: applied.append((inputs[0], output)))
    masks = draw_dropout_masks(network, 2, seed=1)
    network(torch.rand(2, 3, 32, 32), masks)
    assert len(applied) == layers
    for (x, output), mask in zip(applied, masks.split(network.dropout_channels, dim=1), strict=True):
        assert torch.equal(output, x * mask[:, :, None, None])


def test_masks_are_for_all_layers_of_the_network():
    network = lively_network()
    with pytest.raises(RuntimeError, match="sum exactly"):
        network(torch.rand(1, 3, 32, 32), draw_dropout_masks(network, 1, 0)[:, 1:])
