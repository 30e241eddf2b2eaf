"""Masks with a guarantee: calibrated, kept in the model's file, written, drawn, and compared with the ground truth."""

import csv
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import predict_prob_bayesian
from tests.conftest import assert_one_clear_line, lively_network, make_folders, make_image, run_module, run_script
from utils import IGNORED_CLASS
from utils.calibration import are_other_images
from utils.checkpoint import load_model, read_checkpoint, save_checkpoint
from utils.data.images import IMAGE_EXTENSIONS, read_image, save_png
from utils.figures.palette import INNER_CONTOUR, OUTER_CONTOUR
from utils.figures.predictions import draw_predictions, format_scores, prediction_row
from utils.inference.guarantees import Guarantee, make_guarantee
from utils.inference.maps import full_size_maps
from utils.inference.predictor import MapOptions, draw_samples, predict, predict_full_size
from utils.inference.samplers import MCDropout, Sampler, Softmax, TestTimeAugmentation, calibrated
from utils.metrics.evaluation import format_evaluation
from utils.metrics.risk_control import RISK_THRESHOLDS, RiskCurves, controlling_thresholds, image_losses, region_losses
from utils.model_flags import passes_from_args
from utils.models import TrainedModel, combine_models
from utils.pipeline.items import find_items
from utils.pipeline.probability_maps import ProbabilityMapOptions, predict_probabilities
from utils.runtime.errors import InputError
from utils.training.calibrator import calibrate

SAMPLERS = [Softmax(), MCDropout(num_samples=20), TestTimeAugmentation()]


SETTINGS = {"softmax": {}, "mc_dropout": {"num_samples": 20}, "tta": {"shrink": 0.8}}


def curves_of(n: int, method: str = "softmax") -> RiskCurves:
    """Of a mean loss that rises, and falls, evenly with the logit of the threshold."""
    rising = np.linspace(0, 1, len(RISK_THRESHOLDS))
    return RiskCurves(n, rising, rising[::-1].copy(), dict(SETTINGS[method]))


@pytest.fixture
def model() -> TrainedModel:
    """With curves of 99 images, by each method with its default settings, and a temperature of each."""
    curves = {method: curves_of(99, method) for method in SETTINGS}
    temperatures = dict.fromkeys(SETTINGS, 1.7)
    return TrainedModel(lively_network(), (32, 32), risk_curves=curves, temperatures=temperatures)


@pytest.fixture
def spread(trained: TrainedModel) -> TrainedModel:
    """The same with a network whose probabilities are on both sides of the thresholds."""
    curves = {method: curves_of(99, method) for method in SETTINGS}
    return replace(trained, risk_curves=curves, temperatures=dict.fromkeys(SETTINGS, 1.7))


def other_member() -> TrainedModel:
    """Another member of an ensemble with `model`."""
    return TrainedModel(lively_network(1), (32, 32))


def dataset(n: int, size: tuple[int, int] = (32, 32)) -> list[tuple[torch.Tensor, torch.Tensor]]:
    pairs = [make_image(i, size) for i in range(n)]
    return [(torch.from_numpy(np.array(a)).permute(2, 0, 1), torch.from_numpy(np.array(b) // 255)) for a, b in pairs]


def test_a_temperature_is_fitted_to_all_images(trained: TrainedModel):
    """In any order; the second one has the complement of its mask."""
    (a, mask_a), (b, mask_b) = dataset(2, (128, 128))
    pairs, fitted = [(a, mask_a), (b, 1 - mask_b)], []
    for images in (pairs, pairs[::-1]):
        model = replace(trained)
        calibrate(model, images)
        fitted.append(model.temperatures["softmax"])
    assert fitted[0] == pytest.approx(fitted[1], rel=1e-6)


# -- calibration and the file ------------------------------------------------------------------------------------------


def test_curves_are_the_mean_losses_of_the_images(trained: TrainedModel):
    """Exactly those of `predict`, by each method with its default settings."""
    model, images = replace(trained), dataset(3, (128, 128))
    without_any_pixel = (images[0][0], torch.full_like(images[0][1], IGNORED_CLASS))
    calibrate(model, [*images, without_any_pixel])
    assert {key: one.settings for key, one in model.risk_curves.items()} == SETTINGS
    for sampler in SAMPLERS:
        losses = []
        for i, (image, target) in enumerate(images):
            pil_image = Image.fromarray(image.permute(1, 2, 0).numpy())
            losses.append(image_losses(predict(model, pil_image, sampler, str(i)).probs[1], target))
        curves = model.risk_curves[sampler.method]
        assert curves.images == 3
        np.testing.assert_allclose([curves.outer, curves.inner], np.mean(losses, axis=0), atol=1e-12)
        assert curves.outer[100] < 0.1 < curves.outer[900]
        assert curves.inner[0] > 0.5 > curves.inner[500] > curves.inner[999] == 0


def test_curves_of_groups_are_means_of_their_mean_losses(trained: TrainedModel):
    """A group of three images, one of them without a pixel that counts, and a group of one."""
    model, images = replace(trained), dataset(3, (128, 128))
    images[1:1] = [(images[0][0], torch.full_like(images[0][1], IGNORED_CLASS))]
    each, groups = [], ["a", "a", "b", "a"]
    for image in images:
        calibrate(model, [image])
        each.append(model.risk_curves.get("softmax"))
    calibrate(model, images, groups=groups)
    curves = model.risk_curves["softmax"]
    assert (curves.images, curves.groups) == (3, 2)
    for name in ("outer", "inner"):
        first, second, third = (getattr(each[i], name) for i in (0, 2, 3))
        expected = ((first + third) / 2 + second) / 2
        np.testing.assert_allclose(getattr(curves, name), expected, atol=1e-12)
        assert abs(expected - (first + second + third) / 3).max() > 0.005
    calibrate(model, images[1:2], groups=["a"])
    assert model.risk_curves == {}


def test_images_of_the_training_give_no_guarantee():
    model = TrainedModel(lively_network(), (32, 32))
    calibrate(model, dataset(1), trained_on=True)
    assert set(model.temperatures) == {"softmax", "mc_dropout", "tta"}
    assert not model.risk_curves


def test_file_keeps_the_curves(model: TrainedModel, tmp_path: Path):
    save_checkpoint(tmp_path / "m.pth", model)
    loaded = load_model(tmp_path / "m.pth").risk_curves
    assert set(loaded) == {"softmax", "mc_dropout", "tta"}
    for method, curves in loaded.items():
        assert (curves.images, curves.settings) == (99, SETTINGS[method])
        assert np.array_equal(curves.outer, model.risk_curves[method].outer)
        assert np.array_equal(curves.inner, model.risk_curves[method].inner)
    ensemble = combine_models({"a": model, "b": other_member()})
    assert not ensemble.risk_curves  # they are those of a member
    ensemble.risk_curves = {"softmax": replace(curves_of(40), groups=12)}
    save_checkpoint(tmp_path / "e.pth", ensemble)
    curves = load_model(tmp_path / "e.pth").risk_curves["softmax"]
    assert (curves.images, curves.groups, curves.n) == (40, 12, 12)
    content = read_checkpoint(tmp_path / "m.pth")
    del content["risk_curves"]["tta"]["groups"]  # as in the shipped file
    torch.save(content, tmp_path / "old.pth")
    curves = load_model(tmp_path / "old.pth").risk_curves["tta"]
    assert (curves.images, curves.groups, curves.n) == (99, None, 99)
    falling, ones = torch.linspace(1, 0, 1000), torch.ones(1000)
    short, nan = falling[-3:], torch.where(falling == 1, torch.nan, falling)
    for damage in (
        *({"images": 0}, {"groups": 0}, {"groups": 100}),
        *({"outer": one} for one in (ones, falling)),
        *({"inner": one} for one in (short, nan, 1.5 * falling, ones)),
    ):
        broken = content["risk_curves"] | {"tta": content["risk_curves"]["tta"] | damage}
        torch.save(content | {"risk_curves": broken}, tmp_path / "bad.pth")
        with pytest.raises(InputError, match=r"bad\.pth is not a checkpoint .* risk curves are not monotone losses"):
            load_model(tmp_path / "bad.pth")


def test_other_images():
    assert not are_other_images([{}], 8, "x")  # the file does not record them
    one, other = {"images": 8, "image_names": "x"}, {"images": 9, "image_names": "y"}
    assert not are_other_images([one], 8, "x")
    assert not are_other_images([one, other], 9, "y")
    assert are_other_images([one, other], 9, "z")
    assert are_other_images([one, {}], 9, "z")


# -- the thresholds ----------------------------------------------------------------------------------------------------


def test_guarantees_that_cannot_be_given(model: TrainedModel):
    assert make_guarantee(model, Softmax(), None) is None
    with pytest.raises(InputError, match=r"guarantee of 0\.995 requires 199 calibration images, this model has 99"):
        make_guarantee(model, Softmax(), 0.995)
    assert make_guarantee(model, Softmax(), 0.99).images == 99
    model.risk_curves["softmax"] = replace(curves_of(99), groups=12)
    words = r"guarantee of 0\.95 requires 19 groups of calibration images, this model has 12: calibrate it with more"
    with pytest.raises(InputError, match=words):
        make_guarantee(model, Softmax(), 0.95)
    ensemble = combine_models({"a": model, "b": other_member()})
    ensemble.risk_curves = {}
    with pytest.raises(InputError, match=r"for deep ensemble of 2, softmax.* it stores all members in one file$"):
        make_guarantee(ensemble, Softmax(), 0.9)
    model.risk_curves = {}
    with pytest.raises(
        InputError, match=r"requires a calibration for softmax.*python -m utils\.calibration on labelled .* predict$"
    ):
        make_guarantee(model, Softmax(), 0.9)


def test_guarantee_is_that_of_the_same_probabilities(model: TrainedModel, caplog: pytest.LogCaptureFixture):
    with pytest.raises(InputError, match=r"of the calibration, which had 20 passes, not 50 passes"):
        make_guarantee(model, MCDropout(num_samples=50), 0.9)
    with pytest.raises(InputError, match=r"of the calibration, which had shrink = 0\.8, not shrink = 0\.7"):
        make_guarantee(model, TestTimeAugmentation(shrink=0.7), 0.9)
    with caplog.at_level(logging.INFO):
        make_guarantee(model, MCDropout(num_samples=20, seed=3, dtype=torch.bfloat16), 0.9)
    assert "MC dropout, 20 passes: guarantee of 0.9 from 99 calibration images" in caplog.text
    assert "outer mask from a probability of 5.235e-05, inner mask above 0.9999; on average" in caplog.text
    assert "on average over images like those, not for each" in caplog.text
    same = "from 9 calibration images: one mask, from a probability of 0.5, is outer and inner mask; on average"
    assert same in str(Guarantee(0.9, 0.5, 0.5, 9))
    model.risk_curves["softmax"] = replace(curves_of(99), groups=12)
    guarantee = make_guarantee(model, Softmax(), 0.9)
    assert (guarantee.outer, guarantee.inner) == controlling_thresholds(curves_of(12), 0.9)
    assert str(guarantee).startswith("guarantee of 0.9 from 99 calibration images in 12 groups: outer mask from a ")
    assert str(guarantee).endswith("; on average over groups like those, not for each")
    assert guarantee.groups == 12


def test_passes_are_those_of_the_calibration_unless_given(model: TrainedModel):
    parser = predict_prob_bayesian.get_args_parser()
    model.risk_curves["mc_dropout"].settings["num_samples"] = 7

    def passes(*flags: str) -> int:
        args = parser.parse_args(["--input-dir", "x", "--output-dir", "y", *flags])
        return passes_from_args(args, model)

    assert (passes(), passes("--mc", "3")) == (50, 3)
    assert (passes("--guarantee", "0.9"), passes("--guarantee", "0.9", "--mc", "3")) == (7, 3)
    model.risk_curves = {}
    assert passes("--guarantee", "0.9") == 50


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_masks_are_those_of_the_thresholds(spread: TrainedModel, sampler: Sampler):
    """At full size, of the probabilities before the temperature, whether or not the maps are calibrated."""
    guarantee = make_guarantee(spread, sampler, 0.52)
    assert (guarantee.outer, guarantee.inner) == controlling_thresholds(spread.risk_curves[sampler.method], 0.52)
    of_calibrated = make_guarantee(spread, calibrated(sampler, spread), 0.52)
    for i, size in enumerate([(150, 110), (90, 130), (160, 160)]):
        image = make_image(i, size)[0]
        samples = draw_samples(spread, image, sampler, str(i))
        p = full_size_maps(samples, size, statistics=()).probs[1].numpy()
        expected = {"_outer": p >= np.float32(guarantee.outer), "_inner": p > np.float32(guarantee.inner)}
        made = predict_full_size(samples, size, MapOptions(guarantee=guarantee), max_values=2**16)
        assert 0 < expected["_inner"].sum() < expected["_outer"].sum() < p.size
        for name, region in expected.items():
            assert np.array_equal(made.greyscale_maps[name], np.where(region, 255, 0))
            assert np.array_equal(made.regions[name], region)
        samples = draw_samples(spread, image, calibrated(sampler, spread), str(i))
        made = predict_full_size(samples, size, MapOptions(guarantee=of_calibrated), max_values=2**16)
        for name, threshold in (("_outer", guarantee.outer), ("_inner", guarantee.inner)):
            decided = abs(p - threshold) > 1e-6  # the logits were divided and multiplied by the temperature
            assert decided.mean() > 0.999
            assert np.array_equal(made.regions[name][decided], expected[name][decided])


def test_no_guarantee_no_regions(model: TrainedModel):
    image = make_image(3, (50, 40))[0]
    made = predict_full_size(draw_samples(model, image, Softmax(), "x"), image.size, MapOptions())
    assert made.regions == made.greyscale_maps == {}


# -- results -----------------------------------------------------------------------------------------------------------


def test_folder_with_ground_truth(spread: TrainedModel, tmp_path: Path, capsys: pytest.CaptureFixture):
    imgs, masks = make_folders(tmp_path, 10, (80, 60))
    for path in masks.iterdir():  # the network has learnt the lesions too well
        save_png(path, np.roll(Image.open(path), 8, axis=1))
    items, out = find_items(imgs, tmp_path / "out", IMAGE_EXTENSIONS), tmp_path / "out"
    options = ProbabilityMapOptions(mask_dir=masks, guarantee=0.52)
    assert not predict_probabilities(spread, Softmax(), items, out, options).failures
    losses, areas = [], []
    for item in items:
        with Image.open(item.output(out, "_OUT_outer.png")) as file:
            outer = np.asarray(file) > 0
        with Image.open(item.output(out, "_OUT_inner.png")) as file:
            inner = np.asarray(file) > 0
        lesion = np.asarray(Image.open(masks / f"{item.path.stem}_Segmentation.png")) > 0
        p = predict(spread, read_image(item.path)).probs[1].numpy()
        losses.append([(lesion & ~outer).sum() / lesion.sum(), (inner & ~lesion).sum() / max(inner.sum(), 1)])
        areas.append([outer.sum(), inner.sum(), (p > 0.5).sum()])
    result = json.loads((out / "metrics.json").read_text())
    reached = result["guarantee"]
    mean_losses = np.mean(losses, axis=0)
    assert reached["outer_false_negative_rate"]["value"] == pytest.approx(mean_losses[0])
    assert reached["inner_false_discovery_proportion"]["value"] == pytest.approx(mean_losses[1])
    outer, inner, predicted = np.sum(areas, axis=0)
    assert reached["outer_area_ratio"]["value"] == pytest.approx(outer / predicted)
    assert reached["inner_area_ratio"]["value"] == pytest.approx(inner / predicted)
    drawn = np.random.default_rng(0).multinomial(10, [0.1] * 10, size=1000)
    for name, resampled in (
        ("outer_false_negative_rate", drawn @ np.array(losses)[:, 0] / 10),
        ("inner_area_ratio", drawn @ np.array(areas)[:, 1] / (drawn @ np.array(areas)[:, 2])),
    ):
        interval = [reached[name]["low"], reached[name]["high"]]
        assert interval == pytest.approx(np.percentile(resampled, [2.5, 97.5]).tolist())
        assert interval[0] < reached[name]["value"] < interval[1]
    assert result["run"]["guarantee"]["level"] == 0.52
    assert f"False negative rate, outer mask      {mean_losses[0]:.4f}   95 % CI" in capsys.readouterr().out
    assert "outer mask" not in format_evaluation({name: one for name, one in result.items() if name != "guarantee"})
    with open(out / "metrics.csv", newline="") as file:
        table = [float(row["inner_false_discovery_proportion"]) for row in csv.DictReader(file)]
    assert table == pytest.approx([fdp for _, fdp in losses])
    with pytest.raises(InputError, match="contains results with guarantee = "):
        predict_probabilities(spread, Softmax(), items, out, replace(options, guarantee=0.7, skip_existing=True))


def test_scripts_write_the_masks(model: TrainedModel, tmp_path: Path):
    imgs, masks = make_folders(tmp_path, 2, (40, 30))
    save_checkpoint(tmp_path / "m.pth", model)
    flags = ["-m", tmp_path / "m.pth", "--mask-dir", masks, "--guarantee", 0.6]
    result = run_script("predict.py", "--input-dir", imgs, "--output-dir", tmp_path / "p", *flags)
    assert result.returncode == 0, result.stderr
    assert "False discoveries, inner mask" in result.stdout
    names = {f"SKIN_00{i}_OUT{suffix}.png" for i in range(2) for suffix in ("", "_outer", "_inner")}
    assert {path.name for path in (tmp_path / "p").glob("*.png")} == names
    result = run_script("predict_bayesian.py", "-i", imgs, "--output-dir", tmp_path / "b", *flags)
    assert result.returncode == 0, result.stderr
    assert {"SKIN_001_outer.png", "SKIN_001_inner.png"} <= {path.name for path in (tmp_path / "b").iterdir()}
    result = run_script(
        "predict_bayesian.py", "-i", imgs, "--output-dir", tmp_path / "b", *flags[:4], "--skip-existing"
    )
    assert_one_clear_line(result, "contains results with guarantee = {'level': 0.6,")
    folders = ("--input-dir", imgs, "--output-dir", tmp_path / "q")
    result = run_script("predict_prob_bayesian.py", *folders, *flags, "--mc", 50)
    assert_one_clear_line(result, "which had 20 passes, not 50 passes (see --mc)")
    result = run_script("predict_prob_bayesian.py", "--input-dir", imgs, "--output-dir", tmp_path / "r", *flags)
    assert "MC dropout, 20 passes: guarantee of 0.6 from 99 calibration images" in result.stderr  # without --mc
    assert (tmp_path / "r" / "SKIN_001_OUT_outer.png").is_file()
    result = run_script("predict.py", "--input-dir", imgs, "--output-dir", tmp_path / "q", *flags[:-1], 0.995)
    assert_one_clear_line(result, "a guarantee of 0.995 requires 199 calibration images, this model has 99")
    assert not (tmp_path / "q").exists()


def test_calibration_on_images_of_ones_own(model: TrainedModel, tmp_path: Path):
    """All of them, since their names tell that they are not those of the training; the model is unchanged."""
    imgs, masks = make_folders(tmp_path, 5, (40, 30))
    model.settings = {"validation": 20.0, "seed": 0, "images": 20, "image_names": "x"}
    save_checkpoint(tmp_path / "m.pth", model)
    before = (tmp_path / "m.pth").read_bytes()
    flags = ["-m", tmp_path / "m.pth", "--imgs-dir", imgs, "--masks-dir", masks, "--cache-dir", tmp_path / "cache"]
    result = run_module("utils.calibration", *flags, "--output", tmp_path / "new.pth")
    assert result.returncode == 0, result.stderr
    assert "These are not the 20 images of the training: all 5 are used" in result.stderr
    new = load_model(tmp_path / "new.pth")
    assert {one.images for one in new.risk_curves.values()} == {5}
    assert "Levels that 5 calibration images can guarantee: up to 0.833" in result.stderr  # 5 / 6
    assert new.settings == model.settings
    assert (tmp_path / "m.pth").read_bytes() == before
    groups = tmp_path / "groups.csv"
    groups.write_text("image,group\n" + "".join(f"{path.stem},{i // 3}\n" for i, path in enumerate(imgs.iterdir())))
    as_validation = ["--val-imgs-dir", imgs, "--val-masks-dir", masks, "--cache-dir", tmp_path / "cache"]
    for folders in (flags, [*flags[:2], *as_validation]):
        result = run_module("utils.calibration", *folders, "--groups", groups, "--output", tmp_path / "grouped.pth")
        assert result.returncode == 0, result.stderr
        assert "Levels that 2 groups of calibration images can guarantee: up to 0.666" in result.stderr
        grouped = load_model(tmp_path / "grouped.pth")
        assert {(one.images, one.groups) for one in grouped.risk_curves.values()} == {(5, 2)}
        assert grouped.temperatures == new.temperatures
    result = run_module("utils.calibration", *flags, "--output", tmp_path / "new.txt")
    assert_one_clear_line(result, "a file name that ends with .pth was expected")


def test_contours_of_the_figure():
    image = Image.new("RGB", (40, 30), (128, 128, 128))
    maps = predict(TrainedModel(lively_network(), (32, 32)), image)
    classes = np.zeros((30, 40), dtype=np.uint8)
    outer, inner = np.zeros((2, 30, 40), dtype=bool)
    outer[5:25, 5:35], inner[10:20, 10:30] = True, True
    row = prediction_row(image, classes, maps, regions={"_outer": outer, "_inner": inner})
    figure = draw_predictions([row])
    prediction = [axes.get_images()[0] for axes in figure.axes if axes.get_images()][1].get_array()
    assert tuple(prediction[5, 20]) == OUTER_CONTOUR
    assert tuple(prediction[10, 20]) == INNER_CONTOUR
    assert tuple(prediction[15, 20]) == (128, 128, 128)  # neither is filled
    assert [text.get_text() for legend in figure.legends for text in legend.texts] == ["outer mask", "inner mask"]
    plain = draw_predictions([prediction_row(image, classes, maps)])
    assert not plain.legends


def test_caption_of_the_figure():
    scores = {"dice": 0.9, "jaccard": 0.8, "soft_dice_confidence": 0.95, "pairwise_dice": None, "area": 7}
    scores |= {"mean_entropy": 0.1, "outer_false_negative_rate": 0.04, "inner_false_discovery_proportion": 0.03}
    words = "false negative rate of the outer mask 0.040 · false discoveries of the inner mask 0.030"
    assert words in format_scores("a", scores)
    assert "mask" not in format_scores("a", {k: v for k, v in scores.items() if not k.startswith(("outer", "inner"))})
    nothing_counts = scores | region_losses(*np.zeros((2, 3, 3), bool), np.full((3, 3), IGNORED_CLASS, np.uint8))
    assert "mask" not in format_scores("a", nothing_counts)


def test_probability_above_a_threshold_of_one():
    """The empty inner mask and the full outer mask exist for every network."""
    masks = Guarantee(0.9, 0.0, 1.0, 9).masks(torch.tensor([[[0.0, 0.5, 1.0]]]))
    assert masks["_outer"].tolist() == [[255, 255, 255]]
    assert masks["_inner"].tolist() == [[0, 0, 0]]
