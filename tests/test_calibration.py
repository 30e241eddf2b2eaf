"""The command that fits the temperatures of an existing model, and --calibrated, which uses them."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import ROOT, assert_one_clear_line, lively_network, make_folders, run_module, run_script
from utils.calibration import held_out_indices
from utils.checkpoint import TrainedModel, load_model, save_checkpoint
from utils.data.groups import name_digests, names_digest
from utils.data_loading import split_indices
from utils.runtime.errors import InputError
from utils.runtime.output_folder import output_folder
from utils.runtime.seeds import json_digest


def test_command_uses_the_validation_images(tmp_path: Path):
    imgs, masks = make_folders(tmp_path, 8, (48, 40))
    path = tmp_path / "m.pth"
    names = names_digest(sorted(imgs.iterdir()), imgs)
    settings = {"validation": 25.0, "seed": 3, "images": 8, "image_names": names}
    save_checkpoint(path, TrainedModel(lively_network(), (32, 32), settings=settings))
    flags = ["-m", path, "--imgs-dir", imgs, "--masks-dir", masks, "--cache-dir", tmp_path / "cache"]
    result = run_module("utils.calibration", *flags)
    assert result.returncode == 0, result.stderr
    assert "Fitting on 2 images" in result.stderr
    temperature = load_model(path).temperatures["softmax"]
    assert f"softmax {temperature:.3f}" in result.stderr

    logits = {}
    for flag in ("", "--calibrated"):
        folder = tmp_path / f"o{flag}"
        common = ["--input-dir", imgs, "--output-dir", folder, "-m", path, "--save-npy", *flag.split()]
        assert run_script("predict_prob_direct.py", *common).returncode == 0
        p = np.load(folder / "SKIN_000_OUT_mean.npy")[1].astype(float)
        logits[flag] = np.log(p / (1 - p))
    # One pass: the logits at the image's size are linear in those of the network.
    np.testing.assert_allclose(logits["--calibrated"], logits[""] / temperature, rtol=1e-3, atol=1e-4)

    (imgs / "SKIN_000.jpg").unlink()
    (masks / "SKIN_000_Segmentation.png").unlink()
    result = run_module("utils.calibration", *flags)
    assert result.returncode == 2
    assert "these 7 images are not the 8 that the model was trained on" in result.stderr
    assert "images, name them with --val-imgs-dir and --val-masks-dir, and a new file (see --output)" in result.stderr


def test_the_seed_is_that_of_the_dropout_masks(tmp_path: Path):
    imgs, masks = make_folders(tmp_path, 2, (48, 40))
    save_checkpoint(tmp_path / "m.pth", TrainedModel(lively_network(), (32, 32)))
    flags = ["-m", tmp_path / "m.pth", "--imgs-dir", imgs, "--masks-dir", masks, "--cache-dir", tmp_path / "cache"]

    def losses(*seed: object) -> dict[str, list[float]]:
        result = run_module("utils.calibration", *flags, "--output", tmp_path / "new.pth", *seed)
        assert result.returncode == 0, result.stderr
        return {
            method: curves.outer.tolist() for method, curves in load_model(tmp_path / "new.pth").risk_curves.items()
        }

    first, second = losses(), losses("--seed", 1)
    assert losses("--seed", 0) == first
    assert {method for method in first if first[method] != second[method]} == {"mc_dropout"}


@pytest.mark.parametrize("output", [None, "new.pth"])
def test_white_of_the_images_is_recorded(tmp_path: Path, output: str | None):
    """Other 16-bit images may be darker, and would otherwise be read with another white than the guarantee's."""
    imgs, masks = make_folders(tmp_path, 2, (48, 40))
    for path in list(imgs.iterdir()):
        grey = np.asarray(Image.open(path).convert("L"), np.uint16)
        Image.fromarray(grey * 12).save(path.with_suffix(".png"))
        path.unlink()
    save_checkpoint(tmp_path / "m.pth", TrainedModel(lively_network(), (32, 32)))
    flags = ["-m", tmp_path / "m.pth", "--imgs-dir", imgs, "--masks-dir", masks, "--cache-dir", tmp_path / "cache"]
    flags += ["--output", tmp_path / output] if output else []
    result = run_module("utils.calibration", *flags)
    assert result.returncode == 0, result.stderr
    assert "white is 4095" in result.stderr
    assert load_model(tmp_path / (output or "m.pth")).white == 4095


def test_held_out_images():
    settings = {"validation": 25.0, "seed": 3, "images": 8, "image_names": "x"}
    model = TrainedModel(lively_network(), settings=settings)
    assert held_out_indices(model, 8, "x", None) == split_indices(8, 25.0, 3)[1]
    with pytest.raises(InputError, match="these 7 images are not the 8 that the model was trained on, or not in their"):
        held_out_indices(model, 7, "y", None)
    unsplit = TrainedModel(lively_network())  # as of another project: the split is not recorded
    assert list(held_out_indices(unsplit, 7, "x", None)) == list(range(7))


def test_held_out_groups():
    groups, other = list("aabbccdd"), list("aabbccde")
    settings = {"validation": 25.0, "seed": 3, "images": 8, "image_names": "x"}
    model = TrainedModel(lively_network(), settings=settings | {"groups": json_digest(groups)})
    assert held_out_indices(model, 8, "x", groups) == split_indices(8, 25.0, 3, groups)[1]
    with pytest.raises(InputError, match=r"split by groups .* with the same --groups"):
        held_out_indices(model, 8, "x", None)
    with pytest.raises(InputError, match="split with the groups of another file"):
        held_out_indices(model, 8, "x", other)
    with pytest.raises(InputError, match="split without groups"):
        held_out_indices(TrainedModel(lively_network(), settings=settings), 8, "x", groups)


def test_validation_images_of_another_folder(tmp_path: Path):
    model = TrainedModel(lively_network(), (32, 32), settings={"validation": 15.0, "images": 8, "validation_images": 3})
    with pytest.raises(InputError, match="3 images of another folder: name it with --val-imgs-dir and --val-masks-dir"):
        held_out_indices(model, 8, "x", None)
    save_checkpoint(tmp_path / "m.pth", model)
    imgs, masks = make_folders(tmp_path, 3, (48, 40))
    flags = ["-m", tmp_path / "m.pth", "--val-imgs-dir", imgs, "--val-masks-dir", masks, "--cache-dir", tmp_path / "c"]
    result = run_module("utils.calibration", *flags)
    assert result.returncode == 0, result.stderr
    assert "Fitting on 3 images" in result.stderr
    assert "may have been trained on" not in result.stderr


def test_images_of_the_training_are_warned_of(tmp_path: Path):
    """Copies of them, and validation images on which the model has been trained before with another split."""
    imgs, masks = make_folders(tmp_path, 8, (48, 40))
    images = sorted(imgs.iterdir())
    split = {"validation": 25.0, "seed": 3, "groups": None, "images": 8, "image_names": names_digest(images, imgs)}
    training, held_out = split_indices(8, 25.0, 3)
    common = ["-m", tmp_path / "m.pth", "--cache-dir", tmp_path / "c"]
    folders, copies = (("--imgs-dir", imgs, "--masks-dir", masks), ("--val-imgs-dir", imgs, "--val-masks-dir", masks))
    new = ["--output", tmp_path / "new.pth"]
    for also, flags, warning in (
        ([], folders, None),
        (held_out[:1], folders, "trained on 1 of the 2 images, by their names: temperatures and guarantees"),
        ([], [*copies, *new], "trained on 6 of the 8 images, by their names: temperatures and guarantees"),
    ):
        trained = name_digests([images[i] for i in (*training, *also)], imgs)
        settings = split | {"trained_names": sorted(set().union(*trained))}
        save_checkpoint(tmp_path / "m.pth", TrainedModel(lively_network(), (32, 32), settings=settings))
        result = run_module("utils.calibration", *common, *flags)
        assert result.returncode == 0, result.stderr
        assert warning in result.stderr if warning else "trained on" not in result.stderr
    for image in images[1:]:  # another format changes no name
        Image.open(image).save(image.with_suffix(".bmp"))
        image.unlink()
    images[0].rename(imgs / "T.jpg")
    (masks / "SKIN_000_Segmentation.png").rename(masks / "T_Segmentation.png")
    result = run_module("utils.calibration", *common, *folders, *new)
    assert "These are not the 8 images of the training: all 8 are used\n" in result.stderr
    assert f"trained on {6 - (0 in training)} of the 8 images" in result.stderr


def test_images_with_the_names_of_the_training(tmp_path: Path):
    """They are taken for them; whoever has others of these names reads how to use all."""
    imgs, masks = make_folders(tmp_path, 8, (48, 40))
    settings = {"validation": 25.0, "seed": 3, "groups": None, "images": 8}
    settings |= {"image_names": names_digest(sorted(imgs.iterdir()), imgs)}
    save_checkpoint(tmp_path / "m.pth", TrainedModel(lively_network(), (32, 32), settings=settings))
    flags = ["-m", tmp_path / "m.pth", "--imgs-dir", imgs, "--masks-dir", masks, "--cache-dir", tmp_path / "c"]
    line = "By their names these are the 8 images of the training: those that were held out are used"
    for output in ((), ("--output", tmp_path / "new.pth")):
        result = run_module("utils.calibration", *flags, *output)
        assert result.returncode == 0, result.stderr
        assert "Fitting on 2 images" in result.stderr
        assert (line in result.stderr) == bool(output)


def calibrated_on_masks_of(value: int, folder: Path, *flags: object) -> subprocess.CompletedProcess:
    """The command on two images, all pixels of whose masks have a value."""
    imgs, masks = make_folders(folder, 2, (48, 40))
    save_checkpoint(folder / "before.pth", TrainedModel(lively_network(), (32, 32), temperatures={"softmax": 1.5}))
    shutil.copy(folder / "before.pth", folder / "m.pth")
    for path in masks.iterdir():
        Image.new("L", (48, 40), value).save(path)
    folders = ["--imgs-dir", imgs, "--masks-dir", masks, "--cache-dir", folder / "c"]
    return run_module("utils.calibration", "-m", folder / "m.pth", *folders, *flags)


def test_without_a_pixel_that_counts_the_file_stays(tmp_path: Path):
    result = calibrated_on_masks_of(7, tmp_path, "--ignore-value", 7)
    assert_one_clear_line(result, "every pixel of the 2 images is ignored: some have to count (see --ignore-value)")
    assert (tmp_path / "m.pth").read_bytes() == (tmp_path / "before.pth").read_bytes()


def test_without_a_lesion_there_is_no_guarantee(tmp_path: Path):
    result = calibrated_on_masks_of(0, tmp_path)
    assert result.returncode == 0
    assert "No image has a lesion: the images give temperatures, but cannot support a guarantee" in result.stderr
    assert "Levels that" not in result.stderr
    assert load_model(tmp_path / "m.pth").risk_curves == {}


def test_ignored_pixels_of_several_masks_do_not_count(tmp_path: Path):
    imgs, masks = make_folders(tmp_path, 2, (48, 40))
    for path in list(masks.iterdir()):
        mask = np.array(Image.open(path)).astype(np.int16)
        mask[:20] = -1
        for i in range(2):
            Image.fromarray(mask.astype(np.int32)).save(masks / f"{path.name.partition('_S')[0]}_mask_{i}.tif")
        path.unlink()
    save_checkpoint(tmp_path / "m.pth", TrainedModel(lively_network(), (32, 32)))
    flags = ["-m", tmp_path / "m.pth", "--imgs-dir", imgs, "--masks-dir", masks, "--cache-dir", tmp_path / "c"]
    result = run_module("utils.calibration", *flags, "--ignore-value", -1)
    assert result.returncode == 0, result.stderr
    assert "-1 ignored, 50 % of all" in result.stderr


def test_file_of_a_calibration(tmp_path: Path):
    """A link stays one, and the default model, which is found from everywhere, is not replaced."""
    imgs, masks = make_folders(tmp_path, 1, (48, 40))
    save_checkpoint(tmp_path / "m.pth", TrainedModel(lively_network(), (32, 32)))
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / "link.pth").symlink_to(tmp_path / "m.pth")
    flags = ["--imgs-dir", imgs, "--masks-dir", masks, "--cache-dir", tmp_path / "c"]
    result = run_module("utils.calibration", "-m", folder / "link.pth", *flags)
    assert result.returncode == 0, result.stderr
    assert (folder / "link.pth").is_symlink()
    assert "softmax" in load_model(tmp_path / "m.pth").temperatures
    (folder / "output.pth").symlink_to(tmp_path / "new.pth")
    flags += ["-m", tmp_path / "m.pth"]
    assert run_module("utils.calibration", *flags, "--output", folder / "output.pth").returncode == 0
    assert (folder / "output.pth").is_symlink()
    assert (tmp_path / "new.pth").is_file()
    shipped, nowhere = ROOT / "pretrained_model.pth", ["--imgs-dir", tmp_path / "nowhere"]
    result = run_module("utils.calibration", *nowhere, "--output", shipped, cwd=tmp_path)
    assert_one_clear_line(result, "pretrained_model.pth is one of the model files: it would be lost")


def test_without_a_new_file_validation_images_are_those_of_the_training(tmp_path: Path):
    imgs, masks = make_folders(tmp_path, 3, (48, 40))
    settings = {"validation": 15.0, "images": 8, "image_names": "x", "validation_images": 3}
    flags = ["-m", tmp_path / "m.pth", "--val-imgs-dir", imgs, "--val-masks-dir", masks, "--cache-dir", tmp_path / "c"]
    for names in ("y", None):  # those of another folder; of a split
        model = TrainedModel(lively_network(), (32, 32), settings=settings | {"validation_image_names": names})
        save_checkpoint(tmp_path / "m.pth", model)
        before = (tmp_path / "m.pth").read_bytes()
        result = run_module("utils.calibration", *flags)
        assert_one_clear_line(result, "not the images that the model was validated on", "a new file (see --output)")
        assert (tmp_path / "m.pth").read_bytes() == before
    assert run_module("utils.calibration", *flags, "--output", tmp_path / "new.pth").returncode == 0
    model.settings["validation_image_names"] = names_digest(sorted(imgs.iterdir()), imgs)
    save_checkpoint(tmp_path / "m.pth", model)
    assert run_module("utils.calibration", *flags).returncode == 0


def test_training_images_as_validation_images(caplog: pytest.LogCaptureFixture):
    settings = {"validation": 0.0, "seed": 3, "images": 8, "image_names": "x"}
    assert held_out_indices(TrainedModel(lively_network(), settings=settings), 8, "x", None) == list(range(8))
    assert "validated on its training images" in caplog.text


def test_file_of_another_project_is_not_changed(tmp_path: Path):
    """Its readers would not know a calibration in it, and neither would this project."""
    imgs, masks = make_folders(tmp_path, 2, (48, 40))
    torch.save(lively_network(dropout=0.0).state_dict(), tmp_path / "m.pth")
    before = (tmp_path / "m.pth").read_bytes()
    flags = ["-m", tmp_path / "m.pth", "--imgs-dir", imgs, "--masks-dir", masks, "--cache-dir", tmp_path / "cache"]
    result = run_module("utils.calibration", *flags)
    assert_one_clear_line(result, "is a file of another project", "name a new one (see --output)")
    assert (tmp_path / "m.pth").read_bytes() == before


def test_the_folder_of_the_model_is_not_that_of_a_run(tmp_path: Path):
    """Such as a training, which writes best.pth there."""
    imgs, masks = make_folders(tmp_path, 2, (48, 40))
    path = tmp_path / "checkpoints" / "best.pth"
    path.parent.mkdir()
    save_checkpoint(path, TrainedModel(lively_network(), (32, 32)))
    before = path.read_bytes()
    flags = ["-m", path, "--imgs-dir", imgs, "--masks-dir", masks, "--cache-dir", tmp_path / "cache"]
    with output_folder(path.parent):
        result = run_module("utils.calibration", *flags)
        assert_one_clear_line(result, f"{path.parent} is being written by another run", "wait for its end")
        assert path.read_bytes() == before
        result = run_module("utils.calibration", *flags, "--output", path.with_name("new.pth"))
        assert result.returncode == 0, result.stderr
    assert {file.name for file in path.parent.iterdir()} == {"best.pth", "new.pth"}


def test_no_guarantee_from_training_images(tmp_path: Path):
    """The model was validated on the images that it was trained on."""
    imgs, masks = make_folders(tmp_path, 2, (48, 40))
    settings = {"validation": 0.0, "seed": 0, "images": 2, "image_names": names_digest(sorted(imgs.iterdir()), imgs)}
    path = tmp_path / "model.pth"
    save_checkpoint(path, TrainedModel(lively_network(), (32, 32), settings=settings))
    flags = ["-m", path, "--imgs-dir", imgs, "--masks-dir", masks, "--cache-dir", tmp_path / "cache"]
    assert run_module("utils.calibration", *flags).returncode == 0
    model = load_model(path)
    assert model.temperatures
    assert model.risk_curves == {}


def test_ignored_value(tmp_path: Path):
    imgs, masks = make_folders(tmp_path, 2, (48, 40))
    for path in masks.iterdir():
        mask = np.array(Image.open(path))
        mask[:10] = 128
        Image.fromarray(mask).save(path)
    save_checkpoint(tmp_path / "model.pth", TrainedModel(lively_network(), (32, 32)))
    flags = ["-m", tmp_path / "model.pth", "--imgs-dir", imgs, "--masks-dir", masks, "--cache-dir", tmp_path / "cache"]
    assert run_module("utils.calibration", *flags).returncode == 2
    assert run_module("utils.calibration", *flags, "--ignore-value", 128).returncode == 0
