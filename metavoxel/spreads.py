"""By how much people with the same facts differ, entry by entry, and how that hangs on the facts.

Old brains differ from one another by more than young ones, around the ventricles by half as much again. A law under which
all differ alike draws the young too different and the old too much alike, and what follows from the voxels but not in a
straight line, such as a tissue's volume, changes with age by too little.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE = 10.0
"""Pseudo-people of the average kind, against chance in small cohorts."""
FLOOR = 0.02
"""Least variance of an entry, of their average: a background that never varied in training may vary a little in use."""
MOST_STRETCHED = math.log(2)
"""Nobody differs by more than twice, or by less than half, of what people do on average."""


def spreads_of(off: Tensor, facts: Tensor) -> Tensor:
    """off (people, channels, *grid): what is left of each; facts (people, facts), of mean 0 -> spreads (facts, channels,
    *grid) of a law: squares are regressed on facts, entries near one another are taken together, and as much is believed
    of each fact as two halves of the people agree on (Spearman 1910, Brown 1910)."""
    if facts.shape[1] == 0:
        return off.new_zeros(0, *off.shape[1:])
    size = off.square().mean(0)
    weight = size.clamp_min(FLOOR * size.mean())
    near = partial(F.avg_pool3d if off.dim() == 5 else F.avg_pool2d, kernel_size=3, stride=1, padding=1)
    whole, one, other = (_log_slopes(off[start::step], facts[start::step], weight)
                         for start, step in ((0, 1), (0, 2), (1, 2)))  # fmt: skip
    whole, one, other = (near(found * weight) / near(weight[None]) for found in (whole, one, other))
    alike, apart = (weight * one * other).flatten(1).sum(1), (weight * (one**2 + other**2) / 2).flatten(1).sum(1)
    agreement = (alike / apart.clamp_min(torch.finfo(apart.dtype).tiny)).clamp(0, 1)
    return whole * (2 * agreement / (1 + agreement)).reshape(-1, *(1,) * (off.dim() - 1))


def _log_slopes(off: Tensor, facts: Tensor, usual: Tensor) -> Tensor:
    """(facts, channels, *grid): of log |off| on facts, by ridge regression of its squares: d log s = d s^2 / (2 s^2)."""
    centred = (facts - facts.mean(0)).double()
    inner = centred.T @ centred + RIDGE * torch.eye(facts.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(inner, centred.T).float()
    return torch.tensordot(weights, off.square(), dims=1) / (2 * usual)


def stretch_of(spreads: Tensor, facts: Tensor) -> Tensor:
    """By how much more people with such facts (rows, facts) differ than those of whom nothing is told: (rows, channels,
    *grid), or of one row where all have the same facts, or all differ alike."""
    if bool((facts == facts[:1]).all()) or not spreads.any():
        facts = facts[:1]
    return torch.tensordot(facts.to(spreads), spreads, dims=1).clamp(-MOST_STRETCHED, MOST_STRETCHED).exp()
