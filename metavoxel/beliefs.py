"""What one evaluation tells of a number, in its own unit: mean, spread and quantiles without a draw."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

from metavoxel.laws import Mixture
from metavoxel.schema import Continuous

NODES = 21
"""Of Gauss-Hermite quadrature, in each normal part of a law whose scale is not linear."""


@dataclass(frozen=True)
class Belief:
    """p(number | known) of n rows, in the number's unit. Quantiles are recorded as finely as in training; mean and spread,
    like an average of people, are not."""

    variable: Continuous
    law: Mixture
    """Of its scores."""

    @cached_property
    def mean(self) -> np.ndarray:
        """(n,)"""
        return self._moments[0]

    @cached_property
    def std(self) -> np.ndarray:
        """(n,)"""
        return self._moments[1]

    def quantiles(self, levels: Tensor) -> np.ndarray:
        """(n, q): what the number is at most with each of these probabilities (q,), above 0 and below 1."""
        return self.variable.drawn(self.law.quantiles(levels))

    @cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, (n,) each."""
        variable, law = self.variable, self.law
        if variable.scale is not None and variable.scale.kind == "linear":  # moments of scores are scores of moments
            mean = law.mean()
            return variable.decode(mean), variable.decode(mean + law.variance().sqrt()) - variable.decode(mean)
        nodes, weights = hermegauss(NODES)
        scores = law.means[..., None] + law.variances.sqrt()[..., None] * torch.tensor(nodes).to(law.means)
        share = law.shares.double().numpy(force=True)[..., None] * weights / weights.sum()
        values = variable.decode(scores)
        mean = (share * values).sum((1, 2))
        return mean, np.sqrt((share * (values - mean[:, None, None]) ** 2).sum((1, 2)))
