"""Monte Carlo dropout: the masks with which dropout is active at test time (Gal and Ghahramani, ICML 2016)."""

import torch
from torch import Tensor

from unet.unet_model import BayesianUNet


def draw_dropout_masks(network: BayesianUNet, num_samples: int, seed: int) -> Tensor:
    """Masks for `BayesianUNet.forward`, which depend on the seed alone, not on the device or the batch size.

    The first k masks do not depend on `num_samples`: fewer passes are a prefix of more.

    Args:
        network: the network.
        num_samples: number of passes T.
        seed: of the random numbers, from 0 to 2**63 - 1.

    Returns:
        (T, D) float32 of 0 and 1 / (1 - p), on the CPU: D is the number of channels of all dropout layers together, in
        their order.
    """
    p = torch.tensor(network.architecture["dropout"], dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(num_samples, sum(network.dropout_channels), generator=generator)
    return (uniform >= p) / (1 - p)
