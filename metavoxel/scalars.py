"""What the network's raw outputs say of a number or a class: its law, its loss, and how sure it may be.

Classes (n, levels): log p(x_0) = F + log q(x_t | x_0), normalised. The network learns what the rest says about x_0; what
the noised value itself says enters by Bayes' rule, exactly, for every chain. So do the shares of the levels among people
whom a model has gone on with, over those that it met first.
Numbers (n, 2): likewise, p(x_0) = their law over people (see `laws`) times q(x_t | x_0) times a normal factor, whose mean
and sharpness are F; or a sum of several factors, (n, 3 x factors), which may tell two humps. With the noised value left
to the network, it trusted noise twice too much: draws were too wide.
Both learn by log p(x_0): by squared error a number's mean came out as well, but its sharpness too low.
"""

import math
from collections.abc import Callable

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from metavoxel.diffusion import over_marginal
from metavoxel.laws import Factor, Mixture
from metavoxel.schema import Categorical, Scalar

SPREAD = 0.2
"""Spread of log sureness before any held-out people are asked: two dozen of them say little."""
SURENESS = 0.05, 2.0
SHARE_SPREAD, SHARE = 0.5, (0.05, 1.0)
"""The same of the log of how much is believed of what a scan adds to facts."""
TINY = 1e-12


def law(v: Scalar, raw: Tensor, x: Tensor, tau: Tensor) -> Mixture | Tensor:
    """p(x_0): of numbers, or log p (n, levels) of a class; x (n,) noised values, tau (n,) their levels."""
    if isinstance(v, Categorical):
        others = _log(v.law, raw) - _log(v.origin, raw)
        return torch.log_softmax(raw + others + v.process.likelihood(x, tau), -1)
    return v.law.given(x, tau, _hint(raw))


def clean(v: Scalar, raw: Tensor, x: Tensor, tau: Tensor) -> Tensor:
    """E[x_0] (n,) of a number, log p(x_0) (n, levels) of a class."""
    told = law(v, raw, x, tau)
    return told.mean() if isinstance(told, Mixture) else told


def loss(v: Scalar, raw: Tensor, x: Tensor, tau: Tensor, x0: Tensor) -> Tensor:
    """(n,): 1 for a predictor that knows only the marginal; in nats of a number, in entropies of a class."""
    if isinstance(v, Categorical):
        return v.process.loss(clean(v, raw, x, tau), x0, tau) * over_marginal(v, tau)
    return 1 - v.law.gain(x0, x, tau, _hint(raw))


def tempered(v: Scalar, raw: Tensor, factor: Tensor) -> Tensor:
    """Raw outputs that say as much times `factor` (n,) beyond the marginal: 0 nothing, 1 as they are."""
    if isinstance(v, Categorical):
        return torch.lerp(_log(v.origin, raw).expand_as(raw), raw, factor[:, None])
    means, sharpness, weights = _side_by_side(raw)
    return torch.cat([means, factor[:, None] * sharpness, weights], -1)


def sureness(
    v: Scalar, raw: Tensor, x: Tensor, tau: Tensor, x0: Tensor, shown: Tensor, people: int
) -> tuple[float, Tensor]:
    """The factor at which people who were not trained on lose least, and their losses (n,) then: a network that has met few
    people is too sure of what it sees (temperature scaling: Guo et al. 2017).

    shown (n,): how much of an image each was told from, which the factor acts by; 0 leaves an answer as it is. people: whom
    the answers are of; several of one person count as one.
    """

    def losses(log_factor: float) -> Tensor:
        return loss(v, tempered(v, raw, torch.exp(log_factor * shown)), x, tau, x0)

    found = _least(losses, people, SPREAD, SURENESS)
    return math.exp(found), losses(found)


def beside_facts(v: Scalar, raw: Tensor, without: Tensor, share: Tensor) -> Tensor:
    """Raw outputs given a scan and facts of which only `share` (n,) of what the scan adds is believed: 0 nothing, 1 all.

    without: told of the same facts alone. The logs of what both say are mixed, so that evidence counts in shares.
    """
    share = share[:, None]
    if isinstance(v, Categorical):
        return torch.lerp(without, raw, share)
    (means_0, sharpness_0, weights_0), (means, sharpness, weights) = _side_by_side(without), _side_by_side(raw)
    before, after = sharpness_0**2, sharpness**2
    precision = torch.lerp(before, after, share)
    means = torch.lerp(before * means_0, after * means, share) / precision.clamp_min(TINY)
    return torch.cat([means, precision.clamp_min(TINY).sqrt(), torch.lerp(weights_0, weights, share)], -1)


def share_beside_facts(
    v: Scalar, raw: Tensor, without: Tensor, x: Tensor, tau: Tensor, x0: Tensor, shown: Tensor, people: int
) -> float:
    """The share at which people who were not trained on lose least, as `sureness`: of a scan that was learnt by heart a
    network believes so much that it forgets the facts."""

    def losses(log_share: float) -> Tensor:
        return loss(v, beside_facts(v, raw, without, torch.exp(log_share * shown)), x, tau, x0)

    return math.exp(_least(losses, people, SHARE_SPREAD, SHARE))


def _least(losses: Callable[[float], Tensor], people: int, spread: float, bounds: tuple[float, float]) -> float:
    """The log of the factor within bounds at which these people lose least; before any are asked, 0 give or take spread."""

    def cost(log_factor: float) -> float:
        return people * float(losses(log_factor).double().mean()) + 0.5 * (log_factor / spread) ** 2

    low, high = (math.log(bound) for bound in bounds)
    return float(minimize_scalar(cost, bounds=(low, high), method="bounded").x)


def _log(shares: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(shares, device=like.device).log()


def _hint(raw: Tensor) -> Factor:
    """A number's raw output -> what all else says of it."""
    means, sharpness, weights = _side_by_side(raw)
    return Factor(means, sharpness, torch.log_softmax(weights, -1) if weights.shape[-1] else torch.zeros_like(means))


def _side_by_side(raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means, sharpness and, of several factors, their weights: (n, factors) each; of one no weight is told."""
    count = (raw.shape[-1] + 1) // 3
    means, sharpness, weights = raw.split([count, count, raw.shape[-1] - 2 * count], -1)
    return means, sharpness, weights
