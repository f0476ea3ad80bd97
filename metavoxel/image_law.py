"""What is expected of a whole image before the network speaks: a normal law about the mean of people with such facts.

    x_0 = mean + slopes . facts + factors . z + rest,        z ~ N(0, I), rest independent in every entry

Age moves every voxel by little, and the size of a head thousands of voxels together. A network alone takes days to follow
either; under this law both are exact from the first step, whatever is known of the image (Bayes' rule), and the network
learns what is not normal. (Probabilistic principal components: Tipping and Bishop 1999.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metavoxel.clocks import alpha, sigma
from metavoxel.schema import Categorical, Scalar, State, Times

CHUNK = 32
RIDGE = 10.0
"""Pseudo-people of the average kind, against chance in small cohorts."""
FLOOR = 0.02
"""Least variance of an entry, of their average: a background that never varied in training may vary a little in use."""
PEOPLE_A_FACTOR = 20
MOST_PEOPLE, MOST_NUMBERS = 2000, 10**8
"""From whom the factors are found, and how many entries of theirs are held in memory."""
COLUMNS = 4096
ALIKE, JUDGES = (1, 3, 10, 30, 100, 300, 1000), 64


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
    """What each scalar says by itself. Of several rows for each row of the images, the first speaks.

    A number: its mean and variance under its law. A class: p(x_0 | x_t) under its marginal, less the marginal.
    """
    parts = []
    for v in scalars:
        x, t = (part[v.name].reshape(rows, -1)[:, 0] for part in (state, times))
        tau = v.clock.tau(t)
        if isinstance(v, Categorical):
            prior = torch.tensor(v.marginal, device=x.device)
            chances = torch.softmax(prior.log() + v.process.likelihood(x, tau), -1)
            parts.append(Told(chances - prior, chances, chances))
        else:
            mean, variance = v.law.given(x, tau)
            parts.append(Told(mean[:, None], variance[:, None]))
    return parts


class ImageLaw(nn.Module):
    """The law over the training rows, in standardised entries: buffers (channels, *grid) each; of a fresh one, N(0, 1)."""

    mean: Tensor
    variance: Tensor
    slopes: Tensor
    factors: Tensor
    rest: Tensor
    alike: Tensor

    def __init__(self, shape: tuple[int, ...], facts: int, factors: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))
        self.register_buffer("slopes", torch.zeros(facts, *shape))
        self.register_buffer("factors", torch.zeros(factors, *shape))
        self.register_buffer("rest", torch.ones(shape))
        self.register_buffer("alike", torch.ones(()))

    def set(self, mean: Tensor, variance: Tensor, slopes: Tensor, factors: Tensor, rest: Tensor) -> None:
        """variance: about the mean of all; rest: what facts and factors (as many as there are, or fewer) leave of it."""
        floor = FLOOR * float(variance.mean())
        self.mean.copy_(mean)
        self.variance.copy_(variance.clamp_min(floor))
        self.slopes.copy_(slopes)
        self.factors.zero_()[: len(factors)] = factors
        self.rest.copy_(rest.clamp_min(floor))

    def fit(self, entries: Callable[[Tensor], Tensor], rows: Tensor, facts: Tensor) -> None:
        """Of people: entries(rows) gives (n, channels, *grid) standardised; facts (people, facts) are theirs, of mean 0, 0
        where missing. Slopes by ridge regression, factors from what it leaves."""
        facts = facts.double()
        total = square = cross = torch.zeros((), dtype=torch.float64)
        for part in rows.split(CHUNK):
            x = entries(part).double()
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
        factors = _principal(entries, rows, facts.float(), mean, slopes, len(self.factors))
        self.set(mean, variance.float(), slopes, factors, rest.float() - (factors**2).sum(0))
        some = rows[:JUDGES]
        self._fit_alike(torch.cat([entries(part) for part in some.split(CHUNK)]), facts[some].float())

    def _fit_alike(self, images: Tensor, facts: Tensor) -> None:
        """How many entries of the rest say the same: of ALIKE the number by which one half of these people's images (n,
        channels, *grid) best tells the other. Neighbours stray from the law together; were they taken as independent,
        what is seen of an image would outvote what people are."""
        if not len(self.factors):
            return
        x, told_all = images.to(self.mean.device), facts.to(self.mean.device)
        halves = [half for axis in range(2, x.dim()) for half in _halves(x.shape, axis, x.device)]
        errors = []
        for alike in ALIKE:
            self.alike.fill_(alike)
            law = self.given([Told(told_all, torch.zeros_like(told_all))])
            guesses = [law.clean(torch.zeros_like(x), x, torch.where(half, torch.inf, 0.0)) for half in halves]
            errors.append(float(sum(((guess - x) ** 2 * half).sum() for guess, half in zip(guesses, halves))))
        self.alike.fill_(ALIKE[errors.index(min(errors))])

    def alone(self) -> "Normal":
        """Of people of whom nothing is told, entry by entry."""
        return Normal(self.mean, self.variance)

    def given(self, facts: Sequence[Told]) -> "Conditional":
        """Of people of whom so much is told. What a fact leaves open of itself is spread along its slopes."""
        mean, residual = self.mean[None], self.rest + (self.factors**2).sum(0)
        variance = residual[None]
        widths = [fact.mean.shape[1] for fact in facts]
        for fact, slopes in zip(facts, self.slopes.split(widths)):
            mean = mean + torch.tensordot(fact.mean, slopes, dims=1)
            variance = variance + torch.tensordot(fact.variance, slopes**2, dims=1)
            if fact.chances is not None:
                variance = variance - torch.tensordot(fact.chances, slopes, dims=1) ** 2
        rows, k = len(mean), len(self.factors)
        blocks = [*(fact.covariance for fact in facts), torch.eye(k, device=mean.device).expand(rows, k, k)]
        spread, loadings = torch.maximum(variance, residual), torch.cat([self.slopes, self.factors])
        return Conditional(mean, spread, loadings, _block_diagonal(blocks), self.rest, self.alike)


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
    loadings: Tensor
    """(j, channels, *grid): of the facts, then of the factors."""
    covariance: Tensor
    """(rows or 1, j, j): of facts and factors."""
    rest: Tensor
    alike: Tensor
    """How many entries of the rest say the same: what each says of facts and factors counts for so much less."""

    def clean(self, raw: Tensor, x: Tensor, tau: Tensor) -> Tensor:
        """The law's own E[x_0 | x_t], corrected by raw in units of the sd that each entry by itself leaves open.

        tau: (rows or 1, 1, *grid), of each entry; inf where nothing is seen of it.
        """
        a, noise = alpha(tau), sigma(tau)
        spread = a**2 * self.rest + noise**2
        shared = a**2 * self.rest * self.alike + noise**2
        mean = self.mean + self._common(a / shared * (x - a * self.mean), a**2 / shared)
        own = mean + a * self.rest / spread * (x - a * mean)
        return own + noise * torch.sqrt(self.variance / (a**2 * self.variance + noise**2)) * raw

    def _common(self, weighed: Tensor, weight: Tensor) -> Tensor:
        """How the image's facts and factors move it, by all of its entries: (rows, channels, *grid).

        weighed, weight: what an entry off by `off` says, off / variance, and how much it says, 1 / variance, both in
        terms of the clean image.
        """
        if not len(self.loadings):
            return torch.zeros_like(weighed)
        b = self.loadings.flatten(1)
        with torch.autocast(b.device.type, enabled=False):
            seen = (weighed.flatten(1) @ b.T).double()
            precision = _gram(b, weight.expand(len(weight), *self.rest.shape).flatten(1)).double()
            cov = self.covariance.double()
            # not by the inverse of the covariance: a fact that is known has none
            z = torch.linalg.solve(torch.eye(len(b), device=b.device) + cov @ precision, cov @ seen[..., None])[..., 0]
            return (z.float() @ b).reshape(weighed.shape)


def _principal(
    entries: Callable[[Tensor], Tensor], rows: Tensor, facts: Tensor, mean: Tensor, slopes: Tensor, most: int
) -> Tensor:
    """(at most `most`, channels, *grid): principal components of what facts leave of an image, each times its sd.

    Fewer in small cohorts. Their variances are less what chance adds where people are fewer than entries: the rest's trace
    over the people.
    """
    people = min(len(rows), MOST_PEOPLE, max(2, MOST_NUMBERS // mean.numel()))
    most = min(most, people // PEOPLE_A_FACTOR)
    if not most:
        return mean.new_zeros(0, *mean.shape)
    chosen = rows[torch.linspace(0, len(rows) - 1, people).round().long()]
    expected = (mean + torch.tensordot(facts[part], slopes, dims=1) for part in chosen.split(CHUNK))
    off = torch.cat([(entries(part) - usual).flatten(1) for part, usual in zip(chosen.split(CHUNK), expected)])
    variances, vectors = torch.linalg.eigh((off @ off.T / people).double())
    chance = variances[:-most].sum() / people
    variances, vectors = variances.flip(0)[:most], vectors.flip(1)[:, :most].float()
    share = ((variances - chance).clamp_min(0) / (variances * people)).sqrt().float()
    return (share[:, None] * (vectors.T @ off)).reshape(most, *mean.shape)


def _halves(shape: Sequence[int], axis: int, device: torch.device) -> list[Tensor]:
    """The two halves along an axis, (1, 1, *grid) bool each."""
    sizes = [1, 1, *(size if i == axis else 1 for i, size in enumerate(shape) if i > 1)]
    first = (torch.arange(shape[axis], device=device) < shape[axis] // 2).reshape(sizes)
    grid = (1, 1, *shape[2:])
    return [first.expand(grid), ~first.expand(grid)]


def _gram(b: Tensor, weight: Tensor) -> Tensor:
    """b diag(w) b^T for every row w: b (j, n), weight (rows, n) -> (rows or 1, j, j); 1 where the rows are alike."""
    if len(weight) == 1 or bool((weight == weight[:1]).all()):
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
