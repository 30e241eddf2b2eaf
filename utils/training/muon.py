"""Muon, an optimizer with orthogonalised updates.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024 (kellerjordan.github.io/posts/muon), for
convolutions. The root mean square of an update equals the learning rate, about the largest that AdamW's can be (Liu et
al., "Muon is Scalable for LLM Training", 2025, scale it to a fifth of that).
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from utils.runtime.recording import RecordedCall, graph_recorder

_MOMENTUM = 0.95
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)  # of Jordan et al.: five rounds take singular values in (0.01, 1] to about 1
_ROUNDS = (5,)  # rounds between recomputations of the Gram matrix
_ROUNDS_HALF = (2, 2, 1)  # in half precision


class Muon(torch.optim.AdamW):
    """Muon for the weights of the hidden convolutions; AdamW for the first and the last, biases and batch norm.

    Args:
        network: whose parameters are trained.
        lr: learning rate, the root mean square of Muon's updates.
        weight_decay: weight decay of the hidden convolutions, relative to the learning rate.
        dtype: dtype of the matrix products of the orthogonalisation; half precision is accurate enough.
    """

    def __init__(
        self, network: nn.Module, lr: float, weight_decay: float = 0.5, dtype: torch.dtype = torch.float32
    ) -> None:
        hidden = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)][1:-1]
        known = {id(weight) for weight in hidden}
        rest = [weight for weight in network.parameters() if id(weight) not in known]
        groups = [
            {"params": hidden, "orthogonal": True, "weight_decay": weight_decay},
            {"params": rest, "orthogonal": False, "weight_decay": 0.01},
        ]
        super().__init__(groups, lr=lr, fused=rest[0].is_cuda or None)
        # A fused AdamW skips the steps of a gradient scaler itself, Muon does not: leave that to the scaler.
        self._step_supports_amp_scaling = False
        self._directions = RecordedCall(partial(orthogonalise_all, dtype), graph_recorder(rest[0].device))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One optimizer step; the gradients of the hidden convolutions are None afterwards."""
        for group in self.param_groups:
            if group["orthogonal"]:
                weights = [weight for weight in group["params"] if weight.grad is not None]
                self._orthogonal_step(weights, group["lr"], group["weight_decay"])
        super().step()

    def _orthogonal_step(self, weights: Sequence[Tensor], lr: float, weight_decay: float) -> None:
        if not weights:
            return
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
                self.state[weight]["step"] = torch.zeros(())  # AdamW expects it in every state
        momenta, gradients = [self.state[weight]["momentum"] for weight in weights], [weight.grad for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
        updates = torch._foreach_lerp(gradients, momenta, _MOMENTUM)  # Nesterov momentum

        # Their columns are permuted, so that those of channels-last weights need no copy.
        directions = self._directions(*(update.movedim(1, -1).flatten(1) for update in updates))
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
        for weight, direction in zip(weights, directions, strict=True):
            permuted = weight.movedim(1, -1)
            scale = max(direction.shape) ** 0.5  # makes the root mean square of the update about 1
            permuted.add_(direction.view_as(permuted), alpha=-lr * scale)
            weight.grad = None  # AdamW skips weights without one


@torch.no_grad()
def orthogonalise_all(dtype: torch.dtype, *matrices: Tensor) -> tuple[Tensor, ...]:
    """`orthogonalise` of matrices of different sizes, in their order."""
    by_side = defaultdict(list)
    for i, matrix in enumerate(matrices):
        by_side[min(matrix.shape)].append(i)
    results = {}
    for indices in by_side.values():
        results |= zip(indices, orthogonalise([matrices[i] for i in indices], dtype), strict=True)
    return tuple(results[i] for i in range(len(matrices)))


def orthogonalise(matrices: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Approximately the nearest semi-orthogonal matrix to each of several, by a Newton-Schulz iteration.

    Singular values above a hundredth of the matrix's norm become 0.7 to 1.2; smaller ones stay smaller.

    Args:
        matrices: each (n, m); their min(n, m) is the same.
        dtype: of the matrix products.

    Returns:
        For each (n, m) of that dtype, with its singular vectors.
    """
    norms = torch._foreach_norm(matrices)
    torch._foreach_add_(norms, 1e-7)
    xs = [(matrix / norm).to(dtype) for matrix, norm in zip(matrices, norms, strict=True)]
    xs = [x if x.shape[0] <= x.shape[1] else x.T for x in xs]
    # A round is x <- (a + b x x^T + c (x x^T)^2) x. The factors are polynomials in the Gram matrix x x^T, so they
    # commute: they are accumulated as small square matrices, of all xs together, and the Gram matrices are updated
    # without x, which saves a sixth of a training step in single precision. Their rounding error grows about tenfold
    # per round.
    a, b, c = _POLYNOMIAL
    for rounds in _ROUNDS if dtype is torch.float32 else _ROUNDS_HALF:
        grams, factors = torch.stack([x @ x.T for x in xs]), None
        for left in reversed(range(rounds)):
            factor = torch.baddbmm(grams, grams, grams, beta=b, alpha=c)
            factor.diagonal(dim1=-2, dim2=-1).add_(a)
            factors = factor if factors is None else factor @ factors
            if left:
                grams = factor @ grams @ factor
        xs = [one @ x for one, x in zip(factors, xs, strict=True)]
    return [x if x.shape == matrix.shape else x.T for x, matrix in zip(xs, matrices, strict=True)]
