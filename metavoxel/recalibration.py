"""What comes true, on average, where so much is expected of an image's entry.

By squared error a network is soon right of all entries together, but late of those of which it expects the same: what may
be background or tissue is expected between them, and comes true below. The misses are hundredths of a brightness, but every
step of a draw adds its own, so that drawn brains had darker rims and larger ventricles than real ones. A prediction is
unbiased when its error is 0 on average among all that are predicted alike; that much can be told of people not trained on,
and put right (as isotonic regression does of probabilities, Zadrozny and Elkan 2002).
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
LEAST, TINY = 1e-3, 1e-12
"""Of a range, and of the squares of shifts, that are divided by."""


def even_tau(share: Tensor) -> Tensor:
    """From 0 to 1 -> tau over all levels a shift is found for, evenly."""
    return torch.log1p(torch.exp(-2 * CLOSEST * (2 * share - 1)))


class Recalibration(nn.Module):
    """Adds to what is expected of entries what they were found off by: as they are, before it is fitted."""

    shift: Tensor
    """(2, LEVELS, channels, VALUES): of images of which nothing is known for sure, and of those of which a part is."""
    ends: Tensor
    """(2, channels): the expected values that the first and the last shift are for."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(2, LEVELS, channels, VALUES))
        self.register_buffer("ends", torch.tensor([[-1.0], [1.0]]).repeat(1, channels))

    def forward(self, expected: Tensor, tau: Tensor) -> Tensor:
        """expected (rows, channels, *grid) at levels tau (rows or 1, 1, *grid; once where all are one) -> what comes true;
        what is known stays."""
        if not self.shift.any():  # while it is trained
            return expected
        added = sum(weight * self.shift.flatten()[place] for place, weight in self._places(expected, tau))
        return torch.where(tau > 0, expected + added, expected)

    def counts(self, expected: Tensor, tau: Tensor, x0: Tensor) -> Tensor:
        """(rows, 2, places): how much was off at each, and how often it was met; summed over a person's questions, for
        `settle`."""
        rows, places = len(expected), self.shift.numel()
        found = torch.zeros(2, rows * places, dtype=torch.float64, device=expected.device)
        first = torch.arange(rows, device=expected.device).reshape(-1, *(1,) * (expected.dim() - 1)) * places
        asked = (tau > 0).expand_as(expected)
        for place, weight in self._places(expected, tau):
            own, weight = (first + place).flatten(), weight.double() * asked
            found[0].index_add_(0, own, (weight * (x0 - expected)).flatten())
            found[1].index_add_(0, own, weight.flatten())
        return found.reshape(2, rows, places).transpose(0, 1)

    def clear(self, ends: Tensor) -> None:
        """As they are again; ends (2, channels): within which values will be expected."""
        self.shift.zero_()
        self.ends.copy_(ends)

    def settle(self, counts: Tensor) -> None:
        """counts (people, 2, places): of each, or of groups of them, the sum over all questions.

        A person's entries are off together (a brain that is bright is so everywhere), so what is found of few people may be
        chance, however many entries it is of. Of the shifts of one level as much is believed as their squares exceed their
        variance between people (positive-part James and Stein).
        """
        off, met = counts.sum(0)
        shift = off / (met + PRIOR)
        own = counts[:, 0] - shift * counts[:, 1]
        people = (counts[:, 1] > 0).sum(0)
        variance = own.square().sum(0) / (met + PRIOR) ** 2 * people / (people - 1).clamp_min(1)
        chance = torch.where(people > 1, variance, shift.square())
        found, by_chance = ((met * x).reshape(self.shift.shape).sum(-1, keepdim=True) for x in (shift.square(), chance))
        believed = (1 - by_chance / found.clamp_min(TINY)).clamp_min(0)
        self.shift.copy_(shift.reshape(self.shift.shape) * believed)

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
