"""The batches of a training: their order, their seeds, and the share of each process."""

import os
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import ROOT, dataset_of, heed_ctrl_c
from utils.data.decoding import DecodedPairs
from utils.data.mask_values import ValueCounts
from utils.data.pairing import Pair
from utils.data_loading import (
    SeededBatchSampler,
    SegmentationDataset,
    collate,
    training_batches,
    validation_batches,
)


def numbered_dataset(n: int, transform=None) -> SegmentationDataset:
    """A dataset whose image i is filled with the value i."""
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 4, 6, 3))
    masks, fine_masks = np.zeros((n, 4, 6), dtype=np.uint16), np.zeros((n, 8, 12), dtype=np.uint16)
    pairs = [Pair(Path(f"{i}.jpg"), (Path(f"{i}.png"),)) for i in range(n)]
    decoded = DecodedPairs(pairs, images, masks, fine_masks, [ValueCounts(*np.array([[0], [24], [8]]))] * n)
    return dataset_of(decoded, range(n), [0, 255], transform)


def add_random(image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return image + torch.randint(9, (1,)).byte(), mask


def test_every_item_once_in_another_order_each_epoch():
    sampler = SeededBatchSampler(20, 6, seed=3)
    assert (len(sampler), [sampler.size(i) for i in range(4)]) == (4, [6, 6, 6, 2])
    orders = []
    for epoch in (1, 2):
        sampler.epoch = epoch
        batches = list(sampler)
        assert [len(batch) for batch in batches] == [6, 6, 6, 2]
        numbers, seeds = zip(*chain(*batches), strict=True)
        assert sorted(numbers) == list(range(20))
        assert len(set(seeds)) == 20
        orders.append(numbers)
        resumed = SeededBatchSampler(20, 6, seed=3)
        resumed.epoch, resumed.start = epoch, 2
        assert list(resumed) == batches[2:]
        assert len({sampler.batch_seed(i) for i in range(-1, 4)}) == 5
    assert orders[0] != orders[1]
    assert tuple(n for n, _ in chain(*SeededBatchSampler(20, 6, seed=4))) != orders[0]


def test_share_of_each_process(monkeypatch: pytest.MonkeyPatch):
    whole = list(SeededBatchSampler(13, 5, seed=0))
    monkeypatch.setattr("utils.runtime.distributed.world_size", lambda: 4)
    shares = []
    for rank in range(4):
        monkeypatch.setattr("utils.runtime.distributed.rank", lambda rank=rank: rank)
        shares.append(list(SeededBatchSampler(13, 5, seed=0)))
    for i, batch in enumerate(whole):
        assert sorted(chain(*(share[i] for share in shares))) == sorted(batch)
    assert [len(share[2]) for share in shares] == [1, 1, 1, 0]  # the last process has the batch without any image
    images, target = collate([], (2, 4, 6))
    assert (images.shape, target.shape) == ((0, 3, 4, 6), (0, 2, 4, 6))


@pytest.mark.filterwarnings("ignore:'pin_memory'")
def test_training_batches():
    dataset = numbered_dataset(7, add_random)
    epochs = [list(training_batches(dataset, 3, seed=0, workers=workers)) for workers in (0, 0, 2)]
    for batches in epochs:
        assert [images.shape for images, _ in batches] == [(3, 3, 4, 6), (3, 3, 4, 6), (1, 3, 4, 6)]
        for (images, masks), (expected_images, expected_masks) in zip(batches, epochs[0], strict=True):
            assert torch.equal(images, expected_images)
            assert torch.equal(masks, expected_masks)


def test_validation_batches_of_each_process(monkeypatch: pytest.MonkeyPatch):
    dataset = numbered_dataset(7)
    monkeypatch.setattr("utils.runtime.distributed.world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr("utils.runtime.distributed.rank", lambda rank=rank: rank)
        batches = list(validation_batches(dataset, 6))
        shares.append([[int(image.max()) for image in images] for images, _ in batches])
        assert [len(images) for images, _ in validation_batches(dataset, 1)] == [1] * len(range(rank, 7, 2))
    assert shares == [[[0, 2, 4], [6]], [[1, 3, 5]]]  # three images of each process are six together


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are a matter of POSIX")
def test_worker_processes_survive_the_signals_of_their_group():
    """Terminals, torchrun and Slurm send them to all processes; only the main one may decide when to stop."""
    code = """
import multiprocessing
import time
from tests.test_batch_sampler import numbered_dataset
from utils.data_loading import training_batches
from utils.runtime.signals import GracefulStop

for _ in range(2):
    batches = training_batches(numbered_dataset(400), 2, seed=0, workers=2)
    count = 0
    with GracefulStop() as stop:
        for images, _ in batches:
            count += len(images)
            if count == 20:
                workers = multiprocessing.active_children()
                print(*(worker.pid for worker in workers), flush=True)
                while not stop():
                    time.sleep(0.01)
    for worker in workers:  # which the main process can terminate
        worker.terminate()
        worker.join(60)
    print(count, [worker.exitcode for worker in workers], flush=True)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heed_ctrl_c
    ) as process:
        for signum in (signal.SIGINT, signal.SIGTERM):
            workers = [int(pid) for pid in process.stdout.readline().split()]
            if hasattr(signal, "sigwaitinfo"):
                for pid in workers:  # systemd sends them to each process, whatever its group
                    os.kill(pid, signum)
            os.killpg(process.pid, signum)
            assert process.stdout.readline() == "400 [0, 0]\n"
    assert process.returncode == 0
