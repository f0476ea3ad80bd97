"""The clock tau = -log(alpha_bar) that every process forgets by, reached from t in [0, 1].

t = 0 is the data (tau = 0); t = 1 is the prior exactly (tau = inf, zero terminal signal-to-noise ratio; Lin et al. 2024).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cosine:
    """alpha_bar = cos^2(pi t / 2): the variance-preserving cosine schedule (Nichol and Dhariwal 2021, without offset)."""

    def tau(self, t: Tensor) -> Tensor:
        """t in [0, 1] -> tau in [0, inf], same shape; 0 and 1 are exact."""
        tau = -2 * torch.log(torch.cos(t.clamp(0, 1) * (math.pi / 2)).clamp_min(1e-30))
        return torch.where(t >= 1, torch.inf, torch.where(t <= 0, 0.0, tau))

    def t(self, tau: Tensor) -> Tensor:
        """The inverse of `tau`."""
        return torch.acos(torch.exp(-tau / 2)) * (2 / math.pi)


def alpha(tau: Tensor) -> Tensor:
    """Share of the clean value that is left: e^(-tau/2)."""
    return torch.exp(-tau / 2)


def sigma(tau: Tensor) -> Tensor:
    """Standard deviation of the noise: sqrt(1 - e^(-tau))."""
    return torch.sqrt(-torch.expm1(-tau))
