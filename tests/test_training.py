"""Training steps, evaluation, what is saved and how a training is resumed."""

import csv
import multiprocessing
import random
import shutil
import signal
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.conftest import lively_network, make_folders
from unet import BayesianUNet
from utils import training
from utils.checkpoint import TrainedModel, load_model, read_checkpoint
from utils.data_loading import SegmentationDataset, decode_pairs, pair_files
from utils.errors import InputError
from utils.training import (
    SeededBatches,
    collate,
    evaluate,
    predict_examples,
    save_epoch,
    save_last,
    train_one_epoch,
    training_state,
)

CPU = torch.device("cpu")


class Pictures(TensorDataset):
    """Images and masks that are asked for by their number, or by number and seed."""

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[torch.Tensor, ...]:
        return super().__getitem__(key[0] if isinstance(key, tuple) else key)


def batches(n: int = 4, batch_size: int = 2, size: int = 32) -> DataLoader:
    torch.manual_seed(5)
    masks = torch.zeros(n, size, size, dtype=torch.uint8)
    masks[:, 8:20, 6:22] = 1
    images = (220 - 140 * masks[:, None] + torch.randint(0, 30, (n, 3, size, size))).to(torch.uint8)
    return DataLoader(Pictures(images, masks), batch_sampler=SeededBatches(n, batch_size, seed=0))


def train(state: training.TrainingState, data: DataLoader, dtype: torch.dtype | None = None) -> float:
    """Train an epoch; returns its mean loss."""
    assert train_one_epoch(state, data, CPU, dtype)
    loss = state.loss
    state.add_epoch({})
    return loss


def fresh(total_steps: int = 100, learning_rate: float = 3e-3, **architecture) -> training.TrainingState:
    torch.manual_seed(0)
    return training_state(BayesianUNet(base_channels=4, **architecture), learning_rate, total_steps)


def test_batches_have_every_item_once_in_another_order_each_epoch():
    sampler = SeededBatches(20, 6, seed=3)
    assert (len(sampler), [sampler.size(i) for i in range(4)]) == (4, [6, 6, 6, 2])
    orders = []
    for epoch in (1, 2):
        sampler.epoch = epoch
        parts = list(sampler)
        assert [len(part) for part in parts] == [6, 6, 6, 2]
        numbers, seeds = zip(*chain(*parts), strict=True)
        assert sorted(numbers) == list(range(20))
        assert len(set(seeds)) == 20
        orders.append(numbers)
        again = SeededBatches(20, 6, seed=3)
        again.epoch, again.start = epoch, 2
        assert list(again) == parts[2:]
        assert len({sampler.batch_seed(i) for i in range(-1, 4)}) == 5
    assert orders[0] != orders[1]
    assert tuple(n for n, _ in chain(*SeededBatches(20, 6, seed=4))) != orders[0]


def test_each_process_has_its_part_of_every_batch(monkeypatch: pytest.MonkeyPatch):
    whole = list(SeededBatches(13, 5, seed=0))
    monkeypatch.setattr("utils.distributed.world_size", lambda: 4)
    parts = []
    for rank in range(4):
        monkeypatch.setattr("utils.distributed.rank", lambda rank=rank: rank)
        parts.append(list(SeededBatches(13, 5, seed=0)))
    for i, batch in enumerate(whole):
        assert sorted(chain(*(part[i] for part in parts))) == sorted(batch)
    assert [len(part[2]) for part in parts] == [1, 1, 1, 0]  # the last has no image, but the batch all the same
    images, masks = collate([], (6, 4))
    assert (images.shape, masks.shape) == ((0, 3, 4, 6), (0, 4, 6))


def test_training_learns():
    state = fresh(total_steps=80, learning_rate=1e-2, dropout=0.05)
    first = train(state, batches())
    for _ in range(39):
        last = train(state, batches())
    assert last < first / 2
    scores = evaluate(state.network, batches(), CPU)
    assert scores["dice"] > 0.9
    assert scores["accuracy"] > scores["accuracy_all_background"] + 0.1


def test_evaluate_by_hand():
    class Fixed(torch.nn.Module):
        """Calls the upper half of every image lesion."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = torch.full((len(x), 1, *x.shape[-2:]), -20.0)
            z[:, :, : x.shape[-2] // 2] = 20.0
            return z

    masks = torch.zeros(3, 4, 4, dtype=torch.uint8)
    masks[0, :2] = 1  # Dice 1
    masks[1, :, :2] = 1  # overlap of 4 pixels: Dice 8 / 16
    data = DataLoader(TensorDataset(torch.zeros(3, 3, 4, 4, dtype=torch.uint8), masks), 2)  # the third: Dice 0
    scores = evaluate(Fixed(), data, CPU)
    assert scores["dice"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert scores["accuracy"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert scores["accuracy_all_background"] == pytest.approx((0.5 + 0.5 + 1) / 3)


def test_dropout_is_on_in_training_and_off_in_evaluation():
    state = fresh()
    seen = []
    state.network.up4.register_forward_hook(lambda module, *_: seen.append(module.training))
    train_one_epoch(state, batches(), CPU)
    evaluate(state.network, batches(), CPU)
    assert seen == [True, True, False, False]


class Crowded(torch.nn.Module):
    """A network on a device that has room for two images."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.seen = BayesianUNet(base_channels=4, dropout=0), []
        for module in self.network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.train = lambda mode: None  # statistics of a part differ from the whole's
                module.training = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.room:
            raise torch.OutOfMemoryError("no room")
        self.seen.append(len(x))
        return self.network(x)


def test_out_of_memory_is_met_with_smaller_parts_and_equal_gradients(caplog: pytest.LogCaptureFixture):
    weights = []
    for room in (8, 2):
        torch.manual_seed(0)
        network = Crowded()
        network.room = room
        state = training_state(network, 1e-2, 10)
        loss = train(state, batches(6, batch_size=6))
        weights.append((loss, [p.clone() for p in network.parameters()], network.seen, state.at_once))
    assert weights[0][2:] == ([6], 0)
    assert weights[1][2:] == ([1] * 6, 1)  # six were too many, and three
    assert weights[0][0] == pytest.approx(weights[1][0], abs=1e-5)
    for a, b in zip(weights[0][1], weights[1][1], strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3)
    assert "Out of memory with 6 images at once: going on with 3" in caplog.text


def test_out_of_memory_is_met_in_evaluation_too():
    network = Crowded()
    scores = []
    for room in (8, 3):
        network.room = room
        scores.append(evaluate(network, batches(8, batch_size=8), CPU))
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert network.seen == [8, 2, 2, 2, 2]


def test_too_little_memory_for_one_image_is_an_error():
    network = Crowded()
    network.room = 0
    for attempt in (
        lambda: train_one_epoch(training_state(network, 1e-2, 10), batches(), CPU),
        lambda: evaluate(network, batches(), CPU),
    ):
        with pytest.raises(InputError, match="too little"):
            attempt()


def test_a_loss_that_is_not_finite_stops_and_reaches_no_checkpoint(tmp_path: Path):
    state = fresh()
    with torch.no_grad():
        state.network.outc.conv.bias.fill_(float("nan"))
    with pytest.raises(InputError, match=r"no longer finite \(epoch 1, step 1"):
        train_one_epoch(state, batches(), CPU)
    state.add_epoch({"loss": float("nan"), "dice": 0.0})
    with pytest.raises(InputError, match="epoch 1 is nan"):
        save_epoch(tmp_path, TrainedModel(state.network), state)
    assert not list(tmp_path.iterdir())


def test_a_gradient_that_is_not_finite_stops():
    state = fresh()
    state.network.outc.conv.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(InputError, match="finite"):
        train_one_epoch(state, batches(), CPU)


def scaled(scale: float) -> training.TrainingState:
    state = fresh(total_steps=200)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    return state


def test_with_a_scaler_a_gradient_that_is_not_finite_leaves_out_the_step():
    state = scaled(1024.0)
    state.network.outc.conv.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = [p.clone() for p in state.network.parameters()]
    train(state, batches())
    assert all(torch.equal(a, b) for a, b in zip(before, state.network.parameters(), strict=True))
    assert (state.scaler.get_scale(), state.scheduler.last_epoch) == (256, 0)
    with pytest.raises(InputError, match="finite"):  # but not for ever
        for _ in range(20):
            train(state, batches())


def test_a_scaler_changes_nothing_else():
    losses = []
    for state in (fresh(total_steps=200), scaled(1024.0)):
        losses.append([train(state, batches()) for _ in range(3)])
        again = fresh(total_steps=200)
        again.load_state_dict(state.state_dict())
        assert again.scheduler.last_epoch == 6
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    needs_scaler = scaled(8.0)
    needs_scaler.load_state_dict(fresh(total_steps=200).state_dict())  # of a training that had none
    assert needs_scaler.scaler.get_scale() == 8


def test_a_new_training_sets_the_files_of_an_earlier_one_aside(tmp_path: Path):
    training.set_aside(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    for i in (1, 2):
        for name in ("best.pth", "last.pth", "checkpoint_epoch7.pth", "metrics.csv", "mine.txt"):
            (tmp_path / name).write_text(f"{name} {i}")
        training.set_aside(tmp_path)
        assert (tmp_path / f"earlier-{i}" / "best.pth").read_text() == f"best.pth {i}"
    assert {p.name for p in tmp_path.iterdir()} == {"earlier-1", "earlier-2", "mine.txt"}


def run(
    folder: Path, epochs: int, out: str, resume: bool = False, stop: Callable[[], bool] = lambda: False
) -> training.TrainingState:
    """Train as train_bayesian.py does, on what `make_folders` made; `stop` is asked after each step."""
    pairs = pair_files(folder / "imgs", folder / "masks")
    decoded = decode_pairs(pairs, (32, 32), None)
    dataset = SegmentationDataset(
        decoded, range(len(pairs)), [0, 255], lambda i, m: (i + torch.randint(9, (1,)).byte(), m)
    )
    loader = DataLoader(dataset, batch_sampler=SeededBatches(len(dataset), 3, seed=1), generator=torch.Generator())
    state = fresh(total_steps=epochs * len(loader))
    if resume and (folder / out / "last.pth").exists():
        torch.manual_seed(99)
        training.resume(state, folder / out / "last.pth", {"epochs": epochs})
    network = state.network
    while state.epoch < epochs:
        finished = train_one_epoch(state, loader, CPU, stop=stop)
        scores = evaluate(network, DataLoader(dataset, 4), CPU) if finished else {}
        model = TrainedModel(network, (32, 32), [0, 255], state.epoch + finished, scores, {"epochs": epochs})
        if not finished:
            save_last(folder / out, model, state)
            return state
        state.add_epoch(scores)
        save_epoch(folder / out, model, state)
    return state


def equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def same_files(folder: Path, one: str, other: str) -> bool:
    names = [path.name for path in (folder / one).iterdir()]
    assert names
    return all(
        (folder / one / name).read_bytes() == (folder / other / name).read_bytes()
        if name.endswith(".csv")
        else equal(read_checkpoint(folder / one / name), read_checkpoint(folder / other / name))
        for name in names
    )


@pytest.mark.parametrize("steps", range(1, 9))
def test_a_training_stopped_after_any_step_ends_as_an_undisturbed_one(tmp_path: Path, steps: int):
    make_folders(tmp_path, 7, (40, 40))  # three steps an epoch
    whole = run(tmp_path, 3, "whole")
    asked = iter([False] * (steps - 1) + [True] + [False] * 99)
    run(tmp_path, 3, "resumed", stop=lambda: next(asked))
    resumed = run(tmp_path, 3, "resumed", resume=True)
    assert equal(whole.state_dict(), resumed.state_dict())
    assert same_files(tmp_path, "whole", "resumed")


def test_a_training_killed_twenty_times_ends_as_an_undisturbed_one(tmp_path: Path):
    make_folders(tmp_path, 7, (40, 40))
    started = time.monotonic()
    run(tmp_path, 6, "whole")
    duration = time.monotonic() - started
    context, rng = multiprocessing.get_context("fork"), random.Random(0)
    kills = attempts = 0
    while kills < 20:
        process = context.Process(target=run, args=(tmp_path, 6, "resumed", True))
        process.start()
        process.join(rng.uniform(0, duration * min(1, kills / 20 + 0.1)))  # at times before the first epoch is done
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        attempts += 1
        if process.exitcode == 0:  # it came to its end: once more from the beginning
            assert same_files(tmp_path, "whole", "resumed")
            shutil.rmtree(tmp_path / "resumed")
        assert attempts < 100
    run(tmp_path, 6, "resumed", resume=True)
    assert same_files(tmp_path, "whole", "resumed")


def test_files_of_an_epoch(tmp_path: Path):
    make_folders(tmp_path, 4, (40, 40))
    state = run(tmp_path, 2, "whole")
    out = tmp_path / "whole"
    names = {"checkpoint_epoch1.pth", "checkpoint_epoch2.pth", "best.pth", "last.pth", "metrics.csv"}
    assert {p.name for p in out.iterdir()} == names
    for epoch in (1, 2):
        assert load_model(out / f"checkpoint_epoch{epoch}.pth").epoch == epoch
    best = max(state.history, key=lambda row: row["val_dice"])
    model = load_model(out / "best.pth")
    assert (model.epoch, model.validation["dice"]) == (best["epoch"], best["val_dice"])
    assert model.settings == {"epochs": 2}
    with open(out / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_dice"]) for row in rows] == [row["val_dice"] for row in state.history]
    assert "training" not in read_checkpoint(out / "best.pth")


def test_resuming_needs_the_right_file_and_the_same_settings(tmp_path: Path):
    make_folders(tmp_path, 4, (40, 40))
    run(tmp_path, 1, "whole")
    with pytest.raises(InputError, match="epochs = 1, and this run has 5"):
        training.resume(fresh(), tmp_path / "whole" / "last.pth", {"epochs": 5})
    with pytest.raises(InputError, match="cannot be resumed from"):
        training.resume(fresh(), tmp_path / "whole" / "best.pth", {"epochs": 1})


@pytest.mark.parametrize("learner", [lambda: fresh(), lambda: fresh(n_classes=1), lambda: fresh(bilinear=True)])
def test_bfloat16_trains_about_as_single_precision_does(learner: Callable):
    losses = []
    for dtype in (None, torch.bfloat16):
        state = learner()
        losses.append([train(state, batches(), dtype) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    assert losses[0] != losses[1]


def test_examples_are_pictures_with_both_masks():
    dataset = batches().dataset
    images, masks, predicted = predict_examples(lively_network(), dataset, CPU, count=3)
    assert len(images) == len(masks) == len(predicted) == 3
    assert images[0].shape == (32, 32, 3)
    assert masks[0].shape == predicted[0].shape == (32, 32)
    assert images[1].tolist() == dataset[1][0].permute(1, 2, 0).tolist()
