"""What entries of an image share with their neighbours: principal components of every block of its grid.

A head's size moves a whole image (see `image_law`); what that leaves over, a fold that lies a little to the left, is common
to neighbours and unrelated to what is far away. So each block of SIDE entries to a side has components of its own:
thousands in all, for the price of a few dozen unknowns a block, and Bayes' rule stays exact.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.linalg import eigh
from torch import Tensor
from torch.nn import functional as F

SIDE = 8
SHIFTS = (0, SIDE // 2)
"""Where the first blocks of the two tilings begin: an entry at the edge of a block is inside one of the other tiling."""
ROWS = 8
"""Rows that are solved at a time."""


def worthwhile(grid: Sequence[int]) -> bool:
    """Whether blocks are smaller than the image."""
    return min(grid) >= 2 * SIDE


@dataclass(frozen=True)
class Tiling:
    """A grid cut into blocks, the first of which begins `shift` entries before it."""

    grid: tuple[int, ...]
    shift: int = 0

    @property
    def counts(self) -> tuple[int, ...]:
        """Blocks along each axis."""
        return tuple(-(-(size + self.shift) // SIDE) for size in self.grid)

    def fold(self, x: Tensor) -> Tensor:
        """(..., channels, *grid) -> (..., blocks, channels * SIDE^dims); 0 outside the grid."""
        dims = len(self.grid)
        lead, channels = x.shape[: -dims - 1], x.shape[-dims - 1]
        around = [(self.shift, n * SIDE - size - self.shift) for n, size in zip(self.counts, self.grid)]
        x = F.pad(x, [width for pair in reversed(around) for width in pair])
        x = x.reshape(math.prod(lead), channels, *(size for n in self.counts for size in (n, SIDE)))
        order = [0, *range(2, 2 * dims + 2, 2), 1, *range(3, 2 * dims + 2, 2)]
        return x.permute(order).reshape(*lead, len(self), channels * SIDE**dims)

    def unfold(self, blocks: Tensor) -> Tensor:
        """The inverse of `fold`, for (rows, blocks, entries)."""
        dims = len(self.grid)
        x = blocks.reshape(len(blocks), *self.counts, -1, *(SIDE,) * dims)
        pairs = (axis for i in range(dims) for axis in (1 + i, 2 + dims + i))
        x = x.permute(0, 1 + dims, *pairs).reshape(len(blocks), -1, *(n * SIDE for n in self.counts))
        inside = (slice(self.shift, self.shift + size) for size in self.grid)
        return x[(slice(None), slice(None), *inside)]

    def __len__(self) -> int:
        return math.prod(self.counts)

    def inwards(self) -> Tensor:
        """(*grid): how far each entry is from the edge of its block, in entries."""
        away = [(torch.arange(size) + self.shift) % SIDE + 0.5 for size in self.grid]
        return torch.stack(torch.meshgrid(*(x.minimum(SIDE - x) for x in away), indexing="ij")).amin(0)


def shares(tilings: Sequence[Tiling]) -> Tensor:
    """(tilings, *grid): how much each one's answer counts at each entry, in all 1: the more, the further from its seams."""
    inwards = torch.stack([tiling.inwards() for tiling in tilings])
    return inwards / inwards.sum(0)


def components(off: Tensor, most: int) -> Tensor:
    """(at most `most`, entries): principal components of rows `off` (rows, entries), each times its sd.

    Their variances are less what chance adds where rows are fewer than entries: the rest's trace over the rows.
    """
    rows, entries = off.shape
    most = min(most, rows, entries)
    if not most:
        return off.new_zeros(0, entries)
    inner = (off @ off.T if rows <= entries else off.T @ off) / rows
    # the largest only, by a driver that does not fail where many are alike, as the usual one did for a block at a rim
    found = eigh(inner.double().cpu().numpy(), driver="evr", subset_by_index=(len(inner) - most, len(inner) - 1))
    kept, vectors = (torch.from_numpy(x.copy()).flip(-1).to(off.device) for x in found)
    sd = (kept - (inner.diagonal().sum() - kept.sum()) / rows).clamp_min(0).sqrt()[:, None].float()
    vectors = vectors.T.float()
    if rows > entries:
        return sd * vectors
    return sd * (vectors @ off) / (kept * rows).clamp_min(1e-30).sqrt()[:, None].float()


def fitted(off: Tensor, tiling: Tiling, most: int, floor: float) -> tuple[Tensor, Tensor]:
    """Of rows off (rows, channels, *grid): each block's components (most, channels, *grid), and the variance that they
    leave, (channels, *grid). Blocks whose entries vary by less than `floor` have none."""
    folded = tiling.fold(off)
    found = off.new_zeros(most, *folded.shape[1:])
    for block in ((folded**2).mean((0, 2)) > floor).nonzero()[:, 0]:
        own = components(folded[:, block], most)
        found[: len(own), block] = own
    loadings = tiling.unfold(found)
    return loadings, ((off**2).mean(0) - (loadings**2).sum(0)).clamp_min(floor)


@dataclass(frozen=True)
class Neighbours:
    """A normal law of mean 0, independent between blocks: loadings (components, channels, *grid) and the variance that they
    leave, rest (channels, *grid). others (j, channels, *grid): loadings of what is unknown of the whole image.

    What is made of them is kept, since a sampler asks for it at every step.
    """

    tiling: Tiling
    loadings: Tensor
    rest: Tensor
    others: Tensor

    @cached_property
    def live(self) -> Tensor:
        """Numbers of the blocks that have components: there are none in a background that never varies."""
        if not len(self.loadings):
            return torch.zeros(0, dtype=torch.int64, device=self.rest.device)
        return self.tiling.fold(self.loadings.abs().amax(0)).amax(-1).nonzero()[:, 0]

    @cached_property
    def own(self) -> Tensor:
        """(live blocks, components, entries)."""
        return self.blocks(self.loadings).transpose(0, 1).contiguous()

    @cached_property
    def both(self) -> Tensor:
        """(live blocks, entries, components + j): of the components and of the others."""
        return torch.cat([self.own, self.blocks(self.others).transpose(0, 1)], 1).transpose(1, 2).contiguous()

    def blocks(self, x: Tensor) -> Tensor:
        """(rows, channels, *grid) -> (rows, live blocks, entries)."""
        return self.tiling.fold(x)[:, self.live]

    def image(self, blocks: Tensor) -> Tensor:
        """The inverse of `blocks`, 0 elsewhere."""
        whole = blocks.new_zeros(len(blocks), len(self.tiling), blocks.shape[-1])
        return self.tiling.unfold(whole.index_copy_(1, self.live, blocks))

    def seen(self, weight: Tensor) -> "Seen":
        """What an image says of the components, if each entry weighs weight (rows or 1, channels, *grid), 1 / variance in
        terms of the clean image."""
        (blocks, k, entries), j = self.own.shape, len(self.others)
        inner = []
        for part in self.blocks(weight).split(ROWS):
            weighed = part.transpose(0, 1).contiguous()[:, :, None] * self.own[:, None]
            products = weighed.reshape(blocks, len(part) * k, entries) @ self.both
            inner.append(products.reshape(blocks, len(part), k, k + j).transpose(0, 1))
        precision, common = torch.cat(inner).split([k, j], -1)
        factor = torch.linalg.cholesky(precision + torch.eye(k, device=weight.device))
        return Seen(self, weight, factor, common)


@dataclass(frozen=True)
class Seen:
    """Of every row, the components' posterior before the whole image's unknowns are taken off."""

    law: Neighbours
    weight: Tensor
    factor: Tensor
    """(rows or 1, live blocks, k, k): Cholesky factor of their precision."""
    common: Tensor
    """(rows or 1, live blocks, k, j): products of the components' loadings and the others', weighed."""

    def expected(self, weighed: Tensor) -> Tensor:
        """(rows, channels, *grid): how the components move the image, of what entries off by `off` say, weight * off."""
        rows = self.law.blocks(weighed)
        found = self._solve(torch.einsum("nbi,bki->nbk", rows, self.law.own)[..., None])[..., 0]
        return self.law.image(torch.einsum("nbk,bki->nbi", found, self.law.own))

    def unexplained(self, weighed: Tensor) -> Tensor:
        """What entries say of the rest of the image, less what their neighbours say as well: same shape."""
        return weighed - self.weight * self.expected(weighed)

    def explained(self) -> Tensor:
        """(rows or 1, j, j): how much less the image says of its unknowns than if entries were independent."""
        return (self.common.transpose(-1, -2) @ self._solve(self.common)).sum(1)

    def _solve(self, right: Tensor) -> Tensor:
        return torch.cholesky_solve(right, self.factor.expand(len(right), *self.factor.shape[1:]))
