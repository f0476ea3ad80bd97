"""How unlike the training people a scan is. A model answers about any array; about a scan that is not stripped, upside down
or of another contrast the answer means nothing, and nothing in it says so.

What is looked at: how far the scan is from the mean of people, and how well the model restores it from noise at several
levels, from shapes down to texture. People the model never saw say what is usual.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from scipy.stats import chi2
from torch import Tensor

from metavoxel.clocks import alpha, sigma
from metavoxel.denoiser import JointDenoiser, LearnedDenoiser
from metavoxel.noise import Noise
from metavoxel.question import laid_out
from metavoxel.schema import Image, full_level

LEVELS = (0.15, 0.35, 0.65)
FEATURES = 1 + len(LEVELS)
SEED = 40_493
PRIOR_PEOPLE = 10
"""Pseudo-people with uncorrelated features of a spread of TYPICAL_SPREAD, against chance where few are held out."""
TYPICAL_SPREAD = 0.1
TAIL = 1e-4
"""Share of usual people that is warned about, were their features normal."""


@dataclass(frozen=True)
class Usual:
    """The features of people held out from training: their mean (k,) and covariance (k, k)."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Usual":
        """features: (people, k)."""
        people, k = features.shape
        off = features - features.mean(0)
        prior = PRIOR_PEOPLE * TYPICAL_SPREAD**2 * torch.eye(k, dtype=features.dtype, device=features.device)
        return cls(features.mean(0), (off.T @ off + prior) / (people + PRIOR_PEOPLE))

    def surprise(self, features: Tensor) -> Tensor:
        """Mahalanobis distance over sqrt(k): near 1 for people such as those in training; (rows,)."""
        off = (features - self.mean.to(features)).double()
        return torch.sqrt((off * torch.linalg.solve(self.covariance.to(off), off.T).T).mean(1)).float()

    def to_dict(self) -> dict[str, object]:
        return {"mean": self.mean.tolist(), "covariance": self.covariance.tolist()}

    @classmethod
    def from_dict(cls, content: dict[str, list[float]]) -> "Usual":
        return cls(torch.tensor(content["mean"]), torch.tensor(content["covariance"]))


LIMIT = math.sqrt(chi2.isf(TAIL, FEATURES) / FEATURES)
"""Above this surprise, a scan is warned about."""


def usual(denoiser: LearnedDenoiser, image: Image, parts: Iterable[Tensor]) -> Usual:
    """What is usual of an image, by people not trained on; parts: their entries (rows, channels, *grid), some at a time."""
    return Usual.of(torch.cat([features(denoiser, image, part) for part in parts]))


@torch.no_grad()
def features(denoiser: LearnedDenoiser, image: Image, entries: Tensor) -> Tensor:
    """(rows, FEATURES) of entries (rows, channels, *grid): logarithms, so that twice as bad is as far as half as bad."""
    assert isinstance(denoiser, JointDenoiser), "only a network that is told each variable's level restores a scan alone"
    rows, device = len(entries), entries.device
    law = denoiser.law(image.name).alone()
    found = [law.deviation(entries, torch.zeros((), device=device))]
    # the same noise for every scan: a scan's score depends on nothing but the scan
    eps = Noise(SEED, torch.zeros(1, dtype=torch.int64, device=device)).normal(*image.entry_shape)
    state, times = laid_out(denoiser.schema.variables, {}, torch.zeros(rows, dtype=torch.int64, device=device), rows)
    for t in LEVELS:
        tau = image.clock.tau(torch.tensor(t, device=device))
        state[image.name] = alpha(tau) * entries + sigma(tau) * eps
        times[image.name] = full_level(image, t, rows, device)
        found.append(denoiser(state, times)[image.name] - entries)
    return torch.stack([(x**2).flatten(1).mean(1).clamp_min(1e-12).log() for x in found], 1)
