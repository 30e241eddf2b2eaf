"""The U-Net with dropout at the end of its convolutional layers.

Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015, with half
the filters, padded convolutions and batch norm; dropout as in Gal and Ghahramani, "Dropout as a Bayesian
Approximation", ICML 2016.
"""

import torch
from torch import Tensor, nn

from unet.unet_parts import ChannelDropout, DoubleConv, Down, OutConv, Up

DROPOUT_PLACEMENTS = ("layer", "block")


class BayesianUNet(nn.Module):
    """Vanilla U-Net with channel-wise dropout, which given masks keep active at test time.

    Args:
        n_channels: channels of the image.
        n_classes: 1 for a sigmoid output, 2 and more for a softmax output.
        bilinear: upsample bilinearly, not by transposed convolutions.
        dropout: probability that a channel is dropped, in [0, 1).
        base_channels: channels of the first level, doubled at each of the four levels below.
        dropout_placement: "layer" for dropout at the end of every convolutional layer; "block" for dropout only at
            the end of each double convolution but the first, as in the original project's checkpoints.

    Attributes:
        dropout_channels: the numbers of channels of its dropout layers.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        n_channels: int = 3,
        n_classes: int = 2,
        bilinear: bool = False,
        dropout: float = 0.2,
        base_channels: int = 32,
        dropout_placement: str = "layer",
    ) -> None:
        super().__init__()
        if min(n_channels, n_classes, base_channels) < 1:
            raise ValueError(
                f"n_channels, n_classes and base_channels must be 1 or more, not "
                f"{n_channels}, {n_classes} and {base_channels}"
            )
        if bilinear and base_channels % 2:
            raise ValueError(f"base_channels must be even for bilinear upsampling, not {base_channels}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {dropout}")
        if dropout_placement not in DROPOUT_PLACEMENTS:
            raise ValueError(f"dropout_placement must be one of {DROPOUT_PLACEMENTS}, not {dropout_placement!r}")
        self.n_channels, self.n_classes = n_channels, n_classes
        self.architecture = {
            "n_channels": n_channels,
            "n_classes": n_classes,
            "bilinear": bilinear,
            "dropout": dropout,
            "base_channels": base_channels,
            "dropout_placement": dropout_placement,
        }  # rebuilds this network: BayesianUNet(**architecture)

        per_layer = dropout_placement == "layer"
        d = (dropout if per_layer else 0.0, dropout)
        c = [base_channels * 2**level for level in range(5)]  # 32, 64, 128, 256, 512
        f = 2 if bilinear else 1  # bilinear upsampling keeps the channels, so each level outputs half as many
        self.inc = DoubleConv(n_channels, c[0], dropout=d if per_layer else (0.0, 0.0))
        self.down1 = Down(c[0], c[1], d)
        self.down2 = Down(c[1], c[2], d)
        self.down3 = Down(c[2], c[3], d)
        self.down4 = Down(c[3], c[4] // f, d)
        self.up1 = Up(c[4], c[3] // f, bilinear, d)
        self.up2 = Up(c[3], c[2] // f, bilinear, d)
        self.up3 = Up(c[2], c[1] // f, bilinear, d)
        self.up4 = Up(c[1], c[0], bilinear, d)
        self.outc = OutConv(c[0], n_classes)
        self.dropout_channels = [layer.channels for layer in self.modules() if isinstance(layer, ChannelDropout)]

    def forward(self, x: Tensor, masks: Tensor | None = None) -> Tensor:
        """Logits of images.

        Args:
            x: (N, n_channels, h, w) float in [0, 1], h and w at least 16.
            masks: (N, D) dropout masks from `draw_dropout_masks`, on its device, which apply in evaluation mode, too;
                if None, dropout is random in training mode only.

        Returns:
            (N, n_classes, h, w) logits.
        """
        channels = self.dropout_channels
        of_layers = iter([None] * len(channels) if masks is None else masks[:, :, None, None].split(channels, dim=1))
        x1 = self.inc(x, of_layers)  # (N, 32, h, w)
        x2 = self.down1(x1, of_layers)  # (N, 64, h / 2, w / 2)
        x3 = self.down2(x2, of_layers)  # (N, 128, h / 4, w / 4)
        x4 = self.down3(x3, of_layers)  # (N, 256, h / 8, w / 8)
        x = self.down4(x4, of_layers)  # (N, 512, h / 16, w / 16)
        x = self.up1(x, x4, of_layers)
        x = self.up2(x, x3, of_layers)
        x = self.up3(x, x2, of_layers)
        x = self.up4(x, x1, of_layers)  # (N, 32, h, w)
        return self.outc(x)


def class_logits(logits: Tensor) -> Tensor:
    """Logits of at least two classes: one sigmoid logit z becomes the softmax pair (0, z).

    Args:
        logits: (N, C, h, w) output of the network, C >= 1.

    Returns:
        (N, max(C, 2), h, w), so that the rest of the code does not distinguish one-class models.
    """
    if logits.shape[1] > 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], dim=1)
