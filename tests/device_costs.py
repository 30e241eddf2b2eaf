"""What a training step, a batch to evaluate or predict and a block of rows cost on a device, by line.

Transfers, reads and launches are counted:

    python -m tests.device_costs train evaluate softmax mc_dropout tta maps

prints the costs of one more step, batch or block, so that what is done once does not count.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.pretended_device import NAME, PretendedDevice, format_counts, on_pretended_device
from tests.random_data import SeededTensorDataset
from unet import BayesianUNet
from utils.checkpoint import TrainedModel
from utils.data_loading import SeededBatchSampler
from utils.inference.maps import STATISTICS
from utils.inference.predictor import MapOptions, predict_full_size
from utils.inference.samplers import MCDropout, Sampler, Softmax, TestTimeAugmentation
from utils.inference.upsampling import LogitSamples
from utils.pipeline.outputs import make_greyscale_maps
from utils.training.loop import evaluate, train_one_epoch
from utils.training.state import new_training_state

Costs = Mapping[tuple[str, str], float]

SIDE = 32  # of the network's input
BLOCK_VALUES = 32 * (4 + 3) * 64  # at full size: 32 rows of 64 pixels of 4 samples, and their statistics


def _network() -> BayesianUNet:
    torch.manual_seed(0)
    return BayesianUNet(base_channels=4).to(NAME, memory_format=torch.channels_last)


def train_steps(n: int) -> None:
    """Train an epoch of n steps."""
    state = new_training_state(_network(), 1e-3, n)
    images = torch.randint(0, 256, (2 * n, 3, SIDE, SIDE), dtype=torch.uint8)
    masks = (images[:, 0] > 100).to(torch.uint8)
    batches = DataLoader(SeededTensorDataset(images, masks), batch_sampler=SeededBatchSampler(2 * n, 2, seed=0))
    assert train_one_epoch(state, batches)


def evaluate_batches(n: int) -> None:
    """Evaluate n batches, some images of which have a lesion."""
    state = new_training_state(_network(), 1e-3, 1)
    images = torch.randint(0, 256, (2 * n, 3, SIDE, SIDE), dtype=torch.uint8)
    masks = (images[:, 0] > 100).to(torch.uint8)
    masks[::3] = 0
    evaluate(state, DataLoader(TensorDataset(images, masks), 2))


def sample_batches(sampler: Sampler, n: int) -> None:
    """Draw the samples of n images, each a network batch."""
    model = TrainedModel(_network().eval(), (SIDE, SIDE))
    inputs = [torch.randint(0, 256, (1, 3, SIDE, SIDE), dtype=torch.uint8) for _ in range(n)]
    if isinstance(sampler, TestTimeAugmentation):
        inputs = [torch.cat([image, image]) for image in inputs]
    for i, image in enumerate(inputs):
        sampler.sample(model, [image], [str(i)])


def full_size_blocks(options: MapOptions, n: int, judged: bool = False) -> None:
    """Take an image to its full size in n blocks of rows, and compare it with ground truth."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(4, 2, SIDE, SIDE)
    target = np.eye(32 * n, 64, dtype=np.uint8) if judged else None
    predict_full_size([LogitSamples(logits.to(NAME))], (64, 32 * n), options, target, max_values=BLOCK_VALUES)


WORK: dict[str, Callable[[int], object]] = {
    "train": train_steps,
    "evaluate": evaluate_batches,
    "softmax": partial(sample_batches, Softmax(batch_size=1)),
    "mc_dropout": partial(sample_batches, MCDropout(batch_size=4, num_samples=4)),
    "tta": partial(sample_batches, TestTimeAugmentation(batch_size=16)),
    "mask": partial(full_size_blocks, MapOptions()),
    "judged": partial(full_size_blocks, MapOptions(), judged=True),
    "maps": partial(full_size_blocks, MapOptions(0.5, make_greyscale_maps, STATISTICS, STATISTICS)),
}


def costs(name: str, n: int) -> Costs:
    """The costs of n steps, batches or blocks of one of `WORK`."""

    def count(device: PretendedDevice) -> Costs:
        WORK[name](n)
        return device.counts

    return on_pretended_device(count)


def marginal_costs(name: str, short: int = 3, long: int = 6) -> Costs:
    """The costs of one more step, batch or block of one of `WORK`: the mean difference of a long and a short run."""
    few, many = Counter(costs(name, short)), Counter(costs(name, long))
    many.subtract(few)
    return {key: count / (long - short) for key, count in many.items() if count}


def total(of: Costs, kind: str) -> float:
    """The costs of one kind."""
    return sum(count for (of_kind, _), count in of.items() if of_kind == kind)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.device_costs", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="+", choices=WORK, metavar="NAME", help=", ".join(WORK))
    for name in parser.parse_args().names:
        print(f"-- {name}\n{format_counts(marginal_costs(name))}")


if __name__ == "__main__":
    main()
