"""Muon, an optimizer with orthogonalised updates.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024 (kellerjordan.github.io/posts/muon), for
convolutions. The root mean square of an update equals the learning rate, about the largest that AdamW's can be (Liu et
al., "Muon is Scalable for LLM Training", 2025, scale it to a fifth of that).
"""

import torch
from torch import Tensor, nn

_MOMENTUM = 0.95
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)  # of Jordan et al.: five rounds take singular values in (0.01, 1] to about 1
_ROUNDS, _ROUNDS_HALF = (
    (5,),
    (2, 2, 1),
)  # rounds between recomputations of the Gram matrix, in single and half precision


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
        self.dtype = dtype
        hidden = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)][1:-1]
        known = {id(weight) for weight in hidden}
        rest = [weight for weight in network.parameters() if id(weight) not in known]
        groups = [
            {"params": hidden, "orthogonal": True, "weight_decay": weight_decay},
            {"params": rest, "orthogonal": False, "weight_decay": 0.01},
        ]
        super().__init__(groups, lr=lr)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One optimizer step; the gradients of the hidden convolutions are None afterwards."""
        for group in self.param_groups:
            for weight in group["params"] if group["orthogonal"] else ():
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                    state["step"] = torch.zeros(())  # AdamW expects it in every state
                momentum = state["momentum"].lerp_(weight.grad, 1 - _MOMENTUM)
                update = weight.grad.lerp(momentum, _MOMENTUM).flatten(1)  # Nesterov momentum
                scale = max(update.shape) ** 0.5  # makes the root mean square of the update about 1
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(orthogonalise(update, self.dtype).view_as(weight), alpha=-group["lr"] * scale)
                weight.grad = None  # AdamW skips weights without one
        super().step()


def orthogonalise(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Approximately the nearest semi-orthogonal matrix, by a Newton-Schulz iteration.

    Singular values above a hundredth of the matrix's norm become 0.7 to 1.2; smaller ones stay smaller.

    Args:
        matrix: (n, m).
        dtype: of the matrix products.

    Returns:
        (n, m) of that dtype, with the singular vectors of `matrix`.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalise(matrix.T, dtype).T
    x = (matrix / (matrix.norm() + 1e-7)).to(dtype)
    # A round is x <- (a + b x x^T + c (x x^T)^2) x. The factors are polynomials in the Gram matrix x x^T, so they
    # commute: they are accumulated as small square matrices, and the Gram matrix is updated without x, which saves a
    # sixth of a training step in single precision. Its rounding error grows about tenfold per round.
    a, b, c = _POLYNOMIAL
    for rounds in _ROUNDS if dtype is torch.float32 else _ROUNDS_HALF:
        gram, factors = x @ x.T, None
        for left in reversed(range(rounds)):
            factor = b * gram + c * (gram @ gram)
            factor.diagonal().add_(a)
            factors = factor if factors is None else factor @ factors
            if left:
                gram = factor @ gram @ factor
        x = factors @ x
    return x
