"""Whether a model is as sure as it may be: draws held against what came true, probabilities against how often it did.

Everything is exact for finitely many draws: an exact sampler reaches each nominal value in the mean, whatever their number.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import chisquare, kstest

from metavoxel.errors import MetavoxelError
from metavoxel.evaluate.scores import AT_ONCE, checked_classes

INTERVALS = (50, 80, 90, 95)
BINS = 20
"""Of rank histograms of many people; fewer for few, so that each expects LEAST_EXPECTED of them."""
LEAST_EXPECTED = 5
TENTHS = 10


class Reliability(NamedTuple):
    """Of each tenth of the probability scale that somebody is in: the mean probability told, how often it came true, the
    share of people."""

    told: np.ndarray
    found: np.ndarray
    share: np.ndarray


class Chance(NamedTuple):
    """What chance makes of a figure: (repeats,) values."""

    values: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def q95(self) -> float:
        return float(np.quantile(self.values, 0.95))

    def p(self, found: float) -> float:
        """How often chance comes as far, never 0 (Phipson and Smyth 2010)."""
        as_far = self.values >= found * (1 - 1e-9)  # equal but for rounding
        return float((1 + as_far.sum()) / (1 + len(self.values)))


class Tarp(NamedTuple):
    """Of regions that should hold the share `nominal` of people, the share that they hold; p: of nominal being right
    (Kolmogorov and Smirnov); lean: mean of found - nominal over the wider half, negative where draws are too sure."""

    nominal: np.ndarray
    found: np.ndarray
    p: float
    lean: float


def number_calibration(truth: np.ndarray, drawn: np.ndarray, seed: int = 0) -> dict[str, float]:
    """coverage_50, _80, _90, _95, rank_p (NaN for under 10 people) and crps. truth (people,), drawn (people, draws)."""
    figures = {f"coverage_{share}": coverage(truth, drawn, share, seed) for share in INTERVALS}
    return figures | {"rank_p": rank_p(truth, drawn, seed), "crps": float(crps(truth, drawn).mean())}


def coverage(truth: np.ndarray, drawn: np.ndarray, percent: float, seed: int = 0) -> float:
    """Share of people (people,) within the central interval of `percent` of their draws (people, draws): those whose `pit`
    is in the middle `percent` of [0, 1].

    So the mean is exact for any number of draws, and of whole numbers, too: a truth that ties with an interval's end is
    inside as often as its place among the ties is. Were all ties inside, an exact sampler of a score of few points would
    seem too wide.
    """
    return float((np.abs(pit(truth, drawn, seed) - 0.5) <= percent / 200).mean())


def pit(truth: np.ndarray, drawn: np.ndarray, seed: int = 0) -> np.ndarray:
    """(people,) probability integral transform: the truth's rank among the draws, spread evenly over its place on [0, 1].

    Uniform if truth and draws come from one law (simulation-based calibration, Talts et al. 2018), also where values tie.
    """
    truth, drawn = _checked(truth, drawn)
    return _place(drawn, truth[:, None], np.random.default_rng(seed))


def rank_histogram(truth: np.ndarray, drawn: np.ndarray, bins: int = BINS, seed: int = 0) -> np.ndarray:
    """(bins,) how many people's truth has each rank among its draws: even where the draws are right."""
    return np.histogram(pit(truth, drawn, seed), bins, (0, 1))[0]


def rank_p(truth: np.ndarray, drawn: np.ndarray, seed: int = 0) -> float:
    """p of the rank histogram being even (chi-square)."""
    bins = min(BINS, len(truth) // LEAST_EXPECTED)
    return float(chisquare(rank_histogram(truth, drawn, bins, seed)).pvalue) if bins > 1 else np.nan


def crps(truth: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """(people,) in the number's unit: E|X - truth| - E|X - X'| / 2, estimated without bias from draws (people, draws).

    The fair score (Ferro 2014), so that few draws are not punished for being few.
    """
    truth, drawn = _checked(truth, drawn)
    n = drawn.shape[1]
    if n < 2:
        raise MetavoxelError("the CRPS needs at least two draws a person; draw more")
    ordered = np.sort(drawn, 1)
    spread = 2 * (ordered * (2 * np.arange(1, n + 1) - n - 1)).sum(1) / (n * (n - 1))
    return np.abs(drawn - truth[:, None]).mean(1) - spread / 2


def tarp(truth: np.ndarray, drawn: np.ndarray, seed: int = 0) -> Tarp:
    """Tests of accuracy with random points (Lemos et al. 2023), for several numbers at once: truth (people, numbers),
    drawn (people, draws, numbers).

    Of each person, the share of draws nearer to a random point than the truth is. It is uniform if the draws are right.
    The points lie evenly in the box of all true values, in which each number counts alike.
    """
    truth, drawn = _checked(truth, drawn)
    low, width = truth.min(0), np.ptp(truth, axis=0)
    width = np.where(width > 0, width, 1)
    rng = np.random.default_rng(seed)
    points = rng.random(truth.shape)
    true_distance = np.linalg.norm((truth - low) / width - points, axis=-1)
    distances = np.linalg.norm((drawn - low) / width - points[:, None], axis=-1)
    reached = np.sort(_place(distances, true_distance[:, None], rng))
    nominal = np.linspace(0, 1, 101)
    found = np.searchsorted(reached, nominal, "right") / len(reached)
    lean = 2 * (1 - np.maximum(reached, 0.5)).mean() - 0.75  # found's integral over [.5, 1], less that of the diagonal
    return Tarp(nominal, found, float(kstest(reached, "uniform").pvalue), float(lean))


def tenths(happened: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each tenth of the probability scale, (TENTHS,) each: how many people are in it, the mean probability told to them,
    how often it came true; NaN where nobody is. happened (people,) 0 or 1; p (people,) the probability told of it."""
    which = _tenth(p)
    people = np.bincount(which, minlength=TENTHS)
    some = np.where(people > 0, people, np.nan)
    told, found = (np.bincount(which, x, TENTHS) / some for x in (p, happened))
    return people, told, found


def reliability(happened: np.ndarray, p: np.ndarray) -> Reliability:
    """happened (people,) 0 or 1; p (people,) the probability told of it."""
    people, told, found = tenths(happened, p)
    some = people > 0
    return Reliability(told[some], found[some], people[some] / len(p))


def ece(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """Expected calibration error over tenths of the scale (Naeini et al. 2015) of probabilities (people, levels) for truth
    (people,), level indices: of two levels the second's, of more the mean of all (class-wise, Kull et al. 2019)."""
    truth, probabilities = checked_classes(truth, probabilities)
    gaps = []
    for level in judged(probabilities):
        told, found, share = reliability(truth == level, probabilities[:, level])
        gaps.append((np.abs(told - found) * share).sum())
    return float(np.mean(gaps))


def ece_by_chance(probabilities: np.ndarray, repeats: int = 10_000, seed: int = 0) -> Chance:
    """The `ece` of these probabilities were they right: classes drawn from them. An ece below q95 shows no fault."""
    rng, up_to = np.random.default_rng(seed), probabilities[:, :-1].cumsum(1)
    found, binned = [], {}
    for level in judged(probabilities):
        tenth = np.eye(TENTHS, dtype=np.float32)[_tenth(probabilities[:, level])]
        binned[level] = tenth, probabilities[:, level] @ tenth
    for first in range(0, repeats, AT_ONCE):
        thrown = rng.random((min(AT_ONCE, repeats - first), len(up_to)))
        truth = sum((thrown >= edge).astype(np.int8) for edge in up_to.T)
        off = [np.abs(told - (truth == level).astype(np.float32) @ tenth).sum(1) for level, (tenth, told) in binned.items()]
        found.append(np.mean(off, 0) / len(up_to))
    return Chance(np.concatenate(found))


def judged(probabilities: np.ndarray) -> range:
    """The levels whose probabilities are looked at: one of two says all."""
    levels = probabilities.shape[1]
    return range(1, 2) if levels == 2 else range(levels)


def _tenth(p: np.ndarray) -> np.ndarray:
    return np.minimum((p * TENTHS).astype(int), TENTHS - 1)


def _place(among: np.ndarray, one: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(people,) in [0, 1): where `one` (people, 1) stands among (people, draws), uniform if it is just another of them."""
    below, level = (among < one).sum(1), (among == one).sum(1)
    return (below + rng.random(len(one)) * (level + 1)) / (among.shape[1] + 1)


def _checked(truth: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth, drawn = np.asarray(truth, float), np.asarray(drawn, float)
    if drawn.ndim != truth.ndim + 1 or (drawn.shape[0], *drawn.shape[2:]) != truth.shape or 0 in drawn.shape:
        raise MetavoxelError(f"draws {drawn.shape} must be (people, draws, ...) for truth (people, ...) {truth.shape}")
    for name, values in (("true value", truth), ("draws", drawn)):
        bad = ~np.isfinite(values.reshape(len(values), -1)).all(1)
        if bad.any():
            raise MetavoxelError(f"person {int(bad.argmax()) + 1} of {len(bad)}: {name} missing or infinite; leave it out")
    return truth, drawn
