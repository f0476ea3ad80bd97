"""Which parts of a network no loss reaches."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def dead_parts(module: nn.Module, loss: Callable[[int], Tensor], steps: int) -> list[str]:
    """Names of the parameters whose gradient stayed 0 through some steps of training on loss(step)."""
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-2)
    largest = {name: 0.0 for name, _ in module.named_parameters()}
    for step in range(steps):
        optimiser.zero_grad()
        loss(step).backward()
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                largest[name] = max(largest[name], float(parameter.grad.abs().max()))
        optimiser.step()
    return [name for name, gradient in largest.items() if gradient < 1e-9]
