"""The review page in a real browser, as somebody uses it: Debian's Chromium, without a window."""

import csv
import io
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.review_runs import SAMPLE_NAMES, SAMPLES, sample_probabilities, sample_run, write_run
from tests.test_review import data_of, images_of
from utils.review_page.page import ReviewOptions, write_review

ADVICE = "the review page is tested in a browser: pip install -r requirements-dev.txt, apt-get install chromium"
playwright = pytest.importorskip("playwright.sync_api", reason=ADVICE)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=ADVICE)

CONFIDENCE = [0.5 + i / 100 for i in range(9)]  # of the samples in `sample_run`
Open = Callable[..., "playwright.Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: "playwright.Browser") -> Iterator[Open]:
    """Opens a page from the disk, on a machine of its own unless a context is given; the console stays empty."""
    contexts, problems = [], []

    def open_page(path: Path, address: str = "", context: "playwright.BrowserContext | None" = None, **options: object):
        if context is None:
            context = browser.new_context(**{"viewport": {"width": 1300, "height": 800}, **options})
            context.set_default_timeout(60_000)  # of a busy machine
            contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append(f"dialog {dialog.message}"), dialog.accept()))
        page.goto(path.as_uri() + address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the nine built-in samples by two methods, with ground truth."""
    folder = tmp_path_factory.mktemp("samples")
    layers = {name: sample_probabilities(0) for name in ("std", "entropy", "expected_entropy", "mutual_information")}
    one = sample_run(folder / "one", layers=layers)
    settings = {"method": "softmax", "class_index": 1, "mask_values": [0, 255]}
    two = sample_run(folder / "two", spread=20, settings=settings)
    page, report = write_review([one, two], SAMPLES / "imgs", ReviewOptions(SAMPLES / "masks"))
    assert not report.failures
    return page


def listed(page: "playwright.Page") -> list[str]:
    """The names in the list, from top to bottom."""
    return page.eval_on_selector_all(".list li", "rows => rows.map(row => row.querySelector('.name').textContent)")


def area(page: "playwright.Page") -> float:
    """The percentage of the image that the contour encloses, once it is shown."""
    text = page.locator("#contour-text b").first
    text.wait_for()
    return float(text.text_content().removesuffix(" %"))


def set_slider(page: "playwright.Page", name: str, value: float) -> None:
    page.eval_on_selector(name, "(e, value) => { e.value = value; e.dispatchEvent(new Event('input')) }", value)


def badges(page: "playwright.Page") -> dict[str, str]:
    page.wait_for_selector(".list li")  # which follows the last decision
    rows = page.eval_on_selector_all(
        ".list li", "rows => rows.map(row => ['.name', '.badge'].map(part => row.querySelector(part).textContent))"
    )
    return {name: decision for name, decision in rows if decision != "undecided"}


def downloaded(page: "playwright.Page", button: str) -> Path:
    with page.expect_download() as download:
        page.click(button)
    return download.value.path()


# -- the list ----------------------------------------------------------------------------------------------------------


def test_list_is_sorted_and_searched(samples: Path, opened: Open):
    page = opened(samples)
    assert listed(page) == SAMPLE_NAMES  # the least certain first
    assert page.locator(".list img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 240
    assert page.locator("#direction").text_content() == "least certain first ↑"
    assert page.locator(".columns .sorted").text_content() == "Soft Dice confidence ↑"
    page.click("#direction")
    assert listed(page) == SAMPLE_NAMES[::-1]
    assert page.locator("#direction").text_content() == "most certain first ↓"
    assert page.locator(".columns .sorted").text_content() == "Soft Dice confidence ↓"
    page.click(".columns button:has-text('Dice, measured')")
    data = data_of(samples)
    dice = [score["name"] for score in data["scores"]].index("dice")
    by_dice = sorted(data["images"], key=lambda image: image["scores"][0][dice])
    assert listed(page) == [image["name"] for image in by_dice]  # the worst first
    assert page.locator(".columns .sorted").text_content() == "Dice, measured ↑"
    for score in page.locator("#sort option").all():
        page.select_option("#sort", score.get_attribute("value"))
        assert sorted(listed(page)) == SAMPLE_NAMES
    page.fill("#search", "le_03")
    assert listed(page) == ["SAMPLE_03.jpg"]
    page.fill("#search", "nothing")
    assert page.locator("#empty").text_content() == "None of these images matches."


def test_scores_are_rounded_once_and_empty_masks_are_marked(tmp_path: Path, opened: Open):
    maps = {name: np.full((30, 40), grey, np.uint8) for name, grey in (("a.png", 200), ("b.png", 0))}
    scores = {"a.png": {"soft_dice_confidence": 0.9794951}, "b.png": {"soft_dice_confidence": 0.0012345678}}
    run = write_run(tmp_path / "run", maps, scores=scores)
    page = opened(write_review([run], images_of(tmp_path / "imgs", "a.png", "b.png", size=(40, 30)))[0])
    texts = page.locator(".list li").all_text_contents()
    assert listed(page) == ["b.png", "a.png"]
    assert ("empty mask" in texts[0], "empty mask" in texts[1]) == (True, False)
    assert "0.001" in texts[0]
    assert "0.979" in texts[1]  # not of 0.9795


def test_slider_says_what_is_left_to_expect(samples: Path, opened: Open):
    page, data = opened(samples), data_of(samples)
    dice_at = [score["name"] for score in data["scores"]].index("dice")
    dice = [image["scores"][0][dice_at] for image in data["images"]]
    for count in (3, 8, 0):
        set_slider(page, "#cut", count)
        assert page.locator("#cut-count").text_content() == f"{count} of 9 images to review"
        assert len(listed(page)) == count
        label = f"Review images whose soft Dice confidence is at most {CONFIDENCE[max(count - 1, 0)]:.3f}"
        label = label if count else "Review none"
        assert page.locator("#cut-label").text_content() == label
        expected, measured = (float(b.text_content()) for b in page.locator("#cut-dice b").all())
        assert expected == pytest.approx(np.mean(CONFIDENCE[count:]), abs=6e-4)
        assert measured == pytest.approx(np.mean(dice[count:]), abs=6e-4)
    assert page.locator("#curve path").count() == 2
    low, high = (float(page.locator(f"#curve-{end}").text_content()) for end in ("low", "high"))
    of_rest = [np.mean(scores[k:]) for scores in (CONFIDENCE, dice) for k in range(9)]
    assert (low, high) == pytest.approx((min(of_rest), max(of_rest)), abs=6e-3)
    assert page.locator(".curve-x").text_content() == "0 images reviewed 9"


def test_measured_dice_is_that_of_images_with_a_lesion(tmp_path: Path, opened: Open):
    names, values = ("a.png", "b.png", "c.png"), np.full((6, 8), 200, np.uint8)
    dice = {"a.png": 0.5, "b.png": 1.0, "c.png": 0.75}
    scores = {name: {"dice": dice[name], "sensitivity": math.nan if name == "b.png" else 0.8} for name in names}
    run = write_run(tmp_path / "run", dict.fromkeys(names, values), scores=scores)
    page = opened(write_review([run], images_of(tmp_path / "imgs", *names))[0])
    for count, expected in ((0, "0.625"), (1, "0.750"), (2, "0.750")):
        set_slider(page, "#cut", count)
        assert page.locator("#cut-dice b").last.text_content() == expected
        assert ("measured where there is a lesion: " in page.locator("#cut-dice").text_content()) == (count < 2)


def test_expected_dice_is_that_of_masks_that_are_not_empty(tmp_path: Path, opened: Open):
    maps = {name: np.full((6, 8), grey, np.uint8) for name, grey in (("a.png", 0), ("b.png", 200), ("c.png", 0))}
    run = write_run(tmp_path / "run", maps, scores={"a.png": {"soft_dice_confidence": 0.01}})
    page = opened(write_review([run], images_of(tmp_path / "imgs", *maps))[0])
    for count, words in (
        (0, "of the 3, where the mask is not empty: 0.510"),
        (1, "of the other 2, where the mask is not empty: 0.510"),
        (2, "of the other 1, where the mask is not empty: \u2013"),
    ):
        set_slider(page, "#cut", count)
        assert page.locator("#cut-dice").text_content() == f"Expected Dice {words}"


def test_equal_scores_are_not_torn_apart(tmp_path: Path, opened: Open):
    values = np.full((6, 8), 200, np.uint8)
    names = [f"{letter}.png" for letter in "abcd"]
    scores = {name: {"soft_dice_confidence": 0.5 if name < "d" else 0.9} for name in names}
    run = write_run(tmp_path / "run", dict.fromkeys(names, values), scores=scores)
    page = opened(write_review([run], images_of(tmp_path / "imgs", *names))[0])
    set_slider(page, "#cut", 1)
    assert page.locator("#cut-count").text_content() == "3 of 4 images to review"


def test_5000_images(tmp_path: Path, opened: Open):
    run = write_run(tmp_path / "run", {"0.png": np.full((6, 8), 200, np.uint8)})
    path, _ = write_review([run], images_of(tmp_path / "imgs", "0.png"))
    text, data = path.read_text(encoding="utf-8"), data_of(path)
    (image,) = data["images"]
    pictures = path.parent / data["folder"]
    for i in range(1, 5000):
        for end in ("0.jpg", "photo.jpg"):
            os.link(pictures / f"00000_{end}", pictures / f"{i:05d}_{end}")
    data["images"] = [
        {**image, "name": f"{i}.png", "scores": [[i / 5000, *image["scores"][0][1:]]]} for i in range(5000)
    ]
    path.write_text(re.sub(r'(id="data">).*?(?=</script>)', lambda match: match[1] + json.dumps(data), text))
    page = opened(path)
    assert page.locator("#cut-count").text_content() == "5000 of 5000 images to review"
    assert len(listed(page)) < 30
    page.locator(".list a").first.focus()
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("4999.png, ")
    page.evaluate("window.scrollTo(0, document.body.scrollHeight / 2)")
    page.wait_for_selector(".list li[aria-posinset='2500']")
    assert len(listed(page)) < 30
    set_slider(page, "#cut", 2000)
    assert page.locator("#progress-text").text_content() == "2000 left"


# -- one image ---------------------------------------------------------------------------------------------------------


def test_threshold_moves_the_contour(samples: Path, opened: Open):
    page = opened(samples, "#4")
    assert page.locator("#image-name").text_content() == "SAMPLE_03.jpg"
    probs, pictures = sample_probabilities(3), []
    for threshold in (0.5, 0.2, 0.9):
        area(page)
        set_slider(page, "#threshold", threshold)
        assert area(page) == pytest.approx(100 * np.mean(probs > 255 * threshold), abs=0.06)
        pictures.append(page.locator(".pane canvas").screenshot())
    assert len({*pictures}) == 3
    page.keyboard.press(",")
    assert page.locator("#threshold-value").text_content() == "0.89"
    page.keyboard.press("ArrowRight")  # the next image is shown as it was predicted
    page.wait_for_selector("#image-name:has-text('SAMPLE_04.jpg')")
    page.wait_for_selector("#threshold-value:has-text('0.50')")


def test_recorded_threshold_counts_until_the_slider_is_moved(tmp_path: Path, opened: Open):
    """It may lie between the steps of the slider or beyond its ends, and is another one for each method."""
    values = np.repeat(np.array([[0, 30, 32, 200, 254, 255, 255, 255]], np.uint8), 6, axis=0)
    settings = {"class_index": 1, "mask_values": [0, 255]}
    runs = [
        write_run(tmp_path / f"run{threshold}", {"a.png": values}, settings | {"threshold": threshold})
        for threshold in (0.998, 0.125, 0.5)
    ]
    page = opened(write_review(runs, images_of(tmp_path / "imgs", "a.png"))[0], "#1")
    for text, expected in (("0.998", 37.5), ("0.125", 75), ("0.50", 62.5)):
        assert area(page) == expected
        assert page.locator("#threshold-value").text_content() == text
        page.keyboard.press("m")
    page.keyboard.press(".")  # 0.998 is beyond the end of the slider
    assert page.locator("#threshold-value").text_content() == "0.998"
    page.select_option("#beside", "1")
    assert page.evaluate("[0, 1].map(method => viewer.thresholdOf(method))") == [0.998, 0.125]
    page.keyboard.press(",")
    assert page.locator("#threshold-value").text_content() == "0.98"
    assert area(page) == 50
    assert page.evaluate("[0, 1].map(method => viewer.thresholdOf(method))") == [0.98, 0.98]


def test_contour_is_that_of_the_mask_until_the_slider_is_moved(tmp_path: Path, opened: Open):
    """A threshold may lie between two grey values of the map."""
    mask, values = np.zeros((6, 8), np.uint8), np.full((6, 8), 255, np.uint8)
    mask[:, 4:] = 255
    settings = {"threshold": 0.999, "mask_values": [0, 255]}
    run = write_run(tmp_path / "run", {"a.png": mask}, settings, {"prob": values})
    page = opened(write_review([run], images_of(tmp_path / "imgs", "a.png"))[0], "#1")
    assert area(page) == 50
    assert page.locator("#threshold-value").text_content() == "0.999"
    page.keyboard.press(",")
    assert area(page) == 100


def test_contour_lines(samples: Path, opened: Open):
    page = opened(samples)
    for rows, expected in (
        ("000 010 000", 1),
        ("000 011 001", 1),
        ("100 010 001", 3),  # pixels that touch at a corner are apart
        ("111 101 111", 2),  # a hole
        ("111 111 111", 1),  # closed at the border
        ("000 000 000", 0),
    ):
        values = [255 * int(pixel) for pixel in rows.replace(" ", "")]
        lines = page.evaluate("values => contourLines(Uint8Array.from(values), 3, 3, 127.5)", values)
        assert len(lines) == expected, rows
        enclosed = 0.0
        for line in lines:
            x, y = np.array(line[::2]), np.array(line[1::2])
            enclosed += (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2  # a hole counts negatively
            assert np.hypot(np.diff(x), np.diff(y)).max() <= 1, rows
        pixels = sum(values) / 255
        assert pixels / 2 <= abs(enclosed) <= pixels, rows


def test_a_border_of_two_regions_is_drawn_once(samples: Path, opened: Open):
    """The contour of a region whose neighbour's is drawn already is open, from one end of their border to the other."""
    left = np.tile(np.uint8([255, 255, 100, 0, 0, 0]), (4, 1))
    middle = np.tile(np.uint8([0, 0, 155, 255, 0, 0]), (4, 1))
    page = opened(samples)

    def lines_of(*maps: np.ndarray) -> list[list[float]]:
        script = "([map, ...others]) => contourLines(map, 6, 4, 127.5, others)"
        values = [map_.ravel().tolist() for map_ in maps]
        return page.evaluate(f"maps => ({script})(maps.map(map => Uint8Array.from(map)))", values)

    (whole,), (left_line,), (rest,) = lines_of(middle), lines_of(left), lines_of(middle, left)
    points = [{*map(tuple, np.reshape(line, (-1, 2)).round(3).tolist())} for line in (whole, left_line, rest)]
    shared = points[0] & points[1]
    assert len(shared) >= 4
    assert points[2] < points[0]
    assert len(points[2] & shared) <= 2  # its ends
    assert points[2] | shared == points[0]
    assert whole[:2] == whole[-2:]
    assert rest[:2] != rest[-2:]


def test_layers_and_methods(samples: Path, opened: Open):
    page = opened(samples, "#1")
    area(page)
    layers = page.locator("#layers label").all_text_contents()
    titles = [
        "None",
        "Probability",
        "Entropy",
        "Expected entropy",
        "Mutual information",
        "Standard deviation",
        "Errors",
    ]
    assert layers == titles
    pictures = set()
    for title, scale in zip(titles[1:], ["01", "0nats0.693", "0nats0.693", "0nats0.693", "00.5", ""], strict=True):
        page.keyboard.press("l")
        assert page.locator("#layers label:has(:checked)").text_content() == title
        assert "".join(page.locator(".scale-labels:visible").all_text_contents()) == scale
        pictures.add(page.locator(".pane canvas").screenshot())
    assert len(pictures) >= 3  # the uncertainty maps are equal
    page.locator("#layers label", has_text="Probability").click()
    page.hover(".pane canvas")
    assert re.fullmatch(r"probability \d\.\d\d · entropy \d\.\d\d nats", page.locator("#readout").text_content())
    area_of_one = area(page)
    page.select_option("#beside", "1")
    assert page.locator(".pane figcaption").all_text_contents() == ["MC dropout, 4 passes", "softmax"]
    read, expected = page.evaluate("""() => {
        const maps = [0, 1].map(m => viewer.mapsOf(m).probability_c1);
        const eventOn = ({ canvas }, x) => {
            const { left, top, width, height } = canvas.getBoundingClientRect();
            return new PointerEvent("pointermove", { clientX: left + x * width, clientY: top + height / 2 });
        };
        const valueAt = (pane, x, p) => {
            const [column, row] = pane.pointAt(eventOn(pane, x)).map(Math.floor);
            return maps[p][row * viewer.maps.width + column];
        };
        const [first] = viewer.panes, places = Array.from({ length: 99 }, (_, i) => (i + 1) / 100);
        const x = places.find(x => Math.abs(valueAt(first, x, 0) - valueAt(first, x, 1)) > 25); // where they differ
        const read = viewer.panes.map(pane => (pane.canvas.dispatchEvent(eventOn(pane, x)), ui.readout.textContent));
        return [read, viewer.panes.map((pane, p) => `probability ${(valueAt(pane, x, p) / 255).toFixed(2)}`)];
    }""")
    assert [text.split(" · ")[0] for text in read] == expected
    page.locator("#layers label", has_text="Difference").click()
    page.keyboard.press("m")
    assert area(page) != area_of_one
    assert page.locator("#score-table thead th").all_text_contents() == ["", "MC dropout, 4 passes", "softmax"]
    page.keyboard.press("g")
    assert not page.is_checked("#show-truth")


def test_masks_with_a_guarantee(samples: Path, tmp_path: Path, opened: Open):
    """Their contours, what they promise, and how they are hidden; a run without them shows nothing of it."""
    imgs, regions = images_of(tmp_path / "imgs", "a.png", size=(80, 60)), np.zeros((2, 60, 80), np.uint8)
    regions[0, 10:50, 10:70], regions[1, 25:35, 25:55] = 255, 255
    for numbers, units in (
        ({"images": 37, "groups": 9}, "groups of images like the 9"),
        ({"images": 37}, "images like the 37"),
    ):
        settings = {"class_index": 1, "guarantee": {"level": 0.95, **numbers}}
        layers = {"outer": regions[0], "inner": regions[1]}
        run = write_run(tmp_path / f"of {units}", {"a.png": np.full((60, 80), 40, np.uint8)}, settings, layers)
        page = opened(write_review([run], imgs)[0], "#1")
        assert area(page) == 0
        promise = "At least 95 % of the lesion lie in the outer mask, and at least 95 % of the inner mask are lesion: "
        promise += f"on average over {units} of the calibration, not for each image, and not for images of other "
        assert page.locator("#regions-note").text_content() == f"{promise}sources."
    assert page.locator("#layers label").all_text_contents() == ["None", "Probability", "Entropy"]
    colours = {
        name: page.locator(f"#{name}-key").evaluate("key => key.style.background") for name in ("outer", "inner")
    }
    assert colours == {"outer": "rgb(86, 180, 233)", "inner": "rgb(213, 94, 0)"}
    shown = page.locator(".pane canvas").screenshot()
    page.keyboard.press("o")
    assert not page.is_checked("#show-regions")
    assert page.locator(".pane canvas").screenshot() != shown
    page = opened(samples, "#1")
    area(page)
    assert page.locator("#regions-label").is_hidden()
    assert page.locator("#regions-note").is_hidden()


def test_zoom_and_pan(samples: Path, opened: Open):
    page = opened(samples, "#1")
    area(page)
    camera = lambda: page.evaluate("[camera.zoom, camera.x, camera.y]")  # noqa: E731
    assert camera() == [1, 256, 192]
    box = page.locator(".pane canvas").bounding_box()
    corner = (box["x"] + box["width"] / 2, box["y"] + 40)
    page.mouse.move(*corner)
    before = page.evaluate("([x, y]) => viewer.panes[0].pointAt({ clientX: x, clientY: y })", corner)
    page.mouse.wheel(0, -500)
    page.wait_for_function("camera.zoom > 2")
    after = page.evaluate("([x, y]) => viewer.panes[0].pointAt({ clientX: x, clientY: y })", corner)
    assert after == pytest.approx(before)  # what is below the pointer stays
    _, x, y = camera()
    page.mouse.down()
    page.mouse.move(corner[0] + 60, corner[1])
    page.mouse.up()
    assert camera()[1] < x
    page.keyboard.press("Shift+ArrowDown")
    assert camera()[2] > y
    page.keyboard.press("0")
    assert camera() == [1, 256, 192]


def test_masks_of_several_classes_have_no_threshold(tmp_path: Path, opened: Open):
    values = np.zeros((60, 80), np.uint8)
    values[:, :20], values[30:, 60:] = 1, 2
    settings = {"threshold": 0.5, "mask_values": [0, 1, 2]}
    run = write_run(tmp_path / "run", {"a.png": values}, settings)
    page = opened(write_review([run], images_of(tmp_path / "imgs", "a.png", size=(80, 60)))[0], "#1")
    area(page)
    text = page.locator("#contour-text").text_content()
    assert text == " Class 1: area 25.0 % of the image Class 2: area 12.5 % of the image"
    assert page.is_hidden("#threshold")
    assert page.is_visible("#masks-only")
    assert page.is_hidden("#layers")


def test_probability_of_one_of_several_classes_is_no_mask(tmp_path: Path, opened: Open):
    """Where another class is more probable it says so, and has neither Dice nor errors."""
    imgs, values = images_of(tmp_path / "imgs", "a.png", size=(80, 60)), np.zeros((60, 80), np.uint8)
    values[:, :20] = 150
    settings = {"mask_values": [0, 1, 2], "class_index": 2}
    run = write_run(tmp_path / "run", {"a.png": values}, settings)
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.indices((60, 80))[1].astype(np.uint8) // 30).save(tmp_path / "masks" / "a.png")
    page = opened(write_review([run], imgs, ReviewOptions(tmp_path / "masks"))[0], "#1")
    area(page)
    text = page.locator("#contour-text").text_content()
    assert text == " Class 2 with a probability above 0.50: area 25.0 % of the image"
    assert page.locator("#layers label").all_text_contents() == ["None", "Probability, class 2"]
    set_slider(page, "#threshold", 0.6)
    assert "above 0.60: area 0.00 %" in page.locator("#contour-text").text_content()


# -- decisions ---------------------------------------------------------------------------------------------------------


def test_decisions_by_keyboard_are_kept_saved_and_loaded(samples: Path, opened: Open):
    page = opened(samples)
    for i in range(2):
        page.keyboard.press("ArrowDown")
        page.wait_for_function("name => document.activeElement.ariaLabel?.startsWith(name)", arg=f"SAMPLE_0{i}")
    page.keyboard.press("Enter")
    for i, key in enumerate(("a", "c", "r", "r", "z")):  # the last one is to undo
        page.wait_for_selector(f"#image-name:has-text('SAMPLE_0{i + 1}.jpg')")
        page.keyboard.press(key)
    page.wait_for_selector("#image-name:has-text('SAMPLE_04.jpg')")
    page.keyboard.press("n")
    comment = '=1+1, "hair"\nand <b>ink</b> ü'
    page.keyboard.insert_text(comment)
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expected = {"SAMPLE_01.jpg": "accepted", "SAMPLE_02.jpg": "to correct", "SAMPLE_03.jpg": "rejected"}
    assert badges(page) == expected
    left = "6 left · 1 accepted · 1 to correct · 1 rejected"
    assert page.locator("#progress-text").text_content() == left

    context = page.context
    page.close()
    page = opened(samples, context=context)  # closed and opened again
    page.wait_for_function("() => localStorage.length")  # another process of the browser keeps it
    page.reload()
    assert badges(page) == expected
    assert page.locator("#progress-text").text_content() == left
    saved = {button: downloaded(page, button).read_text(encoding="utf-8") for button in ("#save-csv", "#save-json")}
    rows = {row["image"]: row for row in csv.DictReader(io.StringIO(saved["#save-csv"], newline=""))}
    assert rows["SAMPLE_02.jpg"]["decision"] == "correct"
    assert rows["SAMPLE_04.jpg"]["comment"] == "'" + comment  # text for a spreadsheet, not a formula
    assert json.loads(saved["#save-json"])["run"] == data_of(samples)["fingerprint"]

    for (button, text), kind in zip(saved.items(), ("csv", "json"), strict=True):  # on another machine
        other = opened(samples)
        assert badges(other) == {}
        file = {"name": f"x.{kind}", "mimeType": "text/plain", "buffer": f"{text}\r\n".encode()}
        other.set_input_files("#load-file", file)
        other.wait_for_selector("#toast:has-text('4 of 4 decisions loaded')")
        assert badges(other) == expected
        other.goto(samples.as_uri() + "#5")
        assert other.input_value("#comment") == comment
        assert downloaded(other, button).read_text(encoding="utf-8") == text


def test_comment_is_of_the_image_that_is_shown(samples: Path, opened: Open):
    page = opened(samples, "#1")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#image-name:has-text('SAMPLE_01')")
    page.keyboard.press("n")
    page.keyboard.insert_text("hair")
    page.evaluate("refresh()")  # as another window of the page does
    assert page.input_value("#comment") == "hair"
    page.evaluate("history.back()")
    page.wait_for_selector("#image-name:has-text('SAMPLE_00')")
    assert page.input_value("#comment") == ""
    page.keyboard.insert_text("!")
    comments = page.evaluate("[0, 1].map(i => store.get(data.images[i].name).comment)")
    assert comments == ["!", "hair"]


def test_windows_keep_each_others_decisions(samples: Path, opened: Open):
    """Even one that has not been told of them, such as a page that the browser had frozen."""
    page = opened(samples)
    decisions = page.evaluate("""() => {
        const other = new DecisionStore(store.fingerprint);
        other.set("a.jpg", {decision: "accept"});
        store.setView({sort: "name"});
        store.set("b.jpg", {decision: "reject"});
        return Object.keys(JSON.parse(localStorage.getItem(store.key)).decisions);
    }""")
    assert decisions == ["a.jpg", "b.jpg"]


def test_decisions_stay_when_there_are_more_images(tmp_path: Path, opened: Open):
    """On the images whose results are the same; one that was predicted anew is undecided."""
    imgs = images_of(tmp_path / "imgs", "a.png", "b.png", "c.png")
    maps = {name: np.full((6, 8), 200, np.uint8) for name in ("a.png", "b.png")}
    page = opened(write_review([write_run(tmp_path / "run", maps)], imgs)[0])
    context = page.context
    for image in "#1", "#2":
        page.evaluate("address => { location.hash = address }", image)
        page.wait_for_function("address => openIndex() === Number(address[1]) - 1", arg=image)
        page.keyboard.press("r")
    assert badges(page) == dict.fromkeys(maps, "rejected")
    page.wait_for_function("() => localStorage.length")
    page.close()
    maps["b.png"] = np.full((6, 8), 100, np.uint8)
    more = write_run(tmp_path / "run", maps | {"c.png": maps["a.png"]})
    page = opened(write_review([more], imgs)[0], context=context)
    assert badges(page) == {"a.png": "rejected"}
    page.reload()
    assert badges(page) == {"a.png": "rejected"}


def test_what_another_window_has_decided_is_not_undone(samples: Path, opened: Open):
    page = opened(samples, "#1")
    page.keyboard.press("a")
    page.evaluate("new DecisionStore(store.fingerprint).set('SAMPLE_00.jpg', {decision: 'reject'})")
    page.keyboard.press("z")
    assert "has been decided anew" in page.locator("#toast").text_content()
    assert page.evaluate("store.get('SAMPLE_00.jpg').decision") == "reject"


def test_a_review_goes_on_with_what_the_list_does_not_show(samples: Path, opened: Open):
    page = opened(samples)
    page.fill("#search", "05")
    assert listed(page) == ["SAMPLE_05.jpg"]
    page.click("#start")
    page.keyboard.press("a")
    assert "All images of this selection are decided." in page.locator("#toast").text_content()
    page.click("#start")
    page.wait_for_selector("#image-name:has-text('SAMPLE_00.jpg')")


def test_keys_of_the_list_do_nothing_beside_an_image(samples: Path, opened: Open):
    page = opened(samples, "#1")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#image-name:has-text('SAMPLE_01.jpg')")


def test_images_without_a_result_of_the_method_are_reviewed(tmp_path: Path, opened: Open):
    """And shown by another one; the next image is shown by the chosen method again."""
    imgs = images_of(tmp_path / "imgs", "a.png", "b.png", "c.png")
    values = np.full((6, 8), 200, np.uint8)
    one = write_run(tmp_path / "one", dict.fromkeys(("a.png", "b.png", "c.png"), values))
    settings = {"method": "softmax", "class_index": 1}
    two = write_run(tmp_path / "two", dict.fromkeys(("a.png", "c.png"), values), settings)
    page = opened(write_review([one, two], imgs)[0])
    page.select_option("#method", "1")
    assert listed(page) == ["b.png", "a.png", "c.png"]
    set_slider(page, "#cut", 1)
    assert page.locator("#cut-label").text_content() == "Review images without soft Dice confidence"
    set_slider(page, "#cut", 2)
    assert page.locator("#cut-label").text_content().endswith("is at most 0.500, or that have none")
    for name, method in (("a.png", "1"), ("b.png", "0"), ("c.png", "1")):
        page.evaluate("name => go(data.images.findIndex(image => image.name === name))", name)
        page.wait_for_selector(f"#image-name:has-text('{name}')")
        assert page.input_value("#image-method") == method


def test_a_key_that_is_held_decides_once(samples: Path, opened: Open):
    page = opened(samples, "#1")
    for key, decided in (("a", 1), ("c", 2), ("z", 1)):
        for _ in range(3):
            page.keyboard.down(key)
            page.wait_for_timeout(50)
        page.keyboard.up(key)
        assert page.evaluate("store.entries.size") == decided
    page.click("#show-prediction")
    page.keyboard.press("ArrowRight")  # not a key of a checkbox
    page.wait_for_selector("#image-name:has-text('SAMPLE_02')")


def test_review_by_mouse_to_its_end(samples: Path, opened: Open):
    page = opened(samples)
    set_slider(page, "#cut", 2)
    page.click("#start")
    page.click("button[data-decision=accept]")
    page.click("button[data-decision=correct]")
    assert page.is_visible("#list-view")
    assert "All 2 images are decided: save the decisions" in page.locator("#toast").text_content()
    assert page.locator("#start").text_content() == "All are decided"
    assert page.is_disabled("#start")
    page.select_option("#shown", "correct")
    assert listed(page) == ["SAMPLE_01.jpg"]
    page.click("#undo")
    assert listed(page) == []
    page.reload()
    assert page.locator("#cut-count").text_content() == "2 of 9 images to review"


def test_files_that_are_not_decisions_on_these_results(samples: Path, opened: Open):
    page = opened(samples)
    for text in (
        "\n",
        "patient,age\n1,2\n",
        '{"decisions": 3}',
        '{"decisions": [{"image": "x", "decision": "maybe"}]}',
        "{",
    ):
        page.set_input_files("#load-file", {"name": "x", "mimeType": "text/plain", "buffer": text.encode()})
        page.wait_for_selector("#toast:has-text('is not a file of decisions')")
        page.evaluate("document.getElementById('toast').hidden = true")
    decision = {"image": "SAMPLE_00.jpg", "decision": "reject", "comment": "", "time": "2020"}
    content = json.dumps({"run": "another", "decisions": [decision]}).encode()
    for answer, expected in (("no", {}), ("yes", {"SAMPLE_00.jpg": "rejected"})):
        page.set_input_files("#load-file", {"name": "x.json", "mimeType": "application/json", "buffer": content})
        page.click(f"#ask button[value={answer}]")
        page.wait_for_function("expected => store.entries.size === expected", arg=len(expected))
        assert badges(page) == expected


def test_browser_that_keeps_nothing(samples: Path, opened: Open, browser: "playwright.Browser"):
    context = browser.new_context()
    context.add_init_script("Storage.prototype.setItem = () => { throw new Error('full') }")
    page = opened(samples, "#1", context=context)
    assert page.is_hidden("#notice")
    page.keyboard.press("a")
    assert "save them to a file before you close it" in page.locator("#notice").text_content()
    page.keyboard.press("Escape")
    assert badges(page) == {"SAMPLE_00.jpg": "accepted"}
    assert "SAMPLE_00.jpg,accept" in downloaded(page, "#save-csv").read_text(encoding="utf-8")
    context.close()


# -- everybody, everywhere ---------------------------------------------------------------------------------------------


def test_hostile_names(tmp_path: Path, opened: Open):
    names = ["x\"'<img src=x onerror=alert(1)>.png", "<script>alert(1)<!--.png", "ü😀#1%20?&amp;.png", "=1+1,\n;.png"]
    run = write_run(tmp_path / "r#1", dict.fromkeys(names, np.full((6, 8), 200, np.uint8)))
    path, report = write_review(
        [run], images_of(tmp_path / "i<&", *names), ReviewOptions(output=tmp_path / "a#b%.html")
    )
    assert not report.failures
    page = opened(path)
    assert listed(page) == names
    page.click(".list a >> nth=0")
    for name in names:
        playwright.expect(page.locator("#image-name")).to_have_text(name)
        area(page)
        page.keyboard.press("a")
    assert badges(page) == dict.fromkeys(names, "accepted")
    page.wait_for_function("[...document.querySelectorAll('.list img')].every(image => image.complete)")
    assert page.locator("img[onerror]").count() == 0
    content = {"name": "x.csv", "mimeType": "text/csv", "buffer": downloaded(page, "#save-csv").read_bytes()}
    other = opened(path)
    other.set_input_files("#load-file", content)
    other.wait_for_selector("#toast:has-text('4 of 4 decisions loaded')")


def test_page_can_reach_nothing(samples: Path, browser: "playwright.Browser"):
    context = browser.new_context()
    page = context.new_page()
    page.goto(samples.as_uri())
    blocked = page.evaluate("""async () => {
        const blocked = [];
        document.addEventListener("securitypolicyviolation", event => blocked.push(event.effectiveDirective));
        await fetch("http://127.0.0.1:9/").catch(() => {});
        new Image().src = "http://127.0.0.1:9/x.png";
        for (const [tag, key] of [["script", "src"], ["iframe", "src"]]) {
            document.body.append(Object.assign(document.createElement(tag), { [key]: "http://127.0.0.1:9/" }));
        }
        const inline = document.createElement("script");
        inline.textContent = "window.wasRun = true";
        document.body.append(inline);
        for (let waited = 0; blocked.length < 5 && waited < 10000; waited += 50) {
            await new Promise(resolve => setTimeout(resolve, 50));
        }
        return [...blocked, Boolean(window.wasRun)];
    }""")
    context.close()
    assert sorted(blocked[:-1]) == ["connect-src", "frame-src", "img-src", "script-src-elem", "script-src-elem"]
    assert blocked[-1] is False


def test_single_file(tmp_path: Path, opened: Open):
    run = sample_run(tmp_path / "run")
    write_review([run], SAMPLES / "imgs", ReviewOptions(output=tmp_path / "one.html", single_file=True))
    assert (tmp_path / "one.html").stat().st_size < 9 * 100_000  # 200 images can be sent by mail
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == ["one.html"]
    page = opened(tmp_path / "one.html")
    assert page.locator(".list img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 160
    page.click(".list a >> nth=2")
    assert area(page) == pytest.approx(100 * np.mean(sample_probabilities(2) > 127), abs=0.2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_narrow_screens(scheme: str, samples: Path, opened: Open):
    page = opened(samples, color_scheme=scheme, viewport={"width": 360, "height": 740})
    for address in ("", "#1"):
        page.goto(samples.as_uri() + address)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    names = ("ink", "soft", "panel", "ground", "bar", "measured", "bar-ground", "accept", "correct", "reject", "focus")
    style = page.evaluate("names => names.map(n => getComputedStyle(document.body).getPropertyValue('--' + n))", names)
    colours = dict(zip(names, map(str.strip, style), strict=True))
    for ink, grounds in {
        "ink": ("panel", "ground", "bar", "measured", "bar-ground"),
        **dict.fromkeys(("soft", "accept", "correct", "reject"), ("panel", "ground")),
        "panel": ("focus",),  # of the main button
    }.items():
        for ground in grounds:
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


def contrast(first: str, second: str) -> float:
    """The contrast of two colours #rrggbb by WCAG 2."""

    def luminance(colour: str) -> float:
        channels = np.array([*bytes.fromhex(colour[1:])]) / 255
        linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722] + 0.05

    ratio = luminance(first) / luminance(second)
    return max(ratio, 1 / ratio)


def test_everything_has_a_name_and_can_be_reached_by_keyboard(samples: Path, opened: Open):
    page = opened(samples)
    for address in ("", "#1"):
        page.goto(samples.as_uri() + address)
        nameless = page.evaluate("""[...document.querySelectorAll("button, input, select, textarea, a, canvas[role]")]
            .filter(e => e.checkVisibility())
            .filter(e => !(e.ariaLabel || e.textContent.trim() || e.labels?.[0]?.textContent.trim()))
            .map(e => e.outerHTML)""")
        assert nameless == []
    page.goto(samples.as_uri())
    reached = set()
    for _ in range(24):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert reached >= {"save-csv", "save-json", "load", "start", "cut", "method", "sort", "direction", "shown", "row"}
    page.keyboard.press("?")
    assert page.is_visible("#help")


def test_all_rows_are_printed(samples: Path, opened: Open):
    page = opened(samples, viewport={"width": 1000, "height": 300})
    few = len(listed(page))
    assert few < 9
    page.evaluate("window.addEventListener('beforeprint', () => { window.printed = list.rows.size })")
    page.pdf()
    assert page.evaluate("window.printed") == 9
    assert len(listed(page)) == few
    page.emulate_media(media="print")
    assert page.is_hidden(".files")


def test_empty_states(tmp_path: Path, opened: Open):
    """One image, without a mask; another that has failed is named."""
    run = write_run(tmp_path / "run", {"a.png": np.zeros((6, 8), np.uint8)})
    page = opened(write_review([run], images_of(tmp_path / "imgs", "a.png", "b.png"))[0])
    assert page.locator("#cut-count").text_content() == "1 of 1 image to review"
    assert page.locator("#missing summary").text_content() == "1 image is not on this page"
    page.click("#start")
    assert area(page) == 0
    assert page.is_disabled("#previous")
    assert page.is_disabled("#next")
    assert page.is_hidden("#truth-label")
    assert page.is_hidden("#method-section")
