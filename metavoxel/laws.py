"""What is believed of a number: before anything else is told, how it is spread over the training people; then a mixture.

Ages of a cohort are rarely normal: flat, two-humped, cut off. A network that starts from a normal law has to learn their
edges in every question; from the law itself it has to learn only what the rest says.
"""

import dataclasses
import math

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from metavoxel.clocks import alpha, sigma
from metavoxel.codecs import STRICT, Array
from metavoxel.noise import Noise

MAX_CENTRES = 48
SPLIT, ROUNDS = 32, 5
"""A quantile is found in so many rounds, each of which splits where it may be: to a part in 3 10^7 of it."""
REACH, NEGLIGIBLE = 7.0, 1e-7
"""How many of its sd a part is looked for on each side, and the share below which it is not."""


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """What is believed of n numbers: normal parts and their shares, which sum to 1. (n, parts) each, float32."""

    shares: Tensor
    means: Tensor
    variances: Tensor

    def mean(self) -> Tensor:
        """(n,)"""
        return (self.shares * self.means).sum(-1)

    def variance(self) -> Tensor:
        """(n,)"""
        return (self.shares * (self.variances + (self.means - self.mean()[:, None]) ** 2)).sum(-1)

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x), (n,) nats, of values (n,), or of any number of values under one mixture."""
        off = (x[:, None] - self.means) ** 2 / self.variances + torch.log(2 * math.pi * self.variances)
        return torch.logsumexp(self.shares.log() - 0.5 * off, -1)

    def draw(self, noise: Noise) -> Tensor:
        """One of each, (n,)."""
        part = noise.choice(self.shares)[:, None]
        mean, variance = (x.expand_as(self.shares).gather(1, part)[:, 0] for x in (self.means, self.variances))
        return mean + variance.sqrt() * noise.normal()

    def quantiles(self, levels: Tensor) -> Tensor:
        """(n, q): what the number is below with each of these probabilities (q,), between 0 and 1."""
        shares, means = self.shares.double(), self.means.double().expand_as(self.shares)
        sd = self.variances.double().sqrt().clamp_min(1e-9).expand_as(self.shares)
        seen = shares > NEGLIGIBLE
        low = torch.where(seen, means - REACH * sd, torch.inf).amin(1)[:, None].repeat(1, len(levels))
        high = torch.where(seen, means + REACH * sd, -torch.inf).amax(1)[:, None].repeat(1, len(levels))
        split = torch.linspace(0, 1, SPLIT + 1, dtype=low.dtype, device=low.device)
        for _ in range(ROUNDS):
            edges = low[..., None] + (high - low)[..., None] * split
            parts = torch.erf((edges[:, None] - means[..., None, None]) * (math.sqrt(0.5) / sd[..., None, None]))
            below = 0.5 + 0.5 * torch.einsum("np,npqs->nqs", shares, parts)
            right = (below < levels.to(low)[:, None]).sum(-1, keepdim=True).clamp(1, SPLIT)
            low, high = edges.gather(-1, right - 1)[..., 0], edges.gather(-1, right)[..., 0]
        return (low + high) / 2


@dataclasses.dataclass(frozen=True, eq=False)
class Factor:
    """What all else says of n numbers: the sum of exp(log_weight - (sharpness (x - mean))^2 / 2), (n, factors) each.
    Sharpness is 1 / sd; 0 says nothing."""

    means: Tensor
    sharpness: Tensor
    log_weights: Tensor

    def at(self, x: Tensor) -> Tensor:
        """The log of it at x (n,): (n,)."""
        return torch.logsumexp(self.log_weights - 0.5 * (self.sharpness * (x[:, None] - self.means)) ** 2, -1)

    def agreement(self, means: Tensor, variances: Tensor) -> Tensor:
        """log E of each over N(mean, variance), (n, parts) each: (n, parts, factors)."""
        precision = self.sharpness[:, None] ** 2
        weight = 1 + precision * variances[..., None]
        off = precision * (means[..., None] - self.means[:, None]) ** 2 / weight
        return self.log_weights[:, None] - 0.5 * (off + weight.log())


@dataclass(frozen=True, config=STRICT)
class Law:
    """Equal parts of normal laws: sum_k N(centre_k, width_k^2) / K. N(0, 1) by default."""

    centres: tuple[float, ...] = (0.0,)
    widths: tuple[float, ...] = (1.0,)

    @property
    def mean(self) -> float:
        """Of the scores."""
        return sum(self.centres) / len(self.centres)

    @classmethod
    def of(cls, x: Array) -> "Law":
        """Of people's scores (n,): about sqrt(n) quantiles, each as wide as the smaller gap beside it. Mean and variance
        are the people's own. Fewer than 9 people say nothing of a shape: N(0, 1)."""
        if len(x) < 9 or not x.std():
            return cls()
        count = min(MAX_CENTRES, round(np.sqrt(len(x))))
        centres = np.quantile(x, (np.arange(count) + 0.5) / count)
        gaps = np.diff(centres)
        widths = np.minimum(np.append(gaps, gaps[-1]), np.append(gaps[0], gaps)).clip(0.05 * x.std())
        centres = centres - centres.mean()
        shrink = x.std() / np.sqrt((centres**2 + widths**2).mean())
        return cls(tuple((x.mean() + shrink * centres).tolist()), tuple((shrink * widths).tolist()))

    def given(self, x: Tensor, tau: Tensor, hint: Factor | None = None) -> Mixture:
        """What is believed of x_0 given its noised value (n,): exact by Bayes' rule part by part.

        hint: what all else says of x_0.
        """
        likely, means, left = self._parts(x, tau)
        if hint is not None:
            precision, spread = hint.sharpness[:, None] ** 2, left[..., None]
            weight = 1 + precision * spread
            likely = (likely[..., None] + hint.agreement(means, left)).flatten(1)
            means = ((means[..., None] + precision * spread * hint.means[:, None]) / weight).flatten(1)
            left = (spread / weight).flatten(1)
        return Mixture(torch.softmax(likely, -1), means, left)

    def gain(self, x0: Tensor, x: Tensor, tau: Tensor, hint: Factor) -> Tensor:
        """How much likelier a hint, as in `given`, makes what is true: log p(x_0 | x_t, hint) - log p(x_0 | x_t), (n,) in
        nats. On average the more, the nearer the hint and the righter its sharpness (the logarithmic score is proper:
        Gneiting and Raftery 2007); 0 for a hint that says nothing, and where x_0 is known."""
        likely, means, left = self._parts(x, tau)
        before = torch.log_softmax(likely, -1)
        return hint.at(x0) - torch.logsumexp((before[..., None] + hint.agreement(means, left)).flatten(1), -1)

    def _parts(self, x: Tensor, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each part given the noised value: its log share but for a constant, its mean and its variance, (n, parts)."""
        centres, variances = torch.tensor(self.centres, device=x.device), torch.tensor(self.widths, device=x.device) ** 2
        a, noise = alpha(tau)[:, None], sigma(tau)[:, None] ** 2
        total = a**2 * variances + noise
        off = x[:, None] - a * centres
        return -0.5 * (off**2 / total + total.log()), centres + a * variances / total * off, variances * noise / total
