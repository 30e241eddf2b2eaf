"""The three samplers, against naive reference implementations and for what they promise."""

import math
from dataclasses import replace

import pytest
import torch

from tests.conftest import lively_network, make_image
from tests.reference import network_probability, tta_probability
from unet import draw_dropout_masks
from utils.checkpoint import TrainedModel
from utils.inference.predictor import predict
from utils.inference.samplers import MCDropout, Softmax, TestTimeAugmentation, calibrated
from utils.runtime.errors import InputError
from utils.runtime.seeds import derived_seed

# -- against the naive implementations


@pytest.mark.parametrize("size", [(256, 256), (613, 411), (77, 90)])
def test_softmax_against_reference(trained: TrainedModel, size: tuple[int, int]):
    image = make_image(1, size)[0]
    maps = predict(trained, image, Softmax())
    torch.testing.assert_close(maps.probs[1], network_probability(trained.network, image), atol=2e-5, rtol=0)
    assert maps.probs.shape == (2, size[1], size[0])


def test_sigmoid_against_reference():
    model = TrainedModel(lively_network(n_classes=1))
    image = make_image(1, (200, 150))[0]
    maps = predict(model, image, Softmax())
    torch.testing.assert_close(maps.probs[1], network_probability(model.network, image), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("size", "tolerance"), [((1200, 900), 0.3), ((1001, 1103), 0.3), ((256, 256), 1.2)], ids=["12:9", "odd", "256"]
)
def test_tta_against_reference(trained: TrainedModel, size: tuple[int, int], tolerance: float):
    image = make_image(2, size)[0]
    expected = tta_probability(lambda view: network_probability(trained.network, view), image)
    probability = predict(trained, image, TestTimeAugmentation(), statistics=()).probs[1]
    error = (probability - expected).abs().mean()
    assert 255 * error <= tolerance
    softmax = predict(trained, image, Softmax(), statistics=()).probs[1]
    assert error < 0.5 * (softmax - expected).abs().mean()  # so the tolerance is not too large to mean anything


def test_mc_dropout_against_reference(trained: TrainedModel):
    image = make_image(3, (300, 200))[0]
    masks = draw_dropout_masks(trained.network, 7, derived_seed(11, "a.jpg"))
    expected = torch.stack([network_probability(trained.network, image, masks=mask[None]) for mask in masks])
    maps = predict(trained, image, MCDropout(batch_size=3, num_samples=7, seed=11), name="a.jpg")
    torch.testing.assert_close(maps.probs[1], expected.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(maps.std[1], expected.std(0, correction=0), atol=1e-5, rtol=0)
    assert maps.std.max() > 0.01


# -- reproducibility


def test_mc_dropout_depends_on_seed_and_name_only(trained: TrainedModel):
    image = make_image(3, (60, 50))[0]

    def probs(name: str = "a", seed: int = 0, batch_size: int = 8) -> torch.Tensor:
        return predict(trained, image, MCDropout(batch_size, num_samples=6, seed=seed), name).probs

    assert torch.equal(probs(), probs())
    assert torch.equal(probs(), probs(batch_size=1))
    assert not torch.allclose(probs(), probs(seed=1), atol=1e-3)
    assert not torch.allclose(probs(), probs(name="b"), atol=1e-3)


def test_samples_do_not_depend_on_other_images(trained: TrainedModel):
    images = [make_image(i, (90, 70))[0] for i in range(3)]
    names = ["x", "y", "z"]
    for sampler in (Softmax(), MCDropout(num_samples=3), TestTimeAugmentation()):
        inputs = [sampler.preprocess_image(image, trained.input_size) for image in images]
        together = sampler.sample(trained, inputs, names)
        for i, name in enumerate(names):
            (alone,) = sampler.sample(trained, inputs[i : i + 1], [name])
            for a, b in zip(alone, together[i], strict=True):
                assert a.zoom == b.zoom
                assert torch.equal(a.logits, b.logits)


def test_sampling_changes_neither_network_nor_random_state(trained: TrainedModel):
    state, modes = torch.get_rng_state(), [m.training for m in trained.network.modules()]
    weights = {name: value.clone() for name, value in trained.network.state_dict().items()}
    predict(trained, make_image(0, (40, 40))[0], MCDropout(num_samples=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in trained.network.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in trained.network.state_dict().items())


# -- memory, precision, calibration, models


def test_out_of_memory_halves_the_batch(trained: TrainedModel, monkeypatch: pytest.MonkeyPatch):
    image, forward, batch_sizes = make_image(3, (60, 50))[0], trained.network.forward, []

    def limited_forward(x: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        if len(x) > 3:
            raise torch.OutOfMemoryError
        batch_sizes.append(len(x))
        return forward(x, masks)

    expected = predict(trained, image, MCDropout(num_samples=7)).probs
    monkeypatch.setattr(trained.network, "forward", limited_forward)
    torch.testing.assert_close(predict(trained, image, MCDropout(num_samples=7)).probs, expected, atol=1e-5, rtol=0)
    assert batch_sizes == [2, 2, 2, 2]  # 7 passes, padded to two batches of 4


def test_halved_batches_are_not_computed_by_the_compiled_network(trained: TrainedModel):
    """It is compiled for whole batches, and refuses to be compiled for others."""
    tried = []

    def compiled(x: torch.Tensor, masks: torch.Tensor | None) -> torch.Tensor:
        tried.append(len(x))
        raise torch.OutOfMemoryError

    image = make_image(0, (60, 50))[0]
    expected = predict(trained, image, MCDropout(num_samples=4)).probs
    probs = predict(replace(trained, compiled=compiled), image, MCDropout(num_samples=4)).probs
    torch.testing.assert_close(probs, expected, atol=1e-5, rtol=0)
    assert len(tried) == 1


def test_mixed_precision_is_close(trained: TrainedModel):
    image = make_image(4, (300, 200))[0]
    for kind in (Softmax, MCDropout, TestTimeAugmentation):
        single, mixed = (predict(trained, image, kind(dtype=dtype), statistics=()) for dtype in (None, torch.bfloat16))
        difference = 255 * (single.probs - mixed.probs).abs()
        assert difference.mean() < 1
        assert difference.max() > 0


def test_temperature_divides_logits():
    model = TrainedModel(lively_network(), (32, 32))
    image = make_image(0)[0]
    for sampler in (Softmax(), MCDropout(num_samples=3), TestTimeAugmentation()):
        inputs = [sampler.preprocess_image(image, model.input_size)]
        plain, scaled = (s.sample(model, inputs, ["x"])[0] for s in (sampler, replace(sampler, temperature=2.0)))
        for a, b in zip(plain, scaled, strict=True):
            torch.testing.assert_close(b.logits, a.logits / 2)


def test_calibrated_sampler():
    model = TrainedModel(lively_network(), temperatures={"softmax": 1.5})
    assert calibrated(Softmax(), model).temperature == 1.5
    assert str(calibrated(Softmax(), model)) == "softmax, calibrated"
    with pytest.raises(InputError, match=r"no temperature for MC dropout, 20 passes.*utils\.calibration"):
        calibrated(MCDropout(), model)


def test_unsuitable_models_are_refused():
    image = make_image(0, (40, 40))[0]
    with pytest.raises(InputError, match="no dropout"):
        predict(TrainedModel(lively_network(dropout=0)), image, MCDropout())
    with pytest.raises(InputError, match="64x128"):
        predict(TrainedModel(lively_network(), (64, 128)), image, TestTimeAugmentation())
    assert predict(TrainedModel(lively_network(), (64, 128)), image, MCDropout()).probs.shape == (2, 40, 40)


def test_tta_without_shrinking_sees_the_same_image_twice():
    sampler = TestTimeAugmentation(shrink=1.0)
    plain, padded = sampler.preprocess_image(make_image(6, (200, 100))[0], (128, 128))
    assert torch.equal(plain, padded)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_settings_out_of_their_range(value: float):
    with pytest.raises(ValueError, match="a finite temperature above 0 was expected"):
        Softmax(temperature=value)
    with pytest.raises(ValueError, match="a size above 0 and at most 1 was expected"):
        TestTimeAugmentation(shrink=value)
    with pytest.raises(ValueError, match="at least one pass was expected"):
        MCDropout(num_samples=0)
