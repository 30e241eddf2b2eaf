"""The scripts as a user runs them: real processes on real files."""

import csv
import math
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import (
    ROOT,
    assert_one_clear_line,
    lively_network,
    make_folders,
    make_picture,
    run_module,
    run_script,
    start_script,
)
from tests.reference import network_probability
from utils.checkpoint import TrainedModel, load_model, read_checkpoint, save_checkpoint

PROB_SCRIPTS = ("predict_prob_direct.py", "predict_prob_bayesian.py", "predict_prob_tta.py")
SCRIPTS = ("train_bayesian.py", "predict.py", "predict_bayesian.py", *PROB_SCRIPTS)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    return make_folders(tmp_path / "data", 4, (150, 110), seed=40)


def training_flags(tmp_path: Path, n: int = 8) -> list[object]:
    """Flags of train_bayesian.py for a small dataset in `tmp_path`, which is made where it is missing."""
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


# -- help and mistakes


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script: str):
    result = run_script(script, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: {script}")
    assert "--seed" in result.stdout
    assert "==SUPPRESS==" not in result.stdout
    assert "None" not in result.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "word"),
    [
        ("train_bayesian.py", ["--epochs", "0"], "of 1 or more"),
        ("train_bayesian.py", ["--learning-rate", "nan"], "above 0"),
        ("train_bayesian.py", ["--imgs-dir", "nowhere"], "nowhere: there is no such folder"),
        ("train_bayesian.py", ["--device", "toaster"], "--device toaster"),
        ("train_bayesian.py", ["--load", "a", "--resume", "b"], "--load"),
        ("predict.py", ["--input-dir", "nowhere", "--output-dir", "x"], "nowhere: there is no such folder"),
        ("predict.py", ["--input-dir", ".", "--output-dir", "x", "-t", "2"], "--mask-threshold"),
        ("predict_bayesian.py", ["-i", "a.jpg", "-o", "b.jpg"], "must end with .png"),
        ("predict_bayesian.py", ["-i", "a.png", "-o", "a.png"], "would replace a.png"),
        ("predict_bayesian.py", ["-i", "x/a_prob.png", "-o", "x/a.png"], "would replace x/a_prob.png"),
        (
            "predict_bayesian.py",
            ["-i", "a.jpg", "b.jpg", "-o", "a.png", "a_mc03_c1.png"],
            "would replace a_mc03_c1.png",
        ),
        ("predict_bayesian.py", ["-i", "a.jpg", "b.jpg", "-o", "c.png", "c.png"], "would replace c.png"),
        ("predict_bayesian.py", ["-i", "a.png", "b.png", "-o", "c.png"], "2 images and 1 names"),
        ("predict_bayesian.py", ["-i", "a.png", "-m", "missing.pth"], "missing.pth: there is no such model"),
        ("predict_bayesian.py", ["-i", "a.png", "--mc", "-1"], "--mc"),
        ("predict_prob_bayesian.py", ["--input-dir", ".", "--output-dir", "x", "--mc", "0"], "--mc"),
        ("predict_prob_tta.py", ["--input-dir", ".", "--output-dir", "x", "--shrink", "0"], "--shrink"),
        ("predict_prob_direct.py", ["--input-dir", ".", "--output-dir", "x", "--seed", "-1"], "--seed"),
    ],
)
def test_mistakes_end_in_a_clear_message(script: str, arguments: list[str], word: str, tmp_path: Path):
    assert_one_clear_line(run_script(script, *arguments, cwd=tmp_path), word)
    assert not list(tmp_path.iterdir())


def test_an_empty_data_folder_says_how_to_fill_it(tmp_path: Path):
    (tmp_path / "data" / "imgs").mkdir(parents=True)
    result = run_script("train_bayesian.py", cwd=tmp_path)
    assert_one_clear_line(result, "data/imgs has no image", "python -m utils.download_isic fetches")
    assert "--recursive" not in result.stderr
    result = run_script("predict.py", "--input-dir", "data", "--output-dir", "x", cwd=tmp_path)
    assert_one_clear_line(result, "data has no image", "--recursive looks into its sub-folders")


def test_the_shipped_model_is_found_from_everywhere(images: tuple[Path, Path], tmp_path: Path):
    result = run_script("predict.py", "--input-dir", images[0], "--output-dir", "o", "--ext", "jpg", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"Model {ROOT / 'pretrained_model.pth'}" in result.stderr
    assert len(list((tmp_path / "o").glob("*.png"))) == 4


def test_mistakes_about_the_model(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    for flags, word in (
        (["--classes", 3], "contradicts --classes 3"),
        (["--bilinear"], "contradicts --bilinear"),
        (["--newW", 64], "contradicts --newW 64"),
        (["--class-index", 2], "the classes 0 to 1"),
    ):
        result = run_script(
            PROB_SCRIPTS[0], "--input-dir", images[0], "--output-dir", tmp_path / "out", "-m", model_file, *flags
        )
        assert_one_clear_line(result, word)
    assert not (tmp_path / "out").exists()


# -- training


def test_training_from_folders_to_checkpoints(tmp_path: Path):
    out = train(tmp_path, "--epochs", 2, "--batch-size", 3, "--amp", "--validation", 25)
    names = {"checkpoint_epoch1.pth", "checkpoint_epoch2.pth", "best.pth", "last.pth", "metrics.csv"}
    assert {path.name for path in out.iterdir()} == names
    model = load_model(out / "checkpoint_epoch2.pth")
    assert (model.input_size, model.mask_values, model.epoch) == ((128, 128), [0, 255], 2)
    assert (model.settings["epochs"], model.settings["seed"], model.settings["images"]) == (2, 0, 8)
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


def test_a_killed_training_goes_on_as_if_nothing_had_happened(tmp_path: Path):
    arguments = ("--epochs", 3, "--batch-size", 4, "--seed", 5)
    out = train(tmp_path, *arguments, n=5)
    whole, scores = read_checkpoint(out / "last.pth"), (out / "metrics.csv").read_bytes()
    shutil.rmtree(out)
    with start_script("train_bayesian.py", *training_flags(tmp_path), *arguments) as process:
        said = ""
        for line in process.stderr:
            said += line
            if "Epoch 2/3" in line:
                process.kill()
    assert process.returncode == -signal.SIGKILL
    assert "Epoch 2/3" in said
    assert "Epoch 3/3" not in said
    resumed = read_checkpoint(train(tmp_path, *arguments, "--resume") / "last.pth")
    assert resumed["epoch"] == 3
    for name, value in whole["network"].items():
        assert torch.equal(value, resumed["network"][name]), name
    assert (out / "metrics.csv").read_bytes() == scores


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_training_ends_with_its_code_and_whole_files(tmp_path: Path, signum: int, code: int):
    with start_script("train_bayesian.py", *training_flags(tmp_path, n=5), "--epochs", 50) as process:
        for line in process.stderr:
            assert "Traceback" not in line
            if "Epoch 1/50" in line:
                process.send_signal(signum)
    assert process.returncode == code
    assert read_checkpoint(tmp_path / "checkpoints" / "last.pth")["epoch"] >= 1
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_load_starts_from_given_weights(tmp_path: Path):
    torch.manual_seed(1)
    network = lively_network(base_channels=32, bilinear=True, n_classes=1)  # known from the file without flags
    save_checkpoint(tmp_path / "m.pth", TrainedModel(network))
    out = train(tmp_path, "--epochs", 1, "--learning-rate", 1e-9, "--load", tmp_path / "m.pth", n=3)
    weights = load_model(out / "last.pth").network.state_dict()
    for name, value in network.state_dict().items():
        if name.endswith(("conv.weight", "up.weight")):
            torch.testing.assert_close(weights[name], value, atol=1e-6, rtol=0)


def test_output_to_a_file_is_not_garbled(tmp_path: Path):
    flags = [*training_flags(tmp_path, n=4), "--epochs", 1, "--wandb", "offline"]
    result = run_script("train_bayesian.py", *flags)
    assert result.returncode == 0, result.stderr
    assert "\r" not in result.stderr
    assert "\x1b" not in result.stderr
    lines = result.stderr.splitlines()
    assert lines[0] == "Training on 3 images, validating on another 1"
    assert any(line.startswith("Epoch 1/1: loss ") and "all background" in line for line in lines)
    (sync,) = [line for line in lines if "wandb sync" in line]
    folder = Path(sync.split("wandb sync ")[1])
    assert list(folder.glob("*.wandb"))


def test_mistakes_in_the_data_are_found_before_training(tmp_path: Path):
    imgs, masks = make_folders(tmp_path, 3, (48, 40))
    strange = np.zeros((40, 48), dtype=np.uint8)
    strange[5:, 5:] = 2
    strange[:, 30:] = 1
    Image.fromarray(strange).save(masks / "SKIN_001_Segmentation.png")
    arguments = ["--imgs-dir", imgs, "--masks-dir", masks, "--cache-dir", tmp_path / "cache", "--classes", 3]
    result = run_script("train_bayesian.py", *arguments, cwd=tmp_path)
    assert_one_clear_line(result, "4 values, 0, 1, 2, 255", "--classes 4")
    (masks / "SKIN_002_Segmentation.png").unlink()
    assert_one_clear_line(run_script("train_bayesian.py", *arguments, cwd=tmp_path), "SKIN_002.jpg: no mask")
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(("classes", "values"), [(1, [0, 255]), (3, [0, 100, 200])])
def test_other_numbers_of_classes_from_training_to_maps(tmp_path: Path, classes: int, values: list[int]):
    imgs, masks = make_folders(tmp_path / "train", 5, (48, 40))
    if classes == 3:
        for path in masks.iterdir():
            mask = (pixels(path) > 0) * 100
            mask[:10] = 200
            Image.fromarray(mask.astype(np.uint8)).save(path)
    out = train(tmp_path, "--epochs", 1, "--classes", classes, "--batch-size", 2, "--bilinear")
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


def test_three_classes_are_learnt_and_judged_one_by_one(tmp_path: Path):
    imgs, masks = make_folders(tmp_path, 8, (64, 64))
    for path in masks.iterdir():  # the blot has an upper half of one class, a lower half of another
        mask = (pixels(path) > 0) * 1
        mask[32:] *= 2
        Image.fromarray(mask.astype(np.uint8)).save(path)
    data = ["--imgs-dir", imgs, "--masks-dir", masks, "--cache-dir", tmp_path / "cache", "--wandb", "disabled"]
    more = ["--checkpoint-dir", tmp_path / "c", "--classes", 3, "--epochs", 1, "--quiet"]
    result = run_script("train_bayesian.py", *data, *more)
    assert (result.returncode, result.stderr) == (0, "")
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


# -- prediction


def test_as_many_words_as_are_asked_for(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    common = ["predict.py", "--input-dir", images[0], "--output-dir", tmp_path / "o", "-m", model_file]
    said = {words: run_script(*common, *words).stderr for words in ((), ("--quiet",), ("--verbose",))}
    assert said["--quiet",] == ""
    assert f"4 images in {images[0]}" in said[()]
    assert "which sees images at 128x128" in said[()]
    assert said[()].endswith(f"4 images done: {tmp_path / 'o'}\n")
    assert "SKIN_002.jpg: " not in said[()]
    assert "SKIN_002.jpg: 150x110 pixels, area " in said["--verbose",]


def test_an_empty_mask_is_explained(model_file: Path, tmp_path: Path):
    imgs, _ = make_folders(tmp_path, 3, (60, 40))
    for i in (0, 2):
        Image.new("RGB", (60, 40), (222, 178, 160)).save(imgs / f"SKIN_00{i}.jpg")
    out = tmp_path / "o"
    result = run_script("predict.py", "--input-dir", imgs, "--output-dir", out, "-m", model_file)
    assert result.returncode == 0, result.stderr
    with open(out / "summary.csv", newline="") as file:
        largest = {row["image"]: float(row["largest_probability"]) for row in csv.DictReader(file)}
    assert largest["SKIN_000.jpg"] <= 0.5 < largest["SKIN_001.jpg"]
    assert "2 of 3 masks are empty; the largest probability of anything but background is " in result.stderr
    assert f"{largest['SKIN_000.jpg']:.3f} in SKIN_000.jpg" in result.stderr


def test_a_folder_of_images_looked_at_closely(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    common = ["predict_bayesian.py", "-i", images[0], "--mc", 2, "-m", model_file]
    assert_one_clear_line(run_script(*common), "--output-dir is needed")
    figure = tmp_path / "o" / "all.png"
    result = run_script(*common, "--output-dir", tmp_path / "o", "--figure", figure)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "o").glob("SKIN_00?.png")} == {f"SKIN_00{i}.png" for i in range(4)}
    assert (tmp_path / "o" / "SKIN_003_entropy.png").is_file()
    assert f"All in one picture: {figure}" in result.stderr
    assert figure.is_file()


def test_predict_writes_masks_and_compares_with_the_truth(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    imgs, masks = images
    out = tmp_path / "out"
    result = run_script(
        "predict.py", "--input-dir", imgs, "--output-dir", out, "-m", model_file, "--mask-dir", masks, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    with open(out / "metrics.csv", newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert len(rows) == 4
    dices = []
    for path in imgs.iterdir():
        with Image.open(path) as image:
            expected = network_probability(load_model(model_file).network, image).numpy()
        got, truth = pixels(out / f"{path.stem}_OUT.png"), pixels(masks / f"{path.stem}_Segmentation.png")
        assert set(np.unique(got)) <= {0, 255}
        decided = abs(expected - 0.5) > 1e-4
        assert np.array_equal((got > 0)[decided], (expected > 0.5)[decided])
        dices.append(2 * ((got > 0) & (truth > 0)).sum() / ((got > 0).sum() + (truth > 0).sum()))
        assert float(rows[path.name]["dice"]) == pytest.approx(dices[-1])
    assert f"Dice         mean {np.mean(dices):.4f}   median {np.median(dices):.4f}" in result.stdout
    assert np.mean(dices) > 0.7  # it has learnt something, so the comparison is of something


def test_predict_threshold_no_save_and_viz(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    areas = []
    for threshold in (0.3, 0.5, 0.6):
        out = tmp_path / str(threshold)
        run_script("predict.py", "--input-dir", images[0], "--output-dir", out, "-m", model_file, "-t", threshold)
        areas.append(sum((pixels(path) > 0).sum() for path in out.glob("*.png")))
    assert areas[0] > areas[1] > areas[2] > 0
    result = run_script(
        "predict.py", "--input-dir", images[0], "--output-dir", tmp_path / "v", "-m", model_file, "--no-save", "--viz"
    )
    assert result.returncode == 0
    assert "no display" in result.stderr
    assert sorted(p.name for p in (tmp_path / "v").iterdir()) == [f"SKIN_00{i}_figure.png" for i in range(4)]


def test_a_truth_that_is_missing_or_of_another_size(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    imgs, masks = images
    arguments = ("--input-dir", imgs, "--output-dir", tmp_path / "o", "-m", model_file, "--mask-dir", masks)
    Image.new("L", (5, 5)).save(masks / "SKIN_001_Segmentation.png")
    result = run_script("predict.py", *arguments)
    assert result.returncode == 1
    assert "SKIN_001.jpg: it has 150x110 pixels, its mask" in result.stderr
    assert "5x5" in result.stderr
    assert "3 images against" in result.stdout
    (masks / "SKIN_002_Segmentation.png").unlink()
    assert_one_clear_line(run_script("predict.py", *arguments), "SKIN_002.jpg: no mask")


@pytest.mark.parametrize("script", PROB_SCRIPTS)
def test_probability_scripts_compare_with_the_truth(
    script: str, model_file: Path, images: tuple[Path, Path], tmp_path: Path
):
    common = ("--input-dir", images[0], "--output-dir", tmp_path / "o", "--mask-dir", images[1], "-m", model_file)
    result = run_script(script, *common, *(["--mc", 5] if "bayes" in script else []))
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "o" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        stem = Path(row["image"]).stem
        mask = pixels(tmp_path / "o" / f"{stem}_OUT.png") > 127  # 127 is below one half, 128 above
        truth = pixels(images[1] / f"{stem}_Segmentation.png") > 0
        assert float(row["jaccard"]) == pytest.approx((mask & truth).sum() / (mask | truth).sum(), abs=1e-9)
    assert f"mean {np.mean([float(row['dice']) for row in rows]):.4f}" in result.stdout


@pytest.mark.parametrize("script", PROB_SCRIPTS)
def test_probability_maps_of_a_folder(script: str, model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    (images[0] / "sub").mkdir()
    make_picture(77, (64, 200))[0].convert("L").save(images[0] / "sub" / "SKIN_000.png")
    common = ("--input-dir", images[0], "-m", model_file, "--recursive", *(["--mc", 5] if "bayes" in script else []))
    for out, more in (("a", []), ("b", ["--batch-size", 3]), ("c", ["--seed", 1])):
        result = run_script(script, *common, "--output-dir", tmp_path / out, *more)
        assert result.returncode == 0, result.stderr
    names = sorted(p.relative_to(tmp_path / "a").as_posix() for p in (tmp_path / "a").rglob("*.png"))
    assert names == [*(f"SKIN_00{i}_OUT.png" for i in range(4)), "sub/SKIN_000_OUT.png"]
    assert pixels(tmp_path / "a" / "sub" / "SKIN_000_OUT.png").shape == (200, 64)
    for name in names:
        a, b, c = (pixels(tmp_path / out / name) for out in "abc")
        assert np.array_equal(a, b)
        if script == "predict_prob_bayesian.py":
            assert abs(a - c).max() > 2
        else:
            assert np.array_equal(a, c)


def test_direct_maps_agree_with_pillow_and_torch(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    run_script(PROB_SCRIPTS[0], "--input-dir", images[0], "--output-dir", tmp_path / "o", "-m", model_file)
    network = load_model(model_file).network
    for path in images[0].iterdir():
        with Image.open(path) as image:
            expected = 255 * network_probability(network, image).numpy()
        assert abs(pixels(tmp_path / "o" / f"{path.stem}_OUT.png") - expected).max() <= 1


def test_one_broken_image_fails_alone(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    (images[0] / "SKIN_001.jpg").write_bytes(b"broken")
    result = run_script(PROB_SCRIPTS[0], "--input-dir", images[0], "--output-dir", tmp_path / "o", "-m", model_file)
    assert result.returncode == 1
    assert "1 failed:\n  SKIN_001.jpg: " in result.stderr
    assert "Traceback" not in result.stderr
    assert len(list((tmp_path / "o").glob("*_OUT.png"))) == 3


def test_predict_bayesian_writes_mask_and_maps(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    image, mask = images[0] / "SKIN_000.jpg", tmp_path / "new" / "folder" / "x.y.png"
    arguments = ("-i", image, "-o", mask, "--mc", 4, "--save-prob", "--save-mean-std", "-m", model_file, "--viz")
    result = run_script("predict_bayesian.py", *arguments)
    assert result.returncode == 0, result.stderr
    maps = ["prob", "entropy", "expected_entropy", "mutual_information", "std", "figure"]
    passes = [f"mc{t:02d}_c{c}" for t in range(4) for c in range(2)]
    expected = {"x.y.png", *(f"x.y_{name}.png" for name in maps + passes)}
    arrays = {"x.y_probs.npy", "x.y_mean.npy", "x.y_std.npy"}
    assert {p.name for p in mask.parent.iterdir()} == expected | arrays | {"summary.csv"}

    probs = np.load(mask.with_name("x.y_probs.npy"))
    assert (probs.dtype, probs.shape) == (np.float32, (4, 2, 110, 150))
    mean, std = probs.mean(0), probs.std(0)
    np.testing.assert_allclose(np.load(mask.with_name("x.y_mean.npy")), mean, atol=1e-5)
    np.testing.assert_allclose(np.load(mask.with_name("x.y_std.npy")), std, atol=1e-5)
    entropy = -(mean * np.log(mean)).sum(0)
    expected_entropy = -(probs * np.log(probs)).sum(1).mean(0)

    def close(name: str, values: np.ndarray) -> None:
        got = pixels(mask.with_name(f"x.y_{name}.png"))
        assert abs(got - 255 * values).max() <= 0.51, name

    close("prob", mean[1])
    close("std", std[1] / 0.5)
    close("entropy", entropy / math.log(2))
    close("expected_entropy", expected_entropy / math.log(2))
    close("mutual_information", (entropy - expected_entropy) / math.log(2))
    for t in range(4):
        for c in range(2):
            close(f"mc{t:02d}_c{c}", probs[t, c])
    assert np.array_equal(pixels(mask), 255 * (mean[1] > 0.5))

    before = {p.name: p.read_bytes() for p in mask.parent.iterdir()}
    run_script("predict_bayesian.py", *arguments)
    assert before == {p.name: p.read_bytes() for p in mask.parent.iterdir()}


def test_predict_bayesian_and_the_batch_script_agree(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    image = images[0] / "SKIN_002.jpg"
    run_script("predict_bayesian.py", "-i", image, "-o", tmp_path / "x.png", "--mc", 6, "-m", model_file)
    common = ("--input-dir", images[0], "--output-dir", tmp_path / "o", "--mc", 6, "-m", model_file)
    run_script("predict_prob_bayesian.py", *common)
    assert abs(pixels(tmp_path / "x_prob.png") - pixels(tmp_path / "o" / "SKIN_002_OUT.png")).max() <= 1


def test_predict_bayesian_without_passes_and_without_names(model_file: Path, images: tuple[Path, Path]):
    inputs = [images[0] / "SKIN_000.jpg", images[0] / "missing.jpg", images[0] / "SKIN_001.jpg"]
    result = run_script("predict_bayesian.py", "-i", *inputs, "--mc", 1, "-m", model_file)
    assert result.returncode == 1
    assert "1 failed:" in result.stderr
    assert "missing.jpg: there is no such file" in result.stderr
    names = {p.name for p in images[0].iterdir()} - {f"SKIN_00{i}.jpg" for i in range(4)}
    results = {f"SKIN_00{i}_OUT{end}.png" for i in (0, 1) for end in ("", "_prob", "_entropy", "_figure")}
    assert names == results | {"summary.csv"}
    with Image.open(inputs[0]) as image:
        expected = 255 * network_probability(load_model(model_file).network, image).numpy()
    assert abs(pixels(images[0] / "SKIN_000_OUT_prob.png") - expected).max() <= 1


def test_an_output_that_cannot_be_written_fails_alone(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    (tmp_path / "file").touch()
    outputs = [tmp_path / "file" / "x.png", tmp_path / "y.png"]
    inputs = [images[0] / f"SKIN_00{i}.jpg" for i in (0, 1)]
    result = run_script("predict_bayesian.py", "-i", *inputs, "-o", *outputs, "--mc", 2, "-m", model_file)
    assert result.returncode == 1
    assert "SKIN_000.jpg: its result cannot be written" in result.stderr
    assert outputs[1].is_file()


def test_large_images_need_little_memory(model_file: Path, tmp_path: Path):
    image = tmp_path / "large.jpg"
    make_picture(0, (3000, 2000))[0].save(image)
    arguments = [
        "predict_bayesian.py",
        "-i",
        image,
        "-o",
        tmp_path / "x.png",
        "--mc",
        2,
        "--save-prob",
        "-m",
        model_file,
    ]
    with start_script(*arguments) as process:
        process.stderr.read()
        used = os.wait4(process.pid, 0)[2].ru_maxrss
    with start_script("predict_bayesian.py", "--help") as process:
        process.stderr.read()
        at_start = os.wait4(process.pid, 0)[2].ru_maxrss
    assert len(list(tmp_path.glob("x_mc*.png"))) == 4
    assert (used - at_start) / 1024 < 700  # kB on Linux


def test_no_save_saves_nothing(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    image = images[0] / "SKIN_000.jpg"
    result = run_script(
        "predict_bayesian.py", "-i", image, "-o", tmp_path / "x.png", "--mc", 2, "-n", "--save-prob", "-m", model_file
    )
    assert result.returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_predict_bayesian_with_a_truth_and_one_figure_of_all(
    model_file: Path, images: tuple[Path, Path], tmp_path: Path
):
    inputs = [images[0] / f"SKIN_00{i}.jpg" for i in range(3)]
    outputs = [tmp_path / "o" / f"{i}.png" for i in range(3)]
    common = ("--mask-dir", images[1], "--mc", 3, "-m", model_file)
    figure = ("--figure", tmp_path / "all.png")
    result = run_script("predict_bayesian.py", "-i", *inputs, "-o", *outputs, "--save-npy", *common, *figure)
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "all.png") as all_of_them, Image.open(tmp_path / "o" / "0_figure.png") as one:
        assert all_of_them.width == one.width
        assert all_of_them.height > 2 * one.height
    for i in range(3):
        entropy, expected = (np.load(tmp_path / "o" / f"{i}_{e}entropy.npy") for e in ("", "expected_"))
        information = np.load(tmp_path / "o" / f"{i}_mutual_information.npy")
        assert entropy.shape == (110, 150)
        np.testing.assert_allclose(information, np.maximum(entropy - expected, 0), atol=1e-6)
    with open(tmp_path / "o" / "summary.csv", newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert set(rows) == {str(path) for path in inputs}
    for path, output in zip(inputs, outputs, strict=True):
        assert float(rows[str(path)]["area"]) == (pixels(output) > 0).sum()
        assert float(rows[str(path)]["area_std"]) > 0
    # A second run with another image keeps the rows of the first.
    run_script("predict_bayesian.py", "-i", images[0] / "SKIN_003.jpg", "-o", tmp_path / "o" / "3.png", *common)
    with open(tmp_path / "o" / "summary.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 4
    (tmp_path / "o" / "summary.csv").write_text("patient,age\n")
    result = run_script("predict_bayesian.py", "-i", inputs[0], "-o", outputs[0], *common)
    assert_one_clear_line(result, "summary.csv is no summary of predictions")


@pytest.mark.parametrize("script", PROB_SCRIPTS)
def test_probability_scripts_save_all_maps(script: str, model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    common = ("--input-dir", images[0], "--output-dir", tmp_path / "o", "-m", model_file)
    more = ["--mc", 3] if "bayes" in script else []
    result = run_script(script, *common, "--save-entropy", "--save-npy", *more)
    assert result.returncode == 0, result.stderr
    names = {p.name.removeprefix("SKIN_000_OUT") for p in (tmp_path / "o").glob("SKIN_000*")}
    spread = set() if "direct" in script else {"_std.png", "_expected_entropy.png", "_mutual_information.png"}
    arrays = {f"_{name}.npy" for name in ("mean", "std", "entropy", "expected_entropy", "mutual_information")}
    assert names == {".png", "_entropy.png"} | spread | arrays
    probs = np.load(tmp_path / "o" / "SKIN_000_OUT_mean.npy").astype(float)
    entropy = -(probs * np.log(np.maximum(probs, 1e-30))).sum(0)
    np.testing.assert_allclose(np.load(tmp_path / "o" / "SKIN_000_OUT_entropy.npy"), entropy, atol=1e-5)
    assert abs(pixels(tmp_path / "o" / "SKIN_000_OUT_entropy.png") - 255 / math.log(2) * entropy).max() <= 0.51
    assert abs(pixels(tmp_path / "o" / "SKIN_000_OUT.png") - 255 * probs[1]).max() <= 0.51
    if "direct" in script:
        assert not np.load(tmp_path / "o" / "SKIN_000_OUT_std.npy").any()


def test_a_training_ends_with_temperatures(tmp_path: Path):
    out = train(tmp_path, "--epochs", 1, "--batch-size", 4, n=6)
    assert set(load_model(out / "best.pth").temperatures) == {"softmax", "mc_dropout", "tta"}
