"""Guidance: a denoiser that asks another one twice, with and without what is given, and goes further the same way."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from metavoxel.diffusion import Coverage, Denoiser
from metavoxel.errors import MetavoxelError
from metavoxel.schema import State, Times


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance (Ho and Salimans 2022): clean = without + scale (with - without), of log-probabilities too.

    At one level that is the prediction for p(x) p(given | x)^scale: 1 is the model itself, 0 ignores `names`, above 1 draws
    are more typical of what is given and less various than people are. From 1.5 to 3 draws show a condition clearly;
    they are then no longer calibrated, so numbers and intervals that are reported want scale 1.

    names: given variables that guide; only a model that may ignore variables can be guided.
    """

    denoiser: Denoiser
    names: frozenset[str]
    scale: float

    @property
    def coverage(self) -> Coverage:
        return self.denoiser.coverage

    @property
    def device(self) -> torch.device:
        return getattr(self.denoiser, "device", torch.device("cpu"))

    def __call__(self, state: State, times: Times) -> State:
        return _further(self.denoiser(state, times), self.denoiser(state, self._without(times)), self.scale)

    def freeze(self, images: State, times: Times) -> Denoiser:
        given = self.denoiser.freeze(images, times)
        hidden = self._without(times)
        same = all(hidden[name] is level for name, level in times.items())
        return _Frozen(self, given, given if same else self.denoiser.freeze(images, hidden))

    def _without(self, times: Times) -> Times:
        """The levels with what is known of `names` at 1; what is on its way stays."""
        return {name: _forgotten(t) if name in self.names else t for name, t in times.items()}


@dataclass(frozen=True)
class _Frozen:
    """Guidance of the scalars for scans that stay as they are."""

    guided: Guided
    given: Denoiser
    without: Denoiser

    @property
    def coverage(self) -> Coverage:
        return self.guided.coverage

    @property
    def device(self) -> torch.device:
        return self.guided.device

    def __call__(self, state: State, times: Times) -> State:
        without = self.without(state, self.guided._without(times))
        return _further(self.given(state, times), without, self.guided.scale)

    def freeze(self, images: State, times: Times) -> Denoiser:
        return self


def guide(denoiser: Denoiser, names: Collection[str], scale: float) -> Denoiser:
    """The denoiser guided by the given variables `names`; at scale 1, or with nothing given, the denoiser itself."""
    if scale < 0:
        raise MetavoxelError(f"guidance {scale:g}: must be 0 or more; 1 is the model itself, 1.5 to 3 stress what is given")
    if scale == 1 or not names:
        return denoiser
    if not denoiser.coverage.separate:
        raise MetavoxelError("guidance needs a model that can ignore what is given; train with times: mixture")
    return Guided(denoiser, frozenset(names), scale)


def _forgotten(t: Tensor) -> Tensor:
    return torch.where(t == 0, 1.0, t)


def _further(given: State, without: State, scale: float) -> State:
    clean = {name: without[name] + scale * (x - without[name]) for name, x in given.items()}
    return {name: torch.log_softmax(x, -1) if _is_class(given[name]) else x for name, x in clean.items()}


def _is_class(clean: Tensor) -> bool:
    """Classes are the only predictions (n, levels); numbers are (n,), images have a channel axis and a grid."""
    return clean.dim() == 2
