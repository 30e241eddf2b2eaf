"""The three samplers and the way to full size, against the straightforward way and against known values."""

import math
import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import lively_network, make_picture
from tests.reference import network_probability, tta_probability
from unet import draw_dropout_masks, mc_dropout
from utils import probability
from utils.checkpoint import TrainedModel
from utils.errors import InputError
from utils.probability import (
    STATISTICS,
    LogitSamples,
    MCDropout,
    Softmax,
    TestTimeAugmentation,
    bilinear_matrix,
    calibrate,
    derived_seed,
    full_size_probs,
    most_probable_class,
    predict,
    shrunk_on_black,
    summarize,
    to_grey,
    turn,
    turn_back,
)
from utils.uncertainty import entropy


def random_samples(seed: int = 0, t: int = 5, c: int = 2, h: int = 6, w: int = 7) -> list[LogitSamples]:
    generator = torch.Generator().manual_seed(seed)
    return [LogitSamples(3 * torch.randn(t, c, h, w, generator=generator))]


# -- against the straightforward way


@pytest.mark.parametrize("size", [(256, 256), (613, 411), (77, 90)])
def test_softmax_is_the_straightforward_computation(trained: TrainedModel, size: tuple[int, int]):
    image = make_picture(1, size)[0]
    maps = predict(trained, image, Softmax())
    torch.testing.assert_close(maps.probs[1], network_probability(trained.network, image), atol=2e-5, rtol=0)
    assert maps.probs.shape == (2, size[1], size[0])


def test_sigmoid_is_the_straightforward_computation():
    model = TrainedModel(lively_network(n_classes=1))
    image = make_picture(1, (200, 150))[0]
    maps = predict(model, image, Softmax())
    torch.testing.assert_close(maps.probs[1], network_probability(model.network, image), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("size", "most"), [((1200, 900), 0.3), ((1001, 1103), 0.3), ((256, 256), 1.2)], ids=["12:9", "odd", "256"]
)
def test_tta_is_the_mean_of_16_views_made_one_at_a_time(trained: TrainedModel, size: tuple[int, int], most: float):
    image = make_picture(2, size)[0]
    expected = tta_probability(lambda view: network_probability(trained.network, view), image)
    got = predict(trained, image, TestTimeAugmentation(), statistics=()).probs[1]
    assert 255 * (got - expected).abs().mean() <= most
    plain = predict(trained, image, Softmax(), statistics=()).probs[1]
    assert (got - expected).abs().mean() < 0.5 * (plain - expected).abs().mean()  # the bound says something


def test_mc_dropout_is_the_mean_of_single_passes_with_the_same_masks(trained: TrainedModel):
    image = make_picture(3, (300, 200))[0]
    masks = draw_dropout_masks(trained.network, 7, derived_seed(11, "a.jpg"))
    passes = []
    for t in range(7):
        with mc_dropout(trained.network, [mask[t : t + 1] for mask in masks]):
            passes.append(network_probability(trained.network, image))
    expected = torch.stack(passes)
    maps = predict(trained, image, MCDropout(batch_size=3, num_samples=7, seed=11), name="a.jpg")
    torch.testing.assert_close(maps.probs[1], expected.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(maps.std[1], expected.std(0, correction=0), atol=1e-5, rtol=0)
    assert maps.std.max() > 0.01


# -- samplers


def test_mc_dropout_repeats_by_seed_and_name_and_not_by_batch(trained: TrainedModel):
    image = make_picture(3, (60, 50))[0]

    def probs(name: str = "a", seed: int = 0, batch_size: int = 8) -> torch.Tensor:
        return predict(trained, image, MCDropout(batch_size, num_samples=6, seed=seed), name).probs

    assert torch.equal(probs(), probs())
    assert torch.equal(probs(), probs(batch_size=1))
    assert not torch.allclose(probs(), probs(seed=1), atol=1e-3)
    assert not torch.allclose(probs(), probs(name="b"), atol=1e-3)


def test_images_predicted_together_are_as_if_alone(trained: TrainedModel):
    images = [make_picture(i, (90, 70))[0] for i in range(3)]
    names = ["x", "y", "z"]
    for sampler in (Softmax(), MCDropout(num_samples=3), TestTimeAugmentation()):
        inputs = [sampler.inputs(image, trained.input_size) for image in images]
        together = sampler.sample(trained, inputs, names)
        for i, name in enumerate(names):
            (alone,) = sampler.sample(trained, inputs[i : i + 1], [name])
            for a, b in zip(alone, together[i], strict=True):
                assert a.zoom == b.zoom
                assert torch.equal(a.logits, b.logits)


def test_out_of_memory_is_met_with_smaller_batches(trained: TrainedModel, monkeypatch: pytest.MonkeyPatch):
    image, forward, seen = make_picture(3, (60, 50))[0], trained.network.forward, []

    def crowded(x: torch.Tensor) -> torch.Tensor:
        if len(x) > 3:
            raise torch.OutOfMemoryError
        seen.append(len(x))
        return forward(x)

    expected = predict(trained, image, MCDropout(num_samples=7)).probs
    monkeypatch.setattr(trained.network, "forward", crowded)
    torch.testing.assert_close(predict(trained, image, MCDropout(num_samples=7)).probs, expected, atol=1e-5, rtol=0)
    assert seen == [2, 2, 2, 2]  # of 7, filled up to two blocks of 4


def test_sampling_leaves_the_network_and_the_random_state_as_they_were(trained: TrainedModel):
    state, modes = torch.get_rng_state(), [m.training for m in trained.network.modules()]
    before = {name: value.clone() for name, value in trained.network.state_dict().items()}
    predict(trained, make_picture(0, (40, 40))[0], MCDropout(num_samples=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in trained.network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in trained.network.state_dict().items())


def test_methods_that_a_model_cannot_do_are_refused():
    image = make_picture(0, (40, 40))[0]
    with pytest.raises(InputError, match="no dropout"):
        predict(TrainedModel(lively_network(dropout=0)), image, MCDropout())
    with pytest.raises(InputError, match="64x128"):
        predict(TrainedModel(lively_network(), (64, 128)), image, TestTimeAugmentation())
    assert predict(TrainedModel(lively_network(), (64, 128)), image, MCDropout()).probs.shape == (2, 40, 40)


def test_mixed_precision_is_close(trained: TrainedModel):
    image = make_picture(4, (300, 200))[0]
    for kind in (Softmax, MCDropout, TestTimeAugmentation):
        single, mixed = (predict(trained, image, kind(dtype=dtype), statistics=()) for dtype in (None, torch.bfloat16))
        difference = 255 * (single.probs - mixed.probs).abs()
        assert difference.mean() < 1
        assert difference.max() > 0


# -- symmetries and the smaller copy


def test_the_8_symmetries_are_all_different_and_have_inverses():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    views = [turn(x, k) for k in range(8)]
    assert len({tuple(view.flatten().tolist()) for view in views}) == 8
    assert all(torch.equal(turn_back(view, k), x) for k, view in enumerate(views))


@pytest.mark.parametrize("size", [(640, 480), (256, 256), (333, 1000)])
@pytest.mark.parametrize("shrink", [0.8, 0.5, 0.97, 0.1])
def test_the_smaller_copy_is_a_smaller_picture_on_black(size: tuple[int, int], shrink: float):
    """Made by enlarging the canvas instead, which needs no thought about what lies between pixels."""
    image = make_picture(5, size)[0]
    pads = [math.ceil(length * (1 / shrink - 1) / 2) for length in size]
    exact = [length * (1 / shrink - 1) / 2 for length in size]
    canvas = Image.new("RGB", (size[0] + 2 * pads[0], size[1] + 2 * pads[1]))
    canvas.paste(image, tuple(pads))
    left, top = (pad - e for pad, e in zip(pads, exact, strict=True))
    box = (left, top, canvas.width - left, canvas.height - top)
    expected = np.asarray(canvas.resize((128, 128), Image.Resampling.BICUBIC, box=box), dtype=int)
    got = shrunk_on_black(image, (128, 128), shrink).permute(1, 2, 0).numpy().astype(int)
    assert abs(got - expected).max() <= 1
    assert (got[:3] == 0).all() or shrink > 0.95


def test_a_copy_of_full_size_is_the_image():
    sampler = TestTimeAugmentation(shrink=1.0)
    plain, shrunk = sampler.inputs(make_picture(6, (200, 100))[0], (128, 128))
    assert torch.equal(plain, shrunk)


@pytest.mark.parametrize("shrink", [0.8, 0.6, 0.93])
@pytest.mark.parametrize("size", [(256, 256), (250, 333)])
def test_the_way_back_is_the_inverse_of_the_way_there(size: tuple[int, int], shrink: float):
    """A smooth picture goes onto the canvas and comes back as it was, pixel by pixel."""
    x, y = np.meshgrid(np.linspace(0, 2.2, size[0]), np.linspace(0, 1.7, size[1]))
    smooth = 128 + 50 * np.sin(x + 0.3) * np.cos(1.5 * y) + 30 * np.sin(2 * y + x)
    image = Image.fromarray(np.repeat(np.round(smooth).astype(np.uint8)[..., None], 3, axis=2))
    canvas = shrunk_on_black(image, (128, 128), shrink).float()  # stands for what a network says of it
    inner = slice(8, -8)  # at its border the picture meets the black
    (got,) = full_size_probs_linear([LogitSamples(canvas[None, :1], 1 / shrink)], size)
    difference = (got - torch.from_numpy(smooth))[inner, inner]
    assert difference.abs().max() < 1.5  # of 255, half of it from rounding to 8 bits twice
    assert abs(difference.mean()) < 0.05


def full_size_probs_linear(samples: list[LogitSamples], size: tuple[int, int]) -> list[torch.Tensor]:
    """What `full_size_probs` does before the softmax."""
    (logits, zoom), (width, height) = samples[0], size
    rows, columns = bilinear_matrix(logits.shape[-2], height, zoom), bilinear_matrix(logits.shape[-1], width, zoom)
    return [rows @ one[0] @ columns.T for one in logits]


# -- to full size


@given(st.integers(1, 40), st.integers(1, 90))
def test_bilinear_matrix_is_torchs_interpolation(n_in: int, n_out: int):
    values = torch.rand(1, 1, n_in, generator=torch.Generator().manual_seed(n_in), dtype=torch.float64)
    expected = F.interpolate(values, n_out, mode="linear", align_corners=False)[0, 0]
    got = bilinear_matrix(n_in, n_out).double() @ values[0, 0]
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_bilinear_matrix_by_hand():
    assert bilinear_matrix(2, 4).tolist() == [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    # The middle half of four values: two outputs at 1.25 / 4 ... 2.75 / 4, that is at the values 1 and 2 themselves.
    assert bilinear_matrix(4, 2, zoom=2).tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]
    assert bilinear_matrix(1, 3).tolist() == [[1], [1], [1]]


@given(st.integers(1, 30), st.integers(1, 60), st.floats(1, 4))
def test_rows_of_the_matrix_sum_to_1(n_in: int, n_out: int, zoom: float):
    matrix = bilinear_matrix(n_in, n_out, zoom)
    assert (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(1), torch.ones(n_out))


@settings(max_examples=40)
@given(st.integers(0, 999), st.integers(1, 6), st.integers(2, 4), st.integers(1, 30), st.integers(1, 30))
def test_what_must_always_hold(seed: int, t: int, c: int, width: int, height: int):
    samples = random_samples(seed, t, c)
    maps = summarize(samples, (width, height))
    ln_c, tiny = math.log(c), 1e-5
    assert maps.probs.shape == maps.std.shape == (c, height, width)
    torch.testing.assert_close(maps.probs.sum(0), torch.ones(height, width))
    assert (maps.predictive_entropy >= 0).all()
    assert (maps.predictive_entropy <= ln_c).all()
    assert (maps.mutual_information >= 0).all()
    assert (maps.mutual_information <= maps.predictive_entropy + tiny).all()
    assert (maps.expected_entropy <= maps.predictive_entropy + tiny).all()
    assert (maps.std <= 0.5 + tiny).all()
    if t == 1:
        assert maps.std.max() < tiny
        assert maps.mutual_information.max() < tiny


@pytest.mark.parametrize("c", [2, 3])
def test_summary_is_what_numpy_and_scipy_make_of_all_samples(c: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("utils.probability._CPU_STRIP", 100)  # several strips, the last one smaller
    samples = [*random_samples(1, 5, c), LogitSamples(random_samples(2, 3, c)[0].logits, 1.25)]
    maps = summarize(samples, (23, 19))
    every = np.stack([probs.double().numpy() for probs in full_size_probs(samples, (23, 19))])  # (T, C, H, W)
    assert every.shape == (8, c, 19, 23)
    assert maps.num_samples == 8
    np.testing.assert_allclose(maps.probs, every.mean(0), atol=1e-6)
    np.testing.assert_allclose(maps.std, every.std(0), atol=1e-6)
    np.testing.assert_allclose(maps.predictive_entropy, scipy.stats.entropy(every.mean(0), axis=0), atol=2e-6)
    expected_entropy = scipy.stats.entropy(every, axis=1).mean(0)
    np.testing.assert_allclose(maps.expected_entropy, expected_entropy, atol=2e-6)
    information = scipy.stats.entropy(every.mean(0), axis=0) - expected_entropy
    np.testing.assert_allclose(maps.mutual_information, information, atol=4e-6)


def test_maps_that_do_not_fit_into_the_device_are_made_on_the_cpu(monkeypatch: pytest.MonkeyPatch):
    samples, size = random_samples(), (23, 19)
    expected = summarize(samples, size)
    monkeypatch.setattr("utils.probability._CPU_STRIP", 600)
    make, start, new_empty, failed = probability._maps, probability._Stacks, torch.Tensor.new_empty, []

    def failing(name: str, function: Callable, when: Callable[[dict], bool] = lambda options: True) -> Callable:
        def call(*args, **options):
            if when(options) and name not in failed:
                failed.append(name)
                raise torch.OutOfMemoryError
            return function(*args, **options)

        return call

    monkeypatch.setattr(probability, "_Stacks", failing("stacks", start))
    monkeypatch.setattr(probability, "_maps", failing("strip", make))
    monkeypatch.setattr(torch.Tensor, "new_empty", failing("maps", new_empty, when=bool))
    got = summarize(samples, size)
    assert failed == ["stacks", "strip", "maps"]
    for name in (*STATISTICS, "probs"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name))


def test_summary_by_hand():
    z = math.log(3)  # softmax of (0, z) is (1/4, 3/4)
    samples = [LogitSamples(torch.tensor([[0.0, z], [0.0, -z]]).view(2, 2, 1, 1))]
    maps = summarize(samples, (1, 1))
    assert maps.probs.flatten().tolist() == pytest.approx([0.5, 0.5])
    assert maps.std.flatten().tolist() == pytest.approx([0.25, 0.25])
    assert maps.predictive_entropy.item() == pytest.approx(math.log(2))
    assert maps.expected_entropy.item() == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3))


def test_only_what_is_asked_for_is_computed():
    maps = summarize(random_samples(), (9, 8), statistics=["std"])
    assert (maps.predictive_entropy, maps.expected_entropy) == (None, None)
    assert maps.std is not None


def test_entropy_is_finite_where_probabilities_are_0_and_1():
    probs = torch.tensor([[0.0, 1.0, 0.5]]).view(1, 1, 3)
    assert entropy(probs).flatten().tolist() == pytest.approx([0, 0, math.log(2)])
    maps = summarize([LogitSamples(torch.tensor([[-500.0, 500.0]]).view(1, 2, 1, 1))], (3, 3))
    assert torch.isfinite(maps.predictive_entropy).all()


def test_grey_values_are_rounded():
    values = torch.tensor([[0, 0.5 / 255 - 1e-4, 0.5 / 255 + 1e-4, 0.6, 1.0, 1.2, -0.1]])
    assert to_grey(values).tolist() == [[0, 0, 1, 153, 255, 255, 0]]
    assert to_grey(torch.tensor([[math.log(2)]]), white=math.log(2)).tolist() == [[255]]


def test_predicted_class():
    two = torch.tensor([[0.5, 0.4, 0.2], [0.5, 0.6, 0.8]])[:, None]
    assert most_probable_class(two).tolist() == [[0, 1, 1]]
    assert most_probable_class(two, 0.7).tolist() == [[0, 0, 1]]
    three = torch.tensor([[0.3, 0.4], [0.5, 0.1], [0.2, 0.5]])[:, None]
    assert most_probable_class(three).tolist() == [[1, 2]]


def test_derived_seeds_differ_and_stay():
    seeds = {derived_seed(seed, name) for seed in range(10) for name in ("a.jpg", "b.jpg", "0:a.jpg")}
    assert len(seeds) == 30
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(0, os.fsdecode(b"l\xe9sion.jpg")) >= 0  # a name that is not UTF-8
    assert derived_seed(0, "a.jpg") == 3631673385855393483  # of every version: a study can be repeated


@pytest.mark.parametrize("c", [2, 3])
def test_overlaps_count_the_pixels_of_every_two_samples(c: int):
    samples = random_samples(t=4, c=c)
    maps = summarize(samples, (31, 17))
    predicted = [most_probable_class(probs) for probs in full_size_probs(samples, (31, 17))]
    for k in range(1, c):
        for i, a in enumerate(predicted):
            for j, b in enumerate(predicted):
                assert maps.overlaps[k - 1, i, j] == ((a == k) & (b == k)).sum()


def test_a_pixel_that_is_no_number_leaves_the_overlaps_of_the_others():
    samples = random_samples(t=4, c=2)
    before = summarize(samples, (8, 8)).overlaps
    for part in samples:
        part.logits[..., 0] = math.nan
    maps = summarize(samples, (8, 8))
    assert 0 < maps.probs[1].isnan().sum() < 32
    assert maps.overlaps.sum() > 0
    assert (maps.overlaps <= before).all()


def test_the_temperature_divides_the_logits():
    model = TrainedModel(lively_network(), (32, 32))
    image = make_picture(0)[0]
    for sampler in (Softmax(), MCDropout(num_samples=3), TestTimeAugmentation()):
        inputs = [sampler.inputs(image, model.input_size)]
        plain, warm = (s.sample(model, inputs, ["x"])[0] for s in (sampler, replace(sampler, temperature=2.0)))
        for one, other in zip(plain, warm, strict=True):
            torch.testing.assert_close(other.logits, one.logits / 2)


def test_a_model_without_temperature_cannot_be_calibrated():
    model = TrainedModel(lively_network(), temperatures={"softmax": 1.5})
    assert calibrate(Softmax(), model).temperature == 1.5
    assert str(calibrate(Softmax(), model)) == "softmax, calibrated"
    with pytest.raises(InputError, match=r"no temperature for MC dropout, 20 passes.*utils\.calibration"):
        calibrate(MCDropout(), model)
