"""The scripts as a user runs them: help, mistakes, messages."""

from pathlib import Path

import pytest

from tests.conftest import ROOT, assert_one_clear_line, lively_network, make_folders, run_script
from tests.test_prediction_scripts import PROB_SCRIPTS
from utils.checkpoint import TrainedModel, save_checkpoint

SCRIPTS = ("train_bayesian.py", "predict.py", "predict_bayesian.py", *PROB_SCRIPTS)


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    return make_folders(tmp_path / "data", 4, (150, 110), seed=40)


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
        ("train_bayesian.py", ["--device", "toaster"], "device toaster is not available; available: cpu"),
        ("train_bayesian.py", ["--load", "a", "--resume", "b"], "--load"),
        ("predict.py", ["--input-dir", "nowhere", "--output-dir", "x"], "nowhere: there is no such folder"),
        ("predict.py", ["--input-dir", ".", "--output-dir", "x", "-t", "2"], "--mask-threshold"),
        ("predict_bayesian.py", ["-i", "a.jpg", "-o", "b.jpg"], "must end with .png"),
        ("predict_bayesian.py", ["-i", "a.jpg", "-o", "/"], "output /: the name of a mask must end with .png"),
        ("predict_bayesian.py", ["-i", "a.png", "-o", "a.png"], "would overwrite a.png"),
        ("predict_bayesian.py", ["-i", "x/a_prob.png", "-o", "x/a.png"], "would overwrite x/a_prob.png"),
        (
            "predict_bayesian.py",
            ["-i", "a.jpg", "b.jpg", "-o", "a.png", "a_mc03_c1.png"],
            "would overwrite a_mc03_c1.png",
        ),
        (
            "predict_bayesian.py",
            ["-i", "a.jpg", "b.jpg", "-o", "c.png", "c.png"],
            "two images would have the same mask file c.png",
        ),
        (
            "predict_bayesian.py",
            ["-i", "a.jpg", "b.jpg", "-o", "c.png", "c.PNG"],  # beside both, c_prob.png
            "two images would have the same mask file c.PNG",
        ),
        ("predict_bayesian.py", ["-i", "a.png", "b.png", "-o", "c.png"], "not 1 for 2 images"),
        ("predict_bayesian.py", ["-i", "a.png", "-m", "missing.pth"], "missing.pth: there is no such model file"),
        ("predict_bayesian.py", ["-i", "a.png", "--mc", "-1"], "--mc"),
        ("predict_prob_bayesian.py", ["--input-dir", ".", "--output-dir", "x", "--mc", "0"], "--mc"),
        ("predict_prob_tta.py", ["--input-dir", ".", "--output-dir", "x", "--shrink", "0"], "--shrink"),
        ("predict_prob_direct.py", ["--input-dir", ".", "--output-dir", "x", "--seed", "-1"], "--seed"),
        *(
            (script, ["--input-dir", ".", "--output-dir", "x", "--class-index", "0", "--review"], "shows no background")
            for script in ("predict_prob_bayesian.py", "predict_prob_direct.py", "predict_prob_tta.py")
        ),
    ],
)
def test_mistakes_are_one_clear_message(script: str, arguments: list[str], word: str, tmp_path: Path):
    assert_one_clear_line(run_script(script, *arguments, cwd=tmp_path), word)
    assert not list(tmp_path.iterdir())


def test_empty_data_folder(tmp_path: Path):
    (tmp_path / "data" / "imgs").mkdir(parents=True)
    result = run_script("train_bayesian.py", cwd=tmp_path)
    assert_one_clear_line(result, "data/imgs contains no image", "python -m utils.download_isic downloads")
    assert "recursive" not in result.stderr
    result = run_script("predict.py", "--input-dir", "data", "--output-dir", "x", cwd=tmp_path)
    assert_one_clear_line(result, "data contains no image", "outside its sub-folders", "(see --recursive)")


def test_nested_folder(tmp_path: Path):
    """Also one with a name of the challenge's folders: its images are not to be downloaded."""
    for name in ("own/imgs/patient1", "data/imgs/patient1", "empty/imgs"):
        (tmp_path / name).mkdir(parents=True)
    for folder in ("own/imgs", "data/imgs"):
        result = run_script("predict.py", "--input-dir", folder, "--output-dir", "x", cwd=tmp_path)
        assert_one_clear_line(result, f"{folder} contains no image outside its sub-folders", "(see --recursive)")
        assert "download" not in result.stderr
        result = run_script("predict_bayesian.py", "-i", folder, "--output-dir", "x", cwd=tmp_path)
        assert_one_clear_line(result, f"{folder} contains no image outside its sub-folders: name one of these (")
    result = run_script("predict.py", "--input-dir", "empty/imgs", "--output-dir", "x", cwd=tmp_path)
    assert "download" not in result.stderr


def test_shipped_model_from_another_folder(images: tuple[Path, Path], tmp_path: Path):
    result = run_script("predict.py", "--input-dir", images[0], "--output-dir", "o", "--ext", "jpg", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"Model {ROOT / 'pretrained_model.pth'}" in result.stderr
    assert len(list((tmp_path / "o").glob("*.png"))) == 4


def test_threshold_is_for_two_classes(images: tuple[Path, Path], tmp_path: Path):
    save_checkpoint(tmp_path / "m.pth", TrainedModel(lively_network(n_classes=3), mask_values=[0, 1, 2]))
    common = ("-m", tmp_path / "m.pth", "-t", 0.3, "--output-dir", tmp_path / "out")
    for script, flag in (("predict.py", "--input-dir"), ("predict_bayesian.py", "-i")):
        result = run_script(script, flag, images[0], *common)
        assert_one_clear_line(result, "contradicts --mask-threshold 0.3, which is for two classes: the model has 3")
    assert not (tmp_path / "out").exists()


def test_verbosity(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    common = ["predict.py", "--input-dir", images[0], "--output-dir", tmp_path / "o", "-m", model_file]
    logged = {flags: run_script(*common, *flags).stderr for flags in ((), ("--quiet",), ("--verbose",))}
    assert logged["--quiet",] == ""
    assert f"4 images in {images[0]}" in logged[()]
    assert "input size 128x128" in logged[()]
    assert logged[()].endswith(f"4 images done: {tmp_path / 'o'}\n")
    assert "SKIN_002.jpg: " not in logged[()]
    assert "SKIN_002.jpg: 150x110 pixels, area " in logged["--verbose",]
