"""Muon, an optimizer whose steps change a layer in all directions alike.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024 (kellerjordan.github.io/posts/muon), for
convolutions. A step changes an element by the learning rate in the root mean square, the most that AdamW does (Liu et
al., "Muon is Scalable for LLM Training", 2025, take a fifth of that).
"""

import torch
from torch import Tensor, nn

_MOMENTUM = 0.95
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)  # of Jordan et al.: five rounds take singular values in (0.01, 1] to about 1
_ROUNDS, _ROUNDS_HALF = (5,), (2, 2, 1)  # after how many x x^T is made anew, in single and in half precision


class Muon(torch.optim.AdamW):
    """Muon for the weights of the hidden convolutions; AdamW for the first and the last, biases and batch norm.

    Args:
        network: whose parameters are trained.
        lr: by which an element changes in a step: in the root mean square by Muon, at most by AdamW.
        weight_decay: of the hidden convolutions, as a part of the learning rate.
        dtype: of the products behind Muon's steps; half precision, where it is fast, does as well.
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
        """A step down the gradients, of which those of the hidden convolutions are used up."""
        for group in self.param_groups:
            for weight in group["params"] if group["orthogonal"] else ():
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                    state["step"] = torch.zeros(())  # AdamW expects one wherever there is a state
                momentum = state["momentum"].lerp_(weight.grad, 1 - _MOMENTUM)
                ahead = weight.grad.lerp(momentum, _MOMENTUM).flatten(1)  # as Nesterov looks ahead
                size = max(ahead.shape) ** 0.5  # makes the root mean square of an element about 1
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(orthogonal(ahead, self.dtype).view_as(weight), alpha=-group["lr"] * size)
                weight.grad = None  # AdamW passes over what has none
        super().step()


def orthogonal(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """About the nearest matrix with orthogonal rows or columns.

    Singular values above a hundredth of the matrix's norm become 0.7 to 1.2, smaller ones stay smaller.

    Args:
        matrix: (n, m).
        dtype: in which to multiply.

    Returns:
        (n, m) in that type, with the singular vectors of `matrix`.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T, dtype).T
    x = (matrix / (matrix.norm() + 1e-7)).to(dtype)
    # A round is x <- (a + b x x^T + c (x x^T)^2) x. The factors commute, so they are multiplied up while they are small
    # squares, and x x^T goes from round to round without x, whereby its rounding errors grow tenfold each time.
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
