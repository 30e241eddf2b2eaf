"""The dataset, its split, and its batches: the file to adapt to other data.

`pair_files` pairs the images and masks of two folders, `decode_pairs` decodes them, `split_indices` sets some aside for
validation, `SegmentationDataset` serves them, `SeededBatchSampler` shuffles them into batches.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from os.path import realpath
from pathlib import Path

import numpy as np
import torch
import torch.utils.data
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from utils.data.class_shares import class_shares
from utils.data.decoding import ARRAY_NAMES, DecodedPairs
from utils.data.lesions import keep_lesions, pixels_per_class
from utils.data.mask_classes import MaskClasses
from utils.data.pairing import Pair
from utils.runtime import distributed
from utils.runtime.errors import InputError
from utils.runtime.seeds import derived_seed
from utils.runtime.signals import leave_signal_group

logger = logging.getLogger(__name__)


def split_indices(
    n: int, validation_percent: float, seed: int, groups: Sequence[str] | None = None
) -> tuple[list[int], list[int]]:
    """Training and validation indices of n images, drawn at random, with at least one image on each side.

    Args:
        n: number of images.
        validation_percent: percentage of the images that are held out; 0 for all images on both sides.
        seed: of the random draw.
        groups: of each image; all images of a group are on one side.

    Raises:
        InputError: there are fewer than two images or groups, or the percentage is not from 0 to below 100.
    """
    if not 0 <= validation_percent < 100:
        raise InputError(f"the validation percentage must be at least 0 and below 100, not {validation_percent:g}")
    if validation_percent == 0:
        return list(range(n)), list(range(n))
    if n < 2:
        raise InputError(
            f"{n} image is too few: one is needed for training and another for validation; a validation percentage of "
            "0 validates on the training images"
        )
    n_validation = min(max(round(n * validation_percent / 100), 1), n - 1)
    generator = torch.Generator().manual_seed(seed)
    if groups is None:
        order = torch.randperm(n, generator=generator).tolist()
        return sorted(order[n_validation:]), sorted(order[:n_validation])
    held_out = _draw_groups(Counter(groups), n_validation, generator)
    sides: tuple[list[int], list[int]] = ([], [])
    for i, group in enumerate(groups):
        sides[group in held_out].append(i)
    return sides


def indices_not_held_out(pairs: Sequence[Pair], held_out: Sequence[Pair]) -> list[int]:
    """The indices of the pairs whose image file is not among those held out, which may be in a folder within theirs.

    Raises:
        InputError: there are none.
    """
    files = {realpath(pair.image) for pair in held_out}
    indices = [i for i, pair in enumerate(pairs) if realpath(pair.image) not in files]
    if not indices:
        text = f"all {len(pairs)} images to train on are validation images: name others for one of the two"
        raise InputError(text, "imgs_dir", "val_imgs_dir")
    if len(indices) < len(pairs):
        logger.info(
            "%d of %d images are validation images: not training on them", len(pairs) - len(indices), len(pairs)
        )
    return indices


def _draw_groups(sizes: Mapping[str, int], n_validation: int, generator: torch.Generator) -> set[str]:
    """Groups for validation, in random order, as long as they bring the number of images closer to `n_validation`."""
    if len(sizes) < 2:
        raise InputError("all images are of one group: one is needed for training and another for validation")
    names = sorted(sizes)
    drawn, total = set(), 0
    for i in torch.randperm(len(names), generator=generator).tolist():
        size = sizes[names[i]]
        if abs(total + size - n_validation) < abs(total - n_validation) and len(drawn) < len(names) - 1:
            drawn.add(names[i])
            total += size
    return drawn or {min(names, key=lambda name: sizes[name])}


class SegmentationDataset(Dataset):
    """Some of the decoded pairs, as uint8 image and class indices, or, with a transform, the classes' shares in pixels.

    Args:
        decoded: all pairs.
        indices: which of them.
        mask_classes: what the mask values mean, from `DecodedPairs.mask_classes`.
        transform: takes and returns an image (3, h, w) uint8 and the `class_shares` of its mask (C, h, w), as tensors.
        groups: of all pairs, such as patients, if there are any.

    An item is addressed by its number, or by `(number, seed)` to make the transform's random numbers reproducible.

    Attributes:
        mask_classes: what its mask values mean.
        white: the value of white in its 16-bit images, if there are any.
        n_counted: number of masks with pixels that count, at their own size.
        n_without_lesion: number of those among them that are background alone.
        absent: the classes but the background that none of the masks shows.
        kept: the pixels that masks keep of a class that would vanish at the network's input size, by index.
        groups: of its items, or None.
    """

    def __init__(
        self,
        decoded: DecodedPairs,
        indices: Sequence[int],
        mask_classes: MaskClasses,
        transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        groups: Sequence[str] | None = None,
    ) -> None:
        self.images, self.masks, self.fine_masks = decoded.images, decoded.masks, decoded.fine_masks
        self.indices, self.transform = indices, transform
        self.groups = [groups[i] for i in indices] if groups else None
        self.mask_classes, self.white = mask_classes, decoded.white
        self.tables = [mask_classes.of(counts.values) for counts in decoded.counts]
        background, *lesion = pixels_per_class(decoded, self.tables, len(mask_classes.values))[list(indices)].T > 0
        with_lesion = np.any(lesion, axis=0)
        self.absent = [k for k, shown in enumerate(lesion, start=1) if not shown.any()]
        self.n_counted = int(np.count_nonzero(background | with_lesion))
        self.n_without_lesion = self.n_counted - int(np.count_nonzero(with_lesion))
        self.kept = keep_lesions(decoded, indices, mask_classes, self.tables)

    def with_transform(self, transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> "SegmentationDataset":
        """The same images and masks with another transform."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, transform=transform)
        return other

    def __getstate__(self) -> dict:
        """For worker processes, which memory-map the cache again in place of receiving a copy of it."""
        state = dict(self.__dict__)
        for name in ARRAY_NAMES:
            if isinstance(state[name], np.memmap):
                state[name] = Path(state[name].filename)
        return state

    def __setstate__(self, state: dict) -> None:
        for name in ARRAY_NAMES:
            if isinstance(state[name], Path):
                state[name] = np.load(state[name], mmap_mode="r")
        self.__dict__.update(state)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        number, seed = key if isinstance(key, tuple) else (key, None)
        i = self.indices[number]
        image = torch.from_numpy(np.array(self.images[i])).permute(2, 0, 1)  # (3, h, w) uint8
        table, kept = self.tables[i], self.kept.get(i, ())
        if self.transform is None:
            mask = torch.from_numpy(table[self.masks[i]])  # (h, w) uint8 classes, or IGNORED_CLASS
            for pixel, k in kept:
                mask.flatten()[pixel] = k
            return image, mask
        shares = class_shares(torch.from_numpy(table[self.fine_masks[i]]), len(self.mask_classes.values), side=2)
        for pixel, k in kept:
            shares.flatten(1)[:, pixel] = torch.arange(len(shares)) == k
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            return self.transform(image, shares)


class SeededBatchSampler(torch.utils.data.Sampler[list[tuple[int, int]]]):
    """Batches of a shuffled dataset, each item with a seed for its random transforms.

    The batches depend on the seed and on `epoch` and nothing else, so an epoch can be resumed at any batch, and each of
    several processes takes its share of every batch.

    Args:
        n: size of the dataset.
        batch_size: images per batch, over all processes; the last batch of an epoch may be smaller.
        seed: seed of the order and of the items' seeds.

    Attributes:
        epoch: from 1 on; set by the caller.
        start: the first batch to yield, from 0 on; set by the caller.
    """

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.epoch, self.start = 1, 0

    def __len__(self) -> int:
        """The number of batches of a whole epoch."""
        return -(-self.n // self.batch_size)

    def size(self, batch: int) -> int:
        """The number of images of a batch, over all processes."""
        return min(self.batch_size, self.n - batch * self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(self.batch_seed(-1))
        order = torch.randperm(self.n, generator=generator).tolist()
        seeds = torch.randint(2**62, (self.n,), generator=generator).tolist()
        items = list(zip(order, seeds, strict=True))
        for first in range(self.start * self.batch_size, self.n, self.batch_size):
            yield items[first : first + self.batch_size][distributed.rank() :: distributed.world_size()]

    def batch_seed(self, batch: int) -> int:
        """A seed for what else is random in a batch of this epoch; batch -1 is the epoch itself."""
        return derived_seed(self.seed, f"{self.epoch}:{batch}")


def collate(items: Sequence[tuple[Tensor, Tensor]], shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """A batch of (N, 3, h, w) images and (N, C, h, w) shares; N is 0 where a process has none of the images of a batch.

    Args:
        items: images and the shares of their classes.
        shape: (C, h, w) of the latter.
    """
    if not items:
        return torch.empty(0, 3, *shape[1:], dtype=torch.uint8), torch.empty(0, *shape)
    images, shares = zip(*items, strict=True)
    return torch.stack(images), torch.stack(shares)


def training_batches(dataset: SegmentationDataset, batch_size: int, seed: int, workers: int = 0) -> DataLoader:
    """Shuffled batches of the training set; this process's part of each.

    Args:
        dataset: the training set, with its transforms.
        batch_size: images per batch, over all processes.
        seed: seed of the order and the transforms.
        workers: processes that load ahead; with 0 the main process loads.
    """
    shape = (len(dataset.mask_classes.values), *dataset.masks.shape[1:])
    return DataLoader(
        dataset,
        batch_sampler=SeededBatchSampler(len(dataset), batch_size, seed),
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=leave_signal_group,
        collate_fn=partial(collate, shape=shape),
    )


def validation_batches(dataset: SegmentationDataset, batch_size: int) -> DataLoader:
    """This process's part of the validation set, in order, in batches of `batch_size` images over all processes."""
    share = range(distributed.rank(), len(dataset), distributed.world_size())
    return DataLoader(Subset(dataset, share), max(1, batch_size // distributed.world_size()))
