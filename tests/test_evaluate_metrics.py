"""Figures of answers and of their calibration, against scikit-learn, scipy and closed forms."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics
from sklearn.calibration import calibration_curve

from metavoxel.errors import MetavoxelError
from metavoxel.evaluate import calibrated, calibration, plots, scores
from metavoxel.evaluate.claims import Claim
from metavoxel.evaluate.figures import EVERYBODY, OURS, Figure, Findings
from metavoxel.schema import Categorical, Continuous

Rng = np.random.Generator


@pytest.fixture
def rng() -> Rng:
    return np.random.default_rng(0)


def probabilities(rng: Rng, n: int, levels: int) -> np.ndarray:
    return rng.dirichlet(np.full(levels, 0.7), n).round(2)  # rounded: ties; still a sum of 1 within a few .01


def mean(values: np.ndarray) -> Callable[[np.ndarray], scores.Figures]:
    return lambda rows: {"mean": float(values[rows].mean())}


def test_figures_of_numbers_are_scikit_learns(rng: Rng) -> None:
    truth = rng.normal(50, 20, 80)
    told = truth + rng.normal(3, 9, 80)
    mae = metrics.mean_absolute_error(truth, told)
    assert scores.number_scores(truth, told) == pytest.approx({
        "mae": mae, "mae_sd": np.abs(told - truth).std(), "rmse": metrics.root_mean_squared_error(truth, told),
        "r2": metrics.r2_score(truth, told),
        "r": stats.pearsonr(truth, told).statistic, "mae_over_sd": mae / truth.std(),
    })  # fmt: skip


@pytest.mark.parametrize("levels", [2, 4])
def test_figures_of_classes_are_scikit_learns(rng: Rng, levels: int) -> None:
    p = probabilities(rng, 90, levels)
    p /= p.sum(1, keepdims=True)
    truth = np.where(rng.random(90) < 0.5, p.argmax(1), rng.integers(levels, size=90))
    assert scores.class_scores(truth, p) == pytest.approx({
        "accuracy": metrics.accuracy_score(truth, p.argmax(1)),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, p.argmax(1)),
        "auc": metrics.roc_auc_score(truth, p[:, 1] if levels == 2 else p, multi_class="ovr"),
        "brier": ((np.eye(levels)[truth] - p) ** 2).sum(1).mean(),
        "log_loss": metrics.log_loss(truth, p, labels=range(levels)),
    })  # fmt: skip


def test_what_is_undefined_is_nan_and_says_why(rng: Rng) -> None:
    p = np.stack([np.full(5, 0.3), np.full(5, 0.7)], 1)
    found = scores.class_scores(np.ones(5, int), p)
    assert {name for name, x in found.items() if np.isnan(x)} == set(scores.class_gaps(np.ones(5, int))) == {"auc"}
    for truth, told in ((np.full(5, 3.0), np.arange(5.0)), (np.arange(5.0), np.full(5, 3.0))):
        found = scores.number_scores(truth, told)
        assert {name for name, x in found.items() if np.isnan(x)} == set(scores.number_gaps(truth, told)) != set()
    three = probabilities(rng, 60, 3)
    three /= three.sum(1, keepdims=True)
    truth = rng.integers(2, size=60)  # nobody is of the third level
    aucs = [metrics.roc_auc_score(truth == level, three[:, level]) for level in (0, 1)]
    assert scores.class_scores(truth, three)["auc"] == pytest.approx(np.mean(aucs))


def test_what_cannot_be_scored_is_refused_and_named() -> None:
    with pytest.raises(MetavoxelError, match="row 2 of 3: the answer is missing"):
        scores.number_scores(np.arange(3.0), np.array([0, np.nan, 2]))
    with pytest.raises(MetavoxelError, match="row 1 of 2: the probabilities are not positive with sum 1"):
        scores.class_scores(np.array([0, 1]), np.array([[0.5, 0.6], [0.5, 0.5]]))
    with pytest.raises(MetavoxelError, match="row 2 of 2: the true class"):
        scores.class_scores(np.array([0, 2]), np.full((2, 2), 0.5))
    with pytest.raises(MetavoxelError, match="row 2 has no participant_id"):
        scores.bootstrap(mean(np.arange(2.0)), ["sub-1", None])
    with pytest.raises(MetavoxelError, match="nobody"):
        scores.bootstrap(mean(np.arange(0.0)), [])


def test_intervals_hold_the_truth_as_often_as_they_say(rng: Rng) -> None:
    held = []
    for trial in range(300):
        found = scores.bootstrap(mean(rng.exponential(1, 60)), range(60), 200, trial, level=0.8)["mean"]
        held.append(found.low <= 1 <= found.high)
    assert 0.73 < np.mean(held) < 0.86


def test_a_persons_rows_are_drawn_together(rng: Rng) -> None:
    of_people = rng.normal(size=50)
    rows, people = np.repeat(of_people, 4), np.repeat([f"sub-{i}" for i in range(50)], 4)
    by_person = scores.bootstrap(mean(rows), people)["mean"]
    by_row = scores.bootstrap(mean(rows), range(200))["mean"]
    width = 2 * stats.norm.ppf(0.975) * of_people.std() / np.sqrt(50)
    assert by_person.high - by_person.low == pytest.approx(width, rel=0.1)
    assert by_row.high - by_row.low == pytest.approx(width / 2, rel=0.1)
    shuffled = rng.permutation(np.repeat(np.arange(6), range(1, 7)))  # 1 to 6 rows each, in any order
    drawn = [np.bincount(shuffled[rows], minlength=6) for rows in scores.resamples(shuffled, 50, 0)]
    assert all((counts % np.arange(1, 7) == 0).all() and (counts // np.arange(1, 7)).sum() == 6 for counts in drawn)
    alone = scores.bootstrap(mean(np.arange(3.0)), ["one"] * 3)["mean"]
    assert alone.value == 1 and np.isnan([alone.low, alone.high]).all()


def test_two_models_are_compared_person_by_person(rng: Rng) -> None:
    truth = rng.normal(50, 20, 60)
    shared = rng.normal(0, 8, 60)
    a, b = truth + shared + rng.normal(0.5, 3, 60), truth + shared + rng.normal(0, 3, 60)
    found = scores.compare(scores.number_scores, truth, a, b, range(60), 3000)["mae"]
    errors = np.abs(a - truth), np.abs(b - truth)
    exact = stats.permutation_test(errors, lambda x, y, axis: (x - y).mean(axis), permutation_type="samples",
                                   vectorized=True, n_resamples=20_000, rng=rng)  # fmt: skip
    assert found.value == pytest.approx(exact.statistic) and found.p == pytest.approx(exact.pvalue, abs=0.03)
    width = 2 * stats.norm.ppf(0.975) * (errors[0] - errors[1]).std() / np.sqrt(60)
    assert found.high - found.low == pytest.approx(width, rel=0.1)
    same = scores.compare(scores.number_scores, truth, a, a, range(60), 99)["mae"]
    assert same == (0, 0, 0, 1)
    y = rng.integers(2, size=60)
    good, poor = (np.stack([1 - p, p], 1) for p in (0.2 + 0.6 * y, rng.random(60)))
    assert scores.compare(scores.class_scores, y, good, poor, range(60), 199)["auc"].p == 1 / 200


def test_models_alike_seldom_differ(rng: Rng) -> None:
    """Under the null, p below .1 in a tenth of the trials, though people repeat."""
    people, low = np.repeat(np.arange(20), 3), 0
    for trial in range(200):
        offs = np.repeat(rng.normal(size=(2, 20)), 3, axis=1)
        truth = rng.normal(size=60)
        found = scores.compare(lambda t, x: {"mae": np.abs(t - x).mean()}, truth, *(truth + offs), people, 99, trial)
        low += found["mae"].p <= 0.1
    assert stats.binomtest(low, 200, 0.1).pvalue > 0.01


def test_a_group_is_held_against_the_others(rng: Rng) -> None:
    one, other = rng.normal(0, 3, 15), rng.normal(0, 1, 90)
    found, welch = scores.apart(one, other), stats.ttest_ind(one, other, equal_var=False)
    assert found.value == pytest.approx(one.mean() - other.mean()) and found.p == pytest.approx(welch.pvalue, abs=0.04)
    assert (found.low, found.high) == pytest.approx(tuple(welch.confidence_interval()))
    low = [scores.apart(rng.normal(0, 3, 15), rng.normal(0, 1, 90), 199, trial).p <= 0.1 for trial in range(200)]
    assert stats.binomtest(sum(low), 200, 0.1).pvalue > 0.01  # unequal spreads are no difference
    assert scores.apart(np.ones(10), np.ones(20)) == (0, 0, 0, 1)
    assert scores.apart(np.ones(10), np.zeros(20)).p < 0.001


def test_holm_is_the_textbooks() -> None:
    assert scores.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert scores.holm([0.9, 0.8]) == pytest.approx([1, 1]) and not len(scores.holm([]))


def test_crps_is_the_normal_laws(rng: Rng) -> None:
    truth = np.array([-1.5, 0.0, 4.0])
    z = (truth - 1) / 2
    closed = 2 * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
    assert calibration.crps(truth, rng.normal(1, 2, (3, 200_000))) == pytest.approx(closed, abs=0.02)
    few = calibration.crps(np.full(100_000, truth[2]), rng.normal(1, 2, (100_000, 4)))
    assert few.mean() == pytest.approx(closed[2], abs=0.02)


def draws(rng: Rng, people: int, number: int, narrow: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Of x given y, where x = y + noise of sd 2; sd too small by `narrow`."""
    y = rng.normal(60, 15, people)
    return y + rng.normal(0, 2, people), y[:, None] + rng.normal(0, 2 * narrow, (people, number))


@pytest.mark.parametrize("number", [39, 79, 256])
def test_exact_draws_cover_what_they_say(rng: Rng, number: int) -> None:
    truth, drawn = draws(rng, 20_000, number)
    found = calibration.number_calibration(truth, drawn)
    for percent in calibration.INTERVALS:
        error = np.sqrt(percent * (100 - percent) / 20_000) / 100
        assert found[f"coverage_{percent}"] == pytest.approx(percent / 100, abs=3.5 * error)
    assert found["rank_p"] > 0.01 and found["crps"] == pytest.approx(2 / np.sqrt(np.pi), rel=0.03)


def test_ranks_accept_exact_draws_and_reject_others(rng: Rng) -> None:
    p = [calibration.rank_p(*draws(rng, 200, 30), seed) for seed in range(150)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert calibration.rank_p(*draws(rng, 500, 63, narrow=0.7)) < 1e-4
    truth, drawn = draws(rng, 4000, 20)
    years = calibration.pit(truth.round(-1), drawn.round(-1))  # most draws tie with the truth
    assert stats.kstest(years, "uniform").pvalue > 0.01
    assert calibration.rank_histogram(truth, drawn).sum() == 4000
    assert np.isnan(calibration.rank_p(truth[:9], drawn[:9]))


def found_of(claims: Sequence[Claim], group: str = EVERYBODY) -> Findings:
    findings = Findings({})
    findings.add(calibrated.calibration(claims, seed=0, group=group))
    return findings


def faults(truth: np.ndarray, drawn: np.ndarray) -> list[str]:
    """That the report finds with draws (people, draws)."""
    claims = [Claim(OURS, "scan", Continuous("age", "years"), np.arange(len(truth)), truth, drawn.mean(1), drawn)]
    return list(calibrated.faults(found_of(claims), claims).values())


def test_intervals_of_whole_points_are_judged_as_others_are(rng: Rng) -> None:
    """Of a score of few points, any interval holds more than it says if its ends are inside: 77 % for 50."""
    points = [np.round(x / 4) for x in draws(rng, 2000, 99)]
    low, high = np.percentile(points[1], [25, 75], axis=1)
    assert ((low <= points[0]) & (points[0] <= high)).mean() > 0.7
    assert faults(*points) == []
    assert "50 % intervals hold" in faults(*(np.round(x / 4) for x in draws(rng, 2000, 99, narrow=0.6)))[0]


def test_few_draws_are_no_fault(rng: Rng) -> None:
    """Of three exact draws, the paper's number, the outermost hold half of all truths."""
    assert faults(*draws(rng, 2000, 3)) == []
    assert "ranks uneven" in faults(*draws(rng, 2000, 3, narrow=0.5))[0]


def test_report_finds_fault_with_any_interval_and_seldom_with_exact_draws(rng: Rng) -> None:
    def found(people: int, narrow: float = 1.0) -> list[str]:
        return faults(*draws(rng, people, 79, narrow))

    assert sum(bool(found(500)) for _ in range(100)) <= 6  # ranks and intervals together: 2 are expected
    assert all("50 % intervals hold" in fault for fault in found(2000, narrow=0.8) + found(2000, narrow=1.25))
    with_wide_middle = Findings({})
    with_wide_middle.add(Figure("calibration", "age", f"coverage_{share}", share / 100 + 0.1 * (share == 50), given="scan",
                                n=500) for share in calibration.INTERVALS)  # fmt: skip
    claim = Claim(OURS, "scan", Continuous("age", "years"), np.arange(500), np.zeros(500), np.zeros(500))
    assert list(calibrated.faults(with_wide_middle, [claim]).values()) == ["age, given scan (50 % intervals hold 60%)"]


def test_a_report_of_many_questions_is_as_seldom_wrong_as_one_of_few(rng: Rng) -> None:
    """Six classes told rightly: at 5 % each, a quarter of the reports would find a fault."""
    sexes = [Categorical(f"class-{number}", levels=("no", "yes")) for number in range(6)]

    def found(right: bool) -> dict[tuple[str, str], str]:
        claims = []
        for sex in sexes:
            p = rng.random(100)
            truth = 1.0 * (rng.random(100) < (p if right or sex is not sexes[3] else p**3))
            claims.append(Claim(OURS, "scan", sex, np.arange(100), truth, np.stack([1 - p, p], 1)))
        findings = found_of(claims)
        said = calibrated._conclusion(findings, claims)
        found = calibrated.faults(findings, claims)
        assert bool(found) != ("No fault that 100 people could show was found in 6 questions." in said)
        return found

    assert not any(found(right=True) for _ in range(3))
    assert list(found(right=False)) == [("class-3", "scan")]


def test_variance_of_draws_is_within_people(rng: Rng) -> None:
    """Not that of all draws together, nor that of what is told of different people."""
    truth, drawn = draws(rng, 40, 7)
    drawn = 60 + (drawn - 60) * np.linspace(0.5, 2, 40)[:, None]
    claim = Claim(OURS, "scan", Continuous("age", "years"), np.arange(40), truth, drawn.mean(1), drawn)
    found = found_of([claim]).value("calibration", "age", "draws_variance", given="scan")
    assert found.value == pytest.approx(np.mean([np.var(own, ddof=1) for own in drawn]))


def test_rank_histograms_can_be_drawn_anew(rng: Rng) -> None:
    """Of 99 draws, the truth is above nought to nine in the first tenth, and so on."""
    age, claims = Continuous("age", "years"), []
    for given, who in (("scan", OURS), ("nothing", OURS), ("scan", "exact")):
        truth, drawn = draws(rng, 150, 99, narrow=0.6)
        claims.append(Claim(who, given, age, np.arange(150), truth, drawn.mean(1), drawn))
    findings = found_of(claims)
    own = [figure for figure in findings.figures if figure.section == calibrated.COUNTED]
    assert len(own) == 20 and {figure.who for figure in own} == {OURS} and {figure.n for figure in own} == {150}
    for claim in claims[:2]:
        above = (claim.draws < claim.truth[:, None]).sum(1)
        shares = [findings.value(calibrated.COUNTED, "age", f"rank_{tenth:02d}", given=claim.given).value
                  for tenth in range(1, 11)]  # fmt: skip
        assert shares == pytest.approx(np.bincount(above // 10, minlength=10) / 150)
    assert calibrated.COUNTED not in {figure.section for figure in found_of(claims, "sex = F").figures}


@pytest.mark.parametrize("levels", [("F", "M"), ("well", "worse", "ill")])
def test_reliability_can_be_drawn_anew(rng: Rng, levels: tuple[str, ...]) -> None:
    """And the error that is said of it comes from the same tenths; some hold nobody."""
    p = rng.dirichlet(np.full(len(levels), 0.3), 60)
    truth = rng.integers(len(levels), size=60).astype(float)
    claim = Claim(OURS, "scan", Categorical("state", levels=levels), np.arange(60), truth, p)
    findings, gaps = found_of([claim]), []
    told = {f.metric: f for f in findings.figures if f.section == calibrated.COUNTED}
    for index, level in enumerate(levels):
        for tenth in range(10):
            inside = [row for row in range(60) if tenth <= 10 * p[row, index] < tenth + 1]
            names = [f"{metric}_{tenth + 1:02d} of {level}" for metric in ("told", "true")]
            if not inside or level == "F":
                assert not set(names) & set(told)
                continue
            mean, share = (told.pop(name) for name in names)
            assert mean.value == pytest.approx(np.mean(p[inside, index])) and mean.n == share.n == len(inside)
            assert share.value == pytest.approx(np.mean(truth[inside] == index))
            gaps.append(abs(mean.value - share.value) * mean.n / 60)
    error = findings.value("calibration", "state", "ece", given="scan").value
    assert not told and error == pytest.approx(sum(gaps) / (1 if len(levels) == 2 else len(levels)))


def test_every_set_of_facts_is_pictured(rng: Rng, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture a variable, a panel a set; others' answers are not there."""
    drawn_of: dict[str, list[str]] = {}
    draw = plots._panels

    def panels(title: str, names: Sequence[str], *labels: str) -> object:
        drawn_of[title] = list(names)
        return draw(title, names, *labels)

    monkeypatch.setattr(plots, "_panels", panels)
    (truth, drawn), p = draws(rng, 50, 19), rng.random(50)
    age, sex, rows = Continuous("age", "years"), Categorical("sex", levels=("F", "M")), np.arange(50)
    claims = [Claim(who, given, age, rows, truth, drawn.mean(1), drawn) for who, given in
              ((OURS, "nothing"), (OURS, "other facts"), (OURS, "scan"), ("exact", "both"))]  # fmt: skip
    claims.append(Claim(OURS, "scan", sex, rows, 1.0 * (rng.random(50) < p), np.stack([1 - p, p], 1)))
    section = calibrated.calibration_section(found_of(claims), claims, seed=0)
    assert drawn_of == {"age, given": ["nothing", "other facts", "scan"], "sex, given": ["scan"]}
    assert len(section.pictures) == 2 and all(picture.png.startswith(b"\x89PNG") for picture in section.pictures)


def test_tarp_keeps_to_the_diagonal_if_and_only_if_draws_are_right(rng: Rng) -> None:
    def joint(people: int, number: int) -> np.ndarray:
        """Age and a volume that follows it."""
        return rng.multivariate_normal([0, 0], [[4, 5.4], [5.4, 9]], (people, number))

    centre = rng.normal(0, 3, (1500, 1, 2))
    truth, right = (centre + joint(1500, 1))[:, 0], centre + joint(1500, 100)
    found = calibration.tarp(truth, right)
    assert found.p > 0.01 and np.abs(found.found - found.nominal).max() < 0.05 and abs(found.lean) < 0.03
    wrong = {
        "narrow": centre + 0.6 * joint(1500, 100),
        "wide": centre + 1.6 * joint(1500, 100),
        "biased": right + np.array([1.5, 0]),
        "unrelated": centre + np.stack([joint(1500, 100)[..., 0], joint(1500, 100)[..., 1]], -1),
    }
    tested = {name: calibration.tarp(truth, drawn) for name, drawn in wrong.items()}
    assert all(t.p < 1e-3 for t in tested.values()), tested
    assert tested["narrow"].lean < -0.05 and tested["wide"].lean > 0.05
    for number in (0, 1):  # what no rank of one number alone can see
        assert calibration.rank_p(truth[:, number], wrong["unrelated"][..., number]) > 0.01


def test_reliability_is_scikit_learns_curve(rng: Rng) -> None:
    p = rng.beta(0.5, 0.5, 400)
    happened = rng.random(400) < p**2
    told, found, share = calibration.reliability(happened, p)
    curve = calibration_curve(happened, p, n_bins=10)
    assert found == pytest.approx(curve[0]) and told == pytest.approx(curve[1])
    both = np.stack([1 - p, p], 1)
    assert calibration.ece(happened, both) == pytest.approx((np.abs(told - found) * share).sum())
    assert calibration.ece(happened, both) > calibration.ece_by_chance(both, 200).q95
    three = np.stack([p / 2, p / 2, 1 - p], 1)
    one_by_one = [calibration.ece(happened == level, np.stack([1 - q, q], 1)) for level, q in enumerate(three.T)]
    assert calibration.ece(happened.astype(int), three) == pytest.approx(np.mean(one_by_one))


def test_chance_leaves_the_error_of_a_binomial(rng: Rng) -> None:
    n, people = 50, stats.binom(50, 0.3)
    found = calibration.ece_by_chance(np.tile([0.7, 0.3], (n, 1)), 4000)
    assert found.mean == pytest.approx(people.expect(lambda k: abs(k / n - 0.3)), rel=0.05)
    p = rng.dirichlet([1, 2, 1], 300)
    chance = calibration.ece_by_chance(p, 300)
    above = [calibration.ece((rng.random(300)[:, None] >= p[:, :-1].cumsum(1)).sum(1), p) > chance.q95 for _ in range(200)]
    assert 0.01 < np.mean(above) < 0.11


def test_draws_that_cannot_be_judged_are_refused() -> None:
    with pytest.raises(MetavoxelError, match="person 2 of 2: draws missing"):
        calibration.pit(np.zeros(2), np.array([[0.0, 1], [0, np.nan]]))
    with pytest.raises(MetavoxelError, match=r"draws \(3, 5\) must be"):
        calibration.crps(np.zeros(2), np.zeros((3, 5)))
    with pytest.raises(MetavoxelError, match="at least two draws"):
        calibration.crps(np.zeros(2), np.zeros((2, 1)))
