"""What one evaluation tells of a number, in its own unit: mean, spread and quantiles without a draw."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from metavoxel.laws import Mixture
from metavoxel.schema import Continuous

PARTS = 512
"""Equally likely parts of a law, over whose middles a mean or spread is taken where the scale is not linear: of a normal
law .999 of its sd."""


@dataclass(frozen=True)
class Belief:
    """p(number | known) of n rows, in the number's unit and recorded as finely as in training."""

    variable: Continuous
    law: Mixture
    """Of its scores."""

    @property
    def _linear(self) -> bool:
        """Whether the mean of scores is the score of the mean."""
        return self.variable.scale is not None and self.variable.scale.kind == "linear"

    @cached_property
    def _middles(self) -> np.ndarray:
        """(n, PARTS): equally likely values."""
        return self.quantiles((torch.arange(PARTS) + 0.5) / PARTS)

    @cached_property
    def mean(self) -> np.ndarray:
        """(n,)"""
        return self.variable.decode(self.law.mean()) if self._linear else self._middles.mean(1)

    @cached_property
    def std(self) -> np.ndarray:
        """(n,)"""
        if not self._linear:
            return self._middles.std(1)
        mean = self.law.mean()
        return self.variable.decode(mean + self.law.variance().sqrt()) - self.variable.decode(mean)

    def quantiles(self, levels: Tensor) -> np.ndarray:
        """(n, q): what the number is at most with each of these probabilities (q,), between 0 and 1."""
        return self.variable.drawn(self.law.quantiles(levels))
