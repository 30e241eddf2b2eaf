"""What the scripts record of a run, as the review page and a resumed run read it."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import predict
import predict_bayesian
import predict_prob_bayesian
import predict_prob_direct
from tests.conftest import lively_network, make_image
from utils.checkpoint import save_checkpoint
from utils.models import TrainedModel
from utils.review_page.page import ReviewOptions, write_review
from utils.runtime.errors import InputError


def make_data(folder: Path) -> tuple[Path, Path]:
    """An image and its mask, of which the value 128 does not count."""
    image, mask = make_image(0, (64, 48))
    values = np.array(mask.convert("L"))
    values[:12] = 128
    imgs, masks = folder / "imgs", folder / "masks"
    imgs.mkdir()
    masks.mkdir()
    image.save(imgs / "a.png")
    Image.fromarray(values).save(masks / "a.png")
    return imgs, masks


def make_model(folder: Path, seed: int = 0, ignore_value: int | None = None) -> Path:
    path = folder / f"{seed}.pth"
    save_checkpoint(path, TrainedModel(lively_network(seed, base_channels=4), (32, 32), ignore_value=ignore_value))
    return path


def run(script: ModuleType, *arguments: object) -> int:
    return script.main(script.get_args_parser().parse_args([*map(str, arguments), "--device", "cpu"]))


def methods_of(page: Path) -> list[str]:
    data = page.read_text("utf-8").split('"methods":', 1)[1]
    return [method["title"] for method in json.JSONDecoder().raw_decode(data)[0]]


def test_review_ignores_the_value_that_the_run_has_ignored(tmp_path: Path):
    (imgs, masks), model = make_data(tmp_path), make_model(tmp_path)
    common = ("-m", model, "--mask-dir", masks, "--output-dir", tmp_path / "o", "--mc", 2)
    assert run(predict_bayesian, "-i", imgs, *common, "--ignore-value", 128, "--review") == 0
    assert methods_of(tmp_path / "o" / "review.html") == ["MC dropout, 2 passes"]


def test_white_is_recorded(tmp_path: Path):
    (imgs, _), model = make_data(tmp_path), make_model(tmp_path)
    common = ("--input-dir", imgs, "-m", model, "--output-dir", tmp_path / "o")
    assert run(predict, *common, "--white", 4095) == 0
    with pytest.raises(InputError, match="with white = 4095"):
        run(predict, *common, "--white", 1023, "--skip-existing")


def test_another_ignored_value_is_no_run_to_resume(tmp_path: Path):
    (imgs, masks), model = make_data(tmp_path), make_model(tmp_path)
    common = ("-i", imgs, "-m", model, "--mask-dir", masks, "--output-dir", tmp_path / "o", "--mc", 2)
    assert run(predict_bayesian, *common, "--ignore-value", 128) == 0
    Image.fromarray(np.where(np.array(Image.open(masks / "a.png")) == 255, 255, 0).astype(np.uint8)).save(
        masks / "a.png"
    )
    with pytest.raises(InputError, match="with ignore_value = 128"):
        run(predict_bayesian, *common, "--skip-existing")


def test_review_names_a_deep_ensemble(tmp_path: Path):
    (imgs, _), models = make_data(tmp_path), [make_model(tmp_path, seed) for seed in (0, 1)]
    common = ("--input-dir", imgs, "-m", *models, "--output-dir")
    for script in (predict, predict_prob_direct):
        assert run(script, *common, tmp_path / script.__name__, "--review") == 0
        assert methods_of(tmp_path / script.__name__ / "review.html") == ["deep ensemble of 2, softmax"]


@pytest.mark.parametrize("script", [predict, predict_prob_direct])
def test_review_with_masks_that_the_run_did_not_have(script: ModuleType, tmp_path: Path):
    (imgs, masks), model = make_data(tmp_path), make_model(tmp_path, ignore_value=128)
    assert run(script, "--input-dir", imgs, "-m", model, "--output-dir", tmp_path / "o") == 0
    page, report = write_review([tmp_path / "o"], imgs, ReviewOptions(masks))
    assert page.is_file()
    assert not report.failures


def test_lost_map_of_a_pass_is_made_again(tmp_path: Path):
    (imgs, _), models = make_data(tmp_path), [make_model(tmp_path, seed) for seed in (0, 1)]
    flags = ("-i", imgs, "-m", *models, "--output-dir", tmp_path / "o", "--mc", 2, "--save-prob", "--skip-existing")
    assert run(predict_bayesian, *flags) == 0
    maps = sorted((tmp_path / "o").glob("a_mc*.png"))
    assert [path.name for path in maps] == [f"a_mc{t:02d}_c{c}.png" for t in range(4) for c in range(2)]
    listed = json.loads((tmp_path / "o" / ".progress-0.jsonl").read_text().splitlines()[-1])["files"]
    assert {*listed} == {path.name for path in (tmp_path / "o").iterdir()} - {".progress-0.jsonl", "summary.csv"}
    maps[3].unlink()
    assert run(predict_bayesian, *flags) == 0
    assert maps[3].is_file()


def test_image_with_two_outputs_is_refused(tmp_path: Path):
    (imgs, _), outputs = make_data(tmp_path), [tmp_path / "x.png", tmp_path / "y.png"]
    with pytest.raises(InputError, match=r"a\.png was given twice"):
        run(
            predict_bayesian,
            "-i",
            imgs / "a.png",
            imgs / "a.png",
            "-m",
            make_model(tmp_path),
            "--mc",
            2,
            "-o",
            *outputs,
        )


def test_results_of_other_weights_seeds_and_thresholds_are_told_apart(tmp_path: Path):
    imgs, _ = make_data(tmp_path)
    models = [make_model(tmp_path, seed) for seed in (0, 1)]
    for script, others in (
        (predict, {"weights": ("-m", models[1]), "threshold": ("-t", 0.4)}),
        (predict_prob_bayesian, {"seed": ("--seed", 1)}),
    ):
        flags = ["--input-dir", imgs, "--output-dir", tmp_path / script.__name__, "-m", models[0]]
        assert not run(script, *flags)
        for name, other in others.items():
            with pytest.raises(InputError, match=f"contains results with {name} = "):
                run(script, *flags, *other, "--skip-existing")
