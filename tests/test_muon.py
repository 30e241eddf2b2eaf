"""Muon against singular value decompositions, against torch's own and against AdamW."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from unet import BayesianUNet
from utils.muon import Muon, orthogonal


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3), nn.ConvTranspose2d(6, 8, 2), nn.Conv2d(8, 2, 1)
    )


def some_gradients(net: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in net.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize(
    ("dtype", "above", "least", "mixing"),
    [(torch.float32, 0.01, 0.65, 5e-3), (torch.float16, 0.01, 0.65, 0.1), (torch.bfloat16, 0.02, 0.6, 0.5)],
)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31), st.floats(1e-6, 1e6), st.floats(0, 4))
def test_the_singular_values_become_about_one_and_the_vectors_stay(
    dtype, above, least, mixing, n, m, seed, scale, decades
):
    matrix = scale * torch.randn(n, m, generator=torch.Generator().manual_seed(seed))
    u, values, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    values *= torch.logspace(0, -decades, len(values), dtype=torch.float64)  # gradients are often almost of low rank
    result = u.T @ orthogonal((u * values @ vh).float(), dtype).double() @ vh.T
    became = result.diagonal()
    assert (became > least)[values > above * values.norm()].all()
    assert (became < 1.25).all()
    assert (result - became.diag()).abs().max() < mixing


def test_five_rounds_by_hand():
    matrix = torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
    expected = []
    for value in (0.6, 0.8):  # after the division by the norm, 5
        for _ in range(5):
            value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
        expected.append(value)
    torch.testing.assert_close(orthogonal(matrix)[:, :2].diagonal(), torch.tensor(expected), rtol=1e-5, atol=0)
    assert orthogonal(torch.zeros(2, 3)).abs().max() == 0


def test_the_hidden_convolutions_are_those_between_the_first_and_the_last():
    net = BayesianUNet(base_channels=4)
    hidden, rest = (group["params"] for group in Muon(net, 1e-3).param_groups)
    names = {id(weight): name for name, weight in net.named_parameters()}
    of_rest = {names[id(weight)] for weight in rest}
    assert all(weight.ndim == 4 for weight in hidden)
    assert {name for name, weight in net.named_parameters() if weight.ndim == 4} & of_rest == {
        "inc.double_conv.0.weight",
        "outc.conv.weight",
    }
    assert {names[id(weight)] for weight in hidden}.isdisjoint(of_rest)
    assert len(hidden) + len(rest) == len(names)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it from 2.9 on")
def test_a_step_is_that_of_torch_which_computes_in_bfloat16():
    net = network()
    theirs = nn.Parameter(net[2].weight.detach().flatten(1).clone())
    optimizer = Muon(net, lr=0.01)
    other = torch.optim.Muon([theirs], lr=0.05, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")  # steps of 0.2 lr
    for seed in range(5):
        some_gradients(net, seed)
        theirs.grad = net[2].weight.grad.flatten(1).clone()
        before = theirs.detach().clone()
        optimizer.step()
        other.step()
        change = (theirs - before).norm()
        assert (net[2].weight.flatten(1) - theirs).norm() < 0.02 * (seed + 1) * change


def test_all_else_is_adamw():
    net = network()
    twin = copy.deepcopy(net)
    rest = [weight for module in (0, 1, 4) for weight in twin[module].parameters()] + [twin[2].bias, twin[3].bias]
    optimizer, other = Muon(net, lr=0.01), torch.optim.AdamW(rest, lr=0.01, weight_decay=0.01)
    for seed in range(3):
        some_gradients(net, seed)
        some_gradients(twin, seed)
        optimizer.step()
        other.step()
    hidden = {"2.weight", "3.weight"}
    for (name, weight), of_twin in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(weight, of_twin) == (name not in hidden), name


def test_a_step_changes_an_element_by_about_the_learning_rate():
    net = BayesianUNet(base_channels=8)
    before = [weight.detach().clone() for weight in net.parameters()]
    some_gradients(net, 0)
    Muon(net, lr=1e-3, weight_decay=0).step()
    for weight, old in zip(net.parameters(), before, strict=True):
        assert 0.5e-3 < (weight - old).square().mean().sqrt() < 1.5e-3


def test_the_momentum_belongs_to_the_state():
    net = network()
    optimizer = Muon(net, lr=0.01)
    some_gradients(net, 0)
    optimizer.step()
    twin = copy.deepcopy(net)
    restored = Muon(twin, lr=0.5)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, of in ((net, optimizer), (twin, restored)):
        some_gradients(one, 1)
        of.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


def test_what_has_no_gradient_stays():
    net = network()
    before = copy.deepcopy(net.state_dict())
    Muon(net, lr=0.01).step()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
