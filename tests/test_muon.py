"""Muon against singular value decompositions, against torch's own and against AdamW."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from unet import BayesianUNet
from utils.training.muon import Muon, orthogonalise


def small_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3), nn.ConvTranspose2d(6, 8, 2), nn.Conv2d(8, 2, 1)
    )


def set_gradients(net: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in net.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize(
    ("dtype", "cutoff", "smallest", "mixing"),
    [(torch.float32, 0.01, 0.65, 5e-3), (torch.float16, 0.01, 0.65, 0.1), (torch.bfloat16, 0.02, 0.6, 0.5)],
)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31), st.floats(1e-6, 1e6), st.floats(0, 4))
def test_singular_values_become_about_one(dtype, cutoff, smallest, mixing, n, m, seed, scale, decades):
    """And the singular vectors stay."""
    matrix = scale * torch.randn(n, m, generator=torch.Generator().manual_seed(seed))
    u, values, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    values *= torch.logspace(0, -decades, len(values), dtype=torch.float64)  # gradients are often almost of low rank
    result = u.T @ orthogonalise([(u * values @ vh).float()], dtype)[0].double() @ vh.T
    new_values = result.diagonal()
    assert (new_values > smallest)[values > cutoff * values.norm()].all()
    assert (new_values < 1.25).all()
    assert (result - new_values.diag()).abs().max() < mixing


def test_five_rounds_by_hand():
    matrix = torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
    expected = []
    for value in (0.6, 0.8):  # after the division by the norm, 5
        for _ in range(5):
            value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
        expected.append(value)
    torch.testing.assert_close(orthogonalise([matrix])[0][:, :2].diagonal(), torch.tensor(expected), rtol=1e-5, atol=0)
    assert orthogonalise([torch.zeros(2, 3)])[0].abs().max() == 0


def test_hidden_convolutions():
    net = BayesianUNet(base_channels=4)
    hidden, rest = (group["params"] for group in Muon(net, 1e-3).param_groups)
    names = {id(weight): name for name, weight in net.named_parameters()}
    rest_names = {names[id(weight)] for weight in rest}
    assert all(weight.ndim == 4 for weight in hidden)
    assert {name for name, weight in net.named_parameters() if weight.ndim == 4} & rest_names == {
        "inc.double_conv.0.weight",
        "outc.conv.weight",
    }
    assert {names[id(weight)] for weight in hidden}.isdisjoint(rest_names)
    assert len(hidden) + len(rest) == len(names)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it since 2.9")
def test_step_equals_that_of_torch():
    """Up to the rounding of torch's, which computes in bfloat16."""
    net = small_network()
    theirs = nn.Parameter(net[2].weight.detach().flatten(1).clone())
    optimizer = Muon(net, lr=0.01)
    other = torch.optim.Muon([theirs], lr=0.05, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")  # steps of 0.2 lr
    for seed in range(5):
        set_gradients(net, seed)
        theirs.grad = net[2].weight.grad.flatten(1).clone()
        before = theirs.detach().clone()
        optimizer.step()
        other.step()
        change = (theirs - before).norm()
        assert (net[2].weight.flatten(1) - theirs).norm() < 0.02 * (seed + 1) * change


def test_other_weights_get_adamw():
    net = small_network()
    copied = copy.deepcopy(net)
    rest = [weight for module in (0, 1, 4) for weight in copied[module].parameters()] + [copied[2].bias, copied[3].bias]
    optimizer, other = Muon(net, lr=0.01), torch.optim.AdamW(rest, lr=0.01, weight_decay=0.01)
    for seed in range(3):
        set_gradients(net, seed)
        set_gradients(copied, seed)
        optimizer.step()
        other.step()
    hidden = {"2.weight", "3.weight"}
    for (name, weight), other_weight in zip(net.named_parameters(), copied.parameters(), strict=True):
        assert torch.equal(weight, other_weight) == (name not in hidden), name


def test_step_size_is_about_the_learning_rate():
    net = BayesianUNet(base_channels=8)
    before = [weight.detach().clone() for weight in net.parameters()]
    set_gradients(net, 0)
    Muon(net, lr=1e-3, weight_decay=0).step()
    for weight, old in zip(net.parameters(), before, strict=True):
        assert 0.5e-3 < (weight - old).square().mean().sqrt() < 1.5e-3


def test_momentum_is_part_of_the_state():
    net = small_network()
    optimizer = Muon(net, lr=0.01)
    set_gradients(net, 0)
    optimizer.step()
    copied = copy.deepcopy(net)
    restored = Muon(copied, lr=0.5)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, its_optimizer in ((net, optimizer), (copied, restored)):
        set_gradients(one, 1)
        its_optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), copied.parameters(), strict=True))


def test_weights_without_gradient_stay():
    net = small_network()
    before = copy.deepcopy(net.state_dict())
    Muon(net, lr=0.01).step()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_gradient_scaler_skips_a_fused_step(monkeypatch: pytest.MonkeyPatch):
    """On a GPU, AdamW is fused; such an optimizer is expected to skip steps itself."""
    initialise = torch.optim.AdamW.__init__
    fused = lambda self, groups, lr, **_: initialise(self, groups, lr, fused=True)  # noqa: E731
    monkeypatch.setattr(torch.optim.AdamW, "__init__", fused)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))
    before = copy.deepcopy(net.state_dict())
    optimizer, scaler = Muon(net, lr=0.01), torch.amp.GradScaler("cpu")
    assert optimizer.defaults["fused"]
    scaler.scale(net(torch.ones(1, 3, 2, 2)).sum() * float("inf")).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
