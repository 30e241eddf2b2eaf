"""The state of a training: its files, and how a training is resumed."""

import csv
import errno
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import dataset_of, make_folders
from train_bayesian import running_scores
from unet import BayesianUNet
from utils.checkpoint import TrainedModel, load_model, read_checkpoint, write_checkpoint
from utils.data.cache import decode_pairs
from utils.data.pairing import pair_files
from utils.data_loading import training_batches, validation_batches
from utils.runtime.errors import InputError
from utils.training.checkpoint_files import CheckpointWriter, checkpoint_bytes, resume
from utils.training.loop import evaluate, train_one_epoch
from utils.training.state import TrainingState, new_training_state


def new_state(total_steps: int = 100) -> TrainingState:
    torch.manual_seed(0)
    return new_training_state(BayesianUNet(base_channels=4), 3e-3, total_steps)


def run(
    folder: Path, epochs: int, out: str, resuming: bool = False, stop: Callable[[], bool] = lambda: False
) -> TrainingState:
    """Train as train_bayesian.py does, on the images of `make_folders`; `stop` is called after each step."""
    decoded = decode_pairs(pair_files(folder / "imgs", folder / "masks"), (32, 32), cache_dir=None)
    indices = range(len(decoded.pairs))
    training_set = dataset_of(decoded, indices, [0, 255], lambda i, m: (i + torch.randint(9, (1,)).byte(), m))
    batches = training_batches(training_set, 3, seed=1)
    held_out = validation_batches(dataset_of(decoded, indices, [0, 255]), 4)
    state = new_state(total_steps=epochs * len(batches))
    last = folder / out / "last.pth"
    if resuming and last.exists():
        torch.manual_seed(99)  # training draws no random number from the global state
        state.network.load_state_dict(read_checkpoint(last)["network"])
        resume(state, last, {"epochs": epochs})
    model = TrainedModel(state.network, (32, 32), [0, 255], settings={"epochs": epochs})
    with CheckpointWriter(folder / out, resuming) as writer:
        while state.epoch < epochs:
            completed = train_one_epoch(state, batches, stop=stop)
            model.validation = evaluate(state, held_out) if completed else {}
            if completed:
                state.complete_epoch(model.validation)
            model.epoch = state.epoch
            (writer.save_epoch if completed else writer.save_last)(model, state)
            if not completed:
                break
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
    names, others = ({path.name for path in (folder / name).iterdir()} for name in (one, other))
    assert names
    return names == others and all(
        (folder / one / name).read_bytes() == (folder / other / name).read_bytes()
        if name.endswith(".csv")
        else equal(read_checkpoint(folder / one / name), read_checkpoint(folder / other / name))
        for name in names
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingState]:
    """The folder of a training of three epochs of three steps, and its state at the end."""
    folder = tmp_path_factory.mktemp("training")
    make_folders(folder, 7, (40, 40))
    return folder, run(folder, 3, "uninterrupted")


@pytest.mark.parametrize("steps", [1, 3, 5, 6, 8])
def test_stopped_and_resumed_equals_uninterrupted(uninterrupted: tuple[Path, TrainingState], steps: int):
    (folder, state), name = uninterrupted, f"resumed after {steps}"
    stops = iter([False] * (steps - 1) + [True] + [False] * 99)
    run(folder, 3, name, stop=lambda: next(stops))
    resumed = run(folder, 3, name, resuming=True)
    assert equal(state.state_dict(), resumed.state_dict())
    assert same_files(folder, "uninterrupted", name)


def test_killed_ten_times_equals_uninterrupted(tmp_path: Path):
    make_folders(tmp_path, 7, (40, 40))
    started = time.monotonic()
    run(tmp_path, 6, "uninterrupted")
    duration = time.monotonic() - started
    context, rng = multiprocessing.get_context("fork"), random.Random(0)
    kills = attempts = 0
    while kills < 10:
        process = context.Process(target=run, args=(tmp_path, 6, "resumed", True))
        process.start()
        process.join(rng.uniform(0, duration * min(1, kills / 10 + 0.1)))  # at times within the first epoch
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        attempts += 1
        if process.exitcode == 0:  # it was completed: once more from the beginning
            assert same_files(tmp_path, "uninterrupted", "resumed")
            shutil.rmtree(tmp_path / "resumed")
        assert attempts < 50
    run(tmp_path, 6, "resumed", resuming=True)
    assert same_files(tmp_path, "uninterrupted", "resumed")


def test_resume_checks_file_and_settings(tmp_path: Path):
    make_folders(tmp_path, 4, (40, 40))
    run(tmp_path, 1, "out")
    with pytest.raises(InputError, match="epochs = 1, but this run has 5"):
        resume(new_state(), tmp_path / "out" / "last.pth", {"epochs": 5})
    with pytest.raises(InputError, match="contains no training state"):
        resume(new_state(), tmp_path / "out" / "best.pth", {"epochs": 1})
    last, settings = tmp_path / "out" / "last.pth", {"epochs": 1, "image_names": "abc", "mask_names": "abc"}
    write_checkpoint(last, read_checkpoint(last) | {"settings": settings})
    resume(state := new_state(), last, settings)
    assert state.epoch == 1
    for name, files in (("image_names", "images"), ("mask_names", "masks")):
        with pytest.raises(InputError, match=f"run on training {files} of other names, or in another order"):
            resume(new_state(), last, settings | {name: "def"})


def test_resume_checks_the_meaning_of_mask_values(tmp_path: Path):
    make_folders(tmp_path, 4, (40, 40))
    run(tmp_path, 1, "out")
    last, classes = tmp_path / "out" / "last.pth", {"mask_values": [0, 255], "ignore_value": None}
    resume(new_state(), last, {"epochs": 1}, classes)
    for name, value in (("mask_values", [255, 0]), ("ignore_value", 7)):
        with pytest.raises(
            InputError, match=rf"{name} = .*, but the masks of this run have \[?{str(value).strip('[]')}"
        ):
            resume(new_state(), last, {"epochs": 1}, classes | {name: value})


def test_state_without_scaler_keeps_that_of_this_run():
    state = new_state()
    state.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
    state.load_state_dict(new_state().state_dict())
    assert state.scaler.get_scale() == 8


def test_files_of_an_epoch(tmp_path: Path):
    make_folders(tmp_path, 4, (40, 40))
    state = run(tmp_path, 2, "out")
    out = tmp_path / "out"
    names = {"checkpoint_epoch1.pth", "checkpoint_epoch2.pth", "best.pth", "last.pth", "metrics.csv"}
    assert {p.name for p in out.iterdir()} == names
    for epoch in (1, 2):
        assert load_model(out / f"checkpoint_epoch{epoch}.pth").epoch == epoch
    best = max(state.history, key=lambda row: (row["val_dice"], -row["val_loss"]))
    model = load_model(out / "best.pth")
    assert (model.epoch, model.validation["dice"]) == (best["epoch"], best["val_dice"])
    assert model.settings == {"epochs": 2}
    with open(out / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_dice"]) for row in rows] == [row["val_dice"] for row in state.history]
    assert "training" not in read_checkpoint(out / "best.pth")


def scored_state(*scores: tuple[float | None, float]) -> TrainingState:
    """A state of epochs with these validation Dice coefficients and losses."""
    state = new_state()
    for dice, loss in scores:
        more = {"accuracy": 0.9, "accuracy_all_background": 0.8, "false_alarm_rate": 0.25}
        state.complete_epoch({"loss": loss, "dice": dice, "images_without_lesion": 4 if dice is None else 0} | more)
    return state


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.5, 0.9), (0.7, 1.5), (0.6, 0.1)], 2),
        ([(0.0, 0.9), (0.0, 0.4), (0.0, 0.6)], 2),  # of equal ones the lowest loss
        ([(0.5, 0.4), (0.5, 0.4)], 1),
        ([(None, 0.9), (None, 0.6), (None, 0.7)], 2),  # no lesion in the validation images
    ],
)
def test_best_epoch(tmp_path: Path, scores: list, best: int):
    for n in range(1, len(scores) + 1):
        state = scored_state(*scores[:n])
        with CheckpointWriter(tmp_path, continues=n > 1) as writer:
            writer.save_epoch(TrainedModel(state.network, epoch=n), state)
    assert state.best["epoch"] == best
    assert load_model(tmp_path / "best.pth").epoch == best
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["val_dice"] for row in rows] == ["" if dice is None else str(dice) for dice, _ in scores]


def test_a_table_that_cannot_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """As on Windows, where another program has it open: no reason to lose the training."""
    replace, opened = os.replace, []

    def refuse(source: Path, target: Path) -> None:
        if target in opened:
            raise PermissionError(errno.EACCES, "it is open", str(source))
        replace(source, target)

    def save(n: int) -> None:
        state = scored_state(*[(0.5, 0.5)] * n)
        with CheckpointWriter(tmp_path, continues=n > 1) as writer:
            opened.extend([tmp_path / "metrics.csv"] * (n == 2))
            writer.save_epoch(TrainedModel(state.network, epoch=n), state)

    monkeypatch.setattr("os.replace", refuse)
    save(1)
    save(2)
    assert read_checkpoint(tmp_path / "last.pth")["training"]["epoch"] == 2
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 2
    assert f"{tmp_path / 'metrics.csv'} could not be written (it is open)" in caplog.text
    opened.clear()
    save(3)
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 4


def test_log_line():
    assert str(scored_state((0.75, 0.5), (0.5, 0.25))) == (
        "loss 0.0000; validation Dice 0.5000 (best 0.7500), accuracy 0.9000 (background everywhere: 0.8000)"
    )
    assert str(scored_state((None, 0.25), (None, 0.5))) == (
        "loss 0.0000; validation loss 0.5000 (best 0.2500), false alarms 25.0 %, accuracy 0.9000 (background "
        "everywhere: 0.8000)"
    )


def test_nonfinite_validation_loss_is_not_saved(tmp_path: Path):
    state = new_state()
    state.complete_epoch({"loss": float("nan"), "dice": 0.0})
    with pytest.raises(InputError, match="epoch 1 is nan"), CheckpointWriter(tmp_path) as writer:
        writer.save_epoch(TrainedModel(state.network), state)
    assert not list(tmp_path.iterdir())


def test_a_single_step_has_the_peak_of_the_learning_rate():
    rates = []
    for total_steps in (1, 2, 10):
        state = new_state(total_steps)
        rates.append([])
        for _ in range(total_steps):
            rates[-1].append(state.scheduler.get_last_lr())
            state.optimizer.step()
            state.scheduler.step()
    assert rates[0] == [[3e-3, 3e-3]]
    for cycle in rates[1:]:
        assert cycle[-1] == pytest.approx([3e-3 / 25e4] * 2)
    assert max(rates[2]) == pytest.approx([3e-3] * 2)


def test_new_training_archives_an_earlier_one(tmp_path: Path):
    (tmp_path / "earlier-1-copy").mkdir()  # somebody's
    for i in (1, 2):
        for name in ("best.pth", "last.pth", "checkpoint_epoch7.pth", "metrics.csv", "mine.txt"):
            (tmp_path / name).write_text(f"{name} {i}")
        state = scored_state((0.5, 0.5), (0.5, float("nan")))
        with pytest.raises(InputError), CheckpointWriter(tmp_path) as writer:
            writer.save_epoch(TrainedModel(state.network), state)
        assert not (tmp_path / f"earlier-{i}").exists()  # there is nothing yet to replace them
        with CheckpointWriter(tmp_path) as writer:
            for _ in range(2):
                writer.save_last(TrainedModel(state.network), scored_state())
        assert (tmp_path / f"earlier-{i}" / "best.pth").read_text() == f"best.pth {i}"
        assert (tmp_path / "last.pth").stat().st_size > 1000
    assert {p.name for p in tmp_path.iterdir()} == {"earlier-1", "earlier-1-copy", "earlier-2", "last.pth", "mine.txt"}


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("epochs", [1, 3])
def test_room_that_checkpoints_need(tmp_path: Path, epochs: int, before: int, monkeypatch: pytest.MonkeyPatch):
    """The most that there is on the disk at a time, in which the weights count, and the rest of a file does not."""
    torch.manual_seed(0)
    state, sizes, replace = new_training_state(BayesianUNet(base_channels=16), 1e-3, total_steps=9), [], os.replace
    state.network(torch.rand(2, 3, 32, 32)).sum().backward()
    state.optimizer.step()

    def measure(*paths) -> None:
        sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
        replace(*paths)

    def train_epoch() -> None:
        scores = {"loss": 1.0, "dice": len(state.history) / 10, "images_without_lesion": 0}
        state.complete_epoch(scores)
        writer.save_epoch(TrainedModel(state.network, epoch=state.epoch), state)

    with CheckpointWriter(tmp_path) as writer:
        for _ in range(before):
            train_epoch()
    existing = sum(path.stat().st_size for path in tmp_path.iterdir())
    monkeypatch.setattr("os.replace", measure)
    with CheckpointWriter(tmp_path, continues=before > 0) as writer:
        for _ in range(epochs):
            train_epoch()
    needed = checkpoint_bytes(state.network, epochs, continues=before > 0)
    assert needed == pytest.approx(max(sizes) - existing, rel=0.05)


def test_resumed_training_keeps_its_files(tmp_path: Path):
    (tmp_path / "metrics.csv").touch()
    (tmp_path / f".{'0' * 32}.part").touch()  # of a killed process
    with CheckpointWriter(tmp_path, continues=True) as writer:
        writer.save_last(TrainedModel(new_state().network), new_state())
    assert {p.name for p in tmp_path.iterdir()} == {"last.pth", "metrics.csv"}


@pytest.mark.parametrize("best", ["best.pth", "checkpoint_epoch1.pth", None])
def test_run_that_is_resumed_into_another_folder_takes_its_best_epoch_along(tmp_path: Path, best: str | None):
    state, settings = scored_state((0.5, 0.5), (0.25, 0.5)), {"epochs": 3}
    model = TrainedModel(state.network, settings=settings, epoch=2)
    for name, epoch, of_settings in (("best.pth", 2, settings), ("checkpoint_epoch1.pth", 1, {"epochs": 7})):
        write_checkpoint(tmp_path / "a" / name, {"epoch": epoch, "settings": of_settings})  # neither is that of the run
    if best:
        write_checkpoint(tmp_path / "a" / best, {"epoch": 1, "settings": settings})
    with CheckpointWriter(tmp_path / "b") as writer:
        writer.take_over(tmp_path / "a" / "last.pth", model, state)
    assert read_checkpoint(tmp_path / "b" / "last.pth")["training"]["epoch"] == 2
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"last.pth", "metrics.csv", *["best.pth"] * bool(best)}
    assert not best or read_checkpoint(tmp_path / "b" / "best.pth")["epoch"] == 1


@pytest.mark.parametrize("found", [1, 2, None])
def test_resumed_run_restores_its_best_epoch(tmp_path: Path, found: int | None):
    """`best.pth` is of an epoch that has been given up if the run was killed before `last.pth` was written."""
    state, settings = scored_state((0.5, 0.5)), {"epochs": 3}
    for name, epoch in (("checkpoint_epoch1.pth", 1), ("best.pth", found)):
        if epoch:
            write_checkpoint(tmp_path / name, {"epoch": epoch, "settings": settings})
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with CheckpointWriter(tmp_path, continues=True) as writer:
        writer.take_over(tmp_path / "last.pth", TrainedModel(state.network, settings=settings, epoch=1), state)
    assert read_checkpoint(tmp_path / "best.pth")["epoch"] == 1
    changed = {path.name for path in tmp_path.iterdir() if path.stat().st_mtime_ns != before.get(path.name)}
    assert changed == ({"best.pth"} if found != 1 else set())


def test_progress_bar_shows_the_best_score_there_is():
    state = new_state()
    assert running_scores(state, 1.5) == {"loss": "1.5000"}
    state.history = [{"val_dice": None, "val_loss": 0.7}, {"val_dice": None, "val_loss": 0.3}]
    assert running_scores(state, 1.5) == {"loss": "1.5000", "best_loss": "0.3000"}
    state.history = [{"val_dice": 0.25, "val_loss": 0.7}]
    assert running_scores(state, 1.5)["best_Dice"] == "0.2500"
