"""predict.py and the predict_prob scripts as a user runs them: real processes on real files."""

import csv
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import assert_one_clear_line, make_folders, make_image, run_script
from tests.reference import network_probability
from tests.test_checkpoint import filters_file
from utils.checkpoint import load_model

PROB_SCRIPTS = ("predict_prob_direct.py", "predict_prob_bayesian.py", "predict_prob_tta.py")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    return make_folders(tmp_path / "data", 4, (150, 110), seed=40)


def test_empty_masks_are_explained(model_file: Path, tmp_path: Path):
    imgs, _ = make_folders(tmp_path, 3, (60, 40))
    for i in (0, 2):
        Image.new("RGB", (60, 40), (222, 178, 160)).save(imgs / f"SKIN_00{i}.jpg")
    out = tmp_path / "o"
    result = run_script("predict.py", "--input-dir", imgs, "--output-dir", out, "-m", model_file)
    assert result.returncode == 0, result.stderr
    with open(out / "summary.csv", newline="") as file:
        largest = {row["image"]: float(row["largest_probability"]) for row in csv.DictReader(file)}
    assert largest["SKIN_000.jpg"] <= 0.5 < largest["SKIN_001.jpg"]
    assert "2 of 3 masks are empty; their largest foreground probability is " in result.stderr
    assert f"{largest['SKIN_000.jpg']:.3f} in SKIN_000.jpg" in result.stderr


def test_predict_with_ground_truth(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
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
        mask, target = pixels(out / f"{path.stem}_OUT.png"), pixels(masks / f"{path.stem}_Segmentation.png")
        assert set(np.unique(mask)) <= {0, 255}
        decided = abs(expected - 0.5) > 1e-4
        assert np.array_equal((mask > 0)[decided], (expected > 0.5)[decided])
        dices.append(2 * ((mask > 0) & (target > 0)).sum() / ((mask > 0).sum() + (target > 0).sum()))
        assert float(rows[path.name]["dice"]) == pytest.approx(dices[-1])
    assert f"Dice         mean {np.mean(dices):.4f}   median {np.median(dices):.4f}" in result.stdout
    assert np.mean(dices) > 0.7  # it has learnt something, so there is something to compare


def test_predict_threshold_no_save_viz(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
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
    assert "There is no display to show the figure on\n" in result.stderr
    assert not (tmp_path / "v").exists()
    common = ("--input-dir", images[0], "--output-dir", tmp_path / "v", "-m", model_file)
    assert_one_clear_line(run_script("predict.py", *common, "-n", "--skip-existing"), "contradicts --skip-existing")
    result = run_script("predict.py", *common, "--viz")
    assert "There is no display to show the figure on: it has been written to" in result.stderr
    assert {path.name for path in (tmp_path / "v").glob("*_figure.png")} == {
        f"SKIN_00{i}_OUT_figure.png" for i in range(4)
    }


def test_ground_truth_is_missing_or_of_another_size(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    imgs, masks = images
    arguments = ("--input-dir", imgs, "--output-dir", tmp_path / "o", "-m", model_file, "--mask-dir", masks)
    Image.new("L", (5, 5)).save(masks / "SKIN_001_Segmentation.png")
    (masks / "SKIN_003_Segmentation.png").write_bytes(b"broken")
    for more in ((), ("--skip-existing", "--review")):  # the image is predicted, and again to be scored
        result = run_script("predict.py", *arguments, *more)
        assert result.returncode == 1
        *_, title, wrong_size, unreadable = result.stderr.splitlines()
        assert title == "Error: 2 failed:"
        assert wrong_size.startswith("  SKIN_001.jpg, not scored: it has 150x110 pixels, its mask")
        assert wrong_size.endswith("has 5x5")
        assert re.fullmatch(r"  SKIN_003\.jpg, not scored: .*SKIN_003_Seg.* cannot be read as an image .*", unreadable)
        assert "2 of 4 images compared with" in result.stdout
        assert len(list((tmp_path / "o").glob("*_OUT.png"))) == 4
        assert result.stderr.count("have a mask in") == result.stderr.count("masks: 0 background") == 1
        assert "belong" not in result.stderr
    assert "2 of 4 images are already done" in result.stderr
    assert "4 images done: open" in result.stderr
    shutil.copy(masks / "SKIN_000_Segmentation.png", masks / "SKIN_003_Segmentation.png")
    (masks / "SKIN_002_Segmentation.png").unlink()
    result = run_script("predict.py", *arguments)
    assert result.returncode == 1
    assert "3 of 4 images have a mask in" in result.stderr
    assert "2 of 4 images compared with" in result.stdout
    assert (tmp_path / "o" / "SKIN_002_OUT.png").exists()
    for path in masks.iterdir():
        path.rename(masks / f"x{path.name}")
    assert_one_clear_line(run_script("predict.py", *arguments), "no image has a mask", "SKIN_000.jpg", "xSKIN_000")


def test_images_and_masks_in_one_folder(model_file: Path, tmp_path: Path):
    """Masks are not predicted; the formats are those of training."""
    folder = tmp_path / "d"
    folder.mkdir()
    for i, extension in enumerate((".webp", ".gif", ".jp2", ".jpg")):
        image, mask = make_image(40 + i, (150, 110))
        image.save(folder / f"lesion ({i}){extension}")
        if extension != ".jpg":
            mask.save(folder / f"lesion ({i})_mask.png")
    expected = {f"lesion ({i})" for i in range(4)}
    common = ["--mask-dir", folder, "--output-dir", tmp_path / "o", "-m", model_file]
    result = run_script("predict.py", "--input-dir", folder, *common)
    assert result.returncode == 0, result.stderr
    assert {path.stem.removesuffix("_OUT") for path in (tmp_path / "o").glob("*.png")} == expected
    assert "3 of 4 images compared with" in result.stdout
    result = run_script("predict_bayesian.py", "-i", folder, *common, "--mc", 2)
    assert result.returncode == 0, result.stderr
    assert {path.stem.removesuffix("_figure") for path in (tmp_path / "o").glob("*_figure.png")} == expected


def test_masks_that_are_added_between_runs(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    imgs, masks = images
    mask = masks / "SKIN_001_Segmentation.png"
    content = mask.read_bytes()
    mask.unlink()
    common = ["--input-dir", imgs, "--mask-dir", masks, "--output-dir", tmp_path / "o", "-m", model_file]
    for expected in ("3 of 4 images compared", "4 images compared"):
        result = run_script("predict_prob_direct.py", *common, "--skip-existing")
        assert result.returncode == 0, result.stderr
        assert expected in result.stdout
        with open(tmp_path / "o" / "metrics.csv", newline="") as file:
            assert len(list(csv.DictReader(file))) == int(expected[0])
        mask.write_bytes(content)
    assert "3 of 4 images are already done" in result.stderr


def test_metrics_of_a_training_are_not_removed(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    metrics = tmp_path / "metrics.csv"
    metrics.write_text("epoch,train_loss\n1,0.5\n")
    for script in ("predict.py", "predict_prob_direct.py"):
        result = run_script(script, "--input-dir", images[0], "--output-dir", tmp_path, "-m", model_file)
        assert_one_clear_line(result, f"{metrics} is not of predictions, and would be removed: move it away")
    assert {path.name for path in tmp_path.iterdir()} == {"data", "metrics.csv"}
    assert metrics.read_text() == "epoch,train_loss\n1,0.5\n"


def test_probabilities_with_ground_truth(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    common = ("--input-dir", images[0], "--output-dir", tmp_path / "o", "--mask-dir", images[1], "-m", model_file)
    result = run_script("predict_prob_tta.py", *common)
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "o" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        stem = Path(row["image"]).stem
        mask = pixels(tmp_path / "o" / f"{stem}_OUT.png") > 127  # 127 is below one half, 128 above
        target = pixels(images[1] / f"{stem}_Segmentation.png") > 0
        assert float(row["jaccard"]) == pytest.approx((mask & target).sum() / (mask | target).sum(), abs=1e-9)
    assert f"mean {np.mean([float(row['dice']) for row in rows]):.4f}" in result.stdout


@pytest.mark.parametrize("script", PROB_SCRIPTS)
def test_probability_maps(script: str, model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    (images[0] / "sub").mkdir()
    make_image(77, (64, 200))[0].convert("L").save(images[0] / "sub" / "SKIN_000.png")
    common = ("--input-dir", images[0], "-m", model_file, "--recursive", *(["--mc", 5] if "bayes" in script else []))
    for out, more in (("a", []), ("b", ["--batch-size", 3, "--seed", 1])):
        result = run_script(script, *common, "--output-dir", tmp_path / out, *more)
        assert result.returncode == 0, result.stderr
    names = sorted(p.relative_to(tmp_path / "a").as_posix() for p in (tmp_path / "a").rglob("*.png"))
    assert names == [*(f"SKIN_00{i}_OUT.png" for i in range(4)), "sub/SKIN_000_OUT.png"]
    assert pixels(tmp_path / "a" / "sub" / "SKIN_000_OUT.png").shape == (200, 64)
    for name in names:
        a, b = (pixels(tmp_path / out / name) for out in "ab")
        if script == "predict_prob_bayesian.py":
            assert abs(a - b).max() > 2
        else:
            assert np.array_equal(a, b)


def test_network_of_another_project(images: tuple[Path, Path], tmp_path: Path):
    """64 filters and no dropout, as Pytorch-UNet's: all but MC dropout, at the input size of the flags."""
    path = tmp_path / "unet.pth"
    network = filters_file(path, 64, "model_state_dict", "module.", dropout=0.0)
    for name in ("SKIN_001.jpg", "SKIN_002.jpg", "SKIN_003.jpg"):
        (images[0] / name).unlink()
    common = ["--input-dir", images[0], "-m", path, "--newW", 32, "--newH", 32]
    for script in ("predict.py", "predict_prob_direct.py", "predict_prob_tta.py"):
        result = run_script(script, *common, "--output-dir", tmp_path / script)
        assert result.returncode == 0, result.stderr
        assert "64 filters" in result.stderr
        assert "input size 32x32" in result.stderr
    with Image.open(images[0] / "SKIN_000.jpg") as image:
        expected = network_probability(network, image, size=(32, 32)).numpy()
    assert abs(pixels(tmp_path / "predict_prob_direct.py" / "SKIN_000_OUT.png") - 255 * expected).max() <= 1
    mask = pixels(tmp_path / "predict.py" / "SKIN_000_OUT.png") > 0
    assert (mask == (expected > 0.5)).mean() > 0.999
    single = ["-i", images[0], "-m", path, "--output-dir", tmp_path / "single"]
    folder = [*common, "--output-dir", tmp_path / "mc"]
    for script, arguments in (("predict_prob_bayesian.py", folder), ("predict_bayesian.py", single)):
        assert_one_clear_line(run_script(script, *arguments), "no dropout layers", "would be equal")
    assert run_script("predict_bayesian.py", *single, "--mc", 1).returncode == 0


@pytest.mark.parametrize("script", PROB_SCRIPTS)
def test_all_maps(script: str, model_file: Path, images: tuple[Path, Path], tmp_path: Path):
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
