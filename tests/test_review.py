"""The review page as it is written: what is read of a run, what is in the page, the flags."""

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, assert_one_clear_line, make_folders, run_module, run_script
from tests.review_runs import SAMPLE_NAMES, SAMPLES, sample_probabilities, sample_run, write_run
from tests.test_output_folder import needs_fork, run_in
from utils.data.images import IMAGE_EXTENSIONS, save_png
from utils.data.mask_values import RGB_OFFSET
from utils.data.masks import mask_to_image
from utils.metrics.segmentation import segmentation_scores
from utils.pipeline.items import Item, find_items
from utils.review_page.page import MAX_EMBEDDED, TEMPLATE, ReviewOptions, describe_score, write_review
from utils.review_page.pictures import PictureMaker
from utils.review_page.runs import ResultFiles, fingerprint, mask_values_of, read_run, read_runs
from utils.runtime.errors import InputError


def data_of(page: Path) -> dict[str, Any]:
    """The data in a page."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"))[1])


def maps_of(page: Path, index: int) -> dict[str, Any]:
    """The maps of an image in the folder of pictures beside a page."""
    text = (page.parent / data_of(page)["folder"] / f"{index:05d}_maps.js").read_text(encoding="utf-8")
    return json.loads(re.fullmatch(rf"receiveMaps\({index}, (.*)\);\n", text)[1])


def decoded(packed: str, maps: dict[str, Any]) -> np.ndarray:
    """The (h, w) values of a map."""
    differences = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
    return np.cumsum(differences, dtype=np.uint8).reshape(maps["height"], maps["width"])


def images_of(folder: Path, *names: str, size: tuple[int, int] = (8, 6)) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (200, 160, 140)).save(folder / name)
    return folder


def scores_of(data: dict[str, Any], index: int, method: int = 0) -> dict[str, float]:
    names = [score["name"] for score in data["scores"]]
    return dict(zip(names, data["images"][index]["scores"][method], strict=True))


# -- the content -------------------------------------------------------------------------------------------------------


def test_page_of_the_samples(tmp_path: Path):
    run = sample_run(tmp_path / "run", layers={"entropy": sample_probabilities(0)})
    page, report = write_review([run], SAMPLES / "imgs", ReviewOptions(SAMPLES / "masks"))
    assert page == run / "review.html"
    assert not report.failures
    data = data_of(page)
    assert [image["name"] for image in data["images"]] == SAMPLE_NAMES  # the least certain first
    assert data["missing"] == []
    for i, name in enumerate(SAMPLE_NAMES):
        maps, probs = maps_of(page, i), sample_probabilities(i)
        with Image.open(SAMPLES / "masks" / f"{Path(name).stem}_Segmentation.png") as mask:
            truth = (np.asarray(mask) > 0).astype(np.uint8)
        assert np.array_equal(decoded(maps["runs"][0]["probability_c1"], maps), probs)  # 512 pixels are kept
        assert np.array_equal(decoded(maps["runs"][0]["entropy"], maps), sample_probabilities(0))
        assert np.array_equal(decoded(maps["truth"][0], maps), 255 * truth)
        scores = scores_of(data, i)
        assert scores["dice"] == pytest.approx(segmentation_scores(probs > 127, truth)["dice"], abs=1e-4)
        assert scores["soft_dice_confidence"] == pytest.approx(0.5 + i / 100)
        with Image.open(page.parent / data["folder"] / f"{i:05d}_photo.jpg") as photo:
            assert photo.size == (512, 384)


def test_scores_have_more_digits_than_are_shown(tmp_path: Path):
    """0.9795, of five digits, would be shown as 0.980, where the files and figures say 0.979."""
    scores = {"a.png": {"soft_dice_confidence": 0.97949512}}
    run = write_run(tmp_path / "run", {"a.png": np.zeros((6, 8), np.uint8)}, scores=scores)
    page, _ = write_review([run], images_of(tmp_path / "imgs", "a.png"))
    assert scores_of(data_of(page), 0)["soft_dice_confidence"] == 0.97949512


def test_pictures_of_large_images_are_reduced(tmp_path: Path):
    imgs = images_of(tmp_path / "imgs", "a.png", size=(2400, 1200))
    values = np.zeros((1200, 2400), np.uint8)
    values[:, 1200:] = 255
    page, _ = write_review([write_run(tmp_path / "run", {"a.png": values})], imgs)
    maps, data = maps_of(page, 0), data_of(page)
    assert (maps["width"], maps["height"]) == (512, 256)
    assert np.array_equal(decoded(maps["runs"][0]["probability_c1"], maps), np.tile(np.repeat([0, 255], 256), (256, 1)))
    assert data["images"][0]["size"] == [2400, 1200]
    for end, size in (("photo", (1000, 500)), ("0", (240, 120))):
        with Image.open(page.parent / data["folder"] / f"00000_{end}.jpg") as picture:
            assert picture.size == size
    with Image.open(page.parent / data["folder"] / "00000_0.jpg") as small:
        row = np.asarray(small)[60].astype(int)
    assert np.flatnonzero(abs(row - row[10]).sum(axis=1) > 60).tolist() in ([119, 120, 121], [118, 119, 120, 121])


def test_masks_of_several_classes(tmp_path: Path):
    """By the values that the run has recorded; the ground truth ignores some pixels."""
    imgs = images_of(tmp_path / "imgs", "a.png", "b.png", "c.png")
    masks = {"a.png": np.zeros((6, 8), np.uint8), **{f"{name}.png": np.full((6, 8), 7, np.uint8) for name in "bc"}}
    masks["a.png"][:3, :4], masks["a.png"][3:, 4:] = 3, 7
    truth = masks["a.png"].copy()
    truth[:3, 4:] = 255
    (tmp_path / "truth").mkdir()
    Image.fromarray(truth).save(tmp_path / "truth" / "a.png")
    Image.fromarray(np.full_like(truth, 255)).save(tmp_path / "truth" / "c.png")
    settings = {"threshold": 0.5, "mask_values": [0, 3, 7], "ignore_value": 255}
    run = read_run(write_run(tmp_path / "run", masks, settings), imgs)
    assert mask_values_of([run]) == [[0, 3, 7]]
    page, report = write_review([tmp_path / "run"], imgs, ReviewOptions(tmp_path / "truth"))
    assert not report.failures
    maps, data = maps_of(page, 0), data_of(page)
    assert [*maps["runs"][0]] == ["mask_c1", "mask_c2"]
    assert np.array_equal(decoded(maps["runs"][0]["mask_c2"], maps), 255 * (masks["a.png"] == 7))
    assert np.array_equal(decoded(maps["ignored"], maps), 255 * (truth == 255))
    assert scores_of(data, 0)["dice_c1"] == 1
    assert scores_of(data, 1)["dice_c1"] is None  # has no ground truth
    assert scores_of(data, 2)["dice_c1"] is None  # of which no pixel counts
    assert (data["classes"], len(data["colours"]["classes"]), run.title) == (3, 2, "softmax")


def test_a_value_ignored_in_other_masks(tmp_path: Path):
    """255 was ignored beside labels of 0 and 1; here it is the lesion."""
    imgs, classes = images_of(tmp_path / "imgs", "a.png"), np.zeros((6, 8), np.uint8)
    classes[:3] = 1
    settings = {"threshold": 0.5, "mask_values": [0, 1], "ignore_value": 255, "mask_dir": str(tmp_path / "labels")}
    write_run(tmp_path / "run", {"a.png": classes}, settings)
    (tmp_path / "truth").mkdir()
    Image.fromarray(255 * np.roll(classes, 1, axis=0)).save(tmp_path / "truth" / "a.png")
    page, _ = write_review([tmp_path / "run"], imgs, ReviewOptions(tmp_path / "truth"))
    assert scores_of(data_of(page), 0)["dice"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("order", [1, -1])
def test_a_value_that_one_of_several_runs_has_ignored(order: int, tmp_path: Path):
    """The other one was not compared. Without either the user says it."""
    imgs, classes = images_of(tmp_path / "imgs", "a.png"), np.zeros((6, 8), np.uint8)
    classes[:3] = 255
    truth = np.roll(classes, 1, axis=0)
    truth[4:] = 128
    classes[5] = 255
    save_png(tmp_path / "truth" / "a.png", truth)
    settings = {"threshold": 0.5, "mask_values": [0, 255]}
    plain = write_run(tmp_path / "plain", {"a.png": classes}, settings)
    compared = settings | {"ignore_value": 128, "mask_dir": str(tmp_path / "truth")}
    both = [plain, write_run(tmp_path / "compared", {"a.png": classes}, compared)]
    page, _ = write_review(both[::order], imgs, ReviewOptions(tmp_path / "truth"))
    for i in range(2):
        assert scores_of(data_of(page), 0, i)["dice"] == pytest.approx(2 / 3)
    for ignore_value, dice in ((None, 4 / 7), (128, 2 / 3)):
        page, _ = write_review([plain], imgs, ReviewOptions(tmp_path / "truth", ignore_value=ignore_value))
        assert scores_of(data_of(page), 0)["dice"] == pytest.approx(dice)


def test_scores_of_other_ignored_pixels_are_left_out(tmp_path: Path):
    """Of a run that ignored nothing, or that a model has recorded as ignored, which the other run does not say."""
    imgs, classes = images_of(tmp_path / "imgs", "a.png"), np.zeros((6, 8), np.uint8)
    classes[:3] = 255
    save_png(tmp_path / "truth" / "a.png", np.where(np.eye(6, 8, dtype=bool), 128, classes).astype(np.uint8))
    settings, scores = {"class_index": 1, "mask_dir": str(tmp_path / "truth")}, {"a.png": {"dice": 0.9, "nll": 0.25}}
    runs = [
        write_run(tmp_path / str(i), {"a.png": classes}, settings | {"ignore_value": value}, scores=scores)
        for i, value in enumerate((128, None))
    ]
    page, _ = write_review(runs, imgs, ReviewOptions(tmp_path / "truth"))
    shown = [scores_of(data_of(page), 0, i) for i in range(2)]
    assert [(one["dice"], one.get("nll")) for one in shown] == [(1, 0.25), (1, None)]
    page, _ = write_review(runs, imgs, ReviewOptions(tmp_path / "truth", ignore_value=7))
    assert "nll" not in scores_of(data_of(page), 0)
    recorded = {"threshold": 0.5, "model_ignore_value": 128}
    plain = [write_run(tmp_path / f"p{i}", {"a.png": classes}, recorded if i else {"threshold": 0.5}) for i in range(2)]
    page, _ = write_review(plain, imgs, ReviewOptions(tmp_path / "truth"))
    assert scores_of(data_of(page), 0)["dice"] == 1


def test_scores_against_masks_that_have_changed_are_left_out(model_file: Path, tmp_path: Path):
    imgs, masks = make_folders(tmp_path, 2, (48, 40))
    flags = ["--input-dir", imgs, "--mask-dir", masks, "-m", model_file, "--output-dir", tmp_path / "o"]
    assert run_script("predict_prob_direct.py", *flags).returncode == 0
    Image.new("L", (48, 40)).save(masks / "SKIN_001_Segmentation.png")
    page, _ = write_review([tmp_path / "o"], imgs, ReviewOptions(masks))
    data = data_of(page)
    scores = {image["name"]: scores_of(data, i) for i, image in enumerate(data["images"])}
    assert [scores[f"SKIN_00{i}.jpg"]["nll"] is None for i in range(2)] == [False, True]
    assert scores["SKIN_001.jpg"]["specificity"] < 1  # that is measured


@pytest.mark.parametrize("ending", [".html", ".htm", ".Html"])
def test_pictures_of_a_page_are_no_images(ending: str, tmp_path: Path):
    imgs = images_of(tmp_path / "imgs", "a.png")
    run = write_run(tmp_path / "run", {"a.png": np.full((6, 8), 200, np.uint8)})
    write_review([run], imgs, ReviewOptions(output=imgs / f"page{ending}"))
    assert [item.key for item in find_items(imgs, tmp_path / "o", IMAGE_EXTENSIONS, recursive=True)] == ["a.png"]


@pytest.mark.parametrize("values", [[0, 1, 2], [0, 127, 255], [0, RGB_OFFSET + 0xFF0000, 255]])
def test_masks_as_they_are_written(values: list[int], tmp_path: Path):
    """Labels with a palette, grey values, colours."""
    imgs, classes = images_of(tmp_path / "imgs", "a.png"), np.zeros((6, 8), np.uint8)
    classes[:3, :4], classes[3:, 4:] = 1, 2
    run = write_run(tmp_path / "run", {"a.png": classes}, {"threshold": 0.5, "mask_values": values})
    save_png(run / "a_OUT.png", mask_to_image(classes, values))
    read = read_run(run, imgs)
    assert mask_values_of([read]) == [values]
    maps = PictureMaker([read], [values]).make(Item(imgs / "a.png", Path("a.png"))).maps
    for k in (1, 2):
        assert np.array_equal(decoded(maps["runs"][0][f"mask_c{k}"], maps), 255 * (classes == k))


def test_masks_with_a_guarantee(tmp_path: Path):
    """Those of the run, if it has any."""
    imgs, regions = images_of(tmp_path / "imgs", "a.png"), np.zeros((2, 6, 8), np.uint8)
    regions[0, 1:5], regions[1, 2:4] = 255, 255
    layers = {"outer": regions[0], "inner": regions[1]}
    guarantee = {"level": 0.9, "outer": 0.2, "inner": 0.8, "images": 37, "temperature": 1.0}
    for settings in ({"class_index": 1, "guarantee": guarantee}, {"threshold": 0.5, "guarantee": guarantee}, {}):
        run = write_run(tmp_path / "run", {"a.png": regions[0]}, settings, layers if settings else {})
        page, _ = write_review([run], imgs)
        maps, data = maps_of(page, 0), data_of(page)
        assert data["methods"][0]["guarantee"] == ({"level": 0.9, "images": 37, "groups": None} if settings else None)
        if settings:  # whose calibration images were in groups
            run = write_run(tmp_path / "run", {"a.png": regions[0]}, {"guarantee": guarantee | {"groups": 9}}, layers)
            data = data_of(write_review([run], imgs)[0])
            assert data["methods"][0]["guarantee"] == {"level": 0.9, "images": 37, "groups": 9}
        assert ({"outer", "inner"} & {*maps["runs"][0]}) == ({"outer", "inner"} if settings else set())
        for name in layers if settings else ():
            assert np.array_equal(decoded(maps["runs"][0][name], maps), layers[name])
        colours = data["colours"]
        assert len({colours[name] for name in ("outer", "inner", "prediction", "truth")}) == 4


def test_several_runs_side_by_side(tmp_path: Path):
    values = np.full((6, 8), 200, np.uint8)
    imgs = images_of(tmp_path / "imgs", "a.png", "sub/b.png")
    one = write_run(tmp_path / "one", {"a.png": values, "sub/b.png": values})
    two = write_run(tmp_path / "two", {"a.png": values // 2})
    page, _ = write_review([one, two], imgs)
    data = data_of(page)
    assert [method["title"] for method in data["methods"]] == [
        f"MC dropout, 4 passes ({folder})" for folder in (one, two)
    ]
    assert data["images"][1]["scores"][1] is None
    assert maps_of(page, 1)["runs"][1] == {}
    assert not (page.parent / data["folder"] / "00001_1.jpg").exists()
    with pytest.raises(InputError, match="given twice"):
        read_runs([one, one], imgs)
    other = write_run(tmp_path / "other", {"c.png": values})
    with pytest.raises(InputError, match="of different images"):
        read_runs([one, other], imgs)
    assert fingerprint(read_runs([one, two], imgs)) != fingerprint(read_runs([two, one], imgs))


def test_runs_with_other_mask_values(tmp_path: Path):
    """Each is read with its own."""
    imgs, masks = images_of(tmp_path / "imgs", "a.png", "b.png"), tmp_path / "masks"
    classes = np.zeros((6, 8), np.uint8)
    classes[:3, :4] = 1
    for name in ("a.png", "b.png"):
        save_png(masks / name, 255 * classes)
    runs = []
    for values, settings in (
        ([0, 255], {"threshold": 0.5, "mask_values": [0, 255]}),
        ([0, 1], {"threshold": 0.5, "mask_values": [0, 1]}),
        ([255, 0], {"threshold": 0.5, "mask_values": [255, 0]}),
    ):
        runs.append(tmp_path / f"run{len(runs)}")
        pixels = np.array(values, np.uint8)[classes]
        write_run(runs[-1], {"a.png": pixels, "b.png": pixels}, settings)
    page, _ = write_review(runs, imgs, ReviewOptions(masks))
    assert [scores_of(data_of(page), 0, method)["dice"] for method in range(3)] == [1, 1, 1]
    maps = maps_of(page, 0)
    for of_run in maps["runs"]:
        assert np.array_equal(decoded(of_run["mask_c1"], maps), 255 * classes)

    three = write_run(tmp_path / "three", {"a.png": classes}, {"threshold": 0.5, "mask_values": [0, 1, 2]})
    with pytest.raises(InputError, match=r"three has 3 classes, .*run0 2: they do not fit on one page"):
        write_review([runs[0], three], imgs)


def test_scores_are_those_against_the_ground_truth_of_the_page(tmp_path: Path):
    """Not those against another one, which the run has recorded."""
    imgs, values = images_of(tmp_path / "imgs", "a.png", "b.png"), np.zeros((6, 8), np.uint8)
    values[:3] = 200
    for folder, truth in (("masks", values), ("others", np.roll(values, 1, axis=0))):
        save_png(tmp_path / folder / "a.png", truth // 200 * 255)
    recorded = {"dice": 1.0, "ece_top_label": 0.01}
    settings = {"class_index": 1, "mask_values": [0, 255], "mask_dir": str(tmp_path / "x" / ".." / "masks")}
    scores = {"a.png": recorded, "b.png": recorded}
    for name, mask_dir, suffix, expected in (
        ("same", "masks", None, (1, 0.01, 1)),
        ("other", "others", None, (2 / 3, None, None)),
        ("suffix", "masks", "", (1, None, None)),
        ("none", None, None, (1, 0.01, 1)),
    ):
        run = write_run(tmp_path / name, {"a.png": values, "b.png": values}, settings, scores=scores)
        page, _ = write_review([run], imgs, ReviewOptions(mask_dir and tmp_path / mask_dir, suffix))
        first, second = (scores_of(data_of(page), i) for i in range(2))
        shown = first["dice"], first.get("ece_top_label"), second.get("dice")
        assert shown == (pytest.approx(expected[0]), *expected[1:]), name


def test_maps_of_predict_bayesian(tmp_path: Path):
    """Beside a mask NAME.png, of images that the journal names by their paths."""
    imgs = images_of(tmp_path / "imgs", "a.png")
    run, values = tmp_path / "run", np.full((6, 8), 100, np.uint8)
    ends = (*(f"prob_c{k}" for k in (1, 2, 3)), "std_c1", "figure", "mc00_c1")
    write_run(run, {"a.png": values}, {}, dict.fromkeys(ends, values))
    for path in run.glob("a_OUT*"):
        path.rename(path.with_name(path.name.replace("_OUT", "")))
    journal = (run / ".progress-0.jsonl").read_text().replace("_OUT", "")
    for named in (str(imgs / "a.png"), "elsewhere/a.png"):
        (run / ".progress-0.jsonl").write_text(journal.replace('"image": "a.png"', f'"image": "{named}"'))
        files = read_run(run, imgs).files("a.png")
        assert files.mask == run / "a.png"
        assert {k: path.name for k, path in files.probs.items()} == {k: f"a_prob_c{k}.png" for k in (1, 2, 3)}
        assert [*files.layers] == ["std_c1"]


def test_what_another_run_has_left_is_not_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Its maps, its scores, its images, and its masks of other names."""
    imgs, values = images_of(tmp_path / "imgs", "a.png", "b.png"), np.full((6, 8), 200, np.uint8)
    names = ("std", "entropy", "prob_c1", "outer", "inner")
    earlier = write_run(tmp_path / "run", {"a.png": values, "b.png": values}, {}, dict.fromkeys(names, values))
    journal = (earlier / ".progress-0.jsonl").read_text()
    (earlier / "metrics.csv").write_text("image,dice\na.png,0.25\n")
    run = write_run(tmp_path / "run", {"a.png": values}, {"class_index": 1, "guarantee": {"level": 0.9, "images": 9}})
    (run / "a.png").touch()
    (run / ".progress-0.jsonl").write_text(journal + (run / ".progress-0.jsonl").read_text())
    read = read_run(run, imgs)
    assert {name: "dice" in scores for name, scores in read.scores.items()} == {"a.png": False}
    assert read.files("a.png") == ResultFiles(None, {1: run / "a_OUT.png"}, {}, {})
    assert f"of an earlier run, or of no image in {imgs}: 1 other result in {run}, such as of b.png" in caplog.text


# -- the page ----------------------------------------------------------------------------------------------------------


def test_page_reaches_nothing_and_holds_no_markup_of_others(tmp_path: Path):
    hostile = "x\"'<img src=x onerror=alert(1)><!--{{script}}#%20ü😀.png"
    imgs = images_of(tmp_path / "imgs", hostile)
    run = write_run(tmp_path / "run", {hostile: np.full((6, 8), 200, np.uint8)})
    (run / "metrics.csv").write_text(f'image,dice\n"{hostile.replace(chr(34), chr(34) * 2)}",<b>\n', encoding="utf-8")
    for single_file in (False, True):
        page, _ = write_review([run], imgs, ReviewOptions(output=tmp_path / "p.html", single_file=single_file))
        text = page.read_text(encoding="utf-8")
        assert data_of(page)["images"][0]["name"] == hostile
        assert "<img src=x" not in text
        assert "<!--" not in text.split("<script")[1]
        policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)[1]
        assert policy.startswith("default-src 'none'; img-src data:")
        assert ("file:" in policy) != single_file
        assert not re.search(r"unsafe|https?:|\*", policy)
    files = [path.read_text(encoding="utf-8") for path in TEMPLATE.iterdir()]
    assert {link for text in files for link in re.findall(r"https?://[^\s\"']+", text)} == {
        "http://www.w3.org/2000/svg"
    }
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", "".join(files))
    assert all(text.count("\n") < 300 for text in files)


def test_pictures_of_an_earlier_page_are_removed(tmp_path: Path):
    imgs = images_of(tmp_path / "imgs", "a.png", "b.png")
    values = np.full((6, 8), 200, np.uint8)
    run = write_run(tmp_path / "run", {"a.png": values, "b.png": values})
    page, _ = write_review([run], imgs)
    first = data_of(page)
    (page.parent / "review_files" / "mine").mkdir()
    (page.parent / "review_files" / ".unfinished").mkdir()  # of an interrupted run
    (page.parent / "review_files" / ".unfinished" / "00007_maps.js").touch()
    write_run(run, {"a.png": values, "b.png": values}, scores={"a.png": {"soft_dice_confidence": 0.9}})
    write_review([run], imgs)
    second = data_of(page)
    assert second["fingerprint"] != first["fingerprint"]
    assert [image["name"] for image in second["images"]] == ["b.png", "a.png"]
    folders = {path.name for path in (page.parent / "review_files").iterdir()}
    assert folders == {"mine", Path(second["folder"]).name}
    assert len(list((page.parent / second["folder"]).iterdir())) == 6
    write_review([run], imgs)  # the same again
    assert data_of(page) == second


@needs_fork
def test_one_page_is_written_by_one_run_at_a_time(tmp_path: Path):
    """Both would write into the same folder of pictures."""
    imgs = images_of(tmp_path / "imgs", "a.png")
    run = write_run(tmp_path / "run", {"a.png": np.full((6, 8), 200, np.uint8)})
    with run_in(run / "review_files"):
        with pytest.raises(InputError, match=r"review_files is being written by another run"):
            write_review([run], imgs)
        write_review([run], imgs, ReviewOptions(output=tmp_path / "another.html"))
    page, _ = write_review([run], imgs)
    assert [path.name for path in (run / "review_files").iterdir()] == [Path(data_of(page)["folder"]).name]


def test_images_that_cannot_be_shown_are_listed(tmp_path: Path):
    imgs = images_of(tmp_path / "imgs", "a.png", "b.png", "c.png", "not predicted.png")
    values = np.full((6, 8), 200, np.uint8)
    run = write_run(tmp_path / "run", {"a.png": values, "b.png": values[:, 1:], "c.png": values, "gone.png": values})
    (imgs / "c.png").write_bytes(b"broken")
    page, report = write_review([run], imgs)
    assert [name for name, _ in report.failures] == ["b.png", "c.png", "gone.png"]
    missing = dict(data_of(page)["missing"])
    assert [image["name"] for image in data_of(page)["images"]] == ["a.png"]
    assert re.fullmatch(r"it has 8x6 pixels, its result .*b_OUT.png 7x6", missing["b.png"])
    assert missing["c.png"].startswith("c.png cannot be read as an image")
    assert "there is no such file" in missing["gone.png"]
    assert missing["not predicted.png"] == "no result in this run"
    sub = write_run(imgs / "run", {"sub/d.png": values})  # folders of results are not searched
    images_of(imgs, "sub/d.png", "sub/d_OUT_prob_c1.png")
    page, _ = write_review([sub], imgs, ReviewOptions(output=imgs / "page.html"))
    write_review([sub], imgs, ReviewOptions(output=imgs / "page.html"))
    assert [name for name, _ in data_of(page)["missing"]] == ["a.png", "b.png", "c.png", "not predicted.png"]
    with pytest.raises(InputError, match=r"none of the 4 images in .* can be shown: a.png: .*no such file"):
        write_review([run], images_of(tmp_path / "others", "z.png"))


def test_images_that_were_named_from_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As by predict_bayesian.py; the page is then made from within the folder of the images."""
    imgs = images_of(tmp_path / "imgs", "a.png")
    run = write_run(
        tmp_path / "run", {f"imgs/{name}": np.full((6, 8), 200, np.uint8) for name in ("a.png", "gone.png")}
    )
    for place, folder in ((tmp_path, "imgs"), (imgs, ".")):
        monkeypatch.chdir(place)
        found = read_run(run, Path(folder))
        assert "a.png" in found.scores
        assert any(name.endswith("gone.png") for name in found.scores)
    monkeypatch.chdir(tmp_path)
    below = write_run(
        tmp_path / "below", {name: np.full((6, 8), 200, np.uint8) for name in ("imgs/s/a.png", "imgs/a.png")}
    )
    assert read_run(below, Path("imgs")).scores.keys() == {"a.png", "s/a.png"}  # of which one has been removed


def test_only_images_are_listed_as_without_result(tmp_path: Path):
    """Neither masks that the run knows, nor results of other runs, nor files of types that it was not to predict."""
    imgs = images_of(tmp_path / "imgs", "a.png", "a_mask.png", "b.png", "b_mask.png", "c.bmp", "s/d.png", "s/e.png")
    values = np.full((6, 8), 200, np.uint8)
    write_run(imgs / "out", {"s/d.png": values})
    settings = {"method": "softmax", "class_index": 1, "mask_values": [0, 255]}
    for ext, expected in ((None, ["b.png", "c.bmp", "s/e.png"]), ([".png"], ["b.png", "s/e.png"])):
        run_of = {**settings, "mask_dir": str(imgs), "mask_suffix": None, "ext": ext}
        page, _ = write_review([write_run(imgs / "out2", {"a.png": values, "s/d.png": values}, run_of)], imgs)
        assert [name for name, _ in data_of(page)["missing"]] == expected


def test_image_whose_mask_does_not_fit_is_shown(tmp_path: Path):
    imgs = images_of(tmp_path / "imgs", "a.png", "b.png")
    masks = images_of(tmp_path / "masks", "a.png", "b.png")
    Image.new("L", (3, 5)).save(masks / "b.png")
    run = write_run(tmp_path / "run", dict.fromkeys(("a.png", "b.png"), np.full((6, 8), 200, np.uint8)))
    page, report = write_review([run], imgs, ReviewOptions(masks))
    (failure,) = report.failures
    assert failure == ("b.png, not scored", f"it has 8x6 pixels, its mask {masks / 'b.png'} has 3x5")
    assert [image["name"] for image in data_of(page)["images"]] == ["a.png", "b.png"]
    assert data_of(page)["missing"] == []
    assert [bool(maps_of(page, i)["truth"]) for i in range(2)] == [True, False]


def test_what_is_refused(tmp_path: Path):
    imgs = images_of(tmp_path / "imgs", "a.png")
    values = np.full((6, 8), 200, np.uint8)
    run = write_run(tmp_path / "run", {"a.png": values})
    with pytest.raises(
        InputError, match=r"imgs has no .progress-0.jsonl with results: the output folder of a prediction was expected"
    ):
        write_review([imgs], imgs)
    with pytest.raises(InputError, match=r"page .*page.txt: a file name that ends with .html was expected"):
        write_review([run], imgs, ReviewOptions(output=tmp_path / "page.txt"))
    (tmp_path / "index.html").write_text("<!doctype html><title>Of the user</title>")
    for single_file in (False, True):
        with pytest.raises(
            InputError, match=r"index.html is not a review page, and would be overwritten: move it away"
        ):
            write_review([run], imgs, ReviewOptions(output=tmp_path / "index.html", single_file=single_file))
        write_review([run], imgs, ReviewOptions(output=tmp_path / "own.html", single_file=single_file))
    assert (tmp_path / "index.html").read_text() == "<!doctype html><title>Of the user</title>"
    background = write_run(tmp_path / "background", {"a.png": values}, {"class_index": 0})
    with pytest.raises(InputError, match="contains background probabilities"):
        read_run(background, imgs)
    many = write_run(tmp_path / "many", {f"{i}.png": values[:1, :1] for i in range(MAX_EMBEDDED + 1)})
    with pytest.raises(InputError, match="201 images do not fit into a single file, which holds 200"):
        write_review([many], imgs, ReviewOptions(single_file=True))


def test_file_in_the_way_of_the_pictures(model_file: Path, tmp_path: Path):
    """Is named before anything is predicted."""
    imgs, run = images_of(tmp_path / "imgs", "a.png"), tmp_path / "run"
    write_run(run, {"a.png": np.full((6, 8), 200, np.uint8)})
    (run / "review_files").touch()
    message = f"{run / 'review_files'} is in the way of the page's folder of pictures: move it away"
    with pytest.raises(InputError, match=re.escape(message)):
        write_review([run], imgs)
    write_review([run], imgs, ReviewOptions(single_file=True))
    before = (run / "a_OUT.png").read_bytes()
    result = run_script("predict.py", "--input-dir", imgs, "--output-dir", run, "-m", model_file, "--review")
    assert_one_clear_line(result, message)
    assert (run / "a_OUT.png").read_bytes() == before
    for single_file in (False, True):
        with pytest.raises(InputError, match=r"cannot be created|is a file"):
            write_review([run], imgs, ReviewOptions(output=run / "a_OUT.png" / "p.html", single_file=single_file))


def test_scores_are_described():
    assert describe_score("mean_entropy") == {
        "name": "mean_entropy",
        "title": "mean entropy",
        "sign": -1,
        "measured": False,
        "unit": "nats",
        "bounded": False,
    }
    assert describe_score("dice_c2")["title"] == "Dice, class 2"
    signs = {"soft_dice_confidence": 1, "area_variation": -1, "dice": 1, "nll": -1, "error_auroc": 1, "area": 1}
    assert {name: describe_score(name)["sign"] for name in signs} == signs


def test_unreadable_result_is_the_failure_of_its_image(tmp_path: Path):
    imgs = images_of(tmp_path / "imgs", "a.png")
    run = write_run(tmp_path / "run", {"a.png": np.full((6, 8), 200, np.uint8)})
    (run / "a_OUT.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"a_OUT\.png cannot be read as an image"):
        PictureMaker(read_runs([run], imgs), [[0, 255]]).make(Item(imgs / "a.png", Path("a.png")))


# -- the commands ------------------------------------------------------------------------------------------------------


def test_scripts_write_the_page_themselves(model_file: Path, tmp_path: Path):
    imgs, masks = make_folders(tmp_path, 2, (64, 48))
    (imgs / "SKIN_009.jpg").write_bytes(b"broken")
    common = ["--mask-dir", masks, "-m", model_file, "--review"]
    for script, flags in (
        ("predict.py", ["--input-dir", imgs]),
        ("predict_prob_bayesian.py", ["--input-dir", imgs, "--mc", 2, "--save-entropy"]),
        ("predict_bayesian.py", ["-i", imgs, "--mc", 2]),
    ):
        out = tmp_path / script
        result = run_script(script, *flags, *common, "--output-dir", out)
        assert result.returncode == 1, result.stderr
        *_, done, title, failed = result.stderr.splitlines()  # the failures are the last
        assert done == f"2 images done: open {out / 'review.html'} in a browser"
        assert (title, failed.rpartition(":")[0][-12:]) == ("Error: 1 failed:", "SKIN_009.jpg")
        data = data_of(out / "review.html")
        assert data["missing"] == [["SKIN_009.jpg", "no result in this run"]]
        assert {score["name"] for score in data["scores"]} >= {"soft_dice_confidence", "dice"}
        assert data["methods"][0]["title"].startswith("softmax" if script == "predict.py" else "MC dropout")
        maps = set(maps_of(out / "review.html", 0)["runs"][0])
        assert maps >= ({"mask_c1"} if script == "predict.py" else {"probability_c1", "entropy", "mutual_information"})
    result = run_script("predict.py", "--input-dir", imgs, *common, "--output-dir", tmp_path / "o", "--no-save")
    assert_one_clear_line(result, "--no-save does not write")
    result = run_script("predict_bayesian.py", "-i", imgs / "SKIN_000.jpg", *common, "-o", tmp_path / "o.png")
    assert_one_clear_line(result, "--review requires --output-dir")


def test_page_shows_the_latest_run_into_a_folder(model_file: Path, tmp_path: Path):
    """With other maps, of fewer images, of another folder; a run that has predicted nothing writes no page."""
    imgs, _ = make_folders(tmp_path, 2, (64, 48))
    other, out = images_of(tmp_path / "other", "z.png"), tmp_path / "out"
    (tmp_path / "broken.png").write_bytes(b"broken")
    first, second = sorted(imgs.iterdir())
    spread = {"std", "entropy", "expected_entropy", "mutual_information"}
    of_folder, of_image = ["--input-dir", imgs], ["--mc", 2, "-i"]
    for script, flags, shown, maps, left_out in (
        ("predict_prob_bayesian.py", [*of_folder, "--mc", 2, "--save-entropy"], {first, second}, spread, 0),
        ("predict.py", of_folder, {first, second}, {"mask_c1"}, 0),
        ("predict_bayesian.py", [*of_image, first], {first}, {"mask_c1", *spread}, 2),
        ("predict_bayesian.py", [*of_image, other / "z.png"], {other / "z.png"}, {"mask_c1", *spread}, 3),
    ):
        result = run_script(script, *flags, "-m", model_file, "--review", "--output-dir", out)
        assert result.returncode == 0, result.stderr
        data = data_of(out / "review.html")
        assert {image["name"] for image in data["images"]} == {path.name for path in shown}
        assert {*maps_of(out / "review.html", 0)["runs"][0]} - {"probability_c1"} == maps
        lines = re.findall(r"Not on the page.*: (\d) other results? in .*, such as of", result.stderr)
        assert lines == ([str(left_out)] if left_out else [])
    assert [*read_run(out, imgs).scores] == [first.name]  # of an earlier run with the same settings
    with pytest.raises(InputError, match=r"the latest run into .* has predicted none of the images in"):
        read_run(out, out)
    flags = (*of_image, tmp_path / "broken.png", "-m", model_file, "--review", "--output-dir", out)
    result = run_script("predict_bayesian.py", *flags)
    assert result.returncode == 1, result.stderr
    assert "in a browser" not in result.stderr


def test_links_keep_their_names(model_file: Path, tmp_path: Path):
    """Links to images, in a folder that is given as a link or not."""
    imgs, out = images_of(tmp_path / "imgs", "store/target.png"), tmp_path / "out"
    (imgs / "a.png").symlink_to("store/target.png")
    (tmp_path / "link").symlink_to("imgs")
    for given in (imgs, tmp_path / "link"):
        flags = ("-i", given, "--mc", 0, "-m", model_file, "--review", "--output-dir", out)
        result = run_script("predict_bayesian.py", *flags)
        assert result.returncode == 0, result.stderr
        for folder in (imgs, tmp_path / "link"):
            assert [*read_run(out, folder).scores] == ["a.png"]
            assert read_run(out, folder).files("a.png").mask == out / "a.png"


def test_command(tmp_path: Path):
    run = sample_run(tmp_path / "run")
    result = run_module("utils.review", run, "--imgs-dir", SAMPLES / "imgs", "-o", tmp_path / "page.html")
    assert result.returncode == 0, result.stderr
    assert f"9 images done: open {tmp_path / 'page.html'} in a browser" in result.stderr
    assert len(data_of(tmp_path / "page.html")["images"]) == 9
    missing = run_module("utils.review", ROOT / "unet", "--imgs-dir", SAMPLES / "imgs")
    assert_one_clear_line(missing, "has no .progress-0.jsonl")
