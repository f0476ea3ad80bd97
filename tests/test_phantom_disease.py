"""The phantom with a diagnosis and a score: its margins, and its exact posterior against fresh draws and by weighting them;
the phantom without one, as it has always been."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats

from metavoxel.data import phantom
from metavoxel.data.phantom_disease import (
    BEST,
    DIAGNOSES,
    EFFECT,
    diagnosis_probabilities,
    draw_score,
    score_cdf,
    untested_probability,
)
from metavoxel.errors import MetavoxelError

NUMBERS = list(phantom.NUMBERS)
P_DIAGNOSIS = [f"diagnosis_p_{level}" for level in DIAGNOSES]


@pytest.fixture(scope="module")
def people() -> pd.DataFrame:
    return phantom.subjects(3000, seed=31, diagnosis=True)


@pytest.fixture(scope="module")
def answer(people: pd.DataFrame) -> pd.DataFrame:
    return phantom.posterior(people)


def test_without_a_diagnosis_nobody_has_changed() -> None:
    # the packaged model and every benchmark are about these people
    table = phantom.subjects(20, 5).to_csv(float_format="%.5g").encode()
    assert hashlib.sha256(table).hexdigest() == "28dd20deb6cabad09f3da50e2954fdd9826da2e993a22000be255ed96c2e8597"
    plain, ill = phantom.subjects(50, 5), phantom.subjects(50, 5, diagnosis=True)
    healthy = (ill["diagnosis"] == "control").to_numpy()
    pd.testing.assert_frame_equal(plain[healthy], ill.loc[healthy, list(plain)])


def test_margins_are_the_laws(people: pd.DataFrame) -> None:
    ages = np.linspace(*phantom.AGES, 2001)
    p = integrate.trapezoid(diagnosis_probabilities(ages), ages, axis=0) / np.ptp(phantom.AGES)
    counts = people["diagnosis"].value_counts()[list(DIAGNOSES)]
    assert stats.chisquare(counts, p / p.sum() * len(people)).pvalue > 0.001
    old = people[people["age"].between(75, 85)]
    expected = diagnosis_probabilities(old["age"].to_numpy()).sum(0)
    assert stats.chisquare(old["diagnosis"].value_counts()[list(DIAGNOSES)], expected).pvalue > 0.001
    scores = people["mmse"]
    assert scores.between(0, BEST).all() and scores.dtype.kind == "i"
    means = scores.groupby(people["diagnosis"]).mean()
    assert 28.5 < means["control"] < 29.3 and 26 < means["mci"] < 27.3 and 21 < means["dementia"] < 22.5


def test_the_score_has_the_law_it_is_drawn_from() -> None:
    rng, n = np.random.default_rng(1), 20_000
    for which in range(3):
        standing = np.zeros((n, 3)) + 0.7
        drawn = draw_score(np.full(n, which), standing[:, which], rng.standard_normal(n))
        p = np.diff([score_cdf(score, standing[:1])[0, which] for score in range(BEST + 1)], prepend=0.0)
        assert p.sum() == pytest.approx(1) and p.min() >= 0
        common = p * n > 5
        seen, wanted = np.bincount(drawn, minlength=BEST + 1), p * n
        pooled = [np.append(x[common], x[~common].sum()) for x in (seen, wanted)]
        pooled = [x[pooled[1] > 0.5] for x in pooled]
        assert stats.chisquare(pooled[0], pooled[1] * n / pooled[1].sum()).pvalue > 0.001


def test_posterior_of_all_facts_is_calibrated(people: pd.DataFrame, answer: pd.DataFrame) -> None:
    for level in DIAGNOSES:
        p, hit = answer[f"diagnosis_p_{level}"], people["diagnosis"] == level
        for _, group in p.groupby(np.minimum((p * 10).astype(int), 9)):
            error = hit[group.index].mean() - group.mean()
            assert abs(error) < 4 * np.sqrt((group * (1 - group)).sum()) / len(group) + 1e-9
    np.testing.assert_allclose(answer[P_DIAGNOSIS].sum(axis=1), 1)
    scores = people["mmse"]
    for q in (5, 50, 95):  # at most q below the quantile, at least q at it or below
        cut = answer[f"mmse_q{q:02d}"]
        assert stats.binomtest(int((scores < cut).sum()), len(scores), q / 100, alternative="greater").pvalue > 0.001
        assert stats.binomtest(int((scores <= cut).sum()), len(scores), q / 100, alternative="less").pvalue > 0.001
    error = (scores - answer["mmse_mean"]) / answer["mmse_sd"]
    assert abs(error.mean()) < 4 / len(error) ** 0.5 and error.std() == pytest.approx(1, abs=0.1)
    inside = int(people["age"].between(answer["age_q05"], answer["age_q95"]).sum())
    assert stats.binomtest(inside, len(people), 0.9).pvalue > 0.001


def test_posterior_agrees_with_weighted_draws() -> None:
    """Importance sampling: facts drawn from the prior, weighted by the density of the anatomy under them."""
    rows = phantom.subjects(400, 7, diagnosis=True).iloc[[3, 77, 200]]
    rng, n = np.random.default_rng(0), 200_000
    age, male = rng.uniform(*phantom.AGES, n), rng.integers(0, 2, n)
    ill = (rng.random(n)[:, None] > diagnosis_probabilities(age).cumsum(1)[:, :2]).sum(1)
    mean, sd = phantom._law(age, male, ill)
    for given in ([], ["mmse"]):
        exact = phantom.posterior(rows, given)
        for (_, row), (_, said) in zip(rows.iterrows(), exact.iterrows(), strict=True):
            numbers = row[NUMBERS].to_numpy(float).copy()
            numbers[2] = 100 - numbers[2]
            standing = (np.log(numbers) - mean) / sd
            log_weight = stats.multivariate_normal(cov=phantom._CORRELATION).logpdf(standing) - np.log(sd).sum(1)
            score = draw_score(ill, standing[:, 4], rng.standard_normal(n))
            weight = np.exp(log_weight - log_weight.max()) * ((score == row["mmse"]) if given else 1.0)
            weight /= weight.sum()
            slack = 4 / np.sqrt(1 / np.square(weight).sum())  # four standard errors, in sds
            p = np.bincount(ill, weight, minlength=3)
            np.testing.assert_allclose(said[P_DIAGNOSIS].to_numpy(float), p, atol=slack / 2)
            assert said["age_mean"] == pytest.approx(weight @ age, abs=slack * said["age_sd"])
            assert said["sex_p_M"] == pytest.approx(weight @ male, abs=slack / 2)
            if not given:
                assert said["mmse_mean"] == pytest.approx(weight @ score, abs=slack * said["mmse_sd"])
                spread = np.sqrt(weight @ score**2 - (weight @ score) ** 2)
                assert said["mmse_sd"] == pytest.approx(spread, rel=3 * slack)


def test_dementia_is_told_in_four_of_five_of_two_alike(people: pd.DataFrame) -> None:
    # between two normal laws of one spread the best guess is right in Phi(d / 2) of the cases
    _, sd = phantom._law(np.array(75.0), np.array(0), np.array(0))
    shift = EFFECT[2] / sd
    d = np.sqrt(shift @ np.linalg.solve(phantom._CORRELATION, shift))
    assert 0.75 < stats.norm.cdf(d / 2) < 0.85
    rows = people[people["diagnosis"].isin(["control", "dementia"]) & people["age"].between(60, 90)]
    said = phantom.posterior(rows, ["age", "sex"])
    age = rows["age"].to_numpy()
    odds = said["diagnosis_p_dementia"] / said["diagnosis_p_control"]
    prior = diagnosis_probabilities(age)
    guessed = odds.to_numpy() > prior[:, 2] / prior[:, 0]  # as if both were equally frequent
    ill = (rows["diagnosis"] == "dementia").to_numpy()
    balanced = (guessed[ill].mean() + (~guessed[~ill]).mean()) / 2
    assert balanced == pytest.approx(stats.norm.cdf(d / 2), abs=0.05)


def test_a_score_tells_of_the_diagnosis_and_is_refused_where_it_is_none(people: pd.DataFrame) -> None:
    rows = people.head(300)
    free, told = phantom.posterior(rows), phantom.posterior(rows, ["mmse"])
    assert not [name for name in told if name.startswith("mmse")]
    truth = rows["diagnosis"].map(DIAGNOSES.index).to_numpy()
    loss = [-np.log(table[P_DIAGNOSIS].to_numpy()[np.arange(len(rows)), truth]).mean() for table in (free, told)]
    assert loss[1] < 0.8 * loss[0]
    for wrong in (30.5, 31, -1):
        with pytest.raises(MetavoxelError, match="not whole scores"):
            phantom.posterior(rows.assign(mmse=wrong), ["mmse"])
    with pytest.raises(MetavoxelError, match="follows from the diagnosis"):
        phantom.changed(rows, mmse=20)


def test_healed_people_score_better_and_healthy_ones_as_before(people: pd.DataFrame) -> None:
    rows = people.head(500)
    healed, ill = phantom.changed(rows, diagnosis="control"), rows["diagnosis"] == "dementia"
    assert (healed["mmse"] >= rows["mmse"]).all() and (healed["mmse"] - rows["mmse"])[ill].mean() > 4
    assert (healed["hippocampus_percent"] > rows["hippocampus_percent"])[ill].all()
    assert (healed["ventricles_percent"] < rows["ventricles_percent"])[ill].all()
    assert (healed.loc[~ill, "mmse"] >= rows.loc[~ill, "mmse"]).all()
    pd.testing.assert_frame_equal(phantom.changed(rows, diagnosis=rows["diagnosis"]), rows)


def test_a_cohort_has_gaps_in_its_score_by_age_alone(tmp_path: Path) -> None:
    out = phantom.write_cohort(tmp_path / "c", 5, seed=2, diagnosis=True)
    truth = pd.read_csv(out / "derivatives" / "phantom" / "posterior.tsv", sep="\t")
    assert list(truth) == [*phantom.posterior(phantom.subjects(5, 2, diagnosis=True)), *NUMBERS]
    assert json.loads((out / "participants.json").read_text())["mmse"]["Units"] == "points"
    # the tables of many, without their scans
    rows = phantom.subjects(1500, 2, diagnosis=True)
    phantom._write_tables(tmp_path / "many", rows, 2, 0.0)
    told = pd.read_csv(tmp_path / "many" / "participants.tsv", sep="\t")
    assert told[["age", "sex", "diagnosis"]].notna().all(axis=None)
    gap = told["mmse"].isna()
    for low, high in ((20, 45), (55, 90)):
        some = told["age"].between(low, high)
        p = untested_probability(told.loc[some, "age"].to_numpy())
        assert abs(gap[some].sum() - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum())
    pd.testing.assert_series_equal(told.loc[~gap, "mmse"].astype(int), rows.loc[~gap, "mmse"])
