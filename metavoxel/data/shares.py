"""Sharing people out at random: everybody into one part, nobody into two, the kinds of people spread evenly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from metavoxel.errors import MetavoxelError


def deal(strata: np.ndarray, fractions: Sequence[float], seed: int) -> np.ndarray:
    """The part (n,) of each of n people, 0 for the first of `fractions`; no part is empty.

    strata: (n,) int, who is alike: the alike are spread over the parts. Raises MetavoxelError where `fractions` do not
    sum to 1, or there are fewer people than parts.
    """
    if min(fractions, default=0) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise MetavoxelError(f"split: fractions {list(fractions)} must be positive and sum to 1")
    if len(strata) < len(fractions):
        raise MetavoxelError(f"split: {len(strata)} people cannot fill {len(fractions)} parts; use a larger cohort")
    order = np.random.default_rng(seed).permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    parts = np.empty(len(strata), dtype=int)
    parts[order] = _deal_in_turn(len(strata), fractions)
    return parts


def strata_of(kinds: pd.DataFrame) -> np.ndarray:
    """(n,) int: the number of each row's stratum, the rows that are alike in all columns; 0 where there are none."""
    if kinds.shape[1] == 0:
        return np.zeros(len(kinds), dtype=int)
    return kinds.groupby(list(kinds), observed=True).ngroup().to_numpy()


def held_out(people: np.ndarray, share: float, seed: int) -> np.ndarray:
    """(rows,) bool: the rows of a random share of `people` (rows,), at least one person and never all."""
    unique = np.unique(people)
    if len(unique) < 2:
        raise MetavoxelError(f"the cohort holds {len(unique)} people; training needs at least 2, better hundreds")
    count = min(max(1, round(share * len(unique))), len(unique) - 1)
    return np.isin(people, np.random.default_rng(seed).permutation(unique)[:count])


def _deal_in_turn(n: int, fractions: Sequence[float]) -> list[int]:
    """The part of each of n people in a row, so that every stretch of the row is shared out nearly by `fractions`."""
    shares = np.asarray(fractions) * n
    sizes = np.maximum(1, np.floor(shares)).astype(int)
    while sizes.sum() != n:
        if sizes.sum() < n:
            sizes[np.argmax(shares - sizes)] += 1
        else:
            sizes[np.argmax(np.where(sizes > 1, sizes - shares, -np.inf))] -= 1
    dealt = np.zeros(len(sizes), dtype=int)
    parts = []
    for i in range(n):
        due = np.where(dealt < sizes, sizes * (i + 1) / n - dealt, -np.inf)
        parts.append(int(np.argmax(due)))
        dealt[parts[-1]] += 1
    return parts
