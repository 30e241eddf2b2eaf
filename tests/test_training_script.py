"""train_bayesian.py as a user runs it: a real process on real files."""

import csv
import math
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.optim.lr_scheduler import OneCycleLR

import train_bayesian
from tests.conftest import assert_one_clear_line, lively_network, make_folders, run_module, run_script, start_script
from tests.test_guarantees import dataset
from tests.test_prediction_scripts import pixels
from unet import BayesianUNet
from utils import model_flags
from utils.checkpoint import TrainedModel, load_model, read_checkpoint, save_checkpoint, write_checkpoint
from utils.data.augmentation import training_transforms
from utils.data_loading import split_indices, training_batches
from utils.runtime.errors import InputError
from utils.training.checkpoint_files import CheckpointWriter, checkpoint_bytes
from utils.training.state import new_training_state


def training_flags(tmp_path: Path, n: int = 8) -> list[object]:
    """Flags of train_bayesian.py for a small dataset in `tmp_path`; it is created if it does not exist."""
    if not (tmp_path / "train").exists():
        make_folders(tmp_path / "train", n, (48, 40))
    folders = {"imgs": "train/imgs", "masks": "train/masks", "checkpoint": "checkpoints", "cache": "cache"}
    flags = [part for name, folder in folders.items() for part in (f"--{name}-dir", tmp_path / folder)]
    return [*flags, "--wandb", "disabled"]


def train(tmp_path: Path, *arguments: object, n: int = 8) -> Path:
    """Train for a moment; returns the checkpoint folder."""
    result = run_script("train_bayesian.py", *training_flags(tmp_path, n), *arguments)
    assert result.returncode == 0, result.stderr
    return tmp_path / "checkpoints"


@pytest.fixture(scope="module")
def small(lively_file: Path) -> list[object]:
    """Flags of a training that takes a moment: a small network, small images."""
    return ["--load", lively_file, "--newW", 32, "--newH", 32]


def test_checkpoints_and_metrics(tmp_path: Path):
    out = train(tmp_path, "--epochs", 2, "--batch-size", 3, "--amp", "--validation", 25, n=4)
    names = {"checkpoint_epoch1.pth", "checkpoint_epoch2.pth", "best.pth", "last.pth", "metrics.csv"}
    assert {path.name for path in out.iterdir()} == names
    model = load_model(out / "checkpoint_epoch2.pth")
    assert (model.input_size, model.mask_values, model.epoch) == ((128, 128), [0, 255], 2)
    assert (model.settings["epochs"], model.settings["seed"], model.settings["images"]) == (2, 0, 4)
    assert model.network.architecture == {
        "n_channels": 3,
        "n_classes": 2,
        "bilinear": False,
        "dropout": 0.2,
        "base_channels": 32,
        "dropout_placement": "layer",
    }
    with open(out / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(math.isfinite(float(row["train_loss"])) and 0 <= float(row["val_dice"]) <= 1 for row in rows)


def test_resume_after_a_kill_is_exact(tmp_path: Path, small: list[object]):
    arguments = ("--epochs", 3, "--batch-size", 4, "--seed", 5)
    out = train(tmp_path, *arguments, *small, n=40)
    uninterrupted, scores = read_checkpoint(out / "last.pth"), (out / "metrics.csv").read_bytes()
    optimizer = torch.optim.SGD([torch.zeros(1)])
    schedule, rates = OneCycleLR(optimizer, max_lr=1e-3, total_steps=27, cycle_momentum=False), []
    for _ in range(27):  # 34 images make 9 batches
        optimizer.step()
        schedule.step()
        rates += schedule.get_last_lr()
    assert [float(row["learning_rate"]) for row in csv.DictReader(scores.decode().splitlines())] == rates[8::9]
    shutil.rmtree(out)
    with start_script("train_bayesian.py", *training_flags(tmp_path), *arguments, *small) as process:
        logged = ""
        for line in process.stderr:
            logged += line
            if "Epoch 2/3" in line:
                process.kill()
    assert process.returncode == -signal.SIGKILL
    assert "Epoch 2/3" in logged
    assert "Epoch 3/3" not in logged
    interrupted = shutil.copytree(out, tmp_path / "interrupted")
    train(tmp_path, *arguments, "--resume", out / ".." / out.name / "last.pth")
    finished = {path.name: path.read_bytes() for path in out.iterdir()}
    # Resumed from another folder, it keeps the run of this one, which --checkpoint-dir may have named by mistake.
    for source in (None, interrupted):
        if source:
            train(tmp_path, *arguments, "--resume", source / "last.pth")
        resumed = read_checkpoint(out / "last.pth")
        assert resumed["epoch"] == 3
        for name, value in uninterrupted["network"].items():
            assert torch.equal(value, resumed["network"][name]), name
        assert (out / "metrics.csv").read_bytes() == scores
        assert (out / "earlier-1").exists() == bool(source)
    assert {path.name: path.read_bytes() for path in (out / "earlier-1").iterdir()} == finished
    resumed["settings"]["trained_names"] = ["0" * 8]  # of an earlier version
    write_checkpoint(out / "last.pth", resumed)
    train(tmp_path, *arguments, "--resume")


def test_interrupted_training(tmp_path: Path, small: list[object]):
    flags = [*training_flags(tmp_path, n=5), "--epochs", 50, *small]
    with start_script("train_bayesian.py", *flags) as process:
        for line in process.stderr:
            assert "Traceback" not in line
            if "Epoch 1/50" in line:
                process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    assert read_checkpoint(tmp_path / "checkpoints" / "last.pth")["epoch"] >= 1
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_stop_after_the_last_epoch(tmp_path: Path, small: list[object]):
    """It is heeded before the calibration, which --resume makes up for."""
    with start_script("train_bayesian.py", *training_flags(tmp_path), "--epochs", 1, *small) as process:
        for line in process.stderr:
            if "Epoch 1/1" in line:
                process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    assert not load_model(tmp_path / "checkpoints" / "best.pth").temperatures
    out = train(tmp_path, "--epochs", 1, "--resume")
    model = load_model(out / "best.pth")
    assert set(model.temperatures) == set(model.risk_curves) == {"softmax", "mc_dropout", "tta"}


def test_room_for_the_checkpoints_is_checked(
    tmp_path: Path, small: list[object], lively_file: Path, monkeypatch: pytest.MonkeyPatch
):
    words = [*training_flags(tmp_path, n=4), "--epochs", 2, *small]
    args = train_bayesian.get_args_parser().parse_args([str(word) for word in words])
    needed = checkpoint_bytes(load_model(lively_file).network, epochs=2, continues=False)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=needed - 1))
    with pytest.raises(InputError, match="checkpoints has room for"):
        train_bayesian.main(args)
    assert not (tmp_path / "checkpoints").exists()


def test_log_in_a_file(tmp_path: Path, small: list[object]):
    flags = [*training_flags(tmp_path, n=4), "--epochs", 1, *small, "--wandb", "offline"]
    result = run_script("train_bayesian.py", *flags)
    assert result.returncode == 0, result.stderr
    assert "\r" not in result.stderr
    assert "\x1b" not in result.stderr
    lines = result.stderr.splitlines()
    assert lines.pop(0).endswith(": NAME_Segmentation for NAME (4)")
    assert lines[0].startswith("masks: 0 background ")
    assert lines[1] == "Training on 3 images, validating on another 1"
    assert any(line.startswith("Epoch 1/1: loss ") and "background everywhere: " in line for line in lines)
    (sync,) = [line for line in lines if "wandb sync" in line]
    folder = Path(sync.split("wandb sync ")[1])
    assert list(folder.glob("*.wandb"))


def test_mistakes_in_the_data(tmp_path: Path):
    imgs, masks = make_folders(tmp_path, 3, (48, 40))
    mask = np.zeros((40, 48), dtype=np.uint8)
    mask[5:, 5:] = 2
    mask[:, 30:] = 1
    Image.fromarray(mask).save(masks / "SKIN_001_Segmentation.png")
    arguments = ["--imgs-dir", imgs, "--masks-dir", masks, "--cache-dir", tmp_path / "cache", "--classes", 3]
    result = run_script("train_bayesian.py", *arguments, cwd=tmp_path)
    assert_one_clear_line(
        result, "255 (", "The 3 classes have the values 0, 1, 2", "(see --classes, --ignore-value, --mask-values)"
    )
    (masks / "SKIN_002_Segmentation.png").unlink()
    result = run_script("train_bayesian.py", *arguments, cwd=tmp_path)
    assert_one_clear_line(result, "SKIN_002.jpg: no mask", "(see --skip-unusable)")
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(("classes", "values"), [(1, [0, 255]), (3, [0, 100, 200])])
def test_numbers_of_classes(tmp_path: Path, classes: int, values: list[int]):
    imgs, masks = make_folders(tmp_path / "train", 5, (48, 40))
    if classes == 3:
        for path in masks.iterdir():
            mask = (pixels(path) > 0) * 100
            mask[:10] = 200
            Image.fromarray(mask.astype(np.uint8)).save(path)
    start = tmp_path / "start.pth"
    save_checkpoint(
        start, TrainedModel(BayesianUNet(n_classes=classes, bilinear=True, base_channels=4), mask_values=values)
    )
    out = train(tmp_path, "--epochs", 1, "--classes", classes, "--batch-size", 2, "--bilinear", "--load", start)
    model = out / "best.pth"
    loaded = load_model(model)
    assert (loaded.network.n_classes, loaded.mask_values) == (classes, values)
    common = ("-m", model, "--classes", classes, "--bilinear")
    first = run_script("predict.py", "--input-dir", imgs, "--output-dir", tmp_path / "o", "--mask-dir", masks, *common)
    assert first.returncode == 0, first.stderr
    assert set(np.unique(pixels(tmp_path / "o" / "SKIN_000_OUT.png"))) <= set(values)
    mask = tmp_path / "u" / "x.png"
    result = run_script(
        "predict_bayesian.py",
        "-i",
        imgs / "SKIN_000.jpg",
        "-o",
        mask,
        "--mc",
        2,
        "--save-prob",
        "--save-mean-std",
        *common,
    )
    assert result.returncode == 0, result.stderr
    probs = np.load(mask.with_name("x_probs.npy"))
    assert probs.shape == ((2, 40, 48) if classes == 1 else (2, 3, 40, 48))
    assert np.load(mask.with_name("x_mean.npy")).shape == probs.shape[1:]
    if classes == 3:
        assert "Dice, class 2" in first.stdout
        np.testing.assert_allclose(probs.sum(1), 1, atol=1e-5)
        assert {"x_prob_c1.png", "x_prob_c2.png", "x_mc01_c2.png"} <= {p.name for p in mask.parent.iterdir()}
    else:
        assert "x_mc01_c0.png" in {p.name for p in mask.parent.iterdir()}
        assert "x_mc01_c1.png" not in {p.name for p in mask.parent.iterdir()}


def test_three_classes_are_evaluated_one_by_one(tmp_path: Path):
    imgs, masks = make_folders(tmp_path, 8, (64, 64))
    for path in masks.iterdir():  # the blot has an upper half of one class, a lower half of another
        mask = (pixels(path) > 0) * 1
        mask[32:] *= 2
        Image.fromarray(mask.astype(np.uint8)).save(path)
    data = ["--imgs-dir", imgs, "--masks-dir", masks, "--cache-dir", tmp_path / "cache", "--wandb", "disabled"]
    start = tmp_path / "start.pth"
    torch.manual_seed(0)
    save_checkpoint(start, TrainedModel(BayesianUNet(n_classes=3, base_channels=4), mask_values=[0, 1, 2]))
    more = ["--checkpoint-dir", tmp_path / "c", "--classes", 3, "--epochs", 1, "--quiet", "--load", start]
    result = run_script("train_bayesian.py", *data, *more)
    assert result.returncode == 0, result.stderr
    # Whether an epoch is enough for a prediction, and for a temperature within its range, depends on the device.
    expected = ("Warning: The temperature ", "Warning: The best validation Dice is 0")
    assert not [line for line in result.stderr.splitlines() if not line.startswith(expected)]
    out = tmp_path / "o"
    result = run_script(
        "predict_prob_direct.py",
        *("--input-dir", imgs, "--mask-dir", masks, "--output-dir", out, "-m", tmp_path / "c" / "last.pth"),
        "--class-index",
        2,
        "--save-entropy",
    )
    assert result.returncode == 0, result.stderr
    with open(out / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert float(row["dice"]) == pytest.approx((float(row["dice_c1"]) + float(row["dice_c2"])) / 2)
    result = run_module(
        "utils.compare", out, "--imgs-dir", imgs, "--masks-dir", masks, "--output-dir", tmp_path / "compared"
    )
    assert result.returncode == 0, result.stderr
    mean = np.mean([float(row["dice_c2"]) for row in rows])
    assert f"| Dice, class 2, mean | {mean:.4f} |" in result.stdout
    assert (tmp_path / "compared" / "UQ_compare.png").is_file()


def logged(tmp_path: Path, *arguments: object, code: int = 0) -> str:
    """Train for an epoch, with a checkpoint folder of its own; returns what is logged."""
    flags = [*training_flags(tmp_path), "--epochs", 1, "--bilinear"]
    if "--resume" not in arguments:
        start = tmp_path / "start.pth"
        save_checkpoint(start, TrainedModel(BayesianUNet(bilinear=True, base_channels=4)))
        flags += ["--load", start]
    result = run_script("train_bayesian.py", *flags, *arguments)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


def test_batch_of_one_image_at_the_smallest_input(tmp_path: Path):
    imgs, masks = make_folders(tmp_path, 4, (40, 40))
    common = ["--imgs-dir", imgs, "--masks-dir", masks, "--cache-dir", tmp_path / "cache", "--newW", 16, "--newH", 16]
    result = run_script("train_bayesian.py", *common, "--checkpoint-dir", tmp_path / "c", "--batch-size", 1)
    assert_one_clear_line(result, "a batch of one image at 16x16", "(see --batch-size, --newW, --newH)")


def test_input_size(tmp_path: Path):
    make_folders(tmp_path / "train", 3, (48, 40))
    logged(tmp_path, "--newW", 32, "--newH", 48)
    out = tmp_path / "checkpoints"
    assert load_model(out / "best.pth").input_size == (32, 48)
    folders = ["--input-dir", tmp_path / "train" / "imgs", "--output-dir", tmp_path / "o"]
    result = run_script("predict.py", *folders, "-m", out / "best.pth")
    assert result.returncode == 0, result.stderr
    assert "input size 32x48" in result.stderr
    result = run_script("predict.py", *folders, "-m", out / "best.pth", "--newW", 64)
    assert_one_clear_line(result, "contradicts --newW 64: the model has 32")
    assert "contradicts --newH 64" in logged(tmp_path, "--resume", "--newH", 64, code=2)
    words = logged(tmp_path, "--resume", "--epochs", 40, code=2)
    file = out / "last.pth"
    assert f"the run of {file} has finished its 1 epoch; to train further, use --load {file} with --epochs N" in words
    interrupted = read_checkpoint(file)
    interrupted["settings"]["epochs"] = 2
    torch.save(interrupted, file)
    words = logged(tmp_path, "--resume", "--epochs", 40, code=2)
    assert f"{file} is one of 2 epochs: complete it with --resume and --epochs 2; to train further" in words


class Validation(list):
    """A validation set in memory."""

    groups = None


@pytest.mark.parametrize("dice", [0.0, 0.3, None])
def test_network_that_predicts_nothing(tmp_path: Path, dice: float | None, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "best.pth"
    settings = {"validation": 0.0, "validation_images": None}
    save_checkpoint(path, TrainedModel(lively_network(), (32, 32), settings=settings, epoch=1))
    state = new_training_state(lively_network(), 1e-3, total_steps=1)
    state.history = [{"epoch": 1, "val_dice": dice, "val_loss": 1.0}]
    train_bayesian.calibrate_best_epoch(path, state, Validation(dataset(2)))
    warnings = [record.message for record in caplog.records if "My prediction is black" in record.message]
    assert len(warnings) == (dice == 0)


def test_validation_set(tmp_path: Path):
    make_folders(tmp_path / "train", 3, (48, 40))
    imgs, masks = make_folders(tmp_path / "val", 2, (48, 40), seed=70)
    flags = ["--newW", 32, "--newH", 32]
    text = logged(tmp_path, *flags, "--val-imgs-dir", imgs, "--val-masks-dir", masks)
    assert "Training on 3 images, validating on another 2" in text
    settings = load_model(tmp_path / "checkpoints" / "best.pth").settings
    assert (settings["images"], settings["validation_images"]) == (3, 2)
    assert "saved with validation_images = 2" in logged(tmp_path, *flags, "--resume", code=2)
    Image.fromarray(np.full((40, 48), 7, np.uint8)).save(masks / "SKIN_000_Segmentation.png")
    text = logged(tmp_path, *flags, "--val-imgs-dir", imgs, "--val-masks-dir", masks, code=2)
    assert "the masks have values that belong to no class" in text


def test_validation_images_are_read_like_those_of_the_training(tmp_path: Path):
    """White of 16 bits is that of the training images, though those for validation are darker."""
    folders = [make_folders(tmp_path / name, 2, (48, 40)) for name in ("train", "val")]
    for (imgs, _), factor in zip(folders, (16, 2), strict=True):
        for path in list(imgs.iterdir()):
            grey = np.asarray(Image.open(path).convert("L"), np.uint16)
            Image.fromarray(grey * factor).save(path.with_suffix(".png"))
            path.unlink()
    flags = ["--newW", 32, "--newH", 32, "--val-imgs-dir", folders[1][0], "--val-masks-dir", folders[1][1]]
    assert logged(tmp_path, *flags).count("white is") == 1
    assert load_model(tmp_path / "checkpoints" / "best.pth").white == 4095


def test_wrong_flags_are_noticed_before_decoding(tmp_path: Path):
    names = [path.stem for path in make_folders(tmp_path / "train", 4, (48, 40))[0].iterdir()]
    groups, one_group, others = tmp_path / "groups.csv", tmp_path / "one.csv", make_folders(tmp_path / "val", 2)
    groups.write_text("image,group\n" + "".join(f"{name},{name}\n" for name in names[1:]))
    one_group.write_text("image,group\n" + "".join(f"{name},a\n" for name in names))
    (others[1] / "SKIN_001_Segmentation.png").unlink()
    wrong = {
        f"{names[0]}.jpg: no group": ["--groups", groups],
        "all images are of one group": ["--groups", one_group],
        "SKIN_001.jpg: no mask": ["--val-imgs-dir", others[0], "--val-masks-dir", others[1]],
        "--groups is for a split": ["--val-imgs-dir", *others[:1], "--val-masks-dir", others[1], "--groups", groups],
        "the validation percentage must be": ["--validation", 100],
        "nowhere.csv cannot be read": ["--groups", tmp_path / "nowhere.csv"],
        "nowhere: there is no such folder": ["--val-imgs-dir", tmp_path / "nowhere", "--val-masks-dir", tmp_path],
        "last.pth: there is no such model file": ["--resume"],
    }
    for words, flags in wrong.items():
        result = run_script("train_bayesian.py", *training_flags(tmp_path), *flags)
        assert_one_clear_line(result, words)
        assert not (tmp_path / "cache").exists()


def test_groups(tmp_path: Path):
    imgs, _ = make_folders(tmp_path / "train", 8, (48, 40))
    groups = tmp_path / "groups.csv"
    groups.write_text("image,group\n" + "".join(f"{path.stem},{i % 2}\n" for i, path in enumerate(imgs.iterdir())))
    flags = ["--newW", 32, "--newH", 32, "--groups", groups]
    assert "Training on 4 images, validating on another 4" in logged(tmp_path, *flags)
    curves = load_model(tmp_path / "checkpoints" / "best.pth").risk_curves["softmax"]
    assert (curves.images, curves.groups) == (4, 1)
    folders = [*training_flags(tmp_path)[:4], "--cache-dir", tmp_path / "cache"]
    calibrate = ["utils.calibration", "-m", tmp_path / "checkpoints" / "best.pth", *folders]
    assert_one_clear_line(run_module(*calibrate), "split by groups", "the same --groups")
    result = run_module(*calibrate, "--groups", groups)
    assert result.returncode == 0, result.stderr
    assert "Fitting on 4 images" in result.stderr
    groups.write_text(groups.read_text() + "SKIN_99,1\n")
    assert f"Lines of {groups} that name none of the images: 1" in logged(tmp_path, *flags)
    (imgs / "SKIN_003.jpg").write_bytes(b"damaged")
    groups.write_text(groups.read_text().replace("SKIN_003", "SKIN_998"))  # nor needs it a group
    text = logged(tmp_path, *flags, "--skip-unusable", "--seed", 1)
    assert re.search("Training on (3 images, validating on another 4|4 images, validating on another 3)", text)
    curves = load_model(tmp_path / "checkpoints" / "best.pth").risk_curves["softmax"]
    assert (curves.images in (3, 4), curves.groups) == (True, 1)
    groups.write_text(groups.read_text().replace("SKIN_000", "SKIN_999"))
    assert "SKIN_000.jpg: no group" in logged(tmp_path, *flags, code=2)


def test_overfit_one_image(tmp_path: Path):
    make_folders(tmp_path / "train", 1, (48, 40))
    flags = ["--newW", 32, "--newH", 32]
    assert "0 validates on the training images" in logged(tmp_path, *flags, code=2)
    text = logged(tmp_path, *flags, "--validation", 0)
    assert "Training on 1 image and validating on the same one:" in text
    assert read_checkpoint(tmp_path / "checkpoints" / "best.pth")["validation"]["dice"] is not None
    assert not load_model(tmp_path / "checkpoints" / "best.pth").risk_curves  # nothing is known of other images


def test_class_that_no_validation_mask_shows(tmp_path: Path):
    _, masks = make_folders(tmp_path / "train", 4, (32, 32))
    for i, path in enumerate(sorted(masks.iterdir())):
        mask = np.zeros((32, 32), np.uint8)
        mask[:8], mask[20:] = 1, 2 * (i > 0)
        Image.fromarray(mask).save(path)
    val = tmp_path / "val"
    val.mkdir()
    for file in (tmp_path / "train" / "imgs" / "SKIN_000.jpg", masks / "SKIN_000_Segmentation.png"):
        (val / file.name).symlink_to(file)
    flags = ["--classes", 3, "--newW", 16, "--newH", 16, "--val-imgs-dir", val, "--val-masks-dir", val, "--epochs", 1]
    result = run_script("train_bayesian.py", *training_flags(tmp_path), *flags)
    assert result.returncode == 0
    assert "Warning: No validation mask shows class 2\n" in result.stderr
    assert "No training mask" not in result.stderr


def test_small_and_missing_lesions(tmp_path: Path):
    imgs, masks = make_folders(tmp_path / "train", 6, (64, 64))
    for i, path in enumerate(sorted(masks.iterdir())):
        mask = np.zeros((64, 64), np.uint8)
        if i < 2:
            mask[30, 30] = 255  # nearest-neighbour interpolation takes the odd rows and columns
        Image.fromarray(mask).save(path)
    flags = ["--newW", 32, "--newH", 32]
    text = logged(tmp_path, *flags, "--validation", 0)
    assert "Without a lesion: 4 of 6 training masks, 4 of 6 validation masks" in text
    assert "Warning: At 32x32 pixels 2 of 6 training masks and 2 of 6 validation masks would lose a lesion" in text
    assert "--newW, --newH" in text
    (line,) = [line for line in text.splitlines() if line.startswith("Epoch 1/1: loss ")]
    assert "validation Dice " in line
    assert ", false alarms " in line
    with open(tmp_path / "checkpoints" / "metrics.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert 0 <= float(row["val_dice"]) <= 1
    assert float(row["val_false_alarm_rate"]) in (0, 0.25, 0.5, 0.75, 1)
    assert row["val_images_without_lesion"] == "4"

    empty = tmp_path / "empty"
    for folder, paths in (("imgs", imgs), ("masks", masks)):
        (empty / folder).mkdir(parents=True)
        for path in sorted(paths.iterdir())[4:]:
            shutil.copy(path, empty / folder)
    text = logged(tmp_path, *flags, "--val-imgs-dir", empty / "imgs", "--val-masks-dir", empty / "masks")
    assert text.index("Warning: No validation image has a lesion") < text.index("Epoch 1/1: loss ")
    assert "; validation loss " in text
    assert "Best validation loss " in text


def test_loaded_model_keeps_its_classes_void_and_white(tmp_path: Path):
    imgs, masks = make_folders(tmp_path / "train", 4, (48, 40))
    for path in masks.iterdir():
        mask = np.array(Image.open(path))
        mask[:, 5] = 128  # a line that belongs to no class
        Image.fromarray(mask).save(path)
    for path in imgs.iterdir():
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 4  # 10 bits
        path.unlink()
        Image.fromarray(grey).save(path.with_suffix(".png"))
    start, small = tmp_path / "inverted.pth", ["--newW", 32, "--newH", 32, "--epochs", 1]
    network = BayesianUNet(base_channels=4)
    save_checkpoint(start, TrainedModel(network, mask_values=[255, 0], ignore_value=128, white=4095.0))
    for flags, values, white in (
        ([], [255, 0], 4095),
        (["--mask-values", 0, 255, "--white", 1023], [0, 255], 1023),
    ):
        model = load_model(train(tmp_path, *small, "--load", start, *flags) / "best.pth")
        assert (model.mask_values, model.ignore_value, model.white) == (values, 128, white)


def test_validation_folder_of_the_training_images_and_void(tmp_path: Path):
    imgs, masks = make_folders(tmp_path / "train", 4, (48, 40))
    for path in masks.iterdir():
        mask = np.array(Image.open(path)) // 255
        mask[:8, :8] = 255
        Image.fromarray(mask).save(path)
    val = tmp_path / "val"
    flags = ["--newW", 32, "--newH", 32, "--val-imgs-dir", val, "--val-masks-dir", val, "--ignore-value", 255]
    val.mkdir()
    (val / "SKIN_000.jpg").symlink_to(imgs / "SKIN_000.jpg")
    mask = np.zeros((40, 48), np.uint8)
    mask[:20] = 255
    Image.fromarray(mask).save(val / "SKIN_000_Segmentation.png")
    text = logged(tmp_path, *flags)
    assert "1 of 4 images are validation images: not training on them" in text
    assert "Training on 3 images, validating on another 1" in text
    assert "Without a lesion: 0 of 3 training masks, 1 of 1 validation masks" in text
    Image.fromarray(np.full((40, 48), 255, np.uint8)).save(val / "SKIN_000_Segmentation.png")
    text = logged(tmp_path, *flags, code=2)
    assert "in the validation masks every pixel is ignored: some have to count (see --ignore-value)" in text


def test_split_that_leaves_out_the_lesions(tmp_path: Path):
    """By itself it is no error, but a split in which no pixel counts is; other draws may be better."""
    _, masks = make_folders(tmp_path / "train", 3, (48, 40))
    paths, (training, (validation,)) = sorted(masks.iterdir()), split_indices(3, 34, seed=0)
    flags = ["--newW", 16, "--newH", 16, "--validation", 34, "--batch-size", 2]
    for i in training:
        Image.new("L", (48, 40)).save(paths[i])
    text = logged(tmp_path, *flags)
    assert "Without a lesion: 2 of 2 training masks, 0 of 1 validation masks" in text
    assert "No training image has a lesion" in text
    Image.new("L", (48, 40), 7).save(paths[validation])
    Image.fromarray(np.eye(40, 48, dtype=np.uint8) * 255).save(paths[training[0]])
    text = logged(tmp_path, *flags, "--ignore-value", 7, code=2)
    assert "in the validation masks every pixel is ignored" in text
    assert "(see --ignore-value, --validation, --seed, --val-imgs-dir)" in text


def test_run_that_diverges_leaves_the_earlier_one(tmp_path: Path, small: list[object]):
    out = train(tmp_path, "--epochs", 1, *small, n=4)
    model = load_model(out / "best.pth")
    with torch.no_grad():
        model.network.outc.conv.weight.mul_(1e38)
    save_checkpoint(out / "best.pth", model)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for _ in range(2):
        flags = [*training_flags(tmp_path), "--load", out / "best.pth", "--newW", 32, "--newH", 32]
        assert_one_clear_line(run_script("train_bayesian.py", *flags), "no longer finite", "checkpoints are intact")
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_loaded_model_of_another_split_is_warned_of(tmp_path: Path):
    flags, loaded = ["--newW", 32, "--newH", 32], ["--load", tmp_path / "checkpoints" / "best.pth"]
    words = "The loaded model may have been trained on"
    assert words not in logged(tmp_path, *flags)
    assert words not in logged(tmp_path, *flags, *loaded)
    assert f"{words} 1 of the 1 validation images" in logged(tmp_path, *flags, *loaded, "--seed", 1)
    more = make_folders(tmp_path / "more", 12, (48, 40))  # the same ones, and others that have arrived since
    folders = [part for pair in zip(("--imgs-dir", "--masks-dir"), more, strict=True) for part in pair]
    text = logged(tmp_path, *flags, *folders, "--load", tmp_path / "checkpoints" / "earlier-1" / "best.pth", "-v", 50)
    recorded = load_model(tmp_path / "checkpoints" / "best.pth").settings["trained_names"]
    assert len(recorded) > 6  # with those of the loaded model
    assert re.search(f"{words} [1-5] of the 6 validation images", text)


def test_best_epoch_that_is_not_there_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    state = new_training_state(lively_network(), 1e-3, total_steps=1)
    state.history = [{"epoch": 3, "val_dice": 0.5, "val_loss": 1.0}]
    for _ in range(2):
        train_bayesian.calibrate_best_epoch(tmp_path / "best.pth", state, dataset(2))
        assert "The best epoch is 3, after which this run was resumed without its file" in caplog.text
        caplog.clear()
        save_checkpoint(tmp_path / "best.pth", TrainedModel(state.network, epoch=4))  # of another one


def test_termination_while_the_last_files_are_written(tmp_path: Path, small: list, monkeypatch: pytest.MonkeyPatch):
    leave = CheckpointWriter.__exit__

    def leave_and_terminate(writer: CheckpointWriter, *error: object) -> None:
        leave(writer, *error)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(CheckpointWriter, "__exit__", leave_and_terminate)
    words = map(str, [*training_flags(tmp_path), *small, "--epochs", 1])
    with pytest.raises(SystemExit) as error:
        train_bayesian.main(train_bayesian.get_args_parser().parse_args(list(words)))
    assert error.value.code == 143
    assert not load_model(tmp_path / "checkpoints" / "best.pth").temperatures  # that would have taken long
    monkeypatch.undo()
    assert run_script("train_bayesian.py", *training_flags(tmp_path), "--epochs", 1, "--resume").returncode == 0
    assert load_model(tmp_path / "checkpoints" / "best.pth").temperatures


def test_flags_reach_the_training(tmp_path: Path, small: list, monkeypatch: pytest.MonkeyPatch):
    seen = {}

    def transforms(name: str, others: object) -> object:
        seen.update(name=name, others=len(others))
        return training_transforms("light")

    def batches(dataset: object, batch_size: int, seed: int, workers: int) -> object:
        seen.update(batches=(batch_size, seed))
        return training_batches(dataset, batch_size, seed)

    def state(network: object, learning_rate: float, total_steps: int, dtype: torch.dtype | None) -> None:
        seen.update(rate=learning_rate, steps=total_steps, dtype=dtype, seed=torch.initial_seed())
        raise InterruptedError

    monkeypatch.setattr("utils.data.augmentation.training_transforms", transforms)
    monkeypatch.setattr(train_bayesian, "training_batches", batches)
    monkeypatch.setattr(train_bayesian, "new_training_state", state)
    monkeypatch.setattr(model_flags, "amp_dtype", lambda device, amp: torch.bfloat16 if amp else None)
    flags = ["--augmentation", "wild", "--learning-rate", 0.02, "--amp", "--seed", 5, "--batch-size", 3, "--epochs", 4]
    words = map(str, [*training_flags(tmp_path, n=8), *small, *flags])
    with pytest.raises(InterruptedError):
        train_bayesian.main(train_bayesian.get_args_parser().parse_args(list(words)))
    expected = {"batches": (3, 5), "rate": 0.02, "steps": 4 * 3, "dtype": torch.bfloat16, "seed": 5}
    assert seen == {"name": "wild", "others": 7, **expected}


def test_what_a_resumed_run_has_to_share():
    """All flags but those that name files, which are compared, or are part of the model, or change no result."""
    files = {"imgs_dir", "masks_dir", "val_imgs_dir", "val_masks_dir", "mask_suffix", "ext", "recursive", "groups"}
    model = {"bilinear", "classes", "newW", "newH", "load"}
    others = {"help", "resume", "device", "wandb", "cache_dir", "checkpoint_dir", "max_megapixels", "skip_unusable"}
    flags = {action.dest for action in train_bayesian.get_args_parser()._actions}
    assert set(train_bayesian.SETTINGS) == flags - files - model - others
