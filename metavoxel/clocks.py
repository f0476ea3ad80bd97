"""The clock tau = -log(alpha_bar) that every process forgets by, reached from t in [0, 1].

t = 0 is the data (tau = 0); t = 1 is the prior exactly (tau = inf, zero terminal signal-to-noise ratio; Lin et al. 2024),
save on the clock of latent diffusion, which stops short of it.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from metavoxel.codecs import STRICT

LDM_STEPS = 1000
LDM_BETAS = 0.0015, 0.0195
"""First and last share of the variance that a step of latent diffusion replaces."""


@dataclass(frozen=True, config=STRICT)
class Cosine:
    """alpha_bar = cos^2(pi t / 2): the variance-preserving cosine schedule (Nichol and Dhariwal 2021, without offset)."""

    kind: Literal["cosine"] = "cosine"

    def tau(self, t: Tensor) -> Tensor:
        """t in [0, 1] -> tau in [0, inf], same shape; 0 and 1 are exact."""
        tau = -2 * torch.log(torch.cos(t.clamp(0, 1) * (math.pi / 2)).clamp_min(1e-30))
        return torch.where(t >= 1, torch.inf, torch.where(t <= 0, 0.0, tau))

    def t(self, tau: Tensor) -> Tensor:
        """The inverse of `tau`."""
        return torch.acos(torch.exp(-tau / 2)) * (2 / math.pi)


@dataclass(frozen=True, config=STRICT)
class ScaledLinear:
    """Latent diffusion's schedule (Rombach et al. 2022): the root of beta grows linearly over LDM_STEPS steps; here their
    continuous limit, tau = integral of beta, with t = index / LDM_STEPS.

    It ends at tau = 8.8, where 1 % of the clean value is left (alpha = 0.012): all that epsilon-prediction can stand,
    since it says nothing of the clean value at alpha = 0. A draw that starts from N(0, 1) there is off by as much.
    """

    kind: Literal["scaled_linear"] = "scaled_linear"

    def tau(self, t: Tensor) -> Tensor:
        """t in [0, 1] -> tau in [0, 8.8], same shape."""
        t = t.clamp(0, 1)
        first, last = (math.sqrt(beta) for beta in LDM_BETAS)
        rise = last - first
        return LDM_STEPS * t * (first**2 + first * rise * t + rise**2 * t**2 / 3)

    def t(self, tau: Tensor) -> Tensor:
        """The inverse of `tau`; 1 beyond its end."""
        first, last = (math.sqrt(beta) for beta in LDM_BETAS)
        rise = last - first
        return (((first**3 + 3 * rise * tau / LDM_STEPS) ** (1 / 3) - first) / rise).clamp(0, 1)


Clock = Annotated[Cosine | ScaledLinear, Field(discriminator="kind")]
CLOCKS: dict[str, Cosine | ScaledLinear] = {"cosine": Cosine(), "scaled_linear": ScaledLinear()}


def once(level: Tensor) -> Tensor:
    """Levels (rows, *shape) that are an expanded view, as `full_level` makes them, without its repetitions: what follows
    from them need not be worked out for every voxel."""
    for axis in range(1, level.dim()):
        if level.stride(axis) == 0:
            level = level.narrow(axis, 0, 1)
    return level


def alpha(tau: Tensor) -> Tensor:
    """Share of the clean value that is left: e^(-tau/2)."""
    return torch.exp(-tau / 2)


def sigma(tau: Tensor) -> Tensor:
    """Standard deviation of the noise: sqrt(1 - e^(-tau))."""
    return torch.sqrt(-torch.expm1(-tau))


def log_snr(tau: Tensor) -> Tensor:
    """log(alpha / sigma) = -log(e^tau - 1) / 2."""
    return -torch.log(torch.expm1(tau)) / 2
