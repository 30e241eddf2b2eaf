"""predict_bayesian.py as a user runs it: a real process on real files."""

import csv
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

import predict_bayesian
from tests.conftest import (
    ENVIRONMENT,
    ROOT,
    assert_one_clear_line,
    lively_network,
    make_folders,
    make_image,
    run_script,
)
from tests.fresh_processes import run_fresh
from tests.reference import network_probability
from tests.test_prediction_scripts import pixels
from utils.checkpoint import TrainedModel, load_model
from utils.pipeline.items import find_images
from utils.pipeline.report import Report
from utils.pipeline.summary import read_summary
from utils.review_page.runs import read_run
from utils.runtime.errors import InputError


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    return make_folders(tmp_path / "data", 3, (150, 110), seed=40)


def size_in_inches(path: Path) -> list[float]:
    with Image.open(path) as image:
        return [length / dpi for length, dpi in zip(image.size, image.info["dpi"], strict=True)]


def test_mask_and_maps(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    image, mask = images[0] / "SKIN_000.jpg", tmp_path / "new" / "folder" / "x.y.png"
    arguments = ("-i", image, "-o", mask, "--mc", 4, "--save-prob", "--save-mean-std", "-m", model_file, "--viz")
    result = run_script("predict_bayesian.py", *arguments)
    assert result.returncode == 0, result.stderr
    maps = ["prob", "entropy", "expected_entropy", "mutual_information", "std", "figure"]
    passes = [f"mc{t:02d}_c{c}" for t in range(4) for c in range(2)]
    expected = {"x.y.png", *(f"x.y_{name}.png" for name in maps + passes)}
    arrays = {"x.y_probs.npy", "x.y_mean.npy", "x.y_std.npy"}
    assert {p.name for p in mask.parent.iterdir()} == expected | arrays | {"summary.csv", ".progress-0.jsonl"}

    probs = np.load(mask.with_name("x.y_probs.npy"))
    assert (probs.dtype, probs.shape) == (np.float32, (4, 2, 110, 150))
    mean, std = probs.mean(0), probs.std(0)
    np.testing.assert_allclose(np.load(mask.with_name("x.y_mean.npy")), mean, atol=1e-5)
    np.testing.assert_allclose(np.load(mask.with_name("x.y_std.npy")), std, atol=1e-5)
    entropy = -(mean * np.log(mean)).sum(0)
    expected_entropy = -(probs * np.log(probs)).sum(1).mean(0)

    def assert_close(name: str, values: np.ndarray) -> None:
        greyscale_map = pixels(mask.with_name(f"x.y_{name}.png"))
        assert abs(greyscale_map - 255 * values).max() <= 0.51, name

    assert_close("prob", mean[1])
    assert_close("std", std[1] / 0.5)
    assert_close("entropy", entropy / math.log(2))
    assert_close("expected_entropy", expected_entropy / math.log(2))
    assert_close("mutual_information", (entropy - expected_entropy) / math.log(2))
    for t in range(4):
        for c in range(2):
            assert_close(f"mc{t:02d}_c{c}", probs[t, c])
    assert np.array_equal(pixels(mask), 255 * (mean[1] > 0.5))


def test_agrees_with_the_folder_script(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    image = images[0] / "SKIN_002.jpg"
    run_script("predict_bayesian.py", "-i", image, "-o", tmp_path / "x.png", "--mc", 6, "-m", model_file)
    common = ("--input-dir", images[0], "--output-dir", tmp_path / "o", "--mc", 6, "-m", model_file)
    run_script("predict_prob_bayesian.py", *common)
    assert abs(pixels(tmp_path / "x_prob.png") - pixels(tmp_path / "o" / "SKIN_002_OUT.png")).max() <= 1


def test_single_pass_and_default_names(model_file: Path, images: tuple[Path, Path]):
    inputs = [images[0] / "SKIN_000.jpg", images[0] / "missing.jpg", images[0] / "SKIN_001.jpg"]
    result = run_script("predict_bayesian.py", "-i", *inputs, "--mc", 1, "-m", model_file)
    assert result.returncode == 1
    assert "1 failed:" in result.stderr
    assert "missing.jpg: there is no such file" in result.stderr
    names = {p.name for p in images[0].iterdir()} - {f"SKIN_00{i}.jpg" for i in range(3)}
    results = {f"SKIN_00{i}_OUT{suffix}.png" for i in (0, 1) for suffix in ("", "_prob", "_entropy", "_figure")}
    assert names == results | {"summary.csv", ".progress-0.jsonl"}
    with Image.open(inputs[0]) as image:
        expected = 255 * network_probability(load_model(model_file).network, image).numpy()
    assert abs(pixels(images[0] / "SKIN_000_OUT_prob.png") - expected).max() <= 1


def test_unwritable_output_ends_the_run_before_it_computes(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    (tmp_path / "file").touch()
    outputs = [tmp_path / "file" / "x.png", tmp_path / "y.png"]
    inputs = [images[0] / f"SKIN_00{i}.jpg" for i in (0, 1)]
    result = run_script("predict_bayesian.py", "-i", *inputs, "-o", *outputs, "--mc", 2, "-m", model_file)
    assert_one_clear_line(result, f"{tmp_path / 'file'} is a file, a folder was expected (see --output)")
    assert not outputs[1].exists()


def test_memory_of_a_large_image(model_file: Path, tmp_path: Path):
    image = tmp_path / "large.jpg"
    make_image(0, (3000, 2000))[0].save(image)
    flags = ["-i", image, "-o", tmp_path / "x.png", "--mc", 2, "--save-prob", "-m", model_file]
    used, at_start = (
        run_fresh(["predict_bayesian.py", *map(str, words)], ROOT, ENVIRONMENT).peak_memory
        for words in (flags, ["--help"])
    )
    assert len(list(tmp_path.glob("x_mc*.png"))) == 4
    assert (used - at_start) / 2**20 < 300


def test_no_save(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    image = images[0] / "SKIN_000.jpg"
    common = ("-i", image, "--mc", 2, "-n", "-m", model_file)
    result = run_script("predict_bayesian.py", *common, "-o", tmp_path / "x.png")
    assert result.returncode == 0
    flags = ("--save-prob", "--save-npy", "--save-mean-std", "--skip-existing")
    result = run_script("predict_bayesian.py", *common, "--output-dir", tmp_path / "o", *flags)
    assert_one_clear_line(result, f"--no-save saves nothing, which contradicts {', '.join(flags)}")
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_each_result_has_one_row(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    """That of the latest run, by whatever path its image was given, and of whatever image."""
    out, name = tmp_path / "o", "SKIN_000.jpg"
    other = tmp_path / "other" / name
    other.parent.mkdir()
    shutil.copy(images[0] / "SKIN_001.jpg", other)

    def rows_after(*given: object, cwd: Path = tmp_path) -> list[str]:
        result = run_script("predict_bayesian.py", *given, "--mc", 0, "-m", model_file, cwd=cwd)
        assert result.returncode == 0, result.stderr
        with open(out / "summary.csv", newline="") as file:
            return sorted(row["image"] for row in csv.DictReader(file))

    in_folder = ("--output-dir", out)
    assert rows_after("-i", name, *in_folder, cwd=images[0]) == [name]
    assert rows_after("-i", f"../imgs/{name}", *in_folder, cwd=images[1]) == [f"../imgs/{name}"]
    assert rows_after("-i", images[0] / name, *in_folder) == [str(images[0] / name)]
    second = str(images[0] / "SKIN_001.jpg")
    assert rows_after("-i", other, second, "-o", out / "a.png", out / "b.png") == sorted(
        [str(images[0] / name), str(other), second]
    )
    assert rows_after("-i", other, *in_folder) == sorted([str(other), str(other), second])  # one is of a.png


def test_rows_end_with_their_results(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    """Of a mask that another run has overwritten, and of an image that has failed in this run."""
    imgs, out = images[0], tmp_path / "o"

    def rows_after(*given: object, cwd: Path = tmp_path, folder: Path = out, code: int = 0) -> list[tuple[str, str]]:
        result = run_script("predict_bayesian.py", *given, "--mc", 0, "-m", model_file, cwd=cwd)
        assert result.returncode == code, result.stderr
        return sorted((row["image"], row["mask"]) for row in read_summary(folder / "summary.csv"))

    one, two = imgs / "SKIN_000.jpg", imgs / "SKIN_001.jpg"
    assert rows_after("-i", one, "-o", out / "x.png") == [(str(one), "x.png")]
    assert rows_after("-i", two, "-o", out / "x.png") == [(str(two), "x.png")]
    assert rows_after("-i", "imgs/SKIN_000.jpg", cwd=imgs.parent, folder=imgs) == [
        ("imgs/SKIN_000.jpg", "SKIN_000_OUT.png")
    ]
    assert rows_after("-i", one.name, cwd=imgs, folder=imgs) == [(one.name, "SKIN_000_OUT.png")]
    assert len(rows_after("-i", one, two, "--output-dir", tmp_path / "p", folder=tmp_path / "p")) == 2
    one.write_bytes(b"broken")
    given = ("-i", one, two, "--output-dir", tmp_path / "p")
    assert rows_after(*given, folder=tmp_path / "p", code=1) == [(str(two), "SKIN_001.png")]


def test_single_result_beside_those_of_a_folder_script(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    """Leaves the other run complete, with its journal and its metrics, unless it replaces one of its results."""
    (imgs, masks), out = images, tmp_path / "o"
    folders = ("--input-dir", imgs, "--mask-dir", masks, "--output-dir", out)
    assert run_script("predict.py", *folders, "-m", model_file).returncode == 0
    files, one = {f"{path.stem}_OUT.png" for path in imgs.iterdir()}, imgs / "SKIN_000.jpg"
    for output, added, metrics in (("extra.png", {"extra.png"}, 2), ("SKIN_000_OUT.png", {"extra.png"}, 0)):
        flags = ("-i", one, "-o", out / output, "--mc", 0, "-m", model_file)
        assert run_script("predict_bayesian.py", *flags).returncode == 0
        rows = {row["mask"]: row["image"] for row in read_summary(out / "summary.csv")}
        assert {*rows} == files | added
        assert rows[output] == str(one)
        assert rows["SKIN_001_OUT.png"] == "SKIN_001.jpg"
        assert len(list(out.glob("metrics.*"))) == metrics
    resumed = run_script("predict.py", *folders, "-m", model_file, "--skip-existing")
    assert f"{len(files) - 1} of {len(files)} images are already done" in resumed.stderr


def test_run_into_the_folder_of_another_script(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    """Both have their results, and their rows, until one starts over."""
    imgs, out = images[0], tmp_path / "o"
    of_folder = {(path.name, f"{path.stem}_OUT.png") for path in imgs.iterdir()}
    single = {(str(path), f"{path.stem}.png") for path in imgs.iterdir()}
    for script, given, rows in (
        ("predict.py", ("--input-dir", imgs), {(name, None) for name, _ in of_folder}),
        ("predict_bayesian.py", ("--mc", 0, "-i", imgs), of_folder | single),
        ("predict.py", ("--input-dir", imgs), {(name, None) for name, _ in of_folder}),
    ):
        assert run_script(script, *given, "--output-dir", out, "-m", model_file).returncode == 0
        assert {(row["image"], row.get("mask")) for row in read_summary(out / "summary.csv")} == rows


def test_single_results_are_gathered(model_file: Path, images: tuple[Path, Path]):
    """On one page, in one summary, and as no images for the next run; those of other settings not on that page."""
    imgs, out = images[0], images[0] / "uq"
    names = sorted(path.name for path in imgs.iterdir())[:3]
    for name, passes in zip(names, (3, 2, 2), strict=True):
        flags = ("-o", out / f"of_{name[:-4]}.png", "--mc", passes, "-m", model_file, "--figure", out / "all.png")
        assert run_script("predict_bayesian.py", "-i", imgs / name, *flags).returncode == 0
    assert {Path(row["image"]).name for row in read_summary(out / "summary.csv")} == {*names}
    run = read_run(out, imgs)
    assert {*run.scores} == {*names[1:]}
    assert run.files(names[1]).mask == out / f"of_{names[1][:-4]}.png"
    assert {*run.files(names[1]).layers} == {"std", "entropy", "expected_entropy", "mutual_information"}
    assert not any(path.is_relative_to(out) for path in find_images(imgs, recursive=True))
    (out / f"of_{names[0][:-4]}.png").unlink()
    again = ("-i", imgs / names[1], "-o", out / f"of_{names[1][:-4]}.png", "--mc", 2, "-m", model_file)
    assert run_script("predict_bayesian.py", *again).returncode == 0
    assert {Path(row["image"]).name for row in read_summary(out / "summary.csv")} == {*names[1:]}


def test_single_result_in_the_folder_of_a_resumed_run(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    """A run that is resumed neither takes the results of another run for its own, nor replaces them."""
    out = tmp_path / "o"
    flags = ("--mc", 0, "-m", model_file)
    run_script("predict_bayesian.py", "-i", images[0], "--output-dir", out, *flags)
    first = (out / "SKIN_000.png").read_bytes()
    other = ("-o", out / "SKIN_000.png", "--mask-threshold", 0.999)
    run_script("predict_bayesian.py", "-i", images[0] / "SKIN_000.jpg", *other, *flags)
    second = (out / "SKIN_000.png").read_bytes()
    resumed = run_script("predict_bayesian.py", "-i", images[0], "--output-dir", out, "--skip-existing", *flags)
    assert_one_clear_line(resumed, "contains results with threshold = 0.999, but this run has 0.5")
    assert (out / "SKIN_000.png").read_bytes() == second != first


def test_weights_are_hashed_for_a_journal_only(images: tuple[Path, Path], model_file: Path, tmp_path: Path):
    hashing = AssertionError("hashed")

    def run(*flags: object) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainedModel, "fingerprint", Mock(side_effect=hashing))
            words = ["-i", images[0] / "SKIN_000.jpg", "--mc", "0", "-m", model_file, *flags]
            args = predict_bayesian.get_args_parser().parse_args([str(word) for word in words])
            return predict_bayesian.main(args)

    assert run("--no-save") == 0
    for flags in (("-o", tmp_path / "x.png"), ("--output-dir", tmp_path / "o")):
        with pytest.raises(AssertionError, match="hashed"):
            run(*flags)


def test_room_for_the_float32_maps_is_checked(
    images: tuple[Path, Path], model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Those of three passes, and of all statistics, of two classes."""
    out = tmp_path / "o"
    words = ["-i", images[0], "--output-dir", out, "--mc", 3, "--save-prob", "--save-npy", "-m", model_file]
    args = predict_bayesian.get_args_parser().parse_args([str(word) for word in words])
    needed = 3 * 150 * 110 * (3 * 2 + 2 + 2 + 3) * 4
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=needed - 1))
    with pytest.raises(InputError, match="o has room for"):
        predict_bayesian.main(args)
    assert not out.exists()
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=needed))
    assert predict_bayesian.main(args) == 0
    assert sum(path.stat().st_size - 128 for path in out.glob("*.npy")) == needed  # but for their headers


def test_mask_of_another_size_fails_but_not_its_image(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    mask = images[1] / "SKIN_000_Segmentation.png"
    Image.new("L", (5, 5)).save(mask)
    common = ("--mask-dir", images[1], "--output-dir", tmp_path / "o", "--mc", 0, "-m", model_file)
    result = run_script("predict_bayesian.py", "-i", *sorted(images[0].glob("*_00[01].jpg")), *common)
    assert result.returncode == 1
    line = f"{images[0] / 'SKIN_000.jpg'}, not scored: it has 150x110 pixels, its mask {mask} has 5x5"
    assert result.stderr.endswith(f"Error: 1 failed:\n  {line}\n")
    assert {path.stem for path in (tmp_path / "o").glob("*_figure.png")} == {"SKIN_000_figure", "SKIN_001_figure"}


def test_ground_truth_and_figure_of_all_images(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    inputs = [images[0] / f"SKIN_00{i}.jpg" for i in range(2)]
    outputs = [tmp_path / "o" / f"{i}.png" for i in range(2)]
    with Image.open(images[1] / "SKIN_000_Segmentation.png") as mask:
        enlarged = mask.resize((300, 220))
    enlarged.save(images[1] / "SKIN_000_Segmentation.png")
    common = ("--mask-dir", images[1], "--mc", 3, "-m", model_file)
    figure = ("--figure", tmp_path / "all.png")
    result = run_script("predict_bayesian.py", "-i", *inputs, "-o", *outputs, "--save-npy", *common, *figure)
    assert result.returncode == 0, result.stderr
    assert "1 mask was resized to the size of the image" in result.stderr
    assert f"Figure of all images: {tmp_path / 'all.png'}" in result.stderr
    width, height = size_in_inches(tmp_path / "all.png")
    width_of_one, height_of_one = size_in_inches(tmp_path / "o" / "0_figure.png")
    assert width == pytest.approx(width_of_one, abs=0.01)
    assert height > 1.5 * height_of_one
    for i in range(2):
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
    run_script("predict_bayesian.py", "-i", images[0] / "SKIN_002.jpg", "-o", tmp_path / "o" / "2.png", *common)
    with open(tmp_path / "o" / "summary.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3
    (tmp_path / "o" / "summary.csv").write_text("patient,age\n")
    result = run_script("predict_bayesian.py", "-i", inputs[0], "-o", outputs[0], *common)
    assert_one_clear_line(result, "summary.csv is not a summary of predictions")


def test_no_save_writes_nothing(model_file: Path, images: tuple[Path, Path]):
    """Not even the figure that --viz cannot show, and not into the folder of the images."""
    before = sorted(images[0].iterdir())
    result = run_script("predict_bayesian.py", "-i", images[0], "--no-save", "--viz", "--mc", 2, "-m", model_file)
    assert result.returncode == 0, result.stderr
    assert "There is no display to show the figure on" in result.stderr
    assert sorted(images[0].iterdir()) == before


def test_figure_is_not_overwritten_by_a_result(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    arguments = ("-i", images[0] / "SKIN_000.jpg", "-o", tmp_path / "a.png", "-m", model_file)
    for name in ("a_figure.png", "a_prob.png"):
        result = run_script("predict_bayesian.py", *arguments, "--figure", tmp_path / name)
        assert_one_clear_line(result, f"would overwrite {tmp_path / name}")
    assert not list(tmp_path.glob("*.png"))


def test_skip_existing_requires_a_folder(model_file: Path, images: tuple[Path, Path], tmp_path: Path):
    for more in ((), ("--output-dir", tmp_path / "o", "--figure", tmp_path / "all.png")):
        result = run_script("predict_bayesian.py", "-i", images[0], *more, "--skip-existing", "-m", model_file)
        assert_one_clear_line(result, "--skip-existing requires --output-dir and excludes --figure")


def test_figure_that_fails_loses_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no font")

    report = Report()
    monkeypatch.setattr(predict_bayesian, "draw_predictions", fail)
    predict_bayesian.save_row(None, report, "a.jpg", tmp_path / "x_figure.png")
    assert report.failures == [("figure of a.jpg", "RuntimeError: no font")]


def test_seed_and_temperature_reach_the_sampler():
    model = TrainedModel(lively_network(), temperatures={"mc_dropout": 1.7})
    args = predict_bayesian.get_args_parser().parse_args(["-i", "x", "--seed", "5", "--calibrated"])
    sampler = predict_bayesian.sampler_from_args(args, model, None)
    assert (sampler.seed, sampler.temperature) == (5, 1.7)
