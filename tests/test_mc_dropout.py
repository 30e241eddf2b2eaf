"""Monte Carlo dropout: which layers it activates, its masks, and that every mode is restored."""

import pytest
import torch
from torch import nn

from tests.conftest import lively_network
from unet import BayesianUNet, draw_dropout_masks, mc_dropout


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_only_dropout_is_in_training_mode():
    network = BayesianUNet(base_channels=4).train()
    with mc_dropout(network):
        for module in network.modules():
            assert module.training == isinstance(module, nn.Dropout2d)


def test_passes_differ_and_buffers_are_unchanged():
    network = lively_network()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    x = torch.rand(2, 3, 32, 32)
    with mc_dropout(network):
        first, second = network(x), network(x)
    assert not torch.equal(first, second)
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert torch.equal(network(x), network(x))


def test_modes_are_restored_after_an_exception():
    network = BayesianUNet(base_channels=4).eval()
    network.down2.train()
    network.up1.conv.double_conv[1].train()
    before = modes(network)
    with mc_dropout(network):
        pass
    assert modes(network) == before
    with pytest.raises(RuntimeError, match="stop"), mc_dropout(network, draw_dropout_masks(network, 1, 0)):
        raise RuntimeError("stop")
    assert modes(network) == before
    assert all(m.mask is None for m in network.modules() if isinstance(m, nn.Dropout2d))


@pytest.mark.parametrize("model", [nn.Conv2d(1, 1, 1), nn.Dropout(0.0), BayesianUNet(dropout=0, base_channels=4)])
def test_model_without_active_dropout(model: nn.Module):
    with pytest.raises(ValueError, match="no dropout"), mc_dropout(model):
        pass


def test_any_network_with_dropout():
    model = nn.Sequential(nn.Linear(50, 50), nn.Dropout(0.5)).eval()
    x = torch.ones(1, 50)
    with mc_dropout(model):
        assert not torch.equal(model(x), model(x))
    assert torch.equal(model(x), model(x))


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
        with mc_dropout(network, masks):
            batch = network(x.expand(4, -1, -1, -1))
        for t in range(4):
            with mc_dropout(network, masks[t : t + 1]):
                torch.testing.assert_close(network(x)[0], batch[t], atol=1e-5, rtol=0)
    assert not torch.equal(batch[0], batch[1])


def test_masks_require_channel_dropout():
    with pytest.raises(ValueError, match="ChannelDropout"):
        draw_dropout_masks(nn.Sequential(nn.Dropout2d(0.2)), 1, 0)
    network = lively_network()
    with (
        pytest.raises(RuntimeError, match="sum exactly"),
        mc_dropout(network, draw_dropout_masks(network, 1, 0)[:, 1:]),
    ):
        pass
