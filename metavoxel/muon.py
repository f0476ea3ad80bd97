"""Muon (Jordan et al. 2024): momentum for matrices, orthogonalised, so that every direction moves at the same pace.

What tells age is faint beside what tells head size; with AdamW the faint directions wait for the strong ones.
torch.optim.Muon takes matrices only; here a convolution's kernel is the matrix (outputs, inputs x kernel). Each matrix
moves by `lr` however small its gradient: what has little to learn from an average batch is for AdamW.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """lr: the length of a step, as a spectral norm, for a square matrix; weight_decay is relative to it."""

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].mul_(group["momentum"]).add_(weight.grad)
                direction = orthogonal((weight.grad + group["momentum"] * state["momentum"]).flatten(1))
                length = group["lr"] * max(1, direction.shape[0] / direction.shape[1]) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(direction.reshape(weight.shape), alpha=length)


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix with all singular values equal to one, to about 30 %, by Newton-Schulz iterations."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x

