"""The files of an image's results."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import lively_network, make_image
from utils.checkpoint import TrainedModel
from utils.inference.maps import ProbabilityMaps, full_size_maps, split_samples, to_greyscale
from utils.inference.predictor import predict
from utils.inference.samplers import MCDropout, Sampler, Softmax
from utils.inference.upsampling import LogitSamples
from utils.pipeline.outputs import make_greyscale_maps, pass_writers, save_float_maps


def predicted_maps(sampler: Sampler, n_classes: int = 2) -> ProbabilityMaps:
    model = TrainedModel(lively_network(n_classes=n_classes), (32, 32), list(range(n_classes)))
    return predict(model, make_image(0, (40, 30))[0], sampler)


def test_grey_maps_are_scaled():
    maps = predicted_maps(MCDropout(num_samples=3), n_classes=3)
    greyscale_maps = make_greyscale_maps(maps)
    assert set(greyscale_maps) == {
        *(f"_{name}_c{k}" for name in ("prob", "std") for k in (1, 2)),
        "_entropy",
        "_expected_entropy",
        "_mutual_information",
    }
    assert np.array_equal(greyscale_maps["_prob_c2"], np.round(255 * maps.probs[2].numpy()))
    assert np.array_equal(greyscale_maps["_std_c1"], np.round(510 * maps.std[1].numpy()))
    assert abs(greyscale_maps["_entropy"] - 255 / math.log(3) * maps.predictive_entropy).max() <= 0.51
    assert set(make_greyscale_maps(maps, [0])) >= {"_prob", "_std"}


def test_single_sample_has_no_map_of_the_spread():
    assert set(make_greyscale_maps(predicted_maps(Softmax()))) == {"_prob", "_entropy"}


@pytest.mark.parametrize("one_class", [False, True])
def test_every_pass_is_written(tmp_path: Path, one_class: bool):
    samples = [LogitSamples(torch.randn(3, 2, 5, 5)), LogitSamples(torch.randn(2, 2, 5, 5), 1.25)]
    writers = pass_writers(tmp_path / "x.png", samples, (21, 17), one_class, max_values=100)
    with writers as save_passes, ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda save: save(), reversed(save_passes)))
        assert not (tmp_path / "x_probs.npy").exists()
    passes = (full_size_maps([sample], (21, 17), (), max_values=100).probs for sample in split_samples(samples))
    probs = np.stack([p.numpy() for p in passes])  # (5, 2, 17, 21)
    written = np.load(tmp_path / "x_probs.npy")
    assert np.array_equal(written, probs[:, 1] if one_class else probs)
    n_classes = 1 if one_class else 2
    names = {(t, c): f"x_mc{t:02d}_c{c}.png" for t in range(5) for c in range(n_classes)}
    assert {path.name for path in tmp_path.glob("*.png")} == set(names.values())
    for (t, c), name in names.items():
        with Image.open(tmp_path / name) as image:
            assert np.array_equal(image, to_greyscale(torch.from_numpy(probs[t, c + 2 - n_classes])))


def test_float_maps_are_exact(tmp_path: Path):
    maps = predicted_maps(MCDropout(num_samples=3))
    expected = {
        "mean": maps.probs,
        "std": maps.std,
        "entropy": maps.predictive_entropy,
        "expected_entropy": maps.expected_entropy,
        "mutual_information": maps.mutual_information,
    }
    paths = {tmp_path / f"x_{name}.npy" for name in expected}
    assert set(save_float_maps(tmp_path / "x.png", maps)) == set(tmp_path.iterdir()) == paths
    for name, values in expected.items():
        written = np.load(tmp_path / f"x_{name}.npy")
        assert written.dtype == np.float32
        assert np.array_equal(written, values.numpy())


def test_float_maps_of_a_one_class_model(tmp_path: Path):
    save_float_maps(tmp_path / "one.png", predicted_maps(MCDropout(num_samples=3)), entropies=False, one_class=True)
    assert {path.name for path in tmp_path.iterdir()} == {"one_mean.npy", "one_std.npy"}
    assert np.load(tmp_path / "one_mean.npy").shape == (30, 40)
