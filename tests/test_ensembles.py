"""Deep ensembles: the samples of all members together, by every method, as one model and as one file."""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import assert_one_clear_line, lively_network, make_folders, make_image, run_module, run_script
from tests.reference import network_probability
from utils import calibration, model_flags
from utils.arguments import model_parent, training_folders_parent, training_parent
from utils.calibration import held_out_by_all
from utils.checkpoint import load_model, read_checkpoint, save_checkpoint
from utils.compare import read_results
from utils.data.images import IMAGE_EXTENSIONS, read_image
from utils.data.mask_classes import MaskClasses
from utils.data_loading import split_indices
from utils.inference.predictor import predict
from utils.inference.samplers import MCDropout, Sampler, Softmax, TestTimeAugmentation, calibrated, method_title
from utils.metrics.uncertainty import entropy
from utils.models import TrainedModel, combine_models
from utils.passes import evaluate_passes
from utils.pipeline.ground_truth import GroundTruth
from utils.pipeline.items import find_items
from utils.pipeline.probability_maps import ProbabilityMapOptions, predict_probabilities
from utils.runtime.errors import InputError

SAMPLERS = [Softmax(), MCDropout(num_samples=3), TestTimeAugmentation()]


def make_model(seed: int, input_size: tuple[int, int] = (32, 32), **architecture) -> TrainedModel:
    return TrainedModel(lively_network(seed, **{"base_channels": 4, **architecture}), input_size)


@pytest.fixture(scope="module")
def members() -> dict[str, TrainedModel]:
    """Three models by the names of their files; one is larger than the others, and one has another architecture."""
    return {
        "a.pth": make_model(0),
        "b.pth": make_model(1, base_channels=8),
        "c.pth": make_model(2, bilinear=True, dropout_placement="block"),
    }


@pytest.fixture
def files(members: dict[str, TrainedModel], tmp_path: Path) -> list[Path]:
    for name, member in members.items():
        save_checkpoint(tmp_path / name, member)
    return [tmp_path / name for name in members]


# -- predictions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_the_samples_are_those_of_all_members(members: dict[str, TrainedModel], sampler: Sampler):
    """So the probability and the expected entropy are the means of the members', which have equally many samples."""
    image = make_image(1, (61, 47))[0]
    alone = [predict(member, image, sampler, "x") for member in members.values()]
    together = predict(combine_models(members), image, sampler, "x")
    assert together.num_samples == 3 * sampler.passes_per_image
    probs = torch.stack([maps.probs for maps in alone]).mean(dim=0)
    expected_entropy = torch.stack([maps.expected_entropy for maps in alone]).mean(dim=0)
    torch.testing.assert_close(together.probs, probs)
    torch.testing.assert_close(together.expected_entropy, expected_entropy)
    torch.testing.assert_close(together.predictive_entropy, entropy(probs))
    information = (entropy(probs) - expected_entropy).clamp(min=0)
    torch.testing.assert_close(together.mutual_information, information, atol=1e-5, rtol=0)
    assert together.mutual_information.max() > 0.01
    assert (together.probs - alone[0].probs).abs().max() > 0.01


def test_deep_ensemble_against_reference(members: dict[str, TrainedModel]):
    image = make_image(2, (150, 90))[0]
    expected = sum(network_probability(one.network, image, size=(32, 32)) for one in members.values()) / 3
    torch.testing.assert_close(predict(combine_models(members), image).probs[1], expected, atol=2e-5, rtol=0)


def test_three_classes():
    models = {name: make_model(seed, n_classes=3) for seed, name in enumerate("ab")}
    for model in models.values():
        model.mask_values = [0, 1, 2]
    image = make_image(2, (40, 30))[0]
    expected = sum(predict(model, image).probs for model in models.values()) / 2
    torch.testing.assert_close(predict(combine_models(models), image).probs, expected)


def test_folder_equals_mean_of_the_members(members: dict[str, TrainedModel], tmp_path: Path):
    """In threads; an interrupted run is resumed by the same members only."""
    imgs, masks = make_folders(tmp_path, 3, (50, 40))
    ensemble, out = combine_models(members), tmp_path / "out"
    items = find_items(imgs, out, IMAGE_EXTENSIONS)
    options = ProbabilityMapOptions(save_npy=True, mask_dir=masks)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert not predict_probabilities(ensemble, Softmax(), items, out, options).failures
    finally:
        torch.set_num_threads(before)
    for item in items:
        image = read_image(item.path)
        expected = np.mean([predict(member, image).probs.numpy() for member in members.values()], axis=0)
        np.testing.assert_allclose(np.load(item.output(out, "_OUT_mean.npy")), expected, atol=1e-6)
    assert json.loads((out / "metrics.json").read_text())["run"]["method"] == "deep ensemble of 3, softmax"
    resumed = ProbabilityMapOptions(save_npy=True, mask_dir=masks, skip_existing=True)
    two = combine_models({name: members[name] for name in ("a.pth", "b.pth")})
    with pytest.raises(InputError, match="contains results with "):
        predict_probabilities(two, Softmax(), items, out, resumed)
    single = tmp_path / "single"
    predict_probabilities(members["a.pth"], Softmax(), items, single, options)
    assert list(read_results([out, single])) == ["deep ensemble of 3, softmax", "softmax"]


def test_passes_of_all_members(members: dict[str, TrainedModel], tmp_path: Path):
    """The first T passes are those of every member."""
    imgs, masks = make_folders(tmp_path, 1, (50, 40))
    items = find_items(imgs, tmp_path / "out", IMAGE_EXTENSIONS)
    ensemble, ground_truth = combine_models(members), GroundTruth(items, masks, MaskClasses((0, 255)))
    points = evaluate_passes(ensemble, MCDropout(num_samples=3, seed=5), items[0], ground_truth, [2, 3])
    for t, point in zip((2, 3), points, strict=True):
        (alone,) = evaluate_passes(ensemble, MCDropout(num_samples=t, seed=5), items[0], ground_truth, [t])
        assert point.confidence == pytest.approx(alone.confidence, rel=1e-5)
        assert point.counts.log_loss == pytest.approx(alone.counts.log_loss, rel=1e-5)
        maps = predict(ensemble, read_image(items[0].path), MCDropout(num_samples=t, seed=5), items[0].key)
        target = torch.from_numpy(ground_truth.read(items[0], (40, 50))).long()
        log_loss = -maps.probs.gather(0, target[None]).log().sum()
        assert float(point.counts.log_loss) == pytest.approx(float(log_loss), rel=1e-4)


# -- one model, one file -----------------------------------------------------------------------------------------------


def test_members_that_do_not_agree(members: dict[str, TrainedModel]):
    first = members["a.pth"]
    three = make_model(5, n_classes=3)
    three.mask_values = [0, 1, 2]
    values, white, ignoring, other_white = (make_model(seed) for seed in range(5, 9))
    values.mask_values, white.white, other_white.white, ignoring.ignore_value = [0, 1], 4095.0, 65535.0, 7
    wrong = {
        "classes differ, 2 and 3": three,
        "classes differ, 2 and 1": make_model(5, n_classes=1),
        r"mask values differ, \[0, 255\] and \[0, 1\]": values,
        "input sizes differ, 32x32 and 64x32": make_model(5, (64, 32)),
    }
    for words, model in wrong.items():
        with pytest.raises(InputError, match=rf"a\.pth and d\.pth cannot be members of one ensemble: their {words}"):
            combine_models({"a.pth": first, "d.pth": model})
    together = combine_models({"a.pth": first, "b.pth": white, "c.pth": ignoring})  # not recorded is no contradiction
    assert (together.white, together.ignore_value) == (4095.0, 7)
    with pytest.raises(InputError, match=r"b\.pth and c\.pth .* values of white differ, 4095\.0 and 65535\.0"):
        combine_models({"a.pth": first, "b.pth": white, "c.pth": other_white})
    with pytest.raises(ValueError, match="at least one member"):
        combine_models({})


def test_no_network_is_counted_twice(files: list[Path], tmp_path: Path):
    """Whether it has another name or is in an ensemble."""
    first, second, other = map(load_model, files)
    save_checkpoint(tmp_path / "e.pth", combine_models({"a.pth": first, "b.pth": second}))
    ensemble = load_model(tmp_path / "e.pth")
    for name, model in {"copy.pth": load_model(files[0]), "e.pth": ensemble}.items():
        with pytest.raises(InputError, match=rf"a\.pth and {name} have the same network: the members of an ensemble"):
            combine_models({"a.pth": first, "c.pth": other, name: model})
    assert len(combine_models({"c.pth": other, "e.pth": ensemble}).members) == 3
    imgs, _ = make_folders(tmp_path, 1, (40, 30))
    flags = ["--input-dir", imgs, "--output-dir", tmp_path / "out", "-m", *files[1:], tmp_path / "e.pth"]
    result = run_script("predict.py", *flags)
    assert_one_clear_line(result, "b.pth and ", "e.pth have the same network")


def test_single_model_is_no_ensemble(members: dict[str, TrainedModel]):
    model = combine_models({"a.pth": members["a.pth"]})
    assert model is members["a.pth"]
    assert method_title(Softmax(), model) == "softmax"


def test_file_of_an_ensemble(members: dict[str, TrainedModel], tmp_path: Path):
    ensemble = combine_models(members)
    ensemble.temperatures, ensemble.white = {"softmax": 1.5}, 4095.0
    save_checkpoint(tmp_path / "e.pth", ensemble)
    loaded = load_model(tmp_path / "e.pth")
    assert len(loaded.members) == len(loaded.networks) == 3
    assert (loaded.temperatures, loaded.white, loaded.mask_values) == ({"softmax": 1.5}, 4095.0, [0, 255])
    assert loaded.fingerprint() == ensemble.fingerprint()
    assert loaded.fingerprint() != members["a.pth"].fingerprint()
    assert str(calibrated(Softmax(), loaded)) == "softmax, calibrated"
    image = make_image(3, (30, 40))[0]
    for sampler in SAMPLERS:
        assert torch.equal(predict(loaded, image, sampler).probs, predict(ensemble, image, sampler).probs)
    more = combine_models({"e.pth": loaded, "d.pth": make_model(7)})
    assert len(more.members) == 4
    assert not more.temperatures  # they are of the three


def test_damaged_files_of_ensembles(members: dict[str, TrainedModel], tmp_path: Path):
    def load(members: object) -> None:
        torch.save({**content, "members": members}, tmp_path / "bad.pth")
        load_model(tmp_path / "bad.pth")

    save_checkpoint(tmp_path / "e.pth", combine_models(members))
    content = read_checkpoint(tmp_path / "e.pth")
    first, second, _ = content["members"]
    for damaged, words in (
        ([], "at least one member"),
        (7, "bad.pth is not a checkpoint"),
        ([first, {**second, "input_size": [8, 8]}], "bad.pth, member 2 is not a checkpoint .* smaller than"),
        ([first, {**second, "input_size": [64, 64]}], "bad.pth, member 1 and .* member 2 cannot be members"),
    ):
        with pytest.raises(InputError, match=words):
            load(damaged)


def test_member_without_dropout(members: dict[str, TrainedModel]):
    ensemble = combine_models({**members, "d.pth": make_model(5, dropout=0)})
    with pytest.raises(InputError, match="1 of the 4 members of this ensemble have no dropout layers"):
        MCDropout().check(ensemble)
    MCDropout().check(combine_models(members))


# -- the command line --------------------------------------------------------------------------------------------------


def parsed(parents: Sequence[argparse.ArgumentParser], *flags: object) -> argparse.Namespace:
    return argparse.ArgumentParser(parents=parents).parse_args([*map(str, flags), "--device", "cpu"])


def test_several_model_files(files: list[Path], caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        model, _ = model_flags.model_from_args(parsed([model_parent()], "-m", *files))
    assert len(model.members) == 3
    assert f"Models {files[0]}, {files[1]}, {files[2]}, an ensemble of 3, input size 32x32" in caplog.text
    with pytest.raises(InputError, match="a model was given twice"):
        model_flags.model_from_args(parsed([model_parent()], "-m", files[0], files[1], files[0]))
    with pytest.raises(InputError, match=r"c\.pth contradicts --newW 64"):
        model_flags.model_from_args(parsed([model_parent()], "-m", files[2], files[1], "--newW", 64))
    save_checkpoint(files[0].with_name("e.pth"), model)
    with pytest.raises(InputError, match=r"e\.pth contradicts --bilinear: the model has transposed convolutions"):
        model_flags.model_from_args(parsed([model_parent()], "-m", files[0].with_name("e.pth"), "--bilinear"))


def test_training_starts_from_a_single_network(members: dict[str, TrainedModel], tmp_path: Path):
    save_checkpoint(tmp_path / "e.pth", combine_models(members))
    parents = [training_parent(), training_folders_parent()]
    with pytest.raises(InputError, match=r"e\.pth is an ensemble of 3: training starts from a single network"):
        model_flags.initial_model_from_args(parsed(parents, "--load", tmp_path / "e.pth"))


def test_calibrated_ensemble_is_a_model(files: list[Path], tmp_path: Path):
    imgs, masks = make_folders(tmp_path, 3, (40, 30))
    folders = ["--imgs-dir", imgs, "--masks-dir", masks, "--cache-dir", tmp_path / "cache"]
    result = run_module("utils.calibration", "-m", *files, *folders)
    assert_one_clear_line(result, "stored in a new one: name it with --output")
    with pytest.raises(InputError, match=r"b\.pth is one of the model files"):
        calibration.main(
            calibration.get_args_parser().parse_args(["-m", *map(str, files), "--output", str(tmp_path / "b.pth")])
        )
    result = run_module("utils.calibration", "-m", *files, *folders, "--output", tmp_path / "new" / "ensemble.pth")
    assert result.returncode == 0, result.stderr
    ensemble = load_model(tmp_path / "new" / "ensemble.pth")
    assert len(ensemble.members) == 3
    assert set(ensemble.temperatures) == {"softmax", "mc_dropout", "tta"}
    assert {key: one.images for key, one in ensemble.risk_curves.items()} == dict.fromkeys(ensemble.temperatures, 3)
    assert not load_model(files[0]).temperatures  # the members' files are unchanged

    flags = ["--input-dir", imgs, "--output-dir", tmp_path / "out", "--save-npy", "--calibrated", "-m"]
    assert_one_clear_line(run_script("predict_prob_direct.py", *flags, *files), "no temperature for deep ensemble of 3")
    result = run_script("predict_prob_direct.py", *flags, tmp_path / "new" / "ensemble.pth")
    assert result.returncode == 0, result.stderr
    expected = predict(ensemble, read_image(imgs / "SKIN_001.jpg"), calibrated(Softmax(), ensemble)).probs
    np.testing.assert_allclose(np.load(tmp_path / "out" / "SKIN_001_OUT_mean.npy"), expected, atol=1e-6)

    flags = ["--input-dir", imgs, "--output-dir", tmp_path / "sure", "--guarantee", 0.7, "-m"]
    assert_one_clear_line(
        run_script("predict_prob_direct.py", *flags, *files), "requires a calibration for deep ensemble of 3"
    )
    result = run_script("predict_prob_direct.py", *flags, tmp_path / "new" / "ensemble.pth")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "sure" / "SKIN_001_OUT_outer.png").is_file()


def test_images_that_all_members_have_held_out():
    models = [make_model(seed) for seed in range(3)]
    for seed, model in enumerate(models):
        model.settings = {"validation": 60.0, "seed": seed, "images": 10, "image_names": "x"}
    held_out = [set(split_indices(10, 60.0, seed)[1]) for seed in range(3)]
    common = held_out[0] & held_out[1] & held_out[2]
    assert 0 < len(common) < 6
    ensemble = combine_models(dict(zip("abc", models, strict=True)))
    assert held_out_by_all(ensemble, 10, "x", None) == sorted(common)
    assert held_out_by_all(models[0], 10, "x", None) == split_indices(10, 60.0, 0)[1]
    models[2].settings = {"validation": 60.0, "seed": 2, "images": 9, "image_names": "y"}
    with pytest.raises(InputError, match=r"these 10 images are not the 9 .* on other labelled images, name them with"):
        held_out_by_all(combine_models(dict(zip("abc", models, strict=True))), 10, "x", None)
    models[1].settings = {"validation": 10.0, "seed": 0, "images": 10, "image_names": "x"}
    models[2].settings = {"validation": 10.0, "seed": 1, "images": 10, "image_names": "x"}
    assert not set(split_indices(10, 10.0, 0)[1]) & set(split_indices(10, 10.0, 1)[1])
    with pytest.raises(InputError, match="no image was held out by all members"):
        held_out_by_all(combine_models(dict(zip("abc", models, strict=True))), 10, "x", None)
