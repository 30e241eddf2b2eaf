"""Metrics under shift: the same as those of the prediction scripts on the same pictures, and the command."""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from tests.conftest import lively_network, make_folders
from tests.test_guarantees import curves_of
from utils import cli, shift
from utils.checkpoint import TrainedModel, load_model, save_checkpoint
from utils.data.corruptions import CORRUPTIONS, corrupt
from utils.data.images import IMAGE_EXTENSIONS, read_image
from utils.data.mask_classes import MaskClasses
from utils.figures.small_multiples import draw_small_multiples
from utils.inference.guarantees import Guarantee
from utils.inference.predictor import predict
from utils.inference.samplers import MCDropout, Sampler, Softmax, TestTimeAugmentation
from utils.metrics.risk_control import REGION_LOSS_TITLES
from utils.pipeline.ground_truth import GroundTruth
from utils.pipeline.items import Item, evenly_spaced, find_items
from utils.pipeline.probability_maps import ProbabilityMapOptions, predict_probabilities
from utils.pipeline.shift_tables import format_shift_means, format_shift_tables, shift_curves, shift_panels
from utils.pipeline.shifted_sets import SHIFT_METRICS, UNCHANGED, Shift, ShiftEvaluation, list_shifts
from utils.runtime.errors import InputError

SAMPLERS: dict[str, Sampler] = {"a": Softmax(), "b": MCDropout(num_samples=3, seed=4), "c": TestTimeAugmentation()}


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return TrainedModel(lively_network(2, base_channels=4), (32, 32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: TrainedModel) -> Path:
    """Four images with masks in `imgs` and `masks`, and `model.pth`."""
    folder = tmp_path_factory.mktemp("shift")
    make_folders(folder, 4, (48, 40), seed=20)
    save_checkpoint(folder / "model.pth", model)
    return folder


def evaluation_of(
    model: TrainedModel, folder: Path, samplers: dict[str, Sampler] = SAMPLERS
) -> tuple[ShiftEvaluation, list]:
    items = find_items(folder / "imgs", folder / "out", IMAGE_EXTENSIONS)
    ground_truth = GroundTruth(items, folder / "masks", MaskClasses([0, 255]))
    return ShiftEvaluation(model, samplers, ground_truth, seed=4), items


def metrics_of_the_scripts(
    model: TrainedModel, sampler: Sampler, imgs: Path, masks: Path, output_dir: Path
) -> dict[str, float]:
    """What a predict_prob script writes to metrics.json, by the names of `SHIFT_METRICS`."""
    items = find_items(imgs, output_dir, IMAGE_EXTENSIONS)
    assert not predict_probabilities(model, sampler, items, output_dir, ProbabilityMapOptions(mask_dir=masks)).failures
    content = json.loads((output_dir / "metrics.json").read_text())
    return {
        "dice": content["segmentation"]["dice"]["value"],
        "ece_top_label": content["calibration"]["ece_top_label"]["value"],
        "nll": content["calibration"]["nll"]["value"],
        "aurc": content["selective"]["soft_dice_confidence"]["aurc"]["value"],
        "error_auroc": content["errors"]["error_auroc"]["value"],
    }


@pytest.mark.parametrize(("works", "n_compiled"), [(True, 3), (False, 1)])
def test_the_network_is_compiled_for_each_method(
    works: bool, n_compiled: int, model: TrainedModel, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where the first one cannot be compiled, the others are not tried."""
    tried = []
    marked = TrainedModel(model.network, (32, 32), compiled=lambda x, masks: model.forward(x, masks))
    monkeypatch.setattr(
        "utils.pipeline.shifted_sets.compile_model",
        lambda model, sampler: tried.append(sampler.method) or (marked if works else model),
    )
    evaluation, items = evaluation_of(model, folder)
    expected = evaluation.evaluate(items, Shift("gamma", 1))
    evaluation, items = evaluation_of(model, folder)
    evaluation.compile = True
    assert evaluation.evaluate(items, Shift("gamma", 1)) == expected
    assert evaluation.evaluate(items, Shift("gamma", 1)) == expected
    assert tried == ["softmax", "mc_dropout", "tta"][:n_compiled]


def test_unchanged_images_have_the_metrics_of_the_scripts(model: TrainedModel, folder: Path, tmp_path: Path):
    evaluation, items = evaluation_of(model, folder)
    rows = evaluation.evaluate(items, Shift(UNCHANGED, 0))
    assert [row["method"] for row in rows] == [*SAMPLERS]
    for row in rows:
        sampler, output_dir = SAMPLERS[row["method"]], tmp_path / row["method"]
        expected = metrics_of_the_scripts(model, sampler, folder / "imgs", folder / "masks", output_dir)
        assert (row["corruption"], row["strength"], row["images"]) == (UNCHANGED, 0, 4)
        assert {name: row[name] for name in SHIFT_METRICS} == pytest.approx(expected, rel=1e-9)


def test_images_without_a_lesion_are_scored_as_by_the_scripts(model: TrainedModel, folder: Path, tmp_path: Path):
    shutil.copytree(folder / "masks", tmp_path / "masks")
    Image.new("L", (48, 40)).save(tmp_path / "masks" / "SKIN_001_Segmentation.png")
    items = find_items(folder / "imgs", tmp_path / "out", IMAGE_EXTENSIONS)
    ground_truth = GroundTruth(items, tmp_path / "masks", MaskClasses([0, 255]))
    (row,) = ShiftEvaluation(model, {"a": Softmax()}, ground_truth).evaluate(items, Shift(UNCHANGED, 0))
    expected = metrics_of_the_scripts(model, Softmax(), folder / "imgs", tmp_path / "masks", tmp_path / "out")
    assert {name: row[name] for name in SHIFT_METRICS} == pytest.approx(expected, rel=1e-9)


def test_image_of_which_no_pixel_counts_is_in_no_row(model: TrainedModel, folder: Path, tmp_path: Path):
    """Whatever a corruption puts beyond its borders."""
    shutil.copytree(folder / "masks", tmp_path / "masks")
    Image.new("L", (48, 40), 77).save(tmp_path / "masks" / "SKIN_001_Segmentation.png")
    items = find_items(folder / "imgs", tmp_path / "out", IMAGE_EXTENSIONS)
    ground_truth = GroundTruth(items, tmp_path / "masks", MaskClasses([0, 255]), ignore_value=77)
    evaluation = ShiftEvaluation(model, {"a": Softmax()}, ground_truth)
    for one in (Shift(UNCHANGED, 0), Shift("vignette", 5), Shift("farther", 5)):
        assert [row["images"] for row in evaluation.evaluate(items, one)] == [3], one
        assert evaluation.evaluate(items[1:2], one) == [], one


def test_changed_images_have_the_metrics_of_the_scripts(model: TrainedModel, folder: Path, tmp_path: Path):
    """On the changed images and masks as files."""
    one = Shift("nearer", 4)
    samplers = {"a": Softmax(), "c": TestTimeAugmentation()}  # which do not depend on the images' names
    evaluation, items = evaluation_of(model, folder, samplers)
    imgs, masks = tmp_path / "imgs", tmp_path / "masks"
    imgs.mkdir()
    masks.mkdir()
    for item in items:
        target = evaluation.ground_truth.read(item, (40, 48))
        image, target = corrupt(read_image(item.path), target, *one, (4, item.key))
        image.save(imgs / f"{item.path.stem}.png")
        Image.fromarray(target * 255).save(masks / f"{item.path.stem}.png")
    for row in evaluation.evaluate(items, one):
        expected = metrics_of_the_scripts(model, samplers[row["method"]], imgs, masks, tmp_path / row["method"])
        assert {name: row[name] for name in SHIFT_METRICS} == pytest.approx(expected, rel=1e-9)


def test_losses_of_masks_with_a_guarantee(model: TrainedModel, folder: Path):
    evaluation, items = evaluation_of(model, folder, {"a": Softmax(), "b": TestTimeAugmentation()})
    maps = [predict(model, read_image(item.path)).probs[1].numpy() for item in items]
    outer, inner = np.quantile(maps, 0.3), np.quantile(maps, 0.7)  # a third of the pixels is outside, a third inside
    evaluation.guarantees = {"a": Guarantee(0.9, outer, inner, images=99)}
    with_masks, without = evaluation.evaluate(items, Shift(UNCHANGED, 0))
    lesions = [evaluation.ground_truth.read(item, (40, 48)) > 0 for item in items]
    missed = [(p < outer)[lesion].mean() for p, lesion in zip(maps, lesions, strict=True)]
    false = [1 - lesion[p > inner].mean() if (p > inner).any() else 0 for p, lesion in zip(maps, lesions, strict=True)]
    assert with_masks["outer_false_negative_rate"] == pytest.approx(np.mean(missed), abs=0.002)
    assert with_masks["inner_false_discovery_proportion"] == pytest.approx(np.mean(false), abs=0.002)
    assert all(0.05 < np.mean(losses) < 0.95 for losses in (missed, false))
    assert not REGION_LOSS_TITLES.keys() & without.keys()
    titles = "False negative rate, outer mask | False discoveries, inner mask |"
    assert titles in format_shift_means([with_masks, without])
    assert titles not in format_shift_means([without])


def test_order_and_threads_change_nothing(model: TrainedModel, folder: Path):
    evaluation, items = evaluation_of(model, folder)
    expected = evaluation.evaluate(items, Shift("sensor noise", 3))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        other, _ = evaluation_of(model, folder)
        rows = other.evaluate(items[::-1], Shift("sensor noise", 3))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    for row, one in zip(rows, expected, strict=True):
        assert [row[name] for name in SHIFT_METRICS] == pytest.approx([one[name] for name in SHIFT_METRICS], rel=1e-9)


def test_every_changed_image_is_made_once(model: TrainedModel, folder: Path, monkeypatch: pytest.MonkeyPatch):
    made, handled = [], []

    def counted(image: Image.Image, classes: np.ndarray, *key: object) -> tuple[Image.Image, np.ndarray]:
        made.append(key)
        return corrupt(image, classes, *key)

    monkeypatch.setattr("utils.pipeline.shifted_sets.corrupt", counted)
    evaluation, items = evaluation_of(model, folder)
    evaluation.evaluate(items, Shift("JPEG", 2), handled.append)
    assert sorted(made) == [("JPEG", 2, (4, item.key)) for item in items]
    assert sum(handled) == len(items)


def test_a_broken_image_is_reported_once_and_left_out(model: TrainedModel, folder: Path, tmp_path: Path):
    for name in ("imgs", "masks"):
        shutil.copytree(folder / name, tmp_path / name)
    (tmp_path / "imgs" / "SKIN_001.jpg").write_bytes(b"nothing")
    evaluation, items = evaluation_of(model, tmp_path, {"a": Softmax()})
    handled = []
    for one in (Shift(UNCHANGED, 0), Shift("gamma", 1)):
        (row,) = evaluation.evaluate(items, one, handled.append)
        assert row["images"] == 3
    assert [name for name, _ in evaluation.report.failures] == ["SKIN_001.jpg"]
    assert sum(handled) == 2 * len(items)
    assert evaluation.evaluate(items[1:2], Shift("gamma", 2)) == []


# -- tables and figure -------------------------------------------------------------------------------------------------


def make_row(corruption: str, strength: int, method: str, dice: float, auroc: float | None = 0.5) -> dict:
    values = {"ece_top_label": 0.01, "nll": 0.1, "aurc": 0.2, "error_auroc": auroc}
    return {"corruption": corruption, "strength": strength, "method": method, "images": 2, "dice": dice, **values}


@pytest.fixture
def rows() -> list[dict]:
    return [
        make_row("hair", 2, "m", 0.7),
        make_row(UNCHANGED, 0, "m", 0.9),
        make_row("hair", 1, "m", 0.8),
        make_row("JPEG", 1, "m", 0.6, auroc=None),
        make_row("JPEG", 2, "m", 0.3, auroc=0.25),
    ]


def test_curves_and_tables_by_hand(rows: list[dict]):
    assert shift_curves(rows, ["hair"], "dice") == {"m": ([0, 1, 2], [0.9, 0.8, 0.7])}
    assert shift_curves(rows, ["hair", "JPEG"], "dice")["m"] == ([0, 1, 2], pytest.approx([0.9, 0.7, 0.5]))
    assert shift_curves(rows, ["hair", "JPEG"], "error_auroc")["m"][1] == [0.5, 0.5, 0.375]
    assert np.isnan(shift_curves(rows, ["JPEG"], "error_auroc")["m"][1][1])
    assert format_shift_means(rows).splitlines()[2:] == [
        "| 0 | m | 0.9000 | 0.0100 | 0.1000 | 0.2000 | 0.5000 |",
        "| 1 | m | 0.7000 | 0.0100 | 0.1000 | 0.2000 | 0.5000 |",
        "| 2 | m | 0.5000 | 0.0100 | 0.1000 | 0.2000 | 0.3750 |",
    ]
    tables = format_shift_tables(rows)
    assert tables.count("## ") == len(SHIFT_METRICS)
    assert "| hair | m | 0.9000 | 0.8000 | 0.7000 |" in tables
    assert "| JPEG | m | 0.5000 |  | 0.2500 |" in tables


@pytest.mark.parametrize("method", ["softmax", "deep ensemble of 5, test-time augmentation, calibrated"])
def test_figure(method: str, rows: list[dict]):
    methods = [f"{method} {i}" for i in range(3)]
    rows = [{**row, "method": name, "dice": row["dice"] - 0.1 * i} for i, name in enumerate(methods) for row in rows]
    figure = draw_small_multiples(shift_panels(rows), "strength")
    FigureCanvasAgg(figure).draw()
    axes = np.array(figure.axes).reshape(3, len(SHIFT_METRICS))
    assert [row[0].texts[0].get_text() for row in axes] == ["mean of all", "JPEG", "hair"]
    lines = axes[2, 0].get_lines()
    assert [line.get_label() for line in lines] == methods
    assert lines[1].get_xydata() == pytest.approx(np.array([[0, 0.8], [1, 0.7], [2, 0.6]]))
    (legend,) = figure.legends
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0
    assert box.x1 <= whole.x1
    assert box.y1 < whole.y1 - 3
    assert box.y0 >= max(ax.title.get_window_extent().y1 for ax in axes[0]) - 1
    for row in axes:
        assert row[0].texts[0].get_window_extent().x0 >= 0


def test_ticks_have_as_many_decimals_as_each_other(rows: list[dict]):
    figure = draw_small_multiples(shift_panels(rows), "strength")
    FigureCanvasAgg(figure).draw()
    for ax in figure.axes:
        low, high = ax.get_ylim()
        labels = [label.get_text() for label in ax.get_yticklabels() if low <= label.get_position()[1] <= high]
        assert len({len(label.partition(".")[2]) for label in labels}) == 1


# -- the command -------------------------------------------------------------------------------------------------------


def parsed(folder: Path, out: Path, *more: object) -> argparse.Namespace:
    words = ["-m", folder / "model.pth", "--imgs-dir", folder / "imgs", "--masks-dir", folder / "masks"]
    return shift.get_args_parser().parse_args([*map(str, [*words, "--output-dir", out, "--mc", 2, *more])])


def test_command_interrupted_and_resumed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    evaluate, done = ShiftEvaluation.evaluate, []

    def evaluate_two(self: ShiftEvaluation, items: list, one: Shift, *more: object) -> list[dict]:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(one)
        return evaluate(self, items, one, *more)

    args = parsed(folder, tmp_path, "--strengths", 5, "--max-images", 2, "--skip-existing")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ShiftEvaluation, "evaluate", evaluate_two)
        shift.main(args)
    content = json.loads((tmp_path / "shift.json").read_text())
    assert content["run"]["images"] == 2
    assert len(content["results"]) == 6  # two shifts, three methods
    assert [path.name for path in tmp_path.iterdir()] == ["shift.json"]

    # What is kept is recognised by a number that it cannot have.
    kept = [{**row, "dice": 0.125} for row in content["results"]]
    (tmp_path / "shift.json").write_text(json.dumps({**content, "results": kept}))
    assert shift.main(args) == 0
    results = json.loads((tmp_path / "shift.json").read_text())["results"]
    methods = ["softmax", "MC dropout, 2 passes", "test-time augmentation"]
    unchanged, first, *others = list_shifts([5])
    expected = [(*one, method) for one in (unchanged, first, *others) for method in methods]
    assert [(row["corruption"], row["strength"], row["method"]) for row in results] == expected
    assert len(expected) == 3 * (1 + len(CORRUPTIONS))
    assert results[:3] == content["results"][:3]  # the unchanged images were predicted again
    assert results[3:6] == kept[3:]
    assert 0.125 not in [row["dice"] for row in results[6:]]
    assert capsys.readouterr().out.strip() == format_shift_means(results)
    assert (tmp_path / "shift.md").read_text().count("\n## ") == len(SHIFT_METRICS)
    with Image.open(tmp_path / "shift.png") as image:
        assert image.width == 1800

    # Other strengths, which may be incomplete, are kept but not shown.
    args.strengths = [4]
    assert shift.main(args) == 0
    content = json.loads((tmp_path / "shift.json").read_text())["results"]
    assert len(content) == 3 * (1 + 2 * len(CORRUPTIONS))
    shown = [row for row in content if row["strength"] in (0, 4)]
    assert capsys.readouterr().out.strip() == format_shift_means(shown)
    assert "| 5 |" not in (tmp_path / "shift.md").read_text()


def resumed_dice(folder: Path, out: Path) -> list[float]:
    """Of the unchanged images, and of those with more gamma, what a run has after it kept what it can of `out`.

    What is kept has a number that it cannot have.
    """
    content = json.loads((out / "shift.json").read_text())
    for row in content["results"]:
        row["dice"] = 0.125
    (out / "shift.json").write_text(json.dumps(content))
    shift.main(parsed(folder, out, "--strengths", 1, "--methods", "direct", "--skip-existing"))
    return [row["dice"] for row in json.loads((out / "shift.json").read_text())["results"]]


def test_results_of_fewer_images_are_not_kept(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Such as those of an image for which the memory did not suffice at first."""
    monkeypatch.setattr(shift, "list_shifts", lambda strengths: [Shift(UNCHANGED, 0), Shift("gamma", 1)])
    predict_one, out = ShiftEvaluation._predict, tmp_path / "out"

    def predict_others(self: ShiftEvaluation, item: Item, one: Shift) -> tuple:
        if item.key == "SKIN_001.jpg":
            raise MemoryError
        return predict_one(self, item, one)

    args = parsed(folder, out, "--strengths", 1, "--methods", "direct")
    with monkeypatch.context() as patch:
        patch.setattr(ShiftEvaluation, "_predict", predict_others)
        assert shift.main(args) == 1
        results = json.loads((out / "shift.json").read_text())["results"]
        assert [(row["images"], row["failed"]) for row in results] == [(3, ["SKIN_001.jpg"])] * 2
        assert resumed_dice(folder, out)[1] == 0.125  # it fails again: the others are the same
    assert 0.125 not in resumed_dice(folder, out)
    results = json.loads((out / "shift.json").read_text())["results"]
    assert [(row["images"], row["failed"]) for row in results] == [(4, [])] * 2
    assert resumed_dice(folder, out)[1] == 0.125


@pytest.mark.parametrize(("kind", "name"), [("imgs", "SKIN_002.jpg"), ("masks", "SKIN_002_Segmentation.png")])
def test_results_of_other_files_are_not_resumed(
    kind: str, name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shift, "list_shifts", lambda strengths: [Shift(UNCHANGED, 0), Shift("gamma", 1)])
    for one in ("imgs", "masks"):
        shutil.copytree(folder / one, tmp_path / one)
    shutil.copy(folder / "model.pth", tmp_path)
    args = parsed(tmp_path, tmp_path / "out", "--methods", "direct", "--skip-existing")
    assert shift.main(args) == 0
    assert resumed_dice(tmp_path, tmp_path / "out")[1] == 0.125
    with Image.open(tmp_path / kind / name) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / kind / name)
    with pytest.raises(InputError, match=f"results with other {'image' if kind == 'imgs' else 'mask'} files: choose"):
        shift.main(args)


def test_results_of_other_settings_are_not_resumed(folder: Path, tmp_path: Path):
    run = {"seed": 0, "images": 4, "methods": [{"temperature": 1.0}]}
    path = tmp_path / "shift.json"
    assert shift.read_finished(path, run) == []
    path.write_text(json.dumps({"run": run, "results": [{"dice": 0.5}]}))
    assert shift.read_finished(path, run) == [{"dice": 0.5}]
    with pytest.raises(InputError, match="results with other seed, methods: choose another output folder"):
        shift.read_finished(path, {**run, "seed": 1, "methods": []})
    with pytest.raises(InputError, match="results with other temperature, guarantee: choose another output folder"):
        shift.read_finished(path, {**run, "methods": [{"temperature": 2.0, "guarantee": {"level": 0.9}}]})
    for content in ("[]", "nothing", '{"run": {}}', '{"run": {"methods": [1]}, "results": []}'):
        path.write_text(content)
        with pytest.raises(InputError, match="was not written by this command"):
            shift.read_finished(path, run)
    with pytest.raises(InputError, match="was not written by this command"):
        shift.main(parsed(folder, tmp_path, "--skip-existing"))


def test_methods_are_used_once_and_in_their_order(model: TrainedModel, folder: Path, tmp_path: Path):
    args = parsed(folder, tmp_path, "--methods", "tta", "direct", "tta")
    assert [sampler.method for sampler in shift.samplers_from_args(args, model, None)] == ["tta", "softmax"]
    assert shift.samplers_from_args(parsed(folder, tmp_path), model, None)[1].num_samples == 2


@pytest.mark.parametrize(
    ("size", "dropout", "supported", "left_out"),
    [((48, 32), 0.2, ["softmax", "mc_dropout"], "tta"), ((32, 32), 0.0, ["softmax", "tta"], "bayesian")],
)
def test_methods_that_a_model_does_not_support(
    size: tuple[int, int],
    dropout: float,
    supported: list[str],
    left_out: str,
    folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    other = TrainedModel(lively_network(base_channels=4, dropout=dropout), size)
    samplers = shift.samplers_from_args(parsed(folder, tmp_path), other, None)
    assert [sampler.method for sampler in samplers] == supported
    assert [text.startswith(f"The method {left_out} is left out: ") for text in caplog.messages] == [True]
    with pytest.raises(InputError):
        shift.samplers_from_args(parsed(folder, tmp_path, "--methods", "direct", left_out), other, None)


def test_evenly_spaced():
    assert evenly_spaced([*"abcdef"], 3) == ["a", "c", "f"]
    assert evenly_spaced([*"abcde"], 1) == ["a"]
    assert evenly_spaced([*"abc"], 9) == evenly_spaced([*"abc"], None) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "dropout"], "invalid choice: 'dropout'"),
        (["--strengths", "6"], "expected an integer from 1 to 5, not '6'"),
        (["--strengths", "0"], "expected an integer from 1 to 5, not '0'"),
        (["--mc", "0"], "expected an integer of 1 or more"),
        (["--max-images", "0"], "expected an integer of 1 or more"),
    ],
)
def test_wrong_flags(words: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as error:
        parsed(folder, tmp_path, *words)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_flags(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        shift.get_args_parser().parse_args([])
    assert "the following arguments are required: --imgs-dir, --masks-dir, --output-dir" in capsys.readouterr().err


def test_inputs_that_cannot_be_used(folder: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    args = parsed(folder, tmp_path / "out")
    args.masks_dir = tmp_path / "empty"
    with pytest.raises(InputError, match="empty"):
        shift.main(args)
    args = parsed(folder, tmp_path / "out", "--ignore-value", 77)
    args.masks_dir = shutil.copytree(folder / "masks", tmp_path / "ignored")
    for path in args.masks_dir.iterdir():
        Image.new("L", (48, 40), 77).save(path)
    with pytest.raises(InputError, match="ignored have no pixel that counts"):
        shift.main(args)
    save_checkpoint(tmp_path / "plain.pth", TrainedModel(lively_network(base_channels=4, dropout=0.0), (32, 32)))
    args = parsed(folder, tmp_path / "out", "--methods", "bayesian")
    args.model = [tmp_path / "plain.pth"]
    with pytest.raises(InputError, match="no dropout layers"):
        shift.main(args)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as error, cli.outputs_from_args(parsed(folder, tmp_path / "file")):
        pass
    assert error.value.options == ("output_dir",)
    assert not (tmp_path / "out").exists()


def test_flags_reach_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    imgs, masks = make_folders(tmp_path, 2, (48, 40))
    path, curves = tmp_path / "model.pth", {"softmax": curves_of(99)}
    save_checkpoint(path, TrainedModel(lively_network(), (32, 32), risk_curves=curves))
    seen: list[tuple] = []

    def stop(*args: object) -> None:
        seen.append(args)
        raise InterruptedError

    monkeypatch.setattr(shift, "ShiftEvaluation", stop)
    folders = ["--imgs-dir", imgs, "--masks-dir", masks, "--output-dir", tmp_path / "o"]
    words = list(map(str, ["-m", path, *folders, "--seed", 7, "--guarantee", 0.9, "--methods"]))
    with pytest.raises(InterruptedError):
        shift.main(shift.get_args_parser().parse_args([*words, "direct"]))
    (_, _, _, seed, guarantees, _) = seen[0]
    assert (seed, guarantees["softmax"].level) == (7, 0.9)
    args = shift.get_args_parser().parse_args([*words, "bayesian"])
    assert shift.samplers_from_args(args, load_model(path), None)[0].seed == 7
