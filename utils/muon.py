"""Muon, an optimizer whose steps change a layer in all directions alike.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024 (kellerjordan.github.io/posts/muon), for
convolutions, and with steps as large as AdamW's (Liu et al., "Muon is Scalable for LLM Training", 2025).
"""

import torch
from torch import Tensor, nn

_MOMENTUM = 0.95
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)  # of Jordan et al.: five rounds take singular values in (0.01, 1] to about 1
_ROUNDS = 5


class Muon(torch.optim.AdamW):
    """Muon for the weights of the hidden convolutions; AdamW for the first and the last, biases and batch norm.

    Args:
        network: whose parameters are trained.
        lr: learning rate; with both a weight changes by about as much in a step.
        weight_decay: of the hidden convolutions, as a part of the learning rate.
    """

    def __init__(self, network: nn.Module, lr: float, weight_decay: float = 0.5) -> None:
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
                size = max(ahead.shape) ** 0.5  # makes an element about 1, as it is in AdamW's steps
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(orthogonal(ahead).view_as(weight), alpha=-group["lr"] * size)
                weight.grad = None  # AdamW passes over what has none
        super().step()


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrix with orthogonal rows or columns: the singular values become 0.7 to 1.2.

    Args:
        matrix: (n, m).

    Returns:
        (n, m), with the singular vectors of `matrix`.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T).T
    x = matrix / (matrix.norm() + 1e-7)
    # A round is x <- (a + b x x^T + c (x x^T)^2) x. The factors commute, so they are multiplied up while they are small
    # squares, and x x^T goes from round to round without x.
    a, b, c = _POLYNOMIAL
    gram = x @ x.T
    factors = torch.eye(len(x), device=x.device, dtype=x.dtype)
    for _ in range(_ROUNDS):
        factor = b * gram + c * (gram @ gram)
        factor.diagonal().add_(a)
        factors = factor @ factors
        gram = factor @ gram @ factor
    return factors @ x
