"""How near answers are to the truth: figures of numbers and of classes, their intervals over people, and whether two
models differ on the same people.

The figures are written out, not asked of scikit-learn, which checks its input on every call: a thousand repeats of the
bootstrap would take half a minute instead of half a second. The tests hold each figure against scikit-learn's.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import t as student

from metavoxel.errors import MetavoxelError

Figures = dict[str, float]
LEAST_PROBABILITY = float(np.finfo(float).eps)
"""Probabilities are no less in the log loss, so that one certain mistake is not infinitely bad (as in scikit-learn)."""
ROUNDING = 1e-3
"""That a row's probabilities may be off from 1 in sum, and answers from one another, of the truth's range."""

SD_95 = 1.96
"""A normal estimate's 95 % interval, in standard errors to each side."""
AT_ONCE = 250
"""Repeats of all people that are in memory together."""


class Interval(NamedTuple):
    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A's figure less B's; p: how often A and B would differ as much if they were interchangeable."""

    value: float
    low: float
    high: float
    p: float


def number_scores(truth: np.ndarray, told: np.ndarray) -> Figures:
    """mae, mae_sd, rmse, r2, r (Pearson's) and mae_over_sd of told (n,) for truth (n,); the first three in their unit.

    mae_sd: the standard deviation of the absolute errors, of all n as they are (the paper's Table 1: MAE +- it). NaN where
    undefined (`number_gaps` says why). Raises MetavoxelError where a value is missing.
    """
    truth, told = _paired(truth, told)
    off, about, own = told - truth, truth - truth.mean(), told - told.mean()
    square, spread, own_spread = (off**2).mean(), (about**2).mean(), (own**2).mean()
    mae, mae_sd = np.abs(off).mean(), np.abs(off).std()
    figures = {"mae": mae, "mae_sd": mae_sd, "rmse": np.sqrt(square), "r2": np.nan, "r": np.nan, "mae_over_sd": np.nan}
    if np.ptp(truth) > 0:
        figures |= {"r2": 1 - square / spread, "mae_over_sd": mae / np.sqrt(spread)}
        if not _alike(told, truth):
            figures["r"] = (about * own).mean() / np.sqrt(spread * own_spread)
    return {name: float(x) for name, x in figures.items()}


def number_gaps(truth: np.ndarray, told: np.ndarray) -> dict[str, str]:
    """Which of `number_scores` are NaN: figure -> why."""
    if np.ptp(truth) == 0:
        return dict.fromkeys(("r2", "r", "mae_over_sd"), "all true values are the same")
    return {"r": "all answers are the same"} if _alike(told, truth) else {}


def _alike(told: np.ndarray, truth: np.ndarray) -> bool:
    """Whether answers are one and the same but for rounding: their r would be chance."""
    return bool(np.ptp(told) <= ROUNDING * np.ptp(truth))


def class_scores(truth: np.ndarray, probabilities: np.ndarray) -> Figures:
    """accuracy, balanced_accuracy, auc, brier and log_loss of probabilities (n, levels) for truth (n,), level indices.

    Balanced accuracy: mean over the levels that occur of the share recognised. AUC: of the second of two levels; of more
    levels the mean over one against the rest, those that nobody or everybody has left out. Brier: squared error summed
    over levels, 0 to 2 as in Brier (1950), for two levels twice the halved one. Log loss in nats. NaN where undefined
    (`class_gaps` says why). Raises MetavoxelError where a value is missing or no probability.
    """
    truth, probabilities = checked_classes(truth, probabilities)
    n, levels = probabilities.shape
    right = probabilities.argmax(1) == truth
    counts = np.bincount(truth, minlength=levels)
    recognised = np.bincount(truth, right, levels)[counts > 0] / counts[counts > 0]
    told = probabilities[np.arange(n), truth]
    against_rest = [
        auc(probabilities[truth == level, level], probabilities[truth != level, level])
        for level in (range(levels) if levels > 2 else (1,))
        if 0 < counts[level] < n
    ]
    return {
        "accuracy": float(right.mean()),
        "balanced_accuracy": float(recognised.mean()),
        "auc": float(np.mean(against_rest)) if against_rest else np.nan,
        "brier": float(((probabilities**2).sum(1) + 1 - 2 * told).mean()),
        "log_loss": float(-np.log(np.clip(told, LEAST_PROBABILITY, 1)).mean()),
    }


def class_gaps(truth: np.ndarray) -> dict[str, str]:
    """Which of `class_scores` are NaN: figure -> why."""
    return {"auc": "all people are of one class"} if np.ptp(truth) == 0 else {}


def auc(higher: np.ndarray, lower: np.ndarray) -> float:
    """The chance that one of `higher` (n,) is above one of `lower` (m,), ties counted half (Mann and Whitney 1947)."""
    ordered = np.sort(lower)
    below = np.searchsorted(ordered, higher, "left") + np.searchsorted(ordered, higher, "right")
    return float(below.mean() / (2 * len(lower)))


def bootstrap(
    score: Callable[[np.ndarray], Figures],
    people: ArrayLike,
    repeats: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Figures with percentile intervals (Efron and Tibshirani 1993, chapter 13) over people drawn anew.

    score: row indices -> figures. people (rows,): whose each row is; all rows of a person are drawn together, since they
    say less than as many rows of different people. An interval is NaN for one person alone, and for a figure that is NaN
    in more than half of the repeats; other NaN repeats are left out.
    """
    person = persons(people)
    value = score(np.arange(len(person)))
    repeated = _columns([score(rows) for rows in resamples(person, repeats, seed)], value)
    return {name: Interval(value[name], *_central(repeated[name], level, person)) for name in value}


def compare(
    scores: Callable[[np.ndarray, np.ndarray], Figures],
    truth: np.ndarray,
    told_a: np.ndarray,
    told_b: np.ndarray,
    people: ArrayLike,
    repeats: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Difference]:
    """How two models' figures differ on the same people: `scores` (`number_scores` or `class_scores`) of A less B's.

    Interval: paired bootstrap over people. p: two-sided permutation test that exchanges, person by person, what the two
    models said (Bandos, Rockette and Gur 2005 for the AUC), counted as by Phipson and Smyth (2010): never below
    1 / (repeats + 1). told_a, told_b: (n,) numbers or (n, levels) probabilities.
    """
    person, told_a, told_b = persons(people), np.asarray(told_a), np.asarray(told_b)
    truth = np.asarray(truth)

    def difference(rows: np.ndarray, a: np.ndarray, b: np.ndarray) -> Figures:
        of_a, of_b = scores(truth[rows], a[rows]), scores(truth[rows], b[rows])
        return {name: of_a[name] - of_b[name] for name in of_a}

    drawn = bootstrap(lambda rows: difference(rows, told_a, told_b), people, repeats, seed, level)
    everyone, rng, exchanged = np.arange(len(person)), np.random.default_rng(seed), []
    for _ in range(repeats):
        swap = rng.random(person.max() + 1)[person] < 0.5
        swap = swap.reshape(-1, *(1,) * (told_a.ndim - 1))
        exchanged.append(difference(everyone, np.where(swap, told_b, told_a), np.where(swap, told_a, told_b)))
    chance = _columns(exchanged, drawn)
    found = {}
    for name, (value, low, high) in drawn.items():
        # the exchanges that change nothing must count as equal, whatever the rounding
        as_large = np.abs(chance[name]) >= abs(value) * (1 - 1e-9)
        p = (1 + as_large.sum()) / (1 + repeats) if np.isfinite(value) else np.nan
        found[name] = Difference(value, low, high, float(p))
    return found


def apart(one: np.ndarray, other: np.ndarray, repeats: int = 5000, seed: int = 0) -> Difference:
    """The mean of `one` (n,) less that of `other` (m,), of different people, at least two each; Welch's 95 % interval.

    p: two-sided permutation test of Welch's t, exact where both come from one law and right for many people where only
    their means are the same (Janssen 1997).
    """
    everybody, n = np.concatenate([one, other]), len(one)
    value, error, free = (float(x[0]) for x in _welch(everybody[None], n))
    rng, as_far = np.random.default_rng(seed), 0
    for first in range(0, repeats, AT_ONCE):
        shuffled = rng.permuted(np.tile(everybody, (min(AT_ONCE, repeats - first), 1)), axis=1)
        chance, its_error, _ = _welch(shuffled, n)
        as_far += int((np.abs(chance) * error >= abs(value) * its_error * (1 - 1e-9)).sum())  # one t against the other
    reach = error * float(student.ppf(0.975, free)) if error > 0 else 0.0
    return Difference(value, value - reach, value + reach, (1 + as_far) / (1 + repeats))


def _welch(x: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each row (rows, people): mean of the first n less that of the others, its standard error, degrees of freedom."""
    parts = x[:, :n], x[:, n:]
    of_means = [part.var(1, ddof=1) / part.shape[1] for part in parts]
    square = sum(of_means)
    below = sum(var**2 / (part.shape[1] - 1) for var, part in zip(of_means, parts))
    free = np.divide(square**2, below, out=np.ones(len(x)), where=below > 0)
    return parts[0].mean(1) - parts[1].mean(1), np.sqrt(square), free


def holm(p: Sequence[float]) -> np.ndarray:
    """Each p of several tests such that one or more are below x, where nothing is to be found, with probability x at most
    (Holm 1979)."""
    order, tests = np.argsort(p, kind="stable"), len(p)
    found = np.empty(tests)
    found[order] = np.minimum(np.maximum.accumulate(np.asarray(p)[order] * np.arange(tests, 0, -1)), 1)
    return found


def persons(people: ArrayLike) -> np.ndarray:
    """(rows,): 0, 1, ... for each person in order of appearance."""
    person, _ = pd.factorize(np.asarray(people))
    if len(person) == 0 or (person < 0).any():
        raise MetavoxelError("nobody to score; give at least one row" if len(person) == 0 else
                             f"row {int((person < 0).argmax()) + 1} has no participant_id; give every row one")  # fmt: skip
    return person


def resamples(person: np.ndarray, repeats: int, seed: int) -> Iterator[np.ndarray]:
    """Row indices of as many people as there are, drawn with replacement."""
    order, counts = np.argsort(person, kind="stable"), np.bincount(person)
    starts, rng = counts.cumsum() - counts, np.random.default_rng(seed)
    for _ in range(repeats):
        drawn = rng.integers(len(counts), size=len(counts))
        taken = counts[drawn]
        within = np.arange(taken.sum()) - np.repeat(taken.cumsum() - taken, taken)
        yield order[np.repeat(starts[drawn], taken) + within]


def _columns(repeated: list[Figures], names: dict[str, Interval] | Figures) -> dict[str, np.ndarray]:
    return {name: np.array([figures[name] for figures in repeated]) for name in names}


def _central(repeated: np.ndarray, level: float, person: np.ndarray) -> tuple[float, float]:
    kept = repeated[np.isfinite(repeated)]
    if person.max() == 0 or len(kept) < len(repeated) / 2:
        return np.nan, np.nan
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _paired(truth: np.ndarray, told: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth, told = np.asarray(truth, float), np.asarray(told, float)
    if truth.shape != told.shape or truth.ndim != 1 or not len(truth):
        raise MetavoxelError(f"true values {truth.shape} and answers {told.shape} must be as many, and at least one")
    for name, values in (("true value", truth), ("answer", told)):
        _refuse(~np.isfinite(values), f"the {name} is missing or infinite")
    return truth, told


def checked_classes(truth: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Level indices (n,) and probabilities (n, levels), or MetavoxelError."""
    truth, probabilities = np.asarray(truth).astype(int), np.asarray(probabilities, float)
    if probabilities.ndim != 2 or probabilities.shape[1] < 2 or truth.shape != probabilities.shape[:1] or not len(truth):
        raise MetavoxelError(f"true classes {truth.shape} and probabilities {probabilities.shape} must be (n,) and "
                             "(n, levels) with at least one row and two levels")  # fmt: skip
    _refuse(~np.isfinite(probabilities).all(1), "a probability is missing or infinite")
    off = (probabilities < 0).any(1) | (np.abs(probabilities.sum(1) - 1) > ROUNDING)
    _refuse(off, "the probabilities are not positive with sum 1")
    _refuse((truth < 0) | (truth >= probabilities.shape[1]), "the true class has no probability")
    return truth, probabilities


def _refuse(bad: np.ndarray, what: str) -> None:
    if bad.any():
        raise MetavoxelError(f"row {int(bad.argmax()) + 1} of {len(bad)}: {what}; leave the row out or mend it")
