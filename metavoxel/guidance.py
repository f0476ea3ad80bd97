"""Guidance: a denoiser that asks another one twice, with and without what is given, and goes further the same way."""

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from metavoxel.asked import between
from metavoxel.errors import MetavoxelError
from metavoxel.question import Coverage, Denoiser
from metavoxel.schema import State, Times


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance (Ho and Salimans 2022): clean = without + scale (with - without), of log-probabilities too.

    At one level that is the prediction for p(x) p(given | x)^scale: 1 is the model itself, 0 ignores `names`, above 1 draws
    are more typical of what is given and less various than people are. From 1.5 to 3 draws show a condition clearly;
    they are then no longer calibrated, so numbers and intervals that are reported want scale 1.

    names: given variables that guide; only a model that may ignore variables can be guided. given, without: the denoiser to
    ask with and without them; two only where scans are encoded already, once as given and once hidden.
    """

    given: Denoiser
    without: Denoiser
    names: frozenset[str]
    scale: float

    @property
    def coverage(self) -> Coverage:
        return self.given.coverage

    @property
    def device(self) -> torch.device:
        return getattr(self.given, "device", torch.device("cpu"))

    def __call__(self, state: State, times: Times) -> State:
        return _further(self.given(state, times), self.without(state, self._hidden(times)), self.scale)

    def freeze(self, images: State, times: Times) -> Denoiser:
        given = self.given.freeze(images, times)
        guides = not self.names.isdisjoint(times)
        without = self.without.freeze(images, self._hidden(times)) if guides else given
        return Guided(given, without, self.names, self.scale)

    def _hidden(self, times: Times) -> Times:
        """The levels with what is known of `names` at 1; what is on its way stays."""
        return {name: torch.where(t == 0, 1.0, t) if name in self.names else t for name, t in times.items()}


def guide(denoiser: Denoiser, names: Collection[str], scale: float) -> Denoiser:
    """The denoiser guided by the given variables `names`; at scale 1, or with nothing given, the denoiser itself.

    Raises MetavoxelError for a scale that is negative or no number; 1.5 to 3 stress what is given."""
    if between("guidance", scale, 0, math.inf) == 1 or not names:
        return denoiser
    if not denoiser.coverage.separate:
        raise MetavoxelError("guidance needs a model that can ignore what is given; train with times: mixture")
    return Guided(denoiser, denoiser, frozenset(names), scale)


def _further(given: State, without: State, scale: float) -> State:
    clean = {name: without[name] + scale * (x - without[name]) for name, x in given.items()}
    return {name: torch.log_softmax(x, -1) if _is_class(given[name]) else x for name, x in clean.items()}


def _is_class(clean: Tensor) -> bool:
    """Classes are the only predictions (n, levels); numbers are (n,), images have a channel axis and a grid."""
    return clean.dim() == 2
