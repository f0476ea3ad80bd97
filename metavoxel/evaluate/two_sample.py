"""Whether drawn scans are like real ones, from their features (scans, features): every figure beside what as many other
real scans score, since none of them is 0 for finite samples, and none has a meaning without that floor.

Where a scan has several rows (slices), they follow one another: `each` is how many, and errors are over scans.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from monai.metrics import compute_ms_ssim
from scipy.spatial.distance import pdist
from scipy.stats import wasserstein_distance
from sklearn.metrics import pairwise_distances_chunked
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel
from sklearn.neighbors import NearestNeighbors

from metavoxel.errors import MetavoxelError

BLOCKS = 10
"""That are left out in turn."""
PAIRS = 1 << 22
"""Whose kernel is in memory at a time."""
MANIFOLD_NEIGHBOURS, COVERAGE_NEIGHBOURS = 3, 5
"""As in Kynkaanniemi et al. (2019) and in Naeem et al. (2020)."""
PERMUTATIONS = 999
LEAST_SCANS = COVERAGE_NEIGHBOURS + 1
WIDTH_ROWS = 2000
WINDOW = 11
"""Voxels that the structural similarity looks at together along each axis (Wang et al. 2003); fewer on smaller grids."""
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Rows (n, d), (m, d) -> (n, m)."""


class Estimate(NamedTuple):
    value: float
    error: float
    """Standard error."""


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Squared Frechet distance between normal laws with the means and covariances of x (n, d) and y (m, d): the "FID"
    (Heusel et al. 2017), biased upwards in proportion to 1 / n.

    tr sqrt(S_x S_y) is the sum of the singular values of A B^T, where S_x = A^T A and S_y = B^T B: exact for singular
    covariances too (n < d), where the square root of the product is not.
    """
    return _frechet(*(z.astype(float) for z in comparable(x, y)))


def fid(x: np.ndarray, y: np.ndarray, seed: int = 0, each: int = 1) -> Estimate:
    """`frechet`, with an error by leaving out one block of scans at a time. No bootstrap: scans that are drawn twice say
    less than as many different ones, so each repeat would be biased more than the value is. Parts that leave out a block
    are as large as one another, and biased alike."""
    x, y = _on_fewer_axes(*comparable(x, y))
    of_x, of_y = _blocks(len(x), len(y), each, seed)
    without = np.array([_frechet(x[of_x != block], y[of_y != block]) for block in range(of_x.max() + 1)])
    return Estimate(_frechet(x, y), _jackknife(without))


def kid(x: np.ndarray, y: np.ndarray, seed: int = 0, each: int = 1) -> Estimate:
    """Kernel inception distance (Binkowski et al. 2018): squared maximum mean discrepancy for the kernel (x . y / d + 1)^3,
    unbiased, over all pairs."""
    return _discrepancy(x, y, partial(polynomial_kernel, degree=3, coef0=1), seed, each)


def mmd(x: np.ndarray, y: np.ndarray, width: float, seed: int = 0, each: int = 1) -> Estimate:
    """Squared maximum mean discrepancy, unbiased (Gretton et al. 2012), for the kernel exp(-|x - y|^2 / 2 width^2)."""
    return _discrepancy(x, y, partial(rbf_kernel, gamma=1 / (2 * width**2)), seed, each)


def told_apart(x: np.ndarray, y: np.ndarray, seed: int = 0) -> float:
    """p of `mmd`: how often two sets that are mixed at random are as far apart as x (n, d) and y (m, d), a row a scan.
    One-sided, and valid for any n: where sets are of one law, `mmd` is far from normal and its error no guide. Of random
    2,000 rows of each if there are more; the width is y's median distance."""
    x, y = comparable(x, y)
    rng = np.random.default_rng(seed)
    x, y = (z if len(z) <= WIDTH_ROWS else z[np.sort(rng.permutation(len(z))[:WIDTH_ROWS])] for z in (x, y))
    n, m = len(x), len(y)
    kernel = rbf_kernel(np.concatenate([x, y]), gamma=1 / (2 * median_distance(y, seed) ** 2))
    np.fill_diagonal(kernel, 0)
    in_x = np.repeat([1.0, 0.0], [n, m])
    mixed = np.stack([in_x, *(rng.permutation(in_x) for _ in range(PERMUTATIONS))], axis=1)
    within_x, of_x = (mixed * (kernel @ mixed)).sum(0), kernel.sum(0) @ mixed
    between = of_x - within_x
    within_y = kernel.sum() - of_x - between
    found = within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between / (n * m)
    return float((found >= found[0] - np.finfo(float).eps).mean())


def median_distance(x: np.ndarray, seed: int = 0) -> float:
    """Between two of x (n, d), of a random 2,000 if there are more: the usual `width` of `mmd`."""
    x = features_of(x, "scans")
    some = x if len(x) <= WIDTH_ROWS else x[np.random.default_rng(seed).choice(len(x), WIDTH_ROWS, replace=False)]
    median = float(np.median(pdist(some)))
    if median == 0:
        raise MetavoxelError("more than half of the scans have the same features; look at what made them")
    return median


def manifold(made: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """precision, recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020) of made (n, d), real (m, d).

    A ball about each scan reaches to its 3rd (density, coverage: 5th) nearest neighbour of its own set. precision: share
    of made scans in a ball about a real one; recall: of real ones in a ball about a made one; density: how many real
    balls a made scan is in, over 5; coverage: share of real balls with a made scan in them.
    """
    made, real = comparable(made, real)
    near, far, about_made = (_radii(real, MANIFOLD_NEIGHBOURS), _radii(real, COVERAGE_NEIGHBOURS),
                             _radii(made, MANIFOLD_NEIGHBOURS))  # fmt: skip
    inside = balls = first = 0
    recalled, nearest = np.zeros(len(real), bool), np.full(len(real), np.inf)
    for distances in pairwise_distances_chunked(made, real):
        inside += (distances <= near).any(1).sum()
        balls += (distances <= far).sum()
        recalled |= (distances <= about_made[first : first + len(distances), None]).any(0)
        nearest = np.minimum(nearest, distances.min(0))
        first += len(distances)
    return {
        "precision": float(inside / len(made)),
        "recall": float(recalled.mean()),
        "density": float(balls / (COVERAGE_NEIGHBOURS * len(made))),
        "coverage": float((nearest <= far).mean()),
    }


def wasserstein(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(d,) each column's Wasserstein-1 distance between x (n, d) and y (m, d), in its unit."""
    x, y = comparable(x, y)
    return np.array([wasserstein_distance(*columns) for columns in zip(x.T, y.T)])


def likeness(scans: Sequence[np.ndarray], pairs: int = 100, seed: int = 0) -> Estimate:
    """Mean multi-scale structural similarity of random pairs of scans (n, *grid), bright tissue near 1: low if diverse.

    2-D or 3-D, on as many of Wang's five scales as the grid has room for, so compare scans of one grid only. The pairs are
    different ones, all if there are no more; the error leaves out that they share scans.
    """
    n, grid = len(scans), np.shape(scans[0]) if len(scans) else ()
    if n < 2 or len(grid) not in (2, 3):
        raise MetavoxelError(f"pairs need at least two scans of 2 or 3 axes, got {n} of shape {grid}")
    window = min(WINDOW, min(grid) - (min(grid) + 1) % 2)
    # a scale halves the grid, which must hold the window; MONAI asks for (scales - 1)^2 instead of 2^(scales - 1)
    scales = max(s for s in range(1, len(SCALE_WEIGHTS) + 1) if min(grid) // max(2 ** (s - 1), (s - 1) ** 2) >= window)
    weights = np.array(SCALE_WEIGHTS[:scales]) / sum(SCALE_WEIGHTS[:scales])
    first, second = np.triu_indices(n, 1)
    chosen = np.random.default_rng(seed).permutation(len(first))[:pairs]
    found = []
    for i, j in zip(first[chosen], second[chosen]):
        one, other = (torch.from_numpy(np.asarray(scans[k], np.float32))[None, None] for k in (i, j))
        found.append(float(compute_ms_ssim(one, other, len(grid), kernel_size=window, weights=weights.tolist())))
    return Estimate(float(np.mean(found)), float(np.std(found) / math.sqrt(len(found))))


def distances(
    made: np.ndarray, real: np.ndarray, width: float | None = None, seed: int = 0, each: int = 1
) -> dict[str, float]:
    """Features made (n, d) against real (m, d): fid, kid and mmd with their errors, what `manifold` says, and wasserstein,
    the mean over features over the mean sd of the real ones: features that hardly differ between people, such as voxels of
    the background, count for as little as they do in the scans. width: of `mmd`; default real's median distance."""
    normal, kernel = fid(made, real, seed, each), kid(made, real, seed, each)
    gauss = mmd(made, real, width or median_distance(real, seed), seed, each)
    return {
        "fid": normal.value, "fid_error": normal.error,
        "kid": kernel.value, "kid_error": kernel.error, "mmd": gauss.value, "mmd_error": gauss.error,
        **manifold(made, real),
        "wasserstein": float(wasserstein(made, real).sum() / np.std(real, 0, dtype=float).sum()),
    }  # fmt: skip


def all_distances(
    sets: Mapping[str, np.ndarray], real: np.ndarray, seed: int = 0, each: int = 1
) -> dict[str, dict[str, float]]:
    """`distances` from real (m, d) of every set (n, d) of scans, cut at random to the size of the smallest, since the
    figures depend on it. One of the sets is the floor: other real scans, of other people."""
    rng, scans = np.random.default_rng(seed), min(map(len, sets.values())) // each
    width = median_distance(real, seed)
    found = {}
    for name, features in sets.items():
        some = np.sort(rng.permutation(len(features) // each)[:scans])
        found[name] = distances(rows_of(features, some, each), real, width, seed, each)
    return found


def rows_of(features: np.ndarray, scans: np.ndarray, each: int) -> np.ndarray:
    """The rows (n each, d) of some of the scans (n,)."""
    return np.asarray(features).reshape(-1, each, features.shape[-1])[scans].reshape(-1, features.shape[-1])


def comparable(made: np.ndarray, *real: np.ndarray) -> list[np.ndarray]:
    """Each (n, ...) as (n, d). Raises MetavoxelError where their features are not the same ones."""
    sets = [features_of(made, "generated scans"), *(features_of(x, "real scans") for x in real)]
    unlike = [x.shape[1] for x in sets if x.shape[1] != sets[0].shape[1]]
    if unlike:
        raise MetavoxelError(f"{sets[0].shape[1]} features a generated scan and {unlike[0]} a real one cannot be compared; "
                             "use one network, or one grid, for both")  # fmt: skip
    return sets


def features_of(x: np.ndarray, what: str) -> np.ndarray:
    """x (n, ...) as (n, d) reals. Raises MetavoxelError for too few rows, and names a row with a missing value."""
    x = np.asarray(x)
    x = (x if np.issubdtype(x.dtype, np.floating) else x.astype(float)).reshape(len(x), -1)
    if len(x) < LEAST_SCANS:
        raise MetavoxelError(f"{len(x)} {what} are too few to compare; give at least {LEAST_SCANS}")
    bad = ~np.isfinite(x).all(1)
    if bad.any():
        raise MetavoxelError(f"scan {int(bad.argmax()) + 1} of {len(x)} {what} has NaN or infinite features; leave it out")
    return x


def _frechet(x: np.ndarray, y: np.ndarray) -> float:
    a, b = _root(x), _root(y)
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * cross)


def _on_fewer_axes(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """The same rows turned onto as many axes as there are rows, if there are fewer of these than features."""
    n, both = len(x), np.concatenate([x, y]).astype(float)
    if len(both) >= both.shape[1]:
        return [both[:n], both[n:]]
    both -= both.mean(0)
    strength, axes = np.linalg.eigh(both @ both.T)
    turned = axes * np.sqrt(strength.clip(0))
    return [turned[:n], turned[n:]]


def _blocks(n: int, m: int, each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,), (m,): which block each row is in; a scan's rows are in one."""
    scans = n // each, m // each
    rng, blocks = np.random.default_rng(seed), min(BLOCKS, *(count // 2 for count in scans))
    of_x, of_y = (np.repeat(rng.permutation(count) % blocks, each) for count in scans)
    return of_x, of_y


def _jackknife(without: np.ndarray) -> float:
    """Standard error of a figure from its values without each block (Efron and Tibshirani 1993, chapter 11)."""
    return math.sqrt((len(without) - 1) * without.var())


def _root(x: np.ndarray) -> np.ndarray:
    """A, at most (d, d), with A^T A the covariance of x (n, d)."""
    a = (x - x.mean(0)) / math.sqrt(len(x) - 1)
    return a if len(a) <= a.shape[1] else np.linalg.qr(a, mode="r")  # type: ignore[return-value]


def _radii(x: np.ndarray, neighbours: int) -> np.ndarray:
    """(n,) each row's distance to its k-th nearest other row."""
    return NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(x).kneighbors()[0][:, -1]


def _discrepancy(x: np.ndarray, y: np.ndarray, kernel: Kernel, seed: int, each: int) -> Estimate:
    """Mean kernel within x, plus within y, less twice that between, a row with itself left out; the error by leaving out
    one block of scans at a time."""
    x, y = comparable(x, y)
    of_x, of_y = (np.eye(of.max() + 1)[of] for of in _blocks(len(x), len(y), each, seed))
    sums = np.stack([_block_sums(x, x, of_x, of_x, kernel), _block_sums(y, y, of_y, of_y, kernel),
                     _block_sums(x, y, of_x, of_y, kernel)])  # fmt: skip
    sizes = np.stack([of_x.sum(0), of_y.sum(0)])

    def value(kept: np.ndarray) -> float:
        within_x, within_y, between = sums[:, kept][:, :, kept].sum((1, 2))
        n, m = sizes[:, kept].sum(1)
        return float(within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between / (n * m))

    blocks = np.arange(of_x.shape[1])
    without = np.array([value(blocks != block) for block in blocks])
    return Estimate(value(blocks >= 0), _jackknife(without))


def _block_sums(x: np.ndarray, y: np.ndarray, of_x: np.ndarray, of_y: np.ndarray, kernel: Kernel) -> np.ndarray:
    """(blocks, blocks) sums of the kernel over pairs of rows, of_x (n, blocks) and of_y (m, blocks) one-hot."""
    sums = np.zeros((of_x.shape[1], of_y.shape[1]))
    for rows in np.array_split(np.arange(len(x)), -(-len(x) * len(y) // PAIRS)):
        pairs = kernel(x[rows], y)
        if x is y:
            pairs[np.arange(len(rows)), rows] = 0
        sums += of_x[rows].T @ pairs @ of_y
    return sums
