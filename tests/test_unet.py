"""The network: shapes, number of parameters, placement of dropout."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.conftest import lively_network
from unet import BayesianUNet, class_logits
from unet.unet_parts import ChannelDropout, DoubleConv, Up


def test_number_of_parameters():
    assert sum(p.numel() for p in BayesianUNet().parameters()) == 7_763_074


def test_half_the_filters_of_the_paper():
    network = BayesianUNet()
    down = [network.down1, network.down2, network.down3, network.down4]
    widths = [block.maxpool_conv[1].double_conv[3].out_channels for block in down]
    assert [network.inc.double_conv[3].out_channels, *widths] == [32, 64, 128, 256, 512]


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("size", [(128, 128), (16, 16), (50, 37), (17, 31)])
def test_output_size_is_input_size(bilinear: bool, size: tuple[int, int]):
    network = BayesianUNet(n_channels=3, n_classes=4, bilinear=bilinear, base_channels=4).eval()
    assert network(torch.rand(2, 3, *size)).shape == (2, 4, *size)


def test_each_convolutional_layer_ends_with_dropout():
    network = BayesianUNet(base_channels=4)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    dropouts = [m for m in network.modules() if isinstance(m, ChannelDropout)]
    assert len(convolutions) == len(dropouts) == 18
    assert all(m.p == 0.2 for m in dropouts)
    assert [m.channels for m in dropouts] == [m.out_channels for m in convolutions]
    assert all(m.padding == (1, 1) and m.bias is None for m in convolutions)
    for block in (m for m in network.modules() if isinstance(m, DoubleConv)):
        kinds = [type(m) for m in block.modules() if not list(m.children())]
        assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, ChannelDropout] * 2


def test_block_placement():
    network = BayesianUNet(base_channels=4, dropout_placement="block")
    blocks = {name: m for name, m in network.named_modules() if isinstance(m, DoubleConv)}
    assert len(blocks) == 9
    for name, block in blocks.items():
        dropouts = [m for m in block.modules() if isinstance(m, ChannelDropout)]
        assert len(dropouts) == (0 if name == "inc" else 1)
        assert not dropouts or list(block.modules())[-1] is dropouts[0]


def test_no_dropout_layers_at_rate_0():
    assert not [m for m in BayesianUNet(dropout=0, base_channels=4).modules() if isinstance(m, nn.Dropout2d)]


def test_architecture_rebuilds_the_network():
    network = lively_network(n_classes=3, bilinear=True, dropout=0.4, dropout_placement="block")
    rebuilt = BayesianUNet(**network.architecture).eval()
    rebuilt.load_state_dict(network.state_dict())
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(network(x), rebuilt(x))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"n_classes": 0}, "n_classes"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"dropout_placement": "everywhere"}, "layer"),
        ({"bilinear": True, "base_channels": 3}, "even"),
    ],
)
def test_invalid_architecture(arguments: dict, word: str):
    with pytest.raises(ValueError, match=word):
        BayesianUNet(**arguments)


def test_up_pads_to_the_skip_connection():
    up = Up(8, 4)
    upsampled = up(torch.rand(1, 8, 3, 4), torch.rand(1, 4, 7, 9), iter([None, None]))
    assert upsampled.shape == (1, 4, 7, 9)


def test_sigmoid_logit_becomes_a_softmax_pair():
    z = torch.tensor([[[[-2.0, 0.0, 3.0]]]])  # (1, 1, 1, 3)
    pair = class_logits(z)
    assert pair.shape == (1, 2, 1, 3)
    torch.testing.assert_close(pair.softmax(1)[:, 1:], z.sigmoid())
    two = torch.rand(1, 2, 3, 3)
    assert class_logits(two) is two


def test_dropout_drops_whole_channels_or_applies_a_mask():
    layer = ChannelDropout(0.5, channels=4).train()
    x = torch.ones(64, 4, 3, 3)
    per_channel = layer(x).flatten(2)  # (64, 4, 9)
    assert (per_channel == per_channel[..., :1]).all()
    assert set(per_channel.unique().tolist()) == {0.0, 2.0}
    mask = torch.tensor([0.0, 2.0, 2.0, 0.0]).view(1, 4, 1, 1)
    assert layer(x, mask)[5, :, 0, 0].tolist() == [0, 2, 2, 0]
    assert torch.equal(layer.eval()(x), x)
    assert layer(x, mask)[5, :, 0, 0].tolist() == [0, 2, 2, 0]


def test_bilinear_upsampling_aligns_corners_and_pads_at_the_end():
    up, x, skip, seen = Up(4, 2, bilinear=True), torch.rand(1, 2, 3, 4), torch.rand(1, 2, 7, 9), []
    up.conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    up(x, skip, iter([None, None]))
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    torch.testing.assert_close(seen[0][:, :2], skip)
    torch.testing.assert_close(seen[0][:, 2:, :6, :8], expected)
    assert not seen[0][:, 2:, 6].any()
    assert not seen[0][:, 2:, :, 8].any()
