"""The building blocks of the U-Net."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LayerMasks = Iterator[Tensor | None]  # of the dropout layers to come, each (N, C, 1, 1) or None for a random one


class ChannelDropout(nn.Dropout2d):
    """`nn.Dropout2d` for a known number of channels, which can apply a given mask in place of a random one.

    Args:
        p: probability that a channel of a sample is set to zero, in [0, 1).
        channels: number of channels C of the input.
    """

    def __init__(self, p: float, channels: int) -> None:
        super().__init__(p)
        self.channels = channels

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Multiply by a (N, C, 1, 1) mask of 0 and 1 / (1 - p) in any mode; without one it is `nn.Dropout2d`."""
        return super().forward(x) if mask is None else x * mask.to(x.dtype)


def _conv_layer(in_channels: int, out_channels: int, dropout: float) -> list[nn.Module]:
    """3x3 convolution, batch norm, and ReLU followed by dropout: three modules of a Sequential."""
    activation: nn.Module = nn.ReLU(inplace=True)
    if dropout > 0:
        activation = nn.Sequential(activation, ChannelDropout(dropout, out_channels))
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        activation,
    ]


class DoubleConv(nn.Module):
    """Two convolutional layers, each 3x3 convolution -> batch norm -> ReLU -> dropout.

    Args:
        in_channels, out_channels: channels of input and output.
        mid_channels: channels between the two layers; `out_channels` if not given.
        dropout: dropout probabilities at the end of the first and of the second layer, in [0, 1).

    The dropout shares a module with its ReLU, so that the names of the weights (`double_conv.0`, `.1`, `.3`, `.4`)
    are those of a U-Net without dropout, for every placement of the dropout.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        mid_channels: int | None = None,
        dropout: tuple[float, float] = (0.2, 0.2),
    ) -> None:
        super().__init__()
        mid_channels = mid_channels or out_channels
        self.double_conv = nn.Sequential(
            *_conv_layer(in_channels, mid_channels, dropout[0]),
            *_conv_layer(mid_channels, out_channels, dropout[1]),
        )

    def forward(self, x: Tensor, masks: LayerMasks) -> Tensor:
        for layer in self.double_conv:
            if isinstance(layer, nn.Sequential):
                activation, dropout = layer
                x = dropout(activation(x), next(masks))
            else:
                x = layer(x)
        return x  # (N, C_in, h, w) -> (N, C_out, h, w)


class Down(nn.Module):
    """2x2 max pooling, then `DoubleConv`."""

    def __init__(self, in_channels: int, out_channels: int, dropout: tuple[float, float] = (0.2, 0.2)) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(in_channels, out_channels, dropout=dropout))

    def forward(self, x: Tensor, masks: LayerMasks) -> Tensor:
        pool, conv = self.maxpool_conv
        return conv(pool(x), masks)  # (N, C_in, h, w) -> (N, C_out, h // 2, w // 2)


class Up(nn.Module):
    """Upsampling by 2, concatenation with the skip connection, then `DoubleConv`.

    Args:
        in_channels: channels after the concatenation.
        out_channels: channels of the output.
        bilinear: bilinear upsampling, which keeps the channels and leaves reducing them to the
            convolutions; else a 2x2 transposed convolution, which halves them.
        dropout: as in `DoubleConv`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bilinear: bool = False,
        dropout: tuple[float, float] = (0.2, 0.2),
    ) -> None:
        super().__init__()
        if bilinear:
            self.up: nn.Module = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            mid_channels = in_channels // 2
        else:
            self.up = nn.ConvTranspose2d(in_channels, in_channels // 2, kernel_size=2, stride=2)
            mid_channels = out_channels
        self.conv = DoubleConv(in_channels, out_channels, mid_channels, dropout)

    def forward(self, x: Tensor, skip: Tensor, masks: LayerMasks) -> Tensor:
        x = self.up(x)  # (N, C, h, w) -> (N, C', 2 h, 2 w)
        rows, columns = skip.shape[-2] - x.shape[-2], skip.shape[-1] - x.shape[-1]
        if rows or columns:  # pooling rounded an odd size down
            x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return self.conv(torch.cat([skip, x], dim=1), masks)


class OutConv(nn.Module):
    """1x1 convolution from features to logits."""

    def __init__(self, in_channels: int, n_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, n_classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # (N, C, h, w) -> (N, n_classes, h, w)
