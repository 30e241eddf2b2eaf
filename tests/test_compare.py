"""The comparison of methods, and of numbers of passes, as a user runs them."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from tests.conftest import assert_one_clear_line, make_folders, run_module, run_script
from utils.compare import format_table, probability_titles, read_entropy, read_names, read_results
from utils.data.images import save_png
from utils.runtime.errors import InputError


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, model_file: Path) -> Path:
    """Images with masks, and what the three methods have written for them."""
    folder = tmp_path_factory.mktemp("compare")
    imgs, masks = make_folders(folder, 6, (70, 50), seed=300)
    Image.new("L", (70, 50)).save(masks / "SKIN_005_Segmentation.png")  # without a lesion
    common = ["--input-dir", imgs, "--mask-dir", masks, "-m", model_file]
    for method, more in (("direct", ["--save-entropy"]), ("bayesian", ["--mc", 5, "--seed", 3]), ("tta", [])):
        result = run_script(f"predict_prob_{method}.py", *common, "--output-dir", folder / method, *more)
        assert result.returncode == 0, result.stderr
    return folder


def compare(project: Path, out: Path, *more: object):
    folders = ["--imgs-dir", project / "imgs", "--masks-dir", project / "masks", "--output-dir", out]
    return run_module("utils.compare", *(project / m for m in ("direct", "bayesian", "tta")), *folders, *more)


def test_table_and_figures(project: Path, tmp_path: Path):
    result = compare(project, tmp_path / "d", "--rows", 3)
    assert result.returncode == 0, result.stderr
    assert "| softmax | MC dropout, 5 passes | test-time augmentation |" in result.stdout
    assert (tmp_path / "d" / "comparison.md").read_text() == result.stdout
    content = json.loads((tmp_path / "d" / "comparison.json").read_text())
    rows = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in result.stdout.splitlines()[2:]}
    for i, method in enumerate(("direct", "bayesian", "tta")):
        metrics = json.loads((project / method / "metrics.json").read_text())
        assert list(content.values())[i] == metrics
        assert rows["Dice, mean"][i].rstrip(" |") == f"{metrics['segmentation']['dice']['value']:.4f}"
        assert rows["NLL (nats)"][i].rstrip(" |") == f"{metrics['calibration']['nll']['value']:.4f}"
        assert rows["Dice, median"][i].rstrip(" |") == f"{metrics['segmentation']['dice']['median']:.4f}"
        for title in ("Jaccard, mean", "Sensitivity", "Specificity", "Accuracy"):
            name = title.split(",")[0].lower()
            assert rows[title][i].rstrip(" |") == f"{metrics['segmentation'][name]['value']:.4f}"
        for title, name in (("AURC, oracle", "oracle"), ("AURC, random", "random")):
            assert rows[title][i].rstrip(" |") == f"{metrics['selective'][name]['aurc']:.4f}"
    assert rows["AURC, pairwise Dice"][0] == ""  # a single sample has no pairs
    for name in ("reliability", "risk_coverage", "UQ_compare"):
        with Image.open(tmp_path / "d" / f"{name}.png") as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 20

    # The three images are spread evenly over the ranking of the first method.
    ranked = read_names(project / "direct" / "summary.csv")
    assert compare(project, tmp_path / "e", "--images", ranked[0], ranked[2], ranked[5]).returncode == 0
    spread, chosen = (np.asarray(Image.open(tmp_path / folder / "UQ_compare.png")) for folder in "de")
    assert np.array_equal(spread, chosen)


def test_image_whose_mask_does_not_fit_is_not_shown(project: Path, tmp_path: Path, model_file: Path):
    masks = shutil.copytree(project / "masks", tmp_path / "masks")
    Image.new("L", (5, 5)).save(masks / "SKIN_003_Segmentation.png")
    flags = ["--input-dir", project / "imgs", "--mask-dir", masks, "-m", model_file, "--output-dir", tmp_path / "o"]
    assert run_script("predict_prob_direct.py", *flags).returncode == 1
    folders = ["--imgs-dir", project / "imgs", "--masks-dir", masks, "--output-dir", tmp_path / "d"]
    result = run_module("utils.compare", tmp_path / "o", *folders, "--rows", 6)
    assert result.returncode == 0, result.stderr


def test_images_need_a_summary(project: Path):
    with pytest.raises(InputError, match="is missing"):
        read_names(project / "summary.csv")


def test_results_that_cannot_be_compared(project: Path, tmp_path: Path):
    shutil.copytree(project / "direct", tmp_path / "other")
    results = read_results([project / "direct", tmp_path / "other"])
    assert list(results) == [f"softmax ({project / 'direct'})", f"softmax ({tmp_path / 'other'})"]
    assert f"softmax ({tmp_path / 'other'})" in format_table(results)
    with pytest.raises(InputError, match="given twice"):
        read_results([project / "direct", project / "direct"])
    content = json.loads((tmp_path / "other" / "metrics.json").read_text())
    (tmp_path / "other" / "metrics.json").write_text(json.dumps(content | {"images": 5}))
    with pytest.raises(InputError, match=r"of different images: .*direct of 6, .*other of 5"):
        read_results([project / "direct", tmp_path / "other"])
    of_three = content | {"run": content["run"] | {"mask_values": [0, 1, 2], "class_index": 2}}
    (tmp_path / "other" / "metrics.json").write_text(json.dumps(of_three))
    with pytest.raises(InputError, match=r"of different numbers of classes: .*direct of 2, .*other of 3"):
        read_results([project / "direct", tmp_path / "other"])
    assert probability_titles({"a": content, "b": of_three}) == {"a": "Probability", "b": "Probability, class 2"}
    (tmp_path / "other" / "metrics.json").write_text("[1]")
    with pytest.raises(InputError, match="was not written by a predict_prob script"):
        read_results([tmp_path / "other"])
    (tmp_path / "other" / "metrics.json").unlink()
    with pytest.raises(InputError, match="when run with --mask-dir"):
        read_results([tmp_path / "other"])
    result = compare(project, tmp_path / "d", "--images", "nothing.jpg")
    assert_one_clear_line(result, "nothing.jpg: there is no such file")
    assert not (tmp_path / "d").exists()


def test_comparison_is_not_written_among_images_or_masks(project: Path, tmp_path: Path):
    """Nor in a sub-folder of the masks that an image has, too."""
    folders = ["--imgs-dir", project / "imgs", "--masks-dir", project / "masks"]
    deep = shutil.copytree(project / "direct", tmp_path / "deep")
    (deep / "summary.csv").write_text((deep / "summary.csv").read_text().replace("SKIN", "s/SKIN"))
    for results, out, what in (("direct", "imgs", "input"), ("direct", "masks", "mask"), (deep, "masks/s", "mask")):
        result = run_module("utils.compare", project / results, *folders, "--output-dir", project / out)
        assert_one_clear_line(result, f"the output folder is the {what} folder")
        assert not (project / out / "comparison.md").exists()


def test_summary_of_another_run(project: Path, tmp_path: Path):
    """Whose names are not those of the metrics: one clear line, before anything is written."""
    folder = shutil.copytree(project / "direct", tmp_path / "o")
    summary = (folder / "summary.csv").read_text()
    (folder / "summary.csv").write_text(summary.replace("SKIN", f"{project}/imgs/SKIN"))
    folders = ["--imgs-dir", project / "imgs", "--masks-dir", project / "masks", "--output-dir", tmp_path / "d"]
    assert_one_clear_line(run_module("utils.compare", folder, *folders), "summary.csv", "has a mask in")
    assert not (tmp_path / "d").exists()


def test_runs_against_other_masks_are_not_compared(project: Path, tmp_path: Path, model_file: Path):
    """Those of two images are exchanged: there are as many images and pixels."""
    masks = shutil.copytree(project / "masks", tmp_path / "masks")
    first, second = sorted(masks.iterdir())[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    common = ["--input-dir", project / "imgs", "-m", model_file, "--output-dir", tmp_path / "o"]
    for folder in (masks, project / "masks"):
        assert run_script("predict_prob_direct.py", *common, "--mask-dir", folder).returncode == 0
        if folder == masks:
            with pytest.raises(InputError, match="or were compared with different masks"):
                read_results([project / "bayesian", tmp_path / "o"])
    assert len(read_results([project / "bayesian", tmp_path / "o"])) == 2


def test_entropy_of_a_figure(tmp_path: Path):
    """The saved map, in nats, or that of the probability."""
    save_png(tmp_path / "a_OUT.png", np.array([[0, 51, 255]], np.uint8))
    save_png(tmp_path / "a_OUT_entropy.png", np.array([[0, 51, 255]], np.uint8))
    probability, whole = np.array([[0, 0.2, 1]]), (slice(None), slice(None))

    def read(n_classes: int, save_entropy: bool) -> list[float]:
        run = {"mask_values": [*range(n_classes)], "save_entropy": save_entropy}
        return read_entropy(tmp_path / "a_OUT.png", probability, run, whole)[0].tolist()

    assert read(3, save_entropy=True) == pytest.approx([0, math.log(3) / 5, math.log(3)])
    assert read(2, save_entropy=False) == pytest.approx([0, scipy.stats.entropy([0.2, 0.8]), 0], abs=1e-6)
    with pytest.raises(InputError, match=r"a_OUT_entropy\.png is missing: with more than two classes"):
        read(3, save_entropy=False)


def test_last_passes_agree_with_the_batch_script(project: Path, tmp_path: Path, model_file: Path):
    masks = shutil.copytree(project / "masks", tmp_path / "masks")
    name = min(path.name for path in masks.iterdir())
    with Image.open(project / "masks" / name) as mask:
        mask.resize((3 * mask.width, 3 * mask.height), Image.Resampling.NEAREST).save(masks / name)
    common = ["--input-dir", project / "imgs", "--mask-dir", masks, "-m", model_file]
    result = run_module("utils.passes", *common, "--output-dir", tmp_path, "--mc", 5, "--seed", 3)
    assert result.returncode == 0, result.stderr
    assert "1 mask was resized to the size of the image" in result.stderr
    with open(tmp_path / "passes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["T"] for row in rows] == ["1", "2", "3", "4", "5"]
    metrics = json.loads((project / "bayesian" / "metrics.json").read_text())
    assert float(rows[-1]["mean Dice"]) == pytest.approx(metrics["segmentation"]["dice"]["value"], abs=1e-4)
    assert float(rows[-1]["NLL (nats)"]) == pytest.approx(metrics["calibration"]["nll"]["value"], abs=1e-5)
    ece = metrics["calibration"]["ece_top_label"]["value"]
    assert float(rows[-1]["ECE, top-label"]) == pytest.approx(ece, abs=1e-5)
    aurc = metrics["selective"]["soft_dice_confidence"]["aurc"]["value"]
    assert float(rows[-1]["AURC"]) == pytest.approx(aurc, abs=1e-4)
    assert (tmp_path / "passes.png").is_file()
    result = run_module("utils.passes", *common[:2], "--output-dir", tmp_path, "-m", model_file)
    assert_one_clear_line(result, "the following arguments are required: --mask-dir")
    result = run_module("utils.passes", *common, "--output-dir", tmp_path, "--skip-existing")
    assert_one_clear_line(result, "unrecognized arguments: --skip-existing")  # it would keep nothing


def test_passes_without_a_pixel_that_counts(project: Path, tmp_path: Path, model_file: Path):
    (tmp_path / "masks").mkdir()
    for path in (project / "masks").iterdir():
        with Image.open(path) as mask:
            Image.new("L", mask.size, 7).save(tmp_path / "masks" / path.name)
    folders = ["--input-dir", project / "imgs", "--mask-dir", tmp_path / "masks", "--output-dir", tmp_path / "out"]
    result = run_module("utils.passes", *folders, "-m", model_file, "--ignore-value", 7, "--mc", 2, "--quiet")
    assert (result.returncode, result.stdout) == (2, "")
    assert "masks have no pixel that counts: there is nothing to evaluate" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_metrics_of_an_earlier_version(project: Path, tmp_path: Path):
    """Whose reliability bins had another name: one clear line before anything is written."""
    folder = tmp_path / "old"
    shutil.copytree(project / "direct", folder)
    text = (folder / "metrics.json").read_text()
    (folder / "metrics.json").write_text(text.replace('"positives"', '"hits"'))
    with pytest.raises(InputError, match="was not written by a predict_prob script of this version"):
        read_results([folder])


def test_background_probabilities(project: Path, tmp_path: Path, model_file: Path):
    flags = ["--input-dir", project / "imgs", "--mask-dir", project / "masks", "-m", model_file, "--class-index", 0]
    result = run_script("predict_prob_direct.py", *flags, "--output-dir", tmp_path / "background")
    assert result.returncode == 0, result.stderr
    with pytest.raises(InputError, match="contains background probabilities: predict with --class-index 1"):
        read_results([tmp_path / "background"])
