"""Do drawn scans match their request: against closed forms, and on phantoms that obey, or do not."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from metavoxel.data import phantom
from metavoxel.data.phantom_render import render
from metavoxel.errors import MetavoxelError
from metavoxel.evaluate.figures import CONSTANT, OURS, Figure, Findings
from metavoxel.evaluate.looks import REAL
from metavoxel.evaluate.matching import CURVES, SECTION, _by_age, ageing_section, curves, reading_section
from metavoxel.evaluate.requests import Predictor, Trial, agreement, compare_curves, linear_fit, match, train_on_drawn


def world(n: int, slope: float, spread: float, seed: int, more_in_men: float = 0.2) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    age, sex = rng.uniform(20, 90, n), rng.choice(["F", "M"], n)
    logs = 3 + slope * age + more_in_men * (sex == "M") + spread * rng.standard_normal(n)
    return pd.DataFrame({"age": age, "sex": sex, "ventricles_ml": np.exp(logs)})


def test_curves_are_those_of_the_law() -> None:
    drawn, real = world(4000, 0.01, 0.15, 1), world(4000, 0.02, 0.3, 2)
    row = compare_curves(drawn, real, ["ventricles_ml"]).iloc[0]
    assert row["slope_real"] == pytest.approx(0.02, abs=4 * row["se_real"])
    assert row["slope_ratio"] == pytest.approx(0.5, abs=0.02) and row["spread_ratio"] == pytest.approx(0.5, abs=0.02)
    design = np.stack([np.ones(4000), real["age"], real["sex"] == "M"], axis=1).astype(float)  # another coding
    logs = np.log(real["ventricles_ml"])
    line, left, *_ = np.linalg.lstsq(design, logs, rcond=None)
    assert row["slope_real"] == pytest.approx(line[1])
    assert row["se_real"] == pytest.approx(np.sqrt(left[0] / 3997 * np.linalg.inv(design.T @ design)[1, 1]))
    for sex in "FM":
        a, b = (np.sort(t.loc[t["sex"] == sex, "ventricles_ml"]) for t in (drawn, real))
        q = (np.arange(20_000) + 0.5) / 20_000  # the distance is the mean gap between the quantiles
        gap = np.abs(np.quantile(a, q, method="inverted_cdf") - np.quantile(b, q, method="inverted_cdf")).mean()
        assert row[f"wasserstein_{sex}"] == pytest.approx(gap / b.std(ddof=1), rel=0.01)
        assert row[f"wasserstein_{sex}"] > 5 * row[f"chance_{sex}"]
    same = compare_curves(world(500, 0.02, 0.3, 3), real.head(500), ["ventricles_ml"]).iloc[0]
    assert same["wasserstein_F"] < 3 * same["chance_F"] and abs(same["slope_drawn"] - 0.02) < 4 * same["se_drawn"]
    gaps = pd.concat([drawn, drawn.head(9).assign(ventricles_ml=np.nan), drawn.head(9).assign(sex=None)])
    assert compare_curves(gaps, real, ["ventricles_ml"]).iloc[0]["slope_drawn"] == pytest.approx(row["slope_drawn"])


def test_at_equal_head_size_a_slope_is_surer() -> None:
    def heads(slope: float, seed: int) -> pd.DataFrame:
        table, sizes = world(200, slope, 0.02, seed), 0.1 * np.random.default_rng(seed + 100).standard_normal(200)
        return table.assign(head_ml=np.exp(7 + sizes), brain_ml=table["ventricles_ml"] * np.exp(sizes))

    drawn, real = heads(-0.001, 1), heads(-0.002, 2)
    plain, equal = (compare_curves(drawn, real, ["brain_ml"], size=size).iloc[0] for size in (None, "head_ml"))
    assert equal["se_ratio"] < 0.3 * plain["se_ratio"] and equal["slope_ratio"] == pytest.approx(0.5, abs=0.15)
    assert plain["spread_ratio"] == pytest.approx(1, abs=0.2) and equal["spread_ratio"] == pytest.approx(1, abs=0.2)


def test_a_ratio_of_slopes_is_as_uncertain_as_is_told() -> None:
    rows = [compare_curves(world(60, 0.01, 0.3, 2 * k), world(200, 0.02, 0.3, 2 * k + 1), ["ventricles_ml"]).iloc[0]
            for k in range(80)]  # fmt: skip
    ratios, told = (np.array([row[key] for row in rows]) for key in ("slope_ratio", "se_ratio"))
    assert ratios.std(ddof=1) == pytest.approx(told.mean(), rel=0.25)  # of 80: an sd is known to 8 %
    low, high = (np.array([row[key] for row in rows]) for key in ("ratio_low", "ratio_high"))
    assert ((low < 0.5) & (high > 0.5)).mean() > 0.88
    assert np.allclose(high - low, 2 * 1.96 * told, rtol=0.15)  # of a sure slope, as by its error


def test_ends_of_a_ratio_hold_where_the_real_slope_is_little_more_than_its_error() -> None:
    """A slope of 2.5 errors: Fieller's interval holds the truth as often as it says; where there is none, it is endless."""
    rows = [compare_curves(world(60, -0.002, 0.3, 2 * k), world(60, 0.005, 0.3, 2 * k + 1), ["ventricles_ml"]).iloc[0]
            for k in range(120)]  # fmt: skip
    low, high = (np.array([row[key] for row in rows]) for key in ("ratio_low", "ratio_high"))
    assert ((low <= -0.4) & (high >= -0.4)).mean() > 0.9
    sure = np.array([abs(row["slope_real"]) > 1.96 * row["se_real"] for row in rows])
    assert (np.isfinite(low) == sure).all() and 0 < sure.mean() < 1


def test_slopes_have_a_ratio_only_where_real_volumes_change_with_age() -> None:
    def volumes(slope: float, seed: int) -> pd.DataFrame:
        changing, constant = world(400, slope, 0.3, seed), world(400, 0, 0.3, seed)["ventricles_ml"]
        sizes = np.exp(7 + 0.1 * np.random.default_rng(seed).standard_normal(400))
        return changing.assign(**dict.fromkeys(set(CURVES) - {"ventricles_ml"}, constant), head_ml=sizes)

    figures = list(curves("T1w", volumes(0.01, 1), volumes(0.02, 2), 0))
    found = {figure.metric: figure for figure in figures}
    ratio = found["ventricles_ml: slope_ratio"]
    assert ratio.low < 0.5 < ratio.high and ratio.high - ratio.low < 0.3
    assert "brain_ml: slope_ratio" not in found and "brain_ml: spread_ratio" in found and "csf_ml: spread_ratio" in found
    apart = {(f.metric, f.who): f.value for f in figures if f.group == "sex = F" and f.metric.endswith("wasserstein")}
    assert apart["ventricles_ml: wasserstein", OURS] > 3 * apart["ventricles_ml: wasserstein", REAL]
    assert apart["head_ml: wasserstein", OURS] < 2 * apart["head_ml: wasserstein", REAL]
    by_age = {f.group: f.value for f in figures if f.metric == "ventricles_ml: wasserstein" and f.who == OURS}
    groups = [group for group in by_age if group.startswith("age = ")]
    assert len(groups) == 3 and by_age[groups[0]] < by_age[groups[2]]  # the lines part with age


def test_distances_by_age_are_those_of_the_people_of_that_age() -> None:
    real, drawn = world(300, 0.02, 0.3, 1), world(200, 0.01, 0.3, 2)
    ends = np.quantile(real["age"], [0, 1 / 3, 2 / 3, 1])
    others = {*CURVES, "head_ml"} - {"ventricles_ml"}
    found = _by_age(*(table.assign(**dict.fromkeys(others, table["age"])) for table in (drawn, real)), 0)
    middle = found[found["volume"] == "ventricles_ml"].iloc[1]
    made, seen = (t.loc[(t["age"] > ends[1]) & (t["age"] <= ends[2]), "ventricles_ml"] for t in (drawn, real))
    assert middle["level"] == f"{ends[1]:.4g} to {ends[2]:.4g}"
    assert middle["wasserstein"] == pytest.approx(stats.wasserstein_distance(made, seen) / seen.std(ddof=1))


def test_agreement_is_what_its_names_say() -> None:
    truth, said = np.array([30.0, 50.0, 80.0]), np.array([35.0, 45.0, 70.0])
    assert agreement(truth, said) == {"mae": pytest.approx(20 / 3), "r": pytest.approx(stats.pearsonr(truth, said)[0])}
    assert np.isnan(agreement(np.array([50.0, 50.0]), np.array([48.0, 55.0]))["r"])
    got = agreement(np.array(["F", "F", "F", "M"]), np.array(["F", "F", "M", "M"]))
    assert got == {"accuracy": 0.75, "balanced_accuracy": pytest.approx((2 / 3 + 1) / 2)}


@pytest.fixture(scope="module")
def scans() -> tuple[np.ndarray, pd.DataFrame]:
    people = phantom.subjects(360, 5)
    voxels = torch.cat(list(render(people, seed=5, device="cpu")))[:, 0, ::2, ::2, ::2]
    return voxels.half().numpy(), people[["age", "sex"]]


def test_judges_tell_scans_that_obey_from_scans_that_do_not(scans: tuple[np.ndarray, pd.DataFrame]) -> None:
    voxels, facts = scans
    train, held_out, drawn = slice(0, 240), slice(240, 300), slice(300, 360)
    names = ["age", "sex"]
    learnt, real = ((voxels[part], facts[part]) for part in (train, held_out))
    judge = linear_fit(learnt, names)
    table = match([Trial(judge, (voxels[drawn], facts[drawn]), real, learnt)], names)
    assert ((table["low"] < table["value"]) & (table["value"] < table["high"])).all()
    obedient = table.pivot_table(index=["variable", "metric"], columns="of", values="value")
    shuffled = facts[drawn].sample(frac=1, random_state=0)
    deaf = match([Trial(judge, (voxels[drawn], shuffled), real, learnt)], names)
    deaf = deaf.pivot_table(index=["variable", "metric"], columns="of", values="value")
    assert obedient.loc[("age", "mae"), "drawn"] < 13 < deaf.loc[("age", "mae"), "drawn"]
    assert obedient.loc[("age", "r"), "drawn"] > 0.6 > 0.4 > deaf.loc[("age", "r"), "drawn"]
    assert obedient.loc[("sex", "accuracy"), "drawn"] > 0.6 and obedient.loc[("sex", "accuracy"), "real"] > 0.6
    assert obedient["real"].equals(deaf["real"])


def test_training_on_drawn_scans_is_worth_what_they_show(scans: tuple[np.ndarray, pd.DataFrame]) -> None:
    voxels, facts = scans
    real, test = (voxels[:120], facts[:120]), (voxels[300:], facts[300:])
    gap = facts[120:300].reset_index(drop=True)
    gap.loc[:4, "age"] = np.nan
    judge = linear_fit(real, ["age", "sex"])
    table = train_on_drawn([Trial(judge, (voxels[120:300], gap), test, real)], ["age", "sex"])
    assert list(table["training"].unique()) == ["real", "drawn", "both", "constant"] and len(table) == 16
    told = table.set_index(["training", "variable", "metric"])["value"]
    mae = np.abs(test[1]["age"] - real[1]["age"].mean()).mean()
    assert told["constant", "age", "mae"] == pytest.approx(mae) and np.isnan(told["constant", "age", "r"])
    assert told["constant", "sex", "balanced_accuracy"] == 0.5
    wrong = facts[120:300].sample(frac=1, random_state=1)
    misled = train_on_drawn([Trial(judge, (voxels[120:300], wrong), test, real)], ["age"])
    by_age = (t[(t["variable"] == "age") & (t["metric"] == "r")] for t in (table, misled))
    r, r_misled = (t.set_index("training")["value"] for t in by_age)
    assert r["drawn"] > 0.6 and r["both"] > 0.6 and r_misled["drawn"] < 0.4 and r["real"] == r_misled["real"]

    def mean(sample: tuple[np.ndarray, pd.DataFrame], names: list[str]) -> Predictor:
        return lambda scans: pd.DataFrame({name: np.full(len(scans), sample[1][name].mean()) for name in names})

    constant = train_on_drawn([Trial(mean(real, ["age"]), real, test, real)], ["age"], fit=mean)
    assert constant.loc[constant["metric"] == "mae", "value"].tolist() == [pytest.approx(mae)] * 4


def test_what_is_read_of_folds_is_told_of_all_together(scans: tuple[np.ndarray, pd.DataFrame]) -> None:
    """Two folds, each with a judge of its own: figures are those of both folds' answers, not means of two figures."""
    voxels, facts = scans
    halves = [(voxels[part], facts[part]) for part in (slice(0, 120), slice(120, 240))]
    trials = [Trial(linear_fit(learnt, ["age", "sex"]), (voxels[240:300], facts[240:300]), test, learnt)
              for learnt, test in (halves, halves[::-1])]  # fmt: skip
    table = match(trials, ["age", "sex"]).set_index(["of", "variable", "metric"])["value"]
    said = [trial.judge(trial.test[0])["age"].to_numpy() for trial in trials]
    truth = [trial.test[1]["age"].to_numpy() for trial in trials]
    assert table["real", "age", "mae"] == pytest.approx(np.abs(np.concatenate(said) - np.concatenate(truth)).mean())
    assert table["real", "age", "r"] == pytest.approx(stats.pearsonr(np.concatenate(said), np.concatenate(truth))[0])
    learnt = train_on_drawn(trials, ["age"]).set_index(["training", "metric"])["value"]
    assert learnt["real", "mae"] == table["real", "age", "mae"] and 4 < learnt["drawn", "mae"] < 20
    means = np.concatenate([np.abs(t.test[1]["age"] - t.training[1]["age"].mean()) for t in trials])
    assert learnt[CONSTANT, "mae"] == pytest.approx(means.mean())


def test_mistakes_are_told(scans: tuple[np.ndarray, pd.DataFrame]) -> None:
    voxels, facts = scans
    one = voxels[:9], facts[:9]
    judge = linear_fit(one, ["age"])
    table = world(9, 0.01, 0.1, 0)
    for message, call in {
        "no column 'mmse' beside": lambda: linear_fit(one, ["mmse"]),
        "9 scans with 8 rows": lambda: linear_fit((voxels[:9], facts[:8]), ["age"]),
        "known of 0 scans": lambda: match([Trial(judge, one, (voxels[:9], facts[:9].assign(age=np.nan)), one)], ["age"]),
        "drawn scans have no column 'sex'": lambda: compare_curves(table.drop(columns="sex"), table, ["ventricles_ml"]),
        "of one age": lambda: compare_curves(table.assign(age=50.0), table, ["ventricles_ml"]),
    }.items():
        with pytest.raises(MetavoxelError, match=message):
            call()


def test_the_page_says_what_follows_age_and_what_does_not() -> None:
    found = [(0.67, 0.59, 0.75), (1.3, 1.1, 1.5), (0.9, 0.7, 1.1), (-0.88, -1.23, -0.53), (0.5, -0.2, 1.2)]
    ratios = dict(zip(CURVES, found))
    figures = [Figure(SECTION, "T1w", f"{name}: spread_ratio", 1.0) for name in (*CURVES, "head_ml")]
    own = [Figure(SECTION, "T1w", f"{name}: slope_ratio", x, low=a, high=b) for name, (x, a, b) in ratios.items()]
    apart = [Figure(SECTION, "T1w", "brain_ml: wasserstein", x, who, group="sex = F")
             for x, who in ((0.3, OURS), (0.1, REAL))]  # fmt: skip
    table = pd.DataFrame({name: [1.0, 2.0, 3.0] for name in ("age", *CURVES)})
    page = ageing_section(Findings({}, [*figures, *own, *apart]), "T1w", table, table)
    for words in ("the wrong way: white -0.88 [-1.23, -0.53]; too little: brain 0.67",
                  "too much: ventricles 1.30 [1.10, 1.50]", "within chance: grey 0.90",
                  "not certain: csf 0.50"):  # fmt: skip
        assert words in page.conclusion
    assert page.table is not None and page.table.header[3] == "distance, sex = F"
    assert page.table.rows[0] == ("brain", "0.67 [0.59, 0.75]", "1.00", "0.30 (0.10)")
    assert page.table.rows[5] == ("head", "-", "1.00", "-")
    none = ageing_section(Findings({}, figures), "T1w", table, table)
    assert "nothing to follow" in none.conclusion


def test_intervals_are_over_people_not_scans() -> None:
    rng = np.random.default_rng(0)
    ages = np.repeat(rng.uniform(20, 90, 30), 4)  # of 30 people, four scans each, read with the same error
    facts = pd.DataFrame({"age": ages, "participant_id": np.repeat(np.arange(30), 4)})
    said = pd.DataFrame({"age": ages + np.repeat(rng.normal(0, 8, 30), 4)})
    wide, narrow = (match([Trial(lambda scans: said, *[(ages, table)] * 3)], ["age"]).iloc[0]
                    for table in (facts, facts.drop(columns="participant_id")))  # fmt: skip
    assert 1.6 < (wide["high"] - wide["low"]) / (narrow["high"] - narrow["low"]) < 2.5


def test_the_page_says_what_is_read_from_drawn_scans() -> None:
    """Easier to read than real ones is told as a fault, as harder is; a figure that tells them apart is shown."""
    told = {"age: mae": (10.2, 10.8, 18.0), "age: r": (0.7, 0.72, np.nan), "mmse: mae": (1.77, 1.94, 2.2),
            "mmse: r": (0.63, 0.41, np.nan), "sex: accuracy": (0.70, 0.80, 0.5)}  # fmt: skip
    figures = []
    for metric, values in told.items():
        half = 1.0 if metric.endswith("mae") else 0.04
        figures += [Figure(SECTION, "T1w", metric, x, who, low=x - half, high=x + half)
                    for x, who in zip(values, (OURS, REAL, CONSTANT))]  # fmt: skip
        figures += [Figure(SECTION, "T1w", f"{metric}, trained on {kind}", 11.6) for kind in ("real", "drawn", "both")]
    page = reading_section(Findings({}, figures), "T1w")
    for words in ("harder to read: sex (accuracy 0.7 against 0.8);", "too typical: mmse (r 0.63 against 0.41);",
                  "within chance: age (mae 10.2 against 10.8)."):  # fmt: skip
        assert words in page.conclusion
    assert page.table is not None
    assert page.table.rows[0] == ("age: mae", "10.2 [9.2, 11.2]", "10.8 [9.8, 11.8]", "11.6", "11.6", "18 [17, 19]")
    assert page.table.rows[1][-1] == "-"
