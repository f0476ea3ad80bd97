"""What each scalar says by itself of the facts that an image's law leans on: numbers as they are, classes as one number a
level."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metavoxel.schema import Categorical, Scalar, State, Times


@dataclass(frozen=True)
class Told:
    """What one scalar says by itself of its facts: (rows, width) each."""

    mean: Tensor
    """E[fact | x_t], each fact of mean 0 over people; 0 where the scalar is absent."""
    variance: Tensor
    chances: Tensor | None = None
    """A class's p(x_0 | x_t): its facts are not independent, Cov = diag(p) - p p^T."""

    def rows(self, index: Tensor) -> "Told":
        """Only these rows."""
        chances = None if self.chances is None else self.chances[index]
        return Told(self.mean[index], self.variance[index], chances)

    @property
    def covariance(self) -> Tensor:
        """(rows, width, width)."""
        if self.chances is None:
            return torch.diag_embed(self.variance)
        return torch.diag_embed(self.chances) - self.chances[:, :, None] * self.chances[:, None]


def fact_width(v: Scalar) -> int:
    """How many numbers `told` makes of a scalar."""
    return len(v.levels) if isinstance(v, Categorical) else 1


def told(scalars: Sequence[Scalar], state: State, times: Times, rows: int) -> list[Told]:
    """What each scalar says by itself, a class of each of its levels, less what is so of all people of the last training: a
    score of 0 is the mean of the first's. Of several rows for each row of the images, the first speaks."""
    parts = []
    for v in scalars:
        x, t = (part[v.name].reshape(rows, -1)[:, 0] for part in (state, times))
        tau = v.clock.tau(t)
        if isinstance(v, Categorical):
            law = torch.tensor(v.law, device=x.device)
            chances = torch.softmax(law.log() + v.process.likelihood(x, tau), -1)
            parts.append(Told(chances - law, chances, chances))
        else:
            number = v.law.given(x, tau)
            parts.append(Told((number.mean() - v.law.mean)[:, None], number.variance()[:, None]))
    return parts


def facts_of(
    scalars: Sequence[Scalar], state: State, times: Times, rows: int, place: torch.device | str = "cpu"
) -> Tensor:
    """(rows, facts): E[fact | x_t] of all scalars, as a law is fitted to them; 0 where a scalar is absent."""
    return side_by_side(told(scalars, state, times, rows), rows, place)


def side_by_side(parts: Sequence[Told], rows: int, place: torch.device | str) -> Tensor:
    """(rows, facts): the mean of every fact; none, on `place`, of a schema without scalars."""
    return torch.cat([fact.mean for fact in parts], 1) if parts else torch.zeros(rows, 0, device=place)
