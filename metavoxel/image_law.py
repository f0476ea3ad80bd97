"""What is expected of a whole image before the network speaks: a normal law about the mean of people with such facts.

    x_0 = mean + slopes . facts + stretch (factors . z + what neighbours share + rest),   z ~ N(0, I), rest independent in
    every entry, stretch = exp(spreads . facts): old brains differ by more, around their ventricles, than young ones

Age moves every voxel by little, the size of a head thousands of voxels together, a fold those beside it (see `neighbours`).
A network alone takes days to follow them; under this law all are exact from the first step, whatever is known of the image
(Bayes' rule), and the network learns what is not normal. (Probabilistic principal components: Tipping and Bishop 1999.)
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metavoxel.clocks import alpha, sigma
from metavoxel.facts import Told, side_by_side
from metavoxel.neighbours import SHIFTS, SIDE, Neighbours, Seen, Tiling, components, fitted, shares, worthwhile
from metavoxel.spreads import FLOOR, RIDGE, spreads_of, stretch_of

CHUNK = 32
MOST_FACTORS, ENTRIES_A_FACTOR, MOST_NEIGHBOURS = 32, 20, 24
PEOPLE_A_FACTOR = 20
MOST_PEOPLE, MOST_NUMBERS = 2000, 10**8
"""From whom the factors are found, and how many entries of theirs are held in memory."""
COLUMNS = 4096
DOUBTS = tuple(10 ** (i / 4) for i in range(13))
LEAST = 1e-3
"""Of a spread or of noise that is divided by."""
FEATURES = 6
"""Numbers that `Expected.features` makes of an entry."""
HALVED = 64
"""People whose one half is told from the other to find how far that is believed; a tenth of a small cohort."""


def law_sizes(shape: Sequence[int]) -> tuple[int, int]:
    """How many components a law of images (channels, *grid) has: of the whole image, and of each block of it."""
    entries = math.prod(shape)
    factors = min(MOST_FACTORS, entries // ENTRIES_A_FACTOR)
    return factors, min(MOST_NEIGHBOURS, MOST_NUMBERS // entries // PEOPLE_A_FACTOR) if worthwhile(shape[1:]) else 0


def evenly(rows: Tensor, most: int) -> Tensor:
    """At most so many of them, evenly spread."""
    return rows[torch.linspace(0, len(rows) - 1, min(len(rows), most)).round().long()]


class ImageLaw(nn.Module):
    """The law over the training rows, in standardised entries: buffers (channels, *grid) each; of a fresh one, N(0, 1).

    facts, factors, neighbours: how many slopes it has, components of the whole image, and of each block of it.
    """

    mean: Tensor
    variance: Tensor
    slopes: Tensor
    spreads: Tensor
    """(facts, channels, *grid): of the log of what people with the same facts differ by, the slopes on these facts."""
    factors: Tensor
    rest: Tensor
    """Variance that facts and factors leave, where nothing is stretched."""
    local: Tensor
    """(tilings, components, channels, *grid): what of the rest neighbours share."""
    local_rest: Tensor
    """(tilings, channels, *grid): the variance that is left then."""
    shares: Tensor
    """(tilings, *grid): how much each tiling's answer counts."""
    doubt: Tensor
    """(): how many times too much entries that are known say of the others; see `_fit_doubt`."""
    low: Tensor
    high: Tensor
    """The least and the greatest value of each entry in training."""

    def __init__(self, shape: tuple[int, ...], facts: int, factors: int = 0, neighbours: int = 0) -> None:
        super().__init__()
        self.tilings = [Tiling(shape[1:], shift) for shift in (SHIFTS if neighbours else SHIFTS[:1])]
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))
        self.register_buffer("slopes", torch.zeros(facts, *shape))
        self.register_buffer("spreads", torch.zeros(facts, *shape))
        self.register_buffer("factors", torch.zeros(factors, *shape))
        self.register_buffer("rest", torch.ones(shape))
        self.register_buffer("local", torch.zeros(len(self.tilings), neighbours, *shape))
        self.register_buffer("local_rest", torch.ones(len(self.tilings), *shape))
        self.register_buffer("shares", shares(self.tilings), persistent=False)
        self.register_buffer("doubt", torch.ones(()))
        self.register_buffer("low", torch.full(shape, -torch.inf))
        self.register_buffer("high", torch.full(shape, torch.inf))
        self._kept: tuple[object, list[Neighbours]] = None, []

    def set(self, mean: Tensor, variance: Tensor, slopes: Tensor, factors: Tensor, rest: Tensor) -> None:
        """variance: about the mean of all; rest: what facts and factors (as many as there are, or fewer) leave of it, in
        every entry by itself."""
        floor = FLOOR * float(variance.mean())
        self.mean.copy_(mean)
        self.variance.copy_(variance.clamp_min(floor))
        self.slopes.copy_(slopes)
        self.spreads.zero_()
        self.factors.zero_()[: len(factors)] = factors
        self.rest.copy_(rest.clamp_min(floor))
        self.local.zero_()
        self.local_rest.copy_(self.rest.expand_as(self.local_rest))
        self.doubt.fill_(1.0)

    def fit(self, entries: Callable[[Tensor], Tensor], rows: Tensor, facts: Tensor) -> None:
        """Of people: entries(rows) gives (n, channels, *grid) standardised; facts (people, facts) are theirs, of mean 0, 0
        where missing. Slopes by ridge regression, spreads and factors from what it leaves, neighbours from the rest."""
        facts = facts.double()
        total = square = cross = torch.zeros((), dtype=torch.float64)
        low, high = torch.tensor(torch.inf), torch.tensor(-torch.inf)
        for part in rows.split(CHUNK):
            x = entries(part)
            low, high, x = torch.minimum(low, x.amin(0)), torch.maximum(high, x.amax(0)), x.double()
            total, square = total + x.sum(0), square + (x**2).sum(0)
            cross = cross + torch.tensordot(facts[part].T, x, dims=1)
        some = facts[rows]
        mean = total / len(rows)
        variance = (square / len(rows) - mean**2).clamp_min(0)
        centred = some - some.mean(0)
        inner = centred.T @ centred
        cross = cross - torch.tensordot(some.sum(0)[:, None], mean[None], dims=1)
        ridge = RIDGE * torch.eye(len(inner), dtype=inner.dtype)
        slopes = torch.linalg.solve(inner + ridge, cross.flatten(1)).reshape(cross.shape)
        rest = variance - (slopes * torch.tensordot(inner / len(rows), slopes, dims=1)).sum(0)
        mean, slopes = mean.float(), slopes.float()
        chosen = evenly(rows, min(MOST_PEOPLE, max(2, MOST_NUMBERS // mean.numel())))
        usual = (mean + torch.tensordot(facts[part].float(), slopes, dims=1) for part in chosen.split(CHUNK))
        off = torch.cat([entries(part) - expected for part, expected in zip(chosen.split(CHUNK), usual)])
        people, known, before = len(off), facts[chosen].float(), off.square().mean(0)
        spreads = spreads_of(off, known)
        off = off / stretch_of(spreads, known)
        rest = rest.float() * off.square().mean(0) / before.clamp_min(FLOOR * before.mean())
        judges = torch.arange(people) % max(10, people // HALVED) == 0
        halved, off = off[judges], off[~judges]
        factors = components(off.flatten(1), min(len(self.factors), people // PEOPLE_A_FACTOR)).reshape(-1, *mean.shape)
        self.set(mean, variance.float(), slopes, factors, rest - (factors**2).sum(0))
        self.spreads.copy_(spreads)
        self.low.copy_(low)
        self.high.copy_(high)
        self._fit_neighbours(off)
        self._fit_doubt(halved)

    def _fit_neighbours(self, off: Tensor) -> None:
        """off (people, channels, *grid): what facts leave. Neighbours share what the whole image's factors leave of it."""
        most = min(self.local.shape[1], len(off) // PEOPLE_A_FACTOR)
        if not most:
            return
        loadings, weight = self.factors.flatten(1).cpu(), 1 / self.rest.flatten().cpu()
        precision = torch.eye(len(loadings)) + (loadings * weight) @ loadings.T
        z = torch.linalg.solve(precision, loadings @ (off.flatten(1) * weight).T).T
        left = off - (z @ loadings).reshape(off.shape)
        floor = FLOOR * float(self.variance.mean())
        for k, tiling in enumerate(self.tilings):
            self.local[k, :most], self.local_rest[k] = fitted(left, tiling, most, floor)

    def _fit_doubt(self, off: Tensor) -> None:
        """off: as above, of people on whom no components were fitted. Each half of an image is told from the other, along
        every axis, with what the known half says of the components divided by this; that one is kept under which the
        unknown half is likeliest, entry by entry.

        Thousands of entries count as so many witnesses, but what components leave is shared more widely than by blocks.
        """
        if not len(self.factors):
            return
        people = off.to(self.mean.device)
        local, b = Neighbours(self.tilings[0], self.local[0], self.local_rest[0], self.factors), self.factors.flatten(1)
        own, before = (local.rest + (local.loadings**2).sum(0)).flatten(), torch.eye(len(b), device=b.device)[None]
        cost = torch.zeros(len(DOUBTS))
        for known, asked in _halves(self.mean.shape, SIDE if len(local.loadings) else 0):
            seen = known.to(self.mean) / local.rest
            evidence, asked = Evidence.of(local.seen(seen[None]), seen * people), asked.flatten().to(self.mean.device)
            for number, doubt in enumerate(DOUBTS):
                believed = evidence.less(evidence, 1 - 1 / doubt)
                left = (people.flatten(1) - believed.mean(before) @ b)[:, asked]
                variance = (own + ((believed.covariance(before)[0] @ b) * b).sum(0))[asked]
                cost[number] += float((left**2 / variance + variance.log()).sum())
        self.doubt.fill_(DOUBTS[int(cost.argmin())])

    def alone(self) -> "Normal":
        """Of people of whom nothing is told, entry by entry."""
        return Normal(self.mean, self.variance)

    def given(self, facts: Sequence[Told]) -> "Conditional":
        """Of people of whom so much is told. What a fact leaves open of itself is spread along its slopes."""
        stretch = stretch_of(self.spreads, side_by_side(facts, 1, self.mean.device))
        mean, residual = self.mean[None], (self.rest + (self.factors**2).sum(0)) * stretch**2
        variance = residual
        widths = [fact.mean.shape[1] for fact in facts]
        for fact, slopes in zip(facts, self.slopes.split(widths)):
            mean = mean + torch.tensordot(fact.mean, slopes, dims=1)
            variance = variance + torch.tensordot(fact.variance, slopes**2, dims=1)
            if fact.chances is not None:
                variance = variance - torch.tensordot(fact.chances, slopes, dims=1) ** 2
        rows, k = len(mean), len(self.factors)
        spread = torch.maximum(variance, residual)
        blocks = [*(fact.covariance for fact in facts), torch.eye(k, device=mean.device).expand(rows, k, k)]
        ends, covariance = (self.low, self.high), _block_diagonal(blocks)
        return Conditional(mean, spread, ends, covariance, self._neighbours(), self.shares, self.doubt, stretch)

    def _neighbours(self) -> list[Neighbours]:
        """Of each tiling; made anew where a buffer was changed or moved."""
        buffers = (self.slopes, self.factors, self.local, self.local_rest)
        state = [(x.data_ptr(), x._version) for x in buffers]
        if state != self._kept[0]:
            others = torch.cat([self.slopes, self.factors])
            self._kept = state, [Neighbours(*parts, others) for parts in zip(self.tilings, self.local, self.local_rest)]
        return self._kept[1]


@dataclass(frozen=True)
class Normal:
    """What is expected of every entry of an image by itself: (channels, *grid) each."""

    mean: Tensor
    variance: Tensor

    def deviation(self, x: Tensor, tau: Tensor) -> Tensor:
        """How far each noised entry is from its mean, in units of its spread."""
        a = alpha(tau)
        return (x - a * self.mean) / torch.sqrt(a**2 * self.variance + sigma(tau) ** 2)


@dataclass(frozen=True)
class Conditional:
    """A normal law of whole images given facts: mean and variance (rows or 1, channels, *grid)."""

    mean: Tensor
    variance: Tensor
    ends: tuple[Tensor, Tensor]
    """The least and the greatest value of each entry: (channels, *grid)."""
    covariance: Tensor
    """(rows or 1, j, j): of facts and factors."""
    local: Sequence[Neighbours]
    """What neighbours share of the rest, by each tiling."""
    shares: Tensor
    """(tilings, *grid)."""
    doubt: Tensor
    """(): what known entries say of the rest of the image is divided by it."""
    stretch: Tensor
    """(rows or 1, channels, *grid)."""

    def expect(self, x: Tensor, tau: Tensor) -> "Expected":
        """Of the clean image, given that it was noised to x.

        tau: (rows or 1, 1, *grid), of each entry; inf where nothing is seen of it. Where there are two tilings, each is a
        law of its own; at every entry the one counts more from whose seams it is further.
        """
        if bool((tau == tau[:1]).all()):
            tau = tau[:1]  # one solve serves all rows
        a, noise, known = alpha(tau), sigma(tau), tau == 0
        own = torch.zeros_like(x)
        for share, local in zip(self.shares, self.local):
            own = own + share * self._expected(local, x, a, noise, known)
        spread = noise * torch.sqrt(self.variance / (a**2 * self.variance + noise**2))
        return Expected(own, spread, a * (x - a * own) / noise.clamp_min(LEAST), self.ends)

    def _expected(self, local: Neighbours, x: Tensor, a: Tensor, noise: Tensor, known: Tensor) -> Tensor:
        """E[x_0 | x_t] by one tiling; known: where x is x_0 itself. Divided by the stretch, what is off has the same law in
        everybody, and only the noise differs."""
        off = (x - a * self.mean) / self.stretch
        gain = a / (a**2 * local.rest + (noise / self.stretch) ** 2)
        seen = local.seen(a * gain)
        found = self._common(seen, gain * off, known)
        found = found + seen.expected(gain * (off - a * found))
        return self.mean + self.stretch * (found + local.rest * gain * (off - a * found))

    def _common(self, seen: Seen, weighed: Tensor, known: Tensor) -> Tensor:
        """How the image's facts and factors move it, by all of its entries: (rows, channels, *grid).

        weighed: what an entry off by `off` says, off / variance in terms of the clean image.
        """
        local = seen.law
        if not len(local.others):
            return torch.zeros_like(weighed)
        evidence = Evidence.of(seen, weighed)
        if self.doubt > 1 and known.any() and not known.all():
            said = Evidence.of(local.seen(seen.weight * known), weighed * known)
            evidence = evidence.less(said, 1 - 1 / self.doubt)
        return (evidence.mean(self.covariance) @ local.others.flatten(1)).reshape(weighed.shape)


@dataclass(frozen=True)
class Expected:
    """What the law expects of clean images: (rows, channels, *grid) each."""

    mean: Tensor
    """E[x_0 | x_t]."""
    spread: Tensor
    """The sd that each entry by itself leaves open; 0 where it is known."""
    missed: Tensor
    """How much of the noised image it does not explain, in units of the noise; 0 where nothing was seen."""
    ends: tuple[Tensor, Tensor]
    """The least and the greatest value of each entry in training: (channels, *grid)."""

    def corrected(self, raw: Tensor) -> Tensor:
        """The clean prediction that a network makes of it: raw is in units of the spread."""
        return self.within(self.mean + self.spread * raw)

    def within(self, expected: Tensor) -> Tensor:
        """Nothing unknown is expected below all that training knew: backgrounds are 0, not noise about it."""
        least = torch.where(self.spread > 0, self.ends[0].min(), -torch.inf)
        return torch.maximum(expected, least)

    def features(self) -> Tensor:
        """(rows, FEATURES * channels, *grid): how far it is from the ends, in its own spread, seen closely and from afar.
        No normal law knows of ends, but two thirds of a brain's scan are background, all of one value."""
        spread = self.spread.clamp_min(LEAST)
        off = [(self.mean - self.ends[0]) / spread, (self.ends[1] - self.mean) / spread]
        parts = [torch.tanh(distance / far) for distance in off for far in (1.0, 4.0)]
        return torch.cat([*parts, self.missed.clamp(-4, 4), self.spread.expand_as(self.mean)], 1)


@dataclass(frozen=True)
class Evidence:
    """What entries say of the whole image's unknowns: a normal likelihood, in double precision."""

    said: Tensor
    """(rows, j): precision times mean."""
    precision: Tensor
    """(rows or 1, j, j)."""

    @classmethod
    def of(cls, seen: Seen, weighed: Tensor) -> "Evidence":
        """weighed (rows, channels, *grid): how far each entry is off, times its weight in `seen`."""
        b = seen.law.others.flatten(1)
        said = seen.unexplained(weighed).flatten(1) @ b.T
        return cls(said.double(), (_gram(b, seen.weight.flatten(1)) - seen.explained()).double())

    def less(self, part: "Evidence", share: Tensor | float) -> "Evidence":
        """Without this share of what a part of it says."""
        return Evidence(self.said - share * part.said, self.precision - share * part.precision)

    def mean(self, before: Tensor) -> Tensor:
        """(rows, j): of the unknowns, which are N(0, before) without it; before (rows or 1, j, j)."""
        return self._over_precision(before, before.double() @ self.said[..., None])[..., 0]

    def covariance(self, before: Tensor) -> Tensor:
        """(rows or 1, j, j): likewise."""
        return self._over_precision(before, before.double())

    def _over_precision(self, before: Tensor, right: Tensor) -> Tensor:
        """(before^-1 + precision)^-1 before^-1 right, not by an inverse: a fact that is known has none."""
        inner = torch.eye(before.shape[-1], device=before.device) + before.double() @ self.precision
        return torch.linalg.solve(inner, right).float()


def _halves(shape: Sequence[int], margin: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Along every axis of images (channels, *grid), each half as known, and what of the other is `margin` entries away: a
    block that is cut in two tells of its other part besides."""
    for axis, size in enumerate(shape[1:], start=1):
        place = torch.arange(size).reshape(-1, *(1,) * (len(shape) - 1 - axis)).expand(*shape)
        yield place >= size // 2, place < size // 2 - margin
        yield place < size // 2, place >= size // 2 + margin


def _gram(b: Tensor, weight: Tensor) -> Tensor:
    """b diag(w) b^T for every row w: b (j, n), weight (rows, n) -> (rows, j, j)."""
    if len(weight) == 1:
        return ((b * weight[0]) @ b.T)[None]
    j = len(b)
    one, other = torch.triu_indices(j, j, device=b.device)
    sums = weight.new_zeros(len(weight), len(one))
    for w, part in zip(weight.split(COLUMNS, 1), b.split(COLUMNS, 1)):  # the products of all columns would take much memory
        sums += w @ (part[one] * part[other]).T
    gram = weight.new_zeros(len(weight), j, j)
    gram[:, one, other] = sums
    gram[:, other, one] = sums
    return gram


def _block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """(rows or 1, k, k) each -> (rows, sum of k, sum of k)."""
    rows, size = max(len(block) for block in blocks), sum(block.shape[-1] for block in blocks)
    whole, at = blocks[0].new_zeros(rows, size, size), 0
    for block in blocks:
        end = at + block.shape[-1]
        whole[:, at:end, at:end] = block
        at = end
    return whole
