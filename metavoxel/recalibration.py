"""What comes true, on average, where so much is expected of an image's entry.

By squared error a network is soon right of all entries together, but late of those of which it expects the same: what may
be background or tissue is expected between them, and comes true below. The misses are hundredths of a brightness, but every
step of a draw adds its own, so that drawn brains had darker rims and larger ventricles than real ones. A prediction is
unbiased when its error is 0 on average among all that are predicted alike; that much can be told of people not trained on,
and put right (as isotonic regression does of probabilities, Zadrozny and Elkan 2002).

So it is with facts: where the same is expected of the old as of the young, furrows of the old come true darker. What is off
is therefore a line in the facts, along the few directions in which they move images most.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from metavoxel.clocks import log_snr

VALUES, LEVELS = 64, 13
"""How many expected values, and levels even in log(alpha / sigma) within CLOSEST of 0, a shift is found for."""
CLOSEST = 6.0
PRIOR = 20.0
"""Pseudo-entries that were expected rightly."""
MOST_DIRECTIONS = 4
"""Of the facts."""
LEAST, TINY = 1e-3, 1e-12
"""Of a range, and of the squares of shifts, that are divided by."""
ROUNDING = 1e-6
"""Of the greatest effect of facts: what is less is none (a class's numbers add up to 0)."""


def even_tau(share: Tensor) -> Tensor:
    """From 0 to 1 -> tau over all levels a shift is found for, evenly."""
    return torch.log1p(torch.exp(-2 * CLOSEST * (2 * share - 1)))


class Recalibration(nn.Module):
    """Adds to what is expected of entries what they were found off by: as they are, before it is fitted.

    facts: how many numbers are told of every person, each of mean 0 (see `facts`).
    """

    shift: Tensor
    """(2 * LEVELS * channels * VALUES, 1 + directions): of images of which nothing is known for sure, then of those of
    which a part is; of people of whom no fact is told, and what each direction adds."""
    directions: Tensor
    """(directions, facts)."""
    ends: Tensor
    """(2, channels): the expected values that the first and the last shift are for."""

    def __init__(self, channels: int, facts: int) -> None:
        super().__init__()
        directions = min(facts, MOST_DIRECTIONS)
        self.register_buffer("shift", torch.zeros(2 * LEVELS * channels * VALUES, 1 + directions))
        self.register_buffer("directions", torch.zeros(directions, facts))
        self.register_buffer("ends", torch.tensor([[-1.0], [1.0]]).repeat(1, channels))

    def forward(self, expected: Tensor, tau: Tensor, facts: Tensor) -> Tensor:
        """expected (rows, channels, *grid) at levels tau (rows or 1, 1, *grid; once where all are one) of people with such
        facts (rows, facts; 0 where nothing is told) -> what comes true; what is known stays."""
        if not self.shift.any():  # while it is trained
            return expected
        own = self._seen(facts) @ self.shift.T  # each person's shifts
        first = self._first(expected)
        added = sum(weight * own.flatten()[first + place] for place, weight in self._places(expected, tau))
        return torch.where(tau > 0, expected + added, expected)

    def counts(self, expected: Tensor, tau: Tensor, facts: Tensor, x0: Tensor) -> Tensor:
        """(rows, places, 1 + directions, 2 + directions): how much was off at each and along each direction, and the normal
        equations' matrix of how often it was met; summed over a person's questions, for `settle`."""
        rows, places = len(expected), len(self.shift)
        found = torch.zeros(2, rows * places, dtype=torch.float64, device=expected.device)
        first = self._first(expected)
        asked = (tau > 0).expand_as(expected)
        for place, weight in self._places(expected, tau):
            own, weight = (first + place).flatten(), weight.double() * asked
            found[0].index_add_(0, own, (weight * (x0 - expected)).flatten())
            found[1].index_add_(0, own, weight.flatten())
        off, met = found.reshape(2, rows, places, 1, 1)
        seen = self._seen(facts).double()[:, None, :, None]
        return torch.cat([off * seen, met * seen * seen.transpose(2, 3)], -1)

    def clear(self, ends: Tensor, slopes: Tensor) -> None:
        """As they are again; ends (2, channels): within which values will be expected; slopes (facts, ...): by how much
        each fact moves every entry."""
        self.shift.zero_()
        self.ends.copy_(ends)
        effect = slopes.flatten(1).double()
        size, directions = torch.linalg.eigh(effect @ effect.T)
        directions = directions * (size > ROUNDING * size.amax()) if len(size) else directions
        self.directions.copy_(directions.T.flip(0)[: len(self.directions)])

    def settle(self, counts: Tensor) -> None:
        """counts (people, places, ...): of each, or of groups of them, the sum over all questions.

        A person's entries are off together (a brain that is bright is so everywhere), so what is found of few people may be
        chance, however many entries it is of. Of the shifts of one level as much is believed as their squares exceed their
        variance between people (positive-part James and Stein; the variance by leaving out each, Efron and Stein 1981,
        times that of Student's t, since it is itself found of few).
        """
        total, people = counts.sum(0), (counts[..., 0, 1] > 0).sum(0)[:, None]
        shift, without = _solved(total), _solved(total - counts)
        variance = (without - without.mean(0)).square().sum(0) * (people - 1) / people.clamp_min(1)
        free = people - shift.shape[-1]
        chance = torch.where(free > 2, variance * free / (free - 2).clamp_min(1), shift.square())
        weight = total[..., 1:].diagonal(dim1=-2, dim2=-1)
        found, by_chance = ((weight * x).reshape(-1, VALUES, x.shape[-1]).sum(1) for x in (shift.square(), chance))
        believed = (1 - by_chance / found.clamp_min(TINY)).clamp_min(0)
        self.shift.copy_(shift * believed.repeat_interleave(VALUES, 0))

    def _first(self, expected: Tensor) -> Tensor:
        """(rows, 1, ...): where each person's places begin in a flat list of everybody's."""
        rows = torch.arange(len(expected), device=expected.device)
        return rows.reshape(-1, *(1,) * (expected.dim() - 1)) * len(self.shift)

    def _seen(self, facts: Tensor) -> Tensor:
        """(rows, 1 + directions): what each column of shifts counts by."""
        along = facts.to(self.directions) @ self.directions.T
        return torch.cat([along.new_ones(len(along), 1), along], 1)

    def _places(self, expected: Tensor, tau: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Of every entry the four shifts between which it lies, in a flat list, and how much each counts."""
        channels = expected.shape[1]
        per_entry = (1, -1, *(1,) * (expected.dim() - 2))
        low, high = (end.reshape(per_entry) for end in self.ends)
        value = ((expected - low) / (high - low).clamp_min(LEAST) * (VALUES - 1)).clamp(0, VALUES - 1)
        level = (log_snr(tau).clamp(-CLOSEST, CLOSEST) / CLOSEST + 1) / 2 * (LEVELS - 1)
        some_known = (tau <= 0).flatten(1).any(1).long().reshape(-1, *(1,) * (tau.dim() - 1))
        channel = torch.arange(channels, device=expected.device).reshape(per_entry)
        value_below, level_below = value.floor().clamp_max(VALUES - 2), level.floor().clamp_max(LEVELS - 2)
        for up, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
            at_level, at_value = level_below.long() + up, value_below.long() + right
            place = ((some_known * LEVELS + at_level) * channels + channel) * VALUES + at_value
            yield place, (1 - (level - at_level).abs()) * (1 - (value - at_value).abs())


def _solved(counts: Tensor) -> Tensor:
    """The shifts (..., places, 1 + directions) by which these would have been expected rightly, but for PRIOR."""
    off, met = counts.split([1, counts.shape[-1] - 1], -1)
    prior = PRIOR * torch.eye(met.shape[-1], dtype=met.dtype, device=met.device)
    return torch.linalg.solve(met + prior, off).squeeze(-1)
