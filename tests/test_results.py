"""What is written of a prediction."""

import csv
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import lively_network, make_picture
from utils.checkpoint import TrainedModel
from utils.errors import InputError
from utils.probability import (
    STATISTICS,
    LogitSamples,
    MCDropout,
    Softmax,
    full_size_probs,
    most_probable_class,
    predict,
    summarize,
    to_grey,
)
from utils.results import (
    SUMMARY,
    pictures,
    predict_full_size,
    read_summary,
    save_arrays,
    saving_passes,
    write_summary,
)
from utils.uncertainty import ScoreSums


def row(image: str, confidence: float) -> dict[str, object]:
    return dict.fromkeys(SUMMARY) | {"image": image, "soft_dice_confidence": confidence, "other": 1}


def test_pictures_have_their_scale():
    model = TrainedModel(lively_network(n_classes=3), (32, 32), [0, 1, 2])
    maps = predict(model, make_picture(0, (40, 30))[0], MCDropout(num_samples=3))
    made = pictures(maps)
    assert set(made) == {
        *(f"_{name}_c{k}" for name in ("prob", "std") for k in (1, 2)),
        "_entropy",
        "_expected_entropy",
        "_mutual_information",
    }
    assert np.array_equal(made["_prob_c2"], np.round(255 * maps.probs[2].numpy()))
    assert np.array_equal(made["_std_c1"], np.round(510 * maps.std[1].numpy()))
    assert abs(made["_entropy"] - 255 / math.log(3) * maps.predictive_entropy.numpy()).max() <= 0.51
    assert set(pictures(maps, [0])) >= {"_prob", "_std"}


def test_one_sample_has_no_picture_of_spread():
    maps = predict(TrainedModel(lively_network(), (32, 32)), make_picture(0, (40, 30))[0], Softmax())
    assert set(pictures(maps)) == {"_prob", "_entropy"}


@pytest.mark.parametrize(("t", "c"), [(1, 2), (5, 2), (4, 3)])
def test_a_prediction_strip_by_strip_is_that_of_whole_maps(t: int, c: int, monkeypatch: pytest.MonkeyPatch):
    samples, size = [LogitSamples(4 * torch.randn(t, c, 7, 6, generator=torch.Generator().manual_seed(t)))], (50, 43)
    maps = summarize(samples, size)
    classes = most_probable_class(maps.probs, 0.4)
    sums = ScoreSums()
    overlaps = summarize(samples, size, threshold=0.4).overlaps
    sums.add(maps.probs, maps.predictive_entropy, torch.from_numpy(classes), overlaps)
    monkeypatch.setattr("utils.probability._CPU_STRIP", 700)  # several strips, the last one smaller
    got = predict_full_size(samples, size, pictures, STATISTICS, 0.4, keep=STATISTICS)
    assert np.array_equal(got.classes, classes)
    assert got.scores == pytest.approx(sums.scores())
    expected = pictures(maps)
    assert set(got.pictures) == set(expected)
    for ending, picture in expected.items():
        assert abs(got.pictures[ending].astype(int) - picture).max() <= 1
    torch.testing.assert_close(got.maps.probs, maps.probs)
    torch.testing.assert_close(got.maps.std, maps.std, atol=1e-6, rtol=0)
    entropy_alone = predict_full_size(samples, size, lambda maps: {}, keep=["predictive_entropy"]).maps
    torch.testing.assert_close(entropy_alone.predictive_entropy, maps.predictive_entropy)
    assert (entropy_alone.std, entropy_alone.overlaps, entropy_alone.expected_entropy) == (None, None, None)
    without = predict_full_size(samples, size, lambda maps: {})
    assert (without.maps, without.pictures) == (None, {})


@pytest.mark.parametrize("one_class", [False, True])
def test_every_pass_is_written(tmp_path: Path, one_class: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("utils.probability._CPU_STRIP", 100)
    samples = [LogitSamples(torch.randn(3, 2, 5, 5)), LogitSamples(torch.randn(2, 2, 5, 5), 1.25)]
    with saving_passes(tmp_path / "x.png", samples, (21, 17), one_class) as saves, ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda save: save(), reversed(saves)))
        assert not (tmp_path / "x_probs.npy").exists()
    every = np.stack([probs.numpy() for probs in full_size_probs(samples, (21, 17))])  # (5, 2, 17, 21)
    written = np.load(tmp_path / "x_probs.npy")
    assert np.array_equal(written, every[:, 1] if one_class else every)
    n_classes = 1 if one_class else 2
    names = {(t, c): f"x_mc{t:02d}_c{c}.png" for t in range(5) for c in range(n_classes)}
    assert {path.name for path in tmp_path.glob("*.png")} == set(names.values())
    for (t, c), name in names.items():
        with Image.open(tmp_path / name) as image:
            assert np.array_equal(image, to_grey(torch.from_numpy(every[t, c + 2 - n_classes])))


def test_arrays_are_exact(tmp_path: Path):
    maps = predict(TrainedModel(lively_network(), (32, 32)), make_picture(0, (40, 30))[0], MCDropout(num_samples=3))
    save_arrays(tmp_path / "x.png", maps)
    expected = {
        "mean": maps.probs,
        "std": maps.std,
        "entropy": maps.predictive_entropy,
        "expected_entropy": maps.expected_entropy,
        "mutual_information": maps.mutual_information,
    }
    assert {path.name for path in tmp_path.iterdir()} == {f"x_{name}.npy" for name in expected}
    for name, values in expected.items():
        got = np.load(tmp_path / f"x_{name}.npy")
        assert got.dtype == np.float32
        assert np.array_equal(got, values.numpy())
    save_arrays(tmp_path / "one.png", maps, entropies=False, one_class=True)
    assert {path.name for path in tmp_path.glob("one*")} == {"one_mean.npy", "one_std.npy"}
    assert np.load(tmp_path / "one_mean.npy").shape == (30, 40)


def test_the_image_to_review_first_comes_first(tmp_path: Path):
    path = tmp_path / "summary.csv"
    write_summary(path, [row("a.jpg", 0.9), row("b.jpg", 0.5), row("c.jpg", 0.7)])
    assert [r["image"] for r in read_summary(path)] == ["b.jpg", "c.jpg", "a.jpg"]
    with open(path, newline="") as file:
        assert tuple(next(csv.reader(file))) == SUMMARY
    write_summary(path, [row("c.jpg", 0.1), row("d.jpg", 0.6)], keep_others=True)
    assert [(r["image"], float(r["soft_dice_confidence"])) for r in read_summary(path)] == [
        ("c.jpg", 0.1),
        ("b.jpg", 0.5),
        ("d.jpg", 0.6),
        ("a.jpg", 0.9),
    ]
    write_summary(path, [row("e.jpg", 0.6)])
    assert len(read_summary(path)) == 1


def test_another_file_of_that_name_is_not_replaced(tmp_path: Path):
    path = tmp_path / "summary.csv"
    path.write_text("patient,age\n1,50\n")
    with pytest.raises(InputError, match="is no summary of predictions"):
        write_summary(path, [row("a.jpg", 0.9)], keep_others=True)
    assert path.read_text() == "patient,age\n1,50\n"
