"""Figures of two samples of scans and the search for copies, against closed forms and direct sums."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.metrics import MultiScaleSSIMMetric
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score, roc_curve

from metavoxel.errors import MetavoxelError
from metavoxel.evaluate import copies, two_sample

Rng = np.random.Generator


@pytest.fixture
def rng() -> Rng:
    return np.random.default_rng(2)


def test_frechet_distance_is_the_normal_laws(rng: Rng) -> None:
    x, y = rng.normal(0, [1, 2, 3], (40_000, 3)), rng.normal([1, 0, -1], [2, 2, 1], (50_000, 3))
    assert two_sample.frechet(x, y) == pytest.approx(2 + 1 + 0 + 4, rel=0.03)


@pytest.mark.parametrize("n", [300, 12])
def test_frechet_distance_agrees_with_the_root_of_the_product(rng: Rng, n: int) -> None:
    x, y = rng.normal(size=(n, 20)) @ rng.normal(size=(20, 20)), rng.normal(0.5, 1, (n + 7, 20))
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    half = sqrtm(s) if n > 20 else (lambda w, v: (v * np.sqrt(w.clip(0))) @ v.T)(*np.linalg.eigh(s))
    cross = np.sqrt(np.linalg.eigvalsh(half.real @ t @ half.real).clip(0)).sum()
    direct = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * cross
    assert two_sample.frechet(x, y) == pytest.approx(direct, rel=1e-5)
    if n > 20:
        product = np.trace(sqrtm(s @ t)).real
        assert cross == pytest.approx(product)


def pairwise(x: np.ndarray, y: np.ndarray, kernel: Callable[[np.ndarray, np.ndarray], float]) -> float:
    within = [np.mean([kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]) for z in (x, y)]
    return float(sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y]))


def test_kernel_distances_are_direct_sums(rng: Rng, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = rng.normal(size=(23, 5)), rng.normal(0.3, 1, (31, 5))
    cubic = pairwise(x, y, lambda a, b: (a @ b / 5 + 1) ** 3)
    assert two_sample.kid(x, y).value == pytest.approx(cubic)
    monkeypatch.setattr(two_sample, "PAIRS", 100)  # a few rows at a time
    gauss = pairwise(x, y, lambda a, b: np.exp(-((a - b) ** 2).sum() / (2 * 1.7**2)))
    assert two_sample.mmd(x, y, 1.7).value == pytest.approx(gauss)
    apart = cdist(x, x)[np.triu_indices(23, 1)]
    assert two_sample.median_distance(x) == pytest.approx(np.median(apart))


@pytest.mark.parametrize("figure", [two_sample.kid, two_sample.fid])
def test_their_errors_are_their_spread(rng: Rng, figure: Callable[..., two_sample.Estimate]) -> None:
    found = [figure(rng.normal(size=(60, 4)), rng.normal(0.5, 1, (60, 4)), seed) for seed in range(80)]
    spread = np.std([f.value for f in found])
    assert 0.75 < np.mean([f.error for f in found]) / spread < 1.35


def test_kernel_distances_are_unbiased(rng: Rng) -> None:
    same = [two_sample.kid(rng.normal(size=(60, 4)), rng.normal(size=(60, 4)), seed).value for seed in range(80)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(80)


@pytest.mark.parametrize("figure", [two_sample.kid, two_sample.fid])
def test_errors_are_over_scans_where_a_scan_has_several_rows(rng: Rng, figure: Callable[..., two_sample.Estimate]) -> None:
    """Slices of one scan are alike: an error over slices is too small."""
    x, y = (np.repeat(rng.normal(0, 1, (40, 4)), 6, 0) + rng.normal(0, 0.1, (240, 4)) + shift for shift in (0, 0.5))
    alone, together = (figure(x, y, 0, each).error for each in (1, 6))
    assert together > 1.5 * alone


def test_turned_onto_fewer_axes_the_frechet_distance_is_the_same(rng: Rng) -> None:
    x, y = rng.normal(size=(20, 300)), rng.normal(0.2, 2, (30, 300))
    assert two_sample.fid(x, y).value == pytest.approx(two_sample.frechet(x, y), rel=1e-9)


def test_sets_of_one_law_are_told_apart_as_often_as_p_says(rng: Rng, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_sample, "PERMUTATIONS", 199)
    p = [two_sample.told_apart(rng.normal(size=(20, 3)), rng.normal(size=(35, 3)), seed) for seed in range(100)]
    assert kstest(p, "uniform").pvalue > 0.01
    assert two_sample.told_apart(rng.normal(size=(40, 3)), rng.normal(0.8, 1, (40, 3))) == 1 / 200
    x, y = rng.normal(size=(9, 3)), rng.normal(size=(7, 3))
    width = two_sample.median_distance(y)
    both, mixing = np.concatenate([x, y]), np.random.default_rng(0)
    orders = [mixing.permutation(np.repeat([1.0, 0.0], [9, 7])) > 0 for _ in range(199)]
    direct = [two_sample.mmd(both[one], both[~one], width).value for one in orders]
    assert two_sample.told_apart(x, y) == (1 + sum(np.array(direct) >= two_sample.mmd(x, y, width).value)) / 200


def test_voxels_that_hardly_differ_do_not_drown_the_others(rng: Rng) -> None:
    real, made = rng.normal(0, [1, 1, 1e-9], (60, 3)), rng.normal(0, [1, 1, 1e-3], (60, 3))
    assert two_sample.distances(made, real)["wasserstein"] < 0.3


def test_manifolds_are_counted_ball_by_ball(rng: Rng) -> None:
    real, made = rng.normal(size=(40, 3)), rng.normal(0.7, 0.6, (30, 3))
    d, own, made_own = cdist(made, real), np.sort(cdist(real, real), 1), np.sort(cdist(made, made), 1)
    assert two_sample.manifold(made, real) == pytest.approx({
        "precision": np.mean([any(d[j] <= own[:, 3]) for j in range(30)]),
        "recall": np.mean([any(d[:, i] <= made_own[:, 3]) for i in range(40)]),
        "density": sum(d[j, i] <= own[i, 5] for i in range(40) for j in range(30)) / (5 * 30),
        "coverage": np.mean([any(d[:, i] <= own[i, 5]) for i in range(40)]),
    })  # fmt: skip
    same, apart = two_sample.manifold(real, real), two_sample.manifold(real + 100, real)
    assert same["precision"] == same["recall"] == same["coverage"] == 1 and same["density"] > 1
    assert set(apart.values()) == {0}


def test_wasserstein_is_the_distance_of_sorted_values(rng: Rng) -> None:
    x, y = rng.normal(size=(50, 2)), rng.normal([1, 0], [1, 3], (50, 2))
    assert two_sample.wasserstein(x, y) == pytest.approx(np.abs(np.sort(x, 0) - np.sort(y, 0)).mean(0))


@pytest.mark.parametrize("grid", [(8, 9), (20, 24, 18), (34, 40)])
def test_scans_alike_are_not_diverse(rng: Rng, grid: tuple[int, ...]) -> None:
    head = rng.random(grid)
    alike = np.stack([head + rng.normal(0, 0.02, grid) for _ in range(5)])
    diverse = rng.random((5, *grid))
    assert two_sample.likeness(np.stack([head, head])).value == pytest.approx(1)
    assert two_sample.likeness(alike).value > 0.9 > 0.5 > two_sample.likeness(diverse).value
    assert two_sample.likeness(alike, pairs=3) == two_sample.likeness(alike, pairs=3)


def test_likeness_is_the_papers_where_the_grid_is_large(rng: Rng) -> None:
    one, other = (torch.from_numpy(rng.random((1, 1, 176, 180))).float() for _ in range(2))
    close = pytest.approx(float(MultiScaleSSIMMetric(2)(one, other)), rel=1e-3)  # its weights sum to 1.0001
    assert two_sample.likeness([one.numpy()[0, 0], other.numpy()[0, 0]]).value == close


def structural_similarity(x: np.ndarray, y: np.ndarray, window: int) -> tuple[float, float]:
    """Means of l c s and of c s of volumes x, y over all places of a cube of weights exp(-d^2 / 2 1.5^2), as Wang et al.
    (2004) define them; values of 0 to 1, C1 = .01^2, C2 = .03^2."""
    far = np.arange(window) - window // 2
    weights = np.exp(-(far**2) / (2 * 1.5**2))
    weights /= weights.sum()

    def about(z: np.ndarray) -> np.ndarray:
        for axis in range(3):
            z = np.lib.stride_tricks.sliding_window_view(z, window, axis) @ weights
        return z

    mean_x, mean_y = about(x), about(y)
    both, var = about(x * y) - mean_x * mean_y, about(x**2) - mean_x**2 + about(y**2) - mean_y**2
    structure = (2 * both + 0.03**2) / (var + 0.03**2)
    light = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    return float((light * structure).mean()), float(structure.mean())


@pytest.mark.parametrize(("grid", "window", "scales"), [((8, 9, 10), 7, 1), ((44, 47, 45), 11, 3)])
def test_likeness_of_volumes_is_wangs_formula(rng: Rng, grid: tuple[int, ...], window: int, scales: int) -> None:
    """Light is compared at the coarsest scale only; each halves the grid by means of 2 x 2 x 2 voxels (Wang et al. 2003).
    Exponents are the paper's first ones, made to sum to 1. The code's single precision leaves 1e-4 of the contrasts."""
    head = gaussian_filter(rng.random(grid), 1.5)
    scans = [np.clip(head + 0.3 * gaussian_filter(rng.normal(size=grid), 1) + 0.1 * k, 0, 1) for k in range(3)]
    exponents = np.array([0.0448, 0.2856, 0.3001])[:scales]
    exponents /= exponents.sum()

    def by_hand(x: np.ndarray, y: np.ndarray) -> float:
        found = 1.0
        for scale, exponent in enumerate(exponents, start=1):
            whole, structure = structural_similarity(x, y, window)
            found *= (whole if scale == scales else structure) ** exponent
            half = [size // 2 for size in x.shape]
            x, y = (z[tuple(slice(2 * size) for size in half)].reshape(
                half[0], 2, half[1], 2, half[2], 2).mean((1, 3, 5)) for z in (x, y))  # fmt: skip
        return found

    pairs = [by_hand(scans[i], scans[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert max(pairs) - min(pairs) > 0.02
    found = two_sample.likeness(scans)
    assert found.value == pytest.approx(np.mean(pairs), rel=1e-3)
    assert found.error == pytest.approx(np.std(pairs) / np.sqrt(3), rel=1e-2)


def test_real_scans_are_at_the_floor_and_others_above(rng: Rng) -> None:
    real, other, same = (rng.normal(size=(n, 6)) for n in (90, 60, 80))
    shifted, narrow = rng.normal(0.8, 1, (80, 6)), rng.normal(0, 0.4, (80, 6))
    sets = {"same": same, "floor": other, "shifted": shifted, "narrow": narrow}
    found = two_sample.all_distances(sets, real)
    made, floor = found["same"], found["floor"]
    assert list(found) == list(sets) and set(made) == set(floor) and len(made) == 11
    assert abs(made["kid"]) < 3 * made["kid_error"] and abs(made["mmd"]) < 3 * made["mmd_error"]
    assert made["fid"] == pytest.approx(floor["fid"], rel=0.5) and made["precision"] > 0.8
    for worse in (found["shifted"], found["narrow"]):
        assert all(worse[name] > 2 * floor[name] for name in ("fid", "wasserstein"))
        assert worse["fid"] - floor["fid"] > 3 * np.hypot(worse["fid_error"], floor["fid_error"])
        assert worse["kid"] > 3 * worse["kid_error"] and worse["mmd"] > 3 * worse["mmd_error"]
        assert worse["coverage"] < floor["coverage"] and worse["recall"] < floor["recall"]
    again = two_sample.all_distances({"same": np.repeat(same, 5, 0), "floor": other}, real)
    assert again["floor"] == floor  # made ones are cut, not these


def test_sets_of_slices_are_cut_by_scans(rng: Rng) -> None:
    """Three rows a scan: those of some scans, none of the others."""
    features = np.repeat(np.arange(10.0), 3)[:, None] * np.ones(2)
    kept = two_sample.rows_of(features, np.array([2, 7]), 3)
    assert kept[:, 0].tolist() == [2, 2, 2, 7, 7, 7]


def test_scans_that_cannot_be_compared_are_refused(rng: Rng) -> None:
    few, some = rng.normal(size=(5, 3)), rng.normal(size=(9, 3))
    with pytest.raises(MetavoxelError, match="5 generated scans are too few"):
        two_sample.kid(few, some)
    bad = some.copy()
    bad[3, 1] = np.nan
    with pytest.raises(MetavoxelError, match="scan 4 of 9 generated scans has NaN"):
        two_sample.manifold(bad, some)
    with pytest.raises(MetavoxelError, match="3 features a generated scan and 2 a real one"):
        two_sample.mmd(some, some[:, :2], 1.0)
    with pytest.raises(MetavoxelError, match="at least two scans"):
        two_sample.likeness(np.zeros((1, 8, 8)))
    with pytest.raises(MetavoxelError, match="the same features"):
        two_sample.median_distance(np.ones((9, 3)))


def heads(rng: Rng, n: int) -> np.ndarray:
    """Scans (n, 6, 7, 6) of people who differ in a dozen ways."""
    ways = np.random.default_rng(1).normal(size=(12, 6, 7, 6))
    return np.tensordot(rng.normal(size=(n, 12)), ways, 1) + rng.normal(0, 0.3, (n, 6, 7, 6))


def test_planted_copies_are_caught(rng: Rng) -> None:
    train, held_out = heads(rng, 60), heads(rng, 50)
    found = copies.audit(train[:20] + rng.normal(0, 0.05, (20, 6, 7, 6)), train, held_out)
    figures = found.figures
    assert figures["nearer_training"] == figures["near_copies"] == 1 and figures["nearer_training_p"] == 1 / 2001
    assert figures["authenticity"] == 0 and figures["ratio_q05"] < 0.1 and figures["membership_auc"] > 0.6
    assert (found.near["made"] == found.near["training"]).all() and sorted(found.near["made"]) == list(range(20))
    assert figures["near_copies_floor"] < 0.1 and figures["authenticity_floor"] > 0.2


def test_audit_is_counted_scan_by_scan(rng: Rng) -> None:
    """Of people with two scans each: one's other scan, however near, is no other person's."""
    people = np.repeat([f"sub-{i:02d}" for i in range(12)], 2)
    bodies = np.repeat(rng.normal(size=(24, 4)), 2, 0) + rng.normal(0, 0.3, (48, 4))
    train, held_out, made = bodies[:24], bodies[24:], rng.normal(size=(30, 4))
    planted = [(2, 5), (11, 17), (29, 0)]
    for copy, source in planted:
        made[copy] = train[source] + 0.01 * rng.normal(size=4)
    to_train, to_held, among = cdist(made, train), cdist(made, held_out), cdist(train, train)

    def authentic(distances: np.ndarray) -> list[bool]:
        found = []
        for row in distances:
            source = min(range(24), key=lambda scan: row[scan])
            strangers = [among[source, scan] for scan in range(24) if people[scan] != people[source]]
            found.append(row[source] > min(strangers))
        return found

    figures = copies.audit(made, train, held_out, people, [f"held-{name}" for name in people]).figures
    its = authentic(to_train)
    assert 0.1 < np.mean(its) < 1 and not any(its[copy] for copy, _ in planted)
    floor = authentic(cdist(held_out, train))
    assert figures["authenticity"] == np.mean(its) and figures["authenticity_floor"] == np.mean(floor) > 0
    near, near_held = [min(row) for row in to_train], [min(row) for row in to_held]
    assert figures["distance_to_training"] == pytest.approx(np.median(near))
    assert figures["distance_to_held_out"] == pytest.approx(np.median(near_held))
    ratios = [one / other for one, other in zip(near, near_held)]
    assert figures["ratio"] == pytest.approx(np.median(ratios))
    assert figures["ratio_q05"] == pytest.approx(np.quantile(ratios, 0.05), rel=1e-4)
    assert figures["nearer_training"] == np.mean([one < other for one, other in zip(near, near_held)])


def test_a_few_copies_among_many_are_named(rng: Rng) -> None:
    train, made = heads(rng, 80), heads(rng, 100)
    made[[7, 42, 99]] = train[[3, 0, 79]]
    found = copies.audit(made, train, heads(rng, 80))
    assert list(zip(found.near["made"], found.near["training"]))[:3] == [(7, 3), (42, 0), (99, 79)]
    assert found.near["distance"].is_monotonic_increasing and (found.near["distance"][:3] == 0).all()
    assert len(found.near) <= 5


def test_copies_of_one_folds_people_are_named_among_all(rng: Rng) -> None:
    """The second fold's model draws three of the people that it has learnt from; the first one none."""
    real, people = rng.normal(size=(120, 20)), np.array([f"sub-{i:03d}" for i in range(120)])
    made = rng.normal(size=(60, 20))
    learnt = np.arange(0, 60), np.arange(60, 120)
    folds = [copies.Fold(np.arange(0, 30), learnt[1], learnt[0]), copies.Fold(np.arange(30, 60), learnt[0], learnt[1])]
    made[[40, 45, 50]] = real[[7, 8, 9]] + 0.001
    found = copies.audit_folds([(made[f.made], real) for f in folds], people, folds)
    nearest = found.near[found.near["distance"] < 0.1]
    assert set(zip(nearest["made"], nearest["training"])) == {(40, 7), (45, 8), (50, 9)}
    alone = [copies.audit(made[f.made], real[f.training], real[f.held_out], people[f.training], people[f.held_out])
             for f in folds]  # fmt: skip
    assert found.figures["authenticity"] == np.mean([one.figures["authenticity"] for one in alone])
    assert found.figures["nearer_training_p"] == min(1, 2 * min(one.figures["nearer_training_p"] for one in alone))
    assert set(found.held_out_near) == {*alone[0].held_out_near, *(60 + alone[1].held_out_near)}


def test_independent_scans_are_no_copies(rng: Rng, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where training people are many more than held-out ones and some people have many scans."""
    monkeypatch.setattr(copies, "PERMUTATIONS", 300)
    figures = []
    for trial in range(60):
        scans = np.repeat(rng.normal(size=(50, 5)), rng.integers(1, 5, size=50), 0)
        _, people = np.unique(scans[:, 0], return_inverse=True)
        scans += rng.normal(0, 0.2, scans.shape)
        trained, made = people < 35, rng.normal(size=(25, 5))
        found = copies.audit(made, scans[trained], scans[~trained], people[trained], people[~trained], trial)
        alone = copies.audit(made, rng.normal(size=(40, 5)), rng.normal(size=(40, 5)), seed=trial)
        figures.append([found.figures["nearer_training_p"], found.figures["nearer_training"],
                        alone.figures["membership_auc"], alone.figures["ratio"],
                        alone.figures["near_copies"] - alone.figures["near_copies_floor"]])  # fmt: skip
    p, share, auc, ratio, near = np.transpose(figures)
    assert kstest(p, "uniform").pvalue > 0.01 and np.mean(share) == pytest.approx(0.7, abs=0.04)
    assert np.mean(auc) == pytest.approx(0.5, abs=0.03) and np.median(ratio) == pytest.approx(1, abs=0.06)
    assert abs(np.mean(near)) < 0.01


def test_repeats_say_how_alike_one_persons_scans_are(rng: Rng) -> None:
    people = np.repeat([f"sub-{i}" for i in range(15)], 3)
    train = np.repeat(rng.normal(size=(15, 8)), 3, 0) + rng.normal(0, 0.1, (45, 8))
    own = [np.linalg.norm(train[i] - train[j]) for i in range(45) for j in range(i) if people[i] == people[j]]
    found = copies.threshold(train, people)
    assert found.distance == pytest.approx(np.median(own)) and "45 pairs" in found.basis
    strangers = np.where(people[:, None] == people, np.inf, cdist(train, train))
    distance, which = copies.nearest(train, train, people, people)
    assert distance == pytest.approx(strangers.min(1)) and (which == strangers.argmin(1)).all()
    alone = copies.threshold(train[::3], people[::3])
    assert alone.distance == pytest.approx(np.quantile(np.sort(cdist(train[::3], train[::3]), 1)[:, 1], 0.01))


def test_membership_is_scikit_learns(rng: Rng) -> None:
    members, others = rng.normal(0, 1, 300).round(1), rng.normal(1, 1, 200).round(1)
    found = copies.membership(members, others)
    labels, score = np.repeat([1, 0], [300, 200]), -np.concatenate([members, others])
    assert found["auc"] == pytest.approx(roc_auc_score(labels, score))
    accused, caught, _ = roc_curve(labels, score, drop_intermediate=False)
    assert found["found"] == pytest.approx(caught[accused <= 0.01].max())


def test_leaks_are_refused_and_named(rng: Rng) -> None:
    some = rng.normal(size=(8, 3))
    with pytest.raises(MetavoxelError, match="in the training and in the held-out set: sub-5, sub-6, sub-7; split"):
        copies.audit(some, some, some, [f"sub-{i}" for i in range(8)], [f"sub-{i}" for i in range(5, 13)])
    with pytest.raises(MetavoxelError, match="all training scans are of one person"):
        copies.audit(some, some, some, ["sub-1"] * 8)
    with pytest.raises(MetavoxelError, match="8 training scans need as many people"):
        copies.audit(some, some, some, ["sub-1"])
