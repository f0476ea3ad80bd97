"""How a variable forgets towards its prior, and how one step of forgetting is undone given a guess of the clean value.

Both processes speak the same four verbs: `prior`, `forward`, `reverse`, `loss`. Levels are clock values tau in [0, inf],
one per entry; entries whose two levels agree are left as they are, so one call may move some entries and not others.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from metavoxel.clocks import alpha, sigma
from metavoxel.noise import Noise

TINY = 1e-20


class Process(Protocol):
    """What the samplers and the loss ask of a process. x: (n, *shape); tau: broadcastable to x; clean: see the class."""

    def prior(self, noise: Noise, shape: tuple[int, ...]) -> Tensor: ...
    def forward(self, x: Tensor, tau_s: Tensor, tau_t: Tensor, noise: Noise) -> Tensor: ...
    def reverse(
        self, x: Tensor, clean: Tensor, tau_t: Tensor, tau_s: Tensor, noise: Noise, eta: float = 1.0
    ) -> Tensor: ...
    def loss(self, clean: Tensor, x0: Tensor, tau: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Gaussian:
    """Ornstein-Uhlenbeck towards N(0, 1). The clean prediction is E[x_0 | state], of x's shape."""

    def prior(self, noise: Noise, shape: tuple[int, ...]) -> Tensor:
        """(n, *shape) from the stationary law."""
        return noise.normal(*shape)

    def forward(self, x: Tensor, tau_s: Tensor, tau_t: Tensor, noise: Noise) -> Tensor:
        """x_t given x_s for s <= t: e^(-d/2) x + sqrt(1 - e^(-d)) eps with d = tau_t - tau_s (paper, Eq. 1)."""
        d = _elapsed(tau_s, tau_t)
        return alpha(d) * x + sigma(d) * noise.normal(*x.shape[1:])

    def reverse(
        self, x: Tensor, clean: Tensor, tau_t: Tensor, tau_s: Tensor, noise: Noise, eta: float = 1.0
    ) -> Tensor:
        """x_s given x_t and E[x_0] for s <= t. eta 1 is ancestral, 0 deterministic."""
        mean, sd = self.reverse_law(x, clean, tau_t, tau_s, eta)
        return torch.where(tau_t > tau_s, mean + sd * noise.normal(*x.shape[1:]), x)

    def reverse_law(
        self, x: Tensor, clean: Tensor, tau_t: Tensor, tau_s: Tensor, eta: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Mean and sd of x_s given x_t and E[x_0] for s < t (DDIM, Song et al. 2021, Eq. 12)."""
        sigma_t = sigma(tau_t)
        eps = (x - alpha(tau_t) * clean) / sigma_t.clamp_min(TINY)
        fresh = eta * sigma(tau_s) / sigma_t.clamp_min(TINY) * sigma(_elapsed(tau_s, tau_t))
        kept = torch.sqrt((sigma(tau_s) ** 2 - fresh**2).clamp_min(0))
        return alpha(tau_s) * clean + kept * eps, fresh

    def loss(self, clean: Tensor, x0: Tensor, tau: Tensor) -> Tensor:
        """Squared error over sigma^2 (the v-loss: Salimans and Ho 2022); of x's shape, 0 where the entry is known.

        A predictor that knows only the marginal N(0, 1) scores 1 at every level.
        """
        variance = sigma(tau) ** 2
        return torch.where(variance > 0, (clean - x0) ** 2 / variance.clamp_min(1e-8), 0.0)


@dataclass(frozen=True)
class RankOne:
    """R = 1 pi^T - I: after a time d a state is kept with probability e^(-d), else redrawn from pi.

    pi uniform, the data's marginal, or a point mass on an extra state give D3PM's three chains (Austin et al. 2021).
    """

    stationary: tuple[float, ...]

    def matrix(self, d: Tensor) -> Tensor:
        """exp(d R): (*d.shape, states, states), rows sum to 1."""
        pi = torch.tensor(self.stationary, dtype=d.dtype, device=d.device)
        keep = torch.exp(-d)[..., None, None]
        return keep * torch.eye(len(pi), dtype=d.dtype, device=d.device) + (1 - keep) * pi


@dataclass(frozen=True)
class BirthDeath:
    """Steps to neighbouring levels only, in balance with `stationary`, scaled to a spectral gap of 1 so that it forgets
    as fast as the other processes. For ordinal scales."""

    stationary: tuple[float, ...]

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvalues (states,) >= 0, and the left and right factors of exp(dR) = right e^(-d lambda) left."""
        pi = torch.tensor(self.stationary, dtype=torch.float64)
        root = pi.sqrt()
        rates = torch.zeros(len(pi), len(pi), dtype=torch.float64)
        for i in range(len(pi) - 1):
            rates[i, i + 1] = root[i + 1] / root[i]
            rates[i + 1, i] = root[i] / root[i + 1]
        rates -= torch.diag(rates.sum(1))
        symmetric = root[:, None] * rates / root  # detailed balance makes it symmetric, so eigh is exact and stable
        values, vectors = torch.linalg.eigh(-(symmetric + symmetric.T) / 2)
        values = torch.where(torch.arange(len(pi)) == 0, 0.0, values / values[1])
        return values, vectors.T * root, vectors / root[:, None]

    def matrix(self, d: Tensor) -> Tensor:
        """exp(d R): (*d.shape, states, states), rows sum to 1."""
        values, left, right = (part.to(d.device) for part in self._spectrum)
        decay = torch.where(values > 0, torch.exp(-d.double()[..., None] * values.clamp_min(TINY)), 1.0)
        return ((right * decay[..., None, :]) @ left).clamp_min(0).to(d.dtype)


@dataclass(frozen=True)
class Discrete:
    """A Markov chain on finite states. The clean prediction is log p(x_0 | state), (n, levels).

    `levels` may be fewer than the chain's states: the absorbing chain has one more, which no data ever holds.
    """

    chain: RankOne | BirthDeath
    levels: int

    @property
    def states(self) -> int:
        return len(self.chain.stationary)

    def prior(self, noise: Noise, shape: tuple[int, ...] = ()) -> Tensor:
        """(n,) states from the stationary law."""
        pi = torch.tensor(self.chain.stationary, device=noise.index.device)
        return noise.choice(pi.expand(len(noise), -1))

    def forward(self, x: Tensor, tau_s: Tensor, tau_t: Tensor, noise: Noise) -> Tensor:
        """x_t given x_s for s <= t: a draw from the row of exp(dR) (paper, Eq. 2)."""
        return noise.choice(_row(self.chain.matrix(_elapsed(tau_s, tau_t)), x))

    def likelihood(self, x: Tensor, tau: Tensor) -> Tensor:
        """log q(x_t = x | x_0 = k) for every level k: (n, levels)."""
        return torch.log(_column(self.chain.matrix(tau), x)[:, : self.levels].clamp_min(TINY))

    def reverse(
        self, x: Tensor, clean: Tensor, tau_t: Tensor, tau_s: Tensor, noise: Noise, eta: float = 1.0
    ) -> Tensor:
        """x_s given x_t for s <= t: Bayes for each x_0, summed over p(x_0) (Austin et al. 2021, Eq. 4).

        `eta` is the Gaussian's; a chain has no deterministic reverse, so it is not used here.
        """
        return torch.where(tau_t > tau_s, noise.choice(self.reverse_law(x, clean, tau_t, tau_s)), x)

    def reverse_law(self, x: Tensor, clean: Tensor, tau_t: Tensor, tau_s: Tensor) -> Tensor:
        """p(x_s | x_t, p(x_0)) over the states: (n, states)."""
        from_start = self.chain.matrix(tau_s)[:, : self.levels]  # q(x_s | x_0)
        to_end = _column(self.chain.matrix(_elapsed(tau_s, tau_t)), x)  # q(x_t | x_s)
        reach = _column(self.chain.matrix(tau_t), x)[:, : self.levels]  # q(x_t | x_0)
        weight = torch.where(reach > TINY, clean.exp() / reach.clamp_min(TINY), 0.0)  # unreachable x_0 carry nothing
        law = torch.einsum("nk,nks->ns", weight, from_start) * to_end
        return law / law.sum(-1, keepdim=True).clamp_min(TINY)

    def loss(self, clean: Tensor, x0: Tensor, tau: Tensor) -> Tensor:
        """Cross-entropy (n,), in nats; 0 where the entry is known."""
        return torch.where(tau > 0, -clean.gather(-1, x0[:, None])[:, 0], 0.0)


def uniform_chain(levels: int) -> Discrete:
    """D3PM's uniform chain (paper, Eq. 2)."""
    return Discrete(RankOne((1 / levels,) * levels), levels)


def marginal_chain(marginal: tuple[float, ...]) -> Discrete:
    """Forgets towards how often each level occurs."""
    return Discrete(RankOne(marginal), len(marginal))


def absorbing_chain(levels: int) -> Discrete:
    """Forgets towards one extra state, "masked"."""
    return Discrete(RankOne((0.0,) * levels + (1.0,)), levels)


def birth_death_chain(levels: int) -> Discrete:
    """The ordinal chain: nearer levels are confused sooner than distant ones."""
    return Discrete(BirthDeath((1 / levels,) * levels), levels)


def _elapsed(tau_s: Tensor, tau_t: Tensor) -> Tensor:
    """tau_t - tau_s, with inf - inf = 0: what has forgotten everything has nothing left to forget."""
    return torch.where(tau_t > tau_s, tau_t - torch.where(tau_s < torch.inf, tau_s, 0.0), 0.0)


def _row(matrix: Tensor, x: Tensor) -> Tensor:
    return matrix.take_along_dim(x[:, None, None], dim=1)[:, 0]


def _column(matrix: Tensor, x: Tensor) -> Tensor:
    return matrix.take_along_dim(x[:, None, None], dim=2)[:, :, 0]
